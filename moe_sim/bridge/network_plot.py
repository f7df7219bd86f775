"""The figure of whole transformers: function error, Voronoi loss and atom distances against n, an arm a colour."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from moe_sim.plots.rates import STRUCTURES, caption, claimed_line, curve, draw_curve, frame
from moe_sim.plots.style import STYLE, handle, legend, note
from moe_sim.simulation.runner import Results

_COLOURS = {
    "simple": STRUCTURES["shared-linear"], "free": STRUCTURES["independent"], "deep": STRUCTURES["shared-network"],
    "prompt": "#CC79A7",
}  # fmt: skip
_TITLES = {
    "function": "the whole network's output",
    "voronoi": "Voronoi loss of the prefixes",
    "atoms": "tied: 1/2, sharing 1/4",
}


def plot_network(exact: dict[str, Results], over: dict[str, Results], where: str) -> tuple[Figure, pd.DataFrame]:
    """``exact`` and ``over``: results by arm, with as many prefixes as planted and with one more. where: network and
    layers, for the small print. The figure and the numbers in it."""
    parts = []

    def add(axes, arm, results, loss, **style):
        data = curve(results, loss)
        parts.append(data.assign(arm=arm, atoms=str(results.study.tables["fit"]["atoms"]), loss=loss))
        draw_curve(axes, data, _COLOURS[arm], **style)
        return data

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.3), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        lowest = []
        for arm, results in over.items():
            lowest.append(add(left, arm, results, "function"))
            add(middle, arm, results, "voronoi")
            if arm != "free":
                lowest.append(add(right, arm, results, "atoms:multi"))
                add(right, arm, results, "atoms:single", marker="^", linestyle="-.")
        for arm, results in exact.items():
            add(middle, arm, results, "voronoi", marker="s", linestyle=":")
        claimed_line(left, lowest[0], 0.5)
        tied = next((results for arm, results in over.items() if arm != "free"), None)
        if tied is not None:
            claimed_line(middle, curve(tied, "voronoi"), 0.5, 0.5)
            claimed_line(right, curve(tied, "atoms:multi"), 0.25, 0.25)
        frame(left, _TITLES["function"], "error of the function, rms")
        frame(middle, _TITLES["voronoi"], "Voronoi loss")
        frame(right, _TITLES["atoms"], "rms distance to the true prefix")
        shapes = [
            handle("0.3", "three fitted"),
            handle("0.3", "two fitted", "s", ":"),
            handle("0.3", "alone", "^", "-."),
        ]
        legend(figure, [handle(_COLOURS[arm], arm) for arm in {**over, **exact}] + shapes)
        note(figure, f"{where}; 2 prefixes planted. {caption(*over.values(), *exact.values())}")
    return figure, pd.concat(parts, ignore_index=True)
