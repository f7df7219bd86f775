"""Whether a cell of two atoms can hide at second order too: where it cannot, exponents there are those of squares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from moe_sim.data.covariates import Law
from moe_sim.models.base import Model, Parameters
from moe_sim.theory.cone import lengths
from moe_sim.theory.curves import RANK, combination
from moe_sim.theory.influence import atom_names, influences, place_of

NOTHING_SEEN = 1e-6  # least second order effect below which there is none
_STARTS = 20


@dataclass(frozen=True)
class SecondOrder:
    """What a cell of two at a true atom (from 1) hides at second order.

    least: the least over directions u of |P q(u)| / |q(u)|, q(u) = u'(d2 psi)u and P the projection off the span of psi
    and d psi at all true atoms. direction: that u. ``hides``: whether that is zero to rounding. Where it is not, such a
    cell shows all distances through their squares: kappa is 2.
    """

    atom: int
    least: float
    direction: str

    @property
    def hides(self) -> bool:
        return self.least < NOTHING_SEEN

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"hides": self.hides}


def second_order(model: Model, truth: Parameters, law: Law | None) -> list[SecondOrder]:
    """Of each true atom whose split keeps the function."""
    groups = [group for group, size in model.sizes_of(truth).items() for _ in range(size)]
    seen = influences(model, truth, law)
    columns, known = [], []
    for (psi, slope, curve), group in zip(seen, groups, strict=True):
        names, symmetric = atom_names(model, truth, group)
        known.append((names, symmetric.T @ curve @ symmetric))
        columns.append(np.column_stack([psi, slope @ symmetric]))
    span = np.concatenate(columns, axis=1)
    u, s, _ = np.linalg.svd(span / lengths(span), full_matrices=False)
    tangents = u[:, s > RANK * s[0]]
    found = []
    for j in np.flatnonzero(model.divisible(truth)):
        names, curve = known[j]
        seen_by_measure = _canonical_directions(model, truth, int(j), len(names))
        least, at = _least_ratio(seen_by_measure.T @ curve @ seen_by_measure, tangents)
        at = seen_by_measure @ at
        largest = at / np.max(np.abs(at))
        text = combination(np.where(np.abs(largest) < 1e-3, 0.0, largest), names)
        found.append(SecondOrder(int(j) + 1, least, text))
    return found


def _canonical_directions(model: Model, truth: Parameters, atom: int, count: int) -> np.ndarray:
    """Directions (count, r) in which an atom moves that move its canonical place too: a declared scale is none."""
    if not model.has_canonical:
        return np.eye(count)
    group, row, eta, back = place_of(model, truth, atom)
    _, symmetric = atom_names(model, truth, group)

    def place(move):
        rows = {k: jnp.asarray(truth[k]).at[row].set(v) for k, v in back(eta + symmetric @ move).items()}
        return model.measure(model.canonical(truth | rows)).location

    slope = np.asarray(jax.jacfwd(place)(jnp.zeros(count))).reshape(-1, count)
    _, s, basis = np.linalg.svd(slope, full_matrices=False)
    return basis[s > RANK * s[0]].T


def _least_ratio(curve: np.ndarray, tangents: np.ndarray) -> tuple[float, np.ndarray]:
    """min over u of |P q(u)| / |q(u)|, and that u; curve (N, r, r)."""
    r = curve.shape[1]
    flat = curve.reshape(len(curve), -1)
    rest = flat - tangents @ (tangents.T @ flat)
    whole, left = (np.asarray(np.linalg.qr(part, mode="r")).reshape(-1, r, r) for part in (flat, rest))

    def hidden(u):
        """A vector whose length is the ratio: where it can be zero, Gauss-Newton's steps end there."""
        u = u / np.linalg.norm(u) * unit
        top, bottom = (np.einsum("mij,i,j->m", part, u, u) for part in (left, whole))
        return top / max(np.linalg.norm(bottom), RANK * largest)  # what does nothing at second order is not seen

    # A coordinate moves as far as makes its second derivative as large as that of others.
    usual = np.linalg.norm(np.einsum("nii->ni", curve), axis=0)
    largest = float(np.max(usual))
    unit = 1 / np.sqrt(np.maximum(usual, 1e-6 * largest) / largest)
    # A coordinate in which psi is linear does nothing at second order, which no other start leads to.
    starts = [*np.eye(r), *np.random.default_rng(0).normal(size=(_STARTS, r))]
    ends = [least_squares(hidden, u, xtol=1e-15, ftol=1e-15, gtol=1e-15) for u in starts]
    best = min(ends, key=lambda end: end.cost)
    at = best.x * unit
    return float(np.linalg.norm(best.fun)), at / np.linalg.norm(at)
