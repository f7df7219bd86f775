"""How a study may be fitted: estimators, start rules, limits. What validation needs to know; nothing computes here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moe_sim.models.base import Atoms, Model

LIMITS = {"least-squares": 300, "mle": 300, "em": 5000, "gradient": 5000, "steps": 1}  # default iterations
OPTIMIZERS = ("adam", "sgd", "lbfgs")

CANDIDATES = 16  # points in the box a `data` start is chosen from
SPREAD = {"truth": 0.01, "wide": 1.0}  # standard deviation of the noise about the truth

RULES = {
    "data": "quasi-random points in the parameter box (mixtures: experts of random clusters of the data, about "
    "points and along lines in turn), the best of 16 on the data, improved on a subsample",
    "wide": "the truth plus normal noise of a fixed size, whatever n is",
    "truth": "the truth itself (noise 0.01, so that atoms that share a truth can part): a control, no estimator",
}


@dataclass(frozen=True)
class FitOptions:
    """How to fit; the ``[fit]`` table of a study.

    budget: at most this many times ``starts`` starts are spent on a replicate that is not certified, those with a spare
        atom (``spare``, ``splits``) not counted.
    spread: noise of the ``wide`` and ``truth`` start rules (default in ``SPREAD``): a number for all free
        coordinates, or a number for each of those named (0 for the others).
    spread_exponent: that noise falls like n^-spread_exponent. An artefact to be studied, not to be used.
    solver: further keywords of the solver (optimizer, learning_rate, tolerance).
    """

    atoms: Atoms
    estimator: str = "least-squares"
    start: str = "data"
    starts: int = 8
    budget: int = 4
    bound: float = 6.0
    bias_bound: float = 3.0
    max_iterations: int = 300
    spread: float | dict[str, float] | None = None
    spread_exponent: float = 0.0
    solver: dict[str, Any] = field(default_factory=dict)


def estimators(model: Model) -> tuple[str, ...]:
    """Estimators that fit a model, the usual one first."""
    return tuple(model.estimators)
