"""The in-context regression layer, its gradient, its training and its estimators against the official code."""

import numpy as np

from refattn.layers.icl_regression import (
    ICLAttentionBiases,
    debiased_gd_estimator,
    gd_estimator,
    icl_attention,
    icl_attention_grad,
    init_weights,
    kq_matrix,
    ridge_estimator,
    softmax_estimator,
    weights_from_projections,
)
from refattn.layers.icl_regression_causal import double_softmax_stack
from refattn.layers.icl_regression_training import train_on_stream

TOLERANCE = 1e-12


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE)


def weights_of(case, pattern="{}_proj"):
    projections = [case[pattern.format(name)] for name in "kqvo"]
    return weights_from_projections(*projections, n_head=int(case["n_head"]))


def single_layer_forward_backward(case):
    z_q, z, y, weights = case["z_q"][:, 0], case["z"], case["target"][:, 0], weights_of(case)
    y_hat, attn = icl_attention(z_q, z, weights)
    close(y_hat, case["output"][:, 0])
    close(attn, case["attn_weights"][:, :, 0])
    mean_token = attn @ z  # (B, H, D)
    close(np.einsum("hij,bhj->bhi", weights.w_v, mean_token), case["head_output"][:, :, 0])
    close(kq_matrix(weights), case["KQ"])
    for ours, name in zip(weights, ("W_K", "W_Q", "W_V", "W_O"), strict=True):
        close(np.swapaxes(ours, 1, 2), case[name])
    loss, grads = icl_attention_grad(z_q, z, y, weights)
    close(loss, case["loss"])
    for ours, theirs in zip(grads, weights_of(case, "grad_{}"), strict=True):
        close(ours, theirs)
    initialised_as(case, weights)


def initialised_as(case, weights):
    """Compare what an initialisation sets; the official constants are rounded to float32."""
    method, n_out = str(case["init"]), int(case["n_out"])
    sizes = {"n_embd": int(case["n_embd"]), "n_head": int(case["n_head"]), "n_out": None if n_out < 0 else n_out}
    ours = init_weights(np.random.default_rng(0), **sizes, method=method)
    for left, right in zip(ours, weights, strict=True):
        assert left.shape == right.shape
    for name in {"random": (), "small_id": ("w_k", "w_q", "w_v")}.get(method, ("w_k", "w_q")):
        np.testing.assert_allclose(getattr(ours, name), getattr(weights, name), rtol=1e-7, atol=0)


def single_layer_bias(case):
    n_head = int(case["n_head"])
    biases = [case[f"{name}_bias"].reshape(n_head, -1) for name in "kqv"]
    found = icl_attention(
        case["z_q"][:, 0], case["z"], weights_of(case), biases=ICLAttentionBiases(*biases, case["o_bias"])
    )
    close(found.y_hat, case["output"][:, 0])
    close(found.attn, case["attn_weights"][:, :, 0])


def training_trajectory(case):
    stream = case["z_q"][:, :, 0], case["z"], case["y_q"][:, :, 0]
    method, lr = str(case["method"]).lower(), float(case["lr"])
    run = train_on_stream(*stream, weights_of(case, "init_{}_proj"), method=method, lr=lr)
    close(run.losses, case["losses"])
    close(run.kq, case["KQ_after"])
    close(run.ov, case["OV_after"])
    for ours, theirs in zip(run.weights, weights_of(case, "final_{}_proj"), strict=True):
        close(ours, theirs)


def causal_stack_double_softmax(case):
    layers = [weights_of(case, f"layer{i}_{{}}_proj") for i in range(int(case["n_layers"]))]
    y_hat = double_softmax_stack(case["z_q"][:, 0], case["z"], layers, case["final_linear"])
    close(y_hat, case["output"][:, 0])


def reduced_parameters(case):
    x, y, x_q = case["X"], case["y"], case["x_q"]
    omega, mu, noise_var = case["omega"], case["mu"], float(case["sigma2"])
    close(softmax_estimator(x, y, x_q, omega, mu), case["pred_softmax"])
    step = 2 * omega[0] * mu[0]
    close(gd_estimator(x, y, x_q, step), case["pred_gd"])
    close(debiased_gd_estimator(x, y, x_q, step), case["pred_dgd"])
    if noise_var > 0:
        close(ridge_estimator(x, y, x_q, noise_var * x.shape[-1]), case["pred_ridge"])


KINDS = {
    "single_layer_forward_backward": single_layer_forward_backward,
    "single_layer_bias": single_layer_bias,
    "training_trajectory": training_trajectory,
    "causal_stack_double_softmax": causal_stack_double_softmax,
    "reduced_parameters": reduced_parameters,
}


def test_official_code_agrees(oracle):
    """Every vector that concerns the mechanism is met to 1e-12: outputs, gradients, twenty steps of each optimiser."""
    wrong = {}
    for path in oracle("22-icl-linear-regression"):
        with np.load(path) as case:
            if str(case["kind"]) not in KINDS:
                continue  # the risk formulas belong to theory
            try:
                KINDS[str(case["kind"])](case)
            except AssertionError as error:
                wrong[path.stem] = str(error)
    assert not wrong
