"""GPTQ, BoA and TurboBoA against the official quantisers: matrices, losses, and whole blocks of a transformer."""

import numpy as np
import pytest

from refattn.efficiency.turboboa import (
    attention_hessians,
    boa,
    dequantize,
    gptq,
    input_hessian,
    minmax_grid,
    quantize_codes,
    reconstruction_loss,
    refine_scales,
    residual_correlation,
    rtn,
    turboboa,
)
from refattn.efficiency.turboboa_boa import head_problem
from refattn.primitives.rotary import rope
from refattn.primitives.softmax import softmax

SHEET = "03-turboboa"
LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def vectors(oracle, kind):
    found = []
    for path in oracle(SHEET):
        with np.load(path) as case:
            if str(case["kind"]) == kind:
                found.append({"path": path.stem} | {name: case[name] for name in case.files})
    if not found:
        pytest.skip(f"no vectors of kind {kind}")
    return found


def close(actual, case, name, atol=2e-13):
    expected = case[name]
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, rtol=0, atol=atol, err_msg=case["path"])


def group_size(case, name="group_size"):
    return None if case[name] < 0 else int(case[name])


def options(case):
    return {
        "n_heads": int(case["n_heads"]),
        "grid": str(case["qparam"]).lower(),
        "symmetric": bool(case["sym"]),
        "act_order_rows": bool(case["act_order_row"]),
        "act_order_cols": bool(case["act_order_col"]),
        "dead_value": float(case["replace"]),
    }


def residual_of(case, name="dXXT"):
    return float(case["alpha"]) * case[name] if name in case else None


def fixed_codes(case, result):
    """Codes lie on the grid, and are those that the dequantised weights have on it."""
    bits = int(case["bits"])
    assert np.issubdtype(result.codes.dtype, np.integer)
    assert result.codes.min() >= 0
    assert result.codes.max() <= 2**bits - 1
    np.testing.assert_array_equal(quantize_codes(result.weight, result.grid, bits), result.codes)


def test_official_gptq(oracle):
    """GPTQ, with column order, dead inputs and grids found on the way, gives the official weights and error."""
    for case in vectors(oracle, "gptq"):
        bits, symmetric, width = int(case["bits"]), bool(case["sym"]), group_size(case, "groupsize")
        result = gptq(
            case["W"],
            case["H"],
            bits,
            grid="minmax",
            symmetric=symmetric,
            group_size=width,
            act_order=bool(case["actorder"]),
            block_columns=None if width is None else int(case["blocksize"]),
        )
        close(result.weight, case, "Q")
        np.testing.assert_allclose(result.loss / 2, case["printed_error"], rtol=1e-12)
        whole = minmax_grid(case["W"], bits, symmetric=symmetric)
        close(whole.scale, case, "scale0")
        close(whole.zero, case, "zero0")
        if width is None:
            close(result.grid.scale, case, "scale0")
            close(result.grid.zero, case, "zero0")
            fixed_codes(case, result)


def test_official_round_to_nearest(oracle):
    """Rounding to nearest gives the official weights."""
    for case in vectors(oracle, "gptq"):
        grid = minmax_grid(case["W"][None], int(case["bits"]), symmetric=bool(case["sym"]))
        close(rtn(case["W"], int(case["bits"]), grid=grid).weight, case, "rtn")


def test_official_accumulated_hessian(oracle):
    """The Hessian that is accumulated over two sequences is the second moment of all tokens, but for the count."""
    for case in vectors(oracle, "gptq"):
        tokens = len(case["X"])
        close(input_hessian(case["X"]) * tokens / int(case["n_batches"]), case, "H", 1e-12)


def test_official_boa(oracle):
    """BoA gives the official weights, steps and zero points in every order and with every grid."""
    for case in vectors(oracle, "boa"):
        result = boa(case["W"], case["H_in"], case.get("H_out"), int(case["bits"]), **options(case))
        for name, value in (("Q", result.weight), ("scale", result.grid.scale), ("zero", result.grid.zero)):
            close(value, case, name)
        fixed_codes(case, result)


def quantized(case, sweeps):
    return turboboa(
        case["W"],
        case["H_in"],
        case.get("H_out"),
        int(case["bits"]),
        block_rows=int(case["n_quant_rows"]),
        residual=residual_of(case),
        refine_sweeps=sweeps,
        group_size=group_size(case),
        **options(case),
    )


def test_official_turboboa(oracle):
    """TurboBoA gives the official weights, steps and zero points, groups of columns and value projections included."""
    for case in vectors(oracle, "turboboa"):
        result = quantized(case, int(case["n_iters"]) if case["refine_qparam"] else 0)
        for name, value in (("Q", result.weight), ("scale", result.grid.scale), ("zero", result.grid.zero)):
            close(value, case, name)
        fixed_codes(case, result)


def test_official_losses_of_each_sweep(oracle):
    """The loss before the refinement and after each sweep is the official one."""
    for case in vectors(oracle, "turboboa"):
        for sweeps, loss in enumerate(case["losses"]):
            np.testing.assert_allclose(quantized(case, sweeps).loss, loss, rtol=1e-12, err_msg=case["path"])


def posed(case):
    names = ("act_order_rows", "act_order_cols", "dead_value")
    order = [options(case)[name] for name in names]
    return head_problem(case["W"], case["H_in"], case.get("H_out"), residual_of(case), int(case["n_heads"]), *order)


def test_official_state_before_the_refinement(oracle):
    """In the order in which rows and columns were taken, weights and grid before the refinement are the official."""
    for case in vectors(oracle, "turboboa"):
        problem, result = posed(case), quantized(case, 0)
        rows = problem.rows[..., None]
        weight = np.take_along_axis(np.take_along_axis(result.weight, problem.columns[:, None], -1), rows, 1)
        close(weight, case, "Q_unrefined_permuted")
        for name, part in (("scale", result.grid.scale), ("zero", result.grid.zero)):
            close(np.take_along_axis(part, rows[..., None], 1), case, f"{name}_unrefined_permuted")


def test_official_refinement_alone(oracle):
    """From the official codes and steps, each sweep of the refinement reaches the official loss."""
    for case in vectors(oracle, "turboboa"):
        problem = posed(case)
        shape = problem.w.shape
        grid = type(quantized(case, 0).grid)(case["scale_unrefined_permuted"], case["zero_unrefined_permuted"])
        codes = quantize_codes(case["Q_unrefined_permuted"].reshape(shape), grid, int(case["bits"]))
        for sweeps, loss in enumerate(case["losses"]):
            refined = refine_scales(problem.w, codes, grid, *problem[1:4], sweeps=sweeps)
            reached = reconstruction_loss(problem.w, dequantize(codes, refined), *problem[1:4])
            np.testing.assert_allclose(reached, loss, rtol=1e-12, err_msg=case["path"])


def angles_of(case):
    return np.arctan2(case["sin"], case["cos"])[:, : int(case["head_dim"]) // 2] if "cos" in case else None


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def heads_of(x, heads):
    return np.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)


def block_output(case, x, prefix):
    """Return the output of the plain test block, and what each of its matrices reads; values per query head."""
    w = {name: case[f"{prefix}_{name}"] for name in LAYERS}
    n_heads, n_kv_heads, angles = int(case["n_heads"]), int(case["n_kv_heads"]), angles_of(case)
    a = normed(x)
    q, k = heads_of(a @ w["q_proj"].T, n_heads), heads_of(a @ w["k_proj"].T, n_kv_heads)
    q, k = (t if angles is None else rope(t, angles) for t in (q, k))
    k, v = (np.repeat(t, n_heads // n_kv_heads, axis=1) for t in (k, heads_of(a @ w["v_proj"].T, n_kv_heads)))
    causal = np.tri(x.shape[1], dtype=bool)
    weights = softmax(q @ k.mT / np.sqrt(q.shape[-1]), where=causal)
    mixed = np.swapaxes(weights @ v, 1, 2).reshape(*x.shape[:2], -1)
    x = x + mixed @ w["out_proj"].T
    b = normed(x)
    inner = np.maximum(b @ w["fc1"].T, 0)
    reads = {"q_proj": a, "k_proj": a, "v_proj": weights @ a[:, None], "out_proj": mixed, "fc1": b, "fc2": inner}
    return x + inner @ w["fc2"].T, reads


def test_official_attention_hessians(oracle):
    """Hessians of queries, keys and values are the official ones, rotated and grouped heads included."""
    for case in vectors(oracle, "block"):
        found = attention_hessians(
            normed(case["X_quant"]),
            *(case[f"W_{name}_proj"] for name in "qkv"),
            n_heads=int(case["n_heads"]),
            n_kv_heads=int(case["n_kv_heads"]),
            rope_angles=angles_of(case),
        )
        close(found.query_out, case, "H_out_q_proj")
        close(found.key_out, case, "H_out_k_proj")
        close(found.input, case, "H_in_q_proj")
        close(found.value_input if case["block_v"] else found.input, case, "H_in_v_proj")


def value_moments(case, moment, full, quant):
    """Return a moment of what the value heads read, averaged over the query heads that share one."""
    by_head = [moment(full[:, h], quant[:, h]) for h in range(full.shape[1])]
    return np.mean(np.reshape(by_head, (int(case["n_kv_heads"]), -1, *by_head[0].shape)), axis=1)


def test_official_hessians_of_every_layer(oracle):
    """Second moments and residual correlations are those of what each matrix reads in the original and this stream."""
    for case in vectors(oracle, "block"):
        quant = block_output(case, case["X_quant"], "W")[1]
        full = block_output(case, case["X_fp"], "W")[1]
        for name in LAYERS:
            by_head = name == "v_proj" and bool(case["block_v"])
            pair = [x["q_proj" if name == "v_proj" and not by_head else name] for x in (full, quant)]
            moments = {"H_in": lambda _full, x: input_hessian(x), "dXXT": residual_correlation}
            for array, moment in moments.items():
                if f"{array}_{name}" in case:
                    found = value_moments(case, moment, *pair) if by_head else moment(*pair)
                    close(found, case, f"{array}_{name}")


def quantized_layer(case, name):
    h_in, h_out = case[f"H_in_{name}"], case.get(f"H_out_{name}")
    heads = next((len(h) for h in (h_out, h_in) if h is not None and h.ndim == 3), 1)
    return turboboa(
        case[f"W_{name}"],
        h_in,
        h_out,
        int(case["bits"]),
        n_heads=heads,
        block_rows=int(case["n_quant_rows"]),
        residual=residual_of(case, f"dXXT_{name}"),
        refine_sweeps=int(case["refine_qparam"]),
        dead_value=float(case["replace"]),
    )


def test_official_blocks(oracle):
    """Every matrix of a block is quantised as the official code does it, and so the block puts out the same."""
    for case in vectors(oracle, "block"):
        close(block_output(case, case["X_quant"], "W")[0], case, "Y_before", 1e-12)
        ours = dict(case)
        for name in LAYERS:
            result = quantized_layer(case, name)
            close(result.weight, case, f"Q_{name}")
            close(result.grid.scale, case, f"scale_{name}")
            close(result.grid.zero, case, f"zero_{name}")
            ours[f"Q_{name}"] = result.weight.reshape(case[f"Q_{name}"].shape)
        close(block_output(ours, case["X_quant"], "Q")[0], case, "Y_after", 1e-12)
