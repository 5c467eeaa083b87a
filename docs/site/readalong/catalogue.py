"""The catalogue: which page shows which module, where each equation is stated and which lines compute it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from .blocks import Block, Section, read_module
from .formulas import anchor, prose_of, tags
from .renderer import Links

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DIRECTIVE", "Catalogue", "Module", "relative", "stem_of"]

DIRECTIVE = re.compile(r"^\{\{\s*(\w+)\s+(\S+?)\s*\}\}[ ]*$", re.MULTILINE)
REFERENCES = (
    "primitives", "layers", "interventions", "interpretability", "efficiency", "benchmarks", "transformer",
)  # fmt: skip


def stem_of(path: str) -> str:
    """Return the first part of a module's permalinks: its name, after its package outside the references."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return parts[-1] if len(parts) < 2 or parts[-2] in REFERENCES else f"{parts[-2]}.{parts[-1]}"


def relative(target: str, page: str) -> str:
    """Return the address of ``target`` (``a/b.html#c``) as seen from the page at ``page``."""
    place, _, fragment = target.partition("#")
    if place == page:
        return f"#{fragment}"
    up = page.split("/")[:-1]
    down = place.split("/")
    while up and len(down) > 1 and up[0] == down[0]:
        up, down = up[1:], down[1:]
    return "/".join([".."] * len(up) + down) + (f"#{fragment}" if fragment else "")


def address(page: str) -> str:
    """Return where mkdocs puts the page of a Markdown file."""
    return page.removesuffix(".md") + ".html"


@dataclass(frozen=True)
class Module:
    """A module of the project, cut into blocks.

    Attributes
    ----------
    path : str
        From the root of the repository, with slashes.
    source : str
        Its text.
    """

    path: str
    source: str

    @cached_property
    def sections(self) -> list[Section]:
        """Its definitions in order."""
        return read_module(self.source, stem_of(self.path))

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Names that it imports from the project: name to module path and name there."""
        found = {}
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    path = node.module.replace(".", "/") + ".py"
                    found[alias.asname or alias.name] = (path, alias.name)
        return found

    def blocks(self, name: str = "") -> list[Block]:
        """Return the blocks of one definition, or all."""
        return [block for section in self.sections if not name or section.name == name for block in section.blocks]


@dataclass
class Catalogue:
    """What the pages show.

    Attributes
    ----------
    root : Path
        The repository.
    pages : dict of str to str
        Markdown of the pages that may hold directives, by their place under ``docs``.
    """

    root: Path
    pages: dict[str, str] = field(default_factory=dict)
    _modules: dict[str, Module] = field(default_factory=dict)

    def module(self, path: str) -> Module:
        """Return a module by its path.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        if path not in self._modules:
            self._modules[path] = Module(path, (self.root / path).read_text(encoding="utf-8"))
        return self._modules[path]

    def shown(self, page: str) -> list[tuple[str, str]]:
        """List what a page shows: module path and name of a definition, or ``""`` for the whole module."""
        code = [subject for kind, subject in DIRECTIVE.findall(self.pages[page]) if kind == "code"]
        pairs = [subject.partition("::")[::2] for subject in code]
        return [(path, name) for path, name in pairs if (self.root / path).is_file()]

    @cached_property
    def owners(self) -> dict[tuple[str, str], str]:
        """The page that shows each definition: a page that shows its whole module, if there is one."""
        found: dict[tuple[str, str], str] = {}
        for whole in (True, False):
            for page in self.pages:
                for path, name in self.shown(page):
                    if whole == (not name):
                        for section in self.module(path).sections:
                            if not name or section.name == name:
                                found.setdefault((path, section.name), page)
        return found

    @cached_property
    def code(self) -> dict[str, list[tuple[str, str, str]]]:
        """Where each equation is computed: label to page, block id and name of the definition."""
        found: dict[str, list[tuple[str, str, str]]] = {}
        for (path, name), page in self.owners.items():
            for block in self.module(path).blocks(name) if name else self.module(path).sections[0].blocks:
                for label in block.labels:
                    found.setdefault(label, []).append((page, block.id, name))
        return found

    @cached_property
    def equations(self) -> dict[str, tuple[str, str]]:
        r"""Where each equation is stated: label to page and LaTeX (empty if it is stated in words).

        A ``\tag`` states an equation; a label that no page tags is stated where it is first named, on the page of
        its code before others, and if no prose names it, in the docstrings that a page shows.
        """
        found: dict[str, tuple[str, str]] = {}
        for page, markdown in self.pages.items():
            for label, latex in tags(markdown).items():
                found.setdefault(label, (page, latex))
        for label, places in self.code.items():
            home = [page for page, _, _ in places]
            for page in [*home, *self.pages]:
                if label not in found and named(label, prose_of(DIRECTIVE.sub("", self.pages[page]))):
                    found[label] = (page, "")
            for page in home:
                if label not in found and any(
                    named(label, b.prose) for p, n in self.shown(page) for b in self.module(p).blocks(n)
                ):
                    found[label] = (page, "")
        return found

    def words(self, label: str) -> str:
        """Return the sentence that states a rule which has no formula: what follows its label in bold."""
        page, latex = self.equations.get(label, ("", ""))
        bold = re.search(
            rf"\*\*\(?{re.escape(label)}\)?[.:]?\*\*[.:]?\s+(.+?[.:;])(?:\s|$)", self.pages.get(page, ""), re.DOTALL
        )
        return bold[1].rstrip(":;") if bold and not latex else ""

    def code_of(self, label: str, page: str) -> list[tuple[str, str]]:
        """Return address and name of the code of an equation, the first place in each definition, seen from a page."""
        here = address(page)
        found: dict[str, str] = {}
        for there, ident, name in self.code.get(label, []):
            found.setdefault(name or ident, relative(f"{address(there)}#{ident}", here))
        return [(place, name) for name, place in found.items()]

    def links(self, path: str, page: str) -> Links:
        """Return what the code of a module links to, seen from a page."""
        here = address(page)

        def equation(label: str) -> str | None:
            stated = self.equations.get(label)
            return relative(f"{address(stated[0])}#{anchor(label)}", here) if stated else None

        module = self.module(path)
        names = {section.name: (path, section.name) for section in module.sections if section.name} | module.imports
        definition = {}
        for name, (where, original) in names.items():
            owner = self.owners.get((where, original))
            if owner:
                definition[name] = relative(f"{address(owner)}#{stem_of(where)}.{original}", here)
        return Links(equation, lambda label: self.equations.get(label, ("", ""))[1], self.words, definition)


def named(label: str, text: str) -> bool:
    """Whether a text names an equation by its label."""
    return re.search(rf"(?<![\w-]){re.escape(label)}(?![\w-])", text) is not None
