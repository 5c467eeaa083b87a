"""Generated pages and the navigation: what follows from the sources and needs no hand."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from .docstrings import summary

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ROOMS", "api_pages", "code_pages", "dark", "expand_nav", "title_of"]

ROOMS = (
    "primitives", "layers", "interventions", "interpretability", "efficiency", "benchmarks", "transformer",
    "backends", "conformance", "theory",
)  # fmt: skip
NEUTRAL = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})\b")


def folder_of(root: Path, room: str) -> Path:
    """Return the folder of a room; the theory stands beside the package."""
    return root / room if room == "theory" else root / "refattn" / room


def modules(package: Path) -> list[Path]:
    """Return the modules of a package that hold code, those of its subpackages included."""
    found = sorted(package.rglob("*.py")) if package.is_dir() else []
    return [path for path in found if not path.name.startswith("_") and (path.parent / "__init__.py").is_file()]


def code_pages(root: Path, shown: set[str]) -> dict[str, str]:
    """Return a page for every module that no hand-written page shows: place under ``docs`` to Markdown."""
    pages = {}
    for room in ROOMS:
        for path in modules(folder_of(root, room)):
            place = path.relative_to(root).as_posix()
            if place not in shown:
                name = place.removeprefix("refattn/").removesuffix(".py")
                pages[f"code/{name}.md"] = f"# {name.replace('/', '.')}\n\n{{{{ code {place} }}}}\n"
    return pages


def api_pages(root: Path) -> dict[str, str]:
    """Return one page a room, with its public functions: place under ``docs`` to Markdown."""
    pages = {}
    for room in ROOMS:
        package = folder_of(root, room)
        public = [path for path in modules(package) if _exports(path)]
        if public:
            idea = _idea(package / "__init__.py")
            # found by the names on the pages of the code, which say more
            dotted = ".".join(package.relative_to(root).parts)
            parts = [f"---\nsearch:\n  exclude: true\n---\n\n# {dotted}\n\n{idea}\n"]
            for path in public:
                dotted = ".".join(path.relative_to(root).with_suffix("").parts)
                parts.append(f"\n## {dotted.removeprefix('refattn.')}\n\n::: {dotted}\n")
            pages[f"api/{room}.md"] = "".join(parts)
    return pages


def _exports(path: Path) -> bool:
    return "__all__" in path.read_text(encoding="utf-8")


def _idea(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ""
    return summary(text) if text else ""


def expand_nav(nav: list, pages: list[str], titles: dict[str, str]) -> list:
    """Replace entries such as ``mechanisms/`` by the pages in that folder, and drop pages that do not exist.

    Parameters
    ----------
    nav : list
        The navigation of ``mkdocs.yml``; an entry ending in ``/`` stands for the pages of a folder that have no entry
        of their own, one ending in ``?`` may be missing.
    pages : list of str
        The Markdown files there are.
    titles : dict of str to str
        Titles of pages that need one.
    """
    return _expanded(nav, [page for page in pages if page not in set(_named(nav))], pages, titles)


def _named(nav: list) -> list[str]:
    """Return the pages that have an entry of their own."""
    inner = [next(iter(item.values())) if isinstance(item, dict) else item for item in nav]
    return [name for item in inner for name in (_named(item) if isinstance(item, list) else [item.removesuffix("?")])]


def _expanded(nav: list, free: list[str], pages: list[str], titles: dict[str, str]) -> list:
    result = []
    for item in nav:
        name, inner = next(iter(item.items())) if isinstance(item, dict) else ("", item)
        if isinstance(inner, list):
            filled = _expanded(inner, free, pages, titles)
            result += [{name: filled}] if filled else []
        elif inner.endswith("/"):
            result += _folder(inner, free, titles)
        elif not inner.endswith("?") or inner.removesuffix("?") in pages:
            place = inner.removesuffix("?")
            result.append({name: place} if name else place)
    return result


def _folder(folder: str, pages: list[str], titles: dict[str, str]) -> list:
    """Return the pages of a folder, those of a subfolder under its name."""
    inside = sorted((page for page in pages if page.startswith(folder)), key=lambda page: _order(page, titles))
    flat = [{titles[page]: page} if page in titles else page for page in inside if "/" not in page[len(folder) :]]
    groups = dict.fromkeys(page[len(folder) :].split("/")[0] for page in inside if "/" in page[len(folder) :])
    return flat + [{name: _folder(f"{folder}{name}/", inside, titles)} for name in groups]


def _order(page: str, titles: dict[str, str]) -> tuple[int, str]:
    places = [index for index, room in enumerate(ROOMS) if f"/{room}" in page]
    return (places[0] if places else 0, titles.get(page, page).lower())


def title_of(markdown: str) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+?)\s*(\{.*\})?$", markdown, re.MULTILINE)
    return found[1].strip() if found else ""


def dark(svg: str) -> str:
    """Return a drawing for a dark ground: greys, black and white change places, colours stay."""

    def invert(match: re.Match[str]) -> str:
        red, green, blue = (int(part, 16) for part in match.groups())
        if max(red, green, blue) - min(red, green, blue) > 12:
            return match[0]
        light = 255 - (red + green + blue) // 3
        return f"#{min(235, light):02x}" + f"{min(235, light):02x}" * 2

    return NEUTRAL.sub(invert, svg).replace("<svg ", '<svg fill="#ebebeb" ', 1)
