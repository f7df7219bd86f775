"""What the commands share: consoles, options, numbers in and claims out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from moe_sim.errors import InputError, number

out_console = Console(width=None if sys.stdout.isatty() else 160)
err_console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
RUNS = Path("runs")
COLOUR = {"supported": "green", "refuted": "red", "undecided": "yellow"}


def parsed(name: str, text: str) -> float:
    """The number that an option was given. Raises ``InputError``."""
    try:
        return number(name, float(text))
    except ValueError as error:
        raise (
            error if isinstance(error, InputError) else InputError(f"{name} has {text!r}, which is not a number")
        ) from None


def claimed(claim) -> str:
    """``n^-0.5``, ``(log n / n)^0.5`` and so on, of a claim or a verdict."""
    if claim.kind == "lower":
        return "no polynomial rate"
    if claim.log_power == claim.exponent:
        return f"(log n / n)^{claim.exponent:g}"
    logs = f"(log n)^{claim.log_power:g} " if claim.log_power else ""
    return f"{logs}n^-{claim.exponent:g}"


def slope_text(slope, interval) -> str:
    return "–" if slope is None else f"{slope:.3f} \\[{interval[0]:.3f}, {interval[1]:.3f}]"


def fastest(found) -> str:
    """The fastest rate that a modulus allows."""
    if found is None or found.exponent is None:
        return "–"
    return "no rate" if found.degenerate else f"n^-{found.exponent:.3g}"
