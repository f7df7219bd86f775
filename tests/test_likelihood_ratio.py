"""Likelihood-ratio gaps against chi-square."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from test_mixture_studies import GATED, MIXTURE, SOFTMAX
from tiny import study, write

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.plots.checks import plot_ratio
from moe_sim.simulation.likelihood_ratio import likelihood_ratio

pytestmark = pytest.mark.computes


@pytest.mark.parametrize("tables, degrees", [(SOFTMAX, 8), (GATED, 11), (MIXTURE, 2)])
def test_degrees_are_the_parameters_that_data_can_tell(tables, degrees):
    """Softmax gates: 2 of one gate and 6 of experts; Gaussian gates: 1 weight, 4 of x, 6 of experts; one prefix: 2."""
    made = ms.Study(**tables)
    nothing = pd.DataFrame({"n": [], "objective": [], "objective_at_truth": []})
    assert likelihood_ratio(ms.Results(made, nothing, {})).degrees == degrees


@pytest.mark.parametrize(
    "name, n, replicates", [("softmax-gaussian-exact", 1e12, 200), ("prefix-shared-linear-exact", 1e5, 500)]
)
def test_gaps_of_exact_fits_are_chi_square(name, n, replicates):
    """Kolmogorov-Smirnov, level 0.001: each is a false alarm in one seed of 1,000.

    Of 1e12 observations the gaps are differences in the 12th digit of a log-likelihood.
    """
    study = ms.load_study(name)
    law = study.tables["law"] | {"finite": True, "points": 16} if name.startswith("softmax") else study.tables["law"]
    study = study.with_tables(study.tables | {"law": law, "sample": study.tables["sample"] | {"mode": "exact"}})
    found = likelihood_ratio(ms.run(study.replace(sizes=[n], replicates=replicates))).table
    assert found["replicates"].tolist() == [replicates] and found["p"].iloc[0] > 0.001


def test_fits_that_stop_short_are_noticed():
    """One step from a start at the truth falls below the law, and the test says so."""
    short = study(fit__estimator="gradient", fit__max_iterations=1, fit__start="truth", fit__budget=1,
                  sample__sizes=[1e4, 1e5], sample__replicates=200)  # fmt: skip
    assert likelihood_ratio(ms.run(short)).table["p"].max() < 1e-10


def test_what_has_no_law_is_refused():
    over = ms.Study(**SOFTMAX | {"fit": SOFTMAX["fit"] | {"atoms": 3}, "sample": SOFTMAX["sample"] | {"replicates": 2}})
    with pytest.raises(InputError, match=r"fit\.atoms = 3 for 2 true atoms"):
        likelihood_ratio(ms.Results(over, None, {}))
    with pytest.raises(InputError, match=r"fit\.estimator = 'steps'"):
        likelihood_ratio(ms.Results(study(fit__estimator="steps"), None, {}))


def test_command_line(tmp_path, monkeypatch, moe_sim):
    monkeypatch.chdir(tmp_path)
    assert moe_sim("run", write(tmp_path))[0] == 0
    status, out, _ = moe_sim("ratio", "runs/tiny", "--json", "--out", "ratio.svg")
    rows = json.loads(out)["likelihood_ratio"]
    assert status == 0 and [row["n"] for row in rows] == [100, 1000, 10000] and (tmp_path / "ratio.svg").exists()
    assert all(row["degrees"] == 2 and row["replicates"] == 4 and 0 <= row["p"] <= 1 for row in rows)
    assert "KS distance" in moe_sim("ratio", "runs/tiny")[1]
    status, _, err = moe_sim("ratio", "runs/tiny", "--out", "ratio.doc")
    assert status == 2 and ".svg" in err


def test_what_is_not_finite_is_counted_and_left_out():
    results = ms.run(study())
    results.frame.loc[[0, 5], "objective"] = [np.nan, np.inf]
    found = likelihood_ratio(results)
    assert found.table["not_finite"].tolist() == [1, 1, 0] and np.isfinite(found.table["p"]).all()


def test_the_figure_has_a_line_a_size():
    found = likelihood_ratio(ms.run(study()))
    lines = plot_ratio(found).axes[0].get_lines()
    assert len(lines) == 4 and np.all(np.diff(lines[0].get_ydata()) >= 0)
