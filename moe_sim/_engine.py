"""Process-wide settings, applied on import: double precision, a CPU device a core, compilation cache, calm LAPACK."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

# On the command line a Ctrl-C within the seconds that JAX takes to load ends the process at once, as nothing has begun
# yet, in place of a traceback; ``cli.main`` takes Ctrl-C over. A shell's background job goes on ignoring it.
with contextlib.suppress(IndexError, ValueError):  # no command; not in the main thread
    if Path(sys.argv[0]).name == "moe-sim" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

# Every device factors small matrices of its own: LAPACK's threads beside them only wait for each other (twice the time
# when measured). It is read when SciPy is loaded, so it does nothing where that came first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_enable_x64", True)
# Workers that share a machine share its cores out (MOE_SIM_CORES, see ``cluster``).
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# At least two: for one device XLA compiles another program, which differs in its last bits.
cores = max(2, int(os.environ.get("MOE_SIM_CORES", cores)))
# Where JAX has started already, the devices it has are the devices we use.
with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", cores)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe_sim" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
