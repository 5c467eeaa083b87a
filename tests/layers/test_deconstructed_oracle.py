"""Attention variants against vectors from independent code: Based, flash-linear-attention and torch."""

import numpy as np

from refattn.layers.deconstructed import AttentionWeights, apply_attention, attend, attention_map
from refattn.layers.deconstructed_recurrent import approximate_recurrent


def close(left, right, atol=1e-10):
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


def merged(heads):
    return np.swapaxes(heads, 1, 2).reshape(heads.shape[0], heads.shape[2], -1)


def check_approximate(case, weights, n_heads):
    options = {"variant": "approximate", "n_heads": n_heads}
    exact = apply_attention(case["x"], weights, eps=float(case["eps"]), **options)
    close(exact, case["output"])
    q, k, v = (case[name] for name in "qkv")
    heads, state = approximate_recurrent(q, k, v, eps=float(case["eps"]))
    close(merged(heads) @ weights.W_O, case["output_recurrent"])
    A = attention_map(case["x"], weights, **options)
    scores = case["unnormalised_scores"]
    close(A, scores / scores.sum(-1, keepdims=True))
    close(state.z[..., 0], q.shape[-2])
    with_fla = attention_map(case["x"], weights, eps=float(case["fla_eps"]), **options)
    close(with_fla @ v, case["fla_head_output"], 1e-9)
    close(approximate_recurrent(q, k, v, eps=float(case["fla_eps"]))[0], case["fla_head_output"], 1e-9)


def check_softmax(case, weights, n_heads):
    static = case["e"] if "e" in case.files else None
    variant = "standard" if static is None else "static_emb"
    close(apply_attention(case["x"], weights, variant=variant, n_heads=n_heads, static=static), case["output"])
    A = attention_map(case["x"] if static is None else static, weights, variant=variant, n_heads=n_heads)
    close(attend(A, case["x"], weights), case["output"])
    close(merged(case["head_output"]) @ weights.W_O, case["output"])


def test_independent_code_agrees(oracle):
    """Every vector is met to the tolerance that its README names, maps and both forms included."""
    wrong = {}
    for path in oracle("14-deconstructing-attention"):
        with np.load(path) as case:
            weights = AttentionWeights(*(case[name].T for name in ("w_q", "w_k", "w_v", "w_o")))
            check = check_approximate if str(case["variant"]) == "approximate" else check_softmax
            try:
                check(case, weights, int(case["cfg_n_heads"]))
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
