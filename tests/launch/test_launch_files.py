"""The files of launch/ and the Dockerfile: linters, schemas, and what `megadna launch slurm` makes of the script."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_page import command, commands

from megadna.arguments import config_from, config_parser, parse
from megadna.cli import main
from megadna.commands import launch
from megadna.errors import UserError
from megadna.planning.layouts import evaluate_layout
from megadna.planning.step_time import GPUS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / "launch/slurm.sbatch", ROOT / ".ci/run"])
OVERRIDES = ["--parallel.tensor", "4", "--data.path=/data/a b"]
COMMAND = [
    "slurm",
    "--config",
    "configs/aido-dna-7b.yaml",
    "--output",
    "runs/7b",
    "--nodes",
    "32",
    "--dry_run",
    *OVERRIDES,
]


def test_linters_find_nothing() -> None:
    subprocess.run([BIN / "shellcheck", *SCRIPTS], check=True)
    subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], check=True)


@pytest.mark.parametrize("version", ["1.28", "1.36"])
def test_the_manifest_fits_its_schema(version: str) -> None:
    manifest = ROOT / "launch" / "kubernetes.yaml"
    subprocess.run([BIN / "kubernetes-validate", "--strict", "-k", version, manifest], check=True)


def filled(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    launch.main([*COMMAND, *more])
    return capsys.readouterr().out


def test_the_script_is_filled_in(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = filled(capsys, "--sbatch", "partition=gpu array=1-3 time=2-00")
    directives = dict(re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(.*))?$", script))
    assert directives["nodes"] == "32" and directives["ntasks-per-node"] == directives["gpus-per-node"] == "8"
    assert (directives["partition"], directives["array"], directives["time"]) == ("gpu", "1-3", "2-00")
    assert "requeue" in directives and directives["signal"] == "B:USR1@300"
    assert "CONFIG=configs/aido-dna-7b.yaml\nRUN=runs/7b\n" in script
    options = re.search(r"(?m)^OPTIONS=\((.*)\)$", script)
    assert options and shlex.split(options.group(1)) == OVERRIDES
    subprocess.run([BIN / "shellcheck", "-"], input=script, text=True, check=True)
    assert "--gpus-per-node" not in filled(capsys, "--engine.device", "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks_per_node", "9"], r"global_batch_size \(1024\) must be divisible by .* x 72 data-parallel ranks"),
        (["--model.layers", "3"], "unknown key model.layers"),
        (["--sbatch", "exclusive"], "--sbatch takes words such as"),
        (["--ranks_per_node", "0"], "must be positive"),
    ],
)
def test_mistakes_are_found_before_anything_is_queued(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        launch.main([*COMMAND, *words])


def layouts() -> list[tuple[str, str, str, str]]:
    """Config, GPUs, overlay ("" for none) and GB of each line of the table in docs/cluster.md."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    return re.findall(r"(?m)^\| (configs/\S+) \| (\d+) \| (?:none|(configs/layouts/\S+)) \| ([\d.]+) \|", text)


def test_the_documented_layouts_fit_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    from megadna.commands.plan import _shape

    monkeypatch.chdir(ROOT)
    assert {int(num_gpus) for _, num_gpus, _, _ in layouts()} == {1, 8, 64, 256}
    assert {overlay for _, _, overlay, _ in layouts() if overlay} == set(
        map(str, Path().glob("configs/layouts/*.yaml"))
    )
    for path, num_gpus, overlay, gigabytes in layouts():
        files = [word for name in (path, overlay) if name for word in ("--config", name)]
        config = config_from(parse(config_parser("train", ""), files))
        layout = evaluate_layout(config, *_shape(config), int(num_gpus), GPUS["h100"])
        assert layout.fits and layout.memory.total / 1e9 == pytest.approx(float(gigabytes), abs=0.5), path


def test_the_documented_dry_run_has_the_overlay_behind_the_config(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    main(shlex.split(command("^megadna launch slurm .* --dry_run$"))[1:])
    script = capsys.readouterr().out
    overlay = "--config configs/layouts/aido-dna-7b-256.yaml"
    assert "CONFIG=configs/aido-dna-7b.yaml\nRUN=runs/7b\n" in script and "#SBATCH --nodes=32\n" in script
    assert f"OPTIONS=({overlay} --data.path DATASET)" in script


def test_every_command_of_the_page_is_run_by_a_test_of_this_folder() -> None:
    folder = Path(__file__).parent
    sources = "".join(path.read_text(encoding="utf-8") for path in folder.glob("test_*.py"))
    sources += (folder / "two_hosts.py").read_text(encoding="utf-8")
    taken = {command(pattern) for pattern in re.findall(r'\bcommand\("([^"]+)"\)', sources)}
    assert taken == set(commands())
    assert folder.samefile(ROOT / command("pytest").split()[-1])
