"""Directives: what the pages ask for in double braces, written out.

``code``, ``figure``, ``laws``, ``bugs``, ``claims``, ``errors``, ``entries`` and ``experiments`` each become Markdown,
in which pieces of finished HTML stand as slots until the page itself is HTML.
"""

from __future__ import annotations

import ast
import json
import math
import re
from html import escape
from inspect import cleandoc
from itertools import count, groupby
from typing import TYPE_CHECKING, Any

from .accuracy import COLUMNS, accuracy
from .catalogue import DIRECTIVE, Catalogue, address, relative, stem_of
from .docstrings import prose_html, summary
from .exercises import plain_source, replaced_step, whole_source
from .renderer import code_html, highlighted, section_html

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Bug, Contract, Entry
    from theory.experiment import Experiment

__all__ = ["Directives", "MissingError"]

SLOT = re.compile(r'<div class="slot" data-slot="(\d+)"></div>')
VERDICTS = {"reproduced": "✓", "not reproduced": "✗", "not comparable": "○"}


class MissingError(LookupError):
    """Something that a page asks for does not exist."""


class Directives:
    """The directives of all pages.

    Parameters
    ----------
    catalogue : Catalogue
        What the pages show.
    contracts : callable
        Slug to contract; raises ``MissingError``.
    report : callable
        Takes a sentence about something that is missing or wrong; strict builds fail on it.
    experiments : callable
        Slug of a theory to its experiments; raises ``MissingError``.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        contracts: Callable[[str], Contract],
        report: Callable[[str], None],
        experiments: Callable[[str], list[Experiment]],
    ) -> None:
        self.catalogue = catalogue
        self.contract = contracts
        self.report = report
        self.experiments = experiments
        self._writers: dict[str, Callable[[str, str], str]] = {
            "code": self._code,
            "figure": self._figure,
            "entries": self._entries,
            "laws": self._laws,
            "bugs": self._bugs,
            "claims": self._claims,
            "errors": self._errors,
            "experiments": self._experiments,
        }
        self._slots: dict[int, str] = {}
        self._numbers = count(1)

    def expand(self, markdown: str, page: str) -> str:
        """Replace every directive of a page's Markdown."""

        def unknown(subject: str, _page: str) -> str:
            raise MissingError(f"what stands before {subject} is not a directive")

        def one(match: re.Match[str]) -> str:
            kind, subject = match.groups()
            try:
                return self._writers.get(kind, unknown)(subject, page)
            except MissingError as problem:
                self.report(f"{page}: {problem}")
                return f'!!! failure "Missing"\n    {problem}\n'

        return DIRECTIVE.sub(one, markdown)

    def fill(self, html: str) -> str:
        """Put the finished pieces into the slots of a page's HTML."""
        return SLOT.sub(lambda match: self._slots.pop(int(match[1])), html)

    def _slot(self, html: str) -> str:
        number = next(self._numbers)
        self._slots[number] = html
        return f'\n<div class="slot" data-slot="{number}"></div>\n'

    # the code of a module

    def _code(self, subject: str, page: str) -> str:
        path, _, name = subject.partition("::")
        if not (self.catalogue.root / path).is_file():
            raise MissingError(f"no file {path}")
        module = self.catalogue.module(path)
        sections = [section for section in module.sections if not name or section.name == name]
        if not sections:
            raise MissingError(f"{path} defines no {name}")
        stem, links = stem_of(path), self.catalogue.links(path, page)
        switch = (
            f'<div class="file"><code>{escape(path)}</code><label><input type="checkbox" class="blanks"> '
            "leave the numbered lines blank</label></div>"
        )
        parts = ['\n<div class="module" markdown>\n', self._slot(switch)]
        for section in sections:
            if section.public:
                parts.append(f"\n### `{section.name}` {{ #{stem}.{section.name}.heading .definition }}\n")
            parts.append(self._slot(section_html(section, module.source, links)))
        return "".join([*parts, "\n</div>\n"])

    # the figure

    def _figure(self, slug: str, page: str) -> str:
        path = self.catalogue.root / "docs" / "figures" / f"{slug}.svg"
        text, command = self._drawn_by(slug)
        if not path.is_file():
            raise MissingError(f"no figure docs/figures/{slug}.svg: run {command}")
        first, _, rest = text.partition("\n\n")  # what the function does, and what the reader sees
        words, plain, here = prose_html(rest or first), " ".join((rest or first).split()), address(page)
        pictures = "".join(
            f'<img class="{mode}" src="{relative(f"figures/{slug}{suffix}.svg", here)}" alt="{escape(plain)}">'
            for mode, suffix in (("light", ""), ("dark", ".dark"))
        )
        drawn = f'<p class="source">drawn by <code>{command}</code></p>'
        return self._slot(f'<figure class="picture">{pictures}<figcaption>{words}{drawn}</figcaption></figure>')

    def _drawn_by(self, slug: str) -> tuple[str, str]:
        """Return what is said of a figure where it is drawn, and the command that draws it."""
        name, _, part = slug.partition("-")
        if name == "theory":
            theory, _, figure = part.partition("-")
            known = {experiment.name: experiment for experiment in self.experiments(theory)}
            if f"{theory}/{figure}" not in known:
                raise MissingError(f"no experiment {theory}/{figure}")
            experiment = known[f"{theory}/{figure}"]
            seen = cleandoc(experiment.draw.__doc__ or "").partition("\n\n")[2]
            return seen or experiment.title, f"python -m theory plot {experiment.name}"
        example = self.catalogue.root / "examples" / f"{name}.py"
        text = _docstring_of(example, f"{part}_figure" if part else "figure") if example.is_file() else slug
        return text, f"python examples/{name}.py"

    # the functions and conventions of a mechanism

    def _entries(self, slug: str, page: str) -> str:
        contract = self.contract(slug)
        rows = ["| function | idea |", "| --- | --- |"]
        rows += [
            f"| {self._entry_link(entry, page)} | {_cell(summary(entry.reference.__doc__ or ''))} |"
            for entry in contract.entries
        ]
        if contract.conventions:
            rows += ["", "A backend may differ from the reference and say so in `CONVENTIONS`:", ""]
            rows += ["| convention | choices, the reference's own first |", "| --- | --- |"]
            for convention in contract.conventions:
                choices = "<br>".join(f"`{value}`: {_cell(words)}" for value, words in convention.choices.items())
                rows.append(f"| `{convention.name}` | {choices} |")
        return "\n" + "\n".join(rows) + "\n"

    def _entry_link(self, entry: Entry, page: str) -> str:
        path = entry.reference.__module__.replace(".", "/") + ".py"
        owner = self.catalogue.owners.get((path, entry.reference.__name__))
        if owner is None:
            return f"`{entry.name}`"
        place = relative(f"{address(owner)}#{stem_of(path)}.{entry.reference.__name__}", address(page))
        return f'<a href="{place}"><code>{entry.name}</code></a>'

    # its laws

    def _laws(self, slug: str, _page: str) -> str:
        contract = self.contract(slug)
        parts = []
        for entry in contract.entries:
            if not entry.laws:
                continue
            items = "".join(self._law(slug, entry, law) for law in entry.laws)
            parts.append(f'<p class="title"><code>{entry.name}</code></p><ol class="laws">{items}</ol>')
        if not parts:
            raise MissingError(f"the contract of {slug} states no laws")
        command = f'<p class="source">tried on every backend by <code>refattn check --only {slug}</code></p>'
        return self._slot("".join(parts) + command)

    def _law(self, slug: str, entry: Entry, law: Any) -> str:
        ident = f"law.{entry.name}.{law.name}"
        code = code_html(highlighted(whole_source(law.holds)))
        needs = f" It calls {', '.join(f'<code>{name}</code>' for name in law.needs)}." if law.needs else ""
        witness = f" Its witness is the planted bug <code>{law.witness}</code>." if law.witness else ""
        return (
            f'<li id="{ident}"><details><summary>{_inline(law.sentence)} '
            f'<a class="permalink" href="#{ident}" title="{slug}: {law.name}">#</a></summary>'
            f"<p><code>{law.name}</code>.{needs}{witness}</p>{code}</details></li>"
        )

    # wrong versions as exercises

    def _bugs(self, slug: str, _page: str) -> str:
        contract = self.contract(slug)
        groups = [(entry, entry.bugs) for entry in contract.entries if entry.bugs]
        if not groups:
            raise MissingError(f"the contract of {slug} plants no bugs")
        numbers = count(1)
        parts = []
        for entry, bugs in groups:
            exercises = "".join(self._exercise(entry, bug, next(numbers)) for bug in bugs)
            noun = "wrong version" if len(bugs) == 1 else "wrong versions"
            opened = " open" if len(groups) == 1 and len(bugs) <= 12 else ""
            parts.append(
                f'<details class="exercises"{opened}><summary><code>{entry.name}</code>: {len(bugs)} {noun}</summary>'
                f'<div class="sheet">{exercises}</div></details>'
            )
        # the search plugin leaves out an element up to the next end of its own tag: nothing in here may be a section
        return self._slot(f"<section data-search-exclude>{''.join(parts)}</section>")

    def _exercise(self, entry: Entry, bug: Bug, number: int) -> str:
        wrong = bug.source or bug.wrong
        step, right = replaced_step(bug.wrong, wrong)
        try:
            source = plain_source(wrong, step or "attempt")
        except (OSError, TypeError) as problem:
            self.report(f"bug {bug.name} of {entry.name} has no source to show: {problem}")
            source = ""
        seen = "" if len(bug.dtypes) == 4 else f" It can be seen in {', '.join(bug.dtypes)} only."
        remedy = f"<p>{_inline(bug.remedy)}</p>" if bug.remedy else ""
        mended = f'<p class="title">right</p>{code_html(highlighted(plain_source(right, step)))}' if right else ""
        place = f" · <code>{step}</code>" if step else ""
        return (
            f'<div class="exercise" id="bug.{entry.name}.{bug.name}"><p class="title">Exercise {number}{place}</p>'
            f"{code_html(highlighted(source))}<details><summary>What is wrong?</summary><p><code>{bug.name}</code>: "
            f"{_inline(bug.description.rstrip('.'))}.{seen}</p>{remedy}{mended}</details></div>"
        )

    # claims of the paper

    def _claims(self, slug: str, _page: str) -> str:
        path = self.catalogue.root / "docs" / "claims.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if slug not in found:
            raise MissingError(f"docs/claims.json has no claims of {slug}: run python examples/run_all.py")
        rows = ""
        for claim in found[slug]["claims"]:
            sign = f'<span class="verdict" title="{claim["verdict"]}">{VERDICTS[claim["verdict"]]}</span>'
            cells = "".join(f"<td>{_inline(claim[part])}</td>" for part in ("statement", "paper", "ours"))
            rows += f"<tr><td>{sign}</td>{cells}</tr>"
        legend = ", ".join(f"{sign} {verdict}" for verdict, sign in VERDICTS.items())
        return self._slot(
            '<div class="claims"><table><thead><tr><th></th><th>claim</th><th>paper</th><th>ours</th></tr></thead>'
            f'<tbody>{rows}</tbody></table><p class="source">{legend}. '
            f"Printed by <code>{found[slug]['command']}</code>.</p></div>"
        )

    # what rounding does

    def _errors(self, slug: str, _page: str) -> str:
        rows = accuracy(self.contract(slug), self.catalogue.root / "build")
        if not rows:
            raise MissingError(f"no error table for {slug}")
        heads = "".join(f'<th title="{escape(words)}">{name}</th>' for name, words in COLUMNS)
        body = ""
        for (entry, output, scenario), group in groupby(
            rows, lambda row: (row["entry"], row["output"], row["scenario"])
        ):
            head = f"<code>{entry}</code> · {output} · {scenario}"
            body += f'<tr class="entry"><th colspan="{len(COLUMNS) + 1}">{head}</th></tr>'
            for row in group:
                precision = "" if row["precision"] == row["dtype"] else f" <small>{row['precision']}</small>"
                cells = "".join(f"<td>{_number(row[name])}</td>" for name, _ in COLUMNS)
                body += f"<tr><td><code>{row['dtype']}</code>{precision}</td>{cells}</tr>"
        legend = "".join(f"<li><b>{name}</b>: {words}</li>" for name, words in COLUMNS)
        command = f"<code>python -m readalong.accuracy {slug}</code> in <code>docs/site</code>"
        source = f"Medians over rows, measured while this page was built; printed by {command}."
        return self._slot(
            f'<section class="errors" data-search-exclude><table><thead><tr><th>dtype</th>{heads}</tr></thead>'
            f'<tbody>{body}</tbody></table><ul>{legend}</ul><p class="source">{source}</p></section>'
        )

    # the experiments of a theory

    def _experiments(self, slug: str, _page: str) -> str:
        path = self.catalogue.root / "docs" / "theory-checks.json"
        filed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return self._slot("".join(self._experiment(e, filed.get(e.name)) for e in self.experiments(slug)))

    def _experiment(self, experiment: Experiment, filed: dict[str, Any] | None) -> str:
        from theory.parameters import defaults_of

        ident = f"experiment.{experiment.name.replace('/', '.')}"
        defaults = "".join(
            f"<tr><td><code>{name}</code></td><td><code>{escape(text)}</code></td></tr>"
            for name, text in defaults_of(experiment).items()
        )
        parameters = (
            "<details><summary>parameters</summary><table><thead><tr><th>parameter</th><th>default</th></tr></thead>"
            f"<tbody>{defaults}</tbody></table></details>"
        )
        return (
            f'<div class="experiment" id="{ident}"><p class="title">{_inline(experiment.title)} '
            f'<a class="permalink" href="#{ident}" title="{experiment.name}">#</a></p>'
            f"<p><code>python -m theory run {experiment.name}</code></p>"
            f"{parameters if defaults else ''}{_checks_table(filed) if filed else ''}</div>"
        )


def _checks_table(filed: dict[str, Any]) -> str:
    """Return what ``python -m theory check --write-docs`` filed of one experiment as a table."""
    from theory.report import check_cells, filed_check

    heads = ("", "prediction", "measured", "predicted", "standard error", "distance or bound")
    rows = ""
    for check in map(filed_check, filed["checks"]):
        name, *numbers, _ = check_cells(check)
        sign = f'<span class="verdict" title="{check.verdict}">{"✓" if check.holds else "✗"}</span>'
        cells = "".join(f"<td>{escape(text)}</td>" for text in numbers)
        rows += f"<tr><td>{sign}</td><td>{_inline(name)}</td>{cells}</tr>"
    stopped = f"<p>It stopped: {escape(filed['error'])}</p>" if filed["error"] else ""
    return (
        f'{stopped}<div class="checks"><table><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
        f'<tbody>{rows}</tbody></table><p class="source">Printed by <code>{filed["command"]}</code>.</p></div>'
    )


def _docstring_of(path: Any, function: str) -> str:
    """Return the docstring of a function in a script, without running the script."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node) or ""
    return ""


def _inline(text: str) -> str:
    return prose_html(text).removeprefix("<p>").removesuffix("</p>")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10<sup>{int(exponent)}</sup>".replace("-", "−")
