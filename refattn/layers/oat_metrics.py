"""How alike two scanpaths are, object by object: sequence score, edit distance, behaviour and its delta, SIM.

From the Object-level Attention Transformer (2407.13335); equation source ``evaluation/`` of the released code, commit
0c48c3e. A scanpath is a sequence of object indices. `refattn.layers.oat_multimatch` compares paths as lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.primitives.arguments import as_float, as_integer, require, require_shape

__all__ = ["behaviour", "behaviour_delta", "edit_distance", "scanpath_sim", "sequence_score"]

PROBABILITY_SLACK = 1e-6  # what single precision may leave of a sum of 1


def sequence_score(a: Any, b: Any, *, gap: float = 0.0) -> float:
    """Align two scanpaths as well as possible and count what agrees (SS): Needleman and Wunsch over the longer length.

    Parameters
    ----------
    a, b : array_like of int, shape (L,)
        Scanpaths, not empty.
    gap : float
        Score of an object that is left out of the alignment, ≤ 0; a match scores 1, a mismatch 0.

    Returns
    -------
    float
        With ``gap=0`` the longest common subsequence over the longer length, in [0, 1].

    Raises
    ------
    ValueError
        If a scanpath is empty or ``gap`` is positive.

    References
    ----------
    ``saliency_metric.py`` lines 237-254.
    """
    a, b = _path("a", a), _path("b", b)
    require(gap <= 0, f"gap={gap!r} must be <= 0")
    score = np.zeros((len(a) + 1, len(b) + 1))
    score[:, 0], score[0, :] = gap * np.arange(len(a) + 1), gap * np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            # eq: oat-18
            aligned = score[i - 1, j - 1] + (a[i - 1] == b[j - 1])
            score[i, j] = max(aligned, score[i - 1, j] + gap, score[i, j - 1] + gap)
    return float(score[-1, -1] / max(len(a), len(b)))


def edit_distance(a: Any, b: Any, *, substitution_cost: float = 1) -> float:
    """Count the insertions, deletions and substitutions that turn one scanpath into the other (Levenshtein).

    Parameters
    ----------
    a, b : array_like of int, shape (L,)
        Scanpaths, not empty.
    substitution_cost : float
        ≥ 0; the other two cost 1. With 2, a substitution is a deletion and an insertion.

    Returns
    -------
    float
        Not divided by a length.

    Raises
    ------
    ValueError
        If a scanpath is empty or the cost negative.

    References
    ----------
    ``evaluation_full.py`` lines 19-66.
    """
    a, b = _path("a", a), _path("b", b)
    require(substitution_cost >= 0, f"substitution_cost={substitution_cost!r} must be >= 0")
    cost = np.zeros((len(a) + 1, len(b) + 1))
    cost[:, 0], cost[0, :] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            # eq: oat-19
            replaced = cost[i - 1, j - 1] + (0 if a[i - 1] == b[j - 1] else substitution_cost)
            cost[i, j] = min(replaced, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    return float(cost[-1, -1])


def behaviour(path: Any, target: int) -> np.ndarray:
    """Describe a search in five numbers: found, length, and the parts of search, refixation and revisit.

    Parameters
    ----------
    path : array_like of int, shape (L,)
        Scanpath, not empty.
    target : int
        What was searched for.

    Returns
    -------
    ndarray, shape (5,)
        1 if the last fixation is on the target, else 0; L; then three fractions that sum to 1. A fixation on the object
        that was fixated just before is a refixation, on one that was left and is come back to a revisit, on a new one
        search.

    Raises
    ------
    ValueError
        If the scanpath is empty or the target is negative.

    References
    ----------
    ``evaluation_model.py`` lines 15-41.
    """
    path = _path("path", path)
    require(target >= 0, f"target={target!r} must be an object's index, >= 0")
    search = refixation = revisit = 0
    for t, fixated in enumerate(path):
        # eq: oat-20
        if t and fixated == path[t - 1]:
            refixation += 1
        elif fixated in path[:t]:
            revisit += 1
        else:
            search += 1
    n = len(path)
    return np.array([float(path[-1] == target), n, search / n, refixation / n, revisit / n])


@np.errstate(divide="ignore", invalid="ignore")
def behaviour_delta(model_mean: Any, human_mean: Any) -> float:
    """Return how far the model's average behaviour is from people's, relative to people's: lower is better.

    Parameters
    ----------
    model_mean, human_mean : array_like, shape (5,)
        `behaviour`, averaged over trials, and for the model over samples as well.

    Returns
    -------
    float
        The mean of five relative differences. Where both are 0 they agree; where only people's is 0 the result is
        infinite.

    Raises
    ------
    ValueError
        If either does not have five numbers.

    References
    ----------
    ``evaluation_full.py`` lines 243-247. The released validation code takes a mean that 0/0 makes NaN.
    """
    model, human = as_float("model_mean", model_mean), as_float("human_mean", human_mean)
    require_shape("model_mean", model, (5,))
    require_shape("human_mean", human, (5,))
    # eq: oat-21
    return float(np.nansum(np.abs(model - human) / human) / 5)


def scanpath_sim(probs: Any, path: Any) -> float:
    """Return the overlap of predicted and actual fixation maps (SIM): the mean probability of what was fixated.

    Parameters
    ----------
    probs : array_like, shape (L, n)
        Before each fixation, the probability of each object.
    path : array_like of int, shape (L,)
        What was fixated, not empty.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the scanpath is empty, shapes disagree, an index is not an object, or probabilities are negative or do not
        sum to 1.

    References
    ----------
    ``saliency_metric.py`` lines 8-20.
    """
    probs, path = as_float("probs", probs, ndim=2), _path("path", path)
    require(len(probs) == len(path), f"probs has {len(probs)} rows, expected one for each of {len(path)} fixations")
    n = probs.shape[1]
    require(path.min() >= 0 and path.max() < n, f"path={path.tolist()!r} must hold objects, 0 to {n - 1}")
    sums = probs.sum(axis=1)
    is_distribution = np.all(probs >= 0) and np.all(np.abs(sums - 1) <= PROBABILITY_SLACK)
    require(is_distribution, f"probs must be >= 0 and sum to 1, found sums {sums.tolist()!r}")
    actual = np.arange(n) == path[:, None]  # (L, n)
    # eq: oat-22
    return float(np.mean(np.sum(np.minimum(probs, actual), axis=1)))


def _path(name: str, path: Any) -> np.ndarray:
    indices = as_integer(name, path, ndim=1)
    require(indices.size > 0, f"{name}: scanpath must not be empty")
    return indices
