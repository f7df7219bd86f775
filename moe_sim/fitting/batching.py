"""Running one jitted function over many lanes (replicates x starts), on all devices, with one compilation.

On a CPU the lanes of a device run one after another (``lax.map``): a vmapped loop computes finished lanes until
the slowest ends, and lost to this by 5 to 6 times when measured. On a GPU they run together (``vmap``), in
rounds of capped length after which the unfinished lanes are gathered (see ``multistart``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from moe_sim.data.samples import CHUNK, KEPT, Part, StreamedSample, empty, keep

BLOCK = 512  # lanes of a device in one call at most: the more, the evener devices are. One shape, whatever their number
PROMPT = 2.0  # seconds a call should take where lanes run one after another, so that Ctrl-C and progress stay prompt


def batching() -> str:
    """``map`` on a CPU, ``vmap`` elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


class LaneFunction:
    """``one(shared, lane) -> pytree`` over lanes: call it with ``(shared, lanes)``.

    ``lanes`` is a pytree of arrays with a common first axis, of any length; it is cut in blocks of one fixed
    shape, padded with lanes that are skipped: how many a block has depends on how long they take, what comes out of
    a lane does not. Results come back as numpy arrays.

    Where ``samples`` is set, ``shared`` is a batch of samples, the first entry of a lane the replicate, and ``one``
    gets the sample of that replicate. Where lanes run one after another, a streamed sample is drawn once for
    neighbouring lanes of one replicate and kept in memory (up to ``KEPT`` rows): memory is one sample a device.
    """

    def __init__(self, one: Callable, how: str | None = None, samples: bool = False):
        self._how = how or batching()
        self._one, self._samples = one, samples
        self._devices = jax.devices()
        self._share = BLOCK
        self._calls: dict[int, Callable] = {}
        self._pace = 0.0  # rows of all lanes in a second, as the last call went

    def _compiled(self, capacity: int) -> Callable:
        """The jitted call; capacity: chunks of a kept sample, 0 for none."""
        if capacity not in self._calls:
            shard = {"map": self._map, "vmap": self._vmap}[self._how]
            mesh, split = Mesh(np.asarray(self._devices), ("lane",)), PartitionSpec("lane")
            spread = jax.shard_map(
                lambda shared, lanes: shard(shared, lanes, capacity),
                mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False,
            )  # fmt: skip
            self._calls[capacity] = jax.jit(spread)
        return self._calls[capacity]

    def _load(self, shared, lane):
        return jax.tree.map(lambda leaf: leaf[jax.tree.leaves(lane)[0]], shared) if self._samples else shared

    def _vmap(self, shared, lanes, _):
        return jax.vmap(lambda lane: self._one(self._load(shared, lane), lane))(lanes[1])

    def _map(self, shared, lanes, capacity):
        def guarded(local, active, content):
            shape = jax.eval_shape(self._one, local, content)
            skipped = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)  # noqa: E731
            return jax.lax.cond(active, lambda: self._one(local, content), skipped)

        if not capacity:
            return jax.lax.map(lambda lane: guarded(self._load(shared, lane[1]), *lane), lanes)

        def body(carry, lane):
            last, kept = carry
            active, content = lane
            replicate = jax.tree.leaves(content)[0]
            new = active & (replicate != last)
            kept = jax.lax.cond(new, lambda: keep(self._load(shared, content), kept), lambda: kept)
            return (jnp.where(new, replicate, last), kept), guarded(kept, active, content)

        first = jax.tree.map(lambda leaf: leaf[0], shared)
        return jax.lax.scan(body, (jnp.array(-1, jax.tree.leaves(lanes[1])[0].dtype), empty(first, capacity)), lanes)[1]

    def __call__(self, shared, lanes):
        total, rows = len(jax.tree.leaves(lanes)[0]), self._rows(shared)
        first, parts = 0, list[Any]()
        while first < total or not parts:
            began, count = time.monotonic(), min(total - first, self._count(rows))
            parts.append(self._block(shared, lanes, first, count))
            first += count
            self._pace = count * rows / max(time.monotonic() - began, 1e-6)
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    def compile(self, shared, lanes) -> None:
        """Compile for lanes of this kind, without running any."""
        self._block(shared, lanes, 0, 0)

    def _rows(self, shared) -> int:
        """Rows of a lane: those of a drawn sample; all stored ones have as many."""
        return int(np.max(shared.chunks)) * CHUNK if self._samples and _drawn(shared) else 1

    def _count(self, rows: int) -> int:
        """Lanes of the next call: all that fit where they run together, else as many as ``PROMPT`` allows."""
        devices = len(self._devices)
        whole = self._share * devices
        return whole if self._how == "vmap" else int(np.clip(PROMPT * self._pace / rows, devices, whole))

    def _capacity(self, shared) -> int:
        """Chunks to keep of a sample: a power of two, so that few compilations serve all sizes; 0 for none."""
        if not self._samples or self._how != "map" or not _drawn(shared):
            return 0
        chunks = int(np.max(shared.chunks))
        return 0 if chunks * CHUNK > KEPT else max(128, 1 << (chunks - 1).bit_length())

    def _block(self, shared, lanes, first: int, count: int):
        """Lanes first .. first + count: dealt out in turn, as hard ones come together, or where a sample is kept,
        neighbours on one device, as far as all devices are kept busy."""
        devices, capacity = len(self._devices), self._capacity(shared)
        each = -(-count // devices)
        slot, device = np.arange(self._share)[None], np.arange(devices)[:, None]
        place = slot + each * device if capacity else slot * devices + device
        active = (slot < each) & (place < count)
        index = np.minimum(first + place, len(jax.tree.leaves(lanes)[0]) - 1).ravel()
        block = jax.tree.map(lambda v: v[index], lanes)
        found = jax.device_get(self._compiled(capacity)(shared, (jnp.asarray(active.ravel()), block)))
        back = np.flatnonzero(active)[np.argsort(place[active])]
        return jax.tree.map(lambda v: v[back], found)


def _drawn(samples) -> bool:
    """Whether the rows are drawn as they are read."""
    return isinstance(samples.whole if isinstance(samples, Part) else samples, StreamedSample)


def compile_together(jobs: list[tuple[LaneFunction, Any, Any]]) -> None:
    """Compile ``(function, shared, lanes)`` jobs two at a time: each keeps one core busy, and half a GB of memory."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: job[0].compile(job[1], job[2]), jobs))
