"""The certificate of stationarity, recomputed from one pass whatever a solver says of itself."""

from __future__ import annotations

from moe_sim.likelihood.objective import Passes, magnitude
from moe_sim.solvers.model_step import box_step, scaling


def still_promised(passes: Passes, sample, theta, lower, upper, radius=10.0):
    """The certificate of stationarity, from one pass and whatever solver found ``theta``.

    The objective; the decrease, in log-likelihood units, that the exact quadratic model promises for the best step
    in the box of at most ``radius`` marginal standard errors; and the least eigenvalue of the scaled Hessian on the
    free variables (the scaled Gauss-Newton matrix has a unit diagonal). The last two are near 0 at a minimum
    (second-order KKT).
    """
    objective, gradient, gram = passes.first(theta, sample)
    matrix = gram + passes.curvature(theta, sample)
    size = magnitude(sample, objective)
    step, _, least = box_step(theta, size, gradient, matrix, scaling(gram), radius, lower, upper)
    return objective, -(gradient @ step + 0.5 * step @ matrix @ step), least
