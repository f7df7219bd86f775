"""Verdicts: what slopes of log mean loss on log n say of a claim.

numpy and scipy only. Everything a verdict depends on is in the claim, declared before the run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moe_sim.rates.slopes import BENT, Slope, dropping, fit_slope, half_width_with, local_slopes, summarise, usable
from moe_sim.study.schema import FEWEST_SIZES, LARGEST, Claim

FEWEST_CERTIFIED = 0.5  # share of the fits of a size below which no rate is read off
SATURATED = 0.05  # share of such replicates above which no rate is read off
RECALLED = "; the claim is recalled from memory, its paper's text was not read"
_FURTHEST = 30  # sizes beyond the last that are considered when asking how far to go


@dataclass(frozen=True)
class Verdict:
    """What came out for one claim; ``to_json`` has the documented keys. ``reason`` is a sentence.

    mark: whose the claim is, see ``Claim``.
    excess: the slope of the mean loss over the claimed function, ``tail`` that of the largest sizes alone where the
    claimed function clearly does not fit. local_slopes, dropping: see ``slopes``; they are shown, and decide nothing.
    unseen: directions of the truth that samples of these sizes say nothing of, or another measure with its function
    (``theory.unseen``): no rate is read off.
    controls, warnings: see ``compare_control``.
    replicates_needed, sizes_needed: replicates a size, or largest size, at which an undecided claim would be decided
    if the slopes stayed where they are; None where neither would.
    """

    claim: str
    loss: str
    kind: str
    exponent: float | None
    log_power: float
    mark: str
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
    requested: int
    certified: float
    uncertified: dict[str, int]
    slope: float | None
    interval: list[float] | None
    lack_of_fit: float | None
    excess: dict[str, Any] | None
    tail: dict[str, Any] | None
    local_slopes: list[dict[str, Any]]
    dropping: list[dict[str, Any]]
    near_minimiser: dict[str, Any]
    saturated: float
    imputed: dict[str, str]
    replicates_needed: int | None
    sizes_needed: float | None
    evidence: dict[str, Any] | None
    unseen: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    warnings: list[str]

    @property
    def accounting(self) -> str:
        return accounting(round(self.certified * self.requested), self.uncertified)

    def to_json(self) -> dict[str, Any]:
        return finite(asdict(self))


@dataclass(frozen=True)
class _Reading:
    """One way of reading the replicates: aggregated losses over the window, and the verdict they give alone.

    places: of the sizes that a slope can be made of. tail: the reading of the largest sizes, where the claimed
    function does not fit all of them.
    """

    sizes: list[float]
    mean: list[float]
    mcse: list[float]
    places: np.ndarray
    slope: Slope | None
    excess: Slope | None
    verdict: str
    tail: _Reading | None = None


def _read(claim: Claim, sizes, columns: list[np.ndarray], aggregate: str, shape: bool = True) -> _Reading:
    summary = [summarise(column, aggregate) for column in columns]
    return _read_means(claim, np.asarray(sizes, float), [s[0] for s in summary], [s[1] for s in summary], shape)


def _read_means(claim: Claim, sizes, mean, mcse, shape: bool) -> _Reading:
    places = usable(mean, mcse)
    if len(places) < FEWEST_SIZES:
        return _Reading(list(sizes), list(mean), list(mcse), places, None, None, "undecided")
    n, m, e = (np.asarray(v, float)[places] for v in (sizes, mean, mcse))
    excess = fit_slope(n, m, e, claim.log_shape(n))
    verdict, tail = _compare(claim, excess), None
    if shape and excess.lack_of_fit < BENT and len(n) > 3:
        # A bend: what the small sizes show is not what the large ones do, and the claim is about those.
        first = min(len(n) // 2, len(n) - 3)
        tail = _read_means(claim, n[first:], m[first:], e[first:], shape)
        assert tail.excess is not None  # it has three sizes at least
        if tail.verdict != verdict or (verdict == "refuted" and _comes_closer(excess, tail.excess)):
            verdict = "undecided"
    return _Reading(list(sizes), list(mean), list(mcse), places, fit_slope(n, m, e), excess, verdict, tail)


def _comes_closer(excess: Slope, tail: Slope) -> bool:
    """Whether the largest sizes lie clearly nearer to the claimed slope than all of them: the rate may yet come."""
    return tail.high < excess.slope if excess.slope > 0 else tail.low > excess.slope


def _compare(claim: Claim, excess: Slope) -> str:
    """The verdict of a slope over the claimed function."""
    margin = claim.tolerance
    if claim.kind == "lower":
        return "undecided"
    if excess.low > margin or (claim.kind == "exact" and excess.high < -margin):
        return "refuted"
    if excess.high <= margin and (claim.kind == "upper" or excess.low >= -margin):
        return "supported"
    return "undecided"


@dataclass(frozen=True)
class Replicates:
    """What replicates say of one loss. One entry a size, arrays (R_n,): the loss of the best fit, that of the worst
    near-minimiser, and names of certificates.

    full: whether the Voronoi loss is at its ceiling, if it has one. aggregate: ``mean`` or ``rms``. leaves: the n from
        which it cannot be there for a spare atom alone, None where that is not known. cut_short: whether the estimator
        is a control that stops early, so that its fits are not meant to be certified.
    """

    sizes: list[float]
    loss: list[np.ndarray]
    near: list[np.ndarray]
    certificate: list[np.ndarray]
    full: list[np.ndarray] | None = None
    aggregate: str = "mean"
    leaves: float | None = None
    cut_short: bool = False

    def within(self, window: tuple[float, float]) -> Replicates:
        """Those of the sizes in a window."""
        inside = [k for k, n in enumerate(self.sizes) if window[0] <= n <= window[1]]
        sizes = [self.sizes[k] for k in inside]
        loss, near, certificate = ([v[k] for k in inside] for v in (self.loss, self.near, self.certificate))
        full = None if self.full is None else [self.full[k] for k in inside]
        return replace(self, sizes=sizes, loss=loss, near=near, certificate=certificate, full=full)

    def imputed(self, reduce) -> list[np.ndarray]:
        """Losses with all that are not certified set to the ``reduce`` of the certified ones of their size."""
        pairs = zip(self.loss, self.certificate, strict=True)
        return [_impute(values, names == "certified", reduce) for values, names in pairs]

    @property
    def least(self) -> int:
        """Replicates at the size that has fewest."""
        return min((len(v) for v in self.loss), default=0)

    @property
    def least_certified(self) -> tuple[float, float]:
        """The share of certified fits at the size where that is least, and the size."""
        shares = [float(np.mean(names == "certified")) if len(names) else 1.0 for names in self.certificate]
        return min(zip(shares, self.sizes, strict=True), default=(1.0, 0.0))

    @property
    def saturated(self) -> float:
        """The share of Voronoi losses at their ceiling."""
        return float(np.mean(np.concatenate(self.full))) if self.full else 0.0


def judge_claim(
    study: str, claim: Claim, start: str, replicates: Replicates, evidence=None, unseen=()
) -> Verdict:  # fmt: skip
    """The ``Verdict`` on one claim from replicates; evidence: of a lower-bound claim, unseen: directions that samples
    do not see, as ``Results`` has them.

    Where more than 5% of the losses are at their ceiling, no cell and no translation means anything: the sizes are too
    small to show a rate of the parameters, fast or slow, and the verdict is undecided.
    Where fewer than half of the fits of a size are certified no rate is read off either: that is not the estimator,
    unless it is ``cut_short``.
    An uncertified replicate keeps its value in the mean; the verdict must also hold when all of them are set
    to the least, and to the largest, certified loss of their size. It must hold for the near-minimisers too:
    a fit that no sample can tell from the best one is as good an estimate.
    """
    inside = replicates.within(claim.window)
    sizes, aggregate = inside.sizes, inside.aggregate
    main, near = (_read(claim, sizes, columns, aggregate) for columns in (inside.loss, inside.near))
    # Imputed values are extremes: they have a slope to be compared, but no shape to be judged.
    extremes = {"best": np.nanmin, "worst": np.nanmax}
    counts = Counter(np.concatenate(inside.certificate).tolist()) if sizes else Counter()
    requested = sum(counts.values())
    certified = counts.pop("certified", 0)
    if certified < requested:
        imputed = {name: _read(claim, sizes, inside.imputed(f), aggregate, shape=False) for name, f in extremes.items()}
    else:
        imputed = dict.fromkeys(extremes, _read_means(claim, sizes, main.mean, main.mcse, shape=False))
    imputations = imputed if certified < requested else {}
    verdict, reason = _combine(claim, main, near, imputations, evidence, len(sizes))
    hopeful = verdict == "undecided" and all(r.verdict == "supported" for r in imputations.values())
    more, further = _needed(claim, [main, near], inside.least) if hopeful else (None, None)
    if inside.saturated > SATURATED and claim.kind != "lower":
        verdict, more, further = "undecided", None, None
        reason = (
            f"{inside.saturated:.0%} of the Voronoi losses are at their ceiling, where all translations of the gates "
            "tie: the sizes are too small to show a rate of the parameters"
        )
        if inside.leaves is not None:
            reason += f" (a spare atom of mass n^-1/2 at the edge of the box leaves it at n = {inside.leaves:.0e})"
    if verdict == "refuted" and claim.mark == "recalled":
        reason += RECALLED
    share, worst = inside.least_certified
    if share < FEWEST_CERTIFIED and claim.kind != "lower" and not inside.cut_short:
        verdict, more, further = "undecided", None, None
        reason = (
            f"{share:.0%} of the fits of n = {worst:g} are certified: what the estimator does there is not known, "
            "raise fit.starts or fit.budget"
        )
    hidden = _hidden(unseen, sizes) if claim.kind != "lower" else []
    if hidden:
        verdict, more, further = "undecided", None, None
        reason = _not_identified(hidden)
    points = [np.asarray(v, float)[main.places] for v in (sizes, main.mean, main.mcse)]
    return Verdict(
        claim=study, loss=claim.loss, kind=claim.kind, exponent=claim.exponent, log_power=claim.log_power,
        mark=claim.mark, margin=claim.tolerance, verdict=verdict, reason=reason + _wishes(more, further), start=start,
        aggregate=aggregate, sizes=[float(n) for n in sizes], mean=main.mean, mcse=main.mcse, replicates=inside.least,
        without_value=int(sum(np.sum(~np.isfinite(v)) for v in inside.loss)),
        requested=requested, certified=certified / requested if requested else 0.0, uncertified=dict(counts),
        **_sloped(main), lack_of_fit=main.slope.lack_of_fit if main.slope else None,
        excess=main.excess.to_json() if main.excess else None, tail=_tail(main),
        local_slopes=local_slopes(*points), dropping=dropping(*points),
        near_minimiser={"mean": near.mean, "mcse": near.mcse, "verdict": near.verdict, **_sloped(near)},
        saturated=inside.saturated, imputed={name: r.verdict for name, r in imputed.items()},
        replicates_needed=more, sizes_needed=further, evidence=evidence, unseen=hidden, controls=[], warnings=[],
    )  # fmt: skip


def _hidden(unseen, sizes: list[float]) -> list[dict[str, Any]]:
    """The directions that fewer sizes see than a slope needs."""
    seen = [sum(n >= u["seen_from"] for n in sizes) if u["seen_from"] is not None else 0 for u in unseen]
    return [u for u, count in zip(unseen, seen, strict=True) if count < FEWEST_SIZES]


def _not_identified(hidden: list[dict[str, Any]]) -> str:
    """The least known of these directions, in words: what the data leave open, and from which size they would not."""
    first = min(hidden, key=lambda u: (u["seen_from"] is not None or u["atoms"] is not None, u["atoms"] is None))
    if first["seen_from"] is None:
        shown = "gives the function of the truth, to rounding"
    else:
        shown = (
            f"gives a function {first['distance']:.2g} away, which samples show from n = {first['seen_from']:.2g} on"
        )
    measure = f"a measure at a loss of {first['moved']:.2g} {shown}, so there is no rate to be read off"
    if first.get("measure"):
        values = ", ".join(f"{name} = {_short(value)}" for name, value in first["measure"].items())
        return f"not identified: {measure} ({values})"
    if first["atoms"] is None:
        plain = [u for u in hidden if u["seen_from"] is None and u["atoms"] is None and not u.get("measure")]
        others = [u["direction"] for u in plain if u is not first]
        also = f", nor along {'; '.join(others)}" if others else ""
        return f"not identified along {first['direction']}{also}: {measure}"
    one, other = first["atoms"]
    return f"true atoms {one} and {other}, {first['apart']:.3g} apart, cannot be told apart at these n: {measure}"


def _short(value: Any) -> Any:
    """Nested lists of numbers with four digits each."""
    return [_short(v) for v in value] if isinstance(value, list) else float(f"{value:.4g}")


def _sloped(reading: _Reading) -> dict[str, Any]:
    """The slope of a reading and its interval, None where there is none."""
    slope = reading.slope
    return {"slope": slope.slope if slope else None, "interval": slope.interval if slope else None}


def _wishes(more: int | None, further: float | None) -> str:
    """What would decide, as the end of a reason."""
    wishes = [] if more is None else [f"{more:,} replicates a size"]
    wishes += [] if further is None else [f"sizes up to {further:.2g}, in the claim's window too,"]
    return f"; {' or '.join(wishes)} would decide, if the slopes stayed where they are" if wishes else ""


def _impute(values, good, reduce):
    if good.all() or not np.isfinite(values[good]).any():
        return values
    return np.where(good, values, reduce(values[good]))


def _combine(claim, main, near, imputations, evidence, sizes) -> tuple[str, str]:
    if claim.kind == "lower":
        if evidence and evidence["separated"]:
            return "supported", (
                f"two measures of the parameter set lie {evidence['loss']:.3g} apart in this loss and give functions "
                f"{evidence['function_distance']:.1e} apart: no estimator tells them apart at any n{_risk(evidence)}"
            )
        return "undecided", "no pair of measures with the same function was found, and a slope proves no lower bound"
    if main.slope is None or near.slope is None:
        return "undecided", f"{sizes} sizes with a positive loss in the window: a slope needs at least {FEWEST_SIZES}"
    readings = {"the mean loss": main, "the worst near-minimiser": near}
    imputations = {f"uncertified replicates set to the {name}": r for name, r in imputations.items()}
    refuting = [name for name, r in readings.items() if r.verdict == "refuted"]
    # Imputations are read without a shape, so they are held against the mean loss read so.
    if refuting and all(r.verdict == _compare(claim, main.excess) for r in imputations.values()):
        fast = main.excess is not None and main.excess.slope < 0
        pace = "faster" if fast and claim.kind == "exact" else "slower"
        return "refuted", f"{' and '.join(refuting)} {'fall' if len(refuting) > 1 else 'falls'} {pace} than claimed"
    unsure = {name: r for name, r in (readings | imputations).items() if r.verdict != "supported"}
    if unsure:
        bent = any(r.tail is not None for name, r in unsure.items() if name in readings)
        reason = f"does not hold for {' and '.join(unsure)}"
        if bent:
            reason += (
                " (it bends: the largest sizes alone say something else, or not enough, or come closer to the claim)"
            )
        elif not set(unsure) & set(readings):
            reason += ": raise fit.starts or fit.budget until fewer are"
        return "undecided", reason
    return "supported", "holds for the mean loss, the worst near-minimiser and both imputations"


def _risk(evidence: dict[str, Any]) -> str:
    """What that costs, in words, if a bound is known."""
    risk, assumption = evidence.get("risk"), evidence.get("assumption")
    bound = "" if risk is None else f", and its risk for one of them is at least {risk:.3g} at every n"
    return bound + ("" if assumption is None else f" (where {assumption})")


def _tail(reading: _Reading) -> dict[str, Any] | None:
    tail = reading.tail
    if tail is None or tail.excess is None:  # none, or (for the type checker) one of fewer than three sizes
        return None
    return {"from": tail.sizes[0], **tail.excess.to_json(), "verdict": tail.verdict}


def _needed(claim: Claim, readings: list[_Reading], replicates: int) -> tuple[int | None, float | None]:
    """Replicates a size, and the largest size, that would decide if the slopes stayed where they are.

    None for what would not do in reason: more than 1e4 times the replicates, sizes beyond 1e15.
    """
    if claim.kind == "lower":
        return None, None
    factor, largest = 1.0, 0.0
    for r in readings:
        if r.excess is None:
            return None, None
        edges = [claim.tolerance] if claim.kind == "upper" else [claim.tolerance, -claim.tolerance]
        gap = min(abs(r.excess.slope - edge) for edge in edges)
        half = (r.excess.high - r.excess.low) / 2
        if half <= gap:
            continue
        # An interval that was widened because the line does not fit stays as wide, whatever the replicates.
        bent = r.excess.lack_of_fit < BENT
        factor = max(factor, (half / gap) ** 2 if gap > 0 and not bent else np.inf)
        largest = max(largest, _further(r, gap))
    count = int(np.ceil(factor * replicates)) if 1 < factor < 1e4 else None
    return count, largest if 0 < largest <= LARGEST else None


def _further(reading: _Reading, gap: float) -> float:
    """The largest size with which half the interval is at most ``gap``, sizes and errors going on as they are."""
    assert reading.excess is not None
    n, mean, mcse = (np.asarray(v, float)[reading.places] for v in (reading.sizes, reading.mean, reading.mcse))
    # Where the line does not fit, the interval has been widened, and stays so.
    wider = (reading.excess.high - reading.excess.low) / 2 / half_width_with(n, mean, mcse, 0)
    for more in range(1, _FURTHEST + 1):
        if wider * half_width_with(n, mean, mcse, more) <= gap:
            return float(n[-1] * (n[-1] / n[-2]) ** more)
    return np.inf


def accounting(certified: int, uncertified: dict[str, int], what: str = "") -> str:
    """Certified fits out of all that were asked for, and every reason why not: the numbers add up."""
    reasons = ", ".join(f"{count:,} {name}" for name, count in uncertified.items())
    return f"{certified:,} of {certified + sum(uncertified.values()):,}{what}{f' ({reasons})' if reasons else ''}"


def finite(value):
    """NaN has no place in JSON: null instead, at any depth; numpy numbers become Python's."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
