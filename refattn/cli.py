"""The command line: list, check, replay, audit, golden, show; model, analyse and quantise for checkpoints.

Exit codes: 0, all holds; 1, something failed; 2, the command was misused.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refattn.cli_analyse import add_analyse_commands
from refattn.cli_model import add_model_commands
from refattn.cli_quantise import add_quantise_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refattn.conformance.audit import AuditRow
    from refattn.conformance.contract import Contract
    from refattn.conformance.records import Record

__all__ = ["main"]

_PORTABLE = ("numpy", "array_api_strict", "torch", "jax", "jax-jit", "cupy")


class _MisuseError(Exception):
    """The command line makes no sense; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except (_MisuseError, ValueError, ModuleNotFoundError) as error:  # the last: text without the tokenizers library
        print(f"refattn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refattn", description="Check attention kernels against NumPy references.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "list", _list, "name the mechanisms, their laws, bugs, goldens and backends")
    _add_check(commands)
    replay = _add(commands, "replay", _replay, "run a failure again from its file")
    replay.add_argument("file", type=Path, help="what a failing check wrote")
    replay.add_argument("--backend", help="another backend than the one that failed")
    replay.add_argument("--device", help="where the backend's arrays live")
    audit = _add(commands, "audit", _audit, "run every planted bug against the vectors; fail if one gets through")
    audit.add_argument("--only", action="append", default=[], metavar="SLUG", help="a mechanism (repeatable)")
    audit.add_argument("--dtype", action="append", default=[], help="float32 if not given (repeatable), or all")
    audit.add_argument("--full", action="store_true", help="all vectors instead of the smallest set that catches all")
    audit.add_argument("--seed", type=int, default=0, help="of the vectors")
    audit.add_argument("--markdown", type=Path, metavar="FILE", help="write the matrix as Markdown tables")
    audit.add_argument("--file-inventory", action="store_true", help="put the present laws and bugs on file")
    golden = _add(commands, "golden", _golden, "freeze, verify or export the frozen vectors")
    golden.add_argument("action", choices=("freeze", "verify", "export"))
    golden.add_argument("folder", type=Path, nargs="?", help="instead of the package's own; needed for export")
    golden.add_argument("--only", action="append", default=[], metavar="SLUG", help="a mechanism (repeatable)")
    show = _add(commands, "show", _show, "say what a mechanism, a law or a planted bug is")
    show.add_argument("name", help="SLUG, SLUG/ENTRY, or the name of a law or bug")
    _add_group(commands, "model", "load a checkpoint and run it", add_model_commands)
    _add_group(
        commands, "analyse", "read a checkpoint: its sinks, retrieval heads, channels, circuits", add_analyse_commands
    )
    add_quantise_command(partial(_add, commands))
    return parser


def _add_group(commands: Any, name: str, text: str, fill: Callable[[Any], None]) -> None:
    group = commands.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    fill(partial(_add, group))


def _add(commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)
    return parser


def _add_check(commands: Any) -> None:
    check = _add(commands, "check", _check, "check backends; the portable one on NumPy if none is named")
    check.add_argument(
        "backend", nargs="*", default=["portable"], help="portable[:LIBRARY], a .py file, or an import name"
    )
    check.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="mechanism, entry or pattern (repeatable)"
    )
    check.add_argument(
        "--dtype", action="append", default=[], help="float64, float32, float16, bfloat16 (repeatable), or all"
    )
    check.add_argument("--device", help="where the backend's arrays live, such as cuda")
    check.add_argument("--examples", type=int, default=25, metavar="N", help="drawn cases per entry and dtype (25)")
    check.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    check.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="processes; 0 runs in this one"
    )
    check.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="for one check (120)")
    check.add_argument(
        "--expected-failures", type=Path, metavar="FILE", help="TOML with reasons; unmatched entries fail"
    )
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    check.add_argument("--markdown", type=Path, metavar="FILE", help="write the matrix as a Markdown table")
    check.add_argument(
        "--replays", type=Path, default=Path("refattn-replay"), metavar="DIR", help="where failures are kept"
    )


def _dtypes(given: Sequence[str], default: tuple[str, ...]) -> tuple[str, ...]:
    from refattn.conformance.precision import DTYPES

    return DTYPES if "all" in given else tuple(dict.fromkeys(given)) or default


def _contracts(only: Sequence[str]) -> dict[str, Contract]:
    from refattn.conformance.registry import find_contracts

    contracts = dict(find_contracts())
    for slug in only:
        if slug not in contracts:
            raise _MisuseError(f"only={slug!r} is not one of {', '.join(contracts)}")
    return {slug: contract for slug, contract in contracts.items() if not only or slug in only}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _check(options: argparse.Namespace) -> int:
    from refattn.conformance.api import Selection, check, select
    from refattn.conformance.expectations import Expectations, read_expectations
    from refattn.conformance.report import as_json, as_junit, as_markdown, failures_text, summary_line, table_text
    from refattn.conformance.settings import Settings

    if options.examples < 1 or options.jobs < 0 or options.timeout <= 0:
        raise _MisuseError("--examples must be at least 1, --jobs at least 0, --timeout positive")
    expectations = read_expectations(options.expected_failures) if options.expected_failures else Expectations()
    dtypes = _dtypes(options.dtype, ("float64", "float32"))
    settings = Settings(options.examples, options.seed, options.replays, timeout=options.timeout)
    total = len(select(Selection(tuple(options.only), dtypes))) * len(options.backend)
    records: list[Record] = []
    with _Progress(total) as progress:
        for backend in options.backend:
            records += check(
                backend,
                only=options.only,
                dtypes=dtypes,
                device=options.device,
                settings=settings,
                jobs=options.jobs,
                progress=progress,
            )
    records, problems = expectations.apply(records)
    if options.junit:
        options.junit.write_text(as_junit(records), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(as_markdown(records) + "\n", encoding="utf-8")
    if options.json:
        _print_json(as_json(records, problems))
    else:
        print("\n".join(part for part in (table_text(records), failures_text(records), *problems) if part))
        print(f"\n{summary_line(records)}")
    judged = any(record.status not in ("skipped", "inconclusive") for record in records)
    if not judged:
        print("refattn: the backend offers nothing that was asked for", file=sys.stderr)
    return int(bool(problems) or not judged or any(record.status == "failed" for record in records))


class _Progress:
    """A bar on standard error, if that is a terminal."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="check", disable=not sys.stderr.isatty(), leave=False)
        self.failed = 0

    def __enter__(self) -> Callable[[Record], None]:
        return self.step

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def step(self, record: Record) -> None:
        self.failed += record.status == "failed"
        self.bar.set_postfix_str(f"{self.failed} failed" if self.failed else "", refresh=False)
        self.bar.update()


def _list(options: argparse.Namespace) -> int:
    from refattn.conformance.golden import vectors_of
    from refattn.conformance.precision import DTYPES

    rows = []
    for contract in _contracts([]).values():
        entries = contract.entries
        rows.append(
            {
                "mechanism": contract.slug,
                "title": contract.title,
                "paper": contract.paper,
                "entries": [entry.name for entry in entries],
                "laws": [f"{entry.name}/{law.name}" for entry in entries for law in entry.laws],
                "bugs": [f"{entry.name}/{bug.name}" for entry in entries for bug in entry.bugs],
                "goldens": [v.id for entry in entries for dtype in DTYPES for v in vectors_of(contract, entry, dtype)],
                "backends": _portable_backends(contract),
            }
        )
    if options.json:
        _print_json(rows)
        return 0
    print(f"{'mechanism':<14}{'entries':>8}{'laws':>6}{'bugs':>6}{'goldens':>9}  title")
    for row in rows:
        counts = "".join(
            f"{len(row[kind]):>{width}}" for kind, width in (("entries", 8), ("laws", 6), ("bugs", 6), ("goldens", 9))
        )
        print(f"{row['mechanism']:<14}{counts}  {row['title']}"[:100])
    return 0


def _portable_backends(contract: Contract) -> list[str]:
    """Return the libraries on which the portable twin can run here."""
    import importlib.util

    from refattn.backends import portable

    offered = any(entry.name in portable.functions() for entry in contract.entries)
    there = (name for name in _PORTABLE if importlib.util.find_spec(name.removesuffix("-jit")))
    return [f"portable:{name}" for name in there] if offered else []


def _replay(options: argparse.Namespace) -> int:
    from refattn.conformance.backend import load_backend
    from refattn.conformance.checks.laws import law_outcome
    from refattn.conformance.failures import describe_case
    from refattn.conformance.registry import find_contracts
    from refattn.conformance.replay import read_replay
    from refattn.conformance.trial import Bench

    if not options.file.is_file():
        raise _MisuseError(f"file={str(options.file)!r}: there is no such file")
    contracts = find_contracts()
    replay = read_replay(options.file, contracts)
    contract = contracts[replay.check.mechanism]
    bench = Bench(load_backend(options.backend or replay.backend, contracts, options.device), contract)
    entry = contract.entry(replay.check.entry)
    if replay.check.kind == "law":
        outcome = law_outcome(bench, entry, replay.check.name, replay.case, replay.seed)
    else:
        outcome = bench.try_case(entry, replay.case)
    verdict = outcome.verdict
    result = {
        "check": str(replay.check),
        "backend": bench.backend.name,
        "status": outcome.status,
        "reason": outcome.reason,
        "measured": None if verdict is None else verdict.measured,
        "limit": None if verdict is None else verdict.limit,
    }
    if options.json:
        _print_json(result)
    else:
        print(*describe_case(replay.case), sep="\n")
        print(f"{replay.check} on {bench.backend.name}: {outcome.status} {outcome.reason}")
        if verdict is not None:
            print(f"measured {verdict.measured:.3g}, limit {verdict.limit:.3g} at {verdict.where}")
    return int(outcome.status == "fail")


def _audit(options: argparse.Namespace) -> int:
    from refattn.conformance.audit import audit_entry, audit_laws, inventory, missing_from_inventory
    from refattn.conformance.report_audit import audit_json, audit_markdown, audit_text
    from refattn.conformance.storage import write_json

    contracts = _contracts(options.only)
    if options.file_inventory:
        import refattn.contracts

        write_json(Path(refattn.contracts.__path__[0]) / "inventory.json", inventory(_contracts([]).values()))
    entries = [(contract, entry) for contract in contracts.values() for entry in contract.entries]
    dtypes = _dtypes(options.dtype, ("float32",))
    rows: list[AuditRow] = []
    toothless: dict[str, str] = {}
    for contract, entry in entries:
        for dtype in dtypes:
            rows += audit_entry(contract, entry, dtype, full=options.full, seed=options.seed)
        weak = audit_laws(contract, entry, seed=options.seed)
        toothless |= {f"{contract.slug}/{entry.name}/{name}": why for name, why in weak.items() if why}
    missing = missing_from_inventory(contracts.values())
    if options.markdown:
        options.markdown.write_text(audit_markdown(rows, toothless), encoding="utf-8")
    if options.json:
        _print_json(audit_json(rows, toothless, missing))
    else:
        print(audit_text(rows, toothless, missing, laws=sum(len(entry.laws) for _, entry in entries)))
    return int(bool(missing or toothless) or any(not row.is_caught for row in rows))


def _golden(options: argparse.Namespace) -> int:
    from refattn.conformance.golden import export, freeze, golden_folder, verify

    contracts = _contracts(options.only)
    if options.action == "freeze":
        counts = freeze(contracts.values(), options.folder or golden_folder())
        _print_json(counts) if options.json else print("\n".join(f"{slug}: {n} vectors" for slug, n in counts.items()))
        return 0
    if options.action == "export":
        if options.folder is None:
            raise _MisuseError("golden export needs a folder")
        paths = [str(path) for path in export(contracts.values(), options.folder)]
        _print_json(paths) if options.json else print("\n".join(paths))
        return 0
    problems = verify(contracts, options.folder)
    if options.json:
        _print_json(problems)
    else:
        for slug, found in problems.items():
            print(f"{slug}: " + ("; ".join(found) if found else "every vector verified"))
    return int(any(problems.values()))


def _show(options: argparse.Namespace) -> int:
    found = _find(options.name)
    if not found:
        raise _MisuseError(f"name={options.name!r} is no mechanism, entry, law or planted bug")
    if options.json:
        _print_json(found)
        return 0
    for item in found:
        print("\n".join(f"{key + ':':<13}{value}" for key, value in item.items()), end="\n\n")
    return 0


def _find(name: str) -> list[dict[str, Any]]:
    import inspect

    found: list[dict[str, Any]] = []
    for contract in _contracts([]).values():
        if name == contract.slug:
            kinds = Counter({e.name: len(e.laws) + len(e.bugs) for e in contract.entries})
            about = {"mechanism": contract.slug, "title": contract.title, "paper": f"arXiv {contract.paper}"}
            found.append(
                {**about, "entries": ", ".join(kinds), "conventions": ", ".join(c.name for c in contract.conventions)}
            )
        for entry in contract.entries:
            if name in (f"{contract.slug}/{entry.name}", entry.name):
                doc = inspect.getdoc(entry.reference) or ""
                found.append({"entry": f"{entry.name}{inspect.signature(entry.reference)}", "about": doc})
            found += [
                {"law": f"{contract.slug}/{entry.name}/{law.name}", "sentence": law.sentence, "witness": law.witness}
                for law in entry.laws
                if law.name == name
            ]
            found += [
                {
                    "bug": f"{contract.slug}/{entry.name}/{bug.name}",
                    "is": bug.description,
                    "right": bug.remedy,
                    "source": "\n" + inspect.getsource(bug.source or bug.wrong),
                }
                for bug in entry.bugs
                if bug.name == name
            ]
    return found
