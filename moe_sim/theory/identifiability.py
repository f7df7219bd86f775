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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from moe_sim.data.covariates import Law
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.distances import target_near
from moe_sim.models.base import Model, Parameters
from moe_sim.theory.closure import Closure, closures
from moe_sim.theory.cone import lengths
from moe_sim.theory.curves import CURVED, RANK, combination, coordinates, echelon, followed, null_directions
from moe_sim.theory.influence import atom_names, influences
from moe_sim.theory.search import owners, residuals_near, ways
from moe_sim.theory.second_order import SecondOrder, second_order

_ZERO = 1e-6  # coefficient, in units of columns of length 1, that is not printed
_STARTS = 20


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
    to second order; kept, dropped: relative residuals about the gap. equations: dependences, F short for psi.
    closures, second_order: see ``closure``; the second where some atom may be split and has spare ones."""

    tangents: list[Tangent]
    functions: int
    rank: int
    kept: float
    dropped: float
    equations: list[str]
    closures: list[Closure]
    second_order: list[SecondOrder]

    @property
    def strong(self) -> bool:
        """Whether the model is strongly identifiable to second order at this truth."""
        return not self.equations

    def to_json(self) -> dict[str, Any]:
        strong = {k: getattr(self, k) for k in ("functions", "rank", "kept", "dropped", "equations")}
        return {
            "tangents": [asdict(t) for t in self.tangents], "strong": {"identifiable": self.strong, **strong},
            "closures": [c.to_json() for c in self.closures], "second_order": [s.to_json() for s in self.second_order],
        }  # fmt: skip


def check_model(model: Model, truth: Parameters, law: Law | None, options: FitOptions) -> ModelCheck:
    """The check of a model at a truth; ``options`` says how many atoms are fitted, and the box."""
    true = model.sizes_of(truth)
    covers = [(true, (1,) * model.count(truth))]
    if model.total(options.atoms) > model.count(truth):
        covers += [(model.sizes(options.atoms), way) for way in ways(model, truth, options.atoms)]
    tangents = [tangent(model, truth, law, replace(options, atoms=atoms), way) for atoms, way in covers]
    hidden = second_order(model, truth, law) if len(covers) > 1 else []
    return ModelCheck(tangents, *dependences(model, truth, law), closures(model, truth, law, options), hidden)


def tangent(model: Model, truth: Parameters, law: Law | None, options: FitOptions, cells: tuple[int, ...]) -> Tangent:
    """First and second order at the cover of the truth with so many atoms on each true one."""
    fitter = Fitter(model, truth, options)
    owner = np.array(owners(cells))
    centre = jnp.asarray(fitter.cover(owners(cells)))
    near = residuals_near(target_near(model, truth, law), options.atoms)
    value, jacobian = (jax.jit(function) for function in near)
    J = np.asarray(jacobian(centre))
    at = null_directions(model, fitter, J, centre, owner)
    names = coordinates(fitter)
    lines, moving = echelon(at.null), at.moving
    lower, upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
    ways_of_it = [(line, followed(value, jacobian, centre, line, lower, upper)) for line in echelon(moving)]
    flat = [(line, way.straight) for line, way in ways_of_it if way is not None]
    dropped = float(at.singular[at.rank]) if at.rank < len(at.singular) else 0.0
    return Tangent(
        list(cells), len(centre), at.rank, float(at.singular[at.rank - 1]), dropped,
        [combination(line, names) for line in lines], len(lines) - len(moving), _curvature(value, J, centre, moving),
        [combination(line, names) + ("" if straight else CURVED) for line, straight in flat],
    )  # fmt: skip


def _curvature(value, J: np.ndarray, centre, moving: np.ndarray) -> float | None:
    """min over directions u of ||second derivative along u, tangents taken out||, relative to the usual size of the
    second derivative with tangents."""
    k = len(moving)
    if not k:
        return None
    basis = jnp.asarray(moving)
    second = np.asarray(jax.jit(jax.jacfwd(jax.jacfwd(lambda a: value(centre + a @ basis))))(jnp.zeros(k)))
    u, s, _ = np.linalg.svd(J / lengths(J), full_matrices=False)
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
