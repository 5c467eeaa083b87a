"""ALiBi: a penalty of m_h · |distance| on every logit, with a fixed slope m_h for each head (2108.12409) [recalled].

Equation source: the paper's slopes as Bloom and MPT compute them; rule R19 of the attention page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_one_of

__all__ = ["alibi_bias", "alibi_slopes"]


def alibi_slopes(n: int, *, rule: str = "standard") -> np.ndarray:
    """Return the ALiBi slope of each of ``n`` heads.

    Parameters
    ----------
    n : int
        Number of query heads.
    rule : {"standard", "naive"}
        ``standard``: 2^(−8(h+1)/c) for the c heads of the largest power of two c ≤ n, then every other slope of
        2c heads. ``naive``: 2^(−8(h+1)/n) for every n, a declared variant.

    Returns
    -------
    ndarray, shape (n,)
        Positive slopes m_h, float64.

    Raises
    ------
    ValueError
        If ``n`` is negative or ``rule`` unknown.

    Notes
    -----
    The two rules agree where n is a power of two. Implementations differ in the sign of the bias (+m·j and −m·|i − j|
    are the same under a causal mask, up to a row constant) and in whether it is scaled; here the distance always
    lowers the logit and is never scaled.
    """
    require_one_of("rule", rule, ("standard", "naive"))
    require(n >= 0, f"n={n} must not be negative")
    if n == 0:
        return np.empty(0)
    c = n if rule == "naive" else 2 ** (n.bit_length() - 1)
    # eq: R19
    slopes = 2.0 ** (-8.0 * (np.arange(c) + 1) / c)  # (c,)
    rest = 2.0 ** (-4.0 * (2 * np.arange(n - c) + 1) / c)  # (n - c,)
    return np.concatenate([slopes, rest])


def alibi_bias(slopes: Any, positions_q: Any, positions_k: Any) -> np.ndarray:
    """Return the bias −m_h · |p_i − r_j| that ALiBi adds to the logits.

    Parameters
    ----------
    slopes : array_like, shape (..., H)
        Slope of each head.
    positions_q : array_like of int, shape (..., Sq)
        Positions p_i of the queries.
    positions_k : array_like of int, shape (..., Sk)
        Positions r_j of the keys.

    Returns
    -------
    ndarray, shape (..., H, Sq, Sk)
        The bias, in the dtype of ``slopes``.

    Raises
    ------
    ValueError
        If the slopes are not finite or the positions not integers.
    """
    slopes = as_float("slopes", slopes)
    require(np.isfinite(slopes).all(), f"slopes={slopes} must be finite")
    p, r = as_integer("positions_q", positions_q), as_integer("positions_k", positions_k)
    distance = np.abs(p[..., :, None] - r[..., None, :])[..., None, :, :]  # (..., 1, Sq, Sk)
    # eq: R19
    return np.asanyarray(-slopes[..., None, None] * distance.astype(slopes.dtype))  # (..., H, Sq, Sk)
