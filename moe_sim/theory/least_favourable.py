"""Least favourable measures: at each n the one farthest from the truth that n observations cannot tell from it.

G_eps(n) of the modulus, with eps(n) such that the two laws of n observations are at most 1/2 apart in total variation:
along such a sequence no estimator does better than the minimax rate (Tsybakov 2009, section 2.2). The risk of a real
estimator along it is a study with ``sample.truth = "least-favourable"``.
"""

from __future__ import annotations

import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.errors import InputError
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters
from moe_sim.theory.minimax import undetectable
from moe_sim.theory.modulus import Descent, Modulus, grid
from moe_sim.theory.search import Search


def least_favourable(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, loss: Loss, sizes: list[int]
) -> dict[int, Parameters]:
    """The parameters of G_eps(n), with ``options.atoms`` atoms, for each size.

    Where the modulus is degenerate no n tells any of them from the truth: the one at the largest eps, for all sizes.
    A size's measure does not depend on the other sizes. Raises ``InputError`` where no neighbour has such a loss.
    """
    descent = Descent(Search(model, truth, law, options, [loss]), 0)
    curve = descent.run(grid(loss, model.most_in_a_cell(truth, options.atoms)))
    if not len(curve.eps):
        raise InputError(
            f"sample.truth = 'least-favourable': no measure of {options.atoms} atoms near the truth has a loss "
            f"{loss.name}, put a claim on another loss first"
        )
    if curve.zero_from is not None:
        return {n: curve.measures[curve.zero_from] for n in sizes}
    return {n: descent.at(eps_at(curve, undetectable(model, n))) for n in sizes}


def eps_at(curve: Modulus, distance: float) -> float:
    """eps with omega(eps) = distance, on the line through neighbours in logarithms; at most the largest eps.

    A curve of one eps says nothing of others: that one.
    """
    if len(curve.eps) == 1:
        return float(curve.eps[0])
    x, y = np.log(np.maximum.accumulate(curve.omega[::-1])), np.log(curve.eps[::-1])
    if np.log(distance) < x[0]:
        slope = (y[1] - y[0]) / max(x[1] - x[0], 1e-12)
        return float(np.exp(y[0] + slope * (np.log(distance) - x[0])))
    return float(np.exp(np.interp(np.log(distance), x, y)))
