"""MEME files: round trips to the last digit, files as others write them, mistakes with their line."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from megadna.errors import UserError
from megadna.genome.meme import Motif, read_meme, write_meme

JASPAR = Path(__file__).parents[1] / "data" / "jaspar_2024_clusters_60.meme.gz"


def test_jaspars_motifs_are_read_as_they_stand():
    found = read_meme(JASPAR)
    assert len(found) == 60 and found[0].name == "C001:HES_SREBF:bHLH" and found[0].sites == 1
    with gzip.open(JASPAR, "rt") as lines:
        rows = [line.split() for line in lines if line[:1] == " "]
    np.testing.assert_array_equal(np.concatenate([one.p_W4 for one in found]), np.array(rows, float))


def test_what_is_written_is_read_to_the_last_digit(tmp_path):
    rng = np.random.default_rng(1)
    motifs = [Motif(f"m{i}", rng.dirichlet(np.ones(4) / 5, size=6 + i), float(i), "a name" * i) for i in range(3)]
    motifs.append(Motif("thirds", np.array([[1 / 3, 1 / 3, 1 / 3, 0.0]])))
    write_meme(tmp_path / "a.meme", motifs)
    found = read_meme(tmp_path / "a.meme")
    for one, other in zip(motifs, found, strict=True):
        assert (one.name, one.sites, one.title) == (other.name, other.sites, other.title)
        np.testing.assert_array_equal(one.p_W4, other.p_W4)


def test_memelite_reads_what_is_written(tmp_path):
    """Another reader of the format; it takes (4, W)."""
    io = pytest.importorskip("memelite.io")
    motifs = read_meme(JASPAR)
    write_meme(tmp_path / "a.meme", motifs)
    theirs = io.read_meme(str(tmp_path / "a.meme"))
    assert list(theirs) == [one.name for one in motifs]
    for one, p_4W in zip(motifs, theirs.values(), strict=True):
        np.testing.assert_array_equal(one.p_W4, p_4W.T)


FULL = """MEME version 5.5.0 (Release date: x)
ALPHABET "DNA" DNA-LIKE
strands: + -
Background letter frequencies (from file):
A 0.3 C 0.2 G 0.2 T 0.3

MOTIF\tMA0001.1\tAGL3
log-odds matrix: alength= 4 w= 2 E= 0
 10 -20 30 -40
 1 2 3 4
letter-probability matrix: alength= 4 nsites= 97 E= 3.2e-9
0.5 0.25 0.25 0
 0.1\t0.2 0.3 0.4

URL http://jaspar.genereg.net/matrix/MA0001.1
MOTIF second
letter-probability matrix:
1 0 0 0
"""


def test_optional_parts_and_other_sections(tmp_path):
    path = tmp_path / "full.meme"
    path.write_bytes(FULL.replace("\n", "\r\n").encode())
    first, second = read_meme(path)
    assert (first.name, first.title, first.sites) == ("MA0001.1", "AGL3", 97)
    assert first.p_W4.tolist() == [[0.5, 0.25, 0.25, 0], [0.1, 0.2, 0.3, 0.4]]
    assert second.name == "second" and second.p_W4.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no motif in it; give a file in MEME format"),
        (">contig\nACGT\n", "no motif in it"),
        ("ALPHABET= ACGU\n", "line 1: alphabet ACGU; motifs must be of A, C, G and T"),
        ("ALPHABET= ACDEFGHIKLMNPQRSTVWY\n", "motifs must be of A, C, G and T"),
        ("MOTIF a\nletter-probability matrix: w= 2\n.2 .3 .3 .2\n", "line 4: not four probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 1\n.2 .3 .3\n", "(row 1 of 1): '.2 .3 .3'"),
        ("MOTIF a\nletter-probability matrix: w= 1\n2 3 3 2\n", "line 3: not four probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 1\n1.1 -.1 0 0\n", "line 3: not four probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 1\n.2 .3 .3 x\n", "line 3: not four probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 1\nnan nan nan nan\n", "line 3: not four probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 0\n", "a matrix without a row"),
        ("MOTIF \n", "line 1: a motif without a name"),
        ("letter-probability matrix: w= 1\n.2 .3 .3 .2\n", "line 1: a matrix without a MOTIF line"),
    ],
)
def test_mistakes_name_their_line(text, message, tmp_path):
    path = tmp_path / "a.meme"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_meme(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_not_text_and_no_name(tmp_path):
    (tmp_path / "a.meme").write_bytes(b"MOTIF \xff\xfe\n")
    with pytest.raises(UserError, match="not text"):
        read_meme(tmp_path / "a.meme")
    with pytest.raises(UserError, match="one word"):
        write_meme(tmp_path / "b.meme", [Motif("two words", np.full((1, 4), 0.25))])
    assert not (tmp_path / "b.meme").exists()
