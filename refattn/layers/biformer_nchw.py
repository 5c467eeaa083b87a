"""Bi-level routing attention of channels-first maps, which pads queries, keys and values rather than the input.

BiFormer, arXiv 2303.08810; equation source ``ops/bra_nchw.py`` and ``ops/torch/rrsda.py`` of the released code, commit
1697bbb.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.layers.biformer import BRAAux, BRAWeights, bi_level_routing_attention
from refattn.primitives.arguments import as_float, require, require_one_of, require_shape

__all__ = ["nchw_bra"]


def nchw_bra(
    x: np.ndarray,
    weights: BRAWeights,
    *,
    num_heads: int = 8,
    n_win: int = 7,
    topk: int = 4,
    scale: float | None = None,
    pad_mode: str = "projected",
    return_aux: bool = False,
) -> np.ndarray | tuple[np.ndarray, BRAAux]:
    """Bi-level routing attention of channels-first maps: the refactored layer, which pads after the projection.

    Parameters
    ----------
    x : ndarray, shape (B, C, H, W)
        Feature maps, channels first.
    weights : BRAWeights
        Parameters with an output map and without parametric routing; Cq = C.
    num_heads, n_win, topk, scale
        As for `bi_level_routing_attention`.
    pad_mode : {"projected", "masked"}
        ``projected`` is the released layer: padded keys have logit 0 and take part in the softmax. ``masked`` leaves
        them out [our definition].
    return_aux : bool
        Whether to return the decisions as well.

    Returns
    -------
    y : ndarray, shape (B, C, H, W)
        The output.
    aux : BRAAux
        Only if ``return_aux``.

    Raises
    ------
    ValueError
        As for `bi_level_routing_attention`, and if H or W is smaller than ``n_win``.

    Notes
    -----
    Where S divides H and W this is the channels-last layer with the axes moved. Otherwise regions have ⌊H/S⌋ × ⌊W/S⌋
    tokens and their number per side, ⌈H/⌊H/S⌋⌉, may exceed S. The released layer routes by unscaled logits, which
    order the regions alike.

    References
    ----------
    BiFormer, arXiv 2303.08810, appendix; released code ``ops/bra_nchw.py`` and ``ops/torch/rrsda.py``.
    """
    x = as_float("x", x, ndim=4)
    require_one_of("pad_mode", pad_mode, ("projected", "masked"))
    weights = BRAWeights(*weights)
    require(weights.w_o is not None, "weights.w_o=None: the channels-first layer always has an output map")
    require(weights.w_r is None, "weights.w_r: the channels-first layer has no parametric routing")
    require_shape("weights.w_qkv", as_float("weights.w_qkv", weights.w_qkv), (x.shape[1], 3 * x.shape[1]))
    result: Any = bi_level_routing_attention(
        np.moveaxis(x, 1, -1),  # (B, H, W, C)
        weights,
        num_heads=num_heads,
        n_win=n_win,
        topk=topk,
        scale=scale,
        pad_mode=pad_mode,
        return_aux=True,
    )
    y, aux = result
    y = np.moveaxis(y, -1, 1)  # (B, C, H, W)
    return (y, aux) if return_aux else y
