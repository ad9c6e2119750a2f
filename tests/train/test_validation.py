"""Validation while training and `megadna evaluate` agree: groups, soft mask, strands, further datasets, protocols."""

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from ranks import run_ranks
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from toy import metrics, run_training, toy_config

from megadna.alphabet import dna_of
from megadna.commands import evaluate, preprocess
from megadna.config import Config, ModelConfig, TrainConfig, ValidationConfig
from megadna.data.dataset import open_chunks
from megadna.data.evaluation import EvaluationSamples
from megadna.data.manifest import load_manifest
from megadna.downstream.encoder import load_masked_lm
from megadna.errors import UserError
from megadna.tokenizer.kmer import KmerTokenizer
from megadna.train import baselines as baselines_module
from megadna.train import evaluation

DATA = Path(__file__).parents[1] / "data"
WITHOUT_MEGATRON = (
    "import sys; sys.modules['megatron'] = None; from megadna.commands.evaluate import main; main(sys.argv[1:])"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two species; the second half of every 100 bases of the phage is soft-masked."""
    folder = tmp_path_factory.mktemp("two")
    header, *lines = gzip.decompress((DATA / "lambda.fa.gz").read_bytes()).decode().splitlines()
    genome = "".join(lines).upper()
    masked = "".join(genome[i : i + 50] + genome[i + 50 : i + 100].lower() for i in range(0, len(genome), 100))
    (folder / "phage.fa").write_text(f"{header}\n{masked}\n")
    rows = [f"{folder / 'phage.fa'}\tphage", f"{DATA / 'mgenitalium_G37.fa.gz'}\tmycoplasma"]
    (folder / "sheet.tsv").write_text("\n".join(["path\tspecies", *rows]) + "\n")
    sheet, output = str(folder / "sheet.tsv"), folder / "dataset"
    options = ["--chunk_length", "512", "--valid_fraction", "0.1", "--test_fraction", "0.1"]
    preprocess.main(["--sample_sheet", sheet, "--output", str(output), *options])
    return output


def config_of(dataset: Path, extra: Path) -> Config:
    return replace(
        toy_config(dataset),
        model=ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64),
        train=TrainConfig(steps=4, micro_batch_size=2, global_batch_size=4, lr=1e-3, warmup_steps=1),
        validation=ValidationConfig(interval=2, samples=40, micro_batch_size=4, extra={"other": str(extra)}),
    )


@pytest.fixture(scope="module")
def run(dataset: Path, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_ranks(run_training, 1, config_of(dataset, toy_dataset), folder)
    return folder


def valid_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "valid_bits_per_base" in line]


def test_a_line_holds_groups_cases_strands_and_further_datasets_from_step_0(run: Path) -> None:
    lines = valid_lines(run)
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        groups = [line[f"valid_bits_per_base/{name}"] for name in ("mycoplasma", "phage")]
        assert line["valid_bits_per_base_macro"] == pytest.approx(np.mean(groups))
        assert min(groups) < line["valid_bits_per_base"] < max(groups)
        cases = line["valid_bits_per_base_unique"], line["valid_bits_per_base_repeat"]
        assert min(cases) < line["valid_bits_per_base"] < max(cases)
        assert line["valid_bits_per_base_macro_unique"] != line["valid_bits_per_base_macro"]
        assert line["valid_bits_per_base_macro_se"] > 0 and 0 < line["valid_reverse_complement_divergence"] < 1
        extra = {key.removeprefix("valid_extra/other_") for key in line if key.startswith("valid_extra/")}
        assert {"bits_per_base", "bits_per_base_se", "bits_per_base_macro", "accuracy"} <= extra
        assert not any("unique" in key or "/" in key for key in extra)  # one species, no soft mask
    assert lines[0]["valid_extra/other_bits_per_base"] > lines[-1]["valid_extra/other_bits_per_base"]


def test_the_number_that_picks_the_best_checkpoint_stands_in_it(run: Path) -> None:
    state = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["valid_bits_per_base_macro_unique"] == valid_lines(run)[-1]["valid_bits_per_base_macro_unique"]


def evaluate_all(commands: list[list[str]]) -> None:
    for command in commands:
        evaluate.main(command)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Path:
    """Evaluations of the run as trained and in blocks."""
    common = ["--model", str(run), "--split", "valid", "--samples", "40"]
    run_ranks(evaluate_all, 1, [common, [*common, "--protocol", "block6"]])
    return run


def test_evaluate_gives_the_numbers_of_the_last_validation(evaluated: Path) -> None:
    result, line = read(evaluated / "evaluation-valid.json"), valid_lines(evaluated)[-1]
    for name, score in result["groups"].items():
        assert score["bits_per_base"] == pytest.approx(line[f"valid_bits_per_base/{name}"], rel=1e-6)
    for key, value in result["model"].items():
        key = {"standard_error": "bits_per_base_se"}.get(key, key)
        assert value == pytest.approx(line[f"valid_{key}"], rel=1e-5, abs=1e-7)
    assert set(result["baselines"]) == {"uniform", "composition", "markov"}
    assert result["baselines"]["markov"]["groups"].keys() == result["groups"].keys()


def test_a_protocol_has_its_own_file_and_baselines(evaluated: Path) -> None:
    trained, block = (read(evaluated / f"evaluation-{name}.json") for name in ("valid", "valid-block6"))
    assert (trained["protocol"], trained["hides"]) == ("base", "15% of the tokens")
    assert (block["protocol"], block["hides"]) == ("block6", "one block of six in 48")
    assert trained["baselines"]["uniform"]["accuracy"] == pytest.approx(0.25)
    assert block["baselines"]["uniform"]["accuracy"] == pytest.approx(4.0**-6)
    assert 4.0**-6 < block["model"]["accuracy"] < 0.05 and block["hidden_bases"] % 6 == 0


def test_baselines_are_kept_beside_the_dataset(
    evaluated: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(read(dataset / "baselines.json")) == 2
    monkeypatch.setattr(baselines_module, "fit", lambda *_, **__: pytest.fail("fitted again"))
    model = tiny_bert(tmp_path / "bert", context=128)
    evaluate.main(["--model", str(model), "--data.path", str(dataset), "--split", "valid", "--samples", "40"])
    result = read(model / "evaluation-valid.json")
    assert result["baselines"] == read(evaluated / "evaluation-valid.json")["baselines"]
    assert result["hidden_bases"] == read(evaluated / "evaluation-valid.json")["hidden_bases"]


def test_measured_leakage_is_said_where_one_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the closing lines of preprocess, with the remedy, and under the table of evaluate."""
    header, *lines = gzip.decompress((DATA / "lambda.fa.gz").read_bytes()).decode().splitlines()
    genome = "".join(lines)
    (tmp_path / "x.fa").write_text(f"{header}\n{genome}\n>copy\n{genome[1:]}\n")
    output = tmp_path / "dataset"
    options = ["--chunk_length", "512", "--valid_fraction", "0.1", "--test_fraction", "0.1", "--leakage"]
    command = ["--input", str(tmp_path / "x.fa"), "--output", str(output), *options]
    preprocess.main([*command, "report"])
    printed = capsys.readouterr().out.splitlines()
    found = load_manifest(output).leakage["splits"]["valid"]
    assert found["flagged"] > 5
    stated = (
        f"leakage: {found['flagged']} of {found['chunks']} valid chunks share more than 0.2 of their sketch with train"
    )
    remedy = "megadna preprocess with --leakage drop_from_train leaves what they share out of train"
    (line,) = [line for line in printed if line.startswith(stated)]
    assert line.endswith(remedy)
    model = tiny_bert(tmp_path / "bert", context=128)
    evaluate.main(["--model", str(model), "--data.path", str(output), "--split", "valid", "--samples", "20"])
    assert line in capsys.readouterr().out.splitlines()
    assert read(model / "evaluation-valid.json")["leakage"] == [line]
    preprocess.main([*command, "drop_from_train", "--overwrite"])
    assert remedy not in capsys.readouterr().out


@pytest.mark.slow
def test_an_export_scores_as_its_checkpoint_without_megatron(evaluated: Path, dataset: Path, tmp_path: Path) -> None:
    from megadna.commands import export

    model = tmp_path / "model"
    run_ranks(export.main, 1, ["--checkpoint", str(evaluated), "--output", str(model)])
    for protocol, name in (("as_trained", "valid"), ("block6", "valid-block6")):
        options = [
            "--model",
            model,
            "--data.path",
            dataset,
            "--split",
            "valid",
            "--samples",
            "40",
            "--protocol",
            protocol,
        ]
        subprocess.run([sys.executable, "-c", WITHOUT_MEGATRON, *map(str, options)], check=True)
        mine, theirs = read(evaluated / f"evaluation-{name}.json"), read(model / f"evaluation-{name}.json")
        assert theirs["model"] == pytest.approx(mine["model"], abs=1e-4)
        assert theirs["groups"].keys() == mine["groups"].keys()
        for group, score in mine["groups"].items():
            assert theirs["groups"][group] == pytest.approx(score, abs=1e-4)
        assert mine["baselines"] == theirs["baselines"]


def tiny_bert(folder: Path, *, context: int, words: tuple[str, ...] = ("T", "G", "N", "C", "A")) -> Path:
    """Anyone's masked language model: BERT over letters in an order of its own."""
    vocabulary = {text: number for number, text in enumerate(["<pad>", "<s>", "</s>", "<mask>", "<unk>", *words])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "unk": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, model_max_length=context, **{f"{name}_token": text for name, text in special.items()}
    )
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=context,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_anyones_nucleotide_model_is_scored(dataset: Path, tmp_path: Path) -> None:
    """Its numbers by a loop over hidden bases, each with the letters and [MASK]s written as text."""
    folder = tiny_bert(tmp_path / "bert", context=200)
    forward, tokenizer, context = load_masked_lm(str(folder))
    assert context == 200 and tokenizer.encode(dna_of("acgtNR?")).tolist() == [9, 8, 6, 5, 7, 7, 4]
    samples = EvaluationSamples(open_chunks(str(dataset), "valid"), tokenizer, sequence_length=200, samples=3, seed=7)
    found = evaluation.evaluate(forward, samples, micro_batch_size=2).score
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    bits = []
    for index in range(3):
        sample = samples[index]
        truth = sample.bases.tobytes().decode().upper()
        text = "".join("<mask>" if hidden else letter for letter, hidden in zip(truth, sample.hidden, strict=True))
        logits = model(**fast(text, return_tensors="pt")).logits[0, 1:-1].double()
        for place in np.flatnonzero(sample.hidden).tolist():
            p = torch.softmax(logits[place, fast.convert_tokens_to_ids(list("ACGT"))], 0)
            bits.append(-np.log2(p["ACGT".index(truth[place])].item()))
    assert found.hidden_bases == len(bits) and found.bits_per_base == pytest.approx(np.mean(bits), abs=1e-5)


def test_evaluate_says_that_a_model_is_no_better_than_guessing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_bert(tmp_path / "bert", context=200)
    evaluate.main(["--model", str(folder), "--data.path", str(dataset), "--samples", "3"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no better than" in line]
    result = read(folder / "evaluation-test.json")
    assert line.startswith("no better than guessing (2.0000), composition (1.")
    assert f"needs {result['model']['bits_per_base']:.4f} bits per base" in line


def test_anyones_k_mer_model_is_scored_under_a_protocol(dataset: Path, tmp_path: Path) -> None:
    """DNABERT's kind: a BERT tokenizer over blank-separated 3-mers."""
    known = KmerTokenizer(3, stride=1, layout="dnabert")
    (tmp_path / "vocab.txt").write_text("\n".join(known.tokens()) + "\n")
    folder = tmp_path / "bert"
    transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False, model_max_length=100).save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=known.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=100,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    forward, tokenizer, context = load_masked_lm(str(folder))
    assert isinstance(tokenizer, KmerTokenizer) and (tokenizer.layout, tokenizer.stride, context) == ("dnabert", 1, 100)
    pool = open_chunks(str(dataset), "valid")
    found = [
        evaluation.evaluate(
            run, EvaluationSamples(pool, one, sequence_length=length, samples=4, seed=7, protocol="base"),
            micro_batch_size=3,
        )
        for run, one, length in ((forward, tokenizer, 100), load_masked_lm(str(tiny_bert(tmp_path / "b", context=120))))
    ]  # fmt: skip
    assert found[0].score.hidden_bases == found[1].score.hidden_bases > 20
    assert all(1.5 < one.score.bits_per_base < 2.5 and one.score.protocol == "base" for one in found)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert", context=64, words=("B", "D", "E", "F"))
    with pytest.raises(UserError, match="knows no nucleotides"):
        load_masked_lm(str(folder))


def test_mistakes_name_the_option(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--samples must be positive, got 0"):
        evaluate.main(["--model", str(run), "--samples", "0"])
    with pytest.raises(UserError, match="--output names the JSON file"):
        evaluate.main(["--model", str(run), "--output", str(tmp_path / "none" / "a.json")])
    with pytest.raises(UserError, match=r"no such run, checkpoint or Hugging Face folder"):
        evaluate.main(["--model", str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"is not here; name one with --data\.path"):
        evaluate.main(["--model", str(tiny_bert(tmp_path / "bert", context=64))])
    with pytest.raises(UserError, match="use letters, digits"):
        ValidationConfig(extra={"a/b": "x"})


@pytest.mark.slow
def test_two_data_parallel_ranks_report_the_same(run: Path, dataset: Path, toy_dataset: Path, tmp_path: Path) -> None:
    run_ranks(run_training, 2, config_of(dataset, toy_dataset), tmp_path / "run")
    for one, two in zip(valid_lines(run), valid_lines(tmp_path / "run"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    shutil.rmtree(tmp_path / "run")
