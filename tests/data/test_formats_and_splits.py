"""Every input format gives the same dataset; every way to split keeps what belongs together."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parent))

from test_mistakes import bgzf

import megadna.genome.pieces
from megadna.commands import inspect
from megadna.data.builder import build_dataset
from megadna.data.dataset import ChunkDataset
from megadna.data.manifest import SPLITS
from megadna.data.options import PreprocessOptions
from megadna.data.splits import region_split
from megadna.errors import UserError

DATA = Path(__file__).parents[1] / "data"
RNG = np.random.default_rng(7)


def genome(size, rng=RNG):
    return np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, size)].tobytes()


def fasta(records, width=60):
    return b"".join(
        b">" + name.encode() + b"\n" + b"".join(text[at : at + width] + b"\n" for at in range(0, len(text), width))
        for name, text in records.items()
    )


def build(folder, *inputs, output="out", **values):
    values = {"chunk_length": 50, "block_chunks": 2, "valid_fraction": 0.1, "test_fraction": 0.1} | values
    inputs = {"input": list(inputs)} if inputs else {}
    return build_dataset(PreprocessOptions(output=folder / output, **inputs, **values))[0]


def chunks(folder, output="out"):
    """{(source, contig, start): (letters, split)} of a dataset."""
    found = {}
    for split in SPLITS:
        if (folder / output / f"{split}.bin").exists():
            dataset = ChunkDataset(folder / output, split)
            for index in range(len(dataset)):
                place = dataset.locate(index)
                found[place.source, place.contig, place.start] = (bytes(dataset[index]), split)
    return found


def twobit(records):
    """A 2bit file, little-endian, written independently of the reader."""
    index, body = b"", b""
    offset = 16 + sum(1 + len(name) + 4 for name in records)
    for name, text in records.items():
        index += bytes([len(name)]) + name.encode() + struct.pack("<I", offset + len(body))
        runs = {}
        for kind, test in (("n", lambda c: c in b"Nn"), ("mask", lambda c: c >= 97)):
            flags = [False, *map(test, text), False]
            starts = [i for i in range(len(text)) if flags[i + 1] and not flags[i]]
            ends = [i for i in range(1, len(text) + 1) if flags[i] and not flags[i + 1]]
            runs[kind] = struct.pack(
                f"<I{2 * len(starts)}I", len(starts), *starts, *(b - a for a, b in zip(starts, ends, strict=True))
            )
        codes = ["TCAG".find(chr(c).upper()) % 4 for c in text] + [0] * 3
        packed = bytes(sum(codes[i + j] << (6 - 2 * j) for j in range(4)) for i in range(0, len(text), 4))
        body += struct.pack("<I", len(text)) + runs["n"] + runs["mask"] + struct.pack("<I", 0) + packed
    return struct.pack("<IIII", 0x1A412743, 0, len(records), 0) + index + body


@pytest.mark.parametrize("workers", [1, 2])
def test_every_format_gives_the_same_dataset(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 3000)
    records = {"a": genome(7001), "b": b"NNNNN" + genome(300).lower() + b"NN" + genome(61) + b"n" * 40, "c": genome(4)}
    text = fasta(records)
    files = {
        "x.fa": text,
        "x.fa.gz": gzip.compress(text[:3000]) + gzip.compress(text[3000:]),  # two gzip members
        "x.fna.bgz": bgzf(text, 777),
        "x.fasta.zst": zstandard.compress(text[:3000]) + zstandard.compress(text[3000:]),
        "x.2bit": twobit(records),
        "x.fas": text.replace(b"\n", b"\r\n"),
        "x.ffn": fasta(records, 100_000),
        "x.seq": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r"),  # the mark before UTF-8 text, lone CR
    }
    identities = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        identities[name] = build(tmp_path, tmp_path / name, workers=workers, overwrite=True).dataset_id
    assert len(set(identities.values())) == 1, identities


def test_tables(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [genome(size).decode() for size in (70, 120, 31)]
    (tmp_path / "t.csv").write_text("id,seq\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows)))
    with gzip.open(tmp_path / "u.tsv.gz", "wt") as file:
        file.write("seq\tlabel\n" + "".join(f"{row}\t1\n" for row in rows))
    parquet.write_table(pa.table({"x": [1, 2, 3], "seq": rows}), tmp_path / "v.parquet")
    plain = {"column": "seq", "valid_fraction": 0.0, "test_fraction": 0.0, "overwrite": True}
    for name in ("t.csv", "u.tsv.gz", "v.parquet"):
        build(tmp_path, tmp_path / name, **plain)
        letters = {}
        for (_, contig, _), (text, _) in sorted(chunks(tmp_path).items()):
            letters[contig] = letters.get(contig, "") + text.decode()
        assert letters == {f"row_{i + 1}": row for i, row in enumerate(rows)}, name
    with pytest.raises(UserError, match="row 2: 'J' is not a nucleotide"):
        (tmp_path / "t.csv").write_text("seq\nACGT\nACJT\n")
        build(tmp_path, tmp_path / "t.csv", **plain)


def test_standard_input(tmp_path, monkeypatch):
    import io

    text = fasta({"a": genome(5000)})
    (tmp_path / "x.fa").write_bytes(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    piped = build(tmp_path, Path("-"), output="piped")
    assert piped.dataset_id == build(tmp_path, tmp_path / "x.fa").dataset_id and piped.sources[0].name == "stdin"


def test_letter_policies(tmp_path):
    (tmp_path / "x.fa").write_bytes(b">a\nACGTRYKMryUu-*.acgtn" + genome(200) + b"\n")
    plain = {"valid_fraction": 0.0, "test_fraction": 0.0, "overwrite": True}
    for values, start in (
        ({}, b"ACGTRYKMryTtNNNacgtn"),
        ({"soft_mask": "fold"}, b"ACGTRYKMRYTTNNNACGTN"),
    ):
        manifest = build(tmp_path, tmp_path / "x.fa", **values, **plain)
        assert chunks(tmp_path)["x", "a", 0][0].startswith(start)
        assert manifest.sources[0].soft_masked == 8
        assert any("2 U were written as T" in note for note in manifest.notes)
        assert manifest.sources[0].other == {"R": 2, "Y": 2, "K": 1, "M": 1, "U": 2, "-": 1, "*": 1, ".": 1}


def test_primary_contigs(tmp_path):
    names = ["chr1", "chr1_KI270706v1_random", "chrUn_KI270302v1", "chr1_KI270762v1_alt", "chr6_apd_hap1", "chrEBV",
             "chrUn_JTFH01000001v1_decoy", "CHR_HSCHR1_1_CTG3", "chr11_KI270721v1_fix", "hs37d5", "MT"]  # fmt: skip
    (tmp_path / "x.fa").write_bytes(fasta({name: genome(400) for name in names}))
    manifest = build(tmp_path, tmp_path / "x.fa")
    assert {key[1] for key in chunks(tmp_path)} == {"chr1", "chr1_KI270706v1_random", "chrUn_KI270302v1", "MT"}
    assert manifest.sources[0].dropped == {
        "contig_alternate": 1200, "contig_decoy": 800, "contig_fix_patch": 400, "contig_virus": 400
    }  # fmt: skip
    build(tmp_path, tmp_path / "x.fa", contigs="chr.|MT", overwrite=True)
    assert {key[1] for key in chunks(tmp_path)} == {"chr1", "MT"}
    build(tmp_path, tmp_path / "x.fa", contigs="all", overwrite=True)
    assert {key[1] for key in chunks(tmp_path)} == set(names)


def test_assembly_report_decides(tmp_path):
    report = "# Assembly name: x\n# Sequence-Name\tSequence-Role\t...\n"
    rows = [
        ("1", "assembled-molecule", "NC_1.1"),
        ("HG1", "fix-patch", "NW_2.1"),
        ("A1", "alt-scaffold", "NT_3.1"),
        ("u", "unplaced-scaffold", "NT_4.1"),
    ]
    for name, role, refseq in rows:
        report += "\t".join([name, role, "1", "Chromosome", "na", "=", refseq, "Primary", "400", "na"]) + "\n"
    (tmp_path / "GCF_1_x_assembly_report.txt").write_text(report)
    source = tmp_path / "GCF_1_x_genomic.fna"
    source.write_bytes(fasta({row[2]: genome(1000) for row in rows}))
    manifest = build(tmp_path, source)
    assert {key[1] for key in chunks(tmp_path)} == {"NC_1.1", "NT_4.1"}
    assert manifest.sources[0].dropped == {"contig_alternate": 1000, "contig_fix_patch": 1000}


def test_region_split_has_its_share_and_ignores_other_genomes(tmp_path):
    blocks = np.arange(100_000)
    split = region_split(1, 77, blocks, 0.01, 0.02).reshape(-1, 100)
    assert ((split == 1).sum(axis=1) == 1).all() and ((split == 2).sum(axis=1) == 2).all()
    split = region_split(1, 77, blocks, 0.005, 0.013).reshape(-1, 100)
    assert abs((split == 1).mean() - 0.005) < 0.0005 and set((split == 2).sum(axis=1)) == {1, 2}
    keys = np.arange(50_000) * 7919
    assert abs((region_split(1, keys, keys * 0 + 3, 0.1, 0.1) == 1).mean() - 0.1) < 0.01  # short runs: the same share
    (tmp_path / "a.fa").write_bytes(fasta({f"a{i}": genome(40_000) for i in range(3)}))
    (tmp_path / "b.fa").write_bytes(fasta({"b": genome(30_000)}))
    build(tmp_path, tmp_path / "a.fa")
    alone = chunks(tmp_path)
    build(tmp_path, tmp_path / "b.fa", tmp_path / "a.fa", overwrite=True)
    assert {key: value for key, value in chunks(tmp_path).items() if key[0] == "a"} == alone


def test_contig_split(tmp_path):
    (tmp_path / "a.fa").write_bytes(fasta({f"chr{i}": genome(500) for i in range(60)}))
    build(tmp_path, tmp_path / "a.fa", split="contig", valid_fraction=0.2, test_fraction=0.2)
    by_contig = {}
    for key, (_, split) in chunks(tmp_path).items():
        by_contig.setdefault(key[1], set()).add(split)
    assert all(len(splits) == 1 for splits in by_contig.values())
    assert {split for splits in by_contig.values() for split in splits} == set(SPLITS)
    build(tmp_path, tmp_path / "a.fa", split="contig", valid_contigs="chr8", test_contigs="chr(20|21)", overwrite=True)
    named = {key[1]: split for key, (_, split) in chunks(tmp_path).items() if split != "train"}
    assert named == {"chr8": "valid", "chr20": "test", "chr21": "test"}
    few = build(tmp_path, tmp_path / "a.fa", split="contig", valid_fraction=1e-9, test_fraction=1e-9, overwrite=True)
    assert few.chunks["valid"] == few.chunks["test"] == 10
    assert sum("contig with the lowest hash" in note for note in few.notes) == 2


def _sheet(folder, rows, columns=("path", "genome", "species", "clade"), name="sheet.tsv"):
    (folder / name).write_text("\t".join(columns) + "\n" + "".join("\t".join(row) + "\n" for row in rows))
    return folder / name


def test_names_of_genomes_cannot_break_a_table(tmp_path, capsys):
    """A tab or line end is refused, a bracket shown; a second x becomes x.2 unless a genome is called so."""
    text = fasta({"chr1": genome(600, np.random.default_rng(1))})
    for name in ("a\tb.fa", "c.fa", "d.fa", "e.fa"):
        (tmp_path / name).write_bytes(text)
    for row in (("c.fa", '"x\ty"', "", ""), ("c.fa", "x", '"y\nz"', "")):
        with pytest.raises(UserError, match=r"line 2: the name .* holds '\\[tn]'"):
            build(tmp_path, sample_sheet=_sheet(tmp_path, [row]), output="o")
    with pytest.raises(UserError, match=r"the name 'a\\tb' holds '\\t'"):
        build(tmp_path, tmp_path / "a\tb.fa", output="o")
    rows = [("c.fa", "x [y]", "", ""), ("d.fa", "x [y]", "", ""), ("e.fa", "x [y].2", "", "")]
    manifest = build(tmp_path, sample_sheet=_sheet(tmp_path, rows), output="named")
    assert {source.name for source in manifest.sources} == {"x [y]", "x [y].2", "x [y].3"}
    inspect.main([str(tmp_path / "named")])
    assert "x [y].3" in capsys.readouterr().out


def test_sample_sheet_splits(tmp_path):
    rows = []
    for number in range(8):
        (tmp_path / f"g{number}.fa").write_bytes(fasta({"chr1": genome(600)}))
        rows.append((f"g{number}.fa", f"genome{number}", f"species{number // 2}", f"clade{number // 4}"))
    with pytest.raises(UserError, match="are both species0"):
        build(tmp_path, sample_sheet=_sheet(tmp_path, rows))
    related = build(tmp_path, sample_sheet=_sheet(tmp_path, rows), allow_related=True)
    shuffled = build(tmp_path, sample_sheet=_sheet(tmp_path, rows[::-1], name="b.tsv"), allow_related=True, output="o2")
    assert related.dataset_id == shuffled.dataset_id
    assert related.sources[3].taxa == {"clade": "clade0"} and related.sources[3].species == "species1"
    build(
        tmp_path,
        sample_sheet=_sheet(tmp_path, rows),
        split="column",
        split_by="species",
        output="o3",
        valid_fraction=0.2,
        test_fraction=0.2,
    )
    of_species = {}
    for (source, _, _), (_, split) in chunks(tmp_path, "o3").items():
        of_species.setdefault(int(source[-1]) // 2, set()).add(split)
    assert all(len(splits) == 1 for splits in of_species.values()) and len(of_species) == 4
    assert set.union(*of_species.values()) == set(SPLITS)
    build(tmp_path, tmp_path / "g*.fa", split="genome", valid=["g1"], test=["g[23].fa"], output="o4")
    held = {source: split for (source, _, _), (_, split) in chunks(tmp_path, "o4").items() if split != "train"}
    assert held == {"g1": "valid", "g2": "test", "g3": "test"}
    with pytest.raises(UserError, match="--valid nix: fits no genome"):
        build(tmp_path, tmp_path / "g1.fa", split="genome", valid=["nix"], output="o5")


def test_sheets_and_reports_as_other_programs_save_them(tmp_path):
    """NA, None and nan are names; CRLF, CR and a byte-order mark are read; no UTF-8 is refused."""
    names = ["NA", "None", "nan"]
    report = "# Sequence-Name\tSequence-Role\n"
    for name, role in (*((name, "assembled-molecule") for name in names), ("null", "alt-scaffold")):
        report += "\t".join([name, role, "na", "na", "na", "=", "na", "Primary", "300", "na"]) + "\n"
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.fa").write_bytes(
            fasta({**{other: genome(300) for other in names}, "null": genome(300)})
        )
        (tmp_path / name / "assembly_report.txt").write_bytes(b"\xef\xbb\xbf" + report.encode().replace(b"\n", b"\r\n"))
    rows = [(f"{name}/{name}.fa", name, name, name) for name in names]
    text = _sheet(tmp_path, rows).read_bytes()
    (tmp_path / "crlf.tsv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    (tmp_path / "cr.tsv").write_bytes(text.replace(b"\n", b"\r"))
    for sheet in ("sheet.tsv", "crlf.tsv", "cr.tsv"):
        manifest = build(tmp_path, sample_sheet=tmp_path / sheet, overwrite=True, block_chunks=1)
        assert [(s.name, s.species, s.taxa) for s in manifest.sources] == [(n, n, {"clade": n}) for n in sorted(names)]
        assert {contig for _, contig, _ in chunks(tmp_path)} == set(names)
        assert all(source.dropped == {"contig_alternate": 300} for source in manifest.sources)
    for data, words in (
        (text.decode().encode("utf-16"), "save the sheet as UTF-8 text"),
        (text.replace(b"NA\n", b"\xe9\n"), "save the sheet as UTF-8 text"),
        (text.replace(b"\tNA\n", b'\t"NA\n'), "unexpected end of data"),
        (text + b"x\0.fa\tx\tx\tx\n" + b"a" * 200_000, "sheet.tsv: "),
    ):
        (tmp_path / "sheet.tsv").write_bytes(data)
        with pytest.raises(UserError, match=words):
            build(tmp_path, sample_sheet=tmp_path / "sheet.tsv", output="none")
    assert not (tmp_path / "none").exists()


def test_nucleotide_transformer_rule(tmp_path):
    (tmp_path / "x.fa").write_bytes(fasta({"chr1": genome(300)}))
    rows = []
    for number in range(850):  # the ordered list; only a few of its assemblies are still to be had
        path = ""
        if number in (0, 748, 749, 750, 799, 800, 849):
            path = f"g{number}.fa"
            (tmp_path / path).write_bytes(fasta({"chr1": genome(300)}))
        rows.append((path, f"g{number}", f"s{number}", "c"))
    manifest = build(tmp_path, sample_sheet=_sheet(tmp_path, rows), split="nucleotide_transformer")
    split_of = {source.name: [s for s in SPLITS if source.chunks[s]] for source in manifest.sources}
    assert split_of == {
        "g0": ["train"], "g748": ["train"], "g749": ["train"], "g750": ["valid"], "g799": ["valid"],
        "g800": ["test"], "g849": ["test"],
    }  # fmt: skip
    with pytest.raises(UserError, match="more than 100 rows"):
        build(tmp_path, sample_sheet=_sheet(tmp_path, rows[:90]), split="nucleotide_transformer", output="o")


def test_real_genomes_agree_with_an_independent_count(tmp_path):
    for name in ("ecoli_K12_MG1655.fna.gz", "mgenitalium_G37.fa.gz", "lambda.fa.gz", "human_mt.fa.gz"):
        text = gzip.decompress((DATA / name).read_bytes())
        letters = b"".join(line for line in text.splitlines() if not line.startswith(b">"))
        manifest = build(tmp_path, DATA / name, chunk_length=400, overwrite=True)
        source, upper = manifest.sources[0], letters.upper()
        assert (source.bases, source.gc, source.n) == (
            len(letters),
            upper.count(b"G") + upper.count(b"C"),
            upper.count(b"N"),
        )
        assert source.soft_masked == sum(map(letters.count, (b"a", b"c", b"g", b"t", b"n")))
        together = sorted((start, text) for (_, _, start), (text, _) in chunks(tmp_path).items())
        assert b"".join(text for _, text in together) == letters
        assert source.kept == len(letters) == sum(manifest.bases.values())
