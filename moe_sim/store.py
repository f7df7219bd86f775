"""The run folder: chunks of replicates as Parquet, the study as TOML, provenance as JSON. Bytes and columns only.

    RUN/study.toml  provenance.json  evidence.json  chunks/n00000000001000-r000000-000100.parquet

Every file is written whole under another name, then renamed: a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from moe_sim.errors import InputError

SCHEMA = 1
_CHUNK = re.compile(r"n(\d+)-r(\d+)-(\d+)\.parquet")


class RunFolder:
    """A folder of results of one study. Raises ``InputError`` for what it cannot open or write."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def create(self, study_toml: str, identity: dict[str, Any], digest: str, seed: int) -> None:
        """Open the folder for this study, new or where it was left; refuse the folder of another study."""
        if (self.path / "study.toml").exists():
            old = self._json("provenance.json")
            if old.get("digest") != digest:
                was = tomllib.loads((self.path / "study.toml").read_text())
                raise InputError(
                    f"{self.path} holds another study, {_difference(was, identity)}: pass another --out, or the study "
                    "that the folder was made with (only sizes and replicates may grow)"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path} exists and is no run folder: pass a new folder, nothing in it was touched")
        else:
            provenance = {"schema": SCHEMA, "digest": digest, "seed": seed, **platform_facts()}
            self._write("provenance.json", lambda p: p.write_text(json.dumps(provenance, indent=1)))
        self._write("study.toml", lambda p: p.write_text(study_toml))

    def write_chunk(self, n: int, first: int, frame: pd.DataFrame) -> None:
        """Keep replicates first, first + 1, ... of size n."""
        name = f"chunks/n{n:016d}-r{first:07d}-{first + len(frame):07d}.parquet"
        self._write(name, lambda p: frame.to_parquet(p, index=False))

    def write_evidence(self, evidence: dict[str, Any]) -> None:
        self._write("evidence.json", lambda p: p.write_text(json.dumps(evidence, indent=1)))

    def replicates(self, n: int) -> int:
        """How many replicates of size n are kept (0 ... k - 1)."""
        return max((last for size, _, last in self._chunks() if size == n), default=0)

    def read(self) -> tuple[str, pd.DataFrame, dict[str, Any]]:
        """Study TOML, one row a replicate, evidence."""
        if not (self.path / "study.toml").exists():
            raise InputError(f"{self.path} is no run folder (it has no study.toml): pass the --out of a run")
        files = sorted((self.path / "chunks").glob("*.parquet"))
        if not files:
            raise InputError(f"{self.path} has no results yet: run the study first")
        frame = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
        frame = frame.sort_values(["n", "replicate"], ignore_index=True)
        return (self.path / "study.toml").read_text(), frame, self._json("evidence.json")

    def _chunks(self):
        found = [_CHUNK.fullmatch(f.name) for f in (self.path / "chunks").glob("*.parquet")]
        return [tuple(int(g) for g in m.groups()) for m in found if m]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise InputError(f"{self.path / name} cannot be read as JSON: restore it, or pass another --out") from None

    def _write(self, name: str, write: Callable[[Path], Any]) -> None:
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, target)
        except OSError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror}): pass an --out that you may write to"
            ) from None
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)


def platform_facts() -> dict[str, Any]:
    """Versions and machine, for provenance."""
    names = ("moe_sim", "jax", "jaxlib", "numpy", "scipy", "pandas", "optax")
    return {
        "versions": {name: _version(name) for name in names},
        "python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine(),
    }  # fmt: skip


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first field in which two studies differ, with both values; sizes and replicates do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            path = f"{where}.{key}" if where else key
            if path in ("sample.sizes", "sample.replicates") or (key in old and key in new and old[key] == new[key]):
                continue
            return _difference(old.get(key), new.get(key), path)
    return f"{where} was {old!r} and is now {new!r}"
