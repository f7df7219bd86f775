"""The commands of the bridge to PyTorch. They need the extra ``bridge``; everything else works without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from moe_sim.bridge import require
from moe_sim.console import Json, err_console, out_console

app = typer.Typer(no_args_is_help=True, help="Real prefix-tuned attention against the theory's model (PyTorch).")

Device = Annotated[str, typer.Option(help="cpu, or cuda where torch sees one.")]
Model = Annotated[str, typer.Option(help="all-minilm-l6-v2 (installed), a folder, or a name on the hub.")]
Out = Annotated[Path, typer.Option(help="Folder of the figure and the table behind it.")]


@app.callback()
def bridge() -> None:
    """Real prefix-tuned attention against the theory's model (PyTorch)."""
    require()
