"""Gradients are finite at the truth, anywhere within the bounds and on them; and every parameter has one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.models.base import Model, ModelError, Parameters
from moe_sim.models.coordinates import free_names
from moe_sim.testing.asking import asked
from moe_sim.testing.probe import Probe, spots, value_of

CORNERS = 4  # random ones, beside all lower and all upper bounds


@jax.jit
def _slopes(model: Model, free: Parameters, x, y, weight):
    """Gradients of a weighted sum of the function at the sites, of free coordinates (S, ...)."""

    def total(free):
        params = model.constrain(free)
        return jnp.sum(weight * jax.vmap(lambda a, b: value_of(model, params, a, b))(x, y))

    return jax.vmap(jax.grad(total))(free)


def check_gradients(probe: Probe, near: Parameters) -> None:
    """near: the truth, on so many atoms. Raises ``ModelError``, which names the free coordinate and the point."""
    (lower, upper), rng = probe.box, probe.rng
    with asked(probe.model, "unconstrain"):
        at_truth = {name: np.asarray(v, float) for name, v in probe.model.unconstrain(near).items()}
    points: dict[str, Parameters] = {"at the truth": at_truth}
    points |= {f"within the bounds, at {k}": free for k, free in enumerate(probe.random_free(2))}
    points |= {"with all free coordinates at their lower bounds": lower, "with all at their upper bounds": upper}
    for k in range(CORNERS):
        side = {name: rng.random(low.shape) < 0.5 for name, low in lower.items()}
        corner = {name: np.where(side[name], low, upper[name]) for name, low in lower.items()}
        points[f"in corner {k} of the bounds, " + (", ".join(spots(side)) or "none") + " at the lower ones"] = corner
    stacked = {name: np.stack([np.asarray(free[name]) for free in points.values()]) for name in lower}
    weight = rng.uniform(0.5, 1.5, np.shape(probe.at_truth))
    with asked(probe.model, probe.method):
        found = _slopes(probe.model, stacked, *probe.sites, weight)
    slopes = {name: np.asarray(v) for name, v in found.items()}
    for k, where in enumerate(points):
        bad = spots({name: ~np.isfinite(v[k]) for name, v in slopes.items()})
        if bad:
            raise ModelError(
                f"{bad[0]}: the gradient of {probe.name} in it is not finite {where}: narrow its bound, or write what "
                "happens there without 0 / 0 (jnp.where on the argument, logsumexp, softplus)"
            )
    _check_use(probe, {name: v[:3] for name, v in slopes.items()})


def _check_use(probe: Probe, slopes: dict[str, Any]) -> None:
    for name, coordinates in free_names(probe.declared).items():
        parts = [slopes[one] for one in coordinates if one in slopes]
        if sum(v.size for v in parts) and not any(np.any(v) for v in parts):
            raise ModelError(
                f"{name}: {probe.name} does not depend on it, at the truth nor elsewhere: take it out of parameters"
            )
