"""Minima on a kink, against brute force over the place of the kink."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.data.draw import exact_samples
from moe_sim.data.samples import at
from moe_sim.fitting import multistart
from moe_sim.fitting.kinks import held
from moe_sim.fitting.multistart import PROMISE, Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.models.domains import GATE, REAL
from moe_sim.models.parameter import Parameter

LAW = ms.Grid(1, -2.0, 2.0, 12)
TRUTH = {"mass": np.zeros(1), "center": np.array([2 / 11 + 0.01]), "slope": np.array([1.5])}
OPTIONS = FitOptions(1, "least-squares", "data", starts=8, budget=2, bound=4.0, bias_bound=1.0)


class Valley(ms.Regression):
    """slope |x - center| of one atom: kinks where the centre meets a point of x."""

    dimension, outputs, noise = 1, 1, 0.3

    def parameters(self):
        return {"mass": Parameter((), GATE, "bias_bound"), "center": Parameter(()), "slope": Parameter((), REAL)}

    def mean(self, params, x):
        return jnp.sum(params["slope"] * jnp.abs(x[0] - params["center"]))[None]


def least_squares(y, weight, center):
    """The least of the objective over the slope, at each of these centres."""
    x = np.asarray(LAW.nodes()[0])[:, 0]
    z = np.abs(x - center[:, None])
    slope = np.clip((z * weight) @ y / ((z**2) @ weight), -4, 4)
    return ((y - slope[:, None] * z) ** 2) @ weight / (2 * 0.3**2)


@pytest.fixture(scope="module")
def fitted():
    model = Valley()
    fitter = Fitter(model, TRUTH, OPTIONS)
    seeds = [np.random.SeedSequence([5, k]) for k in range(24)]
    samples = exact_samples(model, TRUTH, LAW, 50, seeds)
    return fitter, samples, fitter.fit(samples, seeds, 50)


def test_fits_are_least_squares_whether_on_a_kink_or_not(fitted):
    fitter, samples, fits = fitted
    points = np.asarray(LAW.nodes()[0])[:, 0]
    center = np.array([float(fitter.unflatten(theta)["center"][0]) for theta in fits.theta])
    on = np.min(np.abs(center[:, None] - points), axis=1) < 1e-7
    assert 4 <= on.sum() <= 20  # of both kinds
    grid = np.sort(np.concatenate([np.linspace(-4, 4, 40_001), points]))
    for r in range(len(center)):
        one = at(samples, r)
        y, weight = np.asarray(one.y).reshape(-1), np.asarray(one.weight).reshape(-1)
        least = least_squares(y, weight, grid).min()
        base = fits.objective[r] - least_squares(y, weight, center[r : r + 1])[0]
        assert least_squares(y, weight, center[r : r + 1])[0] - least < PROMISE
        assert abs(base) < 1e-6  # the same objective, written twice
    assert np.all(fits.certificate == "certified")


def test_only_where_a_slope_jumps(fitted):
    fitter, samples, fits = fitted
    points = np.asarray(LAW.nodes()[0])[:, 0]
    for r, theta in enumerate(fits.theta):
        center = float(fitter.unflatten(theta)["center"][0])
        found = held(fitter.plan, fitter.setting, samples, r, theta, 100)
        if np.min(np.abs(center - points)) < 1e-7:
            assert found.objective == pytest.approx(fits.objective[r], abs=1e-6)
            assert found.promised < PROMISE and found.least > 0
        else:
            assert found is None


def test_a_point_that_is_no_minimum_is_not_held(fitted):
    """Beside a kink with slopes of one sign on both sides, and on smooth ground."""
    fitter, samples, fits = fitted
    away = fits.theta[0] + 0.2
    assert held(fitter.plan, fitter.setting, samples, 0, away, 100) is None


def test_the_smooth_certificate_alone_doubts_them(fitted, monkeypatch):
    fitter, samples, fits = fitted
    monkeypatch.setattr(multistart, "held", lambda *_: None)
    seeds = [np.random.SeedSequence([5, k]) for k in range(24)]
    plain = fitter.fit(samples, seeds, 50)
    assert 4 <= np.sum(plain.certificate != "certified") <= 20
    np.testing.assert_allclose(plain.objective, fits.objective, rtol=0, atol=2 * PROMISE)
