"""Adaptive replicates: until the interval is narrow enough or a budget ends; interrupted or not, the same."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from test_run import same
from tiny import study, write

import moe_sim as ms
from moe_sim.rates.slopes import fit_slope, summarise
from moe_sim.simulation import adaptive


def widest(results: ms.Results) -> float:
    return max(v.interval[1] - v.interval[0] for v in ms.judge(results))


def test_it_goes_on_until_the_interval_is_narrow(tmp_path):
    first = widest(ms.run(study(), tmp_path / "first"))
    width = first / 6
    steps = []
    found = ms.run_until(study(), tmp_path / "out", width, progress=lambda p: steps.append(p.total))
    assert widest(found) <= width
    count = found.study.problem.replicates
    assert count > 4 and steps[0] == 4 and len(set(steps)) > 1
    assert max(b / a for a, b in pairwise(steps) if a >= 100) <= 4
    same(found.frame, ms.run(study(sample__replicates=count), tmp_path / "at-once").frame)
    same(found.frame, ms.load_results(tmp_path / "out").frame)
    # Again, from the study as it was: it takes the same steps without computing anything.
    again = ms.run_until(study(), tmp_path / "out", width, progress=lambda p: pytest.fail("computed anew"))
    same(again.frame, found.frame)


def test_a_budget_of_replicates_ends_it(tmp_path):
    found = ms.run_until(study(), tmp_path / "out", 1e-6, replicates=7)
    assert found.study.problem.replicates == 7 and len(found.frame) == 21


def test_a_budget_of_time_ends_it_at_a_number_that_all_sizes_have(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 0.0, 0.0, 0.0, 2.0])  # begun, three chunks, after the first number, the next number's first
    monkeypatch.setattr(adaptive, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = ms.run_until(study(), tmp_path / "out", 1e-6, replicates=8, seconds=1.0)
    assert found.study.problem.replicates == 4 and len(found.frame) == 12
    monkeypatch.undo()
    # What had been computed beyond is kept: only two sizes are left to do.
    sizes = []
    ms.run_until(study(), tmp_path / "out", 1e-6, replicates=8, progress=lambda p: sizes.append(p.n))
    assert sizes == [1000, 10000]


@pytest.mark.parametrize(
    "text, found", [("5000", (5000, float("inf"))), ("1e4", (10_000, float("inf"))), ("90s", (10**7, 90.0)),
                    ("30min", (10**7, 1800.0)), ("2h", (10**7, 7200.0))],
)  # fmt: skip
def test_budgets(text, found):
    assert adaptive.parse_budget(text) == found


@pytest.mark.parametrize("width, changes, words", [
    (0.0, {}, "width = 0: pass the width of a slope interval"),
    (0.1, {"claim": [{"loss": "voronoi", "kind": "lower"}]}, "width needs a claim with a slope"),
])  # fmt: skip
def test_bad_widths(tmp_path, width, changes, words):
    with pytest.raises(ms.InputError, match=words):
        ms.run_until(study(**changes), tmp_path / "out", width)
    assert not (tmp_path / "out").exists()


def test_on_the_command_line(tmp_path, moe_sim):
    path, out = write(tmp_path), tmp_path / "out"
    for option, words in (
        (("--budget", "9"), "--budget 9 is the end of --width"),
        (("--width", "1e-6", "--budget", "soon"), "--budget soon: pass replicates a size"),
    ):
        status, _, err = moe_sim("run", path, "--out", out, *option)
        assert status == 2 and words in err and not out.exists()
    status, text, _ = moe_sim("run", path, "--out", out, "--width", "1e-6", "--budget", "6")
    assert status == 0 and " of 18" in text


def test_intervals_keep_their_coverage_where_their_width_says_when_to_stop():
    """2,000 synthetic studies with slope -0.5 and gamma losses (coefficient of variation 1), begun with 20 replicates.

    Coverage is 0.95 up to the error of means of few replicates; a Monte Carlo error is 0.0049, so with three of them
    and 0.01 for small numbers of replicates the test fails by chance less than once in 1,000 times.
    """
    rng = np.random.default_rng(0)
    sizes, width, most = np.logspace(3, 8, 6), 0.02, 3200
    covered, counts = [], []
    for _ in range(2000):
        losses = rng.exponential(size=(most, 6)) * sizes**-0.5
        count = 20
        while True:
            summary = [summarise(column, "mean") for column in losses[:count].T]
            slope = fit_slope(sizes, *np.array(summary).T)
            wider = (slope.high - slope.low) / width
            if wider <= 1 or count >= most:
                break
            count = min(most, adaptive._next(count, wider))
        covered.append(slope.low <= -0.5 <= slope.high)
        counts.append(count)
    assert 200 < np.median(counts) < most
    assert abs(np.mean(covered) - 0.95) < 3 * 0.0049 + 0.01
