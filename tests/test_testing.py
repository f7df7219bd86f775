"""The contract of a model: all of ours keep it, users' models too, and every way of breaking it is found and named."""

import doctest
from pathlib import Path

import jax
import jax.numpy as jnp
import mixtures
import models
import numpy as np
import pytest
from conftest import MADE
from test_messages import PACKAGE, error_sites

import moe_sim as ms
from moe_sim.models import domains
from moe_sim.testing import check_model, densities
from moe_sim.theory.curves import CURVED

LAW = ms.Uniform(1, -2.0, 2.0, 8)


class SigmoidGate(ms.Regression):
    """f(x) = sum_i sigmoid(bias_i + gate_i'x) (intercept_i + slope_i'x); arXiv 2405.13997."""

    divide_mass = None

    def __init__(self, dimension: int, noise: float):
        self.dimension, self.noise = dimension, noise

    def parameters(self):
        d = (self.dimension,)
        return {
            "bias": ms.Parameter(bound="bias_bound", exponents=None),
            "gate": ms.Parameter(d),
            "intercept": ms.Parameter(),
            "slope": ms.Parameter(d),
        }

    def mean(self, params, x):
        gates = jax.nn.sigmoid(params["bias"] + params["gate"] @ x)
        return (gates @ (params["intercept"] + params["slope"] @ x))[None]


SIGMOID = {"bias": [0.3, -0.2], "gate": [[1.0], [-0.8]], "intercept": [0.5, -1.0], "slope": [[1.2], [0.7]]}


class MultinomialLogistic(ms.Density):
    """p(y | x) = sum_i softmax_i(bias + gate'x) softmax_y(intercept_i + slope_i'x, 0)."""

    support = ms.Labels(3)

    def __init__(self, dimension: int):
        self.dimension = dimension

    def parameters(self):
        return {
            "bias": ms.Parameter((), ms.GATE, "bias_bound"),
            "gate": ms.Parameter((self.dimension,), ms.GATE),
            "intercept": ms.Parameter((2,)),
            "slope": ms.Parameter((2, self.dimension)),
        }

    def log_density(self, params, x, y):
        gates = jax.nn.log_softmax(params["bias"] + params["gate"] @ x)
        logits = params["intercept"] + params["slope"] @ x
        labels = jax.nn.log_softmax(jnp.pad(logits, ((0, 0), (0, 1))), axis=1)
        return jax.nn.logsumexp(gates + labels[:, y[0].astype(int)])


MULTINOMIAL = {
    "bias": [0.4, 0.0], "gate": [[1.0], [0.0]], "intercept": [[0.3, -0.5], [-0.8, 0.6]],
    "slope": [[[1.0], [-0.5]], [[-0.7], [1.5]]],
}  # fmt: skip


class Pieces(ms.Density):
    """Two kinds of y, counts and reals: sum_i weight_i p(y; rate_i), written down without a fast path."""

    dimension = 1

    def parameters(self):
        shape = () if self.outputs == 1 else (self.outputs,)
        return {"weight": ms.Parameter((), ms.SIMPLEX, "bias_bound"), "rate": ms.Parameter(shape, ms.POSITIVE)}


class Poisson(Pieces):
    support = ms.Counts()

    def log_density(self, params, x, y):
        rate = params["rate"] * jnp.exp(0.3 * x[0])
        each = y[0] * jnp.log(rate) - rate - jax.scipy.special.gammaln(y[0] + 1)
        return jax.nn.logsumexp(jnp.log(params["weight"]) + each)


class Bells(Pieces):
    """Normal y about rate + x, each with the deviation 0.5."""

    support = ms.Real()

    def __init__(self, outputs: int = 1):
        self.outputs = outputs

    def spread(self, params, x):
        centre = params["rate"].reshape(-1, self.outputs) + x[0]
        return centre, jnp.full(centre.shape, 0.5)

    def log_density(self, params, x, y):
        each = jax.scipy.stats.norm.logpdf(y, *self.spread(params, x)).sum(axis=1)
        return jax.nn.logsumexp(jnp.log(params["weight"]) + each)


RATES = {"weight": [0.4, 0.6], "rate": [0.7, 3.0]}
PAIRS = {"weight": [0.4, 0.6], "rate": [[0.7, 1.0], [3.0, 0.5]]}


class PairBells(Bells):
    def draw(self, params, key, x):
        one, two = jax.random.split(key)
        atom = jax.random.categorical(one, jnp.log(params["weight"]))
        return self.spread(params, x)[0][atom] + 0.5 * jax.random.normal(two, (2,))


# Ours.


@models.every()
def test_our_regressions_keep_the_contract(case):
    report = check_model(case.model, case.truth, case.law)
    assert "split atoms" in report.checked and report.skipped == ("canonical representative", "density")
    # Along the kernel of the value projection a common shift of tied prefixes is one of the keys alone.
    thin = case.model.structure == "shared-linear" and not case.model.frozen.count
    # Two learned networks and two prefixes of width 2 are 12 numbers, and make 4 of keys and 2 of values.
    learned = "W1" in case.truth
    assert bool(report.flat) == (thin or learned)
    assert not learned or all(line.endswith(CURVED) for line in report.flat)


@mixtures.every()
def test_our_mixtures_keep_the_contract(case):
    report = check_model(case.model, case.truth, case.law)
    assert {"split atoms", "density", "draws"} <= set(report.checked)
    assert bool(report.flat) == (case is mixtures.MIXTURES["prefix-linear-N0"] or "W1" in case.truth)


# A user's.


def test_a_sigmoid_gate_keeps_the_contract():
    report = check_model(SigmoidGate(1, 0.3), SIGMOID, LAW)
    assert report.model == "SigmoidGate" and report.flat == ()
    assert report.skipped == ("canonical representative", "split atoms", "density")


@pytest.mark.parametrize(
    ("model", "truth"),
    [(MultinomialLogistic(1), MULTINOMIAL), (Poisson(), RATES), (Bells(), RATES), (PairBells(2), PAIRS)],
    ids=["labels", "counts", "reals", "pairs"],
)
def test_a_density_keeps_the_contract(model, truth):
    report = check_model(model, truth, LAW)
    assert report.skipped == ("canonical representative",) and report.flat == ()


class Splits(SigmoidGate):
    """Where the gate does not depend on x its share can be divided."""

    def log_weight(self, params):
        return jax.nn.log_sigmoid(params["bias"])

    def divide_mass(self, mass, among):
        share = 1 / (1 + np.exp(-mass)) / among
        return np.log(share / (1 - share))

    def divisible(self, params):
        return np.all(np.asarray(params["gate"]) == 0, axis=1)


def test_only_what_is_divisible_is_split():
    assert "split atoms" in check_model(Splits(1, 0.3), SIGMOID, LAW).skipped
    assert "split atoms" in check_model(Splits(1, 0.3), SIGMOID | {"gate": [[0.0], [-0.8]]}, LAW).checked


class Scaled(SigmoidGate):
    """Intercept and slope times a common scale: a gauge of scale, which ``canonical`` undoes."""

    def parameters(self):
        return super().parameters() | {"scale": ms.Parameter((), ms.POSITIVE, exponents=None)}

    def mean(self, params, x):
        return super().mean(self.canonical(params), x)

    def canonical(self, params):
        scale = params["scale"]
        moved = {"intercept": params["intercept"] * scale, "slope": params["slope"] * scale[:, None]}
        return params | moved | {"scale": jnp.ones_like(scale)}


SCALED = SIGMOID | {"scale": [1.0, 2.0]}


def test_a_scale_gauge_has_its_representative():
    report = check_model(Scaled(1, 0.3), SCALED, LAW)
    assert "canonical representative" in report.checked and report.flat == ()


def test_what_no_gauge_declares_is_reported():
    class Softmax(MultinomialLogistic):
        def parameters(self):
            free = {"bias": ms.Parameter((), bound="bias_bound"), "gate": ms.Parameter((1,))}
            return super().parameters() | free

    report = check_model(Softmax(1), MULTINOMIAL, LAW)
    assert set(report.flat) == {"gate[0,0] + gate[1,0]", "bias[0] + bias[1]"}


def test_a_joint_density_without_known_integrals():
    class Joint(Bells):
        joint = True

        def log_density(self, params, x, y):
            return super().log_density(params, x, y) + jax.scipy.stats.norm.logpdf(x[0])

        def draw_rows(self, params, law, key, index, size):
            return super().draw_rows(params, ms.Normal(1), key, index, size)

    assert check_model(Joint(), RATES, None).skipped == ("canonical representative", "flat directions")
    with pytest.raises(ms.ModelError, match=r"write x_mixture\(params\)"):
        ms.draw(Joint(), RATES, None, 100)


# What breaks it.


def refused(model, truth, *parts: str, law=LAW, atoms=None) -> None:
    """The contract is broken, and the text says each of the ``parts``."""
    with pytest.raises(ms.ModelError) as found:
        check_model(model, truth, law, atoms)
    for part in parts:
        assert part in str(found.value), str(found.value)


def sigmoid(**changes):
    """A sigmoid gate with other attributes and methods."""
    return type("Changed", (SigmoidGate,), changes)(1, 0.3)


def declares(**parameters):
    return sigmoid(parameters=lambda self: SigmoidGate(1, 0.3).parameters() | parameters)


def mean_of(function):
    """A sigmoid gate whose mean is a function of parameters and x."""
    return sigmoid(mean=lambda self, params, x: function(params, x))


def gates(params, x):
    return jax.nn.sigmoid(params["bias"] + params["gate"] @ x)


def experts(params, x):
    return params["intercept"] + params["slope"] @ x


@pytest.mark.parametrize(
    ("model", "truth", "parts"),
    [
        (SigmoidGate, SIGMOID, ["is no model", "ms.Regression"]),
        (sigmoid(parameters=lambda self: {}), SIGMOID, ["Changed.parameters gives nothing"]),
        (declares(gate=(1,)), SIGMOID, ["'gate': (1,)", "ms.Parameter"]),
        (declares(bias=ms.Parameter()), SIGMOID, ["holds the masses", "set mass ="]),
        (sigmoid(mass="gate"), SIGMOID, ["'gate' cannot hold the masses", "shape ()"]),
        (
            sigmoid(parameters=lambda self: {k: ms.Parameter(p.shape, bound=p.bound, exponents=None)
                                             for k, p in SigmoidGate(1, 0.3).parameters().items()}),
            SIGMOID, ["no parameter of an atom has exponents"],
        ),
        (SigmoidGate(1, 0.3), SIGMOID | {"extra": [1.0]}, ["truth.extra is no parameter", "bias, gate"]),
        (SigmoidGate(1, 0.3), SIGMOID | {"gate": [1.0, 2.0]}, ["truth.gate has shape (2,)", "(2, 1)"]),
        (SigmoidGate(1, 0.3), SIGMOID | {"gate": [[1.0], [9.0]]}, ["truth.gate has 9, outside [-6, 6]", "fit.bound"]),
        (declares(slope=ms.Parameter((1,), ms.POSITIVE)), SIGMOID | {"slope": [[-1.0], [1.0]]},
         ["truth.slope", "positive"]),
        (sigmoid(outputs="1"), SIGMOID, ["Changed.outputs = '1'", "whole number"]),
        (sigmoid(joint=True), SIGMOID, ["joint density", "pass law = None"]),
        (SigmoidGate(2, 0.3), SIGMOID | {"gate": [[1.0, 0.0], [0.0, 1.0]], "slope": [[1.0, 0.0], [0.0, 1.0]]},
         ["dimension = 2", "law has 1"]),
        (SigmoidGate(1, -1.0), SIGMOID, ["noise = -1.0", "standard deviation"]),
        (sigmoid(mean=lambda self, p, x: gates(p, x) @ experts(p, x)), SIGMOID,
         ["Changed.mean gives shape () at one x: give (1,)"]),
        (sigmoid(mean=lambda self, p, x: None), SIGMOID, ["Changed.mean gives None"]),
    ],
)  # fmt: skip
def test_a_wrong_declaration(model, truth, parts):
    refused(model, truth, *parts)


def test_a_density_says_its_support():
    refused(type("Changed", (MultinomialLogistic,), {"support": 3})(1), MULTINOMIAL, "support = 3", "ms.Labels")


def test_a_log_density_is_a_scalar():
    class Row(MultinomialLogistic):
        def log_density(self, params, x, y):
            return super().log_density(params, x, y)[None]

    refused(Row(1), MULTINOMIAL, "Row.log_density gives shape (1,) at one x", "a scalar")


def test_a_model_that_raises_or_prints():
    class Raises(SigmoidGate):
        def mean(self, params, x):
            return params["gates"] @ x

    class Prints(SigmoidGate):
        def mean(self, params, x):
            print("here", x)
            return super().mean(params, x)

    class Branches(SigmoidGate):
        def mean(self, params, x):
            if self.noise > 0.1:
                return super().mean(params, x)
            return -super().mean(params, x)

    class Numpy(SigmoidGate):
        def mean(self, params, x):
            return np.tanh(np.asarray(params["bias"]))[:1]

    refused(Raises(1, 0.3), SIGMOID, "Raises.mean raises KeyError: 'gates'", 'return params["gates"] @ x')
    refused(Prints(1, 0.3), SIGMOID, "Prints.mean prints 'here", "jax.debug.print")
    refused(Branches(1, 0.3), SIGMOID, "Branches.mean", "if self.noise > 0.1:", "test_testing.py", "jnp.where")
    refused(Numpy(1, 0.3), SIGMOID, "Numpy.mean", "np.asarray", "jax.numpy")


def test_a_model_is_a_pure_function_of_arrays():
    class Draws(SigmoidGate):
        def mean(self, params, x):
            return super().mean(params, x) + np.random.default_rng().normal()

    class Net:
        def __call__(self, z):
            return jax.nn.sigmoid(z)

    refused(Draws(1, 0.3), SIGMOID, "Draws.mean gives", "at the same truth and x", "draw nothing in it")
    held = SigmoidGate(1, 0.3)
    held.net = Net()
    refused(held, SIGMOID, "compiled anew", "ms.Part")
    held.net = object()
    refused(held, SIGMOID, "SigmoidGate.net holds object", "cannot be an argument")


def test_a_domain_that_is_left():
    class Half(domains.Positive):
        def constrain(self, *free):
            return free[0]

    class Twice(domains.Real):
        def constrain(self, *free):
            return 2 * free[0]

    class Flat(domains.Real):
        def constrain(self, *free):
            return free[0].ravel()

    positive = SIGMOID | {"slope": [[0.5], [1.0]]}
    refused(declares(slope=ms.Parameter((1,), Half())), positive, "slope: constrain leaves the domain", "positive")
    refused(declares(slope=ms.Parameter((1,), Twice())), SIGMOID, "slope: unconstrain(constrain(free)) gives")
    refused(declares(slope=ms.Parameter((1,), Flat())), SIGMOID, "slope: constrain gives (3,)", "(3, 1) is declared")


def test_an_order_that_matters():
    first = mean_of(lambda p, x: gates(p, x)[:1] * experts(p, x)[:1] + 2 * gates(p, x)[1:] @ experts(p, x)[1:])
    common = mean_of(lambda p, x: (gates(p, x) @ (p["intercept"][0] + p["slope"] @ x))[None])
    refused(first, SIGMOID, "Changed.mean changes by", "another order:")
    refused(common, SIGMOID, "rows of intercept are not used alike (is it shared?)", "shared=True")


def test_a_gauge_that_is_none():
    gate = ms.Parameter((1,), ms.GATE)
    refused(sigmoid(gauge="gate"), SIGMOID, "gate: a common shift of its rows changes", "gauge = 'gate'", "take it out")
    refused(sigmoid(gauge=""), SIGMOID, "bias: a common shift", "gauge = ''")
    refused(declares(gate=gate), SIGMOID, "gate: a common shift", "its domain is GATE: declare it REAL")
    refused(sigmoid(gauge="bias+key"), SIGMOID, "gauge names 'bias', which is no block of the loss", "gate, intercept")


def test_a_measure_that_does_not_follow_its_gauge():
    class Other(MultinomialLogistic):
        def log_weight(self, params):
            return jnp.tanh(params["bias"])

    refused(Other(1), MULTINOMIAL, "Other.measure", "gauge = 'gate' its log_weight is")


def test_a_canonical_that_is_none():
    class Grows(Scaled):
        def canonical(self, params):
            return super().canonical(params) | {"bias": params["bias"] + 0.1}

    class Shrinks(Scaled):
        def canonical(self, params):
            return {k: v for k, v in super().canonical(params).items() if k != "scale"}

    class Moves(SigmoidGate):
        def canonical(self, params):
            return params | {"slope": jnp.abs(params["slope"])}

    refused(Grows(1, 0.3), SCALED, "Grows.canonical moves bias by", "the second time")
    refused(Shrinks(1, 0.3), SCALED, "Shrinks.canonical gives no scale of shape (3,)")
    refused(Moves(1, 0.3), SIGMOID, "Moves.canonical changes Moves.mean by", "the same function")


def test_copies_that_give_another_function():
    usual = sigmoid(divide_mass=ms.Model.divide_mass)

    class Misweighed(Splits):
        def log_weight(self, params):
            return params["bias"]

    class Loses(Splits):
        def overfit(self, params, atoms):
            return {k: v for k, v in super().overfit(params, atoms).items() if k != "slope"}

    constant = SIGMOID | {"gate": [[0.0], [-0.8]]}
    refused(usual, SIGMOID, "Changed.mean changes by", "when atom 0 is split into 2", "divide_mass = None")
    refused(Misweighed(1, 0.3), constant, "Misweighed.measure has a Voronoi loss of", "log_weight and divide_mass")
    refused(Loses(1, 0.3), constant, "Loses.overfit gives no slope of shape (3, 1)")


def test_a_gradient_that_is_not_finite():
    low = declares(gate=ms.Parameter((1,), bound=(0.0, 6.0)))
    low.__class__.mean = lambda self, p, x: jax.nn.sigmoid(p["bias"]) @ jnp.sqrt(p["gate"] * p["slope"] ** 2)
    positive = SIGMOID | {"gate": [[1.0], [2.0]]}
    refused(low, positive, "gate[0,0]: the gradient of Changed.mean", "at their lower bounds", "narrow its bound")
    unused = mean_of(lambda p, x: (gates(p, x) @ (p["slope"] @ x))[None])
    refused(unused, SIGMOID, "intercept: Changed.mean does not depend on it", "take it out of parameters")


def test_a_function_that_is_not_finite():
    log = mean_of(lambda p, x: (gates(p, x) @ jnp.log(p["intercept"] + p["slope"] @ x * 0))[None])
    refused(log, SIGMOID, "Changed.draw_rows gives y = [nan] at x = [", "mean, finite there")
    refused(log, SIGMOID | {"intercept": [0.5, 1.0]}, "Changed.mean is nan at parameters within their bounds")

    class Closed(Bells):
        def log_density(self, params, x, y):
            outside = jnp.abs(y[0] - 0.7) < 1e-6
            return jnp.where(outside, -jnp.inf, super().log_density(params, x, y))

        def draw(self, params, key, x):
            return jnp.full(1, 0.7)

    class Lost(Closed):
        def log_density(self, params, x, y):
            return jnp.where(jnp.abs(y[0]) < 1e-12, jnp.nan, Bells.log_density(self, params, x, y))

        def draw(self, params, key, x):
            return jnp.zeros(1)

    refused(Lost(), RATES, "Lost.log_density is nan at the truth")
    refused(Closed(), RATES, "Closed.log_density is -inf at the truth where Closed.draw_rows drew")


def test_draws_of_a_regression():
    class Wide(SigmoidGate):
        def draw_rows(self, params, law, key, index, size):
            x, y = super().draw_rows(params, law, key, index, size)
            return x, y + 0.2 * jax.random.normal(jax.random.fold_in(key, 1), y.shape)

    class Thin(SigmoidGate):
        def draw_rows(self, params, law, key, index, size):
            x, y = super().draw_rows(params, law, key, index, size)
            return x, y[:, 0]

    class Lost(SigmoidGate):
        def draw_rows(self, params, law, key, index, size):
            x, y = super().draw_rows(params, law, key, index, size)
            return x, jnp.log(y)

    refused(Wide(1, 0.3), SIGMOID, "Wide.draw_rows: (y - mean) / noise has mean", "is not standard normal")
    refused(Thin(1, 0.3), SIGMOID, "Thin.draw_rows gives x of shape (2000, 1) and y of shape (2000,)")
    refused(Lost(1, 0.3), SIGMOID, "Lost.draw_rows gives y = [nan] at x = [")


@pytest.mark.parametrize(
    ("kind", "truth"), [(MultinomialLogistic, MULTINOMIAL), (Poisson, RATES), (Bells, RATES), (PairBells, PAIRS)]
)
def test_a_density_that_adds_up_to_less(kind, truth):
    def log_density(self, params, x, y):
        return kind.log_density(self, params, x, y) + jnp.log(0.9)

    made = type("Short", (kind,), {"log_density": log_density})
    model = made(1) if kind is MultinomialLogistic else made(2) if kind is PairBells else made()
    refused(model, truth, "Short.log_density adds up to 0.", " at x = [", "add up to 1 over y")


def test_a_joint_density_that_adds_up_to_less():
    case = mixtures.MIXTURES["gated-K2-d1-o1"]

    class Short(ms.GaussianGated):
        def log_density(self, params, x, y):
            return super().log_density(params, x, y) + jnp.log(0.9)

    refused(Short(1, 1, mixtures.RANGE, mixtures.RANGE), case.truth, "adds up to 0.", "over x and y", law=None)


def test_a_density_that_is_infinite():
    class Spike(Bells):
        def log_density(self, params, x, y):
            return jnp.where(y[0] > 50, jnp.inf, super().log_density(params, x, y))

    refused(Spike(), RATES, "Spike.log_density is inf at x = [", "y = [")


def test_a_spread_that_misses_mass():
    class Narrow(Bells):
        def spread(self, params, x):
            centre, scale = super().spread(params, x)
            return centre[:1], 0.2 * scale[:1]

        def log_density(self, params, x, y):
            each = jax.scipy.stats.norm.logpdf(y, *Bells.spread(self, params, x)).sum(axis=1)
            return jax.nn.logsumexp(jnp.log(params["weight"]) + each)

        def draw(self, params, key, x):
            one, two = jax.random.split(key)
            atom = jax.random.categorical(one, jnp.log(params["weight"]))
            return (params["rate"][atom] + x[0] + 0.5 * jax.random.normal(two))[None]

    class Shapeless(Bells):
        def spread(self, params, x):
            return tuple(v[:, 0] for v in super().spread(params, x))

        def log_density(self, params, x, y):
            return jax.scipy.stats.norm.logpdf(y[0]) + 0 * params["rate"].sum()

    class Silent(Shapeless):
        spread = ms.Density.spread

    refused(Narrow(), RATES, "Narrow.spread: the lattice made of it holds 0.", "within 10 scales")
    refused(Shapeless(), RATES, "Shapeless.spread gives centres (2,) and scales (2,)", "(pieces, 1)")
    refused(Silent(), RATES, "needs spread(params, x)")


@pytest.mark.parametrize(
    ("kind", "truth", "draw", "parts"),
    [
        (MultinomialLogistic, MULTINOMIAL, lambda y: 2 - y, ["chi-square"]),
        (MultinomialLogistic, MULTINOMIAL, lambda y: y + 0.5 * (y == 2), ["chi-square"]),
        (Bells, RATES, lambda y: y + 0.1, ["Kolmogorov-Smirnov"]),
        (PairBells, PAIRS, lambda y: 1.1 * y, ["the mean of y[0] is", "standard errors off"]),
    ],
)
def test_draws_that_disagree(kind, truth, draw, parts):
    made = type("Off", (kind,), {"draw": lambda self, params, key, x: draw(kind.draw(self, params, key, x))})
    model = made(2) if kind is PairBells else made(1)
    refused(model, truth, "Off.draw_rows disagrees with Off.log_density", *parts)


def test_draws_of_a_joint_density_that_disagree():
    case = mixtures.MIXTURES["gated-K2-d1-o1"]

    class Off(ms.GaussianGated):
        def draw_x(self, params, key, expert):
            return super().draw_x(params, key, expert) + 0.4

    refused(Off(1, 1, mixtures.RANGE, mixtures.RANGE), case.truth, "Off.draw_rows disagrees", "x[0]", law=None)


def test_what_models_are_told_elsewhere():
    """Texts of ``models.base`` that are no matter of the contract."""

    class Families(SigmoidGate):
        def parameters(self):
            return {
                "bias": ms.Parameter(bound="bias_bound", group="routed"),
                "offset": ms.Parameter(bound="bias_bound", group="shared"),
            }

    with pytest.raises(ms.ModelError, match="Families has atoms of routed and shared: say how many of each"):
        Families(1, 0.3).sizes(2)
    with pytest.raises(ms.ModelError, match="SigmoidGate: no split of an atom keeps its function"):
        SigmoidGate(1, 0.3).overfit({k: np.array(v) for k, v in SIGMOID.items()}, np.array([0, 0, 1]))


def test_every_text_of_the_contract_is_produced_here(request):
    """In a file that was run whole: each ``ModelError`` of ``moe_sim.testing`` and ``models.base`` was made above."""
    ran = {item.function for item in request.session.items if item.path == request.path}
    if len(ran) < sum(name.startswith("test_") for name in globals()) or hasattr(request.config, "workerinput"):
        pytest.skip("a part of the file was asked for, or several processes share it")
    ours = ("testing/", "models/base.py")
    sites = {site for site in error_sites() if str(Path(site[0]).relative_to(PACKAGE)).startswith(ours)}
    assert sites and sites <= MADE, sorted(sites - MADE)


# The statistics of the contract itself.


def test_the_chi_square_is_calibrated():
    """p-values of draws that agree are uniform, as far as 200 of them can tell."""
    rng = np.random.default_rng(0)
    mass = rng.dirichlet([1.0, 2.0, 3.0], size=16)
    at = np.repeat(np.arange(16), 125)
    p = []
    for _ in range(200):
        drawn = np.array([rng.choice(3, p=mass[k]) for k in at[::5]])
        p.append(densities._chi_square(drawn.astype(float), at[::5], mass))
    assert np.mean(p) == pytest.approx(0.5, abs=0.1) and np.mean(np.array(p) < 0.05) < 0.12


def test_the_contract_draws_with_a_fixed_seed():
    assert check_model(Bells(), RATES, LAW, atoms=3) == check_model(Bells(), RATES, LAW)


def test_the_example_runs():
    assert doctest.testmod(ms.testing) == (0, 4)
