"""Softmax-gated Gaussian mixture of linear experts (arXiv 2305.03288).

    p(y | x) = sum_k softmax_k(gate_bias_k + gate_slope_k x) N(y; intercept_k + slope_k x, variance_k).

A common translation of all gates changes nothing: solvers pin the last gate at 0, losses take the infimum.
"""

from __future__ import annotations

from moe_sim._engine import jnp
from moe_sim.models.domains import GATE
from moe_sim.models.form import Coefficients, Form
from moe_sim.models.gaussian import RBAR_EXPONENTS, LinearExperts, sizes, variance_range
from moe_sim.models.mixture import linear_gates
from moe_sim.models.parameter import Parameter

TABLE: dict = {"family": None, "variance_range": None}
REQUIRED: tuple[str, ...] = ()


class SoftmaxGaussian(LinearExperts):
    """Parameters gate_bias (K,), gate_slope (K, d) and those of ``LinearExperts``. Exponents: 2305.03288, theorem 2."""

    def parameters(self):
        return {
            "gate_bias": Parameter((), GATE, "bias_bound"),
            "gate_slope": Parameter((self.dimension,), GATE, exponents=RBAR_EXPONENTS),
            **self.expert_parameters(),
        }

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
