"""Prefix-tuned attention head as a mixture of experts (Le et al., arXiv 2410.02200, sections 3 and 4).

    f_G(x) = sum_{j<=N} w_j(x) h_j(x) + sum_{l<=L} w_{N+l}(x) C v_l,   w = softmax of all N + L logits,
    frozen logits  x'A_j x + a_j, frozen outputs h_j(x) = tanh(M_j x);   learned logits  (B k_l)'x + b_l.

The frozen experts and the projections B, C are known; the prefixes are learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array, flag, number, one_of, whole
from moe_sim.models.base import Parameters, Regression
from moe_sim.models.measure import MixingMeasure
from moe_sim.models.parameter import Parameter
from moe_sim.models.part import Part

ACTIVATIONS: dict[str, Callable] = {
    "tanh": lambda z: jnp.tanh(z), "identity": lambda z: z, "relu": lambda z: jax.nn.relu(z),
    "gelu": lambda z: jax.nn.gelu(z), "sigmoid": lambda z: jax.nn.sigmoid(z),
}  # fmt: skip


class Frozen(Part):
    """N known experts, each ``(logit, output)`` of one x: ``logits(x)`` (N,) and ``outputs(x)`` (N, outputs)."""

    logits: Callable[[Any], Any]
    outputs: Callable[[Any], Any]

    def __init__(self, count: int, logits: Callable[[Any], Any], outputs: Callable[[Any], Any]):
        self.count, self.logits, self.outputs = count, logits, outputs

    @staticmethod
    def quadratic(logit_matrix, logit_bias, output_matrix) -> Frozen:
        """Logits x'A x + a with A (N, d, d), a (N,); outputs tanh(M x) with M (N, outputs, d)."""
        return _Quadratic(*(np.asarray(v, float) for v in (logit_matrix, logit_bias, output_matrix)))

    @staticmethod
    def tokens(count: int, outputs: int) -> Frozen:
        """Experts whose logits and outputs x brings along, after its query: x = (query, logits, outputs by expert).

        The tokens of a real attention head, say, where the law is that of real (query, context) pairs.
        """
        return _Tokens(count, outputs)


class _Quadratic(Frozen):
    def __init__(self, A, a, M):
        self.count, self.A, self.a, self.M = len(a), A, a, M

    def logits(self, x):
        return (jnp.asarray(self.A) @ x) @ x + self.a

    def outputs(self, x):
        return jnp.tanh(jnp.asarray(self.M) @ x)


class _Tokens(Frozen):
    def __init__(self, count, width):
        self.count, self.width = count, width

    def logits(self, x):
        end = self.count * self.width
        return x[len(x) - end - self.count : len(x) - end]

    def outputs(self, x):
        return x[len(x) - self.count * self.width :].reshape(self.count, self.width)


class PrefixModel(Regression):
    """The prefix model. See the module for the formula.

    structure: ``independent`` (params key (L, d_key), value (L, d_value)), ``shared-linear`` (params
        prefix (L, q), used as key and value) or ``shared-network`` (params prefix (L, q);
        key = s(W1 p), value = s(W2 p), s the activation). All have params bias (L,).
    key_projection: B, (d, d_key). value_projection: C, (outputs, d_value).
    key_network, value_network: W1 (d_key, q), W2 (d_value, q), for ``shared-network`` only.
    network_bound: when given, W1 and W2 are learned too (params W1, W2), every entry within +-network_bound
        (a bound on their max norm). Without such a bound sharing would not bind.
    """

    def __init__(
        self, structure: str, noise: float, frozen: Frozen, key_projection: np.ndarray, value_projection: np.ndarray,
        key_network: np.ndarray | None = None, value_network: np.ndarray | None = None, activation: str = "tanh",
        network_bound: float | None = None,
    ):  # fmt: skip
        one_of("model.structure", structure, STRUCTURES)
        self.structure, self.noise, self.frozen = structure, noise, frozen
        self.key_projection, self.value_projection = key_projection, value_projection
        self.key_network, self.value_network = key_network, value_network
        self.activation, self.network_bound = activation, network_bound
        self.dimension, self.outputs = self.key_projection.shape[0], self.value_projection.shape[0]

    @property
    def width(self) -> int:
        """Dimension of one prefix (tied structures)."""
        maps = self.key_network if self.key_network is not None else self.key_projection
        return maps.shape[1]

    def parameters(self):
        bias = {"bias": Parameter((), bound="bias_bound", exponents=None)}
        if self.structure == "independent":
            d_key, d_value = self.key_projection.shape[1], self.value_projection.shape[1]
            # D_{1,r} of the paper, r = 1 here; a loss may ask for another r.
            return bias | {
                "key": Parameter((d_key,), exponents=(1.0,)),
                "value": Parameter((d_value,), exponents=(1.0,)),
            }
        networks = {
            name: Parameter(value.shape, bound=self.network_bound, exponents=None, shared=True, known=value)
            for name, value in (("W1", self.key_network), ("W2", self.value_network))
            if self.network_bound is not None and value is not None
        }
        # D_2 and D_3: theory_notes/prefix-*.md. Of a network the blocks are W1 p and W2 p.
        blocks = (1.0, 2.0) if self.structure == "shared-linear" else None
        return bias | {"prefix": Parameter((self.width,), exponents=blocks)} | networks

    @property
    def exponents(self):
        return super().exponents or {"W1p": (1.0, 2.0), "W2p": (1.0, 2.0)}

    @property
    def gauge(self):
        # Without a frozen expert the softmax cannot see a common translation of the biases, nor of the
        # keys where the values do not move with them.
        return None if self.frozen.count else ("key" if self.structure == "independent" else "")

    def _networks(self, params):
        return (jnp.asarray(v) for v in (params.get("W1", self.key_network), params.get("W2", self.value_network)))

    def key_value(self, params):
        """Prefix keys (L, d_key) and values (L, d_value)."""
        if self.structure == "independent":
            return params["key"], params["value"]
        prefix = params["prefix"]
        if self.structure == "shared-linear":
            return prefix, prefix
        W1, W2 = self._networks(params)
        act = ACTIVATIONS[self.activation]
        return act(prefix @ W1.T), act(prefix @ W2.T)

    def log_shares(self, params, x):
        return self.key_value(params)[0] @ (self.key_projection.T @ x) + params["bias"]

    def mean(self, params, x):
        logit = self.log_shares(params, x)
        output = self.key_value(params)[1] @ self.value_projection.T
        if self.frozen.count:
            logit = jnp.concatenate([self.frozen.logits(x), logit])
            output = jnp.concatenate([self.frozen.outputs(x), output])
        return jax.nn.softmax(logit) @ output

    def measure(self, params):
        if self.structure != "shared-network":
            return super().measure(params)
        W1, W2 = self._networks(params)
        return MixingMeasure(params["bias"], {"W1p": params["prefix"] @ W1.T, "W2p": params["prefix"] @ W2.T})

    def split(self, params: Parameters, atom: int, step: float) -> Parameters | None:
        """Same key twice, values ``step`` apart about the old one, half the mass each: f_G does not move."""
        if self.structure != "independent":
            return None
        found = {k: np.concatenate([v, v[atom : atom + 1]]) for k, v in params.items()}
        found["bias"][[atom, -1]] -= np.log(2.0)
        found["value"][[atom, -1], 0] += np.array([step, -step]) / 2
        return found


STRUCTURES = ("independent", "shared-linear", "shared-network")
TABLE: dict = {
    "family": None, "structure": None, "noise": None,
    "frozen": {"logit_matrix": None, "logit_bias": None, "output_matrix": None, "functions": None, "tokens": None},
    "projection": {"key": None, "value": None},
    "network": {"key": None, "value": None, "activation": None, "learned": None, "bound": None},
}  # fmt: skip
REQUIRED = ("structure", "noise", "projection", "projection.key", "projection.value")


def build(table: dict, truth: dict) -> PrefixModel:
    """The model of a study's ``[model]`` table (keys already checked by ``study``). Raises ``InputError``."""
    structure = one_of("model.structure", table["structure"], STRUCTURES)
    noise = number("model.noise", table["noise"])
    if noise <= 0:
        raise InputError(f"model.noise = {noise}: a standard deviation must be positive")
    projection = table["projection"]
    B = array("model.projection.key", projection["key"], (None, None))
    C = array("model.projection.value", projection["value"], (None, None))
    if structure == "shared-linear" and B.shape[1] != C.shape[1]:
        raise InputError(
            f"model.projection.key has {B.shape[1]} columns and model.projection.value {C.shape[1]}: "
            "a shared-linear prefix is key and value at once, give both as many columns"
        )
    network = table.get("network")
    if network is not None and not {"key", "value"} <= set(network):
        raise InputError("model.network needs key and value: add the two matrices")
    if (structure == "shared-network") != (network is not None):
        raise InputError(
            f"model.structure = {structure!r} {'needs' if network is None else 'takes no'} [model.network]: "
            f"{'add that table with key and value' if network is None else 'leave that table out'}"
        )
    frozen = table.get("frozen", {})
    tokens = whole("model.frozen.tokens", frozen.get("tokens", 0))
    # What x brings along for its tokens is no part of the query that the learned gates look at.
    B = np.vstack([B, np.zeros((tokens * (1 + C.shape[0]), B.shape[1]))])
    extra: dict[str, Any] = {}
    if network is not None:
        W1 = array("model.network.key", network["key"], (B.shape[1], None))
        extra["key_network"] = W1
        extra["value_network"] = array("model.network.value", network["value"], (C.shape[1], W1.shape[1]))
        extra["activation"] = one_of("model.network.activation", network.get("activation", "tanh"), ACTIVATIONS)
        if flag("model.network.learned", network.get("learned", False)):
            extra["network_bound"] = number("model.network.bound", network.get("bound", 3.0), 0.0)
    return PrefixModel(structure, noise, _build_frozen(frozen, B.shape[0], C.shape[0]), B, C, **extra)


def _build_frozen(table: dict, dimension: int, outputs: int) -> Frozen:
    given = {"functions", "tokens"} & set(table)
    if given and len(table) > 1:
        raise InputError(
            f"model.frozen has {' and '.join(sorted(table))}: its experts are given in one way, keep {min(given)} alone"
        )
    if "tokens" in table:
        return Frozen.tokens(table["tokens"], outputs)
    if "functions" in table:
        found = table["functions"]  # loaded already (``loading.resolved``)
        if not isinstance(found, Frozen):
            raise InputError(f"model.frozen.functions = {found!r} is no moe_sim.Frozen: name one as 'file.py:name'")
        return found
    bias = array("model.frozen.logit_bias", table.get("logit_bias", []), (None,))
    count = len(bias)
    return Frozen.quadratic(
        array("model.frozen.logit_matrix", table.get("logit_matrix", []), (count, dimension, dimension)),
        bias,
        array("model.frozen.output_matrix", table.get("output_matrix", []), (count, outputs, dimension)),
    )
