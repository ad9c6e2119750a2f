"""`megadna motifs`: importances of positive sequences, and negatives -> a folder of motifs.

In:  the Parquet file that `megadna attribute` wrote; negative sequences.
Out: motifs.tsv (one row each), motifs.meme (the informative part of each window, without pseudocounts), instances.bed,
     logos/*.png, index.html; with `known` the nearest of these motifs; with `modisco` the arrays for TF-MoDISco.
The algorithm is in motif_search.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.downstream.interpretation_options import HYPOTHETICAL, MotifOptions
from megadna.downstream.logos import draw_motif, write_page
from megadna.downstream.motif_search import FoundMotif, consensus, find_motifs, informative
from megadna.downstream.pictures import heights
from megadna.errors import UserError, require
from megadna.files import atomic_folder
from megadna.genome.meme import Motif, read_meme, write_meme
from megadna.genome.records import read_records
from megadna.log import counted, get_logger
from megadna.progress import Progress

log = get_logger(__name__)

# Shapes: N sequences, L bases of a sequence, R rows of a table, W positions of a motif, 4 the bases A C G T.

ENOUGH_KNOWN = 50
"""Known motifs below which p-values depend much on which they are: their columns are the background (MEME's tomtom)."""


def motifs(input: Path | str, negatives: Path | str, **options: Any) -> pd.DataFrame:
    """The motifs, one row each; keyword arguments are the fields of MotifOptions. Written too, if `output` is given.

    Columns: motif, consensus, core, members, instances, sequences, positives, negatives (sequences that contain the
    core), p and q (of the core; adjusted), and with `known` known, known_p, known_e, known_strand.
    `attrs["counts"]`: instances with A, C, G, T at each position of the window, by motif, as nested lists.
    """
    return motifs_with(MotifOptions(input=Path(input), negatives=Path(negatives), **options))


def motifs_with(options: MotifOptions) -> pd.DataFrame:
    """As `motifs`."""
    known = None if options.known is None else read_meme(options.known)
    rows = read_importances(options.input, options.importance)
    sequences, importances = _sequences(rows, options.importance)
    _check_window(options, sequences)
    negatives = [bases for _, bases in read_records(options.negatives, options.column)]
    with Progress("searching motifs"):
        found = find_motifs(
            sequences, importances, negatives, min_length=options.min_length, window=options.window,
            cutoff=options.cutoff, min_instances=options.min_instances,
        )  # fmt: skip
    names = counted(len(found), "motif"), counted(len(sequences), "positive sequence")
    log.info("%s in %s and %s", *names, counted(len(negatives), "negative one"))
    matrices = [_trimmed(f"motif_{number}", motif) for number, motif in enumerate(found, start=1)]
    table = _table(found, matrices)
    if known is not None:
        with Progress(f"comparing with {options.known}"):
            table = table.assign(**nearest_known(matrices, known))
    table.attrs["counts"] = {name: motif.counts_W4.tolist() for name, motif in zip(table["motif"], found, strict=True)}
    if options.output is not None:
        with atomic_folder(options.output) as folder:
            _write(folder, table, found, matrices, rows)
            if options.modisco:
                write_modisco(folder / "modisco", rows, options.importance)
    return table


def read_importances(path: Path, column: str) -> pd.DataFrame:
    """contig, position, name, strand, region, base and the column of importance of a file of `megadna attribute`, and
    the hypothetical contributions, if it has them and the importance is theirs. UserError if it is none."""
    wanted = ["contig", "position", "name", "strand", "region", "base", column]
    try:
        names = parquet.read_schema(path).names
        missing = [name for name in wanted if name not in names]
        if missing == [column]:
            known = ", ".join(name for name in names if name.startswith("importance"))
            raise UserError(f"{path}: no column {column!r}; choose one of {known} with --importance")
        require(not missing, f"{path}: no column {', '.join(missing)}; give a Parquet file of megadna attribute")
        if column in ("importance", "importance_mutagenesis"):
            wanted += [name for name in HYPOTHETICAL if name in names]
        table = parquet.read_table(path, columns=wanted).to_pandas()
    except (pa.ArrowException, OSError) as error:
        log.debug("%s: %s", path, error)
        raise UserError(f"{path}: not a Parquet file; give the .parquet that megadna attribute wrote") from error
    require(len(table) > 0, f"{path}: empty: no base in it")
    return table


def _check_window(options: MotifOptions, sequences: list[str]) -> None:
    """UserError if no sequence holds a window, as an instance is a whole one; the log counts those that do not."""
    longest, short = max(map(len, sequences)), sum(len(bases) < options.window for bases in sequences)
    require(
        longest >= options.window,
        f"--window {options.window}: the longest sequence of {options.input} has {counted(longest, 'base')}; lower it",
    )
    if short:
        text = "%d of %s shorter than --window %d: no instance can be in them"
        log.warning(text, short, counted(len(sequences), "sequence"), options.window)


def _sequences(rows: pd.DataFrame, column: str) -> tuple[list[str], list[np.ndarray]]:
    """Bases and importance fp64 [L] of each sequence, in the order of the file."""
    edges = np.flatnonzero(np.diff(rows["region"].to_numpy())) + 1
    bases, values_R = rows["base"].to_numpy(), rows[column].to_numpy(np.float64)
    return ["".join(part) for part in np.split(bases, edges)], np.split(values_R, edges)


def _table(found: list[FoundMotif], matrices: list[Motif]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "motif": pd.Series([one.name for one in matrices], dtype=object),
            "consensus": [consensus(one.p_W4) for one in matrices],
            "core": [motif.core.text for motif in found],
            "members": [len(motif.members) for motif in found],
            "instances": [len(motif.windows) for motif in found],
            "sequences": [len({number for number, _ in motif.positions}) for motif in found],
            "positives": [motif.core.positives for motif in found],
            "negatives": [motif.core.negatives for motif in found],
            "p": [motif.core.p for motif in found],
            "q": [motif.core.q for motif in found],
        }
    )


def _p(motif: FoundMotif) -> np.ndarray:
    """Shares of A, C, G, T at each position of the window."""
    return motif.counts_W4 / len(motif.windows)


def _trimmed(name: str, motif: FoundMotif) -> Motif:
    """The informative part of the window."""
    p_W4 = _p(motif)
    part = informative(p_W4, len(motif.windows))
    return Motif(name, p_W4[part], len(motif.windows), motif.core.text)


def nearest_known(matrices: list[Motif], known: list[Motif]) -> dict[str, list[Any]]:
    """For each motif the known one with the smallest p of Tomtom (memelite: complete scores, both strands): known,
    known_p, known_e (p times the number of known motifs) and known_strand (of the known one)."""
    import warnings

    from memelite import tomtom

    if len(known) < ENOUGH_KNOWN:
        text = "%s: p-values of the comparison depend on which they are; give a whole database"
        log.warning(text, counted(len(known), "known motif"))
    if not matrices:
        return {"known": [], "known_p": [], "known_e": [], "known_strand": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is above
        results = tomtom([one.p_W4.T.copy() for one in matrices], [one.p_W4.T.copy() for one in known], n_jobs=1)
    p_QT, strands_QT = np.asarray(results[0]), np.asarray(results[4])
    best = p_QT.argmin(axis=1)
    p_Q = p_QT[np.arange(len(best)), best]
    return {
        "known": [f"{known[number].name} {known[number].title}".strip() for number in best],
        "known_p": p_Q.tolist(),
        "known_e": (p_Q * len(known)).tolist(),
        "known_strand": ["-" if strands_QT[row, number] else "+" for row, number in enumerate(best)],
    }


def _write(
    folder: Path, table: pd.DataFrame, found: list[FoundMotif], matrices: list[Motif], rows: pd.DataFrame
) -> None:
    table.to_csv(folder / "motifs.tsv", sep="\t", index=False)
    write_meme(folder / "motifs.meme", matrices)
    (folder / "instances.bed").write_text(_instances(table, found, rows), encoding="utf-8")
    (folder / "logos").mkdir()
    pictures = {}
    for name, motif in zip(table["motif"], found, strict=True):
        pictures[name] = draw_motif(name, _p(motif), len(motif.windows))
        (folder / "logos" / f"{name}.png").write_bytes(pictures[name])
    write_page(folder / "index.html", table, pictures)


def _instances(table: pd.DataFrame, found: list[FoundMotif], rows: pd.DataFrame) -> str:
    """BED lines of the windows, on their contigs."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(rows["region"].to_numpy())) + 1])
    contigs, strands = (rows[key].to_numpy()[edges] for key in ("contig", "strand"))
    first = rows["position"].to_numpy()[edges]
    lines = []
    for name, motif in zip(table["motif"], found, strict=True):
        for number, at in motif.positions:
            minus, size = strands[number] == "-", len(motif.windows[0])
            start = first[number] - at - size + 1 if minus else first[number] + at
            lines.append(f"{contigs[number]}\t{start}\t{start + size}\t{name}\t0\t{strands[number]}\n")
    return "".join(lines)


def write_modisco(folder: Path, rows: pd.DataFrame, column: str) -> None:
    """sequences.npz (one-hot) and contributions.npz, fp32 [N, 4, L] as TF-MoDISco's command line reads them; its Python
    call takes [N, L, 4]. The contributions are the hypothetical ones, if the rows have them; else the importance of the
    base that is there, and 0 of the others. UserError if the sequences differ in length."""
    sequences, importances = _sequences(rows, column)
    sizes = sorted({len(bases) for bases in sequences})
    if len(sizes) > 1:
        raise UserError(
            f"--modisco: needs sequences of one length, and these have {sizes[0]} to {sizes[-1]} bases; choose regions "
            "of one length"
        )
    if set(HYPOTHETICAL) <= set(rows.columns):
        values_NL4 = np.nan_to_num(rows[list(HYPOTHETICAL)].to_numpy().reshape(-1, sizes[0], 4))
    else:
        text = "%s: contributions of the other three bases are 0; --hypothetical of megadna attribute gives them"
        log.warning(text, folder)
        values_NL4 = np.stack([heights(*one) for one in zip(sequences, importances, strict=True)])
    ones_NL4 = np.stack([heights(bases, np.ones(len(bases))) for bases in sequences])
    folder.mkdir()
    for name, array_NL4 in (("sequences", ones_NL4), ("contributions", values_NL4)):
        np.savez_compressed(folder / f"{name}.npz", array_NL4.transpose(0, 2, 1).astype(np.float32))
