"""Mistakes that people make with contexts, gates and transport, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.context_aware.plain import (
    attending,
    balancing,
    columns,
    crossing,
    fusing,
    gating,
    kernel,
    logistic,
    normalised,
    pooling,
    rows,
    smoothing,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "ATTENTION_BUGS",
    "CROSS_BUGS",
    "FUSE_BUGS",
    "GATED_BUGS",
    "KERNEL_BUGS",
    "POOL_BUGS",
    "SINKHORN_BUGS",
    "SMOOTH_BUGS",
]


def _filled(name: str, axis: int = -2, least: int = 2) -> Callable[[Case], bool]:
    """Whether the array of this name is not empty and has so many entries along an axis."""
    return lambda case: bool(case.arrays[name].size and case.arrays[name].shape[axis] >= least)


_several = _filled("x")


def _with_context(case: Case) -> bool:
    return _several(case) and "context" in case.arrays


def _with_heads(case: Case) -> bool:
    return _several(case) and 1 < case.options["n_heads"] < case.arrays["x"].shape[-1]


def _padded(case: Case) -> bool:
    return "mask" in case.arrays and bool(case.arrays["mask"].size) and not case.arrays["mask"].all()


def token_for_context(t: np.ndarray, c: np.ndarray, lam: np.ndarray) -> Any:
    """Return the mixture."""
    return lam * t + (1 - lam) * c


def context_added(t: np.ndarray, c: np.ndarray, lam: np.ndarray) -> Any:
    """Return the mixture."""
    return t + lam * c


def gate_shared(gate_q: np.ndarray, _gate_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gates of queries and keys."""
    return gate_q, gate_q


def deaf_to_context(t: np.ndarray, _c: np.ndarray, v_h: np.ndarray, _v_c: np.ndarray, bias: np.ndarray) -> Any:
    """Return the gate."""
    return logistic(t @ v_h + bias)[..., None]


def unbiased(t: np.ndarray, c: np.ndarray, v_h: np.ndarray, v_c: np.ndarray, _bias: np.ndarray) -> Any:
    """Return the gate."""
    return logistic(t @ v_h + c @ v_c)[..., None]


def values_mixed_too(v: np.ndarray, c: np.ndarray, lam: np.ndarray) -> Any:
    """Return the values."""
    return (1 - lam) * v + lam * c


def root_of_whole_width(width: int, _head: int) -> float:
    """Return what multiplies the scores."""
    return float(width**-0.5)


def heads_interleaved(t: np.ndarray, n_heads: int) -> Any:
    """Return the heads, (..., H, N, d)."""
    return np.moveaxis(t.reshape(*t.shape[:-1], t.shape[-1] // n_heads, n_heads), -1, -3)


def padding_seen(s: np.ndarray, seen: np.ndarray) -> Any:
    """Return the weights."""
    return normalised(s, np.ones_like(seen))


def past_only(s: np.ndarray, seen: np.ndarray) -> Any:
    """Return the weights."""
    return normalised(s, seen & np.tri(s.shape[-1], dtype=bool))


_MIX = "The gate λ is the share of the context, and 1 − λ that of the token."
_ATTENTION = (
    Mistake("mix", token_for_context, "An open gate lets in the token, not the context.", _MIX, _with_context),
    Mistake("mix", context_added, "The context is added to the whole token.", _MIX, _with_context),
    Mistake(
        "gates", gate_shared, "Keys use the gate of the queries.", "Queries and keys have a gate each.", _with_context
    ),
    Mistake(
        "gate",
        deaf_to_context,
        "The gate reads the token alone.",
        "The gate reads the token and the projected context.",
        _with_context,
    ),
    Mistake("gate", unbiased, "The gate's bias is left out.", "Add the bias before the sigmoid.", _with_context),
    Mistake(
        "values", values_mixed_too, "Values are mixed with the context.", "Values stay as they are.", _with_context
    ),
    Mistake(
        "scale",
        root_of_whole_width,
        "Scores are divided by √D.",
        "Divide by the root of a head's width.",
        lambda case: _several(case) and case.options["n_heads"] > 1,
    ),
    Mistake(
        "split",
        heads_interleaved,
        "Head h takes the channels h, h + H, h + 2H, ….",
        "Head h takes d neighbouring channels.",
        _with_heads,
    ),
    Mistake("weigh", padding_seen, "Padded keys are seen.", "Leave padded keys out of the softmax.", _padded),
    Mistake("weigh", past_only, "Later keys are hidden.", "Every token sees all real tokens.", _several),
)
ATTENTION_BUGS = tuple(mistake.planted(attending) for mistake in _ATTENTION)


def padding_counted(x: np.ndarray, real: np.ndarray) -> Any:
    """Return the mean, (..., 1, D)."""
    return np.einsum("...nd,...n->...d", x, real)[..., None, :] / x.shape[-2]


def first_token(x: np.ndarray, _real: np.ndarray) -> Any:
    """Return the mean, (..., 1, D)."""
    return x[..., :1, :]


def highest_first(means: list[np.ndarray]) -> Any:
    """Return the means of all layers, side by side."""
    return np.concatenate(means[::-1], axis=-1)


def _layers(least: int) -> Callable[[Case], bool]:
    return lambda case: len(case.arrays["layers"]) >= least and bool(case.arrays["layers"][0].size)


POOL_BUGS = tuple(
    mistake.planted(pooling)
    for mistake in (
        Mistake(
            "mean",
            padding_counted,
            "The sum of the real tokens is divided by all.",
            "Divide by the number of real tokens.",
            _padded,
        ),
        Mistake(
            "mean",
            first_token,
            "The first token stands for the sequence.",
            "Take the mean of the real tokens.",
            lambda case: _layers(1)(case) and case.arrays["layers"][0].shape[-2] > 1,
        ),
        Mistake(
            "gather",
            highest_first,
            "The highest layer comes first.",
            "Go from the lowest layer to the highest.",
            _layers(2),
        ),
    )
)


def reads_added(read_q: np.ndarray, read_k: np.ndarray) -> Any:
    """Return what the gate is computed from."""
    return read_q + read_k


def gates_compete(z: np.ndarray) -> Any:
    """Return the two gates of each token."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gates_exchanged(q: np.ndarray, k: np.ndarray, M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return queries and keys, turned down."""
    return q * M[..., 1:], k * M[..., :1]


def queries_only(q: np.ndarray, k: np.ndarray, M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return queries and keys, turned down."""
    return q * M[..., :1], k


GATED_BUGS = tuple(
    mistake.planted(gating)
    for mistake in (
        Mistake(
            "meet",
            reads_added,
            "What is read of query and key is added.",
            "Multiply them, entry by entry.",
            _filled("q"),
        ),
        Mistake(
            "squash",
            gates_compete,
            "A softmax makes the two gates sum to one.",
            "Each gate is a sigmoid of its own.",
            _filled("q"),
        ),
        Mistake(
            "turn_down",
            gates_exchanged,
            "The first gate turns down the key.",
            "The first gate belongs to the query, the second to the key.",
            _filled("q"),
        ),
        Mistake("turn_down", queries_only, "Keys are not turned down.", "Both are.", _filled("q")),
    )
)


def columns_first(P: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """Return the plan after one step."""
    return rows(columns(P, b), a)


def rows_only(P: np.ndarray, a: np.ndarray, _b: np.ndarray) -> Any:
    """Return the plan after one step."""
    return rows(P, a)


def far_is_heavy(cost: np.ndarray, reg: float) -> Any:
    """Return the kernel."""
    return np.exp(cost / reg)


def multiplied_by_eps(cost: np.ndarray, reg: float) -> Any:
    """Return the kernel."""
    return np.exp(-cost * reg)


def one_step_too_few(max_iter: int) -> int:
    """Return how many steps there are."""
    return max_iter - 1


_STEP = "A step makes the rows right, then the columns."


def _balanced(case: Case) -> bool:
    return bool(min(case.arrays["cost"].shape[-2:]) >= 2)


SINKHORN_BUGS = tuple(
    mistake.planted(balancing)
    for mistake in (
        Mistake("step", columns_first, "Columns are made right before rows.", _STEP, _balanced),
        Mistake("step", rows_only, "Columns are never made right.", _STEP, _balanced),
        Mistake("kernel_of", far_is_heavy, "Far pairs are heavy.", "The kernel is exp(−C/ε).", _balanced),
        Mistake("kernel_of", multiplied_by_eps, "ε multiplies the cost.", "ε divides it.", _balanced),
        Mistake(
            "count",
            one_step_too_few,
            "There is a step too few.",
            "Make `max_iter` steps.",
            lambda case: _balanced(case) and case.options["max_iter"] <= 3,
        ),
    )
)


def not_squared(x: np.ndarray, y: np.ndarray) -> Any:
    """Return the cost of each pair."""
    return np.sqrt(np.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, axis=-1))


def largest_of_all_problems(cost: np.ndarray, normalize: str | None) -> Any:
    """Return the cost, normalised."""
    if normalize is None or not cost.size:
        return cost
    return cost / (cost.max() if normalize == "max" else np.median(cost))


def masses_forgotten(P: np.ndarray, y: np.ndarray) -> Any:
    """Return where each source token goes."""
    return P @ y


def no_budget(P: np.ndarray, a: np.ndarray, _b: np.ndarray) -> Any:
    """Return the plan after one step."""
    return rows(P, a)


def _crosses(case: Case) -> bool:
    return bool(case.arrays["source"].size) and min(case.arrays[s].shape[-2] for s in ("source", "target")) >= 2


CROSS_BUGS = tuple(
    mistake.planted(crossing)
    for mistake in (
        Mistake("distance", not_squared, "The cost is the distance itself.", "Square the distance.", _crosses),
        Mistake(
            "unit",
            largest_of_all_problems,
            "One divisor serves the whole batch.",
            "Each problem has its own largest cost.",
            lambda case: _crosses(case) and len(case.arrays["source"]) >= 2 and "normalize" not in case.options,
        ),
        Mistake(
            "carry",
            masses_forgotten,
            "The mixture is not divided by the mass of its row.",
            "Divide by Σ_j P_ij.",
            lambda case: bool(case.arrays["source"].size) and case.arrays["source"].shape[-2] >= 2,
        ),
        Mistake(
            "step",
            no_budget,
            "This is plain cross-attention: nothing keeps the targets to their budget.",
            "After the rows, make the columns right.",
            _crosses,
        ),
    )
)


def references_first(P: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """Return the plan after one step."""
    return rows(columns(P, b), a)


def padding_gives_too(p: int, real: np.ndarray) -> Any:
    """Return how much each token gives."""
    return p * np.ones_like(real) / real.sum(axis=-1, keepdims=True)


_SHARE = "A real token gives p over the number of real tokens, a padded one nothing."
KERNEL_BUGS = tuple(
    mistake.planted(kernel)
    for mistake in (
        Mistake(
            "step",
            references_first,
            "The last update is that of u.",
            "Update u, then v: the references end up full.",
            lambda case: _several(case) and case.arrays["reference"].shape[1] >= 2 and case.options["n_iter"] <= 3,
        ),
        Mistake("share", padding_gives_too, "Padded tokens give as much as real ones.", _SHARE, _padded),
    )
)


def no_squashing(f: np.ndarray, W: np.ndarray, b: np.ndarray, w: np.ndarray) -> Any:
    """Return the score of each part."""
    return (f @ W + b) @ w


def each_by_itself(s: np.ndarray) -> Any:
    """Return the weights of the parts."""
    return logistic(s)


def _parts(least: int) -> Callable[[Case], bool]:
    return lambda case: len(case.arrays["parts"]) >= least and bool(case.arrays["parts"][0].size)


FUSE_BUGS = tuple(
    mistake.planted(fusing)
    for mistake in (
        Mistake("score", no_squashing, "The tanh is left out.", "The score is wᵀ tanh(W f + b).", _parts(2)),
        Mistake("shares", each_by_itself, "Weights do not sum to one.", "Take the softmax over the parts.", _parts(1)),
    )
)


def over_other_classes(onehot: np.ndarray, alpha: float) -> Any:
    """Return the targets."""
    return (1 - alpha) * onehot + alpha * (1 - onehot) / (onehot.shape[-1] - 1)


def alpha_on_top(onehot: np.ndarray, alpha: float) -> Any:
    """Return the targets."""
    return onehot + alpha / onehot.shape[-1]


def summed_up(losses: np.ndarray) -> Any:
    """Return the loss of the batch."""
    return losses.sum()


def _smooth(case: Case) -> bool:
    return bool(case.options.get("alpha", 0.1) > 0)


SMOOTH_BUGS = tuple(
    mistake.planted(smoothing)
    for mistake in (
        Mistake(
            "soften",
            over_other_classes,
            "α is spread over the other classes only (THUMT's convention).",
            "Spread α over all K classes.",
            lambda case: bool(case.options.get("alpha", 0.1) >= 0.5),
        ),
        Mistake("soften", alpha_on_top, "The targets sum to 1 + α.", "The label keeps (1 − α) of its mass.", _smooth),
        Mistake(
            "average",
            summed_up,
            "Losses are summed.",
            "Take the mean over samples.",
            lambda case: case.arrays["logits"].shape[0] >= 2,
        ),
    )
)
