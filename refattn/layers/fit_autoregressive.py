"""FIT as a language model of long sequences: predict each token from all before it (2305.12689).

Inside a group attention is causal. Latents of a group see the whole group, so they may be written to the *next* group
only: the shift by one group is what keeps the future out. Equation labels are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.layers.fit_blocks import NormWeights, normalised
from refattn.layers.fit_layout import group_causal_mask
from refattn.layers.fit_stages import StageWeights, cast, interleave, require_stages, spread
from refattn.primitives.arguments import as_float, as_integer, require, require_shape
from refattn.primitives.masks import causal_mask

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FITARWeights", "as_model", "fit_autoregressive", "output_logits", "require_ids"]


class FITARWeights(NamedTuple):
    """The autoregressive decoder. Its sizes t, m, n and V can be read off its shapes.

    Attributes
    ----------
    embedding : ndarray, shape (V, dx)
        One row a token id; it goes in without norm or scale.
    x_positions : ndarray, shape (n, dx)
        E_x, the same in every group.
    latents : ndarray, shape (t, m, dl)
        E_ℓ, different in every group.
    stages : tuple of StageWeights
        One for each ``(a)b`` of the layer string.
    x_norm : NormWeights
        Before the logits.
    out_embedding : ndarray, shape (V, dx), or None
        None shares ``embedding``.
    out_bias : ndarray, shape (V,), or None
        Added to the logits.
    """

    embedding: np.ndarray
    x_positions: np.ndarray
    latents: np.ndarray
    stages: tuple[StageWeights, ...]
    x_norm: NormWeights
    out_embedding: np.ndarray | None = None
    out_bias: np.ndarray | None = None


def fit_autoregressive(ids: Any, weights: FITARWeights, *, return_trace: bool = False) -> Any:
    """Return the logits of every next token, for a whole sequence at once.

    1. Look the ids up and add the positions inside a group.
    2. Run the stages: LOCAL causal, READ, GLOBAL causal by groups, WRITE from the group before.
    3. Compare the normalised tokens with the rows of the output embedding.

    Parameters
    ----------
    ids : array_like of int, shape (B, t, n)
        Inputs, already moved one place on by `refattn.layers.fit_layout.shift_right`: logits at a place predict the
        target there.
    weights : FITARWeights
        The model.
    return_trace : bool
        Return what every step left behind too.

    Returns
    -------
    logits : ndarray, shape (B, t, n, V)
        In the dtype of the weights.
    trace : dict of str to ndarray
        Only with ``return_trace``: see `refattn.layers.fit_stages.interleave`.

    Raises
    ------
    ValueError
        If the ids are not integers in 0 … V − 1 of shape (B, t, n), or the weights do not fit together.

    Notes
    -----
    Latents of the last stage reach nothing and are computed all the same, as in the released code. With one group the
    latents that WRITE hands on are zeros: they add the same vector to every token, whatever the input.

    References
    ----------
    2305.12689; google-research/pix2seq, architectures/transformers.py, class FITAR.
    """
    weights = as_model(weights)
    t, m, _ = weights.latents.shape
    n = len(weights.x_positions)
    ids = require_ids(ids, (t, n), len(weights.embedding))
    x = weights.embedding[ids] + weights.x_positions  # (B, t, n, dx): 1
    masks = {"local_mask": causal_mask(n, n), "global_mask": group_causal_mask(t, m)}
    x, _, trace = interleave(x, spread(weights.latents, len(ids)), weights.stages, shifted=True, **masks)  # 2
    logits = output_logits(x, weights)  # 3
    return (logits, trace) if return_trace else logits


def output_logits(x: np.ndarray, weights: FITARWeights) -> np.ndarray:
    """Compare tokens with the rows of the output embedding; it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., dx)
        Tokens after the last stage.
    weights : FITARWeights
        The model.

    Returns
    -------
    ndarray, shape (..., V)
    """
    rows = weights.embedding if weights.out_embedding is None else weights.out_embedding  # (V, dx)
    # eq: fit-11
    logits: np.ndarray = normalised(x, weights.x_norm) @ rows.T  # (..., V)
    if weights.out_bias is not None:
        logits = logits + weights.out_bias
    return logits


def as_model(weights: FITARWeights) -> FITARWeights:
    """Return the weights in the dtype of the embedding, checked.

    Parameters
    ----------
    weights : FITARWeights
        The model.

    Returns
    -------
    FITARWeights

    Raises
    ------
    ValueError
        If shapes do not fit together, or a stage before the last lacks a part.
    """
    embedding = as_float("weights.embedding", weights.embedding, ndim=2)
    weights = cast(weights, embedding.dtype)
    V, dx = embedding.shape
    require_shape("weights.x_positions", weights.x_positions, (len(weights.x_positions), dx))
    require(weights.latents.ndim == 3, f"weights.latents has shape {weights.latents.shape}, expected (t, m, dl)")
    if weights.out_embedding is not None:
        require_shape("weights.out_embedding", weights.out_embedding, (V, dx))
    if weights.out_bias is not None:
        require_shape("weights.out_bias", weights.out_bias, (V,))
    return weights._replace(stages=require_stages(weights.stages))


def require_ids(ids: Any, shape: tuple[int, ...], vocabulary: int) -> np.ndarray:
    """Return token ids (B, …) as integers; refuse others.

    Parameters
    ----------
    ids : array_like of int
        Token ids.
    shape : tuple of int
        What must follow the batch axis.
    vocabulary : int
        V.

    Returns
    -------
    ndarray of int

    Raises
    ------
    ValueError
        If a shape does not fit, or an id lies outside 0 … V − 1.
    """
    found = as_integer("ids", ids, ndim=1 + len(shape))
    require_shape("ids", found, (len(found), *shape))
    outside = found[(found < 0) | (found >= vocabulary)]
    require(outside.size == 0, f"ids holds {outside[:1].tolist()}, expected integers in 0 … {vocabulary - 1}")
    return found
