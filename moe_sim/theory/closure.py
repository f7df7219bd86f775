"""Other measures with the function of the truth, found before any sampling and shown by evaluating both.

splitting: two copies of an atom with one gate, shares w and 1 - w of its mass, and experts e1 != e2 such that
    w h(x, e1) + (1 - w) h(x, e2) = h(x, e). An expert class that allows it has no rate once it is over-specified.
doubling: two copies of every atom, their gates moved by +t and -t. Where logits are linear in them the common factor
    cosh(t x) cancels in the normalised gates.
mute: a spare atom whose expert is zero, so that its gate and mass may be anything, where gates are not normalised.
gauge: a curve of measures of as many atoms as the truth that the model does not declare, and the one-parameter group
    that moves along it, where it is one.
symmetry: a measure elsewhere, of as many atoms or of one more, as where S(-u) = 1 - S(u) or where kinds of atoms may be
    exchanged.

What is found holds; that nothing is found says that no start led there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_sim.data.cells import few_cells
from moe_sim.data.covariates import Law
from moe_sim.data.draw import population
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import parameters_of
from moe_sim.fitting.measured import LossFunction
from moe_sim.fitting.multistart import Fitter
from moe_sim.fitting.options import FitOptions, estimators
from moe_sim.fitting.splits import splits
from moe_sim.losses.voronoi import Loss, loss_of
from moe_sim.models.base import Density, Model, Parameters
from moe_sim.models.coordinates import lists
from moe_sim.theory.curves import RANK, combination, coordinates, echelon, followed, group_of, null_directions
from moe_sim.theory.level import least_on_level
from moe_sim.theory.search import SAME_FUNCTION, Branch, Search, owners, residuals_near

APART = 0.3  # how far experts of a split atom, or gates of a doubled one, are led from each other and from the truth
MOVED = 1e-6  # by which a block differs from that of the truth, if it does
ELSEWHERE = 1e-2  # loss from which a measure counts as another one
_STARTS = 8  # of a splitting, and of the search for measures elsewhere beside those with signs changed
_ITERATIONS = 200
_SPLITS = 128  # of atoms of the truth, from which measures of one atom more are looked for
_SAME = 1e-3  # log-likelihood units by which a fit of the population may miss its function, to be led on to it


@dataclass(frozen=True)
class Closure:
    """kind: see the module. text: what it is, in words and numbers. atoms: the true atoms it is about, from 1.

    measure: parameters of the other measure. blocks: what of the truth it moves, ``mass`` for the masses of cells.
    loss: its Voronoi loss. difference: the distance of its function from the true one, zero to rounding. dimension: of
    the set of such measures about it, None where that was not looked at.
    """

    kind: str
    text: str
    atoms: list[int]
    measure: Parameters
    blocks: list[str]
    loss: float
    difference: float
    dimension: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"measure": lists(self.measure)}


def closures(model: Model, truth: Parameters, law: Law | None, options: FitOptions) -> list[Closure]:
    """All that are found of measures with as many atoms as ``options`` fits; arguments are fields of ``study.problem``.

    Curves are looked for among measures of as many atoms as the truth, measures elsewhere among those of one atom more
    too, where nothing else is found.
    """
    true, fitted = model.sizes_of(truth), model.sizes(options.atoms)

    def place(sizes: dict[str, int], way: np.ndarray) -> _Place:
        return _Place(model, truth, law, replace(options, atoms=sizes), tuple(way.tolist()))

    exact = place(true, np.ones(model.count(truth), int))
    gauges = exact.gauges()
    found = [*gauges, *([] if gauges else exact.elsewhere())]
    kinds = np.repeat(list(true), list(true.values()))
    for atom in np.flatnonzero(model.divisible(truth)):
        group = kinds[atom]
        if fitted[group] > true[group]:
            doubled = place(true | {group: true[group] + 1}, 1 + (np.arange(len(kinds)) == atom))
            found += doubled.splittings(int(atom))
            if not any(c.kind == "mute" and kinds[c.atoms[0] - 1] == group for c in found):
                found += doubled.mutes(int(atom))
    for group, size in true.items():
        if fitted[group] > size and not found:  # a family of them would be found again, one at a time
            first = np.arange(len(kinds)) == np.argmax(kinds == group)
            more = place(true | {group: size + 1}, 1 + first)
            found += more.elsewhere(_from_splits(model, truth, law, more.search.fitter.options))
        if fitted[group] >= 2 * size and np.all(model.divisible(truth)[kinds == group]):
            found += place(true | {group: 2 * size}, 1 + (kinds == group)).doublings(group)
    return found


def _from_splits(model: Model, truth: Parameters, law: Law | None, options: FitOptions) -> np.ndarray:
    """Ends (K, P) of fits of the population, from splits of atoms of the truth, that have its function as far as fits
    tell; none where it has many cells."""
    cells = None
    if isinstance(model, Density):
        cells = few_cells(model, truth, law, model.bounds(options.atoms, options.bound, options.bias_bound)[0])
        if cells is None:
            return np.zeros((0, 0))
    plain = replace(options, estimator=estimators(model)[0], solver={}, max_iterations=_ITERATIONS)
    fitter = Fitter(model, truth, plain)
    starts = splits(model, truth, np.random.SeedSequence(0), fitter.lower, fitter.upper, _SPLITS)
    found = fitter.solve(population(model, truth, law, cells), np.zeros(len(starts), int), starts)
    return np.asarray(found.theta)[np.asarray(found.objective) < _SAME]


class _Place:
    """A cover of the truth by so many atoms on each true one, and what can be solved for near it."""

    def __init__(self, model: Model, truth: Parameters, law: Law | None, options: FitOptions, way: tuple[int, ...]):
        self.model, self.truth = model, truth
        self.whole: Loss = loss_of(model, "voronoi")
        self.search = Search(model, truth, law, options, [self.whole])
        self.branch = Branch(self.search, way)
        self.owner = np.asarray(owners(way))
        self.centre = np.asarray(self.branch.centre)
        self.measured = LossFunction(model, truth, law, [self.whole], options.atoms)
        self.names = coordinates(self.search.fitter)
        self.slopes = self.search.measure_slopes(self.centre)
        self.rng = np.random.default_rng([0, *way])

    def params(self, theta: np.ndarray) -> Parameters:
        return {k: np.asarray(v) for k, v in self.search.fitter.unflatten(theta).items()}

    def difference(self, theta: np.ndarray) -> float:
        return float(np.linalg.norm(self.search.residuals(theta)))

    def closure(self, kind: str, text: str, atoms: list[int], theta: np.ndarray, dimension: int | None) -> Closure:
        model, params = self.model, self.params(theta)
        loss = float(self.measured(theta[None])[self.whole.name][0])
        true = self.params(self.centre)
        here, there = (model.measure(model.canonical(p)) for p in (params, true))
        blocks = [name for name in here.blocks if _differs(here.blocks[name], there.blocks[name])]
        blocks += [name for name in here.shared if _differs(here.shared[name], there.shared[name])]
        raw = [name for name in params if _differs(params[name], true[name])]
        cell = np.equal.outer(np.arange(self.owner.max() + 1), self.owner)
        masses = [cell @ np.asarray(of.weight) for of in (here, there)]
        if model.gauge is not None:
            masses = [mass / mass.sum() for mass in masses]
        if _differs(*masses):
            blocks.append("mass")
        return Closure(kind, text, atoms, params, blocks or raw, loss, self.difference(theta), dimension)

    def gauges(self) -> list[Closure]:
        """Curves of measures with as many atoms, that begin at the truth: null directions that move the measure."""
        jacobian = np.asarray(self.search.jacobian(self.centre))
        unseen = null_directions(self.model, self.search.fitter, jacobian, self.centre, self.owner)
        found = []
        for line in echelon(unseen.moving):
            way = followed(self.search.residuals, self.search.jacobian, self.centre, line, self.search.lower,
                           self.search.upper)  # fmt: skip
            if way is None:
                continue
            group = group_of(way, self.names)
            text = f"t -> {group}" if group else f"a curve that begins along {combination(line, self.names)}"
            found.append(self.closure("gauge", text, list(range(1, len(self.owner) + 1)), way.end, None))
        return found

    def elsewhere(self, ends: Iterable[np.ndarray] = ()) -> list[Closure]:
        """Measures of so many atoms that are not the truth: from those with signs of an atom's gate or expert changed,
        from random ones of the box, and from these ``ends`` of fits (P,)."""
        gate, _ = self.coordinates_of_gates()
        starts = []
        for atom in range(self.owner.max() + 1):
            for chosen in (gate & self.moves(atom), ~gate & self.moves(atom), self.moves(atom)):
                starts.append(np.where(chosen, -self.centre, self.centre))
        size = np.maximum(np.abs(self.centre), 0.5 * np.max(np.abs(self.centre)))
        starts += [*(size * self.rng.normal(size=(_STARTS, len(size)))), *ends]
        everything = np.ones(len(self.centre), bool)
        known: list[np.ndarray] = []
        found = []
        for start in starts:
            theta = self.led(start, everything)
            if self.difference(theta) >= SAME_FUNCTION:
                continue
            made = self.closure("symmetry", f"another measure: {told(self.params(theta))}", [], theta, None)
            if made.loss > ELSEWHERE and all(np.max(np.abs(theta - other)) > 1e-4 for other in known):
                known.append(theta)
                found.append(made)
        return sorted(found, key=lambda c: len(c.blocks))[:1]  # not the same with its atoms in another order

    def splittings(self, atom: int) -> list[Closure]:
        """One atom as two, with one gate and other experts."""
        pair = np.flatnonzero(self.owner == atom)
        gate, mass = self.coordinates_of_gates()
        experts = ~gate & ~mass & (self.moves(pair[0]) | self.moves(pair[1]))
        if not experts.any():
            return []
        free = experts | mass
        unit = self._unit(experts)
        of = np.array([name.split("[")[0] for name in self.names])
        alone = [np.where(of == name, unit, 0.0) for name in dict.fromkeys(of[experts])]  # only one parameter moves
        ray = np.where(experts, self.centre, 0.0)
        ways = [*alone, ray, *(unit * self.rng.normal(size=(_STARTS, len(unit))))]
        side = np.where(self.moves(pair[0]), 1.0, -1.0)
        centres = self.centre + mass * self.rng.uniform(-1, 1, (len(ways), len(unit)))
        fixed = np.where(free, -np.inf, self.centre), np.where(free, np.inf, self.centre)
        box = np.maximum(self.search.lower, fixed[0]), np.minimum(self.search.upper, fixed[1])
        ends = _splits(self.search.atoms)(
            (self.search.target, *box, jnp.asarray(pair)), (np.clip(centres, *box), side * np.array(ways))
        )
        theta, distance = ends[0][np.argmin(ends[1])], float(np.min(ends[1]))
        if not distance < SAME_FUNCTION:
            return []
        weight = np.exp(self.search.log_weight(theta))[pair]
        share, names = weight / weight.sum(), self._parameters_of(experts)
        first, second = (told(self.params(theta), int(i), names) for i in pair)
        text = (
            f"atom {atom + 1} as two with one gate: {share[0]:.3g} h(x, {first}) + {share[1]:.3g} h(x, {second}) = "
            f"h(x, {told(self.truth, atom, names)})"
        )
        return [self.closure("splitting", text, [atom + 1], theta, self.nullity(theta, free))]

    def mutes(self, atom: int) -> list[Closure]:
        """A spare atom anywhere that counts for nothing: its gate is drawn, its expert is looked for."""
        spare = int(np.flatnonzero(self.owner == atom)[1])
        gate, mass = self.coordinates_of_gates()
        mine = self.moves(spare)
        if not np.any(mine & ~gate):
            return []
        low, high = (np.clip(side, -3.0, 3.0) for side in (self.search.lower, self.search.upper))
        for _ in range(_STARTS):
            drawn = self.rng.uniform(low, high)
            start = np.where(mine & gate, drawn, np.where(mine, drawn / 10, self.centre))
            theta = self.led(start, (mine & ~gate) | (mass & ~mine))
            if self.difference(theta) < SAME_FUNCTION:
                text = f"a spare atom that counts for nothing, {told(self.params(theta), spare)}"
                made = self.closure("mute", text, [atom + 1], theta, self.nullity(theta, mine | mass))
                if made.loss > ELSEWHERE:
                    return [made]
        return []

    def doublings(self, group: str) -> list[Closure]:
        """Two copies of every atom of a group, a parameter of their gates moved by +t and -t."""
        gate, mass = self.coordinates_of_gates()
        of_gates = self._parameters_of(gate & ~mass)
        found = []
        for name in self.model.parameters():
            if name not in of_gates:
                continue
            params = self.params(self.centre)
            step = APART * self.rng.normal(size=params[name].shape[1:])
            sign = np.where(np.arange(len(self.owner)) == [np.argmax(self.owner == j) for j in self.owner], 1.0, -1.0)
            kinds = np.repeat(list(self.model.sizes_of(params)), list(self.model.sizes_of(params).values()))
            moved = params[name] + np.multiply.outer(sign[kinds == group], step)
            if name in filter(None, (self.model.gauge or "").split("+")):
                moved = moved - moved[-1]
            theta = np.asarray(self.search.fitter.flatten(params | {name: moved}))
            theta = self.led(theta, mass)
            if self.difference(theta) < SAME_FUNCTION:
                text = (
                    f"two copies of every atom, {name} moved by + and - {np.round(step, 3).tolist()}: a factor common "
                    "to all gates, which cancels"
                )
                atoms = list(range(1, self.owner.max() + 2))
                found.append(self.closure("doubling", text, atoms, theta, None))
        return found

    # What coordinates are of.

    def moves(self, atom: int) -> np.ndarray:
        """Which coordinates move this fitted atom, its mass or its place: (P,)."""
        weight, location = self.slopes
        return (weight[atom] != 0) | np.any(location[atom] != 0, axis=0)

    def coordinates_of_gates(self) -> tuple[np.ndarray, np.ndarray]:
        """Which coordinates are of gates, and which of those are masses alone: (P,) each."""
        mass = self.branch.masses
        return (self.branch.pull > 1e-12) | mass, mass

    def _parameters_of(self, chosen: np.ndarray) -> list[str]:
        """Names of the parameters that these coordinates move."""
        params, moved = self.params(self.centre), self.params(self.centre + np.where(chosen, 1e-3, 0.0))
        return [name for name in params if _differs(params[name], moved[name])]

    def _unit(self, chosen: np.ndarray) -> np.ndarray:
        """A step of size 1 in each coordinate, or what the box has room for."""
        room = np.minimum(self.centre - self.search.lower, self.search.upper - self.centre)
        return np.where(chosen, np.minimum(1.0, np.maximum(room, 0.0)), 0.0)

    def nullity(self, theta: np.ndarray, free: np.ndarray) -> int:
        """Dimension of the null space of the Jacobian in the free coordinates."""
        jacobian = np.asarray(self.search.jacobian(theta))[:, free]
        length = np.linalg.norm(jacobian, axis=0)
        jacobian = np.where(length > RANK * np.max(length), jacobian, 0.0)  # of zero, what is left is rounding
        length = np.maximum(length, 1e-300)
        singular = np.linalg.svd(np.linalg.qr(jacobian / length, mode="r"), compute_uv=False)
        return int(np.sum(singular <= RANK * singular[0]))

    def led(self, theta: np.ndarray, free: np.ndarray) -> np.ndarray:
        """To the function of the truth, in the free coordinates."""
        box = self.search.lower, self.search.upper
        return descend(self.search.residuals, self.search.jacobian, theta, free, box)


@lru_cache(maxsize=8)
def _splits(atoms: tuple[tuple[str, int], ...]) -> LaneFunction:
    """theta (P,) and the least distance of functions where two atoms are ``APART``; lanes: centre and offset; shared:
    target, box, and which two."""

    def one(shared, lane):
        (target, lower, upper, pair), (centre, offset) = shared, lane
        params = parameters_of(target.model, dict(atoms))

        def apart(theta):
            place = target.model.measure(params(theta)).location[pair]
            return jnp.linalg.norm(place[0] - place[1])

        found = least_on_level(*residuals_near(target, dict(atoms)), apart, centre, offset, APART, lower, upper)
        return found.theta, found.omega

    return LaneFunction(one)


def descend(value: Callable, jacobian: Callable, theta, free: np.ndarray, box) -> np.ndarray:
    """Levenberg-Marquardt steps in the free coordinates, in the box, until the residual is zero to rounding or falls no
    more."""
    theta = np.clip(theta, *box)
    damping, r = 1e-2, np.asarray(value(theta))
    rows = np.asarray(jacobian(theta))[:, free]
    for _ in range(_ITERATIONS):
        size = np.linalg.norm(r)
        if not size > SAME_FUNCTION / 10 or damping > 1e8 or not np.all(np.isfinite(rows)):
            break
        scale = np.maximum(np.linalg.norm(rows, axis=0), 1e-8 * max(float(np.linalg.norm(rows)), 1e-300))
        q, factor = np.linalg.qr(rows / scale)
        stacked = np.vstack([factor, np.sqrt(damping) * np.eye(factor.shape[1])])
        step = np.linalg.lstsq(stacked, np.append(-(q.T @ r), np.zeros(factor.shape[1])), rcond=None)[0] / scale
        trial = theta.copy()
        trial[free] += step
        trial = np.clip(trial, *box)
        there = np.asarray(value(trial))
        if np.linalg.norm(there) < size:
            theta, r, damping = trial, there, max(damping / 10, 1e-15)
            rows = np.asarray(jacobian(theta))[:, free]
        else:
            damping *= 10
    return theta


def told(params: Parameters, atom: int | None = None, names: list[str] | None = None) -> str:
    """Parameters in words: ``slope = 2.1, intercept = 0.3``; of one atom, or all."""
    parts = []
    for name in names or list(params):
        value = np.asarray(params[name], float)
        value = value if atom is None or value.ndim == 0 else value[atom]
        small = 1e-4 * np.max(np.abs(value), initial=1.0)
        rounded = np.array([float(f"{v:.4g}") if abs(v) > small else 0.0 for v in np.ravel(value)])
        rounded = rounded.reshape(np.shape(value))
        parts.append(f"{name} = {rounded.tolist() if rounded.size > 1 else rounded.item()}")
    return ", ".join(parts)


def _differs(one, other) -> bool:
    return bool(np.max(np.abs(np.asarray(one) - np.asarray(other)), initial=0.0) > MOVED)
