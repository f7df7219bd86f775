"""What a run tells while it goes: counts, slopes so far, time left; a table on a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tiny import study

import moe_sim as ms
from moe_sim.cli import console
from moe_sim.simulation.progress import Progress, Tally


@pytest.fixture(scope="module")
def reports():
    found: list[Progress] = []
    return ms.run(study(), None, found.append), found


def test_slopes_are_those_of_the_verdicts(reports):
    results, found = reports
    for v in ms.judge(results):
        slope = found[-1].slopes[v.loss]
        np.testing.assert_allclose([slope.slope, *slope.interval], [v.slope, *v.interval], rtol=1e-12)
    assert set(found[0].slopes.values()) == {None}  # one size has no slope
    assert [[s.done for s in p.sizes] for p in found] == [[4, 0, 0], [4, 4, 0], [4, 4, 4]]


def test_a_run_that_goes_on_counts_what_was_there(reports):
    results, found = reports
    tally = Tally(study(), results.frame[results.frame["n"] < 10_000])
    last = tally.add(10_000, results.frame[results.frame["n"] == 10_000])
    assert (last.sizes, last.slopes) == (found[-1].sizes, found[-1].slopes)
    # Replicates and sizes that the study does not ask for do not count.
    fewer = Tally(study(sample__replicates=2, sample__sizes=[1e2, 1e3]), results.frame)
    assert [len(np.concatenate(g)) for g in fewer._good.values()] == [2, 2]


@pytest.mark.parametrize("mode, seconds", [("exact", 4 * 2 + 4 * 2), ("iid", 4 * 20 + 4 * 200)])
def test_time_left(reports, monkeypatch, mode, seconds):
    """Two seconds a replicate at n = 100: as long at larger n with sufficient statistics, in proportion with rows."""
    clock = iter([0.0, 8.0])
    monkeypatch.setattr("moe_sim.simulation.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    rows = reports[0].frame
    assert Tally(study(sample__mode=mode), None).add(100, rows[rows["n"] == 100]).seconds_left == seconds


def test_table_on_a_terminal(reports, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err_console", Console(file=screen, force_terminal=True, width=100))
    with console.reporting() as report:
        for p in reports[1]:
            report(p)
    text = screen.getvalue()
    assert "0/4" in text and "4/4" in text and "function: slope -0." in text and "about 0 s left" in text
    assert "tiny  n = 1e+04  4/4 replicates, 100.0% certified" in text


@pytest.mark.parametrize("seconds, text", [(0.0, "0 s"), (89.4, "89 s"), (720.0, "12 min"), (12000.0, "3 h 20 min")])
def test_durations(seconds, text):
    assert console.duration(seconds) == text
