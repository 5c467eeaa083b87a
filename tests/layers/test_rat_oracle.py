"""RAT against vectors from the authors' own modules."""

import numpy as np

from refattn.layers.rat import RATWeights, rat_layer, rat_projections
from refattn.layers.rat_attention import (
    chunk_attention,
    chunk_attention_parts,
    chunk_rope,
    merge_heads,
    merge_lse,
    split_heads,
)
from refattn.layers.rat_backbone import BackboneWeights, BlockWeights, FFNWeights, rat_backbone
from refattn.layers.rat_baselines import AttentionWeights, RNNWeights, causal_attention_layer, rnn_layer
from refattn.layers.rat_decode import rat_prefill, rat_step

TOLERANCE = 1e-12


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE)


def options(case):
    names = ("chunk_size", "num_heads", "num_groups")
    floats = {name: float(case[name]) for name in ("rope_base", "norm_eps")}
    return {name: int(case[name]) for name in names} | floats


def rat_weights(case):
    return RATWeights(case["W_in"], case["gate_bias"], case["W_out"], case["norm_weight"])


def rat_forward(case):
    x, weights, settings = case["X"], rat_weights(case), options(case)
    y, aux = rat_layer(x, weights, **settings, return_aux=True)
    close(y, case["Y"])
    close(aux.gate, case["gate"])
    close(aux.v_state, case["v_state"])
    close(aux.k_state, case["k_state"])

    length, chunk_size, heads = x.shape[-2], settings["chunk_size"], settings["num_heads"]
    projections = {"num_heads": heads, "num_groups": settings["num_groups"], "norm_eps": settings["norm_eps"]}
    q = rat_projections(x, weights, **projections).q
    q, k, v = (split_heads(a, heads) for a in (q, aux.k_state, aux.v_state))
    rope_base = settings["rope_base"]
    parts = chunk_attention_parts(q, k, v, chunk_size=chunk_size, rope_base=rope_base)
    close(parts.inter_out, case["inter_out"])
    close(parts.inter_lse, case["inter_lse"])
    close(parts.self_score, case["intra_score"])
    close(merge_lse(parts.inter_out, parts.inter_lse, v, parts.self_score), case["merged"])
    close(chunk_attention(q, k, v, chunk_size=chunk_size, rope_base=rope_base), case["merged"])

    turned = chunk_rope(k, np.arange(length) // chunk_size, base=rope_base)
    swapped = np.concatenate([-k[..., k.shape[-1] // 2 :], k[..., : k.shape[-1] // 2]], axis=-1)
    close(turned, k * case["cos"] + swapped * case["sin"])


def rat_decode(case):
    weights, settings = rat_weights(case), options(case)
    x, start = case["X"], int(case["decode_start"])
    heads, slots = settings["num_heads"], case["k_cache_after_prefill"].shape[2]
    prefilled = rat_prefill(
        case["X_prompt_padded"], weights, **settings, prompt_len=start, max_len=slots * settings["chunk_size"]
    )
    close(prefilled.out, case["Y_prefill"])
    cache = prefilled.cache
    close(cache.k_mem, case["k_cache_after_prefill"])
    close(cache.v_mem, case["v_cache_after_prefill"])
    close(cache.k_last, case["k_last_after_prefill"][:, 0])
    close(cache.v_last, case["v_last_after_prefill"][:, 0])
    steps = []
    for t in range(start, start + case["Y_steps"].shape[1]):
        step = rat_step(x[:, t : t + 1], weights, cache, **settings)
        cache = step.cache
        steps.append(step.out)
    close(np.concatenate(steps, axis=1), case["Y_steps"])
    close(np.concatenate(steps, axis=1), case["Y"][:, start : start + len(steps)])
    close(cache.k_mem, case["k_cache_final"])
    close(cache.v_mem, case["v_cache_final"])
    close(cache.k_last, case["k_last_final"][:, 0])
    close(cache.v_last, case["v_last_final"][:, 0])
    close(merge_heads(split_heads(x, heads)), x)


def rnn_forward(case):
    weights = RNNWeights(case["W_in"], case["gate_bias"], case["W_out"], case["norm_weight"])
    x, eps = case["X"], float(case["norm_eps"])
    y, state = rnn_layer(x, weights, norm_eps=eps, return_state=True)
    close(y, case["Y"])
    close(state, case["final_state"][:, 0])
    state, steps = None, []
    for t in range(case["Y_steps"].shape[1]):
        y_t, state = rnn_layer(x[:, t : t + 1], weights, norm_eps=eps, initial_state=state, return_state=True)
        steps.append(y_t)
    close(np.concatenate(steps, axis=1), case["Y_steps"])


def attention_forward(case):
    weights = AttentionWeights(case["W_in"], case["W_out"], case["norm_weight"])
    window = int(case["window_size"])
    y = causal_attention_layer(
        case["X"],
        weights,
        num_heads=int(case["num_heads"]),
        window=None if window < 0 else window,
        rope_base=float(case["rope_base"]),
        norm_eps=float(case["norm_eps"]),
    )
    close(y, case["Y"])


def hybrid_backbone(case):
    def block(i):
        def at(name):
            return case[f"param/layers/{i}/{name}"]

        ffn = FFNWeights(at("hidden_layer/ln/weight"), at("hidden_layer/fc1/weight").T, at("hidden_layer/fc2/weight").T)
        w_in, w_out = at("seq_layer/in_proj/weight").T, at("seq_layer/out_proj/weight").T
        norm = at("seq_layer/input_norm/weight")
        if i % int(case["interleave_step"]) == 0:
            return BlockWeights(RATWeights(w_in, at("seq_layer/gate_bias"), w_out, norm), ffn)
        return BlockWeights(AttentionWeights(w_in, w_out, norm), ffn)

    weights = BackboneWeights(tuple(map(block, range(int(case["num_layers"])))), case["param/ln/weight"])
    y, layers = rat_backbone(case["X"], weights, **options(case), window=int(case["window_size"]), return_layers=True)
    close(layers, case["layer_outputs"])
    close(y, case["Y"])


KINDS = {
    "rat_forward": rat_forward,
    "rat_decode": rat_decode,
    "rnn_forward": rnn_forward,
    "attention_forward": attention_forward,
    "local_attention_forward": attention_forward,
    "hybrid_backbone": hybrid_backbone,
}


def test_official_modules_agree(oracle):
    """Every vector of the official code is met to 1e-12, insides and caches included."""
    wrong = {}
    for path in oracle("24-rat"):
        with np.load(path) as case:
            try:
                KINDS[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
