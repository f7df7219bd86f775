"""Verdicts on all claims of a study, from its results and those of its controls."""

from __future__ import annotations

from dataclasses import replace

from moe_sim.rates.controls import compare_control, objective_gaps
from moe_sim.rates.verdicts import Replicates, Verdict, judge_claim
from moe_sim.study.schema import UNFITTED, Claim

CEILING_SHARE = 0.99  # part of its ceiling from which a Voronoi loss says nothing any more


def judge(results) -> list[Verdict]:
    """A ``Verdict`` for each claim of ``results.study``, from ``results.frame`` and ``results.controls``."""
    found = [_judge(results, claim) for claim in results.study.claims]
    key = ["n", "replicate"]
    for name, other in results.controls.items():
        # What both have: a run may have grown since its controls were run.
        common = results.frame[key].merge(other.frame[key])
        own, control = (replace(r, frame=r.frame.merge(common)) for r in (results, other))
        gaps = objective_gaps(own.frame, control.frame)
        if name in UNFITTED:
            control.frame["certificate"] = "certified"  # no fit, so none that failed
        found = [
            compare_control(v, name, _judge(own, c), _judge(control, c), gaps)
            for v, c in zip(found, results.study.claims, strict=True)
        ]
    return found


def _judge(results, claim: Claim) -> Verdict:
    study, frame = results.study, results.frame
    loss = next(loss for loss in study.problem.losses if loss.name == claim.loss)
    groups = [group for _, group in frame.groupby("n", sort=True)]
    sizes = [float(group["n"].iloc[0]) for group in groups]
    column = lambda name: [group[name].to_numpy() for group in groups]  # noqa: E731
    full = leaves = None
    if loss.kind in ("voronoi", "mass") and loss.gauge is not None:
        ceilings = [results.ceiling(n) for n in sizes]
        leaves = study.leaves_ceiling(loss, max(ceilings)) if ceilings else None
        full = [values >= CEILING_SHARE * c for values, c in zip(column("loss:voronoi"), ceilings, strict=True)]
    best, near = column(f"loss:{claim.loss}"), column(f"near:{claim.loss}")
    start, cut_short = study.problem.options.start, study.problem.options.estimator == "steps"
    replicates = Replicates(sizes, best, near, column("certificate"), full, loss.aggregate, leaves, cut_short)
    evidence, unseen = results.evidence.get(claim.loss), results.unseen.get(claim.loss, [])
    return judge_claim(study.name, claim, start, replicates, evidence, unseen)
