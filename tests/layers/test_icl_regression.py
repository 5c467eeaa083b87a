"""Attention for in-context regression: gradients, symmetries, limits, small cases, bad input."""

import re

import numpy as np
import pytest

from refattn.layers.icl_regression import (
    ICLAttentionBiases,
    ICLAttentionWeights,
    debiased_gd_estimator,
    gd_estimator,
    icl_attention,
    icl_attention_grad,
    icl_attention_vjp,
    init_weights,
    kq_matrix,
    linear_attention,
    one_step_matrices,
    ov_matrix,
    pattern_weights,
    preconditioner,
    ridge_estimator,
    softmax_estimator,
    weights_from_projections,
)
from refattn.layers.icl_regression_causal import double_softmax_attention, double_softmax_stack
from refattn.layers.icl_regression_training import adam_start, adam_step, sgd_step, train_on_stream

INITS = ["random", "small_id", "small_id_qk", "oppo_small_id"]


def draw(batch=3, length=5, dim=3, n_head=2, n_out=1, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, length, dim + 1))
    z_q = rng.standard_normal((batch, dim + 1)) * (np.arange(dim + 1) < dim)
    weights = init_weights(rng, n_embd=dim + 1, n_head=n_head, n_out=n_out)
    return z_q, z, rng.standard_normal((batch, n_out)), ICLAttentionWeights(*(2 * w for w in weights))


def prompt(batch=3, length=8, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) for shape in ((batch, length, dim), (batch, length), (batch, dim)))


def close(left, right, tolerance=1e-12):
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_head", "n_out", "length"), [(1, 1, 4), (2, 1, 1), (3, 2, 6), (2, 4, 5)])
def test_the_gradient_is_that_of_finite_differences(n_head, n_out, length):
    """Every entry of every weight agrees with central differences of the loss to 1e-7."""
    z_q, z, y, weights = draw(n_head=n_head, n_out=n_out, length=length)
    _, grads = icl_attention_grad(z_q, z, y, weights)
    for field in ICLAttentionWeights._fields:
        w, slopes = getattr(weights, field), np.empty(getattr(weights, field).shape)
        for at in np.ndindex(w.shape):
            move = np.zeros_like(w)
            move[at] = 1e-6
            ahead, behind = (
                icl_attention_grad(z_q, z, y, weights._replace(**{field: w + s * move}))[0] for s in (1, -1)
            )
            slopes[at] = (ahead - behind) / 2e-6
        np.testing.assert_allclose(getattr(grads, field), slopes, rtol=1e-7, atol=1e-8)


def test_loss_and_gradient_are_the_mean_square_and_its_pull_back():
    """The loss is the mean of the squared error, the gradient the vector-Jacobian product of its derivative."""
    z_q, z, y, weights = draw(n_out=2)
    error = icl_attention(z_q, z, weights).y_hat - y
    loss, grads = icl_attention_grad(z_q, z, y, weights)
    close(loss, np.mean(error**2))
    for left, right in zip(grads, icl_attention_vjp(z_q, z, weights, 2 * error / error.size), strict=True):
        close(left, right)


def test_merged_matrices_hold_all_that_matters():
    """Scores are z_iᵀ KQ z_q, predictions Σ OVᵀ z̄, and turning the heads' inner axes changes neither."""
    z_q, z, _, w = draw()
    y_hat, attn = icl_attention(z_q, z, w)
    scores = np.einsum("bli,hij,bj->bhl", z, kq_matrix(w), z_q)
    gaps = np.log(attn) - scores
    close(gaps, np.broadcast_to(gaps[..., :1], gaps.shape))
    close(np.einsum("hio,bhl,bli->bo", ov_matrix(w), attn, z), y_hat)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))
    turned = ICLAttentionWeights(turn @ w.w_k, turn @ w.w_q, turn @ w.w_v, w.w_o @ turn.T)
    close(icl_attention(z_q, z, turned).y_hat, y_hat)


def test_the_last_column_of_kq_never_matters():
    """A question that ends in 0 does not meet the last column of the query matrix."""
    z_q, z, _, w = draw()
    changed = w.w_q.copy()
    changed[..., -1] += 7.0
    close(icl_attention(z_q, z, w._replace(w_q=changed)).y_hat, icl_attention(z_q, z, w).y_hat)


def test_rotated_covariates_predict_the_same_under_scalar_kernels():
    """For any orthogonal R, turning covariates and question changes nothing when every kernel is one number."""
    x, y, x_q = prompt()
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    omega, mu = [0.4, -0.3], [2.0, -1.5]
    close(softmax_estimator(x @ turn, y, x_q @ turn, omega, mu), softmax_estimator(x, y, x_q, omega, mu))


@pytest.mark.parametrize("kernel", [(), (3,), (3, 3)])
@pytest.mark.parametrize("tasks", [None, 2])
def test_the_pattern_is_the_estimator(kernel, tasks):
    """A layer built by `pattern_weights` predicts what the estimator predicts, for every kernel and several tasks."""
    rng = np.random.default_rng(0)
    x, y, x_q = prompt()
    y = y if tasks is None else rng.standard_normal((*y.shape, tasks))
    omega, mu = rng.standard_normal((2, *kernel)), rng.standard_normal((2,) if tasks is None else (tasks, 2))
    z = np.concatenate([x, y[..., None] if tasks is None else y], axis=-1)
    z_q = np.pad(x_q, [(0, 0), (0, z.shape[-1] - 3)])
    y_hat = icl_attention(z_q, z, pattern_weights(omega, mu, dim=3)).y_hat
    close(y_hat[:, 0] if tasks is None else y_hat, softmax_estimator(x, y, x_q, omega, mu))


def test_opposite_heads_tend_to_debiased_descent():
    """At constant 2μω the pair's distance from debiased descent falls with ω²: by about 100 when ω falls by 10."""
    x, y, x_q = prompt(batch=50, length=40, dim=5)
    step = 0.879
    descent = debiased_gd_estimator(x, y, x_q, step)
    gaps = []
    for mu in (10.0, 100.0):
        omega = step / (2 * mu)
        gaps.append(np.linalg.norm(softmax_estimator(x, y, x_q, [omega, -omega], [mu, -mu]) - descent))
    assert 80 < gaps[0] / gaps[1] < 120


def test_a_zero_kernel_averages():
    """With ω = 0 a head returns μ times the mean response."""
    x, y, x_q = prompt()
    close(softmax_estimator(x, y, x_q, [0.0], [1.5]), 1.5 * y.mean(axis=1))


def test_plain_descent_is_not_debiased():
    """Constants added to the covariates do change plain descent."""
    x, y, x_q = prompt()
    assert np.abs(gd_estimator(x + 1.0, y, x_q, 0.9) - gd_estimator(x, y, x_q, 0.9)).min() > 1e-3


def test_linear_attention_with_two_entries_is_descent():
    """Comparing covariates and reading η times the response is one step of descent, to 1e-14."""
    x, y, x_q = prompt()
    z, z_q = np.concatenate([x, y[..., None]], axis=-1), np.pad(x_q, [(0, 0), (0, 1)])
    found = linear_attention(z_q, z, *one_step_matrices(3, 0.7))
    close(found[:, 0], gd_estimator(x, y, x_q, 0.7), 1e-14)
    close(linear_attention(z_q, z, *one_step_matrices(3, 0.7), length=4), 2 * found, 1e-14)


def test_the_preconditioner_is_best():
    """No small change of Γ lowers the expected error, which is quadratic in Γ (moments of Wishart matrices)."""
    rng = np.random.default_rng(0)
    cov, length, noise_var, d = np.array([[1.0, 0.5], [0.5, 2.0]]), 7, 0.3, 2
    for debiased in (True, False):
        m = length - 1 if debiased else length
        first = m / length * cov / d
        second = m / length**2 * (((m + 1) * cov @ cov + np.trace(cov) * cov) / d + noise_var * cov)

        def risk(g, first=first, second=second):
            return -2 * np.trace(cov @ g @ first) + np.trace(cov @ g @ second @ g.T)

        best = preconditioner(cov, length, noise_var, debiased=debiased)
        assert all(risk(best) < risk(best + 1e-3 * rng.standard_normal((2, 2))) for _ in range(20))


def test_ridge_regression_solves_its_normal_equations():
    """With and without a penalty, many examples or few, no gradient is left; few examples are met exactly."""
    for length, ridge in ((8, 0.5), (8, 0.0), (2, 0.5), (2, 0.0)):
        x, y, _ = prompt(length=length)
        beta = np.stack([ridge_estimator(x, y, np.tile(e, (3, 1)), ridge) for e in np.eye(3)], axis=-1)  # (B, d)
        residual = y - np.einsum("bli,bi->bl", x, beta)
        close(np.einsum("bli,bl->bi", x, residual), ridge * beta)
        if length < 3 and ridge == 0:
            close(residual, 0.0)


@pytest.mark.parametrize("method", INITS)
def test_initialisations_set_what_they_name(method):
    """Identities where they are named, bounded random entries elsewhere; the same seed gives the same weights."""
    sizes = {"n_embd": 3, "n_head": 4, "method": method}
    w = init_weights(np.random.default_rng(0), **sizes)
    for left, right in zip(w, init_weights(np.random.default_rng(0), **sizes), strict=True):
        np.testing.assert_array_equal(left, right)
    small = {"random": None, "small_id_qk": 1e-4}.get(method, 1e-6)
    if small is None:
        assert np.abs(w.w_k).max() <= 3**-0.5
    else:
        signs = np.array([1, 1, -1, -1])[:, None, None] if method == "oppo_small_id" else 1
        np.testing.assert_array_equal(w.w_k, np.tile(small * np.eye(3), (4, 1, 1)))
        np.testing.assert_array_equal(w.w_q, signs * w.w_k)
    assert (method == "small_id") == np.array_equal(w.w_v, w.w_k) == np.array_equal(w.w_o, w.w_k)
    if method != "small_id":
        assert 0.4 * 12**-0.5 < np.abs(w.w_o).max() <= 12**-0.5


def test_projections_are_cut_head_by_head():
    """Rows of keys, queries and values and columns of the output belong to heads in turn."""
    rng = np.random.default_rng(0)
    k, q, v = rng.standard_normal((3, 6, 3))
    o = rng.standard_normal((2, 6))
    w = weights_from_projections(k, q, v, o, n_head=2)
    z_q, z = rng.standard_normal((1, 3)), rng.standard_normal((1, 4, 3))
    stacked = np.concatenate([w.w_v[h] @ (icl_attention(z_q, z, w).attn[0, h] @ z[0]) for h in range(2)])
    close(icl_attention(z_q, z, w).y_hat[0], o @ stacked)


def test_biases_shift_as_they_should():
    """A key's bias moves all scores alike, those of values and output add constants, a query's is a longer question."""
    z_q, z, _, w = draw(n_out=2)
    zero = ICLAttentionBiases(*np.zeros((3, 2, 4)), np.zeros(2))
    plain = icl_attention(z_q, z, w)
    close(icl_attention(z_q, z, w, biases=zero._replace(b_k=np.ones((2, 4)))).attn, plain.attn)
    shifted = icl_attention(z_q, z, w, biases=zero._replace(b_v=np.ones((2, 4)), b_o=np.array([1.0, 2.0])))
    close(shifted.y_hat - plain.y_hat, np.tile(w.w_o.sum(axis=(0, 2)) + np.array([1.0, 2.0]), (3, 1)))
    asked = icl_attention(z_q + 1.0, z, w)
    close(icl_attention(z_q, z, w, biases=zero._replace(b_q=w.w_q.sum(-1))).y_hat, asked.y_hat)


def test_two_softmaxes_flatten():
    """After the second softmax no seen position outweighs another by more than e, however large the scores."""
    w = ICLAttentionWeights(*(100 * np.eye(3)[None],) * 2, *(np.eye(3)[None],) * 2)
    x = np.concatenate([np.eye(3), np.eye(3)])[None]
    rows = double_softmax_attention(x, w)[0]  # one-hot tokens: outputs are sums of weights
    assert rows[2].max() / rows[2].min() <= np.e + 1e-12
    later = x.copy()
    later[0, 5] = [0.0, 5.0, 0.0]
    assert np.abs(double_softmax_attention(later, w)[0, :5] - rows[:5]).max() > 1e-3


def test_tied_layers_are_the_same_weights_twice():
    """A stack is its layers in turn, and the answer is read off the last token."""
    z_q, z, _, _ = draw()
    w = init_weights(np.random.default_rng(2), n_embd=4, n_head=2)
    final = np.ones((1, 4))
    x = np.concatenate([z, z_q[:, None]], axis=1)
    for _ in range(2):
        x = double_softmax_attention(x, w)
    close(double_softmax_stack(z_q, z, [w, w], final), x[:, -1] @ final.T)


def test_adam_walks_at_its_learning_rate():
    """The first step of Adam has length lr in every coordinate; AdamW shrinks first; nothing is written to."""
    w, g = ICLAttentionWeights(*np.ones((4, 1, 2, 2))), ICLAttentionWeights(*np.full((4, 1, 2, 2), -0.3))
    start = adam_start(w)
    moved, state = adam_step(w, g, start, lr=0.1)
    close(moved.w_k, 1.1, 1e-7)
    assert (start.step, state.step) == (0, 1)
    assert not start.mean[0].any()
    close(adam_step(w, g, start, lr=0.1, weight_decay=0.5)[0].w_k, 0.95 + 0.1, 1e-7)
    close(sgd_step(w, g, lr=0.1).w_o, 1.03)
    np.testing.assert_array_equal(w.w_k, 1.0)


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw"])
def test_training_lowers_the_loss(method):
    """On one batch given again and again, every optimiser gets better, and the run reports its last matrices."""
    z_q, z, y, weights = draw(batch=8)
    stream = [np.stack([a] * 60) for a in (z_q, z, y)]
    run = train_on_stream(*stream, weights, method=method, lr=0.02)
    assert run.losses[-1] < 0.8 * run.losses[0]
    close(run.kq[-1], kq_matrix(run.weights))
    close(run.ov[-1], ov_matrix(run.weights))


def test_small_cases_work():
    """No prompt, one example, one covariate, one head, and tokens without covariates: shapes and finite numbers."""
    for batch, length, dim, n_head in ((0, 3, 2, 2), (2, 1, 3, 1), (2, 4, 1, 2), (2, 3, 0, 1)):
        z_q, z, _, w = draw(batch=batch, length=length, dim=dim, n_head=n_head)
        y_hat, attn = icl_attention(z_q, z, w)
        assert (y_hat.shape, attn.shape) == ((batch, 1), (batch, n_head, length))
        assert np.isfinite(y_hat).all()
        if length == 1:
            np.testing.assert_array_equal(attn, 1.0)
    x, y, x_q = prompt(batch=0)
    assert softmax_estimator(x, y, x_q, [0.1], [1.0]).shape == (0,)
    assert debiased_gd_estimator(x, y, x_q, 1.0).shape == gd_estimator(x, y, x_q, 1.0).shape == (0,)
    assert ridge_estimator(x, y, x_q, 0.1).shape == (0,)
    x, y, x_q = prompt(length=1)
    np.testing.assert_array_equal(debiased_gd_estimator(x, y, x_q, 1.0), 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """Outputs and gradients have the dtype of the examples and lie near the float64 results."""
    z_q, z, y, w = draw()
    narrow = ICLAttentionWeights(*(a.astype(dtype) for a in w))
    found = icl_attention(z_q.astype(dtype), z.astype(dtype), narrow)
    assert {found.y_hat.dtype, found.attn.dtype} == {np.dtype(dtype)}
    close(found.y_hat, icl_attention(z_q, z, w).y_hat, 50 * np.finfo(dtype).eps)
    loss, grads = icl_attention_grad(z_q.astype(dtype), z.astype(dtype), y.astype(dtype), narrow)
    assert {loss.dtype, *(g.dtype for g in grads)} == {np.dtype(dtype)}
    x, y, x_q = (a.astype(dtype) for a in prompt())
    assert {f(x, y, x_q, 0.5).dtype for f in (gd_estimator, debiased_gd_estimator, ridge_estimator)} == {
        np.dtype(dtype)
    }
    assert ridge_estimator(x, y, x_q, 0.0).dtype == preconditioner(np.eye(2, dtype=dtype), 4, 0.1).dtype == dtype


Z_Q, Z, Y, W = draw()
X, R, X_Q = prompt()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: icl_attention(Z_Q[:2], Z, W), "z_q has shape (2, 4), expected (3, 4)"),
        (lambda: icl_attention(Z_Q, Z[:, :0], W), "length must be >= 1"),
        (
            lambda: icl_attention(Z_Q[:, :3], Z[..., :3], W),
            "weights.w_k has shape (2, 4, 4), but tokens of z have width 3",
        ),
        (lambda: icl_attention(Z_Q, np.where(Z > 0, np.nan, Z), W), "must be finite"),
        (
            lambda: icl_attention(Z_Q, Z, W._replace(w_q=W.w_q[:1])),
            "weights.w_q has shape (1, 4, 4), expected (2, 4, 4)",
        ),
        (lambda: icl_attention(Z_Q, Z, W._replace(w_o=W.w_o[..., :3])), "weights.w_o has shape (2, 1, 3)"),
        (lambda: kq_matrix(ICLAttentionWeights(*np.zeros((4, 0, 3, 3)))), "with H, D >= 1"),
        (
            lambda: icl_attention(Z_Q, Z, W, biases=ICLAttentionBiases(*np.zeros((3, 2, 3)), np.zeros(1))),
            "biases.b_k has shape (2, 3), expected (2, 4)",
        ),
        (lambda: icl_attention_grad(Z_Q, Z, Y[:, 0], W), "y has shape (3,), expected (3, 1)"),
        (lambda: icl_attention_grad(Z_Q[:0], Z[:0], Y[:0], W), "the mean loss of no prompt is not defined"),
        (lambda: icl_attention_vjp(Z_Q, Z, W, Y[:2]), "dy_hat has shape (2, 1), expected (3, 1)"),
        (lambda: softmax_estimator(X, R[:, :2], X_Q, [1.0], [1.0]), "y has shape (3, 2), expected (3, 8)"),
        (lambda: softmax_estimator(X, R, X_Q, [1.0, 2.0], [1.0]), "omega describes 2 heads and mu 1"),
        (lambda: softmax_estimator(X, R, X_Q, np.ones((1, 2)), [1.0]), "omega has shape (1, 2), expected (H,), (H, 3)"),
        (lambda: softmax_estimator(X, R, X_Q, [np.inf], [1.0]), "must be finite"),
        (lambda: softmax_estimator(X[..., :0], R, X_Q[:, :0], [1.0], [1.0]), "dim must be >= 1"),
        (lambda: gd_estimator(X[:, :0], R[:, :0], X_Q, 1.0), "length must be >= 1"),
        (lambda: gd_estimator(X, R, X_Q, np.ones(3)), "step has shape (3,), expected a number or (3, 3)"),
        (lambda: debiased_gd_estimator(X, R, X_Q[:2], 1.0), "x_q has shape (2, 3), expected (3, 3)"),
        (lambda: ridge_estimator(X, R, X_Q, -0.1), "ridge=-0.1 must be finite and >= 0"),
        (lambda: preconditioner(np.eye(3), 0, 0.1), "length=0 must be >= 1"),
        (lambda: preconditioner(np.eye(3), 5, -1.0), "noise_var=-1.0 must be finite and >= 0"),
        (lambda: preconditioner(np.zeros((0, 0)), 5, 0.1), "dim must be >= 1"),
        (lambda: linear_attention(Z_Q, Z, np.eye(4)[None], np.ones((1, 4, 1)), length=0), "length=0 must be >= 1"),
        (lambda: linear_attention(Z_Q, Z, np.eye(4)[None], np.ones((2, 4, 1))), "ov has shape (2, 4, 1)"),
        (lambda: one_step_matrices(0, 1.0), "dim=0 must be >= 1"),
        (lambda: pattern_weights([1.0], [1.0, 2.0], dim=3), "omega describes 1 heads and mu 2"),
        (
            lambda: init_weights(np.random.default_rng(0), n_embd=3, n_head=3, method="oppo_small_id"),
            "n_head=3 must be even",
        ),
        (lambda: init_weights(np.random.default_rng(0), n_embd=3, n_head=0), "each must be >= 1"),
        (lambda: init_weights(np.random.default_rng(0), n_embd=3, n_head=1, method="xavier"), "method='xavier'"),
        (lambda: weights_from_projections(*np.zeros((3, 6, 3)), np.zeros((1, 5)), n_head=2), "o_proj has shape (1, 5)"),
        (lambda: double_softmax_attention(Z, W), "weights.w_o has shape (2, 1, 4), expected (2, 4, 4)"),
        (lambda: double_softmax_stack(Z_Q, Z, [], np.ones((1, 4))), "at least one layer"),
        (lambda: train_on_stream(Z_Q[None], Z[None], Y[None], W, lr=0.0), "lr=0.0 must be finite and > 0"),
        (lambda: train_on_stream(Z_Q[None], Z[None][:0], Y[None], W, lr=0.1), "hold 1, 0 and 1 batches"),
        (lambda: train_on_stream(Z_Q[None], Z[None], Y[None], W, lr=0.1, method="lion"), "method='lion'"),
    ],
)
def test_bad_input_is_refused(call, message):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
