"""Global search of level sets near a truth: fitted atoms on true ones in all ways, many starts, followed in eps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial, reduce
from itertools import chain, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import parameters_of
from moe_sim.fitting.measured import measured
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.fitting.scans import jumping
from moe_sim.likelihood import gaussian_mixture
from moe_sim.losses.distances import Target, target_near
from moe_sim.losses.voronoi import Loss, cells
from moe_sim.models.base import Atoms, Model, Parameters
from moe_sim.models.mixture import MixtureModel
from moe_sim.theory.level import GAIN, least_on_level

RANGE = 5.0  # factor by which a coordinate of a gate may change what an atom counts for, anywhere on the law
SCALES = 100.0  # factor between groups of coordinates in a random start
POINTS_FOLLOWED = 2  # best points of an assignment that are followed to the next eps
STEEPEST = 10.0  # power of eps beyond which a coordinate is not extrapolated
_JITTER = 1e-7  # of a typical offset
SAME_FUNCTION = 1e-12  # distance below which two functions are the same to rounding


def assignments(atoms: int, true_atoms: int) -> Iterator[tuple[int, ...]]:
    """How many of the fitted atoms sit on each true atom, at least one each."""
    if true_atoms == 1:
        yield (atoms,)
        return
    for first in range(atoms - true_atoms + 1, 0, -1):
        for rest in assignments(atoms - first, true_atoms - 1):
            yield first, *rest


def ways(model: Model, truth: Parameters, atoms: Atoms) -> list[tuple[int, ...]]:
    """All ways of putting fitted atoms on true ones, group by group, that give the function of the truth: how many sit
    on each. Empty where no split of an atom keeps the function."""
    true, fitted = model.sizes_of(truth), model.sizes(atoms)
    each = [list(assignments(fitted[group], true[group])) for group in model.groups]
    every = [tuple(chain(*parts)) for parts in product(*each)]
    splits = model.divisible(truth)
    return [way for way in every if all(size == 1 or may for size, may in zip(way, splits, strict=True))]


def owners(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The true atom of each fitted one, where so many sit on each."""
    return tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())


def residuals_near(target: Target, atoms: Atoms) -> tuple[Callable, Callable]:
    """``value(theta)`` (M,) and ``jacobian(theta)`` (M, P) of ``Target.near``: the norm of the first is the distance
    from the truth. Gaussian mixtures have their written-out scores for the second."""
    model, unflatten = target.model, parameters_of(target.model, atoms)
    value = lambda theta: target.near(unflatten(theta))  # noqa: E731
    if not isinstance(model, MixtureModel):
        return value, jax.jacfwd(value)
    form = model.form(model.total(atoms))

    def coefficients(theta):
        return model.coefficients(unflatten(theta))

    def jacobian(theta):
        rows = 0.5 * target.root / jnp.sqrt(2.0) * jnp.exp(target.half_log_ratio(unflatten(theta)))
        inner = jax.jacfwd(lambda t: form.ravel(coefficients(t)))(theta)
        return rows[:, None] * (gaussian_mixture.scores(form, coefficients(theta), target.x, target.y) @ inner)

    return value, jacobian


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
        return frozenset().union(*self.starts[self.omega <= max(1.01 * self.omega[i], SAME_FUNCTION)])

    def best(self) -> Points:
        """The best point and the next ones that differ from it: ``POINTS_FOLLOWED`` in all, or as many as there are."""
        chosen: list[np.integer] = []
        starts: list[frozenset[int]] = []
        for i in np.argsort(self.omega, kind="stable"):
            differs = all(self.omega[i] > 1.01 * self.omega[j] for j in chosen)
            if differs and len(chosen) < POINTS_FOLLOWED and np.isfinite(self.omega[i]):
                starts.append(self.agreeing(i))
                chosen.append(i)
        arrays = [v[chosen] for v in self[:-1]]
        return Points(*arrays, objects(starts))  # type: ignore[call-arg]


class Offsets(NamedTuple):
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


@lru_cache(maxsize=8)
def _compiled(atoms: tuple[tuple[str, int], ...], losses: tuple[Loss, ...]) -> LaneFunction:
    """``least_on_level``; lanes: centre, offset, eps, lower, upper, hopeless, gain, which loss."""
    sizes = dict(atoms)

    def one(target: Target, lane):
        centre, offset, eps, lower, upper, hopeless, gain, which = lane
        model, truth = target.model, target.truth
        params = parameters_of(model, sizes)
        value, jacobian = residuals_near(target, sizes)
        every = [lambda theta, loss=loss: measured(model, [loss], params(theta), truth)[loss.name] for loss in losses]
        loss = lambda theta: jax.lax.switch(which, every, theta)  # noqa: E731
        point = least_on_level(value, jacobian, loss, centre, offset, eps, lower, upper, hopeless, gain)
        fitted, true = (model.measure(model.canonical(p)) for p in (params(point.theta), truth))
        return point.theta, point.omega, jnp.sum(cells(fitted, true), axis=0)

    return LaneFunction(one)


_static = partial(jax.jit, static_argnames="atoms")


@_static
def _unit(target: Target, theta, atoms):
    return jnp.linalg.norm(residuals_near(target, dict(atoms))[1](theta), axis=0)


@_static
def _shares(target: Target, theta, atoms):
    """How much each coordinate moves the log-share of an atom, at most, on the law: (P,)."""
    model, unflatten = target.model, parameters_of(target.model, dict(atoms))
    points = jnp.zeros((1, model.dimension)) if target.points is None else target.points
    moved = jax.vmap(lambda x: jax.jacfwd(lambda t: model.log_shares(unflatten(t), x))(theta))
    return jnp.max(jnp.abs(moved(points)), axis=(0, 1))


@_static
def _measure(target: Target, theta, atoms):
    """Log-weights (L,) and locations (L, D), and their derivatives in theta."""

    def parts(theta):
        measure = target.model.measure(parameters_of(target.model, dict(atoms))(theta))
        return measure.log_weight, measure.location

    return parts(theta), jax.jacfwd(parts)(theta)


class Search:
    """The search of one model, truth, fitted size and list of losses."""

    def __init__(self, model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss]):
        self.fitter = fitter = Fitter(model, truth, options)
        self.model, self.truth, self.losses = model, truth, losses
        self.target = target_near(model, truth, law)
        self.atoms = tuple(model.sizes(options.atoms).items())
        self.lower, self.upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
        names = fitter.unflatten_free(np.arange(len(self.lower)))
        self.groups = np.stack([np.isin(np.arange(len(self.lower)), np.ravel(v)) for v in names.values()]).astype(float)
        self.residuals = lambda theta: _residuals(self.target, theta, self.atoms)
        self.jacobian = lambda theta: _jacobian(self.target, theta, self.atoms)
        self._solve = _compiled(self.atoms, tuple(losses))

    def log_weight(self, theta) -> np.ndarray:
        return np.asarray(_measure(self.target, theta, self.atoms)[0][0])

    def measure_slopes(self, theta) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the log-weights (L, P) and of the locations (L, D, P) of the atoms."""
        weight, location = _measure(self.target, theta, self.atoms)[1]
        return np.asarray(weight), np.asarray(location)

    def solve(
        self, which: int, eps: float, branches: list[Branch], lanes: list[Offsets],
        hopeless: list[np.ndarray] | None = None, gain: float = GAIN,
    ) -> list[Points]:  # fmt: skip
        """Follow the lanes of all branches, side by side; hopeless, of each, and gain: see ``least_on_level``."""
        counts = [len(part.offset) for part in lanes]
        boxes = [np.repeat(np.stack([branch.box[side] for branch in branches]), counts, axis=0) for side in (0, 1)]
        every = reduce(joined, lanes)
        same = np.ones(len(every.offset), int)
        given_up = np.inf * same if hopeless is None else np.concatenate(hopeless)
        found = self._solve(
            self.target,
            (every.centre, every.offset, eps * same, *boxes, given_up, gain * same, which * same),
        )
        split = [np.split(v, np.cumsum(counts)[:-1]) for v in (*found, every.starts)]
        return [Points(*parts) for parts in zip(*split, strict=True)]


@_static
def _residuals(target: Target, theta, atoms):
    return residuals_near(target, dict(atoms))[0](theta)


@_static
def _jacobian(target: Target, theta, atoms):
    return residuals_near(target, dict(atoms))[1](theta)


class Branch:
    """One way of putting fitted atoms on true ones: so many, ``sizes``, on each."""

    def __init__(self, search: Search, sizes: tuple[int, ...]):
        self.search = search
        self.owner = owners(sizes)
        self.centre = search.fitter.cover(self.owner)
        # How much each coordinate moves what atoms count for, at most, on the law: only those of gates do.
        self.pull = pull = np.asarray(_shares(search.target, self.centre, search.atoms))
        reach = np.where(pull > 1e-12, np.log(RANGE) / np.maximum(pull, 1e-12), np.inf)
        self.box = np.maximum(search.lower, self.centre - reach), np.minimum(search.upper, self.centre + reach)
        weight, location = search.measure_slopes(self.centre)
        self.masses = np.any(weight != 0, axis=0) & ~np.any(location != 0, axis=(0, 1))  # that move nothing else
        # Where functions jump nothing leads back to the truth: half of the fresh starts never leave it there.
        self.smooth = np.ones(len(self.centre), bool)
        self.smooth[list(jumping(search.target.model, dict(search.atoms)))] = False
        slopes, ones = weight[:, self.masses], np.ones((len(weight), 1))
        # Where gates may be translated, and where masses add up to 1, a factor common to all masses is no matter.
        rank = np.linalg.matrix_rank
        self._common = rank(np.concatenate([slopes, ones], axis=1)) > rank(slopes)
        self._to_masses = np.linalg.pinv(slopes - self._common * slopes.mean(axis=0))

    def fresh(self, count: int, rng) -> Offsets:
        """``count`` random directions, in units of what coordinates do to the function, about covers of the truth.

        Each group of coordinates with a factor of its own: where atoms share a cell, what costs least moves groups by
        different powers of eps. How atoms share the mass of a cell costs nothing, so it is drawn as well, from all that
        the box holds.
        """
        unit = np.asarray(_unit(self.search.target, self.centre, self.search.atoms))
        unit = np.maximum(unit, 1e-3 * unit.max())
        factor = np.exp(np.log(SCALES) * rng.uniform(-1, 1, (count, len(self.search.groups)))) @ self.search.groups
        offset = factor * rng.normal(size=(count, len(unit))) / unit
        offset[::2] *= self.smooth
        starts = objects([frozenset([int(number)]) for number in rng.integers(2**62, size=count)])
        drawn = self.centre + self.masses * rng.uniform(-1, 1, (count, len(unit))) * np.log(RANGE)
        return Offsets(np.array([self._shared_as(theta) for theta in drawn]), offset, starts)

    def led(self, points: Points, rng) -> Offsets:
        """Through points found before, at this or a nearby eps."""
        return self._through(points.theta, points, rng)

    def extrapolated(self, points: Points, at: float, further: Points, now: float, eps: float, rng) -> Offsets:
        """From points at eps ``at`` and the same led on to ``now``: each coordinate has its own power of eps."""
        old, gap = points.theta - self.centre, further.theta - self.centre
        ratio = np.divide(gap, old, out=np.ones_like(gap), where=gap * old > 0)
        power = np.clip(np.log(ratio) / np.log(now / at), 0.0, STEEPEST)
        return self._through(np.clip(self.centre + gap * (eps / now) ** power, *self.box), points, rng)

    def _through(self, theta: np.ndarray, points: Points, rng) -> Offsets:
        """Offsets through theta (S, P), from covers that share the masses of cells as they do: on the way from one of
        other shares the mass of a cell would change, and with it the loss.

        No coordinate is left exactly at the truth, where losses have edges; what costs nothing is followed as it is.
        """
        centre = np.array([self._shared_as(row) for row in theta]).reshape(theta.shape)
        offset = theta - centre
        typical = np.median(np.abs(offset), axis=1) * (points.omega > SAME_FUNCTION)
        jitter = np.where(self.smooth | (offset != 0), _JITTER * rng.normal(size=offset.shape), 0.0)
        return Offsets(centre, offset + typical[:, None] * jitter, points.starts)

    def _shared_as(self, theta: np.ndarray) -> np.ndarray:
        """The truth covered by atoms that share the mass of each true one as those of theta do."""
        now, true = (self.search.log_weight(v) for v in (theta, self.centre))
        cell = np.equal.outer(self.owner, np.arange(max(self.owner) + 1))
        total = lambda v: np.log(np.exp(v) @ cell)[list(self.owner)]  # noqa: E731
        change = now - total(now) + total(true) - true
        found = self.centre.copy()
        found[self.masses] += self._to_masses @ (change - self._common * change.mean())
        return found
