"""Every model of the table: its formula, and what leaves its function as it is."""

from itertools import permutations

import numpy as np
import pytest
from models import MODELS, atoms_of, every, known, means, per_atom, permuted, random_params

from moe_sim.errors import InputError
from moe_sim.models.measure import MixingMeasure
from moe_sim.models.prefix import Frozen, PrefixModel, build

SAME = 1e-13


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def inputs(case, rng, count=7):
    return rng.normal(size=(count, case.model.dimension))


@every()
def test_the_mean_is_the_formula(case, rng):
    x = inputs(case, rng)
    for atoms in (atoms_of(case), atoms_of(case) + 1):
        params = random_params(case, atoms, rng)
        expected = np.stack([case.naive(params, one) for one in x])
        assert means(case, params, x) == pytest.approx(expected, abs=1e-12)
    assert means(case, case.truth, x) == pytest.approx(np.stack([case.naive(case.truth, one) for one in x]), abs=1e-12)


@every()
def test_the_gauge_is_what_the_model_says(case, rng):
    """A translation of the biases, of the keys, of a tied prefix: invisible exactly where ``gauge`` says so."""
    x, model = inputs(case, rng), case.model
    before = means(case, case.truth, x)

    def moved(name, shift):
        return np.max(np.abs(means(case, case.truth | {name: case.truth[name] + shift}, x) - before))

    assert (moved("bias", 1.7) < SAME) == (model.gauge is not None)
    for name in per_atom(case):
        if name not in ("bias", "value"):
            shift = np.linspace(0.5, 1.0, case.truth[name].shape[1])
            assert (moved(name, shift) < SAME) == (model.gauge == name), name
    if model.gauge is None:
        assert moved("bias", 1.7) > 1e-2


def test_the_table_covers_every_structure_size_and_gauge():
    found = {(c.model.structure, c.model.network_bound is not None) for c in MODELS.values()}
    structures = ("independent", "shared-linear", "shared-network")
    assert found == {*((structure, False) for structure in structures), ("shared-network", True)}
    assert {c.model.frozen.count for c in MODELS.values()} == {0, 1, 3}
    assert {c.model.dimension for c in MODELS.values()} == {1, 2, 3}
    assert {c.model.gauge for c in MODELS.values()} == {None, "", "key"}


@every()
def test_the_order_of_atoms_does_not_matter(case, rng):
    x = inputs(case, rng)
    params = random_params(case, 3, rng)
    expected = means(case, params, x)
    for order in permutations(range(3)):
        assert means(case, permuted(case, params, list(order)), x) == pytest.approx(expected, abs=SAME)


@every()
def test_cover_gives_the_function_of_the_truth(case, rng):
    x = inputs(case, rng)
    before = {name: value.copy() for name, value in case.truth.items()}
    for spare in (0, 1, 3):
        cover = rng.permutation(np.concatenate([np.arange(atoms_of(case)), rng.integers(0, atoms_of(case), spare)]))
        found = case.model.overfit(case.truth, cover)
        assert {name: v.shape for name, v in found.items()} == case.model.shapes(len(cover))
        assert means(case, found, x) == pytest.approx(means(case, case.truth, x), abs=SAME)
        found["bias"] += 1.0  # a copy, not a view of the truth
    assert all(np.array_equal(before[name], case.truth[name]) for name in before)


@every("independent")
def test_split_gives_the_same_function_at_any_distance(case, rng):
    x = inputs(case, rng)
    before = {name: value.copy() for name, value in case.truth.items()}
    for atom in range(atoms_of(case)):
        for step in (0.0, 1e-3, 1.0, 9.0):
            found = case.model.split(case.truth, atom, step)
            assert means(case, found, x) == pytest.approx(means(case, case.truth, x), rel=0, abs=1e-14 * max(1.0, step))
            pair = found["value"][[atom, -1]]
            assert np.linalg.norm(pair[0] - pair[1]) == pytest.approx(step, abs=1e-12)
            assert np.array_equal(found["key"][atom], found["key"][-1])
    assert all(np.array_equal(before[name], case.truth[name]) for name in before)


@every("linear", "network", "learned")
def test_tied_models_have_no_split(case):
    assert case.model.split(case.truth, 0, 0.1) is None


@every()
def test_the_box_has_the_shapes_and_holds_the_truth(case):
    lower, upper = case.model.bounds(4, 5.0, 2.0)
    assert {n: v.shape for n, v in lower.items()} == {n: v.shape for n, v in upper.items()} == case.model.shapes(4)
    assert all(np.array_equal(lower[name], -upper[name]) for name in upper)
    assert case.model.unconstrain(case.truth) is case.truth is case.model.constrain(case.truth)  # free as they are
    limit = {"bias": 2.0, "W1": case.model.network_bound, "W2": case.model.network_bound}
    assert all(np.all(upper[name] == limit.get(name, 5.0)) for name in upper)
    lower, upper = case.model.bounds(atoms_of(case), 5.0, 2.0)
    assert all(np.all((lower[n] <= case.truth[n]) & (case.truth[n] <= upper[n])) for n in case.truth)


@every()
def test_the_measure_names_the_blocks_of_the_loss(case, rng):
    params = random_params(case, 3, rng)
    measure = case.model.measure(params)
    assert list(measure.blocks) == list(case.model.exponents)
    assert np.array_equal(measure.log_weight, params["bias"])
    if case.model.structure == "shared-network":
        W1, W2 = params.get("W1", case.model.key_network), params.get("W2", case.model.value_network)
        expected = {"W1p": [W1 @ p for p in params["prefix"]], "W2p": [W2 @ p for p in params["prefix"]]}
    else:
        expected = {name: params[name] for name in measure.blocks}
    for name, block in expected.items():
        assert np.asarray(measure.blocks[name]) == pytest.approx(np.stack(block), abs=1e-14)


@every("independent")
def test_a_translated_measure_is_the_measure_of_the_translated_parameters(case, rng):
    params = random_params(case, 3, rng)
    shift = rng.normal(size=params["key"].shape[1])
    moved = case.model.measure(params | {"bias": params["bias"] - 0.4, "key": params["key"] + shift})
    found = case.model.measure(params).translate(-0.4, "key", shift)
    assert np.asarray(found.location) == pytest.approx(np.asarray(moved.location), abs=1e-15)
    assert np.asarray(found.weight) == pytest.approx(np.exp(params["bias"] - 0.4), rel=1e-14)


def test_location_puts_the_blocks_side_by_side():
    measure = MixingMeasure(np.zeros(2), {"b": np.array([[1.0], [2.0]]), "a": np.array([[3.0, 4.0], [5.0, 6.0]])})
    assert np.array_equal(measure.location, [[1, 3, 4], [2, 5, 6]])


def test_learned_networks_are_parameters_with_their_own_truth(rng):
    """With W1 and W2 moved, the learned model is the fixed one with those networks; the model knows the true ones."""
    case = MODELS["learned-d2-N1-L2"]
    model = case.model
    assert np.array_equal(known(model)["W1"], model.key_network)
    assert np.array_equal(known(model)["W2"], model.value_network)
    params = random_params(case, 2, rng)
    fixed = PrefixModel(
        model.structure, model.noise, model.frozen, model.key_projection, model.value_projection,
        key_network=params["W1"], value_network=params["W2"],
    )  # fmt: skip
    x = inputs(case, rng)
    assert fixed.shapes(2).keys() == {"bias", "prefix"} and known(fixed) == {}
    expected = means(case._replace(model=fixed), {k: params[k] for k in ("bias", "prefix")}, x)
    assert means(case, params, x) == pytest.approx(expected, abs=SAME)
    unmoved = {k: params[k] for k in ("bias", "prefix")} | known(model)
    assert np.max(np.abs(means(case, unmoved, x) - expected)) > 1e-2


@pytest.mark.parametrize("name", ["independent-d3-N1-L2", "linear-d1-N3-L1", "network-d3-N3-L3"])
def test_tokens_are_frozen_experts_that_x_brings_along(name, rng):
    """What a study says by ``frozen.tokens`` is the model whose experts say the same of a query."""
    case = MODELS[name]
    model, frozen = case.model, case.model.frozen
    x = inputs(case, rng)
    wide = np.stack([np.concatenate([q, frozen.logits(q), np.ravel(frozen.outputs(q))]) for q in x])
    table = {
        "structure": model.structure, "noise": model.noise, "frozen": {"tokens": frozen.count},
        "projection": {"key": model.key_projection, "value": model.value_projection},
    }  # fmt: skip
    if model.key_network is not None:
        table["network"] = {"key": model.key_network, "value": model.value_network}
    tokens = build(table, {})
    assert tokens.dimension == wide.shape[1] and tokens.frozen.count == frozen.count
    params = random_params(case, 3, rng)
    assert means(case._replace(model=tokens), params, wide) == pytest.approx(means(case, params, x), abs=SAME)


def test_an_unknown_structure_is_refused_by_name():
    with pytest.raises(InputError, match=r"'tied'.*shared-linear"):
        PrefixModel("tied", 0.3, Frozen.quadratic(np.zeros((0, 1, 1)), [], np.zeros((0, 1, 1))), np.eye(1), np.eye(1))
