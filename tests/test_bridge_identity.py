"""Real attention modules against the prefix model: every class, structure and number format; slips are seen."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from moe_sim.bridge import MINILM, STRUCTURES  # noqa: E402
from moe_sim.bridge import identity as bridge  # noqa: E402
from moe_sim.bridge.heads import as_numpy, attention_inputs, head, key_value_head, layers_and_heads, project  # noqa: E402
from moe_sim.bridge.modules import PREFIXES, SMALL, module, prefix  # noqa: E402
from moe_sim.errors import InputError  # noqa: E402

MADE: dict = {}


def small(name: str, structure: str = "no-share"):
    """A small model in float64 with prefixes, and its two batches."""
    if name not in MADE:
        MADE[name] = module(name, torch.float64, "cpu", 3)
    model, batches = MADE[name]
    return prefix(model, structure, 3), batches


def worst(given, inputs) -> float:
    return max(far for far, _ in bridge.compare(given, inputs, gradient=False))


def altered(monkeypatch, change) -> None:
    """Every head that the prefix model is built from is changed first."""
    monkeypatch.setattr("moe_sim.bridge.identity.head", lambda *which: change(head(*which)))


@pytest.mark.parametrize("name", SMALL)
def test_small_models(name):
    """Every layer and head within 1e-10 in float64, 1e-5 in float32, derivatives within 1e-8, none left out."""
    rows = bridge.identity((name,), seed=1)
    model, _ = module(name, torch.float64, "cpu", 1)
    layers, heads = layers_and_heads(model)
    where = {(r["layer"], r["head"], r["structure"], r["dtype"]) for r in rows}
    assert len(where) == len(rows) == layers * heads * 3 * 2
    for row in rows:
        assert row["max_abs_diff"] <= (1e-10 if row["dtype"] == "float64" else 1e-5), row
        assert row["dtype"] == "float32" or row["gradient_diff"] <= 1e-8, row
        assert row["mask"] == ("full" if name in ("small-bert", "small-vit", "small-dinov2") else "causal")
    # Single precision shows, so the two are not one and the same computation.
    assert all(row["max_abs_diff"] > 1e-9 for row in rows if row["dtype"] == "float32")
    assert bridge.failures(rows) == []


@pytest.mark.parametrize("structure", STRUCTURES)
def test_pretrained(structure):
    """All 72 heads of all-MiniLM-L6-v2."""
    if MINILM not in MADE:
        MADE[MINILM] = module(MINILM, torch.float64, "cpu", 0)
    model, (padded, _) = MADE[MINILM]
    given = prefix(model, structure, 0)
    found = bridge.compare(given, padded)
    assert len(found) == 72 and len(padded["attention_mask"].sum(dim=1).unique()) == 3
    assert max(far for far, _ in found) <= 1e-10 and max(slope for _, slope in found) <= 1e-8


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_scale_is_seen(name, structure, monkeypatch):
    given, (padded, _) = small(name, structure)
    altered(monkeypatch, lambda one: dataclasses.replace(one, scale=one.scale * 1.001))
    assert worst(given, padded) > 1e-5


@pytest.mark.parametrize("bias", ["query_bias", "key_bias", "value_bias"])
@pytest.mark.parametrize("name", SMALL)
def test_a_missing_bias_is_seen(name, bias, monkeypatch):
    given, (padded, _) = small(name)
    altered(monkeypatch, lambda one: dataclasses.replace(one, **{bias: 0 * one.key_bias}))
    assert worst(given, padded) > 1e-2


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_mask_is_seen(name, monkeypatch):
    given, (padded, plain) = small(name)
    monkeypatch.setattr("moe_sim.bridge.identity.is_causal", lambda model: False)
    causal = name not in ("small-bert", "small-vit", "small-dinov2")
    assert (worst(given, plain) > 1e-2) == (worst(given, padded) > 1e-2) == causal
    monkeypatch.undo()
    everything = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
    run = type(given).run
    monkeypatch.setattr(type(given), "run", lambda self, _: run(self, everything))
    assert worst(given, padded) > 1e-2


def test_a_rotation_from_the_wrong_position_is_seen(monkeypatch):
    """Scores between tokens see only differences of positions: what shows the shift is the prefix keys."""
    given, (padded, _) = small("small-llama")
    right = bridge.rotary
    monkeypatch.setattr("moe_sim.bridge.identity.rotary", lambda model, at: right(model, at - PREFIXES))
    assert worst(given, padded) > 1e-2


def test_the_wrong_group_is_seen(monkeypatch):
    given, (padded, _) = small("small-llama")
    assert [key_value_head(given.model, k) for k in range(4)] == [0, 0, 1, 1]
    monkeypatch.setattr("moe_sim.bridge.heads.key_value_head", lambda model, index: index % 2)
    assert worst(given, padded) > 1e-2


@pytest.mark.parametrize("name", SMALL)
def test_the_key_bias_is_a_gauge_where_all_keys_have_it(name, monkeypatch):
    """b_K adds the same to the logits of tokens and simple-share prefixes; rotary positions break that."""
    given, (padded, _) = small(name, "simple-share")
    altered(monkeypatch, lambda one: dataclasses.replace(one, key_bias=0 * one.key_bias))
    assert worst(given, padded) > 1e-2 if name == "small-llama" else worst(given, padded) <= 1e-10


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["small-gpt2", "small-vit", "small-dinov2"])
def test_prefixes_have_no_order(name, structure):
    given, (padded, _) = small(name, structure)
    with torch.no_grad(), bridge.recording(given.model) as record:
        given.run(padded)
        before = as_numpy(record.outputs[1])
        axis = 1 if structure == "simple-share" else 0
        given.learned.copy_(given.learned.flip(axis))
        given.run(padded)
        after = as_numpy(record.outputs[1])
    real = as_numpy(padded["attention_mask"]) > 0
    assert np.abs(before - after)[real].max() <= 1e-13
    assert worst(given, padded) <= 1e-10


@pytest.mark.parametrize("name", SMALL)
def test_prefixes_matter(name):
    """Without them the same module says something else: the identity is not one of the tokens alone."""
    given, (padded, _) = small(name)
    with torch.no_grad(), bridge.recording(given.model) as record:
        given.model(**padded)
        without = as_numpy(record.outputs[0])
        given.run(padded)
        assert np.abs(as_numpy(record.outputs[0]) - without).max() > 0.1


@pytest.mark.parametrize("name", SMALL)
def test_a_head_is_what_the_module_projects(name):
    given, (padded, _) = small(name)
    states = attention_inputs(given.model, padded)
    one = head(given.model, 1, 1)
    assert len(states) == 2 and states[1].shape == (3, 10, 16)
    query, key, value = project(given.model, 1, torch.as_tensor(states[1]))
    group = key_value_head(given.model, 1)
    for made, index, weight, bias in (
        (query, 1, one.query, one.query_bias),
        (key, group, one.key, one.key_bias),
        (value, group, one.value, one.value_bias),
    ):
        np.testing.assert_allclose(
            states[1] @ weight + bias, as_numpy(made)[..., 8 * index : 8 * index + 8], atol=1e-13
        )
    assert one.scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize("layer, index, what", [(2, 0, "layer = 2"), (-1, 0, "layer = -1"), (0, 4, "head = 4")])
def test_no_such_head(layer, index, what):
    with pytest.raises(InputError, match=rf"{what}: this model has \d (layer|head)s, pass one from 0 to \d"):
        head(small("small-llama")[0].model, layer, index)


def test_a_class_that_is_not_supported():
    with pytest.raises(InputError, match="Linear is not supported: pass a model of one of the types bert, gpt2"):
        head(torch.nn.Linear(2, 2), 0, 0)


@pytest.fixture
def only_bert(monkeypatch):
    """The command on one small model in place of the pretrained one, and no other."""
    for name in set(SMALL) - {"small-bert"}:
        monkeypatch.delitem(SMALL, name)


def test_the_command(moe_sim, only_bert, tmp_path):
    status, out, err = moe_sim("bridge", "identity", "--model", "small-bert", "--json", "--out", tmp_path)
    rows = json.loads(out)["rows"]
    assert status == 0 and "compared: small-bert" in err
    assert {"model", "layer", "head", "structure", "dtype", "max_abs_diff"} <= set(rows[0])
    assert {p.name for p in tmp_path.iterdir()} == {f"bridge-identity.{end}" for end in ("svg", "png", "csv")}
    lines = (tmp_path / "bridge-identity.csv").read_text().splitlines()
    assert len(lines) == len(rows) + 1


def test_a_head_that_differs_ends_the_command_with_1(moe_sim, only_bert, tmp_path, monkeypatch):
    altered(monkeypatch, lambda one: dataclasses.replace(one, key_bias=0 * one.key_bias))
    status, out, err = moe_sim("bridge", "identity", "--model", "small-bert", "--out", tmp_path)
    assert status == 1 and "small-bert, layer 0, head 0, no-share, float64: outputs" in err
    assert "deep-share" in out and "bridge-identity.svg" in out
