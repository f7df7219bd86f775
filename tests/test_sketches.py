"""Starts led by a sketch: they end at the least squares of the model, not at those of the sketch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.data.draw import exact_samples
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.fitting.sketches import led
from moe_sim.models.domains import GATE
from moe_sim.models.parameter import Parameter

LAW = ms.Grid(1, -2.0, 2.0, 12)
TRUTH = {"mass": np.zeros(1), "slope": np.array([1.2]), "place": np.array([0.3])}
OPTIONS = FitOptions(1, "least-squares", "data", starts=4, budget=2, bound=3.0, bias_bound=1.0)


class Cheap(ms.Regression):
    """tanh(slope x + place), all but a bend."""

    dimension, outputs, noise = 1, 1, 0.3
    bend = 0.0

    def parameters(self):
        return {"mass": Parameter((), GATE, "bias_bound"), "slope": Parameter(()), "place": Parameter(())}

    def mean(self, params, x):
        u = params["slope"] * x + params["place"]
        return jnp.tanh(u) + self.bend * jnp.sin(2 * u + x)


class Dear(Cheap):
    """What ``Cheap`` is a sketch of."""

    bend = 0.03
    sketch = Cheap()


@pytest.fixture(scope="module", params=[1e3, 1e7])
def fitted(request):
    n = request.param
    fitter = Fitter(Dear(), TRUTH, OPTIONS)
    seeds = [np.random.SeedSequence([11, k]) for k in range(6)]
    samples = exact_samples(Dear(), TRUTH, LAW, n, seeds)
    return fitter, samples, seeds, fitter.fit(samples, seeds, n)


def test_fits_are_those_without_a_sketch(fitted):
    fitter, samples, seeds, fits = fitted

    class Plain(Dear):
        sketch = None

    plain = Fitter(Plain(), TRUTH, OPTIONS)
    assert fitter.sketched is not None and plain.sketched is None
    without = plain.fit(samples, seeds)
    assert np.all(fits.certificate == "certified") and np.all(without.certificate == "certified")
    np.testing.assert_allclose(fits.objective, without.objective, rtol=0, atol=1e-3)


def test_each_turn_takes_most_of_what_is_missed(fitted):
    """One turn ends at the sketch's own least squares; six where residuals of the model are orthogonal to slopes of the
    sketch, a fraction of a log-likelihood unit from the model's whatever n is."""
    fitter, samples, _, fits = fitted
    start = np.tile(fitter.flatten(TRUTH), (6, 1)) + 0.1
    lanes = np.arange(6), start, np.full(6, 1e-6), np.full(6, 100)
    missed = []
    for turns in (1, 2, 6):
        theta, value = led(fitter.plan, turns)((fitter.setting, fitter.sketched), lanes, samples)
        assert theta.shape == start.shape
        missed.append(np.max(value - fits.objective))
    assert missed[0] > missed[1] > 0 and missed[2] < 0.5
    assert missed[0] > 100 * missed[1] or missed[1] < 0.5
