"""moe_sim: the numerical laboratory for the estimation theory of mixtures of experts.

Importing it switches JAX to double precision, everywhere in the process: rates over twelve decades of n cannot
be measured in single precision. Unless JAX has started already, every CPU core becomes a JAX device.
"""

from moe_sim import _engine as _engine
