"""Controls: the same study with the start as the estimator, one step, other starts. They show what a rate is worth.

A control is a study of its own on the same samples (samples do not depend on ``[fit]``). If the start itself, or one
step from it, shows the claimed rate too, then the rate says nothing of the estimator; if a start at the truth reaches
a higher likelihood, then the fits are not at the maximum.
"""

from __future__ import annotations

import copy
from typing import Any

from moe_sim.fitting.options import estimators
from moe_sim.study.schema import UNFITTED
from moe_sim.study.study import Study

CONTROLS = {
    "start": "the start itself, no step from it",
    "one-step": "one EM or solver step from the start",
    "truth": "converged from a start at the truth",
    "data": "converged from starts made of the data",
    "converged": "of a study cut short: converged from its start rule (8 starts, at most 16)",
}
RULED = ("truth", "data")  # controls that are named after the start rule they use


def names(study: Study) -> list[str]:
    """The controls that are not the study itself."""
    options = study.problem.options
    if options.estimator == "steps":
        done = {0: "start", 1: "one-step"}.get(options.max_iterations)
        return [name for name in CONTROLS if name != done]
    return [name for name in CONTROLS if name not in (options.start, "converged")]


def control(study: Study, name: str) -> Study:
    """The control of this name, called ``STUDY.NAME``. Its samples are those of the study."""
    tables = copy.deepcopy(study.tables)
    fit: dict[str, Any] = tables["fit"]
    short = name in UNFITTED
    drop = {"optimizer", "learning_rate"} if short else {"spread", "spread_exponent"} if name in RULED else set()
    if short or fit.get("estimator") == "steps":
        drop |= {"tolerance", "max_iterations"}
    fit = {key: value for key, value in fit.items() if key not in drop}
    if short:
        fit |= {"estimator": "steps", "max_iterations": int(name == "one-step"), "starts": 1, "budget": 1}
    elif fit.get("estimator") == "steps":
        fit |= {"estimator": estimators(study.problem.model)[0], "starts": 8, "budget": 2}
    if name in RULED:
        fit["start"] = name
    return study.with_tables(tables | {"name": f"{study.name}.{name}", "fit": fit})
