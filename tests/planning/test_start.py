"""`megadna start`: it finds what preprocess takes, chooses by its rules, and writes what train reads."""

import gzip
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from megadna.arguments import load_config
from megadna.commands import preprocess
from megadna.commands.start import _lines, _yaml, main
from megadna.data.inputs import find_sources
from megadna.data.manifest import load_manifest
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError
from megadna.planning.hardware import GPUS
from megadna.planning.layouts import evaluate_layout
from megadna.planning.start import (
    HELD_OUT_BASES,
    MOST_PASSES,
    ROWS,
    SHAPE,
    SHARE,
    SIZES,
    TOKENS_PER_PARAMETER,
    Genomes,
    choose,
    survey,
)

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
CPU = ["--gpu", "cpu", "--gpus", "2", "--hours", "1"]


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).symlink_to(DATA / name)
    return path


def genomes_of(bases: float, **counts: int) -> Genomes:
    return Genomes([("/a.fa", "a", "")], Counter(kept=int(bases), contigs=5, **counts), [])


def next_commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  megadna ")]


@pytest.mark.parametrize("name", ["demo", "megadna-86m", "aido-dna-300m", "aido-dna-7b"])
def test_the_sizes_are_those_of_the_shipped_configs(name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    *shape, lr, tokens = SIZES[name]
    assert shape == [getattr(config.model, key) for key in SHAPE] and lr == config.train.lr
    if name != "demo":
        assert tokens == config.train.global_batch_size * int(config.data.sequence_length)


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
    (source,), _ = find_sources(options)
    assert source.path == folder / "lambda.fa.gz" and source.name == "lambda"


def test_genomes_of_one_species_do_not_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same genome twice under two names: held-out chunks have no copy left in train."""
    folder = folder_of(tmp_path / "genomes", "mgenitalium_G37.fa.gz")
    (folder / "copy.fa").write_bytes(gzip.decompress((folder / "mgenitalium_G37.fa.gz").read_bytes()))
    main([str(folder), *CPU, "--output", str(tmp_path / "first")])
    command = next_commands(capsys.readouterr().out)[0]
    assert "--allow_related" in command and command[-1] == "drop_from_train"
    preprocess.main(command[1:])
    splits = load_manifest(tmp_path / "first" / "dataset").leakage["splits"]
    assert splits and all(row["flagged"] == 0 for row in splits.values())


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


@pytest.mark.parametrize(("bases", "hours", "wanted"), [(1e5, 24, "bases"), (1e9, 0.01, "hours"), (1e9, 24, "")])
def test_the_warning_names_what_is_short(bases: float, hours: float, wanted: str) -> None:
    genomes = genomes_of(bases)
    text = "\n".join(_lines(genomes, choose(genomes, 2, hours, None)))
    assert re.findall(r"this model needs more (.*)", text) == [wanted] * bool(wanted)


def test_what_the_genomes_are_like_decides_how_they_are_read(tmp_path: Path) -> None:
    plain = choose(genomes_of(1e8), 1, 1, GPUS["h100"]).config.data
    assert (plain.packing, plain.lower_case_weight, plain.reverse_complement) == (False, 1.0, 0.5)
    masked = choose(genomes_of(1e8, soft_masked=40_000_000), 1, 1, GPUS["h100"]).config.data
    assert masked.lower_case_weight == 0.1
    drafts = Genomes([("/a.fa", "a", "")], Counter(kept=10**8, contigs=10**5), [])
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nowhere"], "nowhere: no such folder"),
        (["{}/fine/a.fa"], "a.fa: is a file; name the folder that holds it"),
        (["{}/empty"], "empty: no FASTA file in this folder"),
        (["{}/protein"], "line 2: 'F' is no nucleotide code"),
        (["{}/transcripts"], "no genome, only transcripts by their names"),
        (["{}/bare"], "no base is left to train on"),
        (["{}/fine", "--gpu", "v100"], "--gpu v100: not one of a100-40, .*, cpu"),
        (["{}/fine", "--gpus", "0"], "must be positive"),
        (["{}/fine", "--hours", "1e-6", *CPU[:2]], "too little for one step"),
        (["{}/fine", "--output", "{}/empty/.."], "not empty; choose another --output"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, words: list[str], message: str) -> None:
    for name, text in (("protein", ">p\nMFEL\n"), ("bare", ">a\n"), ("fine", ">a\nACGTACGT\n")):
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
