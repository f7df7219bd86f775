"""How far the atoms of one cell can hide behind one true atom: the order of cancellation, and what exponents it gives.

An atom at eta adds u_eta to a density. Let its coordinates q, 0 at the true atom, obey *derivative dependences* with
constant coefficients: some, the generators, are free; along each other one the first derivative is a sum of second
ones along generators, as d/d variance = 1/2 d^2/d mean^2 of a normal density (``dependences`` finds them).
Then u_q = exp(sum_i q_i M_i) u_0, M_i an operator of degree d_i = 1 or 2 in the generators, and atoms with shares w_j
at q_j stay unseen up to order r where, as power series in the generators,

    sum_j w_j exp(sum_i q_ji M_i) = const + O(r + 1),    all w_j > 0.                                          (*)

``order``: the least r for which (*) has no solution with a block of coordinates that moves. Offsets of degree d are
then of size t^d where the density has moved by t^order, so kappa = order / d. For location-scale families the order is
2 m in cells of m atoms (theory_notes/cancellation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, cycle, islice
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from moe_sim.errors import InputError

Operator = dict[tuple[int, ...], float]  # coefficient of each product of generators, by how often each is in it

LEAST_SHARE = 1e-3  # of an atom of a cell
FARTHEST = 20.0  # a coordinate of degree d is at most this to the power d where the block moves by 1
SOLVED = 1e-11  # largest residual of a solution
STARTS = 60
NOTHING = 1e-6  # relative size of a coefficient that is rounding


@dataclass(frozen=True)
class System:
    """The generating function of a cell: the ``operators`` of the coordinates ``names``, each of one degree.

    blocks: by name of a block of the measure, its first-order change (R, P) with the coordinates.
    """

    names: tuple[str, ...]
    operators: tuple[Operator, ...]
    blocks: dict[str, np.ndarray]

    @property
    def degrees(self) -> np.ndarray:
        """Of the coordinates, (P,)."""
        return np.array([sum(next(iter(operator))) for operator in self.operators])

    def moves(self, block: str) -> dict[int, np.ndarray]:
        """By degree, the rows that change a block through coordinates of that degree, in units of their norm."""
        rows, degrees = self.blocks[block], self.degrees
        least = NOTHING * np.max(np.abs(rows), initial=0.0)
        found = {int(d): rows * (degrees == d) for d in np.unique(degrees)}
        return {d: part / np.linalg.norm(part, 2) for d, part in found.items() if np.any(np.abs(part) > least)}


@dataclass(frozen=True)
class Solution:
    """Of (*) to some order: shares (m,), coordinates (m, P), and the largest coefficient that is left."""

    shares: np.ndarray
    places: np.ndarray
    residual: float

    @property
    def solved(self) -> bool:
        return self.residual < SOLVED


@dataclass(frozen=True)
class Order:
    """Least order for which a cell of ``atoms`` cannot hide while a block moves by offsets of some ``degree``.

    below: a solution one order lower, None where the order is twice the degree, as two atoms at q and -q are one there.
    beyond: the nearest to a solution of this order, over ``STARTS`` starts.
    """

    block: str
    atoms: int
    order: int
    degree: int
    below: Solution | None
    beyond: Solution

    @property
    def kappa(self) -> float:
        """Exponent of the modulus of the block in such cells; the rate is n^(-1 / (2 kappa))."""
        return self.order / self.degree


def location_scale() -> System:
    """Normal densities: d/d variance = 1/2 d^2/d mean^2.

    >>> location_scale().degrees.tolist()
    [1, 2]
    """
    return System(("mean", "variance"), ({(1,): 1.0}, {(2,): 0.5}), {"mean": np.eye(2)[:1], "variance": np.eye(2)[1:]})


def order(system: System, block: str, atoms: int, most: int = 12, starts: int = STARTS) -> Order:
    """The ``Order`` of a block in cells of so many atoms; of the degrees in which it moves, the one of largest kappa.

    Raises ``InputError`` where a solution of order ``most`` exists: then atoms hide to any order, as far as is seen.

    >>> order(location_scale(), "mean", 2, starts=20).order
    4
    """
    if block not in system.blocks:
        raise InputError(f"block is {block!r}: pass one of {', '.join(system.blocks)}")
    found = []
    for degree, rows in system.moves(block).items():
        below = None
        for r in range(2 * degree, most + 1):  # below that two atoms at q and -q are a solution
            at = solve(system, rows, atoms, r, starts)
            if not at.solved:
                found.append(Order(block, atoms, r, degree, below, at))
                break
            below = at
        else:
            raise InputError(f"atoms is {atoms}: they hide to order {most} and further while {block} moves")
    if not found:
        raise InputError(f"block is {block!r}: no coordinate of the system moves it, leave it out")
    return max(found, key=lambda o: o.kappa)


def solve(system: System, rows: np.ndarray, atoms: int, r: int, starts: int = STARTS) -> Solution:
    """The best ``Solution`` of (*) to order r with sum_j w_j |rows q_j|^2 = 1; done with the first that solves it.

    Sums of squares, as those of gate slopes, hold coordinates at 0, where solutions are not regular unless these are
    left out: so starts leave out one set of coordinates after the other, as far as there are starts.
    """
    problem = _problem(_series(tuple(map(_frozen, system.operators)), r), tuple(map(tuple, rows.tolist())), atoms)
    farthest = np.concatenate([np.full(atoms, np.inf), np.tile(FARTHEST**system.degrees, atoms)])
    rng = np.random.default_rng(0)
    ends = []
    for moving in islice(cycle(islice(_moving(rows), starts)), starts):
        z = np.concatenate([rng.normal(size=atoms), 2 * rng.normal(size=atoms * len(system.names))])
        end = least_squares(
            lambda z, mask: np.asarray(problem.residual(z, mask)), z,
            lambda z, mask: np.asarray(problem.jacobian(z, mask)), args=(moving,),
            bounds=(-farthest, farthest), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=400,
        )  # fmt: skip
        shares, places = map(np.asarray, problem.read(end.x, moving))
        ends.append(Solution(shares, places, float(np.max(np.abs(end.fun)))))
        if ends[-1].solved:
            break
    return min(ends, key=lambda end: end.residual)


def _moving(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Sets of coordinates, as masks, that make the rows move; the largest and the smallest in turn."""
    count = rows.shape[1]
    sizes = sorted(range(1, count + 1), key=lambda size: (-abs(2 * size - count - 1), -size))
    for size in sizes:
        for chosen in combinations(range(count), size):
            mask = np.isin(np.arange(count), chosen).astype(float)
            if np.any(rows * mask):
                yield mask


class _Problem(NamedTuple):
    """(*) in unknowns z (m (1 + P),): its coefficients and how far the block moves, to be 0; the Jacobian of these; the
    shares and coordinates that z stands for. A mask says which coordinates move."""

    residual: Callable
    jacobian: Callable
    read: Callable


@lru_cache(maxsize=64)
def _problem(series: Callable, rows: tuple, atoms: int) -> _Problem:
    block = jnp.array(rows)

    def read(z, moving):
        shares = LEAST_SHARE + (1 - atoms * LEAST_SHARE) * jax.nn.softmax(z[:atoms])
        return shares, z[atoms:].reshape(atoms, -1) * moving

    def residual(z, moving):
        shares, q = read(z, moving)
        return jnp.append(shares @ jax.vmap(series)(q), shares @ jnp.sum((q @ block.T) ** 2, axis=1) - 1)

    return _Problem(jax.jit(residual), jax.jit(jax.jacfwd(residual)), jax.jit(read))


def _frozen(operator: Operator) -> tuple:
    return tuple(sorted(operator.items()))


@lru_cache(maxsize=64)
def _series(operators: tuple, r: int) -> Callable:
    """q (P,) to the coefficients of exp(sum_i q_i M_i) of degrees 1 to r, each times sqrt(degree!).

    E = exp(P) has the parts k E_k = sum_d d P_d E_(k - d), with P_d the part of degree d of P (Euler's operator).
    """
    generators = len(operators[0][0][0])
    products = [products_of(generators, k) for k in range(r + 1)]
    place = [{product: i for i, product in enumerate(every)} for every in products]

    def coefficients(q):
        parts = [jnp.ones(1)]
        for k in range(1, r + 1):
            total = jnp.zeros(len(products[k]))
            for value, operator in zip(q, operators, strict=True):
                for exponents, coefficient in operator:
                    d = sum(exponents)
                    if d > k:
                        continue
                    to = [place[k][tuple(map(sum, zip(exponents, p, strict=True)))] for p in products[k - d]]
                    total = total.at[np.array(to)].add(d / k * coefficient * value * parts[k - d])
            parts.append(total)
        return jnp.concatenate([np.sqrt(float(factorial(k))) * part for k, part in enumerate(parts)][1:])

    return coefficients


def products_of(generators: int, degree: int) -> list[tuple[int, ...]]:
    """Products of generators of a degree, by how often each is in it."""
    chosen = combinations_with_replacement(range(generators), degree)
    return [tuple(np.bincount(np.array(c, int), minlength=generators).tolist()) for c in chosen]
