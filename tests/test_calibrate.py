"""A short version of ``moe-sim calibrate``: 400 studies a law, fixed seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe_sim.rates import calibration
from moe_sim.rates.calibration import LossLaw, laws

STUDIES = 400


@pytest.fixture(scope="module")
def rows():
    return {row["law"]: row for row in calibration.calibrate(STUDIES, seed=1)}


def test_shares_add_up_and_every_law_is_there(rows):
    assert list(rows) == [law.name for law in laws()]
    for row in rows.values():
        assert row["supported"] + row["refuted"] + row["undecided"] == pytest.approx(1.0)
        assert row["wrong"] == pytest.approx(sum(row[v] for v in ("supported", "refuted", "undecided")
                                                 if v not in row["right"]))  # fmt: skip


def test_intervals_of_pure_powers_cover(rows):
    """0.95 within 4 binomial errors (0.044): for eight laws a correct interval fails once in 2,000 seeds."""
    pure = [law for law in laws() if law.name.startswith("n^-") and law.noise == "chi"]
    assert len(pure) >= 8
    for law in pure:
        assert abs(rows[law.name]["coverage"] - 0.95) < 4 * np.sqrt(0.95 * 0.05 / STUDIES), law.name


def test_wrong_verdicts_are_rare(rows):
    """At most 5% and three binomial errors (8.3%). On the margin itself 5% are wrong by design: one seed in 700."""
    for row in rows.values():
        assert row["wrong"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / STUDIES), row["law"]


def test_the_instrument_decides_where_it_can(rows):
    for e in (1.0, 0.5, 0.25):
        assert rows[f"n^-{e:g}, claimed so"]["supported"] > 0.9
        assert rows[f"n^-{0.8 * e:g}, claimed n^-{e:g}"]["refuted"] > 0.9
    assert rows["n^-0.5, near-minimisers stay"]["refuted"] > 0.9
    assert rows["5% failures, n^-0.5"]["supported"] == 0.0  # failures that do not shrink must not be averaged away


@pytest.mark.parametrize("noise", ["chi", "heavy"])
def test_the_noise_of_a_replicate_has_mean_one(noise):
    """40,000 replicates: the mean within 4.5 of its errors, a false alarm in 150,000 seeds."""
    law = LossLaw("", lambda n: np.ones_like(n), laws()[0].claim, (), noise=noise)
    rng = np.random.default_rng(0)
    values = np.concatenate([np.concatenate(calibration._synthetic(law, rng).loss) for _ in range(40)])
    assert np.mean(values) == pytest.approx(1.0, abs=4.5 * np.std(values) / np.sqrt(len(values)))


def test_a_row_does_not_depend_on_the_others(rows):
    name = laws()[5].name
    assert list(calibration.calibrate(STUDIES, 1, only={name})) == [rows[name]]


def test_command_line(moe_sim):
    status, out, err = moe_sim("calibrate", "--studies", "3", "--json")
    found = json.loads(out)
    assert status == 0 and found["studies"] == 3 and [r["law"] for r in found["rows"]] == [law.name for law in laws()]
    assert "calibrated: n^-1" in err
    status, out, _ = moe_sim("calibrate", "--studies", "2")
    assert status == 0 and "wrong" in out and "2 studies a law, 200 replicates" in out
    status, _, err = moe_sim("calibrate", "--studies", "x")
    assert status == 2 and "--studies has 'x'" in err
