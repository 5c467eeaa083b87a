"""The Laundry List task: of a list of items all but one are mentioned again, and the other one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = ["ListPrompt", "laundry_list", "laundry_text"]


class ListPrompt(NamedTuple):
    """Words of a prompt, the word that answers it, and where each item of the list first stands."""

    tokens: tuple[str, ...]
    answer: str
    item_positions: tuple[int, ...]


def laundry_list(rng: np.random.Generator, n: int, target: int | None, vocabulary: Sequence[str]) -> ListPrompt:
    """Draw a prompt in words, one token each: a list, all but one of it again, and the question.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where items, target and order come from.
    n : int
        Length of the list, at least 2.
    target : int or None
        Which item is not mentioned again, counted from 0; drawn if None.
    vocabulary : sequence of str
        The items to draw from, without replacement.

    Returns
    -------
    ListPrompt
        ``<bos> she has a x₁ , … , xₙ . she already have … . she needs_the``: item i at token 4 + 2i.

    Raises
    ------
    ValueError
        If n < 2, there are fewer items than n, or the target is out of range.

    Notes
    -----
    The template of 2406.09519 was not available; this one is ours [our definition].
    """
    items, target, again = _drawn(rng, n, target, vocabulary)
    listed = [word for item in items for word in (item, ",")][:-1]
    repeated = [word for item in again for word in (item, ",")][:-1]
    tokens = ("<bos>", "she", "has", "a", *listed, ".", "she", "already", "have", *repeated, ".", "she", "needs_the")
    return ListPrompt(tokens, items[target], tuple(range(4, 4 + 2 * n, 2)))


def laundry_text(
    rng: np.random.Generator,
    n: int,
    target: int | None,
    vocabulary: Sequence[str],
    *,
    name: str = "Anna",
    pronoun: str = "She",
) -> tuple[str, str]:
    """Draw a prompt in English, for models with a tokenizer, and the word that answers it.

    Parameters
    ----------
    rng, n, target, vocabulary
        As in `laundry_list`.
    name, pronoun : str
        Who packs.

    Returns
    -------
    text, answer : str
        The text ends before the answer.

    Raises
    ------
    ValueError
        As `laundry_list`.
    """
    items, target, again = _drawn(rng, n, target, vocabulary)
    text = (
        f"{name} has a {', '.join(items)}. {pronoun} already packed the {', '.join(again)}. {pronoun} still needs the"
    )
    return text, items[target]


def _drawn(
    rng: np.random.Generator, n: int, target: int | None, vocabulary: Sequence[str]
) -> tuple[list[str], int, list[str]]:
    """Return the items, which of them is asked for, and the others in another order."""
    require(n >= 2, f"n={n} must be at least 2")
    require(n <= len(vocabulary), f"n={n} exceeds the {len(vocabulary)} available items")
    require(target is None or 0 <= target < n, f"target={target} must lie in 0..{n - 1}")
    items = [vocabulary[i] for i in rng.permutation(len(vocabulary))[:n]]
    chosen = int(rng.integers(n)) if target is None else target
    others = items[:chosen] + items[chosen + 1 :]
    return items, chosen, [others[i] for i in rng.permutation(n - 1)]
