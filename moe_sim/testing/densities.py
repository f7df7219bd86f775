"""Densities add up to 1, ``spread`` says where, and what is drawn has that law; so has the noise of a regression.

Where y has one coordinate, integrals are sums: over a lattice that is far wider and finer than the one of the support,
equally spaced in asinh(y). Where (x, y) has more, they are averages over draws from a mixture of normals about it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

from moe_sim.data.quadrature import log_densities
from moe_sim.models.base import Density, ModelError, Regression
from moe_sim.models.mixture import MixtureModel
from moe_sim.models.support import Counts, Real, spreads
from moe_sim.testing.asking import asked, called
from moe_sim.testing.probe import Probe

MASS = 1e-5  # that a sum over a lattice may be away from 1
ALARM = 1e-4  # probability that a model that is right is refused
LATTICE = 2**13  # points
REACH = 12.2  # of the lattice in asinh(y): 1e5 scales
EXPECTED = 5.0  # draws that a cell of a chi-square has at least
KERNELS, KERNEL_DRAWS = 128, 2**16  # of the mixtures of normals that are averaged over, at all points together
WIDER = 1.3  # those normals than the scales that a model says
ERRORS = 5.0  # standard errors that such an average may be away: 6e-7 by chance


def check_total(probe: Probe) -> None:
    """The density adds up to 1. Where it does not, drawing from it may take forever: so this comes first."""
    model = probe.model
    if isinstance(model, Density) and not model.joint:
        _check_totals(probe, *_integrals(probe, model)[:2])


def check_density(probe: Probe) -> None:
    """Draws have the law of the density. Raises ``ModelError``, which says what does not agree."""
    model = probe.model
    assert isinstance(model, Density)
    total, error, y, log_value, weight = _integrals(probe, model)
    _check_totals(probe, total, error)
    if _by_draws(model):
        _check_means(probe, model, y, log_value, weight)
    else:
        _check_law(probe, model, y, weight)
    # Gaussian mixtures have nodes of their own.
    if not model.joint and not (isinstance(model, MixtureModel) and model.outputs > 1):
        _check_support(probe, model)


def _by_draws(model: Density) -> bool:
    """Whether integrals are averages over draws."""
    return model.joint or (isinstance(model.support, Real) and model.outputs > 1)


def _integrals(probe: Probe, model: Density) -> tuple[np.ndarray, ...]:
    """Totals and their standard errors (P,) at the points (or of all, of a joint density); where they were taken:
    y (P, m, outputs), or (x, y); log-densities (P, m) and, with the density in them, weights (P, m)."""
    if not _by_draws(model):
        y, log_weight = _lattice(probe, model)
        log_value = _logs(probe, model, _beside(probe, y), y.reshape(-1, y.shape[2])).reshape(log_weight.shape)
        weight = np.exp(log_value + log_weight)
        return weight.sum(axis=1), np.zeros(len(y)), y, log_value, weight
    if model.joint:
        z = np.concatenate(probe.draws, axis=1)[None]  # all together
        centre, scale = z[:, :KERNELS], 0.8 * np.broadcast_to(z.std(axis=1, keepdims=True), z[:, :KERNELS].shape)
    else:
        centre, scale = _spread(probe, model)
    drawn, log_q = _kernel_draws(centre, scale * WIDER, np.random.default_rng(len(centre)))
    rows = drawn.reshape(-1, drawn.shape[2])
    x = rows[:, : model.dimension] if model.joint else _beside(probe, drawn)
    log_value = _logs(probe, model, x, rows[:, -model.outputs :]).reshape(log_q.shape)
    weight = np.exp(log_value - log_q)
    return weight.mean(axis=1), weight.std(axis=1) / np.sqrt(weight.shape[1]), drawn, log_value, weight


def _beside(probe: Probe, y: np.ndarray) -> np.ndarray:
    """x of every row of y (P, m, .), those of the points."""
    assert probe.points is not None
    return np.repeat(probe.points, y.shape[1], axis=0)


def check_noise(probe: Probe) -> None:
    """The draws of a regression: residuals over ``noise`` are standard normal, by Kolmogorov and Smirnov."""
    assert isinstance(probe.model, Regression)
    y = probe.draws[1]
    residual = (y - probe.at_truth[probe.at]) / probe.model.noise
    p = stats.kstest(residual.ravel(), "norm").pvalue
    if p < ALARM:
        raise ModelError(
            f"{called(probe.model, 'draw_rows')}: (y - mean) / noise has mean {residual.mean():.3g} and deviation "
            f"{residual.std():.3g}, and is not standard normal (p = {p:.1g}): draw y = mean + noise * normal"
        )


def _lattice(probe: Probe, model: Density) -> tuple[np.ndarray, np.ndarray]:
    """y (P, m, 1) and log-weights (P, m) at every point: labels, twice as many counts as there are nodes, or reals."""
    assert probe.points is not None
    if not isinstance(model.support, Real):
        y = _nodes(probe, model)[0]
        more = np.concatenate([y, y + y.shape[1]], axis=1) if isinstance(model.support, Counts) else y
        return more, np.zeros(more.shape[:2])
    centre, scale = _spread(probe, model)
    middle, unit = np.median(centre, axis=(1, 2))[:, None], scale.min(axis=(1, 2))[:, None]
    t = np.linspace(-REACH, REACH, LATTICE)
    y = middle + unit * np.sinh(t)
    return y[:, :, None], np.log(unit * np.cosh(t) * (t[1] - t[0]))


def _spread(probe: Probe, model: Density) -> tuple[np.ndarray, np.ndarray]:
    """Centres and scales (P, pieces, outputs) at every point. Raises ``ModelError`` for other shapes."""
    with asked(model, "spread"):
        centre, scale = spreads(model, probe.truth, probe.points)
    if centre.shape != scale.shape or centre.ndim != 3 or centre.shape[2] != model.outputs or np.any(scale <= 0):
        raise ModelError(
            f"{called(model, 'spread')} gives centres {centre.shape[1:]} and scales {scale.shape[1:]}, the least "
            f"{scale.min():.3g}: give both of shape (pieces, {model.outputs}), scales positive"
        )
    return centre, scale


def _nodes(probe: Probe, model: Density) -> tuple[np.ndarray, np.ndarray]:
    assert probe.points is not None
    with asked(model, "support"):
        return model.support.nodes(model, probe.truth, probe.points)


def _logs(probe: Probe, model: Density, x, y) -> np.ndarray:
    with asked(model, "log_density"):
        found = np.asarray(log_densities(model, probe.truth, jnp.asarray(x), jnp.asarray(y)))
    bad = np.isnan(found) | (found == np.inf)
    if np.any(bad):
        raise ModelError(f"{probe.name} is {found[bad][0]} at x = {x[bad][0]}, y = {y[bad][0]}: keep it below inf")
    return found


def _check_totals(probe: Probe, total: np.ndarray, error: Any = 0.0) -> None:
    """Sums (P,) over y at the points, or one over x and y; error: their standard errors."""
    away = np.abs(total - 1) - ERRORS * np.broadcast_to(error, total.shape)
    worst = int(np.argmax(away))
    if not away[worst] < MASS:
        where = "over x and y" if probe.points is None else f"at x = {probe.points[worst]}"
        raise ModelError(f"{probe.name} adds up to {total[worst]:.6g} {where}: let its exponential add up to 1 over y")


def _check_support(probe: Probe, model: Density) -> None:
    """The values of y that the support takes hold all the mass, and their spacing is fine enough."""
    y, log_weight = _nodes(probe, model)
    log_value = _logs(probe, model, _beside(probe, y), y.reshape(-1, y.shape[2]))
    total = np.exp(log_value.reshape(log_weight.shape) + log_weight).sum(axis=1)
    worst = int(np.argmax(np.abs(total - 1)))
    if abs(total[worst] - 1) > MASS:
        raise ModelError(
            f"{called(model, 'spread')}: the lattice made of it holds {total[worst]:.6g} of the mass at x = "
            f"{probe.points[worst]}: give centres and scales such that all mass lies within 10 scales of a centre, and "  # type: ignore[index]
            "none of it in a spike much narrower than the least scale"
        )


def _check_law(probe: Probe, model: Density, y: np.ndarray, mass: np.ndarray) -> None:
    """Draws against the density at every point: chi-square for labels and counts, Kolmogorov-Smirnov for reals."""
    drawn, at = probe.draws[1][:, 0], probe.at
    if isinstance(model.support, Real):
        below = np.cumsum(mass, axis=1) - mass / 2
        uniform = np.concatenate([np.interp(drawn[at == p], y[p, :, 0], below[p]) for p in range(len(y))])
        p, test = stats.kstest(uniform, "uniform").pvalue, "Kolmogorov-Smirnov"
    else:
        p, test = _chi_square(drawn, at, mass), "chi-square"
    if p < ALARM:
        raise ModelError(
            f"{called(model, 'draw_rows')} disagrees with {probe.name} ({test} of {len(drawn)} draws, p = {p:.1g}): "
            "draw y from exp(log_density), or leave draw and draw_rows to the class"
        )


def _chi_square(drawn: np.ndarray, at: np.ndarray, mass: np.ndarray) -> float:
    """The p-value of whole numbers drawn (n,) at points ``at`` (n,), of masses (P, m); rare ones are put together."""
    if np.any((drawn < 0) | (drawn >= mass.shape[1]) | (drawn != np.floor(drawn))):
        return 0.0
    statistic, freedom = 0.0, 0
    for p, of in enumerate(mass):
        seen = np.bincount(drawn[at == p].astype(int), minlength=len(of))
        expected = seen.sum() * of
        rare = expected < EXPECTED
        cells = np.array([np.append(v[rare].sum(), v[~rare]) for v in (seen, expected)])
        if cells[1, 0] < EXPECTED:  # too few even so: with another
            cells = np.column_stack([cells[:, :2].sum(axis=1), cells[:, 2:]])
        statistic += float(np.sum((cells[0] - cells[1]) ** 2 / np.maximum(cells[1], 1e-300)))
        freedom += cells.shape[1] - 1
    return float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0


def _kernel_draws(centre: np.ndarray, scale: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draws (P, n, D) of mixtures of normals with these centres and scales (P, pieces, D), and their log q (P, n)."""
    count = KERNEL_DRAWS // len(centre)
    chosen = rng.integers(centre.shape[1], size=count)
    drawn = centre[:, chosen] + scale[:, chosen] * rng.normal(size=(len(centre), count, centre.shape[2]))
    log_q = np.stack([
        logsumexp(sum(stats.norm.logpdf(d[:, None, j], c[:, j], s[:, j]) for j in range(c.shape[1])), axis=1)
        for d, c, s in zip(drawn, centre, scale, strict=True)
    ])  # fmt: skip
    return drawn, log_q - np.log(centre.shape[1])


def _check_means(probe: Probe, model: Density, drawn, log_value, weight) -> None:
    """Means of (x, y), squares and log p: of draws beside those of the density, weighted draws (P, m, D). z-tests."""
    x, y = probe.draws
    here, log_here = np.column_stack([*([x] if model.joint else []), y]), _logs(probe, model, x, y)
    share = np.full(len(drawn), 1.0) if model.joint else np.bincount(probe.at, minlength=len(drawn)) / len(here)
    names = [
        *(f"x[{j}]" for j in range(model.dimension if model.joint else 0)),
        *(f"y[{j}]" for j in range(model.outputs)),
    ]
    tests = {name: (here[:, j], drawn[:, :, j]) for j, name in enumerate(names)}
    tests |= {f"{name}^2": (one**2, other**2) for name, (one, other) in tests.items()}
    tests["log_density"] = (log_here, np.where(np.isfinite(log_value), log_value, 0.0))
    for name, (one, other) in tests.items():
        mean = np.sum(weight * other, axis=1) / weight.sum(axis=1)
        variance = np.mean((weight * (other - mean[:, None])) ** 2, axis=1) / weight.shape[1]
        within = one - (0.0 if model.joint else mean[probe.at])
        wanted = mean[0] if model.joint else 0.0
        error = np.sqrt(share**2 @ variance + within.var() / len(one))
        z = (within.mean() - wanted) / max(float(error), 1e-300)
        if stats.norm.sf(abs(z)) * 2 * len(tests) < ALARM:
            raise ModelError(
                f"{called(model, 'draw_rows')} disagrees with {probe.name}: the mean of {name} is {one.mean():.4g} in "
                f"{len(one)} draws, {abs(z):.1f} standard errors off: draw from exp(log_density)"
            )
