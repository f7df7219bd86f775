"""Global search of level sets near a truth: fitted atoms on true ones in all ways, many starts, followed in eps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.likelihood import gaussian_mixture
from moe_sim.losses.distances import density_nodes, function_residuals
from moe_sim.losses.voronoi import Loss, cells, evaluate
from moe_sim.models.base import MixtureModel, Model, Parameters
from moe_sim.theory.level import GAIN, least_on_level

RANGE = 5.0  # factor by which a coordinate of a gate may change what an atom counts for, anywhere on the law
NODES = {1: 12, 2: 6}  # Gauss-Hermite nodes an axis by outputs: near the truth residuals are nearly polynomials
SCALES = 100.0  # factor between groups of coordinates in a random start
KEPT = 2  # best points of an assignment that are followed to the next eps
STEEPEST = 10.0  # power of eps beyond which a coordinate is not extrapolated
_JITTER = 1e-7  # of a typical offset
SAME = 1e-12  # distance below which two functions are the same to rounding


def assignments(atoms: int, true_atoms: int) -> Iterator[tuple[int, ...]]:
    """How many of the fitted atoms sit on each true atom, at least one each."""
    if true_atoms == 1:
        yield (atoms,)
        return
    for first in range(atoms - true_atoms + 1, 0, -1):
        for rest in assignments(atoms - first, true_atoms - 1):
            yield first, *rest


def owners(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The true atom of each fitted one, where so many sit on each."""
    return tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())


def residuals_near(
    model: Model, truth: Parameters, law: Law | None, unflatten, atoms: int
) -> tuple[Callable, Callable]:
    """``value(theta)`` (M,) and ``jacobian(theta)`` (M, P), the norm of the first the distance from the truth.

    Mixtures: h^2 = 1/2 E_p* (sqrt(p / p*) - 1)^2 on the nodes of the truth, by expm1 of half the log ratio, and scores
    for its derivative. It misses what p puts where p* is not, which the neighbourhood of the truth rules out.
    """
    if not isinstance(model, MixtureModel):
        residuals = function_residuals(model, truth, law)
        value = lambda theta: residuals(unflatten(theta))  # noqa: E731
        return value, jax.jacfwd(value)
    form = model.form(atoms)
    x, y, log_weight = jax.jit(density_nodes(model, law, NODES.get(model.outputs, 5)))(truth)
    root = jnp.exp(0.5 * log_weight) / jnp.sqrt(2.0)
    known = jax.vmap(lambda a, b: model.log_density(truth, a, b))(x, y)

    def half_ratio(theta):
        params = unflatten(theta)
        return 0.5 * (jax.vmap(lambda a, b: model.log_density(params, a, b))(x, y) - known)

    def coefficients(theta):
        return model.coefficients(unflatten(theta))

    def jacobian(theta):
        rows = 0.5 * root * jnp.exp(half_ratio(theta))
        inner = jax.jacfwd(lambda t: form.ravel(coefficients(t)))(theta)
        return rows[:, None] * (gaussian_mixture.scores(form, coefficients(theta), x, y) @ inner)

    return lambda theta: root * jnp.expm1(half_ratio(theta)), jacobian


class Points(NamedTuple):
    """What starts came to at one eps: theta (S, P), omega (S,), the cells they have now (S, true atoms).

    starts (S,): sets of numbers, those of the fresh starts behind each.
    """

    theta: np.ndarray
    omega: np.ndarray
    cells: np.ndarray
    starts: np.ndarray

    @property
    def least(self) -> float:
        """The least omega, infinite where no start reached the level."""
        return float(np.min(self.omega, initial=np.inf))

    def agreeing(self, i: int | np.integer) -> frozenset[int]:
        """The fresh starts behind all points that are as good as number i."""
        return frozenset().union(*self.starts[self.omega <= max(1.01 * self.omega[i], SAME)])

    def best(self) -> Points:
        """The best point, and the next ones that differ from it: ``KEPT`` in all, fewer where fewer were reached."""
        chosen: list[np.integer] = []
        starts: list[frozenset[int]] = []
        for i in np.argsort(self.omega, kind="stable"):
            differs = all(self.omega[i] > 1.01 * self.omega[j] for j in chosen)
            if differs and len(chosen) < KEPT and np.isfinite(self.omega[i]):
                starts.append(self.agreeing(i))
                chosen.append(i)
        arrays = [v[chosen] for v in self[:-1]]
        return Points(*arrays, objects(starts))  # type: ignore[call-arg]


class Lanes(NamedTuple):
    """Centres and offsets (S, P) to start from; ``starts`` as in ``Points``."""

    centre: np.ndarray
    offset: np.ndarray
    starts: np.ndarray


def joined(one, other):
    """Points, or lanes, and others after them."""
    return type(one)(*(np.concatenate(pair) for pair in zip(one, other, strict=True)))


def objects(values: list) -> np.ndarray:
    """An array (len(values),) of any objects."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


class Search:
    """The compiled search of one model, truth, fitted size and list of losses."""

    def __init__(self, model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss]):
        self.fitter = fitter = Fitter(model, truth, options)
        self.model, self.truth, self.law, self.losses = model, truth, law, losses
        self.lower, self.upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
        names = fitter.unflatten_free(jnp.arange(len(self.lower)))
        self.groups = np.stack([np.isin(np.arange(len(self.lower)), np.ravel(v)) for v in names.values()]).astype(float)
        self.value, self.jacobian = residuals_near(model, truth, law, fitter.unflatten, options.atoms)
        self.unit = jax.jit(lambda theta: jnp.linalg.norm(self.jacobian(theta), axis=0))
        self.pull = jax.jit(self._shares)
        measure = lambda theta: model.measure(fitter.unflatten(theta))  # noqa: E731
        self.log_weight = jax.jit(lambda theta: measure(theta).log_weight)
        self.location = jax.jit(lambda theta: measure(theta).location)
        true_measure = model.measure(truth)
        every = [lambda theta, loss=loss: evaluate(loss, measure(theta), true_measure) for loss in losses]
        self.loss = jax.jit(lambda which, theta: jax.lax.switch(which, every, theta))

        def one(_, lane):
            centre, offset, eps, lower, upper, hopeless, gain, which = lane
            loss = lambda theta: self.loss(which, theta)  # noqa: E731
            point = least_on_level(self.value, self.jacobian, loss, centre, offset, eps, lower, upper, hopeless, gain)
            return point.theta, point.omega, jnp.sum(cells(measure(point.theta), true_measure), axis=0)

        self._solve = LaneFunction(one)

    def solve(
        self, which: int, eps: float, branches: list[Branch], lanes: list[Lanes], hopeless: list[float] | None = None,
        gain: float = GAIN,
    ) -> list[Points]:  # fmt: skip
        """Follow the lanes of all branches, side by side; hopeless, by branch, and gain: see ``least_on_level``."""
        counts = [len(part.offset) for part in lanes]
        boxes = [np.repeat(np.stack([branch.box[side] for branch in branches]), counts, axis=0) for side in (0, 1)]
        every = reduce(joined, lanes)
        same = np.ones(len(every.offset), int)
        given_up = [np.inf] * len(branches) if hopeless is None else hopeless
        found = self._solve(
            None,
            (every.centre, every.offset, eps * same, *boxes, np.repeat(given_up, counts), gain * same, which * same),
        )
        split = [np.split(v, np.cumsum(counts)[:-1]) for v in (*found, every.starts)]
        return [Points(*parts) for parts in zip(*split, strict=True)]

    def _shares(self, theta):
        """How much each coordinate moves the log-share of an atom, at most, on the law: (P,)."""
        points = jnp.zeros((1, self.model.dimension)) if self.law is None else jnp.asarray(self.law.nodes()[0])
        moved = jax.vmap(lambda x: jax.jacfwd(lambda t: self.model.log_shares(self.fitter.unflatten(t), x))(theta))
        return jnp.max(jnp.abs(moved(points)), axis=(0, 1))


class Branch:
    """One way of putting fitted atoms on true ones: so many, ``sizes``, on each."""

    def __init__(self, search: Search, sizes: tuple[int, ...]):
        self.search = search
        self.owner = owners(sizes)
        self.centre = search.fitter.cover(self.owner)
        pull = np.asarray(search.pull(jnp.asarray(self.centre)))
        reach = np.where(pull > 1e-12, np.log(RANGE) / np.maximum(pull, 1e-12), np.inf)
        self.box = np.maximum(search.lower, self.centre - reach), np.minimum(search.upper, self.centre + reach)
        weight, location = (np.asarray(jax.jacfwd(f)(self.centre)) for f in (search.log_weight, search.location))
        self._masses = np.any(weight != 0, axis=0) & ~np.any(location != 0, axis=(0, 1))  # that move nothing else
        slopes, ones = weight[:, self._masses], np.ones((len(weight), 1))
        # Where gates may be translated, and where masses add up to 1, a factor common to all masses is no matter.
        rank = np.linalg.matrix_rank
        self._common = rank(np.concatenate([slopes, ones], axis=1)) > rank(slopes)
        self._to_masses = np.linalg.pinv(slopes - self._common * slopes.mean(axis=0))

    def fresh(self, count: int, rng) -> Lanes:
        """``count`` random directions, in units of what coordinates do to the function, about covers of the truth.

        Each group of coordinates with a factor of its own: where atoms share a cell, what costs least moves groups by
        different powers of eps. How atoms share the mass of a cell costs nothing, so it is drawn as well, from all that
        the box holds.
        """
        unit = np.asarray(self.search.unit(self.centre))
        unit = np.maximum(unit, 1e-3 * unit.max())
        factor = np.exp(np.log(SCALES) * rng.uniform(-1, 1, (count, len(self.search.groups)))) @ self.search.groups
        offset = factor * rng.normal(size=(count, len(unit))) / unit
        starts = objects([frozenset([int(number)]) for number in rng.integers(2**62, size=count)])
        drawn = self.centre + self._masses * rng.uniform(-1, 1, (count, len(unit))) * np.log(RANGE)
        return Lanes(np.array([self._shared_as(theta) for theta in drawn]), offset, starts)

    def led(self, points: Points, rng) -> Lanes:
        """Through points found before, at this or a nearby eps."""
        return self._through(points.theta, points, rng)

    def extrapolated(self, points: Points, at: float, further: Points, now: float, eps: float, rng) -> Lanes:
        """From points at eps ``at`` and the same led on to ``now``: each coordinate has its own power of eps."""
        old, gap = points.theta - self.centre, further.theta - self.centre
        ratio = np.divide(gap, old, out=np.ones_like(gap), where=gap * old > 0)
        power = np.clip(np.log(ratio) / np.log(now / at), 0.0, STEEPEST)
        return self._through(np.clip(self.centre + gap * (eps / now) ** power, *self.box), points, rng)

    def _through(self, theta: np.ndarray, points: Points, rng) -> Lanes:
        """Lanes through theta (S, P), from covers that share the masses of cells as they do: on the way from one of
        other shares the mass of a cell would change, and with it the loss.

        No coordinate is left exactly at the truth, where losses have edges; what costs nothing is followed as it is.
        """
        centre = np.array([self._shared_as(row) for row in theta]).reshape(theta.shape)
        offset = theta - centre
        typical = np.median(np.abs(offset), axis=1) * (points.omega > SAME)
        return Lanes(centre, offset + _JITTER * typical[:, None] * rng.normal(size=offset.shape), points.starts)

    def _shared_as(self, theta: np.ndarray) -> np.ndarray:
        """The truth covered by atoms that share the mass of each true one as those of theta do."""
        now, true = (np.asarray(self.search.log_weight(v)) for v in (theta, self.centre))
        cell = np.equal.outer(self.owner, np.arange(max(self.owner) + 1))
        total = lambda v: np.log(np.exp(v) @ cell)[list(self.owner)]  # noqa: E731
        change = now - total(now) + total(true) - true
        found = self.centre.copy()
        found[self._masses] += self._to_masses @ (change - self._common * change.mean())
        return found
