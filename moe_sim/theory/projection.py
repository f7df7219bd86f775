"""The best measure of k atoms where the truth is not among them: what fits of k atoms converge to (White 1982).

The projection makes the population risk least: the mean squared distance of functions over 2 noise^2 of a regression,
the Kullback-Leibler divergence of a density. Where its Hessian there is regular, fits come near it at n^-1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.cells import cells_in_box
from moe_sim.data.covariates import Law
from moe_sim.data.draw import means, population
from moe_sim.data.quadrature import log_densities
from moe_sim.errors import InputError
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions, estimators
from moe_sim.losses.voronoi import loss_of
from moe_sim.models.base import Density, Model, Parameters, Regression
from moe_sim.theory.asymptotics import Neighbourhood
from moe_sim.theory.cone import DEPENDENT
from moe_sim.theory.curves import coordinates

STARTS, ROUNDS = 32, 4
NEAR_RISK, SAME_RISK = 1e-6, 1e-9  # part of the least risk by which that of a start exceeds it, at first and polished
ELSEWHERE = 1e-2  # distance of measures from which two are not one, of which the solver saw the end only
CONTAINED = 1e-13  # risk that is none
_NEWTON = 20


@dataclass(frozen=True)
class Projection:
    """parameters: those of the best measure. risk: of one observation there, above that of the truth. least: the least
    eigenvalue of its Hessian in free coordinates, its diagonal scaled to 1, gauges left out. agreeing: starts of all
    ``starts`` that came there."""

    parameters: Parameters
    risk: float
    least: float
    agreeing: int
    starts: int


def projection(model: Model, truth: Parameters, law: Law | None, options: FitOptions) -> Projection:
    """The ``Projection`` of a truth on measures of ``options.atoms`` atoms, by fits of the population from many starts
    and Newton's steps.

    Raises ``InputError`` where these measures contain the truth, where the projection lies on the edge of the parameter
    set, and where several projections are equally good.
    """
    cells = None
    if isinstance(model, Density):
        cells = cells_in_box(model, truth, law, options.bound, options.bias_bound)
    plain = replace(options, estimator=estimators(model)[0], start="data", starts=STARTS, budget=1, spread=None,
                    spread_exponent=0.0, solver={}, max_iterations=300)  # fmt: skip
    fitter = Fitter(model, None, plain)
    sample = population(model, truth, law, cells)
    lanes = [fitter.fit(sample, [np.random.SeedSequence([1, k])]).lanes for k in range(ROUNDS)]
    theta = np.concatenate([np.asarray(part.solution.theta) for part in lanes])
    copies = np.concatenate([np.asarray(part.copies) for part in lanes])
    risk = _risk(model, truth, law, fitter.unflatten, cells)
    return _best(model, law, plain, fitter, risk, theta, copies)


class _Risk:
    """The risk of one observation at theta (P,), its slope and its Hessian, each compiled once."""

    def __init__(self, risk: Callable):
        self.value, self.slope, self.hessian = (jax.jit(of) for of in (risk, jax.grad(risk), jax.hessian(risk)))


def _best(
    model: Model, law, options: FitOptions, fitter: Fitter, risk: _Risk, theta: np.ndarray, copies: np.ndarray
) -> Projection:
    """theta (K, P): ends of fits; copies (K,): how many starts came to each."""
    risks = np.array([float(risk.value(t)) for t in theta])
    best = _newton(risk, theta[np.argmin(risks)], fitter)
    least = float(risk.value(best))
    if least < CONTAINED:
        raise InputError(
            f"sample.truth = 'projection': fit.atoms = {options.atoms} atoms give the truth itself (risk {least:.0e}), "
            "pass sample.truth = 'given', or fewer atoms"
        )
    lower, upper = np.asarray(fitter.lower), np.asarray(fitter.upper)
    on = (best - lower < 1e-6 * (upper - lower)) | (upper - best < 1e-6 * (upper - lower))
    if np.any(on):
        raise InputError(
            f"sample.truth = 'projection': the best measure of {options.atoms} atoms lies on the bound of "
            f"{coordinates(fitter)[int(np.argmax(on))].split('[')[0]}, raise fit.bound or fit.bias_bound"
        )
    params = {name: np.asarray(value) for name, value in fitter.unflatten(best).items()}
    near = risks <= least * (1 + NEAR_RISK)
    losses = LossFunction(model, params, law, [loss_of(model, "voronoi:r=1")], options.atoms)
    apart = lambda thetas: losses(thetas)["voronoi:r=1"]  # noqa: E731
    away = apart(theta[near])
    other = _newton(risk, theta[near][np.argmax(away)], fitter)
    if apart(other[None])[0] > ELSEWHERE and float(risk.value(other)) <= least * (1 + SAME_RISK):
        named = fitter.unflatten(other).items()
        told = "; ".join(f"{name} = {np.round(np.asarray(v), 4).tolist()}" for name, v in named)
        raise InputError(
            f"sample.truth = 'projection': another measure of {options.atoms} atoms is as good ({told}), so the loss "
            "to the best one is not defined: move the truth"
        )
    agreeing = int(np.sum(copies[near][away < ELSEWHERE]))
    return Projection(params, least, _least_eigenvalue(model, law, params, risk, best), agreeing, int(np.sum(copies)))


def _risk(model: Model, truth: Parameters, law: Law | None, unflatten: Callable, cells) -> _Risk:
    """theta (P,) to the risk of one observation, above that of the truth."""
    if isinstance(model, Regression):
        assert law is not None
        points, mass = map(jnp.asarray, law.nodes())
        known = means(model, truth, points)

        def of_regression(theta):
            gap = means(model, unflatten(theta), points) - known
            return jnp.sum(mass[:, None] * gap**2) / (2 * model.noise**2)

        return _Risk(of_regression)
    x, y, mass, log_density = map(jnp.asarray, cells)

    def of_density(theta):
        return mass @ (log_density - log_densities(model, unflatten(theta), x, y))

    return _Risk(of_density)


def _newton(risk: _Risk, theta: np.ndarray, fitter: Fitter) -> np.ndarray:
    """Newton's steps within the box, as long as they lower the slope of the risk, whose own digits end early, and do
    not raise it; gauges stay."""
    at, lower, upper = theta, np.asarray(fitter.lower), np.asarray(fitter.upper)
    for _ in range(_NEWTON):
        step = np.linalg.lstsq(np.asarray(risk.hessian(at)), -np.asarray(risk.slope(at)), rcond=1e-11)[0]
        ahead = np.clip(at + step, lower, upper)
        falls = np.linalg.norm(risk.slope(ahead)) < np.linalg.norm(risk.slope(at))
        if not falls or float(risk.value(ahead)) > float(risk.value(at)) * (1 + SAME_RISK):
            return at
        at = ahead
    return at


def _least_eigenvalue(model: Model, law: Law | None, params: Parameters, risk: _Risk, theta: np.ndarray) -> float:
    """0 where the Hessian is singular along a direction that moves the measure."""
    hessian = np.asarray(risk.hessian(theta))
    unit = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
    values, basis = np.linalg.eigh(hessian * np.outer(unit, unit))
    flat = np.abs(values) <= DEPENDENT**1.5 * np.max(np.abs(values))
    null = unit[:, None] * basis[:, flat]
    if flat.any() and Neighbourhood(model, params, law).moves_measure(null):
        return 0.0
    return float(values[~flat][0])
