"""Many processes or machines: the same chunks, computed by the workers of a Dask cluster (optional extra ``dask``)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moe_sim._engine import set_up
from moe_sim.errors import InputError, whole

_CONNECT = "20s"  # how long a scheduler is waited for


@contextmanager
def cluster(where: str) -> Iterator[Any]:
    """A Dask client: of a scheduler's address, or with ``local:N`` of N worker processes on this machine.

    The cores of this machine are shared out among local workers. Raises ``InputError`` where there is no such
    scheduler, or no Dask.
    """
    import jax

    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(f"--dask {where}: Dask is not installed, pip install 'moe_sim[dask]'") from None
    if where.startswith("local:"):
        text = where.removeprefix("local:")
        count = whole("--dask local:", float(text) if text.isdigit() else text, 1, 1000)
        with (
            _interrupts(),
            LocalCluster(
                n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50,
                env={"MOE_SIM_CORES": str(max(1, jax.local_device_count("cpu") // count))}, preload=[__name__],
            ) as local,
            Client(local) as client,
        ):  # fmt: skip
            yield client
        return
    try:
        client = Client(where, timeout=_CONNECT)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--dask {where}: no scheduler answers there ({error}): pass its address, as in tcp://host:8786, or local:4"
        ) from None
    with client:
        yield client


def dask_setup(worker: Any) -> None:
    """Dask calls it where a local worker starts: a Ctrl-C reaches all processes, workers leave it to ours.

    A script that imports moe_sim is imported by the worker too, before that knows its MOE_SIM_CORES.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up()


@contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C while workers start or stop surfaces as whatever failed of it: it is Ctrl-C all the same."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            cause = cause.__cause__ or cause.__context__
        raise


def compute(client: Any, function: Callable, tasks: list[tuple]) -> Iterator[tuple[tuple, Any]]:
    """``(task, function(*task))`` for each task, in the order in which they are done.

    A task whose worker dies is done again by another. What is not done when the caller stops is cancelled.
    Raises ``InputError`` for a task that three workers in a row died of.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {client.submit(function, *task, pure=False, priority=-k): task for k, task in enumerate(tasks)}
    done = as_completed(futures)
    try:
        for future in done:
            try:
                result = future.result()
            except KilledWorker as error:
                raise InputError(
                    f"the workers that computed n = {futures[future][1]:g} died, the last was {error.last_worker}: "
                    "give workers more memory (see their logs); what is done is kept, the same command goes on"
                ) from None
            yield futures.pop(future), result
    finally:
        client.cancel(list(futures))
