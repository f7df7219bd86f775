"""The command replay: one replicate again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import moe_sim as ms
from moe_sim.cli.console import Json, TrustModel, computing, out_console, parsed
from moe_sim.errors import whole

app = typer.Typer()


@app.command()
def replay(
    folder: Path,
    size: Annotated[str, typer.Option(help="Sample size, as in 1e6.")],
    replicate: Annotated[str, typer.Option(help="Index of the replicate, from 0.")],
    trust_model: TrustModel = False,
    as_json: Json = False,
) -> None:
    """Fit one replicate of a run again and show what became of its starts."""
    from moe_sim.simulation.replay import replay as fit_again

    n, index = parsed("--size", size), whole("--replicate", parsed("--replicate", replicate))
    with computing():
        found = fit_again(ms.load_results(folder, trust_model), n, index)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    row = found.row
    table = Table("starts", "log-likelihood units above the best", "iterations", "status")
    for start in found.starts.to_dict("records"):
        status = f"{start['status']}{', a variance on its bound' if start['degenerate'] else ''}"
        table.add_row(str(start["starts"]), f"{start['above']:.6g}", str(start["iterations"]), status)
    out_console.print(table)
    lines = [
        f"{row['certificate']}: {found.certificate}",
        f"objective {row['objective']:.9g}, {row['objective_at_truth'] - row['objective']:.6g} below that at the "
        f"truth; {row['starts']} starts, {row['agreeing']} agree; {row['iterations']} iterations, "
        f"{row['passes']:.3g} passes",
        ", ".join(f"{name.removeprefix('loss:')} {row[name]:.5g}" for name in row.index if name.startswith("loss:")),
        ", ".join(f"{name.removeprefix('estimate:')} {row[name]:.6g}" for name in row.index if name.startswith("est")),
        "the same as in the run, bit for bit"
        if not found.differs
        else f"not what the run holds, in {', '.join(found.differs)}: another machine or version computed that",
    ]
    for line in lines:
        out_console.print(line, highlight=False, markup=False)
