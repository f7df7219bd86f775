"""Identifiability from numbers alone: which directions the data cannot see, and which derivatives depend on others.

Tangent: the Jacobian of f_G (of sqrt p_G for densities) at the truth, and where spare atoms sit on true ones. Its null
directions are what first order cannot see; those along which the function does not change at all are *flat*: there a
spare atom costs nothing.

Strong identifiability: linear independence of psi, dpsi and d2psi, where psi_eta = d/dm f_{G* + m delta_eta} at m = 0
is what an atom at eta adds. A linear dependence is an equation between derivatives, such as d2F/db2 = 2 dF/dnu for
linear Gaussian experts (arXiv 2305.03288, section 3): a spare atom then hides a second moment behind a first one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from moe_sim.data.covariates import Law
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.distances import target_near
from moe_sim.models.base import Model, Parameters
from moe_sim.models.coordinates import element
from moe_sim.theory.influence import atom_names, influences
from moe_sim.theory.search import SAME_FUNCTION, owners, residuals_near, ways

RANK = 1e-8  # relative singular value, or residual of a column of length 1, below which there is dependence
_ZERO = 1e-6  # coefficient, in units of columns of length 1, that is not printed
_STARTS = 20
_FAR = 10.0  # how far, in the largest coordinate, a straight way of the same function is followed
_STEPS, _CORRECTIONS = 16, 12  # along a curved one, which is followed a tenth as far, and back to it after each
CURVED = ", from there along a curve"


@dataclass(frozen=True)
class Tangent:
    """cells: fitted atoms on each true atom. parameters, rank; kept, dropped: relative singular values about the gap.

    null: what the data do not see at first order, as combinations of free coordinates; ``trivial`` is how many of these
    only share mass out anew or translate gates: the measure is the same. curvature: the least second order effect of
    the others, tangents taken out, relative to the usual one (None where there are no others). flat: directions along
    which the function does not change at all, however far, or in which a curve begins along which it does not.
    """

    cells: list[int]
    parameters: int
    rank: int
    kept: float
    dropped: float
    null: list[str]
    trivial: int
    curvature: float | None
    flat: list[str]


@dataclass(frozen=True)
class ModelCheck:
    """tangents: at the truth, and at all ways of putting ``atoms`` atoms on it. functions, rank: of the derivatives up
    to second order; kept, dropped: relative residuals about the gap. equations: dependences, F short for psi."""

    tangents: list[Tangent]
    functions: int
    rank: int
    kept: float
    dropped: float
    equations: list[str]

    @property
    def strong(self) -> bool:
        """Whether the model is strongly identifiable to second order at this truth."""
        return not self.equations

    def to_json(self) -> dict[str, Any]:
        strong = {k: v for k, v in asdict(self).items() if k != "tangents"}
        return {"tangents": [asdict(t) for t in self.tangents], "strong": {"identifiable": self.strong, **strong}}


def check_model(model: Model, truth: Parameters, law: Law | None, options: FitOptions) -> ModelCheck:
    """The check of a model at a truth; ``options`` says how many atoms are fitted, and the box."""
    true = model.sizes_of(truth)
    covers = [(true, (1,) * model.count(truth))]
    if model.total(options.atoms) > model.count(truth):
        covers += [(model.sizes(options.atoms), way) for way in ways(model, truth, options.atoms)]
    tangents = [tangent(model, truth, law, replace(options, atoms=atoms), way) for atoms, way in covers]
    return ModelCheck(tangents, *dependences(model, truth, law))


def tangent(model: Model, truth: Parameters, law: Law | None, options: FitOptions, cells: tuple[int, ...]) -> Tangent:
    """First and second order at the cover of the truth with so many atoms on each true one."""
    fitter = Fitter(model, truth, options)
    owner = np.array(owners(cells))
    centre = jnp.asarray(fitter.cover(owners(cells)))
    near = residuals_near(target_near(model, truth, law), options.atoms)
    value, jacobian = (jax.jit(function) for function in near)
    J = np.asarray(jacobian(centre))
    length = np.maximum(np.linalg.norm(J, axis=0), 1e-300)
    _, singular, rows = np.linalg.svd(np.linalg.qr(J / length, mode="r"))
    singular = singular / singular[0]
    rank = int(np.sum(singular > RANK))
    null = rows[rank:] / length  # (k, P)
    same = null @ _same_measure(model, fitter, centre, owner).T if len(null) else np.zeros((0, 0))
    moving = null
    trivial = 0
    if len(null):
        u, s, _ = np.linalg.svd(same)
        trivial = len(null) - int(np.sum(s > RANK * np.linalg.norm(null, 2)))
        moving = u[:, : len(null) - trivial].T @ null
    names = coordinates(fitter)
    lines = echelon(null)
    lower, upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
    ways_of_it = [(line, followed(value, jacobian, centre, line, lower, upper)) for line in echelon(moving)]
    flat = [(line, way.straight) for line, way in ways_of_it if way is not None]
    dropped = float(singular[rank]) if rank < len(singular) else 0.0
    return Tangent(
        list(cells), len(centre), rank, float(singular[rank - 1]), dropped,
        [combination(line, names) for line in lines], trivial, _curvature(value, J, centre, moving),
        [combination(line, names) + ("" if straight else CURVED) for line, straight in flat],
    )  # fmt: skip


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


def _curvature(value, J: np.ndarray, centre, moving: np.ndarray) -> float | None:
    """min over directions u of ||second derivative along u, tangents taken out||, relative to the usual size of the
    second derivative with tangents."""
    k = len(moving)
    if not k:
        return None
    basis = jnp.asarray(moving)
    second = np.asarray(jax.jit(jax.jacfwd(jax.jacfwd(lambda a: value(centre + a @ basis))))(jnp.zeros(k)))
    u, s, _ = np.linalg.svd(J / np.maximum(np.linalg.norm(J, axis=0), 1e-300), full_matrices=False)
    tangents = u[:, s > RANK * s[0]]
    second = second.reshape(len(J), -1)
    whole, rest = (
        np.asarray(np.linalg.qr(part, mode="r")).reshape(-1, k, k)
        for part in (second, second - tangents @ (tangents.T @ second))
    )

    def size(a, matrices=rest):
        along = np.einsum("mij,i,j->m", matrices, a, a) / (a @ a)
        return float(along @ along)

    rng = np.random.default_rng(0)
    starts = rng.normal(size=(_STARTS, k))
    usual = float(np.median([size(a, whole) for a in rng.normal(size=(200, k))]))
    if usual == 0:
        return 0.0
    best = min(minimize(size, a, method="BFGS", options={"gtol": 1e-16 * usual}).fun for a in starts)
    return float(np.sqrt(max(best, 0.0) / usual))


class Followed(NamedTuple):
    """Where a way along which the function stays the same was followed to, (P,), and whether it is straight."""

    end: np.ndarray
    straight: bool


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
        straight = [centre + t * far * way for t in (0.03, 0.3, 0.9)]
        if all(_norm(value(point)) < SAME_FUNCTION for point in straight):
            return Followed(straight[-1], True)
        point = _curved(value, jacobian, centre, way, lower, upper, 0.9 * min(far, 1.0) / _STEPS)
        if point is not None:
            return Followed(point, False)
    return None


def _curved(value, jacobian, theta, tangent, lower, upper, step: float) -> np.ndarray | None:
    """The end of ``_STEPS`` steps along a curve of the same function, by Euler steps and Gauss-Newton's way back."""
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
    return theta


def _least(jacobian: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """The shortest step, in units of what coordinates do to the residuals, that takes away what it can of the gap."""
    length = np.linalg.norm(jacobian, axis=0)
    length = np.maximum(length, 1e-8 * max(length.max(), 1e-300))
    return np.linalg.lstsq(jacobian / length, gap, rcond=RANK)[0] / length


def _norm(gap) -> float:
    return float(np.linalg.norm(gap))


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


@dataclass(frozen=True)
class _Column:
    """A derivative of F at one true atom: the coordinates it is taken in, and its values at the nodes (N,)."""

    atom: int
    by: tuple[str, ...]
    values: np.ndarray

    @property
    def name(self) -> str:
        if len(self.by) == 2:
            one, two = self.by
            return f"d2F/d({one})2" if one == two else f"d2F/d({one})d({two})"
        return f"dF/d({self.by[0]})" if self.by else "F"


def dependences(model: Model, truth: Parameters, law: Law | None) -> tuple[int, int, float, float, list[str]]:
    """Functions, rank, the relative residuals about the gap, and equations: fields of ``ModelCheck``."""
    columns = sorted(_columns(model, truth, law), key=lambda c: len(c.by))
    largest = max(float(np.linalg.norm(c.values)) for c in columns)
    basis: list[int] = []
    orthogonal = np.zeros((len(columns[0].values), 0))
    kept, dropped = 1.0, 0.0
    found: list[tuple[int, str]] = []
    for k, column in enumerate(columns):
        length = float(np.linalg.norm(column.values))
        if length < 1e-12 * largest:
            found.append((column.atom, f"{column.name} = 0"))
            continue
        unit = column.values / length
        rest = unit - orthogonal @ (orthogonal.T @ unit)
        rest = rest - orthogonal @ (orthogonal.T @ rest)
        size = float(np.linalg.norm(rest))
        if size > RANK:
            kept = min(kept, size)
            basis.append(k)
            orthogonal = np.column_stack([orthogonal, rest / size])
            continue
        dropped = max(dropped, size)
        found.append((column.atom, _equation(column, [columns[i] for i in basis])))
    return len(columns), len(basis), kept, dropped, _gathered(found, model.count(truth))


def _columns(model: Model, truth: Parameters, law: Law | None) -> Iterator[_Column]:
    """psi and its derivatives up to second order at every true atom.

    Where gates may be translated, those of the last atom in mass and gate alone are left out: by definition they are
    sums of those of the others.
    """
    groups = [group for group, size in model.sizes_of(truth).items() for _ in range(size)]
    movable = model.measure(truth).movable
    moves = np.ones(len(groups), bool) if movable is None else np.asarray(movable)
    translated = set(filter(None, (model.gauge or "").split("+")))
    for j, (value, slope, curve) in enumerate(influences(model, truth, law)):
        names, symmetric = atom_names(model, truth, groups[j])
        last = model.gauge is not None and j == np.flatnonzero(moves)[-1]
        gate = [bool(last and name.split("[")[0] in translated) for name in names]
        if not last:
            yield _Column(j, (), value)
        slope, curve = slope @ symmetric, symmetric.T @ curve @ symmetric
        for a, name in enumerate(names):
            if not gate[a]:
                yield _Column(j, (name,), slope[:, a])
        for a in range(len(names)):
            for b in range(a, len(names)):
                if not (gate[a] and gate[b]):
                    yield _Column(j, (names[a], names[b]), curve[:, a, b])


def _equation(column: _Column, basis: list[_Column]) -> str:
    """The column as a combination of the basis; other atoms are named."""
    matrix = np.stack([c.values for c in basis], axis=1)
    lengths = np.linalg.norm(matrix, axis=0)
    solved = np.linalg.lstsq(matrix / lengths, column.values, rcond=None)[0]
    small = np.abs(solved) < _ZERO * np.linalg.norm(column.values)
    solved = np.where(small, 0.0, solved / lengths)
    names = [c.name if c.atom == column.atom else f"{c.name} of atom {c.atom}" for c in basis]
    return f"{column.name} = {combination(solved, names)}"


def _gathered(found: list[tuple[int, str]], atoms: int) -> list[str]:
    """Each equation once; with its atom unless all atoms have it."""
    texts = list(dict.fromkeys(text for _, text in found))
    owners = {text: [atom for atom, t in found if t == text] for text in texts}
    return [
        text if len(owners[text]) == atoms else f"{text}  (atom {', '.join(map(str, owners[text]))})" for text in texts
    ]
