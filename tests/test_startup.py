"""What only reads loads nothing that computes: JAX takes seconds. And what is public is there all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tomli_w
from tiny import tables

import moe_sim as ms
from moe_sim import _engine

HEAVY = ("jax", "pandas", "scipy.stats", "torch", "matplotlib")
SOFTMAX = {
    "model": {"family": "softmax-gaussian"},
    "truth": {"gate_bias": [0.0, 0.1], "gate_slope": [[1.0], [0.0]], "intercept": [0.0, 1.0], "variance": [1.0, 1.0]},
    "fit__estimator": "mle",
    "fit__atoms": 2,
    "sample__mode": "iid",
}


def python(code: str, folder: Path, **environment: str) -> str:
    """Standard output of a process of its own, to which this one leaves none of moe_sim's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "MOE_SIM_"))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout


def started(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit status of a command, and what of ``HEAVY`` it has loaded."""
    code = f"""
import contextlib, io, json, sys
sys.argv = {["moe-sim", *arguments]!r}
from moe_sim.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit as stop:
        status = stop.code
print(json.dumps([status, [name for name in {HEAVY} if name in sys.modules]]))
"""
    status, loaded = json.loads(python(code, folder))
    return status, loaded


def test_help(tmp_path):
    assert started(tmp_path, "--help") == (0, [])


def test_claims_of_which_none_has_run(tmp_path):
    assert started(tmp_path, "claims") == (0, [])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'name = "tiny"\nmodel = {\n', id="no TOML"),
        pytest.param(bytes(range(256)), id="no text"),
        pytest.param(tables(model__noize=0.3), id="unknown key"),
        pytest.param(tables(model__noise="loud"), id="wrong type"),
        pytest.param(tables(model__family="suffix"), id="unknown family"),
        pytest.param(tables(**SOFTMAX, truth__slope=[1.0, 2.0]), id="truth of wrong shape"),
        pytest.param(tables(truth__prefix=[1.0]), id="truth of wrong shape, prefix"),
        pytest.param(tables(law__point=3), id="unknown key, law"),
        pytest.param(tables(claim__0__loss="wasserstein"), id="unknown loss"),
    ],
)
def test_bad_study(tmp_path, text):
    (tmp_path / "study.toml").write_bytes(text if isinstance(text, bytes) else tomli_w.dumps(text).encode())
    assert started(tmp_path, "run", "study.toml") == (2, [])


def test_study_that_is_not_there(tmp_path):
    assert started(tmp_path, "run", "nowhere.toml") == (2, [])
    assert started(tmp_path, "run", "prefix-shared-linear-ovr") == (2, [])


def test_what_is_public_is_there():
    assert {"Study", "run", "modulus", "FitOptions", "InputError"} <= set(ms.__all__) and ms.__all__ == dir(ms)
    public = {name: getattr(ms, name) for name in ms.__all__}
    modules = {name: v.__name__ if isinstance(v, ModuleType) else v.__module__ for name, v in public.items()}
    assert all(module.startswith("moe_sim.") for module in modules.values())
    with pytest.raises(AttributeError):
        ms.nothing  # noqa: B018


SETTINGS = """
import json, jax
c = jax.config
print(json.dumps([c.jax_enable_x64, jax.local_device_count("cpu"), c.jax_compilation_cache_dir,
                  c.jax_persistent_cache_min_compile_time_secs]))
"""


@pytest.mark.parametrize("before, after", [("import moe_sim", ""), ("", "import moe_sim")])
def test_jax_is_set_up_whoever_loads_it_first(tmp_path, before, after):
    code = f"{before}\nimport jax\n{after}\n{SETTINGS}"
    found = json.loads(python(code, tmp_path, MOE_SIM_CORES="3", XDG_CACHE_HOME="/tmp/cache"))
    assert found == [True, 3, "/tmp/cache/moe_sim/jax", 0.0]


def test_a_cache_of_the_user_is_kept(tmp_path):
    found = json.loads(python(f"import moe_sim\n{SETTINGS}", tmp_path, JAX_COMPILATION_CACHE_DIR="/tmp/mine"))
    assert found[2] == "/tmp/mine"


def test_a_child_makes_its_own_settings(tmp_path):
    """It finds those of its parent in the environment, which are not its user's."""
    code = f"""
import os, subprocess, sys
import moe_sim
assert "jax" not in sys.modules
os.environ |= {{"MOE_SIM_CORES": "4", "XDG_CACHE_HOME": "/tmp/other"}}
sys.stdout.write(subprocess.check_output([sys.executable, "-c", {f"import moe_sim{SETTINGS}"!r}], text=True))
"""
    found = json.loads(python(code, tmp_path, MOE_SIM_CORES="3", XDG_CACHE_HOME="/tmp/cache"))
    assert found == [True, 4, "/tmp/other/moe_sim/jax", 0.0]


def test_a_fork_after_computing_is_refused(monkeypatch):
    """JAX's threads do not survive it: a pool of such processes once waited for ever."""
    problem = ms.load_study("prefix-shared-linear-exact").problem
    monkeypatch.setattr(_engine, "_used_in", os.getpid() + 1)
    with pytest.raises(ms.InputError, match=r"JAX was in use before this process was forked.*'spawn'"):
        ms.Fitter(problem.model, problem.truth, problem.options)
    monkeypatch.setattr(_engine, "_used_in", None)
    ms.Fitter(problem.model, problem.truth, problem.options)
    assert _engine._used_in == os.getpid()
