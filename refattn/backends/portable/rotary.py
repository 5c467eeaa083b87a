"""Rotary position embedding in the array-API standard: y = x ∘ cos + J x ∘ sin, one gather for either pairing.

J swaps the members of each pair and turns the sign of the second; which channels are paired is an index vector, made on
the host. Frequencies are host numbers, too, θ^{−2c/r} taken as e^{−c ω} with ω = 2 ln θ / r, so that a change of base
is a change of ω. Angles are float64 where the library has it, products run in the dtype of ``x``, 16 bits in float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace

from refattn.backends.portable.attention.rules import on_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["mrope_angles", "rope", "rope_angles", "rope_angles_2d", "rope_frequencies", "rotary_embedding"]


def rope_frequencies(
    dim: int, *, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None, length: float | None = None
) -> tuple[np.ndarray, float]:
    """Return the frequency of each channel pair as a NumPy array (r/2,), and the attention factor.

    Parameters
    ----------
    dim : int
        r, the rotary width.
    theta, scaling, length
        As in the reference.

    Returns
    -------
    freqs : ndarray, shape (r/2,)
    attention_factor : float

    Raises
    ------
    ValueError
        If the type of scaling is unknown.
    """
    c, omega = np.arange(dim // 2), 2 * math.log(theta) / dim
    f, options = np.exp(-omega * c), scaling or {"type": "none"}
    s, original = options.get("factor", 1.0), options.get("original_max", 1)
    stretch = math.log(s) / max(dim // 2 - 1, 1)  # ω gains this where the base changes to θ s^{r/(r−2)}
    match options["type"]:
        case "none":
            return f, 1.0
        case "linear":
            return f / s, 1.0
        case "ntk":
            return np.exp(-(omega + stretch) * c), 1.0
        case "dynamic":
            grown = 1 + s * (max((length or 0) / original, 1) - 1)
            return np.exp(-(omega + math.log(grown) / max(dim // 2 - 1, 1)) * c), 1.0
        case "yarn":
            return _blend(f, s, 1 - _yarn_ramp(c, omega, dim, options)), _yarn_factor(s, options)
        case "llama3":
            low, high = options["low_freq_factor"], options["high_freq_factor"]
            turns = original * f / (2 * math.pi)  # within the original length
            return _blend(f, s, np.clip((turns - low) / (high - low), 0, 1)), 1.0
        case "longrope":
            divisors = np.array(options["long_factor" if (length or 0) > original else "short_factor"], dtype=float)
            factor = options.get("attention_factor")
            return f / divisors, math.sqrt(1 + math.log(max(s, 1)) / math.log(original)) if factor is None else factor
    raise ValueError(f"scaling['type']={options['type']!r} is not a rule")


def _blend(f: np.ndarray, s: float, kept: np.ndarray) -> np.ndarray:
    """Keep a share of each frequency, and slow the rest down by s."""
    return np.asarray(f * kept + f * (1 - kept) / s)


def _yarn_ramp(c: np.ndarray, omega: float, dim: int, options: Mapping[str, Any]) -> np.ndarray:
    """Return γ: 0 for pairs that turn often within the original length, 1 for those that hardly turn."""
    rounds = [options.get(name) or default for name, default in (("beta_fast", 32), ("beta_slow", 1))]
    low, high = (math.log(options["original_max"] / (2 * math.pi * n)) / omega for n in rounds)
    if options.get("truncate") in (None, True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return np.clip((c - low) / (high - low if high != low else 0.001), 0, 1)


def _yarn_factor(s: float, options: Mapping[str, Any]) -> float:
    """Return the attention factor of YaRN."""
    given, first, second = (options.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    growth = 0.1 * math.log(max(s, 1))
    return (1 + first * growth) / (1 + second * growth) if first and second else 1 + growth


def rope_angles(positions: Any, freqs: Any) -> Any:
    """Return position times frequency, (..., S, r/2).

    Parameters
    ----------
    positions : array, shape (..., S)
    freqs : array, shape (r/2,)

    Returns
    -------
    array, shape (..., S, r/2)
    """
    return _floats(positions)[..., None] * _like(freqs, positions)


def mrope_angles(positions3: Any, freqs: Any, sections: Sequence[int], *, interleaved: bool = False) -> Any:
    """Return angles of tokens placed in time, height and width.

    Parameters
    ----------
    positions3 : array, shape (3, ..., S)
    freqs : array, shape (r/2,)
    sections : three int
        Pairs of t, h and w.
    interleaved : bool
        Deal the pairs out in turn instead of in three runs.

    Returns
    -------
    array, shape (..., S, r/2)
    """
    pairs = sum(sections)
    owner = np.repeat(np.arange(3), sections)
    if interleaved:
        turn = np.arange(pairs) % 3
        owner = np.where(np.arange(pairs) < 3 * np.asarray(sections)[turn], turn, 0)
    t, h, w = (_floats(positions3)[n, ...][..., None] for n in range(3))
    # each pair follows one of the three, so the other two have weight 0
    share = [_like((owner == n).astype(float), positions3) for n in range(3)]
    return (t * share[0] + h * share[1] + w * share[2]) * _like(freqs, positions3)


def rope_angles_2d(hw: Any, dim: int, *, theta: float = 10000.0, rule: str = "pixtral") -> Any:
    """Return angles of image patches, row angles first.

    Parameters
    ----------
    hw : array, shape (..., S, 2)
    dim : int
        d, a multiple of 4.
    theta : float
    rule : {"pixtral", "qwen2vl"}

    Returns
    -------
    array, shape (..., S, d/2)

    Raises
    ------
    ValueError
        If the rule is unknown.
    """
    if rule not in ("pixtral", "qwen2vl"):
        raise ValueError(f"rule={rule!r} is not one of 'pixtral', 'qwen2vl'")
    every_second, _ = rope_frequencies(dim // 2, theta=theta)  # f_0, f_2, … of width d are all of width d/2
    between = float(rope_frequencies(dim, theta=theta)[0][1]) if rule == "pixtral" else 1.0
    rows, columns = _floats(hw)[..., :1], _floats(hw)[..., 1:] * between
    both = _like(every_second, hw)
    return array_namespace(rows).concat([rows * both, columns * both], axis=-1)


def rope(x: Any, angles: Any, *, interleaved: bool = False, factor: float = 1.0, inverse: bool = False) -> Any:
    """Rotate the first r channels of ``x`` in pairs; the others pass unchanged.

    Parameters
    ----------
    x : array, shape (..., S, d)
    angles : array, shape (..., S, r/2)
    interleaved, factor, inverse
        As in the reference.

    Returns
    -------
    array, shape (..., S, d)
        In the dtype of ``x``.
    """
    xp = array_namespace(x, angles)
    half = angles.shape[-1]
    index = np.arange(2 * half)
    pair, second = (index // 2, index % 2) if interleaved else (index % half if half else index, index // max(half, 1))
    partner = index + (1 - 2 * second) * (1 if interleaved else half)
    dtype = xp.float32 if xp.finfo(x.dtype).bits < 32 else x.dtype
    cos = xp.astype(factor * xp.cos(angles), dtype)
    sin = xp.astype((-factor if inverse else factor) * xp.sin(angles), dtype)
    sign = xp.astype(on_device(xp, 2.0 * second - 1.0, x), dtype)
    turned = xp.astype(x[..., : 2 * half], dtype)
    pair, partner = on_device(xp, pair, x), on_device(xp, partner, x)
    y = turned * xp.take(cos, pair, axis=-1) + xp.take(turned, partner, axis=-1) * (sign * xp.take(sin, pair, axis=-1))
    rest = xp.broadcast_to(x[..., 2 * half :], (*y.shape[:-1], x.shape[-1] - 2 * half))
    return xp.concat([xp.astype(y, x.dtype), rest], axis=-1)


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
) -> Any:
    """Turn the channel pairs of every token by its position times their frequencies.

    Parameters
    ----------
    x : array, shape (..., S, d)
    positions : array of int, broadcasting to (..., S)
    rotary_dim, theta, scaling, length, interleaved, inverse
        As in the reference.

    Returns
    -------
    array, shape (..., S, d)
        In the dtype of ``x``.
    """
    dim = x.shape[-1] if rotary_dim is None else rotary_dim
    freqs, factor = rope_frequencies(dim, theta=theta, scaling=scaling, length=length)
    return rope(x, rope_angles(positions, freqs), interleaved=interleaved, factor=factor, inverse=inverse)


def _angle_dtype(xp: Any) -> Any:
    """Return float64, or what JAX gives where its 64-bit mode is off."""
    return xp.zeros(()).dtype if is_jax_namespace(xp) else xp.float64


def _floats(positions: Any) -> Any:
    xp = array_namespace(positions)
    return xp.astype(positions, _angle_dtype(xp))


def _like(numbers: Any, positions: Any) -> Any:
    """Return host numbers, or numbers of the library, as angles' floats beside ``positions``."""
    xp = array_namespace(positions)
    return xp.astype(on_device(xp, numbers, positions), _angle_dtype(xp))
