"""Start rules. None of them knows the sample size: start noise that shrinks with n fakes convergence."""

from __future__ import annotations

import numpy as np

from moe_sim.errors import InputError
from moe_sim.models.base import RegressionModel

CANDIDATES = 16  # points in the box a `data` start is chosen from
SPREAD = {"truth": 0.01, "wide": 1.0}  # standard deviation of the noise about the truth

RULES = {
    "data": "quasi-random points in the parameter box, the best of 16 on the data, improved on a subsample",
    "wide": "the truth plus normal noise of a fixed size, whatever n is",
    "truth": "the truth itself (noise 0.01, so that atoms that share a truth can part): a control, no estimator",
}


def candidates(rule, model: RegressionModel, truth, atoms, lower, upper, starts, seed, flatten, spread=None):
    """Start candidates of one replicate: shape (starts, C, P); each start is the best of its C on the data.

    lower, upper: flat boxes (P,). seed: a ``numpy.random.SeedSequence``. flatten: dict of arrays -> (P,).
    """
    rng = np.random.Generator(np.random.Philox(seed))
    if rule == "data":
        from scipy.stats import qmc  # half a second that only this rule needs

        sampler = qmc.Sobol(len(lower), scramble=True, rng=rng)
        needed = starts * CANDIDATES
        points = sampler.random_base2(int(np.ceil(np.log2(needed))))[:needed]
        return (lower + points * (upper - lower)).reshape(starts, CANDIDATES, -1)
    if rule not in RULES:
        raise InputError(f"fit.start = {rule!r} is not known: pass one of {', '.join(RULES)}")
    spread = SPREAD[rule] if spread is None else spread
    true_atoms = len(truth[model.mass])
    found = []
    for _ in range(starts):
        # Every true atom is covered, the spare fitted atoms fall on random ones.
        cover = np.concatenate([np.arange(true_atoms), rng.integers(0, true_atoms, atoms - true_atoms)])
        theta = flatten(model.cover(truth, cover))
        found.append(np.clip(theta + spread * rng.normal(size=theta.shape), lower, upper))
    return np.stack(found)[:, None]
