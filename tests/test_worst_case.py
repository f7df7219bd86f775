"""Rates on a grid of truths: the worst of them at each size, against made-up losses and against single runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tiny

import moe_sim as ms
from moe_sim.simulation.worst_case import WorstCase

GRID = {"t": [0.4, 1.0], "prefix": "prefix0 * t"}
SIZES = 10.0 ** np.arange(3, 9)


def made(study: ms.Study, mean) -> ms.Results:
    """200 replicates a size, gamma losses with this mean: rows as of a run."""
    rng = np.random.default_rng(0)
    n = np.repeat(SIZES, 200)
    values = mean(n) * rng.gamma(4.0, 0.25, len(n))
    losses = {f"{of}:{loss.name}": values for of in ("loss", "near") for loss in study.problem.losses}
    frame = pd.DataFrame({"n": n.astype(int), "replicate": np.tile(np.arange(200), len(SIZES)), **losses})
    return ms.Results(study, frame.assign(certificate="certified", status="converged"), {})


@pytest.fixture(scope="module")
def study():
    return tiny.study(
        truth__grid=GRID, sample__sizes=SIZES.tolist(), sample__replicates=200,
        claim=[{"loss": "voronoi", "exponent": 0.5}],
    )  # fmt: skip


def test_the_worst_truth_is_judged_at_each_size(study):
    """n^-1/2 holds at both truths; the worst of the first and of one whose rate is n^-1/4 is judged n^-1/4."""
    fast, slow = (lambda n: 20 * n**-0.5), (lambda n: n**-0.25)  # they cross at n = 1.6e5
    found = WorstCase(
        study, {t: made(at, mean) for (t, at), mean in zip(study.at_truths().items(), (fast, slow), strict=True)}
    )
    assert found.worst("voronoi").tolist() == [0.4, 0.4, 0.4, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(found.means("voronoi")[1.0], SIZES**-0.25, rtol=0.1)
    (verdict,) = found.verdicts()
    assert verdict.verdict == "refuted"
    np.testing.assert_allclose(verdict.mean, found.means("voronoi").max(axis=1), rtol=1e-12)
    assert verdict.reason.startswith("the worst truths are t = 0.4 at n = 1000, t = 0.4 at n = 10000")
    both = WorstCase(study, {t: made(at, fast) for t, at in study.at_truths().items()})
    (verdict,) = both.verdicts()
    assert verdict.verdict == "supported" and abs(verdict.slope + 0.5) < 0.02
    alone = WorstCase(study, {0.4: both.results[0.4], 1.0: made(study.at_truths()[1.0], lambda n: 5 * n**-0.5)})
    assert alone.verdicts()[0].reason.startswith("the worst truth is t = 0.4 at all sizes: ")


def test_the_worst_is_worst_as_it_is_judged():
    """Distances of atoms are judged by their root mean square, which a few far ones make; a mean hides them."""
    study = tiny.study(
        truth__grid=GRID, sample__sizes=SIZES.tolist(), claim=[{"loss": "atoms:single", "exponent": 0.5}]
    )
    even, few = (made(at, lambda n: n**0.0) for at in study.at_truths().values())
    for column in ("loss:atoms:single", "near:atoms:single"):
        even.frame[column], few.frame[column] = 1.0, np.where(few.frame["replicate"] < 10, 15.0, 0.0)
    found = WorstCase(study, {0.4: even, 1.0: few})
    np.testing.assert_allclose(found.means("atoms:single")[1.0], np.sqrt(10 * 15**2 / 200))
    assert set(found.worst("atoms:single")) == {1.0}


def test_where_most_fits_fail_nothing_is_read_off(study):
    fast, slow = (made(at, lambda n: 20 * n**-0.5) for at in study.at_truths().values())
    slow.frame["loss:voronoi"] /= 2  # never the worst, as far as is known
    slow.frame.loc[(slow.frame["n"] == 1e5) & (slow.frame["replicate"] < 110), "certificate"] = "lone_start"
    (verdict,) = WorstCase(study, {0.4: fast, 1.0: slow}).verdicts()
    assert verdict.verdict == "undecided" and verdict.claim == "tiny"
    assert verdict.reason == "45% of the fits of t = 1, n = 100000 are certified: what is worst is not known"


def test_near_minimisers_are_those_of_their_own_worst_truth(study):
    fast, other = (made(at, lambda n: 20 * n**-0.5) for at in study.at_truths().values())
    other.frame["loss:voronoi"] /= 2
    other.frame["near:voronoi"] = 2.0  # fits as good as the best do not come nearer
    (verdict,) = WorstCase(study, {0.4: fast, 1.0: other}).verdicts()
    assert verdict.near_minimiser["mean"] == [2.0] * len(SIZES) and verdict.verdict != "supported"


def test_what_is_not_known_at_one_truth_says_at_which(study):
    fast, other = (made(at, lambda n: 20 * n**-0.5) for at in study.at_truths().values())
    blank = {"moved": 1.0, "distance": 0.0, "seen_from": None, "atoms": None, "apart": None}
    fast.unseen["voronoi"] = [
        blank | {"direction": "a - b", "measure": None},
        blank | {"direction": "", "measure": {"a": 1.0}},
    ]
    other.frame["loss:voronoi"] /= 2
    (verdict,) = WorstCase(study, {0.4: fast, 1.0: other}).verdicts()
    assert "at all sizes, not known at t = 0.4: not identified along a - b: a measure" in verdict.reason


def test_truths_have_names_of_their_own():
    close = tiny.study(truth__grid={"t": [1.0, 1.0000001, 1e-22], "prefix": "prefix0 * (1 + t)"}).at_truths()
    names = [at.name for at in close.values()]
    assert names == ["tiny-t1.0", "tiny-t1.0000001", "tiny-t1e-22"]
    big = tiny.study(truth__grid={"t": [1e22, 1e23], "prefix": "prefix0 + t / 1e24"}).at_truths()
    assert [at.name for at in big.values()] == ["tiny-t1e22", "tiny-t1e23"]


def test_truths_of_a_grid_are_studies_of_their_own(tmp_path, moe_sim):
    whole = tiny.study(truth__grid=GRID)
    file = tiny.write(tmp_path, truth__grid=GRID)
    status, out, err = moe_sim("worst-case", file, "--out", tmp_path / "run", "--json")
    told = json.loads(out)
    assert status == 0 and told["digest"] == whole.digest and set(told["worst"]) == {"function", "voronoi"}
    found = ms.worst_case(whole, tmp_path / "run")
    before = tiny.contents(tmp_path / "run")
    for t, results in found.results.items():
        alone = ms.run(tiny.study(truth__prefix=[[t]]))
        pd.testing.assert_frame_equal(results.frame, alone.frame)
        assert results.study.problem.truth["prefix"].tolist() == [[t]]
    status, out, err = moe_sim("worst-case", file, "--out", tmp_path / "run")
    assert status == 0 and "t = 0.4" in out and "grid" not in err
    assert tiny.contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"truth__grid": 3}, "truth.grid = 3"),
        ({"truth__grid": {"prefix": "prefix0 * t"}}, "truth.grid.t"),
        ({"truth__grid": {"t": [1.0], "prefix": "prefix0 * t"}}, "pass two values or more, none of them twice"),
        ({"truth__grid": {"t": [1.0, 1.0], "prefix": "prefix0 * t"}}, "pass two values or more, none of them twice"),
        ({"truth__grid": {"t": [1.0, 2.0]}}, r'truth.grid has no formula: add one, as in bias = "bias0 \* t"'),
        ({"truth__grid": {"t": [1.0, 2.0], "key": "t"}}, "truth.grid.key: truth has no key"),
        ({"truth__grid": {"t": [1.0, 2.0], "prefix": "prefix0 * n"}}, "truth.grid.prefix: n is not known, pass .*, t"),
        ({"truth__grid": {"t": [0.0, 2.0], "prefix": "prefix0 / t"}}, "truth.grid.prefix is not finite at t = 0.0"),
        ({"truth__grid": {"t": [1.0, 99.0], "prefix": "prefix0 * t"}}, "truth.grid at t = 99.0: truth.prefix has 99"),
        ({"truth__grid": GRID, "truth__path": {"prefix": "prefix0"}}, r"\[truth.grid\] has many truths"),
        ({"truth__grid": GRID, "sample__truth": "least-favourable"}, r"\[truth.grid\] has many truths"),
    ],
)
def test_bad_grids_are_refused(changes, message):
    with pytest.raises(ms.InputError, match=message):
        tiny.study(**changes)


def test_what_needs_one_truth_is_refused():
    with pytest.raises(ms.InputError, match="pass the study to moe-sim worst-case"):
        ms.run(tiny.study(truth__grid=GRID))
    with pytest.raises(ms.InputError, match=r"the study has no \[truth.grid\]"):
        ms.worst_case(tiny.study())
    with pytest.raises(ms.InputError, match="a lower one is shown by measures near one truth"):
        ms.worst_case(tiny.study(truth__grid=GRID, claim=[{"loss": "voronoi", "kind": "lower"}]))
