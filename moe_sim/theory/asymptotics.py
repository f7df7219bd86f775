"""Predicted constants: what n^exponent times a mean loss tends to.

As many atoms as the truth (``exact``): sqrt(n) (theta_hat - theta*) -> N(0, V), V = H^-1 G H^-1 with the Gram matrix G
of scores and minus the mean Hessian H of one observation (White 1982, Econometrica 50, 1-25). The losses are
homogeneous near the truth, so that of theta* + h Z over h, Z ~ N(0, V), is their limit as h -> 0.

More atoms (``over``), where first and second derivatives of atoms are linearly independent: the noise is projected on
the tangent cone (``cone``), and the losses are those of measures that realise the projection.

Both take limits at a truth inside the parameter set, and evaluate the losses that runs do: cells, translations of gates
and all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import ndtri
from scipy.stats import qmc

from moe_sim.data.covariates import Law
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.distances import Target, target_of
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters, Regression
from moe_sim.theory import cone
from moe_sim.theory.curves import without_translation
from moe_sim.theory.influence import owned

SCRAMBLINGS = 8  # independent scramblings of a Sobol sequence: their spread gives the error of the constant
EXACT_DRAWS, OVER_DRAWS = 2**10, 2**8  # of each scrambling
# h times the largest standard deviation: at 1e-6 curvature over lengths of 1e-2 adds 1e-4, and coordinates a thousand
# times better determined still move by 1e6 times their rounding.
STEP = 1e-6
OVER_STEP = 1e-10  # offsets move by its root: third-order terms add 1e-5, and first-order ones are 1e6 times rounding
EDGE = (
    "truth.{} lies on the edge of the parameter set, where limits are not those of its inside: raise fit.bound or "
    "fit.bias_bound"
)
UNIDENTIFIED = "the information is singular in a direction that moves the measure: the parameters are not identified"
DEPENDENT = "second derivatives are linear combinations of first ones: the cone is not of second order; see check-model"
MOVING = "sample.truth = 'least-favourable': each size has a truth of its own, with as many atoms as are fitted"
ALONG = "the truth moves with n, and so does what constants are about: see the information along its path"
PROJECTED = (
    "fits come to a projection of the truth, whose risk is {:.3g} above that of the truth; the least eigenvalue of the "
    "Hessian of the risk there, its diagonal scaled to 1, is {:.2e}"
)
COMMON = "parameters common to all atoms are fitted too: their limit with spare atoms is not worked out"


@dataclass(frozen=True)
class Constant:
    """The mean (or root mean square: ``aggregate``) of a loss is ``constant * n^-exponent`` for large n.

    error: standard error of its integration. reason: why there is no constant, where it is None.
    """

    loss: str
    aggregate: str
    exponent: float | None = None
    constant: float | None = None
    error: float | None = None
    reason: str | None = None

    def at(self, n: float) -> float | None:
        """The predicted aggregate at size n."""
        return None if self.constant is None or self.exponent is None else self.constant * n**-self.exponent

    def to_json(self) -> dict[str, Any]:
        return {
            "loss": self.loss, "exponent": self.exponent, "constant": self.constant, "error": self.error,
            "aggregate": self.aggregate, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Information:
    """Of n observations at the truth of size n, with as many atoms as it has: the Cramer-Rao bounds, in units of the
    parameters.

    least: the least eigenvalue of the information of one observation, gauges left out, in coordinates in which its
    diagonal is 1. bounds: by block (``mass`` for log-weights), root of the sum of the bounds on variances.
    """

    n: int
    least: float
    bounds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "least": self.least, "bounds": self.bounds}


@dataclass(frozen=True)
class Constants:
    """kind: ``exact`` or ``over``. parameters: identified ones, the dimension of the tangent cone's span.

    reason: why nothing is predicted, and then there are no constants. ties: share of draws in which spare atoms fit
    nothing, so that they sit on any true atom, at the fitter's whim; constants take all such ways as equally likely.
    path: where the truth moves by a formula of n, the information at each size in place of constants.
    """

    kind: str
    parameters: int | None = None
    reason: str | None = None
    constants: list[Constant] = field(default_factory=list)
    ties: float = 0.0
    path: list[Information] = field(default_factory=list)

    def __getitem__(self, loss: str) -> Constant:
        """The constant of the loss of this name."""
        return next(c for c in self.constants if c.loss == loss)

    @staticmethod
    def from_json(told: dict[str, Any]) -> Constants:
        """The constants that ``to_json`` told of."""
        constants = [Constant(**c) for c in told["constants"]]
        return Constants(**told | {"constants": constants, "path": [Information(**i) for i in told.get("path", [])]})

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "parameters": self.parameters, "reason": self.reason, "ties": self.ties,
            "constants": [c.to_json() for c in self.constants], "path": [i.to_json() for i in self.path],
        }  # fmt: skip


def along(model: Model, truths: dict[int, Parameters], law: Law | None, options: FitOptions) -> Constants:
    """The ``Information`` at the truth of each size, to the first one where there is none, and why."""
    found: list[Information] = []
    for n, truth in truths.items():
        at = Neighbourhood(model, truth, law)
        reason = at.reason(options)
        if reason is not None:
            return Constants("exact", reason=f"n = {n}: {reason}", path=found)
        bounds = {name or "mass": float(np.linalg.norm(v) / np.sqrt(n)) for name, v in at.changes(at.root()).items()}
        found.append(Information(n, at.least_eigenvalue(), bounds))
    return Constants("exact", reason=ALONG, path=found)


def constants(model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss]) -> Constants:
    """The predicted ``Constants`` of a study's losses; arguments are fields of ``study.problem``."""
    spare = model.total(options.atoms) - model.count(truth)
    kind = "over" if spare else "exact"
    at = Neighbourhood(model, truth, law)
    reason = at.reason(options)
    if reason is not None:
        return Constants(kind, reason=reason)
    return (_exact if kind == "exact" else _over)(at, spare, losses)


class Neighbourhood:
    """The model near its truth, in flat free coordinates theta (P,).

    scores (N, P): the Jacobian of ``standardised``. kept (P, r), null (P, P - r): directions that data tell apart,
    and those that they do not.
    """

    def __init__(self, model: Model, truth: Parameters, law: Law | None):
        self.model, self.truth, self.law = model, truth, law
        self.theta, self.unflatten = _flat(model, truth)
        self.seen = target_of(model, truth, law)
        self.scores = np.asarray(_scores(self.seen, self.theta))
        self.kept, self.null = cone.rank_split(self.scores)

    def reason(self, options: FitOptions) -> str | None:
        """Why there is no limit, or None."""
        sizes = self.model.sizes_of(self.truth)
        lower, upper = self.model.bounds(sizes, options.bound, options.bias_bound)
        for name, value in self.model.unconstrain(self.truth).items():
            if np.any(value <= lower[name]) or np.any(value >= upper[name]):
                return EDGE.format(name)
        return UNIDENTIFIED if self.moves_measure(self.null) else None

    def moves_measure(self, directions: np.ndarray) -> bool:
        """Whether some of the directions (P, k) do more to the measure than translate its gates."""
        length = np.linalg.norm(directions, axis=0)
        return any(np.any(np.abs(change) > 1e-6 * length) for change in self.changes(directions).values())

    def changes(self, directions: np.ndarray) -> dict[str, np.ndarray]:
        """What directions (P, k) do to log-weights (under "") and to each block of the measure, (..., k), translations
        of its gates taken out."""
        gauge = self.model.gauge
        moving = {"", *gauge.split("+")} if gauge is not None else set()
        movable = self.model.measure(self.truth).movable
        found = {}
        for name, jacobian in _measure_jacobian(self.model, self.truth, self.theta).items():
            change = np.asarray(jacobian) @ directions
            if name in moving:
                rows = change.reshape(len(change), -1)
                change = np.asarray(without_translation(rows, movable)).reshape(change.shape)
            found[name] = change
        return found

    def least_eigenvalue(self) -> float:
        """Of G, its diagonal scaled to 1, in the directions that data tell apart."""
        singular = np.linalg.svd(self.scores / cone.lengths(self.scores), compute_uv=False)
        return float(singular[self.kept.shape[1] - 1] ** 2)

    def gram(self) -> np.ndarray:
        """G: the Gram matrix of the scores of one observation, (P, P)."""
        return self.scores.T @ self.scores

    def hessian(self) -> np.ndarray:
        """H: minus the mean Hessian of the log-likelihood of one observation, (P, P).

        For a regression both are J'J / noise^2: second derivatives of f are weighed by residuals, of mean 0 at every x.
        """
        if isinstance(self.model, Regression):
            return self.gram()
        mean = lambda t: self.seen.root @ self.seen.rows(self.unflatten(t))  # noqa: E731
        return -np.asarray(jax.jit(jax.hessian(mean))(self.theta))

    def root(self) -> np.ndarray:
        """(P, r), whose product with its transpose is V = H^-1 G H^-1.

        Where gates may be translated a generalised inverse, at rest in the null directions: losses do not see those.
        """
        inside = lambda matrix: self.kept.T @ matrix @ self.kept  # noqa: E731
        return self.kept @ np.linalg.solve(inside(self.hessian()), np.linalg.cholesky(inside(self.gram())))


def _flat(model: Model, truth: Parameters) -> tuple[jax.Array, Callable]:
    """The free coordinates (P,) of a truth, and the parameters of such a vector."""
    theta, unravel = ravel_pytree({k: jnp.asarray(v) for k, v in model.unconstrain(truth).items()})
    return theta, lambda theta: model.constrain(unravel(theta))


@jax.jit
def _scores(seen: Target, theta) -> jax.Array:
    return jax.jacfwd(lambda t: seen.rows(_flat(seen.model, seen.truth)[1](t)))(theta)


@jax.jit
def _measure_jacobian(model: Model, truth: Parameters, theta) -> dict[str, jax.Array]:
    """Derivatives in the free coordinates theta (P,) of log-weights (under "") and blocks of the measure."""
    unflatten = _flat(model, truth)[1]

    def parts(theta):
        measure = model.measure(model.canonical(unflatten(theta)))
        return {"": measure.log_weight, **measure.blocks, **measure.shared}

    return jax.jacfwd(parts)(theta)


def _exact(at: Neighbourhood, spare: int, losses: list[Loss]) -> Constants:
    root = at.root()
    step = STEP / np.sqrt(np.max(np.sum(root**2, axis=1)))
    theta = at.theta + step * normal_draws(root.shape[1], EXACT_DRAWS) @ root.T
    measured = LossFunction(at.model, at.truth, at.law, losses, at.model.sizes_of(at.truth))(theta)
    found = [_constant(at.model, loss, spare, measured[loss.name], np.ones(len(theta)), step) for loss in losses]
    return Constants("exact", root.shape[1], constants=found)


def _over(at: Neighbourhood, spare: int, losses: list[Loss]) -> Constants:
    model, truth = at.model, at.truth
    if len(model.groups) > 1 or len(owned(model)) + 1 < len(model.parameters()):
        return Constants("over", reason=COMMON)
    first, second = cone.cone_features(model, truth, at.law)
    rank = cone.rank_split(np.concatenate([first, second], axis=1))[0].shape[1]
    if rank < at.kept.shape[1] + second.shape[1]:
        return Constants("over", reason=DEPENDENT)
    tangent = cone.Cone(first, second, model.count(truth), spare)
    found = tangent.project(normal_draws(sum(tangent.dimensions), OVER_DRAWS))
    params = cone.members(model, truth, found, OVER_STEP)
    lanes = {name: value.reshape(-1, *value.shape[2:]) for name, value in params.items()}
    of_measures = [loss for loss in losses if loss.kind != "function"]
    measured = LossFunction(model, truth, at.law, of_measures, None)(lanes)
    ways = found.nearest.sum(axis=1, keepdims=True)
    measured["function"] = np.repeat(OVER_STEP * at.seen.unit * found.length, found.nearest.shape[1])
    weight = (found.nearest / ways).ravel()
    made = [_constant(model, loss, spare, measured[loss.name], weight, OVER_STEP) for loss in losses]
    return Constants("over", rank, constants=made, ties=float(np.mean(ways > 1)))


def normal_draws(dimension: int, count: int) -> np.ndarray:
    """Standard normal points (SCRAMBLINGS * count, dimension), one scrambled Sobol sequence after another."""
    scrambled = [qmc.Sobol(dimension, rng=np.random.default_rng([k, dimension])) for k in range(SCRAMBLINGS)]
    points = np.concatenate([sequence.random(count) for sequence in scrambled])
    return ndtri(np.clip(points, 1e-12, 1 - 1e-12))


def _constant(model: Model, loss: Loss, spare: int, values: np.ndarray, weight: np.ndarray, step: float) -> Constant:
    """From losses of measures at n = step^-2, (scramblings one after another,), and their weights."""
    reason = _obstacle(model, loss, spare)
    if reason is None and not np.isfinite(values).any():
        reason = "no atom to speak of: there is no such cell"
    if reason is not None:
        return Constant(loss.name, loss.aggregate, reason=reason)
    exponent = 0.25 if loss.cells == "weighted" else 0.5
    rms = loss.aggregate == "rms"
    scaled = (values / step ** (2 * exponent)) ** (2 if rms else 1)
    # Replicates without such a cell (NaN) do not speak, as in ``slopes.summarise``.
    weight = np.where(np.isfinite(scaled), weight, 0.0).reshape(SCRAMBLINGS, -1)
    total = np.sum(weight * np.nan_to_num(scaled).reshape(SCRAMBLINGS, -1), axis=1)
    value = total.sum() / weight.sum()
    # Of a ratio of two sums over independent scramblings, by the delta method.
    spread = np.std(total - value * weight.sum(axis=1), ddof=1) / np.mean(weight.sum(axis=1)) / np.sqrt(SCRAMBLINGS)
    if rms:
        value, spread = np.sqrt(value), spread / (2 * np.sqrt(value)) if value > 0 else 0.0
    return Constant(loss.name, loss.aggregate, exponent, float(value), float(spread))


def _obstacle(model: Model, loss: Loss, spare: int) -> str | None:
    """Why this loss has no constant although others do, or None."""
    if loss.gauge is None and model.gauge is not None and loss.kind != "function":
        return "it sees translations of the gates, and data do not: its limit is up to the solver"
    if loss.least_cell > 1 and loss.cells != "weighted" and spare:
        return "it depends on how atoms of a cell share its mass, which is settled beyond the limit: see atoms:weighted"
    if loss.kind == "voronoi":
        for size in range(1, spare + 2):
            order = 1.0 if size == 1 else 0.5  # offsets fall like n^-1/2 alone, n^-1/4 where a cell is shared
            powers = [order * power[min(size, len(power)) - 1] for _, power in loss.exponents]
            if any(p < 1 or 1 < p < 1.5 for p in powers):
                return f"its exponent in cells of {size} makes it fall slower than n^-1/2, or tend there too slowly"
    return None
