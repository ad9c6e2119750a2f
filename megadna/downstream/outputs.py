"""Tables written in parts: by several ranks, resumable, in constant memory, and complete or absent under their names.

OUTPUT.parts/ contains the finished parts and settings.json; the same command, started again, resumes there. When all
ranks are done, the first joins the parts in order (ready/), renames the files into place and removes the folder.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.downstream.inputs import BASE, REGION, TRACK_OF_STRAND, bigwig_files
from megadna.downstream.options import index_of, refuse_outputs
from megadna.downstream.stated import content_of
from megadna.errors import UserError
from megadna.files import LOCK, Claim, atomic_file, claimed, publish_files, sync_tree, write_text
from megadna.genome.records import Stretch, record_lengths
from megadna.log import get_logger, rank_from_environment
from megadna.ownership import clear_folder, refuse_occupied, resolved
from megadna.progress import Progress, tracked

log = get_logger(__name__)
MAX_ROW_GROUP = 1 << 24  # bytes of a row group of the joined Parquet file
Change = Callable[[pa.Table], pa.Table]
Item = TypeVar("Item")
Value = TypeVar("Value")


def _num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def grouped(items: Iterable[Item], *limits: tuple[Callable[[Item], int], int]) -> Iterator[list[Item]]:
    """The items in lists, each ended by the item with which the sum of a size reaches its limit."""
    block: list[Item] = []
    sums = [0] * len(limits)
    for item in items:
        block.append(item)
        sums = [total + size(item) for total, (size, _) in zip(sums, limits, strict=True)]
        if any(total >= limit for total, (_, limit) in zip(sums, limits, strict=True)):
            yield block
            block, sums = [], [0] * len(limits)
    if block:
        yield block


@contextmanager
def _held_parts(output: Path, settings: dict[str, Any], files: list[Path]) -> Iterator[tuple[Path, Claim | None]]:
    """Lock OUTPUT.parts during the block; afterwards it remains if the command can be resumed. The claim: on rank 0."""
    folder = output.with_name(f"{output.name}.parts")
    with ExitStack() as stack:
        if _num_ranks() > 1:
            stack.enter_context(_process_group())
        problem, claim = "", None
        if rank_from_environment() == 0:
            try:
                claim = stack.enter_context(claimed(output, folder))
                stated = {key: _stated(value) for key, value in settings.items()}
                stated |= {"content of the model": content_of(settings["model"])}
                _begin(claim, json.dumps(stated, sort_keys=True), files)
            except UserError as error:
                problem = str(error)
        if problem := _from_rank_0(problem):
            raise UserError(problem)
        folder = resolved(output).with_name(folder.name)
        try:
            yield folder, claim
        except BaseException as error:
            if claim is not None and not isinstance(error, UserError):  # which the next start would repeat
                claim.is_kept = any(folder.glob("part-*.parquet")) or (folder / "ready").is_dir()
            raise


def _begin(claim: Claim, stated: str, files: list[Path]) -> None:
    note, ready = claim.folder / "settings.json", claim.folder / "ready"
    if ready.is_dir() and not any(ready.iterdir()):  # killed after the last file was renamed
        clear_folder(claim.folder, keep=[LOCK])
    if note.is_file() and note.read_text(encoding="utf-8") != stated:
        claim.is_kept = True
        raise UserError(
            f"{claim.folder}: left by a command with other options, or its input or model has changed since; remove "
            "it, or repeat that command to resume"
        )
    if not ready.is_dir():
        claim.is_kept = note.is_file()
        for file in files:
            refuse_occupied(file, " or remove it", is_file=True)
        claim.is_kept = False
        write_text(note, stated)


def _stated(value: Any) -> str:
    """A setting as text; of a file its size and time too."""
    if isinstance(value, Path) and value.is_file():
        status = value.stat()
        return f"{value} ({status.st_size} bytes, {status.st_mtime_ns})"
    return str(value)


class Work:
    """What a verb computes in parts: a table of each block of its input, from which its files are made."""

    what = "running"
    """In the progress bar."""
    unit = "bases"
    options: Any

    def __init__(self, options: Any) -> None:
        self.options = options
        self.progress = Progress(self.what)
        """Which `table` advances."""

    def load(self) -> None:
        """Load the model, if it is not loaded yet."""

    def blocks(self) -> Iterator[Sequence[Any]]:
        """The input, those pieces together that are one part; each counts `end - start` in the progress bar."""
        raise NotImplementedError

    def table(self, block: Any, /) -> pa.Table:
        """The rows of a block."""
        raise NotImplementedError

    def join(self, parts: list[Path], path: Path) -> None:
        """Write the output from its parts; `path` has its name, in the folder to write in."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """All files that may be written."""
        return self.options.files()

    def settings(self) -> dict[str, Any]:
        """What a stopped command must have in common with the one that resumes it."""
        return asdict(replace(self.options, batch_tokens=1))

    def tables(self) -> list[pa.Table]:
        """Those of the whole input, in memory."""
        return list(map(self.table, self.blocks()))

    def frame(self) -> pd.DataFrame:
        """The rows of the whole input, in memory."""
        return pa.concat_tables(self.tables()).to_pandas()

    def write(self, total: int | None) -> list[Path]:
        """Compute the parts of the input (`total` units, if known), join them and rename the output files into place;
        these files, on rank 0 ([] elsewhere).

        UserError on all ranks if a file exists, if the folder was left by a command with other settings, input or
        model, or if another command fills it. A command stopped between two renames resumes there: the files are
        complete before the first is renamed.
        """
        output = self.options.output[0] if isinstance(self.options.output, list) else self.options.output
        refuse_outputs(output, self.files())  # before the model is loaded
        self.load()
        self.progress = Progress(self.what, total, self.unit)
        with _held_parts(output, self.settings(), self.files()) as (folder, claim), self.progress:
            ready = folder / "ready"  # appears when the output files in it are complete
            paths = [] if _from_rank_0(ready.is_dir()) else self._write_parts(folder)
            if claim is None:
                return []
            if paths:
                joined = folder / "joined"
                shutil.rmtree(joined, ignore_errors=True)
                joined.mkdir()
                self.join(paths, joined / output.name)
                sync_tree(joined)
                joined.rename(ready)
            return publish_files(ready, folder.parent) if ready.is_dir() else []

    def _write_parts(self, folder: Path) -> list[Path]:
        """Compute each block on one of the ranks; the files of all parts, in order."""
        if found := len(list(folder.glob("part-*.parquet"))):
            log.info("resuming in %s, where %d parts are finished", folder, found)
        paths = []
        for number, block in enumerate(self.blocks()):
            part = folder / f"part-{number:06d}.parquet"
            paths.append(part)
            bases = sum(piece.end - piece.start for piece in block)
            if part.exists():
                self.progress.skip(bases)
            elif number % _num_ranks() == rank_from_environment():
                table = self.table(block)
                with atomic_file(part) as temporary:
                    parquet.write_table(table, temporary, use_dictionary=_texts(table.schema))
            else:
                self.progress.advance(bases)  # another rank's, which is about as far
        _from_rank_0("")  # when all are done
        return paths


@contextmanager
def _process_group() -> Iterator[None]:
    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=30))  # a rank may be hours ahead of another
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _from_rank_0(value: Value) -> Value:
    """Rank 0's value, on all ranks, once all have called."""
    if _num_ranks() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    distributed.barrier()
    return values[0]


def _texts(schema: pa.Schema) -> list[str]:
    """Columns to write as dictionaries: texts repeat, numbers do not."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def tables_of(parts: list[Path], change: Change = lambda table: table) -> Iterator[pa.Table]:
    """The table of each part, changed."""
    for part in tracked(parts, "joining the parts", len(parts), "parts"):
        yield change(parquet.read_table(part))


def write_parquet(parts: list[Path], path: Path, change: Change = lambda table: table) -> None:
    """One Parquet file; small parts are joined into row groups of about MAX_ROW_GROUP bytes at most."""
    schema = change(parquet.read_table(parts[0])).schema.remove_metadata()
    with parquet.ParquetWriter(path, schema, use_dictionary=_texts(schema)) as writer:
        waiting: list[pa.Table] = []
        for table in tables_of(parts, change):
            waiting.append(table)
            if sum(table.nbytes for table in waiting) >= MAX_ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def write_tsv(parts: list[Path], path: Path, change: Change = lambda table: table, **form: Any) -> None:
    """One TSV file; form: how pandas writes values."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, table in enumerate(tables_of(parts, change)):
            table.to_pandas().to_csv(file, sep="\t", index=False, header=number == 0, lineterminator="\n", **form)


def write_npy(parts: list[Path], path: Path) -> None:
    """The vectors as one fp32 array [rows, features]; the other columns go to OUTPUT.index.tsv."""
    index = index_of(path)
    with path.open("wb") as file:  # written, not mapped: pages of a mapped file would count as memory of this process
        header = {"descr": "<f4", "fortran_order": False, "shape": _shape(parts)}
        np.lib.format.write_array_header_1_0(file, header)
        for number, table in enumerate(tables_of(parts)):
            np.ascontiguousarray(vectors_of(table), "<f4").tofile(file)
            _others(table).to_csv(index, sep="\t", index=False, mode="a" if number else "w", header=number == 0)


def write_anndata(parts: list[Path], path: Path) -> None:
    """AnnData: X has the vectors, obs the other columns; X is streamed to the file, as it need not fit memory."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "w") as file:
        array = file.create_dataset("X", _shape(parts), np.float32)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        start, others = 0, []
        for table in tables_of(parts):
            array[start : start + len(table)] = vectors_of(table)
            start += len(table)
            others.append(_others(table))
        rows = pd.concat(others, ignore_index=True)
        columns = _vector_columns(parquet.read_schema(parts[0]))
        width = array.shape[1] // len(columns)
        features = [f"{column}_{number}" for column in columns for number in range(width)]
        for key, table in (("obs", rows.set_axis(rows.index.map(str))), ("var", pd.DataFrame(index=features))):
            # anndata 0.12 cannot write string columns of pandas 3; it writes objects as text
            texts = table.astype(dict.fromkeys(table.select_dtypes("string"), object))
            write_elem(file, key, texts.set_axis(texts.index.astype(object)))


def write_tracks(tables: Iterable[pd.DataFrame], columns: dict[str, str], path: Path, options: Any) -> None:
    """A bigWig file for each name (its column: `columns`) and strand; a table of bases has positions, any other start
    and end. options: those that name the sequences."""
    from megadna.genome.bigwig import write_bigwigs

    paths = {(columns[name], sign): file for (name, sign), file in bigwig_files(list(columns), path).items()}
    stranded = (table.assign(group=table["strand"].map(TRACK_OF_STRAND)) for table in tables)
    placed = (
        table.assign(start=table["position"], end=table["position"] + 1) if "position" in table else table
        for table in stranded
    )
    write_bigwigs(placed, paths, record_lengths(options.input, options.column))


WRITERS: dict[str, Callable[[list[Path], Path], None]] = {
    ".parquet": write_parquet,
    ".npy": write_npy,
    ".h5ad": write_anndata,
}


def _shape(parts: list[Path]) -> tuple[int, int]:
    """Rows and features of all vectors (several layers side by side)."""
    schema = parquet.read_schema(parts[0])
    num_rows = sum(parquet.read_metadata(part).num_rows for part in parts)
    return num_rows, sum(schema.field(name).type.list_size for name in _vector_columns(schema))


def _vector_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]


def vectors_of(table: pa.Table) -> np.ndarray:
    """The vector columns side by side, fp32 [rows, features]."""
    columns = [table[name].combine_chunks() for name in _vector_columns(table.schema)]
    return np.concatenate([c.flatten().to_numpy().reshape(len(c), c.type.list_size) for c in columns], axis=1)


def _others(table: pa.Table) -> pd.DataFrame:
    """The columns that are not vectors."""
    return table.drop_columns(_vector_columns(table.schema)).to_pandas()


def fixed_vectors(array: np.ndarray) -> pa.FixedSizeListArray:
    """A column of vectors from fp32 [rows, features]."""
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1])


def sequence_columns(stretches: list[Stretch]) -> dict[str, Any]:
    """contig, start, end, name (of a BED region; else ""), strand."""
    contigs, regions = _names(stretches)
    starts, ends = ([getattr(stretch, key) for stretch in stretches] for key in ("start", "end"))
    strands = [stretch.strand for stretch in stretches]
    return dict(zip(REGION, (contigs, starts, ends, regions, strands), strict=True))


def base_columns(stretches: list[Stretch]) -> dict[str, Any]:
    """contig, position (0-based, on the record), name, strand: a row per base, in the order of the stretch's bases."""
    sizes = [stretch.end - stretch.start for stretch in stretches]
    ways = [np.arange(s.start, s.end) if s.strand != "-" else np.arange(s.end - 1, s.start - 1, -1) for s in stretches]
    repeat = pa.array(np.repeat(np.arange(len(stretches)), sizes))
    contigs, regions = (names.take(repeat) for names in _names(stretches))
    strands = pa.array([s.strand for s in stretches]).take(repeat)
    return dict(zip(BASE, (contigs, np.concatenate(ways), regions, strands), strict=True))


def _names(stretches: list[Stretch]) -> tuple[pa.Array, pa.Array]:
    """Record and region of each stretch; "." is how BED writes that a region has no name."""
    regions = ["" if stretch.region == "." else stretch.region for stretch in stretches]
    return pa.array([stretch.name for stretch in stretches], pa.string()), pa.array(regions, pa.string())
