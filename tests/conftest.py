"""Makes ``import nist`` and ``import models`` work, and double precision the rule, before any test module loads.

It also records where each ``InputError`` of the suite was made: test_messages.py asks whether every one was.
"""

import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import moe_sim as _  # noqa: F401  (switches JAX to x64: the NIST models need it too)
from moe_sim.errors import InputError

MADE: set[tuple[str, int]] = set()  # file and line of every InputError that was made
_WHOLE = pytest.StashKey[bool]()


def _recording(self, *arguments):
    caller = sys._getframe(1)
    MADE.add((caller.f_code.co_filename, caller.f_lineno))
    super(InputError, self).__init__(*arguments)


InputError.__init__ = _recording  # type: ignore[method-assign]


def pytest_collection_modifyitems(config, items):
    """What looks back at the whole suite comes last, and only where the whole suite is run."""
    files = {Path(item.path).name for item in items}
    whole = files == {p.name for p in Path(__file__).parent.glob("test_*.py")}
    config.stash[_WHOLE] = whole and not config.option.keyword and not config.option.markexpr
    items.sort(key=_turn)


def _turn(item) -> int:
    """The bridge comes late: PyTorch and transformers bring a million objects, which slow whatever allocates."""
    return 2 if item.get_closest_marker("last") else int("test_bridge" in item.path.name)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """The garbage collector need not look again, at every trace of JAX, through all that earlier modules left."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def made(request):
    """Where InputErrors were made so far; skips unless the whole suite runs."""
    if not request.config.stash[_WHOLE]:
        pytest.skip("needs the whole suite")
    return MADE


@pytest.fixture
def moe_sim(monkeypatch, capsys):
    """A command line: ``moe_sim("run", "study.toml")`` gives exit status, standard output and standard error."""
    from tiny import call

    return lambda *arguments: call(monkeypatch, capsys, *arguments)
