"""The figure of few-shot prefix-tuning: test accuracy, paired differences, training accuracy and training loss."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from moe_sim.bridge import STRUCTURES
from moe_sim.bridge.few_shot import FINE_TUNING, METHODS, PROBE, SEEN, FewShot
from moe_sim.plots.rates import STRUCTURES as STRUCTURE_COLOURS
from moe_sim.plots.style import STYLE, handle, legend, note

_STYLE = {  # colour, marker, line
    **{
        name: (STRUCTURE_COLOURS[theory], marker, "-")
        for (name, theory), marker in zip(STRUCTURES.items(), "os^", strict=True)
    },
    FINE_TUNING: ("0.0", "D", "--"),
    PROBE: ("0.55", "v", ":"),
}
_PAIRS = (("#CC79A7", "o"), ("#E69F00", "s"), ("#56B4E9", "^"))  # Okabe and Ito, those that no structure has
_DODGE = 1.09  # factor in shots between points that would lie on each other


def plot(result: FewShot) -> tuple[Figure, pd.DataFrame]:
    """The figure and the numbers in it, ``panel`` telling them apart."""
    accuracy, differences, loss = result.accuracy(), result.differences(), _loss(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        (test, gap), (training, curve) = figure.subplots(2, 2)
        _accuracy(test, accuracy)
        _differences(gap, differences, result.profile.shots)
        _training(training, accuracy, result.profile.steps)
        _curve(curve, loss)
        legend(figure, [_handle(method, accuracy) for method in METHODS], columns=3)
        note(figure, _caption(result))
    rates = accuracy["rates"].map(lambda of: "; ".join(f"{rate} x {count}" for rate, count in of.items()))
    parts = {"test accuracy": accuracy.assign(rates=rates), "difference": differences, "training loss": loss}
    return figure, pd.concat([part.assign(panel=name) for name, part in parts.items()], ignore_index=True)


def _accuracy(axes: Axes, table: pd.DataFrame) -> None:
    for place, method in enumerate(METHODS):
        of = table[table["method"] == method]
        _points(axes, of["shots"], of["accuracy"], of["low"], of["high"], place - 2, _STYLE[method])
    _shots(axes, table["shots"], "test accuracy", "accuracy on the test set")


def _differences(axes: Axes, table: pd.DataFrame, shots: tuple[int, ...]) -> None:
    """The mean over all numbers of shots stands to the right of the largest."""
    everything = max(shots) * max(shots) / sorted(shots)[-2]
    axes.axhline(0.0, color="0.4", linewidth=0.8)
    for place, ((first, second), of) in enumerate(table.groupby(["first", "second"], sort=False)):
        colour, marker = _PAIRS[place]
        x = of["shots"].replace(0, everything)
        label = f"{first} − {second}"
        _points(axes, x, of["difference"], of["low"], of["high"], place - 1, (colour, marker, ""), label)
    axes.axvline(np.sqrt(max(shots) * everything), color="0.7", linewidth=0.6, linestyle=":")
    _shots(axes, pd.Series([*shots, everything]), "difference of test accuracy", "paired differences", "all")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    axes.legend(loc="upper left", fontsize=6.5, handletextpad=0.2, borderaxespad=0.1)


def _training(axes: Axes, table: pd.DataFrame, steps: int) -> None:
    for place, method in enumerate(METHODS):
        of, (colour, marker, line) = table[table["method"] == method], _STYLE[method]
        axes.plot(
            of["shots"] * _DODGE ** (place - 2), of["training_accuracy"], color=colour, marker=marker, linestyle=line
        )
    _shots(axes, table["shots"], "training accuracy", f"after {steps} steps")


def _curve(axes: Axes, loss: pd.DataFrame) -> None:
    for (shots, method), of in loss.groupby(["shots", "method"], sort=False):
        colour, _, line = _STYLE[str(method)]
        axes.plot(of["steps"], of["training_loss"], color=colour, linestyle=line)
        axes.set_title(f"while training, {shots} examples a class")
    axes.axhline(np.log(2), color="0.4", linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss of the batch (nats)", ylim=(0, None))


def _loss(result: FewShot) -> pd.DataFrame:
    """Mean loss over seeds and a tenth of the steps, at the last number of shots but one; ``steps``: the middle one."""
    curves = result.curves[result.curves["shots"] == sorted(result.profile.shots)[-2]]
    width = max(1, result.profile.steps // 10)
    steps = curves["step"] // width * width + (width + 1) / 2
    means = curves.assign(steps=steps).groupby(["method", "shots", "steps"])["loss"].mean()
    return means.rename("training_loss").reset_index()


def _points(axes: Axes, x, y, low, high, place: int, style: tuple[str, str, str], label: str | None = None) -> None:
    colour, marker, line = style
    error = [y - low, high - y]
    axes.errorbar(
        x * _DODGE**place, y, yerr=error, color=colour, marker=marker, linestyle=line, elinewidth=0.9, label=label
    )


def _shots(axes: Axes, shots: pd.Series, ylabel: str, title: str, last: str | None = None) -> None:
    ticks = sorted(set(shots))
    names = [f"{tick:g}" for tick in ticks]
    axes.set(xscale="log", xlabel="training examples a class (shots)", ylabel=ylabel, title=title)
    axes.set_xticks(ticks, names if last is None else [*names[:-1], last])
    axes.xaxis.set_minor_locator(NullLocator())


def _handle(method: str, table: pd.DataFrame):
    colour, marker, line = _STYLE[method]
    of = table[table["method"] == method].iloc[0]
    return handle(colour, f"{method} ({of['parameters']:,} + {of['classifier']:,})", marker, line)


def _caption(result: FewShot) -> str:
    p = result.profile
    rates = len(next(iter(p.rates.values())))
    return (
        f"Movie-review snippets; {result.model}, frozen but in full fine-tuning. In brackets: trained parameters of "
        f"the prefix or the model + of the classifier. {p.length} prefixes a layer. {p.steps} steps of {p.batch} "
        "examples (the probe is solved exactly); of each method the learning rate (probe: C) out of "
        f"{rates} that is best on {2 * p.validation} validation examples. {p.seeds} seeds, each with training and "
        f"validation examples of its own; {2 * p.test} test examples common to all. Bars: 95% t intervals over seeds, "
        "paired in the differences; points of one number of examples are drawn side by side. "
        f"Training accuracy: on at most {2 * SEEN} examples, at the end. Grey line, below "
        "right: loss of a guess."
    )
