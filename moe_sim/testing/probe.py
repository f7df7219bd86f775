"""What a model is looked at with: points x of its law, y drawn there, parameters within bounds, and its values."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_sim.data.covariates import Law, Tokens
from moe_sim.models import pytrees as pytrees  # models are arguments of jitted functions
from moe_sim.models.base import Model, ModelError, Parameters, Regression
from moe_sim.models.coordinates import element
from moe_sim.testing.asking import asked, called

POINTS = 16  # of the law
DRAWS = 2000  # of (x, y)
NEAR = 1.5  # random free coordinates lie so far about the middle of their bounds, at most
BATCH = 8  # parameters that are evaluated at once
SAME_VALUE = 1e-9  # relative difference of values that are the same


def value_of(model: Model, params: Parameters, x, y) -> Any:
    """What the model says at one x (and one y): mean (outputs,), or a log-density."""
    return model.mean(params, x) if isinstance(model, Regression) else model.log_density(params, x, y)  # type: ignore


@jax.jit
def _values(model: Model, params: Parameters, x, y):
    """Of parameters (S, ...) at rows of x and y: (S, n, ...)."""
    rows = jax.vmap(value_of, (None, None, 0, 0))
    return jax.vmap(rows, (None, 0, None, None))(model, params, x, y)


@jax.jit
def _rows(model: Model, params: Parameters, law: Law | None, key, index):
    return model.draw_rows(params, law, key, index, len(index))


class Probe:
    """A model, its truth, as many ``atoms`` as are fitted, and where it is looked at.

    points (P, d): of the law, equally often; None for a joint density. method: the one that says the function.
    """

    def __init__(self, model: Model, truth: Parameters, law: Law | None, atoms: dict[str, int], seed: int):
        self.model, self.truth, self.law, self.atoms = model, truth, law, atoms
        self.declared = model.parameters()
        self.rng = np.random.default_rng(seed)
        self.method = "mean" if isinstance(model, Regression) else "log_density"
        self.name = called(model, self.method)
        self.points = None if law is None else self._points(law, POINTS)

    def _points(self, law: Law, count: int) -> np.ndarray:
        x, weight = law.nodes()
        seen = np.flatnonzero(np.asarray(weight) > 0)
        return np.asarray(x)[self.rng.choice(seen, min(count, len(seen)), replace=False)]

    def thin(self, count: int) -> Law | None:
        """A finite law on at most ``count`` points of the law."""
        return None if self.law is None else Tokens(self._points(self.law, count))

    @cached_property
    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """x (n, d) and y (n, outputs) of the truth, x on the ``points``. Raises ``ModelError``."""
        model, law = self.model, None if self.points is None else Tokens(self.points)
        key = jax.random.key(int(self.rng.integers(2**31)))
        with asked(model, "draw_rows"):
            x, y = (np.asarray(v) for v in _rows(model, self.truth, law, key, jnp.arange(DRAWS)))
        wanted = (DRAWS, model.dimension), (DRAWS, model.outputs)
        if (x.shape, y.shape) != wanted:
            raise ModelError(
                f"{called(model, 'draw_rows')} gives x of shape {x.shape} and y of shape {y.shape} for {DRAWS} rows: "
                f"give {wanted[0]} and {wanted[1]}"
            )
        bad = ~np.isfinite(y).all(axis=1)
        if np.any(bad):
            raise ModelError(
                f"{called(model, 'draw_rows')} gives y = {y[bad][0]} at x = {x[bad][0]} and the truth: keep it, and "
                f"{self.method}, finite there"
            )
        return x, y

    @cached_property
    def at(self) -> np.ndarray:
        """The number of the point that each draw has its x at, (n,)."""
        assert self.points is not None
        return np.argmin(np.abs(self.draws[0][:, None] - self.points[None]).sum(axis=2), axis=1)

    @cached_property
    def sites(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of x and y at which functions are compared: one draw at each point."""
        first = np.arange(POINTS) if self.points is None else np.unique(self.at, return_index=True)[1]
        return self.draws[0][first], self.draws[1][first]

    @cached_property
    def box(self) -> tuple[Parameters, Parameters]:
        """Lower and upper bound of the free coordinates of so many ``atoms``."""
        return self.model.bounds(self.atoms, *self.model.default_bounds)

    def random_free(self, count: int) -> list[Parameters]:
        """Free coordinates within the bounds, about the middle of them."""
        lower, upper = self.box
        middle = {name: np.clip(0.0, low, upper[name]) for name, low in lower.items()}
        low = {name: np.maximum(v, middle[name] - NEAR) for name, v in lower.items()}
        high = {name: np.minimum(v, middle[name] + NEAR) for name, v in upper.items()}
        return [{name: np.asarray(self.rng.uniform(low[name], high[name])) for name in lower} for _ in range(count)]

    @cached_property
    def somewhere(self) -> list[Parameters]:
        """Parameters (2) of so many ``atoms`` within the bounds."""
        found = []
        for free in self.random_free(2):
            with asked(self.model, "constrain"):
                found.append({name: np.asarray(v) for name, v in self.model.constrain(free).items()})
        return found

    def values(
        self, every: Iterable[Parameters], where: str = "at parameters within their bounds", size: int = BATCH
    ) -> list[np.ndarray]:  # fmt: skip
        """The function of each of these parameters, at the sites. Raises ``ModelError`` where one is NaN or +inf."""
        every = list(every)
        found: list[np.ndarray] = []
        for first in range(0, len(every), size):
            batch = every[first : first + size]
            padded = batch + [batch[-1]] * (size - len(batch))
            stacked = {name: np.stack([np.asarray(one[name], float) for one in padded]) for name in batch[0]}
            with asked(self.model, self.method):
                found.extend(np.asarray(_values(self.model, stacked, *self.sites))[: len(batch)])
        for value in found:
            if np.any(np.isnan(value) | (value == np.inf)):
                bad = value[np.isnan(value) | (value == np.inf)][0]
                raise ModelError(f"{self.name} is {bad} {where}: keep it finite there, or narrow the bounds")
        return found

    @cached_property
    def at_truth(self) -> np.ndarray:
        """The function of the truth at the sites."""
        (found,) = self.values([self.truth], "at the truth", size=1)
        if not np.all(np.isfinite(found)):
            raise ModelError(f"{self.name} is -inf at the truth where {called(self.model, 'draw_rows')} drew: mend one")
        return found


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two functions, relative where they are large; 0 where they are the same to rounding."""
    with np.errstate(invalid="ignore"):
        apart = np.where(one == other, 0.0, np.abs(one - other))
    apart = np.where(np.isfinite(apart), apart, np.inf) / np.maximum(1.0, np.abs(np.nan_to_num(one)))
    largest = float(np.max(apart, initial=0.0))
    return largest if largest > SAME_VALUE else 0.0


def spots(names: dict[str, np.ndarray]) -> list[str]:
    """The entries that are true, by name: ``gate[0,1]``."""
    return [element(name, tuple(map(int, place))) for name, v in names.items() for place in np.argwhere(v)]
