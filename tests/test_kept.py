"""Traced programs on disk: the next process gets what this one made, and never what another function made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_sim.fitting import kept
from moe_sim.fitting.batching import LaneFunction
from moe_sim.fitting.memory import forget
from moe_sim.models.part import Part

TRACED: list[float] = []
LANES = np.arange(5.0), np.arange(5.0) ** 2


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Programs are kept, and here."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(kept, "ON", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def named(function, package: str = "moe_sim.of_a_test"):
    """A function of the package, as it seems."""
    function.__module__ = package
    return function


def function(factor: float = 2.0, package: str = "moe_sim.of_a_test") -> LaneFunction:
    def one(shared, lane):
        TRACED.append(factor)
        return {"sum": factor * jnp.linalg.inv(jnp.diag(shared + lane[0] + 1.0)), "square": lane[1]}

    return LaneFunction(named(one, package))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def keeps_nothing(folder: Path) -> bool:
    """Whether a program of the package, as it seems, is run and leaves no file."""
    found = function()(np.ones(3), LANES)
    np.testing.assert_array_equal(found["square"], LANES[1])
    return files(folder) == []


def test_loaded_programs_give_what_traced_ones_give(folder):
    shared = np.ones(3)
    first = function()(shared, LANES)
    made = files(folder)
    assert len(made) == 1
    forget()
    traced = len(TRACED)
    again = function()(shared, LANES)
    assert len(TRACED) == traced > 0
    jax.tree.map(np.testing.assert_array_equal, again, first)
    np.testing.assert_allclose(first["sum"][2], np.diag([2 / 4.0] * 3))
    assert files(folder) == made
    plain = function(package="elsewhere")(shared, LANES)
    jax.tree.map(np.testing.assert_array_equal, plain, first)


def test_a_program_is_of_one_function_and_one_kind_of_arguments(folder):
    a, b = (function(factor)(np.ones(3), LANES)["sum"] for factor in (2.0, 3.0))
    np.testing.assert_allclose(b, 1.5 * a)
    function()(np.ones(4), LANES)
    function()(np.ones(3), (LANES[0], LANES[1].astype(np.float32)))
    assert len(files(folder)) == 4


def test_what_is_declared_elsewhere_is_not_kept(folder):
    function(package="somebodys_model")(np.ones(3), LANES)
    assert files(folder) == []

    class Mine(Part):
        def __init__(self, value):
            self.value = value

    found = LaneFunction(named(lambda mine, lane: mine.value * lane[0]))(Mine(2.0), LANES)
    np.testing.assert_array_equal(found, 2 * LANES[0])
    assert files(folder) == []


def test_broken_files_are_written_again(folder):
    first = function()(np.ones(3), LANES)
    (file,) = files(folder)
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no pickle"):
        file.write_bytes(content)
        jax.tree.map(np.testing.assert_array_equal, function()(np.ones(3), LANES), first)
        assert len(file.read_bytes()) > 1000


def test_a_full_disk_loses_nothing(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(kept.os, "replace", full)
    assert keeps_nothing(folder) and folder.is_dir()  # nor is half of one left


def test_a_package_that_changed_under_a_process_keeps_nothing(folder, monkeypatch):
    """What is loaded is not what the files say, whose digest the program would be found by."""
    monkeypatch.setattr(kept, "STARTED", time.time() - 1e9)
    assert keeps_nothing(folder)
    monkeypatch.undo()
    assert not kept._changed()


def test_what_cannot_be_exported_is_run(folder, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("a custom call without guarantees")

    monkeypatch.setattr(kept.export, "export", refuse)
    assert keeps_nothing(folder)


def test_a_folder_that_stays_is_no_obstacle(folder, monkeypatch):
    (folder / "other" / "deeper").mkdir(parents=True)
    then = time.time() - 86400 * (kept.DAYS + 1)
    os.utime(folder / "other", (then, then))
    function()(np.ones(3), LANES)
    assert len(files(folder)) == 1 and (folder / "other" / "deeper").is_dir()


def test_programs_of_other_states_are_deleted_when_nobody_used_them(folder):
    old, young = folder / "old", folder / "young"
    for other in (old, young):
        other.mkdir(parents=True)
        (other / "program").write_text("")
    then = time.time() - 86400 * (kept.DAYS + 1)
    os.utime(old, (then, then))
    function()(np.ones(3), LANES)
    assert not old.exists() and young.exists()


def test_nothing_is_kept_where_jax_keeps_nothing(folder):
    jax.config.update("jax_compilation_cache_dir", None)
    assert kept._place(1, ()) is None


@dataclass(frozen=True)
class _Two:
    a: float
    b: object


named(_Two)


def test_descriptions_tell_things_apart():
    def closing(over):
        return named(lambda: over)

    told = [
        1, 1.0, True, "1", None, (1, 2), [1, 2], (1, (2,)), ((1,), 2), {"a": 1}, {"a": 2}, {"b": 1}, np.ones(2),
        np.ones((2, 1)), np.zeros(2), np.ones(2, int), closing(1), closing(2), named(lambda: 1), named(lambda: 2),
        named(lambda x=1: x), named(lambda x=2: x), partial(closing(1), 1), partial(closing(1), 2), _Two(1.0, 2),
        _Two(2.0, 1), jnp.tanh, jnp.exp, float, int, jax.tree.structure((1, 2)), jax.tree.structure([1, 2]),
        jax.tree.structure((1, (2, 3))), jax.tree.structure({"a": 1}), jax.tree.structure({"b": 1}),
        named(lambda: [lambda: 1]), named(lambda: [lambda: 2]),
    ]  # fmt: skip
    found = ["\n".join(kept._described(value)) for value in told]
    assert len(set(found)) == len(told)
    assert found == ["\n".join(kept._described(value)) for value in told]


@pytest.mark.parametrize("value", [object(), lambda: 1, [1, object()], {"a": test_broken_files_are_written_again}])
def test_what_may_change_has_no_description(value):
    with pytest.raises(kept._Passing):
        list(kept._described(value))


def test_a_command_says_the_same_with_and_without(tmp_path):
    """In processes of their own, where JAX has not lowered anything that made LAPACK known."""
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(tmp_path / "d.csv", rows, delimiter=",", header="x,y", comments="")
    code = "from moe_sim.cli.main import main; main()"
    ours = ("JAX_COMPILATION_CACHE_DIR", "MOE_SIM_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | {"XDG_CACHE_HOME": str(tmp_path)}

    def run() -> str:
        command = [sys.executable, "-c", code, "fit", str(tmp_path / "d.csv"), "--atoms", "1", "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    first = run()
    made = files(tmp_path / "moe_sim" / "jax" / "programs")
    assert len(made) >= 3
    assert run() == first
    assert files(tmp_path / "moe_sim" / "jax" / "programs") == made
