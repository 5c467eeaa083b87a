"""Laws of rotation: angles add, norms stay, scores see differences of positions only.

Equation source: the attention sheet, R38, R39 and R48.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Claim, Law
from refattn.primitives.rotary import rope_frequencies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Case, Probe

__all__ = ["ROTARY_LAWS"]


def _width(case: Case) -> int:
    d: int = case.arrays["x"].shape[-1]
    return case.options.get("rotary_dim") or d


def _factor(case: Case) -> float:
    """Return the attention factor."""
    names = ("theta", "scaling", "length")
    given = {name: case.options[name] for name in names if name in case.options}
    return rope_frequencies(_width(case), **given)[1]


def _gram(y: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all products of rows (B, H, S, S) and the error of each row of them."""
    size = np.sqrt(np.sum(y * y, axis=-1))
    wrong = (size + slack)[..., :, None] * slack[..., None, :] + slack[..., :, None] * size[..., None, :]
    return y @ y.swapaxes(-1, -2), np.sqrt(np.sum(wrong**2, axis=-1))


def _relative(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    moved = case.having(positions=case.arrays["positions"] + int(rng.integers(1, 40)))
    left, right = (_gram(probe(c)["out"], probe.slack(c)["out"]) for c in (case, moved))
    yield Claim(left[0], right[0], left[1] + right[1])


def _composed(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    step = rng.integers(0, 30, case.arrays["positions"].shape)
    again = case.having(x=probe(case)["out"], positions=step)
    at_once = case.having(positions=case.arrays["positions"] + step)
    slack = sum(probe.slack(c)["out"] for c in (case, again, at_once))
    yield Claim(probe(again)["out"], probe(at_once)["out"], slack)


def _still_at_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    still = case.having(positions=np.zeros_like(case.arrays["positions"]))
    size = np.where(np.arange(case.arrays["x"].shape[-1]) < _width(case), _factor(case), 1.0)
    yield Claim(probe(still)["out"], case.arrays["x"] * size, probe.slack(still)["out"])


def _pairings_agree(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    r, d = _width(case), case.arrays["x"].shape[-1]
    order = np.concatenate([np.arange(r).reshape(2, r // 2).T.ravel(), np.arange(r, d)])  # 0, r/2, 1, r/2 + 1, …
    half = case.having(interleaved=False)
    neighbours = case.having(x=case.arrays["x"][..., order], interleaved=True)
    slack = probe.slack(half)["out"] + probe.slack(neighbours)["out"]
    yield Claim(probe(half)["out"][..., order], probe(neighbours)["out"], slack)


def _norms_kept(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    r = _width(case)
    norms = [np.sqrt(np.sum(x[..., :r] ** 2, axis=-1, keepdims=True)) for x in (probe(case)["out"], case.arrays["x"])]
    yield Claim(norms[0], np.broadcast_to(_factor(case) * norms[1], norms[0].shape), probe.slack(case)["out"])


def _rest_passes(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    r = _width(case)
    yield Claim(probe(case)["out"][..., r:], case.arrays["x"][..., r:], 0.0)


def _turned_back(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    there = case.having(inverse=False)
    back = there.having(x=probe(there)["out"], inverse=True)
    factor = _factor(case)
    size = np.where(np.arange(case.arrays["x"].shape[-1]) < _width(case), factor**2, 1.0)
    slack = max(factor, 1.0) * probe.slack(there)["out"] + probe.slack(back)["out"]
    yield Claim(probe(back)["out"], case.arrays["x"] * size, slack)


def _no_factor(case: Case) -> bool:
    return _factor(case) == 1.0


ROTARY_LAWS = (
    Law(
        "relative",
        "Products of rotated rows depend on the difference of their positions only.",
        _relative,
        lambda case: case.arrays["x"].shape[-2] > 1,
        witness="r_sin_sign_one_half",
    ),
    Law(
        "composed",
        "Turning by one position and then by another is turning by their sum.",
        _composed,
        _no_factor,
        witness="r_pos_plus1",
    ),
    Law(
        "still_at_zero",
        "Position 0 turns nothing.",
        _still_at_zero,
        witness="r_swapped_cos_sin",
    ),
    Law(
        "pairings_agree",
        "Half-split and interleaved rotation are the same under a permutation of channels.",
        _pairings_agree,
        witness="r_interleaved_for_half",
    ),
    Law(
        "norms_kept",
        "A rotation keeps norms, times the attention factor.",
        _norms_kept,
        witness="r_no_attention_factor",
    ),
    Law(
        "rest_passes",
        "Channels past the rotary width pass bit for bit.",
        _rest_passes,
        lambda case: _width(case) < case.arrays["x"].shape[-1],
        witness="r_all_dims",
    ),
    Law(
        "turned_back",
        "The inverse undoes the rotation, times the square of the attention factor.",
        _turned_back,
        witness="r_attention_factor_once",
    ),
)
