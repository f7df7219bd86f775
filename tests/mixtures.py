"""The table of mixtures, as ``models`` is that of regressions: a new mixture is one new line in MIXTURES.

``naive`` gives a mixture's parts once more, in plain numpy and loops: log-weights, means and variances at one x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from scipy.special import logsumexp

from moe_sim.data.covariates import Law, Uniform
from moe_sim.likelihood.objective import passes_of
from moe_sim.models.base import Parameters
from moe_sim.models.coordinates import ravel, unravel
from moe_sim.models.gaussian_gated import GaussianGated
from moe_sim.models.mixture import MixtureModel
from moe_sim.models.prefix_mixture import PrefixMixture
from moe_sim.models.softmax_gaussian import SoftmaxGaussian

RANGE = (1e-3, 1e2)


class Mixture(NamedTuple):
    model: MixtureModel
    truth: Parameters
    law: Law | None  # None: the model draws x
    naive: Callable  # (params, x of one sample) -> log-weights (K,), means (K, outputs), variances (K, outputs)


def _columns(params, name, outputs):
    """An expert parameter as (K, outputs, ...)."""
    value = np.asarray(params[name])
    return value if outputs > 1 else value[:, None]


def _linear(params, x, outputs):
    slope, intercept = _columns(params, "slope", outputs), _columns(params, "intercept", outputs)
    mean = np.array([[b + sum(a * xi for a, xi in zip(row, x, strict=True)) for b, row in zip(bs, rows, strict=True)]
                     for bs, rows in zip(intercept, slope, strict=True)])  # fmt: skip
    return mean, _columns(params, "variance", outputs)


def _experts(rng, atoms, dimension, outputs):
    o = () if outputs == 1 else (outputs,)
    return {
        "intercept": 1.5 * rng.normal(size=(atoms, *o)), "slope": rng.normal(size=(atoms, *o, dimension)),
        "variance": 0.2 + rng.random((atoms, *o)),
    }  # fmt: skip


def softmax(atoms: int, dimension: int, outputs: int) -> Mixture:
    rng = np.random.default_rng([1, atoms, dimension, outputs])
    gates = {"gate_bias": rng.normal(size=atoms), "gate_slope": rng.normal(size=(atoms, dimension))}

    def naive(params, x):
        logits = [b + sum(s * xi for s, xi in zip(row, x, strict=True))
                  for b, row in zip(params["gate_bias"], params["gate_slope"], strict=True)]  # fmt: skip
        return np.array(logits) - logsumexp(logits), *_linear(params, x, outputs)

    truth = gates | _experts(rng, atoms, dimension, outputs)
    return Mixture(SoftmaxGaussian(dimension, outputs, RANGE), truth, Uniform(dimension, -2.0, 2.0, 8), naive)


def gated(atoms: int, dimension: int, outputs: int) -> Mixture:
    rng = np.random.default_rng([2, atoms, dimension, outputs])
    root = np.eye(dimension) + 0.3 * rng.normal(size=(atoms, dimension, dimension))
    weight = 0.2 + rng.random(atoms)
    truth = {
        "weight": weight / weight.sum(), "center": 1.5 * rng.normal(size=(atoms, dimension)),
        "covariance": root @ np.swapaxes(root, 1, 2),
    }  # fmt: skip

    def naive(params, x):
        gates = zip(params["weight"], params["center"], params["covariance"], strict=True)
        logits = [
            np.log(w) - ((x - c) @ np.linalg.solve(s, x - c) + np.log(np.linalg.det(2 * np.pi * np.asarray(s)))) / 2
            for w, c, s in gates
        ]
        return np.array(logits), *_linear(params, x, outputs)

    truth |= _experts(rng, atoms, dimension, outputs)
    return Mixture(GaussianGated(dimension, outputs, RANGE, RANGE), truth, None, naive)


def prefix(name: str) -> Mixture:
    """A regression case of ``models`` observed as a mixture; frozen experts as the head has them.

    Those are checked by the mean: gates times outputs must be the naive mean of the regression.
    """
    case = models.MODELS[name]
    head = case.model
    known = jax.jit(lambda x: (head.frozen.logits(x), head.frozen.outputs(x)))

    def naive(params, x):
        logits, outputs = [], []
        for i in range(len(params["bias"])):
            if head.structure == "independent":
                key, value = params["key"][i], params["value"][i]
            elif head.structure == "shared-linear":
                key = value = params["prefix"][i]
            else:
                W1, W2 = params.get("W1", head.key_network), params.get("W2", head.value_network)
                key, value = np.tanh(W1 @ params["prefix"][i]), np.tanh(W2 @ params["prefix"][i])
            logits.append(params["bias"][i] + x @ (np.asarray(head.key_projection) @ key))
            outputs.append(np.asarray(head.value_projection) @ value)
        if head.frozen.count:
            for found, more in zip((logits, outputs), known(x), strict=True):
                found.extend(np.asarray(more))
        mean = np.array(outputs)
        return np.array(logits) - logsumexp(logits), mean, np.full(mean.shape, head.noise**2)

    return Mixture(PrefixMixture(head), case.truth, case.law, naive)


MIXTURES: dict[str, Mixture] = {
    "softmax-K2-d1-o1": softmax(2, 1, 1),
    "softmax-K3-d2-o2": softmax(3, 2, 2),
    "gated-K2-d1-o1": gated(2, 1, 1),
    "gated-K3-d2-o2": gated(3, 2, 2),
    "prefix-independent-N1": prefix("independent-d3-N1-L2"),
    "prefix-linear-N0": prefix("linear-d3-N0-L3"),
    "prefix-network-N3": prefix("network-d3-N3-L3"),
    "prefix-learned-N1": prefix("learned-d2-N1-L2"),
}


def every(*parts: str):
    """Parametrise a test by ``case``: all of MIXTURES, or those with one of ``parts`` in their name."""
    names = [name for name in MIXTURES if not parts or any(part in name for part in parts)]
    return pytest.mark.parametrize("case", [pytest.param(MIXTURES[name], id=name) for name in names])


def naive_log_density(case: Mixture, params, x, y) -> float:
    log_weight, mean, variance = case.naive(params, x)
    return float(logsumexp(log_weight - ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance)).sum(axis=1) / 2))


def atoms_of(case: Mixture) -> int:
    return case.model.count(case.truth)


def free_vector(case: Mixture, params) -> tuple[jnp.ndarray, Callable[[Any], Parameters]]:
    """Free coordinates (P,), and the parameters of such a vector."""
    free = case.model.unconstrain({k: np.asarray(v, float) for k, v in params.items()})
    shapes = {name: value.shape for name, value in free.items()}
    return jnp.asarray(ravel(free)), lambda t: case.model.constrain(unravel(shapes, t))


def passes_at(case: Mixture, params):
    """Free coordinates, the way back, and the passes of a model with as many atoms."""
    theta, unflatten = free_vector(case, params)
    return theta, unflatten, passes_of(case.model, unflatten, case.model.count(params))


def rows(sample) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a streamed sample: x (n, d), y (n, outputs)."""
    read = jax.jit(lambda i: sample.chunk(i))
    parts = [jax.device_get(read(i)) for i in range(int(sample.chunks))]
    x, y, weight = (np.concatenate(p) for p in zip(*parts, strict=True))
    return x[weight > 0], y[weight > 0]
