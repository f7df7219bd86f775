"""Free coordinates of declared parameters: what solvers move in a box, by name, and the way back."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from moe_sim.errors import InputError, array
from moe_sim.models.domains import Interval, Shape
from moe_sim.models.parameter import Parameter

Declared = dict[str, Parameter]
Arrays = dict[str, Any]


def element(name: str, place: tuple[Any, ...]) -> str:
    """``value[0,1]``: the name of one entry of an array; the array's own where it has only one.

    >>> element("value", (0, 1)), element("temperature", ())
    ('value[0,1]', 'temperature')
    """
    return f"{name}[{','.join(map(str, place))}]" if place else name


def ravel(arrays: Arrays) -> Any:
    """Named arrays as one vector, in the order of their names: NumPy's, or JAX's where one of them is.

    >>> ravel({"slope": np.array([[3.0], [4.0]]), "bias": np.array([1.0, 2.0])})
    array([1., 2., 3., 4.])
    """
    parts = [as_array(arrays[name]).reshape(-1) for name in sorted(arrays)]
    others = [part for part in parts if not isinstance(part, np.ndarray)]
    return (others or parts)[0].__array_namespace__().concatenate(parts)


def lists(arrays: Arrays) -> dict[str, Any]:
    """Named arrays as JSON and TOML have them: nested lists of plain numbers.

    >>> lists({"bias": np.array([1.0, 2.0])})
    {'bias': [1.0, 2.0]}
    """
    return {name: np.asarray(value).tolist() for name, value in arrays.items()}


def unravel(shapes: dict[str, Shape], vector) -> Arrays:
    """The named arrays of these shapes, the inverse of ``ravel``."""
    found, first = {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        found[name] = vector[first : first + size].reshape(shapes[name])
        first += size
    return found


def free_names(declared: Declared) -> dict[str, tuple[str, ...]]:
    """The names of the free coordinates of each parameter."""
    domains = Counter(p.domain for p in declared.values())
    return {name: p.domain.names(name, domains[p.domain] == 1) for name, p in declared.items()}


def unconstrain(declared: Declared, params: Arrays) -> Arrays:
    """The free coordinates of parameters, as named arrays."""
    free: Arrays = {}
    for name, names in free_names(declared).items():
        free |= dict(zip(names, declared[name].domain.unconstrain(as_array(params[name])), strict=True))
    return free


def constrain(declared: Declared, free: Arrays) -> Arrays:
    """The parameters of free coordinates, the inverse of ``unconstrain``."""
    names = free_names(declared)
    return {name: p.domain.constrain(*(as_array(free[one]) for one in names[name])) for name, p in declared.items()}


def as_array(value):
    """NumPy's or JAX's; a number is an array without axes."""
    return value if hasattr(value, "__array_namespace__") else np.asarray(value, float)


def interval(p: Parameter, limits: dict[str, float]) -> Interval:
    """Low and high of a parameter's entries; limits: ``bound`` and ``bias_bound`` of the fit."""
    if isinstance(p.bound, tuple):
        return p.bound
    return p.domain.interval(limits[p.bound] if isinstance(p.bound, str) else float(p.bound))


def bounds(declared: Declared, shapes: dict[str, Shape], limits: dict[str, float]) -> tuple[Arrays, Arrays]:
    """Lower and upper bound of every free coordinate, as named arrays; limits: ``bound``, ``bias_bound`` of the fit."""
    lower, upper = {}, {}
    for name, names in free_names(declared).items():
        p = declared[name]
        ends = p.domain.limits(*interval(p, limits), limits["bound"])
        for free, shape, (low, high) in zip(names, p.domain.shapes(shapes[name]), ends, strict=True):
            lower[free], upper[free] = np.full(shape, float(low)), np.full(shape, float(high))
    return lower, upper


def read_truth(declared: Declared, shapes: dict[str, Shape], table: Arrays) -> Arrays:
    """The arrays of a ``[truth]`` table, each of its shape and in its domain. Raises ``InputError``.

    Keys are those of the declaration; what has a known value may be left out.
    """
    found = {}
    for name, p in declared.items():
        if name not in table and p.known is None:
            raise InputError(f"truth.{name} is missing: add it to the study")
        found[name] = array(f"truth.{name}", table[name] if name in table else np.asarray(p.known), shapes[name])
        p.domain.check(f"truth.{name}", found[name])
    return found


def outside(declared: Declared, free: Arrays, lower: Arrays, upper: Arrays) -> None:
    """Raises ``InputError`` where free coordinates of a truth are not within their bounds."""
    for name, names in free_names(declared).items():
        for one in names:
            value = np.asarray(free[one])
            beyond = value[(value < lower[one]) | (value > upper[one])]
            if not beyond.size:
                continue
            key = declared[name].bound
            # Not every free coordinate is a key of [truth]: log_ratio is that of two weights.
            where = f"truth.{name}" if one == name else f"truth: its {one}"
            remedy = f"raise the bound (fit.{key})" if isinstance(key, str) else "widen the range that the model gives"
            raise InputError(
                f"{where} has {beyond[0]:g}, outside [{lower[one].min():g}, {upper[one].max():g}]: {remedy} or move "
                "the truth inside"
            )


def free_shapes(declared: Declared, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The shape of every free coordinate."""
    names = free_names(declared)
    return {
        free: shape
        for name, p in declared.items()
        for free, shape in zip(names[name], p.domain.shapes(shapes[name]), strict=True)
    }
