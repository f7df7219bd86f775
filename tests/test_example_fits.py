"""Models in files outside the package: their exact fits are certified, and have the modulus of exact fits."""

from __future__ import annotations

import numpy as np
import pytest
from test_examples import NAMES, study

import moe_sim as ms

pytestmark = pytest.mark.computes


@pytest.fixture
def few(few_starts, monkeypatch):
    """Few values of eps too: exact fits need no more."""
    monkeypatch.setattr("moe_sim.theory.modulus.LEVELS", 5)


def exact(study: ms.Study) -> ms.Study:
    """The study with exact samples: two programs less to compile than with streamed ones."""
    tables = study.tables
    law = tables["law"] | ({} if tables["law"]["name"] == "grid" else {"finite": True})
    return study.with_tables(tables | {"law": law, "sample": tables["sample"] | {"mode": "exact"}})


@pytest.mark.parametrize("name", NAMES)
def test_exact_fits_are_certified(name, tmp_path):
    """At least 0.9 of them, and the function is found."""
    frame = ms.run(exact(study(name)).replace(sizes=[1e3, 3e3], replicates=5)).frame
    assert np.mean(frame["certificate"] == "certified") >= 0.9
    assert frame["loss:function"].median() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_modulus_of_an_exact_fit_is_linear(name, few):
    """n^-1/2 in the (canonical) loss."""
    (found,) = ms.modulus(study(name), ["voronoi"])
    assert found.kappa == pytest.approx(1.0, abs=0.03)


def test_the_raw_loss_of_a_temperature_is_degenerate(few):
    """Along the gauge of scale the function stays: no rate in the parameters as they are, n^-1/2 in canonical ones."""
    (found,) = ms.modulus(study("temperature"), ["voronoi:raw"])
    assert found.degenerate
