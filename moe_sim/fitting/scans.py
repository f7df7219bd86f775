"""Objectives that jump: where no slope leads across an edge, places on both sides are tried.

A gate that selects jumps where another expert is selected, so that along its parameters the likelihood is a step at
every point of x. Each such coordinate (``Parameter.jumps``) is tried at distances that double from the smallest to half
its box, both ways, and moved to the best place (pattern search; Torczon 1997, SIAM J. Optim. 7, 1-25); all others are
then solved for by slopes, in turn, until neither gains.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import passes
from moe_sim.models.base import Model
from moe_sim.models.coordinates import ravel

GAIN = 1e-4  # log-likelihood units: less is no gain of a scan
TURNS = 40  # of scanning and solving, at most
_STEPS = 24  # distances either way, the smallest 6e-8 of half a side of the box


def jumping(model: Model, atoms) -> tuple[int, ...]:
    """The free coordinates, of all (P,), along which the function of ``model`` jumps."""
    jumps = {name for name, parameter in model.parameters().items() if parameter.jumps}
    marks = {name: np.full(shape, float(name in jumps)) for name, shape in model.free_shapes(atoms).items()}
    return tuple(np.flatnonzero(ravel(marks)).tolist())


@lru_cache(maxsize=16)
def scan(atoms: tuple[tuple[str, int], ...], coordinates: tuple[int, ...], how: str) -> LaneFunction:
    """One turn over ``coordinates`` from theta (P,): the place found and its objective, never above that of theta."""

    def scanned(setting, sample, lane):
        _, theta = lane
        value = passes(setting.model, atoms).value
        length = 2.0 ** -jnp.arange(_STEPS)
        length = jnp.concatenate([length, -length])

        def along(at, j):
            theta, objective = at
            half = 0.5 * (setting.upper[j] - setting.lower[j])
            places = jnp.clip(theta[j] + half * length, setting.lower[j], setting.upper[j])
            values = jax.lax.map(lambda t: value(theta.at[j].set(t), sample), places)
            best = jnp.nanargmin(values)
            better = values[best] < objective
            return (jnp.where(better, theta.at[j].set(places[best]), theta),
                    jnp.where(better, values[best], objective)), None  # fmt: skip

        return jax.lax.scan(along, (theta, value(theta, sample)), jnp.array(coordinates))[0]

    return LaneFunction(scanned, how)
