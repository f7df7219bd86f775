"""Models, laws and their parts as pytrees: arrays and numbers are leaves, all else is structure.

A jitted function that is given a model so takes its arrays as arguments: another truth, noise or projection of the
same class and shape compiles nothing. Importing this module makes every ``Part`` one, those declared later too.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import numpy as np

from moe_sim.models.part import Part

_STRUCTURE = (str, bool, int, np.integer, np.bool_, type)


def _is_leaf(value: Any) -> bool:
    """Whether it is an argument of jitted functions. JAX puts objects of its own in the place of leaves."""
    return not isinstance(value, _STRUCTURE) and not callable(value)


def _flatten(part: Part):
    kept = {k: v for k, v in vars(part).items() if not isinstance(getattr(type(part), k, None), cached_property)}
    values, treedef = jax.tree.flatten(kept)
    leaves = [np.asarray(v) if isinstance(v, float) else v for v in values if _is_leaf(v)]
    return leaves, (treedef, tuple(None if _is_leaf(v) else (v,) for v in values))


def _unflatten(kind: type[Part], structure, leaves) -> Part:
    treedef, fixed = structure
    rest = iter(leaves)
    found = object.__new__(kind)
    found.__dict__.update(jax.tree.unflatten(treedef, [next(rest) if v is None else v[0] for v in fixed]))
    return found


def _register(kind: type[Part]) -> None:
    jax.tree_util.register_pytree_node(kind, _flatten, lambda structure, leaves: _unflatten(kind, structure, leaves))


Part.when_declared(_register)
