"""Lower bounds: total variation against its exact value, transport costs against losses that are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_two_point as two
import tiny
from scipy.stats import norm

import moe_sim as ms
from moe_sim.losses.voronoi import Loss, evaluate, loss_of, parse_loss
from moe_sim.models.measure import MixingMeasure
from moe_sim.simulation import predictions
from moe_sim.theory.minimax import least_risk, total_variation, transport

EXPONENTS = {"key": (1.0, 2.0), "value": (1.0, 2.0)}


@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("shift", [1e-3, 0.01, 0.1, 1.0])
def test_total_variation_is_an_upper_bound(n, shift):
    """n normal observations of two constants: exactly 2 Phi(sqrt(n) shift / (2 noise)) - 1."""
    model = tiny.study().problem.model
    exact = 2 * norm.cdf(np.sqrt(n) * shift / (2 * model.noise)) - 1
    assert exact <= total_variation(model, shift, n) <= 1
    # Densities: two normals with means so far apart have h^2 = 1 - exp(-shift^2 / (8 noise^2)).
    mixture = ms.load_study("softmax-gaussian-exact").problem.model
    hellinger = np.sqrt(-np.expm1(-((shift / model.noise) ** 2) / 8))
    assert exact <= total_variation(mixture, hellinger, n) <= 1


def measure(rng, atoms: int) -> MixingMeasure:
    blocks = {name: rng.normal(size=(atoms, 2)) for name in EXPONENTS}
    return MixingMeasure(0.5 * rng.normal(size=atoms), blocks)


@pytest.mark.parametrize("name", ["voronoi", "voronoi:r=1", "voronoi:r=2", "voronoi:r=3"])
def test_a_voronoi_loss_is_at_least_the_transport_cost(name):
    """D(G, G0) + D(G, G1) >= K(G0, G1), G anything: between, near one of them, or elsewhere."""
    loss = parse_loss(name, EXPONENTS, None)
    both = jax.jit(lambda guess, one, other: evaluate(loss, guess, one) + evaluate(loss, guess, other))
    rng = np.random.default_rng(0)
    tight = 0.0
    for _ in range(200):
        one, other = measure(rng, 2), measure(rng, 2)
        if rng.random() < 0.5:  # close to each other, where costs are small
            scale = 10 ** rng.uniform(-3, 0)
            other = MixingMeasure(
                one.log_weight + scale * rng.normal(size=2),
                {k: v + scale * rng.normal(size=v.shape) for k, v in one.blocks.items()},
            )
        bound = transport(loss, one, other)
        t = rng.random()
        between = MixingMeasure(
            np.concatenate([one.log_weight + np.log(t), other.log_weight + np.log(1 - t)]),
            {k: np.concatenate([one.blocks[k], other.blocks[k]]) for k in EXPONENTS},
        )
        for guess in (one, other, between, measure(rng, 3)):
            total = float(both(guess, one, other))
            assert bound <= total * (1 + 1e-9)
            tight = max(tight, bound / total)
    assert tight > 0.2  # the bound is not empty


def test_transport_of_one_atom():
    """Mass 2 moved by (3, 4) in one block: cost 2 * 5 at r = 1, but making and losing it costs 4."""
    loss = Loss("voronoi:r=1", "voronoi", (("key", (1.0,)),), (("key", (1.0,)),))
    one = MixingMeasure(jnp.log(jnp.array([2.0])), {"key": jnp.zeros((1, 2))})
    near = MixingMeasure(one.log_weight, {"key": jnp.array([[0.3, 0.4]])})
    far = MixingMeasure(one.log_weight, {"key": jnp.array([[3.0, 4.0]])})
    assert transport(loss, one, near) == pytest.approx(2 * 0.5)
    assert transport(loss, one, far) == pytest.approx(4.0)
    assert transport(loss, one, one) == 0


def test_no_bound_where_none_is_known():
    problem = ms.load_study("softmax-gaussian-exact").problem
    for name in ("voronoi", "function", "mass"):
        loss = loss_of(problem.model, name)
        assert least_risk(problem.model, problem.truth, loss, [problem.truth], [0.0], [1e3]) is None


def test_the_bound_of_free_keys_and_values_is_the_same_at_every_n():
    study = ms.Study(**two.independent())
    (found,) = predictions.modulus(study, ["voronoi:r=2"])
    bound = predictions.lower_bound(study, found)
    assert bound["sizes"] == [float(n) for n in study.problem.sizes]
    assert bound["risk"] == pytest.approx([bound["risk"][0]] * len(bound["sizes"]), rel=1e-6)
    assert bound["risk"][0] > 0.01
    assert bound["assumption"] == "the parameter set is the box of the fit: fit.bound = 6, fit.bias_bound = 3"


def test_the_bound_of_tied_prefixes_falls_like_the_claim():
    """And lies below the risk of least squares at every size, as it must."""
    study = tiny.study(fit__atoms=2).replace(sizes=[1e4, 1e6, 1e8], replicates=50)
    (found,) = predictions.modulus(study, ["voronoi"])
    risk = np.array(predictions.lower_bound(study, found)["risk"])
    assert np.polyfit(np.log([1e4, 1e6, 1e8]), np.log(risk), 1)[0] == pytest.approx(-0.5, abs=0.1)
    mean = ms.run(study).frame.groupby("n")["loss:voronoi"].mean().to_numpy()
    assert np.all(risk < mean) and np.all(risk > 1e-3 * mean)
