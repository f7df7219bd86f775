"""Fitting: starts, many starts, certificates. ``fit`` takes samples of one size and returns ``Fits``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim._engine import used
from moe_sim.data.samples import CountedSample
from moe_sim.errors import InputError
from moe_sim.fitting import spare
from moe_sim.fitting import starts as start_rules
from moe_sim.fitting.batching import batching
from moe_sim.fitting.compiled import SAME_OPTIMUM, Plan, Setting, beside, compiled, is_small, parameters_of, unraveller
from moe_sim.fitting.kinks import held
from moe_sim.fitting.options import FitOptions, estimators
from moe_sim.fitting.scans import GAIN, TURNS, jumping, scan
from moe_sim.fitting.sketches import led, reduced
from moe_sim.fitting.splits import splits, without_first
from moe_sim.fitting.subsamples import levels, met, part_of, survivors
from moe_sim.likelihood.objective import GRAIN, magnitude, passes_of
from moe_sim.models.base import Model, Parameters, Regression
from moe_sim.models.coordinates import ravel
from moe_sim.models.mixture import MixtureModel
from moe_sim.solvers.em import expectation_maximization, variance_groups
from moe_sim.solvers.gradient import gradient_descent
from moe_sim.solvers.solution import TOLERANCE, Solution, Status
from moe_sim.solvers.steps import steps
from moe_sim.solvers.trust_region import trust_region

NEAR = 0.5  # log-likelihood units: fits this close to the best are statistically the same fit
PROMISE = 1e-3  # log-likelihood units a certified point may still be promised
CURVATURE = -1e-3  # least scaled eigenvalue that a certified point may have
ITERATIONS_COMPARED = 40  # on counts, after which starts are compared, as on a subsample of a longer sample
ITERATIONS_PER_ROUND = 25  # where lanes run together
FIRST_ORDER_ITERATIONS_PER_ROUND = 1000  # whose momentum is lost between rounds

SPLIT_FROM = 1  # round from which atoms are split: where one round of quasi-random points certifies, none need be

_PATIENCE = 10  # scoring steps before the exact Hessian, which costs a mixture little more than a score

SOLVERS: dict[str, Callable] = {
    "least-squares": trust_region, "mle": trust_region, "em": expectation_maximization, "gradient": gradient_descent,
    "steps": steps,
}  # fmt: skip

CERTIFICATES = {
    "certified": "stationary, not above the objective at the truth, and reached from at least two starts",
    "above_truth": "the truth has a lower objective, so the minimiser was not found",
    "not_stationary": "a step of at most ten standard errors promises more than 0.001 log-likelihood units",
    "lone_start": "no second start came within 0.5 log-likelihood units of the best",
    "rising": "an atom is spare, and the last place that was tried for it gained more than 0.5 log-likelihood units",
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


class Fitter:
    """The fits of one model, truth, and set of options: make one a study, use it for all sizes.

    truth: None where it is not known (data of one's own); the start rule is then ``data``.
    """

    def __init__(self, model: Model, truth: Parameters | None, options: FitOptions, how: str | None = None):
        used()
        if options.estimator not in estimators(model):
            raise InputError(
                f"fit.estimator = {options.estimator!r} does not fit this model: pass {' or '.join(estimators(model))}"
            )
        self.model, self.options, self.how = model, options, how or batching()
        self.truth = None if truth is None else {k: jnp.asarray(v) for k, v in truth.items()}
        lower, upper = model.bounds(options.atoms, options.bound, options.bias_bound)
        self.lower, self.upper = (ravel(ends) for ends in (lower, upper))
        self.unflatten, self.unflatten_free = parameters_of(model, options.atoms), unraveller(model, options.atoms)
        self.cover = cache(lambda atoms: self.flatten(model.overfit(truth or {}, np.array(atoms))))
        scales = {name: np.full(np.shape(v), name in model.variances) for name, v in lower.items()}
        self._scales = ravel(scales).astype(bool)
        self.passes = passes_of(model, self.unflatten, options.atoms)
        self.direct = options.estimator == "steps"  # a control shows what the start does
        self.tolerance = options.solver.get("tolerance", 0.0 if self.direct else TOLERANCE)
        self.cap = self._cap()
        self.plan = self._plan()
        self.spares, self.splits = self._has_spares()
        self.jumping = jumping(model, options.atoms)
        groups = self._groups(model) if options.estimator in ("em", "steps") else None
        self.setting = Setting(model, self.lower, self.upper, self.truth, groups)
        sketch = model.sketch if isinstance(model, Regression) and not self.direct else None
        self.sketched = None if sketch is None else self.setting._replace(model=sketch)
        # A sketch leads so close that nothing but the exact Hessian helps on.
        close = sketch is not None and self.plan.solver is trust_region
        self.ending = replace(self.plan, keywords=(("patience", 1),)) if close else self.plan

    def _cap(self) -> int:
        """Iterations of a round: where lanes run together, rounds of equal length add up to no more than the limit."""
        second = SOLVERS[self.options.estimator] is trust_region
        length = ITERATIONS_PER_ROUND if second else FIRST_ORDER_ITERATIONS_PER_ROUND
        rounds = 1 if self.how == "map" else max(1, -(-self.options.max_iterations // length))
        return self.options.max_iterations // rounds

    def _plan(self) -> Plan:
        o = self.options
        keywords = {name: value for name, value in o.solver.items() if name != "tolerance"}
        if o.estimator == "mle":
            keywords["patience"] = _PATIENCE
        return Plan(
            SOLVERS[o.estimator], tuple(sorted(keywords.items())), tuple(self.model.sizes(o.atoms).items()),
            self.cap if self.direct else None, o.start, self.how,
        )  # fmt: skip

    @property
    def _improving(self) -> tuple[Plan, int]:
        """How starts are improved on the first chunk, and in how many iterations at most."""
        if self.plan.solver is not gradient_descent:
            return self.plan, min(500, self.options.max_iterations)
        return replace(self.plan, solver=trust_region, keywords=()), 100

    def _has_spares(self) -> tuple[bool, bool]:
        """Whether an atom may be one too many, so that starts with a spare one are tried: where it may go anywhere,
        data lead to the best place by chance only. The first: among clusters; the second: by splits, as a regression
        has none."""
        fitted = self.model.total(self.options.atoms)
        known = 1 if self.truth is None else self.model.count(self.truth)
        spare = len(self.model.groups) == 1 and not self.direct and fitted > known and self.options.start == "data"
        placed = start_rules.clusters(self.options.start, self.model)
        return (
            spare and placed and hasattr(self.model, "log_gates"),
            spare and isinstance(self.model, Regression) and self.model.divide_mass is not None,
        )

    def _groups(self, model: Model):
        if not isinstance(model, MixtureModel):
            return None
        form = model.form(model.total(self.options.atoms))
        middle = (self.lower + self.upper) / 2
        flat = lambda theta: form.ravel(model.coefficients(self.unflatten(theta)))  # noqa: E731
        return variance_groups(form, np.asarray(jax.jit(jax.jacfwd(flat))(middle)))

    def flatten(self, params: Parameters) -> np.ndarray:
        """Named parameters as a flat vector of free coordinates (P,)."""
        return np.asarray(ravel(self.model.unconstrain(params)), float)

    def jobs(self, samples) -> list[tuple]:
        """What there is to compile for samples of this shape (see ``batching.compile_together``)."""
        run = compiled(self.plan)
        first, theta, ends = np.zeros(1, int), np.asarray(self.lower)[None], (np.ones(1), np.ones(1, int))
        candidates = self.starting_points([np.random.SeedSequence(0)])[0, :1]
        part = samples if is_small(samples) else part_of(samples, 1)
        jobs: list[tuple] = [(compiled(self.ending).solve, (first, theta, *ends), part)]
        jobs.append((run.certify, (first, theta), samples))
        jobs.append((run.choose, (first, candidates), part))
        if self._improving[0] != self.plan and not is_small(samples):
            jobs.append((compiled(self._improving[0]).solve, (first, theta, *ends), part))
        if self.spares:
            number = spare.counts(samples)
            u = self._numbers([np.random.SeedSequence(0)], number)
            jobs.append((beside(self.plan, number), (first, theta, u), self._seen(samples)))
        return [(function, self.setting, lanes, of) for function, lanes, of in jobs]

    def starting_points(self, seeds: list[np.random.SeedSequence], n: float = 1.0) -> np.ndarray:
        """Candidates (R, starts, C, P) of one round, one seed a replicate (see ``starts.candidates``)."""
        o = self.options
        spread: Any = o.spread
        if isinstance(spread, dict):
            parts = {k: np.full(np.shape(v), spread.get(k, 0.0)) for k, v in self.unflatten_free(self.lower).items()}
            spread = ravel(parts)
        sizes = self.model.sizes(o.atoms) if self.truth is None else self.model.sizes_of(self.truth)
        true_atoms = sizes if len(sizes) > 1 else self.model.total(sizes)
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        rule = partial(
            start_rules.candidates, o.start, self.model, true_atoms, o.atoms, lower, upper, o.starts,
            cover=self.cover, spread=spread, shrink=n**-o.spread_exponent,
        )  # fmt: skip
        return np.stack([rule(seed) for seed in seeds])

    def solve(self, samples, replicate, start, tolerance: float | None = None, limit: int | None = None) -> Solution:
        """Solve every lane (L,) from its start (L, P), and where the function jumps look across edges in turn.

        limit: of iterations of a turn, that of the options where it is not given; in one round.
        """
        found = self._descend(samples, replicate, start, tolerance, limit)
        return self._across(samples, replicate, found, lambda r, s: self._descend(samples, r, s, tolerance, limit))

    def _across(self, samples, replicate, found: Solution, descend: Callable) -> Solution:
        """Scans (see ``scans``) and ``descend(replicate, theta)`` in turn, each lane until neither gains."""
        if self.direct or not self.jumping:
            return found
        lanes = np.arange(len(replicate))
        look = scan(self.plan.atoms, self.jumping, self.how)
        for _ in range(TURNS):
            theta, value = look(self.setting, (replicate[lanes], found.theta[lanes]), samples)
            better = ~(found.objective[lanes] - value <= GAIN)
            lanes, theta = lanes[better], theta[better]
            if not len(lanes):
                break
            more = descend(replicate[lanes], theta)
            _go_on(found, lanes, more)
        return found

    def _descend(self, samples, replicate, start, tolerance, limit) -> Solution:
        """Solve every lane; those cut off by a round are gathered and go on."""
        end = np.full(len(replicate), self.tolerance if tolerance is None else tolerance)
        cap = np.full(len(replicate), self.cap if limit is None else limit)
        run = compiled(self.ending).solve
        found: Solution = run(self.setting, (replicate, start, end, cap), samples)
        while self.how != "map" and self.cap and limit is None:
            left = (found.status == Status.MAX_ITERATIONS) & (
                found.iterations + self.cap <= self.options.max_iterations
            )
            if not left.any():
                break
            more: Solution = run(self.setting, (replicate[left], found.theta[left], end[left], cap[left]), samples)
            _go_on(found, left, more)
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
        head = samples if is_small(samples) else part_of(samples, 1)
        checked = np.zeros((4, count))
        settled: dict[int, np.ndarray] = {}
        before = np.full(count, np.inf)  # objectives without the last starts that had a spare atom
        begun = np.zeros((count, 0, len(self.lower)))  # starts of this round; where atoms are split, of all so far
        for attempt in range(max(1, self.options.budget)):
            points = first
            if points is None or attempt:
                points = self.starting_points([_of_round(seeds[r], attempt) for r in pending], n)
            replicate = np.repeat(pending, size)
            spent.starts[pending] += size
            start, value = self._improve(head, replicate, points.reshape(len(replicate), *points.shape[2:]))
            lanes.append(self._follow(samples, replicate, start, value, spent))
            of_round = np.zeros((count, size, len(self.lower)))
            of_round[pending] = start.reshape(len(pending), size, -1)
            begun = np.concatenate([begun, of_round], axis=1) if self.splits else of_round
            if self.spares or (self.splits and attempt >= SPLIT_FROM):
                before = least(lanes, count)
                # Where data lead to spikes only, a place that one is led to beside them is no better estimate.
                sound = np.isfinite(before[pending])
                if sound.any():
                    who = pending[sound]
                    children = [_of_round(_of_round(seeds[r], attempt), 0) for r in who]
                    lanes.append(self._beside(samples, head, who, begun[who], children, spent))
            fits = self._judge(samples, lanes, spent, pending, checked, before, settled)
            pending = np.flatnonzero(fits.certificate != "certified")
            if not len(pending):
                break
        return fits

    def _improve(self, head, replicate, points) -> tuple[np.ndarray, np.ndarray]:
        """The best of the candidates (L, C, P) of each start, led to the optimum near it on the first chunk, or by a
        sketch; values."""
        if self.sketched is not None:
            told = reduced(head, self.sketched)
            start, _ = compiled(self.plan).choose(self.sketched, (replicate, points), told)
            return self._led(self.sketched, head, told, replicate, start)
        start, value = compiled(self.plan).choose(self.setting, (replicate, points), head)
        if self.direct or is_small(head):
            return start, value
        plan, limit = self._improving

        def descend(replicate, theta) -> Solution:
            ends = np.full(len(theta), SAME_OPTIMUM), np.full(len(theta), limit)
            return compiled(plan).solve(self.setting, (replicate, theta, *ends), head)

        found = self._across(head, replicate, descend(replicate, start), descend)
        return np.asarray(found.theta), np.asarray(found.objective)

    def _led(self, cheap: Setting, head, told, replicate, start) -> tuple[np.ndarray, np.ndarray]:
        """Where a sketch leads starts (L, P) to (see ``sketches``), and the model's objective there; ``told``: the
        sample in the sketch's outputs."""
        ends = np.full(len(start), self.tolerance), np.full(len(start), self.options.max_iterations)
        found: Solution = compiled(self.plan).solve(cheap, (replicate, start, *ends), told)
        one, place = met(replicate, found.objective, PROMISE)  # those go on as one
        lanes = replicate[one], found.theta[one], *(end[one] for end in ends)
        theta, value = led(self.plan, self.setting, cheap, lanes, head)
        return theta[place], value[place]

    def _follow(self, samples, replicate, theta, value, spent: _Spent, smallest: int = 0) -> Lanes:
        """Lead starts to optima of the whole sample, through larger and larger subsamples.

        After each (``value`` is that on the first chunk) the hopeless are left behind, and those that met go on as one.
        smallest: chunks of the least subsample; ``value`` is None where no start is compared before that.
        """
        copies = np.ones(len(replicate), int)
        small = is_small(samples)
        total = int(np.max(samples.chunks))
        sizes = [total] if small or self.direct else [c for c in levels(total) if c >= min(smallest, total)]
        if isinstance(samples, CountedSample) and not self.direct:
            found = self.solve(samples, replicate, theta, SAME_OPTIMUM, ITERATIONS_COMPARED)
            np.add.at(spent.passes, replicate, found.passes)
            np.add.at(spent.iterations, replicate, found.iterations)
            spoilt = self._degenerate(np.asarray(found.theta))
            kept, copies = survivors(replicate, copies, found.objective, spoilt, True)
            replicate, theta = replicate[kept], found.theta[kept]
        for chunks in sizes:
            if not ((small and self.sketched is None) or self.direct or value is None):
                first = chunks == sizes[0]
                kept, copies = survivors(replicate, copies, value, self._degenerate(theta), first)
                replicate, theta = replicate[kept], theta[kept]
            part = samples if small else part_of(samples, chunks)
            # Lanes that meet must meet within SAME_OPTIMUM, so that is how well a subsample is solved.
            # Where a sketch has walked the valleys, no more is to be gained by walking them again.
            whole = chunks == total and self.sketched is None
            tolerance = self.tolerance if whole else max(SAME_OPTIMUM, self.tolerance)
            found = self.solve(part, replicate, theta, tolerance)
            np.add.at(spent.passes, replicate, found.passes * (chunks / total))
            np.add.at(spent.iterations, replicate, found.iterations)
            theta, value = found.theta, found.objective
        return Lanes(replicate, copies, found, self._degenerate(np.asarray(found.theta)))

    def _beside(self, samples, head, pending, start, seeds, spent: _Spent) -> Lanes:
        """Starts with a spare atom (see ``spare``) beside the best fit of one atom fewer, led to their optima.

        start (R, starts, P): those of the replicates ``pending`` from which that fit is looked for.
        """
        part = self._seen(samples)
        lower, upper = spare.fewer(self.model, self.model.free_shapes(self.options.atoms), self.lower, self.upper)
        box = (self.sketched or self.setting)._replace(lower=lower, upper=upper)
        told = head if self.sketched is None else reduced(head, self.sketched)
        plan, limit = self._improving

        def fewer(theta, of) -> Any:
            """The best of the optima (R, P) that theta (R, starts, P) lead to."""
            count = theta.shape[1]
            ends = (np.full(len(pending) * count, value) for value in (SAME_OPTIMUM, limit))
            lanes = (np.repeat(pending, count), np.clip(theta, lower, upper).reshape(-1, lower.size), *ends)
            found: Solution = compiled(plan).solve(box, lanes, of)
            value = np.where(np.isfinite(found.objective), found.objective, np.inf).reshape(-1, count)
            return found.theta.reshape(theta.shape)[np.arange(len(pending)), np.argmin(value, axis=1)]

        base = fewer(start, told)
        if self.sketched is None and not is_small(samples) and int(np.max(samples.chunks)) > 1:
            base = fewer(base[:, None], part)
        if self.splits:
            fits = [without_first(self.model, self.unflatten(theta)) for theta in base]
            rows = zip(fits, seeds, strict=True)
            points = np.stack([splits(self.model, *row, self.lower, self.upper) for row in rows])
        else:
            number = spare.counts(samples)
            points = beside(self.plan, number)(self.setting, (pending, base, self._numbers(seeds, number)), part)
        replicate = np.repeat(pending, points.shape[1])
        spent.starts[pending] += points.shape[1]
        points, value = points.reshape(len(replicate), -1), None
        if self.sketched is not None:
            points, value = self._led(self.sketched, head, told, replicate, points)
        return self._follow(samples, replicate, points, value, spent, smallest=spare.MOST_CHUNKS)

    def _numbers(self, seeds, number: spare.Counts) -> spare.Numbers:
        """Random numbers of starts with a spare atom, one row a seed."""
        atoms = self.model.total(self.options.atoms)
        every = [spare.numbers(seed, self.model.dimension, atoms, number) for seed in seeds]
        return spare.Numbers(*(np.stack(part) for part in zip(*every, strict=True)))

    def _seen(self, samples):
        """What of the samples candidates for a spare atom are compared on."""
        whole = is_small(samples) or int(np.max(samples.chunks)) <= spare.MOST_CHUNKS
        return samples if whole else part_of(samples, spare.MOST_CHUNKS)

    def _degenerate(self, theta: np.ndarray) -> np.ndarray:
        """Whether a variance lies on its lower bound, (K,) of thetas (K, P)."""
        return np.any((theta <= np.asarray(self.lower) + 1e-6) & self._scales, axis=1)

    def _hold(self, samples, pending, theta, checked, settled: dict[int, np.ndarray]) -> None:
        """Ends that are no minimum of a smooth function may be one on a kink (see ``kinks``): those are ``settled``.

        Not on samples of many chunks, among whose rows kinks are too small to see.
        """
        if self.direct or not is_small(samples):
            return
        for r in pending:
            settled.pop(r, None)
            _, objective, promised, least = checked[:, r]
            if not np.isfinite(objective) or (promised <= PROMISE and least >= CURVATURE):
                continue
            found = held(self.plan, self.setting, samples, r, theta[r], self.options.max_iterations)
            if found is not None and found.objective <= objective + PROMISE:
                settled[r] = found.theta
                checked[1:, r] = found.objective, found.promised, found.least

    def _judge(self, samples, lanes: list[Lanes], spent: _Spent, pending, checked, before, settled) -> Fits:
        """Best fit, certificate and near-minimisers of each replicate from all lanes so far.

        ``checked`` (4, R) is what ``certify`` found, of which the replicates ``pending`` have to be looked at again.
        before: the least objectives (R,) before the last starts with a spare atom, infinite where there were none.
        settled: best fits that lie on a kink, by replicate.
        """
        owner, copies, every, spoilt = together = jax.tree.map(lambda *parts: np.concatenate(parts), *lanes)
        # A spike of the likelihood is no estimate: it is the best only where there is nothing else.
        value = np.where(np.isfinite(every.objective), every.objective, np.inf)
        order = np.lexsort((value, spoilt, owner))
        best = order[np.searchsorted(owner[order], np.arange(checked.shape[1]))]
        close = (value <= value[best][owner] + NEAR) & (spoilt == spoilt[best][owner])
        theta = every.theta[best]
        checked[:, pending] = compiled(self.plan).certify(self.setting, (pending, theta[pending]), samples)
        self._hold(samples, pending[~spoilt[best][pending]], theta, checked, settled)
        for r, point in settled.items():
            theta[r] = point
        at_truth, objective, promised, least = checked.copy()
        agreeing = np.bincount(owner, close * copies, minlength=len(best)).astype(int)
        status = every.status[best]
        size = np.asarray(magnitude(samples, at_truth))[: len(at_truth)]
        slack = 1e-6 + 100 * GRAIN * np.where(np.isfinite(size), size, 0.0)
        # Agreement says little where an atom is spare: many starts share the optima that are easy to find.
        rising = np.isfinite(before) & (before - objective > NEAR)
        rising[np.setdiff1d(np.arange(len(best)), pending)] = False
        stationary = (promised <= PROMISE) & (least >= CURVATURE)
        solver = np.array([str(Status(int(s))) for s in status], dtype=object)
        doubted = np.isin(status, [Status.MAX_ITERATIONS, Status.STALLED, Status.EARLY])
        certificate = np.select(
            [
                ~np.isfinite(objective), spoilt[best], objective > at_truth + slack, ~stationary,
                (agreeing < 2) & (spent.starts > 1), rising,
            ],
            [
                str(Status.NOT_FINITE), "degenerate", "above_truth", np.where(doubted, solver, "not_stationary"),
                "lone_start", "rising",
            ],
            "certified",
        )  # fmt: skip
        near = [every.theta[close & (owner == r)] for r in range(len(best))]
        return Fits(
            theta, objective, at_truth, status, promised, least, agreeing,
            spent.starts.astype(int), spent.iterations.astype(int), spent.passes.copy(), certificate, near,
            together,
        )  # fmt: skip


def least(lanes: list[Lanes], count: int) -> np.ndarray:
    """The least objectives (count,) that lanes have found so far, spikes left out."""
    found = np.full(count, np.inf)
    for part in lanes:
        value = np.where(np.isfinite(part.solution.objective) & ~part.degenerate, part.solution.objective, np.inf)
        np.minimum.at(found, part.replicate, value)
    return found


def _go_on(found: Solution, where, more: Solution) -> None:
    """Put what lanes ``where`` (a mask, or numbers) came to after ``found`` into it; what it cost is added up."""
    spent = {name: getattr(found, name)[where] + getattr(more, name) for name in ("iterations", "passes")}
    for old, new in zip(found, more._replace(**spent), strict=True):
        old[where] = new


def _of_round(seed: np.random.SeedSequence, attempt: int) -> np.random.SeedSequence:
    """The child that ``seed.spawn`` gives at this place, without using it up."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, attempt))
