"""A plain picture of attention: one square a head, queries down, keys across."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

__all__ = ["plot_attention"]

_LABELLED = 40  # more tokens than this would be unreadable as labels


def plot_attention(
    pattern: Any,
    *,
    tokens: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> Figure:
    """Draw attention patterns.

    Parameters
    ----------
    pattern : array_like, shape (H, T, S) or (T, S)
        Attention weights of some heads; dark is 1.
    tokens : sequence of str, length S, optional
        Labels of the keys; the last T of them those of the queries. Left out beyond 40.
    titles : sequence of str, length H, optional
        One a head; its number if not given.
    columns : int
        Squares in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``savefig``.

    Raises
    ------
    ValueError
        For a pattern of another number of axes, or labels of another length.
    """
    from matplotlib.figure import Figure

    pattern = as_float("pattern", pattern)
    pattern = pattern[None] if pattern.ndim == 2 else pattern
    require(pattern.ndim == 3 and pattern.size > 0, f"pattern has shape {pattern.shape}, expected (H, T, S)")
    heads, t, s = pattern.shape
    require(tokens is None or len(tokens) == s, f"tokens has length {len(tokens or ())}, expected {s}")
    require(titles is None or len(titles) == heads, f"titles has length {len(titles or ())}, expected {heads}")
    columns = min(columns, heads)
    rows = -(-heads // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for head, axis in enumerate(axes):
        if head >= heads:
            axis.axis("off")
            continue
        axis.imshow(pattern[head], vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto", interpolation="nearest")
        axis.set_title(titles[head] if titles else f"head {head}", fontsize=9)
        axis.tick_params(labelsize=7)
        if tokens and s <= _LABELLED:
            axis.set_xticks(range(s), tokens, rotation=90)
            axis.set_yticks(range(t), tokens[s - t :])
    figure.supxlabel("key", fontsize=9)
    figure.supylabel("query", fontsize=9)
    return figure
