"""Likelihood-ratio gaps 2 (l(theta_hat) - l(theta*)) of exactly specified fits, against chi-square (Wilks 1938).

A strong check that the maximum was found: a fit that stopped short, or at a local maximum, falls below the law; a
sampler or a density that is wrong leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import stats

from moe_sim.data.draw import draw
from moe_sim.errors import InputError
from moe_sim.fitting.multistart import Fitter
from moe_sim.models.remembered import must_compute
from moe_sim.simulation.runner import Results
from moe_sim.solvers.model_step import scaling

_RANK = 1e-9  # least scaled eigenvalue of the information that counts
_INFORMATION = 2**14  # observations that the information at the truth is computed from


COLUMNS = ["n", "replicates", "not_finite", "degrees", "mean", "ks", "p"]


@dataclass(frozen=True)
class Ratio:
    """degrees of the law; table: one row a size (``likelihood_ratio``); gaps: all of them, (R_n,) by size."""

    degrees: int
    table: pd.DataFrame
    gaps: dict[float, np.ndarray]


def likelihood_ratio(results: Results) -> Ratio:
    """The gaps and, a row a size, n, replicates, not_finite, degrees, mean, ks, p.

    degrees: rank of the information at the truth. not_finite: fits without a gap, left out. ks, p: distance and p-value
    of the Kolmogorov-Smirnov test against chi-square; all other fits are in it, whatever their certificate. Raises
    ``InputError`` where the law of the gap is not known: fits of more atoms than the truth has, or of another estimator
    than maximum likelihood.
    """
    problem = results.study.problem
    must_compute(problem.model)
    true_atoms, estimator = problem.model.count(problem.truth), problem.options.estimator
    if problem.moves:
        how = "[truth.path]" if problem.truths else f"sample.truth = {results.study.tables['sample']['truth']!r}"
        raise InputError(f"{how}: the truth is not the given one, pass a study with sample.truth = 'given' and no path")
    if problem.model.total(problem.options.atoms) != true_atoms:
        raise InputError(
            f"fit.atoms = {problem.options.atoms} for {true_atoms} true atoms: the likelihood ratio of over-specified "
            f"fits has no chi-square law, pass a study with fit.atoms = {true_atoms}"
        )
    if estimator == "steps":
        raise InputError("fit.estimator = 'steps' is no maximum: pass a study with another estimator")
    degrees = _degrees(results)
    rows, gaps = [], {}
    for _, group in results.frame.groupby("n", sort=True):
        n = float(group["n"].iloc[0])
        every = 2 * (group["objective_at_truth"] - group["objective"]).to_numpy()
        gap = every[np.isfinite(every)]
        test = stats.kstest(gap, stats.chi2(degrees).cdf)
        gaps[n] = gap
        rows.append({
            "n": n, "replicates": len(every), "not_finite": len(every) - len(gap), "degrees": degrees,
            "mean": float(gap.mean()), "ks": float(test.statistic), "p": float(test.pvalue),
        })  # fmt: skip
    return Ratio(degrees, pd.DataFrame(rows, columns=COLUMNS), gaps)


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
