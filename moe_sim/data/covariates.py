"""Laws of the covariate X: drawing from them and integrating over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array
from moe_sim.models.part import Part

_HALVINGS = 30  # of intervals towards a kink


class Law(Part):
    """A law of X on R^d.

    ``nodes()`` gives points (M, d) and weights (M,) that add up to 1: the law itself when ``finite``, and
    otherwise a product Gauss rule that integrates over it. ``draw(key, count)`` gives (count, d) samples.
    """

    dimension: int
    finite = False

    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def draw(self, key, count: int):
        raise NotImplementedError

    def rows(self, key, index, size):
        """x (B, d) of the observations numbered ``index`` (B,) of a sample of ``size``; only a design looks at them."""
        return self.draw(key, len(index))


def _product(points: np.ndarray, weights: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """A one-dimensional rule on every axis: points (m**d, d), weights (m**d,)."""
    grid = np.stack(np.meshgrid(*[points] * dimension, indexing="ij"), -1).reshape(-1, dimension)
    mass = np.prod(np.stack(np.meshgrid(*[weights] * dimension, indexing="ij"), -1).reshape(-1, dimension), axis=1)
    return grid, mass / mass.sum()


def graded(low: float, high: float, kinks: tuple[float, ...]) -> np.ndarray:
    """Ends of intervals on [low, high], which halve towards each of the kinks from both sides."""
    inner = sorted(float(kink) for kink in kinks if low < kink < high)
    if not inner:
        return np.array([low, high])
    halves = 0.5 ** np.arange(_HALVINGS, 0, -1)
    middles = [(one + other) / 2 for one, other in pairwise(inner)]
    ends = {low, high, *inner, *middles}
    for kink, before, after in zip(inner, [low, *middles], [*middles, high], strict=True):
        ends |= {*(kink - (kink - before) * halves).tolist(), *(kink + (after - kink) * halves).tolist()}
    return np.array(sorted(ends))


@dataclass(frozen=True)
class Grid(Law):
    """Equal masses on a regular grid of ``points`` a side over ``[low, high]^d``."""

    dimension: int
    low: float = -1.0
    high: float = 1.0
    points: int = 16
    finite = True

    @cached_property
    def _nodes(self):
        return _product(np.linspace(self.low, self.high, self.points), np.ones(self.points), self.dimension)

    def nodes(self):
        return self._nodes

    def draw(self, key, count):
        side = jnp.linspace(self.low, self.high, self.points)
        return side[jax.random.randint(key, (count, self.dimension), 0, self.points)]


@dataclass(frozen=True)
class Uniform(Law):
    """Uniform on ``[low, high]^d``; integrals by Gauss-Legendre with ``points`` nodes a side.

    kinks: places on a side where functions have an edge, near which it may also lie. Intervals halve towards each, down
    to 1e-9 of a side, with ``points`` nodes each: offsets of an edge are seen down to that.
    """

    dimension: int
    low: float = -1.0
    high: float = 1.0
    points: int = 24
    kinks: tuple[float, ...] = ()

    def nodes(self):
        node, weight = np.polynomial.legendre.leggauss(self.points)
        ends = graded(self.low, self.high, self.kinks)
        half = np.diff(ends)[:, None] / 2
        places = (ends[:-1, None] + ends[1:, None]) / 2 + half * node
        return _product(places.ravel(), (half * weight).ravel(), self.dimension)

    def draw(self, key, count):
        return jax.random.uniform(key, (count, self.dimension), minval=self.low, maxval=self.high)


@dataclass(frozen=True)
class Linspace(Uniform):
    """A fixed design on an interval: observation i of n is low + (high - low) i / (n - 1), as in arXiv 2305.03288.

    Its limit is the uniform law, by which integrals are taken.
    """

    def draw(self, key, count):
        return self.rows(key, jnp.arange(count), count)

    def rows(self, key, index, size):
        share = index / jnp.maximum(size - 1, 1)
        return (self.low + (self.high - self.low) * share)[:, None]


@dataclass(frozen=True)
class Normal(Law):
    """Independent normal coordinates; integrals by Gauss-Hermite with ``points`` nodes a side."""

    dimension: int
    mean: float = 0.0
    deviation: float = 1.0
    points: int = 24

    def nodes(self):
        node, weight = np.polynomial.hermite_e.hermegauss(self.points)
        return _product(self.mean + self.deviation * node, weight, self.dimension)

    def draw(self, key, count):
        return self.mean + self.deviation * jax.random.normal(key, (count, self.dimension))


@dataclass(frozen=True)
class Ring(Law):
    """Uniform on the ring inner <= |x| <= outer of the plane: a circle where they are equal, a ball where inner is 0.

    Integrals by Gauss-Legendre in |x|^2 with ``points`` nodes, times twice as many equal angles, which are exact for
    polynomials of degree below that.
    """

    inner: float
    outer: float
    points: int = 12
    dimension = 2

    def nodes(self):
        node, weight = np.polynomial.legendre.leggauss(self.points)
        if self.inner == self.outer:
            node, weight = np.zeros(1), np.full(1, 2.0)
        middle, half = (self.inner**2 + self.outer**2) / 2, (self.outer**2 - self.inner**2) / 2
        angle = 2 * np.pi * np.arange(2 * self.points) / (2 * self.points)
        around = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        places = np.sqrt(middle + half * node)[:, None, None] * around
        return places.reshape(-1, 2), np.repeat(weight / 2 / len(angle), len(angle))

    def draw(self, key, count):
        length, angle = jax.random.uniform(key, (2, count))
        radius = jnp.sqrt(self.inner**2 + (self.outer**2 - self.inner**2) * length)
        return radius[:, None] * jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], axis=1)


@dataclass(frozen=True, eq=False)
class Tokens(Law):
    """Equal masses on given points x (M, d): the empirical law, as of the tokens of a real model."""

    x: np.ndarray
    finite = True

    @property
    def dimension(self) -> int:  # type: ignore[override]
        return self.x.shape[1]

    def nodes(self):
        return self.x, np.full(len(self.x), 1 / len(self.x))

    def draw(self, key, count):
        return jnp.asarray(self.x)[jax.random.randint(key, (count,), 0, len(self.x))]


@dataclass(frozen=True)
class Quadrature(Law):
    """The finite law that sits on another law's Gauss nodes: what exact sampling needs of a continuous law."""

    base: Law
    _nodes: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)
    finite = True

    def __post_init__(self):
        object.__setattr__(self, "_nodes", self.base.nodes())

    @property
    def dimension(self) -> int:  # type: ignore[override]
        return self.base.dimension

    def nodes(self):
        return self._nodes

    def draw(self, key, count):
        points, weights = (jnp.asarray(v) for v in self._nodes)
        return points[jax.random.choice(key, len(weights), (count,), p=weights)]


def _ring(name: str, table: dict, dimension: int) -> Ring:
    inner, outer = table["inner"] if name == "ring" else 0.0, table["outer"]
    if dimension != 2:
        raise InputError(f"law.name = {name!r} lies in the plane, the model has {dimension} covariates: pass uniform")
    if not 0 <= inner <= outer or outer == 0:
        raise InputError(f"law.inner = {inner:g} and law.outer = {outer:g}: pass 0 <= inner <= outer, outer positive")
    return Ring(inner, outer, table.get("points", 12))


def build_law(table: dict, dimension: int) -> Law:
    """The law of a study's ``[law]`` table, whose values are checked one by one and complete (``study``).

    Raises ``InputError``.
    """
    name = table["name"]
    if name == "tokens":
        if "x" not in table:
            raise InputError("law.x is missing: law.name = 'tokens' needs its points, one list of numbers each")
        return Tokens(array("law.x", table["x"], (None, dimension)))
    kinks = tuple(np.asarray(table.get("kinks", ()), float).tolist())
    points = table.get("points", 16 if name == "grid" else 5 if kinks else 24)
    if name == "normal":
        deviation = table["deviation"]
        if deviation <= 0:
            raise InputError(f"law.deviation = {deviation}: a standard deviation must be positive")
        law: Law = Normal(dimension, table["mean"], deviation, points)
    elif name in ("ring", "ball"):
        law = _ring(name, table, dimension)
    else:
        low, high = table["low"], table["high"]
        if not low < high:
            raise InputError(f"law.low = {low} and law.high = {high}: pass low below high")
        if name == "linspace" and dimension != 1:
            raise InputError(f"law.name = 'linspace' is for one covariate, the model has {dimension}: pass uniform")
        for kink in kinks:
            if not low < kink < high:
                raise InputError(f"law.kinks has {kink:g}, outside of law.low = {low:g} to {high:g}: leave it out")
        if kinks and dimension > 2:
            raise InputError(
                f"law.kinks: nodes graded towards {len(kinks)} places on each of {dimension} sides are too many, leave "
                "them out"
            )
        kind = {"grid": Grid, "uniform": Uniform, "linspace": Linspace}[name]
        law = kind(dimension, low, high, points, **({"kinks": kinks} if kinks else {}))
    if table["finite"] and not law.finite:
        law = Quadrature(law)
    return law
