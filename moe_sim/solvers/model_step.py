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


def box_step(theta, objective, gradient, matrix, scale, radius, lower, upper):
    """``ball_step`` that stays in [lower, upper]: returns the step, ``interior`` and the least eigenvalue.

    Variables on a bound that the gradient pushes outwards are fixed; those that the step would take across
    one are put on it and the rest is solved again.
    """
    blocked = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    noise = 10 * _EPS * jnp.sqrt(2 * jnp.abs(objective))

    def over(step):
        return (theta + step < lower) | (theta + step > upper)

    def solve(carry):
        fixed, step, _, least, k = carry
        fixed = fixed | over(step)
        pinned = jnp.where(fixed, jnp.clip(theta + step, lower, upper) - theta, 0.0)
        found, interior, lowest = ball_step(gradient + matrix @ pinned, matrix, scale, ~fixed, radius, noise)
        # The least eigenvalue is that of the first model, before the step's own bounds took variables out.
        return fixed, jnp.where(fixed, pinned, found), interior, jnp.where(k == 0, lowest, least), k + 1

    def crossing(carry):
        fixed, step, _, _, k = carry
        return (k == 0) | (jnp.any(over(step) & ~fixed) & (k < 5))

    begin = (blocked, jnp.zeros_like(theta), jnp.array(False), jnp.zeros(()), 0)
    _, step, interior, least, _ = jax.lax.while_loop(crossing, solve, begin)
    return jnp.clip(theta + step, lower, upper) - theta, interior, least
