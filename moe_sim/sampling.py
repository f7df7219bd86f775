"""Samples of size n: stored weighted data, exact sufficient statistics, or i.i.d. data drawn as they are read.

Every sample is read chunk by chunk: ``sample.chunks`` chunks, ``sample.chunk(i)`` = x (B, d), y (B, outputs),
weight (B,), where the weight of a row is the number of observations it stands for (0 for padding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from moe_sim.errors import InputError
from moe_sim.laws import Law
from moe_sim.models.base import RegressionModel

CHUNK = 2048  # rows a streamed chunk; it changes last bits of sums, so it is fixed


@dataclass(frozen=True)
class StoredSample:
    """Weighted rows in memory: x (C, B, d), y (C, B, outputs), weight (C, B)."""

    x: jax.Array
    y: jax.Array
    weight: jax.Array

    @property
    def chunks(self):
        return self.weight.shape[-2]

    def chunk(self, i):
        return self.x[i], self.y[i], self.weight[i]


@dataclass(frozen=True)
class StreamedSample:
    """``size`` i.i.d. observations that are drawn afresh, the same ones, each time a chunk is read.

    Memory does not grow with n; ``size`` may be traced, so one compilation serves all sizes.
    """

    key: jax.Array
    size: jax.Array
    draw: Callable

    @property
    def chunks(self):
        return (self.size + CHUNK - 1) // CHUNK

    def chunk(self, i):
        x, y = self.draw(jax.random.fold_in(self.key, i))
        return x, y, (i * CHUNK + jnp.arange(CHUNK) < self.size).astype(float)


register_dataclass(StoredSample, ["x", "y", "weight"], [])
register_dataclass(StreamedSample, ["key", "size"], ["draw"])


def stored(x, y, weight=None) -> StoredSample:
    """Rows x (n, d), y (n, outputs), weight (n,) as a sample, padded to whole chunks.

    One chunk holds everything up to CHUNK rows, so that small data cost no loop.
    """
    rows = len(x)
    chunks = max(1, -(-rows // CHUNK))
    size = rows if chunks == 1 else CHUNK
    weight = np.ones(rows) if weight is None else np.asarray(weight, float)

    def fold(values):
        padded = np.concatenate([values, np.zeros((chunks * size - rows, *values.shape[1:]))])
        return jnp.asarray(padded.reshape(chunks, size, *values.shape[1:]))

    return StoredSample(fold(np.asarray(x, float)), fold(np.asarray(y, float)), fold(weight))


def exact_samples(model: RegressionModel, truth, law: Law, n: int, seeds: list[np.random.SeedSequence]):
    """One exact sample of size n a seed, stacked: x (R, 1, M, d), y (R, 1, M, outputs), weight (R, 1, M).

    For a finite law and normal noise the counts N_m ~ Multinomial(n, mu) and the means of y in each point,
    N(f(x_m), noise^2 / N_m), are sufficient for least squares, so these few numbers are a sample of size n,
    not an approximation to one (theory_notes/sampling.md). n up to 1e12 and beyond (int64 counts).
    """
    if not law.finite:
        raise InputError(
            'sample.mode = "exact" needs a law on finitely many points: pass law.name = "grid", law.finite = true '
            '(the law then sits on its quadrature nodes), or sample.mode = "iid"'
        )
    points, mass = law.nodes()
    mean = np.asarray(jax.vmap(lambda x: model.mean(truth, x))(jnp.asarray(points)))
    rows = len(mass)
    y = np.empty((len(seeds), rows, model.outputs))
    count = np.empty((len(seeds), rows))
    for r, seed in enumerate(seeds):
        rng = np.random.Generator(np.random.Philox(seed))
        count[r] = rng.multinomial(n, mass)
        # An empty point has weight 0; its y is set to a finite number so that 0 * y stays 0.
        y[r] = mean + rng.normal(size=mean.shape) * (model.noise / np.sqrt(np.maximum(count[r], 1.0)))[:, None]
    x = np.broadcast_to(points, (len(seeds), *points.shape))
    return StoredSample(*(jnp.asarray(v[:, None]) for v in (x, y, count)))


def streamed_samples(n: int, seeds: list[np.random.SeedSequence], draw: Callable) -> StreamedSample:
    """One streamed i.i.d. sample of size n a seed, stacked along the first axis; ``draw`` from ``streamer``."""
    return StreamedSample(
        jnp.stack([jax.random.key(int(s.generate_state(1, np.uint64)[0] >> np.uint64(1))) for s in seeds]),
        jnp.full(len(seeds), n, dtype=jnp.int64),
        draw,
    )


def streamer(model: RegressionModel, truth, law: Law) -> Callable:
    """``draw(key) -> x, y`` of one chunk. Make it once a study: jitted code is keyed by its identity."""

    def draw(key):
        key_x, key_y = jax.random.split(key)
        x = law.draw(key_x, CHUNK)
        y = jax.vmap(lambda one: model.mean(truth, one))(x)
        return x, y + model.noise * jax.random.normal(key_y, y.shape)

    return draw


def draw(model: RegressionModel, truth, law: Law, n: int, seed=0, mode: str = "exact"):
    """One sample of size n. mode: ``exact`` (sufficient statistics) or ``iid`` (streamed). See the module."""
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    if mode == "exact":
        samples = exact_samples(model, truth, law, n, [seed])
    else:
        samples = streamed_samples(n, [seed], streamer(model, truth, law))
    return jax.tree.map(lambda leaf: leaf[0], samples)
