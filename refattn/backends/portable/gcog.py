"""gCOG's networks, image tokens and solver in the array-API standard, by another route than the reference.

Only what reaches the answer is computed: of a block whose last token alone is read, that token's queries only; of the
Perceiver's latents, all equal, one. Streams are never padded to one width: the embedding is cut in two instead. The
image's share of a recurrent step is computed once. The solver asks all nodes of all trees at once, then walks down the
tables of answers; so it can be traced, where the reference stops at the last node of the path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.backends.pointwise import gelu
from refattn.benchmarks.gcog_blocks import Classified

__all__ = [
    "cross_attention",
    "deep_single_stream",
    "dual_stream",
    "gru_classifier",
    "perceiver",
    "rnn_classifier",
    "rule_query_cross_attention",
    "single_stream",
    "solve_tokens",
    "stimulus_tokens",
]

EXIST, GO, GET_COLOR, GET_SHAPE, SUM_EVEN, PRODUCT_EVEN, PRODUCT_ODD, SUM_ODD = range(1, 9)


def dual_stream(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
    """Read both streams apart, and add what they end with."""
    R = _block(_embedded(rule, weights.rule), weights.rule, n_heads, positional, last_only=True)
    S = _block(_embedded(stimulus, weights.stimulus), weights.stimulus, n_heads, positional, last_only=True)
    f = _relu(_linear(R, weights.rule_map)) + _relu(_linear(S, weights.stimulus_map))
    f = _norm(_layers(_norm(f, weights.norm_in), weights.layers), weights.norm_out)[..., 0, :]
    return Classified(_log_softmax(_linear(f, weights.readout)), f)


def single_stream(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
    """Run one block over both streams, for its last token."""
    x = _joined(rule, stimulus, weights.block.embed)
    last = _block(x, weights.block, n_heads, positional, last_only=True)
    f = _norm(_layers(last, weights.layers), weights.norm_out)[..., 0, :]
    return Classified(_log_softmax(_linear(f, weights.readout)), f)


def deep_single_stream(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
    """Run several blocks over both streams, the last of them for its last token."""
    x = _joined(rule, stimulus, weights.embed)
    count = len(weights.blocks)
    for i, layer in enumerate(weights.blocks):
        x = _block(x, layer, n_heads, positional, last_only=i == count - 1, act=gelu)
    log_probs = _log_softmax(_linear(x[..., -1, :], weights.readout))
    return Classified(log_probs, log_probs + 0.0)


def cross_attention(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
    """Let a latent look at the rule, then at the stimulus."""
    R, S = _both(rule, stimulus, weights, n_heads, positional)
    z = _zero_latent(R, weights.readout)
    z = _norm(_attend(z, R, weights.rule_attention, n_heads), weights.norm)
    z = _norm(_attend(z, S, weights.stimulus_attention, n_heads) + z, weights.norm)
    hidden = z[..., 0, :]
    return Classified(_log_softmax(_linear(hidden, weights.readout)), hidden)


def perceiver(
    rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True, n_latents: int = 10
) -> Any:
    """Let one latent stand for all, which are equal: what it sees of the others is its own value."""
    del n_latents
    w = weights
    R, S = _both(rule, stimulus, w, n_heads, positional)
    z = _zero_latent(R, w.readout)
    for context, attention, norm, inner in (
        (R, w.rule_attention, w.rule_norm, w.rule_map),
        (S, w.stimulus_attention, w.stimulus_norm, w.stimulus_map),
    ):
        c = _norm(_attend(z, context, attention, n_heads), norm)
        z = _norm(_relu(_linear(c, inner)) + c + z, w.latent_norm)
        shared = _linear(_linear(z, w.latent_attention.value), w.latent_attention.output)
        z = _norm(shared + z, w.latent_norm)
    hidden = _relu(_linear(z, w.latent_map))[..., 0, :]
    return Classified(_log_softmax(_linear(hidden, w.readout)), hidden)


def rule_query_cross_attention(
    rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True
) -> Any:
    """Let the rule's last token look at the stimulus; the others reach no answer."""
    R = _block(_embedded(rule, weights.rule), weights.rule, n_heads, positional, last_only=True)
    S = _block(_embedded(stimulus, weights.stimulus), weights.stimulus, n_heads, positional)
    z = _norm(_attend(R, S, weights.attention, n_heads), weights.norm) + R
    f = _norm(_layers(z, weights.layers), weights.norm_out)[..., 0, :]
    return Classified(_log_softmax(_linear(f, weights.readout)), z[..., 0, :])


def rnn_classifier(rule: Any, stimulus: Any, weights: Any) -> Any:
    """Run an Elman network over the instruction."""
    inputs = _recurrent_inputs(rule, stimulus, weights.input)
    h = _relu(inputs[..., 0, :] + weights.hidden.bias)
    for t in range(1, inputs.shape[-2]):
        h = _relu(inputs[..., t, :] + _linear(h, weights.hidden))
    hidden = _norm(h, weights.norm)
    return Classified(_log_softmax(_linear(hidden, weights.readout)), hidden)


def gru_classifier(rule: Any, stimulus: Any, weights: Any) -> Any:
    """Run a gated recurrent network over the instruction; σ(x) is (1 + tanh(x/2))/2."""
    xp = array_namespace(rule, stimulus)
    inputs = _recurrent_inputs(rule, stimulus, weights.input)
    M = weights.hidden.weight.shape[0]
    h = xp.zeros_like(inputs[..., 0, :M])
    for t in range(inputs.shape[-2]):
        x, own = inputs[..., t, :], _linear(h, weights.hidden)
        gates = 0.5 + 0.5 * xp.tanh(0.5 * (x[..., : 2 * M] + own[..., : 2 * M]))
        new = xp.tanh(x[..., 2 * M :] + gates[..., :M] * own[..., 2 * M :])
        h = new + gates[..., M:] * (h - new)
    hidden = _norm(h, weights.norm)
    return Classified(_log_softmax(_linear(hidden, weights.readout)), hidden)


def stimulus_tokens(grid: Any, *, one_hot: bool = False, n_colors: int = 10, n_shapes: int = 26) -> Any:
    """Write images as tokens: numbers, or ones among zeros; the last row and column belong to the end token."""
    xp = array_namespace(grid)
    lead, cells = grid.shape[:-3], grid.shape[-2] ** 2
    x = xp.reshape(xp.astype(grid, xp.int64), (*lead, cells, 2))
    if one_hot:
        count = [xp.arange(1, n + 1, dtype=xp.int64, device=device(grid)) for n in (n_colors, n_shapes)]
        x = xp.astype(xp.concat([x[..., i : i + 1] == count[i] for i in range(2)], axis=-1), xp.int64)
    width = x.shape[-1]
    x = xp.concat([x, xp.zeros((*lead, cells, 1), dtype=xp.int64, device=device(grid))], axis=-1)
    row = xp.arange(width + 1, dtype=xp.int64, device=device(grid))
    end = xp.broadcast_to(xp.astype(row == width, xp.int64), (*lead, 1, width + 1))
    return xp.concat([x, end], axis=-2)


def solve_tokens(rules: Any, grid: Any, *, n_shapes: int = 26, n_colors: int = 10) -> Any:
    """Return the classes of all answers: every node's first, then those at the ends of the paths."""
    del n_colors  # classes of colours come last
    xp = array_namespace(rules, grid)
    rows = _node_rows(rules.shape[1])
    nodes = xp.stack([xp.astype(rules[:, row, :], xp.int64) for row in rows], axis=1)  # (B, n, 8)
    answers = _node_answers(nodes, xp.astype(grid, xp.int64), n_shapes)  # (B, n)
    index = xp.arange(len(rows), dtype=xp.int64, device=device(answers))
    at = xp.zeros_like(answers[:, :1])
    for _ in range(len(rows).bit_length() - 1):
        answer = xp.sum(xp.where(index == at, answers, xp.zeros_like(answers)), axis=1, keepdims=True)
        at = 2 * at + 1 + xp.astype(answer != 0, xp.int64)
    return xp.sum(xp.where(index == at, answers, xp.zeros_like(answers)), axis=1)


def _node_rows(n_tokens: int) -> list[int]:
    """Return the rows of operators, in heap order, with or without an end row."""
    rows, level = [0], 1
    while rows[-1] + 2 < n_tokens:
        rows += [2 * (2**level - 1) + j for j in range(2**level)]
        level += 1
    return rows


def _node_answers(nodes: Any, grid: Any, n_shapes: int) -> Any:
    """Return the class of every node's answer, (B, n)."""
    xp = array_namespace(nodes, grid)
    G = grid.shape[-2]
    cells = xp.reshape(grid, (grid.shape[0], 1, G * G, 2))  # (B, 1, G², 2)
    op = nodes[..., 0]
    first = _matches(cells, nodes[..., 1:3], op)  # (B, n, G²)
    second = _matches(cells, nodes[..., 4:6], op)
    cell, other = (xp.argmax(xp.astype(m, xp.int64), axis=-1) for m in (first, second))
    a, b = cell // G, cell % G
    both = nodes[..., 4] != 0
    total = a + b + xp.where(both, other // G + other % G, xp.zeros_like(a))
    odd_product = (a * b) % 2 * xp.where(both, (other // G) * (other % G) % 2, xp.ones_like(a))
    color, shape = (
        xp.sum(xp.where(_is_at(cell, G), cells[..., i], xp.zeros_like(cells[..., i])), axis=-1) for i in range(2)
    )
    base = 2 + G * G
    answers = 1 - xp.astype(xp.any(first, axis=-1), xp.int64)  # exist: 0 is True
    for token, value in (
        (GO, 2 + G * b + a),
        (GET_COLOR, base + n_shapes + color - 1),
        (GET_SHAPE, base + shape - 1),
        (SUM_EVEN, total % 2),
        (SUM_ODD, 1 - total % 2),
        (PRODUCT_EVEN, odd_product),
        (PRODUCT_ODD, 1 - odd_product),
    ):
        answers = xp.where(op == token, value, answers)
    return answers


def _matches(cells: Any, selector: Any, op: Any) -> Any:
    """Return which cells have the shape and the colour that a node looks at."""
    shapes = cells[..., 1] == selector[..., 0][..., None]
    colors = cells[..., 0] == selector[..., 1][..., None]
    op = op[..., None]
    return (shapes | (op == GET_SHAPE)) & (colors | (op == GET_COLOR))


def _is_at(cell: Any, G: int) -> Any:
    xp = array_namespace(cell)
    return xp.arange(G * G, dtype=xp.int64, device=device(cell)) == cell[..., None]


def _linear(x: Any, w: Any) -> Any:
    return x @ w.weight + w.bias


def _relu(x: Any) -> Any:
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def _norm(x: Any, w: Any) -> Any:
    xp = array_namespace(x)
    x = x - xp.mean(x, axis=-1, keepdims=True)
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * w.weight + w.bias


def _log_softmax(x: Any) -> Any:
    xp = array_namespace(x)
    x = x - xp.max(x, axis=-1, keepdims=True)
    return x - xp.log(xp.sum(xp.exp(x), axis=-1, keepdims=True))


def _layers(x: Any, layers: Any) -> Any:
    for layer in layers:
        x = _relu(_linear(x, layer))
    return x


def _embedded(x: Any, weights: Any) -> Any:
    return _linear(x, weights.embed)


def _joined(rule: Any, stimulus: Any, embed: Any) -> Any:
    """Return the embedded sequence: each stream through its own rows of the embedding."""
    xp = array_namespace(rule, stimulus)
    own = rule.shape[-1]
    top, bottom = rule @ embed.weight[:own, :], stimulus @ embed.weight[own:, :]
    return xp.concat([top, bottom], axis=-2) + embed.bias


def _sinusoids(n: int, width: int) -> np.ndarray:
    """Return the table of positions: in each channel one sine, cosines being sines a quarter turn ahead."""
    channel = np.arange(width)
    rate = np.exp(-np.log(10000.0) * (channel - channel % 2) / width)
    return np.asarray(np.sin(np.arange(n)[:, None] * rate + np.pi / 2 * (channel % 2)))


def _block(e: Any, w: Any, n_heads: int, positional: bool, *, last_only: bool = False, act: Any = _relu) -> Any:
    """Run a block over embedded tokens; for the last token only, its row alone."""
    xp = array_namespace(e)
    relative = w.relative is not None
    if positional and not relative:
        e = e + xp.asarray(_sinusoids(*e.shape[-2:]), dtype=e.dtype, device=device(e))
    x = e[..., -1:, :] if last_only else e
    y = _norm(_attend(x, e, w.attention, n_heads, w.relative) + x, w.norm0)
    return _norm(act(_linear(act(_linear(y, w.mlp0)), w.mlp1)) + y, w.norm1)


def _attend(x: Any, context: Any, w: Any, n_heads: int, relative: Any = None) -> Any:
    """Attend with heads as an axis; with distances, the queries are the last tokens of the context."""
    xp = array_namespace(x, context)
    q, k = _split(_linear(x, w.query), n_heads), _split(_linear(context, w.key), n_heads)
    v = _split(_linear(context, w.value), n_heads)  # (..., H, m, d)
    scores = q @ xp.matrix_transpose(k)  # (..., H, n, m)
    if relative is not None:
        n, m = scores.shape[-2:]
        own = np.arange(m - n, m)
        by_distance = q @ xp.matrix_transpose(relative[relative.shape[0] - m :, :])  # column m − 1 is distance 0
        shifted = [by_distance[..., i, m - 1 - int(own[i]) :] for i in range(n)]
        gaps = [scores[..., i, int(own[i]) + 1 :] * 0.0 - xp.inf for i in range(n)]
        rows = [xp.concat(pair, axis=-1) for pair in zip(shifted, gaps, strict=True)]
        scores = scores + xp.stack(rows, axis=-2)
    scores = scores / q.shape[-1] ** 0.5
    e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    out = (e @ v) / xp.sum(e, axis=-1, keepdims=True)
    out = xp.moveaxis(out, -3, -2)  # (..., n, H, d)
    out = xp.reshape(out, (*out.shape[:-2], out.shape[-2] * out.shape[-1]))
    return out if w.output is None else _linear(out, w.output)


def _split(x: Any, n_heads: int) -> Any:
    xp = array_namespace(x)
    return xp.moveaxis(xp.reshape(x, (*x.shape[:-1], n_heads, x.shape[-1] // n_heads)), -2, -3)


def _both(rule: Any, stimulus: Any, w: Any, n_heads: int, positional: bool) -> tuple[Any, Any]:
    R = _block(_embedded(rule, w.rule), w.rule, n_heads, positional)
    return R, _block(_embedded(stimulus, w.stimulus), w.stimulus, n_heads, positional)


def _zero_latent(R: Any, readout: Any) -> Any:
    xp = array_namespace(R)
    return xp.zeros((*R.shape[:-2], 1, readout.weight.shape[0]), dtype=R.dtype, device=device(R))


def _recurrent_inputs(rule: Any, stimulus: Any, w: Any) -> Any:
    """Return what each step receives, (..., n, columns): the token's share and the image's."""
    xp = array_namespace(rule, stimulus)
    own = rule.shape[-1]
    flat = xp.reshape(stimulus, (*stimulus.shape[:-2], 1, stimulus.shape[-2] * stimulus.shape[-1]))
    return rule @ w.weight[:own, :] + (flat @ w.weight[own:, :] + w.bias)
