"""Distance of a fitted function or density from the true one: L2 of the law, or Hellinger."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.laws import Law
from moe_sim.models.base import MixtureModel, Model, Parameters, RegressionModel

_NODES = {1: 24, 2: 10, 3: 6}  # Gauss-Hermite nodes an axis by dimension; beyond that quasi-random points


def function_distance(model: Model, truth: Parameters, law: Law | None) -> Callable:
    """``distance(params)``, a scalar, in JAX.

    Regression: ||f - f*|| in L2 of the law. Mixtures: the Hellinger distance of the joint laws of (X, Y),
    h^2 = 1/2 int (sqrt p - sqrt p*)^2, which is the mean over the law of X of the conditional ones.
    """
    if isinstance(model, MixtureModel):
        return _hellinger(model, truth, law)
    assert isinstance(model, RegressionModel) and law is not None
    points, weights = (jnp.asarray(v) for v in law.nodes())
    target = jax.vmap(lambda x: model.mean(truth, x))(points)

    def distance(params):
        gap = jax.vmap(lambda x: model.mean(params, x))(points) - target
        return jnp.sqrt(weights @ jnp.sum(gap**2, axis=1))

    return distance


def _hellinger(model: MixtureModel, truth: Parameters, law: Law | None) -> Callable:
    """h^2 = (E_p g + E_p* g) / 2 with g = (sqrt p - sqrt p*)^2 / (p + p*), a smooth function between 0 and 1.

    Each expectation is a sum over components of normal integrals. With r = log p - log p* the integrand is
    2 sinh^2(r / 4) / cosh(r / 2), which keeps its relative accuracy when p is close to p*. That accuracy is about
    1e-3 for one output: r is far from a polynomial where experts part.
    """
    node_y, weight_y = _normal_rule(model.outputs)
    joint = model.form(len(truth[model.mass])).joint
    node_x, weight_x = _normal_rule(model.dimension)

    def unlike(params, x, y):
        r = jnp.clip(model.log_density(params, x, y) - model.log_density(truth, x, y), -200.0, 200.0)
        return 2.0 * jnp.sinh(r / 4) ** 2 / jnp.cosh(r / 2)

    def at(params, of, x):
        """E over y of each component of ``of`` at x: shape (K,)."""
        mean, variance = model.experts(of, x)
        y = mean[:, None] + jnp.sqrt(variance)[:, None] * node_y[None]
        return jax.vmap(jax.vmap(lambda one: unlike(params, x, one)))(y) @ weight_y

    def expectation(params, of):
        if not joint:
            points, weights = (jnp.asarray(v) for v in law.nodes())  # type: ignore[union-attr]
            inner = lambda x: jnp.exp(model.log_gates(of, x)) @ at(params, of, x)  # noqa: E731
            return weights @ jax.vmap(inner)(points)
        factor = jnp.linalg.cholesky(jnp.asarray(of["covariance"]))
        x = jnp.asarray(of["center"])[:, None] + jnp.einsum("kij,nj->kni", factor, node_x)
        inside = jax.vmap(jax.vmap(lambda one: at(params, of, one)))(x)  # (K, n, K)
        return jnp.asarray(of["weight"]) @ (jnp.diagonal(inside, axis1=0, axis2=2).T @ weight_x)

    def distance(params):
        return jnp.sqrt(0.5 * (expectation(params, params) + expectation(params, truth)))

    return distance


def _normal_rule(dimension: int):
    """Points (n, dimension) and weights (n,) that integrate against the standard normal law."""
    if dimension in _NODES:
        node, weight = np.polynomial.hermite_e.hermegauss(_NODES[dimension])
        grid = np.stack(np.meshgrid(*[node] * dimension, indexing="ij"), -1).reshape(-1, dimension)
        mass = np.prod(np.stack(np.meshgrid(*[weight] * dimension, indexing="ij"), -1).reshape(-1, dimension), axis=1)
        return jnp.asarray(grid), jnp.asarray(mass / mass.sum())
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(0)).random_base2(10)
    return jnp.asarray(ndtri(points)), jnp.full(len(points), 1.0 / len(points))
