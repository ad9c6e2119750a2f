"""`megadna start`: it finds what preprocess takes, chooses by its rules, and writes what train reads."""

import gzip
import importlib.util
import re
import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megadna.arguments import load_config
from megadna.commands import launch, preprocess
from megadna.commands.start import _lines, _yaml, main
from megadna.data.inputs import find_sources
from megadna.data.manifest import load_manifest
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError
from megadna.planning.layouts import evaluate_layout
from megadna.planning.start import (
    FEW_STEPS,
    LEAST_BATCH,
    MOST_PASSES,
    MUON_LR,
    ROWS,
    SHAPE,
    SHARE,
    SIZES,
    TOKENS_PER_PARAMETER,
    WARMUP,
    choose,
    peak_rate,
)
from megadna.planning.step_time import GPUS
from megadna.planning.survey import HELD_OUT_BASES, Genomes, Relations, Sketches, survey

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
CPU = ["--gpu", "cpu", "--gpus", "2", "--hours", "1"]


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).symlink_to(DATA / name)
    return path


def genomes_of(bases: float, **counts: int) -> Genomes:
    return Genomes([("/a.fa", "a", "")], Counter(kept=int(bases), contigs=5, **counts))


def next_commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  megadna ")]


@pytest.mark.parametrize("name", ["demo", "megadna-86m", "aido-dna-300m", "aido-dna-7b"])
def test_the_sizes_are_those_of_the_shipped_configs(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    *shape, lr, lr_tokens, most = SIZES[name]
    tokens = config.train.global_batch_size * int(config.data.sequence_length)
    assert lr_tokens == tokens
    assert shape == [getattr(config.model, key) for key in SHAPE] and lr == config.train.lr
    assert config.train.optimizer == ("adamw" if name.startswith("aido") else "muon")
    assert config.train.muon_lr == MUON_LR
    if name != "demo":
        assert most == tokens


@pytest.mark.parametrize(("num_ranks", "gpu"), [(1, "cpu"), (2, "cpu"), (3, "cpu"), (2, "h100")])
def test_every_plan_has_a_batch_a_rate_that_goes_with_it_and_a_warm_up(num_ranks: int, gpu: str) -> None:
    """From minutes to weeks: at least 8 sequences a step; the rate is the recipe's times the root of the batch's share
    of the recipe's; the warm-up follows an override of the steps."""
    for hours in (0.01, 0.1, 1, 24, 500) if gpu == "cpu" else (0.01, 24):
        start = choose(genomes_of(1e9), num_ranks, hours, GPUS.get(gpu))
        train, (*_, lr, tokens, _) = start.config.train, SIZES[start.size]
        assert train.global_batch_size >= LEAST_BATCH and train.global_batch_size % num_ranks == 0
        assert train.lr == pytest.approx(lr * min(1, (start.step_tokens / tokens) ** 0.5), rel=0.03)
        assert train.lr == peak_rate(start.size, start.step_tokens) and train.min_lr < train.lr
        if train.optimizer == "muon":
            assert train.muon_lr / MUON_LR == pytest.approx(train.lr / lr, rel=0.07)  # both have two digits
        for steps in (train.steps, 7, 1000):
            warm_up = replace(train, steps=steps).samples_of_warmup / train.global_batch_size
            assert steps * WARMUP <= warm_up < steps * WARMUP + 1
        few = "steps are too few" in "\n".join(_lines(genomes_of(1e9), start))
        assert few == (train.steps < FEW_STEPS)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_a_cpu_trains_in_bf16_where_that_is_faster(has_instructions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With instructions for it and from a width of 128 on; GPUs train in bf16."""
    monkeypatch.setattr("megadna.planning.start.has_bf16_instructions", lambda: has_instructions)
    found = [choose(genomes_of(1e9), 2, hours, None) for hours in (0.01, 1000)]
    assert found[0].size == "tiny" and found[1].config.model.hidden_size >= 128
    assert [start.config.engine.precision for start in found] == ["fp32", "bf16" if has_instructions else "fp32"]
    assert choose(genomes_of(1e9), 2, 24, GPUS["h100"]).config.engine.precision == "bf16"


def test_the_sheet_builds_the_dataset_that_was_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alternate contigs are left out of both; the config is read back and fits the dataset's chunks."""
    folder = folder_of(tmp_path / "genomes", "lambda.fa.gz", "human_mt.fa.gz", "mgenitalium_G37.fa.gz")
    (folder / "Danio_rerio.GRCz11.fa").write_text(">1\n" + "ACGTTGCA" * 900 + "\n>1_alt\n" + "ACCT" * 50 + "\n")
    (folder / "Danio_rerio.GRCz11.cdna.all.fa.gz").write_bytes(gzip.compress(b">t\nACGT\n"))
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    text = capsys.readouterr().out
    assert "alternate contigs of 200" in text and "cdna" in text and "passes" in text
    commands = next_commands(text)
    assert [words[0] for words in commands] == ["preprocess", "inspect", "train", "evaluate", "export", "report"]
    preprocess.main(commands[0][1:])
    manifest = load_manifest(tmp_path / "first" / "dataset")
    assert {source.name: source.species for source in manifest.sources} == {
        "Danio_rerio.GRCz11": "Danio rerio",
        "human_mt": "",
        "lambda": "Enterobacteria phage",
        "mgenitalium_G37": "Mycoplasma genitalium",
    }
    found = survey(folder)
    assert found.bases["kept"] == sum(source.kept for source in manifest.sources)
    assert found.bases["contigs"] == sum(source.records for source in manifest.sources)
    assert found.bases["contig_alternate"] == sum(
        source.dropped.get("contig_alternate", 0) for source in manifest.sources
    )
    assert found.train_bases == pytest.approx(manifest.bases["train"], rel=0.15)
    config = load_config(tmp_path / "first" / "config.yaml")
    assert config.data_parallel_size(2) == 2 and manifest.chunk_length % (int(config.data.sequence_length) - 2) == 0
    assert all(word in commands[2] for word in (f"{tmp_path}/first/config.yaml", f"{tmp_path}/first/dataset"))


def test_a_folder_with_a_tab_in_its_name_gives_a_sheet_that_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / 'a\tb"c', "lambda.fa.gz")
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    options = PreprocessOptions(sample_sheet=tmp_path / "first" / "samples.tsv", output=tmp_path / "o")
    (source,) = find_sources(options)
    assert source.path == folder / "lambda.fa.gz" and source.name == "lambda"


def test_genomes_of_one_species_do_not_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A genome and a copy of one base in a hundred changed: held-out chunks have no copy left in train."""
    folder = folder_of(tmp_path / "genomes", "mgenitalium_G37.fa.gz")
    (folder / "strain.fa").write_bytes(b">strain\n" + mutated(genitalium(), 1) + b"\n")
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    holds_split(next_commands(capsys.readouterr().out)[0], tmp_path)


def genitalium() -> bytes:
    """The bases of M. genitalium."""
    text = gzip.decompress((DATA / "mgenitalium_G37.fa.gz").read_bytes())
    return b"".join(text.split(b"\n")[1:]).upper()


def mutated(bases: bytes, seed: int, share: float = 0.01) -> bytes:
    """Other bases at random positions."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(bases, np.uint8).copy()
    hit = np.flatnonzero(rng.random(len(letters)) < share)
    letters[hit] = np.frombuffer(b"ACGT", np.uint8)[rng.integers(4, size=len(hit))]
    return letters.tobytes()


def holds_split(command: list[str], folder: Path) -> None:
    assert "--allow_related" in command and command[-1] == "drop_from_train"
    preprocess.main(command[1:])
    manifest = load_manifest(folder / "first" / "dataset")
    assert manifest.chunks["train"] and all(row["flagged"] == 0 for row in manifest.leakage["splits"].values())


def test_near_identical_genomes_inside_one_file_do_not_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three strains, one of them reverse-complemented, in one FASTA next to another genome: named, and split so that it
    holds."""
    folder = folder_of(tmp_path / "genomes", "lambda.fa.gz")
    bases = genitalium()[:300_000]
    other = mutated(bases, 3).translate(bytes.maketrans(b"ACGT", b"TGCA"))[::-1]
    (folder / "broken.fa").write_bytes(b">broken\n" + bases + b"\n>p\nMFEL\n")  # left out, whatever it shares
    strains = {"one": bases, "two": mutated(bases, 2), "three": other}
    (folder / "strains.fa").write_bytes(b"".join(b">%s x\n%s\n" % (k.encode(), v) for k, v in strains.items()))
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    text = capsys.readouterr().out
    assert "near-identical, or partly so: strains.fa:one, strains.fa:two, strains.fa:three\n" in text
    assert re.search(r"held out: 5(\.\d)?% .*near-identical or related genomes", text)
    holds_split(next_commands(text)[0], tmp_path)


def test_unrelated_records_are_not_related(tmp_path: Path) -> None:
    """Two thirds of shared sequence are found across files of torn contigs; chance, N and short records are not."""
    folder = folder_of(tmp_path / "genomes", "lambda.fa.gz", "human_mt.fa.gz", "yeast_I_VI_VIII.fa.gz")
    assert survey(folder).relations.groups == []
    bases = genitalium()[:100_000]
    (folder / "a.fa").write_bytes(b">a\n" + bases)
    torn = [bases[at : at + 400] for at in range(0, 60_000, 400)]
    (folder / "b.fa").write_bytes(b"".join(b">c%d\n%s\n" % (n, part) for n, part in enumerate(torn)))
    assert survey(folder).relations.groups == [["a.fa", "b.fa"]]


def test_sketches_stay_small_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a tenth of the hashes the same two records are found."""
    found = []
    bases = np.frombuffer(genitalium()[:200_000], np.uint8)
    for most in (1 << 22, 1000):
        monkeypatch.setattr("megadna.planning.survey.MOST_HASHES", most)
        sketches = Sketches()
        sketches.start_file("f")
        for number, letters in enumerate((bases[:100_000], bases[100_000:], bases[50_000:150_000])):
            for record in sketches.add(letters, np.array([number]), np.array([len(letters)])):
                sketches.name(record, str(record))
        assert sketches._count <= most
        found.append(sketches.relations())
    assert found[0].groups == found[1].groups == [["0", "1", "2"]]
    assert found[0].redundancy == pytest.approx(1.5, rel=0.05) and found[1].redundancy == pytest.approx(1.5, rel=0.1)
    assert Relations().share_left(0.2) == 1.0 == Relations().redundancy
    assert Relations(copies=Counter({1: 50, 3: 50})).share_left(0.2) == pytest.approx((1 + 0.64) / 2)


def test_what_is_ignored_is_named_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "genomes", "lambda.fa.gz")
    lines = gzip.decompress((DATA / "lambda.fa.gz").read_bytes()).split(b"\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "again.fa").write_bytes(lines[0] + b"\n" + b"".join(lines[1:]).lower())
    (folder / "sub" / "link.fa").symlink_to(DATA / "lambda.fa.gz")
    (folder / "sub" / "round").symlink_to(folder)
    (folder / "lost.fa").symlink_to(tmp_path / "nowhere")
    wrong = {
        "nothing.fa": b"", "text.fa": b"hello\n", "protein.fa": b">p\nMFEL\n", "bare.fa": b">a\n",
        "n.fa": b">a\nNNNN\n",
        "cut.fa.gz": (DATA / "lambda.fa.gz").read_bytes()[:5000], "decoy.fa": b">x_decoy\nACGT\n", "genes.gff3": b"",
        "table.tsv": b"", "reads.fastq.gz": b"", "old.fa.bz2": b"", "proteins.faa": b"", "lambda.fa.gz.fai": b"",
        "README": b"", "x.rna.fna": b">t\nACGT\n", "GCF_1_assembly_report.txt": b"",
    }  # fmt: skip
    for name, content in wrong.items():
        (folder / name).write_bytes(content)
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    text = capsys.readouterr().out
    assert "found: 1 files, 1 contigs, 48,502 usable bases\n" in text
    rows = dict(row.split("\t") for row in (tmp_path / "first" / "ignored.tsv").read_text().splitlines())
    expected = {
        "sub/again.fa": "same sequences as lambda.fa.gz", "sub/link.fa": "same file as lambda.fa.gz",
        "nothing.fa": "empty",
        "text.fa": "line 1", "protein.fa": "line 2: 'F' is not a nucleotide code", "bare.fa": "holds no base",
        "n.fa": "holds N alone", "cut.fa.gz": "cut short", "decoy.fa": "every contig is left out (decoy)",
        "genes.gff3": "annotation", "table.tsv": "table", "reads.fastq.gz": "reads", "old.fa.bz2": "archive",
        "proteins.faa": "proteins", "lambda.fa.gz.fai": "index", "README": "no sequence file",
        "x.rna.fna": "transcripts",
        "lost.fa": "link to nothing",
    }  # fmt: skip
    assert rows.keys() == {"path", *expected}
    for name, reason in expected.items():
        assert reason in rows[name] and f"{name}" in text and rows[name] in text


def test_usable_bases_are_those_of_the_contigs_that_are_kept(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "a.fa").write_text(">1\nNNNNacgtACGTRY\n>1_alt\nNNNNNNacg\n>2\nnACGTU\n")
    found = survey(tmp_path / "g")
    assert dict(found.bases) == {"kept": 20, "n": 7, "soft_masked": 4, "contigs": 3, "contig_alternate": 9}
    assert found.usable == 13


@pytest.mark.parametrize(("num_ranks", "gpu"), [(1, "h100"), (8, "a100-40"), (64, "h100"), (2, "cpu")])
def test_the_choice_keeps_to_its_rules(num_ranks: int, gpu: str) -> None:
    """Enough tokens a parameter, not too many passes, within the hours and the memory; more of either is never less."""
    sizes = list(SIZES)
    chosen = []
    for bases in (1e6, 1e8, 1e10):
        start = choose(genomes_of(bases), num_ranks, 24, GPUS.get(gpu))
        config = start.config
        assert start.passes <= MOST_PASSES * 1.0001 and start.hours <= 24 * SHARE * 1.0001
        assert start.ratio >= TOKENS_PER_PARAMETER or start.size == "demo"
        assert config.data_parallel_size(num_ranks) >= 1
        if gpu != "cpu":
            layout = evaluate_layout(config, ROWS, 4000, num_ranks, GPUS[gpu])
            assert layout.fits and layout.time.seconds * config.train.steps / 3600 == pytest.approx(
                start.hours, rel=0.01
            )
        chosen.append(sizes.index(start.size))
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]


@pytest.mark.parametrize(("bases", "hours", "wanted"), [(1e4, 24, "bases"), (1e9, 0.001, "hours"), (1e9, 24, "")])
def test_the_warning_names_what_is_short(bases: float, hours: float, wanted: str) -> None:
    genomes = genomes_of(bases)
    text = "\n".join(_lines(genomes, choose(genomes, 2, hours, None)))
    assert re.findall(r"this model needs more (.*)", text) == [wanted] * bool(wanted)


def test_what_the_genomes_are_like_decides_how_they_are_read(tmp_path: Path) -> None:
    plain = choose(genomes_of(1e8), 1, 1, GPUS["h100"]).config.data
    assert (plain.packing, plain.lower_case_weight, plain.reverse_complement) == (False, 1.0, 0.5)
    masked = choose(genomes_of(1e8, soft_masked=40_000_000), 1, 1, GPUS["h100"]).config.data
    assert masked.lower_case_weight == 0.1
    drafts = Genomes([("/a.fa", "a", "")], Counter(kept=10**8, contigs=10**5))
    start = choose(drafts, 8, 1, GPUS["h100"])
    assert start.config.data.packing
    (tmp_path / "config.yaml").write_text("\n".join(_yaml(start.config)))
    assert load_config(tmp_path / "config.yaml") == start.config
    assert [genomes_of(bases).held_out for bases in (1e5, 20 * HELD_OUT_BASES, 1e12)] == [0.1, 0.05, 0.01]


def test_more_gpus_than_a_node_has_go_through_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "genomes", "lambda.fa.gz")
    main([str(folder), "--gpus", "12", "--output", str(tmp_path / "first")])
    command = next_commands(capsys.readouterr().out)[2]
    assert command[:6] == ["launch", "slurm", "--nodes", "2", "--ranks_per_node", "6"]
    launch.main([*command[1:], "--dry_run"])
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in script and "#SBATCH --gpus-per-node=6\n" in script
    key = (
        r"global_batch_size \(\d+\) must be divisible .* x 35 data-parallel ranks: take fewer ranks, or --train.global_"
    )
    with pytest.raises(UserError, match=key):
        launch.main([*command[1:2], "--nodes", "5", "--ranks_per_node", "7", *command[6:], "--dry_run"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nowhere"], "nowhere: no such folder"),
        (["{}/fine/a.fa"], "a.fa: is a file; name the folder that holds it"),
        (["{}/empty"], "empty: no genome to train on in 0 files"),
        (["{}/protein"], "line 2: 'F' is not a nucleotide code"),
        (["{}/transcripts"], "no genome to train on in 1 files; rna.fna: transcripts by its name"),
        (["{}/bare"], "no genome to train on in 1 files; a.fa: holds no base"),
        (["{}/small"], "8 usable bases are too few"),
        (["{}/fine", "--gpu", "v100"], "--gpu v100: not one of a100-40, .*, cpu"),
        (["{}/fine", "--gpus", "0"], "must be positive"),
        (["{}/fine", "--hours", "1e-6", *CPU[:2]], "too little for one step"),
        (["{}/fine", "--output", "{}/empty/.."], "not empty; choose another --output"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, words: list[str], message: str) -> None:
    for name, text in (
        ("protein", ">p\nMFEL\n"),
        ("bare", ">a\n"),
        ("small", ">a\nACGTACGT\n"),
        ("fine", f">a\n{'ACGT' * 500}"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.fa").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "transcripts").mkdir()
    (tmp_path / "transcripts" / "rna.fna").write_text(">a\nACGT\n")
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp_path) for word in words]
    with pytest.raises(UserError, match=message):
        main([*words, *([] if "--output" in words else ["--output", str(tmp_path / "out")])])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_shortest_plan_without_a_warning_beats_composition(tmp_path: Path) -> None:
    """By tools/prove_start.py, which runs the printed commands; the table of its runs is in the documentation."""
    spec = importlib.util.spec_from_file_location("prove_start", ROOT / "tools" / "prove_start.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules["prove_start"] = tool
    spec.loader.exec_module(tool)
    proof = tool.prove(DATA / "mgenitalium_G37.fa.gz", 0.0105, tmp_path / "proof")
    assert FEW_STEPS <= proof.steps < 1.1 * FEW_STEPS and proof.worst < 0, proof
