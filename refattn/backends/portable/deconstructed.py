"""Attention variants in the array-API standard, by other routes than the reference's.

Weights are summed before they are divided; the Taylor polynomial is ((1 + x)² + 1)/2; the gate is a prefix scan over
(maximum, sums) and has no map; recurrences go by chunks; a stack takes the reference along as one more batch row; heads
are compared in pairs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import silu
from refattn.layers.deconstructed import AttentionWeights, MLPWeights
from refattn.layers.deconstructed_indicators import Indicators
from refattn.layers.deconstructed_recurrent import GateState, TaylorState
from refattn.layers.deconstructed_stack import StackOutput, StackWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "apply_attention",
    "approximate_recurrent",
    "attention_indicators",
    "attention_map",
    "forward_stack",
    "gated_mlp",
    "non_approximate_recurrent",
]

FIXED = ("random_fixed", "text_fixed")
CHUNK = 64  # tokens of a recurrence that are taken at once
LONGEST_FOCUS = 3


def attention_map(
    source: Any,
    weights: AttentionWeights,
    *,
    variant: str,
    n_heads: int,
    form: str = "joint",
    eps: float = 0.0,
    rotary_base: float | None = None,
) -> Any:
    """Return the causal map of each head."""
    if variant == "non_approximate":
        s = _gate_scores(source, weights, n_heads)
        xp = array_namespace(s)
        pairs = [_softmax_parts(xp.zeros_like(s)[..., None] + s[..., None, :])]
    else:
        pairs = _pairs(source, weights, variant, n_heads, form, eps, rotary_base)
    return sum(e / total for e, total in pairs)


def apply_attention(
    hidden: Any,
    weights: AttentionWeights,
    *,
    variant: str,
    n_heads: int,
    reference: Any = None,
    static: Any = None,
    form: str = "joint",
    eps: float = 0.0,
    rotary_base: float | None = None,
) -> Any:
    """Run one layer; the division by the sums comes after the product with the values."""
    if variant == "mlp":
        return gated_mlp(hidden, MLPWeights(*weights[:3])) @ weights.W_O
    V = _heads(hidden @ weights.W_V, n_heads)
    if variant == "non_approximate":
        return _merged(_scan(_gate_scores(hidden, weights, n_heads), V)[0]) @ weights.W_O
    source = static if variant == "static_emb" else hidden
    if variant in FIXED:
        source = reference[..., : hidden.shape[-2], :]
    pairs = _pairs(source, weights, variant, n_heads, form, eps, rotary_base)
    return _merged(sum(_read(e, V) / total for e, total in pairs)) @ weights.W_O


def gated_mlp(hidden: Any, weights: MLPWeights) -> Any:
    """Return the gated transformation of each token."""
    return (silu(hidden @ weights.gate) * (hidden @ weights.up)) @ weights.down


def approximate_recurrent(
    q: Any, k: Any, v: Any, *, form: str = "joint", eps: float = 0.0, initial: TaylorState | None = None
) -> tuple[Any, TaylorState]:
    """Compute the Taylor recurrence chunk by chunk: pairs inside a chunk, sums from those before it."""
    xp = array_namespace(q, k, v)
    width = q.shape[-1]
    squares = width if form == "per_order" else width * width
    cuts = [0, 1, 1 + width, 1 + width + squares] if form == "per_order" else [0, 1 + width + squares]
    S, z = (None, None) if initial is None else (initial.S, initial.z[..., None])
    rows = []
    for begin in range(0, q.shape[-2], CHUNK):
        Q, K, V = (x[..., begin : min(begin + CHUNK, q.shape[-2]), :] for x in (q, k, v))
        f_q, f_k = _features(Q, form), _features(K, form)
        rows.append(0)
        for low, high in pairwise(cuts):
            part = slice(low, high)
            x = Q @ xp.matrix_transpose(K) / math.sqrt(width)
            w = _polynomial(x) if form == "joint" else f_q[..., part] @ xp.matrix_transpose(f_k[..., part])
            w = w * _table(np.tri(w.shape[-1]), w)
            above, below = w @ V, xp.sum(w, axis=-1, keepdims=True)
            if S is not None and z is not None:
                above, below = above + f_q[..., part] @ S[..., part, :], below + f_q[..., part] @ z[..., part, :]
            rows[-1] = rows[-1] + above / (below + eps)
        new_S = xp.matrix_transpose(f_k) @ V
        new_z = xp.sum(f_k, axis=-2)[..., None]
        S, z = (new_S, new_z) if S is None or z is None else (S + new_S, z + new_z)
    assert z is not None
    return xp.concat(rows, axis=-2), TaylorState(S, z[..., 0])


def non_approximate_recurrent(q: Any, k: Any, v: Any, *, initial: GateState | None = None) -> tuple[Any, GateState]:
    """Compute the gate's recurrence as a prefix scan."""
    xp = array_namespace(q, k, v)
    return _scan(xp.sum(q * k, axis=-1) / math.sqrt(q.shape[-1]), v, initial)


def forward_stack(
    tokens: Any,
    params: StackWeights,
    plan: Sequence[str],
    *,
    n_heads: int,
    reference_embeddings: Any = None,
    reference_tokens: Any = None,
    skip: Sequence[int] = (),
    normalize_static: bool = False,
    norm_eps: float = 1e-6,
    rotary_base: float | None = None,
) -> StackOutput:
    """Run a stack; the reference, where there is one, is the last row of the batch."""
    xp = array_namespace(tokens, params.embedding)
    run = [(kind, block) for i, (kind, block) in enumerate(zip(plan, params.blocks, strict=True)) if i + 1 not in skip]
    x = _embed(params.embedding, xp.reshape(tokens, (math.prod(tokens.shape[:-1]), tokens.shape[-1])))
    referred = any(kind in FIXED for kind, _ in run)
    if referred:
        by_name = any(kind == "text_fixed" for kind, _ in run)
        X = _embed(params.embedding, reference_tokens) if by_name else reference_embeddings
        x = xp.concat([x, X[None, : tokens.shape[-1], :]], axis=0)
    start, rows, maps = x, math.prod(tokens.shape[:-1]), []
    for kind, block in run:
        H = _rms_norm(x, block.norm_attention, norm_eps)
        if kind == "mlp":
            x, A = x + apply_attention(H, block.attention, variant=kind, n_heads=n_heads), None
        else:
            static = _rms_norm(start, block.norm_attention, norm_eps) if normalize_static else start
            source = H[-1, ...] if kind in FIXED else static if kind == "static_emb" else H
            A = attention_map(source, block.attention, variant=kind, n_heads=n_heads, rotary_base=rotary_base)
            x = x + _merged(_read(A, _heads(H @ block.attention.W_V, n_heads))) @ block.attention.W_O
            A = A if kind in FIXED else xp.reshape(A[:rows, ...], (*tokens.shape[:-1], *A.shape[1:]))
        maps.append(A)
        x = x + gated_mlp(_rms_norm(x, block.norm_mlp, norm_eps), block.mlp)
    hidden = xp.reshape(x[:rows, ...], (*tokens.shape, x.shape[-1]))
    return StackOutput(hidden, tuple(maps), x[-1, ...] if referred else None)


def attention_indicators(maps: Any) -> Indicators:
    """Describe maps; the deviation over heads is found from the differences of all pairs of heads."""
    xp = array_namespace(maps)
    h, L = maps.shape[-3], maps.shape[-1]
    both = (-2, -1)
    log = xp.log(xp.where(maps > 0, maps, xp.ones_like(maps)))
    entropy = -xp.sum(maps * log, axis=(-3, -2, -1)) / h
    norm = xp.mean(xp.sqrt(xp.sum(maps * maps, axis=both)), axis=-1)
    square = sum(
        (xp.sum((maps - xp.roll(maps, r, axis=-3)) ** 2, axis=-3) for r in range(1, h)), 0 * maps[..., 0, :, :]
    )
    diversity = xp.sum(xp.sqrt(square / 2), axis=both) / (h * L * (L + 1) / 2)
    sink = xp.mean(maps[..., 0], axis=both)
    mean = xp.mean(maps, axis=-3)
    focus = [xp.sum(mean * _table(np.eye(L, k=-N), mean), axis=both) / max(L - N, 1) for N in range(LONGEST_FOCUS + 1)]
    most, least = math.lgamma(L + 1), math.sqrt(sum(1 / i for i in range(1, L + 1)))
    scaled = entropy / (most if L > 1 else 1.0)
    peaked = (norm - least) / (math.sqrt(L) - least if L > 1 else 1.0)
    return Indicators(entropy, norm, diversity, sink, xp.stack(focus, axis=-1), scaled, peaked)


def _pairs(
    source: Any, weights: Any, variant: str, n_heads: int, form: str, eps: float, rotary_base: float | None
) -> list[tuple[Any, Any]]:
    """Return undivided weights and their sums: one pair, or one for each order."""
    xp = array_namespace(source)
    q, k = _heads(source @ weights.W_Q, n_heads), _heads(source @ weights.W_K, n_heads)
    if rotary_base is not None:
        q, k = _turned(q, rotary_base), _turned(k, rotary_base)
    if variant == "approximate" and form == "per_order":
        parts = (q[..., :1] * 0 + 1, k[..., :1] * 0 + 1), (q, k), (q * q, k * k)
        return [_polynomial_parts(a @ xp.matrix_transpose(b), eps) for a, b in parts]
    x = (q / math.sqrt(q.shape[-1])) @ xp.matrix_transpose(k)
    return [_polynomial_parts(_polynomial(x), eps) if variant == "approximate" else _softmax_parts(x)]


def _softmax_parts(x: Any) -> tuple[Any, Any]:
    """Return shifted exponentials of what a row can see, and their sums."""
    xp = array_namespace(x)
    x = x + _table(_hidden(x.shape[-1]), x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e, xp.sum(e, axis=-1, keepdims=True)


@lru_cache(maxsize=4)
def _hidden(length: int) -> np.ndarray:
    """Return −∞ where a key is hidden, else 0."""
    return np.where(np.tri(length, dtype=bool), 0.0, -np.inf)


def _read(e: Any, V: Any) -> Any:
    """Return e V; where one map serves many inputs, their values stand side by side in one product."""
    if e.ndim >= V.ndim:
        return e @ V
    xp = array_namespace(e, V)
    lead, (h, L, dh) = V.shape[:-3], V.shape[-3:]
    side_by_side = xp.permute_dims(xp.reshape(V, (math.prod(lead), h, L, dh)), (1, 2, 0, 3))
    out = xp.reshape(e @ xp.reshape(side_by_side, (h, L, math.prod(lead) * dh)), (h, L, math.prod(lead), dh))
    return xp.reshape(xp.permute_dims(out, (2, 0, 1, 3)), (*lead, h, L, dh))


def _polynomial(x: Any) -> Any:
    return ((1 + x) ** 2 + 1) / 2


def _polynomial_parts(w: Any, eps: float) -> tuple[Any, Any]:
    xp = array_namespace(w)
    w = w * _table(np.tri(w.shape[-1]), w)
    return w, xp.sum(w, axis=-1, keepdims=True) + eps


def _gate_scores(source: Any, weights: Any, n_heads: int) -> Any:
    """Return one score for each head and token, (..., h, L)."""
    xp = array_namespace(source)
    product = silu(source @ weights.W_Q) * (source @ weights.W_K)
    return xp.sum(_heads(product, n_heads), axis=-1) / math.sqrt(source.shape[-1] // n_heads)


def _scan(s: Any, v: Any, initial: GateState | None = None) -> tuple[Any, GateState]:
    """Join (m, z, n) of neighbours, then of neighbours of neighbours: log₂ L rounds."""
    xp = array_namespace(s, v)
    m, z, n = s, xp.ones_like(s), v
    if initial is not None:
        m = xp.concat([initial.m[..., None], m], axis=-1)
        z = xp.concat([initial.z[..., None], z], axis=-1)
        n = xp.concat([initial.n[..., None, :], n], axis=-2)
    shift = 1
    while shift < m.shape[-1]:
        top = xp.maximum(m[..., :-shift], m[..., shift:])
        before, after = xp.exp(m[..., :-shift] - top), xp.exp(m[..., shift:] - top)
        joined = before[..., None] * n[..., :-shift, :] + after[..., None] * n[..., shift:, :]
        n = xp.concat([n[..., :shift, :], joined], axis=-2)
        z = xp.concat([z[..., :shift], before * z[..., :-shift] + after * z[..., shift:]], axis=-1)
        m = xp.concat([m[..., :shift], top], axis=-1)
        shift *= 2
    out = (n / z[..., None])[..., m.shape[-1] - s.shape[-1] :, :]
    return out, GateState(n[..., -1, :], z[..., -1], m[..., -1])


def _features(u: Any, form: str) -> Any:
    xp = array_namespace(u)
    width = u.shape[-1]
    square = u * u if form == "per_order" else xp.reshape(u[..., :, None] * u[..., None, :], (*u.shape[:-1], width**2))
    scale = math.sqrt(2) if form == "per_order" else math.sqrt(2 * width)
    return xp.concat([xp.ones_like(u[..., :1]), u / width**0.25, square / scale], axis=-1)


def _heads(x: Any, n_heads: int) -> Any:
    """Return (..., h, L, dh)."""
    xp = array_namespace(x)
    x = xp.reshape(x, (*x.shape[:-1], n_heads, x.shape[-1] // n_heads))
    lead = tuple(range(x.ndim - 3))
    return xp.permute_dims(x, (*lead, x.ndim - 2, x.ndim - 3, x.ndim - 1))


def _merged(x: Any) -> Any:
    """Return (..., L, h·dh)."""
    xp = array_namespace(x)
    lead = tuple(range(x.ndim - 3))
    x = xp.permute_dims(x, (*lead, x.ndim - 2, x.ndim - 3, x.ndim - 1))
    return xp.reshape(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))


def _turned(x: Any, base: float) -> Any:
    """Turn channel c with channel c + dh/2, by tables of cosines and signed sines."""
    xp = array_namespace(x)
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    swapped = xp.concat([x[..., half:], x[..., :half]], axis=-1)
    return x * _table(np.concatenate([cos, cos], -1), x) + swapped * _table(np.concatenate([-sin, sin], -1), x)


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    xp = array_namespace(x)
    return x * (weight / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps))


def _embed(table: Any, tokens: Any) -> Any:
    xp = array_namespace(table)
    flat = xp.reshape(tokens, (math.prod(tokens.shape),))
    return xp.reshape(xp.take(table, flat, axis=0), (*tokens.shape, table.shape[-1]))


def _table(numbers: np.ndarray, like: Any) -> Any:
    """Return a static table in the dtype and on the device of an array."""
    return array_namespace(like).asarray(numbers, dtype=like.dtype, device=device(like))
