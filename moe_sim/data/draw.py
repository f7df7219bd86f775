"""Samples of size n from a model at a truth: sufficient statistics or counts, exact at any n, or i.i.d. rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.cells import Cells, cells_of, counted_samples, expected_counts
from moe_sim.data.covariates import Law
from moe_sim.data.samples import StoredSample, StreamedSample, at
from moe_sim.errors import InputError
from moe_sim.models import pytrees as pytrees  # models are arguments of jitted functions
from moe_sim.models.base import Density, Model, Regression
from moe_sim.models.part import Part

POPULATION = 1e10  # size of the sample that stands for the law: tolerances of fits are in units of log-likelihood


@jax.jit
def means(model: Regression, params, points):
    """f at points (M, d): (M, outputs)."""
    return jax.vmap(lambda x: model.mean(params, x))(jnp.asarray(points))


def mean_samples(model: Regression, truth, law: Law, n: int, seeds: list[np.random.SeedSequence]) -> StoredSample:
    """One exact sample of size n a seed, stacked: x (R, 1, M, d), y (R, 1, M, outputs), weight (R, 1, M).

    For a finite law and normal noise the counts N_m ~ Multinomial(n, mu) and the means of y in each point,
    N(f(x_m), noise^2 / N_m), are sufficient for least squares, so these few numbers are a sample of size n,
    not an approximation to one (theory_notes/sampling.md). n up to 1e12 and beyond (int64 counts).
    """
    points, mass = law.nodes()
    mean = np.asarray(means(model, truth, points))
    rows = len(mass)
    y = np.empty((len(seeds), rows, model.outputs))
    count = np.empty((len(seeds), rows))
    for r, seed in enumerate(seeds):
        rng = np.random.Generator(np.random.Philox(seed))
        count[r] = rng.multinomial(n, mass)
        # An empty point has weight 0; its y is set to a finite number so that 0 * y stays 0.
        y[r] = mean + rng.normal(size=mean.shape) * (model.noise / np.sqrt(np.maximum(count[r], 1.0)))[:, None]
    x = np.broadcast_to(points, (len(seeds), *points.shape))
    return StoredSample(*(v[:, None] for v in (x, y, count)))


def population(model: Model, truth, law: Law | None, cells: Cells | None = None):
    """The mean of exact samples of size ``POPULATION``, stacked as one sample: fits of it are those of the population.

    cells: of a density.
    """
    if cells is not None:
        return expected_counts(cells, POPULATION)
    assert law is not None and isinstance(model, Regression)
    points, mass = law.nodes()
    return StoredSample(*(np.asarray(v)[None, None] for v in (points, means(model, truth, points), POPULATION * mass)))


class Source(Part):
    """What i.i.d. samples are drawn from: ``source(key, index, size)`` gives x and y of one chunk."""

    def __init__(self, model: Model, truth, law: Law | None):
        self.model, self.truth, self.law = model, truth, law

    def __call__(self, key, index, size):
        return self.model.draw_rows(self.truth, self.law, key, index, size)


def streamed_samples(n: int, seeds: list[np.random.SeedSequence], source: Source) -> StreamedSample:
    """One streamed i.i.d. sample of size n a seed, stacked along the first axis."""
    words = np.array([s.generate_state(1, np.uint64)[0] >> np.uint64(1) for s in seeds])
    return StreamedSample(
        jax.vmap(jax.random.key)(jnp.asarray(words)),
        jnp.full(len(seeds), n, dtype=jnp.int64),
        source,
    )


def sampler(
    model: Model, truth, law: Law | None, mode: str, cells: Cells | None = None
) -> Callable[[int, list[np.random.SeedSequence]], Any]:
    """``samples(n, seeds)``, one sample of size n a seed, stacked. What they have in common is computed here, once.

    mode: ``exact`` (sufficient statistics of a regression, counts on cells of a density) or ``iid`` (streamed).
    cells: of the density, where they are known already.
    """
    if mode == "iid":
        return partial(streamed_samples, source=Source(model, truth, law))
    if not model.joint and (law is None or not law.finite):
        raise InputError(
            'sample.mode = "exact" needs a law on finitely many points: pass law.name = "grid", law.finite = true '
            '(the law then sits on its quadrature nodes), or sample.mode = "iid"'
        )
    if isinstance(model, Regression):
        assert law is not None
        return partial(mean_samples, model, truth, law)
    assert isinstance(model, Density)
    return partial(counted_samples, cells_of(model, truth, law) if cells is None else cells)


def exact_samples(model: Model, truth, law: Law | None, n: int, seeds: list[np.random.SeedSequence]):
    """One exact sample of size n a seed, stacked (see ``sampler``)."""
    return sampler(model, truth, law, "exact")(n, seeds)


def draw(model: Model, truth, law: Law | None, n: int, seed=0, mode: str = "exact"):
    """One sample of size n. mode: see ``sampler``. law: None for a joint model, which draws x itself."""
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    return at(sampler(model, truth, law, mode)(n, [seed]), 0)
