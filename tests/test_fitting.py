"""Fits from start to certificate: starts, many starts, near-minimisers, lanes that run together."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from models import MODELS, Case, atoms_of, permuted
from scipy import stats

from moe_sim.data import samples as stored
from moe_sim.data.draw import Source, exact_samples, streamed_samples
from moe_sim.data.samples import ROWS_PER_CHUNK, StoredSample, at
from moe_sim.errors import InputError
from moe_sim.fitting import batching, multistart, starts, subsamples
from moe_sim.fitting.compiled import compiled
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.multistart import CERTIFICATES, NEAR, PROMISE, Fits, Fitter
from moe_sim.fitting.options import FitOptions
from moe_sim.likelihood.objective import least_squares
from moe_sim.losses.voronoi import loss_of
from moe_sim.models.softmax_gaussian import SoftmaxGaussian
from moe_sim.solvers.solution import Solution, Status

R, N = 3, 10_000
# Every d in 1, 2, 3, every number of frozen experts in 0, 1, 3 and every L in 1, 2, 3 is fitted with as many atoms as
# the truth has and with one more. One true expert comes with frozen ones: alone it leaves its gate free.
GRID = {
    "independent-d1-N1-L1": 1,
    "independent-d2-N0-L2": 2,
    "network-d3-N3-L3": 3,
    "linear-d1-N3-L1": 2,
    "linear-d2-N1-L2": 3,
    "linear-d3-N0-L3": 4,
}
grid = pytest.mark.parametrize("name", GRID)


def seeds(entropy, count=R):
    return np.random.SeedSequence(entropy).spawn(count)


def samples_of(case: Case, n=N, entropy=1):
    return exact_samples(case.model, case.truth, case.law, n, seeds(entropy))


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[Case, Fitter, StoredSample, Fits]]:
    """One fitter a row of the grid, compiled once for the module, and its fits of R samples of size N."""

    def one(name):
        case = MODELS[name]
        fitter, samples = Fitter(case.model, case.truth, FitOptions(atoms=GRID[name])), samples_of(case)
        return name, (case, fitter, samples, fitter.fit(samples, seeds(2)))

    with ThreadPoolExecutor(2) as pool:  # XLA compiles outside Python's lock
        return dict(pool.map(one, GRID))


def objective(case: Case, params, samples, replicate) -> float:
    """The objective by a plain loop, in log-likelihood units."""
    x, y, weight = (np.asarray(v)[replicate, 0] for v in (samples.x, samples.y, samples.weight))
    return sum(w * np.sum((case.naive(params, a) - b) ** 2) for a, b, w in zip(x, y, weight, strict=True)) / (
        2 * case.model.noise**2
    )


def params_of(fitter: Fitter, theta):
    return {name: np.asarray(value) for name, value in fitter.unflatten(jnp.asarray(theta)).items()}


def with_options(fitter: Fitter, **changes) -> Fitter:
    """The same compiled fitter with other starts or another budget."""
    changed = copy.copy(fitter)
    changed.options = replace(fitter.options, **changes)
    return changed


# --- the grid --------------------------------------------------------------------------------------------------------


def test_the_grid_has_every_value_both_ways():
    for exact in (True, False):
        rows = [MODELS[name] for name, atoms in GRID.items() if (atoms == atoms_of(MODELS[name])) == exact]
        assert {case.model.dimension for case in rows} == {1, 2, 3}
        assert {case.model.frozen.count for case in rows} == {0, 1, 3}
        assert {atoms_of(case) for case in rows} == {1, 2, 3}


@grid
def test_every_replicate_is_certified(fitted, name):
    _, fitter, _, fits = fitted[name]
    assert fits.certificate.tolist() == ["certified"] * R
    assert np.all(fits.promised <= PROMISE) and np.all(fits.agreeing >= 2) and np.all(fits.starts >= 8)
    assert np.all((fitter.lower <= fits.theta) & (fits.theta <= fitter.upper))
    assert np.all(fits.passes > fits.iterations) and np.all(fits.iterations > 0)


@grid
def test_objectives_are_right_and_not_above_the_truth(fitted, name):
    case, fitter, samples, fits = fitted[name]
    for r in range(R):
        assert fits.objective[r] == pytest.approx(
            objective(case, params_of(fitter, fits.theta[r]), samples, r), rel=1e-10
        )
        assert fits.objective_at_truth[r] == pytest.approx(objective(case, case.truth, samples, r), rel=1e-10)
    assert np.all(fits.objective <= fits.objective_at_truth + 1e-6)


@pytest.mark.parametrize("name", ["independent-d1-N1-L1", "network-d3-N3-L3"])
def test_the_gain_over_the_truth_is_a_likelihood_ratio(fitted, name):
    """Exact-specified and identified: twice the gain is chi-square of P degrees (Wilks). False-alarm rate 6e-4."""
    _, _, _, fits = fitted[name]
    chi2 = stats.chi2(fits.theta.shape[1])
    gain = 2 * (fits.objective_at_truth - fits.objective)
    assert np.all((chi2.ppf(5e-5) < gain) & (gain < chi2.isf(5e-5)))


@grid
def test_near_minimisers_are_within_half_a_unit_of_the_best(fitted, name):
    case, fitter, samples, fits = fitted[name]
    for r in range(R):
        assert len(fits.near[r]) == fits.agreeing[r]
        assert any(np.array_equal(near, fits.theta[r]) for near in fits.near[r])
        for near in fits.near[r][:3]:
            assert objective(case, params_of(fitter, near), samples, r) <= fits.objective[r] + NEAR + 1e-9


def test_losses_of_a_fit_do_not_depend_on_the_order_of_its_atoms(fitted):
    case, fitter, _, fits = fitted["linear-d3-N0-L3"]
    names = ("voronoi", "voronoi:r=2", "function", "mass", "atoms:single", "atoms:multi")
    losses = [loss_of(case.model, name) for name in names]
    run = LossFunction(case.model, case.truth, case.law, losses, fitter.options.atoms)
    for theta in fits.theta:
        params = params_of(fitter, theta)
        orders = [list(order) for order in permutations(range(4))]
        found = run(np.stack([fitter.flatten(permuted(case, params, order)) for order in orders]))
        for name in names:  # NaN where the fit has no such atom
            assert found[name] == pytest.approx(np.full(24, found[name][0]), rel=1e-9, nan_ok=True), name
        assert 0 < found["function"][0] < 0.1 and 0 < found["voronoi"][0] < np.inf


def test_a_fit_depends_on_its_seeds_alone(fitted):
    _, fitter, samples, fits = fitted["linear-d2-N1-L2"]
    again = fitter.fit(samples, seeds(2))
    assert np.array_equal(again.theta, fits.theta) and np.array_equal(again.iterations, fits.iterations)
    other = fitter.fit(samples, seeds(3))
    assert not np.array_equal(other.theta, fits.theta)
    assert other.objective == pytest.approx(fits.objective, abs=1e-2)


# --- starts ----------------------------------------------------------------------------------------------------------


def test_start_rules_are_not_told_the_sample_size():
    assert list(inspect.signature(starts.candidates).parameters) == [
        "rule", "model", "true_atoms", "atoms", "lower", "upper", "starts", "seed", "cover", "spread", "shrink",
    ]  # fmt: skip


def test_noise_shrinks_only_where_a_study_asks_for_it(fitted):
    """Starts at n = 10^4 and 10^8: the same by default, else noise in the ratio of the powers."""
    _, fitter, _, _ = fitted["linear-d2-N1-L2"]
    for exponent, factor in ((0.0, 1.0), (0.25, 10.0)):
        made = with_options(fitter, start="truth", spread_exponent=exponent)
        at_truth = with_options(fitter, start="truth", spread=0.0).starting_points(seeds(2))
        few, many = (made.starting_points(seeds(2), n) - at_truth for n in (1e4, 1e8))
        assert few == pytest.approx(factor * many, abs=1e-12) and np.abs(few).max() > 0


def test_noise_of_some_coordinates_only(fitted):
    _, fitter, _, _ = fitted["linear-d2-N1-L2"]
    at_truth, named = (
        with_options(fitter, start="truth", spread=spread).starting_points(seeds(2))
        for spread in (0.0, {"prefix": 0.1})
    )
    moved = [fitter.unflatten(theta) for theta in (named - at_truth).reshape(-1, at_truth.shape[-1])]
    assert all(np.all(p["bias"] == 0) and np.all(p["prefix"] != 0) for p in moved)


def test_points_made_beforehand_are_those_of_the_first_round(fitted, monkeypatch):
    """Also where seeds are children themselves, and however many children they have had."""
    _, fitter, samples, _ = fitted["independent-d1-N1-L1"]
    monkeypatch.setattr(multistart, "PROMISE", -1.0)  # none is certified, so that all rounds are spent
    several = with_options(fitter, budget=3)
    which = [seed.spawn(1)[0] for seed in seeds(2)]
    fits = several.fit(samples, which)
    assert (fits.starts == 3 * 8).all()
    again = several.fit(samples, which, first=several.first_points(which))
    for one, other in zip(fits[:10], again[:10], strict=True):
        np.testing.assert_array_equal(one, other)
    children = [seed.spawn(3) for seed in which]
    np.testing.assert_array_equal(several.first_points(which), several.starting_points([c[0] for c in children]))


def test_the_starts_are_the_same_whatever_is_fitted(fitted, monkeypatch):
    """As seen by ``fit`` itself, for samples of 100 and of 10^10."""
    case, fitter, _, _ = fitted["independent-d1-N1-L1"]
    seen, original = [], Fitter.starting_points
    monkeypatch.setattr(Fitter, "starting_points", lambda self, s, n: seen.append(original(self, s, n)) or seen[-1])
    for n in (100, 10**10):
        with_options(fitter, budget=1).fit(samples_of(case, n, entropy=n), seeds(2), n)
    assert len(seen) == 2 and np.array_equal(*seen)
    assert seen[0].shape == (R, 8, starts.CANDIDATES, 3)


class TestRules:
    CASE = MODELS["linear-d2-N1-L2"]
    LOWER, UPPER = -np.arange(1.0, 10.0), np.arange(2.0, 11.0)

    def candidates(self, rule, seed=0, count=4, spread=None):
        # Atom by atom, so that each row is (bias, prefix) and shows which true atom it covers.
        return starts.candidates(
            rule, self.CASE.model, 2, 3, self.LOWER, self.UPPER, count, np.random.SeedSequence(seed), self.cover, spread
        )

    def cover(self, atoms):
        assert isinstance(atoms, tuple)
        params = self.CASE.model.overfit(self.CASE.truth, np.array(atoms))
        return np.concatenate([params["bias"], params["prefix"].ravel()])

    @pytest.mark.parametrize("rule", starts.RULES)
    def test_deterministic_by_seed_and_inside_the_box(self, rule):
        one, again, other = self.candidates(rule), self.candidates(rule), self.candidates(rule, seed=1)
        assert one.shape == (4, starts.CANDIDATES if rule == "data" else 1, 9)
        assert np.array_equal(one, again) and not np.any(np.all(one == other, axis=-1))
        assert np.all((one >= self.LOWER) & (one <= self.UPPER))

    def test_data_starts_spread_over_the_whole_box(self):
        """Quasi-random: of 1024 points in each coordinate every sixteenth of the box gets its 64, give or take 1."""
        points = self.candidates("data", count=64).reshape(-1, 9)
        for k in range(9):
            counts = np.histogram(points[:, k], np.linspace(self.LOWER[k], self.UPPER[k], 17))[0]
            assert np.all(np.abs(counts - 64) <= 1)

    @pytest.mark.parametrize("rule, spread, expected", [("wide", None, 1.0), ("truth", None, 0.01), ("wide", 0.2, 0.2)])
    def test_noise_about_a_cover_of_the_truth(self, rule, spread, expected):
        """Both true atoms are covered, the spare one sits on either; the noise is normal of its size (rate 2e-4)."""
        wide = TestRules()
        wide.LOWER, wide.UPPER = np.full(9, -50.0), np.full(9, 50.0)
        found = wide.candidates(rule, count=300, spread=spread)[:, 0]
        gaps = found[:, None] - np.stack([self.cover((0, 0, 1)), self.cover((1, 0, 1))])
        nearest = np.argmin(np.sum(gaps**2, axis=2), axis=1)
        assert 0.3 < nearest.mean() < 0.7
        # Away from the doubtful coordinates (those of the first atom and of the masses) the noise is plain to see.
        z = found[:, 5:9] - self.CASE.truth["prefix"].ravel()
        assert stats.kstest(z.ravel() / expected, "norm").pvalue > 2e-4

    def test_an_unknown_rule_is_refused_by_name(self):
        with pytest.raises(InputError, match=r"fit\.start = 'warm' is not known: pass one of data, wide, truth"):
            self.candidates("warm")


def test_an_unknown_estimator_is_refused_by_name():
    case = MODELS["linear-d2-N1-L2"]
    with pytest.raises(InputError, match="'em' does not fit this model: pass least-squares or gradient"):
        Fitter(case.model, case.truth, FitOptions(atoms=2, estimator="em"))


# --- certificates ----------------------------------------------------------------------------------------------------


def answer(fitter: Fitter, monkeypatch, thetas, status):
    """Make ``fitter`` answer with ``thetas`` (one a start, the same for all replicates) in place of solving."""

    def solve(samples, replicate, start, tolerance):
        count = len(replicate) // len(thetas)
        certify = compiled(fitter.plan).certify
        _, values, *_ = certify(fitter.setting, (replicate, np.tile(thetas, (count, 1))), samples)
        ones = np.ones(len(replicate), int)
        return Solution(np.tile(thetas, (count, 1)), values, int(status) * ones, ones, 2.0 * ones)

    changed = with_options(fitter, starts=len(thetas), budget=1)
    monkeypatch.setattr(changed, "solve", solve, raising=False)
    return changed


@pytest.mark.parametrize(
    "status, expected",
    [
        (Status.CONVERGED, "not_stationary"),
        (Status.FLAT, "not_stationary"),
        (Status.STALLED, "stalled"),
        (Status.MAX_ITERATIONS, "max_iterations"),
        (Status.EARLY, "early"),
    ],
)
def test_no_status_is_believed(fitted, monkeypatch, status, expected):
    """The truth itself is not the minimiser, whatever a solver says; what it says names the certificate."""
    case, fitter, samples, _ = fitted["independent-d1-N1-L1"]
    truth = fitter.flatten(case.truth)
    fits = answer(fitter, monkeypatch, np.stack([truth, truth]), status).fit(samples, seeds(2))
    assert np.all(fits.promised > PROMISE) and fits.certificate.tolist() == [expected] * R


@pytest.mark.parametrize("status", [Status.CONVERGED, Status.FLAT, Status.STALLED, Status.MAX_ITERATIONS])
def test_a_minimum_is_certified_whatever_the_solver_says(fitted, monkeypatch, status):
    _, fitter, samples, fits = fitted["independent-d1-N1-L1"]
    best = fits.theta[0]
    found = answer(fitter, monkeypatch, np.stack([best, best]), status).fit(samples, seeds(2))
    assert found.certificate[0] == "certified" and found.status[0] == status


def test_a_point_worse_than_the_truth_is_above_truth(fitted, monkeypatch):
    _, fitter, samples, fits = fitted["independent-d1-N1-L1"]
    away = fits.theta[0] + 0.5
    found = answer(fitter, monkeypatch, np.stack([away, away]), Status.CONVERGED).fit(samples, seeds(2))
    assert found.certificate.tolist() == ["above_truth"] * R


def test_hardly_worse_than_the_truth_is_above_truth_too(fitted, monkeypatch):
    """From the best fit through the truth and 2% beyond: worse by 4% of the gain."""
    case, fitter, samples, fits = fitted["independent-d1-N1-L1"]
    truth = fitter.flatten(case.truth)
    for r in range(R):
        beyond = truth + 0.02 * (truth - fits.theta[r])
        found = answer(fitter, monkeypatch, np.stack([beyond, beyond]), Status.CONVERGED).fit(samples, seeds(2))
        assert 0 < found.objective[r] - found.objective_at_truth[r] < 0.5
        assert found.certificate[r] == "above_truth"


def test_few_starts_leave_lone_and_failed_ones(fitted):
    """Two starts in 18 dimensions, no second round: some replicates stop above the truth, some at a best point that
    only one start found. More rounds mend that, and only the doubtful replicates pay for them."""
    _, fitter, samples, full = fitted["network-d3-N3-L3"]
    found = [with_options(fitter, starts=2, budget=1).fit(samples, seeds(entropy)) for entropy in range(6)]
    assert {"certified", "lone_start", "above_truth"} <= {c for fits in found for c in fits.certificate}
    for fits in found:
        above, lone, good = (fits.certificate == name for name in ("above_truth", "lone_start", "certified"))
        assert np.all(fits.starts == 2) and np.all(fits.agreeing[lone] == 1) and np.all(fits.agreeing[good] == 2)
        assert np.all(fits.objective[above] > fits.objective_at_truth[above])
        assert np.all(fits.objective[good] <= full.objective[good] + NEAR)
        assert np.all(fits.promised[lone] <= PROMISE)
    few = next(k for k, fits in enumerate(found) if 0 < np.sum(fits.certificate == "certified") < R)
    more = with_options(fitter, starts=2, budget=16).fit(samples, seeds(few))
    assert more.certificate.tolist() == ["certified"] * R
    assert np.array_equal(more.starts > 2, found[few].certificate != "certified")


def test_one_replicate_that_is_not_finite_does_not_touch_the_others(fitted):
    _, fitter, samples, fits = fitted["independent-d1-N1-L1"]
    spoilt = replace(samples, y=jnp.asarray(samples.y).at[1].set(jnp.nan))
    found = with_options(fitter, budget=3).fit(spoilt, seeds(2))
    assert found.certificate.tolist() == ["certified", "not_finite", "certified"]
    assert found.status[1] == Status.NOT_FINITE and found.starts.tolist() == [8, 24, 8]
    assert np.array_equal(found.theta[[0, 2]], fits.theta[[0, 2]])


def test_one_iteration_is_not_enough():
    """From a start off the truth, one step: with little data it lands below the truth, with much above it."""
    case = MODELS["independent-d1-N1-L1"]
    options = FitOptions(atoms=1, start="truth", spread=0.3, starts=2, budget=1, max_iterations=1)
    fitter = Fitter(case.model, case.truth, options)
    found = {n: fitter.fit(samples_of(case, n), seeds(2)) for n in (100, 10**8)}
    assert "max_iterations" in found[100].certificate
    assert found[10**8].certificate.tolist() == ["above_truth"] * R
    assert all(np.all(fits.iterations == 2) for fits in found.values())


def test_every_certificate_has_a_sentence():
    assert set(CERTIFICATES) == {
        "certified", "above_truth", "not_stationary", "lone_start", "rising", "max_iterations", "stalled", "not_finite",
        "degenerate", "early",
    }  # fmt: skip
    assert all(len(text) > 40 for text in CERTIFICATES.values())


# --- lanes that run together -----------------------------------------------------------------------------------------


def test_lanes_run_together_find_the_same_minima(fitted, monkeypatch):
    """``vmap`` in rounds of 3 iterations, after which unfinished lanes are gathered, against ``map``."""
    monkeypatch.setattr(batching, "LANES_PER_CALL", 24)
    monkeypatch.setattr(multistart, "ITERATIONS_PER_ROUND", 3)
    case, _, samples, expected = fitted["independent-d1-N1-L1"]
    fitter = Fitter(case.model, case.truth, FitOptions(atoms=1), how="vmap")
    fits = fitter.fit(samples, seeds(2))
    assert fits.objective == pytest.approx(expected.objective, abs=1e-6)
    assert fits.certificate.tolist() == expected.certificate.tolist()
    assert fits.theta == pytest.approx(expected.theta, abs=1e-4)
    assert np.all(fits.iterations > 3 * 8)  # on average a start went through a second round


def test_lanes_run_together_may_take_no_step_at_all(fitted):
    """The start as the estimator, by ``vmap``: it ends, and is the same as by ``map``."""
    case, _, samples, _ = fitted["independent-d1-N1-L1"]
    options = FitOptions(1, "steps", "truth", starts=1, budget=1, max_iterations=0)
    found = [Fitter(case.model, case.truth, options, how=how).fit(samples, seeds(2)) for how in ("map", "vmap")]
    assert np.array_equal(found[0].theta, found[1].theta) and not found[1].iterations.any()


@pytest.mark.parametrize("most", [10, 60])
def test_rounds_keep_to_the_iteration_limit(monkeypatch, most):
    def spend(passes, sample, start, lower, upper, max_iterations, tolerance):
        limit = jnp.array(max_iterations)
        return Solution(start, passes.value(start, sample), jnp.array(int(Status.MAX_ITERATIONS)), limit, limit)

    monkeypatch.setattr(multistart, "trust_region", spend)  # whose rounds are short ones
    monkeypatch.setitem(multistart.SOLVERS, "least-squares", spend)
    monkeypatch.setattr(batching, "LANES_PER_CALL", 4)
    case = MODELS["linear-d1-N3-L1"]
    fitter = Fitter(case.model, case.truth, FitOptions(atoms=1, max_iterations=most), how="vmap")
    found = fitter.solve(samples_of(case), np.array([0, 1, 2]), np.zeros((R, 2)))
    assert np.all(found.iterations <= most) and np.all(found.iterations > most - multistart.ITERATIONS_PER_ROUND)


def test_first_order_lanes_run_together_come_to_an_end(fitted, monkeypatch):
    """From the minimum itself; where lanes run one after another this takes 150 iterations."""
    monkeypatch.setattr(batching, "LANES_PER_CALL", 4)
    case, _, samples, best = fitted["independent-d1-N1-L1"]
    fitter = Fitter(case.model, case.truth, FitOptions(atoms=1, estimator="gradient"), how="vmap")
    found = fitter.solve(samples, np.arange(R), best.theta)
    assert np.all(found.status == Status.CONVERGED)


@pytest.mark.parametrize("how", ["map", "vmap"])
@pytest.mark.parametrize("count", [1, 7, 8, 19])
def test_lanes_come_back_in_order_whatever_their_number(monkeypatch, how, count):
    monkeypatch.setattr(batching, "LANES_PER_CALL", 8)
    run = batching.LaneFunction(lambda shared, lane: {"sum": shared + lane[0], "two": lane[1] * 2}, how)
    x, y = np.arange(count, dtype=float), np.arange(3.0 * count).reshape(count, 3)
    found = run(10.0, (x, y))
    assert np.array_equal(found["sum"], 10 + x) and np.array_equal(found["two"], 2 * y)


@pytest.mark.parametrize("how, buffer", [("map", True), ("map", False), ("vmap", False)])
@pytest.mark.parametrize("n", [1, ROWS_PER_CHUNK, 3 * ROWS_PER_CHUNK - 7])
def test_a_lane_gets_the_sample_of_its_replicate(monkeypatch, how, buffer, n):
    """Streamed samples, kept in memory or drawn afresh, whatever the order of the replicates."""
    monkeypatch.setattr(batching, "LANES_PER_CALL", 8)
    monkeypatch.setattr(stored, "ROWS_KEPT", 128 * ROWS_PER_CHUNK if buffer else 0)
    case = MODELS["linear-d1-N3-L1"]
    samples = streamed_samples(n, seeds(4, count=5), Source(case.model, case.truth, case.law))
    passes = least_squares(lambda theta, x: theta[0] * x, 1.0)
    run = batching.LaneFunction(lambda _, sample, lane: passes.value(lane[1], sample), how)
    assert run._capacity(samples) == 128 * buffer
    replicate = np.array([0, 0, 3, 1, 1, 1, 0, 4, 2, 2, 0])
    theta = np.linspace(-1, 1, len(replicate))[:, None]
    found, expected = run(None, (replicate, theta), samples), []
    one = [at(samples, r) for r in range(5)]
    for r, t in zip(replicate, theta, strict=True):
        sample, total = one[r], 0.0
        for i in range(int(sample.chunks)):
            x, y, weight = jax.device_get(sample.chunk(i))
            total += np.sum(weight[:, None] * (t * x - y) ** 2) / 2
        expected.append(total)
    assert found == pytest.approx(np.array(expected), rel=1e-12)


def test_subsamples_lead_to_the_minimum_of_the_whole():
    """Twenty chunks: starts are improved on the first, their optima followed over eight to all; against one chunk."""
    case, n = MODELS["independent-d1-N1-L1"], 20 * ROWS_PER_CHUNK - 100
    fitter = Fitter(case.model, case.truth, FitOptions(atoms=1))
    samples = streamed_samples(n, seeds(1), Source(case.model, case.truth, case.law))
    chunks = jax.vmap(lambda r: jax.vmap(at(samples, r).chunk)(jnp.arange(20)))(jnp.arange(R))
    whole = StoredSample(*(v.reshape(R, 1, 20 * ROWS_PER_CHUNK, *v.shape[3:]) for v in chunks))
    found, expected = fitter.fit(samples, seeds(2)), fitter.fit(whole, seeds(2))
    assert found.certificate.tolist() == expected.certificate.tolist() == ["certified"] * R
    assert found.objective == pytest.approx(expected.objective, abs=1e-5)
    assert found.objective_at_truth == pytest.approx(expected.objective_at_truth, rel=1e-12)
    assert found.theta == pytest.approx(expected.theta, abs=1e-4)
    assert np.array_equal(found.starts, expected.starts) and np.all(found.agreeing <= found.starts)
    assert np.all(found.agreeing >= 2) and np.all((found.passes > 1) & (found.passes < expected.passes / 2))


def test_flatten_and_unflatten_are_inverse(fitted):
    case, fitter, _, fits = fitted["network-d3-N3-L3"]
    params = params_of(fitter, fits.theta[0])
    assert {name: value.shape for name, value in params.items()} == case.model.shapes(3)
    assert np.array_equal(fitter.flatten(params), fits.theta[0])
    assert np.array_equal(ravel_pytree(jax.tree.map(jnp.asarray, params))[0], fits.theta[0])


def test_survivors_are_the_good_optima_each_once():
    """By hand: two that met, one hopeless, one on a bound, and a replicate with nothing but spoilt or infinite ones."""
    replicate = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    value = np.array([5.0, 5.0 + 5e-5, 14.0, 5.5, 1.0, np.inf, 3.0, np.nan])
    spoilt = np.array([False, False, False, False, True, True, True, True])
    copies = np.array([1, 2, 1, 1, 1, 1, 3, 1])
    kept, number = subsamples.survivors(replicate, copies, value, spoilt, first=True)
    assert kept.tolist() == [0, 3, 6] and number.tolist() == [3, 1, 3]
    # Later the one on a bound is followed, but is no measure: 5.0 stays within reach of the best sound one.
    kept, number = subsamples.survivors(replicate, copies, np.where(spoilt, value - 10, value), spoilt, first=False)
    assert kept.tolist() == [4, 0, 3, 6] and number.tolist() == [1, 3, 1, 3]
    kept, number = subsamples.survivors(np.zeros(2, int), np.ones(2, int), np.full(2, np.nan), np.zeros(2, bool), True)
    assert kept.tolist() == [0] and number.tolist() == [2]


def test_subsamples_grow_by_eight_and_end_with_all():
    assert [subsamples.levels(total) for total in (1, 16, 17, 98, 128, 129, 977)] == [
        [1], [16], [8, 17], [8, 98], [8, 128], [8, 64, 129], [8, 64, 977],
    ]  # fmt: skip


def test_starts_from_data_part_points_and_crossing_lines():
    """Two lines that cross have no middle: clusters about points leave them mixed, clusters along lines do not."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, size=(400, 1))
    line = np.arange(400) % 2
    y = np.where(line[:, None] == 0, 2 * x, -2 * x) + 0.05 * rng.normal(size=(400, 1))
    model = SoftmaxGaussian(1, 1, (1e-4, 10.0))
    numbers = rng.random((200, 2, 3))
    run = jax.jit(jax.vmap(lambda u: starts.from_data(model, u, x, y, jnp.ones(400))["slope"][:, 0]))
    right = [np.mean(np.max(np.abs(np.sort(run(u), axis=1) - [-2, 2]), axis=1) < 0.2) for u in (numbers, -numbers)]
    assert right[0] < 0.02 and right[1] > 0.1


def test_padding_is_never_picked_as_a_start():
    model = SoftmaxGaussian(1, 1, (1e-4, 10.0))
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(10, 1)), rng.normal(size=(10, 1))
    far = np.full((6, 1), 1e3)
    u = rng.random((2, 3))
    from_data = jax.jit(lambda *given: starts.from_data(model, *given))
    for numbers in (u, -u):
        plain = from_data(numbers, x, y, np.ones(10))
        padded = from_data(numbers, np.r_[x, far], np.r_[y, far], np.r_[np.ones(10), np.zeros(6)])
        for name in plain:
            assert np.asarray(padded[name]) == pytest.approx(np.asarray(plain[name]), rel=1e-9, abs=1e-9)
