"""How often a certified fit is not the global one: small random problems against a brute-force search.

    .venv/bin/python theory_notes/how_global.py 8        truths a kind, 320 problems: about 10 minutes on 2 cores

Two true atoms, fitted by two and by three; 5 samples a truth. The reference is the best of ``BRUTE`` data starts, a
fourth as many about the truth and 8 at it, all with starts for a spare atom, and the fit itself. Spikes are left out.
"""

import sys
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

import moe_sim as ms
from moe_sim.fitting.multistart import NEAR, Fitter, least
from moe_sim.simulation import runner

BRUTE, SAMPLES = 400, 5
HEAD = {
    "frozen": {"logit_matrix": [[[0.1, -0.05], [-0.05, 0.15]]], "logit_bias": [0.0],
               "output_matrix": [[[0.8, -0.3], [0.2, 0.6]]]},
    "projection": {"key": [[1.0, 0.0], [0.0, 1.0]], "value": [[1.0, 0.0], [0.0, 1.0]]},
    "family": "prefix", "noise": 0.3,
}  # fmt: skip


def experts(rng):
    return {
        "intercept": rng.normal(0, 1.5, 2), "slope": rng.normal(0, 1.5, (2, 1)),
        "variance": np.exp(rng.uniform(-2.5, 0, 2)),
    }  # fmt: skip


def softmax(rng):
    truth = {"gate_bias": [rng.normal(), 0.0], "gate_slope": [[2 * rng.normal()], [0.0]], **experts(rng)}
    return {"model": {"family": "softmax-gaussian"}, "truth": truth,
            "law": {"name": "uniform", "low": -2.0, "high": 2.0}, "sample": {"sizes": [200]}}  # fmt: skip


def gated(rng):
    truth = {"weight": [0.5, 0.5], "center": rng.normal(0, 1.5, (2, 1)),
             "covariance": np.exp(rng.uniform(-2, 0, (2, 1, 1))), **experts(rng)}  # fmt: skip
    return {"model": {"family": "gaussian-gated"}, "truth": truth, "sample": {"sizes": [200]}}


def prefixes(structure, names):
    def tables(rng):
        truth = {"bias": rng.normal(0, 0.3, 2)} | {name: rng.normal(0, 1.2, (2, 2)) for name in names}
        law = {"name": "grid", "low": -2.0, "high": 2.0, "points": 8}
        return {"model": HEAD | {"structure": structure}, "truth": truth, "law": law, "sample": {"sizes": [1000]}}

    return tables


KINDS = {"softmax-gaussian": softmax, "gaussian-gated": gated, "prefix, shared": prefixes("shared-linear", ["prefix"]),
         "prefix, independent": prefixes("independent", ["key", "value"])}  # fmt: skip


def problem(tables, seed: int, spare: int):
    """Certificates (SAMPLES,), and by how much the reference is better."""
    tables["sample"] |= {"replicates": SAMPLES, "seed": seed}
    study = ms.Study(name="small", fit={"atoms": 2 + spare}, **tables)
    p, n, index = study.problem, study.problem.sizes[0], np.arange(SAMPLES)
    begun = runner._begin(study, runner._machine(p, p.truth), n, index)
    fits = begun.machine.fitter.fit(begun.samples, begun.seeds, n, begun[-1])
    reference = least([fits.lanes], SAMPLES)
    for start, starts in (("data", BRUTE), ("wide", BRUTE // 4), ("truth", 8)):
        fitter = Fitter(p.model, p.truth, replace(p.options, start=start, starts=starts, budget=1))
        seeds = [np.random.SeedSequence([991, int(r), seed]) for r in index]
        reference = np.minimum(reference, least([fitter.fit(begun.samples, seeds, n).lanes], SAMPLES))
    return fits.certificate, fits.objective - reference


def main(truths: int) -> None:
    for spare in (0, 1):
        every = []
        for k, (kind, tables) in enumerate(KINDS.items()):
            parts = [problem(tables(np.random.default_rng([seed, k])), seed, spare) for seed in range(truths)]
            certificate, gap = (np.concatenate(part) for part in zip(*parts, strict=True))
            wrong = gap[certificate == "certified"] > NEAR
            every.append(wrong)
            print(f"{kind}, {2 + spare} atoms: {len(wrong)} of {len(gap)} certified, {wrong.sum()} of them not global")
        wrong = np.concatenate(every)
        low, high = binomtest(int(wrong.sum()), len(wrong)).proportion_ci(method="wilson")
        print(f"{2 + spare} atoms: {wrong.mean():.1%} [{low:.1%}, {high:.1%}] of {len(wrong)} certified fits\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
