"""EM: its steps against closed forms, that it never goes down, and that it ends where scoring does."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import MIXTURES, atoms_of, passes_at, rows
from scipy.special import softmax as softmax_of

from moe_sim.data.draw import draw
from moe_sim.data.samples import stored
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.models.softmax_gaussian import SoftmaxGaussian
from moe_sim.solvers.em import Point, em_step, expectation_maximization
from moe_sim.solvers.solution import Status
from moe_sim.solvers.steps import steps
from moe_sim.solvers.trust_region import GRAIN, trust_region


def sample_of(case, n, seed):
    return rows(draw(case.model, case.truth, case.law, n, seed, mode="iid"))


@cache
def _setting(name):
    case = MIXTURES[name]
    fitter = Fitter(case.model, case.truth, FitOptions(atoms_of(case), "em", bound=30.0, bias_bound=30.0))
    groups = fitter._groups(case.model)
    return *passes_at(case, case.truth), np.asarray(fitter.lower), np.asarray(fitter.upper), groups


def setting(case, x, y, seed=0, spread=0.7):
    """A start, the passes, the sample, bounds and EM's variance groups."""
    name = next(name for name, other in MIXTURES.items() if other is case)
    theta, unflatten, passes, lower, upper, groups = _setting(name)
    start = np.clip(theta + spread * np.random.default_rng(seed).normal(size=theta.shape), lower, upper)
    return jnp.asarray(start), unflatten, passes, stored(x, y), lower, upper, groups


@pytest.mark.parametrize("name", list(MIXTURES))
def test_no_step_lowers_the_likelihood(name):
    """30 EM steps from three poor starts, every model, free and tied, bounds touched or not."""
    case = MIXTURES[name]
    x, y = sample_of(case, 300, 1)
    _, _, passes, sample, lower, upper, groups = setting(case, x, y)

    @jax.jit
    def path(theta):
        look = lambda t: Point(t, *passes.complete(t, sample))  # noqa: E731

        def step(carry, _):
            at, radius = carry
            new, radius, _, fine = em_step(look, at, radius, lower, upper, groups)
            return (new, radius), (new.objective, fine)

        begin = look(theta)
        return begin.objective, jax.lax.scan(step, (begin, jnp.array(jnp.inf)), None, 30)[1]

    for seed in range(3):
        begin, (objectives, fine) = path(setting(case, x, y, seed)[0])
        values = np.concatenate([[begin], objectives])
        assert np.all(np.diff(values) <= GRAIN * (1 + np.abs(values[:-1])))
        assert values[-1] < values[0] - 1 and np.all(fine)


def test_a_step_is_the_closed_form():
    """Experts by weighted least squares, variances by weighted mean squares, the gate by one step of IRLS: in numpy."""
    case = MIXTURES["softmax-K2-d1-o1"]
    x, y = sample_of(case, 200, 2)
    start, unflatten, passes, sample, lower, upper, groups = setting(case, x, y, 3, spread=0.2)
    look = jax.jit(lambda t: Point(t, *passes.complete(t, sample)))
    new, _, tries, fine = em_step(look, look(start), jnp.array(jnp.inf), lower, upper, groups)
    assert fine and tries == 1
    old, found = ({k: np.asarray(v) for k, v in unflatten(t).items()} for t in (start, new.theta))

    features = np.column_stack([np.ones(len(x)), x])
    logits = features @ np.column_stack([old["gate_bias"], old["gate_slope"]]).T
    mean = features @ np.column_stack([old["intercept"], old["slope"]]).T
    log_part = logits - 0.5 * np.log(old["variance"]) - 0.5 * (y - mean) ** 2 / old["variance"]
    tau = softmax_of(log_part, axis=1)
    for k in range(2):
        root = np.sqrt(tau[:, k])
        line, *_ = np.linalg.lstsq(root[:, None] * features, root * y[:, 0], rcond=None)
        assert [found["intercept"][k], found["slope"][k, 0]] == pytest.approx(line, rel=1e-9)
        rest = tau[:, k] @ (y[:, 0] - features @ line) ** 2 / tau[:, k].sum()
        assert found["variance"][k] == pytest.approx(rest, rel=1e-9)
    w = softmax_of(logits, axis=1)[:, 0]
    newton = np.linalg.solve(features.T @ ((w * (1 - w))[:, None] * features), features.T @ (tau[:, 0] - w))
    assert [found["gate_bias"][0], found["gate_slope"][0, 0]] == pytest.approx(logits_of(old) + newton, rel=1e-9)


def logits_of(params):
    return np.array([params["gate_bias"][0], params["gate_slope"][0, 0]])


@pytest.fixture(scope="module")
def both():
    """EM and scoring from one start on each of 200 random data sets, a truth of its own each: two dicts of arrays."""
    model, sets, n = SoftmaxGaussian(1, 1, (1e-2, 1e2)), 200, 400
    rng = np.random.default_rng(17)
    truths = {
        "gate_bias": np.column_stack([rng.normal(size=sets), np.zeros(sets)]),
        "gate_slope": np.stack([rng.normal(size=(sets, 1)), np.zeros((sets, 1))], axis=1),
        "intercept": rng.normal(size=(sets, 2)) + np.array([2.0, -2.0]), "slope": rng.normal(size=(sets, 2, 1)),
        "variance": 0.3 + rng.random((sets, 2)),
    }  # fmt: skip
    x = rng.uniform(-2, 2, size=(sets, n))
    logit = truths["gate_bias"][:, :1] + truths["gate_slope"][:, 0] * x
    expert = (rng.random((sets, n)) * (1 + np.exp(-logit)) > 1).astype(int)
    pick = lambda v: np.take_along_axis(v, expert, axis=1)  # noqa: E731
    y = pick(truths["intercept"]) + pick(truths["slope"][:, :, 0]) * x
    y = y + np.sqrt(pick(truths["variance"])) * rng.normal(size=(sets, n))
    samples = stored(x[0][:, None], y[0][:, None])
    samples = type(samples)(jnp.asarray(x[:, None, :, None]), jnp.asarray(y[:, None, :, None]), jnp.ones((sets, 1, n)))

    fitter = Fitter(model, None, FitOptions(2, "em", bound=30.0, bias_bound=30.0))
    starts = np.stack([fitter.flatten({k: v[r] for k, v in truths.items()}) for r in range(sets)])
    lower, upper = jnp.asarray(fitter.lower), jnp.asarray(fitter.upper)
    em = partial(expectation_maximization, max_iterations=20_000, groups=fitter._groups(model))
    solvers = {"em": em, "scoring": partial(trust_region, patience=10)}
    found = {}
    for name, solver in solvers.items():

        def solve(_, sample, lane, solver=solver):
            return solver(fitter.passes, sample, lane[1], lower, upper, tolerance=1e-9)

        found[name] = LaneFunction(solve)(None, (np.arange(sets), starts), samples)
    return found


def test_em_and_scoring_reach_the_same_maximum(both):
    """Within 1e-7 of a log-likelihood unit on at least 95% of the data sets; both from the truth, tolerance 1e-9."""
    gap = np.abs(both["em"].objective - both["scoring"].objective)
    assert np.mean(gap <= 1e-7) >= 0.95


def test_both_say_that_they_converged(both):
    for name, found in both.items():
        assert np.mean(found.status == Status.CONVERGED) >= 0.95, name
    assert np.median(both["em"].iterations) > np.median(both["scoring"].iterations)


@pytest.mark.parametrize("name", ["softmax-K3-d2-o2", "gated-K2-d1-o1", "gated-K3-d2-o2", "prefix-learned-N1"])
def test_em_ends_where_scoring_does_for_other_models(name):
    """From near the truth, 400 samples. An M step that hardly moves the gates ends at the limit; 0.01: flat valleys."""
    case = MIXTURES[name]
    x, y = sample_of(case, 400, 8)
    start, _, passes, sample, lower, upper, groups = setting(case, x, y, spread=0.05)
    em = jax.jit(lambda t: expectation_maximization(passes, sample, t, lower, upper, 2000, groups=groups))(start)
    best = jax.jit(lambda t: trust_region(passes, sample, t, lower, upper, patience=10))(start)
    assert {int(em.status), int(best.status)} <= {Status.CONVERGED, Status.FLAT}
    assert float(em.objective) == pytest.approx(float(best.objective), abs=1e-2)


def test_no_leap_lowers_the_likelihood():
    """SQUAREM included: the objective after 2, 4, ... 40 steps, from eight poor starts."""
    case = MIXTURES["softmax-K2-d1-o1"]
    x, y = sample_of(case, 300, 9)
    _, _, passes, sample, lower, upper, groups = setting(case, x, y)
    run = jax.jit(
        lambda t, limit: expectation_maximization(passes, sample, t, lower, upper, limit, groups=groups).objective
    )
    for seed in range(8):
        start = setting(case, x, y, seed)[0]
        values = np.array([run(start, limit) for limit in range(2, 42, 2)])
        assert np.all(np.diff(values) <= GRAIN * (1 + np.abs(values[:-1])))


def test_em_says_how_it_stopped():
    case = MIXTURES["softmax-K2-d1-o1"]
    x, y = sample_of(case, 300, 4)
    start, _, passes, sample, lower, upper, groups = setting(case, x, y)
    run = jax.jit(lambda t, limit: expectation_maximization(passes, sample, t, lower, upper, limit, groups=groups))
    done = run(start, 5000)
    assert done.status == Status.CONVERGED
    cut = run(start, 4)
    assert cut.status == Status.MAX_ITERATIONS and cut.iterations == 4 and cut.objective > done.objective
    assert run(start.at[0].set(jnp.nan), 5000).status == Status.NOT_FINITE
    assert np.all((lower <= done.theta) & (done.theta <= upper))


def test_the_box_holds_em():
    """A variance that would go to 0 stops at its bound: a line through points that lie on it."""
    case = MIXTURES["softmax-K2-d1-o1"]
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, size=(120, 1))
    y = np.where(np.arange(120)[:, None] % 2, 1.0 + 2.0 * x, rng.normal(size=(120, 1)) - 3.0)
    start, unflatten, passes, sample, lower, upper, groups = setting(case, x, y, spread=0.3)
    found = jax.jit(lambda t: expectation_maximization(passes, sample, t, lower, upper, groups=groups))(start)
    variance = np.asarray(unflatten(found.theta)["variance"])
    assert variance.min() == pytest.approx(1e-3, rel=1e-9) and np.isfinite(found.objective)


# A solver cut short


def test_steps_are_plain_em_steps():
    """k steps, one after the other, against ``em_step`` called k times; 0 is the start itself."""
    case = MIXTURES["softmax-K2-d1-o1"]
    x, y = sample_of(case, 300, 6)
    theta, _, passes, sample, lower, upper, groups = setting(case, x, y)
    look = jax.jit(lambda t: Point(t, *passes.complete(t, sample)))
    run = jax.jit(lambda t, most: steps(passes, sample, t, lower, upper, most, groups=groups))
    step = jax.jit(lambda at, radius: em_step(look, at, radius, lower, upper, groups)[:2])
    at, radius = look(theta), jnp.array(jnp.inf)
    for k in range(4):
        found = run(theta, k)
        assert np.allclose(found.theta, at.theta, rtol=1e-10) and found.iterations == k
        assert (
            float(found.objective) == pytest.approx(float(at.objective), rel=1e-12)
            and found.status == Status.MAX_ITERATIONS
        )
        at, radius = step(at, radius)


def test_a_relative_tolerance_ends_early():
    """The step at which it ends changed the log-likelihood by less than the tolerance, the ones before by more."""
    case = MIXTURES["softmax-K2-d1-o1"]
    x, y = sample_of(case, 300, 7)
    theta, _, passes, sample, lower, upper, groups = setting(case, x, y)
    run = jax.jit(lambda t, most, tolerance: steps(passes, sample, t, lower, upper, most, tolerance, groups=groups))
    found = run(theta, 2000, 1e-4)
    assert found.status == Status.EARLY and 2 < found.iterations < 2000
    values = [float(run(theta, k, 0.0).objective) for k in range(int(found.iterations) + 1)]
    change = -np.diff(values) / np.abs(values[:-1])
    assert change[-1] <= 1e-4 and np.all(change[:-1] > 1e-4)
    best = jax.jit(lambda t: trust_region(passes, sample, t, lower, upper))(found.theta)
    assert best.objective < found.objective - 1e-3  # early is not converged
    for most in (0, 5):
        assert run(theta.at[0].set(jnp.nan), most, 0.0).status == Status.NOT_FINITE
