"""What the rank checker sees, against ranks by finite differences and equations between derivatives known by hand."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import mixtures
import numpy as np
import pytest
import test_two_point as two
import tiny
from scipy.stats import norm

import moe_sim as ms
from moe_sim.data.covariates import Grid
from moe_sim.models.base import Regression
from moe_sim.models.measure import MixingMeasure
from moe_sim.simulation import predictions
from moe_sim.theory.identifiability import check_model, dependences
from moe_sim.theory.influence import influences

OPTIONS = tiny.study().problem.options


class Gated(Regression):
    """Softmax gates over experts h(a x + b), or h(a x): the regressions of arXiv 2402.02952."""

    dimension = outputs = 1
    noise = 0.3
    gauge = "gate"

    def __init__(self, activation, intercept=True):
        self.activation = activation
        self.exponents = dict.fromkeys(["gate", "slope"] + ["intercept"] * intercept, (1.0, 2.0))

    def shapes(self, atoms):
        return {"bias": (atoms,)} | {name: (atoms, 1) for name in self.exponents}

    def box(self, atoms, bound, bias_bound):
        upper = {k: np.full(s, bias_bound if k == "bias" else bound) for k, s in self.shapes(atoms).items()}
        return {k: -v for k, v in upper.items()}, upper

    def measure(self, params):
        return MixingMeasure(params["bias"], {k: params[k] for k in self.exponents})

    def mean(self, params, x):
        weight = jnp.exp(params["bias"] + params["gate"] @ x)
        inside = params["slope"] @ x + (params["intercept"][:, 0] if "intercept" in params else 0.0)
        return jnp.atleast_1d(weight @ self.activation(inside) / jnp.sum(weight))


TRUTH = {
    "bias": np.array([0.2, -0.3]), "gate": np.array([[0.8], [-0.5]]), "slope": np.array([[0.9], [-1.1]]),
    "intercept": np.array([[0.4], [0.7]]),
}  # fmt: skip
LAW = Grid(1, -2.0, 2.0, 60)
HIDDEN = "d2F/d(gate)d(intercept) = dF/d(slope)"


def check(model):
    return dependences(model, {k: v for k, v in TRUTH.items() if k in model.shapes(2)}, LAW)


def test_linear_experts_hide_gates_behind_slopes():
    *_, equations = check(Gated(lambda v: v))
    assert HIDDEN in equations
    # The experts are linear in their own parameters, so those second derivatives are nothing.
    assert {f"d2F/d({a})2 = 0" for a in ("slope", "intercept")} <= set(equations)


def test_translations_of_gates_are_no_flat_direction():
    model = Gated(jnp.tanh, intercept=False)
    truth = {k: v for k, v in TRUTH.items() if k in model.shapes(2)}
    (exact,) = check_model(model, truth, LAW, replace(OPTIONS, atoms=2)).tangents
    assert (exact.parameters, exact.rank, exact.trivial) == (6, 4, 2)
    assert exact.flat == [] and exact.curvature is None


CURVED = pytest.mark.parametrize("activation", [jnp.tanh, lambda v: jnp.tanh(v) ** 2 + v**3], ids=["tanh", "other"])


@CURVED
def test_curved_experts_hide_nothing(activation):
    functions, rank, kept, dropped, equations = check(Gated(activation, intercept=False))
    assert equations == [] and rank == functions and kept > 1e-6 and dropped == 0


@CURVED
def test_an_intercept_within_any_expert_hides_the_gate(activation):
    """d/dg d/db of e^(g x) h(a x + b) is x e^(g x) h'(a x + b), and so is its derivative in a: whatever h is."""
    *_, equations = check(Gated(activation))
    assert equations == [HIDDEN]


def test_the_equations_of_softmax_gaussian_experts():
    """From numbers alone; the third is the first two at once."""
    found = check_model(*(getattr(ms.load_study("softmax-gaussian-exact").problem, k) for k in PARTS))
    assert sorted(found.equations) == [
        "d2F/d(gate_slope)d(intercept) = dF/d(slope)",
        "d2F/d(intercept)2 = 2 dF/d(variance)",
        "d2F/d(intercept)d(slope) = 2 d2F/d(gate_slope)d(variance)",
    ]
    assert not found.strong and found.rank == found.functions - 6  # of each of two atoms
    assert found.kept > 1e3 * found.dropped


PARTS = ("model", "truth", "law", "options")


def test_the_equations_hold():
    """By finite differences of e^(g x) N(y; a x + b, v)."""

    def F(g, a, b, v, x=0.7, y=0.3):
        return np.exp(g * x) * norm(a * x + b, np.sqrt(v)).pdf(y)

    at, h = np.array([0.4, 1.1, -0.2, 0.5]), 1e-3
    g, a, b, v = np.eye(4) * h

    def slope(d):
        return (F(*(at + d)) - F(*(at - d))) / (2 * h)

    def curve(d, e):
        return sum(s * t * F(*(at + s * d + t * e)) for s in (1, -1) for t in (1, -1)) / (4 * h**2)

    assert curve(g, b) == pytest.approx(slope(a), rel=1e-4)
    assert curve(b, b) == pytest.approx(2 * slope(v), rel=1e-4)
    assert curve(b, a) == pytest.approx(2 * curve(g, v), rel=1e-4)


def test_gaussian_gates_hide_the_same_and_their_own():
    """The centre of a normal gate: its second derivative is twice that in its covariance (heat equation)."""
    case = mixtures.MIXTURES["gated-K2-d1-o1"]
    *_, equations = dependences(case.model, case.truth, case.law)
    assert "d2F/d(intercept)2 = 2 dF/d(variance)" in equations
    assert "d2F/d(center)2 = 2 dF/d(covariance)" in equations


def test_shared_networks_are_strongly_identifiable():
    found = predictions.check_model(ms.load_study("prefix-shared-network-over"))
    assert found.strong and found.rank == found.functions
    assert not any(t.flat for t in found.tangents)


def test_shared_linear_prefixes_are_strongly_identifiable():
    found = predictions.check_model(ms.Study(**two.shared("shared-linear")))
    assert found.strong
    exact, *covers = found.tangents
    assert exact.cells == [1, 1] and exact.rank == exact.parameters == 6 and exact.null == []
    for cover in covers:  # two atoms on one: mass may be shared anew, and both moved against each other
        assert (cover.parameters, cover.rank, cover.trivial) == (9, 6, 1)
        assert cover.flat == [] and cover.curvature > 1e-4


def numerical_rank(tables, owner) -> int:
    """Rank of the Jacobian at the cover of the truth, by central differences of ``test_two_point.function``."""
    bias, key, value = (np.asarray(tables["truth"][k])[list(owner)] for k in ("bias", "key", "value"))
    bias = bias - np.log(np.bincount(owner)[list(owner)])
    flat = np.concatenate([bias, key.ravel(), value.ravel()])
    points = two.grid(tables)[::5]

    def at(theta):
        L = len(owner)
        parts = theta[:L], theta[L : 3 * L].reshape(L, 2), theta[3 * L :].reshape(L, 2)
        return two.function(tables, *parts, points).ravel()

    h = 1e-4
    columns = [(at(flat + h * e) - at(flat - h * e)) / (2 * h) for e in np.eye(len(flat))]
    singular = np.linalg.svd(np.stack(columns, axis=1), compute_uv=False)
    return int(np.sum(singular > 1e-6 * singular[0]))


def test_free_keys_and_values_have_a_flat_direction():
    tables = two.independent()
    found = predictions.check_model(ms.Study(**tables))
    for tangent in found.tangents:
        owner = np.repeat([0, 1], tangent.cells)
        assert tangent.rank == numerical_rank(tables, owner)
        assert tangent.parameters == 5 * len(owner)
    assert found.tangents[0].flat == [] and found.tangents[0].rank == found.tangents[0].parameters
    # Values of the two atoms on one true prefix moved apart: both coordinates.
    assert found.tangents[1].flat == [f"value[0,{k}] - value[1,{k}]" for k in (0, 1)]
    assert found.tangents[2].flat == [f"value[1,{k}] - value[2,{k}]" for k in (0, 1)]
    assert not found.strong  # the output is linear in the value
    assert "d2F/d(value[0])2 = 0" in found.equations


def test_softmax_gates_with_twice_the_atoms_are_flat():
    case = mixtures.MIXTURES["softmax-K2-d1-o1"]
    options = replace(OPTIONS, atoms=4, estimator="mle", bound=50.0, bias_bound=50.0)
    found = check_model(case.model, case.truth, case.law, options)
    (both,) = [t for t in found.tangents if t.cells == [2, 2]]
    # Gates of one half of each pair moved alike: (1 + e^(t x)) / 2 is common to all gates. So for the other halves, up
    # to a translation.
    assert both.flat == ["gate_slope[0,0] + gate_slope[2,0]", "gate_slope[1,0] + gate_slope[2,0]"]
    assert not any(t.flat for t in found.tangents if t is not both)


def test_a_truth_on_the_edge_of_the_box():
    """One way there is no room to look along a null direction, the other way there is."""
    found = predictions.check_model(tiny.study(fit__atoms=2, fit__bound=1.0))
    assert found.strong and all(t.flat == [] for t in found.tangents)


def test_influences_are_derivatives_of_the_function():
    """psi, dpsi and d2psi of the tiny study, by differences of f with a little mass put at eta."""
    problem = tiny.study().problem
    ((psi, slope, curve),) = influences(problem.model, problem.truth, problem.law)
    x = np.linspace(-2.0, 2.0, 10)

    def added(eta, mass=1e-6):
        def f(extra):
            logits = np.stack([0.1 * x**2, 0.2 + x, np.log(extra) + eta * x])
            output = np.stack([np.tanh(0.8 * x), np.ones_like(x), eta * np.ones_like(x)])
            return np.sum(np.exp(logits) * output, axis=0) / np.sum(np.exp(logits), axis=0)

        return (f(mass) - f(1e-12)) / (mass - 1e-12)

    unit = np.sqrt(1 / 10) / 0.3
    h = 1e-2
    np.testing.assert_allclose(psi, unit * added(1.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope[:, 0], unit * (added(1 + h) - added(1 - h)) / (2 * h), rtol=1e-3, atol=1e-4)
    second = (added(1 + h) - 2 * added(1.0) + added(1 - h)) / h**2
    np.testing.assert_allclose(curve[:, 0, 0], unit * second, rtol=1e-3, atol=1e-3)


def test_json_is_complete():
    found = predictions.check_model(tiny.study(fit__atoms=2)).to_json()
    assert [t["cells"] for t in found["tangents"]] == [[1], [2]]
    assert found["strong"]["identifiable"] is True and found["strong"]["equations"] == []
