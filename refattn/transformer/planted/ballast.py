"""Ballast: large constant coordinates that make a norm transparent, so that a planted model stays linear.

A norm divides by a length. If one coordinate (RMSNorm), or two of opposite sign (LayerNorm), hold ±M with M far above
everything else, the length is that of the ballast, and a norm weight that undoes it leaves the rest as it was, to about
|u|²/(4 M²) of itself, u being the rest. Nobody reads the ballast, nobody writes to it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["SIZE", "balanced", "layer_norm_weight", "rms_norm_weight"]

SIZE = 1e4
"""M: identity to about 1e-7 of |u|²."""


def layer_norm_weight(d: int, size: float = SIZE) -> np.ndarray:
    """Return the weight (d,) that undoes a LayerNorm over ballast +M and −M: √(2M²/d)."""
    return np.full(d, np.sqrt(2.0 * size**2 / d))


def rms_norm_weight(d: int, size: float = SIZE) -> np.ndarray:
    """Return the weight (d,) that undoes an RMSNorm over one ballast coordinate M: M/√d."""
    return np.full(d, size / np.sqrt(d))


def balanced(rows: np.ndarray, balance: int) -> np.ndarray:
    """Return rows (..., d) whose coordinate ``balance`` makes them sum to zero, as LayerNorm's mean must stay 0.

    Apply it to every row that is added to the stream: embeddings before their ballast ±M is set (it sums to 0 itself),
    positions, and what each attention head and MLP writes.
    """
    balanced_rows = rows.copy()
    balanced_rows[..., balance] = 0.0
    balanced_rows[..., balance] = -balanced_rows.sum(axis=-1)
    return balanced_rows
