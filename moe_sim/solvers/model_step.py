"""The trust-region subproblem, without and with a box."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_EPS = 1e-15


def scaling(gram):
    """Length of one unit of each parameter, in roots of log-likelihood units; a dead parameter gets a floor."""
    scale = jnp.sqrt(jnp.diag(gram))
    return jnp.maximum(scale, 1e-6 * jnp.max(scale) + 1e-300)


def ball_step(gradient, matrix, scale, free, radius, noise):
    """Minimiser of g's + s'Bs/2 over ||scale s|| <= radius with s zero off ``free``.

    By eigendecomposition, so that a singular or indefinite B is no special case (More and Sorensen 1983).
    ``noise`` is the rounding error of the scaled gradient. Returns the step (P,), whether it is the free
    minimum of a convex model, and the least eigenvalue of the scaled matrix on the free variables.
    """
    inverse = jnp.where(free, 1.0 / scale, 0.0)
    scaled = matrix * inverse[:, None] * inverse[None, :]
    # Fixed coordinates get the eigenvalue 1 and no gradient: they do not move.
    eigenvalue, basis = jnp.linalg.eigh(scaled + jnp.diag(jnp.where(free, 0.0, 1.0)))
    pull = basis.T @ (gradient * inverse)
    floor = jnp.max(jnp.abs(eigenvalue)) * len(scale) * _EPS
    # An eigenvalue below its rounding error says nothing, nor does a pull along it below its own: this is
    # where the gauge of a model without frozen experts is left alone.
    flat = jnp.abs(eigenvalue) <= floor
    pull = jnp.where(flat & (jnp.abs(pull) <= noise), 0.0, pull)
    convex = eigenvalue[0] >= -floor
    low = jnp.where(eigenvalue[0] > floor, 0.0, floor - jnp.minimum(eigenvalue[0], 0.0)) + 1e-300

    def length_at(mu):
        return jnp.linalg.norm(pull / (eigenvalue + mu))

    def newton(carry):
        mu, length, k = carry
        slope = jnp.sum(pull**2 / (eigenvalue + mu) ** 3)
        mu = mu + (length / radius - 1.0) * length**2 / slope
        return mu, length_at(mu), k + 1

    # Newton's method on 1/radius - 1/||s(mu)||, from the left, where it is monotone.
    start = length_at(low)
    mu, _, _ = jax.lax.while_loop(lambda c: (c[1] > 1.01 * radius) & (c[2] < 60), newton, (low, start, 0))
    along = -pull / (eigenvalue + mu)
    # Hard case: the matrix curves downwards without a pull that way; go to the boundary along it.
    extra = jnp.where(convex | (start > radius), 0.0, jnp.sqrt(jnp.maximum(radius**2 - start**2, 0.0)))
    along = along.at[0].add(jnp.where(pull[0] > 0, -extra, extra))
    return (basis @ along) * inverse, convex & (start <= radius), eigenvalue[0]


def box_step(theta, size, gradient, matrix, scale, radius, lower, upper):
    """``ball_step`` that stays in [lower, upper]: returns the step, ``interior`` and the least eigenvalue.

    An active-set path: variables on a bound that the gradient pushes outwards are fixed; then, as often as
    needed, walk towards the ball step of the free variables up to the first bound met and fix that variable.
    Where the model curves downwards such a path may be poor, so the best point of the projected-gradient path
    stands by: the step never promises less than half of that (sufficient decrease).
    size: of the objective, see ``objective.magnitude``.
    """
    near = 1e-13 * (1.0 + jnp.abs(theta))
    blocked = ((theta - lower <= near) & (gradient > 0)) | ((upper - theta <= near) & (gradient < 0))
    blocked = blocked | (upper - lower <= near)
    noise = 10 * _EPS * jnp.sqrt(2 * size)
    low, high = jnp.minimum(lower - theta, 0.0), jnp.maximum(upper - theta, 0.0)

    def model(step):
        return gradient @ step + 0.5 * step @ matrix @ step

    def walk(carry):
        fixed, step, _, least, _, k = carry
        pinned = jnp.where(fixed, step, 0.0)
        left = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum((scale * pinned) ** 2), 0.0)) + 1e-300
        found, interior, lowest = ball_step(gradient + matrix @ pinned, matrix, scale, ~fixed, left, noise)
        target = jnp.where(fixed, step, found)
        move = target - step
        room = jnp.where(move > 0, high - step, low - step) / jnp.where(move == 0.0, 1.0, move)
        room = jnp.where(fixed | (move == 0.0), jnp.inf, room)
        share = jnp.minimum(1.0, jnp.min(room))
        met = (room <= share) & (share < 1.0)
        # A variable that meets its bound is put on it exactly.
        there = jnp.where(met, jnp.where(move > 0, high, low), step + share * move)
        least = jnp.where(k == 0, lowest, least)
        return fixed | met, jnp.clip(there, low, high), interior, least, share < 1.0, k + 1

    begin = (blocked, jnp.zeros_like(theta), jnp.array(False), jnp.zeros(()), jnp.array(True), 0)
    _, step, interior, least, _, _ = jax.lax.while_loop(lambda c: c[4] & (c[5] <= len(theta)), walk, begin)

    slope = jnp.where(blocked, 0.0, gradient) / scale
    reach = radius / (jnp.linalg.norm(slope) + 1e-300) * 2.0 ** jnp.arange(4, -20, -1)
    path = jnp.clip(-reach[:, None] * (slope / scale), low, high)
    inside = jnp.linalg.norm(scale * path, axis=1) <= radius
    value = jnp.where(inside, jax.vmap(model)(path), jnp.inf)
    cauchy = jnp.argmin(value)
    poor = model(step) > 0.5 * jnp.minimum(value[cauchy], 0.0)
    return jnp.where(poor, path[cauchy], step), interior & ~poor, least
