"""The figure of the identity: how far real attention heads are from the prefix model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from moe_sim.bridge import STRUCTURES
from moe_sim.bridge.identity import GRADIENT, LIMITS
from moe_sim.plots.rates import STRUCTURES as COLOURS
from moe_sim.plots.style import STYLE, handle, legend, note, write

_MARKERS = {"float64": "o", "float32": "^"}
_LEAST = 1e-18  # what a difference of exactly 0 is drawn at


def plot_identity(rows: list[dict[str, Any]]) -> Figure:
    """Every head a point, by model, structure and number format; dashed: what is allowed."""
    frame = pd.DataFrame(rows).assign(gradient_diff=lambda f: f["gradient_diff"].astype(float))
    models = list(dict.fromkeys(frame["model"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for dtype, limit in LIMITS.items():
            _points(left, frame[frame["dtype"] == dtype], models, "max_abs_diff", _MARKERS[dtype])
            _allowed(left, limit, f"limit in {dtype}")
        _points(right, frame.dropna(subset="gradient_diff"), models, "gradient_diff", "o")
        _allowed(right, GRADIENT, "limit in float64")
        left.set_title("output of the head")
        left.set_ylabel("largest absolute difference")
        right.set_title("derivative with respect to the prefix")
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xticks(range(len(models)), models, rotation=30, ha="right", rotation_mode="anchor")
            axes.grid(axis="x", visible=False)
            axes.yaxis.set_major_locator(LogLocator(numticks=8))
            axes.yaxis.set_minor_locator(NullLocator())
            low, high = axes.get_ylim()
            axes.set_ylim(low / 3, high * 5)
        structures = [handle(COLOURS[ours], name, "s", "") for name, ours in STRUCTURES.items()]
        legend(figure, structures + [handle("0.3", dtype, marker, "") for dtype, marker in _MARKERS.items()])
        note(
            figure, "One point a head: PyTorch attention with prefixes against the JAX prefix model (in float64). "
            "Outputs: over a batch with padding and one without a mask; derivatives: over the first.",
        )  # fmt: skip
    return figure


def _points(axes, frame: pd.DataFrame, models: list[str], column: str, marker: str) -> None:
    for k, (name, ours) in enumerate(STRUCTURES.items()):
        for place, model in enumerate(models):
            values = frame.loc[(frame["structure"] == name) & (frame["model"] == model), column].to_numpy()
            # Heads side by side, in their order, so that many do not hide each other.
            x = place + 0.26 * (k - 1) + np.linspace(-0.1, 0.1, len(values))
            axes.plot(
                x, np.maximum(values, _LEAST), linestyle="", marker=marker, markersize=2.6, color=COLOURS[ours],
                alpha=0.6, markeredgewidth=0,
            )  # fmt: skip


def _allowed(axes, limit: float, text: str) -> None:
    axes.axhline(limit, color="0.3", linestyle=(0, (4, 2)), linewidth=1.0)
    axes.annotate(
        rf"{text}: $10^{{{round(np.log10(limit))}}}$", (0.0, limit), xycoords=("axes fraction", "data"), xytext=(3, 2),
        textcoords="offset points", fontsize=7, color="0.3",
    )  # fmt: skip


def write_identity(rows: list[dict[str, Any]], out: str | Path) -> list[Path]:
    """bridge-identity as SVG, PNG and CSV (one row a head, structure and number format) below ``out``."""
    return write(out, "bridge-identity", plot_identity(rows), pd.DataFrame(rows))
