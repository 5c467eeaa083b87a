"""Labels in prose: the first mention of an equation becomes its anchor, every other one a link to it."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from .formulas import CodeOf, anchor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["define", "refer"]

PIECES = re.compile(r"(<[^>]*>)")
OPEN = re.compile(r"<(code|pre|a|math|h[1-6]|summary|script|style)\b[^>]*(?<!/)>$")
CLOSE = re.compile(r"</(code|pre|a|math|h[1-6]|summary|script|style)>$")


def define(page: str, labels: Collection[str], code_of: CodeOf) -> tuple[str, set[str]]:
    """Make the first mention of each label its anchor, with links to the code.

    A mention in bold, or at the head of a table row or list item, states the equation; otherwise the first one does.

    Parameters
    ----------
    page : str
        HTML of the prose.
    labels : collection of str
        The labels that this page states in words.
    code_of : callable
        Label to address and name of each place in the code.

    Returns
    -------
    page : str
        With the anchors.
    defined : set of str
        The labels found.
    """
    defined: set[str] = set()
    for strict in (True, False):
        for label in labels:
            if label in defined:
                continue
            pieces = page_pieces(page)
            for index in _text(pieces):
                mention = _pattern([label]).search(pieces[index])
                if mention and (not strict or _stands_first("".join(pieces[max(0, index - 3) : index]))):
                    before, after = pieces[index][: mention.start()], pieces[index][mention.end() :]
                    pieces[index] = before + _anchored(label, code_of) + after
                    page = "".join(pieces)
                    defined.add(label)
                    break
    return page, defined


def _stands_first(before: str) -> bool:
    return re.search(r"(<(strong|b|dt|li)>|<tr>\s*<t[dh][^>]*>)\s*$", before) is not None


def refer(page: str, address: Callable[[str], str | None], labels: Collection[str]) -> str:
    """Link every mention of a known label to the equation."""
    if not labels:
        return page
    pattern = _pattern(labels)

    def one(match: re.Match[str]) -> str:
        place = address(match[0])
        return f'<a class="eqref" href="{escape(place)}">{match[0]}</a>' if place else match[0]

    pieces = page_pieces(page)
    for index in _text(pieces):
        pieces[index] = pattern.sub(one, pieces[index])
    return "".join(pieces)


def page_pieces(page: str) -> list[str]:
    """Split HTML into tags and the text between them."""
    return PIECES.split(page)


def _text(pieces: list[str]) -> list[int]:
    """Return where the pieces are prose: not code, formulas, links or headings."""
    depth, found = 0, []
    for index, piece in enumerate(pieces):
        if OPEN.match(piece):
            depth += 1
        elif CLOSE.match(piece):
            depth -= 1
        elif not depth and piece and not piece.startswith("<"):
            found.append(index)
    return found


def _pattern(labels: Collection[str]) -> re.Pattern[str]:
    """Match labels as whole words; bare words and bare numbers only in parentheses."""
    longest = sorted(labels, key=len, reverse=True)
    plain = [re.escape(label) for label in longest if not re.fullmatch(r"[A-Za-z]+|\d+", label)]
    others = [re.escape(label) for label in longest if re.fullmatch(r"[A-Za-z]+|\d+", label)]
    parts = [rf"(?<![\w-])(?:{'|'.join(plain)})(?![\w-])"] if plain else []
    parts += [rf"(?<=\()(?:{'|'.join(others)})(?=\))"] if others else []
    return re.compile("|".join(parts))


def _anchored(label: str, code_of: CodeOf) -> str:
    places = "".join(f'<a class="to-code" href="{href}">{escape(name)}</a>' for href, name in code_of(label))
    number = f'<a class="number" href="#{anchor(label)}">{label}</a>'
    return f'<span class="stated" id="{anchor(label)}">{number}{places}</span>'
