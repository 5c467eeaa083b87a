"""Run checks in processes that may hang or die, and lose nothing but the check that did it.

A worker loads the backend once and then takes one check at a time over a pipe. The parent gives each check its time;
a worker that is late or gone is replaced, its check recorded as failed, and the run goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections import deque
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.conformance.backend import load_backend
from refattn.conformance.checks import perform
from refattn.conformance.records import CheckId, Record
from refattn.conformance.registry import find_contracts
from refattn.conformance.trial import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from multiprocessing.connection import Connection

    from refattn.conformance.backend import Backend
    from refattn.conformance.contract import Contract
    from refattn.conformance.settings import Settings

__all__ = ["Target", "run_here", "run_isolated"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START_SECONDS = 180.0  # importing a framework on a busy machine


class Target(NamedTuple):
    """What a worker loads: the backend's name, its device, and the package that holds the contracts."""

    spec: str
    device: str | None = None
    package: str = "refattn.contracts"


def run_here(
    checks: Iterable[CheckId], backend: Backend, contracts: Mapping[str, Contract], settings: Settings
) -> Iterator[Record]:
    """Run checks in this process, one after the other."""
    benches: dict[str, Bench] = {}
    for check in checks:
        if backend.dtypes is not None and check.dtype not in backend.dtypes:
            yield Record(check, "skipped", f"{check.dtype} is not among its DTYPES", backend=backend.name)
            continue
        if check.mechanism not in benches:
            benches[check.mechanism] = Bench(backend, contracts[check.mechanism])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a backend warns of is its own affair
            yield perform(check, benches[check.mechanism], settings)


def _work(pipe: Connection, target: Target, settings: Settings) -> None:
    """Serve checks until told to stop; the first message says whether the backend could be loaded."""
    try:
        contracts = find_contracts(target.package)
        backend = load_backend(target.spec, contracts, target.device)
        for contract in contracts.values():
            Bench(backend, contract)
    except BaseException as error:  # noqa: BLE001  # importing runs foreign code: anything may come
        pipe.send(f"cannot be loaded: {type(error).__name__}: {error}")
        return
    pipe.send(None)
    while (check := pipe.recv()) is not None:
        try:
            pipe.send(next(run_here([check], backend, contracts, settings)))
        except Exception as error:  # noqa: BLE001  # a fault of the kit itself must not look like silence
            pipe.send(Record(check, "failed", f"the kit broke: {type(error).__name__}: {error}", backend=target.spec))


class _Worker:
    """One process and what it is doing."""

    def __init__(self, target: Target, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, target, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.check: CheckId | None = None
        self.ready = False
        self.deadline = time.monotonic() + _START_SECONDS

    def give(self, check: CheckId, seconds: float) -> None:
        self.check, self.deadline = check, time.monotonic() + seconds
        self.pipe.send(check)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool:
    """A fixed number of workers over one queue of checks."""

    def __init__(self, checks: Iterable[CheckId], target: Target, settings: Settings, jobs: int) -> None:
        self.queue = deque(checks)
        self.target = target
        self.settings = settings
        self.workers = [_Worker(target, settings) for _ in range(max(1, min(jobs, len(self.queue))))]

    def records(self) -> Iterator[Record]:
        try:
            while self.queue or any(worker.check for worker in self.workers):
                for worker in self._awake():
                    yield from self._attend(worker)
                yield from self._overdue()
        finally:
            for worker in self.workers:
                worker.end()

    def _awake(self) -> list[_Worker]:
        deadline = min(worker.deadline for worker in self.workers)
        ready: list[Any] = list(wait([w.pipe for w in self.workers], timeout=max(0.05, deadline - time.monotonic())))
        return [worker for worker in self.workers if worker.pipe in ready]

    def _attend(self, worker: _Worker) -> Iterator[Record]:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            yield from self._lost(worker, f"the process died (exit code {worker.process.exitcode})")
            return
        if worker.ready:
            worker.check = None
            yield message
        elif message is not None:
            yield from self._give_up(message)
            return
        worker.ready = True
        self._next(worker)

    def _next(self, worker: _Worker) -> None:
        worker.deadline = float("inf")
        if self.queue:
            worker.give(self.queue.popleft(), self.settings.timeout)

    def _overdue(self) -> Iterator[Record]:
        for worker in list(self.workers):
            if time.monotonic() > worker.deadline:
                limit = self.settings.timeout if worker.ready else _START_SECONDS
                yield from self._lost(worker, f"no answer within {limit:g} s")

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Record]:
        """Record the check that was lost and put a fresh worker in its place."""
        if worker.check is not None:
            yield Record(worker.check, "failed", reason, backend=self.target.spec)
        elif not worker.ready:
            yield from self._give_up(f"cannot be loaded: {reason}")
            return
        worker.end()
        self.workers[self.workers.index(worker)] = _Worker(self.target, self.settings)

    def _give_up(self, reason: str) -> Iterator[Record]:
        """Fail everything that is left: the backend cannot be loaded at all."""
        pending = [worker.check for worker in self.workers if worker.check]
        left = [*pending, *self.queue]
        self.queue.clear()
        for worker in self.workers:
            worker.check, worker.deadline = None, float("inf")
        if left:
            yield Record(left[0], "failed", reason, backend=self.target.spec)
        for check in left[1:]:
            yield Record(check, "skipped", "the backend cannot be loaded", backend=self.target.spec)


def run_isolated(
    checks: Iterable[CheckId],
    target: Target,
    settings: Settings,
    *,
    jobs: int = 1,
    progress: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Run checks in worker processes and return their records in the order of the checks.

    Parameters
    ----------
    checks : iterable of CheckId
        What to run.
    target : Target
        What the workers load.
    settings : Settings
        Limits; ``timeout`` applies to each check.
    jobs : int
        Number of processes, one thread each.
    progress : callable, optional
        Called with every record as it comes.
    """
    checks = list(checks)
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # inherited: as many busy threads as processes
    found: dict[CheckId, Record] = {}
    try:
        for record in _Pool(checks, target, settings, jobs).records():
            found[record.check] = record
            if progress is not None:
                progress(record)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return [found[check] for check in checks]
