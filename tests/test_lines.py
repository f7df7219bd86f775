"""What lines leave of data, and the floor of variances that is a part of it."""

from __future__ import annotations

import numpy as np
import pytest

import moe_sim as ms
from moe_sim.fitting.estimate import NARROWEST
from moe_sim.fitting.lines import left_by_lines


def two_lines(rows=200, noise=0.5, slope=1000.0):
    """y = -+ slope x + noise, which of the two drawn by a softmax gate."""
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 10, rows)
    upper = rng.random(rows) < 1 / (1 + np.exp(-(x - 5)))
    y = np.where(upper, slope, -slope) * x + noise * rng.normal(size=rows)
    return x, y, upper


def test_one_line_is_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2)), rng.normal(size=(50, 1))
    design = np.column_stack([np.ones(50), x])
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert left_by_lines(x, y, 1) == pytest.approx(np.mean(residual**2), rel=1e-12)


def test_two_lines_leave_the_noise():
    x, y, _ = two_lines()
    left = left_by_lines((x / x.std())[:, None], (y / y.std())[:, None], 2) * y.var()
    assert 0.8 * 0.5**2 < left < 1.2 * 0.5**2


def test_lines_without_noise_leave_rounding():
    x = np.linspace(-1, 1, 40)
    assert left_by_lines(x[:, None], np.where(np.arange(40) % 2, 2 * x, 1 - x)[:, None], 2) == 1e-16


def test_experts_that_explain_nearly_all_are_estimated():
    """R^2 = 1 - 1e-8 within each expert: where experts do not overlap the maximum is that of two regressions and a
    logistic one, in closed form but for the gate."""
    x, y, upper = two_lines()
    found = ms.fit("softmax-gaussian", x, y, 2)
    assert found.certificate == "certified" and not found.bounds
    assert found.model.variance_range[0] == pytest.approx(NARROWEST * 0.25 / y.var(), rel=0.2)
    for k in range(2):
        mine = upper == (found.params["slope"][k, 0] > 0)
        design = np.column_stack([np.ones(mine.sum()), x[mine]])
        line, square = np.linalg.lstsq(design, y[mine], rcond=None)[:2]
        assert found.params["intercept"][k] == pytest.approx(line[0], abs=1e-3)
        assert found.params["slope"][k, 0] == pytest.approx(line[1], abs=1e-4)
        assert found.params["variance"][k] == pytest.approx(square[0] / mine.sum(), rel=1e-2)
