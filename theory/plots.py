"""Figures of the experiments: the same bytes for the same table, on a transparent ground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theory.experiment import Experiment
    from theory.table import ResultTable

__all__ = ["FIGURES", "draw", "file_name"]

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
"""Where the site looks for figures."""


def file_name(experiment: Experiment) -> str:
    """Return the name of an experiment's figure: ``theory-<slug>-<figure>.svg``."""
    return f"theory-{experiment.name.replace('/', '-')}.svg"


def draw(experiment: Experiment, table: ResultTable, path: Path | str) -> Path:
    """Draw a table and write it as SVG, PNG or PDF; ``path`` may be a folder.

    Returns
    -------
    Path
        The file that was written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path = Path(path)
    path = path if path.suffix else path / file_name(experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a reader's own style must not change the figure, nor a random salt or the date its bytes
    own = {**mpl.rcParamsDefault, "svg.hashsalt": "refattn", "svg.fonttype": "path"}
    with mpl.rc_context({name: value for name, value in own.items() if not name.startswith("backend")}):
        figure = Figure(figsize=(9.6, 4.9), layout="constrained")
        experiment.draw(table, figure)
        figure.savefig(
            path, transparent=True, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None
        )
    return path
