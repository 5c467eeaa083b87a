"""What a V-cycle saves: train small GPTs from scratch and by way of a smaller one, on two texts, from three seeds.

``--jobs N`` spreads the runs over processes. Each row, with its curve, is filed in ``multilevel_table.json`` beside
this file, and a run that is on file is not repeated; ``--stored`` prints the tables and trains nothing. NumPy alone;
about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.multilevel_text import Corpus, corpus_of, documentation_text, grammar_text
from refattn.efficiency.multilevel_training import Course, Level, Log, Trainer, TrainingLog, gpt_config, train, v_cycle
from refattn.transformer.weights import initial_transformer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from refattn.transformer.weights import Transformer

ROWS = Path(__file__).with_suffix(".json")
CONTEXT, BATCH, HEADS, LAYERS = 32, 16, 4, 4
TEXTS = {"grammar": grammar_text, "documentation": documentation_text}
HALVES = ((0, 2), (1, 3))
NEIGHBOURS = ((0, 1), (2, 3))


@dataclass(frozen=True)
class Run:
    """One training run; steps in units of S, the length of the run from scratch."""

    text: str
    seed: int
    name: str
    S: int
    initial: float = 0.05
    small: float = 1.5
    final: float = 0.5
    alpha: float = 0.75
    peak: float = 6e-3
    small_peak: float = 1.5e-2
    layers: tuple[tuple[int, ...], ...] = HALVES
    tied: bool = True

    def steps(self, share: float) -> int:
        """Return a share of S in steps."""
        return round(share * self.S)


@cache
def corpus(text: str) -> Corpus:
    """Return a text by its name."""
    return corpus_of(TEXTS[text](), CONTEXT)


def fresh(run: Run, heads: int, layers: int) -> Transformer:
    """Draw the model that a run begins with."""
    config = gpt_config(len(corpus(run.text).alphabet), CONTEXT, n_heads=heads, n_layers=layers)
    return initial_transformer(config._replace(tied=run.tied), np.random.default_rng((run.seed, 0)))


def one_course(model: Transformer, course: Course, level: int, trainer: Trainer) -> TrainingLog:
    """Train one model from scratch."""
    log = Log(trainer.corpus)
    train(model, course, trainer, log, level=level)
    return log.closed()


def trained(run: Run) -> TrainingLog:
    """Carry out a run: ``scratch``, ``scratch, short`` (¾ S), ``small alone``, or a V-cycle by any other name."""
    trainer = Trainer(corpus(run.text), np.random.default_rng((run.seed, 1)), BATCH, note_every=max(10, run.S // 20))
    model, half = fresh(run, HEADS, LAYERS), (HEADS // 2, LAYERS // 2)
    small = Course(run.steps(run.small), run.small_peak, run.steps(run.small) // 20)
    if run.name.startswith("scratch"):
        steps = run.steps(0.75 if run.name == "scratch, short" else 1.0)
        return one_course(model, Course(steps, run.peak, steps // 20), 1, trainer)
    if run.name == "small alone":
        return one_course(fresh(run, *half), small, 2, trainer)
    initial, final = run.steps(run.initial), run.steps(run.final)
    top = Level(Course(initial, run.peak, initial), Course(final, run.peak, run.steps(0.02)), HALVES, run.layers)
    return v_cycle(model, (top, Level(small)), trainer, alpha=run.alpha)[1]


def perform(run: Run) -> dict[str, Any]:
    """Carry out a run and return its row: what it was, its operations, its validation losses."""
    began = time.process_time()
    log = trained(run)
    curve = {name: [round(float(x), 6) for x in values] for name, values in log._asdict().items()}
    return {**asdict(run), "curve": curve, "seconds": round(time.process_time() - began, 1)}


def perform_all(runs: list[Run], jobs: int) -> Iterator[dict[str, Any]]:
    """Carry out runs in so many processes; yield rows in the order of the runs."""
    if jobs == 1:
        yield from map(perform, runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(perform, runs)


def complete(runs: list[Run], jobs: int) -> None:
    """Carry out the runs that are not on file yet, and file each row when it is there."""
    filed = {_key(row): row for row in stored()}
    keys = [_key(asdict(run)) for run in runs]
    todo = [run for run, key in zip(runs, keys, strict=True) if key not in filed]
    for row in perform_all(todo, jobs):
        filed[_key(row)] = row
        kept = [json.dumps(filed[key], ensure_ascii=False) for key in keys if key in filed]
        ROWS.write_text("\n".join(["[", ",\n".join(kept), "]", ""]), encoding="utf-8")
        print(f"{row['text']}, seed {row['seed']}, {row['name']}: {at_the_end(row):.4f}", file=sys.stderr, flush=True)


def _key(row: dict[str, Any]) -> str:
    """Return what a run was, without what came of it."""
    return json.dumps({key: value for key, value in row.items() if key not in ("curve", "seconds")})


def stored() -> list[dict[str, Any]]:
    """Return the rows on file."""
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.is_file() else []
    return rows


def comparison(S: int, seeds: Iterable[int], names: Iterable[str] = ("scratch", "V-cycle")) -> list[Run]:
    """Return the runs that are compared, on both texts."""
    return [Run(text, seed, name, S, **WAYS.get(name, {})) for text in TEXTS for seed in seeds for name in names]


WAYS: dict[str, dict[str, Any]] = {"V-cycle, 0.4 S": {"final": 0.4}}
ALL_WAYS = ("scratch", "V-cycle", "V-cycle, 0.4 S", "scratch, short", "small alone")


def ablations(S: int) -> list[Run]:
    """Return the runs in which one thing is another, on the documentation, seed 0."""
    usual = Run("documentation", 0, "", S)
    changes: dict[str, dict[str, Any]] = {
        "α = 0.25": {"alpha": 0.25},
        "α = 0.5": {"alpha": 0.5},
        "α = 1": {"alpha": 1.0},
        "E_a = 0.02 S": {"initial": 0.02},
        "neighbouring layers merge": {"layers": NEIGHBOURS},
        "head of its own": {"tied": False},
        "scratch, head of its own": {"tied": False},
        "scratch, rate 0.003": {"peak": 3e-3},
        "scratch, rate 0.01": {"peak": 1e-2},
    }
    return [replace(usual, name=name, **change) for name, change in changes.items()]


def chosen(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Return the rows with these entries."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def at_the_end(row: dict[str, Any], what: str = "loss") -> float:
    """Return the last loss, or the operations of a whole run."""
    return float(row["curve"][what][-1])


def saved(scratch: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Return which share of the operations from scratch a run did without when it first was as good; None if never."""
    target = at_the_end(scratch)
    for flops, loss, level in zip(*(row["curve"][key] for key in ("flops", "loss", "level")), strict=True):
        if loss <= target and level == 1:
            return float(1 - flops / at_the_end(scratch, "flops"))
    return None


def in_percent(share: float | None) -> str:
    """Return a share in words."""
    return "never as good" if share is None else f"{share:.0%}"


def text_table(rows: list[dict[str, Any]], text: str) -> str:
    """Return the losses of every way on one text, and what the V-cycle saved, as a Markdown table."""
    seeds = sorted({row["seed"] for row in chosen(rows, text=text, name="scratch")})
    whole = at_the_end(chosen(rows, text=text, name="scratch")[0], "flops")
    lines = [f"| {text} | FLOPs | {' | '.join(f'seed {s}' for s in seeds)} | mean |"]
    lines.append(f"| --- | --- | {'--- | ' * len(seeds)}--- |")
    for name in ALL_WAYS:
        found = [row for row in chosen(rows, text=text, name=name) if row["seed"] in seeds]
        if found:
            losses = [at_the_end(row) for row in sorted(found, key=lambda row: row["seed"])]
            share = at_the_end(found[0], "flops") / whole
            cells = " | ".join(f"{loss:.4f}" for loss in losses)
            lines.append(f"| {name} | {share:.3f} | {cells} | {np.mean(losses):.4f} |")
    pairs = [[chosen(rows, text=text, seed=s, name=n)[0] for n in ("scratch", "V-cycle")] for s in seeds]
    cells = " | ".join(in_percent(saved(*pair)) for pair in pairs)
    return "\n".join([*lines, f"| saved at equal loss | | {cells} | |"])


def ablation_table(rows: list[dict[str, Any]], S: int) -> str:
    """Return the last losses of the ablations as a Markdown table."""
    usual = [chosen(rows, text="documentation", seed=0, name=name)[0] for name in ("scratch", "V-cycle")]
    other = [row for run in ablations(S) for row in chosen(rows, text="documentation", seed=0, name=run.name)]
    whole = at_the_end(usual[0], "flops")
    lines = ["| documentation, seed 0 | FLOPs | loss |", "| --- | --- | --- |"]
    lines += [f"| {r['name']} | {at_the_end(r, 'flops') / whole:.3f} | {at_the_end(r):.4f} |" for r in [*usual, *other]]
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="examples/multilevel_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1); give each one thread")
    parser.add_argument("--steps", type=int, default=1200, metavar="S", help="steps from scratch (1200)")
    parser.add_argument("--stored", action="store_true", help="print the tables of the last run and train nothing")
    arguments = parser.parse_args()
    if not arguments.stored:
        ways = [comparison(arguments.steps, (0, 1, 2), names) for names in (ALL_WAYS[:2], ALL_WAYS[2:])]
        complete([*ways[0], *ways[1], *ablations(arguments.steps)], arguments.jobs)
    rows = stored()
    print("\n\n".join([*(text_table(rows, text) for text in TEXTS), ablation_table(rows, rows[0]["S"])]))
    print(f"\nS = {rows[0]['S']}; {sum(row['seconds'] for row in rows) / 60:.0f} minutes of processor time")


if __name__ == "__main__":
    main()
