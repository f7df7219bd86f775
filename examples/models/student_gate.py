"""w_i(x) proportional to exp(bias_i) (1 + ||x - center_i||^2 / 3)^-2, heavy tails about a centre: a gate of one's own,
put together with ready experts."""

import jax
import jax.numpy as jnp

import moe_sim as ms
from moe_sim.models.gates import Gate


class StudentGate(Gate):
    def parameters(self, dimension):
        return {
            "gate_bias": ms.Parameter(domain=ms.GATE, bound="bias_bound"),
            "gate_center": ms.Parameter((dimension,)),
        }

    def log_weights(self, params, x):
        square = jnp.sum((x - params["gate_center"]) ** 2, axis=1)
        return jax.nn.log_softmax(params["gate_bias"] - 2 * jnp.log1p(square / 3))
