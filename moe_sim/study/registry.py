"""Where studies come from: files, and the claims that come with the package."""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from pathlib import Path

from moe_sim.errors import InputError
from moe_sim.study.study import Study


def load_study(source: str | Path) -> Study:
    """A study from a TOML file, or from the registry by its name. Raises ``InputError``."""
    path = Path(source)
    if not path.suffix and not path.exists():
        names = registry()
        if str(source) not in names:
            near = difflib.get_close_matches(str(source), names, 1)
            hint = f", did you mean {near[0]}?" if near else f": known are {', '.join(names)}"
            raise InputError(f"{str(source)!r} is neither a file nor a claim of the registry{hint}")
        return Study(**tomllib.loads((_claims_folder() / f"{source}.toml").read_text()))
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): pass a study file or the name of a claim"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text: pass a study file in TOML") from None
    try:
        return Study(**tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML ({error}): mend that line") from None


def registry() -> list[str]:
    """Names of the claims that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _claims_folder().iterdir() if entry.name.endswith(".toml")
    )


def _claims_folder():
    return resources.files("moe_sim.study") / "claims"
