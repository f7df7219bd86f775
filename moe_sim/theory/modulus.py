"""Modulus of continuity: exponents of rates by deterministic optimisation, no sampling.

    omega(eps) = min { d(f_G, f_G*) : L(G, G*) = eps, G in a compact neighbourhood },   d: L2(mu) or Hellinger.

If omega(eps) ~ eps^kappa then no estimator beats n^(-1/(2 kappa)) in L near G* (two points, Le Cam), and in these
parametric families maximum likelihood attains it. kappa = 1: n^-1/2; 2: n^-1/4; omega = 0: no rate at all.

The neighbourhood: the box of the study; every fitted atom begins on a true one, all ways of that that hit every true
atom are tried, and no coordinate of a gate may change what an atom counts for by more than a factor ``search.RANGE``
anywhere on the law: an atom whose mass vanishes, or whose gate closes, would make any loss cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.errors import InputError
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters
from moe_sim.models.coordinates import lists
from moe_sim.theory.cone import rank_split
from moe_sim.theory.level import GAIN
from moe_sim.theory.search import SAME_FUNCTION, STEEPEST, Branch, Offsets, Points, Search, joined, ways

LARGEST, LEVELS = 0.3, 11  # eps at first, and at how many eps, from one to the next offsets halved
LEAST = 1e-12  # eps at last: a loss is a difference of masses, and rounded as they are
UNREACHED = 10  # halvings more, where no neighbour of the truth has so large a loss
FLOOR = 2e-12  # distance below which rounding begins to tell by 0.1%: no smaller eps is tried
# Fresh starts at each of the first eps, over all assignments, and at the later ones, where offsets of different orders
# in eps have come apart: points that are led down know best there.
STARTS, FIRST, LATER = 64, 5, 8
FEWEST = 3  # eps that are kept in any case
SWEEPS = 2  # up and down again, at most, while that finds smaller omega
ENDED = 1e-4  # part of omega that a window of iterations must gain, where the best points are followed to the end
STEEPER = 3.0  # by how much the power of eps may rise from one eps to the next
PART = 0.1  # of the way to the next eps (in logarithms) that is gone to see how coordinates move


@dataclass(frozen=True)
class Modulus:
    """omega over eps for one loss; the arrays are (E,), from the largest eps to the smallest.

    zero_from: the place in them from where on omega is zero to rounding, None if it never is: ``degenerate``.

    kappa: slope of log omega over log eps between the two smallest, ``local_kappa`` (E - 1,) between all neighbours.
    cells: fitted atoms in the Voronoi cell of each true one, at each eps. by_cells: the least omega among measures with
    such cells, none empty, (E,), NaN where there are none or rounding tells. measures: parameters of G_eps at each eps.
    agreeing: random starts that came within 1% of the least omega there, or were led to it from other eps. dimension:
    if degenerate, of the null space of the Jacobian at the first G_eps with the function of the truth; that of the set
    of such parameters is no larger.
    """

    loss: str
    eps: np.ndarray
    omega: np.ndarray
    cells: list[tuple[int, ...]]
    by_cells: dict[tuple[int, ...], np.ndarray]
    measures: list[Parameters]
    agreeing: list[int]
    dimension: int | None = None

    @property
    def zero_from(self) -> int | None:
        return _zero_from(self.eps, self.omega)

    @property
    def degenerate(self) -> bool:
        """Whether omega is zero to rounding at all small eps: no estimator has any rate."""
        return self.zero_from is not None

    @property
    def local_kappa(self) -> np.ndarray:
        return np.array([]) if self.degenerate else np.diff(np.log(self.omega)) / np.diff(np.log(self.eps))

    @property
    def kappa(self) -> float | None:
        return None if self.degenerate else _slope(self.eps, self.omega)

    @property
    def exponent(self) -> float | None:
        """Of the fastest possible rate n^-exponent; 0 where degenerate."""
        if self.degenerate:
            return 0.0
        return None if self.kappa is None or self.kappa <= 0 else 1 / (2 * self.kappa)

    def kappa_with(self, cells: tuple[int, ...]) -> float | None:
        """kappa among measures with such cells; infinite where they are degenerate."""
        omega = self.by_cells[cells]
        return _slope(self.eps, omega) if _zero_from(self.eps, omega) is None else float("inf")

    def to_json(self) -> dict[str, Any]:
        by_cells = [
            {"cells": list(k), "omega": [None if np.isnan(w) else w for w in v.tolist()],
             "kappa": None if kappa == float("inf") else kappa, "degenerate": kappa == float("inf")}
            for k, v in self.by_cells.items() for kappa in [self.kappa_with(k)]
        ]  # fmt: skip
        return {
            "loss": self.loss, "eps": self.eps.tolist(), "omega": self.omega.tolist(), "kappa": self.kappa,
            "local_kappa": self.local_kappa.tolist(), "exponent": self.exponent, "degenerate": self.degenerate,
            "dimension": self.dimension, "cells": [list(c) for c in self.cells], "by_cells": by_cells,
            "agreeing": self.agreeing,
            "measures": [lists(m) for m in self.measures],
        }  # fmt: skip

    @staticmethod
    def from_json(told: dict[str, Any]) -> Modulus:
        """The modulus that ``to_json`` told of."""
        measures = [{k: np.asarray(v) for k, v in m.items()} for m in told["measures"]]
        by_cells = {tuple(row["cells"]): np.array(row["omega"], float) for row in told["by_cells"]}
        cells = [tuple(c) for c in told["cells"]]
        eps, omega = np.array(told["eps"]), np.array(told["omega"])
        return Modulus(told["loss"], eps, omega, cells, by_cells, measures, told["agreeing"], told["dimension"])


def _zero_from(eps: np.ndarray, omega: np.ndarray) -> int | None:
    """From where on omega is zero to rounding (NaN is not known); None where the last that is known is not.

    Nor where it may have come down to rounding by a power of eps: the last that was seen, and ``STEEPER``. One or two
    that are not zero after so many that are, at the smallest eps of all, are what rounding of the loss made of them.
    """
    known = np.flatnonzero(~np.isnan(omega))
    for last in (1, 2):
        end, before = known[-last:], known[-last - FIRST : -last]
        if len(before) == FIRST and np.min(omega[end]) >= SAME_FUNCTION > np.max(omega[before]):
            known = known[:-last]
            break
    above = known[omega[known] >= SAME_FUNCTION]
    first = known[known > (above[-1] if len(above) else -1)][:1]
    if not len(first):
        return None
    if len(above):
        seen = _slope(eps[above], omega[above])
        power = STEEPEST if seen is None else seen + STEEPER
        if omega[above[-1]] * (eps[first[0]] / eps[above[-1]]) ** power < SAME_FUNCTION:
            return None
    return int(first[0])


def _slope(eps: np.ndarray, omega: np.ndarray) -> float | None:
    """Of log omega over log eps, between the two smallest eps where omega is known and not 0 to rounding."""
    known = np.flatnonzero(omega >= SAME_FUNCTION)[-2:]  # NaN is not
    if len(known) < 2:
        return None
    return float(np.diff(np.log(omega[known]))[0] / np.diff(np.log(eps[known]))[0])


def modulus(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss],
    progress: Callable[[str, float, float], None] | None = None, eps: np.ndarray | None = None,
) -> Iterator[Modulus]:  # fmt: skip
    """The ``Modulus`` of each loss, eps falling until rounding tells; ``progress(loss, eps, omega)`` after each eps.

    eps: falling values in place of those of ``grid``; of those that are reached the first ``LEVELS`` are taken. The
    loss ``function`` is its own modulus. A loss that no neighbour of the truth reaches has empty arrays.
    """
    searched = [loss for loss in losses if loss.kind != "function"]
    search = Search(model, truth, law, options, searched) if searched else None
    for loss in losses:
        every = grid(loss, model.most_in_a_cell(truth, options.atoms)) if eps is None else eps
        if search is None or loss.kind == "function":
            yield Modulus(loss.name, every[:LEVELS], every[:LEVELS], [], {}, [], [])
        else:
            yield Descent(search, searched.index(loss)).run(every, progress)


def grid(loss: Loss, most: int) -> np.ndarray:
    """Values of eps at which offsets halve; a Voronoi loss is a power of them, in cells of ``most`` atoms."""
    powers = [row[min(most, len(row)) - 1] for _, row in loss.exponents] if loss.kind == "voronoi" else [1.0]
    return LARGEST * 0.5 ** (max(powers) * np.arange(LEVELS + UNREACHED))


class _Level(NamedTuple):
    """All points found at one eps, by assignment."""

    eps: float
    points: list[Points]

    def together(self) -> Points:
        return reduce(joined, self.points)

    @property
    def omega(self) -> float:
        return min(points.least for points in self.points)

    def least(self) -> dict[tuple[int, ...], float]:
        """The least omega of each kind of cells; those that were reached only."""
        found: dict[tuple[int, ...], float] = {}
        every = self.together()
        for cells, omega in zip(map(tuple, every.cells.tolist()), every.omega.tolist(), strict=True):
            if np.isfinite(omega):
                found[cells] = min(omega, found.get(cells, np.inf))
        return found

    def exhausted(self, degenerate: bool) -> bool:
        """Whether rounding tells: of the least omega or, where that is 0, of all others."""
        others = [omega for omega in self.least().values() if omega > SAME_FUNCTION]
        return bool(others and max(others) < FLOOR) if degenerate else self.omega < FLOOR


def without_misses(levels: list[_Level]) -> list[_Level]:
    """The levels without the last ones at which omega is more than at a larger eps: there no start led to the least.

    Far from the truth omega may rise as eps falls, where another measure is near; at the end of the way it cannot.
    """
    kept = list(levels)
    while len(kept) > FEWEST and kept[-1].omega > kept[-2].omega > SAME_FUNCTION:
        kept.pop()
    return kept


class Descent:
    """The search for one loss of a ``Search``: the best points at each eps, by the assignment that they began with."""

    def __init__(self, search: Search, which: int):
        self.search, self.which, self.levels = search, which, list[_Level]()
        options = search.fitter.options
        self.branches = [Branch(search, sizes) for sizes in ways(search.model, search.truth, options.atoms)]
        if not self.branches:
            raise InputError(
                f"no measure of {options.atoms} atoms gives the function of the truth, whose atoms cannot be split: "
                "pass fit.atoms as many as the truth has"
            )
        self.rng = np.random.default_rng([0, which])

    def run(self, every: np.ndarray, progress: Callable[[str, float, float], None] | None = None) -> Modulus:
        """From eps to eps down, then up and down again: the best kind of point may be found late."""

        def tell(level: _Level) -> None:
            if progress is not None:
                progress(self.search.losses[self.which].name, level.eps, level.omega)

        levels = self.levels
        for eps in map(float, every[every >= LEAST]):
            level = self._down(eps)
            if not level.least() and not levels:
                continue
            so_far = [*levels, level]
            zero = _zero_from(np.array([v.eps for v in so_far]), np.array([v.omega for v in so_far])) is not None
            if not level.least() or level.exhausted(zero) or len(levels) == LEVELS:
                break
            levels.append(level)
            tell(level)
        up = [(k + 1, k) for k in range(len(levels) - 2, -1, -1)]
        down = [(k, k + 1) for k in range(len(levels) - 1)]
        for sweep in (up, down) * SWEEPS:
            before = [level.omega for level in levels]
            for source, k in sweep:
                eps = levels[k].eps
                more = self._solve(eps, self._followed(levels[source], eps))
                levels[k] = self._ended(eps, _joined(levels[k].points, more))
                tell(levels[k])
            if all(
                level.omega > 0.99 * omega or omega < SAME_FUNCTION for level, omega in zip(levels, before, strict=True)
            ):
                break
        self.levels = without_misses(levels)
        return self._summary()

    def at(self, eps: float) -> Parameters:
        """G_eps between the values that were run: led to from the nearest of those, whatever else was led before."""
        self.rng = np.random.default_rng([1, self.which])
        nearest = min(self.levels, key=lambda level: abs(np.log(level.eps / eps)))
        if eps != nearest.eps:
            nearest = self._ended(eps, self._solve(eps, self._followed(nearest, eps)))
        found = nearest.together()
        if not np.isfinite(found.least):
            raise InputError(
                f"no measure of loss {self.search.losses[self.which].name} = {eps:g} was found near the truth: pass "
                "sizes for which such a loss is seen, or another loss"
            )
        return self._parameters(found.theta[int(np.argmin(found.omega))])

    def _down(self, eps: float) -> _Level:
        """Least omega at eps: from the points of the last eps, and from fresh starts."""
        count = -(-(STARTS if len(self.levels) < FIRST else LATER) // len(self.branches))
        fresh = [branch.fresh(count, self.rng) for branch in self.branches]
        if not self.levels:
            return self._ended(eps, self._solve(eps, fresh))
        led = self._followed(self.levels[-1], eps)
        # What a larger loss costs. Points that are led may cost more for a while, in narrow valleys.
        least = [max(FLOOR, points.least) for points in self.levels[-1].points]
        hopeless = [np.repeat([np.inf, most], [len(old.offset), count]) for old, most in zip(led, least, strict=True)]
        return self._ended(eps, self._solve(eps, _joined(led, fresh), hopeless))

    def _solve(
        self, eps: float, lanes: list[Offsets], hopeless: list[np.ndarray] | None = None, gain=GAIN
    ) -> list[Points]:
        return self.search.solve(self.which, eps, self.branches, lanes, hopeless, gain)

    def _ended(self, eps: float, found: list[Points]) -> _Level:
        """The best points followed to the end: valleys are flat along the ways to share the mass of a cell."""
        best = [branch.led(points.best(), self.rng) for branch, points in zip(self.branches, found, strict=True)]
        if not any(len(lanes.offset) for lanes in best):
            return _Level(eps, found)
        return _Level(eps, _joined(found, self._solve(eps, best, gain=ENDED)))

    def _followed(self, last: _Level, eps: float) -> list[Offsets]:
        """Where the best points of another eps lead to, and these points themselves.

        A part of the way shows how each coordinate moves. Where that ends on an edge of the loss it goes no further,
        so all are also led the plain way, all offsets shrunk alike.
        """
        now = last.eps * (eps / last.eps) ** PART
        best = [points.best() for points in last.points]
        lanes = [branch.led(points, self.rng) for branch, points in zip(self.branches, best, strict=True)]
        further = self._solve(now, lanes)
        ahead = [
            branch.extrapolated(old, last.eps, new, now, eps, self.rng)
            for branch, old, new in zip(self.branches, best, further, strict=True)
        ]
        return _joined(ahead, lanes)

    def _parameters(self, theta: np.ndarray) -> Parameters:
        return {k: np.asarray(v) for k, v in self.search.fitter.unflatten(theta).items()}

    def _summary(self) -> Modulus:
        every = [level.together() for level in self.levels]
        best = [int(np.argmin(points.omega)) for points in every]
        thetas = [points.theta[k] for points, k in zip(every, best, strict=True)]
        least = [level.least() for level in self.levels]
        eps = np.array([level.eps for level in self.levels])
        kinds = sorted({cells for row in least for cells in row if min(cells) > 0}, reverse=True)
        made = Modulus(
            self.search.losses[self.which].name,
            eps,
            np.array([level.omega for level in self.levels]),
            [tuple(points.cells[k].tolist()) for points, k in zip(every, best, strict=True)],
            {cells: _told(eps, [row.get(cells, np.nan) for row in least]) for cells in kinds},
            [self._parameters(theta) for theta in thetas],
            [len(points.agreeing(k)) for points, k in zip(every, best, strict=True)],
        )  # fmt: skip
        if made.zero_from is None:
            return made
        # Nearer the truth all directions that first order does not see would seem to belong to the set.
        null = rank_split(np.asarray(self.search.jacobian(thetas[made.zero_from])))[1]
        return replace(made, dimension=null.shape[1])


def _joined(one: list, other: list) -> list:
    """Points, or lanes, of each assignment, and others after them."""
    return [joined(*pair) for pair in zip(one, other, strict=True)]


def _told(eps: np.ndarray, values: list[float]) -> np.ndarray:
    """As far down as rounding does not tell, unless it is zero."""
    omega = np.array(values)
    return np.where(omega < FLOOR, np.nan, omega) if _zero_from(eps, omega) is None else omega
