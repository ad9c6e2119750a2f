"""Sequences for a label or a number: trained toys write what was planted, the bound beside plain loops, mistakes."""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import task_folder
from toy_models import kmer_folder, megadna_folder

from megadna import finetune, generate
from megadna.cli import main
from megadna.downstream import metrics
from megadna.downstream.diffusion import CONDITIONS, Noise, bits_of, bound_scores, build_generator
from megadna.downstream.examples import tokenized
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.tasks import Target
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer

LABELS = Target("classification", ["off", "on"])
FAST = {"task": "generation", "learning_rate": 1e-2, "batch_size": 64, "max_steps": 150, "eval_steps": 75}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 50)


def bert_folder(folder: Path) -> str:
    """transformers' BERT of single nucleotides with random weights; with learned positions it learns in seconds."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    write_tokenizer(NucleotideTokenizer(), folder, 64)
    return str(folder)


def texts(shares: np.ndarray, seed: int = 0) -> list[str]:
    """Random sequences of 30 bases with these shares of G and C."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("GCAT"), 30, p=[g / 2, g / 2, (1 - g) / 2, (1 - g) / 2])) for g in shares]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, tables, and a trained model of labels (a motif in `on`) and of numbers (100 times GC)."""
    home = tmp_path_factory.mktemp("home")
    bert_folder(home / "bert")
    found = texts(np.full(400, 0.5))
    planted = [text[:10] + "TATAAT" + text[16:] for text in found[:200]] + found[200:]
    label = np.repeat(["on", "off"], 200)
    pd.DataFrame({"sequence": planted, "label": label}).to_csv(home / "labels.csv", index=False)
    gc = np.linspace(0.1, 0.9, 400)
    pd.DataFrame({"sequence": texts(gc), "label": 100 * gc}).to_csv(home / "numbers.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 50)
        for name, kind in (("labels", "label"), ("numbers", "number")):
            run = home / f"run-{name}"
            finetune(home / "bert", home / f"{name}.csv", run, condition=kind, test_fraction=0.1, **FAST)
            (run / "seed-1/model").rename(home / name)
    return home


def test_a_class_has_its_motif_and_the_bound_says_what_the_label_is_worth(home):
    shares = {}
    for label in ("on", "off", ""):
        found = generate(str(home / "labels"), length=30, number=60, label=label)["sequence"]
        shares[label] = (found.str[10:16] == "TATAAT").mean()
    assert shares["on"] > 0.7 and shares["off"] < 0.05 and 0.1 < shares[""] < 0.7
    scores = pd.read_csv(home / "run-labels/metrics.csv").set_index(["split", "score"])
    gain = scores.loc["test", "gain"]
    assert 0.5 / 30 < gain.value < 1.1 / 30 and gain.low <= gain.value <= gain.high  # one of two classes: 1 bit
    rows = pd.read_parquet(home / "run-labels/seed-1/predictions-test.parquet")
    assert (rows.bits_per_base_without - rows.bits_per_base).mean() == pytest.approx(gain.value, abs=1e-6)
    assert rows.bits_per_base[rows.truth == "on"].mean() < rows.bits_per_base[rows.truth == "off"].mean() - 0.1


def test_gc_follows_the_number_and_what_was_not_learnt_is_said(home, tmp_path, capsys):
    wanted = [15.0, 35.0, 50.0, 65.0, 85.0]
    written = [generate(str(home / "numbers"), length=30, number=30, value=value)["gc"].mean() for value in wanted]
    assert np.corrcoef(wanted, written)[0, 1] > 0.97 and written[-1] - written[0] > 0.4
    words = ["--model", str(home / "numbers"), "--length", "30", "--value", "150", "--output", str(tmp_path / "far")]
    main(["generate", *words])
    assert "--value 150: the sequences it learnt from have 10 to 90" in capsys.readouterr().err
    head = (tmp_path / "far/sequences.fa").read_text().split("\n")[0]
    assert head.endswith("length=30 value=150.0")
    assert "10 to 90" in json.loads((tmp_path / "far/generation.json").read_text())["remark"]


def test_templates_and_seeds_are_those_of_every_model(home, tmp_path):
    (tmp_path / "t.fa").write_text(f">t\nACGT{'N' * 22}ACGT\n")
    options = {"template": tmp_path / "t.fa", "number": 20, "label": "on"}
    one, same, other = (generate(str(home / "labels"), seed=seed, **options)["sequence"] for seed in (1, 1, 2))
    assert one.equals(same) and not one.equals(other)
    assert one.str.fullmatch("ACGT[ACGT]{22}ACGT").all() and (one.str[10:16] == "TATAAT").mean() > 0.6


def test_the_folder_runs_alone_and_without_a_condition_it_is_the_language_model(home, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(home / "labels", trust_remote_code=True).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # as transformers 4 ties them
    ids = torch.tensor([[2, 5, 4, 4, 7, 8, 3]])
    with torch.inference_mode():
        plain, none, on = (
            model(input_ids=ids, condition=condition).logits
            for condition in (None, torch.tensor([-1]), torch.tensor([1]))
        )
    assert torch.equal(plain, none) and (plain - on).abs().max() > 0.1
    digests = {MaskedBases(home / "labels", condition=c).digest for c in (None, torch.tensor([0]), torch.tensor([1]))}
    assert len(digests) == 2  # the weights that a command uses
    more = finetune(home / "labels", home / "labels.csv", tmp_path / "more", **FAST | {"max_steps": 2, "eval_steps": 2})
    assert set(more.score) == {"bits_per_base", "bits_per_base_without", "gain"}


def options_of(folder: str, data: Path) -> FinetuneOptions:
    return FinetuneOptions(model=folder, data=data, task="generation")


@pytest.mark.parametrize("make", [bert_folder, lambda folder: str(megadna_folder(folder))])
def test_the_bound_is_the_mean_over_numbers_of_hidden_bases(make, tmp_path):
    folder, bases = make(tmp_path / "m"), "ACNT"
    table = pd.DataFrame({"sequence": [bases], "target": [1]})
    options = options_of(folder, tmp_path)
    tokenizer, examples = tokenized(options, {"train": table})
    model = build_generator(options, LABELS, tokenizer, table).eval()
    with torch.no_grad():
        model.head[2].weight.normal_()
    noise = Noise(tokenizer, model.config.base_ids, [0, 1], 0.0, seed=3)
    reader = MaskedBases(folder)
    codes = {0: 0, 1: 1, 3: 3}
    for without, condition in ((True, -1), (False, 1)):
        expected = []
        for count in (1, 2, 3):
            for hidden in combinations(codes, count):
                log_p = reader.hidden([bases], [hidden])[0]
                expected.append((hidden, np.mean([-log_p[at, codes[one]] for at, one in enumerate(hidden)])))
        for hidden, nats in expected:
            batch = noise([{**examples["train"][0], "hidden": np.array(hidden) + 1, "target": condition}])
            with torch.inference_mode():
                found = model(**batch)
            assert found.loss == found.logits[0]
            assert (found.loss.item() == pytest.approx(nats, abs=1e-5)) == without
    rows = noise.drawn(examples["train"] * 600, CONDITIONS)
    counts = [len(one["hidden"]) for one in rows[::CONDITIONS]]
    assert np.bincount(counts, minlength=4)[1:] / 1200 == pytest.approx([1 / 3] * 3, abs=0.05)
    assert all(one["target"] == 1 for one in rows[::CONDITIONS]) and {one["target"] for one in rows} == {0, 1}


def test_a_new_head_changes_nothing_and_rows_without_a_label_are_as_many_as_asked_for(tmp_path):
    folder = str(megadna_folder(tmp_path / "m"))
    table = pd.DataFrame({"sequence": texts(np.full(400, 0.5)), "target": 1})
    options = options_of(folder, tmp_path)
    tokenizer, examples = tokenized(options, {"train": table})
    model = build_generator(options, LABELS, tokenizer, table).eval()
    noise = Noise(tokenizer, model.config.base_ids, [0, 1], 0.25, seed=1)
    batch = noise(examples["train"])
    assert (batch["condition"] == -1).float().mean() == pytest.approx(0.25, abs=0.07)
    hidden = (batch["labels"] >= 0).sum(1).numpy()
    assert np.bincount(hidden, minlength=31)[1:].min() >= 400 // 30  # spread evenly over 1 to 30
    assert ((batch["input_ids"] == tokenizer.tokenizer.mask_token_id).sum(1).numpy() == hidden).all()
    with torch.inference_mode():
        small = {name: tensor[:4] for name, tensor in batch.items()}
        by, without = (model(**{**small, "condition": torch.full((4,), one)}).logits for one in (1, -1))
    assert torch.equal(by, without)


def test_the_gain_is_the_own_probability_over_the_mean():
    nats = np.log(2) * np.array([[1.0, 2.0, 2.0, 3.0], [1.5, 1.5, 1.5, 1.5]])  # two draws, two conditions each
    found = bits_of(nats.reshape(-1), np.array([1, 1, 3, 3, 2, 2, 2, 2]), np.array([4, 4]))
    own, other = 2 ** -(1.0 + 3 * 2.0), 2 ** -(2.0 + 3 * 3.0)
    assert found[0] == pytest.approx([1.5, 1.5 + np.log2(own / ((own + other) / 2)) / 4])
    assert found[1] == pytest.approx([1.5, 1.5])  # a model that does not care gains nothing


def test_bits_are_averaged_over_bases():
    bits, sizes = np.array([[1.0, 2.0], [1.6, 1.9], [2.0, 2.0]]), np.array([10, 20, 70])
    found = bound_scores(bits, sizes, LABELS, np.array([0, 0, 1]), seed=1)
    assert found["bits_per_base"]["value"] == pytest.approx(1.82)
    assert found["gain"]["value"] == pytest.approx(0.16)
    assert found["gain"]["low"] == pytest.approx(0) and found["gain"]["high"] == pytest.approx(16 / 30)


MISTAKES = {
    "generate --model {labels} --length 20 --label up": "does not take --label up; it learnt --label: off, on",
    "generate --model {labels} --length 20 --value 3": "does not take --value 3; it learnt --label: off, on",
    "generate --model {labels} --length 20 --label on --value 3": "--label and --value exclude each other",
    "generate --model {numbers} --length 20 --label on": "does not take --label on; it learnt --value, from 10 to 90",
    "generate --model {numbers} --length 20 --value nan": "--value must be a number",
    "generate --model {bert} --length 20 --label on": "learnt no --label or --value",
    "generate --model {labels} --length 20 --label on --oracle {rna}": "does not know all of A, C, G and T (--oracle)",
    "generate --model {labels} --length 20 --label on --judge {numbers}": "not a fine-tuned model of sequences",
    "predict --model {labels} --input {table}": "not a fine-tuned model of sequences or nucleotides",
    "embed --model {labels} --input {table}": "is a fine-tuned model, for megadna predict or generate",
    "finetune --task generation --data {table} --model {kmer}": "its tokens are not single nucleotides",
    "finetune --task generation --data {table} --model {bert} --condition number": "'on' of value is not a number",
    "finetune --task generation --data {n} --model {bert}": "row 2: every base is N; leave it out",
    "finetune --task generation --data {gc} --model {bert}": "labels in 400 rows; if they are numbers say --condition",
    "finetune --task generation --data {table} --model {bert} --pooling max": "--pooling does not apply to --task",
    "finetune --task classification --data {table} --model {bert} --condition number": "--condition does not apply to",
    "finetune --task generation --data {two} --model {bert} --condition number": "2 numbers a row; name one of them",
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(home, tmp_path, capsys, words):
    names = {name: home / name for name in ("labels", "numbers", "bert")} | {"table": home / "labels.csv"}
    names["gc"] = home / "numbers.csv"
    names["n"] = tmp_path / "n.csv"
    names["n"].write_text("sequence,label\nACGT,a\nNN,b\nACGTA,a\nACC,b\n")
    if "{two}" in words:
        names["two"] = tmp_path / "two.csv"
        names["two"].write_text("sequence,label_1,label_2\nACGT,1,2\nAAAA,3,4\n")
    if "{kmer}" in words:
        names["kmer"] = kmer_folder(tmp_path / "k")
    if "{rna}" in words:
        names["rna"] = tmp_path / "rna"
        task_folder(home / "bert", names["rna"], Target("regression", ["strength"]))
        vocabulary = json.loads((names["rna"] / "tokenizer.json").read_text())
        vocabulary["model"]["vocab"]["t"] = vocabulary["model"]["vocab"].pop("T")
        (names["rna"] / "tokenizer.json").write_text(json.dumps(vocabulary))
    ending = ".parquet" if words[0] in "pe" else ""
    with pytest.raises(SystemExit) as stopped:
        main([*words.format(**names).split(), "--output", str(tmp_path / f"out{ending}")])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error")]
    assert stopped.value.code == 2 and len(error) == 1 and MISTAKES[words] in error[0], error
    assert not list(tmp_path.glob("out*"))
