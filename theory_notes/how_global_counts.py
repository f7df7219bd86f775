"""How often certified over-specified fits of counts are not global: each sample is fitted five times, with fresh
starts, and a certified fit that another one beats by more than 0.5 units is not (likelihood.md). Six minutes.

    python theory_notes/how_global_counts.py
"""

import numpy as np

import moe_sim as ms
from moe_sim.data.draw import sampler
from moe_sim.fitting.multistart import Fitter

CASES = (("softmax-gaussian-gentle", 1e8, 40), ("gaussian-gated-over", 1e8, 30), ("softmax-gaussian-over-2", 1e10, 30))
TIMES = 5


def main() -> None:
    for name, n, samples in CASES:
        p = ms.load_study(name).problem
        fitter = Fitter(p.model, p.truth, p.options)
        drawn = sampler(p.model, p.truth, p.law, "exact")(int(n), np.random.SeedSequence(77).spawn(samples))
        fits = [fitter.fit(drawn, np.random.SeedSequence(1000 + k).spawn(samples), n) for k in range(TIMES)]
        certified = np.array([fit.certificate == "certified" for fit in fits])
        objective = np.array([np.where(fit.certificate == "degenerate", np.inf, fit.objective) for fit in fits])
        beaten = certified & (objective - objective.min(axis=0) > 0.5)
        print(f"{name}, n = {n:g}: {beaten.sum()} of {certified.sum()} certified fits are beaten by another one")


if __name__ == "__main__":
    main()
