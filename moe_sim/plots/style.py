"""What all figures share: style, panels, legend and small print, and how they are written."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from moe_sim.errors import InputError

STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 7.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5, "lines.linewidth": 1.4,
    "lines.markersize": 3.5, "svg.hashsalt": "moe_sim", "svg.fonttype": "path", "legend.frameon": False,
    "mathtext.fontset": "dejavusans", "pdf.fonttype": 42, "ps.fonttype": 42,  # Type 3 fonts are refused by journals
}  # fmt: skip


def check(path: str | Path) -> Path:
    """The path, if its suffix is that of a figure. Raises ``InputError``."""
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise InputError(f"{path} has the suffix {path.suffix!r}: pass a file ending in .svg, .png or .pdf")
    return path


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix tells the format. The same numbers give the same bytes."""
    path = check(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            stamp = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
            figure.savefig(path, dpi=200, metadata=stamp)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): pass a file that you may write") from None


def write(out: str | Path, name: str, figure: Figure, data: pd.DataFrame) -> list[Path]:
    """A figure as SVG and PNG, and the numbers in it as CSV, below ``out``; returns the three paths."""
    paths = [Path(out) / f"{name}{suffix}" for suffix in (".svg", ".png", ".csv")]
    save(figure, paths[0])
    figure.set_layout_engine("none")  # the layout is found, and finding it again takes most of the time
    save(figure, paths[1])
    data.to_csv(paths[2], index=False, float_format="%.6g")
    return paths


def plain(text: str) -> str:
    """A name of the user's as it is: matplotlib would read what stands between two $ as mathematics."""
    return text.replace("$", r"\$")


def handle(colour: str, label: str, marker="o", line="-") -> Line2D:
    return Line2D([], [], color=colour, label=label, marker=marker, linestyle=line)


def frame(axes, title: str, ylabel: str = "") -> None:
    axes.set(xscale="log", yscale="log", xlabel="sample size $n$", title=title, ylabel=ylabel)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if low > 0 and np.floor(np.log10(high)) <= np.ceil(np.log10(low)):  # powers of ten alone: one tick, or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(figure: Figure, handles, title: str | None = None, columns: int | None = None) -> None:
    """One legend for the figure, above its panels, where it covers nothing."""
    figure.legend(
        handles=handles,
        title=title,
        loc="outside upper center",
        ncols=columns or len(handles),
        handlelength=2.2,
        columnspacing=1.4,
    )


def note(figure: Figure, text: str) -> None:
    """The small print under a figure, wrapped to its width."""
    figure.supxlabel("\n".join(textwrap.wrap(text, int(figure.get_figwidth() * 21))), fontsize=6.5, color="0.3")


def own_axes(ax: Any, count: int, panels: str, remedy: str) -> np.ndarray:
    """The user's axes (count,). Raises ``InputError`` with the remedy where they are more or fewer."""
    own = np.ravel(np.asarray(ax, object))
    if len(own) != count:
        raise InputError(f"ax holds {len(own)} axes{panels}: pass {remedy}")
    return own


def grid_of_panels(count: int, least: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with room for ``count`` panels, and its axes: those left over are off.

    least: columns that the figure is wide for at least; height: inches with one row. Inside ``rc_context(STYLE)``.
    """
    columns = {4: 2}.get(count, min(max(count, 1), 3 if count <= 6 else 4))
    rows = max(1, -(-count // columns))
    # Titles of two lines may be wider than their panel.
    layout = ConstrainedLayoutEngine(w_pad=0.1, rect=(0, 0, 0.97, 1))
    figure = Figure(figsize=(2.5 * max(columns, least), height + 2.5 * (rows - 1)), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels
