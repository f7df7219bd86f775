"""Predicted constants against closed forms, non-negative least squares, finite differences and simulation."""

from __future__ import annotations

from dataclasses import replace

import mixtures
import models
import numpy as np
import pytest
import test_two_point as two
import tiny
from scipy.optimize import nnls
from scipy.special import gamma

import moe_sim as ms
from moe_sim.losses.voronoi import loss_of
from moe_sim.simulation import predictions
from moe_sim.theory.asymptotics import (
    COMMON,
    DEPENDENT,
    EDGE,
    MOVING,
    UNIDENTIFIED,
    Constants,
    Neighbourhood,
    constants,
    normal_draws,
)
from moe_sim.theory.cone import Cone

pytestmark = pytest.mark.computes

X = np.linspace(-2.0, 2.0, 10)


def chi_mean(r: int) -> float:
    """Mean length of r standard normals."""
    return np.sqrt(2) * gamma((r + 1) / 2) / gamma(r / 2)


def naive(theta):
    """f of the tiny study, of theta = (biases, prefixes), in plain numpy."""
    bias, prefix = np.split(np.asarray(theta, float), 2)
    logit = np.concatenate([[0.1 * X**2], np.multiply.outer(prefix, X) + bias[:, None]])
    output = np.concatenate([[np.tanh(0.8 * X)], np.multiply.outer(prefix, np.ones_like(X))])
    return np.sum(np.exp(logit) * output, axis=0) / np.sum(np.exp(logit), axis=0)


def covariance(theta, noise=0.3):
    """noise^2 (J'J / M)^-1 by central differences."""
    h = 1e-5
    J = np.stack([(naive(theta + h * e) - naive(theta - h * e)) / (2 * h) for e in np.eye(len(theta))], axis=1)
    return noise**2 * np.linalg.inv(J.T @ J / len(X))


def test_one_atom_by_closed_forms():
    found = predictions.constants(tiny.study())
    V = covariance(np.array([0.2, 1.0]))
    w = np.exp(0.2)
    assert (found.kind, found.parameters, found.reason) == ("exact", 2, None)
    assert found["function"].constant == pytest.approx(0.3 * chi_mean(2), rel=1e-3)
    assert found["mass"].constant == pytest.approx(w * np.sqrt(V[0, 0]) * np.sqrt(2 / np.pi), rel=2e-3)
    # |mass| + w |prefix|: both are normal, so the mean of their sum is that of each.
    both = w * (np.sqrt(V[0, 0]) + np.sqrt(V[1, 1])) * np.sqrt(2 / np.pi)
    assert found["voronoi"].constant == pytest.approx(both, rel=2e-3)
    assert found["atoms:single"].constant == pytest.approx(np.sqrt(V[1, 1]), rel=2e-3)  # root mean square
    assert found["atoms:single"].aggregate == "rms"
    for name in ("function", "mass", "voronoi", "atoms:single"):
        assert found[name].exponent == 0.5 and found[name].error < 5e-3 * found[name].constant
        assert found[name].at(1e6) == pytest.approx(found[name].constant * 1e-3)
    assert found["atoms:multi"].constant is None and "no such cell" in found["atoms:multi"].reason


@pytest.mark.parametrize("name, rank", [("softmax-gaussian-exact", 8), ("gaussian-gated-exact", 17)])
def test_mixtures_have_a_chi_function_loss(name, rank):
    """h ~ |Z| / sqrt(8 n), with as many normals as the model has identified parameters."""
    study = ms.load_study(name)
    found = constants(*(getattr(study.problem, k) for k in ("model", "truth", "law", "options", "losses")))
    assert found.parameters == rank
    assert found["function"].constant == pytest.approx(chi_mean(rank) / np.sqrt(8), rel=1e-2)


def test_scores_and_hessian_agree():
    """The information identity: minus the mean Hessian is the Gram matrix of the scores."""
    for name in ("softmax-K2-d1-o1", "gated-K2-d1-o1"):
        case = mixtures.MIXTURES[name]
        at = Neighbourhood(case.model, case.truth, case.law)
        np.testing.assert_allclose(at.hessian(), at.gram(), atol=2e-2 * np.abs(at.gram()).max())
        mean = at.seen.root @ at.scores  # of the score
        assert np.all(np.abs(mean) < 1e-2 * np.linalg.norm(at.scores, axis=0))


@pytest.mark.parametrize("atoms", [1, 2])
def test_the_cone_against_non_negative_least_squares(atoms):
    """One coordinate, one spare atom: M is a number, not below 0, in the cell of either atom."""
    rng = np.random.default_rng(atoms)
    first, second = rng.normal(size=(20, 2 * atoms)), rng.normal(size=(20, atoms))
    cone = Cone(first, second, atoms, 1)
    noise = rng.normal(size=(200, sum(cone.dimensions)))
    found = cone.project(noise)
    # The noise in R^20 that has these coordinates: along the first columns, and along what is left of the second.
    basis = np.linalg.qr(first)[0]
    rest = np.linalg.qr(second - basis @ (basis.T @ second))
    for draw, length in zip(noise, found.length, strict=True):
        z1, z2 = draw[: 2 * atoms], draw[2 * atoms :]
        best = np.inf
        for j in range(atoms):
            column = (rest[1][:, j])[:, None]
            best = min(best, nnls(column, z2)[1])
        assert length == pytest.approx(np.sqrt(z1 @ z1 + z2 @ z2 - best**2), abs=1e-6)


def test_a_wider_cone_projects_longer():
    """Two spare atoms can do what one can; with two coordinates M of rank 1 or 2."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    draws = rng.normal(size=(100, 6))
    one, more = (Cone(first, second, 1, spare).project(draws).length for spare in (1, 2))
    assert np.all(more >= one - 1e-6) and np.mean(more > one + 1e-3) > 0.03


def measured(study: ms.Study):
    """The study's losses at its largest size: mean (or root mean square) and Monte Carlo error."""
    frame = ms.run(study).frame
    frame = frame[frame["n"] == frame["n"].max()]
    found = {}
    for loss in study.problem.losses:
        value = frame[f"loss:{loss.name}"].to_numpy()
        value = value[np.isfinite(value)]
        if loss.aggregate == "rms":
            mean = np.sqrt(np.mean(value**2)) if len(value) else np.nan
            error = np.std(value**2) / (2 * mean * np.sqrt(len(value))) if len(value) else np.nan
        else:
            mean, error = value.mean(), value.std() / np.sqrt(len(value))
        found[loss.name] = mean, error
    return found


def agrees(study: ms.Study, names, within: float) -> None:
    """Within three Monte Carlo errors, and so many percent. False alarm 0.3% a loss; the seed is fixed."""
    predicted, n = predictions.constants(study), max(study.problem.sizes)
    found = measured(study)
    for name in names:
        mean, error = found[name]
        assert abs(mean - predicted[name].at(n)) < 3 * error + 3 * predicted[name].error * n**-0.5, name
        assert mean == pytest.approx(predicted[name].at(n), rel=within), name


def test_simulated_exact_prefixes_have_the_predicted_losses():
    study = ms.load_study("prefix-shared-linear-exact").replace(sizes=[1e8], replicates=2000)
    agrees(study, ("voronoi", "function", "mass", "atoms:single"), 0.03)


def test_simulated_softmax_gated_experts_have_the_predicted_losses():
    study = ms.load_study("softmax-gaussian-exact").replace(sizes=[1e4], replicates=300)
    agrees(study, ("voronoi", "function"), 0.1)


def test_simulated_spare_atoms_have_the_predicted_losses():
    """Projection on the tangent cone: a spare atom in a study of one coordinate."""
    study = tiny.study(fit__atoms=2).replace(sizes=[1e10], replicates=1000)
    agrees(study, ("function", "voronoi", "mass"), 0.05)


def reason_of(problem, **changes) -> str | None:
    options = replace(problem.options, **changes)
    return constants(problem.model, problem.truth, problem.law, options, problem.losses).reason


def test_truths_that_move():
    claim = [{"loss": "voronoi", "exponent": 0.5, "window": [1e2, 1e4]}]
    moving = tiny.study(fit__atoms=2, sample__truth="least-favourable", claim=claim)
    assert predictions.constants(moving).reason == MOVING


def test_a_truth_on_the_edge():
    assert reason_of(tiny.study(fit__bound=1.0).problem) == EDGE.format("prefix")
    assert reason_of(tiny.study(fit__bound=1.1).problem) is None


def reason_of_spare(case) -> str | None:
    """Of a case of ``models`` with an atom more."""
    options = replace(tiny.study().problem.options, atoms=len(case.truth["bias"]) + 1)
    loss = loss_of(case.model, "function")
    return constants(case.model, case.truth, case.law, options, [loss]).reason


def test_unidentified_parameters():
    """A network of two outputs of which data see one."""
    assert reason_of_spare(models.MODELS["learned-d2-N1-L2"]) == UNIDENTIFIED


def test_dependent_derivatives():
    assert reason_of(ms.Study(**two.independent()).problem) == DEPENDENT


def test_common_parameters():
    learned = models.prefix("shared-network", 2, 1, 2, outputs=2, width=2, network_bound=3.0)
    assert reason_of_spare(learned) == COMMON


def test_losses_without_a_constant_say_why():
    found = predictions.constants(tiny.study(fit__atoms=2))
    assert "share its mass" in found["atoms:multi"].reason
    exact = ms.load_study("softmax-gaussian-exact")
    p = exact.problem
    losses = [loss_of(p.model, "voronoi:untranslated")]
    (c,) = constants(p.model, p.truth, p.law, p.options, losses).constants
    assert c.constant is None and "translations" in c.reason


def test_json_brings_it_back():
    found = predictions.constants(tiny.study(fit__atoms=2))
    assert Constants.from_json(found.to_json()) == found


def test_draws_are_standard_normal():
    draws = normal_draws(3, 256)
    assert np.abs(draws.mean(axis=0)).max() < 1e-2
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=2e-2)
