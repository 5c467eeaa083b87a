"""Run the kit on every adapter and write the matrix to ``docs/conformance.md``.

``python examples/conformance_matrix.py`` checks each file of ``examples/adapters`` whose framework is installed, in
float64, float32, float16 and bfloat16. Expected failures and their reasons are in ``examples/adapters/expected``, the
replay files of real failures in ``examples/adapters/replays``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from refattn.conformance.api import check
from refattn.conformance.expectations import Expectations, read_expectations
from refattn.conformance.precision import DTYPES
from refattn.conformance.report import as_markdown, failures_text, summary_line
from refattn.conformance.settings import Settings

ADAPTERS = Path(__file__).resolve().parent / "adapters"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
FRAMEWORKS = {"torch": "torch", "jax": "jax", "onnx": "onnx", "hf": "transformers"}

LEGEND = """\
A cell counts the checks that passed; `a` marks acceptable ones, where a declared convention differs from the
reference; `x` expected failures, each explained below; `?` inconclusive ones, whose arithmetic cannot certify them;
`F` failures. Options that a kernel does not have are skipped and not counted."""


def installed(adapter: str) -> bool:
    """Whether the framework that an adapter's name begins with is there."""
    return importlib.util.find_spec(FRAMEWORKS[name_of(adapter).partition("_")[0]]) is not None


def name_of(adapter: str) -> str:
    """Return how the matrix calls an adapter: its file without the folder, and the object in it if one is named."""
    path, _, attribute = adapter.partition(":")
    return f"{Path(path).stem}:{attribute}" if attribute else Path(path).stem


def versions() -> str:
    """Return the versions that the matrix was printed with."""
    names = ["numpy", *FRAMEWORKS.values()]
    found = [f"{name} {metadata.version(name)}" for name in names if importlib.util.find_spec(name)]
    return f"Python {platform.python_version()}, {', '.join(found)}"


def main() -> int:
    """Check every adapter, write the page, and say whether anything unexpected failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=15, help="drawn cases per entry and dtype (15)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--device", help="where the arrays live, such as cuda")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write (docs/conformance.md)")
    parser.add_argument("--title", default="Real kernels against the contract", help="of the page")
    parser.add_argument("--dtype", action="append", help="only these (repeatable)")
    parser.add_argument("adapters", nargs="*", help="only these files, or file.py:object")
    options = parser.parse_args()
    settings = Settings(options.examples, replays=ADAPTERS / "replays")
    records, reasons, problems = [], {}, []
    # relative: a replay file names its backend, and the next reader's checkout lies elsewhere
    for adapter in options.adapters or sorted(os.path.relpath(path) for path in ADAPTERS.glob("*.py")):
        if not installed(adapter):
            print(f"{adapter}: its framework is not installed", file=sys.stderr)
            continue
        found = check(
            adapter,
            only=["attention"],
            dtypes=options.dtype or DTYPES,
            settings=settings,
            jobs=options.jobs,
            device=options.device,
        )
        name = name_of(adapter)
        expected = ADAPTERS / "expected" / f"{name.replace(':', '-')}.toml"
        expectations = read_expectations(expected) if expected.is_file() else Expectations()
        marked, wrong = expectations.apply([record.having(backend=name) for record in found])
        records += marked
        problems += [f"{name}: {problem}" for problem in wrong]
        reasons[name] = expectations.expected
        print(f"{name}: {summary_line(marked)}", file=sys.stderr)
    options.page.write_text(page(options.title, records, reasons), encoding="utf-8")
    print("\n".join(part for part in (failures_text(records), *problems, summary_line(records)) if part))
    return int(bool(problems) or any(record.status == "failed" for record in records))


def called_with() -> str:
    """Return the arguments that shape the page, as they were given."""
    return "".join(f" {word!r}" if " " in word else f" {word}" for word in sys.argv[1:])


def page(title: str, records: list, reasons: dict) -> str:
    """Return the page: what was run, the matrix, and who is right where a real kernel fails."""
    explained = [
        f"- **{name}** `{pattern}`: {reason}"
        for name, patterns in reasons.items()
        for pattern, reason in patterns.items()
    ]
    parts = [
        f"# {title}",
        f"Printed by `python examples/conformance_matrix.py{called_with()}` with {versions()}.",
        LEGEND,
        as_markdown(records),
        f"**{summary_line(records)}**",
    ]
    if explained:
        parts += ["## Where a real kernel fails, and who is right", "\n".join(explained)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
