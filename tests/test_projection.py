"""Projections on fewer atoms than the truth has, against closed forms, and runs that measure losses from them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moe_sim as ms
from moe_sim.simulation import predictions
from moe_sim.theory.projection import _least_eigenvalue, _Risk, projection

TABLES: dict[str, Any] = {
    "name": "lines", "model": {"family": "moe", "gate": "softmax", "expert": "affine", "response": "least-squares",
                               "noise": 0.3},
    "truth": {"gate_bias": [0.2, 0.0], "gate_slope": [[1.5], [0.0]], "slope": [[2.0], [-1.0]], "intercept": [0.5, 1.0]},
    "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 41},
    "fit": {"atoms": 1, "starts": 4},
    "sample": {"truth": "projection", "sizes": [1e4, 1e6, 1e8], "replicates": 120, "mode": "exact"},
    "claim": [{"loss": "atoms:single:slope", "exponent": 0.5}, {"loss": "function", "exponent": 0.5}],
}  # fmt: skip
MIXTURE = {
    "model": {"family": "softmax-gaussian"},
    "truth": TABLES["truth"] | {"slope": [[0.6], [0.2]], "intercept": [0.5, 0.8], "variance": [0.3, 0.4]},
}


def study(**changes) -> ms.Study:
    return ms.Study(**{**TABLES, **changes})


def line(problem) -> tuple[np.ndarray, float]:
    """Intercept and slope of the regression of the true mean on x, and the mean squared distance that is left."""
    points, mass = problem.law.nodes()
    x, t = points[:, 0], problem.truth
    share = 1 / (1 + np.exp(-(t["gate_bias"][0] - t["gate_bias"][1] + (t["gate_slope"][0] - t["gate_slope"][1]) * x)))
    lines = t["intercept"][:, None] + t["slope"] * x
    mean = share * lines[0] + (1 - share) * lines[1]
    design = np.stack([np.ones_like(x), x], axis=1) * np.sqrt(mass)[:, None]
    found, *_ = np.linalg.lstsq(design, mean * np.sqrt(mass), rcond=None)
    left = float(mass @ (mean - found[0] - found[1] * x) ** 2)
    if "variance" in t:
        left += float(mass @ (share * t["variance"][0] + (1 - share) * t["variance"][1]))
        left += float(mass @ (share * (lines[0] - mean) ** 2 + (1 - share) * (lines[1] - mean) ** 2))
    return found, left


def test_one_line_is_that_of_least_squares():
    p = study().problem
    found, (coefficients, left) = projection(p.model, p.truth, p.law, p.options), line(p)
    np.testing.assert_allclose(found.parameters["intercept"], coefficients[:1], rtol=1e-9)
    np.testing.assert_allclose(found.parameters["slope"], [coefficients[1:]], rtol=1e-9)
    assert found.risk == pytest.approx(left / (2 * 0.3**2), rel=1e-9)
    # The Hessian of a line on a symmetric grid is diagonal.
    assert found.least == pytest.approx(1.0, abs=1e-9) and found.agreeing == found.starts == 128


def test_one_normal_regression_has_the_moments_of_the_mixture():
    """The Kullback-Leibler projection on an exponential family keeps its moments; on cells, up to their spacing."""
    p = study(**MIXTURE, claim=[]).problem
    found, (coefficients, left) = projection(p.model, p.truth, p.law, p.options), line(p)
    np.testing.assert_allclose(found.parameters["intercept"], coefficients[:1], rtol=1e-6)
    np.testing.assert_allclose(found.parameters["slope"], [coefficients[1:]], rtol=1e-6)
    np.testing.assert_allclose(found.parameters["variance"], left, rtol=1e-3)
    assert found.risk > 0 and found.least > 0.1


@pytest.mark.parametrize("changes", [{}, MIXTURE | {"claim": [{"loss": "atoms:single:slope", "exponent": 0.5},
                                                              {"loss": "function", "exponent": 0.5}]}])  # fmt: skip
def test_fits_come_to_it_at_the_parametric_rate(changes, tmp_path):
    """Every claim is supported, all fits are certified, and a folder resumes; false alarm: four slopes at 5%, claimed
    with a margin of a tenth."""
    made = study(**changes)
    part = ms.run(made.replace(replicates=20), tmp_path / "run")
    results = ms.run(made, tmp_path / "run")
    assert (results.frame["certificate"] == "certified").all()
    for verdict in ms.judge(results):
        assert verdict.verdict == "supported", verdict
    first = results.frame[results.frame["replicate"] < 20].reset_index(drop=True)
    assert first.equals(part.frame)
    # The loss is the distance from the projection.
    p = made.problem
    goal = projection(p.model, p.truth, p.law, p.options).parameters
    moved = np.abs(results.frame["estimate:slope[0,0]"] - float(goal["slope"][0, 0]))
    np.testing.assert_allclose(results.frame["loss:atoms:single:slope"], moved, rtol=1e-6, atol=1e-12)


def test_constants_tell_the_hessian():
    found = predictions.constants(study())
    assert "least eigenvalue of the Hessian" in str(found.reason) and found.constants == []


DENSE = {
    "model": {"family": "moe", "gate": "sigmoid", "expert": "affine", "response": "least-squares", "noise": 0.3},
    "truth": TABLES["truth"] | {"gate_slope": [[0.8], [1.5]]}, "fit": {"atoms": 3},
}  # fmt: skip


@pytest.mark.parametrize("changes, words", [
    ({"fit": {"atoms": 2, "starts": 4}}, r"= 2 atoms give the truth itself"),
    (DENSE, "fit.atoms = 3 atoms give the truth itself"),  # a spare atom of expert 0 has no part in the function
    ({"fit": {"atoms": 1, "bound": 2.0}, "truth": TABLES["truth"] | {"slope": [[8.0], [6.0]]}}, "outside"),
])  # fmt: skip
def test_projections_that_are_none(changes, words):
    with pytest.raises(ms.InputError, match=words):
        ms.run(study(**{"claim": []} | changes))


def test_a_projection_on_the_edge_is_refused():
    p = study(**MIXTURE, claim=[]).problem
    truth = p.truth | {"intercept": np.array([3.0, -3.0])}
    with pytest.raises(ms.InputError, match=r"lies on the bound of log_variance, raise fit\.bound"):
        projection(p.model, truth, p.law, p.options)


def test_two_projections_are_refused():
    """One bump at each end of the law, and one atom: it is as good at either, so no loss is defined."""
    mirrored = study(
        model={"family": "moe", "gate": "sigmoid", "expert": "tanh", "expert_options": {"bias": False},
               "response": "least-squares", "noise": 0.3},
        truth={"gate_bias": [-2.0, -2.0], "gate_slope": [[3.0], [-3.0]], "slope": [[2.0], [-2.0]]}, claim=[],
    )  # fmt: skip
    p = mirrored.problem
    with pytest.raises(ms.InputError, match="another measure of 1 atoms is as good"):
        projection(p.model, p.truth, p.law, p.options)


@pytest.mark.parametrize("changes, words", [
    ({"claim": [{"loss": "voronoi", "kind": "lower"}]}, "kind = 'lower' is shown by measures near the truth"),
    ({"claim": [{"loss": "atoms:multi:slope", "exponent": 0.5}]}, "a projection has as many atoms as fits"),
    ({"sample": TABLES["sample"] | {"truth": "given"}}, "fit.atoms = 1 is fewer than the 2 true atoms"),
    ({**MIXTURE, "sample": TABLES["sample"] | {"mode": "iid"}}, "found on its cells: pass sample.mode = 'exact'"),
    ({"truth": TABLES["truth"] | {"path": {"slope": "slope0"}}}, "both move the truth: leave one out"),
])  # fmt: skip
def test_bad_studies(changes, words):
    with pytest.raises(ms.InputError, match=words):
        study(**changes)


@pytest.mark.parametrize("ask", [predictions.modulus, predictions.check_model, predictions.possible_rates])
def test_what_a_projection_has_not(ask):
    with pytest.raises(ms.InputError, match="about a truth that fits may reach"):
        ask(study())


def test_a_hessian_that_is_flat_along_the_measure_is_told():
    """A risk that sees two of the six free coordinates: along the others measures differ. And one that sees all."""
    p = study(claim=[]).problem
    at = np.zeros(6)
    some = _least_eigenvalue(p.model, p.law, p.truth, _Risk(lambda t: jnp.sum(t[:2] ** 2)), at)
    every = _least_eigenvalue(p.model, p.law, p.truth, _Risk(lambda t: jnp.sum(t**2) + t[0] * t[1]), at)
    assert some == 0.0 and every == pytest.approx(0.5)
