"""What the hot loop costs on one core: ``moe-sim bench``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.draw import Source, streamed_samples
from moe_sim.data.samples import ROWS_PER_CHUNK, KeptSample, at, empty, keep
from moe_sim.fitting.multistart import Fitter
from moe_sim.study.registry import load_study
from moe_sim.study.study import Study

SIZE = 1_000_000  # samples a timed pass
FIT = 100_000  # samples of the timed fits
SETS = 10  # data sets that fits are averaged over
REPEATS = 7


def bench() -> dict[str, Any]:
    """``measure`` in a process of its own that has one core from its first breath: threads of a process that had
    more would wait for one another, and their waiting would count."""
    core = {min(os.sched_getaffinity(0))} if hasattr(os, "sched_getaffinity") else None
    pin = None if core is None else lambda: os.sched_setaffinity(0, core)
    found = subprocess.run(
        [sys.executable, "-m", "moe_sim.simulation.benchmark"], preexec_fn=pin, stdout=subprocess.PIPE, check=True
    )
    return json.loads(found.stdout)


def measure() -> dict[str, Any]:
    """``pass_ns``: log-likelihood, score and Gram matrix; ``curvature_ns``: what the exact Hessian adds; ``draw_ns``:
    drawing, all in nanoseconds of CPU time a sample, the best of 7; ``fit_passes``: see ``fit_cost``."""
    found: dict[str, Any] = {"pass_ns": {}, "curvature_ns": {}, "draw_ns": {}, "fit_passes": {}}
    studies = {
        "softmax-gaussian-K2": _study("softmax-gaussian-exact", 2),
        "softmax-gaussian-K3": _study("softmax-gaussian-exact", 3),
        "gaussian-gated-K3": _study("gaussian-gated-exact", 3),
        "prefix-mixture-K3": _study("prefix-mixture-shared", 3),
    }
    for name, study in studies.items():
        p = study.problem
        fitter = Fitter(p.model, p.truth, p.options)
        theta = jnp.asarray(fitter.cover((*range(p.model.count(p.truth)), *[0] * 9)[: p.model.total(p.options.atoms)]))
        passes = fitter.passes
        seeds = [np.random.SeedSequence(0)]
        stream = at(streamed_samples(SIZE, seeds, Source(p.model, p.truth, p.law)), 0)
        draw = jax.jit(lambda s: keep(s, empty(s, -(-SIZE // ROWS_PER_CHUNK))))
        sample: KeptSample = draw(stream)
        found["draw_ns"][name] = _time(draw, stream)
        found["pass_ns"][name] = _time(jax.jit(passes.first), theta, sample)
        found["curvature_ns"][name] = _time(jax.jit(passes.curvature), theta, sample)
    for atoms in (2, 3):
        name = f"softmax-gaussian-K{atoms}"
        found["fit_passes"][name] = fit_cost(studies[name], found["pass_ns"][name])
    return found


def fit_cost(study: Study, pass_ns: float) -> dict[str, float]:
    """CPU time of converged fits of ``FIT`` samples from the study's starts, in passes' time, a start.

    starts: spent a data set. passes_a_start: everything (subsamples, certificates), over starts. passes_a_fit: the
    same, a data set. certified: share of data sets.
    """
    p = study.problem
    fitter = Fitter(p.model, p.truth, p.options)
    source = Source(p.model, p.truth, p.law)
    seeds = [np.random.SeedSequence([1, r]) for r in range(SETS)]
    samples = streamed_samples(FIT, seeds, source)
    fitter.fit(samples, [np.random.SeedSequence(r) for r in range(SETS)])  # compiles
    begin = time.process_time()
    fits = fitter.fit(samples, [np.random.SeedSequence(r) for r in range(SETS)])
    spent = time.process_time() - begin
    whole = spent / SETS / (pass_ns * 1e-9 * FIT)
    starts = float(fits.starts.mean())
    return {
        "starts": starts, "passes_a_start": round(whole / starts, 2), "passes_a_fit": round(whole, 2),
        "certified": float(np.mean(fits.certificate == "certified")),
    }  # fmt: skip


def _study(claim: str, atoms: int) -> Study:
    return load_study(claim).replace(atoms=atoms, start="wide")


def _time(call, *arguments) -> float:
    """Nanoseconds of CPU time a sample, the best of ``REPEATS``."""
    jax.block_until_ready(call(*arguments))
    best = np.inf
    for _ in range(REPEATS):
        begin = time.process_time()
        jax.block_until_ready(call(*arguments))
        best = min(best, time.process_time() - begin)
    return round(1e9 * best / SIZE, 2)


if __name__ == "__main__":
    print(json.dumps(measure()))
