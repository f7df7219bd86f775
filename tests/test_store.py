"""The run folder under bad luck: kills at every file operation, damaged chunks, two writers, full disks, schemas."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import contents, study, tables, write

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.simulation.store import RunFolder


class Killed(BaseException):
    """The process ends here: nothing after it happens, no cleaning up either."""


class Kill:
    """Counts the file operations of the store; at number ``at`` it and all later ones raise ``Killed``."""

    def __init__(self, monkeypatch, at: int):
        self.at, self.count = at, 0
        for owner, name in (
            (os, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (Path, "write_bytes"),
            (Path, "write_text"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real):
        def call(*arguments):
            self.count += 1
            if self.count >= self.at:
                if self.count == self.at and real.__name__.startswith("write"):
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])  # half of the bytes are there
                raise Killed
            return real(*arguments)

        return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    ms.run(study(), path)
    return path


def frame(first: int) -> pd.DataFrame:
    return pd.DataFrame({"n": 100, "replicate": np.arange(first, first + 3), "loss:voronoi": np.arange(3) / 7})


def opened(path: Path) -> RunFolder:
    made = study()
    folder = RunFolder(path)
    with folder.writing():
        folder.create(made.to_toml(), made.tables, made.digest, 0)
    return folder


def operations(tmp_path) -> int:
    """How many there are in a chunk write."""
    folder = opened(tmp_path / "count")
    with pytest.MonkeyPatch.context() as patch:
        kill = Kill(patch, 10**6)
        folder.write_chunk(100, 0, frame(0))
    return kill.count


def test_a_kill_at_every_file_operation_of_a_chunk_write(tmp_path):
    """The chunk is there whole, or not at all; what was there stays; the next writer leaves nothing half-written."""
    count = operations(tmp_path)
    assert count >= 4
    seen = set()
    for at in range(1, count + 1):
        folder = opened(tmp_path / str(at))
        folder.write_chunk(100, 0, frame(0))
        before = contents(tmp_path / str(at))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Kill(patch, at)
            folder.write_chunk(100, 3, frame(3))
        assert before.items() <= contents(tmp_path / str(at)).items()
        kept = folder.kept(100)
        assert kept in ({0, 1, 2}, {0, 1, 2, 3, 4, 5})
        seen.add(len(kept))
        with folder.writing():
            assert folder.kept(100) == kept
            if 3 not in kept:
                folder.write_chunk(100, 3, frame(3))
        assert not list((tmp_path / str(at)).rglob("*.tmp"))
        expected = pd.concat([frame(0), frame(3)], ignore_index=True)
        pd.testing.assert_frame_equal(folder.read()[1], expected, check_exact=True)
    assert seen == {3, 6}


def test_a_run_killed_anywhere_is_resumed_to_the_same_end(whole, tmp_path):
    """At every fifth file operation of a whole run; no finished chunk is computed again."""
    expected = ms.load_results(whole).frame
    at = 1
    while True:
        place = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            kill = Kill(patch, at)
            with suppress(Killed):
                ms.run(study(), place)
        if kill.count < at:
            break
        chunks = {p.name: p.stat().st_mtime_ns for p in place.glob("chunks/n*.parquet")}
        found = ms.run(study(), place).frame
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert all((place / "chunks" / name).stat().st_mtime_ns == t for name, t in chunks.items())
        assert not list(place.rglob("*.tmp"))
        at += 5
    assert at > 20


@pytest.mark.parametrize("spoil", ["truncated", "flipped", "empty"])
def test_damaged_chunks_are_named_and_computed_anew(whole, tmp_path, spoil):
    expected = ms.load_results(whole).frame
    rng = np.random.default_rng(0)
    for chunk in sorted((whole / "chunks").iterdir()):
        place = Path(shutil.copytree(whole, tmp_path / f"{spoil}-{chunk.name}"))
        damaged = place / "chunks" / chunk.name
        content = bytearray(damaged.read_bytes())
        if spoil == "flipped":
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        damaged.write_bytes({"truncated": content[: rng.integers(1, len(content))], "empty": b""}.get(spoil, content))
        with pytest.raises(InputError, match=chunk.name):
            ms.load_results(place)
        with pytest.warns(UserWarning, match=f"{chunk.name} is damaged: set aside"):
            found = ms.run(study(), place).frame
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert damaged.with_suffix(".damaged").exists()


def leaves(table, *where):
    """Paths of all entries that are no tables."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        if isinstance(value, dict) or (key == "claim" and not where) or where == ("claim",):
            yield from leaves(value, *where, key)
        else:
            yield (*where, key)


def test_every_field_of_the_study_may_not_change(whole):
    """But for sizes and replicates, which may grow."""
    folder, before = RunFolder(whole), contents(whole)
    assert folder.check(tables())
    changed = [path for path in leaves(tables()) if path[-1] not in ("sizes", "replicates")]
    assert len(changed) > 25
    for path in changed:
        found = tables()
        *above, last = path
        table = found
        for key in above:
            table = table[key]
        table[last] = "another"
        with pytest.raises(InputError, match=re.escape(".".join(path[:1] if path[0] == "claim" else path)) + " was"):
            folder.check(found)
        del table[last]
        with pytest.raises(InputError, match="pass another --out"):
            folder.check(found)
    for name in ("sizes", "replicates"):
        assert folder.check(tables(**{f"sample__{name}": [1e2]}))
    assert contents(whole) == before


def test_two_writers(whole, tmp_path, moe_sim, monkeypatch):
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    with RunFolder(place).writing():
        before = contents(place)
        status, _, err = moe_sim("run", path, "--out", "run", "--replicates", "5")
        assert status == 2 and "run is being written by another process: wait for it" in " ".join(err.split())
        assert contents(place) == before
        assert moe_sim("verdict", "run")[0] == 0  # readers do not mind
    assert moe_sim("run", path, "--out", "run", "--replicates", "5")[0] == 0


def test_a_lock_does_not_outlive_its_process(tmp_path):
    """Killed with SIGKILL while it holds the lock."""
    opened(tmp_path / "run")
    code = (
        "import os, signal, sys; from moe_sim.simulation.store import RunFolder\n"
        "with RunFolder(sys.argv[1]).writing(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")]).returncode == -9
    with RunFolder(tmp_path / "run").writing():
        pass


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("moe_sim.simulation.store.fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"cannot be locked .No locks available.: pass an --out on another disk"):
        opened(tmp_path / "run")


def test_a_full_disk(whole, tmp_path, monkeypatch):
    """The third chunk does not fit: what was written stays, the message says so, and the same command goes on."""
    place, real, written = tmp_path / "run", Path.write_bytes, []

    def full(path, content):
        if len(written) == 2:
            real(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"No space left on device.: make room, or pass an --out"):
        ms.run(study(), place)
    assert len(ms.load_results(place).frame) == 8 and not list(place.rglob("*.tmp"))
    monkeypatch.setattr(Path, "write_bytes", real)
    pd.testing.assert_frame_equal(ms.run(study(), place).frame, ms.load_results(whole).frame, check_exact=True)


def test_a_folder_that_may_not_be_locked(whole, tmp_path, monkeypatch):
    def deny(path, flags, *_):
        raise PermissionError(13, "Permission denied")

    folder = RunFolder(whole)
    monkeypatch.setattr("moe_sim.simulation.store.os.open", deny)
    with pytest.raises(InputError, match=r"cannot be written .Permission denied."), folder.writing():
        pass


def test_another_schema_is_refused(whole, tmp_path):
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    told = json.loads((place / "provenance.json").read_text())
    (place / "provenance.json").write_text(json.dumps(told | {"schema": 99}))
    for command in (ms.load_results, lambda p: ms.run(study(), p)):
        with pytest.raises(InputError, match="written in schema 99, this moe_sim knows schema 1"):
            command(place)


def test_without_readable_provenance_results_are_read(whole, tmp_path):
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    (place / "provenance.json").write_text("{")
    with pytest.warns(UserWarning, match="chunks are read all the same"):
        found = ms.load_results(place).frame
    pd.testing.assert_frame_equal(found, ms.load_results(whole).frame, check_exact=True)


def test_chunks_are_plain_parquet(whole):
    """Read without us: the columns and rows that we read."""
    read = pd.concat([pd.read_parquet(p) for p in sorted((whole / "chunks").glob("*.parquet"))], ignore_index=True)
    pd.testing.assert_frame_equal(read, ms.load_results(whole).frame, check_exact=True)
