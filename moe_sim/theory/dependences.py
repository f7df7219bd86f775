"""The derivative dependences of a declared density at a true atom: the system that its cell must solve to hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from moe_sim.data.covariates import Law
from moe_sim.errors import InputError
from moe_sim.losses.distances import Target, target_of
from moe_sim.models.base import Density, Model, Parameters
from moe_sim.models.coordinates import element
from moe_sim.theory.cancellation import NOTHING, Operator, System, products_of
from moe_sim.theory.cone import lengths, rank_split
from moe_sim.theory.curves import combination
from moe_sim.theory.influence import atom_names, derivatives_at, place_of

DEPENDENT = 1e-7  # part of a derivative outside the span of others that is rounding
_SHIFTS, _SHIFT = 2, 0.05  # places beside the truth where dependences must hold as well, and how far away


def dependences(model: Model, truth: Parameters, law: Law | None, atom: int = 1) -> System:
    """The ``System`` of a true atom (from 1) of a declared density, by its derivatives at the truth and beside it.

    The coordinates are those of ``Model.additive``, by default the atom's own parameters. Raises ``InputError`` for a
    regression, for an atom whose split changes the density, and where dependences are of another kind: coefficients
    that change from place to place, second derivatives along generators that depend on each other, or parameters common
    to all atoms. Not checked: that higher derivatives along generators are independent, and of those at other atoms.
    """
    if not isinstance(model, Density):
        raise InputError(f"the model is {type(model).__name__}, no density: ask moduli how atoms of a regression hide")
    if not 1 <= atom <= model.count(truth):
        raise InputError(f"atom is {atom}: pass a number from 1 to {model.count(truth)}")
    if not model.divisible(truth)[atom - 1]:
        raise InputError(f"atom is {atom}: no split of it keeps the density, so it shares its cell with none")
    truth = model.canonical(truth) if model.has_canonical else truth
    common = [name for name, p in model.parameters().items() if p.shared]
    if common:
        raise InputError(
            f"{', '.join(common)} is common to all atoms and may make up for what a cell does: no system is known, ask "
            "moe-sim rates"
        )
    if model.gauge and model.count(truth) == 1:
        raise InputError(
            f"atom is {atom}, the only one: the density does not change with its {model.gauge}, a translation of gates"
        )
    chart = _chart(model, truth, law, atom - 1)
    slope, curve = chart.derivatives(chart.start)
    free = _free(slope, curve)
    if not free:
        raise InputError(f"atom is {atom}: all its derivatives depend on second ones, as on a law of too few points")
    bound = np.delete(np.arange(len(chart.names)), free)
    # Dependent directions: along such a coordinate, and along free ones as far as makes up for the rest.
    second = _along(curve, free)
    every = np.concatenate([chart.psi, slope[:, free], second], axis=1)
    if rank_split(every)[1].shape[1]:
        raise InputError(
            f"second derivatives of atom {atom} along {', '.join(chart.names[i] for i in free)} depend on each other, "
            "on first ones or on the atom itself: no system is known for that"
        )
    known = np.concatenate([slope[:, free], second], axis=1)
    coefficients = np.linalg.lstsq(known, slope[:, bound], rcond=None)[0]
    for point in chart.beside():
        there, bend = chart.derivatives(point)
        left = there[:, bound] - np.concatenate([there[:, free], _along(bend, free)], axis=1) @ coefficients
        if not np.max(np.abs(left), initial=0.0) <= NOTHING * np.max(np.abs(there)):
            raise InputError(
                f"derivatives of atom {atom} depend on each other with coefficients that change with its parameters: "
                f"write {type(model).__name__}.additive, coordinates in which they do not"
            )
    columns = np.eye(len(chart.names))[:, [*free, *bound]]
    columns[free, len(free) :] = -coefficients[: len(free)]
    # In units in which operators have no coefficient beyond 1/2.
    size = 2 * np.max(np.abs(coefficients[len(free) :]), axis=0, initial=0.0)
    columns[:, len(free) :] /= size
    coefficients = coefficients / size
    operators: list[Operator] = [{product: 1.0} for product in products_of(len(free), 1)]
    for column in coefficients[len(free) :].T:
        kept = np.abs(column) > NOTHING * np.max(np.abs(column))
        operators.append({p: float(c) for p, c, k in zip(products_of(len(free), 2), column, kept, strict=True) if k})
    told = np.where(np.abs(columns) < NOTHING, 0.0, columns)
    names = tuple(
        combination(column * chart.unit / np.max(np.abs(column * chart.unit)), chart.names) for column in told.T
    )
    return System(names, tuple(operators), {name: rows @ columns for name, rows in chart.blocks.items()})


@dataclass(frozen=True)
class _Chart:
    """Coordinates (P,) of an atom: ``start`` is the true one, ``to_eta`` the way to its parameters. A ``unit`` changes
    psi by as much as there is of it. psi (N, 1), or (N, 0) where more of the only atom is no change. blocks: the change
    of each block by a unit of each."""

    target: Target
    group: str
    psi: np.ndarray
    start: np.ndarray
    unit: np.ndarray
    to_eta: Callable
    names: list[str]
    blocks: dict[str, np.ndarray]

    def derivatives(self, q) -> tuple[np.ndarray, np.ndarray]:
        """First (N, P) and second (N, P, P) derivatives of psi at q, in units."""
        _, slope, curve = derivatives_at(self.target, self.group, self.to_eta(q))
        first, second = jax.jacfwd(self.to_eta)(q), jax.jacfwd(jax.jacfwd(self.to_eta))(q)
        bend = np.einsum("nij,ia,jb->nab", curve, first, first) + np.einsum("ni,iab->nab", slope, second)
        return slope @ first * self.unit, bend * np.outer(self.unit, self.unit)

    def beside(self) -> np.ndarray:
        """Places beside the truth, (., P)."""
        away = np.random.default_rng(0).normal(size=(_SHIFTS, len(self.start)))
        return self.start + _SHIFT * away * self.unit


def _chart(model: Model, truth: Parameters, law: Law | None, atom: int) -> _Chart:
    group, _, eta, back = place_of(model, truth, atom)
    own, moves = atom_names(model, truth, group)
    if type(model).additive is Model.additive:
        start, names, to_eta = np.zeros(len(own)), own, lambda q: eta + moves @ q
    else:
        table = {name: np.asarray(value) for name, value in model.additive(back(eta)).items()}
        flat, unravel = ravel_pytree(table)
        start = np.asarray(flat)
        names = [element(name, where) if np.size(table[name]) > 1 else name
                 for name in sorted(table) for where in np.ndindex(table[name].shape)]  # fmt: skip
        to_eta = lambda q: ravel_pytree(model.from_additive(unravel(q)))[0]  # noqa: E731
    target = target_of(model, truth, law)
    psi = derivatives_at(target, group, to_eta(start))[0][:, None]
    slope = _Chart(target, group, psi, start, np.ones(len(start)), to_eta, names, {}).derivatives(start)[0]
    norm = np.linalg.norm(slope, axis=0)
    if np.any(norm < lengths(slope)):
        name = names[int(np.argmin(norm))]
        raise InputError(f"atom is {atom + 1}: the density does not change with its {name}, see moe-sim check-model")
    there = bool(np.linalg.norm(psi) > NOTHING * np.max(norm))
    unit = (np.linalg.norm(psi) if there else 1.0) / norm
    change = np.linalg.pinv(moves) @ np.asarray(jax.jacfwd(to_eta)(start)) * unit
    kind = np.array([name.split("[")[0] for name in own])
    blocks = {str(name): change[kind == name] for name in dict.fromkeys(kind)}
    return _Chart(target, group, psi[:, : int(there)], start, unit, to_eta, names, blocks)


def _free(slope: np.ndarray, curve: np.ndarray) -> list[int]:
    """The generators: coordinates without which no first derivative is a combination of second ones.

    One after another each coordinate is bound whose derivative is a combination of those of coordinates before it that
    are not, and of second derivatives of all.
    """
    columns = curve.reshape(len(curve), -1)
    u, s, _ = np.linalg.svd(columns / lengths(columns), full_matrices=False)
    known, found = u[:, s > DEPENDENT * s[0]], []
    for i, column in enumerate(slope.T):
        rest = column - known @ (known.T @ column)
        if np.linalg.norm(rest) > DEPENDENT:
            found.append(i)
            known = np.column_stack([known, rest / np.linalg.norm(rest)])
    return found


def _along(curve: np.ndarray, free: list[int]) -> np.ndarray:
    """Second derivatives along pairs of generators, in the order of ``products_of``."""
    return np.stack([curve[:, free[i], free[j]] for i, j in combinations_with_replacement(range(len(free)), 2)], axis=1)
