"""Gaussian mixtures of experts whose gates and means are polynomials in x: densities whose passes are written out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from moe_sim._engine import jax, jnp
from moe_sim.models.base import Density, Parameters
from moe_sim.models.form import LOG_2PI, Coefficients, Form


class MixtureModel(Density):
    """Conditional density ``p(y | x)``, or joint density ``p(x, y)``, a Gaussian mixture of experts whose gates and
    means are polynomials in x (``form``): its passes are written out."""

    @abstractmethod
    def form(self, atoms: int) -> Form:
        """What the mixture looks like in its coefficients."""

    @abstractmethod
    def coefficients(self, params: Parameters) -> Coefficients:
        """The coefficients of the parameters: smooth, in JAX."""

    def _logits(self, params, x):
        form, c = self.form(self.count(params)), self.coefficients(params)
        features = jnp.stack([jnp.prod(x ** jnp.asarray(m)) for m in form.gate_features])
        logit = c.gate @ features
        return jnp.append(logit, 0.0) if form.pinned else logit

    def log_shares(self, params, x):
        return super().log_shares(params, x) if self.joint else self._logits(params, x)

    def log_gates(self, params, x):
        """Log gating probabilities of one x, (K + N,), frozen experts last; joint models: log w_k p(x | k)."""
        form, logit = self.form(self.count(params)), self._logits(params, x)
        if form.frozen is not None:
            logit = jnp.append(logit, form.frozen[1](x))
        return logit if form.joint else jax.nn.log_softmax(logit)

    def experts(self, params, x):
        """Means and variances of all experts at one x: two arrays (K + N, outputs)."""
        form, c = self.form(self.count(params)), self.coefficients(params)
        features = jnp.stack([jnp.prod(x ** jnp.asarray(m)) for m in form.mean_features])
        mean, variance = c.mean @ features, jnp.exp(c.log_variance)
        if form.frozen is not None:
            known = form.frozen[2](x)
            mean = jnp.concatenate([mean, known])
            variance = jnp.concatenate([variance, jnp.broadcast_to(form.frozen_variance, known.shape)])
        return mean, variance

    def log_components(self, params, x, y):
        """log of gate times density of every expert, (K + N,), at one x (dimension,) and y (outputs,)."""
        mean, variance = self.experts(params, x)
        return self.log_gates(params, x) - 0.5 * jnp.sum(
            LOG_2PI + jnp.log(variance) + (y - mean) ** 2 / variance, axis=1
        )

    def spread(self, params, x):
        mean, variance = self.experts(params, x)
        return mean, jnp.sqrt(variance)

    def log_density(self, params, x, y):
        """log p(y | x) of one sample, or log p(x, y) of a joint model."""
        return jax.nn.logsumexp(self.log_components(params, x, y))

    def draw_x(self, params, key, expert) -> Any:
        """Joint models: one x of expert number ``expert``, shape (dimension,)."""
        raise NotImplementedError

    def draw_rows(self, params, law, key, index, size):
        """An expert by its gate, then y from that expert; joint models draw the expert first, then x, then y."""
        key_k, key_x, key_y = jax.random.split(key, 3)
        uniform = jax.random.uniform(key_k, index.shape)
        if self.joint:
            expert = jnp.searchsorted(jnp.cumsum(jnp.exp(self.log_weight(params)))[:-1], uniform, side="right")
            x = jax.vmap(lambda k, e: self.draw_x(params, k, e))(jax.random.split(key_x, len(index)), expert)
        else:
            x = law.rows(key_x, index, size)
            gates = jnp.cumsum(jnp.exp(jax.vmap(lambda one: self.log_gates(params, one))(x)), axis=1)
            expert = jnp.sum(uniform[:, None] >= gates[:, :-1], axis=1)
        mean, variance = jax.vmap(lambda one: self.experts(params, one))(x)
        chosen = lambda v: jnp.take_along_axis(v, expert[:, None, None], axis=1)[:, 0]  # noqa: E731
        noise = jax.random.normal(key_y, (len(index), self.outputs))
        return x, chosen(mean) + jnp.sqrt(chosen(variance)) * noise


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
