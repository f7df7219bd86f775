"""Fitting: starts, many starts, certificates. ``fit`` takes samples of one size and returns ``Fits``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from moe_sim import starts as start_rules
from moe_sim.errors import InputError
from moe_sim.lanes import LaneFunction, batching
from moe_sim.laws import Law
from moe_sim.losses import Loss, evaluate
from moe_sim.models.base import Parameters, RegressionModel
from moe_sim.passes import least_squares
from moe_sim.sampling import StoredSample
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.gradient import gradient_descent
from moe_sim.solvers.solution import Solution, Status
from moe_sim.solvers.trust_region import trust_region

NEAR = 0.5  # log-likelihood units: fits this close to the best are statistically the same fit
PROMISE = 1e-3  # log-likelihood units a certified point may still be promised
CURVATURE = -1e-3  # least scaled eigenvalue that a certified point may have
_ROUND = 25  # iterations a round where lanes run together
_FIRST_ORDER_ROUND = 1000  # of a first-order method, whose momentum is lost between rounds

SOLVERS: dict[str, Callable] = {"least-squares": trust_region, "gradient": gradient_descent}

CERTIFICATES = {
    "certified": "stationary, not above the objective at the truth, and reached from at least two starts",
    "above_truth": "the truth has a lower objective, so the minimiser was not found",
    "not_stationary": "a step of at most ten standard errors promises more than 0.001 log-likelihood units",
    "lone_start": "no second start came within 0.5 log-likelihood units of the best",
} | {str(status): status.explain() for status in Status if status not in (Status.CONVERGED, Status.FLAT)}


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the ``[fit]`` table of a study.

    budget: at most this many times ``starts`` starts are spent on a replicate that is not certified.
    spread: noise of the ``wide`` and ``truth`` start rules (default in ``starts.SPREAD``).
    solver: further keywords of the solver (optimizer, learning_rate, tolerance).
    """

    atoms: int
    estimator: str = "least-squares"
    start: str = "data"
    starts: int = 8
    budget: int = 4
    bound: float = 6.0
    bias_bound: float = 3.0
    max_iterations: int = 300
    spread: float | None = None
    solver: dict[str, Any] = field(default_factory=dict)


class Fits(NamedTuple):
    """R fitted replicates, arrays with first axis R.

    theta (R, P) the best fit, objective and objective_at_truth in log-likelihood units, status (a ``Status``),
    promised and curvature (see ``solvers.certificate``), agreeing: starts within ``NEAR`` of the best, starts:
    starts spent, iterations and passes: summed over them, certificate (R,) of strings (``CERTIFICATES``).
    near: one array (k_r, P) a replicate, all fits within ``NEAR`` of the best, the best included.
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


class Fitter:
    """The compiled machinery of one model, truth, and set of options: make one a study, use it for all sizes."""

    def __init__(self, model: RegressionModel, truth: Parameters, options: FitOptions, how: str | None = None):
        if options.estimator not in SOLVERS:
            raise InputError(
                f"fit.estimator = {options.estimator!r} does not fit a regression model: pass {' or '.join(SOLVERS)}"
            )
        self.model, self.truth, self.options = model, truth, options
        lower, upper = model.box(options.atoms, options.bound, options.bias_bound)
        self.lower, self.unflatten = ravel_pytree(lower)
        self.upper, _ = ravel_pytree(upper)
        self.how = how or batching()
        passes = least_squares(lambda theta, x: model.mean(self.unflatten(theta), x), model.noise)
        at_truth = least_squares(lambda theta, x: model.mean(truth, x), model.noise)
        # Where lanes run together, rounds of equal length that add up to no more than the limit.
        length = _ROUND if options.estimator == "least-squares" else _FIRST_ORDER_ROUND
        rounds = 1 if self.how == "map" else -(-options.max_iterations // length)
        self.cap = cap = options.max_iterations // rounds
        minimise = partial(SOLVERS[options.estimator], max_iterations=cap, **options.solver)

        def pick(samples, replicate):
            return jax.tree.map(lambda leaf: leaf[replicate], samples)

        def improve(samples, lane):
            replicate, options_ = lane
            sample = pick(samples, replicate)
            value = jax.lax.map(lambda theta: passes.value(theta, _head(sample)), options_)
            start = options_[jnp.nanargmin(value)]
            if _is_small(sample):
                return start
            head = _head(sample)
            return trust_region(passes, head, start, self.lower, self.upper, max_iterations=50).theta

        def solve(samples, lane):
            replicate, theta = lane
            return minimise(passes, pick(samples, replicate), theta, self.lower, self.upper)

        def certify(samples, lane):
            replicate, theta = lane
            sample = pick(samples, replicate)
            promised, least = still_promised(passes, sample, theta, self.lower, self.upper)
            return passes.value(theta, sample), promised, least

        self._improve, self._solve, self._certify = (LaneFunction(f, self.how) for f in (improve, solve, certify))
        self._at_truth = LaneFunction(lambda samples, lane: at_truth.value(jnp.zeros(0), pick(samples, lane)), self.how)

    def flatten(self, params: Parameters) -> np.ndarray:
        """Named parameters as a flat vector (P,)."""
        return np.asarray(ravel_pytree(params)[0])

    def jobs(self, samples) -> list[tuple[LaneFunction, Any, Any]]:
        """What there is to compile for samples of this shape (see ``lanes.compile_together``)."""
        first, theta = np.zeros(1, int), np.asarray(self.lower)[None]
        candidates = self.starting_points([np.random.SeedSequence(0)])[0, :1]
        pairs = [(self._solve, theta), (self._certify, theta), (self._improve, candidates)]
        return [(f, samples, (first, lane)) for f, lane in pairs] + [(self._at_truth, samples, first)]

    def starting_points(self, seeds: list[np.random.SeedSequence]) -> np.ndarray:
        """Candidates (R, starts, C, P) of one round, one seed a replicate."""
        o = self.options
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        rule = partial(
            start_rules.candidates, o.start, self.model, self.truth, o.atoms, lower, upper, o.starts,
            flatten=self.flatten, spread=o.spread,
        )  # fmt: skip
        return np.stack([rule(seed) for seed in seeds])

    def solve(self, samples, replicate: np.ndarray, start: np.ndarray) -> Solution:
        """Solve every lane from its start; lanes cut off by a round are gathered and go on."""
        found: Solution = self._solve(samples, (replicate, start))
        while self.how != "map":
            left = (found.status == Status.MAX_ITERATIONS) & (
                found.iterations + self.cap <= self.options.max_iterations
            )
            if not left.any():
                break
            more: Solution = self._solve(samples, (replicate[left], found.theta[left]))
            spent = {name: getattr(found, name)[left] + getattr(more, name) for name in ("iterations", "passes")}
            for old, new in zip(found, more._replace(**spent), strict=True):
                old[left] = new
        return found

    def fit(self, samples, seeds: list[np.random.SeedSequence]) -> Fits:
        """Fit R samples (leaves with first axis R); ``seeds`` make their starts, and those of later rounds."""
        count, size = len(seeds), self.options.starts
        at_truth = np.asarray(self._at_truth(samples, np.arange(count)))
        lanes: list[tuple[np.ndarray, Solution]] = []
        pending = np.arange(count)
        rounds = [seed.spawn(max(1, self.options.budget)) for seed in seeds]
        for attempt in range(max(1, self.options.budget)):
            points = self.starting_points([rounds[r][attempt] for r in pending])
            replicate = np.repeat(pending, size)
            start = self._improve(samples, (replicate, points.reshape(len(replicate), *points.shape[2:])))
            lanes.append((replicate, self.solve(samples, replicate, np.asarray(start))))
            fits = self._judge(samples, lanes, at_truth)
            pending = np.flatnonzero(fits.certificate != "certified")
            if not len(pending):
                break
        return fits

    def _judge(self, samples, lanes, at_truth) -> Fits:
        """Best fit, certificate and near-minimisers of each replicate from all lanes so far."""
        owner = np.concatenate([replicate for replicate, _ in lanes])
        every = jax.tree.map(lambda *parts: np.concatenate(parts), *[solution for _, solution in lanes])
        value = np.where(np.isfinite(every.objective), every.objective, np.inf)
        order = np.lexsort((value, owner))
        best = order[np.searchsorted(owner[order], np.arange(len(at_truth)))]
        close = value <= value[best][owner] + NEAR
        total = lambda values: np.bincount(owner, values, minlength=len(at_truth)).astype(int)  # noqa: E731
        objective, promised, least = self._certify(samples, (np.arange(len(best)), every.theta[best]))
        agreeing, starts = total(close), total(np.ones(len(owner)))
        status = every.status[best]
        slack = 1e-6 + 1e-12 * np.abs(at_truth)
        stationary = (promised <= PROMISE) & (least >= CURVATURE)
        solver = np.array([str(Status(int(s))) for s in status], dtype=object)
        doubted = np.isin(status, [Status.MAX_ITERATIONS, Status.STALLED])
        certificate = np.select(
            [~np.isfinite(objective), objective > at_truth + slack, ~stationary, (agreeing < 2) & (starts > 1)],
            [str(Status.NOT_FINITE), "above_truth", np.where(doubted, solver, "not_stationary"), "lone_start"],
            "certified",
        )
        near = [every.theta[close & (owner == r)] for r in range(len(best))]
        return Fits(
            every.theta[best], objective, at_truth, status, promised, least, agreeing, starts,
            total(every.iterations), total(every.passes), certificate, near,
        )  # fmt: skip


def _is_small(sample) -> bool:
    """One chunk holds it all: a subsample would save nothing."""
    return isinstance(sample, StoredSample) and sample.weight.shape[-2] == 1


def _head(sample) -> StoredSample:
    """The first chunk, the subsample that starts are improved on."""
    return sample if _is_small(sample) else StoredSample(*(leaf[None] for leaf in sample.chunk(0)))


def loss_function(model: RegressionModel, truth: Parameters, law: Law, losses: list[Loss], unflatten) -> LaneFunction:
    """Call it with ``(None, thetas (K, P))`` for ``{loss name: (K,)}``: every loss of every fit, on all devices."""
    points, weights = (jnp.asarray(v) for v in law.nodes())
    target = jax.vmap(lambda x: model.mean(truth, x))(points)
    true_measure = model.measure(truth)

    def one(_, theta):
        params = unflatten(theta)
        measure = model.measure(params)
        gap = jax.vmap(lambda x: model.mean(params, x))(points) - target
        function = jnp.sqrt(weights @ jnp.sum(gap**2, axis=1))
        return {
            loss.name: function if loss.kind == "function" else evaluate(loss, measure, true_measure) for loss in losses
        }

    return LaneFunction(one)
