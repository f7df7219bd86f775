"""Starts led by a cheaper regression of the same parameters, a sketch, towards least squares of the model itself.

The sketch is fitted; what it misses of the model's function at the fit is taken off the labels; it is fitted again, and
so on (defect correction; in optimisation, the additive correction of models of two costs: Alexandrov, Lewis, Gumbert,
Green and Newman 2001, J. Aircraft 38, 1093-1101). Each turn costs one pass of the model. In the end the
residuals of the model are orthogonal to the slopes of the sketch, not yet to its own: a start, a fraction of a
log-likelihood unit away whatever n is. All that is certified is a fit of the model.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import Plan, parameters_of, passes

TURNS = 6


@lru_cache(maxsize=16)
def led(plan: Plan, turns: int = TURNS) -> LaneFunction:
    """From a start (P,) to where ``turns`` lead, and the model's objective there; called with ``((setting, that
    of the sketch), (replicates, starts, tolerances, limits), samples)``."""

    def one(shared, sample, lane):
        setting, cheap = shared
        _, theta, tolerance, limit = lane
        unflatten = parameters_of(setting.model, dict(plan.atoms))

        def means(model, theta):
            params = unflatten(theta)
            return jax.vmap(jax.vmap(lambda x: model.mean(params, x)))(sample.x)

        def turn(theta, correct):
            missed = means(setting.model, theta) - means(cheap.model, theta)
            corrected = type(sample)(sample.x, sample.y - jnp.where(correct, missed, 0.0), sample.weight)
            found = plan.minimise(cheap, corrected, theta, tolerance, limit)
            return found.theta, None

        theta, _ = jax.lax.scan(turn, theta, np.arange(turns) > 0)
        return theta, passes(setting.model, plan.atoms).value(theta, sample)

    return LaneFunction(one, plan.how)
