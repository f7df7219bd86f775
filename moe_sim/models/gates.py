"""Gates: how much each expert counts for at one x. A new one is a class of a few lines, here or in a file of one's own.

u_i = gate_bias_i + gate_slope_i'x throughout. Exponents of the losses are (1, 2) where a response says no others
(``moe.exponents_of``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array, flag, number, one_of, whole
from moe_sim.models.domains import GATE, POSITIVE, REAL, SIMPLEX, SPD, Domain
from moe_sim.models.form import LOG_2PI
from moe_sim.models.gaussian import Range, scale_range
from moe_sim.models.parameter import Parameter
from moe_sim.models.part import Part

Params = dict[str, Any]


class Gate(Part):
    """A subclass writes ``parameters`` and ``log_weights``; its arguments are the keys of ``gate_options``.

    mass: the parameter that holds the masses of the atoms. normalised: whether the weights add up to 1. joint: whether
    they are densities of x, which the model then draws itself. linear: whether their logarithms are linear in x, so
    that slopes of gates and of linear experts interact (arXiv 2305.03288).
    """

    mass = "gate_bias"
    normalised = True
    joint = False
    linear = False

    @classmethod
    def of(cls, options: Params, truth: Params) -> Gate:
        """The gate of a study's ``gate_options`` and ``[truth]``."""
        return cls(**options)

    def parameters(self, dimension: int) -> dict[str, Parameter]:
        """The declaration of every parameter, by name."""
        raise NotImplementedError

    def log_weights(self, params: Params, x):
        """Logarithms of the weights at one x (dimension,): (K,)."""
        raise NotImplementedError

    # What follows from these; a gate may know better.

    @property
    def gauge(self) -> str | None:
        """See ``Model.gauge``: what ``GATE`` pins may be translated."""
        pinned = [name for name, p in self.parameters(1).items() if p.domain is GATE]
        return "+".join(name for name in pinned if name != self.mass) if self.mass in pinned else None

    def log_weight(self, params: Params):
        """Logarithms of the masses of the atoms, (K,)."""
        mass = jnp.asarray(params[self.mass])
        return jnp.log(mass) if self.parameters(1)[self.mass].domain is SIMPLEX else mass

    def divide_mass(self, params: Params, among: np.ndarray) -> np.ndarray:
        """``mass`` of the atoms when each is one of so many equal copies, (K,)."""
        mass = np.asarray(params[self.mass])
        return mass / among if self.parameters(1)[self.mass].domain is SIMPLEX else mass - np.log(among)

    def divisible(self, params: Params) -> np.ndarray:
        """Which atoms can be split so that the function stays, (K,)."""
        return np.ones(len(params[self.mass]), bool)

    @property
    def has_canonical(self) -> bool:
        """Whether it has a gauge of scale, and so a ``canonical`` of its own."""
        return type(self).canonical is not Gate.canonical

    def canonical(self, params: Params) -> Params:
        """The representative under a gauge of scale."""
        return params

    def order(self, params: Params) -> Any:
        """Numbers of the atoms in canonical order, (K,), where that is not arbitrary."""
        return None

    def kinds(self, count: int) -> np.ndarray | None:
        """Numbers of the kinds of so many atoms, (count,), where an atom is compared with those of its kind only."""
        return None

    def draw_x(self, params: Params, key):
        """One x (dimension,), where the gate is joint."""
        raise NotImplementedError

    def x_mixture(self, params: Params) -> tuple[Any, Any, Any]:
        """See ``Density.x_mixture``, where the gate is joint."""
        raise NotImplementedError


def logits(params: Params, x):
    """u_i at one x, (K,)."""
    return jnp.asarray(params["gate_bias"]) + jnp.asarray(params["gate_slope"]) @ x


def length(v):
    """Norms along the last axis, with gradient 0 at 0."""
    square = jnp.sum(v**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def direction(v):
    """v / ||v|| along the last axis, 0 at 0."""
    norm = length(v)[..., None]
    return v / jnp.where(norm > 0, norm, 1.0)


def linear_parameters(dimension: int, domain: Domain = GATE) -> dict[str, Parameter]:
    """gate_bias (K,) and gate_slope (K, d)."""
    return {"gate_bias": Parameter((), domain, "bias_bound"), "gate_slope": Parameter((dimension,), domain)}


class Softmax(Gate):
    """softmax_i(u_i) (arXiv 2305.03288, 2402.02952)."""

    linear = True

    def parameters(self, dimension):
        return linear_parameters(dimension)

    def log_weights(self, params, x):
        return jax.nn.log_softmax(logits(params, x))


class Sigmoid(Gate):
    """S(u_i), the logistic function, not normalised (arXiv 2405.13997). The mass of an atom is S(gate_bias_i).

    S(u) is a sum of several S only where it is constant: an atom can be split where its slope is 0.
    """

    normalised = False

    def parameters(self, dimension):
        return linear_parameters(dimension, REAL)

    def log_weights(self, params, x):
        return jax.nn.log_sigmoid(logits(params, x))

    def log_weight(self, params):
        return jax.nn.log_sigmoid(jnp.asarray(params["gate_bias"]))

    def divide_mass(self, params, among):
        share = 1 / (1 + np.exp(-np.asarray(params["gate_bias"]))) / among
        return np.log(share) - np.log1p(-share)

    def divisible(self, params):
        return np.all(np.asarray(params["gate_slope"]) == 0, axis=1)


class NormalisedSigmoid(Sigmoid):
    """S(u_i) / sum_j S(u_j) (arXiv 2505.10860, appendix A)."""

    normalised = True

    def log_weights(self, params, x):
        return jax.nn.log_softmax(super().log_weights(params, x))


class Laplace(Gate):
    """softmax_i(gate_bias_i - ||x - gate_center_i||) (arXiv 2402.03226, section 3)."""

    def parameters(self, dimension):
        return {"gate_bias": Parameter((), GATE, "bias_bound"), "gate_center": Parameter((dimension,))}

    def log_weights(self, params, x):
        distance = length(x - jnp.asarray(params["gate_center"]))
        return jax.nn.log_softmax(jnp.asarray(params["gate_bias"]) - distance)


class Cosine(Gate):
    """softmax_i(gate_bias_i + cos(gate_slope_i, x)) (arXiv 2405.14131): only the direction of a slope is seen."""

    def parameters(self, dimension):
        return {"gate_bias": Parameter((), GATE, "bias_bound"), "gate_slope": Parameter((dimension,))}

    def log_weights(self, params, x):
        cosine = direction(jnp.asarray(params["gate_slope"])) @ direction(x)
        return jax.nn.log_softmax(jnp.asarray(params["gate_bias"]) + cosine)

    def canonical(self, params):
        return params | {"gate_slope": direction(jnp.asarray(params["gate_slope"]))}


class PerturbedCosine(Gate):
    """softmax_i(gate_bias_i + gate_slope_i'x / ((||gate_slope_i|| + t1) (||x|| + t2))) (arXiv 2405.14131)."""

    def __init__(self, t1: float = 0.5, t2: float = 0.5):
        self.t1, self.t2 = (number(f"model.gate_options.{k}", v, 1e-300) for k, v in (("t1", t1), ("t2", t2)))

    def parameters(self, dimension):
        return {"gate_bias": Parameter((), GATE, "bias_bound"), "gate_slope": Parameter((dimension,))}

    def log_weights(self, params, x):
        slope = jnp.asarray(params["gate_slope"])
        cosine = slope @ x / ((length(slope) + self.t1) * (length(x) + self.t2))
        return jax.nn.log_softmax(jnp.asarray(params["gate_bias"]) + cosine)


class Quadratic(Gate):
    """softmax_i(u_i + sum_{a <= b} gate_matrix_i[ab] x_a x_b); monomial: without gate_slope (arXiv 2410.11222).

    gate_matrix (K, d (d + 1) / 2) holds the coefficients of the monomials: of a matrix only its symmetric part is seen.
    """

    def __init__(self, monomial: bool = False):
        self.monomial = flag("model.gate_options.monomial", monomial)

    @property
    def linear(self):  # type: ignore[override]
        return not self.monomial

    def parameters(self, dimension):
        found = linear_parameters(dimension) | {"gate_matrix": Parameter((dimension * (dimension + 1) // 2,), GATE)}
        return {k: p for k, p in found.items() if not (self.monomial and k == "gate_slope")}

    def log_weights(self, params, x):
        first, second = np.triu_indices(len(x))
        logit = jnp.asarray(params["gate_bias"]) + jnp.asarray(params["gate_matrix"]) @ (x[first] * x[second])
        return jax.nn.log_softmax(logit if self.monomial else logit + jnp.asarray(params["gate_slope"]) @ x)


class Temperature(Gate):
    """softmax_i(u_i / temperature), one learned temperature for all (arXiv 2401.13875).

    Gates and temperature may be scaled together: canonical is the temperature 1.
    """

    linear = True

    def parameters(self, dimension):
        shared = Parameter((), POSITIVE, exponents=(1.0,), shared=True)
        return {**linear_parameters(dimension), "temperature": shared}

    def log_weights(self, params, x):
        return jax.nn.log_softmax(logits(params, x) / params["temperature"])

    def divide_mass(self, params, among):
        return np.asarray(params["gate_bias"]) - np.asarray(params["temperature"]) * np.log(among)

    def canonical(self, params):
        t = jnp.asarray(params["temperature"])
        return params | {"temperature": t / t} | {k: params[k] / t for k in ("gate_bias", "gate_slope")}


_ACTIVATIONS: dict[str, Any] = {
    "tanh": lambda z: jnp.tanh(z), "sigmoid": lambda z: jax.nn.sigmoid(z),
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
}  # fmt: skip


class ActivatedTemperature(Temperature):
    """softmax_i((activation(gate_slope_i'x) + gate_bias_i) / temperature), one learned temperature for all
    (arXiv 2401.13875): tanh, sigmoid or gelu.

    How high the activation rises tells the temperature, so there is no gauge of scale.
    """

    linear = False
    canonical = Gate.canonical  # none of its own

    def __init__(self, activation: str = "tanh"):
        self.activation = one_of("model.gate_options.activation", activation, _ACTIVATIONS)

    def parameters(self, dimension):
        return super().parameters(dimension) | {"gate_slope": Parameter((dimension,))}

    def log_weights(self, params, x):
        raised = _ACTIVATIONS[self.activation](jnp.asarray(params["gate_slope"]) @ x)
        return jax.nn.log_softmax((jnp.asarray(params["gate_bias"]) + raised) / params["temperature"])

    def log_weight(self, params):
        return jnp.asarray(params["gate_bias"]) / params["temperature"]


class TopK(Gate):
    """Softmax of the k largest u_i, the others 0 (arXiv 2309.13850). The selection is by u_i, bias included.

    No atom can be split: its copies would take places of others. Where one is selected at a time (k = 1), gates may be
    scaled together: canonical is where their bias and slope, centred, have norm 1.
    """

    linear = True

    def __init__(self, k: int = 1):
        self.k = whole("model.gate_options.k", k, 1)

    def parameters(self, dimension):
        return {name: replace(p, jumps=True) for name, p in linear_parameters(dimension).items()}

    def log_weights(self, params, x):
        u = logits(params, x)
        chosen = jnp.zeros(len(u), bool).at[jax.lax.top_k(u, min(self.k, len(u)))[1]].set(True)
        return jax.nn.log_softmax(jnp.where(chosen, u, -jnp.inf))

    def divisible(self, params):
        return np.zeros(len(params["gate_bias"]), bool)

    @property
    def has_canonical(self):
        return self.k == 1

    def canonical(self, params):
        if not self.has_canonical:
            return params
        gates = {name: jnp.asarray(params[name]) for name in ("gate_bias", "gate_slope")}
        square = sum(jnp.sum((v - jnp.mean(v, axis=0)) ** 2) for v in gates.values())
        scale = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        return params | {name: v / scale for name, v in gates.items()}


class Constant(Gate):
    """weight_i, whatever x is: mixtures of regressions (arXiv 1907.04377)."""

    mass = "weight"

    def parameters(self, dimension):
        return {"weight": Parameter((), SIMPLEX, "bias_bound")}

    def log_weights(self, params, x):
        return jnp.log(jnp.asarray(params["weight"]))


class Gaussian(Gate):
    """weight_i N(x; center_i, covariance_i), so that the model is a joint density of (x, y) (arXiv 2305.07572).

    covariance_range: of the squared diagonal of Cholesky factors; four times wider than the true values by default.
    """

    mass = "weight"
    joint = True

    def __init__(self, covariance_range: Range = (1e-4, 1e4)):
        self.covariance_range = covariance_range

    @classmethod
    def of(cls, options, truth):
        if "covariance" not in truth:
            raise InputError("truth.covariance is missing: add it to the study")
        covariance = array("truth.covariance", truth["covariance"], (None, None, None))
        SPD.check("truth.covariance", covariance)
        square = np.diagonal(np.linalg.cholesky(covariance), axis1=1, axis2=2) ** 2
        table = {f"gate_options.{k}": v for k, v in options.items()}
        return cls(scale_range("gate_options.covariance_range", table, square))

    def parameters(self, dimension):
        return {
            "weight": Parameter((), SIMPLEX, "bias_bound"),
            "center": Parameter((dimension,)),
            "covariance": Parameter((dimension, dimension), SPD, self.covariance_range),
        }

    def log_weights(self, params, x):
        factor = jnp.linalg.cholesky(jnp.asarray(params["covariance"]))
        unit = jax.vmap(lambda low, gap: jax.scipy.linalg.solve_triangular(low, gap, lower=True))(
            factor, x - jnp.asarray(params["center"])
        )
        scale = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
        return jnp.log(jnp.asarray(params["weight"])) - scale - 0.5 * (jnp.sum(unit**2, axis=1) + len(x) * LOG_2PI)

    def x_mixture(self, params):
        return tuple(jnp.asarray(params[name]) for name in ("weight", "center", "covariance"))

    def draw_x(self, params, key):
        key_k, key_x = jax.random.split(key)
        k = jax.random.categorical(key_k, jnp.log(jnp.asarray(params["weight"])))
        factor = jnp.linalg.cholesky(jnp.asarray(params["covariance"])[k])
        center = jnp.asarray(params["center"])[k]
        return center + factor @ jax.random.normal(key_x, center.shape)


GATES: dict[str, type[Gate]] = {
    "softmax": Softmax, "sigmoid": Sigmoid, "normalised-sigmoid": NormalisedSigmoid, "laplace": Laplace,
    "cosine": Cosine, "perturbed-cosine": PerturbedCosine, "quadratic": Quadratic, "temperature": Temperature,
    "activated-temperature": ActivatedTemperature, "top-k": TopK, "constant": Constant, "gaussian": Gaussian,
}  # fmt: skip
