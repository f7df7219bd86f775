"""Responses: the law of y given the value of one expert. With least squares the mean of all experts is modelled."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import number, whole
from moe_sim.models.domains import POSITIVE
from moe_sim.models.form import LOG_2PI
from moe_sim.models.gaussian import HALF_RBAR_EXPONENTS, RBAR_EXPONENTS, Range, scale_range, variance_range
from moe_sim.models.parameter import Parameter
from moe_sim.models.part import Part
from moe_sim.models.support import Counts, Labels, Real, Support

Params = dict[str, Any]


class Response(Part):
    """A subclass writes ``log_density`` and ``support``, and ``parameters`` where it has some of its own.

    Its arguments are the keys of ``response_options``. single: whether y is one number. variances: its free coordinates
    that are logarithms of a scale (``Model.variances``). exponents: of blocks of the loss, where experts are affine.
    """

    support: Support
    single = True
    variances: tuple[str, ...] = ()
    exponents: dict[str, tuple[float, ...]] = {}  # noqa: RUF012 (never changed)

    @classmethod
    def of(cls, options: Params, truth: Params) -> Response:
        """The response of a study's ``response_options`` and ``[truth]``."""
        return cls(**options)

    def parameters(self, outputs: int) -> dict[str, Parameter]:
        """The declaration of every parameter, by name; outputs: of y."""
        return {}

    def expert_outputs(self, outputs: int) -> int:
        """How many values an expert gives, for so many y."""
        return outputs

    def log_density(self, params: Params, value, y):
        """log p(y) of one atom, a scalar: value (expert outputs,), y (outputs,)."""
        raise NotImplementedError

    def spread(self, params: Params, value) -> tuple[Any, Any]:
        """Centres and scales of y of one atom, (1, outputs) each. Needed with ``Real``."""
        raise NotImplementedError

    def draw(self, params: Params, key, value):
        """One y (outputs,) of one atom."""
        return self.support.draw(self, params, key, value)


class LeastSquares(Response):
    """y is the mean of all experts, weighted by the gates, plus normal noise of a known size (arXiv 2402.02952)."""

    single = False


class Gaussian(Response):
    """y ~ N(value, variance), outputs independent. variance: known where it is given, a parameter of each atom if not.

    d2p/dvalue2 = 2 dp/dvariance: where experts are affine, variances and intercepts have the exponents of Ho and Nguyen
    (arXiv 1907.04377, 2402.03226 theorem 3.2).
    variance_range: four times wider than the true values by default (see ``gaussian.LinearExperts``).
    """

    support = Real()
    single = False

    def __init__(self, variance: float | None = None, variance_range: Range = (1e-4, 1e4)):
        self.variance = None if variance is None else number("model.response_options.variance", variance, 1e-300)
        self.variance_range = variance_range

    @classmethod
    def of(cls, options, truth):
        if "variance" in options:
            return cls(**options)
        true = variance_range({}, truth)  # says what is wrong with truth.variance
        if "variance_range" not in options:
            return cls(variance_range=true)
        table = {f"response_options.{k}": v for k, v in options.items()}
        return cls(
            variance_range=scale_range("response_options.variance_range", table, np.asarray(truth["variance"], float))
        )

    @property
    def variances(self):  # type: ignore[override]
        return ("log_variance",) if self.variance is None else ()

    @property
    def exponents(self):  # type: ignore[override]
        if self.variance is not None:
            return {}
        return {"intercept": RBAR_EXPONENTS, "variance": HALF_RBAR_EXPONENTS}

    def parameters(self, outputs):
        o = () if outputs == 1 else (outputs,)
        return {} if self.variance is not None else {"variance": Parameter(o, POSITIVE, self.variance_range)}

    def _variance(self, params):
        return jnp.asarray(params["variance"] if self.variance is None else self.variance)

    def log_density(self, params, value, y):
        variance = self._variance(params)
        return -0.5 * jnp.sum(LOG_2PI + jnp.log(variance) + (y - value) ** 2 / variance)

    def spread(self, params, value):
        return value[None], jnp.broadcast_to(jnp.sqrt(self._variance(params)), value.shape)[None]

    def draw(self, params, key, value):
        return value + jnp.sqrt(self._variance(params)) * jax.random.normal(key, value.shape)


class Multinomial(Response):
    """y = 0, .., classes - 1 by the softmax of the values of an expert, that of the last class 0 (arXiv 2310.14188)."""

    def __init__(self, classes: int = 2):
        self.classes = whole("model.response_options.classes", classes, 2)
        self.support = Labels(self.classes)

    def expert_outputs(self, outputs):
        return self.classes - 1

    def log_density(self, params, value, y):
        return jax.nn.log_softmax(jnp.append(value, 0.0)) @ (y[0] == jnp.arange(self.classes))


class Binomial(Response):
    """y successes of so many trials, the log-odds of one the value of the expert."""

    def __init__(self, trials: int = 1):
        self.trials = whole("model.response_options.trials", trials, 1)
        self.support = Labels(self.trials + 1)

    def log_density(self, params, value, y):
        log_factorial = lambda k: jax.scipy.special.gammaln(k + 1.0)  # noqa: E731
        ways = log_factorial(self.trials) - log_factorial(y[0]) - log_factorial(self.trials - y[0])
        return ways + y[0] * value[0] - self.trials * jax.nn.softplus(value[0])


class Poisson(Response):
    """y = 0, 1, 2, .. with mean exp(value)."""

    support = Counts()

    def log_density(self, params, value, y):
        return y[0] * value[0] - jnp.exp(value[0]) - jax.scipy.special.gammaln(y[0] + 1)


RESPONSES: dict[str, type[Response]] = {
    "least-squares": LeastSquares, "gaussian": Gaussian, "multinomial": Multinomial, "binomial": Binomial,
    "poisson": Poisson,
}  # fmt: skip
