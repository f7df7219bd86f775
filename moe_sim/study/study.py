"""A study: what is asked, in full. TOML in and out, validation, and the digest that a run is known by."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from moe_sim.data.covariates import Law, build_law
from moe_sim.errors import InputError, array, number, one_of, whole
from moe_sim.fitting.multistart import LIMITS, FitOptions, estimators
from moe_sim.fitting.starts import RULES
from moe_sim.losses.voronoi import Loss, loss_of, standard_losses
from moe_sim.models import FAMILIES, coordinates
from moe_sim.models.base import Atoms, Model, Parameters, Regression
from moe_sim.solvers.gradient import OPTIMIZERS
from moe_sim.study.schema import LARGEST, Claim

LAW_KEYS = {
    "grid": {"name", "low", "high", "points"},
    "linspace": {"name", "low", "high", "points"},
    "uniform": {"name", "low", "high", "points", "finite"},
    "normal": {"name", "mean", "deviation", "points", "finite"},
    "tokens": {"name", "x"},
}
FIT_KEYS = {
    "atoms", "estimator", "start", "starts", "budget", "bound", "bias_bound", "max_iterations", "spread",
    "optimizer", "learning_rate", "tolerance", "spread_exponent",
}  # fmt: skip
SAMPLE_KEYS = {"mode", "sizes", "replicates", "seed", "truth"}
CLAIM_KEYS = {"loss", "kind", "exponent", "log_power", "window", "margin"}


@dataclass(frozen=True)
class Problem:
    """What the tables of a study mean: built objects, ready to run."""

    model: Model
    truth: Parameters
    law: Law | None
    options: FitOptions
    losses: list[Loss]
    mode: str
    sizes: list[int]
    replicates: int
    seed: int
    least_favourable: Loss | None  # the loss along whose least favourable measures the truth goes, None for the given


class Study:
    """A validated study. Keywords are the tables of a study file, with plain Python values.

    ``Study(name=..., model={...}, truth={...}, law={...}, fit={...}, sample={...}, claim=[{...}])``. Raises
    ``InputError`` naming the value and the remedy. ``tables`` is what was given, ``problem`` what it means.
    """

    def __init__(self, **tables: Any):
        _keys("", tables, {"name", "model", "truth", "law", "fit", "sample", "claim"})
        for name in ("name", "model", "truth", "law", "fit", "sample"):
            if name not in tables and not (name == "law" and _draws_x(tables)):
                raise InputError(
                    f"the study has no {name}: add {'name = ...' if name == 'name' else f'a [{name}] table'}"
                )
            if name != "name" and name in tables and not isinstance(tables[name], dict):
                raise InputError(f"{name} = {tables[name]!r} is no table: write [{name}] and its keys below it")
        if not isinstance(tables["name"], str) or not re.fullmatch(r"\w[\w.-]*", tables["name"]):
            raise InputError(f"name = {tables['name']!r}: pass letters, digits, '.', '_' and '-' (it names a folder)")
        if not isinstance(tables.get("claim", []), list):
            raise InputError(f"claim = {tables['claim']!r}: write each claim as a [[claim]] table")
        self.tables: dict[str, Any] = _plain(tables)
        self.name: str = tables["name"]
        self.problem = _build(self.tables)
        self.claims = [_claim(i, c, self.problem) for i, c in enumerate(self.tables.get("claim", []))]

    def __repr__(self) -> str:
        return f"Study({self.name!r}, digest={self.digest[:12]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all but the sizes and the number of replicates, which may grow within a run folder."""
        sample = {k: v for k, v in self.tables["sample"].items() if k not in ("sizes", "replicates")}
        return _digest(self.tables | {"sample": sample})

    def ceiling(self, truth: Parameters) -> float | None:
        """The largest value of a Voronoi loss, if it has one: where the gates may be translated it never exceeds
        the mass of the truth, its value where the translation sends the fitted mass to 0."""
        model = self.problem.model
        return None if model.gauge is None else float(np.sum(model.measure(truth).weight))

    def cell_digest(self, n: int, *tables: str) -> list[int]:
        """Eight 32-bit words from size n and the named tables: what the seeds of a cell are made of."""
        mode = self.problem.mode
        text = _digest({"n": int(n), "mode": mode, **{name: self.tables.get(name) for name in tables}})
        return [int(text[i : i + 8], 16) for i in range(0, 64, 8)]

    def to_toml(self) -> str:
        """The study as TOML; ``load_study`` of it gives an equal study."""
        return tomli_w.dumps(self.tables)

    def replace(self, *, sizes=None, replicates=None, seed=None, quick=False, **fit: Any) -> Study:
        """The same study with other sizes, replicates, seed, or ``[fit]`` keys; ``quick`` keeps 20 replicates."""
        tables = copy.deepcopy(self.tables)
        if quick:
            tables["sample"]["replicates"] = min(20, self.problem.replicates)
        changes = {"sizes": sizes, "replicates": replicates, "seed": seed}
        tables["sample"] |= {k: v for k, v in changes.items() if v is not None}
        tables["fit"] |= fit
        return Study(**tables)


def load_study(source: str | Path) -> Study:
    """A study from a TOML file, or from the registry by its name. Raises ``InputError``."""
    path = Path(source)
    if not path.suffix and not path.exists():
        names = registry()
        if str(source) not in names:
            near = difflib.get_close_matches(str(source), names, 1)
            hint = f", did you mean {near[0]}?" if near else f": known are {', '.join(names)}"
            raise InputError(f"{str(source)!r} is neither a file nor a claim of the registry{hint}")
        return Study(**tomllib.loads((_claims_folder() / f"{source}.toml").read_text()))
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): pass a study file or the name of a claim"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text: pass a study file in TOML") from None
    try:
        return Study(**tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML ({error}): mend that line") from None


def registry() -> list[str]:
    """Names of the claims that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _claims_folder().iterdir() if entry.name.endswith(".toml")
    )


def _claims_folder():
    return resources.files("moe_sim.study") / "claims"


def _draws_x(tables: dict[str, Any]) -> bool:
    """Whether the family is a joint density of (x, y), which needs no law of x."""
    model = tables.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    draws = isinstance(family, str) and family in FAMILIES and getattr(FAMILIES[family], "DRAWS_X", False)
    return draws(model) if callable(draws) else bool(draws)


def _build(tables: dict[str, Any]) -> Problem:
    family = one_of("model.family", tables["model"].get("family"), FAMILIES)
    module = FAMILIES[family]
    _nested_keys("model", tables["model"], module.TABLE)
    for path in module.REQUIRED:
        _need("model", tables["model"], path)
    model = module.build(tables["model"], tables["truth"])
    options = _fit(tables["fit"], model, family)
    truth = _truth(model, tables["truth"], options)
    law = None
    if "law" in tables:
        if _draws_x(tables):
            raise InputError(f"law: model.family = {family!r} is a joint density of x and y, leave [law] out")
        one_of("law.name", tables["law"].get("name"), LAW_KEYS)
        _keys("law", tables["law"], LAW_KEYS[tables["law"]["name"]])
        law = build_law(tables["law"], model.dimension)
    sample = tables["sample"]
    _keys("sample", sample, SAMPLE_KEYS)
    regression = isinstance(model, Regression)
    mode = one_of("sample.mode", sample.get("mode", "exact" if regression else "iid"), ("exact", "iid"))
    if mode == "exact" and not regression:
        raise InputError(
            f"sample.mode = 'exact' needs a regression model, and {family} is a mixture, which has no sufficient "
            "statistics: pass sample.mode = 'iid'"
        )
    if mode == "exact" and law is not None and not law.finite:
        name = tables["law"]["name"]
        finite = "law.finite = true " if "finite" in LAW_KEYS[name] else ""
        raise InputError(
            f"sample.mode = 'exact' needs a law on finitely many points, law.name = {name!r} is not: "
            f"pass law.name = 'grid', {finite}or sample.mode = 'iid'"
        )
    parameters = sum(int(np.prod(shape)) for shape in model.shapes(options.atoms).values())
    if regression and law is not None and law.finite and len(law.nodes()[1]) < parameters:
        given = "law.x" if "x" in tables["law"] else f"law.points = {tables['law'].get('points', 'default')}"
        raise InputError(
            f"{given} gives {len(law.nodes()[1])} points for {parameters} parameters: "
            f"{'add points to law.x' if given == 'law.x' else 'raise law.points'} or lower fit.atoms"
        )
    names = standard_losses(model)
    claimed = [c["loss"] for c in tables.get("claim", []) if isinstance(c, dict) and "loss" in c]
    names += [name for name in claimed if name not in names]
    losses = [loss_of(model, name) for name in names]
    moving = one_of("sample.truth", sample.get("truth", "given"), ("given", "least-favourable")) != "given"
    asked = [name for name in claimed if name != "function"]
    if moving and not asked:
        raise InputError(
            "sample.truth = 'least-favourable' is about the loss of the first claim, and there is none but on the "
            "function: add a [[claim]], as on voronoi"
        )
    return Problem(
        model, truth, law, options, losses, mode,
        _sizes(sample), whole("sample.replicates", _need("sample", sample, "replicates"), 2, 10**7),
        whole("sample.seed", sample.get("seed", 0), 0, 2**63 - 1),
        next(loss for loss in losses if loss.name == asked[0]) if moving else None,
    )  # fmt: skip


def _fit(table: dict[str, Any], model: Model, family: str) -> FitOptions:
    _keys("fit", table, FIT_KEYS)
    atoms = _atoms(table, model)
    fitting = estimators(model)
    estimator = one_of("fit.estimator", table.get("estimator", fitting[0]), LIMITS)
    if estimator not in fitting:
        kind, other = ("regression model", "likelihood") if "least-squares" in fitting else ("mixture", "regression")
        raise InputError(
            f"fit.estimator = {estimator!r} needs a {other} model, and {family} is a {kind}: "
            f"pass {' or '.join(fitting)}"
        )
    gradient = {"optimizer", "learning_rate"} & set(table)
    if gradient and estimator != "gradient":
        raise InputError(
            f"fit.{min(gradient)} belongs to fit.estimator = 'gradient': leave it out, or change the estimator"
        )
    start = one_of("fit.start", table.get("start", "data"), RULES)
    for name in ("spread", "spread_exponent"):
        if name in table and start == "data":
            raise InputError(f"fit.{name} is noise about the truth, fit.start = 'data' has none: leave it out")
    if estimator == "steps" and "tolerance" in table and isinstance(model, Regression):
        raise InputError(
            f"fit.tolerance = {table['tolerance']} with 'steps' is a rule of EM: leave it out of a regression"
        )
    solver: dict[str, Any] = {}
    if "optimizer" in table:
        solver["optimizer"] = one_of("fit.optimizer", table["optimizer"], OPTIMIZERS)
    for name, low in (("learning_rate", 1e-12), ("tolerance", 0.0)):
        if name in table:
            solver[name] = number(f"fit.{name}", table[name], low)
    return FitOptions(
        atoms, estimator, start,
        whole("fit.starts", table.get("starts", 8), 1, 10**4), whole("fit.budget", table.get("budget", 4), 1, 100),
        number("fit.bound", table.get("bound", model.default_bounds[0]), 1e-6),
        number("fit.bias_bound", table.get("bias_bound", model.default_bounds[1]), 1e-6),
        whole("fit.max_iterations", table.get("max_iterations", LIMITS[estimator]), 0 if estimator == "steps" else 1),
        _spread(table, model, atoms), number("fit.spread_exponent", table.get("spread_exponent", 0.0), 0.0, 10), solver,
    )  # fmt: skip


def _spread(table: dict[str, Any], model: Model, atoms: Atoms) -> float | dict[str, float] | None:
    """Start noise: one number, or one for each of some free coordinates."""
    value = table.get("spread")
    if not isinstance(value, dict):
        return None if value is None else number("fit.spread", value, 0.0)
    _keys("fit.spread", value, set(model.free_shapes(atoms)))
    return {name: number(f"fit.spread.{name}", v, 0.0) for name, v in value.items()}


def _atoms(table: dict[str, Any], model: Model) -> Atoms:
    """``fit.atoms``: a number, or one for each group of a model with several."""
    value = _need("fit", table, "atoms")
    groups = model.groups
    if not isinstance(value, dict):
        if len(groups) > 1:
            each = ", ".join(f"{group} = 2" for group in groups)
            raise InputError(
                f"fit.atoms = {value!r}: this model has atoms of {' and '.join(groups)}, pass atoms = {{{each}}}"
            )
        return whole("fit.atoms", value, 1)
    if len(groups) == 1:
        raise InputError(f"fit.atoms = {value!r}: this model has one kind of atoms, pass a number")
    _keys("fit.atoms", value, set(groups))
    return {group: whole(f"fit.atoms.{group}", _need("fit.atoms", value, group), 1) for group in groups}


def _truth(model: Model, table: dict[str, Any], options: FitOptions) -> Parameters:
    declared, sizes = model.parameters(), {}
    _keys("truth", table, set(declared))
    for group, fitted in model.sizes(options.atoms).items():
        mass = model.masses[group]
        sizes[group] = len(array(f"truth.{mass}", _need("truth", table, mass), (None,)))
        if sizes[group] == 0:
            raise InputError(f"truth.{mass} is empty: a truth has at least one atom")
        if fitted < sizes[group]:
            name = "fit.atoms" if len(model.groups) == 1 else f"fit.atoms.{group}"
            raise InputError(
                f"{name} = {fitted} is fewer than the {sizes[group]} true atoms: pass at least {sizes[group]}"
            )
    found = coordinates.read_truth(declared, model.shapes(sizes), table)
    lower, upper = model.bounds(sizes, options.bound, options.bias_bound)
    coordinates.outside(declared, model.unconstrain(found), lower, upper)
    return found


def _sizes(sample: dict[str, Any]) -> list[int]:
    value = _need("sample", sample, "sizes")
    if not isinstance(value, list) or not value:
        raise InputError(f"sample.sizes = {value!r}: pass a list of sample sizes, as in [1e3, 1e4, 1e5]")
    sizes = [whole("sample.sizes", n, 1, LARGEST) for n in value]
    double = [n for n in sizes if sizes.count(n) > 1]
    if double:
        raise InputError(f"sample.sizes has {double[0]} twice: name each size once")
    return sorted(sizes)


def _claim(index: int, table: Any, problem: Problem) -> Claim:
    where = f"claim[{index}]"
    if not isinstance(table, dict):
        raise InputError(f"{where} = {table!r} is no table: write [[claim]] and its keys below it")
    _keys(where, table, CLAIM_KEYS)
    loss, kind = (
        _need(where, table, "loss"),
        one_of(f"{where}.kind", table.get("kind", "upper"), ("upper", "exact", "lower")),
    )
    if kind != "lower":
        _need(where, table, "exponent")
    exponent = number(f"{where}.exponent", table["exponent"], 1e-6, 100) if "exponent" in table else None
    low, high = array(f"{where}.window", table.get("window", [problem.sizes[0], problem.sizes[-1]]), (2,))
    if not low < high:
        raise InputError(f"{where}.window = [{low:g}, {high:g}]: pass the smaller size first")
    log_power = number(f"{where}.log_power", table.get("log_power", 0.0))
    if log_power and low < 2:
        raise InputError(f"{where}.window starts at {low:g}, where log log n is not defined: start at 2 or later")
    margin = number(f"{where}.margin", table["margin"], 0.0) if "margin" in table else None
    return Claim(loss, kind, exponent, log_power, (float(low), float(high)), margin)


def _need(where: str, table: dict[str, Any], path: str):
    value: Any = table
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}.{path} is missing: add it to the study")
        value = value[part]
    return value


def _keys(where: str, table: dict[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InputError(f"{f'{where}.' if where else ''}{key} is not a known key: {hint}")


def _nested_keys(where: str, table: dict[str, Any], known: dict[str, Any]) -> None:
    _keys(where, table, set(known))
    for key, inner in known.items():
        if inner is not None and key in table:
            if not isinstance(table[key], dict):
                raise InputError(
                    f"{where}.{key} = {table[key]!r} is no table: write [{where}.{key}] and its keys below it"
                )
            _nested_keys(f"{where}.{key}", table[key], inner)


def _plain(value: Any) -> Any:
    """Tables of plain Python values: what TOML can say."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def _digest(value: Any) -> str:
    """Equal numbers give equal digests: 6 and 6.0 are the same study."""

    def normal(v):
        if isinstance(v, dict):
            return {k: normal(u) for k, u in v.items()}
        if isinstance(v, list):
            return [normal(u) for u in v]
        return float(v) if isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**53 else v

    return hashlib.sha256(json.dumps(normal(value), sort_keys=True).encode()).hexdigest()
