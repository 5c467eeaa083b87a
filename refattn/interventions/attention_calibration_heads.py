"""Which heads to calibrate: the layers that come into question, the search, and the hook that does it in a model.

Not every sink is harmful. So each head is calibrated alone on some labelled data, and those that gain are kept
(2406.15765). The calibration itself is `refattn.interventions.attention_calibration`.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

import numpy as np

from refattn.interventions.attention_calibration import (
    PAPER_ALPHA,
    calibrate_row,
    calibrated_sinks,
    detect_sinks,
)
from refattn.primitives.arguments import require
from refattn.transformer.intervention import Intervention

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

__all__ = ["ACTHook", "calibrated_layers", "candidate_heads", "select_heads"]


def calibrated_layers(n_layers: int, *, skip_first: int = 2, skip_last: int = 1) -> range:
    """Return the layers in which heads may be calibrated: all but the first two and the last.

    Parameters
    ----------
    n_layers : int
        The layers L of the model, counted from 0.
    skip_first, skip_last : int
        How many are left alone at either end; together they may be more than there are.

    Returns
    -------
    range

    Raises
    ------
    ValueError
        If a number is negative.
    """
    require(min(n_layers, skip_first, skip_last) >= 0, f"{(n_layers, skip_first, skip_last)} must not be negative")
    # eq: act-layers
    return range(skip_first, max(n_layers - skip_last, skip_first))


def candidate_heads(n_layers: int, n_heads: int, *, skip_first: int = 2, skip_last: int = 1) -> list[tuple[int, int]]:
    """Return every head that may be calibrated, as (layer, head): 928 for 32 layers of 32 heads.

    Parameters
    ----------
    n_layers, n_heads : int
        Of the model.
    skip_first, skip_last : int
        As in `calibrated_layers`.

    Returns
    -------
    list of (int, int)
        In order.

    Raises
    ------
    ValueError
        If a number is negative.
    """
    require(n_heads >= 0, f"n_heads={n_heads!r} must not be negative")
    layers = calibrated_layers(n_layers, skip_first=skip_first, skip_last=skip_last)
    return [(layer, head) for layer in layers for head in range(n_heads)]


def select_heads(
    score: Callable[[dict[int, tuple[int, ...]]], float],
    candidates: Iterable[tuple[int, int]],
    *,
    base: float | None = None,
) -> list[tuple[int, int]]:
    """Keep the heads that raise the score when they alone are calibrated.

    Parameters
    ----------
    score : callable
        ``heads -> accuracy`` on the calibration data, with the heads ``{layer: (head, …)}`` calibrated.
    candidates : iterable of (int, int)
        (layer, head) to try, such as `candidate_heads`; one evaluation each.
    base : float, optional
        The score without calibration; ``score({})`` if not given.

    Returns
    -------
    list of (int, int)
        Those whose score is strictly above ``base``, in the order of the candidates.

    Raises
    ------
    ValueError
        If a score is NaN.

    Notes
    -----
    The search is the paper's [recalled]; its code runs one head at a time and logs the accuracy, the comparison is not
    in the repository. Strictly above is our definition.
    """

    def measured(heads: dict[int, tuple[int, ...]]) -> float:
        value = float(score(heads))
        require(not np.isnan(value), f"score({heads}) is NaN")
        return value

    base = measured({}) if base is None else base
    # eq: act-select
    return [(layer, head) for layer, head in candidates if measured({layer: (head,)}) > base]


class ACTHook(Intervention):
    """Calibrate the chosen heads of a running transformer, after the softmax and before the values.

    A pass over a whole prompt finds the sinks of each head. Passes that extend it from a cache go on with them; keys
    that are new since then are never sinks. The next whole prompt starts afresh.

    Parameters
    ----------
    heads : mapping of int to collection of int
        The heads of each layer, such as the selected ones. Layers that are skipped may be named; nothing happens there.
    beta : float
        What is left of a sink.
    alpha, threshold : float, optional
        At most one of them; α = 5 if neither is given.
    skip_first, skip_last : int
        The layers at either end that are left alone.
    protect : {"first_detected", "token0"}
        The sink that is spared.

    Raises
    ------
    ValueError
        For what `refattn.interventions.attention_calibration.act` refuses, when the hook runs; at once for options that
        are out of range, and a layer that is negative.

    Notes
    -----
    Weights have one map for each query head, so grouped keys need no care. Keeping the sinks of the prompt for the
    tokens decoded after it is our definition.
    """

    def __init__(
        self,
        heads: Mapping[int, Collection[int]],
        *,
        beta: float = 0.4,
        alpha: float | None = None,
        threshold: float | None = None,
        skip_first: int = 2,
        skip_last: int = 1,
        protect: str = "first_detected",
    ) -> None:
        require(all(layer >= 0 for layer in heads), f"heads={dict(heads)} must have layers >= 0")
        require(0 <= beta <= 1, f"beta={beta!r} must be in [0, 1]")
        self.heads = {index(layer): tuple(sorted(set(chosen))) for layer, chosen in heads.items()}
        self.beta, self.protect = beta, protect
        self.alpha = PAPER_ALPHA if alpha is None and threshold is None else alpha
        self.threshold = threshold
        self.skip_first, self.skip_last = skip_first, skip_last
        self.sinks: dict[int, np.ndarray] = {}
        """S' (B, chosen heads, T) of each layer, from the last whole prompt."""
        calibrated_sinks(np.zeros(0, bool), protect=protect)
        detect_sinks(np.zeros((0, 0)), threshold=threshold, alpha=self.alpha)
        self.begin(0)

    def begin(self, n_layers: int) -> None:
        """Find out which layers are left alone; the sinks of the last prompt are kept for decoding."""
        self.layers = calibrated_layers(n_layers, skip_first=self.skip_first, skip_last=self.skip_last)

    def on_weights(self, layer: int, weights: np.ndarray) -> np.ndarray:
        """Return the weights (B, H, T, S), the chosen heads calibrated."""
        heads = list(self.heads.get(layer, ()))
        if layer not in self.layers or not heads:
            return weights
        n_heads, queries, keys = weights.shape[1:]
        require(heads[0] >= 0 and heads[-1] < n_heads, f"heads[{layer}]={heads} must lie in 0..{n_heads - 1}")
        chosen = weights[:, heads]  # (B, h, T, S)
        if queries == keys:
            found = detect_sinks(chosen, threshold=self.threshold, alpha=self.alpha)
            self.sinks[layer] = calibrated_sinks(found, protect=self.protect)  # (B, h, S)
        sinks = self._known_sinks(layer, len(weights), keys)
        result = weights.copy()
        result[:, heads] = calibrate_row(chosen, sinks[..., None, :], beta=self.beta)
        return result

    def _known_sinks(self, layer: int, batch: int, keys: int) -> np.ndarray:
        """Return S' over all keys (B, h, S)."""
        known = self.sinks.get(layer, np.zeros((0, 0, 0), dtype=bool))
        seen = len(known) == batch and known.shape[-1] <= keys
        require(seen, f"layer {layer} extends a prompt of {batch} sequences that this hook has not seen")
        return np.pad(known, ((0, 0), (0, 0), (0, keys - known.shape[-1])))
