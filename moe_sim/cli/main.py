"""The command line: parses, calls, prints. Exit status 0 done, 1 the run failed, 2 bad input.

Modules that compute are imported where a command needs them: what only reads a study must not wait for JAX.
"""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from types import FrameType
from typing import Any

import typer

from moe_sim.cli import bridge, checks, fit, new, replay, runs, theory
from moe_sim.cli.console import err_console
from moe_sim.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Rates of mixtures of experts, checked.",
)
for group in (runs, new, fit, checks, theory, replay):
    app.add_typer(group.app)
app.add_typer(bridge.app, name="bridge")

_YOUNG = 200_000  # objects made between two looks of the garbage collector


def main() -> None:
    """Entry point: bad input becomes one line and exit status 2, Ctrl-C status 130."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see ``_engine``
        signal.signal(signal.SIGINT, _interrupt)
    # Loading JAX and tracing make objects by the million, which stay: to look through them every 700 took a tenth.
    gc.set_threshold(_YOUNG)
    warnings.showwarning = _warn
    try:
        status = app(standalone_mode=False) or 0  # outside standalone mode a typer.Exit comes back as its status
    except InputError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Exception as error:
        # Typer's own complaints about arguments are input errors too; anything else is a failure of ours.
        if hasattr(error, "format_message"):
            _fail(error.format_message() or "pass a command, as in moe-sim claims")
        told = _blame(error)
        if told is None:
            raise
        _fail(told)
    if status == 130:
        err_console.print("interrupted: what was done is kept, the same command goes on from there")
    sys.exit(status)


def _blame(error: Exception) -> str | None:
    """What is wrong with a model from outside, where that raised the error."""
    if "moe_sim.models.loading" not in sys.modules:
        return None
    return sys.modules["moe_sim.models.loading"].blame(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: a ``KeyboardInterrupt``, but the end of the process while a module loads, as in ``_engine``.

    What is half loaded turns an interrupt into errors of many kinds. A run folder bears such an end at any time.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        frame = frame.f_back
    raise KeyboardInterrupt


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    err_console.print(f"warning: {' '.join(str(message).split())}", soft_wrap=True, markup=False, highlight=False)


def _fail(message: str) -> None:
    err_console.print(f"error: {' '.join(message.split())}", soft_wrap=True, markup=False, highlight=False)
    sys.exit(2)
