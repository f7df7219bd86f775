"""What an atom at eta adds: psi_eta = d/dm f_{G* + m delta_eta} at m = 0, and its derivatives in eta, for any model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from moe_sim.data.covariates import Law
from moe_sim.losses.distances import density_nodes
from moe_sim.models.base import MixtureModel, Model, Parameters, RegressionModel

_TINY = 1e10  # an atom with so small a part of a mass shows the influence of one at mass 0


class Standardised(NamedTuple):
    """rows(params), (N,): their Jacobian J at the truth has J'J = the information of one observation.

    Regression: sqrt(weight) f / noise on the nodes of the law. Mixtures: sqrt(weight) log p on nodes that integrate
    against the true density. So noise is standard normal, and ``unit`` is the ``function`` loss of a gap of length 1:
    the noise, or 8^-1/2 for a Hellinger distance, since h^2 = E[score^2] / 8. root (N,): sqrt(weight).
    """

    rows: Callable
    root: jax.Array
    unit: float


def standardised(model: Model, truth: Parameters, law: Law | None) -> Standardised:
    """What data see of the model near its truth."""
    if isinstance(model, MixtureModel):
        x, y, log_weight = jax.jit(density_nodes(model, law))(truth)
        root = jnp.exp(0.5 * log_weight)
        density = lambda params: jax.vmap(lambda a, b: model.log_density(params, a, b))(x, y)  # noqa: E731
        return Standardised(lambda params: root * density(params), root, 8**-0.5)
    assert isinstance(model, RegressionModel) and law is not None
    points, weights = (jnp.asarray(v) for v in law.nodes())
    root = jnp.repeat(jnp.sqrt(weights), model.outputs)
    mean = lambda params: jax.vmap(lambda x: model.mean(params, x))(points).ravel()  # noqa: E731
    return Standardised(lambda params: root / model.noise * mean(params), root, model.noise)


def places(model: Model, truth: Parameters) -> tuple[np.ndarray, Callable]:
    """eta (L, q), the parameters of the true atoms side by side, and the way back for one eta (q,)."""
    rows = {name: jnp.asarray(truth[name]) for name in owned(model)}
    back = ravel_pytree({name: value[0] for name, value in rows.items()})[1]
    return np.asarray(jax.vmap(lambda row: ravel_pytree(row)[0])(rows)), back


def influences(model: Model, truth: Parameters, law: Law | None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """psi (N,), dpsi (N, q) and d2psi (N, q, q) at the place of every true atom, in the rows of ``standardised``."""
    rows, (eta, back) = standardised(model, truth, law).rows, places(model, truth)
    small = jnp.asarray(model.share(np.asarray(truth[model.mass])[0], np.asarray(_TINY)))

    def influence(at):
        more = {name: jnp.concatenate([truth[name], value[None]]) for name, value in back(at).items()}

        def added(mass):
            params = truth | more | {model.mass: jnp.append(truth[model.mass], mass)}
            return rows(params), model.measure(params).weight[-1]

        change, weight = jax.jvp(added, (small,), (jnp.ones_like(small),))[1]
        return change / weight

    @jax.jit
    def derivatives(at):
        return influence(at), jax.jacfwd(influence)(at), jax.jacfwd(jax.jacfwd(influence))(at)

    return [jax.device_get(derivatives(jnp.asarray(at))) for at in eta]


def atom_names(model: Model, truth: Parameters) -> tuple[list[str], np.ndarray]:
    """Names of the coordinates of an atom that may move, r of them, and the matrix (q, r) that moves eta along them.

    A symmetric matrix moves by its lower half, both entries of a pair together.
    """
    names, columns = [], []
    _, back = places(model, truth)
    for name, index in back(jnp.arange(places(model, truth)[0].shape[1], dtype=float)).items():
        for where, i in np.ndenumerate(np.asarray(index).astype(int)):
            if name in model.symmetric and where[0] < where[1]:
                continue
            column = np.zeros(places(model, truth)[0].shape[1])
            column[i] = 1.0
            if name in model.symmetric:
                column[int(index[where[::-1]])] = 1.0
            columns.append(column)
            names.append(name + (f"[{','.join(map(str, where))}]" if np.size(index) > 1 else ""))
    return names, np.stack(columns, axis=1)


def owned(model: Model) -> list[str]:
    """Parameters with one row an atom, the mass left out."""
    one, two = model.shapes(1), model.shapes(2)
    return [name for name in one if one[name] != two[name] and name != model.mass]
