"""What an object may do to a running transformer: the shared protocol of the interventions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Intervention"]


class Intervention:
    """A place at each attention call of a forward pass; every default changes nothing.

    A subclass overrides what it needs. Arrays it receives are read-only: it returns new ones. Shapes: B batch, H query
    heads, G key/value heads, T new tokens, S keys (cache included), e head width.
    """

    def begin(self, n_layers: int) -> None:
        """Forget what an earlier forward pass left; called once at the start of each pass."""

    def on_logits(self, layer: int, logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the logits (B, H, T, S) to use: scaled, −∞ where ``mask`` (broadcasting, True = visible) hides."""
        return logits

    def on_weights(self, layer: int, weights: np.ndarray) -> np.ndarray:
        """Return the attention weights (B, H, T, S) to use: after the softmax, before the product with the values."""
        return weights

    def attend(
        self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float
    ) -> np.ndarray | None:
        """Return the output (B, H, T, e) in place of the attention call, or None to let it run.

        ``q`` is (B, H, T, e); ``k`` and ``v`` are (B, G, S, e), after rotation and after the append to the cache.
        """
        return None
