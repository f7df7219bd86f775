"""Running one jitted function over many lanes (replicates x starts), on all devices, with one compilation.

On a CPU the lanes of a device run one after another (``lax.map``): a vmapped loop computes finished lanes until
the slowest ends, and lost to this by 5 to 6 times when measured. On a GPU they run together (``vmap``), in
rounds of capped length after which the unfinished lanes are gathered (see ``fitting``).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

BLOCK = 256  # lanes a call: short enough for Ctrl-C, long enough to even out the devices


def batching() -> str:
    """``map`` on a CPU, ``vmap`` elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


def lane_function(one: Callable, how: str | None = None) -> Callable:
    """Batch ``one(shared, lane) -> pytree`` over lanes: ``run(shared, lanes)``.

    ``lanes`` is a pytree of arrays with a common first axis, of any length; it is cut in blocks of one fixed
    shape, the last one padded with lanes that are skipped. Results come back as numpy arrays.
    """
    how = how or batching()
    devices = jax.devices()
    mesh = Mesh(np.asarray(devices), ("lane",))

    def guarded(shared, lane):
        active, content = lane
        shape = jax.eval_shape(one, shared, content)
        empty = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)  # noqa: E731
        return jax.lax.cond(active, lambda: one(shared, content), empty)

    def shard(shared, lanes):
        if how == "map":
            return jax.lax.map(lambda lane: guarded(shared, lane), lanes)
        return jax.vmap(lambda lane: one(shared, lane))(lanes[1])

    split = PartitionSpec("lane")
    call = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False))

    def run(shared, lanes):
        count = len(jax.tree.leaves(lanes)[0])
        size = BLOCK - BLOCK % len(devices)
        found = []
        for first in range(0, count, size):
            index = np.arange(first, first + size)
            block = jax.tree.map(lambda v: v[np.minimum(index, count - 1)], lanes)  # noqa: B023
            out = jax.device_get(call(shared, (jnp.asarray(index < count), block)))
            found.append(jax.tree.map(lambda v: v[: count - first], out))  # noqa: B023
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    return run
