"""The streamed passes over weighted data that solvers ask for.

All of them return sums over the whole sample in units of the log-likelihood, so that "1" is one unit
of log-likelihood whatever n is. Of counts on cells the log-likelihood is that over the truth's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from moe_sim.data.samples import CountedSample, one_chunk_holds
from moe_sim.likelihood import gaussian_mixture
from moe_sim.models.base import Atoms, Density, Model, Regression
from moe_sim.models.form import Form
from moe_sim.models.mixture import MixtureModel

GRAIN = 1e-15  # relative rounding error of an objective
_GRAIN_OF_COUNTS = 0.1  # of one that is relative to the truth: terms are rounded by their share of n (lattices, tried)


def magnitude(sample, objective):
    """What ``GRAIN`` times is the rounding error of an objective, in its units."""
    return _GRAIN_OF_COUNTS * sample.size if isinstance(sample, CountedSample) else jnp.abs(objective)


def beyond_objective(sample):
    """What an objective leaves out of minus the log-likelihood: of counts, that at the truth; 0 of rows."""
    return -jnp.sum(sample.weight * sample.reference) if isinstance(sample, CountedSample) else 0.0


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
    is the Gram matrix of the per-sample scores. Samples have weights 1, or 0 for padding, or are counts.
    """

    def flat(theta):
        return form.ravel(coefficients(theta))

    def value(theta, sample):
        c = coefficients(theta)
        return -sum_chunks(lambda *rows: gaussian_mixture.value(form, c, *rows), sample)

    def with_matrix(one_chunk, curved=False):
        """curved: whether the matrix takes in how the coefficients curve in theta."""

        def found(theta, sample):
            c, jacobian = coefficients(theta), jax.jacfwd(flat)(theta)
            loglik, score, matrix = sum_chunks(lambda *rows: one_chunk(form, c, *rows), sample)
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

        return sum_chunks(one_chunk, sample)

    def first(theta, sample):
        def one_chunk(x, y, weight):
            residual = jax.vmap(mean, (None, 0))(theta, x) - y
            # Reverse mode for few outputs and many parameters (half the cost of forward mode when measured).
            derivative = jax.jacrev if y.shape[-1] <= theta.size else jax.jacfwd
            jacobian = jax.vmap(derivative(mean), (None, 0))(theta, x)
            root = jnp.sqrt(scale * weight)
            rows = (root[:, None, None] * jacobian).reshape(-1, theta.size)
            weighted = (root[:, None] * residual).reshape(-1)
            return 0.5 * jnp.sum(weighted**2), weighted @ rows, rows.T @ rows

        return sum_chunks(one_chunk, sample)

    def curvature(theta, sample):
        def one_chunk(x, y, weight):
            pull = scale * weight[:, None] * (jax.vmap(mean, (None, 0))(theta, x) - y)
            along = jax.grad(lambda t: jnp.sum(pull * jax.vmap(mean, (None, 0))(t, x)))
            return jax.jacfwd(along)(theta)

        return sum_chunks(one_chunk, sample)

    return Passes(value, first, curvature)


def density(model: Density, unflatten: Callable) -> Passes:
    """Passes of minus the log-likelihood of any density, by automatic differentiation.

    Scores are taken in the parameters, which costs less than in theta, and carried to theta outside the loop.
    """

    def flat(theta):
        return ravel_pytree(unflatten(theta))

    def log_densities(params, x, y):
        return jax.vmap(model.log_density, (None, 0, 0))(params, x, y)

    def over(logs, reference):
        return logs if reference is None else logs - reference

    def value(theta, sample):
        params = unflatten(theta)

        def one_chunk(x, y, weight, reference=None):
            return weight @ over(log_densities(params, *without_padding(x, y, weight)), reference)

        return -sum_chunks(one_chunk, sample)

    def first(theta, sample):
        at, back = flat(theta)
        one = jax.value_and_grad(lambda vector, x, y: model.log_density(back(vector), x, y))

        def one_chunk(x, y, weight, reference=None):
            logs, score = jax.vmap(one, (None, 0, 0))(at, *without_padding(x, y, weight))
            return weight @ over(logs, reference), weight @ score, score.T @ (weight[:, None] * score)

        loglik, score, gram = sum_chunks(one_chunk, sample)
        jacobian = jax.jacfwd(lambda t: flat(t)[0])(theta)
        return -loglik, -(score @ jacobian), jacobian.T @ gram @ jacobian

    def curvature(theta, sample):
        one = jax.grad(lambda t, x, y: model.log_density(unflatten(t), x, y))

        def one_chunk(x, y, weight, _=None):
            x, y = without_padding(x, y, weight)

            def score(t):
                each = jax.vmap(one, (None, 0, 0))(t, x, y)
                return weight @ each, each

            hessian, each = jax.jacfwd(score, has_aux=True)(theta)
            return hessian + each.T @ (weight[:, None] * each)

        return -sum_chunks(one_chunk, sample)

    def complete(theta, sample):
        """Q is the expected log-likelihood of (y, expert), its gradient at theta the score (Fisher's identity)."""

        def one_chunk(x, y, weight, reference=None):
            x, y = without_padding(x, y, weight)
            parts = lambda t: jax.vmap(model.log_components, (None, 0, 0))(unflatten(t), x, y)  # noqa: E731
            share = weight[:, None] * jax.nn.softmax(parts(theta), axis=1)
            # A closed gate has share 0 and a logarithm that is not finite.
            expected = lambda t: jnp.sum(jnp.where(share > 0, share * parts(t), 0.0))  # noqa: E731
            loglik = weight @ over(jax.nn.logsumexp(parts(theta), axis=1), reference)
            return loglik, jax.grad(expected)(theta), jax.hessian(expected)(theta)

        loglik, score, hessian = sum_chunks(one_chunk, sample)
        return -loglik, -score, -hessian

    return Passes(value, first, curvature, complete if model.has_components else None)


def passes_of(model: Model, unflatten: Callable, atoms: Atoms) -> Passes:
    """The passes of a model with ``atoms`` atoms; ``unflatten(theta)`` gives its parameters."""
    if isinstance(model, MixtureModel):
        return likelihood(model.form(model.sizes(atoms)[model.groups[0]]), lambda t: model.coefficients(unflatten(t)))
    if isinstance(model, Density):
        return density(model, unflatten)
    assert isinstance(model, Regression)
    return least_squares(lambda theta, x: model.mean(unflatten(theta), x), model.noise)


def without_padding(x, y, weight):
    """Rows of weight 0 replaced by the first one: a density need not be finite at the zeros of padding."""
    counts = (weight > 0)[:, None]
    return jnp.where(counts, x, x[0]), jnp.where(counts, y, y[0])


def sum_chunks(one_chunk: Callable, sample):
    """Sum of ``one_chunk(x, y, weight)``, a pytree, over the chunks of the sample; of counts with ``reference``."""
    if one_chunk_holds(sample):
        return one_chunk(*sample.chunk(0))
    one = jax.jit(lambda i: one_chunk(*sample.chunk(i)))  # traced once: here, and not again in the loop
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
    add = lambda i, total: jax.tree.map(jnp.add, total, one(i))  # noqa: E731
    return jax.lax.fori_loop(0, sample.chunks, add, zero)
