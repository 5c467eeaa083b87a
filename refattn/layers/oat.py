"""Gaze that moves from object to object: a transformer that points at what is fixated next (OAT, 2407.13335).

The scene is a set of objects and, once more, the one that is searched for; a scanpath is a sequence of objects. Each
step scores every object by its own encoded vector, so scenes may have any number of them, and looking at the target
token means: the search ends here. Equation labels (oat-…) are those of the page; equation source ``model/models.py`` of
the released code, commit 0c48c3e. Special indices: end n, padding n + 1, start n + 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.oat_positions import object_position_embedding, sinusoid_position_table
from refattn.layers.oat_transformer import AttentionWeights, DecoderLayer, EncoderLayer, oat_decode, oat_encode
from refattn.primitives.arguments import as_float, as_integer, require, require_shape
from refattn.primitives.softmax import log_sum_exp

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AttentionWeights",
    "DecoderLayer",
    "EncoderLayer",
    "OATWeights",
    "PointerHead",
    "oat_forward",
    "object_attention",
    "object_tokens",
    "pointer_scores",
    "scanpath_loss",
    "scanpath_tokens",
]


class PointerHead(NamedTuple):
    """Parameters of one head of object attention.

    Attributes
    ----------
    w_enc, b_enc : ndarray, shapes (E, E) and (E,)
        Map of encoded objects.
    w_dec, b_dec : ndarray, shapes (E, E) and (E,)
        Map of decoder outputs.
    """

    w_enc: np.ndarray
    b_enc: np.ndarray
    w_dec: np.ndarray
    b_dec: np.ndarray


class OATWeights(NamedTuple):
    """Parameters of the model behind the embeddings.

    Attributes
    ----------
    encoder : tuple of EncoderLayer
        Four in the paper.
    decoder : tuple of DecoderLayer
        Four in the paper.
    heads : tuple of PointerHead
        M of them, two in the paper.
    readout_w, readout_b : ndarray, shapes (M,) and ()
        How heads are combined; not used if M = 1.
    """

    encoder: tuple[EncoderLayer, ...]
    decoder: tuple[DecoderLayer, ...]
    heads: tuple[PointerHead, ...]
    readout_w: np.ndarray
    readout_b: np.ndarray


def oat_forward(
    src_appearance: Any,
    src_coords: Any,
    tgt_appearance: Any,
    tgt_coords: Any,
    table: Any,
    weights: OATWeights,
    *,
    n_heads: int,
    d_k: float,
    tgt_pad_mask: Any = None,
) -> np.ndarray:
    """Score, for each step of a scanpath, every object as the next to be looked at, and the end.

    1. Put appearance and position side by side; decoder tokens get the time as well.
    2. Encode the objects, decode the scanpath so far.
    3. Point: compare each decoded step with each encoded object.

    Parameters
    ----------
    src_appearance : array_like, shape (..., n + 1, E/2)
        What the n objects look like, then the target; from `refattn.layers.oat_appearance.object_appearance`, or any
        other features.
    src_coords : array_like of int, shape (..., n + 1, 3)
        Where they are: `refattn.layers.oat_positions.scene_coordinates`.
    tgt_appearance : array_like, shape (..., T, E/2)
        What has been looked at, after a start token.
    tgt_coords : array_like of int, shape (..., T, 3)
        Where it was: `refattn.layers.oat_positions.grid_coordinates` with ``centre_first``.
    table : array_like, shape (P, c) or (X, Y, Z, c)
        Position table.
    weights : OATWeights
        Parameters.
    n_heads : int
        Heads of the transformer, a divisor of E.
    d_k : float
        > 0; pointer scores are divided by its square root. 512 = E in the paper, whatever the number of heads.
    tgt_pad_mask : array_like of bool, shape (..., T), optional
        True = padding.

    Returns
    -------
    ndarray, shape (..., T, n + 2)
        Logits: n objects, the end (= the target token), padding.

    Raises
    ------
    ValueError
        If shapes disagree, the heads do not divide E, the table is too narrow or a coordinate lies outside it.

    Notes
    -----
    Teacher forcing: step t sees start, fixation 1, …, fixation t. In the released code the crops of special tokens are
    ones in training and, at free decoding, zeros from the end token on; here crops are the caller's affair.

    References
    ----------
    2407.13335; ``models.py`` lines 228-343.
    """
    src = object_tokens(src_appearance, src_coords, table)  # (..., n + 1, E)
    tgt = scanpath_tokens(tgt_appearance, tgt_coords, table)  # (..., T, E)
    memory = oat_encode(src, weights.encoder, n_heads=n_heads)  # (..., n + 1, E)
    decoded = oat_decode(tgt, memory, weights.decoder, n_heads=n_heads, pad_mask=tgt_pad_mask)  # (..., T, E)
    return object_attention(memory, decoded, weights.heads, weights.readout_w, weights.readout_b, d_k=d_k)


def object_tokens(appearance: Any, coords: Any, table: Any) -> np.ndarray:
    """Put the appearance of a token and its position side by side.

    Parameters
    ----------
    appearance : array_like, shape (..., L, E/2)
        What each token looks like.
    coords : array_like of int, shape (..., L, 3)
        Where it is.
    table : array_like, shape (P, c) or (X, Y, Z, c)
        Position table.

    Returns
    -------
    ndarray, shape (..., L, E)

    Raises
    ------
    ValueError
        If the lengths differ, or as `refattn.layers.oat_positions.object_position_embedding`.
    """
    appearance = as_float("appearance", appearance)
    require(appearance.ndim >= 2, f"appearance has shape {appearance.shape}, expected (..., L, E/2)")
    position = object_position_embedding(coords, table, appearance.shape[-1])  # (..., L, E/2)
    require_shape("coords", np.asarray(coords), (*appearance.shape[:-1], 3))
    # eq: oat-7
    return np.concatenate([appearance, position], axis=-1)  # (..., L, E)


def scanpath_tokens(appearance: Any, coords: Any, table: Any) -> np.ndarray:
    """Put appearance and position side by side and add the time step; see `object_tokens`.

    Parameters
    ----------
    appearance, coords, table
        As in `object_tokens`, for the T tokens of a scanpath.

    Returns
    -------
    ndarray, shape (..., T, E)

    Raises
    ------
    ValueError
        As `object_tokens`.
    """
    tokens = object_tokens(appearance, coords, table)
    time = sinusoid_position_table(*tokens.shape[-2:]).astype(tokens.dtype, copy=False)  # (T, E)
    # eq: oat-8
    return np.asanyarray(tokens + time)


def pointer_scores(encoder_out: Any, decoder_out: Any, heads: Sequence[PointerHead], *, d_k: float) -> np.ndarray:
    """Compare each step with each object, once for each head.

    Parameters
    ----------
    encoder_out : array_like, shape (..., n + 1, E)
        Encoded objects and target.
    decoder_out : array_like, shape (..., T, E)
        Decoded steps.
    heads : sequence of PointerHead
        M ≥ 1 heads.
    d_k : float
        > 0.

    Returns
    -------
    ndarray, shape (..., T, n + 2, M)
        The last column, padding, is 0.

    Raises
    ------
    ValueError
        If shapes disagree, there is no head, or ``d_k`` is not positive.
    """
    e, d = as_float("encoder_out", encoder_out), as_float("decoder_out", decoder_out)
    require(e.ndim >= 2, f"encoder_out has shape {e.shape}, expected (..., n + 1, E)")
    require_shape("decoder_out", d, (*e.shape[:-2], *d.shape[-2:-1], e.shape[-1]))
    require(len(heads) >= 1, "heads must hold at least one PointerHead")
    require(0 < d_k < math.inf, f"d_k={d_k!r} must be positive and finite")
    # eq: oat-12
    scores = [(d @ h.w_dec + h.b_dec) @ np.swapaxes(e @ h.w_enc + h.b_enc, -1, -2) for h in heads]  # (..., T, n + 1)
    stacked = np.stack(scores, axis=-1)  # (..., T, n + 1, M)
    padding = np.zeros_like(stacked[..., :1, :])
    return np.concatenate([stacked / math.sqrt(d_k), padding], axis=-2)  # (..., T, n + 2, M)


def object_attention(
    encoder_out: Any,
    decoder_out: Any,
    heads: Sequence[PointerHead],
    readout_w: Any = None,
    readout_b: Any = None,
    *,
    d_k: float,
) -> np.ndarray:
    """Point at objects: attention whose scores are themselves the output.

    Parameters
    ----------
    encoder_out : array_like, shape (..., n + 1, E)
        Encoded objects and target.
    decoder_out : array_like, shape (..., T, E)
        Decoded steps.
    heads : sequence of PointerHead
        M ≥ 1 heads.
    readout_w, readout_b : array_like, shapes (M,) and (), optional
        Needed if M > 1, not used if M = 1.
    d_k : float
        > 0; scores are divided by its square root.

    Returns
    -------
    ndarray, shape (..., T, n + 2)
        Logits: n objects, the end (= the target token), padding.

    Raises
    ------
    ValueError
        If shapes disagree, there is no head, or ``d_k`` is not positive.

    Notes
    -----
    The padding column is the same number at every step, the read-out bias or 0: it only fills the vocabulary up.

    References
    ----------
    ``models.py`` lines 308-343.
    """
    scores = pointer_scores(encoder_out, decoder_out, heads, d_k=d_k)  # (..., T, n + 2, M)
    if len(heads) == 1:
        return np.asanyarray(scores[..., 0])
    w, b = as_float("readout_w", readout_w), as_float("readout_b", readout_b)
    require_shape("readout_w", w, (len(heads),))
    require_shape("readout_b", b, ())
    # eq: oat-13
    return np.asanyarray(scores @ w + b)  # (..., T, n + 2)


def scanpath_loss(logits: Any, targets: Any, pad_index: int) -> Any:
    """Return the cross-entropy of what was looked at next, the mean over all steps that are not padding.

    Parameters
    ----------
    logits : array_like, shape (..., T, n + 2)
        From `oat_forward`.
    targets : array_like of int, shape (..., T)
        Fixation 1, …, fixation T, end; then padding.
    pad_index : int
        The target that does not count, n + 1.

    Returns
    -------
    float
        In nats, in the dtype of the logits.

    Raises
    ------
    ValueError
        If shapes disagree, a target is not a column, or all are padding.
    """
    logits, targets = as_float("logits", logits), as_integer("targets", targets)
    require(logits.ndim >= 1, "logits must have at least one axis")
    require_shape("targets", targets, logits.shape[:-1])
    width = logits.shape[-1]
    require(np.all((targets >= 0) & (targets < width)), f"targets must be columns of logits, 0 to {width - 1}")
    kept = targets != pad_index  # (..., T)
    require(kept.any(), f"targets holds nothing but pad_index={pad_index!r}: the loss is undefined")
    # eq: oat-14
    log_p = logits - log_sum_exp(logits, keepdims=True)  # (..., T, n + 2)
    found = np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]  # (..., T)
    return -np.sum(np.where(kept, found, 0)) / int(kept.sum())
