"""The command fit: data of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

import moe_sim as ms
from moe_sim.cli.console import Json, out_console, parsed
from moe_sim.cli.csv import read_table
from moe_sim.errors import InputError, number, whole

app = typer.Typer()


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="A CSV file with a header line, one observation a row.")],
    model: Annotated[str, typer.Option(help="softmax-gaussian or gaussian-gated.")] = "softmax-gaussian",
    atoms: Annotated[str, typer.Option(help="Number of experts.")] = "2",
    y: Annotated[str | None, typer.Option(help="Columns of y, as in a,b; the last column by default.")] = None,
    x: Annotated[str | None, typer.Option(help="Columns of x; all others by default.")] = None,
    estimator: Annotated[str, typer.Option(help="mle (scoring), em or gradient.")] = "mle",
    starts: Annotated[str, typer.Option(help="Starts from the data.")] = "24",
    seed: Annotated[str, typer.Option(help="Seed of the starts.")] = "0",
    bound: Annotated[str, typer.Option(help="Of slopes and gates, in standard deviations of the data.")] = "50",
    sep: Annotated[str, typer.Option(help="What separates columns; \\t for a tab.")] = ",",
    decimal: Annotated[str, typer.Option(help="The decimal point.")] = ".",
    encoding: Annotated[str, typer.Option(help="Of the file, as in utf-8 or cp1252.")] = "utf-8",
    no_header: Annotated[
        bool, typer.Option("--no-header", help="The first line is data: columns are c0, c1, ...")
    ] = False,
    gates: Annotated[Path | None, typer.Option(help="CSV file for gating probabilities and responsibilities.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Figure of the fit (.svg, .png or .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Fit a mixture of experts to data of your own, by maximum likelihood."""
    if plot is not None:
        from moe_sim.plots import fit as fit_plot  # matplotlib takes half a second
        from moe_sim.plots import style

        style.check(plot)
    table = read_table(data, sep, decimal, encoding, no_header)
    y_names = [str(table.columns[-1])] if y is None else [c.strip() for c in y.split(",")]
    x_names = [str(c) for c in table.columns if c not in y_names] if x is None else [c.strip() for c in x.split(",")]
    for option, names in (("--x", x_names), ("--y", y_names)):
        unknown = [c for c in names if c not in table.columns]
        if unknown or not names:
            columns = ", ".join(map(str, table.columns))
            raise InputError(f"{option} has {unknown[0] if unknown else 'no column'!r}: pass columns out of {columns}")
        twice = [c for c in names if names.count(c) > 1]
        if twice:
            raise InputError(f"{option} has {twice[0]!r} twice: pass each column once")
    found = ms.fit(
        model, table[x_names], table[y_names], whole("--atoms", parsed("--atoms", atoms), 1), estimator=estimator,
        starts=whole("--starts", parsed("--starts", starts), 1), seed=whole("--seed", parsed("--seed", seed)),
        bound=number("--bound", parsed("--bound", bound), 1e-6),
    )  # fmt: skip
    _show(found, as_json)
    # Files come last: whatever becomes of them, the estimates have been printed.
    if gates is not None:
        parts = {"gate": found.gates(), "responsibility": found.responsibilities()}
        shares = {f"{name}[{k}]": v[:, k] for name, v in parts.items() for k in range(v.shape[1])}
        import pandas as pd

        try:
            pd.DataFrame(shares).to_csv(gates, index=False)
        except OSError as error:
            raise InputError(f"{gates} cannot be written ({error.strerror}): pass another file") from None
    if plot is not None:
        style.save(fit_plot.plot_fit(found), plot)


def _show(found: ms.Estimate, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()))
        return
    shown = Table("parameter", Column("estimate", justify="right"), Column("standard error", justify="right"))
    frame = found.frame
    for name, value, spread in zip(frame["parameter"], frame["estimate"], frame["standard_error"], strict=True):
        shown.add_row(str(name).replace("[", "\\["), f"{value:.6g}", "–" if math.isnan(spread) else f"{spread:.4g}")
    out_console.print(shown)
    out_console.print(
        f"log-likelihood {found.loglik:.6f}, AIC {found.aic:.3f}, BIC {found.bic:.3f}, {found.df} parameters, "
        f"{found.n} rows; mean gates {', '.join(f'{g:.3f}' for g in found.gates().mean(axis=0))}", highlight=False,
    )  # fmt: skip
    out_console.print(f"y: {', '.join(found.y_names)}; x: {', '.join(found.x_names)}", highlight=False, markup=False)
    out_console.print(found.explain(), highlight=False, markup=False)
