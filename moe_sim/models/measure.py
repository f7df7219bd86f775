"""Mixing measures: what a mixture of experts is, up to the order of its atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moe_sim._engine import jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class MixingMeasure(NamedTuple):
    """``G = sum_i exp(log_weight_i) delta_(blocks_i)``, a pytree.

    log_weight: shape (L,), the logarithm of each atom's mass (a gate bias; the masses need not add up to 1).
    blocks: named parameter blocks, each of shape (L, its own dimension), e.g. ``{"key": ..., "value": ...}``.

    Two measures are the same function when one is the other with its atoms permuted or, where the model
    has no frozen expert, with its gates translated (``translate``).
    """

    log_weight: Float[Array, " L"]
    blocks: dict[str, Float[Array, "L _"]]

    @property
    def weight(self) -> Float[Array, " L"]:
        """Masses ``exp(log_weight)``, shape (L,)."""
        return jnp.exp(self.log_weight)

    @property
    def location(self) -> Float[Array, "L D"]:
        """All blocks side by side, shape (L, sum of dimensions): where Voronoi cells are cut."""
        return jnp.concatenate([self.blocks[name] for name in self.blocks], axis=1)

    def translate(self, bias, block: str | None = None, shift=None) -> MixingMeasure:
        """The measure with every log-weight moved by ``bias`` and, if named, one block by ``shift``.

        This is the gauge of a softmax gate: it leaves the gating probabilities as they are
        (arXiv 2305.03288, section 2).
        """
        blocks = dict(self.blocks)
        if block is not None:
            blocks[block] = blocks[block] + shift
        return MixingMeasure(self.log_weight + bias, blocks)
