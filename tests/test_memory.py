"""Compiled programs are forgotten where a process grows large, and what runs afterwards is the same."""

from __future__ import annotations

import pandas as pd
import tiny
from test_compiles import compilations

import moe_sim as ms
from moe_sim.fitting import memory
from moe_sim.fitting.compiled import _solving


def test_a_large_process_forgets_and_computes_the_same(monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 0)
    first = ms.run(tiny.study())
    with compilations() as found:
        ms.run(tiny.study())
    assert found == [] and _solving.cache_info().currsize > 0
    monkeypatch.setattr(memory, "_after", 0)
    monkeypatch.setattr(memory, "resident", lambda: 4_000_000_000)
    with compilations() as found:
        again = ms.run(tiny.study())
    assert len(found) > 3
    pd.testing.assert_frame_equal(again.frame, first.frame)
    with compilations() as found:  # as large as after that, so there is nothing to be had
        ms.run(tiny.study())
    assert found == []


def test_the_resident_size_is_a_size():
    assert memory.resident() > 50_000_000
