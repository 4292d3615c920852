"""Run heavy steps in parallel: in threads, or on the workers of a Dask cluster if one is given."""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from joblib import Parallel, cpu_count, delayed
from joblib.parallel import get_active_backend

from hvs_lib import cache
from hvs_lib.project import HvsError, environment, set_environment

if TYPE_CHECKING:
    from concurrent.futures import Future

    from distributed import Client

SCHEDULER = "DASK_SCHEDULER_ADDRESS"  # environment variable, also read by Dask
_PATIENCE_S = 10
_WITHOUT_WORKER_S = 60  # until a run that has lost all its workers fails
_AHEAD = 4  # calls submitted at a time for each thread of the cluster


def side_by_side(function: Callable, *arguments: Iterable, n_jobs: int = -1) -> Iterator:
    """Yield what a function returns for each of its arguments, in order, as `map` does.

    The calls run in `n_jobs` threads; -1: one per core. If `DASK_SCHEDULER_ADDRESS` or
    ``joblib.parallel_config("dask")`` names a cluster, they run on its workers: the function, with
    everything it holds, is sent to each worker once, its arguments with each call.
    """
    calls = zip(*arguments, strict=True)
    client = _client()
    if client is None:
        threads = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
        return threads(delayed(function)(*each) for each in calls)
    return _on_workers(client, function, calls)


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Use a Dask cluster in this process and its children; "local": start one worker per core.

    Raises
    ------
    HvsError
        If Dask is not installed, no scheduler answers, or a worker has different versions.
    """
    with ExitStack() as stack:
        if address == "local":
            one_each = {"n_workers": cpu_count(), "threads_per_worker": 1}
            local = _dask().LocalCluster(**one_each, dashboard_address="127.0.0.1:0")
            address = stack.enter_context(local).scheduler_address
        if address:
            stack.enter_context(environment({SCHEDULER: address}))
            stack.callback(_joined.cache_clear)
            stack.enter_context(_joined(address))
        yield


def _on_workers(client: Client, function: Callable, calls: Iterable[tuple]) -> Iterator:
    """Submit calls in order.

    joblib's own backend would wait forever if the workers of a task are killed, and would lose the
    function with the worker that holds it; here it is the result of a task, which is recomputed.
    """
    ours, running = _versions(), deque()
    submit = client.get_executor(pure=False).submit  # its futures are done once the result is here
    function = client.submit(lambda held: held, function, pure=False)
    try:
        for each in calls:
            running.append(submit(_call, ours, function, each))
            if len(running) >= _AHEAD * sum(client.nthreads().values()):
                yield _result(client, running.popleft())
        while running:
            yield _result(client, running.popleft())
    finally:
        for left in running:
            left.cancel()


def _call(ours: tuple, function: Callable, arguments: tuple) -> object:
    """Call a function on a worker, which may have joined or restarted since the check."""
    if differences := _differences(ours):
        raise HvsError(f"a Dask worker has {'; '.join(differences)}")
    return function(*arguments)


def _result(client: Client, future: Future) -> object:
    _wait(client, future)
    try:
        return future.result()
    except _dask().KilledWorker as error:
        raise HvsError(
            f"{error.allowed_failures + 1} Dask workers were killed at the same task, the last at "
            f"{error.last_worker.address}: see their logs. If memory ran out, start fewer workers "
            "on a machine, or raise normal_stride, and run again: what was fitted is reused."
        ) from error
    except Exception:
        _compare(client)  # different code may fail before the versions are compared
        raise


def _wait(client: Client, future: Future) -> None:
    """Wait for a result, but only `_WITHOUT_WORKER_S` once all workers have left."""
    last = time.monotonic()
    while not future.done():
        with suppress(TimeoutError):
            future.exception(timeout=1)
            return
        if client.nthreads():
            last = time.monotonic()
        elif time.monotonic() - last > _WITHOUT_WORKER_S:
            address = client.scheduler.address
            raise HvsError(
                f"the Dask scheduler at {address} has had no worker for {_WITHOUT_WORKER_S} s: "
                f"start one with `dask worker {address}` and run again: what was fitted is reused."
            )


def _client() -> Client | None:
    """Return the client of the chosen cluster, if any, after checking its workers."""
    backend, _ = get_active_backend()
    client = getattr(backend, "client", None)  # of joblib.parallel_config("dask")
    if client is None and (address := os.environ.get(SCHEDULER)):
        return _joined(address)
    return client and _checked(client)


@functools.cache
def _joined(address: str) -> Client:
    dask = _dask()
    try:
        client = dask.Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise HvsError(
            f"no Dask scheduler answers at {address} within {_PATIENCE_S} s: start one with "
            f"`dask scheduler`, or run without --dask and {SCHEDULER}."
        ) from error
    try:
        return _checked(client)
    except HvsError:
        client.close()
        raise


@functools.cache
def _checked(client: Client) -> Client:
    """Refuse a cluster without workers, or with a worker that has different code or packages.

    From then on, Dask does not warn of large objects, such as the training rows, in this process.
    """
    from dask import config

    config.set({"distributed.admin.large-graph-warning-threshold": "100 GiB"})
    address = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout=_PATIENCE_S)
    except TimeoutError as error:
        raise HvsError(
            f"the Dask scheduler at {address} has no worker: start one with `dask worker {address}`"
        ) from error
    _compare(client)
    return client


def _compare(client: Client) -> None:
    ours, problems = _versions(), []
    for worker, found in client.run(_differences, ours, on_error="return").items():
        if isinstance(found, OSError):  # the worker has left
            continue
        if isinstance(found, Exception):  # such as a missing or older workbook
            problems.append(f"{worker} lacks this code: {found}")
        else:
            problems += [f"{worker} has {difference}" for difference in found]
    if problems:
        rule = "the Dask workers must have the code and packages of this process:"
        raise HvsError("\n".join([rule, *problems]))


@functools.cache
def _differences(ours: tuple[tuple[str, str], ...]) -> list[str]:
    theirs = dict(_versions())
    return [
        f"{name} {theirs.get(name)}, here it is {our}"
        for name, our in ours
        if theirs.get(name) != our
    ]


def _versions() -> tuple[tuple[str, str], ...]:
    """Return what must be the same on each worker; also make linear algebra repeatable there."""
    set_environment()
    return (*cache.versions().items(), ("distributed", version("distributed")))


def _dask():
    try:
        import distributed
    except ImportError as error:
        raise HvsError("Dask is not installed: `pip install -e '.[dask]'` does it.") from error
    return distributed
