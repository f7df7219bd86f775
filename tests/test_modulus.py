"""Moduli of continuity against brute force, against exponents known from theory, and against every symmetry."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mixtures
import numpy as np
import pytest
import test_two_point as two
import tiny
from scipy.optimize import minimize

import moe_sim as ms
from moe_sim.data.covariates import Uniform
from moe_sim.errors import InputError
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.distances import NEAR_NODES, Target
from moe_sim.losses.voronoi import loss_of
from moe_sim.models.gaussian_gated import GaussianGated
from moe_sim.models.mixture import MixtureModel
from moe_sim.models.softmax_gaussian import SoftmaxGaussian
from moe_sim.simulation import predictions
from moe_sim.theory.modulus import FEWEST, FLOOR, SAME_FUNCTION, Descent, Modulus, grid, modulus, without_misses
from moe_sim.theory.search import Branch, Search, assignments, residuals_near

pytestmark = pytest.mark.computes

RANGE = (1e-3, 1e2)
SHARED = Path(__file__).parent / "studies" / "shared-over.toml"


def moduli(problem, *names: str, eps=None) -> list[Modulus]:
    losses = [loss_of(problem.model, name) for name in names]
    return list(modulus(problem.model, problem.truth, problem.law, problem.options, losses, eps=eps))


def small(**changes):
    """One prefix of dimension 1."""
    return tiny.study(**changes).problem


def naive(bias, prefix, x):
    """f of the tiny study at x (M,), in plain numpy."""
    logit = np.concatenate([[0.1 * x**2], np.multiply.outer(prefix, x) + np.asarray(bias)[:, None]])
    output = np.concatenate([[np.tanh(0.8 * x)], np.multiply.outer(prefix, np.ones_like(x))])
    return np.sum(np.exp(logit) * output, axis=0) / np.sum(np.exp(logit), axis=0)


X = np.linspace(-2.0, 2.0, 10)


def distance(bias, prefix):
    return float(np.sqrt(np.mean((naive(bias, prefix, X) - naive([0.2], [1.0], X)) ** 2)))


def single(bias, prefix):
    """D of one atom."""
    return abs(np.exp(bias) - np.exp(0.2)) + np.exp(bias) * abs(prefix - 1.0)


@pytest.mark.parametrize("eps", [0.3, 1e-2, 1e-4])
def test_one_atom_against_brute_force(eps):
    """All of {D = eps}: for each share of eps that mass takes up, both signs of both errors."""
    best = np.inf
    for share in np.linspace(0, 1, 5001):
        for up in (1, -1):
            mass = np.exp(0.2) + up * share * eps
            for side in (1, -1):
                bias, prefix = np.log(mass), 1.0 + side * (1 - share) * eps / mass
                assert single(bias, prefix) == pytest.approx(eps, rel=1e-9)
                best = min(best, distance([bias], [prefix]))
    (found,) = moduli(small(), "voronoi", eps=np.array([eps]))
    assert found.omega[0] == pytest.approx(best, rel=1e-5)
    assert found.omega[0] <= best * (1 + 1e-9)


@pytest.mark.parametrize("power, eps", [(2, 0.1), (2, 0.01), (1, 0.1)])
def test_two_atoms_on_one_against_sequential_programming(power, eps):
    """SLSQP from 100 starts, on the same level set, with the loss and the distance in plain numpy."""

    def loss(theta):
        mass = np.exp(theta[:2])
        return abs(mass.sum() - np.exp(0.2)) + mass @ np.abs(theta[2:] - 1.0) ** power

    rng = np.random.default_rng(0)
    best = np.inf
    problem = small(fit__atoms=2)
    search = Search(problem.model, problem.truth, problem.law, problem.options, [])
    box = list(zip(*Branch(search, (2,)).box, strict=True))
    for _ in range(100):
        spread = eps ** (1 / power)
        start = np.concatenate([0.2 - np.log(2) + 0.3 * rng.normal(size=2), 1 + spread * rng.normal(size=2)])
        done = minimize(
            lambda t: distance(t[:2], t[2:]) / eps, start, method="SLSQP", bounds=box, options={"ftol": 1e-12},
            constraints={"type": "eq", "fun": lambda t: np.log(loss(t) / eps)},
        )  # fmt: skip
        if abs(np.log(loss(done.x) / eps)) < 1e-6:
            best = min(best, distance(done.x[:2], done.x[2:]))
    (found,) = moduli(problem, f"voronoi:r={power}", eps=np.array([eps]))
    assert found.cells == [(2,)]
    # What is found is on the level set, and so far away as it says.
    (bias, prefix) = found.measures[0]["bias"], found.measures[0]["prefix"][:, 0]
    assert loss(np.concatenate([bias, prefix])) == pytest.approx(eps, rel=1e-6)
    assert distance(bias, prefix) == pytest.approx(found.omega[0], rel=1e-6)
    # The best of both may stop short in a valley that is flat along the ways to share the mass.
    assert found.omega[0] == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name, losses, kappas", [
    ("prefix-shared-linear-exact", ["voronoi"], [1]),
    ("prefix-shared-linear-over", ["voronoi", "atoms:multi"], [1, 2]),
    ("prefix-shared-network-over", ["voronoi", "atoms:multi"], [1, 2]),
    ("prefix-shared-network-exact", ["voronoi"], [1]),
    ("prefix-independent-exact", ["voronoi"], [1]),
])  # fmt: skip
def test_prefixes_have_the_exponents_of_the_theorem(name, losses, kappas):
    for found, kappa in zip(moduli(ms.load_study(name).problem, *losses), kappas, strict=True):
        assert found.kappa == pytest.approx(kappa, abs=0.05)
        assert found.exponent == pytest.approx(1 / (2 * kappa), rel=0.05)
        assert not found.degenerate and found.dimension is None
        assert np.all(np.diff(found.eps) < 0) and np.all(found.omega >= FLOOR)
        np.testing.assert_allclose(found.local_kappa, np.diff(np.log(found.omega)) / np.diff(np.log(found.eps)))


def test_free_keys_and_values_are_degenerate():
    """The path that is found: another measure, at just this Voronoi distance by hand, with the function of the truth
    by hand."""
    tables = two.independent()
    truth = [np.asarray(tables["truth"][name]) for name in ("bias", "key", "value")]
    points = two.grid(tables)
    for power, name in ((2, "voronoi:r=2"), (4, "voronoi:r=4")):
        (found,) = moduli(ms.Study(**tables).problem, name)
        assert found.degenerate and found.exponent == 0.0 and found.kappa is None
        assert np.all(found.omega < SAME_FUNCTION) and len(found.omega) >= 5
        for measure, eps in zip(found.measures, found.eps, strict=True):
            split = [measure[k] for k in ("bias", "key", "value")]
            gap = two.function(tables, *split, points) - two.function(tables, *truth, points)
            assert np.sqrt(np.mean(np.sum(gap**2, axis=1))) < SAME_FUNCTION
            assert two.voronoi(tables, *split, power) == pytest.approx(eps, rel=1e-6)
        # An atom splits into two of its key: their share of the mass and their mean's complement are free, 1 + 2.
        assert found.dimension == 3


def test_eps_at_the_end_where_omega_rises_were_missed():
    """Two that rise are left out; a rise before the end stays, and so does what is rounding."""

    class Level(NamedTuple):
        eps: float
        omega: float

    def kept(*omega):
        levels = [Level(0.3 / 4**k, value) for k, value in enumerate(omega)]
        return [level.omega for level in without_misses(levels)]

    assert kept(5e-6, 9e-6, 3e-6, 9e-7, 2e-7, 3e-7, 4e-7) == [5e-6, 9e-6, 3e-6, 9e-7, 2e-7]
    assert kept(5e-6, 9e-6, 3e-6) == [5e-6, 9e-6, 3e-6]
    assert len(kept(1.0, 2.0, 3.0, 4.0)) == FEWEST
    assert kept(1e-3, 1e-16, 2e-16, 1e-17, 5e-17) == [1e-3, 1e-16, 2e-16, 1e-17, 5e-17]


@pytest.mark.parametrize("lost, degenerate", [(0, True), (1, True), (2, True), (3, False)])
def test_one_or_two_at_the_smallest_eps_do_not_undo_so_many_zeros(lost, degenerate):
    omega = np.array([5e-14] * 6 + [3.3e-11 / 4**k for k in range(lost)])
    eps = 0.3 / 4.0 ** np.arange(len(omega))
    assert Modulus("voronoi", eps, omega, [], {}, [], []).degenerate is degenerate


def test_a_flat_set_that_the_box_cuts_short():
    """Values may move by 0.02 one way: no measure far away has the function of the truth, but some near ones do."""
    free = {
        "model__structure": "independent", "truth__prefix": tiny.GONE, "truth__key": [[1.0]], "truth__value": [[1.5]],
        "fit__atoms": 2, "fit__bound": 1.52,
    }  # fmt: skip
    (found,) = moduli(small(**free), "voronoi")
    assert found.degenerate and found.zero_from > 0 and found.kappa is None and found.exponent == 0
    assert np.all(found.omega[: found.zero_from] > 1e-6) and np.all(found.omega[found.zero_from :] < SAME_FUNCTION)
    value = found.measures[found.zero_from]["value"]
    assert np.all(value <= 1.52) and np.ptp(value) > 1e-3


@pytest.mark.parametrize("omega, zero_from", [
    ([1e-2, 1e-4, 1e-6, 1e-8, 1e-10], None),
    ([1e-8, 1e-10, 1e-12, 3e-14], None),  # down to rounding, by the power seen
    ([1e-13, 1e-14, 1e-15], 0),
    ([1e-2, 1e-3, 1e-15, 1e-15], 2),
    ([1e-2, 1e-15, 1e-3], None),  # not at the last
    ([np.nan, 1e-15, np.nan], 1),
])  # fmt: skip
def test_zero_is_told_from_small(omega, zero_from):
    found = Modulus("voronoi", 10.0 ** -np.arange(len(omega)), np.array(omega), [], {}, [], [])
    assert found.zero_from == zero_from and found.degenerate == (zero_from is not None)


def mixed(atoms: int, model, truth, law=None):
    """A problem of so many atoms about a truth."""
    base = small(fit__atoms=atoms).options
    estimator = "mle" if isinstance(model, MixtureModel) else "least-squares"
    options = replace(base, bound=50.0, bias_bound=50.0, estimator=estimator)
    return type("Problem", (), {"model": model, "truth": truth, "law": law, "options": options})


ONE = {
    "gate_bias": np.zeros(1), "gate_slope": np.zeros((1, 1)), "intercept": np.array([0.5]),
    "slope": np.array([[1.0]]), "variance": np.array([0.5]),
}  # fmt: skip


@pytest.mark.parametrize("atoms, kappas", [(2, (4, 2)), (3, (6, 3))])
def test_one_expert_fitted_by_more(atoms, kappas):
    """As Gaussian location-scale mixtures: rbar(2) = 4, rbar(3) = 6 (Ho and Nguyen 2016, Ann. Statist. 44, 2726)."""
    problem = mixed(atoms, SoftmaxGaussian(1, 1, RANGE), ONE, Uniform(1, -1.0, 1.0, 12))
    found = moduli(problem, "atoms:weighted:intercept", "atoms:weighted:variance")
    for m, kappa in zip(found, kappas, strict=True):
        assert m.kappa == pytest.approx(kappa, abs=0.15 if atoms == 2 else 0.3)
        assert m.cells[-1] == (atoms,)


def coarse(name: str):
    """The problem of a claim on a law of 16 points: what the modulus does with them is the same."""
    study = ms.load_study(name)
    return study.with_tables(study.tables | {"law": study.tables["law"] | {"points": 16}}).problem


def test_two_gates_fitted_by_three(few_starts):
    """The published truth of two experts, one atom too many: 4 for intercepts (claimed so), 2 for slopes' variances."""
    problem = coarse("softmax-gaussian-over-2")
    for name, levels, kappa in (("gate_slope+intercept", 9, 4), ("slope+variance", 5, 2)):
        (found,) = moduli(problem, f"atoms:weighted:{name}", eps=0.3 * 0.5 ** np.arange(levels))
        assert found.kappa == pytest.approx(kappa, abs=0.15)


def test_gaussian_gates_fitted_by_one_more(few_starts):
    problem = ms.load_study("gaussian-gated-over").problem
    (found,) = moduli(problem, "atoms:weighted:center+intercept", eps=0.3 * 0.5 ** np.arange(7))
    assert found.kappa == pytest.approx(4, abs=0.15)


def test_two_gates_fitted_by_four(few_starts):
    """Three atoms in either cell: 6 for intercepts. Two in each: 4."""
    problem = coarse("softmax-gaussian-over-3")
    (found,) = moduli(problem, "atoms:weighted:intercept", eps=0.3 * 0.5 ** np.arange(4))
    assert found.kappa == pytest.approx(6, abs=0.3)
    assert found.kappa_with((3, 1)) == pytest.approx(6, abs=0.3)
    assert found.kappa_with((2, 2)) == pytest.approx(4, abs=0.3)


def test_softmax_gates_with_twice_the_atoms_are_not_identified(few_starts):
    """Every atom in two, gates moved by the same +t and -t: a factor cosh(t x) common to all gates cancels."""
    case = mixtures.MIXTURES["softmax-K2-d1-o1"]
    truth = {k: np.asarray(v) for k, v in case.truth.items()}
    moved = {k: np.repeat(v, 2, axis=0) for k, v in truth.items()}
    moved["gate_slope"] = moved["gate_slope"] + 0.2 * np.array([1.0, -1.0, 1.0, -1.0])[:, None]
    rng = np.random.default_rng(0)
    for x, y in rng.normal(size=(20, 2, 1)):
        by_hand = [mixtures.naive_log_density(case, params, x, y) for params in (moved, truth)]
        assert by_hand[0] == pytest.approx(by_hand[1], abs=1e-12)
    problem = mixed(4, case.model, truth, case.law)
    eps = np.array([0.1, 0.05])
    degenerate, variance = moduli(problem, "atoms:weighted:gate_slope", "atoms:weighted:variance", eps=eps)
    assert degenerate.degenerate and degenerate.cells[0] == (2, 2)
    assert degenerate.kappa_with((2, 2)) == np.inf
    assert not variance.degenerate  # what leaves the density as it is moves gates only


def test_moved_atoms_are_those_of_the_modulus():
    """omega is the Hellinger distance by quadrature over a wide grid, G_eps the measure that has it."""
    case = mixtures.MIXTURES["softmax-K2-d1-o1"]
    (found,) = moduli(mixed(2, case.model, case.truth, case.law), "voronoi", eps=np.array([0.05]))
    points, weights = case.law.nodes()
    y = np.linspace(-15.0, 15.0, 3001)
    square = 0.0
    for x, w in zip(np.asarray(points), np.asarray(weights), strict=True):
        roots = []
        for params in (found.measures[0], case.truth):
            log_weight, mean, variance = case.naive(params, x)
            parts = np.exp(log_weight - 0.5 * (y[:, None] - mean[:, 0]) ** 2 / variance[:, 0])
            roots.append(np.sqrt(np.sum(parts / np.sqrt(2 * np.pi * variance[:, 0]), axis=1)))
        square += w * 0.5 * np.trapezoid((roots[0] - roots[1]) ** 2, y)
    # 12 nodes an expert: two experts that overlap leave an error of a percent, at every eps alike.
    assert found.omega[0] == pytest.approx(np.sqrt(square), rel=2e-2)


def test_the_order_of_true_atoms_does_not_matter():
    problem = ms.Study(**two.shared("shared-linear")).problem
    turned = {k: np.asarray(v)[::-1] for k, v in problem.truth.items()}
    eps = np.array([0.1, 0.03])
    found = [
        moduli(mixed(3, problem.model, truth, problem.law), "voronoi", eps=eps)[0] for truth in (problem.truth, turned)
    ]
    np.testing.assert_allclose(found[1].omega, found[0].omega, rtol=1e-3)
    assert found[1].cells == [c[::-1] for c in found[0].cells]


def test_translations_of_gates_do_not_matter():
    case = mixtures.MIXTURES["softmax-K2-d1-o1"]
    truth = {k: np.asarray(v) for k, v in case.truth.items()}
    moved = truth | {"gate_bias": truth["gate_bias"] + 0.7, "gate_slope": truth["gate_slope"] - 0.4}
    eps = np.array([0.05])
    (found,) = moduli(mixed(2, case.model, truth, case.law), "voronoi", eps=eps)
    # A true measure of twice the mass has twice the loss: D is not relative to it.
    (scaled,) = moduli(mixed(2, case.model, moved, case.law), "voronoi", eps=eps * np.exp(0.7))
    assert scaled.omega[0] == pytest.approx(found.omega[0], rel=1e-4)


def test_gated_atoms_in_any_order():
    case = mixtures.MIXTURES["gated-K2-d1-o1"]
    eps = np.array([0.05])
    found = [
        moduli(mixed(2, GaussianGated(1, 1, RANGE, RANGE), t, None), "voronoi", eps=eps)[0].omega[0]
        for t in (case.truth, {k: np.asarray(v)[::-1] for k, v in case.truth.items()})
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_smaller_parameter_set_has_no_smaller_modulus():
    """The box holds the measures found, and shuts out what was cheaper."""
    wide, narrow = (
        moduli(small(fit__atoms=2, fit__bound=bound), "voronoi:r=2", eps=np.array([0.3]))[0] for bound in (6.0, 1.02)
    )
    assert np.abs(narrow.measures[0]["prefix"]).max() <= 1.02
    assert narrow.omega[0] > 1.05 * wide.omega[0]


def test_every_fitted_atom_keeps_a_part_of_the_mass():
    """Without a floor an atom of no mass could go anywhere: no gate coordinate moves a mass by more than fivefold."""
    (found,) = moduli(small(fit__atoms=2), "atoms:multi", eps=np.array([0.3, 0.1, 0.03]))
    for measure in found.measures:
        mass = np.exp(measure["bias"])
        assert np.all(mass >= np.exp(0.2) / 2 / 5 * (1 - 1e-9))


def test_a_measure_that_cannot_be_reached_is_refused():
    problem = small(fit__atoms=2)
    loss = loss_of(problem.model, "voronoi:r=2")
    descent = Descent(Search(problem.model, problem.truth, problem.law, problem.options, [loss]), 0)
    descent.run(np.array([0.1, 0.05]))
    assert np.isfinite(descent.at(0.07)["prefix"]).all()
    with pytest.raises(InputError, match="no measure of loss voronoi:r=2 = 1000 was found near the truth"):
        descent.at(1e3)


def test_what_cannot_be_reached_is_empty():
    """One atom alone has no atoms that share a cell."""
    (found,) = moduli(small(), "atoms:multi")
    assert len(found.eps) == len(found.omega) == 0 and found.kappa is None and found.exponent is None
    assert not found.degenerate


def test_the_function_is_its_own_modulus():
    (found,) = moduli(small(), "function")
    np.testing.assert_array_equal(found.eps, found.omega)
    assert found.kappa == pytest.approx(1.0) and found.exponent == pytest.approx(0.5)


def test_json_brings_it_back():
    (found,) = moduli(small(fit__atoms=2), "voronoi:r=2", eps=np.array([0.1, 0.05, 0.02]))
    told = found.to_json()
    back = Modulus.from_json(told)
    assert back.to_json() == told
    assert back.kappa == found.kappa and back.by_cells.keys() == found.by_cells.keys() == {(2,)}
    np.testing.assert_array_equal(back.measures[1]["prefix"], found.measures[1]["prefix"])
    assert {"loss", "eps", "omega", "kappa", "local_kappa", "exponent", "degenerate"} <= told.keys()


def test_points_are_led_past_the_edges_of_a_loss(few_starts):
    """Two translated gate blocks have many edges, where a point that is led coordinate by coordinate may end: the local
    exponent was 0.64 at the last of these eps."""
    p = ms.load_study("ls-quadratic-monomial").problem
    (found,) = moduli(p, "voronoi", eps=grid(loss_of(p.model, "voronoi"), 2)[:8])
    np.testing.assert_allclose(found.local_kappa[1:], 1.0, atol=0.02)


@pytest.mark.parametrize("atoms, true_atoms", [(2, 1), (3, 2), (4, 2), (5, 3), (3, 3)])
def test_assignments_are_all_ways_that_hit_every_true_atom(atoms, true_atoms):
    every = {c for c in product(range(1, atoms + 1), repeat=true_atoms) if sum(c) == atoms}
    found = list(assignments(atoms, true_atoms))
    assert set(found) == every and len(found) == len(every)


def measured(loss: str, kind: str, exponent: float | None, omega) -> str | None:
    """What is said of a claim beside such a modulus."""
    eps = np.logspace(-1, -5, 5)
    found = Modulus(loss, eps, omega(eps), [(1,)] * 5, {}, [], [1] * 5, None)
    made = {"loss": loss, "kind": kind, "window": [1e2, 1e4]} | ({} if exponent is None else {"exponent": exponent})
    (claim,) = tiny.study(claim=[made]).claims
    return predictions.agreement(claim, found)


@pytest.mark.parametrize("kind, exponent, omega, said", [
    ("upper", 0.5, lambda e: e, "sharp"),
    ("upper", 0.25, lambda e: e, "not sharp"),
    ("exact", 0.25, lambda e: e, "contradicted"),
    ("upper", 0.5, lambda e: e**2, "contradicted"),
    ("exact", 0.25, lambda e: 3 * e**2, "sharp"),
    ("lower", None, lambda e: 0 * e, "confirmed"),
    ("lower", None, lambda e: e**2, "contradicted"),
    ("upper", 0.5, lambda e: 0 * e, "contradicted"),
    ("upper", 0.5, lambda e: e * np.array([1, 2, 1, 2, 1]), "not settled"),
    ("lower", None, lambda e: e * np.array([1, 2, 1, 2, 1]), "not settled"),
    ("upper", 0.5, lambda e: e / (1 + 2 * e**0.3), "sharp"),  # kappa 1.19 at last, and falling
])  # fmt: skip
def test_claims_beside_a_modulus(kind, exponent, omega, said):
    assert measured("voronoi", kind, exponent, omega) == said


def test_the_residuals_are_those_of_the_function_loss():
    """Their norm, and the derivatives of mixtures by the chain of scores, against autodiff of the loss itself."""
    case = mixtures.MIXTURES["softmax-K2-d1-o1"]
    options = FitOptions(2, "mle", "data", 1, 1, 50.0, 50.0, 10, 0.1, 0.0, {})
    fitter = Fitter(case.model, case.truth, options)
    value, jacobian = residuals_near(Target(case.model, case.truth, case.law, most=NEAR_NODES[1]), 2)
    theta = jnp.asarray(fitter.flatten(case.truth)) + 0.01 * np.random.default_rng(0).normal(size=8)
    np.testing.assert_allclose(jacobian(theta), jax.jacfwd(value)(theta), rtol=1e-8, atol=1e-10)
    hellinger = np.linalg.norm(Target(case.model, case.truth, case.law).residuals(fitter.unflatten(theta)))
    assert np.linalg.norm(value(theta)) == pytest.approx(hellinger, rel=5e-3)  # by other nodes
