"""Mixing measures: what a mixture of experts is, up to the order of its atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Bool, Float, Int


class MixingMeasure(NamedTuple):
    """``G = sum_i exp(log_weight_i) delta_(blocks_i)``, a pytree of arrays of NumPy or JAX.

    log_weight: shape (L,), the logarithm of each atom's mass (a gate bias; the masses need not add up to 1).
    blocks: named parameter blocks, each of shape (L, its own dimension), e.g. ``{"key": ..., "value": ...}``.
    shared: parameters that all atoms share (a temperature), each (its own dimension,).
    group: in a model with several kinds of atoms the number of each atom's kind (L,), None where there is one. members:
        by block, which atoms have such a parameter (L,); it is 0 for the others. movable (L,): atoms of the kind whose
        gates may be translated.

    Two measures are the same function when one is the other with its atoms permuted or, where the model
    has no frozen expert, with its gates translated (``translate``).
    """

    log_weight: Float[Array, " L"]
    blocks: dict[str, Float[Array, "L _"]]
    shared: dict[str, Float[Array, " _"]] = {}  # noqa: RUF012 (never changed)
    group: Int[Array, " L"] | np.ndarray | None = None
    members: dict[str, Bool[Array, " L"]] = {}  # noqa: RUF012 (never changed)
    movable: Bool[Array, " L"] | np.ndarray | None = None

    @property
    def weight(self) -> Float[Array, " L"]:
        """Masses ``exp(log_weight)``, shape (L,)."""
        return self.log_weight.__array_namespace__().exp(self.log_weight)

    @property
    def location(self) -> Float[Array, "L D"]:
        """All blocks side by side, shape (L, sum of dimensions): where Voronoi cells are cut."""
        rows = list(self.blocks.values())
        return rows[0].__array_namespace__().concatenate(rows, axis=1)

    def translate(self, bias, shifts: dict | None = None) -> MixingMeasure:
        """The measure with every log-weight moved by ``bias`` and the named blocks by their ``shifts``.

        This is the gauge of a softmax gate: it leaves the gating probabilities as they are
        (arXiv 2305.03288, section 2).
        """
        moves = 1.0 if self.movable is None else self.movable[:, None]
        moved = {name: self.blocks[name] + moves * shift for name, shift in (shifts or {}).items()}
        log_weight = self.log_weight + bias * (1.0 if self.movable is None else self.movable)
        return self._replace(log_weight=log_weight, blocks=self.blocks | moved)
