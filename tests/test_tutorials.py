"""The tutorials run as they stand: real genomes and commands, a toy model on the CPU, a stand-in for hub and weights.

Commands go through wrappers of the same names that give training one more --config (toy sizes; the later wins).
"""

import importlib.util
import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import preloaded
import pytest
import yaml
from documented import ROOT, blocks_of, run_blocks
from toy import metrics

from megadna.config import Config, DataConfig, ModelConfig, TokenizerConfig

pytestmark = pytest.mark.slow
MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "ffn_hidden_size": 96}
TOY = {
    "data": {"sequence_length": 128, "num_workers": 0},
    "engine": {"device": "cpu", "num_processes": 1, "precision": "fp32"},
    "train": {"steps": 6, "micro_batch_size": 4, "global_batch_size": 16},
    "checkpoint": {"interval": 3},
    "validation": {"interval": 3, "samples": 16, "micro_batch_size": 16},
    "log": {"tensorboard": False},
}
WRAPPERS = {
    "megadna": """toy=$TOY/toy.yaml
[[ " $* " != *" --resume "* ]] || toy=$TOY/longer.yaml
case $1 in
train) set -- "$@" --config "$toy" ;;
finetune) set -- "$@" --max_steps 2 ;;
esac""",
    "torchrun": 'set -- "$@" --config "$TOY/toy.yaml"',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blocks run: beside the repository's folders, with the wrappers."""
    for name in ("tests", "configs", "launch", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    wrappers = tmp_path / "wrappers"
    wrappers.mkdir()
    for command, text in WRAPPERS.items():
        real = Path(preloaded.python()).with_name(command)
        (wrappers / command).write_text(f'#!/usr/bin/env bash\n{text}\nexec {real} "$@"\n')
        (wrappers / command).chmod(0o755)
    return tmp_path


def run(blocks: list[tuple[str, str]], folder: Path, toy: dict, **variables: str) -> str:
    """Run blocks with the wrappers in front of the commands; what they print."""
    wrappers = folder / "wrappers"
    (wrappers / "toy.yaml").write_text(yaml.safe_dump(toy))
    (wrappers / "longer.yaml").write_text(yaml.safe_dump({**toy, "train": {**toy["train"], "steps": 9}}))
    return run_blocks(blocks, folder, PATH=str(wrappers), TOY=str(wrappers), **variables)


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run) if "loss" in line]


def test_quickstart(folder: Path) -> None:
    printed = run(blocks_of("quickstart.md"), folder, TOY | {"model": MODEL})
    prose = re.sub(r"```.*?```", "", (ROOT / "docs" / "quickstart.md").read_text(), flags=re.S)
    shown = re.findall(r"(?m)^ {4}(.*)$", prose)
    assert len(shown) == 8 and all(line in printed for line in shown)
    assert steps_of(folder / "first" / "run") == [1, 2, 3, 4, 5, 6]
    assert (folder / "lambda.parquet").stat().st_size > 0


def test_pretrain_your_genomes(folder: Path) -> None:
    *blocks, publish = blocks_of("pretrain_your_genomes.md")
    run(blocks, folder, TOY | {"model": MODEL})
    hub = _module("test_publish").Hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_variables = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test"}
    try:
        run([publish], folder, TOY, HF_HUB_OFFLINE="0", **hub_variables)
    finally:
        server.shutdown()
    assert {"README.md", "model.safetensors", "config.json"} <= hub.files.keys()
    assert steps_of(folder / "project" / "run") == list(range(1, 10))
    card = (folder / "project" / "model" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "Mycoplasma genitalium" in card and "Leakage: " in card


def test_continue_pretraining(folder: Path) -> None:
    modern = Config(model=ModelConfig(**MODEL), data=DataConfig(sequence_length=128))
    original = ModelConfig(
        **MODEL, activation="gelu", norm_placement="post", positions="learned", max_positions=128, token_types=2
    )
    kmers = TokenizerConfig(kind="kmer", k=6)
    published(folder / "published", modern, "genbio-ai")
    published(folder / "dnabert", Config(model=original, tokenizer=kmers, data=DataConfig(sequence_length=128)), "mit")
    printed = run(blocks_of("continue_pretraining.md"), folder, TOY)
    assert "genbio-ai" in printed
    lines = [line for line in metrics(folder / "continued") if "valid_bits_per_base" in line]
    assert [line["step"] for line in lines] == [0, 3, 6] and "valid_extra/known_bits_per_base" in lines[0]
    content = json.loads((folder / "model" / "config.json").read_text())
    assert content["model_type"] == json.loads((folder / "published" / "config.json").read_text())["model_type"]


def published(folder: Path, config: Config, license_name: str) -> None:
    """A folder as it is published: weights drawn at random, config.json and a card; no tokenizer, no code."""
    from megadna.hf.export import export

    checkpoint, _ = _module("checkpoints").random_checkpoint(folder.with_name(f"{folder.name}-drawn"), config)
    export(checkpoint, folder, check=False, license_name=license_name)
    for path in [*folder.glob("*.py"), *folder.glob("tokenizer*"), folder / "megadna.json"]:
        path.unlink()


def _module(name: str):
    """A helper of tests/hf."""
    spec = importlib.util.spec_from_file_location(f"hf_{name}", ROOT / "tests" / "hf" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
