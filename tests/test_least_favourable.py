"""Truths that move with n: as far from the given truth as n observations cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
import test_two_point as two
import tiny
from scipy.stats import norm

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.fitting.measured import LossFunction
from moe_sim.losses.voronoi import Loss
from moe_sim.theory.least_favourable import eps_at, least_favourable, undetectable
from moe_sim.theory.minimax import total_variation
from moe_sim.theory.modulus import Modulus

SIZES = [10**5, 10**7, 10**9]
ESTIMATES = (("bias[0]", "bias[1]"), ("prefix[0,0]", "prefix[1,0]"))
MOVING = {"sample__truth": "least-favourable", "fit__atoms": 2}


def moved(problem, loss: Loss, sizes=SIZES):
    return least_favourable(problem.model, problem.truth, problem.law, problem.options, loss, sizes)


def of(problem, name: str) -> Loss:
    return next(loss for loss in problem.losses if loss.name == name)


def test_they_lie_where_n_observations_cannot_tell():
    """Function distance noise / sqrt(n), computed anew from the parameters; the loss falls like n^-1/2."""
    problem = tiny.study(fit__atoms=2).problem
    found = moved(problem, of(problem, "voronoi"))
    fitter = ms.Fitter(problem.model, problem.truth, problem.options)
    measure = LossFunction(problem.model, problem.truth, problem.law, problem.losses, problem.options.atoms)
    values = measure(np.stack([fitter.flatten(found[n]) for n in SIZES]))
    np.testing.assert_allclose(values["function"], 0.3 / np.sqrt(SIZES), rtol=2e-2)
    slope = np.polyfit(np.log(SIZES), np.log(values["voronoi"]), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.02)


def test_a_size_does_not_depend_on_the_others():
    problem = tiny.study(fit__atoms=2).problem
    one, other = (moved(problem, of(problem, "voronoi"), sizes) for sizes in ([10**4], [10**3, 10**4, 10**6]))
    for name, value in one[10**4].items():
        np.testing.assert_array_equal(value, other[10**4][name])


def test_where_nothing_tells_them_apart_all_sizes_have_one():
    problem = ms.Study(**two.independent()).problem
    found = moved(problem, of(problem, "voronoi:r=2"))
    assert found[10**5] is found[10**9]
    tables, split = two.independent(), [found[10**5][k] for k in ("bias", "key", "value")]
    assert two.voronoi(tables, *split, 2) == pytest.approx(0.3, rel=1e-6)


def test_a_loss_that_nobody_has_is_refused():
    problem = tiny.study().problem
    with pytest.raises(InputError, match="atoms:multi, put a claim on another loss"):
        moved(problem, of(problem, "atoms:multi"))


def test_undetectable_distances():
    """There the bound of the total variation is one half; the true one, of two normal laws, is below that."""
    regression, mixture = tiny.study().problem.model, ms.load_study("softmax-gaussian-exact").problem.model
    for n in (1e2, 1e6):
        assert total_variation(regression, undetectable(regression, n), n) == pytest.approx(0.5, rel=1e-9)
        assert total_variation(mixture, undetectable(mixture, n), n) == pytest.approx(0.5, rel=1e-6)
    # n normal observations of a constant shifted by the distance: 2 Phi(sqrt(n) distance / (2 noise)) - 1.
    shift = undetectable(regression, 1e4) * 1e2 / regression.noise
    assert 0.3 < 2 * norm.cdf(shift / 2) - 1 < 0.5


def test_eps_is_read_off_the_curve():
    eps = np.array([1e-1, 1e-2, 1e-3])
    alone = Modulus("voronoi", eps[:1], eps[:1], [(1,)], {}, [], [1])
    assert eps_at(alone, 1e-9) == 0.1
    curve = Modulus("voronoi", eps, 2 * eps**2, [(1,)] * 3, {}, [], [1] * 3)
    for target in (0.05, 0.01, 0.003, 1e-3, 1e-5):
        assert eps_at(curve, 2 * target**2) == pytest.approx(target)
    assert eps_at(curve, 1.0) == pytest.approx(0.1)  # not beyond the largest


def test_a_study_of_them_resumes_and_tells_its_truths(tmp_path):
    small = tiny.study(**MOVING, claim=[{"loss": "voronoi", "exponent": 0.5, "window": [1e2, 1e4]}])
    whole = ms.run(small, tmp_path / "whole")
    truths = whole.truths
    assert set(truths) == {"100", "1000", "10000"} and len(truths["100"]["prefix"]) == 2
    part = ms.run(small.replace(sizes=[1e3]), tmp_path / "part")
    part = ms.run(small, tmp_path / "part")
    assert part.frame.equals(whole.frame)
    # Truths of sizes that a later run leaves out are kept: chunks were made with them.
    assert set(ms.run(small.replace(sizes=[1e3]), tmp_path / "part").truths) == set(truths)
    # Losses are distances from the moving truth.
    p = small.problem
    for n, truth in truths.items():
        moved_to = {k: np.asarray(v) for k, v in truth.items()}
        fitter = ms.Fitter(p.model, moved_to, p.options)
        rows = whole.frame[whole.frame["n"] == float(n)]
        bias, prefix = (np.stack([rows[f"estimate:{k}"].to_numpy() for k in names], axis=1) for names in ESTIMATES)
        theta = np.stack([fitter.flatten({"bias": b, "prefix": v[:, None]}) for b, v in zip(bias, prefix, strict=True)])
        again = LossFunction(p.model, moved_to, p.law, [of(p, "voronoi")], p.options.atoms)(theta)
        np.testing.assert_allclose(again["voronoi"], rows["loss:voronoi"], rtol=1e-9)
    # Controls meet the same truths.
    controls = ms.run_controls(whole).controls
    assert controls and all(other.truths == truths for other in controls.values())
