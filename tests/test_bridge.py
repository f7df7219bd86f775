"""The bridge where something is missing: no torch, no such model, no such device."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import moe_sim.bridge


def test_without_torch(moe_sim, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "peft") else find(name))
    status, out, err = moe_sim("bridge", "identity")
    assert status == 2 and out == ""
    if find("transformers") is not None:
        assert err == "error: bridge: torch, peft are not installed: pip install 'moe_sim[bridge]'\n"


def test_everything_else_works_without_the_extra(tmp_path):
    """In a process where none of its packages can be imported."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {moe_sim.bridge.NEEDED}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = ["moe-sim", "bench", "--help"]
from moe_sim.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Nanoseconds a sample" in done.stdout, done.stderr


def test_one_package_is_missing(monkeypatch):
    monkeypatch.setattr(moe_sim.bridge, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(moe_sim.InputError, match="no_such_package is not installed"):
        moe_sim.bridge.require()


def test_no_such_model(moe_sim, tmp_path):
    pytest.importorskip("torch")
    status, out, err = moe_sim("bridge", "identity", "--model", tmp_path / "none", "--out", tmp_path)
    assert status == 2 and out == ""
    assert (
        "none cannot be loaded (" in err and "pass all-minilm-l6-v2 (pip install 'moe_sim[bridge]'), the folder" in err
    )


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta"])
def test_no_such_device(moe_sim, device, tmp_path):
    pytest.importorskip("torch")
    status, out, err = moe_sim("bridge", "identity", "--device", device, "--out", tmp_path)
    assert status == 2 and out == ""
    assert f"--device {device}: torch cannot use it (" in err and "pass cpu, or cuda where it is" in err
