"""How errors grow along a chain of memories, and what width, heads and clean-up do about it.

Layer l stores n pairs (x_i of layer l − 1 → x_i of layer l). H heads with independent keys of width d are averaged. The
model is ours: the paper's abstract names the trade-off and not the formulas.
"""

from __future__ import annotations

import numpy as np

from refattn.primitives.arguments import require
from theory.pavlovian.capacity import decoding_accuracy
from theory.pavlovian.keys import mean_row, uniform_on_sphere
from theory.table import ResultTable

__all__ = [
    "any_of_failure",
    "chain_reliability",
    "depth_error",
    "depth_error_theory",
    "head_failure",
    "majority_failure",
    "redundancy",
    "required_width",
]


def depth_error(
    n: int,
    dim: int,
    heads: int,
    layers: int,
    trials: int,
    *,
    cleanup: bool = False,
    rng: np.random.Generator,
) -> ResultTable:
    """Measure the error at the end of a chain, beside its prediction.

    Parameters
    ----------
    n, dim, heads, layers : int
        Pairs of each layer, width d of a head's keys, H and L.
    trials : int
        Independent chains.
    cleanup : bool
        After each layer every head snaps to its nearest stored pattern and the heads vote; H is then odd.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ResultTable
        ``rel_error2``, measured and exact. With ``cleanup``: ``head_failure``, measured and predicted for large d, and
        ``chain_failure``, measured and predicted from the measured ``head_failure``.

    Raises
    ------
    ValueError
        If a size is below 1, or heads that vote are even in number.
    """
    require(
        min(n, dim, heads, layers, trials) >= 1,
        f"n={n!r}, dim={dim!r}, heads={heads!r}, layers={layers!r}, trials={trials!r} must be >= 1",
    )
    sizes = {"n": n, "dim": dim, "heads": heads, "layers": layers}
    if not cleanup:
        table = ResultTable([mean_row("rel_error2", _chain_errors(rng, trials, **sizes), **sizes)])
        table.add("exact", "rel_error2", depth_error_theory(n, dim, heads, layers), **sizes)
        return table
    require(heads % 2 == 1, f"heads={heads!r} must be odd to vote")
    failed = _head_failures(rng, trials, **sizes)  # (trials, L, H)
    outvoted = np.sum(failed, axis=-1) > heads / 2  # (trials, L)
    table = ResultTable([mean_row("head_failure", failed.mean(axis=(1, 2)), **sizes)])
    table.add("theory", "head_failure", head_failure(n, dim), **sizes)
    table.extend([mean_row("chain_failure", outvoted.any(axis=-1).astype(float), **sizes)])
    majority = majority_failure(float(failed.mean()), heads)
    table.add("theory", "chain_failure", 1 - chain_reliability(majority, layers), **sizes)
    return table


def depth_error_theory(n: int, dim: int, heads: int, layers: int) -> float:
    """Return the exact expected error (1 + (n − 1)/(d H))^L − 1 [derived].

    Starting from pattern j the output is Σ_i a_i x_i with a = G_L ⋯ G_1 e_j; the averaged Gram matrices have E G = I
    and E G² = (1 + (n − 1)/(d H)) I.
    """
    return float((1 + (n - 1) / (dim * heads)) ** layers - 1)


def required_width(n: int, layers: int, epsilon: float, heads: int = 1) -> float:
    """Return the width d of a head that keeps the squared error at ε² over L layers [derived].

    Parameters
    ----------
    n, layers, heads : int
        Pairs of each layer, L and H.
    epsilon : float
        ε > 0.

    Returns
    -------
    float
        (n − 1) / (H ((1 + ε²)^{1/L} − 1)), about (n − 1) L / (H ln(1 + ε²)): linear in depth, and heads count as width.

    Raises
    ------
    ValueError
        If a size is below 1 or ε is not positive.
    """
    require(min(n, layers, heads) >= 1, f"n={n!r}, layers={layers!r}, heads={heads!r} must be >= 1")
    require(epsilon > 0, f"epsilon={epsilon!r} must be > 0")
    return float((n - 1) / (heads * np.expm1(np.log1p(epsilon**2) / layers)))


def head_failure(n: int, dim: int) -> float:
    """Return how often a head with values as wide as its keys snaps to a wrong pattern [derived, large d]."""
    return 1 - decoding_accuracy(n, dim, dim)


def chain_reliability(failure: float, layers: int) -> float:
    """Return (1 − p)^L, the probability that L layers in a row are right."""
    return float((1 - failure) ** layers)


def majority_failure(failure: float, heads: int) -> float:
    """Return the probability that more than half of H heads fail, each with probability p on its own."""
    from scipy.stats import binom

    return float(binom.sf(heads // 2, heads, failure))


def any_of_failure(failure: float, heads: int) -> float:
    """Return p^H, the probability that all heads fail: what counts if one right head is enough."""
    return float(failure**heads)


def redundancy(failure: float, layers: int, delta: float) -> float:
    """Return how many heads keep a chain's failure below δ if one right head in each layer is enough [derived].

    Parameters
    ----------
    failure : float
        p of one head, in (0, 1).
    layers : int
        L.
    delta : float
        δ in (0, 1).

    Returns
    -------
    float
        ln(L/δ) / ln(1/p): logarithmic in depth.

    Raises
    ------
    ValueError
        If a probability is not in (0, 1) or L is below 1.
    """
    require(layers >= 1, f"layers={layers!r} must be >= 1")
    require(0 < failure < 1 and 0 < delta < 1, f"failure={failure!r} and delta={delta!r} must be in (0, 1)")
    return float(np.log(layers / delta) / np.log(1 / failure))


def _chain_errors(rng: np.random.Generator, trials: int, *, n: int, dim: int, heads: int, layers: int) -> np.ndarray:
    """Return ‖A − I‖² / n of each chain: the error averaged over the pattern and over the last layer's values."""
    A = np.broadcast_to(np.eye(n), (trials, n, n))
    for _ in range(layers):
        keys = uniform_on_sphere(rng, (trials, heads, n, dim))
        A = np.mean(keys @ np.swapaxes(keys, -1, -2), axis=1) @ A  # (trials, n, n)
    return np.asarray(np.sum((A - np.eye(n)) ** 2, axis=(-1, -2)) / n)


def _head_failures(rng: np.random.Generator, trials: int, *, n: int, dim: int, heads: int, layers: int) -> np.ndarray:
    """Return which heads snap to a wrong pattern, (trials, L, H), when asked for pattern 0."""
    failed = np.empty((trials, layers, heads), dtype=bool)
    for layer in range(layers):
        keys, values = uniform_on_sphere(rng, (2, trials, heads, n, dim))
        cues = keys[..., :1, :]
        answer = cues @ np.swapaxes(keys, -1, -2) @ values  # (trials, H, 1, d)
        scores = (answer @ np.swapaxes(values, -1, -2))[..., 0, :]  # (trials, H, n)
        failed[:, layer] = scores.argmax(axis=-1) != 0
    return failed
