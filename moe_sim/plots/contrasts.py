"""Contrasts of the theory, a figure each: what one choice in a model changes, all else being equal.

Medians are drawn: what is typical is to be seen, and claims are judged on means elsewhere. Where least squares are not
unique the one that a solver returns says nothing, and moduli are drawn in place of losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moe_sim.plots.modulus import LEAST, draw_power
from moe_sim.plots.rates import accounting, claimed_line, curve, draw_curve
from moe_sim.plots.style import STYLE, frame, handle, legend, note, write
from moe_sim.simulation.runner import Results
from moe_sim.theory.modulus import SAME_FUNCTION, Modulus

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
    """title: what is contrasted. axis: what the losses measure. moduli: whether these are drawn in place of losses."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    moduli: bool = False


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
    "contrast-kinks": Contrast(
        "centres of Laplace gates", r"$\omega(\varepsilon)$, $L_2(\mu)$ distance", (
            Line("a law that shows kinks", "ls-laplace-tanh", "atoms:weighted:gate_center", 1 / 3),
            Line("a coarse grid", "ls-laplace-grid", "atoms:multi:gate_center"),
        ), moduli=True,
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


def contrast_of_moduli(what: Contrast, known: dict[str, list[Modulus]]) -> tuple[Figure, pd.DataFrame]:
    """The same of moduli; known: those of its claims."""
    parts, handles = [], []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5, 3.2), layout="constrained")
        axes = figure.subplots()
        for line, colour, marker in zip(what.lines, _COLOURS, _MARKERS, strict=False):
            (m,) = (m for m in known[line.claim] if m.loss == line.loss)
            parts.append(pd.DataFrame({"eps": m.eps, "omega": m.omega}).assign(label=line.label, claim=line.claim))
            handles.append(handle(colour, line.label, marker))
            axes.plot(m.eps, np.maximum(m.omega, LEAST), color=colour, marker=marker)
            if line.exponent is not None:
                power = 1 / (2 * line.exponent)
                draw_power(axes, m.eps, m.omega[-1], power)
                handles.append(handle("0.3", rf"$\varepsilon^{{{power:.3g}}}$", "", (0, (4, 2))))
        axes.set_ylim(bottom=LEAST / 2)
        axes.axhspan(LEAST / 2, SAME_FUNCTION, color="0.5", alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", title=what.title, xlabel=r"$\varepsilon$, loss", ylabel=what.axis)
        legend(figure, handles, columns=2)
        note(figure, "Least distance of functions at each loss; grey band: zero to rounding")
    return figure, pd.concat(parts, ignore_index=True)


def write_contrasts(done: dict[str, Results], known: dict[str, list[Modulus]], out: str | Path) -> list[Path]:
    """The contrasts all of whose claims are done, as SVG, PNG and CSV below ``out``; returns the SVG paths.

    done, known: results and moduli by claim.
    """
    return [
        write(out, name, *(contrast_of_moduli(what, known) if what.moduli else contrast(what, done)))[0]
        for name, what in CONTRASTS.items()
        if all(line.claim in (known if what.moduli else done) for line in what.lines)
    ]
