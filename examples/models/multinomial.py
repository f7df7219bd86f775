"""P(y = s | x) = sum_i softmax_i(bias_i + gate_i'x) softmax_s(level_is + slope_is'x), s = 0, 1, ..: classification, the
last class at 0; arXiv 2310.14188."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class MultinomialLogistic(ms.Density):
    default_bounds = (20.0, 20.0)

    def __init__(self, dimension: int, classes: int):
        self.dimension, self.classes, self.support = dimension, classes, ms.Labels(classes)

    def parameters(self):
        d, free = self.dimension, self.classes - 1
        return {
            "bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", exponents=None),
            "gate": ms.Parameter((d,), ms.GATE),
            "level": ms.Parameter((free,)),
            "slope": ms.Parameter((free, d)),
        }

    def log_shares(self, params, x):
        return params["bias"] + params["gate"] @ x

    def log_components(self, params, x, y):
        logits = jnp.pad(params["level"] + params["slope"] @ x, ((0, 0), (0, 1)))
        chosen = jax.nn.log_softmax(logits, axis=1) @ (jnp.arange(self.classes) == y[0])
        return jax.nn.log_softmax(self.log_shares(params, x)) + chosen

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))
