"""What a model says of itself. It is written for ONE sample and declares its parameters; all else is inherited.

``Regression`` says the mean of y given x, ``Density`` the density of y given x (or of both).
``testing.check_model`` holds a model to what is said here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_sim._engine import jax
from moe_sim.errors import InputError
from moe_sim.models import coordinates
from moe_sim.models.coordinates import as_array
from moe_sim.models.domains import GATE, SIMPLEX, SPD, Shape
from moe_sim.models.measure import MixingMeasure
from moe_sim.models.parameter import Parameter
from moe_sim.models.part import Part
from moe_sim.models.support import Support

Parameters = dict[str, Any]  # named arrays, as in a study's [truth]
Atoms = int | Mapping[str, int]  # of a model with one kind of atoms, or by group
ATOMS = "atoms"  # the group of a model that has only one


class ModelError(InputError):
    """A model that does not keep what ``Model`` promises. Its text names the parameter and the property."""


class Model(Part):
    """Parameters are a dict of named float arrays; the names are those of a study's ``[truth]`` table.

    A subclass sets ``dimension`` and ``outputs`` of x and y, and writes ``parameters`` and what its kind asks for.

    mass: the name of the parameter that holds the masses of the atoms, one a row, or one a group. Found where it is not
        given: the one on the simplex, or the one within ``bias_bound``.
    gauge: what leaves the function as it is: None, or the names, joined by +, of blocks that may be translated along
        with the log-weights (``""``: the log-weights alone). Found where it is not given: what ``GATE`` pins.
    default_bounds: of parameters and of log-weights, where a study gives none.
    """

    dimension: int
    outputs: int = 1
    mass: str | dict[str, str] | None = None
    default_bounds: tuple[float, float] = (6.0, 3.0)
    joint = False  # whether it is a density of x and y, and so draws its own x
    estimators: tuple[str, ...] = ()  # that fit it, the usual one first
    clusters = False  # whether ``from_clusters`` makes starts from the data

    @abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """The declaration of every parameter, by name."""

    # What follows from the declaration; a model may know better.

    @property
    def groups(self) -> tuple[str, ...]:
        """The kinds of atoms; ``("atoms",)`` where there is only one."""
        named = [p.group for p in self.parameters().values() if p.group is not None]
        return tuple(dict.fromkeys(named)) or (ATOMS,)

    @property
    def masses(self) -> dict[str, str]:
        """The name of the parameter that holds the masses, by group."""
        if isinstance(self.mass, str):
            return dict.fromkeys(self.groups, self.mass)
        return {group: (self.mass or {}).get(group) or self._mass_of(group) for group in self.groups}

    def _mass_of(self, group: str) -> str:
        rows = {k: p for k, p in self.parameters().items() if not p.shared and (p.group or ATOMS) == group}
        for fits in (lambda p: p.domain is SIMPLEX, lambda p: p.bound == "bias_bound"):
            names = [name for name, p in rows.items() if fits(p) and p.shape == ()]
            if len(names) == 1:
                return names[0]
        raise ModelError(
            f"{type(self).__name__}: which of {', '.join(rows)} holds the masses of its atoms is not clear: set "
            "mass = its name in the class"
        )

    @property
    def gauge(self) -> str | None:
        """Blocks that may be translated along with the log-weights (see the class)."""
        pinned = [name for name, p in self.parameters().items() if p.domain is GATE]
        if not set(pinned) & set(self.masses.values()):
            return None
        return "+".join(name for name in pinned if name not in self.masses.values())

    @property
    def exponents(self) -> dict[str, tuple[float, ...]]:
        """Per block of the measure, the exponents of the Voronoi loss in cells of 1, 2, ... atoms."""
        return {k: p.exponents for k, p in self.parameters().items() if p.exponents is not None and not p.shared
                and k not in self.masses.values()}  # fmt: skip

    @property
    def shared_exponents(self) -> dict[str, tuple[float, ...]]:
        """Per parameter that all atoms share, the exponent of its term in the Voronoi loss."""
        return {k: p.exponents for k, p in self.parameters().items() if p.exponents is not None and p.shared}

    @property
    def symmetric(self) -> tuple[str, ...]:
        """Names of parameters that are symmetric matrices."""
        return tuple(name for name, p in self.parameters().items() if p.domain is SPD)

    @property
    def variances(self) -> tuple[str, ...]:
        """Names of the free coordinates that are logarithms of a scale: where one of them lies on its lower bound the
        likelihood is degenerate, and the fit is flagged."""
        return ()

    def sizes(self, atoms: Atoms) -> dict[str, int]:
        """How many atoms each group has."""
        if isinstance(atoms, Mapping):
            return {group: int(atoms[group]) for group in self.groups}
        if len(self.groups) > 1:
            raise ModelError(f"{type(self).__name__} has atoms of {' and '.join(self.groups)}: say how many of each")
        return {self.groups[0]: atoms}

    def total(self, atoms: Atoms) -> int:
        """How many atoms that is, of all groups together."""
        return sum(self.sizes(atoms).values())

    def sizes_of(self, params: Parameters) -> dict[str, int]:
        """How many atoms of each group these parameters have."""
        return {group: len(params[name]) for group, name in self.masses.items()}

    def count(self, params: Parameters) -> int:
        """How many atoms these parameters have, of all groups together."""
        return sum(self.sizes_of(params).values())

    def most_in_a_cell(self, params: Parameters, atoms: Atoms) -> int:
        """How many of so many fitted atoms may share one atom of these parameters, where each has one at least."""
        true, fitted = self.sizes_of(params), self.sizes(atoms)
        return max(fitted[group] - true[group] for group in self.groups) + 1

    def shapes(self, atoms: Atoms) -> dict[str, Shape]:
        """Name and shape of every parameter array of a model with ``atoms`` learned experts."""
        sizes = self.sizes(atoms)
        return {
            name: p.shape if p.shared else (sizes[p.group or self.groups[0]], *p.shape)
            for name, p in self.parameters().items()
        }

    def free_shapes(self, atoms: Atoms) -> dict[str, Shape]:
        """Name and shape of every array of free coordinates."""
        return coordinates.free_shapes(self.parameters(), self.shapes(atoms))

    def bounds(self, atoms: Atoms, bound: float, bias_bound: float) -> tuple[Parameters, Parameters]:
        """Lower and upper bound of every free coordinate: the compact set that the theory asks for."""
        return coordinates.bounds(self.parameters(), self.shapes(atoms), {"bound": bound, "bias_bound": bias_bound})

    def unconstrain(self, params: Parameters) -> Parameters:
        """The free coordinates of parameters, as named arrays: what solvers move."""
        return coordinates.unconstrain(self.parameters(), params)

    def constrain(self, free: Parameters) -> Parameters:
        """The parameters of free coordinates, the inverse of ``unconstrain``."""
        return coordinates.constrain(self.parameters(), free)

    def log_weight(self, params: Parameters):
        """Logarithms of the masses of the atoms (L,), group after group."""
        parts = []
        for name in self.masses.values():
            value = as_array(params[name])
            xp = value.__array_namespace__()
            parts.append(xp.log(value) if self.parameters()[name].domain is SIMPLEX else value)
        return parts[0] if len(parts) == 1 else xp.concatenate(parts)

    def measure(self, params: Parameters) -> MixingMeasure:
        """The mixing measure of the parameters, the atoms of all groups one after another."""
        sizes, declared = self.sizes_of(params), self.parameters()
        first = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
        blocks = {}
        for name in self.exponents:
            group = declared[name].group or self.groups[0]
            rows = as_array(params[name]).reshape(sizes[group], -1)
            after = sum(sizes.values()) - first[group] - sizes[group]
            padded = ((int(first[group]), int(after)), (0, 0))
            blocks[name] = rows.__array_namespace__().pad(rows, padded) if len(sizes) > 1 else rows
        shared = {
            k: as_array(params[k]).reshape(-1) for k, p in declared.items() if p.shared and p.exponents is not None
        }
        if len(sizes) == 1:
            return MixingMeasure(self.log_weight(params), blocks, shared=shared)
        kind = np.repeat(np.arange(len(sizes)), list(sizes.values()))
        pinned = [declared[name].domain is GATE for name in self.masses.values()]
        members: dict[str, Any] = {
            name: kind == self.groups.index(declared[name].group or self.groups[0]) for name in blocks
        }
        movable = np.asarray(pinned)[kind]
        return MixingMeasure(self.log_weight(params), blocks, shared, kind, members, movable)

    def canonical(self, params: Parameters) -> Parameters:
        """The representative of parameters that give the same function under a gauge of scale; losses are of it."""
        return params

    def additive(self, atom: Parameters) -> Parameters:
        """Free coordinates of one atom whose derivatives depend on each other with constant coefficients (see
        ``theory.dependences``), named arrays; by default its own parameters."""
        return atom

    def from_additive(self, coordinates: Parameters) -> Parameters:
        """The atom, without its mass: the inverse of ``additive``."""
        return coordinates

    @property
    def has_canonical(self) -> bool:
        return type(self).canonical is not Model.canonical

    def overfit(self, params: Parameters, atoms: np.ndarray) -> Parameters:
        """Parameters whose atom i sits on atom ``atoms[i]`` of ``params``, masses shared: the same function.

        atoms (L,): numbers of atoms, counted through all groups, those of a group together and in their order.
        """
        sizes, declared = self.sizes_of(params), self.parameters()
        first = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
        atoms = np.asarray(atoms)
        if self.has_canonical and len(np.unique(atoms)) < len(atoms):
            params = self.canonical(params)  # whose masses are what its measure says; the function is the same
        found = {}
        for name, value in params.items():
            p = declared[name]
            group = p.group or self.groups[0]
            mine = atoms[(atoms >= first[group]) & (atoms < first[group] + sizes[group])] - first[group]
            found[name] = np.array(value) if p.shared else np.asarray(value)[mine]
            if name == self.masses[group] and not p.shared:
                found[name] = self.divided(found[name], np.bincount(mine)[mine], group)
        return found

    def spare(self, rng: np.random.Generator, true: Atoms, fitted: Atoms) -> np.ndarray:
        """Numbers of random true atoms, that the spare fitted ones of a start are copies of: as many of each group."""
        before, found = 0, []
        for of_true, of_fitted in zip(self.sizes(true).values(), self.sizes(fitted).values(), strict=True):
            found.append(before + rng.integers(0, of_true, of_fitted - of_true))
            before += of_true
        return np.concatenate(found)

    def divided(self, mass: np.ndarray, among: np.ndarray, group: str) -> np.ndarray:
        """``divide_mass`` of masses of a group. Raises ``ModelError`` where no split of an atom keeps the function."""
        if np.all(among == 1):
            return mass
        if self.divide_mass is None:
            raise ModelError(f"{type(self).__name__}: no split of an atom keeps its function")
        if type(self).divide_mass is Model.divide_mass:
            on_simplex = self.parameters()[self.masses[group]].domain is SIMPLEX
            return mass / among if on_simplex else mass - np.log(among)
        return self.divide_mass(mass, among)

    def divide_mass(self, mass: np.ndarray, among: np.ndarray) -> np.ndarray:
        """Masses divided among so many atoms each: by default those on the simplex are, of others the exponentials.

        ``divide_mass = None`` in a class: no split of an atom keeps the function.
        """
        return self.divided(mass, among, self.groups[0])

    def divisible(self, params: Parameters) -> np.ndarray:
        """Which atoms can be split so that the function stays, (L,)."""
        return np.full(self.count(params), self.divide_mass is not None)

    def log_shares(self, params: Parameters, x) -> Any:
        """Logarithms of what each atom counts for at one x, (L,), up to a common constant: its gate, or its mass."""
        return self.log_weight(params)

    def split(self, params: Parameters, atom: int, step: float) -> Parameters | None:
        """Parameters with ``atom`` split in two, ``step`` apart, that give the very same function; or None.

        A model for which this exists at step > 0 has no rate for its parameters once over-specified.
        """
        return None

    def from_clusters(self, tau, x, y) -> Parameters:
        """Parameters to start from: tau (K, n) adds up to 1 over K (0 on padding), x (n, d), y (n, outputs)."""
        raise NotImplementedError

    @abstractmethod
    def draw_rows(self, params: Parameters, law, key, index, size):
        """x (B, d) and y (B, outputs) of the observations numbered ``index`` (B,) of a sample of ``size``."""


class Regression(Model):
    """``Y = mean(params, X) + noise``, the noise normal with standard deviation ``noise`` a coordinate.

    sketch: a regression of the same parameters that costs much less and whose function is near, ``span`` applied to
        it, where there is one: starts are led by it (``fitting.sketches``).
    """

    noise: float
    sketch: Regression | None = None
    estimators = ("least-squares", "gradient", "steps")

    @abstractmethod
    def mean(self, params: Parameters, x):
        """f_G(x) for one x of shape (dimension,): shape (outputs,)."""

    def span(self, x):
        """Of a sketch: an offset (o,) and orthonormal directions (o, outputs), by which the outputs o of what it is a
        sketch of are near ``offset + directions @ mean``; by default they are the same ones."""
        return jax.numpy.zeros(self.outputs), jax.numpy.eye(self.outputs)

    def around(self, exact: Regression, params: Parameters) -> Regression:
        """Of a sketch: one that is better near these parameters; ``exact`` is what it is a sketch of."""
        return self

    def draw_rows(self, params, law, key, index, size):
        key_x, key_y = jax.random.split(key)
        x = law.rows(key_x, index, size)
        y = jax.vmap(lambda one: self.mean(params, one))(x)
        return x, y + self.noise * jax.random.normal(key_y, y.shape)


class Density(Model):
    """Conditional density ``p(y | x)`` on ``support`` (``Labels``, ``Counts`` or ``Real``).

    Where it says its ``log_components`` it is fitted by EM too. With ``Real`` it also says its ``spread``.
    """

    support: Support

    @abstractmethod
    def log_density(self, params: Parameters, x, y):
        """log p(y | x), a scalar, at one x (dimension,) and one y (outputs,)."""

    def log_components(self, params: Parameters, x, y):
        """log of gate times density of every expert, (K,), at one x and y: p is the sum of them."""
        raise NotImplementedError

    @property
    def has_components(self) -> bool:
        return type(self).log_components is not Density.log_components

    @property
    def estimators(self):  # type: ignore[override]
        return ("mle", *(("em",) if self.has_components else ()), "gradient", "steps")

    def spread(self, params: Parameters, x) -> tuple[Any, Any]:
        """Where the mass of p(y | x) lies: centres and scales, each (pieces, outputs). Needed with ``Real``."""
        raise ModelError(f"{type(self).__name__}: a density of real y needs spread(params, x), centres and scales")

    def x_mixture(self, params: Parameters) -> tuple[Any, Any, Any]:
        """Joint densities: weights (K,), means (K, d), covariances (K, d, d) of the normal mixture that x is from."""
        raise ModelError(
            f"{type(self).__name__} is a joint density of x and y: integrals over it need the mixture that x is from, "
            "write x_mixture(params)"
        )

    def draw(self, params: Parameters, key, x):
        """One y (outputs,) at one x."""
        return self.support.draw(self, params, key, x)

    def draw_rows(self, params, law, key, index, size):
        key_x, key_y = jax.random.split(key)
        x = law.rows(key_x, index, size)
        return x, jax.vmap(lambda k, one: self.draw(params, k, one))(jax.random.split(key_y, len(index)), x)


RegressionModel = Regression  # the name it had in 0.1
