"""`megadna search`: the windows of a genome whose embeddings are nearest to those of query sequences.

In:  SearchOptions; queries (whole records, read as they are given), windows of the genome on either strand.
Out: query, rank (from 1), contig, start, end, strand, similarity: the `top` windows of each query, best first; as BED:
     contig, start, end, query, score (1000 x similarity, at least 0), strand, similarity.

Embeddings are means over the tokens of bases; similarity is the cosine. A window is embedded on both strands, and the
more similar one counts: `-` says that the query is like the reverse complement of the window. The search is exact (a
matrix product with every window) at any size; of each saved part of the genome only its best windows are kept.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.downstream.embed import WindowEmbedder
from megadna.downstream.inputs import queries_of, survey
from megadna.downstream.interpretation_options import SearchOptions
from megadna.genome.records import Stretch
from megadna.progress import tracked

# Shapes: Q queries, N windows of a part, H hidden channels.
COLUMNS = ("query", "rank", "contig", "start", "end", "strand", "similarity")
_QUERIES_AT_ONCE = 1024
_MAX_WAITING = 1 << 20  # rows of parts before they are reduced to the best


def search(model: Path | str, genome: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """The nearest windows of `genome` to each sequence of `input`: query, rank (from 1), contig, start, end, strand,
    similarity. Keyword arguments are the fields of SearchOptions."""
    chosen = SearchOptions(model=str(model), genome=Path(genome), input=Path(input), **options)
    queries, window, step = queries_of(chosen)
    survey(chosen, window, step)
    searcher = Searcher(chosen, queries, window, step)
    return searcher.hits(map(searcher.table, searcher.blocks()))


class Searcher(WindowEmbedder):
    """An encoder, the options, and the embedded queries."""

    what = "searching"
    options: SearchOptions

    def __init__(self, options: SearchOptions, queries: list[Stretch], window: int, step: int) -> None:
        super().__init__(options, window, step)
        self.names = [query.name for query in queries]
        self._queries_QH = _unit(np.stack(self.runner(queries)))

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The best windows among these for each query: number of the query, contig, start, end, strand, similarity."""
        strands = [_unit(np.stack(self.runner(some))) for some in (stretches, [s.reversed() for s in stretches])]
        count = min(self.options.top, len(stretches))
        windows = pd.DataFrame([(s.name, s.start, s.end) for s in stretches], columns=["contig", "start", "end"])
        found = []
        for first in range(0, len(self._queries_QH), _QUERIES_AT_ONCE):
            queries_QH = self._queries_QH[first : first + _QUERIES_AT_ONCE]
            forward_QN, backward_QN = (queries_QH @ windows_NH.T for windows_NH in strands)
            best_QN = np.maximum(forward_QN, backward_QN)
            order = np.argsort(-best_QN, axis=1, kind="stable")[:, :count]  # of equals, the first in the genome
            number = np.repeat(first + np.arange(len(order)), count)
            strand = np.where(np.take_along_axis(backward_QN > forward_QN, order, 1), "-", "+").ravel()
            similarity = np.take_along_axis(best_QN, order, 1).ravel()
            found.append(windows.iloc[order.ravel()].assign(number=number, strand=strand, similarity=similarity))
        return pa.Table.from_pandas(pd.concat(found), preserve_index=False)

    def hits(self, tables: Iterable[pa.Table]) -> pd.DataFrame:
        """The best windows of all parts: the columns of `search`."""
        waiting: list[pd.DataFrame] = []
        for table in tables:
            waiting.append(table.to_pandas())
            if sum(map(len, waiting)) > _MAX_WAITING:
                waiting = [self._best(waiting)]
        found = self._best(waiting)
        names = np.array(self.names, object)[found["number"]]
        return found.assign(query=names, rank=1 + found.groupby("number").cumcount())[list(COLUMNS)]

    def _best(self, tables: list[pd.DataFrame]) -> pd.DataFrame:
        """The `top` of each query, best first; of equals, the first in the genome."""
        rows = pd.concat(tables, ignore_index=True)
        order = np.lexsort((-rows["similarity"], rows["number"]))  # stable
        return rows.iloc[order].groupby("number").head(self.options.top)

    def join(self, parts: list[Path], path: Path) -> None:
        """In the format of the file's extension."""
        found = self.hits(map(parquet.read_table, tracked(parts, "joining the parts", len(parts), "parts")))
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pandas(found, preserve_index=False), path)
        elif path.suffix == ".tsv":
            found.to_csv(path, sep="\t", index=False, lineterminator="\n")
        else:
            score = (1000 * found["similarity"]).round().clip(0, 1000).astype(int)
            columns = ["contig", "start", "end", "query", "score", "strand", "similarity"]
            found.assign(score=score)[columns].to_csv(path, sep="\t", header=False, index=False, lineterminator="\n")


def _unit(vectors_NH: np.ndarray) -> np.ndarray:
    """The vectors divided by their length."""
    return vectors_NH / np.maximum(np.linalg.norm(vectors_NH, axis=1, keepdims=True), 1e-12)
