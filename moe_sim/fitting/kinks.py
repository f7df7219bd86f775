"""Minima on a kink: where a slope jumps from below 0 to above it, no quadratic model knows that it has arrived.

Gates of distances and rectified experts have kinks, one at each point of x. A solver that ends at one is promised more
by the slopes of either side than there is to gain. So such coordinates are looked for, by halving a short interval
about the end until the slope changes its sign and still jumps; they are held there, and what the others are promised is
the certificate: zero lies between the slopes of both sides, and along the kink second order holds (Clarke 1983).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.compiled import Plan, Setting, compiled, passes
from moe_sim.solvers.solution import TOLERANCE

REACH = 1e-2  # conditional standard errors about the end, within which a kink is looked for
JUMP = 1e-6  # of a slope, in roots of its Gram entry, that is one: smooth slopes change by a fiftieth of it
_HALVINGS = 20
_ROUNDS = 8  # a coordinate that is held may lead others to their kinks, or off them


class Held(NamedTuple):
    """theta (P,): a minimum with some coordinates on a kink. objective, promised, least: see ``still_promised``."""

    theta: np.ndarray
    objective: float
    promised: float
    least: float


def held(plan: Plan, setting: Setting, samples, replicate: int, theta: np.ndarray, limit: int) -> Held | None:
    """The minimum on a kink near theta (P,), the end of a solver; None where no slope jumps there."""
    run, edges = compiled(plan), _edges(plan.atoms, plan.how)
    lane, ends = np.array([replicate]), (np.full(1, TOLERANCE), np.full(1, limit))
    on, box = np.zeros(len(theta), bool), setting
    for _ in range(_ROUNDS):
        place, jumps = (part[0] for part in edges(setting, (lane, theta[None]), samples))
        if not jumps.any():
            return None
        if np.array_equal(on, jumps):
            _, *found = run.certify(box, (lane, theta[None]), samples)
            return Held(theta, *(float(value[0]) for value in found))
        # One that is held and whose slopes have the same sign on both sides is let go.
        on, start = jumps, np.where(jumps, place, theta)
        lower, upper = (np.where(on, start, np.asarray(end)) for end in (setting.lower, setting.upper))
        box = setting._replace(lower=lower, upper=upper)
        theta = np.asarray(run.solve(box, (lane, start[None], *ends), samples).theta[0])
    return None


@lru_cache(maxsize=16)
def _edges(atoms: tuple[tuple[str, int], ...], how: str) -> LaneFunction:
    """Where each slope changes its sign, and whether it jumps there from below 0 to above: (P,) both."""

    def edges(setting: Setting, sample, lane):
        _, theta = lane
        first = passes(setting.model, atoms).first
        unit = 1 / jnp.sqrt(jnp.diag(first(theta, sample)[2]))

        def along(j):
            at = lambda t: theta.at[j].set(jnp.clip(theta[j] + t, setting.lower[j], setting.upper[j]))  # noqa: E731
            slope = lambda t: first(at(t), sample)[1][j]  # noqa: E731
            reach = REACH * unit[j]

            def halve(_, ends):
                low, high = ends
                middle = 0.5 * (low + high)
                above = slope(middle) > 0
                return jnp.where(above, low, middle), jnp.where(above, middle, high)

            low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (-reach, reach))
            below, above = slope(low), slope(high)
            return at(0.5 * (low + high))[j], (below < 0) & (above > 0) & ((above - below) * unit[j] > JUMP)

        return jax.lax.map(along, jnp.arange(len(theta)))

    return LaneFunction(edges, how)
