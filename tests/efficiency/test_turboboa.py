"""Properties of GPTQ, BoA and TurboBoA that no contract law states, edges, and bad input."""

from functools import partial

import numpy as np
import pytest

from refattn.efficiency.turboboa import (
    QuantGrid,
    attention_hessians,
    boa,
    dequantize,
    gptq,
    input_hessian,
    inverse_cholesky_upper,
    minmax_grid,
    prepare,
    quantize_codes,
    reconstruction_loss,
    refine_scales,
    residual_correlation,
    rtn,
    search_grid,
    turboboa,
)
from refattn.efficiency.turboboa_gptq import damped, propagation
from refattn.primitives.softmax import softmax

H, R, D, BITS = 2, 8, 12, 3
PLAIN = {"n_heads": H, "grid": "minmax"}
FIXED = {**PLAIN, "adaptive_grid": False, "refine_sweeps": 0}


def moment(rng, n, d):
    x = rng.standard_normal((n, d)) * np.linspace(0.3, 2, d)
    return x.T @ x / n


def problem(seed=0, heads=H, r=R, d=D):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((heads * r, d))
    h_out = np.stack([moment(rng, 3 * r, r) for _ in range(heads)])
    return w, moment(rng, 2 * d, d), h_out


def correlation(seed=1, d=D):
    return 0.05 * np.random.default_rng(seed).standard_normal((d, d))


def errors(w, result, h_in, h_out=None):
    """Return U_out⁻ᵀ (W − Q) U_in⁻¹: what each code alone has lost, in units of what it costs."""
    lost = w.reshape(result.weight.shape) - result.weight
    if h_out is not None:
        lost = np.linalg.solve(inverse_cholesky_upper(damped(h_out)).mT, lost)
    return lost @ np.linalg.inv(inverse_cholesky_upper(damped(h_in)))


def assert_each_code_is_nearest(result, moved):
    np.testing.assert_array_equal(quantize_codes(moved, result.grid, BITS), result.codes)


def test_gptq_rounds_each_column_after_all_updates_of_the_columns_before():
    """With Err = (W − Q) U⁻¹, each code is that of the point nearest to q + U_cc Err, the column as it was moved."""
    w, h_in, _ = problem()
    result = gptq(w, h_in, BITS, grid="minmax")
    own = np.diagonal(inverse_cholesky_upper(damped(h_in)))

    assert_each_code_is_nearest(result, result.weight + own * errors(w, result, h_in))


@pytest.mark.parametrize("block_rows", [1, 3, 4, 8, 16])
def test_turboboa_rounds_each_weight_after_all_updates(block_rows):
    """Whatever N is, each code is that of the point nearest to the weight as rows and columns before moved it."""
    w, h_in, h_out = problem()
    result = turboboa(w, h_in, h_out, BITS, block_rows=block_rows, **FIXED)
    lost = errors(w, result, h_in, h_out)
    upper_out = inverse_cholesky_upper(damped(h_out))
    own = np.diagonal(inverse_cholesky_upper(damped(h_in)))

    for begin in range(0, R, block_rows):
        rows = slice(begin, begin + block_rows)
        result_rows = result._replace(
            weight=result.weight[:, rows],
            codes=result.codes[:, rows],
            grid=QuantGrid(*(part[:, rows] for part in result.grid)),
        )
        moved = result_rows.weight + own * (upper_out[:, rows, rows].mT @ lost[:, rows])
        assert_each_code_is_nearest(result_rows, moved)


def test_the_loss_is_the_sum_of_what_every_code_lost():
    """Without R the loss is the squared norm of the errors, whatever N is."""
    w, h_in, h_out = problem()
    for block_rows in (1, 3, 16):
        result = turboboa(w, h_in, h_out, BITS, block_rows=block_rows, **FIXED)
        np.testing.assert_allclose(result.loss, np.sum(errors(w, result, h_in, h_out) ** 2), rtol=1e-10)


def test_blocks_of_one_row_are_boa():
    """With N = 1, a fixed grid and no refinement TurboBoA is BoA, in any order of rows and columns."""
    w, h_in, h_out = problem()
    for rows in (False, True):
        order = {"act_order_rows": rows, "act_order_cols": not rows}
        ours, boas = (
            f(w, h_in, h_out, BITS, **order) for f in (partial(turboboa, block_rows=1, **FIXED), partial(boa, **PLAIN))
        )
        np.testing.assert_array_equal(ours.codes, boas.codes)
        np.testing.assert_allclose(ours.weight, boas.weight, rtol=0, atol=1e-12)


def test_a_block_as_high_as_the_head_is_gptq():
    """With N ≥ r and a fixed grid rows do not make up for each other: GPTQ."""
    w, h_in, h_out = problem()
    alone = gptq(w, h_in, BITS, grid="minmax")
    for block_rows in (R, R + 5):
        together = turboboa(w, h_in, h_out, BITS, block_rows=block_rows, **FIXED)
        np.testing.assert_array_equal(together.weight.reshape(w.shape), alone.weight[0])


@pytest.mark.parametrize("block_rows", [1, 3, 16])
def test_outputs_that_do_not_go_together_are_quantised_alone(block_rows):
    """A diagonal H_out makes TurboBoA GPTQ for every N, and with a diagonal H_in besides rounding to nearest."""
    w, h_in, _ = problem()
    h_out = np.eye(R) * np.linspace(1, 3, R) * np.ones((H, 1, 1))
    quantized = partial(turboboa, h_out=h_out, bits=BITS, block_rows=block_rows, **FIXED)

    gptqs = gptq(w, h_in, BITS, grid="minmax")
    np.testing.assert_allclose(quantized(w, h_in).weight.reshape(w.shape), gptqs.weight[0], rtol=0, atol=1e-12)
    nearest = quantized(w, np.diag(np.linspace(1, 2, D)))
    np.testing.assert_allclose(nearest.weight.reshape(w.shape), rtn(w, BITS).weight[0], rtol=0, atol=1e-12)


def test_boa_is_gptq_on_all_weights_of_a_head_at_once():
    """BoA equals the column loop on the flattened head, whose Hessian is the Kronecker product of both."""
    w, h_in, h_out = problem(heads=1, r=3, d=4)
    upper = np.kron(*(inverse_cholesky_upper(damped(h)) for h in (h_out[0], h_in)))
    grid = minmax_grid(w[None], BITS)
    scale, zero = (np.repeat(part.reshape(-1), 4) for part in grid)
    left, rounded = w.reshape(-1).copy(), np.empty(w.size)
    for c in range(w.size):
        rounded[c] = scale[c] * (np.clip(np.rint(left[c] / scale[c]) + zero[c], 0, 2**BITS - 1) - zero[c])
        left[c:] -= (left[c] - rounded[c]) / upper[c, c] * upper[c, c:]

    result = boa(w, h_in, h_out, BITS, n_heads=1, grid=grid)
    np.testing.assert_allclose(result.weight.reshape(-1), rounded, rtol=0, atol=1e-10)


def test_joint_rows_move_the_rest_to_its_minimum():
    """The share of a block's error that later rows take is −H_rest,rest⁻¹ H_rest,block."""
    _, _, h_out = problem()
    upper, rows, rest = inverse_cholesky_upper(h_out[0]), slice(0, 3), slice(3, None)
    share = np.linalg.solve(upper[rows, rows], upper[rows, rest]).T

    np.testing.assert_allclose(share, -np.linalg.solve(h_out[0][rest, rest], h_out[0][rest, rows]), rtol=0, atol=1e-10)


def test_correction_of_the_rest_is_the_minimum_less_what_each_row_corrects_itself():
    """The update with R is the full minimiser of the objective over later rows, less W_rest R H⁻¹ of these rows."""
    w, h_in, h_out = problem(heads=1)
    h_in, h_out, R_in = damped(h_in), damped(h_out)[0], correlation()
    rows, rest = slice(0, 3), slice(3, None)
    delta = np.random.default_rng(2).standard_normal((3, D))  # Q − W of the block
    rest_of = h_out[rest, rest]
    pulls = h_out[rest] @ w @ R_in @ np.linalg.inv(h_in)
    best = np.linalg.solve(rest_of, pulls - h_out[rest, rows] @ delta)

    share = -np.linalg.solve(rest_of, h_out[rest, rows])
    ours = share @ (delta - w[rows] @ R_in @ np.linalg.inv(h_in))
    np.testing.assert_allclose(ours, best - w[rest] @ R_in @ np.linalg.inv(h_in), rtol=0, atol=1e-12)


def test_no_residual_is_a_residual_of_zero():
    """R = 0 is R left out, in both methods."""
    w, h_in, h_out = problem()
    nothing = np.zeros((D, D))
    for f in (gptq, partial(turboboa, h_out=h_out, n_heads=H, block_rows=3)):
        with_, without = (f(w, h_in, bits=BITS, residual=r) for r in (nothing, None))
        np.testing.assert_array_equal(with_.codes, without.codes)
        np.testing.assert_allclose(with_.weight, without.weight, rtol=0, atol=1e-12)


def test_propagation_reaches_later_columns_only():
    """P is strictly upper triangular, and none without R."""
    upper = inverse_cholesky_upper(problem()[1])
    P = propagation(correlation(), upper)

    assert not np.tril(P).any()
    assert np.triu(P, 1).any()
    assert propagation(None, upper) is None


def test_the_correction_serves_the_loss_with_the_residual():
    """On average over problems, quantising with R lowers the loss that R defines."""
    gained = []
    for seed in range(8):
        w, h_in, _ = problem(seed)
        r, h = 4 * correlation(seed), damped(h_in)
        with_, without = (gptq(w, h_in, BITS, residual=x, grid="minmax") for x in (r, None))
        gained.append(reconstruction_loss(w, without.weight[0], h, None, r) - with_.loss)
    assert np.mean(gained) > 0


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_sweeps_lower_the_loss_until_its_slope_is_zero(with_out, with_residual):
    """No sweep raises the loss, and after many its derivative by every step is zero."""
    w, h_in, h_out = problem()
    h_in, w = damped(h_in), w.reshape(H, R, D)
    h_out = damped(h_out) if with_out else None
    r = correlation() if with_residual else None
    grid = minmax_grid(w, 2)
    codes = quantize_codes(w, grid, 2)

    def loss_of(scale):
        return reconstruction_loss(w, dequantize(codes, QuantGrid(scale, grid.zero)), h_in, h_out, r)

    refined = [refine_scales(w, codes, grid, h_in, h_out, r, sweeps).scale for sweeps in (0, 1, 2, 3, 200)]
    losses = [loss_of(scale) for scale in refined]
    np.testing.assert_array_equal(refined[0], grid.scale)
    assert losses[1] < losses[0]
    assert np.all(np.diff(losses) <= 1e-12 * losses[0])
    steps = 1e-4 * np.eye(H * R).reshape(-1, H, R, 1, 1)
    slopes = [(loss_of(refined[-1] + step) - loss_of(refined[-1] - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(slopes, 0, atol=1e-8)


def test_rows_without_partners_settle_in_one_sweep():
    """Without H_out the rows' steps do not depend on each other: the second sweep changes nothing."""
    w, h_in, _ = problem()
    w = w.reshape(H, R, D)
    grid = minmax_grid(w, 2)
    codes = quantize_codes(w, grid, 2)
    once, twice = (refine_scales(w, codes, grid, h_in, sweeps=sweeps).scale for sweeps in (1, 2))

    np.testing.assert_allclose(once, twice, rtol=1e-13)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_codes_are_those_of_the_result(bits):
    """Codes are integers of b bits, and the weights have no others, refined steps and all."""
    w, h_in, h_out = problem()
    result = turboboa(w, h_in, h_out, bits, n_heads=H, block_rows=3, residual=correlation())

    assert result.codes.dtype == np.int64
    assert set(np.unique(result.codes)) <= set(range(2**bits))
    np.testing.assert_array_equal(
        np.rint(result.weight / result.grid.scale[..., 0]) + result.grid.zero[..., 0], result.codes
    )
    np.testing.assert_array_equal(dequantize(result.codes, result.grid), result.weight)


def test_heads_are_quantised_alike_wherever_they_stand():
    """Exchanging the heads of weights and H_out exchanges those of the result."""
    w, h_in, h_out = problem()
    turned = np.flip(w.reshape(H, R, D), 0).reshape(w.shape)
    there, here = (turboboa(x, h_in, h, BITS, n_heads=H, block_rows=3) for x, h in ((turned, h_out[::-1]), (w, h_out)))

    np.testing.assert_array_equal(there.codes[::-1], here.codes)
    np.testing.assert_allclose(there.weight[::-1], here.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factors", [(4.0, 1.0), (1.0, 0.125)])
def test_the_unit_of_a_hessian_does_not_matter(factors):
    """Hessians times a constant give the same weights, codes and steps; the loss is multiplied."""
    w, h_in, h_out = problem()
    scaled, plain = (turboboa(w, a * h_in, b * h_out, BITS, n_heads=H, block_rows=3) for a, b in (factors, (1, 1)))

    np.testing.assert_array_equal(scaled.codes, plain.codes)
    np.testing.assert_allclose(scaled.weight, plain.weight, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scaled.loss, np.prod(factors) * plain.loss, rtol=1e-12)


def test_rounding_to_nearest_is_off_by_half_a_step():
    """Within the range of the grid no weight moves by more than half a step."""
    w = problem()[0]
    result = rtn(w, 12)

    assert np.all(np.abs(result.weight[0] - w) <= result.grid.scale[0, ..., 0] * (0.5 + 1e-9))


def test_errors_of_the_logits_cost_what_the_hessians_say():
    """‖(X ΔWqᵀ) K_hᵀ‖² over all pairs of tokens is n²/4 tr(H_out ΔW H_in ΔWᵀ), and the same for keys."""
    rng = np.random.default_rng(0)
    n, r, d = 10, 4, 6
    x = rng.standard_normal((1, n, d))
    wq, wk, wv, delta = rng.standard_normal((4, H * r, d))
    found = attention_hessians(x, wq, wk, wv, n_heads=H)
    q, k, e = (np.swapaxes((x[0] @ m.T).reshape(n, H, r), 0, 1) for m in (wq, wk, delta))
    for other, h_out in ((k, found.query_out), (q, found.key_out)):
        for h in range(H):
            lost = reconstruction_loss(0 * delta[:r], delta[h * r : (h + 1) * r], found.input, h_out[h : h + 1])
            np.testing.assert_allclose(np.sum((e[h] @ other[h].T) ** 2), n**2 / 4 * lost, rtol=1e-10)


def test_errors_of_the_values_cost_what_attention_makes_of_them():
    """‖A_h X ΔWvᵀ‖² is n/2 tr(ΔW H_in,h ΔWᵀ)."""
    rng = np.random.default_rng(0)
    n, r, d = 10, 4, 6
    x = rng.standard_normal((1, n, d))
    wq, wk, delta = rng.standard_normal((3, H * r, d))
    found = attention_hessians(x, wq, wk, wk, n_heads=H, causal=False)
    q, k, e = (np.swapaxes((x[0] @ m.T).reshape(n, H, r), 0, 1) for m in (wq, wk, delta))
    lost = np.sum((softmax(q @ k.mT / np.sqrt(r)) @ e) ** 2)

    assert lost == pytest.approx(n / 2 * reconstruction_loss(0 * delta, delta, found.value_input), rel=1e-12)


def test_boa_keeps_the_logits_better_than_columns_alone():
    """On the loss of the logits, rounding is worst, GPTQ better, and BoA best (mean of ten problems)."""
    losses = []
    for seed in range(10):
        w, h_in, h_out = problem(seed)
        results = rtn(w, 2), gptq(w, h_in, 2, grid="minmax"), boa(w, h_in, h_out, 2, **PLAIN)
        h = damped(h_in), damped(h_out)
        losses.append([reconstruction_loss(w, x.weight.reshape(w.shape), *h) for x in results])
    nearest, columns, rows = np.mean(losses, axis=0)

    assert nearest > columns > rows


def test_the_search_never_costs_more_than_what_it_tried():
    """The searched grid costs no more than any shrunken range with the zero point rounded down or up."""
    w, h_in, _ = problem()
    found = search_grid(w, BITS, hessian=h_in)

    def cost(grid):
        e = dequantize(quantize_codes(w, grid, BITS), grid) - w
        return np.sum(e @ h_in * e, axis=-1)

    low, high = np.minimum(w.min(-1), 0)[:, None, None], np.maximum(w.max(-1), 0)[:, None, None]
    for share in (1.0, 0.83, 0.5):
        s = share * (high - low) / (2**BITS - 1)
        for turn in (np.floor, np.ceil):
            assert np.all(cost(found) <= cost(QuantGrid(s, turn(-share * low / s))) + 1e-12)


def test_symmetric_grids_reach_equally_far():
    """A symmetric grid has its zero in the middle code, and reaches the largest magnitude on both sides."""
    grid = minmax_grid(np.array([[-1.0, 3.0], [1.0, 2.0]]), 2, symmetric=True)

    np.testing.assert_array_equal(grid.zero.ravel(), [2, 2])
    np.testing.assert_allclose(grid.scale.ravel(), [2, 2 / 3])  # without a negative weight the range begins at 0


@pytest.mark.parametrize("grid", ["minmax", "mmse", "hessian"])
def test_one_weight(grid):
    """A single weight is on its grid: nothing is lost but by searched steps."""
    one = np.array([[0.7]])
    result = turboboa(one, one, one[None], 2, n_heads=1, grid=grid)

    np.testing.assert_allclose(result.weight, [[[0.7]]], rtol=1e-12)


@pytest.mark.parametrize(("heads", "r"), [(1, 5), (5, 1)])
def test_one_head_and_heads_of_one_row(heads, r):
    """One head of all rows, and heads of one row each, work; the latter is GPTQ."""
    w, h_in, h_out = problem(heads=heads, r=r)
    result = boa(w, h_in, h_out, BITS, n_heads=heads)

    assert result.weight.shape == (heads, r, D)
    if r == 1:
        np.testing.assert_array_equal(result.codes.reshape(w.shape), gptq(w, h_in, BITS).codes[0])


def test_a_row_of_zeros_stays():
    """A row of zeros has a grid from −1 to 1, stays zero where nothing pushes it, and keeps its step."""
    w, h_in, _ = problem()
    w[3] = 0
    grid = minmax_grid(w, 2)
    result = turboboa(w, h_in, None, 2, n_heads=1, grid="minmax", refine_sweeps=2)

    assert grid.scale[3, 0, 0] == 2 / 3
    assert grid.zero[3, 0, 0] == 2
    assert not result.weight[0, 3].any()
    assert result.grid.scale[0, 3, 0, 0] == 2 / 3


def test_dead_inputs_are_dropped():
    """Weights of inputs that are always zero become zero and cost nothing; few samples are enough."""
    w, _, h_out = problem()
    x = np.random.default_rng(3).standard_normal((5, D))
    x[:, [2, 7]] = 0
    h_in = input_hessian(x)
    prepared, hessian, r = prepare(w, h_in, np.ones((D, D)), dead_value=0.1, damping=0.0)
    result = turboboa(w, h_in, h_out, BITS, n_heads=H, act_order_cols=True)

    assert not prepared[:, [2, 7]].any()
    assert not r[:, [2, 7]].any()
    np.testing.assert_array_equal(np.diag(hessian)[[2, 7]], 0.1)
    assert np.linalg.matrix_rank(h_in) == 5
    assert np.isfinite(result.weight).all()
    assert not result.weight[..., [2, 7]].any()


def test_one_group_is_no_group():
    """A group of all columns is a row's own grid."""
    w, h_in, h_out = problem()
    grouped, plain = (turboboa(w, h_in, h_out, BITS, n_heads=H, group_size=size) for size in (D, None))

    np.testing.assert_array_equal(grouped.weight, plain.weight)


def test_groups_have_grids_of_their_own():
    """Columns of a group share a step, found for them alone."""
    w, h_in, _ = problem()
    result = gptq(w, h_in, BITS, grid="minmax", group_size=4)

    assert result.grid.scale.shape == (1, H * R, 3, 1)
    for g in range(3):
        alone = minmax_grid(w[:, 4 * g : 4 * g + 4], BITS)
        np.testing.assert_array_equal(result.grid.scale[0, :, g], alone.scale[:, 0])


def test_grids_found_on_the_way_see_finished_blocks_only():
    """A grid found as its group's turn comes is that of the weights with the updates of finished blocks alone."""
    w, h_in, _ = problem()
    found = partial(gptq, w, h_in, BITS, grid="minmax", group_size=4)

    np.testing.assert_array_equal(found(block_columns=D).codes, found().codes)
    late, early = found(block_columns=4).grid.scale[0], found().grid.scale[0]
    np.testing.assert_array_equal(late[:, 0], early[:, 0])
    assert not np.allclose(late[:, 1], early[:, 1])


def test_an_indefinite_hessian_is_damped_until_it_is_not():
    """A factor is found where damping makes the Hessian positive definite, and refused where it does not."""
    assert np.isfinite(inverse_cholesky_upper(np.array([[1.0, 1.01], [1.01, 1.0]]))).all()
    with pytest.raises(ValueError, match="Hessian is not positive definite after damping"):
        inverse_cholesky_upper(np.array([[1.0, 5.0], [5.0, 1.0]]))


def refused(message, f, *args, **options):
    with pytest.raises(ValueError, match=message):
        f(*args, **options)


@pytest.mark.parametrize("bits", [0, 17, 2.0, True])
def test_bits_out_of_range_are_refused(bits):
    """Bits are an integer from 1 to 16, in every function that takes them."""
    w, h_in, h_out = problem()
    for f, args in ((gptq, (h_in,)), (rtn, ()), (minmax_grid, ()), (search_grid, ())):
        refused(r"bits=.* must be an integer in 1\.\.16", f, w, *args, bits=bits)
    for f in (boa, turboboa):
        refused(r"bits=.* must be an integer in 1\.\.16", f, w, h_in, h_out, bits, n_heads=H)


def nan_at_first(x):
    broken = np.array(x)
    broken.reshape(-1)[0] = np.nan
    return broken


@pytest.mark.parametrize("f", [gptq, boa, turboboa])
def test_arrays_that_do_not_fit_are_refused(f):
    """Each error names the argument that does not fit."""
    w, h_in, h_out = problem()
    more = {"n_heads": H, "h_out": h_out} if f is not gptq else {}
    skewed = h_in + 1e-3 * np.triu(np.ones((D, D)))
    for message, weights, hessian in (
        ("w has shape", w[0], h_in),
        ("w has shape", w[:0], h_in),
        ("(?s)^w=.* must be finite", nan_at_first(w), h_in),
        ("h_in has shape", w, h_in[:-1]),
        ("h_in has shape", w, h_in[:-1, :-1]),
        ("(?s)^h_in=.* must be finite", w, nan_at_first(h_in)),
        ("h_in is not symmetric", w, skewed),
        ("Hessian is not positive definite after damping", w, 2 * np.ones((D, D)) - np.eye(D)),
    ):
        refused(message, f, weights, hessian, bits=BITS, **more)
    refused("grid", f, w, h_in, bits=BITS, grid="median", **more)
    refused("group_size=5", f, w, h_in, bits=BITS, group_size=5, **more)


@pytest.mark.parametrize("f", [boa, turboboa])
def test_heads_that_do_not_fit_are_refused(f):
    """Heads divide the rows, and H_out has one symmetric matrix a head."""
    w, h_in, h_out = problem()
    for n_heads in (0, 3):
        refused("n_heads=. must divide", f, w, h_in, h_out, BITS, n_heads=n_heads)
    refused("h_out", f, w, h_in, h_out[:1], BITS, n_heads=H)
    refused("h_out has shape", f, w, h_in, h_out[:, :-1], BITS, n_heads=H)
    refused("h_out is not symmetric", f, w, h_in, h_out + np.tri(R, k=-1), BITS, n_heads=H)
    refused("(?s)^h_out=.* must be finite", f, w, h_in, nan_at_first(h_out), BITS, n_heads=H)
    refused("h_in has shape .* expected 2 heads", f, w, np.stack([h_in] * 4), None, BITS, n_heads=H)


def test_a_grid_of_other_weights_is_refused():
    """A grid that is given has the rows of the weights, and groups that divide their columns."""
    w, h_in, h_out = problem()
    heads = w.reshape(H, R, D)
    short = minmax_grid(heads[:, 1:], BITS)
    odd = minmax_grid(np.zeros((H, R, 5)), BITS, group_size=1)
    for grid in (short, odd, minmax_grid(w, BITS)):
        with pytest.raises(ValueError, match=r"grid.scale has shape .* expected \(2, 8, 'g', 1\) with g dividing 12"):
            turboboa(w, h_in, h_out, BITS, n_heads=H, grid=grid)
    with pytest.raises(ValueError, match=r"grid.scale has shape .* expected \(1, 16, 'g', 1\) with g dividing 12"):
        gptq(w, h_in, BITS, grid=short)


def test_options_of_turboboa_out_of_range_are_refused():
    """Blocks have rows, sweeps are counted, and groups are not refined."""
    quantized = partial(turboboa, *problem(), BITS, n_heads=H)
    refused("block_rows=0 must be an integer of at least 1", quantized, block_rows=0)
    refused("refine_sweeps=-1 must not be negative", quantized, refine_sweeps=-1)
    refused("refine_sweeps=1 must be 0 with group_size=4", quantized, group_size=4)
    refused("residual", quantized, residual=np.zeros((D, D - 1)))
    refused("residual", quantized, residual=nan_at_first(np.zeros((D, D))))


def test_grids_found_on_the_way_do_not_judge_by_a_hessian():
    """Only grids of the weights alone can be found on the way."""
    w, h_in, _ = problem()
    refused("block_columns", gptq, w, h_in, BITS, grid="hessian", group_size=4, block_columns=4)


def test_tokens_and_projections_that_do_not_fit_are_refused():
    """Moments need finite tokens of one shape, and attention projections of heads that divide."""
    x, w = np.ones((1, 3, 4)), np.ones((4, 4))
    refused("x holds no token", input_hessian, x[:, :0])
    refused("(?s)^x=.* must be finite", input_hessian, nan_at_first(x))
    refused("x_quant", residual_correlation, x, x[:, 1:])
    refused("n_heads=2 must be a multiple of n_kv_heads=3", attention_hessians, x, w, w, w, n_heads=2, n_kv_heads=3)
    refused("wq has shape", attention_hessians, x, w[:3], w, w, n_heads=2)
    refused("wk", attention_hessians, x, w, w[:2], w, n_heads=2)
    refused("x has shape", attention_hessians, x[0], w, w, w, n_heads=2)


def test_codes_and_grids_that_do_not_fit_are_refused():
    """A grid has groups that divide the columns, and the refinement one step a row and a code a weight."""
    w = problem()[0].reshape(H, R, D)
    grid = minmax_grid(w, 2, group_size=4)
    codes = quantize_codes(w, grid, 2)
    refused("grid has 3 groups, which do not divide 11 columns", quantize_codes, w[..., 1:], grid, 2)
    refused("grid has 3 groups, which do not divide 11 columns", dequantize, codes[..., 1:], grid)
    refused("grid.scale", refine_scales, w, codes, grid, np.eye(D))
    refused("codes", refine_scales, w, codes[1:], minmax_grid(w, 2), np.eye(D))
    refused("n_shrink=0 must be at least 1", search_grid, w, 2, n_shrink=0)
    refused("q", reconstruction_loss, w, w[1:], np.eye(D))
