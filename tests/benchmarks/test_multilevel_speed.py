"""One training step of the experiment's GPT, in NumPy against PyTorch eager, and the operations that a V-cycle saves.

``OMP_NUM_THREADS=1 python tests/benchmarks/test_multilevel_speed.py`` prints the ratio on one thread beside its bar,
and trains the short version of the experiment on the grammar. Nothing is asserted on time.
"""

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from refattn.efficiency.multilevel_training import gpt_config
from refattn.transformer.adamw import adamw_step, begin_adamw, decay_mask, pack, unpack
from refattn.transformer.gradient import loss_and_gradient
from refattn.transformer.weights import initial_transformer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOCAB, CONTEXT, BATCH = 23, 32, 16
MODELS = {"big": (4, 4), "small": (2, 2)}


def batch():
    return np.random.default_rng(0).integers(VOCAB, size=(2, BATCH, CONTEXT))


def numpy_stepper(heads, layers):
    """Return a function that takes one step on ids and targets and returns the loss."""
    model = initial_transformer(
        gpt_config(VOCAB, CONTEXT, n_heads=heads, n_layers=layers), np.random.default_rng(0), dtype=np.float32
    )
    parameters, decayed = pack(model.weights, tied=True), decay_mask(model)
    state = begin_adamw(parameters)

    def step(ids, targets):
        nonlocal parameters, state
        loss, gradient = loss_and_gradient(unpack(parameters, model), ids, targets)
        parameters, state = adamw_step(
            parameters, pack(gradient, tied=True), state, learning_rate=6e-3, decayed=decayed
        )
        return loss

    return step


def torch_stepper(heads, layers):
    """Return the same in PyTorch, on one thread."""
    import torch
    from torch_gpt import stepper

    torch.set_num_threads(1)
    step = stepper(VOCAB, CONTEXT, 16 * heads, heads, layers)
    return lambda ids, targets: step(torch.from_numpy(ids), torch.from_numpy(targets))


@pytest.mark.parametrize("size", MODELS)
def test_one_step(benchmark, size):
    """The loss of a step is a number, and falls when the same batch comes again."""
    step, (ids, targets) = numpy_stepper(*MODELS[size]), batch()
    first = step(ids, targets)
    assert benchmark(step, ids, targets) < first


def shortest_in_turn(steps, rounds=12, each=5):
    """Return the shortest processor time of a step of each, run in turn so that both see the same machine."""
    ids, targets = batch()
    best = [np.inf] * len(steps)
    for _ in range(rounds):
        for number, step in enumerate(steps):
            begin = time.process_time()
            for _ in range(each):
                step(ids, targets)
            best[number] = min(best[number], (time.process_time() - begin) / each)
    return best


def main():
    """Print ratios and savings beside their bars."""
    if find_spec("torch"):
        for name, size in MODELS.items():
            ours, theirs = shortest_in_turn([numpy_stepper(*size), torch_stepper(*size)])
            print(
                f"training step, {name}: NumPy {1e3 * ours:.1f} ms, PyTorch eager {1e3 * theirs:.1f} ms, "
                f"speed {theirs / ours:.2f}x (bar 1.0; one thread each)"
            )
    sys.path.insert(0, str(EXAMPLES))
    from multilevel_table import Run, perform, saved

    for seed in (0, 1, 2):
        scratch, cycle = (perform(Run("grammar", seed, name, 600)) for name in ("scratch", "V-cycle"))
        share = saved(scratch, cycle)
        words = "never as good" if share is None else f"{share:.0%} fewer operations at equal loss"
        print(f"grammar, S = 600, seed {seed}: {words} (bar 20%)")


if __name__ == "__main__":
    main()
