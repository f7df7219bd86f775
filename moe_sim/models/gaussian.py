"""Linear experts N(intercept_k + slope_k x, variance_k), the part that softmax and Gaussian gates share."""

from __future__ import annotations

import numpy as np

from moe_sim._engine import jnp
from moe_sim.errors import InputError, array, number
from moe_sim.models.domains import POSITIVE
from moe_sim.models.mixture import MixtureModel, spread
from moe_sim.models.parameter import Parameter
from moe_sim.models.support import Real

WIDER = 4.0  # by default variances range from a fourth of the least true one to four times the largest
Range = tuple[float, float]
# rbar(m) of Ho and Nguyen (2016) in cells of m = 2, 3, ... atoms: 2 m (theory_notes/cancellation.md).
RBAR = tuple(2.0 * m for m in range(2, 13))
RBAR_EXPONENTS = (1.0, *RBAR)
HALF_RBAR_EXPONENTS = (1.0, *(r / 2 for r in RBAR))


class LinearExperts(MixtureModel):
    """Parameters slope (K, d), intercept (K,), variance (K,); for outputs o > 1 (K, o, d), (K, o), (K, o).

    Output coordinates are independent given the expert. variance_range: the compact set that the theory asks for;
    without a lower bound the likelihood is unbounded (an expert through a few points, its variance going to 0).
    """

    support = Real()
    default_bounds = (100.0, 100.0)
    clusters = True
    variances: tuple[str, ...] = ("log_variance",)

    def __init__(self, dimension: int, outputs: int, variance_range: Range = (1e-4, 1e4)):
        self.dimension, self.outputs, self.variance_range = dimension, outputs, variance_range

    def expert_parameters(self, slope: tuple[float, ...] = HALF_RBAR_EXPONENTS) -> dict[str, Parameter]:
        """Their declaration; slope: the exponents of that block."""
        o = () if self.outputs == 1 else (self.outputs,)
        return {
            "slope": Parameter((*o, self.dimension), exponents=slope),
            "intercept": Parameter(o, exponents=RBAR_EXPONENTS),
            "variance": Parameter(o, POSITIVE, self.variance_range, HALF_RBAR_EXPONENTS),
        }

    def expert_coefficients(self, params):
        """mean (K, o, 1 + d) and log-variance (K, o)."""
        rows, o, d = len(params["intercept"]), self.outputs, self.dimension
        intercept = jnp.asarray(params["intercept"]).reshape(rows, o, 1)
        mean = jnp.concatenate([intercept, jnp.asarray(params["slope"]).reshape(rows, o, d)], axis=2)
        return mean, jnp.log(jnp.asarray(params["variance"]).reshape(rows, o))

    def expert_clusters(self, tau, x, y):
        """Weighted regressions of each cluster, slightly shrunk, and the variances they leave."""
        features = jnp.concatenate([jnp.ones((len(x), 1)), x], axis=1)
        count = jnp.sum(tau, axis=1) + 1e-9
        gram = jnp.einsum("kn,ni,nj->kij", tau, features, features)
        ridge = 1e-6 * jnp.trace(gram, axis1=1, axis2=2)[:, None, None] * jnp.eye(features.shape[1])
        fitted = jnp.linalg.solve(gram + ridge, jnp.einsum("kn,ni,nj->kij", tau, features, y))
        rest = jnp.einsum("kn,knj->kj", tau, (y[None] - features @ fitted) ** 2) / count[:, None]
        # A cluster that a line fits exactly would start the likelihood on its way to a spike.
        variance = jnp.maximum(rest, 0.01 * spread(jnp.sum(tau, axis=0), y) + 1e-12)
        shapes = self.shapes(len(tau))
        parts = {"intercept": fitted[:, 0], "slope": jnp.swapaxes(fitted[:, 1:], 1, 2), "variance": variance}
        return {name: jnp.reshape(value, shapes[name]) for name, value in parts.items()}


def sizes(truth: dict, gate: str) -> tuple[int, int]:
    """Dimensions of x and y as the truth table of a study has them; ``gate`` is the parameter of shape (K, d)."""
    for name in (gate, "intercept"):
        if name not in truth:
            raise InputError(f"truth.{name} is missing: add it to the study")
    dimension = array(f"truth.{gate}", truth[gate], (None, None)).shape[1]
    intercept = np.asarray(truth["intercept"], dtype=object)
    outputs = 1 if intercept.ndim < 2 else array("truth.intercept", truth["intercept"], (None, None)).shape[1]
    if dimension == 0 or outputs == 0:
        raise InputError(f"truth.{gate} or truth.intercept has empty rows: give each atom at least one number")
    return dimension, outputs


def scale_range(name: str, table: dict, true: np.ndarray) -> Range:
    """``model.<name>`` of a study, or the range of the true values made ``WIDER``."""
    if name not in table:
        return float(true.min()) / WIDER, float(true.max()) * WIDER
    low, high = array(f"model.{name}", table[name], (2,))
    number(f"model.{name}[0]", low, 1e-300)
    if not low <= true.min() <= true.max() <= high:
        raise InputError(
            f"model.{name} = [{low:g}, {high:g}] does not hold the true values, {true.min():g} to {true.max():g}: "
            "widen it"
        )
    return float(low), float(high)


def variance_range(table: dict, truth: dict) -> Range:
    """The ``variance_range`` of a study. Raises ``InputError``."""
    if "variance" not in truth:
        raise InputError("truth.variance is missing: add it to the study")
    true = np.atleast_1d(np.asarray(truth["variance"], dtype=object))
    true = array("truth.variance", truth["variance"], (None,) * true.ndim)
    POSITIVE.check("truth.variance", true)
    return scale_range("variance_range", table, true)
