"""Chunks on a Dask cluster: the same results, a worker killed midway included; clear errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from test_run import same
from tiny import RUN, study

import moe_sim as ms
from moe_sim.simulation.cluster import cluster, compute
from moe_sim.simulation.store import platform_facts

pytest.importorskip("dask")


def die(_: str, n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def client():
    with cluster("local:2") as client:
        yield client


def test_results_are_the_same_though_a_worker_is_killed(tmp_path, client):
    asked = study(sample__replicates=210)
    killed = []

    def kill(progress):
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    found = ms.run(asked, tmp_path / "there", kill, client)
    assert killed and killed[0] not in client.run(os.getpid).values()
    # A study whose truth moves with n sends each worker the truth of its size.
    moving = study(claim=[{"loss": "voronoi", "exponent": 0.5}], sample__truth="least-favourable")
    same(ms.run(moving, client=client).frame, ms.run(moving).frame)
    here = ms.run(asked, tmp_path / "here")
    same(found.frame, here.frame)
    names = [sorted(p.name for p in (tmp_path / name / "chunks").iterdir()) for name in ("there", "here")]
    assert names[0] == names[1] and len(names[0]) == 9  # names hold the checksums


def test_a_chunk_that_kills_its_workers(client, monkeypatch):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(ms.InputError, match=r"the workers that computed n = 100 died.*give workers more memory"):
        list(compute(client, die, [("", 100)]))


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ms.InputError, match=r"Dask is not installed, pip install 'moe_sim\[dask\]'"),
        cluster("local:2"),
    ):
        pass


def test_no_scheduler_there(monkeypatch):
    monkeypatch.setattr("moe_sim.simulation.cluster._CONNECT", "1s")
    with pytest.raises(ms.InputError, match="no scheduler answers there"), cluster("tcp://127.0.0.1:9"):
        pass


@pytest.mark.parametrize("where", ["local:0", "local:two", "local:"])
def test_bad_number_of_workers(where):
    with pytest.raises(ms.InputError, match="--dask local:"), cluster(where):
        pass


def test_a_worker_with_other_packages_is_refused():
    versions = platform_facts()["versions"] | {"jax": "0.0.1"}
    with pytest.raises(ms.InputError, match=r"a worker has jax \d.* and this process 0.0.1: install the same"):
        RUN.on_worker(study().to_toml(), 100, np.arange(2), "{}", versions)


def test_local_workers_share_the_cores(tmp_path):
    """Of a script too, which each worker imports, moe_sim with it, before it is told how many cores it has."""
    script = tmp_path / "script.py"
    script.write_text("""
import moe_sim
from moe_sim.simulation.cluster import cluster

def devices():
    import jax
    return jax.local_device_count("cpu")

if __name__ == "__main__":
    with cluster("local:2") as client:
        print(*client.run(devices).values())
""")
    environment = os.environ | {"MOE_SIM_CORES": "8"}
    assert subprocess.check_output([sys.executable, script], env=environment, text=True).split() == ["4", "4"]
