"""Documents name what there is: files they link to, options of their commands, the verbs of the README's list."""

import re
from pathlib import Path

import pytest

from megadna.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^ {4,}|^|`|-m )megadna ([a-z-]+)((?: [^`\n\\]|\\\n|[^`\n\\])*)", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name}: {target}"


def commands() -> dict[str, set[str]]:
    """Options that the pages give to each verb."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for verb, words in COMMAND.findall(page.read_text(encoding="utf-8")):
            if verb in COMMANDS:
                found.setdefault(verb, set()).update(re.findall(r"(?<= )--[\w.]+", words))
    return found


@pytest.mark.parametrize("verb", sorted(commands()))
def test_commands_have_the_options_that_the_pages_give_them(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, *["slurm"] * (verb == "launch"), "--help"])
    text = capsys.readouterr().out
    missing = [option for option in commands()[verb] if not re.search(rf"(?<![\w.]){option}(?![\w.])", text)]
    assert not missing


def test_the_readme_names_every_page_and_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{page.name}" in text for page in (ROOT / "docs").glob("*.md"))
    paths = (path for path in (ROOT / "megadna").iterdir() if path.is_dir() and not path.is_symlink())
    folders = [path.name for path in paths if path.name != "__pycache__"]
    assert all(f"      {name}/" in text for name in folders if name != "commands")
