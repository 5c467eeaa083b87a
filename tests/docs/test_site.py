"""The read-along site: how modules are cut, how formulas are set, and what the built pages hold together."""

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
from html import unescape
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
for requirement in ("latex2mathml", "markdown", "pygments", "pymdownx"):
    pytest.importorskip(requirement, reason="the extra 'docs' is not installed")
sys.path.insert(0, str(ROOT / "docs" / "site"))

from markdown import Markdown  # noqa: E402
from readalong import exercises, labels, pages  # noqa: E402
from readalong.blocks import read_module  # noqa: E402
from readalong.catalogue import Catalogue, relative, stem_of  # noqa: E402
from readalong.directives import Directives, MissingError  # noqa: E402
from readalong.docstrings import docstring_html, prose_html, sections, summary  # noqa: E402
from readalong.formulas import BadFormulaError, math, tags, typeset  # noqa: E402
from toy.walks import WALK  # noqa: E402

from theory.report import Outcome, outcome_json  # noqa: E402
from theory.verdict import below, within_noise  # noqa: E402

MODULE = '''"""An idea.

More of it.
"""

import os
from refattn.primitives.softmax import softmax

__all__ = ["mix"]

LIMIT = 3
"""How many there may be."""

# counts all of them
TOTAL = 0


class Pair:
    """Two of them."""

    left: int

    def swap(self):
        """Turn round."""
        return self


def mix(q, k):
    """Mix them.

    Parameters
    ----------
    q : ndarray
        First.
    """
    s = q @ k  # (B, S)
    # eq: toy-1 toy-2
    P = softmax(s)
    for _ in range(LIMIT):
        # not before the others have gone
        P = P * 2
    # eq: toy-1
    return P


def _helper():
    return os
'''


def blocks_of(source, stem="toy"):
    """Return the blocks of a module by their ids."""
    return {block.id: block for section in read_module(source, stem) for block in section.blocks}


def code_of(block, source=MODULE):
    """Return the lines of code of a block."""
    return [source.splitlines()[n - 1].strip() for n in block.lines]


def test_blocks_are_named_after_what_they_hold():
    """Every permalink is made of module, definition, and equation or first words."""
    assert list(blocks_of(MODULE)) == [
        "toy.py", "toy.LIMIT", "toy.TOTAL", "toy.Pair", "toy.Pair.swap", "toy.mix", "toy.mix.toy-1",
        "toy.mix.not-before-the-others", "toy.mix.toy-1-2", "toy._helper",
    ]  # fmt: skip


def test_blocks_hold_the_code_up_to_the_next_prose():
    """A docstring stands beside the code that follows it, a comment beside its lines."""
    found = blocks_of(MODULE)
    assert code_of(found["toy.mix"]) == ["def mix(q, k):", "s = q @ k  # (B, S)"]
    assert code_of(found["toy.mix.toy-1"]) == ["P = softmax(s)", "for _ in range(LIMIT):"]
    assert code_of(found["toy.mix.not-before-the-others"]) == ["P = P * 2"]
    assert found["toy.mix.toy-1"].labels == ("toy-1", "toy-2")
    assert found["toy.LIMIT"].prose == "How many there may be."
    assert found["toy.TOTAL"].prose == "counts all of them"
    assert found["toy.py"].prose.startswith("An idea.")


def test_imports_and_exports_are_folded_away():
    """Imports and ``__all__`` are one block, and what ``__all__`` names is public."""
    assert blocks_of(MODULE)["toy.py"].kind == "imports"
    assert [section.name for section in read_module(MODULE, "toy") if section.public] == ["mix"]


def sources():
    """List every module of the project."""
    return sorted(path for package in ("refattn", "theory") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_line_is_lost_and_none_shown_twice(path):
    """The blocks of a module hold each line of its code once; the rest is prose."""
    source = path.read_text(encoding="utf-8")
    shown = [n for section in read_module(source, path.stem) for block in section.blocks for n in block.lines]
    assert len(shown) == len(set(shown))
    tree = ast.parse(source)
    executable = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt) and not is_words(node)}
    assert executable <= set(shown)


def is_words(node):
    """Whether a statement is a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_the_same_name_twice_gives_two_permalinks():
    """Ids within a module are unique."""
    for path in sources():
        ids = [b.id for s in read_module(path.read_text(encoding="utf-8"), path.stem) for b in s.blocks]
        assert len(ids) == len(set(ids)), path


# formulas


def test_formulas_become_mathml_that_browsers_read():
    """Spacing, fences and alignment are said in MathML Core."""
    assert "<math" in math(r"\frac{a}{b}")
    assert 'style="text-align: left"' in math(r"\begin{aligned} a &= b \end{aligned}", block=True)
    assert "columnalign" not in math(r"\begin{aligned} a &= b \end{aligned}", block=True)
    assert '<mspace width="0.167em" /><mi>tanh</mi>' in math(r"c \tanh(s)")
    assert 'form="prefix">−' in math(r"x = -1")
    assert "<mo>−</mo>" in math(r"x - 1")
    assert "<mi>softmax</mi>" in math(r"\mathrm{softmax}(x)")
    assert 'stretchy="false">⌊' in math(r"\lfloor x \rfloor")


def test_a_formula_keeps_its_latex_as_text():
    """Whoever cannot see the formula reads its LaTeX."""
    assert 'alttext="a &lt; b"' in math("a < b")


@pytest.mark.parametrize("latex", [r"\unheardof x", r"\begin{aligned} a", r"a & b", r"\left( x"])
def test_a_formula_that_nobody_understands_is_refused(latex):
    """Unknown commands and open braces raise instead of appearing as text."""
    with pytest.raises(BadFormulaError, match="formula"):
        math(latex)


def test_tags_are_found_outside_code():
    """A tagged equation is an equation; one in a listing is not."""
    markdown = "$$ a = b \\tag{x-1} $$\n\n```\n$$ c \\tag{x-2} $$\n```\n\n`$$ d \\tag{x-3} $$`\n"
    assert list(tags(markdown)) == ["x-1"]


def test_an_equation_gets_its_number_and_its_code():
    """A tag becomes an anchor with links to every place that computes it."""
    page = '<div class="arithmatex">\\[ a = b \\tag{x-1} \\]</div> and <span class="arithmatex">\\(c\\)</span>'
    html = typeset(page, lambda _label: [("toy.html#toy.mix.x-1", "mix")])
    assert 'id="eq-x-1"' in html
    assert '<a class="to-code" href="toy.html#toy.mix.x-1">mix</a>' in html
    assert "arithmatex" not in html
    assert html.count("<math") == 2


# labels in prose


def test_the_bold_mention_states_a_rule_and_the_others_lead_to_it():
    """The anchor stands where a label is bold; other mentions are links, and code is left alone."""
    page = "<p>See R1 and R10.</p><p><strong>R1.</strong> A rule.</p><pre>R1</pre><p><code>R1</code></p>"
    page, defined = labels.define(page, ["R1"], lambda _label: [])
    assert defined == {"R1"}
    assert '<strong><span class="stated" id="eq-R1">' in page
    page = labels.refer(page, lambda label: f"#eq-{label}", {"R1"})
    assert '<p>See <a class="eqref" href="#eq-R1">R1</a> and R10.</p>' in page
    assert "<pre>R1</pre>" in page
    assert "<code>R1</code>" in page


def test_bare_words_are_labels_in_parentheses_only():
    """A label without a digit is a link only where it stands in parentheses."""
    page = labels.refer("<p>the merge (merge)</p>", lambda label: f"#eq-{label}", {"merge"})
    assert page == '<p>the merge (<a class="eqref" href="#eq-merge">merge</a>)</p>'


# docstrings


def test_docstring_tables_are_folded_and_notes_are_not():
    """Parameters become a folded table with name, type and description; notes stay in sight."""
    html = docstring_html(
        "Mix.\n\nParameters\n----------\nq : ndarray, shape (B,)\n    First.\n\nNotes\n-----\nA < b.\n"
    )
    assert html.startswith("<p>Mix.</p><details")
    assert '<td><code>q</code> <span class="type">ndarray, shape (B,)</span></td><td><p>First.</p></td>' in html
    assert html.endswith('<p class="title">Notes</p><p>A &lt; b.</p>')


def test_both_markups_are_read():
    """Double backticks, roles and display formulas of reStructuredText come out as HTML."""
    assert prose_html("``x`` and :func:`~mix`") == "<p><code>x</code> and <code>mix</code></p>"
    assert "arithmatex" in prose_html(".. math::\n\n    a = b\n")
    assert summary("One\nidea.\n\nMore.") == "One idea."
    assert [title for title, _ in sections("A.\n\nNotes\n-----\nB.")] == ["", "Notes"]


# exercises


def no_scale(c):
    """Forget the scale."""
    # the scale is missing here
    s = c @ c  # (B, S)
    return 1 * s  # no scale


class Steps(NamedTuple):
    """A plain implementation's steps."""

    scale: object = len
    score: object = no_scale


def test_an_exercise_does_not_give_itself_away():
    """Name, docstring and comments are gone; shape comments stay."""
    assert exercises.plain_source(no_scale) == "def attempt(c):\n    s = c @ c  # (B, S)\n    return 1 * s"


def test_lambdas_and_partials_can_be_exercises():
    """A lambda is shown without the call that holds it, a partial as the function that it calls."""
    pair = SimpleNamespace(first=lambda x: x + 1, second=lambda x: x - 1)
    assert exercises.plain_source(pair.second) == "attempt = lambda x: x - 1"
    assert exercises.plain_source(functools.partial(no_scale, 1)).startswith("def attempt(c):")


def right_score(c):
    """Keep the scale."""
    return 2 * c @ c


def test_the_replaced_step_and_the_right_one_are_found():
    """A wrong version tells which step it replaces, through partials and closures."""

    class Plain(NamedTuple):
        score: object = right_score

    def run(steps):
        return lambda c: steps.score(2 * c)

    wrong = functools.partial(run(Plain(score=no_scale)), None)
    assert exercises.replaced_step(wrong, no_scale) == ("score", right_score)
    assert exercises.replaced_step(len, no_scale) == ("", None)


# pages and addresses


def test_addresses_are_relative():
    """A link leads from page to page by the shortest way."""
    assert relative("a/b.html#c", "a/b.html") == "#c"
    assert relative("a/b.html#c", "a/d.html") == "b.html#c"
    assert relative("b.html", "a/d.html") == "../b.html"
    assert relative("code/x/y.html#z", "code/w/v.html") == "../x/y.html#z"
    assert relative("code/x.html", "code/w/v.html") == "../x.html"


def test_stems_tell_backends_from_references():
    """A portable twin and its reference have different permalinks."""
    assert stem_of("refattn/layers/rat.py") == "rat"
    assert stem_of("refattn/backends/portable/rat.py") == "portable.rat"
    assert stem_of("theory/sweep.py") == "theory.sweep"


def test_the_theory_has_code_and_api_pages():
    """Modules beside the package are shown as those in it are."""
    code, api = pages.code_pages(ROOT, {"theory/table.py"}), pages.api_pages(ROOT)
    assert code["code/theory/sweep.md"] == "# theory.sweep\n\n{{ code theory/sweep.py }}\n"
    assert "code/theory/table.md" not in code
    assert "# theory\n" in api["api/theory.md"]
    assert "::: theory.sweep\n" in api["api/theory.md"]
    assert "# refattn.layers\n" in api["api/layers.md"]


def test_the_navigation_fills_folders_and_drops_what_is_missing():
    """A folder becomes its pages, an optional page that does not exist is left out, and empty sections with it."""
    nav = [
        {"Start": "index.md"},
        {"Pages": ["p/one.md", "p/"]},
        {"None": ["q/"]},
        {"Proof": ["audit.md?", "claims.md?"]},
    ]
    found = pages.expand_nav(
        nav, ["index.md", "p/one.md", "p/two.md", "p/deep/three.md", "claims.md"], {"p/two.md": "Two"}
    )
    assert found == [
        {"Start": "index.md"},
        {"Pages": ["p/one.md", {"Two": "p/two.md"}, {"deep": ["p/deep/three.md"]}]},
        {"Proof": ["claims.md"]},
    ]


def test_dark_drawings_turn_greys_round_and_keep_colours():
    """Black and white change places, a hue stays, and what has no colour becomes light."""
    svg = pages.dark('<svg width="1"><path style="fill: #000000"/><path style="fill: #c8553d; stroke: #ffffff"/></svg>')
    assert svg.startswith('<svg fill="#ebebeb" width="1"><path style="fill: #ebebeb"/>')
    assert svg.endswith('<path style="fill: #c8553d; stroke: #000000"/></svg>')


# directives


def directives(markdown, reported, root=ROOT):
    """Return the directives of a toy site of one page."""

    def contract_of(slug):
        raise MissingError(f"no contract {slug}")

    def experiments_of(slug):
        if slug != "toy":
            raise MissingError(f"no EXPERIMENTS in theory/{slug}/experiments.py")
        return [WALK]

    return Directives(Catalogue(root, {"mechanisms/toy.md": markdown}), contract_of, reported.append, experiments_of)


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("laws toy", "no contract toy"),
        ("bugs toy", "no contract toy"),
        ("errors toy", "no contract toy"),
        ("entries toy", "no contract toy"),
        ("claims toy", "docs/claims.json has no claims of toy"),
        ("figure toy", "no figure docs/figures/toy.svg"),
        ("code refattn/layers/toy.py", "no file refattn/layers/toy.py"),
        ("code refattn/primitives/softmax.py::toy", "defines no toy"),
        ("experiments lost", "no EXPERIMENTS in theory/lost/experiments.py"),
        ("figure theory-toy-lost", "no experiment toy/lost"),
        ("figure theory-toy-walk", "no figure docs/figures/theory-toy-walk.svg: run python -m theory plot toy/walk"),
        ("dance toy", "what stands before toy is not a directive"),
    ],
)
def test_what_is_missing_is_reported_in_a_sentence(directive, message):
    """A directive whose subject does not exist names it, and the page says so too."""
    reported = []
    markdown = f"# Toy\n\n{{{{ {directive} }}}}\n"
    expanded = directives(markdown, reported).expand(markdown, "mechanisms/toy.md")
    assert len(reported) == 1
    assert reported[0].startswith("mechanisms/toy.md: ")
    assert message in reported[0]
    assert "Missing" in expanded


def test_a_module_stands_on_its_page_with_headings_and_slots():
    """Every public definition gets a heading, and every slot is filled."""
    reported = []
    markdown = "{{ code refattn/primitives/softmax.py }}\n"
    writer = directives(markdown, reported)
    expanded = writer.expand(markdown, "mechanisms/toy.md")
    assert "### `softmax` { #softmax.softmax.heading .definition }" in expanded
    html = writer.fill(expanded)
    assert not reported
    assert 'data-slot="' not in html
    assert 'id="softmax.log_sum_exp"' in html
    assert '<span class="k">def</span>' in html


def test_experiments_stand_with_their_commands_defaults_and_verdicts(tmp_path):
    """A theory's experiments can be run from what the page says, and what was checked stands beside it."""
    checks = [within_noise("a < b", 1.0, 1.1, 0.1), below("slope", 0.5, 0.4)]
    filed = {"toy/walk": {"command": "python -m theory check toy/walk", **outcome_json(Outcome(WALK, tuple(checks)))}}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "theory-checks.json").write_text(json.dumps(filed), encoding="utf-8")
    markdown = "{{ experiments toy }}\n"
    writer = directives(markdown, [], tmp_path)
    html = writer.fill(writer.expand(markdown, "theory/toy.md"))
    assert 'id="experiment.toy.walk"' in html
    assert "<code>python -m theory run toy/walk</code>" in html
    assert "<td><code>steps</code></td><td><code>16,64,256</code></td>" in html
    assert '<span class="verdict" title="holds">✓</span></td><td>a &lt; b</td>' in html
    assert "<td>1</td><td>1.1</td><td>0.1</td><td>z 1.00 of 4</td>" in html
    assert '<span class="verdict" title="FAILS">✗</span></td><td>slope</td>' in html
    assert "Printed by <code>python -m theory check toy/walk</code>" in html


# the page of all claims


def test_claims_may_hold_any_sign(monkeypatch):
    """Bars, stars, underscores and angle brackets of a claim stay text in its table."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    run_all = importlib.import_module("run_all")
    claim = run_all.Claim("n", "a < b", "x|y", "p*q_r*s_t", "reproduced")
    page = run_all.as_markdown([run_all.Outcome("toy", (claim,), 0.0)])
    html = Markdown(extensions=["tables", "attr_list", "md_in_html"]).convert(page)
    assert '<div class="claims">' in html
    assert "<td>a &lt; b</td>" in html
    assert unescape(html).count("<td>x|y</td>\n<td>p*q_r*s_t</td>") == 1


def test_only_scripts_with_claims_are_examples(monkeypatch):
    """Helpers beside the examples are not run."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    run_all = importlib.import_module("run_all")
    found = run_all.examples([])
    assert "attention" in found
    assert not {"claims", "run_all", "attention_kernels"} & set(found)
    with pytest.raises(SystemExit, match="only='dance'"):
        run_all.examples(["dance"])


# the built site


def built(site):
    """Return the HTML of every page of the built site, by its place."""
    found = sorted(site.rglob("*.html"))
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_nothing_in_the_site_points_outside_but_links(site):
    """No script, style, font, picture or frame of any page or style sheet comes from another place."""
    for page, html in built(site).items():
        loaded = re.findall(
            r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?(?:src|data)=\"([^\"]*)\"", html
        )
        loaded += re.findall(r"<link\b[^>]*?href=\"([^\"]*)\"", html)
        outside = [url for url in loaded if re.match(r"(https?:)?//", url)]
        assert not outside, page
    for path in site.rglob("*.css"):
        urls = re.findall(r"url\(\s*['\"]?([^'\")]+)", path.read_text(encoding="utf-8"))
        assert not [url for url in urls if re.match(r"(https?:)?//", url)], path


def test_equations_and_code_lead_to_each_other(site):
    """Every label in the code is stated in prose, the code links to it, and the statement links back."""
    pages_by_place = built(site)
    statements = {
        label: (place, html) for place, html in pages_by_place.items() for label in re.findall(r'id="eq-([^"]+)"', html)
    }
    rows = [
        (place, ident, labels_.split())
        for place, html in pages_by_place.items()
        for ident, labels_ in re.findall(r'class="row [^"]*" id="([^"]+)" data-equation="([^"]+)"', html)
    ]
    assert len(rows) > 40
    for place, ident, marked in rows:
        for label in marked:
            assert label in statements, f"{ident} computes {label}, which no page states"
            there, statement = statements[label]
            assert f'href="{relative(f"{there}#eq-{label}", place)}"' in pages_by_place[place]
            definition = re.escape(relative(f"{place}#", there)) + '[^"]*'
            assert re.search(
                rf'id="eq-{re.escape(label)}".{{0,1500}}?class="to-code" href="{definition}', statement, re.DOTALL
            )


def test_permalinks_are_unique_on_every_page(site):
    """No page gives one id to two things."""
    for place, html in built(site).items():
        ids = re.findall(r'\sid="([^"]+)"', html)
        twice = {a for a, b in pairwise(sorted(ids)) if a == b}
        assert not twice, place


def test_no_formula_is_left_as_latex(site):
    """What arithmatex marked is MathML now, and nothing else shows a backslash command."""
    for place, html in built(site).items():
        assert 'class="arithmatex"' not in html, place
        prose = re.sub(r"<(pre|code|math|script)\b.*?</\1>", "", html, flags=re.DOTALL)
        assert not re.search(r"\\(frac|sum|text|tag|mathrm|begin)\b", unescape(prose)), place


def test_every_mechanism_has_its_page_with_all_parts(site):
    """Code, laws, exercises, errors, claims and a figure stand on the page of every contract."""
    from refattn.conformance.registry import find_contracts

    for slug in find_contracts():
        html = (site / "mechanisms" / f"{slug}.html").read_text(encoding="utf-8")
        for part in (
            'class="readalong"',
            'class="laws"',
            'class="exercise"',
            'class="errors"',
            'class="claims"',
            "<figure",
        ):
            assert part in html, f"{slug} lacks {part}"


def test_the_search_knows_functions_and_leaves_wrong_versions_out(site):
    """Functions can be searched for; exercises are not in the index, so that nobody copies a wrong version."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = " ".join(entry["title"] + " " + entry["text"] for entry in index["docs"])
    assert "masked_logits" in text
    assert "What is wrong?" not in text
    script = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert json.loads(script.removeprefix("var __index = ")) == index


def test_the_hook_is_no_part_of_the_site(site):
    """Sources of the hook and raw data are not served."""
    assert not list(site.rglob("*.py"))
    assert not (site / "claims.json").exists()


def test_a_strict_build_fails_with_the_reason(tmp_path):
    """A page that asks for a mechanism that does not exist fails the build, which says what is missing."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Toy\n\n{{ laws toy }}\n", encoding="utf-8")
    hook = (ROOT / "docs" / "site" / "hook.py").as_posix()
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: toy\ntheme: {{name: mkdocs}}\nplugins: []\nhooks: ['{hook}']\nuse_directory_urls: false\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=path)
    assert done.returncode != 0
    assert "index.md: no contract refattn/contracts/toy.py" in done.stderr + done.stdout
