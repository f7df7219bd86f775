"""The declaration: parameters, domains and bounds; shapes of what the model says; that it is pure, and an argument."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law
from moe_sim.errors import InputError
from moe_sim.models import coordinates
from moe_sim.models.base import Density, Model, ModelError, Parameters, Regression
from moe_sim.models.parameter import Parameter
from moe_sim.models.support import Support
from moe_sim.testing.asking import asked, called
from moe_sim.testing.probe import Probe, gap, value_of


def read_truth(model: Model, truth: Parameters) -> Parameters:
    """The truth as arrays, in the domains and bounds that are declared. Raises ``ModelError``."""
    name = type(model).__name__
    with asked(model, "parameters"):
        declared = model.parameters()
    wrong = {k: v for k, v in dict(declared).items() if not isinstance(v, Parameter)}
    if wrong or not declared:
        found = ", ".join(f"{k!r}: {v!r}" for k, v in wrong.items()) or "nothing"
        raise ModelError(f"{name}.parameters gives {found}: give a dict of ms.Parameter by name")
    _masses(model, declared)
    if not any(model.exponents.values()):
        raise ModelError(f"{name}: no parameter of an atom has exponents, so the loss has no block: give one some")
    extra = set(truth) - set(declared)
    if extra:
        raise ModelError(f"truth.{min(extra)} is no parameter of {name}: pass {', '.join(declared)}")
    try:
        sizes = {group: len(np.atleast_1d(truth[mass])) for group, mass in model.masses.items() if mass in truth}
        shapes = model.shapes({group: sizes.get(group, 1) for group in model.groups})
        arrays = coordinates.read_truth(declared, shapes, truth)
        bounds = model.bounds(model.sizes_of(arrays), *model.default_bounds)
        coordinates.outside(declared, model.unconstrain(arrays), *bounds)
    except InputError as error:
        raise ModelError(f"{name}: {error}") from None
    return arrays


def _masses(model: Model, declared: dict[str, Parameter]) -> None:
    for group, mass in model.masses.items():
        p = declared.get(mass)
        if p is None or p.shape != () or p.shared or (p.group or model.groups[0]) != group:
            raise ModelError(
                f"{type(model).__name__}: {mass!r} cannot hold the masses of its {group}: set mass = the name of a "
                "parameter of shape (), a number an atom"
            )


def check_free_coordinates(probe: Probe) -> None:
    """``constrain`` stays in the domain, and ``unconstrain`` is its inverse, anywhere within the bounds."""
    model, shapes = probe.model, probe.model.shapes(probe.atoms)
    for free, params in zip(probe.random_free(2), probe.somewhere, strict=True):
        with asked(model, "constrain"):
            params = {name: np.asarray(v) for name, v in model.constrain(free).items()}
        for name, p in probe.declared.items():
            if name not in params or params[name].shape != shapes[name]:
                found = params[name].shape if name in params else "nothing"
                raise ModelError(f"{name}: constrain gives {found} where shape {shapes[name]} is declared: mend it")
            try:
                p.domain.check(name, params[name])
            except InputError as error:
                raise ModelError(f"{name}: constrain leaves the domain of the parameter, {error}") from None
        with asked(model, "unconstrain"):
            back = {name: np.asarray(v) for name, v in model.unconstrain(params).items()}
        for name, value in free.items():
            if name not in back or back[name].shape != value.shape or not np.allclose(back[name], value, atol=1e-7):
                raise ModelError(
                    f"{name}: unconstrain(constrain(free)) gives {back.get(name)} for {value}: make one the inverse of "
                    "the other"
                )


def check_shapes(model: Model, truth: Parameters, law: Law | None) -> None:
    """Shapes of ``mean`` or ``log_density``, and the attributes that go with them. Nothing is compiled yet."""
    name = type(model).__name__
    for attribute in ("dimension", "outputs"):
        if not isinstance(getattr(model, attribute, None), int):
            raise ModelError(f"{name}.{attribute} = {getattr(model, attribute, None)!r}: set it to a whole number")
    if (law is None) != model.joint:
        raise ModelError(
            f"{name} is {'a joint density, which draws its own x' if model.joint else 'no joint density'}: pass "
            f"{'law = None' if model.joint else 'the law of x'}"
        )
    if law is not None and law.dimension != model.dimension:
        raise ModelError(f"{name}.dimension = {model.dimension}, but the law has {law.dimension}: make them the same")
    _check_attributes(model)
    noise: Any = getattr(model, "noise", None)
    if isinstance(model, Regression) and (noise is None or np.ndim(noise) or not noise > 0):
        raise ModelError(f"{name}.noise = {noise!r}: set it to the standard deviation of y, a positive number")
    if isinstance(model, Density) and not isinstance(getattr(model, "support", None), Support):
        raise ModelError(
            f"{name}.support = {getattr(model, 'support', None)!r}: set it to ms.Labels(count), ms.Counts() or "
            "ms.Real()"
        )
    method, wanted = ("mean", (model.outputs,)) if isinstance(model, Regression) else ("log_density", ())
    x, y = jnp.zeros(model.dimension), jnp.zeros(model.outputs)
    with asked(model, method):
        found = jax.eval_shape(value_of, model, truth, x, y)
    if getattr(found, "shape", None) != wanted:
        shape = f"shape {found.shape}" if hasattr(found, "shape") else repr(found)
        raise ModelError(f"{called(model, method)} gives {shape} at one x: give {wanted or 'a scalar, shape ()'}")


def _check_attributes(model: Model) -> None:
    """Attributes are arrays, numbers, structure, or parts that hold such."""
    for name, value in vars(model).items():
        for leaf in jax.tree.leaves(value):
            if np.asarray(leaf).dtype == object and not callable(leaf):
                raise ModelError(
                    f"{type(model).__name__}.{name} holds {type(leaf).__name__}, which cannot be an argument of "
                    "compiled code: hold numbers, arrays, strings, functions, or lists and dicts of them"
                )


def check_pure(probe: Probe) -> None:
    """The model as it stands gives what it gives as an argument of compiled code, and another of its class compiles
    nothing new."""
    model, (x, y) = probe.model, probe.sites
    traced: list[int] = []

    def traces(model: Any, params, x, y):
        traced.append(1)
        return value_of(model, params, x, y)

    run = jax.jit(traces)
    with asked(model, probe.method):
        alone = np.asarray(jax.jit(lambda params: value_of(model, params, x[0], y[0]))(probe.truth))
        for one in (model, _twin(model)):
            jax.eval_shape(run, one, probe.truth, x[0], y[0])
    if gap(alone, probe.at_truth[0]):
        raise ModelError(
            f"{probe.name} gives {alone} and then {probe.at_truth[0]} at the same truth and x: let it depend on "
            "params, x and attributes set in __init__ alone (draw nothing in it, keep nothing)"
        )
    if len(traced) > 1:
        raise ModelError(
            f"{type(model).__name__}: a second model with other numbers is compiled anew: hold numbers as floats or "
            "arrays, and objects as a ms.Part (functions and objects are compared by identity)"
        )


def _twin(model: Model) -> Model:
    """A model made like this one, its numbers others."""

    def other(leaf):
        value = np.asarray(leaf)
        return value * (1 + 1e-6) if np.issubdtype(value.dtype, np.floating) else value

    return jax.tree.map(other, copy.deepcopy(model))
