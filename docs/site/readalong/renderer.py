"""The renderer: blocks of a module as two columns, prose on the left and highlighted code on the right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from .docstrings import docstring_html, prose_html
from .formulas import BadFormulaError, math

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .blocks import Block, Section

__all__ = ["Links", "code_html", "highlighted", "section_html"]

NAME = re.compile(r'<span class="(n|nf|nc|fm)">(\w+)</span>')
WORD = re.compile(r"<code>(\w+)</code>")


@dataclass(frozen=True)
class Links:
    """Where things are, seen from the page that is being written.

    Attributes
    ----------
    equation : callable
        Label to address, or ``None``.
    latex : callable
        Label to the LaTeX of its equation, or nothing.
    words : callable
        Label to the sentence that states it, or nothing.
    definition : mapping
        Names that this module defines or imports, to addresses of their code.
    """

    equation: Callable[[str], str | None]
    latex: Callable[[str], str]
    words: Callable[[str], str]
    definition: Mapping[str, str]


def highlighted(source: str) -> list[str]:
    """Return the lines of Python source as HTML; each line closes the tags that it opens."""
    lexer = PythonLexer(stripnl=False, ensurenl=True)
    return highlight(source, lexer, HtmlFormatter(nowrap=True)).split("\n")


def code_html(lines: list[str]) -> str:
    """Return highlighted lines as one code block in the theme's colours."""
    return f'<div class="highlight"><pre><code>{chr(10).join(lines)}</code></pre></div>'


def section_html(section: Section, source: str, links: Links) -> str:
    """Return one section of a module as rows of two columns.

    Parameters
    ----------
    section : Section
        Its blocks.
    source : str
        The text of the whole module.
    links : Links
        Addresses for equations and names.
    """
    lines = highlighted(source)
    rows = "".join(_row(block, lines, links) for block in section.blocks)
    return f'<div class="readalong" data-section="{escape(section.name)}">{rows}</div>'


def _row(block: Block, lines: list[str], links: Links) -> str:
    code = "".join(_linked(lines[n - 1], links, block) + "\n" for n in _with_gaps(block.lines, lines)).rstrip("\n")
    shown = code_html([code]) if code else ""
    if block.kind in ("imports", "overloads") and shown:
        shown = f"<details><summary>{block.kind}</summary>{shown}</details>"
    marked = f' data-equation="{" ".join(block.labels)}"' if block.labels else ""
    permalink = f'<a class="permalink" href="#{block.id}" title="link to {block.id}">#</a>'
    # searched are names and prose: an index of all code would keep every page busy for seconds
    code = f'<section class="code" data-search-exclude>{shown}</section>'
    prose = f'<div class="prose">{permalink}{_prose(block, links)}</div>'
    return f'<div class="row {block.kind}" id="{block.id}"{marked}>{prose}{code}</div>'


def _with_gaps(numbers: tuple[int, ...], lines: list[str]) -> list[int]:
    """Keep the blank lines between statements, but not two in a row where a docstring was taken out."""
    return [n for n, before in zip(numbers, (0, *numbers), strict=False) if lines[n - 1].strip() or n == before + 1]


def _prose(block: Block, links: Links) -> str:
    text = prose_html(block.prose) if block.kind == "comment" else docstring_html(block.prose)
    text = WORD.sub(lambda word: _to_definition(word, links), text)
    return text + "".join(_equation(label, links) for label in block.labels)


def _to_definition(word: re.Match[str], links: Links) -> str:
    address = links.definition.get(word[1])
    return f'<a class="name" href="{address}">{word[0]}</a>' if address else word[0]


def _equation(label: str, links: Links) -> str:
    """Return the number of an equation, linked to the prose, and the equation itself where the page states it."""
    address, latex, words = links.equation(label), links.latex(label), links.words(label)
    number = (
        f'<a class="number" href="{address}">({label})</a>' if address else f'<span class="number">({label})</span>'
    )
    try:
        shown = f'<div class="formula">{math(latex, block=True)}</div>' if latex else ""
    except BadFormulaError:
        shown = ""  # the page that states the equation reports it
    if words:
        shown = f'<div class="words">{prose_html(words)}</div>'
    return f'<div class="beside">{number}{shown}</div>'


def _linked(line: str, links: Links, block: Block) -> str:
    """Link the names in a highlighted line to their definitions."""

    def one(match: re.Match[str]) -> str:
        address = links.definition.get(match[2])
        if not address or address.endswith(f"#{block.id}"):
            return match[0]
        return f'<a class="name" href="{address}">{match[0]}</a>'

    return NAME.sub(one, line)
