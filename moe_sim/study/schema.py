"""What the tables of a study file say: one dataclass a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNFITTED = ("start", "one-step")  # controls that are no fits
MARGIN = 0.1  # default margin of a claim, as a part of its exponent
LARGEST = 10**15  # size that a study may have: counts stay exact in double precision


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
