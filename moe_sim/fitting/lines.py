"""Clusterwise linear regression (Spaeth 1979, Computing 22, 367-373): how much of the data a few lines leave."""

from __future__ import annotations

import numpy as np

_STARTS, _ROUNDS = 20, 30
_LEAST = 1e-16  # of a variance of 1: below is rounding


def left_by_lines(x: np.ndarray, y: np.ndarray, lines: int) -> float:
    """Mean square of what the best of so many lines leaves at a row, of the output where that is least.

    x (n, d), y (n, outputs), standardised. Each row belongs to the line that is nearest, each line is fitted to its
    rows; the best of a few starts from random rows, at most 1. It is pooled over all rows, so that a line through few
    of them does not make it small, and it is a part of the noise, whatever the lines explain.

    >>> x = np.linspace(-1.0, 1.0, 100)[:, None]
    >>> y = np.where(np.arange(100)[:, None] % 2, 3.0 * x, -3.0 * x) + 1e-3 * np.cos(50.0 * x)
    >>> left_by_lines(x, y, 1) > 0.1, left_by_lines(x, y, 2) < 1e-6
    (True, True)
    """
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(len(x)), x])
    few = min(len(x), design.shape[1] + 1)
    best = np.ones(y.shape[1])
    for _ in range(_STARTS):
        rows = [rng.choice(len(x), few, replace=False) for _ in range(lines)]
        nearest = None
        for _ in range(_ROUNDS):
            found = [np.linalg.lstsq(design[r], y[r], rcond=None)[0] for r in rows]
            square = np.stack([(y - design @ line) ** 2 for line in found])
            now = np.argmin(square.sum(axis=2), axis=0)
            if nearest is not None and np.array_equal(now, nearest):
                break
            nearest = now
            rows = [r if len(r) >= few else rng.choice(len(x), few, replace=False)
                    for r in (np.flatnonzero(now == k) for k in range(lines))]  # fmt: skip
        left = np.take_along_axis(square, now[None, :, None], axis=0)[0].mean(axis=0)
        best = left if left.sum() < best.sum() else best
    return float(max(best.min(), _LEAST))
