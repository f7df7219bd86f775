"""Studies of every mixture family from their tables to a verdict, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import TABLES as PREFIX
from tiny import contents

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.plots.rates import caption, plot_rates
from moe_sim.rates.judge import judge

CLAIMS = [{"loss": name, "exponent": 0.5, "log_power": 0.5, "window": [1e2, 4e3]} for name in ("voronoi", "function")]
SAMPLE = {"mode": "iid", "sizes": [100, 600, 4000], "replicates": 6, "seed": 1}
FIT = {"atoms": 2, "starts": 3, "budget": 1, "bound": 20.0, "bias_bound": 20.0}
EXPERTS = {"intercept": [1.0, -1.0], "slope": [[2.0], [-1.0]], "variance": [0.2, 0.3]}
SOFTMAX = {
    "name": "softmax", "model": {"family": "softmax-gaussian"},
    "truth": {"gate_bias": [0.3, 0.0], "gate_slope": [[1.0], [0.0]], **EXPERTS},
    "law": {"name": "uniform", "low": -2.0, "high": 2.0}, "fit": FIT, "sample": SAMPLE, "claim": CLAIMS,
}  # fmt: skip
GATED = {
    "name": "gated", "model": {"family": "gaussian-gated"},
    "truth": {"weight": [0.4, 0.6], "center": [[-1.0], [1.0]], "covariance": [[[0.5]], [[0.8]]], **EXPERTS},
    "fit": FIT, "sample": SAMPLE, "claim": CLAIMS,
}  # fmt: skip
MIXTURE = PREFIX | {
    "name": "mixture", "model": PREFIX["model"] | {"family": "prefix-mixture"}, "fit": FIT | {"atoms": 1},
    "sample": SAMPLE, "claim": CLAIMS, "law": {"name": "uniform", "low": -2.0, "high": 2.0},
}  # fmt: skip
STUDIES = {"softmax": SOFTMAX, "gated": GATED, "mixture": MIXTURE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=STUDIES)
def done(request, folder):
    return ms.run(ms.Study(**STUDIES[request.param]), folder / request.param)


def test_every_fit_is_certified_and_no_worse_than_the_truth(done):
    frame = done.frame
    assert len(frame) == 18 and (frame["certificate"] == "certified").mean() > 0.8
    good = frame[frame["certificate"] == "certified"]
    assert np.all(good["objective"] <= good["objective_at_truth"] + 1e-6)
    assert np.all(frame["agreeing"] <= frame["starts"]) and np.all(frame["passes"] > 1)


def test_the_likelihood_ratio_is_chi_square(done):
    """2 (l(hat) - l(truth)) over degrees of freedom, exact specification, n >= 600: 12 values with mean about 1.

    Sum of 12 chi-squares of P degrees; false-alarm rate 1e-4 on each side.
    """
    from scipy import stats

    frame = done.frame[done.frame["n"] >= 600]
    free = len([c for c in frame if c.startswith("estimate:")])
    free -= {"softmax": 2, "gated": 1, "mixture": 0}[done.study.name]  # last gate pinned, weights that add up to 1
    ratio = 2 * (frame["objective_at_truth"] - frame["objective"])
    assert 1e-4 < stats.chi2(free * len(frame)).cdf(ratio.sum()) < 1 - 1e-4


def test_the_function_converges_at_its_rate(done):
    """Six replicates a size, so the slope is only known to 0.1 or so; the verdict must not be a refutation."""
    voronoi, function = judge(done)
    assert function.slope == pytest.approx(-0.5, abs=0.2) and function.verdict != "refuted"
    assert voronoi.start == "data" and json.loads(json.dumps(voronoi.to_json()))["saturated"] >= 0
    assert "mle" in caption(done)
    assert plot_rates(done, judge(done)).axes


def test_a_finished_run_is_read_not_run(done):
    before = contents(done.folder)
    again = ms.run(done.study, done.folder)
    assert again.frame.equals(done.frame) and contents(done.folder) == before


def test_replicates_do_not_depend_on_what_else_is_run(done):
    alone = ms.run(done.study.replace(sizes=[600], replicates=2))
    expected = done.frame[(done.frame["n"] == 600) & (done.frame["replicate"] < 2)]
    for column in ("objective", "objective_at_truth", "loss:function", "certificate", "starts"):
        assert alone.frame[column].tolist() == expected[column].tolist(), column


def changed(study, **changes):
    found = json.loads(json.dumps(study))
    for path, value in changes.items():
        *above, last = path.split("__")
        table = found
        for part in above:
            table = table.setdefault(part, {})
        if value is None:
            del table[last]
        else:
            table[last] = value
    return found


BAD = [
    (changed(SOFTMAX, law=None), ("no law", "[law]")),
    (changed(GATED, law__name="uniform"), ("joint density", "leave [law] out")),
    (changed(SOFTMAX, truth__variance=[0.2, 0.0]), ("truth.variance", "positive")),
    (changed(SOFTMAX, truth__variance=None), ("truth.variance is missing",)),
    (changed(SOFTMAX, truth__gate_slope=None), ("truth.gate_slope is missing",)),
    (changed(SOFTMAX, truth__slope=[[2.0, 1.0], [-1.0, 0.0]]), ("truth.slope", "shape")),
    (changed(SOFTMAX, truth__gate_slope=[[], []]), ("truth.gate_slope",)),
    (changed(SOFTMAX, truth__intercept=[100.0, 0.0]), ("truth.intercept has 100", "fit.bound")),
    (changed(SOFTMAX, truth__gate_bias=[30.0, 0.0]), ("truth.gate_bias has 30", "fit.bias_bound")),
    (changed(SOFTMAX, model__variance_range=[0.25, 1.0]), ("model.variance_range", "widen")),
    (changed(SOFTMAX, model__variance_range=[0.0, 1.0]), ("model.variance_range[0]",)),
    (changed(SOFTMAX, model__covariance_range=[0.1, 1.0]), ("model.covariance_range is not a known key",)),
    (changed(SOFTMAX, fit__atoms=1), ("fit.atoms = 1 is fewer",)),
    (changed(SOFTMAX, fit__estimator="least-squares"), ("fit.estimator = 'least-squares'", "pass mle or em")),
    (changed(SOFTMAX, sample__mode="exact"), ("sample.mode = 'exact'", "iid")),
    (changed(SOFTMAX, law__name="linspace", law__finite=True), ("law.finite is not a known key",)),
    (changed(PREFIX, law={"name": "linspace"}), ("law.name = 'linspace' is not", "law.name = 'grid'")),
    (changed(GATED, truth__weight=[0.4, 0.5]), ("truth.weight", "add up to 1")),
    (changed(GATED, truth__covariance=[[[0.5]], [[-0.8]]]), ("truth.covariance", "positive definite")),
    (changed(GATED, truth__covariance=None), ("truth.covariance is missing",)),
    (changed(GATED, model__covariance_range=[0.6, 1.0]), ("model.covariance_range", "widen")),
    (
        changed(
            SOFTMAX,
            law={"name": "linspace"},
            truth__gate_slope=[[1.0, 0.0], [0.0, 0.0]],
            truth__slope=[[2.0, 0.0], [-1.0, 0.0]],
        ),
        ("law.name = 'linspace' is for one covariate", "pass uniform"),
    ),
    (changed(SOFTMAX, fit__spread=0.1), ("fit.spread is noise about the truth", "leave it out")),
    (changed(SOFTMAX, fit__spread_exponent=0.1), ("fit.spread_exponent is noise", "leave it out")),
    (changed(SOFTMAX, fit__start="truth", fit__spread={"slop": 1.0}), ("fit.spread.slop", "did you mean slope?")),
    (changed(SOFTMAX, fit__start="truth", fit__spread={"slope": -1.0}), ("fit.spread.slope",)),
    (changed(PREFIX, fit__estimator="steps", fit__tolerance=0.1), ("fit.tolerance = 0.1 with 'steps'", "leave it out")),
    (changed(PREFIX, claim=[{"loss": "voronoi:untranslated", "exponent": 0.5}]), ("no translation", "pass voronoi")),
    (changed(GATED, truth__weight=[1e-12, 1 - 1e-12]), ("truth: its log_ratio has -27.6", "fit.bias_bound")),
]


@pytest.mark.parametrize("study, words", BAD, ids=[w[0][:40] for _, w in BAD])
def test_a_bad_study_is_refused_with_the_remedy(study, words):
    with pytest.raises(InputError) as caught:
        ms.Study(**study)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if words[0].startswith("law.name = 'linspace'"):
        assert "law.finite" not in str(caught.value)  # which a design does not have
