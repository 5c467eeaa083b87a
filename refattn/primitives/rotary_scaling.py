"""Longer contexts for rotary embeddings: six rules that slow the clock hands down (2306.15595, 2309.00071, 2402.13753).

Each rule maps the plain frequencies f_c = θ^{−2c/r} (c = 0 … r/2 − 1) to scaled ones and names the attention factor
that multiplies cos and sin. `SCALING_RULES` is the table of them; `refattn.primitives.rotary.rope_frequencies` is the
public way in and checks the arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require, require_finite, require_one_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SCALING_RULES", "RopeSetting", "ScalingRule", "check_scaling"]


class RopeSetting(NamedTuple):
    """What a scaling rule may look at.

    Attributes
    ----------
    freqs : ndarray, shape (r/2,)
        The plain frequencies f.
    theta : float
        Their base θ.
    length : float
        The sequence length; 0 if the caller gave none.
    options : mapping
        The ``scaling`` dictionary: ``factor`` is s, ``original_max`` is L₀, the rest belongs to one rule each.
    """

    freqs: np.ndarray
    theta: float
    length: float
    options: Mapping[str, Any]


class ScalingRule(NamedTuple):
    """A rule with the keys that it needs and the keys that it knows, all beside ``type`` and ``factor``."""

    scale: Callable[[RopeSetting], tuple[np.ndarray, float]]
    needed: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


def _linear(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """Interpolate positions: every hand turns s times slower."""
    # eq: R41
    return setting.freqs / setting.options["factor"], 1.0  # (r/2,)


def _larger_base(freqs: np.ndarray, s: float) -> np.ndarray:
    """Frequencies of the base θ' = θ s^{r/(r−2)}: the fastest hand keeps its speed, the slowest loses a factor s."""
    pairs = freqs.shape[0]
    # θ'^{−2c/r} = f_c s^{−2c/(r−2)}; in this form r = 2 (one hand, the fastest) needs no case of its own
    scaled: np.ndarray = freqs * s ** (-np.arange(pairs) / max(pairs - 1, 1))  # (r/2,)
    return scaled


def _ntk(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """Change the base, so that no pair of channels is crowded."""
    # eq: R42
    return _larger_base(setting.freqs, setting.options["factor"]), 1.0


def _dynamic(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """NTK with a factor that grows with the sequence and is 1 up to L₀."""
    s, original = setting.options["factor"], setting.options["original_max"]
    # eq: R42
    length = max(setting.length, original)  # L
    return _larger_base(setting.freqs, s * length / original - (s - 1)), 1.0


def _yarn(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """Keep the hands that turn often within L₀, interpolate those that do not, ramp between the two."""
    f, options = setting.freqs, setting.options
    r, s = 2 * len(f), options["factor"]

    def pair_turning(n: float) -> float:  # cd(n): the (fractional) pair that makes n turns within L₀
        return r * math.log(options["original_max"] / (2 * math.pi * n)) / (2 * math.log(setting.theta))

    # eq: R43
    low, high = pair_turning(options.get("beta_fast", 32.0)), pair_turning(options.get("beta_slow", 1.0))
    if options.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, r - 1)
    high += 0.001 if high == low else 0.0
    ramp = np.clip((np.arange(r // 2) - low) / (high - low), 0.0, 1.0)  # γ (r/2,)
    return ramp * f / s + (1 - ramp) * f, _yarn_attention_factor(options)


def _yarn_attention_factor(options: Mapping[str, Any]) -> float:
    """Return the factor on cos and sin: explicit, or a ratio of two magnitudes, or one magnitude."""
    if "attention_factor" in options:
        return float(options["attention_factor"])

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(options["factor"]) + 1.0 if options["factor"] > 1 else 1.0

    weight, weight_all = options.get("mscale"), options.get("mscale_all_dim")
    # eq: R43
    return magnitude(weight) / magnitude(weight_all) if weight and weight_all else magnitude(1.0)


def _llama3(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """Keep wavelengths that fit often into L₀, interpolate the long ones, blend in between."""
    f, options = setting.freqs, setting.options
    low, high = options["low_freq_factor"], options["high_freq_factor"]
    # eq: R44
    wavelength = 2 * np.pi / f  # λ (r/2,)
    # u ≥ 1 where λ < L₀/hi and u ≤ 0 where λ > L₀/lo: clipped, one formula covers the three cases
    u = np.clip((options["original_max"] / wavelength - low) / (high - low), 0.0, 1.0)  # (r/2,)
    return (1 - u) * f / options["factor"] + u * f, 1.0


def _longrope(setting: RopeSetting) -> tuple[np.ndarray, float]:
    """Divide each frequency by its own searched factor; one list up to L₀, another beyond."""
    options, original = setting.options, setting.options["original_max"]
    # eq: R45
    divisors = options["long_factor" if setting.length > original else "short_factor"]
    factor = options.get("attention_factor")
    if factor is None:
        s = options["factor"]
        factor = math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 else 1.0
    return setting.freqs / np.asarray(divisors, dtype=np.float64), float(factor)  # (r/2,)


SCALING_RULES: Mapping[str, ScalingRule] = {
    "linear": ScalingRule(_linear),
    "ntk": ScalingRule(_ntk),
    "dynamic": ScalingRule(_dynamic, ("original_max",)),
    "yarn": ScalingRule(
        _yarn,
        ("original_max",),
        ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor"),
    ),
    "llama3": ScalingRule(_llama3, ("original_max", "low_freq_factor", "high_freq_factor")),
    "longrope": ScalingRule(_longrope, ("original_max", "short_factor", "long_factor"), ("attention_factor",)),
}

_LISTS, _SWITCHES = ("short_factor", "long_factor"), ("type", "truncate")


def check_scaling(scaling: Mapping[str, Any], pairs: int, theta: float) -> ScalingRule:
    """Return the rule that ``scaling`` names, after refusing what the rule cannot use.

    Parameters
    ----------
    scaling : mapping
        ``type`` and the options of that rule.
    pairs : int
        r/2, the length that LongRoPE's factor lists must have.
    theta : float
        The base; YaRN divides by its logarithm.

    Returns
    -------
    ScalingRule
        The entry of `SCALING_RULES`.

    Raises
    ------
    ValueError
        For an unknown type or key, a missing key, and values out of range.
    """
    name = scaling.get("type")
    require_one_of("scaling['type']", name, SCALING_RULES)
    rule = SCALING_RULES[str(name)]
    for key in ("factor", *rule.needed):
        require(key in scaling, f"scaling['{key}'] is missing; type {name!r} needs it")
    for key, value in scaling.items():
        require_one_of("scaling key", key, ("type", "factor", *rule.needed, *rule.known))
        if key in _LISTS:
            require(np.shape(value) == (pairs,), f"scaling['{key}'] has shape {np.shape(value)}, expected ({pairs},)")
        if key not in _SWITCHES:
            require_finite(f"scaling['{key}']", value)
            require(np.all(np.asarray(value) > 0), f"scaling['{key}']={value!r} must be > 0")
    _check_together(scaling, theta)
    return rule


def _check_together(scaling: Mapping[str, Any], theta: float) -> None:
    """Refuse values that are in range one by one but divide by zero together."""
    if scaling["type"] == "yarn":
        require(theta != 1, f"theta={theta!r}: YaRN divides by its logarithm, so it must not be 1")
    if scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        require(low < high, f"scaling['low_freq_factor']={low!r} must be below scaling['high_freq_factor']={high!r}")
    if scaling["type"] == "longrope":
        original = scaling["original_max"]
        require(original > 1, f"scaling['original_max']={original!r} must be > 1, LongRoPE divides by its logarithm")
