"""A report on any loaded model: which components of earlier heads later heads read, more than chance has it."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.report import Report
from refattn.interpretability.talking_heads import MODES, component_scores, composition_scores, robust_outliers
from refattn.primitives.arguments import require
from refattn.transformer.processing import process_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refattn.transformer.weights import Transformer

__all__ = ["report", "stacked_weights"]


def report(model: Transformer, *, z: float = 4.0, top: int | None = 50) -> Report:
    """List the components that stand out of all that a later head could read, the strongest first.

    Parameters
    ----------
    model : Transformer
        Any; norms are folded into its weights first, and where there is a mean to take out, it is.
    z : float
        How many robust standard deviations above the median count as standing out, see
        `refattn.interpretability.talking_heads.robust_outliers`.
    top : int, optional
        How many to list; all if None.

    Returns
    -------
    Report
        Rows with ``mode`` (what of the later head reads), ``component`` (layer.head.component of the earlier head, 0
        the largest), ``reader`` (layer.head), ``score``, ``z``, None where more than half of a reader's scores are
        equal, and ``head_score``, the score of the two heads as wholes. ``draw`` shows the scores of heads, and of each
        pair's best component, in the mode of the first row.

    Raises
    ------
    ValueError
        If ``z`` is not positive, or ``top`` below 1.

    Notes
    -----
    Each reader is compared with itself: its scores with all components of all heads in the layers before it. Among
    thousands of them chance alone puts some beyond z = 4; a channel worth the name lies far beyond.
    """
    require(top is None or top >= 1, f"top={top!r} must be at least 1")
    weights = stacked_weights(model)
    by_head = {mode: composition_scores(*weights, mode=mode) for mode in MODES}
    by_component = {mode: component_scores(*weights, mode=mode) for mode in MODES}
    found = [row for mode in MODES for row in _rows(mode, by_head[mode], by_component[mode], z)]
    found.sort(key=lambda row: -row["score"])
    mode = found[0]["mode"] if found else MODES[0]
    best = by_component[mode].max(axis=2)
    marked = [(row["component"], row["reader"]) for row in found if row["mode"] == mode]
    return Report(found[:top], lambda figure: _draw(figure, by_head[mode], best, mode, marked))


def stacked_weights(
    model: Transformer, *, folded: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Put the weights of all layers together, as the scores take them.

    Parameters
    ----------
    model : Transformer
        Any, of one layer at least.
    folded : bool
        Whether norms are folded into the weights and means taken out, see
        `refattn.transformer.processing.process_weights`.

    Returns
    -------
    W_Q, W_K, W_V, W_O : ndarray, shape (L, H, d, e), (L, G, d, e), (L, G, d, e), (L, H, e, d)
    """
    if folded:
        model = process_weights(model, center_unembed=False, fold_value_bias=False)
    blocks = model.weights.blocks
    W_Q, W_K, W_V, W_O = (np.stack([getattr(block, f"W_{name}") for block in blocks]) for name in "QKVO")
    return W_Q, W_K, W_V, W_O


def _rows(mode: str, by_head: np.ndarray, by_component: np.ndarray, z: float) -> list[dict[str, Any]]:
    """Return the components that stand out, reader by reader."""
    layers, heads = by_head.shape[:2]
    rows = []
    for m, g in product(range(1, layers), range(heads)):
        scores = by_component[:m, :, :, m, g]  # (m, H, e)
        middle = np.median(scores)
        spread = 1.4826 * np.median(np.abs(scores - middle))
        rows += [
            {
                "mode": mode,
                "component": f"{l}.{h}.{i}",
                "reader": f"{m}.{g}",
                "score": float(scores[l, h, i]),
                "z": float((scores[l, h, i] - middle) / spread) if spread > 0 else None,
                "head_score": float(by_head[l, h, m, g]),
            }
            for l, h, i in np.argwhere(robust_outliers(scores, z=z))
        ]
    return rows


def _draw(figure: Figure, by_head: np.ndarray, best: np.ndarray, mode: str, marked: list[tuple[str, str]]) -> None:
    """Draw two maps of all pairs of heads, later heads to the right; the outlying ones are framed in the second."""
    layers, heads = by_head.shape[:2]
    layer = np.repeat(np.arange(layers), heads)
    earlier = layer[:, None] < layer  # (L H, L H)
    panels = figure.subplots(1, 2, sharey=True)
    titles = (f"heads as wholes (mode {mode})", "best component of each pair")
    largest = float(best.max(initial=0.0)) or 1.0
    for axes, scores, title in zip(panels, (by_head, best), titles, strict=True):
        shown = np.where(earlier, scores.reshape(earlier.shape), np.nan)
        image = axes.imshow(shown, cmap="viridis", vmin=0.0, vmax=largest, interpolation="nearest", aspect="auto")
        starts = np.arange(layers) * heads
        axes.set_xticks(starts - 0.5, [f"{l}.0" for l in range(layers)])
        axes.set_yticks(starts - 0.5, [f"{l}.0" for l in range(layers)])
        axes.set(title=title, xlabel="reading head")
    panels[0].set_ylabel("writing head")
    for component, reader in marked:
        (l, h, _), (m, g) = (tuple(map(int, name.split("."))) for name in (component, reader))
        panels[1].plot(m * heads + g, l * heads + h, "s", ms=6, mfc="none", mec="#c8963e")
    figure.colorbar(image, ax=list(panels), label="score", shrink=0.8)
