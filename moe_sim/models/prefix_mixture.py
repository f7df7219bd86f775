"""The prefix model observed as a mixture: Y | X ~ sum_j w_j(X) N(output_j, noise^2 I), frozen experts included.

Gates, outputs and structures are those of ``prefix``; there Y is the mixed output plus noise, here Y is the output
of one expert, drawn by the gate, plus noise.
"""

from __future__ import annotations

from moe_sim._engine import jnp
from moe_sim.models import prefix
from moe_sim.models.form import Coefficients, Form
from moe_sim.models.mixture import MixtureModel, linear_gates
from moe_sim.models.prefix import PrefixModel
from moe_sim.models.support import Real

TABLE, REQUIRED = prefix.TABLE, prefix.REQUIRED


class PrefixMixture(MixtureModel):
    """``head`` is the attention head. Exponents 1 and 2: a mixture tells two values on one key from their mean,
    so that all structures are identified to second order (theory_notes/prefix-mixture.md)."""

    support = Real()

    def __init__(self, head: PrefixModel):
        self.head = head
        self.dimension, self.outputs = head.dimension, head.outputs

    @property
    def clusters(self):  # type: ignore[override]
        # A network has no inverse that would give the prefix of a cluster.
        return self.head.structure != "shared-network"

    @property
    def gauge(self):
        return self.head.gauge

    @property
    def exponents(self):
        return dict.fromkeys(self.head.exponents, (1.0, 2.0))

    def parameters(self):
        return self.head.parameters()

    def measure(self, params):
        return self.head.measure(params)

    def form(self, atoms):
        frozen = self.head.frozen
        known = (frozen.count, frozen.logits, frozen.outputs) if frozen.count else None
        return Form(atoms, self.dimension, self.outputs, mean_degree=0, variance=self.head.noise**2, frozen=known)

    def coefficients(self, params):
        key, value = self.head.key_value(params)
        gate = jnp.concatenate([jnp.asarray(params["bias"])[:, None], key @ self.head.key_projection.T], axis=1)
        mean = (value @ self.head.value_projection.T)[:, :, None]
        return Coefficients(gate, mean, jnp.full(mean.shape[:2], 2 * jnp.log(self.head.noise)))

    def from_clusters(self, tau, x, y):
        """Values that put experts on the means of clusters; keys that part them, or the same prefix where tied."""
        count = jnp.sum(tau, axis=1) + 1e-9
        value = (tau @ y / count[:, None]) @ jnp.linalg.pinv(jnp.asarray(self.head.value_projection)).T
        bias, slope = linear_gates(tau, x)
        bias = bias - jnp.mean(bias)
        if self.head.structure == "shared-linear":
            return {"bias": jnp.log(count) - jnp.mean(jnp.log(count)), "prefix": value}
        return {"bias": bias, "key": slope @ jnp.linalg.pinv(jnp.asarray(self.head.key_projection)).T, "value": value}


def build(table: dict, truth: dict) -> PrefixMixture:
    """The model of a study's ``[model]`` table, the same as that of ``prefix``. Raises ``InputError``."""
    return PrefixMixture(prefix.build(table, truth))
