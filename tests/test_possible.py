"""The rate calculator: what it makes of moduli made up here, and what it says of small studies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import test_two_point as two
import tomli_w
from tiny import study, write

import moe_sim as ms
from moe_sim.losses.voronoi import loss_of
from moe_sim.theory import possible
from moe_sim.theory.closure import Closure
from moe_sim.theory.minimax import observations, total_variation
from moe_sim.theory.modulus import Modulus

P = study(fit__atoms=2).problem
ROW = possible.Row(loss_of(P.model, "atoms:2:prefix"), "atoms", "prefix", 2)
EPS = 0.3 * 0.5 ** np.arange(11)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(omega, eps=EPS):
    return Modulus("atoms:2:prefix", eps, omega, [(2,)] * len(eps), {}, [], [5] * len(eps), 3)


class TestConfidence:
    def test_a_power_has_settled_everywhere(self):
        found = possible.rate(P.model, ROW, made(3 * EPS**2), [])
        assert found.kappa == pytest.approx(2) and found.settled == (EPS[0], EPS[-1]) and found.limit is None
        assert found.exponent == pytest.approx(0.25) and found.agreeing == 5
        # From the size on that tells the largest of these distances from none.
        assert total_variation(P.model, 3 * EPS[0] ** 2, found.seen_from) == pytest.approx(0.5)

    def test_a_power_that_sets_in_late(self):
        omega = np.where(EPS > 0.01, 0.1 * EPS**1.2, 0.1 * 0.01**1.2 * (EPS / 0.01) ** 2)
        found = possible.rate(P.model, ROW, made(omega), [])
        assert found.kappa == pytest.approx(2) and found.settled[0] == EPS[EPS <= 0.01][0]

    def test_the_last_one_may_be_rounded(self):
        omega = 3 * EPS**2
        omega[-1] *= 1.2
        assert possible.rate(P.model, ROW, made(omega), []).kappa == pytest.approx(2)

    def test_a_power_that_still_moves(self):
        """kappa = 2 - eps^0.2: what it tends to, and from where it will be within 0.05 of that."""
        middle = np.sqrt(EPS[1:] * EPS[:-1])
        omega = np.exp(np.cumsum(np.append(0.0, (2 - middle**0.2) * np.diff(np.log(EPS)))))
        found = possible.rate(P.model, ROW, made(omega), [])
        assert found.settled is None and found.limit is not None and found.kappa == pytest.approx(2, abs=1e-6)
        assert found.limit[1] == pytest.approx(0.05 ** (1 / 0.2), rel=0.5) and found.limit[1] < EPS[-1]
        # omega goes on by that power from the last eps that was seen.
        omega_there = omega[-1] * (found.limit[1] / EPS[-1]) ** 2
        assert found.seen_from == pytest.approx(observations(P.model, omega_there), rel=1e-6)

    def test_one_that_goes_up_and_down(self):
        omega = EPS**2 * np.exp(0.3 * (-1.0) ** np.arange(len(EPS)))
        found = possible.rate(P.model, ROW, made(omega), [])
        assert found.settled is found.limit is found.seen_from is None and found.kappa is not None

    def test_too_few(self):
        assert possible.rate(P.model, ROW, made(EPS[:2], EPS[:2]), []).settled is None
        nothing = possible.rate(P.model, ROW, made(EPS[:0], EPS[:0]), [])
        assert nothing.kappa is nothing.exponent is nothing.agreeing is None
        assert nothing.to_json()["eps"] is None

    def test_a_degenerate_one_has_a_cause(self):
        def closure(kind, blocks):
            return Closure(kind, f"{kind} of {blocks}", [1], {}, blocks, 0.1, 0.0)

        every = [closure("splitting", ["prefix"]), closure("gauge", ["prefix"]), closure("splitting", ["other"])]
        zero = made(np.zeros(len(EPS)))
        found = possible.rate(P.model, ROW, zero, every)
        assert found.degenerate and found.exponent == 0 and found.cause == [c.text for c in every[:2]]
        alone = possible.Row(loss_of(P.model, "atoms:1:prefix"), "atoms", "prefix", 1)
        assert possible.rate(P.model, alone, zero, every).cause == [every[1].text]  # a split has no single cell
        whole = possible.Row(loss_of(P.model, "voronoi"), "", "voronoi")
        assert possible.rate(P.model, whole, zero, every).cause == [c.text for c in every]


def test_rows():
    names = [(row.block, row.cell) for row in possible.rows(P.model, P.truth, P.options.atoms)]
    assert names == [("voronoi", None), ("prefix", 2)]  # the only true atom shares its cell
    p = ms.load_study("softmax-gaussian-over-3").problem
    names = [(row.group, row.block, row.cell) for row in possible.rows(p.model, p.truth, p.options.atoms)]
    assert names[:4] == [("", "voronoi", None), *(("atoms", "gate_slope", cell) for cell in (1, 2, 3))]
    assert len(names) == 1 + 4 * 3


def test_claims_are_of_their_rows():
    p = ms.load_study("softmax-gaussian-gentle").problem
    model = p.model
    row = possible.Row(loss_of(model, "atoms:2:slope"), "atoms", "slope", 2)
    yes = ("atoms:multi:slope", "atoms:weighted:slope", "atoms:2:slope", "atoms:multi", "atoms:multi:slope+variance")
    no = ("atoms:single:slope", "atoms:3:slope", "atoms:multi:variance", "voronoi", "function", "mass")
    assert [row.is_in(loss_of(model, name)) for name in yes + no] == [True] * len(yes) + [False] * len(no)


def test_the_command(folder, moe_sim, few_starts):
    path = write(folder, fit__atoms=2, claim=[{"loss": "voronoi", "exponent": 0.5, "mark": "recalled"}])
    status, out, err = moe_sim("rates", path, "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert {"study", "rates", "closures", "gauges", "equations"} <= set(found)
    whole, block = found["rates"]
    assert {"group", "block", "cell", "kappa", "exponent", "degenerate", "claimed", "mark"} <= set(block)
    assert (block["group"], block["block"], block["cell"]) == ("atoms", "prefix", 2)
    assert block["kappa"] == pytest.approx(2, abs=0.05) and block["exponent"] == pytest.approx(0.25, abs=0.01)
    assert block["claimed"] is block["mark"] is None and not block["degenerate"]
    assert (whole["claimed"], whole["mark"]) == (0.5, "recalled") and whole["constant"]["constant"] > 0
    assert whole["claims"][0]["agreement"] == "sharp" and whole["kappa"] == pytest.approx(1, abs=0.05)
    # In words, from what was kept.
    status, out, _ = moe_sim("rates", path)
    told = " ".join(out.split())
    assert status == 0 and "n^-0.5 (recalled)" in told and "strongly identifiable" in told
    assert "second order shows all directions, so kappa is 2" in told


def test_what_makes_it_degenerate(folder, moe_sim, monkeypatch):
    for name, value in (("STARTS", 8), ("LEVELS", 2), ("SWEEPS", 0)):
        monkeypatch.setattr(f"moe_sim.theory.modulus.{name}", value)
    (folder / "over.toml").write_text(tomli_w.dumps(two.independent()))
    status, out, _ = moe_sim("rates", "over.toml")
    told = " ".join(out.split())
    assert status == 0 and "value in cells of 2: no rate" in told and "by atom 1 as two with one gate" in told
    assert "splitting: atom 1 as two with one gate" in told and "second order shows nothing of" in told


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("rates", "nowhere.toml"), "cannot be read"),
        (("rates", "no-such-claim"), "neither a file nor a claim"),
        (("rates",), "Missing argument"),
    ],
)
def test_bad_input(moe_sim, arguments, words):
    status, out, err = moe_sim(*arguments)
    assert (status, out) == (2, "") and words in " ".join(err.split())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"claim__0__mark": "heard"}, "claim[0].mark = 'heard'"),
        ({"claim__0__loss": "atoms:2:prefix"}, "no cell has 2 atoms where 1 are fitted to 1 true ones"),
        ({"claim__0__loss": "atoms:3", "fit__atoms": 2}, "no cell has 3 atoms where 2 are fitted to 1 true ones"),
        ({"claim__0__loss": "atoms:0"}, "atoms:0' is not known"),
        ({"claim__0__loss": "atoms:2:value"}, "atoms:2:value' is not known"),
    ],
)
def test_bad_claims(changes, words):
    with pytest.raises(ms.InputError, match=r".*") as caught:
        study(**changes)
    assert words in str(caught.value)
