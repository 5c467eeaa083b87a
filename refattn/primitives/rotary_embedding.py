"""Rotary position embedding from integer positions: frequencies, angles and rotation in one call (2104.09864).

This is the function that a kernel implements; its three steps are those of `refattn.primitives.rotary`, equations R36
to R45 of the attention page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refattn.primitives.arguments import as_float, as_integer, require
from refattn.primitives.rotary import rope, rope_angles, rope_frequencies

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

__all__ = ["rotary_embedding"]


def rotary_embedding(
    x: Any,
    positions: Any,
    *,
    rotary_dim: int | None = None,
    theta: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    length: float | None = None,
    interleaved: bool = False,
    inverse: bool = False,
) -> np.ndarray:
    """Turn the channel pairs of every token by its position times their frequencies.

    Parameters
    ----------
    x : array_like, shape (..., S, d)
        Queries or keys.
    positions : array_like of int, shape (S,) or any that broadcasts to (..., S)
        Absolute position of every token: a cache adds its length, packed sequences restart at 0. For ``x`` of shape
        (B, H, S, d) and positions per batch pass (B, 1, S).
    rotary_dim : int, optional
        r, how many channels rotate; the others pass. All d if not given.
    theta : float
        The base θ of the frequencies.
    scaling : mapping, optional
        A rule for long contexts, see `refattn.primitives.rotary.rope_frequencies`.
    length : float, optional
        The sequence length, for the rules that look at it.
    interleaved : bool
        Pair channels 2c and 2c + 1 instead of c and c + r/2.
    inverse : bool
        Turn back; with the same attention factor, this is the vector-Jacobian product.

    Returns
    -------
    ndarray, shape (..., S, d)
        In the dtype of ``x``, computed in float64.

    Raises
    ------
    ValueError
        If the positions are not integers or do not broadcast, or the width, base or scaling breaks its rule.

    Notes
    -----
    Scores of rotated queries and keys depend on the difference of their positions only (R48), so a shift of both is
    invisible after q·k: the rotation must be tested on its own output.

    References
    ----------
    2104.09864; R36–R40 and R48 of the attention page.
    """
    x, positions = as_float("x", x), as_integer("positions", positions)
    require(x.ndim > 1, f"x has shape {x.shape}, expected (..., S, d)")
    width = x.shape[-1] if rotary_dim is None else rotary_dim
    require(width <= x.shape[-1], f"rotary_dim={rotary_dim} must be at most the {x.shape[-1]} channels of x")
    # eq: R36
    freqs, factor = rope_frequencies(width, theta=theta, scaling=scaling, length=length)  # (r/2,)
    # eq: R37
    angles = rope_angles(positions, freqs)  # (..., S, r/2)
    return rope(x, angles, interleaved=interleaved, factor=factor, inverse=inverse)  # (..., S, d)
