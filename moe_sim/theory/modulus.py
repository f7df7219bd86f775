"""Modulus of continuity: exponents of rates by deterministic optimisation, no sampling.

    omega(eps) = min { d(f_G, f_G*) : L(G, G*) = eps, G in a compact neighbourhood },   d: L2(mu) or Hellinger.

If omega(eps) ~ eps^kappa then no estimator beats n^(-1/(2 kappa)) in L near G* (two points, Le Cam), and in these
parametric families maximum likelihood attains it. kappa = 1: n^-1/2; 2: n^-1/4; omega = 0: no rate at all.

The neighbourhood: the box of the study; every fitted atom begins on a true one, all ways of that that hit every true
atom are tried, and no coordinate of a gate may change what an atom counts for by more than a factor ``RANGE``
anywhere on the law: an atom whose mass vanishes, or whose gate closes, would make any loss cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim import mixture
from moe_sim.distances import density_nodes, function_residuals
from moe_sim.fitting import FitOptions, Fitter
from moe_sim.lanes import LaneFunction
from moe_sim.laws import Law
from moe_sim.losses import Loss, cells, evaluate
from moe_sim.models.base import MixtureModel, Model, Parameters
from moe_sim.theory.level import least_on_level

LARGEST, LEVELS = 0.3, 11  # eps at first, and how often offsets are halved
RANGE = 5.0
SAME = 1e-12  # distance below which two functions are the same to rounding
FLOOR = 1e-10  # distance below which rounding begins to tell: no smaller eps is tried
NODES = 12  # Gauss-Hermite nodes an axis: near the truth residuals are nearly polynomials
STARTS = 4  # random starts of an assignment a round, in all coordinates, beside one in each group of coordinates
ROUNDS = 3  # of fresh starts, at most, until ``ENOUGH`` of all starts agree on the least omega
ENOUGH = 2
KEPT = 2  # best points of an assignment that are followed to the next eps


@dataclass(frozen=True)
class Modulus:
    """omega over eps for one loss; the arrays are (E,), from the largest eps to the smallest.

    kappa: slope of log omega over log eps between the two smallest, ``local_kappa`` (E - 1,) between all neighbours.
    cells: fitted atoms on each true atom, at each eps. measures: parameters of G_eps at each eps. agreeing: starts
    within 1% of the least omega. dimension: of the set of parameters that give f_G*, at the last G_eps, if degenerate.
    """

    loss: str
    eps: np.ndarray
    omega: np.ndarray
    cells: list[list[int]]
    measures: list[Parameters]
    agreeing: list[int]
    dimension: int | None = None

    @property
    def degenerate(self) -> bool:
        """Whether omega is zero to rounding, at every eps: no estimator has any rate."""
        return bool(len(self.omega) and np.all(self.omega < SAME))

    @property
    def local_kappa(self) -> np.ndarray:
        return np.diff(np.log(np.maximum(self.omega, 1e-300))) / np.diff(np.log(self.eps))

    @property
    def kappa(self) -> float | None:
        return None if self.degenerate or len(self.omega) < 2 else float(self.local_kappa[-1])

    @property
    def exponent(self) -> float | None:
        """Of the fastest possible rate n^-exponent; 0 where degenerate."""
        if self.degenerate:
            return 0.0
        return None if self.kappa is None or self.kappa <= 0 else 1 / (2 * self.kappa)

    def to_json(self) -> dict[str, Any]:
        return {
            "loss": self.loss, "eps": self.eps.tolist(), "omega": self.omega.tolist(), "kappa": self.kappa,
            "local_kappa": [] if self.degenerate else self.local_kappa.tolist(), "exponent": self.exponent,
            "degenerate": self.degenerate, "dimension": self.dimension, "cells": self.cells, "agreeing": self.agreeing,
            "measures": [{k: np.asarray(v).tolist() for k, v in m.items()} for m in self.measures],
        }  # fmt: skip

    @staticmethod
    def from_json(told: dict[str, Any]) -> Modulus:
        """The modulus that ``to_json`` told of."""
        measures = [{k: np.asarray(v) for k, v in m.items()} for m in told["measures"]]
        eps, omega = np.array(told["eps"]), np.array(told["omega"])
        return Modulus(told["loss"], eps, omega, told["cells"], measures, told["agreeing"], told["dimension"])


def assignments(atoms: int, true_atoms: int) -> Iterator[tuple[int, ...]]:
    """How many of the fitted atoms sit on each true atom, at least one each."""
    if true_atoms == 1:
        yield (atoms,)
        return
    for first in range(atoms - true_atoms + 1, 0, -1):
        for rest in assignments(atoms - first, true_atoms - 1):
            yield first, *rest


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
    x, y, log_weight = jax.jit(density_nodes(model, law, NODES))(truth)
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
        return rows[:, None] * (mixture.scores(form, coefficients(theta), x, y) @ inner)

    return lambda theta: root * jnp.expm1(half_ratio(theta)), jacobian


class Search:
    """The compiled search of one model, truth, fitted size and list of losses."""

    def __init__(self, model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss]):
        self.fitter = fitter = Fitter(model, truth, options)
        self.model, self.truth, self.law, self.losses = model, truth, law, losses
        self.lower, self.upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
        names = fitter.unflatten_free(jnp.arange(len(self.lower)))
        self.groups = [np.isin(np.arange(len(self.lower)), np.asarray(v).ravel()) for v in names.values()]
        self.value, self.jacobian = residuals_near(model, truth, law, fitter.unflatten, options.atoms)
        self._unit = jax.jit(lambda theta: jnp.linalg.norm(self.jacobian(theta), axis=0))
        self._pull = jax.jit(self._shares)
        true_measure = model.measure(truth)

        def one(_, lane):
            centre, offset, eps, lower, upper, which = lane
            measure = lambda theta: model.measure(fitter.unflatten(theta))  # noqa: E731
            every = [lambda theta, loss=loss: evaluate(loss, measure(theta), true_measure) for loss in losses]
            return least_on_level(
                self.value, self.jacobian, lambda theta: jax.lax.switch(which, every, theta), centre, offset, eps,
                lower, upper,
            )  # fmt: skip

        self.solve = LaneFunction(one)
        self.cells = jax.jit(lambda theta: jnp.sum(cells(model.measure(fitter.unflatten(theta)), true_measure), axis=0))
        self.rank = jax.jit(lambda theta: jnp.linalg.svd(self.jacobian(theta), compute_uv=False))

    def _shares(self, theta):
        """How much each coordinate moves the log-share of an atom, at most, on the law: (P,)."""
        points = jnp.zeros((1, self.model.dimension)) if self.law is None else jnp.asarray(self.law.nodes()[0])
        moved = jax.vmap(lambda x: jax.jacfwd(lambda t: self.model.log_shares(self.fitter.unflatten(t), x))(theta))
        return jnp.max(jnp.abs(moved(points)), axis=(0, 1))

    def box(self, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbourhood of a cover of the truth (P,)."""
        pull = np.asarray(self._pull(jnp.asarray(centre)))
        reach = np.where(pull > 1e-12, np.log(RANGE) / np.maximum(pull, 1e-12), np.inf)
        return np.maximum(self.lower, centre - reach), np.minimum(self.upper, centre + reach)

    def offsets(self, centre: np.ndarray, rng) -> np.ndarray:
        """Fresh directions (S, P) to start in, in units of what they do to the function.

        All coordinates, and each group by itself: what costs least at a small eps often moves one group alone.
        """
        unit = np.asarray(self._unit(centre))
        unit = np.maximum(unit, 1e-3 * unit.max())
        masks = [np.ones(len(unit), bool)] * STARTS + self.groups
        noise = rng.normal(size=(len(masks), len(unit))) / unit
        # No coordinate exactly at the truth, where losses have edges.
        return np.where(masks, noise, 1e-3 * noise)

    def masses(self, centre: np.ndarray) -> np.ndarray:
        """Whether a coordinate moves masses only, (P,)."""

        def parts(theta):
            measure = self.model.measure(self.fitter.unflatten(theta))
            return measure.log_weight, measure.location

        weight, location = jax.jacfwd(parts)(jnp.asarray(centre))
        moves = lambda v: np.any(np.abs(v.reshape(-1, len(centre))) > 0, axis=0)  # noqa: E731
        return moves(np.asarray(weight)) & ~moves(np.asarray(location))


class _Lanes(NamedTuple):
    """Centres and offsets (S, P) to start from, and the points at the last eps that they came from, NaN for none."""

    centre: np.ndarray
    offset: np.ndarray
    before: np.ndarray

    def and_also(self, other: _Lanes) -> _Lanes:
        return _Lanes(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class _Branch:
    """One way of putting fitted atoms on true ones, and the points found for it, from eps to eps."""

    def __init__(self, search: Search, sizes: tuple[int, ...]):
        self.search = search
        self.centre = search.fitter.cover(tuple(np.repeat(np.arange(len(sizes)), sizes).tolist()))
        self.box = search.box(self.centre)
        self.masses = search.masses(self.centre)
        self.kept = self.earlier = np.zeros((0, len(self.centre)))  # thetas, and those they came from
        self.eps = [np.nan, np.nan]  # of the last two

    def fresh(self, rng) -> _Lanes:
        offsets = self.search.offsets(self.centre, rng)
        return _Lanes(np.tile(self.centre, (len(offsets), 1)), offsets, np.full_like(offsets, np.nan))

    def followed(self, eps: float, rng) -> _Lanes:
        """From the points kept at the last eps, in two ways."""
        rows = []
        for theta, earlier in zip(self.kept, self.earlier, strict=True):
            gap = theta - self.centre
            # All offsets shrink alike, but for how mass is shared, which stays.
            ways = [(np.where(self.masses, theta, self.centre), np.where(self.masses, 0.0, gap))]
            if np.isfinite(earlier).all():
                # Each coordinate has its own power of eps: the one that it has just shown.
                ratio = np.divide(gap, earlier - self.centre, out=np.zeros_like(gap), where=earlier != self.centre)
                power = np.log(eps / self.eps[-1]) / np.log(self.eps[-1] / self.eps[-2])
                ways.append((self.centre, gap * np.where(ratio > 0, np.clip(ratio, 1e-3, 1.2), 0.0) ** power))
            for centre, offset in ways:
                # No coordinate exactly at the truth, where losses have edges.
                jitter = 1e-7 * np.median(np.abs(offset)) * rng.normal(size=len(gap))
                rows.append(np.stack([centre, offset + jitter, theta]))
        return _Lanes(*np.array(rows).reshape(-1, 3, len(self.centre)).transpose(1, 0, 2))

    def keep(self, eps: float, theta: np.ndarray, omega: np.ndarray, before: np.ndarray) -> None:
        """Follow the best point on, and the next one that differs from it."""
        chosen: list[int] = []
        for i in np.argsort(omega, kind="stable"):
            if np.isfinite(omega[i]) and len(chosen) < KEPT and all(omega[i] > 1.01 * omega[j] for j in chosen):
                chosen.append(i)
        self.kept, self.earlier = theta[chosen], before[chosen]
        self.eps = [self.eps[-1], eps]


def modulus(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss],
    progress: Callable[[str, float, float], None] | None = None, eps: np.ndarray | None = None,
) -> Iterator[Modulus]:  # fmt: skip
    """The ``Modulus`` of each loss, eps falling until rounding tells; ``progress(loss, eps, omega)`` after each eps.

    eps: falling values in place of those of ``grid``. The loss ``function`` is its own modulus. A loss that no
    neighbour of the truth reaches has empty arrays.
    """
    searched = [loss for loss in losses if loss.kind != "function"]
    search = Search(model, truth, law, options, searched) if searched else None
    for loss in losses:
        every = grid(loss, options.atoms - len(truth[model.mass]) + 1) if eps is None else eps
        if search is None or loss.kind == "function":
            yield Modulus(loss.name, every, every, [], [], [])
        else:
            yield _one(search, searched.index(loss), every, progress)


def grid(loss: Loss, most: int) -> np.ndarray:
    """Values of eps (LEVELS,) at which offsets halve; a Voronoi loss is a power of them, in cells of ``most`` atoms."""
    powers = [row[min(most, len(row)) - 1] for _, row in loss.exponents] if loss.kind == "voronoi" else [1.0]
    return LARGEST * 0.5 ** (max(powers) * np.arange(LEVELS))


def _one(search: Search, which: int, every: np.ndarray, progress) -> Modulus:
    """One loss, from eps to eps."""
    true_atoms = len(search.truth[search.model.mass])
    branches = [_Branch(search, sizes) for sizes in assignments(search.fitter.options.atoms, true_atoms)]
    rng = np.random.default_rng([0, which])
    found: list[tuple[float, float, int, np.ndarray]] = []  # eps, omega, agreeing, theta
    for eps in every:
        found.append((float(eps), *_level(search, branches, which, float(eps), rng)))
        if not np.isfinite(found[-1][1]):
            found.pop()
            break
        if progress is not None:
            progress(search.losses[which].name, *found[-1][:2])
        if SAME < found[-1][1] < FLOOR:
            break
    eps, omega = np.array([f[:2] for f in found]).reshape(-1, 2).T
    thetas = [f[3] for f in found]
    sizes = [np.asarray(search.cells(theta)).astype(int).tolist() for theta in thetas]
    measures = [{k: np.asarray(v) for k, v in search.fitter.unflatten(theta).items()} for theta in thetas]
    made = Modulus(search.losses[which].name, eps, omega, sizes, measures, [f[2] for f in found])
    if not made.degenerate:
        return made
    singular = np.asarray(search.rank(thetas[-1]))
    return replace(made, dimension=int(len(thetas[-1]) - np.sum(singular > 1e-8 * singular[0])))


def _level(search: Search, branches: list[_Branch], which: int, eps: float, rng) -> tuple[float, int, np.ndarray]:
    """Least omega at eps, how many starts agree on it, and where; all assignments side by side, in rounds."""
    lanes = [branch.followed(eps, rng) for branch in branches]
    done: list[list] = [[] for _ in branches]
    for _ in range(ROUNDS):
        lanes = [old.and_also(branch.fresh(rng)) for old, branch in zip(lanes, branches, strict=True)]
        counts = [len(part.offset) for part in lanes]
        boxes = [np.repeat(np.stack([branch.box[side] for branch in branches]), counts, axis=0) for side in (0, 1)]
        every = jax.tree.map(lambda *parts: np.concatenate(parts), *lanes)
        same = np.ones(len(every.offset), int)
        point = search.solve(None, (every.centre, every.offset, eps * same, *boxes, which * same))
        ends = np.cumsum(counts)[:-1]
        for rows, part, theta, omega in zip(
            done, lanes, np.split(point.theta, ends), np.split(point.omega, ends), strict=True
        ):
            rows.append((theta, omega, part.before))
        theta, omega, _ = (np.concatenate(v) for v in zip(*(row for rows in done for row in rows), strict=True))
        agreeing = int(np.sum(omega <= max(1.01 * omega.min(), SAME)))
        if agreeing >= ENOUGH:
            break
        lanes = [_Lanes(*(v[:0] for v in part)) for part in lanes]
    for branch, rows in zip(branches, done, strict=True):
        branch.keep(eps, *(np.concatenate(v) for v in zip(*rows, strict=True)))
    best = int(np.argmin(omega))
    return float(omega[best]), agreeing, theta[best]
