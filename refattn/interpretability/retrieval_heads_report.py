"""A report on any loaded model: which of its heads copy a needle out of a haystack, both of random tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.interpretability.report import Report
from refattn.interpretability.retrieval_heads import rank_heads
from refattn.interpretability.retrieval_heads_detection import detect_retrieval_heads
from refattn.interpretability.retrieval_heads_tasks import draw_vocabulary, needle_tasks
from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from refattn.interpretability.retrieval_heads_detection import Detection
    from refattn.transformer.weights import Transformer

__all__ = ["report"]

LENGTHS = (64, 128, 256)


def report(
    model: Transformer,
    *,
    lengths: Sequence[int] | None = None,
    depths: Sequence[int] = (0, 33, 67, 100),
    m: int = 6,
    bos: int = 0,
    threshold: float = 0.1,
    min_recall: float = 0.5,
    topk: int = 1,
    seed: int = 0,
    top: int | None = 20,
) -> Report:
    """Score the heads of a model on needle tasks made of its own token ids.

    Parameters
    ----------
    model : Transformer
        Any; its vocabulary must have at least 12 tokens.
    lengths, depths : sequence of int
        One task for each pair: tokens in a prompt, and place of the needle in percent. Without lengths 64, 128 and 256,
        as far as the model's context goes.
    m : int
        Words of the needle, at most 16, and 6 in a small vocabulary.
    bos : int
        The token that opens a text; where models park attention, it matters.
    threshold, min_recall, topk
        As in `refattn.interpretability.retrieval_heads_detection.detect_retrieval_heads`.
    seed : int
        Which tokens are words, and which words are drawn.
    top : int, optional
        How many heads to list; all if None.

    Returns
    -------
    Report
        Rows with ``layer``, ``head``, ``score``, ``activation``, ``retrieval`` (whether the score reaches the
        threshold) and ``solved`` ("8 of 12", runs that count), the highest score first. Where no run counts all scores
        are 0: that model does not look needles up, or not in a language of random tokens; try ``min_recall=0``.

    Raises
    ------
    ValueError
        For a vocabulary below 12, ``bos`` outside it, no length or depth, a task that does not fit, and options out of
        range.

    Notes
    -----
    The published detection asks questions in English about three books. Random tokens need no tokenizer, and leave only
    the copying: the key is repeated at the end, and the words after its first occurrence are the answer [our
    definition].
    """
    longest = model.config.n_ctx - m - 1  # the answer and its period come after the prompt
    lengths = sorted({min(length, longest) for length in LENGTHS}) if lengths is None else lengths
    require(len(lengths) > 0 and len(depths) > 0, f"{lengths=} and {depths=} must not be empty")
    require(top is None or top >= 1, f"top={top!r} must be at least 1")
    rng = np.random.default_rng(seed)
    vocabulary = draw_vocabulary(rng, model.config.vocab_size, bos=bos)
    tasks = needle_tasks(rng, lengths, depths, vocabulary, m=m)
    found = detect_retrieval_heads(
        model,
        tasks,
        threshold=threshold,
        min_recall=min_recall,
        max_new=m + 1,
        stop_ids=(vocabulary.period,),
        topk=topk,
    )
    ranked = rank_heads(found.mean)[:top]
    solved = f"{found.n_used} of {len(tasks)}"
    rows = [
        {
            "layer": layer,
            "head": head,
            "score": float(found.mean[layer, head]),
            "activation": float(found.activation[layer, head]),
            "retrieval": (layer, head) in found.heads,
            "solved": solved,
        }
        for layer, head in ranked
    ]
    return Report(rows, lambda figure: _draw(figure, found, ranked, threshold, solved))


def _draw(figure: Figure, found: Detection, ranked: Sequence[tuple[int, int]], threshold: float, solved: str) -> None:
    """Draw the map of all heads, and the scores of the listed ones."""
    grey, teal, sand = "#7f8fa6", "#3a9188", "#c8963e"
    left, right = figure.subplots(1, 2)
    shown = left.imshow(found.mean, cmap="viridis", vmin=0, vmax=max(1.0, float(found.mean.max())), aspect="auto")
    left.set(xlabel="head", ylabel="layer", title=f"retrieval score ({solved} needles found)")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(shown, ax=left)
    place = np.arange(len(ranked))
    right.barh(place, [found.mean[head] for head in ranked], color=teal, label="score")
    right.plot([found.activation[head] for head in ranked], place, "o", ms=4, color=sand, label="activation")
    right.axvline(threshold, color=grey, lw=1, ls=":")
    right.set_yticks(place, [f"{layer}.{head}" for layer, head in ranked], fontsize=8)
    right.set(xlabel="score, and share of runs with a score above 0", title="best ranked heads (layer.head)")
    right.invert_yaxis()
    right.legend(frameon=False, loc="lower right")
