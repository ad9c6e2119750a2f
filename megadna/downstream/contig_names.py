"""Names of contigs in an annotation, peak or signal file -> the names that the genome file uses.

The rule is that of megadna.genome.contig_names; what was matched is logged.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from megadna.downstream.genome import Genome
from megadna.errors import UserError, require
from megadna.genome.bed import locate, past_the_end
from megadna.genome.contig_names import match_contigs, read_aliases, renamed
from megadna.log import get_logger

log = get_logger(__name__)


def on_genome(
    table: pd.DataFrame, genome: Genome, path: Path, aliases: Path | None, min_share: float = 0.9
) -> pd.DataFrame:
    """The rows whose `contig` the genome holds, under its name; UserError where fewer than `min_share` are, where one
    passes its contig's end, and where the assembly report `aliases` names no contig of the genome.

    With a column `line`, the rows are those of a BED file: then every one must lie on a contig.
    """
    groups = read_aliases(aliases) if aliases else {}
    if aliases:
        known = groups.keys() & genome.letters.keys()
        require(bool(known), f"--aliases {aliases}: names no contig of {genome.path}; give the report of its assembly")
    theirs = dict.fromkeys(table["contig"])
    if "line" in table:
        first_lines = table.groupby("contig", sort=False)["line"].first().to_dict()
        names = locate(path, first_lines, genome.letters, str(genome.path), groups)
    else:
        names = match_contigs(theirs, genome.letters, groups)
    log.info("contig names: %d equal; matched: %s", sum(a == b for a, b in names.items()), renamed(names) or "none")
    table = _known(table, names, genome, path, min_share)
    past = table["end"].to_numpy() > table["contig"].map(genome.lengths).to_numpy()
    if past.any():
        row = table.iloc[int(np.argmax(past))]
        if "line" in table:
            raise past_the_end(path, row["line"], row["contig"], row["end"], genome.lengths[row["contig"]])
        raise UserError(
            f"{path}: {row['contig']}:{row['start']:,}-{row['end']:,} passes the contig's end "
            f"({genome.lengths[row['contig']]:,} bases in {genome.path}); it belongs to another genome build"
        )
    return table


def _known(table: pd.DataFrame, names: dict[str, str], genome: Genome, path: Path, min_share: float) -> pd.DataFrame:
    """The rows on a contig of the genome, renamed; the others are counted in a warning."""
    known = table["contig"].isin(names.keys())
    missing = sorted(set(table["contig"][~known]))
    ours = ", ".join(list(genome.letters)[:5])
    require(
        bool(known.any()) and known.mean() >= min_share,
        f"{path}: {int(known.sum()):,} of {len(table):,} lie on a contig of {genome.path}, and {min_share:.0%} must; "
        f"unknown: {', '.join(missing[:5]) or 'none'}; the genome has {ours}; give the matching genome, or --aliases "
        "assembly_report.txt",
    )
    if missing:
        log.warning("%d of %d left out: the genome lacks %s", (~known).sum(), len(table), ", ".join(missing[:20]))
    return table[known].assign(contig=table.loc[known, "contig"].map(names))
