"""Mixtures of experts composed of a gate, an expert and a response (``gates``, ``experts``, ``responses``).

    least squares:  f(x) = sum_k weight_k(x) value_k(x), y = f(x) + noise
    densities:      p(y | x) = sum_k weight_k(x) p(y | value_k(x)), or p(x, y) where weights are densities of x

Where a model with written-out passes is the same, it is that model.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import replace
from typing import Any, cast

import numpy as np

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError, array, number, whole
from moe_sim.models import gaussian_gated
from moe_sim.models.base import Density, Model, Parameters, Regression
from moe_sim.models.experts import EXPERTS, Affine, Expert
from moe_sim.models.gates import GATES, Gate, Gaussian, Softmax
from moe_sim.models.gaussian import HALF_RBAR_EXPONENTS, RBAR_EXPONENTS, sizes
from moe_sim.models.parameter import Parameter
from moe_sim.models.responses import RESPONSES, LeastSquares, Response
from moe_sim.models.responses import Gaussian as GaussianResponse
from moe_sim.models.softmax_gaussian import SoftmaxGaussian

TABLE: dict = dict.fromkeys((
    "family", "gate", "expert", "response", "noise", "dimension", "outputs", "exponents", "gate_options",
    "expert_options", "response_options",
))  # fmt: skip
REQUIRED = ("gate", "expert", "response")
KINDS: dict[str, tuple[type, dict]] = {
    "gate": (Gate, GATES), "expert": (Expert, EXPERTS), "response": (Response, RESPONSES),
}  # fmt: skip
Exponents = dict[str, tuple[float, ...] | None]


class Composed(Model):
    """Parameters are those of the gate, of the experts and of the response.

    given: exponents in place of the usual ones, by name of the block; None: the loss has no such block.
    """

    def __init__(self, gate: Gate, expert: Expert, response: Response, dimension: int, outputs: int = 1,
                 given: Exponents | None = None):  # fmt: skip
        self.gate, self.expert, self.response = gate, expert, response
        self.dimension, self.outputs, self.given = dimension, outputs, dict(given or {})

    def expert_parameters(self) -> dict[str, Parameter]:
        """Of experts and response: what an atom has beside its gate."""
        values = self.response.expert_outputs(self.outputs)
        return self.expert.parameters(self.dimension, values) | self.response.parameters(self.outputs)

    def parameters(self):
        found = self.gate.parameters(self.dimension) | self.expert_parameters()
        exponents = exponents_of(self.gate, self.expert, self.response) | self.given
        return {name: replace(p, exponents=exponents.get(name, p.exponents)) for name, p in found.items()}

    @property
    def masses(self):
        return {self.groups[0]: self.gate.mass}

    @property
    def gauge(self):
        return self.gate.gauge

    @property
    def variances(self):
        return self.response.variances

    def log_weight(self, params):
        return self.gate.log_weight(params)

    def log_shares(self, params, x):
        return self.log_weight(params) if self.gate.joint else self.gate.log_weights(params, x)

    def shapes(self, atoms):
        self.gate.kinds(self.total(atoms))  # raises where they do not fit into its groups
        return super().shapes(atoms)

    def measure(self, params):
        found = super().measure(params)
        kinds = self.gate.kinds(len(found.log_weight))
        return found if kinds is None else found._replace(group=jnp.asarray(kinds))

    def spare(self, rng, true, fitted):
        kinds, wanted = (self.gate.kinds(self.total(atoms)) for atoms in (true, fitted))
        if kinds is None or wanted is None:
            return super().spare(rng, true, fitted)
        more = np.bincount(wanted) - np.bincount(kinds)
        return np.concatenate([rng.choice(np.flatnonzero(kinds == k), more[k]) for k in range(len(more))])

    def overfit(self, params, atoms):
        declared, atoms = self.parameters(), np.asarray(atoms)
        kinds, wanted = self.gate.kinds(self.count(params)), self.gate.kinds(len(atoms))
        if kinds is not None and wanted is not None:
            atoms = atoms[np.argsort(kinds[atoms], kind="stable")]
            if not np.array_equal(kinds[atoms], wanted):
                raise InputError(f"atoms = {atoms.tolist()} are not as many of each group: pass as many copies of each")
        found = {k: np.array(v) if declared[k].shared else np.asarray(v)[atoms] for k, v in params.items()}
        return found | {self.gate.mass: self.gate.divide_mass(found, np.bincount(atoms)[atoms])}

    def divisible(self, params):
        return self.gate.divisible(params)

    @property
    def has_canonical(self):
        return self.gate.has_canonical or self.expert.has_canonical

    def canonical(self, params):
        order, declared = self.gate.order(params), self.parameters()
        if order is not None:
            params = {k: v if declared[k].shared else jnp.asarray(v)[order] for k, v in params.items()}
        return self.expert.canonical(self.gate.canonical(params))

    def atoms(self, params: Parameters) -> tuple[Parameters, dict[str, int | None]]:
        """What experts and response are of, and the axis of atoms in each of these parameters."""
        declared = self.expert_parameters()
        rows = {name: jnp.asarray(params[name]) for name in declared}
        return rows, {name: None if p.shared else 0 for name, p in declared.items()}

    def values(self, params: Parameters, x):
        """Of all experts at one x, (K, expert outputs)."""
        rows, axes = self.atoms(params)
        return jax.vmap(lambda atom: self.expert.value(atom, x), (axes,))(rows)


class MoeRegression(Composed, Regression):
    """See the module; noise: standard deviation of y about the mean, known."""

    def __init__(self, gate: Gate, expert: Expert, noise: float, dimension: int, outputs: int = 1,
                 given: Exponents | None = None):  # fmt: skip
        super().__init__(gate, expert, LeastSquares(), dimension, outputs, given)
        self.noise = noise

    def mean(self, params, x):
        return jnp.exp(self.gate.log_weights(params, x)) @ self.values(params, x)


class MoeDensity(Composed, Density):
    """See the module. It is fitted by EM too."""

    @property
    def support(self):  # type: ignore[override]
        return self.response.support

    @property
    def joint(self):  # type: ignore[override]
        return self.gate.joint

    def log_components(self, params, x, y):
        rows, axes = self.atoms(params)
        density = jax.vmap(lambda atom: self.response.log_density(atom, self.expert.value(atom, x), y), (axes,))
        return self.gate.log_weights(params, x) + density(rows)

    def log_density(self, params, x, y):
        return jax.nn.logsumexp(self.log_components(params, x, y))

    def spread(self, params, x):
        rows, axes = self.atoms(params)
        centre, scale = jax.vmap(lambda atom: self.response.spread(atom, self.expert.value(atom, x)), (axes,))(rows)
        return centre.reshape(-1, self.outputs), scale.reshape(-1, self.outputs)

    def draw(self, params, key, x):
        """An expert by its gate, then y from that expert."""
        key_k, key_y = jax.random.split(key)
        k = jax.random.categorical(key_k, self.gate.log_weights(params, x))
        rows, axes = self.atoms(params)
        atom = {name: value if axes[name] is None else value[k] for name, value in rows.items()}
        return self.response.draw(atom, key_y, self.expert.value(atom, x))

    def x_mixture(self, params):
        return self.gate.x_mixture(params)

    def draw_rows(self, params, law, key, index, size):
        if not self.joint:
            return super().draw_rows(params, law, key, index, size)
        key_x, key_y = (jax.random.split(k, len(index)) for k in jax.random.split(key))
        x = jax.vmap(lambda k: self.gate.draw_x(params, k))(key_x)
        return x, jax.vmap(lambda k, one: self.draw(params, k, one))(key_y, x)


def exponents_of(gate: Gate, expert: Expert, response: Response) -> Exponents:
    """Exponents of blocks that are not (1, 2): affine experts, by the response (see there).

    Where gates are linear in x too, d2/(d gate_slope d intercept) = d/d slope (arXiv 2305.03288, theorem 2).
    """
    if not (expert.affine and response.exponents):
        return {}
    found: Exponents = dict(response.exponents)
    if gate.linear and isinstance(expert, Affine):
        found |= {"gate_slope": RBAR_EXPONENTS, "slope": HALF_RBAR_EXPONENTS}
    return found


def build(table: dict, truth: dict) -> Model:
    """The model of a study's ``[model]`` table; parts are names, or classes. Raises ``InputError``."""
    gate, expert, response = parts_of(table, truth)
    _noise(table, response)  # a table that is wrong is so for all
    if type(expert) is Affine and isinstance(response, GaussianResponse) and response.variance is None:
        if type(gate) is Softmax and "exponents" not in table:
            return SoftmaxGaussian(*sizes(truth, "gate_slope"), response.variance_range)
        if type(gate) is Gaussian and "exponents" not in table:
            ranges = {"variance_range": response.variance_range, "covariance_range": gate.covariance_range}
            return gaussian_gated.build(ranges, truth)
    return compose(table, truth, gate, expert, response)


def compose(table: dict, truth: dict, gate: Gate, expert: Expert, response: Response) -> Composed:
    """The model of these parts, its passes by automatic differentiation."""
    noise = _noise(table, response)
    _can_be_joined(table, gate, noise)
    dimension, outputs = dimensions(table, truth, gate, expert, response)
    given = given_exponents(table)
    if noise is None:
        model: Composed = MoeDensity(gate, expert, response, dimension, outputs, given)
    else:
        model = MoeRegression(gate, expert, noise, dimension, outputs, given)
    for name in given:
        if name not in model.parameters():
            raise InputError(f"model.exponents.{name} is no parameter of the model: {_near(name, model.parameters())}")
    return model


def _can_be_joined(table: dict, gate: Gate, noise: float | None) -> None:
    """Raises ``InputError`` where gate and response make no model."""
    if noise is None and not gate.normalised:
        raise InputError(
            f"model.gate = {_called(table['gate'])} has weights that do not add up to 1, so that there is no density: "
            "pass gate = 'normalised-sigmoid', or response = 'least-squares'"
        )
    if noise is not None and gate.joint:
        raise InputError(
            f"model.gate = {_called(table['gate'])} is a density of x, and least squares are given x: "
            "pass response = 'gaussian', or another gate"
        )


def draws_x(table: dict) -> bool:
    """Whether the model is a joint density, and so the study has no law of x."""
    gate = table.get("gate")
    gate = GATES.get(gate, Gate) if isinstance(gate, str) else gate
    return isinstance(gate, type) and bool(getattr(gate, "joint", False))


DRAWS_X = draws_x


def parts_of(table: dict, truth: dict) -> tuple[Gate, Expert, Response]:
    """The three parts that a table names, with their options."""
    gate, expert, response = (part_of(kind, table, truth) for kind in KINDS)
    return gate, expert, response


def part_of(kind: str, table: dict, truth: dict, prefix: str = "", known: tuple[type, dict] | None = None) -> Any:
    """The part that ``table[prefix + kind]`` names, with its options. Raises ``InputError``."""
    key, (base, names) = prefix + kind, known or KINDS[kind]
    named = table[key]
    part = named if isinstance(named, type) else names.get(named) if isinstance(named, str) else None
    if part is None:
        raise InputError(f"model.{key} = {named!r} is not known: {_near(str(named), names)}")
    if not issubclass(part, base):
        raise InputError(f"model.{key} = {part.__name__} is no {kind}: make it a subclass of {base.__name__}")
    options, field = table.get(f"{key}_options", {}), f"model.{key}_options"
    if not isinstance(options, dict):
        raise InputError(f"{field} = {options!r} is no table: write [{field}] and its keys below it")
    wanted = list(inspect.signature(part).parameters)
    for name in options:
        if name not in wanted:
            raise InputError(f"{field}.{name} is not an option of {_called(named)}: {_near(name, wanted)}")
    return cast(Any, part).of(options, truth)


def _called(named) -> str:
    return named.__name__ if isinstance(named, type) else repr(named)


def _near(name: str, known) -> str:
    if not known:
        return "it has none, leave it out"
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _noise(table: dict, response: Response) -> float | None:
    """Standard deviation of the noise, for least squares; None for a density."""
    if not isinstance(response, LeastSquares):
        if "noise" in table:
            raise InputError(
                f"model.noise = {table['noise']!r} belongs to response = 'least-squares': leave it out, or change the "
                "response"
            )
        return None
    if "noise" not in table:
        raise InputError("model.noise is missing: least squares need the standard deviation of y, add it")
    noise = number("model.noise", table["noise"])
    if noise <= 0:
        raise InputError(f"model.noise = {noise}: a standard deviation must be positive")
    return noise


def given_exponents(table: dict) -> Exponents:
    """``model.exponents``: a list of exponents for each block named, an empty one for no block."""
    given = table.get("exponents", {})
    if not isinstance(given, dict):
        raise InputError(f"model.exponents = {given!r} is no table: write exponents = {{gate_slope = [1, 2]}}")
    found = {name: array(f"model.exponents.{name}", value, (None,)).tolist() for name, value in given.items()}
    for name, powers in found.items():
        if any(power < 1 for power in powers):
            raise InputError(f"model.exponents.{name} = {powers}: pass exponents of at least 1")
    return {name: tuple(powers) or None for name, powers in found.items()}


_D, _O = 101, 103  # sizes that parts are declared with, to see which axis of a parameter is which


def dimensions(table: dict, truth: dict, gate: Gate, expert: Expert, response: Response) -> tuple[int, int]:
    """Dimension of x and outputs of y: ``model.dimension`` and ``model.outputs``, or those of the truth's arrays."""
    outputs = 1
    if "outputs" in table:
        outputs = whole("model.outputs", table["outputs"], 1)
    elif not response.single:
        outputs = _outputs(truth, expert.parameters(_D, _O))
    if response.single and outputs != 1:
        raise InputError(f"model.outputs = {outputs}: y is one number under this response, leave model.outputs out")
    if "dimension" in table:
        return whole("model.dimension", table["dimension"], 1), outputs
    declared = gate.parameters(_D) | expert.parameters(_D, response.expert_outputs(outputs))
    for name, p in declared.items():
        if _D in p.shape:
            if name not in truth:
                raise InputError(f"truth.{name} is missing: add it to the study")
            shape = array(f"truth.{name}", truth[name], (None,) * (len(p.shape) + (not p.shared))).shape
            dimension = shape[p.shape.index(_D) + (not p.shared)]
            if dimension == 0:
                raise InputError(f"truth.{name} has empty rows: give each atom at least one number")
            return dimension, outputs
    raise InputError("model.dimension is missing: no parameter of [truth] says how many coordinates x has, add it")


def _outputs(truth: dict, several: dict[str, Parameter]) -> int:
    """Outputs of experts: the length of the axis that parameters have where there are several."""
    for name, p in several.items():
        axes = len(p.shape) + (not p.shared)
        if _O in p.shape and name in truth and np.ndim(np.asarray(truth[name], dtype=object)) == axes:
            shape = array(f"truth.{name}", truth[name], (None,) * axes).shape
            return max(1, shape[p.shape.index(_O) + (not p.shared)])
    return 1
