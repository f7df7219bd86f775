"""Another study of the same class and shape compiles nothing: counted, not timed."""

from __future__ import annotations

from contextlib import contextmanager

import jax
import numpy as np
import pytest
from tiny import study

import moe_sim as ms

EVENT = "/jax/core/compile/backend_compile_duration"  # also where the program is found in the cache on disk


@contextmanager
def compilations():
    """The number of programs compiled within."""
    found: list[str] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event == EVENT:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """A process that has grown large forgets what it compiled (tests/test_memory.py): not while it is counted here."""
    monkeypatch.setattr("moe_sim.fitting.memory.MOST", np.inf)


def softmax(truth: float, seed: int) -> ms.Study:
    return ms.Study(
        name="softmax", model={"family": "softmax-gaussian"},
        truth={"gate_bias": [truth, 0.0], "gate_slope": [[1.0], [0.0]], "intercept": [truth, -1.0],
               "slope": [[2.0], [-truth]], "variance": [0.2, 0.1 + truth]},
        law={"name": "uniform", "low": -truth - 1, "high": 2.0}, fit={"atoms": 2, "starts": 2, "budget": 1},
        sample={"sizes": [300, 2000], "replicates": 2, "seed": seed},
    )  # fmt: skip


def other() -> ms.Study:
    """The tiny study with another truth, noise, projection, frozen expert, law, box and seed."""
    return study(
        truth__prefix=[[-0.7]], truth__bias=[0.1], model__noise=0.2, model__projection__key=[[0.9]],
        model__frozen__logit_matrix=[[[0.3]]], law__low=-1.0, fit__bound=5.0, sample__seed=3,
    )  # fmt: skip


def test_the_counter_counts():
    with compilations() as found:
        jax.jit(lambda x: x * 3.25)(np.ones(3))
    assert len(found) >= 1


@pytest.mark.parametrize(
    "first, second",
    [
        (lambda: study(fit__atoms=2), lambda: other().replace(atoms=2)),
        (lambda: softmax(0.5, 0), lambda: softmax(0.7, 1)),
    ],
    ids=["prefix", "softmax-gaussian"],
)
def test_a_second_study_compiles_nothing(first, second):
    ms.run(first())
    with compilations() as found:
        ms.run(second())
    assert found == []


def test_moving_truths_compile_once():
    """Not once a size: a truth is an argument."""
    moving = study(fit__atoms=2, sample__truth="least-favourable", claim=[{"loss": "voronoi", "exponent": 0.5}])
    ms.run(moving)
    with compilations() as found:
        ms.run(moving.replace(sizes=[3e2, 3e3, 3e4, 3e5]))
    assert found == []
