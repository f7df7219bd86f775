"""Two measures that no sample can tell apart: the evidence of a lower-bound claim (Le Cam's two points).

If G' lies in the parameter set, f_G' = f_G* and D(G', G*) stays away from 0, then data from either have one and
the same law, so whatever an estimator answers it is wrong by a fixed amount for one of them, at every n.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.options import FitOptions
from moe_sim.losses.voronoi import Loss
from moe_sim.models.base import Model, Parameters
from moe_sim.theory.closure import closures
from moe_sim.theory.minimax import assumption, least_risk
from moe_sim.theory.modulus import SAME_FUNCTION, modulus

APART = 1e-6  # loss below which two measures are the same to rounding
UP_TO = 1e15  # observations that a pair's lower bound is stated for: no study has more


def two_point(
    model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss], flatten, unflatten
):
    """``{loss name: evidence}`` for each loss, from the widest degenerate split that the parameter box allows.

    Evidence: the pair's loss, its L2 distance, the split (atom, step), whether they are ``separated`` (the same
    function to ``SAME_FUNCTION``, inside the box, the loss at least ``APART``), and ``risk``: what the worse of the two
    costs every estimator at every n (None where no bound is known: ``minimax.least_risk``). A model that has no
    ``split`` is searched for such pairs (``modulus``), also where no spare atom is fitted. Empty where there are none.
    """
    true_atoms = model.count(truth)
    if not losses:
        return {}
    if type(model).split is Model.split:
        return _searched(model, truth, law, options, losses)
    if model.total(options.atoms) <= true_atoms:
        return {}
    lower, upper = model.bounds(options.atoms, options.bound, options.bias_bound)
    pairs = []
    for atom in range(true_atoms):
        for step in np.linspace(0.05, 1.0, 20) * 2 * options.bound:
            found = model.split(truth, atom, step)
            if found is None:
                continue
            # Spare atoms beyond the split one double the last: shared mass, same function.
            spare = model.total(options.atoms) - true_atoms - 1
            found = model.overfit(found, np.concatenate([np.arange(true_atoms + 1), np.full(spare, true_atoms)]))
            if all(np.all((lower[k] <= found[k]) & (found[k] <= upper[k])) for k in found):
                pairs.append((atom, float(step), flatten(found)))
    if not pairs:
        return {}
    function = Loss("function", "function")
    measured = LossFunction(model, truth, law, [*losses, function], options.atoms)(np.stack([p[2] for p in pairs]))
    found_evidence: dict[str, dict[str, Any]] = {}
    for loss in losses:
        if not np.isfinite(measured[loss.name]).any():
            continue  # no such cell in any of the pairs
        k = int(np.nanargmax(measured[loss.name]))
        distance, apart = float(measured["function"][k]), float(measured[loss.name][k])
        found_evidence[loss.name] = _evidence(
            model, truth, options, loss, unflatten(pairs[k][2]), apart, distance, atom=pairs[k][0], step=pairs[k][1]
        )
    return found_evidence


def _searched(model: Model, truth: Parameters, law: Law | None, options: FitOptions, losses: list[Loss]):
    """Evidence from the modulus, where that is zero: the pair at the largest eps of those. Elsewhere from measures far
    from the truth with as many atoms as are fitted (``closure``), those that are furthest."""
    found = {
        loss.name: _evidence(model, truth, options, loss, m.measures[k], float(m.eps[k]), float(m.omega[k]))
        for loss, m in zip(losses, modulus(model, truth, law, options, losses), strict=True)
        if (k := m.zero_from) is not None
    }
    left = [loss for loss in losses if loss.name not in found]
    if not left:
        return found
    fitted, measured = model.sizes(options.atoms), LossFunction(model, truth, law, left, None)
    for c in closures(model, truth, law, options):
        if model.sizes_of(c.measure) != fitted:
            continue
        apart = measured({k: np.asarray(v)[None] for k, v in c.measure.items()})
        for loss in left:
            value = float(apart[loss.name][0])
            if value >= APART and value > found.get(loss.name, {"loss": 0.0})["loss"]:
                found[loss.name] = _evidence(model, truth, options, loss, c.measure, value, c.difference)
    return found


def _evidence(model, truth, options, loss, params, apart: float, distance: float, **split) -> dict[str, Any]:
    risk = least_risk(model, truth, loss, [params], [distance], [UP_TO])
    return {
        "loss": apart, "function_distance": distance, **split, "risk": None if risk is None else risk[0],
        "separated": bool(distance <= SAME_FUNCTION and apart >= APART),
        "assumption": assumption(options),
    }  # fmt: skip
