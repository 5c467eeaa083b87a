"""The look of this theory's figures: mid-tones that can be read on light and on dark ground, one colour a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "NAMES", "legend", "panels"]

GREY = "#7f8fa6"
COLOURS = {
    "rfa": "#3a9188",
    "brfa": "#c8963e",
    "rfmlp": "#b5577a",
    "kernel": "#4a7fc1",
    "biased_kernel": "#8e6bbf",
}
NAMES = {
    "rfa": "random heads",
    "brfa": "heads around the identity",
    "rfmlp": "random perceptron",
    "kernel": "infinitely many heads",
    "biased_kernel": "infinitely many, around the identity",
}


def panels(figure: Figure, titles: Sequence[str], *, height: float = 3.6) -> list[Axes]:
    """Return one row of panels with their titles, drawn in grey."""
    figure.set_size_inches(4.0 * max(len(titles), 1.5), height)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(1, len(titles), squeeze=False)
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
