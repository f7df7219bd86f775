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
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters
from moe_sim.models.coordinates import lists
from moe_sim.theory.asymptotics import Neighbourhood
from moe_sim.theory.closure import ELSEWHERE, descend
from moe_sim.theory.curves import CURVED, Followed, combination, coordinates, echelon, followed
from moe_sim.theory.search import SAME_FUNCTION, Branch, Offsets, Search, objects

ERRORS = 0.05  # of the best test of two functions, each way, from where they count as told apart
BLIND = 1e-12  # loss that is zero to rounding: masses of order 1 are subtracted in it
_ALONE = 1.0  # how far an atom is led that has no other, and the logarithm of a mass
_SMALL = 1e-4  # coefficient, beside the largest, that is not told
_MOST = 8  # directions that are followed, the least known first


@dataclass(frozen=True)
class Unseen:
    """A direction in which the truth is not known at the sizes of a study, or another measure with its function.

    direction: a combination of free coordinates; empty where the measure lies elsewhere and in no direction. moved,
    distance: the loss of a measure that lies in it, and the distance of its function from the true one. seen_from: the
    size n from which the best test of the two errs in fewer than ``ERRORS`` of the samples, either way; None where the
    functions are the same to rounding. atoms: the two true atoms, from 1, that it moves against each other, and apart:
    how far they are from each other; None where it does not or where it leads on and on. measure: the parameters of one
    that lies elsewhere.
    """

    direction: str
    moved: float
    distance: float
    seen_from: float | None
    atoms: list[int] | None
    apart: float | None
    measure: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def unseen(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss], n: float
) -> dict[str, list[Unseen]]:
    """``{loss: what it sees and samples of size n do not}``, for measures of as many atoms as the truth has; losses of
    which nothing is known are left out. The arguments are fields of ``study.problem``."""
    # No cell of the truth has several atoms: what such cells would hold is what single ones do.
    losses = [replace(loss, cells="single") if loss.least_cell > 1 else loss for loss in losses]
    losses = [loss for loss in losses if loss.kind != "function"]
    if not losses:
        return {}
    at = Neighbourhood(model, truth, law)
    suspects = _suspects(at, n)
    if not suspects:
        return {}
    led = _Led(at, options, losses, [suspect.step for suspect in suspects])
    found: dict[str, list[Unseen]] = {}
    for k, suspect in enumerate(suspects):
        way = led.followed(suspect.step) if suspect.blind else None
        text = led.told(suspect.step) + (CURVED if way is not None and not way.straight else "")
        close = (suspect.atoms, suspect.apart) if way is None else (None, None)
        for which, loss in enumerate(losses):
            moved, distance = led.least(which, k) if way is None else led.at(which, way.end)
            same = distance <= SAME_FUNCTION
            needed = np.inf if same else (-2 * ndtri(ERRORS) * at.seen.unit / distance) ** 2
            if moved > BLIND and needed > n:
                known = None if np.isinf(needed) else float(needed)
                found.setdefault(loss.name, []).append(Unseen(text, moved, distance, known, *close))
    return found


def elsewhere(
    model: Model,
    truth: Parameters,
    law: Law | None,
    options: FitOptions,
    losses: list[Loss],
    estimates: dict[str, np.ndarray],
) -> dict[str, list[Unseen]]:
    """``{loss: a measure with the function of the truth that is not near it}``, where the estimates (K, P) of a loss
    lead to one, of as many atoms as the truth has: S(-u) = 1 - S(u), say, makes two measures of one function.

    An estimate is led, all coordinates free, to the least distance of functions. Where that is zero to rounding and
    most of its loss is left, this is no estimate on its way to the truth.
    """
    search = Search(model, truth, law, options, losses)
    measured, box = LossFunction(model, truth, law, losses, options.atoms), (search.lower, search.upper)
    free, found = np.ones(len(search.lower), bool), dict[str, list[Unseen]]()
    for loss in losses:
        for begin in estimates[loss.name]:
            end = descend(search.residuals, search.jacobian, begin, free, box)
            before, moved = measured(np.stack([begin, end]))[loss.name].tolist()
            distance = float(np.linalg.norm(search.residuals(end)))
            if distance < SAME_FUNCTION and moved > max(before / 2, ELSEWHERE):
                measure = lists(search.fitter.unflatten(end))
                found[loss.name] = [Unseen("", moved, distance, None, None, None, measure)]
                break
    return found


class _Led:
    """Measures of as many atoms as the truth, led from it along steps (P,), as far as fits may go."""

    def __init__(self, at: Neighbourhood, options: FitOptions, losses: list[Loss], steps: list[np.ndarray]):
        model, truth = at.model, at.truth
        sizes = model.sizes_of(truth)
        self.losses = losses
        self.search = Search(model, truth, at.law, replace(options, atoms=sizes), losses)
        self.box = self.search.lower, self.search.upper
        self.branch = Branch(self.search, (1,) * model.count(truth))
        self.branch.box = self.box
        self.measured = LossFunction(model, truth, at.law, losses, sizes)
        self.names = coordinates(self.search.fitter)
        centre = self.branch.centre
        self.ends = np.array([np.clip(centre + way * step, *self.box) for step in steps for way in (1, -1)])
        self.reached = self.measured(self.ends)

    def told(self, step: np.ndarray) -> str:
        line = step / np.max(np.abs(step))
        return combination(np.where(np.abs(line) < _SMALL, 0.0, line), self.names)

    def followed(self, step: np.ndarray) -> Followed | None:
        """Where the truth may be led in this direction, or along a curve that begins in it, without any change."""
        return followed(self.search.residuals, self.search.jacobian, self.branch.centre, step, *self.box)

    def at(self, which: int, theta: np.ndarray) -> tuple[float, float]:
        """A loss, and the distance of functions, at theta (P,)."""
        loss = float(self.measured(theta[None])[self.losses[which].name][0])
        return loss, float(np.linalg.norm(self.search.residuals(theta)))

    def least(self, which: int, k: int) -> tuple[float, float]:
        """A loss at the end of step k, and the least distance of functions at that loss, led to from the ends of all
        steps; 0, 0 if the loss is blind to this one."""
        seen = [loss for loss in self.reached[self.losses[which].name][2 * k : 2 * k + 2].tolist() if loss > BLIND]
        if not seen:
            return 0.0, 0.0
        offsets = self.ends - self.branch.centre
        centres = np.broadcast_to(self.branch.centre, offsets.shape)
        lanes = Offsets(centres, offsets, objects([frozenset()] * len(offsets)))
        return min(seen), self.search.solve(which, min(seen), [self.branch], [lanes])[0].least


class _Suspect(NamedTuple):
    """A step (P,) that first order does not know at the size in question, or is ``blind`` to; as far as it brings two
    atoms half their distance nearer, or moves a mass by 1: ``atoms`` and ``apart`` as in ``Unseen``."""

    step: np.ndarray
    blind: bool
    atoms: list[int] | None
    apart: float | None


def _suspects(at: Neighbourhood, n: float) -> list[_Suspect]:
    """The least known first, ``_MOST`` of them."""
    known = at.kept / (np.linalg.norm(at.scores @ at.kept, axis=0) * np.sqrt(n))  # known to 1 each
    blind = echelon(at.null.T).T
    directions = np.concatenate([blind, known[:, ::-1]], axis=1)
    pulls, apart, pairs = _reach(at, directions)
    moves = pulls > 1e-6 * np.linalg.norm(directions, axis=0)
    found = []
    for k in np.flatnonzero(moves & ((np.arange(len(pulls)) < blind.shape[1]) | (pulls > 1))):
        found.append(_Suspect(directions[:, k] / pulls[k], bool(k < blind.shape[1]), pairs[k], apart[k]))
    return found[:_MOST]


def _reach(at: Neighbourhood, directions: np.ndarray) -> tuple[np.ndarray, list, list]:
    """How often directions (P, k) move an atom a quarter of the way to the nearest other one, so that they may come
    half as close, or a mass or a shared parameter by 1: (k,), the furthest.

    And of each the distance of the atom that moves most from that other, and the two, from 1; None where it is a mass,
    or where they go together.
    """
    measure = at.model.measure(at.model.canonical(at.truth))
    location = np.asarray(measure.location)
    gap = np.linalg.norm(location[:, None] - location[None], axis=2)
    np.fill_diagonal(gap, np.inf)
    if measure.group is not None:
        group = np.asarray(measure.group)
        gap = np.where(np.equal.outer(group, group), gap, np.inf)
    other, apart = np.argmin(gap, axis=1), np.min(gap, axis=1)

    changes = at.changes(directions)
    shift = np.concatenate([changes[block] for block in measure.blocks], axis=1)  # (L, D, k)
    moved = np.linalg.norm(shift, axis=1)
    room = np.where(np.isfinite(apart), apart / 4, _ALONE)
    rest = np.concatenate([changes[name] for name in ("", *measure.shared)]) / _ALONE
    pulls = np.concatenate([moved / room[:, None], np.abs(rest)])
    distances: list[float | None] = []
    pairs: list[list[int] | None] = []
    for k, first in enumerate(np.argmax(pulls, axis=0)):
        close = first < len(moved) and np.isfinite(apart[first])
        # They go together where they hardly part.
        close = close and np.linalg.norm(shift[first, :, k] - shift[other[first], :, k]) >= 0.1 * moved[first, k]
        distances.append(float(apart[first]) if close else None)
        pairs.append(sorted([int(first) + 1, int(other[first]) + 1]) if close else None)
    return np.max(pulls, axis=0), distances, pairs
