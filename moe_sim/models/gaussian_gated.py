"""Gaussian-gated mixture of linear experts (arXiv 2305.07572): a joint density of (x, y),

    p(x, y) = sum_k weight_k N(x; center_k, covariance_k) N(y; intercept_k + slope_k x, variance_k).

Type I: no true center is 0. Type II: at least one is, and the rate of its slope changes
(theory_notes/gaussian-gated.md).
"""

from __future__ import annotations

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array
from moe_sim.models.domains import SIMPLEX, SPD
from moe_sim.models.form import LOG_2PI, Coefficients, Form
from moe_sim.models.gaussian import (
    HALF_RBAR_EXPONENTS,
    RBAR_EXPONENTS,
    LinearExperts,
    Range,
    scale_range,
    sizes,
    variance_range,
)
from moe_sim.models.mixture import spread
from moe_sim.models.parameter import Parameter

TABLE: dict = {"family": None, "variance_range": None, "covariance_range": None}
REQUIRED: tuple[str, ...] = ()
DRAWS_X = True  # a joint density: the study has no law of x


class GaussianGated(LinearExperts):
    """Parameters weight (K,) adding up to 1, center (K, d), covariance (K, d, d) and those of ``LinearExperts``.

    type_two: whether some true center is 0 (exponents: 2305.07572, Type I and Type II settings).
    covariance_range: bounds of the squared diagonal of the Cholesky factors of covariances.
    """

    joint = True
    variances = ("log_variance", "log_scale")

    def __init__(
        self, dimension: int, outputs: int, variance_range: Range = (1e-4, 1e4), covariance_range: Range = (1e-4, 1e4),
        type_two: bool = False,
    ):  # fmt: skip
        super().__init__(dimension, outputs, variance_range)
        self.covariance_range, self.type_two = covariance_range, type_two

    def parameters(self):
        d = self.dimension
        return {
            "weight": Parameter((), SIMPLEX, "bias_bound"),
            "center": Parameter((d,), exponents=RBAR_EXPONENTS),
            "covariance": Parameter((d, d), SPD, self.covariance_range, HALF_RBAR_EXPONENTS),
            **self.expert_parameters(HALF_RBAR_EXPONENTS if self.type_two else (1.0, 2.0)),
        }

    def form(self, atoms):
        return Form(atoms, self.dimension, self.outputs, gate_degree=2, joint=True)

    def coefficients(self, params):
        """log of weight times density of x, as a polynomial: 1, x_i, then x_i x_j with i <= j."""
        center, d = jnp.asarray(params["center"]), self.dimension
        precision = jnp.linalg.inv(jnp.asarray(params["covariance"]))
        linear = jnp.einsum("kij,kj->ki", precision, center)
        log_det = jnp.linalg.slogdet(precision)[1]
        constant = jnp.log(jnp.asarray(params["weight"])) + 0.5 * (
            log_det - jnp.sum(linear * center, axis=1) - d * LOG_2PI
        )
        pairs = [(i, j) for i in range(d) for j in range(i, d)]
        square = [(-0.5 if i == j else -1.0) * precision[:, i, j] for i, j in pairs]
        gate = jnp.concatenate([constant[:, None], linear, jnp.stack(square, axis=1)], axis=1)
        return Coefficients(gate, *self.expert_coefficients(params))

    def from_clusters(self, tau, x, y):
        count = jnp.sum(tau, axis=1) + 1e-9
        center = tau @ x / count[:, None]
        away = x[None] - center[:, None]
        covariance = jnp.einsum("kn,kni,knj->kij", tau, away, away) / count[:, None, None]
        least = 0.01 * spread(jnp.sum(tau, axis=0), x) + 1e-12
        covariance = covariance + least[None, :, None] * jnp.eye(self.dimension)
        weight = count / jnp.sum(count)
        return {"weight": weight, "center": center, "covariance": covariance, **self.expert_clusters(tau, x, y)}

    def additive(self, atom):
        """Means and covariances of (x, y): a normal density obeys the heat equation in them. One output."""
        if self.outputs > 1:
            raise InputError(f"outputs is {self.outputs}: its coordinates of cancellation are known for one output")
        slope, covariance = jnp.asarray(atom["slope"]), jnp.asarray(atom["covariance"])
        cross = covariance @ slope
        return {
            "mean_x": jnp.asarray(atom["center"]), "mean_y": atom["intercept"] + slope @ atom["center"],
            "covariance_xx": covariance[jnp.tril_indices(self.dimension)], "covariance_xy": cross,
            "covariance_yy": atom["variance"] + slope @ cross,
        }  # fmt: skip

    def from_additive(self, coordinates):
        i, j = jnp.tril_indices(self.dimension)
        half = jnp.zeros((self.dimension,) * 2).at[i, j].set(coordinates["covariance_xx"])
        covariance = half + jnp.tril(half, -1).T
        slope = jnp.linalg.solve(covariance, coordinates["covariance_xy"])
        return {
            "center": coordinates["mean_x"], "intercept": coordinates["mean_y"] - slope @ coordinates["mean_x"],
            "covariance": covariance, "slope": slope,
            "variance": coordinates["covariance_yy"] - slope @ coordinates["covariance_xy"],
        }  # fmt: skip

    def x_mixture(self, params):
        return tuple(jnp.asarray(params[name]) for name in ("weight", "center", "covariance"))

    def draw_x(self, params, key, expert):
        factor = jnp.linalg.cholesky(jnp.asarray(params["covariance"]))[expert]
        return jnp.asarray(params["center"])[expert] + factor @ jax.random.normal(key, (self.dimension,))


def build(table: dict, truth: dict) -> GaussianGated:
    """The model of a study; dimensions and type are those of its ``[truth]`` table. Raises ``InputError``."""
    dimension, outputs = sizes(truth, "center")
    center = np.asarray(truth["center"], float)
    for name in ("weight", "covariance", "variance"):
        if name not in truth:
            raise InputError(f"truth.{name} is missing: add it to the study")
    SIMPLEX.check("truth.weight", array("truth.weight", truth["weight"], (None,)))
    covariance = array("truth.covariance", truth["covariance"], (None, dimension, dimension))
    SPD.check("truth.covariance", covariance)
    square = np.diagonal(np.linalg.cholesky(covariance), axis1=1, axis2=2) ** 2
    ranges = variance_range(table, truth), scale_range("covariance_range", table, square)
    return GaussianGated(dimension, outputs, *ranges, type_two=bool(np.any(np.all(center == 0, axis=1))))
