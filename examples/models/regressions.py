"""p(y | x) = sum_i weight_i N(y; intercept_i + slope_i'x, variance_i): what flexmix fits; arXiv 1907.04377."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class Regressions(ms.Density):
    support = ms.Real()
    default_bounds = (20.0, 10.0)
    variances = ("log_variance",)  # an expert through a single point makes the likelihood infinite

    def __init__(self, dimension: int):
        self.dimension = dimension

    def parameters(self):
        return {
            "weight": ms.Parameter(domain=ms.SIMPLEX, bound="bias_bound"),
            "slope": ms.Parameter((self.dimension,), exponents=(1, 2)),
            "intercept": ms.Parameter(exponents=(1, 4, 6)),
            "variance": ms.Parameter(domain=ms.POSITIVE, bound=(0.05, 4.0), exponents=(1, 2, 3)),
        }

    def spread(self, params, x):
        return (params["intercept"] + params["slope"] @ x)[:, None], jnp.sqrt(params["variance"])[:, None]

    def log_components(self, params, x, y):
        centre, scale = self.spread(params, x)
        return jnp.log(params["weight"]) + jax.scipy.stats.norm.logpdf(y, centre, scale)[:, 0]

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))
