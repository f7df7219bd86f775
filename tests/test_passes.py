"""The passes against automatic differentiation of a naive objective, finite differences and statistics."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from models import MODELS, every, means, random_params
from scipy import stats

from moe_sim.data.samples import StoredSample, stored
from moe_sim.likelihood.objective import least_squares

ROWS = 24
CHUNKS = (1, 3)


@cache
def setting(name):
    """Passes of a model, with everything that the tests ask of them compiled once: (theta, sample, naive, answer).

    The same rows come as one chunk and as three; ``answer[chunks]`` holds value, objective, gradient, gram and
    curvature at theta, an arbitrary point with large residuals.
    """
    case = MODELS[name]
    rng = np.random.default_rng(7)
    theta, unflatten = ravel_pytree({k: jnp.asarray(v) for k, v in random_params(case, 2, rng).items()})
    passes = least_squares(lambda t, x: case.model.mean(unflatten(t), x), case.model.noise)
    x, y = rng.normal(size=(ROWS, case.model.dimension)), rng.normal(size=(ROWS, case.model.outputs))
    weight = rng.integers(0, 5, ROWS).astype(float)

    def naive(t):
        answer = jax.vmap(lambda one: case.model.mean(unflatten(t), one))(x)
        return jnp.sum(weight[:, None] * (y - answer) ** 2) / (2 * case.model.noise**2)

    def everything(t, sample):
        return passes.value(t, sample), *passes.first(t, sample), passes.curvature(t, sample)

    split = {k: jax.tree.map(lambda v: v.reshape(k, ROWS // k, *v.shape[2:]), stored(x, y, weight)) for k in CHUNKS}  # noqa: B023
    run = jax.jit(lambda t: ([everything(t, split[k]) for k in CHUNKS], jax.grad(naive)(t), jax.hessian(naive)(t)))
    found, gradient, hessian = jax.device_get(run(theta))
    value = jax.jit(lambda t: passes.value(t, split[1]))
    return case, unflatten, theta, (x, y, weight), found, gradient, hessian, value


SOME = ["independent-d2-N0-L2", "network-d3-N3-L3", "learned-d2-N1-L2"]
some = pytest.mark.parametrize("name", SOME)


@some
def test_the_objective_is_the_weighted_sum_of_squares(name):
    case, unflatten, theta, (x, y, weight), found, *_ = setting(name)
    params = {k: np.asarray(v) for k, v in unflatten(theta).items()}
    expected = 0.0
    for i in range(ROWS):
        expected += weight[i] * np.sum((y[i] - case.naive(params, x[i])) ** 2) / (2 * case.model.noise**2)
    for answer in found:
        assert answer[0] == pytest.approx(expected, rel=1e-13)
        assert answer[1] == pytest.approx(expected, rel=1e-13)


@some
def test_gradient_and_hessian_are_those_of_autodiff(name):
    *_, found, gradient, hessian, _ = setting(name)
    for _, _, g, gram, curvature in found:
        assert g == pytest.approx(gradient, abs=1e-11 * np.abs(gradient).max())
        assert gram + curvature == pytest.approx(hessian, abs=1e-11 * np.abs(hessian).max())


@some
def test_gradient_by_central_differences(name):
    """Step 1e-5: truncation about 1e-10 of the third derivative, rounding about 1e-11 of the objective."""
    _, _, theta, _, found, gradient, _, value = setting(name)
    step = 1e-5 * np.eye(len(theta))
    numeric = np.array([(value(theta + e) - value(theta - e)) / 2e-5 for e in step])
    assert found[0][2] == pytest.approx(numeric, abs=1e-6 * np.abs(gradient).max())


@some
def test_the_gram_matrix_is_the_sum_of_outer_products(name):
    """sum_i w_i J_i'J_i / noise^2 with the Jacobian of the naive mean by central differences."""
    case, unflatten, theta, (x, _, weight), found, *_ = setting(name)
    step = 1e-6 * np.eye(len(theta))
    f = lambda t: means(case, unflatten(t), x)  # noqa: E731
    jacobian = np.stack([(f(theta + e) - f(theta - e)) / 2e-6 for e in step], axis=-1)  # (rows, outputs, P)
    gram = sum(weight[i] * jacobian[i].T @ jacobian[i] for i in range(ROWS)) / case.model.noise**2
    assert found[0][3] == pytest.approx(gram, abs=1e-7 * np.abs(gram).max())


@some
def test_several_chunks_give_what_one_gives(name):
    one, three = setting(name)[4]
    for a, b in zip(one, three, strict=True):
        assert b == pytest.approx(a, abs=1e-12 * np.abs(a).max())


@pytest.fixture(scope="module", params=["linear-d2-N1-L2", "independent-d1-N1-L1"])
def scores(request):
    """Per-sample scores (n, P) and Gram matrices (n, P, P) at the truth over raw data from a plain numpy sampler."""
    case, n = MODELS[request.param], 20_000
    rng = np.random.default_rng(11)
    x = rng.uniform(-2, 2, size=(n, case.model.dimension))
    y = means(case, case.truth, x) + case.model.noise * rng.normal(size=(n, case.model.outputs))
    theta, unflatten = ravel_pytree({k: jnp.asarray(v) for k, v in case.truth.items()})
    passes = least_squares(lambda t, x: case.model.mean(unflatten(t), x), case.model.noise)
    rows = StoredSample(*(jnp.asarray(v)[:, None, None] for v in (x, y)), jnp.ones((n, 1, 1)))
    _, score, gram = jax.device_get(jax.jit(jax.vmap(passes.first, (None, 0)))(theta, rows))
    _, _, total = jax.device_get(jax.jit(passes.first)(theta, stored(x, y)))
    return score, gram, total


def test_the_mean_score_is_zero_at_the_truth(scores):
    """Hotelling's T^2 against chi-square of P degrees; false-alarm rate 1e-4 a model."""
    score, _, _ = scores
    n, P = score.shape
    mean = score.mean(axis=0)
    assert stats.chi2(P).sf(n * mean @ np.linalg.solve(np.cov(score.T), mean)) > 1e-4


def test_the_covariance_of_scores_is_the_information(scores):
    """Each entry of s s' - J'J / noise^2 has mean zero, whatever x: z-scores, Bonferroni over the entries at 1e-4.

    The Monte Carlo error of an entry is its standard deviation over sqrt(n); it must be small beside the entry
    itself on the diagonal, or the test would say nothing.
    """
    score, gram, total = scores
    n, P = score.shape
    assert gram.sum(axis=0) == pytest.approx(total, rel=1e-10)
    gap = score[:, :, None] * score[:, None] - gram
    error = gap.std(axis=0) / np.sqrt(n)
    z = np.abs(gap.mean(axis=0) / error)[np.triu_indices(P)]
    assert np.max(z) < stats.norm.isf(1e-4 / 2 / len(z))
    assert np.all(np.diag(error) < 0.05 * np.diag(total) / n)


@every("linear-d2-N1-L2")
def test_the_expected_curvature_vanishes_at_the_truth(case):
    """On noiseless data at the truth the residuals are 0, so the exact Hessian is the Gram matrix."""
    theta, unflatten = ravel_pytree({k: jnp.asarray(v) for k, v in case.truth.items()})
    passes = least_squares(lambda t, x: case.model.mean(unflatten(t), x), case.model.noise)
    x = case.law.nodes()[0]
    y = np.stack([case.naive(case.truth, one) for one in x])
    run = jax.jit(lambda t: (*passes.first(t, stored(x, y)), passes.curvature(t, stored(x, y))))
    objective, gradient, gram, curvature = run(theta)
    assert objective == pytest.approx(0.0, abs=1e-25) and np.max(np.abs(gradient)) < 1e-11
    assert np.max(np.abs(curvature)) < 1e-11 * np.max(gram)
