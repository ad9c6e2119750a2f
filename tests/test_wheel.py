"""A wheel outside a clone: configs, launch scripts and modeling files are in it, and the verbs find them there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
WHERE = """
import megadna, megadna.packaged
from megadna.hf import formats
from megadna.planning.doctor import examine
print(megadna.__file__)
print(megadna.packaged.CONFIGS / "demo.yaml")
print(*sorted(path.name for path in (megadna.packaged.CONFIGS.parent / "hf").glob("*_megadna.py")))
"""


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment with the wheel, and with the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("megadna", "configs", "launch"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    shutil.rmtree(source)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # Files named *.pth there, as that of a clone installed with -e, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def run(*command: str | Path, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_wheel_works_outside_a_clone(bin_folder: Path, tmp_path: Path) -> None:
    package, config, modeling = run(bin_folder / "python", "-c", WHERE, folder=tmp_path).splitlines()
    assert str(bin_folder.parent) in package and str(bin_folder.parent) in config
    assert modeling == "configuration_megadna.py modeling_megadna.py tokenization_megadna.py"

    megadna = bin_folder / "megadna"
    listed = run(megadna, "configs", folder=tmp_path)
    names = [path.relative_to(ROOT / "configs").with_suffix("") for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(names) > 15 and all(f"  {name} " in listed for name in names) and "slurm.sbatch" in listed
    assert run(megadna, "configs", "demo", folder=tmp_path) == (ROOT / "configs" / "demo.yaml").read_text()
    assert run(megadna, "configs", "torchrun.sh", folder=tmp_path) == (ROOT / "launch" / "torchrun.sh").read_text()

    shutil.copy(DATA / "mgenitalium_G37.fa.gz", tmp_path)
    shares = ["--valid_fraction", "0.1", "--test_fraction", "0.1"]
    run(megadna, "preprocess", "--input", "mgenitalium_G37.fa.gz", "--output", "dataset", *shares, folder=tmp_path)
    for name in ("demo", "configs/demo.yaml"):
        job = ["--config", name, "--data.path", "dataset", "--output", "run"]
        assert "3,823,248 parameters" in run(megadna, "train", *job, "--dry_run", folder=tmp_path)
        assert "#SBATCH" in run(megadna, "launch", "slurm", *job, "--ranks-per-node=2", "--dry-run", folder=tmp_path)
    assert not (tmp_path / "run").exists()
