"""Fitting: starts, many starts, certificates. ``fit`` takes samples of one size and returns ``Fits``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from moe_sim.data.covariates import Law
from moe_sim.data.samples import Part, StoredSample
from moe_sim.errors import InputError
from moe_sim.fitting import starts as start_rules
from moe_sim.fitting.batching import LaneFunction, batching
from moe_sim.fitting.options import FitOptions, estimators
from moe_sim.likelihood.objective import Passes, least_squares, likelihood
from moe_sim.losses.distances import function_distance
from moe_sim.losses.voronoi import Loss, evaluate_all
from moe_sim.models.base import MixtureModel, Model, Parameters, RegressionModel
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.em import expectation_maximization, variance_groups
from moe_sim.solvers.gradient import gradient_descent
from moe_sim.solvers.solution import TOLERANCE, Solution, Status
from moe_sim.solvers.steps import steps
from moe_sim.solvers.trust_region import trust_region

NEAR = 0.5  # log-likelihood units: fits this close to the best are statistically the same fit
PROMISE = 1e-3  # log-likelihood units a certified point may still be promised
CURVATURE = -1e-3  # least scaled eigenvalue that a certified point may have
_ROUND = 25  # iterations a round where lanes run together
_FIRST_ORDER_ROUND = 1000  # of a first-order method, whose momentum is lost between rounds

SELECT = 5.0  # log-likelihood units: starts so far behind the best on a subsample are not followed further
SAME = 1e-4  # log-likelihood units: starts this close on a subsample have found one and the same optimum there
_PATIENCE = 10  # scoring steps before the exact Hessian, which costs a mixture little more than a score
_LEVEL = 8  # factor between the subsamples that a start is led through

SOLVERS: dict[str, Callable] = {
    "least-squares": trust_region, "mle": trust_region, "em": expectation_maximization, "gradient": gradient_descent,
    "steps": steps,
}  # fmt: skip
CERTIFICATES = {
    "certified": "stationary, not above the objective at the truth, and reached from at least two starts",
    "above_truth": "the truth has a lower objective, so the minimiser was not found",
    "not_stationary": "a step of at most ten standard errors promises more than 0.001 log-likelihood units",
    "lone_start": "no second start came within 0.5 log-likelihood units of the best",
    "degenerate": "every start ended with a variance on its lower bound, where the likelihood has a spike, no estimate",
} | {str(status): status.explain() for status in Status if status not in (Status.CONVERGED, Status.FLAT)}


class Lanes(NamedTuple):
    """Starts that were followed to the end, (L,) each: replicate, how many starts each stands for, their solutions,
    and whether a variance lies on its lower bound there."""

    replicate: np.ndarray
    copies: np.ndarray
    solution: Solution
    degenerate: np.ndarray


class Fits(NamedTuple):
    """R fitted replicates, arrays with first axis R.

    theta (R, P) the best fit, objective and objective_at_truth in log-likelihood units, status (a ``Status``),
    promised and curvature (see ``solvers.certificate``), agreeing: starts within ``NEAR`` of the best, starts:
    starts spent, iterations and passes: summed over them (passes in units of one over the whole sample, those over
    subsamples included; the first chunk's are not), certificate (R,) of strings (``CERTIFICATES``).
    near: one array (k_r, P) a replicate, all fits within ``NEAR`` of the best, the best included.
    lanes: starts that were followed to the end, all replicates'.
    """

    theta: np.ndarray
    objective: np.ndarray
    objective_at_truth: np.ndarray
    status: np.ndarray
    promised: np.ndarray
    curvature: np.ndarray
    agreeing: np.ndarray
    starts: np.ndarray
    iterations: np.ndarray
    passes: np.ndarray
    certificate: np.ndarray
    near: list[np.ndarray]
    lanes: Lanes


class _Spent(NamedTuple):
    """What each replicate has cost so far, (R,) each: see ``Fits``."""

    starts: np.ndarray
    iterations: np.ndarray
    passes: np.ndarray


def passes_of(model: Model, unflatten: Callable, atoms: int) -> Passes:
    """The passes of a model with ``atoms`` atoms; ``unflatten(theta)`` gives its parameters."""
    if isinstance(model, MixtureModel):
        return likelihood(model.form(atoms), lambda theta: model.coefficients(unflatten(theta)))
    assert isinstance(model, RegressionModel)
    return least_squares(lambda theta, x: model.mean(unflatten(theta), x), model.noise)


class Fitter:
    """The compiled machinery of one model, truth, and set of options: make one a study, use it for all sizes.

    truth: None where it is not known (data of one's own); the start rule is then ``data``.
    """

    def __init__(self, model: Model, truth: Parameters | None, options: FitOptions, how: str | None = None):
        if options.estimator not in estimators(model):
            raise InputError(
                f"fit.estimator = {options.estimator!r} does not fit this model: pass {' or '.join(estimators(model))}"
            )
        self.model, self.truth, self.options = model, truth, options
        lower, upper = model.box(options.atoms, options.bound, options.bias_bound)
        self.lower, unravel = ravel_pytree(lower)
        self.upper, _ = ravel_pytree(upper)
        self.unflatten = unflatten = lambda theta: model.restore(unravel(theta))
        self.unflatten_free = unravel
        self.cover = cache(lambda atoms: self.flatten(model.cover(truth or {}, np.array(atoms))))
        scales = {name: np.full(np.shape(v), name in getattr(model, "variances", ())) for name, v in lower.items()}
        self._scales = np.asarray(ravel_pytree(scales)[0], bool)
        self.how = how or batching()
        self.passes = passes = passes_of(model, unflatten, options.atoms)
        # Where lanes run together, rounds of equal length that add up to no more than the limit.
        length = _ROUND if SOLVERS[options.estimator] is trust_region else _FIRST_ORDER_ROUND
        rounds = 1 if self.how == "map" else max(1, -(-options.max_iterations // length))
        self.cap = cap = options.max_iterations // rounds
        keywords = dict(options.solver)
        if options.estimator in ("em", "steps") and isinstance(model, MixtureModel):
            keywords["groups"] = self._groups(model)
        # The start as it is, no subsamples: a control shows what the start does.
        self.direct = direct = options.estimator == "steps"
        self.tolerance = keywords.pop("tolerance", 0.0 if direct else TOLERANCE)
        if options.estimator == "mle":
            keywords["patience"] = _PATIENCE
        minimise = partial(SOLVERS[options.estimator], passes, lower=self.lower, upper=self.upper, **keywords)
        by_cluster = start_rules.clusters(options.start, model)

        def improve(sample, lane):
            """The best candidate of a start on the first chunk, and the optimum near it there."""
            _, points = lane
            if by_cluster:
                x, y, weight = sample.chunk(0)
                points = jax.lax.map(lambda u: self._from_clusters(u, x, y, weight), points)
            value = jax.lax.map(lambda theta: passes.value(theta, _head(sample)), points)
            best = jnp.nanargmin(value)
            if direct or _is_small(sample):
                return points[best], value[best]
            if options.estimator == "gradient":
                found = trust_region(passes, _head(sample), points[best], self.lower, self.upper, 100, SAME)
            else:
                limit = min(500, options.max_iterations)
                found = minimise(_head(sample), points[best], max_iterations=limit, tolerance=SAME)
            return found.theta, found.objective

        def solve(sample, lane):
            _, theta, tolerance = lane
            return minimise(sample, theta, max_iterations=cap, tolerance=tolerance)

        at_truth = passes_of(model, lambda theta: truth, len(truth[model.mass])) if truth is not None else None

        def certify(sample, lane):
            _, theta = lane
            known = jnp.array(jnp.inf) if at_truth is None else at_truth.value(jnp.zeros(0), sample)
            return known, *still_promised(passes, sample, theta, self.lower, self.upper)

        functions = (improve, solve, certify)
        self._improve, self._solve, self._certify = (LaneFunction(f, self.how, samples=True) for f in functions)

    def _from_clusters(self, uniform, x, y, weight):
        assert isinstance(self.model, MixtureModel)
        params = start_rules.from_data(self.model, uniform, x, y, weight)
        return jnp.clip(ravel_pytree(self.model.free(params))[0], self.lower, self.upper)

    def _groups(self, model: MixtureModel):
        form = model.form(self.options.atoms)
        middle = (self.lower + self.upper) / 2
        flat = lambda theta: form.ravel(model.coefficients(self.unflatten(theta)))  # noqa: E731
        return variance_groups(form, np.asarray(jax.jacfwd(flat)(middle)))

    def flatten(self, params: Parameters) -> np.ndarray:
        """Named parameters as a flat vector of free coordinates (P,)."""
        return np.asarray(ravel_pytree(self.model.free(params))[0], float)

    def jobs(self, samples) -> list[tuple[LaneFunction, Any, Any]]:
        """What there is to compile for samples of this shape (see ``batching.compile_together``)."""
        first, theta = np.zeros(1, int), np.asarray(self.lower)[None]
        candidates = self.starting_points([np.random.SeedSequence(0)])[0, :1]
        part = samples if _is_small(samples) else _part(samples, 1)
        jobs = [(self._solve, part, (first, theta, np.ones(1))), (self._certify, samples, (first, theta))]
        return [*jobs, (self._improve, part, (first, candidates))]

    def starting_points(self, seeds: list[np.random.SeedSequence], n: float = 1.0) -> np.ndarray:
        """Candidates (R, starts, C, P) of one round, one seed a replicate (see ``starts.candidates``)."""
        o = self.options
        spread: Any = o.spread
        if isinstance(spread, dict):
            parts = {k: np.full(np.shape(v), spread.get(k, 0.0)) for k, v in self.unflatten_free(self.lower).items()}
            spread = np.asarray(ravel_pytree(parts)[0])
        true_atoms = o.atoms if self.truth is None else len(self.truth[self.model.mass])
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        rule = partial(
            start_rules.candidates, o.start, self.model, true_atoms, o.atoms, lower, upper, o.starts,
            cover=self.cover, spread=spread, shrink=n**-o.spread_exponent,
        )  # fmt: skip
        return np.stack([rule(seed) for seed in seeds])

    def solve(self, samples, replicate: np.ndarray, start: np.ndarray, tolerance: float | None = None) -> Solution:
        """Solve every lane from its start; lanes cut off by a round are gathered and go on."""
        limit = np.full(len(replicate), self.tolerance if tolerance is None else tolerance)
        found: Solution = self._solve(samples, (replicate, start, limit))
        while self.how != "map" and self.cap:
            left = (found.status == Status.MAX_ITERATIONS) & (
                found.iterations + self.cap <= self.options.max_iterations
            )
            if not left.any():
                break
            more: Solution = self._solve(samples, (replicate[left], found.theta[left], limit[left]))
            spent = {name: getattr(found, name)[left] + getattr(more, name) for name in ("iterations", "passes")}
            for old, new in zip(found, more._replace(**spent), strict=True):
                old[left] = new
        return found

    def first_points(self, seeds: list[np.random.SeedSequence], n: float = 1.0) -> np.ndarray:
        """``starting_points`` of the first round of ``fit`` with these seeds."""
        return self.starting_points([_of_round(seed, 0) for seed in seeds], n)

    def fit(self, samples, seeds: list[np.random.SeedSequence], n: float = 1.0, first=None) -> Fits:
        """Fit R samples (leaves with first axis R); ``seeds`` make their starts, and those of later rounds.

        n: the sample size, which only ``spread_exponent`` asks for. first: ``first_points``, where they are made.
        """
        count, size = len(seeds), self.options.starts
        lanes: list[Lanes] = []
        spent = _Spent(*np.zeros((3, count)))
        pending = np.arange(count)
        head = samples if _is_small(samples) else _part(samples, 1)
        checked = np.zeros((4, count))
        for attempt in range(max(1, self.options.budget)):
            points = first
            if points is None or attempt:
                points = self.starting_points([_of_round(seeds[r], attempt) for r in pending], n)
            replicate = np.repeat(pending, size)
            spent.starts[pending] += size
            start, value = self._improve(head, (replicate, points.reshape(len(replicate), *points.shape[2:])))
            lanes.append(self._follow(samples, replicate, start, value, spent))
            fits = self._judge(samples, lanes, spent, pending, checked)
            pending = np.flatnonzero(fits.certificate != "certified")
            if not len(pending):
                break
        return fits

    def _follow(self, samples, replicate, theta, value, spent: _Spent) -> Lanes:
        """Lead starts to optima of the whole sample, through larger and larger subsamples.

        After each (``value`` is that on the first chunk) the hopeless are left behind, and those that met go on as one.
        """
        copies = np.ones(len(replicate), int)
        small = _is_small(samples)
        total = int(np.max(samples.chunks))
        levels = [total] if small or self.direct else _levels(total)
        for chunks in levels:
            if not (small or self.direct):
                first = chunks == levels[0]
                kept, copies = _survivors(replicate, copies, value, self._degenerate(theta), first)
                replicate, theta = replicate[kept], theta[kept]
            part = samples if small else _part(samples, chunks)
            # Lanes that meet must meet within SAME, so that is how well a subsample is solved.
            tolerance = self.tolerance if chunks == total else max(SAME, self.tolerance)
            found = self.solve(part, replicate, theta, tolerance)
            np.add.at(spent.passes, replicate, found.passes * (chunks / total))
            np.add.at(spent.iterations, replicate, found.iterations)
            theta, value = found.theta, found.objective
        return Lanes(replicate, copies, found, self._degenerate(np.asarray(found.theta)))

    def _degenerate(self, theta: np.ndarray) -> np.ndarray:
        """Whether a variance lies on its lower bound, (K,) of thetas (K, P)."""
        return np.any((theta <= np.asarray(self.lower) + 1e-6) & self._scales, axis=1)

    def _judge(self, samples, lanes: list[Lanes], spent: _Spent, pending, checked) -> Fits:
        """Best fit, certificate and near-minimisers of each replicate from all lanes so far.

        ``checked`` (4, R) is what ``certify`` found, of which the replicates ``pending`` have to be looked at again.
        """
        owner, copies, every, spoilt = together = jax.tree.map(lambda *parts: np.concatenate(parts), *lanes)
        # A spike of the likelihood is no estimate: it is the best only where there is nothing else.
        value = np.where(np.isfinite(every.objective), every.objective, np.inf)
        order = np.lexsort((value, spoilt, owner))
        best = order[np.searchsorted(owner[order], np.arange(checked.shape[1]))]
        close = (value <= value[best][owner] + NEAR) & (spoilt == spoilt[best][owner])
        checked[:, pending] = self._certify(samples, (pending, every.theta[best][pending]))
        at_truth, objective, promised, least = checked.copy()
        agreeing = np.bincount(owner, close * copies, minlength=len(best)).astype(int)
        status = every.status[best]
        slack = 1e-6 + 1e-12 * np.where(np.isfinite(at_truth), np.abs(at_truth), 0.0)
        stationary = (promised <= PROMISE) & (least >= CURVATURE)
        solver = np.array([str(Status(int(s))) for s in status], dtype=object)
        doubted = np.isin(status, [Status.MAX_ITERATIONS, Status.STALLED, Status.EARLY])
        certificate = np.select(
            [
                ~np.isfinite(objective), spoilt[best], objective > at_truth + slack, ~stationary,
                (agreeing < 2) & (spent.starts > 1),
            ],
            [
                str(Status.NOT_FINITE), "degenerate", "above_truth", np.where(doubted, solver, "not_stationary"),
                "lone_start",
            ],
            "certified",
        )  # fmt: skip
        near = [every.theta[close & (owner == r)] for r in range(len(best))]
        return Fits(
            every.theta[best], objective, at_truth, status, promised, least, agreeing,
            spent.starts.astype(int), spent.iterations.astype(int), spent.passes.copy(), certificate, near,
            together,
        )  # fmt: skip


def _of_round(seed: np.random.SeedSequence, attempt: int) -> np.random.SeedSequence:
    """The child that ``seed.spawn`` gives at this place, without using it up."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, attempt))


def _survivors(replicate, copies, value, spoilt, first) -> tuple[np.ndarray, np.ndarray]:
    """Lanes worth following, one for each optimum of a replicate, and how many starts each stands for.

    replicate, copies, value, spoilt: (L,) of lanes. A ``spoilt`` one is no measure for the others. It is followed
    all the same, since a larger sample may mend it, but after the ``first`` chunk, where there are many of them and a
    start costs little, only if there is no other.
    """
    kept: list[int] = []
    number: list[int] = []
    value = np.where(np.isfinite(value), value, np.inf)
    for r in np.unique(replicate):
        group = np.flatnonzero(replicate == r)
        sound = group if spoilt[group].all() else group[~spoilt[group]]
        group = sound if first else group
        followed = group[value[group] <= value[sound].min() + SELECT]
        followed = followed[np.argsort(value[followed], kind="stable")]
        new = np.append(True, value[followed][1:] > value[followed][:-1] + SAME)
        kept.extend(followed[new])
        number.extend(np.bincount(np.cumsum(new) - 1, copies[followed]).astype(int))
    return np.array(kept), np.array(number)


def _levels(total: int) -> list[int]:
    """Chunks of the subsamples that starts are led through, the whole sample last."""
    levels, chunks = [], _LEVEL
    while 2 * chunks < total:
        levels.append(chunks)
        chunks *= _LEVEL
    return [*levels, total]


def _part(samples, chunks: int) -> Part:
    """The first chunks of each sample of a batch."""
    return Part(samples, jnp.full(len(jax.tree.leaves(samples)[0]), chunks))


def _is_small(sample) -> bool:
    """One chunk holds it all: a subsample would save nothing."""
    return isinstance(sample, StoredSample) and sample.weight.shape[-2] == 1


def _head(sample) -> StoredSample:
    """The first chunk, the subsample that starts are improved on."""
    return sample if _is_small(sample) else StoredSample(*(leaf[None] for leaf in sample.chunk(0)))


def loss_function(model: Model, truth: Parameters, law: Law | None, losses: list[Loss], unflatten) -> LaneFunction:
    """Call it with ``(None, thetas (K, P))`` for ``{loss name: (K,)}``: every loss of every fit, on all devices."""
    distance = function_distance(model, truth, law)
    true_measure = model.measure(truth)
    of_measures = [loss for loss in losses if loss.kind != "function"]

    def one(_, theta):
        params = unflatten(theta)
        found = evaluate_all(of_measures, model.measure(params), true_measure)
        return {loss.name: distance(params) if loss.kind == "function" else found[loss.name] for loss in losses}

    return LaneFunction(one)
