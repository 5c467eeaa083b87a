"""RAT: a gated recurrence inside chunks, softmax attention across chunks (2507.04416, equations of the released layer).

The parallel form of the layer; the labels rat-1 to rat-8 are those of the page. Beside it stand `rat_attention` (steps
5 to 7), `rat_decode` (a token at a time), `rat_baselines`, `rat_backbone` and `rat_init` (stacks and their weights),
`rat_mixing` (the matrix that it mixes tokens with) and `rat_cost`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.rat_attention import chunk_attention, merge_heads, split_heads
from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.norms import rms_norm
from refattn.primitives.scan import gated_scan

__all__ = ["RATAux", "RATProjections", "RATWeights", "rat_layer", "rat_projections"]


class RATWeights(NamedTuple):
    """What a RAT layer learns; D is the width, dh the width of a head, G the number of query and key groups.

    Attributes
    ----------
    w_in : ndarray, shape (D, 3 D + 2 G dh)
        Input projection; its columns are, in this order: output gate, value, forget gate, queries, keys.
    gate_bias : ndarray, shape (D,)
        Bias b_g of the forget gate.
    w_out : ndarray, shape (D, D)
        Output projection.
    norm : ndarray, shape (D,)
        Scale of the root-mean-square norm in front.
    """

    w_in: np.ndarray
    gate_bias: np.ndarray
    w_out: np.ndarray
    norm: np.ndarray


class RATProjections(NamedTuple):
    """What a RAT layer makes of each token alone, all of shape (B, T, D): steps 1 to 3."""

    z: np.ndarray
    v: np.ndarray
    gate: np.ndarray
    q: np.ndarray
    k: np.ndarray


class RATAux(NamedTuple):
    """What happened inside a RAT layer.

    Attributes
    ----------
    gate, z : ndarray, shape (B, T, D)
        Forget gate g and output gate z, after the sigmoid.
    k_state, v_state : ndarray, shape (B, T, D)
        Running key and value k̃ and ṽ, before rotation, heads side by side.
    attn : ndarray, shape (B, H, T, C + 1)
        Weights on the C chunk memories, then on the token's own state.
    """

    gate: np.ndarray
    z: np.ndarray
    k_state: np.ndarray
    v_state: np.ndarray
    attn: np.ndarray


def rat_layer(
    x: Any,
    weights: RATWeights,
    *,
    num_heads: int,
    num_groups: int = 2,
    chunk_size: int = 16,
    rope_base: float | None = 10000.0,
    norm_eps: float = 1e-6,
    check_finite: bool = False,
    return_aux: bool = False,
) -> Any:
    """Let a gated recurrence sum up each chunk, and let each token attend to the summaries of earlier chunks.

    The passes are (1) norm and projection, (2) gates, (3) shared queries and keys, (4) recurrence, (5) rotation by
    chunk, (6) memories, (7) attention, (8) output gate, projection, residual.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations; T is a multiple of ``chunk_size``. Any number of leading axes.
    weights : RATWeights
        See there.
    num_heads : int
        H; divides D.
    num_groups : int
        G, how many different queries and keys the heads share; divides H.
    chunk_size : int
        L. With L = T the layer is a recurrent network, with L = 1 it is attention.
    rope_base : float, optional
        Base of the rotary frequencies; None leaves positions out [our definition of the paper's NoPE variant].
    norm_eps : float
        Added to the mean square in the norm.
    check_finite : bool
        Refuse activations that are not finite.
    return_aux : bool
        Return the insides too.

    Returns
    -------
    y : ndarray, shape (B, T, D)
        Activations plus what the layer adds, in the dtype of ``x``.
    aux : RATAux
        With ``return_aux`` only.

    Raises
    ------
    ValueError
        If D is not a multiple of H, H not of G, or T not of L; if a weight has not the shape it must have, a head has
        an odd width and is to be rotated, or ``x`` holds integers.

    Notes
    -----
    Released code and paper: the recurrence runs in bfloat16 and the gates in float32 there; here everything is in the
    dtype of ``x`` and the attention in float64. At L = 1 the released code leaves the gate's bias uninitialised. The
    residual is part of the layer, as in the released code.

    References
    ----------
    2507.04416 and the layer released with it, labels rat-1 to rat-8. A figure of the authors reports the NoPE variant,
    of which no code is released.
    """
    x = as_float("x", x, refuse_integers=ValueError)
    require(chunk_size >= 1, f"chunk_size={chunk_size} must be >= 1")
    if check_finite:
        require_finite("x", x)

    # 1 to 3
    z, v, gate, q, k = rat_projections(
        x, weights, num_heads=num_heads, num_groups=num_groups, norm_eps=norm_eps
    )  # (B, T, D) each
    length = x.shape[-2]
    require(length % chunk_size == 0, f"length T={length} is not a multiple of chunk_size={chunk_size}")
    # 4: one gate for keys and values; queries stay out of the recurrence
    # eq: rat-4
    v_state = gated_scan(gate, v, chunk_size=chunk_size)  # (B, T, D)
    k_state = gated_scan(gate, k, chunk_size=chunk_size)  # (B, T, D)
    # 5 to 7
    q, k, v = (split_heads(a, num_heads) for a in (q, k_state, v_state))  # (B, H, T, dh)
    out, attn = chunk_attention(q, k, v, chunk_size=chunk_size, rope_base=rope_base, return_weights=True)
    # 8
    # eq: rat-8
    added = (z * merge_heads(out)) @ weights.w_out  # (B, T, D)
    y = x + added.astype(x.dtype, copy=False)
    return (y, RATAux(gate, z, k_state, v_state, attn)) if return_aux else y


def rat_projections(
    x: Any,
    weights: RATWeights,
    *,
    num_heads: int,
    num_groups: int = 2,
    norm_eps: float = 1e-6,
) -> RATProjections:
    """Make the output gate, value, forget gate, query and key of every token: steps 1 to 3.

    Parameters
    ----------
    x : array_like, shape (B, T, D)
        Activations.
    weights : RATWeights
        See there.
    num_heads, num_groups, norm_eps
        As in `rat_layer`.

    Returns
    -------
    RATProjections
        Five arrays of shape (B, T, D); the queries and keys of the G groups repeat for all H heads.

    Raises
    ------
    ValueError
        If D is not a multiple of H or H not of G, a weight has not the shape it must have, or ``x`` holds integers.

    Notes
    -----
    Queries and keys are shared by *tiling*: head h uses group h mod G. Grouped-query attention elsewhere repeats each
    group H/G times in a row, so that head h uses group h // (H/G). Values are not shared.
    """
    x, weights = _checked(x, weights, num_heads, num_groups)
    width = x.shape[-1]
    group_width = num_groups * (width // num_heads)
    # eq: rat-1
    u = (rms_norm(x, weights.norm, eps=norm_eps) @ weights.w_in).astype(x.dtype, copy=False)  # (B, T, 3 D + 2 G dh)
    cuts = np.cumsum([width, width, width, group_width])
    z, v, gate, q, k = np.split(u, cuts, axis=-1)  # (B, T, D) three times, (B, T, G dh) twice
    # eq: rat-2
    z, gate = sigmoid(z), sigmoid(gate + weights.gate_bias)  # (B, T, D)
    # eq: rat-3
    q, k = (np.concatenate([a] * (num_heads // num_groups), axis=-1) for a in (q, k))  # (B, T, D)
    return RATProjections(z, v, gate, q, k)


def _checked(x: Any, weights: RATWeights, num_heads: int, num_groups: int) -> tuple[np.ndarray, RATWeights]:
    """Return activations and weights in one dtype, or say what does not fit."""
    x = as_float("x", x, refuse_integers=ValueError)
    require(x.ndim >= 2, f"x has shape {x.shape}, expected (B, T, D)")
    width = x.shape[-1]
    require(
        num_heads >= 1 and width % num_heads == 0,
        f"d_model must be divisible by num_heads: d_model={width}, num_heads={num_heads}",
    )
    require(
        num_groups >= 1 and num_heads % num_groups == 0,
        f"num_heads must be divisible by num_groups: num_heads={num_heads}, num_groups={num_groups}",
    )
    columns = 3 * width + 2 * num_groups * (width // num_heads)
    shapes = {"w_in": (width, columns), "gate_bias": (width,), "w_out": (width, width), "norm": (width,)}
    arrays = {name: as_float(f"weights.{name}", getattr(weights, name)) for name in shapes}
    for name, shape in shapes.items():
        require_shape(f"weights.{name}", arrays[name], shape)
    return x, RATWeights(**{name: array.astype(x.dtype, copy=False) for name, array in arrays.items()})
