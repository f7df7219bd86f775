"""What fits compile: starts improved, followed and certified, for any model of a class and shape.

Models, truths and boxes are arguments of it (``Setting``); what it depends on beside those is a ``Plan``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_sim.data.samples import CountedSample, StoredSample, first_rows
from moe_sim.fitting import spare
from moe_sim.fitting import starts as start_rules
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.spare import Counts
from moe_sim.likelihood.objective import Passes, passes_of
from moe_sim.models.base import Atoms, Model, Parameters
from moe_sim.models.coordinates import ravel, unravel
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.solution import Solution

SAME_OPTIMUM = 1e-4  # log-likelihood units: starts this close on a subsample have found one and the same optimum there


def unraveller(model: Model, atoms: Atoms) -> Callable:
    """From a flat vector of free coordinates (P,) to named ones; names in alphabetical order lie side by side."""
    return partial(unravel, model.free_shapes(atoms))


def parameters_of(model: Model, atoms: Atoms) -> Callable:
    """From a flat vector of free coordinates (P,) to parameters."""
    named = unraveller(model, atoms)
    return lambda theta: model.constrain(named(theta))


class Setting(NamedTuple):
    """What lanes of a fit share, all of it arguments of compiled code: another truth, noise or box compiles nothing.

    lower, upper: the box of theta (P,). truth: None where it is not known. groups: see ``em.variance_groups``.
    """

    model: Model
    lower: Any
    upper: Any
    truth: Parameters | None
    groups: Any


@dataclass(frozen=True)
class Plan:
    """What compiled code of a fit depends on, beside models and shapes: one compilation a plan.

    atoms: fitted, as pairs by group. cap: of iterations, where the start is followed as it is; None where callers say.
    how: see ``batching``.
    """

    solver: Callable
    keywords: tuple[tuple[str, Any], ...]
    atoms: tuple[tuple[str, int], ...]
    cap: int | None
    start: str
    how: str

    def minimise(self, setting: Setting, sample, start, tolerance, limit) -> Solution:
        """The solver from one start, in the box of the setting; limit: of iterations, where the plan does not say."""
        keywords = dict(self.keywords) | ({} if setting.groups is None else {"groups": setting.groups})
        return self.solver(
            passes(setting.model, self.atoms), sample, start, setting.lower, setting.upper, tolerance=tolerance,
            max_iterations=limit if self.cap is None else self.cap, **keywords,
        )  # fmt: skip


class Compiled(NamedTuple):
    """Lane functions of a plan, called with ``(setting, lanes, samples)``.

    choose: the best candidate of a start on the first chunk, and its objective there. solve: the optimum from a start.
    certify: the objective at the truth, and what ``still_promised`` says.
    """

    choose: LaneFunction
    solve: LaneFunction
    certify: LaneFunction


def compiled(plan: Plan) -> Compiled:
    """What a plan runs. Each part is kept by what it depends on, so that plans which differ elsewhere share it."""
    return Compiled(
        _choosing(plan.start, plan.atoms, plan.how), _solving(replace(plan, start="")),
        _certifying(plan.atoms, plan.how),
    )  # fmt: skip


@lru_cache(maxsize=16)
def _choosing(start: str, atoms: tuple[tuple[str, int], ...], how: str) -> LaneFunction:
    def choose(setting: Setting, sample, lane):
        _, points = lane
        model, value_of = setting.model, passes(setting.model, atoms).value
        if start_rules.clusters(start, model):
            chunk = first_rows(sample)
            points = jax.lax.map(lambda u: _from_clusters(setting, u, *chunk), points)
        value = jax.lax.map(lambda theta: value_of(theta, head(sample)), points)
        best = jnp.nanargmin(value)
        return points[best], value[best]

    return LaneFunction(choose, how)


@lru_cache(maxsize=16)
def _solving(plan: Plan) -> LaneFunction:
    def solve(setting: Setting, sample, lane):
        return plan.minimise(setting, sample, *lane[1:])

    return LaneFunction(solve, plan.how)


@lru_cache(maxsize=16)
def _certifying(atoms: tuple[tuple[str, int], ...], how: str) -> LaneFunction:
    def certify(setting: Setting, sample, lane):
        _, theta = lane
        known = jnp.array(jnp.inf)
        if setting.truth is not None:
            at_truth = passes_of(setting.model, lambda _: setting.truth, setting.model.sizes_of(setting.truth))
            known = at_truth.value(jnp.zeros(0), sample)
        return known, *still_promised(passes(setting.model, atoms), sample, theta, setting.lower, setting.upper)

    return LaneFunction(certify, how)


def beside(plan: Plan, number: Counts) -> LaneFunction:
    """So many starts with a spare atom (see ``spare``) beside a fit of one fewer; called as those of ``Compiled``."""
    return _beside(plan.atoms, plan.how, number)


@lru_cache(maxsize=16)
def _beside(atoms: tuple[tuple[str, int], ...], how: str, number: Counts) -> LaneFunction:
    def starts(setting: Setting, sample, lane):
        _, theta, u = lane
        named = unraveller(setting.model, dict(atoms))
        return spare.starts(setting.model, named, theta, u, sample, setting.lower, setting.upper, number)

    return LaneFunction(starts, how)


def passes(model: Model, atoms: tuple[tuple[str, int], ...]) -> Passes:
    """The passes over flat free coordinates (P,)."""
    return passes_of(model, parameters_of(model, dict(atoms)), dict(atoms))


def _from_clusters(setting: Setting, uniform, x, y, weight):
    params = start_rules.from_data(setting.model, uniform, x, y, weight)
    return jnp.clip(ravel(setting.model.unconstrain(params)), setting.lower, setting.upper)


def is_small(sample) -> bool:
    """One chunk, or counts, hold it all: a subsample would save nothing."""
    return isinstance(sample, CountedSample) or (isinstance(sample, StoredSample) and sample.weight.shape[-2] == 1)


def head(sample):
    """The first chunk, the subsample that starts are improved on."""
    return sample if is_small(sample) else StoredSample(*(leaf[None] for leaf in sample.chunk(0)))
