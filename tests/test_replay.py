"""One replicate again: bit for bit what the run kept, with every start accounted for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import study

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.simulation.replay import replay
from moe_sim.solvers.solution import Status

OVER = {"fit__atoms": 2, "fit__starts": 6}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    ms.run(study(**OVER), path)
    return path


@pytest.mark.parametrize("n, replicate", [(100, 0), (1000, 3), (10000, 2)])
def test_the_same_replicate(whole, n, replicate):
    results = ms.load_results(whole)
    found = replay(results, float(n), replicate)
    kept = results.frame[(results.frame["n"] == n) & (results.frame["replicate"] == replicate)].iloc[0]
    assert found.differs == []
    pd.testing.assert_series_equal(found.row, kept, check_exact=True, check_names=False, check_dtype=False)
    assert found.starts["starts"].sum() == kept["starts"]
    assert found.starts["objective"].min() == pytest.approx(kept["objective"], abs=1e-6)
    assert found.starts["above"].is_monotonic_increasing
    agreeing = found.starts["starts"][(found.starts["above"] <= 0.5) & ~found.starts["degenerate"]].sum()
    assert agreeing == kept["agreeing"]
    assert set(found.starts["status"]) <= {str(s) for s in Status}


def test_along_moving_truths(tmp_path):
    claim = [{"loss": "voronoi", "exponent": 0.5, "window": [1e2, 1e4]}]
    ms.run(study(fit__atoms=2, sample__truth="least-favourable", claim=claim), tmp_path / "run")
    assert replay(ms.load_results(tmp_path / "run"), 1e3, 1).differs == []


def test_a_row_that_is_another_is_told(whole, tmp_path):
    results = ms.load_results(whole)
    results.frame.loc[results.frame["replicate"] == 1, "loss:voronoi"] += 1e-15 + np.spacing(1.0)
    assert replay(results, 1e2, 1).differs == ["loss:voronoi"]


def test_a_replicate_that_is_not_there_yet(whole, tmp_path):
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    next(place.glob("chunks/n*0000001000-*")).unlink()
    with pytest.raises(InputError, match="replicate 1 of size 1000 has not been computed yet: run the study"):
        replay(ms.load_results(place), 1e3, 1)


def test_on_the_command_line(whole, tmp_path, monkeypatch, moe_sim):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, Path("run"))
    status, out, err = moe_sim("replay", "run", "--size", "1e3", "--replicate", "2")
    assert (status, err) == (0, "") and "the same as in the run, bit for bit" in out
    assert "certified: stationary, not above the objective at the truth" in " ".join(out.split())
    status, out, err = moe_sim("replay", "run", "--size", "1e3", "--replicate", "2", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "") and set(found) == {"row", "differs", "certificate", "starts"}
    assert sum(start["starts"] for start in found["starts"]) == found["row"]["starts"]


@pytest.mark.parametrize("size, replicate, quoted", [
    ("5e2", "0", "--size = 500 is no size of this run: pass one of 100, 1000, 10000"),
    ("1e2", "4", "--replicate = 4 is out of range: pass a whole number"),
    ("1e2", "0.5", "--replicate = 0.5 is not a whole number"),
    ("many", "0", "--size has 'many', which is not a number"),
])  # fmt: skip
def test_bad_input(whole, moe_sim, size, replicate, quoted):
    status, out, err = moe_sim("replay", whole, "--size", size, "--replicate", replicate)
    assert (status, out) == (2, "") and quoted in " ".join(err.split())
