"""Random-feature attention: features and layer, kernel and fit against loops, closed forms and each other."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import multivariate_normal, norm

from refattn.layers.random_feature_heads import (
    RandomHeads,
    feature_gram,
    fit_heads,
    fit_ridge,
    infinite_head_kernel,
    predict,
    random_head_attention,
    random_head_features,
    random_mlp_features,
    sample_random_heads,
    sample_random_neurons,
)
from refattn.layers.random_feature_heads_kernel import rectified_product_mean, shifted_rectified_product_mean

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def draw(n=5, n_keys=4, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((n, n_keys, d))


def on_sphere(n, n_keys, d, seed=0):
    x0, x = draw(n, n_keys, d, seed)
    return x0 / np.linalg.norm(x0, axis=-1, keepdims=True), x / np.linalg.norm(x, axis=-1, keepdims=True)


def heads_of(n_heads=6, d=3, seed=1, **options):
    return sample_random_heads(n_heads, d, np.random.default_rng(seed), **options)


def test_features_equal_three_loops():
    """Every feature is the mean over keys of the rectified score times the key, number by number."""
    x0, x = draw()
    heads = heads_of(bias="identity")
    features = random_head_features(x0, x, heads)
    for n, m in itertools.product(range(5), range(6)):
        total = np.zeros(4)
        for i in range(4):
            query, key = np.append(x0[n], 1.0), np.append(x[n, i], 1.0)
            total += max(0.0, query @ heads.w[m] @ key) * key
        np.testing.assert_allclose(features[n, m], total / 4, **CLOSE)


def test_the_layer_is_the_sum_of_values_times_features():
    """The output is Σ_m ⟨v_m, φ_m⟩, for batches of any shape."""
    x0, x = draw(n=6)
    heads = heads_of()
    v = np.random.default_rng(2).standard_normal((6, 4))
    expected = np.sum(random_head_features(x0, x, heads) * v, axis=(1, 2))
    np.testing.assert_allclose(random_head_attention(x0, x, heads, v), expected, **CLOSE)
    nested = random_head_attention(x0.reshape(2, 3, 3), x.reshape(2, 3, 4, 3), heads, v)
    np.testing.assert_allclose(nested.reshape(-1), expected, **CLOSE)
    assert random_head_attention(x0[0], x[0], heads, v).shape == ()


def test_the_layer_is_additive_over_tokens_and_the_perceptron_is_not():
    """f(x_0; x_1…x_N) is the mean of f(x_0; {x_i}); a perceptron on all tokens breaks this and the order of keys."""
    x0, x = draw()
    heads, v = heads_of(), np.random.default_rng(2).standard_normal((6, 4))
    singles = np.mean([random_head_attention(x0, x[:, i : i + 1], heads, v) for i in range(4)], axis=0)
    np.testing.assert_allclose(random_head_attention(x0, x, heads, v), singles, **CLOSE)
    w = sample_random_neurons(7, 3, 4, np.random.default_rng(3))
    moved = random_mlp_features(x0, x[:, ::-1], w) - random_mlp_features(x0, x, w)
    assert np.abs(moved).max() > 0.1


def test_the_perceptron_reads_query_keys_and_constant_in_a_line():
    """Neuron by neuron: the weights meet [x_0; x_1; …; x_N; 1]."""
    x0, x = draw()
    w = sample_random_neurons(7, 3, 4, np.random.default_rng(3))
    features = random_mlp_features(x0, x, w)
    for n, m in itertools.product(range(5), range(7)):
        z = sum(np.dot(a, b) for a, b in zip(np.split(w[m, :-1], 5), [x0[n], *x[n]], strict=True)) + w[m, -1]
        np.testing.assert_allclose(features[n, m], max(0.0, z), **CLOSE)


@pytest.mark.parametrize("bias", ["none", "identity"])
def test_turning_tokens_and_heads_turns_the_features(bias):
    """(x, W) → (Rx, R̃WR̃ᵀ) leaves the scores as they are and turns the features by R̃."""
    x0, x = draw()
    R = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    wide = np.block([[R, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    heads = heads_of(bias=bias)
    turned = random_head_features(x0 @ R.T, x @ R.T, RandomHeads(wide @ heads.w @ wide.T))
    np.testing.assert_allclose(turned, random_head_features(x0, x, heads) @ wide.T, **CLOSE)


def test_scores_of_unit_tokens_are_standard_normal_around_the_inner_product():
    """With standard deviation ½ the score of two unit tokens is N(0, 1), and N(⟨x_0, x_i⟩, 1) with the identity."""
    x0, x = on_sphere(1, 1, 5)
    query, key = np.append(x0[0], 1.0), np.append(x[0, 0], 1.0)
    for bias, mean in (("none", 0.0), ("identity", x0[0] @ x[0, 0])):
        scores = np.einsum("c,mce,e->m", query, heads_of(40000, 5, bias=bias).w, key)
        assert abs(scores.mean() - mean) < 4 / 200
        assert abs(scores.var() - 1) < 4 * np.sqrt(2) / 200


@pytest.mark.parametrize("bias", ["none", "identity"])
def test_many_heads_approach_the_kernel(bias):
    """The Gram matrix of M heads lies within four standard errors of the kernel, entry by entry."""
    x0, x = on_sphere(6, 3, 3)
    limit = infinite_head_kernel(x0, x, x0, x, bias=bias)
    parts = []
    for seed in range(40):
        phi = random_head_features(x0, x, heads_of(400, seed=seed, bias=bias))
        parts.append(feature_gram(phi, phi))
    stderr = np.std(parts, axis=0, ddof=1) / np.sqrt(40)
    assert np.all(np.abs(np.mean(parts, axis=0) - limit) < 4.5 * stderr)


@pytest.mark.parametrize("bias", ["none", "identity", np.full((4, 4), 0.3)])
def test_the_kernel_is_symmetric_and_positive(bias):
    """K = Kᵀ, and no eigenvalue is below −1e-10 times the trace, duplicates among the inputs included."""
    x0, x = draw(n=8)
    x0[3], x[3] = x0[2], x[2]
    K = infinite_head_kernel(x0, x, x0, x, bias=bias)
    np.testing.assert_allclose(K, K.T, rtol=1e-12, atol=1e-12)
    assert np.linalg.eigvalsh(K).min() > -1e-10 * np.trace(K)


def test_the_kernel_is_a_double_mean_over_keys():
    """K is the mean over pairs of keys of the kernels of single keys, for different numbers of keys."""
    x0, x = draw()
    y0, y = draw(n=3, n_keys=2, seed=9)
    pairs = [
        infinite_head_kernel(x0, x[:, i : i + 1], y0, y[:, j : j + 1], bias="identity")
        for i, j in itertools.product(range(4), range(2))
    ]
    np.testing.assert_allclose(infinite_head_kernel(x0, x, y0, y, bias="identity"), np.mean(pairs, axis=0), **CLOSE)


def test_a_mean_of_zero_gives_the_arc_cosine_kernel():
    """The formula with a mean W_0 = 0 equals the formula without one."""
    x0, x = draw()
    zero = infinite_head_kernel(x0, x, x0, x, bias=np.zeros((4, 4)))
    np.testing.assert_allclose(zero, infinite_head_kernel(x0, x, x0, x), rtol=1e-12)
    named, given = (infinite_head_kernel(x0, x, x0, x, bias=b) for b in ("identity", np.diag([1.0, 1.0, 1.0, 0.0])))
    np.testing.assert_array_equal(named, given)


def closed_form(a, b, rho):
    """The textbook form of E σ(α + a) σ(β + b), with the bivariate normal distribution."""
    q = np.sqrt(1 - rho**2)
    density = np.exp(-(a**2 - 2 * rho * a * b + b**2) / (2 * q**2)) / (2 * np.pi * q)
    corner = multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([a, b])
    return (
        (a * b + rho) * corner
        + a * norm.pdf(b) * ndtr((a - rho * b) / q)
        + b * norm.pdf(a) * ndtr((b - rho * a) / q)
        + q**2 * density
    )


@pytest.mark.parametrize("seed", range(12))
def test_shifted_means_equal_the_closed_form(seed):
    """The integral over the correlation equals the closed form."""
    rng = np.random.default_rng(seed)
    a, b, rho = *rng.uniform(-2, 2, 2), rng.uniform(-0.99, 0.99)
    np.testing.assert_allclose(shifted_rectified_product_mean(a, b, rho), closed_form(a, b, rho), rtol=1e-9, atol=1e-12)


def test_shifted_means_are_right_where_the_closed_form_divides_by_zero():
    """At ρ = 1 the two numbers are one: E σ(α + a)² = (α² + 1) Φ(α) + α φ(α); at ρ = 0 they are independent."""
    a = np.linspace(-2, 2, 9)
    square = (a**2 + 1) * ndtr(a) + a * norm.pdf(a)
    np.testing.assert_allclose(shifted_rectified_product_mean(a, a, np.ones(9)), square, rtol=1e-13)
    ramp = a * ndtr(a) + norm.pdf(a)
    np.testing.assert_allclose(shifted_rectified_product_mean(a, a[::-1], np.zeros(9)), ramp * ramp[::-1], rtol=1e-14)


def test_arc_cosine_ends():
    """½ for equal scores, 1/(2π) for independent and 0 for opposite ones, also in float32."""
    for dtype, close in ((np.float64, 1e-16), (np.float32, 1e-7)):
        found = rectified_product_mean(np.array([1.0, 0.0, -1.0], dtype=dtype))
        np.testing.assert_allclose(found, [0.5, 1 / (2 * np.pi), 0.0], atol=close)
        assert found.dtype == dtype


def test_primal_and_dual_fits_agree():
    """The values of the heads predict what the weights of the inputs predict, V = Φᵀα/M."""
    x0, x = draw(n=20)
    y = np.random.default_rng(5).standard_normal(20) + 2
    heads = heads_of(4)
    phi = random_head_features(x0, x, heads)
    fit, values = fit_ridge(feature_gram(phi, phi), y, 0.01), fit_heads(phi, y, 0.01)
    new0, new = draw(n=6, seed=7)
    cross = feature_gram(random_head_features(new0, new, heads), phi)
    direct = values.intercept + random_head_attention(new0, new, heads, values.v)
    np.testing.assert_allclose(predict(fit, cross), direct, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(np.einsum("nmc,n->mc", phi, fit.alpha) / 4, values.v, rtol=1e-8, atol=1e-8)


def test_without_a_ridge_the_fit_interpolates_with_the_least_norm():
    """For n ≤ M (d + 1) the training error is below 1e-8, and both spaces give the same values."""
    x0, x = draw(n=12)
    y = np.random.default_rng(5).standard_normal(12)
    heads = heads_of(10)
    phi = random_head_features(x0, x, heads)
    K = feature_gram(phi, phi)
    fit, values = fit_ridge(K, y, 0.0), fit_heads(phi, y, 0.0)
    np.testing.assert_allclose(predict(fit, K), y, atol=1e-8)
    np.testing.assert_allclose(np.einsum("nmc,n->mc", phi, fit.alpha) / 10, values.v, rtol=1e-7, atol=1e-8)
    small = fit_ridge(K, y, 1e-10)
    np.testing.assert_allclose(fit.gcv, small.gcv, rtol=1e-5)


def test_without_a_ridge_duplicates_do_no_harm():
    """A Gram matrix of low rank: least squares of least norm, and cross-validation as in the limit of small ridges."""
    x0, x = draw(n=8)
    x0, x = np.concatenate([x0, x0]), np.concatenate([x, x])
    y = np.random.default_rng(5).standard_normal(16)
    phi = random_head_features(x0, x, heads_of(10))
    K = feature_gram(phi, phi)
    fit = fit_ridge(K, y, 0.0)
    expected = (y[:8] + y[8:]) / 2
    np.testing.assert_allclose(predict(fit, K)[:8], expected, atol=1e-7)
    np.testing.assert_allclose(fit.gcv, fit_ridge(K, y, 1e-8).gcv, rtol=1e-5)


def test_predictions_do_not_know_the_scale_of_the_heads():
    """Without a mean, heads of twice the spread give the same predictions: the ridge is relative."""
    x0, x = draw(n=15)
    y = np.random.default_rng(5).standard_normal(15)
    predictions = []
    for std in (0.5, 1.7):
        phi = random_head_features(x0, x, heads_of(6, std=std))
        K = feature_gram(phi, phi)
        predictions.append(predict(fit_ridge(K, y, 0.01), K))
    np.testing.assert_allclose(*predictions, rtol=1e-9, atol=1e-9)


def test_cross_validation_is_the_mean_residual_over_the_mean_leverage():
    """Cross-validation is mean (residual²) / (1 − mean leverage)², from the smoother matrix itself."""
    x0, x = draw(n=15)
    y = np.random.default_rng(5).standard_normal(15)
    phi = random_head_features(x0, x, heads_of(6))
    K = feature_gram(phi, phi)
    smoother = K @ np.linalg.inv(K + 0.05 * np.trace(K) / 15 * np.eye(15))
    residual = (y - y.mean()) - smoother @ (y - y.mean())
    expected = np.mean(residual**2) / (1 - np.trace(smoother) / 15) ** 2
    np.testing.assert_allclose(fit_ridge(K, y, 0.05).gcv, expected, rtol=1e-9)


@pytest.mark.parametrize(("n", "n_keys", "d", "n_heads"), [(0, 3, 2, 4), (2, 1, 1, 1), (1, 5, 1, 3), (3, 1, 4, 1)])
def test_small_sizes_work(n, n_keys, d, n_heads):
    """No input, one key, one coordinate, one head: shapes are as they should be."""
    x0, x = draw(n, n_keys, d)
    heads = heads_of(n_heads, d)
    assert random_head_features(x0, x, heads).shape == (n, n_heads, d + 1)
    assert random_head_attention(x0, x, heads, np.ones((n_heads, d + 1))).shape == (n,)
    w = sample_random_neurons(n_heads, d, n_keys, np.random.default_rng(0))
    assert random_mlp_features(x0, x, w).shape == (n, n_heads)
    for bias in ("none", "identity"):
        assert infinite_head_kernel(x0, x, x0, x, bias=bias).shape == (n, n)


def test_zero_tokens_have_a_kernel():
    """A token of zeros still carries its one: nothing is divided by zero, and the kernel is that of the constant."""
    zero = np.zeros((1, 2)), np.zeros((1, 3, 2))
    with np.errstate(all="raise"):
        K = infinite_head_kernel(*zero, *zero)
    np.testing.assert_allclose(K, [[0.25 * 0.5]])  # s² E σ(g)²


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype):
    """Every function returns the dtype of its first argument, near the float64 result."""
    x0, x = (z.astype(dtype) for z in on_sphere(4, 3, 3))
    heads = heads_of(5, dtype=dtype)
    phi = random_head_features(x0, x, heads)
    wide = random_head_features(x0.astype(float), x.astype(float), RandomHeads(heads.w.astype(float)))
    kernel = infinite_head_kernel(x0, x, x0, x, bias="identity")
    fit = fit_ridge(feature_gram(phi, phi), np.ones(4, dtype=dtype), 0.1)
    assert {z.dtype for z in (phi, kernel, *fit)} == {np.dtype(dtype)}
    np.testing.assert_allclose(phi, wide, atol=20 * np.finfo(dtype).eps)


def test_sampling_follows_its_generator():
    """The same generator gives the same heads; a mean given as a matrix is the mean."""
    np.testing.assert_array_equal(heads_of().w, heads_of().w)
    mean = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(heads_of(bias=mean).w - heads_of().w, np.broadcast_to(mean, (6, 4, 4)), atol=1e-14)


X0, X = draw()
HEADS = heads_of()
NAN = X0.copy()
NAN[0, 0] = np.nan


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: random_head_features(X0[:4], X, HEADS), "x0 has shape"),
        (lambda: random_head_features(X0, X[..., :2], HEADS), "expected .* and"),
        (lambda: random_head_features(X0, X[:, :0], HEADS), "at least one key is required"),
        (lambda: random_head_features(NAN, X, HEADS), "x0 holds a number that is not finite"),
        (lambda: random_head_features(X0, X, heads_of(d=4)), r"expected head matrices of shape \(M, 4, 4\) for dim 3"),
        (lambda: random_head_features(X0, X, RandomHeads(HEADS.w[:0])), "M >= 1"),
        (lambda: random_head_features(X0, X, RandomHeads(HEADS.w * np.inf)), "heads.w holds"),
        (lambda: random_head_attention(X0, X, HEADS, np.ones((6, 3))), "v has shape"),
        (lambda: random_mlp_features(X0, X, np.ones((5, 15))), r"expected \(M', 16\)"),
        (lambda: sample_random_heads(0, 3, np.random.default_rng(0)), "n_heads=0 must be >= 1"),
        (lambda: sample_random_heads(3, 0, np.random.default_rng(0)), "dim=0 must be >= 1"),
        (lambda: heads_of(std=0.0), "std=0.0 must be finite and > 0"),
        (lambda: heads_of(bias="identiy"), "bias='identiy' is not one of"),
        (lambda: heads_of(bias=np.eye(3)), "bias has shape"),
        (lambda: infinite_head_kernel(X0, X, X0, X, bias="diagonal"), "bias='diagonal' is not one of"),
        (lambda: infinite_head_kernel(X0, X, X0[:, :2], X[..., :2]), "equal dimensions d"),
        (lambda: infinite_head_kernel(X0, X, X0, X, std=-1.0), "std=-1.0 must be finite and > 0"),
        (lambda: infinite_head_kernel(X0, X, X0, X[:, :0]), "y has shape .* at least one key is required"),
        (lambda: rectified_product_mean(1.5), "rho must lie in"),
        (lambda: fit_ridge(np.eye(3), np.ones(3), -0.1), "ridge_rel=-0.1 must be finite and >= 0"),
        (lambda: fit_ridge(np.eye(3), np.ones(2)), "gram has shape"),
        (lambda: fit_ridge(np.eye(0), np.ones(0)), "y is empty"),
        (lambda: fit_ridge(np.eye(2) * np.nan, np.ones(2)), "gram holds"),
        (lambda: fit_heads(np.ones((3, 2)), np.ones(4)), "y has shape"),
        (lambda: feature_gram(np.ones((3, 2, 2)), np.ones((3, 2, 3))), "others has shape"),
        (lambda: predict(fit_ridge(np.eye(3), np.arange(3.0), 1.0), np.ones((2, 4))), "cross_gram has shape"),
    ],
)
def test_bad_input_is_refused(call, rule):
    """Each argument out of range is refused by name, value and rule."""
    with pytest.raises(ValueError, match=rule):
        call()
