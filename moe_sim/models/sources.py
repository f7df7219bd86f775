"""Source of models that lie outside the package: which files, what counts of them, and where two versions part.

Nothing here runs them: files are read, parsed and cut into tokens.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from moe_sim.errors import InputError

GROUP = "moe_sim.models"  # of entry points
_IN_FILE = re.compile(r"(.+\.py):(\w+)")
_PARTS = ("gate", "expert", "response")  # keys of [model], and what keys of combinators end with
_IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Sources:
    """texts: of files, by name. places: the folder of each, for messages and ``__file__``; "" where there is none."""

    texts: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the tokens: comments and blank lines do not count. None where there is no file."""
        if not self.texts:
            return None
        told = {name: [text for text, _ in tokens(source)] for name, source in self.texts.items()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reference:
    """What a [model] table names outside the package. keys: where it stands. file: or else ``module`` or ``entry``."""

    keys: tuple[str, ...]
    spec: str
    name: str
    file: str | None = None
    module: str | None = None

    @property
    def where(self) -> str:
        """``model.family = 'sigmoid.py:SigmoidGate'``, for messages."""
        return f"{'.'.join(('model', *self.keys))} = {self.spec!r}"


def references(model: Any, families: Mapping[str, Any]) -> list[Reference]:
    """All that a [model] table names outside the package: files, entry points, modules of frozen experts."""
    if not isinstance(model, dict):
        return []
    found = []
    family = model.get("family")
    if isinstance(family, str) and family not in families:
        found.append(reference_of(("family",), family))
    found += _parts(model, ())
    functions = model["frozen"].get("functions") if isinstance(model.get("frozen"), dict) else None
    if isinstance(functions, str):
        keys = ("frozen", "functions")
        of = reference_of(keys, functions)
        module, _, name = functions.partition(":")
        found.append(of if of.file else Reference(keys, functions, name, module=module))
    return found


def _parts(table: dict[str, Any], above: tuple[str, ...]) -> Iterator[Reference]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _parts(value, (*above, key))
        elif isinstance(value, str) and key.endswith(_PARTS) and _IN_FILE.fullmatch(value):
            yield reference_of((*above, key), value)


def reference_of(keys: tuple[str, ...], spec: str) -> Reference:
    """What ``file.py:Class`` names, or else an entry point; keys: where in the [model] table it stands."""
    found = _IN_FILE.fullmatch(spec)
    return Reference(keys, spec, found[2], found[1]) if found else Reference(keys, spec, spec)


def gather(found: list[Reference], folder: Path) -> Sources:
    """The files of references, those beside ``folder``, and the siblings that they import. Raises ``InputError``."""
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for reference in found:
        path, package = _file_of(reference, folder)
        if path is not None:
            take(path, package, reference.where, texts, places)
    return Sources(texts, places)


def take(path: Path, package: str, where: str, texts: dict[str, str], places: dict[str, str]) -> None:
    """Add a file and the siblings that it imports, by name. package: that it belongs to, "" of a file by itself."""
    text = _read(path, where)
    if texts.get(path.name, text) != text:
        raise InputError(
            f"{where}: {path} and {Path(places[path.name]) / path.name} have one name, under which a run folder keeps "
            "one file: rename one of them"
        )
    if path.name in texts:
        return
    texts[path.name], places[path.name] = text, str(path.parent)
    for name in imported(_parsed(text, path), package):
        sibling = path.with_name(f"{name}.py")
        if sibling.is_file():
            take(sibling, package, where, texts, places)


def imported(tree: ast.AST, package: str = "") -> list[str]:
    """Names of modules that may lie beside a file that imports them; in a package only ``from .name`` says so."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and not package:
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            found += [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [str(node.module)] if not package else []
    return [name for name in dict.fromkeys(found) if "." not in name]


def tokens(text: str) -> list[tuple[str, int]]:
    """What counts of a source, and its line: tokens but comments; a formatted string is one, as in every Python."""
    lines = text.splitlines(keepends=True)
    found: list[tuple[str, int]] = []
    depth, start = 0, (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_START"):
            start = token.start if depth == 0 else start
            depth += 1
        elif name.endswith("STRING_END"):
            depth -= 1
            if depth == 0:
                found.append((_between(lines, start, token.end), start[0]))
        elif depth == 0 and token.type not in _IGNORED:
            # Of an indent its depth is seen in the next ones; tabs or spaces do not count, nor do ends of lines.
            plain = token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE)
            found.append((name if plain else token.string, token.start[0]))
    return found


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    first, *middle, last = lines[start[0] - 1 : end[0]]
    return "".join([first[start[1] :], *middle, last[: end[1]]])


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """Where two versions of the files part: ``sigmoid.py line 12 was `a` and is now `b```; None where they do not."""
    for name in sorted(set(old) | set(new)):
        if name not in old or name not in new:
            return f"{name} was {'there' if name in old else 'not there'} and is now {'gone' if name in old else 'new'}"
        before, after = tokens(old[name]), tokens(new[name])
        for k in range(max(len(before), len(after))):
            if [t[0] for t in before[k : k + 1]] != [t[0] for t in after[k : k + 1]]:
                was, now = _line(old[name], before, k), _line(new[name], after, k)
                number = after[k][1] if k < len(after) else before[k][1]
                return f"{name} line {number} was {was} and is now {now}"
    return None


def _line(text: str, found: list[tuple[str, int]], k: int) -> str:
    return f"`{text.splitlines()[found[k][1] - 1].strip()}`" if k < len(found) else "not there"


def entry_point(name: str) -> EntryPoint | None:
    """The entry point of that name; None where there is none. Raises ``InputError`` where there are two."""
    found = {e.value: e for e in entry_points(group=GROUP, name=name)}
    if len(found) > 1:
        told = " and ".join(sorted(f"{e.dist.name if e.dist else 'a package'} ({e.value})" for e in found.values()))
        raise InputError(
            f"model.family = {name!r} is an entry point of {told}: uninstall one of the two, or pass its file, as in "
            "'file.py:Class'"
        )
    return next(iter(found.values()), None)


def entry_names() -> list[str]:
    """Names of all entry points of the group."""
    return sorted({e.name for e in entry_points(group=GROUP)})


def _file_of(reference: Reference, folder: Path) -> tuple[Path | None, str]:
    """The file of a reference and the package that it belongs to; None where it has none."""
    if reference.file:
        return folder / reference.file, ""
    module = reference.module
    if module is None:
        entry = entry_point(reference.spec)
        return (None, "") if entry is None else _installed(entry.module)
    beside = folder / f"{module}.py"
    return (beside, "") if re.fullmatch(r"\w+", module) and beside.is_file() else _installed(module)


def _installed(module: str) -> tuple[Path | None, str]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None, ""
    origin = spec.origin if spec is not None and spec.has_location else None
    # A module by itself has no siblings that are its own.
    return (Path(origin), module.rpartition(".")[0] or module) if origin and origin.endswith(".py") else (None, "")


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "pass a file, its path from where the study lies"
        raise InputError(f"{where}: there is no file {path}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {path} cannot be read ({error}): pass a Python file") from None


def _parsed(text: str, path: Path) -> ast.AST:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:  # the latter of a null byte
        line = getattr(error, "lineno", None)
        raise InputError(
            f"{path.name}{f' line {line}' if line else ''} is not Python ({getattr(error, 'msg', error)}): mend it"
        ) from None
