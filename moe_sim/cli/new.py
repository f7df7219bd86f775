"""The command new: a study and a model of one's own, which run as they are."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from moe_sim.cli.console import out_console, show_paths
from moe_sim.errors import InputError

app = typer.Typer()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the study and of its files, NAME.toml and NAME.py.")],
    density: Annotated[bool, typer.Option("--density", help="A model of p(y | x), in place of a regression.")] = False,
) -> None:
    """Write a study and a model, in files of your own, to be changed into yours: they run as they are."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise InputError(f"NAME = {name!r}: pass letters, digits, '_' and '-', without a folder or a suffix")
    folder = resources.files("moe_sim.study") / "templates"
    kind = "density" if density else "regression"
    texts = {Path(f"{name}{end}"): (folder / f"{kind}{end}").read_text(encoding="utf-8") for end in (".toml", ".py")}
    for path in texts:
        if path.exists():
            raise InputError(f"{path} is there already: pass another NAME, nothing was written")
    for path, text in texts.items():
        try:
            path.write_text(text.replace("NAME", name), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): go to a folder that you may write"
            ) from None
    show_paths(list(texts))
    out_console.print(f"next: moe-sim run {name}.toml --quick", highlight=False, soft_wrap=True)
