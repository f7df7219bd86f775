"""Contrasts of the theory, a figure each: what one choice in a model changes, all else being equal.

Medians are drawn: what is typical is to be seen, and claims are judged on means elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from moe_sim.plots.rates import accounting, claimed_line, curve, draw_curve
from moe_sim.plots.style import STYLE, frame, handle, legend, note, write
from moe_sim.simulation.runner import Results

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito
_MARKERS = ("o", "s", "^", "D")


class Line(NamedTuple):
    """A loss of a claim's study. exponent, log_power: of the rate drawn below it, None for a loss that has none."""

    label: str
    claim: str
    loss: str
    exponent: float | None = None
    log_power: float = 0.0


class Contrast(NamedTuple):
    """title: what is contrasted. axis: what the losses measure."""

    title: str
    axis: str
    lines: tuple[Line, ...]


CONTRASTS = {
    "contrast-experts": Contrast(
        "experts under one softmax gate", r"median of $D(\hat G, G_*)$", (
            Line("tanh", "ls-softmax-tanh", "voronoi", 0.5, 0.5),
            Line("ReLU", "ls-softmax-relu", "voronoi"),
            Line("affine", "ls-softmax-linear", "voronoi"),
            Line("tanh, one flat in x", "ls-softmax-flat", "voronoi"),
        ),
    ),
    "contrast-gates": Contrast(
        "gates over tanh experts", r"median of $D(\hat G, G_*)$", (
            Line("softmax", "ls-softmax-tanh", "voronoi", 0.5, 0.5),
            Line("sigmoid, normalised", "ls-normalised-tanh", "voronoi"),
            Line("sigmoid", "ls-sigmoid-tanh", "voronoi"),
            Line("sigmoid, exact fit", "ls-sigmoid-exact", "voronoi"),
        ),
    ),
    "contrast-gauge": Contrast(
        "a learned temperature", r"median of $D(\hat G, G_*)$", (
            Line("temperature 1", "temperature-gaussian-exact", "voronoi", 0.5, 0.5),
            Line("as it is (raw)", "temperature-gaussian-exact", "voronoi:raw"),
        ),
    ),
}  # fmt: skip


def contrast(what: Contrast, done: dict[str, Results]) -> tuple[Figure, pd.DataFrame]:
    """The figure of a contrast, as wide as a column of a page, and the numbers in it. done: its claims' results."""
    parts, handles = [], []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for line, colour, marker in zip(what.lines, _COLOURS, _MARKERS, strict=False):
            data = curve(done[line.claim], line.loss, "median")
            parts.append(data.assign(label=line.label, claim=line.claim, loss=line.loss))
            handles.append(handle(colour, line.label, marker))
            draw_curve(axes, data, colour, marker=marker)
            if line.exponent is not None:
                claimed_line(axes, data, line.exponent, line.log_power)
        frame(axes, what.title, what.axis)
        legend(figure, handles, columns=2)
        of = {line.claim: done[line.claim] for line in what.lines}.values()
        note(figure, f"Medians of {max(r.study.problem.replicates for r in of)} replicates a size; {accounting(*of)}")
    return figure, pd.concat(parts, ignore_index=True)


def write_contrasts(done: dict[str, Results], out: str | Path) -> list[Path]:
    """The contrasts all of whose claims are done, as SVG, PNG and CSV below ``out``; returns the SVG paths."""
    return [
        write(out, name, *contrast(what, done))[0]
        for name, what in CONTRASTS.items()
        if all(line.claim in done for line in what.lines)
    ]
