"""The one exception for bad input, and the checks that raise it. Its text names the value and the remedy."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class InputError(ValueError):
    """Input that cannot be used. The command line prints it on one line and exits with status 2."""


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a finite float in [low, high], or an ``InputError`` naming it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} = {value!r} is not a number: pass a finite number")
    if not math.isfinite(value):
        raise InputError(f"{name} = {value} is not finite: pass a finite number")
    if not low <= float(value) <= high:
        raise InputError(f"{name} = {value} is out of range: pass a number {_range(low, high)}")
    return float(value)


def whole(name: str, value: Any, low: int = 0, high: float = math.inf) -> int:
    """``value`` as an int in [low, high] (1e6 is one), or an ``InputError`` naming it."""
    found = number(name, value)
    value = int(found) if found == int(found) and abs(found) < 1e15 else value  # 0, though a command line read 0.0
    if found != int(found):
        raise InputError(f"{name} = {value} is not a whole number: pass a whole number {_range(low, high)}")
    if not low <= found <= high:
        raise InputError(f"{name} = {value} is out of range: pass a whole number {_range(low, high)}")
    return int(found)


def array(name: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """``value`` as a finite float array of ``shape`` (None: any length), or an ``InputError`` naming it."""
    import numpy as np  # a tenth of a second, which ``--help`` need not wait for

    wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
    try:
        found = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name} is not a rectangular table of numbers: pass an array of shape {wanted}") from None
    if found.size == 0 and shape and shape[0] in (0, None):
        found = np.zeros(tuple(0 if s is None else s for s in shape))
    if found.ndim != len(shape) or any(s is not None and s != g for s, g in zip(shape, found.shape, strict=True)):
        raise InputError(f"{name} has shape {found.shape}: pass an array of shape {wanted}")
    if not np.all(np.isfinite(found)):
        raise InputError(f"{name} has an entry that is not finite ({found[~np.isfinite(found)][0]}): mend that entry")
    return found


def flag(name: str, value: Any) -> bool:
    """``value`` when it is true or false, or an ``InputError`` naming it."""
    if not isinstance(value, bool):
        raise InputError(f"{name} = {value!r} is neither true nor false: pass true or false")
    return value


def one_of(name: str, value: Any, choices) -> str:
    """``value`` when it is one of ``choices``, or an ``InputError`` listing them."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} = {value!r} is not known: pass one of {', '.join(sorted(choices))}")
    return value


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"of at least {low}"
    return f"of at most {high}" if math.isinf(low) else f"from {low} to {high}"
