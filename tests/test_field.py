"""The registry as a picture: what it draws of constructed verdicts and moduli."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_rates import DECADES, verdict, wobble

import moe_sim as ms
from moe_sim.plots import field
from moe_sim.study.schema import Claim
from moe_sim.theory.modulus import Modulus

EPS = 0.3 * 0.5 ** np.arange(5)
HALF = Claim("voronoi", "upper", 0.5, window=(1e3, 1e8), mark="read")
NONE = Claim("voronoi", "lower", mark="recalled")


def modulus(omega):
    return Modulus("voronoi", EPS, omega, [(1,)] * 5, {}, [], [1] * 5)


@pytest.fixture
def entries():
    fast, slow = (verdict(HALF, wobble(DECADES**r)) for r in (-0.5, -0.2))
    return [
        field.Entry("one", HALF, fast, modulus(EPS)), field.Entry("one", HALF, slow, modulus(EPS**2)),
        field.Entry("two", NONE, None, modulus(np.zeros(5))), field.Entry("two", HALF, None, None),
        field.Entry("two", Claim("function", "exact", 0.5, mark="ours"), None, None),
    ]  # fmt: skip


def test_its_numbers(entries):
    table = field.field_table(entries)
    assert table["verdict"].tolist() == ["supported", "refuted", "not run", "not run", "not run"]
    np.testing.assert_allclose(table["claimed"], [0.5, 0.5, 0.0, 0.5, 0.5])
    np.testing.assert_allclose(table["possible"], [0.5, 0.25, 0.0, np.nan, 0.5])
    np.testing.assert_allclose(table["simulated"][:2], [0.5, 0.2], atol=1e-9)
    assert table["low"][0] <= 0.5 <= table["high"][0] and table["mark"].tolist()[:3] == ["read", "read", "recalled"]


def test_its_rows(entries, tmp_path):
    figure = field.plot_field(field.field_table(entries))
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert labels == ["one", "D  r", "D  r", "two", "D  m", "D  r", "function  =o"]
    assert [axes.get_ylim() for axes in figure.axes] == [figure.axes[0].get_ylim()] * 2  # rows of one height
    left = figure.axes[0]
    red = [line for line in left.lines if line.get_color() == "#D55E00"]
    assert red and all(np.allclose(line.get_ydata(), 2) for line in red)
    assert all(path.is_file() for path in field.write_field(entries, tmp_path))
    assert field.plot_field(field.field_table([])).axes  # nothing to draw is no error


def test_what_is_not_run_is_as_it_was(entries, tmp_path):
    """Rows of an earlier picture stay, those of the same claim of the same study."""
    entries = [replace(e, digest="same") for e in (entries[0], *entries[2:])]
    field.write_field(entries, tmp_path)
    bare = [replace(e, verdict=None, modulus=None) for e in entries]
    field.write_field(bare, tmp_path)
    kept, first = pd.read_csv(tmp_path / "field.csv"), field.field_table(entries)
    pd.testing.assert_frame_equal(kept, first.astype(kept.dtypes.to_dict()), rtol=1e-4)
    slower = verdict(HALF, wobble(DECADES**-0.2))
    field.write_field([replace(bare[0], verdict=slower), *bare[1:]], tmp_path)
    newer = pd.read_csv(tmp_path / "field.csv")
    assert newer["verdict"].tolist() == ["refuted", *kept["verdict"][1:]] and newer["possible"].equals(kept["possible"])
    field.write_field([replace(e, digest="another") for e in bare], tmp_path)
    assert set(pd.read_csv(tmp_path / "field.csv")["verdict"]) == {field.NOT_RUN}


def test_the_command_draws_it(moe_sim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "registry", lambda: ["prefix-shared-linear-exact"])
    status, out, err = moe_sim("claims", "--figure", "drawn")
    assert (status, err) == (0, "") and "drawn/field.svg" in out
    assert (tmp_path / "drawn" / "field.csv").read_text().count("\n") > 2


def test_exponents_are_those_of_the_figures_and_as_derived():
    """theory_notes/exponents.csv: kappa as derived by hand beside the computed one, which the modulus figures have."""
    root = Path(__file__).parents[1]
    rows = pd.read_csv(root / "theory_notes" / "exponents.csv", keep_default_na=False)
    assert len(rows) >= 45 and not rows.duplicated(["study", "loss"]).any()
    for row in rows.itertuples():
        if row.computed != "none" and not row.remark:
            assert abs(float(Fraction(row.derived)) - float(row.computed)) <= 0.05
        elif not row.remark:
            assert row.derived == "none"
        if row.study.startswith("studies/"):
            assert ms.load_study(root / f"{row.study}.toml").claims
            continue
        drawn = pd.read_csv(root / "figures" / f"{row.study}-modulus.csv")
        drawn = drawn[drawn["loss"] == row.loss]
        last = drawn["local_kappa"].dropna()
        if row.computed == "none":
            assert drawn["omega"].iloc[-1] < 1e-11
        else:
            assert abs(last.iloc[-1] - float(row.computed)) <= 0.006
