"""Training by V-cycle: schedule, batches, costs, notes, and the levels in their order."""

import numpy as np
import pytest
from random_models import CONFIGS

from refattn.efficiency.multilevel_cost import model_flops_per_token, training_flops_per_token, v_cycle_cost
from refattn.efficiency.multilevel_text import corpus_of, documentation_text, grammar_text
from refattn.efficiency.multilevel_training import (
    Course,
    Level,
    Log,
    Trainer,
    gpt_config,
    learning_rate,
    train,
    v_cycle,
    validation_loss,
)
from refattn.transformer.adamw import pack
from refattn.transformer.config import parse_config
from refattn.transformer.weights import initial_transformer

TEXT = grammar_text(0, 30_000)
CORPUS = corpus_of(TEXT, 8, windows=32)
PAIRS = [[0, 1]]


def trainer(**changes):
    return Trainer(CORPUS, np.random.default_rng(0), batch=4, **changes)


def model(heads=2, layers=2):
    config = gpt_config(len(CORPUS.alphabet), 8, n_heads=heads, n_layers=layers, head_size=4)
    return initial_transformer(config, np.random.default_rng(1))


def test_costs_are_those_of_the_sizes():
    """The counts of the two models of the experiment, and how each term shrinks when width and depth are halved."""
    assert training_flops_per_token(23, 32, 64, 4) == 1286784
    assert training_flops_per_token(23, 32, 32, 2) == 176448
    assert training_flops_per_token(60, 32, 64, 4) == 1300992
    assert model_flops_per_token(gpt_config(60, 32, n_heads=2, n_layers=2), 32) == 183552
    products, attention, head = (
        training_flops_per_token(*sizes) for sizes in ((0, 0, 64, 4), (0, 9, 64, 4), (7, 0, 64, 0))
    )
    attention -= products
    assert products == 8 * training_flops_per_token(0, 0, 32, 2)
    assert attention == 4 * (training_flops_per_token(0, 9, 32, 2) - training_flops_per_token(0, 0, 32, 2))
    assert head == 2 * training_flops_per_token(7, 0, 32, 0)
    assert v_cycle_cost(0.05, 1.5, 0.5, 176448 / 1286784) == pytest.approx(0.7557, abs=1e-4)


def test_the_rate_goes_up_and_down_in_lines():
    """Warm-up to the peak, then a straight way down to a tenth of it; all warm-up never comes down."""
    course = Course(10, 2.0, 4)
    rates = [learning_rate(step, course) for step in range(11)]

    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-15)
    np.testing.assert_allclose(np.diff(rates[4:]), -0.3, rtol=1e-12)
    assert rates[10] == pytest.approx(0.2)
    assert learning_rate(9, Course(10, 2.0, 10)) == 2.0
    assert learning_rate(0, Course(1, 2.0)) == 2.0


def test_a_course_learns_and_leaves_its_model_alone():
    """Sixty steps bring the loss well below that of guessing; what was handed in is as it was; costs are counted."""
    begin = model()
    before = pack(begin.weights, tied=True).copy()
    log = Log(CORPUS)

    end = train(begin, Course(60, 1e-2, 5), trainer(note_every=25), log)
    noted = log.closed()

    np.testing.assert_array_equal(pack(begin.weights, tied=True), before)
    assert noted.loss[0] == pytest.approx(np.log(len(CORPUS.alphabet)), rel=0.01)
    assert noted.loss[-1] == validation_loss(end, CORPUS) < noted.loss[0] - 0.3
    step = 4 * 8 * model_flops_per_token(begin.config, 8)
    np.testing.assert_array_equal(noted.flops, np.array([0, 25, 50, 60]) * step)


def test_a_course_repeats_itself():
    """The same seeds give the same model, bit by bit."""
    first, second = (train(model(), Course(5, 1e-2), trainer(), Log(CORPUS)) for _ in range(2))

    np.testing.assert_array_equal(*(pack(end.weights, tied=True) for end in (first, second)))


def test_a_v_goes_down_and_up():
    """Three levels are trained in the order 1, 2, 3, 2, 1, each at its own cost, and the full shape comes back."""
    start = model(heads=4, layers=4)
    levels = (
        Level(Course(3, 1e-3, 3), Course(2, 1e-3), [[0, 2], [1, 3]], [[0, 1], [2, 3]]),
        Level(Course(4, 1e-3), Course(5, 1e-3), PAIRS, PAIRS),
        Level(Course(6, 1e-3)),
    )

    end, log = v_cycle(start, levels, trainer(), alpha=0.5)

    assert end.config == start.config
    np.testing.assert_array_equal(log.level, [1, 1, 2, 2, 3, 3, 2, 2, 1, 1])
    costs = [
        model_flops_per_token(gpt_config(len(CORPUS.alphabet), 8, n_heads=h, n_layers=h, head_size=4), 8)
        for h in (4, 2, 1)
    ]
    expected = 4 * 8 * (5 * costs[0] + 9 * costs[1] + 6 * costs[2])
    assert log.flops[-1] == expected


def test_at_alpha_zero_the_small_model_is_forgotten():
    """What the level below learnt comes up by α alone: with α = 0 the big model goes on from where it was."""
    top = Level(Course(3, 1e-3), Course(0, 1e-3), PAIRS, PAIRS)

    end, log = v_cycle(model(), (top, Level(Course(5, 1e-2))), trainer(), alpha=0.0)
    plain = train(model(), Course(3, 1e-3), trainer(), Log(CORPUS))

    np.testing.assert_array_equal(pack(end.weights, tied=True), pack(plain.weights, tied=True))
    assert log.loss[1] == log.loss[-1]


def test_texts_are_what_they_say():
    """The grammar is the same for the same seed and agrees in number; the documentation has sixty symbols."""
    assert grammar_text(0, 30_000) == TEXT
    assert grammar_text(1, 1000) != TEXT[:1000]
    assert set(TEXT) <= set("abcdefgiklmnoprstuv (). ")
    clauses = [said.strip(" ()").split() for said in TEXT.split(".")[:-1]]
    for determiner, *words in (clause for clause in clauses if "ke" not in clause):
        verb = next(word for word in words if word.endswith(("t", "n")))
        assert {"un": "t", "lo": "n"}[determiner] == verb[-1]
        assert words[0].endswith("s") == (determiner == "lo")
    assert len(set(documentation_text())) <= 60
    assert len(set(documentation_text(10))) == 10


def test_held_out_blocks_are_not_trained_on():
    """Every tenth block is held out: its windows lie in it, and the rest is the training text in order."""
    text = "".join(chr(97 + (i // 20) % 20) for i in range(400))
    corpus = corpus_of(text, 4, block=20, every=10)

    held = {corpus.alphabet[token] for token in np.unique(corpus.validation)}
    assert held == {"j", "t"}
    assert not held & {corpus.alphabet[token] for token in np.unique(corpus.train)}
    assert corpus.validation.shape[1] == 5
    assert len(corpus_of(text, 4, block=20, every=10, windows=3).validation) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training_flops_per_token(1, 1, -1, 1), "width=-1 must not be negative"),
        (lambda: model_flops_per_token(parse_config(CONFIGS["gpt2_inverse_layer"]), 8), "d_mlp=24 must be 4 times"),
        (lambda: train(model(), Course(-1, 1e-3), trainer(), Log(CORPUS)), "steps=-1 must not be negative"),
        (lambda: train(model(), Course(2, 1e-3, 3), trainer(), Log(CORPUS)), r"warmup=3 must be in 0\.\.2"),
        (lambda: v_cycle(model(), (), trainer(), alpha=0.5), "levels must hold at least one level"),
        (lambda: v_cycle(model(), (Level(Course(1, 1e-3), Course(1, 1e-3)),), trainer(), alpha=0.5), "no way up"),
        (lambda: v_cycle(model(), (Level(Course(1, 1e-3)),), trainer(), alpha=-0.5), "alpha=-0.5 must be in"),
        (lambda: corpus_of(TEXT, 2048), r"context=2048 must be in 1\.\.2047"),
        (lambda: corpus_of("short", 8), "text of 5 characters is shorter than 10 blocks"),
        (lambda: grammar_text(0, 0), "length=0 must be at least 1"),
        (lambda: documentation_text(1), "symbols=1 must be at least 2"),
        (
            lambda: train(
                initial_transformer(gpt_config(5, 8, n_heads=1, n_layers=1), np.random.default_rng(0)),
                Course(1, 1e-3),
                trainer(),
                Log(CORPUS),
            ),
            "outside vocabulary of 5",
        ),
        (
            lambda: train(
                initial_transformer(gpt_config(30, 4, n_heads=1, n_layers=1), np.random.default_rng(0)),
                Course(1, 1e-3),
                trainer(),
                Log(CORPUS),
            ),
            "sequence of 8 exceeds 4 learned positions",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(call, message):
    """Courses, levels, texts and models that do not fit are refused in words."""
    with pytest.raises(ValueError, match=message):
        call()
