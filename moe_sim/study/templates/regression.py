"""A mixture of experts with sigmoid gates, as a model of your own: change it to the model of your theorem.

    y = f(x) + noise,   f(x) = sum_i sigmoid(bias_i + gate_i'x) (intercept_i + slope_i'x)

It is written for one sample; bounds, starts, the solver, the Voronoi loss and its cells follow from what it declares.
"""

import jax

import moe_sim as ms


class SigmoidGate(ms.Regression):
    """The arguments of __init__ are the keys of [model] in the study; keep each under its own name."""

    mass = "bias"  # the parameter that holds the masses of the atoms: log-masses, here

    def __init__(self, dimension: int, noise: float):
        self.dimension, self.noise = dimension, noise

    def parameters(self):
        """A row of each array is an atom. exponents: of its block in the Voronoi loss, in cells of 1, 2, ... fitted
        atoms; the last serves all larger cells. None: no such block (the masses are in the loss anyway)."""
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d, exponents=(1, 2)),
            "intercept": ms.Parameter(exponents=(1, 2)),
            "slope": ms.Parameter(d, exponents=(1, 2)),
        }

    def mean(self, params, x):
        """f at one x of shape (dimension,): shape (outputs,), here (1,). In jax.numpy, so that it has derivatives."""
        weight = jax.nn.sigmoid(params["bias"] + params["gate"] @ x)
        value = params["intercept"] + params["slope"] @ x
        return (weight @ value)[None]
