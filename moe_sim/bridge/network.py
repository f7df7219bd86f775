"""Frozen transformers in JAX: the layers from where prefixes are planted up to the output, on fixed inputs.

A layer is what transformers computes in evaluation mode, written for one input at a time: with N a norm, A attention
of all heads and its output projection, F the feed-forward network,

    before (ViT, DINOv2, GPT-2):  h <- h + s1 A(N1 h),  h <- h + s2 F(N2 h);
    after (BERT):                 h <- N1(h + A h),     h <- N2(h + F h),

s1, s2 the layer scale where there is one. Keys that a prefix adds, and tokens that a prompt adds, carry a mass e^b:
b is added to their logits in every head. theory_notes/bridge.md.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.models.part import Part

Maps = dict[str, Any]

ACTIVATIONS = {
    "gelu": lambda z: jax.nn.gelu(z, approximate=False), "gelu_new": lambda z: jax.nn.gelu(z, approximate=True),
    "relu": lambda z: jax.nn.relu(z),
}  # fmt: skip


UNSEEN = -1e30  # log-mass of what is not seen: finite, so that a row that sees nothing is a number


class Layer(Part):
    """One frozen layer. maps: names to (weight, bias) of ``query, key, value, out`` (m, m), ``up``, ``down``, and of
    the norms ``first``, ``second`` (m,) both; scales: s1, s2 (m,) each.

    before: whether norms come before attention and feed-forward (see the module). scale: of scores.
    """

    def __init__(
        self, maps: Maps, scales: tuple[Any, Any], heads: int, scale: float, eps: float, activation: str, before: bool,
        causal: bool,
    ):  # fmt: skip
        self.maps, self.scales, self.heads = maps, scales, heads
        self.scale, self.eps, self.activation, self.before, self.causal = scale, eps, activation, before, causal

    def keys(self, states):
        """Keys (..., heads, h) of states that enter the projections (..., m)."""
        return self._by_head("key", states)

    def values(self, states):
        """Values (..., heads, h) of states that enter the projections (..., m)."""
        return self._by_head("value", states)

    def __call__(self, h, log_mass, key=None, value=None, log_mass_of_prefixes=None, *, push=0.0):
        """States (T, m) after the layer. log_mass (T,): of tokens as keys, ``UNSEEN`` for padding; key, value
        (L, heads, h) and log_mass_of_prefixes (L,) of prefixes, where there are any; push: added to what heads give
        (T, heads, h)."""
        queries, keys, values = self.projected(h)
        bias = self.biases(log_mass)
        if key is not None:
            keys, values = jnp.concatenate([keys, key]), jnp.concatenate([values, value])
            more = jnp.broadcast_to(log_mass_of_prefixes, (len(h), len(key)))
            bias = jnp.concatenate([bias, more], axis=1)
        return self.finished(h, mixed(self.scores(queries, keys) + bias, values) + push)

    def entering(self, h):
        """What of states h (T, m) enters the projections."""
        return self.norm("first", h) if self.before else h

    def projected(self, h):
        """Queries, keys and values (T, heads, h) of states (T, m)."""
        states = self.entering(h)
        return tuple(self._by_head(name, states) for name in ("query", "key", "value"))

    def scores(self, queries, keys):
        """(heads, I, J) of queries (I, heads, h) and keys (J, heads, h)."""
        return self.scale * jnp.einsum("ihc,jhc->hij", queries, keys)

    def biases(self, log_mass):
        """What is added to scores of tokens as keys, (T, T): their log-masses, ``UNSEEN`` where they are not seen."""
        bias = jnp.broadcast_to(log_mass, (len(log_mass), len(log_mass)))
        return jnp.where(np.tri(len(log_mass), dtype=bool), bias, UNSEEN) if self.causal else bias

    def finished(self, h, outputs):
        """States (T, m) after the layer, of states h before it and outputs (T, heads, h) of its heads."""
        one, two = self.scales
        h = h + one * self._apply("out", outputs.reshape(len(h), -1))
        h = h if self.before else self.norm("first", h)
        h = h + two * self.feed_forward(self.norm("second", h) if self.before else h)
        return h if self.before else self.norm("second", h)

    def feed_forward(self, states):
        return self._apply("down", ACTIVATIONS[self.activation](self._apply("up", states)))

    def norm(self, name, h):
        """A layer norm over the last axis."""
        weight, bias = self.maps[name]
        return normed(h, weight, bias, self.eps)

    def _apply(self, name, states):
        weight, bias = self.maps[name]
        return states @ weight + bias

    def _by_head(self, name, states):
        made = self._apply(name, states)
        return made.reshape(*made.shape[:-1], self.heads, made.shape[-1] // self.heads)


def log_mass(real):
    """Of tokens as keys: 0, and ``UNSEEN`` for padding."""
    return jnp.where(real, 0.0, UNSEEN)


def mixed(logits, values):
    """Outputs (I, heads, h) of logits (heads, I, J) and values (J, heads, h)."""
    return jnp.einsum("hij,jhc->ihc", jax.nn.softmax(logits, axis=-1), values)


def normed(h, weight, bias, eps):
    """A layer norm over the last axis."""
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias


class Pooling(Part):
    """What is seen of the last states (T, m): their mean over the tokens ``counted`` (BERT, GPT-2), or, ``vision``, the
    first one beside the mean of the others. norm: weight and bias of a last layer norm, or None."""

    def __init__(self, vision: bool, norm: tuple[Any, Any] | None, eps: float):
        self.vision, self.norm, self.eps = vision, norm, eps

    def __call__(self, h, counted):
        h = h if self.norm is None else normed(h, *self.norm, self.eps)
        counted = counted.at[0].set(False) if self.vision else counted
        mean = jnp.where(counted, 1.0, 0.0) @ h / jnp.sum(counted)
        return jnp.concatenate([h[0], mean]) if self.vision else mean
