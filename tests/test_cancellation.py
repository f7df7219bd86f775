"""Orders of cancellation against Gauss rules in many digits, a modulus in many digits, and moduli of the engine."""

from __future__ import annotations

import doctest
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf
from scipy.special import roots_hermitenorm

import moe_sim as ms
from moe_sim.simulation import predictions
from moe_sim.theory import cancellation
from moe_sim.theory.cancellation import System, location_scale, order, solve
from moe_sim.theory.cone import lengths, rank_split
from moe_sim.theory.dependences import dependences


@pytest.fixture
def digits():
    with mp.workdps(60):
        yield


def gauss_rule(m: int) -> tuple[list, list]:
    """Nodes and weights of the m-node rule of N(0, 1), in the digits of ``mp``."""
    polynomials = [[mpf(1)], [mpf(0), mpf(1)]]  # He_0, He_1: coefficients from the constant on
    for k in range(1, m):
        shifted = [mpf(0), *polynomials[-1]]
        polynomials.append([c - k * b for c, b in zip(shifted, [*polynomials[-2], mpf(0), mpf(0)], strict=True)])
    value = lambda row, x: mpmath.polyval(row[::-1], x)  # noqa: E731
    nodes = mpmath.polyroots(polynomials[m][::-1], maxsteps=500, extraprec=300)
    return nodes, [mpmath.factorial(m) / (m * value(polynomials[m - 1], x)) ** 2 for x in nodes]


def moments(weights, means, variances, most: int) -> list:
    """E He_k(Y), k = 1 .. most, under a mixture of normal densities: all 0 for N(0, 1).

    Coefficients of sum_j w_j exp(mean_j s + (variance_j - 1) s^2 / 2), times k!.
    """
    every = []
    for mean, variance in zip(means, variances, strict=True):
        h = [mpf(1), mean]
        for k in range(2, most + 1):
            h.append(mean * h[-1] + (k - 1) * (variance - 1) * h[-2])
        every.append(h)
    return [mpmath.fsum(w * h[k] for w, h in zip(weights, every, strict=True)) for k in range(1, most + 1)]


@pytest.mark.parametrize("m", range(2, 9))
def test_gauss_rules_cancel_to_order_two_m(m, digits):
    """At least 2 m: with variances lowered by 1 the rule has the moments of the truth up to 2 m - 1, and lacks m! in
    the next (the error of Gauss quadrature of x^(2 m))."""
    nodes, weights = gauss_rule(m)
    found = moments(weights, nodes, [mpf(0)] * m, 2 * m)
    assert max(map(abs, found[:-1])) < mpf(10) ** -40
    assert abs(found[-1] + mpmath.factorial(m)) < mpf(10) ** -35


def test_moments_are_those_of_scipy_and_of_quadrature(digits):
    nodes, weights = gauss_rule(5)
    known, mass = roots_hermitenorm(5)
    np.testing.assert_allclose(sorted(map(float, nodes)), known, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(np.sort(np.array(weights, float)), np.sort(mass / mass.sum()), rtol=1e-12)
    mean, variance = mpf("0.3"), mpf("0.6")
    he3 = lambda y: y**3 - 3 * y  # noqa: E731
    density = lambda y: mpmath.npdf(y, mean, mpmath.sqrt(variance))  # noqa: E731
    third = mpmath.quad(lambda y: he3(y) * density(y), [-8, 0, 8])
    assert abs(moments([mpf(1)], [mean], [variance], 3)[2] - third) < mpf(10) ** -20


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("block, degree", [("mean", 1), ("variance", 2)])
def test_location_scale(m, block, degree):
    """2 m, by solutions below and none at it: at most as many zeros as m + 1 normal densities allow."""
    found = order(location_scale(), block, m, starts=30)
    assert (found.order, found.degree, found.kappa) == (2 * m, degree, 2 * m / degree)
    assert (found.below is None) == (2 * m == 2 * degree) and found.beyond.residual > 1e-3
    assert found.below is None or found.below.solved


def test_a_solution_is_one(digits):
    """Its shares and places, put into the moments: all 0 but for those that were not asked for."""
    found = solve(location_scale(), np.eye(2)[:1], 3, 5)
    means, variances = ([mpf(float(v)) for v in column] for column in found.places.T)
    told = moments([mpf(float(w)) for w in found.shares], means, [1 + v for v in variances], 6)
    assert max(map(abs, told[:5])) < 1e-10 and abs(told[5]) > 1e-3
    assert found.shares.sum() == pytest.approx(1) and found.shares.min() >= 1e-3
    assert found.shares @ found.places[:, 0] ** 2 == pytest.approx(1)


def least(eps, rng) -> mpf:
    """Least L2(1 / N(0, 1)) distance of four normal densities of any means and variances from N(0, 1), their shares
    those of the Gauss rule, where sum w mean^2 = eps^2.

    Levenberg-Marquardt steps on sixty digits from near the rule, derivatives by differences.
    """
    top, (nodes, weights) = 20, gauss_rule(4)
    scale = [mpmath.sqrt(mpmath.factorial(k)) for k in range(1, top + 1)]

    def residual(z):
        size = mpmath.sqrt(mpmath.fsum(w * x**2 for w, x in zip(weights, z[:4], strict=True)))
        found = moments(weights, [eps * x / size for x in z[:4]], [1 + eps**2 * v for v in z[4:]], top)
        return mp.matrix([r / s for r, s in zip(found, scale, strict=True)])

    z = mp.matrix([*nodes, *[mpf(-1)] * 4]) + mp.matrix([mpf(float(v)) for v in 0.02 * rng.normal(size=8)])
    r, step, damping, gained = residual(z), mpf(10) ** -25, mpf("0.001"), []
    while len(gained) < 300:
        jacobian = mp.matrix(top, 8)
        for i in range(8):
            jacobian[:, i] = (residual(z + step * mp.matrix([mpf(i == j) for j in range(8)])) - r) / step
        gram = jacobian.T * jacobian
        move = mp.lu_solve(gram + damping * mp.diag([gram[i, i] for i in range(8)]), -(jacobian.T * r))
        ahead = residual(z + move)
        better = mp.norm(ahead) < mp.norm(r)
        gained.append(1 - mp.norm(ahead) / mp.norm(r) if better else mpf(1))
        z, r = (z + move, ahead) if better else (z, r)
        damping = damping / 10 if better else 10 * damping
        if gained[-1] < mpf(10) ** -6 or damping > 1e10:
            return mp.norm(r)
    raise AssertionError("no end of the steps")


def test_the_modulus_in_a_cell_of_four_has_kappa_eight(digits):
    """In extended precision, beside the polynomial system and without it."""
    rng = np.random.default_rng(0)
    found = [least(mpf(1) / 2**k, rng) for k in (2, 3, 4)]
    slopes = [float(mpmath.log(a / b, 2)) for a, b in pairwise(found)]
    assert slopes[-1] == pytest.approx(8, abs=1e-3)
    # That of the Gauss rule: m! / sqrt((2 m)!) eps^(2 m).
    assert float(found[-1] * mpf(2) ** 32) == pytest.approx(24 / np.sqrt(40320.0), rel=1e-3)


@pytest.fixture(scope="module")
def gated() -> System:
    p = ms.load_study("gaussian-gated-over").problem
    return dependences(p.model, p.truth, p.law)


def test_softmax_gates():
    """In cells of two, as their moduli have it (test_modulus.py)."""
    p = ms.load_study("softmax-gaussian-over-2").problem
    system = dependences(p.model, p.truth, p.law)
    found = {block: order(system, block, 2, starts=20).kappa for block in system.blocks}
    assert found == {"gate_slope": 2, "intercept": 4, "slope": 2, "variance": 2}


def test_gaussian_gates(gated):
    """Means and covariances of (x, y) are a location-scale family; slope and intercept move with several of them."""
    assert gated.degrees.tolist() == [1, 1, 2, 2, 2]
    assert [next(iter(operator)) for operator in gated.operators[2:]] == [(2, 0), (1, 1), (0, 2)]
    assert order(gated, "center", 2, starts=20).kappa == 4 and order(gated, "slope", 2, starts=20).kappa == 2


def test_slopes_of_gaussian_gates_follow_in_cells_of_three(gated):
    """kappa 3, where exponents (1, 2) are published for Type I: by the Gauss rule along any line but the expert's."""
    found = order(gated, "slope", 3, starts=15)
    assert found.kappa == 3 and found.below is not None and found.below.solved


def test_a_gauss_rule_moves_slopes_of_gaussian_gates():
    """Three atoms on the line along (1, 1) from the true one, covariances lowered along it: the slope moves by eps^2,
    the density by eps^6, by a Hellinger distance that knows nothing of systems."""
    from moe_sim.losses.distances import function_distance

    p = ms.load_study("gaussian-gated-over").problem
    truth = {name: np.asarray(value)[:1] for name, value in p.truth.items()} | {"weight": np.ones(1)}
    nodes, weights = (np.array([float(v) for v in part]) for part in gauss_rule(3))
    distance = function_distance(p.model, truth, p.law)
    at = {name: np.asarray(v) for name, v in p.model.additive({k: v[0] for k, v in truth.items()}).items()}
    found, moved = [], []
    for eps in (0.2, 0.1):
        step = eps * np.sqrt(at["covariance_xx"][0])
        rows = [p.model.from_additive({
            "mean_x": at["mean_x"] + step * x, "mean_y": at["mean_y"] + step * x,
            "covariance_xx": at["covariance_xx"] - step**2, "covariance_xy": at["covariance_xy"] - step**2,
            "covariance_yy": at["covariance_yy"] - step**2,
        }) for x in nodes]  # fmt: skip
        params = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]} | {"weight": weights}
        found.append(float(distance(params)))
        moved.append(abs(float(params["slope"][0, 0] - truth["slope"][0, 0])))
    assert np.log2(found[0] / found[1]) == pytest.approx(6, abs=0.4)
    assert np.log2(moved[0] / moved[1]) == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize("name, cell, atom, words", [
    ("ls-softmax-tanh", 2, 1, "MoeRegression, no density"),
    ("input-free-over", 2, 7, "atom is 7: pass a number from 1 to 2"),
    ("input-free-over", 1, 1, "cell is 1: pass 2 or more"),
    ("softmax-multinomial-vanishing", 2, 1, "depend on each other, on first ones or on the atom itself|additive"),
    ("temperature-gaussian-exact", 2, 1, "temperature is common to all atoms and may make up"),
])  # fmt: skip
def test_bad_input(name, cell, atom, words):
    with pytest.raises(ms.InputError, match=words):
        ms.cancellation(ms.load_study(name), cell, atom)


def test_orders_of_a_study():
    found = {o.block: (o.order, o.kappa) for o in ms.cancellation(ms.load_study("input-free-known"))}
    assert found == {"intercept": (2, 2.0), "slope": (2, 2.0)}


def test_what_no_order_ends():
    """Atoms that do not count for anything hide to any order; unknown blocks are named."""
    idle = System(("mean", "idle"), ({(1,): 1.0}, {(2,): 0.0}), {"idle": np.array([[0.0, 1.0]])})
    with pytest.raises(ms.InputError, match="they hide to order 4 and further while idle moves"):
        order(idle, "idle", 2, most=4)
    with pytest.raises(ms.InputError, match="pass one of mean, variance"):
        order(location_scale(), "scale", 2)
    with pytest.raises(ms.InputError, match="no coordinate of the system moves it"):
        order(System(("mean",), ({(1,): 1.0},), {"nothing": np.zeros((1, 1))}), "nothing", 2)


def test_units_do_not_matter():
    """y in ten-thousandths: blocks are small numbers, and orders the same."""
    p = ms.load_study("input-free-over").problem
    units = {"slope": 1e-4, "intercept": 1e-4, "variance": 1e-8}
    small = {name: np.asarray(value) * units.get(name, 1.0) for name, value in p.truth.items()}
    system = dependences(p.model, small, p.law)
    assert {block: list(system.moves(block)) for block in system.blocks} == {
        "intercept": [1],
        "slope": [1],
        "variance": [2],
    }


def test_what_the_density_does_not_change_with_is_named():
    """Under one softmax gate the slope of the gate is a translation."""
    p = ms.load_study("softmax-gaussian-over-2").problem
    one = {name: np.asarray(value)[:1] for name, value in p.truth.items()}
    with pytest.raises(ms.InputError, match="the only one: the density does not change with its gate_slope"):
        dependences(p.model, one, p.law)


def test_a_coordinate_that_does_nothing_is_named():
    """A prompt that is the frozen expert: its gate tells nothing."""
    p = ms.load_study(Path(__file__).parents[1] / "studies" / "contaminated-along.toml").problem
    with pytest.raises(ms.InputError, match="does not change with its gate_slope, see moe-sim check-model"):
        dependences(p.model, p.truth, p.law)


def test_the_only_atom_of_a_joint_density():
    """More of it is no change, and its own dependences are those of any."""
    p = ms.load_study("gaussian-gated-over").problem
    one = {name: np.asarray(value)[:1] for name, value in p.truth.items()} | {"weight": np.ones(1)}
    assert dependences(p.model, one, p.law).degrees.tolist() == [1, 1, 2, 2, 2]


def test_two_outputs_have_no_coordinates_yet():
    with pytest.raises(ms.InputError, match="outputs is 2: its coordinates of cancellation are known for one output"):
        ms.GaussianGated(1, 2).additive({})


def test_columns_of_rounding_tell_nothing_apart_in_any_unit():
    columns = np.random.default_rng(0).normal(size=(9, 3)) * [1.0, 1.0, 3e-17]
    for unit in (1e-8, 1.0, 1e8, 1e12):
        assert rank_split(unit * columns)[0].shape[1] == 2
    assert lengths(np.zeros((3, 2))).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name, words", [
    ("softmax-multinomial-exact", "all its derivatives depend on second ones, as on a law of too few points"),
    ("input-free-over", "depend on each other, on first ones or on the atom itself"),
])  # fmt: skip
def test_a_law_of_few_points_is_refused(name, words):
    """It has too few functions for as many derivatives."""
    tables = ms.load_study(name).tables
    tables = tables | {"law": {"name": "grid", "low": -1.0, "high": 1.0, "points": 2}, "claim": []}
    with pytest.raises(ms.InputError, match=words):
        ms.cancellation(ms.Study(**tables))


def test_an_atom_that_cannot_be_split_is_refused():
    """Two normalised sigmoids of one slope are no multiple of one."""
    tables = ms.load_study("softmax-gaussian-exact").tables
    model = {"family": "moe", "gate": "normalised-sigmoid", "expert": "affine", "response": "gaussian"}
    with pytest.raises(ms.InputError, match="no split of it keeps the density"):
        ms.cancellation(ms.Study(**tables | {"model": model, "claim": []}))


def test_examples_of_the_docstrings_run():
    assert doctest.testmod(cancellation) == (0, 2) and doctest.testmod(predictions) == (0, 2)
