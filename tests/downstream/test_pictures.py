"""Logos with heights computed by hand, heat maps, maps, and pages that load nothing from elsewhere."""

import base64
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna.cli import main
from megadna.downstream.html_page import CSS, SCRIPT
from megadna.downstream.pictures import BASE_COLOURS, draw_heat_map, draw_logo, entropy_bits, information_heights
from megadna.downstream.region_files import Region, Variant, files_of, read_gff, read_variants
from megadna.downstream.region_pages import PER_ROW, Panel, RegionFigure, Tracks, allele, lanes_of
from megadna.errors import UserError


def boxes(axes) -> dict[str, list[list[float]]]:
    """[left, bottom, right, top] of each letter by base, in the order of positions."""
    bases = {to_rgba(colour): base for base, colour in BASE_COLOURS.items()}
    found = {}
    for patch in axes.findobj(PathPatch):
        base, letters = bases[patch.get_facecolor()], patch.get_path()
        first = np.flatnonzero(letters.codes == Outline.MOVETO)[:: 2 if base == "A" else 1]  # A has a hole
        ends = [*first[1:], len(letters.codes)]
        pieces = [Outline(letters.vertices[a:b], letters.codes[a:b]) for a, b in zip(first, ends, strict=True)]
        found[base] = [piece.get_extents().extents.tolist() for piece in pieces]
    return found


def test_heights_by_hand():
    p_L4 = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.5, 0.25, 0.125, 0.125], [np.nan] * 4])
    np.testing.assert_allclose(entropy_bits(p_L4), [0, 2, 1, 1.75, np.nan])
    heights = [[2, 0, 0, 0], [0] * 4, [0.5, 0.5, 0, 0], [0.125, 0.0625, 0.03125, 0.03125], [np.nan] * 4]
    np.testing.assert_allclose(information_heights(p_L4), heights)


def test_letters_are_stacked_by_height_and_downwards_below_zero():
    axes = Figure().subplots()
    draw_logo(axes, np.array([[1, 0.5, 0, 0], [-2, 0.25, 0, -1], [np.nan] * 4]), first_position=10)
    found = boxes(axes)
    left, right = 10 - 0.47, 10 + 0.47
    np.testing.assert_allclose(found["C"], [(left, 0, right, 0.5), (left + 1, 0, right + 1, 0.25)], atol=1e-6)
    np.testing.assert_allclose(found["A"], [(left, 0.5, right, 1.5), (left + 1, -3, right + 1, -1)], atol=1e-6)
    np.testing.assert_allclose(found["T"], [(left + 1, -1, right + 1, 0)], atol=1e-6)
    assert "G" not in found and axes.get_xlim() == (9.5, 12.5)
    assert axes.get_ylim()[0] < -3 and axes.get_ylim()[1] > 1.5


@pytest.mark.parametrize("heights_L4", [np.zeros((3, 4)), np.full((2, 4), np.nan)])
def test_a_logo_without_letters(heights_L4):
    axes = Figure().subplots()
    draw_logo(axes, heights_L4)
    assert not axes.findobj(PathPatch) and axes.get_xlim() == (-0.5, len(heights_L4) - 0.5)


def test_a_heat_map_is_symmetric_about_zero_and_marks_the_reference():
    axes = Figure().subplots()
    image = draw_heat_map(axes, np.array([[0, -3, 1, np.nan], [1, 0, 0, 0]]), "AN", first_position=5)
    assert image.get_clim() == (-3, 3) and image.get_array().shape == (4, 2)
    assert image.get_array().mask.sum() == 1 and image.get_extent() == [4.5, 6.5, 3.5, -0.5]
    assert axes.collections[0].get_offsets().tolist() == [[5, 0]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages and pictures of one minus-strand region with everything on them, and of its dependency map."""
    home = tmp_path_factory.mktemp("home")
    model = megadna_folder(home / "m", 128)
    bases = "".join(np.random.default_rng(3).choice(list("ACGT"), 300))
    (home / "g.fa").write_text(f">chr1\n{bases}\n")
    (home / "r.bed").write_text("chr1\t100\t220\tpromoter\t0\t-\n")
    (home / "v.tsv").write_text(
        f"contig\tpos\tref\talt\tllr\n1\t121\t{bases[120]}\tG\t-1.5\n1\t150\t{bases[149]}\t{bases[149]}TT\t.\n1\t5\tA\tC\t1\n"
    )
    (home / "a.gff").write_text(
        "".join(
            f"chr1\tx\t{kind}\t{start}\t{end}\t.\t{strand}\t.\tID={name}\n"
            for kind, start, end, strand, name in (
                ("region", 1, 300, ".", "whole"), ("gene", 51, 180, "+", "left<&>"), ("gene", 171, 290, "-", "right"),
                ("exon", 51, 130, "+", "e1"), ("exon", 141, 180, "+", "e2"), ("tRNA", 1, 60, "+", "elsewhere"),
            )
        )
    )  # fmt: skip
    run = ["--model", str(model), "--input", str(home / "g.fa"), "--bed", str(home / "r.bed"), "--output"]
    main(["dependencies", *run, *(str(home / f"d.{ending}") for ending in ("npy", "html", "png"))])
    more = ["--gff", str(home / "a.gff"), "--variants", str(home / "v.tsv"), "--map", str(home / "d.npy")]
    main(["mutate", *run, *(str(home / f"o.{ending}") for ending in ("npy", "html", "png")), *more, "--window", "31"])
    return home


def elements(page: Path) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(page.read_text()).iter())


def data(page: Path, name: str):
    return json.loads(next(one.text for one in elements(page) if one.get("id") == name))


@pytest.mark.parametrize("name", ["o.html", "d.html"])
def test_a_page_is_well_formed_and_refers_to_nothing_outside_itself(home, name):
    for one in elements(home / name):
        for key, value in one.attrib.items():
            if key.rpartition("}")[2] in ("href", "src", "srcset", "data", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), (one.tag, key, value[:80])
        for text in (one.text or "", *one.attrib.values()):
            assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest|import\(", text)
    tags = {one.tag.rpartition("}")[2] for one in elements(home / name)}
    assert {"canvas", "script", "style"} <= tags and not tags & {"link", "iframe", "img", "object", "embed", "base"}
    assert not set("<&") & set(SCRIPT + CSS)


def test_a_page_holds_the_numbers(home):
    """The text of a base, and the map as it was written, to a 65,534th of its largest value."""
    array_L4, texts = np.load(home / "o.npy"), data(home / "o.html", "bases-data")["texts"]
    assert len(texts) == len(array_L4) == 120 and texts[0].startswith("chr1:219 (0-based)")
    for index in (0, 60, 119):
        assert "A {:+.3f}  C {:+.3f}  G {:+.3f}  T {:+.3f}".format(*array_L4[index]) in texts[index]
    assert "variant" in texts[219 - 120] and "LLR -1.500" in texts[219 - 120] and "variant" not in texts[0]
    assert "not scored" in texts[219 - 149] and "gene left<&> (50-180 +)" in texts[219 - 149]
    map_LL = np.load(home / "d.npy")
    for page in ("o.html", "d.html"):
        stored = data(home / page, "map-data")
        values = np.frombuffer(base64.b64decode(stored["values"]), "<u2").reshape(120, 120) / 65534 * stored["highest"]
        np.testing.assert_allclose(values, map_LL, atol=stored["highest"] / 65534)
        assert (stored["first"], stored["step"], len(stored["bases"])) == (219, -1, 120)


@pytest.mark.parametrize("name", ["o.png", "d.png"])
def test_nothing_is_cut_off_at_the_edges_of_a_picture(home, name):
    pixels = imread(home / name)[..., :3]
    assert min(pixels.shape[:2]) > 500 and pixels.std() > 0.05
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 1).all()


@pytest.mark.parametrize(
    ("name", "element", "texts"),
    [
        ("o.html", "figure", ["chr1:21", "(0-based)"]),
        ("o.html", "map", ["mutated", "affected", "value"]),
        ("d.html", "map", ["mutated", "affected", "value"]),
    ],
)
def test_a_page_opens_in_a_browser(home, tmp_path, name, element, texts):
    """Chromium runs the page without an error, loads nothing else, draws, and shows numbers under the pointer."""
    pytest.importorskip("PyQt6.QtWebEngineCore", reason="needs PyQt6-WebEngine and libEGL", exc_type=ImportError)
    script = f"""(() => {{
      const target = document.getElementById("{element}"), box = target.getBoundingClientRect();
      const at = {{ clientX: box.left + 140, clientY: box.top + 130, bubbles: true }};
      target.dispatchEvent(new MouseEvent("mousemove", at));
      const map = document.getElementById("map");
      const pixels = new Set(map.getContext("2d").getImageData(64, 64, 720, 720).data).size;
      return [document.getElementById("tip").textContent, pixels, document.title];
    }})()"""
    browser = Path(__file__).with_name("browser.py")
    command = [sys.executable, str(browser), str(home / name), script, str(tmp_path / "found.json")]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["console"] == [] and found["requests"] == [f"file://{home / name}"]
    tip, pixels, title = found["result"]
    assert all(text in tip for text in texts) and pixels > 20 and title == "promoter, chr1:100-220 (-)"


def test_variants_of_a_vcf(tmp_path):
    lines = [
        "##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
        "1\t10\t.\ta\tG,*,<DEL>\t.\tPASS\tDP=3;MEGADNA_LLR=-0.5,.,.", "1\t12\trs1\tAC\tA\t.\t.\tDP=1",
        "2\t1\t.\tA\t.\t.\t.\t.",
    ]  # fmt: skip
    path = tmp_path / "v.vcf.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_variants(path, ["chr1", "chr2"])
    assert found == [
        Variant("chr1", 9, "A", "G", -0.5), Variant("chr1", 9, "A", "<DEL>", None),
        Variant("chr1", 11, "AC", "A", None),
    ]  # fmt: skip
    assert [allele(one, minus=True) for one in found] == ["C", "<DEL>", "\N{MINUS SIGN}1"]
    for text, message in (
        ("contig\tpos\tref\n1\t2\tA\n", "no column 'alt'; it has contig, pos, ref"),
        ("contig\tpos\tref\talt\n1\tx\tA\tC\n", "line 2: pos 'x'"),
        ("contig\tpos\tref\talt\n1\t4\n", "line 2: 2 columns of 4"),
        ("contig\tpos\tref\talt\n7\t4\tA\tC\n", "no variant on chr1"),
        ("##fileformat=VCFv4.2\n1\t10\t.\tA\n", "line 2: 4 columns"),
        ("##fileformat=VCFv4.2\n1\t10\t.\tA\tC,G\t.\t.\tMEGADNA_LLR=1\n", "line 2: 1 MEGADNA_LLR for 2 alleles"),
    ):
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            read_variants(tmp_path / "bad.tsv", ["chr1"])


def test_lanes_hold_no_overlaps(home):
    features = read_gff(home / "a.gff", ["chr1"])
    assert "region" not in set(features.feature)
    lanes = lanes_of(features, Region("chr1", 100, 220, "-", "", "A" * 120))
    assert lanes == [
        ("gene", [(50, 180, "+", "left<&>")]), ("", [(170, 290, "-", "right")]),
        ("exon", [(50, 130, "+", "e1"), (140, 180, "+", "e2")]),
    ]  # fmt: skip
    with pytest.raises(UserError, match="no feature on chr9"):
        read_gff(home / "a.gff", ["chr9"])


def test_what_cannot_be_drawn_is_refused_before_anything_is_computed(home, tmp_path, capsys):
    (tmp_path / "two.bed").write_text("chr1\t100\t220\nchr1\t10\t20\n")
    (tmp_path / "other.bed").write_text("chr1\t101\t221\n")
    (tmp_path / "alone.npy").touch()
    (tmp_path / "torn.npy").write_text("x")
    (tmp_path / "torn.npy.json").write_text("{")
    (tmp_path / "long.fa").write_text(">chr1\n" + "ACGT" * 600 + "\n")
    run = ["mutate", "--model", str(home / "m"), "--window", "31", "--output", str(tmp_path / "x.html"), "--input"]
    genome = [*run, str(home / "g.fa")]
    cases = [
        (
            [*genome, "--map", str(home / "d.npy"), "--bed", str(tmp_path / "two.bed")],
            "the map of one region, and there are 2",
        ),
        (
            [*genome, "--map", str(home / "d.npy"), "--bed", str(tmp_path / "other.bed")],
            "is of another region than chr1:101",
        ),
        ([*genome, "--map", str(tmp_path / "alone.npy")], "alone.npy.json: no such file"),
        ([*genome, "--map", str(tmp_path / "torn.npy")], "not a map of megadna dependencies"),
        (
            [*run, str(tmp_path / "long.fa")],
            "chr1:0-2,400 has 2,400 bases; a picture shows 2,000 at most: give shorter regions with --bed",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
        assert stopped.value.code == 2 and len(error) == 1 and message in error[0], (message, error)
    assert not list(tmp_path.glob("x*"))


def test_rows_of_a_picture_share_the_bases(home):
    """101 bases are rows of 51 and 50, not of 100 and 1."""
    for size, per_row in ((99, 99), (101, 51), (250, 84)):
        effects_L4 = np.zeros((size, 4))
        panel = Panel("", effects_L4, effects_L4, "effect", "height")
        drawn = RegionFigure(Region("c", 0, size, "+", "", "A" * size), "", [panel], Tracks(), PER_ROW)
        assert drawn.per_row == per_row


def test_each_of_several_regions_gets_a_file_of_its_name():
    def names(*regions: tuple[int, int, str, str]) -> list[str]:
        made = [Region("c", start, end, strand, name, "") for start, end, strand, name in regions]
        return [path.name for path in files_of(Path("/x/out.png"), made)]

    assert names((0, 5, "+", "a")) == ["out.png"]
    assert names((0, 5, "+", "a"), (1, 9, "-", "b/c")) == ["out.a.png", "out.b%2Fc.png"]
    assert names((0, 5, "+", "a"), (1, 9, "-", "a")) == ["out.c_0-5.png", "out.c_1-9minus.png"]
    assert names((0, 5, "+", ""), (0, 5, "+", "x")) == ["out.c_0-5.1.png", "out.c_0-5.2.png"]
    with pytest.raises(UserError, match="501 regions would each get a file"):
        names(*[(at, at + 1, "+", "") for at in range(501)])
