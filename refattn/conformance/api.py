"""`check`: the kit as one function; the command line and the pytest plugin call it too."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from refattn.conformance.backend import Backend
from refattn.conformance.checks import plan
from refattn.conformance.precision import DTYPES
from refattn.conformance.registry import find_contracts
from refattn.conformance.runner import Target, run_here, run_isolated
from refattn.conformance.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from refattn.conformance.records import CheckId, Record

__all__ = ["Selection", "check", "select"]


@dataclass(frozen=True)
class Selection:
    """Which checks.

    Attributes
    ----------
    only : tuple of str
        Mechanisms, ``mechanism/entry`` paths or shell patterns over check identities; everything if empty.
    dtypes : tuple of str
        Of the cases.
    """

    only: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float64", "float32")


def select(selection: Selection) -> list[CheckId]:
    """Return the checks that a selection names.

    Raises
    ------
    ValueError
        If a dtype is unknown, or a name selects nothing.
    """
    for dtype in selection.dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    checks = plan(find_contracts().values(), selection.dtypes)
    if not selection.only:
        return checks
    for name in selection.only:
        if not any(_named(check, name) for check in checks):
            raise ValueError(f"only={name!r} names no check; mechanisms are {', '.join(find_contracts())}")
    return [check for check in checks if any(_named(check, name) for name in selection.only)]


def _named(check: CheckId, name: str) -> bool:
    return fnmatchcase(str(check), name) or f"{check}/".startswith(f"{name}/") or str(check).startswith(f"{name}@")


def check(
    backend: Any,
    *,
    only: Iterable[str] = (),
    dtypes: Iterable[str] = ("float64", "float32"),
    device: str | None = None,
    settings: Settings | None = None,
    jobs: int = 0,
    progress: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Check a backend against the contracts of all mechanisms.

    Parameters
    ----------
    backend : str, module or object
        A name for `refattn.conformance.load_backend`, or the thing itself, with functions named as the mechanisms.
    only : iterable of str
        Mechanisms, ``mechanism/entry`` paths, or patterns over check identities.
    dtypes : iterable of str
        ``float64``, ``float32``, ``float16``, ``bfloat16``.
    device : str, optional
        Where the backend's arrays live.
    settings : Settings, optional
        How hard to look.
    jobs : int
        Worker processes for a backend given by name; 0 runs here, without protection from hangs and crashes.
    progress : callable, optional
        Called with every record as it comes.

    Returns
    -------
    list of Record
        One for each check, in a fixed order.

    Raises
    ------
    ValueError
        If ``only`` or ``dtypes`` name nothing known, or the backend declares an unknown convention.
    """
    from refattn.conformance.backend import load_backend

    checks = select(Selection(tuple(only), tuple(dtypes)))
    settings = settings or Settings()
    if jobs and isinstance(backend, str):
        return run_isolated(checks, Target(backend, device), settings, jobs=jobs, progress=progress)
    contracts = find_contracts()
    if isinstance(backend, str):
        loaded = load_backend(backend, contracts, device)
    else:
        loaded = Backend(backend, getattr(backend, "__name__", type(backend).__name__), device)
    records = []
    for record in run_here(checks, loaded, contracts, settings):
        records.append(record)
        if progress is not None:
            progress(record)
    return records
