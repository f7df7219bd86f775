"""Models from outside the package: what is loaded and what is not, how a study is known, and what its folder keeps."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import shutil
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
import tomli_w
from outside import DENSITY, LABELS, SIGMOID, TABLES, tables, write
from tiny import call, contents, study

import moe_sim as ms
from moe_sim.models.sources import difference, tokens
from moe_sim.simulation import runner
from moe_sim.simulation.store import RunFolder, platform_facts

HELPED = SIGMOID.replace("import jax\n", "import helper\nimport jax\n", 1).replace(
    'jax.nn.sigmoid(params["bias"])', 'helper.gate(params["bias"])'
)
HELPER = "import jax\n\n\ndef gate(z):\n    return jax.nn.sigmoid({} * z)\n"
TRAP = "from pathlib import Path\n\nPath({!r}).write_text('run')\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mean(study: ms.Study) -> float:
    p = study.problem
    return float(p.model.mean({k: np.asarray(v) for k, v in p.truth.items()}, np.array([1.0]))[0])


class TestLoading:
    def test_the_same_text_is_the_same_class(self, folder):
        one, two = (ms.load_study(write(folder / name)) for name in "ab")
        assert type(one.problem.model) is type(two.problem.model)
        other = ms.load_study(write(folder / "c", {"sigmoid.py": SIGMOID + "\n# another\n"}))
        assert type(other.problem.model) is not type(one.problem.model) and other.digest == one.digest

    def test_siblings_are_their_own(self, folder):
        before = list(sys.path)
        made = [
            ms.load_study(write(folder / str(k), {"sigmoid.py": HELPED, "helper.py": HELPER.format(k)})) for k in (1, 3)
        ]
        assert [mean(s) for s in made] == pytest.approx([1 / (1 + np.exp(-0.2)), 1 / (1 + np.exp(-0.6))])
        assert sys.path == before and "helper" not in sys.modules
        assert made[0].digest != made[1].digest

    @pytest.mark.parametrize("how", ["from helper import gate", "from . import helper", "from .helper import gate"])
    def test_ways_to_import_a_sibling(self, folder, how):
        text = HELPED.replace("import helper", how).replace("helper.gate", "gate" if "gate" in how else "helper.gate")
        made = ms.load_study(write(folder, {"sigmoid.py": text, "helper.py": HELPER.format(2)}))
        assert mean(made) == pytest.approx(1 / (1 + np.exp(-0.4))) and set(made.outside.sources.texts) == {
            "sigmoid.py",
            "helper.py",
        }

    def test_a_file_that_asks_where_it_lies(self, folder):
        text = (
            SIGMOID + "\nfrom pathlib import Path\nNUMBER = float(Path(__file__).with_name('number.txt').read_text())\n"
        )
        text = text.replace("return self.scale", "return NUMBER * self.scale")
        for name, number in (("a", "1"), ("b", "2")):
            (folder / name).mkdir()
            (folder / name / "number.txt").write_text(number)
        one, two = (mean(ms.load_study(write(folder / name, {"sigmoid.py": text}))) for name in "ab")
        assert two == pytest.approx(2 * one)

    def test_a_path_is_from_where_the_study_lies(self, folder):
        write(folder / "models")
        path = folder / "studies" / "own.toml"
        path.parent.mkdir()
        path.write_text(tomli_w.dumps(tables(model__family="../models/sigmoid.py:SigmoidGate")))
        assert mean(ms.load_study(path)) == mean(ms.Study(folder=folder / "models", **tables()))

    def test_what_it_prints_is_not_our_output(self, folder, monkeypatch, capsys):
        text = SIGMOID.replace("import jax\n", "import jax\nprint('loaded')\n", 1).replace(
            "        weight =", "        print('traced')\n        jax.debug.print('computed')\n        weight ="
        )
        path = write(folder, {"sigmoid.py": text})
        status, out, err = call(monkeypatch, capsys, "run", path, "--json")
        assert status == 0 and len(json.loads(out)["verdicts"]) == 2
        assert "loaded" in err and "traced" in err and "computed" in err

    def test_frozen_experts_beside_a_study(self, folder):
        text = "import moe_sim as ms\nknown = ms.Frozen.quadratic([[[0.1]]], [0.0], [[[0.8]]])\n"
        (folder / "known.py").write_text(text)
        made = study(model__frozen={"functions": "known:known"})
        assert set(made.outside.sources.texts) == {"known.py"}
        assert mean(made) == mean(study()) and made.digest != study().digest
        assert mean(study(model__frozen={"functions": "known.py:known"})) == mean(study())
        with pytest.raises(ms.InputError, match=r"'known\.py:ms' is no moe_sim\.Frozen"):
            study(model__frozen={"functions": "known.py:ms"})
        ms.run(made, folder / "run")
        assert not ms.load_results(folder / "run").study.outside.checked

    def test_frozen_experts_of_an_installed_module(self, folder, monkeypatch):
        text = "import moe_sim as ms\nknown = ms.Frozen.quadratic([[[0.1]]], [0.0], [[[0.8]]])\n"
        (folder / "lib").mkdir()
        (folder / "lib" / "installed_known.py").write_text(text)
        monkeypatch.syspath_prepend(folder / "lib")
        made = study(model__frozen={"functions": "installed_known:known"})
        assert set(made.outside.sources.texts) == {"installed_known.py"} and mean(made) == mean(study())


class TestIdentity:
    def test_comments_do_not_count_and_code_does(self, folder):
        made = ms.load_study(write(folder))
        spaced = SIGMOID.replace("    def mean", "    # what it is\n\n\n    def mean").replace("x):", "x):  # one x")
        assert ms.load_study(write(folder, {"sigmoid.py": spaced})).digest == made.digest
        changed = ms.load_study(write(folder, {"sigmoid.py": SIGMOID.replace("weight @", "2 * weight @")}))
        assert changed.digest != made.digest
        assert changed.cell_digest(100, "model", "truth") == made.cell_digest(100, "model", "truth")

    def test_a_study_without_code_is_known_as_before(self):
        assert study().digest.startswith("c8f402635455a298")

    def test_tokens(self):
        text = 'a = f"{b!r:>{width}} {f"{c}"}"\nif a:\n    pass  # nothing\n'.replace('{f"{c}"}', "{c}")
        assert [t for t, _ in tokens(text)][:4] == ["a", "=", 'f"{b!r:>{width}} {c}"', "NEWLINE"]
        assert difference({"m.py": text}, {"m.py": text.replace("  # nothing", "\n\n")}) is None
        assert (
            difference({"m.py": text}, {"m.py": text.replace("pass", "a")})
            == "m.py line 3 was `pass  # nothing` and is now `a  # nothing`"
        )
        assert (
            difference({"m.py": "a = 1\n"}, {"m.py": "a = 1\nb = 2\n"})
            == "m.py line 2 was not there and is now `b = 2`"
        )
        assert difference({"m.py": "a = 1\n"}, {}) == "m.py was there and is now gone"
        twice = 'a = """b\n c"""\n'
        assert difference({"m.py": twice}, {"m.py": twice.replace(" c", "c")}).startswith("m.py line 1 was")

    def test_a_study_of_an_object_is_that_of_its_file(self, folder, monkeypatch):
        made = ms.load_study(write(folder))
        monkeypatch.syspath_prepend(folder)
        kind = importlib.import_module("sigmoid").SigmoidGate
        found = ms.Study(**TABLES | {"model": kind(1, np.float64(0.3))})
        assert found.tables["model"] == {**TABLES["model"], "scale": 1.0}
        again = ms.Study(folder=folder, **found.tables)
        assert found.digest == again.digest != made.digest  # the default is written out
        results = ms.run(found, folder / "run")
        assert results.study is found and [v.verdict for v in ms.judge(results)] == [
            v.verdict for v in ms.judge(ms.load_results(folder / "run"))
        ]
        (folder / "own.toml").write_text(found.to_toml())
        assert ms.load_study(folder / "own.toml").digest == found.digest
        vector = ms.Study(**TABLES | {"model": kind(1, 0.3, np.array([2.0]))})
        assert vector.tables["model"]["scale"] == [2.0]
        del sys.modules["sigmoid"]

    def test_an_object_of_a_notebook_runs_in_memory(self):
        space = {"__name__": "__main__"}
        exec(SIGMOID, space)
        made = ms.Study(**TABLES | {"model": space["SigmoidGate"](1, 0.3)})
        assert len(ms.run(made).frame) == 9 and made.tables["model"]["family"] == "__main__:SigmoidGate"
        assert [m.loss for m in ms.modulus(made, ["voronoi"])] == ["voronoi"]
        assert made.replace(seed=3).problem.model is made.problem.model
        with pytest.raises(ms.InputError, match="put the class in a file"):
            list(runner._there(made, None, [], {}))


class TestRunFolders:
    @pytest.fixture
    def run(self, folder, monkeypatch, capsys):
        """A run folder whose copy of the model, were it run, would write ``trapped``."""
        path = write(folder)
        assert call(monkeypatch, capsys, "run", path, "--out", "run", "--controls")[0] == 0
        copy = folder / "run" / "model" / "sigmoid.py"
        assert copy.read_text() == SIGMOID
        for at in (copy, *folder.glob("run/controls/*/model/sigmoid.py")):
            at.write_text(SIGMOID + "\n" + TRAP.format(str(folder / "trapped")))
        return folder / "run"

    def test_nothing_of_it_is_run_unasked(self, run, folder, monkeypatch, capsys):
        (folder / "own.toml").unlink()
        (folder / "sigmoid.py").unlink()
        before = contents(run)
        status, out, _ = call(monkeypatch, capsys, "verdict", "run", "--json")
        assert (
            status == 0
            and len(json.loads(out)["verdicts"]) == 2
            and len(json.loads(out)["verdicts"][0]["controls"]) == 4
        )
        assert call(monkeypatch, capsys, "plot", "run", "--out", "rates.svg")[0] == 0
        shutil.copytree(run, folder / "runs" / "prefix-shared-linear-over")
        assert call(monkeypatch, capsys, "claims")[0] == 0
        for command in (("replay", "run", "--size", "1e3", "--replicate", "1"), ("ratio", "run")):
            status, out, err = call(monkeypatch, capsys, *command)
            assert (status, out, err.count("\n")) == (2, "", 1) and "pass --trust-model" in err
        results = ms.load_results(run)
        p = results.study.problem
        for compute in (
            lambda: p.model.mean(p.truth, np.zeros(1)), lambda: p.model.measure(p.truth),
            lambda: p.model.draw_rows(p.truth, p.law, None, None, 3), lambda: ms.modulus(results.study),
        ):  # fmt: skip
            with pytest.raises(ms.InputError, match="pass --trust-model"):
                compute()
        assert contents(run) == before and not (folder / "trapped").exists()

    def test_where_it_is_trusted_it_is(self, run, folder, monkeypatch, capsys):
        arguments = ("replay", "run", "--size", "1e3", "--replicate", "1", "--trust-model", "--json")
        status, out, _ = call(monkeypatch, capsys, *arguments)
        assert status == 0 and json.loads(out)["differs"] == [] and (folder / "trapped").exists()
        status, out, _ = call(monkeypatch, capsys, "ratio", "run", "--trust-model", "--json")
        assert status == 0 and len(json.loads(out)["likelihood_ratio"]) == 3

    def test_the_users_own_file_goes_on(self, folder, monkeypatch, capsys):
        path = write(folder)
        assert call(monkeypatch, capsys, "run", path, "--out", "run")[0] == 0
        write(folder, {"sigmoid.py": "# mine\n" + SIGMOID})
        assert call(monkeypatch, capsys, "run", path, "--out", "run", "--replicates", "5")[0] == 0
        assert len(ms.load_results(folder / "run").frame) == 15
        for command in ("modulus", "constants"):
            assert call(monkeypatch, capsys, command, path, "--out", "run")[0] == 0
        assert (folder / "run" / "constants.json").exists()
        assert call(monkeypatch, capsys, "plot", "run")[0] == 0
        assert call(monkeypatch, capsys, "check-model", path)[0] == 0

    def test_judged_as_where_it_was_run(self, folder):
        """A density, gates that may be translated, a truth that moves."""
        gated = LABELS.replace('bound="bias_bound"', 'domain=ms.GATE, bound="bias_bound"').replace(
            'params["bias"].sum() + (params["slope"] @ x).sum()',
            "jax.nn.softmax(params['bias']) @ (params['slope'] @ x)",
        )
        changes = {**DENSITY, "truth": {"bias": [0.5, 0.0], "slope": [[1.0], [-1.0]]}, "fit__atoms": 2}
        for name, more in (("given", {}), ("moving", {"sample__truth": "least-favourable"})):
            made = ms.load_study(write(folder / name, {"labels.py": gated}, **changes, **more))
            results = ms.run(made, folder / f"run-{name}")
            found = ms.load_results(folder / f"run-{name}")
            assert [v.to_json() for v in ms.judge(results)] == [v.to_json() for v in ms.judge(found)]
            assert all(found.ceiling(n) == pytest.approx(results.ceiling(n)) for n in made.problem.sizes)
            assert found.study.digest == made.digest

    def test_a_folder_that_was_hardly_begun(self, folder):
        """A process that died while it kept the source: the next one begins anew."""
        path = write(folder, {"sigmoid.py": HELPED, "helper.py": HELPER.format(1)})
        made = ms.load_study(path)
        (folder / "run" / "model").mkdir(parents=True)
        (folder / "run" / "study.toml").write_text(made.to_toml())
        (folder / "run" / "model" / "sigmoid.py").write_text("half")
        assert len(ms.run(made, folder / "run").frame) == 9
        assert RunFolder(folder / "run").source() == {"sigmoid.py": HELPED, "helper.py": HELPER.format(1)}

    def test_a_worker_has_the_source_sent(self, folder):
        made = ms.load_study(write(folder))
        here = ms.run(made).frame
        (folder / "sigmoid.py").unlink()
        source, versions = json.dumps(runner.kept_source(made)), platform_facts()["versions"]
        found = runner.on_worker(made.to_toml(), 100, np.arange(3), "{}", versions, source)
        expected = here[here["n"] == 100].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)
        wrong = source.replace("        weight =", "        weight =").replace("jax.nn.sigmoid", "jax.nn.sigmoids")
        with pytest.raises(ms.InputError, match=r"sigmoid\.py line 20 raises AttributeError"):
            runner.on_worker(made.to_toml(), 100, np.arange(3), "{}", versions, wrong)


def test_new_files_run_as_they_are(folder, monkeypatch, capsys):
    """Both templates, with few replicates; what a theorist reads first."""
    for name, option in (("mine", ()), ("yours", ("--density",))):
        assert call(monkeypatch, capsys, "new", name, *option)[0] == 0
        sizes = ("--sizes", "1e3,3e3,1e4") if option else ()
        status, out, err = call(monkeypatch, capsys, "run", f"{name}.toml", "--replicates", "4", *sizes, "--json")
        assert status == 0, err
        verdict = json.loads(out)["verdicts"][0]
        assert verdict["loss"] == "function" and verdict["certified"] >= 0.5


def test_a_density_is_fitted_to_data(folder):
    """Experts by their shares where the model says its components; a mean where it says one."""
    template = importlib.resources.files("moe_sim.study") / "templates"
    (folder / "yours.py").write_text((template / "density.py").read_text())
    tables = tomllib.loads((template / "density.toml").read_text().replace("NAME", "yours"))
    made = ms.Study(**tables)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-3, 3, 150), rng.integers(0, 3, 150)
    found = ms.fit(made.problem.model, x, y, atoms=2, starts=2, budget=1)
    assert found.n == 150 and found.responsibilities().shape == (150, 2)
    assert np.all(np.diff(found.responsibilities().mean(axis=0)) <= 1e-9)
    assert found.loglik >= 150 * np.log(1 / 3) - 5
