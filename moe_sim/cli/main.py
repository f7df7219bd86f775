"""The command line: parses, calls, prints. Exit status 0 done, 1 the run failed, 2 bad input."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Column, Table

import moe_sim as ms
from moe_sim.cli import bridge, replay, theory
from moe_sim.cli.console import (
    COLOUR,
    RUNS,
    Json,
    claimed,
    err_console,
    fastest,
    out_console,
    parsed,
    reporting,
    show_paths,
    slope_text,
    verdict_table,
    verdicts_json,
)
from moe_sim.errors import InputError, one_of, whole
from moe_sim.rates.verdicts import finite
from moe_sim.simulation import predictions
from moe_sim.simulation.adaptive import parse_budget
from moe_sim.simulation.cluster import cluster
from moe_sim.theory.modulus import Modulus

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rates of mixtures of experts, checked.",
)
app.add_typer(theory.app)
app.add_typer(replay.app)
app.add_typer(bridge.app, name="bridge")


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A study file, or the name of a claim of the registry.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME by default.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Sample sizes in place of the study's, as in 1e3,1e4.")] = None,
    replicates: Annotated[str | None, typer.Option(help="Replicates a size in place of the study's.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seed in place of the study's.")] = None,
    quick: Annotated[bool, typer.Option(help="At most 20 replicates a size.")] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Run controls too: the start itself, one step, other starts.")
    ] = False,
    width: Annotated[
        str | None, typer.Option(help="Add replicates until the slope intervals are this narrow, or --budget ends.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="With --width: most replicates a size (5000), or most time (30min, 2h).")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="Compute on a Dask cluster: a scheduler's address, or local:N worker processes.")
    ] = None,
    require: Annotated[str | None, typer.Option(help="Exit with 1 unless every claim has this verdict.")] = None,
    as_json: Json = False,
) -> None:
    """Run a study (or what its folder lacks of it) and print its verdicts."""
    found = ms.load_study(study).replace(
        sizes=None if sizes is None else [parsed("--sizes", part) for part in sizes.split(",")],
        replicates=None if replicates is None else whole("--replicates", parsed("--replicates", replicates), 2),
        seed=None if seed is None else whole("--seed", parsed("--seed", seed)),
        quick=quick,
    )
    if require is not None:
        one_of("--require", require, ("supported", "refuted", "undecided"))
        if not found.claims:
            raise InputError(f"--require {require}: the study has no claims, add a [[claim]] table")
    folder = out or RUNS / found.name
    if budget is not None and width is None:
        raise InputError(f"--budget {budget} is the end of --width: pass both, or --replicates")
    most, seconds = parse_budget(budget)
    with reporting() as report, contextlib.nullcontext() if dask is None else cluster(dask) as client:
        if width is None:
            results = ms.run(found, folder, report, client)
        else:
            results = ms.run_until(found, folder, parsed("--width", width), most, seconds, report, client)
        if controls:
            results = ms.run_controls(results, report, client)
    verdicts = ms.judge(results)
    _print(results, verdicts, as_json)
    if require is not None and any(v.verdict != require for v in verdicts):
        raise typer.Exit(1)


@app.command()
def verdict(folder: Path, as_json: Json = False) -> None:
    """The verdicts on a finished run."""
    results = ms.load_results(folder)
    _print(results, ms.judge(results), as_json)


@app.command()
def plot(
    folder: Path, out: Annotated[Path | None, typer.Option(help="Figure file; FOLDER/rates.svg by default.")] = None
) -> None:
    """Draw the losses of a run against n, and beside them its controls if it has any."""
    from moe_sim.plots import checks, rates, style

    results = ms.load_results(folder)
    target = out or folder / "rates.svg"
    style.check(target)
    if results.controls:
        beside = target.with_name(f"{target.stem}-controls{target.suffix}")
        style.save(checks.plot_controls(results), beside)
        out_console.print(beside, highlight=False)
    # Drawing adds nothing to a run folder, which may be read-only.
    predicted = predictions.constants(results.study, folder if (folder / "constants.json").is_file() else None)
    style.save(rates.plot_rates(results, ms.judge(results), predicted), target)
    out_console.print(target, highlight=False)


@app.command()
def claims() -> None:
    """The registry, with the last verdicts below runs/: claimed, simulated, and what the modulus allows."""
    table = Table("claim", "loss", "kind", "claimed", "simulated [95% interval]", "modulus", "last verdict")
    for name in ms.registry():
        study = ms.load_study(name)
        last = _last(RUNS / name)
        moduli = {m.loss: m for m in _last_moduli(RUNS / name)}
        for k, claim in enumerate(study.claims):
            v = last[k] if k < len(last) else None
            table.add_row(
                name if k == 0 else "", claim.loss, claim.kind, claimed(claim),
                slope_text(v.slope, v.interval) if v else "–", fastest(moduli.get(claim.loss)),
                v.verdict if v else "not run",
            )  # fmt: skip
    out_console.print(table)


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Claims to draw; all of the registry by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("figures"),
) -> None:
    """Run the registry (or what runs/ lacks of it), draw its figures, print its verdicts."""
    from moe_sim.plots import modulus, rates

    done: dict[str, Any] = {}
    paths = []
    for name in names or ms.registry():
        study = ms.load_study(name)
        with reporting() as report:
            results = ms.run(study, RUNS / name, report)
        done[name] = (results, ms.judge(results), predictions.constants(study, RUNS / name))
        moduli = predictions.modulus(study, None, RUNS / name, theory.report(name))
        paths.append(modulus.write_modulus(study, moduli, out)[0])
    paths += rates.write_figures(done, out)
    out_console.print(verdict_table([v for _, verdicts, _ in done.values() for v in verdicts]))
    show_paths(paths)


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="A CSV file with a header line, one observation a row.")],
    model: Annotated[str, typer.Option(help="softmax-gaussian or gaussian-gated.")] = "softmax-gaussian",
    atoms: Annotated[str, typer.Option(help="Number of experts.")] = "2",
    y: Annotated[str | None, typer.Option(help="Columns of y, as in a,b; the last column by default.")] = None,
    x: Annotated[str | None, typer.Option(help="Columns of x; all others by default.")] = None,
    estimator: Annotated[str, typer.Option(help="mle (scoring) or em.")] = "mle",
    starts: Annotated[str, typer.Option(help="Starts from the data.")] = "24",
    seed: Annotated[str, typer.Option(help="Seed of the starts.")] = "0",
    gates: Annotated[Path | None, typer.Option(help="CSV file for gating probabilities and responsibilities.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Figure of the fit (.svg, .png or .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Fit a mixture of experts to data of your own, by maximum likelihood."""
    import pandas as pd

    from moe_sim.plots import fit as fit_plot
    from moe_sim.plots import style

    if plot is not None:
        style.check(plot)
    try:
        table = pd.read_csv(data)
    except OSError as error:
        raise InputError(f"{data} cannot be read ({error.strerror}): pass a CSV file") from None
    except ValueError as error:
        raise InputError(f"{data} is no CSV table ({error}): pass a file with a header and equal rows") from None
    y_names = [str(table.columns[-1])] if y is None else [c.strip() for c in y.split(",")]
    x_names = [str(c) for c in table.columns if c not in y_names] if x is None else [c.strip() for c in x.split(",")]
    for option, names in (("--x", x_names), ("--y", y_names)):
        unknown = [c for c in names if c not in table.columns]
        if unknown or not names:
            columns = ", ".join(map(str, table.columns))
            raise InputError(f"{option} has {unknown[0] if unknown else 'no column'!r}: pass columns out of {columns}")
    found = ms.fit(
        model, table[x_names], table[y_names], whole("--atoms", parsed("--atoms", atoms), 1), estimator=estimator,
        starts=whole("--starts", parsed("--starts", starts), 1), seed=whole("--seed", parsed("--seed", seed)),
    )  # fmt: skip
    _show(found, as_json)
    # Files come last: whatever becomes of them, the estimates have been printed.
    if gates is not None:
        parts = {"gate": found.gates(), "responsibility": found.responsibilities()}
        shares = {f"{name}[{k}]": v[:, k] for name, v in parts.items() for k in range(v.shape[1])}
        try:
            pd.DataFrame(shares).to_csv(gates, index=False)
        except OSError as error:
            raise InputError(f"{gates} cannot be written ({error.strerror}): pass another file") from None
    if plot is not None:
        style.save(fit_plot.plot_fit(found), plot)


@app.command()
def ratio(
    folder: Path,
    out: Annotated[Path | None, typer.Option(help="Figure of the quantiles (.svg, .png or .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Likelihood-ratio gaps of an exactly specified run against chi-square: was the maximum found?"""
    from moe_sim.plots import checks, style
    from moe_sim.simulation.likelihood_ratio import likelihood_ratio

    if out is not None:
        style.check(out)
    found = likelihood_ratio(ms.load_results(folder))
    rows = found.table.to_dict("records")
    if as_json:
        print(json.dumps(finite({"folder": str(folder), "likelihood_ratio": rows})))
    else:
        table = Table("n", "replicates", "not finite", "degrees", "mean gap", "KS distance", "p")
        for row in rows:
            table.add_row(
                f"{row['n']:g}", *(str(row[name]) for name in ("replicates", "not_finite", "degrees")),
                f"{row['mean']:.3f}", f"{row['ks']:.4f}", f"{row['p']:.3g}",
            )  # fmt: skip
        out_console.print(table)
    if out is not None:
        style.save(checks.plot_ratio(found), out)


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


def main() -> None:
    """Entry point: bad input becomes one line and exit status 2, Ctrl-C status 130."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ``_engine``
        signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = _warn
    try:
        status = app(standalone_mode=False) or 0  # outside standalone mode a typer.Exit comes back as its status
    except InputError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Exception as error:
        # Typer's own complaints about arguments are input errors too; anything else is a failure of ours.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message() or "pass a command, as in moe-sim claims")
    if status == 130:
        err_console.print("interrupted: what was done is kept, the same command goes on from there")
    sys.exit(status)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    err_console.print(f"warning: {' '.join(str(message).split())}", soft_wrap=True, markup=False, highlight=False)


def _fail(message: str) -> None:
    err_console.print(f"error: {' '.join(message.split())}", soft_wrap=True, markup=False, highlight=False)
    sys.exit(2)


def _show(found: ms.Estimate, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()))
        return
    shown = Table("parameter", Column("estimate", justify="right"), Column("standard error", justify="right"))
    frame = found.frame
    for name, value, spread in zip(frame["parameter"], frame["estimate"], frame["standard_error"], strict=True):
        shown.add_row(str(name).replace("[", "\\["), f"{value:.6g}", "–" if np.isnan(spread) else f"{spread:.4g}")
    out_console.print(shown)
    out_console.print(
        f"log-likelihood {found.loglik:.6f}, AIC {found.aic:.3f}, BIC {found.bic:.3f}, {found.df} parameters, "
        f"{found.n} rows; mean gates {', '.join(f'{g:.3f}' for g in found.gates().mean(axis=0))}", highlight=False,
    )  # fmt: skip
    out_console.print(found.explain(), highlight=False, markup=False)


def _print(results: ms.Results, verdicts: list[ms.Verdict], as_json: bool) -> None:
    if as_json:
        print(json.dumps(verdicts_json(results, verdicts)))
        return
    out_console.print(verdict_table(verdicts))
    for v in verdicts:
        out_console.print(f"{v.loss}: {v.reason}", highlight=False, markup=False)
        for line in _shape(v):
            out_console.print(f"  {line}", highlight=False, markup=False)
        for warning in v.warnings:
            out_console.print(f"  warning: {warning}", highlight=False, markup=False)
    if results.folder is not None:
        out_console.print(results.folder, highlight=False)


def _shape(v: ms.Verdict) -> list[str]:
    """How the slope depends on the window, in words. Of many sizes, some."""
    if v.slope is None or v.kind == "lower":
        return []
    share = f"{v.slope:.3f} in all"
    step = -(-len(v.dropping) // 6)
    for d in v.dropping[step - 1 :: step] if step else []:
        share += f", {d['slope']:.3f} from {d['from']:.3g} on"
    lines = [f"slope {share}"]
    if len(v.local_slopes) <= 8:
        local = ", ".join(f"{p['slope']:.3f} ± {(p['interval'][1] - p['interval'][0]) / 2:.3f}" for p in v.local_slopes)
        lines.append(f"slopes from size to size {local}")
    if v.excess is not None:
        lines.append(f"fit of the claimed function: p = {v.excess['lack_of_fit']:.2g}")
    return lines


def _last_moduli(folder: Path) -> list[Modulus]:
    try:
        return predictions.kept_moduli(folder)
    except InputError:
        return []


def _last(folder: Path) -> list[ms.Verdict]:
    try:
        return ms.judge(ms.load_results(folder))
    except InputError:
        return []
