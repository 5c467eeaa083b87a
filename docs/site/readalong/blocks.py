"""Blocks: a Python module cut into prose and the code that it speaks of.

The module's syntax tree says where functions, classes and docstrings are, its tokens where comments stand alone on
their lines. Each docstring and each run of comment lines begins a block; the code up to the next one belongs to it.
A comment line ``# eq: R18`` says that the lines below it compute equation R18.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

__all__ = ["Block", "Section", "labels_of", "read_module"]

EQUATION = re.compile(r"^eq:\s*(.+)$")
MACHINE = re.compile(r"^#\s*(noqa|type:|fmt:|pragma:|ruff:)")
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Block:
    """Some prose and the lines of code beside it.

    Attributes
    ----------
    id : str
        The permalink, made of names: module, function, and equation or first words.
    prose : str
        A docstring or the words of a comment.
    labels : tuple of str
        The equations that the code computes.
    lines : tuple of int
        Numbers of the lines of code, from 1.
    kind : str
        ``docstring``, ``comment``, ``plain``, or what the block folds: ``imports``, ``overloads``.
    """

    id: str
    prose: str
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Section:
    """One definition at the top level of a module, or the statements between two, in blocks."""

    name: str
    public: bool
    blocks: tuple[Block, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class _Cut:
    line: int
    prose: str
    labels: tuple[str, ...]
    kind: str
    owner: str


def labels_of(text: str) -> tuple[str, ...]:
    """Split the labels of an ``eq:`` comment: ``R6, R10 R11``."""
    return tuple(label for label in re.split(r"[,;\s]+", text.strip()) if label)


def read_module(source: str, stem: str) -> list[Section]:
    """Cut a module into sections of blocks.

    Parameters
    ----------
    source : str
        The text of the module.
    stem : str
        The first part of every permalink, such as ``rat``.

    Returns
    -------
    list of Section
        The first holds the module's docstring and imports and is called ``""``.
    """
    tree = ast.parse(source)
    silent: set[int] = set()  # lines that the prose shows: they are not repeated as code
    cuts = _comment_cuts(source, silent) + _docstring_cuts(tree, silent)
    lines = source.splitlines()
    exported = _exported(tree)
    spans = _spans(tree, lines, {cut.line for cut in cuts if cut.kind == "comment"}, silent)
    names: Counter[str] = Counter()
    sections = []
    for name, kind, start, stop in spans:
        visible = [n for n in range(start, stop) if n not in silent]
        inside = sorted((c for c in cuts if start <= c.line < stop), key=lambda c: c.line)
        blocks = [_named(b, names) for b in _blocks(stem, name, kind, inside, start, visible, lines)]
        public = name in exported if exported else not name.startswith("_")
        sections.append(Section(name, public and kind == "definition", tuple(blocks)))
    return sections


def _comment_cuts(source: str, silent: set[int]) -> list[_Cut]:
    """Find the runs of lines that hold nothing but a comment."""
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.strip() == token.string and not MACHINE.match(token.string):
            alone[token.start[0]] = token.string[1:].removeprefix(" ")
    cuts = []
    for first in (n for n in alone if n - 1 not in alone):
        run = []
        while first + len(run) in alone:
            run.append(alone[first + len(run)])
        silent.update(range(first, first + len(run)))
        marked = [EQUATION.match(line) for line in run]
        prose = "\n".join(line for line, mark in zip(run, marked, strict=True) if not mark)
        labels = tuple(label for mark in marked if mark for label in labels_of(mark[1]))
        cuts.append(_Cut(first, prose, labels, "comment", ""))
    return cuts


def _docstring_cuts(tree: ast.Module, silent: set[int]) -> list[_Cut]:
    """Find every docstring, those below constants too; a block begins where its definition or its decorators do."""
    cuts = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, *DEFINITION)):
            continue
        text = ast.get_docstring(node) or ""
        if not isinstance(node, ast.Module):
            cuts.append(_Cut(_first_line(node), text, (), "docstring", node.name))
        elif text:
            cuts.append(_Cut(1, text, (), "docstring", ""))
        if text:
            silent.update(_lines(node.body[0]))
    for constant, words in pairwise(tree.body):
        if _target(constant) and _is_string(words):
            cuts.append(_Cut(constant.lineno, inspect.cleandoc(words.value.value), (), "docstring", _target(constant)))
            silent.update(_lines(words))
    return cuts


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _spans(tree: ast.Module, lines: list[str], comments: set[int], silent: set[int]) -> list[tuple[str, str, int, int]]:
    """List the top level as (name, kind, first line, line after the last), leading comments included."""
    spans: list[tuple[str, str, int, int]] = [("", "imports", 1, 2)]
    for node in tree.body:
        first, stop = _first_line(node), _lines(node).stop
        while first > 1 and first - 1 in silent and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        name, kind = _role(node)
        last_name, last_kind, last_first, _ = spans[-1]
        follows = kind == last_kind and kind != "definition" and not (kind == "plain" and first in comments)
        if follows or (kind == "imports" and _is_string(node) and last_kind == "plain"):
            spans[-1] = (last_name, last_kind, last_first, stop)
        else:
            spans.append((name, kind, first, stop))
    return spans


def _role(node: ast.stmt) -> tuple[str, str]:
    """Return the name of a statement and what becomes of it: shown, or folded with its neighbours."""
    if isinstance(node, DEFINITION):
        decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
        return (node.name, "overloads") if "overload" in decorators else (node.name, "definition")
    target = _target(node)
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.If, ast.Expr)) or target == "__all__":
        return "", "imports"
    return target, "plain"


def _target(node: ast.stmt) -> str:
    """Return the name that an assignment gives a value, or nothing."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _exported(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and _target(node) == "__all__" and isinstance(node.value, ast.List):
            return set(ast.literal_eval(node.value))
    return set()


def _blocks(
    stem: str, name: str, kind: str, cuts: list[_Cut], start: int, visible: list[int], lines: list[str]
) -> list[Block]:
    """Cut one span at its comments and docstrings; a comment right above a definition joins its docstring."""
    cuts = _joined(cuts, lines)
    if not cuts or cuts[0].line > start:
        cuts = [_Cut(start, "", (), "plain", ""), *cuts]
    blocks = []
    for cut, after in zip(cuts, [*cuts[1:], None], strict=True):
        stop = after.line if after else (visible[-1] + 1 if visible else start)
        body = _trimmed([n for n in visible if cut.line <= n < stop], lines)
        base = f"{stem}.{name}" if name else stem
        if kind in ("imports", "overloads"):
            ident, role = (f"{base}.overloads" if name else f"{stem}.py"), kind
        elif cut.kind == "docstring":
            ident, role = (base if cut.owner == name else f"{base}.{cut.owner}"), "docstring"
        elif not blocks:
            ident, role = base, cut.kind
        elif cut.labels:
            ident, role = f"{base}.{cut.labels[0]}", "comment"
        else:
            ident, role = ".".join([base, *_words(cut.prose)]), cut.kind
        if body or cut.prose or cut.labels:
            blocks.append(Block(ident, cut.prose, cut.labels, tuple(body), role))
    return blocks


def _joined(cuts: list[_Cut], lines: list[str]) -> list[_Cut]:
    result: list[_Cut] = []
    for cut in cuts:
        last = result[-1] if result else None
        between = lines[last.line - 1 : cut.line - 1] if last else []
        if last and last.kind == "comment" and all(line.lstrip().startswith("#") for line in between):
            prose = "\n\n".join(text for text in (last.prose, cut.prose) if text)
            result[-1] = replace(cut, line=last.line, prose=prose, labels=last.labels + cut.labels)
        else:
            result.append(cut)
    return result


def _trimmed(numbers: list[int], lines: list[str]) -> list[int]:
    """Leave out blank lines at both ends."""
    while numbers and not lines[numbers[0] - 1].strip():
        numbers = numbers[1:]
    while numbers and not lines[numbers[-1] - 1].strip():
        numbers = numbers[:-1]
    return numbers


def _words(prose: str) -> list[str]:
    """Return the first words of a comment as one part of a permalink."""
    words = re.findall(r"[A-Za-z0-9]+", prose)[:4]
    return ["-".join(words).lower()] if words else []


def _named(block: Block, names: Counter[str]) -> Block:
    """Tell apart blocks of one name by a number: ``name-2``."""
    names[block.id] += 1
    count = names[block.id]
    return block if count == 1 else replace(block, id=f"{block.id}-{count}")
