"""The figure of real heads: one row a head, function error, Voronoi loss and atom distances against n."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from moe_sim.plots.rates import caption, headline_legend, headline_panels
from moe_sim.plots.style import STYLE, note
from moe_sim.simulation.runner import Results


def plot_heads(over: dict[str, dict[str, Results]], model: str) -> tuple[Figure, pd.DataFrame]:
    """``over``: results of the over-specified studies of each head, by structure; and the numbers in the figure."""
    parts = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.7 + 2.3 * len(over)), layout="constrained")
        rows = figure.subplots(len(over), 3, squeeze=False, sharex=True)
        for row, (name, results) in zip(rows, over.items(), strict=True):
            parts.append(headline_panels(row, results).assign(head=name))
            row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
        for row in rows[1:]:
            for axes in row:
                axes.set_title("")
        for axes in rows[:-1].ravel():
            axes.set_xlabel("")
        headline_legend(figure, next(iter(over.values())))
        everything = [r for results in over.values() for r in results.values()]
        note(figure, f"heads of {model}; 2 prefixes planted, 3 fitted. {caption(*everything)}")
    return figure, pd.concat(parts, ignore_index=True)
