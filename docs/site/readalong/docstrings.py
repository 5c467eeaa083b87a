"""Docstrings and comments as HTML: numpydoc sections become small tables, the prose becomes paragraphs."""

from __future__ import annotations

import re
from html import escape
from textwrap import dedent

from markdown import Markdown

__all__ = ["docstring_html", "prose_html", "sections", "summary"]

TITLE = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}[ ]*$", re.MULTILINE)
TABLES = ("Parameters", "Other Parameters", "Attributes", "Returns", "Yields", "Raises", "Warns")

_MARKDOWN = Markdown(
    extensions=["sane_lists", "fenced_code", "pymdownx.arithmatex"],
    extension_configs={"pymdownx.arithmatex": {"generic": True}},
)


def prose_html(text: str) -> str:
    """Return prose with the marks of reStructuredText or Markdown as HTML."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"^\.\. math::\s*\n((?:\n|[ ]+.*\n?)+)", _display, text, flags=re.MULTILINE)
    text = re.sub(r"^\.\. \[(\w+)\] ", r"[\1] ", text, flags=re.MULTILINE)
    text = re.sub(r"::[ ]*$", ":", text, flags=re.MULTILINE)
    _MARKDOWN.reset()
    return _MARKDOWN.convert(text)


def _display(match: re.Match[str]) -> str:
    return f"$$\n{dedent(match[1]).strip()}\n$$\n"


def sections(docstring: str) -> list[tuple[str, str]]:
    """Split a docstring at its underlined titles; the first part has the title ``""``."""
    parts = TITLE.split(docstring.strip())
    return [("", parts[0].strip()), *((t, b.strip("\n")) for t, b in zip(parts[1::2], parts[2::2], strict=True))]


def summary(docstring: str) -> str:
    """Return the first sentence block of a docstring on one line."""
    return " ".join(docstring.strip().split("\n\n")[0].split())


def docstring_html(docstring: str) -> str:
    """Return a numpydoc docstring: prose first, its tables folded, then notes and references."""
    prose, folded, rest = [], [], []
    for title, body in sections(docstring):
        if not title:
            prose.append(prose_html(body))
        elif title in TABLES:
            folded.append((title, _table(body)))
        else:
            rest.append(f'<p class="title">{title}</p>{prose_html(dedent(body))}')
    if folded:
        names = " · ".join(title for title, _ in folded)
        tables = "".join(f'<p class="title">{title}</p>{table}' for title, table in folded)
        prose.append(f'<details class="signature"><summary>{names}</summary>{tables}</details>')
    return "".join(prose + rest)


def _table(body: str) -> str:
    """Return the entries of one section as rows: name and type, then the description."""
    rows: list[tuple[str, list[str]]] = []
    for line in dedent(body).splitlines():
        if line and not line[0].isspace():
            rows.append((line, []))
        elif rows:
            rows[-1][1].append(line)
    cells = []
    for head, description in rows:
        name, _, kind = (part.strip() for part in head.partition(" : "))
        typed = f' <span class="type">{escape(kind)}</span>' if kind else ""
        text = prose_html(dedent("\n".join(description)))
        cells.append(f"<tr><td><code>{escape(name)}</code>{typed}</td><td>{text}</td></tr>")
    return f"<table>{''.join(cells)}</table>"
