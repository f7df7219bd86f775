"""The run folder: chunks of replicates as Parquet, the study as TOML, provenance as JSON. Bytes and columns only.

    RUN/study.toml  provenance.json  evidence.json  unseen.json  elsewhere.json
    RUN/chunks/n0000000000001000-r0000000-0000100-CHECKSUM.parquet
    RUN/moduli.json  constants.json, where theory has been asked
    RUN/model/FILE.py  model.json, where the model lies outside the package: its source, and what a verdict asks of it
    RUN/controls/NAME/, a run folder each, where controls have been run

A chunk's name has its size, its first replicate and the one after its last, and the start of its
SHA-256: the names are the manifest. Every file is written whole under another name, brought to the disk, then renamed,
and the rename brought to the disk: a reader never sees half of one, and neither a kill nor a power cut loses what was
there. One process at a time writes chunks (``writing``).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from moe_sim.errors import InputError
from moe_sim.models.sources import difference

SCHEMA = 1
_LOCK = ".lock"
_TRUTHS = "least-favourable"  # where truths that move stand in evidence.json, by size, beside the losses
_HALVES = (".study.toml", ".provenance.json", ".evidence.json", ".unseen.json", ".elsewhere.json", ".model.json")
_NO_SOURCE: Mapping[str, str] = {}
_CHUNK = re.compile(r"n(\d+)-r(\d+)-(\d+)-[0-9a-f]{16}\.parquet")


class RunFolder:
    """A folder of results of one study. Raises ``InputError`` for what it cannot open or write."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def check(self, tables: dict[str, Any], source: Mapping[str, str] = _NO_SOURCE) -> bool:
        """Whether the folder is there already, for this study; refuse that of another one, or of something else.

        source: texts of the files that its model is made of, by name; those of the folder may differ in comments.
        """
        if (self.path / "study.toml").exists():
            self._check_schema(self.read_json("provenance.json"))
            field = _difference(_lasting(self._study()[1]), _lasting(tables))
            if field:
                raise InputError(
                    f"{self.path} holds another study, {field}: pass another --out, or the study that the folder was "
                    "made with (only sizes and replicates may grow)"
                )
            # The source is kept before the provenance: without that the folder was never begun.
            kept = self.source() if (self.path / "provenance.json").exists() else {}
            place = difference(kept, source) if kept else None
            if place:
                raise InputError(
                    f"{self.path} was made with another source, {place}: pass another --out, or the source that it has "
                    f"in {self.path / 'model'}"
                )
            return True
        if self.path.exists() and (not self.path.is_dir() or any(map(_foreign, self.path.iterdir()))):
            raise InputError(f"{self.path} exists and is no run folder: pass a new folder, nothing in it was touched")
        return False

    def create(
        self, study_toml: str, tables: dict[str, Any], digest: str, seed: int, renew: bool = True,
        source: Mapping[str, str] = _NO_SOURCE,
    ) -> None:  # fmt: skip
        """Open the folder for this study, new or where it was left; see ``check``.

        renew: sizes and replicates become those of this study, where the folder has others.
        """
        known = self.check(tables, source)
        begun = (self.path / "provenance.json").exists()
        if renew or not known:
            self._write("study.toml", lambda p: p.write_text(study_toml))
        for name in source.keys() - (self.source().keys() if begun else set()):
            self._write(f"model/{name}", partial(_write_text, text=source[name]))
        if not begun:
            provenance = {"schema": SCHEMA, "digest": digest, "seed": seed, **platform_facts()}
            self.write_json("provenance.json", provenance)

    def source(self) -> dict[str, str]:
        """Texts of the files that the model is made of, by name; nothing of them is run."""
        try:
            return {p.name: p.read_text(encoding="utf-8") for p in sorted((self.path / "model").glob("*.py"))}
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path / 'model'} cannot be read ({error}): restore it") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to write chunks, of one process at a time; half-written files of processes that died are removed.

        Chunks whose bytes are not those that their name was made of are set aside, with a warning, so that they are
        missing: what was in them is computed anew.
        """
        lock = self.path / _LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(_unwritable(lock, error)) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise InputError(
                        f"{lock} cannot be locked ({error.strerror}): pass an --out on another disk"
                    ) from None
                raise InputError(
                    f"{self.path} is being written by another process: wait for it, or pass another --out"
                ) from None
            for name in (*_HALVES, "model/.", "chunks/.n", "rows/."):
                for left in self.path.glob(f"{name}*.tmp"):
                    left.unlink()
            for path in sorted((self.path / "chunks").glob("*.parquet")):
                if not _sound(path, path.read_bytes()):
                    aside = path.with_suffix(".damaged")
                    os.replace(path, aside)
                    warnings.warn(f"{path} is damaged: set aside as {aside.name}, it is computed anew", stacklevel=3)
            yield
        finally:
            os.close(handle)

    def write_chunk(self, n: int, first: int, frame: pd.DataFrame) -> None:
        """Keep replicates first, first + 1, ... of size n."""
        content = frame.to_parquet(None, index=False, engine="pyarrow")
        name = f"n{n:016d}-r{first:07d}-{first + len(frame):07d}-{_checksum(content)}.parquet"
        self._write(f"chunks/{name}", lambda p: p.write_bytes(content))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Keep what else belongs to the study: moduli, constants, facts of its model."""
        self._write(name, lambda p: p.write_text(json.dumps(content, indent=1)))

    def kept(self, n: int) -> set[int]:
        """Indices of the replicates of size n that are kept."""
        chunks = (_CHUNK.fullmatch(f.name) for f in (self.path / "chunks").glob("*.parquet"))
        found = [tuple(int(g) for g in m.groups()) for m in chunks if m]
        return {index for size, first, last in found if size == n for index in range(first, last)}

    def write_evidence(self, evidence: dict[str, Any], truths: dict[str, Any]) -> None:
        """Keep the evidence by loss and, where the truth moves, the truths by size, in one file."""
        self.write_json("evidence.json", evidence | ({_TRUTHS: truths} if truths else {}))

    def evidence(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Evidence by loss, and truths by size (none where the truth does not move)."""
        evidence = self.read_json("evidence.json")
        return evidence, evidence.pop(_TRUTHS, {})

    def read(self) -> tuple[str, pd.DataFrame]:
        """Study TOML, one row a replicate."""
        text, _ = self._study()
        try:
            provenance = self.read_json("provenance.json")
        except InputError as error:
            warnings.warn(f"{error}; chunks are read all the same, each has its own checksum", stacklevel=3)
            provenance = {}
        self._check_schema(provenance)
        files = sorted((self.path / "chunks").glob("*.parquet"))
        if not files:
            raise InputError(f"{self.path} has no results yet: run the study first")
        frame = pd.concat([self._frame(f) for f in files], ignore_index=True)
        frame = frame.sort_values(["n", "replicate"], ignore_index=True)
        return text, frame

    def _check_schema(self, provenance: dict[str, Any]) -> None:
        schema = provenance.get("schema", SCHEMA)
        if schema != SCHEMA:
            raise InputError(
                f"{self.path} was written in schema {schema}, this moe_sim knows schema {SCHEMA}: use the version that "
                "its provenance.json names, or pass another --out"
            )

    def _study(self) -> tuple[str, dict[str, Any]]:
        """The study file, as text and as tables."""
        path = self.path / "study.toml"
        try:
            text = path.read_text()
            return text, tomllib.loads(text)
        except FileNotFoundError:
            raise InputError(f"{self.path} is no run folder (it has no study.toml): pass the --out of a run") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}): restore it, or pass another --out") from None

    def _frame(self, path: Path) -> pd.DataFrame:
        """A chunk whose bytes are those its name was made of."""
        content = path.read_bytes()
        if not _sound(path, content):
            raise InputError(
                f"{path} is damaged (its checksum is another): remove it and run again, it is computed anew"
            )
        return pd.read_parquet(io.BytesIO(content), engine="pyarrow")

    def read_json(self, name: str) -> dict[str, Any]:
        """What ``write_json`` kept under that name; empty where there is none."""
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
            _to_disk(temporary)
            os.replace(temporary, target)
            _to_disk(target.parent)
        except OSError as error:
            raise InputError(_unwritable(target, error)) from None
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)


def _foreign(path: Path) -> bool:
    """Whether it is neither the lock nor the half of a first file, which a process that died has left."""
    return path.name != _LOCK and not re.fullmatch(r"\.study\.toml\.\d+\.tmp", path.name)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _to_disk(path: Path) -> None:
    """What was written to a file, or renamed in a folder, survives a power cut from here on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> str:
    remedy = "make room, or pass" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "pass"
    return f"{path} cannot be written ({error.strerror}): {remedy} an --out that you may write to"


def _sound(path: Path, content: bytes) -> bool:
    """Whether these are the bytes that a chunk's name was made of."""
    return _checksum(content) in path.name


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def platform_facts() -> dict[str, Any]:
    """Versions and machine, for provenance."""
    names = ("moe_sim", "jax", "jaxlib", "numpy", "scipy", "pandas", "optax")
    return {
        "versions": {name: _version(name) for name in names},
        "python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine(),
    }  # fmt: skip


@cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _lasting(tables: dict[str, Any]) -> dict[str, Any]:
    """What may not change within a run folder: all but the sizes and the number of replicates."""
    sample = {k: v for k, v in tables.get("sample", {}).items() if k not in ("sizes", "replicates")}
    return tables | {"sample": sample}


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first field in which two studies differ, with both values, or None."""
    if old == new:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                return _difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    return f"{where} was {old!r} and is now {new!r}"
