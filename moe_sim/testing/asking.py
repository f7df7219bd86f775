"""A user's method is asked for something: what it raises or prints there is said with its line."""

from __future__ import annotations

import inspect
import io
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import jax

from moe_sim.models import base
from moe_sim.models.base import Model, ModelError

# What JAX raises where a number that it traces is used as Python's or numpy's.
TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def called(model: Model, method: str) -> str:
    """``SigmoidGate.mean``: what messages call a method."""
    return f"{type(model).__name__}.{method}"


@contextmanager
def asked(model: Model, method: str) -> Iterator[None]:
    """Within it the model's ``method`` is called. Raises ``ModelError`` where that raises or prints."""
    printed, name = io.StringIO(), called(model, method)
    try:
        with redirect_stdout(printed):
            yield
    except ModelError:
        raise
    except TRACED as error:
        raise ModelError(
            f"{name}: a number that JAX traces is used as a Python or numpy one, {_line(model, error)}: write it with "
            "jax.numpy (jnp.where, jnp.asarray), or hold what decides as a bool, an int or a string"
        ) from error
    except Exception as error:
        raise ModelError(f"{name} raises {type(error).__name__}: {error}, {_line(model, error)}: mend it") from error
    if printed.getvalue():
        raise ModelError(
            f"{name} prints {printed.getvalue().splitlines()[0]!r}, but it is compiled, and prints only then: take "
            "the print out, or use jax.debug.print"
        )


def _line(model: Model, error: Exception) -> str:
    """The user's line of an exception: the last in a file of the model's classes, or else the last of all."""
    files = {inspect.getsourcefile(kind) for kind in type(model).__mro__ if kind.__module__ not in _OURS}
    frames = traceback.extract_tb(error.__traceback__)
    of = ([frame for frame in frames if frame.filename in files] or list(frames))[-1]
    code = linecache.getline(of.filename, of.lineno or 0).strip()
    return f"in line {of.lineno} of {Path(of.filename).name} ({code})"


_OURS = ("builtins", "abc", base.__name__, "moe_sim.models.part")
