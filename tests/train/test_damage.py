"""Damaged files of checkpoints and run folders: the checkpoint before is taken, or one line names file and problem."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import run_ranks
from toy import metrics, run_training, toy_config

from megadna.arguments import dump_config, load_config
from megadna.cli import main
from megadna.commands import inspect
from megadna.config import CheckpointConfig, Config, LogConfig
from megadna.errors import UserError
from megadna.log import log_file
from megadna.train.checkpoint import find_checkpoint, read_numbers
from megadna.train.integrity import ALWAYS, MARKER, check, seal
from megadna.train.metrics import MetricLines, _identity, cut_after
from megadna.train.report import read_run
from megadna.train.report_page import render_page
from megadna.train.run_folder import read_evaluation

NEWEST, BEFORE = "step-00000004", "step-00000002"
FILES = [MARKER, *ALWAYS, "weights/*.distcp", "weights", "."]


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    path.unlink()
    path.touch()


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def flipped(path: Path, at: float = 0.5, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= bit
    path.unlink()
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    removed(path)
    path.mkdir()


def a_file(path: Path) -> None:
    removed(path)
    path.write_text("[]")


def a_list(path: Path) -> None:
    path.unlink()
    path.write_text("[]")


def other_types(path: Path) -> None:
    content = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({name: [value] for name, value in content.items()}))


def forbidden(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    path.chmod(0)


def garbage(path: Path) -> None:
    path.unlink()
    path.write_bytes(random.Random(1).randbytes(100))


OF_FILES = [cut, emptied, removed, flipped, a_folder, forbidden, garbage, a_list]
AS_USER = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
CASES = [
    *(pytest.param(file, kind, marks=AS_USER if kind is forbidden else ()) for file in FILES[:-2] for kind in OF_FILES),
    *((file, kind) for file in ("weights", ".") for kind in (removed, a_file, a_folder)),
    *((file, other_types) for file in (MARKER, "state.json", "weights/metadata.json")),
]


def tiny(dataset: Path) -> Config:
    config = toy_config(dataset)
    return replace(
        config,
        model=replace(config.model, num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=32),
        data=replace(config.data, sequence_length=64),
        train=replace(config.train, steps=4),
        checkpoint=replace(config.checkpoint, interval=2, keep_last=1, keep_best=1),
        validation=replace(config.validation, interval=2),
    )


@pytest.fixture(scope="module")
def whole(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints 2 and 4."""
    run = tmp_path_factory.mktemp("damage") / "whole"
    config = tiny(toy_dataset)
    run_ranks(run_training, 1, replace(config, checkpoint=replace(config.checkpoint, keep_last=2)), run)
    (run / "config.yaml").write_text(dump_config(config))
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy, its weights by hard links: damage replaces files and does not write into them."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True, copy_function=_link)
    return tmp_path / "run"


def _link(source: str, target: str) -> None:
    os.link(source, target) if "weights" in source else shutil.copy2(source, target)


def damaged(run: Path, file: str, kind: Callable[[Path], None]) -> str:
    """Damage the newest checkpoint; returns the name by which it must be known."""
    folder = run / "checkpoints" / NEWEST
    path = folder if file == "." else next(iter(sorted(folder.glob(file))))
    kind(path)
    return path.name if file != "weights" else "weights"


@pytest.mark.parametrize(("file", "kind"), CASES)
def test_the_one_before_is_taken_and_the_damage_named(
    file: str, kind: Callable[[Path], None], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = damaged(run, file, kind)
    assert find_checkpoint(run).name == BEFORE
    if (file, kind) == (".", removed):
        assert not caplog.records
        return
    (record,) = caplog.records
    said = record.getMessage()
    assert name in said and NEWEST in said and said.endswith("taking the one before it") and "\n" not in said
    inspect.main([str(run)])
    shutil.rmtree(run / "checkpoints" / BEFORE)
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole") as caught:
        find_checkpoint(run)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        inspect.main([str(run / "checkpoints" / NEWEST)])
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "numbers",
    [
        *("[]", "5", "null", '"step"', "{}"),
        *('{"step": "4"}', '{"step": true}', '{"step": -1}', '{"step": 4.0}'),
        '{"step": 4, "consumed_samples": null, "skipped": [], "versions": {}}',
        '{"step": 4, "consumed_samples": 1, "skipped": [[1]], "versions": {}}',
        '{"step": 4, "consumed_samples": 1, "skipped": {}, "versions": {}}',
        '{"step": 4, "consumed_samples": 1, "skipped": [], "versions": "1.0"}',
        '{"step": 4, "consumed_samples": 1, "skipped": [], "versions": {}, "valid_bits_per_base": "low"}',
        "[" * 100_000,
    ],
)
def test_a_sealed_state_of_other_types_is_damage_too(numbers: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run / "checkpoints" / NEWEST
    (folder / "state.json").write_text(numbers)
    seal(folder)
    check(folder)
    with pytest.raises(UserError, match=r"state\.json: .*damaged"):
        read_numbers(folder)
    assert find_checkpoint(run).name == BEFORE and len(caplog.records) == 1
    inspect.main([str(run)])


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: {**entries, "state.json": {"bytes": 1}},
        lambda entries: {**entries, "state.json": {"bytes": 1, "crc32": "1"}},
        lambda entries: {**entries, "state.json": [1, 2]},
        lambda entries: {name: entry for name, entry in entries.items() if "distcp" not in name},
        lambda entries: {name: entry for name, entry in entries.items() if name != "state.json"},
        lambda entries: {**entries, "x" * 5000: {"bytes": 1, "crc32": 1}},
        lambda entries: {**entries, "a\0b": {"bytes": 1, "crc32": 1}},
        lambda entries: {**entries, "../none": {"bytes": 1, "crc32": 1}},
    ],
)
def test_a_marker_of_another_shape_is_damage(change: Callable[[dict], dict], run: Path) -> None:
    marker = run / "checkpoints" / NEWEST / MARKER
    marker.write_text(json.dumps(change(json.loads(marker.read_text()))))
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        check(marker.parent)
    assert find_checkpoint(run).name == BEFORE


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint but the marker."""
    return {name: (folder / name).read_bytes() for name in (*ALWAYS, *_shards(folder))}


def _shards(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in (folder / "weights").glob("*.distcp")]


@pytest.mark.parametrize("number", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_random_damage_never_passes_and_never_ends_in_a_traceback(number: int, run: Path, tmp_path: Path) -> None:
    """What is found holds the bytes that were saved (a marker may change in white space), whatever was damaged."""
    rng = random.Random(7)
    folders = {folder.name: folder for folder in (run / "checkpoints").glob("step-*")}
    sound = {name: content(folder) for name, folder in folders.items()}
    found = {NEWEST: 0, BEFORE: 0, "": 0}
    for _ in range(number):
        copy = tmp_path / "copy"
        shutil.copytree(run, copy, symlinks=True, copy_function=_link)
        for _ in range(rng.choice([1, 1, 2, 4])):
            folder = copy / "checkpoints" / rng.choice([NEWEST, NEWEST, BEFORE])
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
            if not files:
                continue
            path = rng.choice(files)
            kind = rng.choice([cut, emptied, removed, flipped, flipped, flipped, a_folder, garbage])
            flipped(path, rng.random(), 1 << rng.randrange(8)) if kind is flipped else kind(path)
        try:
            taken = find_checkpoint(copy)
        except UserError as error:
            found[""] += 1
            assert "\n" not in str(error)
        else:
            found[taken.name] += 1
            assert content(taken) == sound[taken.name]
        inspect.main([str(copy)])
        shutil.rmtree(copy)
    assert all(found.values()), found


def resumed(config: Config, run: Path) -> str:
    """Resume; the UserError or OSError it ends with."""
    try:
        run_training(config, run, resume=True)
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (MARKER, removed),
        pytest.param("state.json", cut, marks=pytest.mark.slow),
        pytest.param("weights/*.distcp", flipped, marks=pytest.mark.slow),
        pytest.param(".", a_file, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_repeats_what_was_damaged(
    file: str, kind: Callable[[Path], None], whole: Path, run: Path, toy_dataset: Path
) -> None:
    """With keep_last 1 as well: the damaged one, by its name the last, must not be what is kept."""
    damaged(run, file, kind)
    assert run_ranks(resumed, 1, tiny(toy_dataset), run) == [""]
    assert metrics(run) == metrics(whole)
    assert find_checkpoint(run).name == NEWEST
    left = {path.name.partition("-")[0] for path in (run / "checkpoints").iterdir()}
    assert "damaged" in left and (run / "checkpoints" / "latest").resolve().name == NEWEST


def test_every_rank_says_why_it_cannot_resume(run: Path, toy_dataset: Path) -> None:
    for name in (NEWEST, BEFORE):
        cut(run / "checkpoints" / name / "state.json")
    messages = run_ranks(resumed, 2, tiny(toy_dataset), run)
    assert len(set(messages)) == 1 and messages[0].startswith("UserError: ") and "state.json" in messages[0]


@pytest.mark.parametrize("option", ["--resume", "--resume=auto"])
def test_a_run_without_a_whole_checkpoint_is_one_line(
    option: str, run: Path, toy_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` does not start anew either: what is damaged may be worth more than a new start."""
    shutil.rmtree(run / "checkpoints" / BEFORE)
    (run / "checkpoints" / NEWEST / MARKER).unlink()
    command = ["train", "--config", str(run / "config.yaml"), "--data.path", str(toy_dataset), "--output", str(run)]
    with pytest.raises(SystemExit) as stop:
        main([*command, option])
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and said.count("megadna: error: ") == 1
        and f"{NEWEST}/{MARKER}: missing" in said.splitlines()[-1]
    )
    assert (run / "checkpoints" / NEWEST / "state.json").exists()


def save_once(config: Config, run: Path) -> int:
    from megadna.engine.distributed import parallel_world
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    with parallel_world(config.engine, config.parallel) as world:
        writer, state = CheckpointWriter(run, config, world, {}), build_state(config, 16, world)
        state.step = 9
        writer.save(state, {"valid_bits_per_base": 1.0})
        writer.finish()
        return writer.num_failed


def test_a_damaged_old_checkpoint_does_not_fail_the_next_save(run: Path, toy_dataset: Path) -> None:
    cut(run / "checkpoints" / BEFORE / "state.json")
    config = replace(tiny(toy_dataset), checkpoint=CheckpointConfig(keep_last=2))
    assert run_ranks(save_once, 1, config, run) == [0]
    assert find_checkpoint(run).name == "step-00000009"
    assert not (run / "checkpoints" / BEFORE).exists()


def exported(run: Path, output: Path) -> dict:
    main(["export", "--checkpoint", str(run), "--output", str(output), "--no_verify"])
    return json.loads((output / "megadna.json").read_text())


def test_export_takes_the_one_before_and_leaves_out_a_damaged_evaluation(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(run, "weights/.metadata", flipped)
    (run / "evaluation-test.json").write_bytes(b'{"split": "test"')
    assert exported(run, tmp_path / "model")["step"] == 2
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum(".metadata" in line for line in said) == 1
    assert sum("evaluation-test.json: not JSON" in line and "model card" in line for line in said) == 1


def evaluate_run(run: Path) -> str:
    try:
        main(["evaluate", "--model", str(run), "--samples", "8", "--split", "valid"])
    except SystemExit as stop:
        return f"status {stop.code}"
    return ""


@pytest.mark.slow
def test_evaluate_takes_the_one_before(run: Path, toy_dataset: Path) -> None:
    damaged(run, MARKER, flipped)
    assert run_ranks(evaluate_run, 1, run) == [""]
    assert json.loads((run / "evaluation-valid.json").read_text())["step"] == 2
    shutil.rmtree(run / "checkpoints" / BEFORE)
    assert run_ranks(evaluate_run, 1, run) == ["status 2"]


def init_from(config: Config, run: Path, source: Path) -> None:
    run_training(replace(config, checkpoint=replace(config.checkpoint, init_from=str(source))), run)


def test_a_new_run_takes_the_weights_of_the_one_before(run: Path, toy_dataset: Path, tmp_path: Path) -> None:
    damaged(run, "state.json", emptied)
    run_ranks(init_from, 1, tiny(toy_dataset), tmp_path / "new", run)
    started = read_numbers(find_checkpoint(tmp_path / "new"))["init_from"]
    assert started == str(run / "checkpoints" / BEFORE)


LINES = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n{"step": 3, "loss": 1.8}\n'


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "lo',
        b"\x00\xff\x85\x0b\x0c",
        b"[" * 100_000,
        b"5",
        b'{"loss": 1}',
        b'{"step": "2"}',
        b'{"step": 2, "loss": "low"}',
    ],
)
def test_a_damaged_line_of_the_metrics_is_told_and_left_out(
    line: bytes, run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "metrics.jsonl"
    first, second, third = LINES.encode().splitlines()
    file.write_bytes(b"\n".join([first, line, third, second[:9]]))
    lines = MetricLines(file)
    assert [one["step"] for one in lines] == [1, 3]
    said = f"{file}: lines left out: 1, not JSON objects of numbers with a step (the first is line 2)"
    assert lines.notes() == [said, f"{file}: the last line is cut off and was left out"]
    assert read_run(run).notes == lines.notes()
    inspect.main([str(run)])
    printed = capsys.readouterr().out
    assert "run at step 3" in printed and said in printed
    caplog.clear()
    cut_after(file, 4)
    assert [json.loads(text)["step"] for text in file.read_text().splitlines()] == [1, 3]
    assert [record.getMessage() for record in caplog.records] == [said]


def test_metrics_that_are_gone_or_a_folder(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = run / "metrics.jsonl"
    file.unlink()
    cut_after(file, 0)
    assert not caplog.records
    cut_after(file, 2)
    assert "missing, so the metrics up to step 2 are lost" in caplog.text
    inspect.main([str(run)])
    file.mkdir()
    for reader in (
        lambda file: list(MetricLines(file)),
        lambda file: cut_after(file, 2),
        lambda file: inspect.main([str(file.parent)]),
    ):
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
            reader(file)


@pytest.mark.parametrize("text", [b"a: [", b"\xff\x00", b"- 1\n", b"5", b"", b"a: &a [*a, *b]"])
def test_settings_of_a_run_that_are_no_settings(text: bytes, run: Path) -> None:
    (run / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.yaml: (line 1: not UTF-8|not YAML|not a mapping)") as caught:
        read_run(run)
    assert "\n" not in str(caught.value)
    if text:  # of nothing every setting is the default
        with pytest.raises(UserError) as caught:
            load_config(run / "config.yaml")
        assert "config.yaml" in str(caught.value)


SCORE = '{"bits_per_base": 1.9, "perplexity": 3.7, "accuracy": 0.3}'
EVALUATION = '{"split": "test", "step": 1, "samples": 2, "hidden_bases": 3, "model": %s, "baselines": {"uniform": %s}}'


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[", b"[]", b"\xff", b"{}", b"null"),
        (EVALUATION % ("5", SCORE)).encode(),
        (EVALUATION % (SCORE, "[]")).encode(),
        (EVALUATION % (SCORE.replace("1.9", '"low"'), SCORE)).encode(),
        (EVALUATION % (SCORE, SCORE)).replace('"step": 1', '"step": "1"').encode(),
        (EVALUATION % (SCORE, SCORE)).replace('{"uniform"', '[{"uniform"').replace("}}", "}]}").encode(),
    ],
)
def test_an_evaluation_that_is_none_is_one_line(text: bytes, run: Path) -> None:
    file = run / "evaluation-test.json"
    file.write_text(EVALUATION % (SCORE, SCORE))
    assert read_evaluation(file)["step"] == 1
    file.write_bytes(text)
    for reader in (lambda: read_evaluation(file), lambda: read_run(run)):
        with pytest.raises(UserError, match=r"evaluation-test\.json: .*megadna evaluate") as caught:
            reader()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_random_damage_of_run_files_is_one_line_at_most(number: int, run: Path) -> None:
    rng = random.Random(11)
    (run / "evaluation-test.json").write_text(EVALUATION % (SCORE, SCORE))
    files = [run / name for name in ("metrics.jsonl", "config.yaml", "evaluation-test.json")]
    sound = {file: file.read_bytes() for file in files}
    outcomes: dict[str, int] = {"read": 0, "refused": 0}
    for _ in range(number):
        file = rng.choice(files)
        flipped(file, rng.random(), 1 << rng.randrange(8)) if rng.random() < 0.7 else cut(file)
        for reader in (
            lambda: render_page([read_run(run)]),
            lambda: inspect.main([str(run)]),
            lambda file=file: load_config(file) if file.suffix == ".yaml" else None,
            lambda: cut_after(run / "metrics.jsonl", 2),
        ):
            try:
                reader()
                outcomes["read"] += 1
            except UserError as error:
                outcomes["refused"] += 1
                assert "\n" not in str(error)
        for path, text in sound.items():
            path.write_bytes(text)
    assert all(outcomes.values())
    assert render_page([read_run(run)])


def test_an_id_of_weights_and_biases_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "wandb" / "id"
    identity = _identity(file)
    assert identity == _identity(file) and len(identity) == 8
    for text in (b"", b"\xff\x00", b"two words", b"x" * 65):
        file.write_bytes(text)
        with pytest.raises(UserError, match=r"wandb/id: not the id of a run; delete it"):
            _identity(file)
    a_folder(file)
    with pytest.raises(UserError, match="not the id of a run"):
        _identity(file)


def test_a_folder_in_the_place_of_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with (
        pytest.raises(UserError, match=r"log\.txt: cannot be written \(Is a directory\)"),
        log_file(tmp_path / "log.txt"),
    ):
        pass


@pytest.mark.slow
def test_a_file_in_the_place_of_tensorboard_s_folder_ends_every_rank(run: Path, toy_dataset: Path) -> None:
    (run / "tensorboard").write_text("mine")
    cut(run / "checkpoints" / NEWEST / "state.json")
    messages = run_ranks(resumed, 2, replace(tiny(toy_dataset), log=LogConfig(tensorboard=True)), run)
    assert all(message.startswith("FileExistsError") and "tensorboard" in message for message in messages)
    assert (run / "tensorboard").read_text() == "mine"
