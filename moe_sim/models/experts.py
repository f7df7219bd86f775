"""Experts: functions of x, each written for ONE atom. A new one is a class of a few lines, here or in one's own file.

z = slope x + intercept throughout, slope (d,) and intercept () of an atom; for outputs o > 1 (o, d) and (o,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from moe_sim._engine import jax, jnp
from moe_sim.errors import flag, whole
from moe_sim.models.parameter import Parameter
from moe_sim.models.part import Part

Params = dict[str, Any]


class Expert(Part):
    """A subclass writes ``parameters`` and ``value``; its arguments are the keys of ``expert_options``.

    affine: whether values are affine in the parameters ``slope`` and ``intercept``.
    """

    affine = False

    @classmethod
    def of(cls, options: Params, truth: Params) -> Expert:
        """The expert of a study's ``expert_options`` and ``[truth]``."""
        return cls(**options)

    def parameters(self, dimension: int, outputs: int) -> dict[str, Parameter]:
        """The declaration of every parameter, by name."""
        raise NotImplementedError

    def value(self, params: Params, x):
        """(outputs,) of one atom at one x (dimension,)."""
        raise NotImplementedError

    def canonical(self, params: Params) -> Params:
        """The representative under a gauge of scale; params of all atoms."""
        return params

    @property
    def has_canonical(self) -> bool:
        """Whether there is such a gauge."""
        return type(self).canonical is not Expert.canonical


def _linear_parameters(dimension: int, outputs: int, bias: bool = True) -> dict[str, Parameter]:
    o = () if outputs == 1 else (outputs,)
    return {"slope": Parameter((*o, dimension))} | ({"intercept": Parameter(o)} if bias else {})


def _linear(params: Params, x):
    """z of one atom, (outputs,)."""
    return jnp.atleast_1d(jnp.asarray(params["slope"]) @ x + params.get("intercept", 0.0))


class Affine(Expert):
    """z."""

    affine = True

    def parameters(self, dimension, outputs):
        return _linear_parameters(dimension, outputs)

    def value(self, params, x):
        return _linear(params, x)


class Constant(Expert):
    """intercept, whatever x is."""

    affine = True

    def parameters(self, dimension, outputs):
        return {"intercept": Parameter(() if outputs == 1 else (outputs,))}

    def value(self, params, x):
        return jnp.atleast_1d(jnp.asarray(params["intercept"]))


class Activated(Expert):
    """outer * activation(z); bias = false: z has no intercept; without outer = true the factor is 1 (arXiv 2402.02952).

    degree: where activation(s z) = s^degree activation(z) for s > 0, outer and (slope, intercept) may be scaled
    together: canonical is ||(slope, intercept)|| = 1.
    """

    activation: ClassVar[Callable]

    def __init__(self, bias: bool = True, outer: bool = False):
        self.bias, self.outer = flag("model.expert_options.bias", bias), flag("model.expert_options.outer", outer)

    @property
    def degree(self) -> int | None:
        return None

    def parameters(self, dimension, outputs):
        found = _linear_parameters(dimension, outputs, self.bias)
        return found | ({"outer": Parameter(() if outputs == 1 else (outputs,))} if self.outer else {})

    def value(self, params, x):
        return params.get("outer", 1.0) * self.activate(_linear(params, x))

    def activate(self, z):
        return type(self).activation(z)

    @property
    def has_canonical(self):
        return self.degree is not None and self.outer

    def canonical(self, params):
        if self.degree is None or not self.outer:
            return params
        names = ("slope", "intercept") if self.bias else ("slope",)
        slope = jnp.asarray(params["slope"])
        norm = jnp.sqrt(jnp.sum(slope**2, axis=-1) + jnp.asarray(params.get("intercept", 0.0)) ** 2)
        parts = {k: params[k] / (norm[..., None] if k == "slope" else norm) for k in names}
        return params | parts | {"outer": params["outer"] * norm**self.degree}


class Tanh(Activated):
    """tanh(z)."""

    activation = staticmethod(lambda z: jnp.tanh(z))


class Gelu(Activated):
    """GELU(z) = z Phi(z), Phi the normal distribution function."""

    activation = staticmethod(lambda z: jax.nn.gelu(z, approximate=False))


class Relu(Activated):
    """max(z, 0)."""

    activation = staticmethod(lambda z: jax.nn.relu(z))

    @property
    def degree(self):
        return 1


class Power(Activated):
    """z^power, a whole number."""

    def __init__(self, power: int = 2, bias: bool = True, outer: bool = False):
        super().__init__(bias, outer)
        self.power = whole("model.expert_options.power", power, 1)

    @property
    def degree(self):
        return self.power

    def activate(self, z):
        return z**self.power


EXPERTS: dict[str, type[Expert]] = {
    "affine": Affine, "tanh": Tanh, "relu": Relu, "gelu": Gelu, "power": Power, "constant": Constant,
}  # fmt: skip
