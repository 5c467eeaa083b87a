"""A report on the circuit of a task: each head's effect at each stage, as a table and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.circuit_reuse import Stage, trace_circuit
from refattn.interpretability.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refattn.transformer.weights import Transformer

__all__ = ["report"]


def report(
    model: Transformer,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    source: int | None = None,
    threshold: float | None = None,
    fraction: float = 0.02,
    freeze_mlps: bool = False,
) -> Report:
    """Trace the circuit that answers some prompts.

    Parameters
    ----------
    model : Transformer
        What answers.
    clean, corrupt : array_like of int, shape (B, T)
        Prompts, and the same with the answer changed.
    answers : array_like of int, shape (B, 2)
        Right and wrong word of the clean prompts.
    source, threshold, fraction, freeze_mlps
        As in `refattn.interpretability.circuit_reuse.trace_circuit`.

    Returns
    -------
    Report
        ``rows`` have the keys ``stage``, ``receivers``, ``head`` (layer.head) and ``effect``, the largest effect of a
        stage first. ``draw`` puts one matrix of effects for each stage on a figure of matplotlib.

    Raises
    ------
    ValueError
        As `refattn.interpretability.circuit_reuse.path_patch`.
    """
    _, stages = trace_circuit(
        model,
        clean,
        corrupt,
        answers,
        source=source,
        threshold=threshold,
        fraction=fraction,
        freeze_mlps=freeze_mlps,
    )
    rows = [row for number, stage in enumerate(stages, 1) for row in _rows(number, stage)]
    return Report(rows, lambda figure: _draw(figure, stages))


def _rows(number: int, stage: Stage) -> list[dict[str, Any]]:
    ranked = sorted(stage.heads, key=lambda head: (-abs(stage.effect[head]), head))
    return [
        {"stage": number, "receivers": _title(stage), "head": _name(head), "effect": float(stage.effect[head])}
        for head in ranked
    ]


def _title(stage: Stage) -> str:
    """Say who received: hook points by name, heads with what of them was patched, and where."""
    named = [where for where, _ in stage.receivers if isinstance(where, str)]
    heads = [_name(receiver) for receiver in stage.receivers if not isinstance(receiver[0], str)]
    heard = [*named, f"{stage.component} of {', '.join(heads)}"] if heads else named
    return f"{', '.join(heard)} at token {stage.position}"


def _name(head: Any) -> str:
    return f"{head[0]}.{head[1]}"


def _draw(figure: Figure, stages: tuple[Stage, ...]) -> None:
    largest = max((float(np.abs(stage.effect).max(initial=0.0)) for stage in stages), default=0.0) or 1.0
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, stage in zip(panels, stages, strict=True):
        image = axis.imshow(stage.effect, cmap="PuOr", vmin=-largest, vmax=largest, interpolation="nearest")
        for layer, head in stage.heads:
            axis.plot(head, layer, "s", markersize=5, markerfacecolor="none", markeredgecolor="#7f8fa6")
        axis.set_title(_title(stage).replace(" at token", "\nat token"), fontsize=9)
        axis.set_xlabel("head", fontsize=9)
        axis.tick_params(labelsize=8)
    panels[0].set_ylabel("layer", fontsize=9)
    figure.colorbar(image, ax=list(panels), label="effect", shrink=0.8)
