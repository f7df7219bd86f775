"""Makes ``import nist`` and ``import models`` work, and double precision the rule, before any test module loads.

It also records where each ``InputError`` of the suite was made, and fails a whole suite that misses one.
"""

import gc
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import moe_sim as _  # noqa: F401  (switches JAX to x64: the NIST models need it too)
from moe_sim.errors import InputError
from moe_sim.fitting import kept, memory

gc.set_threshold(200_000)  # traces of JAX make objects by the million, which stay: not to be looked through every 700

kept.ON = False  # a program to be kept takes longer to make (tests/test_kept.py)

MOST_MEMORY = 2_000_000_000  # bytes of a process, above which it forgets what it has compiled
MADE: set[tuple[str, int]] = set()  # file and line of every InputError that was made
_WHOLE = pytest.StashKey[bool]()


def _recording(self, *arguments):
    caller = sys._getframe(1)
    MADE.add((caller.f_code.co_filename, caller.f_lineno))
    super(InputError, self).__init__(*arguments)


InputError.__init__ = _recording  # type: ignore[method-assign]


def pytest_collection_modifyitems(config, items):
    """Notes whether the whole suite is run.

    The bridge comes last: PyTorch and transformers bring a million objects, which slow whatever allocates.
    """
    files = {Path(item.path).name for item in items}
    whole = files == {p.name for p in Path(__file__).parent.glob("test_*.py")}
    config.stash[_WHOLE] = whole and not config.option.keyword and not config.option.markexpr
    items.sort(key=lambda item: "test_bridge" in item.path.name)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Where several processes run the suite, each tells the first one what it saw."""
    told = getattr(node, "workeroutput", {})
    MADE.update(tuple(site) for site in told.get("made", []))
    node.config.stash[_WHOLE] = told.get("whole", False)


def pytest_sessionfinish(session, exitstatus):
    """A suite that was run to its end fails where no test produced some error text."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"made": sorted(MADE), "whole": config.stash.get(_WHOLE, False)}
    elif config.stash.get(_WHOLE, False) and exitstatus == pytest.ExitCode.OK:
        from test_messages import PACKAGE, error_sites

        missed = sorted(f"{Path(file).relative_to(PACKAGE)}:{line}" for file, line in error_sites() - MADE)
        if missed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print(f"\nFAILED: no test produces the messages of {', '.join(missed)}")


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """The garbage collector need not look again, at every trace of JAX, through all that earlier modules left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
    """Most tests spend their time on compiling, so XLA does little about speed, here and in processes they start.

    Modules marked ``computes`` get what users get.
    """
    import jax

    little = request.node.get_closest_marker("computes") is None
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(little))
    jax.config.update("jax_disable_most_optimizations", little)


@pytest.fixture(autouse=True)
def bounded():
    """Programs that earlier tests compiled are kept, as later ones share them, until they take too much memory."""
    yield
    if memory.resident() > MOST_MEMORY:
        gc.unfreeze()
        memory.forget()


@pytest.fixture
def few_starts(monkeypatch):
    """A search of the modulus with few starts and without the way back, where these are enough."""
    for name, value in (("STARTS", 16), ("SWEEPS", 1)):
        monkeypatch.setattr(f"moe_sim.theory.modulus.{name}", value)


@pytest.fixture
def moe_sim(monkeypatch, capsys):
    """A command line: ``moe_sim("run", "study.toml")`` gives exit status, standard output and standard error."""
    from tiny import call

    return lambda *arguments: call(monkeypatch, capsys, *arguments)
