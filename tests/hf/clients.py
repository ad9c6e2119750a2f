"""Virtual environments of real clients, and what runs in them.

Each is made once, next to the environment that runs the tests (PREFIX/clients/NAME, or MEGADNA_CLIENTS), with pip and a
link to this environment's torch, so that nobody downloads it again. A client is skipped where its packages cannot be
had, and the reason names them.
"""

import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = {
    "transformers-oldest": ["transformers==4.48.0", "numpy<2.3", "safetensors"],
    "transformers-newest": ["transformers", "safetensors", "peft", "onnxruntime", "onnx", "onnxscript"],
    "multimolecule": ["multimolecule==0.2.2"],
    "modelgenerator": ["transformers==4.38.0", "numpy<2", "safetensors"],
}
WITHOUT_DEPENDENCIES = {"modelgenerator": ["modelgenerator==0.1.3.post0"]}
TORCH = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec")


@functools.cache
def client(name):
    """Python of the client's environment; made if it is missing, skipped with a reason where it cannot be."""
    key = hashlib.sha256(repr((PACKAGES[name], WITHOUT_DEPENDENCIES.get(name), sys.version)).encode()).hexdigest()[:8]
    root = Path(os.environ.get("MEGADNA_CLIENTS") or Path(sys.prefix) / "clients")
    folder = root / f"{name}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], name)
        _link_torch(folder)
        for packages, options in ((PACKAGES[name], []), (WITHOUT_DEPENDENCIES.get(name), ["--no-deps"])):
            if packages:
                _run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *options, *packages], name)
        (folder / "ready").touch()
    return str(python)


def _run(command, name):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"client {name}: {', '.join(PACKAGES[name])} cannot be installed here ({reason})")


def _link_torch(folder):
    """Links to this environment's torch and what it needs, on the client's path; pip finds them installed."""
    source = Path(importlib.util.find_spec("torch").origin).parents[1]
    links = folder / "torch"
    links.mkdir()
    for path in source.iterdir():
        if path.name.split("-")[0].lower() in TORCH or path.name.startswith("typing_extensions"):
            (links / path.name).symlink_to(path)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "torch.pth").write_text(f"{links}\n")


def run_client(name, script, *arguments, work):
    """Run `script` (text) by the client's Python in the folder `work`; its standard output. Its failure is ours."""
    environment = os.environ | {
        "HF_HOME": str(work / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(
        [client(name), "-I", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout
