"""Directions that samples do not see: against null spaces, closed forms, and a minimiser of its own."""

from __future__ import annotations

import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from models import prefix
from scipy.optimize import least_squares

import moe_sim as ms
from moe_sim.data.covariates import Grid
from moe_sim.losses.voronoi import loss_of
from moe_sim.models.base import Regression
from moe_sim.models.parameter import Parameter
from moe_sim.simulation import runner
from moe_sim.theory.curves import CURVED
from moe_sim.theory.identifiability import tangent
from moe_sim.theory.unseen import elsewhere, unseen

LAW = Grid(1, -2.0, 2.0, 40)
NARROW = {  # a value projection of one output from two coordinates, and no frozen expert
    "name": "narrow",
    "model": {
        "family": "prefix", "structure": "shared-linear", "noise": 0.2,
        "frozen": {"logit_matrix": [], "logit_bias": [], "output_matrix": []},
        "projection": {"key": [[1.0, 0.2], [0.3, 1.0]], "value": [[1.0, -0.6]]},
    },
    "truth": {"bias": [0.2, -0.1], "prefix": [[1.5, 0.5], [-1.0, 1.2]]},
    "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 6},
    "fit": {"atoms": 2},
    "sample": {"sizes": [1e3, 1e4, 1e5], "replicates": 4},
    "claim": [{"loss": "function", "exponent": 0.5}, {"loss": "voronoi", "exponent": 0.5}],
}  # fmt: skip


def found_in(model, truth, law, n, loss="voronoi"):
    options = replace(tiny.study().problem.options, atoms=len(next(iter(truth.values()))))
    return unseen(model, truth, law, options, [loss_of(model, loss)], n).get(loss, [])


def coefficients(direction: str) -> dict[str, float]:
    """``0.5 a - b`` as {a: 0.5, b: -1}."""
    parts = re.findall(r"([+-]?) ?([\d.e-]*) ?([a-z_]+\[[\d,]+\])", direction)
    return {name: float(f"{sign}1") * float(number or 1) for sign, number, name in parts}


class Close(Regression):
    """Two bumps with masses, exp(b_k - (x - a_k)^2 / 2)."""

    dimension = outputs = 1
    noise = 0.3

    def parameters(self):
        return {"bias": Parameter(bound="bias_bound"), "place": Parameter((1,))}

    def mean(self, params, x):
        return jnp.sum(jnp.exp(params["bias"] - 0.5 * (x - params["place"][:, 0]) ** 2), keepdims=True)


class Squared(Regression):
    """One atom of which the data see the square: first order is blind where it is 0, and only there."""

    dimension = outputs = 1
    noise = 0.3

    def parameters(self):
        return {"bias": Parameter(bound="bias_bound"), "rate": Parameter((1,))}

    def mean(self, params, x):
        return jnp.sum(jnp.exp(params["bias"])) * (1.0 + jnp.sum(params["rate"] ** 2) * x)


class Cauchy(Regression):
    """Weights exp(b) / (1 + (x - c)^2) over affine experts: rational functions, of which a curve of parameters is one
    and the same."""

    dimension = outputs = 1
    noise = 0.3

    def parameters(self):
        return {"bias": Parameter(bound="bias_bound")} | {name: Parameter() for name in ("centre", "slope", "start")}

    def mean(self, params, x):
        weight = jnp.exp(params["bias"]) / (1 + (x - params["centre"]) ** 2)
        return jnp.atleast_1d(weight @ (params["slope"] * x + params["start"]) / jnp.sum(weight))


CAUCHY = {"bias": [0.3, 0.0], "centre": [-1.0, 1.0], "slope": [1.0, -2.0], "start": [0.5, -0.5]}
CAUCHY = {name: np.array(value) for name, value in CAUCHY.items()}


def test_prefixes_move_together_along_what_values_do_not_see():
    results = ms.run(ms.Study(**NARROW))
    (first,) = results.unseen["voronoi"]
    assert "function" not in results.unseen and first["seen_from"] is None and first["atoms"] is None
    (u,) = np.linalg.svd(NARROW["model"]["projection"]["value"])[2][1:]
    u = u / u[np.argmax(np.abs(u))]
    told = coefficients(first["direction"])
    told = np.array([[told[f"prefix[{j},{k}]"] for k in (0, 1)] for j in (0, 1)])
    sign = np.sign(told[0] @ u)
    assert np.allclose(told, sign * np.array([u, u]), atol=2e-4)
    function, voronoi = ms.judge(results)
    assert function.unseen == [] and "not identified" not in function.reason
    assert voronoi.verdict == "undecided" and voronoi.unseen == [first]
    assert voronoi.reason.startswith(f"not identified along {first['direction']}: a measure at a loss of")
    assert voronoi.to_json()["unseen"] == [first]
    assert (voronoi.replicates_needed, voronoi.sizes_needed) == (None, None)


def test_a_folder_keeps_them(tmp_path):
    study = ms.Study(**NARROW)
    ran = ms.run(study, tmp_path / "run")
    read = ms.load_results(tmp_path / "run")
    assert read.unseen == ran.unseen == ms.run(study, tmp_path / "run").unseen != {}
    assert [v.reason for v in ms.judge(read)] == [v.reason for v in ms.judge(ran)]


def test_other_truths_are_seen():
    case = prefix("shared-linear", 1, 1, 2, 1, 1)
    assert found_in(case.model, case.truth, case.law, 1e3) == []
    assert ms.run(tiny.study()).unseen == {}


@pytest.mark.parametrize("apart", [0.02, 0.2])
def test_close_atoms_are_seen_from_some_size_on(apart):
    """The size is that at which a test of the truth against the nearest function at that loss has errors of 5%."""
    place, x = np.array([0.0, apart]), np.asarray(LAW.nodes()[0])[:, 0]
    function = lambda theta: np.exp(theta[:2] - 0.5 * (x[:, None] - theta[2:]) ** 2).sum(axis=1)  # noqa: E731
    known = function(np.array([0.0, 0.0, *place]))
    every = found_in(Close(), {"bias": np.zeros(2), "place": place[:, None]}, LAW, 1e2)
    found = next(u for u in every if u.atoms is not None)
    assert (found.atoms, round(found.apart, 9)) == ([1, 2], apart)

    def gap(theta):
        return (function(theta) - known) / np.sqrt(len(x))

    def held(theta):
        """Both atoms in cells of their own, where the loss is this sum, at the loss that was found."""
        mass = np.exp(theta[:2])
        loss = np.abs(mass - 1).sum() + mass @ np.abs(theta[2:] - place)
        return np.append(1e-3 * gap(theta), loss / found.moved - 1)

    rng = np.random.default_rng(0)
    starts = np.array([0.0, 0.0, *place]) + found.moved / 4 * rng.normal(size=(60, 4))
    ends = [least_squares(held, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).x for start in starts]
    apart_still = [end for end in ends if end[2] < apart / 2 < end[3] and abs(held(end)[-1]) < 1e-6]
    least = min(np.linalg.norm(gap(end)) for end in apart_still)
    assert np.isclose(found.seen_from, (2 * 1.6448536 * 0.3 / found.distance) ** 2)
    assert least / 3 < found.distance < 3 * least
    assert not any(u.atoms for u in found_in(Close(), {"bias": np.zeros(2), "place": place[:, None]}, LAW, 1e14))


def test_what_only_second_order_sees_is_seen():
    truth = {"bias": np.array([0.1]), "rate": np.zeros((1, 1))}
    assert found_in(Squared(), truth, LAW, 1e4) == []
    (found,) = found_in(Squared(), truth, LAW, 1.0)  # one observation sees nothing
    assert found.direction == "rate[0,0]" and found.seen_from > 1


def test_curves_of_the_same_function_are_followed():
    every = found_in(Cauchy(), CAUCHY, LAW, 1e6)
    assert len(every) == 2  # both biases are free, and a common one is no matter
    for found in every:
        assert found.direction.endswith(CURVED) and found.seen_from is None and found.moved > 0.1
    options = replace(tiny.study().problem.options, atoms=2)
    flat = tangent(Cauchy(), CAUCHY, LAW, options, (1, 1)).flat[0]
    # First order by hand: the direction leaves the rational function as it is, on points the law does not have.
    named = coefficients(flat.removesuffix(CURVED))
    step, x = 1e-5, np.linspace(-5, 5, 11)
    ends = [{name: v.copy() for name, v in CAUCHY.items()} for _ in range(2)]
    for key, value in named.items():
        name, k = key.removesuffix("]").split("[")
        for end, sign in zip(ends, (1, -1), strict=True):
            end[name][int(k)] += sign * step * value

    def mean(p):
        weight = np.exp(p["bias"]) / (1 + (x[:, None] - p["centre"]) ** 2)
        return (weight * (p["slope"] * x[:, None] + p["start"])).sum(axis=1) / weight.sum(axis=1)

    assert np.allclose(mean(ends[0]), mean(ends[1]), atol=1e-3 * step * np.abs(x).max())


def test_a_direction_is_told_with_the_size_that_shows_it():
    study = ms.Study(**NARROW)
    results = ms.run(study)
    shown = {
        "direction": "prefix[0,0]",
        "moved": 0.5,
        "distance": 1e-3,
        "seen_from": 5e4,
        "atoms": [1, 2],
        "apart": 0.1,
    }
    results.unseen = {"voronoi": [shown]}
    assert (
        "true atoms 1 and 2, 0.1 apart, cannot be told apart at these n: a measure at a loss of 0.5 gives a function "
        "0.001 away, which samples show from n = 5e+04 on"
    ) in ms.judge(results)[1].reason
    results.unseen["voronoi"][0] = shown | {"seen_from": 1e3}  # all three sizes see it
    assert ms.judge(results)[1].unseen == []


SQUARED = {
    "name": "squared", "truth": {"bias": [0.2], "rate": [[1.0]]},
    "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 6}, "fit": {"atoms": 1, "bound": 3.0},
    "sample": {"sizes": [1e4, 1e5, 1e6], "replicates": 6},
    "claim": [{"loss": "function", "exponent": 0.5}, {"loss": "voronoi", "exponent": 0.5}],
}  # fmt: skip


SQUARED_FILE = """
import jax.numpy as jnp
import moe_sim as ms

class Squared(ms.Regression):
    dimension = outputs = 1
    noise = 0.3

    def parameters(self):
        return {"bias": ms.Parameter(bound="bias_bound"), "rate": ms.Parameter((1,))}

    def mean(self, params, x):
        return jnp.sum(jnp.exp(params["bias"])) * (1.0 + jnp.sum(params["rate"] ** 2) * x)
"""


def test_a_measure_elsewhere_with_the_same_function_is_told_in_place_of_a_rate():
    """The square of a rate is all that is seen, so its sign is not: half of the fits are at 2 from the truth."""
    results = ms.run(ms.Study(model=Squared(), **SQUARED))
    (found,) = results.unseen["voronoi"]
    assert list(results.unseen) == ["voronoi"]
    np.testing.assert_allclose(found["measure"]["rate"], [[-1.0]], atol=1e-9)
    np.testing.assert_allclose(found["measure"]["bias"], [0.2], atol=1e-9)
    assert abs(found["moved"] - np.exp(0.2) * 2) < 1e-6 and found["distance"] < 1e-12
    function, voronoi = ms.judge(results)
    assert function.unseen == [] and voronoi.verdict == "undecided"
    assert "a measure at a loss of 2.4 gives the function of the truth" in voronoi.reason
    assert voronoi.reason.endswith("(bias = [0.2], rate = [[-1.0]])")


def test_what_lies_elsewhere_is_looked_for_once(tmp_path, monkeypatch):
    asked: list = []
    monkeypatch.setattr(runner, "elsewhere", lambda *given: asked.append(given) or {})
    (tmp_path / "squared.py").write_text(SQUARED_FILE)
    study = ms.Study(folder=tmp_path, **(SQUARED | {"model": {"family": "squared.py:Squared"}}))
    grown, moved = study.replace(replicates=8), study.replace(replicates=8, sizes=[1e5, 1e6, 1e7])
    for count, more in ((1, study), (1, study), (2, grown), (3, moved), (3, moved)):
        ms.run(more, tmp_path / "run")
        assert len(asked) == count
    narrow = ms.run(ms.Study(**NARROW))  # which is explained before any fit
    assert len(asked) == 3 and narrow.unseen["voronoi"][0]["measure"] is None


def test_estimates_near_the_truth_lead_to_it():
    problem = ms.Study(model=Squared(), **SQUARED).problem
    loss = loss_of(problem.model, "voronoi")
    near = {"voronoi": np.array([[0.25, 0.7], [0.1, 1.9], [0.2, 0.02]])}
    assert elsewhere(problem.model, problem.truth, problem.law, problem.options, [loss], near) == {}
