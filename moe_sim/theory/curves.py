"""Ways along which a function stays the same, followed as far as the box allows, and how they are put into words."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.fitting.multistart import Fitter
from moe_sim.models.base import Model
from moe_sim.models.coordinates import element
from moe_sim.theory.cone import lengths
from moe_sim.theory.search import SAME_FUNCTION

RANK = 1e-8  # relative singular value below which there is dependence
CURVED = ", from there along a curve"
_FAR = 10.0  # how far, in the largest coordinate, a straight way of the same function is followed
_STEPS, _CORRECTIONS = 16, 12  # along a curved one, which is followed a tenth as far, and back to it after each
_GROUP = 1e-7  # relative residual below which a curve is that of a one-parameter group


class NullDirections(NamedTuple):
    """Of the Jacobian at a cover of the truth: relative singular values, the rank, and the null space: rows (k, P), and
    those of it that do more than share mass out anew or translate gates, as the measure knows them."""

    singular: np.ndarray
    rank: int
    null: np.ndarray
    moving: np.ndarray


def null_directions(model: Model, fitter: Fitter, jacobian: np.ndarray, centre, owner: np.ndarray) -> NullDirections:
    """jacobian (N, P) of residuals at centre (P,), where fitted atom i sits on true atom owner[i]."""
    length = lengths(jacobian)
    _, singular, rows = np.linalg.svd(np.linalg.qr(jacobian / length, mode="r"))
    singular = singular / singular[0]
    rank = int(np.sum(singular > RANK))
    null = rows[rank:] / length
    if not len(null):
        return NullDirections(singular, rank, null, null)
    u, s, _ = np.linalg.svd(null @ _same_measure(model, fitter, centre, owner).T)
    moves = int(np.sum(s > RANK * np.linalg.norm(null, 2)))
    return NullDirections(singular, rank, null, u[:, :moves].T @ null)


def _same_measure(model: Model, fitter: Fitter, centre, owner: np.ndarray) -> np.ndarray:
    """How the measure moves with the coordinates, (., P), translations of gates and exchange of mass left out."""

    true_measure = model.measure(fitter.truth or {})

    def moved(theta):
        measure = model.measure(model.canonical(fitter.unflatten(theta)))
        mass = jnp.log(jax.ops.segment_sum(measure.weight, jnp.asarray(owner), int(owner.max()) + 1))
        blocks = dict(measure.blocks)
        if model.gauge is not None:
            mass = without_translation(mass[:, None], true_measure.movable)[:, 0]
            for block in filter(None, model.gauge.split("+")):
                blocks[block] = without_translation(blocks[block], measure.movable)
        parts = [*blocks.values(), *measure.shared.values()]
        return jnp.concatenate([mass, *(block.ravel() for block in parts)])

    return np.asarray(jax.jacfwd(moved)(centre))


def without_translation(rows, movable):
    """Rows (L, D) less the mean of those that may be translated."""
    if movable is None:
        return rows - jnp.mean(rows, axis=0)
    share = jnp.asarray(movable, float)
    return rows - share[:, None] * (share @ rows / jnp.sum(share))


class Followed(NamedTuple):
    """A way along which the function stays the same: points (S, P) on it, the last the furthest, tangents (S, P), and
    whether it is straight."""

    path: np.ndarray
    tangents: np.ndarray
    straight: bool

    @property
    def end(self) -> np.ndarray:
        return self.path[-1]


def followed(value, jacobian, centre, line: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Followed | None:
    """The way that leaves the centre along a null direction, in a box, without any change of the function; None where
    the function changes, either way. value, jacobian: of residuals, jitted, of theta (P,)."""
    centre = np.asarray(centre)
    for way in (line, -line):
        moves = np.abs(way) > 0
        room = np.where(way > 0, upper - centre, centre - lower)[moves] / np.abs(way[moves])
        far = min(room.min(), _FAR)
        if far <= 0:
            continue
        straight = np.array([centre + t * far * way for t in (0.03, 0.3, 0.9)])
        if all(_norm(value(point)) < SAME_FUNCTION for point in straight):
            return Followed(straight, np.broadcast_to(way, straight.shape), True)
        found = _curved(value, jacobian, centre, way, lower, upper, 0.9 * min(far, 1.0) / _STEPS)
        if found is not None:
            return found
    return None


def _curved(value, jacobian, theta, tangent, lower, upper, step: float) -> Followed | None:
    """``_STEPS`` steps along a curve of the same function, by Euler steps and Gauss-Newton's way back."""
    path, tangents = [], []
    for _ in range(_STEPS):
        theta = theta + step * tangent
        for _ in range(_CORRECTIONS):
            gap = np.asarray(value(theta))
            if not _norm(gap) >= SAME_FUNCTION / 10 or not np.all((lower <= theta) & (theta <= upper)):
                break
            theta = theta - _least(np.asarray(jacobian(theta)), gap)
        if not (_norm(gap) < SAME_FUNCTION and np.all((lower <= theta) & (theta <= upper))):
            return None  # it changes, is not finite, or ends at the box
        there = np.asarray(jacobian(theta))
        ahead = tangent - _least(there, there @ tangent)  # what is not seen of the way so far
        if not np.any(ahead):
            return None
        tangent = ahead * np.linalg.norm(tangent) / np.linalg.norm(ahead)
        path.append(theta)
        tangents.append(tangent)
    return Followed(np.array(path), np.array(tangents), False)


def _least(jacobian: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """The shortest step, in units of what coordinates do to the residuals, that takes away what it can of the gap."""
    length = np.linalg.norm(jacobian, axis=0)
    length = np.maximum(length, 1e-8 * max(length.max(), 1e-300))
    return np.linalg.lstsq(jacobian / length, gap, rcond=RANK)[0] / length


def _norm(gap) -> float:
    return float(np.linalg.norm(gap))


def group_of(way: Followed, names: list[str]) -> str | None:
    """The one-parameter group, in words, that moves along a way; None where no group of translations and scalings of
    single coordinates does.

    dtheta_i / dt = a_i + b_i theta_i, in proportion to the tangents at all points of the way, is linear in a, b and the
    proportions: the null vector of one matrix.
    """
    if way.straight:
        return ", ".join(_moved(names[i], a, 0.0) for i, a in enumerate(way.tangents[0]) if a)
    moving = np.flatnonzero(np.max(np.abs(way.tangents), axis=0) > 1e-9 * np.max(np.abs(way.tangents)))
    if len(moving) == 1:
        return _moved(names[moving[0]], 1.0, 0.0)
    points, tangents = way.path[:, moving], way.tangents[:, moving]
    count, width = points.shape
    rows = np.zeros((count, width, 2 * width + count))
    index = np.arange(width)
    rows[:, index, index] = 1.0
    rows[:, index, width + index] = points
    rows[np.arange(count), :, 2 * width + np.arange(count)] = -tangents
    _, singular, basis = np.linalg.svd(rows.reshape(-1, 2 * width + count), full_matrices=False)
    if singular[-1] > _GROUP * singular[0]:
        return None
    shift, factor = basis[-1][:width], basis[-1][width : 2 * width]
    largest = factor[np.argmax(np.abs(factor))] if np.max(np.abs(factor)) > 1e-3 * np.max(np.abs(shift)) else 0.0
    unit = largest or shift[np.argmax(np.abs(shift))]
    return ", ".join(_moved(names[i], a, b) for i, a, b in zip(moving, shift / unit, factor / unit, strict=True))


def _moved(name: str, shift: float, factor: float) -> str:
    """Where a coordinate is after the time t."""
    shift, factor = (0.0 if abs(v) < 1e-5 else round(v, 4) for v in (shift, factor))
    if not factor:
        return f"{name} {'-' if shift < 0 else '+'} {_times(abs(shift))}t"
    power = f"exp({'-' if factor < 0 else ''}{_times(abs(factor))}t)"
    about = shift / factor
    if not about:
        return f"{name} {power}"
    sign, other = ("+", "-") if about > 0 else ("-", "+")
    return f"({name} {sign} {abs(about):.4g}) {power} {other} {abs(about):.4g}"


def _times(number: float) -> str:
    return "" if number == 1 else f"{number:.4g} "


def coordinates(fitter: Fitter) -> list[str]:
    """Names of the flat free coordinates: value[0,1] and so on."""
    named = fitter.unflatten_free(np.arange(len(fitter.lower)))
    found = {int(i): element(name, w) for name, v in named.items() for w, i in np.ndenumerate(v)}
    return [found[i] for i in range(len(found))]


def echelon(rows: np.ndarray) -> np.ndarray:
    """The same space with few coordinates in each row, the first of them 1: reduced row echelon form."""
    rows = rows / np.maximum(np.max(np.abs(rows), axis=1, keepdims=True), 1e-300)
    at = 0
    for column in range(rows.shape[1]):
        if at == len(rows):
            break
        pivot = at + int(np.argmax(np.abs(rows[at:, column])))
        if abs(rows[pivot, column]) < 1e-6:
            continue
        rows[[at, pivot]] = rows[[pivot, at]]
        rows[at] /= rows[at, column]
        others = np.arange(len(rows)) != at
        rows[others] -= rows[others, column][:, None] * rows[at]
        at += 1
    return np.where(np.abs(rows) < 1e-7, 0.0, rows)


def combination(coefficients: np.ndarray, names: list[str]) -> str:
    """``value[0,0] - 0.5 value[2,0]``; 0 where there is nothing."""
    text = ""
    for c, name in zip(coefficients, names, strict=True):
        if c == 0:
            continue
        number = "" if abs(abs(c) - 1) < 5e-5 else f"{abs(c):.4g} "
        sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
        text += f"{sign}{number}{name}"
    return text or "0"
