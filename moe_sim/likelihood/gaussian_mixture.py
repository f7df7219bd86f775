"""The hot loop of Gaussian mixtures of experts: log-likelihood, score and information in one streamed pass.

Every mixture here is, for component k of x in R^d and y in R^o,

    p(y | x) = sum_k w_k(x) prod_j N(y_j; mean_kj(x), variance_kj),

its gate logits and means polynomials in x. So there are *coefficients* c in which one loop serves all models:
gate (G, q), mean (K, o, p) and log-variance (K, o). A model is a smooth map from its parameters to c, which
the chain rule carries outside the loop over the data (``objective.likelihood``).

The derivatives with respect to c are written out, since this is where the time goes: rows over a chunk are
the fast axis, components are unrolled. Score: Fisher's identity, d log p = sum_k tau_k d log p_k with the
responsibilities tau. Hessian: Louis (1982), J. R. Stat. Soc. B 44, 226-233. Tests hold both against autodiff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.models.form import LOG_2PI, Coefficients, Form, Monomial

_GROUP = 16  # rows whose likelihood ratios are multiplied before a logarithm is taken


def _times(a: Monomial, b: Monomial) -> Monomial:
    return tuple(i + j for i, j in zip(a, b, strict=True))


class _Rows:
    """Monomials of the columns of x (B, d), each (B,), made when asked for and once."""

    def __init__(self, x):
        self._columns = [x[:, axis] for axis in range(x.shape[1])]
        self._known: dict[Monomial, Any] = {}

    def __call__(self, m: Monomial):
        if m not in self._known:
            axis = next((a for a, power in enumerate(m) if power), None)
            if axis is None:
                self._known[m] = None  # the constant 1
            else:
                rest = self(tuple(power - (a == axis) for a, power in enumerate(m)))
                self._known[m] = self._columns[axis] if rest is None else rest * self._columns[axis]
        return self._known[m]

    def scaled(self, row, m: Monomial):
        feature = self(m)
        return row if feature is None else row * feature


@dataclass
class _Chunk:
    """What one chunk says at the coefficients: lists over experts (and outputs) of rows (B,), zero on padding.

    weight: ones. count: the observations that each row stands for, None where it is one.
    w, tau: gating probabilities and responsibilities of the gates that have coefficients. slope: tau r / v,
    the score of a mean. spread: tau (r^2 / v - 1) / 2, the score of a log-variance. r: y - mean. iv: 1 / v.
    """

    loglik: Any
    w: list[Any]
    tau: list[Any]
    slope: list[list[Any]]
    spread: list[list[Any]]
    r: list[list[Any]]
    iv: list[list[Any]]
    rows: _Rows
    weight: Any
    count: Any

    def counted(self, rows):
        """Rows (.., B), each as often as it was seen."""
        return rows if self.count is None else rows * self.count

    def total(self, stack):
        """Sums (m,) over the sample of rows (m, B)."""
        return stack @ (self.weight if self.count is None else self.count)


def _total(values: list[Any]):
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _largest(values: list[Any]):
    largest = values[0]
    for value in values[1:]:
        largest = jnp.maximum(largest, value)
    return largest


def read(form: Form, c: Coefficients, x, y, weight, reference=None) -> _Chunk:
    """One chunk x (B, d), y (B, o), weight (B,) of ones, and zeros for padding; or of counts, with the log-density (B,)
    that the log-likelihood is relative to."""
    rows, count = _Rows(x), None if reference is None else weight
    weight = weight if reference is None else (weight > 0).astype(float)
    experts, outputs = range(form.experts), range(form.outputs)

    def polynomial(coefficients, features):
        return _total([rows.scaled(coefficients[i], f) for i, f in enumerate(features)])

    logits = [polynomial(c.gate[k], form.gate_features) for k in range(form.gates)]
    if form.pinned:
        logits.append(jnp.zeros_like(weight))
    iv = [[jnp.exp(-c.log_variance[k, j]) for j in outputs] for k in experts]
    r = [[y[:, j] - polynomial(c.mean[k, j], form.mean_features) for j in outputs] for k in experts]
    square = [[r[k][j] * r[k][j] * iv[k][j] for j in outputs] for k in experts]
    exponents = [logits[k] - 0.5 * _total([c.log_variance[k, j] + square[k][j] for j in outputs]) for k in experts]
    if form.frozen is not None:
        known, closeness = _frozen(form, x, y)
        logits += known
        exponents += closeness

    # Largest exponents are taken out, so that nothing overflows and the ratios below stay near 1.
    top = _largest(exponents)
    part = [jnp.exp(e - top) for e in exponents]
    density = _total(part)
    gate, normaliser, highest = _gates(form, logits)
    ratio, base = (density, top) if gate is None else (density / normaliser, top - highest)
    scale = weight / density
    tau = [part[k] * scale for k in experts]
    w = [] if gate is None else [gate[k] * (weight / normaliser) for k in range(form.gates)]
    slope = [[tau[k] * r[k][j] * iv[k][j] for j in outputs] for k in experts]
    spread = [[0.5 * tau[k] * (square[k][j] - 1.0) for j in outputs] for k in experts]
    if count is None:
        loglik = _loglik(form, ratio, base, weight)
    else:
        logs = jnp.log(ratio) + (base - 0.5 * LOG_2PI * form.outputs - reference)
        loglik = jnp.sum(jnp.where(count > 0, count * logs, 0.0))
    return _Chunk(loglik, w, tau, slope, spread, r, iv, rows, weight, count)


def _frozen(form: Form, x, y) -> tuple[list[Any], list[Any]]:
    """Logits of the frozen experts, and their exponents: logit plus log-density, rows (B,)."""
    assert form.frozen is not None
    count, known_logits, known_outputs = form.frozen
    variance = form.frozen_variance
    known = jax.vmap(known_logits, out_axes=1)(x)
    gap = y.T[None] - jax.vmap(known_outputs, out_axes=2)(x)
    closeness = -0.5 * jnp.sum(gap**2, axis=1) / variance - 0.5 * form.outputs * jnp.log(variance)
    return [known[k] for k in range(count)], [known[k] + closeness[k] for k in range(count)]


def _gates(form: Form, logits: list[Any]) -> tuple[list[Any] | None, Any, Any]:
    """Gates over the largest, their sum, the largest logit; None of joint densities, which do not normalise them."""
    if form.joint:
        return None, None, None
    highest = _largest(logits)
    gate = [jnp.exp(logit - highest) for logit in logits]
    return gate, _total(gate), highest


def _loglik(form: Form, ratio, base, weight):
    """Sum of log(ratio) + base over the rows, with the constant. Logarithms are dear and each ratio lies within
    [1/K, K]: one logarithm for the product of a few."""
    ratio = jnp.where(weight > 0, ratio, 1.0)
    group = _GROUP if len(weight) % _GROUP == 0 else 1
    loglik = jnp.sum(jnp.log(jnp.prod(ratio.reshape(group, -1), axis=0))) + jnp.sum(weight * base)
    return loglik - 0.5 * LOG_2PI * form.outputs * jnp.sum(weight)


def _scores(form: Form, chunk: _Chunk) -> list[Any]:
    """Per-sample score of every coefficient, rows (B,)."""
    gates = [chunk.tau[k] if form.joint else chunk.tau[k] - chunk.w[k] for k in range(form.gates)]
    row = {"gate": lambda k, j: gates[k], "mean": lambda k, j: chunk.slope[k][j],
           "log_variance": lambda k, j: chunk.spread[k][j]}  # fmt: skip
    return [chunk.rows.scaled(row[kind](k, j), m) for kind, k, j, m in form.layout]


def first(form: Form, c: Coefficients, x, y, weight, reference=None):
    """Log-likelihood, score (C,) and the Gram matrix of the scores (C, C) of one chunk."""
    chunk = read(form, c, x, y, weight, reference)
    stack = jnp.stack([*_scores(form, chunk), chunk.weight])
    gram = chunk.counted(stack) @ stack.T
    return chunk.loglik, gram[-1, :-1], gram[:-1, :-1]


def scores(form: Form, c: Coefficients, x, y):
    """Score of every coefficient at every row: (n, C)."""
    return jnp.stack(_scores(form, read(form, c, x, y, jnp.ones(len(x))))).T


def value(form: Form, c: Coefficients, x, y, weight, reference=None):
    """Log-likelihood of one chunk."""
    return read(form, c, x, y, weight, reference).loglik


def _blocks(form: Form, entry: Callable) -> Callable:
    """``entry(a, b)`` for all pairs of ``(kind, expert, output)``, None for zero; and how they make a matrix.

    Returns the function of a chunk that sums rows against all products of features and puts them in place.
    """
    layout = form.layout
    bases = list(dict.fromkeys((kind, k, j) for kind, k, j, _ in layout))
    rows: list[Any] = []
    where: dict[Any, int] = {}
    for i, a in enumerate(bases):
        for b in bases[i:]:
            row = entry(a, b)
            if row is not None:
                where[a, b] = where[b, a] = len(rows)
                rows.append(row)
    products = sorted({_times(a[3], b[3]) for a in layout for b in layout})
    index = np.full((2, len(layout), len(layout)), -1)
    for p, one in enumerate(layout):
        for q, two in enumerate(layout):
            if (one[:3], two[:3]) in where:
                index[:, p, q] = where[one[:3], two[:3]], products.index(_times(one[3], two[3]))

    def assemble(sums):
        return jnp.where(jnp.asarray(index[0]) >= 0, sums[index[0], index[1]], 0.0)

    def features(chunk):
        return jnp.stack([jnp.ones_like(chunk.weight) if chunk.rows(m) is None else chunk.rows(m) for m in products])

    return lambda chunk: assemble(jnp.stack(rows) @ chunk.counted(features(chunk)).T)


def complete(form: Form, c: Coefficients, x, y, weight, reference=None):
    """Log-likelihood, score (C,) and the complete-data information (C, C) of one chunk: what EM needs.

    The information of gates is that of a multinomial logit (zero for joint gates, whose logits enter linearly),
    of means tau / v, of log-variances tau / 2; no two experts share a term.
    """
    chunk = read(form, c, x, y, weight, reference)
    stack = jnp.stack(_scores(form, chunk))

    def entry(a, b):
        (kind, k, j), (other, m, _) = a, b
        if kind == other == "gate" and not form.joint:
            return chunk.w[k] * ((k == m) - chunk.w[m])
        if a != b or kind == "gate":
            return None
        return chunk.tau[k] * chunk.iv[k][j] if kind == "mean" else 0.5 * chunk.tau[k]

    return chunk.loglik, chunk.total(stack), _blocks(form, entry)(chunk)


def curvature(form: Form, c: Coefficients, x, y, weight, reference=None):
    """Log-likelihood, score (C,) and what to add to the Gram of ``first`` for minus the Hessian (C, C), of one chunk.

    Louis: minus sum_k tau_k (d2 log p_k + d log p_k d log p_k').
    """
    chunk = read(form, c, x, y, weight, reference)
    stack = jnp.stack(_scores(form, chunk))

    def gate_of(k, m):
        """tau_m times the score of gate k under component m."""
        return chunk.tau[m] * ((k == m) - (0.0 if form.joint else chunk.w[k]))

    def entry(a, b):
        (kind, k, j), (other, m, i) = a, b
        if kind == "gate" and other == "gate":
            if form.joint:
                return -chunk.tau[k] if k == m else None
            tau, w = chunk.tau, chunk.w
            same = w[k] - tau[k] if k == m else 0.0
            return same + tau[k] * w[m] + w[k] * tau[m] - 2.0 * w[k] * w[m]
        if kind == "gate":
            if form.joint and k != m:
                return None
            return -gate_of(k, m) * (
                chunk.r[m][i] * chunk.iv[m][i] if other == "mean" else 0.5 * (_square(chunk, m, i) - 1.0)
            )
        if k != m:
            return None
        if kind == "mean" and other == "mean":
            outer = chunk.slope[k][j] * chunk.r[k][i] * chunk.iv[k][i]
            return chunk.tau[k] * chunk.iv[k][j] - outer if i == j else -outer
        if kind == "mean":
            outer = chunk.spread[k][i] * chunk.r[k][j] * chunk.iv[k][j]
            return chunk.slope[k][j] - outer if i == j else -outer
        outer = 0.5 * chunk.spread[k][j] * (_square(chunk, k, i) - 1.0)
        return 0.5 * chunk.tau[k] * _square(chunk, k, j) - outer if i == j else -outer

    return chunk.loglik, chunk.total(stack), _blocks(form, entry)(chunk)


def _square(chunk: _Chunk, k: int, j: int):
    return chunk.r[k][j] ** 2 * chunk.iv[k][j]
