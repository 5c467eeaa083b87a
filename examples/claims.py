"""What every example shares: a claim with its verdict, the command line, and deterministic figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
VERDICTS = ("reproduced", "not reproduced", "not comparable")


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, its number, ours, and whether they agree."""

    name: str
    statement: str
    paper: str
    ours: str
    verdict: str

    def __post_init__(self) -> None:
        """Refuse verdicts outside the three."""
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict!r} is not one of {VERDICTS}")


def table(claims: list[Claim]) -> str:
    """Return the claims as aligned text, one paragraph each."""
    return "\n".join(
        f"{c.verdict.upper():>15}  {c.name}\n{'':17}{c.statement}\n{'':17}paper: {c.paper}\n{'':17}ours:  {c.ours}"
        for c in claims
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG (same bytes for the same figure) or PNG, on a transparent ground."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "refattn", "svg.fonttype": "path"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata=metadata)


def main(slug: str, claims: Callable[[bool], list[Claim]], figure: Callable[[bool], Figure]) -> None:
    """Run one example from the command line."""
    parser = _parser(slug, f"reproduce the claims about {slug}", "smaller sizes, a few seconds")
    parser.add_argument("--figure", type=Path, help="where to write the figure (SVG or PNG)")
    arguments = parser.parse_args()
    _show(claims(arguments.quick), as_json=arguments.json)
    path = arguments.figure or (None if arguments.quick else FIGURES / f"{slug}.svg")
    if path is not None:
        import matplotlib as mpl

        mpl.use("Agg")
        save(figure(arguments.quick), path)
        print(f"figure: {path}", file=sys.stderr)


def demonstrate(name: str, about: str, claims: Callable[[bool], list[Claim]], *, quick: str) -> None:
    """Run an example that trains too long to stand among the others: it draws nothing, and says how long it took."""
    arguments = _parser(name, about, quick).parse_args()
    begin = time.perf_counter()
    _show(claims(arguments.quick), as_json=arguments.json)
    if not arguments.json:
        print(f"{time.perf_counter() - begin:.0f} s")


def _parser(name: str, about: str, quick: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"examples/{name}.py", description=about)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print the claims as JSON")
    return parser


def _show(claims: list[Claim], *, as_json: bool) -> None:
    print(json.dumps([asdict(c) for c in claims], indent=1, ensure_ascii=False) if as_json else table(claims))
