"""A mixture of multinomial logistic experts under a softmax gate, as a model of your own: change it to yours.

    p(y | x) = sum_i softmax_i(gate_bias_i + gate_slope_i'x) softmax_y(intercept_i + slope_i x),   y in 0, 1, ..

It is written for one sample; sampling, bounds, starts, the solver, distances and the Voronoi loss follow.
"""

import jax
import jax.numpy as jnp

import moe_sim as ms


class MultinomialLogistic(ms.Density):
    """The arguments of __init__ are the keys of [model] in the study; keep each under its own name."""

    def __init__(self, dimension: int, classes: int):
        self.dimension, self.classes = dimension, classes
        self.support = ms.Labels(classes)  # where y lives: Labels, Counts(), or Real() with a spread(params, x)

    def parameters(self):
        """A row of each array is an atom. GATE: gates may be translated together, the last one is pinned at 0.
        exponents: of the block in the Voronoi loss, in cells of 1, 2, ... fitted atoms; the last serves all larger."""
        d, free = self.dimension, self.classes - 1  # the logit of the last class is 0
        return {
            "gate_bias": ms.Parameter(domain=ms.GATE, bound="bias_bound", exponents=None),
            "gate_slope": ms.Parameter((d,), ms.GATE, exponents=(1, 2)),
            "intercept": ms.Parameter((free,), exponents=(1, 2)),
            "slope": ms.Parameter((free, d), exponents=(1, 2)),
        }

    def log_density(self, params, x, y):
        """log p(y | x), one number, at one x (dimension,) and one y (1,). In jax.numpy, so that it has derivatives."""
        return jax.nn.logsumexp(self.log_components(params, x, y))

    def log_components(self, params, x, y):
        """log of gate times density of every expert, (K,). It may be left out; with it EM fits the model too."""
        gate = jax.nn.log_softmax(params["gate_bias"] + params["gate_slope"] @ x)
        logit = params["intercept"] + params["slope"] @ x  # (K, classes - 1)
        logit = jnp.concatenate([logit, jnp.zeros((len(gate), 1))], axis=1)
        return gate + jax.nn.log_softmax(logit, axis=1)[:, y[0].astype(int)]
