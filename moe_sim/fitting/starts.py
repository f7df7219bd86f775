"""Start rules. None of them knows the sample size unless a study asks for it: noise that shrinks fakes convergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.errors import InputError
from moe_sim.fitting.options import CANDIDATES, RULES, SPREAD
from moe_sim.models import mixture
from moe_sim.models.base import Model


def clusters(rule: str, model: Model) -> bool:
    """Whether candidates are random numbers from which ``from_data`` makes parameters."""
    return rule == "data" and model.clusters


def from_data(model: Model, numbers, x, y, weight):
    """Parameters from clusters of a chunk x (n, d), y (n, outputs), one an expert; ``numbers`` (K, 2 + d) pick rows.

    The first number of an expert picks a row, about which its cluster lies; distances are those of x and y in units of
    their standard deviations. Where it is negative the others pick 1 + d rows, and a cluster is what lies nearest to
    the line through those: experts that cross have no middle. Pure JAX.
    """
    rows = pick(jnp.abs(numbers), weight)
    x_unit, y_unit = in_units(x, y, weight)
    middle = rows[:, 0]
    about = sum(jnp.sum((z[None] - z[middle][:, None]) ** 2, axis=2) for z in (x_unit, y_unit))
    beside = jax.vmap(lambda through: off_line(x_unit, y_unit, through))(rows[:, 1:])
    distance = jnp.where(numbers[0, 0] < 0, beside, about)
    tau = jax.nn.one_hot(jnp.argmin(distance, axis=0), len(numbers), axis=0, dtype=float) * weight
    return model.from_clusters(tau, x, y)


def pick(numbers, weight):
    """The rows at these quantiles, in [0, 1), of the weights (n,)."""
    below = jnp.cumsum(weight)
    return jnp.searchsorted(below, numbers * below[-1], side="right")


def in_units(x, y, weight):
    """x (n, d) and y (n, outputs) in units of their standard deviations."""
    return tuple(v / (jnp.sqrt(mixture.spread(weight, v)) + 1e-300) for v in (x, y))


def off_line(x, y, rows):
    """Squared distance (n,) of each y from the line through 1 + d ``rows`` of the data."""
    line = jnp.concatenate([jnp.ones((len(x), 1)), x], axis=1)
    through = line[rows]
    slope = jnp.linalg.solve(through.T @ through + 1e-6 * jnp.eye(line.shape[1]), through.T @ y[rows])
    return jnp.sum((y - line @ slope) ** 2, axis=1)


def candidates(rule, model: Model, true_atoms, atoms, lower, upper, starts, seed, cover, spread=None, shrink=1.0):
    """Start candidates of one replicate: shape (starts, C, P); each start is the best of its C on the data.

    lower, upper: flat boxes (P,). seed: a ``numpy.random.SeedSequence``. cover: a tuple of true atoms, one a
    fitted atom, to the flat parameters (P,) that sit on them. spread, shrink: the standard deviation of the noise, a
    number or (P,), and a factor on it.
    Where ``clusters`` the shape is (starts, C, atoms, 2 + d), the numbers of ``from_data``: starts take turns.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    if clusters(rule, model):
        numbers = rng.random((starts, CANDIDATES, model.total(atoms), 2 + model.dimension))
        numbers[1::2, ..., 0] *= -1
        return numbers
    if rule == "data":
        from scipy.stats import qmc  # half a second that only this rule needs

        sampler = qmc.Sobol(len(lower), scramble=True, rng=rng)
        needed = starts * CANDIDATES
        points = sampler.random_base2(int(np.ceil(np.log2(needed))))[:needed]
        return (lower + points * (upper - lower)).reshape(starts, CANDIDATES, -1)
    if rule not in RULES:
        raise InputError(f"fit.start = {rule!r} is not known: pass one of {', '.join(RULES)}")
    spread = shrink * (SPREAD[rule] if spread is None else spread)
    found = []
    for _ in range(starts):
        # Every true atom is covered, the spare fitted atoms fall on random ones. The last fitted atom is on the last
        # true one: where gates are pinned at the last atom, the start is then in the gauge of the truth.
        spare = model.spare(rng, true_atoms, atoms)
        theta = cover((*spare.tolist(), *range(model.total(true_atoms))))
        found.append(np.clip(theta + spread * rng.normal(size=theta.shape), lower, upper))
    return np.stack(found)[:, None]
