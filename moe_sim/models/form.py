"""What a Gaussian mixture of experts looks like in coefficients: gates and means polynomials in x, variances constant.

    p(y | x) = sum_k w_k(x) prod_j N(y_j; mean_kj(x), variance_kj)

A model that says its ``form`` and its ``coefficients`` gets the written-out passes of ``likelihood.gaussian_mixture``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

from moe_sim._engine import jnp

LOG_2PI = math.log(2 * math.pi)
Monomial = tuple[int, ...]


class Coefficients(NamedTuple):
    """gate (G, q): logit coefficients. mean (K, o, p). log_variance (K, o)."""

    gate: Any
    mean: Any
    log_variance: Any


@dataclass(frozen=True, eq=False)
class Form:
    """What a mixture looks like in its coefficients.

    experts: K, learned. dimension: d. outputs: o. gate_degree, mean_degree: degrees of the polynomials.
    joint: whether the gates are densities of x, exp(logit), and p a joint density, in place of a softmax.
    pinned: whether the last learned gate has logit 0 and no coefficients (G = K - 1, otherwise G = K).
    variance: the known variance, or None where log-variances are coefficients.
    frozen: ``(count, logits(x), outputs(x))`` of known experts with the known variance, of one x; or None.
    """

    experts: int
    dimension: int
    outputs: int
    gate_degree: int = 1
    mean_degree: int = 1
    joint: bool = False
    pinned: bool = False
    variance: float | None = None
    frozen: Any = None

    @property
    def gates(self) -> int:
        return self.experts - self.pinned

    @property
    def frozen_variance(self) -> float:
        """That of the frozen experts, which come with a known one."""
        return 1.0 if self.variance is None else self.variance

    @cached_property
    def gate_features(self) -> list[Monomial]:
        return monomials(self.dimension, self.gate_degree)

    @cached_property
    def mean_features(self) -> list[Monomial]:
        return monomials(self.dimension, self.mean_degree)

    @cached_property
    def layout(self) -> list[tuple[str, int, int, Monomial]]:
        """Kind, expert, output and feature of every coefficient, in the order of ``ravel``."""
        one = (0,) * self.dimension
        experts, outputs = range(self.experts), range(self.outputs)
        rows = [("gate", k, 0, f) for k in range(self.gates) for f in self.gate_features]
        rows += [("mean", k, j, f) for k in experts for j in outputs for f in self.mean_features]
        if self.variance is None:
            rows += [("log_variance", k, j, one) for k in experts for j in outputs]
        return rows

    def ravel(self, c: Coefficients):
        """The coefficients that are not known, as one vector."""
        parts = [c.gate, c.mean] + ([c.log_variance] if self.variance is None else [])
        return jnp.concatenate([jnp.ravel(part) for part in parts])


def monomials(dimension: int, degree: int) -> list[Monomial]:
    """Exponents of all monomials in x_1..x_d of at most ``degree``: 1, x_1, .., x_d, x_1^2, x_1 x_2, .."""
    found = []
    for total in range(degree + 1):
        for chosen in combinations_with_replacement(range(dimension), total):
            found.append(tuple(chosen.count(axis) for axis in range(dimension)))
    return found
