"""Compiled programs are kept for the next study of the same class and shape, until they take too much memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import jax

from moe_sim.fitting.batching import forget_programs

MOST = 1_500_000_000  # bytes of a process, above which a new study forgets what was compiled before it
_GROWTH = 500_000_000  # and by which it must have grown since that was done last: data are large too
_after = 0  # bytes when programs were forgotten last


def bound_memory() -> None:
    """Forget compiled programs where the process has grown large. What runs next compiles anew."""
    global _after
    if resident() > max(MOST, _after + _GROWTH):
        forget()
        _after = resident()


def forget() -> None:
    """Let go of all compiled programs, those of functions that are kept too, and give the memory back to the system."""
    jax.clear_caches()
    forget_programs()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no GNU C library: it keeps what was freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
