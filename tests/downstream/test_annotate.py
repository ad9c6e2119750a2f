"""Clusters of windows recover planted composition; enrichment against loops; rotations hold their level; bad input."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy.stats import fisher_exact
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

from megadna import annotate, embed
from megadna.cli import main
from megadna.downstream import inference, outputs
from megadna.downstream.annotate import colours, fit, runs
from megadna.downstream.enrichment import enrichment, own_parts, read_track, windows_with
from megadna.downstream.interpretation_options import AnnotateOptions
from megadna.errors import UserError
from megadna.genome.bed import read_bed
from megadna.genome.records import reverse_complement

DATA = Path(__file__).parents[1] / "data"
WINDOW = 100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(megadna_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Two contigs in blocks of 1 to 4 windows, poor in G and C or rich; which window is rich."""
    rng = np.random.default_rng(4)
    path, rich = tmp_path_factory.mktemp("genome") / "g.fa", []
    with path.open("w") as file:
        for contig in ("chr1", "chr2"):
            blocks = np.repeat(np.arange(24) % 2, rng.integers(1, 5, 24))
            rich_share, poor_share = [0.15, 0.35, 0.35, 0.15], [0.35, 0.15, 0.15, 0.35]
            shares = [rich_share if is_rich else poor_share for is_rich in blocks]
            text = "".join("".join(rng.choice(list("ACGT"), WINDOW, p=share)) for share in shares)
            file.write(f">{contig}\n{text}\n")
            rich += blocks.tolist()
    return path, np.array(rich)


def test_planted_composition_is_recovered_whatever_the_seed_of_the_batches(model, planted):
    path, rich = planted
    windows = annotate(model, path, window=WINDOW, clusters=2, projection="pca")
    assert list(windows.columns) == ["contig", "start", "end", "cluster", "x", "y"]
    assert len(windows) == len(rich) and adjusted_rand_score(rich, windows["cluster"]) > 0.95
    sizes = windows["cluster"].value_counts()
    assert sizes[1] >= sizes[2] and set(sizes.index) == {1, 2}
    again = annotate(model, path, window=WINDOW, clusters=2, projection="pca", batch_tokens=300)
    assert (again["cluster"] == windows["cluster"]).all()
    chosen = annotate(model, path, window=WINDOW, projection="none")
    assert adjusted_rand_score(rich, chosen["cluster"]) > 0.95  # the silhouette takes two clusters
    assert chosen["x"].isna().all()


def test_the_strand_of_the_genome_does_not_matter(model, planted, tmp_path):
    path, _ = planted
    text = path.read_text().split("\n")[1]
    (tmp_path / "r.fa").write_text(f">chr1\n{reverse_complement(text)}\n")
    (tmp_path / "f.fa").write_text(f">chr1\n{text}\n")
    one, other = (
        annotate(model, tmp_path / f"{n}.fa", window=WINDOW, clusters=2, projection="none")["cluster"] for n in "fr"
    )
    assert adjusted_rand_score(one, other[::-1]) == 1


def test_clusters_are_those_of_standardised_embeddings():
    vectors = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    vectors[:30, 0] += 50
    vectors[:, 1] *= 1e4  # a channel of large numbers decides nothing by its scale
    found = fit(vectors, 2, 1).predict(vectors)
    assert adjusted_rand_score(np.arange(60) < 30, found) == 1
    with pytest.raises(UserError, match="all alike"):
        fit(np.ones((30, 4), np.float32), 0, 1)


def test_runs_join_what_touches_and_share_what_overlaps():
    windows = pd.DataFrame(
        {
            "contig": ["a", "a", "a", "a", "b", "b"],
            "start": [0, 100, 200, 250, 0, 300],
            "end": [100, 200, 300, 350, 100, 400],
            "cluster": [1, 1, 2, 2, 2, 2],
        }
    )
    starts, ends = own_parts(windows)
    assert starts.tolist() == [0, 100, 200, 275, 0, 300] and ends.tolist() == [100, 200, 275, 350, 100, 400]
    assert runs(windows).to_numpy().tolist() == [
        ["a", 0, 200, 1], ["a", 200, 350, 2], ["b", 0, 100, 2], ["b", 300, 400, 2]
    ]  # fmt: skip


def test_a_window_has_a_feature_that_covers_half_of_it_or_has_its_middle_in_it():
    windows = pd.DataFrame(
        {"contig": ["a"] * 4 + ["b"], "start": [0, 100, 200, 300, 0], "end": [100, 200, 300, 400, 60]}
    )

    def found(*intervals):
        table = pd.DataFrame(intervals, columns=["contig", "start", "end"])
        return np.flatnonzero(windows_with(windows, table)).tolist()

    assert found(("a", 10, 20)) == [0]
    assert found(("a", 90, 105)) == [0]  # its middle is 97
    assert found(("a", 95, 149)) == [1]
    assert found(("a", 60, 250)) == [1, 2]  # the first window: 40 of 100
    assert found(("a", 0, 30), ("a", 20, 50)) == [0]
    assert found(("a", 100, 125), ("a", 120, 150), ("b", 0, 1)) == [1, 4]
    assert found(("c", 0, 100)) == []


def test_enrichment_equals_a_loop_over_rotations():
    labels = [1, 1, 1, 2, 2, 3, 3, 2, 1, 1]
    has = [1, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    starts = np.arange(10) * 10
    windows = pd.DataFrame({"contig": "a", "start": starts, "end": starts + 10, "cluster": labels})
    features = pd.DataFrame({"contig": "a", "start": starts[np.array(has) > 0], "feature": "gene"}).assign(
        end=lambda table: table["start"] + 10
    )
    everywhere = pd.DataFrame({"contig": ["a"], "start": [0], "end": [100], "feature": ["region"]})
    table = enrichment(windows, pd.concat([features, everywhere]))
    assert set(table["feature"]) == {"gene"}  # the region is in every window: not tested
    table = table.set_index("cluster")
    assert table.loc[1, ["windows", "with_feature", "in_cluster", "expected"]].tolist() == [5, 4, 3, 2.0]
    assert table.loc[1, "odds_ratio"] == pytest.approx(3 * 4 / (2 * 1))
    assert table.loc[2, "odds_ratio"] == pytest.approx(0.5 * 3.5 / (3.5 * 4.5))  # none of 3: 0.5 added to each cell
    for cluster in (1, 2, 3):
        is_in = np.array(labels) == cluster
        counts = [int((np.roll(is_in, shift) & (np.array(has) > 0)).sum()) for shift in range(10)]
        tails = [sum(count >= counts[0] for count in counts), sum(count <= counts[0] for count in counts)]
        assert table.loc[cluster, "p"] == pytest.approx(min(1, 2 * min(tails) / 10))
    ordered = table["p"].sort_values()
    steps = [min(1.0, p * 3 / rank) for rank, p in enumerate(ordered, start=1)]
    by_hand = np.minimum.accumulate(steps[::-1])[::-1]
    np.testing.assert_allclose(table.loc[ordered.index, "p_adjusted"], by_hand)


def test_rotations_hold_their_level_where_windows_are_alike_and_fisher_does_not():
    """Labels and features in runs of about 20 windows, independent of each other."""
    rng = np.random.default_rng(2)
    starts = np.arange(1000) * 10
    by_rotation, by_fisher = [], []
    for _ in range(100):
        labels, has = (np.repeat(rng.integers(0, 2, 400), rng.integers(1, 40, 400))[:1000] for _ in range(2))
        windows = pd.DataFrame({"contig": "a", "start": starts, "end": starts + 10, "cluster": labels})
        features = windows[has == 1].assign(feature="x")[["contig", "start", "end", "feature"]]
        by_rotation.append(enrichment(windows, features)["p"].iloc[0])
        counts = [[int(((labels == i) & (has == j)).sum()) for j in (0, 1)] for i in (0, 1)]
        by_fisher.append(fisher_exact(counts)[1])
    assert np.mean(np.array(by_rotation) < 0.05) <= 0.1
    assert np.mean(np.array(by_fisher) < 0.05) > 0.4


def test_planted_clusters_are_enriched_and_shuffled_labels_are_not(model, planted, tmp_path):
    path, rich = planted
    windows = annotate(model, path, window=WINDOW, clusters=2, projection="none")
    bed = tmp_path / "islands.bed"
    own = windows[rich == 1]
    bed.write_text("".join(f"{c}\t{s}\t{e}\n" for c, s, e in zip(own.contig, own.start, own.end, strict=True)))
    found = annotate(model, path, window=WINDOW, clusters=2, projection="none", annotation=bed)
    table = found.attrs["enrichment"].set_index("cluster")
    rich_cluster = windows["cluster"][rich == 1].mode()[0]
    assert table.loc[rich_cluster, "feature"] == "islands" and table.loc[rich_cluster, "odds_ratio"] > 50
    assert (table["p_adjusted"] <= 2 / len(windows) * 2).all() and table["odds_ratio"].min() < 0.02
    shuffled = windows.assign(cluster=np.random.default_rng(3).permutation(windows["cluster"]))
    assert enrichment(shuffled, read_track(bed, {"chr1": 10**6, "chr2": 10**6}))["p_adjusted"].min() > 0.05


def test_features_of_gtf_gff3_and_bed(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read_track(DATA / "yeast_I_VI_VIII.gtf.gz", {"chrI": 230218, "chrVI": 270161})
    assert set(table["contig"]) == {"chrI", "chrVI"}  # matched, and VIII is not there
    assert "the genome lacks VIII" in caplog.text and "I -> chrI" in caplog.text
    assert {"gene", "exon", "CDS", "tRNA gene", "protein_coding gene"} <= set(table["feature"])
    gff = tmp_path / "ring.gff3"
    line = "ring\tx\t{}\t{}\t{}\t.\t+\t.\tID={}\n"
    gff.write_text(line.format("region", 1, 1000, "r;Is_circular=true") + line.format("gene", 951, 1100, "g"))
    genes = read_track(gff, {"ring": 1000}).query("feature == 'gene'")
    assert sorted(zip(genes["start"], genes["end"], strict=True)) == [(0, 100), (950, 1000)]
    with pytest.raises(UserError, match=r"ring ends at 900, a region of it at 1,000; does .* build"):
        read_track(gff, {"ring": 900} | {"other": 5})
    with pytest.raises(UserError, match=r"its contigs \(ring\) are none of the genome's \(I\)"):
        read_track(gff, {"I": 900})
    states = tmp_path / "states.bed.gz"
    states.write_bytes(b"I\t0\t10\tenhancer\nI\t10\t20\tpromoter\nI\t20\t30\t.\n")
    assert read_track(states, {"I": 900})["feature"].tolist() == ["enhancer", "promoter", "states"]
    many = tmp_path / "peaks.bed"
    many.write_text("".join(f"I\t{i}\t{i + 1}\tpeak_{i}\n" for i in range(60)))
    assert set(read_track(many, {"I": 900})["feature"]) == {"peaks"}


def test_the_command_writes_bed_table_enrichment_and_picture(model, planted, tmp_path):
    path, rich = planted
    bed = tmp_path / "half.bed"
    bed.write_text("chr1\t0\t1500\n")
    run = ["annotate", "--model", model, "--genome", str(path), "--window", str(WINDOW), "--clusters", "2"]
    run += ["--projection", "pca", "--annotation", str(bed), "--output"]
    main([*run, str(tmp_path / "x.bed")])
    windows = pd.read_parquet(tmp_path / "x.windows.parquet")
    assert adjusted_rand_score(rich, windows["cluster"]) > 0.95
    lines = [line.split("\t") for line in (tmp_path / "x.bed").read_text().splitlines()[1:]]
    assert all(len(line) == 9 and line[1:3] == line[6:8] for line in lines)
    shown = {f"cluster_{n}": ",".join(map(str, rgb)) for n, rgb in enumerate(colours(2), start=1)}
    assert all(line[8] == shown[line[3]] for line in lines)
    regions = list(read_bed(tmp_path / "x.bed"))  # the track line is no interval
    assert [r.name != s.name or r.contig != s.contig for r, s in itertools.pairwise(regions)] == [True] * (
        len(lines) - 1
    )
    assert sum(r.end - r.start for r in regions) == WINDOW * len(rich)
    enriched = pd.read_csv(tmp_path / "x.enrichment.tsv", sep="\t")
    assert set(enriched["feature"]) == {"half"} and sorted(enriched["cluster"]) == [1, 2]
    pixels = (255 * imread(tmp_path / "x.png")[:, :, :3]).round().astype(int).reshape(-1, 3)
    for rgb in colours(2):
        assert (pixels == rgb).all(axis=1).sum() > 100
    main([*run, str(tmp_path / "y.bed")])
    for name in (".bed", ".windows.parquet", ".enrichment.tsv"):
        assert (tmp_path / f"x{name}").read_bytes() == (tmp_path / f"y{name}").read_bytes()
    assert not (tmp_path / "y.bed.parts").exists()


def test_a_stopped_command_is_resumed(model, planted, tmp_path, monkeypatch):
    path, _ = planted
    monkeypatch.setattr(inference, "MAX_STRETCHES", 40)
    run = ["annotate", "--model", model, "--genome", str(path), "--window", str(WINDOW), "--clusters", "3"]
    run += ["--projection", "none", "--output"]
    main([*run, str(tmp_path / "whole.bed")])
    write, computed = outputs.parquet.write_table, []

    def stop_at_the_second(table, part, **options):
        computed.append(str(part))
        if len(computed) == 2:
            raise KeyboardInterrupt
        write(table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_second)
    with pytest.raises(SystemExit):
        main([*run, str(tmp_path / "b.bed")])
    assert not (tmp_path / "b.bed").exists() and len(list((tmp_path / "b.bed.parts").glob("part-*"))) == 1
    with pytest.raises(SystemExit) as other:
        main([*run, str(tmp_path / "b.bed"), "--step", "50"])
    assert other.value.code == 2
    main([*run, str(tmp_path / "b.bed")])
    assert sum("part-000000" in name for name in computed) == 1
    assert (tmp_path / "b.bed").read_bytes() == (tmp_path / "whole.bed").read_bytes()


def test_windows_of_n_are_left_out_and_counted(model, tmp_path, caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(5)
    texts = ["".join(rng.choice(list("ACGT"), 400)), "N" * 200 + "R" * 60, "".join(rng.choice(list("ACGT"), 240))]
    path = tmp_path / "n.fa"
    path.write_text(f">a\n{''.join(texts)}\n")
    windows = annotate(model, path, window=WINDOW, clusters=2, projection="none")
    assert "axes" not in windows.attrs
    assert windows["start"].tolist() == [0, 100, 200, 300, 700, 800]
    assert "3 of 9 windows left out: more than half of the bases are N" in caplog.text
    path.write_text(f">a\n{'N' * 300}\n")
    with pytest.raises(UserError, match="more than half of every window is N"):
        annotate(model, path, window=WINDOW, projection="none")


def test_mistakes_are_one_line(model, planted, tmp_path, capsys):
    path, _ = planted
    (tmp_path / "empty.fa").write_text("")
    (tmp_path / "short.fa").write_text(">a\nACGTACGTAC\n")
    (tmp_path / "other.gff").write_text("chrX\tx\tgene\t1\t9\t.\t+\t.\tID=g\n")
    start = ["annotate", "--model", model, "--output", str(tmp_path / "o.bed"), "--genome"]
    cases = {
        (str(tmp_path / "empty.fa"),): "empty: holds no sequence",
        (str(tmp_path / "no.fa"),): "no such file or folder (--genome)",
        (
            str(tmp_path / "short.fa"),
            "--clusters",
            "4",
            "--projection",
            "pca",
        ): "1 window of 200 bases, and --clusters 4",
        (str(path), "--clusters", "90", "--window", "1000"): "--clusters 90 needs at least 90",
        (str(path), "--window", "1000"): "UMAP needs 20 windows, not",
        (str(path), "--annotation", str(tmp_path / "other.gff")): "its contigs (chrX) are none of the genome's",
        (str(path), "--clusters", "1"): "--clusters must be 0 or 2 to 100, got 1",
        (str(path), "--step", "300"): "--step 300 is longer than --window 200",
        (str(path), "--layer", "7", "--projection", "none"): "has hidden states 0 to 2",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as error:
            main([*start, *arguments])
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.value.code == 2 and message in text, text
    assert not list(tmp_path.glob("o.*"))
    (tmp_path / "o.png").write_text("mine")
    with pytest.raises(UserError, match=r"o\.png: is a file that exists"):
        AnnotateOptions(model=model, genome=path, output=tmp_path / "o.bed").check_files()


def test_window_embeddings_are_those_of_embed(model, planted, tmp_path):
    """The mean of both strands of each window alone."""
    from megadna.downstream.annotate import Annotator

    path, _ = planted
    options = AnnotateOptions(model=model, genome=path, window=WINDOW, layer=1)
    embedder = Annotator(options, None)
    table = embedder.table(next(embedder.blocks())[:5])
    text = path.read_text().split("\n")[1]
    (tmp_path / "w.fa").write_text("".join(f">{i}\n{text[i * WINDOW : (i + 1) * WINDOW]}\n" for i in range(5)))
    expected = np.stack(embed(model, tmp_path / "w.fa", strand="both", layers=[1])["embedding"].to_list())
    np.testing.assert_allclose(np.stack(table["embedding"].to_pylist()), expected, atol=1e-5)


@pytest.mark.slow
def test_umap_is_drawn(model, planted, tmp_path):
    path, rich = planted
    windows = annotate(model, path, window=WINDOW, clusters=2, projection="umap")
    near = windows.loc[rich == 1, ["x", "y"]].mean() - windows.loc[rich == 0, ["x", "y"]].mean()
    spread = windows.groupby(rich)[["x", "y"]].std().max().max()
    assert windows["x"].notna().all() and np.linalg.norm(near) > 2 * spread
