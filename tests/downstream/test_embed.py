"""Embeddings equal what transformers gives by hand; windows, strands, rings, formats, resume, ranks, mistakes."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import bpe_folder, dnabert_folder, kmer_folder, megadna_folder

from megadna import embed
from megadna.cli import main
from megadna.downstream import encoder, inference, outputs
from megadna.downstream.encoder import load_tokenizer
from megadna.downstream.trust import check_folder
from megadna.errors import UserError
from megadna.files import claimed
from megadna.genome.records import read_regions, record_lengths, reverse_complement

DATA = Path(__file__).parents[1] / "data"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def genome() -> str:
    with gzip.open(DATA / "lambda.fa.gz", "rt") as lines:
        return "".join(line.strip() for line in lines if not line.startswith(">"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    makers = {"nucleotide": megadna_folder, "kmer": kmer_folder, "dnabert": dnabert_folder, "bpe": bpe_folder}
    return {name: str(make(home / name)) for name, make in makers.items()}


def fasta(path: Path, *sequences: str, header: str = "s{}") -> Path:
    path.write_text("".join(f">{header.format(i)}\n{text}\n" for i, text in enumerate(sequences)))
    return path


def by_hand(folder: str, sequence: str) -> np.ndarray:
    """Hidden states of the tokens [layers + 1, T, H], special tokens included."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    text = " ".join(sequence[i : i + 3] for i in range(len(sequence) - 2)) if "dnabert" in folder else sequence
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return torch.stack(model(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0].numpy()


def per_base(states_TH: np.ndarray, k: int) -> np.ndarray:
    """Mean of the covering k-mers, by a loop."""
    num_bases = len(states_TH) + k - 1
    return np.array([states_TH[max(0, i - k + 1) : i + 1].mean(axis=0) for i in range(num_bases)])


def matrix(frame: pd.DataFrame, column: str = "embedding") -> np.ndarray:
    return np.stack(frame[column].to_list())


@pytest.mark.parametrize("kind", ["nucleotide", "kmer", "dnabert"])
def test_every_pooling_equals_transformers_by_hand(kind, folders, genome, tmp_path):
    sequences = [genome[:40], genome[100:157], genome[300:320]]
    path = fasta(tmp_path / "a.fa", *sequences)
    states = [by_hand(folders[kind], sequence) for sequence in sequences]
    expected = {
        "mean": [s[-1, 1:-1].mean(axis=0) for s in states],
        "max": [s[-1, 1:-1].max(axis=0) for s in states],
        "cls": [s[-1, 0] for s in states],
        "nucleotide": np.concatenate([per_base(s[-1, 1:-1], 1 if kind == "nucleotide" else 3) for s in states]),
    }
    for pooling, vectors in expected.items():
        frame = embed(folders[kind], path, pooling=pooling)
        np.testing.assert_allclose(matrix(frame), np.stack(vectors), atol=2e-5)
    assert frame.contig.tolist() == ["s0"] * 40 + ["s1"] * 57 + ["s2"] * 20
    assert frame.position.tolist() == [*range(40), *range(57), *range(20)]
    half = matrix(embed(folders[kind], path, precision="bf16", batch_tokens=50))
    np.testing.assert_allclose(half, np.stack(expected["mean"]), atol=0.1)
    layers = embed(folders[kind], path, layers=[0, -2])
    for column, layer in (("layer_0", 0), ("layer_-2", -2)):
        np.testing.assert_allclose(matrix(layers, column), [s[layer, 1:-1].mean(axis=0) for s in states], atol=2e-5)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
def test_a_long_sequence_takes_each_base_from_the_window_with_most_context(kind, folders, genome, tmp_path):
    sequence = genome[1000:1500]
    size = {"nucleotide": 126, "kmer": 64}[kind]
    step = size - size // 4
    starts = [*range(0, 500 - size, step), 500 - size]
    outputs = {s: by_hand(folders[kind], sequence[s : s + size])[-1, 1:-1] for s in starts}
    k = 1 if kind == "nucleotide" else 3
    expected, owned = [], []
    for base in range(500):
        room = {s: min(base - s, s + size - 1 - base) for s in starts if s <= base < s + size}
        best = [s for s in room if room[s] == max(room.values())][-1]  # on the border: the later window
        edge = best in (0, starts[-1]) and room[best] != max(room.values())
        assert not edge
        expected.append(per_base(outputs[best], k)[base - best])
    for window, states in outputs.items():
        for token, state in enumerate(states):
            middle = window + token + (k - 1) // 2
            room = {s: min(middle - s, s + size - 1 - middle) for s in starts if s <= middle < s + size}
            if window == [s for s in room if room[s] == max(room.values())][-1]:
                owned.append(state)
    path = fasta(tmp_path / "a.fa", sequence)
    got = matrix(embed(folders[kind], path, pooling="nucleotide"))
    # Windows that reach the sequence's end keep its bases although they are at the window's edge there.
    np.testing.assert_allclose(got, np.stack(expected), atol=2e-5)
    assert len(owned) == 500 - k + 1
    np.testing.assert_allclose(matrix(embed(folders[kind], path))[0], np.mean(owned, axis=0), atol=2e-5)


@pytest.mark.parametrize("kind", ["nucleotide", "kmer", "bpe"])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "nucleotide"])
def test_results_do_not_depend_on_where_parts_end(kind, pooling, folders, genome, tmp_path, monkeypatch):
    """Records of many windows, short ones and a ring; parts of 100 bases, 300 bases tokenized at a time."""
    path = tmp_path / "a.fa"
    path.write_text(
        f">long\n{genome[3000:4100]}\n>a\n{genome[:50]}\n>b\n{genome[60:95]}\n"
        f">ring circular=true\n{genome[5000:5700]}\n>c\n{genome[7000:7333]}\n"
    )
    options = {"pooling": pooling, "strand": "both", "layers": [-1, 1]}
    whole = embed(folders[kind], path, **options)
    for name, value in {"MAX_BLOCK_BYTES": 2 * 4 * 32 * 100, "MAX_BLOCK_BASES": 100}.items():
        monkeypatch.setattr(inference, name, value)
    monkeypatch.setattr(inference, "MAX_GROUP_BASES", 300)
    divided = embed(folders[kind], path, **options, batch_tokens=200)
    for column in ("layer_-1", "layer_1"):
        np.testing.assert_allclose(matrix(divided, column), matrix(whole, column), atol=2e-6)
    pd.testing.assert_frame_equal(divided.iloc[:, :3], whole.iloc[:, :3])
    if pooling == "nucleotide":
        assert divided.groupby("contig", sort=False).size().tolist() == [1100, 50, 35, 700, 333]


def test_a_long_region_of_the_minus_strand_is_divided_in_the_order_of_its_bases(folders, genome, tmp_path, monkeypatch):
    bed = tmp_path / "r.bed"
    bed.write_text(f"{name(genome)}\t100\t1200\tx\t0\t-\n{name(genome)}\t40\t60\ty\t0\t+\n")
    options = {"bed": bed, "pooling": "nucleotide", "strand": "both"}
    whole = embed(folders["nucleotide"], DATA / "lambda.fa.gz", **options)
    monkeypatch.setattr(inference, "MAX_BLOCK_BYTES", 4 * 32 * 200)
    divided = embed(folders["nucleotide"], DATA / "lambda.fa.gz", **options)
    assert divided.position.tolist() == [*range(1199, 99, -1), *range(40, 60)]
    np.testing.assert_allclose(matrix(divided), matrix(whole), atol=2e-6)


def test_ids_by_table_are_what_the_tokenizer_gives(folders):
    tokenizer = load_tokenizer(folders["nucleotide"], trust_remote_code=False)
    texts = ["ACGTN", "NNNN", "T" * 50, "ACGRYT", "acgt", "A"]  # the last but one are not in the table
    assert tokenizer._id_of_base is not None
    for some in (texts[:3], texts):
        assert [found.ids for found in tokenizer(some)] == tokenizer.tokenizer(some)["input_ids"]


def test_windows_of_byte_pairs_are_estimated_from_pieces_of_a_long_record(folders, genome, monkeypatch):
    tokenizer = load_tokenizer(folders["bpe"], trust_remote_code=False)
    whole = tokenizer.max_bases(genome[:40_000])
    monkeypatch.setattr(encoder, "_SAMPLE", 1600)
    assert tokenizer.max_bases(genome[:40_000]) == pytest.approx(whole, rel=0.1)
    assert tokenizer.max_bases(genome[:50]) == 50


@pytest.mark.parametrize("kind", ["nucleotide", "kmer"])
@pytest.mark.parametrize("pooling", ["mean", "nucleotide"])
def test_both_strands_do_not_depend_on_which_strand_is_given(kind, pooling, folders, genome, tmp_path):
    sequence = genome[2000:2330]
    one, other = (
        matrix(embed(folders[kind], fasta(tmp_path / f"{i}.fa", text), pooling=pooling, strand="both"))
        for i, text in enumerate((sequence, reverse_complement(sequence)))
    )
    np.testing.assert_allclose(one, other[::-1], atol=2e-5)
    forward = matrix(embed(folders[kind], tmp_path / "0.fa", pooling=pooling))
    backward = matrix(embed(folders[kind], tmp_path / "1.fa", pooling=pooling))
    np.testing.assert_allclose(one, (forward + backward[::-1]) / 2, atol=2e-5)
    assert np.abs(forward - backward[::-1]).max() > 0.01


def test_a_ring_is_read_across_its_ends(folders, genome, tmp_path):
    ring = genome[:100]
    context = 126 // 8
    wrapped = ring[-context:] + ring + ring[:context]
    size = 126
    for path in (
        fasta(tmp_path / "marked.fa", ring, header="p{} [topology=circular]"),
        fasta(tmp_path / "named.fa", ring, header="p{}"),
    ):
        options = {"circular": ["p0"]} if path.stem == "named" else {}
        got = matrix(embed(folders["nucleotide"], path, pooling="nucleotide", **options))
        assert len(wrapped) == 130 > size
        left, right = (by_hand(folders["nucleotide"], wrapped[s : s + size])[-1, 1:-1] for s in (0, 4))
        border = (0 + size + 4) // 2
        np.testing.assert_allclose(
            got, np.concatenate([left[context:border], right[border - 4 : 100 + context - 4]]), atol=2e-5
        )


def test_tables_regions_and_file_formats_agree(folders, genome, tmp_path):
    model = folders["nucleotide"]
    intervals = [(500, 560, "-"), (10, 50, "+"), (48_450, 48_502, "+")]
    bed = tmp_path / "r.bed.gz"
    with gzip.open(bed, "wt") as file:
        file.write("track name=x\n" + "".join(f"{name(genome)}\t{a}\t{b}\tx\t0\t{s}\n" for a, b, s in intervals))
    texts = [reverse_complement(genome[a:b]) if s == "-" else genome[a:b] for a, b, s in intervals]
    regions = embed(model, DATA / "lambda.fa.gz", bed=bed)
    assert list(zip(regions.start, regions.end, regions.strand, strict=True)) == intervals
    pd.DataFrame({"dna": texts, "label": 1}).to_csv(tmp_path / "t.csv.gz", index=False)
    table = embed(model, tmp_path / "t.csv.gz", column="dna")
    np.testing.assert_allclose(matrix(regions), matrix(table), atol=2e-5)
    bases = embed(model, DATA / "lambda.fa.gz", bed=bed, pooling="nucleotide")
    assert bases.position.tolist() == [*range(559, 499, -1), *range(10, 50), *range(48_450, 48_502)]
    for ending in ("parquet", "npy", "h5ad"):
        output = tmp_path / f"out.{ending}"
        main(
            [
                "embed",
                "--model",
                model,
                "--input",
                str(tmp_path / "t.csv.gz"),
                "--column",
                "dna",
                "--output",
                str(output),
            ]
        )
        assert not Path(f"{output}.parts").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), matrix(table))
    np.testing.assert_array_equal(matrix(pd.read_parquet(tmp_path / "out.parquet")), matrix(table))
    assert pd.read_csv(tmp_path / "out.npy.index.tsv", sep="\t").contig.tolist() == ["row_1", "row_2", "row_3"]
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.X, matrix(table))
    pd.testing.assert_frame_equal(
        found.obs.reset_index(drop=True).astype(object), table.drop(columns="embedding").astype(object)
    )


def test_regions_keep_their_names_and_find_their_contigs(tmp_path):
    """A BED file of UCSC's names on a genome of Ensembl's; column 4 goes along."""
    (tmp_path / "g.fa").write_text(">MT x\n" + "ACGTA" * 4 + "\n>1\n" + "AACCGGTT" * 3 + "\n")
    (tmp_path / "r.bed").write_text("chr1 2 6 one 0 -\r\nchrM 0 3 .\r\nchr1 0 24\r\n")
    lengths = record_lengths(tmp_path / "g.fa")
    found = list(read_regions(tmp_path / "g.fa", tmp_path / "r.bed", lengths))
    assert [(r.name, r.start, r.end, r.strand, r.bases, r.region) for r in found] == [
        ("MT", 0, 3, "+", "ACG", ""),
        ("1", 2, 6, "-", "CCGG", "one"),
        ("1", 0, 24, "+", "AACCGGTT" * 3, ""),
    ]
    assert found[1].reversed().region == "one"


def test_anndata_names_the_features_of_several_layers(folders, genome, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "MAX_STRETCHES", 2)  # several parts
    path = fasta(tmp_path / "a.fa", *(genome[i : i + 30] for i in range(5)))
    main(["embed", "--model", folders["nucleotide"], "--input", str(path), "--layers", "0", "-1", "--output",
          str(tmp_path / "out.h5ad")])  # fmt: skip
    table, found = embed(folders["nucleotide"], path, layers=[0, -1]), anndata.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs.contig.tolist() == ["s0", "s1", "s2", "s3", "s4"]
    for column in ("layer_0", "layer_-1"):
        names = [f"{column}_{number}" for number in range(32)]
        np.testing.assert_allclose(found[:, names].X, matrix(table, column), atol=1e-6)


def name(genome: str) -> str:
    with gzip.open(DATA / "lambda.fa.gz", "rt") as lines:
        return next(lines)[1:].split()[0]


def test_a_stopped_command_is_resumed(folders, genome, tmp_path, monkeypatch):
    """Its output may be in the folder of the model."""
    monkeypatch.setattr(inference, "MAX_STRETCHES", 4)
    model = shutil.copytree(folders["nucleotide"], tmp_path / "model")
    path = fasta(tmp_path / "a.fa", *(genome[i * 50 : i * 50 + 30 + i] for i in range(18)))
    run = ["embed", "--model", str(model), "--input", str(path), "--output"]
    main([*run, str(tmp_path / "whole.parquet")])
    computed = []
    write = outputs.parquet.write_table

    def stop_at_the_third(table, part, **options):
        computed.append(part.name)
        if len(computed) == 3:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_third)
    output = model / "b.parquet"
    with pytest.raises(SystemExit):
        main([*run, str(output)])
    assert not output.exists()
    with pytest.raises(SystemExit) as stopped:
        main([*run, str(output), "--pooling", "max"])
    assert stopped.value.code == 2
    main([*run, str(output)])
    assert len(computed) == 3 + 3 and computed[2] == computed[3]
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_files_and_parts_of_others_stay(folders, genome, tmp_path):
    run = ["embed", "--model", folders["nucleotide"], "--input", str(fasta(tmp_path / "a.fa", genome[:50])), "--output"]
    output, index = tmp_path / "x.npy", tmp_path / "x.npy.index.tsv"
    index.write_text("mine")
    with pytest.raises(SystemExit):
        main([*run, str(output)])
    assert index.read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", index.name]
    index.unlink()
    with claimed(output, tmp_path / "x.npy.parts") as claim:  # as another embed of the same output
        (claim.folder / "part-000000.parquet").write_bytes(b"theirs")
        with pytest.raises(SystemExit):
            main([*run, str(output)])
        assert (claim.folder / "part-000000.parquet").read_bytes() == b"theirs"
    main([*run, str(output)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", output.name, index.name]


@pytest.mark.parametrize("changed", ["input", "model"])
def test_parts_of_another_input_or_model_are_not_gone_on_from(folders, genome, tmp_path, monkeypatch, capsys, changed):
    monkeypatch.setattr(inference, "MAX_STRETCHES", 2)
    path = fasta(tmp_path / "a.fa", *(genome[i * 50 : i * 50 + 30] for i in range(6)))
    model = shutil.copytree(folders["nucleotide"], tmp_path / "model")
    run = ["embed", "--model", str(model), "--input", str(path), "--output", str(tmp_path / "x.npy")]
    write = outputs.parquet.write_table

    def stop_at_the_second(table, part, **options):
        if "000001" in part.name:
            raise KeyboardInterrupt
        write(table, part, **options)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(outputs.parquet, "write_table", stop_at_the_second)
        main(run)
    if changed == "input":
        path.write_text(path.read_text().replace(">s5", ">s6"))
    else:
        weights = model / "model.safetensors"
        times, content = weights.stat(), bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SystemExit) as stopped:
        main(run)
    assert stopped.value.code == 2 and "its input or model has changed since" in capsys.readouterr().err


def test_mistakes_end_in_one_line(folders, genome, tmp_path, capsys):
    model, sequences = folders["nucleotide"], fasta(tmp_path / "a.fa", genome[:50])
    (tmp_path / "empty.fa").write_text("")
    (tmp_path / "t.csv").write_text("dna\nACGT\n")
    (tmp_path / "t.parquet").write_bytes(b"\x8e\n")
    (tmp_path / "twice.fa").write_text(">s0 a\nACGT\n>s0 b\nACGTACGT\n")
    (tmp_path / "short.fa").write_text(">a\nACGT\n>b\nAC\n")
    narrow = str(megadna_folder(tmp_path / "narrow", 2))
    foreign = megadna_folder(tmp_path / "foreign")
    (foreign / "modeling_megadna.py").write_text("raise SystemExit('ran')\n")
    torn = megadna_folder(tmp_path / "torn")
    (torn / "config.json").write_text("{")
    beds = {"unknown": "chr7\t0\t10\n", "past": "#x\ns0\t10\t51\n", "text": "s0\tten\t20\n", "none": "# nothing\n"}
    for key, text in beds.items():
        (tmp_path / f"{key}.bed").write_text(text)
    (tmp_path / "there.npy").touch()
    cases = [
        (model, "empty.fa", "x.npy", [], "holds no sequence"),
        (model, "missing.fa", "x.npy", [], "no such file"),
        (model, "t.csv", "x.npy", [], "no column 'sequence'; it has dna"),
        (model, "t.parquet", "x.npy", [], "cannot be read as a table"),
        (model, "a.fa", "x.txt", [], "its ending must be one of .parquet, .npy, .h5ad"),
        (model, "a.fa", "there.npy", [], "exists; choose another --output"),
        (model, "a.fa", "x.npy", ["--layers", "3"], "hidden states 0 to 2"),
        (
            model,
            "a.fa",
            "x.npy",
            ["--circular", "chrs0"],
            "--circular chrs0: no such record; did you mean s0?",
        ),
        (model, "twice.fa", "x.npy", ["--bed", str(tmp_path / "past.bed")], "two records are called s0"),
        (narrow, "a.fa", "x.npy", [], "2 tokens leaves no room for a base"),
        (folders["kmer"], "short.fa", "x.npy", [], "b: 2 bases give no token"),
        (str(tmp_path / "nowhere"), "a.fa", "x.npy", [], "no such folder"),
        (str(tmp_path), "a.fa", "x.npy", [], "no config.json"),
        (str(torn), "a.fa", "x.npy", [], "config.json: not JSON (Expecting property name"),
        (str(foreign), "a.fa", "x.npy", [], "say --trust_remote_code"),
        (model, "a.fa", "x.npy", ["--bed", str(tmp_path / "unknown.bed")], "line 1: no contig chr7"),
        (model, "a.fa", "x.npy", ["--bed", str(tmp_path / "past.bed")], "line 2: s0 ends at 50, the interval at 51"),
        (
            model,
            "a.fa",
            "x.npy",
            ["--bed", str(tmp_path / "text.bed")],
            "line 1: not a BED interval (contig, start, end): 's0 ten 20'",
        ),
        (model, "a.fa", "x.npy", ["--bed", str(tmp_path / "none.bed")], "empty: holds no interval"),
        (model, "a.fa", "x.npy", ["--bed", str(tmp_path / "past.bed"), "--circular", "s0"], "leave out --circular"),
        (model, "a.fa", "x.npy", ["--colum", "dna"], "did you mean column"),
    ]
    for folder, source, output, more, message in cases:
        arguments = ["--model", folder, "--input", str(tmp_path / source), "--output", str(tmp_path / output)]
        with pytest.raises(SystemExit) as stopped:
            main(["embed", *arguments, *more])
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("x.*")) and sequences.exists()
    with pytest.raises(UserError, match="--pooling must be one of mean, cls, max, nucleotide, got 'average'"):
        embed(model, sequences, pooling="average")


def test_only_files_that_megadna_writes_run_unasked(tmp_path):
    folder = megadna_folder(tmp_path / "model")
    code, config = folder / "modeling_megadna.py", folder / "config.json"
    text, stated = code.read_text(), config.read_text()
    assert check_folder(folder)
    code.write_text(text.replace('model_type = "megadna"', 'model_type = "rnabert"'))
    assert check_folder(folder)
    code.write_text(text + "import os\n")
    assert not check_folder(folder)
    code.write_text(text)
    for elsewhere in ("sub/evil.Model", "../evil.Model", "owner/name--modeling_megadna.MegaDnaModel"):
        config.write_text(stated.replace("modeling_megadna.MegaDnaModel", elsewhere))
        assert not check_folder(folder)
    config.write_text(stated)
    (folder / "evil.py").write_text("")
    assert not check_folder(folder)


def test_nothing_of_it_imports_megatron():
    code = (
        "import sys; from megadna import embed; import megadna.commands.finished; sys.exit('megatron' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


MEASURED = """
import sys
from megadna.cli import main
main(["embed", *sys.argv[1:]])
# VmHWM, not ru_maxrss: the latter starts at the peak of the process that spawned this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("records", "options", "output"),
    [
        (1, [], "x.npy"),
        (20_000, [], "x.parquet"),
        (1, ["--pooling", "nucleotide", "--layers", "0", "1", "2"], "x.npy"),
        (1, ["--pooling", "nucleotide", "--strand", "both"], "x.parquet"),
    ],
)
def test_memory_stays_below_700_mb(records, options, output, folders, tmp_path):
    """Yeast I, VI and VIII in one record or many; 4 Mb at once took 1.8 GB, a vector a base 0.4 GB as such."""
    with gzip.open(DATA / "yeast_I_VI_VIII.fa.gz", "rt") as lines:
        text = "".join(line.strip() for line in lines if not line.startswith(">"))
    size = -(-len(text) // records)
    path = fasta(tmp_path / "a.fa", *(text[i : i + size] for i in range(0, len(text), size)))
    command = [sys.executable, "-c", MEASURED, "--model", folders["nucleotide"], "--input", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*command, "--output", str(tmp_path / output), *options], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) < 700


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(folders, genome, tmp_path):
    path = fasta(tmp_path / "a.fa", *(genome[i : i + 40] for i in range(5000)))
    arguments = ["megadna", "embed", "--model", folders["nucleotide"], "--input", str(path), "--output"]
    main([*arguments[1:], str(tmp_path / "one.npy")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*torchrun, *arguments, str(tmp_path / "two.npy")], check=True, env=environment)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy"))
