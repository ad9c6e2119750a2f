"""Which names are one contig, which pattern fits, and what a message proposes."""

import pytest

from megadna.genome.contigs import alternatives, fits, match_contigs, nearest, renamed


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        (["1", "X"], ["1", "X"], {"1": "1", "X": "X"}),
        (["chrVI", "chrI"], ["I", "VI"], {"chrVI": "VI", "chrI": "I"}),
        (["1", "MT"], ["chr1", "chrM"], {"1": "chr1", "MT": "chrM"}),
        (["Chr1", "ChrM"], ["1", "Mt"], {"Chr1": "1", "ChrM": "Mt"}),
        (["chr1"], ["2"], {}),
        (["chrMT"], ["chrM", "chrMT"], {"chrMT": "chrMT"}),
        (["MT"], ["chrM", "chrMT"], {"MT": "chrMT"}),  # prefix goes before the mitochondrion's names
        (["Mito"], ["chrM", "chrMT"], {}),  # either could be meant
        (["1", "chr1"], ["chr1"], {"chr1": "chr1"}),  # a human and a mouse chromosome
        (["1", "Chr1"], ["chr1"], {}),
        (["chr1"], ["1", "Chr1"], {}),
        (["chr"], ["", "x"], {}),
        (["6"], ["VI"], {}),
    ],
)
def test_names_are_matched_only_where_there_is_no_other(theirs, ours, found):
    assert match_contigs(theirs, ours) == found


def test_an_assembly_report_goes_before_prefixes():
    groups = {name: ["NC_1.1", "1", "chr1"] for name in ("NC_1.1", "1", "chr1")}
    assert match_contigs(["chr1"], ["NC_1.1"], groups) == {"chr1": "NC_1.1"}
    assert renamed({"chr1": "NC_1.1", "x": "x"}) == "chr1 -> NC_1.1" and renamed({"x": "x"}) == ""
    assert renamed({f"chr{n}": str(n) for n in range(30)}, 2) == "chr0 -> 0, chr1 -> 1, ... (30 names)"


def test_a_pattern_is_a_name_or_a_regular_expression():
    assert fits("gi|68711", "gi|68711") and not fits("gi|68711", "gi|6871") and fits("chr(1|2)", "chr2")
    assert not fits("chr1", "chr11") and fits("HLA-A*01:01", "HLA-A*01:01")
    assert alternatives("VI|chr(1|2)|[|]x") == ["VI", "chr(1|2)", "[|]x"]
    assert alternatives(r"gi\|68711|b") == [r"gi\|68711", "b"] and alternatives("a|") == ["a"]


@pytest.mark.parametrize(
    ("name", "known", "end"),
    [
        ("chrVI", ["I", "VI"], "; did you mean VI?"),
        ("M", ["chr1", "chrMT"], "; did you mean chrMT?"),
        ("chr(I|V)", ["I", "V", "X"], "; did you mean I or V?"),
        ("NC_000913", ["NC_000913.3", "NC_000908.2"], "; did you mean NC_000913.3?"),
        ("SCAFFOLD_7", ["scaffold_7"], "; did you mean scaffold_7?"),
        ("zzz", ["9"], "; there is 9"),
        ("zzz", list("abcdefg"), "; there are a, b, c, d, e, ..."),
    ],
)
def test_the_nearest_name_is_proposed(name, known, end):
    assert nearest(name, known, fits) == end
