"""Importances as bigWig files in genome coordinates, and as the arrays that logos and TF-MoDISco take.

In:  rows of bases as attribute.py makes them.
Out: files; fp64 [L, 4].
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from megadna.alphabet import OTHER, base_codes, dna_of
from megadna.downstream.inputs import TRACK_OF_STRAND, bigwig_files

# Shapes: L bases, 4 the bases A C G T.


def write_bigwigs(parts: list[Path], path: Path, columns: dict[str, str], sizes: dict[str, int]) -> None:
    """A file for each method (and its column) and strand, written part by part; bases without a value are left out.
    Regions must be sorted and must not overlap, which is checked before any work."""
    import pyBigWig

    order = {contig: number for number, contig in enumerate(sizes)}
    paths = bigwig_files(list(columns), path)
    files: dict[Path, Any] = {}
    with ExitStack() as stack:
        for part in parts:
            table = parquet.read_table(part).to_pandas()
            table = table.assign(order=table["contig"].map(order)).sort_values(["order", "position"])
            for sign, rows in table.groupby(table["strand"].map(TRACK_OF_STRAND)):
                for method, column in columns.items():
                    if (at := paths[method, str(sign)]) not in files:
                        files[at] = pyBigWig.open(str(at), "w")
                        stack.callback(files[at].close)
                        files[at].addHeader(list(sizes.items()))
                    known = rows[rows[column].notna()]
                    starts = known["position"].to_numpy()
                    values = known[column].tolist()
                    files[at].addEntries(known["contig"].tolist(), starts.tolist(), (starts + 1).tolist(), values)


def heights(bases: str, importance_L: np.ndarray) -> np.ndarray:
    """fp64 [L, 4] (columns A, C, G, T): the importance in the column of each base; 0 where it is unknown."""
    codes_L = base_codes(dna_of(bases))
    found_L4 = np.zeros((len(bases), 4))
    known = np.flatnonzero((codes_L != OTHER) & ~np.isnan(importance_L))
    found_L4[known, codes_L[known]] = importance_L[known]
    return found_L4
