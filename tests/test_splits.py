"""Splits of an atom as starts: without a length they are the fit they come from, and they find what box points miss."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.fitting import multistart
from moe_sim.fitting import splits as module
from moe_sim.fitting.splits import COUNT, splits, without_first
from moe_sim.simulation import runner

CLAIMS = [
    "ls-softmax-tanh", "ls-laplace-tanh", "ls-cosine-tanh", "prefix-shared-network-over", "prefix-independent-over",
]  # fmt: skip


def begun(name: str, count: int, size: float, **options):
    """Fitter, samples and seeds of the first replicates of a claim's study, with other options and samples."""
    tables = {key: value for key, value in ms.load_study(name).tables.items() if key != "claim"}
    sample = tables["sample"] | {"sizes": [1e6, size], "seed": 1}
    study = ms.Study(**tables | {"fit": tables["fit"] | options, "sample": sample})
    machine = runner._machine(study.problem, study.problem.truth)
    index, n = np.arange(count), int(size)
    seeds = runner._seeds(study, n, index, "model", "truth", "law", "fit")
    return machine.fitter, runner._samples(study, machine, n, index), seeds


@pytest.mark.parametrize("name", CLAIMS)
def test_splits_of_no_length_have_the_function_of_the_fit(monkeypatch, name):
    study = ms.load_study(name)
    fit = multistart.Fitter(study.problem.model, study.problem.truth, study.problem.options)
    monkeypatch.setattr(module, "_LENGTHS", (-300.0, -299.0))
    monkeypatch.setattr(module, "_UNEVEN", 0.0)
    starts = splits(fit.model, fit.truth, np.random.SeedSequence(0), fit.lower, fit.upper)
    points, _ = study.problem.law.nodes()
    mean = jax.jit(lambda theta: jax.vmap(lambda x: fit.model.mean(fit.unflatten(theta), x))(points))
    whole = np.asarray(jax.vmap(lambda x: fit.model.mean(fit.truth, x))(points))
    assert starts.shape == (COUNT, len(fit.lower))
    for theta in starts:
        np.testing.assert_allclose(mean(theta), whole, rtol=0, atol=1e-12)


def test_splits_lie_in_the_box_and_part_two_atoms():
    study = ms.load_study("ls-softmax-tanh")
    fit = multistart.Fitter(study.problem.model, study.problem.truth, study.problem.options)
    one, same, other = (
        splits(fit.model, fit.truth, np.random.SeedSequence(s), fit.lower, fit.upper) for s in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.all(one >= fit.lower) and np.all(one <= fit.upper)
    truth = np.asarray(fit.truth["slope"]).ravel()
    parents = set()
    for theta in one:
        first, *rest = np.asarray(fit.unflatten(theta)["slope"]).ravel()
        moved = np.flatnonzero(~np.isclose(rest, truth, rtol=0, atol=1e-12))
        assert len(moved) == 1  # the others stay where they are
        parents.add(int(moved[0]))
        # Opposite directions, but for the box.
        inside = np.abs([first, rest[moved[0]]]) < 6
        if inside.all():
            assert first - truth[moved[0]] == pytest.approx(truth[moved[0]] - rest[moved[0]], rel=1e-9)
    assert parents == {0, 1}


def test_a_fit_without_its_first_atom():
    problem = ms.load_study("temperature-gaussian-exact").problem
    fit = without_first(problem.model, problem.truth)
    assert {name: np.shape(value) for name, value in fit.items()} == {
        "gate_bias": (1,), "gate_slope": (1, 1), "temperature": (),
        "slope": (1, 1), "intercept": (1,), "variance": (1,),
    }  # fmt: skip
    assert fit["slope"][0, 0] == problem.truth["slope"][1][0] and fit["temperature"] == problem.truth["temperature"]


def test_who_gets_them():
    def fitter(name, **changes):
        problem = ms.load_study(name).problem
        options = multistart.FitOptions(**{**vars(problem.options), **changes})
        return multistart.Fitter(problem.model, problem.truth, options)

    assert fitter("ls-softmax-tanh").splits and not fitter("ls-softmax-tanh").spares
    assert not fitter("ls-softmax-exact").splits
    assert not fitter("ls-softmax-tanh", start="wide").splits
    assert fitter("softmax-gaussian-over-2").spares and not fitter("softmax-gaussian-over-2").splits


def test_they_find_what_points_in_the_box_miss():
    """Laplace gates: 16 points in the box leave fits above the objective at the truth, which no least squares are."""
    fit, samples, seeds = begun("ls-laplace-tanh", 4, 1e12, budget=2)
    found = fit.fit(samples, seeds, 1e12)
    fit.splits = False
    points = fit.fit(samples, seeds, 1e12)
    above = [np.sum(one.objective > one.objective_at_truth + 1e-3) for one in (found, points)]
    assert above[0] == 0 and above[1] >= 2
    assert np.all(found.objective <= points.objective + 1e-3)
    # A round that certifies without them asks for none.
    certain = np.flatnonzero(points.starts == fit.options.starts)
    assert np.array_equal(found.starts[certain], points.starts[certain])
