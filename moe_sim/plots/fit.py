"""The figure of a fit to data of one's own."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from moe_sim.fitting.estimate import Estimate
from moe_sim.plots.style import STYLE, handle, legend, note, own_axes, plain

EXPERTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")  # Okabe and Ito


def plot_fit(found: Estimate, ax: Any = None) -> Figure:
    """A fit to data of one's own: data and experts above, gating probabilities below.

    One covariate: the experts' means over the data. Several: observed against fitted by the most responsible
    expert, and the gates along the covariate that goes most with them. Of several outputs the first. ax: two axes of
    your own, for the upper and the lower part, in your style, without legend and small print. Raises ``InputError``.
    """
    if ax is not None:
        own = own_axes(ax, 2, "", "two, for the data and for the gates")
        _panels(found, *own)
        return own[0].figure
    alone, count = found.x.shape[1] == 1, found.gates().shape[1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 4.6 if alone else 5.2), layout="constrained")
        if count > 1:
            _panels(found, *figure.subplots(2, 1, sharex=alone, height_ratios=(2, 1)))
        else:  # whose gate is 1 everywhere
            _panels(found, figure.subplots(), None)
        legend(figure, [handle(EXPERTS[k % len(EXPERTS)], f"expert {k + 1}") for k in range(count)])
        bands = "lines: means, bands: two standard deviations of an expert; " if alone else ""
        note(
            figure, f"n = {found.n:,}; points by most responsible expert; {bands}log-likelihood {found.loglik:.2f}; "
            f"BIC {found.bic:.1f}; {found.certificate}"
        )  # fmt: skip
    return figure


def _panels(found: Estimate, top, bottom) -> None:
    alone = found.x.shape[1] == 1
    gates, owner, y = found.gates(), np.argmax(found.responsibilities(), axis=1), found.y[:, 0]
    mean, variance = found.experts()
    odds = np.log(gates[:, 0] + 1e-12)
    first = alone or gates.shape[1] == 1
    axis = 0 if first else int(np.argmax([abs(np.corrcoef(column, odds)[0, 1]) for column in found.x.T]))
    x, order = found.x[:, axis], np.argsort(found.x[:, axis])
    size = float(np.clip(3000 / len(x), 1.0, 9.0))
    for k in range(gates.shape[1]):
        colour, mine = EXPERTS[k % len(EXPERTS)], owner == k
        top.scatter((x if alone else mean[:, k, 0])[mine], y[mine], s=size, color=colour, alpha=0.45, linewidths=0)
        if alone:
            middle, width = mean[order, k, 0], 2 * np.sqrt(variance[order, k, 0])
            top.plot(x[order], middle, color=colour)
            top.fill_between(x[order], middle - width, middle + width, color=colour, alpha=0.12, linewidth=0)
            if bottom is not None:
                bottom.plot(x[order], gates[order, k], color=colour)
        elif bottom is not None:
            bottom.scatter(x, gates[:, k], s=size, color=colour, alpha=0.45, linewidths=0)
    margin = 0.08 * np.ptp(y)
    y_name, x_name = plain(found.y_names[0]), plain(found.x_names[axis])
    top.set(ylabel=y_name, ylim=(y.min() - margin, y.max() + margin))
    if not alone:
        top.axline((y.mean(), y.mean()), slope=1.0, color="0.4", linewidth=0.8)
        top.set(xlabel=f"{y_name}, fitted by its most responsible expert", xlim=top.get_ylim())
    if bottom is not None:
        bottom.set(xlabel=x_name, ylabel="gating probability", ylim=(-0.03, 1.03))
    elif alone:
        top.set(xlabel=x_name)
