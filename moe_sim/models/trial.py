"""A model from outside is tried at the truth before anything is computed: what is wrong with it is told in one line."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from numbers import Integral, Real
from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError
from moe_sim.models.base import Density, Model, Parameters, Regression
from moe_sim.models.loading import blamed
from moe_sim.models.parameter import Parameter
from moe_sim.models.support import Support

_NODES = 512  # of the law at which a mean is tried
_POINTS = 8  # drawn ones at which a density is


def check_declared(model: Model) -> None:
    """Raises ``InputError`` where a model does not say what it must: sizes, parameters, noise or support."""
    name = type(model).__name__
    for what in ("dimension", "outputs"):
        value = getattr(model, what, None)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}.{what} = {value!r}: set self.{what} to a whole number in its __init__")
    with blamed(name):
        declared = model.parameters()
    if not isinstance(declared, dict) or not declared or not all(isinstance(p, Parameter) for p in declared.values()):
        raise InputError(f"{name}.parameters() gives {declared!r}: return a dict of moe_sim.Parameter by name")
    if isinstance(model, Regression):
        noise = getattr(model, "noise", None)
        if not isinstance(noise, Real) or not 0 < float(noise) < np.inf:
            raise InputError(f"{name}.noise = {noise!r}: set self.noise to a positive number in its __init__")
    elif not isinstance(getattr(model, "support", None), Support):
        raise InputError(f"{name} has no support: set support = moe_sim.Labels(3), moe_sim.Counts() or moe_sim.Real()")


def check_values(model: Model, truth: Parameters, law: Any) -> None:
    """Raises ``InputError`` where mean or density at the truth fail, are no number or have another shape."""
    name = type(model).__name__
    params = {k: jnp.asarray(v) for k, v in truth.items()}
    key = jax.random.key(0)
    with blamed(name), redirect_stdout(sys.stderr):
        if isinstance(model, Regression):
            x = jnp.asarray(law.nodes()[0][:_NODES])
            shape = jax.eval_shape(model.mean, params, x[0]).shape
            if shape != (model.outputs,):
                raise InputError(f"{name}.mean gives shape {shape} at one x: return shape ({model.outputs},)")
            values, what = jax.jit(jax.vmap(model.mean, (None, 0)))(params, x), "mean"
        else:
            assert isinstance(model, Density)
            x, y = jax.jit(lambda p: model.draw_rows(p, law, key, jnp.arange(_POINTS), _POINTS))(params)
            shape = jax.eval_shape(model.log_density, params, x[0], y[0]).shape
            if shape != ():
                raise InputError(f"{name}.log_density gives shape {shape} at one x and y: return one number")
            values, what = jax.jit(jax.vmap(model.log_density, (None, 0, 0)))(params, x, y), "log_density"
        jax.effects_barrier()  # of what it prints
    bad = np.argwhere(~np.isfinite(np.asarray(values)))
    if len(bad):
        where = int(bad[0][0])
        raise InputError(
            f"{name}.{what} is {np.asarray(values)[tuple(bad[0])]} at the truth and x = "
            f"{np.asarray(x[where]).round(4).tolist()}: mend the model, or move the truth"
        )
