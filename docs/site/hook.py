"""The hook of ``mkdocs.yml``: writes the generated pages, expands the directives, turns formulas into MathML.

Everything that a page needs is made here while the site is built; the pages themselves run no script for it.
"""

from __future__ import annotations

import logging
import re
import sys
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File
from readalong.catalogue import Catalogue, address, relative
from readalong.directives import Directives, MissingError
from readalong.formulas import BadFormulaError, anchor, typeset
from readalong.labels import define, refer
from readalong.pages import api_pages, code_pages, dark, expand_nav, title_of

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.readalong")
state: dict[str, Any] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Watch the sources too, while the site is served."""
    root = Path(config.config_file_path).parent
    sys.path[:0] = [str(root)] if str(root) not in sys.path else []
    config.watch.extend(str(root / folder) for folder in ("refattn", "theory", "examples", "docs/site"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that follow from the sources, read all labels, and settle the navigation."""
    root = Path(config.config_file_path).parent
    written = {f.src_uri: f.content_string for f in files.documentation_pages()}
    catalogue = Catalogue(root, dict(written))
    shown = {path for page in written for path, name in catalogue.shown(page) if not name}
    generated = code_pages(root, shown)
    catalogue.pages |= generated
    generated |= api_pages(root)
    for place, text in generated.items():
        files.append(File.generated(config, place, content=text))
    for picture in sorted((root / "docs" / "figures").glob("*.svg")):
        text = dark(picture.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"figures/{picture.stem}.dark.svg", content=text))
    titles = {place: title_of(text).removeprefix("refattn.").rpartition(".")[2] for place, text in generated.items()}
    config.nav = expand_nav(config.nav or [], [*written, *generated], titles)
    state["catalogue"] = catalogue
    state["directives"] = Directives(catalogue, contract_of, log.warning, experiments_of)
    for label, places in catalogue.code.items():
        if label not in catalogue.equations:
            log.warning("equation %s is marked in the code (%s) but stated on no page", label, places[0][1])
    return files


def contract_of(slug: str) -> Any:
    """Return the contract of a mechanism.

    Raises
    ------
    MissingError
        If there is none.
    """
    from refattn.conformance.registry import find_contracts

    contract = find_contracts().get(slug)
    if contract is None:
        raise MissingError(f"no contract refattn/contracts/{slug}.py with a CONTRACT of that slug")
    return contract


def experiments_of(slug: str) -> list[Any]:
    """Return the experiments of a theory.

    Raises
    ------
    MissingError
        If there are none.
    """
    from theory.experiment import experiments

    found = [experiment for experiment in experiments().values() if experiment.family == slug]
    if not found:
        raise MissingError(f"no EXPERIMENTS in theory/{slug}/experiments.py")
    return found


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Expand the directives."""
    return str(state["directives"].expand(markdown, page.file.src_uri))


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Typeset the formulas, put the code in its place, and link equations and code to each other."""
    catalogue, here = state["catalogue"], page.file.src_uri

    def code_of(label: str) -> list[tuple[str, str]]:
        return list(catalogue.code_of(label, here))

    def stated(label: str) -> str | None:
        place = relative(f"{address(catalogue.equations[label][0])}#{anchor(label)}", address(here))
        return place if label in known else None

    known = set(catalogue.equations)
    in_words = [label for label, (there, latex) in catalogue.equations.items() if there == here and not latex]
    try:
        html, defined = define(html, in_words, code_of)
        html = typeset(state["directives"].fill(html), code_of)
    except BadFormulaError as problem:
        log.warning("%s: %s", here, problem)
        return html
    html, _ = define(html, [label for label in in_words if label not in defined], code_of)
    return refer(html, stated, known) if here in catalogue.pages else html


def on_post_build(config: MkDocsConfig) -> None:
    """Make the search work from ``file://`` and look after every link within the site."""
    site = Path(config.site_dir)
    index = site / "search" / "search_index.json"
    if index.is_file():
        (site / "search" / "search_index.js").write_text(
            f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8"
        )
    for problem in dead_links(site):
        log.warning(problem)


def dead_links(site: Path) -> list[str]:
    """Return a sentence for every link of the built site that leads to no page or no anchor of it."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in pages.items()}
    problems = []
    for path, text in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the root of a server
        for href in sorted(set(re.findall(r'<a\b[^>]*?\shref="([^"]*)"', text))):
            place, _, fragment = unescape(href).partition("#")
            if re.match(r"[a-z]+:", place):
                continue
            target = (path.parent / place).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{path.relative_to(site)}: dead link {href}")
            elif fragment and target in ids and fragment not in ids[target] and fragment != "__skip":
                problems.append(f"{path.relative_to(site)}: no anchor {href}")
    return problems
