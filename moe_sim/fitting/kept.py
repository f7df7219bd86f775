"""Traced programs on disk: what one process has traced and lowered the next one loads.

JAX keeps compiled code, under a digest of the lowered program, and to trace and lower one takes as long as all else
that a command does which fits 200 rows. So lowered programs (``jax.export``) are kept beside, under a digest of all
they depend on: this package's source, JAX, the function with what it closes over, structure and shapes of its
arguments. Where one of these has no lasting description (a model that was declared outside of this package, whose
source may change) nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jax
import jaxlib
import numpy as np
from jax import export
from jaxlib import lapack

from moe_sim._engine import STARTED

PACKAGE = Path(__file__).parents[1]
ON = True  # off in the suite, where most programs are used by one test
DAYS = 30  # after which programs of another state of the package, if nobody used them, are deleted
_LASTING = ("moe_sim", "jax", "numpy", "builtins")  # packages whose source a digest knows


class _Passing(Exception):
    """Something that another process cannot be sure to have in the same way."""


def program(function: Callable, made_of: Any, arguments: tuple, shardings: tuple) -> Callable:
    """``function`` for arguments of this kind: loaded where it was kept, else kept; as it is where nothing is kept.

    function: jitted, takes ``arguments``, any pytrees. made_of: what it depends on, functions with what they close
    over. shardings: of each argument.
    """
    place = _place(made_of, arguments)
    if place is None:
        return function
    leaves, structure = jax.tree.flatten(arguments)
    split = [s for s, part in zip(shardings, arguments, strict=True) for _ in jax.tree.leaves(part)]
    on_devices = partial(jax.jit, in_shardings=tuple(split))
    found = _loaded(place)
    if found is None:
        result: Any = None

        def flat(*leaves):
            nonlocal result
            found, result = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
            return found

        flat.__name__ = function.__name__  # which profiles and logs of JAX show
        try:
            found = export.export(on_devices(flat))(*leaves), result
        except Exception:  # what cannot be exported is run as it is, and says itself what is wrong with it, if anything
            return function
        with contextlib.suppress(OSError):  # a full disk: the next process traces again
            _keep(*found, place)
    exported, result = found
    run = on_devices(exported.call)
    return lambda *arguments: jax.tree.unflatten(result, run(*jax.tree.leaves(arguments)))


def _keep(exported: export.Exported, result: Any, place: Path) -> None:
    if _changed():
        return
    structure = jax.tree.unflatten(result, range(result.num_leaves))  # of named tuples, which pickle by name
    if not place.parent.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        _forget_others(place.parent)
    part = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        part.write_bytes(pickle.dumps((bytes(exported.serialize()), structure)))
        os.replace(part, place)  # whole, or not at all
    finally:
        part.unlink(missing_ok=True)


def _loaded(place: Path) -> tuple[export.Exported, Any] | None:
    """The program that was kept and the structure of its result; None where there is none or it cannot be read."""
    try:
        code, structure = pickle.loads(place.read_bytes())
        exported = export.deserialize(bytearray(code))
        lapack._lapack.initialize()  # JAX does it as it lowers linear algebra, which is just what is spared here
    except FileNotFoundError:
        return None
    except Exception:  # whatever is wrong with a file: the program is traced anew, and the file written again
        return None
    with contextlib.suppress(OSError):  # somebody else's folder
        os.utime(place.parent)  # it is in use: see ``_forget_others``
    return exported, jax.tree.structure(structure)


def _forget_others(folder: Path) -> None:
    """Delete programs of other states of the package that were not used for ``DAYS``."""
    for other in folder.parent.glob("*/"):
        with contextlib.suppress(OSError):  # somebody else's, or being deleted
            if other.stat().st_mtime < time.time() - 86400 * DAYS:
                for file in other.iterdir():
                    file.unlink(missing_ok=True)
                other.rmdir()


def _changed() -> bool:
    """Whether the package's source is younger than this process, so that what it has loaded is of an older state."""
    return max(file.stat().st_mtime for file in _source()) > STARTED


def _place(made_of: Any, arguments: tuple) -> Path | None:
    """The file of a program; None where it is not to be kept."""
    settings = jax.config.values
    cache_of_jax = settings["jax_compilation_cache_dir"]
    # Only CPUs were tried.
    keeps = ON and cache_of_jax and settings["jax_enable_compilation_cache"] and not settings["jax_disable_jit"]
    if not (keeps and jax.default_backend() == "cpu") or _changed():
        return None
    leaves, structure = jax.tree.flatten(arguments)
    try:
        told = [*_described(made_of), *_described(structure), *(repr(jax.typeof(leaf)) for leaf in leaves)]
    except _Passing:
        return None
    told += [f"{name} {value}" for name, value in sorted(settings.items()) if "cache" not in name]
    name = hashlib.sha256("\n".join(told).encode()).hexdigest()
    return Path(cache_of_jax) / "programs" / _surroundings() / name


@cache
def _surroundings() -> str:
    """A digest of this package's source, JAX and its devices."""
    versions = jax.__version__, jaxlib.__version__, np.__version__
    told = hashlib.sha256(repr((versions, jax.devices())).encode())
    for file in _source():
        told.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return told.hexdigest()


def _source() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _described(value: Any) -> Iterator[str]:
    """What tells it from others in any process. Raises ``_Passing``."""
    if value is None or isinstance(value, str | bool | int | float | np.generic):
        yield repr(value)
    elif isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}" + hashlib.sha256(array.tobytes()).hexdigest()
    elif isinstance(value, dict):
        yield f"dict {len(value)}"
        yield from _described([part for item in value.items() for part in item])
    elif isinstance(value, list | tuple):
        yield f"{type(value).__qualname__} {len(value)}"
        for part in value:
            yield from _described(part)
    elif isinstance(value, jax.tree_util.PyTreeDef):
        yield "tree"
        yield from _described([value.node_data(), value.children()])
    elif isinstance(value, type):
        yield _name(value)
    elif isinstance(value, FunctionType):
        yield _name(value)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        yield from _described([_of_code(value.__code__), value.__defaults__, value.__kwdefaults__, cells])
    elif isinstance(value, partial):
        yield from _described([value.func, value.args, value.keywords])
    elif callable(value) and hasattr(value, "__qualname__"):
        if getattr(value, "__self__", None) is not None:
            raise _Passing
        yield _name(value)
        yield from _described(getattr(value, "__wrapped__", None))
    elif is_dataclass(value):
        yield _name(type(value))
        yield from _described([getattr(value, field.name) for field in fields(value)])
    else:
        raise _Passing


def _name(value: Any) -> str:
    """Module and name of a function or class whose source is known. Raises ``_Passing``."""
    if (value.__module__ or "").partition(".")[0] not in _LASTING:
        raise _Passing
    return f"{value.__module__}.{value.__qualname__}"


def _of_code(code: CodeType) -> list:
    """Two functions without a name may stand in one line: what they do tells them apart."""
    constants = [_of_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_firstlineno, code.co_code.hex(), list(code.co_names), constants]
