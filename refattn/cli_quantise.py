"""The command line of quantisation: ``refattn quantise PATH --bits 2 --calibration text.txt --out DIR``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refattn.cli_model import add_path, load
from refattn.primitives.arguments import require

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import numpy as np

    from refattn.efficiency.quantise import Quantised
    from refattn.transformer.weights import Transformer

    Command = Callable[[argparse.Namespace], int]

__all__ = ["add_quantise_command"]

_METHODS = ("rtn", "gptq", "boa", "turboboa")
_RECIPE = ("bits", "method", "grid", "block_rows", "alpha", "adaptive_grid", "refine_sweeps")
_ORDERS = ("act_order_rows", "act_order_cols")


def add_quantise_command(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the command; ``add(name, command, text)`` makes a parser that knows ``--json``."""
    parser = add("quantise", _quantise, "round the matrices of a checkpoint to a few bits; write one that loads again")
    add_path(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write, new or empty")
    parser.add_argument("--bits", type=int, required=True, help="of a weight, 1 to 16")
    parser.add_argument("--method", default="turboboa", help=f"{', '.join(_METHODS)} (turboboa)")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--calibration", type=Path, metavar="FILE", help="text, for a checkpoint with tokenizer.json")
    text.add_argument("--ids", type=Path, metavar="FILE", help="the same as token ids, separated by white space")
    parser.add_argument("--sequences", type=int, default=128, metavar="N", help="of the text at most (128)")
    parser.add_argument("--length", type=int, metavar="T", help="tokens of a sequence; 2048 or the context if shorter")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of sequences (0)")
    parser.add_argument("--grid", default="hessian", help="minmax, mmse or hessian: how scales are found (hessian)")
    parser.add_argument("--block-rows", type=int, default=16, metavar="N", help="turboboa: rows at a time (16)")
    parser.add_argument("--alpha", type=float, default=0.25, help="turboboa: weight of earlier layers' error (0.25)")
    parser.add_argument(
        "--fixed-grid",
        dest="adaptive_grid",
        action="store_false",
        help="turboboa: find the grids of all rows before any is quantised",
    )
    parser.add_argument("--refine-sweeps", type=int, default=1, metavar="N", help="turboboa: over the scales (1)")
    parser.add_argument("--act-order-rows", action="store_true", help="boa, turboboa: rows of large Hessian first")
    parser.add_argument("--act-order-cols", action="store_true", help="all but rtn: columns of large Hessian first")


def _quantise(options: argparse.Namespace) -> int:
    from refattn.efficiency.quantise import quantise
    from refattn.efficiency.quantise_checkpoint import refuse_filled, refuse_quantised, save_quantised
    from refattn.efficiency.quantise_matrices import Recipe, check_recipe

    require(options.path.is_dir(), f"path={str(options.path)!r} is no folder")
    refuse_quantised(options.path)
    refuse_filled(options.out)
    recipe = {name: getattr(options, name) for name in (*_RECIPE, *_ORDERS)}
    check_recipe(Recipe(**recipe))  # before a large checkpoint is read
    model = load(options)
    ids = _calibration(options, model)
    matrices = 7 if model.config.gated else 6
    with _Progress(model.config.n_layers * matrices) as progress:
        quantised = quantise(model, ids, **recipe, progress=progress)
    about = recipe | {"sequences": len(ids), "length": ids.shape[1], "seed": options.seed}
    written = save_quantised(quantised, options.path, options.out, about)
    if options.json:
        print(json.dumps(_values(quantised, about, options.out, written), indent=1, ensure_ascii=False))
    else:
        print("\n".join([*_table(quantised), "", f"wrote {options.out}: {', '.join(written)}"]))
    return 0


def _calibration(options: argparse.Namespace, model: Transformer) -> np.ndarray:
    """Return the sequences (B, T) to calibrate on."""
    from refattn.efficiency.quantise_checkpoint import calibration_sequences, read_ids, read_text
    from refattn.transformer.tokens import load_tokenizer

    if options.ids is not None:
        ids: Any = read_ids(options.ids)
    else:
        text = read_text("calibration", options.calibration)
        ids = load_tokenizer(options.path, model.config.vocab_size).encode(text).ids
    length = min(2048, model.config.n_ctx) if options.length is None else options.length
    return calibration_sequences(ids, count=options.sequences, length=length, seed=options.seed)


def _values(quantised: Quantised, about: dict[str, Any], out: Path, written: list[str]) -> dict[str, Any]:
    return {
        "out": str(out),
        "written": written,
        "recipe": about,
        "losses": [loss._asdict() for loss in quantised.losses],
        "drift": list(quantised.drift),
    }


def _table(quantised: Quantised) -> list[str]:
    """Return losses as aligned columns; after the matrices of a block, how far its output has drifted."""
    lines = [f"{'layer':>5}  {'matrix':<8}{'rows':>7}{'columns':>9}{'loss':>12}{'error':>10}{'drift':>10}"]
    for index, loss in enumerate(quantised.losses):
        is_last = index + 1 == len(quantised.losses) or quantised.losses[index + 1].layer != loss.layer
        drift = f"{quantised.drift[loss.layer]:>10.4g}" if is_last else ""
        size = f"{loss.rows:>7}{loss.columns:>9}"
        lines.append(f"{loss.layer:>5}  {loss.matrix:<8}{size}{loss.loss:>12.4g}{loss.error:>10.4g}{drift}")
    return lines


class _Progress:
    """A bar on standard error, if that is a terminal."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="matrix", disable=not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Callable[[str], None]:
        return self.step

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def step(self, name: str) -> None:
        self.bar.set_postfix_str(name, refresh=False)
        self.bar.update()
