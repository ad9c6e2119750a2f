"""Which records and files of a survey are near-identical: sketches of 31-mers (megadna.data.sketch), of bounded size.

In:  letters, piece by piece, with the record and file they belong to.
Out: groups of records (or files) of which two share more than MAX_SHARED of the smaller one's sketch: a region held out
     of one stands in the other. At 31 bases, two sequences that differ in 1 % of their bases share 73 %, in 5 % 20 %.

A sketch begins with one 31-mer in 64 and is halved whenever all together have MOST_HASHES. Records of fewer than
LEAST_HASHES (about 1,000 bases at first) are too short to compare by themselves; whole files are compared as well.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megadna.data.sketch import SCALE, K, sketch_places

# Shapes: P pairs of a hash and an owner that has it, sorted by hash, then by owner.

MAX_SHARED = 0.2
"""As --max_containment of megadna preprocess."""
MOST_HASHES, LEAST_HASHES = 1 << 22, 16
_STRETCH = 1 << 17  # letters sketched at a time: the arrays stay in the cache


@dataclass(frozen=True)
class Relations:
    """What was found."""

    groups: list[list[str]] = field(default_factory=list)
    """Names of the near-identical records or files, the largest group first."""
    copies: Counter[int] = field(default_factory=Counter)
    """Sketched 31-mers by the number of near-identical records that have them; 1 where they are alone."""

    @property
    def redundancy(self) -> float:
        """Bases by distinct bases: 2 where everything is there twice."""
        distinct = sum(count / copies for copies, count in self.copies.items())
        return sum(self.copies.values()) / distinct if distinct else 1.0

    def share_left(self, held_out: float) -> float:
        """Of what is not held out itself, what is left where every other copy of what is held out goes as well."""
        total = sum(self.copies.values())
        left = sum(count * (1 - held_out) ** (copies - 1) for copies, count in self.copies.items())
        return left / total if total else 1.0


class Sketches:
    """The sketches of all records, while they are read."""

    def __init__(self) -> None:
        self._scale, self._count = SCALE, 0
        self._parts: list[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]] = []
        self._names: dict[int, str] = {}
        self._files: list[str] = []

    def start_file(self, name: str) -> None:
        """What is added from here on belongs to this file."""
        self._files.append(name)
        self._before = len(self._parts)

    def drop_file(self) -> None:
        """Forget the file that was started last."""
        self._files.pop()
        del self._parts[self._before :]
        self._count = sum(len(hashes) for hashes, *_ in self._parts)

    def add(self, letters: NDArray[np.uint8], record_S: NDArray[np.int64], ends_S: NDArray[np.int64]) -> set[int]:
        """Letters in S segments that end at `ends_S`, each of a record (negative: not to be compared); which records
        are in the sketch, so that `name` is wanted for them."""
        seen: set[int] = set()
        for start in range(0, len(letters), _STRETCH):
            hashes, places = sketch_places(letters[start : start + _STRETCH + K - 1], self._scale)
            first = np.searchsorted(ends_S, places + start, "right")
            last = np.searchsorted(ends_S, places + start + K - 1, "right")
            kept = (first == last) & (record_S[first.clip(max=len(record_S) - 1)] >= 0)
            owners = record_S[first[kept]]
            self._parts.append((hashes[kept], owners, np.full(len(owners), len(self._files) - 1)))
            self._count += len(owners)
            seen.update(np.unique(owners).tolist())
            if self._count > MOST_HASHES:
                self._halve()
        return seen

    def name(self, record: int, name: str) -> None:
        """The name of a record of this file."""
        self._names.setdefault(record, f"{self._files[-1]}:{name}")

    def _halve(self) -> None:
        self._scale *= 2
        highest = np.uint64(2**64 // self._scale - 1)
        for number, (hashes, records, files) in enumerate(self._parts):
            kept = hashes <= highest
            self._parts[number] = hashes[kept], records[kept], files[kept]
        self._count = sum(len(hashes) for hashes, *_ in self._parts)

    def relations(self) -> Relations:
        """Compare records with each other, then files."""
        if not self._count:
            return Relations()
        hashes, records, files = (np.concatenate(columns) for columns in zip(*self._parts, strict=True))
        number, record_P = np.unique(records, return_inverse=True)
        groups, copies = _grouped(hashes, record_P)
        named = [[self._names[int(number[record])] for record in group] for group in groups]
        in_files = {name.partition(":")[0] for group in named for name in group}
        of_files, copies_of_files = _grouped(hashes, files)
        for group in of_files:
            names = [self._files[file] for file in group]
            if not set(names) <= in_files:  # their contigs are too short, or too torn, to be compared one by one
                named.append(names)
                copies = max(copies, copies_of_files, key=lambda one: Relations(copies=one).redundancy)
        if len(self._files) == 1:
            named = [[name.partition(":")[2] for name in group] for group in named]
        return Relations(sorted(named, key=len, reverse=True), copies)


def _grouped(hashes: NDArray[np.uint64], owners: NDArray[np.int64]) -> tuple[list[list[int]], Counter[int]]:
    """Groups of owners that are linked, and the pairs by how many linked owners have the same hash."""
    order = np.lexsort((owners, hashes))
    hash_P, owner_P = hashes[order], owners[order]
    new = np.append(True, (hash_P[1:] != hash_P[:-1]) | (owner_P[1:] != owner_P[:-1]))
    hash_P, owner_P = hash_P[new], owner_P[new]
    size = np.bincount(owner_P)
    first_P = np.flatnonzero(np.append(True, hash_P[1:] != hash_P[:-1]))
    copies_P = np.repeat(np.diff(first_P, append=len(hash_P)), np.diff(first_P, append=len(hash_P)))
    leader_P = np.repeat(owner_P[first_P], np.diff(first_P, append=len(hash_P)))
    # With the first owner of each hash alone: all pairs of 10,000 copies would be 50 million a hash.
    code, count = np.unique((leader_P * len(size) + owner_P)[owner_P != leader_P], return_counts=True)
    one, two = np.divmod(code, len(size))
    smaller = np.minimum(size[one], size[two])
    linked = (smaller >= LEAST_HASHES) & (count > MAX_SHARED * smaller)
    root = np.arange(len(size))
    for a, b in zip(one[linked].tolist(), two[linked].tolist(), strict=True):
        a, b = _root(root, a), _root(root, b)
        root[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for owner in np.unique(np.concatenate((one[linked], two[linked]))).tolist():
        members.setdefault(_root(root, owner), []).append(owner)
    is_member = np.zeros(len(size), bool)
    is_member[[owner for group in members.values() for owner in group]] = True
    copies = Counter(np.where(is_member[owner_P], copies_P, 1).tolist())
    return list(members.values()), copies


def _root(root: NDArray[np.int64], owner: int) -> int:
    while root[owner] != owner:
        root[owner] = root[root[owner]]
        owner = int(root[owner])
    return owner
