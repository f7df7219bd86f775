"""Whole transformers in JAX against torch's own modules, and the two facts about masses and heads in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import call

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import moe_sim as ms  # noqa: E402
from moe_sim.bridge import frozen, heads, network_study  # noqa: E402
from moe_sim.bridge.modules import module  # noqa: E402
from moe_sim.bridge.network import log_mass, mixed  # noqa: E402
from moe_sim.bridge.network_study import network_studies  # noqa: E402
from moe_sim.bridge.transformer import ARMS, Transformer  # noqa: E402

TEXTS = ("one", "two", "three")  # as many as random networks have inputs
Z = np.array([[1.5, 0.5], [-1.0, 1.2]])
MASS = np.array([0.3, -0.4])
X = np.arange(3.0)[:, None]


def network(name):
    net, batches = module(name, torch.float64, "cpu", 0)
    return net, batches[0]


def pooled(states, real, vision):
    """What is seen of the last states of torch (n, T, m)."""
    counted = real.clone()
    counted[:, 0] &= not vision  # the class token is no patch
    mean = (states * counted[:, :, None]).sum(dim=1) / counted.sum(dim=1, keepdim=True)
    return torch.cat([states[:, 0], mean], dim=1) if vision else mean


@pytest.mark.parametrize("name", ["small-bert", "small-gpt2", "small-vit", "small-dinov2"])
@pytest.mark.parametrize("first", [0, 1])
def test_layers_are_those_of_torch_and_their_derivatives(name, first):
    net, inputs = network(name)
    found = frozen.frozen(net, inputs, first)

    def ours(states):
        def one(h, mass, real):
            for layer in found.layers:
                h = layer(h, mass)
            return found.pooling(h, real)

        return jax.vmap(one)(states, jnp.asarray(log_mass(found.real)), jnp.asarray(found.real))

    value, pull = jax.vjp(ours, jnp.asarray(found.states))
    block = heads.block(net, first)

    def theirs(states):
        hook = block.register_forward_pre_hook(lambda _, args: (states, *args[1:]))
        try:
            last = net(**inputs).last_hidden_state
        finally:
            hook.remove()
        return pooled(last, torch.as_tensor(found.real), found.pooling.vision)

    states = torch.as_tensor(found.states).requires_grad_()
    expected = theirs(states)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=0, atol=1e-10)
    along = np.random.default_rng(1).normal(size=value.shape)
    (slope,) = torch.autograd.grad((expected * torch.as_tensor(along)).sum(), states)
    real = found.real[:, :, None]  # padding is no input
    np.testing.assert_allclose(pull(jnp.asarray(along))[0] * real, slope.numpy() * real, rtol=0, atol=1e-8)


@pytest.mark.parametrize("arm", ["simple", "prompt"])
def test_prefixes_and_prompts_are_tokens_of_torch(arm):
    """Modules of a BERT given the prefixes as further tokens. Their rows are dropped after a layer (deep prompt-tuning,
    as VPT's, is simple-share prefix-tuning), or live on (a prompt)."""
    net, inputs = network("small-bert")
    del inputs["attention_mask"]  # no padding: torch's layers then need no mask
    layers = [0] if arm == "prompt" else [0, 1]
    found = frozen.frozen(net, inputs, 0)
    ours = Transformer("small-bert", arm, layers, 0.1, TEXTS)
    ours.states, ours.real = found.states, found.real
    ends = [""] if arm == "prompt" else ["0", "1"]
    params = {
        f"{name}{end}": np.zeros(2) if name == "bias" else Z * (1 + 0.1 * len(end))
        for end in ends
        for name in ("bias", "prefix")
    }
    value = jax.vmap(lambda x: ours.mean(params, x))(X)
    with torch.no_grad():
        states = torch.as_tensor(found.states)
        tokens = states.shape[1]
        for k in (0, 1):
            if k == 0 or arm == "simple":
                where = ours.planted.index(k)
                more = torch.as_tensor(np.asarray(ours.state(params[f"prefix{ends[where]}"], where)))
                states = torch.cat([states[:, :tokens], more.expand(3, -1, -1)], dim=1)
            out = heads.block(net, k)(states)
            states = out[0] if isinstance(out, tuple) else out
        expected = states[:, :tokens].mean(dim=1)
    np.testing.assert_allclose(value, expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("arm, layers", [*((arm, [0]) for arm in ARMS), ("simple", [0, 1])])
def test_the_network_sees_a_mixing_measure(arm, layers):
    """Two equal prefixes of masses 0.3 and 0.7 are one of mass 1, at any depth; another order is the same."""
    model = Transformer("small-bert", arm, layers, 0.1, TEXTS)
    one, two = {}, {}
    for name, p in model.parameters().items():
        rows = np.array([0.2, -0.1]) if p.shape == () else Z
        one[name] = rows
        parts = np.log([0.3, 0.7]) if p.shape == () else 0.0
        two[name] = np.concatenate([rows[1:], rows[[0, 0]] + parts])
    value = [jax.vmap(lambda x, p=p: model.mean(p, x))(X) for p in (one, two)]
    np.testing.assert_allclose(*value, rtol=0, atol=1e-13)
    moved = jax.vmap(lambda x: model.mean({k: v + 0.1 for k, v in one.items()}, x))(X)
    assert np.max(np.abs(moved - value[0])) > 1e-3


def test_free_keys_and_values_of_heads_may_be_permuted_head_by_head():
    """Exact: with equal masses each head may swap its own prefixes, whatever the layer above makes of it; with other
    masses it shows."""
    found = frozen.frozen(*network("small-bert"), 0)
    layer, h = found.layers[0], jnp.asarray(found.states[0])
    rng = np.random.default_rng(2)
    key, value = rng.normal(size=(2, 2, layer.heads, h.shape[1] // layer.heads))
    swapped = [v.copy() for v in (key, value)]
    for v in swapped:
        v[:, 1] = v[::-1, 1]
    mass = jnp.asarray(log_mass(found.real)[0])
    for masses, same in ((np.zeros(2), True), (MASS, False)):
        outputs = [layer(h, mass, *map(jnp.asarray, pair), masses) for pair in ((key, value), swapped)]
        gap = float(np.max(np.abs(outputs[0] - outputs[1])))
        assert gap < 1e-12 if same else gap > 1e-3


def test_with_masses_of_one_three_prefixes_do_not_represent_two():
    """Real attention has b = 0: two prefixes weigh w1 + w2 at a query, and a third adds to that more than any bounded
    place of its own can take back."""
    from scipy.optimize import least_squares

    tokens = np.random.default_rng(3).normal(size=(4, 2))

    def outputs(z):
        """Four queries on four tokens, keys and values those of the prefixes z (L, 2)."""
        every = jnp.concatenate([tokens, z])
        return mixed((jnp.asarray(tokens) @ every.T)[None], every[:, None, :])[:, 0]

    true = outputs(jnp.asarray(Z))
    residual = jax.jit(lambda v: (outputs(v.reshape(-1, 2)) - true).ravel())
    for count, represents in ((2, True), (3, False)):
        best = min(
            least_squares(
                residual, start, jac=jax.jit(jax.jacfwd(residual)), bounds=(-3, 3), xtol=1e-14, ftol=1e-14
            ).cost
            for start in np.random.default_rng(4).uniform(-2, 2, (12, 2 * count))
        )
        assert (best < 1e-20) == represents, (count, best)


def test_free_splits_of_a_value_change_nothing():
    model = Transformer("small-bert", "free", [0], 0.1, TEXTS)
    truth = {"bias": np.zeros(2), "key": Z, "value": Z}
    split = model.split(truth, 0, 3.0)
    value = [jax.vmap(lambda x, p=p: model.mean(p, x))(X) for p in (truth, split)]
    np.testing.assert_allclose(*value, rtol=0, atol=1e-12)
    assert Transformer("small-bert", "simple", [0], 0.1, TEXTS).split(truth, 0, 3.0) is None


def missed(model, sketch, params, about=None):
    """What a sketch misses of a network, in the directions that it tells, rms over outputs and inputs; and what of the
    output those directions leave out. about: of differences from these parameters."""
    inside, outside = [], []
    for x in X:
        offset, ways = sketch.span(x)
        gap = lambda p, x=x, offset=offset: model.mean(p, x) - offset  # noqa: E731
        true = gap(params) - (0.0 if about is None else gap(about))
        told = sketch.mean(params, x) - (0.0 if about is None else sketch.mean(about, x))
        inside.append(ways.T @ true - told)
        outside.append(true - ways @ (ways.T @ true))
    return float(np.sqrt(np.mean(np.square(inside)))), float(np.sqrt(np.mean(np.square(outside))))


@pytest.mark.parametrize("arm", ["simple", "free", "deep", "prompt"])
def test_a_sketch_is_right_in_first_order(arm):
    """Without prefixes it is the network; of prefixes of mass e^b it misses what is of second order in e^b. Of prompts
    the polynomials are not exact: it misses a part in a hundred of what is of first order."""
    model = Transformer("small-bert", arm, [0] if arm == "prompt" else [0, 1], 0.1, TEXTS)
    found = []
    for b in (-40.0, -14.0, -16.0):
        params = {k: np.full(2, b) if p.shape == () else Z for k, p in model.parameters().items()}
        found.append(missed(model, model.sketch, params)[0])
    assert found[0] < 1e-12
    assert found[1] / found[2] == pytest.approx(np.exp(2.0 if arm == "prompt" else 4.0), rel=0.1)
    if arm == "prompt":
        size = np.sqrt(np.mean([np.square(model.mean(params, x) - model.sketch.span(x)[0]) for x in X]))
        assert found[2] < 0.03 * size


@pytest.mark.parametrize("arm", ["simple", "free", "deep", "prompt"])
def test_a_sketch_about_prefixes_has_the_slopes_of_the_network_there(arm):
    model = Transformer("small-bert", arm, [0] if arm == "prompt" else [0, 1], 0.1, TEXTS)
    rng = np.random.default_rng(7)
    params = {k: rng.normal(size=(2, *p.shape)) for k, p in model.parameters().items()}
    sketch = jax.jit(lambda of, exact, p: of.around(exact, p))(model.sketch, model, params)
    assert missed(model, sketch, params)[0] < 1e-12
    step = {k: 1e-4 * rng.normal(size=v.shape) for k, v in params.items()}
    moved = {k: v + step[k] for k, v in params.items()}
    inside, outside = missed(model, sketch, moved, params)
    size = np.sqrt(np.mean([np.square(model.mean(moved, x) - model.mean(params, x)) for x in X]))
    assert inside < (0.1 if arm == "prompt" else 1e-3) * size  # the second: curvature, as the step
    assert outside < 0.05 * size
    assert missed(model, model.sketch, moved, params)[0] > 2 * inside  # what it was before


def test_prompts_of_a_causal_network_are_refused():
    with pytest.raises(ms.InputError, match="prompts of a causal network see only those before them"):
        Transformer("small-gpt2", "prompt", [0], 0.1, TEXTS)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Small runs of the arm simple, as ``run_network`` gives them."""
    studies = network_studies("small-bert", [0], TEXTS, ["simple"])
    changes = {"replicates": 4, "sizes": [1e6, 1e8, 1e10]}
    return network_study.run_network(studies, tmp_path_factory.mktemp("runs"), **changes)


def test_a_study_of_a_network_ends_in_verdicts(done):
    for end, (results, verdicts) in done.items():
        assert np.all(results.frame["certificate"] == "certified"), end
        by = {v.loss: v.slope for v in verdicts}
        assert -0.7 < by["function"] < -0.3 and -0.8 < by["voronoi"] < -0.2
    assert set(done) == {"simple-exact", "simple-over"}


def test_the_command(done, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(network_study, "run_network", lambda *_, **__: done)
    text = tmp_path / "inputs.txt"
    text.write_text("\n".join(TEXTS))
    given = ["--model", "small-bert", "--layers", "0", "--arms", "simple", "--text", str(text), "--out", str(tmp_path)]
    status, out, _ = call(monkeypatch, capsys, "bridge", "transformer", *given, "--json")
    told = json.loads(out)
    assert status == 0
    assert [arm["structure"] for arm in told["arms"]] == ["simple-exact", "simple-over"]
    assert told["layers"] == [0] and all(arm["verdicts"] for arm in told["arms"])
    drawn = (tmp_path / "bridge-transformer.csv").read_text()
    assert {"function", "voronoi", "atoms:multi", "atoms:single"} <= {
        line.split(",")[-1] for line in drawn.splitlines()
    }


@pytest.mark.parametrize(
    "given, words",
    [
        (["--layers", "four"], "--layers has 'four': pass numbers of layers"),
        (["--arms", "simple,shallow"], "--arms = 'shallow' is not known"),
        (["--text", "nowhere.txt"], "--text nowhere.txt cannot be read"),
    ],
)  # fmt: skip
def test_bad_options(given, words, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, "bridge", "transformer", "--model", "small-bert", *given)
    assert status == 2 and words in " ".join(err.split())


def test_studies_are_files(tmp_path):
    studies = network_studies("small-bert", [0, 1], TEXTS)
    assert [s.name for s in studies][:2] == ["small-bert-layer0-1-simple-exact", "small-bert-layer0-1-simple-over"]
    assert studies[-1].tables["model"]["layers"] == [0]  # a prompt enters at one layer
    assert studies[1].tables["fit"]["atoms"] == {"layer0": 3, "layer1": 3}
    path = tmp_path / "study.toml"
    path.write_text(studies[3].to_toml())
    again = ms.load_study(path)
    assert again.digest == studies[3].digest
    assert {"loss": "voronoi:r=2", "kind": "lower", "mark": "ours"} in again.tables["claim"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"arm": "shallow"}, "model.arm = 'shallow' is not known"),
        ({"layers": [2]}, "model.layers has 2: this network has 2 layers"),
        ({"layers": [1, 0]}, "each once, in order"),
        ({"layers": []}, "pass layers from 0"),
        ({"layers": [0, 1], "arm": "prompt"}, "a prompt enters at one layer"),
        ({"network": "small-llama"}, "llama is not supported as a whole"),
        ({"directions": 3, "arm": "deep"}, "the known network of the arm deep has 2"),
        ({"noise": -1.0}, "model.noise"),
    ],
)  # fmt: skip
def test_bad_input(change, words):
    given = {"network": "small-bert", "arm": "simple", "layers": [0], "noise": 0.1, "texts": TEXTS} | change
    with pytest.raises(ms.InputError) as caught:
        Transformer(**given)
    assert words in str(caught.value)


def test_an_activation_that_is_not_there():
    net, inputs = network("small-bert")
    net.config.hidden_act = "swish"
    with pytest.raises(ms.InputError, match="activation swish is not supported"):
        frozen.frozen(net, inputs, 0)
