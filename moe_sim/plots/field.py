"""The registry as one picture: of each claim what is claimed, simulated and possible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moe_sim.plots.style import STYLE, handle, legend, note, write
from moe_sim.rates.verdicts import Verdict
from moe_sim.study.schema import Claim
from moe_sim.theory.modulus import Modulus
from moe_sim.theory.possible import settled_exponent

_COLOURS = {"supported": "#009E73", "refuted": "#D55E00", "undecided": "0.45"}
_MOST = 0.62  # exponent at the right end
_MARKS = {"read": "r", "recalled": "m", "ours": "o"}
_ROW = 0.145  # inches
NOT_RUN = "not run"
_SAME = ("study", "loss", "kind", "claimed", "digest")  # columns of a row that say which claim it is of


_SMALL_PRINT = (
    "Rates n^-r: r to the right, 0 is no rate; bars are 95% intervals of slopes. Claims are upper ones, at least so "
    "fast, but for =, just so fast, and those at 0, no polynomial rate, which are judged by a pair of measures and "
    "never by a slope. r: the paper's text was read, m: recalled from memory, o: ours."
)


@dataclass(frozen=True)
class Entry:
    """A claim of a study of the registry, with its last verdict and its modulus, None where there are none.

    digest: of all of the study, so that a row of an earlier picture is known to be of the same one.
    """

    study: str
    claim: Claim
    verdict: Verdict | None
    modulus: Modulus | None
    digest: str = ""

    @property
    def exponent(self) -> float:
        """The claimed one; 0 where no rate is claimed."""
        return 0.0 if self.claim.kind == "lower" else float(self.claim.exponent or 0.0)

    @property
    def possible(self) -> float | None:
        if self.claim.loss == "function":
            return 0.5  # of any identifiable function: it is its own modulus
        return None if self.modulus is None else settled_exponent(self.modulus)

    def row(self) -> dict:
        v = self.verdict
        low, high = (None, None) if v is None or v.interval is None else (-v.interval[1], -v.interval[0])
        return {
            "study": self.study, "loss": self.claim.loss, "kind": self.claim.kind, "mark": self.claim.mark,
            "claimed": self.exponent, "simulated": None if v is None or v.slope is None else -v.slope, "low": low,
            "high": high, "possible": self.possible, "verdict": NOT_RUN if v is None else v.verdict,
            "digest": self.digest,
        }  # fmt: skip


def field_table(entries: list[Entry], before: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a claim. What was not run here is as in the table ``before``, where that has the same claim of the same
    study: run folders come and go, and a registry is seldom run all at once."""
    rows = pd.DataFrame([entry.row() for entry in entries])
    if before is None or rows.empty or not set(rows.columns) <= set(before.columns):
        return rows
    key = lambda row: tuple(f"{row[name]:.6g}" if name == "claimed" else row[name] for name in _SAME)  # noqa: E731
    known = {key(row): row for _, row in before.iterrows()}
    for (k, row), entry in zip(rows.iterrows(), entries, strict=True):
        old = known.get(key(row))
        if old is None:
            continue
        if entry.verdict is None:
            rows.loc[k, ["simulated", "low", "high", "verdict"]] = old[["simulated", "low", "high", "verdict"]]
        if entry.modulus is None:
            rows.loc[k, "possible"] = old["possible"]
    return rows


def plot_field(table: pd.DataFrame) -> Figure:
    """Two columns of rows, a study's under its name; ``table`` as from ``field_table``."""
    lines: list[Any] = []
    for study, rows in table.groupby("study", sort=False) if len(table) else ():
        lines += [study, *(row for _, row in rows.iterrows())]
    starts = [k for k, line in enumerate(lines) if isinstance(line, str)]
    half = min(starts[1:], key=lambda k: abs(k - len(lines) / 2), default=len(lines))
    columns = [column for column in (lines[:half], lines[half:]) if column]
    with matplotlib.rc_context(STYLE):
        tallest = max(map(len, columns), default=1)
        figure = Figure(figsize=(7.4, 1.1 + _ROW * tallest), layout="constrained")
        panels = figure.subplots(1, max(len(columns), 1), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=False):
            _column(axes, column, tallest)
        handles = [
            handle("0.2", "claimed", "|", ""), handle("0.2", "possible, by the modulus", "D", ""),
            *(handle(colour, f"simulated: {name}", "o") for name, colour in _COLOURS.items()),
        ]  # fmt: skip
        handles[1].set_markerfacecolor("none")
        legend(figure, handles, columns=3)
        note(figure, _SMALL_PRINT)
    return figure


def _column(axes, lines: list[Any], tallest: int) -> None:
    """lines: names of studies, and rows of the table."""
    axes.set(xlim=(-0.06, _MOST), ylim=(tallest - 0.5, -1.0), xlabel="exponent r")
    axes.set_xticks([0, 1 / 8, 1 / 4, 1 / 2], ["0", "1/8", "1/4", "1/2"])
    labels = []
    for y, line in enumerate(lines):
        if isinstance(line, str):
            labels.append(line)
            continue
        labels.append(f"{_loss(line['loss'])}  {'=' if line['kind'] == 'exact' else ''}{_MARKS[line['mark']]}")
        colour = _COLOURS.get(line["verdict"], "0.45")
        axes.plot(line["claimed"], y, marker="|", color="0.2", markersize=9, markeredgewidth=1.4)
        if not pd.isna(line["possible"]):
            axes.plot(line["possible"], y, marker="D", color="0.2", markerfacecolor="none", markersize=5.5)
        if not (pd.isna(line["simulated"]) or pd.isna(line["low"])):
            low, middle, high = np.clip(line[["low", "simulated", "high"]].astype(float), -0.06, _MOST)
            axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(middle, y, marker="o", color=colour, markersize=3.5)
        if line["claimed"] > _MOST:  # told, as an axis up to it would press all others together
            told = f"claimed {line['claimed']:g}, possible {line['possible']:.2g}, simulated {line['simulated']:.2f}  "
            axes.text(_MOST, y, told, ha="right", va="center", fontsize=6, color=colour)
    axes.set_yticks(range(len(lines)), labels, fontsize=6)
    for text, line in zip(axes.get_yticklabels(), lines, strict=True):
        if isinstance(line, str):
            text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _loss(name: str) -> str:
    """A short name of a loss."""
    name = name.replace("atoms:weighted:", "shared cells: ").replace("atoms:multi:", "shared cells, plain: ")
    name = name.replace("atoms:single:", "single cells: ").replace("voronoi:r=", "D, r = ").replace("voronoi", "D")
    return name.replace("_", " ")


def write_field(entries: list[Entry], out: str | Path) -> list[Path]:
    """The picture as SVG and PNG, and its numbers as CSV, below ``out``; what was not run as the CSV there has it."""
    place = Path(out) / "field.csv"
    before = pd.read_csv(place) if place.is_file() else None
    table = field_table(entries, before)
    return write(out, "field", plot_field(table), table)
