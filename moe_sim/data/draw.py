"""Samples of size n from a model at a truth: exact sufficient statistics, or i.i.d. rows drawn as they are read."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.data.samples import StoredSample, StreamedSample
from moe_sim.errors import InputError
from moe_sim.models.base import MixtureModel, Model, RegressionModel


def exact_samples(model: Model, truth, law: Law | None, n: int, seeds: list[np.random.SeedSequence]):
    """One exact sample of size n a seed, stacked: x (R, 1, M, d), y (R, 1, M, outputs), weight (R, 1, M).

    For a finite law and normal noise the counts N_m ~ Multinomial(n, mu) and the means of y in each point,
    N(f(x_m), noise^2 / N_m), are sufficient for least squares, so these few numbers are a sample of size n,
    not an approximation to one (theory_notes/sampling.md). n up to 1e12 and beyond (int64 counts).
    """
    if not isinstance(model, RegressionModel):
        raise InputError(
            'sample.mode = "exact" needs a regression model: a mixture has no sufficient statistics, '
            'pass sample.mode = "iid"'
        )
    if law is None or not law.finite:
        raise InputError(
            'sample.mode = "exact" needs a law on finitely many points: pass law.name = "grid", law.finite = true '
            '(the law then sits on its quadrature nodes), or sample.mode = "iid"'
        )
    points, mass = law.nodes()
    mean = np.asarray(jax.vmap(lambda x: model.mean(truth, x))(jnp.asarray(points)))
    rows = len(mass)
    y = np.empty((len(seeds), rows, model.outputs))
    count = np.empty((len(seeds), rows))
    for r, seed in enumerate(seeds):
        rng = np.random.Generator(np.random.Philox(seed))
        count[r] = rng.multinomial(n, mass)
        # An empty point has weight 0; its y is set to a finite number so that 0 * y stays 0.
        y[r] = mean + rng.normal(size=mean.shape) * (model.noise / np.sqrt(np.maximum(count[r], 1.0)))[:, None]
    x = np.broadcast_to(points, (len(seeds), *points.shape))
    return StoredSample(*(jnp.asarray(v[:, None]) for v in (x, y, count)))


def streamed_samples(n: int, seeds: list[np.random.SeedSequence], draw: Callable) -> StreamedSample:
    """One streamed i.i.d. sample of size n a seed, stacked along the first axis; ``draw`` from ``streamer``."""
    words = np.array([s.generate_state(1, np.uint64)[0] >> np.uint64(1) for s in seeds])
    return StreamedSample(
        jax.vmap(jax.random.key)(jnp.asarray(words)),
        jnp.full(len(seeds), n, dtype=jnp.int64),
        draw,
    )


def streamer(model: Model, truth, law: Law | None) -> Callable:
    """``draw(key, index, size) -> x, y`` of one chunk. Make it once a study: jitted code is keyed by its identity."""
    if isinstance(model, MixtureModel):
        return _mixture_streamer(model, truth, law)
    assert isinstance(model, RegressionModel) and law is not None

    def draw(key, index, size):
        key_x, key_y = jax.random.split(key)
        x = law.rows(key_x, index, size)
        y = jax.vmap(lambda one: model.mean(truth, one))(x)
        return x, y + model.noise * jax.random.normal(key_y, y.shape)

    return draw


def _mixture_streamer(model: MixtureModel, truth, law: Law | None) -> Callable:
    """An expert by its gate, then y from that expert; joint models draw the expert first, then x, then y."""
    joint = model.form(len(truth[model.mass])).joint

    def draw(key, index, size):
        key_k, key_x, key_y = jax.random.split(key, 3)
        uniform = jax.random.uniform(key_k, index.shape)
        if joint:
            expert = jnp.searchsorted(jnp.cumsum(jnp.asarray(truth[model.mass]))[:-1], uniform, side="right")
            x = jax.vmap(lambda k, e: model.draw_x(truth, k, e))(jax.random.split(key_x, len(index)), expert)
        else:
            assert law is not None
            x = law.rows(key_x, index, size)
            gates = jnp.cumsum(jnp.exp(jax.vmap(lambda one: model.log_gates(truth, one))(x)), axis=1)
            expert = jnp.sum(uniform[:, None] >= gates[:, :-1], axis=1)
        mean, variance = jax.vmap(lambda one: model.experts(truth, one))(x)
        chosen = lambda v: jnp.take_along_axis(v, expert[:, None, None], axis=1)[:, 0]  # noqa: E731
        noise = jax.random.normal(key_y, (len(index), model.outputs))
        return x, chosen(mean) + jnp.sqrt(chosen(variance)) * noise

    return draw


def draw(model: Model, truth, law: Law | None, n: int, seed=0, mode: str = "exact"):
    """One sample of size n. mode: ``exact`` (sufficient statistics) or ``iid`` (streamed). See the module.

    law: None for a joint model, which draws x itself.
    """
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed)
    if mode == "exact":
        samples = exact_samples(model, truth, law, n, [seed])
    else:
        samples = streamed_samples(n, [seed], streamer(model, truth, law))
    return jax.tree.map(lambda leaf: leaf[0], samples)
