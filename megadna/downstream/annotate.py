"""`megadna annotate`: windows of a genome -> embeddings -> clusters as BED with colours, and their enrichment.

In:  AnnotateOptions. Each window's embedding is the mean over the tokens of its bases and over both strands.
Out: OUTPUT.bed (BED9, runs of windows of one cluster joined), .windows.parquet (a row per window), .enrichment.tsv
     (downstream/enrichment.py) and .png. Clusters are numbered from 1, the largest first.

The embeddings wait on disk in the saved parts (downstream/outputs.py) and are read three times: a random sample (at
most 100,000 windows and 256 MB) to fit, all to assign, and a sample of 5,000 to draw. What is in memory for all windows
is the table of windows, about 50 bytes each. Each channel is set to mean 0 and variance 1 over the sample; the clusters
are those of k-means (scikit-learn's MiniBatchKMeans, 5 starts).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import silhouette_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from megadna.downstream.embed import WindowEmbedder
from megadna.downstream.enrichment import enrichment, own_parts, read_track
from megadna.downstream.inputs import check_windows
from megadna.downstream.interpretation_options import AnnotateOptions
from megadna.downstream.outputs import vectors_of
from megadna.downstream.projection import (
    MAX_DRAWN,
    Groups,
    Panel,
    Tables,
    draw,
    project,
    rows_at,
)
from megadna.errors import require
from megadna.log import counted, get_logger
from megadna.progress import Progress

# Shapes: N windows (n of a sample), H hidden channels, K clusters.
log = get_logger(__name__)
MAX_FITTED = 100_000
MAX_FITTED_BYTES = 1 << 28
MAX_CHOSEN_K = 10
_SILHOUETTES = 2_000  # windows that one is computed of: it takes their pairwise distances


def annotate(model: Path | str, genome: Path | str, **options: Any) -> pd.DataFrame:
    """contig, start, end, cluster (from 1), x and y (NaN where not drawn) of every window, the embeddings in memory;
    `attrs["enrichment"]` has the table of enrichment if there is an annotation. Keyword arguments are the fields of
    AnnotateOptions."""
    chosen = AnnotateOptions(model=str(model), genome=Path(genome), **options)
    chosen.check_libraries()
    found = check_windows(chosen)
    features = None if chosen.annotation is None else read_track(chosen.annotation, found.lengths)
    embedder = Annotator(chosen, features)
    tables = embedder.tables()
    windows = clustered(lambda: iter(tables), found.windows, chosen)
    if features is not None:
        windows.attrs["enrichment"] = enrichment(windows, features)
    return windows


def fit(vectors_nH: np.ndarray, num_clusters: int, seed: int) -> Pipeline:
    """Standardisation and k-means of a sample of embeddings; num_clusters 0: as many clusters, of 2 to 10, as have the
    highest silhouette (Rousseeuw 1987) over at most 2,000 windows."""
    scaler = StandardScaler().fit(vectors_nH)
    standard_nH = scaler.transform(vectors_nH)

    def kmeans(count: int) -> MiniBatchKMeans:
        return MiniBatchKMeans(count, random_state=seed, n_init=5, batch_size=4096).fit(standard_nH)

    if num_clusters:
        return make_pipeline(scaler, kmeans(num_clusters))
    scores: dict[int, float] = {}
    found = {count: kmeans(count) for count in range(2, min(MAX_CHOSEN_K, len(vectors_nH) - 1) + 1)}
    some = np.random.default_rng((seed, 2)).permutation(len(standard_nH))[:_SILHOUETTES]
    for count, model in found.items():
        labels = model.labels_[some]
        if 1 < len(np.unique(labels)) < len(some):
            scores[count] = float(silhouette_score(standard_nH[some], labels))
    require(bool(scores), "the windows' embeddings are all alike: no clusters to choose from")
    best = max(scores, key=lambda count: scores[count])
    log.info("silhouette by clusters: %s; %d taken", ", ".join(f"{k}: {s:.3f}" for k, s in scores.items()), best)
    return make_pipeline(scaler, found[best])


def clustered(tables: Tables, num_windows: int, options: AnnotateOptions) -> pd.DataFrame:
    """contig, start, end, cluster, x, y of each window."""
    rng = np.random.default_rng((options.seed, 1))
    order_N = rng.permutation(num_windows)
    width = next(tables())["embedding"].type.list_size
    fitted = np.sort(order_N[: min(MAX_FITTED, max(1, MAX_FITTED_BYTES // (4 * width)))])
    with Progress("clustering"):
        clustering = fit(vectors_of(rows_at(tables, fitted)), options.clusters, options.seed)
    labels, positions = [], []
    with Progress("assigning windows", num_windows, "windows") as progress:
        for table in tables():
            labels.append(clustering.predict(vectors_of(table)))
            contigs = table["contig"].dictionary_encode()  # a name for millions of windows is in memory once
            positions.append(pa.table({"contig": contigs, "start": table["start"], "end": table["end"]}))
            progress.advance(len(table))
    labels_N = np.concatenate(labels)
    sizes_K = np.bincount(labels_N, minlength=clustering[-1].n_clusters)
    rank_K = np.argsort(np.argsort(-sizes_K, kind="stable"), kind="stable")
    windows = pa.concat_tables(positions).unify_dictionaries().to_pandas()
    windows = windows.assign(cluster=1 + rank_K[labels_N], x=np.nan, y=np.nan)
    if options.projection != "none":
        drawn = np.sort(order_N[:MAX_DRAWN])
        with Progress(f"projecting ({options.projection})"):
            vectors_nH = clustering[0].transform(vectors_of(rows_at(tables, drawn)))
            panel = project(vectors_nH, options.projection, options.seed)
        windows.loc[drawn, ["x", "y"]] = panel.points
        windows.attrs["axes"] = panel.axes
    return windows


def colours(count: int) -> list[tuple[int, int, int]]:
    """Red, green and blue (0 to 255) of each cluster: matplotlib's tab10, tab20, or above 20 the rainbow."""
    from matplotlib import colormaps

    if count > 20:
        values = [colormaps["gist_rainbow"](number / (count - 1)) for number in range(count)]
    else:
        values = [colormaps["tab10" if count <= 10 else "tab20"](number) for number in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, *_ in values]


def runs(windows: pd.DataFrame) -> pd.DataFrame:
    """contig, start, end, cluster: adjacent windows of one cluster joined; of windows that overlap, each has the part
    up to the middle of the overlap."""
    starts, ends = own_parts(windows)
    contigs, clusters = windows["contig"].to_numpy(), windows["cluster"].to_numpy()
    goes_on = (contigs[1:] == contigs[:-1]) & (clusters[1:] == clusters[:-1]) & (starts[1:] == ends[:-1])
    first = np.append(True, ~goes_on)
    columns = {"contig": contigs[first], "start": starts[first], "end": ends[np.append(~goes_on, True)]}
    return pd.DataFrame({**columns, "cluster": clusters[first]})


def write_bed(windows: pd.DataFrame, path: Path) -> None:
    """BED9 of the runs, below a track line that makes UCSC's browser show the colours."""
    found = runs(windows)
    shown = {number: ",".join(map(str, rgb)) for number, rgb in enumerate(colours(windows["cluster"].max()), start=1)}
    lines = found[["contig", "start", "end"]].assign(
        name="cluster_" + found["cluster"].astype(str), score=0, strand=".", thick_start=found["start"],
        thick_end=found["end"], colour=found["cluster"].map(shown),
    )  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write('track name="megadna clusters" itemRgb="On"\n')
        lines.to_csv(file, sep="\t", header=False, index=False, lineterminator="\n")


def draw_windows(windows: pd.DataFrame, options: AnnotateOptions, path: Path) -> None:
    """The drawn windows as points, coloured as in the BED file."""
    drawn = windows[windows["x"].notna()]
    sizes = windows["cluster"].value_counts()
    shades = [np.array(rgb) / 255 for rgb in colours(windows["cluster"].max())]
    labels = [f"cluster {number} ({sizes.get(number, 0):,})" for number in range(1, len(shades) + 1)]
    groups = Groups("", drawn["cluster"].to_numpy() - 1, labels, shades, ["o"] * len(shades))
    shown = "" if len(drawn) == len(windows) else f", {len(drawn):,} of them drawn"
    text = f"{counted(len(windows), 'window')} of {options.window:,} bases{shown}; embedded by {options.model}"
    panel = Panel(drawn[["x", "y"]].to_numpy(), windows.attrs["axes"])
    draw([panel], groups, options.genome.name, text, path)


class Annotator(WindowEmbedder):
    """An encoder, the options, and the features of the annotation."""

    options: AnnotateOptions

    def __init__(self, options: AnnotateOptions, features: pd.DataFrame | None) -> None:
        super().__init__(options, options.window, options.step or options.window)
        self.features = features

    def join(self, parts: list[Path], path: Path) -> None:
        """Cluster the windows of the parts and write all files."""
        num_windows = sum(parquet.read_metadata(part).num_rows for part in parts)
        windows = clustered(lambda: map(parquet.read_table, parts), num_windows, self.options)
        write_bed(windows, path)
        parquet.write_table(pa.Table.from_pandas(windows, preserve_index=False), path.with_suffix(".windows.parquet"))
        if self.features is not None:
            table = enrichment(windows, self.features)
            table.to_csv(path.with_suffix(".enrichment.tsv"), sep="\t", index=False, float_format="%.6g")
        if self.options.projection != "none":
            draw_windows(windows, self.options, path.with_suffix(".png"))
