"""f(x) = sum_i softmax_i(bias_i + gate_i'x) tanh(slope_i'x + intercept_i), by least squares; arXiv 2402.02952."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class SoftmaxTanh(ms.Regression):
    def __init__(self, dimension: int, noise: float):
        self.dimension, self.noise = dimension, noise

    def parameters(self):
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d, ms.GATE),
            "slope": ms.Parameter(d),
            "intercept": ms.Parameter(),
        }

    def log_shares(self, params, x):
        return params["bias"] + params["gate"] @ x

    def mean(self, params, x):
        experts = jnp.tanh(params["slope"] @ x + params["intercept"])
        return (jax.nn.softmax(self.log_shares(params, x)) @ experts)[None]
