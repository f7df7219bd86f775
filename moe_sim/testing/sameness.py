"""What leaves the function as it is: another order of the atoms, a gauge, a canonical representative, split atoms."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from moe_sim.losses.voronoi import Loss, evaluate, loss_of
from moe_sim.models.base import Model, ModelError, Parameters
from moe_sim.models.domains import GATE, SIMPLEX
from moe_sim.testing.asking import asked, called
from moe_sim.testing.probe import SAME_VALUE, Probe, gap
from moe_sim.theory.search import owners, ways

WAYS = 8  # of putting atoms on true ones, at most


def check_permutation(probe: Probe) -> None:
    """Other orders of the atoms of each group. Raises ``ModelError``, which names the parameter that is to blame."""
    rows = [name for name, p in probe.declared.items() if not p.shared]
    for params in probe.somewhere:
        orders = {group: np.roll(np.arange(size), 1) for group, size in probe.atoms.items()}
        turned = {group: order[::-1] for group, order in orders.items()}
        moved = [_permuted(probe, params, order) for order in (orders, turned)]
        # All but one of the parameters: where that leaves the function, the one is no matter of atoms.
        partly = [_permuted(probe, params, orders, name) for name in rows]
        before, one, other, *parts = probe.values([params, *moved, *partly])
        change = max(gap(before, one), gap(before, other))
        if change:
            alike = [name for name, part in zip(rows, parts, strict=True) if not gap(before, part)]
            blamed = f" as the rows of {alike[0]} are not used alike (is it shared?)" if alike else ""
            raise ModelError(
                f"{probe.name} changes by {change:.2g} when the atoms are put in another order{blamed}: let every row "
                "of a parameter count for its own atom and all atoms alike, or declare shared=True"
            )


def _permuted(probe: Probe, params: Parameters, orders: dict[str, np.ndarray], but: str | None = None) -> Parameters:
    group = {name: p.group or probe.model.groups[0] for name, p in probe.declared.items()}
    still = {name for name, p in probe.declared.items() if p.shared} | {but}
    return {name: v if name in still else v[orders[group[name]]] for name, v in params.items()}


def check_gauge(probe: Probe) -> None:
    """Every translation that is declared, by ``gauge`` or by ``GATE``, leaves the function and moves the measure as
    losses take it to."""
    model, declared = probe.model, probe.declared
    gates = [name for name, p in declared.items() if p.domain is GATE]
    blocks = [] if model.gauge is None else [name for name in model.gauge.split("+") if name]
    measured = probe.model.measure(probe.truth).blocks
    for name in blocks:
        if name not in declared or name not in measured:
            raise ModelError(
                f"{type(model).__name__}: gauge names {name!r}, which is no block of the loss: pass names of "
                f"parameters that have exponents, of {', '.join(measured)}"
            )
    masses = [] if model.gauge is None else list(dict.fromkeys(model.masses.values()))
    masses = [name for name in masses if name in gates] or masses
    for name in dict.fromkeys([*gates, *blocks, *masses]):
        shift = probe.rng.uniform(0.5, 1.0, declared[name].shape)
        moved = [params | {name: params[name] + shift} for params in probe.somewhere]
        values = probe.values([*probe.somewhere, *moved])
        change = max(gap(values[k], values[k + 2]) for k in range(2))
        if change:
            why = "its domain is GATE" if name in gates else f"gauge = {model.gauge!r}"
            remedy = "declare it REAL" if name in gates else "take it out of the gauge"
            raise ModelError(
                f"{name}: a common shift of its rows changes {probe.name} by {change:.2g}, but {why}: {remedy}"
            )
    _check_translation(probe, blocks, masses)


def _check_translation(probe: Probe, blocks: list[str], masses: list[str]) -> None:
    """The measure of translated parameters is the translated measure."""
    model, params = probe.model, probe.somewhere[0]
    if model.gauge is None or any(probe.declared[name].domain is SIMPLEX for name in masses):
        return
    shifts = {name: probe.rng.uniform(0.5, 1.0, probe.declared[name].shape) for name in blocks}
    moved = params | {name: params[name] + shift for name, shift in shifts.items()}
    moved |= {name: params[name] + 0.7 for name in masses}
    with asked(model, "measure"):
        found = model.measure(moved)
        wanted = model.measure(params).translate(0.7, {name: np.ravel(shift) for name, shift in shifts.items()})
    parts: dict[str, tuple[Any, Any]] = {name: (found.blocks[name], wanted.blocks[name]) for name in found.blocks}
    for name, (one, other) in ({"log_weight": (found.log_weight, wanted.log_weight)} | parts).items():
        change = gap(np.asarray(other), np.asarray(one))
        if change:
            raise ModelError(
                f"{called(model, 'measure')}: under the translation gauge = {model.gauge!r} its {name} is {change:.2g} "
                "away from where losses take it: let the measure move with the parameters that the gauge names"
            )


def check_canonical(probe: Probe) -> bool:
    """``canonical`` gives the same function, and leaves alone what is canonical. False where a model has none."""
    model = probe.model
    if not model.has_canonical:
        return False
    with asked(model, "canonical"):
        once = [_arrays(model.canonical(params)) for params in probe.somewhere]
    for name, value in probe.somewhere[0].items():
        if name not in once[0] or once[0][name].shape != value.shape:
            raise ModelError(f"{called(model, 'canonical')} gives no {name} of shape {value.shape}: give them all")
    with asked(model, "canonical"):
        twice = [_arrays(model.canonical(params)) for params in once]
    for one, two in zip(once, twice, strict=True):
        for name in one:
            if gap(one[name], two[name]):
                raise ModelError(
                    f"{called(model, 'canonical')} moves {name} by {gap(one[name], two[name]):.2g} the second time: "
                    "let it leave alone what is canonical already"
                )
    values = probe.values([*probe.somewhere, *once])
    change = max(gap(values[k], values[k + 2]) for k in range(2))
    if change:
        raise ModelError(
            f"{called(model, 'canonical')} changes {probe.name} by {change:.2g}: let it give other parameters of the "
            "same function"
        )
    return True


def check_copies(probe: Probe) -> int:
    """Split atoms give the function and the measure of the truth; how many ways of splitting them were looked at."""
    model, truth = probe.model, probe.truth
    with asked(model, "divisible"):
        every = ways(model, truth, probe.atoms)[:WAYS]
    if not every or model.count(truth) == model.total(probe.atoms):
        return 0
    with asked(model, "overfit"):
        copies = [_arrays(model.overfit(truth, np.array(owners(way)))) for way in every]
    shapes = model.shapes(probe.atoms)
    for name, shape in shapes.items():
        if name not in copies[0] or copies[0][name].shape != shape:
            raise ModelError(f"{called(model, 'overfit')} gives no {name} of shape {shape}: give all parameters")
    for way, copy, value in zip(every, copies, probe.values(copies), strict=True):
        change = gap(probe.at_truth, value)
        if change:
            raise ModelError(
                f"{probe.name} changes by {change:.2g} when {_split(way)}: let divide_mass give masses that add up to "
                "the same function, and divisible say which atoms may be split (divide_mass = None: none)"
            )
        apart = _distance(model, copy, truth)
        if apart > SAME_VALUE:
            raise ModelError(
                f"{called(model, 'measure')} has a Voronoi loss of {apart:.2g} when {_split(way)}: let log_weight and "
                "divide_mass agree, so that the split masses add up to the one before"
            )
    return len(every)


def _split(way: tuple[int, ...]) -> str:
    atom = int(np.argmax(way))
    return f"atom {atom} is split into {way[atom]}"


def _distance(model: Model, params: Parameters, truth: Parameters) -> float:
    """The Voronoi loss without translations, which copies need not."""
    with asked(model, "measure"):
        return float(_loss(model, params, truth, replace(loss_of(model, "voronoi"), gauge=None)))


@partial(jax.jit, static_argnames="loss")
def _loss(model: Model, params: Parameters, truth: Parameters, loss: Loss):
    fitted, true = (model.measure(model.canonical(p)) for p in (params, truth))
    return evaluate(loss, fitted, true)


def _arrays(params: Parameters) -> Parameters:
    return {name: np.asarray(v) for name, v in params.items()}
