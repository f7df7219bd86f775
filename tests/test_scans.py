"""Fits of functions that jump, against brute force over the place of the jump."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.data.draw import exact_samples
from moe_sim.data.samples import at
from moe_sim.fitting.compiled import compiled
from moe_sim.fitting.multistart import PROMISE, Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.fitting.scans import scan
from moe_sim.models.domains import GATE
from moe_sim.models.gates import TopK
from moe_sim.models.parameter import Parameter

LAW = ms.Grid(1, -2.0, 2.0, 24)
TRUTH = {"mass": np.zeros(1), "border": np.array([0.4]), "left": np.array([-1.0]), "right": np.array([0.2])}
OPTIONS = FitOptions(1, "least-squares", "data", starts=4, budget=4, bound=4.0, bias_bound=1.0)


class Step(ms.Regression):
    """left up to a border, right from there on: a change point."""

    dimension, outputs, noise = 1, 1, 1.0

    def parameters(self):
        border = Parameter((), bound=(-2.0, 2.0), jumps=True)
        return {
            "mass": Parameter((), GATE, "bias_bound"),
            "border": border,
            "left": Parameter(()),
            "right": Parameter(()),
        }

    def mean(self, params, x):
        return jnp.where(x[:1] < params["border"], params["left"], params["right"])


def least(x, y, weight):
    """The least sum of squares over all places of the border and both levels."""
    values = []
    for border in [*x, np.inf]:
        parts = [np.flatnonzero(x < border), np.flatnonzero(x >= border)]
        values.append(sum(
            weight[part] @ (y[part] - np.average(y[part], weights=weight[part])) ** 2 for part in parts if len(part)
        ))  # fmt: skip
    return min(values) / 2


@pytest.fixture(scope="module")
def fitted():
    fitter = Fitter(Step(), TRUTH, OPTIONS)
    seeds = [np.random.SeedSequence([7, k]) for k in range(40)]
    samples = exact_samples(Step(), TRUTH, LAW, 200, seeds)
    return fitter, samples, fitter.fit(samples, seeds, 200)


def test_fits_are_the_least_squares_of_all_borders(fitted):
    fitter, samples, fits = fitted
    x = np.asarray(LAW.nodes()[0])[:, 0]
    far = 0
    for r, theta in enumerate(fits.theta):
        one, params = at(samples, r), fitter.unflatten(theta)
        y, weight = np.asarray(one.y).reshape(-1), np.asarray(one.weight).reshape(-1)
        mean = np.where(x < float(params["border"][0]), float(params["left"][0]), float(params["right"][0]))
        assert weight @ (y - mean) ** 2 / 2 - least(x, y, weight) < PROMISE
        far += abs(float(params["border"][0]) - 0.4) > 4 / 23
    assert 5 <= far <= 35  # samples that put the border elsewhere are among them, and others
    assert np.mean(fits.certificate == "certified") > 0.9


def test_a_scan_never_rises_and_moves_nothing_else(fitted):
    fitter, samples, _ = fitted
    border = fitter.jumping[0]
    assert len(fitter.jumping) == 1 and fitter.unflatten(np.eye(3)[border])["border"][0] == 1.0
    lanes = np.arange(40), np.tile([0.3, 0.2, 0.1], (40, 1))
    place, value = scan(fitter.plan.atoms, fitter.jumping, fitter.how)(fitter.setting, lanes, samples)
    _, before, *_ = compiled(fitter.plan).certify(fitter.setting, lanes, samples)
    assert np.all(value <= before) and np.any(value < before - 1)
    np.testing.assert_array_equal(np.delete(place - lanes[1], border, axis=1), 0.0)


@pytest.mark.parametrize("k", [1, 2])
def test_a_gate_of_scale_is_one_only_where_one_expert_is_selected(k):
    """Of softmax(u) among two, u scaled is another function; of one at a time it is not."""
    gate = TopK(k)
    params = {"gate_bias": np.array([0.4, -0.3, 0.0]), "gate_slope": np.array([[2.0], [-1.0], [0.0]])}
    twice = {name: 2 * value for name, value in params.items()}
    x = np.linspace(-2, 2, 9)[:, None]
    weights = [np.stack([np.exp(gate.log_weights(p, row)) for row in x]) for p in (params, twice)]
    assert np.array_equal(*weights) == gate.has_canonical == (k == 1)
    found = [gate.canonical(p) for p in (params, twice)]
    assert all(np.allclose(found[0][name], found[1][name], rtol=1e-14) for name in params) == (k == 1)
    # Whichever atom is last and has u = 0, the norm is the same.
    other = {name: value[[2, 0, 1]] - value[1] for name, value in params.items()}
    ratio = [float(p["gate_slope"][0, 0] - p["gate_slope"][1, 0]) for p in (found[0], gate.canonical({
        name: value[[1, 2, 0]] for name, value in other.items()
    }))]  # fmt: skip
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-14)
