"""The command line of readings: ``refattn analyse sinks | retrieval | channels | circuit PATH``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refattn.cli_model import add_path, add_prompt, load, prompt_ids

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from refattn.interpretability.report import Report

    Command = Callable[[argparse.Namespace], int]

__all__ = ["add_analyse_commands"]


_PROMPTS = 'JSON: {"clean": [[ids]], "corrupt": [[ids]], "answers": [[right, wrong]]}, and "source": int if it is known'


def add_analyse_commands(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands; ``add(name, command, text)`` makes a parser that knows ``--json``."""
    sinks = add("sinks", _sinks, "find the primary and secondary attention sinks of a text")
    add_path(sinks)
    add_prompt(sinks)
    sinks.add_argument("--threshold", type=float, default=0.9, help="of the cosine to the primary sink (0.9)")
    sinks.add_argument("--min-lifetime", type=int, default=5, help="layers that make a secondary sink (5)")
    sinks.add_argument("--bos-margin", type=int, default=15, help="layers less than all that make a primary one (15)")
    retrieval = add("retrieval", _retrieval, "find the heads that copy from far back, by needles in a haystack")
    add_path(retrieval)
    retrieval.add_argument("--length", type=int, action="append", help="of a haystack (repeatable); 64, 128, 256")
    retrieval.add_argument("--bos", type=int, default=0, help="the token that opens a text (0)")
    retrieval.add_argument("--threshold", type=float, default=0.1, help="score of a retrieval head (0.1)")
    retrieval.add_argument("--seed", type=int, default=0, help="of words and needles (0)")
    channels = add("channels", _channels, "find components by which earlier heads talk to later ones")
    add_path(channels)
    channels.add_argument("--z", type=float, default=4.0, help="robust standard deviations that stand out (4)")
    circuit = add("circuit", _circuit, "trace the heads that answer some prompts, by path patching")
    add_path(circuit)
    circuit.add_argument("prompts", type=Path, help=_PROMPTS)
    circuit.add_argument("--source", type=int, help="position that the last stage reads; the file's, if it has one")
    circuit.add_argument("--threshold", type=float, help="least effect that counts; the strongest 2 % if not given")
    for parser in (sinks, retrieval, channels, circuit):
        parser.add_argument("--out", type=Path, help="write a figure here")


def _sinks(options: argparse.Namespace) -> int:
    from refattn.interpretability.secondary_sinks_report import report

    model = load(options)
    ids, _ = prompt_ids(options, model)
    return _show(
        options,
        report(
            model,
            ids,
            threshold=options.threshold,
            min_lifetime=options.min_lifetime,
            bos_margin=options.bos_margin,
        ),
    )


def _retrieval(options: argparse.Namespace) -> int:
    from refattn.interpretability.retrieval_heads_report import report

    found = report(
        load(options), lengths=options.length, bos=options.bos, threshold=options.threshold, seed=options.seed
    )
    return _show(options, found)


def _channels(options: argparse.Namespace) -> int:
    from refattn.interpretability.talking_heads_report import report

    return _show(options, report(load(options), z=options.z))


def _circuit(options: argparse.Namespace) -> int:
    from refattn.interpretability.circuit_reuse_list import read_prompts
    from refattn.interpretability.circuit_reuse_report import report

    clean, corrupt, answers, source = read_prompts(options.prompts)
    source = source if options.source is None else options.source
    found = report(load(options), clean, corrupt, answers, source=source, threshold=options.threshold)
    return _show(options, found)


def _show(options: argparse.Namespace, found: Report) -> int:
    if options.json:
        print(json.dumps(found.rows, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_table(found.rows)))
    if options.out:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.5), layout="constrained")
        found.draw(figure)
        figure.savefig(options.out)
        print(f"figure: {options.out}" if not options.json else "", end="" if options.json else "\n")
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Return rows as aligned columns."""
    if not rows:
        return ["nothing found"]
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
