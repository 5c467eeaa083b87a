"""A pytest plugin: ``pytest --refattn-backend my_kernel.py`` turns every check into a test.

Options: ``--refattn-backend`` (may be given several times), ``--refattn-only``, ``--refattn-dtype``,
``--refattn-expected``, ``--refattn-jobs``. Without ``--refattn-backend`` the plugin does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refattn.conformance.records import Record

__all__ = ["CheckFailedError", "pytest_addoption", "pytest_collection_modifyitems"]


class CheckFailedError(Exception):
    """A conformance check failed; the message is the report of the failure."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the kit."""
    group = parser.getgroup("refattn", "check attention kernels against references")
    group.addoption("--refattn-backend", action="append", default=[], metavar="SPEC", help="a backend to check")
    group.addoption("--refattn-only", action="append", default=[], metavar="NAME", help="mechanism, entry or pattern")
    group.addoption("--refattn-dtype", action="append", default=[], metavar="DTYPE", help="float64, float32, …")
    group.addoption("--refattn-expected", default=None, metavar="FILE", help="expected failures with reasons")
    group.addoption("--refattn-jobs", type=int, default=1, metavar="N", help="worker processes")


class _CheckItem(pytest.Item):
    """One record, as a test."""

    def __init__(self, *, record: Record, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.record = record

    def runtest(self) -> None:
        """Report what the kit found."""
        if self.record.status in ("skipped", "inconclusive"):
            pytest.skip(f"{self.record.status}: {self.record.reason}")
        if self.record.status == "expected":
            pytest.xfail(self.record.reason)
        if self.record.status == "failed":
            from refattn.conformance.report import failures_text

            raise CheckFailedError(failures_text([self.record]))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the report instead of a traceback."""
        if isinstance(excinfo.value, CheckFailedError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Name the check."""
        return "refattn", None, self.name


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the kit on the backends that were named, and add a test for every check."""
    backends: Iterable[str] = config.getoption("--refattn-backend")
    if not backends:
        return
    from refattn.conformance.api import check
    from refattn.conformance.expectations import Expectations, read_expectations

    expected_file = config.getoption("--refattn-expected")
    expectations = read_expectations(Path(expected_file)) if expected_file else Expectations()
    dtypes = config.getoption("--refattn-dtype") or ["float64", "float32"]
    records = [
        record
        for backend in backends
        for record in check(
            backend,
            only=config.getoption("--refattn-only"),
            dtypes=dtypes,
            jobs=config.getoption("--refattn-jobs"),
        )
    ]
    marked, problems = expectations.apply(records)
    if problems:
        raise pytest.UsageError("\n".join(problems))
    items.extend(
        _CheckItem.from_parent(session, name=f"{record.backend}::{record.check}", record=record) for record in marked
    )
