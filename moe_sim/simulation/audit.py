"""Audit: published protocols, re-created as written, beside corrected ones on the same samples. What a protocol does
to a slope is shown here, whatever the theorem behind it; the studies are the files in ``protocols``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moe_sim.rates.controls import objective_gaps
from moe_sim.rates.judge import judge
from moe_sim.simulation.runner import Progress, Results, run
from moe_sim.study.registry import load_study
from moe_sim.study.study import Study


@dataclass(frozen=True)
class Row:
    """One line of the table: a loss of a protocol. panel: the figure's panel it is drawn in."""

    panel: str
    label: str
    protocol: str
    loss: str


_SOFTMAX = "softmax gates: 2 experts, {} fitted"
_GATED = "Gaussian gates: 3 experts, 4 fitted"
_PREFIX = "free prefixes: 2 true, 3 fitted"
ROWS = [
    row
    for K in (2, 3, 4)
    for row in (
        Row(_SOFTMAX.format(K), "as written", f"softmax-K{K}-published", "voronoi:untranslated"),
        Row(_SOFTMAX.format(K), "with the translation", f"softmax-K{K}-published", "voronoi"),
        Row(_SOFTMAX.format(K), "and wide starts, converged", f"softmax-K{K}-corrected", "voronoi"),
    )
] + [
    Row(_GATED, "the start itself", "gated-start", "voronoi"),
    Row(_GATED, "as written: one EM step", "gated-published", "voronoi"),
    Row(_GATED, "starts from the data, converged", "gated-corrected", "voronoi"),
    Row(_PREFIX, "start noise shrinks in $n$", "independent-shrinking", "voronoi"),
    Row(_PREFIX, "start noise stays", "independent-fixed", "voronoi"),
    Row(_PREFIX, "starts from the data, converged", "independent-corrected", "voronoi"),
]


def protocols() -> list[str]:
    """Names of the protocol studies."""
    return list(dict.fromkeys(row.protocol for row in ROWS))


def load_protocol(name: str) -> Study:
    """The study of a protocol."""
    return load_study(Path(__file__).with_name("protocols") / f"{name}.toml")


def audit(
    out: str | Path | None = None, quick: bool = False, progress: Callable[[Progress], None] | None = None
) -> dict[str, Results]:
    """Run all protocols (or what the folder ``out`` lacks of them). quick: 20 replicates of each."""
    studies = {name: load_protocol(name).replace(quick=quick) for name in protocols()}
    return {name: run(s, None if out is None else Path(out) / name, progress) for name, s in studies.items()}


def table(done: dict[str, Results]) -> pd.DataFrame:
    """Slope by protocol: one row a ``Row``.

    slope, low, high: over all sizes. dropped_low, dropped_high: the least and largest slope among those with the
    smallest sizes dropped. below: mean log-likelihood units, at the largest size, by which the fits lie below those
    of the corrected protocol on the same samples. certified: how many of how many fits, and why not the others.
    """
    verdicts = {name: {v.loss: v for v in judge(results)} for name, results in done.items()}
    rows = []
    for row in ROWS:
        v = verdicts[row.protocol][row.loss]
        slopes = [v.slope, *(d["slope"] for d in v.dropping)] if v.slope is not None else [np.nan]
        low, high = v.interval or (np.nan, np.nan)
        rows.append({
            "panel": row.panel, "protocol": row.label.replace("$", ""), "study": row.protocol,
            "loss": row.loss, "slope": slopes[0], "low": low, "high": high, "dropped_low": min(slopes),
            "dropped_high": max(slopes), "below": _below(row, done), "replicates": v.replicates,
            "certified": v.accounting, "verdict": v.verdict,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _below(row: Row, done: dict[str, Results]) -> float:
    corrected = done[f"{row.protocol.rsplit('-', 1)[0]}-corrected"]
    gaps = objective_gaps(corrected.frame, done[row.protocol].frame)
    return float(gaps["gap"][gaps["n"] == gaps["n"].max()].mean())
