"""Process-wide settings, applied on import: double precision, a CPU device a core, compilation cache, calm LAPACK.

JAX takes seconds to load, and what only reads a study needs none of it. So the settings are left in the environment,
where JAX finds them whoever loads it first, and modules that are loaded with every command take ``jax`` and ``jnp``
from here: JAX is loaded where one of the two is first used.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_sim.errors import InputError

STARTED = time.time()  # when this process began to load the package, whose source may change after that

# On the command line a Ctrl-C while modules load ends the process at once, as nothing has begun yet, in place of a
# traceback; ``cli.main`` takes Ctrl-C over. A shell's background job goes on ignoring it.
with contextlib.suppress(IndexError, ValueError):  # no command; not in the main thread
    if Path(sys.argv[0]).name == "moe-sim" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

# Every device factors small matrices of its own: LAPACK's threads beside them only wait for each other (twice the time
# when measured). It is read when SciPy is loaded, so it does nothing where that came first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# XLA's newer way to emit kernels takes twice as long to compile, and what it makes is no faster: measured with these
# versions. To a flag that XLA does not know it answers by ending the process, so others are left alone.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_VERSIONS_WITH_EMITTERS = ("0.10.",)

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OUR_CACHE = "MOE_SIM_COMPILATION_CACHE_DIR"  # the cache that we chose: one that differs from it is the user's


def _settings() -> dict[str, Any]:
    """JAX's settings by name. A child process finds those of its parent in the environment, and makes its own."""
    # Workers that share a machine share its cores out (MOE_SIM_CORES, see ``cluster``).
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, Any] = {
        "jax_enable_x64": True,
        # At least two: for one device XLA compiles another program, which differs in its last bits.
        "jax_num_cpu_devices": max(2, int(os.environ.get("MOE_SIM_CORES", cores))),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # of the smallest there are thousands
    }
    if os.environ.get(_CACHE) == os.environ.get(_OUR_CACHE):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe_sim" / "jax"
        found["jax_compilation_cache_dir"] = os.environ[_OUR_CACHE] = str(cache)
    return found


def set_up() -> None:
    """Give JAX its settings, whether it is loaded already or not. Importing moe_sim does it."""
    settings = _settings()
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}
    flags = os.environ.get("XLA_FLAGS", "")
    if _EMITTERS not in flags and version("jaxlib").startswith(_VERSIONS_WITH_EMITTERS):
        os.environ["XLA_FLAGS"] = f"{flags} --{_EMITTERS}=false".strip()
    if "jax" in sys.modules:
        for name, value in settings.items():
            # Where JAX has started already, the devices it has are the devices we use.
            with contextlib.suppress(RuntimeError):
                sys.modules["jax"].config.update(name, value)


set_up()

_used_in: int | None = None  # the process that computed first


def used() -> None:
    """Note that this process computes. Raises ``InputError`` where a process has done so from which this one was
    forked: JAX's threads do not survive that, and what it computes would never end."""
    global _used_in
    _used_in = _used_in or os.getpid()
    if _used_in != os.getpid():
        raise InputError(
            "JAX was in use before this process was forked, and would wait for ever: start processes with "
            "multiprocessing.get_context('spawn')"
        )


class _Late:
    """A module that is loaded at its first use."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import jax as jax
    import jax.numpy as jnp
else:
    jax, jnp = _Late("jax"), _Late("jax.numpy")
