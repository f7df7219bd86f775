"""The commands about runs: run, verdict, plot, claims, figures, ratio."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import moe_sim as ms
from moe_sim.cli.console import (
    RUNS,
    Json,
    TrustModel,
    claimed,
    computing,
    fastest,
    out_console,
    parsed,
    reporting,
    searching,
    show_paths,
    slope_text,
    verdict_table,
    verdicts_json,
)
from moe_sim.errors import InputError, one_of, whole
from moe_sim.simulation.cluster import cluster

if TYPE_CHECKING:
    from moe_sim.theory.modulus import Modulus

app = typer.Typer()


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
    if width is not None:
        from moe_sim.simulation.adaptive import parse_budget

        limits = parsed("--width", width), *parse_budget(budget)
    with reporting() as report, contextlib.nullcontext() if dask is None else cluster(dask) as client:
        if width is None:
            results = ms.run(found, folder, report, client)
        else:
            results = ms.run_until(found, folder, *limits, report, client)
        if controls:
            results = ms.run_controls(results, report, client)
    verdicts = ms.judge(results)
    _print(results, verdicts, as_json)
    if require is not None and any(v.verdict != require for v in verdicts):
        raise typer.Exit(1)


@app.command("worst-case")
def worst_case(
    study: Annotated[str, typer.Argument(help="A study file with a [truth.grid].")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run folders; runs/NAME by default.")] = None,
    quick: Annotated[bool, typer.Option(help="At most 20 replicates a size.")] = False,
    as_json: Json = False,
) -> None:
    """Run a study at every truth of its grid; verdicts on the worst one at each size."""
    found = ms.load_study(study).replace(quick=quick)
    with reporting() as report:
        done = ms.worst_case(found, out or RUNS / found.name, report)
    verdicts = done.verdicts()
    if as_json:
        worst = {v.loss: {f"{n:g}": t for n, t in done.worst(v.loss).items()} for v in verdicts}
        head = {"study": found.name, "digest": found.digest, "worst": worst}
        print(json.dumps(head | {"verdicts": [v.to_json() for v in verdicts]}))
        return
    out_console.print(verdict_table(verdicts))
    for v in verdicts:
        out_console.print(f"{v.loss}: {v.reason}", highlight=False, markup=False)
        shown = Table("n", *(f"t = {t:g}" for t in done.results))
        for n, row in done.means(v.loss).iterrows():
            shown.add_row(f"{n:g}", *(f"{mean:.3g}" for mean in row))
        out_console.print(shown)


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
    from moe_sim.simulation.predictions import constants_of

    results = ms.load_results(folder)
    target = out or folder / "rates.svg"
    style.check(target)
    if results.controls:
        beside = target.with_name(f"{target.stem}-controls{target.suffix}")
        style.save(checks.plot_controls(results), beside)
        out_console.print(beside, highlight=False)
    # Drawing adds nothing to a run folder, which may be read-only.
    style.save(rates.plot_rates(results, ms.judge(results), constants_of(results)), target)
    out_console.print(target, highlight=False)


@app.command()
def claims(
    figure: Annotated[Path | None, typer.Option(help="Folder for a picture of it, field.svg.")] = None,
) -> None:
    """The registry, with the last verdicts below runs/: claimed, simulated, and what the modulus allows."""
    entries: list[tuple] = []
    table = Table("claim", "loss", "kind", "claimed", "simulated [95% interval]", "modulus", "last verdict")
    for name in ms.registry():
        study = ms.load_study(name)
        last, whole = _last(RUNS / name), hashlib.sha256(study.to_toml().encode()).hexdigest()[:16]
        moduli = {m.loss: m for m in _last_moduli(RUNS / name)}
        for k, claim in enumerate(study.claims):
            v = last[k] if k < len(last) else None
            entries.append((name, claim, v, moduli.get(claim.loss), whole))
            table.add_row(
                name if k == 0 else "", claim.loss, claim.kind, claimed(claim),
                slope_text(v.slope, v.interval) if v else "–", fastest(moduli.get(claim.loss)),
                v.verdict if v else "not run",
            )  # fmt: skip
    out_console.print(table)
    if figure is not None:
        from moe_sim.plots import field

        show_paths(field.write_field([field.Entry(*entry) for entry in entries], figure)[:1])


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Claims to draw; all of the registry by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("figures"),
) -> None:
    """Run the registry (or what runs/ lacks of it), draw its figures, print its verdicts."""
    from moe_sim.plots import contrasts, modulus, rates

    done: dict[str, Any] = {}
    known: dict[str, list[Modulus]] = {}
    paths = []
    for name in names or ms.registry():
        study = ms.load_study(name)
        with reporting() as report:
            results = ms.run(study, RUNS / name, report)
        done[name] = (results, ms.judge(results), ms.constants(study, RUNS / name))
        known[name] = ms.modulus(study, None, RUNS / name, searching(name))
        paths.append(modulus.write_modulus(study, known[name], out)[0])
    paths += rates.write_figures(done, out)
    paths += contrasts.write_contrasts({name: results for name, (results, *_) in done.items()}, known, out)
    out_console.print(verdict_table([v for _, verdicts, _ in done.values() for v in verdicts]))
    show_paths(paths)


@app.command()
def ratio(
    folder: Path,
    out: Annotated[Path | None, typer.Option(help="Figure of the quantiles (.svg, .png or .pdf).")] = None,
    trust_model: TrustModel = False,
    as_json: Json = False,
) -> None:
    """Likelihood-ratio gaps of an exactly specified run against chi-square: was the maximum found?"""
    from moe_sim.plots import checks, style
    from moe_sim.rates.verdicts import finite
    from moe_sim.simulation.likelihood_ratio import likelihood_ratio

    if out is not None:
        style.check(out)
    with computing():
        found = likelihood_ratio(ms.load_results(folder, trust_model))
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
    if not folder.is_dir():
        return []
    from moe_sim.simulation.predictions import kept_moduli

    try:
        return kept_moduli(folder)
    except InputError:
        return []


def _last(folder: Path) -> list[ms.Verdict]:
    if not folder.is_dir():
        return []
    try:
        return ms.judge(ms.load_results(folder))
    except InputError:
        return []
