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


class _Point(NamedTuple):
    theta: jax.Array
    objective: jax.Array
    gradient: jax.Array
    gram: jax.Array


class _Promise(NamedTuple):
    """What the quadratic model says of a step: its decrease, whether it is free, the least eigenvalue."""

    decrease: jax.Array
    interior: jax.Array
    least: jax.Array


class _State(NamedTuple):
    at: _Point
    trial: _Point  # of the step that is being corrected
    promise: _Promise  # of that step
    correcting: jax.Array
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

    One round of the loop is one pass: at the start, at the end of a step, or at that of its corrector. So the program
    holds subproblem and pass once, and they take nearly all of the time that it takes to compile.
    """

    size = partial(magnitude, sample)

    def begin(theta):
        """What is to be known of the start is filled in by the first round."""
        nothing = jnp.zeros((len(theta), len(theta)))
        at = _Point(theta, jnp.array(jnp.inf), jnp.zeros_like(theta), nothing)
        no = jnp.array(False)
        return _State(
            at, trial=at, promise=_Promise(jnp.array(0.0), no, jnp.array(0.0)), correcting=no, curvature=nothing,
            exact=no, scale=jnp.ones_like(theta), radius=jnp.array(1.0), stretch=jnp.array(1.0),
            mark=jnp.array(jnp.inf), status=jnp.array(RUNNING), iterations=jnp.array(-1), passes=jnp.array(0),
        )  # fmt: skip

    def sharpen(s: _State) -> _State:
        """Take the exact Hessian into use at this point."""
        return s._replace(curvature=passes.curvature(s.at.theta, sample), exact=jnp.array(True), passes=s.passes + 1)

    def advance(s: _State) -> _State:
        """A corrector is one short Gauss-Newton step from the trial point, back to the floor of the valley."""
        here = _either(s.correcting, s.trial, s.at)
        matrix = here.gram + jnp.where(s.correcting, 0.0, s.curvature)
        short = _CORRECTOR * jnp.linalg.norm((s.trial.theta - s.at.theta) * s.scale)
        radius = jnp.where(s.correcting, short, s.radius)
        step, interior, least = box_step(
            here.theta, size(here.objective), here.gradient, matrix, s.scale, radius, lower, upper
        )
        promised = _Promise(-(here.gradient @ step + 0.5 * step @ matrix @ step), interior, least)
        promise = _either(s.correcting, s.promise, promised)
        settled = ~s.correcting & interior & (promised.decrease <= tolerance + GRAIN * size(here.objective))
        settled = settled & (s.iterations >= 0)
        # Gauss-Newton may not end the search: only the exact Hessian tells a minimum from a saddle.
        end = s._replace(status=jnp.where(s.exact, Status.CONVERGED, RUNNING))
        stretch = jnp.where(~s.correcting & interior, s.stretch, 1.0)
        target = jnp.clip(here.theta + stretch * step, lower, upper)
        new, moved = jax.lax.cond(settled, lambda: (end, False), lambda: attempt(s._replace(promise=promise), target))
        stale = (settled | new.exact) & (moved | ~s.exact) & (new.status == RUNNING)
        return jax.lax.cond(stale, sharpen, lambda new: new, new)

    def attempt(s: _State, target) -> tuple[_State, jax.Array]:
        """A pass at the target; returns the new state and whether it moved. The lower of trial and corrected counts."""
        found = _Point(target, *passes.first(target, sample))
        trial = _either(s.correcting & ~(found.objective < s.trial.objective), s.trial, found)
        stretch = jnp.where(s.promise.interior, s.stretch, 1.0)
        poor = s.at.objective - found.objective < _POOR * s.promise.decrease
        doubtful = (poor | (stretch > 1)) & _finite(found) & ~s.correcting & (s.iterations >= 0)
        s = s._replace(passes=s.passes + 1)
        judged, moved = judge(s, trial, stretch)
        new = _either(s.iterations >= 0, judged, begun(s, trial))
        return _either(doubtful, s._replace(trial=trial, correcting=jnp.array(True)), new), moved & ~doubtful

    def begun(s: _State, start: _Point) -> _State:
        scale = scaling(start.gram)
        return s._replace(
            at=start, scale=scale, radius=jnp.maximum(jnp.linalg.norm(scale * start.theta), 1.0),
            status=jnp.where(_finite(start), RUNNING, Status.NOT_FINITE), iterations=jnp.zeros_like(s.iterations),
        )  # fmt: skip

    def judge(s: _State, trial: _Point, stretch) -> tuple[_State, jax.Array]:
        """Whether the trial point is taken, and what is learnt of the radius and of the time to end."""
        predicted, interior, least = s.promise
        length = jnp.linalg.norm((trial.theta - s.at.theta) * s.scale)
        ratio = (s.at.objective - trial.objective) / predicted
        good = _finite(trial) & (predicted > 0) & (ratio > 1e-4)

        grown = jnp.where(ratio > 0.75, jnp.maximum(s.radius, 2.0 * length), s.radius)
        radius = jnp.where(good & (ratio > 0.25), grown, 0.25 * jnp.minimum(length, s.radius))
        # A failed stretch says nothing about the model.
        radius = jnp.where(~good & (stretch > 1), s.radius, radius)
        paid = interior & (ratio > jnp.maximum(1.2, 0.75 * s.stretch))
        held = good & (ratio > 0.25 * s.stretch)
        stretch = jnp.where(paid, 2.0 * s.stretch, jnp.where(held, s.stretch, jnp.maximum(1.0, 0.25 * s.stretch)))

        iterations = s.iterations + 1
        due = iterations % _WINDOW == 0
        at = _either(good, trial, s.at)
        slow = due & (s.mark - at.objective <= _FLAT_GAIN) & (predicted <= 0.1 * _FLAT_GAIN)
        tiny = radius <= GRAIN * jnp.linalg.norm(s.scale * s.at.theta)
        lost = ~good & (tiny | (predicted <= GRAIN * size(s.at.objective)))
        # Where Gauss-Newton gains no more the exact Hessian has a look, and only its word is final.
        exact = s.exact | slow | lost | (False if patience is None else iterations >= patience)
        radius = jnp.where(exact & ~s.exact, s.radius, radius)
        flat = slow & s.exact & good & (least > -1e-4) & (tolerance > 0)
        status = jnp.where(iterations >= max_iterations, Status.MAX_ITERATIONS, RUNNING)
        status = jnp.where(lost & s.exact, Status.STALLED, jnp.where(flat, Status.FLAT, status))
        return s._replace(
            at=at, correcting=jnp.array(False), exact=exact, scale=jnp.maximum(s.scale, scaling(at.gram)),
            radius=radius, stretch=stretch, mark=jnp.where(due, at.objective, s.mark), status=status,
            iterations=iterations,
        ), good  # fmt: skip

    end = jax.lax.while_loop(lambda s: s.status == RUNNING, advance, begin(jnp.clip(start, lower, upper)))
    return Solution(end.at.theta, end.at.objective, end.status, end.iterations, end.passes)


def _finite(point: _Point):
    return jnp.isfinite(point.objective) & jnp.all(jnp.isfinite(point.gradient))


def _either(first, one, other):
    """Of two pytrees, the one or the other."""
    return jax.tree.map(partial(jnp.where, first), one, other)
