"""The commands that check protocols, verdicts and speed: audit, calibrate, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from moe_sim.cli.console import COLOUR, RUNS, Json, err_console, out_console, parsed, reporting, show_paths, slope_text
from moe_sim.errors import whole

app = typer.Typer()


@app.command()
def audit(
    out: Annotated[Path, typer.Option(help="Folder of the figure and the table.")] = Path("figures"),
    quick: Annotated[bool, typer.Option(help="At most 20 replicates a size.")] = False,
    as_json: Json = False,
) -> None:
    """What published protocols do to a slope: re-created as written, beside corrected ones on the same samples."""
    from moe_sim.plots import checks
    from moe_sim.simulation.audit import ROWS, table
    from moe_sim.simulation.audit import audit as run_all

    with reporting() as report:
        done = run_all(RUNS / ("audit-quick" if quick else "audit"), quick, report)
    found = table(done)
    paths = checks.write_audit(done, ROWS, found, out)
    if as_json:
        print(json.dumps({"rows": json.loads(found.to_json(orient="records"))}))
        return
    shown = Table("model", "protocol", "loss", "slope", "without small sizes", "units below", "certified", "verdict")
    for row in found.to_dict("records"):
        shown.add_row(
            row["panel"], row["protocol"], row["loss"], slope_text(row["slope"], (row["low"], row["high"])),
            f"{row['dropped_low']:.2f} to {row['dropped_high']:.2f}", f"{row['below']:.2f}",
            row["certified"], f"[{COLOUR[row['verdict']]}]{row['verdict']}[/]",
        )  # fmt: skip
    out_console.print(shown)
    show_paths(paths)


@app.command()
def calibrate(
    studies: Annotated[str, typer.Option(help="Synthetic studies of each law.")] = "2000",
    seed: Annotated[str, typer.Option(help="Seed of the studies.")] = "0",
    as_json: Json = False,
) -> None:
    """How often verdicts and intervals are right, on synthetic losses whose law is known."""
    from moe_sim.rates.calibration import REPLICATES, SIZES
    from moe_sim.rates.calibration import calibrate as rows_of

    rows = []
    count = whole("--studies", parsed("--studies", studies), 2)
    for row in rows_of(count, whole("--seed", parsed("--seed", seed))):
        rows.append(row)
        err_console.print(f"calibrated: {row['law']}", highlight=False)
    if as_json:
        print(json.dumps({"studies": count, "rows": rows}))
        return
    table = Table("loss law and claim", "coverage", "supported", "refuted", "undecided", "wrong")
    for row in rows:
        coverage = "–" if row["coverage"] is None else f"{row['coverage']:.3f} ± {2 * row['coverage_mcse']:.3f}"
        shares = (f"{row[name]:.1%}" for name in ("supported", "refuted", "undecided"))
        table.add_row(row["law"], coverage, *shares, f"{row['wrong']:.1%} ± {2 * row['wrong_mcse']:.1%}")
    out_console.print(table)
    out_console.print(
        f"{count} studies a law, {REPLICATES} replicates at each of {len(SIZES)} sizes from {SIZES[0]:.0e} to "
        f"{SIZES[-1]:.0e}; ± two Monte Carlo errors; wrong: a verdict against what is known", highlight=False,
    )  # fmt: skip


@app.command()
def bench(as_json: Json = False) -> None:
    """Nanoseconds a sample of one streamed pass and of drawing, on one core, and passes a fit takes."""
    from moe_sim.simulation import benchmark

    found = benchmark.bench()
    if as_json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        for key, value in values.items():
            out_console.print(f"{name}  {key}: {value}", highlight=False)
