"""Where studies come from: files, and the claims that come with the package."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_sim.errors import InputError

if TYPE_CHECKING:
    from moe_sim.study.study import Study

CLAIMS = Path(__file__).with_name("claims")


def load_study(source: str | Path) -> Study:
    """A study from a TOML file, or from the registry by its name. Raises ``InputError``."""
    tables = _tables(source)
    from moe_sim.study.study import Study  # with NumPy: a text that is no TOML is refused sooner

    return Study(folder=Path(source).parent, **tables)


def _tables(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not path.suffix and not path.exists():
        return tomllib.loads(_claim(str(source)).read_text())
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): pass a study file or the name of a claim"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text: pass a study file in TOML") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML ({error}): mend that line") from None


def _claim(name: str) -> Path:
    """The file of a claim of the registry."""
    names = registry()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f", did you mean {near[0]}?" if near else f": known are {', '.join(names)}"
        raise InputError(f"{name!r} is neither a file nor a claim of the registry{hint}")
    return CLAIMS / f"{name}.toml"


def registry() -> list[str]:
    """Names of the claims that come with the package."""
    return sorted(path.stem for path in CLAIMS.glob("*.toml"))
