"""Voronoi cells and the losses between a fitted and a true mixing measure.

A loss is declared, not coded: the blocks it looks at, the exponent of each by the number of fitted atoms in
the cell, and what it is invariant to. The names are those of a study's claims:

    voronoi        the loss of the theory, with the model's exponents        D(G, G*)
    voronoi:r=2    the same with r in place of every exponent
    mass           its first part, the error of the cell masses
    atoms:single   root mean square distance of the atoms alone in their cell to the true atom
    atoms:multi    the same over atoms that share a cell;  atoms:multi:key  in one block only
    function       ||f_G - f_G*|| in L2 of the law (computed where the law is known: ``fitting``)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from moe_sim.errors import InputError
from moe_sim.measure import MixingMeasure


@dataclass(frozen=True)
class Loss:
    """kind: ``voronoi``, ``mass``, ``atoms`` or ``function``.

    exponents: per block, the exponents in cells of 1, 2, ... atoms (the last serves larger cells).
    cells: ``single`` or ``multi``, for kind ``atoms``.
    gauge: see ``RegressionModel.gauge``; the loss is the infimum over those translations.
    """

    name: str
    kind: str
    exponents: tuple[tuple[str, tuple[float, ...]], ...] = ()
    cells: str = ""
    gauge: str | None = None

    @property
    def aggregate(self) -> str:
        """How replicates are summed up: ``rms`` for atom distances, where a mean or a median would hide that
        part of the fits collapse two atoms into one; ``mean`` for every other loss."""
        return "rms" if self.kind == "atoms" else "mean"


def parse_loss(name: str, exponents: dict[str, tuple[float, ...]], gauge: str | None) -> Loss:
    """The loss called ``name`` for a model with these block exponents and gauge. Raises ``InputError``."""
    table = tuple(exponents.items())
    power = re.fullmatch(r"voronoi:r=([0-9.]+)", str(name))
    if name == "voronoi":
        return Loss(name, "voronoi", table, gauge=gauge)
    if power:
        try:
            r = float(power[1])
        except ValueError:
            raise InputError(
                f"claim.loss = {name!r}: r = {power[1]!r} is no number, pass for example voronoi:r=2"
            ) from None
        if r < 1:
            raise InputError(f"claim.loss = {name!r}: the exponent r must be at least 1")
        return Loss(name, "voronoi", tuple((block, (r,)) for block in exponents), gauge=gauge)
    if name in ("mass", "function"):
        return Loss(name, name, table, gauge=gauge)
    kind, *rest = str(name).split(":")
    if kind == "atoms" and rest[:1] in (["single"], ["multi"]) and rest[1:] in ([], *([b] for b in exponents)):
        blocks = tuple((b, exponents[b]) for b in rest[1:]) or table
        return Loss(name, "atoms", blocks, rest[0], gauge)
    raise InputError(
        f"claim.loss = {name!r} is not known: pass voronoi, voronoi:r=2, function, mass, atoms:single, atoms:multi "
        f"or one block of those, as in atoms:multi:{next(iter(exponents))}"
    )


def standard_losses(exponents: dict[str, tuple[float, ...]]) -> list[str]:
    """Names of the losses that every study records."""
    blocks = [f"atoms:{cells}:{block}" for cells in ("single", "multi") for block in exponents]
    names = ["voronoi", "function", "mass", "atoms:single", "atoms:multi"]
    return names + (blocks if len(exponents) > 1 else [])


def cells(fitted: MixingMeasure, truth: MixingMeasure):
    """Voronoi cells as a matrix (L, L*) of booleans: fitted atom i is nearest to true atom j (Euclidean)."""
    distance = jnp.sum((fitted.location[:, None] - truth.location[None]) ** 2, axis=-1)
    return jax.nn.one_hot(jnp.argmin(distance, axis=1), distance.shape[1], dtype=bool)


def evaluate(loss: Loss, fitted: MixingMeasure, truth: MixingMeasure):
    """The loss of one fitted measure, a scalar; NaN where it has no atom to speak of (no such cell).

    Pure JAX, so ``vmap`` gives the losses of many. Voronoi: Le et al. arXiv 2410.02200, equations of D_1, D_2
    and D_3; with a gauge the infimum over translations is computed, not assumed.
    """
    if loss.kind == "function":
        raise InputError("the function loss needs the model and the law: it is computed by moe_sim.fitting")
    if loss.gauge is None:
        return _evaluate(loss, fitted, truth, jnp.zeros(()))
    if loss.gauge == "":
        return _evaluate(loss, fitted, truth, None)
    # The block's translation has no closed form once cells move with it: every anchor of one fitted atom on
    # one true atom is a candidate, refined by weighted means within the cells (exact for exponent 2) and by
    # Weiszfeld's weights for exponent 1; cells are cut afresh each time and the least true value is kept.
    block = loss.gauge
    anchors = (truth.blocks[block][None] - fitted.blocks[block][:, None]).reshape(-1, truth.blocks[block].shape[1])

    def moved(shift):
        return fitted.translate(0.0, block, shift)

    def value(shift):
        return _evaluate(loss, moved(shift), truth, None)

    def refine(_, carry):
        shift, best, at = carry
        found = moved(shift)
        nearest = jnp.argmax(cells(found, truth), axis=1)
        gap = truth.blocks[block][nearest] - found.blocks[block]
        weight = fitted.weight / jnp.maximum(jnp.linalg.norm(gap, axis=1), 1e-12)
        weight = fitted.weight if _power(loss, block) >= 2 else weight
        shift = shift + weight @ gap / jnp.sum(weight)
        now = value(shift)
        return shift, jnp.minimum(best, now), jnp.where(now < best, shift, at)

    def best_from(anchor):
        return jax.lax.fori_loop(0, 40, refine, (anchor, value(anchor), anchor))[1:]

    found, at = jax.vmap(best_from)(anchors)
    if loss.kind == "voronoi":
        return jnp.min(found)
    # Parts are read off in the gauge that the whole Voronoi loss prefers, not each in a gauge of its own.
    whole = Loss("voronoi", "voronoi", loss.exponents, gauge="")
    score = jax.vmap(lambda shift: _evaluate(whole, moved(shift), truth, None))(at)
    return value(at[jnp.argmin(score)])


def _power(loss: Loss, block: str) -> float:
    return dict(loss.exponents).get(block, (1.0,))[0]


def _evaluate(loss: Loss, fitted: MixingMeasure, truth: MixingMeasure, bias):
    """The loss with log-weights translated by ``bias``, or by the best translation where it is None."""
    cell = cells(fitted, truth)
    nearest = jnp.argmax(cell, axis=1)
    size = jnp.sum(cell, axis=0)[nearest]  # atoms in each atom's cell
    mass = fitted.weight @ cell
    distance = {b: jnp.linalg.norm(fitted.blocks[b] - truth.blocks[b][nearest], axis=1) for b, _ in loss.exponents}
    if loss.kind == "atoms":
        chosen = (size == 1) if loss.cells == "single" else (size > 1)
        square = sum(d**2 for d in distance.values())
        count = jnp.sum(chosen)
        return jnp.where(count > 0, jnp.sqrt(jnp.sum(jnp.where(chosen, square, 0.0)) / jnp.maximum(count, 1)), jnp.nan)
    spread = jnp.zeros(())
    if loss.kind == "voronoi":
        for block, powers in loss.exponents:
            exponent = jnp.asarray(powers)[jnp.minimum(size, len(powers)) - 1]
            spread = spread + fitted.weight @ distance[block] ** exponent

    def at(scale):
        return jnp.sum(jnp.abs(scale * mass - truth.weight)) + scale * spread

    if bias is not None:
        return at(jnp.exp(bias))
    # In s = e^bias the loss is convex and piecewise linear: its least value is at a kink, or at s -> 0.
    kinks = jnp.where(mass > 0, truth.weight / jnp.where(mass > 0, mass, 1.0), 0.0)
    return jnp.minimum(jnp.min(jax.vmap(at)(kinks)), at(0.0))
