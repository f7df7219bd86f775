"""Starts with a spare atom: where one more atom would raise the likelihood most, beside a fit of one atom fewer.

Let theta be that fit, s its scores and psi what a vanishing mass of an atom at eta does to log p. With psi' = psi less
its projection on s, the best small mass of such an atom raises the log-likelihood by T^2 / 2,

    T(eta) = sum psi' / (sum psi'^2)^(1/2),

all other parameters giving way to first order (the score test of one component more; its maximum over eta is the limit
of the likelihood ratio: Dacunha-Castelle and Gassiat 1999, Ann. Statist. 27, 1178-1209). Candidates eta are clusters of
few rows. Those of largest T are starts, and as first order does not see far, so are some that are taken as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.samples import CountedSample, first_rows
from moe_sim.fitting.starts import from_data, in_units, off_line, pick
from moe_sim.likelihood.objective import sum_chunks, without_padding
from moe_sim.models.base import Model
from moe_sim.models.coordinates import free_names, ravel, unravel
from moe_sim.models.domains import GATE

KINDS = 5  # of clusters
MOST_CHUNKS = 64  # of a sample, that candidates are compared on
VANISHED = -40.0  # log of a mass that is none beside those of order 1, and whose square is still a number
_TINY = 1e-6  # share of the atom at which its influence is read off
_FEW, _MANY = 4.0, 0.4  # rows of a cluster: from so many to this part of them
_STEEPER = 30.0  # factor up to which the gate of a cluster is made steeper
_ALIKE = 0.95  # correlation of influences from which two candidates are one
_ODDS = (0.005, 0.5)  # odds of a spare atom at its start
_HALVINGS = 45  # of the range of distances: to rounding
_SPIKE = 0.7  # log of a variance above its bound, below which a candidate is a spike


class Counts(NamedTuple):
    """Starts of a replicate: candidates of largest T, candidates as they come, and clusters of all rows as they come
    (``starts.from_data``), for optima in which no fit of one atom fewer is left. candidates: of which these are."""

    best: int
    random: int
    data: int
    candidates: int = 256

    @property
    def total(self) -> int:
        return self.best + self.random + self.data


def counts(sample) -> Counts:
    """How many for these samples: a start costs as many rows, and first order sees the further the more there are."""
    if isinstance(sample, CountedSample):
        return Counts(8, 16, 0, 96)
    chunks = int(np.max(sample.chunks))
    if chunks == 1:
        return Counts(64, 128, 64)
    return Counts(24, 8, 0) if chunks <= 8 else Counts(8, 0, 0)


class Numbers(NamedTuple):
    """Random numbers of a replicate: of its candidates (C, 4 + d), and of clusters (data, atoms, 2 + d)."""

    candidates: np.ndarray
    clusters: np.ndarray


def numbers(seed: np.random.SeedSequence, dimension: int, atoms: int, number: Counts) -> Numbers:
    """The ``Numbers`` that a seed gives."""
    rng = np.random.Generator(np.random.Philox(seed))
    clusters = rng.random((number.data, atoms, 2 + dimension))
    clusters[1::2, :, 0] *= -1  # about points and along lines in turn
    return Numbers(rng.random((number.candidates, 4 + dimension)), clusters)


def fewer(model: Model, shapes: dict[str, tuple[int, ...]], lower, upper) -> tuple[np.ndarray, np.ndarray]:
    """The box (P,) of fits of one atom fewer: the first one has no mass, and stays where it is.

    shapes: of the named free coordinates that are raveled in ``lower`` and ``upper``.
    """
    low, high = (unravel(shapes, np.array(end)) for end in (lower, upper))
    of_mass = masses(model)
    for name in of_atoms(model):
        middle = np.clip(0.0, low[name][0], high[name][0])
        low[name][0] = high[name][0] = VANISHED if name in of_mass else middle
    return ravel(low), ravel(high)


def of_atoms(model: Model) -> list[str]:
    """Names of the free coordinates of which each atom has its own."""
    declared = model.parameters()
    return [free for name, names in free_names(declared).items() if not declared[name].shared for free in names]


def masses(model: Model) -> list[str]:
    """Names of the free coordinates that are logarithms of masses."""
    return [free_names(model.parameters())[name][0] for name in model.masses.values()]


def _gates(model: Model) -> set[str]:
    """Names of the gates that are relative to that of the last atom, masses left out."""
    return {name for name, p in model.parameters().items() if p.domain is GATE} - set(masses(model))


def cluster(model: Model, u, kind, x, y, weight):
    """Free coordinates of a cluster of few rows (row 0) beside all others, from numbers u (4 + d,).

    kind: about a row, along a line through 1 + d rows, along it near a row, beyond a row, or beyond it along the line.
    """
    count = jnp.sum(weight)
    x_unit, y_unit = in_units(x, y, weight)
    at = pick(u[1 : 3 + x.shape[1]], weight)
    near, about = (jnp.sum((v - v[at[0]]) ** 2, axis=1) for v in (x_unit, y_unit))
    beside = off_line(x_unit, y_unit, at[1:])
    outward = x_unit[at[0]] - weight @ x_unit / count
    beyond = -(x_unit @ outward) / (jnp.linalg.norm(outward) + 1e-300)
    distance = jnp.stack([near + about, beside, beside + 0.3 * near, beyond, beyond])[kind]
    share = jnp.exp(jnp.log(_FEW / count) + u[0] * (jnp.log(_MANY) - jnp.log(_FEW / count)))
    inside = _nearest(distance, share * count, weight)
    inside = jnp.where(kind == 4, _nearest(beside, 0.5 * share * count, inside * weight), inside)
    tau = jnp.stack([inside * weight, ~inside * weight])
    free = model.unconstrain(model.from_clusters(tau, x, y))
    steeper, relative = jnp.exp(u[-1] * jnp.log(_STEEPER)), _gates(model)
    return {name: value[0] * (steeper if name in relative else 1.0) for name, value in free.items()}


def _nearest(distance, count, weight):
    """The rows of least distance that together stand for more than ``count`` observations, of those with weight.

    By bisection: many sorts would cost more than all else.
    """
    found = jnp.where(weight > 0, distance, jnp.inf)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        enough = jnp.sum(jnp.where(found <= middle, weight, 0.0)) > count
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    ends = jnp.min(found), jnp.max(jnp.where(weight > 0, distance, -jnp.inf))
    return found <= jax.lax.fori_loop(0, _HALVINGS, halve, ends)[1]


def starts(model: Any, named: Callable, theta, u: Numbers, sample, lower, upper, number: Counts):
    """Starts (number.total, P) beside theta (P,), a fit whose first atom has no mass. Pure JAX.

    named: from flat free coordinates to named ones. lower, upper: the box of the starts.
    """
    base, (mass_name,), relative = named(theta), masses(model), _gates(model)
    x, y, weight = first_rows(sample)
    log_gates = jax.vmap(lambda free, x: model.log_gates(model.constrain(free), x), (None, 0))
    share = weight @ jax.nn.softmax(log_gates(base, x), axis=1)
    share = share / jnp.sum(share)

    def beside(atom, log_mass):
        """theta with this atom in the place of the first one, its gate relative to what it joins."""
        new = {}
        for name, value in base.items():
            row = atom.get(name, value[0])
            row = row + share[: len(value)] @ value if name in relative else row
            new[name] = value.at[0].set(log_mass if name == mass_name else row)
        return new

    def at_odds_one(atom):
        """The log-mass at which the odds of the atom are 1 on average over the rows."""
        gates = log_gates(beside(atom, 0.0), x)
        odds = jnp.exp(gates[:, 0] - jax.nn.logsumexp(gates[:, 1:], axis=1))
        return -jnp.log(weight @ odds / jnp.sum(weight))

    flat = lambda atom, log_mass: ravel(beside(atom, log_mass))  # noqa: E731
    kinds = jnp.arange(len(u.candidates)) % KINDS
    atoms = jax.vmap(lambda one, kind: cluster(model, one, kind, x, y, weight))(u.candidates, kinds)
    log_mass = jax.vmap(at_odds_one)(atoms)
    tiny = jax.vmap(flat)(atoms, log_mass + jnp.log(_TINY))
    T, step, alike = _tests(*_moments(model, named, theta, tiny, sample))
    scales = {name: jnp.full(jnp.shape(v), name in model.variances).at[1:].set(False) for name, v in base.items()}
    spike = jnp.any((tiny <= lower + _SPIKE) & ravel(scales).astype(bool), axis=1)

    def pick(k, carry):
        chosen, left = carry
        one = jnp.argmax(left)
        return chosen.at[k].set(one), jnp.where(alike[one] > _ALIKE, -jnp.inf, left)

    left = jnp.where(jnp.isfinite(T) & ~spike, T, -jnp.inf)
    best, _ = jax.lax.fori_loop(0, number.best, pick, (jnp.zeros(number.best, int), left))
    chosen = jnp.concatenate([best, jnp.arange(number.random)])
    odds = jnp.clip(jnp.nan_to_num(step[chosen] * _TINY), *_ODDS)
    found = jax.vmap(flat)(jax.tree.map(lambda v: v[chosen], atoms), log_mass[chosen] + jnp.log(odds))
    if number.data:
        of_data = lambda v: ravel(model.unconstrain(from_data(model, v, x, y, weight)))  # noqa: E731
        found = jnp.concatenate([found, jax.lax.map(of_data, u.clusters)])
    return jnp.clip(found, lower, upper)


def _moments(model: Any, named: Callable, theta, tiny, sample):
    """Sums over the sample, with psi (M,) and scores s (P,): psi, s, psi psi', s psi', s s'."""
    log_density = lambda t, x, y: model.log_density(model.constrain(named(t)), x, y)  # noqa: E731

    def one_chunk(x, y, weight, _=None):
        x, y = without_padding(x, y, weight)
        rows = jax.vmap(log_density, (None, 0, 0))
        root = jnp.sqrt(weight)[:, None]
        known = rows(theta, x, y)
        psi = root * jax.lax.map(lambda t: rows(t, x, y) - known, tiny).T
        score = root * jax.vmap(partial(jax.jacfwd(log_density), theta))(x, y)
        return root[:, 0] @ psi, root[:, 0] @ score, psi.T @ psi, score.T @ psi, score.T @ score

    return sum_chunks(one_chunk, sample)


def _tests(psi, score, square, cross, gram):
    """T (M,), the best mass in units of the one psi is for (M,), and correlations (M, M) of what scores leave."""
    scale = jnp.sqrt(jnp.diagonal(gram))
    # The scores of the atom without a mass are tiny and no directions of the fit.
    scale = jnp.where(scale > 1e-9 * jnp.max(scale), scale, jnp.inf)
    value, vector = jnp.linalg.eigh(gram / jnp.outer(scale, scale))
    inverse = jnp.where(value > 1e-10 * value[-1], 1 / jnp.where(value > 0, value, 1.0), 0.0)
    turned = vector.T @ (cross / scale[:, None])
    left = square - turned.T @ (inverse[:, None] * turned)
    pull = psi - (inverse * (vector.T @ (score / scale))) @ turned
    # What is nearly a combination of scores has only rounding left.
    size = jnp.where(jnp.diagonal(left) > 1e-10 * jnp.diagonal(square), jnp.diagonal(left), jnp.nan)
    return pull / jnp.sqrt(size), pull / size, left / jnp.sqrt(jnp.outer(size, size))
