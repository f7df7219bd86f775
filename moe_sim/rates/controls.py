"""What controls say of a verdict: does the start, or a single step from it, do as well as the estimator?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_sim.rates.verdicts import Verdict
from moe_sim.study.schema import UNFITTED


def objective_gaps(frame, other):
    """One row for each sample that both frames have: n, replicate, gap (the log-likelihood units by which the fits of
    ``frame`` lie above those of ``other``), certificate (of ``other``)."""
    key = ["n", "replicate"]
    both = frame[[*key, "objective"]].merge(other[[*key, "objective", "certificate"]], on=key, suffixes=("", "_other"))
    return both[[*key, "certificate"]].assign(gap=both["objective_other"] - both["objective"])


def compare_control(verdict: Verdict, name: str, own: Verdict, other: Verdict, gaps) -> Verdict:
    """The verdict with one control more: how it does on the same claim, and what that warns of.

    own, other: the verdicts on the study and on the control by the samples that both have. gaps: ``objective_gaps`` of
    those; its mean by size is the ``gap`` of the control.
    Warned of: a start or a single step that does as well as the estimator, by its verdict or by its loss at the
    largest size (within two standard errors); a converged control more than half a unit above the fits.
    """
    gaps = gaps[gaps["n"].isin(other.sizes)]
    gap = gaps["gap"]
    entry = {
        "control": name, "slope": other.slope, "interval": other.interval, "verdict": other.verdict,
        "sizes": other.sizes, "mean": other.mean, "mcse": other.mcse, "gap": gap.groupby(gaps["n"]).mean().tolist(),
    }  # fmt: skip
    warnings = list(verdict.warnings)
    lacking = [n for n in verdict.sizes if n not in other.sizes]
    if lacking:
        sizes = ", ".join(f"{n:g}" for n in lacking)
        warnings.append(f"the control {name!r} lacks n = {sizes}: run again with --controls")
    # A converged control may end on a spike of the likelihood, which is no better a fit.
    above = (gap < -0.5) & (gaps["certificate"] != "degenerate")
    if name in UNFITTED and verdict.kind != "lower" and _as_well(own, other):
        what = "the start itself" if name == "start" else "a single step from the start"
        slope = "" if other.slope is None else f" (slope {other.slope:.3f})"
        warnings.append(
            f"{what} does as well{slope}, {gap[gaps['n'] == gaps['n'].max()].mean():.3g} log-likelihood units "
            "below the fits: the rate is that of the start, it does not show what the estimator does"
        )
    elif name not in UNFITTED and above.any():
        warnings.append(
            f"{above.sum()} of {len(gap)} fits lie more than half a log-likelihood unit below the control "
            f"{name!r}: they are not at the maximum"
        )
    return replace(verdict, controls=[*verdict.controls, entry], warnings=warnings)


def _as_well(own: Verdict, other: Verdict) -> bool:
    """Whether the control shows the rate too, or is as near to the truth at the largest size that both have."""
    if own.verdict == other.verdict == "supported":
        return True
    both = [
        k for k in range(len(own.sizes)) if np.isfinite([own.mean[k], own.mcse[k], other.mean[k], other.mcse[k]]).all()
    ]
    if not both:
        return False
    k = both[-1]
    return bool(other.mean[k] <= own.mean[k] + 2 * np.hypot(own.mcse[k], other.mcse[k]))
