"""What every implementation of the quantisers obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.efficiency.turboboa import QuantGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "BOA_LAWS",
    "CODES_LAWS",
    "CORRELATION_LAWS",
    "DEQUANTIZE_LAWS",
    "GPTQ_LAWS",
    "HESSIANS_LAWS",
    "LOSS_LAWS",
    "MINMAX_LAWS",
    "MOMENT_LAWS",
    "REFINE_LAWS",
    "RTN_LAWS",
    "SEARCH_LAWS",
    "TURBOBOA_LAWS",
]

DOUBT = 1e-3  # of a step: nearer to the middle of two codes than this, rounding may have decided


def _precise(case: Case) -> bool:
    """Whether the dtype tells neighbouring codes apart after a few sums."""
    return case.dtype in ("float64", "float32")


def _same(probe: Probe, left: Case, right: Case, *names: str, turned: Callable[..., Any] = lambda x: x) -> Any:
    """Claim that two cases have the same results, the second ones turned, as far as rounding lets them."""
    results, slacks = (probe(left), probe(right)), (probe.slack(left), probe.slack(right))
    for name in names or tuple(results[0]):
        slack = slacks[0][name] + turned(slacks[1][name])
        yield Claim(results[0][name], turned(results[1][name]), slack, name)


def _rows_are_ranged_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["w"].copy()
    w[..., 0, :] *= 8.0
    other = case.having(w=w)
    left, right, slack, own = probe(case), probe(other), probe.slack(case), probe.slack(other)
    for name in ("scale", "zero"):
        kept, kept_slack = left[name][..., 1:, :, :], (slack[name] + own[name])[..., 1:, :]
        yield Claim(kept, right[name][..., 1:, :, :], kept_slack, name)


def _zero_is_a_code(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    zero = probe(case)["zero"]
    yield Claim(zero, np.clip(np.rint(zero), 0, 2 ** case.options["bits"] - 1))


def _steps_grow_with_weights(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    larger = case.having(w=4.0 * case.arrays["w"])
    some = np.any(case.arrays["w"] != 0, axis=-1)[..., None, None]  # a row of zeros has a range of its own
    left, right, slack = probe(larger)["scale"], probe(case)["scale"], probe.slack(case)["scale"]
    yield Claim(left, right * np.where(some, 4.0, 1.0), 4 * slack + probe.slack(larger)["scale"])


def _many_rows(case: Case) -> bool:
    return bool(case.arrays["w"].shape[-2] > 1)


MINMAX_LAWS = (
    Law(
        "rows_are_ranged_alone",
        "The grid of a row does not depend on the other rows.",
        _rows_are_ranged_alone,
        _many_rows,
        witness="one_range_for_all_rows",
    ),
    Law(
        "zero_is_a_code",
        "The zero point is one of the codes: weights of zero stay zero.",
        _zero_is_a_code,
        lambda case: not case.options.get("symmetric", False),
        witness="zero_left_out_of_range",
    ),
    Law(
        "steps_grow_with_weights",
        "Weights four times as large have steps four times as large.",
        _steps_grow_with_weights,
        witness="step_kept_from_zero",
    ),
)


def _unit_of_the_judge(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(hessian=256.0 * case.arrays["hessian"]))


SEARCH_LAWS = (
    Law(
        "unit_of_the_judge",
        "Multiplying the Hessian by a constant leaves the grid as it is.",
        _unit_of_the_judge,
        lambda case: "hessian" in case.arrays,
        witness="search_gives_up_at_one",
    ),
    Law(
        "searched_rows_are_ranged_alone",
        "The grid found for a row does not depend on the other rows.",
        _rows_are_ranged_alone,
        _many_rows,
        witness="search_one_range_for_all_rows",
    ),
)


def _codes_of_grid_points(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    grid, bits, shape = case.arrays["grid"], case.options["bits"], case.arrays["x"].shape
    codes = np.arange(np.prod(shape)).reshape(shape) % 2**bits
    parts = codes.reshape(*shape[:-1], grid.scale.shape[-2], -1)
    points = (grid.scale * (parts - grid.zero)).reshape(shape)
    yield Claim(probe(case.having(x=points))["out"], codes)


CODES_LAWS = (
    Law(
        "codes_of_grid_points",
        "The weight that a code stands for has this code.",
        _codes_of_grid_points,
        _precise,
        witness="zero_taken_away",
    ),
)


def _code_of_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    codes, grid = case.arrays["codes"], case.arrays["grid"]
    parts = np.broadcast_to(
        grid.zero, (*codes.shape[:-1], grid.scale.shape[-2], codes.shape[-1] // grid.zero.shape[-2])
    )
    out = probe(case.having(codes=parts.reshape(codes.shape).astype(np.int64)))["out"]
    yield Claim(out, np.zeros_like(out))


DEQUANTIZE_LAWS = (
    Law(
        "code_of_zero",
        "The code at the zero point stands for a weight of exactly zero.",
        _code_of_zero,
        witness="zero_point_in_weights",
    ),
)


def _beyond(moved: Any, weight: Any, codes: Any, scale: Any, bits: int) -> np.ndarray:
    """Return by how many steps more than half a one weights lie off their grid point, ends of the grid aside."""
    off = (moved - weight) / scale
    last = np.where(off > 0, codes == 2**bits - 1, codes == 0)
    beyond: np.ndarray = np.where(last, 0.0, np.maximum(np.abs(off) - 0.5, 0.0))
    return beyond


def _at_most_half_a_step(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    result, grid, w = probe(case), case.arrays["grid"], case.arrays["w"]
    scale = np.repeat(grid.scale[..., 0], w.shape[-1] // grid.scale.shape[-2], axis=-1)
    beyond = _beyond(w, result["weight"], result["codes"], scale, case.options["bits"])
    yield Claim(beyond, np.zeros_like(beyond), DOUBT)


RTN_LAWS = (
    Law(
        "at_most_half_a_step",
        "Inside the range no weight moves by more than half a step.",
        _at_most_half_a_step,
        lambda case: _precise(case) and "grid" in case.arrays,
        witness="rtn_round_towards_minus_infinity",
    ),
)


def _damped(h: np.ndarray) -> np.ndarray:
    mean = np.mean(np.diagonal(h, axis1=-2, axis2=-1), axis=-1)[..., None, None]
    return np.asarray(h + 0.01 * mean * np.eye(h.shape[-1]))


def _upper(h: np.ndarray) -> np.ndarray:
    return np.asarray(np.swapaxes(np.linalg.cholesky(np.linalg.inv(_damped(h))), -1, -2))


def _given(case: Case) -> bool:
    """Whether a case rounds on one given grid, in the given order, without dead inputs and correction."""
    diagonal = np.diagonal(case.arrays["h_in"], axis1=-2, axis2=-1)
    moved = any(case.options.get(name) for name in ("act_order", "act_order_rows", "act_order_cols", "refine_sweeps"))
    plain = "residual" not in case.arrays and not moved and bool(np.all(diagonal > 0))
    return plain and _precise(case) and "grid" in case.arrays and case.arrays["grid"].scale.shape[-2] == 1


def _every_code_is_nearest(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Weights as they were when their turn came follow from what all errors together make of the original ones."""
    result, grid = probe(case), case.arrays["grid"]
    weight, upper = result["weight"], _upper(case.arrays["h_in"])
    H, r, _ = weight.shape
    lost = (case.arrays["w"].reshape(weight.shape) - weight) @ np.linalg.inv(upper)
    own = np.diagonal(upper, axis1=-2, axis2=-1)[..., None, :]
    h_out = case.arrays.get("h_out")
    N = r if h_out is None else case.options.get("block_rows", 1)
    out = np.broadcast_to(np.eye(r), (H, r, r)) if h_out is None else _upper(h_out)
    lost = np.linalg.solve(np.swapaxes(out, -1, -2), lost)
    for begin in range(0, r, N):
        rows = slice(begin, begin + N)
        moved = weight[:, rows] + own * (np.swapaxes(out[:, rows, rows], -1, -2) @ lost[:, rows])
        scale, bits = grid.scale[:, rows, :, 0], case.options["bits"]
        beyond = _beyond(moved, weight[:, rows], result["codes"][:, rows], scale, bits)
        yield Claim(beyond, np.zeros_like(beyond), DOUBT, "steps beyond half a one")


def _inputs_apart(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    diagonal = rng.permutation(np.linspace(1.0, 2.0, case.arrays["h_in"].shape[-1]))
    h_in = np.broadcast_to(np.diag(diagonal), case.arrays["h_in"].shape).copy()
    w, bits = case.arrays["w"], case.options["bits"]
    names = ("weight", "codes")
    alone = Case("rtn", {"w": w, "grid": _of_matrix(case.arrays["grid"])}, {"bits": bits}, case.dtype)
    apart = case.having(h_in=h_in)
    left, right, slack, own = probe(apart), probe(alone), probe.slack(apart), probe.slack(alone)
    for name in names:
        shape = left[name].shape
        yield Claim(left[name], right[name].reshape(shape), slack[name] + own[name].reshape(shape[:-1]), name)


def _of_matrix(grid: QuantGrid) -> QuantGrid:
    """Return the grid of all heads as that of one."""
    return QuantGrid(*(part.reshape(1, -1, *part.shape[2:]) for part in grid))


def _unit_of_the_input(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    factors = {name: 16.0 * case.arrays[name] for name in ("h_in", "residual") if name in case.arrays}
    yield from _same(probe, case, case.having(**factors), "weight", "codes")


def _alive(case: Case) -> bool:
    return bool(np.all(np.diagonal(case.arrays["h_in"], axis1=-2, axis2=-1) > 0))


def _columns(case: Case) -> bool:
    return bool(case.arrays["h_in"].shape[-1] > 1)


GPTQ_LAWS = (
    Law(
        "every_code_is_nearest",
        "Each code is that of the point nearest to the weight as the errors of the columns before have moved it.",
        _every_code_is_nearest,
        _given,
        witness="gptq_factor_of_the_hessian_itself",
    ),
    Law(
        "inputs_apart",
        "Inputs that do not go together give nothing to make good with: a diagonal Hessian is rounding to nearest.",
        _inputs_apart,
        lambda case: "grid" in case.arrays and "residual" not in case.arrays and _precise(case),
        needs=("rtn",),
        witness="gptq_order_not_taken_back",
    ),
    Law(
        "unit_of_the_input",
        "Multiplying the Hessian, and R with it, by a constant leaves the weights as they are.",
        _unit_of_the_input,
        lambda case: _alive(case) and _columns(case),
        witness="gptq_damped_by_a_constant",
    ),
)


def _unit_of_the_output(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(h_out=16.0 * case.arrays["h_out"]), "weight", "codes")


def _heads_are_alike(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    H = case.options["n_heads"]

    def turned(name: str, x: Any) -> Any:
        if isinstance(x, QuantGrid):
            return QuantGrid(*(np.flip(part, 0) for part in x))
        if name == "w":
            return np.flip(x.reshape(H, -1, x.shape[-1]), 0).reshape(x.shape)
        return np.flip(x, 0) if x.ndim == 3 else x

    there = case.having(**{name: turned(name, x) for name, x in case.arrays.items()})
    yield from _same(probe, case, there, "weight", "codes", turned=lambda x: np.flip(x, 0))


def _some_heads(case: Case) -> bool:
    return case.options["n_heads"] > 1 and "h_out" in case.arrays


def _rows(case: Case) -> bool:
    return "h_out" in case.arrays and case.arrays["h_out"].shape[-1] > 1


BOA_LAWS = (
    Law(
        "every_code_of_a_row_is_nearest",
        "Each code is that of the point nearest to the weight as the rows and columns before have moved it.",
        _every_code_is_nearest,
        lambda case: _given(case) and _rows(case),
        witness="boa_factor_of_the_hessian_itself",
    ),
    Law(
        "unit_of_the_output",
        "Multiplying the Hessian of the output by a constant leaves the weights as they are.",
        _unit_of_the_output,
        _rows,
        witness="boa_damped_by_a_constant",
    ),
    Law(
        "heads_are_alike",
        "Exchanging the heads of all arrays exchanges those of the result.",
        _heads_are_alike,
        _some_heads,
        witness="boa_output_of_first_head_for_all",
    ),
)


def _one_row_at_a_time(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    single = case.having(block_rows=1, adaptive_grid=False, refine_sweeps=0).without("residual")
    options = {k: v for k, v in single.options.items() if k not in ("block_rows", "adaptive_grid", "refine_sweeps")}
    yield from _agree(probe, single, Case("boa", single.arrays, options, case.dtype))


def _whole_heads(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.having(block_rows=16, adaptive_grid=False, refine_sweeps=0)
    arrays = {k: v for k, v in whole.arrays.items() if k != "h_out"}
    if arrays["h_in"].ndim == 2:
        arrays["grid"] = _of_matrix(arrays["grid"])
    yield from _agree(probe, whole, Case("gptq", arrays, {"bits": whole.options["bits"]}, case.dtype))


def _agree(probe: Probe, ours: Case, theirs: Case) -> Iterator[Claim]:
    left, right, slack, own = probe(ours), probe(theirs), probe.slack(ours), probe.slack(theirs)
    for name in ("weight", "codes"):
        shape = left[name].shape
        yield Claim(left[name], right[name].reshape(shape), slack[name] + own[name].reshape(shape[:-1]), name)


def _refinement_helps(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    losses, slacks = [], []
    for sweeps in (case.options["refine_sweeps"], 0):
        swept = case.having(refine_sweeps=sweeps)
        losses.append(probe(swept)["loss"])
        slacks.append(probe.slack(swept)["loss"])
    yield Claim(np.minimum(*losses)[None], losses[0][None], slacks[0] + slacks[1], "loss")


def _on_one_grid(case: Case) -> bool:
    return "grid" in case.arrays and _precise(case) and not _ordered(case)


def _ordered(case: Case) -> bool:
    return any(case.options.get(name) for name in ("act_order_rows", "act_order_cols"))


TURBOBOA_LAWS = (
    Law(
        "one_row_at_a_time",
        "Blocks of one row, on a given grid and without refinement, are BoA.",
        _one_row_at_a_time,
        lambda case: "grid" in case.arrays and _rows(case) and _precise(case),
        needs=("boa",),
        witness="share_not_solved",
    ),
    Law(
        "whole_heads",
        "Blocks of whole heads, on a given grid and without refinement, are GPTQ.",
        _whole_heads,
        _on_one_grid,
        needs=("gptq",),
        witness="columns_pushed_without_the_diagonal",
    ),
    Law(
        "every_code_of_a_block_is_nearest",
        "Each code is that of the point nearest to the weight as the blocks and columns before have moved it.",
        _every_code_is_nearest,
        lambda case: _given(case) and _rows(case) and case.options.get("refine_sweeps", 1) == 0,
        witness="share_from_untriangular_inverse",
    ),
    Law(
        "refinement_helps",
        "Refined steps do not raise the loss.",
        _refinement_helps,
        lambda case: case.options.get("refine_sweeps", 0) > 0 and _on_one_grid(case),
        witness="uphill",
    ),
)


def _unit_of_both(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(h_out=16.0 * case.arrays["h_out"]))


def _last_row_at_its_best(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Claim that the step found last is at the minimum of the loss: no row has moved since."""
    arrays, scale = case.arrays, probe(case)["scale"][..., 0]
    units = arrays["codes"] - arrays["grid"].zero[..., 0]
    weighed = units[:, -1:] @ arrays["h_in"]
    row = arrays["h_out"][:, -1:]
    slope = np.sum(weighed * (row @ (arrays["w"] - scale * units)), axis=-1)
    if "residual" in arrays:
        slope = slope + np.sum((row @ arrays["w"] @ arrays["residual"]) * units[:, -1:], axis=-1)
    size = row[..., -1] * np.sum(weighed * units[:, -1:], axis=-1)
    # how much of the errors of all steps the slope at the last row feels, in steps of that row
    felt = np.abs(row[:, 0]) * np.abs(np.sum(weighed * units, axis=-1)) / np.where(size == 0, 1.0, size)
    slack = np.sum(felt * probe.slack(case)["scale"][..., 0], axis=-1)
    off = np.where(size == 0, 0.0, slope / np.where(size == 0, 1.0, size))
    yield Claim(off, np.zeros_like(off), slack, "distance of the last step from the minimum")


def _partnered(case: Case) -> bool:
    return case.options.get("sweeps", 1) > 0 and "h_out" in case.arrays and case.arrays["w"].shape[1] > 1


REFINE_LAWS = (
    Law(
        "unit_of_both",
        "Multiplying the Hessian of the output by a constant leaves the steps as they are.",
        _unit_of_both,
        _partnered,
        witness="curve_without_the_output",
    ),
    Law(
        "last_row_at_its_best",
        "After a sweep the last row's step is at the minimum of the loss.",
        _last_row_at_its_best,
        lambda case: _partnered(case) and _precise(case),
        witness="rows_refined_from_the_same_start",
    ),
)


def _sequences_do_not_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in case.arrays.items()}
    yield from _same(probe, case, case.having(**flat))


def _tokens_seen_twice(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    yield from _same(probe, case, case.having(x=np.concatenate([case.arrays["x"]] * 2)))


MOMENT_LAWS = (
    Law(
        "sequences_do_not_count",
        "How tokens are dealt to sequences makes no difference.",
        _sequences_do_not_count,
        lambda case: case.arrays["x"].ndim > 2,
        witness="divided_by_sequences",
    ),
    Law(
        "tokens_seen_twice",
        "Seeing all tokens twice makes no difference: it is a mean.",
        _tokens_seen_twice,
        witness="tokens_summed",
    ),
)


def _an_original_twice_as_large(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    quant = case.arrays["x_quant"]
    double = case.having(x_full=2.0 * quant)
    alone = Case("input_hessian", {"x": quant}, {}, case.dtype)
    left, right = probe(double)["out"], probe(alone)["out"]
    yield Claim(left, right, probe.slack(double)["out"] + probe.slack(alone)["out"])


CORRELATION_LAWS = (
    Law(
        "an_original_twice_as_large",
        "If the original is twice what is seen, R is the Hessian: its sign is original less seen.",
        _an_original_twice_as_large,
        needs=("input_hessian",),
        witness="correlation_of_the_paper_sign",
    ),
)


def _only_distances_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(rope_angles=case.arrays["rope_angles"] + 0.5)
    yield from _same(probe, case, turned)


def _grouped_is_repeated(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    H, G = case.options["n_heads"], case.options["n_kv_heads"]

    def repeated(w: np.ndarray) -> Any:
        return np.repeat(w.reshape(G, -1, w.shape[-1]), H // G, axis=0).reshape(-1, w.shape[-1])

    apart = case.having(**{name: repeated(case.arrays[name]) for name in ("wk", "wv")}).without("n_kv_heads")
    left, right, slack, own = probe(case), probe(apart), probe.slack(case), probe.slack(apart)
    yield Claim(left["query_out"], right["query_out"], slack["query_out"] + own["query_out"], "query_out")
    for name in ("value_input", "key_out"):
        mean = right[name].reshape(G, -1, *right[name].shape[1:]).mean(axis=1)
        share = own[name].reshape(G, -1, own[name].shape[-1]).mean(axis=1)
        yield Claim(left[name], mean, slack[name] + share, name)


def _both_sides_alike(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    result, slack = probe(case), probe.slack(case)
    for name, h in result.items():
        worst = np.sqrt(np.sum(slack[name] ** 2, axis=-1, keepdims=True))
        yield Claim(h, np.swapaxes(h, -1, -2), slack[name] + worst, name)


HESSIANS_LAWS = (
    Law(
        "only_distances_count",
        "Turning all positions by the same angles changes nothing.",
        _only_distances_count,
        lambda case: "rope_angles" in case.arrays,
        witness="rotation_not_pulled_back",
    ),
    Law(
        "grouped_is_repeated",
        "Shared heads are weighed as if each query head had its own, then averaged.",
        _grouped_is_repeated,
        lambda case: "n_kv_heads" in case.options,
        witness="key_heads_tiled",
    ),
    Law(
        "both_sides_alike",
        "Every Hessian is symmetric.",
        _both_sides_alike,
        witness="rotation_pulled_back_on_one_side",
    ),
)


def _sides_exchanged(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    arrays = case.arrays
    w, q = (np.swapaxes(arrays[name].reshape(1, -1, arrays["w"].shape[-1]), -1, -2) for name in "wq")
    h_in, h_out = (arrays[name].reshape(arrays[name].shape[-2:]) for name in ("h_in", "h_out"))
    other = case.having(w=w, q=q, h_in=h_out, h_out=h_in[None])
    left, right = probe(case)["out"], probe(other)["out"]
    yield Claim(left[None], right[None], probe.slack(case)["out"] + probe.slack(other)["out"])


def _what_is_owed(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """Claim of ΔW = W and R = 1 that the loss without R exceeds that with it by 2 tr(H_out W Wᵀ)."""
    h_in = case.arrays["h_in"]
    one = np.broadcast_to(np.eye(h_in.shape[-1]), h_in.shape).copy()
    double = case.having(q=2.0 * case.arrays["w"]).without("residual")
    cases = double.having(residual=one), double, double.having(h_in=one)
    (owing, free, even), slacks = ([f(c)["out"] for c in cases] for f in (probe, probe.slack))
    yield Claim(owing[None], (free - 2 * even)[None], slacks[0] + slacks[1] + 2 * slacks[2])


LOSS_LAWS = (
    Law(
        "sides_exchanged",
        "Transposing the weights and exchanging the Hessians leaves the loss as it is.",
        _sides_exchanged,
        lambda case: "residual" not in case.arrays and case.arrays.get("h_out", np.empty(0)).shape[:1] == (1,),
        witness="loss_for_outputs_apart",
    ),
    Law(
        "what_is_owed",
        "With R the loss is lower by twice what the error makes good.",
        _what_is_owed,
        witness="loss_with_debt_added",
    ),
)
