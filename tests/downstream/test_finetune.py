"""Fine-tuning on real extracts and planted signals: heads, layouts, metrics, folders that transformers runs alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn import metrics as sk
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import dnabert_folder, kmer_folder, megadna_folder

from megadna import finetune
from megadna.arguments import add_options, new_parser, options_from, parse
from megadna.cli import main
from megadna.downstream import metrics
from megadna.downstream.examples import examples_of, pairs_of
from megadna.downstream.metrics import scores, splice_scores, with_intervals
from megadna.downstream.modeling_dna_task import PAIR_SIZE, DnaForBaseTask, DnaForPairTask, DnaTaskConfig, pool
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.tasks import Target, add_targets, find_tasks, read_task
from megadna.errors import UserError
from megadna.files import claimed
from megadna.genome.records import reverse_complement

DATA = Path(__file__).parents[1] / "data"
REPOSITORY = Path(__file__).parents[2]
GUE = DATA / "gue_prom_core_tata"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    makers = {"nucleotide": megadna_folder, "kmer": kmer_folder, "dnabert": dnabert_folder}
    return {
        name: str(make(home / name, **({"context": 80} if name == "kmer" else {}))) for name, make in makers.items()
    }


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 20)


def sequences(count: int, length: int, seed: int = 0) -> list[str]:
    """Random, of GC contents between 0.1 and 0.9."""
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0.1, 0.9, count)
    return ["".join(rng.choice(list("GCAT"), length, p=[g / 2, g / 2, (1 - g) / 2, (1 - g) / 2])) for g in shares]


def gc(sequence: str) -> float:
    return (sequence.count("G") + sequence.count("C")) / len(sequence)


STRANGER = """
import sys
sys.modules["megadna"] = sys.modules["megatron"] = None
import pandas as pd
from transformers import pipeline
run = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
table = pd.read_parquet(sys.argv[2])
for found, (_, row) in zip(run(table.sequence[:5].tolist(), top_k=None), table.iterrows()):
    for entry in found:
        assert abs(entry["score"] - row["p_" + entry["label"]]) < 1e-4, (entry, row)
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("nucleotide", {"adapt": "full", "class_weights": True, "patience": 1}, marks=pytest.mark.slow),
        ("kmer", {"adapt": "lora", "pooling": "centre", "head_sizes": [8]}),
        pytest.param(
            "nucleotide", {"adapt": "frozen", "pooling": "cls", "random_weights": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_gue_task_gives_a_folder_that_transformers_runs_alone(kind, options, folders, tmp_path):
    found = finetune(folders[kind], GUE, tmp_path / "run", max_steps=8, eval_steps=4, learning_rate=1e-3, **options)
    run = tmp_path / "run" / "seed-1"
    written = {path.name for path in run.iterdir()}
    assert {"confusion-test.png", "roc-test.png", "pr-test.png", "predictions-test.parquet"} <= written
    table = pd.read_parquet(run / "predictions-test.parquet")
    mcc = found[(found.split == "test") & (found.score == "mcc")].iloc[0]
    assert mcc.value == pytest.approx(
        sk.matthews_corrcoef(table.truth, np.where(table["p_1"] > table["p_0"], "1", "0"))
    )
    assert mcc.low <= mcc.value <= mcc.high
    command = [sys.executable, "-c", STRANGER, str(run / "model"), str(run / "predictions-test.parquet")]
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=os.environ | modules, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    before, after = load_file(f"{folders[kind]}/model.safetensors"), load_file(run / "model" / "model.safetensors")
    changed = {name for name in before if name.startswith("bert.") and "pooler" not in name
               and not torch.equal(before[name], after["encoder." + name[5:]])}  # fmt: skip
    if options["adapt"] == "lora":
        assert {name.split(".")[-2] for name in changed} == {"query", "value"}
    else:
        assert len(changed) > 10  # trained, or random from the start
    assert finetune(folders[kind], GUE, tmp_path / "run", max_steps=8, eval_steps=4, learning_rate=1e-3,
                    **options).equals(found)  # fmt: skip


@pytest.mark.slow
def test_numbers_and_several_labels_are_learned(folders, tmp_path):
    texts = sequences(240, 40)
    table = pd.DataFrame({"seq": texts, "gc": [gc(t) for t in texts], "first": [t[0] == "G" for t in texts]})
    table = table.assign(rich=(table.gc > 0.5).astype(int), first=table["first"].astype(int))
    table.to_parquet(tmp_path / "t.parquet")
    common = {"max_steps": 60, "learning_rate": 3e-3, "eval_steps": 30}
    numbers = finetune(
        folders["nucleotide"], tmp_path / "t.parquet", tmp_path / "a", task="regression", label_columns=["gc"], **common
    )
    assert numbers[numbers.score == "pearson"].value.iloc[0] > 0.9
    assert (tmp_path / "a" / "seed-1" / "scatter-dev.png").exists()
    several = finetune(
        folders["kmer"],
        tmp_path / "t.parquet",
        tmp_path / "b",
        task="multilabel",
        label_columns=["rich", "first"],
        **common,
    )
    assert several[several.score == "auroc"].value.iloc[0] > 0.6
    assert {"p_rich", "p_first"} < set(pd.read_parquet(tmp_path / "b" / "seed-1" / "predictions-dev.parquet"))


@pytest.mark.parametrize("kind", [pytest.param("nucleotide", marks=pytest.mark.slow), "kmer"])
def test_labels_of_nucleotides_are_learned_and_turned_with_the_strand(kind, folders, tmp_path):
    texts = sequences(120, 30)
    labels = ["".join(str(int(base in "GC")) for base in text) for text in texts]
    pd.DataFrame({"sequence": texts, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
    found = finetune(
        folders[kind], tmp_path / "t.csv", tmp_path / "run", task="base_classification", max_steps=60, eval_steps=30,
        learning_rate=3e-3, augment=True,
    )  # fmt: skip
    assert found[found.score == "mcc"].value.iloc[0] > {"nucleotide": 0.95, "kmer": 0.6}[kind]
    table = pd.read_parquet(tmp_path / "run" / "seed-1" / "predictions-dev.parquet")
    assert all(len(row["p_1"]) == len(row.sequence) == len(row.truth) for _, row in table.iterrows())
    options = FinetuneOptions(task="base_classification")
    given = pd.DataFrame({"sequence": ["ACGGT"], "target": [np.arange(5)]})
    twice = examples_of(given, _tokenizer(folders["nucleotide"]), options, augment=True)
    assert [example["target"].tolist() for example in twice] == [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]
    alone = examples_of(given.assign(sequence=reverse_complement("ACGGT")), _tokenizer(folders["nucleotide"]), options)
    assert twice[1]["ids"] == alone[0]["ids"]


def of_pairs(size: int) -> list[tuple[int, int]]:
    return [(j, i) for j in range(size) for i in range(j)]


@pytest.mark.parametrize("kind", [pytest.param("kmer", marks=pytest.mark.slow), "nucleotide"])
def test_contacts_are_learned(kind, folders, tmp_path):
    texts = [text[: 12 + number % 6] for number, text in enumerate(sequences(160, 18))]
    pairs = [[(i, j) for j, i in of_pairs(len(text)) if text[i] == text[j] == "G"] for text in texts]
    labels = [" ".join(f"{i}-{j}" for i, j in found) or "-" for found in pairs]
    pd.DataFrame({"sequence": texts, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
    found = finetune(
        folders[kind], tmp_path / "t.csv", tmp_path / "run", task="contact", max_steps=80, eval_steps=40,
        learning_rate=3e-3, class_weights=True, head_activation="relu",
    )  # fmt: skip
    assert found[found.score == "auprc"].value.iloc[0] > {"nucleotide": 0.95, "kmer": 0.5}[kind]
    table = pd.read_parquet(tmp_path / "run" / "seed-1" / "predictions-dev.parquet")
    folder = str(tmp_path / "run" / "seed-1" / "model")
    model, tokenizer = AutoModel.from_pretrained(folder, trust_remote_code=True).eval(), _tokenizer(folder)
    for row in table[:4].itertuples():
        order = of_pairs(len(row.sequence))
        assert row.truth.tolist() == [float(row.sequence[i] == row.sequence[j] == "G") for j, i in order]
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer([row.sequence])[0].ids])).logits[0, : len(order), 0]
        np.testing.assert_allclose(row.p_contact, logits.sigmoid(), atol=1e-4)


def test_logits_of_pairs_are_those_of_the_formula_and_do_not_depend_on_padding():
    class Lookup(torch.nn.Embedding):
        config = type("Config", (), {"hidden_size": 6})

        def forward(self, input_ids, attention_mask):
            return (super().forward(input_ids),)

    torch.manual_seed(2)
    model = DnaForPairTask(DnaTaskConfig(k=3, num_labels=1, problem_type="multi_label_classification"), Lookup(9, 6))
    model.eval()
    ids = torch.randint(9, (1, 8))
    logits = model(ids).logits[0, :, 0]
    outputs = model.per_base(model.head(model.encoder(ids, None)[0]), torch.ones(1, 8))[0]
    query, key, bias = outputs[:, :PAIR_SIZE], outputs[:, PAIR_SIZE:-1], outputs[:, -1]
    for (j, i), logit in zip(of_pairs(8), logits, strict=False):
        products = (query[i] @ key[j] + query[j] @ key[i]) / PAIR_SIZE**0.5
        torch.testing.assert_close(logit, products + bias[i] + bias[j])
    longer, mask = torch.cat([ids, ids[:, :3]], dim=1), torch.tensor([[1] * 8 + [0] * 3])
    torch.testing.assert_close(model(longer, mask).logits[0, :28, 0], logits[:28])
    labels = torch.full((1, 28, 1), float("nan"))
    labels[0, :3, 0] = torch.tensor([1.0, 0.0, 1.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:3], labels[0, :3, 0])
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


def test_contacts_are_cut_and_turned_with_their_sequence(folders):
    target = Target("contact", ["contact"])
    given = add_targets(pd.DataFrame({"sequence": ["ACGGTA"], "label_0": ["0-2 5-3"]}), target, "t.csv")
    options = FinetuneOptions(task="contact", crop=True)
    tokenizer = _tokenizer(folders["nucleotide"])
    both = [example["target"][:, 0] for example in examples_of(given, tokenizer, options, augment=True)]
    for found, pairs in zip(both, ({(2, 0), (5, 3)}, {(5, 3), (2, 0)}), strict=True):  # i, j -> 5 - j, 5 - i
        assert {pair for pair, one in zip(of_pairs(6), found, strict=True) if one} == pairs
    one_sided = add_targets(pd.DataFrame({"sequence": ["ACGGTA"], "label_0": ["1-2"]}), target, "t.csv")
    turned = examples_of(one_sided, tokenizer, options, augment=True)[1]["target"][:, 0]
    assert [pair for pair, one in zip(of_pairs(6), turned, strict=True) if one] == [(4, 3)]
    tokenizer.max_tokens = 6  # four bases: 1 to 4
    cut = examples_of(one_sided, tokenizer, options)[0]["target"]
    np.testing.assert_array_equal(cut, pairs_of(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4])))


def _tokenizer(folder):
    from megadna.downstream.encoder import load_tokenizer

    return load_tokenizer(folder, trust_remote_code=False)


def test_logits_of_kmers_are_spread_over_their_bases():
    encoder = torch.nn.Identity()
    encoder.config = type("Config", (), {"hidden_size": 2})
    model = DnaForBaseTask(DnaTaskConfig(k=3, stride=1, num_labels=2), encoder)
    logits = torch.randn(2, 8, 2)
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    spread = model.per_base(logits, mask)
    for row, num_tokens in enumerate((6, 4)):
        for base in range(num_tokens + 2):
            covering = [logits[row, 1 + t] for t in range(max(0, base - 2), min(base, num_tokens - 1) + 1)]
            torch.testing.assert_close(spread[row, base], torch.stack(covering).mean(0))
    hidden = torch.randn(1, 512, 4)
    assert torch.equal(pool(hidden, torch.ones(1, 512, dtype=torch.long), "centre")[0], hidden[0, 255])


def test_every_layout_gives_the_same_table(tmp_path):
    gue = read_task(GUE)
    assert {split: len(table) for split, table in gue.items()} == {"train": 300, "dev": 60, "test": 100}
    dnabert = read_task(DATA / "dnabert_ft6_dev.tsv.gz")["train"]
    assert len(dnabert) == 240 and dnabert.sequence.str.len().eq(101).all() and set(dnabert.label_0) == {"0", "1"}
    nt = tmp_path / "nt" / "promoter_tata"
    nt.mkdir(parents=True)
    for split in ("train", "test"):
        rows = zip(gue[split].sequence, gue[split].label_0, strict=True)
        (nt / f"{split}.fna").write_text(
            "".join(f">chr1:{i}|{label}\n{text}\n" for i, (text, label) in enumerate(rows))
        )
    pd.testing.assert_frame_equal(read_task(nt)["test"], gue["test"])
    assert find_tasks(tmp_path) == {"nt/promoter_tata": nt}
    both = pd.concat([pd.read_csv(GUE / "test.csv").assign(task=name) for name in ("one", "two")])
    both.to_parquet(tmp_path / "train.parquet")
    one = read_task(tmp_path / "train.parquet", subset="one")["train"]
    assert one.sequence.tolist() == gue["test"].sequence.tolist()
    split = pd.concat([pd.read_csv(GUE / f"{name}.csv").assign(split=name) for name in ("train", "test")])
    split.to_csv(tmp_path / "all.csv", index=False)
    assert read_task(tmp_path / "all.csv")["test"].sequence.tolist() == gue["test"].sequence.tolist()


def test_the_splice_card_is_read_in_both_ways_by_a_worked_example():
    target = Target("classification", ["donor", "acceptor", "negative"])
    truth = np.array([0] * 5 + [1] * 5 + [2] * 10)
    called = np.array([0, 0, 0, 1, 2] + [1, 1, 1, 1, 0] + [2] * 8 + [0, 1])
    found = splice_scores(truth, np.eye(3)[called], target)
    # Donor against negative: 15 rows, TP 3, FN 2, FP 1, TN 9. With confusions: one acceptor more, called donor.
    assert found["class_vs_negative.donor.accuracy"] == pytest.approx(12 / 15)
    assert found["class_vs_negative.donor.f1"] == pytest.approx(6 / 9)
    assert found["class_vs_negative.donor.mcc"] == pytest.approx((3 * 9 - 1 * 2) / np.sqrt(4 * 5 * 10 * 11))
    assert found["confusions_as_false_positives.donor.accuracy"] == pytest.approx(12 / 16)
    assert found["confusions_as_false_positives.acceptor.f1"] == pytest.approx(8 / (8 + 1 + 2))
    assert found["class_vs_negative.mean.accuracy"] == pytest.approx((12 / 15 + 13 / 15) / 2)
    assert splice_scores(truth, np.eye(3)[called], Target("classification", ["a", "b", "c"])) == {}


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_are_those_of_scikit_learn(num_classes):
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, num_classes, 300)
    predicted = np.round(rng.dirichlet(np.ones(num_classes), 300) + np.eye(num_classes)[truth] / 3, 1)  # with ties
    called, names = predicted.argmax(axis=1), [str(number) for number in range(num_classes)]
    columns = [1] if num_classes == 2 else range(num_classes)
    expected = {
        "accuracy": sk.accuracy_score(truth, called),
        "f1_macro": sk.f1_score(truth, called, average="macro"),
        "mcc": sk.matthews_corrcoef(truth, called),
        "auroc": np.mean([sk.roc_auc_score(truth == c, predicted[:, c]) for c in columns]),
        "auprc": np.mean([sk.average_precision_score(truth == c, predicted[:, c]) for c in columns]),
    }
    assert scores(truth, predicted, Target("classification", names)) == pytest.approx(expected)
    several = (rng.random((300, 3)) < 0.4).astype(np.float32)
    guessed = np.clip(several / 2 + rng.random((300, 3)) / 1.5, 0, 1)
    found = scores(several, guessed, Target("multilabel", ["a", "b", "c"]))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(several, guessed > 0.5, average="macro"))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(several.ravel(), guessed.ravel() > 0.5))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(several, guessed))


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 200)

    def accuracy(truth, predicted_NC, target):
        return {"accuracy": float((truth == predicted_NC.argmax(axis=1)).mean())}

    rng = np.random.default_rng(0)
    target, inside = Target("classification", ["0", "1"]), 0
    for seed in range(40):
        truth = rng.integers(0, 2, 120)
        right = rng.random(120) < 0.8
        predicted = np.eye(2)[np.where(right, truth, 1 - truth)]
        rows = list(truth[:, None]), list(predicted[:, None])
        found = with_intervals(accuracy, *rows, target, seed=seed)["accuracy"]
        inside += found["low"] <= 0.8 <= found["high"]
    assert inside >= 34


def test_folds_seeds_and_further_test_sets(folders, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "test.csv").write_text((GUE / "test.csv").read_text())
    found = finetune(
        folders["dnabert"], DATA / "dnabert_ft6_dev.tsv.gz", tmp_path / "run", folds=2, seeds=[3], max_steps=2,
        crop=True, test=[f"tata={tmp_path / 'only'}"],
    )  # fmt: skip
    assert set(zip(found.seed, found.fold, strict=True)) == {(3, 0), (3, 1)}
    assert set(found.split) == {"dev", "tata"}
    dev = [pd.read_parquet(tmp_path / "run" / f"seed-3-fold-{fold}" / "predictions-dev.parquet") for fold in (0, 1)]
    assert sorted(pd.concat(dev).sequence) == sorted(read_task(DATA / "dnabert_ft6_dev.tsv.gz")["train"].sequence)
    assert pd.read_csv(tmp_path / "run" / "metrics.csv").value.tolist() == pytest.approx(found.value.tolist())


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "configs" / "finetune").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_parses(recipe):
    parser = new_parser("finetune", "")
    parser.add_argument("--config", action="config")
    add_options(parser, FinetuneOptions)
    options = options_from(parse(parser, ["--config", str(recipe)]), FinetuneOptions)
    assert options != FinetuneOptions() and len(recipe.read_text().splitlines()) < 45


def test_mistakes_end_in_one_line(folders, tmp_path, capsys):
    rows = "".join(f"{text},{number % 2}\n" for number, text in enumerate(sequences(20, 30)))
    files = {
        "good.csv": "sequence,label\n" + rows,
        "nolabel.csv": "sequence,klass\n" + rows,
        "one.csv": "sequence,label\nACGT,1\nACGG,1\n",
        "empty.csv": "sequence,label\n",
        "nothing.csv": "",
        "protein.csv": "sequence,label\nMKLV,1\nACGT,0\n",
        "gap.csv": "sequence,label\nACGT,\nACGT,0\n",
        "long.csv": "sequence,label\n" + "".join(f"{t},{n % 2}\n" for n, t in enumerate(sequences(20, 300))),
        "strand.csv": "sequence,label,strand\n" + rows.replace("\n", ",+\n"),
        "more.csv": "sequence,label\nACGT,7\n",
        "words.csv": "sequence,label\nACGT,0 1 x 2\nACGT,0 0 0 0\n",
        "pairs.csv": "sequence,label\n" + "ACGT,0-2 1-4\n" * 20,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    cases = [
        ("nolabel.csv", [], "no column 'label'; it has sequence, klass"),
        ("one.csv", [], "one.csv: the train table has one class only: every label is 1"),
        ("empty.csv", [], "has no rows"),
        ("nothing.csv", [], "cannot be read as a table"),
        ("protein.csv", [], "row 1: not a nucleotide sequence"),
        ("gap.csv", [], "row 1: column 'label' is empty"),
        ("long.csv", [], "a sequence of 300 bases is longer than the context (126 bases); --crop"),
        ("strand.csv", ["--augment"], "the label of this task depends on the strand; leave it out"),
        ("good.csv", ["--augment", "--stranded"], "the label of this task depends on the strand; leave it out"),
        ("good.csv", ["--test", str(tmp_path / "more.csv")], "must be name=path"),
        ("good.csv", ["--test", f"x={tmp_path / 'more.csv'}"], "label '7' is not one of 0, 1"),
        ("good.csv", ["--folds", "1"], "--folds must be 0 or at least 2"),
        ("good.csv", ["--seeds", "3", "3"], "--seeds [3, 3]: numbers from 0 to 4294967295, each once"),
        ("good.csv", ["--seeds", "-1"], "--seeds [-1]: numbers from 0 to 4294967295, each once"),
        ("good.csv", ["--head_sizes", "8", "0"], "--head_sizes must be positive, got [8, 0]"),
        ("good.csv", ["--patience", "-1"], "--patience must not be negative, got -1"),
        ("good.csv", ["--batch_size", "1" + 19 * "0"], "batch_size must not be beyond 9223372036854775807"),
        ("good.csv", ["--folds", "11"], "20 train rows cannot give a dev part"),
        ("more.csv", ["--task", "multilabel"], "labels of --task multilabel are 0 or 1"),
        ("words.csv", ["--task", "base_regression"], "row 1: labels are numbers separated by spaces, got '0 1 x 2'"),
        ("missing.csv", [], "no such file"),
        ("good.csv", ["--task", "base_classification"], "labels, 30 bases"),
        ("good.csv", ["--task", "contact"], "row 1: contacts are pairs such as 3-17 9-40, or - for none, got '0'"),
        ("pairs.csv", ["--task", "contact"], "row 1: a contact with base 4, but the last one is 3"),
    ]
    for name, more, message in cases:
        arguments = [
            "--model",
            folders["nucleotide"],
            "--data",
            str(tmp_path / name),
            "--output",
            str(tmp_path / "run"),
        ]
        with pytest.raises(SystemExit) as stopped:
            main(["finetune", *arguments, *more])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
        assert not (tmp_path / "run").exists(), message


def test_runs_of_others_stay(folders, tmp_path):
    run, options = tmp_path / "run", {"max_steps": 1}
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"run: not empty; .* no stopped run of these options, data and model"):
        finetune(folders["nucleotide"], GUE, run, **options)
    (run / "thesis.txt").rename(tmp_path / "thesis.txt")
    finetune(folders["nucleotide"], GUE, run, **options)
    stamp = (run / "seed-1" / "metrics.json").stat().st_mtime_ns
    with claimed(run / "seed-2") as claim:  # as another finetune that is there already
        (claim.fresh() / "model").mkdir()
        with pytest.raises(UserError, match="seed-2: another process is writing it"):
            finetune(folders["nucleotide"], GUE, run, seeds=[1, 2], **options)
        assert (claim.new / "model").is_dir()
    finetune(folders["nucleotide"], GUE, run, seeds=[1, 2], **options)  # goes on after the run that is whole
    assert (run / "seed-1" / "metrics.json").stat().st_mtime_ns == stamp
    assert {path.name for path in run.iterdir()} == {"options.json", "metrics.csv", "seed-1", "seed-2"}


def test_runs_of_other_rows_or_weights_are_not_gone_on_from(folders, tmp_path):
    model = shutil.copytree(folders["nucleotide"], tmp_path / "model")
    data = shutil.copytree(GUE, tmp_path / "data")
    arguments = model, data, tmp_path / "run"
    first = finetune(*arguments, max_steps=1)
    table = data / "dev.csv"
    rows = table.read_text()
    table.write_text(rows[:-2] + str(1 - int(rows[-2])) + "\n")
    refused = "run: not empty; .* no stopped run of these options, data and model"
    with pytest.raises(UserError, match=refused):
        finetune(*arguments, max_steps=1, seeds=[1, 2])
    table.write_text(rows)
    pd.testing.assert_frame_equal(finetune(*arguments, max_steps=1), first)
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=refused):
        finetune(*arguments, max_steps=1)


@pytest.mark.slow
def test_two_ranks_train_one_model(folders, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["finetune", "--model", folders["nucleotide"], "--data", str(GUE), "--output", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*torchrun, "megadna", *arguments, "--max_steps", "4"], check=True, env=environment)
    found = json.loads((tmp_path / "run" / "seed-1" / "metrics.json").read_text())
    assert (
        set(found) == {"dev", "test"} and len(pd.read_parquet(tmp_path / "run/seed-1/predictions-test.parquet")) == 100
    )


def test_scores_are_logged_with_split_epoch_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerState

    from megadna.downstream import task_training

    lines: list[str] = []
    monkeypatch.setattr(task_training.log, "info", lambda text, *values: lines.append(text % values))
    metrics = {"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 3.0, "epoch": 1.5}
    reporter, state = task_training.Reporter(), TrainerState(epoch=1.5, global_step=30, max_steps=40)
    state.log_history = [{"loss": 0.75, "step": 28}, {"loss": 0.625, "step": 30}]
    with reporter.during("training with seed 1", "steps"):
        reporter.on_train_begin(None, state, None)
        reporter.on_step_end(None, state, None)
        told = reporter._progress.numbers()
        assert told.startswith("2 %, 1 of 40 steps, ") and told.endswith(" left, epoch 1.5, loss 0.6250")
    reporter.on_evaluate(None, state, None, metrics=metrics)
    task_training._log_scores("test", TrainerState(epoch=2.0, global_step=40), {"test_mcc": -0.25})
    assert lines == [
        "dev | epoch 1.5, step 30 | loss 0.5000 | accuracy 0.7500",
        "test | epoch 2, step 40 | mcc -0.2500",
    ]
