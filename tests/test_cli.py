"""The command line as it is used: run, verdict, claims, plot, --json, --require, --quick."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from tiny import RUN, contents, study, tables, write

import moe_sim as ms
from moe_sim.errors import InputError
from moe_sim.plots import rates as plots
from moe_sim.plots.rates import plot_rates
from moe_sim.plots.style import frame

VERDICT_KEYS = {
    "claim", "loss", "kind", "exponent", "log_power", "slope", "interval", "verdict", "sizes", "mean", "mcse",
    "replicates", "certified", "uncertified", "start", "near_minimiser",
}  # fmt: skip
# Verdicts on purpose certain: any slope below 0.5 is supported by the first margin, none by the second.
SURE = {"claim": [{"loss": "function", "exponent": 0.5, "window": [1e2, 1e4], "margin": 1.0}]}
WRONG = {"claim": [{"loss": "function", "exponent": 5.0, "window": [1e2, 1e4]}]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_json_is_one_object_and_nothing_else(folder, moe_sim):
    status, out, err = moe_sim("run", write(folder), "--json")
    assert status == 0
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(found) == {"study", "digest", "verdicts"}
    assert (found["study"], found["digest"]) == ("tiny", study().digest)
    assert [v["loss"] for v in found["verdicts"]] == ["function", "voronoi"]
    for v in found["verdicts"]:
        assert set(v) >= VERDICT_KEYS
        assert {"mean", "slope", "interval"} <= set(v["near_minimiser"])
        assert (v["claim"], v["start"], v["replicates"], v["sizes"]) == ("tiny", "data", 4, [100.0, 1000.0, 10000.0])
    assert [line.split()[3] for line in err.splitlines()] == ["100", "1000", "1e+04"]  # progress, a line a size

    assert moe_sim("verdict", "runs/tiny", "--json") == (0, out, "")
    assert moe_sim("run", "study.toml", "--json") == (0, out, "")  # nothing was left to do


def test_table_of_verdicts(folder, moe_sim):
    status, out, _ = moe_sim("run", write(folder), "--out", "here")
    assert status == 0
    verdicts = ms.judge(ms.load_results("here"))
    for v in verdicts:
        assert f"{v.slope:.3f} [{v.interval[0]:.3f}, {v.interval[1]:.3f}]" in out
        assert f"{v.loss}: {v.reason}" in " ".join(out.split())
    assert "(log n / n)^0.5" in out and "n^-0.5" in out and " of 12" in out
    assert out.rstrip().endswith("here")
    assert moe_sim("verdict", "here") == (0, out, "")


def test_options_of_run_take_the_place_of_the_study(folder, moe_sim):
    path = write(folder, sample__replicates=30)
    status, *_ = moe_sim("run", path, "--out", "a", "--sizes", "1e2,300", "--replicates", "3", "--seed", "5")
    assert status == 0
    results = ms.load_results("a")
    assert results.frame.groupby("n").size().to_dict() == {100: 3, 300: 3}
    assert results.study.problem.seed == 5


def test_quick(folder, moe_sim):
    path = write(folder, sample__replicates=30)
    assert moe_sim("run", path, "--out", "a", "--sizes", "1e2", "--quick")[0] == 0
    assert len(ms.load_results("a").frame) == 20


def test_require(folder, moe_sim):
    path = write(folder, **SURE)
    assert moe_sim("run", path, "--out", "sure", "--require", "supported")[0] == 0
    assert moe_sim("run", path, "--out", "sure", "--require", "refuted")[0] == 1
    path = write(folder, **WRONG)
    status, out, _ = moe_sim("run", path, "--out", "wrong", "--require", "supported", "--json")
    assert status == 1
    assert [v["verdict"] for v in json.loads(out)["verdicts"]] == ["refuted"]  # printed all the same
    assert moe_sim("run", path, "--out", "wrong")[0] == 0  # a verdict is data


def test_require_of_one_in_two(folder, moe_sim):
    path = write(folder, claim=SURE["claim"] + WRONG["claim"])
    assert moe_sim("run", path, "--require", "supported")[0] == 1


def test_require_of_no_claim_is_not_met(folder, moe_sim):
    assert moe_sim("run", write(folder, claim=[]), "--require", "supported")[0] != 0


def test_claims_lists_the_registry_and_the_last_verdicts(folder, moe_sim):
    status, out, err = moe_sim("claims")
    assert (status, err) == (0, "")
    names, first = ms.registry(), "prefix-independent-exact"
    assert {first, "gaussian-gated-over", "ls-softmax-relu", "input-free-over"} <= set(names)
    rows = [line for line in out.splitlines() if "not run" in line]
    assert len(rows) == sum(len(ms.load_study(name).claims) for name in names)
    for name in names:
        assert out.count(f" {name} ") == 1

    claim = ms.load_study(first)
    small = tables(name=first, claim=claim.tables["claim"])
    ms.run(ms.Study(**small), folder / "runs" / first)
    lines = moe_sim("claims")[1].splitlines()
    line = next(line for line in lines if first in line)
    assert "undecided" in line and "not run" not in line


def test_a_study_without_claims_is_drawn(folder, moe_sim):
    """Every loss that has values, and no claimed line."""
    assert moe_sim("run", write(folder, claim=[]), "--out", "run")[0] == 0
    results = ms.load_results(folder / "run")
    figure = plot_rates(results, [])
    drawn = [axes for axes in figure.axes if axes.lines]
    seen = [loss.name for loss in results.study.problem.losses if results.frame[f"loss:{loss.name}"].notna().any()]
    assert len(drawn) == len(seen) >= 3 and all(axes.get_title() == "" for axes in drawn)
    assert moe_sim("plot", "run", "--out", "rates.png")[0] == 0 and (folder / "rates.png").stat().st_size > 20_000


def test_plot_writes_the_same_bytes_twice(folder, moe_sim):
    assert moe_sim("run", write(folder), "--out", "run")[0] == 0
    before = contents(folder)
    status, out, _ = moe_sim("plot", "run")
    assert (status, out.strip()) == (0, "run/rates.svg")
    drawn = (folder / "run" / "rates.svg").read_bytes()
    assert drawn.lstrip().startswith(b"<?xml") and b"</svg>" in drawn
    assert moe_sim("plot", "run", "--out", "pictures/again.svg")[0] == 0
    assert (folder / "pictures" / "again.svg").read_bytes() == drawn
    assert moe_sim("plot", "run", "--out", "rates.png")[0] == 0
    height, width = matplotlib.image.imread(folder / "rates.png").shape[:2]
    assert width > height > 300
    assert set(contents(folder)) - set(before) == {"run/rates.svg", "pictures/again.svg", "rates.png"}
    assert before.items() <= contents(folder).items()


def test_figure_shows_the_data(folder):
    """One panel a claim; its lines go through the losses of the run."""
    results = ms.run(study())
    verdicts = ms.judge(results)
    figure = plots.plot_rates(results, verdicts)
    assert len(figure.axes) == len(verdicts) == 2
    for axes, v in zip(figure.axes, verdicts, strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        assert (v.sizes, pytest.approx(v.mean)) in drawn
        assert (v.sizes, pytest.approx(v.near_minimiser["mean"])) in drawn
        assert v.verdict in axes.get_title()


def test_rates_are_drawn_on_own_axes():
    """In the user's style, one claim or all, and nothing beside the axes."""
    results = ms.run(study())
    verdicts = ms.judge(results)
    figure = Figure()
    one = figure.subplots()
    size = matplotlib.rcParams["axes.titlesize"]
    assert ms.plot_rates(results, verdicts[:1], ax=one) is figure and verdicts[0].verdict in one.get_title()
    assert figure.axes == [one] and figure.legends == [] and matplotlib.rcParams["axes.titlesize"] == size
    own = Figure().subplots(1, 2)
    ms.plot_rates(results, ax=own)
    assert [axes.get_ylabel() for axes in own] == [axes.get_ylabel() for axes in ms.plot_rates(results).axes]
    with pytest.raises(InputError, match="ax holds 1 axes for 2 panels: pass as many"):
        ms.plot_rates(results, ax=one)


def test_less_than_a_decade_has_several_ticks():
    axes = Figure().subplots()
    axes.plot([1e2, 1e4], [0.013, 0.031])
    frame(axes, "", "")
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
    assert axes.yaxis.get_major_formatter()(0.02) == "0.02"


@pytest.mark.parametrize("start", ["data", "truth", "wide"])
def test_a_start_that_knows_the_truth_is_seen(folder, moe_sim, start):
    path = write(folder, fit__start=start)
    status, out, _ = moe_sim("run", path, "--out", "run")
    assert status == 0
    # The column of the start is found by its heading, since "truth" might be said elsewhere.
    lines = [line.replace("┃", "│").split("│") for line in out.splitlines() if "│" in line or "┃" in line]
    column = next(k for k, cell in enumerate(lines[0]) if cell.strip() == "start")
    assert {line[column].strip() for line in lines[1:] if line[column].strip()} == {start}
    assert {v["start"] for v in json.loads(moe_sim("verdict", "run", "--json")[1])["verdicts"]} == {start}
    caption = plots.caption(ms.load_results("run"))
    assert f"start: {start}" in caption
    assert ("USES THE TRUTH" in caption) == (start != "data")
    results = ms.load_results("run")
    figure = plots.plot_rates(results, ms.judge(results))
    assert " ".join(figure.get_supxlabel().split()) == " ".join(caption.split())


def test_caption_counts_what_is_not_certified():
    results = ms.run(study())
    results.frame.loc[:2, "certificate"] = ["above_truth", "lone_start", "lone_start"]
    caption = plots.caption(results)
    assert "9 of 12 fits certified (2 lone_start, 1 above_truth)" in caption
    assert "4 replicates a size" in caption


def test_ctrl_c_says_that_the_work_is_kept(folder, moe_sim, monkeypatch):
    path = write(folder)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RUN, "_samples", interrupt)
        status, out, err = moe_sim("run", path, "--json")
    assert (status, out) == (130, "")
    assert err.startswith("interrupted: what was done is kept") and err.count("\n") == 1
    assert moe_sim("run", path)[0] == 0


@pytest.mark.parametrize(
    "command, quiet, begin",
    [
        ("moe-sim", True, "from moe_sim.cli.main import main; main()"),
        ("my-script.py", False, "import moe_sim; moe_sim.Fitter"),
    ],
)
def test_ctrl_c_while_jax_loads(command, quiet, begin):
    """The command line ends at once; a script that uses moe_sim gets its KeyboardInterrupt."""
    code = f"""
import os, signal, sys
class Impatient:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["{command}", "check-model", "prefix-shared-linear-exact"]
sys.meta_path.insert(0, Impatient())
{begin}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert (done.stderr == "") == quiet and ("KeyboardInterrupt" in done.stderr) != quiet


@pytest.mark.parametrize("arguments, expected", [(("--help",), 0), ((), 2)])
def test_help_names_every_command(moe_sim, arguments, expected):
    status, out, err = moe_sim(*arguments)
    assert status == expected
    assert err.startswith("error: pass a command") == bool(expected)
    assert all(f" {name} " in out for name in ("run", "verdict", "plot", "claims", "figures", "fit", "bench"))
