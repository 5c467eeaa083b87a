"""The V-cycle: train big a little, train small a lot, carry it back up, train big to the end (2404.07999).

All in NumPy, on models of `refattn.transformer`. Costs are counted, not timed. Equation labels (ml-…) are those of the
page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.multilevel import coalesce, decoalesce, interpolate
from refattn.efficiency.multilevel_cost import model_flops_per_token
from refattn.primitives.arguments import require
from refattn.transformer.adamw import adamw_step, begin_adamw, decay_mask, pack, unpack
from refattn.transformer.config import parse_config
from refattn.transformer.gradient import language_model_loss, loss_and_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.efficiency.multilevel_maps import Scheme
    from refattn.efficiency.multilevel_text import Corpus
    from refattn.transformer.config import TransformerConfig
    from refattn.transformer.weights import Transformer

__all__ = [
    "Course",
    "Level",
    "Log",
    "Trainer",
    "TrainingLog",
    "gpt_config",
    "learning_rate",
    "train",
    "v_cycle",
    "validation_loss",
]

_AT_ONCE = 8  # windows of a validation pass: few enough for the cache


class Course(NamedTuple):
    """One run of the optimiser, which begins anew with it.

    Attributes
    ----------
    steps : int
        How many.
    peak : float
        The largest learning rate.
    warmup : int
        In how many steps it is reached.
    """

    steps: int
    peak: float
    warmup: int = 0


class Level(NamedTuple):
    """One level of the V.

    Attributes
    ----------
    down : Course
        Before the model is coalesced; on the last level, all its training.
    up : Course, optional
        After what the level below learnt has been mixed in; None on the last level.
    width_scheme, depth_scheme : optional
        How the level below is made of this one; None on the last level, and where nothing merges.
    """

    down: Course
    up: Course | None = None
    width_scheme: Scheme | None = None
    depth_scheme: Scheme | None = None


class TrainingLog(NamedTuple):
    """What was noted along the way, from the first step to the last; all of shape (n,).

    Attributes
    ----------
    flops : ndarray of float
        Operations so far, of all levels together.
    loss : ndarray of float
        Validation loss of the model that was being trained, in nats.
    level : ndarray of int
        1 for the full model.
    """

    flops: np.ndarray
    loss: np.ndarray
    level: np.ndarray


class Trainer(NamedTuple):
    """What all courses of an experiment share.

    Attributes
    ----------
    corpus : Corpus
        The text.
    rng : numpy.random.Generator
        Draws the batches.
    batch : int
        B, in windows of the corpus's context.
    note_every : int
        Steps between two notes, besides one at the beginning and one at the end of each course; 0 for those only.
    final_share : float
        What is left of the peak learning rate at the end of a course.
    weight_decay, clip
        As in `refattn.transformer.adamw.adamw_step`.
    """

    corpus: Corpus
    rng: np.random.Generator
    batch: int = 16
    note_every: int = 0
    final_share: float = 0.1
    weight_decay: float = 0.01
    clip: float | None = 1.0

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw a batch: tokens (B, T) and what follows each (B, T)."""
        context = self.corpus.validation.shape[1] - 1
        begin = self.rng.integers(len(self.corpus.train) - context, size=(self.batch, 1))
        drawn = self.corpus.train[begin + np.arange(context + 1)]
        return drawn[:, :-1], drawn[:, 1:]


class Log:
    """Keeps count of operations and notes validation losses."""

    def __init__(self, corpus: Corpus) -> None:
        self.flops = 0.0
        self._corpus = corpus
        self._notes: list[tuple[float, float, int]] = []

    def note(self, model: Transformer, level: int) -> None:
        """Measure a model and write it down."""
        self._notes.append((self.flops, validation_loss(model, self._corpus), level))

    def closed(self) -> TrainingLog:
        """Return what was written down."""
        flops, loss, level = zip(*self._notes, strict=True) if self._notes else ((), (), ())
        return TrainingLog(np.array(flops, float), np.array(loss, float), np.array(level, int))


def gpt_config(vocab: int, context: int, *, n_heads: int, n_layers: int, head_size: int = 16) -> TransformerConfig:
    """Return the shape of a GPT-2 with a tied head, n_heads·head_size wide."""
    return parse_config(
        {
            "model_type": "gpt2",
            "n_embd": n_heads * head_size,
            "n_head": n_heads,
            "n_layer": n_layers,
            "n_positions": context,
            "vocab_size": vocab,
        }
    )


def learning_rate(step: int, course: Course, *, final_share: float = 0.1) -> float:
    """Return the rate of a step: up in a line to the peak, then down in a line to a share of it.

    Parameters
    ----------
    step : int
        From 0.
    course : Course
        A warm-up as long as the course never comes down.
    final_share : float
        What is left at the end.

    Returns
    -------
    float
    """
    steps, peak, warmup = course
    # eq: ml-rate
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 - (1 - final_share) * (step - warmup) / max(1, steps - warmup))


def validation_loss(model: Transformer, corpus: Corpus) -> float:
    """Return the mean loss on the windows that were held out, in nats."""
    held = corpus.validation
    parts = [held[begin : begin + _AT_ONCE] for begin in range(0, len(held), _AT_ONCE)]
    return sum(len(part) * language_model_loss(model, part[:, :-1], part[:, 1:]) for part in parts) / len(held)


def train(model: Transformer, course: Course, trainer: Trainer, log: Log, *, level: int = 1) -> Transformer:
    """Train a model for one course, from a fresh optimiser.

    Parameters
    ----------
    model : Transformer
        Where to begin; it is left as it is.
    course : Course
        Steps and rates.
    trainer : Trainer
        Text and settings.
    log : Log
        Where costs and losses are noted.
    level : int
        Under which level.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        For a negative number of steps or a warm-up longer than the course, a vocabulary smaller than the text's, a
        context longer than the model's.
    """
    steps, _, warmup = course
    require(steps >= 0, f"steps={steps} must not be negative")
    require(0 <= warmup <= steps, f"warmup={warmup} must be in 0..{steps}")
    context = trainer.corpus.validation.shape[1] - 1
    cost = trainer.batch * context * model_flops_per_token(model.config, context)
    parameters = pack(model.weights, tied=model.config.tied)
    state, decayed = begin_adamw(parameters), decay_mask(model)
    log.note(model, level)
    for step in range(steps):
        _, gradient = loss_and_gradient(model, *trainer.windows())
        parameters, state = adamw_step(
            parameters,
            pack(gradient, tied=model.config.tied),
            state,
            learning_rate=learning_rate(step, course, final_share=trainer.final_share),
            decayed=decayed,
            weight_decay=trainer.weight_decay,
            clip=trainer.clip,
        )
        model = unpack(parameters, model)
        log.flops += cost
        if step + 1 == steps or (trainer.note_every and (step + 1) % trainer.note_every == 0):
            log.note(model, level)
    return model


def v_cycle(
    model: Transformer, levels: Sequence[Level], trainer: Trainer, *, alpha: float
) -> tuple[Transformer, TrainingLog]:
    """Train a model by way of smaller ones.

    1. Train the model for a while. 2. Coalesce it. 3. Train the smaller one in the same way, or, on the last level, to
    the end. 4. De-coalesce that and mix it into what there was. 5. Train on.

    Parameters
    ----------
    model : Transformer
        The full model, freshly drawn.
    levels : sequence of Level
        At least one; the first is the full model's.
    trainer : Trainer
        Text and settings.
    alpha : float
        How much of the level below is mixed in, in [0, 1].

    Returns
    -------
    model : Transformer
        Of the shape of ``model``.
    log : TrainingLog

    Raises
    ------
    ValueError
        As `train`, `coalesce` and `interpolate`; for no levels, a way up on the last level, or none on another.

    References
    ----------
    2404.07999, algorithm 1 [recalled].
    """
    require(len(levels) > 0, "levels must hold at least one level")
    for number, level in enumerate(levels, start=1):
        last = number == len(levels)
        require(last == (level.up is None), f"level {number} of {len(levels)}: the last has no way up, the others have")
    require(0 <= alpha <= 1, f"alpha={alpha!r} must be in [0, 1]")
    log = Log(trainer.corpus)
    return _descend(model, levels, 1, trainer, log, alpha), log.closed()


def _descend(
    model: Transformer, levels: Sequence[Level], number: int, trainer: Trainer, log: Log, alpha: float
) -> Transformer:
    level = levels[number - 1]
    model = train(model, level.down, trainer, log, level=number)
    if level.up is None:
        return model
    schemes: dict[str, Any] = {"width_scheme": level.width_scheme, "depth_scheme": level.depth_scheme}
    small = _descend(coalesce(model, **schemes), levels, number + 1, trainer, log, alpha)
    # eq: ml-mix
    mixed = interpolate(model, decoalesce(small, **schemes), alpha)
    return train(mixed, level.up, trainer, log, level=number)
