"""Generation: greedy and drawn, with the cache and without."""

import numpy as np
import pytest
from random_models import CONFIGS, model, tokens

from refattn.transformer.forward import forward
from refattn.transformer.generation import generate, next_token_probabilities


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_changes_no_token(name):
    """Greedy and seeded generation give the same tokens with the cache and without."""
    for settings in ({}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}):
        rows = [
            generate(model(name), tokens((2, 5)), 8, use_cache=cached, rng=np.random.default_rng(4), **settings)
            for cached in (True, False)
        ]
        np.testing.assert_array_equal(*rows)


def test_greedy_takes_the_most_likely_token():
    """At temperature 0 each token is the arg-max; a low temperature comes to the same."""
    greedy = generate(model("llama"), tokens((2, 3)), 6)
    cold = generate(model("llama"), tokens((2, 3)), 6, temperature=1e-4, rng=np.random.default_rng(0))

    assert greedy.shape == (2, 9)
    np.testing.assert_array_equal(greedy[:, :3], tokens((2, 3)))
    np.testing.assert_array_equal(greedy, cold)


def test_the_same_seed_draws_the_same_tokens():
    """Draws come from the generator alone."""
    rows = [
        generate(model("gpt2"), tokens((2, 3)), 6, temperature=2.0, rng=np.random.default_rng(s)) for s in (1, 1, 2)
    ]

    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_draws_follow_the_distribution():
    """The share of each drawn token is its probability, within four standard errors."""
    ids, n = tokens((1, 4)), 4000
    drawn = generate(model("gpt2"), np.repeat(ids, n, axis=0), 1, temperature=1.5, rng=np.random.default_rng(0))[:, -1]
    p = next_token_probabilities(forward(model("gpt2"), ids).logits[0, -1], temperature=1.5)
    error = np.sqrt(p * (1 - p) / n)
    assert np.all(np.abs(np.bincount(drawn, minlength=29) / n - p) < 4 * error + 1e-9)


def test_a_finished_row_waits_for_the_others():
    """After its stop token a row repeats it; when all rows are finished, generation ends."""
    free = generate(model("llama"), tokens((2, 3)), 6)
    stop = int(free[0, 4])
    stopped = generate(model("llama"), tokens((2, 3)), 6, stop_ids=[stop])
    first = np.flatnonzero(free[0, 3:] == stop)[0] + 3

    np.testing.assert_array_equal(stopped[0, : first + 1], free[0, : first + 1])
    assert np.all(stopped[0, first:] == stop)
    assert generate(model("llama"), tokens((1, 3)), 6, stop_ids=range(29)).shape == (1, 4)


def test_padding_on_the_left_changes_no_token():
    """A padded prompt, with its mask, continues as it does alone."""
    ids = tokens((1, 4))
    padded, mask = np.concatenate([[[7, 7]], ids], axis=1), np.array([[False] * 2 + [True] * 4])

    np.testing.assert_array_equal(
        generate(model("llama3"), padded, 6, key_mask=mask)[:, 6:], generate(model("llama3"), ids, 6)[:, 4:]
    )


def test_nothing_more_is_nothing_more():
    """Zero new tokens return the prompt; hooks and stop tokens do not disturb that."""
    np.testing.assert_array_equal(generate(model("gpt2"), tokens((2, 3)), 0), tokens((2, 3)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.41}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.72}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 0.5}, np.square([0.4, 0.3, 0.2, 0.1]) / 0.3),
        ({"top_k": 9, "top_p": 1.0}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_filters_keep_the_most_likely(settings, expected):
    """Top-k keeps k tokens, top-p the fewest that reach p, the temperature sharpens; all sum to 1."""
    p = next_token_probabilities(np.log([0.4, 0.3, 0.2, 0.1]), **settings)
    np.testing.assert_allclose(p, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ids": np.zeros((1, 0), int)}, "a prompt needs at least one"),
        ({"n_new": -1}, "n_new=-1 must not be negative"),
        ({"temperature": 1.0}, "temperature=1.0 needs an rng"),
        ({"temperature": -1.0, "rng": np.random.default_rng()}, "temperature=-1.0 must not be negative"),
        ({"temperature": 1.0, "rng": np.random.default_rng(), "top_k": 0}, "top_k=0 must be at least 1"),
        ({"temperature": 1.0, "rng": np.random.default_rng(), "top_p": 0.0}, "top_p=0.0 must lie in"),
        ({"n_new": 30}, "exceeds 24 learned positions"),
    ],
)
def test_bad_settings_are_named(settings, message):
    """What cannot be drawn, or does not fit the model, is refused."""
    arguments = {"ids": tokens((1, 3)), "n_new": 2} | settings
    with pytest.raises(ValueError, match=message):
        generate(model("gpt2"), arguments.pop("ids"), arguments.pop("n_new"), **arguments)
