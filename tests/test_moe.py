"""Mixtures composed of parts: each part against plain numpy, the models against what they promise, small studies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, logsumexp

import moe_sim as ms
from moe_sim.data.quadrature import log_densities
from moe_sim.data.samples import stored
from moe_sim.likelihood import objective
from moe_sim.losses.distances import Target
from moe_sim.losses.voronoi import loss_of
from moe_sim.models import combinators, experts, gates, moe, responses
from moe_sim.models.gaussian_gated import GaussianGated
from moe_sim.models.support import Real

RANGE = (1e-3, 1e2)
FALSE_ALARM = 1e-4  # of each comparison of draws with their law, at a fixed seed


class GateCase(NamedTuple):
    gate: gates.Gate
    naive: Callable  # (params, atom i, x) -> logit of a softmax, or a weight where it is not normalised


def _dot(a, b):
    return sum(u * v for u, v in zip(a, b, strict=True))


def _norm(v):
    return math.sqrt(_dot(v, v))


def _linear(p, i, x):
    return p["gate_bias"][i] + _dot(p["gate_slope"][i], x)


def _quadratic(p, i, x):
    pairs = [(a, b) for a in range(len(x)) for b in range(a, len(x))]
    return sum(m * x[a] * x[b] for m, (a, b) in zip(p["gate_matrix"][i], pairs, strict=True))


def _cosine(p, i, x, t1=0.0, t2=0.0):
    slope = p["gate_slope"][i]
    return p["gate_bias"][i] + _dot(slope, x) / ((_norm(slope) + t1) * (_norm(x) + t2))


def _top_2(p, i, x):
    u = [_linear(p, j, x) for j in range(len(p["gate_bias"]))]
    return u[i] if sum(v > u[i] for v in u) < 2 else -math.inf


GATES = {
    "softmax": GateCase(gates.Softmax(), _linear),
    "sigmoid": GateCase(gates.Sigmoid(), lambda p, i, x: 1 / (1 + math.exp(-_linear(p, i, x)))),
    "normalised-sigmoid": GateCase(gates.NormalisedSigmoid(), lambda p, i, x: math.log(expit(_linear(p, i, x)))),
    "laplace": GateCase(gates.Laplace(), lambda p, i, x: p["gate_bias"][i] - _norm(x - p["gate_center"][i])),
    "cosine": GateCase(gates.Cosine(), _cosine),
    "perturbed-cosine": GateCase(gates.PerturbedCosine(0.3, 0.7), lambda p, i, x: _cosine(p, i, x, 0.3, 0.7)),
    "quadratic": GateCase(gates.Quadratic(), lambda p, i, x: _linear(p, i, x) + _quadratic(p, i, x)),
    "monomial": GateCase(gates.Quadratic(monomial=True), lambda p, i, x: p["gate_bias"][i] + _quadratic(p, i, x)),
    "temperature": GateCase(gates.Temperature(), lambda p, i, x: _linear(p, i, x) / p["temperature"]),
    "activated-temperature": GateCase(
        gates.ActivatedTemperature(),
        lambda p, i, x: (math.tanh(_dot(p["gate_slope"][i], x)) + p["gate_bias"][i]) / p["temperature"],
    ),
    "top-k": GateCase(gates.TopK(2), _top_2),
    "constant": GateCase(gates.Constant(), lambda p, i, x: math.log(p["weight"][i])),
    "gaussian": GateCase(
        gates.Gaussian(),
        lambda p, i, x: p["weight"][i] * stats.multivariate_normal(p["center"][i], p["covariance"][i]).pdf(x),
    ),
}


def some(declared, atoms: int, rng) -> dict:
    """Random parameters in their domains."""
    found = {}
    for name, p in declared.items():
        shape = p.shape if p.shared else (atoms, *p.shape)
        value = rng.normal(size=shape)
        if name.endswith("weight"):
            value = rng.dirichlet(np.full(atoms, 5.0))
        elif name.endswith("covariance"):
            value = value @ np.swapaxes(value, 1, 2) + 0.3 * np.eye(p.shape[0])
        elif name.endswith(("variance", "temperature")):
            value = 0.3 + rng.random(shape)
        found[name] = value
    return found


def naive_weights(case: GateCase, params, x) -> np.ndarray:
    found = np.array([case.naive(params, i, x) for i in range(len(params[case.gate.mass]))])
    plain = not case.gate.normalised or case.gate.joint
    return found if plain else np.exp(found - logsumexp(found))


def weights(gate, params, x) -> np.ndarray:
    return np.exp(np.asarray(gate.log_weights(params, jnp.asarray(x))))


every_gate = pytest.mark.parametrize("name", GATES)


@every_gate
@pytest.mark.parametrize("dimension", [1, 3])
def test_gate_is_what_plain_numpy_says(name, dimension):
    case, rng = GATES[name], np.random.default_rng(dimension)
    params, order = some(case.gate.parameters(dimension), 4, rng), np.array([2, 0, 3, 1])
    rows = {k: v if k == "temperature" else v[order] for k, v in params.items()}
    for x in rng.normal(size=(3, dimension)):
        found = weights(case.gate, params, x)
        np.testing.assert_allclose(found, naive_weights(case, params, x), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(weights(case.gate, rows, x), found[order], rtol=1e-12)
        assert case.gate.joint or not case.gate.normalised or abs(found.sum() - 1) < 1e-12


@every_gate
def test_gate_has_its_gauge_and_canonical_representative(name):
    gate, rng = GATES[name].gate, np.random.default_rng(1)
    params, x = some(gate.parameters(2), 3, rng), rng.normal(size=2)
    known = {"softmax": "gate_slope", "laplace": "", "cosine": "", "perturbed-cosine": "", "temperature": "gate_slope",
             "activated-temperature": "",
             "quadratic": "gate_slope+gate_matrix", "monomial": "gate_matrix", "top-k": "gate_slope"}  # fmt: skip
    assert gate.gauge == known.get(name)
    moved = dict(params)
    blocks = [] if gate.gauge is None else [gate.mass, *filter(None, gate.gauge.split("+"))]
    moved |= {block: params[block] + rng.normal(size=params[block].shape[1:]) for block in blocks}
    np.testing.assert_allclose(weights(gate, moved, x), weights(gate, params, x), rtol=1e-11)
    once = gate.canonical(params)
    np.testing.assert_allclose(weights(gate, once, x), weights(gate, params, x), rtol=1e-12)
    if name in ("temperature", "cosine"):
        scaled = {k: 3.0 * v if name == "temperature" or k == "gate_slope" else v for k, v in params.items()}
        np.testing.assert_allclose(weights(gate, scaled, x), weights(gate, params, x), rtol=1e-12)
        for k, v in gate.canonical(scaled).items():
            np.testing.assert_allclose(v, once[k], rtol=1e-12)


def test_an_activation_takes_the_gauge_of_scale_away():
    declared = {name: moe.Composed(GATES[name].gate, experts.Tanh(), responses.LeastSquares(), 1)
                for name in ("temperature", "activated-temperature")}  # fmt: skip
    assert {name: model.has_canonical for name, model in declared.items()} == {
        "temperature": True, "activated-temperature": False,
    }  # fmt: skip


@every_gate
def test_copies_of_an_atom_share_its_weight(name):
    gate, rng = GATES[name].gate, np.random.default_rng(2)
    params = some(gate.parameters(2), 3, rng)
    if "sigmoid" in name:
        assert not gate.divisible(params).any()
        params["gate_slope"][0] = 0.0
    expected = {"sigmoid": [1, 0, 0], "normalised-sigmoid": [1, 0, 0], "top-k": [0, 0, 0]}
    assert gate.divisible(params).tolist() == expected.get(name, [1, 1, 1])
    if name == "top-k":
        return
    model = moe.Composed(gate, experts.Affine(), responses.LeastSquares(), 2)
    params |= some(model.expert_parameters(), 3, rng)
    atoms = np.array([0, 0, 1, 2, 0])
    copies, x = model.overfit(params, atoms), rng.normal(size=2)
    found = np.bincount(atoms, weights(gate, copies, x))
    np.testing.assert_allclose(found, weights(gate, params, x), rtol=1e-12)
    if name != "temperature":  # whose masses are those of the canonical representative
        mass = np.exp(model.log_weight(params))
        np.testing.assert_allclose(np.bincount(atoms, np.exp(model.log_weight(copies))), mass, rtol=1e-12)


@every_gate
def test_gradients_of_gates_are_finite_where_norms_are_not_smooth(name):
    gate, rng = GATES[name].gate, np.random.default_rng(3)
    params = some(gate.parameters(2), 3, rng)
    for block in ("gate_slope", "gate_center"):
        if block in params:
            params[block][0] = 0.0
    found = jax.jacobian(lambda p: jnp.exp(gate.log_weights(p, jnp.zeros(2))))(params)
    assert all(np.isfinite(v).all() for v in found.values())


def _z(p, x, j):
    slope, intercept = np.atleast_2d(p["slope"]), np.atleast_1d(p.get("intercept", np.zeros(len(x))))
    return _dot(slope[j], x) + (intercept[j] if "intercept" in p else 0.0)


EXPERTS = {
    "affine": (experts.Affine(), lambda p, x, j: _z(p, x, j)),
    "constant": (experts.Constant(), lambda p, x, j: np.atleast_1d(p["intercept"])[j]),
    "tanh": (experts.Tanh(), lambda p, x, j: math.tanh(_z(p, x, j))),
    "tanh-outer": (experts.Tanh(outer=True), lambda p, x, j: np.atleast_1d(p["outer"])[j] * math.tanh(_z(p, x, j))),
    "gelu": (experts.Gelu(bias=False), lambda p, x, j: _z(p, x, j) * stats.norm.cdf(_z(p, x, j))),
    "relu": (experts.Relu(), lambda p, x, j: max(_z(p, x, j), 0.0)),
    "relu-outer": (experts.Relu(outer=True), lambda p, x, j: np.atleast_1d(p["outer"])[j] * max(_z(p, x, j), 0.0)),
    "power": (experts.Power(3), lambda p, x, j: _z(p, x, j) ** 3),
    "power-outer": (
        experts.Power(2, bias=False, outer=True),
        lambda p, x, j: np.atleast_1d(p["outer"])[j] * _z(p, x, j) ** 2,
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_expert_is_what_plain_numpy_says(name, outputs):
    (expert, naive), rng = EXPERTS[name], np.random.default_rng(outputs)
    atom = {k: rng.normal(size=p.shape) for k, p in expert.parameters(3, outputs).items()}
    canonical = expert.canonical({k: v[None] for k, v in atom.items()})
    for x in rng.normal(size=(4, 3)):
        expected = [naive(atom, x, j) for j in range(outputs)]
        np.testing.assert_allclose(expert.value(atom, jnp.asarray(x)), expected, rtol=1e-12, atol=1e-15)
        again = expert.value({k: v[0] for k, v in canonical.items()}, jnp.asarray(x))
        np.testing.assert_allclose(again, expected, rtol=1e-12, atol=1e-15)
    if name in ("relu-outer", "power-outer"):
        size = np.sum(np.square(canonical["slope"]), axis=-1) + np.square(canonical.get("intercept", 0.0))
        np.testing.assert_allclose(size, 1.0, rtol=1e-12)


def _multinomial(p, value, y):
    odds = np.exp([*value, 0.0])
    return math.log(odds[int(y[0])] / odds.sum())


RESPONSES = {
    "gaussian": (
        responses.Gaussian(variance_range=RANGE),
        lambda p, value, y: stats.norm(value, np.sqrt(p["variance"])).logpdf(y).sum(),
    ),
    "gaussian-known": (responses.Gaussian(0.3), lambda p, value, y: stats.norm(value, 0.3**0.5).logpdf(y).sum()),
    "multinomial": (responses.Multinomial(3), _multinomial),
    "binomial": (responses.Binomial(4), lambda p, value, y: stats.binom(4, expit(value[0])).logpmf(y[0])),
    "poisson": (responses.Poisson(), lambda p, value, y: stats.poisson(math.exp(value[0])).logpmf(y[0])),
}
every_response = pytest.mark.parametrize("name", RESPONSES)


@every_response
def test_response_is_what_scipy_says(name):
    (response, naive), rng = RESPONSES[name], np.random.default_rng(4)
    for outputs in (1,) if response.single else (1, 2):
        atom = {k: 0.2 + rng.random(p.shape) for k, p in response.parameters(outputs).items()}
        value = rng.normal(size=response.expert_outputs(outputs))
        for y in (np.zeros(outputs), np.ones(outputs), np.full(outputs, 2.0)):
            np.testing.assert_allclose(
                response.log_density(atom, value, y), naive(atom, value, y), rtol=1e-11, atol=1e-13
            )


def density(name: str, gate: str = "softmax", expert: str = "affine", dimension=1, seed=5) -> tuple:
    """A density of three atoms, and random parameters."""
    model = moe.MoeDensity(GATES[gate].gate, EXPERTS[expert][0], RESPONSES[name][0], dimension)
    return model, some(model.parameters(), 3, np.random.default_rng(seed))


@jax.jit
def log_density(model, params, x, y):
    return model.log_density(params, x, y)


@jax.jit
def score(model, params, x, y):
    return jax.grad(model.log_density)(params, x, y)


def total(model, params, x) -> float:
    """The density of y added up at one x."""
    if isinstance(model.support, Real):
        centre, scale = (np.asarray(v) for v in model.spread(params, x))
        ends = (centre - 9 * scale).min(), (centre + 9 * scale).max()
        at = lambda y: float(jnp.exp(log_density(model, params, x, jnp.array([y]))))  # noqa: E731
        return quad(at, *ends, points=np.sort(centre[:, 0]), limit=200)[0]
    y, log_weight = model.support.nodes(model, params, np.asarray(x)[None])
    return float(np.exp(log_densities(model, params, jnp.repeat(x[None], len(y[0]), 0), y[0]) + log_weight[0]).sum())


@every_response
def test_densities_add_up_to_one_and_forget_the_order_of_atoms(name):
    model, params = density(name)
    x, y = jnp.array([0.7]), jnp.array([1.0])
    assert abs(total(model, params, x) - 1) < 1e-9
    known, order = float(log_density(model, params, x, y)), np.array([1, 2, 0])
    assert abs(float(log_density(model, {k: v[order] for k, v in params.items()}, x, y)) - known) < 1e-12
    copies = model.overfit(params, np.array([0, 1, 1, 2]))
    assert abs(float(log_density(model, copies, x, y)) - known) < 1e-12
    for ends in (*model.bounds(3, 3.0, 3.0), model.unconstrain(params)):
        found = score(model, {k: jnp.asarray(v) for k, v in model.constrain(ends).items()}, x, y)
        assert all(np.isfinite(v).all() for v in found.values())


def test_least_squares_are_the_sum_of_weighted_values():
    rng = np.random.default_rng(6)
    model = moe.MoeRegression(gates.Sigmoid(), experts.Tanh(), 0.3, 2, 2)
    params, x = some(model.parameters(), 3, rng), rng.normal(size=2)
    share = naive_weights(GATES["sigmoid"], params, x)
    rows = [{k: params[k][i] for k in ("slope", "intercept")} for i in range(3)]
    expected = [sum(w * EXPERTS["tanh"][1](p, x, j) for w, p in zip(share, rows, strict=True)) for j in range(2)]
    np.testing.assert_allclose(model.mean(params, jnp.asarray(x)), expected, rtol=1e-12)
    # An atom whose gate does not depend on x can be split, and the mean stays.
    params["gate_slope"][1] = 0.0
    copies = model.overfit(params, np.array([0, 1, 1, 1, 2]))
    np.testing.assert_allclose(model.mean(copies, jnp.asarray(x)), model.mean(params, jnp.asarray(x)), rtol=1e-12)


def table(gate="softmax", expert="affine", response="gaussian", **more) -> dict:
    return {"family": "moe", "gate": gate, "expert": expert, "response": response, **more}


def truth(**more) -> dict:
    return {
        "gate_bias": [0.2, 0.0], "gate_slope": [[1.5], [0.0]], "slope": [[1.5], [-1.0]], "intercept": [0.5, -0.5],
        **more,
    }  # fmt: skip


VARIANCE = {"variance": [0.25, 0.5]}


def test_models_with_written_out_passes_are_those():
    made = moe.build(table(response_options={"variance_range": [0.1, 3.0]}), truth(**VARIANCE))
    assert type(made) is ms.SoftmaxGaussian and made.variance_range == (0.1, 3.0)
    gated = {k: v for k, v in truth(**VARIANCE).items() if not k.startswith("gate")}
    gated |= {"weight": [0.5, 0.5], "center": [[0.0], [1.0]], "covariance": [[[1.0]], [[0.5]]]}
    made = moe.build(table("gaussian", gate_options={"covariance_range": [0.1, 2.0]}), gated)
    assert type(made) is GaussianGated and made.type_two and made.covariance_range == (0.1, 2.0)
    assert made.variance_range == (0.0625, 2.0)
    assert type(moe.build(table("laplace"), truth(gate_center=[[0.3], [0.7]], **VARIANCE))) is moe.MoeDensity


def test_passes_by_differentiation_are_the_written_out_ones():
    rng, dimension, outputs = np.random.default_rng(7), 1, 2
    fast = ms.SoftmaxGaussian(dimension, outputs, RANGE)
    slow = moe.MoeDensity(
        gates.Softmax(), experts.Affine(), responses.Gaussian(variance_range=RANGE), dimension, outputs
    )
    assert slow.exponents == fast.exponents and slow.gauge == fast.gauge and slow.variances == fast.variances
    params = some(slow.parameters(), 3, rng)
    assert slow.shapes(3) == fast.shapes(3) and slow.free_shapes(3) == fast.free_shapes(3)
    theta, unravel = ravel_pytree(fast.unconstrain({k: jnp.asarray(v) for k, v in params.items()}))
    sample = stored(rng.normal(size=(150, dimension)), rng.normal(size=(150, outputs)), rng.integers(0, 2, 150))
    found = objective.density(slow, lambda t: slow.constrain(unravel(t)))
    known = objective.passes_of(fast, lambda t: fast.constrain(unravel(t)), 3)
    for name in ("value", "first", "curvature", "complete"):
        mine, theirs = (jax.tree.leaves(jax.jit(getattr(of, name))(theta, sample)) for of in (found, known))
        if name == "complete":
            # Written out, the information of variances is that of the closed M step (``solvers.em``).
            rest = ~np.asarray(ravel_pytree({k: np.full(v.shape, k == "log_variance")
                                             for k, v in unravel(theta).items()})[0], bool)  # fmt: skip
            mine[2], theirs[2] = (np.asarray(of[2])[np.ix_(rest, rest)] for of in (mine, theirs))
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.max(np.abs(b)))


def drawn(model, params, x, count: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(8), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: model.draw(params, key, x)))(keys))[:, 0]


@pytest.mark.parametrize("name", ["multinomial", "binomial", "poisson"])
def test_drawn_labels_and_counts_have_their_probabilities(name):
    model, params = density(name, gate="laplace")
    x, count = jnp.array([0.4]), 20_000
    values, times = np.unique(drawn(model, params, x, count), return_counts=True)
    expected = count * np.exp(log_densities(model, params, jnp.repeat(x[None], len(values), 0), values[:, None]))
    often = expected >= 5
    seen = np.append(times[often], count - times[often].sum())
    expected = np.append(expected[often], count - expected[often].sum())
    if expected[-1] < 1e-6:
        seen, expected = seen[:-1], expected[:-1]
    assert stats.chisquare(seen, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("name,expert", [("gaussian", "tanh"), ("gaussian-known", "relu")])
def test_drawn_numbers_have_their_distribution(name, expert):
    model, params = density(name, "constant", expert)
    x = jnp.array([0.4])
    centre, scale = (np.asarray(v)[:, 0] for v in model.spread(params, x))
    cdf = lambda y: stats.norm.cdf((np.asarray(y)[:, None] - centre) / scale) @ params["weight"]  # noqa: E731
    assert stats.kstest(drawn(model, params, x, 5000), cdf).pvalue > FALSE_ALARM
    inherited = jax.vmap(lambda key: model.support.draw(model, params, key, x))(
        jax.random.split(jax.random.key(9), 800)
    )
    assert stats.kstest(np.asarray(inherited)[:, 0], cdf).pvalue > FALSE_ALARM


def test_a_joint_density_draws_its_x_and_is_integrated():
    model, params = density("gaussian", "gaussian", "tanh", seed=10)
    target = Target(model, params, None)
    np.testing.assert_allclose(np.sum(np.square(target.root)), 1.0, rtol=1e-9)
    x, y = jax.jit(lambda key: model.draw_rows(params, None, key, jnp.arange(4000), 4000))(jax.random.key(0))
    deviation = np.sqrt(params["covariance"][:, 0, 0])
    cdf = lambda v: stats.norm.cdf((np.asarray(v)[:, None] - params["center"][:, 0]) / deviation) @ params["weight"]  # noqa: E731
    assert stats.kstest(np.asarray(x)[:, 0], cdf).pvalue > FALSE_ALARM
    # Its mean of y, against that of the nodes: four standard errors, an alarm in 16,000.
    mean = np.square(target.root) @ target.y[:, 0]
    error = float(np.std(np.asarray(y)[:, 0]) / np.sqrt(len(y)))
    assert abs(float(np.mean(np.asarray(y))) - mean) < 4 * error
    with pytest.raises(ms.InputError, match="x_mixture"):
        ms.models.base.Density.x_mixture(model, params)


LINES = {"gate_bias": [0.5, 0.0], "gate_slope": [[3.0], [0.0]], "slope": [[3.0], [-4.0]], "intercept": [4.0, -3.0],
         "variance": [0.4, 0.3]}  # fmt: skip
SHARED = {
    "shared_weight": [0.3, 0.7], "shared_slope": [[2.0], [1.0]], "shared_intercept": [0.0, 1.0],
    "shared_variance": [0.2, 0.3], **{f"routed_{k}": v for k, v in LINES.items()},
}  # fmt: skip
ONE = {k: v[:1] for k, v in LINES.items()}
FROZEN = {"slope": [1.0], "intercept": 0.5, "variance": 0.25}
TWO = {
    "outer_gate_bias": [0.3, 0.0], "outer_gate_slope": [[1.5], [0.0]], "gate_bias": [0.2, 0.0, -0.4, 0.0],
    "gate_slope": [[1.0], [0.0], [-2.0], [0.0]], "slope": [[2.0], [-1.0], [0.5], [-2.0]],
    "intercept": [0.5, 1.0, -1.0, 0.0], "variance": [0.25, 0.5, 0.3, 0.4],
}  # fmt: skip


def arrays(values: dict) -> dict:
    return {k: np.asarray(v, float) for k, v in values.items()}


def normal(p, i, x, y) -> float:
    return stats.norm(p["intercept"][i] + p["slope"][i, 0] * x, math.sqrt(p["variance"][i])).pdf(y)


def combined(family: str, **more) -> dict:
    return table() | {"family": family} | more


def two_level(outer="softmax", inner="softmax", **more) -> dict:
    parts = {"family": "two-level", "groups": 2, "outer": outer, "inner": inner, "expert": "affine"}
    return parts | {"response": "gaussian"} | more


def test_shared_and_routed_experts_are_half_and_half():
    params = arrays(SHARED)
    model = combinators.build_shared_routed(combined("shared-routed"), SHARED)
    own = [{k.split("_", 1)[1]: v for k, v in params.items() if k.startswith(g)} for g in ("shared", "routed")]
    x, y = jnp.array([0.3]), jnp.array([1.2])
    gate = naive_weights(GATES["softmax"], own[1], [0.3])
    expected = sum(w * normal(own[0], i, 0.3, 1.2) / 2 for i, w in enumerate(own[0]["weight"]))
    expected += sum(w * normal(own[1], i, 0.3, 1.2) / 2 for i, w in enumerate(gate))
    np.testing.assert_allclose(log_density(model, params, x, y), math.log(expected), rtol=1e-12)
    assert abs(total(model, params, x) - 1) < 1e-9
    assert model.groups == ("shared", "routed") and model.gauge == "routed_gate_slope"
    assert model.variances == ("log_shared_variance", "log_routed_variance")
    atoms = np.array([3, 0, 1, 1, 2, 3])
    copies = model.overfit(params, atoms)
    assert model.sizes_of(copies) == {"shared": 3, "routed": 3} and model.divisible(params).all()
    np.testing.assert_allclose(log_density(model, copies, x, y), math.log(expected), rtol=1e-12)
    measures = model.measure(copies), model.measure(params)
    assert float(ms.evaluate(loss_of(model, "voronoi:untranslated"), *measures)) < 1e-12
    # A start has as many copies of each group as it is fitted with.
    spare = model.spare(np.random.default_rng(0), {"shared": 2, "routed": 2}, {"shared": 3, "routed": 5})
    assert (spare < 2).sum() == 1 and (spare >= 2).sum() == 3
    draws = drawn(model, params, x, 4000)
    cdf = lambda v: sum(  # noqa: E731
        w / 2 * stats.norm.cdf(v, p["intercept"][i] + 0.3 * p["slope"][i, 0], math.sqrt(p["variance"][i]))
        for p, share in zip(own, (own[0]["weight"], gate), strict=True) for i, w in enumerate(share)
    )  # fmt: skip
    assert stats.kstest(draws, cdf).pvalue > FALSE_ALARM


def test_shared_experts_may_be_of_another_kind():
    values = {k: v for k, v in SHARED.items() if k != "shared_slope"}
    model = combinators.build_shared_routed(
        combined("shared-routed", shared_expert="constant", proportion=0.2, exponents={"routed_slope": [1, 3]}), values
    )
    assert model.dimension == 1 and isinstance(model.shared.expert, experts.Constant)
    assert model.exponents["routed_slope"] == (1.0, 3.0) and "shared_slope" not in model.exponents
    assert abs(total(model, arrays(values), jnp.array([0.3])) - 1) < 1e-9


@pytest.mark.parametrize("law", combinators.LAWS)
def test_contamination_is_a_frozen_density_beside_one_expert(law):
    params = arrays(ONE)
    model = combinators.build_contaminated(
        {"expert": "affine", "response": "gaussian", "frozen_density": FROZEN | {"law": law}}, ONE
    )
    x, y = jnp.array([0.3]), jnp.array([1.2])
    p = expit(0.5 + 3.0 * 0.3)
    frozen = stats.norm(0.8, 0.5) if law == "same" else stats.laplace(0.8, 0.5 / math.sqrt(2))
    expected = (1 - p) * frozen.pdf(1.2) + p * normal(params, 0, 0.3, 1.2)
    np.testing.assert_allclose(log_density(model, params, x, y), math.log(expected), rtol=1e-12)
    assert model.gauge is None and float(model.measure(params).weight[0]) == pytest.approx(math.exp(0.5))
    copies = model.overfit(params, np.array([0, 0, 0]))
    np.testing.assert_allclose(log_density(model, copies, x, y), math.log(expected), rtol=1e-12)
    cdf = lambda v: (1 - p) * frozen.cdf(v) + p * stats.norm.cdf(v, 4.9, math.sqrt(0.4))  # noqa: E731
    assert stats.kstest(drawn(model, params, x, 4000), cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("outer,inner", [("softmax", "softmax"), ("softmax", "laplace"), ("laplace", "laplace")])
def test_gates_of_two_levels(outer, inner):
    values = {
        k.replace("slope", "center") if "gate" in k and (outer if "outer" in k else inner) == "laplace" else k: v
        for k, v in TWO.items()
    }
    params, x, y = arrays(values), 0.3, 1.2
    model = moe_of(two_level(outer, inner), values)

    def weights_of(kind, prefix, rows):
        own = {k.removeprefix(prefix): v[rows] for k, v in params.items() if k.startswith(f"{prefix}gate")}
        return naive_weights(GATES[kind], own, [x])

    top = weights_of(outer, "outer_", slice(None))
    inside = [weights_of(inner, "", slice(2 * g, 2 * g + 2)) for g in range(2)]
    expected = sum(top[g] * inside[g][i] * normal(params, 2 * g + i, x, y) for g in range(2) for i in range(2))
    at = lambda p: float(log_density(model, p, jnp.array([x]), jnp.array([y])))  # noqa: E731
    np.testing.assert_allclose(at(params), math.log(expected), rtol=1e-12)
    # Copies, as many in each group; groups in another order; free coordinates.
    copies = model.overfit(params, np.array([3, 0, 1, 1, 2, 3]))
    np.testing.assert_allclose(at(copies), math.log(expected), rtol=1e-12)
    order = np.array([2, 3, 0, 1])
    swapped = {k: v[::-1] if k.startswith("outer") else v[order] for k, v in params.items()}
    free = model.constrain(model.unconstrain(swapped))
    for same in (swapped, free, model.canonical(free)):
        np.testing.assert_allclose(at(same), math.log(expected), rtol=1e-12)
    assert {k: np.shape(v) for k, v in model.unconstrain(params).items()} == model.free_shapes(4)
    loss, true = loss_of(model, "voronoi"), model.measure(model.canonical(params))
    for same in (params, copies, swapped, free):
        assert float(ms.evaluate(loss, model.measure(model.canonical(same)), true)) < 1e-12
    spare = model.spare(np.random.default_rng(0), 4, 8)
    assert sorted(spare // 2) == [0, 0, 1, 1]


def moe_of(tables: dict, values: dict):
    """The model that a study has of them."""
    family = {"moe": moe, "two-level": combinators.TWO_LEVEL, "contaminated": combinators.CONTAMINATED,
              "shared-routed": combinators.SHARED_ROUTED}[tables["family"]]  # fmt: skip
    return family.build(tables, values)


def test_one_atom_a_group_has_no_inner_gates():
    values = {k: v[::2] if not k.startswith("outer") else v for k, v in TWO.items()}
    model = moe_of(two_level(), values | {"gate_bias": [0, 0], "gate_slope": [[0], [0]]})
    assert model.free_shapes(2)["gate_slope"] == (0, 1)
    restored = model.constrain(model.unconstrain(arrays(values)))
    np.testing.assert_array_equal(restored["gate_slope"], np.zeros((2, 1)))


@pytest.mark.parametrize(
    "tables,values,atoms",
    [
        (two_level(), TWO, 6),
        ({"family": "contaminated", "expert": "affine", "response": "gaussian", "frozen_density": FROZEN}, ONE, 1),
        (table("temperature"), truth(temperature=1.5, **VARIANCE), 2),
        (table("softmax", "tanh", "multinomial", response_options={"classes": 2}), truth(), 3),
        (table("cosine", "tanh", "binomial", response_options={"trials": 3}), truth(), 3),
    ],
)
def test_studies_of_these_families_are_read(tables, values, atoms):
    made = ms.Study(
        name="read", model=tables, truth=values, law={"name": "grid", "low": -2.0, "high": 2.0, "points": 40},
        fit={"atoms": atoms, "bound": 9.0, "start": "wide"}, sample={"sizes": [100, 200], "replicates": 4},
    )  # fmt: skip
    fitter = ms.Fitter(made.problem.model, made.problem.truth, made.problem.options)
    points = fitter.first_points([np.random.SeedSequence(0)])
    assert points.shape == (1, 8, 1, len(fitter.lower)) and np.isfinite(points).all()


class Ramp(gates.Gate):
    """A gate of one's own."""

    def __init__(self, steepness: float = 1.0):
        self.steepness = steepness

    def parameters(self, dimension):
        return gates.linear_parameters(dimension)

    def log_weights(self, params, x):
        return jax.nn.log_softmax(self.steepness * gates.logits(params, x))


def test_a_part_may_be_a_class_of_ones_own():
    made = moe.build(
        table(Ramp, gate_options={"steepness": 2.0}, exponents={"gate_slope": [1, 4, 6], "variance": []}),
        truth(**VARIANCE),
    )
    assert isinstance(made.gate, Ramp) and made.gate.steepness == 2.0 and made.gauge == "gate_slope"
    assert made.exponents["gate_slope"] == (1.0, 4.0, 6.0) and "variance" not in made.exponents


LS = {"response": "least-squares", "noise": 0.3}
WIDE = {"slope": [[[1.0], [0.5]], [[0.3], [2.0]]], "intercept": [[0.0, 1.0], [1.0, 0.5]]}


@pytest.mark.parametrize(
    "tables,values,sizes",
    [
        (table("laplace", "tanh", **LS), {"gate_center": np.ones((2, 3)), "slope": np.ones((2, 3))}, (3, 1)),
        (table("softmax", "tanh", **LS), truth(**WIDE), (1, 2)),
        (table("softmax", "affine", "multinomial", response_options={"classes": 3}), truth(**WIDE), (1, 1)),
        (table("quadratic", "constant", gate_options={"monomial": True}, dimension=2, **LS), {}, (2, 1)),
        (table("constant", "constant", response_options={"variance": 0.2}, dimension=1, outputs=2), {}, (1, 2)),
        (table("gaussian", "tanh", response_options={"variance_range": [0.1, 9.0]}),
         {"covariance": [[[1.0]]], "center": [[0.0]], "slope": [[1.0]], "variance": [0.3]}, (1, 1)),
    ],
)  # fmt: skip
def test_dimensions_are_those_of_the_truth(tables, values, sizes):
    model = moe.build(tables, values)
    assert (model.dimension, model.outputs) == sizes


BAD = [
    (table("sofmax"), truth(), "model.gate = 'sofmax' is not known: did you mean softmax"),
    (table(expert=7), truth(), "model.expert = 7 is not known: known are affine"),
    (table(experts.Affine), truth(), "model.gate = Affine is no gate: make it a subclass of Gate"),
    (table("activated-temperature", gate_options={"activation": "sign"}), truth(temperature=1.0),
     "model.gate_options.activation = 'sign' is not known: pass one of"),
    (table("top-k", gate_options={"kk": 2}), truth(), "gate_options.kk is not an option of 'top-k': did you mean k"),
    (table(gate_options={"k": 2}), truth(), "gate_options.k is not an option of 'softmax': it has none"),
    (table("perturbed-cosine", gate_options={"zzz": 2}), truth(), "known are t1, t2"),
    (table(gate_options=3), truth(), "model.gate_options = 3 is no table"),
    (table("sigmoid"), truth(**VARIANCE), "'sigmoid' has weights that do not add up to 1"),
    (table("gaussian", **LS), truth(covariance=[[[1.0]]]), "'gaussian' is a density of x"),
    (table("gaussian"), truth(**VARIANCE), "truth.covariance is missing"),
    (table("gaussian"), truth(covariance=[[[-1.0]]], **VARIANCE), "not symmetric and positive definite"),
    (table(), truth(), "truth.variance is missing"),
    (table(noise=0.3), truth(**VARIANCE), "model.noise = 0.3 belongs to"),
    (table("laplace", noise=0.3), truth(gate_center=[[0], [1]], **VARIANCE), "model.noise = 0.3 belongs to"),
    (table(response="least-squares"), truth(), "model.noise is missing"),
    (table(**LS) | {"noise": 0.0}, truth(), "model.noise = 0.0: a standard deviation must be positive"),
    (table(**LS, exponents=2), truth(), "model.exponents = 2 is no table"),
    (table(**LS, exponents={"slope": [0.5]}), truth(), "pass exponents of at least 1"),
    (table(**LS, exponents={"slop": [1, 2]}), truth(), "model.exponents.slop is no parameter of the model: did you"),
    (table(response="poisson", outputs=2), truth(), "model.outputs = 2: y is one number"),
    (table("laplace", **LS), truth(), "truth.gate_center is missing"),
    (table(**LS), truth(gate_slope=[[], []]), "truth.gate_slope has empty rows"),
    (table("constant", "constant", **LS), {"weight": [1.0], "intercept": [0.0]}, "model.dimension is missing"),
    (combined("shared-routed", response="least-squares"), SHARED, "'least-squares' is no density"),
    (combined("shared-routed", exponents={"slope": [1]}), SHARED, "start with shared_ or routed_"),
    (combined("shared-routed"), {}, "truth.routed_variance is missing"),
    ({"family": "contaminated", "expert": "affine", "response": "poisson",
      "frozen_density": {"law": "laplace"}}, truth(),
     "law of real y"),
    ({"family": "contaminated", "expert": "affine", "response": "poisson", "frozen_density": {"slope": [1.0]}}, truth(),
     "model.frozen_density has slope: pass slope, intercept"),
]  # fmt: skip


@pytest.mark.parametrize("tables,values,message", BAD)
def test_what_cannot_be_composed_is_told(tables, values, message):
    with pytest.raises(ms.InputError) as told:
        moe_of(tables, values)
    assert message in str(told.value)


def test_atoms_must_fit_into_groups():
    model = moe_of(two_level(), TWO)
    with pytest.raises(ms.InputError, match="3 atoms in 2 groups of equal size"):
        model.shapes(3)
    with pytest.raises(ms.InputError, match="pass as many copies of each"):
        model.overfit(arrays(TWO), np.array([0, 1, 1, 2]))


STUDIES = {
    "softmax-tanh": (
        table(expert="tanh", response="least-squares", noise=0.3),
        truth(slope=[[2.0], [-1.5]], intercept=[0.5, -0.3]),
    ),
    "sigmoid": (
        table("sigmoid", "tanh", "least-squares", noise=0.3),
        truth(gate_bias=[0.5, -0.3], gate_slope=[[0.8], [1.5]], slope=[[2.0], [-1.5]], intercept=[0.5, -0.3]),
    ),
    "poisson": (table(response="poisson"), truth(slope=[[0.8], [-0.5]], intercept=[1.5, 0.3])),
    "input-free": (
        table("constant"),
        {k: v for k, v in truth(weight=[0.4, 0.6], **VARIANCE).items() if not k.startswith("gate")},
    ),
    "shared-routed": (
        table() | {"family": "shared-routed"},
        {"shared_weight": [1.0], "shared_slope": [[2.0]], "shared_intercept": [0.0], "shared_variance": [0.2],
         "routed_gate_bias": [0.5, 0.0], "routed_gate_slope": [[3.0], [0.0]], "routed_slope": [[3.0], [-4.0]],
         "routed_intercept": [4.0, -3.0], "routed_variance": [0.4, 0.4]},
    ),
}  # fmt: skip


def study(name: str, **fit) -> ms.Study:
    model, values = STUDIES[name]
    atoms = {"shared": 1, "routed": 2} if name == "shared-routed" else 2
    tables = {
        "name": name, "model": model, "truth": values,
        "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 40},
        "fit": {"atoms": atoms, "starts": 4, "bound": 5.0} | fit,
        "sample": {"mode": "exact", "sizes": [250, 500, 1000], "replicates": 4, "seed": 0},
        "claim": [{"loss": "voronoi", "exponent": 0.5, "window": [250, 1000]}],
    }  # fmt: skip
    return ms.Study(**tables)


@pytest.mark.parametrize("name", STUDIES)
def test_small_studies_are_certified(name, tmp_path):
    frame = ms.run(study(name), tmp_path).frame
    assert np.mean(frame["certificate"] == "certified") >= 0.75
    assert np.isfinite(frame["loss:voronoi"]).all()
