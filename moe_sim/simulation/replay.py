"""One replicate of a run once more: what became of its starts, and whether it is what the run kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_sim.errors import InputError, whole
from moe_sim.fitting.multistart import CERTIFICATES
from moe_sim.models.remembered import must_compute
from moe_sim.rates.verdicts import finite
from moe_sim.simulation.runner import Results, fit_chunk
from moe_sim.solvers.solution import Status


@dataclass(frozen=True)
class Replay:
    """row: the columns of the replicate, computed again. differs: columns in which the run's are others, bit for bit.

    starts: one row for each optimum that starts were followed to, the best first: ``starts`` that came to it,
    ``objective`` in log-likelihood units, ``above`` the best, ``iterations`` over the whole sample, ``status``,
    ``degenerate``: whether a variance lies on its lower bound, so that it is the best only where all are.
    """

    row: pd.Series
    differs: list[str]
    starts: pd.DataFrame

    @property
    def certificate(self) -> str:
        """In a sentence."""
        return CERTIFICATES[self.row["certificate"]]

    def to_json(self) -> dict[str, Any]:
        return finite({
            "row": self.row.to_dict(), "differs": self.differs, "certificate": self.certificate,
            "starts": self.starts.to_dict("records"),
        })  # fmt: skip


def replay(results: Results, size: float, replicate: int) -> Replay:
    """Fit one replicate of a run again. Raises ``InputError`` where the run has no such replicate, or where its model
    is code in the folder that is not trusted."""
    problem = results.study.problem
    must_compute(problem.model)
    if size not in problem.sizes:
        known = ", ".join(f"{n:g}" for n in problem.sizes)
        raise InputError(f"--size = {size:g} is no size of this run: pass one of {known}")
    whole("--replicate", replicate, 0, problem.replicates - 1)
    n = next(m for m in problem.sizes if m == size)
    kept = results.frame[(results.frame["n"] == n) & (results.frame["replicate"] == replicate)]
    if kept.empty:
        raise InputError(
            f"replicate {replicate} of size {n:g} has not been computed yet: run the study to its end first"
        )
    frame, fits = fit_chunk(results, n, np.array([replicate]))
    row, before = frame.iloc[0], kept.iloc[0]
    differs = [str(name) for name in frame.columns if not _same(row[str(name)], before[str(name)])]
    solution = fits.lanes.solution
    starts = pd.DataFrame({
        "starts": fits.lanes.copies, "objective": solution.objective, "above": solution.objective - row["objective"],
        "iterations": solution.iterations, "status": [str(Status(int(s))) for s in solution.status],
        "degenerate": fits.lanes.degenerate,
    })  # fmt: skip
    return Replay(row, differs, starts.sort_values("objective", kind="stable", ignore_index=True))


def _same(one, other) -> bool:
    return bool(one == other or (isinstance(one, float) and np.isnan(one) and np.isnan(other)))
