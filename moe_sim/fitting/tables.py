"""Data of one's own, as tables of numbers: columns by name, rows by index, and a clear word on what cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_sim.errors import InputError

ALIASED = 1e-9  # part of a column that its combination of the others leaves, below which it is one


@dataclass(frozen=True)
class Table:
    """values (n, columns), finite; names, one a column; named: whether the data came with them; index of the rows,
    None where there is none."""

    values: np.ndarray
    names: list[str]
    named: bool
    index: pd.Index | None


def read(what: str, values: Any) -> Table:
    """An array (n,) or (n, columns), a series or a data frame. Raises ``InputError`` naming what is wrong and where."""
    if isinstance(values, pd.Series):
        values = values.to_frame(name=what if values.name is None else values.name)
    framed = isinstance(values, pd.DataFrame)
    names = [str(column) for column in values.columns] if framed else []
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{what} has two columns {twice!r}: give each its own name")
    try:
        table = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(_no_number(what, values)) from None
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] == 0:
        raise InputError(f"{what} has shape {np.shape(values)}: pass (n,) or (n, columns) with at least one row")
    names = names or [f"{what}{i}" if table.shape[1] > 1 else what for i in range(table.shape[1])]
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"{what} column {names[column]!r} has {table[row, column]} in row {row} (the first is 0; {len(bad)} such "
            "entries): drop or fill missing values first"
        )
    return Table(table, names, framed, values.index if framed else None)


def _no_number(what: str, values: Any) -> str:
    """Where the first entry is that is no number."""
    ragged = f"{what} is no table of numbers: pass an array or a data frame with equally long rows"
    try:
        frame = values if isinstance(values, pd.DataFrame) else pd.DataFrame(np.asarray(values, dtype=object))
    except (TypeError, ValueError):
        return ragged
    for name, column in frame.items():
        for row, entry in enumerate(column.tolist()):
            try:
                float(entry)
            except (TypeError, ValueError):
                if isinstance(entry, (list, tuple, np.ndarray)):
                    return ragged
                where = f" column {str(name)!r}" if isinstance(values, pd.DataFrame) else ""
                return (
                    f"{what}{where} has {entry!r} in row {row} (the first is 0), which is no number: pass numeric "
                    "columns, code categories first"
                )
    return ragged


def pair(x: Any, y: Any) -> tuple[Table, Table]:
    """Tables of x and y with the same rows: where both have an index, the rows of y in the order of x. Raises
    ``InputError``."""
    return aligned(read("x", x), read("y", y))


def aligned(one: Table, other: Table) -> tuple[Table, Table]:
    """``pair`` of tables that have been read: x and y."""
    if one.named and other.named:
        both = [name for name in one.names if name in other.names]
        if both:
            raise InputError(f"column {both[0]!r} is in x and in y: leave it out of one of them")
    if len(one.values) != len(other.values):
        raise InputError(f"x has {len(one.values)} rows and y {len(other.values)}: pass as many of each")
    if one.index is None or other.index is None or one.index.equals(other.index):
        return one, other
    if not (one.index.is_unique and other.index.is_unique and one.index.isin(other.index).all()):
        missing = one.index[~one.index.isin(other.index)]
        why = f"x has row {missing[0]!r} and y has not" if len(missing) else "a row is there twice"
        raise InputError(f"x and y have other rows in their index ({why}): pass rows of one index, or arrays")
    order = other.index.get_indexer(one.index)
    return one, Table(other.values[order], other.names, other.named, one.index)


def covariates(what: str, values: Any, names: list[str], named: bool) -> Table:
    """The columns that a fit was made with: by name where it and these have names. Raises
    ``InputError``."""
    known = ", ".join(names)
    if isinstance(values, pd.Series) and len(names) > 1:
        raise InputError(f"the fit has columns {known} of {what}, and this is one column: pass a data frame with all")
    if isinstance(values, pd.DataFrame) and named:
        columns = {str(column): column for column in values.columns}
        missing = [name for name in names if name not in columns]
        if missing:
            raise InputError(f"{what} has no column {missing[0]!r}: pass those of the fit, {known}")
        values = values[[columns[name] for name in names]]
    table = read(what, values)
    if table.values.shape[1] != len(names):
        count = table.values.shape[1]
        raise InputError(
            f"{what} has {count} column{'s' if count > 1 else ''}, the fit has {len(names)} ({known}): pass these"
        )
    return table


def check_columns(what: str, table: Table) -> None:
    """Raises ``InputError`` where a column is constant or, among those of x, a combination of the others."""
    for name, column in zip(table.names, table.values.T, strict=True):
        if np.ptp(column) == 0:
            raise InputError(f"{what} column {name!r} is constant: leave it out, an intercept is always fitted")
    if what != "x":
        return
    basis = np.full((len(table.values), 1), len(table.values) ** -0.5)
    for name, column in zip(table.names, table.values.T, strict=True):
        centred = column - column.mean()
        unit = centred / np.linalg.norm(centred)
        rest = unit - basis @ (basis.T @ unit)
        rest = rest - basis @ (basis.T @ rest)
        size = np.linalg.norm(rest)
        # Rounding of the data is part of it: an offset of 1e9 leaves seven digits.
        if size < max(ALIASED, 1e-14 * np.abs(column).max() / np.linalg.norm(centred) * len(column) ** 0.5):
            raise InputError(f"x column {name!r} is a combination of the others: leave it out")
        basis = np.column_stack([basis, rest / size])
