"""What the commands share: consoles, options, numbers in and claims out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from moe_sim.errors import InputError, number

if TYPE_CHECKING:
    from moe_sim.rates.verdicts import Verdict
    from moe_sim.simulation.progress import Progress
    from moe_sim.simulation.runner import Results

# A colon in a text, as in atoms:key:value, is no emoji.
out_console = Console(width=None if sys.stdout.isatty() else 160, emoji=False)
err_console = Console(stderr=True, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
TrustModel = Annotated[
    bool, typer.Option("--trust-model", help="Run the model's code that lies in the run folder: read it first.")
]
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


@contextmanager
def computing() -> Iterator[None]:
    """What a model prints while it computes goes to standard error: the output may be one JSON object."""
    with redirect_stdout(sys.stderr):
        yield
        if "jax" in sys.modules:
            sys.modules["jax"].effects_barrier()  # jax.debug.print comes when it likes


@contextmanager
def reporting() -> Iterator[Callable[[Progress], None]]:
    """Shows the progress of a run on standard error: a live table on a terminal, a line a finished size elsewhere."""
    if not err_console.is_terminal:
        with computing():
            yield _quiet
        return
    from rich.live import Live

    with Live(console=err_console, transient=True, auto_refresh=False) as live:

        def show(p: Progress) -> None:
            live.update(progress_table(p), refresh=True)
            if not p.seconds_left:
                _quiet(p)

        yield show


def searching(study: str):
    """Progress of a search on standard error: one line that is rewritten on a terminal, none otherwise."""

    def show(loss: str, eps: float, omega: float) -> None:
        if err_console.is_terminal:
            err_console.print(f"{study}  {loss}  eps = {eps:.3g}  omega = {omega:.3g}   ", end="\r", highlight=False)

    return show


def _quiet(p: Progress) -> None:
    if p.done == p.total:
        text = f"{p.study}  n = {p.n:.4g}  {p.done}/{p.total} replicates, {p.certified:.1%} certified"
        err_console.print(text, highlight=False, soft_wrap=True)


def progress_table(p: Progress) -> Table:
    """Sizes, replicates done, certified share and mean losses; below them the slopes so far and the time left."""
    right = [Column(name, justify="right") for name in ("n", "replicates", "certified", *p.slopes)]
    lines = [f"{name}: slope {slope_text(s.slope, s.interval)}" for name, s in p.slopes.items() if s is not None]
    lines.append(f"about {duration(p.seconds_left)} left")
    table = Table(*right, title=p.study, caption="\n".join(lines), caption_justify="left", title_justify="left")
    for s in p.sizes:
        losses = (f"{s.mean[name]:.3g}" if s.mean[name] == s.mean[name] else "–" for name in p.slopes)
        share = f"{s.certified:.1%}" if s.done else "–"
        table.add_row(f"{s.n:.4g}", f"{s.done}/{p.total}", share, *losses)
    return table


def show_paths(paths: list[Path]) -> None:
    """Files that were written, one a line."""
    for path in paths:
        out_console.print(path, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def verdicts_json(results: Results, verdicts: list[Verdict]) -> dict[str, Any]:
    """What ``--json`` says of a run."""
    study = results.study
    return {"study": study.name, "digest": study.digest, "verdicts": [v.to_json() for v in verdicts]}


def verdict_table(verdicts: list[Verdict]) -> Table:
    """One line a verdict."""
    table = Table(
        Column("claim", no_wrap=True),
        "loss",
        "claimed",
        "slope [95% interval]",
        "near-minimiser",
        "certified",
        "start",
        "verdict",
    )
    previous = None
    for v in verdicts:
        near = v.near_minimiser
        table.add_row(
            v.claim if v.claim != previous else "", v.loss, claimed(v), slope_text(v.slope, v.interval),
            slope_text(near["slope"], near["interval"]), v.accounting, v.start, f"[{COLOUR[v.verdict]}]{v.verdict}[/]",
        )  # fmt: skip
        previous = v.claim
    return table
