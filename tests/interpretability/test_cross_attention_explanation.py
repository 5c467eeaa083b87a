"""Cross-attention as an explanation: occlusion saliency, comparisons, deletion, the planted speech, bad input."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interpretability.cross_attention_explanation import (
    accumulate_saliency,
    aggregate_attention,
    context_mixing_gap,
    deletion_curve,
    deletion_masks,
    exact_occlusion_saliency,
    kl_scores,
    mean_std_normalize,
    occlusion_masks,
    paired_min_max,
    planted_speech,
    pool_saliency,
    row_pearson,
    saliency_share,
    segment_count,
    size_curve,
    spes,
    spread_over_input,
    standardise_rows,
    target_difference,
)
from refattn.primitives.softmax import softmax


def rng(seed=0):
    return np.random.default_rng(seed)


def distributions(seed, *shape):
    return softmax(2 * rng(seed).standard_normal(shape))


def frame_model(weights):
    """A model of frames (B, T, 1) whose words (I) depend on weighted frames (I, T)."""

    def model(x):
        logits = x[..., 0] @ weights.T  # (B, I)
        return softmax(np.stack([logits, np.zeros_like(logits)], axis=-1))

    return model


def small_speech(**options):
    return planted_speech(**{"I": 2, "F": 3, "r": 2, "per": 2, "L": 1, "H": 2, **options})


# --- occlusions


@pytest.mark.parametrize(
    ("kind", "shape"), [("continuous", (5000, 4, 3)), ("time", (5000, 4, 1)), ("frequency", (5000, 1, 3))]
)
def test_a_unit_is_hidden_with_probability_p(kind, shape):
    """Masks have the shape of their kind, and each unit is hidden in a share p of them, within five deviations."""
    masks = occlusion_masks(rng(), (4, 3), 5000, p=0.3, kind=kind)
    assert masks.shape == shape
    assert masks.dtype == bool
    np.testing.assert_allclose((~masks).mean(axis=0), 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 5000))


def test_masks_are_the_uniform_numbers_at_least_p():
    """A unit is kept if its number from the generator is at least p, as in the official perturbators."""
    numbers = rng(3).random((6, 4, 3))
    np.testing.assert_array_equal(occlusion_masks(rng(3), (4, 3), 6, p=0.25), numbers >= 0.25)


def test_a_segment_is_hidden_as_a_whole():
    """Elements of one label share their bit, and labels differ, whatever numbers the labels are."""
    labels = np.array([[7, 7, -2], [7, 5, 5], [5, -2, -2]])
    masks = occlusion_masks(rng(), (3, 3), 200, segments=labels)
    for label in (-2, 5, 7):
        inside = masks[:, labels == label]
        assert (inside == inside[:, :1]).all()
    assert len({tuple(row) for row in masks[:, (0, 0, 1), (0, 2, 1)]}) == 8


def test_segment_counts_grow_to_the_threshold():
    """A spectrogram gets n T/500 segments, from 750 frames on no more, and always one."""
    assert [segment_count(2000, T) for T in (0, 1, 500, 750, 4000)] == [1, 4, 2000, 3000, 3000]
    assert segment_count(2000, 600, threshold=250) == 1000


def test_nothing_hidden_is_no_saliency():
    """With p = 0 every map is 0."""
    speech = small_speech()
    assert not spes(speech.model, speech.features, None, rng(), 20, p=0.0).any()


def test_batches_do_not_change_the_map():
    """The masks, and so the map up to rounding, do not depend on how many inputs the model is given at once."""
    speech = small_speech()
    maps = [spes(speech.model, speech.features, None, rng(1), 50, kind="time", batch=b) for b in (1, 7, 50, 256)]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], rtol=0, atol=1e-14)


def test_the_map_is_that_of_its_masks():
    """`spes` is the accumulation of the scores of the masks that the same generator draws."""
    speech = small_speech()
    x, targets = speech.features, speech.targets
    p = speech.model(x)
    for kind, scorer in itertools.product(("continuous", "time", "frequency"), ("kl", "difference")):
        masks = occlusion_masks(rng(2), x.shape, 40, p=0.4, kind=kind)
        q = speech.model(x * masks)
        scores = kl_scores(p, q) if scorer == "kl" else target_difference(p, q, targets)
        found = spes(speech.model, x, targets, rng(2), 40, p=0.4, kind=kind, scorer=scorer)
        np.testing.assert_allclose(found, accumulate_saliency(scores, masks), rtol=0, atol=1e-14)


def test_it_costs_one_pass_a_mask_and_one_more():
    """K masks are K + 1 inputs, and no more than a batch of them at once."""
    speech = small_speech()
    sizes = []

    def counted(x):
        sizes.append(len(x))
        return speech.model(x)

    spes(counted, speech.features, None, rng(), 70, batch=32)
    assert sizes == [1, 32, 32, 6]


# --- exact mode


def test_exact_mode_is_the_mean_over_all_subsets():
    """Saliency of a frame is the mean score over the half of all subsets that hide it."""
    weights = rng().standard_normal((3, 5))
    x, model = rng(1).random((5, 1)), frame_model(weights)
    expected = np.zeros((3, 5, 1))
    for kept in np.array(list(itertools.product((0, 1), repeat=5)))[..., None]:
        expected += kl_scores(model(x[None])[0], model((x * kept)[None]))[0][:, None, None] * (1 - kept) / 2**4
    np.testing.assert_allclose(exact_occlusion_saliency(model, x), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(exact_occlusion_saliency(model, x, batch=5), expected, rtol=0, atol=1e-14)


def test_an_ignored_frame_has_the_mean_score_and_the_least():
    """A frame that the model ignores has saliency E[s], which for a model that only gains from frames is the least."""
    weights = 2 * rng().random((3, 6))
    weights[:, 2] = 0
    x, model = 0.5 + rng(1).random((6, 1)), frame_model(weights)
    saliency = exact_occlusion_saliency(model, x)[..., 0]
    subsets = np.array(list(itertools.product((0, 1), repeat=6)))[..., None]
    mean = kl_scores(model(x[None])[0], model(x * subsets)).mean(axis=0)
    np.testing.assert_allclose(saliency[:, 2], mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(saliency.min(axis=-1), mean, rtol=0, atol=1e-12)


def test_many_masks_tend_to_the_exact_map():
    """The error of the map falls with the number of masks about as its square root: tenfold or so from 100 to 10⁴."""
    speech = small_speech()
    H = speech.encode(speech.features)
    exact = exact_occlusion_saliency(speech.decode, H)
    errors = [
        np.mean([np.abs(spes(speech.decode, H, None, rng(s), K, kind="time") - exact).max() for s in range(8)])
        for K in (100, 10_000)
    ]
    assert 5 < errors[0] / errors[1] < 20


def test_exact_mode_knows_all_kinds():
    """Bands, segments and elements are units too, and segments of one frame each are frames."""
    speech = small_speech(I=1, F=2, per=1)
    x = speech.features[:6]
    model = frame_model(np.ones((2, 6)))
    assert exact_occlusion_saliency(model, x, kind="frequency").shape == (2, 1, 2)
    assert exact_occlusion_saliency(model, x, kind="continuous").shape == (2, 6, 2)
    by_segment = exact_occlusion_saliency(model, x, kind="continuous", segments=np.arange(6)[:, None].repeat(2, 1))
    np.testing.assert_allclose(by_segment, exact_occlusion_saliency(model, x).repeat(2, axis=-1), rtol=0, atol=1e-15)


# --- scores and maps


def test_divergence_is_that_of_its_definition():
    """KL is the mean log ratio, natural; terms of probability 0 count nothing."""
    p, q = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), np.array([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]]])
    np.testing.assert_allclose(kl_scores(p, q), [[0.5 * np.log(2), np.log(2)]], rtol=1e-15)
    np.testing.assert_allclose(target_difference(p, q, [0, 1]), [[0.25, -0.5]], rtol=1e-15)


@given(seed=st.integers(0, 2**16))
def test_divergence_is_not_negative_and_zero_for_equals(seed):
    """KL ≥ 0, and 0 for equal distributions only."""
    p, q = distributions(seed, 3, 5), distributions(seed + 1, 4, 3, 5)
    assert (kl_scores(p, q) > 0).all()
    np.testing.assert_array_equal(kl_scores(p, np.broadcast_to(p, (2, 3, 5))), np.zeros((2, 3)))


def test_elements_that_were_never_hidden_are_zero():
    """A frame that every mask keeps has saliency 0, and no NaN."""
    masks = np.ones((3, 4, 1))
    masks[:, 1] = 0
    saliency = accumulate_saliency(np.ones((3, 2)), masks)
    np.testing.assert_array_equal(saliency[..., 0], [[0, 1, 0, 0]] * 2)


def test_the_decoder_map_is_causal():
    """Entry (i, j) of the decoder map is kept for j ≤ i only, with or without a last axis of one."""
    scores, masks = rng().random((50, 4)), rng(1).random((50, 4)) > 0.5
    full, causal = accumulate_saliency(scores, masks), accumulate_saliency(scores, masks, causal=True)
    np.testing.assert_array_equal(causal, np.tril(full))
    np.testing.assert_array_equal(accumulate_saliency(scores, masks[..., None], causal=True)[..., 0], causal)


# --- comparisons


def test_one_head_is_that_head():
    """The aggregate over one head is that head; over more it is their mean; negative numbers count from the end."""
    attention = distributions(0, 3, 4, 5, 6)
    np.testing.assert_array_equal(aggregate_attention(attention, layers=1, heads=[2]), attention[1, 2])
    np.testing.assert_array_equal(aggregate_attention(attention, layers=[-1], heads=-1), attention[2, 3])
    layer = aggregate_attention(attention, layers=0)
    np.testing.assert_allclose(layer, attention[0].mean(0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(aggregate_attention(attention).sum(-1), 1, rtol=0, atol=1e-14)


def test_pooling_takes_windows_over_all_bands():
    """Windows of equal length tile the frames; where they cannot, they run from floor to ceiling."""
    saliency = rng().standard_normal((2, 6, 3))
    np.testing.assert_array_equal(pool_saliency(saliency, 3), saliency.reshape(2, 3, 6).max(-1))
    np.testing.assert_allclose(pool_saliency(saliency, 3, how="mean"), saliency.reshape(2, 3, 6).mean(-1), atol=1e-15)
    expected = np.stack([saliency[:, a:b].max((1, 2)) for a, b in ((0, 2), (1, 3), (3, 5), (4, 6))], axis=-1)
    np.testing.assert_array_equal(pool_saliency(saliency, 4), expected)
    np.testing.assert_array_equal(pool_saliency(saliency[..., :1], 6), saliency[..., 0])


def test_correlation_is_that_of_the_flattened_standardised_rows():
    """ρ is NumPy's correlation coefficient of the standardised, flattened maps, and the mean over words."""
    a, b = rng().standard_normal((2, 4, 7))
    x, y = (((m - m.mean(-1, keepdims=True)) / m.std(-1, ddof=1, keepdims=True)) for m in (a, b))
    np.testing.assert_allclose(row_pearson(a, b), np.corrcoef(x.ravel(), y.ravel())[0, 1], rtol=0, atol=1e-14)
    by_word = [np.corrcoef(r, s)[0, 1] for r, s in zip(a, b, strict=True)]
    np.testing.assert_allclose(row_pearson(a, b), np.mean(by_word), rtol=0, atol=1e-14)


def test_constant_rows_count_as_zero():
    """A constant row brings nothing, not even by rounding, and if all rows are constant ρ is 0."""
    a, b = rng().standard_normal((2, 2, 6))
    third = np.concatenate([a, np.full((1, 6), 0.1)])
    with_constant = row_pearson(third, np.concatenate([b, np.full((1, 6), 0.3)]))
    np.testing.assert_allclose(with_constant, row_pearson(a, b), rtol=0, atol=1e-15)
    assert row_pearson(np.full((2, 6), 0.1), b) == 0
    assert not standardise_rows(np.full((3, 7), 0.1)).any()
    assert saliency_share(np.full((2, 6), 0.1), b, how="overlap") == 0


def test_shares_are_what_they_say():
    """The squared share is ρ², and the overlap of a map with itself is 1, with one that is disjoint 0."""
    a, b = rng().random((2, 3, 6))
    assert saliency_share(a, b) == row_pearson(a, b)
    assert saliency_share(a, b, how="squared") == row_pearson(a, b) ** 2
    assert saliency_share(a, a, how="overlap") == pytest.approx(1, abs=1e-15)
    assert saliency_share([[0.0, 1, 0, 0]], [[3.0, 2, 2, 2]], how="overlap") == 0
    assert saliency_share([[0.0, 1, 1, 0]], [[0.0, 3, 1, 0]], how="overlap") == pytest.approx(0.75)


def test_leading_axes_are_sentences():
    """Maps of several sentences give one ρ and one share each."""
    a, b = rng().random((2, 5, 3, 6))
    for how in ("pearson", "squared", "overlap"):
        each = [saliency_share(s, t, how=how) for s, t in zip(a, b, strict=True)]
        np.testing.assert_allclose(saliency_share(a, b, how=how), each, rtol=0, atol=1e-15)


def test_the_gap_is_a_difference_of_correlations():
    """The gap is ρ at the encoder's output less ρ at the input; relative to ρ = 0 it is not a number."""
    a, b, c = rng().random((3, 3, 6))
    gap = context_mixing_gap(a, b, c)
    assert gap == (row_pearson(a, b), row_pearson(a, c), gap.encoder - gap.input, gap.gap / gap.encoder)
    assert np.isnan(context_mixing_gap(a, np.ones((3, 6)), c).relative)


def test_the_first_word_has_no_spread_of_words():
    """Of the decoder map each row is standardised over the words it sees, and the first row is 0."""
    saliency, decoder = rng().random((4, 5, 2)), rng(1).random((4, 4, 1))
    _, out = mean_std_normalize(saliency, decoder)
    assert out.shape == (4, 4, 1)
    assert out[0].tolist() == [[0]] * 4
    for i in range(1, 4):
        row = decoder[i, : i + 1, 0]
        np.testing.assert_allclose(out[i, : i + 1, 0], (row - row.mean()) / row.std(ddof=1), rtol=0, atol=1e-13)
        assert not out[i, i + 1 :].any()


def test_a_map_without_spread_is_zero_after_min_max():
    """A word whose visible entries are all equal is 0 everywhere, whatever the invisible entries are."""
    left, right = paired_min_max(np.full((2, 3), 0.7), np.array([[0.7, 9.0], [0.7, 0.7]]))
    assert not left.any()
    assert not right.any()


# --- deletion


def test_deletion_begins_with_all_and_ends_with_nothing():
    """At 0 % all is kept and at 100 % nothing; insertion keeps exactly what deletion deletes."""
    saliency = rng().random((3, 7, 3))
    gone, kept = deletion_masks(saliency), deletion_masks(saliency, insertion=True)
    assert gone.shape == (21, 7, 3)
    assert gone[0].all()
    assert not gone[-1].any()
    np.testing.assert_array_equal(kept, ~gone)
    np.testing.assert_array_equal(kept.sum((1, 2)), np.arange(0, 101, 5) * 21 // 100)


def test_of_equal_elements_the_later_goes_first():
    """A constant map deletes from the end."""
    gone = deletion_masks(np.ones((1, 2, 2)), step=25)
    np.testing.assert_array_equal(gone.reshape(5, 4).sum(-1), [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(gone[1], [[True, True], [True, False]])


def test_the_curve_is_the_lost_share_of_probability():
    """Quality is 0 on the whole input; the area is NumPy's trapezoid; batches change nothing."""
    speech = small_speech()
    saliency = rng().random((2, *speech.features.shape))
    arguments = (speech.model, speech.features, saliency, speech.targets)
    curve = deletion_curve(*arguments, step=10)
    assert curve.quality[0] == 0
    np.testing.assert_array_equal(curve.percent, np.arange(0, 101, 10))
    full, blank = (speech.model(x)[[0, 1], [0, 1]] for x in (speech.features, np.zeros_like(speech.features)))
    assert curve.quality[-1] == pytest.approx(1 - np.mean(blank / full))
    assert curve.auc == pytest.approx(np.trapezoid(curve.quality, curve.percent))
    np.testing.assert_array_equal(deletion_curve(*arguments, step=10, batch=3).quality, curve.quality)
    inserted = deletion_curve(*arguments, step=10, insertion=True).quality
    np.testing.assert_allclose(inserted[[0, -1]], curve.quality[[-1, 0]], rtol=0, atol=1e-15)


def test_the_truth_deletes_faster_than_chance():
    """Deleting what carries the words costs more than deleting at random, and keeping it costs less."""
    speech = planted_speech()
    truth = speech.truth[..., None] * np.eye(6, 8)[:, None]  # (I, T, F): word i in its segment and its band
    chance = rng().random(truth.shape)

    def area(saliency, **options):
        return deletion_curve(speech.model, speech.features, saliency, speech.targets, **options).auc

    assert area(truth) > area(chance) + 20
    assert area(truth, insertion=True) < area(chance, insertion=True) - 10


def test_size_counts_what_reaches_a_threshold():
    """All entries reach 0; a map of zeros and ones has its mean as share everywhere else."""
    curve = size_curve(np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert curve.share[0] == 1
    assert (curve.share[1:] == 0.5).all()
    assert curve.auc == pytest.approx(0.5 + 0.25 * 0.05)
    np.testing.assert_array_equal(size_curve([0.0, 0.25, 1.0], step=25).share, [1, 2 / 3, 1 / 3, 1 / 3, 1 / 3])


def test_spreading_and_pooling_are_inverse():
    """A map over frames, spread over the input, is pooled back to itself."""
    frames = rng().random((2, 4))
    np.testing.assert_array_equal(pool_saliency(spread_over_input(frames, 12, 3), 4), frames)
    np.testing.assert_array_equal(spread_over_input([1.0, 2.0, 3.0], 4, 1)[:, 0], [1, 1, 2, 3])


# --- the planted speech


def test_the_planted_model_writes_what_was_spoken():
    """Word i is spoken in its segment, in its band, and the model writes it."""
    speech = planted_speech()
    assert speech.features.shape == (116, 8)
    assert speech.attention.shape == (2, 4, 6, 29)
    assert (speech.truth.sum(-1) == 16).all()
    assert (speech.model(speech.features).argmax(-1) == speech.targets).all()
    assert not speech.features[-4:].any()
    loud = [speech.features[speech.truth[i], i].min() for i in range(6)]
    assert min(loud) > 1


@pytest.mark.parametrize(("lam", "sigma"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (0.5, 0.2), (1.0, 1.0)])
def test_heads_attend_to_words_and_silence(lam, sigma):
    """Rows of every head sum to 1, the share σ of it on silence, λ of the rest one segment on."""
    speech = planted_speech(per=16, r=1, L=1, H=2, lam=lam, sigma=sigma)
    rows = speech.attention
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(rows[..., -1], sigma, rtol=0, atol=1e-14)
    for i in range(6):
        here = rows[:, :, i, 16 * i : 16 * (i + 1)].sum(-1)
        np.testing.assert_allclose(here, (1 - sigma) * (1 - lam), rtol=0, atol=1e-9)


def test_mixing_moves_content_one_segment_on():
    """With λ = 1 the encoder's frames are those of the segment before, and silence stays silent."""
    plain, mixed = planted_speech(), planted_speech(lam=1.0)
    h = plain.encode(plain.features)
    moved = mixed.encode(mixed.features)
    np.testing.assert_array_equal(moved[4:-1], h[:-5])
    assert not moved[:4].any()
    assert not moved[-1].any()
    np.testing.assert_allclose(h[3], plain.features[12:16].mean(0), rtol=0, atol=1e-15)


def correlations(lam, sigma, seed=0, K=1000):
    speech = planted_speech(lam=lam, sigma=sigma, seed=seed)
    H = speech.encode(speech.features)
    encoder = spes(speech.decode, H, None, rng(seed), K, kind="time")[..., 0]
    at_input = pool_saliency(spes(speech.model, speech.features, None, rng(seed), K, kind="time"), len(H))
    return aggregate_attention(speech.attention), encoder, at_input, speech


def test_mixing_opens_the_gap_and_silence_lowers_both():
    """λ lowers ρ at the input alone, σ lowers both, and averaging over heads beats every head by a tenth."""
    found = {}
    for lam, sigma in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.3)):
        attention, encoder, at_input, speech = correlations(lam, sigma)
        found[lam, sigma] = gap = context_mixing_gap(attention, encoder, at_input)
        single = [row_pearson(head, encoder) for head in speech.attention.reshape(-1, *attention.shape)]
        assert gap.encoder > max(single) + 0.1
    assert found[0.0, 0.0].gap < 0.03
    assert found[0.5, 0.0].gap > 0.3
    assert found[0.5, 0.0].encoder > 0.95
    assert 0.6 < found[0.0, 0.3].encoder < 0.8


def test_words_may_be_permuted():
    """Permuting the words of the model permutes the rows of the map."""
    speech = planted_speech()
    order = rng().permutation(6)
    plain = spes(speech.model, speech.features, None, rng(1), 30, kind="time")
    turned = spes(lambda x: speech.model(x)[:, order], speech.features, None, rng(1), 30, kind="time")
    np.testing.assert_allclose(turned, plain[order], rtol=0, atol=1e-14)


# --- bad input

P, Q = np.full((2, 4), 0.25), np.full((3, 2, 4), 0.25)
SPEECH = small_speech()
ZERO = np.array([[0.5, 0.5, 0.0, 0.0]] * 2)
REFUSED = {
    "p off by 1e-5": (lambda: kl_scores(P + 2.5e-6, Q), "sum"),
    "q off": (lambda: kl_scores(P, 1.1 * Q), "sum"),
    "p negative": (lambda: kl_scores(np.array([[1.5, -0.5, 0, 0]] * 2), Q), "p is negative"),
    "q NaN": (lambda: kl_scores(P, np.full((3, 2, 4), np.nan)), "q is negative or NaN"),
    "q of other words": (lambda: kl_scores(P, Q[:, :1]), "q has shape"),
    "infinite": (lambda: kl_scores(P, ZERO[None]), "infinite KL"),
    "difference of no distribution": (lambda: target_difference(P, 2 * Q, [0, 0]), "sum"),
    "target outside": (lambda: target_difference(P, Q, [0, 4]), "target"),
    "negative target": (lambda: target_difference(P, Q, [0, -1]), "target"),
    "too few targets": (lambda: target_difference(P, Q, [0]), "target has shape"),
    "grey masks": (lambda: accumulate_saliency(np.ones((2, 1)), np.full((2, 3), 0.5)), "0 and 1"),
    "other masks": (lambda: accumulate_saliency(np.ones((2, 1)), np.ones((3, 3))), "masks has 3"),
    "masks without elements": (lambda: accumulate_saliency(np.ones((2, 1)), np.ones(2)), "masks has shape"),
    "causal over frames": (lambda: accumulate_saliency(np.ones((2, 3)), np.ones((2, 4)), causal=True), "causal"),
    "no masks": (lambda: spes(SPEECH.model, SPEECH.features, None, rng(), 0), "n_masks=0"),
    "no masks drawn": (lambda: occlusion_masks(rng(), (3, 3), 0), "n=0"),
    "p of one": (lambda: occlusion_masks(rng(), (3, 3), 2, p=1.0), "p=1.0"),
    "p below zero": (lambda: occlusion_masks(rng(), (3, 3), 2, p=-0.1), "p=-0.1"),
    "unknown kind": (lambda: occlusion_masks(rng(), (3, 3), 2, kind="space"), "kind='space'"),
    "two kinds": (lambda: occlusion_masks(rng(), (2, 2), 2, kind="time", segments=np.eye(2, dtype=int)), "segments"),
    "segments elsewhere": (lambda: occlusion_masks(rng(), (3, 3), 2, segments=np.eye(2, dtype=int)), "segments"),
    "labels with a point": (lambda: occlusion_masks(rng(), (2, 2), 2, segments=np.eye(2)), "segments"),
    "empty input": (lambda: occlusion_masks(rng(), (0, 3), 2), "shape"),
    "unknown scorer": (lambda: spes(SPEECH.model, SPEECH.features, None, rng(), 2, scorer="l2"), "scorer"),
    "no targets": (lambda: spes(SPEECH.model, SPEECH.features, None, rng(), 2, scorer="difference"), "targets=None"),
    "batch of none": (lambda: spes(SPEECH.model, SPEECH.features, None, rng(), 2, batch=0), "batch=0"),
    "model without batch": (lambda: spes(lambda x: P, SPEECH.features, None, rng(), 2), "model_fn"),
    "model of one answer": (lambda: spes(lambda x: P[None], SPEECH.features, None, rng(), 2), "returned 1"),
    "model without words": (lambda: spes(lambda x: np.ones((len(x), 0, 3)), np.ones((2, 2)), None, rng(), 2), "I = 0"),
    "17 units": (lambda: exact_occlusion_saliency(lambda x: x, np.ones((17, 1))), "17 units"),
    "T' above T": (lambda: pool_saliency(np.ones((1, 3, 2)), 4), "n_frames=4"),
    "T' of 0": (lambda: pool_saliency(np.ones((1, 3, 2)), 0), "n_frames=0"),
    "no words to pool": (lambda: pool_saliency(np.ones((0, 3, 2)), 2), "I = 0"),
    "unknown pooling": (lambda: pool_saliency(np.ones((1, 3, 2)), 2, how="sum"), "how='sum'"),
    "one frame": (lambda: row_pearson(np.ones((3, 1)), np.ones((3, 1))), "at least 2 frames"),
    "no words": (lambda: row_pearson(np.ones((0, 4)), np.ones((0, 4))), "I = 0"),
    "other frames": (lambda: row_pearson(np.ones((3, 4)), np.ones((3, 5))), "b has shape"),
    "unknown share": (lambda: saliency_share(np.ones((3, 4)), np.ones((3, 4)), how="cosine"), "how='cosine'"),
    "no heads": (lambda: aggregate_attention(np.ones((2, 2, 3, 4)), heads=[]), "heads=[]"),
    "a head too many": (lambda: aggregate_attention(np.ones((2, 2, 3, 4)), heads=2), "heads=2"),
    "a layer twice": (lambda: aggregate_attention(np.ones((2, 2, 3, 4)), layers=[1, -1]), "twice"),
    "attention of one head": (lambda: aggregate_attention(np.ones((3, 4, 5))), "attention has shape"),
    "no maps": (lambda: mean_std_normalize(np.ones((0, 3))), "I = 0"),
    "decoder of others": (lambda: paired_min_max(np.ones((2, 3)), np.ones((3, 3))), "decoder_map"),
    "no deletion": (lambda: deletion_masks(np.ones((0, 2, 2))), "I = 0"),
    "step of 30": (lambda: deletion_masks(np.ones((1, 2, 2)), step=30), "step=30"),
    "map of another input": (
        lambda: deletion_curve(SPEECH.model, np.ones((2, 2)), np.ones((1, 2, 3)), [0]),
        "saliency",
    ),
    "impossible word": (
        lambda: deletion_curve(lambda x: np.ones((len(x), 1, 2)) * [1, 0], np.ones((2, 2)), np.ones((1, 2, 2)), [1]),
        "probability 0",
    ),
    "size of raw map": (lambda: size_curve([0.5, 1.5]), "normalise"),
    "spread to less": (lambda: spread_over_input(np.ones(3), 2, 1), "n_frames=2"),
    "more words than bands": (lambda: planted_speech(I=4, F=3), "F=3"),
    "lambda of 2": (lambda: planted_speech(lam=2.0), "lam=2.0"),
    "negative sigma": (lambda: planted_speech(sigma=-0.1), "sigma=-0.1"),
    "no head": (lambda: planted_speech(H=0), "at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    """Bad input raises ValueError with the argument's name, its value or the rule."""
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


# --- what must work


def test_small_cases_work():
    """One word, as many windows as frames, and probabilities of float32 all work."""
    a, b = rng().random((2, 1, 5))
    assert -1 <= row_pearson(a, b) <= 1
    assert pool_saliency(a[..., None], 5).tolist() == a.tolist()
    speech = planted_speech(I=1, F=1, r=1, per=1, L=1, H=1)
    assert spes(speech.model, speech.features, [0], rng(), 5).shape == (1, *speech.features.shape)
    p, q = distributions(0, 3, 500).astype(np.float32), distributions(1, 4, 3, 500).astype(np.float32)
    assert kl_scores(p, q).dtype == np.float32


def test_float32_stays_float32():
    """Maps have the dtype of the scores, and scores that of the distributions."""
    speech = small_speech()
    x = speech.features.astype(np.float32)
    saliency = spes(speech.model, x, None, rng(), 20)
    assert saliency.dtype == np.float32
    for result in (
        pool_saliency(saliency, 7),
        mean_std_normalize(saliency),
        *paired_min_max(saliency, np.eye(2, dtype=np.float32)),
        row_pearson(saliency[..., 0], saliency[..., 1]),
        saliency_share(saliency[..., 0], saliency[..., 1], how="overlap"),
    ):
        assert result.dtype == np.float32
