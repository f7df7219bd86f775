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
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_sim.data import samples as stored
from moe_sim.data.samples import ROWS_PER_CHUNK, StreamedSample, Subsample, at, empty, keep
from moe_sim.fitting import kept
from moe_sim.models import pytrees as pytrees  # models are arguments of lane functions

LANES_PER_CALL = 512  # of a device, at most: the more, the evener devices are. One shape, whatever their number
SECONDS_PER_CALL = 2.0  # where lanes run one after another: Ctrl-C and progress stay prompt
_SPLIT = PartitionSpec(), PartitionSpec(), PartitionSpec("lane")  # what is shared, samples, lanes

_every: WeakSet[LaneFunction] = WeakSet()


def batching() -> str:
    """``map`` on a CPU, ``vmap`` elsewhere."""
    return "map" if jax.default_backend() == "cpu" else "vmap"


class LaneFunction:
    """``one(shared, lane) -> pytree`` over lanes: call it with ``(shared, lanes)``.

    ``lanes`` is a pytree of arrays with a common first axis, of any length; it is cut in blocks of one fixed
    shape, padded with lanes that are skipped: how many a block has depends on how long they take, what comes out of
    a lane does not. ``shared`` is a pytree that all lanes see. Results come back as numpy arrays.

    ``one(shared, sample, lane)`` is called with ``(shared, lanes, samples)``, a batch of samples: the first entry of a
    lane is its replicate, whose sample it gets. Where lanes run one after another, a streamed sample is drawn once for
    neighbouring lanes of one replicate and kept in memory (up to ``ROWS_KEPT`` rows): memory is one sample a device.

    Make one a function and use it for all data: what it has compiled for a shape serves every call.
    """

    def __init__(self, one: Callable, how: str | None = None):
        self._how = how or batching()
        self._one = one
        self._devices = jax.devices()
        self._mesh = Mesh(np.asarray(self._devices), ("lane",))
        self._calls: dict[int, Callable] = {}
        self._programs: dict[tuple, Callable] = {}
        _every.add(self)
        self._pace = 0.0  # rows of all lanes in a second, as the last call went

    def _jitted(self, capacity: int) -> Callable:
        """The call; capacity: chunks of a kept sample, 0 for none."""
        if capacity not in self._calls:
            shard = {"map": self._map, "vmap": self._vmap}[self._how]

            def lanes_of(shared, samples, lanes):
                return shard(shared, samples, lanes, capacity)

            lanes_of.__name__ = self._one.__name__  # which profiles and logs of JAX show
            self._calls[capacity] = jax.jit(jax.shard_map(
                lanes_of, mesh=self._mesh, in_specs=_SPLIT, out_specs=_SPLIT[-1], check_vma=False,
            ))  # fmt: skip
        return self._calls[capacity]

    def _compiled(self, capacity: int, arguments: tuple) -> Callable:
        """The call for arguments of this kind, traced or found on disk (see ``kept``)."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = capacity, structure, tuple(jax.typeof(leaf) for leaf in leaves)
        found = self._programs.get(kind)
        if found is None:
            made_of = self._one, self._how, capacity
            shardings = tuple(NamedSharding(self._mesh, spec) for spec in _SPLIT)
            self._programs[kind] = found = kept.program(self._jitted(capacity), made_of, arguments, shardings)
        return found

    def _run(self, shared, samples, lane):
        return self._with(shared, None if samples is None else at(samples, jax.tree.leaves(lane)[0]), lane)

    def _with(self, shared, sample, lane):
        return self._one(shared, lane) if sample is None else self._one(shared, sample, lane)

    def _vmap(self, shared, samples, lanes, _):
        return jax.vmap(lambda lane: self._run(shared, samples, lane))(lanes[1])

    def _map(self, shared, samples, lanes, capacity):
        def guarded(active, run, *arguments):
            run = jax.jit(run)  # traced once: here, and not again below
            shape = jax.eval_shape(run, *arguments)
            skipped = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)  # noqa: E731
            return jax.lax.cond(active, lambda: run(*arguments), skipped)

        if not capacity:
            return jax.lax.map(lambda lane: guarded(lane[0], self._run, shared, samples, lane[1]), lanes)

        def body(carry, lane):
            last, kept = carry
            active, content = lane
            replicate = jax.tree.leaves(content)[0]
            new = active & (replicate != last)
            kept = jax.lax.cond(new, lambda: keep(at(samples, replicate), kept), lambda: kept)
            return (jnp.where(new, replicate, last), kept), guarded(active, self._with, shared, kept, content)

        buffer = empty(at(samples, 0), capacity)
        return jax.lax.scan(body, (jnp.array(-1, jax.tree.leaves(lanes[1])[0].dtype), buffer), lanes)[1]

    def __call__(self, shared, lanes, samples=None):
        total, rows = len(jax.tree.leaves(lanes)[0]), self._rows(samples)
        first, parts = 0, list[Any]()
        while first < total or not parts:
            began, count = time.monotonic(), min(total - first, self._count(rows))
            parts.append(self._block(shared, lanes, samples, first, count))
            first += count
            self._pace = count * rows / max(time.monotonic() - began, 1e-6)
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    def compile(self, shared, lanes, samples=None) -> None:
        """Compile for lanes of this kind, without running any."""
        self._block(shared, lanes, samples, 0, 0)

    def _rows(self, samples) -> int:
        """Rows of a lane: those of a drawn sample; all stored ones have as many."""
        return int(np.max(samples.chunks)) * ROWS_PER_CHUNK if _drawn(samples) else 1

    def _count(self, rows: int) -> int:
        """Lanes of the next call: all that fit where they run together, else as many as the time allows."""
        devices = len(self._devices)
        whole = LANES_PER_CALL * devices
        return whole if self._how == "vmap" else int(np.clip(SECONDS_PER_CALL * self._pace / rows, devices, whole))

    def _capacity(self, samples) -> int:
        """Chunks to keep of a sample: a power of two, so that few compilations serve all sizes; 0 for none."""
        if self._how != "map" or not _drawn(samples):
            return 0
        chunks = int(np.max(samples.chunks))
        return 0 if chunks * ROWS_PER_CHUNK > stored.ROWS_KEPT else max(128, 1 << (chunks - 1).bit_length())

    def _block(self, shared, lanes, samples, first: int, count: int):
        """Lanes first .. first + count: dealt out in turn, as hard ones come together, or where a sample is kept,
        neighbours on one device, as far as all devices are kept busy."""
        devices, capacity = len(self._devices), self._capacity(samples)
        each = -(-count // devices)
        slot, device = np.arange(LANES_PER_CALL)[None], np.arange(devices)[:, None]
        place = slot + each * device if capacity else slot * devices + device
        active = (slot < each) & (place < count)
        index = np.minimum(first + place, len(jax.tree.leaves(lanes)[0]) - 1).ravel()
        block = jax.tree.map(lambda v: v[index], lanes)
        arguments = shared, samples, (jnp.asarray(active.ravel()), block)
        found = jax.device_get(self._compiled(capacity, arguments)(*arguments))
        back = np.flatnonzero(active)[np.argsort(place[active])]
        return jax.tree.map(lambda v: v[back], found)


def forget_programs() -> None:
    """Let go of the programs of all lane functions."""
    for function in list(_every):
        function._programs.clear()


def _drawn(samples) -> bool:
    """Whether the rows are drawn as they are read."""
    return isinstance(samples.whole if isinstance(samples, Subsample) else samples, StreamedSample)


def compile_together(jobs: list[tuple]) -> None:
    """Compile ``(function, shared, lanes, samples)`` jobs two at a time: each keeps one core busy, and half a GB of
    memory."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: job[0].compile(*job[1:]), jobs))
