"""Mistakes that people make with object-level attention, each one step of a plain implementation exchanged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.oat.plain import (
    average,
    clock,
    compared,
    encoding,
    forwarding,
    looking_up,
    losing,
    object_token,
    pointing,
    surprise,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["ENCODE_BUGS", "FORWARD_BUGS", "LOOK_UP_BUGS", "LOSS_BUGS", "POINT_BUGS"]


def tells_objects_the_time(n: int, E: int) -> Any:
    """Return what is added to the tokens of objects."""
    return clock(n, E)


def scanpath_without_time(T: int, E: int) -> Any:
    """Return what is added to the tokens of the scanpath."""
    return np.zeros((T, E))


def sines_then_cosines(T: int, E: int) -> Any:
    """Tell the time in sines and cosines."""
    angle = np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(E // 2) / E)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def sees_one_step_ahead(T: int) -> Any:
    """Return which steps see which."""
    return np.arange(T)[:, None] + 1 >= np.arange(T)


def looks_at_padding(pad_mask: np.ndarray) -> Any:
    """Return the steps that may be looked at."""
    return np.ones_like(pad_mask)


def looks_at_nothing_else(pad_mask: np.ndarray) -> Any:
    """Return the steps that may be looked at."""
    return pad_mask


def position_first(appearance: np.ndarray, position: np.ndarray) -> Any:
    """Put appearance and position of a token side by side."""
    return object_token(position, appearance)


def stays_with_the_path(x: np.ndarray, _memory: np.ndarray) -> Any:
    """Return what a step looks at besides the path."""
    return x


def normalises_first(x: np.ndarray, y: np.ndarray, norm: Callable[[Any], Any]) -> Any:
    """Join a token and what it found."""
    return x + norm(y)


def forgets_the_token(_x: np.ndarray, y: np.ndarray, norm: Callable[[Any], Any]) -> Any:
    """Join a token and what it found."""
    return norm(y)


def divides_by_root_of_whole_width(scores: np.ndarray, _d: int, E: int) -> Any:
    """Divide the scores of a head."""
    return scores / math.sqrt(E)


def heads_take_turns(E: int, H: int) -> Any:
    """Return the channels of each head, (H, E/H)."""
    return np.arange(E).reshape(E // H, H).T


def earlier_tokens_only(T: int, n: int) -> Any:
    """Return which objects see which."""
    return np.arange(T)[:, None] >= np.arange(n)


def keeps_negative(x: np.ndarray) -> Any:
    """Apply the non-linearity."""
    return x


def sample_deviation(x: np.ndarray) -> Any:
    """Return the standard deviation of each token."""
    return np.sqrt(np.var(x, axis=-1, keepdims=True, ddof=1) + 1e-5)


def one_map_for_both(d: np.ndarray, e: np.ndarray, head: Any) -> Any:
    """Compare each step with each object."""
    return compared(d, e, head._replace(w_dec=head.w_enc, b_dec=head.b_enc))


def biases_left_out(d: np.ndarray, e: np.ndarray, head: Any) -> Any:
    """Compare each step with each object."""
    return np.einsum("...tc,...ic->...ti", d @ head.w_dec, e @ head.w_enc)


def divides_by_d_k(a: np.ndarray, d_k: float) -> Any:
    """Divide the scores."""
    return a / d_k


def scores_as_they_are(a: np.ndarray, _d_k: float) -> Any:
    """Divide the scores."""
    return a


def averages_heads(a: np.ndarray, _w: np.ndarray, b: np.ndarray) -> Any:
    """Combine the heads."""
    return a.mean(axis=0) + b if len(a) > 1 else a[0]


def reads_out_one_head(a: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
    """Combine the heads."""
    return np.einsum("m...,m->...", a, w) + b


def normalises_over_objects(a: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
    """Combine the heads."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    a = e / e.sum(axis=-1, keepdims=True)
    return np.einsum("m...,m->...", a, w) + b if len(a) > 1 else a[0]


def padding_without_bias(_a: np.ndarray, _b: np.ndarray) -> Any:
    """Return the score of padding."""
    return 0.0


def column_before_row(row: np.ndarray, col: np.ndarray, flag: np.ndarray) -> Any:
    """Put the parts of a place side by side."""
    return np.concatenate([col, row, flag], axis=-1)


def one_part_for_row_and_column(row: np.ndarray, col: np.ndarray, flag: np.ndarray) -> Any:
    """Put the parts of a place side by side."""
    return np.concatenate([row + col, row + col, flag], axis=-1)


def target_unmarked(row: np.ndarray, col: np.ndarray, flag: np.ndarray) -> Any:
    """Put the parts of a place side by side."""
    return np.concatenate([row, col, np.zeros_like(flag)], axis=-1)


def last_row_for_special_tokens(table: np.ndarray, index: np.ndarray) -> Any:
    """Fetch rows of the table."""
    return table[np.minimum(index, len(table) - 1)]


def keeps_the_end(wide: np.ndarray, dim: int) -> Any:
    """Cut the vector."""
    return wide[..., wide.shape[-1] - dim :]


def counts_padding(targets: np.ndarray, _pad_index: int) -> Any:
    """Return which steps count."""
    return np.ones_like(targets, dtype=bool)


def divides_by_all_steps(losses: np.ndarray, kept: np.ndarray) -> Any:
    """Average over the steps."""
    return (losses * kept).mean()


def sums_up(losses: np.ndarray, kept: np.ndarray) -> Any:
    """Average over the steps."""
    return (losses * kept).sum()


def averages_paths(losses: np.ndarray, kept: np.ndarray) -> Any:
    """Average over the steps."""
    return np.mean([average(loss, keep) for loss, keep in zip(losses, kept, strict=True)])


def each_column_on_its_own(logits: np.ndarray, target: np.ndarray) -> Any:
    """Return the surprise at each step."""
    return np.log1p(np.exp(-np.take_along_axis(logits, target[..., None], axis=-1)[..., 0]))


def counts_in_bits(logits: np.ndarray, target: np.ndarray) -> Any:
    """Return the surprise at each step."""
    return surprise(logits, target) / math.log(2)


def _runs(case: Case) -> bool:
    return bool(case.arrays["src_appearance"].shape[0])


def _long(case: Case) -> bool:
    return _runs(case) and case.arrays["tgt_appearance"].shape[-2] > 1


def _masked(case: Case) -> bool:
    return _long(case) and "tgt_pad_mask" in case.arrays


_POST = "Add what was found to the token, then normalise the sum: LN(x + y)."

FORWARD_BUGS = tuple(
    mistake.planted(forwarding)
    for mistake in (
        Mistake(
            "object_clock",
            tells_objects_the_time,
            "Objects get the time step of their index.",
            "Objects have no order: only the scanpath has time.",
            _runs,
        ),
        Mistake(
            "clock",
            scanpath_without_time,
            "The scanpath gets no time.",
            "Add the sinusoid of the step to each token of the scanpath.",
            _runs,
        ),
        Mistake(
            "clock",
            sines_then_cosines,
            "Sines stand in the first half, cosines in the second.",
            "Sine and cosine take turns.",
            lambda case: _runs(case) and case.arrays["src_appearance"].shape[-1] > 1,
        ),
        Mistake(
            "visible",
            sees_one_step_ahead,
            "A step sees the next fixation.",
            "Step t sees steps up to t: the next fixation is what it has to tell.",
            lambda case: _long(case) and "tgt_pad_mask" not in case.arrays,
        ),
        Mistake("attended", looks_at_padding, "Padding is looked at.", "Hide padded keys.", _masked),
        Mistake(
            "attended",
            looks_at_nothing_else,
            "The mask is taken for the steps to look at.",
            "True in the mask means padding.",
            _masked,
        ),
        Mistake(
            "scanpath_token",
            position_first,
            "In the scanpath position comes first.",
            "Objects and scanpath share one order: appearance, then position.",
            _runs,
        ),
        Mistake(
            "context",
            stays_with_the_path,
            "The second attention looks at the path again.",
            "Cross-attention takes keys and values from the encoded objects.",
            _runs,
        ),
    )
)


def _encodes(case: Case) -> bool:
    return bool(case.arrays["tokens"].size and case.arrays["layers"])


def _company(case: Case) -> bool:
    return _encodes(case) and case.arrays["tokens"].shape[-2] > 1


def _heads(case: Case) -> bool:
    return _company(case) and case.options["n_heads"] > 1


ENCODE_BUGS = tuple(
    mistake.planted(encoding)
    for mistake in (
        Mistake("add", normalises_first, "Only what was found is normalised.", _POST, _encodes),
        Mistake("add", forgets_the_token, "The token itself is left out.", _POST, _encodes),
        Mistake(
            "temper",
            divides_by_root_of_whole_width,
            "Scores are divided by √E.",
            "A head has E/H channels: divide by √(E/H).",
            _heads,
        ),
        Mistake(
            "channels",
            heads_take_turns,
            "Channels are dealt out to the heads in turn.",
            "Head h owns the h-th block of channels.",
            lambda case: _heads(case) and case.arrays["tokens"].shape[-1] > case.options["n_heads"],
        ),
        Mistake(
            "scene",
            earlier_tokens_only,
            "Objects see earlier objects only.",
            "A scene has no order: every object sees every other.",
            _company,
        ),
        Mistake(
            "rectify", keeps_negative, "There is no ReLU.", "Drop what is negative between the two maps.", _encodes
        ),
        Mistake(
            "spread",
            sample_deviation,
            "The variance is divided by E − 1.",
            "A layer norm divides by E.",
            _encodes,
        ),
    )
)


def _points(case: Case) -> bool:
    return bool(case.arrays["encoder_out"].size and case.arrays["decoder_out"].size)


def _several(case: Case) -> bool:
    return _points(case) and len(case.arrays["heads"]) > 1


_READ_OUT = "Several heads are combined by learnt weights and a bias; one head is the logit itself."

POINT_BUGS = tuple(
    mistake.planted(pointing)
    for mistake in (
        Mistake(
            "compared",
            one_map_for_both,
            "Steps go through the map of the objects.",
            "A head has one map for steps and another for objects.",
            _points,
        ),
        Mistake("compared", biases_left_out, "The biases of the maps are left out.", "Both maps have a bias.", _points),
        Mistake("shrunk", divides_by_d_k, "Scores are divided by d_k.", "Divide by √d_k.", _points),
        Mistake("shrunk", scores_as_they_are, "Scores are not divided.", "Divide by √d_k.", _points),
        Mistake("read_out", averages_heads, "Heads are averaged.", _READ_OUT, _several),
        Mistake(
            "read_out",
            reads_out_one_head,
            "A single head is read out too.",
            _READ_OUT,
            lambda case: _points(case) and len(case.arrays["heads"]) == 1,
        ),
        Mistake(
            "read_out",
            normalises_over_objects,
            "Each head goes through a softmax.",
            "The scores are the output; the only softmax is that of the loss.",
            _points,
        ),
        Mistake(
            "padding",
            padding_without_bias,
            "Padding scores 0 after the read-out.",
            "Padding scores 0 in each head; the read-out adds its bias.",
            _several,
        ),
    )
)


def _looks_up(case: Case) -> bool:
    return bool(case.arrays["coords"].size and case.arrays["table"].ndim == 2)


def _unlike(case: Case, *axes: int) -> bool:
    """Whether the chosen coordinates lead to different rows."""
    if not _looks_up(case):
        return False
    rows = np.concatenate([case.arrays["table"], np.zeros((4, case.arrays["table"].shape[1]))])
    width = min(case.options["dim"], rows.shape[1])
    first, second = (rows[case.arrays["coords"][..., axis]][..., :width] for axis in axes)
    return bool(np.abs(first - second).max() > 0.1)


def _below(case: Case) -> bool:
    if not _looks_up(case) or case.options["dim"] < case.arrays["table"].shape[1]:
        return False
    outside = case.arrays["coords"][..., 0] >= len(case.arrays["table"])
    return bool(outside.any() and np.abs(case.arrays["table"][-1]).max() > 0.1)


def _whole(case: Case) -> bool:
    return _looks_up(case) and case.options["dim"] == 3 * case.arrays["table"].shape[1]


LOOK_UP_BUGS = tuple(
    mistake.planted(looking_up)
    for mistake in (
        Mistake(
            "place",
            column_before_row,
            "The column comes first.",
            "Row, column, flag.",
            lambda case: _unlike(case, 0, 1),
        ),
        Mistake(
            "place",
            one_part_for_row_and_column,
            "Row and column are added.",
            "Row and column have parts of their own, side by side.",
            lambda case: _whole(case) and _unlike(case, 0, 1),
        ),
        Mistake("place", target_unmarked, "The flag is left out.", "The third part is the flag's row.", _whole),
        Mistake(
            "rows_of",
            last_row_for_special_tokens,
            "Special tokens get the last row.",
            "Below the table stand rows of zeros.",
            _below,
        ),
        Mistake(
            "cut",
            keeps_the_end,
            "The last numbers are kept.",
            "Keep the first numbers: what is cut belongs to the flag.",
            lambda case: _looks_up(case) and not _whole(case) and _unlike(case, 0, 1),
        ),
    )
)


def _padded(case: Case) -> bool:
    return bool((case.arrays["targets"] == case.options["pad_index"]).any())


_MEAN = "Divide the sum over all steps that are not padding by their number."

LOSS_BUGS = tuple(
    mistake.planted(losing)
    for mistake in (
        Mistake("counts", counts_padding, "Padding counts.", "Leave padded steps out.", _padded),
        Mistake("average", divides_by_all_steps, "The sum is divided by all steps.", _MEAN, _padded),
        Mistake(
            "average", sums_up, "The losses are added up.", _MEAN, lambda case: np.size(case.arrays["targets"]) > 1
        ),
        Mistake(
            "average",
            averages_paths,
            "Each path is averaged, then the paths.",
            _MEAN,
            lambda case: len(case.arrays["targets"]) > 1 and _padded(case),
        ),
        Mistake(
            "surprise",
            each_column_on_its_own,
            "Every column has a sigmoid of its own.",
            "One softmax over all columns: one object is looked at.",
        ),
        Mistake("surprise", counts_in_bits, "The logarithm has base 2.", "The loss is in nats."),
    )
)
