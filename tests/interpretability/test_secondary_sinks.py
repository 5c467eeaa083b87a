"""Secondary sinks: detection, scores, levels and steering, on drawn hidden states and on a model with planted sinks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interpretability import secondary_sinks_formation as formation
from refattn.interpretability.secondary_sinks import (
    attention_patterns,
    cosine_similarity,
    detect_sinks,
    hidden_states,
    label_sinks,
    primary_cosines,
    sink_levels,
    sink_lives,
    sink_membership,
    sink_score,
)
from refattn.interpretability.secondary_sinks_levels import Level, cluster_levels, level_histogram
from refattn.interpretability.secondary_sinks_report import report
from refattn.transformer.planted.sink_model import build_sink_model, planted_cosine, planted_levels

IDS = np.array([0, 5, 6, 1, 7, 8, 2, 9, 4, 3, 5, 6, 7, 8, 9, 10, 11, 4, 5, 6])
SIX = ((1, 8, 16.0), (2, 8, 22.0), (3, 8, 28.0), (4, 14, 22.0), (5, 14, 28.0), (6, 14, 34.0))


@pytest.fixture(scope="module")
def planted():
    return build_sink_model()


@pytest.fixture(scope="module")
def planted_states(planted):
    return hidden_states(planted, IDS)


def draw(seed=0, n_layers=9, length=8, d=8):
    """Draw hidden states with a primary sink at 0 and others of either sign after it."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n_layers, length, d))
    u = rng.standard_normal((n_layers, d))
    hidden[2:-1, 0] += 30.0 * u[2:-1]
    hidden[2:-1, 0] += 10.0 * u[2:-1] * (np.arange(2, n_layers - 1) > 4)[:, None]
    hidden[3:6, 3] -= 20.0 * u[3:6]
    hidden[:, 5] += 15.0 * u
    return hidden


def naive(hidden, bos_positions, threshold, clip):
    """Find sinks number by number, as the released code does, with our two repairs."""
    norms = [[float(np.sqrt(sum(x * x for x in h[p]))) for h in hidden] for p in bos_positions]
    means = [sum(row) / len(row) for row in norms]
    which = means.index(max(means))
    b, n = bos_positions[which], norms[which]
    start, end = 0, len(hidden)
    if clip:
        rises = [n[i + 1] - n[i] for i in range(len(n) - 1)]
        start = rises.index(max(rises)) + 1
        falls = rises[start:]
        end = falls.index(min(falls)) + start + 1 if falls else len(hidden)
    sinks = {b: list(range(start, end))} if clip or len(bos_positions) > 1 else {}
    for layer in range(start, end):
        for s in range(b + 1, hidden.shape[1]):
            x, y = hidden[layer, s], hidden[layer, b]
            c = x @ y / max(np.sqrt(x @ x), 1e-8) / max(np.sqrt(y @ y), 1e-8)
            if abs(c) > threshold:
                sinks.setdefault(s, []).append(layer)
    return b, start, end, sinks


@given(
    st.integers(0, 2**16),
    st.sampled_from([(0,), (0, 1), (2,), (0, 1, 2), (1, 3)]),
    st.sampled_from([0.5, 0.9]),
    st.booleans(),
)
def test_detection_equals_the_loop_of_the_released_code(seed, bos_positions, threshold, clip):
    """Primary sink, window and sinks are those that a loop over numbers finds."""
    hidden = draw(seed)
    found = detect_sinks(hidden, bos_positions=bos_positions, threshold=threshold, clip=clip)
    b, start, end, sinks = naive(hidden, bos_positions, threshold, clip)

    assert (found.primary, found.start, found.end) == (b, start, end)
    assert {int(s): list(layers) for s, layers in zip(found.positions, found.layers, strict=True)} == sinks


@given(st.integers(0, 2**16))
def test_detection_does_not_depend_on_scale_or_basis(seed):
    """A positive factor and a common rotation change nothing."""
    hidden = draw(seed)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((hidden.shape[-1],) * 2))[0]
    plain = detect_sinks(hidden)
    for other in (7.25 * hidden, hidden @ rotation):
        found = detect_sinks(other)
        assert found._replace(positions=None) == plain._replace(positions=None)
        np.testing.assert_array_equal(found.positions, plain.positions)


def test_the_primary_sink_is_the_candidate_and_not_its_index():
    """With candidates 2 and 5 the winner is named by its position."""
    hidden = np.ones((4, 7, 3))
    hidden[:, 5] *= 10.0

    assert detect_sinks(hidden, bos_positions=[2, 5]).primary == 5


def test_the_window_is_the_last_layer_if_the_norm_rises_into_it():
    """A rise into the last layer has no fall behind it: the window is that layer."""
    hidden = np.ones((5, 2, 3))
    hidden[-1, 0] = 50.0
    found = detect_sinks(hidden)

    assert (found.start, found.end) == (4, 5)


def test_one_token_zero_vectors_and_nothing_after_the_primary():
    """One token is its own primary sink, zero vectors are no sinks, and after the last position there is nothing."""
    hidden = draw()
    hidden[:, 5] = 0.0
    np.testing.assert_array_equal(detect_sinks(hidden[:, :1]).positions, [0])
    assert 5 not in detect_sinks(hidden).positions
    np.testing.assert_array_equal(detect_sinks(hidden, bos_positions=[7]).positions, [7])
    np.testing.assert_array_equal(primary_cosines(np.zeros((3, 2, 4)), 0), np.zeros((3, 2)))
    assert detect_sinks(hidden[:, :1], clip=False).positions.size == 0  # the only candidate, unclipped, is not noted
    assert sink_levels(detect_sinks(hidden[:, :1], clip=False)).shape == (0, 2)


def test_dtypes_are_kept_and_half_precision_does_not_overflow():
    """Cosines come in the dtype of the states; those of float16 vectors whose squares overflow are right."""
    hidden = np.float16(400.0) * np.eye(3, dtype=np.float16)[None]
    assert primary_cosines(hidden, 0).dtype == np.float16
    np.testing.assert_array_equal(primary_cosines(hidden, 0), [[1, 0, 0]])
    assert cosine_similarity([3, 0], [0, 2]).dtype == np.float64


def test_labels_at_their_bounds():
    """With 28 layers 4 is noise, 5 and 12 are secondary, 13 is a bos sink; with 18 layers 3 is one already."""
    assert label_sinks([4, 5, 12, 13], 28) == ("noise", "secondary", "secondary", "bos_sink")
    assert label_sinks([2, 3, 4], 18) == ("noise", "bos_sink", "bos_sink")
    assert label_sinks([], 28) == ()


def test_levels_are_runs_of_lifetimes():
    """Lifetimes that differ by one belong together, a rare cluster is dropped, and the order does not matter."""
    levels = np.array([(8, 14)] * 30 + [(8, 15)] * 20 + [(8, 17)] * 30 + [(9, 14)] * 30 + [(3, 5)])
    found = cluster_levels(np.random.default_rng(0).permutation(levels))

    assert found == [Level(8, 14, 15, 50), Level(8, 17, 17, 30), Level(9, 14, 14, 30)]
    assert cluster_levels([]) == []
    counts = level_histogram(levels, 32)
    assert counts.shape == (32, 33)
    assert counts[8, 14] == 30
    assert counts.sum() == len(levels)


def test_scores_are_means_over_queries_that_see():
    """The score is the mean of a column from the diagonal down, whatever stands before the last two axes."""
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.random((2, 3, 6, 6)))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    expected = np.stack([pattern[..., s:, s].mean(axis=-1) for s in range(6)], axis=-1)
    np.testing.assert_allclose(sink_score(pattern), expected, rtol=1e-14)
    np.testing.assert_allclose(sink_score(pattern[0, 0]), expected[0, 0], rtol=1e-14)
    assert sink_score(pattern.astype(np.float32)).dtype == np.float32
    assert sink_score(np.zeros((2, 0, 0))).shape == (2, 0)


def test_uniform_attention_has_a_closed_form():
    """Under uniform attention the score of s is the mean of 1/(t + 1)."""
    length = 9
    uniform = np.tri(length) / np.arange(1, length + 1)[:, None]
    expected = [np.mean(1 / np.arange(s + 1, length + 1)) for s in range(length)]
    np.testing.assert_allclose(sink_score(uniform), expected, rtol=1e-14)


def test_planted_levels_are_found(planted_states):
    """The four planted sinks have their levels and labels, and no other token comes near."""
    found = detect_sinks(planted_states)

    np.testing.assert_array_equal(found.positions, [0, 3, 6, 9])
    np.testing.assert_array_equal(sink_levels(found), [(2, 29), (8, 8), (8, 14), (14, 2)])
    assert found.labels == ("bos_sink", "secondary", "secondary", "noise")
    others = np.setdiff1d(np.arange(1, len(IDS)), found.positions)
    assert np.abs(primary_cosines(planted_states, 0)[:, others]).max() == pytest.approx(0.67, abs=0.005)


def test_six_levels_are_found():
    """Two creation layers and three sizes each make six levels, all secondary, and six clusters."""
    model = build_sink_model(n_layers=40, triggers=SIX)
    found = detect_sinks(hidden_states(model, [0, *range(1, 7), 9]))
    levels = sink_levels(found)

    assert levels[1:].tolist() == [[8, 8], [8, 14], [8, 21], [14, 8], [14, 15], [14, 22]]
    assert set(found.labels[1:]) == {"secondary"}
    assert len(cluster_levels(levels[1:])) == 6


@given(st.integers(0, 2**16))
def test_levels_equal_the_closed_form(seed):
    """Levels of random sizes, creation layers and drifts are those of the closed form, away from the threshold."""
    rng = np.random.default_rng(seed)
    options = {
        "n_layers": int(rng.integers(12, 24)),
        "delta": float(rng.uniform(0.3, 1.0)),
        "triggers": [(t, int(rng.integers(3, 10)), float(rng.uniform(4.0, 30.0))) for t in (1, 2, 3)],
    }
    expected = planted_levels(**options)
    found = detect_sinks(hidden_states(build_sink_model(**options), [0, 5, 1, 2, 3]))
    levels = dict(zip(found.positions.tolist(), sink_levels(found).tolist(), strict=True))
    for position, token in ((0, 0), (2, 1), (3, 2), (4, 3)):
        n = (np.arange(options["n_layers"]) + 1) * options["delta"]
        size = {0: 400.0} | {t: c for t, _, c in options["triggers"]}
        if np.all(np.abs(planted_cosine(size[token], 400.0, n) - 0.9) > 1e-6):
            assert tuple(levels.get(position, (-1, 0))) == expected[token]


def test_size_sets_lifetime_and_score():
    """A larger write lasts longer and gets more attention."""
    lifetimes, scores = [], []
    for c in range(8, 33, 4):
        model = build_sink_model(n_layers=40, triggers=((1, 8, float(c)),), vocab=14)
        ids = [0, 5, 6, 1, 7, 8, 9, 4, 5, 6]
        found = detect_sinks(hidden_states(model, ids))
        lifetimes.append(dict(zip(found.positions.tolist(), map(len, found.layers), strict=True)).get(3, 0))
        scores.append(sink_score(attention_patterns(model, ids))[9, 0, 3])

    assert lifetimes == [0, 3, 8, 12, 16, 21, 26]
    np.testing.assert_allclose(scores, [0.202, 0.336, 0.399, 0.431, 0.448, 0.457, 0.463], atol=5e-4)
    assert formation.rank_correlation(np.arange(7), scores) == pytest.approx(1.0)


def test_the_primary_weakens_where_secondary_sinks_appear():
    """The first token loses about half of its attention to two larger secondary sinks, ordered by size."""
    model = build_sink_model(n_layers=24, triggers=((1, 8, 12.0), (2, 8, 18.0), (3, 12, 18.0)))
    scores = sink_score(attention_patterns(model, IDS))[:, 0]

    assert scores[4, 0] > 0.999
    np.testing.assert_allclose(scores[9, [0, 3, 6]], [0.548, 0.257, 0.324], atol=5e-4)


@pytest.mark.parametrize("norm", [0.0, 12.0, 22.0, 30.0])
def test_steering_moves_the_lifetime_to_that_of_the_new_norm(planted, norm):
    """Rescaling the write of a token gives it the level of a token that is written with that norm."""
    free, triggers = 5, ((1, 8, 16.0),)
    model = build_sink_model(triggers=triggers)
    written = formation.mlp_states(model, [free, free, free, 1], 8)["down"][3]
    # the drift is part of what the MLP writes: of length ρ, it leaves the rest to the direction of sinks
    scale = norm / np.linalg.norm(written)
    c, drift = scale * 16.0, (scale - 1.0) * 0.5
    hook = formation.rescale_sink_hook(written, norm)
    states = hidden_states(model, [0, 5, 5, 1], hooks={"blocks.8.hook_mlp_out": hook})
    n = np.arange(9, 32) * 0.5 + drift
    cosine = (c * 400 + n * (n - drift) + 1) / np.sqrt((c**2 + n**2 + 2) * (400**2 + (n - drift) ** 2 + 2))
    found = detect_sinks(states)
    lives = dict(zip(found.positions.tolist(), map(len, found.layers), strict=True))

    assert lives.get(3, 0) == np.sum(cosine > 0.9)
    if norm == 0.0:
        patterns = attention_patterns(model, [0, 5, 5, 1], hooks={"blocks.8.hook_mlp_out": hook})
        assert sink_score(patterns)[9, 0, 0] > 0.999
    assert planted.config.n_layers == 32


def test_the_hook_leaves_first_positions_and_other_directions_alone():
    """Protected positions, and outputs that point elsewhere or backwards, pass unchanged."""
    direction = np.array([1.0, 0.0])
    out = np.array([[[5.0, 0.0]] * 4 + [[0.0, 5.0], [-5.0, 0.0], [0.0, 0.0]]])
    hook = formation.rescale_sink_hook(direction, 2.0)
    changed = hook(out, "blocks.0.hook_mlp_out")

    np.testing.assert_array_equal(changed[0, 3], [2.0, 0.0])
    np.testing.assert_array_equal(np.delete(changed[0], 3, axis=0), np.delete(out[0], 3, axis=0))
    assert hook(out[:, :1], "").shape == (1, 1, 2)


def test_the_mlp_makes_the_sink(planted):
    """What enters the MLP does not look like the primary sink, what leaves it does."""
    ids = np.array([0, 5, 6, 1, 0])
    model = build_sink_model(triggers=((1, 2, 16.0),))  # made where the primary is made
    states = formation.mlp_states(model, ids, 2)
    aligned = formation.alignment_by_state(states, 0, [3])

    assert list(states) == ["input", "up", "gate", "silu", "product", "down"]
    assert aligned["down"][0] > 0.999
    assert aligned["input"][0] < 0.75
    assert abs(aligned["product"][0]) < 0.01
    mlp = formation.block_mlp(model, 2)
    np.testing.assert_allclose(mlp(states["input"]), states["down"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(states["silu"] * states["up"], states["product"], rtol=0, atol=1e-12)
    del planted


def test_a_principal_direction_fed_alone_makes_the_primary_direction():
    """Among the directions in which sinks differ from other tokens there is one that the MLP turns into a sink."""
    model = build_sink_model(triggers=((1, 8, 16.0),))
    states = formation.mlp_states(model, [0, 1, 1, 1, 5, 6, 7, 8, 9], 8)
    directions = formation.principal_directions(states["input"][1:4], states["input"][4:], np.random.default_rng(42))
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-12)
    mlp = formation.block_mlp(model, 8)
    answers = [
        formation.direction_response(mlp, directions[0], [sign * 3.0], target=states["down"][1]) for sign in (1, -1)
    ]

    assert max(answer.cosines[0] for answer in answers) > 0.98


def test_same_tokens_that_are_no_sinks():
    """The comparison set holds the tokens of the sinks, and not the sinks."""
    found = formation.same_token_positions([7, 5, 3, 5, 7, 3], [1, 2])
    np.testing.assert_array_equal(found, [3, 5])


def test_entropy_counts_directions():
    """Orthonormal rows, k of them, have ln k, one line has 0, order does not matter, and zeros have 0."""
    for k in (1, 3, 5):
        for alpha in (0.5, 1.0, 2.0):
            assert formation.matrix_entropy(np.eye(8)[:k], alpha=alpha) == pytest.approx(np.log(k), abs=1e-6)
    x = np.random.default_rng(0).standard_normal((4, 6, 9))
    entropy = formation.matrix_entropy(x)
    assert np.all((entropy > 0) & (entropy < np.log(6)))
    np.testing.assert_allclose(formation.matrix_entropy(x[:, ::-1]), entropy, rtol=1e-12)
    np.testing.assert_allclose(formation.matrix_entropy(np.swapaxes(x, -1, -2)), entropy, rtol=1e-12)
    assert formation.matrix_entropy(np.zeros((3, 4))) == 0
    assert formation.matrix_entropy(np.ones((3, 4))) == pytest.approx(0, abs=1e-12)


def test_rank_correlation_shares_ranks():
    """Spearman's correlation is 1 for any increasing pair, shares ranks among equals, and is NaN for a constant."""
    assert formation.rank_correlation([1, 5, 9], [2.0, 3.0, 100.0]) == pytest.approx(1)
    assert formation.rank_correlation([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(0.894427191)
    assert np.isnan(formation.rank_correlation([1, 2], [3, 3]))


def test_detection_needs_little_memory():
    """Besides the hidden states the search takes less memory than two layers of them."""
    hidden = np.random.default_rng(0).standard_normal((24, 200, 256))
    tracemalloc.start()
    sink_membership(hidden)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2 * hidden[0].nbytes


def test_the_report_names_the_strongest_head(planted):
    """The report has one row a sink, and draws without having loaded anything before."""
    found = report(planted, IDS)
    assert [row["position"] for row in found.rows] == [0, 3, 6, 9]
    row = found.rows[1]
    assert (row["token"], row["label"], row["layers"], row["lifetime"]) == (1, "secondary", "8-15", 8)
    assert row["head"].endswith(".0")
    assert 8 <= int(row["head"].split(".")[0]) <= 15
    assert 0 < row["score"] < 1

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4))
    found.draw(figure)
    assert len(figure.axes) >= 2


BAD = [
    (lambda: detect_sinks(np.zeros((3, 4))), "axes"),
    (lambda: detect_sinks(np.zeros((2, 3, 4))), "at least 3 layers"),
    (lambda: detect_sinks(np.zeros((0, 3, 4)), clip=False), "at least 1 layer"),
    (lambda: detect_sinks(draw(), bos_positions=[8]), "bos_positions"),
    (lambda: detect_sinks(draw(), bos_positions=[-1]), "bos_positions"),
    (lambda: detect_sinks(draw(), bos_positions=[]), "bos_positions"),
    (lambda: detect_sinks(draw()[:, :0]), "bos_positions"),
    (lambda: detect_sinks(draw(), threshold=1.0), "threshold"),
    (lambda: detect_sinks(draw(), threshold=0.0), "threshold"),
    (lambda: detect_sinks(np.full((3, 2, 2), np.nan)), "hidden"),
    (lambda: detect_sinks(draw(), bos_margin=-1), "bos_margin"),
    (lambda: detect_sinks(draw(), min_lifetime=-1), "min_lifetime"),
    (lambda: primary_cosines(draw(), 8), "primary"),
    (lambda: sink_lives(np.zeros((3, 4))), "members"),
    (lambda: sink_lives(np.zeros((0, 4), bool)), "members"),
    (lambda: label_sinks([29], 28), "lifetimes"),
    (lambda: label_sinks([1], 0), "n_layers"),
    (lambda: sink_score(np.full((2, 2), 0.5)), "causal"),
    (lambda: sink_score(np.tri(2)), "sum to 1"),
    (lambda: sink_score(np.array([[1.0, 0.0], [-0.5, 1.5]])), "negative"),
    (lambda: sink_score(np.array([[1.0, 0.0], [np.nan, 1.0]])), "finite"),
    (lambda: sink_score(np.zeros((2, 3))), "pattern"),
    (lambda: hidden_states(build_sink_model(n_layers=3, triggers=()), np.zeros((2, 3), int)), "one sequence"),
    (lambda: cluster_levels([[1, 2, 3]]), "levels"),
    (lambda: cluster_levels([[1, 2]], min_share=2.0), "min_share"),
    (lambda: level_histogram([[30, 5]], 32), "levels"),
    (lambda: formation.mlp_alignment(np.ones((3, 2)), 3, [0]), "primary"),
    (lambda: formation.mlp_alignment(np.ones((3, 2)), 0, [3]), "positions"),
    (lambda: formation.rescale_sinks(np.ones((3, 2)), np.ones(3), norm=1.0), "direction"),
    (lambda: formation.rescale_sink_hook(np.ones(3), -1.0), "norm"),
    (lambda: formation.rescale_sink_hook(np.ones(3), 1.0, cos_threshold=1.0), "cos_threshold"),
    (lambda: formation.matrix_entropy(np.ones(3)), "axes"),
    (lambda: formation.matrix_entropy(np.ones((2, 2)), alpha=0.0), "alpha"),
    (lambda: formation.mlp_states(build_sink_model(n_layers=3, triggers=()), [0], 3), "layer"),
    (lambda: formation.block_mlp(build_sink_model(n_layers=3, triggers=()), -1), "layer"),
    (
        lambda: formation.principal_directions(np.zeros((0, 2)), np.ones((2, 2)), np.random.default_rng(0)),
        "sink_inputs",
    ),
    (
        lambda: formation.principal_directions(np.ones((1, 3)), np.ones((2, 2)), np.random.default_rng(0)),
        "other_inputs",
    ),
    (lambda: formation.direction_response(np.sin, np.ones(2), [1.0], target=np.ones(3)), "target"),
    (lambda: formation.rank_correlation([1], [1]), "x has 1"),
    (lambda: formation.rank_correlation([1, 2], [1, 2, 3]), "y has shape"),
    (lambda: formation.same_token_positions([1, 2], [2]), "positions"),
    (lambda: build_sink_model(triggers=((1, 3, 4.0), (1, 5, 4.0))), "differ"),
    (lambda: build_sink_model(triggers=((12, 3, 4.0),)), "vocabulary"),
    (lambda: build_sink_model(triggers=((1, 32, 4.0),)), "layer"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[f"{i}-{message}" for i, (_, message) in enumerate(BAD)])
def test_bad_input_is_refused(call, message):
    """Bad input raises ValueError that names what is wrong."""
    with pytest.raises(ValueError, match=message):
        call()
