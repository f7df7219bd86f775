"""Domains of parameters: their free coordinates, the bounds of those, and what a value outside is told.

A solver moves free coordinates in a box; a domain is the bijection between them and the parameter. All of it works on
numpy arrays as on JAX's, so that a study is read without JAX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moe_sim.errors import InputError

Shape = tuple[int, ...]
Interval = tuple[float, float]


class Domain:
    """The real line, and what other domains override. ``rows`` atoms, one a row of the parameter's array.

    coordinates: the names that free coordinates have beside the parameter's own; empty: the parameter's name itself.
    Where two parameters of a model have such a domain, its coordinates are called by parameter and name.
    pinned: rows that free coordinates have less than the parameter.
    """

    coordinates: tuple[str, ...] = ()
    pinned = 0

    def names(self, parameter: str, alone: bool = True) -> tuple[str, ...]:
        """Names of the free coordinates of a parameter; alone: no other of its model has this domain."""
        if not self.coordinates:
            return (parameter,)
        return self.coordinates if alone else tuple(f"{parameter}_{name}" for name in self.coordinates)

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Shapes of the free coordinates of a parameter of this shape."""
        return ((shape[0] - self.pinned, *shape[1:]) if self.pinned else shape,)

    def unconstrain(self, value) -> tuple[Any, ...]:
        """The free coordinates of a value."""
        return (value,)

    def constrain(self, *free) -> Any:
        """The value of free coordinates, the inverse of ``unconstrain``."""
        return free[0]

    def interval(self, bound: float) -> Interval:
        """What a bound of one number means: (low, high) of the parameter's entries."""
        return -bound, bound

    def limits(self, low: float, high: float, bound: float) -> tuple[Interval, ...]:
        """Bounds of the free coordinates; ``bound``: that of parameters on the real line."""
        return ((low, high),)

    def check(self, where: str, value: np.ndarray) -> None:
        """Raises ``InputError`` where a value, called ``where``, is not in the domain."""


class Real(Domain):
    """Any number."""


class Gate(Domain):
    """Any number, the last row 0: gates that may be translated together are pinned at their last atom."""

    pinned = 1

    def unconstrain(self, value):
        return (value[:-1] - value[-1],)

    def constrain(self, *free):
        xp = free[0].__array_namespace__()
        return xp.concatenate([free[0], xp.zeros((1, *free[0].shape[1:]))])


class Positive(Domain):
    """Positive numbers, by their logarithms."""

    def names(self, parameter, alone=True):
        return (f"log_{parameter}",)

    def unconstrain(self, value):
        return (value.__array_namespace__().log(value),)

    def constrain(self, *free):
        return free[0].__array_namespace__().exp(free[0])

    def interval(self, bound):
        return 1 / bound, bound

    def limits(self, low, high, bound):
        return ((math.log(low), math.log(high)),)

    def check(self, where, value):
        if value.size == 0 or np.any(value <= 0):
            raise InputError(f"{where} = {value.tolist()}: pass positive numbers, one an atom")


class Simplex(Domain):
    """Positive rows that add up to 1, by logarithms of their ratios to the last."""

    coordinates = ("log_ratio",)
    pinned = 1

    def unconstrain(self, value):
        logs = value.__array_namespace__().log(value)
        return (logs[:-1] - logs[-1],)

    def constrain(self, *free):
        xp = free[0].__array_namespace__()
        logs = xp.concatenate([free[0], xp.zeros((1, *free[0].shape[1:]))])
        weight = xp.exp(logs - xp.max(logs, axis=0))
        return weight / xp.sum(weight, axis=0)

    def check(self, where, value):
        if np.any(value <= 0) or np.any(abs(value.sum(axis=0) - 1) > 1e-9):
            raise InputError(f"{where} = {value.tolist()}: pass positive weights that add up to 1")


class PositiveDefinite(Domain):
    """Symmetric positive definite matrices (rows, d, d), by the Cholesky factor: logarithms of its diagonal
    (``log_scale``), and what is ``below`` it. Bounds (low, high) are those of the squared diagonal."""

    coordinates = ("log_scale", "below")

    def shapes(self, shape):
        *rows, d, _ = shape
        return (*rows, d), (*rows, d * (d - 1) // 2)

    def unconstrain(self, value):
        xp = value.__array_namespace__()
        factor = xp.linalg.cholesky(value)
        row, column = np.tril_indices(value.shape[-1], -1)
        return xp.log(xp.diagonal(factor, axis1=-2, axis2=-1)), factor[..., row, column]

    def constrain(self, *free):
        log_scale, below = free
        xp = log_scale.__array_namespace__()
        d = log_scale.shape[-1]
        # Places of the entries below the diagonal in a flat matrix: a product with them puts them there.
        row, column = np.tril_indices(d, -1)
        place = np.zeros((len(row), d * d))
        place[np.arange(len(row)), row * d + column] = 1.0
        lower = xp.reshape(below @ place, (*log_scale.shape, d))
        factor = xp.exp(log_scale)[..., None] * np.eye(d) + lower
        return factor @ xp.swapaxes(factor, -1, -2)

    def interval(self, bound):
        return 1 / bound, bound

    def limits(self, low, high, bound):
        return (0.5 * math.log(low), 0.5 * math.log(high)), (-bound, bound)

    def check(self, where, value):
        for place, matrix in zip(np.ndindex(value.shape[:-2]), value.reshape(-1, *value.shape[-2:]), strict=True):
            if not np.allclose(matrix, matrix.T) or np.any(np.linalg.eigvalsh((matrix + matrix.T) / 2) <= 0):
                name = f"{where}[{','.join(map(str, place))}]" if place else where
                raise InputError(f"{name} is not symmetric and positive definite: mend it")


REAL, GATE, POSITIVE, SIMPLEX, SPD = Real(), Gate(), Positive(), Simplex(), PositiveDefinite()
