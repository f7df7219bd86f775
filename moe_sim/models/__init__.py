"""Models, one file each. A family is a module with ``TABLE`` (the keys of its study table) and ``build``."""

from moe_sim.models import prefix

FAMILIES = {"prefix": prefix}
