"""Is a head needed? Mask heads while a model answers, the best ranked or random ones, and see what it recalls."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.retrieval_heads_detection import run_retrieval
from refattn.primitives.arguments import require, require_one_of
from refattn.transformer.intervention import Intervention

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from refattn.interpretability.retrieval_heads_tasks import NeedleTask
    from refattn.transformer.weights import Transformer

__all__ = ["HeadMask", "MaskingCurve", "draw_heads", "mask_heads", "masking_experiment"]

KINDS = ("uniform", "zero")
PHASES = ("decode", "all")


class HeadMask(Intervention):
    """Takes heads out of a running model; made by `mask_heads`."""

    def __init__(self, heads: Iterable[tuple[int, int]], kind: str, phase: str) -> None:
        self.kind, self.phase = kind, phase
        self.by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            self.by_layer.setdefault(index(layer), []).append(index(head))

    def begin(self, n_layers: int) -> None:
        """Refuse layers that the model does not have."""
        for layer in self.by_layer:
            require(0 <= layer < n_layers, f"heads: layer {layer} must lie in 0..{n_layers - 1}")

    def on_logits(self, layer: int, logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Make the visible logits (B, H, T, S) of masked heads equal."""
        chosen = self._masked(layer, logits)
        if not chosen or self.kind != "uniform":
            return logits
        flat = logits.copy()
        # eq: rh-uniform
        flat[:, chosen] = np.where(mask, logits.dtype.type(0), logits.dtype.type(-np.inf))
        return flat

    def on_weights(self, layer: int, weights: np.ndarray) -> np.ndarray:
        """Take all attention (B, H, T, S) from masked heads."""
        chosen = self._masked(layer, weights)
        if not chosen or self.kind != "zero":
            return weights
        left = weights.copy()
        left[:, chosen] = 0
        return left

    def _masked(self, layer: int, scores: np.ndarray) -> list[int]:
        """Return the masked heads of a layer, none while a prompt is read if only decoding is masked."""
        heads, n_heads = self.by_layer.get(layer, []), scores.shape[1]
        for head in heads:
            require(0 <= head < n_heads, f"heads: head {head} of layer {layer} must lie in 0..{n_heads - 1}")
        decoding = scores.shape[-1] > scores.shape[-2]  # keys of earlier passes
        return heads if decoding or self.phase == "all" else []


def mask_heads(heads: Iterable[tuple[int, int]], *, kind: str = "uniform", phase: str = "decode") -> HeadMask:
    """Return an intervention that takes heads out.

    Parameters
    ----------
    heads : iterable of (layer, head)
        Which ones.
    kind : {"uniform", "zero"}
        Whether a masked head looks at all visible keys alike, as in the code, or writes nothing.
    phase : {"decode", "all"}
        Whether it is masked only where there are earlier tokens in the cache, or on the prompt too.

    Returns
    -------
    HeadMask
        For the ``interventions`` of `refattn.interpretability.retrieval_heads_detection.run_retrieval` and of
        `refattn.transformer.forward.forward`.

    Raises
    ------
    ValueError
        For another kind or phase; and, when it runs, for a head that the model does not have.

    Notes
    -----
    Paper and code speak of masking; what the code does is to set a head's query, or its scores, to zero: its output
    becomes the mean of all values, not nothing. It does so in the decoding steps only. On a prompt (``phase="all"``)
    the equal weights here stay behind the causal mask [our definition].
    """
    require_one_of("kind", kind, KINDS)
    require_one_of("phase", phase, PHASES)
    return HeadMask(heads, kind, phase)


class MaskingCurve(NamedTuple):
    """Mean recall with K heads masked: the best ranked (len(ks),), and several random choices (len(ks), n_random)."""

    ks: tuple[int, ...]
    top: np.ndarray
    random: np.ndarray


def masking_experiment(
    model: Transformer,
    tasks: Sequence[NeedleTask],
    ranked: Sequence[tuple[int, int]],
    ks: Sequence[int],
    rng: np.random.Generator,
    *,
    n_random: int = 5,
    exclude_top: int = 100,
    kind: str = "uniform",
    phase: str = "decode",
    max_new: int = 50,
    stop_ids: Collection[int] = (),
) -> MaskingCurve:
    """Mask the K best ranked heads, then K random ones, and compare what the model still recalls.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    tasks : sequence of NeedleTask
        At least one.
    ranked : sequence of (layer, head)
        All heads, the highest score first: from `refattn.interpretability.retrieval_heads.rank_heads`.
    ks : sequence of int
        How many heads to mask.
    rng : numpy.random.Generator
        Draws the random heads.
    n_random : int
        How many random choices for each K.
    exclude_top : int
        Random heads are not among so many of the best ranked; at most half of all heads are excluded.
    kind, phase
        As in `mask_heads`.
    max_new, stop_ids
        As in `refattn.interpretability.retrieval_heads_detection.run_retrieval`.

    Returns
    -------
    MaskingCurve

    Raises
    ------
    ValueError
        For no task, and for a K that is negative or more than there are heads to draw from.

    Notes
    -----
    The code means to exclude the best hundred too, but compares tuples with lists, so it excludes none; and it draws
    from the numbers 0 to 31 whatever the model.

    References
    ----------
    2404.15574; nightdessert/Retrieval_Head, ``needle_in_haystack_with_mask.py``.
    """
    require(len(tasks) > 0, "tasks is empty: at least one is needed")
    options: dict[str, Any] = {"max_new": max_new, "stop_ids": stop_ids}

    def recall(heads: Sequence[tuple[int, int]]) -> float:
        masks = [mask_heads(heads, kind=kind, phase=phase)]
        return float(np.mean([run_retrieval(model, task, interventions=masks, **options).recall for task in tasks]))

    top = [recall(ranked[: _count(k, ranked)]) for k in ks]
    draws = [[draw_heads(rng, ranked, k, exclude_top=exclude_top) for _ in range(n_random)] for k in ks]
    random = [[recall(heads) for heads in row] for row in draws]
    return MaskingCurve(tuple(ks), np.array(top), np.array(random).reshape(len(ks), n_random))


def draw_heads(
    rng: np.random.Generator, ranked: Sequence[tuple[int, int]], k: int, *, exclude_top: int = 100
) -> tuple[tuple[int, int], ...]:
    """Draw ``k`` heads that are not among the best ranked ones; the arguments are those of `masking_experiment`."""
    require(exclude_top >= 0, f"exclude_top={exclude_top!r} must not be negative")
    pool = ranked[min(exclude_top, len(ranked) // 2) :]
    return tuple(pool[i] for i in rng.choice(len(pool), size=_count(k, pool), replace=False))


def _count(k: int, heads: Sequence[tuple[int, int]]) -> int:
    require(0 <= index(k) <= len(heads), f"ks holds {k!r}, expected 0..{len(heads)}, the heads to choose from")
    return k
