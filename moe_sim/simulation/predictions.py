"""What theory says of a study without sampling: moduli, constants, identifiability, beside what the study claims.

Given a run folder ``out`` they are kept there (``moduli.json``, ``constants.json``), and found there the next time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_sim.errors import InputError
from moe_sim.losses.voronoi import loss_of
from moe_sim.rates.verdicts import finite
from moe_sim.simulation.runner import Results, kept_source
from moe_sim.simulation.store import RunFolder
from moe_sim.study.schema import Claim
from moe_sim.study.study import Study
from moe_sim.theory import asymptotics, identifiability
from moe_sim.theory.asymptotics import Constant, Constants
from moe_sim.theory.cancellation import Order, order
from moe_sim.theory.dependences import dependences
from moe_sim.theory.identifiability import ModelCheck
from moe_sim.theory.minimax import assumption, least_risk
from moe_sim.theory.modulus import Modulus
from moe_sim.theory.modulus import modulus as search
from moe_sim.theory.possible import Rate, asymptotic_exponent, rate, rows
from moe_sim.theory.projection import projection

VERSION = 3  # of what is kept: raised when numbers or their form change, so that older ones are computed anew


def modulus(
    study: Study, losses: list[str] | None = None, out: str | Path | None = None,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[Modulus]:  # fmt: skip
    """The ``Modulus`` of each loss; ``progress(loss, eps, omega)`` after each eps.

    losses: names; by default those that the study claims something of, but for the function's own, or else ``voronoi``.
    Ctrl-C loses the loss in hand at most. Raises ``InputError`` for a name that is no loss.
    """
    p = _inside(study).problem
    claimed = list(dict.fromkeys(c.loss for c in study.claims if c.loss != "function"))
    names = dict.fromkeys(losses or claimed or ["voronoi"])
    wanted = [loss_of(p.model, name, "loss") for name in names]
    folder = _folder(study, out)
    known = {m.loss: m for m in _kept_moduli(folder)}
    missing = [loss for loss in wanted if loss.name not in known]
    for found in search(p.model, p.truth, p.law, p.options, missing, progress):
        known[found.loss] = found
        if folder is not None:
            told = [m.to_json() for m in known.values()]
            folder.write_json("moduli.json", {"version": VERSION, "moduli": told})
    return [known[loss.name] for loss in wanted]


def kept_moduli(out: str | Path) -> list[Modulus]:
    """What a run folder holds of them, computing nothing."""
    return _kept_moduli(RunFolder(out))


def constants(study: Study, out: str | Path | None = None) -> Constants:
    """The predicted ``Constants`` of all losses of a study; where its truth moves by a formula, the information along
    that path."""
    p, folder = study.problem, _folder(study, out)
    if p.least_favourable is not None:
        return Constants("exact", reason=asymptotics.MOVING)
    if p.projected:
        nearest = projection(p.model, p.truth, p.law, p.options)
        return Constants("exact", reason=asymptotics.PROJECTED.format(nearest.risk, nearest.least))
    if p.truths:  # not kept: the sizes of a folder may grow
        return asymptotics.along(p.model, p.truths, p.law, p.options)
    kept = folder.read_json("constants.json") if folder is not None else {}
    if kept.get("version") == VERSION:
        return Constants.from_json(kept["constants"])
    found = asymptotics.constants(p.model, p.truth, p.law, p.options, p.losses)
    if folder is not None:
        folder.write_json("constants.json", {"version": VERSION, "constants": found.to_json()})
    return found


def constants_of(results: Results) -> Constants:
    """The ``constants`` of a run, as its folder has them, where it has some; nothing is added to it.

    A model from outside is not run for them, and none that moves has any.
    """
    if results.study.problem.projected:
        return Constants("exact", reason="fits come to a projection of the truth")
    if results.study.problem.truths:
        return Constants("exact", reason=asymptotics.ALONG)
    folder = results.folder
    if folder is not None and (folder / "constants.json").is_file():
        kept = RunFolder(folder).read_json("constants.json")
        if kept.get("version") == VERSION:
            return Constants.from_json(kept["constants"])
    if results.study.outside.facts is not None:
        return Constants("exact", reason="the model is code in the run folder, which is not run unasked")
    return constants(results.study)


def check_model(study: Study) -> ModelCheck:
    """Identifiability of a study's model at its truth, with as many atoms as it fits."""
    p = _inside(study).problem
    return identifiability.check_model(p.model, p.truth, p.law, p.options)


def cancellation(study: Study, cell: int = 2, atom: int = 1) -> list[Order]:
    """The ``Order`` of each block of a true atom (from 1) in whose Voronoi cell are so many fitted ones, for densities.

    From the derivative dependences of the density alone, without its modulus. Raises ``InputError`` where these are of
    a kind for which no system is known (``theory.dependences``).

    >>> import moe_sim as ms
    >>> [(o.block, o.kappa) for o in ms.cancellation(ms.load_study("input-free-known"), cell=2)]
    [('intercept', 2.0), ('slope', 2.0)]
    """
    p = study.problem
    if cell < 2:
        raise InputError(f"cell is {cell}: pass 2 or more, one atom alone hides behind none")
    system = dependences(p.model, p.truth, p.law, atom)
    return [order(system, block, cell, most=max(12, 2 * cell + 2)) for block in system.blocks]


def _inside(study: Study) -> Study:
    """The study, unless it is about a projection or a truth that moves by a formula. Raises ``InputError``."""
    if study.problem.truths:
        raise InputError(
            "[truth.path]: this is about one truth and not that of each size, leave the path out (moe-sim constants "
            "has the information along it)"
        )
    if study.problem.projected:
        raise InputError(
            "sample.truth = 'projection': this is about a truth that fits may reach, pass sample.truth = 'given' (the "
            "Hessian at the projection is told by moe-sim constants)"
        )
    return study


@dataclass(frozen=True)
class PossibleRates:
    """What rates are possible in a study's model: ``rates``, and what stands beside them, before any sampling."""

    study: Study
    rates: list[Rate]
    check: ModelCheck
    constants: Constants

    def claims(self, rate: Rate) -> list[Claim]:
        """What the study claims of such a loss."""
        p, row = self.study.problem, rate.row
        losses = [loss_of(p.model, claim.loss) for claim in self.study.claims]
        return [claim for claim, loss in zip(self.study.claims, losses, strict=True) if row.is_in(loss)]

    def constant(self, rate: Rate) -> Constant | None:
        """The predicted constant of such a loss, where there is one."""
        return next((c for c in self.constants.constants if c.loss == rate.row.loss.name and c.constant), None)

    def to_json(self) -> dict[str, Any]:
        """What ``moe-sim rates --json`` prints."""
        told = self.check.to_json()
        gauges = [c for c in told["closures"] if c["kind"] == "gauge"]
        return finite({
            "study": self.study.name, "digest": self.study.digest,
            "rates": [rate.to_json() | self._beside(rate) for rate in self.rates],
            "closures": [c for c in told["closures"] if c not in gauges], "gauges": gauges,
            "equations": self.check.equations, "second_order": told["second_order"],
        })  # fmt: skip

    def _beside(self, rate: Rate) -> dict[str, Any]:
        claims, constant = self.claims(rate), self.constant(rate)
        first = claims[0] if claims else None
        return {
            "claimed": None if first is None else first.exponent, "mark": None if first is None else first.mark,
            "claims": [
                {"kind": c.kind, "exponent": c.exponent, "log_power": c.log_power, "mark": c.mark,
                 "agreement": agreement(c, rate)} for c in claims
            ],
            "constant": None if constant is None else constant.to_json(),
        }  # fmt: skip


def possible_rates(
    study: Study, out: str | Path | None = None, progress: Callable[[str, float, float], None] | None = None
) -> PossibleRates:
    """The fastest possible rate of each block of the measure, by the number of atoms in a cell; no claim is needed.

    ``progress(loss, eps, omega)`` after each eps of a modulus. What is found is kept in the run folder ``out``; Ctrl-C
    loses the loss in hand at most.
    """
    p = study.problem
    asked = rows(p.model, p.truth, p.options.atoms)
    check = check_model(study)
    moduli = modulus(study, [row.loss.name for row in asked], out, progress)
    found = [rate(p.model, row, m, check.closures) for row, m in zip(asked, moduli, strict=True)]
    losses = [row.loss for row in asked]
    if p.least_favourable is not None:
        return PossibleRates(study, found, check, Constants("exact", reason=asymptotics.MOVING))
    return PossibleRates(study, found, check, asymptotics.constants(p.model, p.truth, p.law, p.options, losses))


def agreement(claim: Claim, found: Modulus | Rate) -> str | None:
    """A claim beside the fastest possible rate, to the margin of the claim; None where omega was found nowhere.

    ``sharp``: they are the same. ``not sharp``: the modulus allows a faster rate than the claimed bound.
    ``contradicted``: no estimator is so fast as claimed, or there is a rate where none is claimed. ``confirmed``: there
    is none. As far as the smallest eps reaches. ``not settled``: local exponents jump about there, and nothing is told.
    """
    m = found.modulus if isinstance(found, Rate) else found
    exponent = asymptotic_exponent(m)
    if exponent is None:
        return None if m.exponent is None else "not settled"
    if claim.kind == "lower":
        return "confirmed" if exponent == 0 else "contradicted"
    faster = exponent - (claim.exponent or 0.0)
    if abs(faster) <= claim.tolerance:
        return "sharp"
    return "not sharp" if faster > 0 and claim.kind == "upper" else "contradicted"


def modulus_json(study: Study, moduli: list[Modulus]) -> dict[str, Any]:
    """What ``moe-sim modulus --json`` prints: each modulus, the claims on its loss, and the minimax lower bound."""
    return finite({
        "study": study.name, "digest": study.digest,
        "moduli": [m.to_json() | {"claims": _claims(study, m), "lower_bound": lower_bound(study, m)} for m in moduli],
    })  # fmt: skip


def lower_bound(study: Study, found: Modulus) -> dict[str, Any] | None:
    """``risk``, what the worse of two measures costs every estimator at each of the ``sizes``, and the ``assumption``.

    Of the pairs (truth, G_eps) the best at each size. None where no bound is known (``minimax.least_risk``).
    """
    p = study.problem
    loss = loss_of(p.model, found.loss)
    risk = least_risk(p.model, p.truth, loss, found.measures, found.omega, p.sizes)
    if risk is None:
        return None
    return {"sizes": [float(n) for n in p.sizes], "risk": risk, "assumption": assumption(p.options)}


def _claims(study: Study, found: Modulus) -> list[dict[str, Any]]:
    return [
        {"kind": c.kind, "exponent": c.exponent, "log_power": c.log_power, "agreement": agreement(c, found)}
        for c in study.claims if c.loss == found.loss
    ]  # fmt: skip


def _folder(study: Study, out: str | Path | None) -> RunFolder | None:
    if out is None:
        return None
    folder = RunFolder(out)
    source = kept_source(study)
    folder.create(study.to_toml(), study.tables, study.digest, study.problem.seed, renew=False, source=source)
    return folder


def _kept_moduli(folder: RunFolder | None) -> list[Modulus]:
    kept = folder.read_json("moduli.json") if folder is not None else {}
    return [Modulus.from_json(m) for m in kept["moduli"]] if kept.get("version") == VERSION else []
