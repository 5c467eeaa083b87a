"""One thread for linear algebra: a product of matrices has other last digits on one thread than on two."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VARIABLES", "one_thread", "one_thread_from_now_on", "one_thread_in_children"]

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What the libraries read once, when they are loaded."""

_settled: list[Any] = []
"""The limits in force in this process; none yet if it is empty."""


def one_thread_from_now_on() -> None:
    """Keep the libraries of this process to one thread, if nothing has done so before."""
    if not _settled:
        _settled.append(_limit())


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the libraries of this process to one thread for a while."""
    limit = _limit()
    _settled.append(limit)
    try:
        yield
    finally:
        _settled.remove(limit)
        limit.restore_original_limits()


@contextmanager
def one_thread_in_children() -> Iterator[None]:
    """Let processes that are started meanwhile load their libraries with one thread."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _limit() -> Any:
    """Limit the libraries that are loaded already."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
