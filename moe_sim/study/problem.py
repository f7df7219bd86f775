"""What the tables of a study mean: a ``Problem``, built and checked part by part. Each raises ``InputError``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from moe_sim.data.covariates import Law, build_law
from moe_sim.errors import InputError, array, number, one_of, whole
from moe_sim.fitting.options import LIMITS, FitOptions, estimators
from moe_sim.losses.voronoi import Loss, loss_of, standard_losses
from moe_sim.models import FAMILIES, coordinates, loading, trial
from moe_sim.models.base import Atoms, Model, Parameters, Regression
from moe_sim.models.loading import Outside
from moe_sim.models.remembered import remembered
from moe_sim.study.path import tables_along, tables_on
from moe_sim.study.schema import FEWEST_SIZES, Claim, FitTable, LawTable, SampleTable
from moe_sim.study.table import check_names, entries, is_table, need, read

MOST_COUNTED = 1e13  # observations of a density as counts: its log-likelihood is rounded by 1e-16 n units

_FORMULAS = ("path", "grid")  # tables of [truth] that are no parameters


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
    least_favourable: Loss | None = None  # the loss along whose least favourable measures the truth goes
    truths: dict[int, Parameters] = field(default_factory=dict)  # by size, where formulas say so ([truth.path])
    grid: dict[float, dict[str, Any]] = field(default_factory=dict)  # [truth] by t, where there are many ([truth.grid])
    projected: bool = False  # whether losses are those from the best measure of as many atoms as are fitted

    @property
    def moves(self) -> bool:
        """Whether losses are not those from the given truth: each size has its own, or all a projection."""
        return self.least_favourable is not None or bool(self.truths) or self.projected


def build(tables: dict[str, Any], outside: Outside) -> Problem:
    """What a study asks; its tables are there and are tables. outside: what is known of a model outside the package."""
    path, grid = (tables["truth"].get(name) for name in _FORMULAS)
    tables = tables | {"truth": _given(tables["truth"])}
    model, family = _model(tables, outside), str(tables["model"].get("family"))
    foreign = outside.given is not None or bool(loading.named_outside(tables["model"]))
    tried = foreign and not (outside.checked or outside.facts)
    if tried:
        trial.check_declared(model)
    options = _fit(tables["fit"], model, family)
    projected = tables["sample"].get("truth") == "projection"
    truth = _truth(model, tables["truth"], options, fewer=projected)
    law = _law(tables, model)
    if tried:
        trial.check_values(model, truth, law)
    sample = read(SampleTable, "sample", tables["sample"])
    mode = _mode(sample, model, law, tables)
    _enough_points(model, law, options, tables)
    claimed = [c["loss"] for c in tables.get("claim", []) if isinstance(c, dict) and "loss" in c]
    losses = _losses(model, claimed)
    moved = _moved_along(losses, claimed) if sample.truth == "least-favourable" else None
    if projected and not isinstance(model, Regression) and mode != "exact":
        raise InputError("sample.truth = 'projection' of a density is found on its cells: pass sample.mode = 'exact'")
    if path is not None and sample.truth != "given":
        raise InputError(f"sample.truth = {sample.truth!r} and [truth.path] both move the truth: leave one out")
    if grid is not None and (path is not None or sample.truth != "given"):
        raise InputError("[truth.grid] has many truths, each of which stays: leave [truth.path] and sample.truth out")
    given = tables["truth"]
    truths = {} if path is None else _held("path", "n", tables_along(path, given, sample.sizes), model, options)
    many = {} if grid is None else tables_on(grid, given)
    _held("grid", "t", many, model, options)
    rest = sample.sizes, sample.replicates, sample.seed, moved, truths, many, projected
    return Problem(model, truth, law, options, losses, mode, *rest)


def _given(truth: dict[str, Any]) -> dict[str, Any]:
    """[truth] without the formulas of [truth.path] and [truth.grid]."""
    return {name: value for name, value in truth.items() if name not in _FORMULAS}


def _held(of: str, letter: str, tables: dict, model: Model, options: FitOptions) -> dict:
    """The truths of such formulas, each held to what the given one is."""
    found = {}
    for at, table in tables.items():
        try:
            found[at] = _truth(model, table, options)
        except InputError as error:
            raise InputError(f"truth.{of} at {letter} = {at}: {error}") from None
    return found


def _model(tables: dict[str, Any], outside: Outside) -> Model:
    """The model of a study: an object, what a run folder remembers of it, or that of its [model] table."""
    if outside.given is not None:
        return outside.given
    if outside.facts is not None:
        return remembered(outside.facts)
    table, family = loading.resolved(tables["model"], outside.sources), tables["model"].get("family")
    if isinstance(family, str) and family not in FAMILIES:
        return loading.build(table["family"], f"model.family = {family!r}", table)
    module = FAMILIES[one_of("model.family", family, FAMILIES)]
    _nested_names("model", tables["model"], module.TABLE)
    for path in module.REQUIRED:
        need("model", tables["model"], path)
    return module.build(table, tables["truth"])


def draws_x(tables: dict[str, Any]) -> bool:
    """Whether the family is a joint density of (x, y), which needs no law of x, or may be one."""
    model = tables.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    if isinstance(family, str) and family not in FAMILIES:
        return True  # the model says so, once it is there
    return isinstance(family, str) and bool(getattr(FAMILIES[family], "DRAWS_X", False))


def _law(tables: dict[str, Any], model: Model) -> Law | None:
    if "law" not in tables:
        if not model.joint:
            raise InputError("the study has no law: add a [law] table")
        return None
    if model.joint:
        family = tables["model"]["family"]
        raise InputError(f"law: model.family = {family!r} is a joint density of x and y, leave [law] out")
    name = entries(LawTable)["name"].kind.check("law.name", tables["law"].get("name"))
    found = read(LawTable, "law", tables["law"], of=name)
    return build_law({key: value for key, value in vars(found).items() if value is not None}, model.dimension)


def _mode(sample: SampleTable, model: Model, law: Law | None, tables: dict[str, Any]) -> str:
    """How samples are drawn."""
    regression = isinstance(model, Regression)
    mode = sample.mode or ("exact" if regression else "iid")
    if mode == "exact" and law is not None and not law.finite:
        name = tables["law"]["name"]
        finite = "law.finite = true " if "finite" in entries(LawTable, name) else ""
        raise InputError(
            f"sample.mode = 'exact' needs a law on finitely many points, law.name = {name!r} is not: "
            f"pass law.name = 'grid', {finite}or sample.mode = 'iid'"
        )
    if mode == "exact" and not regression and max(sample.sizes) > MOST_COUNTED:
        raise InputError(
            f"sample.sizes has {max(sample.sizes):.3g}: a log-likelihood is a sum of so many terms, and beyond "
            f"n = {MOST_COUNTED:.0e} its rounding is as large as what certificates are about, pass at most that"
        )
    return mode


def _enough_points(model: Model, law: Law | None, options: FitOptions, tables: dict[str, Any]) -> None:
    """Refuse a regression that has fewer numbers, outputs at points, than parameters."""
    if not isinstance(model, Regression) or law is None or not law.finite:
        return
    parameters = sum(int(np.prod(shape)) for shape in model.shapes(options.atoms).values())
    points = len(law.nodes()[1])
    if points * model.outputs < parameters:
        each = "" if model.outputs == 1 else f", each with {model.outputs} outputs"
        given = "law.x" if "x" in tables["law"] else f"law.points = {tables['law'].get('points', 'default')}"
        raise InputError(
            f"{given} gives {points} points for {parameters} parameters{each}: "
            f"{'add points to law.x' if given == 'law.x' else 'raise law.points'} or lower fit.atoms"
        )


def _losses(model: Model, claimed: list[Any]) -> list[Loss]:
    """The losses that every study records, and those that this one claims something of."""
    names = standard_losses(model)
    names += [name for name in claimed if name not in names]
    return [loss_of(model, name) for name in names]


def _moved_along(losses: list[Loss], claimed: list[Any]) -> Loss:
    """The loss along whose least favourable measures the truth goes: the first claimed one but for the function's."""
    asked = [name for name in claimed if name != "function"]
    if not asked:
        raise InputError(
            "sample.truth = 'least-favourable' is about the loss of the first claim, and there is none but on the "
            "function: add a [[claim]], as on voronoi"
        )
    return next(loss for loss in losses if loss.name == asked[0])


def _fit(table: dict[str, Any], model: Model, family: str) -> FitOptions:
    found = read(FitTable, "fit", table)
    atoms = _atoms(table, model)
    estimator = _estimator(found, model, family)
    _only_where_it_counts(table, estimator, found.start, model)
    bounds = (model.default_bounds[0] if found.bound is None else found.bound,
              model.default_bounds[1] if found.bias_bound is None else found.bias_bound)  # fmt: skip
    limit = LIMITS[estimator] if found.max_iterations is None else found.max_iterations
    given = {name: getattr(found, name) for name in ("optimizer", "learning_rate", "tolerance")}
    return FitOptions(
        atoms, estimator, found.start, found.starts, found.budget, *bounds,
        whole("fit.max_iterations", limit, 0 if estimator == "steps" else 1),
        _spread(table, model, atoms), found.spread_exponent,
        {name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def _estimator(found: FitTable, model: Model, family: str) -> str:
    fitting = estimators(model)
    estimator = found.estimator or fitting[0]
    if estimator not in fitting:
        kind, other = ("regression model", "likelihood") if "least-squares" in fitting else ("mixture", "regression")
        raise InputError(
            f"fit.estimator = {estimator!r} needs a {other} model, and {family} is a {kind}: "
            f"pass {' or '.join(fitting)}"
        )
    return estimator


def _only_where_it_counts(table: dict[str, Any], estimator: str, start: str, model: Model) -> None:
    """Refuse keys that would do nothing."""
    gradient = {"optimizer", "learning_rate"} & set(table)
    if gradient and estimator != "gradient":
        raise InputError(
            f"fit.{min(gradient)} belongs to fit.estimator = 'gradient': leave it out, or change the estimator"
        )
    for name in ("spread", "spread_exponent"):
        if name in table and start == "data":
            raise InputError(f"fit.{name} is noise about the truth, fit.start = 'data' has none: leave it out")
    if estimator == "steps" and "tolerance" in table and isinstance(model, Regression):
        raise InputError(
            f"fit.tolerance = {table['tolerance']} with 'steps' is a rule of EM: leave it out of a regression"
        )


def _spread(table: dict[str, Any], model: Model, atoms: Atoms) -> float | dict[str, float] | None:
    """Start noise: one number, or one for each of some free coordinates."""
    value = table.get("spread")
    if not isinstance(value, dict):
        return None if value is None else number("fit.spread", value, 0.0)
    check_names("fit.spread", value, set(model.free_shapes(atoms)))
    return {name: number(f"fit.spread.{name}", v, 0.0) for name, v in value.items()}


def _atoms(table: dict[str, Any], model: Model) -> Atoms:
    """``fit.atoms``: a number, or one for each group of a model with several."""
    value = need("fit", table, "atoms")
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
    check_names("fit.atoms", value, set(groups))
    return {group: whole(f"fit.atoms.{group}", need("fit.atoms", value, group), 1) for group in groups}


def _truth(model: Model, table: dict[str, Any], options: FitOptions, fewer: bool = False) -> Parameters:
    """The parameters of a [truth] table; fewer: whether fewer atoms than these may be fitted."""
    declared = model.parameters()
    check_names("truth", table, set(declared))
    sizes = {}
    for group, fitted in model.sizes(options.atoms).items():
        mass = model.masses[group]
        sizes[group] = len(array(f"truth.{mass}", need("truth", table, mass), (None,)))
        if sizes[group] == 0:
            raise InputError(f"truth.{mass} is empty: a truth has at least one atom")
        if fitted < sizes[group] and not fewer:
            name = "fit.atoms" if len(model.groups) == 1 else f"fit.atoms.{group}"
            raise InputError(
                f"{name} = {fitted} is fewer than the {sizes[group]} true atoms: pass at least {sizes[group]}"
            )
    found = coordinates.read_truth(declared, model.shapes(sizes), table)
    lower, upper = model.bounds(sizes, options.bound, options.bias_bound)
    coordinates.outside(declared, model.unconstrain(found), lower, upper)
    _distinct(model, found)
    return found


def _distinct(model: Model, truth: Parameters) -> None:
    """Refuse true atoms that lie at one place: a cell must have an atom of its own."""
    for group, mass in model.masses.items():
        own = [
            name for name, p in model.parameters().items()
            if not p.shared and name != mass and (p.group or model.groups[0]) == group
        ]  # fmt: skip
        rows = [np.concatenate([np.ravel(truth[name][i]) for name in own]) for i in range(len(truth[mass])) if own]
        for i, j in combinations(range(len(rows)), 2):
            if np.array_equal(rows[i], rows[j]):
                raise InputError(
                    f"truth: atoms {i} and {j} have the same {', '.join(own)}, so they are one atom with the mass of "
                    "both: leave one out, or move it"
                )


def read_claim(index: int, table: Any, problem: Problem) -> Claim:
    """A ``[[claim]]``; by default its window is that of the sizes."""
    where = f"claim[{index}]"
    found = read(Claim, where, {"window": [problem.sizes[0], problem.sizes[-1]], **is_table(where, table)})
    if found.kind != "lower":
        need(where, table, "exponent")
    low, high = map(float, found.window)
    if low == high and "window" not in table:
        raise InputError(f"sample.sizes has 1 size: a slope needs at least {FEWEST_SIZES}, and {where} claims one")
    if not low < high:
        raise InputError(f"{where}.window = [{low:g}, {high:g}]: pass the smaller size first")
    model, atoms = problem.model, problem.options.atoms
    asked = max((loss.least_cell for loss in problem.losses if loss.name == found.loss), default=1)
    if problem.projected and found.kind == "lower":
        raise InputError(f"{where}.kind = 'lower' is shown by measures near the truth: leave it out of a projection")
    most = 1 if problem.projected else model.most_in_a_cell(problem.truth, atoms)
    if asked > most and problem.projected:
        raise InputError(f"{where}.loss = {found.loss!r} is about shared cells: a projection has as many atoms as fits")
    if asked > most:
        raise InputError(
            f"{where}.loss = {found.loss!r} is not defined here: no cell has {asked} atoms where {model.total(atoms)} "
            f"are fitted to {model.count(problem.truth)} true ones, raise fit.atoms"
        )
    if found.log_power and low < 2:
        raise InputError(f"{where}.window starts at {low:g}, where log log n is not defined: start at 2 or later")
    return replace(found, window=(low, high))


def _nested_names(where: str, table: dict[str, Any], known: dict[str, Any]) -> None:
    check_names(where, table, known)
    for key, inner in known.items():
        if inner is not None and key in table:
            _nested_names(f"{where}.{key}", is_table(f"{where}.{key}", table[key]), inner)
