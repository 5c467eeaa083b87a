"""What kind of head is it? Measures by which the heads of a circuit are told apart.

The categories are those of Wang et al.: heads that look at duplicates, heads that copy, heads that do the opposite,
heads without which the task fails. The exact measures are [our definition].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.circuit_reuse_effects import force_rows, logit_difference
from refattn.primitives.arguments import as_integer, require
from refattn.transformer.ablation import ablate_heads
from refattn.transformer.forward import forward
from refattn.transformer.heads import head_scores, ov_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from refattn.transformer.hooks import Hook, Hooks
    from refattn.transformer.weights import Transformer

__all__ = [
    "ablation_effects",
    "accuracy",
    "attention_to",
    "copying_scores",
    "force_attention",
    "repetition_scores",
]


def accuracy(model: Transformer, ids: Any, answers: Any, *, hooks: Hooks | None = None) -> float:
    """Return the share of prompts after which the right word has the largest logit of all words.

    Parameters
    ----------
    model : Transformer
        What answers.
    ids : array_like of int, shape (B, T)
        The prompts.
    answers : array_like of int, shape (B,) or (B, 2)
        The right words; of pairs, the first.
    hooks : mapping, optional
        What is done to the model meanwhile, as from `force_attention`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For no prompt, or answers of another shape.
    """
    ids, answers = as_integer("ids", ids, ndim=2), as_integer("answers", answers)
    require(len(ids) > 0, "ids has no prompt")
    fits = answers.shape in ((len(ids),), (len(ids), 2))
    require(fits, f"answers has shape {answers.shape}, expected {(len(ids),)} or {(len(ids), 2)}")
    said = np.argmax(forward(model, ids, hooks=hooks).logits[:, -1], axis=-1)  # (B,)
    return float(np.mean(said == (answers if answers.ndim == 1 else answers[:, 0])))


def force_attention(
    model: Transformer,
    ids: Any,
    heads: Iterable[tuple[int, int]],
    rows: Any,
    targets: Sequence[Sequence[int]],
    *,
    weight: float = 1.0,
) -> dict[str, Hook]:
    """Return hooks that make heads attend to chosen tokens, from one query of each prompt.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    ids : array_like of int, shape (B, T)
        The prompts on which the hooks will be used.
    heads : iterable of (layer, head)
        Which heads.
    rows : int or array_like of int, shape (B,)
        The query, such as −1 for the last token.
    targets : sequence of B sequences of int
        The tokens that each prompt's query has to look at, to the same part each.
    weight : float
        How much of the row is replaced; see `refattn.interpretability.circuit_reuse_effects.force_rows`.

    Returns
    -------
    dict of str to callable
        For ``hooks`` of `refattn.transformer.forward.forward`.

    Raises
    ------
    ValueError
        For a head out of range, and as `force_rows`: an empty target list, a target beyond its query.

    References
    ----------
    2310.08744, section 5: four heads of GPT-2 Medium are made to look at the wrong colours.
    """
    ids = as_integer("ids", ids, ndim=2)
    rows = np.broadcast_to(as_integer("rows", rows), (len(ids),))
    require(len(targets) == len(ids), f"targets has {len(targets)} rows, expected {len(ids)}")
    longest = max(map(len, targets), default=0)
    padded = np.full((len(ids), longest), -1)
    for b, told in enumerate(targets):
        require(min(told, default=0) >= 0, f"targets {list(told)} must be tokens, counted from 0")
        padded[b, : len(told)] = told
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        inside = 0 <= layer < model.config.n_layers and 0 <= head < model.config.n_heads
        require(inside, f"head {(layer, head)} is none of {model.config.n_layers} layers of {model.config.n_heads}")
        by_layer.setdefault(layer, []).append(head)
    # what cannot be forced is found now, not in the middle of a pass
    force_rows(np.zeros((len(ids), 1, ids.shape[1], ids.shape[1])), rows, padded, heads=(), weight=weight)

    def forcing(chosen: list[int]) -> Callable[[np.ndarray, str], np.ndarray]:
        return lambda pattern, _name: force_rows(pattern, rows, padded, heads=chosen, weight=weight)

    return {f"blocks.{layer}.attn.hook_pattern": forcing(chosen) for layer, chosen in by_layer.items()}


def attention_to(model: Transformer, ids: Any, keys: Any, *, query: int = -1, hooks: Hooks | None = None) -> np.ndarray:
    """Return how much each head looks at some tokens, on average over prompts and tokens.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    ids : array_like of int, shape (B, T)
        The prompts.
    keys : array_like of int, shape (B, K)
        The tokens of each prompt that are looked at, such as those of the possible answers.
    query : int
        Where from; the last token if not given.
    hooks : mapping, optional
        What is done to the model meanwhile.

    Returns
    -------
    ndarray, shape (L, H)

    Raises
    ------
    ValueError
        For keys of another shape or outside the prompts.
    """
    ids, keys = as_integer("ids", ids, ndim=2), as_integer("keys", keys, ndim=2)
    require(len(keys) == len(ids) and keys.size > 0, f"keys has shape {keys.shape}, expected (B, K) with B={len(ids)}")
    require(np.all((keys >= 0) & (keys < ids.shape[1])), f"keys must lie in the {ids.shape[1]} tokens of a prompt")
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    patterns = forward(model, ids, hooks=hooks, names=names).activations
    rows = np.stack([patterns[name][:, :, query] for name in names], axis=1)  # (B, L, H, T)
    return np.asanyarray(np.take_along_axis(rows, keys[:, None, None], axis=-1).mean(axis=(0, -1)))


def copying_scores(model: Transformer, tokens: Any, *, lowest: bool = False) -> np.ndarray:
    """Return the share of tokens that each head, attending to one, makes the likeliest next word of all.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    tokens : array_like of int, shape (K,)
        The candidates, such as all names and colours.
    lowest : bool
        The unlikeliest instead: the mark of a negative mover.

    Returns
    -------
    ndarray, shape (L, H)

    Raises
    ------
    ValueError
        For no token, or one outside the vocabulary.

    Notes
    -----
    The token's embedding goes straight through W_V W_O and the unembedding; norms are left out.
    """
    config, weights = model
    tokens = as_integer("tokens", tokens, ndim=1)
    require(tokens.size > 0, "tokens is empty")
    require(np.all((tokens >= 0) & (tokens < config.vocab_size)), f"tokens must lie in 0..{config.vocab_size - 1}")
    choose = np.argmin if lowest else np.argmax
    scores = np.zeros((config.n_layers, config.n_heads))
    for layer in range(config.n_layers):
        for head in range(config.n_heads):
            # eq: cr-copy
            said = weights.W_E[tokens] @ ov_matrix(weights, layer, head) @ weights.W_U  # (K, V)
            scores[layer, head] = np.mean(choose(said, axis=-1) == tokens)
    return scores


def repetition_scores(model: Transformer, first: int, tokens: Any, kind: str) -> np.ndarray:
    """Measure each head on a sequence that repeats: first, p_1 … p_n, p_1 … p_n.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    first : int
        The token at the beginning, such as that of the start of a text.
    tokens : array_like of int, shape (n,)
        p_1 … p_n, all different.
    kind : {"previous", "duplicate", "induction"}
        See `refattn.transformer.heads.head_scores`.

    Returns
    -------
    ndarray, shape (L, H)

    Raises
    ------
    ValueError
        For tokens that repeat, and as `head_scores` and `forward`.
    """
    tokens = as_integer("tokens", tokens, ndim=1)
    require(len(set(tokens.tolist())) == tokens.size, "tokens must all be different")
    ids = np.concatenate([[first], tokens, tokens])[None]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layers)]
    patterns = forward(model, ids, names=names).activations
    return np.stack([head_scores(patterns[name][0], kind, len(tokens)) for name in names])


def ablation_effects(
    model: Transformer, ids: Any, answers: Any, *, kind: str = "zero", reference: Any = None
) -> np.ndarray:
    """Return the mean logit difference without each head in turn.

    Parameters
    ----------
    model : Transformer
        Whose heads.
    ids : array_like of int, shape (B, T)
        The prompts.
    answers : array_like of int, shape (B, 2)
        Right and wrong words.
    kind, reference
        What a head's output becomes; see `refattn.transformer.ablation.ablate_heads`.

    Returns
    -------
    ndarray, shape (L, H)
    """
    config = model.config
    left = np.zeros((config.n_layers, config.n_heads))
    for layer in range(config.n_layers):
        for head in range(config.n_heads):
            hooks = ablate_heads([(layer, head)], kind, reference=reference)
            left[layer, head] = logit_difference(forward(model, ids, hooks=hooks).logits, answers)
    return left
