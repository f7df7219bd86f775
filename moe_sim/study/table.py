"""What a table of a study file is made of: keys, each with the kind of its value, and how a table is read.

A table is a dataclass whose fields are declared by ``entry``; see ``schema``. A kind has a ``check``, which gives the
value or raises ``InputError``, and says what it takes in ``words`` and as a JSON schema (``json``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar

from moe_sim.errors import InputError, array, flag, number, one_of, whole


class Kind(Protocol):
    """What a value may be."""

    def check(self, name: str, value: Any) -> Any: ...

    @property
    def words(self) -> str: ...

    @property
    def json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high]."""

    low: float = -math.inf
    high: float = math.inf

    def check(self, name: str, value: Any) -> float:
        return number(name, value, self.low, self.high)

    @property
    def words(self) -> str:
        return f"number{_range(self.low, self.high)}"

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "number", **_limits(self.low, self.high)}


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high]; 1e6 is one."""

    low: int = 0
    high: float = math.inf

    def check(self, name: str, value: Any) -> int:
        return whole(name, value, self.low, self.high)

    @property
    def words(self) -> str:
        return f"whole number{_range(self.low, self.high)}"

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "integer", **_limits(self.low, self.high)}


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        return one_of(name, value, self.names)

    @property
    def words(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)

    @property
    def json(self) -> dict[str, Any]:
        return {"enum": list(self.names)}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    words = "`true`, `false`"

    def check(self, name: str, value: Any) -> bool:
        return flag(name, value)

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text:
    """A name that whoever looks it up checks."""

    words = "text"

    def check(self, name: str, value: Any) -> Any:
        return value

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Array:
    """A rectangular table of numbers; ``shape`` has the name of each length, or the length itself.

    also: a shape that is taken too, by what looks at more than the key (several outputs).
    """

    shape: tuple[str | int, ...]
    also: tuple[str | int, ...] = ()

    def check(self, name: str, value: Any):
        return array(name, value, tuple(n if isinstance(n, int) else None for n in self.shape))

    @property
    def words(self) -> str:
        return "numbers, " + " or ".join(" x ".join(map(str, shape)) for shape in (self.shape, self.also) if shape)

    @property
    def json(self) -> dict[str, Any]:
        return {"anyOf": [_nested(self.shape), _nested(self.also)]} if self.also else _nested(self.shape)


@dataclass(frozen=True)
class OneOrTable:
    """One value, or a table of such values, whose names and values are checked by what knows the names."""

    one: Number | Whole

    def check(self, name: str, value: Any) -> Any:
        return value if isinstance(value, dict) else self.one.check(name, value)

    @property
    def words(self) -> str:
        return f"{self.one.words}, or a table of them"

    @property
    def json(self) -> dict[str, Any]:
        return {"anyOf": [self.one.json, {"type": "object", "additionalProperties": self.one.json}]}


@dataclass(frozen=True)
class Sizes:
    """Different sample sizes up to ``largest``, at least one; read in increasing order."""

    largest: int

    def check(self, name: str, value: Any) -> list[int]:
        if not isinstance(value, list) or not value:
            raise InputError(f"{name} = {value!r}: pass a list of sample sizes, as in [1e3, 1e4, 1e5]")
        sizes = [whole(name, n, 1, self.largest) for n in value]
        double = [n for n in sizes if sizes.count(n) > 1]
        if double:
            raise InputError(f"{name} has {double[0]} twice: name each size once")
        return sorted(sizes)

    @property
    def words(self) -> str:
        return f"whole numbers{_range(1, self.largest)}"

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "array", "items": Whole(1, self.largest).json, "minItems": 1, "uniqueItems": True}


@dataclass(frozen=True)
class Table:
    """A table below this one, with the keys of ``of`` or, where that is None, any; whoever reads it checks them."""

    of: type | None = None
    words = "table"

    def check(self, name: str, value: Any) -> Any:
        return value

    @property
    def json(self) -> dict[str, Any]:
        return {"type": "object"}


class Entry(NamedTuple):
    """usual: the default in words, where it is not one value. of: the families, laws, ... that have the key; () all."""

    kind: Kind
    doc: str
    usual: str
    of: tuple[str, ...]


def entry(kind: Kind, doc: str, default: Any = MISSING, usual: str = "", of: tuple[str, ...] = ()) -> Any:
    """A field of a table; without ``default`` a study must give it."""
    return field(default=default, metadata={"entry": Entry(kind, doc, usual, of)})


def entries(table: type, of: str | None = None) -> dict[str, Entry]:
    """The keys of a table; with ``of`` those that this family, law, ... has."""
    found = {f.name: f.metadata["entry"] for f in fields(table)}
    return {name: k for name, k in found.items() if of is None or not k.of or of in k.of}


def required(table: type) -> list[str]:
    """The keys that a study must give."""
    return [f.name for f in fields(table) if f.default is MISSING]


def default(table: type, name: str) -> Any:
    """What a key is where a study does not give it; None where it must."""
    found = next(f.default for f in fields(table) if f.name == name)
    return None if found is MISSING else found


T = TypeVar("T")


def read(table: type[T], where: str, given: dict[str, Any], of: str | None = None) -> T:
    """The table called ``where`` with the values that a study gives, or defaults. Raises ``InputError``."""
    known = entries(table, of)
    check_names(where, given, known)
    for name in required(table):
        need(where, given, name)
    return table(**{name: known[name].kind.check(f"{where}.{name}", value) for name, value in given.items()})


def is_table(where: str, value: Any) -> dict[str, Any]:
    """``value`` when it is a table, or an ``InputError``."""
    if not isinstance(value, dict):
        header = "[[claim]]" if where.startswith("claim[") else f"[{where}]"
        raise InputError(f"{where} = {value!r} is no table: write {header} and its keys below it")
    return value


def need(where: str, table: Mapping[str, Any], path: str) -> Any:
    """The value at a path, as ``projection.key``. Raises ``InputError`` where there is none."""
    value: Any = table
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}.{path} is missing: add it to the study")
        value = value[part]
    return value


def check_names(where: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ``InputError`` for a name that is not known, with the nearest that is; ``where``: "" for the study."""
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InputError(f"{f'{where}.' if where else ''}{name} is not a known key: {hint}")


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return "" if math.isinf(low) else f" from {low:g}"
    return f" up to {high:g}" if math.isinf(low) else f" from {low:g} to {high:g}"


def _nested(shape: tuple[str | int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "number"}
    for length in reversed(shape):
        found = {"type": "array", "items": found}
        if isinstance(length, int):
            found |= {"minItems": length, "maxItems": length}
    return found


def _limits(low: float, high: float) -> dict[str, float]:
    found = {"minimum": low, "maximum": high}
    return {name: value for name, value in found.items() if not math.isinf(value)}
