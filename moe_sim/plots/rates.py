"""Figures: rates of one study, and the figures of the registry. Every figure has a CSV of the numbers in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import ndtri

from moe_sim.models.base import Density
from moe_sim.plots.style import STYLE, frame, grid_of_panels, handle, legend, note, own_axes, write
from moe_sim.rates.judge import judge
from moe_sim.rates.slopes import CONFIDENCE_LEVEL, summarise
from moe_sim.rates.verdicts import Verdict
from moe_sim.rates.verdicts import accounting as all_accounted
from moe_sim.simulation.runner import Results
from moe_sim.study.schema import log_shape
from moe_sim.theory.asymptotics import Constants

STRUCTURES = {"shared-linear": "#0072B2", "shared-network": "#009E73", "independent": "#D55E00"}  # Okabe and Ito
_PREDICTED = "#CC79A7"
_Z = ndtri((1 + CONFIDENCE_LEVEL) / 2)
_NAMES = {
    "function": r"function error $\|f_{\hat G}-f_{G_*}\|_{L_2(\mu)}$", 
    "hellinger": r"Hellinger distance $h(p_{\hat G}, p_{G_*})$", "voronoi": r"Voronoi loss $D(\hat G, G_*)$",
    "mass": "error of the cell masses", "atoms:single": "rms distance, single-atom cells",
    "atoms:multi": "rms distance, multi-atom cells", "atoms:weighted": "weighted rms distance, multi-atom cells",
}  # fmt: skip


def curve(results: Results, loss: str, of: str = "loss") -> pd.DataFrame:
    """n, value, low, high of one loss against n: its aggregate and Monte Carlo interval, or ``of="median"``.

    of: ``loss`` (best fit), ``near`` (worst near-minimiser) or ``median`` (of the best fits, no interval).
    """
    found = {item.name: item for item in results.study.problem.losses}
    aggregate = found[loss].aggregate
    rows = []
    for n, group in results.frame.groupby("n", sort=True):
        values = group[f"{'near' if of == 'near' else 'loss'}:{loss}"].to_numpy()
        if of == "median":
            middle = float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan
            rows.append((n, middle, middle, middle))
            continue
        value, error = summarise(values, aggregate)
        # Intervals of the logarithm, so that a band on a log axis never reaches 0.
        factor = np.exp(_Z * error / value) if value > 0 else 1.0
        rows.append((n, value, value / factor, value * factor))
    return pd.DataFrame(rows, columns=["n", "value", "low", "high"]).dropna(subset=["value"])


def draw_curve(axes, data: pd.DataFrame, colour: str, **style) -> None:
    axes.plot(data["n"], data["value"], color=colour, **({"marker": "o"} | style))
    axes.fill_between(data["n"], data["low"], data["high"], color=colour, alpha=0.2, linewidth=0)


def claimed_line(axes, data: pd.DataFrame, exponent: float, log_power=0.0, start=1e4, lift=0.4) -> None:
    """A dashed line of the claimed shape, below the curve wherever it is drawn, with its formula."""
    data = data[data["n"] >= start]
    if len(data) < 2:
        return

    n = np.geomspace(data["n"].iloc[0], data["n"].iloc[-1], 50)
    above = np.min(np.log(data["value"]) - log_shape(data["n"], exponent, log_power))
    line = lift * np.exp(log_shape(n, exponent, log_power) + above)
    axes.plot(n, line, color="0.3", linestyle=(0, (4, 2)), linewidth=1.0)
    spec = axes.get_subplotspec()
    narrow = spec is not None and spec.get_gridspec().ncols > 3
    at = 28 if narrow or n[-1] < 1e5 * n[0] else 18  # the formula ends here, and is a third as long as a narrow panel
    axes.update_datalim([(n[at], line[at] / 2.2)])  # room for the formula, which hangs below a line that hardly falls
    axes.annotate(
        _power(exponent, log_power), (n[at], line[at]), xytext=(-3, -3), textcoords="offset points", color="0.2",
        ha="right", va="top", fontsize=8,
    )  # fmt: skip


def label(loss: str) -> str:
    kind, _, power = loss.partition(":r=")
    if power:
        return f"{_NAMES[kind]}, $r={power}$"
    cells, _, block = loss.rpartition(":")
    if loss not in _NAMES and (name := _name(cells)):
        return f"{_broken(name)}: {block.replace('_', ' ')}"
    return _broken(_name(loss) or loss)


def _name(loss: str) -> str | None:
    """Of a loss of all blocks."""
    size = loss.removeprefix("atoms:")
    return f"rms distance, cells of {size}" if loss != size and size.isdecimal() else _NAMES.get(loss)


def _broken(name: str) -> str:
    """In two lines, where it has a comma: a label must not be longer than its axis."""
    return name.replace(", ", ",\n", 1) if name.startswith(("rms", "weighted")) else name


def _power(exponent: float, log_power: float) -> str:
    known = {0.5: "1/2", 0.25: "1/4", 0.125: "1/8", 0.375: "3/8", 0.33333: "1/3", 0.16667: "1/6", 0.08333: "1/12"}
    fraction = known.get(round(exponent, 5), f"{exponent:g}")
    if log_power == exponent:
        return rf"$(\log n/n)^{{{fraction}}}$"
    return (rf"$(\log n)^{{{log_power:g}}}\,$" if log_power else "") + rf"$n^{{-{fraction}}}$"


def caption(*results: Results) -> str:
    """Small print: replicates, certified share with every reason why not, start rule (loudly if it knows the truth)."""
    options = results[0].study.problem.options
    start = f"start: {options.start}" + ("" if options.start == "data" else " (USES THE TRUTH, a control)")
    return (
        f"{results[0].study.problem.replicates} replicates a size; {accounting(*results)}; {start}; "
        f"{options.estimator}; bands: 95% Monte Carlo intervals"
    )


def accounting(*results: Results) -> str:
    """``verdicts.accounting`` of all fits of these results."""
    counts = pd.concat([r.frame["certificate"] for r in results]).value_counts().to_dict()
    return all_accounted(counts.pop("certified", 0), counts, " fits certified")


def predicted_curve(results: Results, loss: str, constants: Constants | None) -> pd.DataFrame:
    """n, value, low, high of the predicted mean of a loss for large n, at the sizes of the run; empty if none is."""
    found = {c.loss: c for c in constants.constants} if constants is not None else {}
    values = [(n, found[loss].at(n)) for n in results.study.problem.sizes if loss in found]
    return pd.DataFrame([(n, v, v, v) for n, v in values if v is not None], columns=["n", "value", "low", "high"])


def plot_rates(
    results: Results, verdicts: list[Verdict] | None = None, constants: Constants | None = None, ax: Any = None
) -> Figure:
    """One panel a claim: the loss, its worst near-minimiser, the claimed line, the predicted line and the verdict. Of a
    study without claims, one panel a loss.

    verdicts: those to draw, by default all. constants: predicted ones, not drawn where None. ax: axes of your own, one
    a panel, in which panels are drawn in your style, without legend and small print. Raises ``InputError`` where these
    are more or fewer.

    >>> import moe_sim as ms
    >>> study = ms.load_study("prefix-shared-linear-exact").replace(sizes=[1e3, 1e4, 1e5], replicates=5)
    >>> ms.plot_rates(ms.run(study)).savefig("rates.pdf")  # doctest: +SKIP
    """
    verdicts = judge(results) if verdicts is None else verdicts
    panels_of: list[tuple[str, Verdict | None]] = [(v.loss, v) for v in verdicts] or [
        (loss.name, None) for loss in results.study.problem.losses if len(curve(results, loss.name))
    ]
    if ax is not None:
        own = own_axes(ax, len(panels_of), f" for {len(panels_of)} panels", "as many, or the verdicts to draw")
        for axes, (loss, v) in zip(own, panels_of, strict=True):
            _rates_panel(axes, results, loss, v, constants)
        return own[0].figure
    with matplotlib.rc_context(STYLE):
        figure, panels = grid_of_panels(len(panels_of), 2, 3.3)
        for axes, (loss, v) in zip(panels, panels_of, strict=False):
            _rates_panel(axes, results, loss, v, constants)
        handles = [handle(_colour(results), "best fit"), handle("0.45", "worst near-minimiser", "s", ":")]
        if any(len(predicted_curve(results, loss, constants)) for loss, _ in panels_of):
            handles.append(handle(_PREDICTED, "predicted for large $n$", ""))
        legend(figure, handles, results.study.name)
        note(figure, caption(results))
    return figure


def _colour(results: Results) -> str:
    return STRUCTURES.get(results.study.tables["model"].get("structure"), "#0072B2")


def _rates_panel(axes, results: Results, loss: str, v: Verdict | None, constants: Constants | None) -> None:
    data = curve(results, loss)
    draw_curve(axes, curve(results, loss, "near"), "0.45", marker="s", linestyle=":")
    draw_curve(axes, data, _colour(results))
    predicted = predicted_curve(results, loss, constants)
    axes.plot(predicted["n"], predicted["value"], color=_PREDICTED, linewidth=0.9)
    if v is not None and v.exponent is not None:
        claimed_line(axes, data, v.exponent, v.log_power, min(v.sizes, default=1e4))
    density = isinstance(results.study.problem.model, Density)
    frame(axes, _judged(v), label("hellinger" if density and loss == "function" else loss))


def _judged(v: Verdict | None) -> str:
    """The title of a panel: verdict and slope, nothing where nothing is claimed."""
    if v is None:
        return ""
    slope = "" if v.interval is None else f"slope {v.slope:.3f} [{v.interval[0]:.3f}, {v.interval[1]:.3f}]"
    return f"{'no polynomial rate' if v.kind == 'lower' else f'{v.kind} claim'}: {v.verdict}\n{slope}"


def headline(over: dict[str, Results], stacked: bool = False) -> tuple[Figure, pd.DataFrame]:
    """Function error, Voronoi loss and atom distances of over-specified fits, by structure.

    Side by side for the width of a page, 7.6 inches, or ``stacked`` for a column of 3.3 inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 7.4) if stacked else (7.6, 3.1), layout="constrained")
        data = headline_panels(figure.subplots(*(3, 1) if stacked else (1, 3)), over)
        headline_legend(figure, over, 2 if stacked else None)
        note(figure, "2 true prefixes, 3 fitted. " + caption(*over.values()))
    return figure, data


def headline_legend(figure: Figure, structures, columns: int | None = None) -> None:
    shapes = [handle("0.3", "several atoms a cell"), handle("0.3", "one atom a cell", "^", "-.")]
    legend(figure, [handle(STRUCTURES[name], name) for name in structures] + shapes, columns=columns)


def headline_panels(panels, over: dict[str, Results]) -> pd.DataFrame:
    """The three panels of ``headline``, on given axes; returns the numbers in them."""
    left, middle, right = panels
    parts = []

    def add(axes, name, loss, **style):
        data = curve(over[name], loss)
        parts.append(data.assign(structure=name, loss=loss))
        # Curves of the two shared structures lie on each other: the lower one shows as rings.
        ring = {"markersize": 6.0, "markerfacecolor": "none"} if name == "shared-linear" else {}
        draw_curve(axes, data, STRUCTURES[name], **ring, **style)
        return data

    errors = [add(left, name, "function") for name in over]
    claimed_line(left, min(errors, key=lambda d: d["value"].iloc[-1]), 0.5)
    frame(left, "the function converges in all", _NAMES["function"])
    tied = [add(middle, name, "voronoi") for name in over if name != "independent"]
    add(middle, "independent", "voronoi")
    claimed_line(middle, min(tied, key=lambda d: d["value"].iloc[-1]), 0.5, 0.5)
    frame(middle, "the parameters only where tied", _NAMES["voronoi"])
    multi = [add(right, name, "atoms:multi") for name in over if name != "independent"]
    add(right, "independent", "atoms:multi")
    single = [add(right, name, "atoms:single", marker="^", linestyle="-.") for name in over if name != "independent"]
    claimed_line(right, min(multi, key=lambda d: d["value"].iloc[-1]), 0.25, 0.25, 1e5)
    claimed_line(right, min(single, key=lambda d: d["value"].iloc[-1]), 0.5, 0.5, 1e5)
    frame(right, "tied: alone 1/2, sharing 1/4", "rms distance to the true atom")
    return pd.concat(parts, ignore_index=True)


def near_minimisers(pair: dict[str, Results], loss: str = "voronoi") -> tuple[Figure, pd.DataFrame]:
    """Best, median and worst near-minimiser side by side: a median alone hides what a mean shows."""
    # In the colour that the structure has in the other figures.
    styles: dict[str, Any] = {
        "near": ("0.45", "worst near-minimiser (mean)", "s", ":"),
        "loss": (None, "best fit (mean)", "o", "-"),
        "median": (None, "best fit (median)", "v", "--"),
    }
    parts = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.3), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, results) in zip(panels, pair.items(), strict=True):
            for of, (colour, _, marker, line) in styles.items():
                data = curve(results, loss, of)
                parts.append(data.assign(structure=name, loss=loss, statistic=of))
                draw_curve(axes, data, colour or STRUCTURES[name], marker=marker, linestyle=line)
            claimed_line(axes, parts[-1], 0.5, 0.5)
            frame(axes, f"{name}: 2 true prefixes, 3 fitted", _NAMES["voronoi"] if axes is panels[0] else "")
        legend(figure, [handle(c or "0.15", label, marker, line) for c, label, marker, line in styles.values()])
        near = "Near-minimisers are fits within 0.5 log-likelihood units of the best. "
        note(figure, near + caption(*pair.values()))
    return figure, pd.concat(parts, ignore_index=True)


def write_figures(done: dict[str, tuple[Results, list[Verdict], Constants]], out: str | Path) -> list[Path]:
    """Figures of finished claims as SVG, PNG and CSV below ``out``; returns the SVG paths, the headline last."""
    paths = []
    for name, (results, verdicts, constants) in done.items():
        parts = []
        for v in verdicts:
            kinds = {of: curve(results, v.loss, of) for of in ("loss", "near")}
            kinds["predicted"] = predicted_curve(results, v.loss, constants)
            parts += [data.assign(loss=v.loss, statistic=of) for of, data in kinds.items() if len(data)]
        numbers = pd.concat(parts, ignore_index=True)
        paths.append(write(out, name, plot_rates(results, verdicts, constants), numbers)[0])
    over = {s: done[f"prefix-{s}-over"][0] for s in STRUCTURES if f"prefix-{s}-over" in done}
    pair: dict[str, Results] = {s: over[s] for s in ("shared-linear", "independent") if s in over}
    if len(pair) == 2:
        paths.append(write(out, "near-minimisers", *near_minimisers(pair))[0])
    if len(over) == len(STRUCTURES):
        write(out, "headline-column", *headline(over, stacked=True))
        paths.append(write(out, "headline", *headline(over))[0])
    return paths
