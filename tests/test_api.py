"""The verbs as functions: they return what the commands write; docs/api.md is made from their docstrings."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import megadna
from megadna import evaluate, export, preprocess, report, train
from megadna.arguments import load_config
from megadna.errors import RunEnded, UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
GENOME = ROOT / "tests" / "data" / "mgenitalium_G37.fa.gz"
SMALL = {"train.steps": 2, "train.warmup_steps": 1, "engine.num_processes": 1, "data.num_workers": 0}
SMALL |= {"model.num_layers": 1, "model.local_context": "none", "data.sequence_length": 128, "validation.samples": 8}
SMALL |= {"train.decay_steps": None, "log.tensorboard": False, "train.betas": (0.9, 0.95)}


def test_the_page_is_up_to_date() -> None:
    import api_page

    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page(), "run python tools/api_page.py"


def test_every_function_is_there_and_completed() -> None:
    assert set(megadna.VERBS) <= set(dir(megadna)) and all(callable(getattr(megadna, name)) for name in megadna.VERBS)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = megadna.trian


def test_mistakes_are_user_errors(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chunk_size: no such option"):
        preprocess(GENOME, tmp_path / "dataset", chunk_size=100)
    with pytest.raises(UserError, match="no such file"):
        preprocess(tmp_path / "a.fa", tmp_path / "dataset")
    with pytest.raises(UserError, match="did you mean demo"):
        train("dmeo", toy_dataset, tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.steps"):
        train("demo", toy_dataset, tmp_path / "run", keys={"train.step": 2})
    with pytest.raises(UserError, match="is no key of a config"):
        train("demo", toy_dataset, tmp_path / "run", keys={"--resume": True})
    with pytest.raises(UserError, match="514"):
        train("demo", toy_dataset, tmp_path / "run", keys={"data.sequence_length": 600})
    with pytest.raises(UserError, match="no such run"):
        evaluate(tmp_path / "run")
    with pytest.raises(UserError, match="sampels"):
        evaluate(toy_dataset, sampels=3)
    with pytest.raises(UserError, match="no such run"):
        export(tmp_path / "run", tmp_path / "model")
    with pytest.raises(UserError, match="dtype must be one of"):
        export(tmp_path / "run", tmp_path / "model", dtype="fp8")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_genome_to_model(toy_dataset: Path, tmp_path: Path) -> None:
    """A config by name with keys, and the same as a Config, give the same losses; two ranks run as processes."""
    manifest = preprocess(GENOME, tmp_path / "dataset", chunk_length=512, valid_fraction=0.1, test_fraction=0.1)
    assert manifest.chunks == json.loads((toy_dataset / "manifest.json").read_text())["chunks"]

    run = train("demo", tmp_path / "dataset", tmp_path / "run", keys=SMALL)
    again = train(load_config(run / "config.yaml"), toy_dataset, tmp_path / "again")
    losses = [[json.loads(line).get("loss") for line in (one / "metrics.jsonl").open()] for one in (run, again)]
    assert len(losses[0]) > 2 and losses[0] == losses[1]
    train("demo", toy_dataset, run, keys={**SMALL, "train.steps": 3, "engine.num_processes": 2}, resume="always")
    with pytest.raises(UserError, match="not empty"):
        train("demo", toy_dataset, run, keys=SMALL)
    with pytest.raises(RunEnded, match="exit status"):
        train("demo", toy_dataset, tmp_path / "ends", keys={**SMALL, "train.exit_after_minutes": 1e-9})

    table = evaluate(run, samples=16).set_index("name")
    found = json.loads((run / "evaluation-test.json").read_text())
    assert table.bits_per_base[str(run)] == found["model"]["bits_per_base"] and table.kind["markov"] == "baseline"
    assert table.accuracy["uniform"] == found["baselines"]["uniform"]["accuracy"]
    model = export(run, tmp_path / "model")
    assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 1
    exported = evaluate(model, data=toy_dataset, samples=16, trust_remote_code=True, seed=None).bits_per_base
    assert exported[0] == pytest.approx(table.bits_per_base[str(run)], abs=2e-3)
    assert report([run, again], tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path) -> None:
    """In order, as they stand in docs/; what is stored in them is small."""
    pytest.importorskip("nbclient")
    import notebooks

    (tmp_path / "genomes").mkdir()
    shutil.copy(GENOME, tmp_path / "genomes")
    for name in notebooks.NOTEBOOKS:
        assert (notebooks.DOCS / name).stat().st_size < 60_000
        found = notebooks.run(name, tmp_path)
        last = next(cell for cell in reversed(found.cells) if cell.cell_type == "code")
        assert any(output.output_type == "execute_result" for output in last.outputs)
    assert (tmp_path / "model" / "config.json").is_file()
