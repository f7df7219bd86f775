"""Other measures with the function of the truth, against functions written out here in NumPy and identities by hand."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import moe_sim as ms
from moe_sim.models.experts import EXPERTS
from moe_sim.models.gates import GATES, Gate, length
from moe_sim.models.moe import MoeDensity, MoeRegression
from moe_sim.models.parameter import Parameter
from moe_sim.models.responses import Gaussian, Multinomial
from moe_sim.theory.closure import closures
from moe_sim.theory.curves import Followed, group_of
from moe_sim.theory.second_order import second_order

LAW = ms.Grid(1, -2.0, 2.0, 24)
OPTIONS = replace(tiny.study().problem.options, bound=6.0, bias_bound=3.0)
SOFTMAX = {"gate_bias": np.array([0.2, 0.0]), "gate_slope": np.array([[1.5], [0.0]])}
EXPERTS_OF = {"slope": np.array([[2.0], [-1.5]]), "intercept": np.array([0.5, -0.3])}
FUNCTIONS = {
    "affine": lambda z: z, "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "power": np.square,
}  # fmt: skip


def regression(expert, gate="softmax", dimension=1, **options):
    return MoeRegression(GATES[gate](), EXPERTS[expert](**options), 0.3, dimension)


def found_in(model, truth, atoms, law=LAW):
    return closures(model, truth, law, replace(OPTIONS, atoms={"atoms": atoms}, estimator=model.estimators[0]))


def softmax_mean(params, x, function):
    """f of softmax-gated experts at x (n,), in NumPy."""
    logits = params["gate_bias"] + np.multiply.outer(x, np.asarray(params["gate_slope"])[:, 0])
    weight = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    inside = np.multiply.outer(x, np.asarray(params["slope"])[:, 0]) + params.get("intercept", 0.0)
    return np.sum(weight * function(inside), axis=1)


class TestSplittings:
    @pytest.mark.parametrize("expert", ["affine", "relu", "power"])
    def test_experts_that_can_be_split(self, expert):
        """w h(e1) + (1 - w) h(e2) = h(e) at points that the search has not seen."""
        found = [c for c in found_in(regression(expert), SOFTMAX | EXPERTS_OF, 3) if c.kind == "splitting"]
        assert [c.atoms for c in found] == [[1], [2]]
        x = np.random.default_rng(0).uniform(-2, 2, 50)
        x = x[np.abs(2 * x + 0.5) > 0.3]  # kinks of the parts of a split expert lie beside each other
        for c in found:
            seen = x[np.abs(1.5 * x + 0.3) > 0.3]
            gap = softmax_mean(c.measure, seen, FUNCTIONS[expert]) - softmax_mean(
                SOFTMAX | EXPERTS_OF, seen, FUNCTIONS[expert]
            )
            assert np.max(np.abs(gap)) < 1e-10 and c.difference < 1e-12
            assert set(c.blocks) <= {"slope", "intercept"} and "with one gate" in c.text and c.loss > 1e-3

    def test_experts_that_cannot(self):
        assert found_in(regression("tanh"), SOFTMAX | EXPERTS_OF, 3) == []
        assert found_in(regression("affine"), SOFTMAX | EXPERTS_OF, 2) == []  # without a spare atom

    def test_an_expert_of_labels_that_x_does_not_move(self):
        """S(0.5) = w S(c1) + (1 - w) S(c2) has a curve of solutions."""
        model = MoeDensity(GATES["softmax"](), EXPERTS["affine"](), Multinomial(2), 1)
        truth = SOFTMAX | {"slope": np.array([[0.0], [-1.5]]), "intercept": np.array([0.5, -1.0])}
        (c,) = found_in(model, truth, 3)
        weight, chance = np.exp(c.measure["gate_bias"][:2]), 1 / (1 + np.exp(-c.measure["intercept"][:2]))
        assert weight @ chance / weight.sum() == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)
        assert (c.kind, c.atoms, c.dimension) == ("splitting", [1], 2) and "intercept" in c.blocks


def test_twice_as_many_atoms():
    (c,) = found_in(regression("tanh", bias=False), SOFTMAX | {"slope": EXPERTS_OF["slope"]}, 4)
    assert (c.kind, c.blocks) == ("doubling", ["gate_slope"])
    x = np.linspace(-3, 3, 40)
    one, other = (
        softmax_mean(p, x, np.tanh) for p in (c.measure, SOFTMAX | {"slope": EXPERTS_OF["slope"], "intercept": 0.0})
    )
    np.testing.assert_allclose(one, other, atol=1e-13)


@pytest.mark.parametrize("expert, bias", [("tanh", True), ("gelu", False)])
def test_an_atom_that_counts_for_nothing(expert, bias):
    """Under gates that are not normalised an expert that is zero has any gate: tanh(0) = 0."""
    truth = {"gate_bias": np.array([0.5, -0.3]), "gate_slope": np.array([[0.0], [1.5]]), **EXPERTS_OF}
    truth = truth if bias else {k: v for k, v in truth.items() if k != "intercept"}
    (c,) = found_in(regression(expert, "sigmoid", bias=bias), truth, 3)
    assert c.kind == "mute" and "counts for nothing" in c.text and c.loss > 0.1 and "gate_slope" in c.blocks
    assert np.max(np.abs(c.measure["slope"][1])) < 1e-6 and abs(c.measure["gate_slope"][1, 0]) > 1e-3
    # Normalised it takes weight from the others.
    assert not [c for c in found_in(regression(expert, bias=bias), truth, 3) if c.kind == "mute"]


class TestGauges:
    def test_a_centre_outside_the_support_is_a_bias(self):
        """exp(-|x - W|) = exp(W) exp(-x) for all x > W."""
        model = MoeRegression(GATES["laplace"](), EXPERTS["tanh"](), 0.3, 1)
        truth = EXPERTS_OF | {"gate_bias": np.array([0.2, 0.0]), "gate_center": np.array([[-2.5], [0.4]])}
        (c,) = found_in(model, truth, 2)
        assert (c.kind, c.text) == ("gauge", "t -> gate_bias[0] + t, gate_center[0,0] - t")

    def test_a_scale_that_a_model_does_not_declare(self):
        """softmax(u / temperature) is what it was where u and temperature are multiplied."""

        class Undeclared(Gate):
            linear = True

            def parameters(self, dimension):
                return GATES["temperature"]().parameters(dimension)

            def log_weights(self, params, x):
                return GATES["temperature"]().log_weights(params, x)

        truth = {"gate_bias": np.array([0.4, 0.0]), "gate_slope": np.array([[3.0], [0.0]]), "temperature": 2.0}
        (c,) = found_in(MoeRegression(Undeclared(), EXPERTS["tanh"](), 0.3, 1), truth | EXPERTS_OF, 2)
        assert c.text in (
            "t -> gate_bias[0] exp(t), gate_slope[0,0] exp(t), log_temperature + t",
            "t -> gate_bias[0] exp(-t), gate_slope[0,0] exp(-t), log_temperature - t",
        )
        assert set(c.blocks) >= {"gate_slope", "temperature"}
        # Declared it is none.
        declared = MoeRegression(GATES["temperature"](), EXPERTS["tanh"](), 0.3, 1)
        assert found_in(declared, truth | EXPERTS_OF, 2) == []

    def test_an_affine_expert_whose_sigmoid_gate_is_flat(self):
        """S(b) (a x + c) stays where a and c are divided by what S(b) is multiplied with."""
        truth = EXPERTS_OF | {"gate_bias": np.array([0.5, -0.3]), "gate_slope": np.array([[0.0], [1.5]])}
        found = [c for c in found_in(regression("affine", "sigmoid"), truth, 2) if c.kind == "gauge"]
        (c,) = found
        mass = 1 / (1 + np.exp(-c.measure["gate_bias"][0]))
        assert mass * c.measure["slope"][0, 0] == pytest.approx(2.0 / (1 + np.exp(-0.5)), rel=1e-9)
        # 1 / S(b - t) = 1 + exp(-b) exp(t)
        still = 2.0 / (1 + np.exp(-0.5))
        assert f"(slope[0,0] - {still:.4g}) exp(t) + {still:.4g}" in c.text and "gate_bias[0] - t" in c.text

    def test_groups_along_curves(self):
        t = np.linspace(0.1, 1.0, 12)[:, None]
        path = np.hstack([3 * np.exp(2 * t), 1 - t, 5 + 0 * t])
        tangents = np.hstack([6 * np.exp(2 * t), -np.ones_like(t), 0 * t]) * np.cos(t)  # at any speed
        told = group_of(Followed(path, tangents, False), ["a", "b", "c"])
        assert told in ("a exp(t), b - 0.5 t", "a exp(-t), b + 0.5 t")
        circle = np.hstack([np.cos(t), np.sin(t), 0 * t]), np.hstack([-np.sin(t), np.cos(t), 0 * t])
        assert group_of(Followed(*circle, False), ["a", "b", "c"]) is None  # coordinates mix
        shifted = np.hstack([1 + np.exp(t), 0 * t]), np.hstack([np.exp(t), 0 * t])
        assert group_of(Followed(*shifted, False), ["a", "b"]) == "a + t"


class TestElsewhere:
    PLANE = ms.Grid(2, -2.0, 2.0, 6)
    ROUTED = {  # noqa: RUF012 (never changed)
        "gate_bias": np.array([0.3, 0.0]), "gate_slope": np.array([[2.0, 1.0], [-1.0, 1.5]]),
        "slope": np.array([[1.5, 0.5], [-1.0, 1.2]]),
    }  # fmt: skip

    def test_a_square_has_no_sign(self):
        found = [c for c in found_in(regression("power"), SOFTMAX | EXPERTS_OF, 2) if c.kind == "symmetry"]
        (c,) = found
        np.testing.assert_allclose(c.measure["slope"] ** 2, EXPERTS_OF["slope"] ** 2, atol=1e-9)
        np.testing.assert_allclose(c.measure["intercept"] ** 2, EXPERTS_OF["intercept"] ** 2, atol=1e-9)

    def test_two_directions_are_seen_by_their_difference_alone(self):
        """Two cosine gates in the plane: unit vectors u1 - u2 = v has two solutions, reflected at v."""
        (c,) = found_in(regression("tanh", "cosine", 2, bias=False), self.ROUTED, 2, self.PLANE)
        one, other = (
            np.asarray(p["gate_slope"]) / np.linalg.norm(p["gate_slope"], axis=1)[:, None]
            for p in (self.ROUTED, c.measure)
        )
        np.testing.assert_allclose(one[0] - one[1], other[0] - other[1], atol=1e-9)
        assert c.kind == "symmetry" and np.linalg.norm(one - other) > 0.5

    def test_perturbed_directions_may_be_translated(self):
        """Logits are linear in v = b / (||b|| + t1), which softmax sees up to a common translation."""
        found = found_in(regression("tanh", "perturbed-cosine", 2, bias=False), self.ROUTED, 2, self.PLANE)
        assert len(found) == 2
        v = [
            b / (np.linalg.norm(b, axis=1)[:, None] + 0.5)
            for b in (self.ROUTED["gate_slope"], found[0].measure["gate_slope"])
        ]
        np.testing.assert_allclose(v[0][0] - v[0][1], v[1][0] - v[1][1], atol=1e-9)
        assert all(c.kind == "gauge" and c.blocks == ["gate_slope"] for c in found)


class TestSecondOrder:
    def test_against_finite_differences(self):
        """psi = e^u(x) (h(x) - f(x)) / sum e^u*, its derivatives by differences, a brute search of directions."""
        (one, two) = second_order(regression("tanh"), SOFTMAX | EXPERTS_OF, LAW)
        x = np.linspace(-2, 2, 24)
        atoms = [np.array([1.5, 2.0, 0.5]), np.array([0.0, -1.5, -0.3])]
        gates = [np.exp(a[0] * x + b) for a, b in zip(atoms, (0.2, 0.0), strict=True)]
        f = sum(g * np.tanh(a[1] * x + a[2]) for g, a in zip(gates, atoms, strict=True)) / sum(gates)

        def psi(a):
            return np.exp(a[0] * x) * (np.tanh(a[1] * x + a[2]) - f) / sum(gates)

        e = np.eye(3) * 1e-3
        first = [(psi(a + d) - psi(a - d)) / 2e-3 for a in atoms for d in e]
        left, size, _ = np.linalg.svd(np.stack([*map(psi, atoms), *first], axis=1), full_matrices=False)
        span = left[:, size > 1e-6 * size[0]]  # a translation of gates is no change
        for a, found in zip(atoms, (one, two), strict=True):
            u = np.random.default_rng(0).normal(size=(40_000, 3))
            second = np.array([
                [(psi(a + d + k) - psi(a + d - k) - psi(a - d + k) + psi(a - d - k)) / 4e-6 for d in e] for k in e
            ])  # fmt: skip
            q = np.einsum("si,sj,ijn->sn", u, u, second)
            rest = q - (q @ span) @ span.T
            brute = np.min(np.linalg.norm(rest, axis=1) / np.linalg.norm(q, axis=1))
            assert 0.5 * brute < found.least <= 1.01 * brute and not found.hides

    def test_what_hides(self):
        affine = second_order(regression("affine"), SOFTMAX | EXPERTS_OF, LAW)
        assert all(s.hides for s in affine)
        model = MoeDensity(GATES["constant"](), EXPERTS["affine"](), Gaussian(), 1)
        truth = EXPERTS_OF | {"weight": np.array([0.4, 0.6]), "variance": np.array([0.25, 0.5])}
        hidden = second_order(model, truth, LAW)  # d2F/d(intercept)2 = 2 dF/d(variance)
        assert all(s.hides and s.direction.strip("-") == "intercept" for s in hidden)
        known = MoeDensity(GATES["constant"](), EXPERTS["affine"](), Gaussian(0.25), 1)
        assert not any(s.hides for s in second_order(known, EXPERTS_OF | {"weight": np.array([0.4, 0.6])}, LAW))

    def test_quadratic_gates_hide_their_slopes(self):
        """d2/d(gate_slope)2 = d/d(gate_matrix), both x^2 psi: whatever the expert is."""
        truth = SOFTMAX | EXPERTS_OF | {"gate_matrix": np.array([[1.0], [0.0]])}
        found = second_order(regression("tanh", "quadratic"), truth, LAW)
        assert all(s.hides and s.direction.strip("-") == "gate_slope" for s in found)
        monomial = MoeRegression(GATES["quadratic"](monomial=True), EXPERTS["tanh"](), 0.3, 1)
        truth = {k: v for k, v in truth.items() if k != "gate_slope"}
        assert not any(s.hides for s in second_order(monomial, truth, LAW))


class TestNormalisedSigmoid:
    """S(u_i) / sum_j S(u_j) where one gate is flat, three atoms for two (arXiv 2505.10860, sparse regime)."""

    TRUTH = {"gate_bias": np.array([-0.5, 0.5]), "gate_slope": np.array([[0.0], [1.5]])} | EXPERTS_OF

    def mean(self, params, x):
        logit = params["gate_bias"] + np.multiply.outer(x, params["gate_slope"][:, 0])
        weight = 1 / (1 + np.exp(-logit))
        expert = np.tanh(np.multiply.outer(x, params["slope"][:, 0]) + params["intercept"])
        return np.sum(weight * expert, axis=1) / np.sum(weight, axis=1)

    def rows(self, bias, slope, of):
        of = np.array(of)
        experts = {name: np.asarray(value)[of] for name, value in EXPERTS_OF.items()}
        return {"gate_bias": np.array(bias), "gate_slope": np.array(slope)[:, None], **experts}

    def test_two_measures_by_hand(self):
        """With s = S(b1): both masses doubled, by a copy and, as s < 1/2, by another flat gate. As S(-v) = 1 - S(v),
        S(-v) + s = (s + (1 + s) exp(-v)) S(v), which is s (1 + exp(-u)) S(v) at v = u + log((1 + s) / s)."""
        x = np.linspace(-2, 2, 41)
        s = 1 / (1 + np.exp(0.5))
        double = self.rows([np.log(2 * s / (1 - 2 * s)), 0.5, 0.5], [0.0, 1.5, 1.5], [0, 1, 1])
        shift = np.log((1 + s) / s)
        mirrored = self.rows([-0.5, -0.5 - shift, 0.5 + shift], [0.0, -1.5, 1.5], [0, 0, 1])
        for other in (double, mirrored):
            np.testing.assert_allclose(self.mean(other, x), self.mean(self.TRUTH, x), rtol=0, atol=1e-14)

    def test_one_is_found(self):
        (found,) = found_in(regression("tanh", "normalised-sigmoid"), self.TRUTH, 3)
        assert found.kind == "symmetry" and found.loss > 0.5 and found.difference < 1e-12
        x = np.random.default_rng(0).uniform(-2, 2, 50)
        measure = {name: np.asarray(value) for name, value in found.measure.items()}
        np.testing.assert_allclose(self.mean(measure, x), self.mean(self.TRUTH, x), rtol=0, atol=1e-10)

    def test_as_many_atoms_as_true_and_softmax_gates_have_none(self):
        assert found_in(regression("tanh", "normalised-sigmoid"), self.TRUTH, 2) == []
        assert found_in(regression("tanh"), SOFTMAX | EXPERTS_OF, 3) == []


def test_a_user_written_gate_is_asked_alike():
    """Nothing knows names: a gate on tanh x, experts that x does not move, are split like any other."""

    class OnTanh(Gate):
        def parameters(self, dimension):
            return {"bias": Parameter((), ms.GATE, "bias_bound"), "pull": Parameter((dimension,), ms.GATE)}

        mass = "bias"

        def log_weights(self, params, x):
            u = params["bias"] + params["pull"] @ jnp.tanh(x) + 0.0 * length(x)
            return u - jnp.log(jnp.sum(jnp.exp(u)))

    truth = {"bias": np.array([0.2, 0.0]), "pull": np.array([[1.5], [0.0]]), "intercept": np.array([0.5, -1.0])}
    found = found_in(MoeRegression(OnTanh(), EXPERTS["constant"](), 0.3, 1), truth, 3)
    assert [(c.kind, c.blocks) for c in found] == [("splitting", ["intercept"])] * 2
    found = found_in(MoeRegression(OnTanh(), EXPERTS["constant"](), 0.3, 1), truth, 4)
    assert [(c.kind, c.blocks) for c in found[2:]] == [("doubling", ["pull"])]
