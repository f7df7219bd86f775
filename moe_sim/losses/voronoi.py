"""Voronoi cells and the losses between a fitted and a true mixing measure.

A loss is declared, not coded: the blocks it looks at, the exponent of each by the number of fitted atoms in
the cell, and what it is invariant to. The names are those of a study's claims:

    voronoi        the loss of the theory, with the model's exponents        D(G, G*)
    voronoi:r=2    the same with r in place of every exponent
    voronoi:untranslated  the same without the infimum over translations of the gates: an artefact to be studied
    mass           its first part, the error of the cell masses
    atoms:single   root mean square distance of the atoms alone in their cell to the true atom
    atoms:multi    the same over atoms that share a cell;  atoms:multi:key  in one block only
    atoms:weighted the same, each atom counted with its mass;  atoms:weighted:key  in one block only
    atoms:3        root mean square distance of the atoms of cells of just three;  atoms:3:key  in one block only
    shared         distance of the parameters that all atoms share (a temperature);  shared:temperature  of one of them
    voronoi:raw    any of these, of the parameters as they are, where a scale gauge has a canonical representative
    function       ||f_G - f_G*|| in L2 of the law (computed where the law is known: ``multistart``)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import reduce

from moe_sim._engine import jax, jnp
from moe_sim.errors import InputError
from moe_sim.models.base import Model
from moe_sim.models.measure import MixingMeasure

_ON_ATOM = 1e-13  # relative gap below which an atom lies on a true one
Exponents = tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Loss:
    """kind: ``voronoi``, ``mass``, ``atoms`` or ``function``.

    exponents: per block, the exponents in cells of 1, 2, ... atoms (the last serves larger cells).
    whole: the exponents of the whole Voronoi loss, in whose gauge the parts are read off: ``mass`` in that of the loss
        itself, ``atoms`` in that of all exponents 1, as at its ceiling the loss has no gauge: all translations tie.
    cells: ``single``, ``multi``, ``weighted`` or a number of atoms, for kind ``atoms``. A Voronoi loss D bounds
        ``weighted`` in a block of exponent r: sum w |gap|^r <= D in a cell of mass w, so (sum w |gap|^2 / w)^(1/2) <=
        (D / w)^(1/r) by Jensen. It does not bound ``multi``: the mass of a spare atom may vanish, and with it all that
        is known of it.
    gauge: see ``Model.gauge``; the loss is the infimum over those translations.
    shared: exponents of parameters that all atoms share. raw: of parameters as they are, not of their canonical ones.
    """

    name: str
    kind: str
    exponents: Exponents = ()
    whole: Exponents = ()
    cells: str = ""
    gauge: str | None = None
    shared: Exponents = ()
    raw: bool = False

    @property
    def least_cell(self) -> int:
        """How many atoms the smallest cell has that it speaks of."""
        return int(self.cells) if self.cells.isdecimal() else {"multi": 2, "weighted": 2}.get(self.cells, 1)

    def speaks_of(self, size):
        """Of kind ``atoms``, whether those in a cell of ``size`` (an array) count."""
        if self.cells.isdecimal():
            return size == int(self.cells)
        return size == 1 if self.cells == "single" else size > 1

    @property
    def aggregate(self) -> str:
        """How replicates are summed up: ``rms`` for atom distances, where a mean or a median would hide that
        part of the fits collapse two atoms into one; ``mean`` for every other loss."""
        return "rms" if self.kind == "atoms" else "mean"


def loss_of(model: Model, name: str, field: str = "claim.loss") -> Loss:
    """The loss called ``name`` of a model. Raises ``InputError``, which calls what holds the name ``field``."""
    bare, raw = str(name).removesuffix(":raw"), str(name).endswith(":raw")
    if raw and not model.has_canonical:
        raise InputError(f"{field} = {name!r}: this model has no gauge of scale, pass {bare}")
    found = parse_loss(bare, model.exponents, model.gauge, field, model.shared_exponents)
    return replace(found, name=str(name), raw=raw)


def parse_loss(
    name: str, exponents: dict[str, tuple[float, ...]], gauge: str | None, field: str = "claim.loss",
    shared: dict[str, tuple[float, ...]] | None = None,
) -> Loss:  # fmt: skip
    """The loss called ``name`` for a model with these block exponents, gauge and exponents of shared parameters.

    Raises ``InputError``, which calls what holds the name ``field``.
    """
    table, together = tuple(exponents.items()), tuple((shared or {}).items())
    kind, *rest = str(name).split(":")
    if kind == "voronoi" and len(rest) <= 1:
        if not rest:
            return Loss(name, "voronoi", table, table, gauge=gauge, shared=together)
        if rest[0] == "untranslated":
            if gauge is None:
                raise InputError(f"{field} = {name!r}: this model has no translation to leave out, pass voronoi")
            return Loss(name, "voronoi", table, table, shared=together)
        power = re.fullmatch(r"r=([0-9.]+)", rest[0])
        if power:
            r = _power(field, name, power[1])
            alike = [tuple((block, (r,)) for block, _ in of) for of in (table, together)]
            return Loss(name, "voronoi", alike[0], alike[0], gauge=gauge, shared=alike[1])
    if name in ("mass", "function"):
        return Loss(name, name, table, table, gauge=gauge)
    if kind == "shared" and shared and set(rest) <= set(shared) and len(rest) <= 1:
        return Loss(name, "shared", table, table, gauge=gauge, shared=tuple((k, shared[k]) for k in rest or shared))
    chosen = rest[1].split("+") if len(rest) == 2 else list(exponents)
    cells = bool(rest) and (rest[0] in ("single", "multi", "weighted") or re.fullmatch("[1-9][0-9]*", rest[0]))
    known = cells and len(rest) <= 2 and set(chosen) <= set(exponents)
    if kind == "atoms" and known:
        blocks = tuple((b, exponents[b]) for b in chosen)
        return Loss(name, "atoms", blocks, table, rest[0], gauge)
    also = f"shared, shared:{next(iter(shared))}, " if shared else ""
    raise InputError(
        f"{field} = {name!r} is not known: pass voronoi, voronoi:r=2, voronoi:untranslated, function, mass, {also}"
        "atoms:single, atoms:multi, atoms:weighted, atoms:3 (of cells of three) or one block of those, as in "
        f"atoms:multi:{next(iter(exponents))}, or several joined by +"
    )


def _power(field: str, name: str, text: str) -> float:
    """The exponent r of ``voronoi:r=...``."""
    try:
        r = float(text)
    except ValueError:
        raise InputError(f"{field} = {name!r}: r = {text!r} is no number, pass for example voronoi:r=2") from None
    if r < 1:
        raise InputError(f"{field} = {name!r}: the exponent r must be at least 1")
    return r


def standard_losses(model: Model) -> list[str]:
    """Names of the losses that every study of a model records."""
    exponents = model.exponents
    blocks = [f"atoms:{cells}:{block}" for cells in ("single", "multi") for block in exponents]
    names = ["voronoi", "function", "mass", "atoms:single", "atoms:multi"] + (blocks if len(exponents) > 1 else [])
    if model.has_canonical:
        return [*names, "voronoi:raw"]
    return names + (["shared"] if model.shared_exponents else [])


def cells(fitted: MixingMeasure, truth: MixingMeasure):
    """Voronoi cells as a matrix (L, L*) of booleans: fitted atom i is nearest to true atom j (Euclidean)."""
    distance = jnp.sum((fitted.location[:, None] - truth.location[None]) ** 2, axis=-1)
    if fitted.group is not None and truth.group is not None:  # an atom is never in a cell of another kind
        distance = jnp.where(fitted.group[:, None] == truth.group[None], distance, jnp.inf)
    return jax.nn.one_hot(jnp.argmin(distance, axis=1), distance.shape[1], dtype=bool)


def evaluate(loss: Loss, fitted: MixingMeasure, truth: MixingMeasure):
    """The loss of one fitted measure, a scalar; NaN where it has no atom to speak of (no such cell).

    Pure JAX, so ``vmap`` gives the losses of many. Voronoi: Le et al. arXiv 2410.02200, equations of D_1, D_2
    and D_3; with a gauge the infimum over translations is computed, not assumed.
    """
    return evaluate_all([loss], fitted, truth)[loss.name]


def evaluate_all(losses: list[Loss], fitted: MixingMeasure, truth: MixingMeasure) -> dict:
    """``{name: value}`` of several losses; the best translation is looked for once for all that share it."""
    shifts: dict = {}
    found = {}
    for loss in losses:
        if loss.kind == "function":
            raise InputError("the function loss needs the model and the law: it is computed by moe_sim.fitting")
        if loss.gauge is None:
            found[loss.name] = _evaluate(loss, fitted, truth, jnp.zeros(()))
        elif loss.gauge == "":
            found[loss.name] = _evaluate(loss, fitted, truth, None)
        else:
            whole = tuple((block, (1.0,)) for block, _ in loss.whole) if loss.kind == "atoms" else loss.whole
            asked = (whole, loss.gauge, loss.kind == "voronoi")
            if asked not in shifts:
                still, true = _constant((fitted, truth))
                best = _best_shift(Loss("voronoi", "voronoi", whole), loss.gauge, still, true, asked[2])
                shifts[asked] = _following(best, dict(whole), fitted, truth)
            moved = fitted.translate(0.0, shifts[asked])
            found[loss.name] = _evaluate(loss, moved, truth, None)
    return found


def _best_shift(whole: Loss, gauge: str, fitted: MixingMeasure, truth: MixingMeasure, open_end: bool) -> dict:
    """The translations of the blocks of ``gauge``, by name, at which the whole loss is least.

    They have no closed form once cells move with them: every anchor of one fitted atom on one true atom is a
    candidate, refined by reweighted means within the cells (Weiszfeld's iteration for exponent r: weights
    |gap|^(r-2), damped above 2); cells are cut afresh each time and the least value met is kept.
    ``open_end``: whether the limit of vanishing mass counts, where all translations tie.
    """
    blocks = gauge.split("+")
    powers = dict(whole.exponents)
    weight = fitted.weight if fitted.movable is None else fitted.weight * fitted.movable

    def value(shift):
        return _evaluate(whole, fitted.translate(0.0, shift), truth, None, open_end)

    def refine(k, carry):
        shift, best, at = carry
        found = fitted.translate(0.0, shift)
        cell = cells(found, truth)
        nearest = jnp.argmax(cell, axis=1)
        size = jnp.sum(cell, axis=0)[nearest]
        shift = {b: shift[b] + step(k, b, found.blocks[b], truth.blocks[b][nearest], size) for b in blocks}
        now = value(shift)
        return shift, jnp.minimum(best, now), jax.tree.map(lambda new, old: jnp.where(now < best, new, old), shift, at)

    def step(k, block, here, there, size):
        power = _exponent(powers[block], size)
        gap = there - here
        # A gap of 0 would hold the iteration on its anchor, so gaps are smoothed, less and less.
        square = jnp.sum(gap**2, axis=1)
        length = jnp.sqrt(square + 0.72**k * jnp.mean(square) + 1e-24)
        pull = weight * power * length ** (power - 2.0)
        return pull @ gap / jnp.sum(pull) / jnp.maximum(1.0, jnp.max(power) - 1.0)

    def best_from(anchor):
        return jax.lax.fori_loop(0, 75, refine, (anchor, value(anchor), anchor))[1:]

    anchors = {
        b: (truth.blocks[b][None] - fitted.blocks[b][:, None]).reshape(-1, truth.blocks[b].shape[1]) for b in blocks
    }
    found, at = jax.vmap(best_from)(anchors)
    return jax.tree.map(lambda shift: shift[jnp.argmin(found)], at)


def _constant(tree):
    """The same, without derivatives."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _following(shift: dict, powers: dict, fitted: MixingMeasure, truth: MixingMeasure) -> dict:
    """The best translations, as functions of the fitted measure: they were found as constants, since derivatives of an
    iteration cost many times what it does.

    Where a translation puts an atom on a true one it goes with that atom. Elsewhere the loss is smooth in it, and it
    moves as a step of Newton's does, which is of length 0 here.
    """
    moved = fitted.translate(0.0, shift)
    cell = cells(*_constant((moved, truth)))
    nearest = jnp.argmax(cell, axis=1)
    size = jnp.sum(cell, axis=0)[nearest]
    found = {}
    for block, at in shift.items():
        here, there = fitted.blocks[block], truth.blocks[block][nearest]
        power, mass = _exponent(powers[block], size), fitted.weight
        if fitted.movable is not None:
            mass = mass * fitted.movable

        def loss(s, here=here, there=there, power=power, mass=mass):
            return mass @ _length(here + s - there) ** power

        gap = jnp.where(mass > 0, jnp.sum((here + at - there) ** 2, axis=1), jnp.inf)
        k = jnp.argmin(_constant(gap))
        on_atom = _constant(gap)[k] <= (_ON_ATOM * (1 + jnp.max(jnp.abs(_constant(there))))) ** 2
        bend = _constant(jax.hessian(loss)(at))
        bend = bend + (1e-12 * jnp.trace(bend) + 1e-100) * jnp.eye(len(at))
        slope = jax.grad(loss)(at)
        step = jnp.linalg.solve(jnp.where(on_atom, jnp.eye(len(at)), bend), slope - _constant(slope))
        found[block] = jnp.where(on_atom, there[k] - here[k], at - jnp.where(on_atom, 0.0, step))
    return found


def _exponent(powers: tuple[float, ...], size):
    """The exponent in a cell of ``size`` atoms."""
    return jnp.asarray(powers)[jnp.minimum(size, len(powers)) - 1]


def _length(gap):
    """Norms of rows, with gradient 0 at 0, where the best translation puts an atom exactly on a true one."""
    square = jnp.sum(gap**2, axis=1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _evaluate(loss: Loss, fitted: MixingMeasure, truth: MixingMeasure, bias, open_end=True):
    """The loss with log-weights translated by ``bias``, or by the best translation where it is None."""
    cell = cells(fitted, truth)
    nearest = jnp.argmax(cell, axis=1)
    size = jnp.sum(cell, axis=0)[nearest]  # atoms in each atom's cell
    mass = fitted.weight @ cell
    distance = {b: _length(fitted.blocks[b] - truth.blocks[b][nearest]) for b, _ in loss.exponents}
    if loss.kind == "shared":
        return _shared(loss, fitted, truth)
    if loss.kind == "atoms":
        chosen = loss.speaks_of(size)
        if fitted.members:
            chosen = chosen & reduce(jnp.logical_or, (fitted.members[block] for block, _ in loss.exponents))
        square = sum(d**2 for d in distance.values())
        share = chosen * fitted.weight if loss.cells == "weighted" else chosen.astype(float)
        total = jnp.sum(share)
        return jnp.where(total > 0, jnp.sqrt(jnp.sum(share * square) / jnp.where(total > 0, total, 1.0)), jnp.nan)
    spread, rest = jnp.zeros(len(nearest)), jnp.zeros(())
    if loss.kind == "voronoi":
        for block, powers in loss.exponents:
            spread = spread + fitted.weight * distance[block] ** _exponent(powers, size)
        rest = _shared(loss, fitted, truth)
    moves = jnp.ones(len(mass), bool) if truth.movable is None else jnp.asarray(truth.movable)
    still = jnp.zeros(()) if fitted.movable is None else jnp.sum(jnp.where(fitted.movable, 0.0, spread))
    moving = jnp.sum(spread) - still

    def at(scale):
        here = jnp.where(moves, scale * mass, mass)
        return jnp.sum(jnp.abs(here - truth.weight)) + scale * moving + still + rest

    if bias is not None:
        return at(jnp.exp(bias))
    # In s = e^bias the loss is convex and piecewise linear: its least value is at a kink, or at s -> 0.
    has = (mass > 0) & moves
    kinks = jnp.where(has, truth.weight / jnp.where(has, mass, 1.0), 0.0)
    least = jnp.min(jnp.where(has, jax.vmap(at)(kinks), jnp.inf))
    return jnp.minimum(least, at(0.0)) if open_end else least


def _shared(loss: Loss, fitted: MixingMeasure, truth: MixingMeasure):
    """The sum over shared parameters of their distances, each to its exponent."""
    gaps = ((fitted.shared[name] - truth.shared[name], powers[0]) for name, powers in loss.shared)
    return sum((_length(gap[None])[0] ** power for gap, power in gaps), jnp.zeros(()))
