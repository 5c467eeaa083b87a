"""The look of this theory's figures: measured as points, predicted as lines, in mid-tones for light and dark ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from theory.table import ResultTable

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "RED", "legend", "measured_and_predicted", "panels"]

GREY, GREEN, ORANGE, BLUE, RED = "#7f8fa6", "#3a9188", "#c8963e", "#4a7fc1", "#b5577a"


def panels(figure: Figure, titles: Sequence[str]) -> list[Axes]:
    """Return one row of panels with their titles, drawn in grey."""
    figure.set_size_inches(4.6 * max(len(titles), 1.4), 3.8)
    grid = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, fontsize=10, color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(which="both", colors=GREY, labelsize=8)
        axes.xaxis.label.set_color(GREY)
        axes.yaxis.label.set_color(GREY)
    return grid


def measured_and_predicted(
    axes: Axes, table: ResultTable, x: str, colour: str, label: str, *, source: str = "theory"
) -> None:
    """Draw the values of a table over one of its columns: points with two standard errors, and the predicted line."""
    measured, predicted = table.where(source="simulation"), table.where(source=source)
    if len(predicted):
        order = np.argsort(predicted.column(x), kind="stable")
        axes.plot(predicted.column(x)[order], predicted.column("value")[order], "-", lw=1.3, color=colour)
    if len(measured):
        bars = 2 * np.nan_to_num(measured.column("stderr")) if "stderr" in measured.columns else None
        axes.errorbar(measured.column(x), measured.column("value"), bars, fmt="o", ms=4.5, color=colour, label=label)


def legend(axes: Axes, loc: Any = "best") -> None:
    """Add a legend without a frame, its words in the colours of the points."""
    axes.legend(frameon=False, fontsize=8, labelcolor="linecolor", loc=loc)
