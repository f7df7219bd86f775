"""Calibration of the instrument: synthetic studies whose right verdict is known, run through ``judge_claim``.

Losses of a replicate are drawn as mean(n) times a positive variable of mean 1; no model is fitted. What is counted is
how often the slope interval covers the true slope, and how often each verdict is returned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_sim.rates.verdicts import Replicates, judge_claim
from moe_sim.study.schema import Claim

SIZES = np.geomspace(1e3, 1e7, 5)  # four decades, as in the registry
REPLICATES = 200


@dataclass(frozen=True)
class LossLaw:
    """One kind of synthetic study.

    mean(n): the mean loss. claim: what is claimed of it. right: verdicts that are not wrong about it.
    noise: of a replicate, ``chi`` (the length of a normal vector in three dimensions, as losses of regular models are),
    ``heavy`` (Pareto with tail index 3: finite variance, infinite third moment). failures: share of replicates that
    stay at a loss of 1, and are uncertified. near(n): mean of the worst near-minimiser, the loss itself by default.
    slope: the true slope of the mean, where it is a power.
    """

    name: str
    mean: Callable[[np.ndarray], np.ndarray]
    claim: Claim
    right: tuple[str, ...]
    slope: float | None = None
    noise: str = "chi"
    failures: float = 0.0
    near: Callable[[np.ndarray], np.ndarray] | None = None


def _power(exponent: float, log_power: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda n: np.log(n) ** log_power * n**-exponent


def _claim(exponent: float, log_power: float = 0.0, kind: str = "upper") -> Claim:
    return Claim("voronoi", kind, exponent, log_power, (SIZES[0], SIZES[-1]))


def laws() -> list[LossLaw]:
    """The laws of the table, in its order."""
    found = []
    for e in (1.0, 0.5, 0.25, 0.125):
        found.append(LossLaw(f"n^-{e:g}, claimed so", _power(e), _claim(e), ("supported", "undecided"), -e))
    for e in (1.0, 0.5, 0.25, 0.125):
        slow = 0.8 * e
        found.append(
            LossLaw(f"n^-{slow:g}, claimed n^-{e:g}", _power(slow), _claim(e), ("refuted", "undecided"), -slow)
        )
    both = ("refuted", "undecided")
    return [
        *found,
        LossLaw("n^-0.45, on the margin of n^-0.5", _power(0.45), _claim(0.5), ("undecided",), -0.45),
        LossLaw("n^-0.6, claimed exactly n^-0.5", _power(0.6), _claim(0.5, kind="exact"), both, -0.6),
        LossLaw("(log n/n)^0.5, claimed so", _power(0.5, 0.5), _claim(0.5, 0.5), ("supported", "undecided")),
        LossLaw("bend from n^-0.5 to n^-0.25 at 1e5", lambda n: n**-0.5 + 1e5**-0.25 * n**-0.25, _claim(0.5), both),
        LossLaw(
            "bend from n^-0.25 to n^-0.5 at 1e5", lambda n: 1 / (n**0.25 * 1e5**0.25 + n**0.5), _claim(0.5),
            ("supported", "undecided"),
        ),
        LossLaw("heavy tails, n^-0.5", _power(0.5), _claim(0.5), ("supported", "undecided"), -0.5, "heavy"),
        LossLaw("heavy tails, n^-0.4, claimed n^-0.5", _power(0.4), _claim(0.5), both, -0.4, "heavy"),
        LossLaw("5% failures, n^-0.5", _power(0.5), _claim(0.5), ("supported", "undecided"), failures=0.05),
        LossLaw("5% failures, n^-0.4, claimed n^-0.5", _power(0.4), _claim(0.5), both, failures=0.05),
        LossLaw("n^-0.5, near-minimisers stay", _power(0.5), _claim(0.5), both, -0.5, near=lambda n: 0 * n + 1.0),
    ]  # fmt: skip


def calibrate(studies: int = 2000, seed: int = 0, only: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows, one a law as they are done: coverage of the slope interval, share of each verdict and of wrong ones.

    studies: of each law, with 200 replicates at each of 5 sizes. Shares come with their Monte Carlo standard errors
    (``mcse``). Each law has its own stream of random numbers, so that a row does not depend on which others are asked
    for (``only``: their names).
    """
    for index, law in enumerate(laws()):
        if only is not None and law.name not in only:
            continue
        rng = np.random.default_rng([seed, index])
        verdicts, covered = Counter[str](), 0
        for _ in range(studies):
            found = judge_claim("calibration", law.claim, "data", _synthetic(law, rng))
            verdicts[found.verdict] += 1
            if law.slope is not None and found.interval is not None:
                covered += found.interval[0] <= law.slope <= found.interval[1]
        share = {name: verdicts[name] / studies for name in ("supported", "refuted", "undecided")}
        wrong = sum(share[name] for name in share if name not in law.right)
        coverage = float(covered / studies) if law.slope is not None else None
        yield {
            "law": law.name, "studies": studies, "coverage": coverage, "coverage_mcse": _error(coverage, studies),
            **share, "wrong": wrong, "wrong_mcse": _error(wrong, studies), "right": list(law.right),
        }  # fmt: skip


def _error(share: float | None, count: int) -> float | None:
    return None if share is None else float(np.sqrt(share * (1 - share) / count))


def _synthetic(law: LossLaw, rng: np.random.Generator) -> Replicates:
    """Those of one study."""
    loss, near, certificate = [], [], []
    for n in SIZES:
        if law.noise == "heavy":
            factor = (1 + rng.pareto(3.0, REPLICATES)) * 2 / 3
        else:
            factor = np.sqrt(rng.chisquare(3.0, REPLICATES) * np.pi / 8)
        values = law.mean(n) * factor
        failed = rng.random(REPLICATES) < law.failures
        loss.append(np.where(failed, 1.0, values))
        near.append(loss[-1] if law.near is None else law.near(n) * factor)
        certificate.append(np.where(failed, "above_truth", "certified").astype(object))
    return Replicates(SIZES.tolist(), loss, near, certificate)
