"""Samples of size n: stored weighted data, exact sufficient statistics, or i.i.d. data drawn as they are read.

Every sample is read chunk by chunk: ``sample.chunks`` chunks, ``sample.chunk(i)`` = x (B, d), y (B, outputs),
weight (B,), where the weight of a row is the number of observations it stands for (0 for padding), and of counts on
cells the log-density (B,) of the truth, to which objectives are relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

ROWS_PER_CHUNK = 1024  # of a streamed sample; it changes last bits of sums, so it is fixed
FEWEST_ROWS = 128  # of a chunk of given data: fewer cost no less
ROWS_COUNTED = 10_000  # rows that counts are scaled down to where starts are made of them: formulas are for samples
ROWS_KEPT = 2**22  # of one sample that are kept in memory at most; longer ones are drawn afresh at every pass


@dataclass(frozen=True)
class StoredSample:
    """Weighted rows in memory: x (C, B, d), y (C, B, outputs), weight (C, B), arrays of NumPy or JAX."""

    x: Any
    y: Any
    weight: Any

    @property
    def chunks(self):
        return self.weight.shape[-2]

    def chunk(self, i):
        return self.x[i], self.y[i], self.weight[i]


@dataclass(frozen=True)
class StreamedSample:
    """``size`` i.i.d. observations that are drawn afresh, the same ones, each time a chunk is read.

    Memory does not grow with n; ``size`` may be traced, so one compilation serves all sizes. Row r of chunk i is
    observation r * chunks + i, so that every chunk is spread over the sample: the first is a fair subsample,
    also of a fixed design.
    """

    key: jax.Array
    size: jax.Array
    source: Any  # ``draw.Source``; all samples of a batch have the same

    @property
    def chunks(self):
        return (self.size + ROWS_PER_CHUNK - 1) // ROWS_PER_CHUNK

    def chunk(self, i):
        index = jnp.arange(ROWS_PER_CHUNK) * self.chunks + i
        x, y = self.source(jax.random.fold_in(self.key, i), index, self.size)
        return x, y, (index < self.size).astype(float)


@dataclass(frozen=True)
class KeptSample:
    """A streamed sample drawn once: the arrays of ``StoredSample``, of which the first ``chunks`` chunks count."""

    x: jax.Array
    y: jax.Array
    weight: jax.Array
    chunks: jax.Array

    def chunk(self, i):
        return self.x[i], self.y[i], self.weight[i]


@dataclass(frozen=True)
class CountedSample:
    """``size`` observations as counts on cells: x (C, B, d), y (C, B, outputs), weight (C, B) the counts and reference
    (C, B) the log-density of the truth, of which the first ``chunks`` chunks count.

    Arrays of NumPy or JAX. Objectives are sums of weight (log p - reference), which is what a double holds of n log p.
    """

    x: Any
    y: Any
    weight: Any
    reference: Any
    chunks: Any
    size: Any

    def chunk(self, i):
        return self.x[i], self.y[i], self.weight[i], self.reference[i]

    def rows(self):
        """All of it as one chunk x, y, weight, the weights in proportion and no more than ``ROWS_COUNTED`` in all."""
        x, y, weight = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (self.x, self.y, self.weight))
        return x, y, weight * jnp.minimum(1.0, ROWS_COUNTED / self.size)


@dataclass(frozen=True)
class Subsample:
    """The first ``chunks`` chunks of a sample: a subsample."""

    whole: StoredSample | StreamedSample | KeptSample
    chunks: jax.Array

    def chunk(self, i):
        return self.whole.chunk(i)


register_dataclass(StoredSample, ["x", "y", "weight"], [])
register_dataclass(StreamedSample, ["key", "size", "source"], [])
register_dataclass(KeptSample, ["x", "y", "weight", "chunks"], [])
register_dataclass(CountedSample, ["x", "y", "weight", "reference", "chunks", "size"], [])
register_dataclass(Subsample, ["whole", "chunks"], [])


def one_chunk_holds(sample) -> bool:
    """Whether there is room for one chunk only, so that no loop over chunks is needed."""
    whole = sample.whole if isinstance(sample, Subsample) else sample
    return not isinstance(whole, StreamedSample) and whole.weight.shape[-2] == 1


def at(samples, index):
    """The samples ``index`` of a batch (leaves with a first axis): a batch again, or one sample for a number."""
    if isinstance(samples, Subsample):
        return Subsample(at(samples.whole, index), samples.chunks[index])
    if isinstance(samples, StreamedSample):
        return StreamedSample(samples.key[index], samples.size[index], samples.source)
    return jax.tree.map(lambda leaf: leaf[index], samples)


def batch_size(samples) -> int:
    """How many samples a batch has."""
    return len(samples.chunks if isinstance(samples, Subsample | StreamedSample) else jax.tree.leaves(samples)[0])


def first_rows(sample):
    """x, y and weight of the rows that starts are made of: the first chunk, or all cells."""
    return sample.rows() if isinstance(sample, CountedSample) else sample.chunk(0)


def empty(sample: StreamedSample | Subsample, capacity: int) -> KeptSample:
    """A buffer for ``keep``, of ``capacity`` chunks."""
    shapes = jax.eval_shape(lambda: sample.chunk(0))
    x, y, weight = (jnp.zeros((capacity, *s.shape), s.dtype) for s in shapes)
    return KeptSample(x, y, weight, jnp.zeros((), jnp.asarray(sample.chunks).dtype))


def keep(sample: StreamedSample | Subsample, buffer: KeptSample) -> KeptSample:
    """Draw the sample into the buffer, so that passes over it need not draw again."""

    def fill(i, arrays):
        return tuple(a.at[i].set(v) for a, v in zip(arrays, sample.chunk(i), strict=True))

    x, y, weight = jax.lax.fori_loop(0, sample.chunks, fill, (buffer.x, buffer.y, buffer.weight))
    return KeptSample(x, y, weight, jnp.asarray(sample.chunks))


def stored(x, y, weight=None) -> StoredSample:
    """Rows x (n, d), y (n, outputs), weight (n,) as a sample, padded to whole chunks.

    One chunk holds everything up to ROWS_PER_CHUNK rows, so that small data cost no loop.
    """
    chunks = max(1, -(-len(x) // ROWS_PER_CHUNK))
    weight = np.ones(len(x)) if weight is None else weight
    return StoredSample(*_chunked(chunks, len(x) if chunks == 1 else ROWS_PER_CHUNK, x, y, weight))


def kept(x, y, rows: int = ROWS_PER_CHUNK) -> KeptSample:
    """Rows x (n, d), y (n, outputs) of weight 1 in chunks of ``rows``, padded to a power of two of chunks: few shapes,
    few compilations."""
    chunks = -(-len(x) // rows)
    x, y, weight = _chunked(1 << (chunks - 1).bit_length(), rows, x, y, np.ones(len(x)))
    return KeptSample(x, y, weight, jnp.asarray(chunks))


def rows_of_chunk(count: int) -> int:
    """Rows of a chunk for so many observations: a power of two that holds them all, or ``ROWS_PER_CHUNK``."""
    return min(ROWS_PER_CHUNK, max(FEWEST_ROWS, 1 << (count - 1).bit_length()))


def _chunked(chunks: int, size: int, *columns) -> list[jax.Array]:
    """Each of the columns (n, ...), zeros after it, as (chunks, size, ...)."""
    found = []
    for values in columns:
        rows = np.asarray(values, float)
        padded = np.concatenate([rows, np.zeros((chunks * size - len(rows), *rows.shape[1:]))])
        found.append(jnp.asarray(padded.reshape(chunks, size, *rows.shape[1:])))
    return found
