"""Mistakes that people make when they quantise, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug, Mistake
from refattn.contracts.turboboa.plain import (
    attending,
    boa_loop,
    coding,
    correlating,
    decoding,
    gptq_loop,
    losing,
    lost,
    minmax,
    moments,
    refining,
    rounding,
    searching,
    turbo_loop,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "BOA_BUGS",
    "CODES_BUGS",
    "CORRELATION_BUGS",
    "DEQUANTIZE_BUGS",
    "GPTQ_BUGS",
    "HESSIANS_BUGS",
    "LOSS_BUGS",
    "MINMAX_BUGS",
    "MOMENT_BUGS",
    "REFINE_BUGS",
    "RTN_BUGS",
    "SEARCH_BUGS",
    "TURBOBOA_BUGS",
]


def _round_towards_minus_infinity(x: np.ndarray) -> Any:
    return np.floor(x)


def _round_towards_zero(x: np.ndarray) -> Any:
    return np.trunc(x)


def _zero_taken_away(steps: np.ndarray, zero: np.ndarray) -> Any:
    return steps - zero


def _one_code_too_many(codes: np.ndarray, bits: int) -> Any:
    return np.clip(codes, 0, 2**bits)


def _signed_range(codes: np.ndarray, bits: int) -> Any:
    return np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _zero_point_in_weights(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Any:
    return scale * codes - zero


def _zero_forgotten(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Any:
    return scale * codes + 0.0 * zero


def _zero_left_out_of_range(w: np.ndarray) -> tuple[Any, Any]:
    return w.min(axis=-1, keepdims=True), w.max(axis=-1, keepdims=True)


def _one_range_for_all_rows(w: np.ndarray) -> tuple[Any, Any]:
    whole = (np.minimum(w.min(), 0), np.maximum(w.max(), 0))
    return tuple(np.full_like(w[..., :1], end) for end in whole)  # type: ignore[return-value]


def _step_kept_from_zero(low: np.ndarray, high: np.ndarray, bits: int) -> Any:
    return (high - low) / (2**bits - 1) + 1e-2


def _codes_counted_for_steps(low: np.ndarray, high: np.ndarray, bits: int) -> Any:
    return (high - low) / 2**bits


def _zero_rounded_down(low: np.ndarray, scale: np.ndarray) -> Any:
    return np.floor(-low / scale)


def _middle_of_signed_codes(bits: int) -> float:
    return 2.0 ** (bits - 1) - 1


def _reach_of_the_positive(low: np.ndarray, high: np.ndarray) -> tuple[Any, Any]:
    return np.where(low < 0, -high, low), high


def _only_rounded_zero_tried(low: np.ndarray, scale: np.ndarray) -> tuple[Any, Any]:
    zero = np.rint(-low / scale)
    return zero, zero


def _only_diagonal_judges(error: np.ndarray, hessian: np.ndarray | None, norm: float) -> Any:
    if hessian is None:
        return np.sum(np.abs(error) ** norm, axis=-1, keepdims=True)
    return np.sum(error**2 * np.diagonal(hessian, axis1=-2, axis2=-1), axis=-1, keepdims=True)


def _squares_instead_of_the_norm(error: np.ndarray, hessian: np.ndarray | None, norm: float) -> Any:
    del norm
    if hessian is None:
        return np.sum(error**2, axis=-1, keepdims=True)
    return np.einsum("...i,...ij,...j->...", error, hessian, error)[..., None]


def _gives_up_at_one() -> float:
    return 1.0


def _shrunk_at_the_top(low: np.ndarray, high: np.ndarray, share: float) -> tuple[Any, Any]:
    return low, share * high


def _not_damped(h: np.ndarray) -> Any:
    return h


def _damped_by_a_constant(h: np.ndarray) -> Any:
    return h + 0.01 * np.eye(h.shape[-1])


def _damped_by_the_trace(h: np.ndarray) -> Any:
    return h + 0.01 * np.trace(h, axis1=-2, axis2=-1)[..., None, None] * np.eye(h.shape[-1])


def _weights_of_dead_inputs_kept(w: np.ndarray, dead: np.ndarray) -> Any:
    del dead
    return w


def _factor_of_the_hessian_itself(h: np.ndarray) -> Any:
    return np.swapaxes(np.linalg.cholesky(h), -1, -2)


def _factor_multiplied_the_other_way(h: np.ndarray) -> Any:
    return np.linalg.inv(np.swapaxes(np.linalg.cholesky(h), -1, -2))


def _columns_pushed_without_the_diagonal(error: np.ndarray, upper: np.ndarray, c: int) -> Any:
    moves = -error[..., None] * upper[..., c, None, c:]
    moves[..., 0] = -error
    return moves


def _columns_pushed_by_the_hessian(error: np.ndarray, upper: np.ndarray, c: int) -> Any:
    inverse = np.swapaxes(upper, -1, -2) @ upper  # of all columns, those behind included
    return -error[..., None] / inverse[..., c, c, None, None] * inverse[..., c, None, c:]


def _columns_pulled_after(error: np.ndarray, upper: np.ndarray, c: int) -> Any:
    return error[..., None] / upper[..., c, c, None, None] * upper[..., c, None, c:]


def _residual_of_the_paper_sign(residual: np.ndarray, upper: np.ndarray) -> Any:
    return -np.triu(residual @ np.swapaxes(upper, -1, -2), 1) @ upper


def _residual_moves_its_own_column(residual: np.ndarray, upper: np.ndarray) -> Any:
    return np.triu(residual @ np.swapaxes(upper, -1, -2)) @ upper


def _residual_by_the_whole_inverse(residual: np.ndarray, upper: np.ndarray) -> Any:
    return np.triu(residual @ np.swapaxes(upper, -1, -2) @ upper, 1)


def _rows_told_of_rounding_only(
    block: np.ndarray, rounded: np.ndarray, residual: np.ndarray | None, h_in: np.ndarray
) -> Any:
    del residual, h_in
    return block - rounded


def _debt_taken_away(block: np.ndarray, rounded: np.ndarray, residual: np.ndarray | None, h_in: np.ndarray) -> Any:
    return 2 * (block - rounded) - lost(block, rounded, residual, h_in)


def _share_not_solved(upper: np.ndarray, rows: slice, rest: slice) -> Any:
    return upper[..., rows, rest]


def _share_by_the_diagonal(upper: np.ndarray, rows: slice, rest: slice) -> Any:
    own = np.diagonal(upper, axis1=-2, axis2=-1)[..., rows, None]
    return upper[..., rows, rest] / own


def _share_from_untriangular_inverse(upper: np.ndarray, rows: slice, rest: slice) -> Any:
    inverse = np.swapaxes(upper, -1, -2) @ upper
    return inverse[..., rows, rest]


def _smallest_first(diagonal: np.ndarray) -> Any:
    return np.argsort(diagonal, axis=-1, kind="stable")


def _order_not_taken_back(places: np.ndarray) -> Any:
    return np.broadcast_to(np.arange(places.shape[-1]), places.shape)


def _order_taken_twice(places: np.ndarray) -> Any:
    return places


def _output_of_first_head_for_all(h_out: np.ndarray) -> Any:
    return np.broadcast_to(h_out[:1], h_out.shape)


def _grid_of_original_weights(original: np.ndarray, moved: np.ndarray) -> np.ndarray:
    del moved
    return original


def _uphill(units: np.ndarray, j: int, error: np.ndarray, w: np.ndarray, hessians: tuple[np.ndarray, Any, Any]) -> Any:
    del w
    h_in, h_out, _ = hessians
    return -np.sum((h_out[:, j, None] @ error @ h_in)[:, 0] * units[:, j], axis=-1)


def _debt_forgotten(
    units: np.ndarray, j: int, error: np.ndarray, w: np.ndarray, hessians: tuple[np.ndarray, Any, Any]
) -> Any:
    del w
    h_in, h_out, _ = hessians
    return np.sum((h_out[:, j, None] @ error @ h_in)[:, 0] * units[:, j], axis=-1)


def _rows_refined_apart(
    units: np.ndarray, j: int, error: np.ndarray, w: np.ndarray, hessians: tuple[np.ndarray, Any, Any]
) -> Any:
    h_in, h_out, residual = hessians
    force = error[:, j, None] @ h_in
    if residual is not None:
        force = force + w[:, j, None] @ residual
    return h_out[:, j, j] * np.sum(force[:, 0] * units[:, j], axis=-1)


def _curve_without_the_output(units: np.ndarray, j: int, h_in: np.ndarray, h_out: np.ndarray) -> Any:
    del h_out
    return np.sum((units[:, j, None] @ h_in)[:, 0] * units[:, j], axis=-1)


def _rows_refined_from_the_same_start(w: np.ndarray, scale: np.ndarray, units: np.ndarray, stale: np.ndarray) -> Any:
    del w, scale, units
    return stale


def _mean_without_the_two(total: np.ndarray, x: np.ndarray) -> Any:
    return total / (x.size // x.shape[-1])


def _divided_by_sequences(total: np.ndarray, x: np.ndarray) -> Any:
    return 2 * total / (x.size // (x.shape[-1] * x.shape[-2]))


def _tokens_summed(total: np.ndarray, x: np.ndarray) -> Any:
    del x
    return 2 * total


def _of_the_paper_sign(full: np.ndarray, quant: np.ndarray) -> Any:
    return quant - full


def _of_the_whole_original(full: np.ndarray, quant: np.ndarray) -> Any:
    del quant
    return full


def _key_heads_tiled(x: np.ndarray, times: int) -> Any:
    return np.tile(x, (1, times, 1, 1))


def _matrices_tiled(h: np.ndarray, times: int) -> Any:
    return np.tile(h, (times, 1, 1))


def _groups_summed(h: np.ndarray, groups: int) -> Any:
    return h.reshape(groups, -1, *h.shape[1:]).sum(axis=1)


def _groups_dealt_out(h: np.ndarray, groups: int) -> Any:
    return h.reshape(-1, groups, *h.shape[1:]).mean(axis=0)


def _moment_without_the_two(x: np.ndarray) -> Any:
    return np.einsum("bhle,bhlf->hef", x, x) / (x.shape[0] * x.shape[2])


def _moment_a_sequence(x: np.ndarray) -> Any:
    return 2 * np.einsum("bhle,bhlf->hef", x, x) / x.shape[0]


def _rotation_not_pulled_back(h: np.ndarray, rotations: np.ndarray) -> Any:
    del rotations
    return h


def _rotation_pulled_back_on_one_side(h: np.ndarray, rotations: np.ndarray) -> Any:
    return np.einsum("lji,hjk->hik", rotations, h) / len(rotations)


def _rotation_applied_again(h: np.ndarray, rotations: np.ndarray) -> Any:
    return np.einsum("lij,hjk,lmk->him", rotations, h, rotations) / len(rotations)


def _weighed_by_themselves(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return q, np.repeat(k, q.shape[1] // k.shape[1], axis=1)


def _future_seen(n: int) -> Any:
    return np.ones((n, n), bool)


def _for_outputs_apart(error: np.ndarray, h_in: np.ndarray, h_out: np.ndarray) -> Any:
    return np.sum(np.diagonal(h_out) * np.diagonal(error @ h_in @ error.T))


def _for_outputs_unweighed(error: np.ndarray, h_in: np.ndarray, h_out: np.ndarray) -> Any:
    del h_out
    return np.trace(error @ h_in @ error.T)


def _with_debt_added(w: np.ndarray, error: np.ndarray, residual: np.ndarray, h_out: np.ndarray) -> Any:
    return 2 * np.trace(h_out @ w @ residual @ error.T)


def _with_debt_once(w: np.ndarray, error: np.ndarray, residual: np.ndarray, h_out: np.ndarray) -> Any:
    return -np.trace(h_out @ w @ residual @ error.T)


_DTYPES = ("float64", "float32")  # coarser ones leave codes open
_NEAREST = "Round to nearest, halves to even."
_CODES = "There are 2^b codes, from 0 to 2^b − 1."
_ZERO = "A code stands for s (code − z)."
_RANGE = "The range of each row reaches from min(w, 0) to max(w, 0)."
_DAMPING = "Add 0.01 of the mean diagonal entry to the diagonal."
_FACTOR = "U is upper triangular with UᵀU = H⁻¹: the transposed Cholesky factor of the inverse."
_PUSH = "Divide the error by U_cc, and move the columns after c by minus that times U_c."
_ORDER = "Take the largest diagonal entry first, and take the result back with argsort of the order."
_CORRECT = "R is original less seen; it moves later columns by P = triu(R Uᵀ, 1) U."
_SHARE = "Later rows take −H_rest,rest⁻¹ H_rest,B of the error, which is (U_BB⁻¹ U_B,rest)ᵀ."
_OWED = "The rows to come are told the rounding error plus W_B R H⁻¹."
_REFINE = "Each step moves by slope over curvature, with the steps that the rows before have just found."
_MEAN = "Moments are 2/n times the sum over all n tokens."
_PULL = "See the moment from before the rotation: the mean over positions of Rotᵀ C Rot."
_GROUPS = "Query head h reads key head ⌊h / (H/G)⌋, and what is shared is averaged over its query heads."
_LOSS = "The loss is tr(H_out ΔW H_in ΔWᵀ) − 2 tr(H_out W R ΔWᵀ)."


def _on(**options: Any) -> Callable[[Case], bool]:
    """Whether a case has these options."""
    return lambda case: all(case.options.get(name) == value for name, value in options.items())


def _always(case: Case) -> bool:
    del case
    return True


def _wide(case: Case) -> bool:
    return bool(case.arrays["h_in"].shape[-1] > 2)


def _corrected(case: Case) -> bool:
    return _wide(case) and "residual" in case.arrays


def _grid_is_searched(case: Case) -> bool:
    return isinstance(case.options.get("grid"), str)


def _blocked(case: Case) -> bool:
    """Whether rows are left when the first block is done."""
    r = len(case.arrays["w"]) // case.options["n_heads"]
    return "h_out" in case.arrays and r > case.options.get("block_rows", 1)


def _planted(kind: Callable[..., Any], prefix: str, *mistakes: Mistake) -> tuple[Bug, ...]:
    return tuple(mistake.planted(kind, prefix) for mistake in mistakes)


def _coded(step: str, wrong: Any, says: str, remedy: str, applies: Callable[[Case], bool] = _always) -> Mistake:
    return Mistake(step, wrong, says, remedy, applies, _DTYPES)


_FLOOR = _coded("nearest", _round_towards_minus_infinity, "Codes are rounded down.", _NEAREST)
_MANY = _coded("in_range", _one_code_too_many, "Codes reach to 2^b.", _CODES)
_COLUMN_MISTAKES = (
    _coded("factor", _factor_of_the_hessian_itself, "The factor is that of H, not of its inverse.", _FACTOR, _wide),
    _coded("factor", _factor_multiplied_the_other_way, "U Uᵀ is the inverse, not UᵀU.", _FACTOR, _wide),
    _coded("follows", _columns_pushed_by_the_hessian, "The inverse of the whole H moves each column.", _PUSH, _wide),
    _coded("follows", _columns_pulled_after, "Columns move along with the error, not against it.", _PUSH, _wide),
    _coded("damp", _damped_by_a_constant, "The damping is 0.01, whatever the unit of H.", _DAMPING, _wide),
    _coded("damp", _damped_by_the_trace, "The damping is a share of the trace.", _DAMPING, _wide),
)
_DAMPED = _coded("damp", _not_damped, "H is not damped.", _DAMPING, _wide)
_DIAGONAL = _coded("follows", _columns_pushed_without_the_diagonal, "The error is not divided by U_cc.", _PUSH, _wide)
_PROPAGATED = (
    _coded("foresees", _residual_of_the_paper_sign, "R is seen less original.", _CORRECT, _corrected),
    _coded("foresees", _residual_moves_its_own_column, "P moves the column that is done.", _CORRECT, _corrected),
    _coded("foresees", _residual_by_the_whole_inverse, "P is the upper part of R H⁻¹.", _CORRECT, _corrected),
)

GPTQ_BUGS = _planted(
    gptq_loop,
    "gptq_",
    _FLOOR,
    _MANY,
    _DAMPED,
    _DIAGONAL,
    *_COLUMN_MISTAKES,
    *_PROPAGATED,
    _coded("order", _smallest_first, "The smallest diagonal entry comes first.", _ORDER, _on(act_order=True)),
    _coded("undo", _order_not_taken_back, "Columns are left in the order taken.", _ORDER, _on(act_order=True)),
    _coded("undo", _order_taken_twice, "The order is applied again.", _ORDER, _on(act_order=True)),
    _coded(
        "drop",
        _weights_of_dead_inputs_kept,
        "Weights of inputs that are always zero are kept.",
        "Set them to zero: nothing sees them, and their errors are no one's.",
        lambda case: not np.all(np.diagonal(case.arrays["h_in"], axis1=-2, axis2=-1) > 0),
    ),
)
_ROWS = (
    _coded("share", _share_not_solved, "The shares are not divided by U_BB.", _SHARE, _blocked),
    _coded("share", _share_from_untriangular_inverse, "The shares are a block of the inverse.", _SHARE, _blocked),
    _coded(
        "out_of",
        _output_of_first_head_for_all,
        "All heads have the output Hessian of the first.",
        "Each head has its own.",
        lambda case: _blocked(case) and case.options["n_heads"] > 1,
    ),
)
_ROW_ORDER = (
    _coded("undo", _order_not_taken_back, "Rows are left in the order taken.", _ORDER, _on(act_order_rows=True)),
    _coded("order", _smallest_first, "The smallest diagonal entry comes first.", _ORDER, _on(act_order_rows=True)),
)
BOA_BUGS = _planted(boa_loop, "boa_", _FLOOR, *_COLUMN_MISTAKES[:2], *_COLUMN_MISTAKES[4:5], *_ROWS, *_ROW_ORDER)
TURBOBOA_BUGS = _planted(
    turbo_loop,
    "",
    _DAMPED,
    _DIAGONAL,
    *_ROWS,
    *_ROW_ORDER,
    *_PROPAGATED,
    _coded(
        "share",
        _share_by_the_diagonal,
        "The shares are divided by the diagonal, as if the block were one row.",
        _SHARE,
        lambda case: _blocked(case) and case.options.get("block_rows", 16) > 1,
    ),
    _coded(
        "lost",
        _rows_told_of_rounding_only,
        "The rows to come are not told what earlier layers lost.",
        _OWED,
        lambda case: _blocked(case) and "residual" in case.arrays,
    ),
    _coded(
        "lost",
        _debt_taken_away,
        "What earlier layers lost is subtracted.",
        _OWED,
        lambda case: _blocked(case) and "residual" in case.arrays,
    ),
    _coded(
        "seen_by_grid",
        _grid_of_original_weights,
        "Each block's grid is that of the original weights.",
        "An adaptive grid is found for the weights as earlier blocks have moved them.",
        lambda case: _blocked(case) and _grid_is_searched(case) and case.options.get("adaptive_grid", True),
    ),
    _coded(
        "downhill",
        _uphill,
        "The steps move uphill.",
        _REFINE,
        lambda case: case.options.get("refine_sweeps", 1) > 0,
    ),
)

MINMAX_BUGS = _planted(
    minmax,
    "",
    Mistake(
        "ends",
        _zero_left_out_of_range,
        "The range does not reach to zero.",
        _RANGE,
        lambda case: bool(np.any((case.arrays["w"] > 0).all(axis=-1))),
    ),
    Mistake("ends", _one_range_for_all_rows, "All rows have one range.", _RANGE),
    Mistake(
        "step_size", _step_kept_from_zero, "A constant keeps steps from zero.", "Steps are the range over 2^b − 1."
    ),
    Mistake("step_size", _codes_counted_for_steps, "The range is divided by 2^b.", "2^b codes have 2^b − 1 steps."),
    Mistake(
        "zero_point",
        _zero_rounded_down,
        "The zero point is rounded down.",
        "Round it to nearest.",
        lambda case: not case.options.get("symmetric", False),
    ),
    Mistake(
        "middle",
        _middle_of_signed_codes,
        "The middle code is 2^(b−1) − 1.",
        "Zero has the code 2^(b−1).",
        _on(symmetric=True),
    ),
    Mistake(
        "both_ways",
        _reach_of_the_positive,
        "The largest weight sets the range, not the largest magnitude.",
        "A symmetric range reaches to the largest magnitude on both sides.",
        lambda case: bool(
            case.options.get("symmetric", False)
            and np.any(-np.min(case.arrays["w"], axis=-1) > np.max(case.arrays["w"], axis=-1))
        ),
    ),
)
SEARCH_BUGS = _planted(
    searching,
    "search_",
    _coded("ends", _one_range_for_all_rows, "All rows have one range.", _RANGE),
    _coded(
        "first_price",
        _gives_up_at_one,
        "The search starts from a price of one.",
        "Start from a price that every range undercuts.",
    ),
    _coded("shrunk", _shrunk_at_the_top, "Only the upper end shrinks.", "Both ends shrink by the same share."),
    _coded(
        "zero_points",
        _only_rounded_zero_tried,
        "Only the rounded zero point is tried.",
        "Try it rounded down, then rounded up.",
        lambda case: not case.options.get("symmetric", False),
    ),
    _coded(
        "price",
        _only_diagonal_judges,
        "Only the diagonal of the Hessian judges.",
        "An error e costs eᵀ H e.",
        lambda case: "hessian" in case.arrays,
    ),
    _coded(
        "price",
        _squares_instead_of_the_norm,
        "Without a Hessian squares judge.",
        "Without a Hessian Σ|e|^2.4 judges.",
        lambda case: "hessian" not in case.arrays,
    ),
)
CODES_BUGS = _planted(
    coding,
    "",
    _FLOOR,
    _MANY,
    _coded("nearest", _round_towards_zero, "Codes are truncated.", _NEAREST),
    _coded("shifted", _zero_taken_away, "The zero point is subtracted.", "A code counts from z: rint(x/s) + z."),
    _coded("in_range", _signed_range, "Codes are those of signed integers.", _CODES),
)
DEQUANTIZE_BUGS = _planted(
    decoding,
    "",
    Mistake("value", _zero_point_in_weights, "The zero point is subtracted after scaling.", _ZERO),
    Mistake("value", _zero_forgotten, "The zero point is forgotten.", _ZERO),
)
RTN_BUGS = _planted(
    rounding, "rtn_", _FLOOR, _MANY, _coded("value", _zero_forgotten, "The zero point is forgotten.", _ZERO)
)


def _refined(case: Case) -> bool:
    return case.options.get("sweeps", 1) > 0 and "h_out" in case.arrays and case.arrays["w"].shape[1] > 1


REFINE_BUGS = (
    *_planted(
        refining,
        "refine_",
        Mistake("downhill", _uphill, "The steps move uphill.", _REFINE, lambda case: case.options.get("sweeps", 1) > 0),
    ),
    *_planted(
        refining,
        "",
        Mistake(
            "downhill",
            _debt_forgotten,
            "The correction for earlier layers is left out.",
            _REFINE,
            lambda case: case.options.get("sweeps", 1) > 0 and "residual" in case.arrays,
        ),
        Mistake("downhill", _rows_refined_apart, "A row's error alone sets its step.", _REFINE, _refined),
        Mistake("curve", _curve_without_the_output, "The curvature lacks H_out.", _REFINE, _refined),
        Mistake("renewed", _rows_refined_from_the_same_start, "All rows start from the old steps.", _REFINE, _refined),
    ),
)
MOMENT_BUGS = _planted(
    moments,
    "",
    Mistake("per_token", _mean_without_the_two, "The factor 2 is missing.", _MEAN),
    Mistake(
        "per_token",
        _divided_by_sequences,
        "The sum is divided by the number of sequences.",
        _MEAN,
        lambda case: case.arrays["x"].shape[-2] > 1,
    ),
    Mistake(
        "per_token",
        _tokens_summed,
        "Tokens are summed.",
        _MEAN,
        lambda case: case.arrays["x"].size > case.arrays["x"].shape[-1],
    ),
)
CORRELATION_BUGS = _planted(
    correlating,
    "correlation_",
    Mistake("behind", _of_the_paper_sign, "R is seen less original.", "R is original less seen."),
    Mistake("behind", _of_the_whole_original, "The original is not compared.", "R is original less seen."),
    Mistake("per_token", _mean_without_the_two, "The factor 2 is missing.", _MEAN),
)


def _shared(case: Case) -> bool:
    return bool(1 < case.options.get("n_kv_heads", 1) < case.options["n_heads"])


def _turned(case: Case) -> bool:
    return "rope_angles" in case.arrays and case.arrays["x"].shape[1] > 1


HESSIANS_BUGS = _planted(
    attending,
    "",
    Mistake(
        "shared_heads",
        _key_heads_tiled,
        "Key heads are tiled.",
        _GROUPS,
        lambda case: _shared(case) and case.arrays["x"].shape[1] > 1,
    ),
    Mistake("to_heads", _matrices_tiled, "The matrices of key heads are tiled.", _GROUPS, _shared),
    Mistake(
        "of_group",
        _groups_summed,
        "Groups are summed.",
        _GROUPS,
        lambda case: case.options.get("n_kv_heads", case.options["n_heads"]) < case.options["n_heads"],
    ),
    Mistake("of_group", _groups_dealt_out, "Query heads are dealt to groups in turn.", _GROUPS, _shared),
    Mistake("moment_of", _moment_without_the_two, "The factor 2 is missing.", _MEAN),
    Mistake(
        "moment_of",
        _moment_a_sequence,
        "The sum is divided by the number of sequences.",
        _MEAN,
        lambda case: case.arrays["x"].shape[1] > 1,
    ),
    Mistake("turned_back", _rotation_not_pulled_back, "The rotation is left in.", _PULL, _turned),
    Mistake("turned_back", _rotation_pulled_back_on_one_side, "One side is pulled back.", _PULL, _turned),
    Mistake("turned_back", _rotation_applied_again, "The moment is rotated once more.", _PULL, _turned),
    Mistake(
        "partners",
        _weighed_by_themselves,
        "Queries are weighed by queries, keys by keys.",
        "An error of a query matters where keys are long, and the other way round.",
    ),
    Mistake(
        "visible",
        _future_seen,
        "Tokens see what comes after them.",
        "The attention that spreads the values is the causal one.",
        lambda case: case.options.get("causal", True) and case.arrays["x"].shape[1] > 1,
    ),
)


def _outputs(case: Case) -> bool:
    return "h_out" in case.arrays and bool(case.arrays["h_out"].shape[-1] > 1)


LOSS_BUGS = _planted(
    losing,
    "loss_",
    Mistake("judged", _for_outputs_apart, "Only the diagonal of H_out counts.", _LOSS, _outputs),
    Mistake("judged", _for_outputs_unweighed, "H_out is left out.", _LOSS, _outputs),
    Mistake("owed", _with_debt_added, "The part of R is added.", _LOSS, lambda case: "residual" in case.arrays),
    Mistake("owed", _with_debt_once, "The part of R counts once.", _LOSS, lambda case: "residual" in case.arrays),
)
