"""Makes ``import nist`` and ``import models`` work, and double precision the rule, before any test module loads."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import moe_sim as _  # noqa: F401  (switches JAX to x64: the NIST models need it too)


@pytest.fixture
def moe_sim(monkeypatch, capsys):
    """A command line: ``moe_sim("run", "study.toml")`` gives exit status, standard output and standard error."""
    from tiny import call

    return lambda *arguments: call(monkeypatch, capsys, *arguments)
