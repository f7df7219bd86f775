"""Adaptive replicates: a study goes on until its slope intervals are as narrow as asked, or a budget ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe_sim.errors import InputError, number, whole
from moe_sim.rates.judge import judge
from moe_sim.simulation.progress import Progress
from moe_sim.simulation.runner import REPLICATES_PER_CHUNK, Results, run
from moe_sim.study.study import Study

_GROWTH = 4  # replicates grow by no more at once: an interval from few replicates is a guess itself
BUDGET = 10_000  # replicates a size, where none is given
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class _Over(Exception):
    """The time is over; what has been computed is kept."""


def run_until(
    study: Study, out: str | Path, width: float, replicates: int = BUDGET, seconds: float = float("inf"),
    progress: Callable[[Progress], None] | None = None, client: Any = None,
) -> Results:  # fmt: skip
    """Add replicates, the same number to every size, until no claimed slope has a wider interval than ``width``.

    It begins with ``study.problem.replicates`` and ends at ``replicates`` a size at the latest, or after ``seconds``;
    then the results are those of the last number of replicates that all sizes have, and what lies beyond is kept
    for the next time. Numbers of replicates follow from the losses alone: an interrupted run, begun again, takes the
    same steps. Widths, not slopes, say when to stop; fixed-width intervals of this kind keep their coverage as they
    get narrow (Chow and Robbins, Ann. Math. Statist. 36, 1965). Raises ``InputError``, as where no claim has a slope.
    """
    if number("width", width) <= 0:
        raise InputError(f"width = {width:g}: pass the width of a slope interval, as in 0.05")
    most = whole("budget", replicates, 2, 10**7)
    if all(claim.kind == "lower" for claim in study.claims):
        raise InputError("width needs a claim with a slope, and the study has none: add an upper or exact [[claim]]")
    deadline = time.monotonic() + seconds
    before: Study | None = None

    def report(p: Progress) -> None:
        if progress is not None:
            progress(p)
        if time.monotonic() > deadline and before is not None:
            raise _Over

    step = study.replace(replicates=min(study.problem.replicates, most))
    while True:
        try:
            results = run(step, out, report, client)
        except _Over:
            assert before is not None
            return run(before, out)  # all of it is there
        count = step.problem.replicates
        wider = _widest(results) / width
        if wider <= 1 or count >= most or time.monotonic() > deadline:
            return results
        before, step = step, study.replace(replicates=min(most, _next(count, wider)))


def _widest(results: Results) -> float:
    """The widest interval of a claimed slope; infinite where there is none yet."""
    found = [v.interval for v in judge(results) if v.kind != "lower"]
    return max(np.inf if interval is None else interval[1] - interval[0] for interval in found)


def _next(count: int, wider: float) -> int:
    """Replicates that would make the interval narrow enough, widths falling like the root, in whole chunks."""
    wanted = min(count * wider**2, count * _GROWTH)
    return max(int(np.ceil(wanted / REPLICATES_PER_CHUNK)) * REPLICATES_PER_CHUNK, count + 1)


def parse_budget(text: str | None) -> tuple[int, float]:
    """Replicates and seconds of ``5000``, ``90s``, ``30min``, ``2h``; None: ``BUDGET``. Raises ``InputError``."""
    if text is None:
        return BUDGET, float("inf")
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)(s|min|h)?", text)
    if not found:
        raise InputError(f"--budget {text}: pass replicates a size, as in 5000, or a time, as in 90s, 30min or 2h")
    value = float(found[1])
    if found[2]:
        return 10**7, value * _UNITS[found[2]]
    return whole("--budget", value, 2, 10**7), float("inf")
