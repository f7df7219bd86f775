"""Loads models, parts and functions from outside the package: files beside a study, and entry points.

A file is loaded under a name made of its text and of its siblings', not as a module on ``sys.path``: the same text
gives the same classes, so that compiled code is shared, and siblings of two studies do not mix.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import hashlib
import importlib
import inspect
import json
import linecache
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from moe_sim.errors import InputError
from moe_sim.models import FAMILIES
from moe_sim.models.base import Density, Model, Regression
from moe_sim.models.prefix import Frozen
from moe_sim.models.sources import (
    Reference,
    Sources,
    entry_names,
    entry_point,
    gather,
    imported,
    reference_of,
    references,
)  # fmt: skip

_MODULES: dict[str, ModuleType] = {}  # by name: that of the file and a digest of all that it is made of
_FILES: set[str] = set()  # names that code of loaded files has in tracebacks
_LOCK = threading.RLock()


@dataclass(frozen=True)
class Outside:
    """What of a study's model lies outside the package.

    given: the model itself, where it is an object in Python. facts: of a model that is not loaded (``remembered``).
    refused: why a run folder cannot keep the model; None where it can. checked: whether it has been tried at the truth.
    """

    sources: Sources = field(default_factory=Sources)
    given: Model | None = None
    facts: dict[str, Any] | None = None
    refused: str | None = None
    checked: bool = False


def named_outside(table: Any) -> list[Reference]:
    """What a [model] table names outside the package."""
    return references(table, FAMILIES)


def outside(table: Any, folder: str | Path | None) -> Outside:
    """What a [model] table names outside the package; its files lie beside ``folder``. Raises ``InputError``."""
    found = named_outside(table)
    return Outside(gather(found, Path(folder or ".").absolute())) if found else Outside()


def resolved(table: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """The [model] table with classes and objects in place of the names of what is outside. Raises ``InputError``."""
    found = dict(table)
    for reference in named_outside(table):
        *above, last = reference.keys
        inner = found
        for key in above:
            inner[key] = dict(inner[key])
            inner = inner[key]
        inner[last] = _load(reference, sources)
    return found


def load_part(spec: str, kind: type, folder: str | Path | None = None, key: str = "part") -> type:
    """The class of ``file.py:Class``, which must be a subclass of ``kind``; the file lies beside ``folder``."""
    reference = reference_of((key,), spec)
    if reference.file is None:
        raise InputError(f"{reference.where}: pass 'file.py:Class'")
    found = _load(reference, gather([reference], Path(folder or ".").absolute()))
    check_class(found, reference.where, (kind,))
    return found


def build(kind: Any, where: str, table: dict[str, Any]) -> Model:
    """The model of a class from outside and the other keys of its [model] table. Raises ``InputError``."""
    check_class(kind, where, (Regression, Density))
    given = {key: value for key, value in table.items() if key != "family"}
    with blamed(where):
        wanted = inspect.signature(kind).parameters
    loose = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    names = [name for name, p in wanted.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in given:
        if name not in names and not loose:
            raise InputError(f"model.{name} is no argument of {kind.__name__}: {near(name, names)}")
    for name in names:
        if name not in given and wanted[name].default is inspect.Parameter.empty:
            raise InputError(f"model.{name} is missing: {kind.__name__} needs it, add it to [model]")
    with blamed(f"{where}: {kind.__name__}"):
        model = kind(**given)
    return model


def check_class(found: Any, where: str, kinds: tuple[type, ...]) -> None:
    """Raises ``InputError`` where that is no class of one of these kinds, or lacks what such a class must write."""
    told = " or ".join(f"moe_sim.{kind.__name__}" for kind in kinds)
    if not isinstance(found, type):
        raise InputError(f"{where} is {type(found).__name__} and no class: pass a subclass of {told}")
    if not issubclass(found, kinds):
        raise InputError(f"{where} is no {told}: make it a subclass, class {found.__name__}({told.split(' or ')[0]})")
    lacking = [name for name in dir(found) if getattr(getattr(found, name, None), "__isabstractmethod__", False)]
    if lacking:
        raise InputError(f"{where} does not say its {' and '.join(lacking)}: write def {lacking[0]}(self, ...) in it")


def near(name: str, known: list[str]) -> str:
    """A remedy for a name that is none of the known ones."""
    if not known:
        return "there are none, leave it out"
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"


def _load(reference: Reference, sources: Sources) -> Any:
    if reference.file is not None:
        found = _of_module(_file_module(Path(reference.file).name, sources, reference.where), reference)
    elif reference.module is not None:
        found = _functions(reference, sources)
    else:
        return _entry(reference)
    if reference.keys[0] == "frozen" and not isinstance(found, Frozen):
        raise InputError(f"{reference.where} is no moe_sim.Frozen: make it one")
    return found


def _entry(reference: Reference) -> Any:
    entry = entry_point(reference.spec)
    if entry is None:
        raise InputError(_unknown_family(reference.spec))
    with blamed(f"{reference.where}, the entry point {entry.value},"), redirect_stdout(sys.stderr):
        return entry.load()


def _unknown_family(family: str) -> str:
    module, colon, name = family.partition(":")
    if colon or family.endswith(".py"):
        file = f"{module.removesuffix('.py').replace('.', '/')}.py"
        return f"model.family = {family!r} names no class of a file: pass '{file}:{name or 'Class'}'"
    names = [*FAMILIES, *entry_names()]
    close = difflib.get_close_matches(family, names, 1, 0.6)
    return (
        f"model.family = {family!r} is not known: {f'did you mean {close[0]}? ' if close else ''}pass one of "
        f"{', '.join(sorted(names))}, or a class in a file beside the study, as in 'file.py:Class'"
    )


def _functions(reference: Reference, sources: Sources) -> Any:
    """Of frozen experts: a module beside the study, or one that can be imported."""
    module = reference.module or ""
    beside = f"{module}.py" in sources.texts and not _is_installed(module, sources)
    if beside:
        return _of_module(_file_module(f"{module}.py", sources, reference.where), reference)
    try:
        with redirect_stdout(sys.stderr):
            return getattr(importlib.import_module(module), reference.name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{reference.where} cannot be imported ({error}): pass 'module:name' of a moe_sim.Frozen, of a file "
            "module.py beside the study or of an installed module"
        ) from None


def _is_installed(module: str, sources: Sources) -> bool:
    """Whether the text is that of a module that ``import`` finds."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin == str(Path(sources.places.get(f"{module}.py", "")) / f"{module}.py")


def _of_module(module: ModuleType, reference: Reference) -> Any:
    if hasattr(module, reference.name):
        return getattr(module, reference.name)
    own = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
    raise InputError(f"{reference.where}: the file has no {reference.name}, {near(reference.name, own)}")


def _file_module(file: str, sources: Sources, where: str) -> ModuleType:
    """The module of a file, loaded once for each text."""
    if file not in sources.texts:
        raise InputError(f"{where}: {file} is not among the files that were kept: restore it")
    closure = _closure(file, sources)
    name = _name(file, closure, sources)
    with _LOCK:
        if name in _MODULES:
            return _MODULES[name]
        place = sources.places.get(file) or f"<{name}>"
        path = str(Path(place) / file)
        module = ModuleType(name)
        module.__file__ = path
        vars(module)["__builtins__"] = _builtins(closure, sources, where)
        # Dataclasses and pickles look for the module of a class among those that are loaded.
        _MODULES[name] = sys.modules[name] = module
        _FILES.add(path)
        text = sources.texts[file]
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        try:
            with blamed(file, SystemExit), redirect_stdout(sys.stderr):
                exec(compile(text, path, "exec"), vars(module))
        except BaseException:
            del _MODULES[name], sys.modules[name]
            raise
    return module


def _closure(file: str, sources: Sources) -> list[str]:
    """A file and the siblings that it imports."""
    found, todo = [], [file]
    while todo:
        one = todo.pop()
        if one in found:
            continue
        found.append(one)
        names = (f"{name}.py" for name in imported(ast.parse(sources.texts[one])))
        todo += [name for name in names if name in sources.texts]
    return sorted(found)


def _name(file: str, closure: list[str], sources: Sources) -> str:
    # A file that asks for its place may read what lies beside it.
    placed = any("__file__" in sources.texts[name] for name in closure)
    told = {name: (sources.texts[name], sources.places.get(name) if placed else None) for name in closure}
    return f"{Path(file).stem}_{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]}"


def _builtins(closure: list[str], sources: Sources, where: str) -> dict[str, Any]:
    """Built-in names of a file: it imports its siblings, and prints to standard error, as the output may be JSON."""

    def sibling(name: str) -> ModuleType | None:
        return _file_module(f"{name}.py", sources, where) if f"{name}.py" in closure else None

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 1 and not name:
            found = {one: sibling(one) for one in fromlist}
            if all(found.values()):
                return SimpleNamespace(**found)
        elif level <= 1 and (module := sibling(name)) is not None:
            return module
        return builtins.__import__(name, globals, locals, fromlist, level)

    def print_(*values, file=None, **keywords):
        print(*values, file=sys.stderr if file is None else file, **keywords)

    return vars(builtins) | {"__import__": import_, "print": print_}


def blame(error: BaseException) -> str | None:
    """``sigmoid.py line 12 raises ...`` where an error comes from a loaded file, or else None."""
    place = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in _FILES:
            place = Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno
        trace = trace.tb_next
    return None if place is None else f"{place[0]} line {place[1]} raises {_told(error)}: mend that line"


@contextmanager
def blamed(what: str | None = None, *more: type[BaseException]) -> Iterator[None]:
    """Errors of loaded files become an ``InputError`` that names file and line; with ``what`` all errors do."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, (Exception, *more)):
            raise
        told = blame(error) or (what and f"{what} raises {_told(error)}: mend that")
        if told is None:
            raise
        raise InputError(told) from error


def _told(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} ({first})" if first else type(error).__name__
