"""The content of everything that was read decides whether a dataset, or a part of one, is the same."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import _sheet, build, fasta, genome

import megadna.data.builder
from megadna.data.builder import build_dataset
from megadna.data.manifest import load_manifest
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError

NOT_THIS = "it is not this dataset"
DEFAULTS = {"block_chunks": 2, "valid_fraction": 0.1, "test_fraction": 0.1}  # of `build`
COLUMNS = ("path", "genome", "species", "split")
ROWS = [("a.fa", "ga", "Aa aa", "train"), ("b.fa", "gb", "Bb bb", "test"), ("c.fa", "gc", "Cc cc", "valid")]
REPORT = "c\t{}\t1\tChromosome\tCM1.1\t=\tNC_1.1\tPrimary\t600\tchr1\n"


def inputs(folder):
    """Three genomes of one contig c, a sheet, a BED file and an assembly report; the options that name them."""
    for name in "abc":
        (folder / f"{name}.fa").write_bytes(fasta({"c": genome(600), "d": genome(600)}))
    (folder / "x.bed").write_text("c\t0\t100\n")
    (folder / "y.bed").write_text("c\t0\t500\nd\t0\t500\n")
    (folder / "b_assembly_report.txt").write_text(REPORT.format("assembled-molecule"))
    values = {"sample_sheet": _sheet(folder, ROWS, COLUMNS), "exclude_bed": folder / "x.bed"}
    return values | {"include_bed": folder / "y.bed", "chunk_length": 50}


CHANGES = {
    "split": lambda folder: _sheet(folder, [ROWS[0], (*ROWS[1][:3], "valid"), (*ROWS[2][:3], "test")], COLUMNS),
    "species": lambda folder: _sheet(folder, [*ROWS[:2], ("c.fa", "gc", "Dd dd", "valid")], COLUMNS),
    "exclude": lambda folder: (folder / "x.bed").write_text("c\t0\t200\n"),
    "include": lambda folder: (folder / "y.bed").write_text("c\t0\t500\nd\t0\t400\n"),
    "report": lambda folder: (folder / "b_assembly_report.txt").write_text(REPORT.format("alt-scaffold")),
    "new report": lambda folder: (folder / "a_assembly_report.txt").write_text(REPORT.format("alt-scaffold")),
    "no report": lambda folder: (folder / "b_assembly_report.txt").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_command_after_a_change_is_another_dataset(tmp_path, change):
    options = PreprocessOptions(output=tmp_path / "out", **inputs(tmp_path))
    first, built = build_dataset(options)
    again, built_again = build_dataset(options)
    assert built and not built_again and again == first
    _sheet(tmp_path, ROWS[::-1], COLUMNS)  # the order of its lines does not matter
    assert not build_dataset(options)[1]
    CHANGES[change](tmp_path)
    with pytest.raises(UserError, match=NOT_THIS):
        build_dataset(options)


def test_a_manifest_of_an_earlier_version_is_the_same_dataset_if_its_options_were(tmp_path):
    """Options that are gone since are read; at the values that builds have now, they make no difference."""
    values = inputs(tmp_path)
    build(tmp_path, **values)
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    gone = {"overlap": 0, "min_record": 1, "max_n_run": None, "ambiguous": "keep", "uracil": "t"}
    manifest["options"] |= gone | {"lines": False, "spaced_kmers": False, "max_containment": 0.2}
    file.write_text(json.dumps(manifest))
    assert not build_dataset(PreprocessOptions(output=tmp_path / "out", **DEFAULTS | values))[1]
    manifest["options"]["overlap"] = 10
    file.write_text(json.dumps(manifest))
    assert load_manifest(tmp_path / "out").options["overlap"] == 10
    with pytest.raises(UserError, match=NOT_THIS):
        build(tmp_path, **values)


def same_size_and_time(folder):
    file = folder / "a.fa"
    status = file.stat()
    file.write_bytes(fasta({"c": genome(600), "d": genome(600)}))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("change", [*CHANGES, "same size and time"])
def test_resume_does_not_mix_old_and_new(tmp_path, change):
    values = inputs(tmp_path)
    good = (tmp_path / "c.fa").read_bytes()
    (tmp_path / "c.fa").write_bytes(b">c\nAC!T\n")
    with pytest.raises(UserError, match="'!' is not a nucleotide"):
        build(tmp_path, **values)
    assert len(list((tmp_path / ".out.partial" / "new" / "parts").glob("*.json"))) == 2
    (tmp_path / "c.fa").write_bytes(good)
    CHANGES.get(change, same_size_and_time)(tmp_path)
    resumed = build(tmp_path, resume=True, **values)
    fresh = build(tmp_path, output="fresh", **values)
    assert resumed.dataset_id == fresh.dataset_id and resumed.sources == fresh.sources


def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch):
    values = inputs(tmp_path)
    real = megadna.data.builder.read_pieces

    def read(sources, *rest, **options):
        for found in real(sources, *rest, **options):
            if found.source == 1:
                sources[1].path.write_bytes(fasta({"c": genome(700), "d": genome(700)}))
            yield found

    monkeypatch.setattr(megadna.data.builder, "read_pieces", read)
    with pytest.raises(UserError, match=r"b\.fa: was changed while it was read"):
        build(tmp_path, **values)
    assert not (tmp_path / "out").exists()
