"""Written DNA: draws beside the model's p, rules and proteins beside plain string code, searches, report, mistakes."""

import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import task_folder
from toy_models import kmer_folder, megadna_folder

from megadna import generate, predict
from megadna.cli import main
from megadna.downstream.generate_report import copies, real_windows, word_counts, word_distance
from megadna.downstream.generate_rules import codes_of
from megadna.downstream.masked_bases import MaskedBases
from megadna.downstream.tasks import Target
from megadna.errors import UserError
from megadna.genome.records import Genome, reverse_complement

RNG = np.random.default_rng(3)
GENE = "ATGGCTGAATTCCTGTCTCGTGGTCCAGAAACCGTTAAAGGTCTCAGCGATTGGTACTAA"  # with an EcoRI and a BsaI site
ACIDS = dict(
    zip(
        (a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)


def random_bases(size: int) -> str:
    return "".join(RNG.choice(list("ACGT"), size))


def fasta(path: Path, **records: str) -> Path:
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    return path


def both(bases: str) -> str:
    return f"{bases}-{reverse_complement(bases)}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("models")
    plain = megadna_folder(home / "m")
    task_folder(plain, home / "rna", Target("regression", ["strength"]))
    content = json.loads((home / "rna/tokenizer.json").read_text())
    content["model"]["vocab"]["t"] = content["model"]["vocab"].pop("T")
    (home / "rna/tokenizer.json").write_text(json.dumps(content))
    return {
        "rna": str(home / "rna"),
        "model": str(plain),
        "kmer": str(kmer_folder(home / "k")),
        "number": task_folder(plain, home / "n", Target("regression", ["strength"])),
        "judge": task_folder(plain, home / "j", Target("regression", ["strength"])),
        "classes": task_folder(plain, home / "c", Target("classification", ["off", "on", "other"])),
        "short": task_folder(megadna_folder(home / "x", 32), home / "s", Target("regression", ["strength"])),
        "base": task_folder(plain, home / "b", Target("base_classification", ["out", "in"])),
    }


def test_p_of_some_of_the_hidden_bases_is_that_of_all_together(folders):
    model = MaskedBases(folders["model"], batch_tokens=150)
    windows, hidden = [random_bases(60) for _ in range(5)], [[0, 7, 30], [59], [4, 5], [10], [1, 2]]
    codes = np.stack(list(map(codes_of, windows)))
    for row, at in zip(codes, hidden, strict=True):
        row[at] = 4
    expected = model.hidden(windows, hidden)
    found = model.at(codes, np.array([0, 2, 4]), np.array([7, 5, 1]))
    np.testing.assert_allclose(found, [expected[0][1], expected[2][1], expected[4][0]], atol=1e-5)


@pytest.mark.parametrize("method", ["unmask", "gibbs"])
def test_one_base_is_drawn_with_the_probability_that_the_model_gives(folders, tmp_path, method):
    bases = random_bases(50)
    p_4 = np.exp(MaskedBases(folders["model"]).hidden([bases], [[20]])[0][0])
    region = tmp_path / "one.bed"
    region.write_text("r\t20\t21\n")
    start = fasta(tmp_path / "s.fa", r=bases)
    found = generate(folders["model"], start=start, bed=region, method=method, steps=1, number=300)["sequence"]
    assert all(one[:20] + one[21:] == bases[:20] + bases[21:] for one in found)
    share_4 = np.array([(found.str[20] == base).mean() for base in "ACGT"])
    assert (np.abs(share_4 - p_4) < 4 * np.sqrt(p_4 * (1 - p_4) / len(found)) + 1e-9).all()
    likeliest = generate(folders["model"], start=start, bed=region, top_p=0.01, number=5)["sequence"]
    assert set(likeliest.str[20]) == {"ACGT"[int(p_4.argmax())]}
    cold = generate(folders["model"], start=start, bed=region, temperature=0.01, number=5)["sequence"]
    assert set(cold.str[20]) == {"ACGT"[int(p_4.argmax())]}


@pytest.mark.parametrize("how", [{}, {"order": "confidence"}, {"method": "gibbs", "block": 4, "steps": 1}])
def test_templates_are_completed_whatever_the_batch_and_beyond_the_context(folders, tmp_path, how):
    known = random_bases(300)
    text = known[:40] + "N" * 120 + known[160:200] + "RYSWKMBDHV" + known[210:]
    path = fasta(tmp_path / "t.fa", one=text, two=f"N{known[:30].lower()}N")
    found = [generate(folders["model"], template=path, number=n, batch_tokens=b, **how) for n, b in ((3, 4096), (2, 1))]
    kept = re.compile(known[:40] + "[ACGT]{120}" + known[160:200] + "[AG][CT][CG][AT][GT][AC][CGT][AGT][ACT][ACG]")
    for one in found[0]["sequence"][:3]:
        assert len(one) == 300 and kept.match(one) and one.endswith(known[210:])
    assert all(re.fullmatch(f"[ACGT]{known[:30]}[ACGT]", one) for one in found[0]["sequence"][3:])
    assert found[0]["sequence"].nunique() > 3
    first = found[0].groupby("template").head(2)
    assert first["sequence"].tolist() == found[1]["sequence"].tolist()
    other = generate(folders["model"], template=path, seed=5, **how)["sequence"]
    assert other[0] != found[0]["sequence"][0]


@pytest.mark.parametrize("method", ["unmask", "gibbs", "metropolis"])
def test_rules_hold(folders, tmp_path, method):
    start = fasta(tmp_path / "s.fa", r=random_bases(50) + "GAATTC" + random_bases(40) + "GAGACC")
    found = generate(
        folders["model"], start=start, method=method, steps=300 if method == "metropolis" else 3, number=3,
        motif=["TATAWR", "GGNNNCC"], avoid=["EcoRI", "BsaI", "CCWGG"], gc=[0.4, 0.45], min_distance=2,
    )  # fmt: skip
    assert len(found) == 3
    for one in found["sequence"]:
        assert re.search("TATA[AT][AG]", both(one)) and re.search("GG...CC", both(one))
        assert not re.search("GAATTC|GGTCTC|CC[AT]GG", both(one))
        assert 0.4 <= (one.count("G") + one.count("C")) / len(one) <= 0.45
    assert (
        min(
            sum(a != b for a, b in zip(x, y, strict=True))
            for x in found["sequence"]
            for y in found["sequence"]
            if x != y
        )
        >= 2
    )


def protein(bases: str) -> str:
    return "".join(ACIDS[bases[i : i + 3]] for i in range(0, len(bases), 3))


@pytest.mark.parametrize("method", ["unmask", "metropolis"])
def test_the_protein_is_kept(folders, tmp_path, method):
    start = fasta(tmp_path / "g.fa", g=GENE)
    found = generate(folders["model"], start=start, protein=11, method=method, avoid=["EcoRI", "BsaI"], number=2)
    for one, edits in zip(found["sequence"], found["edits"], strict=True):
        assert protein(one) == protein(GENE) and one != GENE
        assert not re.search("GAATTC|GGTCTC", both(one))
        assert edits == sum(a != b for a, b in zip(one, GENE, strict=True))
        assert method == "unmask" or edits <= 4  # without an oracle only what mends a rule is changed
    region = tmp_path / "r.bed"
    region.write_text("g\t30\t60\n")
    part = generate(folders["model"], start=start, bed=region, protein=1, number=3)["sequence"]
    assert all(one[:30] == GENE[:30] and protein(one) == protein(GENE) for one in part) and part.nunique() > 1


def test_a_search_raises_its_oracle_within_the_edits(folders, tmp_path):
    start = fasta(tmp_path / "s.fa", r="".join(np.random.default_rng(5).choice(list("ACGT"), 60)))
    options = {"start": start, "method": "metropolis", "steps": 40, "max_edits": 5, "number": 2, "temperature": 5.0}
    oracles = [f"{folders['number']},strength,50", f"{folders['classes']},off,0.001"]
    named = {"oracle": oracles, "judge": [f"{folders['judge']},strength"]}
    found = generate(folders["model"], **options, **named)
    column, judged = "oracle_n_strength", "judge_j_strength"
    at_start = predict(folders["number"], start)["value_strength"][0]
    assert (found["edits"] <= 5).all() and (found["edits"] > 0).all() and (found[column] > at_start).all()
    down = generate(folders["model"], **options, oracle=[f"{folders['number']},strength,-50"])
    assert (down[column] < at_start).all() and {judged, "oracle_c_off"} <= set(found)
    alone = generate(folders["model"], **options, oracle=named["oracle"])
    assert alone["sequence"].tolist() == found["sequence"].tolist()  # the judge has no part in the search


def test_guided_unmasking_raises_the_oracle(folders):
    options = {"length": 40, "number": 6, "steps": 8}
    plain = generate(folders["model"], **options, judge=[f"{folders['classes']},on"])["judge_c_on"]
    guided = generate(folders["model"], **options, oracle=[f"{folders['classes']},on,100"], candidates=6)
    assert guided["oracle_c_on"].mean() > plain.mean() + plain.std()


def test_a_folder_says_how_it_came_about(folders, tmp_path):
    real, training = fasta(tmp_path / "real.fa", a=random_bases(900)), fasta(tmp_path / "t.fa", a=random_bases(500))
    words = [
        "generate",
        "--model",
        folders["model"],
        "--length",
        "40",
        "--number",
        "4",
        "--steps",
        "4",
        "--motif",
        "TTGACA",
    ]
    words += ["--judge", f"{folders['classes']},on", "--real", str(real), "--training", str(training)]
    main([*words, "--output", str(tmp_path / "out")])
    digest = MaskedBases(folders["model"]).digest
    heads = [line for line in (tmp_path / "out/sequences.fa").read_text().splitlines() if line[0] == ">"]
    assert heads[1] == f">generated_2 model={digest} seed=1234 index=1 length=40 steps=4 motif=TTGACA"
    facts = json.loads((tmp_path / "out/generation.json").read_text())
    assert facts["weights_xxh3_128"] == digest and facts["options"]["steps"] == 4 and facts["sequences"] == 4
    assert facts["judges"][0]["weights_xxh3_128"] != digest
    text = (tmp_path / "out/report.html").read_text()
    ElementTree.fromstring(text.split("\n", 1)[1])
    assert "http://" not in text.replace("http://www.w3.org", "") and "judge_c_on" in text and "TTGACA" in text


def test_measures(tmp_path):
    texts = ["ACGTACGTAA", "TTTTNACG"]
    counts = word_counts(list(map(codes_of, texts)), 2)
    names = [a + b for a in "ACGT" for b in "ACGT"]
    expected = [[sum(t[i : i + 2] == word for i in range(len(t))) for word in names] for t in texts]
    np.testing.assert_array_equal(counts, expected)
    assert word_distance(counts, counts) == 0
    assert word_distance(np.eye(4)[:1], np.eye(4)[1:2]) == pytest.approx(1)
    p, q = counts.sum(0) / counts.sum(), np.full(16, 1 / 16)
    m = (p + q) / 2
    known = p > 0
    divergence = ((p[known] * np.log2(p[known] / m[known])).sum() + (q * np.log2(q / m)).sum()) / 2
    assert word_distance(counts, np.ones((1, 16))) == pytest.approx(np.sqrt(divergence))


def test_copies_are_found_on_both_strands():
    training = random_bases(5000)
    changed = list(training[1000:1100])
    changed[40] = {"A": "C", "C": "G", "G": "T", "T": "A"}[changed[40]]
    queries = [
        reverse_complement(training[200:260]),
        "".join(changed),
        random_bases(8),
        training[4960:] + random_bases(40),
    ]
    genome = Genome(Path("t.fa"), {"a": np.frombuffer(training.encode(), np.uint8)})
    longest, identity = copies(list(map(codes_of, queries)), genome)
    assert longest[:3].tolist() == [60, 59, 0] and longest[3] >= 40
    assert identity[:2].tolist() == [1.0, 0.99] and np.isnan(identity[2]) and identity[3] >= 0.5


def test_real_windows_do_not_overlap_and_have_no_n(tmp_path):
    path = fasta(tmp_path / "r.fa", a=random_bases(95) + "N" + random_bases(30), b=random_bases(19), c=random_bases(40))
    real = real_windows(path, [20] * 3, seed=1)
    assert len(real.control) == 3 and len(real.reference) == 4  # 6 windows of a, one of them with N, none of b, 2 of c
    assert len({one.tobytes() for one in [*real.control, *real.reference]}) == 7
    pairs = [word_counts(part, 2).sum(axis=0) for part in (real.control, real.shuffled)]
    np.testing.assert_array_equal(*pairs)


MISTAKES = {
    "--length 20 --template {t}": "give one of --length, --template and --start; got --length, --template",
    "": "give one of --length, --template and --start; got none",
    "--length 20 --bed {b}": "--bed is about the bases of --start",
    "--template {t} --protein 1": "--protein is about the bases of --start",
    "--start {odd} --protein 1": "has 7 bases, not a multiple of 3",
    "--start {amb} --bed {b}": "has an ambiguous base at position 3",
    "--template {full}": "has no N to write; use --start to change it",
    "--template {t} --avoid EcoRI": "EcoRI to avoid is there at position 2, within bases that stay",
    "--template {t} --motif TTTTTTTTTTTTT": "no position for the motif TTTTTTTTTTTTT",
    "--template {t} --gc 0.9 1": "can have 0.231 to 0.615",
    "--length 20 --gc 0.6 0.4": "--gc needs two shares, the lower first",
    "--length 20 --avoid EcoRQ": "EcoRQ: neither IUPAC codes of bases nor one of the enzymes",
    "--start {met} --protein 1": "no base that may change can without changing the protein",
    "--length 20 --method metropolis": "--method metropolis needs something to search for",
    "--length 20 --method gibbs --oracle {number}": "--method gibbs follows the model alone",
    "--length 20 --max_edits 3": "--max_edits is for --method metropolis, not unmask",
    "--length 20 --oracle {model}": "not a fine-tuned model of sequences or nucleotides",
    "--length 20 --oracle {base}": "not a fine-tuned model of sequences but of nucleotides (--oracle)",
    "--length 20 --oracle {classes}": "say which of its outputs",
    "--length 20 --oracle {classes},onn": "no output 'onn' (--oracle); it has off, on, other",
    "--length 20 --oracle {classes},on,high": "'high' is no weight",
    "--length 20 --oracle {number} --judge {number}": "is an --oracle too; a judge must not take part",
    "--length 40 --judge {short}": "reads at most 30 bases (--judge), and 40 are to be written",
    "--length 20 --oracle {rna}": "its tokenizer does not know all of A, C, G and T (--oracle)",
    "--length 20 --number 2 --min_distance 21": "20 bases to write cannot differ in --min_distance 21",
    "--length 20 --training {t}": "--training is for the report, which needs --real",
    "--length 20 --real {t}": "fewer than two windows of 20 bases without N (--real)",
    "--start {t2} --bed {far}": "ends at 13",
    "--length 20 --model {kmer}": "its tokens are not single nucleotides",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(folders, tmp_path, capsys, words):
    names = {
        "t": fasta(tmp_path / "t.fa", r="ACGAATTCNNNNN"), "odd": fasta(tmp_path / "o.fa", r="ATGAAAT"),
        "amb": fasta(tmp_path / "a.fa", r="ACGNACG"), "full": fasta(tmp_path / "f.fa", r="ACGT"),
        "met": fasta(tmp_path / "m.fa", r="ATGTGG"), "t2": fasta(tmp_path / "t2.fa", r="ACGAATTCACGTA"),
        "b": tmp_path / "b.bed", "far": tmp_path / "far.bed", **folders,
    }  # fmt: skip
    names["b"].write_text("r\t0\t2\n")
    names["far"].write_text("r\t10\t20\n")
    given = words.format(**names).split()
    model = [] if "--model" in given else ["--model", folders["model"]]
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *given, *model, "--output", str(tmp_path / "out")])
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error")]
    assert stopped.value.code == 2 and len(error) == 1 and MISTAKES[words] in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id2label", ["off", "on"]), ("id2label", {"x": "on"}), ("id2label", {"0": "on", "1": "on"}),
        ("id2label", {"0": "on\n"}), ("architectures", 5), ("problem_type", {"a": 1}), ("problem_type", "ranking"),
    ],
)  # fmt: skip
def test_a_config_that_strangers_wrote_is_one_line(folders, tmp_path, key, value):
    oracle = shutil.copytree(folders["classes"], tmp_path / "oracle")
    content = json.loads((oracle / "config.json").read_text())
    (oracle / "config.json").write_text(json.dumps(content | {"auto_map": 5, key: value}))
    with pytest.raises(UserError, match=f"oracle: .*({key}|not a fine-tuned model)"):
        generate(folders["model"], length=20, oracle=[f"{oracle},on"])


def test_what_cannot_be_written_is_said(folders, tmp_path, caplog):
    start = fasta(tmp_path / "s.fa", r="AT" * 15)
    with pytest.raises(UserError, match="no sequence keeps the rules after 20 tries each; refused for --gc 20"):
        generate(folders["model"], start=start, method="metropolis", gc=[0.9, 0.95], max_edits=1, steps=3)
    found = generate(folders["model"], length=1, number=5, min_distance=1)
    assert len(found) == found["sequence"].nunique() <= 4
    assert f"only {len(found)} of 5 sequences after 20 tries each; refused for --min_distance" in caplog.text
