"""Solvers: each takes passes, a sample, a start and a box, and returns the same ``Solution``."""
