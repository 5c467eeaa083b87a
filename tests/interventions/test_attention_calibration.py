"""ACT: what the mathematics says of detection and calibration, what is refused, and what the hook does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.interventions.attention_calibration import (
    act,
    calibrate_attention,
    calibrate_row,
    calibrated_sinks,
    detect_sinks,
    received_attention,
)
from refattn.interventions.attention_calibration_heads import (
    ACTHook,
    calibrated_layers,
    candidate_heads,
    select_heads,
)
from refattn.primitives.masks import causal_mask
from refattn.primitives.softmax import softmax
from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.generation import generate
from refattn.transformer.planted.sink_model import build_sink_model
from refattn.transformer.weights import random_transformer

CLOSE = {"rtol": 0, "atol": 1e-12}
SEEDS = st.integers(0, 2**16)
LENGTHS = st.integers(1, 14)
BETAS = st.sampled_from([0.0, 0.25, 0.4, 1.0])


def draw(T, *, lead=(2, 3), seed=0, scale=2.0, dtype=np.float64):
    """Draw causal attention with a few favoured columns."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((*lead, T, T)) + 3.0 * (rng.random((*lead, 1, T)) < 0.3)
    return softmax(logits.astype(dtype), where=causal_mask(T, T))


def by_hand(A, sinks, beta):
    """Calibrate one map by the double loop over rows and columns."""
    T, out = len(A), A.copy()
    for i in range(1, T):
        mass = sum(A[i, s] for s in range(T) if sinks[s])
        base = sum(A[i, j] for j in range(T) if not sinks[j])
        for j in range(T):
            if base > 0:
                out[i, j] = beta * A[i, j] if sinks[j] else A[i, j] + (1 - beta) * mass * A[i, j] / base
    return out


def random_sinks(shape, seed):
    sinks = np.random.default_rng(seed + 1).random(shape) < 0.4
    sinks[..., 0] = False
    return sinks


@given(LENGTHS, SEEDS, BETAS)
def test_calibration_is_the_double_loop(T, seed, beta):
    """Each entry is what the loop over rows and columns makes of it."""
    A = draw(T, seed=seed, lead=())
    sinks = random_sinks(T, seed)
    np.testing.assert_allclose(calibrate_attention(A, sinks, beta=beta), by_hand(A, sinks, beta), **CLOSE)


@given(LENGTHS, SEEDS)
def test_detection_is_the_loop_over_columns(T, seed):
    """A column is a sink if its mean over the queries that see it is above the threshold."""
    A = draw(T, seed=seed, lead=())
    received = [sum(A[i, j] for i in range(j, T)) / (T - j) for j in range(T)]
    np.testing.assert_allclose(received_attention(A), received, **CLOSE)
    np.testing.assert_array_equal(detect_sinks(A, threshold=0.2), np.array(received) > 0.2)
    np.testing.assert_array_equal(detect_sinks(A, alpha=2.0), np.array(received) > 2.0 / T)


@given(LENGTHS, SEEDS, BETAS)
def test_rows_stay_distributions(T, seed, beta):
    """Rows still sum to 1, are not negative, and hold nothing above the diagonal."""
    A = draw(T, seed=seed)
    for causal in (False, True):
        out = act(A, beta=beta, threshold=0.1, causal=causal)
        np.testing.assert_allclose(out.sum(-1), 1.0, **CLOSE)
        assert (out >= 0).all()
        assert not np.triu(out, 1).any()


@given(LENGTHS, SEEDS)
def test_beta_one_changes_nothing_and_beta_zero_empties_the_sinks(T, seed):
    """β = 1 is the identity, bit for bit; β = 0 leaves the kept columns, renormalised."""
    A, sinks = draw(T, seed=seed), random_sinks((2, 3, T), seed)
    np.testing.assert_array_equal(calibrate_attention(A, sinks, beta=1.0), A)
    emptied = calibrate_attention(A, sinks, beta=0.0)
    kept = np.where(sinks[..., None, :], 0.0, A)
    np.testing.assert_allclose(emptied, kept / kept.sum(-1, keepdims=True), **CLOSE)


@given(LENGTHS, SEEDS, BETAS)
def test_values_see_two_scaled_groups(T, seed, beta):
    """The output is (1 + (1 − β) mass/base) Σ_K A v + β Σ_S' A v, and moves by at most 2(1 − β) mass max|v|."""
    A, sinks = draw(T, seed=seed), random_sinks((2, 3, T), seed)
    V = np.random.default_rng(seed).standard_normal((2, 3, T, 4))
    S = np.where(sinks[..., None, :], A, 0.0)
    K = A - S
    mass, base = S.sum(-1, keepdims=True), K.sum(-1, keepdims=True)
    out = calibrate_attention(A, sinks, beta=beta) @ V
    np.testing.assert_allclose(out, (1 + (1 - beta) * mass / base) * (K @ V) + beta * (S @ V), **CLOSE)
    moved = np.linalg.norm(out - A @ V, axis=-1)
    longest = np.linalg.norm(V, axis=-1).max(-1)[..., None]
    assert (moved <= 2 * (1 - beta) * mass[..., 0] * longest + 1e-12).all()


@given(LENGTHS, SEEDS)
def test_ratios_within_each_group_are_kept(T, seed):
    """Â[i,j] A[i,k] = Â[i,k] A[i,j] for two kept columns, and for two sinks."""
    A, sinks = draw(T, seed=seed, lead=()), random_sinks(T, seed)
    out = calibrate_attention(A, sinks)
    for group in (sinks, ~sinks):
        cross = out[:, group, None] * A[:, None, group]
        np.testing.assert_allclose(cross, np.swapaxes(cross, 1, 2), **CLOSE)


@given(st.integers(2, 14), SEEDS, st.integers(1, 13))
def test_only_the_causal_form_ignores_the_future(T, seed, cut):
    """With ``causal`` a prefix is calibrated as if nothing followed, whatever follows."""
    A, cut = draw(T, seed=seed), min(cut, T)
    for options in ({}, {"threshold": 0.2}, {"alpha": 2.0}, {"alpha": 2.0, "protect": "token0"}):
        whole = act(A, causal=True, **options)
        np.testing.assert_allclose(whole[..., :cut, :cut], act(A[..., :cut, :cut], causal=True, **options), **CLOSE)


def test_the_default_looks_at_later_queries():
    """Other scores in rows 12 and later change calibrated rows before 12."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 1, 24, 24))
    other = logits.copy()
    other[..., 12:, :] += 4.0 * (np.arange(24) == 5)
    early = [act(softmax(x, where=causal_mask(24, 24)), threshold=0.1)[..., :12, :] for x in (logits, other)]
    assert np.abs(early[0] - early[1]).max() > 0.01
    early = [
        act(softmax(x, where=causal_mask(24, 24)), threshold=0.1, causal=True)[..., :12, :] for x in (logits, other)
    ]
    np.testing.assert_array_equal(*early)


@given(LENGTHS, SEEDS)
def test_both_forms_agree_on_the_last_row(T, seed):
    """The last query has seen everything: its row is the same with ``causal`` and without."""
    A = draw(T, seed=seed)
    np.testing.assert_allclose(act(A, alpha=1.5)[..., -1, :], act(A, alpha=1.5, causal=True)[..., -1, :], **CLOSE)


@given(LENGTHS, SEEDS)
def test_thresholds_at_the_ends(T, seed):
    """From 1 on nothing is a sink; below 0 every column is, and column 0 takes the rest."""
    A = draw(T, seed=seed)
    for causal in (False, True):
        assert not detect_sinks(A, threshold=1.0, causal=causal).any()
        np.testing.assert_array_equal(act(A, threshold=1.0, causal=causal), A)
        out = act(A, threshold=-1.0, beta=0.25, causal=causal)
        np.testing.assert_allclose(out[..., 0], A[..., 0] + 0.75 * (1 - A[..., 0]), **CLOSE)
    assert detect_sinks(A, threshold=-1.0).all()
    np.testing.assert_array_equal(
        calibrated_sinks(detect_sinks(A, threshold=-1.0)), np.broadcast_to(np.arange(T) > 0, (2, 3, T))
    )


@given(LENGTHS, SEEDS)
def test_the_code_and_the_paper_coincide_at_fifty(T, seed):
    """α = 0.1 T is the absolute threshold 0.1; at T = 50 that is α = 5."""
    A = draw(T, seed=seed)
    np.testing.assert_array_equal(detect_sinks(A, alpha=0.1 * T), detect_sinks(A, threshold=0.1 * T / T))
    assert 5.0 / 50 == 0.1


def test_which_sink_is_spared():
    """The code spares the first detected column; ``token0`` spares column 0 and nothing else."""
    S = np.array([[True, False, True, True], [False, False, True, True], [False] * 4, [False, True, False, False]])
    first, token0 = calibrated_sinks(S), calibrated_sinks(S, protect="token0")
    np.testing.assert_array_equal(first, [[0, 0, 1, 1], [0, 0, 0, 1], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(token0, [[0, 0, 1, 1], [0, 0, 1, 1], [0] * 4, [0, 1, 0, 0]])


@given(LENGTHS, SEEDS)
def test_other_heads_come_back_bit_for_bit(T, seed):
    """Heads that are not chosen are untouched, and each chosen head is what it would be alone."""
    A = draw(T, seed=seed)
    out = act(A, heads=(2, 0), threshold=0.1)
    np.testing.assert_array_equal(out[:, 1], A[:, 1])
    for b in range(2):
        for h in (0, 2):
            np.testing.assert_array_equal(out[b, h], act(A[b, h][None], threshold=0.1)[0])
    np.testing.assert_array_equal(act(A, heads=(), threshold=0.1), A)


def test_degenerate_maps():
    """One token is [[1]]; no batch, no token, two tokens and no sink work."""
    one = np.ones((1, 1, 1, 1))
    np.testing.assert_array_equal(act(one), one)
    np.testing.assert_array_equal(act(one, threshold=0.1), one)
    assert act(np.zeros((0, 2, 3, 3))).shape == (0, 2, 3, 3)
    assert act(np.zeros((1, 2, 0, 0))).shape == (1, 2, 0, 0)
    assert act(np.zeros((1, 2, 0, 0)), causal=True).shape == (1, 2, 0, 0)
    two = np.array([[[1.0, 0.0], [0.25, 0.75]]])
    np.testing.assert_allclose(act(two, threshold=0.1), [[[1.0, 0.0], [0.7, 0.3]]], **CLOSE)
    np.testing.assert_array_equal(act(two, threshold=0.7), two)


def test_a_row_with_nothing_but_sinks_is_left_alone():
    """Where no column is left to take the mass, the row stays; rows of zeros stay zero."""
    A = np.array([[1.0, 0, 0], [0, 1.0, 0], [0.25, 0.25, 0.5]])
    out = calibrate_attention(A, np.array([False, True, False]), beta=0.0)
    np.testing.assert_allclose(out, [[1.0, 0, 0], [0, 1.0, 0], [1 / 3, 0, 2 / 3]], **CLOSE)
    A[0] = 0.0
    assert not calibrate_attention(A, np.array([True, True, False]))[0].any()
    assert not act(A[None], threshold=0.1)[0, 0].any()


def test_a_base_beyond_normal_numbers():
    """A kept share of 1e−310 takes the freed mass without overflow."""
    row = np.array([1e-310, 1.0, 0.0])
    np.testing.assert_allclose(
        calibrate_row(row, np.array([False, True, False]), beta=0.25), [0.75, 0.25, 0.0], **CLOSE
    )


def test_a_row_is_calibrated_like_a_row_of_the_map():
    """`calibrate_row` with the sinks of the map gives the map's rows; each row may have sinks of its own."""
    A = draw(9)
    sinks = calibrated_sinks(detect_sinks(A, threshold=0.1))
    whole = calibrate_attention(A, sinks)
    np.testing.assert_array_equal(calibrate_row(A, sinks[..., None, :]), whole)
    np.testing.assert_array_equal(calibrate_row(A[..., 7, :], sinks), whole[..., 7, :])
    by_row = calibrated_sinks(detect_sinks(A, alpha=2.0, causal=True))
    np.testing.assert_array_equal(calibrate_row(A, by_row), act(A, alpha=2.0, beta=0.4, causal=True))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    """Weights of any floating dtype come back in it; whole numbers become float64."""
    A = draw(6, dtype=dtype)
    sinks = random_sinks(6, 0)
    assert act(A).dtype == act(A, causal=True).dtype == calibrate_attention(A, sinks).dtype == dtype
    assert received_attention(A).dtype == received_attention(A, causal=True).dtype == dtype
    assert calibrate_row(A, sinks).dtype == dtype
    assert act(np.ones((1, 1, 1), dtype=np.int64)).dtype == np.float64


def test_bfloat16_is_kept():
    """Weights in bfloat16 come back in bfloat16."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    A = np.array([[[1, 0, 0], [0.25, 0.75, 0], [0.25, 0.25, 0.5]]], dtype=bfloat16)
    assert act(A, threshold=0.3).dtype == act(A, alpha=1.1, causal=True).dtype == bfloat16
    calibrated = act(A, threshold=0.3, protect="token0")[0, 1].astype(float)
    np.testing.assert_allclose(calibrated, [0.7, 0.3, 0.0], atol=0.004)


def damaged(change):
    A = draw(4)
    change(A)
    return A


def put(index, value):
    def change(A):
        A[index] = value

    return change


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: act(draw(4)[..., :3, :]), "attention must be square: prefill only"),
        (lambda: detect_sinks(np.ones(3), alpha=5.0), "attention must be square"),
        (lambda: act(draw(4, lead=())), r"expected \(\.\.\., H, T, T\)"),
        (lambda: act(damaged(put((0, 0, 1, 0), -0.5))), "attention weights must be >= 0"),
        (lambda: act(damaged(put((0, 0, 1, 0), np.nan))), "attention weights must be >= 0"),
        (lambda: act(damaged(put((0, 0, 1, 0), np.inf))), "rows must sum to 1"),
        (lambda: act(damaged(put((1, 2, 3), 0.26))), "rows must sum to 1"),
        (lambda: act(damaged(put((0, 0, 0), [0.5, 0.5, 0, 0]))), "attention must be causal"),
        (lambda: act(draw(4), beta=1.5), r"beta=1\.5"),
        (lambda: act(draw(4), beta=np.nan), "beta=nan"),
        (lambda: act(draw(4), threshold=0.1, alpha=5.0), "exactly one of"),
        (lambda: detect_sinks(draw(4)), "exactly one of"),
        (lambda: detect_sinks(draw(4), alpha=0.0), r"alpha=0\.0"),
        (lambda: detect_sinks(draw(4), threshold=np.nan), "threshold=nan"),
        (lambda: act(draw(4), heads=(3,)), r"heads=\[3\] must lie in 0\.\.2"),
        (lambda: act(draw(4), heads=(-1,)), "must lie in"),
        (lambda: act(draw(4), heads=(0.5,)), "expected integers"),
        (lambda: act(draw(4), protect="all"), "protect='all'"),
        (lambda: calibrated_sinks(np.array([1, 0])), "expected bool"),
        (lambda: calibrated_sinks(np.array(True)), r"expected \(\.\.\., T\)"),
        (lambda: calibrate_attention(draw(4), np.zeros(3, bool)), r"sinks has shape \(3,\)"),
        (lambda: calibrate_attention(draw(4), np.zeros((5, 4), bool)), "does not broadcast"),
        (lambda: calibrate_row(np.array([0.5, 0.4]), np.zeros(2, bool)), "rows must sum to 1"),
        (lambda: calibrate_row(np.array(1.0), np.zeros(1, bool)), r"row has shape \(\)"),
        (lambda: ACTHook({-1: (0,)}), "layers >= 0"),
        (lambda: ACTHook({}, beta=2.0), r"beta=2\.0"),
        (lambda: ACTHook({}, alpha=1.0, threshold=1.0), "exactly one of"),
        (lambda: ACTHook({}, protect="none"), "protect='none'"),
        (lambda: calibrated_layers(-1), "must not be negative"),
        (lambda: candidate_heads(4, -1), "n_heads=-1"),
        (lambda: select_heads(lambda _heads: np.nan, [(2, 0)]), "is NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    """What is no causal attention, or no sensible option, is refused with the rule."""
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_that_come_into_question():
    """The first two and the last are left alone; 32 layers of 32 heads leave 928 candidates."""
    assert calibrated_layers(32) == range(2, 31)
    assert len(candidate_heads(32, 32)) == 928
    assert candidate_heads(4, 2) == [(2, 0), (2, 1)]
    assert list(calibrated_layers(2)) == list(calibrated_layers(1)) == candidate_heads(0, 3) == []
    assert calibrated_layers(4, skip_first=0, skip_last=0) == range(4)


def test_selection_keeps_what_raises_the_score():
    """Heads that gain alone are kept, in order; equal is not enough, and the base is asked for once."""
    asked, gains = [], {(2, 0): 0.1, (2, 1): 0.0, (3, 0): -0.1, (3, 1): 0.2}

    def score(heads):
        asked.append(heads)
        return 0.5 + sum(gains[layer, head] for layer, chosen in heads.items() for head in chosen)

    assert select_heads(score, gains) == [(2, 0), (3, 1)]
    assert asked == [{}, {2: (0,)}, {2: (1,)}, {3: (0,)}, {3: (1,)}]
    assert select_heads(score, gains, base=0.65) == [(3, 1)]
    assert select_heads(score, []) == []


def test_the_hook_calibrates_chosen_heads_of_inner_layers():
    """Chosen heads of inner layers equal `act`; other heads, other layers and skipped layers are untouched."""
    A = draw(8, seed=3)
    A.flags.writeable = False
    hook = ACTHook({0: (0,), 2: [2, 0], 4: (1,)}, beta=0.2, threshold=0.1)
    hook.begin(5)
    np.testing.assert_array_equal(hook.on_weights(2, A), act(A, heads=(0, 2), beta=0.2, threshold=0.1))
    for layer in (0, 1, 3, 4):
        assert hook.on_weights(layer, A) is A
    hook.begin(3)
    assert hook.on_weights(2, A) is A  # now the last layer
    default = ACTHook({2: (1,)})
    default.begin(4)
    np.testing.assert_array_equal(default.on_weights(2, A), act(A, heads=(1,)))
    nothing = ACTHook({2: (1,)}, skip_first=3, skip_last=3)
    nothing.begin(4)
    assert nothing.on_weights(2, A) is A


def test_the_hook_decodes_with_the_sinks_of_the_prompt():
    """Rows that extend a prompt are calibrated at its sinks; new keys are none; a new prompt starts afresh."""
    A = draw(10, seed=5)
    prompt = A[..., :7, :7]
    hook = ACTHook({2: (1,)}, threshold=0.1)
    hook.begin(4)
    hook.on_weights(2, prompt)
    sinks = calibrated_sinks(detect_sinks(prompt[:, 1], threshold=0.1))
    for i in (7, 8, 9):
        hook.begin(4)
        step = A[..., i : i + 1, : i + 1]
        padded = np.pad(sinks, ((0, 0), (0, i - 6)))
        out = hook.on_weights(2, step)
        np.testing.assert_array_equal(out[:, 1], calibrate_row(step[:, 1], padded[:, None]))
        np.testing.assert_array_equal(out[:, [0, 2]], step[:, [0, 2]])
    np.testing.assert_array_equal(hook.on_weights(2, A), act(A, heads=(1,), threshold=0.1))


def test_the_hook_refuses_a_continuation_that_it_has_not_seen():
    """A step without a prompt, or of another batch, and a head that is not there are refused."""
    A = draw(6)
    hook = ACTHook({2: (1,)})
    hook.begin(4)
    with pytest.raises(ValueError, match="has not seen"):
        hook.on_weights(2, A[..., 5:, :])
    hook.on_weights(2, A[..., :5, :5])
    with pytest.raises(ValueError, match="has not seen"):
        hook.on_weights(2, A[:1, :, 5:, :])
    wrong = ACTHook({2: (3,)})
    wrong.begin(4)
    with pytest.raises(ValueError, match=r"heads\[2\]=\[3\] must lie in 0\.\.2"):
        wrong.on_weights(2, A)


SMALL = parse_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 5,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 11,
    }
)
PATTERNS = [f"blocks.{layer}.attn.hook_pattern" for layer in range(5)]


def small_model(dtype=np.float64):
    return random_transformer(SMALL, np.random.default_rng(0), scale=2.0, dtype=dtype)


def tokens(T, seed=0):
    return np.random.default_rng(seed).integers(0, 11, size=(2, T))


def test_a_running_model_uses_calibrated_weights():
    """With grouped keys the chosen heads of layer 2 are those of `act`, and what comes before is as it was."""
    model, ids = small_model(), tokens(9)
    hook = ACTHook({1: (0,), 2: (1, 3)}, threshold=0.1)
    plain, changed = (forward(model, ids, interventions=hooks, names=PATTERNS) for hooks in ((), (hook,)))
    for name in PATTERNS[:2]:
        np.testing.assert_array_equal(changed.activations[name], plain.activations[name])
    expected = act(plain.activations[PATTERNS[2]], heads=(1, 3), threshold=0.1)
    np.testing.assert_array_equal(changed.activations[PATTERNS[2]], expected)
    assert np.abs(changed.logits - plain.logits).max() > 1e-3


def test_skipped_layers_leave_a_running_model_as_it_was():
    """Heads of the first two layers and the last change no logit, and neither does β = 1."""
    model, ids = small_model(), tokens(9)
    plain = forward(model, ids).logits
    for hook in (
        ACTHook({0: range(4), 1: range(4), 4: range(4)}, threshold=0.1),
        ACTHook({2: range(4)}, skip_first=4, skip_last=4),
        ACTHook({2: range(4), 3: range(4)}, threshold=0.1, beta=1.0),
    ):
        np.testing.assert_array_equal(forward(model, ids, interventions=(hook,)).logits, plain)


def test_a_float32_model_is_accepted():
    """Softmax weights in float32 count as attention, and stay float32."""
    hook = ACTHook({2: range(4)}, threshold=0.1)
    result = forward(small_model(np.float32), tokens(40), interventions=(hook,), names=PATTERNS)
    assert result.activations[PATTERNS[2]].dtype == np.float32
    np.testing.assert_allclose(result.activations[PATTERNS[2]].sum(-1), 1.0, atol=1e-6)


def test_generation_keeps_the_sinks_of_the_prompt():
    """Each decoded row is calibrated at the prompt's sinks, and a second prompt finds its own."""
    model, ids = small_model(), tokens(9)
    hook = ACTHook({2: (1,)}, threshold=0.1)
    generate(model, ids, 4, interventions=(hook,))
    kept = hook.sinks[2]
    plain = forward(model, ids, names=PATTERNS).activations[PATTERNS[2]]
    np.testing.assert_array_equal(kept, calibrated_sinks(detect_sinks(plain[:, [1]], threshold=0.1)))

    result = forward(model, ids, interventions=(hook,))
    step = forward(model, tokens(1, seed=3), cache=result.kv_cache, names=PATTERNS)
    hooked = forward(model, tokens(1, seed=3), cache=result.kv_cache, interventions=(hook,), names=PATTERNS)
    before, after = (r.activations[PATTERNS[2]][:, 1] for r in (step, hooked))
    np.testing.assert_array_equal(after, calibrate_row(before, np.pad(kept[:, 0], ((0, 0), (0, 1)))[:, None]))

    generate(model, tokens(6, seed=1), 1, interventions=(hook,))
    assert hook.sinks[2].shape == (2, 1, 6)


def test_left_padding_is_no_attention():
    """Padded rows are zero and stay so; the others still sum to 1."""
    mask = np.arange(9) >= np.array([[0], [3]])
    hook = ACTHook({2: range(4)}, threshold=0.1)
    result = forward(small_model(), tokens(9), key_mask=mask, interventions=(hook,), names=PATTERNS)
    np.testing.assert_allclose(
        result.activations[PATTERNS[2]].sum(-1), np.broadcast_to(mask[:, None], (2, 4, 9)), **CLOSE
    )


def test_sinks_of_a_decoder_are_where_they_were_planted():
    """In a decoder whose delimiter becomes a sink at layer 3, that column is detected after it and not before."""
    model = build_sink_model(n_layers=8, start0=1, triggers=((1, 3, 30.0),), kappa=1.0)
    ids = np.array([[0, 4, 5, 3, 1, 6, 7, 4, 3, 8, 9, 5, 6, 4, 7, 3]])
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(8)]
    kept = forward(model, ids, names=names).activations
    found = [np.flatnonzero(detect_sinks(kept[name], alpha=3.0).any((0, 1))).tolist() for name in names]
    assert found[2:4] == [[0], [0]]
    assert found[4] == [0, 4]
