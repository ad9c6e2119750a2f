"""Writing sequences with a masked language model: iterative unmasking, Gibbs sampling, Metropolis search.

In:  states (a template, what is written of it so far, a random generator of its own), and a score to raise.
Out: the same states, all bases written.

Unmasking: all units (bases, or codons) are hidden; in each of T rounds the model gives p of each base, a choice is
drawn for each unit, and some of the units are shown. `spread` shows those of one residue class of their number modulo
T, in random order: neighbours are never drawn at once, so that what is drawn together is nearly independent.
`confidence` shows those whose drawn choice has the highest p (ModelGenerator's decoder: the highest p of all).
Guided: K completions are drawn in a round, scored, and one is chosen with p proportional to exp(score).
Gibbs: a block of units is hidden and drawn from what the model says given the rest; every block once in a sweep.
Metropolis: a unit is hidden and another choice of it drawn from what the model says; the change is kept with
p = min(1, exp(score after - score before)), never if it breaks a rule more than before; the best state counts.
p of a codon is the product of the p of its bases, among its synonyms.
A state draws from its own generator, so that what is written does not depend on which states are run together, but for
draws that lie within the rounding of fp32 sums in batches of another shape.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from megadna.downstream.generate_options import GenerateOptions
from megadna.downstream.generate_rules import HIDDEN, Rules, Template
from megadna.downstream.masked_bases import MaskedBases
from megadna.genome.records import window_grid
from megadna.progress import Progress

# Shapes: L bases of a sequence, U units, C choices of a unit, W bases of a unit, N sequences, K completions, 4 A C G T.

FIRST_ROUNDS = 32
"""In which what is not given is written before Gibbs sampling or a search begins."""
Score = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Codes of sequences -> the numbers to raise [N]."""


@dataclass
class State:
    """A sequence that is being written."""

    template: Template
    """With the units that put each motif at its position."""
    record: int
    """Number of the template."""
    index: int
    """Number of the sequence among those of the template."""
    rng: np.random.Generator
    begun_L: np.ndarray = field(init=False)
    """What edits are counted from: the bases given, or those first written."""

    def __post_init__(self) -> None:
        units = self.template.units
        self.begun_L = self.template.codes_L.copy()
        self.gc_UC, (self.least_U, self.most_U) = units.gc_UC, units.gc_range_2U
        self.low, self.high = self.template.gc_range
        """Fewest and most G and C that the sequence can have in the end."""
        self.chosen_U = np.full(len(units), -1)
        """The choice that each unit shows; -1: it is hidden."""
        self.codes_L = self.template.fixed_L

    def put(self, unit: int, choice: int) -> None:
        """Show a choice of a unit, or hide it (-1)."""
        units = self.template.units
        for at, sign in ((self.chosen_U[unit], -1), (choice, 1)):
            self.low += sign * int(self.least_U[unit] if at < 0 else self.gc_UC[unit, at])
            self.high += sign * int(self.most_U[unit] if at < 0 else self.gc_UC[unit, at])
        first = units.first_U[unit]
        self.codes_L[first : first + units.width] = HIDDEN if choice < 0 else units.choices_UCW[unit, choice]
        self.chosen_U[unit] = choice

    def put_many(self, units: np.ndarray, choices: np.ndarray) -> None:
        """`put` of each."""
        for unit, choice in zip(units.tolist(), choices.tolist(), strict=True):
            self.put(unit, choice)

    def filled(self, units: np.ndarray, choices_Ku: np.ndarray) -> list[np.ndarray]:
        """Codes with these hidden units filled in each of K ways."""
        own, codes_KL = self.template.units, np.repeat(self.codes_L[None], len(choices_Ku), axis=0)
        codes_KL[:, own.positions(units)] = own.choices_UCW[units, choices_Ku].reshape(len(codes_KL), -1)
        return list(codes_KL)

    def edits(self) -> int:
        """Bases that differ from those it began with."""
        return int(((self.codes_L != self.begun_L) & (self.begun_L != HIDDEN)).sum())


class Sampler:
    """A model, the options and the rules."""

    def __init__(self, model: MaskedBases, options: GenerateOptions, rules: Rules, score: Score | None) -> None:
        self.model, self.options, self.rules, self.score = model, options, rules, score
        self._is_free = not rules.avoid and rules.gc == (0.0, 1.0)

    def run(self, states: list[State], progress: Progress) -> None:
        """Write every state by the method of the options; the progress advances by the bases of the states."""
        options = self.options
        share = sum(len(state.codes_L) for state in states) / options.num_steps
        if options.method == "unmask":
            for _ in self.unmask(states, options.num_steps, self.score):
                progress.advance(share)
            return
        for state in states:  # what is given is shown, unless a motif's position needs another base there
            chosen_U = state.template.units.chosen(state.template.codes_L)
            state.put_many(np.arange(len(chosen_U)), chosen_U)
        for _ in self.unmask(states, FIRST_ROUNDS, None):
            pass
        for state in states:
            state.begun_L = np.where(state.begun_L == HIDDEN, state.codes_L, state.begun_L)
        for _ in {"gibbs": self.gibbs, "metropolis": self.metropolis}[options.method](states, options.num_steps):
            progress.advance(share)

    def unmask(self, states: list[State], rounds: int, score: Score | None) -> Iterator[None]:
        """Write what is hidden in `rounds` rounds and yield after each; score: of completions, to choose among them."""
        by_confidence, count = self.options.order == "confidence", self.options.candidates if score else 1
        hidden = [np.flatnonzero(state.chosen_U < 0) for state in states]
        turns = [s.rng.permutation(rounds)[np.arange(len(h)) % rounds] for s, h in zip(states, hidden, strict=True)]
        for number in range(rounds):
            asked, shown = [], []
            for state, all_u, turn_u in zip(states, hidden, turns, strict=True):
                left_u = np.flatnonzero(state.chosen_U[all_u] < 0) if by_confidence or score else np.arange(len(all_u))
                now_u = left_u if by_confidence else left_u[turn_u[left_u] == number]
                asked.append(all_u[left_u if score else now_u])
                shown.append(all_u[now_u])
            found = self.log_p(states, asked)
            picks = [self._draw(*each, count) for each in zip(states, asked, found, strict=True)]
            if score:
                picks = self._chosen(states, asked, picks, score)
            for state, all_u, asked_u, shown_u, picks_1u, log_p_uC in zip(
                states, hidden, asked, shown, picks, found, strict=True
            ):
                at_u = np.searchsorted(asked_u, shown_u)
                sure_u = log_p_uC[at_u, picks_1u[0, at_u]]
                order_u = at_u[np.argsort(-sure_u, kind="stable")]
                if by_confidence:
                    order_u = order_u[: len(order_u) - len(all_u) * (rounds - 1 - number) // rounds]
                self._show(state, asked_u[order_u], picks_1u[0, order_u], log_p_uC[order_u])
            yield

    def gibbs(self, states: list[State], sweeps: int) -> Iterator[None]:
        """Draw every unit anew, `sweeps` times, in blocks in random order; yields after each sweep."""
        size = self.options.block
        for _ in range(sweeps):
            blocks = []
            for state in states:
                cut = np.split(np.arange(len(state.chosen_U)), range(size, len(state.chosen_U), size))
                blocks.append([cut[at] for at in state.rng.permutation(len(cut))])
            for number in range(max(map(len, blocks))):
                active = [(s, b[number]) for s, b in zip(states, blocks, strict=True) if number < len(b)]
                for state, units in active:
                    state.put_many(units, np.full(len(units), -1))
                found = self.log_p([s for s, _ in active], [u for _, u in active])
                for (state, units), log_p_uC in zip(active, found, strict=True):
                    self._show(state, units, self._draw(state, units, log_p_uC)[0], log_p_uC)
            yield

    def metropolis(self, states: list[State], steps: int) -> Iterator[None]:
        """Propose `steps` changes of one unit each, yield after each, and leave each state at the best that it was in:
        the least broken rules, then the highest score."""
        scores = self._scores(states)
        broken = [sum(self.rules.broken(state.codes_L).values()) for state in states]
        best = [(-b, float(s), state.chosen_U.copy()) for b, s, state in zip(broken, scores, states, strict=True)]
        for _ in range(steps):
            if self.score is None and not any(broken):  # nothing is left to repair
                yield
                continue
            units = [self._site(state) for state in states]
            before = [int(state.chosen_U[unit]) for state, unit in zip(states, units, strict=True)]
            for state, unit in zip(states, units, strict=True):
                state.put(unit, -1)
            found = self.log_p(states, [np.array([unit]) for unit in units])
            changes = [self._propose(*each) for each in zip(states, units, before, found, strict=True)]
            proposed = self._scores(states)
            for n, (state, unit) in enumerate(zip(states, units, strict=True)):
                gain = float(proposed[n] - scores[n]) if self.score else -np.inf
                chance = np.log(state.rng.random())
                if changes[n] < 0 or (changes[n] == 0 and chance < gain):
                    scores[n], broken[n] = proposed[n], broken[n] + changes[n]
                else:
                    state.put(unit, before[n])
                if (-broken[n], float(scores[n])) > best[n][:2]:
                    best[n] = (-broken[n], float(scores[n]), state.chosen_U.copy())
            yield
        for state, (*_, chosen_U) in zip(states, best, strict=True):
            state.put_many(np.arange(len(chosen_U)), chosen_U)

    def _site(self, state: State) -> int:
        """A unit to change: in a site to avoid, if one is there; one already changed, if the edits are used up."""
        units = state.template.units
        free_U = units.valid_UC.sum(axis=1) > 1
        used_up = 0 < self.options.max_edits <= state.edits()
        positions_UW = units.first_U[:, None] + np.arange(units.width)
        for wanted_L in (self.rules.in_sites(state.codes_L), (state.codes_L != state.begun_L) & used_up):
            wanted_U = free_U & wanted_L[positions_UW].any(axis=1)
            free_U = wanted_U if wanted_U.any() else free_U
        return int(state.rng.choice(np.flatnonzero(free_U))) if free_U.any() else 0

    def _propose(self, state: State, unit: int, before: int, log_p_1C: np.ndarray) -> int:
        """Show another choice of the hidden unit, or the one before, if there is none that the edits allow; by how much
        more the rules are broken then (no proposal: 0)."""
        worse_C = self._worse(state, unit)
        others_1C = log_p_1C.copy()
        others_1C[0, before] = -np.inf
        if not np.isfinite(others_1C).any():
            state.put(unit, before)
            return 0
        pick = int(self._draw(state, np.array([unit]), others_1C)[0, 0])
        state.put(unit, pick)
        if self.options.max_edits and state.edits() > self.options.max_edits:
            state.put(unit, -1)
            state.put(unit, before)
            return 0
        return int(worse_C[pick] - worse_C[before])

    def _scores(self, states: list[State]) -> np.ndarray:
        """Of each; without an oracle only changes that repair a rule are kept."""
        return np.zeros(len(states)) if self.score is None else self.score([state.codes_L for state in states])

    def log_p(self, states: list[State], asked: list[np.ndarray]) -> list[np.ndarray]:
        """ln p [u, C] of the choices of the units that are asked for, from the window in which a unit has most context;
        -inf where the unit does not have the choice."""
        found = [np.empty((len(u) * s.template.units.width, 4), np.float32) for s, u in zip(states, asked, strict=True)]
        pieces: dict[int, list[tuple[np.ndarray, int, np.ndarray, np.ndarray]]] = {}
        for number, (state, units) in enumerate(zip(states, asked, strict=True)):
            positions = state.template.units.positions(units)
            starts, borders = _grid(len(state.codes_L), self.model.max_bases)
            window = np.searchsorted(borders, positions, side="right")
            for one in np.unique(window):
                at, start = np.flatnonzero(window == one), starts[one]
                piece_L = state.codes_L[start : start + self.model.max_bases]
                pieces.setdefault(len(piece_L), []).append((piece_L, number, at, positions[at] - start))
        for alike in pieces.values():
            sizes = [len(at) for _, _, at, _ in alike]
            row_N = np.repeat(np.arange(len(alike)), sizes)
            position_N = np.concatenate([inside for *_, inside in alike])
            log_p_N4 = self.model.at(np.stack([piece_L for piece_L, *_ in alike]), row_N, position_N)
            for part_n4, (_, number, at, _) in zip(np.split(log_p_N4, np.cumsum(sizes)[:-1]), alike, strict=True):
                found[number][at] = part_n4
        return [_of_choices(s, u, p) for s, u, p in zip(states, asked, found, strict=True)]

    def _draw(self, state: State, units: np.ndarray, log_p_uC: np.ndarray, count: int = 1) -> np.ndarray:
        """`count` choices of each unit [count, u] by temperature and top_p, with the range of GC in view."""
        log_p_uC = log_p_uC / self.options.temperature
        log_p_uC = log_p_uC - np.logaddexp.reduce(log_p_uC, axis=1, keepdims=True)
        if self.rules.gc != (0.0, 1.0) and len(units):
            log_p_uC = self._tilted(state, state.gc_UC[units], log_p_uC)
        p_uC = np.exp(log_p_uC)
        if self.options.top_p < 1:
            order_uC = np.argsort(-p_uC, axis=1, kind="stable")
            sorted_uC = np.take_along_axis(p_uC, order_uC, axis=1)
            sorted_uC[sorted_uC.cumsum(axis=1) - sorted_uC >= self.options.top_p] = 0
            np.put_along_axis(p_uC, order_uC, sorted_uC, axis=1)
        ends_uC = p_uC.cumsum(axis=1)
        drawn_Ku = state.rng.random((count, len(units))) * ends_uC[:, -1] * (1 - 1e-9)
        return (ends_uC > drawn_Ku[:, :, None]).argmax(axis=2)

    def _tilted(self, state: State, gc_uC: np.ndarray, log_p_uC: np.ndarray) -> np.ndarray:
        """ln p with the odds of each G and C multiplied so that their mean share is what the hidden units must have on
        average for the range of GC; as it is, where that lies in the range."""
        num_hidden = int((state.chosen_U < 0).sum())
        given = state.low - int(np.where(state.chosen_U < 0, state.least_U, 0).sum())
        least, most = ((bound - given) / num_hidden for bound in self.rules.gc_bounds(len(state.codes_L)))

        def tilted(odds: float) -> tuple[np.ndarray, float]:
            log_q_uC = log_p_uC + odds * gc_uC
            log_q_uC = log_q_uC - np.logaddexp.reduce(log_q_uC, axis=1, keepdims=True)
            return log_q_uC, float((np.exp(log_q_uC) * gc_uC).sum(axis=1).mean())

        mean = tilted(0.0)[1]
        if least <= mean <= most:
            return log_p_uC
        low, high = -20.0, 20.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if tilted(middle)[1] < np.clip(mean, least, most) else (low, middle)
        return tilted(low)[0]

    def _show(self, state: State, units: np.ndarray, picks_u: np.ndarray, log_p_uC: np.ndarray) -> None:
        """Write hidden units one after the other; a pick that would break a rule is drawn anew among the others."""
        if self._is_free:
            state.put_many(units, picks_u)
            return
        for unit, pick, log_p_C in zip(units.tolist(), picks_u.tolist(), log_p_uC, strict=True):
            worse_C = self._worse(state, unit)
            if worse_C[pick] > 0:
                kept_1C = np.where(worse_C <= 0, log_p_C, -np.inf)[None]
                if np.isfinite(kept_1C).any():
                    pick = int(self._draw(state, np.array([unit]), kept_1C)[0, 0])
            state.put(unit, pick)

    def _worse(self, state: State, unit: int) -> np.ndarray:
        """By how much each choice of a hidden unit breaks the rules more [C]."""
        units, rules, size = state.template.units, self.rules, len(state.codes_L)
        low_C = state.low - state.least_U[unit] + state.gc_UC[unit]
        high_C = state.high - state.most_U[unit] + state.gc_UC[unit]
        excess_C = rules.gc_excess(low_C, high_C, size) - rules.gc_excess(state.low, state.high, size)
        return excess_C + rules.sites_with(state.codes_L, int(units.first_U[unit]), units.choices_UCW[unit])

    def _chosen(
        self, states: list[State], asked: list[np.ndarray], picks: list[np.ndarray], score: Score
    ) -> list[np.ndarray]:
        """One [1, u] of the K completions [K, u] of each state, with p proportional to exp(score)."""
        codes = [one for s, u, p in zip(states, asked, picks, strict=True) for one in s.filled(u, p)]
        scores_NK = score(codes).reshape(len(states), -1)
        best = [int((s + state.rng.gumbel(size=len(s))).argmax()) for state, s in zip(states, scores_NK, strict=True)]
        return [p[[at]] for p, at in zip(picks, best, strict=True)]


@cache
def _grid(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """As megadna.genome.records.window_grid, whose windows all predictions for long sequences have."""
    return window_grid(length, size, 1)


def _of_choices(state: State, units: np.ndarray, log_p_n4: np.ndarray) -> np.ndarray:
    """ln p [u, C] of the choices, normalised, from ln p of the units' bases."""
    own = state.template.units
    log_p_uW4 = log_p_n4.astype(np.float64).reshape(len(units), own.width, 4)
    at_u, at_W = np.arange(len(units))[:, None, None], np.arange(own.width)
    log_p_uC = log_p_uW4[at_u, at_W, own.choices_UCW[units]].sum(axis=2)
    log_p_uC = np.where(own.valid_UC[units], log_p_uC, -np.inf)
    return log_p_uC - np.logaddexp.reduce(log_p_uC, axis=1, keepdims=True)
