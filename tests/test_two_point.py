"""The evidence of a lower-bound claim, computed once more by hand: two measures, one function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moe_sim as ms
from moe_sim.theory.two_point import SAME_FUNCTION, two_point

FILES = Path(__file__).parent / "studies"
NETWORK = {"key": [[1.0, 0.3], [-0.2, 0.8]], "value": [[0.9, -0.1], [0.4, 1.1]]}


def evidence(tables, *names: str):
    """Evidence of a study's lower claims, by name of the loss."""
    claims = [{"loss": name, "kind": "lower", "window": [1e3, 1e4]} for name in names]
    problem = ms.Study(**tables | {"claim": claims}).problem
    fitter = ms.Fitter(problem.model, problem.truth, problem.options)
    losses = [loss for loss in problem.losses if loss.name in names]
    return two_point(
        problem.model, problem.truth, problem.law, problem.options, losses, fitter.flatten, fitter.unflatten
    )


def independent(**fit):
    found = ms.load_study(FILES / "independent-over.toml").tables
    return found | {"fit": found["fit"] | fit}


def shared(structure: str, **fit):
    found = ms.load_study(FILES / "shared-over.toml").tables
    network = {"network": NETWORK} if structure == "shared-network" else {}
    return found | {"fit": found["fit"] | fit, "model": found["model"] | {"structure": structure} | network}


def function(tables, bias, key, value, points):
    """f_G at the rows of points, shape (M, 2), from the tables alone."""
    frozen, projection = tables["model"]["frozen"], tables["model"]["projection"]
    A, a, M = (np.asarray(frozen[name]) for name in ("logit_matrix", "logit_bias", "output_matrix"))
    B, C = np.asarray(projection["key"]), np.asarray(projection["value"])
    found = []
    for x in points:
        logit = np.concatenate([[x @ A[j] @ x + a[j] for j in range(len(a))], [B @ k @ x for k in key] + bias])
        output = np.concatenate([[np.tanh(M[j] @ x) for j in range(len(a))], [C @ v for v in value]])
        found.append(np.exp(logit) @ output / np.exp(logit).sum())
    return np.stack(found)


def pair(tables, atom: int, step: float, copies: int = 1):
    """The truth with one atom split: same key, values ``step`` apart about the old one, the mass halved.

    The second half may itself be shared among several copies.
    """
    bias, key, value = (np.asarray(tables["truth"][name]) for name in ("bias", "key", "value"))
    away = np.array([step / 2, 0.0])
    halves = np.full(copies, bias[atom] - np.log(2 * copies))
    split_bias = np.concatenate([bias, halves])
    split_bias[atom] -= np.log(2)
    # The old atom moves towards 0, the new ones away from it: f is the same either way, the copies' cell is not.
    side = np.sign(value[atom, 0]) or 1.0
    split_value = np.concatenate([value, [value[atom] + side * away] * copies])
    split_value[atom] = value[atom] - side * away
    return split_bias, np.concatenate([key, [key[atom]] * copies]), split_value


def voronoi(tables, bias, key, value, r):
    """D_{1,r} between the atoms given and the true ones, in loops."""
    true_bias, true_key, true_value = (np.asarray(tables["truth"][name]) for name in ("bias", "key", "value"))
    mass, spread = np.zeros(len(true_bias)), 0.0
    for b, k, v in zip(bias, key, value, strict=True):
        gap = [np.sum((k - tk) ** 2) + np.sum((v - tv) ** 2) for tk, tv in zip(true_key, true_value, strict=True)]
        j = int(np.argmin(gap))
        mass[j] += np.exp(b)
        spread += np.exp(b) * (np.linalg.norm(k - true_key[j]) ** r + np.linalg.norm(v - true_value[j]) ** r)
    return np.abs(mass - np.exp(true_bias)).sum() + spread


def grid(tables):
    side = np.linspace(tables["law"]["low"], tables["law"]["high"], tables["law"]["points"])
    return np.array([(u, v) for u in side for v in side])


@pytest.mark.parametrize("name, r", [("voronoi", 1), ("voronoi:r=2", 2), ("voronoi:r=4", 4)])
def test_free_keys_and_values_cannot_be_told_apart(name, r):
    tables = independent()
    found = evidence(tables, name)[name]
    assert found["separated"] is True
    assert found["function_distance"] <= SAME_FUNCTION == 1e-12

    split = pair(tables, found["atom"], found["step"])
    points = grid(tables)
    truth = [np.asarray(tables["truth"][name]) for name in ("bias", "key", "value")]
    gap = function(tables, *split, points) - function(tables, *truth, points)
    assert np.sqrt(np.mean(np.sum(gap**2, axis=1))) <= 1e-12
    assert voronoi(tables, *split, r) == pytest.approx(found["loss"], rel=1e-10)
    assert found["loss"] > 1.0
    assert np.abs(split[0]).max() <= 3.0 and max(np.abs(split[1]).max(), np.abs(split[2]).max()) <= 6.0


def test_the_pair_is_the_widest_of_its_kind():
    tables = independent()
    found = evidence(tables, "voronoi:r=2")["voronoi:r=2"]
    losses = [
        voronoi(tables, *split, 2)
        for atom in (0, 1)
        for step in np.linspace(0.6, 12.0, 20)
        if np.abs((split := pair(tables, atom, step))[2]).max() <= 6.0
    ]
    assert found["loss"] == pytest.approx(max(losses), rel=1e-10)


def test_the_wrong_pair_would_be_seen():
    """The recomputation above can fail: keys moved in place of values give another function."""
    tables = independent()
    bias, key, value = pair(tables, 0, 1.0)
    truth = [np.asarray(tables["truth"][name]) for name in ("bias", "key", "value")]
    points = grid(tables)
    gap = function(tables, bias, key + 1e-3 * (value - truth[2][[0, 1, 0]]), value, points) - function(
        tables, *truth, points
    )
    assert np.sqrt(np.mean(gap**2)) > 1e-6


@pytest.mark.parametrize("atoms", [4, 5])
def test_more_spare_atoms_are_no_help(atoms):
    tables = independent(atoms=atoms)
    found = evidence(tables, "voronoi:r=2")["voronoi:r=2"]
    assert found["separated"] is True
    split = pair(tables, found["atom"], found["step"], atoms - 2)
    assert voronoi(tables, *split, 2) == pytest.approx(found["loss"], rel=1e-10)


def test_a_wider_box_holds_a_wider_pair():
    losses = [evidence(independent(bound=bound), "voronoi")["voronoi"]["loss"] for bound in (2.0, 4.0, 6.0)]
    assert losses[0] < losses[1] < losses[2]
    assert "fit.bound = 4," in evidence(independent(bound=4.0), "voronoi")["voronoi"]["assumption"]


def test_no_pair_outside_the_box():
    """A bias whose half mass would leave the box, for every atom: no pair, no evidence."""
    tables = independent(bias_bound=0.3)
    assert evidence(tables, "voronoi") == {}


@pytest.mark.parametrize("structure", ["shared-linear", "shared-network"])
def test_tied_keys_and_values_have_no_such_pair(structure):
    assert evidence(shared(structure), "voronoi", "voronoi:r=2") == {}


def test_as_many_atoms_as_the_truth_have_no_such_pair():
    assert evidence(independent(atoms=2), "voronoi", "voronoi:r=2") == {}


def test_a_loss_that_does_not_see_the_pair_is_not_separated():
    """The function loss of two measures with one function is 0 up to rounding: no lower bound follows."""
    found = evidence(independent(), "function")["function"]
    assert found["loss"] <= 1e-12
    assert found["separated"] is False


def test_a_loss_without_a_value_is_no_evidence():
    """One true atom split in two: no cell has a single atom, so their distance has no value."""
    tables = independent(atoms=2)
    tables["truth"] = {name: value[:1] for name, value in tables["truth"].items()}
    found = evidence(tables, "atoms:single", "voronoi")
    assert found["voronoi"]["separated"] is True
    assert not found.get("atoms:single", {}).get("separated", False)
