"""The audit: its protocols are studies on shared samples, and its table says what the verdicts say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe_sim.plots import checks
from moe_sim.rates.judge import judge
from moe_sim.simulation import audit
from moe_sim.simulation.audit import ROWS, load_protocol, protocols

pytestmark = pytest.mark.computes


def test_protocols_come_in_pairs_on_the_same_samples():
    for name in protocols():
        one = load_protocol(name)
        other = load_protocol(f"{name.rsplit('-', 1)[0]}-corrected")
        assert one.name == name and other.problem.sizes == one.problem.sizes
        assert other.problem.replicates == one.problem.replicates
        for n in one.problem.sizes:
            tables = "model", "truth", "law"
            assert one.cell_digest(n, *tables) == other.cell_digest(n, *tables)


def test_every_row_is_a_claim_of_its_protocol():
    for row in ROWS:
        assert row.loss in [claim.loss for claim in load_protocol(row.protocol).claims]


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The three protocols on prefixes, 20 replicates, three sizes."""
    rows = [row for row in ROWS if row.protocol.startswith("independent")]
    monkeypatch.setattr(audit, "ROWS", rows)
    whole = load_protocol
    monkeypatch.setattr(audit, "load_protocol", lambda name: whole(name).replace(sizes=[1e4, 1e5, 1e6, 1e7]))
    monkeypatch.chdir(tmp_path)
    return rows


def test_start_noise_that_shrinks_makes_what_cannot_converge_look_convergent(short, tmp_path, moe_sim):
    """Free prefixes, one too many: no estimator has a rate. The slope is that of the noise, -1/2.

    20 replicates a size; the slope of the shrinking start has a standard error of about 0.02.
    """
    done = audit.audit(tmp_path / "runs", quick=True)
    found = audit.table(done)
    shrinking, fixed, corrected = found["slope"]
    assert shrinking == pytest.approx(-0.5, abs=0.1) and min(fixed, corrected) > -0.35
    assert found["below"].iloc[0] < 5  # it is no failure to fit: these points are nearly as likely as any
    assert found["verdict"].tolist() == [judge(done[row.protocol])[0].verdict for row in short]
    for row, v in zip(found.to_dict("records"), (judge(done[r.protocol])[0] for r in short), strict=True):
        slopes = [v.slope, *(d["slope"] for d in v.dropping)]
        assert (row["dropped_low"], row["dropped_high"]) == (min(slopes), max(slopes))
    assert found["below"].iloc[2] == 0.0 and np.all(np.isfinite(found["below"]))

    paths = checks.write_audit(done, short, found, tmp_path / "figures")
    assert [p.name for p in paths] == ["audit.svg", "audit.png", "audit.csv"] and all(p.exists() for p in paths)
    status, out, _ = moe_sim("audit", "--quick", "--json", "--out", tmp_path / "runs")
    rows = json.loads(out)["rows"]
    assert status == 0 and [r["slope"] for r in rows] == pytest.approx([shrinking, fixed, corrected], rel=1e-6)
    assert "units below" in moe_sim("audit", "--quick", "--out", tmp_path / "runs")[1]
