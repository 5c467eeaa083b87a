"""Mistakes of rotary embeddings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug
from refattn.conformance.precision import round_to
from refattn.contracts.attention.bugs.plant import always, both
from refattn.contracts.attention.rotary_pipeline import RotarySteps, run_rotary
from refattn.primitives.rotary import rope_frequencies

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.contracts.attention.rotary_pipeline import RotaryCall

__all__ = ["ROTARY"]

Frequencies = tuple[np.ndarray, float]


def _planted(
    name: str,
    description: str,
    remedy: str,
    applies: Callable[[Case], bool] = always,
    **replaced: Callable[..., Any],
) -> Bug:
    wrong = partial(run_rotary, RotarySteps(**replaced))
    return Bug(name, description, wrong, applies, source=next(iter(replaced.values())), remedy=remedy)


def r_sign(c: RotaryCall, freqs: np.ndarray) -> Any:
    return -c.positions[..., None] * freqs


def r_interleaved_for_half(c: RotaryCall, r: int) -> tuple[Any, Any]:
    halves, neighbours = (np.arange(r // 2), np.arange(r // 2, r)), (np.arange(0, r, 2), np.arange(1, r, 2))
    return halves if c.interleaved else neighbours


def r_pos_plus1(c: RotaryCall, freqs: np.ndarray) -> Any:
    return (c.positions[..., None] + 1) * freqs


def r_offset_ignored(c: RotaryCall, freqs: np.ndarray) -> Any:
    return np.arange(c.x.shape[-2])[:, None] * freqs


def r_theta(c: RotaryCall, r: int) -> Frequencies:
    return rope_frequencies(r, theta=10000.0, scaling=c.scaling, length=c.length)


def r_exponent_c_over_d(c: RotaryCall, r: int) -> Frequencies:
    return c.theta ** (-np.arange(r // 2) / r), 1.0


def r_exponent_dm2(c: RotaryCall, r: int) -> Frequencies:
    return c.theta ** (-2.0 * np.arange(r // 2) / (r - 2)), 1.0


def r_all_dims(c: RotaryCall) -> Any:
    return c.x.shape[-1]


def r_partial_freqs_from_d(c: RotaryCall, r: int) -> Frequencies:
    return c.theta ** (-2.0 * np.arange(r // 2) / c.x.shape[-1]), 1.0


def r_partial_last(c: RotaryCall, r: int) -> tuple[Any, Any]:
    shift, pairs = c.x.shape[-1] - r, np.arange(r // 2)
    return (shift + 2 * pairs, shift + 2 * pairs + 1) if c.interleaved else (shift + pairs, shift + r // 2 + pairs)


def r_sin_sign_one_half(a: np.ndarray, b: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[Any, Any]:
    return a * cos + b * sin, a * sin + b * cos


def r_swapped_cos_sin(angle: np.ndarray, factor: float) -> tuple[Any, Any]:
    return factor * np.sin(angle), factor * np.cos(angle)


def r_no_attention_factor(angle: np.ndarray, _factor: float) -> tuple[Any, Any]:
    return np.cos(angle), np.sin(angle)


def r_attention_factor_once(angle: np.ndarray, factor: float) -> tuple[Any, Any]:
    return factor * np.cos(angle), np.sin(angle)


def r_scaling_ignored(c: RotaryCall, r: int) -> Frequencies:
    return rope_frequencies(r, theta=c.theta)


def r_linear_on_theta(c: RotaryCall, r: int) -> Frequencies:
    return rope_frequencies(r, theta=c.theta * dict(c.scaling or {})["factor"])


def r_bf16_angles(c: RotaryCall, freqs: np.ndarray) -> Any:
    return round_to(c.positions[..., None] * freqs, "bfloat16")


def _width(case: Case) -> int:
    d: int = case.arrays["x"].shape[-1]
    return case.options.get("rotary_dim") or d


def _partial(case: Case) -> bool:
    return bool(_width(case) < case.arrays["x"].shape[-1])


def _wide(case: Case) -> bool:
    return _width(case) > 2


def _even(case: Case) -> bool:
    return bool(case.arrays["x"].shape[-1] % 2 == 0)


def _plain(case: Case) -> bool:
    return case.options.get("scaling") is None


def _scaled(*types: str) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        scaling = case.options.get("scaling")
        return scaling is not None and (not types or scaling["type"] in types)

    return applies


def _other_base(case: Case) -> bool:
    return bool(case.options.get("theta", 10000.0) != 10000.0)


def _shifted(case: Case) -> bool:
    positions = case.arrays["positions"]
    return bool(np.any(positions != np.arange(positions.shape[-1])))


_WITH_FACTOR = _scaled("yarn", "longrope")

ROTARY = (
    _planted(
        "r_sign", "rotated by minus the angle", "Turn from a towards b: (a cos − b sin, a sin + b cos).", angles=r_sign
    ),
    _planted(
        "r_interleaved_for_half",
        "the other pairing of channels",
        "Pair c with c + r/2 (half-split) or 2c with 2c + 1 (interleaved), as the weights were trained.",
        _wide,
        paired=r_interleaved_for_half,
    ),
    _planted("r_pos_plus1", "positions counted from 1", "The first token has position 0.", angles=r_pos_plus1),
    _planted(
        "r_offset_ignored",
        "row numbers used for positions",
        "Use the positions that are given: a cache adds its length, packed sequences restart.",
        _shifted,
        angles=r_offset_ignored,
    ),
    _planted("r_theta", "base 10,000 whatever is asked", "Use the model's base.", _other_base, frequencies=r_theta),
    _planted(
        "r_exponent_c_over_d",
        "frequencies theta^(-c/r)",
        "f_c = θ^(−2c/r).",
        both(_plain, _wide),
        frequencies=r_exponent_c_over_d,
    ),
    _planted(
        "r_exponent_dm2",
        "frequencies theta^(-2c/(r-2))",
        "f_c = θ^(−2c/r).",
        both(_plain, _wide),
        frequencies=r_exponent_dm2,
    ),
    _planted(
        "r_all_dims",
        "partial width ignored: all channels rotate",
        "Only the first r channels rotate.",
        both(_partial, _even),
        width=r_all_dims,
    ),
    _planted(
        "r_partial_freqs_from_d",
        "frequencies of a partial rotation from d instead of r",
        "f_c = θ^(−2c/r), with r the rotary width.",
        both(_partial, _plain, _wide),
        frequencies=r_partial_freqs_from_d,
    ),
    _planted(
        "r_partial_last",
        "the last r channels rotate instead of the first",
        "The first r channels rotate, the rest pass.",
        _partial,
        paired=r_partial_last,
    ),
    _planted(
        "r_sin_sign_one_half",
        "sign of the sine lost in one half",
        "(a cos − b sin, a sin + b cos).",
        turn=r_sin_sign_one_half,
    ),
    _planted(
        "r_swapped_cos_sin", "cos and sin swapped", "At position 0, cos = 1 and sin = 0.", tables=r_swapped_cos_sin
    ),
    _planted(
        "r_no_attention_factor",
        "attention factor left out",
        "YaRN and LongRoPE multiply cos and sin by it.",
        _WITH_FACTOR,
        tables=r_no_attention_factor,
    ),
    _planted(
        "r_attention_factor_once",
        "attention factor on the cosine only",
        "It multiplies cos and sin.",
        _WITH_FACTOR,
        tables=r_attention_factor_once,
    ),
    _planted(
        "r_scaling_ignored",
        "scaling rule ignored",
        "Scale the frequencies by the model's rule.",
        _scaled(),
        frequencies=r_scaling_ignored,
    ),
    _planted(
        "r_linear_on_theta",
        "linear scaling multiplies the base instead of dividing the frequencies",
        "Linear scaling is f / s for every pair.",
        _scaled("linear"),
        frequencies=r_linear_on_theta,
    ),
    _planted(
        "r_bf16_angles",
        "angles rounded to bfloat16",
        "Compute angles in float32 or better: at position 1000 a bfloat16 angle is off by 2.",
        angles=r_bf16_angles,
    ),
)
