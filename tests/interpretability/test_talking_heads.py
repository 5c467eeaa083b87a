"""Talking heads: scores that are known, channels in running models, lists, and what the report finds."""

import numpy as np
import pytest

from refattn.interpretability.talking_heads import (
    MODES,
    component_scores,
    composition_scores,
    head_svd,
    inhibition_score,
    robust_outliers,
)
from refattn.interpretability.talking_heads_channels import (
    channel_basis,
    inhibition_changes,
    remove_components,
    replace_head,
    scale_components,
    set_channel,
)
from refattn.interpretability.talking_heads_lists import laundry_list, laundry_text
from refattn.interpretability.talking_heads_report import report, stacked_weights
from refattn.transformer.checkpoint import load_pretrained, save_pretrained
from refattn.transformer.forward import forward
from refattn.transformer.planted.channel_model import COMPONENT, READER, build_channel_model
from refattn.transformer.planted.list_model import OBJECTS, build_list_model
from refattn.transformer.weights import check_weights

IOI = "<bos> then , bob and alice went to the store . bob gave a ring to"
END, IO, S1 = 15, 5, 3


def drawn(L=3, H=2, d=8, e=3, G=None, seed=0):
    rng = np.random.default_rng(seed)
    query, output = rng.standard_normal((L, H, d, e)), rng.standard_normal((L, H, e, d))
    key, value = rng.standard_normal((2, L, G or H, d, e))
    return query, key, value, output


def dense_scores(W_Q, W_K, W_V, W_O, mode):
    """Scores by their definition, every matrix written out."""
    L, H = W_Q.shape[:2]
    scores = np.zeros((L, H, L, H))
    for l, h, m, g in np.ndindex(*scores.shape):
        if l < m:
            OV = W_V[l, h] @ W_O[l, h]
            QK = W_Q[m, g] @ W_K[m, g].T
            M = {"Q": QK, "K": QK.T, "V": W_V[m, g] @ W_O[m, g]}[mode]
            scores[l, h, m, g] = np.linalg.norm(OV @ M) / (np.linalg.norm(OV) * np.linalg.norm(M))
    return scores


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 2, 8, 3), (2, 1, 5, 5), (2, 3, 6, 1), (1, 2, 4, 2)])
def test_scores_are_those_of_the_whole_matrices(shape, mode):
    """Without a (d, d) matrix the scores are those with it; for one layer they are all zero."""
    weights = drawn(*shape)
    found = composition_scores(*weights, mode=mode)
    np.testing.assert_allclose(found, dense_scores(*weights, mode), rtol=0, atol=1e-13)
    assert found.any() == (shape[0] > 1)


@pytest.mark.parametrize("mode", MODES)
def test_the_score_of_a_head_is_the_mean_of_its_components(mode):
    """score² = Σ s² Q² / Σ s², so one aligned component is diluted by all others."""
    weights = drawn(seed=1)
    s = head_svd(*weights[2:]).s
    parts = component_scores(*weights, mode=mode)
    mean = np.einsum("lhi,lhimg->lhmg", s**2, parts**2) / np.sum(s**2, axis=-1)[..., None, None]
    np.testing.assert_allclose(composition_scores(*weights, mode=mode) ** 2, mean, rtol=0, atol=1e-12)


def test_an_orthonormal_plant_has_the_scores_that_were_planted():
    """With b₁ = p₁ and all else orthogonal the pair scores σ₁τ₁/(‖σ‖‖τ‖), its first component τ₁/‖τ‖, others 0."""
    sigma, tau, axes = np.array([3.0, 2.0, 1.0]), np.array([1.5, 1.0, 0.5]), np.eye(12)
    W_Q, W_K, W_V, W_O = drawn(2, 1, 12, 3)
    W_V[0, 0], W_O[0, 0] = axes[:, :3] * sigma, axes[3:6]
    W_Q[1, 0], W_K[1, 0] = axes[:, [3, 6, 7]] * tau, axes[:, 9:]
    weights = W_Q, W_K, W_V, W_O
    sizes = np.linalg.norm(sigma), np.linalg.norm(tau)
    assert composition_scores(*weights)[0, 0, 1, 0] == pytest.approx(4.5 / (sizes[0] * sizes[1]), abs=1e-12)
    np.testing.assert_allclose(component_scores(*weights)[0, 0, :, 1, 0], [1.5 / sizes[1], 0, 0], atol=1e-12)


def test_heads_of_rank_one_have_one_component():
    """The first component scores what the head does; the others, which have no direction, score 0."""
    W_Q, W_K, W_V, W_O = drawn(seed=2)
    W_V = W_V * np.array([1.0, 0.0, 0.0])
    parts = component_scores(W_Q, W_K, W_V, W_O)
    np.testing.assert_allclose(parts[:, :, 0], composition_scores(W_Q, W_K, W_V, W_O), rtol=0, atol=1e-12)
    assert not parts[:, :, 1:].any()


def test_chance_is_one_over_d():
    """Heads that have nothing to do with one another have scores of mean square 1/d."""
    for d in (16, 24):
        scores = composition_scores(*drawn(4, 8, d, 6, seed=3))
        later = np.concatenate([scores[:m, :, m].ravel() for m in range(1, 4)])
        assert later.size == 384
        assert np.mean(later**2) == pytest.approx(1 / d, rel=0.1)


def test_matrices_of_zeros_score_zero():
    """A head that writes nothing and a head that reads nothing score 0, without a warning."""
    W_Q, W_K, W_V, W_O = drawn()
    W_O[0, 0], W_Q[2, 1] = 0.0, 0.0
    for scores in (composition_scores(W_Q, W_K, W_V, W_O), component_scores(W_Q, W_K, W_V, W_O)):
        assert not scores[0, 0].any()
        assert not scores[..., 2, 1].any()
        assert scores[0, 1].any()


def test_shared_keys_and_values_are_those_of_every_head_of_a_group():
    """Weights of G heads give the scores of the same weights repeated."""
    W_Q, W_K, W_V, W_O = drawn(2, 4, 6, 2, G=2)
    repeated = W_Q, np.repeat(W_K, 2, axis=1), np.repeat(W_V, 2, axis=1), W_O
    for mode in MODES:
        np.testing.assert_array_equal(
            component_scores(W_Q, W_K, W_V, W_O, mode=mode), component_scores(*repeated, mode=mode)
        )


def test_components_put_together_are_the_head():
    """U diag(s) Vᵀ is OV; both sets of directions are orthonormal, sizes fall."""
    _, _, W_V, W_O = drawn(2, 2, 7, 4)
    U, s, Vt = head_svd(W_V, W_O)
    np.testing.assert_allclose((U * s[..., None, :]) @ Vt, W_V @ W_O, rtol=0, atol=1e-12)
    for rows in (U.swapaxes(-1, -2), Vt):
        np.testing.assert_allclose(rows @ rows.swapaxes(-1, -2), np.broadcast_to(np.eye(4), (2, 2, 4, 4)), atol=1e-12)
    assert np.all(np.diff(s) <= 0)


def test_removing_a_component_takes_it_out_of_the_head():
    """OV without component i is the sum of the others, OV v_i vanishes, and the components may go in any order."""
    _, _, W_V, W_O = (w[0, 0] for w in drawn())
    U, s, Vt = head_svd(W_V, W_O)
    without = remove_components(W_O, Vt[1:2])
    np.testing.assert_allclose(W_V @ without, W_V @ W_O - s[1] * np.outer(U[:, 1], Vt[1]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(W_V @ without @ Vt[1], 0, atol=1e-12)
    np.testing.assert_allclose(remove_components(without, Vt[1:2]), without, rtol=0, atol=1e-12)
    both = remove_components(without, Vt[:1]), remove_components(remove_components(W_O, Vt[:1]), Vt[1:2])
    np.testing.assert_allclose(*both, rtol=0, atol=1e-12)
    np.testing.assert_allclose(remove_components(W_O, Vt), 0, atol=1e-12)
    np.testing.assert_array_equal(remove_components(W_O, Vt[:0]), W_O)
    np.testing.assert_allclose(scale_components(W_O, Vt[1:2], [0.0]), without, rtol=0, atol=1e-12)


def test_a_set_channel_says_what_it_was_told():
    """Along the basis the stream has alpha, across it nothing changes, nor at other tokens."""
    rng = np.random.default_rng(0)
    x, basis = rng.standard_normal((2, 4, 6)), channel_basis(rng.standard_normal((2, 6)))
    alpha = rng.standard_normal((2, 2))
    across = np.eye(6) - basis @ basis.T
    out = set_channel(basis, alpha, position=1)(x, "")
    np.testing.assert_allclose(out[:, 1] @ basis, alpha, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out[:, 1] @ across, x[:, 1] @ across, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(out[:, [0, 2, 3]], x[:, [0, 2, 3]])


def test_a_balanced_change_has_no_sum():
    """With a balance coordinate the sum of the stream stays what it was."""
    rng = np.random.default_rng(1)
    x, basis = rng.standard_normal((1, 3, 6)), np.eye(6)[:, :2]
    out = set_channel(basis, [5.0, -3.0], bal_index=5)(x, "")
    np.testing.assert_allclose(out.sum(-1), x.sum(-1), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(out[0, -1, :2], [5.0, -3.0])


def test_a_basis_spans_what_it_was_made_of():
    """Orthonormal columns, the first along the first direction."""
    rows = np.random.default_rng(2).standard_normal((3, 7))
    basis = channel_basis(rows)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows @ basis @ basis.T, rows, rtol=0, atol=1e-12)
    np.testing.assert_allclose(basis[:, 0], rows[0] / np.linalg.norm(rows[0]), rtol=0, atol=1e-12)


def test_outliers_are_counted_from_the_median():
    """Only what lies far above stands out; among equal scores whatever exceeds them does."""
    scores = np.concatenate([np.linspace(0, 1, 21), [3.0, -3.0]])
    np.testing.assert_array_equal(np.flatnonzero(robust_outliers(scores)), [21])
    np.testing.assert_array_equal(robust_outliers([[0.0, 0.0, 0.1], [0.0, 0.0, 1e-12]]), np.eye(3)[[2, 1]] * [0, 0, 1])
    assert robust_outliers(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_a_list_names_one_item_once(n):
    """Of n items one occurs once and is the answer, the others twice; they stand at every other token from 4 on."""
    for target in (None, 0, n - 1):
        prompt = laundry_list(np.random.default_rng(n), n, target, OBJECTS)
        items = [prompt.tokens[place] for place in prompt.item_positions]
        times = [prompt.tokens.count(item) for item in items]
        assert sorted(times) == [1, *[2] * (n - 1)]
        assert items[times.index(1)] == prompt.answer
        assert target is None or items[target] == prompt.answer
        assert prompt.item_positions == tuple(4 + 2 * i for i in range(n))
        assert len(prompt.tokens) == 4 * n + 7


def test_a_list_in_english_ends_before_the_answer():
    """The text names the answer once, all other items twice."""
    text, answer = laundry_text(np.random.default_rng(0), 4, 1, OBJECTS)
    listed = text.split(" has a ")[1].split(".")[0].split(", ")
    assert [text.count(item) for item in listed] == [2, 1, 2, 2]
    assert listed[1] == answer
    assert text.startswith("Anna has a ")
    assert text.endswith("She still needs the")


@pytest.fixture(scope="module")
def dial():
    """The list model with a channel of one dimension: +1 for token 3, −1 for token 5."""
    codes = np.zeros((64, 1))
    codes[3], codes[5] = 1.0, -1.0
    return build_list_model(codes=codes, own_pos=0.0, gamma=6.0)


def mover_pattern(model, ids, hooks=None):
    return forward(model, ids, hooks=hooks, names="blocks.2.attn.hook_pattern").activations[
        "blocks.2.attn.hook_pattern"
    ][:, 0]


def test_one_component_carries_the_inhibition(dial):
    """Head 1.0 has one component; without it the mover looks at both names alike."""
    model, layout = dial
    ids = np.array([layout.encode(IOI)])
    block = model.weights.blocks[1]
    _, s, Vt = head_svd(block.W_V[0], block.W_O[0])
    np.testing.assert_allclose(s[:2], [2.0, 0.0], atol=1e-12)
    whole = inhibition_score(mover_pattern(model, ids), END, IO, S1)
    assert whole == pytest.approx(0.99999, abs=1e-5)
    cut = replace_head(model, 1, 0, remove_components(block.W_O[0], Vt[:1]))
    assert abs(inhibition_score(mover_pattern(cut, ids), END, IO, S1)) < 1e-3
    changes = inhibition_changes(model, ids, (2, 0), (1, 0), end=END, io=IO, s=S1)
    assert changes[0] == pytest.approx(whole, abs=1e-3)
    np.testing.assert_allclose(changes[1:], 0, atol=1e-6)


def test_the_channel_is_a_dial(dial):
    """Setting it to x, the mover looks at token 3 with weight 1/(1 + exp(2γx)), as far as the norms are transparent."""
    model, layout = dial
    ids = np.array([layout.encode(IOI)])
    basis = np.eye(model.config.d_model)[:, layout.chan]
    for x in (-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0):
        hooks = {"blocks.2.hook_resid_pre": set_channel(basis, [x], bal_index=layout.bal)}
        assert mover_pattern(model, ids, hooks)[0, END, S1] == pytest.approx(1 / (1 + np.exp(12 * x)), abs=1e-4)


def test_the_report_finds_the_planted_channel_and_no_other(tmp_path):
    """In the planted GPT-2, saved and loaded again, one component stands out: the planted one."""
    save_pretrained(build_channel_model(), tmp_path)
    model = load_pretrained(tmp_path)
    check_weights(*model)
    (row,) = report(model).rows
    assert (row["mode"], row["component"], row["reader"]) == ("Q", "0.1.7", "2.3")
    assert COMPONENT == (0, 1, 7)
    assert READER == (2, 3)
    assert row["score"] > 2 * row["head_score"]
    assert row["z"] > 12


def test_the_report_is_sorted_cut_and_drawn():
    """The strongest come first, ``top`` cuts, a model without channels gives no row, and all of them can be drawn."""
    from matplotlib.figure import Figure

    found = report(build_channel_model(), z=2.5, top=7)
    scores = [row["score"] for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 7
    nothing = report(build_channel_model(strength=0.0), z=9.0)
    assert nothing.rows == []
    for each in (found, nothing):
        figure = Figure()
        each.draw(figure)
        assert len(figure.axes) == 3


def test_the_report_on_a_model_where_most_scores_are_equal():
    """In the list model most scores are 0, the rule has no scale, and z is None; the wiring is found."""
    rows = report(build_list_model()[0], top=None).rows
    assert {row["z"] for row in rows} == {None}
    pairs = {(row["mode"], row["component"].rsplit(".", 1)[0], row["reader"]) for row in rows}
    assert {("Q", "1.0", "2.0"), ("Q", "1.1", "2.0"), ("K", "0.0", "1.0"), ("V", "0.0", "1.1")} <= pairs


def test_chance_alone_puts_few_components_beyond_the_limit():
    """In models without a channel about two of 18,432 scores stand out, all of them near the limit."""
    rows = [row for seed in range(12) for row in report(build_channel_model(strength=0.0, seed=seed)).rows]
    assert 12 <= len(rows) <= 36
    assert max(row["z"] for row in rows) < 8


def test_stacked_weights_fold_the_norms():
    """Folding takes means out, and so changes scores even where norms are transparent."""
    model, _ = build_list_model()
    folded = stacked_weights(model)
    assert [w.shape[:2] for w in folded] == [(3, 3)] * 4
    np.testing.assert_allclose(folded[3].sum(-1), 0, atol=1e-10)
    built = stacked_weights(model, folded=False)
    np.testing.assert_array_equal(built[0][1], model.weights.blocks[1].W_Q)
    scores = [composition_scores(*weights)[1, 1, 2, 0] for weights in (built, folded)]
    np.testing.assert_allclose(scores, [0.0444, 0.0492], rtol=0, atol=5e-5)


WEIGHTS = drawn(2, 2, 4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.ones((2, 2, 4))}, "W_Q has 3 axes"),
        ({1: np.ones((2, 2, 5, 2))}, "W_K has 5 on axis d"),
        ({1: np.ones((3, 2, 4, 2))}, "W_K has 3 on axis L"),
        ({2: np.ones((2, 2, 4, 3))}, "W_V has 3 on axis e"),
        ({2: np.ones((2, 3, 4, 2))}, "W_V has 3 heads"),
        ({3: np.ones((2, 2, 4, 2))}, "W_O has shape"),
        ({0: np.full((2, 2, 4, 2), np.nan)}, "W_Q=array"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    """The argument and the axis are named."""
    weights = [change.get(i, w) for i, w in enumerate(WEIGHTS)]
    with pytest.raises(ValueError, match=message):
        composition_scores(*weights)
    with pytest.raises(ValueError, match=message):
        component_scores(*weights)


def a_hook(alpha, width=4):
    return set_channel(np.eye(4)[:, :2], alpha)(np.zeros((1, 2, width)), "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: composition_scores(*WEIGHTS, mode="O"), "mode='O'"),
        (lambda: head_svd(np.ones((4, 2)), np.ones((3, 4))), "W_V of shape"),
        (lambda: head_svd(np.ones((2, 3)), np.ones((3, 2))), "head width 3"),
        (lambda: robust_outliers([1.0], z=0), "z=0"),
        (lambda: robust_outliers([np.inf]), "scores="),
        (lambda: inhibition_score(np.ones((1, 2, 3)), 0, 0, 0), "pattern has shape"),
        (lambda: inhibition_score(np.ones((1, 2, 2)), 2, 0, 0), "end=2"),
        (lambda: channel_basis(np.ones((2, 4))), "linearly dependent"),
        (lambda: channel_basis(np.ones((0, 4))), "expected 1 to 4"),
        (lambda: remove_components(np.ones((2, 4)), np.ones((1, 3))), "directions has shape"),
        (lambda: scale_components(np.ones((2, 4)), np.ones((1, 4)), [0.0]), "orthonormal"),
        (lambda: scale_components(np.ones((2, 4)), np.eye(4)[:1], [0.0, 1.0]), "factors has shape"),
        (lambda: a_hook([1.0]), "alpha has shape"),
        (lambda: a_hook([1.0, 2.0], 5), "the stream 5"),
        (lambda: set_channel(np.ones((4, 2)), [1.0, 2.0]), "orthonormal"),
        (lambda: laundry_list(np.random.default_rng(0), 1, None, OBJECTS), "n=1"),
        (lambda: laundry_list(np.random.default_rng(0), 17, None, OBJECTS), "exceeds the 16"),
        (lambda: laundry_list(np.random.default_rng(0), 3, 3, OBJECTS), "target=3"),
        (lambda: report(build_channel_model(), top=0), "top=0"),
        (lambda: report(build_channel_model(), z=-1.0), "z=-1"),
        (lambda: build_channel_model(strength=np.inf), "strength=inf"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    """The argument, its value or the rule is named."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("mover", "head"), [((2, 3), (1, 0)), ((1, 0), (1, 1)), ((2, 0), (-1, 0))])
def test_changes_need_a_head_before_the_mover(dial, mover, head):
    """A head that is not there, or does not come first, is refused."""
    with pytest.raises(ValueError, match=r"(mover|head)=\("):
        inhibition_changes(dial[0], [[0]], mover, head, end=0, io=0, s=0)
