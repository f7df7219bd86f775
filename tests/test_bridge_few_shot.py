"""Few-shot prefix-tuning: data, prefixes, training, the choice of rates, resuming, the figure and the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from transformers import BertConfig, BertModel, GPT2Config, GPT2Model  # noqa: E402

from moe_sim import InputError  # noqa: E402
from moe_sim.bridge import STRUCTURES, data, few_shot, few_shot_plot, pretrained  # noqa: E402
from moe_sim.bridge.few_shot import FINE_TUNING, METHODS, PROBE, Profile  # noqa: E402
from moe_sim.bridge.heads import recording  # noqa: E402
from moe_sim.bridge.prefixes import NETWORK, prefix, sentence_vectors  # noqa: E402

TINY = Profile(
    (2, 4), 2, 3, 4, 3, 4, 6, dict.fromkeys(STRUCTURES, (1e-3, 1e-2)) | {FINE_TUNING: (1e-3,), PROBE: (1.0,)}
)
LAYERS, SIZE, LENGTH = 2, 24, 3


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.load(dtype=torch.float32)[1]


@pytest.fixture
def task(tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=SIZE, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=32,
            attn_implementation="sdpa", initializer_range=0.2,
        )  # fmt: skip
        model = BertModel(config).eval()
    return few_shot.prepare("tiny", model, tokenizer, TINY)


def tuned(task, method, rate=1e-2, seed=0, shots=4):
    return few_shot.tune(task, method, task.split.training[seed, : 2 * shots], seed, threading.Event(), rate)


def without_time(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="seconds")


def test_snippets_are_balanced_and_nobody_shares_them():
    found = data.snippets()
    assert len(found) == found["text"].nunique() and found["label"].value_counts().to_dict() == {0: 2979, 1: 2967}
    labels = found["label"].to_numpy()
    drawn = data.split(labels, 5, 256, 64, 300)
    everything = np.concatenate([drawn.training.ravel(), drawn.validation.ravel(), drawn.test])
    assert len(np.unique(everything)) == len(everything) == 2 * (5 * 320 + 300)
    for rows in (*drawn.training[:, :8], *drawn.training, *drawn.validation, drawn.test):
        assert labels[rows].mean() == 0.5
    with pytest.raises(
        InputError, match=r"9 seeds of 256 \+ 64 .* need 3180 a class, there are 2967: pass fewer seeds"
    ):
        data.split(labels, 9, 256, 64, 300)


def test_package_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        InputError, match=r"cannot be fetched \(.*\): connect to a package index, or put vaderSentiment"
    ):
        data.snippets()
    kept = tmp_path / "moe_sim/vaderSentiment-3.3.2.tar.gz"
    kept.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"3\.3\.2\.tar\.gz is not the file that was published .*: remove it and run"):
        data.snippets()
    shutil.rmtree(kept.parent)
    kept.parent.write_text("")
    with pytest.raises(InputError, match=r"cannot be read or written .*: set XDG_CACHE_HOME"):
        data.snippets()


def test_package_is_fetched_once_through_pip(tmp_path, monkeypatch):
    content, calls = data._package(), []

    def pip(arguments, **_):
        calls.append(arguments)
        assert f"--hash=sha256:{data.SHA256}" in Path(arguments[arguments.index("-r") + 1]).read_text()
        Path(arguments[-1], "vaderSentiment-3.3.2.tar.gz").write_bytes(content)
        return data.subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.subprocess, "run", pip)
    assert data._package() == data._package() == content and len(calls) == 1
    assert [path.name for path in (tmp_path / "moe_sim").iterdir()] == ["vaderSentiment-3.3.2.tar.gz"]


def test_parameters_are_those_of_a_hand_count(task):
    deep = LENGTH * SIZE + (SIZE + 1) * NETWORK + (NETWORK + 1) * LAYERS * 2 * SIZE
    expected = {"no-share": 2 * LAYERS * LENGTH * SIZE, "simple-share": LAYERS * LENGTH * SIZE, "deep-share": deep}
    pooler = SIZE * SIZE + SIZE
    expected[FINE_TUNING] = sum(p.numel() for p in task.model.parameters()) - pooler
    for method, count in expected.items():
        fitted = tuned(task, method)
        assert (fitted.parameters, fitted.classifier, fitted.steps) == (count, 2 * SIZE + 2, TINY.steps)


@pytest.mark.parametrize("method", [*STRUCTURES, FINE_TUNING])
def test_the_pretrained_model_stays_as_it_is(task, method):
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    first, again, other = (tuned(task, method, rate) for rate in (1e-2, 1e-2, 2e-2))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in task.model.parameters())
    rows = task.split.test
    np.testing.assert_array_equal(first.logits(rows), again.logits(rows))
    assert first.losses == again.losses and first.losses[0] == other.losses[0]  # the same first batch and start
    assert np.abs(first.logits(rows) - other.logits(rows)).max() > 1e-5
    np.testing.assert_allclose(first.logits(rows[::-1])[::-1], first.logits(rows), atol=1e-5)  # whatever the order


def test_training_fits_the_examples(task):
    long = dataclasses.replace(task, profile=dataclasses.replace(TINY, steps=200))
    for method, rate in {"no-share": 0.1, "simple-share": 0.1, "deep-share": 1e-2, FINE_TUNING: 1e-2}.items():
        fitted = tuned(long, method, rate)
        assert fitted.losses[-1] < 0.5 * fitted.losses[0], method


def test_keys_and_values_of_each_structure(task):
    model = task.model
    made = {name: prefix(name, model, LENGTH, torch.Generator().manual_seed(0)) for name in STRUCTURES}
    norms = [model.embeddings.LayerNorm, model.encoder.layer[0].output.LayerNorm]
    network = made["deep-share"].network
    hidden = torch.tanh(made["deep-share"].prompts @ network[0].weight.T + network[0].bias)
    deep = (hidden @ network[2].weight.T + network[2].bias).reshape(LENGTH, LAYERS, 2, SIZE)
    for layer in range(LAYERS):
        attention, normed = model.encoder.layer[layer].attention.self, norms[layer](made["simple-share"].prompts[layer])
        expected = {
            "simple-share": [normed @ m.weight.T + m.bias for m in (attention.key, attention.value)],
            "no-share": [made["no-share"].keys[layer], made["no-share"].values[layer]],
            "deep-share": [deep[:, layer, 0], deep[:, layer, 1]],
        }
        for name, pair in expected.items():
            torch.testing.assert_close(list(made[name](model)[layer]), pair)


def test_what_a_prefix_does_in_a_layer(task):
    """Against attention written out: prefixes first, tokens at positions from 0, padding unseen, heads apart."""
    model = task.model.double()
    ids, mask = few_shot._padded(task, task.split.test[:4])
    plain = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (plain * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(sentence_vectors(model, None, ids, mask), mean)
    vectors = prefix("no-share", model, LENGTH, torch.Generator().manual_seed(0))
    with recording(model) as record:
        sentence_vectors(model, vectors, ids, mask).sum().backward()
    assert all(p.grad.abs().min() > 0 for p in vectors.parameters())
    torch.testing.assert_close(record.states[0], model.embeddings(ids))  # which counts positions from 0
    attention, x = model.encoder.layer[0].attention.self, record.states[0]
    key, value = (
        torch.cat([part.expand(4, -1, -1), module(x)], dim=1)
        for part, module in zip(vectors(model)[0], (attention.key, attention.value), strict=True)
    )
    seen = torch.cat([torch.ones(4, LENGTH, dtype=torch.long), mask], dim=1)
    for head, columns in enumerate(torch.arange(SIZE).chunk(2)):
        scores = attention.query(x)[..., columns] @ key[..., columns].mT / (SIZE / 2) ** 0.5
        gates = scores.masked_fill(seen[:, None] == 0, -torch.inf).softmax(-1)
        torch.testing.assert_close(record.outputs[0][:, :, head], gates @ value[..., columns])


def test_an_interrupted_run_goes_on_to_the_same_numbers(task, tmp_path):
    whole = few_shot.run(task, tmp_path / "whole")
    assert len(whole.frame) == 2 * 2 * (3 * 2 + 1 + 1)

    def interrupt(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        few_shot.run(task, tmp_path / "part", interrupt)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "part/rows").iterdir()}
    assert 0 < len(kept) < len(whole.frame)
    done = few_shot.run(task, tmp_path / "part")
    pd.testing.assert_frame_equal(without_time(done.frame), without_time(whole.frame))
    pd.testing.assert_frame_equal(done.curves, whole.curves)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    path = next(iter(kept))
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON: restore it"):
        few_shot.run(task, tmp_path / "part")


def test_validation_chooses_the_rate(task, tmp_path):
    found = few_shot.run(task, tmp_path)
    for _, group in found.frame.groupby(["method", "shots", "seed"]):
        assert group["chosen"].sum() == 1 and group.loc[group["chosen"], "test_accuracy"].notna().all()
        best = group.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]
        assert best["chosen"]
    row = {"validation_accuracy": 0.5, "validation_loss": 0.7}
    worse = [row | {"validation_accuracy": 0.4}, row | {"validation_loss": 0.8}, row | {"validation_loss": None}]
    assert all(few_shot.rank(row) > few_shot.rank(other) for other in worse)


def test_loss_that_overflowed_is_none(task):
    fitted = tuned(task, "no-share")._replace(logits=lambda rows: np.full((len(rows), 2), np.nan))
    assert few_shot.measure(fitted, task.split.test, task.labels) == (0.5, None)


def test_intervals_are_those_of_the_t_test():
    rng = np.random.default_rng(0)
    rows = [
        {
            "method": method, "shots": shots, "seed": seed, "rate": 0.1, "chosen": True, "parameters": 1,
            "classifier": 1, "steps": 3, "test_accuracy": rng.uniform(0.5, 1), "training_accuracy": 1.0,
            "training_loss": 0.1, "losses": [0.7],
        }
        for method in METHODS for shots in (2, 4) for seed in range(5)
    ]  # fmt: skip
    found = few_shot.summed_up("tiny", dataclasses.replace(TINY, seeds=5), rows)
    wide = found.frame.pivot(index="seed", columns=["method", "shots"], values="test_accuracy")
    table = found.differences().set_index(["first", "second", "shots"])
    assert len(table) == 9
    for (first, second, shots), row in table.iterrows():
        a, b = (wide[m].mean(axis=1) if shots == 0 else wide[m][shots] for m in (first, second))
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        np.testing.assert_allclose(row[["low", "high"]].astype(float), expected)
        assert row["difference"] == pytest.approx((a - b).mean())
    accuracy = found.accuracy().set_index(["method", "shots"])
    expected = stats.ttest_1samp(wide["no-share"][4], 0).confidence_interval(0.95)
    np.testing.assert_allclose(accuracy.loc[("no-share", 4), ["low", "high"]].astype(float), expected)


def test_a_model_that_is_no_bert(tokenizer):
    model = GPT2Model(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="--model is of type gpt2: pass a BERT encoder"):
        few_shot.prepare("gpt2", model, tokenizer, TINY)


def test_command(moe_sim, tmp_path, monkeypatch):
    """The quick profile on the real model, in two steps, then the table of what is kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_shot, "QUICK", dataclasses.replace(few_shot.QUICK, steps=2))
    status, out, err = moe_sim("bridge", "few-shot", "--quick", "--json")
    assert status == 0 and err.count(" left\n") == 20
    found = json.loads(out)
    assert {row["method"] for row in found["accuracy"]} == set(METHODS) and len(found["differences"]) == 9
    counts = {row["method"]: row["parameters"] for row in found["accuracy"]}
    assert [counts[name] for name in STRUCTURES] == [46_080, 23_040, 647_552]
    names = [tmp_path / f"runs/bridge-few-shot-quick/bridge-few-shot.{suffix}" for suffix in ("svg", "png", "csv")]
    assert all(path.stat().st_size for path in names) and not (tmp_path / "figures").exists()
    status, out, _ = moe_sim("bridge", "few-shot", "--quick", "--out", tmp_path / "there")
    assert status == 0 and "647,552 + 770" in out and "mean of all" in out
    assert (tmp_path / "there/bridge-few-shot.svg").exists()
    drawn = pd.read_csv(names[2])
    assert set(drawn["panel"]) == {"test accuracy", "difference", "training loss"}
    assert few_shot_plot._STYLE.keys() == set(METHODS)
