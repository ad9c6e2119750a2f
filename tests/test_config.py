"""The config: every shipped YAML parses, a resolved config round-trips, a mistake names its key."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from megadna.arguments import config_from, config_parser, dump_config, load_config, parse
from megadna.config import Config, ModelConfig, ParallelConfig, TrainConfig
from megadna.errors import UserError
from megadna.model.shapes import num_parameters
from megadna.planning.start import LEAST_BATCH, SHAPE, SIZES, peak_rate

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def parse_config(*arguments: str) -> Config:
    return config_from(parse(config_parser("train", ""), list(arguments)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_parses(path: Path) -> None:
    assert isinstance(load_config(path), Config)
    assert len(path.read_text().splitlines()) < 45


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_recipe_could_train(path: Path) -> None:
    """A batch, a warm-up, and a rate not above that of `megadna start` for the size and the tokens of a step."""
    config = load_config(path)
    train, rows = config.train, 16
    end = train.samples_after(train.end_of_decay)
    assert train.global_batch_size >= LEAST_BATCH and 0.001 <= train.samples_of_warmup / end <= 0.1
    parameters = num_parameters(replace(config.model, local_context="none"), rows)  # the tables are look-ups
    shapes = {
        name: num_parameters(replace(ModelConfig(), **dict(zip(SHAPE, shape[:4], strict=True))), rows)
        for name, shape in SIZES.items()
    }
    nearest = min(shapes, key=lambda name: abs(math.log(shapes[name] / parameters)))
    assert train.lr <= peak_rate(nearest, train.global_batch_size * int(config.data.sequence_length))


def test_resolved_config_round_trips(tmp_path: Path) -> None:
    config = replace(Config(seed=7), train=TrainConfig(betas=(0.9, 0.98), lr=1e-5, eps=1e-6))
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_command_line_overrides_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 5\nmodel: {num_layers: 3}\n")
    config = parse_config("--config", str(tmp_path / "a.yaml"), "--model.num_layers", "6")
    assert (config.seed, config.model.num_layers) == (5, 6)


def test_of_several_yamls_the_later_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "seed: 5\nmodel: {num_layers: 3, hidden_size: 96}\ndata: {masking: {fraction: 0.2}}\n"
    )
    (tmp_path / "b.yaml").write_text("model: {num_layers: 4}\ndata: {masking: {mask_share: 0.9}}\n")
    (tmp_path / "c.yaml").write_text("model: {num_layers: 2}\nmodel: {num_layers: 3}\n")
    files = [word for name in ("a", "b") for word in ("--config", str(tmp_path / f"{name}.yaml"))]
    config = parse_config(*files, "--seed", "6")
    assert (config.seed, config.model.num_layers, config.model.hidden_size) == (6, 4, 96)
    assert (config.data.masking.fraction, config.data.masking.mask_share) == (0.2, 0.9)
    with pytest.raises(UserError, match=r"c.yaml: line 2: model is in line 1 already"):
        parse_config(*files, "--config", str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match=r"num_layers.*look in .*a.yaml, .*b.yaml and at the options"):
        parse_config(*files, "--model.num_layers", "many")
    with pytest.raises(UserError, match=r"--seed is given twice \(1, then 2\)"):
        parse_config(*files, "--seed", "1", "--seed", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.num_layer", "4"], ["model.num_layer", "model.num_layers"]),
        (["--model.hidden_size", "100"], ["model.hidden_size (100)", "num_attention_heads (12)"]),
        (["--model.num_layers", "many"], ["model.num_layers", "many"]),
        (["--data.masking.fraction", "1.5"], ["data.masking.fraction", "1.5"]),
        (["--engine.device", "tpu"], ["engine.device", "tpu"]),
        (["--parallel.tensor", "5"], ["num_attention_heads (12)", "parallel.tensor (5)"]),
        (["--parallel.pipeline", "5"], ["model.num_layers (12)", "parallel.pipeline (5)"]),
        (["--parallel.sequence", "true"], ["parallel.sequence", "parallel.tensor"]),
        (["--parallel.tensor", "3", "--model.ffn_hidden_size", "1536"], ["parallel.tensor (3) must divide 16"]),
        (["--parallel.pipeline", "5"], ["pipeline_layers", "[3, 3, 2, 2, 2]"]),
        (
            ["--parallel.pipeline", "3", "--parallel.pipeline_layers", "[4, 4, 5]"],
            ["parallel.pipeline_layers [4, 4, 5]", "3 positive numbers", "sum 12 (model.num_layers)"],
        ),
        (
            ["--parallel.pipeline", "2", "--parallel.pipeline_layers", "[5, 7]", "--parallel.virtual_pipeline", "2"],
            ["parallel.pipeline_layers and parallel.virtual_pipeline exclude"],
        ),
        (["--parallel.virtual_pipeline", "2"], ["parallel.virtual_pipeline (2)", "parallel.pipeline above 1"]),
        (
            ["--parallel.pipeline", "2", "--parallel.virtual_pipeline", "4"],
            ["model.num_layers (12)", "parallel.pipeline (2) x parallel.virtual_pipeline (4)"],
        ),
        (["--parallel.overlap_param_gather", "true"], ["overlap_param_gather needs parallel.overlap_grad_reduce"]),
        (["--parallel.recompute_interval", "2"], ["recompute_interval (2) needs parallel.recompute full"]),
        (["--parallel.context", "0"], ["parallel.context", "0"]),
        (["--train.steps", "0"], ["train.steps", "0"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_a_mistake_names_the_key_in_one_line(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_config(*arguments)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message


def test_a_list_where_keys_belong_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model:\n  - num_layers: 2\n")
    with pytest.raises(UserError, match=r"list or a value where keys belong \(look in .*bad.yaml"):
        load_config(tmp_path / "bad.yaml")


def test_a_key_that_stands_twice_in_a_yaml_names_both_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("train:\n  steps: 5\n  lr: 1.0e-4\n  steps: 6\n")
    with pytest.raises(UserError, match=r"bad.yaml: line 4: steps is in line 2 already"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("seed: 1\ntrain: {steps: 5}\ntrain: {lr: 1.0e-4}\n")
    with pytest.raises(UserError, match=r"bad.yaml: line 3: train is in line 2 already"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize("yaml", ["modle: {num_layers: 2}\n", "model: {numlayers: 2}\n", "model: [1, 2\n", "seed: x\n"])
def test_a_bad_yaml_is_refused(tmp_path: Path, yaml: str) -> None:
    (tmp_path / "bad.yaml").write_text(yaml)
    with pytest.raises(UserError):
        load_config(tmp_path / "bad.yaml")


def test_impossible_layouts_name_the_numbers() -> None:
    config = Config(parallel=ParallelConfig(tensor=2), model=ModelConfig(), train=TrainConfig(global_batch_size=32))
    assert config.data_parallel_size(4) == 2
    with pytest.raises(UserError, match="3 ranks"):
        config.data_parallel_size(3)
    with pytest.raises(UserError, match=r"global_batch_size \(32\)"):
        config.data_parallel_size(6)
    config = Config(parallel=ParallelConfig(tensor=2, pipeline=2, context=2), train=TrainConfig(global_batch_size=32))
    assert config.data_parallel_size(16) == 2
    with pytest.raises(UserError, match=r"12 ranks .* groups of 8 \(parallel.tensor 2 x pipeline 2 x context 2\)"):
        config.data_parallel_size(12)
    interleaved = ParallelConfig(pipeline=4, virtual_pipeline=3)
    config = Config(parallel=interleaved, train=TrainConfig(global_batch_size=24))
    with pytest.raises(UserError, match=r"parallel.pipeline \(4\) divides, got 6"):
        config.data_parallel_size(4)


def test_a_key_of_an_earlier_version_is_ignored_at_its_old_default(tmp_path: Path) -> None:
    old = tmp_path / "old.yaml"
    old.write_text(
        "train: {steps: 5, batch_rampup: []}\ncheckpoint: {asynchronous: true}\ndata: {n_weight: 0}\n"
        "faults: {max_skipped: 3, spike_zscore: 0.0}\n"
    )
    config = load_config(old)
    assert config == Config(train=TrainConfig(steps=5)) and "batch_rampup" not in dump_config(config)
    old.write_text("train: {steps: 5, batch_rampup: [8, 8, 1000]}\n")
    with pytest.raises(UserError, match=r"train.batch_rampup \[8, 8, 1000\]: .* no such option .*look in .*old.yaml"):
        load_config(old)
    assert load_config(old, is_trained=True).train.steps == 5
    with pytest.raises(UserError, match=r"data.crop random: .* no such option any more; remove it"):
        parse_config("--data.crop", "random")
    assert parse_config("--data.crop", "windows") == Config()
