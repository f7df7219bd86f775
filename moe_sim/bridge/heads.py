"""Attention heads of real transformers as matrices, and what enters and leaves them in a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DynamicCache

from moe_sim.errors import InputError

Entry = TypeVar("Entry")


@dataclass(frozen=True, eq=False)
class Head:
    """One head in the row convention q = x W_Q + b_Q, k = x W_K + b_K, v = x W_V + b_V (float64).

    query, key, value: W_Q, W_K, W_V, each (m, h). query_bias, key_bias, value_bias: (h,), zeros where the module has
    none. scale: what a score q'k is multiplied by, 1/sqrt(h) as a rule. Rotary positions are not in it: ``rotary``.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    query_bias: np.ndarray
    key_bias: np.ndarray
    value_bias: np.ndarray
    scale: float


@dataclass(frozen=True)
class _Layout:
    """Where a class keeps its blocks and, in a block, its attention, output projection and q, k, v projections."""

    blocks: str
    attention: str
    output: str
    projections: tuple[str, ...]


_SPLIT = ("q_proj", "k_proj", "v_proj")
_LAYOUTS = {  # by config.model_type
    "bert": _Layout("encoder.layer", "attention.self", "attention.output.dense", ("query", "key", "value")),
    "gpt2": _Layout("h", "attn", "attn.c_proj", ("c_attn",)),  # one matrix for all three
    "llama": _Layout("layers", "self_attn", "self_attn.o_proj", _SPLIT),
    "vit": _Layout("layers", "attention", "attention.o_proj", _SPLIT),
    "dinov2": _Layout("encoder.layer", "attention", "attention.o_proj", _SPLIT),
}


VISION = ("vit", "dinov2")  # classes of images: no cache, no padding


def layers_and_heads(model: Any) -> tuple[int, int]:
    """Number of layers and of query heads in each. Raises ``InputError`` for a class that is not supported."""
    _layout(model)
    return model.config.num_hidden_layers, model.config.num_attention_heads


def head(model: Any, layer: int, index: int) -> Head:
    """Query head ``index`` of a layer, both from 0, with the key/value head that it uses (grouped queries: Llama).

    Raises ``InputError`` for a class that is not supported and for a layer or head that the model lacks.
    """
    layers, heads = layers_and_heads(model)
    for name, got, count in (("layer", layer, layers), ("head", index, heads)):
        if not 0 <= got < count:
            raise InputError(f"{name} = {got}: this model has {count} {name}s, pass one from 0 to {count - 1}")
    query, key, value = maps(model, layer)
    group, groups = key_value_head(model, index), key_value_heads(model)
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
        _slice(query, index, heads),
        _slice(key, group, groups),
        _slice(value, group, groups),
    )
    return Head(w_q, w_k, w_v, b_q, b_k, b_v, float(part(model, layer, "attention").scaling))


def key_value_heads(model: Any) -> int:
    """Number of key/value heads of a layer: fewer than query heads where queries are grouped."""
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def key_value_head(model: Any, index: int) -> int:
    """The key/value head that query head ``index`` uses."""
    return index * key_value_heads(model) // model.config.num_attention_heads


def project(model: Any, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (..., heads * h) that the module's own projections make of states (..., m)."""
    attention = part(model, layer, "attention")
    made = [getattr(attention, name)(states) for name in _layout(model).projections]
    return made[0].chunk(3, dim=-1) if len(made) == 1 else tuple(made)


def rotary(model: Any, positions: np.ndarray) -> np.ndarray:
    """Rotations R (T, h, h) of rows, q R_t at position t: the identity where the class has no rotary positions.

    Angles are the module's own: it computes them in float32 whatever its dtype, so exact ones would differ by 1e-7.
    """
    core = base(model)
    h = head_size(model)
    unit = np.eye(h)
    if not hasattr(core, "rotary_emb"):
        return np.broadcast_to(unit, (len(positions), h, h))
    where = torch.as_tensor(positions, device=core.device)[None]
    like = torch.zeros((), dtype=core.dtype, device=core.device)
    cos, sin = (as_numpy(part[0]) for part in core.rotary_emb(like, where))
    turned = np.concatenate([-unit[:, h // 2 :], unit[:, : h // 2]], axis=1)  # rows: rotate_half of each unit vector
    return cos[:, None, :] * unit + sin[:, None, :] * turned


def head_size(model: Any) -> int:
    """h, the dimension of one head."""
    return getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads


def prefix_cache(model: Any, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    """Keys and values (B, key/value heads, L, h) of each layer as a cache. A forward pass changes it: make it anew."""
    cache = DynamicCache(config=model.config)
    for layer, (key, value) in enumerate(pairs):
        cache.update(key, value, layer)
    return cache


def prefix_mask(mask: torch.Tensor, length: int) -> torch.Tensor:
    """The attention mask (B, T) with ``length`` prefixes before the tokens, all of them seen."""
    return torch.cat([mask.new_ones(len(mask), length), mask], dim=1)


def is_causal(model: Any) -> bool:
    """Whether a token attends only to itself and those before it."""
    return model.config.model_type in ("gpt2", "llama") or bool(getattr(model.config, "is_decoder", False))


@dataclass
class Record:
    """Per layer, of the last forward pass: states (B, T, m) that entered the projections (after the layer norm in
    pre-norm models) and the heads' outputs (B, T, heads, h) before the output projection. Torch tensors."""

    states: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def recording(model: Any, detach: bool = False) -> Iterator[Record]:
    """A ``Record`` that every forward pass inside fills anew.

    detach: cut the graph where states enter a layer's attention, so that a gradient is that of one head alone.
    """
    record = Record()
    layers, heads = layers_and_heads(model)

    def entering(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        if module is first:
            record.states.clear()
            record.outputs.clear()
        states = states.detach() if detach else states
        record.states.append(states)
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    def leaving(_, args):
        record.outputs.append(args[0].unflatten(-1, (heads, -1)))

    first = part(model, 0, "attention")
    hooks = []
    try:
        for layer in range(layers):
            attention, output = part(model, layer, "attention"), part(model, layer, "output")
            hooks.append(attention.register_forward_pre_hook(entering, with_kwargs=True))
            hooks.append(output.register_forward_pre_hook(leaving))
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def attention_inputs(model: Any, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Hidden states (B, T, m) that enter the projections of each layer, float64, padded positions included."""
    with torch.no_grad(), recording(model) as record:
        model(**inputs)
    return [as_numpy(states) for states in record.states]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same numbers in float64."""
    return tensor.detach().cpu().double().numpy()


def base(model: Any) -> Any:
    """The model without a task head."""
    return getattr(model, "base_model", model)


def by_type(model: Any, table: Mapping[str, Entry], how: str = "") -> Entry:
    """What a table by ``config.model_type`` has of a model. Raises ``InputError`` (``how``: its words) for another."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in table:
        raise InputError(f"{kind} is not supported{how}: pass a model of one of the types {', '.join(table)}")
    return table[kind]


def leading(gates: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` directions (m, count) of states that move gates most, rows (N, m) of ``gates`` being what a state
    is multiplied by; scaled so that a unit moves their root sum of squares by one."""
    _, spread, found = np.linalg.svd(gates, full_matrices=False)
    found, spread = found[:count], spread[:count]
    # Singular vectors have no sign of their own: the largest entry is positive.
    largest = np.take_along_axis(found, np.argmax(np.abs(found), axis=1)[:, None], axis=1)
    return (found * np.sign(largest)).T / spread


def _layout(model: Any) -> _Layout:
    return by_type(model, _LAYOUTS)


def block(model: Any, layer: int) -> Any:
    """The module of a layer."""
    return attrgetter(_layout(model).blocks)(base(model))[layer]


def part(model: Any, layer: int, name: str) -> Any:
    """The module of a layer that computes its ``attention``, or its ``output`` projection."""
    return attrgetter(getattr(_layout(model), name))(block(model, layer))


def maps(model: Any, layer: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(W, b) of query, key and value, all heads: (m, heads * h) and (heads * h,)."""
    attention = part(model, layer, "attention")
    modules = [getattr(attention, name) for name in _layout(model).projections]
    found = []
    for module in modules:
        # Conv1D of GPT-2 holds (in, out), Linear (out, in).
        weight = as_numpy(module.weight if len(modules) == 1 else module.weight.T)
        found.append((weight, np.zeros(weight.shape[1]) if module.bias is None else as_numpy(module.bias)))
    if len(found) == 1:
        weight, bias = found[0]
        return list(zip(np.split(weight, 3, axis=1), np.split(bias, 3), strict=True))
    return found


def _slice(maps: tuple[np.ndarray, np.ndarray], index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of one head out of ``count``."""
    weight, bias = maps
    h = len(bias) // count
    return weight[:, index * h : (index + 1) * h], bias[index * h : (index + 1) * h]
