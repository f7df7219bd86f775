"""Models, one file each. A family is a module with ``TABLE`` (the keys of its study table), ``REQUIRED`` ones, and
``build(model table, truth table)``; ``DRAWS_X`` where it is a joint density and the study has no law of x (or a
function that says so of the model table)."""

from typing import Any

from moe_sim.models import combinators, gaussian_gated, moe, prefix, prefix_mixture, softmax_gaussian

FAMILIES: dict[str, Any] = {
    "prefix": prefix,
    "prefix-mixture": prefix_mixture,
    "softmax-gaussian": softmax_gaussian,
    "gaussian-gated": gaussian_gated,
    "moe": moe,
    "shared-routed": combinators.SHARED_ROUTED,
    "contaminated": combinators.CONTAMINATED,
    "two-level": combinators.TWO_LEVEL,
}
