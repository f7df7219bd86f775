"""The declaration of one parameter of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_sim.models.domains import REAL, Domain, Shape

Bound = str | float | tuple[float, float]


@dataclass(frozen=True, eq=False)
class Parameter:
    """One named array, a row an atom: shape (atoms, *shape), or (shape) where it is ``shared``.

    domain: ``REAL, POSITIVE, SIMPLEX, SPD, GATE`` (``domains``).
    bound: of its entries: a key of a study's ``[fit]`` (``bound``, ``bias_bound``), a number, or (low, high).
    exponents: of its block in the Voronoi loss, in cells of 1, 2, ... atoms (the last serves all larger cells); None:
        the loss has no such block.
    shared: one array for all atoms, with a term of its own in the loss.
    group: of atoms that it belongs to, in a model with several (shared experts, routed experts).
    known: its true value, where a study need not give it.
    jumps: whether functions jump along it, as those of a gate that selects do: fits then search on both sides of edges.

    >>> Parameter((2,), exponents=(1, 2)).shape
    (2,)
    """

    shape: Shape = ()
    domain: Domain = REAL
    bound: Bound = "bound"
    exponents: tuple[float, ...] | None = (1.0, 2.0)
    shared: bool = False
    group: str | None = None
    known: Any = None
    jumps: bool = False
