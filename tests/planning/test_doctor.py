"""`megadna doctor`: ready on this machine, and what it names where something is wrong."""

from pathlib import Path

import pytest

from megadna.commands import doctor
from megadna.planning import doctor as planning
from megadna.planning.doctor import Finding, examine


def by_name(folders: list[Path]) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(folders)}


def test_versions_choices_and_disks(tmp_path: Path) -> None:
    import torch

    found = by_name([tmp_path, tmp_path / "absent"])
    assert found["torch"].text == torch.__version__ and not found["torch"].remedy
    assert found["megatron-core"].text.startswith("0.16.") and found["attention"].text
    assert "MB/s" in found[f"disk {tmp_path}"].text and not list(tmp_path.iterdir())
    assert "--folders" in found[f"disk {tmp_path / 'absent'}"].remedy


def test_an_unrelated_apex_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that PyPI calls apex has no optimizers."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    (tmp_path / "apex-0.9.10.dist-info").mkdir()
    (tmp_path / "apex-0.9.10.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert by_name([])["apex"].remedy == "pip uninstall apex"


def test_missing_libraries_of_the_downstream_extra_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent ones and those that are too old, by the requirements that pip knows; training needs none."""
    versions = {"pandas": "1.5.3", "peft": None, "h5py": "3.1", "torch": None}
    stated = ["torch>=2.6", 'pandas>=2; extra == "downstream"', 'peft>=0.14; extra == "downstream"']
    stated += ['h5py; extra == "downstream"', 'ruff; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: stated)
    monkeypatch.setattr(planning, "_version", lambda name: versions[name])
    found = planning._extra("downstream")
    assert found.text.startswith("absent or too old: pandas, peft; pip install 'megadna[downstream]'")
    assert not found.remedy
    versions |= {"pandas": "3.0", "peft": "0.14"}
    assert planning._extra("downstream").text == "complete, 3 libraries"


@pytest.mark.slow
def test_this_machine_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ranks of the engine learn one batch. A slow disk of this machine would be its only fault."""
    try:
        doctor.main(["--folders", str(tmp_path)])
    except SystemExit as end:
        assert end.code == 1
    text = capsys.readouterr().out
    assert "self-test            2 ranks on cpu" in text and "GB/s a rank" in text
    problems = text.partition("to repair:\n")[2].splitlines()
    assert all(line.strip().startswith(f"disk {tmp_path}") for line in problems), text
