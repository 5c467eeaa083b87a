"""What PAINT's runs do with the output: guidance by a run without the image, and CHAIR, the count of hallucinations.

Both are inherited: the guidance from PAI, the scores from the literature on captions. Equation labels (paint-8) and
(paint-9) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_finite, require_shape
from refattn.primitives.softmax import shifted_exponentials

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

__all__ = ["ChairScores", "chair", "guided_logits"]


class ChairScores(NamedTuple):
    """How much a set of captions hallucinates.

    Attributes
    ----------
    chair_s : float
        The part of the captions that mention an absent object.
    chair_i : float
        The part of all mentions that are of absent objects.
    f1 : float
        F1 of mentioned against present objects, averaged over captions.
    """

    chair_s: float
    chair_i: float
    f1: float


def guided_logits(logits: Any, uncond_logits: Any, gamma: float = 1.1, cutoff: float = 0.1) -> np.ndarray:
    """Push next-token scores away from what the model would say without the image.

    Parameters
    ----------
    logits : array_like, shape (..., V)
        Next-token logits with the image.
    uncond_logits : array_like, shape (..., V)
        Those of a run on the text alone, without any boost.
    gamma : float
        How far: 0 is the text-only run, 1 the run with the image, beyond it is extrapolated. Finite.
    cutoff : float
        Tokens less probable than this part of the most probable one are pruned; in (0, 1].

    Returns
    -------
    ndarray, shape (..., V)
        Log-probabilities, moved; −∞ where pruned. With γ = 1, log-softmax of ``logits``, nothing pruned.

    Raises
    ------
    ValueError
        If the shapes differ, there is no token, a row has no finite logit, γ is not finite, or ``cutoff`` is outside
        (0, 1].

    References
    ----------
    PAI: LALBJ/PAI (ECCV 2024); hasanar1f/llava-hallunication-fix, ``modPAI/CFG.py``.
    """
    logits, uncond = as_float("logits", logits), as_float("uncond_logits", uncond_logits)
    require(logits.ndim >= 1 and logits.shape[-1] >= 1, f"logits has shape {logits.shape}, expected (..., V), V >= 1")
    require_shape("uncond_logits", uncond, logits.shape)
    require_finite("gamma", gamma)
    require(0.0 < cutoff <= 1.0, f"cutoff={cutoff!r} must lie in (0, 1]")
    s = _log_softmax("logits", logits)  # (..., V)
    if gamma == 1.0:
        return s
    u = _log_softmax("uncond_logits", uncond.astype(logits.dtype, copy=False))  # (..., V)
    kept = s >= np.log(cutoff) + np.max(s, axis=-1, keepdims=True)  # (..., V)
    ahead = np.where(kept, s, 0) - np.where(kept, u, 0)  # (..., V); a pruned −∞ − (−∞) would be NaN
    # eq: paint-8
    # γ (s − u) + u, written so that u = s gives s exactly, and a u of −∞ gives no NaN
    return np.asanyarray(np.where(kept, s + (gamma - 1.0) * ahead, s.dtype.type(-np.inf)))


def chair(mentions: Sequence[Iterable[Hashable]], present: Sequence[Iterable[Hashable]]) -> ChairScores:
    """Count what captions mention that is not there.

    Parameters
    ----------
    mentions : sequence of iterable
        The objects that each caption mentions, repetitions included.
    present : sequence of iterable
        The objects that are in each image.

    Returns
    -------
    ChairScores

    Raises
    ------
    ValueError
        If there is no caption, or not one set of objects for each.

    Notes
    -----
    CHAIR_I counts repetitions and is 0 if nothing is mentioned at all. F1 compares sets. A caption without mentions of
    an image without objects has an F1 of 1 *[our definition]*.
    """
    require(len(mentions) >= 1, "mentions is empty, expected at least one caption")
    require(len(mentions) == len(present), f"present has {len(present)} entries for {len(mentions)} captions")
    said, there = [list(m) for m in mentions], [set(p) for p in present]
    absent = [sum(x not in p for x in m) for m, p in zip(said, there, strict=True)]
    # eq: paint-9
    chair_s = sum(a > 0 for a in absent) / len(said)
    chair_i = sum(absent) / max(sum(map(len, said)), 1)
    f1 = [_f1(set(m), p) for m, p in zip(said, there, strict=True)]
    return ChairScores(chair_s, chair_i, sum(f1) / len(f1))


def _f1(said: set[Hashable], there: set[Hashable]) -> float:
    total = len(said) + len(there)
    return 2 * len(said & there) / total if total else 1.0


@np.errstate(divide="ignore", under="ignore")
def _log_softmax(name: str, x: np.ndarray) -> np.ndarray:
    _, l, m = shifted_exponentials(x)
    require(np.all(l > 0), f"{name} needs a finite logit in every row")
    return np.asanyarray((x - m) - np.log(l))  # x less its maximum first: nothing is lost when both are large
