"""Configs that do not end, or that name what a config must not: one line each, and no module is imported."""

import random
import sys
from pathlib import Path

import pytest
from hostile import mutated, refused

from megadna.arguments import MAX_YAML_BYTES, config_parser, dump_config, load_config, parse, read_yaml
from megadna.config import Config
from megadna.train.report import read_run

NINE = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{', '.join(['*' + chr(97 + n)] * 9)}]}}\n" for n in range(9)
)
CASES = [
    ("a: &a [*a]\n", "line 1: an alias inside the value it names is endless"),
    ("seed: 1\nmodel: &m\n  extra: *m\n", "line 2: an alias inside the"),
    (NINE, "line 5: more than 20,000 values with its aliases"),
    (MERGED, "line 5: more than 20,000 values with its aliases"),
    ("? [a, b]\n: 1\n", "line 1: a list or section where a key belongs"),
    ("a: " + "[" * 5_000, "nested more than 50 levels deep"),
    ("{a: " * 5_000, "nested more than 50 levels deep"),
    ("- " * 3_000, "nested more than 50 levels deep"),
    ("seed: " + "9" * 5_000, "a number of 5,000 characters"),
    ("seed: " + "1:" * 3_000 + "1", "a number of 6,001 characters"),  # base 60
    ("#" * (MAX_YAML_BYTES + 1), "larger than the 262,144 bytes"),
    (b"seed: \xff\n", "line 1: not UTF-8 (byte 0xff)"),
    ("seed: !!binary x\n", "line 1: a value with the tag binary"),
    ("data: !!set {a, b}\n", "line 1: a value with the tag set"),
    ("seed: !!int x\n", "x"),
    ("seed: 2001-99-99\n", "2001-99-99"),
    ("\0", "#x0000"),
    ("3: 4\n", "Key must be a string"),
    ("config: other.yaml\n", "line 1: a file cannot name another; give each with its own --config"),
    ("model: other.yaml\n", "line 1: model is a section of keys, not 'other.yaml'"),
    ("x: &x {masking: other.yaml}\ndata: *x\n", "data.masking is a section of keys, not 'other.yaml'"),
    ("data.masking: other.yaml\n", "data.masking is a section of keys, not 'other.yaml'"),
]


@pytest.mark.parametrize(("text", "message"), CASES, ids=[message[:30] for _, message in CASES])
def test_a_config_ends_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = refused(lambda: load_config(file))
    assert message in found and "bad.yaml" in found
    refused(lambda: read_yaml(file))


def test_an_alias_that_ends_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("train: &t {lr: 1.0e-4}\nseed: 5\n")
    assert load_config(tmp_path / "good.yaml").train.lr == 1e-4
    (tmp_path / "good.yaml").write_text("data: {path: [&p x, *p]}\nmodel: {num_layers: 2}\n")
    assert load_config(tmp_path / "good.yaml").data.path == ["x", "x"]


def test_a_value_of_the_command_line_ends_too() -> None:
    for option in (["--data.path", "[" * 5_000], ["--data.path", "&a [*a]"], ["--model", "some.module"]):
        assert option[0] in refused(lambda option=option: parse(config_parser("train", ""), option))


@pytest.mark.parametrize(
    "text",
    [
        "data: planted_module.X\n",
        "data: {class_path: planted_module.X}\n",
        "data: {masking: {schedule: [planted_module.X]}}\n",
        "data: {masking: {schedule: [{class_path: planted_module.X, init_args: {step: 1}}]}}\n",
        "tokenizer: {class_path: planted_module.X}\n",
        "engine: {device: planted_module.X}\n",
    ],
)
def test_a_config_imports_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The parser takes dotted names for classes; a module beside the command must not run because a config names it."""
    marker = tmp_path / "ran"
    (tmp_path / "planted_module.py").write_text(f"open({str(marker)!r}, 'w')\nX = object\n")
    (tmp_path / "bad.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refused(lambda: load_config(tmp_path / "bad.yaml"))
    assert not marker.exists() and "planted_module" not in sys.modules


def test_sections_in_lists_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {masking: {schedule: [{step: 3, fraction: 0.2}]}}\n")
    config = load_config(tmp_path / "a.yaml")
    assert config.data.masking.schedule[0].fraction == 0.2
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "b.yaml") == config


def test_the_config_of_a_run_ends_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for text in (NINE, "a: " + "[" * 5_000, "- 1\n", "a: !!python/object:x y\n"):
        (tmp_path / "config.yaml").write_text(text)
        assert "config.yaml" in refused(lambda: read_run(tmp_path))
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    for line in ("[" * 100_000, "[1]", "9" * 5_000):
        (tmp_path / "metrics.jsonl").write_text(line + '\n{"step": 1, "loss": 2.0}\n')
        assert "lines left out: 1" in read_run(tmp_path).notes[0]


def fuzz(tmp_path: Path, count: int, seed: int) -> int:
    """Damaged configs; how many were refused."""
    whole = dump_config(Config()).encode() + b"x: &x [1, 2]\ny: *x\n"
    file, rng = tmp_path / "config.yaml", random.Random(seed)
    refusals = 0
    for _ in range(count):
        start = whole.find(b"\n", rng.randrange(len(whole))) + 1 if rng.random() < 0.5 else 0
        text = mutated(whole[start : start + rng.choice([40, 400, 4_000])], rng)
        file.write_bytes(text)
        refusals += bool(refused(lambda: load_config(file)))
        refused(lambda: read_yaml(file))
    return refusals


def test_fuzz_quick(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 12, seed=3) > 4


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 800, seed=4) > 300
