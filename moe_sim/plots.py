"""Figures: rates of one study, and the figures of the registry. Every figure has a CSV of the numbers in it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from scipy.special import ndtri

from moe_sim import rates
from moe_sim.errors import InputError
from moe_sim.estimate import Estimate
from moe_sim.models.base import MixtureModel
from moe_sim.rates import Verdict
from moe_sim.run import Results
from moe_sim.slopes import LEVEL, summarise
from moe_sim.theory.asymptotics import Constants

STRUCTURES = {"shared-linear": "#0072B2", "shared-network": "#009E73", "independent": "#D55E00"}  # Okabe and Ito
STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 7.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5, "lines.linewidth": 1.4,
    "lines.markersize": 3.5, "svg.hashsalt": "moe_sim", "svg.fonttype": "path", "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
}  # fmt: skip
_PREDICTED = "#CC79A7"
_Z = ndtri((1 + LEVEL) / 2)
_NAMES = {
    "function": r"function error $\|f_{\hat G}-f_{G_*}\|_{L_2(\mu)}$", 
    "hellinger": r"Hellinger distance $h(p_{\hat G}, p_{G_*})$", "voronoi": r"Voronoi loss $D(\hat G, G_*)$",
    "mass": "error of the cell masses", "atoms:single": "rms distance, single-atom cells",
    "atoms:multi": "rms distance, multi-atom cells", "atoms:weighted": "weighted rms distance, multi-atom cells",
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


def _claimed(axes, data: pd.DataFrame, exponent: float, log_power=0.0, start=1e4, lift=0.4) -> None:
    """A dashed line of the claimed shape, below the curve wherever it is drawn, with its formula."""
    data = data[data["n"] >= start]
    if len(data) < 2:
        return

    def shape(n):
        return log_power * np.log(np.log(n)) - exponent * np.log(n)

    n = np.geomspace(data["n"].iloc[0], data["n"].iloc[-1], 50)
    line = lift * np.exp(shape(n) + np.min(np.log(data["value"]) - shape(data["n"])))
    axes.plot(n, line, color="0.3", linestyle=(0, (4, 2)), linewidth=1.0)
    axes.update_datalim([(n[18], line[18] / 2.2)])  # room for the formula, which hangs below a line that hardly falls
    axes.annotate(
        _power(exponent, log_power), (n[18], line[18]), xytext=(-3, -3), textcoords="offset points", color="0.2",
        ha="right", va="top", fontsize=8,
    )  # fmt: skip


def handle(colour: str, label: str, marker="o", line="-") -> Line2D:
    return Line2D([], [], color=colour, label=label, marker=marker, linestyle=line)


def frame(axes, title: str, ylabel: str = "") -> None:
    axes.set(xscale="log", yscale="log", xlabel="sample size $n$", title=title, ylabel=ylabel)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())


def label(loss: str) -> str:
    kind, _, power = loss.partition(":r=")
    if power:
        return f"{_NAMES[kind]}, $r={power}$"
    cells, _, block = loss.rpartition(":")
    if loss not in _NAMES and cells in _NAMES:
        return f"{_broken(_NAMES[cells])}: {block.replace('_', ' ')}"
    return _broken(_NAMES.get(loss, loss))


def _broken(name: str) -> str:
    """In two lines, where it has a comma: a label must not be longer than its axis."""
    return name.replace(", ", ",\n", 1) if name.startswith(("rms", "weighted")) else name


def _power(exponent: float, log_power: float) -> str:
    known = {0.5: "1/2", 0.25: "1/4", 0.125: "1/8", 0.16667: "1/6", 0.08333: "1/12"}
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
    """``rates.accounting`` of all fits of these results."""
    counts = pd.concat([r.frame["certificate"] for r in results]).value_counts().to_dict()
    return rates.accounting(counts.pop("certified", 0), counts, " fits certified")


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


def predicted_curve(results: Results, loss: str, constants: Constants | None) -> pd.DataFrame:
    """n, value, low, high of the predicted mean of a loss for large n, at the sizes of the run; empty if none is."""
    found = {c.loss: c for c in constants.constants} if constants is not None else {}
    values = [(n, found[loss].at(n)) for n in results.study.problem.sizes if loss in found]
    return pd.DataFrame([(n, v, v, v) for n, v in values if v is not None], columns=["n", "value", "low", "high"])


def grid_of_panels(count: int, least: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with room for ``count`` panels, and its axes: those left over are off.

    least: columns that the figure is wide for at least; height: inches with one row. Inside ``rc_context(STYLE)``.
    """
    columns = {4: 2}.get(count, min(max(count, 1), 3 if count <= 6 else 4))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(2.5 * max(columns, least), height + 2.5 * (rows - 1)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def plot_rates(results: Results, verdicts: list[Verdict], constants: Constants | None = None) -> Figure:
    """One panel a claim: the loss, its worst near-minimiser, the claimed line, the predicted line and the verdict."""
    if not verdicts:
        raise InputError("the study has no claims, so there is nothing to draw: add a [[claim]] table")
    colour = STRUCTURES.get(results.study.tables["model"].get("structure"), "#0072B2")
    with matplotlib.rc_context(STYLE):
        figure, panels = grid_of_panels(len(verdicts), 2, 3.3)
        for axes, v in zip(panels, verdicts, strict=False):
            data = curve(results, v.loss)
            draw_curve(axes, curve(results, v.loss, "near"), "0.45", marker="s", linestyle=":")
            draw_curve(axes, data, colour)
            predicted = predicted_curve(results, v.loss, constants)
            axes.plot(predicted["n"], predicted["value"], color=_PREDICTED, linewidth=0.9)
            if v.exponent is not None:
                _claimed(axes, data, v.exponent, v.log_power, min(v.sizes, default=1e4))
            slope = "" if v.interval is None else f"slope {v.slope:.3f} [{v.interval[0]:.3f}, {v.interval[1]:.3f}]"
            claim = "no polynomial rate" if v.kind == "lower" else f"{v.kind} claim"
            mixture = isinstance(results.study.problem.model, MixtureModel)
            text = label("hellinger" if mixture and v.loss == "function" else v.loss)
            frame(axes, f"{claim}: {v.verdict}\n{slope}", text)
        handles = [handle(colour, "best fit"), handle("0.45", "worst near-minimiser", "s", ":")]
        if any(len(predicted_curve(results, v.loss, constants)) for v in verdicts):
            handles.append(handle(_PREDICTED, "predicted for large $n$", ""))
        legend(figure, handles, results.study.name)
        note(figure, caption(results))
    return figure


def headline(over: dict[str, Results]) -> tuple[Figure, pd.DataFrame]:
    """Function error, Voronoi loss and atom distances of over-specified fits, by structure."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.1), layout="constrained")
        data = headline_panels(figure.subplots(1, 3), over)
        headline_legend(figure, over)
        note(figure, "2 true prefixes, 3 fitted. " + caption(*over.values()))
    return figure, data


def headline_legend(figure: Figure, structures) -> None:
    shapes = [handle("0.3", "several atoms a cell"), handle("0.3", "one atom a cell", "^", "-.")]
    legend(figure, [handle(STRUCTURES[name], name) for name in structures] + shapes)


def headline_panels(panels, over: dict[str, Results]) -> pd.DataFrame:
    """The three panels of ``headline``, on given axes; returns the numbers in them."""
    left, middle, right = panels
    parts = []

    def add(axes, name, loss, **style):
        data = curve(over[name], loss)
        parts.append(data.assign(structure=name, loss=loss))
        draw_curve(axes, data, STRUCTURES[name], **style)
        return data

    errors = [add(left, name, "function") for name in over]
    _claimed(left, min(errors, key=lambda d: d["value"].iloc[-1]), 0.5)
    frame(left, "the function converges in all", _NAMES["function"])
    tied = [add(middle, name, "voronoi") for name in over if name != "independent"]
    add(middle, "independent", "voronoi")
    _claimed(middle, min(tied, key=lambda d: d["value"].iloc[-1]), 0.5, 0.5)
    frame(middle, "the parameters only where tied", _NAMES["voronoi"])
    multi = [add(right, name, "atoms:multi") for name in over if name != "independent"]
    add(right, "independent", "atoms:multi")
    single = [add(right, name, "atoms:single", marker="^", linestyle="-.") for name in over if name != "independent"]
    _claimed(right, min(multi, key=lambda d: d["value"].iloc[-1]), 0.25, 0.25, 1e5)
    _claimed(right, min(single, key=lambda d: d["value"].iloc[-1]), 0.5, 0.5, 1e5)
    frame(right, "atoms: alone 1/2, sharing 1/4", "rms distance to the true atom")
    return pd.concat(parts, ignore_index=True)


def near_minimisers(pair: dict[str, Results], loss: str = "voronoi") -> tuple[Figure, pd.DataFrame]:
    """Best, median and worst near-minimiser side by side: a median alone hides what a mean shows."""
    styles: dict[str, Any] = {
        "near": ("#D55E00", "worst near-minimiser (mean)", "s", "-"),
        "loss": ("#0072B2", "best fit (mean)", "o", "-"),
        "median": ("#56B4E9", "best fit (median)", "v", ":"),
    }
    parts = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.3), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (name, results) in zip(panels, pair.items(), strict=True):
            for of, (colour, _, marker, line) in styles.items():
                data = curve(results, loss, of)
                parts.append(data.assign(structure=name, loss=loss, statistic=of))
                draw_curve(axes, data, colour, marker=marker, linestyle=line)
            _claimed(axes, parts[-1], 0.5, 0.5)
            frame(axes, f"{name}: 2 true prefixes, 3 fitted", _NAMES["voronoi"] if axes is panels[0] else "")
        legend(figure, [handle(c, label, marker, line) for c, label, marker, line in styles.values()])
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
        paths.append(write(out, "headline", *headline(over))[0])
    return paths


EXPERTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")  # Okabe and Ito


def plot_fit(found: Estimate) -> Figure:
    """A fit to data of one's own: data and experts above, gating probabilities below.

    One covariate: the experts' means over the data. Several: observed against fitted by the most responsible
    expert, and the gates along the covariate that goes most with them. Of several outputs the first.
    """
    alone = found.x.shape[1] == 1
    gates, owner, y = found.gates(), np.argmax(found.responsibilities(), axis=1), found.y[:, 0]
    mean, variance = found.experts()
    odds = np.log(gates[:, 0] + 1e-12)
    axis = 0 if alone else int(np.argmax([abs(np.corrcoef(column, odds)[0, 1]) for column in found.x.T]))
    x, order = found.x[:, axis], np.argsort(found.x[:, axis])
    size = float(np.clip(3000 / len(x), 1.0, 9.0))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 4.6 if alone else 5.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=alone, height_ratios=(2, 1))
        for k in range(gates.shape[1]):
            colour, mine = EXPERTS[k % len(EXPERTS)], owner == k
            top.scatter((x if alone else mean[:, k, 0])[mine], y[mine], s=size, color=colour, alpha=0.45, linewidths=0)
            if alone:
                middle, width = mean[order, k, 0], 2 * np.sqrt(variance[order, k, 0])
                top.plot(x[order], middle, color=colour)
                top.fill_between(x[order], middle - width, middle + width, color=colour, alpha=0.12, linewidth=0)
                bottom.plot(x[order], gates[order, k], color=colour)
            else:
                bottom.scatter(x, gates[:, k], s=size, color=colour, alpha=0.45, linewidths=0)
        margin = 0.08 * np.ptp(y)
        top.set(ylabel=found.y_names[0], ylim=(y.min() - margin, y.max() + margin))
        if not alone:
            top.axline((y.mean(), y.mean()), slope=1.0, color="0.4", linewidth=0.8)
            top.set(xlabel=f"{found.y_names[0]}, fitted by its most responsible expert", xlim=top.get_ylim())
        bottom.set(xlabel=found.x_names[axis], ylabel="gating probability", ylim=(-0.03, 1.03))
        legend(figure, [handle(EXPERTS[k % len(EXPERTS)], f"expert {k + 1}") for k in range(gates.shape[1])])
        bands = "lines: means, bands: two standard deviations of an expert; " if alone else ""
        note(
            figure, f"n = {found.n:,}; points by most responsible expert; {bands}log-likelihood {found.loglik:.2f}; "
            f"BIC {found.bic:.1f}; {found.certificate}"
        )  # fmt: skip
    return figure
