"""Rates and verdicts: slopes of log mean loss on log n, their intervals, and what they say of a claim.

numpy and scipy only. Everything a verdict depends on is in the claim, declared before the run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtri

LEVEL = 0.95
BENT = 0.01  # p-value of the straight line below which its interval is widened
FULL = 0.99  # part of its ceiling from which a Voronoi loss says nothing any more
SATURATED = 0.05  # share of such replicates above which no rate is read off
MARGIN = 0.1  # default margin of a claim, as a part of its exponent


@dataclass(frozen=True)
class Claim:
    """``loss`` falls like (log n)^log_power n^-exponent over ``window``.

    kind: ``upper`` (at least so fast), ``exact`` (just so fast) or ``lower`` (no estimator has a polynomial
    rate; no slope can show that, it is judged by a pair of measures that no sample tells apart).
    margin: slopes within it of the claimed one count as the claimed one; a tenth of the exponent by default.
    """

    loss: str
    kind: str = "upper"
    exponent: float | None = None
    log_power: float = 0.0
    window: tuple[float, float] = (0.0, float("inf"))
    margin: float | None = None

    @property
    def tolerance(self) -> float:
        return self.margin if self.margin is not None else MARGIN * (self.exponent or 0.0)

    def log_shape(self, n) -> np.ndarray:
        """Logarithm of the claimed function, up to a constant: log_power log log n - exponent log n."""
        logs = np.log(np.asarray(n, float))
        return self.log_power * np.log(logs) - (self.exponent or 0.0) * logs


@dataclass(frozen=True)
class Slope:
    """A weighted least-squares slope of log loss on log n, and its interval at ``LEVEL``.

    lack_of_fit: p-value of the straight line (chi-square, Monte Carlo errors taken as known).
    """

    slope: float
    low: float
    high: float
    lack_of_fit: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]


def summarise(values: np.ndarray, aggregate: str) -> tuple[float, float]:
    """Aggregate of replicates and its Monte Carlo standard error; replicates without a value (NaN) left out.

    ``mean``: sd/sqrt(R). ``rms``: by the delta method. NaN when fewer than two replicates have a value.
    """
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return np.nan, np.nan
    if aggregate == "rms":
        square, error = summarise(values**2, "mean")
        return (np.sqrt(square), error / (2 * np.sqrt(square))) if square > 0 else (0.0, 0.0)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def fit_slope(n, mean, mcse, log_shape=None) -> Slope:
    """Slope of log(mean) - log_shape on log(n), weights and interval from the Monte Carlo errors.

    Where a straight line clearly does not fit (``BENT``), the interval is widened by the Birge ratio, the root of
    chi-square over its degrees of freedom: the errors are then not those of Monte Carlo alone.
    Over 2,000 synthetic studies of 6 sizes the interval covered 0.951 to 0.956 (ordinary least squares with
    1.96 covered 0.88), so errors are propagated, not estimated from six residuals. Needs three sizes.
    """
    x = np.log(np.asarray(n, float))
    y = np.log(mean) - (0.0 if log_shape is None else log_shape)
    error = np.asarray(mcse) / np.asarray(mean)
    weight = 1 / error**2
    centred = x - np.average(x, weights=weight)
    information = np.sum(weight * centred**2)
    slope = float(np.sum(weight * centred * y) / information)
    half = float(ndtri((1 + LEVEL) / 2) / np.sqrt(information))
    residual = y - np.average(y, weights=weight) - slope * centred
    square = float(np.sum((residual / error) ** 2))
    lack = float(chdtrc(len(x) - 2, square))
    if lack < BENT:
        half *= np.sqrt(square / (len(x) - 2))
    return Slope(slope, slope - half, slope + half, lack)


@dataclass(frozen=True)
class Verdict:
    """What came out for one claim; ``to_json`` has the documented keys. ``reason`` is a sentence."""

    claim: str
    loss: str
    kind: str
    exponent: float | None
    log_power: float
    margin: float
    verdict: str
    reason: str
    start: str
    aggregate: str
    sizes: list[float]
    mean: list[float]
    mcse: list[float]
    replicates: int
    without_value: int
    certified: float
    uncertified: dict[str, int]
    slope: float | None
    interval: list[float] | None
    lack_of_fit: float | None
    near_minimiser: dict[str, Any]
    saturated: float
    imputed: dict[str, str]
    replicates_needed: int | None
    evidence: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return _finite(asdict(self))


@dataclass(frozen=True)
class _Reading:
    """One way of reading the replicates: aggregated losses over the window, and the verdict they give alone."""

    mean: list[float]
    mcse: list[float]
    slope: Slope | None
    excess: Slope | None
    verdict: str


def _read(claim: Claim, sizes, columns: list[np.ndarray], aggregate: str) -> _Reading:
    summary = [summarise(column, aggregate) for column in columns]
    mean, mcse = [s[0] for s in summary], [s[1] for s in summary]
    usable = [k for k in range(len(sizes)) if mean[k] > 0 and mcse[k] > 0 and np.isfinite(mean[k])]
    if len(usable) < 3:
        return _Reading(mean, mcse, None, None, "undecided")
    n, m, e = (np.asarray(v, float)[usable] for v in (sizes, mean, mcse))
    excess = fit_slope(n, m, e, claim.log_shape(n))
    margin = claim.tolerance
    if claim.kind == "lower":
        verdict = "undecided"
    elif excess.low > margin or (claim.kind == "exact" and excess.high < -margin):
        verdict = "refuted"
    elif excess.high <= margin and (claim.kind == "upper" or excess.low >= -margin):
        verdict = "supported"
    else:
        verdict = "undecided"
    return _Reading(mean, mcse, fit_slope(n, m, e), excess, verdict)


def judge_claim(
    study: str, claim: Claim, start: str, aggregate: str, sizes, loss, near, certificate, evidence=None, full=None
):  # fmt: skip
    """The ``Verdict`` on one claim from replicates.

    sizes: those of the study. loss, near, certificate: one array (R_n,) a size, of the loss of the best fit,
    of the worst near-minimiser, and of certificate names. evidence: of a lower-bound claim (``theory``).
    full: one boolean array (R_n,) a size, whether the Voronoi loss is at its ceiling, if it has one: no cell and no
    translation means anything there. With more than 5% of those the sizes are too small to show a rate of the
    parameters, fast or slow, and the verdict is undecided.
    An uncertified replicate keeps its value in the mean; the verdict must also hold when all of them are set
    to the least, and to the largest, certified loss of their size. It must hold for the near-minimisers too:
    a fit that no sample can tell from the best one is as good an estimate.
    """
    inside = [k for k, n in enumerate(sizes) if claim.window[0] <= n <= claim.window[1]]
    sizes, loss, near, certificate = ([v[k] for k in inside] for v in (sizes, loss, near, certificate))
    good = [c == "certified" for c in certificate]

    def imputed(reduce):
        return [_impute(values, ok, reduce) for values, ok in zip(loss, good, strict=True)]

    main = _read(claim, sizes, loss, aggregate)
    worst_near = _read(claim, sizes, near, aggregate)
    low, high = (_read(claim, sizes, imputed(f), aggregate) for f in (np.nanmin, np.nanmax))
    counts = Counter(np.concatenate(certificate).tolist()) if sizes else Counter()
    requested = sum(counts.values())
    certified = counts.pop("certified", 0)
    verdict, reason = _combine(claim, main, worst_near, low, high, evidence, len(sizes))
    saturated = float(np.mean(np.concatenate([full[k] for k in inside]))) if full is not None and inside else 0.0
    if saturated > SATURATED and claim.kind != "lower":
        verdict = "undecided"
        reason = (
            f"{saturated:.0%} of the Voronoi losses are at their ceiling, where all translations of the gates tie: "
            "the sizes are too small to show a rate of the parameters"
        )
    return Verdict(
        claim=study, loss=claim.loss, kind=claim.kind, exponent=claim.exponent, log_power=claim.log_power,
        margin=claim.tolerance, verdict=verdict, reason=reason, start=start, aggregate=aggregate,
        sizes=[float(n) for n in sizes], mean=main.mean, mcse=main.mcse,
        replicates=min((len(v) for v in loss), default=0),
        without_value=int(sum(np.sum(~np.isfinite(v)) for v in loss)),
        certified=certified / requested if requested else 0.0, uncertified=dict(counts),
        slope=main.slope.slope if main.slope else None, interval=main.slope.interval if main.slope else None,
        lack_of_fit=main.slope.lack_of_fit if main.slope else None,
        near_minimiser={
            "mean": worst_near.mean, "mcse": worst_near.mcse, "verdict": worst_near.verdict,
            "slope": worst_near.slope.slope if worst_near.slope else None,
            "interval": worst_near.slope.interval if worst_near.slope else None,
        },
        saturated=saturated,
        imputed={"best": low.verdict, "worst": high.verdict},
        replicates_needed=_needed(claim, [main, worst_near], loss, verdict), evidence=evidence,
    )  # fmt: skip


def _impute(values, good, reduce):
    if good.all() or not np.isfinite(values[good]).any():
        return values
    return np.where(good, values, reduce(values[good]))


def _combine(claim, main, near, low, high, evidence, sizes) -> tuple[str, str]:
    if claim.kind == "lower":
        if evidence and evidence["separated"]:
            return "supported", (
                f"two measures of the parameter set lie {evidence['loss']:.3g} apart in this loss and give functions "
                f"{evidence['function_distance']:.1e} apart: no estimator tells them apart at any n"
            )
        return "undecided", "no pair of measures with the same function was found, and a slope proves no lower bound"
    if main.slope is None or near.slope is None:
        return "undecided", f"{sizes} sizes with a positive loss in the window: a slope needs at least 3"
    readings = {"the mean loss": main, "the worst near-minimiser": near}
    imputations = {"uncertified replicates set to the best": low, "uncertified replicates set to the worst": high}
    refuting = [name for name, r in readings.items() if r.verdict == "refuted"]
    if refuting and all(r.verdict == main.verdict for r in imputations.values()):
        fast = main.excess is not None and main.excess.slope < 0
        pace = "faster" if fast and claim.kind == "exact" else "slower"
        return "refuted", f"{' and '.join(refuting)} {'fall' if len(refuting) > 1 else 'falls'} {pace} than claimed"
    unsure = [name for name, r in (readings | imputations).items() if r.verdict != "supported"]
    if unsure:
        return "undecided", f"does not hold for {' and '.join(unsure)}"
    return "supported", "holds for the mean loss, the worst near-minimiser and both imputations"


def _needed(claim, readings, loss, verdict) -> int | None:
    """Replicates a size that would decide, if the slopes stayed where they are; None when none would."""
    if verdict != "undecided" or claim.kind == "lower":
        return None
    factor = 1.0
    for r in readings:
        if r.excess is None:
            return None
        half = (r.excess.high - r.excess.low) / 2
        edges = [claim.tolerance] if claim.kind == "upper" else [claim.tolerance, -claim.tolerance]
        gap = min(abs(r.excess.slope - edge) for edge in edges)
        factor = max(factor, (half / gap) ** 2 if gap > 0 else np.inf)
    count = min(len(v) for v in loss)
    return int(np.ceil(factor * count)) if 1 < factor < 1e4 else None


def judge(results) -> list[Verdict]:
    """A ``Verdict`` for each claim of ``results.study``, from ``results.frame``."""
    study, frame = results.study, results.frame
    losses = {loss.name: loss for loss in study.problem.losses}
    groups = [group for _, group in frame.groupby("n", sort=True)]
    sizes = [float(group["n"].iloc[0]) for group in groups]
    column = lambda name: [group[name].to_numpy() for group in groups]  # noqa: E731
    full = [values >= FULL * study.ceiling for values in column("loss:voronoi")] if study.ceiling else None
    return [
        judge_claim(
            study.name,
            claim,
            study.problem.options.start,
            losses[claim.loss].aggregate,
            sizes,
            column(f"loss:{claim.loss}"),
            column(f"near:{claim.loss}"),
            column("certificate"),
            results.evidence.get(claim.loss),
            full if losses[claim.loss].kind != "function" else None,
        )
        for claim in study.claims
    ]


def _finite(value):
    """NaN has no place in JSON: null instead, at any depth; numpy numbers become Python's."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
