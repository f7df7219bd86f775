"""Models from outside that are wrong: exit status 2, one line that says what was wrong and where, and the remedy."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from outside import DENSITY, LABELS, SIGMOID, TABLES, tables, write
from test_bad_input import refused
from tiny import GONE, call, contents

import moe_sim as ms
from moe_sim.models import sources
from moe_sim.models.gaussian import LinearExperts
from moe_sim.models.loading import load_part


class Bad:
    """text: of sigmoid.py; files: others. quoted, remedy: what the message must say. changes: of the study."""

    def __init__(self, quoted: str, remedy: str, text: str | bytes = SIGMOID, files=None, **changes):
        self.quoted, self.remedy, self.changes = quoted, remedy, changes
        self.files = {"sigmoid.py": text} | (files or {})


def spoilt(old: str, new: str, text: str = SIGMOID) -> str:
    assert old in text
    return text.replace(old, new)


MEAN = 'self.scale * (weight @ (params["slope"] @ x))[None]'
PARAMETERS = '{"bias": ms.Parameter(bound="bias_bound", exponents=None), "slope": ms.Parameter(d)}'
KEEPS = "self.dimension, self.noise, self.scale = dimension, noise, scale\n"
LOG = "jax.nn.log_sigmoid((2 * y[0] - 1) * logit)"
FAMILY = "model__family"
GROUPS = spoilt('exponents=None)', 'exponents=None, group="a")', spoilt(
    'ms.Parameter(d)}', 'ms.Parameter(d, group="a"), "mass": ms.Parameter(bound="bias_bound", group="b")}',
    spoilt('mass = "bias"', 'mass = {"a": "bias", "b": "mass"}')))  # fmt: skip
GROUPED = {"truth__mass": [0.0]}

BAD = {
    # files and classes
    "file not there": Bad("there is no file", "did you mean sigmoid.py?", **{FAMILY: "sigmoi.py:SigmoidGate"}),
    "file not there, nor near": Bad("other/mine.py", "pass a file", **{FAMILY: "other/mine.py:SigmoidGate"}),
    "file no text": Bad("sigmoid.py cannot be read", "pass a Python file", b"\xff\xfe\x00"),
    "class not there": Bad("the file has no Sigmoid", "did you mean SigmoidGate?", **{FAMILY: "sigmoid.py:Sigmoid"}),
    "no class in the file": Bad("the file has no SigmoidGate", "there are none", "x = 3\n"),
    "class no class": Bad("is float and no class", "pass a subclass of moe_sim.Regression or moe_sim.Density",
                          SIGMOID + "THREE = 3.0\n", **{FAMILY: "sigmoid.py:THREE"}),
    "class no model": Bad("is no moe_sim.Regression or moe_sim.Density", "class SigmoidGate(moe_sim.Regression)",
                          spoilt("ms.Regression", "object")),
    "abstract class": Bad("does not say its mean", "write def mean(self, ...)", spoilt("def mean", "def means")),
    "abstract class, parameters": Bad("does not say its parameters", "write def parameters",
                                      spoilt("def parameters", "def parameter")),
    "abstract density": Bad("does not say its log_density", "write def log_density",
                            files={"labels.py": spoilt("def log_density", "def density", LABELS)}, **DENSITY),
    "module for a file": Bad("'sigmoid:SigmoidGate' names no class of a file", "pass 'sigmoid.py:SigmoidGate'",
                             **{FAMILY: "sigmoid:SigmoidGate"}),
    "file without a class": Bad("'sigmoid.py' names no class", "pass 'sigmoid.py:Class'", **{FAMILY: "sigmoid.py"}),
    "unknown family": Bad("'prefixs' is not known", "did you mean prefix?", **{FAMILY: "prefixs"}),
    "unknown family like no other": Bad("'zzz' is not known", "or a class in a file beside the study",
                                        **{FAMILY: "zzz"}),
    "syntax error": Bad("sigmoid.py line 15 is not Python", "mend it", spoilt("parameters(self):", "parameters(self)")),
    "null byte": Bad("sigmoid.py", "is not Python", SIGMOID + "\0"),
    "syntax error of a sibling": Bad("helper.py line 2 is not Python", "mend it", "import helper\n" + SIGMOID,
                                     {"helper.py": "a = 1\nb = = 2\n"}),
    "raises while loaded": Bad("sigmoid.py line 1 raises ZeroDivisionError (division by zero)", "mend that line",
                               "1 / 0\n" + SIGMOID),
    "exits while loaded": Bad("sigmoid.py line 1 raises SystemExit", "mend that line", "raise SystemExit\n" + SIGMOID),
    "sibling raises": Bad("helper.py line 1 raises KeyError ('a')", "mend that line", "import helper\n" + SIGMOID,
                          {"helper.py": "{}['a']\n"}),
    "module not installed": Bad("line 1 raises ModuleNotFoundError (No module named 'nowhere')", "mend that line",
                                "import nowhere\n" + SIGMOID),
    "two files of one name": Bad("have one name", "rename one of them", files={"other.py": "from . import sigmoid\n"},
                                 model={"family": "sigmoid.py:SigmoidGate", "gate": "deep/sigmoid.py:Gate"}),
    # arguments
    "missing argument": Bad("model.noise is missing: SigmoidGate needs it", "add it to [model]", model__noise=GONE),
    "unknown argument": Bad("model.nois is no argument of SigmoidGate", "did you mean noise?", model__nois=0.3),
    "no such argument": Bad("model.extra is no argument", "known are dimension, noise, scale", model__extra=1),
    "wrong type": Bad("sigmoid.py line 13 raises TypeError", "mend that line",
                      spoilt(KEEPS, KEEPS.replace("noise, scale\n", "noise, scale[0]\n"))),
    "argument that the class refuses": Bad("sigmoid.py line 14 raises ValueError (no such noise)", "mend that line",
                                           spoilt(KEEPS, KEEPS + "        raise ValueError('no such noise')\n")),
    "constructor in C": Bad("raises ValueError (no signature found", "mend that",
                            spoilt("    def __init__(self, dimension: int, noise: float, scale=1.0):\n"
                                   "        self.dimension, self.noise, self.scale = dimension, noise, scale\n",
                                   "    __init__ = dict.__init__\n"), model={"family": "sigmoid.py:SigmoidGate"}),
    "no dimension": Bad("SigmoidGate.dimension = None", "set self.dimension", 
                        spoilt(KEEPS, KEEPS.replace("self.dimension", "a"))),
    "dimension no whole number": Bad("SigmoidGate.dimension = 1.5", "whole number", model__dimension=1.5),
    "outputs 0": Bad("SigmoidGate.outputs = 0", "whole number", spoilt('mass =', 'outputs = 0\n    mass =')),
    "noise 0": Bad("SigmoidGate.noise = 0.0", "positive number", model__noise=0.0),
    "noise text": Bad("SigmoidGate.noise = 'loud'", "positive number", model__noise="loud"),
    "no support": Bad("Logistic has no support", "moe_sim.Labels(3)",
                      files={"labels.py": spoilt("    support = ms.Labels(2)\n", "", LABELS)}, **DENSITY),
    # what it says
    "parameters raise": Bad("sigmoid.py line 16 raises AttributeError", "mend that line",
                            spoilt("d = (self.dimension,)", "d = (self.dimensions,)")),
    "parameters no dict": Bad("SigmoidGate.parameters() gives []", "return a dict of moe_sim.Parameter",
                              spoilt(PARAMETERS, "[]")),
    "parameters no Parameter": Bad("SigmoidGate.parameters() gives {'bias': 1}", "return a dict of moe_sim.Parameter",
                                   spoilt(PARAMETERS, '{"bias": 1}')),
    "no masses": Bad("which of bias, slope holds the masses", "set mass =",
                     spoilt('    mass = "bias"\n\n', "", spoilt('bound="bias_bound", ', ""))),
    "mean raises": Bad("sigmoid.py line 21 raises KeyError ('slopes')", "mend that line",
                       spoilt('params["slope"]', 'params["slopes"]')),
    "mean of wrong shape": Bad("SigmoidGate.mean gives shape () at one x", "return shape (1,)", spoilt("[None]", "")),
    "mean nan at the truth": Bad("SigmoidGate.mean is nan at the truth and x = [-2.0]", "or move the truth",
                                 spoilt(f"return {MEAN}", f"return jnp.log(x) + {MEAN}")),
    "log_density raises": Bad("labels.py line 18 raises TypeError", "mend that line",
                              files={"labels.py": spoilt(LOG, "len(logit)", LABELS)}, **DENSITY),
    "log_density of wrong shape": Bad("Logistic.log_density gives shape (1, 2)", "return one number",
                                      files={"labels.py": spoilt(LOG, LOG.replace("y[0]", "y"), LABELS)}, **DENSITY),
    "log_density infinite": Bad("Logistic.log_density is inf at the truth", "mend the model",
                                files={"labels.py": spoilt(LOG, f"1e999 + {LOG}", LABELS)}, **DENSITY),
    "truth outside its domain": Bad("truth.slope = [[-1.0]]", "pass positive numbers",
                                    spoilt("ms.Parameter(d)", "ms.Parameter(d, ms.POSITIVE)"), truth__slope=[[-1.0]]),
    "truth of another shape": Bad("truth.slope has shape (1, 2)", "pass an array of shape (1, 1)",
                                  truth__slope=[[1.0, 2.0]]),
    "truth outside the bounds": Bad("truth.slope has 1, outside [-0.5, 0.5]", "widen the range",
                                    spoilt("ms.Parameter(d)", "ms.Parameter(d, bound=0.5)")),
    "truth unknown": Bad("truth.slopes", "did you mean slope?", truth__slopes=[[1.0]]),
    "no truth": Bad("truth.slope is missing", "add it to the study", truth__slope=GONE),
    "no law": Bad("the study has no law", "add a [law] table", law=GONE),
    "exact sample of a density on a continuous law": Bad(
        "sample.mode = 'exact' needs a law on finitely many points", "law.finite = true", model=DENSITY["model"],
        law={"name": "uniform"}, sample__mode="exact",
    ),
    "estimator": Bad("fit.estimator = 'em'", "pass mle or gradient", fit__estimator="em", **DENSITY),
    "atoms a table without groups": Bad("fit.atoms = {'a': 1}: this model has one kind", "pass a number",
                                        fit__atoms={"a": 1}),
    "atoms a number with groups": Bad("fit.atoms = 1: this model has atoms of a and b", "pass atoms = {a = 2, b = 2}",
                                      GROUPS, **GROUPED),
    "atoms of a group missing": Bad("fit.atoms.b is missing", "add it", GROUPS, fit__atoms={"a": 1}, **GROUPED),
    "atoms of an unknown group": Bad("fit.atoms.c is not a known key", "known are a, b", GROUPS,
                                     fit__atoms={"a": 1, "b": 1, "c": 1}, **GROUPED),
    "atoms of a group too few": Bad("fit.atoms.a = 1 is fewer than the 2 true atoms", "pass at least 2", GROUPS,
                                    fit__atoms={"a": 1, "b": 1}, truth__bias=[0.1, 0.2], truth__mass=[0.0]),
    "unknown block": Bad("claim.loss = 'atoms:multi:gate'", "atoms:multi:slope", claim__0__loss="atoms:multi:gate"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in BAD.items()])
def test_refused(bad, folder, monkeypatch, capsys):
    (folder / "deep").mkdir()
    (folder / "deep" / "sigmoid.py").write_text("class Gate:\n    pass\n")
    path = write(folder, bad.files, **{"fit__atoms": 1, **bad.changes})
    before = contents(folder)
    refused(call(monkeypatch, capsys, "run", path), bad.quoted, bad.remedy)
    assert contents(folder) == before


def test_a_gate_that_raises(folder, monkeypatch, capsys):
    """A part from a file is tried at the truth, as a whole model is."""
    examples = Path(__file__).parent.parent / "examples" / "models"
    (folder / "student_gate.toml").write_text((examples / "student_gate.toml").read_text())
    text = spoilt("jnp.log1p(square / 3)", "jnp.log1p(squares)", (examples / "student_gate.py").read_text())
    (folder / "student_gate.py").write_text(text)
    before = contents(folder)
    told = call(monkeypatch, capsys, "run", folder / "student_gate.toml")
    refused(told, "student_gate.py line 20 raises NameError (name 'squares' is not defined)", "mend that line")
    assert contents(folder) == before


def test_a_model_that_raises_later_loses_nothing(folder, monkeypatch, capsys):
    """At the truth it works; with more fitted atoms it does not. What a run has is kept, and the line is named."""
    text = spoilt("        weight =", "        assert len(params['bias']) == 1, 'one atom only'\n        weight =")
    path = write(folder, {"sigmoid.py": text})
    assert call(monkeypatch, capsys, "run", path, "--out", "run")[0] == 0
    path = write(folder, {"sigmoid.py": text}, fit__atoms=2, name="more")
    refused(call(monkeypatch, capsys, "run", path), "sigmoid.py line 20 raises AssertionError (one atom only)", "mend")
    assert len(ms.load_results("run").frame) == 9


def test_a_source_that_has_changed(folder, monkeypatch, capsys):
    path = write(folder)
    assert call(monkeypatch, capsys, "run", path, "--out", "run")[0] == 0
    before = contents(folder / "run")
    write(folder, {"sigmoid.py": spoilt('jax.nn.sigmoid(params["bias"])', 'jax.nn.sigmoid(2 * params["bias"])')})
    place = 'sigmoid.py line 20 was `weight = jax.nn.sigmoid(params["bias"])` and is now `weight = jax.nn.sigmoid(2 * '
    for command in (("run",), ("modulus",), ("constants",)):
        refused(call(monkeypatch, capsys, *command, path, "--out", "run"), place, "pass another --out")
    write(folder, {"sigmoid.py": "from helper import a\n" + SIGMOID, "helper.py": "a = 1\n"})
    refused(call(monkeypatch, capsys, "run", path, "--out", "run"), "helper.py was not there and is now new", "another")
    assert contents(folder / "run") == before


def test_what_a_run_folder_keeps_of_a_model_is_damaged(folder, monkeypatch, capsys):
    path = write(folder)
    assert call(monkeypatch, capsys, "run", path, "--out", "run")[0] == 0
    told = (folder / "run" / "model.json").read_text()
    for text in ("{}", '{"kind": "regression"}', "[]", told.replace('"parameters": {', '"parameters": [], "b": {')):
        (folder / "run" / "model.json").write_text(text)
        refused(call(monkeypatch, capsys, "verdict", "run"), "model.json of the run folder", "run the study again")
    (folder / "run" / "model" / "sigmoid.py").unlink()
    arguments = ("replay", "run", "--size", "1e3", "--replicate", "0", "--trust-model")
    refused(call(monkeypatch, capsys, *arguments), "sigmoid.py is not among the files that were kept", "restore it")
    (folder / "run" / "model" / "sigmoid.py").write_bytes(b"\xff\xfe\x00")
    refused(call(monkeypatch, capsys, *arguments), "model cannot be read", "restore it")


def clash(monkeypatch, *values: str) -> None:
    found = [EntryPoint("mine", value, sources.GROUP) for value in values]
    monkeypatch.setattr(sources, "entry_points", lambda group, **asked: found if asked.get("name") != "zzz" else [])


def test_entry_points(folder, monkeypatch, capsys):
    (folder / "theirs.py").write_text(SIGMOID)
    monkeypatch.syspath_prepend(folder)
    path = write(folder, model__family="mine")
    clash(monkeypatch, "theirs:SigmoidGate", "others:Gate")
    refused(call(monkeypatch, capsys, "run", path), "a package (others:Gate) and a package (theirs:SigmoidGate)",
            "uninstall one of the two")  # fmt: skip
    clash(monkeypatch, "theirs:Gate")
    refused(call(monkeypatch, capsys, "run", path), "the entry point theirs:Gate, raises AttributeError", "mend that")
    clash(monkeypatch, "nowhere.at:Gate")
    refused(call(monkeypatch, capsys, "run", path), "the entry point nowhere.at:Gate, raises ModuleNotFound", "mend")
    clash(monkeypatch, "theirs:SigmoidGate")
    made = ms.load_study(path)
    assert list(made.outside.sources.texts) == ["theirs.py"] and made.problem.model.noise == 0.3
    refused(call(monkeypatch, capsys, "run", write(folder, model__family="zzz")), "'zzz' is not known", "mine")


def test_parts(folder):
    write(folder)
    assert load_part("sigmoid.py:SigmoidGate", ms.Regression, folder).__name__ == "SigmoidGate"
    with pytest.raises(ms.InputError, match=r"is no moe_sim\.Density: make it a subclass"):
        load_part("sigmoid.py:SigmoidGate", ms.Density, folder)
    with pytest.raises(ms.InputError, match=r"gate = 'softmax': pass 'file\.py:Class'"):
        load_part("softmax", ms.Density, folder, "gate")


class Bare(LinearExperts.__mro__[3]):  # Model itself
    def parameters(self):
        return {}

    def draw_rows(self, params, law, key, index, size):
        return None


class Kept(ms.Regression):
    """An argument that it does not keep."""

    dimension = 1
    mass = "bias"

    def __init__(self, noise, activation=None):
        self.noise, self._activation = noise, activation

    def parameters(self):
        return {"bias": ms.Parameter(bound="bias_bound", exponents=None), "slope": ms.Parameter((1,))}

    def mean(self, params, x):
        return (np.e ** params["bias"] @ (params["slope"] @ x))[None]


def test_objects(folder):
    assert not issubclass(Bare, ms.Density)
    with pytest.raises(ms.InputError, match="model = Bare object is neither: derive it from"):
        ms.Study(**TABLES | {"model": Bare()})
    made = ms.Study(**TABLES | {"model": Kept(0.3, np.tanh)})
    assert made.tables["model"]["activation"].startswith("<")
    with pytest.raises(
        ms.InputError, match=r"the argument 'activation' of Kept cannot be written.*without out it runs"
    ):
        ms.run(made, folder / "run")

    class Local(Kept):
        pass

    with pytest.raises(ms.InputError, match=r"Local is not in a file.*put the class in a file"):
        ms.modulus(ms.Study(**TABLES | {"model": Local(0.3)}), out=folder / "run")
    assert os.listdir(folder) == []


def test_new(folder, monkeypatch, capsys):
    refused(call(monkeypatch, capsys, "new", "../mine"), "NAME = '../mine'", "pass letters")
    (folder / "mine.py").write_text("mine")
    refused(call(monkeypatch, capsys, "new", "mine"), "mine.py is there already", "pass another NAME")

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_text", deny)
    refused(
        call(monkeypatch, capsys, "new", "yours"), "yours.toml cannot be written (Permission denied)", "go to a folder"
    )
    assert os.listdir(folder) == ["mine.py"]


def test_fit_of_a_density_of_ones_own(folder):
    write(folder)
    model = load_part("labels.py:Logistic", ms.Density, folder)(1)
    x, y = np.linspace(-2, 2, 40), np.tile([0.0, 1.0], 20)
    for wrong, match in (
        ({"y": y + 1}, r"y has 2, where Logistic takes whole numbers from 0 to 1: code y so"),
        ({"y": y / 2}, r"y has 0\.5, where"),
        ({"atoms": {"a": 1}}, r"atoms = \{'a': 1\}: pass a number for each of atoms"),
        ({"model": ms.Study(**tables()).problem.model}, r"model = SigmoidGate object is a regression, and fit takes"),
        ({"model": 3}, r"model = int object is no density of y: pass a name, or a moe_sim.Density"),
    ):
        with pytest.raises(ms.InputError, match=match):
            ms.fit(**{"model": model, "x": x, "y": y, "atoms": 1} | wrong)
    found = ms.fit(model, x, y, atoms=1, starts=4)
    for ask, match in (
        (found.gates, "Logistic does not say gating probabilities: write log_gates"),
        (found.experts, "Logistic does not say means of experts: write experts"),
        (found.responsibilities, "Logistic does not say responsibilities: write log_components"),
        (lambda: found.predict(x), "Logistic does not say a mean of y: write mean"),
    ):
        with pytest.raises(ms.InputError, match=match):
            ask()
    assert found.to_json()["gate_means"] is None and np.isfinite(found.loglik)
