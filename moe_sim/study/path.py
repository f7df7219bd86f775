"""Truths that are formulas: of the sample size, ``[truth.path]``, such as ``eta = "eta0 * (1 + n**(-1/8))"``, or of a
number t that takes the values of a list, ``[truth.grid]``, for rates that are to hold at all of them.

A formula is arithmetic of numbers, lists, ``n`` or ``t``, the given parameters (``eta0`` is ``truth.eta``) and a few
functions. It is read as a tree and never run as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moe_sim.errors import InputError, array
from moe_sim.study.table import is_table

FUNCTIONS: dict[str, Callable] = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos}
_BINARY: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type, Callable] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def tables_along(path: Any, given: Mapping[str, Any], sizes: list[int]) -> dict[int, dict[str, Any]]:
    """The [truth] table at each size, the given one but for what has a formula. Raises ``InputError``."""
    where = "truth.path"
    return _tables(where, is_table(where, path), given, "n", sizes)


def tables_on(grid: Any, given: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """The [truth] table at each t of a grid, in the order they are given. Raises ``InputError``."""
    where = "truth.grid"
    formulas = dict(is_table(where, grid))
    values = array(f"{where}.t", formulas.pop("t", None), (None,)).tolist()
    if len(values) < 2 or len(set(values)) < len(values):
        raise InputError(f"{where}.t = {values}: pass two values or more, none of them twice")
    if not formulas:
        raise InputError(f'{where} has no formula: add one, as in {next(iter(given))} = "{next(iter(given))}0 * t"')
    return _tables(where, formulas, given, "t", values)


def t_name(t: float) -> str:
    """What a truth of a grid adds to the name of its study, and its run folder is called."""
    return f"t{t!r}".replace("+", "")


def _tables(where: str, formulas: Mapping[str, Any], given: Mapping[str, Any], letter: str, values) -> dict:
    trees = {name: _tree(f"{where}.{name}", text) for name, text in formulas.items()}
    known = {f"{name}0": np.asarray(value, float) for name, value in given.items()}
    for name in trees:
        if name not in given:
            raise InputError(f"{where}.{name}: truth has no {name}, pass formulas of {', '.join(given)}")
    found = {}
    for at in values:
        names = known | {letter: np.asarray(float(at))}
        moved = {name: _value(f"{where}.{name}", tree, names) for name, tree in trees.items()}
        for name, value in moved.items():
            if value.shape != known[f"{name}0"].shape:
                raise InputError(
                    f"{where}.{name} has shape {value.shape}, truth.{name} {known[f'{name}0'].shape}: pass a formula "
                    f"of that shape, as {name}0 is"
                )
            if not np.all(np.isfinite(value)):
                raise InputError(f"{where}.{name} is not finite at {letter} = {at}: mend the formula")
        found[at] = {**given, **moved}
    return found


def _tree(where: str, text: Any) -> ast.expr:
    if not isinstance(text, str):
        raise InputError(f'{where} = {text!r}: pass a formula in quotes, as "slope0 * (1 + n**(-1/8))"')
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise InputError(f"{where} = {text!r} is no formula ({error.msg}): mend it") from None


def _value(where: str, tree: ast.expr, names: Mapping[str, np.ndarray]) -> np.ndarray:
    value = lambda part: _value(where, part, names)  # noqa: E731
    with np.errstate(all="ignore"):
        match tree:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return np.asarray(float(number))
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=parts):
                rows = [value(part) for part in parts]
                if len({row.shape for row in rows}) > 1:
                    raise InputError(f"{where}: the rows of {ast.unparse(tree)} differ in length, mend them")
                return np.array(rows)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                one, other = value(left), value(right)
                try:
                    return np.asarray(_BINARY[type(op)](one, other))
                except ValueError:
                    raise InputError(
                        f"{where}: {ast.unparse(tree)} joins shapes {one.shape} and {other.shape}, mend it"
                    ) from None
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return np.asarray(_UNARY[type(op)](value(operand)))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
                return np.asarray(FUNCTIONS[name](value(argument)))
    raise InputError(
        f"{where}: {ast.unparse(tree)} is not known, pass + - * / **, numbers, lists, {', '.join(FUNCTIONS)} and "
        f"{', '.join(sorted(names))}"
    )
