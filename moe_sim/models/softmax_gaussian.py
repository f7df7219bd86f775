"""Softmax-gated Gaussian mixture of linear experts (arXiv 2305.03288).

    p(y | x) = sum_k softmax_k(gate_bias_k + gate_slope_k x) N(y; intercept_k + slope_k x, variance_k).

A common translation of all gates changes nothing: solvers pin the last gate at 0, losses take the infimum.
"""

from __future__ import annotations

import numpy as np

from moe_sim._engine import jnp
from moe_sim.models.base import linear_gates
from moe_sim.models.form import Coefficients, Form
from moe_sim.models.gaussian import FULL, HALF, LinearExperts, Range, sizes, variance_range
from moe_sim.models.measure import MixingMeasure

TABLE: dict = {"family": None, "variance_range": None}
REQUIRED: tuple[str, ...] = ()


class SoftmaxGaussian(LinearExperts):
    """Parameters gate_bias (K,), gate_slope (K, d) and those of ``LinearExperts``. Exponents: 2305.03288, theorem 2."""

    mass = "gate_bias"
    gauge = "gate_slope"
    variances = ("log_variance",)

    def __init__(self, dimension: int, outputs: int, variance_range: Range = (1e-4, 1e4)):
        super().__init__(dimension, outputs, variance_range)
        self.exponents = {"gate_slope": FULL, "slope": HALF, "intercept": FULL, "variance": HALF}

    def shapes(self, atoms):
        return {"gate_bias": (atoms,), "gate_slope": (atoms, self.dimension), **self.expert_shapes(atoms)}

    def box(self, atoms, bound, bias_bound):
        lower, upper = self.expert_box(atoms, bound)
        upper |= {
            "gate_bias": np.full(atoms - 1, bias_bound),
            "gate_slope": np.full((atoms - 1, self.dimension), bound),
        }
        return lower | {name: -upper[name] for name in ("gate_bias", "gate_slope")}, upper

    def free(self, params):
        gates = {name: jnp.asarray(params[name]) for name in ("gate_bias", "gate_slope")}
        return self.expert_free(params) | {name: gate[:-1] - gate[-1] for name, gate in gates.items()}

    def restore(self, free):
        gates = {name: free[name] for name in ("gate_bias", "gate_slope")}
        pinned = {name: jnp.concatenate([gate, jnp.zeros((1, *gate.shape[1:]))]) for name, gate in gates.items()}
        return self.expert_restore(free) | pinned

    def measure(self, params):
        blocks = {"gate_slope": jnp.asarray(params["gate_slope"]), **self.expert_blocks(params)}
        return MixingMeasure(jnp.asarray(params["gate_bias"]), blocks)

    def form(self, atoms):
        return Form(atoms, self.dimension, self.outputs, pinned=True)

    def coefficients(self, params):
        gate = jnp.concatenate([jnp.asarray(params["gate_bias"])[:, None], jnp.asarray(params["gate_slope"])], axis=1)
        return Coefficients(gate[:-1] - gate[-1], *self.expert_coefficients(params))

    def from_clusters(self, tau, x, y):
        bias, slope = linear_gates(tau, x)
        return {"gate_bias": bias, "gate_slope": slope, **self.expert_clusters(tau, x, y)}


def build(table: dict, truth: dict) -> SoftmaxGaussian:
    """The model of a study; dimensions are those of its ``[truth]`` table. Raises ``InputError``."""
    return SoftmaxGaussian(*sizes(truth, "gate_slope"), variance_range(table, truth))
