"""``python -m moe_sim`` is ``moe-sim``."""

from moe_sim.cli.main import main

main()
