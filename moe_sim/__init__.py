"""moe_sim: the numerical laboratory for the estimation theory of mixtures of experts.

Importing it switches JAX to double precision, everywhere in the process: rates over twelve decades of n cannot
be measured in single precision. Unless JAX has started already, every CPU core becomes a JAX device.

What is public stands in ``__init__.pyi``; each name is loaded where it is first used, and JAX with what computes.
"""

import lazy_loader

from moe_sim import _engine as _engine

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
