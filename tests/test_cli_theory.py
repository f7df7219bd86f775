"""modulus, constants and check-model on the command line: what they print, what they keep, what they refuse."""

from __future__ import annotations

import json

import matplotlib.image
import numpy as np
import pytest
import test_two_point as two
import tomli_w
from tiny import contents, study, write

import moe_sim as ms
from moe_sim.plots import modulus as theory_plots
from moe_sim.plots import rates as plots
from moe_sim.simulation import predictions
from moe_sim.theory import modulus as searching

CLAIM = [{"loss": "voronoi", "exponent": 0.5, "log_power": 0.5, "window": [1e2, 1e4]}]
MODULUS_KEYS = {"loss", "eps", "omega", "kappa", "local_kappa", "exponent", "degenerate"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_modulus_as_json(folder, moe_sim, monkeypatch):
    status, out, err = moe_sim("modulus", write(folder), "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    assert set(found) == {"study", "digest", "moduli"} and found["study"] == "tiny"
    (m,) = found["moduli"]  # the function is no loss to search for
    assert m.keys() >= MODULUS_KEYS | {"claims", "lower_bound"}
    assert m["loss"] == "voronoi" and m["kappa"] == pytest.approx(1, abs=0.05) and not m["degenerate"]
    assert len(m["omega"]) == len(m["eps"]) == len(m["local_kappa"]) + 1
    assert m["claims"] == [{"kind": "upper", "exponent": 0.5, "log_power": 0.5, "agreement": "sharp"}]
    # Kept in the run folder, and not searched for again.
    monkeypatch.setattr(searching, "Search", lambda *_: pytest.fail("searched again"))
    assert moe_sim("modulus", "study.toml", "--json") == (0, out, "")
    assert (folder / "runs" / "tiny" / "moduli.json").is_file()


def test_modulus_in_words(folder, moe_sim):
    path = write(folder, fit__atoms=2)
    status, out, _ = moe_sim("modulus", path, "--loss", "voronoi", "--loss", "atoms:multi", "--out", "kept")
    assert status == 0
    told = " ".join(out.split())
    assert "voronoi: kappa from eps to eps" in told and "atoms:multi: kappa from eps to eps" in told
    assert "no estimator has a smaller worst risk than" in told and "sharp" in told
    assert (folder / "kept" / "moduli.json").is_file() and not (folder / "runs").exists()
    # One more loss is one more search; those that are known stay.
    before = predictions.kept_moduli("kept")
    assert moe_sim("modulus", path, "--loss", "mass", "--out", "kept")[0] == 0
    after = predictions.kept_moduli("kept")
    assert [m.loss for m in after] == ["voronoi", "atoms:multi", "mass"]
    assert [m.to_json() for m in after[:2]] == [m.to_json() for m in before]


def test_modulus_that_is_nothing(folder, moe_sim):
    (folder / "over.toml").write_text(tomli_w.dumps(two.independent()))
    status, out, _ = moe_sim("modulus", "over.toml", "--loss", "voronoi:r=2")
    told = " ".join(out.split())
    assert status == 0 and "no rate" in told and "the set of them has dimension 3" in told
    assert "at every n, if the parameter set is the box of the fit: fit.bound = 6, fit.bias_bound = 3" in told
    status, out, _ = moe_sim("modulus", write(folder), "--loss", "atoms:multi")
    assert status == 0 and "no neighbour of the truth has such a loss" in " ".join(out.split())
    assert "kappa from" not in out
    nothing = predictions.modulus(study(), ["atoms:multi"])
    assert all(path.is_file() for path in theory_plots.write_modulus(study(), nothing, folder))


def test_a_run_keeps_its_sizes_and_replicates(folder, moe_sim):
    """What needs no sampling takes nothing from a run that has grown beyond the study's file."""
    path = write(folder)
    assert moe_sim("run", path, "--replicates", "6", "--sizes", "1e2,1e3")[0] == 0
    before = (folder / "runs" / "tiny" / "study.toml").read_text()
    assert moe_sim("modulus", path)[0] == moe_sim("constants", path)[0] == 0
    assert (folder / "runs" / "tiny" / "study.toml").read_text() == before
    assert len(ms.load_results("runs/tiny").frame) == 12


def test_answers_of_another_version_are_found_anew(folder, moe_sim):
    path = write(folder)
    _, out, _ = moe_sim("modulus", path, "--json")
    _, constants, _ = moe_sim("constants", path, "--json")
    for name in ("moduli.json", "constants.json"):
        (folder / "runs" / "tiny" / name).write_text('{"moduli": [{"loss": "voronoi"}]}')
    assert moe_sim("modulus", path, "--json")[1] == out
    assert moe_sim("constants", path, "--json")[1] == constants


def test_damaged_answers_do_not_hide_the_registry(folder, moe_sim):
    name = "prefix-shared-linear-exact"
    (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / name / "moduli.json").write_text("{")
    status, out, _ = moe_sim("claims")
    assert status == 0 and name in out


def test_constants(folder, moe_sim):
    status, out, _ = moe_sim("constants", write(folder))
    assert status == 0 and "2 identified parameters, exact fit" in out
    status, out, err = moe_sim("constants", "study.toml", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "") and found["kind"] == "exact"
    by_loss = {c["loss"]: c for c in found["constants"]}
    assert set(by_loss["voronoi"]) == {"loss", "exponent", "constant", "error", "aggregate", "reason"}
    assert by_loss["voronoi"]["constant"] > 0
    assert (folder / "runs" / "tiny" / "constants.json").is_file()
    (folder / "over.toml").write_text(tomli_w.dumps(two.independent()))
    status, out, _ = moe_sim("constants", "over.toml")
    assert status == 0 and out.startswith("no constants: second derivatives are linear combinations")


def test_constants_of_spare_atoms_tell_of_ties(folder, moe_sim):
    status, out, _ = moe_sim("constants", write(folder, truth={"bias": [0.2, 0.1], "prefix": [[1.0], [-1.0]]},
                                                fit__atoms=3))  # fmt: skip
    assert status == 0 and "over fit; in " in out and "spare atoms fit nothing" in out


def test_check_model(folder, moe_sim):
    status, out, _ = moe_sim("check-model", write(folder, fit__atoms=2))
    assert status == 0 and "strongly identifiable" in out and "not strongly" not in out
    (folder / "over.toml").write_text(tomli_w.dumps(two.independent()))
    status, out, _ = moe_sim("check-model", "over.toml")
    assert status == 0 and "flat: value[0,0] - value[1,0]; value[0,1] - value[1,1]" in " ".join(out.split())
    assert "not strongly identifiable" in out and "d2F/d(value[0])2 = 0" in out
    status, out, err = moe_sim("check-model", "over.toml", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "") and set(found) == {
        "study", "digest", "tangents", "strong", "closures", "second_order"
    }  # fmt: skip
    assert [c["kind"] for c in found["closures"]] == ["splitting"] * 2
    assert all(atom["hides"] for atom in found["second_order"])


@pytest.mark.parametrize("command", ["modulus", "constants", "check-model"])
def test_a_study_that_does_not_exist(moe_sim, command):
    status, out, err = moe_sim(command, "no-such-study")
    assert (status, out) == (2, "") and "no-such-study" in err


def test_a_loss_that_is_not_known(folder, moe_sim):
    status, out, err = moe_sim("modulus", write(folder), "--loss", "voronoy")
    assert (status, out) == (2, "") and "'voronoy' is not known: pass voronoi" in err


def test_moving_truths_need_a_claim_on_a_loss(folder, moe_sim):
    path = write(
        folder, sample__truth="least-favourable", claim=[{"loss": "function", "exponent": 0.5, "window": [1e2, 1e4]}]
    )
    status, out, err = moe_sim("run", path)
    assert (status, out) == (2, "") and "add a [[claim]], as on voronoi" in err
    status, out, err = moe_sim("run", write(folder, sample__truth="moving", claim=CLAIM))
    assert (status, out) == (2, "") and "sample.truth = 'moving'" in err and "least-favourable" in err


def test_no_likelihood_ratio_of_moving_truths(folder, moe_sim):
    path = write(folder, sample__truth="least-favourable", claim=CLAIM)
    assert moe_sim("run", path, "--out", "moving")[0] == 0
    status, _, err = moe_sim("ratio", "moving")
    assert status == 2 and "the truth is not the given one" in err


def test_claims_table_has_claimed_simulated_and_modulus(folder, moe_sim):
    name = "prefix-shared-linear-exact"
    small = study(name=name)
    verdict = ms.judge(ms.run(small, folder / "runs" / name))[1]
    predictions.modulus(small, None, folder / "runs" / name)
    lines = moe_sim("claims")[1].splitlines()
    header = [cell.strip() for cell in next(line for line in lines if "claimed" in line).split("┃")]
    first = next(i for i, line in enumerate(lines) if f" {name} " in line)
    row = dict(zip(header, [cell.strip() for cell in lines[first + 1].split("│")], strict=True))
    assert (row["loss"], row["claimed"], row["modulus"]) == ("voronoi", "(log n / n)^0.5", "n^-0.5")
    assert row["simulated [95% interval]"].startswith(f"{verdict.slope:.3f} [")


def test_the_figure_shows_omega(folder):
    """One panel a loss, the line through eps and omega; as many rows in the table as points."""
    asked = study(fit__atoms=2)
    moduli = predictions.modulus(asked, ["voronoi", "atoms:multi"])
    figure = theory_plots.plot_modulus(asked, moduli)
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 2
    for axes, m in zip(panels, moduli, strict=True):
        np.testing.assert_allclose(axes.lines[0].get_xydata(), np.stack([m.eps, m.omega], axis=1))
        assert f"{m.kappa:.2f}" in axes.get_title() and "omega" in axes.get_ylabel()
    paths = theory_plots.write_modulus(asked, moduli, folder)
    assert {p.name for p in paths} >= {"tiny-modulus.svg", "tiny-modulus.png"}
    assert (folder / "tiny-modulus.csv").read_text().count("\n") == 1 + sum(len(m.eps) for m in moduli)
    height, width = matplotlib.image.imread(folder / "tiny-modulus.png").shape[:2]
    assert width > 300 and height > 300
    before = contents(folder)
    theory_plots.write_modulus(asked, moduli, folder)
    assert contents(folder) == before


def test_the_rate_figure_has_the_predicted_line():
    results = ms.run(study())
    predicted = predictions.constants(results.study)
    figure = plots.plot_rates(results, ms.judge(results), predicted)
    want = predicted["voronoi"]
    drawn = [line.get_xydata() for axes in figure.axes for line in axes.lines]
    assert any(len(points) >= 2 and np.allclose(points[:, 1], want.constant * points[:, 0] ** -0.5) for points in drawn)
