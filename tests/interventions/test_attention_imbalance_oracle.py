"""PAINT against vectors from the authors' own code."""

import numpy as np

from refattn.interventions.attention_imbalance import (
    TokenSelection,
    guided_logits,
    paint_logits,
    select_tokens,
    spatial_tokens,
    summary_tokens,
)
from refattn.primitives.softmax import softmax

TOLERANCE = 1e-12


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=0, atol=TOLERANCE)


def select(case):
    n = int(case["num_image_tokens"])
    chosen = select_tokens(case["vit_attention"][:, 0], local_ratio=float(case["local_ratio"]))
    assert chosen.local.tolist() == sorted(case["local_tokens"])
    assert chosen.summary.tolist() == sorted(case["summary_tokens"])
    assert len(chosen.summary) / n == float(case["outlier_ratio"])


def select_quirk(case):
    layers, options = case["vit_attention"][:, 0], {"local_ratio": float(case["local_ratio"])}
    official = select_tokens(layers, **options, official_rounding=True)
    assert official.local.tolist() == sorted(case["local_tokens"])
    assert official.summary.tolist() == sorted(case["summary_tokens"]) == []
    assert summary_tokens(layers[-2]).tolist() == [int(case["planted"])]


def spatial(case):
    tokens = spatial_tokens(case["attention"], float(case["spatial_ratio"]), spatial="official")
    assert tokens.tolist() == sorted(case["tokens"])


def turned(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin


def layer(case):
    x, heads = case["x"], int(case["num_heads"])
    q, k, v = (np.moveaxis((x @ case[w]).reshape(*x.shape[:2], heads, -1), 1, 2) for w in ("w_q", "w_k", "w_v"))
    q, k = turned(q, case["cos"], case["sin"]), turned(k, case["cos"], case["sin"])
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    logits = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)

    def attend(logits):
        weights = softmax(logits)
        return weights, np.moveaxis(weights @ v, 1, 2).reshape(x.shape) @ case["w_o"]

    plain = attend(logits)
    selection = TokenSelection(case["local_tokens"], case["summary_tokens"])
    boosted = paint_logits(logits, selection, int(case["image_start"]), float(case["alpha"]), float(case["beta"]))
    on = bool(case["use_attn"]) and not bool(case["use_cfg"])
    for (weights, output), suffix in ((plain, "_plain"), (attend(boosted) if on else plain, "")):
        close(weights, case[f"weights{suffix}"])
        close(output, case[f"output{suffix}"])


def cfg(case):
    close(guided_logits(case["logits"], case["uncond_logits"], float(case["gamma"])), case["guided"])


KINDS = {"select": select, "select_quirk": select_quirk, "spatial": spatial, "layer": layer, "cfg": cfg}


def test_official_code_agrees(oracle):
    """Sets of tokens are the same; attention layers and guided scores are met to 1e-12."""
    wrong = {}
    for path in oracle("18-attention-imbalance"):
        with np.load(path) as case:
            try:
                KINDS[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
