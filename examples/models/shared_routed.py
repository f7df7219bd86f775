"""p(y | x) = 1/2 sum_i weight_i N(y; a_i + b_i'x, s_i) + 1/2 sum_j softmax_j(bias_j + gate_j'x) N(y; c_j + d_j'x, v_j);
arXiv 2505.10860: shared and routed experts, each with a mixing measure and cells of their own."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

import moe_sim as ms

NAMES = ("intercept", "slope", "variance")


class SharedRouted(ms.Density):
    support = ms.Real()
    default_bounds = (20.0, 10.0)
    variances = ("log_shared_variance", "log_routed_variance")

    def __init__(self, dimension: int):
        self.dimension = dimension

    def parameters(self):
        found = {
            "shared_weight": ms.Parameter(domain=ms.SIMPLEX, bound="bias_bound", group="shared"),
            "bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", group="routed"),
            "gate": ms.Parameter((self.dimension,), ms.GATE, group="routed"),
        }
        for group in ("shared", "routed"):
            found[f"{group}_slope"] = ms.Parameter((self.dimension,), group=group)
            found[f"{group}_intercept"] = ms.Parameter(exponents=(1, 4, 6), group=group)
            found[f"{group}_variance"] = ms.Parameter((), ms.POSITIVE, (0.02, 4.0), (1, 2, 3), group=group)
        return found

    def spread(self, params, x):
        parts = [[params[f"{group}_{name}"] for group in ("shared", "routed")] for name in NAMES]
        intercept, slope, variance = (jnp.concatenate(part) for part in parts)
        return (intercept + slope @ x)[:, None], jnp.sqrt(variance)[:, None]

    def log_components(self, params, x, y):
        routed = jax.nn.log_softmax(params["bias"] + params["gate"] @ x)
        weight = jnp.concatenate([jnp.log(params["shared_weight"]), routed]) - jnp.log(2.0)
        return weight + norm.logpdf(y, *self.spread(params, x))[:, 0]

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))
