"""Figures of the checks: controls, audited protocols, likelihood ratios."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import chi2

from moe_sim.errors import InputError
from moe_sim.plots.rates import caption, curve, draw_curve, label
from moe_sim.plots.style import STYLE, frame, handle, legend, note, write
from moe_sim.rates.judge import judge
from moe_sim.simulation.likelihood_ratio import Ratio
from moe_sim.simulation.runner import Results

_CONTROLS = {
    "study": ("#000000", "the study"), "start": ("#D55E00", "start itself"), "one-step": ("#E69F00", "one step"),
    "truth": ("#009E73", "start at the truth"), "data": ("#0072B2", "start from the data"),
    "converged": ("#CC79A7", "converged"),
}  # fmt: skip


def plot_controls(results: Results, loss: str = "voronoi") -> Figure:
    """How much the start matters: one loss of the study and of its controls, and how far below the best they lie."""
    if not results.controls:
        raise InputError("the run has no controls: run it again with --controls")
    curves = {"study": results} | {name: results.controls[name] for name in _CONTROLS if name in results.controls}
    key = ["n", "replicate"]
    # A spike of the likelihood (degenerate) is no maximum.
    fits = pd.concat([r.frame[r.frame["certificate"] != "degenerate"] for r in curves.values()])
    best = fits.groupby(key)["objective"].min()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, one in curves.items():
            colour = _CONTROLS[name][0]
            style: dict[str, Any] = {"linestyle": "-" if name == "study" else "--"}
            draw_curve(left, curve(one, loss), colour, **style)
            gap = one.frame.set_index(key)["objective"] - best
            mean = gap.groupby("n").mean()
            right.plot(mean.index, np.maximum(mean, 1e-6), color=colour, marker="o", **style)
        frame(left, results.study.name, label(loss))
        frame(right, "how far from the maximum", "log-likelihood units below the best")
        right.axhline(0.5, color="0.4", linewidth=0.8, linestyle=":")
        handles = [handle(*_CONTROLS[name], line="-" if name == "study" else "--") for name in curves]
        legend(figure, handles, columns=3)
        note(
            figure, caption(results) + "; right: means, below 1e-6 drawn there; dotted: 0.5, statistically the same fit"
        )
    return figure


_WINDOWS = ("#000000", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")  # models, where colours of protocols would mislead
_AUDIT = ("#D55E00", "#E69F00", "#0072B2")


def plot_audit(done: dict[str, Results], rows: list, table: pd.DataFrame) -> Figure:
    """Losses by protocol, one panel a model, with their slopes; last, slopes against the smallest size kept."""
    panels = list(dict.fromkeys(row.panel for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 7.0), layout="constrained")
        axes = figure.subplots(2, 3).ravel()
        for panel, one in zip(panels, axes, strict=False):
            mine = [k for k, row in enumerate(rows) if row.panel == panel]
            for k, colour in zip(mine, _AUDIT, strict=True):
                draw_curve(one, curve(done[rows[k].protocol], rows[k].loss), colour, markersize=2.5)
                certified = np.mean(done[rows[k].protocol].frame["certificate"] == "certified")
                text = f"{rows[k].label}: {table['slope'][k]:.2f} ({certified:.0%})"
                one.plot([], [], color=colour, marker="o", label=text)
            frame(one, panel, label("voronoi"))
            _legend_below(one)
        last = axes[len(panels)]
        verdict = {name: {v.loss: v for v in judge(results)} for name, results in done.items()}
        others = cycle(_WINDOWS)
        for row in rows:
            v = verdict[row.protocol][row.loss]
            if row.loss == "voronoi:untranslated" and v.slope is not None:
                kept = [(v.sizes[0], v.slope), *((d["from"], d["slope"]) for d in v.dropping)]
                last.plot(
                    *zip(*kept, strict=True), marker="o", color=next(others), label=f"{row.panel.split(', ')[-1]}"
                )
        last.axhline(-0.5, color="0.3", linestyle=(0, (4, 2)), linewidth=1.0)
        last.set(xscale="log", xlabel="smallest size kept", ylabel="slope", title="loss as written: slope by window")
        if last.get_legend_handles_labels()[0]:
            _legend_below(last)
        note(
            figure,
            "Beside each protocol its slope over all sizes, and the share of fits that are certified (why not the "
            "others: the table). Bands: 95% Monte Carlo intervals. Dashed: -1/2.",
        )
    return figure


def _legend_below(axes) -> None:
    """A legend under its panel, where it covers nothing and needs no room of the axis."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7)


def write_audit(done: dict[str, Results], rows: list, table: pd.DataFrame, out: str | Path) -> list[Path]:
    """The audit's figure (SVG, PNG) and table (CSV) below ``out``; returns their paths."""
    return write(out, "audit", plot_audit(done, rows, table), table)


def plot_ratio(found: Ratio) -> Figure:
    """Quantiles of likelihood-ratio gaps against those of chi-square, a line a size (``likelihood_ratio``)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 3.5), layout="constrained")
        axes = figure.subplots()
        for n, gaps in found.gaps.items():
            level = (np.arange(len(gaps)) + 0.5) / len(gaps)
            p = found.table["p"][found.table["n"] == n].iloc[0]
            axes.plot(
                chi2(found.degrees).ppf(level), np.sort(gaps), linewidth=1.0, label=f"$n$ = {n:g}, KS $p$ = {p:.2g}"
            )
        axes.axline((found.degrees, found.degrees), slope=1.0, color="0.4", linewidth=0.8)
        axes.set(xlabel=rf"quantiles of $\chi^2_{{{found.degrees}}}$", ylabel=r"$2\,(\ell(\hat\theta)-\ell(\theta_*))$")
        axes.legend(loc="upper left")
    return figure
