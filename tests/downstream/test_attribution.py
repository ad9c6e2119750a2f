"""Importances beside loops that a reader can check: eager attention, autograd, substitutions; files and mistakes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest
import torch
from scipy.stats import rankdata
from test_predict import task_folder
from toy_models import bpe_folder, dnabert_folder, kmer_folder, megadna_folder
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from megadna import attribute
from megadna.cli import main
from megadna.downstream import inference, outputs
from megadna.downstream.logos import _limits, _lines
from megadna.downstream.tasks import Target
from megadna.errors import UserError
from megadna.genome.records import reverse_complement
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.tokenizer.base import NucleotideTokenizer, context_symbols

METHODS = ["attention", "gradient", "mutagenesis"]
BASES = "ACGT"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    plain, words, pieces = megadna_folder(home / "m"), kmer_folder(home / "k"), bpe_folder(home / "p")
    return {
        "nucleotide": str(plain),
        "kmer": str(words),
        "dnabert": str(dnabert_folder(home / "d")),
        "classes": task_folder(plain, home / "s", Target("classification", ["donor", "acceptor", "negative"])),
        "number": task_folder(words, home / "n", Target("regression", ["strength"])),
        "base": task_folder(words, home / "b", Target("base_classification", ["out", "in"])),
        "pieces": task_folder(pieces, home / "q", Target("regression", ["strength"])),
    }


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    rng = np.random.default_rng(4)
    return ["".join(rng.choice(list(BASES), size)) for size in (30, 41, 37)]


@pytest.fixture(scope="module")
def fasta(sequences, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fasta") / "a.fa"
    path.write_text("".join(f">s{i} x\n{bases}\n" for i, bases in enumerate(sequences)))
    return path


def each(table: pd.DataFrame, column: str = "importance") -> list[np.ndarray]:
    return [rows[column].to_numpy(float) for _, rows in table.groupby("region")]


def ids_of(folder: str, bases: str) -> torch.Tensor:
    return torch.tensor([AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(bases)["input_ids"]])


def spread(tokens: np.ndarray, k: int, *, share: bool) -> np.ndarray:
    """Tokens to bases by a loop: the mean of those over a base, or each token's value in k equal parts."""
    found = np.zeros(len(tokens) + k - 1)
    for base in range(len(found)):
        over = tokens[max(0, base - k + 1) : base + 1]
        found[base] = over.sum() / k if share else over.mean()
    return found


def test_attention_is_that_of_berts_eager_last_layer(folders, sequences, fasta):
    model = BertModel.from_pretrained(folders["kmer"], attn_implementation="eager").eval()
    for bases, importance_L in zip(
        sequences, each(attribute(folders["kmer"], fasta, methods=["attention"])), strict=True
    ):
        with torch.no_grad():
            weights_NSS = model(ids_of(folders["kmer"], bases), output_attentions=True).attentions[-1][0]
        expected = spread(weights_NSS[:, 0].sum(0).numpy()[1:-1], 3, share=False)
        np.testing.assert_allclose(importance_L, expected / np.linalg.norm(expected), atol=1e-6)
        assert np.linalg.norm(importance_L) == pytest.approx(1, abs=1e-6)
    same = attribute(folders["dnabert"], fasta, methods=["attention"], batch_tokens=50)
    np.testing.assert_allclose(
        same.importance, attribute(folders["kmer"], fasta, methods=["attention"]).importance, atol=1e-6
    )


def test_attention_of_our_own_encoder_under_a_head(folders, sequences, fasta):
    """Of one output or another it is the same, and --label is not asked for."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["classes"], trust_remote_code=True).eval()
    for bases, importance_L in zip(
        sequences, each(attribute(folders["classes"], fasta, methods=["attention"])), strict=True
    ):
        with torch.no_grad():
            output = model.encoder(ids_of(folders["classes"], bases), output_attentions=True)
        expected = output.attentions[-1][0][:, 0, 1:-1].sum(0).numpy()
        np.testing.assert_allclose(importance_L, expected / np.linalg.norm(expected), atol=1e-6)


def integrated(model, words, ids: torch.Tensor, baseline: torch.Tensor, score) -> np.ndarray:
    """Integrated gradients of score(logits) in the vectors of `words`, by 80 midpoints; of every token."""
    start, end = words(baseline).detach(), words(ids).detach()
    total = torch.zeros_like(end)
    steps = 80
    for step in range(steps):
        at = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        score(model(at)).backward()
        total += at.grad / steps
    return ((end - start) * total).sum(-1)[0].numpy()


def test_gradients_of_a_class_are_those_of_autograd(folders, sequences, fasta):
    model = AutoModelForSequenceClassification.from_pretrained(folders["classes"], trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["classes"], trust_remote_code=True)

    def run(vectors):
        hidden = model.encoder(inputs_embeds=vectors)[0]
        return model.head(hidden[:, 1:-1].mean(1))[0]  # the pooling of the fine-tuned head

    def odds(logits):
        p = logits.softmax(-1)[1]
        return torch.log(p / (1 - p))

    table = attribute(folders["classes"], fasta, methods=["gradient"], label="acceptor")
    for bases, importance_L, facts in zip(sequences, each(table), table.attrs["sequences"], strict=True):
        ids = ids_of(folders["classes"], bases)
        baseline = ids.clone()
        baseline[:, 1:-1] = tokenizer.mask_token_id
        expected = integrated(run, model.encoder.get_input_embeddings(), ids, baseline, odds)
        np.testing.assert_allclose(importance_L, expected[1:-1], atol=2e-5)
        with torch.no_grad():
            assert facts["score"] == pytest.approx(float(odds(model(ids).logits[0])), abs=1e-5)
            assert facts["baseline"] == pytest.approx(float(odds(model(baseline).logits[0])), abs=1e-5)
        assert facts["delta"] == pytest.approx(importance_L.sum() - facts["score"] + facts["baseline"], abs=1e-6)
        assert abs(facts["delta"]) < 1e-4


def test_few_steps_leave_a_delta(folders, fasta):
    few, many = (
        attribute(folders["classes"], fasta, methods=["gradient"], label="donor", steps=steps).attrs["sequences"]
        for steps in (1, 50)
    )
    assert all(abs(one["delta"]) > 10 * abs(other["delta"]) for one, other in zip(few, many, strict=True))


def test_gradients_of_a_masked_language_model_add_up(folders, sequences, fasta):
    """Mean ln p of the true bases, nothing hidden: of single nucleotides by hand; of k-mers, and where context tables
    read the neighbours of a token, by completeness."""
    model = AutoModelForMaskedLM.from_pretrained(folders["nucleotide"], trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["nucleotide"], trust_remote_code=True)
    table = attribute(folders["nucleotide"], fasta, methods=["gradient"])
    for bases, importance_L, facts in zip(sequences, each(table), table.attrs["sequences"], strict=True):
        ids = ids_of(folders["nucleotide"], bases)
        with torch.no_grad():
            log_p = model(ids).logits[0, 1:-1][:, tokenizer.convert_tokens_to_ids(list(BASES))].log_softmax(-1)
        expected = np.mean([float(log_p[i, BASES.index(base)]) for i, base in enumerate(bases)])
        assert facts["score"] == pytest.approx(expected, abs=1e-5)
        assert importance_L.sum() == pytest.approx(facts["score"] - facts["baseline"], abs=1e-4)
    table = attribute(folders["kmer"], fasta, methods=["gradient"])
    for importance_L, facts in zip(each(table), table.attrs["sequences"], strict=True):
        assert importance_L.sum() == pytest.approx(facts["score"] - facts["baseline"], abs=1e-5)
        assert abs(facts["score"] - facts["baseline"]) > 1e-4 > 10 * abs(facts["delta"])


def test_context_tables_are_part_of_the_vectors(fasta, tmp_path):
    folder = megadna_folder(tmp_path / "m")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    symbols = context_symbols(NucleotideTokenizer())
    config = MegaDnaConfig(
        vocab_size=16, max_position_embeddings=64, local_context="both", context_symbols=symbols, **sizes
    )
    MegaDnaForMaskedLM(config).save_pretrained(tmp_path / "new")
    for name in ("model.safetensors", "config.json"):
        text = (tmp_path / "new" / name).read_bytes()
        if name == "config.json":
            stated = json.loads((folder / name).read_text())
            text = json.dumps({**json.loads(text), "auto_map": stated["auto_map"]}).encode()
        (folder / name).write_bytes(text)
    for facts in attribute(folder, fasta, methods=["gradient"]).attrs["sequences"]:
        assert abs(facts["delta"]) < 1e-4 * abs(facts["score"] - facts["baseline"])


def test_mutagenesis_of_a_class_by_substitution(folders, sequences, fasta):
    model = AutoModelForSequenceClassification.from_pretrained(folders["classes"], trust_remote_code=True).eval()

    def odds(bases):
        with torch.no_grad():
            p = model(ids_of(folders["classes"], bases)).logits[0].softmax(-1)[0].double()
        return float(torch.log(p / (1 - p)))

    table = attribute(folders["classes"], fasta, label="donor", batch_tokens=200)  # the default method
    for bases, importance_L, facts in zip(sequences[:2], each(table), table.attrs["sequences"], strict=False):
        for at in range(0, len(bases), 7):
            others = [odds(bases[:at] + base + bases[at + 1 :]) for base in BASES if base != bases[at]]
            assert importance_L[at] == pytest.approx(odds(bases) - np.mean(others), abs=1e-5)
        assert facts["score"] == pytest.approx(odds(bases), abs=1e-5)


def test_hypothetical_contributions_are_what_another_base_would_have(folders, sequences, fasta, tmp_path):
    """Of base 8 of the first sequence: importance, once another base stands there."""
    bases, path = sequences[0], tmp_path / "b.fa"
    texts = [bases[:8] + base + bases[9:] for base in BASES]
    path.write_text("".join(f">{base}\n{text}\n" for base, text in zip(BASES, texts, strict=True)))
    for folder, more in ((folders["classes"], {"label": "donor"}), (folders["nucleotide"], {})):
        found = attribute(folder, fasta, hypothetical=True, **more)
        expected = attribute(folder, path, **more)
        four = found[[f"hypothetical_{base}" for base in BASES]].to_numpy()
        np.testing.assert_allclose(four[8], expected.importance[expected.position == 8], atol=1e-5)
        at_base = four[np.arange(len(found)), [BASES.index(base) for base in found.base]]
        np.testing.assert_array_equal(at_base, found.importance)


def test_mutagenesis_of_a_masked_language_model_is_its_log_odds(folders, sequences, fasta):
    model = AutoModelForMaskedLM.from_pretrained(folders["nucleotide"], trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["nucleotide"], trust_remote_code=True)
    for bases, importance_L in zip(sequences[:2], each(attribute(folders["nucleotide"], fasta)), strict=False):
        for at in range(0, len(bases), 5):
            ids = ids_of(folders["nucleotide"], bases)
            ids[0, at + 1] = tokenizer.mask_token_id
            with torch.no_grad():
                four = model(ids).logits[0, at + 1, tokenizer.convert_tokens_to_ids(list(BASES))].log_softmax(-1)
            expected = float(four[BASES.index(bases[at])] - four.mean())
            assert importance_L[at] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
def test_a_target_is_hidden_and_its_context_explained(kind, folders, sequences, fasta):
    target = [11, 12]
    table = attribute(folders[kind], fasta, target=target, methods=["gradient", "mutagenesis"])
    first = table[table.region == 0]
    assert (first.importance_gradient.iloc[target] == 0).all() and (
        first.importance_mutagenesis.iloc[target] == 0
    ).all()
    assert (first.importance_mutagenesis.drop(index=target) != 0).all()
    if kind == "nucleotide":
        model = AutoModelForMaskedLM.from_pretrained(folders[kind], trust_remote_code=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folders[kind], trust_remote_code=True)

        def score(bases):
            ids = ids_of(folders[kind], bases)
            ids[0, [12, 13]] = tokenizer.mask_token_id
            with torch.no_grad():
                log_p = model(ids).logits[0][:, tokenizer.convert_tokens_to_ids(list(BASES))].log_softmax(-1)
            return np.mean([float(log_p[at + 1, BASES.index(sequences[0][at])]) for at in target])

        bases = sequences[0]
        others = [score(bases[:20] + base + bases[21:]) for base in BASES if base != bases[20]]
        assert first.importance_mutagenesis[20] == pytest.approx(score(bases) - np.mean(others), abs=2e-5)


def test_a_model_of_nucleotides_is_explained_at_its_target(folders, sequences, fasta, tmp_path):
    """Two classes have opposite log odds; the score of all bases is the mean of those of each."""
    table = attribute(folders["base"], fasta, label="in", target=[9], methods=["gradient", "mutagenesis"])
    expected = attribute(folders["base"], fasta, label="out", target=[9], methods=["gradient", "mutagenesis"])
    np.testing.assert_allclose(table.importance_gradient, -expected.importance_gradient, atol=1e-5)  # two classes
    short = tmp_path / "short.fa"
    short.write_text(f">s\n{sequences[0][:9]}\n")
    whole = attribute(folders["base"], short, label="in")
    singles = [attribute(folders["base"], short, label="in", target=[at]).importance.to_numpy() for at in range(9)]
    np.testing.assert_allclose(whole.importance, np.mean(singles, axis=0), atol=1e-5)


def test_tokens_of_several_lengths(folders, fasta):
    """Byte pairs: attention and substitutions; gradients need a mask token, which this tokenizer lacks."""
    found = attribute(folders["pieces"], fasta, methods=["attention", "mutagenesis"])
    assert found.importance_attention.notna().all() and found.importance_mutagenesis.notna().all()
    with pytest.raises(UserError, match="no mask token"):
        attribute(folders["pieces"], fasta, methods=["gradient"])


def test_agreement_is_the_correlation_of_ranks(folders, fasta):
    table = attribute(folders["classes"], fasta, label="donor", methods=METHODS)
    for (_, rows), facts in zip(table.groupby("region"), table.attrs["sequences"], strict=True):
        gradient, mutagenesis = rows.importance_gradient, rows.importance_mutagenesis
        pairs = {
            "gradient_mutagenesis": (gradient, mutagenesis),
            "attention_gradient": (rows.importance_attention, gradient.abs()),
            "attention_mutagenesis": (rows.importance_attention, mutagenesis.abs()),
        }
        for key, (one, other) in pairs.items():
            expected = np.corrcoef(rankdata(one), rankdata(other))[0, 1]
            assert facts[f"spearman_{key}"] == pytest.approx(expected, abs=1e-6)


def test_regions_of_both_strands_in_genome_coordinates(folders, sequences, fasta, tmp_path):
    bed = tmp_path / "r.bed"
    bed.write_text("s0\t3\t28\tone\t0\t-\ns1\t5\t40\ttwo\t0\t+\n")
    arguments = [
        "attribute",
        "--model",
        folders["classes"],
        "--label",
        "donor",
        "--input",
        str(fasta),
        "--bed",
        str(bed),
    ]
    main([*arguments, "--output", str(tmp_path / "x.bw")])
    main([*arguments, "--output", str(tmp_path / "y.parquet"), "--methods", *METHODS, "--logo"])
    table = pd.read_parquet(tmp_path / "y.parquet")
    assert table.columns.tolist() == [
        "contig", "position", "name", "strand", "region", "base", *(f"importance_{name}" for name in METHODS)
    ]  # fmt: skip
    texts = [reverse_complement(sequences[0][3:28]), sequences[1][5:40]]
    assert ["".join(rows.base) for _, rows in table.groupby("region")] == texts
    assert table.position.tolist() == [*range(27, 2, -1), *range(5, 40)]
    path = tmp_path / "cut.fa"
    path.write_text(">a\n{}\n>b\n{}\n".format(*texts))
    one, two = each(attribute(folders["classes"], path, label="donor"))
    np.testing.assert_allclose(np.concatenate([one, two]), table.importance_mutagenesis, atol=1e-5)
    with pyBigWig.open(str(tmp_path / "x.mutagenesis.minus.bw")) as file:
        np.testing.assert_allclose(file.values("s0", 3, 28), one[::-1], atol=1e-5)
        assert np.isnan(file.values("s0", 0, 3)).all() and file.chroms() == {"s0": 30, "s1": 41, "s2": 37}
    with pyBigWig.open(str(tmp_path / "x.mutagenesis.plus.bw")) as file:
        np.testing.assert_allclose(file.values("s1", 5, 40), two, atol=1e-5)
    facts = pd.read_csv(tmp_path / "y.sequences.tsv", sep="\t")
    assert facts.name.tolist() == ["one", "two"] and facts.start.tolist() == [3, 5]
    assert {"score", "baseline", "delta", "spearman_gradient_mutagenesis"} <= set(facts.columns)
    assert (tmp_path / "y.png").read_bytes()[:4] == b"\x89PNG"


def test_lines_of_a_picture_share_the_bases_and_one_scale():
    rows = pd.DataFrame({"contig": "c", "position": range(205), "name": "", "strand": "+", "base": ["A"] * 205})
    assert [(title, len(part)) for title, _, part in _lines(rows)] == [("c:0-205 (+)", 68), ("", 69), ("", 68)]
    low, high = _limits(np.array([np.nan, -1.0, 3.0]))
    assert low == pytest.approx(-1.24) and high == pytest.approx(3.24) and _limits(np.array([0.0, 2.0]))[0] == 0


def test_a_ring_is_read_across_its_ends(folders, sequences, tmp_path):
    ring, path = sequences[0], tmp_path / "ring.fa"
    path.write_text(f">r circular=true\n{ring}\n")
    context = 126 // 8
    whole = tmp_path / "whole.fa"
    whole.write_text(f">w\n{ring[-context:] + ring + ring[:context]}\n")
    for methods in (["gradient"], ["mutagenesis"]):
        found = attribute(folders["classes"], path, label="donor", methods=methods)
        longer = attribute(folders["classes"], whole, label="donor", methods=methods)
        np.testing.assert_allclose(found.importance, longer.importance[context : context + 30], atol=1e-5)
    target = attribute(folders["nucleotide"], path, target=[4])
    longer = attribute(folders["nucleotide"], whole, target=[4 + context])
    np.testing.assert_allclose(target.importance, longer.importance[context : context + 30], atol=1e-5)


def test_ambiguous_bases_have_no_substitution(folders, tmp_path):
    path = tmp_path / "n.fa"
    path.write_text(">n\nACGTACGNTACCATTGAC\n")
    for folder, more in ((folders["nucleotide"], {}), (folders["classes"], {"label": "donor"})):
        found = attribute(folder, path, **more)
        assert np.flatnonzero(found.importance.isna()).tolist() == [7] and found.base[7] == "N"


def test_a_stopped_command_is_resumed(folders, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "MAX_STRETCHES", 1)
    run = ["attribute", "--model", folders["classes"], "--label", "donor", "--input", str(fasta), "--methods", *METHODS]
    main([*run, "--output", str(tmp_path / "a.parquet")])
    computed = []
    write = outputs.parquet.write_table

    def stop_at_the_second(table, part, **options):
        computed.append(part.name)
        if len(computed) == 2:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_second)
    with pytest.raises(SystemExit):
        main([*run, "--output", str(tmp_path / "b.parquet")])
    main([*run, "--output", str(tmp_path / "b.parquet")])
    assert len(computed) == 2 + 2
    for ending in ("parquet", "sequences.tsv"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    monkeypatch.undo()
    whole = attribute(folders["classes"], fasta, label="donor", methods=METHODS)
    divided = pd.read_parquet(tmp_path / "a.parquet")
    assert divided.region.tolist() == whole.region.tolist()
    for name in METHODS:
        np.testing.assert_allclose(divided[f"importance_{name}"], whole[f"importance_{name}"], atol=2e-6)


def test_mistakes_end_in_one_line(folders, fasta, tmp_path, capsys):
    long = tmp_path / "long.fa"
    long.write_text(">long\n" + "ACGT" * 40 + "\n")
    cases = [
        ("classes", fasta, [], "predicts donor, acceptor, negative; say which to explain with --label"),
        ("classes", fasta, ["--label", "exon"], "--label exon: "),
        ("classes", fasta, ["--label", "donor", "--target", "3"], "predicts whole sequences; leave it out"),
        ("nucleotide", fasta, ["--label", "donor"], "is a masked language model; leave it out"),
        ("nucleotide", fasta, ["--methods", "saliency"], "one or several of attention, gradient, mutagenesis"),
        ("nucleotide", fasta, ["--methods", "attention", "--target", "3"], "attention does not depend on it"),
        ("nucleotide", fasta, ["--target", "30"], "--target 30: s0:0-30 has 30 bases"),
        (
            "nucleotide",
            fasta,
            ["--methods", "attention", "--hypothetical"],
            "comes of mutagenesis; add it",
        ),
        ("nucleotide", fasta, ["--steps", "0"], "--steps must be positive"),
        ("nucleotide", "-", [], "is read more than once; give a file"),
        ("nucleotide", long, [], "long:0-160: 160 bases, and the context of"),
    ]
    for kind, source, more, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(["attribute", "--model", folders[kind], "--input", str(source), *more,
                  "--output", str(tmp_path / "x.parquet")])  # fmt: skip
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("x.*"))
    (tmp_path / "x.png").write_text("mine")
    with pytest.raises(SystemExit):
        main(["attribute", "--model", folders["nucleotide"], "--input", str(fasta), "--logo",
              "--output", str(tmp_path / "x.parquet")])  # fmt: skip
    assert (tmp_path / "x.png").read_text() == "mine"


@pytest.mark.parametrize("library", ["captum", "scipy"])
def test_a_missing_library_is_named_before_any_work(library, folders, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("megadna.downstream.options.find_spec", lambda name: name != library or None)
    with pytest.raises(SystemExit) as stopped:
        main(["attribute", "--model", folders["nucleotide"], "--input", str(fasta), "--output", str(tmp_path / "x.bw"),
              "--methods", "gradient", "attention"])  # fmt: skip
    assert stopped.value.code == 2 and f"{library} is not installed" in capsys.readouterr().err
