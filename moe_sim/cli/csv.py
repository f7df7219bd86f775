"""CSV files of one's own, and the option that would read one that is written otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_sim.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def read_table(data: Path, sep: str, decimal: str, encoding: str, no_header: bool) -> pd.DataFrame:
    """A data frame. Raises ``InputError`` that names the option which would read it."""
    import pandas as pd  # not before the command line asks for it

    try:
        table = pd.read_csv(
            data, sep=sep.replace("\\t", "\t"), decimal=decimal, encoding=encoding, header=None if no_header else 0
        )
    except OSError as error:
        raise InputError(f"{data} cannot be read ({error.strerror}): pass a CSV file") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{data} is not written in {encoding}: pass --encoding cp1252, or whichever it is, or save it as UTF-8"
        ) from None
    except LookupError:
        raise InputError(f"--encoding has {encoding!r}: pass one that Python knows, as utf-8 or cp1252") from None
    except ValueError as error:
        raise InputError(f"{data} is no CSV table ({error}): pass a file with a header and equal rows") from None
    if no_header:
        table.columns = pd.Index([f"c{i}" for i in range(table.shape[1])])
    elif all(_is_number(name) for name in table.columns):
        raise InputError(
            f"{data}: its first line, {', '.join(map(str, table.columns))}, looks like data: add a header line, or "
            "pass --no-header"
        )
    if table.shape[1] == 1:
        found = next((s for s in ";\t|" if s in str(table.columns[0])), None)
        if found is not None:
            shown = repr(found)
            raise InputError(
                f"{data} has one column, {str(table.columns[0])!r}: separated by {shown}? pass --sep {shown}"
            )
    return table


def _is_number(name) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
