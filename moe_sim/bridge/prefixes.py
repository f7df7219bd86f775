"""Prefixes that are trained into a frozen BERT, tied in three ways, and sentence vectors of a model that has them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from moe_sim.bridge.heads import prefix_cache, prefix_mask, project
from moe_sim.errors import InputError

NETWORK = 128  # hidden units of the deep-share network

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


class NoShare(nn.Module):
    """Free keys and values, each (layers, L, m), all entries N(0, 1) at the start, as in PEFT."""

    def __init__(self, layers: int, length: int, size: int, generator: torch.Generator):
        super().__init__()
        self.keys = nn.Parameter(torch.randn(layers, length, size, generator=generator))
        self.values = nn.Parameter(torch.randn(layers, length, size, generator=generator))

    def forward(self, model: Any) -> Pairs:
        return list(zip(self.keys, self.values, strict=True))


class SimpleShare(nn.Module):
    """One vector p a layer and prefix, (layers, L, m), N(0, 1): key W_K LN(p) + b_K, value W_V LN(p) + b_V, all frozen.

    LN is the layer norm that the tokens, too, pass before they enter that layer.
    """

    def __init__(self, layers: int, length: int, size: int, generator: torch.Generator):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(layers, length, size, generator=generator))

    def forward(self, model: Any) -> Pairs:
        norms = [model.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in model.encoder.layer)]
        made = [project(model, layer, norms[layer](p)) for layer, p in enumerate(self.prompts)]
        return [(key, value) for _, key, value in made]


class DeepShare(nn.Module):
    """Keys and values of all layers out of one network W2 tanh(W1 p + c1) + c2 on p (L, m), as in PEFT: W_K and W_V
    have no part in them. The network is trained; it starts as torch starts a linear layer, and p as N(0, 1)."""

    def __init__(self, layers: int, length: int, size: int, generator: torch.Generator):
        super().__init__()
        self.layers = layers
        self.prompts = nn.Parameter(torch.randn(length, size, generator=generator))
        self.network = nn.Sequential(
            linear(size, NETWORK, generator), nn.Tanh(), linear(NETWORK, layers * 2 * size, generator)
        )

    def forward(self, model: Any) -> Pairs:
        made = self.network(self.prompts).unflatten(-1, (self.layers, 2, -1))
        return [(made[:, layer, 0], made[:, layer, 1]) for layer in range(self.layers)]


CLASSES = {"no-share": NoShare, "simple-share": SimpleShare, "deep-share": DeepShare}


def prefix(structure: str, model: Any, length: int, generator: torch.Generator) -> nn.Module:
    """A prefix of ``length`` vectors in every layer, on the model's device; called with the model, it gives the layers'
    keys and values, each (L, m) with the heads side by side."""
    config = model.config
    made = CLASSES[structure](config.num_hidden_layers, length, config.hidden_size, generator)
    return made.to(model.device, model.dtype)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's usual start, from a generator: torch itself draws from one that threads share."""
    made = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return made


def check(model: Any) -> Any:
    """The model, if it is a BERT encoder. Raises ``InputError``."""
    kind = model.config.model_type
    if kind != "bert" or model.config.is_decoder:
        raise InputError(f"--model is of type {kind}{' (decoder)' * (kind == 'bert')}: pass a BERT encoder")
    return model


def sentence_vectors(model: Any, prefix: nn.Module | None, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sentence vectors (B, m): the mean of the last layer over the tokens of ids (B, T), mask 1, prefixes not counted.

    Tokens keep positions 0 .. T - 1, those that the model was trained with: on its own it would start at L.
    """
    batch, length = ids.shape
    cache, seen = None, mask
    if prefix is not None:
        cache = prefix_cache(model, ((_heads(model, k, batch), _heads(model, v, batch)) for k, v in prefix(model)))
        seen = prefix_mask(mask, cache.get_seq_length())
    positions = torch.arange(length, device=ids.device)[None]
    found = model(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache)
    weight = mask[..., None].to(model.dtype)
    return (found.last_hidden_state * weight).sum(1) / weight.sum(1)


def _heads(model: Any, states: torch.Tensor, batch: int) -> torch.Tensor:
    """(L, m) as (batch, heads, L, h)."""
    return states.unflatten(-1, (model.config.num_attention_heads, -1)).transpose(0, 1).expand(batch, -1, -1, -1)
