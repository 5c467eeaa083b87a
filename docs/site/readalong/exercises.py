"""Exercises: the source of a wrong version, without the words that would give the mistake away."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import tokenize
from textwrap import dedent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["plain_source", "replaced_step", "whole_source"]

SHAPES = re.compile(r"#\s*\([^()]*\)\s*$")


def whole_source(function: Callable[..., Any]) -> str:
    """Return the source of a function as it stands in its file, from its first decorator on."""
    return dedent(inspect.getsource(_inner(function))).rstrip()


def plain_source(function: Callable[..., Any], name: str = "attempt") -> str:
    """Return the source of a wrong version as an exercise.

    The function's own name becomes ``name``; its docstring and its comments are left out, shape comments excepted.

    Parameters
    ----------
    function : callable
        A function, a lambda, or a partial of one.
    name : str
        What the exercise calls it.
    """
    function = _inner(function)
    lines, _ = inspect.findsource(function)
    text = "".join(lines)
    node = _node(ast.parse(text), function.__code__)
    source = ast.get_source_segment(text, node, padded=True) or ""
    if isinstance(node, ast.Lambda):
        return f"{name} = {dedent(source).strip()}"
    source = dedent(source)
    return re.sub(rf"\b{re.escape(node.name)}\b", name, _bare(source)).strip()


def replaced_step(wrong: Any, source: Any, depth: int = 5) -> tuple[str, Callable[..., Any] | None]:
    """Find which step of a plain implementation a wrong version replaces.

    Implementations with replaceable steps hold them in a dataclass or NamedTuple; wrong versions are partials or
    closures over one in which a step is exchanged.

    Parameters
    ----------
    wrong : object
        The wrong version, or anything that it holds.
    source : callable
        The exchanged step.
    depth : int
        How far to follow what holds what.

    Returns
    -------
    name : str
        Of the step; empty if none is found.
    right : callable or None
        The step that stands there by default.
    """
    defaults = _defaults(wrong)
    for name, default in defaults.items():
        if getattr(wrong, name, None) is source:
            return name, default if inspect.isfunction(default) else None
    for held in _held(wrong) if depth else ():
        name, right = replaced_step(held, source, depth - 1)
        if name:
            return name, right
    return "", None


def _defaults(thing: Any) -> dict[str, Any]:
    """Return the default of every field of a dataclass or NamedTuple instance."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {f.name: f.default for f in dataclasses.fields(thing)}
    return dict.fromkeys(getattr(thing, "_fields", ())) | getattr(thing, "_field_defaults", {})


def _held(thing: Any) -> list[Any]:
    """Return what a partial, a closure or a wrapper holds."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    cells = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    return [cell for cell in cells if callable(cell) or _defaults(cell)]


def _inner(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


def _node(tree: ast.Module, code: Any) -> ast.FunctionDef | ast.Lambda:
    """Find a function's definition in its module by the line that its code begins on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if code.co_firstlineno in {node.lineno, *(d.lineno for d in node.decorator_list)}:
                return node
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            within = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
            first, last = (node.body.lineno, node.body.col_offset), (node.body.end_lineno, node.body.end_col_offset)
            if node.lineno == code.co_firstlineno and any(first <= place < last for place in within[1:]):
                return node
    raise OSError(f"no source for {code.co_qualname}")


def _bare(source: str) -> str:
    """Take the docstring and the comments out of a function."""
    node = ast.parse(source).body[0]
    gone: set[int] = set()
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None and len(node.body) > 1:
        gone.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not SHAPES.match(token.string):
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
            if not lines[row - 1]:
                gone.add(row)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in gone)
