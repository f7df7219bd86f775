"""Starts led by a sketch: they end at the least squares of the model, not at those of the sketch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.data.draw import exact_samples
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.fitting.sketches import led, reduced
from moe_sim.fitting.subsamples import met
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
    """No turn ends at the sketch's own least squares; six where residuals of the model are orthogonal to slopes of the
    sketch, a fraction of a log-likelihood unit from the model's whatever n is."""
    fitter, samples, _, fits = fitted
    start = np.tile(fitter.flatten(TRUTH), (6, 1)) + 0.1
    lanes = np.arange(6), start, np.full(6, 1e-6), np.full(6, 100)
    missed = []
    for turns in (1, 2, 6):
        theta, value = led(fitter.plan, fitter.setting, fitter.sketched, lanes, samples, turns, 0)
        assert theta.shape == start.shape
        missed.append(np.max(value - fits.objective))
    assert missed[0] > missed[1] > 0 and missed[2] < 0.5
    assert missed[0] > 100 * missed[1] or missed[1] < 0.5


class Better(Cheap):
    """A sketch that has the bend of the model to first order about parameters that it is made anew at."""

    about = None

    def mean(self, params, x):
        plain = super().mean(params, x)
        if self.about is None:
            return plain
        u, old = (p["slope"] * x + p["place"] for p in (params, self.about))
        return plain + Dear.bend * (jnp.sin(2 * old + x) + 2 * jnp.cos(2 * old + x) * (u - old))

    def around(self, exact, params):
        found = Better()
        found.about = params
        return found


def test_later_turns_are_of_a_sketch_made_around_the_first(fitted):
    """One turn of a sketch with the model's own slopes does what many of the plain one do not: it ends on the model's
    least squares. Each lane has a sketch of its own."""
    fitter, samples, _, fits = fitted
    cheap = fitter.sketched._replace(model=Better())
    start = np.tile(fitter.flatten(TRUTH), (11, 1)) + 0.1 * np.linspace(-1, 1, 11)[:, None]  # more than one block
    lanes = np.arange(11) % 6, start, np.full(11, 1e-6), np.full(11, 100)
    theta, value = led(fitter.plan, fitter.setting, cheap, lanes, samples, 1, 6)
    assert theta.shape == start.shape
    once, _ = led(fitter.plan, fitter.setting, cheap, lanes, samples, 1, 1)
    alone = [
        led(fitter.plan, fitter.setting, cheap, [v[k : k + 1] for v in lanes], samples, 1, 1)[0] for k in range(11)
    ]
    np.testing.assert_allclose(once, np.concatenate(alone), rtol=0, atol=1e-9)
    beyond = value - fits.objective[np.arange(11) % 6]
    _, plain = led(fitter.plan, fitter.setting, fitter.sketched, lanes, samples, 7, 0)
    assert np.max(beyond) < 0.1 * np.max(plain - fits.objective[np.arange(11) % 6]) + 1e-5


class Wide(ms.Regression):
    """Three outputs, of which ``Narrow`` is told two combinations."""

    dimension, outputs, noise = 1, 3, 0.1

    def parameters(self):
        return Cheap().parameters()

    def mean(self, params, x):
        return jnp.array([1.0, 2.0, -1.0])[:, None] @ Cheap().mean(params, x) + 5.0


class Narrow(Cheap):
    ways = np.linalg.qr(np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 1.0]]))[0]

    def span(self, x):
        return jnp.full(3, 5.0), jnp.asarray(self.ways)


def test_labels_are_reduced_to_what_a_sketch_sees():
    seeds = [np.random.SeedSequence(k) for k in range(2)]
    samples = exact_samples(Wide(), TRUTH, LAW, 1000, seeds)
    cheap = Fitter(Dear(), TRUTH, OPTIONS).sketched._replace(model=Narrow())
    small = reduced(samples, cheap)
    np.testing.assert_allclose(small.y, (samples.y - 5.0) @ Narrow.ways, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(small.weight, samples.weight)


def test_lanes_that_met():
    """One of each group of a replicate, groups by gaps."""
    replicate = np.array([0, 1, 0, 0, 1, 0])
    value = np.array([2.0, 2.0, 1.0, 2.0005, 7.0, np.nan])
    one, place = met(replicate, value, 1e-3)
    assert sorted(one) == [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(one[place], [0, 1, 2, 0, 4, 5])
