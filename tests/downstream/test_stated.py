"""What config.json states is enough to refuse mistakes: no torch is imported before them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import task_folder
from toy_models import kmer_folder, megadna_folder

from megadna.downstream.stated import head_of, is_language_model, most_bases, read_config
from megadna.downstream.tasks import Target
from megadna.errors import UserError
from megadna.log import counted

REPOSITORY = Path(__file__).parents[2]
RUN = """
import json, sys
from megadna.cli import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
        sys.stderr.write("no error\\n")
    except SystemExit:
        pass
print("torch" in sys.modules, "transformers" in sys.modules)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    plain = megadna_folder(home / "m")
    return {
        "nucleotide": str(plain),
        "kmer": str(kmer_folder(home / "k")),
        "classes": task_folder(plain, home / "c", Target("classification", ["donor", "acceptor"])),
        "number": task_folder(plain, home / "n", Target("regression", ["strength"])),
    }


def test_mistakes_are_refused_before_torch_is_imported(folders, tmp_path):
    """Windows, regions, labels, pictures, neutral regions, outputs, regions of N alone: one line each, quickly."""
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 2400))
    genome = tmp_path / "g.fa"
    genome.write_text(f">chr1\n{bases}\n>gap\n{'N' * 50}\n")
    texts = {
        "r.bed": "chr1\t10\t60\n", "long.bed": "chr1\t10\t200\n", "all.bed": "chr1\t0\t2400\n",
        "two.bed": "chr1\t10\t60\tone\nchr1\t80\t90\ttwo\n", "gap.bed": "chr1\t5\t9\ngap\t5\t9\n",
        "other.bed": "chr7\t1\t9\n", "x.one.png": "", "o.vcf.gz.csi": "", "y.gradient.minus.bw": "",
        "a.vcf": f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t11\t.\t{bases[10]}\t"
        f"{'A' if bases[10] != 'A' else 'C'}\t.\t.\t.\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)

    def on(verb: str, model: str, bed: str, *more: str, output: str = "z.parquet") -> list[str]:
        named = ["--model", folders[model], "--input", str(genome), "--output", str(tmp_path / output)]
        return [verb, *named, "--bed", str(tmp_path / bed), *more]

    vcf = ["--vcf", str(tmp_path / "a.vcf"), "--genome", str(genome), "--output", str(tmp_path / "z.tsv")]
    scores = ["variants", "--model", folders["nucleotide"], *vcf]
    cases = [
        (on("mutate", "nucleotide", "r.bed", "--window", "127"), "--window 127: the context of"),
        (on("mutate", "nucleotide", "gap.bed", "--window", "31"), ": every base is N; leave it out"),
        (on("mutate", "nucleotide", "two.bed", output="x.png"), "x.one.png: is a file that exists"),
        (on("mutate", "nucleotide", "all.bed", output="z.png"), "with --bed, or write no .png and .html"),
        (on("mutate", "nucleotide", "r.bed", "--gff", str(tmp_path / "r.bed"), output="z.png"),
         "give GFF3 or GTF, which a BED file is not"),
        (on("mutate", "number", "long.bed"), "chr1:10-200 (+): 190 bases, and the context of"),
        (on("mutate", "number", "r.bed", "--scale", "log_odds"), "predicts numbers"),
        (on("dependencies", "nucleotide", "long.bed", output="z.npy"), "190 bases, and the context of"),
        (on("dependencies", "nucleotide", "gap.bed", output="z.npy"), ": every base is N; leave it out"),
        (on("attribute", "nucleotide", "gap.bed"), ": every base is N; leave it out"),
        (on("attribute", "nucleotide", "long.bed"), "holds 126; give shorter regions with --bed"),
        (on("attribute", "classes", "r.bed", "--label", "exon"), "--label exon: "),
        (on("attribute", "classes", "r.bed"), "predicts donor, acceptor; say which to explain with --label"),
        (on("attribute", "number", "r.bed", "--methods", "gradient", output="y.bw"), "y.gradient.minus.bw: is a file"),
        ([*scores, "--window", "127"], "--window 127: the context of"),
        ([*scores, "--neutral", str(tmp_path / "other.bed")], "no contig chr7 in"),
        ([*scores[:-1], str(tmp_path / "o.vcf.gz")], "o.vcf.gz.csi: is a file that exists"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps([arguments for arguments, _ in cases]), text=True,
        capture_output=True, env=environment, check=True,
    )  # fmt: skip
    assert result.stdout.split() == ["False", "False"]
    errors = [line for line in result.stderr.splitlines() if line.startswith(("megadna: error: ", "no error"))]
    assert len(errors) == len(cases)
    for error, (_, message) in zip(errors, cases, strict=True):
        assert message in error, (message, error)
    assert not list(tmp_path.glob("z*"))


def test_what_a_folder_states(folders, tmp_path):
    config = read_config(folders["nucleotide"])
    assert is_language_model(config) and most_bases(config, folders["nucleotide"]) == 126
    assert most_bases(config | {"max_position_embeddings": 50}, folders["nucleotide"]) == 48
    words = read_config(folders["kmer"])
    assert is_language_model(words) and most_bases(words, folders["kmer"]) is None
    tuned = read_config(folders["classes"])
    head = head_of(tuned, folders["classes"])
    assert not is_language_model(tuned) and head.names == ["donor", "acceptor"] and not head.per_base
    assert most_bases(tuned, folders["classes"]) == 128  # its tokenizer may have no special tokens
    with pytest.raises(UserError, match="not a fine-tuned model of sequences"):
        head_of(config, folders["nucleotide"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["EsmForMaskedLM"], "auto_map": {"AutoModelForTokenClassification": "x.Y"}}, True),
        ({"auto_map": {"AutoModelForMaskedLM": "x.A", "AutoModelForSequenceClassification": "x.B"}}, True),
        ({"architectures": ["DnaTask"], "auto_map": {"AutoModelForSequenceClassification": "x.B"}}, False),
        ({"architectures": ["BertForSequenceClassification"]}, False),
        ({"architectures": "torn", "auto_map": 3}, True),
        ({}, True),
    ],
)
def test_which_models_are_language_models(config, expected):
    assert is_language_model(config) is expected


def test_files_of_strangers_end_in_one_line(tmp_path):
    for text, message in (("[1]", "not JSON"), ("{", "not JSON"), ('{"vocab_size": "many"}', "its config.json")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            most_bases({"max_position_embeddings": 9, **read_config(str(tmp_path))}, str(tmp_path))
    with pytest.raises(UserError, match="id2label of its config"):
        head_of({"architectures": ["XForSequenceClassification"], "id2label": {"a": "b"}}, "x")


def test_numbers_with_their_nouns():
    assert counted(1, "query", "queries") == "1 query" and counted(2000, "window") == "2,000 windows"
