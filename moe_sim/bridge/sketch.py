"""A transformer in first order of what prefixes change in heads: the same parameters, far cheaper.

With prefixes of masses e^(b_l) at places z_l, head c at row t gives

    (D o + sum_l w_l v_l) / (D + sum_l w_l),    w_l = exp(b_l + q k_l),

o without them, D the sum of the weights of the tokens, k_l and v_l linear in what z_l is for the key and for the value.
What comes of that above is taken as linear about some prefixes: none at first (so that nothing of a truth is in it),
later those that a fit has come to (``around``). A prompt is seen by the layers above too, as what the ones below make
of it: there k_l and v_l are polynomials in z, fitted to those of prompts of no mass; and rows are tokens and the
prompts that it is about. The derivative in the prefixes that it is about is exact, but for those polynomials.

Outputs are reduced to the directions that random prefixes move them in. Fits are led by a sketch and end on the
network itself (``fitting.sketches``).
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.bridge.network import Layer, log_mass, mixed
from moe_sim.bridge.transformer import Transformer
from moe_sim.models.base import Parameters

DEGREE = 8  # of polynomials
RADIUS = 4.0  # of the places that they are fitted on, and stay at beyond
CLOSE, WEIGHT = 0.1, 100.0  # standard deviation of further places about those that a sketch is about; their weight
RANK = 8  # directions of a head's values that are told apart, where they are not linear in z
PLACES = 256  # random ones
KEPT = 1e-3  # singular values of outputs, to the largest


class LayerSketch(NamedTuple):
    """How rows of a layer see prefixes. tokens (T, heads): log D. score (T, heads, K): q k by features of z. value
    (heads, r, K): v in r directions. slopes (outputs, T heads (1 + r)): derivatives of the output in shares of prefixes
    and in their means of v."""

    tokens: jax.Array
    score: jax.Array
    value: jax.Array
    slopes: jax.Array


class Sketch(Transformer):
    """See the module. exact: the network whose sketch it is.

    parts: ``LayerSketch`` of each layer that sees prefixes, with first axis n, the inputs. constant (n, outputs): what
    the output is without what they say. plain (n, o), basis (n, o, outputs): see ``span``.
    """

    def __init__(self, exact: Transformer):
        self.arm, self.planted, self.noise, self.directions = exact.arm, exact.planted, exact.noise, exact.directions
        declared = exact.parameters()
        none = {name: np.zeros((0, *p.shape)) for name, p in declared.items()}
        rng = np.random.default_rng(0)
        drawn = {
            name: rng.normal(size=(PLACES, 3, *p.shape)) * (1.5 if p.shape else 1.0) for name, p in declared.items()
        }
        inputs = exact.states, exact.real
        plain = jax.jit(lambda of, inputs: jax.lax.map(lambda one: of.output(none, *one), inputs))
        moved = jax.jit(lambda of, one: jax.lax.map(lambda params: of.output(params, *one), drawn))
        self.plain = np.asarray(plain(exact, inputs))
        every = [np.asarray(moved(exact, one)) - at for *one, at in zip(*inputs, self.plain, strict=True)]
        _, spread, ways = zip(*(np.linalg.svd(part, full_matrices=False) for part in every), strict=True)
        rank = max(int(np.sum(s > KEPT * s[0])) for s in spread)
        self.basis = np.stack([w[:rank].T for w in ways])
        self.outputs = rank
        self.constant, self.parts = jax.jit(lambda of, exact: of._about(exact, none))(self, exact)

    def mean(self, params, x):
        index = x[0].astype(int)
        constant, parts = jax.tree.map(lambda v: jnp.asarray(v)[index], (self.constant, self.parts))
        return constant + sum(part.slopes @ self._moved(params, part, where) for where, part in enumerate(parts))

    def span(self, x):
        index = x[0].astype(int)
        return jnp.asarray(self.plain)[index], jnp.asarray(self.basis)[index]

    def around(self, exact, params):
        found = copy.copy(self)
        found.constant, found.parts = self._about(exact, params)
        return found

    def _about(self, exact: Transformer, params: Parameters):
        """``constant`` and ``parts`` of a sketch about these prefixes."""

        def of_input(states, real, plain, basis):
            value, parts = _linearised(exact, params, states, real, basis)
            about = [part.slopes @ self._moved(params, part, where) for where, part in enumerate(parts)]
            return basis.T @ (value - plain) - sum(about), parts

        return jax.lax.map(lambda one: of_input(*one), (exact.states, exact.real, self.plain, self.basis))

    def _moved(self, params: Parameters, part: LayerSketch, where: int):
        """(T heads (1 + r),) of one input: shares of prefixes in the heads of a layer, and their means of v."""
        mass, key, of = self.places(params, 0 if self.arm == "prompt" else where)
        pull = jnp.einsum("thk,lk->thl", part.score, features(key, _degree(self))) + mass
        share = jax.nn.softmax(jnp.concatenate([part.tokens[:, :, None], pull], axis=2), axis=2)[:, :, 1:]
        means = jnp.einsum("thl,hrk,lk->thr", share, part.value, features(of, _degree(self)))
        return jnp.concatenate([jnp.sum(share, axis=2, keepdims=True), means], axis=2).ravel()

    sketch = None


def features(z, degree: int):
    """Products of Chebyshev polynomials of z / ``RADIUS`` (L, r) up to a total degree, (L, K)."""
    u = z / RADIUS if degree == 1 else jnp.clip(z / RADIUS, -1.0, 1.0)
    by_degree = [jnp.ones_like(u), u]
    for _ in range(degree - 1):
        by_degree.append(2 * u * by_degree[-1] - by_degree[-2])
    every = jnp.stack(by_degree)  # (degree + 1, L, r)
    powers = np.array([p for p in itertools.product(range(degree + 1), repeat=z.shape[-1]) if sum(p) <= degree])
    return jnp.prod(jnp.stack([every[p, :, j] for j, p in enumerate(powers.T)]), axis=0).T


def _linearised(exact: Transformer, params: Parameters, states, real, basis):
    """The output (o,) of one input, and ``LayerSketch`` of every layer that sees prefixes, about these ones."""
    prompt = exact.arm == "prompt"
    layers = [
        (number, layer) for number, layer in enumerate(exact.layers, exact.planted[0])
        if prompt or number in exact.planted
    ]  # fmt: skip
    rows = len(states) + (len(params["bias"]) if prompt else 0)
    size = exact.layers[0].maps["value"][0].shape[1]
    still = {number: jnp.zeros((rows, layer.heads, size // layer.heads)) for number, layer in layers}
    value, pull, entering = jax.vjp(lambda pushes: exact.run(params, states, real, pushes), still, has_aux=True)
    (slopes,) = jax.vmap(pull)(basis.T)
    r = exact.directions
    z = _places(exact.places(params, 0)[1]) if prompt else jnp.concatenate([jnp.zeros((1, r)), jnp.eye(r)])
    heavy = jnp.where(jnp.arange(len(z)) < PLACES, 1.0, WEIGHT)
    fit = _least_squares(features(z, _degree(exact)), heavy)
    tests, parts = exact.state(z, 0) if prompt else None, []
    masses = log_mass(real)
    for number, layer in layers:
        h = entering[number]
        of = exact.state(z, exact.planted.index(number)) if tests is None else layer.entering(tests)
        found = layer.keys(of), layer.values(of)
        parts.append(_layer_sketch(layer, h, masses, *found, fit, heavy, slopes[number], RANK if prompt else r))
        if tests is not None:
            every = jnp.concatenate([masses, exact.places(params, 0)[0]])
            _, keys, values = layer.projected(h)
            queries, _, _ = layer.projected(tests)
            tests = layer.finished(tests, mixed(layer.scores(queries, keys) + every, values))
    return value, parts


def _layer_sketch(layer: Layer, h, masses, keys, values, fit, heavy, slopes, rank: int) -> LayerSketch:
    """``LayerSketch`` of one layer and input, of rows h of which the first are tokens; keys and values (N, heads, h) of
    prefixes of weights ``heavy`` (N,), fit (K, N) to features of theirs, slopes (outputs, rows, heads, h) in what heads
    give."""
    tokens = len(masses)
    queries, *of_tokens = layer.projected(h)
    bias = layer.biases(masses) if len(h) == tokens else masses
    logits = layer.scores(queries, of_tokens[0][:tokens]) + bias
    plain = mixed(logits, of_tokens[1][:tokens])
    middle = jnp.mean(values, axis=0)
    spread = heavy[:, None, None] * (values - middle)
    _, ways = jnp.linalg.eigh(jnp.einsum("nhc,nhe->hce", spread, spread))
    ways = ways[:, :, -rank:].swapaxes(1, 2)  # (heads, rank, h)
    to = jnp.concatenate([(middle - plain)[:, :, None], jnp.broadcast_to(ways, (len(h), *ways.shape))], axis=2)
    moved = jnp.einsum("othe,thre->othr", slopes, to)
    return LayerSketch(
        jax.nn.logsumexp(logits, axis=2).T,
        layer.scale * jnp.einsum("kn,the,nhe->thk", fit, queries, keys),
        jnp.einsum("kn,nhe,hre->hrk", fit, values - middle, ways),
        moved.reshape(len(moved), -1),
    )


def _least_squares(found, heavy):
    """What labels (N,) are multiplied by for coefficients (K,) of columns (N, K), rows of weights ``heavy`` (N,)."""
    rows = heavy[:, None] * found
    gram = rows.T @ rows
    ridge = 1e-12 * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
    return jnp.linalg.solve(gram + ridge, (rows * heavy[:, None]).T)


def _places(z):
    """Where polynomials are fitted, (N, r): anywhere, and about those of prompts z (L, r)."""
    rng = np.random.default_rng(1)
    close = CLOSE * rng.normal(size=(1, PLACES // 4, z.shape[1]))
    anywhere = rng.uniform(-RADIUS, RADIUS, (PLACES, z.shape[1]))
    return jnp.concatenate([anywhere, (z[:, None] + close).reshape(-1, z.shape[1])])


def _degree(model: Transformer) -> int:
    return DEGREE if model.arm == "prompt" else 1
