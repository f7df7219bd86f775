"""Makes ``import nist`` and ``import models`` work, and double precision the rule, before any test module loads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import moe_sim  # noqa: F401  (switches JAX to x64: the NIST models need it too)
