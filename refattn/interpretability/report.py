"""What an analysis of a model hands over: a table, and a picture that is drawn when somebody wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

__all__ = ["Report"]


class Report(NamedTuple):
    """Rows of a table, one dictionary each with the same keys, and a function that draws into a matplotlib figure."""

    rows: list[dict[str, Any]]
    draw: Callable[[Figure], None]
