"""Which rates are possible at a truth: of each block of the measure by the number of atoms in a cell, by the modulus.

How sure that is: how many starts agree, over which eps the local exponents have settled, and from which size n on a
distance so small is told apart, so that the rate can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_sim.losses.voronoi import Loss, loss_of
from moe_sim.models.base import ATOMS, Atoms, Model, Parameters
from moe_sim.theory.closure import Closure
from moe_sim.theory.minimax import observations
from moe_sim.theory.modulus import Modulus

SETTLED = 0.05  # local exponents so close to the last one count as settled
FEWEST = 3  # neighbours in eps that must agree


@dataclass(frozen=True)
class Row:
    """A loss of which a rate is asked: of a ``block`` of atoms of a ``group`` in cells of ``cell`` atoms; None for the
    whole Voronoi loss, and for parameters that all atoms share."""

    loss: Loss
    group: str
    block: str
    cell: int | None = None

    def is_in(self, loss: Loss) -> bool:
        """Whether a loss speaks of this one."""
        if self.cell is None or loss.kind != "atoms":
            return loss.name == self.loss.name
        return self.block in dict(loss.exponents) and bool(loss.speaks_of(self.cell)) and loss.raw == self.loss.raw


def rows(model: Model, truth: Parameters, atoms: Atoms) -> list[Row]:
    """The Voronoi loss, each block by the number of atoms in a cell, and parameters that all atoms share."""
    whole = ["voronoi", *(["voronoi:raw"] if model.has_canonical else [])]
    found = [Row(loss_of(model, name), "", name) for name in whole]
    declared, true, fitted = model.parameters(), model.sizes_of(truth), model.sizes(atoms)
    for block in model.exponents:
        group = (declared[block].group if block in declared else None) or model.groups[0]
        most = fitted[group] - true[group] + 1
        smallest = 2 if true[group] == 1 and most > 1 else 1  # the only true atom of a group shares its cell
        for cell in range(smallest, most + 1):
            if cell == 1 or np.any(model.divisible(truth)):
                found.append(Row(loss_of(model, f"atoms:{cell}:{block}"), group, block, cell))
    found += [Row(loss_of(model, f"shared:{name}"), "", name) for name in model.shared_exponents]
    return found


@dataclass(frozen=True)
class Rate:
    """row, and its modulus. cause: what makes it degenerate, one line each.

    kappa: the exponent of the modulus where it has settled, or what it tends to, or else the last one that was seen.
    settled: the eps, from the largest to the smallest, over which local exponents are within ``SETTLED`` of the last;
    the very last is left out where it alone spoils that, as rounding tells there first.
    limit: what the exponents tend to, and the eps from where they would be within ``SETTLED`` of it, where they still
    move; by their differences, which fall geometrically. None where they have settled, or where that is not so.
    seen_from: size n from where the rate is seen, as n observations tell such a distance from none.
    """

    row: Row
    modulus: Modulus
    cause: list[str]
    kappa: float | None = None
    settled: tuple[float, float] | None = None
    limit: tuple[float, float] | None = None
    seen_from: float | None = None

    @property
    def degenerate(self) -> bool:
        """Whether no estimator has any rate."""
        return self.modulus.degenerate

    @property
    def exponent(self) -> float | None:
        """Of the fastest possible rate n^-exponent; 0 where degenerate."""
        if self.degenerate:
            return 0.0
        return None if self.kappa is None or self.kappa <= 0 else 1 / (2 * self.kappa)

    @property
    def agreeing(self) -> int | None:
        """Starts that came to the least omega, at the eps where they were fewest; of those that have settled."""
        high, low = self.settled or (np.inf, 0.0)
        found = zip(self.modulus.eps, self.modulus.agreeing, strict=True)
        return min((count for eps, count in found if low <= eps <= high), default=None)

    def to_json(self) -> dict[str, Any]:
        m = self.modulus
        return {
            "group": self.row.group or ATOMS, "block": self.row.block, "cell": self.row.cell,
            "loss": self.row.loss.name,
            "kappa": self.kappa, "exponent": self.exponent, "degenerate": self.degenerate, "cause": self.cause,
            "dimension": m.dimension, "starts": self.agreeing, "eps": [m.eps[0], m.eps[-1]] if len(m.eps) else None,
            "settled": self.settled, "limit": self.limit, "seen_from": self.seen_from,
        }  # fmt: skip


def rate(model: Model, row: Row, found: Modulus, closures: list[Closure]) -> Rate:
    """What a modulus says of a row."""
    if found.degenerate:
        return Rate(row, found, [c.text for c in closures if _explains(c, row)])
    settled = _settled(found)
    if settled is not None:
        *eps, kappa = settled
        seen = float(observations(model, _omega_at(found, eps[0], kappa)))
        return Rate(row, found, [], kappa, (eps[0], eps[1]), None, seen)
    limit = _limit(found)
    if limit is None:
        return Rate(row, found, [], found.kappa)
    return Rate(row, found, [], limit[0], None, limit, float(observations(model, _omega_at(found, limit[1], limit[0]))))


def settled_exponent(found: Modulus) -> float | None:
    """Of the fastest possible rate, where that has settled; 0 where degenerate, None where it is not clear."""
    if found.degenerate:
        return 0.0
    settled = _settled(found)
    return None if settled is None else 1 / (2 * settled[2])


def asymptotic_exponent(found: Modulus) -> float | None:
    """The same, but where local exponents still move by what they tend to; None where they do neither."""
    settled, limit = settled_exponent(found), None if found.degenerate else _limit(found)
    return settled if settled is not None or limit is None or limit[0] <= 0 else 1 / (2 * limit[0])


def _explains(closure: Closure, row: Row) -> bool:
    """Whether a closure moves the block of a row, in cells of as many atoms."""
    if row.cell is None:
        return row.block.startswith("voronoi") or row.block in closure.blocks
    splits = closure.kind in ("splitting", "doubling", "mute")
    return row.block in closure.blocks and (row.cell > 1 or not splits)


def _settled(found: Modulus) -> tuple[float, float, float] | None:
    """The eps, largest and smallest, between which local exponents are within ``SETTLED`` of the last one; and that.
    None where they are not, or where they still move by more than that (see ``Rate``)."""
    limit = _limit(found)
    for last in (None, -1):
        eps, local = found.eps[:last], found.local_kappa[:last]
        if len(local) < FEWEST:
            return None
        far = np.flatnonzero(np.abs(local - local[-1]) > SETTLED)
        first = int(far[-1]) + 1 if len(far) else 0
        if len(local) - first >= FEWEST and (limit is None or abs(limit[0] - local[-1]) <= SETTLED):
            return float(eps[first]), float(eps[-1]), float(local[-1])
    return None


def _limit(found: Modulus) -> tuple[float, float] | None:
    """What local exponents tend to and from which eps they are near it, if their differences fall geometrically."""
    local = found.local_kappa
    if len(local) < FEWEST:
        return None
    before, last = local[-2] - local[-3], local[-1] - local[-2]
    ratio = last / before if before else 1.0
    if not 0 < ratio < 1:
        return None
    missing = last * ratio / (1 - ratio)
    steps = max(0.0, np.log(SETTLED / abs(missing)) / np.log(ratio)) if missing else 0.0
    return float(local[-1] + missing), float(found.eps[-1] * (found.eps[-1] / found.eps[-2]) ** steps)


def _omega_at(found: Modulus, eps: float, kappa: float) -> float:
    """omega at eps; below the smallest one by the power kappa."""
    if eps < found.eps[-1]:
        return float(found.omega[-1] * (eps / found.eps[-1]) ** kappa)
    return float(np.exp(np.interp(np.log(eps), np.log(found.eps[::-1]), np.log(found.omega[::-1]))))
