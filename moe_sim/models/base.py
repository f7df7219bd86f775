"""What a model must say about itself. It is written for ONE sample; passes do the batching."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.models.form import LOG_2PI, Coefficients, Form
from moe_sim.models.measure import MixingMeasure

Parameters = dict[str, np.ndarray]


class Model(ABC):
    """Parameters are a dict of named float arrays; the names are those of a study's ``[truth]`` table.

    Instances are compared by identity, since jitted code closes over them.

    dimension, outputs: the dimensions of x and of y.
    exponents: per block of the measure, the exponents of the Voronoi loss in cells of 1, 2, ... atoms
        (the last one serves all larger cells).
    gauge: what leaves the function as it is: None, or the name of the block that may be translated along
        with the log-weights (``""``: the log-weights alone).
    mass: the name of the parameter that holds the masses of the atoms, one a row.
    symmetric: names of parameters that are symmetric matrices.
    bounds: the default bounds of a study, of parameters and of log-weights.
    """

    dimension: int
    outputs: int
    exponents: dict[str, tuple[float, ...]]
    gauge: str | None = None
    mass: str = "bias"
    symmetric: tuple[str, ...] = ()
    bounds: tuple[float, float] = (6.0, 3.0)

    @abstractmethod
    def shapes(self, atoms: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter array of a model with ``atoms`` learned experts."""

    @abstractmethod
    def box(self, atoms: int, bound: float, bias_bound: float) -> tuple[Parameters, Parameters]:
        """Lower and upper bound of every free coordinate: the compact set that the theory asks for."""

    @abstractmethod
    def measure(self, params) -> MixingMeasure:
        """The mixing measure of the parameters."""

    def free(self, params):
        """The coordinates that solvers move, as named arrays; the parameters themselves unless overridden."""
        return params

    def restore(self, free):
        """The parameters of free coordinates, the inverse of ``free``."""
        return free

    def known(self) -> Parameters:
        """True values of parameters that a study need not give because the model knows them."""
        return {}

    def cover(self, params: Parameters, atoms: np.ndarray) -> Parameters:
        """Parameters whose atom i sits on atom ``atoms[i]`` of ``params``, masses shared: the same function."""
        shared = {name for name, shape in self.shapes(1).items() if shape == self.shapes(2)[name]}
        found = {k: np.array(v) if k in shared else np.asarray(v)[atoms] for k, v in params.items()}
        found[self.mass] = self.share(found[self.mass], np.bincount(atoms)[atoms])
        return found

    def share(self, mass: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Masses divided among so many atoms each; masses are log-weights unless overridden."""
        return mass - np.log(among)

    def log_shares(self, params, x) -> Any:
        """Logarithms of what each atom counts for at one x, (L,), up to a common constant: its gate, or its mass."""
        return self.measure(params).log_weight

    def split(self, params: Parameters, atom: int, step: float) -> Parameters | None:
        """Parameters with ``atom`` split in two, ``step`` apart, that give the very same function; or None.

        A model for which this exists at step > 0 has no rate for its parameters once over-specified.
        """
        return None


class RegressionModel(Model):
    """``Y = mean(params, X) + noise``, the noise normal with standard deviation ``noise`` a coordinate."""

    noise: float

    @abstractmethod
    def mean(self, params, x):
        """f_G(x) for one x of shape (dimension,): shape (outputs,)."""


class MixtureModel(Model):
    """Conditional density ``p(y | x)``, or joint density ``p(x, y)``, a Gaussian mixture of experts.

    variances: names of the free coordinates that are logarithms of a scale: where one of them lies on its lower
        bound the likelihood is degenerate, and the fit is flagged.
    clusters: whether ``from_clusters`` makes starts from the data.
    """

    variances: tuple[str, ...] = ()
    clusters: bool = False

    @abstractmethod
    def form(self, atoms: int) -> Form:
        """What the mixture looks like in its coefficients."""

    @abstractmethod
    def coefficients(self, params) -> Coefficients:
        """The coefficients of the parameters: smooth, in JAX."""

    def from_clusters(self, tau, x, y) -> Any:
        """Parameters to start from: tau (K, n) adds up to 1 over K (0 on padding), x (n, d), y (n, outputs)."""
        raise NotImplementedError

    def _logits(self, params, x):
        form, c = self.form(self._atoms(params)), self.coefficients(params)
        features = jnp.stack([jnp.prod(x ** jnp.asarray(m)) for m in form.gate_features])
        logit = c.gate @ features
        return jnp.append(logit, 0.0) if form.pinned else logit

    def log_shares(self, params, x):
        joint = self.form(self._atoms(params)).joint
        return super().log_shares(params, x) if joint else self._logits(params, x)

    def log_gates(self, params, x):
        """Log gating probabilities of one x, (K + N,), frozen experts last; joint models: log w_k p(x | k)."""
        form, logit = self.form(self._atoms(params)), self._logits(params, x)
        if form.frozen is not None:
            logit = jnp.append(logit, form.frozen[1](x))
        return logit if form.joint else jax.nn.log_softmax(logit)

    def experts(self, params, x):
        """Means and variances of all experts at one x: two arrays (K + N, outputs)."""
        form, c = self.form(self._atoms(params)), self.coefficients(params)
        features = jnp.stack([jnp.prod(x ** jnp.asarray(m)) for m in form.mean_features])
        mean, variance = c.mean @ features, jnp.exp(c.log_variance)
        if form.frozen is not None:
            known = form.frozen[2](x)
            mean = jnp.concatenate([mean, known])
            variance = jnp.concatenate([variance, jnp.full(known.shape, form.variance or 1.0)])
        return mean, variance

    def log_components(self, params, x, y):
        """log of gate times density of every expert, (K + N,), at one x (dimension,) and y (outputs,)."""
        mean, variance = self.experts(params, x)
        return self.log_gates(params, x) - 0.5 * jnp.sum(
            LOG_2PI + jnp.log(variance) + (y - mean) ** 2 / variance, axis=1
        )

    def log_density(self, params, x, y):
        """log p(y | x) of one sample, or log p(x, y) of a joint model."""
        return jax.nn.logsumexp(self.log_components(params, x, y))

    def draw_x(self, params, key, expert) -> Any:
        """Joint models: one x of expert number ``expert``, shape (dimension,)."""
        raise NotImplementedError

    def _atoms(self, params) -> int:
        return len(params[self.mass])


def spread(weight, values):
    """Variance of the columns of values (n, c), the rows counted by ``weight`` (n,): shape (c,)."""
    count = jnp.sum(weight)
    return weight @ (values - weight @ values / count) ** 2 / count


def linear_gates(tau, x):
    """Log-odds bias (K,) and slope (K, d) of normal clusters with one common covariance: linear in x.

    tau (K, n): membership; x (n, d). The gates that a start gets from clusters.
    """
    count = jnp.sum(tau, axis=1) + 1e-9
    middle = tau @ x / count[:, None]
    away = x[None] - middle[:, None]
    common = jnp.einsum("kn,kni,knj->ij", tau, away, away) / jnp.sum(count)
    common = common + 1e-3 * (jnp.trace(common) + 1e-12) * jnp.eye(x.shape[1])
    slope = jnp.linalg.solve(common, middle.T).T
    return jnp.log(count) - 0.5 * jnp.sum(slope * middle, axis=1), slope
