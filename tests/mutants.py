"""Seeded faults: does the suite notice? Run it by hand (about half an hour on two cores):

    .venv/bin/python tests/mutants.py [NAME ...]

Each mutant is one wrong line in a copy of the package. The test files that should notice run first, then, if they do
not, all others. The last line counts the caught and names the survivors; exit status 1 if fewer than 90% are caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """``old`` occurs once in ``moe_sim/file`` and becomes ``new``; ``tests``: files that should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # What is kept from process to process, what lies elsewhere, the worst of many truths
    Mutant(
        "a program is taken for another one",
        "fitting/kept.py",
        "cells = [cell.cell_contents for cell in value.__closure__ or ()]",
        "cells = []",
        "kept",
    ),
    Mutant(
        "estimates on their way to the truth lie elsewhere",
        "theory/unseen.py",
        "if distance < SAME_FUNCTION and moved > max(before / 2, ELSEWHERE):",
        "if distance < SAME_FUNCTION:",
        "unseen",
    ),
    Mutant("the best truth in place of the worst", "simulation/worst_case.py", ".idxmax(", ".idxmin(", "worst_case"),
    # What samples see, and where a spare atom goes
    Mutant(
        "what no sample shows counts as seen",
        "theory/unseen.py",
        "if moved > BLIND and needed > n:",
        "if moved > BLIND and n > needed:",
        "unseen",
    ),
    Mutant(
        "influences of a spare atom not projected",
        "fitting/spare.py",
        "left = square - turned.T @ (inverse[:, None] * turned)",
        "left = square",
        "spare",
    ),
    # Samplers
    Mutant(
        "sigma^2 for sigma in mixtures",
        "models/mixture.py",
        "jnp.sqrt(chosen(variance)) * noise",
        "chosen(variance) * noise",
        "mixture",
    ),
    Mutant(
        "sigma^2 for sigma in regressions",
        "models/base.py",
        "y + self.noise * jax.random.normal",
        "y + self.noise**2 * jax.random.normal",
        "sampling",
    ),
    Mutant(
        "cell means too noisy",
        "data/draw.py",
        "model.noise / np.sqrt(np.maximum(count[r], 1.0))",
        "model.noise / np.maximum(count[r], 1.0) ** 0.45",
        "sampling",
    ),
    Mutant(
        "every chunk the same",
        "data/samples.py",
        "jax.random.fold_in(self.key, i)",
        "jax.random.fold_in(self.key, 0)",
        "sampling",
    ),
    Mutant(
        "padding counts",
        "data/samples.py",
        "x, y, (index < self.size).astype(float)",
        "x, y, (index <= self.size).astype(float)",
        "sampling",
    ),
    Mutant(
        "gates drawn backwards",
        "models/mixture.py",
        "uniform[:, None] >= gates[:, :-1]",
        "uniform[:, None] < gates[:, :-1]",
        "mixture",
    ),
    # Densities, scores, Hessians
    Mutant(
        "log-determinant left out",
        "likelihood/gaussian_mixture.py",
        "0.5 * _total([c.log_variance[k, j] + square[k][j]",
        "0.5 * _total([0 * c.log_variance[k, j] + square[k][j]",
        "mixture",
    ),
    Mutant(
        "sign of a gate's score",
        "likelihood/gaussian_mixture.py",
        "chunk.tau[k] - chunk.w[k] for k",
        "chunk.tau[k] + chunk.w[k] for k",
        "mixture",
    ),
    Mutant(
        "half a log-variance score",
        "likelihood/gaussian_mixture.py",
        "0.5 * tau[k] * (square[k][j] - 1.0)",
        "0.25 * tau[k] * (square[k][j] - 1.0)",
        "mixture",
    ),
    Mutant(
        "factor in a cross Hessian",
        "likelihood/gaussian_mixture.py",
        "return -gate_of(k, m) * (",
        "return -0.5 * gate_of(k, m) * (",
        "mixture",
    ),
    Mutant(
        "determinant of Gamma doubled",
        "models/gaussian_gated.py",
        "+ 0.5 * (\n            log_det",
        "+ 1.0 * (\n            log_det",
        "mixture",
    ),
    Mutant(
        "sum for half a sum in least squares",
        "likelihood/objective.py",
        "return 0.5 * jnp.sum(weighted**2), weighted @ rows",
        "return jnp.sum(weighted**2), weighted @ rows",
        "passes",
    ),
    # Losses
    Mutant(
        "translation not applied",
        "losses/voronoi.py",
        "fitted.translate(0.0, shifts[asked])",
        "fitted.translate(0.0, {})",
        "losses",
    ),
    Mutant(
        "farthest for nearest",
        "losses/voronoi.py",
        "jnp.argmin(distance, axis=1), distance.shape[1]",
        "jnp.argmax(distance, axis=1), distance.shape[1]",
        "losses",
    ),
    Mutant(
        "exponent of single cells everywhere",
        "losses/voronoi.py",
        "[jnp.minimum(size, len(powers)) - 1]",
        "[0 * jnp.minimum(size, len(powers))]",
        "losses",
    ),
    Mutant(
        "mass error left out",
        "losses/voronoi.py",
        "jnp.sum(jnp.abs(here - truth.weight)) + scale * moving",
        "0 * jnp.sum(jnp.abs(here - truth.weight)) + scale * moving",
        "losses",
    ),
    Mutant(
        "Hellinger without its half",
        "losses/distances.py",
        "return jnp.sinh(r / 4) / jnp.sqrt(",
        "return jnp.sqrt(2.0) * jnp.sinh(r / 4) / jnp.sqrt(",
        "mixture losses",
    ),
    # Solvers and certificates
    Mutant(
        "Gauss-Newton certifies",
        "solvers/certificate.py",
        "matrix = gram + passes.curvature(theta, sample)",
        "matrix = gram + 0 * passes.curvature(theta, sample)",
        "solvers",
    ),
    Mutant(
        "any step is good",
        "solvers/trust_region.py",
        "(predicted > 0) & (ratio > 1e-4)",
        "(predicted > 0) & (ratio > -1e4)",
        "solvers",
    ),
    Mutant(
        "variance not updated for moved means",
        "solvers/em.py",
        "members @ (2.0 * at.gradient * step + step * (at.information @ step))",
        "members @ (2.0 * at.gradient * step)",
        "em",
    ),
    Mutant(
        "leap always taken",
        "solvers/em.py",
        "better = leap.objective <= two.objective",
        "better = leap.objective <= jnp.inf",
        "em",
    ),
    Mutant(
        "no near-minimisers",
        "fitting/multistart.py",
        "close = (value <= value[best][owner] + NEAR)",
        "close = (value <= value[best][owner])",
        "fitting",
    ),
    Mutant(
        "above the truth is fine",
        "fitting/multistart.py",
        "objective > at_truth + slack, ~stationary",
        "objective > at_truth + 1e9, ~stationary",
        "fitting",
    ),
    Mutant(
        "a lone start is fine",
        "fitting/multistart.py",
        "(agreeing < 2) & (spent.starts > 1)",
        "(agreeing < 0) & (spent.starts > 1)",
        "fitting",
    ),
    Mutant(
        "starts in half of the box",
        "fitting/starts.py",
        "return (lower + points * (upper - lower)).reshape",
        "return (0.5 * lower + 0.5 * points * (upper - lower)).reshape",
        "fitting",
    ),
    Mutant(
        "a sketch made anew is the old one",
        "bridge/sketch.py",
        "found.constant, found.parts = self._about(exact, params)",
        "found.constant, found.parts = self.constant, self.parts",
        "bridge_transformer",
    ),
    Mutant(
        "lanes of a block get each other's sketch",
        "fitting/sketches.py",
        "_stacked([made[k] for k in block])",
        "_stacked([made[k] for k in block[::-1]])",
        "sketches",
    ),
    # Rates and verdicts
    Mutant(
        "error of the mean times sqrt R",
        "rates/slopes.py",
        "values.std(ddof=1) / np.sqrt(len(values))",
        "values.std(ddof=1)",
        "rates",
    ),
    Mutant(
        "weights 1/error",
        "rates/slopes.py",
        "weight = 1 / error**2\n    total",
        "weight = 1 / error\n    total",
        "rates",
    ),
    Mutant(
        "sign of the log factor",
        "study/schema.py",
        "return power - exponent * logs",
        "return -power - exponent * logs",
        "rates",
    ),
    Mutant(
        "failures not imputed",
        "rates/verdicts.py",
        "return np.where(good, values, reduce(values[good]))",
        "return values",
        "rates",
    ),
    Mutant(
        "near-minimisers not asked",
        "rates/verdicts.py",
        '"the mean loss": main, "the worst near-minimiser": near}',
        '"the mean loss": main}',
        "rates",
    ),
    Mutant(
        "median for the mean",
        "rates/slopes.py",
        "return float(values.mean()), ",
        "return float(np.median(values)), ",
        "rates",
    ),
    # Runs
    Mutant(
        "a dropped replicate",
        "simulation/runner.py",
        "left = np.setdiff1d(np.arange(replicates), list(kept))",
        "left = np.setdiff1d(np.arange(replicates - 1), list(kept))",
        "run",
    ),
    Mutant(
        "all replicates one seed",
        "simulation/runner.py",
        "np.random.SeedSequence([study.problem.seed, *words, int(r)])",
        "np.random.SeedSequence([study.problem.seed, *words, 0 * int(r)])",
        "run",
    ),
    Mutant(
        "a damaged chunk is read",
        "simulation/store.py",
        "return _checksum(content) in path.name",
        "return len(path.name) > 0",
        "bad_input run",
    ),
    Mutant(
        "standard errors without the sandwich",
        "fitting/estimate.py",
        "inverse @ gram[inside] @ inverse",
        "inverse",
        "estimate",
    ),
    # Theory
    Mutant(
        "Hellinger distance without the half",
        "losses/distances.py",
        "return self.root / jnp.sqrt(2.0) * jnp.expm1",
        "return self.root * jnp.expm1",
        "modulus",
    ),
    Mutant(
        "level sets leave the box",
        "theory/level.py",
        "jnp.clip(jax.lax.switch(way, (first, again, nearby), theta, c, g), self.lower, self.upper)",
        "jax.lax.switch(way, (first, again, nearby), theta, c, g)",
        "level",
    ),
    Mutant(
        "no way back to the level set",
        "theory/level.py",
        "at.step(jnp.zeros_like(at.rest), c, g / at.scale",
        "at.step(jnp.zeros_like(at.rest), 0 * c, g / at.scale",
        "modulus",
    ),
    Mutant(
        "exponent of kappa without the two",
        "theory/modulus.py",
        "else 1 / (2 * self.kappa)",
        "else 1 / self.kappa",
        "modulus",
    ),
    Mutant(
        "assignments of one kind only",
        "theory/search.py",
        "for first in range(atoms - true_atoms + 1, 0, -1):",
        "for first in range(atoms - true_atoms + 1, atoms - true_atoms, -1):",
        "modulus",
    ),
    Mutant(
        "too little total variation",
        "theory/minimax.py",
        "distance * np.sqrt(n) / (2 * model.noise)",
        "distance * np.sqrt(n) / (4 * model.noise)",
        "minimax",
    ),
    Mutant(
        "mass made and lost too dear",
        "theory/minimax.py",
        "linprog(np.ravel(cost) - 2.0",
        "linprog(np.ravel(cost) - 4.0",
        "minimax",
    ),
    Mutant(
        "constants without the noise",
        "losses/distances.py",
        "return root / self.model.noise * means",
        "return root * means",
        "constants",
    ),
    Mutant(
        "second moments counted twice",
        "theory/cone.py",
        "curve[:, r, s] * np.where(r == s, 0.5, 1.0)",
        "curve[:, r, s] * np.where(r == s, 1.0, 1.0)",
        "constants",
    ),
    Mutant(
        "Helmert's rows not split by the mass",
        "theory/cone.py",
        "np.sqrt(step * size / weight[j])",
        "np.sqrt(step / weight[j])",
        "constants",
    ),
    Mutant(
        "mixed second derivatives left out",
        "theory/identifiability.py",
        "for b in range(a, len(names)):",
        "for b in range(a, a + 1):",
        "identifiability",
    ),
    Mutant(
        "moving truths too near",
        "theory/minimax.py",
        "return float(model.noise / np.sqrt(n))",
        "return float(0.5 * model.noise / np.sqrt(n))",
        "least_favourable minimax",
    ),
    Mutant(
        "split atoms that move together",
        "fitting/splits.py",
        "free[name][atom + 1] -= step",
        "free[name][atom + 1] += step",
        "splits",
    ),
    Mutant(
        "any change of a slope's sign a kink",
        "fitting/kinks.py",
        "((above - below) * unit[j] > JUMP)",
        "((above - below) * unit[j] > 0)",
        "kinks_held",
    ),
    Mutant(
        "edges looked for on one side only",
        "fitting/scans.py",
        "jnp.concatenate([length, -length])",
        "jnp.concatenate([length, length])",
        "scans",
    ),
]


SOUND = Mutant("no fault", "__init__.py", "", "", "messages architecture")  # the suite must pass on this one


def caught(mutant: Mutant) -> tuple[bool, str, float]:
    """Whether the suite fails on this mutant, which test says so, and the seconds it took.

    test_messages.py looks for the lines that mutants spoil, so it is left out, but for ``SOUND``.
    """
    begin = time.time()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in tracked.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        target = copy / "moe_sim" / mutant.file
        if mutant.old:
            target.write_text(target.read_text().replace(mutant.old, mutant.new))
        first = [f"tests/test_{name}.py" for name in mutant.tests.split()]
        rest = sorted(str(p.relative_to(copy)) for p in (copy / "tests").glob("test_*.py"))
        rest = [] if mutant is SOUND else [f for f in rest if f not in first and "test_messages" not in f]
        for files in filter(None, (first, rest)):
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files], cwd=copy,
                env=os.environ | {"PYTHONPATH": str(copy), "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode not in (0, 1):
                raise RuntimeError(f"{mutant.name}: pytest ended with {done.returncode}: {done.stdout[-500:]}")
            if done.returncode == 1:
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return True, failed[0][:110] if failed else done.stdout[-110:], time.time() - begin
    return False, "", time.time() - begin


def main(names: list[str]) -> int:
    chosen = [m for m in MUTANTS if not names or m.name in names]
    survivors = []
    if caught(SOUND)[0]:
        raise RuntimeError("the suite fails without any fault: mend that first")
    with ThreadPoolExecutor(2) as pool:
        for mutant, (found, test, seconds) in zip(chosen, pool.map(caught, chosen), strict=True):
            print(f"{'caught' if found else 'SURVIVED'}  {mutant.name} ({seconds:.0f} s)  {test}", flush=True)
            if not found:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught; survivors: {', '.join(survivors) or 'none'}")
    return int(len(survivors) > 0.1 * len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
