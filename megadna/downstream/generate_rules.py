"""What may be written where: the bases and codons to choose from, and rules that the finished sequence must keep.

In:  a FASTA (and BED), or a length; motifs, sites to avoid, a range of GC, a genetic code.
Out: Template: bases that stay, and units (a base, or a codon) with their choices. Rules: by how much bases break them.

Whatever cannot be fulfilled (a site to avoid within bases that stay, no position for a motif, a share of GC out of
reach, a protein that a record does not have) is a UserError before any model is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product

import numpy as np

from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.generate_options import IUPAC, GenerateOptions, pattern_of
from megadna.errors import UserError, require
from megadna.genome.bed import locate, read_regions
from megadna.genome.records import read_genome, reverse_complement

# Shapes: L bases of a sequence, U units, C choices of a unit, W bases of a unit, M bases of a motif, P positions.

HIDDEN = 4
"""Code of a base that is still to be written."""
_STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""NCBI's genetic codes 1 and 11: amino acids of the codons TTT, TTC, TTA, TTG, TCT ... GGG; in code 4 TGA is W."""
IS_GC = np.array([0, 1, 1, 0, 0])
_MAX_PLACES = 50  # at which one motif is tried before the order is given up
_ORDERS = 20  # in which several motifs are put


@dataclass(frozen=True)
class Units:
    """What is written: bases, or codons."""

    first_U: np.ndarray
    """First base of each."""
    choices_UCW: np.ndarray
    """Codes 0..3 of the bases of each choice."""
    valid_UC: np.ndarray
    """Which of the choices the unit has, bool; at least one."""

    def __len__(self) -> int:
        return len(self.first_U)

    @property
    def width(self) -> int:
        """Bases of a unit."""
        return self.choices_UCW.shape[2]

    @cached_property
    def gc_UC(self) -> np.ndarray:
        """G and C in each choice."""
        return IS_GC[self.choices_UCW].sum(axis=2)

    @cached_property
    def gc_range_2U(self) -> np.ndarray:
        """Fewest and most G and C that each unit can have."""
        least_U = np.where(self.valid_UC, self.gc_UC, self.width).min(axis=1)
        return np.stack([least_U, np.where(self.valid_UC, self.gc_UC, 0).max(axis=1)])

    def positions(self, units: np.ndarray) -> np.ndarray:
        """The bases of some units, one after the other."""
        return (self.first_U[units][:, None] + np.arange(self.width)).reshape(-1)

    def chosen(self, codes_L: np.ndarray) -> np.ndarray:
        """Number of the choice that is there, -1 where there is none."""
        there_UW = codes_L[self.first_U[:, None] + np.arange(self.width)]
        same_UC = (self.choices_UCW == there_UW[:, None, :]).all(axis=2) & self.valid_UC
        return np.where(same_UC.any(axis=1), same_UC.argmax(axis=1), -1)


@dataclass(frozen=True)
class Template:
    """A sequence to write."""

    name: str
    codes_L: np.ndarray
    """The bases that it begins with; HIDDEN where there is none yet."""
    units: Units

    @property
    def fixed_L(self) -> np.ndarray:
        """Codes of the bases that stay, HIDDEN elsewhere."""
        fixed_L = self.codes_L.copy()
        fixed_L[self.units.positions(np.arange(len(self.units)))] = HIDDEN
        return fixed_L

    @property
    def gc_range(self) -> tuple[int, int]:
        """Fewest and most G and C that the sequence can have."""
        low, high = int(IS_GC[self.fixed_L].sum()) + self.units.gc_range_2U.sum(axis=1)
        return int(low), int(high)


def templates(options: GenerateOptions) -> list[Template]:
    """From --length, --template, or --start with --bed and --protein; UserError where a record leaves nothing to write
    or cannot keep the rules."""
    found = list(_templates(options))
    require(bool(found), f"{options.bed}: no region of it is on a record of {options.start}")
    rules = Rules.of(options)
    for template in found:
        rules.check(template)
        size = len(template.units) * template.units.width
        fits = options.number == 1 or options.min_distance <= size
        require(fits, f"{template.name}: {size} bases to write cannot differ in --min_distance {options.min_distance}")
    return found


def _templates(options: GenerateOptions) -> Iterator[Template]:
    path = options.template or options.start
    bases = read_genome(path).bases if path else {"generated": np.full(options.length, ord("N"), np.uint8)}
    written = None if options.bed is None else _written(options, {name: len(dna_L) for name, dna_L in bases.items()})
    for name, dna_L in bases.items():
        if written is not None and name not in written:
            continue
        require(len(dna_L) > 0, f"{path}: record {name} has no bases; remove it")
        codes_L, allowed_L4 = base_codes(dna_L), _ALLOWED[dna_L]
        if options.start is None:
            has = bool((codes_L == HIDDEN).any())
            require(has, f"{path}: record {name} has no N to write; use --start to change it")
            yield Template(name, codes_L, _bases(allowed_L4))
            continue
        change_L = np.ones(len(codes_L), bool) if written is None else written[name]
        unknown = np.flatnonzero((codes_L == HIDDEN) & (~change_L | (options.protein > 0)))
        why = "a codon has no other than A, C, G and T" if options.protein else "use --template, or write it with --bed"
        require(not len(unknown), f"{path}: record {name} has an ambiguous base at position {[*unknown, 0][0]}; {why}")
        if options.protein:
            units = _codons(codes_L, change_L, options.protein, f"{path}: record {name}")
        else:
            allowed_L4[change_L] = True
            units = _bases(allowed_L4)
        yield Template(name, codes_L, units)


def _allowed_table() -> np.ndarray:
    allowed = np.ones((256, 4), bool)
    for code, bases in IUPAC.items():
        allowed[[ord(code), ord(code.lower())]] = [base in bases for base in BASES]
    return allowed


_ALLOWED = _allowed_table()


def _bases(allowed_L4: np.ndarray) -> Units:
    """A unit for each base with a choice."""
    first_U = np.flatnonzero(allowed_L4.sum(axis=1) > 1)
    choices_UCW = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (len(first_U), 4, 1))
    return Units(first_U, choices_UCW, allowed_L4[first_U])


@cache
def _synonyms(code: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes [64, 6, 3] of the synonymous codons of each codon, which of them exist [64, 6]); the index of a codon is
    16 a + 4 b + c of its codes."""
    in_ncbi_order = [BASES.index(base) for base in "TCAG"]
    codons = list(product(in_ncbi_order, repeat=3))
    acids = dict(zip(codons, _STANDARD, strict=True))
    if code == 4:
        acids[3, 2, 0] = "W"
    choices, valid = np.zeros((64, 6, 3), np.uint8), np.zeros((64, 6), bool)
    for codon in codons:
        alike = sorted(other for other in codons if acids[other] == acids[codon])
        index = int(np.dot(codon, [16, 4, 1]))
        choices[index, : len(alike)], valid[index, : len(alike)] = alike, True
    return choices, valid


def _codons(codes_L: np.ndarray, change_L: np.ndarray, code: int, where: str) -> Units:
    """A unit for each codon that has a synonymous one which differs in bases to be changed alone."""
    require(len(codes_L) % 3 == 0, f"{where} has {len(codes_L)} bases, not a multiple of 3; --protein reads codons")
    codons_U3 = codes_L.reshape(-1, 3)
    choices_UCW, valid_UC = (table[codons_U3 @ np.array([16, 4, 1])] for table in _synonyms(code))
    keeps_UC = ((choices_UCW == codons_U3[:, None, :]) | change_L.reshape(-1, 1, 3)).all(axis=2)
    valid_UC = valid_UC & keeps_UC
    has = valid_UC.sum(axis=1) > 1
    require(bool(has.any()), f"{where}: no base that may change can without changing the protein; widen --bed")
    return Units(3 * np.flatnonzero(has), choices_UCW[has], valid_UC[has])


def _written(options: GenerateOptions, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    """Which bases of each contig the BED file's regions have, bool [L]."""
    assert options.bed is not None
    regions = read_regions(options.bed)
    found: dict[str, np.ndarray] = {}
    for theirs, ours in locate(options.bed, regions.first_lines, lengths, str(options.start)).items():
        regions.check_ends(theirs, lengths[ours])
        written_L = found.setdefault(ours, np.zeros(lengths[ours], bool))
        for start, end in regions.merged[theirs]:
            written_L[start:end] = True
    return found


class Motif:
    """IUPAC codes, found on either strand."""

    def __init__(self, text: str) -> None:
        self.text = text
        pattern = pattern_of(text)
        self.strands = [_matrix(one) for one in dict.fromkeys((pattern, reverse_complement(pattern)))]
        """bool [M, 5] of each strand, one if they are alike: which codes match; HIDDEN does not."""

    def __len__(self) -> int:
        return len(self.strands[0])

    def mismatches(self, codes_L: np.ndarray) -> np.ndarray:
        """[strands, P] bases that do not match, at each position; none if the sequence is shorter."""
        positions = max(0, len(codes_L) - len(self) + 1)
        none_P = np.zeros(positions, int)
        return np.stack([sum((~m[codes_L[i : i + positions]] for i, m in enumerate(s)), none_P) for s in self.strands])

    def count(self, codes_L: np.ndarray) -> int:
        """Positions where it is, on either strand."""
        return int((self.mismatches(codes_L) == 0).sum())


def _matrix(pattern: str) -> np.ndarray:
    return np.array([[base in IUPAC[code] for base in BASES] + [False] for code in pattern])


@dataclass(frozen=True)
class Rules:
    """What a finished sequence must keep, besides its template."""

    avoid: Sequence[Motif] = ()
    motifs: Sequence[Motif] = ()
    gc: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, options: GenerateOptions) -> "Rules":
        """Of --avoid, --motif and --gc."""
        gc = (options.gc[0], options.gc[1]) if options.gc else (0.0, 1.0)
        return cls(list(map(Motif, options.avoid)), list(map(Motif, options.motif)), gc)

    def gc_bounds(self, length: int) -> tuple[int, int]:
        """Fewest and most G and C in this number of bases."""
        return int(np.ceil(self.gc[0] * length - 1e-9)), int(np.floor(self.gc[1] * length + 1e-9))

    def gc_excess(self, low: np.ndarray | int, high: np.ndarray | int, length: int) -> np.ndarray:
        """Bases by which GC misses its range at least, if there will be `low` to `high` G and C."""
        least, most = self.gc_bounds(length)
        return np.maximum(0, np.maximum(least - np.asarray(high), np.asarray(low) - most))

    def sites(self, codes_L: np.ndarray) -> int:
        """Sites to avoid that are there."""
        return sum(motif.count(codes_L) for motif in self.avoid)

    def in_sites(self, codes_L: np.ndarray) -> np.ndarray:
        """Bases that are in a site to avoid, bool [L]."""
        inside_L = np.zeros(len(codes_L), bool)
        for motif in self.avoid:
            for at in np.flatnonzero((motif.mismatches(codes_L) == 0).any(axis=0)).tolist():
                inside_L[at : at + len(motif)] = True
        return inside_L

    def broken(self, codes_L: np.ndarray) -> dict[str, int]:
        """By how much a finished sequence breaks each rule; empty if it keeps all."""
        gc = int(IS_GC[codes_L].sum())
        excess = int(self.gc_excess(gc, gc, len(codes_L)))
        missing = sum(int(motif.mismatches(codes_L).min(initial=len(motif))) for motif in self.motifs)
        found = {"avoid": self.sites(codes_L), "motif": missing, "gc": excess}
        return {rule: amount for rule, amount in found.items() if amount}

    def sites_with(self, codes_L: np.ndarray, first: int, choices_CW: np.ndarray) -> np.ndarray:
        """Sites to avoid [C] that the unit at `first` is part of, with each of its choices."""
        reach, width = max(map(len, self.avoid), default=1) - 1, choices_CW.shape[1]
        low = max(0, first - reach)
        part = codes_L[low : first + width + reach].copy()
        counts = []
        for choice_W in [np.full(width, HIDDEN), *choices_CW]:
            part[first - low : first - low + width] = choice_W
            counts.append(self.sites(part))
        return np.array(counts[1:]) - counts[0]

    def place(self, template: Template, rng: np.random.Generator) -> Units:
        """The template's units with the choices that put every motif where the fewest bases change, at a random one of
        several such positions. UserError if there is none, though they were put in several orders."""
        for _ in range(_ORDERS - 1 if len(self.motifs) > 1 else 0):
            with suppress(UserError):
                return self._placed(template, rng)
        return self._placed(template, rng)

    def _placed(self, template: Template, rng: np.random.Generator) -> Units:
        units, length = template.units, len(template.codes_L)
        for number in rng.permutation(len(self.motifs)):
            motif = self.motifs[number]
            allowed_L4 = _allowed(template, units)
            fits_SP = np.stack([_positions(matrix, allowed_L4) for matrix in motif.strands])
            changes_SP = motif.mismatches(template.codes_L) + rng.random(fits_SP.shape)
            spots = np.argwhere(fits_SP)[np.argsort(changes_SP[fits_SP])]
            for strand, at in spots[:_MAX_PLACES].tolist():
                narrowed = _narrowed(units, motif.strands[strand], at, length)
                if narrowed is not None and not self.sites(_only_choice(replace(template, units=narrowed))):
                    units = narrowed
                    break
            else:
                raise UserError(
                    f"{template.name}: no position for the motif {motif.text} in what may be written"
                    f"{' without a site to avoid' if self.avoid else ''}; leave more bases to write"
                )
        return units

    def check(self, template: Template) -> None:
        """UserError if the template cannot keep the rules whatever is written."""
        fixed_L = _only_choice(template)
        for motif in self.avoid:
            at = np.argwhere(motif.mismatches(fixed_L) == 0)
            if len(at):
                where = f"there at position {at[0][1]}, within bases that stay"
                raise UserError(f"{template.name}: {motif.text} to avoid is {where}; leave it out, or write there")
        (low, high), size = template.gc_range, len(fixed_L)
        if self.gc_excess(low, high, size) > 0 or self.gc_bounds(size)[0] > self.gc_bounds(size)[1]:
            reach = f"{low / size:.3f} to {high / size:.3f} in steps of {1 / size:.3f}"
            raise UserError(f"{template.name}: --gc {self.gc[0]} {self.gc[1]}: {size} bases can have {reach}; widen it")
        self.place(template, np.random.default_rng(0))


def _only_choice(template: Template) -> np.ndarray:
    """Codes of the bases that stay and of those that all choices of their unit share; HIDDEN elsewhere."""
    allowed_L4 = _allowed(template, template.units)
    return np.where(allowed_L4.sum(axis=1) == 1, allowed_L4.argmax(axis=1), HIDDEN).astype(np.uint8)


def _allowed(template: Template, units: Units) -> np.ndarray:
    """Which bases each position can have, bool [L, 4]."""
    fixed_L = template.fixed_L
    allowed_L4 = fixed_L[:, None] == np.arange(4)
    unit, choice = np.nonzero(units.valid_UC)
    for offset in range(units.width):
        allowed_L4[units.first_U[unit] + offset, units.choices_UCW[unit, choice, offset]] = True
    return allowed_L4


def _positions(matrix_M5: np.ndarray, allowed_L4: np.ndarray) -> np.ndarray:
    """Whether each position has an allowed base at every base of the motif, bool [P]."""
    at_P = np.arange(max(0, len(allowed_L4) - len(matrix_M5) + 1))
    return np.logical_and.reduce([(allowed_L4[at_P + i] & row_5[:4]).any(axis=1) for i, row_5 in enumerate(matrix_M5)])


def _narrowed(units: Units, matrix_M5: np.ndarray, at: int, length: int) -> Units | None:
    """The units with the choices that have the motif at `at`; None if a unit has none."""
    wanted_L4 = np.ones((length, 4), bool)
    wanted_L4[at : at + len(matrix_M5)] = matrix_M5[:, :4]
    positions_UW = units.first_U[:, None] + np.arange(units.width)
    fits_UC = wanted_L4[positions_UW[:, None, :], units.choices_UCW].all(axis=2)
    valid_UC = units.valid_UC & fits_UC
    return replace(units, valid_UC=valid_UC) if valid_UC.any(axis=1).all() else None


def codes_of(text: str) -> np.ndarray:
    """Codes of a sequence."""
    return base_codes(dna_of(text))
