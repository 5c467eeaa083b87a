"""Generation: one token after another, greedy or drawn, with the cache or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_bool, as_float, as_integer, require
from refattn.primitives.softmax import softmax
from refattn.transformer.forward import forward

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Sequence

    from refattn.transformer.forward import Cache
    from refattn.transformer.hooks import Hooks
    from refattn.transformer.intervention import Intervention
    from refattn.transformer.weights import Transformer

__all__ = ["generate", "next_token_probabilities", "stream_logits"]


def generate(
    model: Transformer,
    ids: Any,
    n_new: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | None = None,
    stop_ids: Collection[int] = (),
    key_mask: Any = None,
    use_cache: bool = True,
    hooks: Hooks | None = None,
    interventions: Sequence[Intervention] = (),
) -> np.ndarray:
    """Continue each row of tokens.

    Parameters
    ----------
    model : Transformer
        What continues them.
    ids : array_like of int, shape (B, T)
        The prompts, at least one token each.
    n_new : int
        How many tokens to add at most.
    temperature : float
        0: always the most likely token, the first on ties. Above 0: drawn from softmax(logits / temperature).
    top_k, top_p : int and float, optional
        Draw among the k most likely, and among the fewest whose probabilities sum to at least p.
    rng : numpy.random.Generator, optional
        Where the draws come from; needed for a temperature above 0.
    stop_ids : collection of int
        A row is finished when it produced one of these; it then repeats it while others go on.
    key_mask : array_like of bool, shape (B, T), optional
        False marks padding on the left of a prompt; positions count what is not padding.
    use_cache : bool
        Whether keys and values are kept; without it every step runs the whole sequence again, with the same result.
    hooks, interventions
        As in `refattn.transformer.forward.forward`, at every step.

    Returns
    -------
    ndarray of int, shape (B, T + up to n_new)
        The prompts and what follows.

    Raises
    ------
    ValueError
        For an empty prompt, a negative ``n_new`` or temperature, ``top_k`` < 1, ``top_p`` outside (0, 1], or a
        temperature without ``rng``.
    """
    ids = as_integer("ids", ids, ndim=2)
    require(ids.shape[1] >= 1, "ids has no token: a prompt needs at least one")
    require(n_new >= 0, f"n_new={n_new} must not be negative")
    require(temperature == 0 or rng is not None, f"temperature={temperature} needs an rng to draw with")
    steps = stream_logits(model, ids, key_mask=key_mask, use_cache=use_cache, hooks=hooks, interventions=interventions)
    finished = np.zeros(len(ids), bool)
    logits = next(steps)  # (B, V)
    for step in range(n_new):
        logits = steps.send(ids[:, -1]) if step else logits
        token = np.where(finished, ids[:, -1], _choose(logits, temperature, top_k, top_p, rng))  # (B,)
        ids = np.concatenate([ids, token[:, None]], axis=1)
        finished |= np.isin(token, list(stop_ids))
        if finished.all():
            break
    return np.asarray(ids)


def stream_logits(
    model: Transformer,
    ids: np.ndarray,
    *,
    key_mask: Any = None,
    use_cache: bool = True,
    hooks: Hooks | None = None,
    interventions: Sequence[Intervention] = (),
) -> Generator[np.ndarray, np.ndarray, None]:
    """Yield the logits (B, V) of the next token; send the token (B,) that was chosen to go on."""
    mask = np.ones(ids.shape, bool) if key_mask is None else as_bool("key_mask", key_mask)
    cache: Cache | None = None
    new = ids
    while True:
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -new.shape[1] :]
        result = forward(
            model,
            new,
            cache=cache,
            key_mask=None if key_mask is None else mask,
            positions=positions,
            hooks=hooks,
            interventions=interventions,
        )
        token = yield result.logits[:, -1]
        if use_cache:
            cache, new = result.kv_cache, token[:, None]
        else:
            new = np.concatenate([new, token[:, None]], axis=1)
        mask = np.concatenate([mask, np.ones((len(mask), 1), bool)], axis=1)


def next_token_probabilities(
    logits: Any, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Return the distribution that sampling draws from.

    Parameters
    ----------
    logits : array_like, shape (..., V)
        Of the next token.
    temperature : float
        Divides the logits; above 0.
    top_k, top_p : int and float, optional
        First the k largest are kept, with all that tie with the k-th; then, of these, the fewest most likely ones
        whose probabilities sum to at least p, the smaller index first on ties.

    Returns
    -------
    ndarray, shape (..., V)
        Sums to 1.

    Raises
    ------
    ValueError
        For a temperature that is not positive, ``top_k`` < 1, or ``top_p`` outside (0, 1].
    """
    logits = as_float("logits", logits)
    require(temperature > 0, f"temperature={temperature} must be > 0")
    require(top_k is None or top_k >= 1, f"top_k={top_k} must be at least 1")
    require(top_p is None or 0 < top_p <= 1, f"top_p={top_p} must lie in (0, 1]")
    kept = np.ones(logits.shape, bool)
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits >= np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
    probabilities = softmax(logits / temperature, where=kept)
    if top_p is None:
        return probabilities
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked  # mass of the more likely ones
    inside = np.zeros(kept.shape, bool)
    np.put_along_axis(inside, order, before < top_p, axis=-1)
    return softmax(logits / temperature, where=kept & inside)


def _choose(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None, rng: np.random.Generator | None
) -> np.ndarray:
    require(temperature >= 0, f"temperature={temperature} must not be negative")
    if temperature == 0:
        return np.asarray(np.argmax(logits, axis=-1))
    assert rng is not None
    probabilities = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    reached = np.cumsum(probabilities.astype(np.float64), axis=-1)
    drawn = rng.random((len(logits), 1)) * reached[:, -1:]
    return np.asarray(np.argmax(reached > drawn, axis=-1))
