"""What every part needs: affine maps, and two of them with a GELU between."""

from __future__ import annotations

from typing import Any

from refattn.backends.pointwise import gelu, layer_norm

__all__ = ["affine", "gelu", "layer_norm", "mlp"]


def affine(x: Any, w: Any, b: Any) -> Any:
    """Return x w + b."""
    return x @ w if b is None else x @ w + b


def mlp(x: Any, w: Any) -> Any:
    """Transform every token by two maps with a GELU between them."""
    return affine(gelu(affine(x, w.w_1, w.b_1)), w.w_2, w.b_2)
