"""Cells: a point of x with a value of y, on which counts are an exact sample of a density, whatever n is.

Labels and counts have their cells by nature. Real y lie on a lattice, of a spacing at which the density adds up to 1 to
rounding (the trapezoidal rule; Poisson summation gives 2 exp(-2 pi^2 s^2 / h^2) for a normal of deviation s and spacing
h): that lattice model is sampled and fitted. Joint densities have x on a lattice too (theory_notes/sampling.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.data.quadrature import log_densities
from moe_sim.data.samples import ROWS_PER_CHUNK, CountedSample
from moe_sim.errors import InputError
from moe_sim.models.base import Density, Parameters
from moe_sim.models.coordinates import free_names
from moe_sim.models.domains import POSITIVE, SPD
from moe_sim.models.support import RANGE, Real, spreads

SPACING = 0.75  # of a lattice, in the least deviation that a fit may have: normals then add up to 1 within 1.2e-15
LEAST = 1e-20  # probability of a cell that is kept: all others together are below rounding
MOST_CELLS = 2**19  # that are kept
MOST_TRIED = 2**24  # that are looked at
FEW_CELLS = 2**14  # that integrals are taken over
_FEW_CHUNKS = 8  # of occupied cells, for which samples have room in any case
_BLOCK = 2**16  # cells looked at together
_UNNORMALISED = 1e-12  # that a lattice may be off 1 by: beyond 1e11 observations that would be seen


class Cells(NamedTuple):
    """x (M, d), y (M, outputs), probability (M,), and log_density (M,) of the truth.

    In ascending order of probability: NumPy draws the last of a multinomial by difference, so that is the likeliest.
    """

    x: np.ndarray
    y: np.ndarray
    probability: np.ndarray
    log_density: np.ndarray


def cells_of(
    model: Density, truth: Parameters, law: Law | None, lower: Parameters | None = None, most: int | None = None
) -> Cells:
    """The cells of a density at its truth, where it has probability.

    law: of x, whose nodes are its points; None for a joint density. lower: lower bounds of the free coordinates of
    fits, those of the model's default bounds where not given: a lattice is as fine as the narrowest component they
    allow. Raises ``InputError`` where there are more than ``most`` (``MOST_CELLS``), or the density does not add up to
    1 on a lattice.
    """
    most = MOST_CELLS if most is None else most
    real = isinstance(model.support, Real)
    narrow = _narrowest(model, truth, lower) if real else truth
    points, log_mass = _lattice_of_x(model, truth, narrow) if law is None else _points_of(law)
    found: list[tuple[np.ndarray, ...]] = []
    totals = np.zeros((2, len(points)))
    tried = kept = 0
    for place, y, log_step in _values(model, truth, narrow, points):
        tried += len(y)
        _refuse_beyond(model, tried, most * (MOST_TRIED // MOST_CELLS), most)
        x, log_base = points[place], log_step + log_mass[place]
        log_p = _log_density(model, truth, x, y)
        inside = log_p + log_base >= np.log(LEAST)
        kept += int(inside.sum())
        _refuse_beyond(model, kept, most, most)
        found.append((x[inside], y[inside], np.exp(log_p + log_base)[inside], log_p[inside]))
        for total, log_q in zip(totals, (log_p, _log_density(model, narrow, x, y) if real else log_p), strict=True):
            np.add.at(total, place, np.exp(log_q + log_base))
    _check_totals(model, totals, np.exp(log_mass) if law is not None else None)
    x, y, mass, log_p = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(mass, kind="stable")
    return Cells(x[order], y[order], (mass / mass.sum())[order], log_p[order])


def cells_in_box(model: Density, truth: Parameters, law: Law | None, bound: float, bias_bound: float) -> Cells:
    """``cells_of`` for fits within these bounds: a lattice as fine as their narrowest scales ask for."""
    return cells_of(model, truth, law, model.bounds(model.sizes_of(truth), bound, bias_bound)[0])


def with_density(model: Density, params: Parameters, cells: Cells) -> Cells:
    """The same cells with the probabilities and log-densities that other parameters give them."""
    log_density = np.asarray(log_densities(model, params, cells.x, cells.y))
    return cells._replace(
        probability=cells.probability * np.exp(log_density - cells.log_density), log_density=log_density
    )


def counted_samples(cells: Cells, n: int, seeds: list[np.random.SeedSequence]) -> CountedSample:
    """One exact sample of size n a seed, stacked: counts ~ Multinomial(n, probability), occupied cells only.

    NumPy arrays. Where there are few cells all sizes have one shape, so that one compilation serves them.
    """
    return _counted(cells, n, [
        np.random.Generator(np.random.Philox(seed)).multinomial(n, cells.probability) for seed in seeds
    ])  # fmt: skip


def expected_counts(cells: Cells, n: float) -> CountedSample:
    """The mean of samples of size n, one of them: counts need not be whole."""
    return _counted(cells, n, [n * cells.probability])


def _counted(cells: Cells, n: float, draws: list[np.ndarray]) -> CountedSample:
    chunks = np.array([-(-np.count_nonzero(count) // ROWS_PER_CHUNK) for count in draws])
    every = -(-len(cells.probability) // ROWS_PER_CHUNK)
    capacity = min(every, max(_FEW_CHUNKS, 1 << int(chunks.max() - 1).bit_length()))
    columns = cells.x, cells.y, None, cells.log_density
    found = [np.zeros((len(draws), capacity * ROWS_PER_CHUNK, *(() if v is None else v.shape[1:]))) for v in columns]
    for r, count in enumerate(draws):
        seen = np.flatnonzero(count)
        for kept, values in zip(found, columns, strict=True):
            kept[r, : len(seen)] = (count if values is None else values)[seen]
    x, y, weight, reference = (v.reshape(len(draws), capacity, ROWS_PER_CHUNK, *v.shape[2:]) for v in found)
    return CountedSample(x, y, weight, reference, chunks, np.full(len(draws), float(n)))


def _points_of(law: Law) -> tuple[np.ndarray, np.ndarray]:
    points, mass = law.nodes()
    return np.asarray(points), np.log(np.asarray(mass))


def _narrowest(model: Density, truth: Parameters, lower: Parameters | None) -> Parameters:
    """The truth with all its scales at their lower bounds."""
    lower = model.bounds(model.sizes_of(truth), *model.default_bounds)[0] if lower is None else lower
    free = {name: np.asarray(value) for name, value in model.unconstrain(truth).items()}
    for name, names in free_names(model.parameters()).items():
        if model.parameters()[name].domain in (POSITIVE, SPD):
            free[names[0]] = np.minimum(free[names[0]], np.min(lower[names[0]]))
    return {name: np.asarray(value) for name, value in model.constrain(free).items()}


def few_cells(
    model: Density, truth: Parameters, law: Law | None, lower: Parameters | None = None, most: int = FEW_CELLS
) -> Cells | None:
    """``cells_of``, to integrate over; None where there are more than ``most``, or no lattice adds up to 1."""
    try:
        return cells_of(model, truth, law, lower, most)
    except InputError:
        return None


def _lattice_of_x(model: Density, truth: Parameters, narrow: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """x (M, d) of a joint density, and the logarithm of what each stands for."""
    _, centre, covariance = (np.asarray(v) for v in model.x_mixture(truth))
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    step = SPACING * float(np.sqrt(np.linalg.eigvalsh(np.asarray(model.x_mixture(narrow)[2])).min()))
    grid = _grid(model, (centre - RANGE * scale).min(axis=0), (centre + RANGE * scale).max(axis=0), step)
    return grid, np.full(len(grid), model.dimension * np.log(step))


def _grid(model: Density, low: np.ndarray, high: np.ndarray, step: float) -> np.ndarray:
    """Whole multiples of ``step`` between low (d,) and high (d,): (m, d)."""
    first, last = np.floor(low / step), np.ceil(high / step)
    _refuse_beyond(model, np.prod(last - first + 1), MOST_TRIED, MOST_CELLS)
    axes = [step * np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _values(
    model: Density, truth: Parameters, narrow: Parameters, points: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Blocks of cells: number of the point (B,), y (B, outputs), logarithm of what a value of y stands for."""
    if not isinstance(model.support, Real):
        y, _ = model.support.nodes(model, truth, points)
        yield np.repeat(np.arange(len(points)), y.shape[1]), y.reshape(-1, y.shape[2]), 0.0
        return
    centre, scale = spreads(model, truth, points)
    step = SPACING * float(np.min(spreads(model, narrow, points)[1]))
    low, high = (centre - RANGE * scale).min(axis=1), (centre + RANGE * scale).max(axis=1)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(len(points)):
        y = _grid(model, low[i], high[i], step)
        waiting.append((np.full(len(y), i), y))
        if i == len(points) - 1 or sum(len(one) for one, _ in waiting) >= _BLOCK:
            place, values = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            yield place, values, model.outputs * np.log(step)
            waiting = []


def _log_density(model: Density, params: Parameters, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log p of rows, a block of one shape at a time."""
    found = []
    for first in range(0, len(x), _BLOCK):
        part = [np.asarray(v[first : first + _BLOCK]) for v in (x, y)]
        more = min(_BLOCK, 1 << (len(x) - 1).bit_length()) - len(part[0])
        padded = [np.concatenate([v, np.broadcast_to(v[:1], (more, v.shape[1]))]) for v in part]
        found.append(np.asarray(log_densities(model, params, *padded))[: len(part[0])])
    return np.concatenate(found)


def _check_totals(model: Density, totals: np.ndarray, mass: np.ndarray | None) -> None:
    """Sums (2, points) at the truth and at the narrowest scales, beside what they should be: ``mass``, or 1 in all."""
    error = np.abs(totals / mass - 1) if mass is not None else np.abs(totals.sum(axis=1) - 1)
    if not np.max(error) < _UNNORMALISED:
        raise InputError(
            f"sample.mode = 'exact': {type(model).__name__} adds up to 1 only within {np.max(error):.1g} on a lattice "
            f"of {SPACING} of its least scale, so counts on it are no sample of it: pass sample.mode = 'iid'"
        )


def _refuse_beyond(model: Density, count: float, limit: int, most: int) -> None:
    """Refuse a ``count`` of cells beyond a limit; most: those that may be kept."""
    if count <= limit:
        return
    fewer = "" if model.joint else "lower law.points, "
    raise InputError(
        f"sample.mode = 'exact': {type(model).__name__} has more than {most:,} cells of probability (lattices of "
        f"{model.dimension} x, {model.outputs} y): {fewer}raise the least scale that a fit may have "
        "(model.variance_range), or pass sample.mode = 'iid'"
    )
