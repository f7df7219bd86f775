"""The commands that need no sampling: rates, modulus, constants, check-model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import moe_sim as ms
from moe_sim.cli.console import RUNS, Json, claimed, computing, fastest, out_console, searching

if TYPE_CHECKING:
    from moe_sim.simulation.predictions import PossibleRates
    from moe_sim.theory.asymptotics import Information
    from moe_sim.theory.identifiability import ModelCheck, Tangent
    from moe_sim.theory.modulus import Modulus
    from moe_sim.theory.possible import Rate

app = typer.Typer()

StudyArgument = Annotated[str, typer.Argument(help="A study file, or the name of a claim of the registry.")]
Out = Annotated[Path | None, typer.Option(help="Run folder that keeps the answer; runs/NAME by default.")]


@app.command()
def rates(study: StudyArgument, out: Out = None, as_json: Json = False) -> None:
    """The rate calculator: for each block and number of atoms in a cell the fastest possible rate, no claim needed."""
    found = ms.load_study(study)
    from moe_sim.simulation.predictions import agreement

    with computing():
        possible = ms.possible_rates(found, out or RUNS / found.name, searching(found.name))
    if as_json:
        print(json.dumps(possible.to_json()))
        return
    table = Table("block", "atoms in the cell", "fastest rate", "kappa", "settled for eps", "seen from n", "starts",
                  "claimed", "agreement", "constant")  # fmt: skip
    for r in possible.rates:
        claims, constant = possible.claims(r), possible.constant(r)
        table.add_row(
            r.row.block, str(r.row.cell or "–"), fastest(r), _exponent(r), _settled(r),
            "–" if r.seen_from is None else f"{r.seen_from:.1g}", "–" if r.agreeing is None else str(r.agreeing),
            "\n".join(f"{claimed(c)} ({c.mark})" for c in claims) or "–",
            "\n".join(agreement(c, r) or "–" for c in claims) or "–",
            "–" if constant is None else f"{constant.constant:.3g}",
        )  # fmt: skip
    out_console.print(table)
    for line in [*_causes(possible), *_hidden(possible.check), *_closures(possible.check), *_equations(possible.check)]:
        out_console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def modulus(
    study: StudyArgument,
    loss: Annotated[
        list[str] | None, typer.Option(help="Loss, may be given again; by default those that the study claims.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The least distance of functions at each loss from the truth: exponents without sampling."""
    found = ms.load_study(study)
    from moe_sim.simulation import predictions

    with computing():
        moduli = predictions.modulus(found, loss, out or RUNS / found.name, searching(found.name))
    if as_json:
        print(json.dumps(predictions.modulus_json(found, moduli)))
        return
    table = Table("loss", "eps", "omega", "kappa", "fastest rate", "claimed", "agreement", "starts that agree")
    for m in moduli:
        if not len(m.eps):
            table.add_row(m.loss, "–", "–", "–", "no neighbour of the truth has such a loss")
            continue
        claims = [c for c in found.claims if c.loss == m.loss]
        table.add_row(
            m.loss, f"{m.eps[0]:.3g} to {m.eps[-1]:.3g}", f"{m.omega[0]:.3g} to {m.omega[-1]:.3g}",
            "–" if m.kappa is None else f"{m.kappa:.3f}", fastest(m), "\n".join(map(claimed, claims)) or "–",
            "\n".join(str(predictions.agreement(c, m) or "–") for c in claims) or "–",
            f"{min(m.agreeing)} at least" if m.agreeing else "–",
        )  # fmt: skip
    out_console.print(table)
    for m in filter(lambda m: len(m.eps), moduli):
        for line in _told(found, m):
            out_console.print(line, highlight=False, markup=False)


@app.command()
def constants(study: StudyArgument, out: Out = None, as_json: Json = False) -> None:
    """The predicted mean of each loss for large n, constant included; along a path of truths, their information."""
    found = ms.load_study(study)
    with computing():
        predicted = ms.constants(found, out or RUNS / found.name)
    if as_json:
        print(json.dumps({"study": found.name, "digest": found.digest, **predicted.to_json()}))
        return
    if predicted.path:
        out_console.print(_path_table(predicted.path))
    if predicted.reason is not None:
        out_console.print(f"no constants: {predicted.reason}", highlight=False)
        return
    table = Table("loss", "predicted mean", "error", f"at n = {found.problem.sizes[-1]:g}", "why not")
    for c in predicted.constants:
        if c.constant is None:
            table.add_row(c.loss, "–", "–", "–", c.reason)
        else:
            value = f"{c.constant:.5g} n^-{c.exponent:g}" + (" (rms)" if c.aggregate == "rms" else "")
            table.add_row(c.loss, value, f"{c.error:.1g}", f"{c.at(found.problem.sizes[-1]):.5g}", "")
    out_console.print(table)
    ties = f"; in {predicted.ties:.1%} of the draws spare atoms fit nothing" if predicted.ties else ""
    out_console.print(f"{predicted.parameters} identified parameters, {predicted.kind} fit{ties}", highlight=False)


def _path_table(path: list[Information]) -> Table:
    """Bounds by size, and from one size to the next their local exponents."""
    blocks = list(path[0].bounds)
    table = Table("n", "least eigenvalue", *(f"{block}: bound, n^-" for block in blocks))
    for before, now in zip([None, *path], path, strict=False):
        cells = []
        for block in blocks:
            local = ""
            if before is not None and now.bounds[block] > 0:
                fall = math.log(before.bounds[block] / now.bounds[block]) / math.log(now.n / before.n)
                local = f"  {fall:.3f}"
            cells.append(f"{now.bounds[block]:.3g}{local}")
        table.add_row(f"{now.n:g}", f"{now.least:.2e}", *cells)
    return table


@app.command()
def check_model(study: StudyArgument, as_json: Json = False) -> None:
    """Which directions the data cannot see, and which derivatives of the model depend on others."""
    found = ms.load_study(study)
    with computing():
        check = ms.check_model(found)
    if as_json:
        print(json.dumps({"study": found.name, "digest": found.digest, **check.to_json()}))
        return
    table = Table("fitted atoms on each true one", "parameters", "rank", "least kept", "most dropped", "second order")
    for t in check.tangents:
        table.add_row(
            " + ".join(map(str, t.cells)), str(t.parameters), str(t.rank), f"{t.kept:.1e}", f"{t.dropped:.1e}", _seen(t)
        )
    out_console.print(table)
    for line in [*_directions(check), *_hidden(check), *_closures(check), *_equations(check)]:
        out_console.print(line, highlight=False, markup=False, soft_wrap=True)


def _told(study: ms.Study, m: Modulus) -> list[str]:
    """A modulus in words: how kappa settles, what a degenerate one means, what no estimator can beat."""
    from moe_sim.simulation.predictions import lower_bound

    if m.degenerate:
        lines = [f"{m.loss}: measures at every such distance have the function of the truth, to rounding; the set of "
                 f"them has dimension {m.dimension}"]  # fmt: skip
    else:
        lines = [f"{m.loss}: kappa from eps to eps {', '.join(f'{k:.2f}' for k in m.local_kappa)}"]
    kinds = [f"{' + '.join(map(str, cells))}: {_kappa(m, cells)}" for cells in m.by_cells]
    if len(kinds) > 1:
        lines.append(f"{m.loss}: kappa by fitted atoms in the cell of each true one {', '.join(kinds)}")
    bound = lower_bound(study, m)
    if bound is not None:
        first, last = bound["risk"][0], bound["risk"][-1]
        same = math.isclose(first, last, rel_tol=1e-9)
        values = f"{first:.3g} at every n" if same else f"{first:.3g} at n = {bound['sizes'][0]:g}, {last:.3g} at "
        values += "" if same else f"{bound['sizes'][-1]:g}"
        lines.append(f"{m.loss}: no estimator has a smaller worst risk than {values}, if {bound['assumption']}")
    return lines


def _kappa(m: Modulus, cells: tuple[int, ...]) -> str:
    kappa = m.kappa_with(cells)
    if kappa is None:
        return "not settled"
    return "degenerate" if math.isinf(kappa) else f"{kappa:.2f}"


def _seen(t: Tangent) -> str:
    if t.flat:
        return "flat: " + "; ".join(t.flat)
    if t.curvature is None:
        return "not needed"
    return f"least curvature {t.curvature:.1e}"


def _directions(check: ModelCheck) -> list[str]:
    """Null directions."""
    lines = []
    for t in check.tangents:
        if t.null:
            lines.append(f"{' + '.join(map(str, t.cells))}: {t.parameters - t.rank} directions unseen at first order, "
                         f"{t.trivial} of which leave the measure as it is:")  # fmt: skip
            lines += [f"    {line}" for line in t.null]
    return lines


def _equations(check: ModelCheck) -> list[str]:
    if check.strong:
        return [f"strongly identifiable: the {check.functions} derivatives up to second order are independent"]
    lines = [f"not strongly identifiable: {check.functions} derivatives up to second order, rank {check.rank}"]
    return lines + [f"    {line}" for line in check.equations]


def _closures(check: ModelCheck) -> list[str]:
    """Other measures with the function of the truth."""
    if not check.closures:
        return ["no other measure with the function of the truth was found: no gauge, no split or doubled atoms"]
    return [
        f"{c.kind}: {c.text} (Voronoi loss {c.loss:.3g}, difference of functions {c.difference:.0e}"
        + (f", a set of dimension {c.dimension})" if c.dimension else ")")
        for c in check.closures
    ]


def _hidden(check: ModelCheck) -> list[str]:
    """What a cell of two hides at second order."""
    lines = []
    for s in check.second_order:
        hidden = f"nothing of {s.direction} ({s.least:.0e}): kappa is above 2, or there is no rate"
        shown = f"all directions, so kappa is 2 (least {s.least:.1e}, of {s.direction})"
        lines.append(f"two atoms on atom {s.atom}: second order shows {hidden if s.hides else shown}")
    return lines


def _exponent(r: Rate) -> str:
    if r.degenerate or r.kappa is None:
        return "–"
    return f"{r.kappa:.2f}" if r.limit is None else f"{r.modulus.kappa:.2f}, tends to {r.kappa:.2f}"


def _settled(r: Rate) -> str:
    if r.degenerate:
        return "no rate"
    if r.settled is not None:
        return f"{r.settled[0]:.2g} to {r.settled[1]:.2g}"
    if r.limit is not None:
        return f"still moves, below {r.limit[1]:.1g}"
    return "not settled" if len(r.modulus.eps) else "no such neighbour"


def _causes(possible: PossibleRates) -> list[str]:
    """What makes a row degenerate."""
    lines = []
    for r in filter(lambda r: r.degenerate, possible.rates):
        where = r.row.block if r.row.cell is None else f"{r.row.block} in cells of {r.row.cell}"
        m = r.modulus
        lines.append(f"{where}: no rate, a set of measures of dimension {m.dimension} has the function of the truth")
        lines += [f"    by {text}" for text in r.cause] or ["    by none of the closures below: see moe-sim modulus"]
    return lines
