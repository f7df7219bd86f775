"""Expectation-maximisation with SQUAREM acceleration, behind the same ``Solution`` as the other solvers.

One pass gives the log-likelihood, the score and the complete-data information, and with them both steps:
- E: the responsibilities are in these sums (Fisher's identity: the score is the gradient of Q).
- M: a Newton step on Q. For linear experts it is the exact weighted least-squares solution, for softmax gates one
  step of iteratively reweighted least squares; variances then take their closed form. Gates are coupled through
  the normaliser and tied keys and values are not linear, so the step on Q is held in a trust region: a
  generalised EM (Dempster, Laird and Rubin 1977), whose every step must not lower the log-likelihood.
- SQUAREM (Varadhan and Roland 2008, scheme S3) extrapolates two EM steps, and is taken only if it does no harm.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.likelihood.objective import GRAIN, Passes, magnitude
from moe_sim.models.form import Form
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.model_step import box_step
from moe_sim.solvers.solution import TOLERANCE, Solution, Status
from moe_sim.solvers.trust_region import RUNNING

_CHECK = 16  # EM steps between looks at the stopping rule
_TRIES = 25  # halvings of the trust region before a step is given up


class Point(NamedTuple):
    """One pass at theta: objective, gradient and complete-data information there."""

    theta: jax.Array
    objective: jax.Array
    gradient: jax.Array
    information: jax.Array


class _State(NamedTuple):
    at: Point
    radius: jax.Array
    mark: jax.Array  # objective at the last look
    status: jax.Array
    iterations: jax.Array
    passes: jax.Array


def expectation_maximization(
    passes: Passes, sample, start, lower, upper, max_iterations=5000, tolerance=TOLERANCE, groups=None
) -> Solution:
    """Minimise minus the log-likelihood over the box from ``start`` (all of shape (P,)); pure JAX.

    groups: see ``variance_groups``; None where no variance is fitted. CONVERGED as in ``trust_region``: an exact
    Newton step promises less than ``tolerance`` units. FLAT: 16 EM steps gained less than 1e-3 units, and no
    more than 1e-4 is promised. STALLED: no step on Q, however short, kept the log-likelihood from falling.
    """

    assert passes.complete is not None, "EM fits mixtures only"
    complete, size = passes.complete, partial(magnitude, sample)

    def look(theta) -> Point:
        return Point(theta, *complete(theta, sample))

    def cycle(s: _State) -> _State:
        """Two EM steps and an extrapolation."""

        def step(carry, _):
            at, radius = carry
            new, radius, tries, fine = em_step(look, at, radius, lower, upper, groups, size)
            return (new, radius), (new.theta, tries, fine)

        # A loop of two, so that there is one step to compile.
        (two, radius), (thetas, tries, fines) = jax.lax.scan(step, (s.at, s.radius), length=2)
        spent, fine = jnp.sum(tries), jnp.all(fines)
        scale = _length(s.at.information)
        r = thetas[0] - s.at.theta
        v = thetas[1] - thetas[0] - r
        long = jnp.linalg.norm(scale * r) / (jnp.linalg.norm(scale * v) + 1e-300)
        far = jnp.clip(s.at.theta + 2 * long * r + long**2 * v, lower, upper)
        jump = (long > 1.0) & jnp.all(jnp.isfinite(far))
        leap = jax.lax.cond(jump, lambda: look(far), lambda: two)
        better = leap.objective <= two.objective
        at = jax.tree.map(lambda new, old: jnp.where(better, new, old), leap, two)
        iterations = s.iterations + 2
        new = s._replace(at=at, radius=radius, iterations=iterations, passes=s.passes + spent + jump)
        small = s.at.objective - at.objective <= 1e-4
        due = (iterations % _CHECK == 0) | (small & (iterations % 4 == 0)) | ~fine
        new = jax.lax.cond(due, judge, lambda s: s, new)
        lost = ~fine & (new.status == RUNNING)
        status = jnp.where(lost, Status.STALLED, new.status)
        status = jnp.where((status == RUNNING) & (iterations >= max_iterations), Status.MAX_ITERATIONS, status)
        finite = jnp.isfinite(at.objective) & jnp.all(jnp.isfinite(at.gradient))
        return new._replace(status=jnp.where(finite, status, Status.NOT_FINITE))

    def judge(s: _State) -> _State:
        _, promised, least = still_promised(passes, sample, s.at.theta, lower, upper)
        settled = (promised <= tolerance + GRAIN * size(s.at.objective)) & (least > -1e-4)
        full = s.iterations % _CHECK == 0
        flat = (
            full & (s.mark - s.at.objective <= 1e-3) & (promised <= 1e-4) & (least > -1e-4) & (tolerance >= TOLERANCE)
        )
        status = jnp.where(settled, Status.CONVERGED, jnp.where(flat, Status.FLAT, RUNNING))
        return s._replace(status=status, mark=jnp.where(full, s.at.objective, s.mark), passes=s.passes + 2)

    begin = look(jnp.clip(start, lower, upper))
    status = jnp.where(jnp.isfinite(begin.objective), RUNNING, Status.NOT_FINITE)
    state = _State(begin, jnp.array(jnp.inf), jnp.array(jnp.inf), status, jnp.array(0), jnp.array(1))
    end = jax.lax.while_loop(lambda s: s.status == RUNNING, cycle, state)
    return Solution(end.at.theta, end.at.objective, end.status, end.iterations, end.passes)


def em_step(look, at: Point, radius, lower, upper, groups=None, size=jnp.abs):
    """One generalised EM step: the new ``Point``, the radius, passes spent, and whether a step was found.

    look: theta to ``Point``. size: of an objective, see ``objective.magnitude``.
    The trust region shrinks until the log-likelihood does not fall; where no step does that the point stays.
    """
    scale = _length(at.information)
    whole = 1e3 * (1.0 + jnp.linalg.norm(scale * at.theta))
    grain = GRAIN * (1.0 + size(at.objective))

    def attempt(carry):
        _, radius, k = carry
        point = look(_maximise(at, size(at.objective), scale, radius, lower, upper, groups))
        fell = ~(point.objective <= at.objective + grain)
        return point, jnp.where(fell, 0.25 * jnp.minimum(radius, whole), radius), k + 1

    def again(carry):
        point, _, k = carry
        return (k == 0) | (~(point.objective <= at.objective + grain) & (k < _TRIES))

    point, reached, k = jax.lax.while_loop(again, attempt, (at, jnp.minimum(radius, whole), 0))
    fine = point.objective <= at.objective + grain
    kept = jax.tree.map(lambda new, old: jnp.where(fine, new, old), point, at)
    return kept, jnp.where(k == 1, 2.0 * reached, reached), k, fine


def _length(information):
    """Length of a unit of each coordinate; Q may curve the other way where gates are densities."""
    scale = jnp.sqrt(jnp.abs(jnp.diag(information)))
    return jnp.maximum(scale, 1e-6 * jnp.max(scale) + 1e-300)


def _maximise(at: Point, size, scale, radius, lower, upper, groups):
    """The maximiser of Q, or of its quadratic model within the trust region and the box."""
    if groups is None:
        step, _, _ = box_step(at.theta, size, at.gradient, at.information, scale, radius, lower, upper)
        return jnp.clip(at.theta + step, lower, upper)
    members = jnp.asarray(groups)
    is_variance = jnp.any(members, axis=1)
    held_low, held_high = (jnp.where(is_variance, at.theta, bound) for bound in (lower, upper))
    step, _, _ = box_step(at.theta, size, at.gradient, at.information, scale, radius, held_low, held_high)
    # Sum of tau r^2 after the means have moved, over that of tau times the old variance: the closed form.
    count = 2.0 * jnp.diag(at.information)
    moved = members @ (2.0 * at.gradient * step + step * (at.information @ step))
    ratio = 1.0 + (moved - 2.0 * at.gradient) / jnp.maximum(count, 1e-300)
    closed = at.theta + jnp.log(jnp.maximum(ratio, 1e-12))
    return jnp.clip(jnp.where(is_variance & (count > 1e-9), closed, at.theta + step), lower, upper)


def variance_groups(form: Form, jacobian: np.ndarray) -> np.ndarray | None:
    """(P, P): row of a log-variance, ones where the coefficients of its mean are; all other rows 0.

    jacobian: that of the coefficients (C, P), in which means and log-variances are coordinates of their own.
    """
    if form.variance is not None:
        return None
    place = np.argmax(np.abs(jacobian), axis=1)
    groups = np.zeros((jacobian.shape[1],) * 2)
    for c, (kind, k, j, _) in enumerate(form.layout):
        for d, (other, m, i, _) in enumerate(form.layout):
            if kind == "log_variance" and other == "mean" and (k, j) == (m, i):
                groups[place[c], place[d]] = 1.0
    return groups
