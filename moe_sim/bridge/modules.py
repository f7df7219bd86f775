"""Real modules under a prefix: small random transformers, inputs for them, and a forward pass with prefixes in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PrefixEncoder, PrefixTuningConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from moe_sim.bridge.heads import (
    VISION,
    head_size,
    key_value_heads,
    layers_and_heads,
    prefix_cache,
    prefix_mask,
    project,
)
from moe_sim.bridge.pretrained import load, torch_device

PREFIXES = 4
_NETWORK = 48  # hidden width of the deep-share network
_TOKENS = 10  # of a sequence; of an image too: nine patches and the class token
_COMMON: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "attn_implementation": "sdpa"}
_TEXT = _COMMON | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
_SENTENCES = (
    "Attention with a prefix is a mixture of experts whose gate is a softmax.",
    "A short sentence.",
    "The frozen experts are the tokens of the sentence itself.",
)


def _bert(is_decoder: bool) -> BertModel:
    return BertModel(BertConfig(**_TEXT, num_attention_heads=2, intermediate_size=24, is_decoder=is_decoder))


SMALL = {
    "small-gpt2": lambda: GPT2Model(GPT2Config(**_TEXT, n_head=2, n_positions=32)),
    # Four query heads share two key/value heads.
    "small-llama": lambda: LlamaModel(
        LlamaConfig(
            **_TEXT, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=24, attention_bias=True
        )
    ),
    "small-bert": lambda: _bert(False),
    "small-bert-decoder": lambda: _bert(True),
    "small-vit": lambda: ViTModel(
        ViTConfig(**_COMMON, num_attention_heads=2, intermediate_size=24, image_size=12, patch_size=4)
    ),
    "small-dinov2": lambda: Dinov2Model(
        Dinov2Config(**_COMMON, num_attention_heads=2, mlp_ratio=2, image_size=12, patch_size=4)
    ),
}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from a seed; outside, they go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: for products this small, threads that wait for each other and JAX take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def module(name: str, dtype: torch.dtype, device: str, seed: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """A model of ``SMALL`` or a pretrained one by name, and two batches of inputs for it.

    The first batch has sequences of different length, padded left and right (pretrained ones as their tokenizers pad);
    the second has no mask. Weights and biases of the small ones are drawn anew: their own would be so small, or 0, that
    a slip could hide.
    """
    with seeded(seed):
        if name not in SMALL:
            model, tokenizer = load(name, dtype, device)
            padded = dict(tokenizer(list(_SENTENCES), padding=True, return_token_type_ids=False, return_tensors="pt"))
            plain = {"input_ids": torch.randint(model.config.vocab_size, padded["input_ids"].shape)}
        else:
            model = _scatter(SMALL[name]()).to(torch_device(device), dtype).eval()
            plain, other = (_random_inputs(name, dtype) for _ in range(2))
            mask = torch.ones(3, _TOKENS, dtype=torch.long)
            mask[1, 6:] = mask[2, :3] = 0
            padded = other | {"attention_mask": mask}
    return model, [{k: v.to(model.device) for k, v in batch.items()} for batch in (padded, plain)]


def _random_inputs(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if name in ("small-vit", "small-dinov2"):
        return {"pixel_values": torch.randn(3, 3, 12, 12).to(dtype)}
    return {"input_ids": torch.randint(50, (3, _TOKENS))}


def _scatter(model: Any) -> Any:
    """Matrices that keep the size of what they are applied to, biases of half that."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight)) if weight.ndim == 1 else weight.normal_(0.0, 0.25)
    return model


@dataclass(frozen=True)
class Prefix:
    """Prefixes of all layers of a model.

    structure: ``no-share`` (PEFT without ``prefix_projection``: free keys and values), ``deep-share`` (with it: keys
        and values by a network from one embedding) or ``simple-share`` (one vector a layer through its W_K and W_V,
        biases included).
    learned: what is trained: (L, layers * 2 * key/value heads * h), (L, e) and (layers, L, m).
    encoder: PEFT's module from numbers of the prefixes to keys and values; ``peft``: PEFT's model around it, where
        PEFT takes the class.
    """

    model: Any
    structure: str
    learned: torch.Tensor
    encoder: Any = None
    peft: Any = None

    def keys_values(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer, keys and values (key/value heads, L, h)."""
        layers, _ = layers_and_heads(self.model)
        shape = (PREFIXES, key_value_heads(self.model), head_size(self.model))
        if self.structure == "simple-share":
            made = [project(self.model, layer, self.learned[layer])[1:] for layer in range(layers)]
        else:
            flat = self.encoder(torch.arange(PREFIXES, device=self.learned.device)).view(PREFIXES, layers, 2, -1)
            made = [(flat[:, layer, 0], flat[:, layer, 1]) for layer in range(layers)]
        return [(k.reshape(shape).transpose(0, 1), v.reshape(shape).transpose(0, 1)) for k, v in made]

    def run(self, inputs: dict[str, torch.Tensor]) -> None:
        """One forward pass of the model with the prefixes; whoever wants more than its end hooks it."""
        if self.peft is not None:
            self.peft(**inputs)
            return
        batch = len(next(iter(inputs.values())))
        pairs = [(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in self.keys_values()]
        if self.model.config.model_type in VISION:
            with _prefixed(self.model):
                self.model(**inputs, prefix=iter(pairs))
            return
        if "attention_mask" in inputs:
            inputs = inputs | {"attention_mask": prefix_mask(inputs["attention_mask"], PREFIXES)}
        self.model(**inputs, past_key_values=prefix_cache(self.model, pairs))


def prefix(model: Any, structure: str, seed: int) -> Prefix:
    """Random prefixes for a model, of its dtype and on its device. PEFT positions them: tokens start at L."""
    layers, _ = layers_and_heads(model)
    with seeded(seed):
        if structure == "simple-share":
            learned = torch.randn(layers, PREFIXES, model.config.hidden_size).to(model.device, model.dtype)
            return Prefix(model, structure, learned.requires_grad_())
        config = PrefixTuningConfig(
            task_type="FEATURE_EXTRACTION", num_virtual_tokens=PREFIXES, encoder_hidden_size=_NETWORK,
            prefix_projection=structure == "deep-share",
        )  # fmt: skip
        if model.config.model_type in VISION:  # PEFT wants a vocabulary, so its encoder is used alone
            config.num_layers, config.token_dim = layers, model.config.hidden_size
            peft = None
            encoder: Any = PrefixEncoder(config)
        else:
            with warnings.catch_warnings():  # PEFT asks transformers by a name that is going out of use
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
                peft = get_peft_model(model, config).eval()
            encoder = peft.prompt_encoder["default"]
        # PEFT makes its parameters in float32 whatever the model is.
        encoder.to(model.device, model.dtype)
        if structure == "deep-share":
            _scatter(encoder.transform)
    return Prefix(model, structure, encoder.embedding.weight, encoder, peft)


# ViT and DINOv2 have no cache. Their prefixes go in where transformers lets one choose the attention function: keys and
# values of the prefixes are put before the tokens' own, and the library's sdpa does the rest.
_NAME = "moe-sim-prefix"


def _sdpa_with_prefix(module, query, key, value, attention_mask, prefix, **rest):
    before_key, before_value = next(prefix)  # layers run in order
    if attention_mask is not None:
        attention_mask = torch.nn.functional.pad(attention_mask, (before_key.shape[2], 0), value=True)
    key, value = torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


AttentionInterface.register(_NAME, _sdpa_with_prefix)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def _prefixed(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
