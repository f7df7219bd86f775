"""Lower bounds on the risk of every estimator, from two measures that are hard to tell apart (Le Cam 1973).

For any estimator and two measures G0, G1 of the parameter set, n observations of each with laws P0, P1,

    max_k E_k D(estimate, G_k) >= 1/2 (1 - TV(P0, P1)) min_G [ D(G, G0) + D(G, G1) ].

A Voronoi loss is no metric, but it is at least a transport cost that is nearly one (``transport``), which bounds the
last factor from below by a small linear program, without a search over estimates.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters, RegressionModel
from moe_sim.models.measure import MixingMeasure

_HALF = np.log(0.75) / 2  # n log(1 - h^2) where the bound by the Hellinger distance h is 1/2


def total_variation(model: Model, distance: float, n: float) -> float:
    """An upper bound of TV for n observations of two functions or densities that are so far apart.

    Regression with normal noise: sqrt(KL / 2) (Pinsker) with KL = n distance^2 / (2 noise^2). Densities, by the
    Hellinger distance h: sqrt(1 - (1 - h^2)^(2 n)) (Tsybakov 2009, section 2.4).
    """
    if isinstance(model, RegressionModel):
        return min(1.0, distance * np.sqrt(n) / (2 * model.noise))
    return float(np.sqrt(-np.expm1(2 * n * np.log1p(-min(distance**2, 1.0 - 1e-16)))))


def undetectable(model: Model, n: float) -> float:
    """The distance of functions (or Hellinger distance) at which the bound of ``total_variation`` is 1/2."""
    if isinstance(model, RegressionModel):
        return float(model.noise / np.sqrt(n))
    return float(np.sqrt(-np.expm1(_HALF / n)))


def observations(model: Model, distance: float) -> float:
    """The size n at which it is 1/2, the inverse of ``undetectable``: so many tell laws apart that are so distant."""
    if isinstance(model, RegressionModel):
        return (model.noise / distance) ** 2
    return float(_HALF / np.log1p(-min(distance**2, 1.0 - 1e-16)))


def transport(loss: Loss, one: MixingMeasure, other: MixingMeasure) -> float:
    """K, with D(G, one) + D(G, other) >= K for every measure G, whatever its number of atoms; at least 0.

    Mass moved from x to y costs c(x, y) = sum over blocks of min_r ||x - y||^r, r the exponents of the block; mass made
    or lost costs 1. A Voronoi loss is the cost of one such plan (each atom to the true atom of its cell, what is over
    or missing in a cell made or lost), so it is at least the cost of the best plan. Plans compose, with a mass that is
    made or lost as a point at distance 1 from all others, and c(x, z) <= C (c(x, y) + c(y, z)) with C = 2^(r - 1) for a
    single exponent (convexity) and 2^max(r) otherwise.
    """
    cost = sum(_least_power(one.blocks[name], other.blocks[name], powers) for name, powers in loss.exponents)
    rates = {r for _, powers in loss.exponents for r in powers}
    slack = 2.0 ** (max(rates) - 1) if len(rates) == 1 else 2.0 ** max(rates)
    source, sink = np.asarray(one.weight), np.asarray(other.weight)
    rows, columns = np.shape(cost)
    limits = np.concatenate([np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))])
    plan = linprog(np.ravel(cost) - 2.0, A_ub=limits, b_ub=np.concatenate([source, sink]), method="highs")
    return max(0.0, float(source.sum() + sink.sum() + plan.fun)) / slack


def _least_power(x, y, powers) -> np.ndarray:
    """min_r ||x_i - y_j||^r, (I, J)."""
    distance = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(y)[None], axis=2)
    return np.min([distance**r for r in powers], axis=0)


def least_risk(
    model: Model, truth: Parameters, loss: Loss, measures: list[Parameters], distance, sizes
) -> list[float] | None:
    """A lower bound of the minimax risk at each sample size: the best of the pairs (truth, measure).

    measures, distance: alternatives and how far their functions are from the truth's. None where the loss is not a
    Voronoi loss, or takes the infimum over translations of the gates, for which no transport cost is known here.
    """
    if loss.kind != "voronoi" or loss.gauge is not None or not measures:
        return None
    apart = np.array([transport(loss, model.measure(truth), model.measure(g)) for g in measures])
    return [
        float(max(0.5 * k * (1 - total_variation(model, d, n)) for k, d in zip(apart, distance, strict=True)))
        for n in sizes
    ]


def assumption(options: FitOptions) -> str:
    """What a lower bound supposes of the parameter set, in words: measures of the box of the study may be the truth."""
    box = f"fit.bound = {options.bound:g}, fit.bias_bound = {options.bias_bound:g}"
    return f"the parameter set is the box of the fit: {box}"
