"""Starts that split an atom: where a regression has an atom to spare, and quasi-random points led to no sound fit.

A density has clusters of its data to put a spare atom on (see ``spare``). A regression has none, but it has the best
fit of one atom fewer: one of its atoms is split in two, which move apart in opposite directions by a length that may be
small or large, their masses shared unevenly.
"""

from __future__ import annotations

import numpy as np

from moe_sim.fitting.spare import masses, of_atoms
from moe_sim.models.base import Model, Parameters
from moe_sim.models.coordinates import ravel, unravel

COUNT = 16  # starts of a round
_LENGTHS = (-3.0, 0.0)  # powers of ten of a half side of the box, between which the length of a split lies
_UNEVEN = 1.0  # standard deviation of the logarithms of the two masses


def splits(model: Model, fit: Parameters, seed: np.random.SeedSequence, lower, upper, count: int = COUNT) -> np.ndarray:
    """Starts (count, P) from ``fit``, which has one atom fewer, in the box [lower, upper] of free coordinates (P,)."""
    rng = np.random.Generator(np.random.Philox(seed))
    atoms, of_mass = model.count(fit), masses(model)
    half = unravel(model.free_shapes(atoms + 1), (np.asarray(upper) - np.asarray(lower)) / 2)
    found = []
    for _ in range(count):
        atom, length = int(rng.integers(atoms)), 10 ** rng.uniform(*_LENGTHS)
        both = model.overfit(fit, np.array([atom, *range(atoms)]))
        free = {name: np.array(value) for name, value in model.unconstrain(both).items()}
        for name in of_atoms(model):
            scale = _UNEVEN if name in of_mass else length * half[name][0]
            step = scale * rng.normal(size=half[name][0].shape)
            free[name][0] += step
            if atom + 1 < len(free[name]):  # gates are relative to that of the last atom, which has none
                free[name][atom + 1] -= step
        found.append(np.clip(ravel(free), lower, upper))
    return np.stack(found)


def without_first(model: Model, params: Parameters) -> Parameters:
    """Parameters of all atoms but the first."""
    declared = model.parameters()
    return {name: np.asarray(v) if declared[name].shared else np.asarray(v)[1:] for name, v in params.items()}
