"""Rotary position embedding: turn each channel pair like a clock hand, by position times frequency (2104.09864).

The scaled frequencies for longer contexts live in `refattn.primitives.rotary_scaling`. Equation numbers R36–R48 are
those of the attention page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_one_of, require_shape
from refattn.primitives.rotary_scaling import RopeSetting, check_scaling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["mrope_angles", "rope", "rope_angles", "rope_angles_2d", "rope_frequencies"]


def rope_frequencies(
    dim: int,
    *,
    theta: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    length: float | None = None,
) -> tuple[np.ndarray, float]:
    """Return how fast each channel pair turns, and the factor on cos and sin.

    Parameters
    ----------
    dim : int
        The rotary width r: how many channels rotate. Even.
    theta : float
        The base θ; 500,000 in Llama 3.
    scaling : mapping, optional
        A rule for contexts longer than L₀ (``original_max``), s being ``factor``:

        - ``{"type": "linear", "factor"}``: f/s (position interpolation);
        - ``{"type": "ntk", "factor"}``: the base θ s^{r/(r−2)};
        - ``{"type": "dynamic", "factor", "original_max"}``: NTK with s L/L₀ − (s − 1), L = max(length, L₀);
        - ``{"type": "yarn", "factor", "original_max"}`` and ``beta_fast`` (32), ``beta_slow`` (1), ``truncate``
          (True), ``mscale`` with ``mscale_all_dim``, or ``attention_factor``;
        - ``{"type": "llama3", "factor", "original_max", "low_freq_factor", "high_freq_factor"}``;
        - ``{"type": "longrope", "factor", "original_max", "short_factor", "long_factor"}`` and ``attention_factor``;
          the two lists hold r/2 divisors each.

        A key whose value is None counts as absent.
    length : float, optional
        The sequence length L, for the rules that look at it; without it, L does not exceed L₀.

    Returns
    -------
    freqs : ndarray, shape (r/2,)
        Radians per position, float64.
    attention_factor : float
        Multiplies cos *and* sin, so scores get its square; 1 but for YaRN and LongRoPE.

    Raises
    ------
    ValueError
        For an odd or non-positive width, θ ≤ 0, a negative length, and a scaling that is unknown, lacks a key, has one
        too many or holds values out of range.

    Notes
    -----
    Everything is float64. Released models build these tables in float32, which moves angles by up to 2⁻²⁴ of
    themselves: visible from some thousand positions on.

    References
    ----------
    RoPE: 2104.09864 (R36). Position interpolation: 2306.15595 (R41). YaRN, NTK: 2309.00071 (R42, R43). Llama 3: its
    released code (R44). LongRoPE: 2402.13753 (R45).
    """
    require(index(dim) > 0 and dim % 2 == 0, f"dim={dim!r} must be an even positive integer, channels turn in pairs")
    require(np.isfinite(theta) and theta > 0, f"theta={theta!r} must be finite and > 0")
    require(length is None or length >= 0, f"length={length!r} must be >= 0")
    # eq: R36
    freqs = theta ** (-2.0 * np.arange(dim // 2) / dim)  # f (r/2,)
    if scaling is None:
        return freqs, 1.0
    given = {key: value for key, value in scaling.items() if value is not None}
    return check_scaling(given, dim // 2, theta).scale(RopeSetting(freqs, theta, length or 0, given))


def rope_angles(positions: Any, freqs: Any) -> np.ndarray:
    """Return the angle of every channel pair at every position: position · frequency.

    Parameters
    ----------
    positions : array_like, shape (..., S)
        Absolute positions, any per token: packed sequences restart at 0, a cache adds its length.
    freqs : array_like, shape (r/2,)
        From `rope_frequencies`.

    Returns
    -------
    ndarray, shape (..., S, r/2)
        Float64 radians.

    Raises
    ------
    ValueError
        If ``freqs`` is not a vector.
    """
    positions, freqs = _as_float64("positions", positions), _as_float64("freqs", freqs, ndim=1)
    # eq: R37 R40
    angles: np.ndarray = positions[..., None] * freqs  # (..., S, r/2)
    return angles


def rope(
    x: Any,
    angles: Any,
    *,
    interleaved: bool = False,
    factor: float = 1.0,
    inverse: bool = False,
) -> np.ndarray:
    """Rotate the first r channels of ``x`` in pairs, each pair by its angle; the other channels pass unchanged.

    Parameters
    ----------
    x : array_like, shape (..., S, d)
        Queries or keys. Keys are rotated once and stored rotated.
    angles : array_like, shape (..., S, r/2)
        From `rope_angles`, `mrope_angles` or `rope_angles_2d`; r ≤ d. Leading axes broadcast: for ``x`` of shape
        (B, H, S, d) and angles per batch pass ``angles[:, None]``.
    interleaved : bool
        False pairs channel c with c + r/2 (Llama, GPT-NeoX, Qwen); True pairs 2c with 2c + 1 (GPT-J, GLM).
    factor : float
        The attention factor of `rope_frequencies`; it multiplies the rotated channels only.
    inverse : bool
        Turn back: rotate by minus the angle. With the same factor this is the vector-Jacobian product of the rotation.

    Returns
    -------
    ndarray, shape (..., S, d)
        In the dtype of ``x``, computed in float64. Channels from r on are bit for bit those of ``x``.

    Raises
    ------
    ValueError
        If the angles need more channels than ``x`` has, the leading axes do not broadcast, or the factor is not finite.

    Notes
    -----
    The two pairings are one rotation under a permutation of channels: weights trained with one give garbage with the
    other. Partial rotation takes its frequencies from r, not from d.

    References
    ----------
    2104.09864, eq. 34 [recalled]; here R37–R39 and R48.
    """
    x, angles = as_float("x", x), _as_float64("angles", angles)
    require(x.ndim > 0 and angles.ndim > 0, f"x {x.shape} and angles {angles.shape} must have a channel axis")
    r = 2 * angles.shape[-1]
    require(r <= x.shape[-1], f"angles has shape {angles.shape}: {r} channels rotate, but x has {x.shape[-1]}")
    require_finite("factor", factor)
    lead = _broadcast(x.shape[:-1], angles.shape[:-1])

    # eq: R39
    turned, passed = x[..., :r], np.broadcast_to(x[..., r:], (*lead, x.shape[-1] - r), subok=True)
    a, b = _pairs(turned.astype(np.float64), interleaved=interleaved)  # (..., S, r/2) each
    cos, sin = factor * np.cos(angles), factor * np.sin(-angles if inverse else angles)  # (..., S, r/2)
    # eq: R37
    pair = (a * cos - b * sin, a * sin + b * cos)
    # eq: R38
    rotated = np.stack(pair, axis=-1).reshape(*lead, r) if interleaved else np.concatenate(pair, axis=-1)
    return np.concatenate([rotated.astype(x.dtype), passed], axis=-1)  # (..., S, d)


def mrope_angles(
    positions3: Any,
    freqs: Any,
    sections: Sequence[int],
    *,
    interleaved: bool = False,
) -> np.ndarray:
    """Return angles for tokens placed in time, height and width: each channel pair follows one of the three.

    Parameters
    ----------
    positions3 : array_like, shape (3, ..., S)
        Positions t, h and w of every token; equal for text.
    freqs : array_like, shape (r/2,)
        From `rope_frequencies`.
    sections : sequence of three int
        How many *pairs* belong to t, h and w; they sum to r/2.
    interleaved : bool
        False cuts the pairs into three runs (Qwen2-VL). True deals them out t, h, w, t, h, w, …, what is left over
        going to t (Qwen3-VL): h takes pair c if c ≡ 1 mod 3 and c < 3·sections[1], w if c ≡ 2 mod 3 and
        c < 3·sections[2].

    Returns
    -------
    ndarray, shape (..., S, r/2)
        Float64 radians.

    Raises
    ------
    ValueError
        If ``positions3`` does not hold three streams, or ``sections`` not three counts that sum to r/2.
    """
    positions3, freqs = _as_float64("positions3", positions3), _as_float64("freqs", freqs, ndim=1)
    require(positions3.shape[:1] == (3,), f"positions3 has shape {positions3.shape}, expected (3, ..., S)")
    c = np.arange(freqs.shape[0])
    require(
        len(sections) == 3 and min(sections) >= 0 and sum(sections) == len(c),
        f"sections={tuple(sections)!r} must be three counts >= 0 that sum to the {len(c)} channel pairs",
    )
    # eq: R46
    if interleaved:
        stream = np.select([(c % 3 == n) & (c < 3 * sections[n]) for n in (1, 2)], [1, 2], default=0)  # (r/2,)
    else:
        stream = np.repeat([0, 1, 2], sections)  # (r/2,)
    angles: np.ndarray = np.moveaxis(positions3[stream], 0, -1) * freqs  # (..., S, r/2)
    return angles


def rope_angles_2d(hw: Any, dim: int, *, theta: float = 10000.0, rule: str = "pixtral") -> np.ndarray:
    """Return angles for image patches: half of the channel pairs follow the row, half the column.

    Parameters
    ----------
    hw : array_like, shape (..., S, 2)
        Row and column of every patch.
    dim : int
        The rotary width d, a multiple of 4, so that rows and columns get the same number of pairs.
    theta : float
        The base θ.
    rule : {"pixtral", "qwen2vl"}
        ``pixtral`` deals the frequencies of width d out in turn: f_0, f_2, … to rows and f_1, f_3, … to columns;
        ``qwen2vl`` gives both axes the frequencies of width d/2. Row angles come first in both.

    Returns
    -------
    ndarray, shape (..., S, d/2)
        Float64 radians, for `rope` with half-split pairs.

    Raises
    ------
    ValueError
        For an unknown rule, a width that is not a multiple of 4, or ``hw`` without a last axis of 2.
    """
    hw = _as_float64("hw", hw)
    require(hw.ndim >= 1, f"hw has shape {hw.shape}, expected (..., S, 2)")
    require_shape("hw", hw, (*hw.shape[:-1], 2))
    require_one_of("rule", rule, ("pixtral", "qwen2vl"))
    require(index(dim) > 0 and dim % 4 == 0, f"dim={dim!r} must be a positive multiple of 4")
    # eq: R47
    if rule == "pixtral":
        freqs, _ = rope_frequencies(dim, theta=theta)
        rows, columns = freqs[0::2], freqs[1::2]  # (d/4,) each
    else:
        rows, _ = rope_frequencies(dim // 2, theta=theta)
        columns = rows
    return np.concatenate([hw[..., :1] * rows, hw[..., 1:] * columns], axis=-1)  # (..., S, d/2)


def _pairs(x: np.ndarray, *, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Split the last axis into the two members of each pair."""
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


def _as_float64(name: str, value: Any, *, ndim: int | None = None) -> Any:
    return as_float(name, value, ndim=ndim).astype(np.float64, copy=False)


def _broadcast(x: tuple[int, ...], angles: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(x, angles)
    except ValueError:
        raise ValueError(f"leading axes of x {x} and angles {angles} do not broadcast") from None
