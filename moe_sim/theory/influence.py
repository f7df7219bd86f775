"""What an atom at eta adds: psi_eta = d/dm f_{G* + m delta_eta} at m = 0, and its derivatives in eta, for any model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from moe_sim.data.covariates import Law
from moe_sim.losses.distances import Target, target_of
from moe_sim.models.base import Model, Parameters
from moe_sim.models.coordinates import element

_TINY = 1e10  # an atom with so small a part of a mass shows the influence of one at mass 0


def places(model: Model, truth: Parameters, group: str | None = None) -> tuple[np.ndarray, Callable]:
    """eta (L, q), the parameters of the true atoms of a group side by side, and the way back for one eta (q,)."""
    rows = {name: jnp.asarray(truth[name]) for name in owned(model, group)}
    back = ravel_pytree({name: value[0] for name, value in rows.items()})[1]
    return np.asarray(jax.vmap(lambda row: ravel_pytree(row)[0])(rows)), back


def place_of(model: Model, truth: Parameters, atom: int) -> tuple[str, int, np.ndarray, Callable]:
    """Of true atom number ``atom``, counted through all groups: group, row there, eta (q,), and the way back."""
    before = 0
    for group, size in model.sizes_of(truth).items():
        if atom < before + size:
            eta, back = places(model, truth, group)
            return group, atom - before, eta[atom - before], back
        before += size
    raise IndexError(atom)


def influences(model: Model, truth: Parameters, law: Law | None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """psi (N,), dpsi (N, q) and d2psi (N, q, q) at the place of every true atom, in the rows of ``Target.rows``; at the
    canonical representative of the truth, whose masses are what its measure says."""
    truth = model.canonical(truth) if model.has_canonical else truth
    target = target_of(model, truth, law)
    return [
        derivatives_at(target, group, at) for group in model.groups for at in places(model, truth, group)[0]
    ]  # fmt: skip


def derivatives_at(target: Target, group: str, eta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """psi (N,), dpsi (N, q) and d2psi (N, q, q) at any eta (q,) for the truth of a target, in the rows of that."""
    model = target.model
    truth = {name: jnp.asarray(value) for name, value in target.truth.items()}
    mass = np.asarray(truth[model.masses[group]])[0]
    small = jnp.asarray(model.divided(mass, np.asarray(_TINY), group))
    return jax.device_get(_derivatives(target, truth, group, small, jnp.asarray(eta)))


@partial(jax.jit, static_argnames="group")
def _derivatives(target: Target, truth: Parameters, group: str, small, at):
    model, mass = target.model, target.model.masses[group]
    back = ravel_pytree({name: jnp.asarray(truth[name])[0] for name in owned(model, group)})[1]
    last = int(np.cumsum(list(model.sizes_of(truth).values()))[model.groups.index(group)])

    def influence(at):
        more = {name: jnp.concatenate([truth[name], value[None]]) for name, value in back(at).items()}

        def added(tiny):
            params = truth | more | {mass: jnp.append(truth[mass], tiny)}
            return target.rows(params), model.measure(params).weight[last]

        change, weight = jax.jvp(added, (small,), (jnp.ones_like(small),))[1]
        return change / weight

    return influence(at), jax.jacfwd(influence)(at), jax.jacfwd(jax.jacfwd(influence))(at)


def atom_names(model: Model, truth: Parameters, group: str | None = None) -> tuple[list[str], np.ndarray]:
    """Names of the coordinates of an atom that may move, r of them, and the matrix (q, r) that moves eta along them.

    A symmetric matrix moves by its lower half, both entries of a pair together.
    """
    names, columns = [], []
    eta, back = places(model, truth, group)
    for name, index in back(jnp.arange(eta.shape[1], dtype=float)).items():
        for where, i in np.ndenumerate(np.asarray(index).astype(int)):
            if name in model.symmetric and where[0] < where[1]:
                continue
            column = np.zeros(eta.shape[1])
            column[i] = 1.0
            if name in model.symmetric:
                column[int(index[where[::-1]])] = 1.0
            columns.append(column)
            names.append(element(name, where) if np.size(index) > 1 else name)
    return names, np.stack(columns, axis=1)


def owned(model: Model, group: str | None = None) -> list[str]:
    """Parameters with one row an atom of a group (the first where None), the mass left out."""
    group = group or model.groups[0]
    return [
        name
        for name, p in model.parameters().items()
        if not p.shared and (p.group or model.groups[0]) == group and name != model.masses[group]
    ]
