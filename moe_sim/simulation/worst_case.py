"""Uniform rates: at each size the worst of a grid of truths, ``[truth.grid]``.

A rate that holds at every truth may hold at none of them uniformly: what a paper claims of a supremum over parameters
is judged on the truth whose mean loss is largest at that size. The largest of some noisy means is too large by part of
a standard error; slopes do not feel it where the same truth is the worst throughout, and ``worst`` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from moe_sim.errors import InputError
from moe_sim.rates.judge import judge
from moe_sim.rates.verdicts import Verdict
from moe_sim.simulation.progress import Progress
from moe_sim.simulation.runner import Results, run
from moe_sim.study.study import Study


@dataclass
class WorstCase:
    """study: with a grid; results: at each of its truths, by t."""

    study: Study
    results: dict[float, Results]

    def means(self, loss: str) -> pd.DataFrame:
        """Mean losses: a row a size, a column a truth."""
        columns = {t: found.frame.groupby("n")[f"loss:{loss}"].mean() for t, found in self.results.items()}
        return pd.DataFrame(columns).fillna(np.inf)

    def worst(self, loss: str) -> pd.Series:
        """t of the truth whose mean loss is largest, by size."""
        return self.means(loss).idxmax(axis=1)

    def verdicts(self) -> list[Verdict]:
        """A ``Verdict`` for each claim, at each size on the replicates of its worst truth."""
        found = []
        for k, claim in enumerate(self.study.claims):
            worst = self.worst(claim.loss)
            parts = [(n, self.results[t], self.results[t].frame) for n, t in worst.items()]
            frame = pd.concat([rows[rows["n"] == n] for n, _, rows in parts], ignore_index=True)
            truths = {
                f"{n:.0f}": {k: np.asarray(v).tolist() for k, v in of.study.problem.truth.items()} for n, of, _ in parts
            }
            first = next(iter(self.results.values()))
            unseen = [u for t in dict.fromkeys(worst) for u in self.results[t].unseen.get(claim.loss, [])]
            only = Results(self.study, frame, first.evidence, truths, {claim.loss: unseen} if unseen else {})
            verdict = judge(only)[k]
            found.append(replace(verdict, reason=f"{_which(worst)}: {verdict.reason}"))
        return found


def worst_case(
    study: Study, out: str | Path | None = None, progress: Callable[[Progress], None] | None = None
) -> WorstCase:
    """Run a study at every truth of its ``[truth.grid]``, each in a run folder of its own below ``out``, or go on.

    Raises ``InputError`` where it has no grid, or claims that no rate exists, which is about one truth.
    """
    studies = study.at_truths()
    if not studies:
        raise InputError('the study has no [truth.grid]: add one, as in t = [0.5, 1.0] and slope = "slope0 * t"')
    if any(claim.kind == "lower" for claim in study.claims):
        raise InputError("[truth.grid] is for upper claims: a lower one is shown by measures near one truth")
    return WorstCase(
        study,
        {t: run(at, None if out is None else Path(out) / f"t{t:g}", progress) for t, at in studies.items()},
    )


def _which(worst: pd.Series) -> str:
    """The worst truths in words."""
    if worst.nunique() == 1:
        return f"the worst truth is t = {worst.iloc[0]:g} at all sizes"
    return "the worst truths are " + ", ".join(f"t = {t:g} at n = {n:g}" for n, t in worst.items())
