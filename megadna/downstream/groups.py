"""Rows of a labelled dataset that must not be parted, and splits that keep them together.

In:  tables with a column `sequence`, and perhaps `family`, names that the user gave.
Out: the column `group`. Rows are of one group if they share a stretch of 31 bases on either strand (copies, reverse
     complements, overlapping windows, variants of one promoter), the whole sequence or a name: directly, or through
     other rows.
The codes of all 31-mers are in memory at once: about 40 bytes a base.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from megadna.alphabet import dna_of
from megadna.data.leakage import K, kmer_codes
from megadna.errors import require
from megadna.genome.records import reverse_complement
from megadna.log import get_logger

log = get_logger(__name__)

Keys = tuple[np.ndarray, np.ndarray]
"""Numbers of rows, and a key of each; a row may come several times, or never."""
_BATCH = 1 << 17  # bases whose codes are computed at a time: the arrays stay in the cache


def connected(keys: Iterable[Keys], count: int) -> np.ndarray:
    """Group [count] of each row, numbered by first row: those with an equal key are joined, directly or through
    others."""
    from scipy.sparse import coo_array  # after tables have been read: scipy is slow to import
    from scipy.sparse.csgraph import connected_components

    links = []
    for rows, values in keys:
        order = np.argsort(values, kind="stable")
        same = values[order][1:] == values[order][:-1]
        links.append((rows[order][:-1][same], rows[order][1:][same]))
    ends, others = (np.concatenate(parts) for parts in zip(*links, strict=True))
    graph = coo_array((np.ones(len(ends), bool), (ends, others)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def either_strand(sequences: Iterable[str]) -> np.ndarray:
    """The sequence or its reverse complement, whichever is first in the alphabet."""
    return np.array([min(sequence, reverse_complement(sequence)) for sequence in sequences])


def share_out(groups: np.ndarray, fractions: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """`train`, `dev` or `test` of each row, for the shares of dev and test: groups in random order to test, then dev,
    as long as they fit; at least one (the smallest) for a share above 0."""
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    chosen = np.full(len(sizes), "train", dtype="<U5")
    for split, fraction in (("test", fractions[1]), ("dev", fractions[0])):
        left = round(fraction * len(groups))
        free = order[chosen[order] == "train"]
        for group in free[sizes[free] <= left]:
            if sizes[group] <= left:
                chosen[group] = split
                left -= sizes[group]
        if fraction and not (chosen == split).any():
            chosen[free[np.argmin(sizes[free])]] = split
    return chosen[groups]


def grouped(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with their column `group`, numbered over all of them; how many there are is logged."""
    rows = pd.concat(tables.values(), ignore_index=True)
    keys = [*_shared_stretches(rows["sequence"]), (np.arange(len(rows)), either_strand(rows["sequence"]))]
    if "family" in rows:
        keys.append((np.arange(len(rows)), rows["family"].to_numpy(str)))
    groups = connected(keys, len(rows))
    sizes = np.bincount(groups)
    text = "%d rows form %d groups (rows that share %d bases on either strand%s); the largest has %d"
    log.info(text, len(rows), len(sizes), K, ", or a name" if "family" in rows else "", sizes.max())
    ends = np.cumsum([len(table) for table in tables.values()])
    parts = np.split(groups, ends[:-1])
    return {name: table.assign(group=part) for (name, table), part in zip(tables.items(), parts, strict=True)}


def _shared_stretches(sequences: Sequence[str]) -> Iterator[Keys]:
    """The canonical code of every 31-mer of A, C, G and T, and the row that it is of."""
    rows, codes, start = [], [], 0
    lengths = np.array([len(sequence) for sequence in sequences])
    batches = np.cumsum(lengths) // _BATCH
    for stop in [*(np.flatnonzero(np.diff(batches)) + 1), len(lengths)]:
        owners = np.repeat(np.arange(start, stop, dtype=np.int32), lengths[start:stop])
        found, known = kmer_codes(dna_of("".join(sequences[start:stop])))
        whole = known & (owners[: len(found)] == owners[K - 1 :])
        rows.append(owners[: len(found)][whole])
        codes.append(found[whole])
        start = stop
    yield np.concatenate(rows), np.concatenate(codes)


def without_leakage(tables: dict[str, pd.DataFrame], policy: str, where: str) -> dict[str, pd.DataFrame]:
    """The tables, no row of train in a group of dev or of a test set, and none of dev in a group of a test set, as
    `policy` wants: UserError (refuse), those rows left out (drop_from_train), or no more than a warning (report)."""
    kept = dict(tables)
    for split, later in (("dev", ("train", "dev")), ("train", ("train",))):
        if split not in tables:
            continue
        others = {name: table for name, table in tables.items() if name not in later}
        shared = np.zeros(len(tables[split]), bool)
        for name, table in others.items():
            found = tables[split]["group"].isin(table["group"]).to_numpy()
            _tell(tables[split][found], table, f"{where}: {name}", split, policy)
            shared |= found
        if policy == "drop_from_train":
            kept[split] = tables[split][~shared]
            text = f"{where}: every row of {split} is of a group that is held out; make other splits"
            require(not shared.all(), text)
    return kept


def _tell(parted: pd.DataFrame, held: pd.DataFrame, where: str, split: str, policy: str) -> None:
    """Count the rows of `held` and those of train or dev (`parted`) that are of one group."""
    if not len(parted):
        return
    found = held[held["group"].isin(parted["group"])]
    first = parted.index[(parted["group"] == found["group"].iloc[0]).to_numpy()][0] + 1
    text = (
        f"{where}: {len(found)} of {len(held)} rows are of a group (rows that share {K} bases, on either strand) that "
        f"{split} has {len(parted)} rows of, as its row {found.index[0] + 1} and row {first} of {split}"
    )
    remedy = f"leave out those of {split} with --leakage drop_from_train, or say --leakage report"
    require(policy != "refuse", f"{text}; {remedy}")
    log.warning("%s%s", text, f"; left out of {split}" if policy == "drop_from_train" else "")


def require_groups(table: pd.DataFrame, parts: int, option: str, where: str) -> None:
    """UserError unless the table has this number of groups, a part of its own for each."""
    groups = table["group"].nunique()
    require(
        groups >= parts,
        f"{where}: {option} needs {parts} groups of rows, and the {len(table)} rows of train form {groups} (rows that "
        f"share {K} bases on either strand stay together); give more families",
    )
