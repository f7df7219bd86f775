"""A transformer in first order of what prefixes change in the heads of their layers: the same parameters, far cheaper.

With places y_l and masses e^(b_l) of the prefixes of a layer, head c at token t turns from o into

    (D o + sum_l w_l (v + V y_l)) / (D + sum_l w_l),    w_l = exp(b_l + q (k + K y_l)),

D the sum of the weights of the tokens. That is exact. What it does to the output is taken as linear, by derivatives at
no prefixes (so that nothing of a truth is in it), of the shares of the prefixes and of the means of their places: G
(outputs, T heads (1 + r)) an input. Layers add up. Fits are led by it and end on the network itself
(``fitting.sketches``).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.bridge.network import log_mass, mixed
from moe_sim.bridge.transformer import Transformer


class Sketch(Transformer):
    """See the module. exact: the network whose sketch it is."""

    def __init__(self, exact: Transformer):
        self.arm, self.planted, self.noise, self.directions = exact.arm, exact.planted, exact.noise, exact.directions
        self.outputs = exact.outputs
        build = jax.jit(lambda one, states, real: jax.lax.map(lambda at: _of_input(one, *at), (states, real)))
        plain, parts = build(exact, exact.states, exact.real)
        self.plain = np.asarray(plain)
        self.parts = [tuple(np.asarray(v) for v in part) for part in parts]

    def mean(self, params, x):
        index = x[0].astype(int)
        found = jnp.asarray(self.plain)[index]
        for where in range(len(self.planted)):
            tokens, score, slope, seen = (jnp.asarray(v)[index] for v in self.parts[where])
            mass, key, value = self.places(params, where)
            logits = jnp.concatenate([tokens[:, :, None], score[:, :, None] + slope @ key.T + mass], axis=2)
            share = jax.nn.softmax(logits, axis=2)[:, :, 1:]  # (T, heads, L)
            moved = jnp.concatenate([jnp.sum(share, axis=2, keepdims=True), share @ value], axis=2)
            found = found + seen @ moved.ravel()
        return found

    sketch = None


def _of_input(exact: Transformer, states, real):
    """The output (outputs,) without prefixes, and of each planted layer log D (T, heads), q k (T, heads), q K (T,
    heads, r) and G (outputs, T heads (1 + r))."""
    masses = log_mass(real)
    r, parts = exact.directions, []

    def above(h, number):
        for layer in exact.layers[number - exact.planted[0] :]:
            h = layer(h, masses)
        return exact.pooling(h, real)

    h = states
    for number, layer in enumerate(exact.layers, exact.planted[0]):
        if number not in exact.planted:
            h = layer(h, masses)
            continue
        where = exact.planted.index(number)
        queries, keys, values = layer.projected(h)
        logits = layer.scores(queries, keys) + layer.biases(masses)
        plain = mixed(logits, values)  # (T, heads, h)
        places = jnp.concatenate([jnp.zeros((1, r)), jnp.eye(r)])
        of = exact.state(places, where)
        (k, *K), (v, *V) = layer.keys(of), layer.values(of)
        pull = jnp.stack(
            [jnp.broadcast_to(v, plain.shape) - plain] + [jnp.broadcast_to(one - v, plain.shape) for one in V]
        )

        def output(moved, h=h, layer=layer, plain=plain, pull=pull, number=number):
            return above(layer.finished(h, plain + jnp.einsum("thc,cthe->the", moved, pull)), number + 1)

        seen = jax.jacfwd(output)(jnp.zeros((*plain.shape[:2], 1 + r)))
        parts.append((
            jax.nn.logsumexp(logits, axis=2).T, layer.scale * jnp.einsum("the,he->th", queries, k),
            jnp.stack([layer.scale * jnp.einsum("the,he->th", queries, one - k) for one in K], axis=2),
            seen.reshape(len(seen), -1),
        ))  # fmt: skip
        h = layer(h, masses)
    return exact.pooling(h, real), parts
