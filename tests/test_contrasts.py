"""Figures of contrasts and of one column: the numbers in them from made-up results, their width and least letters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import moe_sim as ms
from moe_sim.plots import contrasts, rates
from moe_sim.theory.modulus import Modulus

NAMES = sorted({line.claim for what in contrasts.CONTRASTS.values() for line in what.lines})
OVER = {name: f"prefix-{name}-over" for name in rates.STRUCTURES}


def made(name: str) -> ms.Results:
    """Three replicates of two sizes, all losses 3 / sqrt(n), 4 / sqrt(n), 9 / sqrt(n)."""
    study = ms.load_study(name)
    n = np.repeat([10_000, 1_000_000], 3)
    values = np.tile([3.0, 4.0, 9.0], 2) / np.sqrt(n)
    losses = {f"{of}:{loss.name}": values for of in ("loss", "near") for loss in study.problem.losses}
    return ms.Results(study, pd.DataFrame({"n": n, "certificate": "certified", **losses}), {})


@pytest.fixture(scope="module")
def done():
    return {name: made(name) for name in [*NAMES, *OVER.values()]}


def least_letters(figure) -> float:
    return min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip())


@pytest.mark.parametrize("name", [name for name, what in contrasts.CONTRASTS.items() if not what.moduli])
def test_a_contrast_has_the_numbers_of_its_claims(name, done):
    what = contrasts.CONTRASTS[name]
    figure, data = contrasts.contrast(what, done)
    assert set(data["label"]) == {line.label for line in what.lines}
    for line in what.lines:
        found = data[data["label"] == line.label]
        np.testing.assert_allclose(found["value"], 4 / np.sqrt([1e4, 1e6]), rtol=1e-12)
        assert list(found["n"]) == [10_000, 1_000_000]
    assert figure.get_figwidth() <= 3.5 and least_letters(figure) >= 6.5


def test_a_contrast_of_moduli_has_their_numbers(tmp_path):
    eps = 0.3 * 0.5 ** np.arange(6)
    omegas = {"ls-laplace-tanh": 0.01 * eps**1.5, "ls-laplace-grid": np.zeros(6)}
    lines = contrasts.CONTRASTS["contrast-kinks"].lines
    known = {
        line.claim: [Modulus("voronoi", eps, eps, [(1,)] * 6, {}, [], [1] * 6),
                     Modulus(line.loss, eps, omegas[line.claim], [(1,)] * 6, {}, [], [1] * 6)]
        for line in lines
    }  # fmt: skip
    (path,) = contrasts.write_contrasts({}, known, tmp_path)
    data = pd.read_csv(path.with_suffix(".csv"))
    for line in lines:
        found = data[data["label"] == line.label]
        np.testing.assert_allclose(found["omega"], omegas[line.claim], rtol=1e-5)
        np.testing.assert_allclose(found["eps"], eps, rtol=1e-5)
    figure, _ = contrasts.contrast_of_moduli(contrasts.CONTRASTS["contrast-kinks"], known)
    assert figure.get_figwidth() <= 3.5 and least_letters(figure) >= 6.5
    guide = figure.axes[0].lines[1]
    assert np.allclose(np.diff(np.log(guide.get_ydata())) / np.diff(np.log(eps)), 1.5)


def test_a_contrast_waits_for_all_its_claims(tmp_path, done):
    only = {name: results for name, results in done.items() if name.startswith("temperature")}
    assert [path.name for path in contrasts.write_contrasts(only, {}, tmp_path)] == ["contrast-gauge.svg"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png", ".csv"}
    assert contrasts.write_contrasts({}, {}, tmp_path) == []


def test_the_headline_fits_a_column(done):
    over = {name: done[claim] for name, claim in OVER.items()}
    wide, data = rates.headline(over)
    narrow, same = rates.headline(over, stacked=True)
    assert narrow.get_figwidth() == 3.3 and wide.get_figwidth() == 7.6
    assert min(least_letters(narrow), least_letters(wide)) >= 6.5
    pd.testing.assert_frame_equal(data, same)
