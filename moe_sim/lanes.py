"""Running one jitted function over many lanes (replicates x starts), on all devices, with one compilation.

On a CPU the lanes of a device run one after another (``lax.map``): a vmapped loop computes finished lanes until
the slowest ends, and lost to this by 5 to 6 times when measured. On a GPU they run together (``vmap``), in
rounds of capped length after which the unfinished lanes are gathered (see ``fitting``).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

BLOCK = 256  # lanes a call: short enough for Ctrl-C, long enough to even out the devices


def batching() -> str:
    """``map`` on a CPU, ``vmap`` elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


class LaneFunction:
    """``one(shared, lane) -> pytree`` over lanes: call it with ``(shared, lanes)``.

    ``lanes`` is a pytree of arrays with a common first axis, of any length; it is cut in blocks of one fixed
    shape, the last one padded with lanes that are skipped. Results come back as numpy arrays.
    """

    def __init__(self, one: Callable, how: str | None = None):
        how = how or batching()
        devices = jax.devices()
        # Neighbouring lanes go to different devices, so that a block that is not full keeps all of them busy.
        self._order = np.arange(BLOCK - BLOCK % len(devices)).reshape(-1, len(devices)).T.ravel()

        def guarded(shared, lane):
            active, content = lane
            shape = jax.eval_shape(one, shared, content)
            empty = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)  # noqa: E731
            return jax.lax.cond(active, lambda: one(shared, content), empty)

        def shard(shared, lanes):
            if how == "map":
                return jax.lax.map(lambda lane: guarded(shared, lane), lanes)
            return jax.vmap(lambda lane: one(shared, lane))(lanes[1])

        mesh, split = Mesh(np.asarray(devices), ("lane",)), PartitionSpec("lane")
        spread = jax.shard_map(shard, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)
        self._call = jax.jit(spread)

    def __call__(self, shared, lanes):
        count = len(jax.tree.leaves(lanes)[0])
        firsts = range(0, count, len(self._order))
        found = [self._block(shared, lanes, first, count) for first in firsts]
        parts = [jax.tree.map(lambda v, f=first: v[: count - f], out) for first, out in zip(firsts, found, strict=True)]
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    def compile(self, shared, lanes) -> None:
        """Compile for lanes of this kind, without running any."""
        self._block(shared, lanes, 0, 0)

    def _block(self, shared, lanes, first: int, count: int):
        index = first + self._order
        block = jax.tree.map(lambda v: v[np.minimum(index, len(v) - 1)], lanes)
        found = jax.device_get(self._call(shared, (jnp.asarray(index < count), block)))
        back = np.argsort(self._order)
        return jax.tree.map(lambda v: v[back], found)


def compile_together(jobs: list[tuple[LaneFunction, Any, Any]]) -> None:
    """Compile ``(function, shared, lanes)`` jobs side by side: each compilation keeps one core busy."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: job[0].compile(job[1], job[2]), jobs))
