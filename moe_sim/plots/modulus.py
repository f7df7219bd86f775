"""Figures of what needs no sampling: moduli of continuity."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from moe_sim.models.base import RegressionModel
from moe_sim.plots.rates import label
from moe_sim.plots.style import STYLE, grid_of_panels, handle, legend, note, write
from moe_sim.simulation.predictions import agreement
from moe_sim.study.study import Study
from moe_sim.theory.modulus import FLOOR, SAME_FUNCTION, Modulus

LEAST = 1e-17  # omega that is drawn where it is smaller, or 0


def plot_modulus(study: Study, moduli: list[Modulus]) -> Figure:
    """One panel a loss: omega against eps, and beside it the power that the claimed exponent would need."""
    drawn = [m for m in moduli if len(m.eps)]
    with matplotlib.rc_context(STYLE):
        figure, panels = grid_of_panels(len(drawn), 1.5, 3.2)
        for axes, m in zip(panels, drawn, strict=False):
            _panel(axes, study, m)
        distance = "L2 distance" if isinstance(study.problem.model, RegressionModel) else "Hellinger distance"
        handles = [handle("#0072B2", r"least distance $\omega(\varepsilon)$")]
        if any(axes.lines[1:] for axes in panels):
            handles.append(handle("0.3", "as the claimed rate needs", "", (0, (4, 2))))
        grey = "; grey band: zero to rounding" if any(axes.patches for axes in panels) else ""
        legend(figure, handles, study.name, columns=2 if len(drawn) > 1 else 1)
        note(
            figure, f"{study.problem.options.atoms} atoms about {study.problem.model.count(study.problem.truth)}; "
            f"{distance}; local minimisation from all assignments of atoms to cells{grey}"
        )  # fmt: skip
    return figure


def draw_power(axes, eps: np.ndarray, last: float, power: float) -> None:
    """A dashed line of eps to this power, below a modulus that ends in ``last``."""
    axes.plot(eps, 0.5 * last * (eps / eps[-1]) ** power, color="0.3", linestyle=(0, (4, 2)), linewidth=1.0)


def _panel(axes, study: Study, m: Modulus) -> None:
    omega = np.maximum(m.omega, LEAST)
    axes.plot(m.eps, omega, color="#0072B2", marker="o")
    claims = [c for c in study.claims if c.loss == m.loss]
    for claim in claims:
        if claim.kind != "lower" and not m.degenerate:
            draw_power(axes, m.eps, omega[-1], 1 / (2 * (claim.exponent or np.inf)))
    low = min(omega.min(), FLOOR) / 10 if m.degenerate else omega.min() / 5
    if low < SAME_FUNCTION:
        axes.axhspan(low / 1e3, SAME_FUNCTION, color="0.5", alpha=0.15, linewidth=0)
    top = (1.0 if m.degenerate else omega.max()) * 5
    axes.set(xscale="log", yscale="log", xlabel=rf"$\varepsilon$: {label(m.loss)}", ylim=(low, top))
    distance = r"$L_2(\mu)$" if isinstance(study.problem.model, RegressionModel) else "Hellinger"
    axes.set_ylabel(rf"$\omega(\varepsilon)$, {distance} distance")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    if m.degenerate:
        kappa_text = r"$\omega = 0$: no rate"
    elif m.exponent is None:
        kappa_text = r"$\kappa$ not settled"
    else:
        kappa_text = rf"$\kappa$ = {m.kappa:.2f}: $n^{{-{m.exponent:.3g}}}$"
    told = ", ".join(f"{c.kind} claim {agreement(c, m)}" for c in claims) or "nothing claimed"
    axes.set_title(f"{kappa_text}\n{told}")


def write_modulus(study: Study, moduli: list[Modulus], out: str | Path) -> list[Path]:
    """The figure NAME-modulus as SVG, PNG and CSV below ``out``; returns their paths. local_kappa: to the next eps."""
    rows = [
        {"loss": m.loss, "eps": eps, "omega": omega, "local_kappa": kappa}
        for m in moduli
        for eps, omega, kappa in zip_longest(m.eps, m.omega, m.local_kappa, fillvalue=np.nan)
    ]
    table = pd.DataFrame(rows, columns=["loss", "eps", "omega", "local_kappa"])
    return write(out, f"{study.name}-modulus", plot_modulus(study, moduli), table)
