"""The streamed passes over weighted data that solvers ask for.

All of them return sums over the whole sample in units of the log-likelihood, so that "1" is one unit
of log-likelihood whatever n is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_sim.likelihood import gaussian_mixture
from moe_sim.models.form import Form


class Passes(NamedTuple):
    """What a solver may ask of the data, at a flat parameter vector theta of shape (P,).

    value(theta, sample): the objective, minus the log-likelihood up to a constant.
    first(theta, sample): objective, gradient (P,), Gauss-Newton or scoring matrix (P, P).
    curvature(theta, sample): what to add to that matrix to make it the exact Hessian (P, P).
    complete(theta, sample): objective, gradient, complete-data information (P, P); mixtures only.
    """

    value: Callable
    first: Callable
    curvature: Callable
    complete: Callable | None = None


def likelihood(form: Form, coefficients: Callable) -> Passes:
    """Passes of minus the log-likelihood of a mixture (2 pi included).

    coefficients(theta): smooth, the ``form.Coefficients`` of flat parameters. The scoring matrix of ``first``
    is the Gram matrix of the per-sample scores. Samples have weights 1, or 0 for padding.
    """

    def flat(theta):
        return form.ravel(coefficients(theta))

    def value(theta, sample):
        c = coefficients(theta)
        return -_sum_chunks(lambda x, y, weight: gaussian_mixture.value(form, c, x, y, weight), sample)

    def with_matrix(one_chunk, curved=False):
        """curved: whether the matrix takes in how the coefficients curve in theta."""

        def found(theta, sample):
            c, jacobian = coefficients(theta), jax.jacfwd(flat)(theta)
            loglik, score, matrix = _sum_chunks(lambda x, y, weight: one_chunk(form, c, x, y, weight), sample)
            matrix = jacobian.T @ matrix @ jacobian
            if curved:
                matrix = matrix - jax.hessian(lambda t: score @ flat(t))(theta)
            return -loglik, -(score @ jacobian), matrix

        return found

    def curvature(theta, sample):
        return with_matrix(gaussian_mixture.curvature, curved=True)(theta, sample)[2]

    # Q is linear in the coefficients of joint gates: all of its curvature there is that of the coefficients.
    complete = with_matrix(gaussian_mixture.complete, curved=form.joint)
    return Passes(value, with_matrix(gaussian_mixture.first), curvature, complete)


def least_squares(mean: Callable, noise: float) -> Passes:
    """Passes of  sum_i w_i ||y_i - mean(theta, x_i)||^2 / (2 noise^2)  by automatic differentiation.

    mean(theta, x): shape (outputs,) for one x. The matrix of ``first`` is sum w J'J / noise^2 and that of
    ``curvature`` sum w (f - y) . d2f / noise^2, so that both add up to the exact Hessian.
    """
    scale = 1.0 / noise**2

    def value(theta, sample):
        def one_chunk(x, y, weight):
            residual = jax.vmap(mean, (None, 0))(theta, x) - y
            return 0.5 * scale * jnp.sum(weight[:, None] * residual**2)

        return _sum_chunks(one_chunk, sample)

    def first(theta, sample):
        def one_chunk(x, y, weight):
            residual = jax.vmap(mean, (None, 0))(theta, x) - y
            # Reverse mode: few outputs, many parameters (half the cost of forward mode when measured).
            jacobian = jax.vmap(jax.jacrev(mean), (None, 0))(theta, x)
            root = jnp.sqrt(scale * weight)
            rows = (root[:, None, None] * jacobian).reshape(-1, theta.size)
            weighted = (root[:, None] * residual).reshape(-1)
            return 0.5 * jnp.sum(weighted**2), weighted @ rows, rows.T @ rows

        return _sum_chunks(one_chunk, sample)

    def curvature(theta, sample):
        def one_chunk(x, y, weight):
            pull = scale * weight[:, None] * (jax.vmap(mean, (None, 0))(theta, x) - y)
            along = jax.grad(lambda t: jnp.sum(pull * jax.vmap(mean, (None, 0))(t, x)))
            return jax.jacfwd(along)(theta)

        return _sum_chunks(one_chunk, sample)

    return Passes(value, first, curvature)


def _sum_chunks(one_chunk: Callable, sample):
    """Sum of ``one_chunk(x, y, weight)``, a pytree, over the chunks of the sample."""
    if isinstance(sample.chunks, int) and sample.chunks == 1:
        return one_chunk(*sample.chunk(0))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: one_chunk(*sample.chunk(0))))
    add = lambda i, total: jax.tree.map(jnp.add, total, one_chunk(*sample.chunk(i)))  # noqa: E731
    return jax.lax.fori_loop(0, sample.chunks, add, zero)
