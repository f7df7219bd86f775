"""Likelihood-ratio gaps 2 (l(theta_hat) - l(theta*)) of exactly specified fits, against chi-square (Wilks 1938).

A strong check that the maximum was found: a fit that stopped short, or at a local maximum, falls below the law; a
sampler or a density that is wrong leaves it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import stats

from moe_sim.errors import InputError
from moe_sim.fitting import Fitter
from moe_sim.run import Results
from moe_sim.sampling import draw
from moe_sim.solvers.model_step import scaling

_RANK = 1e-9  # least scaled eigenvalue of the information that counts
_INFORMATION = 2**14  # observations that the information at the truth is computed from


def likelihood_ratio(results: Results) -> pd.DataFrame:
    """One row a size: n, replicates, degrees, mean, ks, p; the attribute ``gaps`` of the frame has them all, by size.

    degrees: rank of the information at the truth. ks, p: distance and p-value of the Kolmogorov-Smirnov test against
    chi-square. All replicates are in it, whatever their certificate. Raises ``InputError`` where the law of the
    gap is not known: fits of more atoms than the truth has, or of another estimator than maximum likelihood.
    """
    problem = results.study.problem
    true_atoms, estimator = len(problem.truth[problem.model.mass]), problem.options.estimator
    if problem.options.atoms != true_atoms:
        raise InputError(
            f"fit.atoms = {problem.options.atoms} for {true_atoms} true atoms: the likelihood ratio of over-specified "
            f"fits has no chi-square law, pass a study with fit.atoms = {true_atoms}"
        )
    if estimator == "steps":
        raise InputError("fit.estimator = 'steps' is no maximum: pass a study with another estimator")
    degrees = _degrees(results)
    rows, gaps = [], {}
    for n, group in results.frame.groupby("n", sort=True):
        gap = 2 * (group["objective_at_truth"] - group["objective"]).to_numpy()
        test = stats.kstest(gap, stats.chi2(degrees).cdf)
        gaps[float(n)] = gap
        rows.append((float(n), len(gap), degrees, float(gap.mean()), float(test.statistic), float(test.pvalue)))
    found = pd.DataFrame(rows, columns=["n", "replicates", "degrees", "mean", "ks", "p"])
    found.attrs["gaps"] = gaps
    return found


def to_json(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of ``likelihood_ratio`` as plain values."""
    return [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]


def _degrees(results: Results) -> int:
    """Parameters that the data can tell, at the truth: the rank of the scaled score Gram matrix of one sample."""
    problem = results.study.problem
    fitter = Fitter(problem.model, problem.truth, problem.options)
    sample = draw(problem.model, problem.truth, problem.law, _INFORMATION, 0, problem.mode)
    truth = jnp.asarray(fitter.flatten(problem.truth))
    _, _, gram = jax.jit(lambda theta, data: fitter.passes.first(theta, data))(truth, sample)
    unit = scaling(gram)
    eigenvalues = np.linalg.eigvalsh(np.asarray(gram / unit[:, None] / unit[None, :]))
    return int(np.sum(eigenvalues > _RANK * eigenvalues.max()))
