"""P(y | x) = sum_i softmax_i(bias_i + gate_i'x) Poisson(y; exp(level_i + slope_i'x)): counts with two regimes."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class PoissonExperts(ms.Density):
    support = ms.Counts()
    default_bounds = (10.0, 10.0)

    def __init__(self, dimension: int):
        self.dimension = dimension

    def parameters(self):
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d, ms.GATE),
            "level": ms.Parameter(bound=5.0),
            "slope": ms.Parameter(d, bound=3.0),
        }

    def log_shares(self, params, x):
        return params["bias"] + params["gate"] @ x

    def log_components(self, params, x, y):
        log_rate = params["level"] + params["slope"] @ x
        log_mass = y[0] * log_rate - jnp.exp(log_rate) - jax.lax.lgamma(y[0] + 1.0)
        return jax.nn.log_softmax(self.log_shares(params, x)) + log_mass

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))
