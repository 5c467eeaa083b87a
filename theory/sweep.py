"""Sweeps: one function, many cells, on whatever computes; the same numbers everywhere, bit for bit.

A cell's random numbers follow from its coordinates, its linear algebra runs on one thread, and its rows stand in the
table where the cell stands in the list: one process, two processes or a cluster give the same table. With a folder,
what has been computed is kept, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import inspect
import multiprocessing
import os
import signal
import threading
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import refattn
from theory.cells import canonical, describe, grid, plain, seed_of
from theory.experiment import as_mapping
from theory.store import Folder
from theory.table import ResultTable
from theory.threads import one_thread, one_thread_from_now_on, one_thread_in_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from theory.experiment import Experiment
    from theory.table import Row

__all__ = ["CellError", "Plan", "execute", "grid", "plan_of", "process_pool", "run_experiment", "sweep"]


class CellError(Exception):
    """A cell could not be computed; the message names the sweep, the cell and the reason."""


@dataclass(frozen=True)
class Plan:
    """What a sweep computes, before anything is computed.

    Attributes
    ----------
    name : str
        Of the sweep; the seeds depend on it.
    function : callable
        ``(cell, seed: np.random.SeedSequence) -> iterable of rows``. To run in other processes it must be a function
        of a module, or a ``functools.partial`` of one.
    cells : sequence of mapping
        Coordinates: names and JSON scalars, each cell once.
    seed : int
        Not negative.
    identity : mapping
        What else makes the numbers what they are, such as parameters; goes into the manifest.
    """

    name: str
    function: Callable[[Any, np.random.SeedSequence], Iterable[Mapping[str, Any]]]
    cells: Sequence[Mapping[str, Any]]
    seed: int
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a bad seed, coordinates that are no scalars, and cells that occur twice."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} is not an integer >= 0")
        seen: set[str] = set()
        for cell in self.cells:
            text = canonical(cell)
            if text in seen:
                raise ValueError(f"{self.name}: cell {text} occurs twice; the two would draw the same numbers")
            seen.add(text)

    @property
    def manifest(self) -> dict[str, Any]:
        """What tells this run from others: a folder that says otherwise holds another run's cells."""
        return {
            "experiment": self.name,
            **self.identity,
            "seed": int(self.seed),
            "version": refattn.__version__,
            "numpy": np.__version__,
            "source": _source_of(self.function),
        }


def sweep(
    function: Callable[[Any, np.random.SeedSequence], Iterable[Mapping[str, Any]]],
    cells: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    name: str | None = None,
    executor: Any = None,
    out: Path | str | None = None,
    progress: bool | None = None,
) -> ResultTable:
    """Compute a function in every cell and gather the rows.

    Parameters
    ----------
    function : callable
        ``(cell, seed: np.random.SeedSequence) -> iterable of rows``; each row has at least ``source``, ``metric`` and
        ``value``. The coordinates of the cell need not be repeated in the rows.
    cells : iterable of mapping
        Coordinates, such as `grid` returns.
    seed : int
        Of the whole sweep; each cell gets a seed of its own.
    name : str, optional
        Of the sweep; that of the function if not given. Another name gives other random numbers.
    executor : optional
        Whatever has ``submit``, as those of ``concurrent.futures`` have, or ``get_executor``, as a
        ``distributed.Client`` has; in this process if not given.
    out : path, optional
        Folder that keeps the cells and the tables. If it holds cells of this very sweep, they are not computed again.
    progress : bool, optional
        Whether a bar is shown on standard error; if not given, when that is a terminal.

    Returns
    -------
    ResultTable
        The rows in the order of the cells.

    Raises
    ------
    ValueError
        If a cell occurs twice or is not made of scalars, or if ``out`` holds another run's cells.
    CellError
        If a cell could not be computed. Cells that were computed before are kept in ``out``.

    Examples
    --------
    >>> def mean(cell, seed):
    ...     draws = np.random.default_rng(seed).normal(size=cell["n"])
    ...     yield {"source": "simulation", "metric": "mean", "value": draws.mean()}
    >>> table = sweep(mean, grid(n=[10, 1000]), seed=0)
    >>> [(row["metric"], row["n"]) for row in table]
    [('mean', 10), ('mean', 1000)]
    """
    name = name or getattr(function, "__qualname__", "")
    if not name:
        raise ValueError(f"name={name!r}: {function!r} has no name of its own, give one")
    plan = Plan(name, function, list(cells), seed)
    return _table_or_error(execute([plan], executor=executor, out=[out], progress=progress)[0])


def run_experiment(
    experiment: Experiment,
    parameters: Any = None,
    *,
    seed: int = 0,
    executor: Any = None,
    out: Path | str | None = None,
    progress: bool | None = None,
) -> ResultTable:
    """Run an experiment with its default parameters or others; as `sweep` otherwise."""
    plan = plan_of(experiment, experiment.parameters() if parameters is None else parameters, seed)
    return _table_or_error(execute([plan], executor=executor, out=[out], progress=progress)[0])


def plan_of(experiment: Experiment, parameters: Any, seed: int) -> Plan:
    """Return what running an experiment computes."""
    return Plan(
        experiment.name,
        partial(_simulated, experiment.simulate, parameters),
        experiment.cells(parameters),
        seed,
        {"parameters": as_mapping(parameters)},
    )


def _simulated(simulate: Any, parameters: Any, cell: Any, seed: np.random.SeedSequence) -> Iterable[Row]:
    rows: Iterable[Row] = simulate(parameters, cell, seed)
    return rows


def execute(
    plans: Sequence[Plan],
    *,
    executor: Any = None,
    out: Sequence[Path | str | None] = (),
    progress: bool | None = None,
) -> list[ResultTable | CellError]:
    """Compute the cells of several sweeps side by side, so that no process waits while another sweep has cells left.

    Parameters
    ----------
    plans : sequence of Plan
        The sweeps.
    executor, progress : optional
        As for `sweep`.
    out : sequence of path or None, optional
        One folder for each sweep.

    Returns
    -------
    list of ResultTable or CellError
        One for each sweep: its table, or why there is none.

    Raises
    ------
    ValueError
        If a folder holds another run's cells.
    """
    runs = [_Run(plan, folder) for plan, folder in zip(plans, out or [None] * len(plans), strict=True)]
    # a cell of a sweep with few cells is likely to be long, and a long one should not come last
    missing = [(run, cell) for run in sorted(runs, key=lambda run: len(run.rows)) for cell in run.missing]
    with one_thread(), _bar(sum(len(run.rows) for run in runs), len(missing), progress) as bar:
        for (run, cell), future in _completed(missing, _submitter(executor), lambda: all(run.error for run in runs)):
            run.take(cell, future)
            bar.update()
    return [run.close() for run in runs]


class _Run:
    """One sweep while it is being computed: rows of the cells so far, in the order of the cells."""

    def __init__(self, plan: Plan, out: Path | str | None) -> None:
        self.plan = plan
        self.folder = None if out is None else Folder(out, plan.manifest)
        self.rows = {canonical(cell): self.folder.read(cell) if self.folder else None for cell in plan.cells}
        self.error: CellError | None = None

    @property
    def missing(self) -> list[dict[str, Any]]:
        return [plain(cell) for cell in self.plan.cells if self.rows[canonical(cell)] is None]

    def take(self, cell: dict[str, Any], future: Any) -> None:
        """Keep what a cell gave, or why it gave nothing."""
        try:
            rows = future.result()
        except BrokenExecutor as error:
            self.error = self.error or self._failure(cell, "a worker died (killed, or out of memory?)", error)
        except (ValueError, ArithmeticError) as error:
            self.error = self.error or self._failure(cell, str(error) or type(error).__name__, error)
        except Exception as error:
            error.add_note(f"in {self.plan.name}, cell {describe(cell)}")
            raise
        else:
            self.rows[canonical(cell)] = rows
            if self.folder:
                self.folder.write(cell, rows)

    def _failure(self, cell: dict[str, Any], reason: str, cause: BaseException) -> CellError:
        error = CellError(f"{self.plan.name} stopped in cell {describe(cell)}: {reason}")
        error.__cause__ = cause
        return error

    def close(self) -> ResultTable | CellError:
        """Return the table, or why there is none."""
        if self.error:
            return self.error
        table = ResultTable()
        table.rows = [row for rows in self.rows.values() for row in rows or ()]
        if self.folder:
            self.folder.finish(table)
        return table


def _table_or_error(result: ResultTable | CellError) -> ResultTable:
    if isinstance(result, CellError):
        raise result
    return result


# what happens in a worker


def _compute(name: str, function: Any, cell: dict[str, Any], seed: int) -> list[Row]:
    """Compute one cell, in whatever process this is, and return checked rows."""
    one_thread_from_now_on()
    about = {"experiment": name, "seed": seed}
    rows = function(dict(cell), seed_of(seed, name, cell))
    return ResultTable({**about, **cell, **row} for row in rows).rows


def _completed(
    missing: list[tuple[_Run, dict[str, Any]]], submit: Any, stopped: Callable[[], bool]
) -> Iterator[tuple[Any, Any]]:
    """Compute cells and yield each with its future as they are done; once stopped, only what has begun already."""
    if submit is None:
        for run, cell in missing:
            if not run.error:
                yield (run, cell), _done(run.plan, cell)
        return
    futures: dict[Any, Any] = {}
    try:
        for run, cell in missing:
            futures[submit(_compute, run.plan.name, run.plan.function, cell, int(run.plan.seed))] = (run, cell)
        for future in as_completed(list(futures)):
            yield futures.pop(future), future
            if stopped():
                break
        for future in as_completed([future for future in futures if not future.cancel()]):
            yield futures.pop(future), future
    finally:
        for future in futures:
            future.cancel()


def _done(plan: Plan, cell: dict[str, Any]) -> Future[list[Row]]:
    """Compute a cell here and now."""
    future: Future[list[Row]] = Future()
    try:
        future.set_result(_compute(plan.name, plan.function, cell, int(plan.seed)))
    except Exception as error:  # noqa: BLE001  # a future holds whatever was raised
        future.set_exception(error)
    return future


def _submitter(executor: Any) -> Any:
    """Return ``submit`` of an executor; that of a ``distributed.Client`` gives futures of another kind."""
    executor = executor.get_executor() if hasattr(executor, "get_executor") else executor
    if executor is not None and not hasattr(executor, "submit"):
        raise ValueError(f"executor={executor!r} has neither submit nor get_executor")
    return None if executor is None else executor.submit


@contextmanager
def process_pool(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Give an executor of so many processes, or None for one: then cells are computed in this process.

    Raises
    ------
    ValueError
        If ``jobs`` is less than one.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs!r} is not an integer >= 1")
    if jobs == 1:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    with one_thread_in_children(), ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin_worker) as pool:
        yield pool


def _begin_worker() -> None:
    """Let a worker end with its parent, silently on Ctrl-C and surely when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _bar(total: int, missing: int, progress: bool | None) -> Any:
    from tqdm import tqdm

    disable = None if progress is None else not progress  # None: where standard error is no terminal
    return tqdm(total=total, initial=total - missing, unit="cell", disable=disable, leave=False)


def _source_of(function: Any) -> str | None:
    """Return a digest of a function's text, so that an edited function does not go on with old cells."""
    while isinstance(function, partial):
        function = function.args[0] if function.func is _simulated else function.func
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return None  # typed into a prompt
    return hashlib.sha256(source.encode()).hexdigest()[:16]
