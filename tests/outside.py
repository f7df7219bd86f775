"""Models that lie outside the package: two small ones, and studies of them."""

from __future__ import annotations

import copy
from pathlib import Path

import tomli_w
from tiny import GONE

SIGMOID = '''"""One expert with a sigmoid gate."""

import jax
import jax.numpy as jnp

import moe_sim as ms


class SigmoidGate(ms.Regression):
    mass = "bias"

    def __init__(self, dimension: int, noise: float, scale=1.0):
        self.dimension, self.noise, self.scale = dimension, noise, scale

    def parameters(self):
        d = (self.dimension,)
        return {"bias": ms.Parameter(bound="bias_bound", exponents=None), "slope": ms.Parameter(d)}

    def mean(self, params, x):
        weight = jax.nn.sigmoid(params["bias"])
        return self.scale * (weight @ (params["slope"] @ x))[None]
'''
LABELS = """import jax

import moe_sim as ms


class Logistic(ms.Density):
    mass = "bias"
    support = ms.Labels(2)

    def __init__(self, dimension: int):
        self.dimension = dimension

    def parameters(self):
        return {"bias": ms.Parameter(bound="bias_bound", exponents=None), "slope": ms.Parameter((self.dimension,))}

    def log_density(self, params, x, y):
        logit = params["bias"].sum() + (params["slope"] @ x).sum()
        return jax.nn.log_sigmoid((2 * y[0] - 1) * logit)
"""
TABLES = {
    "name": "own",
    "model": {"family": "sigmoid.py:SigmoidGate", "dimension": 1, "noise": 0.3},
    "truth": {"bias": [0.2], "slope": [[1.0]]},
    "law": {"name": "grid", "low": -2.0, "high": 2.0, "points": 10},
    "fit": {"atoms": 1, "start": "wide", "starts": 2, "spread": 0.1},
    "sample": {"mode": "exact", "sizes": [1e2, 1e3, 1e4], "replicates": 3, "seed": 0},
    "claim": [{"loss": "function", "exponent": 0.5}, {"loss": "voronoi", "exponent": 0.5}],
}
DENSITY = {
    "model": {"family": "labels.py:Logistic", "dimension": 1},
    "sample": {"mode": "iid", "sizes": [1e2, 2e2, 4e2], "replicates": 2},
}


def tables(**changes):
    """TABLES with changes named by their path, as in ``tiny.tables``."""
    found = copy.deepcopy(TABLES)
    for path, value in changes.items():
        *above, last = path.split("__")
        table = found
        for part in above:
            table = table[int(part) if part.isdigit() else part]
        if value is GONE:
            del table[last]
        else:
            table[last] = value
    return found


def write(folder: Path, files: dict[str, str] | None = None, **changes) -> Path:
    """The study as a file, and beside it the two models, or these texts in place of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ({"sigmoid.py": SIGMOID, "labels.py": LABELS} | (files or {})).items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    path = folder / "own.toml"
    path.write_text(tomli_w.dumps(tables(**changes)))
    return path
