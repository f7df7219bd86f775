"""Models in files outside the package: short, sound, and shown as they are."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import moe_sim as ms

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
MOST_LINES = 45


def study(name: str) -> ms.Study:
    return ms.load_study(FOLDER / f"{name}.toml")


def test_there_are_enough_of_them():
    assert len(NAMES) >= 7 and all((FOLDER / f"{name}.py").is_file() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name):
    p = study(name).problem
    ms.testing.check_model(p.model, p.truth, p.law)


def test_the_note_shows_the_files():
    text = (ROOT / "theory_notes" / "models.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown == [(FOLDER / f"{name}.py").read_text() for name in ("sigmoid", "multinomial", "student_gate")]


def test_the_ten_lines_of_the_readme_are_a_model():
    text = (ROOT / "README.md").read_text()
    lines = text.split("### Your own model in ten lines")[1].split("\n\n    import jax")[1].split("\n\nStarts")[0]
    names: dict = {}
    exec(textwrap.dedent("    import jax" + lines), names)
    model = names["TanhGate"](0.3)
    truth = {"bias": np.array([0.2, 0.0]), "gate": np.array([[1.0], [0.0]]), "slope": np.array([[1.5], [-1.0]])}
    ms.testing.check_model(model, truth, ms.Grid(1, -2.0, 2.0, 30))


def exact(study: ms.Study) -> ms.Study:
    """The study with exact samples: two programs less to compile than with streamed ones."""
    tables = study.tables
    law = tables["law"] | ({} if tables["law"]["name"] == "grid" else {"finite": True})
    return study.with_tables(tables | {"law": law, "sample": tables["sample"] | {"mode": "exact"}})


@pytest.mark.parametrize("name", NAMES)
def test_exact_fits_are_certified(name, tmp_path):
    """At least 0.9 of them, and the function is found."""
    frame = ms.run(exact(study(name)).replace(sizes=[1e3, 3e3], replicates=5)).frame
    assert np.mean(frame["certificate"] == "certified") >= 0.9
    assert frame["loss:function"].median() < 0.1
