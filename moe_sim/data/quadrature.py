"""Integrals over x and y: the nodes of a law, of normal components, and of any density near its truth."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.errors import InputError
from moe_sim.models import pytrees as pytrees  # models are arguments of jitted functions
from moe_sim.models.base import Density, Parameters
from moe_sim.models.mixture import MixtureModel

NODES = {1: 24, 2: 10, 3: 6}  # Gauss-Hermite nodes an axis by dimension; beyond that quasi-random points
LARGEST = 2**21  # points (x, y) that a density is integrated over


def points_of(law: Law | None) -> tuple:
    """x (M, d) and weights (M,) of a law; none for a joint density, which has its own."""
    return (None, None) if law is None else tuple(jnp.asarray(v) for v in law.nodes())


def nodes_of(model: Density, truth: Parameters, points, weights, most: int) -> tuple:
    """x (A, d), y (A, outputs), log-weights (A,) that integrate against the density of the truth.

    Gaussian mixtures: nodes of their components. Others: the values of their support at each x, and of a joint density
    at the nodes of the normal mixture that x is from. Raises ``InputError`` where those are too many.
    """
    if isinstance(model, MixtureModel):
        return _jitted_mixture_nodes(model, points, weights, truth, most)
    log_x: Any = 0.0  # log density of x, which a conditional density leaves out
    if model.joint:
        points, weights, log_x = _normal_mixture(*model.x_mixture(truth), most)
    y, log_weight = model.support.nodes(model, truth, np.asarray(points))
    if log_weight.size > LARGEST:
        raise InputError(
            f"{log_weight.shape[1]:,} values of y at {len(log_weight):,} points of x are too many to integrate over: "
            "lower law.points"
        )
    each = partial(np.repeat, repeats=y.shape[1], axis=0)
    x, rows = each(np.asarray(points)), y.reshape(-1, y.shape[2])
    log_mass = each(np.log(np.asarray(weights)) - np.asarray(log_x)) + log_weight.ravel()
    return tuple(map(jnp.asarray, (x, rows, log_mass + np.asarray(log_densities(model, truth, x, rows)))))


def _normal_mixture(weight, center, covariance, most: int) -> tuple:
    """x (A, d) and weights (A,) that integrate against a normal mixture, and its log density there (A,)."""
    node, share = _normal_rule(center.shape[1], most)
    x = center[:, None] + jnp.einsum("kij,nj->kni", jnp.linalg.cholesky(covariance), node)
    x, mass = x.reshape(-1, center.shape[1]), (weight[:, None] * share).ravel()
    logs = jax.vmap(lambda m, c: jax.scipy.stats.multivariate_normal.logpdf(x, m, c))(center, covariance)
    return x, mass, jax.nn.logsumexp(logs + jnp.log(weight)[:, None], axis=0)


@jax.jit
def log_densities(model: Density, params: Parameters, x, y):
    """log p at rows of x (A, d) and y (A, outputs): (A,)."""
    return jax.vmap(lambda a, b: model.log_density(params, a, b))(x, y)


def mixture_nodes(model: MixtureModel, points, weights, params: Parameters, most: int = NODES[1]) -> tuple:
    """x (A, d), y (A, outputs), log-weights (A,) that integrate against the density of ``params``.

    The nodes are those of its components, so they move with the parameters. Logarithms, since a gate may be closed.
    most: nodes an axis.
    """
    node_y, weight_y = _normal_rule(model.outputs, most)
    if model.joint:
        node_x, weight_x = _normal_rule(model.dimension, most)
        factor = jnp.linalg.cholesky(jnp.asarray(params["covariance"]))
        x = jnp.asarray(params["center"])[:, None] + jnp.einsum("kij,nj->kni", factor, node_x)
        expert = lambda one, k: tuple(part[k] for part in model.experts(params, one))  # noqa: E731
        mean, variance = jax.vmap(jax.vmap(expert, (0, None)))(x, jnp.arange(len(x)))
        log_weight = jnp.log(jnp.asarray(params["weight"]))[:, None] + jnp.log(weight_x)
    else:
        mean, variance = jax.vmap(lambda one: model.experts(params, one))(points)  # (n, K, o)
        log_gate = jax.vmap(lambda one: model.log_gates(params, one))(points)  # (n, K)
        x, log_weight = points[:, None], log_gate + jnp.log(weights)[:, None]
    y = mean[:, :, None] + jnp.sqrt(variance)[:, :, None] * node_y  # (., ., m, o)
    x = jnp.broadcast_to(x[:, :, None], (*y.shape[:3], model.dimension))
    log_weight = log_weight[:, :, None] + jnp.log(weight_y)
    return x.reshape(-1, model.dimension), y.reshape(-1, model.outputs), log_weight.ravel()


_jitted_mixture_nodes = jax.jit(mixture_nodes, static_argnums=4)


def _normal_rule(dimension: int, most: int):
    """Points (n, dimension) and weights (n,) that integrate against the standard normal law."""
    if dimension in NODES:
        node, weight = np.polynomial.hermite_e.hermegauss(min(NODES[dimension], most))
        grid = np.stack(np.meshgrid(*[node] * dimension, indexing="ij"), -1).reshape(-1, dimension)
        mass = np.prod(np.stack(np.meshgrid(*[weight] * dimension, indexing="ij"), -1).reshape(-1, dimension), axis=1)
        return jnp.asarray(grid), jnp.asarray(mass / mass.sum())
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(0)).random_base2(10)
    return jnp.asarray(ndtri(points)), jnp.full(len(points), 1.0 / len(points))
