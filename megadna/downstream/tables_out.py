"""Tables written in parts: several ranks, resumable, in constant memory, and whole or absent under the final name.

OUTPUT.parts/ contains the finished parts and settings.json; a stopped command that is started again goes on there. When
all ranks are done, the first joins the parts in order (ready/), gives the files their names and removes the folder.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.errors import UserError
from megadna.files import LOCK, Claim, atomic_file, claimed, publish_files, sync_tree, write_text
from megadna.genome.records import Stretch
from megadna.log import get_logger, rank_from_environment
from megadna.ownership import clear_folder, refuse_occupied, resolved
from megadna.progress import Progress, tracked

log = get_logger(__name__)
MAX_STRETCHES = 4096
MAX_ROW_GROUP = 1 << 24  # bytes of a row group of the joined Parquet file

Compute = Callable[[list[Stretch]], pa.Table]
Answer = TypeVar("Answer")


def in_blocks(stretches: Iterable[Stretch], max_letters: int) -> Iterator[list[Stretch]]:
    """Lists of at most MAX_STRETCHES stretches and about `max_letters` letters."""
    block: list[Stretch] = []
    letters = 0
    for stretch in stretches:
        block.append(stretch)
        letters += len(stretch.bases)
        if len(block) == MAX_STRETCHES or letters >= max_letters:
            yield block
            block, letters = [], 0
    if block:
        yield block


def _folder(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


@dataclass
class Parts:
    """The folder OUTPUT.parts, which all ranks of one command fill."""

    folder: Path
    ready: Path
    """Folder in it with the finished output files; it exists as a whole or not at all."""
    claim: Claim | None
    """On rank 0, which holds the folder's lock."""


@contextmanager
def held_parts(output: Path, settings: dict[str, Any], files: list[Path]) -> Iterator[Parts]:
    """Hold OUTPUT.parts while the block lasts; it stays afterwards where a stopped command can be continued.

    files: all that may be written; UserError on all ranks where one exists, where the folder was left by a command with
    other settings, or where another command fills it.
    """
    rank, num_ranks = rank_from_environment(), int(os.environ.get("WORLD_SIZE", "1"))
    stated = json.dumps({key: _stated(value) for key, value in settings.items()}, sort_keys=True)
    with ExitStack() as stack:
        if num_ranks > 1:
            stack.enter_context(_process_group())
        problem, claim = "", None
        if rank == 0:
            try:
                claim = stack.enter_context(claimed(output, _folder(output)))
                _begin(claim, stated, files)
            except UserError as error:
                problem = str(error)
        problem = _from_rank_0(problem, num_ranks)
        if problem:
            raise UserError(problem)
        folder = _folder(resolved(output))
        try:
            yield Parts(folder, folder / "ready", claim)
        except BaseException as error:
            if claim is not None and not isinstance(error, UserError):  # of which the next start would come to the same
                claim.is_kept = any(folder.glob("part-*.parquet")) or (folder / "ready").is_dir()
            raise


def _begin(claim: Claim, stated: str, files: list[Path]) -> None:
    note, ready = claim.folder / "settings.json", claim.folder / "ready"
    if ready.is_dir() and not any(ready.iterdir()):  # a kill came after the last file had got its name
        clear_folder(claim.folder, keep=[LOCK])
    if note.is_file() and note.read_text(encoding="utf-8") != stated:
        claim.is_kept = True
        raise UserError(
            f"{claim.folder}: left by a command with other options, or its input has changed since; remove it, or "
            "repeat that command to resume"
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


def write_parts(blocks: Iterator[list[Stretch]], compute: Compute, parts: Parts, progress: Progress) -> list[Path]:
    """Compute every block on one of the ranks; the files of all parts, in order, on rank 0 ([] elsewhere). `compute`
    tells `progress` what it does itself."""
    rank, num_ranks = rank_from_environment(), int(os.environ.get("WORLD_SIZE", "1"))
    if found := len(list(parts.folder.glob("part-*.parquet"))):
        log.info("going on in %s, where %d parts are finished", parts.folder, found)
    paths = []
    for number, block in enumerate(blocks):
        part = parts.folder / f"part-{number:06d}.parquet"
        paths.append(part)
        bases = sum(stretch.end - stretch.start for stretch in block)
        if part.exists():
            progress.skip(bases)
        elif number % num_ranks == rank:
            table = compute(block)
            with atomic_file(part) as temporary:
                parquet.write_table(table, temporary, use_dictionary=_texts(table.schema))
        else:
            progress.advance(bases)  # another rank's, which is about as far
    _from_rank_0("", num_ranks)  # when all are done
    return paths if rank == 0 else []


def write_output(
    blocks: Callable[[], Iterator[list[Stretch]]],
    compute: Compute,
    parts: Parts,
    write: Callable[[list[Path], Path], None],
    progress: Progress,
) -> list[Path]:
    """Compute the parts, `write` the output files of them into a folder, and give these their names; on rank 0, what
    was written ([] elsewhere).

    A command that is stopped between two names goes on there: the files are complete before the first gets its own.
    """
    is_ready = _from_rank_0(parts.ready.is_dir(), int(os.environ.get("WORLD_SIZE", "1")))
    paths = [] if is_ready else write_parts(blocks(), compute, parts, progress)
    if parts.claim is None:
        return []
    if paths:
        work = parts.folder / "joined"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write(paths, work)
        sync_tree(work)
        work.rename(parts.ready)
    return publish_files(parts.ready, parts.folder.parent) if parts.ready.is_dir() else []


@contextmanager
def _process_group() -> Iterator[None]:
    from torch import distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=30))  # a rank may be hours ahead of another
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _from_rank_0(value: Answer, num_ranks: int) -> Answer:
    """What rank 0 says, on all ranks, once all have asked."""
    if num_ranks == 1:
        return value
    from torch import distributed

    said = [value]
    distributed.broadcast_object_list(said, src=0)
    distributed.barrier()
    return said[0]


def _texts(schema: pa.Schema) -> list[str]:
    """Columns whose values repeat, as numbers do not."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def write_parquet(parts: list[Path], path: Path) -> None:
    """One Parquet file, small parts together in row groups of at most about MAX_ROW_GROUP bytes."""
    schema = parquet.read_schema(parts[0])
    with parquet.ParquetWriter(path, schema, use_dictionary=_texts(schema)) as writer:
        waiting: list[pa.Table] = []
        for part in tracked(parts, "joining the parts", len(parts), "parts"):
            waiting.append(parquet.read_table(part))
            if sum(table.nbytes for table in waiting) >= MAX_ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _tables(parts: list[Path]) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """The vectors [rows, features] of each part, and what else it says."""
    for part in tracked(parts, "joining the parts", len(parts), "parts"):
        table = parquet.read_table(part)
        yield vectors(table), plain(table)


def _shape(parts: list[Path]) -> tuple[int, int]:
    """Rows and features of all vectors (of several layers: side by side)."""
    num_rows = sum(parquet.read_metadata(part).num_rows for part in parts)
    return num_rows, vectors(parquet.read_table(parts[0])).shape[1]


def write_npy(parts: list[Path], path: Path) -> None:
    """The vectors as one fp32 array [rows, features]; ids go to OUTPUT.index.tsv."""
    index = index_of(path)
    with path.open("wb") as file:  # written, not mapped: pages of a mapped file would count as memory of this process
        header = {"descr": "<f4", "fortran_order": False, "shape": _shape(parts)}
        np.lib.format.write_array_header_1_0(file, header)
        for number, (array, ids) in enumerate(_tables(parts)):
            np.ascontiguousarray(array, "<f4").tofile(file)
            ids.to_csv(index, sep="\t", index=False, mode="a" if number else "w", header=number == 0)


def index_of(path: Path) -> Path:
    """The table of ids beside an array."""
    return path.with_name(path.name + ".index.tsv")


def write_anndata(parts: list[Path], path: Path) -> None:
    """AnnData: X are the vectors, obs the ids; X goes straight to the file, so that it need not fit memory."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "w") as file:
        array = file.create_dataset("X", _shape(parts), np.float32)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        at, found = 0, []
        for rows, table in _tables(parts):
            array[at : at + len(rows)] = rows
            at += len(rows)
            found.append(table)
        ids = pd.concat(found, ignore_index=True)
        columns = [field.name for field in parquet.read_schema(parts[0]) if _is_vector(field.type)]
        width = array.shape[1] // len(columns)
        features = [f"{column}_{place}" for column in columns for place in range(width)]
        for key, table in (("obs", ids.set_axis(ids.index.map(str))), ("var", pd.DataFrame(index=features))):
            # anndata 0.12 knows no string columns of pandas 3; as objects it writes them as text
            texts = table.astype(dict.fromkeys(table.select_dtypes("string"), object))
            write_elem(file, key, texts.set_axis(texts.index.astype(object)))


def write_hdf5(parts: list[Path], path: Path) -> None:
    """Datasets by column name: vectors [rows, features] in fp32, names as UTF-8, numbers as they are."""
    import h5py

    with h5py.File(path, "w") as file:
        for part in tracked(parts, "joining the parts", len(parts), "parts"):
            for name, column in zip((table := parquet.read_table(part)).column_names, table.columns, strict=True):
                values = _array(column)
                if name not in file:
                    kind = h5py.string_dtype() if values.dtype.kind in "OUT" else values.dtype
                    file.create_dataset(name, (0, *values.shape[1:]), kind, maxshape=(None, *values.shape[1:]))
                file[name].resize(len(file[name]) + len(values), axis=0)
                file[name][len(file[name]) - len(values) :] = values


WRITERS = {".parquet": write_parquet, ".npy": write_npy, ".h5": write_hdf5, ".h5ad": write_anndata}


def _is_vector(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)


def _array(column: pa.ChunkedArray) -> np.ndarray:
    if _is_vector(column.type):
        chunks = column.combine_chunks()
        return chunks.flatten().to_numpy(zero_copy_only=False).reshape(len(chunks), column.type.list_size)
    return column.to_numpy()


def vectors(table: pa.Table) -> np.ndarray:
    """The vector columns side by side, fp32 [rows, features]."""
    columns = [column for column in table.columns if _is_vector(column.type)]
    return np.concatenate([_array(column) for column in columns], axis=1)


def plain(table: pa.Table) -> pd.DataFrame:
    """The columns that are no vectors."""
    return table.select([field.name for field in table.schema if not _is_vector(field.type)]).to_pandas()


def fixed_vectors(array: np.ndarray) -> pa.FixedSizeListArray:
    """A column of vectors from fp32 [rows, features]."""
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), array.shape[1])
