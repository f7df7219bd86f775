"""Quadrature that is graded towards kinks, against integrals by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import study

import moe_sim as ms
from moe_sim.data.covariates import build_law, graded

LAW = ms.Uniform(1, -2.0, 2.0, 5, kinks=(0.3, 0.7))


@pytest.mark.parametrize("shift", [0.0, 1e-8, 1e-5, 1e-3])
def test_integrals_of_shifted_edges(shift):
    """E|x - c| for c near a kink: ((c + 2)^2 + (2 - c)^2) / 8."""
    x, weight = LAW.nodes()
    c = 0.3 + shift
    exact = ((c + 2) ** 2 + (2 - c) ** 2) / 8
    assert weight @ np.abs(x[:, 0] - c) == pytest.approx(exact, abs=1e-3 * shift**1.5 + 1e-14)
    assert weight.sum() == pytest.approx(1, abs=1e-14)
    assert weight @ x[:, 0] ** 8 == pytest.approx(2**8 / 9, rel=1e-13)  # polynomials as before


@pytest.mark.parametrize("t", [1e-2, 1e-4, 1e-6])
def test_a_split_laplace_centre_shows_the_power_three_halves(t):
    """exp(-|x - W - t|) + exp(-|x - W + t|) - 2 cosh(t) exp(-|x - W|) is about 2 (t - |x - W|) in [W - t, W + t], and 0
    elsewhere: of length sqrt(2 / 3) t^(3/2) in L2 of a density of 1/4."""
    x, weight = LAW.nodes()
    z = x[:, 0] - 0.3
    gap = np.exp(-np.abs(z - t)) + np.exp(-np.abs(z + t)) - 2 * np.cosh(t) * np.exp(-np.abs(z))
    assert np.sqrt(weight @ gap**2) / t**1.5 == pytest.approx(np.sqrt(2 / 3), rel=2e-3)


def test_intervals_halve_towards_kinks():
    ends = graded(0.0, 1.0, (0.5,))
    left = 0.5 - ends[ends < 0.5]
    np.testing.assert_allclose(left[:-1] / left[1:], 2.0, rtol=1e-6)
    assert 0.0 in ends and 0.5 in ends and 1.0 in ends and left[-1] < 1e-9
    np.testing.assert_array_equal(graded(0.0, 1.0, ()), [0.0, 1.0])


def test_two_sides():
    x, weight = ms.Uniform(2, -1.0, 1.0, 3, kinks=(0.0,)).nodes()
    assert weight @ (np.abs(x[:, 0]) * np.abs(x[:, 1])) == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize(
    "law, words",
    [
        ({"name": "uniform", "low": -2.0, "high": 2.0, "kinks": [2.0]}, "law.kinks has 2, outside of law.low = -2"),
        ({"name": "uniform", "low": -2.0, "high": 2.0, "kinks": [-3.0, 0.1]}, "law.kinks has -3"),
        ({"name": "grid", "kinks": [0.1]}, "law.kinks"),
        ({"name": "uniform", "kinks": "here"}, "law.kinks"),
        ({"name": "uniform", "kinks": 0.3}, "law.kinks"),
        ({"name": "uniform", "kinks": [[0.3]]}, "law.kinks"),
        ({"name": "uniform", "kinks": [float("nan")]}, "law.kinks"),
    ],
)  # fmt: skip
def test_bad_kinks(law, words):
    with pytest.raises(ms.InputError) as caught:
        study(law=law)
    assert words in str(caught.value)


def test_too_many_sides():
    law = {"name": "uniform", "low": -1.0, "high": 1.0, "kinks": [0.1], "finite": False}
    with pytest.raises(ms.InputError, match="on each of 3 sides are too many"):
        build_law(law, 3)
