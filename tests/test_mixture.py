"""Every mixture of the table: its density, its passes, its sampler, and what leaves the density as it is."""

from functools import cache
from itertools import permutations

import jax
import jax.numpy as jnp
import mixtures
import models
import numpy as np
import pytest
from mixtures import MIXTURES, atoms_of, every, free_vector, naive_log_density, passes_at, rows
from scipy import stats
from scipy.special import logsumexp, ndtr

from moe_sim.data.covariates import Linspace, Uniform
from moe_sim.data.draw import draw
from moe_sim.data.samples import StoredSample, kept, stored
from moe_sim.losses.distances import function_distance

ROWS, CHUNKS = 48, 3


def random_params(case, atoms, rng):
    """Parameters of the model's shapes within its constraints: those of random free coordinates near the truth's."""
    theta, unflatten = free_vector(case, case.model.overfit(case.truth, rng.integers(0, atoms_of(case), atoms)))
    return {k: np.asarray(v) for k, v in unflatten(theta + 0.5 * rng.normal(size=theta.shape)).items()}


def data(case, rng, count):
    x = 1.5 * rng.normal(size=(count, case.model.dimension))
    return x, 1.5 * rng.normal(size=(count, case.model.outputs))


@cache
def _density(model):
    return jax.jit(jax.vmap(model.log_density, (None, 0, 0)))


def log_density(case, params, x, y):
    return np.asarray(_density(case.model)({k: jnp.asarray(v) for k, v in params.items()}, x, y))


@every()
def test_the_density_is_the_formula(case):
    rng = np.random.default_rng(0)
    x, y = data(case, rng, 5)
    for params in (case.truth, random_params(case, atoms_of(case) + 1, rng)):
        expected = [naive_log_density(case, params, a, b) for a, b in zip(x, y, strict=True)]
        assert log_density(case, params, x, y) == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["independent-d3-N1-L2", "network-d3-N3-L3"])
def test_a_prefix_mixture_has_the_mean_of_its_head(name):
    """Gates times outputs, frozen experts included, is f_G of the regression, by that one's naive formula."""
    head, case = models.MODELS[name], mixtures.prefix(name)
    for x in np.random.default_rng(1).normal(size=(4, case.model.dimension)):
        gates = np.exp(np.asarray(case.model.log_gates(case.truth, x)))
        mean, variance = (np.asarray(v) for v in case.model.experts(case.truth, x))
        assert gates @ mean == pytest.approx(head.naive(head.truth, x), abs=1e-12)
        assert variance == pytest.approx(np.full(mean.shape, head.model.noise**2))


@cache
def setting(name):
    """Passes of a mixture at a random point, once over one padded chunk and once over three, and autodiff's answers."""
    case = MIXTURES[name]
    rng = np.random.default_rng(3)
    params = random_params(case, atoms_of(case), rng)
    theta, unflatten, passes = passes_at(case, params)
    x, y = data(case, rng, ROWS - 5)
    whole = stored(x, y)
    pad = StoredSample(*(jnp.concatenate([v, jnp.zeros((1, 5, *v.shape[2:]))], axis=1)
                         for v in (whole.x, whole.y, whole.weight)))  # fmt: skip
    split = jax.tree.map(lambda v: v.reshape(CHUNKS, ROWS // CHUNKS, *v.shape[2:]), pad)

    def logs(t):
        return jax.vmap(lambda a, b: case.model.log_density(unflatten(t), a, b))(jnp.asarray(x), jnp.asarray(y))

    def q(t):
        """EM's Q, its responsibilities those at theta."""
        parts = lambda u: jax.vmap(lambda a, b: case.model.log_components(unflatten(u), a, b))(x, y)  # noqa: E731
        return jnp.sum(jax.nn.softmax(parts(theta), axis=1) * parts(t))

    def everything(t, sample):
        assert passes.complete is not None
        return passes.value(t, sample), passes.first(t, sample), passes.curvature(t, sample), passes.complete(t, sample)

    truth = jax.jit(lambda t: (logs(t), jax.jacfwd(logs)(t), jax.hessian(lambda u: jnp.sum(logs(u)))(t),
                               jax.hessian(q)(t)))  # fmt: skip
    found = jax.device_get(jax.jit(lambda t: [everything(t, sample) for sample in (whole, pad, split)])(theta))
    return found, [np.asarray(v) for v in truth(theta)], case, params


some = pytest.mark.parametrize("name", list(MIXTURES))


@some
def test_the_passes_are_those_of_autodiff(name):
    found, (logs, scores, hessian, _), *_ = setting(name)
    for value, (objective, gradient, gram), curvature, (again, same, _) in found:
        assert value == pytest.approx(-logs.sum(), rel=1e-13)
        assert objective == pytest.approx(value, rel=1e-14) and again == pytest.approx(value, rel=1e-14)
        size = np.abs(scores).max()
        assert gradient == pytest.approx(-scores.sum(axis=0), abs=1e-11 * ROWS * size)
        assert same == pytest.approx(gradient, abs=1e-12 * ROWS * size)
        assert gram == pytest.approx(scores.T @ scores, abs=1e-11 * np.abs(gram).max())
        assert gram + curvature == pytest.approx(-hessian, abs=1e-11 * np.abs(gram).max())


@pytest.mark.parametrize("name", [n for n in MIXTURES if "network" not in n and "learned" not in n])
def test_the_complete_information_is_the_curvature_of_q(name):
    """Where the coefficients are linear in the free coordinates; log-variances have that of the M step, tau / 2.

    Gaussian gates' coefficients are not linear in theirs, so those are left out as well.
    """
    found, (*_, q), case, params = setting(name)
    names, _ = free_vector(case, params)
    free = case.model.unconstrain(params)
    kept_out = {"log_variance", "log_ratio", "center", "log_scale", "below"}
    linear = np.concatenate([np.full(np.size(free[k]), k not in kept_out) for k in sorted(free)])
    inside = np.ix_(linear, linear)
    for *_, (_, _, information) in found:
        assert information[inside] == pytest.approx(-q[inside], abs=1e-11 * np.abs(q).max())
    assert linear.sum() >= 4 and len(names) == len(linear)


@some
def test_free_coordinates_and_back(name):
    case = MIXTURES[name]
    theta, unflatten = free_vector(case, case.truth)
    again, _ = free_vector(case, unflatten(theta))
    assert np.asarray(again) == pytest.approx(np.asarray(theta), abs=1e-13)
    x, y = data(case, np.random.default_rng(4), 4)
    assert log_density(case, unflatten(theta), x, y) == pytest.approx(log_density(case, case.truth, x, y), abs=1e-12)
    lower, upper = case.model.bounds(atoms_of(case), 5.0, 5.0)
    free = case.model.unconstrain(case.truth)
    assert set(lower) == set(upper) == set(free)
    assert all(np.all((lower[k] <= np.asarray(v)) & (np.asarray(v) <= upper[k])) for k, v in free.items())


@some
def test_order_and_shared_masses_do_not_matter(name):
    case = MIXTURES[name]
    rng = np.random.default_rng(5)
    x, y = data(case, rng, 4)
    expected = log_density(case, case.truth, x, y)
    atoms = atoms_of(case)
    shared = {k for k, shape in case.model.shapes(1).items() if shape == case.model.shapes(2)[k]}
    for order in permutations(range(atoms)):
        moved = {k: v if k in shared else np.asarray(v)[list(order)] for k, v in case.truth.items()}
        assert log_density(case, moved, x, y) == pytest.approx(expected, abs=1e-12)
    for spare in (1, 2):
        cover = np.concatenate([np.arange(atoms), rng.integers(0, atoms, spare)])
        found = case.model.overfit(case.truth, cover)
        assert {k: np.shape(v) for k, v in found.items()} == case.model.shapes(atoms + spare)
        assert log_density(case, found, x, y) == pytest.approx(expected, abs=1e-12)


@some
def test_the_gauge_is_what_the_model_says(name):
    """Translations of log-weights and gate slopes are invisible exactly where ``gauge`` says so, in the loss too."""
    case = MIXTURES[name]
    model = case.model
    mass = model.masses[model.groups[0]]
    if mass == "weight":
        assert model.gauge is None  # the weights of a density add up to 1: there is nothing to translate
        return
    x, y = data(case, np.random.default_rng(6), 4)
    expected = log_density(case, case.truth, x, y)
    moved = lambda change: np.max(np.abs(log_density(case, case.truth | change, x, y) - expected))  # noqa: E731
    assert (moved({mass: case.truth[mass] + 1.3}) < 1e-12) == (model.gauge is not None)
    if model.gauge:
        shift = np.linspace(0.5, 1.0, case.truth[model.gauge].shape[1])
        assert moved({model.gauge: case.truth[model.gauge] + shift}) < 1e-12


def score_sums(case, truth, n, seed):
    """Sums over n sampled rows, at the truth: scores and score products with minus Hessians, and their squares."""
    theta, unflatten = free_vector(case, truth)
    one = lambda t, x, y: case.model.log_density(unflatten(t), x, y)  # noqa: E731

    @jax.jit
    def chunk(x, y):
        score = jax.vmap(jax.grad(one), (None, 0, 0))(theta, x, y)
        hessian = jax.vmap(jax.hessian(one), (None, 0, 0))(theta, x, y)
        gap = score[:, :, None] * score[:, None] + hessian
        return [jnp.sum(v, axis=0) for v in (score, score**2, gap, gap**2)]

    x, y = rows(draw(case.model, truth, case.law, n, seed, mode="iid"))
    parts = [chunk(x[i : i + 2048], y[i : i + 2048]) for i in range(0, n, 2048)]
    return [np.sum([np.asarray(p[k]) for p in parts], axis=0) for k in range(4)]


@some
def test_scores_have_mean_zero_and_the_information_identity_holds(name):
    """E score = 0 and E[s s'] = -E Hessian at the truth: |z| < 5 over all entries that are not constant.

    The largest of 200 entries exceeds 5 by chance in 1 of 9,000 runs of a model.
    """
    case, n = MIXTURES[name], 20_480
    score, square, gap, gap_square = score_sums(case, case.truth, n, seed=8)
    for total, squares in ((score, square), (gap, gap_square)):
        mean = total / n
        deviation = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
        moving = deviation > 1e-9 * (1.0 + np.abs(mean))
        assert np.max(np.abs(mean[moving]) / deviation[moving]) * np.sqrt(n) < 5
        assert np.max(np.abs(mean[~moving]), initial=0.0) < 1e-9
    assert (square > 0).all()


def rosenblatt(case, params, x, y):
    """Coordinates of y through their conditional distribution functions, naive: independent and uniform (n, o)."""
    found = np.empty(y.shape)
    for i in range(len(x)):
        log_weight, mean, variance = case.naive(params, x[i])
        for j in range(y.shape[1]):
            weight = np.exp(log_weight - logsumexp(log_weight))
            away = (y[i, j] - mean[:, j]) / np.sqrt(variance[:, j])
            found[i, j] = weight @ ndtr(away)
            log_weight = log_weight - (away**2 + np.log(2 * np.pi * variance[:, j])) / 2
    return found


@some
def test_the_sampler_has_the_density(name):
    """Probability transforms of y given x are uniform, and independent of one another; false-alarm rate 1e-4 each."""
    case = MIXTURES[name]
    x, y = rows(draw(case.model, case.truth, case.law, 2000, 9, mode="iid"))
    assert x.shape == (2000, case.model.dimension) and y.shape == (2000, case.model.outputs)
    u = rosenblatt(case, case.truth, x, y)
    for j in range(u.shape[1]):
        assert stats.kstest(u[:, j], "uniform").pvalue > 1e-4
        assert abs(stats.spearmanr(u[:, j], x[:, 0]).statistic) < 4 / np.sqrt(len(u))


@every("gated-K2-d1")
def test_a_joint_sampler_has_the_density_of_x(case):
    """x is a Gaussian mixture with the true weights; false-alarm rate 1e-4."""
    x, _ = rows(draw(case.model, case.truth, None, 20_000, 10, mode="iid"))
    t = case.truth
    cdf = lambda v: sum(w * stats.norm(c[0], np.sqrt(s[0, 0])).cdf(v)  # noqa: E731
                        for w, c, s in zip(t["weight"], t["center"], t["covariance"], strict=True))  # fmt: skip
    assert stats.kstest(x[:, 0], cdf).pvalue > 1e-4


def test_a_linspace_design_has_each_point_once():
    case = MIXTURES["softmax-K2-d1-o1"]
    for n in (5, 1024, 2500):
        sample = draw(case.model, case.truth, Linspace(1, -1.0, 3.0), n, 11, mode="iid")
        x, _ = rows(sample)
        assert np.sort(x[:, 0]) == pytest.approx(np.linspace(-1.0, 3.0, n), abs=1e-14)
        if n == 2500:  # each chunk is spread over the design, so that the first is a fair subsample
            first = np.asarray(sample.chunk(0)[0])[np.asarray(sample.chunk(0)[2]) > 0]
            assert np.ptp(first) > 0.99 * 4 and abs(first.mean() - 1.0) < 0.01


def test_kept_rows_are_the_rows_that_were_given():
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(1500, 2)), rng.normal(size=(1500, 1))
    found = rows(kept(x, y))
    assert np.array_equal(found[0], x) and np.array_equal(found[1], y)


@every("softmax-K2-d1")
def test_the_hellinger_distance_is_that_of_quadrature(case):
    """Against the trapezoidal rule over y at each node of the law, exact to rounding for smooth densities.

    The rule in use has 24 normal nodes an expert: 5e-4 was the largest error met, as good far off as near by.
    """
    law, y = Uniform(1, -2.0, 2.0, 8), np.linspace(-40, 40, 8001)
    distance = function_distance(case.model, case.truth, law)
    rng = np.random.default_rng(13)
    theta, unflatten = free_vector(case, case.truth)
    for scale in (1e-4, 1e-2, 0.5):
        params = unflatten(theta + scale * rng.normal(size=theta.shape))
        square = 0.0
        for x, mass in zip(*law.nodes(), strict=True):
            p, q = (log_density(case, at, np.tile(x, (len(y), 1)), y[:, None]) for at in (params, case.truth))
            square += mass * 0.5 * np.sum((np.exp(p / 2) - np.exp(q / 2)) ** 2) * (y[1] - y[0])
        assert float(distance(params)) == pytest.approx(np.sqrt(square), rel=1e-3)
    assert float(distance(case.truth)) == 0.0


@every("gated-K2-d1")
def test_the_hellinger_distance_of_joint_densities(case):
    """Against the trapezoidal rule on a fine grid over (x, y), which for smooth densities is exact to rounding."""
    theta, unflatten = free_vector(case, case.truth)
    params = unflatten(theta + 0.02 * np.random.default_rng(14).normal(size=theta.shape))
    x, y = np.linspace(-12, 12, 401), np.linspace(-25, 25, 801)
    pairs = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    p, q = (log_density(case, at, pairs[:, :1], pairs[:, 1:]) for at in (params, case.truth))
    square = 0.5 * np.sum((np.exp(p / 2) - np.exp(q / 2)) ** 2) * (x[1] - x[0]) * (y[1] - y[0])
    assert float(function_distance(case.model, case.truth, None)(params)) == pytest.approx(np.sqrt(square), rel=1e-3)
    assert np.sum(np.exp(q)) * (x[1] - x[0]) * (y[1] - y[0]) == pytest.approx(1.0, abs=1e-9)


def test_nothing_overflows_far_from_the_data():
    """A row 1e4 standard deviations away has log-density -5e7 and a finite score, not NaN."""
    case = MIXTURES["softmax-K2-d1-o1"]
    theta, _, passes = passes_at(case, case.truth)
    sample = stored(np.array([[0.5]]), np.array([[1e4]]))
    objective, gradient, gram = passes.first(theta, sample)
    assert 1e7 < float(objective) < 1e9 and np.all(np.isfinite(gradient)) and np.all(np.isfinite(gram))
    assert float(objective) == pytest.approx(-naive_log_density(case, case.truth, [0.5], [1e4]), rel=1e-12)
