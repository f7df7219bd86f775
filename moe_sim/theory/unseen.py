"""What samples of the sizes of a study cannot see of its truth: in which directions a measure may go, and how far,
before its function shows it.

First order says where to look. With J the scores of one observation at the truth (``asymptotics``), a direction of
length 1 in J is known to n^-1/2. Where that moves an atom further than a quarter of the way to the nearest other one,
or where J does not see the direction at all, the measure is led that far, the rest of it giving way, to the least
distance of functions there (``level``). That distance decides: it may be zero (the truth is not identified), tiny (two
atoms all but coincide), or plain to see, where only first order was blind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from moe_sim.data.covariates import Law
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters
from moe_sim.theory.asymptotics import Neighbourhood
from moe_sim.theory.cone import DEPENDENT
from moe_sim.theory.identifiability import CURVED, Followed, combination, coordinates, echelon, followed
from moe_sim.theory.search import SAME_FUNCTION, Branch, Offsets, Search, objects

ERRORS = 0.05  # of the best test of two functions, each way, from where they count as told apart
BLIND = 1e-12  # loss that is zero to rounding: masses of order 1 are subtracted in it
_ALONE = 1.0  # how far an atom is led that has no other, and the logarithm of a mass
_SMALL = 1e-4  # coefficient, beside the largest, that is not told
_MOST = 8  # directions that are followed, the least known first


@dataclass(frozen=True)
class Unseen:
    """A direction in which the truth is not known at the sizes of a study.

    direction: a combination of free coordinates. moved, distance: the loss of a measure that lies in it, and the
    distance of its function from the true one. seen_from: the size n from which the best test of the two errs in fewer
    than ``ERRORS`` of the samples, either way; None where the functions are the same to rounding. atoms: the two true
    atoms, from 1, that it moves against each other, and apart: how far they are from each other; None where it does not
    or where it leads on and on.
    """

    direction: str
    moved: float
    distance: float
    seen_from: float | None
    atoms: list[int] | None
    apart: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def unseen(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss], n: float
) -> dict[str, list[Unseen]]:
    """``{loss: what it sees and samples of size n do not}``, for measures of as many atoms as the truth has; losses of
    which nothing is known are left out. The arguments are fields of ``study.problem``."""
    at = Neighbourhood(model, truth, law)
    suspects = _suspects(at, n)
    # No cell of the truth has several atoms: what such cells would hold is what single ones do.
    losses = [replace(loss, cells="single") if loss.cells == "multi" else loss for loss in losses]
    losses = [loss for loss in losses if loss.kind != "function"]
    if not suspects or not losses:
        return {}
    search = Search(model, truth, law, replace(options, atoms=model.sizes_of(truth)), losses)
    branch = Branch(search, (1,) * model.count(truth))
    branch.box = search.lower, search.upper  # as far as fits may go
    names = coordinates(search.fitter)
    found: dict[str, list[Unseen]] = {}
    for suspect in suspects:
        way = _followed(search, suspect.step) if suspect.blind else None
        line = suspect.step / np.max(np.abs(suspect.step))
        text = combination(np.where(np.abs(line) < _SMALL, 0.0, line), names)
        text += CURVED if way is not None and not way.straight else ""
        for which, loss in enumerate(losses):
            if way is None:
                moved, distance = _led(search, branch, which, suspect.step, [other.step for other in suspects])
            else:
                moved, distance = _at(search, which, way.end)
            needed = (-2 * ndtri(ERRORS) * at.seen.unit / distance) ** 2 if distance > SAME_FUNCTION else np.inf
            if moved > BLIND and needed > n:
                known = None if np.isinf(needed) else float(needed)
                close = (suspect.atoms, suspect.apart) if way is None else (None, None)
                of_loss = Unseen(text, moved, distance, known, *close)
                found.setdefault(loss.name, []).append(of_loss)
    return found


def _followed(search: Search, step: np.ndarray) -> Followed | None:
    """Where the truth may be led in this direction, or along a curve that begins in it, without any change."""
    theta = search.fitter.cover(tuple(range(search.model.count(search.truth))))
    return followed(search.residuals, search.jacobian, theta, step, search.lower, search.upper)


def _at(search: Search, which: int, theta: np.ndarray) -> tuple[float, float]:
    """The loss and the distance of functions at theta."""
    return search.loss(which, theta), float(np.linalg.norm(search.residuals(theta)))


def _led(search: Search, branch: Branch, which: int, step, every: list[np.ndarray]) -> tuple[float, float]:
    """The loss a step away from the truth, and the least distance of functions at that loss, led to from there and in
    ``every`` other direction; 0, 0 if the loss is blind to the step."""

    def ends(step):
        return [np.clip(branch.centre + way * step, search.lower, search.upper) for way in (1, -1)]

    eps = min((loss for loss in (search.loss(which, end) for end in ends(step)) if loss > BLIND), default=0.0)
    if not eps:
        return 0.0, 0.0
    offsets = np.array([end - branch.centre for other in every for end in ends(other)])
    lanes = Offsets(np.array([branch.centre] * len(offsets)), offsets, objects([frozenset()] * len(offsets)))
    return eps, search.solve(which, eps, [branch], [lanes])[0].least


class _Suspect(NamedTuple):
    """A step (P,) that first order does not know at the size in question, or is ``blind`` to; as far as it brings two
    atoms half their distance nearer, or moves a mass by 1: ``atoms`` and ``apart`` as in ``Unseen``."""

    step: np.ndarray
    blind: bool
    atoms: list[int] | None
    apart: float | None


def _suspects(at: Neighbourhood, n: float) -> list[_Suspect]:
    """The least known first, ``_MOST`` of them."""
    scale = np.linalg.norm(at.scores, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    _, singular, rows = np.linalg.svd(np.linalg.qr(at.scores / scale, mode="r"))
    rows = rows / scale
    rank = int(np.sum(singular > DEPENDENT * max(singular[0], 1e-300)))
    known = rows[:rank] / (singular[:rank, None] * np.sqrt(n))
    near = _Nearest(at)
    found = []
    for direction, blind in [*((row, True) for row in echelon(rows[rank:])), *((row, False) for row in known[::-1])]:
        far, pair, apart = near.reach(direction)
        if far and (blind or far < 1):
            found.append(_Suspect(far * direction, blind, pair, apart))
    return found[:_MOST]


class _Nearest:
    """How far atoms of a truth may be moved before their Voronoi cells mean nothing."""

    def __init__(self, at: Neighbourhood):
        self.at = at
        measure = at.model.measure(at.model.canonical(at.truth))
        location = np.asarray(measure.location)
        gap = np.linalg.norm(location[:, None] - location[None], axis=2)
        np.fill_diagonal(gap, np.inf)
        if measure.group is not None:
            group = np.asarray(measure.group)
            gap = np.where(np.equal.outer(group, group), gap, np.inf)
        self.other, self.apart = np.argmin(gap, axis=1), np.min(gap, axis=1)
        self.blocks, self.shared = list(measure.blocks), list(measure.shared)

    def reach(self, direction: np.ndarray) -> tuple[float, list[int] | None, float | None]:
        """The factor of a direction (P,) that moves an atom a quarter of the way to the nearest other one, so that they
        may come half as close, or a mass or a shared parameter by 1; the atom and that other, from 1, and their
        distance. 0 where it moves nothing."""
        changes = self.at.changes(direction[:, None])
        moved = np.sqrt(sum(np.sum(changes[b][..., 0] ** 2, axis=1) for b in self.blocks))
        room = np.where(np.isfinite(self.apart), self.apart / 4, _ALONE)
        others = np.concatenate([changes[name].ravel() for name in ("", *self.shared)])
        pulls = np.concatenate([moved / room, np.abs(others) / _ALONE])
        first = int(np.argmax(pulls))
        if not pulls[first] > 1e-6 * np.linalg.norm(direction):
            return 0.0, None, None
        if first >= len(moved) or not np.isfinite(self.apart[first]):
            return 1 / float(pulls[first]), None, None
        other = int(self.other[first])
        parting = sum(np.sum((changes[b][first, ..., 0] - changes[b][other, ..., 0]) ** 2) for b in self.blocks)
        if np.sqrt(parting) < 0.1 * moved[first]:  # they go together
            return 1 / float(pulls[first]), None, None
        return 1 / float(pulls[first]), sorted([first + 1, other + 1]), float(self.apart[first])
