"""Prompts of two tasks that share a circuit: who was given the ring, and what colour the mug is.

Both come in pairs of clean and corrupt text whose answers differ and whose lengths do not, word by word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = ["COLORS", "OBJECTS", "PromptPair", "colored_object_pairs", "ioi_pairs", "swap_first_names"]

SURFACES = ("table", "desk", "floor")
OPENINGS = ("there is", "you see", "I see")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
OBJECTS = (
    *("pencil", "notebook", "pen", "cup", "plate", "jug", "mug", "puzzle", "textbook", "leash", "necklace"),
    *("bracelet", "bottle", "ball", "envelope", "lighter", "bowl"),
)


class PromptPair(NamedTuple):
    """A prompt, the same with another answer, the next word of the first, that of the second, and how it was made."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    meta: dict[str, Any]


def ioi_pairs(
    rng: np.random.Generator,
    n: int,
    templates: Sequence[str],
    names: Sequence[str],
    places: Sequence[str],
    objects: Sequence[str],
) -> list[PromptPair]:
    """Draw prompts that end just before the indirect object: "…, B and A went to the store. B gave a ring to" A.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws template, two different names, place and object, each uniformly.
    n : int
        How many.
    templates : sequence of str
        Sentences that end in [A], with [A] and [B] twice; [PLACE] and [OBJECT] are filled wherever they stand.
    names, places, objects : sequence of str
        What fills them.

    Returns
    -------
    list of PromptPair
        ``answer`` is a blank and A (the indirect object), ``wrong`` a blank and B (the subject). In the corrupt prompt
        the second B is A, so that the two change their parts.

    Raises
    ------
    ValueError
        For a negative ``n``, an empty list, fewer than two names, or a template of another form.

    Notes
    -----
    The templates and lists of Wang et al. are in ``ioi_dataset.py`` of redwoodresearch/Easy-Transformer (MIT). The
    paper mixes the first seven templates with the first seven in the other order (`swap_first_names`). Its generator
    also draws a third name, which this corruption does not use.
    """
    require(n >= 0, f"n={n!r} must not be negative")
    require(len(set(names)) >= 2, f"names has {len(set(names))} different names, two are needed")
    for label, choices in (("templates", templates), ("places", places), ("objects", objects)):
        require(len(choices) > 0, f"{label} is empty")
    for template in templates:
        form = template.endswith(" [A]") and template.count("[A]") == 2 and template.count("[B]") == 2
        require(form, f"template {template!r} must end in ' [A]' and hold [A] and [B] twice")
    return [_ioi_pair(rng, templates, list(dict.fromkeys(names)), places, objects) for _ in range(n)]


def _ioi_pair(
    rng: np.random.Generator,
    templates: Sequence[str],
    names: Sequence[str],
    places: Sequence[str],
    objects: Sequence[str],
) -> PromptPair:
    template = _one_of(rng, templates)
    io, subject = (names[i] for i in rng.choice(len(names), size=2, replace=False))
    nouns = {"[PLACE]": _one_of(rng, places), "[OBJECT]": _one_of(rng, objects)}
    ending = template.rpartition(" [A]")[0]
    before, _, after = ending.rpartition("[B]")
    clean, corrupt = (
        _filled(before + second + after, {"[A]": io, "[B]": subject, **nouns}) for second in (subject, io)
    )
    meta = {"template": template, "io": io, "subject": subject, "place": nouns["[PLACE]"], "object": nouns["[OBJECT]"]}
    return PromptPair(clean, corrupt, f" {io}", f" {subject}", meta)


def _filled(text: str, values: dict[str, str]) -> str:
    for slot, value in values.items():
        text = text.replace(slot, value)
    return text


def swap_first_names(template: str) -> str:
    """Return the template with the two names of its first clause in the other order: BABA becomes ABBA, and back."""
    return re.sub(r"\[([AB])\] and \[([AB])\]", r"[\2] and [\1]", template, count=1)


def colored_object_pairs(
    rng: np.random.Generator,
    n: int,
    n_items: int = 3,
    uppercase: bool = True,
    *,
    objects: Sequence[str] = OBJECTS,
    colors: Sequence[str] = COLORS,
) -> list[PromptPair]:
    """Draw one worked example and one question about the colour of an object among several.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws everything, each choice uniformly.
    n : int
        How many.
    n_items : int
        Objects in a list. The two lists of a prompt share no object and no colour.
    uppercase : bool
        Whether colours are capitalised where they are answers.
    objects, colors : sequence of str
        What to draw from; the paper's words if not given.

    Returns
    -------
    list of PromptPair
        ``corrupt`` asks for another object of the same list, and ``wrong`` is that one's colour ("mindiff" in the
        official code). ``meta`` has the ``objects`` and ``colors`` of the second list, the index of the one that is
        asked for, ``query``, and that of the other, ``corrupt_query``.

    Raises
    ------
    ValueError
        For a negative ``n``, fewer than two items, or fewer colours or objects than two lists need.

    Notes
    -----
    Text as the official code writes it. That lists share nothing was measured on the published prompts.
    """
    require(n >= 0, f"n={n!r} must not be negative")
    require(n_items >= 2, f"n_items={n_items!r} must be at least 2: the corrupt prompt asks for another item")
    for label, choices in (("colours", colors), ("objects", objects)):
        message = f"n_items={n_items!r} needs {2 * n_items} {label} for two lists, there are {len(choices)}"
        require(2 * n_items <= len(choices), message)
    return [_colored_objects_pair(rng, n_items, uppercase, objects, colors) for _ in range(n)]


def _colored_objects_pair(
    rng: np.random.Generator, n_items: int, uppercase: bool, objects: Sequence[str], colors: Sequence[str]
) -> PromptPair:
    things = [objects[i] for i in rng.choice(len(objects), size=2 * n_items, replace=False)]
    shades = [colors[i] for i in rng.choice(len(colors), size=2 * n_items, replace=False)]
    labels = [f" {shade.title() if uppercase else shade}" for shade in shades]
    shown = int(rng.integers(n_items))
    query, other = (n_items + int(i) for i in rng.choice(n_items, size=2, replace=False))
    example = _scene(rng, things[:n_items], shades[:n_items]) + _question(things[shown]) + labels[shown] + "\n"
    scene = _scene(rng, things[n_items:], shades[n_items:])
    clean, corrupt = (example + scene + _question(things[asked]) for asked in (query, other))
    meta = {
        "objects": things[n_items:],
        "colors": shades[n_items:],
        "query": query - n_items,
        "corrupt_query": other - n_items,
    }
    return PromptPair(clean, corrupt, labels[query], labels[other], meta)


def _scene(rng: np.random.Generator, things: Sequence[str], shades: Sequence[str]) -> str:
    surface, opening = _one_of(rng, SURFACES), _one_of(rng, OPENINGS)
    items = [f"{_article(shade)} {shade} {thing}" for thing, shade in zip(things, shades, strict=True)]
    listed = " and ".join(items) if len(items) == 2 else ", ".join(items[:-1]) + f", and {items[-1]}"
    return f"Q: On the {surface}, {opening} {listed}. "


def _question(thing: str) -> str:
    return f"What color is the {thing}?\nA:"


def _one_of(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
