"""What calibration data says of the matrices of a block: against the official code, and against brute force."""

import numpy as np
import pytest
from random_models import model, tokens

import refattn.transformer.block
from refattn.efficiency.quantise_hessians import block_moments, run_block
from refattn.efficiency.quantise_matrices import Recipe, as_rows, from_rows, quantised_matrix
from refattn.efficiency.quantise_pull_back import pull_back_norm
from refattn.efficiency.turboboa import attention_hessians
from refattn.efficiency.turboboa_hessians import pull_back_rotation
from refattn.primitives.norms import rms_norm
from refattn.primitives.rotary import rope, rope_angles, rope_frequencies
from refattn.transformer.config import RopeConfig, TransformerConfig, parse_config
from refattn.transformer.forward import forward
from refattn.transformer.weights import BlockWeights, random_transformer

OFFICIAL = {
    "W_Q": "q_proj",
    "W_K": "k_proj",
    "W_V": "v_proj",
    "W_O": "out_proj",
    "W_in": "fc1",
    "W_out": "fc2",
}


def official_block(case):
    """Return the test block of the official vectors as a block of ours: LayerNorm without weights, ReLU, no biases."""
    heads, groups, e = (int(case[name]) for name in ("n_heads", "n_kv_heads", "head_dim"))
    d, m = case["W_out_proj"].shape[0], case["W_fc1"].shape[0]
    rotary = "cos" in case
    config = TransformerConfig(
        family="llama",
        n_layers=1,
        d_model=d,
        n_heads=heads,
        n_kv_heads=groups,
        d_head=e,
        d_mlp=m,
        vocab_size=1,
        n_ctx=64,
        norm="layer",
        norm_eps=1e-5,
        act="relu",
        gated=False,
        positions="rope" if rotary else "learned",
        rope=RopeConfig(10000.0, e) if rotary else None,
        attn_scale=(e**-0.5,),
        window=(None,),
    )
    shapes = {"W_Q": (heads, d, e), "W_K": (groups, d, e), "W_V": (groups, d, e), "W_O": (heads, e, d)}
    shapes |= {"W_in": (d, m), "W_out": (m, d)}
    like = {name: np.zeros(shape) for name, shape in shapes.items()}
    matrices = {name: from_rows(name, case[f"W_{theirs}"], like[name]) for name, theirs in OFFICIAL.items()}
    zeros = {"b_Q": np.zeros((heads, e)), "b_K": np.zeros((groups, e)), "b_V": np.zeros((groups, e))}
    zeros |= {"b_O": np.zeros(d), "b_in": np.zeros(m), "b_out": np.zeros(d), "ln1_b": np.zeros(d), "ln2_b": np.zeros(d)}
    nothing = dict.fromkeys(("q_norm", "k_norm", "W_gate", "b_gate"))
    return config, BlockWeights(ln1_w=np.ones(d), ln2_w=np.ones(d), **matrices, **zeros, **nothing)


@pytest.fixture
def blocks(oracle, monkeypatch):
    """Return the official whole-block cases."""
    monkeypatch.setitem(refattn.transformer.block._ACTIVATIONS, "relu", lambda x: np.maximum(x, 0.0))
    cases = [dict(np.load(path)) for path in oracle("03-turboboa")]
    return [case for case in cases if str(case["kind"]) == "block"]


def official_moments(case):
    config, block = official_block(case)
    x = case["X_quant"]
    full = case["X_fp"] if bool(case["consider_dX"]) else x
    moments, after = block_moments(x, full, block, config, 0)
    if not bool(case["block_v"]):
        moments["W_V"] = moments["W_Q"]._replace(output=None)
    return config, block, moments, after


def test_moments_are_the_official_ones(blocks):
    """H_in, H_out and R of every matrix of the official blocks, with RoPE and grouped heads, and their outputs."""
    assert blocks
    for case in blocks:
        config, block, moments, after = official_moments(case)
        for name, theirs in OFFICIAL.items():
            moment = moments[name]
            np.testing.assert_allclose(moment.input, case[f"H_in_{theirs}"], rtol=1e-12, atol=1e-13)
            if f"H_out_{theirs}" in case:
                np.testing.assert_allclose(moment.output, case[f"H_out_{theirs}"], rtol=1e-12, atol=1e-13)
            if f"dXXT_{theirs}" in case:
                np.testing.assert_allclose(moment.residual, case[f"dXXT_{theirs}"], rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(run_block(case["X_quant"], block, config, 0), case["Y_before"], atol=1e-13)
        if "fp_out" in case:
            np.testing.assert_allclose(after, case["fp_out"], atol=1e-13)


def test_a_quantised_official_block_is_the_official_one(blocks):
    """Every matrix of the official blocks, quantised from our moments, is the official one, and so is the output."""
    assert blocks
    for case in blocks:
        config, block, moments, _ = official_moments(case)
        alpha = float(case["alpha"]) if bool(case["consider_dX"]) else 0.0
        recipe = Recipe(
            int(case["bits"]),
            block_rows=int(case["n_quant_rows"]),
            alpha=alpha,
            refine_sweeps=int(case["refine_qparam"]),
        )
        weights = {}
        for name, theirs in OFFICIAL.items():
            before = as_rows(name, getattr(block, name))
            result = quantised_matrix(before, moments[name], recipe, float(case["replace"]))
            after = result.weight.reshape(before.shape)
            np.testing.assert_allclose(after, case[f"Q_{theirs}"], atol=1e-11)
            weights[name] = from_rows(name, after, getattr(block, name))
        after = run_block(case["X_quant"], block._replace(**weights), config, 0)
        np.testing.assert_allclose(after, case["Y_after"], atol=1e-11)


def scores_moved(vectors, others, angles):
    """Return Σ (Rot_t v_i · u_j)² over all i, j, the mean over positions t: (n, e), (m, e), (T, r/2)."""
    rotated = vectors if angles is None else rope(vectors[:, None], angles)  # (n, T, e)
    dots = np.einsum("nte,me->ntm", np.reshape(rotated, (len(vectors), -1, vectors.shape[-1])), others)
    return np.square(dots).sum(axis=(0, 2)).mean()


@pytest.mark.parametrize("name", ["gpt2", "neox", "neox_sequential", "llama", "llama3", "mistral", "qwen2"])
def test_output_moments_weigh_errors_as_scores_do(name):
    """Of one sequence, the loss of an error of W_Q or W_K is the sum of squared changes of scores, over all positions.

    Whole and partial rotation, grouped heads, biases: the queries of all heads of a group count evenly for a key.
    """
    drawn = model(name)
    config, block = drawn.config, drawn.weights.blocks[0]
    t, heads, groups = 7, drawn.config.n_heads, drawn.config.n_kv_heads
    x = np.random.default_rng(0).standard_normal((1, t, config.d_model))
    moments, _ = block_moments(x, x, block, config, 0)
    angles = None
    if config.rope is not None:
        freqs, _ = rope_frequencies(config.rope.dim, theta=config.rope.theta, scaling=dict(config.rope.scaling) or None)
        angles = rope_angles(np.arange(t), freqs)
    h = attention_input(x[0], block, config)
    met = {"Q": keys_or_queries(h, block, "K", angles), "K": keys_or_queries(h, block, "Q", angles)}
    for which, others in met.items():
        change = 0.1 * np.random.default_rng(1).standard_normal(getattr(block, f"W_{which}").shape)
        moment = moments[f"W_{which}"]
        for head, moved in enumerate(change):
            share = heads // groups
            partners = others[[head // share]] if which == "Q" else others[head * share : (head + 1) * share]
            expected = np.mean([scores_moved(h @ moved, partner, angles) for partner in partners])
            loss = t**2 / 4 * np.sum(moment.output[head] * (moved.T @ moment.input @ moved))
            np.testing.assert_allclose(loss, expected, rtol=1e-10)


def attention_input(x, block, config):
    centred = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
    normed = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + config.norm_eps) * block.ln1_w
    return normed if block.ln1_b is None else normed + block.ln1_b


def keys_or_queries(h, block, which, angles):
    projected = h @ getattr(block, f"W_{which}") + getattr(block, f"b_{which}")[:, None]  # (heads, T, e)
    return projected if angles is None else rope(projected, angles)


def test_rotation_is_pulled_back_position_by_position():
    """The mean over explicit rotation matrices, of which a part of the channels may pass unchanged."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2, 6, 6))
    moment = factor @ factor.swapaxes(1, 2)
    angles = rng.uniform(-3, 3, (5, 2))
    expected = np.zeros_like(moment)
    for angle in angles:
        turn = np.eye(6)
        for channel, a in enumerate(angle):
            pair = np.ix_([channel, channel + 2], [channel, channel + 2])
            turn[pair] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
        expected += turn.T @ moment @ turn / len(angles)

    np.testing.assert_allclose(pull_back_rotation(moment, angles), expected, atol=1e-12)
    assert pull_back_rotation(moment, None) is moment


def test_norm_is_pulled_back_token_by_token():
    """The mean over the derivatives of the norm, which finite differences show."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((2, 4, 4))
    moment, raw = factor @ factor.swapaxes(1, 2), rng.standard_normal((5, 2, 4))
    weight, eps, step = rng.uniform(0.5, 2, 4), 0.1, 1e-5
    expected = np.zeros_like(moment)
    for token in raw:
        for head, q in enumerate(token):
            ends = [rms_norm(q + sign * step * np.eye(4), weight, eps=eps) for sign in (1, -1)]
            jacobian = ((ends[0] - ends[1]) / (2 * step)).T
            expected[head] += jacobian.T @ moment[head] @ jacobian / len(raw)

    np.testing.assert_allclose(pull_back_norm(moment, raw, weight, eps), expected, rtol=1e-7, atol=1e-9)


def test_values_see_what_attention_mixes():
    """H_in of a value head is that of A_h X, averaged over the query heads that share it."""
    drawn = model("llama")
    ids = tokens((3, 5))
    names = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_pattern"]
    x, pattern = (forward(drawn, ids, names=names).activations[name] for name in names)
    block, config = drawn.weights.blocks[0], drawn.config
    moments, _ = block_moments(x, x, block, config, 0)
    expected = np.zeros((2, 16, 16))
    for sequence in range(3):
        h = attention_input(x[sequence], block, config)
        for head in range(4):
            mixed = pattern[sequence, head] @ h
            expected[head // 2] += mixed.T @ mixed * 2 / 15 / 2

    np.testing.assert_allclose(moments["W_V"].input, expected, rtol=1e-11)


def test_without_biases_the_moments_are_those_of_the_array_functions():
    """On a Mistral block without a window, `attention_hessians` says the same by another route."""
    drawn = model("mistral")
    config, block = drawn.config._replace(window=(None, None)), drawn.weights.blocks[0]
    x = np.random.default_rng(0).standard_normal((3, 7, 16))
    freqs, _ = rope_frequencies(config.rope.dim, theta=config.rope.theta)
    expected = attention_hessians(
        attention_input(x, block, config),
        *(as_rows(name, getattr(block, name)) for name in ("W_Q", "W_K", "W_V")),
        n_heads=4,
        n_kv_heads=2,
        rope_angles=rope_angles(np.arange(7), freqs),
    )
    moments, _ = block_moments(x, x, block, config, 0)

    np.testing.assert_allclose(moments["W_Q"].input, expected.input, rtol=1e-11)
    np.testing.assert_allclose(moments["W_V"].input, expected.value_input, rtol=1e-11)
    np.testing.assert_allclose(moments["W_Q"].output, expected.query_out, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(moments["W_K"].output, expected.key_out, rtol=1e-11, atol=1e-12)


def test_a_head_that_nobody_reads_gets_the_identity():
    """Where all keys of a head are zero, no score depends on its queries: its rows count alike."""
    drawn = model("gpt2")
    block = drawn.weights.blocks[0]
    block = block._replace(W_K=block.W_K * [[[0.0]], *[[[1.0]]] * 3], b_K=block.b_K * [[0.0], *[[1.0]] * 3])
    x = np.random.default_rng(0).standard_normal((2, 6, 16))
    output = block_moments(x, x, block, drawn.config, 0)[0]["W_Q"].output

    np.testing.assert_array_equal(output[0], np.eye(4))
    assert np.any(output[1] != np.eye(4))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "mistral", "qwen3"])
def test_groups_of_sequences_do_not_matter(name, monkeypatch):
    """Moments and outputs are the same whether all sequences go through a block at once or one by one."""
    drawn = model(name)
    x = np.random.default_rng(0).standard_normal((5, 6, 16))
    full = x + 0.1 * np.random.default_rng(1).standard_normal(x.shape)
    once, after = block_moments(x, full, drawn.weights.blocks[1], drawn.config, 1)
    monkeypatch.setattr("refattn.efficiency.quantise_hessians._CHUNK", 2 * 6 * 16 * drawn.config.n_heads)
    parts, after_parts = block_moments(x, full, drawn.weights.blocks[1], drawn.config, 1)

    np.testing.assert_allclose(after, after_parts, atol=1e-13)
    for matrix, moment in once.items():
        for one, other in zip(moment, parts[matrix], strict=True):
            np.testing.assert_equal(one is None, other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_a_matrix_comes_back_from_its_rows():
    """Rows are outputs, head after head: y = x W in either form."""
    block = model("llama").weights.blocks[0]
    x = np.random.default_rng(0).standard_normal(16)
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        weight = getattr(block, name)
        rows = as_rows(name, weight)
        np.testing.assert_array_equal(from_rows(name, rows, weight), weight)
    np.testing.assert_allclose(as_rows("W_K", block.W_K) @ x, (x @ block.W_K).reshape(-1), rtol=1e-12)
    z = np.random.default_rng(1).standard_normal((4, 4))
    np.testing.assert_allclose(
        as_rows("W_O", block.W_O) @ z.reshape(-1), np.einsum("he,hed->d", z, block.W_O), rtol=1e-12
    )


def score_error(block, config, moments, fresh):
    """Return the relative squared error of scores on fresh inputs after BoA at three bits of W_Q and W_K."""
    weights = {}
    for name in ("W_Q", "W_K"):
        rows = as_rows(name, getattr(block, name))
        weights[name] = from_rows(
            name, quantised_matrix(rows, moments[name], Recipe(3, method="boa"), 1.0).weight, getattr(block, name)
        )
    before, after = (scores(fresh, b, config) for b in (block, block._replace(**weights)))
    return np.sum((after - before) ** 2) / np.sum(before**2)


def scores(x, block, config):
    """Return q·k (B, H, T, T) of normalised and rotated heads."""
    h = attention_input(x, block, config)[:, None]
    freqs, _ = rope_frequencies(config.rope.dim, theta=config.rope.theta)
    q, k = (
        rope(
            rms_norm(h @ getattr(block, f"W_{n}"), getattr(block, f"{n.lower()}_norm"), eps=config.norm_eps),
            rope_angles(np.arange(x.shape[1]), freqs),
        )
        for n in "QK"
    )
    return q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(-1, -2)


def test_pulling_back_through_the_norm_pays():
    """With normalised queries and keys, BoA beats GPTQ on scores of unseen text, on the mean of four models."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"hidden_size": 64, "intermediate_size": 8, "vocab_size": 2, "max_position_embeddings": 64}
    config = parse_config({"model_type": "qwen3", **sizes})
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        block = random_transformer(config, rng).weights.blocks[0]
        spread = {name: np.exp(0.7 * rng.standard_normal(16)) for name in ("q_norm", "k_norm")}
        block = block._replace(b_Q=0 * block.b_Q, b_K=0 * block.b_K, **spread)
        basis = np.arange(1, 65)[:, None] ** -0.75 * np.linalg.qr(rng.standard_normal((64, 64)))[0]
        x, fresh = (rng.standard_normal((count, 32, 64)) @ basis for count in (32, 16))
        moments, _ = block_moments(x, x, block, config, 0)
        plain = {name: moment._replace(output=None) for name, moment in moments.items()}
        found.append([score_error(block, config, each, fresh) for each in (moments, plain)])
    boa, gptq = np.mean(found, axis=0)

    assert boa < 0.95 * gptq
