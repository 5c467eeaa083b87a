"""The arguments of attention in one form: heads grouped by their keys, masks as rules, numbers in a working dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from refattn.backends.portable.attention.rules import (
    COLUMNS,
    ROWS,
    Below,
    Given,
    Reach,
    Rule,
    Same,
    cut,
    on_device,
    visible_block,
)

__all__ = ["Logits", "Problem", "block_distances", "block_logits", "heads_back", "heads_first", "holds", "pose"]


class Problem(NamedTuple):
    """One call of attention.

    Attributes
    ----------
    xp : namespace
        The array library.
    q : array, shape (B, Hkv, G, Sq, d)
        G query heads share a kv head; heads, not copies of k and v, are regrouped.
    k, v : array, shape (B, Hkv, Sk, d) and (B, Hkv, Sk, dv)
        In the working dtype, as all floating arrays: float32 for 16-bit inputs.
    p, r : array, shape (B|1, Sq) and (B|1, Sk)
        Positions of queries and keys.
    rules : tuple of Rule
        Who sees whom.
    padded : Below or None
        The rule that hides queries past their length.
    scale : float
        τ.
    bias : array, shape (B|1, Hkv|1, G|1, Sq|1, Sk|1), or None
        Added to the softcapped scores.
    slopes : array, shape (B|1, Hkv, G, Sq|1, 1), or None
        m_h.
    sinks : array, shape (1, Hkv, G, 1, 1), or None
        σ_h.
    softcap : float or None
        c.
    empty : str
        Policy of empty rows.
    """

    xp: Any
    q: Any
    k: Any
    v: Any
    p: Any
    r: Any
    rules: tuple[Rule, ...]
    padded: Below | None
    scale: float
    bias: Any
    slopes: Any
    sinks: Any
    softcap: float | None
    empty: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """(B, Hkv, G, Sq, Sk, dv)."""
        return (*self.q.shape[:4], *self.v.shape[-2:])


class Logits(NamedTuple):
    """Scores s, softcapped t and logits z, (B, Hkv, G, rows, columns), and who is visible, of one block."""

    scores: Any
    softcapped: Any
    logits: Any
    visible: Any


def heads_first(xp: Any, x: Any, layout: str, heads: int | None) -> Any:
    """Return ``x`` as (B, H, S, channels)."""
    if layout == "bs(hd)":
        x = xp.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads if heads else 0))
    elif layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout={layout!r} is not one of 'bhsd', 'bshd', 'bs(hd)'")
    return x if layout == "bhsd" else xp.permute_dims(x, (0, 2, 1, 3))


def heads_back(xp: Any, x: Any, layout: str) -> Any:
    """Return (B, H, S, channels) in the caller's layout."""
    x = x if layout == "bhsd" else xp.permute_dims(x, (0, 2, 1, 3))
    return xp.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3])) if layout == "bs(hd)" else x


class Options(NamedTuple):
    """The keyword arguments of the reference that say what is computed."""

    scale: float | None = None
    mask: Any = None
    bias: Any = None
    causal: bool = False
    align: Any = "top_left"
    window: Any = (None, None)
    kv_lengths: Any = None
    q_lengths: Any = None
    prefix: Any = None
    doc_q: Any = None
    doc_k: Any = None
    chunk: int | None = None
    softcap: float | None = None
    alibi_slopes: Any = None
    sinks: Any = None
    empty: str = "zero"


class Sizes(NamedTuple):
    """Lengths of the axes of the logits, the query heads in groups."""

    batch: int
    kv_heads: int
    groups: int
    sq: int
    sk: int

    def grouped(self, xp: Any, x: Any, axes: int) -> Any:
        """Align ``x`` right with (B, Hq, Sq, Sk)[:axes] and split its head axis in two; shared axes stay shared."""
        x = xp.reshape(x, (1,) * (axes - x.ndim) + tuple(x.shape))
        heads = (self.kv_heads, self.groups) if x.shape[1] == self.kv_heads * self.groups else (1, 1)
        return xp.reshape(x, (x.shape[0], *heads, *x.shape[2:]))


def pose(q: Any, k: Any, v: Any, *, positions: tuple[Any, Any] | None = None, **options: Any) -> Problem:
    """Bring the arguments of attention into one form.

    Parameters
    ----------
    q, k, v : array, shape (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv)
        Heads first.
    positions : pair of array, optional
        p (B|1, Sq) and r (B|1, Sk), where they do not follow from ``align``.
    **options
        See `Options`.

    Returns
    -------
    Problem
    """
    xp, o = array_namespace(q, k, v), Options(**options)
    sizes = _sizes(q, k)
    if o.empty not in ("zero", "nan", "uniform"):
        raise ValueError(f"empty={o.empty!r} is not one of 'zero', 'nan', 'uniform'")
    dtype = _working_dtype(xp, q.dtype)
    bias, slopes, sinks = (
        None if x is None else xp.astype(sizes.grouped(xp, x, axes), dtype)
        for x, axes in ((o.bias, 4), (o.alibi_slopes, 2), (o.sinks, 2))
    )
    n_k, n_q = _per_batch(xp, o.kv_lengths), _per_batch(xp, o.q_lengths)
    p, r = positions or (_query_positions(xp, q, sizes, o.align, n_k, n_q), np.arange(sizes.sk)[None])
    given = [] if o.mask is None else [Given(sizes.grouped(xp, o.mask, 4))]
    if bias is not None and not holds(xp.all(bias > -xp.inf)):
        given.append(Given(bias > -xp.inf))
    return Problem(
        xp=xp,
        q=xp.reshape(xp.astype(q, dtype, copy=False), (*sizes[:4], q.shape[-1])),
        k=xp.astype(k, dtype, copy=False),
        v=xp.astype(v, dtype, copy=False),
        p=p,
        r=r,
        rules=(*_position_rules(xp, o, p, r), *_length_rules(n_k, n_q), *given),
        padded=None if n_q is None else Below(n_q, ROWS),
        scale=q.shape[-1] ** -0.5 if o.scale is None else o.scale,
        bias=bias,
        slopes=None if slopes is None else slopes[..., None, None],
        sinks=None if sinks is None else sinks[..., None, None],
        softcap=o.softcap or None,
        empty=o.empty,
    )


def _sizes(q: Any, k: Any) -> Sizes:
    (batch, heads, sq, _), (_, kv_heads, sk, _) = q.shape, k.shape
    if kv_heads and heads % kv_heads:
        raise ValueError(f"q has {heads} heads, which is not a multiple of the {kv_heads} of k and v")
    return Sizes(batch, kv_heads, heads // max(kv_heads, 1), sq, sk)


def _position_rules(xp: Any, o: Options, p: Any, r: Any) -> list[Rule]:
    """Return the rules that compare positions and documents."""
    rules: list[Rule] = []
    if o.causal:
        rules.append(Reach(p, r, None, 0, _per_batch(xp, o.prefix)))
    if tuple(o.window) != (None, None):
        rules.append(Reach(p, r, *o.window))
    if o.chunk is not None:
        rules.append(Same(p // o.chunk, r // o.chunk))
    if o.doc_q is not None:
        rules.append(Same(_two_axes(o.doc_q), _two_axes(o.doc_k)))
    return rules


def _length_rules(n_k: Any, n_q: Any) -> list[Rule]:
    return [Below(n, axis) for n, axis in ((n_k, COLUMNS), (n_q, ROWS)) if n is not None]


def block_logits(problem: Problem, rows: slice, columns: slice) -> Logits:
    """Return the logits of a block of queries against a block of keys."""
    xp, q = problem.xp, problem.q[..., rows, :]
    kt = xp.matrix_transpose(problem.k[..., columns, :])  # (B, Hkv, d, columns)
    # the queries of a group lie below each other, so that one product serves them all
    stacked = xp.reshape(q * problem.scale, (*q.shape[:2], q.shape[2] * q.shape[3], q.shape[4]))
    s = xp.reshape(stacked @ kt, (*q.shape[:4], kt.shape[-1]))  # (B, Hkv, G, rows, columns)
    t = s if problem.softcap is None else problem.softcap * xp.tanh(s / problem.softcap)
    z = t if problem.bias is None else t + cut(problem.bias, rows, columns)
    if problem.slopes is not None:
        z = z - cut(problem.slopes, rows, columns) * block_distances(problem, rows, columns)
    visible = visible_block(xp, problem.rules, problem.q, rows, columns)
    return Logits(s, t, z if visible is None else xp.where(visible, z, -xp.inf), visible)


def block_distances(problem: Problem, rows: slice, columns: slice) -> Any:
    """Return |p_i − r_j| as floats, (B|1, 1, 1, rows, columns)."""
    xp, like = problem.xp, problem.q
    p, r = (on_device(xp, x[:, part], like) for x, part in ((problem.p, rows), (problem.r, columns)))
    distance = xp.abs(p[:, None, None, :, None] - r[:, None, None, None, :])
    return xp.astype(distance, like.dtype)


def holds(condition: Any) -> bool:
    """Whether a 0-d condition is known to hold; a traced one is not."""
    try:
        return bool(condition)
    except (TypeError, RuntimeError):  # what JAX and PyTorch raise while tracing
        return False


def _two_axes(ids: Any) -> Any:
    ids = np.asarray(ids) if isinstance(ids, (list, tuple)) else ids
    return ids if ids.ndim == 2 else ids[None, ...]


def _working_dtype(xp: Any, dtype: Any) -> Any:
    """Return float32 for 16-bit dtypes, else the dtype itself in the machine's byte order."""
    if isinstance(dtype, np.dtype):
        dtype = dtype.newbyteorder("=")
    return xp.float32 if xp.finfo(dtype).bits < 32 else dtype


def _per_batch(xp: Any, value: Any) -> Any:
    """Return numbers per batch entry, or one for all, as (B|1, 1)."""
    if value is None:
        return None
    value = np.asarray(value) if isinstance(value, (int, list, tuple, np.generic)) else value
    return value.reshape(-1, 1) if isinstance(value, np.ndarray) else xp.reshape(value, (-1, 1))


def _query_positions(xp: Any, like: Any, sizes: Sizes, align: Any, n_k: Any, n_q: Any) -> Any:
    """Return p = i + offset, (B|1, Sq): a NumPy array where the offset is known on the host."""
    if isinstance(align, str) and align not in ("top_left", "bottom_right"):
        raise ValueError(f"align={align!r} is not 'top_left', 'bottom_right' or an integer")
    i: Any = np.arange(sizes.sq)[None]
    if isinstance(align, str) and align == "top_left":
        return i
    if not isinstance(align, str):
        offset = _per_batch(xp, align)
    else:
        n_k, n_q = (np.full((1, 1), s) if n is None else n for n, s in ((n_k, sizes.sk), (n_q, sizes.sq)))
        known = isinstance(n_k, np.ndarray) and isinstance(n_q, np.ndarray)
        offset = n_k - n_q if known else on_device(xp, n_k, like) - on_device(xp, n_q, like)
    return (i if isinstance(offset, np.ndarray) else on_device(xp, i, like)) + offset
