"""The command line: list, run, plot, check.

Exit codes: 0, all holds; 1, a prediction failed or a run stopped; 2, the command was misused.
"""

# ruff: noqa: T201  # printing is its work
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from theory.experiment import choose, experiments, find, parameters_of
from theory.parameters import defaults_of, parse_changes, restored
from theory.report import Outcome, check_lines, heading, outcome_json, summary_line, table_lines
from theory.sweep import CellError, execute, plan_of, process_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from theory.experiment import Experiment
    from theory.table import ResultTable

    Computed = list[tuple[Experiment, Any, ResultTable | CellError]]

__all__ = ["CHECKS", "main"]

CHECKS = Path(__file__).resolve().parent.parent / "docs" / "theory-checks.json"
"""What the site shows of the checks."""


def main(arguments: Sequence[str] | None = None, experiments: Iterable[Experiment] | None = None) -> int:
    """Run a command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process if not given.
    experiments : iterable of Experiment, optional
        Your own; those of the package if not given.
    """
    options = _parser().parse_args(arguments)
    options.known = None if experiments is None else {e.name: e for e in experiments}
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except ValueError as error:
        print(f"theory: {error}", file=sys.stderr)
        return 2
    except CellError as error:
        print(f"theory: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("theory: interrupted; with --out, the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        return 0


def _parser() -> argparse.ArgumentParser:
    about = "Simulate theories of attention: every curve with its prediction beside it and a verdict."
    parser = argparse.ArgumentParser(prog="python -m theory", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = _add(commands, "list", _list, "name the experiments and their parameters")
    listing.add_argument("--json", action="store_true", help="print JSON")

    run = _add(commands, "run", _run, "run one experiment and print its table")
    run.add_argument("name", metavar="NAME", help="as list gives it")
    _add_run_options(run, jobs=1)
    run.add_argument("--out", type=Path, metavar="DIR", help="keep cells and tables; go on if DIR holds this run")

    plot = _add(commands, "plot", _plot, "draw the figures")
    plot.add_argument("name", nargs="*", metavar="NAME", help="experiment or whole theory; all if none is named")
    _add_run_options(plot, jobs=min(2, os.cpu_count() or 1))
    plot.add_argument("--from", dest="source", type=Path, metavar="DIR", help="draw what run or check kept there")
    plot.add_argument("--out", type=Path, metavar="FILE|DIR", help="docs/figures if not given")

    check = _add(commands, "check", _check, "hold what is measured against what is predicted")
    check.add_argument("name", nargs="*", metavar="NAME", help="experiment or whole theory; all if none is named")
    _add_run_options(check, jobs=min(2, os.cpu_count() or 1))
    check.add_argument("--out", type=Path, metavar="DIR", help="keep cells and tables, a folder for each experiment")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--write-docs", action="store_true", help="put the verdicts where the site shows them")
    return parser


def _add(commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _add_run_options(parser: argparse.ArgumentParser, jobs: int) -> None:
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value", help="change parameters")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, a second or two")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"processes; changes no number ({jobs})")


def _known(options: argparse.Namespace) -> dict[str, Experiment]:
    return experiments() if options.known is None else dict(options.known)


def _chosen(options: argparse.Namespace) -> list[Experiment]:
    return choose(options.name, _known(options))


def _parameters(options: argparse.Namespace, chosen: Sequence[Experiment]) -> list[Any]:
    if options.set and len(chosen) != 1:
        raise ValueError(f"--set changes the parameters of one experiment, not of {len(chosen)}: name one")
    return [parameters_of(e, parse_changes(e, options.set), quick=options.quick) for e in chosen]


def _computed(options: argparse.Namespace, chosen: Sequence[Experiment], out: Sequence[Path | None] = ()) -> Computed:
    """Run experiments side by side."""
    parameters = _parameters(options, chosen)
    plans = [plan_of(e, p, options.seed) for e, p in zip(chosen, parameters, strict=True)]
    with process_pool(options.jobs) as pool:
        results = execute(plans, executor=pool, out=out)
    return list(zip(chosen, parameters, results, strict=True))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _list(options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = [
        {
            "name": e.name,
            "title": e.title,
            "cells": len(e.cells(e.parameters())),
            "parameters": defaults_of(e),
            "quick": dict(e.quick),
        }
        for e in _known(options).values()
    ]
    if options.json:
        _print_json(rows)
        return 0
    for row in rows:
        cells = "1 cell" if row["cells"] == 1 else f"{row['cells']} cells"
        print(f"{row['name']} ({cells}): {row['title']}")
        print("".join(f"    {name}={text}\n" for name, text in row["parameters"].items()), end="")
    return 0


def _run(options: argparse.Namespace) -> int:
    [(_, _, table)] = _computed(options, [find(options.name, options.known)], [options.out])
    if isinstance(table, CellError):
        raise table
    print("\n".join(table_lines(table)))
    print(f"\n{len(table)} rows" + (f" in {options.out / 'results.csv'}" if options.out else "; --out DIR keeps them"))
    return 0


def _plot(options: argparse.Namespace) -> int:
    from theory.plots import FIGURES, draw

    chosen = _chosen(options)
    target = options.out or (FIGURES if FIGURES.is_dir() else Path())
    if target.suffix and len(chosen) != 1:
        raise ValueError(f"--out {target} is one file, not {len(chosen)} figures: name one experiment or give a folder")
    computed = _kept(options.source, chosen, named=bool(options.name)) if options.source else _computed(options, chosen)
    for experiment, _, table in computed:
        if isinstance(table, CellError):
            raise table
        print(draw(experiment, table, target))
    return 0


def _kept(source: Path, chosen: Sequence[Experiment], *, named: bool) -> Computed:
    """Return the experiments that a folder of `run`, or the folders that `check` made in it, hold."""
    from theory.store import MANIFEST, read_manifest
    from theory.table import ResultTable

    folders = [source] if (source / MANIFEST).is_file() else [path.parent for path in source.glob(f"*/{MANIFEST}")]
    found = {manifest["experiment"]: (folder, manifest) for folder in folders for manifest in [read_manifest(folder)]}
    missing = [e.name for e in chosen if e.name not in found or not (found[e.name][0] / "results.jsonl").is_file()]
    if missing and (named or len(missing) == len(chosen)):
        raise ValueError(f"--from {source} holds no finished run of {', '.join(missing)}")
    return [
        (e, restored(e, found[e.name][1]["parameters"]), ResultTable.from_jsonl(found[e.name][0] / "results.jsonl"))
        for e in chosen
        if e.name not in missing
    ]


def _check(options: argparse.Namespace) -> int:
    begin = time.perf_counter()
    chosen = _chosen(options)
    if options.write_docs and not CHECKS.parent.is_dir():
        raise ValueError(f"--write-docs: there is no folder {CHECKS.parent}; run it in a checkout")
    out = [options.out / e.name.replace("/", "-") if options.out else None for e in chosen]
    outcomes = [_judged(*result) for result in _computed(options, chosen, out)]
    if options.write_docs:
        _write_docs(outcomes, options)
    if options.json:
        _print_json([outcome_json(outcome) for outcome in outcomes])
    else:
        print(heading())
        print("\n".join(line for outcome in outcomes for line in check_lines(outcome)))
        print(f"\n{summary_line(outcomes, time.perf_counter() - begin)}")
    if not any(outcome.checks for outcome in outcomes):
        print("theory: nothing was predicted", file=sys.stderr)
        return 1
    return int(any(outcome.failed for outcome in outcomes))


def _judged(experiment: Experiment, parameters: Any, table: ResultTable | CellError) -> Outcome:
    if isinstance(table, CellError):
        return Outcome(experiment, error=str(table))
    try:
        return Outcome(experiment, tuple(experiment.checks(table, parameters)))
    except (ValueError, ArithmeticError, LookupError) as error:
        return Outcome(experiment, error=f"its rows cannot be judged: {error}")


def _write_docs(outcomes: Iterable[Outcome], options: argparse.Namespace) -> None:
    """Put verdicts on file; those of experiments that were not run now are kept."""
    filed = json.loads(CHECKS.read_text(encoding="utf-8")) if CHECKS.is_file() else {}
    changed = [*["--quick"] * options.quick, *(["--set", *options.set] if options.set else [])]
    changed += ["--seed", str(options.seed)] if options.seed else []
    for outcome in outcomes:
        name = outcome.experiment.name
        filed[name] = {"command": " ".join(["python -m theory check", name, *changed]), **outcome_json(outcome)}
    text = json.dumps(dict(sorted(filed.items())), indent=1, ensure_ascii=False, allow_nan=False)
    CHECKS.write_text(text + "\n", encoding="utf-8")
