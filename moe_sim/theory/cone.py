"""What a fit can do to the function near the truth: its tangent cone, and the projection of noise on it.

Let psi_eta = d/dm f_{G* + m delta_eta} at m = 0, the influence of an atom at eta. Fitted atoms i in the cell of true
atom j, with masses w_i at eta_j + d_i, change the function by

    f_G - f* = sum_j [ a_j psi_j + b_j . dpsi_j + 1/2 tr(d2psi_j M_j) ] + o(n^-1/2),
    a_j = sum_i w_i - w_j,   b_j = sum_i w_i d_i,   M_j = sum_i w_i d_i d_i' (0 in a cell of one atom),

a_j and b_j free, M_j positive semidefinite of rank at most the number of spare atoms in the cell. Where psi and its
first and second derivatives are linearly independent ("strong identifiability" to second order, Chen 1995, Ann.
Statist. 23, 221-233) all three are of order n^-1/2, and sqrt(n) times them is the projection of standard normal noise
on that cone (least squares; for likelihoods: Dacunha-Castelle and Gassiat 1999, Ann. Statist. 27, 1178-1209), the best
one over all ways of giving spare atoms to cells. Masses are bounded away from 0 (``fit.bias_bound``): otherwise a spare
atom of vanishing mass could go anywhere, and the cone would hold all psi_eta.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import helmert

from moe_sim.data.covariates import Law
from moe_sim.fitting.batching import LaneFunction
from moe_sim.likelihood.objective import Passes
from moe_sim.models.base import Model, Parameters
from moe_sim.solvers.trust_region import trust_region
from moe_sim.theory.influence import influences, places

_ZERO = 1e-15  # length of a column, relative to the longest, below which there is only rounding in it
DEPENDENT = 1e-8  # singular value, relative to the largest, below which columns of unit length are dependent
SAME_DISTANCE = 1e-9  # half squared distances this close are the same: M = 0 fits as well in every cell
_CANDIDATES, _STARTS = 256, 4  # directions of M tried for each draw, and the best of them that are followed
_BOX = 1e4  # of sqrt(n)^(1/2) times an offset: no bound, but the solver asks for one


def cone_features(model: Model, truth: Parameters, law: Law | None) -> tuple[np.ndarray, np.ndarray]:
    """Columns that span the tangent cone, standardised: (N, L (1 + q)) and (N, L q (q + 1) / 2).

    The first hold psi_j and dpsi_j of every true atom in turn, the second what an entry M_rs, r <= s, of its M_j does:
    d2psi_rs, halved on the diagonal.
    """
    first, second = [], []
    for value, slope, curve in influences(model, truth, law):
        r, s = np.triu_indices(slope.shape[1])
        first += [value[:, None], slope]
        second.append(curve[:, r, s] * np.where(r == s, 0.5, 1.0))
    return np.concatenate(first, axis=1), np.concatenate(second, axis=1)


def lengths(columns: np.ndarray) -> np.ndarray:
    """Norms (P,) of columns (N, P); that of the longest where a column is zero to rounding beside it, so that what is
    divided by them stays rounding."""
    found = np.linalg.norm(columns, axis=0)
    longest = float(np.max(found, initial=0.0))
    return np.where(found > _ZERO * longest, found, longest or 1.0)


def rank_split(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions v (P, r) that columns (N, P) tell apart and (P, P - r) with columns @ v = 0 to rounding."""
    scale = lengths(columns)
    triangle = np.asarray(np.linalg.qr(columns / scale, mode="r"))
    _, singular, rows = np.linalg.svd(triangle)
    rank = int(np.sum(singular > DEPENDENT * max(singular[0], 1e-300)))
    directions = rows.T / scale[:, None]
    return directions[:, :rank], directions[:, rank:]


class Projection(NamedTuple):
    """The cone's nearest points to D draws of noise, for each of C ways of giving spare atoms to cells.

    owner (C, spare): the true atom that each spare atom joins. length (D,): of the projection. nearest (D, C): whether
    this way is the best one; several are where M = 0, since then all atoms of a cell coincide and any cell will do.
    a (D, C, L), b (D, C, L, q), and v (D, C, spare, q): M_j is the sum of v v' over its spare atoms.
    """

    owner: np.ndarray
    length: np.ndarray
    nearest: np.ndarray
    a: np.ndarray
    b: np.ndarray
    v: np.ndarray


class Cone:
    """The tangent cone of a truth with L atoms fitted by L + spare; features from ``cone_features``."""

    def __init__(self, first: np.ndarray, second: np.ndarray, atoms: int, spare: int):
        self.atoms, self.spare, self.q = atoms, spare, first.shape[1] // atoms - 1
        # The first-order part is free, so it takes up all of its noise: only the rest decides on M.
        basis = first @ rank_split(first)[0]
        basis = np.linalg.qr(basis)[0]
        self._solve_first = np.linalg.pinv(basis.T @ first)
        self._mixed = basis.T @ second
        factor = np.asarray(np.linalg.qr(second - basis @ self._mixed, mode="r"))
        self._factor, self.dimensions = factor, (basis.shape[1], factor.shape[1])
        self._search = LaneFunction(self._nearest)

    def project(self, noise: np.ndarray) -> Projection:
        """Project standard normal draws (D, sum of ``dimensions``)."""
        owner = np.array(list(combinations_with_replacement(range(self.atoms), self.spare)))
        z1, z2 = np.split(noise, self.dimensions[:1], axis=1)
        draws, ways = len(noise), len(owner)
        lanes = (np.repeat(z2, ways, axis=0), np.tile(owner, (draws, 1)))
        v, half = self._search(jnp.asarray(self._factor), lanes)
        v, half = v.reshape(draws, ways, self.spare, self.q), half.reshape(draws, ways)
        # The apex is in every cone; exactly 0, so that coinciding atoms coincide.
        apex = 0.5 * np.sum(z2**2, axis=1)[:, None]
        v = np.where((half > apex - SAME_DISTANCE)[..., None, None], 0.0, v)
        half = np.minimum(half, apex)
        moments = np.asarray(jax.vmap(jax.vmap(self._moments, (0, 0)), (0, None))(v, owner))  # (D, C, p2)
        coefficients = (z1[:, None] - moments @ self._mixed.T) @ self._solve_first.T
        coefficients = coefficients.reshape(draws, ways, self.atoms, 1 + self.q)
        length = np.sqrt(np.sum(z1**2, axis=1) + 2 * np.maximum(apex[:, 0] - half.min(axis=1), 0.0))
        nearest = half <= half.min(axis=1, keepdims=True) + SAME_DISTANCE
        return Projection(owner, length, nearest, coefficients[..., 0], coefficients[..., 1:], v)

    def _moments(self, v, owner):
        """Entries of all M_j, (p2,), of spare offsets v (spare, q) owned by those true atoms."""
        r, s = np.triu_indices(self.q)
        return (jax.nn.one_hot(owner, self.atoms).T @ (v[:, r] * v[:, s])).ravel()

    def _nearest(self, factor, lane):
        """v (spare, q) and half the squared distance, for noise (p2,) and one way of giving atoms to cells."""
        noise, owner = lane
        shape = (self.spare, self.q)

        def gap(flat):
            return factor @ self._moments(flat.reshape(shape), owner) - noise

        def value(flat, _):
            return 0.5 * jnp.sum(gap(flat) ** 2)

        def matrix(flat):
            jacobian = jax.jacfwd(gap)(flat)
            return jacobian.T @ jacobian

        passes = Passes(
            value,
            lambda flat, _: (value(flat, None), jax.grad(value)(flat, None), matrix(flat)),
            lambda flat, _: jax.hessian(value)(flat, None) - matrix(flat),
        )

        def scaled(direction):
            """The best multiple of a direction, or a small one where none helps, and what it leaves."""
            moved = gap(direction) + noise
            square = jnp.maximum(moved @ noise / (moved @ moved), 1e-4)
            start = jnp.sqrt(square) * direction
            return start, value(start, None)

        directions = np.random.default_rng(0).normal(size=(_CANDIDATES, self.spare * self.q))
        starts, left = jax.vmap(scaled)(jnp.asarray(directions))
        chosen = starts[jax.lax.top_k(-left, _STARTS)[1]]
        bound = jnp.full(chosen.shape[1], _BOX)
        found: Any = jax.lax.map(
            lambda start: trust_region(passes, None, start, -bound, bound, tolerance=0.0, patience=5), chosen
        )
        best = jnp.argmin(found.objective)
        return found.theta[best].reshape(shape), found.objective[best]


def members(model: Model, truth: Parameters, found: Projection, step: float) -> Parameters:
    """Fitted parameters (D, C, ...) that realise a projection at n = step^-2: a / sqrt(n), and so on.

    Atoms of a cell share its mass equally and lie at the corners of a simplex about its mean: Helmert's rows have
    length 1 and are orthogonal to each other and to 1, which makes sum w d = b and sum w d d' = M.
    """
    eta, back = places(model, truth)
    weight, mass = np.asarray(model.measure(truth).weight), np.asarray(truth[model.masses[model.groups[0]]])
    draws, ways = found.nearest.shape
    place = np.empty((draws, ways, len(eta) + found.owner.shape[1], eta.shape[1]))
    masses = np.empty(place.shape[:3])
    for way, owner in enumerate(found.owner):
        last = 0
        for j, at in enumerate(eta):
            size = 1 + int(np.sum(owner == j))
            cell = slice(last, last + size)
            last += size
            corners = np.swapaxes(found.v[:, way, owner == j], 1, 2) @ helmert(size)  # (D, q, size)
            offset = np.sqrt(step * size / weight[j]) * np.swapaxes(corners, 1, 2)
            place[:, way, cell] = at + offset + step * found.b[:, way, j, None] / weight[j]
            among = size / (1 + step * found.a[:, way, j] / weight[j])
            masses[:, way, cell] = np.asarray(model.divided(mass[j], np.asarray(among), model.groups[0]))[:, None]
    parts = jax.vmap(jax.vmap(jax.vmap(back)))(jnp.asarray(place))
    return {name: np.asarray(value) for name, value in parts.items()} | {model.masses[model.groups[0]]: masses}
