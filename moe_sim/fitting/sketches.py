"""Starts led by a cheaper regression of the same parameters, a sketch, towards least squares of the model itself.

The sketch is fitted; what it misses of the model's function at the fit is taken off the labels; it is fitted again, and
so on (defect correction; in optimisation, the additive correction of models of two costs: Alexandrov, Lewis, Gumbert,
Green and Newman 2001, J. Aircraft 38, 1093-1101). Each turn costs one pass of the model. First turns are those of the
sketch as it is; their end is what a better one is made around, where the sketch knows how. In the end the residuals of
the model are orthogonal to slopes of the sketch, which are near its own there; flat valleys have been walked on the
sketch. All that is certified is a fit of the model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.samples import StoredSample
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import Plan, Setting, parameters_of, passes
from moe_sim.models.base import Regression

FIRST = 2  # turns of the sketch as it is, and
TURNS = 3  # of that around their end
TOGETHER = 8  # lanes that have sketches of their own in memory


@lru_cache(maxsize=16)
def _turned(plan: Plan, turns: int) -> LaneFunction:
    def one(shared, sample, lane):
        setting, cheap, table = shared
        _, theta, tolerance, limit, place = lane
        unflatten = parameters_of(setting.model, dict(plan.atoms))
        sketch = jax.tree.map(lambda v: jnp.asarray(v)[place], table)

        def turn(_, theta):
            labels = _corrected(setting.model, sketch, sample, unflatten(theta))
            return plan.minimise(cheap._replace(model=sketch), labels, theta, tolerance, limit).theta

        theta = jax.lax.fori_loop(0, turns, turn, theta)
        return theta, passes(setting.model, plan.atoms).value(theta, sample)

    return LaneFunction(one, plan.how)


def led(plan: Plan, setting: Setting, cheap: Setting, lanes, samples, first: int = FIRST, turns: int = TURNS):
    """From fits of the sketch ``cheap.model``, lanes (replicates, fits (L, P), tolerances, limits), to where turns lead
    (L, P), and the model's objective there (L,)."""
    replicate, theta, *ends = lanes
    unflatten = parameters_of(setting.model, dict(plan.atoms))
    plain = _stacked([cheap.model])
    theta, value = _turned(plan, first)((setting, cheap, plain), (*lanes, np.zeros(len(theta), int)), samples)
    done = []
    for begin in range(0, len(theta) if turns else 0, TOGETHER):
        block = np.minimum(np.arange(begin, begin + TOGETHER), len(theta) - 1)
        # Not in lanes, whose threads would wait for each other there.
        made = {k: _around(cheap.model, setting.model, unflatten(theta[k])) for k in np.unique(block)}
        table = _stacked([made[k] for k in block])
        one = replicate[block], theta[block], *(end[block] for end in ends), np.arange(TOGETHER)
        done.append(_turned(plan, turns)((setting, cheap, table), one, samples))
    return tuple(np.concatenate(part)[: len(theta)] for part in zip(*done, strict=True)) if done else (theta, value)


def _stacked(sketches: list[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *sketches)


@jax.jit
def _around(sketch, exact, params):
    return sketch.around(exact, params)


def reduced(samples: StoredSample, cheap: Setting) -> StoredSample:
    """Samples with labels in the outputs of the sketch ``cheap.model``."""
    return _reduced(samples, cheap.model)


@jax.jit
def _reduced(samples, sketch):
    def label(x, y):
        offset, ways = sketch.span(x)
        return ways.T @ (y - offset)

    return type(samples)(samples.x, jax.vmap(jax.vmap(jax.vmap(label)))(samples.x, samples.y), samples.weight)


def _corrected(model: Regression, sketch: Regression, sample, params):
    """The sample in the outputs of a sketch, what it misses of the model at these parameters taken off the labels."""

    def label(x, y):
        _, ways = sketch.span(x)
        return ways.T @ (y - model.mean(params, x)) + sketch.mean(params, x)

    return type(sample)(sample.x, jax.vmap(jax.vmap(label))(sample.x, sample.y), sample.weight)
