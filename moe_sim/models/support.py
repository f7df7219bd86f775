"""Where y lives: labels, counts or real numbers. Sampling and integration of a density are inherited from it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError
from moe_sim.models.part import Part

RANGE = 10.0  # scales about each centre that real y is looked for in: what lies beyond is below rounding
POINTS = 2**12  # of the grid that real y are drawn from
SPACING = 0.5  # of a lattice, in the smallest scale: the trapezoidal rule is then exact to rounding for normal pieces
LARGEST = 2**17  # points of a lattice or counts that are summed over
TAIL = 1e-15  # probability of the counts that are left out


@cache
def _spreads():
    """One compilation for all models of a class, made late: to read a study nobody needs JAX."""
    from moe_sim.models import pytrees as pytrees  # models are arguments of jitted functions

    return jax.jit(lambda model, params, x: jax.vmap(lambda one: model.spread(params, one))(x))


def spreads(model, params, x) -> tuple[np.ndarray, np.ndarray]:
    """``model.spread`` at points x (M, d): centres and scales, each (M, pieces, outputs)."""
    centre, scale = _spreads()(model, params, x)
    return np.asarray(centre), np.asarray(scale)


class Support(Part):
    """``draw`` makes one y, ``nodes`` the points and weights by which densities are integrated near a truth."""

    def draw(self, model, params, key, x) -> Any:
        """One y (outputs,) of ``model.log_density`` at one x."""
        raise NotImplementedError

    def nodes(self, model, params, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y (M, m, outputs) and log-weights (M, m): sums over m integrate over y, at each of the points x (M, d)."""
        raise NotImplementedError


class Labels(Support):
    """y in 0, 1, .., count - 1.

    >>> Labels(3).count
    3
    """

    def __init__(self, count: int):
        self.count = count

    def _values(self):
        return jnp.arange(self.count, dtype=float)[:, None]

    def draw(self, model, params, key, x):
        logs = jax.vmap(lambda y: model.log_density(params, x, y))(self._values())
        return jax.random.categorical(key, logs)[None].astype(float)

    def nodes(self, model, params, x):
        y = np.broadcast_to(np.asarray(self._values()), (len(x), self.count, 1))
        return y, np.zeros((len(x), self.count))


class Counts(Support):
    """y in 0, 1, 2, ..."""

    def draw(self, model, params, key, x):
        """By inversion: counts are added up until their probability exceeds a uniform number."""
        uniform = jax.random.uniform(key)

        def further(carry):
            y, below = carry
            return y + 1, below + jnp.exp(model.log_density(params, x, y[None]))

        def short(carry):
            return (carry[1] <= uniform) & (carry[0] < LARGEST)

        return jax.lax.while_loop(short, further, (jnp.array(0.0), jnp.array(0.0)))[0][None] - 1.0

    def nodes(self, model, params, x):
        top = self._top(model, params, x)
        y = np.broadcast_to(np.arange(top, dtype=float)[:, None], (len(x), top, 1))
        return y, np.zeros((len(x), top))

    def _top(self, model, params, x) -> int:
        """As many counts as leave less than ``TAIL`` out, at each x: a power of two, so that shapes are few."""
        mass = jax.jit(lambda y: jnp.exp(jax.vmap(lambda one: model.log_density(params, one, y))(jnp.asarray(x))))
        top, below = 16, np.zeros(len(x))
        done = 0
        while top <= LARGEST:
            block = np.asarray(jax.lax.map(mass, jnp.arange(done, top, dtype=float)[:, None]))
            below, done = below + block.sum(axis=0), top
            # The last probabilities say as much as the sum, which is rounded.
            if np.all(block[-1] < TAIL) and np.all(below > 0.5):
                return top
            top *= 2
        raise InputError(f"counts beyond {LARGEST:,} have probability: lower the rates of the truth")


class Real(Support):
    """y any real number (outputs,): ``model.spread`` says where the mass lies."""

    def draw(self, model, params, key, x):
        """By inversion of the distribution function of the density, linear between ``POINTS`` points: one output."""
        centre, scale = model.spread(params, x)
        if centre.shape[1] != 1:
            raise InputError(
                f"{type(model).__name__} has {centre.shape[1]} real outputs: drawing them needs a draw(params, key, x) "
                "of its own"
            )
        low, high = jnp.min(centre - RANGE * scale), jnp.max(centre + RANGE * scale)
        y = jnp.linspace(low, high, POINTS)
        density = jnp.exp(jax.vmap(lambda one: model.log_density(params, x, one[None]))(y))
        step = (high - low) / (POINTS - 1)
        below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(step * (density[1:] + density[:-1]) / 2)])
        target = jax.random.uniform(key) * below[-1]
        place = jnp.clip(jnp.searchsorted(below, target, side="right") - 1, 0, POINTS - 2)
        return (y[place] + step * _invert((target - below[place]) / step, density[place], density[place + 1]))[None]

    def nodes(self, model, params, x):
        centre, scale = spreads(model, params, x)
        low, high = (centre - RANGE * scale).min(axis=1), (centre + RANGE * scale).max(axis=1)  # (M, outputs)
        count = np.ceil(((high - low) / (SPACING * scale.min(axis=1))).max(axis=0)).astype(int) + 1  # an output
        count = np.array([1 << int(c - 1).bit_length() for c in count])
        if np.prod(count) > LARGEST:
            raise InputError(
                f"{type(model).__name__} would need a lattice of {int(np.prod(count)):,} values of y at each x: raise "
                "its smallest scale, or lower the number of outputs"
            )
        share = np.stack(np.meshgrid(*[np.linspace(0, 1, c) for c in count], indexing="ij"), -1).reshape(-1, len(count))
        y = low[:, None] + share * (high - low)[:, None]
        step = np.log((high - low) / (count - 1)).sum(axis=1)
        return y, np.broadcast_to(step[:, None], y.shape[:2])


def _invert(area, first, last):
    """t in [0, 1] with first t + (last - first) t^2 / 2 = area: a linear density from ``first`` to ``last``."""
    bend = last - first
    root = jnp.sqrt(jnp.maximum(first**2 + 2 * bend * area, 0.0))
    return jnp.clip(2 * area / (first + root + 1e-300), 0.0, 1.0)
