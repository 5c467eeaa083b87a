"""A report on the attention sinks of one sequence: a table of them, and a picture of their lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.report import Report
from refattn.interpretability.secondary_sinks import (
    SINKY,
    SinkDetection,
    attention_patterns,
    detect_sinks,
    hidden_states,
    primary_cosines,
    sink_score,
)
from refattn.primitives.arguments import as_integer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refattn.transformer.weights import Transformer

__all__ = ["report"]

_COLOURS = ("#7f8fa6", "#3a9188", "#b5577a", "#c8963e", "#6a7fc1", "#8a6d3b")
_DRAWN = 6  # sinks that get a line; more would be a thicket


def report(
    model: Transformer,
    ids: Any,
    *,
    bos_positions: Sequence[int] = (0,),
    threshold: float = 0.9,
    clip: bool = True,
    bos_margin: int = 15,
    min_lifetime: int = 5,
) -> Report:
    """Find the sinks of a sequence, and the head that attends most to each.

    Parameters
    ----------
    model : Transformer
        A model.
    ids : array_like of int, shape (T,) or (1, T)
        One sequence.
    bos_positions, threshold, clip, bos_margin, min_lifetime
        See `refattn.interpretability.secondary_sinks.detect_sinks`.

    Returns
    -------
    Report
        One row a sink, by position: ``position``, ``token`` (its id), ``label``, ``layers`` (ranges, such as
        "8-15, 17"), ``lifetime``, and ``head`` ("layer.head") and ``score`` of the head that, on the layers of the
        sink, gives it the most attention. The picture shows cosines to the primary sink, and scores, by layer.

    Raises
    ------
    ValueError
        As `detect_sinks` and `hidden_states`.
    """
    states = hidden_states(model, ids)
    found = detect_sinks(
        states,
        bos_positions=bos_positions,
        threshold=threshold,
        clip=clip,
        bos_margin=bos_margin,
        min_lifetime=min_lifetime,
    )
    scores = sink_score(attention_patterns(model, ids))  # (L, H, T)
    cosines = primary_cosines(states, found.primary)  # (N, T)
    tokens = as_integer("ids", ids).reshape(-1)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _draw_cosines(left, found, cosines, threshold)
        _draw_scores(right, found, scores.mean(axis=1))

    return Report(_rows(found, tokens, scores), draw)


def _rows(found: SinkDetection, tokens: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for position, layers, label in zip(found.positions.tolist(), found.layers, found.labels, strict=True):
        on_its_layers = scores[list(layers), :, position]  # (lifetime, H)
        at, head = np.unravel_index(np.argmax(on_its_layers), on_its_layers.shape)
        rows.append(
            {
                "position": position,
                "token": int(tokens[position]),
                "label": label,
                "layers": _ranges(layers),
                "lifetime": len(layers),
                "head": f"{layers[at]}.{head}",
                "score": float(on_its_layers[at, head]),
            }
        )
    return rows


def _ranges(layers: tuple[int, ...]) -> str:
    """Write layers as ranges: (8, 9, 10, 12) is "8-10, 12"."""
    runs = np.split(np.array(layers), np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _shown(found: SinkDetection) -> list[tuple[int, str]]:
    """Return positions and colours of the sinks that last longest, by position."""
    longest = sorted(range(len(found.layers)), key=lambda i: -len(found.layers[i]))[:_DRAWN]
    positions = [int(found.positions[i]) for i in sorted(longest)]
    return list(zip(positions, _COLOURS, strict=False))


def _draw_cosines(axes: Axes, found: SinkDetection, cosines: np.ndarray, threshold: float) -> None:
    for position, colour in _shown(found):
        if position != found.primary:
            axes.plot(np.abs(cosines[:, position]), color=colour, label=f"position {position}")
    axes.axhline(threshold, color=_COLOURS[0], ls="--", lw=1)
    axes.axvspan(found.start - 0.5, found.end - 0.5, color=_COLOURS[0], alpha=0.1, lw=0)
    axes.set(xlabel="layer", ylabel="|cosine| to the primary sink", ylim=(0, 1.03))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor="linecolor")


def _draw_scores(axes: Axes, found: SinkDetection, scores: np.ndarray) -> None:
    for position, colour in _shown(found):
        kind = "primary" if position == found.primary else "position"
        axes.plot(scores[:, position], color=colour, label=f"{kind} {position}")
    axes.axhline(SINKY, color=_COLOURS[0], ls="--", lw=1)
    axes.set(xlabel="layer", ylabel="sink score, mean over heads", ylim=(0, 1.03))
    axes.legend(frameon=False, labelcolor="linecolor")
