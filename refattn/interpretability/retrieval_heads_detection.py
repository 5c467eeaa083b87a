"""Find the retrieval heads of a running model: let it look for needles, and watch where its heads look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.retrieval_heads import (
    average_scores,
    copied_positions,
    count_copies,
    select_heads,
    unigram_recall,
)
from refattn.primitives.arguments import require
from refattn.transformer.forward import forward

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from refattn.interpretability.retrieval_heads_tasks import NeedleTask
    from refattn.transformer.forward import Cache
    from refattn.transformer.hooks import Hooks
    from refattn.transformer.intervention import Intervention
    from refattn.transformer.weights import Transformer

__all__ = ["Detection", "RetrievalRun", "detect_retrieval_heads", "greedy_rows", "run_retrieval"]


class RetrievalRun(NamedTuple):
    """One answer: its tokens (S,), each head's score (L, H), the recall, and where each head looked most (S, L, H)."""

    generated: np.ndarray
    score: np.ndarray
    recall: float
    top_keys: np.ndarray


class Detection(NamedTuple):
    """Mean score and activation frequency (L, H) over the runs that found the needle, and the retrieval heads.

    ``heads`` are (layer, head) with a mean score of at least the threshold, the highest first; ``n_used`` is the number
    of runs that count.
    """

    mean: np.ndarray
    activation: np.ndarray
    n_used: int
    heads: tuple[tuple[int, int], ...]


def run_retrieval(
    model: Transformer,
    task: NeedleTask,
    *,
    max_new: int = 50,
    stop_ids: Collection[int] = (),
    topk: int = 1,
    unique: bool = False,
    hooks: Hooks | None = None,
    interventions: Sequence[Intervention] = (),
) -> RetrievalRun:
    """Let a model answer one task, and score its heads.

    Parameters
    ----------
    model : Transformer
        Who answers.
    task : NeedleTask
        A prompt with a needle in it.
    max_new : int
        How many tokens to generate at most.
    stop_ids : collection of int
        The answer ends with the first of these, which still counts as a step.
    topk, unique
        As in `refattn.interpretability.retrieval_heads.retrieval_hits`.
    hooks, interventions
        As in `refattn.transformer.forward.forward`, for the prompt and for every step; such as those of
        `refattn.interpretability.retrieval_heads_masking.mask_heads`.

    Returns
    -------
    RetrievalRun

    Raises
    ------
    ValueError
        For an empty prompt, a span that is empty or outside it, and a negative ``max_new``.

    Notes
    -----
    All of the prompt but its last token is read in one pass; generation begins by feeding the last one. So a head that
    is masked in decoding only has already done its work on the prompt.
    """
    require(len(task.ids) > 0, "task.ids is empty: a prompt needs at least one token")
    require(max_new >= 0, f"max_new={max_new!r} must not be negative")
    layers, heads = model.config.n_layers, model.config.n_heads
    generated: list[int] = []
    copied: list[np.ndarray] = [np.zeros((0, layers, heads), np.int64)]
    top_keys: list[np.ndarray] = [copied[0]]
    steps = greedy_rows(model, task.ids, hooks=hooks, interventions=interventions)
    for _ in range(max_new):
        token, rows = next(steps)  # rows: (L, H, K)
        generated.append(token)
        copied.append(copied_positions(rows[None], [token], task.ids, task.span, topk=topk))
        top_keys.append(np.argmax(rows, axis=-1)[None])
        if token in stop_ids:
            break
    score = count_copies(np.concatenate(copied), task.span, unique=unique)
    recall = unigram_recall(task.needle, generated)
    return RetrievalRun(np.array(generated, dtype=np.int64), score, recall, np.concatenate(top_keys))


def greedy_rows(
    model: Transformer, prompt: Any, *, hooks: Hooks | None = None, interventions: Sequence[Intervention] = ()
) -> Iterator[tuple[int, np.ndarray]]:
    """Generate greedily; yield each token with the attention it was computed from.

    Parameters
    ----------
    model : Transformer
        Who generates.
    prompt : array_like of int, shape (P,)
        At least one token.
    hooks, interventions
        As in `run_retrieval`.

    Yields
    ------
    token : int
        The most likely one, the first on ties.
    rows : ndarray, shape (L, H, P + s)
        At step s = 0, 1, …: the weights of the last query, whose token is the one before.
    """
    prompt = np.asarray(prompt)[None]  # (1, P)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    cache: Cache | None = None
    if prompt.shape[1] > 1:
        cache = forward(model, prompt[:, :-1], hooks=hooks, interventions=interventions).kv_cache
    token = int(prompt[0, -1])
    while True:
        result = forward(model, np.array([[token]]), cache=cache, hooks=hooks, interventions=interventions, names=names)
        cache, token = result.kv_cache, int(np.argmax(result.logits[0, -1]))
        yield token, np.stack([result.activations[name][0, :, -1] for name in names])


def detect_retrieval_heads(
    model: Transformer,
    tasks: Sequence[NeedleTask],
    *,
    threshold: float = 0.1,
    min_recall: float = 0.5,
    max_new: int = 50,
    stop_ids: Collection[int] = (),
    topk: int = 1,
    unique: bool = False,
) -> Detection:
    """Find the retrieval heads of a model.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    tasks : sequence of NeedleTask
        At least one; few suffice for the strongest heads.
    threshold : float
        What a retrieval head's mean score reaches, in (0, 1].
    min_recall : float
        A run counts if the model said more than this share of the needle: of one that did not find it, nothing can be
        learnt about how it is found.
    max_new, stop_ids, topk, unique
        As in `run_retrieval`.

    Returns
    -------
    Detection

    Raises
    ------
    ValueError
        For no task, a threshold outside (0, 1], ``min_recall`` outside [0, 1).

    References
    ----------
    2404.15574; nightdessert/Retrieval_Head, ``retrieval_head_detection.py``.
    """
    require(len(tasks) > 0, "tasks is empty: at least one is needed")
    runs = [run_retrieval(model, task, max_new=max_new, stop_ids=stop_ids, topk=topk, unique=unique) for task in tasks]
    scores, recalls = np.stack([run.score for run in runs]), np.array([run.recall for run in runs])
    mean, activation, n_used = average_scores(scores, recalls, min_recall=min_recall)
    return Detection(mean, activation, int(n_used), select_heads(mean, threshold=threshold))
