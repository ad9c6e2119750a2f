"""Names of contigs in an annotation, peak or signal file -> the names that the genome file uses.

In this order: the same name; another name of the same line of NCBI's assembly_report.txt; with or without `chr`; one of
the usual names of the mitochondrion.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from megadna.downstream.genome import Genome
from megadna.errors import UserError, require
from megadna.genome.contigs import report_rows
from megadna.log import get_logger

log = get_logger(__name__)

_MITOCHONDRION = {"M", "MT", "Mt", "Mito", "MtDNA", "mitochondrion", "mitochondrion_genome"}


def _candidates(name: str, groups: dict[str, list[str]]) -> list[str]:
    bare = name.removeprefix("chr")
    same = [bare, *(sorted(_MITOCHONDRION) if bare in _MITOCHONDRION else [])]
    return [name, *groups.get(name, []), *same, *(f"chr{other}" for other in same)]


def _alias_groups(path: Path) -> dict[str, list[str]]:
    require(path.is_file(), f"{path}: no such assembly report (--aliases)")
    return {name: names for _, names in report_rows(path) for name in names}


def on_genome(
    table: pd.DataFrame, genome: Genome, path: Path, aliases: Path | None, min_share: float = 0.9
) -> pd.DataFrame:
    """The rows whose `contig` the genome holds, under its name; UserError where fewer than `min_share` are, or where
    one passes its contig's end."""
    groups = _alias_groups(aliases) if aliases else {}
    found = {name: _candidates(name, groups) for name in table["contig"].unique()}
    names = {name: to for name, others in found.items() for to in others[::-1] if to in genome.letters}  # the first
    renamed = [f"{name} -> {to}" for name, to in names.items() if name != to]
    log.info("contig names: %d the same; renamed: %s", len(names) - len(renamed), ", ".join(renamed) or "none")
    known = table["contig"].isin(names.keys())
    missing = sorted(set(table["contig"][~known]))
    theirs, ours = ", ".join(missing[:5]) or "none", ", ".join(list(genome.letters)[:5])
    require(
        bool(known.any()) and known.mean() >= min_share,
        f"{path}: {int(known.sum()):,} of {len(table):,} lie on a contig of {genome.path}, and {min_share:.0%} must; "
        f"unknown: {theirs}; the genome has {ours}; give the matching genome, or --aliases assembly_report.txt",
    )
    if missing:
        log.warning("%d of %d left out: the genome lacks %s", (~known).sum(), len(table), ", ".join(missing[:20]))
    table = table[known].assign(contig=table.loc[known, "contig"].map(names))
    past = table["end"].to_numpy() > table["contig"].map(genome.lengths).to_numpy()
    if past.any():
        row = table.iloc[int(np.argmax(past))]
        raise UserError(
            f"{path}: {row['contig']}:{row['start']:,}-{row['end']:,} passes the contig's end "
            f"({genome.lengths[row['contig']]:,} bases in {genome.path}); it belongs to another genome build"
        )
    return table
