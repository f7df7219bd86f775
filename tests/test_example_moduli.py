"""Models in files outside the package have the modulus of exact fits."""

from __future__ import annotations

import pytest
from test_examples import NAMES, study

import moe_sim as ms

pytestmark = pytest.mark.computes


@pytest.fixture
def few(few_starts, monkeypatch):
    """Few values of eps too: exact fits need no more."""
    monkeypatch.setattr("moe_sim.theory.modulus.LEVELS", 5)


def coarse(name: str) -> ms.Study:
    """The study on few points of x: what exact fits have in common is the same there."""
    found = study(name)
    few = {} if found.tables["law"]["name"] == "grid" else {"points": 8}
    return found.with_tables(found.tables | {"law": found.tables["law"] | few})


@pytest.mark.parametrize("name", NAMES)
def test_the_modulus_of_an_exact_fit_is_linear(name, few):
    """n^-1/2 in the (canonical) loss."""
    (found,) = ms.modulus(coarse(name), ["voronoi"])
    assert found.kappa == pytest.approx(1.0, abs=0.03)


def test_the_raw_loss_of_a_temperature_is_degenerate(few):
    """Along the gauge of scale the function stays: no rate in the parameters as they are, n^-1/2 in canonical ones."""
    (found,) = ms.modulus(study("temperature"), ["voronoi:raw"])
    assert found.degenerate
