"""f(x) = sum_i softmax_i((bias_i + gate_i'x) / temperature) tanh(slope_i'x + intercept_i); arXiv 2401.13875.

(bias, gate, temperature) times any number is the same function: a gauge of scale. Losses are of the representative with
temperature 1; those called ...:raw are of the parameters as they are, and cannot converge.
"""

import jax
import jax.numpy as jnp

import moe_sim as ms


class Temperature(ms.Regression):
    def __init__(self, dimension: int, noise: float):
        self.dimension, self.noise = dimension, noise

    def parameters(self):
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d, ms.GATE),
            "temperature": ms.Parameter(domain=ms.POSITIVE, bound=(0.2, 5.0), shared=True),
            "slope": ms.Parameter(d),
            "intercept": ms.Parameter(),
        }

    def canonical(self, params):
        t = params["temperature"]
        return params | {"bias": params["bias"] / t, "gate": params["gate"] / t, "temperature": t / t}

    def log_shares(self, params, x):
        return (params["bias"] + params["gate"] @ x) / params["temperature"]

    def mean(self, params, x):
        experts = jnp.tanh(params["slope"] @ x + params["intercept"])
        return (jax.nn.softmax(self.log_shares(params, x)) @ experts)[None]
