"""Models that are objects in Python: the [model] table that says the same, and what a run folder needs of their source.

The table is ``{family = "file.py:Class", ...}`` with the arguments of the class, as the object keeps them by name.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from moe_sim.errors import InputError
from moe_sim.models.base import Density, Model, Regression
from moe_sim.models.loading import Outside
from moe_sim.models.sources import Sources, take

_REMEDY = "without out it runs in memory"


def of_object(model: Model) -> tuple[dict[str, Any], Outside]:
    """The [model] table of an object, and where its source is. Raises ``InputError`` for what is no model of data."""
    kind = type(model)
    if not isinstance(model, (Regression, Density)):
        raise InputError(f"model = {kind.__name__} object is neither: derive it from moe_sim.Regression or Density")
    arguments, unsaid = _arguments(model)
    path = _file(kind)
    refused = None
    if path is None:
        refused = (
            f"model: {kind.__name__} is not in a file that a run folder could keep: put the class in a file and import "
            f"it, or write family = 'file.py:{kind.__name__}' ({_REMEDY})"
        )
    elif unsaid:
        refused = (
            f"model: the argument {unsaid[0]!r} of {kind.__name__} cannot be written in a study file: keep it as "
            f"self.{unsaid[0]}, a number, a text or an array, or make a class that has it ({_REMEDY})"
        )
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    if path is None:
        texts = _text(kind)
    else:
        take(path, kind.__module__.rpartition(".")[0], f"model = {kind.__name__} object", texts, places)
    family = f"{path.name if path else kind.__module__}:{kind.__name__}"
    return {"family": family, **arguments}, Outside(Sources(texts, places), given=model, refused=refused)


def _arguments(model: Model) -> tuple[dict[str, Any], list[str]]:
    """The arguments that the object was made with, and the names of those that TOML has no word for."""
    found: dict[str, Any] = {}
    unsaid = []
    for name, p in inspect.signature(type(model)).parameters.items():
        value = getattr(model, name, p.empty)
        if value is None and p.default is None:
            continue
        if _sayable(value):
            found[name] = value
        elif p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            unsaid.append(name)
            # The digest tells two of them apart by their names.
            found[name] = f"<{getattr(value, '__qualname__', type(value).__name__)}>"
    return found, unsaid


def _sayable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _sayable(v) for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_sayable, value))
    if hasattr(value, "__array__") and not isinstance(value, type):
        return np.asarray(value).dtype.kind in "biuf"
    return isinstance(value, (str, bool, int, float))


def _file(kind: type) -> Path | None:
    """The file of a class that stands in it by its name; None for those of a notebook, a script or a function."""
    if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
        return None
    origin = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(origin) if origin and Path(origin).suffix == ".py" and Path(origin).is_file() else None


def _text(kind: type) -> dict[str, str]:
    """The source of a class that is in no file, as far as Python knows it: so that the digest sees a change."""
    try:
        return {f"{kind.__name__}.py": textwrap.dedent(inspect.getsource(kind))}
    except (OSError, TypeError):
        return {}
