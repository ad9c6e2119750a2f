"""Scores of variants beside loops that a reader can check; real and hostile VCFs; resumption, ranks, mistakes."""

import gzip
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
import torch
from toy_models import dnabert_folder, megadna_folder
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from megadna import variants
from megadna.cli import main
from megadna.downstream import outputs
from megadna.downstream import variants as module
from megadna.downstream.masked_bases import MaskedBases, PartialForward
from megadna.errors import UserError
from megadna.genome.records import reverse_complement
from megadna.hf.configuration_megadna import MegaDnaConfig
from megadna.hf.modeling_megadna import MegaDnaForMaskedLM
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer, context_symbols
from megadna.tokenizer.kmer import KmerTokenizer

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
FASTA, VCF = (DATA / f"human_GRCh37_chr20_1000G.{ending}" for ending in ("fa.gz", "vcf.gz"))
WINDOW = 31


def bert_folder(folder: Path) -> Path:
    """A random BERT of single nucleotides."""
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=16, max_position_embeddings=64, initializer_range=0.3, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    write_tokenizer(NucleotideTokenizer(), folder, 64)
    return folder


def blocked_folder(folder: Path) -> Path:
    """A random BERT of 3-mers that do not overlap."""
    tokenizer = KmerTokenizer(3, stride=3, layout="bionemo")
    torch.manual_seed(9)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=69, max_position_embeddings=32, initializer_range=0.3, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    write_tokenizer(tokenizer, folder, 32)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    makers = {"bert": bert_folder, "dnabert": dnabert_folder, "megadna": megadna_folder, "blocked": blocked_folder}
    return {name: make(home / name) for name, make in makers.items()}


@pytest.fixture(scope="module")
def genome() -> str:
    with gzip.open(FASTA, "rt") as lines:
        return "".join(line.strip() for line in lines if not line.startswith(">"))


def vcf(path: Path, *records: tuple, contigs: str = "") -> Path:
    """(contig, pos, ref, alt, info) of each record."""
    rows = [f"{c}\t{p}\t.\t{r}\t{a}\t.\tPASS\t{i[0] if i else '.'}\n" for c, p, r, a, *i in records]
    path.write_text(f"##fileformat=VCFv4.3\n{contigs}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n{''.join(rows)}")
    return path


@cache
def tokens_and_model(folder: Path):
    kmers = {"dnabert": (1, "dnabert"), "blocked": (3, "bionemo")}
    stride, layout = kmers.get(folder.name, (1, ""))
    tokenizer = KmerTokenizer(3, stride=stride, layout=layout) if layout else NucleotideTokenizer()
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    return tokenizer, {token: number for number, token in enumerate(tokenizer.tokens())}, model


def logits_of(words: list[str], masked: set[int], ids: dict[str, int], model) -> torch.Tensor:
    row = ["[CLS]", *("[MASK]" if at in masked else word for at, word in enumerate(words)), "[SEP]"]
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[ids[word] for word in row]])).logits[0, 1:-1].double()


def log_odds_by_loop(folder: Path, text: str, changed: list[int], ref: str, alt: str) -> float:
    """ln p(alt) - ln p(ref): every token over a changed base masked, every word that agrees with the visible bases."""
    tokenizer, ids, model = tokens_and_model(folder)
    k, stride = tokenizer.bases_per_token, tokenizer.stride
    words = [text[at : at + k] for at in range(0, len(text) - k + 1, stride)]
    masked = {number for number in range(len(words)) for base in changed if 0 <= base - stride * number < k}
    logits = logits_of(words, masked, ids, model)
    total = 0.0
    for base, *pair in zip(changed, ref, alt, strict=True):
        p = dict.fromkeys("ACGT", 0.0)
        for number in [number for number in masked if 0 <= base - stride * number < k]:
            at, text_of = stride * number, words[number]
            hidden = [other - at for other in changed if 0 <= other - at < k]
            fillings = [dict(zip(hidden, bases, strict=True)) for bases in product("ACGT", repeat=len(hidden))]
            fitting = ["".join(filling.get(i, c) for i, c in enumerate(text_of)) for filling in fillings]
            for word, share in zip(fitting, logits[number, [ids[w] for w in fitting]].softmax(0), strict=True):
                p[word[base - at]] += float(share)
        total += np.log(p[pair[1]]) - np.log(p[pair[0]])
    return total


@pytest.mark.parametrize("kind", ["bert", "dnabert", "megadna", "blocked"])
def test_llr_equals_a_loop(kind, folders, genome, tmp_path):
    """Single bases, several at once with and without a gap, several ALTs, and the contig's first and last bases."""
    changes = [(0, "A"), (99, "T"), (100, "A"), (100, "C"), (200, "TT"), (300, "GCATG"), (29_999, "A"), (29_997, "G")]
    changes = [(at, "".join(a if a != g else "CGTA"["ACGT".index(a)] for a, g in zip(alt, genome[at:], strict=False)))
               for at, alt in changes]  # fmt: skip
    changes[5] = (300, changes[5][1][:2] + genome[302] + changes[5][1][3:])
    if kind == "blocked":  # in the others' windows, of 31 bases, one strand's words leave out the base in question
        changes = changes[1:6]
    path = vcf(tmp_path / "a.vcf", *(("z", at + 1, genome[at : at + len(alt)], alt) for at, alt in changes))
    found = variants(folders[kind], path, FASTA, window=WINDOW, batch_tokens=100)
    assert " ".join(found.columns) == "contig pos ref alt method llr_forward llr_reverse llr status"
    for row, (start, alt) in zip(found.itertuples(), changes, strict=True):
        changed = [start + i for i, (one, other) in enumerate(zip(genome[start:], alt, strict=False)) if one != other]
        centre = (changed[0] + changed[-1]) // 2
        first = min(max(0, centre - 15), 30_000 - WINDOW)  # at an end of the contig the window is moved inwards
        last = first + WINDOW
        text, inside = genome[first:last], [base - first for base in changed]
        pair = "".join(genome[base] for base in changed), "".join(alt[base - start] for base in changed)
        forward = log_odds_by_loop(folders[kind], text, inside, *pair)
        back = [len(text) - 1 - base for base in inside]
        complements = ["".join(reverse_complement(base) for base in bases) for bases in pair]
        reverse = log_odds_by_loop(folders[kind], reverse_complement(text), back, *complements)
        right = [forward, reverse, (forward + reverse) / 2]
        np.testing.assert_allclose([row.llr_forward, row.llr_reverse, row.llr], right, atol=1e-5)
        assert (row.contig, row.pos, row.alt, row.method, row.status) == ("z", start + 1, alt, "llr", "ok")
    assert np.abs(found.llr).max() > 0.1


@pytest.mark.parametrize("kind", ["bert", "dnabert"])
def test_influence_distance_and_pll_equal_loops(kind, folders, genome, tmp_path):
    """A substitution, a deletion and an insertion."""
    _, ids, model = tokens_and_model(folders[kind])
    k = 3 if kind == "dnabert" else 1

    def read(text: str) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds [L, 4], mean hidden state."""
        words = [text[at : at + k] for at in range(len(text) - k + 1)]
        logits = logits_of(words, set(), ids, model)
        p = np.zeros((len(text), 4))
        for base in range(len(text)):
            over = [at for at in range(len(words)) if 0 <= base - at < k]
            for at in over:
                fitting = [ids[words[at][: base - at] + b + words[at][base - at + 1 :]] for b in "ACGT"]
                p[base] += logits[at, fitting].softmax(0).numpy() / len(over)
        row = torch.tensor([[ids[word] for word in ["[CLS]", *words, "[SEP]"]]])
        with torch.inference_mode():
            states = model(input_ids=row, output_hidden_states=True).hidden_states[-1][0, 1:-1]
        return np.log(p / (1 - p)), states.double().mean(0).numpy()

    def likelihood(text: str) -> float:
        bases = range(len(text))
        odds = [[log_odds_by_loop(folders[kind], text, [at], text[at], b) for b in "ACGT"] for at in bases]
        return -np.log(np.exp(odds).sum(1)).sum()

    at = 5000
    alts = {"A": "C", "C": "A", "G": "A", "T": "A"}[genome[at]]
    changes = [(at, genome[at], alts), (at, genome[at : at + 4], genome[at]), (at, genome[at], genome[at] + "GAT")]
    path = vcf(tmp_path / "a.vcf", *(("z", start + 1, ref, alt) for start, ref, alt in changes))
    options = {"window": 13, "scores": ["pll", "distance", "influence", "llr"]}
    found = variants(folders[kind], path, FASTA, **options)
    expected = (
        "contig pos ref alt method llr_forward llr_reverse llr pll_forward pll_reverse pll influence l2 cosine status"
    )
    assert found.columns.tolist() == expected.split()
    assert found.method.tolist() == ["llr", "pll", "pll"] and found.status.tolist() == ["ok"] * 3
    assert found.pll.isna().tolist() == [True, False, False] and found.influence.notna().tolist() == [
        True,
        False,
        False,
    ]
    for row, (start, ref, alt) in zip(found.itertuples(), changes, strict=True):
        whole = genome[:start] + alt + genome[start + len(ref) :]
        shift = 0
        if len(ref) != len(alt):  # as far left as it gives the same sequence
            size = abs(len(alt) - len(ref))
            while genome[start - shift] == (genome if len(ref) > 1 else whole)[start + size - shift]:
                shift += 1
        first = start + 1 - shift if len(ref) != len(alt) else start
        centre = first + (len(ref) - 2) // 2 if len(ref) > 1 else first
        pair = [text[centre - 6 : centre + 7] for text in (genome, whole)]
        both = [pair, [reverse_complement(text) for text in pair]]
        states = [[read(text) for text in strand] for strand in both]
        l2 = [np.linalg.norm(one[1] - other[1]) for one, other in states]
        cosine = [1 - one[1] @ other[1] / np.linalg.norm(one[1]) / np.linalg.norm(other[1]) for one, other in states]
        np.testing.assert_allclose([row.l2, row.cosine], [np.mean(l2), np.mean(cosine)], atol=1e-5)
        if row.method == "llr":
            change = [np.delete(np.abs(other[0] - one[0]).max(1), 6).mean() for one, other in states]
            np.testing.assert_allclose(row.influence, np.mean(change), atol=1e-5)
        else:
            pll = [likelihood(other) - likelihood(one) for one, other in both]
            np.testing.assert_allclose([row.pll_forward, row.pll_reverse, row.pll], [*pll, np.mean(pll)], atol=5e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"local_context": "both", "context_symbols": context_symbols(NucleotideTokenizer())},
        {"norm_placement": "post", "position_embedding_type": "learned", "num_token_types": 2, "hidden_act": "gelu"},
        {"num_key_value_heads": 2, "qk_norm": True, "normalization_type": "RMSNorm", "local_context": "convolution"},
    ],
)
def test_logits_of_few_tokens_are_those_of_the_whole_model(settings):
    """Rows of unlike length with 0 to 3 chosen tokens; the last layer, which has no convolution, is really cut."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    model = MegaDnaForMaskedLM(MegaDnaConfig(vocab_size=16, max_position_embeddings=40, **sizes, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ids_BS, lengths_B = torch.randint(5, 9, (4, 33)), torch.tensor([33, 20, 33, 5])
    for row, length in enumerate(lengths_B.tolist()):
        ids_BS[row, length:] = 0
    row_M, position_M = torch.tensor([2, 0, 3, 0, 3, 3]), torch.tensor([7, 32, 4, 1, 0, 2])
    with torch.inference_mode():
        mask_BS = (torch.arange(33) < lengths_B[:, None]).long()
        whole = model(input_ids=ids_BS, attention_mask=mask_BS).logits[row_M, position_M]
    forward = PartialForward(model, [2, 5, 6, 7, 8])
    assert forward._last is not None and forward._head is not None
    torch.testing.assert_close(forward.logits(ids_BS, lengths_B, row_M, position_M), whole, atol=2e-5, rtol=1e-5)


def test_a_head_that_needs_more_is_not_used():
    """If parts of a model do not give what the whole gives, the whole runs."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = MegaDnaForMaskedLM(MegaDnaConfig(vocab_size=16, max_position_embeddings=40, **sizes)).eval()
    ids_BS, predict = torch.randint(5, 9, (1, 9)), model.predict
    model.predict = lambda *arguments: 2 * predict(*arguments)
    forward = PartialForward(model, [2, 5, 6, 7, 8])
    assert forward._last is None and forward._head is None
    found = forward.logits(ids_BS, torch.tensor([9]), torch.tensor([0]), torch.tensor([3]))
    torch.testing.assert_close(found, model(input_ids=ids_BS).logits[:, 3])
    model.predict, dense = predict, model.cls.forward
    model.cls.forward = lambda hidden_BSE: dense(hidden_BSE.permute(0, 1, 2))  # whole batches only
    forward = PartialForward(model, [2, 5, 6, 7, 8])
    assert forward._last is None and forward._head is None


def test_scores_that_are_for_no_allele_are_refused_and_others_said(folders, genome, tmp_path, caplog):
    """pll of substitutions alone is nothing; beside an insertion it is said how many go without."""
    row = ("z", 401, genome[400], next(base for base in "ACGT" if base != genome[400]))
    with pytest.raises(UserError, match="for no allele of it: for 1 substitution add --scores llr or influence"):
        variants(folders["megadna"], vcf(tmp_path / "a.vcf", row), FASTA, window=WINDOW, scores=["pll"])
    insertion = ("z", 420, genome[419], genome[419] + "A")
    variants(folders["megadna"], vcf(tmp_path / "b.vcf", row, insertion), FASTA, window=WINDOW)
    assert "written without a score; for 1 insertion, deletion or the like add --scores pll or distance" in caplog.text


def test_one_pass_for_all_alts_of_a_site(folders, genome, tmp_path, monkeypatch):
    """Three ALTs, in one record and in three: two windows are read, one a strand."""
    others = [base for base in "ACGT" if base != genome[400]]
    rows = [("z", 401, genome[400], ",".join(others)), *(("z", 401, genome[400], other) for other in others)]
    windows = []
    hidden = MaskedBases.hidden
    monkeypatch.setattr(MaskedBases, "hidden", lambda self, w, h: windows.extend(w) or hidden(self, w, h))
    found = variants(folders["megadna"], vcf(tmp_path / "a.vcf", *rows), FASTA, window=WINDOW)
    assert len(windows) == 2 and len(found) == 6
    assert found.llr.tolist()[:3] == found.llr.tolist()[3:]


def test_calibration_by_neutral_sites(folders, genome, tmp_path, monkeypatch):
    """llr less the mean over all sites of the regions with the same pentanucleotide, on either strand, and ALT."""
    monkeypatch.setattr("megadna.downstream.variant_files.LEAST_SITES", 2)
    (tmp_path / "n.bed").write_text("z\t1000\t1300\nz\t1200\t1400\n")
    scored = [("z", at + 1, genome[at], "".join(sorted(set("ACGT") - {genome[at]}))[0]) for at in range(2000, 2060)]
    every = [("z", at + 1, genome[at], ",".join(b for b in "ACGT" if b != genome[at])) for at in range(1000, 1400)]
    neutral = variants(folders["megadna"], vcf(tmp_path / "n.vcf", *every), FASTA, window=WINDOW)

    def context(pos: int, alt: str) -> tuple[str, str]:
        here = genome[pos - 3 : pos + 2], alt
        return min(here, tuple(map(reverse_complement, here)))

    keys = [context(row.pos, row.alt) for row in neutral.itertuples()]
    means = neutral.llr.groupby(pd.Index(keys, tupleize_cols=False)).agg(["mean", "size"])
    found = variants(
        folders["megadna"], vcf(tmp_path / "a.vcf", *scored), FASTA, window=WINDOW, neutral=tmp_path / "n.bed"
    )
    for row in found.itertuples():
        key = context(row.pos, row.alt)
        known = key in means.index and means["size"][key] >= 2
        right = row.llr - means["mean"][key] if known else np.nan
        np.testing.assert_allclose(row.llr_calibrated, right, atol=1e-5)
    assert 10 < found.llr_calibrated.notna().sum() < 60
    output = tmp_path / "o.vcf.gz"
    run(folders["megadna"], tmp_path / "a.vcf", output, "--neutral", tmp_path / "n.bed", "--window", WINDOW)
    with pysam.VariantFile(str(output)) as rows:
        tags = [row.info["MEGADNA_LLR_CALIBRATED"][0] for row in rows]
    np.testing.assert_allclose(np.array(tags, float), found.llr_calibrated, rtol=1e-4, atol=1e-6)


def run(model: Path, path: Path, output: Path, *more: object, fasta: Path = FASTA) -> None:
    named = {"--model": model, "--vcf": path, "--genome": fasta, "--output": output}
    main(["variants", *(str(word) for pair in named.items() for word in pair), *map(str, more)])


def hostile(genome: str) -> list[str]:
    """Data lines of all kinds, and a status for each of their ALTs."""

    def at(pos: int, alt: str, size: int = 1, rest: str = ".\tPASS\t.") -> str:
        return f"z\t{pos}\t.\t{genome[pos - 1 : pos - 1 + size]}\t{alt}\t{rest}"

    other = "ACGTA"["ACGT".index(genome[0]) + 1], "ACGTA"["ACGT".index(genome[499]) + 1]
    return [
        "z\t0\t.\tN\t<DEL>\t.\t.\tEND=5",
        at(1, other[0], rest="1e-7\tq10;odd\tAC=1;X;Y=a=b"),
        at(500, f"{other[1].lower()},*,<NON_REF>", rest="29.123456789\t.\t."),
        at(500, f"{other[1]}", rest=".\t.\tDP=3;\tGT:PL\t0/1:1,2,3\t./."),
        at(600, "<NON_REF>", rest=".\tPASS\tEND=700"),
        at(700, "."),
        at(800, f"{genome[799]}]z:900],R,{genome[799]}"),
        at(900, genome[899] + "ACGT"),
        at(1000, genome[999], 60),
        "z\t1100\t.\tR\tA\t.\t.\t.",
        f"z\t1200\t.\t{'ACGTA'['ACGT'.index(genome[1199]) + 1]}\tN,{genome[1199]}\t.\t.\t.",
        "z\t30001\t.\tA\tC\t.\t.\t.",
        "GL000192.1\t5\t.\tA\tC\t.\t.\t.",
    ]


STATUS = (
    "symbolic ok ok,spanning_deletion,symbolic ok symbolic no_alt breakend,ambiguous,same_as_ref not_chosen not_chosen "
    "ambiguous ref_mismatch,ref_mismatch outside_contig unknown_contig"
)


def test_every_record_comes_out_once_with_its_bytes(folders, genome, tmp_path, caplog):
    path, output = tmp_path / "a.vcf", tmp_path / "o.vcf.gz"
    header = "##fileformat=VCFv4.2\n##contig=<ID=z,length=30000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    lines = hostile(genome)
    path.write_text(header + "\n".join(lines) + "\n", newline="")
    run(folders["megadna"], path, output, "--window", WINDOW)
    text = gzip.decompress(output.read_bytes()).decode().splitlines()
    rows = [line for line in text if not line.startswith("#")]
    assert [line for line in text if line.startswith("#") and "MEGADNA" not in line and "##megadna" not in line] == (
        header.splitlines()
    )
    assert len(rows) == len(lines)
    status = []
    for line, row in zip(lines, rows, strict=True):
        one, other = line.split("\t"), row.split("\t")
        assert one[:7] + one[8:] == other[:7] + other[8:]
        kept, _, added = other[7].partition("MEGADNA_")
        assert kept == ("" if one[7] == "." else one[7].removesuffix(";") + ";")
        tags = dict(entry.split("=") for entry in f"MEGADNA_{added}".split(";"))
        assert {len(values.split(",")) for values in tags.values()} == {one[4].count(",") + 1}
        status.append(tags["MEGADNA_STATUS"])
        assert [v == "." for v in tags["MEGADNA_LLR"].split(",")] == [s != "ok" for s in status[-1].split(",")]
    assert " ".join(status) == STATUS
    with pysam.TabixFile(str(output)) as indexed:
        assert [row.split("\t")[:2] for row in indexed.fetch("z", 0, 400)] == [["z", "0"], ["z", "1"]]
        assert len(list(indexed.fetch())) == len(lines)
    assert "pathogenic" not in "".join(text).lower()
    assert "MEGADNA_LLR,Number=A,Type=Float" in "".join(text)
    for words in ("negative: the model finds ALT less likely", f"Window of {WINDOW} bases"):
        assert words in "".join(text)
    counted = Counter(variants(folders["megadna"], path, FASTA, window=WINDOW).status)
    assert counted == Counter(STATUS.replace(" ", ",").split(","))


def test_a_real_file_in_every_packing_gives_the_same_rows(folders, tmp_path):
    """779 records of 1000 Genomes: contig and header disagree, some ALTs are symbols. bgzip, gzip, text, BCF."""
    text = gzip.decompress(VCF.read_bytes())
    (tmp_path / "a.vcf").write_bytes(text)
    (tmp_path / "a.vcf.gz").write_bytes(gzip.compress(text))
    declared = text.replace(b"#CHROM", b"##contig=<ID=z>\n#CHROM", 1)
    (tmp_path / "declared.vcf").write_bytes(declared)
    with pysam.VariantFile(str(tmp_path / "declared.vcf")) as one:
        other = pysam.VariantFile(str(tmp_path / "a.bcf"), "wb", header=one.header)
        for row in one:
            other.write(row)
        other.close()
    found = variants(folders["megadna"], VCF, FASTA, window=WINDOW)
    assert Counter(found.status) == {"ok": 767, "not_chosen": 13, "symbolic": 2}
    for name in ("a.vcf", "a.vcf.gz", "a.bcf"):
        again = variants(folders["megadna"], tmp_path / name, FASTA, window=WINDOW)
        pd.testing.assert_frame_equal(again, found)
    run(folders["megadna"], VCF, tmp_path / "o.vcf.gz", "--window", WINDOW)
    run(folders["megadna"], VCF, tmp_path / "o.tsv", "--window", WINDOW)
    run(folders["megadna"], VCF, tmp_path / "o.parquet", "--window", WINDOW)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "o.parquet"), found)
    table = pd.read_csv(tmp_path / "o.tsv", sep="\t", keep_default_na=False, na_values={"llr": "", "pos": ""})
    assert table.contig.tolist() == found.contig.tolist() and table.alt.tolist() == found.alt.tolist()
    np.testing.assert_allclose(table.llr, found.llr, rtol=1e-8)
    with pysam.TabixFile(str(tmp_path / "o.vcf.gz")) as indexed:
        rows = list(indexed.fetch("z", 19_000, 20_000))
    inside = found[(found.pos > 19_000) & (found.pos <= 20_000)]
    rows = [row for row in rows if int(row.split("\t")[1]) > 19_000]  # a <CN0> before that ends far after it
    tags = [value for row in rows for value in row.split("MEGADNA_LLR=")[1].split(";")[0].split(",")]
    right = ["." if np.isnan(value) else f"{value:.6g}" for value in inside.llr]
    assert tags == right and len(right) > 20


def test_contigs_named_otherwise_and_other_lengths(folders, tmp_path, caplog):
    """chr1 is 1; chrM is MT unless the header states another length; an equal name of another length is said."""
    (tmp_path / "g.fa").write_text(">1\n" + "ACGTTGCA" * 10 + "\n>MT\n" + "GATTACA" * 10 + "\n>2\n" + "AC" * 30 + "\n")
    rows = [("chr1", 9, "A", "C"), ("chrM", 8, "G", "C"), ("2", 3, "A", "T")]
    path = vcf(tmp_path / "a.vcf", *rows)
    found = variants(folders["megadna"], path, tmp_path / "g.fa", window=11)
    assert found.status.tolist() == ["ok"] * 3 and found.contig.tolist() == ["chr1", "chrM", "2"]
    assert "chr1 -> 1, chrM -> MT" in caplog.text and "chrM of hg19 (16,571) is another sequence" in caplog.text
    caplog.clear()
    contigs = "##contig=<ID=chrM,length=71>\n##contig=<ID=2,length=61>\n##contig=<ID=chr1,length=80>\n"
    path = vcf(tmp_path / "b.vcf", *rows, contigs=contigs)
    found = variants(folders["megadna"], path, tmp_path / "g.fa", window=11)
    assert found.status.tolist() == ["ok", "unknown_contig", "ok"]
    assert "chrM has 71 bases by its header, MT of" in caplog.text
    assert "contig 2 has 61 bases by its header" in caplog.text and "another version or a part of it?" in caplog.text


def test_another_assembly(folders, genome, tmp_path, caplog, capsys):
    wrong = {"A": "C", "C": "G", "G": "T", "T": "A"}
    rows = [("z", at + 1, genome[at] if at % 3 else wrong[genome[at]], "N") for at in range(10, 40)]
    path = vcf(tmp_path / "a.vcf", *rows)
    found = variants(folders["megadna"], path, FASTA, window=WINDOW)
    assert Counter(found.status) == {"ambiguous": 20, "ref_mismatch": 10}
    assert "at 10 of 30 records" in caplog.text
    path = vcf(tmp_path / "b.vcf", *rows[2::3], *rows[:12])
    with pytest.raises(SystemExit):
        run(folders["megadna"], path, tmp_path / "o.tsv")
    assert "at 14 of 22 records (line 3, z:13, REF" in capsys.readouterr().err


def test_around_n_and_next_to_long_alleles(folders, tmp_path):
    """A base whose every k-mer has an N gets no prediction; N elsewhere in the window does not matter."""
    text = "ACGTACGGTCATNANTTACGATTACAGGATCC" + "N" * 40 + "ACGTTGCAAC" * 5
    (tmp_path / "g.fa").write_text(f">c\n{text.lower()}\n")
    rows = [("c", 14, "A", "C"), ("c", 12, "T", "G"), ("c", 73, "A", "C"), ("c", 2, "C", "A")]
    rows += [("c", 20, text[19:29], text[19:29][::-1])]
    path = vcf(tmp_path / "a.vcf", *rows)
    found = variants(folders["dnabert"], path, tmp_path / "g.fa", window=15)
    assert found.status.tolist() == ["no_prediction", "ok", "ok", "ok", "too_long"]
    assert found.llr.notna().tolist() == [False, True, True, True, False]
    assert variants(folders["megadna"], path, tmp_path / "g.fa", window=15).status.tolist()[0] == "ok"


def test_a_file_without_records(folders, tmp_path):
    path = vcf(tmp_path / "a.vcf")
    assert len(variants(folders["megadna"], path, FASTA)) == 0
    run(folders["megadna"], path, tmp_path / "o.vcf.gz")
    run(folders["megadna"], path, tmp_path / "o.tsv")
    assert (tmp_path / "o.tsv").read_text().startswith("contig\tpos\tref")
    with pysam.VariantFile(str(tmp_path / "o.vcf.gz")) as rows:
        assert list(rows) == []


@pytest.mark.parametrize("ending", ["vcf.gz", "parquet"])
def test_a_stopped_command_goes_on(ending, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ALLELES", 150)
    (tmp_path / "n.bed").write_text("z\t1000\t1120\n")
    more = ("--window", WINDOW, "--neutral", tmp_path / "n.bed")
    whole, output = tmp_path / "one" / f"o.{ending}", tmp_path / "two" / f"o.{ending}"
    run(folders["megadna"], VCF, whole, *more)
    written = []
    write = outputs.parquet.write_table

    def stop_at_the_fifth(table, part, **options):
        written.append(part)
        if len(written) == 5:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_fifth)
    with pytest.raises(SystemExit):
        run(folders["megadna"], VCF, output, *more)
    assert not output.exists() and len(list(tmp_path.glob("two/*.parts/part-*"))) == 4
    run(folders["megadna"], VCF, output, *more)
    assert whole.read_bytes() == output.read_bytes()
    assert len(written) == 5 + 5 and not list(tmp_path.glob("two/*.parts"))  # 3 parts of neutral sites, 6 of records


def test_mistakes_are_one_line(folders, genome, tmp_path, capsys):
    good = vcf(tmp_path / "a.vcf", ("z", 11, genome[10], "A" if genome[10] != "A" else "C"))
    (tmp_path / "bare.vcf").write_text(f"z\t11\t.\t{genome[10]}\tN\n")
    vcf(tmp_path / "other.vcf", ("7", 11, "A", "C"))
    vcf(tmp_path / "twice.vcf", ("z", 11, genome[10], "N"), contigs="##INFO=<ID=MEGADNA_LLR,Number=A>\n")
    (tmp_path / "past.bed").write_text("z\t29000\t31000\n")
    (tmp_path / "there.tsv").write_text("")
    cases = [
        (tmp_path / "none.vcf", "o.tsv", [], "none.vcf: no such file or folder (--vcf)"),
        (good, "o.txt", [], "its ending must be one of .vcf.gz, .tsv, .parquet"),
        (good, "there.tsv", [], "exists; choose another --output"),
        (good, "o.tsv", ["--window", "30"], "--window 30: must be odd"),
        (good, "o.tsv", ["--window", "201"], "--window 201: the context of"),
        (good, "o.tsv", ["--scores", "llr", "llr"], "name each score once"),
        (good, "o.tsv", ["--scores", "odds"], "odds"),
        (good, "o.tsv", ["--scores", "pll", "--neutral", str(tmp_path / "past.bed")], "--neutral calibrates llr"),
        (good, "o.tsv", ["--neutral", str(tmp_path / "past.bed")], "past.bed: line 1: z ends at 30,000"),
        (tmp_path / "bare.vcf", "o.vcf.gz", [], "no #CHROM line with INFO, so it cannot be written as VCF"),
        (tmp_path / "other.vcf", "o.tsv", [], "no contig of it is in"),
        (tmp_path / "twice.vcf", "o.vcf.gz", [], "has tags MEGADNA_... already"),
        (FASTA, "o.tsv", [], "line 1: not a VCF record"),
    ]
    for path, output, more, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run(folders["megadna"], path, tmp_path / output, *more)
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("o.*"))


def test_a_headerless_file_of_five_columns(folders, genome, tmp_path):
    rows = [(11, genome[10], "N"), (12, genome[11], f"{genome[11]}AC"), (13, genome[12], "ACGT".strip(genome[12])[0])]
    (tmp_path / "a.vcf").write_text("".join(f"z\t{pos}\tx\t{ref}\t{alt}\n" for pos, ref, alt in rows))
    run(folders["megadna"], tmp_path / "a.vcf", tmp_path / "o.tsv")
    assert pd.read_csv(tmp_path / "o.tsv", sep="\t").status.tolist() == ["ambiguous", "not_chosen", "ok"]


def test_pysam_is_needed_for_its_formats_alone(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("megadna.downstream.options.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run(folders["megadna"], VCF, tmp_path / "o.vcf.gz")
    assert "pysam is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(folders, tmp_path):
    """Both in processes of their own: sums of fp32 may round otherwise where other tests have left torch's settings."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name, launcher in (("one", []), ("two", torchrun)):
        output = tmp_path / f"{name}.vcf.gz"
        named = {"--model": folders["megadna"], "--vcf": VCF, "--genome": FASTA, "--output": output}
        words = [str(word) for pair in named.items() for word in pair]
        command = [sys.executable, *launcher, "-m", "megadna", "variants", *words, "--window", str(WINDOW)]
        subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "one.vcf.gz").read_bytes() == (tmp_path / "two.vcf.gz").read_bytes()


def test_positions_beyond_tbi_and_files_that_are_not_sorted(folders, genome, tmp_path, caplog):
    one = [("z", 11, genome[10], "N"), ("z", 12, genome[11], "N")]
    run(folders["megadna"], vcf(tmp_path / "a.vcf", *one, ("far", 2**29 + 5, "A", "C")), tmp_path / "a.vcf.gz")
    with pysam.TabixFile(str(tmp_path / "a.vcf.gz"), index=str(tmp_path / "a.vcf.gz.csi")) as indexed:
        assert len(list(indexed.fetch("far", 2**29, 2**29 + 10))) == 1
    run(folders["megadna"], vcf(tmp_path / "b.vcf", *one[::-1]), tmp_path / "b.vcf.gz")
    run(folders["megadna"], vcf(tmp_path / "c.vcf", one[0], ("y", 1, "A", "C"), one[1]), tmp_path / "c.vcf.gz")
    assert not [path for name in "bc" for path in tmp_path.glob(f"{name}.vcf.gz.*")]
    assert caplog.text.count("not sorted, so it gets no index") == 2


MEASURED = """
import sys
from megadna.cli import main
main(["variants", *sys.argv[1:]])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(folders, genome, tmp_path):
    """400,000 gVCF blocks, and lines of 200 kB of genotypes."""
    header = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ta\n"
    with (tmp_path / "a.vcf").open("w") as file:
        file.write(header)
        for number in range(400_000):
            at = number * 29_000 // 400_000
            file.write(f"z\t{at + 1}\t.\t{genome[at]}\t<NON_REF>\t.\t.\tEND={at + 1}\tGT\t0/0\n")
    genotypes = "\t0|0" * 50_000
    with (tmp_path / "b.vcf").open("w") as file:
        file.write(header)
        for at in range(400):
            alts = f"<NON_REF>,{'ACGTA'['ACGT'.index(genome[at]) + 1]}"
            file.write(f"z\t{at + 1}\t.\t{genome[at]}\t{alts}\t.\t.\t.\tGT{genotypes}\n")
    peaks = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for path in (VCF, tmp_path / "a.vcf", tmp_path / "b.vcf"):
        named = {
            "--model": folders["megadna"],
            "--vcf": path,
            "--genome": FASTA,
            "--output": tmp_path / f"{path.name[0]}.vcf.gz",
        }
        words = [str(word) for pair in named.items() for word in pair]
        command = [sys.executable, "-c", MEASURED, *words, "--window", str(WINDOW)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        peaks.append(int(result.stdout.splitlines()[-1]))
    assert max(peaks) < peaks[0] + 150, peaks


def test_one_strand_alone_gives_no_score(folders, genome, tmp_path):
    """Words of three bases: of a window of 31 bases the last is in none, on the reverse strand the contig's first."""
    path = vcf(tmp_path / "a.vcf", ("z", 1, genome[0], "A" if genome[0] != "A" else "C"))
    (found,) = variants(folders["blocked"], path, FASTA, window=WINDOW).itertuples()
    assert found.status == "no_prediction" and np.isnan(found.llr) and not np.isnan(found.llr_forward)


def test_bf16_is_close(folders, tmp_path):
    one, other = (variants(folders["megadna"], VCF, FASTA, window=WINDOW, precision=p) for p in ("fp32", "bf16"))
    assert 0 < (one.llr - other.llr).abs().max() < 0.1
    assert one.llr.corr(other.llr, method="spearman") > 0.99
