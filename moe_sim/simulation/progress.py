"""How far a run is: replicates done, certified, the slopes so far and the time left, after each chunk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_sim.rates.slopes import Slope, fit_slope, summarise, usable
from moe_sim.study.study import Study


@dataclass(frozen=True)
class SizeProgress:
    """One size: replicates done, the share of them that is certified, and the mean of each claimed loss."""

    n: int
    done: int
    certified: float
    mean: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """What a run reports after each chunk.

    n, done, certified: size of that chunk, and how far it is, what earlier runs have done included; total: replicates
    that each size shall have. sizes: every size of the study. slopes: of the claimed losses, as the replicates done
    have them (None below two sizes). seconds_left: at the pace so far, for all that is missing; 0 at the end.
    """

    study: str
    n: int
    done: int
    total: int
    certified: float
    sizes: tuple[SizeProgress, ...]
    slopes: dict[str, Slope | None]
    seconds_left: float


class Tally:
    """Counts of a run that goes on; ``add`` the rows of each chunk and get its ``Progress``."""

    def __init__(self, study: Study, kept: pd.DataFrame | None):
        self._study = study
        claimed = {c.loss for c in study.claims if c.kind != "lower"}
        self._aggregate = {loss.name: loss.aggregate for loss in study.problem.losses if loss.name in claimed}
        self._good: dict[int, list[np.ndarray]] = {n: [] for n in study.problem.sizes}
        self._values: dict[int, dict[str, list[np.ndarray]]] = {
            n: {name: [] for name in self._aggregate} for n in study.problem.sizes
        }
        self._sizes = {n: SizeProgress(n, 0, np.nan, dict.fromkeys(self._aggregate, np.nan)) for n in self._good}
        self._errors = {n: dict.fromkeys(self._aggregate, np.nan) for n in self._good}
        self._pace: dict[int, list[float]] = {}  # seconds and replicates of each size in this run
        self._before = time.monotonic()
        if kept is not None:
            kept = kept[kept["replicate"] < study.problem.replicates]
            for n in study.problem.sizes:
                self._count(n, kept[kept["n"] == n])

    def _count(self, n: int, rows: pd.DataFrame) -> None:
        self._good[n].append((rows["certificate"] == "certified").to_numpy())
        good = np.concatenate(self._good[n])
        mean, error = {}, {}
        for name, values in self._values[n].items():
            values.append(rows[f"loss:{name}"].to_numpy())
            mean[name], error[name] = summarise(np.concatenate(values), self._aggregate[name])
        share = float(good.mean()) if len(good) else np.nan
        self._sizes[n], self._errors[n] = SizeProgress(n, len(good), share, mean), error

    def add(self, n: int, rows: pd.DataFrame) -> Progress:
        self._count(n, rows)
        now = time.monotonic()
        pace = self._pace.setdefault(n, [0.0, 0])
        pace[0] += now - self._before
        pace[1] += len(rows)
        self._before = now
        here, total = self._sizes[n], self._study.problem.replicates
        sizes = tuple(self._sizes.values())
        slopes = {name: self._slope(name) for name in self._aggregate}
        return Progress(
            self._study.name, n, here.done, total, here.certified, sizes, slopes, self._left(sizes, total)
        )  # fmt: skip

    def _slope(self, name: str) -> Slope | None:
        points = np.array([[n, s.mean[name], self._errors[n][name]] for n, s in self._sizes.items()], float)
        points = points[usable(points[:, 1], points[:, 2])]
        return fit_slope(*points.T) if len(points) > 1 else None

    def _left(self, sizes: tuple[SizeProgress, ...], total: int) -> float:
        """Sizes not begun take as long a replicate as the largest that has, in proportion where rows are drawn."""
        last = max(self._pace)
        drawn = self._study.problem.mode == "iid"
        left = 0.0
        for s in sizes:
            seconds, count = self._pace.get(s.n, self._pace[last])
            factor = s.n / last if drawn and s.n not in self._pace else 1.0
            left += (total - s.done) * seconds / count * factor
        return left
