"""Frozen transformers read out of torch for ``network``: layers, what enters them, and where prefixes may go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from moe_sim.bridge import heads, pretrained
from moe_sim.bridge.modules import SMALL, one_thread
from moe_sim.bridge.modules import module as random_module
from moe_sim.bridge.network import ACTIVATIONS, Layer, Pooling, log_mass
from moe_sim.errors import InputError


@dataclass(frozen=True)
class _Names:
    """Of parts of a layer, and of the last norm; ``before``: see ``network``."""

    first: str
    second: str
    up: str
    down: str
    before: bool
    last: str | None = None
    scales: tuple[str, str] | None = None


_NAMES = {  # by config.model_type
    "bert": _Names("attention.output.LayerNorm", "output.LayerNorm", "intermediate.dense", "output.dense", False),
    "vit": _Names("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", True, "layernorm"),
    "dinov2": _Names(
        "norm1", "norm2", "mlp.fc1", "mlp.fc2", True, "layernorm", ("layer_scale1.lambda1", "layer_scale2.lambda1")
    ),
    "gpt2": _Names("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", True, "ln_f"),
}


@dataclass(frozen=True, eq=False)
class Frozen:
    """A network from layer ``first`` on, and states (n, T, m) of n inputs that enter it; real (n, T): no padding."""

    layers: tuple[Layer, ...]
    pooling: Pooling
    first: int
    states: np.ndarray
    real: np.ndarray


@dataclass(frozen=True, eq=False)
class Place:
    """Where prefixes of one layer may go: p = origin + directions z, (m,) and (m, r)."""

    origin: np.ndarray
    directions: np.ndarray


def frozen(module: Any, inputs: dict[str, Any], first: int) -> Frozen:
    """Layers of ``module`` (float64) from ``first`` on, and what ``inputs`` bring to them. Raises ``InputError``."""
    names = heads.by_type(module, _NAMES, " as a whole")
    count, _ = heads.layers_and_heads(module)
    if not 0 <= first < count:
        raise InputError(f"model.layers has {first}: this network has {count} layers, pass some from 0 to {count - 1}")
    with torch.no_grad(), one_thread():
        states = module(**inputs, output_hidden_states=True).hidden_states[first]
    real = inputs.get("attention_mask")
    real = np.ones(states.shape[:2], bool) if real is None else real.cpu().numpy().astype(bool)
    last = None if names.last is None else attrgetter(names.last)(heads.base(module))
    norm = None if last is None else (heads.as_numpy(last.weight), heads.as_numpy(last.bias))
    pooling = Pooling(module.config.model_type in heads.VISION, norm, 0.0 if last is None else float(last.eps))
    layers = tuple(layer(module, k) for k in range(first, count))
    return Frozen(layers, pooling, first, np.where(real[:, :, None], heads.as_numpy(states), 0.0), real)


def layer(module: Any, index: int) -> Layer:
    """One layer of ``module``."""
    names, block = heads.by_type(module, _NAMES, " as a whole"), heads.block(module, index)
    query, key, value = heads.maps(module, index)
    found = {"query": query, "key": key, "value": value, "out": _linear(heads.part(module, index, "output"))}
    found |= {name: _linear(attrgetter(getattr(names, name))(block)) for name in ("up", "down")}
    norms = {name: attrgetter(getattr(names, name))(block) for name in ("first", "second")}
    found |= {name: (heads.as_numpy(n.weight), heads.as_numpy(n.bias)) for name, n in norms.items()}
    config = module.config
    activation = getattr(config, "hidden_act", None) or config.activation_function
    if activation not in ACTIVATIONS:
        raise InputError(f"activation {activation} is not supported: pass a network with {', '.join(ACTIVATIONS)}")
    ones = np.ones(len(found["first"][0]))
    scales = [ones, ones] if names.scales is None else [heads.as_numpy(attrgetter(n)(block)) for n in names.scales]
    scale = float(heads.part(module, index, "attention").scaling)
    return Layer(
        found, (scales[0], scales[1]), config.num_attention_heads, scale, float(norms["first"].eps), activation,
        names.before, heads.is_causal(module),
    )  # fmt: skip


def place(network: Frozen, layer: int, directions: int, residual: bool) -> Place:
    """p0, the mean of what enters a layer, and the directions in which a prefix moves the gates of all its heads most.

    Of the states that enter the projections, or, ``residual``, of those before the norm in front of them (prompts).
    A unit of z moves the logits of tokens and heads by one standard deviation, about the mean of each head.
    """
    h = network.states
    for block in network.layers[: layer - network.first]:
        h = np.stack(
            [np.asarray(block(jnp.asarray(one), log_mass(real))) for one, real in zip(h, network.real, strict=True)]
        )
    block = network.layers[layer - network.first]
    entering = np.asarray(block.entering(jnp.asarray(h)))
    query = np.asarray(block.projected(jnp.asarray(h))[0])[network.real]  # (N, heads, h)
    by_head = block.maps["key"][0].reshape(h.shape[-1], block.heads, -1)
    logits = block.scale * np.einsum("nhc,mhc->nhm", query, by_head)
    logits = (logits - logits.mean(axis=0)).reshape(-1, h.shape[-1])
    origin = (h if residual else entering)[network.real].mean(axis=0)
    return Place(origin, heads.leading(logits / np.sqrt(len(logits)), directions))


@lru_cache(maxsize=4)
def text_network(name: str, texts: tuple[str, ...], first: int) -> Frozen:
    """A network of text by name (see ``pretrained.load``) on these texts, from layer ``first`` on.

    Raises ``InputError``. A random one of ``modules.SMALL`` has three inputs of its own, whatever the texts are.
    """
    if name in SMALL:
        module, (inputs, _) = random_module(name, torch.float64, "cpu", 0)
        return frozen(module, inputs, first)
    module, tokenizer = pretrained.load(name)
    return frozen(module, dict(tokenizer(list(texts), padding=True, return_tensors="pt")), first)


def _linear(module: Any) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) and (out,): Conv1D of GPT-2 holds the first so, Linear the other way round."""
    weight = heads.as_numpy(module.weight)
    weight = weight.T if isinstance(module, torch.nn.Linear) else weight
    return weight, np.zeros(weight.shape[1]) if module.bias is None else heads.as_numpy(module.bias)
