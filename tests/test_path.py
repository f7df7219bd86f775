"""Truths that are formulas of n: what formulas say, the information along them, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import tomli_w
from numpy.polynomial.hermite_e import hermegauss

import moe_sim as ms
from moe_sim.fitting.measured import LossFunction
from moe_sim.study.path import tables_along

ALONG = Path(__file__).parents[1] / "studies" / "contaminated-along.toml"
GIVEN = {"slope": [[1.0], [2.0]], "bias": [0.5, -0.5], "scale": 2.0}
MOVED = {"prefix": "prefix0 * (1 + n**(-1/4))"}


@pytest.mark.parametrize("formula, value", [
    ("slope0 * (1 + n**(-1/2))", lambda n: (1 + n**-0.5) * np.array([[1.0], [2.0]])),
    ("[[1], [0]] / sqrt(n) + slope0", lambda n: np.array([[1 + n**-0.5], [2.0]])),
    ("-slope0 + +exp(-log(n)) * scale0", lambda n: np.array([[-1.0], [-2.0]]) + 2 / n),
    ("[[sin(n)], [cos(n) - 2 ** 3]]", lambda n: np.array([[np.sin(n)], [np.cos(n) - 8]])),
])  # fmt: skip
def test_formulas(formula, value):
    found = tables_along({"slope": formula}, GIVEN, [100, 10**6])
    for n in (100, 10**6):
        np.testing.assert_allclose(found[n]["slope"], value(float(n)), rtol=1e-14)
        assert found[n]["bias"] == GIVEN["bias"]


@pytest.mark.parametrize("changes, words", [
    ({"truth__path": 3}, "truth.path = 3"),
    ({"truth__path": {"key": "n"}}, "truth.path.key: truth has no key, pass formulas of bias, prefix"),
    ({"truth__path": {"prefix": 0.5}}, "truth.path.prefix = 0.5: pass a formula in quotes"),
    ({"truth__path": {"prefix": "prefix0 * (1 +"}}, r"is no formula \(.*\): mend it"),
    ({"truth__path": {"prefix": "prefix0 * m"}}, "truth.path.prefix: m is not known, pass .*, prefix0"),
    ({"truth__path": {"prefix": "prefix * 2"}}, "prefix is not known"),
    ({"truth__path": {"prefix": "__import__('os').getcwd()"}}, "is not known"),
    ({"truth__path": {"prefix": "prefix0 if n else 1"}}, "is not known"),
    ({"truth__path": {"prefix": "True"}}, "True is not known"),
    ({"truth__path": {"prefix": "n"}}, r"has shape \(\), truth.prefix \(1, 1\): pass a formula of that shape"),
    ({"truth__path": {"prefix": "[[1], [2, 3]]"}}, "rows of .* differ in length"),
    ({"truth__path": {"prefix": "prefix0 + [[1, 2], [3, 4], [5, 6]] + [1, 2, 3]"}}, "joins shapes"),
    ({"truth__path": {"prefix": "prefix0 / (n - 100)"}}, "is not finite at n = 100: mend the formula"),
    ({"truth__path": {"prefix": "prefix0 * n"}}, "truth.path at n = 100: truth.prefix has 100, outside"),
    ({"truth__path": MOVED, "sample__truth": "least-favourable"}, "both move the truth: leave one out"),
])  # fmt: skip
def test_bad_input(changes, words):
    with pytest.raises(ms.InputError, match=words):
        tiny.study(**changes)


def test_a_run_goes_along_its_path(tmp_path, moe_sim):
    """Each size is drawn from its own truth and measured from it; a folder grows; the digest knows the formula."""
    study = tiny.study(truth__path=MOVED)
    whole = ms.run(study, tmp_path / "whole")
    part = ms.run(study.replace(sizes=[1e3]), tmp_path / "part")
    part = ms.run(study, tmp_path / "part")
    assert part.frame.equals(whole.frame)
    assert study.digest != tiny.study().digest
    p = study.problem
    for n, rows in whole.frame.groupby("n"):
        truth = {k: np.asarray(v) for k, v in whole.truths[str(int(n))].items()}
        assert truth["prefix"] == pytest.approx(1 + n**-0.25)
        fitter = ms.Fitter(p.model, truth, p.options)
        theta = np.stack([
            fitter.flatten({"bias": np.array([b]), "prefix": np.array([[v]])})
            for b, v in zip(rows["estimate:bias[0]"], rows["estimate:prefix[0,0]"], strict=True)
        ])  # fmt: skip
        again = LossFunction(p.model, truth, p.law, [ms.loss_of(p.model, "voronoi")], p.options.atoms)(theta)
        np.testing.assert_allclose(again["voronoi"], rows["loss:voronoi"], rtol=1e-9)
    assert ms.load_study(tiny.write(tmp_path, truth__path=MOVED)).digest == study.digest
    tiny_file = tiny.write(tmp_path, truth__path=MOVED)
    status, out, _ = moe_sim("constants", tiny_file, "--json")
    told = json.loads(out)
    assert status == 0 and told["constants"] == [] and [row["n"] for row in told["path"]] == p.sizes
    status, out, _ = moe_sim("constants", tiny_file)
    assert status == 0 and "least eigenvalue" in out and "the truth moves with n" in out
    with pytest.raises(ms.InputError, match=r"\[truth.path\]: the truth is not the given one"):
        from moe_sim.simulation.likelihood_ratio import likelihood_ratio

        likelihood_ratio(whole)


def fisher(x, weights, eta: float, variance: float, known: float, bias: float) -> np.ndarray:
    """The information of one observation at (gate bias, gate slope 0, slope eta, variance) of a normal density of mean
    tanh(eta x) beside a known one of slope 1, by Gauss-Hermite nodes about both."""
    z, w = hermegauss(60)
    share = 1 / (1 + np.exp(-bias))
    means, deviations = (np.tanh(x), np.tanh(eta * x)), (np.sqrt(known), np.sqrt(variance))
    normal = lambda y, k: np.exp(-0.5 * ((y - means[k][:, None]) / deviations[k]) ** 2) / deviations[k]  # noqa: E731
    total = np.zeros((4, 4))
    for k, mass in ((0, 1 - share), (1, share)):
        y = means[k][:, None] + deviations[k] * z
        f0, f1 = normal(y, 0), normal(y, 1)
        p = (1 - share) * f0 + share * f1
        rest = (y - means[1][:, None]) / variance
        gate = share * (1 - share) * (f1 - f0) / p
        here = share * f1 / p
        slope = here * rest * (x * (1 - np.tanh(eta * x) ** 2))[:, None]
        spread = here * 0.5 * (rest**2 - 1 / variance)
        rows = np.stack([gate, gate * x[:, None], slope, spread])
        total += mass * np.einsum("aij,bij,i,j->ab", rows, rows, weights, w / w.sum())
    return total


def test_the_information_along_a_path():
    """Against quadrature in NumPy, and the slopes of the shared expectation: arXiv 2505.18455 with a flat gate."""
    study = ms.load_study(ALONG).replace(sizes=[1e4, 1e6])
    found = ms.constants(study)
    x, weights = study.problem.law.nodes()
    for row in found.path:
        information = fisher(x[:, 0], weights, 1 + row.n**-0.125, 0.01, 0.01, 1.0)
        bounds = np.sqrt(np.diag(np.linalg.inv(information)) / row.n)
        told = [row.bounds[name] for name in ("mass", "gate_slope", "slope", "variance")]
        np.testing.assert_allclose(told, bounds, rtol=2e-3)
    slopes = {name: np.log10(found.path[0].bounds[name] / found.path[1].bounds[name]) / 2 for name in row.bounds}
    assert slopes == pytest.approx({"mass": 0.28, "gate_slope": 0.41, "slope": 0.42, "variance": 0.48}, abs=0.012)
    assert found.constants == [] and "moves with n" in str(found.reason)
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_path_to_where_nothing_is_identified():
    """The prompt is the frozen expert itself from n = 1000 on: the curve ends, and says where."""
    tables = ms.load_study(ALONG).tables
    tables = tables | {"truth": tables["truth"] | {"path": {"slope": "slope0 * (1 + exp(-n / 20))"}}}
    found = ms.constants(ms.Study(**tables).replace(sizes=[1e1, 1e3, 1e5]))
    assert [row.n for row in found.path] == [10]
    assert str(found.reason).startswith("n = 1000: the information is singular")


def test_a_prompt_that_is_the_frozen_expert():
    """Derivatives along its gate are rounding, 1e-17, and tell nothing apart: they had counted as two more ranks."""
    tables = ms.load_study(ALONG).tables
    truth = {name: value for name, value in tables["truth"].items() if name != "path"}
    check = ms.check_model(ms.Study(**tables | {"truth": truth}))
    assert check.tangents[0].rank == 2
    assert {c.text for c in check.closures} == {"t -> gate_bias[0] + t", "t -> gate_slope[0,0] + t"}


@pytest.mark.parametrize("ask", [ms.modulus, ms.check_model, ms.possible_rates])
def test_what_is_about_one_truth_is_refused(ask):
    with pytest.raises(ms.InputError, match="this is about one truth and not that of each size"):
        ask(tiny.study(truth__path=MOVED))


def test_a_block_that_does_not_move_has_no_exponent(tmp_path, moe_sim):
    """The only atom of a model with constant weights has all the mass: its bound is 0 at every size."""
    tables = ms.load_study("input-free-known").tables
    one = {name: value[:1] for name, value in tables["truth"].items()} | {"weight": [1.0]}
    moved = {"slope": "slope0 * (1 + n**(-1/4))"}
    study = tables | {"truth": one | {"path": moved}, "fit": tables["fit"] | {"atoms": 1}, "claim": []}
    path = tmp_path / "one.toml"
    path.write_text(tomli_w.dumps(study))
    status, out, err = moe_sim("constants", path)
    assert status == 0, err
    assert "mass: bound" in out
