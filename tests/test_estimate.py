"""Fitting data of one's own: estimates, standard errors, criteria, the command line, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mixtures import MIXTURES, free_vector, softmax
from scipy.special import softmax as softmax_of
from tiny import call
from tiny import study as tiny_study

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.plots.fit import plot_fit
from moe_sim.plots.style import save

SETS = {s["name"]: s for s in json.loads((Path(__file__).parent / "r" / "hme.json").read_text())["sets"]}
X, Y = (np.array(SETS["sim_cross"][name], float) for name in ("x", "y"))


@pytest.fixture(scope="module")
def found():
    return ms.fit("softmax-gaussian", pd.DataFrame({"dose": X.ravel()}), pd.Series(Y.ravel(), name="answer"), atoms=2)


def test_the_estimate_says_what_it_is(found):
    assert found.certificate == "certified" and found.n == 200 and found.df == 8
    assert found.loglik == pytest.approx(SETS["sim_cross"]["polished"], abs=1e-6)
    assert found.aic == pytest.approx(16 - 2 * found.loglik)
    assert found.bic == pytest.approx(8 * np.log(200) - 2 * found.loglik)
    assert found.x_names == ["dose"] and found.y_names == ["answer"] and found.bounds == []
    assert found.explain().startswith("certified: stationary, and reached from ")
    assert list(found.frame.columns) == ["parameter", "estimate", "standard_error"] and len(found.frame) == 10


def test_the_parameters_are_rs(found):
    """In the order of their shares, the last gate at 0."""
    polished = {k: np.asarray(v, float) for k, v in SETS["sim_cross"]["polished_parameters"].items()}
    order = [int(np.argmin(np.abs(polished["variance"] - v))) for v in found.params["variance"]]
    for name in ("intercept", "slope", "variance"):
        assert found.params[name].ravel() == pytest.approx(polished[name][order].ravel(), rel=1e-5)
    for name in ("gate_bias", "gate_slope"):
        gate = polished[name].ravel()[order]
        assert found.params[name].ravel() == pytest.approx(gate - gate[-1], rel=1e-4, abs=1e-9)


def test_gates_posteriors_and_predictions_in_numpy(found):
    p = {k: np.asarray(v) for k, v in found.params.items()}
    logits = p["gate_bias"] + X.reshape(-1, 1) * p["gate_slope"][:, 0]
    mean = p["intercept"] + X.reshape(-1, 1) * p["slope"][:, 0]
    gate = softmax_of(logits, axis=1)
    assert found.gates() == pytest.approx(gate, abs=1e-12)
    assert found.gates(X[:3]) == pytest.approx(gate[:3], abs=1e-12)
    weighed = np.log(gate) - 0.5 * np.log(p["variance"]) - (Y.reshape(-1, 1) - mean) ** 2 / (2 * p["variance"])
    assert found.responsibilities() == pytest.approx(softmax_of(weighed, axis=1), abs=1e-12)
    assert found.predict(X)[:, 0] == pytest.approx(np.sum(gate * mean, axis=1), abs=1e-12)
    assert np.all(np.diff(found.responsibilities().mean(axis=0)) <= 0)


def test_standard_errors_are_the_sandwich(found):
    """H^-1 G H^-1 in natural parameters (last gate fixed), by finite differences of a naive log-density in numpy."""
    names = ("gate_bias", "gate_slope", "intercept", "slope", "variance")
    theta = np.concatenate([np.ravel(found.params[k])[: 1 if "gate" in k else 2] for k in names])

    def log_density(t):
        logits = np.column_stack([t[0] + t[1] * X.ravel(), np.zeros(len(X.ravel()))])
        mean = t[2:4] + X.reshape(-1, 1) * t[4:6]
        log_part = -0.5 * np.log(2 * np.pi * t[6:]) - (Y.reshape(-1, 1) - mean) ** 2 / (2 * t[6:])
        gates = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        return np.logaddexp.reduce(gates + log_part, axis=1)

    step = 1e-4 * np.eye(8)
    score = np.column_stack([(log_density(theta + h) - log_density(theta - h)) / 2e-4 for h in step])
    hessian = np.array([[
        np.sum(log_density(theta + a + b) - log_density(theta + a - b)
               - log_density(theta - a + b) + log_density(theta - a - b)) / 4e-8
        for a in step] for b in step])  # fmt: skip
    inverse = np.linalg.inv(hessian)
    expected = np.sqrt(np.diag(inverse @ score.T @ score @ inverse))
    ours = np.concatenate([np.ravel(found.errors[k])[: 1 if "gate" in k else 2] for k in names])
    assert ours == pytest.approx(expected, rel=1e-4)
    assert found.errors["gate_bias"][-1] == 0 and found.errors["gate_slope"][-1, 0] == 0


def test_other_units_give_the_same_fit(found):
    """x in other units and y shifted and scaled: the likelihood changes by the volume, the estimates accordingly."""
    other = ms.fit("softmax-gaussian", 100 + 1e3 * X, -5 + 1e-3 * Y, atoms=2)
    assert other.loglik - found.loglik == pytest.approx(200 * np.log(1e3), abs=1e-6)
    assert other.params["slope"] == pytest.approx(1e-6 * found.params["slope"], rel=1e-5)
    assert other.errors["slope"] == pytest.approx(1e-6 * found.errors["slope"], rel=1e-4)
    assert other.params["variance"] == pytest.approx(1e-6 * found.params["variance"], rel=1e-5)
    assert other.gates() == pytest.approx(found.gates(), abs=1e-6)


@pytest.fixture(scope="module")
def joint():
    rng = np.random.default_rng(20)
    side = rng.random(400) < 0.4
    x = np.where(side, -2.0, 1.5) + rng.normal(size=400) * np.where(side, 0.5, 0.8)
    y = np.where(side, 1.0 + x, 2.0 - x) + 0.3 * rng.normal(size=400)
    return x, y, ms.fit("gaussian-gated", x, y, atoms=2, starts=8)


def test_gaussian_gated_data(joint):
    """Clear clusters: each expert is the sample mean, covariance and regression of its points, nearly."""
    x, y, fit = joint
    assert fit.certificate == "certified" and fit.df == 11
    owner = np.argmax(fit.responsibilities(), axis=1)
    for k in range(2):
        mine = owner == k
        slope, intercept = np.polyfit(x[mine], y[mine], 1)
        assert fit.params["weight"][k] == pytest.approx(mine.mean(), abs=0.01)
        assert fit.params["center"][k, 0] == pytest.approx(x[mine].mean(), abs=0.03)
        assert fit.params["covariance"][k, 0, 0] == pytest.approx(x[mine].var(), rel=0.1)
        assert [fit.params["slope"][k, 0], fit.params["intercept"][k]] == pytest.approx([slope, intercept], abs=0.05)
    assert fit.gates().sum(axis=1) == pytest.approx(np.ones(400))


def test_a_spike_is_flagged_not_returned_as_a_success():
    """Two exact lines and as many experts: every variance goes to 0, the likelihood has no maximum."""
    x = np.linspace(-1, 1, 60)
    y = np.where(np.arange(60) % 2, 1 + x, -1 - 2 * x)
    found = ms.fit("softmax-gaussian", x, y, atoms=2, starts=4, budget=1)
    assert found.certificate == "degenerate" and "spike" in found.explain()
    assert any(name.startswith("log_variance") for name in found.bounds)
    assert np.isnan(found.errors["variance"]).any()


def test_a_model_of_ones_own(found):
    """A ``MixtureModel`` is fitted to the data as they are; its maximum is that of the named model."""
    case = softmax(2, 1, 1)
    other = ms.fit(case.model, X, Y, atoms=2, bound=50.0)
    assert other.loglik == pytest.approx(found.loglik, abs=1e-5)
    for params in (other.params, found.params):
        assert params["gate_bias"][-1] == 0 and np.all(params["gate_slope"][-1] == 0)
    theta, unflatten = free_vector(case, other.params)
    total = jnp.sum(jax.vmap(lambda a, b: case.model.log_density(unflatten(theta), a, b))(
        X.reshape(-1, 1), Y.reshape(-1, 1)))  # fmt: skip
    assert float(total) == pytest.approx(other.loglik, abs=1e-8)


GOOD = dict(model="softmax-gaussian", x=X.ravel(), y=Y.ravel(), atoms=2)


def spoilt(values, row, entry):
    values = values.ravel().astype(object if isinstance(entry, str) else float)
    values[row] = entry
    return values


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": "softmax"}, ("model = 'softmax'", "softmax-gaussian")),
        ({"atoms": 0}, ("atoms", "0")),
        ({"atoms": 2.5}, ("atoms", "2.5")),
        ({"x": spoilt(X, 7, np.nan)}, ("x column 'x' has nan in row 7", "drop or fill")),
        ({"y": spoilt(Y, 3, np.inf)}, ("y column 'y' has inf in row 3", "drop or fill")),
        ({"x": spoilt(X, 1, "high")}, ("x has 'high' in row 1", "code categories")),
        ({"x": X.ravel()[:-1]}, ("x has 199 rows and y 200", "as many")),
        ({"x": np.ones(200)}, ("x column 'x' is constant", "leave it out")),
        ({"y": np.zeros(200)}, ("y column 'y' is constant",)),
        ({"x": np.zeros((2, 2, 2))}, ("x has shape (2, 2, 2)", "pass (n,)")),
        ({"x": X.ravel()[:8], "y": Y.ravel()[:8]}, ("8 rows for 8 parameters", "lower atoms")),
        ({"estimator": "least-squares"}, ("estimator = 'least-squares'", "mle")),
        ({"estimator": "steps"}, ("estimator = 'steps'", "mle")),
        ({"starts": 0}, ("starts", "0")),
        ({"bound": float("nan")}, ("bound = nan is not finite", "pass a finite number")),
        ({"bound": -1}, ("bound = -1", "at least 0")),
        ({"bound": 0}, ("bound = 0", "positive number of standard deviations")),
        ({"bound": "50"}, ("bound = '50' is not a number",)),
        ({"seed": -1}, ("seed = -1", "whole number")),
        ({"seed": 1.5}, ("seed = 1.5", "whole number")),
        ({"model": tiny_study().problem.model}, ("PrefixModel object is a regression", "moe_sim.run")),
        ({"x": np.stack([X.ravel(), 3 * X.ravel() + 1], axis=1)}, ("x column 'x1' is a combination of the others",)),
        ({"model": MIXTURES["softmax-K3-d2-o2"].model}, ("x with 2 columns", "pass the columns")),
    ],
)
def test_bad_data_are_refused_with_the_remedy(change, words):
    with pytest.raises(InputError) as caught:
        ms.fit(**(GOOD | change))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_fit_knows_its_columns_by_name(found):
    named = replace(found, x_names=["dose"], y_names=["answer"], x_named=True, y_named=True)
    data = pd.DataFrame({"other": 0.0, "dose": X.ravel()})
    np.testing.assert_array_equal(named.predict(data), found.predict(X))
    np.testing.assert_array_equal(named.gates(data), found.gates(X))
    shuffled = pd.Series(Y.ravel(), name="answer").sample(frac=1, random_state=0)
    np.testing.assert_array_equal(named.responsibilities(data, shuffled), found.responsibilities())
    with pytest.raises(InputError, match="x has no column 'dose': pass those of the fit, dose"):
        named.predict(data[["other"]])
    with pytest.raises(InputError, match="y is missing: pass the y of these x"):
        named.responsibilities(data)
    with pytest.raises(InputError, match="x has 200 rows and y 5"):
        named.responsibilities(data, Y[:5])
    assert {"slope[0,dose]", "gate_slope[1,dose]", "intercept[0]"} <= set(named.frame["parameter"])
    assert {"slope[0,0]", "gate_slope[1,0]", "intercept[0]"} <= set(replace(found, x_named=False).frame["parameter"])
    assert len(repr(named)) < 200 and "loglik" in repr(named)


def test_a_gate_on_its_bound_is_explained(found):
    step = replace(found, bounds=["gate_slope[0,0]"])
    assert "On its bound: gate_slope[0,0]. A gate whose slope is on its bound is a step" in step.explain()
    assert "is a step" not in replace(found, bounds=["log_variance[0]"]).explain()


# The command line


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"dose": X.ravel(), "answer": Y.ravel(), "name": "a"}).to_csv("data.csv", index=False)
    return tmp_path


def test_fit_from_the_command_line(table, found, monkeypatch, capsys):
    arguments = ("fit", "data.csv", "--model", "softmax-gaussian", "--atoms", 2, "--x", "dose", "--y", "answer")
    status, out, _ = call(monkeypatch, capsys, *arguments, "--json", "--plot", "fit.svg")
    answer = json.loads(out)
    assert status == 0 and answer["certificate"] == "certified" and (table / "fit.svg").stat().st_size > 5000
    assert answer["loglik"] == pytest.approx(found.loglik, abs=1e-9) and answer["x"] == ["dose"]
    assert answer["estimates"]["variance"] == pytest.approx(list(found.params["variance"]))
    assert answer["standard_errors"]["slope"][0] == pytest.approx(list(found.errors["slope"][0]))
    assert sum(answer["gate_means"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("none.csv", "--model", "softmax-gaussian", "--atoms", 2), ("none.csv",)),
        (("ragged.csv", "--model", "softmax-gaussian", "--atoms", 2), ("ragged.csv is no CSV table", "equal rows")),
        (("data.csv", "--model", "softmax-gaussian", "--atoms", 2, "--x", "doze", "--y", "answer"), ("doze", "dose")),
        (
            ("data.csv", "--model", "softmax-gaussian", "--atoms", 2, "--x", "name", "--y", "answer"),
            ("'name' has 'a' in row 0",),
        ),
        (("data.csv", "--x", "dose,dose", "--y", "answer"), ("--x has 'dose' twice", "pass each column once")),
        (("data.csv", "--x", "dose", "--y", "dose"), ("column 'dose' is in x and in y",)),
        (("data.csv", "--x", "dose", "--y", "answer", "--bound", "0"), ("--bound = 0",)),
        (("data.csv", "--x", "dose", "--y", "answer", "--atoms", "0"), ("--atoms = 0 is out of range",)),
    ],
)
def test_the_command_line_refuses_bad_tables(table, monkeypatch, capsys, arguments, words):
    Path("ragged.csv").write_text("x,y\n1,2\n1,2,3\n")
    status, _, err = call(monkeypatch, capsys, "fit", *arguments)
    assert status == 2 and all(word in err for word in words), err


def test_a_file_that_cannot_be_written_loses_no_estimates(table, found, monkeypatch, capsys):
    monkeypatch.setattr(ms, "fit", lambda *_, **__: found)
    status, out, err = call(monkeypatch, capsys, "fit", "data.csv", "--y", "answer", "--gates", "nowhere/gates.csv")
    assert status == 2 and "nowhere/gates.csv cannot be written" in err and "pass another file" in err
    assert f"{found.loglik:.6f}" in out


def test_names_are_drawn_as_they_are(found, tmp_path):
    """Not as mathematics, though they have dollars in them; and no font that journals refuse."""
    figure = plot_fit(replace(found, x_names=["cost ($) per $"], y_names=[r"x$\foo$"]))
    save(figure, tmp_path / "fit.pdf")
    assert b"/Type3" not in (tmp_path / "fit.pdf").read_bytes()
    assert figure.axes[1].get_xlabel() == r"cost (\$) per \$"


def test_a_fit_is_drawn_on_own_axes(found):
    figure = Figure()
    own = figure.subplots(2, 1)
    assert ms.plot_fit(found, ax=own) is figure and figure.axes == list(own) and figure.legends == []
    assert own[1].get_ylabel() == "gating probability" and len(own[0].lines) == 2
    with pytest.raises(InputError, match="ax holds 1 axes: pass two"):
        ms.plot_fit(found, ax=own[0])


def test_one_expert_has_no_panel_of_gates():
    alone = ms.fit("softmax-gaussian", X, Y, atoms=1, starts=2, budget=1)
    (axes,) = ms.plot_fit(alone).axes
    assert axes.get_xlabel() == alone.x_names[0] and len(axes.lines) == 1


def test_several_covariates_are_drawn(tmp_path):
    s = SETS["airquality_plane"]
    fit = ms.fit("softmax-gaussian", s["x"], s["y"], atoms=2, starts=4, budget=1)
    save(plot_fit(fit), tmp_path / "fit.png")
    assert (tmp_path / "fit.png").stat().st_size > 20_000
