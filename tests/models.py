"""The model table: every property test runs over MODELS, so a new model is one new line there.

``naive`` is the model's mean once more, in plain numpy and loops: the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_sim.data.covariates import Grid, Law
from moe_sim.models.base import Parameters, Regression
from moe_sim.models.prefix import Frozen, PrefixModel

KEYS = np.array([[1.5, 0.5, -0.8], [-1.0, 1.2, 0.6], [0.3, -1.4, 1.1]])
VALUES = np.array([[1.2, -0.6, 0.4], [-0.9, 0.8, -1.1], [0.4, 1.3, 0.7]])
BIASES = np.array([0.2, -0.1, 0.3])
POINTS = {1: 8, 2: 6, 3: 6}


class Case(NamedTuple):
    model: Regression
    truth: Parameters
    law: Law
    naive: Callable  # (params, x of one sample) -> (outputs,)


def known(model) -> Parameters:
    """True values of parameters that a study need not give."""
    return {name: np.asarray(p.known) for name, p in model.parameters().items() if p.known is not None}


def prefix(structure: str, d: int, N: int, L: int, outputs: int, width: int, **extra) -> Case:
    """A prefix model with N frozen and L true learned experts; prefixes (or keys and values) of dimension ``width``.

    Where the width lets it, ``outputs`` differs from d and ``width`` from both: a transposed matrix cannot pass.
    """
    rng = np.random.default_rng([d, N, L, outputs, width])
    A, a = 0.3 * rng.normal(size=(N, d, d)), 0.3 * rng.normal(size=N)
    M = rng.normal(size=(N, outputs, d))
    B, C = (np.eye(*shape) + 0.2 * rng.normal(size=shape) for shape in ((d, width), (outputs, width)))
    networks = {}
    if structure == "shared-network":
        W1, W2 = np.eye(width) + 0.3 * rng.normal(size=(2, width, width))
        networks = {"key_network": W1, "value_network": W2}
    model = PrefixModel(structure, 0.3, Frozen.quadratic(A, a, M), B, C, **networks, **extra)
    truth = {"bias": BIASES[:L]}
    if structure == "independent":
        truth |= {"key": KEYS[:L, :width], "value": VALUES[:L, :width]}
    else:
        truth |= {"prefix": KEYS[:L, :width]} | known(model)

    def naive(params, x):
        logits, answers = [], []
        for j in range(N):
            logits.append(sum(x[r] * A[j, r, c] * x[c] for r in range(d) for c in range(d)) + a[j])
            answers.append(np.tanh([sum(M[j, o, c] * x[c] for c in range(d)) for o in range(outputs)]))
        for i in range(len(params["bias"])):
            if structure == "independent":
                key, value = params["key"][i], params["value"][i]
            elif structure == "shared-linear":
                key = value = params["prefix"][i]
            else:
                W1 = params.get("W1", networks["key_network"])
                W2 = params.get("W2", networks["value_network"])
                key, value = np.tanh(W1 @ params["prefix"][i]), np.tanh(W2 @ params["prefix"][i])
            logits.append(sum(x[c] * B[c, k] * key[k] for c in range(d) for k in range(width)) + params["bias"][i])
            answers.append([sum(C[o, k] * value[k] for k in range(width)) for o in range(outputs)])
        total = sum(np.exp(logit) for logit in logits)
        return sum(np.exp(logit) * np.asarray(answer) for logit, answer in zip(logits, answers, strict=True)) / total

    return Case(model, truth, Grid(d, -2.0, 2.0, POINTS[d]), naive)


MODELS: dict[str, Case] = {
    "independent-d1-N1-L1": prefix("independent", 1, 1, 1, outputs=2, width=1),
    "independent-d2-N0-L2": prefix("independent", 2, 0, 2, outputs=3, width=2),
    "independent-d3-N1-L2": prefix("independent", 3, 1, 2, outputs=2, width=2),
    "linear-d1-N3-L1": prefix("shared-linear", 1, 3, 1, outputs=2, width=1),
    "linear-d2-N1-L2": prefix("shared-linear", 2, 1, 2, outputs=1, width=2),
    "linear-d3-N0-L3": prefix("shared-linear", 3, 0, 3, outputs=1, width=2),
    "network-d2-N0-L2": prefix("shared-network", 2, 0, 2, outputs=3, width=2),
    "network-d3-N3-L3": prefix("shared-network", 3, 3, 3, outputs=2, width=3),
    "learned-d2-N1-L2": prefix("shared-network", 2, 1, 2, outputs=1, width=2, network_bound=3.0),
}


def every(*parts: str):
    """Parametrise a test by ``case``: all of MODELS, or those with one of ``parts`` in their name."""
    names = [name for name in MODELS if not parts or any(part in name for part in parts)]
    return pytest.mark.parametrize("case", [pytest.param(MODELS[name], id=name) for name in names])


@cache
def _batched(mean):
    return jax.jit(jax.vmap(mean, (None, 0)))


def means(case: Case, params, x) -> np.ndarray:
    """The model's mean at every row of x, shape (n, outputs)."""
    return np.asarray(_batched(case.model.mean)({k: jnp.asarray(v) for k, v in params.items()}, jnp.asarray(x)))


def random_params(case: Case, atoms: int, rng: np.random.Generator) -> Parameters:
    return {name: rng.normal(size=shape) for name, shape in case.model.shapes(atoms).items()}


def atoms_of(case: Case) -> int:
    return case.model.count(case.truth)


def per_atom(case: Case) -> list[str]:
    """Names of the parameters that have one row an atom."""
    return [name for name, shape in case.model.shapes(2).items() if shape != case.model.shapes(1)[name]]


def permuted(case: Case, params, order) -> Parameters:
    return {name: value[order] if name in per_atom(case) else value for name, value in params.items()}
