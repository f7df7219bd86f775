"""A solver cut short: the start itself, one step, or a few. No estimator to trust, but a control to compare with."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from moe_sim.likelihood.objective import Passes, beyond_objective, magnitude
from moe_sim.solvers.em import Point, em_step
from moe_sim.solvers.solution import TOLERANCE, Solution, Status
from moe_sim.solvers.trust_region import RUNNING, trust_region


def steps(passes: Passes, sample, start, lower, upper, max_iterations=1, tolerance=0.0, groups=None) -> Solution:
    """At most ``max_iterations`` plain steps from ``start`` (all of shape (P,)); 0 returns the start.

    Mixtures: EM steps without acceleration (``em.em_step``), ended EARLY where one changes the log-likelihood by less
    than ``tolerance`` times its size, the rule of many programs. Regressions: trust-region steps, with their own rule.
    """
    begin = jnp.clip(start, lower, upper)
    complete = passes.complete
    if complete is None and max_iterations > 0:
        return trust_region(passes, sample, begin, lower, upper, max_iterations, TOLERANCE)
    if complete is None:
        value = passes.value(begin, sample)
        status = jnp.where(jnp.isfinite(value), Status.MAX_ITERATIONS, Status.NOT_FINITE)
        return Solution(begin, value, status, jnp.array(0), jnp.array(1))

    def look(theta) -> Point:
        return Point(theta, *complete(theta, sample))

    def one(carry):
        at, radius, status, k, spent = carry
        new, radius, tries, fine = em_step(look, at, radius, lower, upper, groups, partial(magnitude, sample))
        early = at.objective - new.objective <= tolerance * jnp.abs(at.objective + beyond)
        status = jnp.where(fine, jnp.where(early, Status.EARLY, status), Status.STALLED)
        status = jnp.where((status == RUNNING) & (k + 1 >= max_iterations), Status.MAX_ITERATIONS, status)
        return new, radius, status, k + 1, spent + tries

    at, beyond = look(begin), beyond_objective(sample)
    status = jnp.where(max_iterations > 0, RUNNING, Status.MAX_ITERATIONS)
    status = jnp.where(jnp.isfinite(at.objective), status, Status.NOT_FINITE)
    carry = (at, jnp.array(jnp.inf), status, jnp.array(0), jnp.array(1))
    at, _, status, k, spent = jax.lax.while_loop(lambda c: c[2] == RUNNING, one, carry)
    return Solution(at.theta, at.objective, status, k, spent)
