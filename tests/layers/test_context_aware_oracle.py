"""Context-aware attention, transport and calibration against the code of their authors."""

import numpy as np
from scipy.special import logsumexp

from refattn.layers.context_aware import (
    ContextAttentionWeights,
    EncoderLayerWeights,
    NormWeights,
    context_aware_attention,
    context_aware_encoder,
    label_smoothing_cross_entropy,
    ot_cross_attention,
    ot_kernel_attention,
)
from refattn.layers.context_aware_calibration import (
    adaptive_calibration_error,
    adaptive_calibration_errors,
    average_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from refattn.primitives.optimal_transport import emd_plan, pairwise_sq_cost, sinkhorn_plan, transport_map


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def attention_weights(case, at):
    D = case["x"].shape[-1]
    qkv, bias = case[f"{at}/qkv_transform/matrix"], case[f"{at}/qkv_transform/bias"]
    projections = [part for i in range(3) for part in (qkv[:, i * D : (i + 1) * D], bias[i * D : (i + 1) * D])]
    reading = [None] * 8
    if f"{at}/global_context_transform/matrix" in case:
        both = case[f"{at}/global_context_transform/matrix"]
        reading = [both[:, :D], both[:, D:]]
        for gate in ("gate_q", "gate_k"):
            column = case[f"{at}/{gate}/matrix"][:, 0]
            reading += [column[:D], column[D:], case[f"{at}/{gate}/bias"][0]]
    out = [case[f"{at}/output_transform/{name}"] for name in ("matrix", "bias")]
    return ContextAttentionWeights(*projections, *reading, *out)


def gated_context_attention(case):
    x, mask = case["x"], case["mask"] == 1
    context = case.get("context")
    weights = attention_weights(case, "w:att")
    found = context_aware_attention(x, weights, context, n_heads=int(case["n_heads"]), mask=mask, return_aux=True)
    close(found.out, case["out"])
    close(found.weights, case["weights"])
    if context is not None:
        close(found.lambda_q, case["lambda_q"])
        close(found.lambda_k, case["lambda_k"])


def norms(case, at, count):
    """Return the layer norms of a scope in the order in which they were made."""
    names = [f"{at}/layer_norm", f"{at}/layer_norm_1"][:count]
    return [NormWeights(case[f"{name}/scale"], case[f"{name}/offset"]) for name in names]


def deep_global_encoder(case):
    pre, post = (str(case[f"layer_{name}"]) == "layer_norm" for name in ("preprocess", "postprocess"))

    def layer(i):
        at = f"w:encoder/layer_{i}"
        attention = attention_weights(case, f"{at}/self_attention/multihead_attention")
        ffn = f"{at}/feed_forward/ffn_layer"
        linear = [case[f"{ffn}/{n}_layer/linear/{part}"] for n in ("input", "output") for part in ("matrix", "bias")]
        placed = []
        for scope in ("self_attention", "feed_forward"):
            found = norms(case, f"{at}/{scope}", pre + post)
            placed += [found[0] if pre else None, found[-1] if post else None]
        return EncoderLayerWeights(attention, *linear, *placed)

    layers = [layer(i) for i in range(int(case["n_layers"]))]
    final = norms(case, "w:encoder", 1)[0] if pre else None
    options = {"n_heads": int(case["n_heads"]), "mask": case["mask"] == 1}
    close(context_aware_encoder(case["x"], layers, final, **options), case["out"])


def ot(case):
    source, target, a, b = (case[name] for name in ("source", "target", "a", "b"))
    norm = str(case["cost_norm"])
    norm, reg = None if norm == "None" else norm, float(case["reg"])
    cost = pairwise_sq_cost(source, target, normalize=norm)
    close(cost, case["cost"])
    exact, soft = emd_plan(a, b, cost), sinkhorn_plan(a, b, cost, reg, tol=1e-14)
    close(np.sum(exact * cost), case["emd_value"])
    close(exact, case["emd_plan"])
    close(soft, case["sinkhorn_plan"])
    close(np.sum(soft * cost), case["sinkhorn_value"])
    close(transport_map(exact, target), case["emd_barycentric"])
    close(transport_map(soft, target), case["sinkhorn_barycentric"])
    if "da_emd_transport" in case:
        close(ot_cross_attention(source, target, normalize=norm, method="emd"), case["da_emd_transport"])
        mapped = ot_cross_attention(source, target, reg=reg, normalize=norm, tol=1e-14)
        close(mapped, case["da_sinkhorn_transport"], 1e-8)


def otk(case):
    mask = case["mask"] if case["has_mask"] else None
    out, weights = ot_kernel_attention(
        case["x"], case["reference"], eps=float(case["eps"]), n_iter=int(case["n_iter"]), mask=mask, return_weights=True
    )
    close(out, case["out"])
    close(np.swapaxes(weights, 1, 2), case["attention"])


def calibration(case):
    probs, labels, bins = case["probs"], case["labels"], int(case["bins"])
    close(expected_calibration_error(probs, labels, bins=bins), case["ece"])
    close(maximum_calibration_error(probs, labels, bins=bins), case["mce"])
    close(expected_calibration_error(probs, labels, bins=bins), case["ece_torchmetrics"], 1e-6)
    close(maximum_calibration_error(probs, labels, bins=bins), case["mce_torchmetrics"], 1e-6)
    close(average_calibration_error(probs, labels, bins=bins), case["ace_equal_width"])
    close(adaptive_calibration_error(probs, labels, bins=bins, of="top"), case["ace_adaptive_top"])
    close(adaptive_calibration_errors(probs, labels, bins=bins), case["ace_adaptive_per_class"])
    close(adaptive_calibration_error(probs, labels, bins=bins), case["ace_adaptive"])
    logits = case["logits"]
    close(np.exp(logits - logsumexp(logits, axis=-1, keepdims=True)), probs, 1e-9)
    for name in case:
        if name.startswith("ls_loss_"):
            alpha = float(name.removeprefix("ls_loss_"))
            close(label_smoothing_cross_entropy(logits, labels, alpha=alpha), case[name])


KINDS = {
    "gated_context_attention": gated_context_attention,
    "deep_global_encoder": deep_global_encoder,
    "ot": ot,
    "otk": otk,
    "calibration": calibration,
}


def test_official_modules_agree(oracle):
    """Every vector is met to 1e-12, gates, plans and diagrams included; POT's own stopping rule to 1e-8."""
    wrong = {}
    for path in oracle("09-context-aware-attention"):
        with np.load(path) as file:
            case = dict(file)
        try:
            KINDS[str(case["kind"])](case)
        except AssertionError as error:
            wrong[path.stem] = str(error)
    assert not wrong
