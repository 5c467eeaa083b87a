"""Attention against the stored outputs of ONNX, PyTorch, FlashAttention, Hugging Face, JAX and others."""

import json
from itertools import pairwise

import numpy as np
import pytest

from refattn.primitives.alibi import alibi_slopes
from refattn.primitives.attention import attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_loop import attention_loop
from refattn.primitives.attention_online import attention_online, merge_attention
from refattn.primitives.attention_packed import attention_paged, attention_varlen
from refattn.primitives.attention_ring import ring_attention
from refattn.primitives.masks import global_window_mask

CONFIG = ("layout", "scale", "causal", "align", "window", "softcap", "empty", "prefix", "q_heads", "kv_heads")
ARRAYS = {
    "mask": "mask",
    "bias": "bias",
    "sinks": "sinks",
    "alibi": "alibi_slopes",
    "kv_len": "kv_lengths",
    "q_len": "q_lengths",
    "doc_q": "doc_q",
    "doc_k": "doc_k",
}
STREAMED = ("out", "lse")


def load(path):
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(str(arrays.pop("meta"))), arrays


def cases(paths, kind):
    """Return the cases of a kind that are compared by a number; budgets belong to the error model."""
    loaded = [(path.stem, *load(path)) for path in paths]
    return [
        (stem, meta["config"], float(meta["tol"]), arrays)
        for stem, meta, arrays in loaded
        if meta["kind"] == kind and not str(meta["tol"]).startswith("budget")
    ]


def call_of(config, arrays):
    """Return the arguments of the call that a case records."""
    options = {name: config[name] for name in CONFIG if name in config}
    options |= {option: arrays[name] for name, option in ARRAYS.items() if name in arrays}
    if config.get("short_mask") == "pad_false":
        missing = arrays["k"].shape[2] - arrays["mask"].shape[-1]
        options["mask"] = np.pad(arrays["mask"], ((0, 0), (0, missing)))
    return [arrays[name].astype(np.float64) for name in "qkv"], options


def stored_lse(config, arrays):
    lse = arrays.get("lse")
    return lse.swapaxes(1, 2) if lse is not None and config.get("lse_layout") == "bsh" else lse


def agree(actual, expected, tol, what):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tol, err_msg=what)


def test_forward(oracle):
    """Outputs, weights, log-sum-exps and named scores are those of the public implementations."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        tensors, options = call_of(config, arrays)
        expected = {name: arrays[name] for name in ("out", "weights", "logits", "softcapped") if name in arrays}
        if "lse" in arrays:
            expected["lse"] = stored_lse(config, arrays)
        for form in (attention, attention_loop):
            result = form(*tensors, returns=tuple(expected), **options)
            for name, value in expected.items():
                agree(getattr(result, name), value, tol, f"{stem} {form.__name__} {name}")


@pytest.mark.parametrize(
    "form",
    [
        lambda q, k, v, **options: attention_online(q, k, v, block_q=2, block_k=3, **options),
        lambda q, k, v, **options: ring_attention(q, k, v, world=3, placement="zigzag", **options),
    ],
)
def test_streamed_forms(oracle, form):
    """The forms that never hold all weights give the same outputs and log-sum-exps."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        tensors, options = call_of(config, arrays)
        result = form(*tensors, returns=STREAMED, **options)
        agree(result.out, arrays["out"], tol, stem)
        if "lse" in arrays:
            agree(result.lse, stored_lse(config, arrays), tol, stem)


def test_gradients(oracle):
    """Vector-Jacobian products are those of automatic differentiation."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        if "dout" not in arrays:
            continue
        tensors, options = call_of(config, arrays)
        gradients = attention_vjp(*tensors, arrays["dout"], dlse=arrays.get("dlse"), **options)
        for name in ("dq", "dk", "dv", "dbias", "dsinks"):
            if name in arrays:
                agree(getattr(gradients, name), arrays[name], tol, f"{stem} {name}")


def test_splits(oracle):
    """Parts of the keys, each attended on its own, are the stored parts and merge to the whole."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        if "splits" not in config:
            continue
        q, k, v = (arrays[name] for name in "qkv")
        bounds = config["splits"]
        parts = [attention(q, k[:, :, a:b], v[:, :, a:b], returns=STREAMED) for a, b in pairwise(bounds)]
        for n, part in enumerate(parts):
            for name in STREAMED:
                if f"{name}_{n}" in arrays:
                    agree(getattr(part, name), arrays[f"{name}_{n}"], tol, f"{stem} {name}_{n}")
        out, lse = merge_attention([part.out for part in parts], [part.lse for part in parts])
        agree(out, arrays["out"], tol, stem)
        agree(lse, arrays["lse"], tol, stem)


def test_pages(oracle):
    """Keys and values found through a block table give the stored outputs."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        if not config.get("paged"):
            continue
        assert arrays["k_pages"].shape[1] == config["page_size"]
        result = attention_paged(
            *(arrays[name] for name in ("q", "k_pages", "v_pages", "block_table", "kv_len")),
            causal=config["causal"],
            align=config["align"],
            returns=STREAMED,
        )
        agree(result.out, arrays["out"], tol, stem)
        agree(result.lse, arrays["lse"], tol, stem)


def test_packed(oracle):
    """Documents in one sequence are packed sequences."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        if "cu_seqlens" not in arrays:
            continue
        q, k, v = (arrays[name][0].swapaxes(0, 1) for name in "qkv")
        cu = arrays["cu_seqlens"]
        packed = attention_varlen(q, k, v, cu, cu, causal=config["causal"], align=config["align"])
        agree(packed.out.swapaxes(0, 1), arrays["out"][0], tol, stem)


def test_global_window(oracle):
    """The stored mask of global tokens and a window of 2 is that of the rule."""
    for stem, _, _, arrays in cases(oracle("00-attention"), "attention"):
        if "is_global" in arrays:
            flags = arrays["is_global"].astype(bool)
            np.testing.assert_array_equal(global_window_mask(flags, flags, 2), arrays["mask"], err_msg=stem)


def test_cache(oracle):
    """Keys of a cache and new keys, joined, are the keys of the call."""
    for _, _, _, arrays in cases(oracle("00-attention"), "attention"):
        if "past_key" in arrays:
            for whole, past, new in (("k", "past_key", "k_new"), ("v", "past_value", "v_new")):
                np.testing.assert_array_equal(arrays[whole], np.concatenate([arrays[past], arrays[new]], axis=2))


def projections(arrays):
    """Return the weight matrices and biases of q, k and v of torch.nn.MultiheadAttention."""
    packed = arrays.get("in_proj_weight")
    weights = np.split(packed, 3) if packed is not None else [arrays[f"{name}_proj_weight"] for name in "qkv"]
    return zip(weights, np.split(arrays["in_proj_bias"], 3), strict=True)


def multi_head(config, arrays):
    """Compute torch.nn.MultiheadAttention out of `attention`: True = ignore, appended keys, output projection."""
    inputs = (arrays["query"], arrays["key"], arrays["value"])
    q, k, v = (x @ w.T + b for x, (w, b) in zip(inputs, projections(arrays), strict=True))  # (B, S, E)
    batch, sk, width = k.shape
    ignored = np.zeros((batch, 1, q.shape[1], sk), bool)
    if "key_padding_mask" in arrays:
        ignored |= arrays["key_padding_mask"][:, None, None]
    if "attn_mask" in arrays:
        ignored |= arrays["attn_mask"]
    extra = []
    if config.get("add_bias_kv"):
        extra.append((arrays["bias_k"].reshape(-1), arrays["bias_v"].reshape(-1)))
    if config.get("add_zero_attn"):
        extra.append((np.zeros(width), np.zeros(width)))
    for key, value in extra:
        k, v = (np.concatenate([x, np.broadcast_to(y, (batch, 1, width))], axis=1) for x, y in ((k, key), (v, value)))
        ignored = np.concatenate([ignored, np.zeros((*ignored.shape[:3], 1), bool)], axis=-1)
    heads = config["heads"]
    result = attention(
        q,
        k,
        v,
        mask=~ignored,
        layout="bs(hd)",
        q_heads=heads,
        kv_heads=heads,
        empty=config.get("empty", "zero"),
        returns=("out", "weights"),
    )
    return result.out @ arrays["out_proj_weight"].T + arrays["out_proj_bias"], result.weights


def test_multi_head_attention(oracle):
    """torch.nn.MultiheadAttention is projections around attention with the mask's sense inverted."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "mha"):
        out, weights = multi_head(config, arrays)
        agree(out, arrays["out"], tol, stem)
        agree(weights, arrays["weights"], tol, stem)


def test_alibi_tables(oracle):
    """Bloom's and MPT's biases are the slopes times the key's position, up to a constant of the row."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "alibi"):
        position = np.arange(config["seq"])
        for n in config["n_heads"]:
            slopes = alibi_slopes(n)[:, None]
            agree(slopes * position, arrays[f"bloom_{n}"], tol, f"{stem} bloom_{n}")
            agree(slopes * (position - config["seq"] + 1), arrays[f"mpt_{n}"], tol, f"{stem} mpt_{n}")


def test_alibi_rule_of_a_case(oracle):
    """Where a case names the rule of its slopes, they are those of the rule."""
    for stem, config, tol, arrays in cases(oracle("00-attention"), "attention"):
        if "alibi_rule" in config:
            slopes = arrays["alibi"]
            agree(alibi_slopes(len(slopes), rule=config["alibi_rule"]), slopes, tol, stem)
