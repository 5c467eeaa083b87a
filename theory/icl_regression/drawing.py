"""The look of this theory's figures: mid-tones that can be read on light and on dark ground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "legend", "panels"]

GREY = "#7f8fa6"
GREEN = "#3a9188"
ORANGE = "#d9822b"
BLUE = "#4a7fc1"
RED = "#c8553d"
PURPLE = "#8e6bbf"


def panels(figure: Figure, titles: Sequence[str], *, width_ratios: Sequence[float] | None = None) -> list[Axes]:
    """Return one row of panels with their titles, drawn in grey."""
    figure.set_size_inches(4.4 * max(len(titles), 1.5), 3.6)
    grid = figure.subplots(1, len(titles), squeeze=False, width_ratios=width_ratios)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(which="both", colors=GREY, labelsize=8)
        axes.xaxis.label.set_color(GREY)
        axes.yaxis.label.set_color(GREY)
    return list(grid[0])


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend without a frame, its words in the colours of the lines."""
    axes.legend(**{"frameon": False, "fontsize": 8, "labelcolor": "linecolor", **options})
