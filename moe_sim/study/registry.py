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
    """A study from a TOML file, or from the registry by its name. Raises ``InputError``, also where the sizes are too
    few for what it claims, before any of them is computed."""
    tables = _tables(source)
    from moe_sim.study.schema import FEWEST_SIZES
    from moe_sim.study.study import Study  # with NumPy: a text that is no TOML is refused sooner

    study = Study(folder=Path(source).parent, **tables)
    for k, claim in enumerate(study.claims):
        low, high = claim.window
        held = sum(low <= n <= high for n in study.problem.sizes)
        if held < FEWEST_SIZES and claim.kind != "lower":
            where = f"claim[{k}].window = [{low:g}, {high:g}]"
            raise InputError(
                f"{where} holds {held} of sample.sizes: a slope needs {FEWEST_SIZES}, widen it or add sizes"
            )
    return study


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
