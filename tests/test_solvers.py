"""Solvers: NIST's certified answers, every status, the subproblems, bounds and the certificate of stationarity."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import jax
import jax.numpy as jnp
import nist
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from models import MODELS
from scipy import optimize

from moe_sim.data.samples import StoredSample, stored
from moe_sim.fitting.options import OPTIMIZERS
from moe_sim.likelihood.objective import least_squares
from moe_sim.solvers.certificate import still_promised
from moe_sim.solvers.gradient import gradient_descent
from moe_sim.solvers.model_step import ball_step, box_step, scaling
from moe_sim.solvers.solution import Status
from moe_sim.solvers.trust_region import trust_region

PROBLEMS = {problem.name: problem for problem in nist.load()}


# --- NIST StRD -------------------------------------------------------------------------------------------------------


def nist_runs(group):
    """{(problem, start): (digits, status, rss)} of problems with equally many parameters, in one compilation.

    Rows are padded by repeating the last one with weight 0, x with zeros that no model reads.
    """
    models = list({p.model: None for p in group})
    rows, free = max(len(p.x) for p in group), jnp.full(len(group[0].certified), jnp.inf)

    @jax.jit
    def run(which, x, y, weight, start):
        passes = least_squares(lambda b, x: jax.lax.switch(which, models, b, x)[None], 1.0)
        return trust_region(passes, StoredSample(x, y, weight), start, -free, free, max_iterations=2000, tolerance=0.0)

    found = {}
    for p in group:
        index = np.minimum(np.arange(rows), len(p.x) - 1)
        x = np.pad(p.x, ((0, 0), (0, 2 - p.x.shape[1])))[index][None]
        weight = (np.arange(rows) < len(p.x)).astype(float)[None]
        for k, start in enumerate(p.starts):
            end = jax.device_get(run(models.index(p.model), x, p.y[index][None, :, None], weight, start))
            error = np.max(np.abs(end.theta - p.certified) / np.abs(p.certified))
            found[p.name, k] = -np.log10(max(error, 1e-16)), Status(int(end.status)), float(2 * end.objective)
    return found


@pytest.fixture(scope="module")
def nist_answers():
    groups = {}
    for problem in PROBLEMS.values():
        groups.setdefault(len(problem.certified), []).append(problem)
    with ThreadPoolExecutor(2) as pool:  # XLA compiles outside Python's lock
        return {key: answer for found in pool.map(nist_runs, groups.values()) for key, answer in found.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_nist(name, nist_answers):
    """Six digits of every certified parameter from one start, and the certified sum of squares; no false claim."""
    runs = [nist_answers[name, k] for k in (0, 1)]
    digits, _, rss = max(runs)
    assert digits >= 6
    # Lanczos1 was made with 14 digits and fits to 1e-25: there the sum of squares is rounding error.
    assert rss == pytest.approx(PROBLEMS[name].rss, rel=1e-6, abs=1e-20)
    for digits, status, _ in runs:
        assert digits >= 4 or status not in (Status.CONVERGED, Status.FLAT)


def test_nist_as_a_whole(nist_answers):
    assert len(nist_answers) == 54
    assert sum(digits >= 6 for digits, _, _ in nist_answers.values()) >= 52


# --- statuses --------------------------------------------------------------------------------------------------------


def line(t):
    return jnp.array([t[0] - 3.0, 2.0 * t[0], 1.0])


def valley(t):
    """The floor t1 = t0^2 of a steep curved valley falls so slowly that no step along it is worth a thing."""
    return jnp.array([1e5 * (t[1] - t[0] ** 2), 0.03 * (t[0] - 50.0)])


def kink(t):
    return 1.0 + jnp.abs(t - 1.0)


@cache
def solver(residual, parameters):
    """Minimise ||residual(theta)||^2 / 2, one observation."""
    passes = least_squares(lambda theta, x: residual(theta), 1.0)
    outputs = jax.eval_shape(residual, jnp.zeros(parameters)).shape[0]
    sample, wide = stored(np.zeros((1, 1)), np.zeros((1, outputs))), jnp.full(parameters, 100.0)
    return jax.jit(lambda start, most, tolerance: trust_region(passes, sample, start, -wide, wide, most, tolerance))


def solve(residual, start, max_iterations=200, tolerance=1e-6):
    return jax.device_get(solver(residual, len(start))(jnp.asarray(start), max_iterations, tolerance))


def test_converged():
    end = solve(line, [10.0])
    assert end.status == Status.CONVERGED
    assert end.theta == pytest.approx([0.6]) and end.objective == pytest.approx((2.4**2 + 1.2**2 + 1) / 2)
    assert end.iterations >= 1 and end.passes > end.iterations


def test_flat():
    end = solve(valley, [0.0, 0.0])
    assert end.status == Status.FLAT and end.objective <= (0.03 * 50) ** 2 / 2


def test_max_iterations():
    end = solve(valley, [0.0, 0.0], max_iterations=3)
    assert end.status == Status.MAX_ITERATIONS and end.iterations == 3


def test_stalled():
    """The minimum is a kink, and both sides promise a decrease; a tolerance of 0 rules out FLAT."""
    end = solve(kink, [4.0], tolerance=0.0)
    assert end.status == Status.STALLED
    assert end.theta == pytest.approx([1.0], abs=1e-9)
    assert solve(kink, [4.0]).status != Status.CONVERGED


@pytest.mark.parametrize("start", [-1.0, 0.0, np.nan])
def test_not_finite_at_the_start(start):
    end = solve(jnp.log, [start])
    assert end.status == Status.NOT_FINITE and end.iterations == 0


def test_a_step_to_where_nothing_is_finite_is_taken_back():
    """From 6 Gauss-Newton's first step for log(t) = 0 goes to 6 - 6 log 6 < 0, where the objective is NaN."""
    end = solve(jnp.log, [6.0])
    assert end.status == Status.CONVERGED and end.theta == pytest.approx([1.0], abs=1e-3)


def test_patience_brings_the_exact_hessian_in_early():
    """From the given iteration on every point is looked at with it; without patience only once nothing else gains."""
    x = np.linspace(0, 3, 20)
    plain = least_squares(lambda t, x: t[:1] * jnp.exp(-t[1] * x[0]), 0.01)
    sample, box = stored(x[:, None], 2 * np.exp(-x)[:, None]), jnp.full(2, 50.0)
    asked = []

    def curvature(theta, sample):
        jax.debug.callback(lambda t: asked.append(t.tolist()), theta)
        return plain.curvature(theta, sample)

    def run(patience, most):
        asked.clear()
        passes = plain._replace(curvature=curvature)
        solve = jax.jit(lambda: trust_region(passes, sample, jnp.array([0.5, 0.5]), -box, box, most, patience=patience))
        end = jax.device_get(solve())
        jax.effects_barrier()
        return end, len(asked)

    ends, counts = zip(*[run(patience, most) for patience, most in ((2, 2), (2, 3), (2, 4), (None, 4))], strict=True)
    assert [int(end.iterations) for end in ends] == [2, 3, 4, 4] and counts == (0, 1, 2, 0)
    assert not np.array_equal(ends[2].theta, ends[3].theta)
    ends = [run(patience, 200)[0] for patience in (0, 2, None)]
    assert all(end.status == Status.CONVERGED and end.theta == pytest.approx([2.0, 1.0], abs=1e-5) for end in ends)


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_name_and_a_sentence(status):
    assert str(status) == status.name.lower()
    assert status.explain().endswith(".") and len(status.explain()) > 40
    assert len({s.explain() for s in Status}) == len(Status)


# --- the subproblem in a ball ----------------------------------------------------------------------------------------

_ball = jax.jit(ball_step)


def dense_ball(g, B, scale, radius):
    """The least value of g's + s'Bs/2 over ||scale s|| <= radius, by the secular equation and a bracketing root."""
    scaled = B / np.outer(scale, scale)
    eigenvalue, basis = np.linalg.eigh(scaled)
    pull = basis.T @ (g / scale)
    value = lambda z: pull @ z + 0.5 * eigenvalue @ z**2  # noqa: E731
    if eigenvalue[0] > 0 and np.linalg.norm(pull / eigenvalue) <= radius:
        return value(-pull / eigenvalue)
    low = max(0.0, -eigenvalue[0])
    length = lambda mu: np.linalg.norm(pull / (eigenvalue + mu))  # noqa: E731
    if length(low + 1e-13) < radius:  # hard case: the rest of the length goes along the lowest eigenvector
        z = np.where(eigenvalue > eigenvalue[0] + 1e-9, -pull / np.maximum(eigenvalue - eigenvalue[0], 1e-9), 0.0)
        z[0] = np.sqrt(radius**2 - z @ z)
        return min(value(z), value(z * np.sign([-1] + [1] * (len(z) - 1))))
    high = low + np.linalg.norm(pull) / radius + 1.0
    mu = optimize.brentq(lambda mu: length(mu) - radius, low + 1e-13, high, xtol=1e-15, rtol=1e-14)
    return value(-pull / (eigenvalue + mu))


def check_ball(g, B, scale, radius, free=None):
    """The step may be up to 1% longer than the radius, so its value lies between the two exact ones."""
    free = np.ones(len(g), bool) if free is None else free
    step, interior, least = (np.asarray(v) for v in _ball(g, B, scale, free, radius, 0.0))
    assert np.all(step[~free] == 0)
    assert np.linalg.norm(scale * step) <= 1.01 * radius * (1 + 1e-9)
    part = np.ix_(free, free)
    best, better = (dense_ball(g[free], B[part], scale[free], r) for r in (radius, 1.01 * radius))
    slack = 1e-9 * (1 + abs(best))
    assert better - slack <= g @ step + 0.5 * step @ B @ step <= best + slack
    lowest = np.linalg.eigvalsh((B / np.outer(scale, scale))[part])[0]
    assert least == pytest.approx(min(lowest, 1.0) if not free.all() else lowest, abs=1e-9 * np.abs(B).max() + 1e-12)
    return step, bool(interior)


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["convex", "indefinite", "singular"]))
@settings(max_examples=120, deadline=None)
def test_ball_step_against_a_dense_solution(seed, kind):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(4, 4))
    B = {"convex": A @ A.T + 0.01 * np.eye(4), "indefinite": A + A.T, "singular": A[:, :2] @ A[:, :2].T}[kind]
    scale, radius = np.exp(rng.normal(size=4)), np.exp(2 * rng.normal())
    free = rng.random(4) < 0.8
    check_ball(rng.normal(size=4), B, scale, radius, free if free.any() else None)


def test_the_hard_case_goes_to_the_boundary():
    """No pull along the direction of negative curvature: the step must find it all the same."""
    B, g = np.diag([-1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 0.0])
    step, interior = check_ball(g, B, np.ones(4), 5.0)
    assert not interior and np.linalg.norm(step) == pytest.approx(5.0, rel=0.011)


def test_interior_means_the_free_minimum_of_a_convex_model():
    g = np.array([1.0, -2.0, 0.5, 0.0])
    step, interior = check_ball(g, np.eye(4), np.ones(4), 10.0)
    assert interior and step == pytest.approx(-g)
    assert not check_ball(g, np.eye(4), np.ones(4), 1.0)[1]
    assert not check_ball(g, np.diag([1.0, 1.0, 1.0, -0.1]), np.ones(4), 100.0)[1]


def test_a_flat_direction_without_a_pull_is_left_alone():
    """The gauge of a model without frozen experts: rounding in its gradient must not throw the step far out."""
    B, g = np.diag([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 1e-14])
    step, interior, _ = _ball(g, B, np.ones(4), np.ones(4, bool), 1e6, 1e-13)
    assert bool(interior) and np.asarray(step) == pytest.approx([-1, 0, 0, 0], abs=1e-9)


def test_scaling_gives_a_unit_diagonal_and_floors_dead_parameters():
    gram = np.diag([4.0, 9.0, 0.0])
    assert np.asarray(scaling(gram)) == pytest.approx([2.0, 3.0, 3e-6])


# --- the subproblem in a box -----------------------------------------------------------------------------------------

_box = jax.jit(box_step)


def random_box(rng, P, convex):
    A = rng.normal(size=(P, P))
    B = A @ A.T if convex else A + A.T
    lower, upper = -rng.uniform(0, 1, P), rng.uniform(0, 1, P)
    lower[0] *= rng.random() < 0.5  # half the time the point sits on a bound
    return 2 * rng.normal(size=P), B, np.exp(0.3 * rng.normal(size=P)), np.exp(rng.normal()), lower, upper


def projected_gradient(g, B, scale, radius, lower, upper):
    """The least model value along the projected-gradient path from 0, inside the ball."""
    path = np.clip(-np.geomspace(1e-4, 1e4, 300)[:, None] * g / scale**2, lower, upper)
    path = path[np.linalg.norm(scale * path, axis=1) <= radius]
    return min([0.0, *(path @ g + 0.5 * np.einsum("ti,ij,tj->t", path, B, path))])


@given(seed=st.integers(0, 2**32), convex=st.booleans())
@settings(max_examples=100, deadline=None)
def test_box_step_stays_in_the_box(seed, convex):
    g, B, scale, radius, lower, upper = random_box(np.random.default_rng(seed), 4, convex)
    theta = np.random.default_rng(seed).normal(size=4)
    step = np.asarray(_box(theta, 1.0, g, B, scale, radius, theta + lower, theta + upper)[0])
    assert np.all(theta + lower <= theta + step) and np.all(theta + step <= theta + upper)


@pytest.mark.parametrize("convex", [True, False])
def test_box_step_promises_at_least_half_of_a_projected_gradient_step(convex):
    """Sufficient decrease: what the convergence theory of trust regions asks of a step."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        g, B, scale, radius, lower, upper = random_box(rng, 4, convex)
        step = np.asarray(_box(np.zeros(4), 1.0, g, B, scale, radius, lower, upper)[0])
        value = g @ step + 0.5 * step @ B @ step
        assert value <= 0.5 * projected_gradient(g, B, scale, radius, lower, upper) + 1e-9


def test_box_step_keeps_to_the_radius():
    rng = np.random.default_rng(0)
    for _ in range(200):
        g, B, scale, radius, lower, upper = random_box(rng, 4, True)
        step = np.asarray(_box(np.zeros(4), 1.0, g, B, scale, radius, lower, upper)[0])
        assert np.linalg.norm(scale * step) <= 1.011 * radius


def test_box_step_without_active_bounds_is_the_ball_step():
    rng = np.random.default_rng(1)
    for _ in range(20):
        g, B, scale, radius, _, _ = random_box(rng, 4, False)
        far = np.full(4, 1e9)
        step, interior, least = _box(np.zeros(4), 1.0, g, B, scale, radius, -far, far)
        expected = _ball(g, B, scale, np.ones(4, bool), radius, 0.0)
        assert np.asarray(step) == pytest.approx(np.asarray(expected[0]), rel=1e-12)
        assert (bool(interior), float(least)) == (bool(expected[1]), float(expected[2]))


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear_in_a_box():
    """Linear least squares in a box, for which scipy has an exact solver: 200 problems of 5 parameters."""
    passes = least_squares(lambda theta, x: (x @ theta)[None], 1.0)

    @jax.jit
    def run(x, y, lower, upper, start):
        sample = StoredSample(x[None], y[None, :, None], jnp.ones((1, len(y))))
        end = trust_region(passes, sample, start, lower, upper)
        return end.theta, end.objective, end.status, still_promised(passes, sample, end.theta, lower, upper)[1]

    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        x, y = rng.normal(size=(8, 5)), 3 * rng.normal(size=8)
        lower, upper = -rng.uniform(0.05, 1, 5), rng.uniform(0.05, 1, 5)
        theta, objective, status, promised = jax.device_get(run(x, y, lower, upper, rng.uniform(lower, upper)))
        assert np.all((lower <= theta) & (theta <= upper))
        found.append((objective - optimize.lsq_linear(x, y, (lower, upper), tol=1e-13).cost, status, promised))
    return np.array(found, float).T


def test_bounds_linear_mostly_solved(linear_in_a_box):
    gap, _, _ = linear_in_a_box
    assert np.all(gap > -1e-9) and np.mean(gap < 1e-6) > 0.9


def test_converged_in_a_box_means_the_minimum(linear_in_a_box):
    gap, status, _ = linear_in_a_box
    assert np.all(gap[status == Status.CONVERGED] < 1e-5)


def test_the_certificate_tells_where_a_box_leaves_something_to_gain(linear_in_a_box):
    gap, _, promised = linear_in_a_box
    assert np.all(promised[gap > 1e-2] > 1e-3)


@pytest.mark.parametrize("upper", [[3.0, 5.0], [1.5, 5.0], [3.0, 0.6], [1.5, 0.6]])
def test_bounds_against_scipy(upper, decay):
    """a exp(-b x) with none, one or both bounds active: scipy's trust-region reflective, from the same start."""
    x, y, run = decay
    end = jax.device_get(run(jnp.array([0.5, 0.5]), jnp.zeros(2), jnp.array(upper)))
    expected = optimize.least_squares(
        lambda t: t[0] * np.exp(-t[1] * x) - y, [0.5, 0.5], bounds=([0, 0], upper), xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    assert end.status == Status.CONVERGED
    assert end.objective == pytest.approx(expected.cost, abs=1e-6)
    assert end.theta == pytest.approx(expected.x, abs=1e-3)
    active = np.array(upper) < [2.0, 1.0]
    assert np.all(end.theta[active] == np.array(upper)[active])


@pytest.fixture(scope="module")
def decay():
    x = np.linspace(0, 3, 20)
    y = 2.0 * np.exp(-x) + 0.05 * np.random.default_rng(0).normal(size=20)
    passes = least_squares(lambda t, x: t[:1] * jnp.exp(-t[1] * x[0]), 1.0)
    sample = stored(x[:, None], y[:, None])
    return x, y, jax.jit(lambda start, lower, upper: trust_region(passes, sample, start, lower, upper))


def test_a_start_outside_the_box_is_brought_in(decay):
    end = jax.device_get(decay[2](jnp.array([9.0, -9.0]), jnp.zeros(2), jnp.array([3.0, 5.0])))
    assert end.status == Status.CONVERGED and np.all((end.theta >= 0) & (end.theta <= [3.0, 5.0]))


# --- first-order solvers and the certificate -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def easy():
    """An exact-specified fit: passes, a sample of 1000, the truth, a wide box; the optimum below a bound."""
    case = MODELS["independent-d1-N1-L1"]
    truth, unflatten = ravel_pytree({k: jnp.asarray(v) for k, v in case.truth.items()})
    passes = least_squares(lambda t, x: case.model.mean(unflatten(t), x), case.model.noise)
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(1000, 1))
    y = np.stack([case.naive(case.truth, one) for one in x]) + case.model.noise * rng.normal(size=(1000, 2))
    sample, box = stored(x, y), jnp.full(len(truth), 5.0)
    solve = jax.jit(lambda s, upper: trust_region(passes, sample, s, -box, upper))
    return passes, sample, truth, box, lambda upper: jax.device_get(solve(truth, upper))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_order_solvers_reach_the_optimum(easy, optimizer):
    passes, sample, truth, box, optimum = easy
    best = optimum(box)
    run = jax.jit(lambda s, upper, most: gradient_descent(passes, sample, s, -box, upper, most, optimizer=optimizer))
    end = jax.device_get(run(truth + 0.3, box, 5000))
    assert end.status == best.status == Status.CONVERGED
    assert end.objective == pytest.approx(best.objective, abs=1e-5)
    assert end.theta == pytest.approx(best.theta, abs=1e-3)
    short = jax.device_get(run(truth + 0.3, box, 3))
    assert short.status == Status.MAX_ITERATIONS and short.iterations == 3 and short.objective > best.objective + 1e-3
    assert run(truth * jnp.nan, box, 5000).status == Status.NOT_FINITE
    if optimizer != "lbfgs":  # whose line search knows of no box
        upper = np.array([5.0, best.theta[1] - 0.2, 5.0])
        end, best = jax.device_get(run(truth + 0.3, upper, 5000)), optimum(upper)
        assert end.status == Status.CONVERGED and end.theta[1] == upper[1]
        assert end.objective == pytest.approx(best.objective, abs=1e-5)


@pytest.fixture(scope="module")
def saddle():
    """Noiseless data of two atoms, 10,000 rows' worth: (promised-at, value, truth, the best single atom twice)."""
    case = MODELS["linear-d2-N1-L2"]
    x, mass = case.law.nodes()
    sample = stored(x, np.stack([case.naive(case.truth, one) for one in x]), 1e4 * mass)

    def flat(params):
        theta, unflatten = ravel_pytree({k: jnp.asarray(v) for k, v in params.items()})
        return theta, least_squares(lambda t, x: case.model.mean(unflatten(t), x), case.model.noise)

    start, single = flat({"bias": np.zeros(1), "prefix": np.ones((1, 2))})
    box = jnp.full(3, 8.0)
    one = jax.device_get(jax.jit(lambda s: trust_region(single, sample, s, -box, box))(start))
    assert one.status == Status.CONVERGED
    twice = case.model.overfit({"bias": one.theta[:1], "prefix": one.theta[1:].reshape(1, 2)}, np.array([0, 0]))
    truth, passes = flat(case.truth)
    box = jnp.full(6, 8.0)
    run = jax.jit(lambda t: still_promised(passes, sample, t, -box, box))
    escape = jax.jit(lambda t: trust_region(passes, sample, t, -box, box))
    return lambda t: [float(v) for v in run(t)], truth, flat(twice)[0], one.objective, escape


def test_nothing_is_promised_at_the_optimum(saddle):
    at, truth, *_ = saddle
    value, promised, least = at(truth)
    assert abs(promised) < 1e-9 and least > -1e-9 and value == pytest.approx(0.0, abs=1e-18)


def test_much_is_promised_away_from_it(saddle):
    at, truth, *_ = saddle
    for step in (0.05, 0.5):
        assert at(truth + step)[1] > 1.0


def test_a_symmetric_saddle_shows_its_negative_curvature(saddle):
    """The best single atom, twice: the gradient is 0, yet parting the pair lowers the objective."""
    at, _, twice, objective, _ = saddle
    value, promised, least = at(twice)
    assert value == pytest.approx(objective, rel=1e-12) and objective > 10
    assert least < -0.01 and promised > 1.0
    turns = [np.array([np.cos(a), np.sin(a)]) for a in np.linspace(0, np.pi, 8)]
    parted = [at(twice + 0.05 * jnp.array([0.0, 0.0, *turn, *-turn]))[2] for turn in turns]
    assert min(parted) < value - 0.1


def test_the_trust_region_leaves_a_symmetric_saddle(saddle):
    """No gradient tells it to: only the exact Hessian knows, and the hard case finds the way."""
    _, _, twice, _, escape = saddle
    end = jax.device_get(escape(twice))
    assert end.status == Status.CONVERGED and end.objective < 1e-6
