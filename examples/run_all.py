"""Run every example and write down what reproduces: ``docs/claims.md``, ``docs/claims.json``, ``docs/figures``.

Two examples run side by side, each in a process of its own. The exit code is 1 if one of them crashed; a claim that
does not reproduce is a result and no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

from claims import VERDICTS, Claim, table

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"


@dataclass(frozen=True)
class Outcome:
    """What one example said: its claims, or why it has none."""

    slug: str
    claims: tuple[Claim, ...]
    seconds: float
    error: str = ""

    @property
    def command(self) -> str:
        """The command that prints these claims."""
        return f"python examples/{self.slug}.py"


def examples(only: list[str]) -> list[str]:
    """Return the slugs of all examples, or check those that are asked for."""
    found = sorted(
        path.stem for path in HERE.glob("*.py") if f'main("{path.stem}", ' in path.read_text(encoding="utf-8")
    )
    unknown = sorted(set(only) - set(found))
    if unknown:
        raise SystemExit(f"only={unknown[0]!r} is not one of {', '.join(found)}")
    return [slug for slug in found if not only or slug in only]


def run(slug: str, *, quick: bool) -> Outcome:
    """Run one example in its own process, on one thread."""
    command = [sys.executable, str(HERE / f"{slug}.py"), "--json", *(["--quick"] if quick else [])]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603  # our own script with our own arguments
        command, capture_output=True, text=True, check=False, env={**os.environ, **single, "PYTHONPATH": path}
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Outcome(slug, (), seconds, last[0])
    return Outcome(slug, tuple(Claim(**claim) for claim in json.loads(done.stdout)), seconds)


def as_json(outcomes: list[Outcome]) -> dict[str, dict[str, object]]:
    """Return the outcomes as the site reads them."""
    return {o.slug: {"command": o.command, "claims": [vars(claim) for claim in o.claims]} for o in outcomes}


def as_markdown(outcomes: list[Outcome]) -> str:
    """Return the page of all claims."""
    signs = {"reproduced": "✓", "not reproduced": "✗", "not comparable": "○"}
    lines = ["# Claims", ""]
    lines += [
        "What the papers claim and what comes out here, at laptop scale. ✓ reproduced, ✗ not reproduced, ○ not",
        "comparable: the claim needs a trained model or another machine, and what is shown is the nearest thing that",
        "NumPy alone can show. Printed by `python examples/run_all.py`, which also draws the figures.",
    ]
    for outcome in outcomes:
        page = DOCS / "mechanisms" / f"{outcome.slug}.md"
        title = f"[{outcome.slug}](mechanisms/{outcome.slug}.md)" if page.is_file() else outcome.slug
        lines += [
            "",
            f"## {title} {{ #{outcome.slug} }}",
            "",
            '<div class="claims" markdown>',
            "",
            "| | claim | paper | ours |",
            "| --- | --- | --- | --- |",
        ]
        for claim in outcome.claims:
            cells = [signs[claim.verdict], *map(cell, (claim.statement, claim.paper, claim.ours))]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "</div>"]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text as a cell of a table, whatever signs it holds."""
    plain = escape(" ".join(text.split()), quote=False)
    return plain.replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="examples/run_all.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, seconds; writes no pages and no figures")
    parser.add_argument("--json", action="store_true", help="print the claims as JSON")
    parser.add_argument("--only", action="append", default=[], metavar="SLUG", help="one example (repeatable)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="examples at a time (2)")
    arguments = parser.parse_args()
    slugs = examples(arguments.only)
    outcomes = []
    with ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        for outcome in pool.map(lambda slug: run(slug, quick=arguments.quick), slugs):
            outcomes.append(outcome)
            if not arguments.json:
                print(f"== {outcome.slug} ({outcome.seconds:.1f} s)\n{outcome.error or table(list(outcome.claims))}\n")
    if arguments.json:
        print(json.dumps(as_json(outcomes), indent=1, ensure_ascii=False))
    crashed = [outcome for outcome in outcomes if outcome.error]
    for outcome in crashed:
        print(f"{outcome.command} crashed: {outcome.error}", file=sys.stderr)
    if not arguments.quick and not arguments.only and not crashed:
        (DOCS / "claims.json").write_text(
            json.dumps(as_json(outcomes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (DOCS / "claims.md").write_text(as_markdown(outcomes), encoding="utf-8")
        print("wrote docs/claims.json, docs/claims.md and docs/figures", file=sys.stderr)
    counts = Counter(claim.verdict for outcome in outcomes for claim in outcome.claims)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS), file=sys.stderr)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
