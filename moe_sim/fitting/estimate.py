"""Fitting a mixture of experts to data of one's own: estimates, standard errors, certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from moe_sim.data.samples import kept, rows_of_chunk
from moe_sim.errors import InputError, number, one_of, whole
from moe_sim.fitting.batching import compile_together
from moe_sim.fitting.compiled import parameters_of
from moe_sim.fitting.lines import left_by_lines
from moe_sim.fitting.multistart import CERTIFICATES, Fits, Fitter
from moe_sim.fitting.options import LIMITS, FitOptions, estimators
from moe_sim.fitting.tables import Table, aligned, check_columns, covariates, pair
from moe_sim.likelihood.objective import passes_of
from moe_sim.models.base import Atoms, Density, Parameters, Regression
from moe_sim.models.coordinates import element, ravel, unravel
from moe_sim.models.gaussian_gated import GaussianGated
from moe_sim.models.softmax_gaussian import SoftmaxGaussian
from moe_sim.models.support import Counts, Labels

MODELS: dict[str, Callable[..., Density]] = {"softmax-gaussian": SoftmaxGaussian, "gaussian-gated": GaussianGated}
NARROWEST = 1e-4  # least variance of an expert, as a part of what so many lines leave of its output; that of x, of x
WIDEST = 4.0  # largest, as a part of the variance of output or x
ON_BOUND = 1e-9
# What the axes of a named model's parameters are, after that of the experts.
_AXES = {
    "slope": ("y", "x"), "intercept": ("y",), "variance": ("y",), "gate_slope": ("x",), "center": ("x",),
    "covariance": ("x", "x"),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A fitted mixture of experts, experts ordered by their share of the data where the model says its components.

    params, errors: named arrays, and their sandwich standard errors (NaN where a coordinate lies on its bound or the
    Hessian is not positive definite). loglik in nats. df: free parameters. certificate: see ``explain``.
    starts, agreeing: starts spent, and those within 0.5 units of the best. bounds: coordinates on their bound.
    """

    model: Density
    params: Parameters
    errors: Parameters
    covariance: np.ndarray
    loglik: float
    n: int
    df: int
    certificate: str
    starts: int
    agreeing: int
    bounds: list[str]
    x: np.ndarray
    y: np.ndarray
    x_names: list[str]
    y_names: list[str]
    x_named: bool = False  # whether the data came with names of their own
    y_named: bool = False

    def __repr__(self) -> str:
        return (
            f"Estimate({type(self.model).__name__}, n={self.n}, df={self.df}, loglik={self.loglik:.6g}, "
            f"{self.certificate})"
        )

    @property
    def aic(self) -> float:
        return 2 * self.df - 2 * self.loglik

    @property
    def bic(self) -> float:
        return self.df * float(np.log(self.n)) - 2 * self.loglik

    def explain(self) -> str:
        """The certificate as a sentence, and what lies on a bound."""
        edge = f" On its bound: {', '.join(self.bounds)}." if self.bounds else ""
        if any(name.startswith("gate_slope") for name in self.bounds):
            edge += (
                " A gate whose slope is on its bound is a step: the likelihood rises on, and the slope, which AIC and "
                "BIC count, has no finite estimate."
            )
        sentence = CERTIFICATES[self.certificate]
        if self.certificate == "certified":
            sentence = f"stationary, and reached from {self.agreeing} of {self.starts} starts"
        return f"{self.certificate}: {sentence}.{edge}"

    def gates(self, x=None) -> np.ndarray:
        """Gating probabilities (n, K) at x, or at the data; p(k | x) for joint models.

        Raises ``InputError`` for a model without ``log_gates(params, x)``; so do the next three for what they need.
        """
        log_gates_of = _method(self.model, "log_gates", "gating probabilities")
        x = self.x if x is None else self._covariates(x)
        log_gates = jax.vmap(lambda one: log_gates_of(self.params, one))(jnp.asarray(x))
        return np.asarray(jax.nn.softmax(log_gates, axis=1))

    def experts(self) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of the experts at the data, each (n, K, outputs)."""
        experts_of = _method(self.model, "experts", "means of experts")
        found = jax.vmap(lambda one: experts_of(self.params, one))(jnp.asarray(self.x))
        return np.asarray(found[0]), np.asarray(found[1])

    def responsibilities(self, x=None, y=None) -> np.ndarray:
        """Posterior probabilities (n, K) of the experts given x and y, or at the data."""
        if not self.model.has_components:
            _method(self.model, "", "responsibilities", "log_components")
        x, y = (self.x, self.y) if x is None else self._pair(x, y)
        parts = jax.vmap(lambda a, b: self.model.log_components(self.params, a, b))(jnp.asarray(x), jnp.asarray(y))
        return np.asarray(jax.nn.softmax(parts, axis=1))

    def predict(self, x) -> np.ndarray:
        """Mean of y given x, (n, outputs)."""
        table = self._covariates(x)
        mean = getattr(self.model, "mean", None)
        if mean is not None:
            return np.asarray(jax.vmap(lambda one: mean(self.params, one))(jnp.asarray(table)))
        experts_of = _method(self.model, "experts", "a mean of y", "mean")
        means = jax.vmap(lambda one: experts_of(self.params, one)[0])(jnp.asarray(table))
        return np.einsum("nk,nkj->nj", self.gates(table), np.asarray(means))

    def _covariates(self, x) -> np.ndarray:
        return covariates("x", x, self.x_names, self.x_named).values

    def _pair(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """x and y by the names of the fit, the rows of y in the order of x."""
        if y is None:
            raise InputError("y is missing: pass the y of these x")
        one = covariates("x", x, self.x_names, self.x_named)
        one, other = aligned(one, covariates("y", y, self.y_names, self.y_named))
        return one.values, other.values

    @property
    def frame(self) -> pd.DataFrame:
        """One row a parameter: parameter (by names of columns, where a named model's data came with them), estimate,
        standard error."""
        rows = [
            (element(name, self._place(name, where)), float(value), float(self.errors[name][where]))
            for name, values in self.params.items()
            for where, value in np.ndenumerate(values)
        ]
        return pd.DataFrame(rows, columns=["parameter", "estimate", "standard_error"])

    def _place(self, name: str, where: tuple[int, ...]) -> tuple[Any, ...]:
        """An entry's expert and, in place of numbers, the columns of x and y that it belongs to."""
        if type(self.model) not in MODELS.values() or name not in _AXES:
            return where
        names = {"x": self.x_names if self.x_named else [], "y": self.y_names if self.y_named else []}
        first, *rest = where
        axes = _AXES[name][len(_AXES[name]) - len(rest) :]  # of one output there is no axis
        return first, *(names[axis][i] if names[axis] else i for axis, i in zip(axes, rest, strict=True))

    def to_json(self) -> dict[str, Any]:
        """What ``moe-sim fit --json`` prints."""
        return {
            "n": self.n, "df": self.df, "loglik": self.loglik, "aic": self.aic, "bic": self.bic,
            "certificate": self.certificate, "explanation": self.explain(), "starts": self.starts,
            "agreeing": self.agreeing, "on_bound": self.bounds, "x": self.x_names, "y": self.y_names,
            "estimates": {k: _listed(v) for k, v in self.params.items()},
            "standard_errors": {k: _listed(v) for k, v in self.errors.items()},
            "gate_means": self.gates().mean(axis=0).tolist() if hasattr(self.model, "log_gates") else None,
        }  # fmt: skip


def fit(
    model: str | Density, x, y, atoms: Atoms, *, estimator: str = "mle", starts: int = 24, budget: int = 4,
    bound: float = 50.0, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Maximum likelihood for a mixture of ``atoms`` experts on data x (n,) or (n, d), y (n,) or (n, o).

    model: ``softmax-gaussian``, ``gaussian-gated``, or a ``Density``. atoms: by group, where it has several. Arrays,
    data frames and series are taken.
    Data are standardised within, so ``bound`` is in standard deviations: slopes and gates lie within it, variances
    between 1e-4 times what as many lines leave of their output (``lines.left_by_lines``) and 4 times its variance; what
    ends on a bound is named. A named model's estimates,
    likelihood and errors are those of the data as given. A ``Density`` is fitted to the data as they are.
    Standard errors are the sandwich H^-1 G H^-1 (White 1982). Raises ``InputError``.
    """
    x_table, y_table = pair(x, y)
    x, y = x_table.values, y_table.values
    bound = number("bound", bound, 0.0)
    if bound == 0:
        raise InputError("bound = 0: pass a positive number of standard deviations")
    whole("seed", seed)
    named = isinstance(model, str)
    if isinstance(model, str):
        one_of("model", model, MODELS)
        check_columns("x", x_table)
        check_columns("y", y_table)
        built = _build(model, x, y, whole("atoms", atoms, 1, 50))
    else:
        built = model
        if isinstance(built, Regression):
            raise InputError(
                f"model = {type(built).__name__} object is a regression, and fit takes mixtures: fit it in a study, "
                "with moe_sim.run"
            )
        if not isinstance(built, Density):
            raise InputError(
                f"model = {type(built).__name__} object is no density of y: pass a name, or a moe_sim.Density"
            )
        if (built.dimension, built.outputs) != (x.shape[1], y.shape[1]):
            raise InputError(
                f"the model takes x with {built.dimension} columns and y with {built.outputs}, the data have "
                f"{x.shape[1]} and {y.shape[1]}: pass the columns that it takes"
            )
        _check_support(built, y)
    atoms = _sizes(built, atoms)
    one_of("estimator", estimator, [name for name in estimators(built) if name != "steps"])
    scale = _Scale.of(x, y) if named else _Scale.none(x, y)
    bounds = (bound, bound) if named else built.default_bounds
    counts = whole("starts", starts, 1), whole("budget", budget, 1)
    options = FitOptions(atoms, estimator, "data", *counts, *bounds, max_iterations=LIMITS[estimator])
    fitter = Fitter(built, None, options)
    free = len(np.asarray(fitter.lower))
    if len(x) <= free:
        raise InputError(f"{len(x)} rows for {free} parameters: pass more data or lower atoms")

    # A fixed shuffle, since starts are tried on the first chunk: sorted data would show one corner only.
    order = np.random.default_rng(seed).permutation(len(x))
    sample = kept(scale.x(x)[order], scale.y(y)[order], rows_of_chunk(len(x)))
    samples = jax.tree.map(lambda leaf: leaf[None], sample)
    compile_together(fitter.jobs(samples))
    fits = fitter.fit(samples, [np.random.SeedSequence(seed)])
    return _finish(built, fitter, scale, fits, sample, x_table, y_table)


def _sizes(model: Density, atoms: Atoms) -> Atoms:
    """Atoms, of each group where there are several. Raises ``InputError``."""
    if not isinstance(atoms, Mapping):
        atoms = whole("atoms", atoms, 1, 50)
        model.sizes(atoms)
        return atoms
    if set(atoms) != set(model.groups):
        raise InputError(f"atoms = {dict(atoms)}: pass a number for each of {', '.join(model.groups)}")
    return {group: whole(f"atoms[{group!r}]", count, 1, 50) for group, count in atoms.items()}


def _check_support(model: Density, y: np.ndarray) -> None:
    """Raises ``InputError`` where some y is not where the model has its density."""
    support = model.support
    top = support.count - 1 if isinstance(support, Labels) else np.inf
    bad = (y != np.round(y)) | (y < 0) | (y > top)
    if isinstance(support, (Labels, Counts)) and bad.any():
        raise InputError(
            f"y has {y[bad][0]:g}, where {type(model).__name__} takes whole numbers from 0"
            f"{f' to {top}' if np.isfinite(top) else ' on'}: code y so, or pass another model"
        )


def _build(name: str, x, y, atoms: int) -> Density:
    """The named model for standardised data."""
    scale = _Scale.of(x, y)
    size = x.shape[1], y.shape[1], (NARROWEST * left_by_lines(scale.x(x), scale.y(y), atoms), WIDEST)
    return MODELS[name](*size, (NARROWEST, WIDEST)) if name == "gaussian-gated" else MODELS[name](*size)


def _finish(model, fitter: Fitter, scale: _Scale, fits: Fits, sample, x: Table, y: Table) -> Estimate:
    theta = fits.theta[0]
    free = (theta > fitter.lower + ON_BOUND) & (theta < fitter.upper - ON_BOUND)
    order = None
    if model.has_components and len(model.groups) == 1:
        order = np.argsort(-np.asarray(_shares(model, fitter.unflatten(theta), sample)), kind="stable")
    found = jax.device_get(_asymptotics(fitter.plan.atoms, model, scale, theta, order, sample))
    params, jacobian, gram, hessian = found
    covariance = np.full((len(theta),) * 2, np.nan)
    inside = np.ix_(free, free)
    if free.any() and np.linalg.eigvalsh(hessian[inside])[0] > 0:
        inverse = np.linalg.inv(hessian[inside])
        covariance[inside] = inverse @ gram[inside] @ inverse
    used = jacobian != 0
    known = np.where(np.isnan(covariance), 0.0, covariance)
    variance = np.einsum("pi,ij,pj->p", jacobian, known, jacobian)
    spoilt = used @ np.isnan(np.diag(covariance)) > 0
    errors = np.where(spoilt, np.nan, np.sqrt(np.maximum(variance, 0.0)))
    names = fitter.unflatten_free(np.arange(len(theta)))
    on_bound = [element(name, w) for name, p in names.items() for w, i in np.ndenumerate(p) if not free[int(i)]]
    rows = len(x.values)
    loglik = -float(fits.objective[0]) - rows * scale.log_volume(model.joint)
    return Estimate(
        model, params, unravel({name: value.shape for name, value in params.items()}, errors),
        jacobian @ known @ jacobian.T, loglik, rows, len(theta),
        str(fits.certificate[0]), int(fits.starts[0]), int(fits.agreeing[0]), on_bound, x.values, y.values, x.names,
        y.names, x.named, y.named,
    )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _asymptotics(atoms: tuple[tuple[str, int], ...], model: Density, scale: _Scale, theta, order, sample):
    """Parameters for the data as given, experts in this order, their derivatives in theta, and the two matrices of the
    sandwich: the Gram matrix of the scores, and minus the Hessian."""
    named = parameters_of(model, dict(atoms))
    passes = passes_of(model, named, dict(atoms))
    shared = {name for name, p in model.parameters().items() if p.shared}

    def report(theta):
        params = named(theta)
        if order is not None:
            params = {k: v if k in shared else v[order] for k, v in params.items()}
        return scale.back(model, params)

    gram = passes.first(theta, sample)[2]
    jacobian = jax.jacfwd(lambda t: ravel(report(t)))(theta)
    return report(theta), jacobian, gram, gram + passes.curvature(theta, sample)


@jax.jit
def _shares(model: Density, params, sample):
    """Share of the data that each expert answers for."""

    def of(x, y, weight):
        parts = jax.vmap(lambda a, b: model.log_components(params, a, b))(x, y)
        return weight @ jax.nn.softmax(parts, axis=1)

    rows = [of(*sample.chunk(i)) for i in range(sample.weight.shape[0])]
    return sum(rows)[: model.count(params)]


@partial(jax.tree_util.register_dataclass, data_fields=("x_mid", "x_sd", "y_mid", "y_sd"), meta_fields=("moved",))
@dataclass(frozen=True)
class _Scale:
    """Location and scale of x and y, and the way back for linear experts."""

    x_mid: np.ndarray
    x_sd: np.ndarray
    y_mid: np.ndarray
    y_sd: np.ndarray
    moved: bool

    @staticmethod
    def of(x, y) -> _Scale:
        return _Scale(x.mean(axis=0), x.std(axis=0), y.mean(axis=0), y.std(axis=0), True)

    @staticmethod
    def none(x, y) -> _Scale:
        return _Scale(np.zeros(x.shape[1]), np.ones(x.shape[1]), np.zeros(y.shape[1]), np.ones(y.shape[1]), False)

    def x(self, x):
        return (x - self.x_mid) / self.x_sd

    def y(self, y):
        return (y - self.y_mid) / self.y_sd

    def log_volume(self, joint: bool) -> float:
        """log of the density's factor: densities of scaled data are larger by it."""
        return float(np.sum(np.log(self.y_sd)) + (np.sum(np.log(self.x_sd)) if joint else 0.0))

    def back(self, model: Density, params):
        """Parameters for the data as given; the last gate, whichever it is, at 0."""
        if not self.moved:
            return model.constrain(model.unconstrain(params))
        rows, o, d = len(params["intercept"]), model.outputs, model.dimension
        y_sd, y_mid = self.y_sd[None], self.y_mid[None]
        slope = jnp.reshape(params["slope"], (rows, o, d)) * self.y_sd[None, :, None] / self.x_sd
        intercept = y_mid + y_sd * jnp.reshape(params["intercept"], (rows, o)) - slope @ self.x_mid
        variance = jnp.reshape(params["variance"], (rows, o)) * y_sd**2
        new = {"slope": slope, "intercept": intercept, "variance": variance}
        found = {name: jnp.reshape(value, jnp.shape(params[name])) for name, value in new.items()}
        if "gate_slope" in params:
            gate = (params["gate_slope"] - params["gate_slope"][-1]) / self.x_sd  # differences first: exact zeros
            bias = params["gate_bias"] - params["gate_bias"][-1] - gate @ self.x_mid
            return {"gate_bias": bias, "gate_slope": gate, **found}
        center = self.x_mid + self.x_sd * params["center"]
        covariance = params["covariance"] * self.x_sd[:, None] * self.x_sd
        return {"weight": params["weight"], "center": center, "covariance": covariance, **found}


def _method(model: Density, name: str, what: str, lacking: str | None = None) -> Callable:
    """A method of the model. Raises ``InputError`` where it has none."""
    found = getattr(model, name, None)
    if found is None:
        raise InputError(
            f"{type(model).__name__} does not say {what}: write {lacking or name}(self, params, ...) in it"
        )
    return found


def _listed(values: np.ndarray) -> Any:
    """Nested lists, with None for NaN, which JSON has no word for."""
    listed: Any = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()
