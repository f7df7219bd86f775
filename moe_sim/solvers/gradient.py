"""First-order estimators (optax) behind the same ``Solution``: what practitioners run, certified the same way."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moe_sim.likelihood.objective import Passes
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.solution import TOLERANCE, Solution, Status
from moe_sim.solvers.trust_region import RUNNING

_RATE = {"adam": 1e-2, "sgd": 1e-2, "lbfgs": None}
_CHECK = 50  # iterations between looks at the stopping rule


def gradient_descent(
    passes: Passes, sample, start, lower, upper, max_iterations=5000, tolerance=TOLERANCE,
    optimizer="adam", learning_rate=None,
) -> Solution:  # fmt: skip
    """Minimise the objective a unit of weight by ``optimizer``, projected on the box after each step.

    adam, sgd (momentum 0.9) and lbfgs (memory 10, zoom line search). learning_rate: None for the default of
    each (1e-2; line search). It stops like ``trust_region``: when an exact Newton step, at most ten standard
    errors long, promises less than ``tolerance`` log-likelihood units.
    """
    import optax  # which other solvers need not wait for

    rate = _RATE[optimizer] if learning_rate is None else learning_rate
    method = {
        "adam": lambda: optax.adam(rate),
        "sgd": lambda: optax.sgd(rate, momentum=0.9),
        "lbfgs": lambda: optax.lbfgs(rate, memory_size=10),
    }[optimizer]()
    total = _total_weight(sample)

    # The pass has its own derivative; reverse mode through its loop over chunks is neither needed nor possible.
    @jax.custom_vjp
    def objective(theta):
        return passes.value(theta, sample) / total

    def forward(theta):
        value, gradient, _ = passes.first(theta, sample)
        return value / total, gradient / total

    objective.defvjp(forward, lambda gradient, cotangent: (gradient * cotangent,))

    def one(carry):
        theta, state, _, k, _ = carry
        value, gradient = jax.value_and_grad(objective)(theta)
        update, state = method.update(gradient, state, theta, value=value, grad=gradient, value_fn=objective)
        theta = jnp.clip(optax.apply_updates(theta, update), lower, upper)
        k = k + 1
        status = jax.lax.cond(k % _CHECK == 0, stop, lambda _: jnp.array(RUNNING), theta)
        status = jnp.where(jnp.all(jnp.isfinite(theta)), status, Status.NOT_FINITE)
        status = jnp.where((status == RUNNING) & (k >= max_iterations), Status.MAX_ITERATIONS, status)
        return theta, state, value, k, status

    def stop(theta):
        _, promised, least = still_promised(passes, sample, theta, lower, upper)
        return jnp.where((promised <= tolerance) & (least > -1e-4), Status.CONVERGED, RUNNING)

    begin = jnp.clip(start, lower, upper)
    first = passes.value(begin, sample)
    status = jnp.where(jnp.isfinite(first), RUNNING, Status.NOT_FINITE)
    carry = (begin, method.init(begin), first, jnp.array(0), status)
    theta, _, _, k, status = jax.lax.while_loop(lambda c: c[-1] == RUNNING, one, carry)
    return Solution(theta, passes.value(theta, sample), status, k, k + 1 + 2 * (k // _CHECK))


def _total_weight(sample):
    add = lambda i, total: total + jnp.sum(sample.chunk(i)[2])  # noqa: E731
    return jax.lax.fori_loop(0, sample.chunks, add, 0.0)
