"""Controls: what they are, that they share the study's samples, and what a verdict says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_mixture_studies import SOFTMAX
from tiny import RUN, contents, study, write

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.rates.controls import compare_control, objective_gaps
from moe_sim.rates.verdicts import Replicates, judge_claim
from moe_sim.study.controls import control, names
from moe_sim.study.schema import Claim

SIZES = [1e3, 1e4, 1e5, 1e6]


def test_a_study_is_no_control_of_itself():
    assert names(study()) == ["start", "one-step", "truth"]
    assert names(study(fit__start="wide")) == ["start", "one-step", "truth", "data"]
    cut = {"fit__estimator": "steps", "fit__start": "truth"}
    assert names(study(**cut)) == ["start", "truth", "data", "converged"]
    assert names(study(**cut, fit__max_iterations=0)) == ["one-step", "truth", "data", "converged"]


def test_a_control_changes_the_fit_and_nothing_else():
    made = study(fit__estimator="gradient", fit__optimizer="lbfgs", fit__start="wide", fit__spread=0.3)
    for name in names(made):
        other = control(made, name)
        assert other.name == f"tiny.{name}"
        assert {k: v for k, v in other.tables.items() if k not in ("name", "fit")} == {
            k: v for k, v in made.tables.items() if k not in ("name", "fit")
        }
        same = [made.cell_digest(100, "model", "truth", "law"), other.cell_digest(100, "model", "truth", "law")]
        assert same[0] == same[1]
    options = {name: control(made, name).problem.options for name in names(made)}
    assert [options[n].max_iterations for n in ("start", "one-step")] == [0, 1]
    assert all(options[n].estimator == "steps" and options[n].starts == 1 for n in ("start", "one-step"))
    assert options["start"].spread == 0.3 and options["truth"].spread is None
    assert options["truth"].estimator == options["data"].estimator == "gradient"
    cut = study(fit__estimator="steps", fit__max_iterations=3, fit__start="truth")
    whole = control(cut, "converged").problem.options
    assert (whole.estimator, whole.start, whole.max_iterations, whole.solver) == ("least-squares", "truth", 300, {})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Softmax gates, exactly specified, with all controls."""
    made = ms.Study(**SOFTMAX)
    return ms.run_controls(ms.run(made, tmp_path_factory.mktemp("controls") / "run"))


def test_controls_meet_the_same_samples(done):
    """The truth has the same likelihood in all of them."""
    assert set(done.controls) == {"start", "one-step", "truth"}
    for other in done.controls.values():
        assert np.allclose(other.frame["objective_at_truth"], done.frame["objective_at_truth"], rtol=1e-12)


def test_more_steps_come_closer(done):
    """The likelihood rises from the start over one step to the fit, and a start at the truth ends where the fit did.

    Starts are drawn anew for each control, so start and step are compared by their means.
    """
    value = {name: other.frame["objective"].to_numpy() for name, other in done.controls.items()}
    good = done.frame["certificate"] == "certified"
    by_size = [v.reshape(3, 6).mean(axis=1) for v in (value["start"], value["one-step"])]
    assert np.all(by_size[0] > by_size[1])
    assert np.all((value["one-step"] > done.frame["objective"] + 1e-6)[good]) and np.sum(good) >= 12
    assert np.median(np.abs(value["truth"] - done.frame["objective"])) < 1e-4
    frames = done.controls["start"].frame, done.controls["one-step"].frame
    assert [set(f["iterations"]) for f in frames] == [{0}, {1}]
    assert set(frames[0]["certificate"]) <= {"max_iterations", "above_truth", "not_stationary"}


def test_controls_are_kept_and_read(done):
    before = contents(done.folder)
    again = ms.run_controls(ms.load_results(done.folder))
    assert contents(done.folder) == before
    for name, other in done.controls.items():
        assert again.controls[name].frame.equals(other.frame)


def test_verdicts_tell_of_controls(done):
    for v in ms.judge(done):
        assert sorted(c["control"] for c in v.controls) == ["one-step", "start", "truth"]
        gap = {c["control"]: c["gap"] for c in v.controls}
        assert all(len(g) == 3 for g in gap.values()) and min(gap["start"]) > min(gap["one-step"]) > 1.0
        assert not v.warnings


def test_figure(done, tmp_path):
    from moe_sim.plots import checks

    figure = checks.plot_controls(done)
    assert len(figure.axes) == 2 and all(len(a.get_lines()) >= 4 for a in figure.axes)
    with pytest.raises(InputError, match="--controls"):
        checks.plot_controls(ms.Results(done.study, done.frame, {}))


def constructed(exponent: float, shift: float = 0.0):
    """Losses and objectives of a run: mean n^-exponent, objectives ``shift`` above 0."""
    rng = np.random.default_rng(3)
    loss = [n**-exponent * rng.chisquare(3, 100) / 3 for n in SIZES]
    frame = pd.DataFrame({
        "n": np.repeat(SIZES, 100), "replicate": np.tile(np.arange(100), 4), "objective": np.full(400, float(shift)),
        "certificate": "certified",
    })  # fmt: skip
    certificate = [np.full(100, "certified", object)] * 4
    claim = Claim("voronoi", "upper", 0.5, window=(1e3, 1e6))
    return judge_claim("made", claim, "data", Replicates(SIZES, loss, loss, certificate)), frame


@pytest.mark.parametrize("name", ["start", "one-step"])
def test_a_control_that_does_as_well_is_warned_of(name):
    verdict, frame = constructed(0.5)
    found = compare_control(verdict, name, verdict, *alternate(constructed(0.5, 7.5), frame))
    (warning,) = found.warnings
    assert "does as well" in warning and "7.5 log-likelihood units below" in warning
    assert found.controls[0]["gap"] == [7.5] * 4 and found.verdict == verdict.verdict == "supported"
    slow = constructed(0.1, 7.5)
    assert compare_control(verdict, name, verdict, *alternate(slow, frame)).warnings == []
    # Where the study itself is no success, a control that is as near to the truth is warned of all the same.
    assert len(compare_control(slow[0], name, slow[0], *alternate(slow, frame)).warnings) == 1


def alternate(control, frame):
    """Arguments ``other, gaps`` of a comparison."""
    return control[0], objective_gaps(frame, control[1])


@pytest.mark.parametrize("name", ["truth", "data", "converged"])
def test_fits_below_a_converged_control_are_warned_of(name):
    verdict, frame = constructed(0.5)
    _, other = constructed(0.5)
    other.loc[[3, 5, 9], "objective"] -= 0.6
    (warning,) = compare_control(verdict, name, verdict, verdict, objective_gaps(frame, other)).warnings
    assert warning.startswith("3 of 400 fits lie more than half a log-likelihood unit below")
    other.loc[[3, 5], "certificate"] = "degenerate"  # spikes are no better fits
    (warning,) = compare_control(verdict, name, verdict, verdict, objective_gaps(frame, other)).warnings
    assert warning.startswith("1 of 400")
    other.loc[[3, 5, 9], "objective"] += 0.2
    assert compare_control(verdict, name, verdict, verdict, objective_gaps(frame, other)).warnings == []


def test_a_run_that_grew_is_compared_where_both_are(done):
    """Two sizes and four replicates of the control left: compared there, and the lack is told."""
    cut = done.controls["start"].frame
    cut = cut[(cut["n"] > 100) & (cut["replicate"] < 4)]
    short = replace(done, controls={"start": replace(done.controls["start"], frame=cut)})
    for v in ms.judge(short):
        (entry,) = v.controls
        assert entry["sizes"] == [600, 4000] and len(entry["mean"]) == len(entry["gap"]) == 2
        assert entry["mean"] == pytest.approx([cut[cut["n"] == n][f"loss:{v.loss}"].mean() for n in (600, 4000)])
        assert v.warnings == ["the control 'start' lacks n = 100: run again with --controls"]
    empty = replace(done, controls={"start": replace(done.controls["start"], frame=cut[:0])})
    assert all(v.controls[0]["mean"] == [] for v in ms.judge(empty))


def test_an_interrupted_control_does_not_lock_the_folder(tmp_path, monkeypatch):
    """Ctrl-C before its first chunk: the study can be read, and the same command goes on."""
    results = ms.run(study(), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(RUN, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ms.run_controls(results)
    again = ms.load_results(tmp_path / "run")
    assert again.controls == {} and (tmp_path / "run/controls/start/study.toml").exists()
    assert list(ms.run_controls(again).controls) == ["start", "one-step", "truth"]


def test_command_line(tmp_path, monkeypatch, moe_sim):
    monkeypatch.chdir(tmp_path)
    status, _, err = moe_sim("run", write(tmp_path), "--controls")
    assert status == 0 and "tiny.one-step  n = 100  4/4" in err
    assert (tmp_path / "runs/tiny/controls/start/study.toml").exists()
    assert moe_sim("plot", "runs/tiny")[0] == 0
    assert (tmp_path / "runs/tiny/rates-controls.svg").stat().st_size > 10_000
