"""Where a density or a search has to give up: one line that says what is too much, and the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import study

import moe_sim as ms
from moe_sim.data import quadrature
from moe_sim.losses.voronoi import loss_of
from moe_sim.models.part import Part
from moe_sim.models.support import Counts, Labels, Real
from moe_sim.theory.modulus import modulus

X = np.zeros((2, 1))


def poisson(log_rate):
    return SimpleNamespace(
        log_density=lambda params, x, y: y[0] * log_rate - np.exp(log_rate) - jax.lax.lgamma(y[0] + 1)
    )


class Spread(Part):
    """Two pieces, at 0 and 1 in every output: a part, as models are, since spreads take the model as an argument."""

    def __init__(self, outputs: int, scale: float):
        self.outputs, self.scale = outputs, scale

    def spread(self, params, x):
        centre = jnp.array([0.0, 1.0])[:, None] * jnp.ones(self.outputs)
        return centre, jnp.full((2, self.outputs), self.scale)


def test_too_many_counts():
    with pytest.raises(ms.InputError, match=r"counts beyond .* lower the rates"):
        Counts().nodes(poisson(14.0), {}, X)


def test_several_real_outputs_need_a_draw_of_their_own():
    with pytest.raises(ms.InputError, match=r"has 2 real outputs: drawing them needs a draw"):
        Real().draw(Spread(2, 1.0), {}, jax.random.key(0), X[0])


def test_too_fine_a_lattice():
    with pytest.raises(ms.InputError, match=r"would need a lattice of .* raise its smallest scale"):
        Real().nodes(Spread(3, 0.01), {}, X)


def test_too_many_points(monkeypatch):
    monkeypatch.setattr(quadrature, "LARGEST", 3)
    model = SimpleNamespace(joint=False, support=Labels(2))
    with pytest.raises(ms.InputError, match=r"2 values of y at 2 points of x are too many"):
        quadrature.nodes_of(model, {}, X, np.ones(2) / 2, 24)


def test_atoms_that_cannot_be_split(monkeypatch):
    p = study(fit__atoms=2).problem
    monkeypatch.setattr(type(p.model), "divisible", lambda self, params: np.zeros(1, bool))
    with pytest.raises(ms.InputError, match=r"cannot be split: pass fit.atoms as many as the truth has"):
        next(modulus(p.model, p.truth, p.law, p.options, [loss_of(p.model, "voronoi")]))


def test_a_raw_loss_without_a_gauge_of_scale():
    with pytest.raises(ms.InputError, match=r"has no gauge of scale, pass voronoi"):
        loss_of(study().problem.model, "voronoi:raw")
