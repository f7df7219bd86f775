"""Losses of many fits at once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_sim.data.cells import Cells
from moe_sim.data.covariates import Law
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import parameters_of
from moe_sim.losses.distances import Target
from moe_sim.losses.voronoi import Loss, evaluate_all
from moe_sim.models.base import Atoms, Model, Parameters


class LossFunction:
    """Every loss of every fit, on all devices: call it with thetas (K, P), or parameters with a first axis K, for
    ``{loss name: (K,)}``.

    atoms: fitted, whose flat free coordinates thetas are; None: it is called with parameters. cells: that distances of
    densities are added up over, as ``Target`` has them.
    """

    def __init__(
        self, model: Model, truth: Parameters, law: Law | None, losses: list[Loss], atoms: Atoms | None,
        cells: Cells | None = None,
    ):  # fmt: skip
        sizes = None if atoms is None else tuple(model.sizes(atoms).items())
        distance = any(loss.kind == "function" for loss in losses)
        self._target = Target(model, truth, law, cells) if distance else None
        self._of = model, {k: jnp.asarray(v) for k, v in truth.items()}
        self._run = _compiled_losses(tuple(losses), sizes)

    def __call__(self, lanes) -> dict[str, np.ndarray]:
        return self._run((self._of, self._target), lanes)

    def job(self, theta: np.ndarray) -> tuple:
        """What there is to compile (see ``batching.compile_together``); theta (P,)."""
        return self._run, (self._of, self._target), theta[None]


@lru_cache(maxsize=16)
def _compiled_losses(losses: tuple[Loss, ...], atoms: tuple[tuple[str, int], ...] | None) -> LaneFunction:
    def one(shared, lane):
        (model, truth), target = shared
        params = lane if atoms is None else parameters_of(model, dict(atoms))(lane)
        found = measured(model, [loss for loss in losses if loss.kind != "function"], params, truth)
        if target is None:
            return found
        distance = jnp.sqrt(jnp.sum(target.residuals(params) ** 2))
        return {loss.name: distance if loss.kind == "function" else found[loss.name] for loss in losses}

    return LaneFunction(one)


def measured(model: Model, losses: list[Loss], params: Parameters, truth: Parameters) -> dict:
    """``{loss name: value}`` of losses between the measures of two models, raw ones of parameters as they are."""
    found: dict[str, Any] = {}
    for raw in (False, True):
        some = [loss for loss in losses if loss.raw == raw]
        if some:
            fitted, true = (model.measure(p if raw else model.canonical(p)) for p in (params, truth))
            found |= evaluate_all(some, fitted, true)
    return found
