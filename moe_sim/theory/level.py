"""Least residual on a level set of a loss: minimise ||r(theta)|| subject to L(theta) = eps, theta in a box.

The residual vector is factored, never its Gram matrix: where fitted atoms share a true one the residual falls like
eps^4 or eps^6, and squares of that are below rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NOTHING = 1e-13  # residual that is zero to rounding
LEVEL_TOLERANCE = 1e-9  # relative error of the loss on a level set
ROUNDING = 4e-15  # absolute error of a loss: masses of order 1 are subtracted in it
_WINDOW = 8  # iterations over which progress is judged
GAIN = 1e-2  # part of the residual that a window must gain to go on
_SMALLEST, _LARGEST = -25.0, 8.0  # log s
_NEAR = 1e-2  # log(L / eps) from where Newton's steps lead back to the level set
_LANDINGS = 8  # trials a step has to end on the level set


class Point(NamedTuple):
    """theta (P,), the loss there, omega = ||r|| there (infinite where the level was not reached), iterations."""

    theta: jax.Array
    loss: jax.Array
    omega: jax.Array
    iterations: jax.Array


class _State(NamedTuple):
    theta: jax.Array
    r: jax.Array
    jacobian: jax.Array
    c: jax.Array  # log(L / eps)
    g: jax.Array  # its gradient
    damping: jax.Array
    mark: jax.Array  # residual at the start of the window
    iterations: jax.Array
    done: jax.Array


class _Linear(NamedTuple):
    """The problem at a point, columns of the Jacobian scaled to length 1: Q'r, R, Q, gradient, scale, free ones."""

    rest: jax.Array
    factor: jax.Array
    q: jax.Array
    h: jax.Array
    scale: jax.Array
    free: jax.Array

    def step(self, rest, c, h, damping):
        """The d that makes ||rest + R d||^2 + damping ||d||^2 least with h . d = -c."""
        h = jnp.where(self.free, h, 0.0)
        along = h / (h @ h)
        u, s, vt = jnp.linalg.svd(self.factor - jnp.outer(self.factor @ along, h))
        inverse = jnp.where(s > 1e-14 * s[0], s / (s**2 + damping * s[0] ** 2 + 1e-300), 0.0)
        first = -c * along
        return first - vt.T @ (inverse * (u.T @ (rest + self.factor @ first)))


@dataclass(frozen=True)
class _Problem:
    """Residuals (M,), their Jacobian (M, P) and the loss, functions of theta (P,); eps and the box."""

    residuals: Callable
    jacobian: Callable
    loss: Callable
    eps: Any
    lower: Any
    upper: Any

    @property
    def close(self):
        """|log(L / eps)| that counts as on the level set."""
        return LEVEL_TOLERANCE + ROUNDING / self.eps

    def level(self, theta):
        """log(L / eps) and its gradient."""
        value = lambda t: (jnp.log(self.loss(t) / self.eps),) * 2  # noqa: E731
        return jax.jacfwd(value, has_aux=True)(theta)[::-1]

    def linear(self, s: _State) -> _Linear:
        scale = jnp.linalg.norm(s.jacobian, axis=0)
        scale = jnp.maximum(scale, 1e-8 * jnp.max(scale))
        pull, h = (s.r @ s.jacobian) / scale, s.g / scale
        slope = pull - (pull @ h / (h @ h)) * h
        held = ((s.theta <= self.lower) & (slope > 0)) | ((s.theta >= self.upper) & (slope < 0))
        q, factor = jnp.linalg.qr(jnp.where(held, 0.0, s.jacobian / scale))
        return _Linear(q.T @ s.r, factor, q, h, scale, ~held)

    def bend(self, s: _State, at: _Linear, d):
        """The second order correction of the step d; zero where it is too long to be one."""
        along = lambda t: jax.jvp(self.residuals, (t,), (d / at.scale,))[1]  # noqa: E731
        curve = 0.5 * jax.jvp(along, (s.theta,), (d / at.scale,))[1]
        bend = at.step(at.q.T @ curve, 0.0, at.h, s.damping)
        return jnp.where(jnp.linalg.norm(bend) <= 0.75 * jnp.linalg.norm(d), bend, 0.0)

    def land(self, s: _State, at: _Linear, d, bend, trials):
        """theta, c and its gradient after the step d + bend, made anew for the level set where it ends.

        Losses have edges (a mass or an offset that changes sign), beyond which the level set goes another way. No least
        residual lies on an edge, since the loss grows on both sides of it.
        """

        def first(theta, c, g):
            return s.theta + (d + bend) / at.scale

        def again(theta, c, g):
            ahead = c - g @ (theta - s.theta - bend / at.scale)
            return s.theta + (at.step(at.rest, ahead, g / at.scale, s.damping) + bend) / at.scale

        def nearby(theta, c, g):
            """Newton's step back to the level set, at least cost."""
            return theta + at.step(jnp.zeros_like(at.rest), c, g / at.scale, s.damping) / at.scale

        def closer(carry):
            (theta, c, g), k = carry
            way = jnp.where(k == 0, 0, jnp.where(jnp.abs(c) < _NEAR, 2, 1))
            theta = jnp.clip(jax.lax.switch(way, (first, again, nearby), theta, c, g), self.lower, self.upper)
            return (theta, *self.level(theta)), k + 1

        off = lambda v: (jnp.abs(v[0][1]) > self.close) & (jnp.abs(v[0][1]) < 2.0) & (v[1] <= trials)  # noqa: E731
        return jax.lax.while_loop(lambda v: (v[1] == 0) | off(v), closer, ((s.theta, s.c, s.g), 0))[0]

    def start(self, theta) -> _State:
        """What is to be known of the start is filled in by the first ``advance``."""
        r = jnp.zeros(jax.eval_shape(self.residuals, theta).shape)
        return _State(
            theta, r, jnp.ones((len(r), len(theta))), c=jnp.array(0.0), g=jnp.ones(len(theta)),
            damping=jnp.array(1e-3), mark=jnp.array(jnp.inf), iterations=jnp.array(-1), done=jnp.array(False),
        )  # fmt: skip

    def advance(self, s: _State, hopeless, gain) -> _State:
        """One step: taken where it lowers the residual, or else shortened. The first stays where it is.

        So the program holds each function once: they take most of the time that it takes to compile.
        """
        first = s.iterations < 0
        at = self.linear(s)
        d = jnp.where(first, 0.0, at.step(at.rest, s.c, at.h, s.damping))
        theta, c, g = self.land(s, at, d, self.bend(s, at, d), jnp.where(first, 0, _LANDINGS))
        r = self.residuals(theta)
        good = first | ((jnp.abs(c) <= self.close) & (r @ r < s.r @ s.r))
        damping = jnp.where(first, s.damping, jnp.maximum(s.damping / 5, 1e-30))
        new = s._replace(theta=theta, r=r, c=c, g=g, damping=damping)
        new = jax.lax.cond(
            good, lambda: new._replace(jacobian=self.jacobian(theta)), lambda: s._replace(damping=4 * s.damping)
        )
        size = jnp.linalg.norm(new.r)
        count = s.iterations + 1
        due = (count % _WINDOW == 0) & ~first
        slow = due & ((size > (1 - gain) * s.mark) | (size > hopeless))
        done = jnp.where(first, ~jnp.isfinite(c), slow | (size < NOTHING) | (new.damping > 1e8))
        return new._replace(iterations=count, done=done, mark=jnp.where(due, size, s.mark))


def least_on_level(
    residuals: Callable, jacobian: Callable, loss: Callable, centre, offset, eps, lower, upper, hopeless=jnp.inf,
    gain=GAIN, iterations=300,
) -> Point:  # fmt: skip
    """The ``Point`` found from centre + s offset, s such that it lies on the level set. Pure JAX.

    residuals(theta) (M,), jacobian(theta) (M, P), loss(theta) a positive scalar; centre, offset, lower, upper (P,).
    hopeless: a residual so large after a window of iterations is given up, and so is one that gains less than the part
    ``gain`` in a window.
    Levenberg-Marquardt steps on the linearised level set (Nocedal and Wright 2006, chapter 18), with the second order
    correction of Transtrum and Sethna (2012, arXiv 1201.5885), since the valleys of mixtures are narrow and curved.
    """
    problem = _Problem(residuals, jacobian, loss, eps, lower, upper)
    state = problem.start(on_level(loss, centre, offset, eps, lower, upper))
    going = lambda s: ~s.done & (s.iterations < iterations)  # noqa: E731
    s = jax.lax.while_loop(going, lambda s: problem.advance(s, hopeless, gain), state)
    omega = jnp.where(jnp.abs(s.c) <= 1e3 * problem.close, jnp.linalg.norm(s.r), jnp.inf)
    return Point(s.theta, eps * jnp.exp(s.c), omega, s.iterations)


def on_level(loss: Callable, centre, offset, eps, lower, upper):
    """The point centre + s offset of the box where the loss first comes to eps as s grows, or the last where none does.

    A search upwards, then bisection: beyond the edge of a cell, or of the box, the loss may fall again.
    """

    def at(log_s):
        return jnp.clip(centre + jnp.exp(log_s) * offset, lower, upper)

    def look(state):
        """Go on by ``step`` where the loss stays below eps; from where it does not, halve the step each time."""
        log_s, step, halving = state
        ahead = log_s + step
        below = (loss(at(ahead)) < eps) & (halving | (ahead < _LARGEST))
        halving = halving | ~below
        return jnp.where(below, ahead, log_s), jnp.where(halving, step / 2, step), halving

    begin = jnp.array(_SMALLEST - 1.0), jnp.array(1.0), jnp.array(False)
    log_s, step, _ = jax.lax.while_loop(lambda state: state[1] > 2.0**-31, look, begin)
    return at(log_s + step)
