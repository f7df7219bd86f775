"""Counts on cells: exact samples of a density, whose passes are those of as many rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixtures import MIXTURES, Mixture, every, free_vector, naive_log_density, passes_at
from scipy import stats
from test_mixture_studies import STUDIES as MIXTURE_STUDIES

import moe_sim as ms
from moe_sim.data.cells import LEAST, cells_of, counted_samples
from moe_sim.data.covariates import Grid
from moe_sim.data.draw import draw
from moe_sim.data.samples import CountedSample, at, stored
from moe_sim.errors import InputError
from moe_sim.likelihood.objective import density, magnitude
from moe_sim.losses.distances import Target, target_of
from moe_sim.solvers.solution import Status
from moe_sim.solvers.steps import steps
from moe_sim.theory.asymptotics import _scores

TRUTH = {
    "gate_bias": np.array([-1.0, 0.0]), "gate_slope": np.array([[3.0], [0.0]]), "intercept": np.array([1.5, -0.5]),
    "slope": np.array([[-2.0], [2.0]]), "variance": np.array([0.09, 0.16]),
}  # fmt: skip
LAW = Grid(1, 0.0, 1.0, 12)
SOFTMAX = ms.SoftmaxGaussian(1, 1, (0.0225, 0.64))
CASE = Mixture(SOFTMAX, TRUTH, LAW, None)  # type: ignore[arg-type]


def seeds(count, entropy=0):
    return np.random.SeedSequence(entropy).spawn(count)


@pytest.fixture(scope="module")
def cells():
    return cells_of(SOFTMAX, TRUTH, LAW)


def narrow(case: Mixture, below: float = 1.0) -> Mixture:
    """The case on a law of few points and with a box that goes to this part of the least true variance."""
    model, truth = case.model, case.truth
    if not hasattr(model, "variance_range"):
        return case._replace(law=Grid(model.dimension, -1.0, 1.0, 3))
    low = float(np.min(truth["variance"])) / below
    ranges = {"variance_range": (low, 4 * float(np.max(truth["variance"])))}
    if model.joint:
        square = np.diagonal(np.linalg.cholesky(truth["covariance"]), axis1=1, axis2=2) ** 2
        ranges["covariance_range"] = (float(square.min()) / below, 4 * float(square.max()))
    law = None if model.joint else Grid(model.dimension, -1.0, 1.0, 3)
    return case._replace(model=type(model)(model.dimension, model.outputs, **ranges), law=law)


class TestCells:
    @every("K2", "softmax", "linear-N0", "network-N3")
    def test_probabilities_are_those_of_the_density(self, case):
        """They add up to 1, are in ascending order, and p times the volume of a cell, by the naive formulas."""
        case = narrow(case)
        cells = cells_of(case.model, case.truth, case.law)
        assert cells.probability.sum() == pytest.approx(1.0, abs=1e-13)
        assert np.all(np.diff(cells.probability) >= 0) and cells.probability[0] >= 0.99 * LEAST
        for i in np.random.default_rng(0).integers(0, len(cells.probability), 5):
            assert cells.log_density[i] == pytest.approx(
                naive_log_density(case, case.truth, cells.x[i], cells.y[i]), abs=1e-9
            )
        volume = cells.probability / np.exp(cells.log_density)
        assert volume == pytest.approx(np.full(len(volume), volume[0]), rel=1e-9)

    def test_any_density_of_the_box_adds_up_to_1(self, cells):
        """On a lattice that goes on, at random parameters of the box and at its least variances."""
        rng = np.random.default_rng(1)
        step = np.min(np.diff(np.unique(np.round(cells.y, 9))))
        y = step * np.arange(-600, 601)
        for draw_ in range(20):
            variance = np.full(3, 0.0225) if draw_ % 2 else np.exp(rng.uniform(np.log(0.0225), np.log(0.64), 3))
            params = {
                "gate_bias": rng.normal(size=3), "gate_slope": 5 * rng.normal(size=(3, 1)),
                "intercept": rng.uniform(-3, 3, 3), "slope": rng.uniform(-3, 3, (3, 1)), "variance": variance,
            }  # fmt: skip
            x = rng.random(1)
            total = step * np.exp(jax.vmap(lambda v, p=params, x=x: SOFTMAX.log_density(p, x, v))(y[:, None])).sum()
            assert total == pytest.approx(1.0, abs=1e-13)

    def test_refusals(self, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("moe_sim.data.cells.MOST_CELLS", 100)
            with pytest.raises(InputError, match=r"SoftmaxGaussian has more than 100 cells of probability"):
                cells_of(SOFTMAX, TRUTH, LAW)
        wide = ms.SoftmaxGaussian(2, 2, (1e-6, 10.0))
        truth = MIXTURES["softmax-K3-d2-o2"].truth
        with pytest.raises(InputError, match=r"cells of probability.*lower law\.points.*sample\.mode = 'iid'"):
            cells_of(wide, truth, Grid(2, -1.0, 1.0, 8))
        gated = MIXTURES["gated-K3-d2-o2"]
        with pytest.raises(InputError, match=r"lattices of 2 x, 2 y\): raise the least scale"):
            cells_of(gated.model, gated.truth, None)
        with pytest.raises(InputError, match=r"law\.finite = true.*sample\.mode = \"iid\""):
            draw(SOFTMAX, TRUTH, ms.Uniform(1), 100)

    def test_a_density_with_a_kink_is_no_lattice_model(self):
        class Laplace(ms.Density):
            dimension, support = 1, ms.Real()

            def parameters(self):
                return {"bias": ms.Parameter(bound="bias_bound"), "scale": ms.Parameter((), ms.POSITIVE)}

            def log_density(self, params, x, y):
                scale = params["scale"][0]
                return -jnp.abs(y[0] - params["bias"][0]) / scale - jnp.log(2 * scale)

            def spread(self, params, x):
                return params["bias"][:, None], 4 * params["scale"][:, None]

        with pytest.raises(InputError, match=r"Laplace adds up to 1 only within .*sample\.mode = 'iid'"):
            cells_of(Laplace(), {"bias": np.zeros(1), "scale": np.ones(1)}, LAW)


class TestCounts:
    @pytest.mark.parametrize("n", [1000, 10**8, 10**13])
    def test_they_are_multinomial(self, cells, n):
        """Chi-square of 100 samples, cells expected less than 5 times together; false-alarm rate 1e-4."""
        sample = counted_samples(cells, n, seeds(100, 3))
        weight = np.asarray(sample.weight).reshape(100, -1)
        assert weight.sum(axis=1).tolist() == [n] * 100 and np.array_equal(weight, np.round(weight))
        place = {(*x, *y): i for i, (x, y) in enumerate(zip(cells.x.tolist(), cells.y.tolist(), strict=True))}
        x, y = (np.asarray(v).reshape(100, -1) for v in (sample.x, sample.y))
        count = np.zeros((100, len(place)))
        for r, row in zip(*np.nonzero(weight), strict=True):
            count[r, place[x[r, row], y[r, row]]] = weight[r, row]
        often = n * cells.probability >= 5
        expected = np.append(n * cells.probability[often], n * cells.probability[~often].sum())
        count = np.column_stack([count[:, often], count[:, ~often].sum(axis=1)])[:, expected > 0.5]
        expected = expected[expected > 0.5]
        statistic = np.sum((count - expected) ** 2 / expected)
        assert 5e-5 < stats.chi2(100 * (len(expected) - 1)).cdf(statistic) < 1 - 5e-5

    def test_one_shape_for_all_sizes(self, cells):
        small, large = (counted_samples(cells, n, seeds(2)) for n in (100, 10**12))
        assert small.x.shape == large.x.shape and np.sum(small.weight > 0) < np.sum(large.weight > 0)

    def test_a_sample_is_a_function_of_its_seed(self, cells):
        one, two = (counted_samples(cells, 1000, which) for which in (seeds(3), seeds(5)[:3][::-1]))
        assert np.array_equal(one.weight, two.weight[::-1]) and not np.array_equal(one.weight[0], one.weight[1])


def _long_log_density(params, x, y):
    """log p of the softmax case in the precision of its arguments."""
    logit = [params["gate_bias"][k] + params["gate_slope"][k, 0] * x for k in range(2)]
    parts = [
        logit[k] - (y - params["intercept"][k] - params["slope"][k, 0] * x) ** 2 / (2 * params["variance"][k])
        - np.log(params["variance"][k]) / 2 for k in range(2)
    ]  # fmt: skip
    return np.logaddexp(*parts) - np.logaddexp(*logit)


def repeated(sample: CountedSample):
    """One counted sample as rows, each as often as it was seen."""
    count = np.asarray(sample.weight).ravel().astype(int)
    x, y = (np.repeat(np.asarray(v).reshape(-1, v.shape[-1]), count, axis=0) for v in (sample.x, sample.y))
    return stored(x, y), float(np.asarray(sample.reference).ravel() @ count)


class TestPasses:
    @every("K2", "linear-N0", "network-N3")
    @pytest.mark.parametrize("written_out", [True, False])
    def test_they_are_those_of_repeated_rows(self, case, written_out):
        case = narrow(case)
        sample = at(counted_samples(cells_of(case.model, case.truth, case.law), 400, seeds(1)), 0)
        rows, reference = repeated(sample)
        theta, unflatten, found = passes_at(case, case.truth)
        if not written_out:
            found = density(case.model, unflatten)
        theta = theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)
        for name in ("value", "first", "curvature", "complete"):
            one, two = (jax.jit(getattr(found, name))(theta, data) for data in (sample, rows))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
                shift = reference if np.ndim(a) == 0 else 0.0
                assert np.asarray(a) == pytest.approx(np.asarray(b) + shift, abs=1e-8 * (1 + np.max(np.abs(b))))

    def test_plain_steps_end_where_those_of_repeated_rows_do(self, cells):
        """Their rule is relative to the log-likelihood, which the objective of counts is not."""
        sample = at(counted_samples(cells, 400, seeds(1)), 0)
        theta, _, found = passes_at(CASE, TRUTH)
        start = theta + 0.3 * np.random.default_rng(1).normal(size=theta.shape)
        box = theta - 5.0, theta + 5.0
        run = jax.jit(lambda data: steps(found, data, start, *box, max_iterations=60, tolerance=1e-4))
        one, two = run(sample), run(repeated(sample)[0])
        assert one.status == two.status == Status.EARLY and 2 < one.iterations == two.iterations < 60
        np.testing.assert_allclose(one.theta, two.theta, rtol=1e-6, atol=1e-8)

    def test_the_objective_is_exact_within_its_magnitude(self, cells):
        """Beside 64-bit mantissas, three standard errors from the truth, at 1e12 and 1e13: see ``magnitude``."""
        for n in (10**12, 10**13):
            sample = at(counted_samples(cells, n, seeds(1)), 0)
            theta, unflatten, found = passes_at(CASE, TRUTH)
            theta = theta + 3 * n**-0.5 * np.random.default_rng(2).normal(size=theta.shape)
            params = {k: np.asarray(v, np.longdouble) for k, v in unflatten(theta).items()}
            true = {k: np.asarray(v, np.longdouble) for k, v in TRUTH.items()}
            x, y, count = (np.asarray(v).reshape(-1).astype(np.longdouble) for v in (sample.x, sample.y, sample.weight))
            wanted = -np.sum(count * (_long_log_density(params, x, y) - _long_log_density(true, x, y)))
            value = float(jax.jit(found.value)(theta, sample))
            assert abs(value) > 1  # units, of which the rounding is a small part
            assert abs(value - float(wanted)) < 20 * 1e-15 * float(magnitude(sample, 0.0))

    def test_scores_have_mean_zero(self, cells):
        """z-tests of the summed scores of 50 samples of 1e12; false-alarm rate 1e-4 in all."""
        theta, _, found = passes_at(CASE, TRUTH)
        samples = counted_samples(cells, 10**12, seeds(50, 4))
        first = jax.jit(found.first)
        score, gram = zip(*(first(theta, at(samples, r))[1:] for r in range(50)), strict=True)
        z = np.sum(score, axis=0) / np.sqrt(np.diagonal(np.sum(gram, axis=0)))
        assert np.all(2 * stats.norm.sf(np.abs(z)) > 1e-4 / len(z))


POISSON = {
    "name": "poisson", "model": {"family": "moe", "gate": "softmax", "expert": "affine", "response": "poisson"},
    "truth": {"gate_bias": [0.4, 0.0], "gate_slope": [[1.5], [0.0]], "slope": [[0.8], [-0.5]], "intercept": [1.5, 0.3]},
    "law": {"name": "grid", "low": -1.0, "high": 1.0, "points": 8}, "fit": {"atoms": 2, "bound": 20.0},
}  # fmt: skip
STUDIES = {name: tables | {"claim": []} for name, tables in MIXTURE_STUDIES.items()} | {"poisson": POISSON}


def problem(name: str, mode: str, size: float, replicates: int) -> ms.Study:
    """A study of the exact model, started at the truth: one start, one optimum."""
    tables = STUDIES[name]
    law = {} if name == "gated" else {"law": {"name": "grid", "low": -1.0, "high": 1.0, "points": 8}}
    fit = {"atoms": 1 if name == "mixture" else 2, "bound": 20.0, "bias_bound": 20.0, "start": "truth", "starts": 1}
    sample = {"mode": mode, "sizes": [size], "replicates": replicates, "seed": 5}
    return ms.Study(**{**tables, **law, "fit": fit | {"budget": 1}, "sample": sample})


class TestEstimates:
    @pytest.mark.parametrize("name", ["softmax", "gated"])
    def test_they_have_the_law_of_iid_samples(self, name):
        """Two-sample Kolmogorov-Smirnov of every parameter, n = 1e4, 150 replicates; false-alarm rate 1e-3 in all."""
        exact, iid = (ms.run(problem(name, mode, 1e4, 150)).frame for mode in ("exact", "iid"))
        columns = [c for c in exact if c.startswith("estimate:") and exact[c].std() > 0]
        p = [stats.ks_2samp(exact[c], iid[c]).pvalue for c in columns]
        assert len(columns) >= 2 and min(p) > 1e-3 / len(p)

    @pytest.mark.parametrize("name", STUDIES)
    @pytest.mark.parametrize("n", [1e4, 1e12])
    def test_their_covariance_is_the_inverse_information(self, name, n):
        """All entries of the covariance of 150 estimates in its units, and every fit certified; false alarms 1e-3."""
        study, replicates = problem(name, "exact", n, 150), 150
        p = study.problem
        cells = cells_of(p.model, p.truth, p.law)
        fitter = ms.Fitter(p.model, p.truth, p.options)
        fits = fitter.fit(counted_samples(cells, int(n), seeds(replicates, 6)), seeds(replicates, 7))
        theta = jnp.asarray(fitter.flatten(p.truth))
        information = np.asarray(jax.jit(fitter.passes.first)(theta, _expected(cells))[2])
        units = np.sqrt(n) * (fits.theta - np.asarray(theta)) @ np.linalg.cholesky(information)
        away = np.abs(units.T @ units / replicates - np.eye(len(theta))) / np.sqrt(
            (1 + np.eye(len(theta))) / replicates
        )
        assert np.all(fits.certificate == "certified") and {len(near) for near in fits.near} == {1}
        assert np.max(away) < stats.norm.isf(1e-3 / away.size / 2)


def _expected(cells):
    """The cells with their probabilities as counts, one chunk: sums over them are expectations."""
    leaves = (cells.x, cells.y, cells.probability, cells.log_density)
    return CountedSample(*(jnp.asarray(v)[None] for v in leaves), jnp.array(1), jnp.array(1.0))


class TestSums:
    @every("softmax-K2-d1-o1", "gated-K2-d1-o1")
    def test_distances_and_information_are_those_of_a_finer_lattice_and_of_nodes(self, case):
        """Gauss-Hermite nodes of experts are off by a thousandth where experts part, cells by millionths."""
        case = narrow(case, 4.0)
        model, truth, law = case.model, case.truth, case.law
        lower = {name: np.asarray(value) for name, value in model.unconstrain(truth).items()}
        finer = cells_of(model, truth, law, {name: value - np.log(16.0) for name, value in lower.items()})
        cells, fine, nodes = target_of(model, truth, law), Target(model, truth, law, finer), Target(model, truth, law)
        assert cells.on_cells and len(fine.x) > 1.9 * len(cells.x)
        theta, unflatten = free_vector(case, truth)
        rng = np.random.default_rng(0)
        for scale in (1e-6, 1e-2, 0.3):
            params = unflatten(theta + scale * rng.normal(size=theta.shape))
            found, finest, other = (float(jnp.linalg.norm(of.residuals(params))) for of in (cells, fine, nodes))
            assert found == pytest.approx(finest, rel=5e-6) and found == pytest.approx(other, rel=2e-3)
        found, finest, other = (np.asarray(_information(of, theta)) for of in (cells, fine, nodes))
        size = np.sqrt(np.outer(np.diag(finest), np.diag(finest)))
        assert np.max(np.abs(found - finest) / size) < 1e-4 and np.max(np.abs(found - other) / size) < 1e-2

    def test_where_no_lattice_is_small_enough_nodes_are_used(self):
        wide = {"variance_range": (1e-9, 1.0)}
        assert not target_of(ms.SoftmaxGaussian(1, 1, **wide), TRUTH, LAW).on_cells


def _information(target, theta):
    scores = _scores(target, theta)
    return scores.T @ scores
