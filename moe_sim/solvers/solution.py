"""What every solver returns, and what its statuses mean."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from jaxtyping import Array, Float, Int

TOLERANCE = 1e-6  # of one log-likelihood unit: optimisation error stays far below sampling error


class Status(IntEnum):
    """How a solver stopped. ``str(status)`` is the name used in tables; ``explain`` a sentence for each."""

    CONVERGED = 0
    FLAT = 1
    MAX_ITERATIONS = 2
    STALLED = 3
    NOT_FINITE = 4
    EARLY = 5

    def __str__(self) -> str:
        return self.name.lower()

    def explain(self) -> str:
        return {
            Status.CONVERGED: "A full step promises less than the tolerance, and no direction curves downwards.",
            Status.FLAT: "A flat valley: the last steps together gained less than 0.001 log-likelihood units, and the "
            "next promises less than a tenth of that.",
            Status.MAX_ITERATIONS: "The iteration limit came first: raise fit.max_iterations or use other starts.",
            Status.STALLED: "No step lowers the objective although the model promises it: rounding, or a function "
            "that is not smooth here. Believe the certificate, not the point.",
            Status.EARLY: "One EM step changed the log-likelihood by less than fit.tolerance times its size. "
            "That is no sign of an optimum: believe the certificate.",
            Status.NOT_FINITE: "The objective or its gradient is not finite: move the start or tighten the bounds.",
        }[self]


class Solution(NamedTuple):
    """A solver's answer for one start.

    theta: the parameters, shape (P,). objective: the objective there, in log-likelihood units.
    status: a ``Status``. iterations: steps tried. passes: passes over the data, curvature passes included.
    """

    theta: Float[Array, " P"]
    objective: Float[Array, ""]
    status: Int[Array, ""]
    iterations: Int[Array, ""]
    passes: Int[Array, ""]
