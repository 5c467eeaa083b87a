"""Mistakes that people make with gCOG, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from refattn.conformance.contract import Mistake
from refattn.contracts.gcog.plain import cross, deep, dual, gru, latents, query, relu, rnn, single, solver, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CROSS_BUGS",
    "DEEP_BUGS",
    "DUAL_BUGS",
    "GRU_BUGS",
    "PERCEIVER_BUGS",
    "QUERY_BUGS",
    "RNN_BUGS",
    "SINGLE_BUGS",
    "SOLVER_BUGS",
    "TOKEN_BUGS",
]

FINE = ("float64", "float32")
NOT_BFLOAT16 = (*FINE, "float16")


def scores_over_whole_width(E: int, n_heads: int) -> float:
    """Return the number whose root divides the scores."""
    del n_heads
    return E


def positions_from_one(n: int, width: int) -> Any:
    """Return what is added to each token."""
    c = np.arange(width)
    angle = np.arange(1, n + 1)[:, None] / 10000.0 ** ((c - c % 2) / width)
    return np.where(c % 2 == 0, np.sin(angle), np.cos(angle))


def sines_then_cosines(n: int, width: int) -> Any:
    """Return what is added to each token."""
    half = (width + 1) // 2
    angle = np.arange(n)[:, None] / 10000.0 ** (2 * np.arange(half) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)[:, :width]


def causal_where_open(n: int, m: int) -> Any:
    """Return which tokens see which."""
    return np.arange(m) <= np.arange(n)[:, None] + m - n


def end_token_unseen(n: int, m: int) -> Any:
    """Return which tokens see which."""
    return np.broadcast_to((np.arange(m) < m - 1) | (m == 1), (n, m))


def variance_of_a_sample(x: np.ndarray) -> Any:
    """Bring rows to mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).sum(-1, keepdims=True) / (x.shape[-1] - 1) + 1e-5)


def no_residual(attended: np.ndarray, e: np.ndarray) -> Any:
    """Return what the first norm of a block gets."""
    del e
    return attended


def first_token_read(x: np.ndarray) -> Any:
    """Return the token that is read."""
    return x[..., 0, :]


def mean_token_read(x: np.ndarray) -> Any:
    """Return the token that is read."""
    return x.mean(axis=-2)


def left_unnormalised(logits: np.ndarray) -> Any:
    """Return log-probabilities."""
    return logits - logits.max(-1, keepdims=True)


def added_before_relu(r: np.ndarray, s: np.ndarray) -> Any:
    """Join what both streams say."""
    return relu(r + s)


def distance_from_front(m: int, gap: np.ndarray) -> Any:
    """Return the row of the table for each distance."""
    del m
    return gap


def stimulus_before_rule(rule: np.ndarray, stimulus: np.ndarray) -> Any:
    """Return one sequence of both streams."""
    (B, n, f), m = rule.shape, stimulus.shape[1]
    out = np.zeros((B, n + m, f + stimulus.shape[2]))
    out[:, m:, :f], out[:, :m, f:] = rule, stimulus
    return out


def features_share_columns(rule: np.ndarray, stimulus: np.ndarray) -> Any:
    """Return one sequence of both streams."""
    (B, n, f), (_, m, k) = rule.shape, stimulus.shape
    out = np.zeros((B, n + m, f + k))
    out[:, :n, :f], out[:, n:, :k] = rule, stimulus
    return out


def positions_once(i: int) -> bool:
    """Whether block i adds positions."""
    return i == 0


def outer_map_not_activated(
    x: np.ndarray, inner: Callable[..., Any], outer: Callable[..., Any], act: Callable[..., Any]
) -> Any:
    """Return the MLP of a block."""
    return outer(act(inner(x)))


def relu_for_gelu(x: np.ndarray, inner: Callable[..., Any], outer: Callable[..., Any], act: Callable[..., Any]) -> Any:
    """Return the MLP of a block."""
    del act
    return relu(outer(relu(inner(x))))


def stimulus_first(R: np.ndarray, S: np.ndarray) -> Any:
    """Return what a latent looks at, in order."""
    return S, R


def latent_forgets(attended: np.ndarray, z: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the latent after a look."""
    del z
    return norm(attended)


def sum_not_normed(attended: np.ndarray, z: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the latent after a look."""
    return norm(attended) + z


def latents_begin_apart(count: int, M: int) -> Any:
    """Return the latents at the start."""
    return np.cos(np.arange(count)[:, None] + np.arange(M))


def look_not_kept(c: np.ndarray, z: np.ndarray, inner: Callable[..., Any], norm: Callable[..., Any]) -> Any:
    """Return the latents after a look, its MLP included."""
    return norm(relu(inner(c)) + z)


def sum_normed_instead(attended: np.ndarray, R: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the rule's tokens after their look."""
    return norm(attended + R)


def rule_forgotten(attended: np.ndarray, R: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the rule's tokens after their look."""
    del R
    return norm(attended)


def tanh_for_relu(x: np.ndarray, h: np.ndarray) -> Any:
    """Return the next state."""
    return np.tanh(x + h)


def relu_before_recurrence(x: np.ndarray, h: np.ndarray) -> Any:
    """Return the next state."""
    return relu(x) + h


def image_first_in_a_step(token: np.ndarray, image: np.ndarray, t: int) -> Any:
    """Return what step t gets."""
    del t
    return np.concatenate([image, token], -1)


def image_seen_once(token: np.ndarray, image: np.ndarray, t: int) -> Any:
    """Return what step t gets."""
    return np.concatenate([token, image * (t == 0)], -1)


def gates_exchanged(x: np.ndarray, h: np.ndarray, state: np.ndarray, U: np.ndarray, c: np.ndarray) -> Any:
    """Return the next state; x and h hold the shares of r, z and n."""
    del U, c
    (xz, xr, xn), (hz, hr, hn) = np.split(x, 3, -1), np.split(h, 3, -1)
    r, z = expit(xr + hr), expit(xz + hz)
    return (1 - z) * np.tanh(xn + r * hn) + z * state


def update_turned_round(x: np.ndarray, h: np.ndarray, state: np.ndarray, U: np.ndarray, c: np.ndarray) -> Any:
    """Return the next state; x and h hold the shares of r, z and n."""
    del U, c
    (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, -1), np.split(h, 3, -1)
    r, z = expit(xr + hr), expit(xz + hz)
    return z * np.tanh(xn + r * hn) + (1 - z) * state


def reset_before_map(x: np.ndarray, h: np.ndarray, state: np.ndarray, U: np.ndarray, c: np.ndarray) -> Any:
    """Return the next state; x and h hold the shares of r, z and n."""
    (xr, xz, xn), (hr, hz, _) = np.split(x, 3, -1), np.split(h, 3, -1)
    r, z = expit(xr + hr), expit(xz + hz)
    M = state.shape[-1]
    return (1 - z) * np.tanh(xn + (r * state) @ U[:, 2 * M :] + c[2 * M :]) + z * state


def false_goes_left(i: int, answer: bool) -> int:
    """Return the next node."""
    return 2 * i + 2 if answer else 2 * i + 1


def placeholders_read(c: int, s: int, op: int, color: int, shape: int) -> bool:
    """Whether an object (c, s) is one that a node looks for."""
    del op
    return c == color and s == shape


def get_operators_exchanged(c: int, s: int, op: int, color: int, shape: int) -> bool:
    """Whether an object (c, s) is one that a node looks for."""
    return (c == color or op == 4) and (s == shape or op == 3)


def last_of_several(cells: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the cell that counts."""
    return cells[-1]


def second_object_ignored(cells: list[tuple[int, int]]) -> list[int]:
    """Return the numbers that are added or multiplied."""
    return list(cells[0])


def counted_from_one(cells: list[tuple[int, int]]) -> list[int]:
    """Return the numbers that are added or multiplied."""
    return [x + 1 for cell in cells for x in cell]


def second_coordinate_only(cells: list[tuple[int, int]]) -> list[int]:
    """Return the numbers that are added or multiplied."""
    return [b for _, b in cells]


def product_added(op: int, numbers: list[int]) -> bool:
    """Return the answer of a sum or product."""
    return sum(numbers) % 2 == (1 if op in (7, 8) else 0)


def odd_is_even(op: int, numbers: list[int]) -> bool:
    """Return the answer of a sum or product."""
    value = int(np.prod(numbers)) if op in (6, 7) else sum(numbers)
    return value % 2 == 0


def cell_class_untransposed(a: int, b: int, G: int) -> int:
    """Return the class of a cell."""
    return 2 + G * a + b


def colors_before_shapes(color: int, G: int, n_shapes: int) -> int:
    """Return the class of a colour."""
    del n_shapes
    return 2 + G**2 + color - 1


def shape_class_from_one(shape: int, G: int, n_colors: int) -> int:
    """Return the class of a shape."""
    del n_colors
    return 2 + G**2 + shape


def columns_first(grid: np.ndarray) -> Any:
    """Return the cells as a list."""
    B, G, _, k = grid.shape
    return np.swapaxes(grid, 1, 2).reshape(B, G * G, k)


def hot_from_zero(values: np.ndarray, n: int) -> Any:
    """Return a one among n places."""
    return np.eye(n + 1, dtype=np.int64)[values][..., :-1]


def end_token_first(cells: np.ndarray) -> Any:
    """Add the end token."""
    out = np.zeros((len(cells), cells.shape[1] + 1, cells.shape[2] + 1), np.int64)
    out[:, 1:, :-1], out[:, 0, -1] = cells, 1
    return out


def empty_cells_marked(cells: np.ndarray) -> Any:
    """Add the end token."""
    out = np.zeros((len(cells), cells.shape[1] + 1, cells.shape[2] + 1), np.int64)
    out[:, :-1, :-1], out[..., -1] = cells, 1
    return out


def shape_before_color(color: np.ndarray, shape: np.ndarray) -> Any:
    """Put the features of a cell side by side."""
    return np.concatenate([shape, color], -1)


UNNORMALISED = Mistake(
    "log_probs", left_unnormalised, "the largest logit is taken off, the logarithm of the sum is not", "Take off both."
)
FROM_ONE = Mistake("positions", positions_from_one, "positions count from one", "The first token has position 0.")
CAUSAL = Mistake("visible", causal_where_open, "tokens see earlier ones only", "There is no mask: all see all.")
FIRST = Mistake("read", first_token_read, "the first token is read", "Read the last: the end token.")
MEAN = Mistake("read", mean_token_read, "the mean of all tokens is read", "Read the last token alone.")
STIMULUS_FIRST = Mistake(
    "looked_at", stimulus_first, "the latent looks at the stimulus first", "It must know the rule before it looks."
)
IMAGE_FIRST = Mistake(
    "step_input", image_first_in_a_step, "a step gets the image before the token", "The token comes first."
)
IMAGE_ONCE = Mistake(
    "step_input", image_seen_once, "the image is seen at the first step only", "It is in view at every step."
)

DUAL_BUGS = tuple(
    mistake.planted(dual)
    for mistake in (
        UNNORMALISED,
        FROM_ONE,
        FIRST,
        Mistake("visible", end_token_unseen, "no token looks at the end token", "There is no mask: all see all."),
        Mistake(
            "width_for_scale",
            scores_over_whole_width,
            "scores are divided by the root of the whole width",
            "Divide by the root of a head's width.",
            lambda case: case.options.get("n_heads", 1) > 1,
            NOT_BFLOAT16,
        ),
        Mistake("positions", sines_then_cosines, "all sines come first, then all cosines", "They take turns."),
        Mistake("standard", variance_of_a_sample, "the variance is divided by D − 1", "Divide by D.", dtypes=FINE),
        Mistake("residual", no_residual, "the attention has no residual", "Add the embedding before the norm."),
        Mistake("merged", added_before_relu, "streams are added before they are rectified", "First rectify each."),
        Mistake(
            "distance_row",
            distance_from_front,
            "the table of distances begins with distance 0",
            "Its last row is distance 0.",
            lambda case: case.arrays["weights"].rule.relative is not None,
            NOT_BFLOAT16,
        ),
    )
)
SINGLE_BUGS = tuple(
    mistake.planted(single, "single_")
    for mistake in (
        UNNORMALISED,
        MEAN,
        Mistake("sequence", stimulus_before_rule, "the stimulus comes before the rule", "The rule comes first."),
        Mistake(
            "sequence",
            features_share_columns,
            "features of the stimulus take the columns of the rule's",
            "Each stream has columns of its own.",
        ),
    )
)
DEEP_BUGS = tuple(
    mistake.planted(deep, "deep_")
    for mistake in (
        UNNORMALISED,
        Mistake(
            "block_has_positions",
            positions_once,
            "positions are added before the first block only",
            "Every block adds them.",
        ),
        Mistake(
            "activated", outer_map_not_activated, "the MLP's second map is not activated", "GELU follows both maps."
        ),
        Mistake("activated", relu_for_gelu, "the MLP has relu", "The deep network has GELU.", dtypes=FINE),
    )
)
CROSS_BUGS = tuple(
    mistake.planted(cross, "cross_")
    for mistake in (
        UNNORMALISED,
        CAUSAL,
        STIMULUS_FIRST,
        Mistake("latent_after", latent_forgets, "the latent forgets what it was", "Add the look to the latent."),
        Mistake("latent_after", sum_not_normed, "the look is normed, then added", "Add, then norm."),
    )
)
PERCEIVER_BUGS = tuple(
    mistake.planted(latents, "perceiver_")
    for mistake in (
        UNNORMALISED,
        STIMULUS_FIRST,
        Mistake("first_latents", latents_begin_apart, "latents begin as different vectors", "They begin as zeros."),
        Mistake("digested", look_not_kept, "the MLP replaces the look", "The MLP is added to it."),
    )
)
QUERY_BUGS = tuple(
    mistake.planted(query, "query_")
    for mistake in (
        UNNORMALISED,
        CAUSAL,
        Mistake("answered", sum_normed_instead, "the rule is added before the norm", "Norm the look, then add."),
        Mistake(
            "answered", rule_forgotten, "the rule is not added to the look", "There is a residual, after the norm."
        ),
    )
)
RNN_BUGS = tuple(
    mistake.planted(rnn, "rnn_")
    for mistake in (
        UNNORMALISED,
        IMAGE_FIRST,
        IMAGE_ONCE,
        Mistake("elman", tanh_for_relu, "the state is squashed by tanh", "It is rectified."),
        Mistake("elman", relu_before_recurrence, "only the input is rectified", "Rectify the sum."),
    )
)
GRU_BUGS = tuple(
    mistake.planted(gru, "gru_")
    for mistake in (
        UNNORMALISED,
        IMAGE_ONCE,
        Mistake("gated", gates_exchanged, "the update gate's columns come first", "The order is r, z, n."),
        Mistake("gated", update_turned_round, "the update gate keeps what it should replace", "z keeps the old state."),
        Mistake(
            "gated",
            reset_before_map,
            "the reset gate multiplies the state before its map",
            "It multiplies the mapped state, bias included.",
        ),
    )
)
SOLVER_BUGS = tuple(
    mistake.planted(solver, "solver_")
    for mistake in (
        Mistake("child", false_goes_left, "False goes left", "True goes to 2i + 1, False to 2i + 2."),
        Mistake(
            "matches",
            placeholders_read,
            "get-operators compare the placeholder too",
            "getcolor ignores the colour field, getshape the shape field.",
        ),
        Mistake(
            "matches",
            get_operators_exchanged,
            "getcolor looks for the colour, getshape for the shape",
            "getcolor looks for the shape and returns the colour.",
        ),
        Mistake(
            "chosen", last_of_several, "the last of several matches counts", "The first in the order of rows does."
        ),
        Mistake("coordinates", second_object_ignored, "only the first object counts", "All coordinates count."),
        Mistake("coordinates", counted_from_one, "coordinates count from one", "They count from zero."),
        Mistake("coordinates", second_coordinate_only, "only columns count", "Both coordinates of a cell count."),
        Mistake("truth", product_added, "products are sums", "Multiply."),
        Mistake("truth", odd_is_even, "odd is asked as even", "sumodd and productodd ask for an odd number."),
        Mistake("cell_class", cell_class_untransposed, "a cell's class is its token's index", "2 + G·b + a."),
        Mistake("color_class", colors_before_shapes, "classes of colours come before shapes", "Shapes come first."),
        Mistake("shape_class", shape_class_from_one, "classes of shapes begin one late", "Shapes count from 1."),
    )
)
TOKEN_BUGS = tuple(
    mistake.planted(tokens, "tokens_")
    for mistake in (
        Mistake("in_order", columns_first, "cells are listed column by column", "Cell (a, b) is row G·a + b."),
        Mistake(
            "hot",
            hot_from_zero,
            "the first place of the one-hot form means empty",
            "Colours count from 1; an empty cell is all zeros.",
            lambda case: bool(case.options.get("one_hot")),
        ),
        Mistake("ended", end_token_first, "the end token comes first", "It comes last."),
        Mistake("ended", empty_cells_marked, "every token is marked as the end", "Only the last one is."),
        Mistake("paired", shape_before_color, "the shape comes before the colour", "In images the colour is first."),
    )
)
