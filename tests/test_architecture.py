"""The order of the rooms, and that claims, figures and notes name each other."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import moe_sim as ms

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "moe_sim"
# A module imports only from rooms before its own, or from its own.
ROOMS = [
    "errors", "models", "data", "likelihood", "losses", "solvers", "fitting", "theory", "testing", "study", "rates",
    "simulation", "plots", "bridge", "cli",
]  # fmt: skip
EXEMPT = {"__init__", "__main__", "_engine"}
# A family of claims has one note of its name; its claims are named after it.
FAMILIES = [
    "prefix-independent", "prefix-shared-linear", "prefix-shared-network", "prefix-mixture", "softmax-gaussian",
    "gaussian-gated", "ls-softmax", "ls-sigmoid", "ls-normalised", "ls-quadratic", "ls-cosine", "ls-laplace",
    "input-free", "softmax-multinomial", "temperature-gaussian", "topk-gaussian",
]  # fmt: skip
CLAIM = re.compile(rf"\b(?:{'|'.join(FAMILIES)})-\w+(?:-\d+)?")
# Templates are files that users get, no modules.
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "templates")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full names of all that a module imports, wherever in it: ``from moe_sim import plots`` is moe_sim.plots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A stub is read by ``lazy_loader``, which asks for relative imports.
            assert node.level == (path.suffix == ".pyi"), f"{path}: write imports in full"
            above = [*(["moe_sim"] if node.level else []), *([node.module] if node.module else [])]
            found |= {".".join([*above, alias.name]) for alias in node.names}
    return found


def rooms_used(path: Path) -> set[str]:
    """The rooms a module imports from. ``import moe_sim`` is all that the package makes public."""
    found = set()
    for name in imported(path):
        if name.split(".")[0] == "moe_sim":
            rest = name.split(".")[1:]
            found |= {rest[0]} - EXEMPT if rest else rooms_used(PACKAGE / "__init__.pyi")
    return found


def test_every_module_has_a_room():
    assert {room(path) for path in MODULES} - EXEMPT == set(ROOMS)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(p) not in EXEMPT], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rooms_are_in_order(path):
    allowed = set(ROOMS[: ROOMS.index(room(path)) + 1])
    assert rooms_used(path) <= allowed


def test_the_order_is_read_from_the_code():
    """The test above sees what there is to see."""
    assert {"errors", "models", "fitting", "theory"} - rooms_used(PACKAGE / "study" / "problem.py") == {"theory"}
    assert {"plots", "simulation"} <= rooms_used(PACKAGE / "cli" / "runs.py")


@pytest.mark.parametrize("path", sorted((PACKAGE / "rates").glob("*.py")), ids=lambda p: p.stem)
def test_rates_need_numpy_and_scipy_only(path):
    """What a verdict is made of runs where there is no JAX."""
    shared = [PACKAGE / "study" / name for name in ("schema.py", "table.py")]
    used = {name for file in (path, *shared) for name in imported(file)}
    ours = {name for name in used if name.startswith("moe_sim")}
    known = ("moe_sim.rates.", "moe_sim.study.schema.", "moe_sim.study.table.", "moe_sim.errors.")
    assert all(name.startswith(known) for name in ours)
    assert {name.split(".")[0] for name in used} - {"numpy", "scipy", "moe_sim"} <= set(sys.stdlib_module_names)


def test_a_claim_is_named_as_its_file():
    assert [ms.load_study(name).name for name in ms.registry()] == ms.registry()


def test_every_claim_has_its_figures_and_every_figure_its_claim():
    figures = {path.name for path in (ROOT / "figures").iterdir() if path.name.startswith(tuple(FAMILIES))}
    drawn = [f"{name}{part}" for name in ms.registry() for part in ("", "-modulus")]
    assert figures == {f"{name}{suffix}" for name in drawn for suffix in (".svg", ".png", ".csv")}


def family(claim: str) -> str:
    """The note of a claim: prefix-shared-linear-over is told in prefix-shared-linear.md."""
    (found,) = [name for name in FAMILIES if claim.startswith(f"{name}-")]
    return f"{found}.md"


def test_every_family_has_claims_and_every_claim_its_family():
    assert {family(claim) for claim in ms.registry()} == {f"{name}.md" for name in FAMILIES}
    assert all(CLAIM.fullmatch(claim) for claim in ms.registry())


def test_every_claim_has_its_note_and_every_note_its_claims():
    """A claim is spoken of in one note, that of its family; no note speaks of a claim that there is not."""
    named = {path.name: set(CLAIM.findall(path.read_text())) for path in (ROOT / "theory_notes").glob("*.md")}
    where = {claim: [note for note, claims in named.items() if claim in claims] for claim in ms.registry()}
    assert where == {claim: [family(claim)] for claim in ms.registry()}
    assert set().union(*named.values()) == set(ms.registry())


def test_notes_show_figures_that_exist():
    shown = Counter()
    for path in (ROOT / "theory_notes").glob("*.md"):
        for name in re.findall(r"figures/([\w-]+\.(?:svg|png|csv))", path.read_text()):
            shown[name] += 1
            assert (ROOT / "figures" / name).is_file(), f"{path.name} shows {name}"
    assert {f"{name}{part}.svg" for name in ms.registry() for part in ("", "-modulus")} <= set(shown)
