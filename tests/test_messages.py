"""Every error text has a test that produces it, every certificate too, and the accounting adds up."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import mutants
import numpy as np
import pandas as pd
import pytest
from tiny import study

import moe_sim as ms
from moe_sim.fitting.multistart import CERTIFICATES
from moe_sim.plots import rates as plots
from moe_sim.simulation.runner import Results

PACKAGE = Path(ms.__file__).parent
ERRORS = ("InputError", "ModelError")


def error_sites() -> set[tuple[str, int]]:
    """File and first line of every error that the package makes: conftest.py asks whether each was made."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                found.add((str(path), node.lineno))
    return found


def test_error_sites_are_seen():
    assert len(error_sites()) > 80


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: m.name)
def test_every_mutant_applies(mutant):
    """The line that it spoils is there, once, and what it makes of it is still Python."""
    text = (PACKAGE / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.new != mutant.old
    ast.parse(text.replace(mutant.old, mutant.new))
    assert all((Path(__file__).parent / f"test_{name}.py").is_file() for name in mutant.tests.split())


def results(seed: int) -> Results:
    """Constructed results of the tiny study: any certificates, losses that fall."""
    rng = np.random.default_rng(seed)
    made = study(sample__replicates=200)
    sizes = np.repeat(made.problem.sizes, 200)
    names = rng.choice(list(CERTIFICATES), len(sizes), p=rng.dirichlet(np.ones(len(CERTIFICATES))))
    columns = {"n": sizes, "replicate": np.tile(np.arange(200), 3), "certificate": names}
    for loss in made.problem.losses:
        value = rng.chisquare(3, len(sizes)) / np.sqrt(sizes)
        columns |= {f"loss:{loss.name}": value, f"near:{loss.name}": value}
    return Results(made, pd.DataFrame(columns), {})


@pytest.mark.parametrize("seed", range(4))
def test_the_accounting_adds_up(seed):
    """Requested = certified + every status that is not, in verdicts, in the table and in the caption."""
    made = results(seed)
    counts = Counter(made.frame["certificate"])
    for v in ms.judge(made):
        assert v.requested == 600 and v.certified == pytest.approx(counts["certified"] / 600)
        assert v.uncertified == {k: c for k, c in counts.items() if k != "certified"}
        assert round(v.certified * 600) + sum(v.uncertified.values()) == 600
    for text in (ms.judge(made)[0].accounting, plots.caption(made)):
        shown = {k: int(c.replace(",", "")) for c, k in re.findall(r"(\d[\d,]*) (\w+)", text)}
        certified, requested = re.search(r"(\d[\d,]*) of (\d[\d,]*)", text).groups()
        assert int(certified) == counts["certified"] and int(requested) == 600
        assert {k: shown[k] for k in CERTIFICATES if k in shown and k != "certified"} == {
            k: c for k, c in counts.items() if k != "certified"
        }
