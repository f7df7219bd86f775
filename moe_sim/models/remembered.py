"""What a run folder remembers of a model from outside: enough for verdicts and figures, without running its code."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from moe_sim.errors import InputError
from moe_sim.models import domains
from moe_sim.models.base import Density, Model, Regression
from moe_sim.models.parameter import Parameter

_DOMAINS = {name: getattr(domains, name) for name in ("REAL", "GATE", "POSITIVE", "SIMPLEX", "SPD")}

_ASKED = ("masses", "gauge", "exponents", "shared_exponents", "canonical", "variances", "estimators", "clusters",
          "ceilings")  # fmt: skip


def facts(model: Model) -> dict[str, Any]:
    """What validation, verdicts and figures ask of a model, as plain JSON."""
    return {
        "class": type(model).__name__, "kind": "regression" if isinstance(model, Regression) else "density",
        "dimension": int(model.dimension), "outputs": int(model.outputs), "joint": bool(model.joint),
        "masses": model.masses, "gauge": model.gauge, "exponents": _lists(model.exponents),
        "shared_exponents": _lists(model.shared_exponents), "default_bounds": list(model.default_bounds),
        "canonical": bool(model.has_canonical), "variances": list(model.variances),
        "estimators": list(model.estimators), "clusters": bool(model.clusters),
        "parameters": {name: _declaration(p) for name, p in model.parameters().items()},
    }  # fmt: skip


def remembered(told: dict[str, Any]) -> Model:
    """The model of these facts. What computes with it raises ``InputError``, which names the remedy."""
    try:
        return (RememberedRegression if told["kind"] == "regression" else RememberedDensity)(told)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            "model.json of the run folder does not say what its model is: run the study again with the same --out, "
            "nothing is computed anew"
        ) from None


def must_compute(model: Model) -> None:
    """Raises ``InputError`` where a model is only remembered."""
    if isinstance(model, _Remembered):
        model.refuse()


class _Remembered(Model):
    def __init__(self, told: dict[str, Any]):
        self.told = told
        self.dimension, self.outputs, self.joint = told["dimension"], told["outputs"], told["joint"]
        self.default_bounds = tuple(told["default_bounds"])
        self.declared = {name: _parameter(p) for name, p in told["parameters"].items()}
        for name in _ASKED:
            told[name]  # a KeyError here, not later

    def parameters(self):
        return self.declared

    masses = property(lambda self: self.told["masses"])
    gauge = property(lambda self: self.told["gauge"])
    exponents = property(lambda self: {k: tuple(v) for k, v in self.told["exponents"].items()})
    shared_exponents = property(lambda self: {k: tuple(v) for k, v in self.told["shared_exponents"].items()})
    has_canonical = property(lambda self: self.told["canonical"])
    variances = property(lambda self: tuple(self.told["variances"]))
    estimators = property(lambda self: tuple(self.told["estimators"]))
    clusters = property(lambda self: self.told["clusters"])

    def measure(self, params):
        self.refuse()

    def draw_rows(self, params, law, key, index, size):
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raises the ``InputError`` of all that would need the code of the model."""
        raise InputError(
            f"the model of this run, {self.told['class']}, is code in its folder, which is not run unasked: read it in "
            "model/, then pass --trust-model (load_results(..., trust_model=True))"
        )


class RememberedRegression(_Remembered, Regression):
    noise = property(lambda self: self.refuse())

    def mean(self, params, x):
        self.refuse()


class RememberedDensity(_Remembered, Density):
    def log_density(self, params, x, y):
        self.refuse()


def _lists(exponents: dict[str, tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: [float(v) for v in values] for name, values in exponents.items()}


def _declaration(p: Parameter) -> dict[str, Any]:
    name = next((name for name, domain in _DOMAINS.items() if p.domain is domain), None)
    return {
        "shape": list(p.shape), "domain": name, "bound": list(p.bound) if isinstance(p.bound, tuple) else p.bound,
        "shared": p.shared, "group": p.group, "known": None if p.known is None else np.asarray(p.known).tolist(),
    }  # fmt: skip


def _parameter(told: dict[str, Any]) -> Parameter:
    """The declaration, without exponents, which are kept beside. A domain of one's own is not checked again."""
    bound = tuple(told["bound"]) if isinstance(told["bound"], list) else told["bound"]
    domain = _DOMAINS.get(told["domain"], domains.REAL)
    return Parameter(
        tuple(told["shape"]), domain, bound if told["domain"] else (-np.inf, np.inf), None, told["shared"],
        told["group"], told["known"],
    )  # fmt: skip
