"""Real attention modules give what the theory's ``PrefixModel`` gives, gradients included, head by head.

A head is (theory.md, section 1; Le et al., arXiv 2410.02200, section 3) a prefix model in the row x of its query:

    frozen logits  (x W_Q + b_Q) R_i k_t' scale,  k_t = (x_t W_K + b_K) R_t,  frozen outputs  x_t W_V + b_V,
    learned logits (x W_Q + b_Q) R_i key' scale,  learned outputs  value,

R the rotation of a position (1 where the class has none). Biases: x and tied prefixes carry a last coordinate 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from moe_sim.bridge import MINILM, STRUCTURES
from moe_sim.bridge.heads import (
    Head,
    as_numpy,
    head,
    head_size,
    is_causal,
    key_value_head,
    key_value_heads,
    layers_and_heads,
    recording,
    rotary,
)
from moe_sim.bridge.modules import PREFIXES, SMALL, Prefix, module, one_thread, prefix, seeded
from moe_sim.models.prefix import Frozen, PrefixModel

LIMITS = {"float64": 1e-10, "float32": 1e-5}  # largest absolute difference of an output
GRADIENT = 1e-8  # and of a derivative, in float64
_ONE = 40.0  # tanh(40) is 1 in float64


def identity(
    models: Iterable[str] = (*SMALL, MINILM), dtypes: Iterable[str] = tuple(LIMITS), device: str = "cpu", seed: int = 0
) -> list[dict[str, Any]]:
    """One row a head: model, layer, head, structure, mask, dtype, max_abs_diff, limit, gradient_diff.

    models: names of ``SMALL``, or pretrained ones. max_abs_diff: of the module's output, in ``dtype``, from the
    prefix model's, in float64, over all real positions of two batches, one with padding and one without a mask.
    gradient_diff: largest difference of a derivative of a squared error of that head's output with respect to what
    is learned, over the first batch (float64 only; None else). Raises ``InputError`` for a model or device that cannot
    be used.
    """
    rows = []
    for name in models:
        for dtype in dtypes:
            model, batches = module(name, getattr(torch, dtype), device, seed)
            for structure in STRUCTURES:
                mask = "causal" if is_causal(model) else "full"
                told = {"model": name, "structure": structure, "mask": mask, "dtype": dtype}
                rows += [told | found for found in _heads(prefix(model, structure, seed), batches, dtype, seed)]
    return rows


def failures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are not within their limits; one that is not finite is not."""
    return [r for r in rows if not (r["max_abs_diff"] <= r["limit"] and (r["gradient_diff"] or 0.0) <= GRADIENT)]


def _heads(given: Prefix, batches: list[dict[str, torch.Tensor]], dtype: str, seed: int) -> Iterator[dict[str, Any]]:
    _, heads = layers_and_heads(given.model)
    passes = [compare(given, inputs, seed, gradient=dtype == "float64" and k == 0) for k, inputs in enumerate(batches)]
    for layer, index, *found in ((n // heads, n % heads, *both) for n, both in enumerate(zip(*passes, strict=True))):
        outputs, gradients = zip(*found, strict=True)
        yield {
            "layer": layer, "head": index, "max_abs_diff": float(np.max(outputs)), "limit": LIMITS[dtype],
            "gradient_diff": gradients[0],
        }  # fmt: skip


@one_thread()
def compare(
    given: Prefix, inputs: dict[str, torch.Tensor], seed: int = 0, gradient: bool = True
) -> list[tuple[float, float | None]]:
    """Largest differences of outputs and of derivatives, of every head of every layer, of one forward pass."""
    model = given.model
    layers, heads = layers_and_heads(model)
    with torch.set_grad_enabled(gradient), recording(model, detach=True) as record:
        given.run(inputs)
    shape = record.states[0].shape[:2]
    real = as_numpy(inputs["attention_mask"]) > 0 if "attention_mask" in inputs else np.ones(shape, bool)
    seen = np.broadcast_to(real[:, None, :], (*shape, shape[1]))
    if is_causal(model):
        seen = np.tril(seen)
    rotation = rotary(model, PREFIXES + np.arange(shape[1]))
    with seeded(seed):
        target = torch.randn(*shape, head_size(model), dtype=torch.float64)
    pairs = []
    for layer in range(layers):
        states = as_numpy(record.states[layer])
        for index in range(heads):
            arrays = _arrays(given, head(model, layer, index), layer, index, states, rotation)
            ours, slope = _prefix_model(STRUCTURES[given.structure], seen, real, target.numpy(), *arrays)
            theirs = record.outputs[layer][:, :, index]
            far = float(np.abs(as_numpy(theirs) - ours)[real].max())
            apart = None
            if gradient:
                weight = torch.as_tensor(real[..., None], device=theirs.device)
                loss = 0.5 * (weight * (theirs - target.to(theirs)) ** 2).sum()
                (torch_slope,) = torch.autograd.grad(loss, given.learned, retain_graph=True)
                apart = float(np.abs(as_numpy(torch_slope) - _as_learned(given, slope, layer, index)).max())
            pairs.append((far, apart))
    return pairs


@partial(jax.jit, static_argnames="structure")
def _prefix_model(structure, seen, real, target, params, x, query, rotation, keys, values, key_map, value_map, network):
    """Outputs (B, T, h) of the prefix model at every query, and the gradient of the squared error in ``params``.

    query: (m + 1, h), scale and bias in it. key_map (h, d_key) and value_map (h, d_value): B = query R_i key_map and
    C = value_map. network: W1 = W2, or None.
    """

    def at(params, x, seen, keys, values, turn):
        frozen = Frozen(
            keys.shape[0],
            # A token out of sight is a frozen expert of weight 0.
            lambda x: jnp.where(seen, keys @ (x @ query @ turn), -jnp.inf),
            lambda x: values,
        )
        model = PrefixModel(structure, 1.0, frozen, query @ turn @ key_map, value_map, network, network)
        return model.mean(params, x)

    over_batch = jax.vmap(at, (None, 0, 0, 0, 0, None))
    over_queries = jax.vmap(over_batch, (None, 1, 1, None, None, 0), 1)

    def loss(params):
        out = over_queries(params, x, seen, keys, values, rotation)
        return 0.5 * jnp.sum(real[..., None] * (out - target) ** 2), out

    slope, out = jax.grad(loss, has_aux=True)(params)
    return out, slope


def _arrays(given: Prefix, one: Head, layer: int, index: int, states: np.ndarray, rotation: np.ndarray) -> tuple:
    """Parameters and known arrays of the prefix model of one head."""
    keys = np.einsum("bti,tij->btj", states @ one.key + one.key_bias, rotation)
    values = states @ one.value + one.value_bias
    known = (_with_one(states), one.scale * np.vstack([one.query, one.query_bias]), rotation, keys, values)
    params, key_map, value_map, network = _learned(given, one, layer, index)
    return {"bias": np.zeros(PREFIXES)} | params, *known, key_map, value_map, network


def _learned(given: Prefix, one: Head, layer: int, index: int) -> tuple:
    """Parameters, key_map, value_map and network: see ``_prefix_model``."""
    learned, h = as_numpy(given.learned), len(one.key_bias)
    if given.structure == "simple-share":
        maps = (np.vstack([one.key, one.key_bias]).T, np.vstack([one.value, one.value_bias]).T)
        return {"prefix": _with_one(learned[layer])}, *maps, None
    group = key_value_head(given.model, index)
    if given.structure == "no-share":
        key, value = _by_head(given, learned)[:, layer, :, group].transpose(1, 0, 2)
        return {"key": key, "value": value}, np.eye(h), np.eye(h), None
    first, last = given.encoder.transform[0], given.encoder.transform[2]
    # A hidden unit that is always 1 carries the bias of the second layer.
    unit = np.append(np.zeros(learned.shape[1]), _ONE)
    network = np.vstack([np.column_stack([as_numpy(first.weight), as_numpy(first.bias)]), unit])
    both = np.column_stack([as_numpy(last.weight), as_numpy(last.bias)])
    key_map, value_map = _by_head(given, both.T)[:, layer, :, group].transpose(1, 2, 0)
    return {"prefix": _with_one(learned)}, key_map, value_map, network


def _as_learned(given: Prefix, slope: dict[str, Any], layer: int, index: int) -> np.ndarray:
    """The prefix model's gradient as one of all that is learned: 0 where this head does not look."""
    found = np.zeros(given.learned.shape)
    if given.structure == "no-share":
        mine = _by_head(given, found)[:, layer, :, key_value_head(given.model, index)]
        mine[:, 0], mine[:, 1] = slope["key"], slope["value"]
    elif given.structure == "simple-share":
        found[layer] = slope["prefix"][:, :-1]
    else:
        found[:] = slope["prefix"][:, :-1]
    return found


def _by_head(given: Prefix, flat: np.ndarray) -> np.ndarray:
    """PEFT's order of its last axis: (.., layers, key or value, key/value heads, h). A view."""
    layers, _ = layers_and_heads(given.model)
    return flat.reshape(len(flat), layers, 2, key_value_heads(given.model), head_size(given.model))


def _with_one(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], axis=-1)
