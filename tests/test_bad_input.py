"""Bad input through the command line: exit status 2, one line that says what was wrong and what to pass instead."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tomli_w
from tiny import GONE, call, contents, study, tables, write

import moe_sim as ms


class Bad:
    """A bad study or option: what is changed, what the message must quote, and the remedy it must offer."""

    def __init__(self, quoted: str, remedy: str, *arguments: str, **changes):
        self.quoted, self.remedy, self.arguments, self.changes = quoted, remedy, arguments, changes


INDEPENDENT = {"model__structure": "independent", "truth__prefix": GONE, "truth__value": [[1.0]]}
NETWORK = {"model__structure": "shared-network"}
GRADIENT = {"fit__estimator": "gradient"}
NAN, INF = float("nan"), float("inf")
FAMILIES = "contaminated, gaussian-gated, moe, prefix, prefix-mixture, shared-routed, softmax-gaussian, two-level"
INSTALLED = FAMILIES.replace("two-level", "transformer, two-level")  # with entry points, the bridge's too
MIXTURE = {"model__family": "prefix-mixture"}

BAD = {
    # keys
    "unknown table": Bad("laws is not a known key", "did you mean law?", laws={"name": "grid"}),
    "unknown key, model": Bad("model.noize", "did you mean noise?", model__noize=0.3),
    "unknown key, frozen": Bad("model.frozen.logit_matrx", "did you mean logit_matrix?", model__frozen__logit_matrx=[]),
    "unknown key, projection": Bad("model.projection.values", "did you mean value?", model__projection__values=[[1.0]]),
    "unknown key, network": Bad("model.network.keys", "did you mean key?", model__network={"keys": [[1.0]]}, **NETWORK),
    "unknown key, truth": Bad("truth.prefixes", "did you mean prefix?", truth__prefixes=[[1.0]]),
    "key of another structure": Bad("truth.key", "known are bias, prefix", truth__key=[[1.0]]),
    "unknown key, law": Bad("law.point ", "did you mean points?", law__point=3),
    "key of another law": Bad("law.deviation", "known are high, low, name, points", law__deviation=1.0),
    "unknown key, fit": Bad("fit.start_rule", "did you mean start?", fit__start_rule="data"),
    "unknown key, sample": Bad("sample.size ", "did you mean sizes?", sample__size=[1e3]),
    "unknown key, claim": Bad("claim[1].exponents", "did you mean exponent?", claim__1__exponents=0.5),
    "no model": Bad("the study has no model", "add a [model] table", model=GONE),
    "no name": Bad("the study has no name", "add name =", name=GONE),
    "no noise": Bad("model.noise is missing", "add it", model__noise=GONE),
    "no projection": Bad("model.projection is missing", "add it", model__projection=GONE),
    "no value projection": Bad("model.projection.value is missing", "add it", model__projection__value=GONE),
    "no prefix": Bad("truth.prefix is missing", "add it", truth__prefix=GONE),
    "no key for independent": Bad("truth.key is missing", "add it", **INDEPENDENT),
    "no atoms": Bad("fit.atoms is missing", "add it", fit__atoms=GONE),
    "no sizes": Bad("sample.sizes is missing", "add it", sample__sizes=GONE),
    "no replicates": Bad("sample.replicates is missing", "add it", sample__replicates=GONE),
    "no loss": Bad("claim[0].loss is missing", "add it", claim__0__loss=GONE),
    "no exponent": Bad("claim[0].exponent is missing", "add it", claim__0__exponent=GONE),
    "no family": Bad("model.family = None", f"pass one of {FAMILIES}", model__family=GONE),
    "no network": Bad("model.structure = 'shared-network' needs [model.network]", "add that table", **NETWORK),
    "a network too many": Bad("takes no [model.network]", "leave that table out",
                              model__network={"key": [[1.0]], "value": [[1.0]]}),
    "half a network": Bad("model.network needs key and value", "add the two",
                          model__network={"key": [[1.0]]}, **NETWORK),
    # types of tables
    "empty name": Bad("name = ''", "pass letters", name=""),
    "name a number": Bad("name = 3", "pass letters", name=3),
    "name a path": Bad("name = '../tiny'", "pass ", name="../tiny"),
    "law no table": Bad("law = 'grid' is no table", "write [law]", law="grid"),
    "frozen no table": Bad("model.frozen = 3 is no table", "write [model.frozen]", model__frozen=3),
    "claim a table": Bad("claim = {", "a [[claim]] table", claim={"loss": "voronoi", "exponent": 0.5}),
    "claim a number": Bad("claim = 3", "a [[claim]] table", claim=3),
    "claims of numbers": Bad("claim[0] = 3 is no table", "write [[claim]]", claim=[3]),
    # shapes
    "truth of another dimension": Bad("truth.prefix has shape (1, 2)", "pass an array of shape (1, 1)",
                                      truth__prefix=[[1.0, 2.0]]),
    "truth with too few rows": Bad("truth.prefix has shape (1, 1)", "pass an array of shape (2, 1)",
                                   truth__bias=[0.1, 0.2], fit__atoms=2),
    "ragged truth": Bad("truth.prefix is not a rectangular table", "pass an array of shape (2, 1)",
                        truth__bias=[0.1, 0.2], truth__prefix=[[1.0], [1.0, 2.0]], fit__atoms=2),
    "flat truth": Bad("truth.prefix has shape (1,)", "pass an array of shape (1, 1)", truth__prefix=[1.0]),
    "truth of text": Bad("truth.bias is not a rectangular table of numbers", "pass an array", truth__bias=["one"]),
    "truth not finite": Bad("truth.prefix has an entry that is not finite (nan)", "mend that", truth__prefix=[[NAN]]),
    "no true atom": Bad("truth.bias is empty", "at least one atom", truth__bias=[], truth__prefix=[]),
    "flat projection": Bad("model.projection.key has shape (1,)", "pass an array of shape (any, any)",
                           model__projection__key=[1.0]),
    "projections of two widths": Bad("model.projection.key has 1 columns and model.projection.value 2",
                                     "give both as many columns", model__projection__value=[[1.0, 0.0]]),
    "frozen of another dimension": Bad("model.frozen.logit_matrix has shape (1, 2, 2)",
                                       "pass an array of shape (1, 1, 1)",
                                       model__frozen__logit_matrix=[[[0.1, 0.0], [0.0, 0.1]]]),
    "frozen without outputs": Bad("model.frozen.output_matrix has shape (0,)", "pass an array of shape (1, 1, 1)",
                                  model__frozen__output_matrix=GONE),
    "network of another width": Bad("model.network.value has shape (1, 2)", "pass an array of shape (1, 1)",
                                    model__network={"key": [[1.0]], "value": [[1.0, 2.0]]}, **NETWORK),
    "frozen that is no Frozen": Bad("model.frozen.functions = 'math:pi'", "is no moe_sim.Frozen: make it one",
                                    model__frozen={"functions": "math:pi"}),
    "true atoms that coincide": Bad("truth: atoms 0 and 1 have the same prefix", "leave one out, or move it",
                                    fit__atoms=2, truth={"bias": [0.2, 0.1], "prefix": [[1.0], [1.0]]}),
    "cells of two in an exact fit": Bad("claim[0].loss = 'atoms:multi' is not defined here", "raise fit.atoms",
                                        claim__0__loss="atoms:multi"),
    "frozen that is no name": Bad("model.frozen.functions = 3", "is no moe_sim.Frozen: name one as 'file.py:name'",
                                  model__frozen={"functions": 3}),
    "frozen of no module": Bad("model.frozen.functions = 'nowhere:frozen'", "pass 'module:name'",
                               model__frozen={"functions": "nowhere:frozen"}),
    "experts given twice": Bad("model.frozen has logit_bias and logit_matrix and output_matrix and tokens",
                               "keep tokens alone", model__frozen__tokens=2),
    "tokens not whole": Bad("model.frozen.tokens = 1.5", "pass a whole number", model__frozen={"tokens": 1.5}),
    "points of another dimension": Bad("law.x has shape (2, 2)", "pass an array of shape (any, 1)",
                                       law={"name": "tokens", "x": [[1.0, 2.0], [3.0, 4.0]]}),
    "no points": Bad("law.x is missing", "one list of numbers each", law={"name": "tokens"}),
    "fewer points than parameters": Bad("law.x gives 1 points for 2 parameters", "add points to law.x",
                                        law={"name": "tokens", "x": [[1.0]]}),
    # numbers
    "noise 0": Bad("model.noise = 0", "must be positive", model__noise=0.0),
    "noise below 0": Bad("model.noise = -0.3", "must be positive", model__noise=-0.3),
    "noise text": Bad("model.noise = 'loud'", "pass a finite number", model__noise="loud"),
    "noise true": Bad("model.noise = True", "pass a finite number", model__noise=True),
    "noise infinite": Bad("model.noise = inf", "pass a finite number", model__noise=INF),
    "low above high": Bad("law.low = 2.0 and law.high = -2.0", "pass low below high", law__low=2.0, law__high=-2.0),
    "low equals high": Bad("law.low = 2.0 and law.high = 2.0", "pass low below high", law__low=2.0),
    "deviation 0": Bad("law.deviation = 0.0", "must be positive",
                       law={"name": "normal", "deviation": 0.0, "finite": True}),
    "ring on a line": Bad("law.name = 'ring' lies in the plane", "the model has 1 covariates", law={"name": "ring"}),
    "ball without radius": Bad("law.name = 'ball' lies in the plane", "pass uniform", law={"name": "ball"}),
    "one point": Bad("law.points = 1", "pass a whole number of at least 2", law__points=1),
    "too few points": Bad("law.points = 3 gives 3 points for 4 parameters", "raise law.points",
                          law__points=3, fit__atoms=2),
    "half an atom": Bad("fit.atoms = 1.5", "pass a whole number of at least 1", fit__atoms=1.5),
    "fewer atoms than the truth": Bad("fit.atoms = 1 is fewer than the 2 true atoms", "pass at least 2",
                                      truth__bias=[0.1, 0.2], truth__prefix=[[1.0], [2.0]]),
    "no start": Bad("fit.starts = 0", "pass a whole number from 1", fit__starts=0),
    "bound below 0": Bad("fit.bound = -6.0", "pass a number of at least", fit__bound=-6.0),
    "bias bound 0": Bad("fit.bias_bound = 0", "pass a number of at least", fit__bias_bound=0.0),
    "truth outside the bounds": Bad("truth.prefix has 6.5, outside [-6, 6]", "raise the bound (fit.bound)",
                                    truth__prefix=[[6.5]]),
    "bias outside the bounds": Bad("truth.bias has -3.5, outside [-3, 3]", "raise the bound (fit.bias_bound)",
                                   truth__bias=[-3.5]),
    "spread below 0": Bad("fit.spread = -1.0", "pass a number of at least", fit__spread=-1.0, fit__start="wide"),
    "learning rate 0": Bad("fit.learning_rate = 0.0", "pass a number of at least", fit__learning_rate=0.0, **GRADIENT),
    "size 0": Bad("sample.sizes = 0", "pass a whole number", sample__sizes=[0, 100]),
    "size below 0": Bad("sample.sizes = -100", "pass a whole number", sample__sizes=[-100]),
    "size a fraction": Bad("sample.sizes = 100.5", "pass a whole number", sample__sizes=[100.5]),
    "size nan": Bad("sample.sizes = nan", "pass a finite number", sample__sizes=[NAN]),
    "size beyond counting": Bad("sample.sizes = 1e+17", "pass a whole number from 1", sample__sizes=[1e17]),
    "size text": Bad("sample.sizes = 'many'", "pass a finite number", sample__sizes=["many"]),
    "sizes text": Bad("sample.sizes = 'many'", "pass a list", sample__sizes="many"),
    "sizes a number": Bad("sample.sizes = 1000", "pass a list", sample__sizes=1000),
    "size twice": Bad("sample.sizes has 1000 twice", "name each size once", sample__sizes=[1000, 100, 1e3]),
    "no size at all": Bad("sample.sizes = []", "pass a list", sample__sizes=[]),
    "one replicate": Bad("sample.replicates = 1", "pass a whole number from 2", sample__replicates=1),
    "seed below 0": Bad("sample.seed = -1", "pass a whole number from 0", sample__seed=-1),
    "window without sizes": Bad("claim[0].window = [1e+09, 1e+10] holds 0 of sample.sizes: a slope needs 3",
                                "add sizes", claim__0__window=[1e9, 1e10]),
    "window with two sizes": Bad("claim[0].window = [100, 1000] holds 2 of sample.sizes", "widen it",
                                 claim__0__window=[1e2, 1e3]),
    "one size": Bad("sample.sizes has 1 size", "a slope needs at least 3", sample__sizes=[1e4], claim__0__window=GONE,
                    claim__1__window=GONE),
    "window reversed": Bad("claim[0].window = [10000, 100]", "pass the smaller size first",
                           claim__0__window=[1e4, 1e2]),
    "window of three": Bad("claim[0].window has shape (3,)", "pass an array of shape (2)", claim__0__window=[1, 2, 3]),
    "window of text": Bad("claim[0].window is not", "pass an array", claim__0__window=["a", "b"]),
    "window at 1": Bad("claim[1].window starts at 1", "start at 2 or later", claim__1__window=[1, 1e4]),
    "exponent 0": Bad("claim[0].exponent = 0", "pass a number from", claim__0__exponent=0.0),
    "margin below 0": Bad("claim[0].margin = -0.1", "pass a number of at least", claim__0__margin=-0.1),
    # names
    "unknown structure": Bad("model.structure = 'shared'", "pass one of independent, shared-linear",
                             model__structure="shared"),
    "unknown family": Bad("model.family = 'suffix'", f"pass one of {INSTALLED}", model__family="suffix"),
    "unknown law": Bad("law.name = 'cauchy'", "pass one of ball, grid, linspace, normal, ring, tokens, uniform",
                       law={"name": "cauchy"}),
    "unknown start": Bad("fit.start = 'cold'", "pass one of data, truth, wide", fit__start="cold"),
    "unknown estimator": Bad("fit.estimator = 'lasso'", "pass one of", fit__estimator="lasso"),
    "unknown optimizer": Bad("fit.optimizer = 'sophia'", "pass one of", fit__optimizer="sophia", **GRADIENT),
    "unknown activation": Bad("model.network.activation = 'swish'", "pass one of gelu",
                              model__network={"key": [[1.0]], "value": [[1.0]], "activation": "swish"}, **NETWORK),
    "unknown loss": Bad("claim.loss = 'wasserstein'", "pass voronoi", claim__0__loss="wasserstein"),
    "unknown block": Bad("claim.loss = 'atoms:multi:key'", "atoms:multi:prefix", claim__0__loss="atoms:multi:key"),
    "loss with r below 1": Bad("claim.loss = 'voronoi:r=0.5'", "at least 1", claim__0__loss="voronoi:r=0.5"),
    "loss with r no number": Bad("claim.loss = 'voronoi:r=1.2.3'", "pass for example",
                                 claim__0__loss="voronoi:r=1.2.3"),
    "unknown kind": Bad("claim[0].kind = 'lowest'", "pass one of exact, lower, upper", claim__0__kind="lowest"),
    "unknown mode": Bad("sample.mode = 'exactly'", "pass one of exact, iid", sample__mode="exactly"),
    "em for a regression": Bad("fit.estimator = 'em'", "pass least-squares or gradient", fit__estimator="em"),
    "mle for a regression": Bad("fit.estimator = 'mle'", "pass least-squares or gradient", fit__estimator="mle"),
    "least squares for a mixture": Bad("fit.estimator = 'least-squares' needs a regression model",
                                       "pass mle or em or gradient", **MIXTURE),
    "too many counts": Bad("sample.sizes has 1e+14", "at most that", fit__estimator="mle", sample__mode="exact",
                           sample__sizes=[1e13, 1e14], **MIXTURE),
    "optimizer without gradient": Bad("fit.optimizer belongs to", "leave it out", fit__optimizer="adam"),
    "exact sample of a continuous law": Bad("law.name = 'uniform'", "sample.mode = 'iid'", law={"name": "uniform"}),
    "lists for names": Bad("fit.start = ['data']", "pass one of", fit__start=["data"]),
    "a list for the family": Bad("model.family = ['prefix']", "pass one of", model__family=["prefix"]),
    "a list for the law": Bad("law.name = ['grid']", "pass one of", law__name=["grid"]),
    # options
    "--sizes abc": Bad("--sizes has 'abc'", "number", "--sizes", "abc"),
    "--sizes empty": Bad("--sizes has ''", "number", "--sizes", ""),
    "--sizes with a hole": Bad("--sizes has ''", "number", "--sizes", "1e3,,1e4"),
    "--sizes nan": Bad("--sizes = nan", "pass a finite number", "--sizes", "1e3,nan"),
    "--sizes 0": Bad("sample.sizes = 0", "pass a whole number", "--sizes", "0"),
    "--sizes below 0": Bad("sample.sizes = -5", "pass a whole number", "--sizes=-5"),
    "--sizes a fraction": Bad("sample.sizes = 99.5", "pass a whole number", "--sizes", "99.5"),
    "--sizes twice": Bad("sample.sizes has 1000 twice", "name each size once", "--sizes", "1e3,1000"),
    "--replicates 1": Bad("--replicates = 1", "pass a whole number of at least 2", "--replicates", "1"),
    "--replicates few": Bad("--replicates has 'few'", "number", "--replicates", "few"),
    "--replicates 2.5": Bad("--replicates = 2.5", "pass a whole number of at least 2", "--replicates", "2.5"),
    "--seed x": Bad("--seed has 'x'", "number", "--seed", "x"),
    "--seed below 0": Bad("--seed = -1", "pass a whole number of at least 0", "--seed=-1"),
    "--require proven": Bad("--require = 'proven'", "pass one of", "--require", "proven"),
    "unknown option": Bad("--size", "--sizes", "--size", "1e3"),
}  # fmt: skip


def refused(answer, quoted, remedy) -> None:
    status, out, err = answer
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert quoted in err
    assert remedy in err


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every command runs in a folder of its own; a refused one must leave no run behind."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("bad", [pytest.param(bad, id=name) for name, bad in BAD.items()])
def test_refused(bad, folder, monkeypatch, capsys):
    path = write(folder, **bad.changes)
    refused(call(monkeypatch, capsys, "run", path, *bad.arguments), bad.quoted, bad.remedy)
    assert os.listdir(folder) == ["study.toml"]


@pytest.fixture
def run_folder(folder, monkeypatch, capsys):
    """A finished run of the tiny study, and the command that made it."""
    path = write(folder)
    status, _, _ = call(monkeypatch, capsys, "run", path, "--out", "run")
    assert status == 0
    return folder / "run"


def untouched(path: Path, before: dict[str, bytes]) -> None:
    assert contents(path) == before


class TestFolders:
    @pytest.mark.parametrize(
        "field, changes, arguments",
        [
            ("model.noise was 0.3 and is now 0.4", {"model__noise": 0.4}, ()),
            ("fit.start was 'data' and is now 'truth'", {"fit__start": "truth"}, ()),
            ("truth.prefix was [[1.0]] and is now [[1.5]]", {"truth__prefix": [[1.5]]}, ()),
            ("law.points was 10 and is now 11", {"law__points": 11}, ()),
            ("sample.seed was 0 and is now 7", {}, ("--seed", "7")),
            ("fit.spread was None and is now 0.5", {"fit__spread": 0.5, "fit__start": "wide"}, ()),
            ("claim was [", {"claim__0__exponent": 0.25}, ()),
        ],
    )
    def test_folder_of_another_study(self, run_folder, monkeypatch, capsys, field, changes, arguments):
        before = contents(run_folder)
        path = write(run_folder.parent, **changes)
        refused(call(monkeypatch, capsys, "run", path, "--out", "run", *arguments), field, "pass another --out")
        untouched(run_folder, before)

    def test_folder_whose_provenance_is_gone(self, run_folder, monkeypatch, capsys):
        (run_folder / "provenance.json").write_text("{")
        before = contents(run_folder)
        refused(call(monkeypatch, capsys, "run", "study.toml", "--out", "run"), "provenance.json", "restore it")
        untouched(run_folder, before)

    @pytest.mark.parametrize("command", ["run", "verdict"])
    def test_folder_whose_study_is_damaged(self, run_folder, monkeypatch, capsys, command):
        (run_folder / "study.toml").write_text("[[[")
        path = write(run_folder.parent, model__noise=0.4)
        before = contents(run_folder)
        arguments = (path, "--out", "run") if command == "run" else ("run",)
        refused(call(monkeypatch, capsys, command, *arguments), "study.toml is damaged", "restore it")
        untouched(run_folder, before)

    def test_folder_with_a_damaged_chunk(self, run_folder, monkeypatch, capsys):
        chunk = sorted((run_folder / "chunks").iterdir())[0]
        chunk.write_bytes(chunk.read_bytes()[:-20])
        before = contents(run_folder)
        refused(call(monkeypatch, capsys, "verdict", "run"), chunk.name, "remove")
        untouched(run_folder, before)

    @pytest.mark.parametrize("command", ["verdict", "plot"])
    def test_folder_without_results(self, folder, monkeypatch, capsys, command):
        (folder / "empty").mkdir()
        refused(call(monkeypatch, capsys, command, "empty"), "empty is no run folder", "pass the --out of a run")
        refused(call(monkeypatch, capsys, command, "nowhere"), "nowhere is no run folder", "pass the --out of a run")
        (folder / "empty" / "study.toml").write_text(tomli_w.dumps(tables()))
        refused(call(monkeypatch, capsys, command, "empty"), "empty has no results yet", "run the study first")

    def test_folder_that_is_a_file(self, folder, monkeypatch, capsys):
        path = write(folder)
        (folder / "taken").write_bytes(b"mine")
        before = contents(folder)
        refused(call(monkeypatch, capsys, "run", path, "--out", "taken"), "taken exists", "pass a new folder")
        refused(call(monkeypatch, capsys, "run", path, "--out", "taken/run"), "taken/run", "may write to")
        untouched(folder, before)

    def test_folder_of_something_else(self, folder, monkeypatch, capsys):
        path = write(folder)
        (folder / "thesis").mkdir()
        (folder / "thesis" / "chapter.tex").write_bytes(b"mine")
        before = contents(folder)
        refused(call(monkeypatch, capsys, "run", path, "--out", "thesis"), "thesis exists", "pass a new folder")
        untouched(folder, before)

    def test_folder_that_cannot_be_written(self, folder, monkeypatch, capsys):
        path = write(folder)
        refused(call(monkeypatch, capsys, "run", path, "--out", "/proc/moe_sim"), "/proc/moe_sim", "may write to")

    def test_a_write_that_fails_leaves_the_folder_as_it_was(self, run_folder, monkeypatch, capsys):
        before = contents(run_folder)

        def deny(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("moe_sim.simulation.store.os.replace", deny)
        answer = call(monkeypatch, capsys, "run", "study.toml", "--out", "run", "--sizes", "1e2,1e3,1e4,1e5")
        refused(answer, "cannot be written (Permission denied)", "may write to")
        untouched(run_folder, before)

    @pytest.mark.parametrize("name", ["rates.jpg", "rates", "rates.svg.txt"])
    def test_figure_with_an_unknown_suffix(self, run_folder, monkeypatch, capsys, name):
        before = contents(run_folder.parent)
        refused(call(monkeypatch, capsys, "plot", "run", "--out", name), name, ".svg, .png or .pdf")
        untouched(run_folder.parent, before)

    def test_figure_below_a_file(self, run_folder, monkeypatch, capsys):
        before = contents(run_folder.parent)
        answer = call(monkeypatch, capsys, "plot", "run", "--out", "study.toml/rates.svg")
        refused(answer, "study.toml/rates.svg cannot be written", "pass a file that you may write")
        untouched(run_folder.parent, before)


class TestFiles:
    def test_missing_file(self, monkeypatch, capsys):
        refused(call(monkeypatch, capsys, "run", "nowhere.toml"), "nowhere.toml cannot be read", "pass a study file")

    def test_folder_for_a_file(self, folder, monkeypatch, capsys):
        (folder / "studies.toml").mkdir()
        refused(call(monkeypatch, capsys, "run", "studies.toml"), "studies.toml cannot be read", "pass a study file")

    def test_no_toml(self, folder, monkeypatch, capsys):
        (folder / "study.toml").write_text('name = "tiny"\nmodel = {\n')
        refused(call(monkeypatch, capsys, "run", "study.toml"), "study.toml is not valid TOML", "mend that line")

    def test_no_text(self, folder, monkeypatch, capsys):
        (folder / "study.toml").write_bytes(bytes(range(256)))
        refused(call(monkeypatch, capsys, "run", "study.toml"), "study.toml is not text", "pass a study file in TOML")

    @pytest.mark.parametrize("command", ["run", "figures"])
    def test_unknown_claim(self, monkeypatch, capsys, command):
        answer = call(monkeypatch, capsys, command, "prefix-shared-linear-ovr")
        refused(answer, "'prefix-shared-linear-ovr'", "did you mean prefix-shared-linear-over?")

    def test_unknown_claim_like_no_other(self, monkeypatch, capsys):
        refused(call(monkeypatch, capsys, "run", "zzz"), "'zzz'", ", ".join(ms.registry()))

    @pytest.mark.parametrize("arguments", [("run",), ("fly",), ("verdict",), ("run", "a.toml", "b.toml")])
    def test_wrong_arguments(self, monkeypatch, capsys, arguments):
        status, out, err = call(monkeypatch, capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1 and err.startswith("error: ")


def test_a_message_is_one_line_even_where_the_value_is_not(folder, monkeypatch, capsys):
    path = write(folder, model__structure="shared\nlinear\r\n[bold]")
    refused(call(monkeypatch, capsys, "run", path), "[bold]", "pass one of")


def test_python_hears_the_same_message():
    with pytest.raises(ms.InputError, match=r"fit\.start = 'cold' is not known: pass one of"):
        study(fit__start="cold")


@pytest.mark.parametrize(
    "changes",
    [
        {"law": {"name": "uniform", "finite": "no"}},
        {"model__network": {"key": [[1.0]], "value": [[1.0]], "learned": "no"}, **NETWORK},
    ],
)
def test_a_flag_is_true_or_false(changes):
    with pytest.raises(ms.InputError, match=r"= 'no'.*pass true or false"):
        study(**changes)


def test_real_processes(folder):
    """The console script and ``python -m moe_sim``, whole: status 2 and one line, nothing else on either stream."""
    (folder / "taken").write_bytes(b"mine")
    path = write(folder, fit__start="cold")
    script = Path(sysconfig.get_path("scripts")) / "moe-sim"
    commands = {
        "nowhere.toml cannot be read": [script, "run", "nowhere.toml"],
        "fit.start = 'cold'": [sys.executable, "-m", "moe_sim", "run", path, "--out", "taken"],
    }
    before = contents(folder)
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
        for command in commands.values()
    ]
    for quoted, process in zip(commands, started, strict=True):
        out, err = process.communicate(timeout=120)
        refused((process.returncode, out, err), quoted, "pass")
    untouched(folder, before)
