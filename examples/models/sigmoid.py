"""f(x) = sum_i sigmoid(bias_i + gate_i'x) (intercept_i + slope_i'x), by least squares; arXiv 2405.13997."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class SigmoidGate(ms.Regression):
    divide_mass = None  # two sigmoids add up to a third one only where they do not depend on x

    def __init__(self, dimension: int, noise: float):
        self.dimension, self.noise = dimension, noise

    def parameters(self):
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d),
            "intercept": ms.Parameter(),
            "slope": ms.Parameter(d),
        }

    def log_shares(self, params, x):
        return jax.nn.log_sigmoid(params["bias"] + params["gate"] @ x)

    def mean(self, params, x):
        return (jnp.exp(self.log_shares(params, x)) @ (params["intercept"] + params["slope"] @ x))[None]
