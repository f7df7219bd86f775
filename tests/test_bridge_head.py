"""Real heads as studies: what the study says of a head is what the head does, and a run of it ends in verdicts."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import moe_sim as ms  # noqa: E402
from moe_sim.bridge import head as bridge  # noqa: E402
from moe_sim.bridge import heads, pretrained  # noqa: E402
from moe_sim.bridge.modules import module  # noqa: E402

TOKENS = ("small-gpt2", "small-bert", "small-bert-decoder", "small-llama")


@pytest.fixture(scope="module")
def minilm():
    model, tokenizer = pretrained.load()
    return model, tokenizer, bridge.encode(tokenizer, bridge.sentences())


def attention(model, inputs, real: bridge.RealHead, prefixes: np.ndarray) -> np.ndarray:
    """Output (M, h) of the head at its tokens, by torch's own attention, with tokens of states (L, m) before them."""
    head = heads.head(model, real.layer, real.index)
    states = torch.as_tensor(heads.attention_inputs(model, inputs)[real.layer])
    mask = inputs["attention_mask"].bool()
    turn = torch.as_tensor(np.array(heads.rotary(model, np.arange(mask.shape[1]))))

    def projected(rows, weight, bias):
        return rows @ torch.as_tensor(weight) + torch.as_tensor(bias)

    before = torch.as_tensor(prefixes)[None].expand(len(states), -1, -1)
    turned = lambda rows: torch.einsum("sth,thg->stg", rows, turn)  # noqa: E731
    query = turned(projected(states, head.query, head.query_bias))
    key = torch.cat([projected(before, head.key, head.key_bias), turned(projected(states, head.key, head.key_bias))], 1)
    value = projected(torch.cat([before, states], 1), head.value, head.value_bias)
    seen = mask[:, None, :].expand(-1, mask.shape[1], -1)
    if heads.is_causal(model):
        seen = seen.tril()
    seen = torch.cat([torch.ones(*seen.shape[:2], len(prefixes), dtype=torch.bool), seen], dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=head.scale)
    return out[mask].numpy()


def planted(real: bridge.RealHead) -> np.ndarray:
    return real.origin + np.asarray(bridge.TRUTH) @ real.directions.T


def of_study(real: bridge.RealHead, structure: str) -> np.ndarray:
    """f at the truth of the head's study, in the h coordinates of the head's output that values can move in."""
    problem = bridge.head_study(real, structure, 2).problem
    points, _ = problem.law.nodes()
    return np.stack([problem.model.mean(problem.truth, x) for x in points])


def check(model, inputs, real: bridge.RealHead, structure: str) -> float:
    theirs = (attention(model, inputs, real, planted(real)) - real.shift) @ real.basis
    return float(np.abs(of_study(real, structure) - theirs).max())


@pytest.mark.parametrize("layer, index", [(0, 0), (3, 7), (5, 11)])
def test_the_study_of_a_head_is_the_head(minilm, layer, index):
    """Up to the six decimals that a study file keeps of its queries, logits and outputs."""
    model, _, inputs = minilm
    real = bridge.real_head("minilm", model, inputs, layer, index)
    assert len(real.x) == int(inputs["attention_mask"].sum()) and real.x.shape[1] == 32 + 3 * real.tokens
    assert max(check(model, inputs, real, s) for s in bridge.TIES) < 1e-5


@pytest.mark.parametrize("name", TOKENS)
def test_other_classes(name):
    """Causal masks, rotary positions, grouped queries."""
    model, (padded, _) = module(name, torch.float64, "cpu", 5)
    real = bridge.real_head(name, model, padded, 1, 1)
    assert check(model, padded, real, "shared") < 1e-5


def test_a_unit_step_moves_the_gates_by_one_standard_deviation(minilm):
    model, _, inputs = minilm
    real = bridge.real_head("minilm", model, inputs, 2, 4)
    gates = real.x[:, :32] @ real.key_projection
    np.testing.assert_allclose(np.cov(gates.T, bias=True), np.eye(2), atol=1e-5)
    # No other direction of that length moves them more: the two are the leading ones.
    head = heads.head(model, 2, 4)
    moved = np.cov(real.x[:, :32].T, bias=True) @ (head.key.T @ head.key) * head.scale**2
    spread = np.sort(np.linalg.eigvals(moved).real)[::-1]
    np.testing.assert_allclose(1 / np.linalg.norm(real.directions, axis=0) ** 2, spread[:2], rtol=1e-6)


def test_the_head_alone_is_what_the_module_gives(minilm):
    """Without prefixes the same numbers are the output of the real module."""
    model, _, inputs = minilm
    real = bridge.real_head("minilm", model, inputs, 3, 7)
    with torch.no_grad(), heads.recording(model) as record:
        model(**inputs)
    theirs = record.outputs[3][:, :, 7][inputs["attention_mask"].bool()].numpy()
    np.testing.assert_allclose(attention(model, inputs, real, np.zeros((0, 384))), theirs, atol=1e-12)
    frozen = bridge.head_study(real, "shared", 2).problem.model.frozen
    logits, outputs = (np.stack([f(x) for x in real.x]) for f in (frozen.logits, frozen.outputs))
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    ours = np.einsum("it,itr->ir", weight / weight.sum(axis=1, keepdims=True), outputs)
    np.testing.assert_allclose(ours, (theirs - real.shift) @ real.basis, atol=1e-5)


def test_studies_say_what_the_theory_claims(minilm):
    model, _, inputs = minilm
    made = bridge.head_studies(bridge.real_head("minilm", model, inputs, 0, 0))
    assert [s.name for s in made] == [
        f"minilm-layer0-head0-{end}" for end in ("shared-exact", "shared-over", "independent-exact", "independent-over")
    ]
    for study in made:
        assert ms.Study(**tomllib.loads(study.to_toml())).digest == study.digest
        assert study.problem.sizes[-1] / study.problem.sizes[0] >= 1e4 and study.problem.replicates >= 100
    assert [(c.loss, c.kind) for c in made[3].claims] == [
        ("function", "upper"), ("voronoi", "upper"), ("voronoi:r=2", "lower"),
    ]  # fmt: skip


def test_names_of_models(tmp_path, monkeypatch):
    """They name folders and studies; two models may share one: a study's digest tells their runs apart."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    names = [bridge.short_name(name) for name in ("all-minilm-l6-v2", "openai-community/gpt2", "my models/a+b c", ".")]
    assert names == ["all-minilm-l6-v2", "gpt2", "a-b-c", "here"]


def test_other_sentences_run_beside(minilm, tmp_path, monkeypatch):
    model, tokenizer, _ = minilm
    folders = []
    monkeypatch.setattr(bridge, "run", lambda study, folder, _: folders.append(folder))
    monkeypatch.setattr(bridge, "judge", lambda results: [])
    for texts in (bridge.sentences(), bridge.sentences()[1:], bridge.sentences()):
        real = bridge.real_head("minilm", model, bridge.encode(tokenizer, texts), 0, 0)
        assert list(bridge.run_head(real, tmp_path)) == [f"{t}-{k}" for t in bridge.TIES for k in ("exact", "over")]
    assert folders[:4] == folders[8:] and not set(folders[:4]) & set(folders[4:8])


def test_default_heads(minilm):
    assert bridge.default_heads(minilm[0]) == [(0, 0), (3, 0), (5, 0)]


def test_the_command(moe_sim, monkeypatch, tmp_path):
    """One head, one replicate pair a size: verdicts, a figure, and the same again from what is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bridge, "SIZES", [1e6, 1e8, 1e10])
    monkeypatch.setattr(bridge, "REPLICATES", 3)
    over = lambda real: [bridge.head_study(real, s, 3) for s in bridge.TIES]  # noqa: E731
    monkeypatch.setattr(bridge, "head_studies", over)
    (tmp_path / "text").write_text("A prefix is one more token.\nExperts share a gate.\n\nA head attends to all.\n")
    command = ("bridge", "head", "--heads", "3:7", "--text", "text", "--quick", "--json")
    status, out, err = moe_sim(*command)
    assert status == 0 and "shared-over  n = 1e+10  3/3 replicates" in err
    assert err.startswith("3 of 3 sentences are short enough, ")
    found = json.loads(out)["heads"]
    assert [(f["layer"], f["head"], f["study"].split("-head7-")[1]) for f in found] == [
        (3, 7, "shared-over"), (3, 7, "independent-over"),
    ]  # fmt: skip
    (flat,) = [v for v in found[1]["verdicts"] if v["kind"] == "lower"]
    assert flat["verdict"] == "supported"
    folder = tmp_path / "runs" / "bridge-head-quick"
    assert {p.name for p in folder.iterdir() if p.is_file()} == {f"bridge-head.{e}" for e in ("svg", "png", "csv")}
    drawn = (folder / "bridge-head.csv").read_text()
    assert "layer 3, head 7" in drawn and "atoms:single" in drawn
    status, out, _ = moe_sim(*command[:-1])
    assert status == 0 and "independent-over" in out and (folder / "bridge-head.csv").read_text() == drawn


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--heads", "3"), "--heads has '3': pass LAYER:HEAD, from 0, as in 0:0,3:7"),
        (("--heads", "6:0"), "layer = 6: this model has 6 layers, pass one from 0 to 5"),
        (("--text", "none"), "--text none cannot be read ("),
        (
            ("--text", "long"),
            "0 of 1 sentences have at most 14 tokens, 0 tokens in all: pass sentences of that length, with 15 to 1000",
        ),
        (("--text", "short"), "1 of 1 sentences have at most 14 tokens, 3 tokens in all: pass sentences of that"),
    ],
)
def test_bad_input(moe_sim, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long").write_text("word " * 30)
    (tmp_path / "short").write_text("word")
    status, out, err = moe_sim("bridge", "head", *arguments)
    assert status == 2 and out == "" and told in err
