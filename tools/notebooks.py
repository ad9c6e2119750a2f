"""Runs the notebooks of docs/ in one folder and stores what they show: python tools/notebooks.py FOLDER [--save]

FOLDER/genomes holds FASTA files; the model that the first notebook trains there is what the second uses. --save writes
the outputs into docs/, without log and progress. nbclient and ipykernel are in the extra `test`.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = ("pretrain.ipynb", "use_a_model.ipynb")


def run(name: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells showed; CellExecutionError at the first that fails."""
    notebook = nbformat.read(DOCS / name, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def stored(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without standard error, times and the kernel's version."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


if __name__ == "__main__":
    for name in NOTEBOOKS:
        found = stored(run(name, Path(sys.argv[1])))
        if "--save" in sys.argv:
            nbformat.write(found, DOCS / name)
        sys.stdout.write(f"{name}: {sum(len(cell.get('outputs', [])) for cell in found.cells)} outputs\n")
