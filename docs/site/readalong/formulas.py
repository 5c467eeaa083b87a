r"""Formulas: LaTeX to MathML while the site is built, so that no page needs a script or a font to show them.

`pymdownx.arithmatex` finds the formulas in a page; this module turns each into MathML and gives equations that carry
a ``\tag`` an anchor, their number in the margin, and links to the lines of code that compute them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html import escape, unescape
from itertools import pairwise
from xml.etree.ElementTree import Element, tostring

from latex2mathml.converter import convert_to_element

__all__ = ["BadFormulaError", "anchor", "equation_html", "math", "prose_of", "tags", "typeset"]

CodeOf = Callable[[str], Iterable[tuple[str, str]]]

TAG = re.compile(r"\\tag\{([^{}]+)\}")
SPAN = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

# what latex2mathml does not know, said in words that it knows
SPELLINGS = [
    (re.compile(r"\\begin\{(aligned|align)\}"), r"\\begin{align*}"),
    (re.compile(r"\\end\{(aligned|align)\}"), r"\\end{align*}"),
    (re.compile(r"\\(arg)(?![A-Za-z])"), r"\\operatorname{\1}"),
    (re.compile(r"\\sim(?![A-Za-z])"), "∼"),
    (re.compile(r"\\(?:mathrm|textrm)\{([A-Za-z]{2,})\}"), r"\\operatorname{\1}"),
]

ATOMS = {"mi", "mn", "mrow", "msub", "msup", "msubsup", "mfrac", "msqrt", "munder", "mover", "mtext"}
CLOSING = set(")]}‖|⌋⌉⟩")
FENCES = set("⌊⌋⌈⌉⟨⟩{}")
ACCENTS = set("~^¯˙")
STYLES = {
    "bold": "font-weight: bold",
    "bold-italic": "font-weight: bold; font-style: italic",
    "monospace": "font-family: var(--md-code-font)",
}


class BadFormulaError(ValueError):
    """A formula that cannot be shown: its LaTeX, and the command that nobody knows."""


def math(latex: str, *, block: bool = False) -> str:
    r"""Return a formula as MathML.

    Parameters
    ----------
    latex : str
        The formula without its dollar signs; ``\tag`` is left out.
    block : bool
        Whether it stands on a line of its own.

    Returns
    -------
    str
        One ``<math>`` element, whose ``alttext`` is the LaTeX.

    Raises
    ------
    BadFormulaError
        If a command is unknown or the braces do not match.
    """
    source = TAG.sub("", latex).strip()
    spelled = source
    for pattern, words in SPELLINGS:
        spelled = pattern.sub(words, spelled)
    try:
        tree = convert_to_element(spelled, display="block" if block else "inline")
    except Exception as problem:
        raise BadFormulaError(f"formula ${source}$: {type(problem).__name__} {problem}") from problem
    for element in list(tree.iter()):
        if element.tag != "mtext" and re.search(r"\\[A-Za-z]+|&", unescape(element.text or "")):
            raise BadFormulaError(f"formula ${source}$: {element.text} is not understood")
        _repair(element)
    for element in list(tree.iter()):
        if element.tag in ("math", "mrow", "mtd", "mstyle"):
            _space(element)
    tree.set("alttext", source)
    tree.set("data-search-exclude", "")  # letters without their places are nothing to search for
    return tostring(tree, encoding="unicode")


def _repair(element: Element) -> None:
    """Say in the words of MathML Core, which browsers read, what the converter says in older ones."""
    text = element.text = unescape(element.text or "").replace("\\_", "_") or None
    if element.get("mathvariant") in STYLES:
        element.set("style", STYLES[element.attrib.pop("mathvariant")])
    if element.tag == "mo" and text and re.fullmatch(r"[A-Za-z]{2,}|∞", text):
        element.tag = "mi"
    elif element.tag == "mi" and text and text in FENCES | {"±", "∓", "∼", "%"}:
        element.tag = "mo"
        element.set("stretchy", "false")
    elif element.tag == "mtd" and "columnalign" in element.attrib:
        element.set("style", f"text-align: {element.attrib.pop('columnalign')}")
    elif element.tag == "mspace" and element.get("width") == "negativethinmathspace":
        element.set("width", "-0.167em")
    elif element.tag == "mover" and unescape(element[-1].text or "") in ACCENTS:
        element.set("accent", "true")


def _space(row: Element) -> None:
    """Set names of functions apart from their neighbours, and signs close to what they belong to."""
    children = list(row)
    bars = [child for child in children if child.tag == "mo" and child.text in ("|", "‖")]
    for number, bar in enumerate(bars if len(bars) % 2 == 0 else []):
        bar.set("form", "postfix" if number % 2 else "prefix")
    for left, right in pairwise(children):
        if right.text == "−" and left.tag == "mo" and (left.text not in CLOSING or left.get("form") == "prefix"):
            right.set("form", "prefix")
        opens = right.tag in {"mo", "mspace"}
        closes = left.tag in ATOMS or (left.tag == "mo" and left.text in CLOSING)
        if (_is_function(left) and not opens) or (_is_function(right) and closes and not _is_function(left)):
            row.insert(list(row).index(right), Element("mspace", width="0.167em"))


def _is_function(element: Element) -> bool:
    base = element[0] if element.tag in ("msub", "msup", "msubsup", "munder") and len(element) else element
    return base.tag == "mi" and len(base.text or "") > 1


def prose_of(markdown: str) -> str:
    """Return a page's Markdown without its code, fenced or inline."""
    return re.sub(r"^( *)(```+|~~~+).*?^\1\2|(`+).+?\3", "", markdown, flags=re.MULTILINE | re.DOTALL)


def tags(markdown: str) -> dict[str, str]:
    r"""Return the equations of a page that carry a ``\tag``: label to LaTeX."""
    found = {}
    for display in re.findall(r"\$\$(.+?)\$\$", prose_of(markdown), re.DOTALL):
        for label in TAG.findall(display):
            found[label] = display.strip()
    return found


def anchor(label: str) -> str:
    """Return the id of an equation in the prose."""
    return f"eq-{label}"


def equation_html(latex: str, labels: list[str], code_of: CodeOf) -> str:
    """Return a numbered equation with links to the code that computes it.

    Parameters
    ----------
    latex : str
        The formula.
    labels : list of str
        Its number, or the numbers of its lines.
    code_of : callable
        Label to the address and name of each place in the code.
    """
    margin = ""
    for label in labels:
        places = "".join(f'<a class="to-code" href="{href}">{escape(name)}</a>' for href, name in code_of(label))
        margin += f'<span id="{anchor(label)}"><a class="number" href="#{anchor(label)}">({label})</a>{places}</span>'
    formula = f'<div class="formula">{math(latex, block=True)}</div>'
    return f'<div class="equation">{formula}<div class="margin">{margin}</div></div>'


def typeset(page: str, code_of: CodeOf) -> str:
    """Replace every formula that arithmatex marked in a page's HTML by MathML."""

    def one(match: re.Match[str]) -> str:
        latex = unescape(match[2])
        block = match[1] == "div"
        labels = TAG.findall(latex)
        if block and labels:
            return equation_html(latex, labels, code_of)
        shown = math(latex, block=block)
        return f'<div class="formula">{shown}</div>' if block else shown

    return SPAN.sub(one, page)
