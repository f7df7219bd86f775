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
from moe_sim.models.coordinates import lists
from moe_sim.rates.judge import judge
from moe_sim.rates.slopes import summarise
from moe_sim.rates.verdicts import FEWEST_CERTIFIED, Verdict
from moe_sim.simulation.progress import Progress
from moe_sim.simulation.runner import Results, run
from moe_sim.study.path import t_name
from moe_sim.study.study import Study


@dataclass
class WorstCase:
    """study: with a grid; results: at each of its truths, by t."""

    study: Study
    results: dict[float, Results]

    def means(self, loss: str, of: str = "loss") -> pd.DataFrame:
        """Mean losses (root mean squares of distances of atoms), as they are judged: a row a size, a column a truth.

        of: ``near`` for those of the worst near-minimisers.
        """
        (known,) = (known for known in self.study.problem.losses if known.name == loss)
        mean = lambda values: summarise(values.to_numpy(), known.aggregate)[0]  # noqa: E731
        columns = {t: found.frame.groupby("n")[f"{of}:{loss}"].agg(mean) for t, found in self.results.items()}
        return pd.DataFrame(columns).fillna(np.inf)  # no value is worse than any

    def worst(self, loss: str, of: str = "loss") -> pd.Series:
        """t of the truth whose mean loss is largest, by size."""
        return self.means(loss, of).idxmax(axis=1)

    def verdicts(self) -> list[Verdict]:
        """A ``Verdict`` for each claim, at each size on the replicates of its worst truth.

        Near-minimisers are those of the truth where they are worst, and where most fits of any truth failed, nothing is
        read off: it may be worse than is seen.
        """
        return [self._verdict(k, claim.loss) for k, claim in enumerate(self.study.claims)]

    def _verdict(self, k: int, loss: str) -> Verdict:
        worst, near = self.worst(loss), self.worst(loss, "near")
        parts = []
        for n, t, beside_t in zip(worst.index, worst, near, strict=True):
            rows, beside = (self._rows(at, n) for at in (t, beside_t))
            parts.append(rows.assign(**{f"near:{loss}": beside[f"near:{loss}"].to_numpy()}))
        truths = {f"{n:.0f}": lists(self.results[t].study.problem.truth) for n, t in worst.items()}
        blind = next((t for t in dict.fromkeys(worst) if loss in self.results[t].unseen), None)
        unseen = {} if blind is None else {loss: self.results[blind].unseen[loss]}
        last = self.results[worst.iloc[-1]]
        verdict = judge(Results(last.study, pd.concat(parts, ignore_index=True), {}, truths, unseen))[k]
        reason = f"{_which(worst)}{'' if blind is None else f', not known at t = {blind:g}'}: {verdict.reason}"
        share, where = min((self._certified(t, n), (t, n)) for t in self.results for n in worst.index)
        if share < FEWEST_CERTIFIED:
            of = f"t = {where[0]:g}, n = {where[1]:g}"
            reason = f"{share:.0%} of the fits of {of} are certified: what is worst is not known"
            verdict = replace(verdict, verdict="undecided")
        return replace(verdict, claim=self.study.name, reason=reason)

    def _rows(self, t: float, n) -> pd.DataFrame:
        frame = self.results[t].frame
        return frame[frame["n"] == n]

    def _certified(self, t: float, n) -> float:
        """Share of the fits that are certified."""
        return float((self._rows(t, n)["certificate"] == "certified").mean())


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
        {t: run(at, None if out is None else Path(out) / t_name(t), progress) for t, at in studies.items()},
    )


def _which(worst: pd.Series) -> str:
    """The worst truths in words."""
    if worst.nunique() == 1:
        return f"the worst truth is t = {worst.iloc[0]:g} at all sizes"
    return "the worst truths are " + ", ".join(f"t = {t:g} at n = {n:g}" for n, t in worst.items())
