"""Distance of a fitted function or density from the true one: L2 of the law, or Hellinger."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.models.base import MixtureModel, Model, Parameters, RegressionModel

_NODES = {1: 24, 2: 10, 3: 6}  # Gauss-Hermite nodes an axis by dimension; beyond that quasi-random points


def function_distance(model: Model, truth: Parameters, law: Law | None) -> Callable:
    """``distance(params)``, a scalar, in JAX: the norm of ``function_residuals``.

    Regression: ||f - f*|| in L2 of the law. Mixtures: the Hellinger distance of the joint laws of (X, Y),
    h^2 = 1/2 int (sqrt p - sqrt p*)^2, which is the mean over the law of X of the conditional ones.
    """
    residuals = function_residuals(model, truth, law)
    return lambda params: jnp.sqrt(jnp.sum(residuals(params) ** 2))


def function_residuals(model: Model, truth: Parameters, law: Law | None) -> Callable:
    """``residuals(params)``, a vector that is smooth in the parameters and whose norm is the distance.

    Regression: sqrt(weight) (f - f*) at the nodes of the law. Mixtures: h^2 = (E_p g^2 + E_p* g^2) / 2 with
    g = (sqrt p - sqrt p*) / sqrt(p + p*), between -1 and 1; each expectation is a sum over components of normal
    integrals. With r = log p - log p* it is g = sqrt 2 sinh(r / 4) / sqrt cosh(r / 2), which keeps its relative
    accuracy when p is close to p*. That of h is about 1e-3 for one output: r is far from a polynomial where experts
    part. At the truth the Jacobian J of the residuals holds the information of one observation: it is J'J / noise^2
    for a regression and 8 J'J for a mixture.
    """
    if isinstance(model, MixtureModel):
        return _hellinger(model, truth, law)
    assert isinstance(model, RegressionModel) and law is not None
    points, weights = (jnp.asarray(v) for v in law.nodes())
    target = jax.vmap(lambda x: model.mean(truth, x))(points)

    def residuals(params):
        gap = jax.vmap(lambda x: model.mean(params, x))(points) - target
        return (jnp.sqrt(weights)[:, None] * gap).ravel()

    return residuals


def _hellinger(model: MixtureModel, truth: Parameters, law: Law | None) -> Callable:
    rule = density_nodes(model, law)

    def unlike(params, x, y):
        r = jnp.clip(model.log_density(params, x, y) - model.log_density(truth, x, y), -200.0, 200.0)
        return jnp.sinh(r / 4) / jnp.sqrt(jnp.cosh(r / 2))

    def half(params, of):
        x, y, log_weight = rule(of)
        return jnp.exp(0.5 * log_weight) * jax.vmap(lambda a, b: unlike(params, a, b))(x, y)

    return lambda params: jnp.concatenate([half(params, params), half(params, truth)])


def density_nodes(model: MixtureModel, law: Law | None, most: int = 24) -> Callable:
    """``rule(params)``: x (A, d), y (A, outputs), log-weights (A,) that integrate against the density of ``params``.

    The nodes are those of its components, so they move with the parameters. Logarithms, since a gate may be closed.
    most: nodes an axis.
    """
    node_y, weight_y = _normal_rule(model.outputs, most)

    def conditional(params):
        assert law is not None
        x, weight_x = (jnp.asarray(v) for v in law.nodes())
        mean, variance = jax.vmap(lambda one: model.experts(params, one))(x)  # (n, K, o)
        log_gate = jax.vmap(lambda one: model.log_gates(params, one))(x)  # (n, K)
        return x[:, None], mean, variance, log_gate + jnp.log(weight_x)[:, None]

    def joint(params):
        node_x, weight_x = _normal_rule(model.dimension, most)
        factor = jnp.linalg.cholesky(jnp.asarray(params["covariance"]))
        x = jnp.asarray(params["center"])[:, None] + jnp.einsum("kij,nj->kni", factor, node_x)
        expert = lambda one, k: tuple(part[k] for part in model.experts(params, one))  # noqa: E731
        mean, variance = jax.vmap(jax.vmap(expert, (0, None)))(x, jnp.arange(len(x)))
        return x, mean, variance, jnp.log(jnp.asarray(params["weight"]))[:, None] + jnp.log(weight_x)

    def rule(params):
        is_joint = model.form(len(params[model.mass])).joint
        x, mean, variance, log_weight = (joint if is_joint else conditional)(params)
        y = mean[:, :, None] + jnp.sqrt(variance)[:, :, None] * node_y  # (., ., m, o)
        x = jnp.broadcast_to(x[:, :, None], (*y.shape[:3], model.dimension))
        log_weight = log_weight[:, :, None] + jnp.log(weight_y)
        return x.reshape(-1, model.dimension), y.reshape(-1, model.outputs), log_weight.ravel()

    return rule


def _normal_rule(dimension: int, most: int):
    """Points (n, dimension) and weights (n,) that integrate against the standard normal law."""
    if dimension in _NODES:
        node, weight = np.polynomial.hermite_e.hermegauss(min(_NODES[dimension], most))
        grid = np.stack(np.meshgrid(*[node] * dimension, indexing="ij"), -1).reshape(-1, dimension)
        mass = np.prod(np.stack(np.meshgrid(*[weight] * dimension, indexing="ij"), -1).reshape(-1, dimension), axis=1)
        return jnp.asarray(grid), jnp.asarray(mass / mass.sum())
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(0)).random_base2(10)
    return jnp.asarray(ndtri(points)), jnp.full(len(points), 1.0 / len(points))
