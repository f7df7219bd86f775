"""Subsamples: which starts are worth following from one to the next, and how large those are."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from moe_sim.data.samples import Subsample, batch_size
from moe_sim.fitting.compiled import SAME_OPTIMUM

SELECT = 5.0  # log-likelihood units: starts so far behind the best on a subsample are not followed further
FACTOR = 8  # factor between the subsamples that a start is led through


def survivors(replicate, copies, value, spoilt, first) -> tuple[np.ndarray, np.ndarray]:
    """Lanes worth following, one for each optimum of a replicate, and how many starts each stands for.

    replicate, copies, value, spoilt: (L,) of lanes. A ``spoilt`` one is no measure for the others. It is followed
    all the same, since a larger sample may mend it, but after the ``first`` chunk, where there are many of them and a
    start costs little, only if there is no other.
    """
    value = np.where(np.isfinite(value), value, np.inf)
    followed = np.zeros(len(replicate), bool)
    for r in np.unique(replicate):
        group = np.flatnonzero(replicate == r)
        sound = group if spoilt[group].all() else group[~spoilt[group]]
        group = sound if first else group
        followed[group] = value[group] <= value[sound].min() + SELECT
    lanes = np.flatnonzero(followed)
    one, place = met(replicate[lanes], value[lanes], SAME_OPTIMUM)
    return lanes[one], np.bincount(place, copies[lanes]).astype(int)


def met(replicate, value, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Lanes (L,) of one replicate whose values lie ``within`` of the next lower have met: the best of those, as numbers
    of lanes by replicate and value, and for every lane (L,) its place among them."""
    value = np.where(np.isfinite(value), value, np.inf)
    order = np.lexsort((value, replicate))
    sorted_, owner = value[order], replicate[order]
    new = np.append(True, (owner[1:] != owner[:-1]) | (sorted_[1:] > sorted_[:-1] + within))
    place = np.empty(len(order), int)
    place[order] = np.cumsum(new) - 1
    return order[new], place


def levels(total: int) -> list[int]:
    """Chunks of the subsamples that starts are led through, the whole sample last."""
    found, chunks = [], FACTOR
    while 2 * chunks < total:
        found.append(chunks)
        chunks *= FACTOR
    return [*found, total]


def part_of(samples, chunks: int) -> Subsample:
    """The first chunks of each sample of a batch."""
    return Subsample(samples, jnp.full(batch_size(samples), chunks))
