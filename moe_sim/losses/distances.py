"""Distance of a fitted function or density from the true one: L2 of the law, or Hellinger."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.cells import Cells, few_cells
from moe_sim.data.covariates import Law
from moe_sim.data.draw import means
from moe_sim.data.quadrature import NODES, log_densities, mixture_nodes, nodes_of, points_of
from moe_sim.models import pytrees as pytrees  # targets are arguments of jitted functions
from moe_sim.models.base import Density, Model, Parameters, Regression
from moe_sim.models.mixture import MixtureModel
from moe_sim.models.part import Part

NEAR_NODES = {1: 12, 2: 6}  # Gauss-Hermite nodes an axis by outputs: near the truth residuals are nearly polynomials
_FEW_NEAR = 2**12  # cells that a search is made on
_OFF_CELLS, _OFF_NODES = 1e-12, 1e-9  # mass beside that of the truth that is none: what sums to 1 does so to this


class Target(Part):
    """The true function or density, and where others are compared with it.

    Regression: f* at the nodes of the law. Densities: log p* at points (x, y) with weights that integrate against p*;
    of these all others are integrated near the truth: the cells of exact samples, where the model has few, else nodes.
    Without cells a Gaussian mixture elsewhere has nodes of its own: ``points``.
    """

    def __init__(
        self, model: Model, truth: Parameters, law: Law | None, cells: Cells | None = None, most: int = NODES[1]
    ):
        """cells: of a density, to add up over; most: without them, nodes an axis of a Gaussian mixture."""
        self.model, self.truth, self.on_cells = model, truth, cells is not None
        self.points, self.weights = points_of(law)
        if isinstance(model, Regression):
            self.x, self.y, self.root, self.known = (
                self.points,
                None,
                jnp.sqrt(self.weights),
                means(model, truth, self.points),
            )
            return
        assert isinstance(model, Density)
        if cells is not None:
            self.x, self.y, mass, self.known = map(jnp.asarray, cells)
            self.root = jnp.sqrt(mass)
            return
        self.x, self.y, log_weight = nodes_of(model, truth, self.points, self.weights, most)
        self.root = jnp.exp(0.5 * log_weight)
        self.known = log_densities(model, truth, self.x, self.y)

    def residuals(self, params: Parameters):
        """A vector that is smooth in the parameters; its norm is the distance from the truth (``function_distance``).

        Regression: sqrt(weight) (f - f*) at the nodes of the law. Gaussian mixtures: h^2 = (E_p g^2 + E_p* g^2) / 2,
        g = (sqrt p - sqrt p*) / sqrt(p + p*), between -1 and 1; each expectation is a sum over components of normal
        integrals. With r = log p - log p* it is g = sqrt 2 sinh(r / 4) / sqrt cosh(r / 2), which keeps its relative
        accuracy when p is close to p*. That of h is about 1e-3 for one output: r is far from a polynomial where experts
        part. On cells, and of other densities: those ``near``, and the root of half the mass that p has where p* has
        none. At the truth the Jacobian J of the residuals holds the information of one observation: it is
        J'J / noise^2 for a regression and 8 J'J for a density.
        """
        model, truth = self.model, self.truth
        if isinstance(model, Regression):
            return (self.root[:, None] * (means(model, params, self.points) - self.known)).ravel()
        if self.on_cells or not isinstance(model, MixtureModel):
            ratio = 2 * self.half_log_ratio(params)
            missed = jnp.maximum(1.0 - jnp.sum(self.root**2 * jnp.exp(ratio)), 0.0)
            # Its own rounding would be the distance of near functions.
            missed = jnp.where(missed > (_OFF_CELLS if self.on_cells else _OFF_NODES), missed, 0.0)
            safe = jnp.where(missed > 0, missed, 1.0)
            return jnp.append(self.near(params), jnp.where(missed > 0, jnp.sqrt(safe / 2), 0.0))
        rule = partial(mixture_nodes, model, self.points, self.weights)

        def unlike(x, y):
            r = jnp.clip(model.log_density(params, x, y) - model.log_density(truth, x, y), -200.0, 200.0)
            return jnp.sinh(r / 4) / jnp.sqrt(jnp.cosh(r / 2))

        def half(of):
            x, y, log_weight = rule(of)
            return jnp.exp(0.5 * log_weight) * jax.vmap(unlike)(x, y)

        return jnp.concatenate([half(params), half(truth)])

    def half_log_ratio(self, params: Parameters):
        """log of p / p* halved, at the points of the truth: (A,); 0 at those without mass (of experts that a gate does
        not select), where p may be anything. Densities only."""
        ratio = 0.5 * (log_densities(self.model, params, self.x, self.y) - self.known)
        return jnp.where(self.root > 0, ratio, 0.0)

    def near(self, params: Parameters):
        """Residuals of a measure near the truth, (A,), accurate to rounding where they are tiny.

        Densities: h^2 = 1/2 E_p* (sqrt(p / p*) - 1)^2 on the points of the truth, by expm1 of half the log ratio. It
        misses what p puts where p* is not, which the neighbourhood of the truth rules out.
        """
        if not isinstance(self.model, Density):
            return self.residuals(params)
        return self.root / jnp.sqrt(2.0) * jnp.expm1(self.half_log_ratio(params))

    def rows(self, params: Parameters):
        """(N,): the Jacobian J at the truth has J'J = the information of one observation.

        Regression: sqrt(weight) f / noise on the nodes of the law. Densities: sqrt(weight) log p on points that
        integrate against the true density.
        """
        if isinstance(self.model, Regression):
            root = jnp.repeat(self.root, self.model.outputs)
            return root / self.model.noise * means(self.model, params, self.points).ravel()
        return self.root * log_densities(self.model, params, self.x, self.y)

    @property
    def unit(self):
        """The distance of a gap of length 1 in ``rows``, noise standard normal: the noise, or 8^-1/2 for a Hellinger
        distance, since h^2 = E[score^2] / 8."""
        return self.model.noise if isinstance(self.model, Regression) else 8**-0.5


def target_of(model: Model, truth: Parameters, law: Law | None) -> Target:
    """The ``Target`` on the cells of exact samples, where these are few, else on nodes."""
    return Target(model, truth, law, few_cells(model, truth, law) if isinstance(model, Density) else None)


def target_near(model: Model, truth: Parameters, law: Law | None) -> Target:
    """The ``Target`` for measures near the truth: on a lattice as fine as its own scales ask for, where the cells of
    that are few, else on ``NEAR_NODES``."""
    cells = None
    if isinstance(model, Density):
        scales = {name: np.asarray(value) for name, value in model.unconstrain(truth).items()}
        cells = few_cells(model, truth, law, scales, _FEW_NEAR)
    return Target(model, truth, law, cells, NEAR_NODES.get(model.outputs, 5))


def function_distance(model: Model, truth: Parameters, law: Law | None) -> Callable:
    """``distance(params)``, a scalar, in JAX: the norm of ``Target.residuals``.

    Regression: ||f - f*|| in L2 of the law. Densities: the Hellinger distance of the joint laws of (X, Y),
    h^2 = 1/2 int (sqrt p - sqrt p*)^2, which is the mean over the law of X of the conditional ones.
    """
    residuals = target_of(model, truth, law).residuals
    return lambda params: jnp.sqrt(jnp.sum(residuals(params) ** 2))
