"""Bounded trust-region solver: Gauss-Newton, a corrector for curved valleys, and the exact Hessian to end with.

Over-specified mixtures are why. Where two fitted atoms share one true atom, the function depends on their distance
through its square. The Gauss-Newton matrix then vanishes as fast as the squared gradient and its predicted decrease
never falls, so it cannot tell that it has arrived; the exact Hessian can. On the way there is a long, curved, nearly
flat valley (mass moving between the two atoms), along which straight steps leave the floor at once: a corrector step
brings them back, and steps that keep paying are stretched (theory_notes/solver.md has the measurements).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_sim.likelihood.objective import GRAIN, Passes, magnitude
from moe_sim.solvers.model_step import box_step, scaling
from moe_sim.solvers.solution import TOLERANCE, Solution, Status

RUNNING = -1
_POOR = 0.5  # a step that gains less than this part of its promise is corrected
_CORRECTOR = 0.1  # length of a corrector, relative to the step
_WINDOW = 8  # iterations over which a flat valley is judged
_FLAT_GAIN = 1e-3  # log-likelihood units a window must gain to go on


class _State(NamedTuple):
    theta: jax.Array
    objective: jax.Array
    gradient: jax.Array
    gram: jax.Array
    curvature: jax.Array  # zero while Gauss-Newton is in use
    exact: jax.Array  # whether the exact Hessian is
    scale: jax.Array
    radius: jax.Array
    stretch: jax.Array  # factor on free Newton steps, 1 unless they gain more than promised
    mark: jax.Array  # objective at the start of the window
    status: jax.Array
    iterations: jax.Array
    passes: jax.Array


def trust_region(
    passes: Passes, sample, start, lower, upper, max_iterations=200, tolerance=TOLERANCE, patience=None
) -> Solution:
    """Minimise ``passes`` over the box [lower, upper] from ``start`` (all of shape (P,)); pure JAX.

    CONVERGED: a full step under the exact Hessian promises less than ``tolerance`` log-likelihood units (or
    less than rounding), and the Hessian is positive semidefinite on the free variables. See ``Status``.
    patience: iterations after which the exact Hessian is used in any case; None to wait until Gauss-Newton has
    nothing more to gain, which pays where a Hessian costs much more than a Gauss-Newton matrix.
    """

    size = partial(magnitude, sample)

    def begin(theta):
        """What is to be known of the start is filled in by the first ``attempt``, which stays where it is.

        So the program holds the pass once: passes take most of the time that it takes to compile.
        """
        nothing = jnp.zeros((len(theta), len(theta)))
        return _State(
            theta, jnp.array(jnp.inf), jnp.zeros_like(theta), nothing, nothing, jnp.array(False), jnp.ones_like(theta),
            radius=jnp.array(1.0), stretch=jnp.array(1.0), mark=jnp.array(jnp.inf), status=jnp.array(RUNNING),
            iterations=jnp.array(-1), passes=jnp.array(0),
        )  # fmt: skip

    def sharpen(s: _State) -> _State:
        """Take the exact Hessian into use at this point."""
        return s._replace(curvature=passes.curvature(s.theta, sample), exact=jnp.array(True), passes=s.passes + 1)

    def advance(s: _State) -> _State:
        known = s.iterations >= 0
        matrix = s.gram + s.curvature
        step, interior, least = box_step(
            s.theta, size(s.objective), s.gradient, matrix, s.scale, s.radius, lower, upper
        )
        predicted = -(s.gradient @ step + 0.5 * step @ matrix @ step)
        settled = known & interior & (predicted <= tolerance + GRAIN * size(s.objective))
        # Gauss-Newton may not end the search: only the exact Hessian tells a minimum from a saddle.
        end = s._replace(status=jnp.where(s.exact, Status.CONVERGED, RUNNING))
        new, moved = jax.lax.cond(settled, lambda: (end, False), lambda: attempt(s, step, predicted, interior, least))
        stale = (settled | new.exact) & (moved | ~s.exact) & (new.status == RUNNING)
        return jax.lax.cond(stale, sharpen, lambda new: new, new)

    def look(s: _State, theta, predicted, again):
        """Passes at a trial point and, if it is doubtful, at a corrected one; the lower of the two.

        The corrector is one short Gauss-Newton step from the trial point, back to the floor of the valley.
        """

        def corrected(theta, objective, gradient, gram):
            reach = _CORRECTOR * jnp.linalg.norm((theta - s.theta) * s.scale)
            move, _, _ = box_step(theta, size(objective), gradient, gram, s.scale, reach, lower, upper)
            return jnp.clip(theta + move, lower, upper)

        def one(carry):
            trial, _, k = carry
            point = jax.lax.cond(k == 0, lambda: theta, lambda: corrected(*trial))
            found = (point, *passes.first(point, sample))
            kept = jax.tree.map(lambda new, old: jnp.where((k == 0) | (found[1] < trial[1]), new, old), found, trial)
            doubtful = ((s.objective - found[1] < _POOR * predicted) | again) & _finite(*found[1:3])
            doubtful = doubtful & (s.iterations >= 0)
            return kept, doubtful, k + 1

        first = (theta, s.objective, s.gradient, s.gram)
        trial, _, k = jax.lax.while_loop(lambda c: (c[2] == 0) | (c[1] & (c[2] < 2)), one, (first, jnp.array(True), 0))
        return *trial, k

    def attempt(s: _State, step, predicted, interior, least) -> tuple[_State, jax.Array]:
        """Try the step; returns the new state and whether it moved."""
        stretch = jnp.where(interior, s.stretch, 1.0)
        target = jnp.clip(s.theta + stretch * step, lower, upper)
        theta, objective, gradient, gram, spent = look(s, target, predicted, stretch > 1)
        scale = scaling(gram)
        length = jnp.linalg.norm((theta - s.theta) * s.scale)
        ratio = (s.objective - objective) / predicted
        good = _finite(objective, gradient) & (predicted > 0) & (ratio > 1e-4)

        grown = jnp.where(ratio > 0.75, jnp.maximum(s.radius, 2.0 * length), s.radius)
        radius = jnp.where(good & (ratio > 0.25), grown, 0.25 * jnp.minimum(length, s.radius))
        # A failed stretch says nothing about the model.
        radius = jnp.where(~good & (stretch > 1), s.radius, radius)
        paid = interior & (ratio > jnp.maximum(1.2, 0.75 * s.stretch))
        held = good & (ratio > 0.25 * s.stretch)
        stretch = jnp.where(paid, 2.0 * s.stretch, jnp.where(held, s.stretch, jnp.maximum(1.0, 0.25 * s.stretch)))

        iterations = s.iterations + 1
        due = iterations % _WINDOW == 0
        reached = jnp.where(good, objective, s.objective)
        slow = due & (s.mark - reached <= _FLAT_GAIN) & (predicted <= 0.1 * _FLAT_GAIN)
        tiny = radius <= GRAIN * jnp.linalg.norm(s.scale * s.theta)
        lost = ~good & (tiny | (predicted <= GRAIN * size(s.objective)))
        # Where Gauss-Newton gains no more the exact Hessian has a look, and only its word is final.
        exact = s.exact | slow | lost | (False if patience is None else iterations >= patience)
        radius = jnp.where(exact & ~s.exact, s.radius, radius)
        flat = slow & s.exact & good & (least > -1e-4) & (tolerance > 0)
        status = jnp.where(iterations >= max_iterations, Status.MAX_ITERATIONS, RUNNING)
        status = jnp.where(lost & s.exact, Status.STALLED, jnp.where(flat, Status.FLAT, status))

        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        new = _State(
            keep(theta, s.theta), reached, keep(gradient, s.gradient), keep(gram, s.gram), s.curvature, exact,
            jnp.maximum(s.scale, keep(scale, s.scale)), radius, stretch, jnp.where(due, reached, s.mark),
            status, iterations, s.passes + spent,
        )  # fmt: skip
        begun = s._replace(
            objective=objective, gradient=gradient, gram=gram, scale=scale,
            radius=jnp.maximum(jnp.linalg.norm(scale * theta), 1.0),
            status=jnp.where(_finite(objective, gradient), RUNNING, Status.NOT_FINITE),
            iterations=jnp.zeros_like(iterations), passes=spent,
        )  # fmt: skip
        known = s.iterations >= 0
        return jax.tree.map(partial(jnp.where, known), new, begun), known & good

    end = jax.lax.while_loop(lambda s: s.status == RUNNING, advance, begin(jnp.clip(start, lower, upper)))
    return Solution(end.theta, end.objective, end.status, end.iterations, end.passes)


def _finite(objective, gradient):
    return jnp.isfinite(objective) & jnp.all(jnp.isfinite(gradient))
