"""gCOG's entries once more, straight from the definitions, in steps that can be exchanged.

Without changes, ``dual()``, ``solver()`` and so on compute what the references compute. R and S are the streams behind
their blocks, z is a latent or what became of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import erf, expit

from refattn.benchmarks.gcog_blocks import Classified

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cross", "deep", "dual", "gru", "latents", "query", "rnn", "single", "solver", "standard", "tokens"]


def standard(x: np.ndarray) -> Any:
    """Bring rows to mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def positions(n: int, width: int) -> Any:
    """Return what is added to each token."""
    c = np.arange(width)
    angle = np.arange(n)[:, None] / 10000.0 ** ((c - c % 2) / width)
    return np.where(c % 2 == 0, np.sin(angle), np.cos(angle))


def width_for_scale(E: int, n_heads: int) -> float:
    """Return the number whose root divides the scores."""
    return E / n_heads


def visible(n: int, m: int) -> Any:
    """Return which tokens see which."""
    return np.ones((n, m), bool)


def distance_row(m: int, gap: np.ndarray) -> Any:
    """Return the row of the table for each distance."""
    return m - 1 - gap


def residual(attended: np.ndarray, e: np.ndarray) -> Any:
    """Return what the first norm of a block gets."""
    return attended + e


def relu(x: np.ndarray) -> Any:
    """Return what is positive."""
    return np.where(x > 0, x, 0.0)


def gelu(x: np.ndarray) -> Any:
    """Return x Φ(x)."""
    return x * (1 + erf(x / np.sqrt(2))) / 2


def activated(x: np.ndarray, inner: Callable[..., Any], outer: Callable[..., Any], act: Callable[..., Any]) -> Any:
    """Return the MLP of a block."""
    return act(outer(act(inner(x))))


def block_has_positions(i: int) -> bool:
    """Whether block i adds positions."""
    return i >= 0


def read(x: np.ndarray) -> Any:
    """Return the token that is read."""
    return x[..., -1, :]


def sequence(rule: np.ndarray, stimulus: np.ndarray) -> Any:
    """Return one sequence of both streams."""
    B, n, f = rule.shape
    out = np.zeros((B, n + stimulus.shape[1], f + stimulus.shape[2]))
    out[:, :n, :f], out[:, n:, f:] = rule, stimulus
    return out


def log_probs(logits: np.ndarray) -> Any:
    """Return log-probabilities."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def merged(r: np.ndarray, s: np.ndarray) -> Any:
    """Join what both streams say."""
    return relu(r) + relu(s)


def looked_at(R: np.ndarray, S: np.ndarray) -> Any:
    """Return what a latent looks at, in order."""
    return R, S


def latent_after(attended: np.ndarray, z: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the latent after a look."""
    return norm(attended + z)


def first_latents(count: int, M: int) -> Any:
    """Return the latents at the start."""
    return np.zeros((count, M))


def digested(c: np.ndarray, z: np.ndarray, inner: Callable[..., Any], norm: Callable[..., Any]) -> Any:
    """Return the latents after a look, its MLP included."""
    return norm(relu(inner(c)) + c + z)


def answered(attended: np.ndarray, R: np.ndarray, norm: Callable[..., Any]) -> Any:
    """Return the rule's tokens after their look."""
    return norm(attended) + R


def elman(x: np.ndarray, h: np.ndarray) -> Any:
    """Return the next state."""
    return relu(x + h)


def gated(x: np.ndarray, h: np.ndarray, state: np.ndarray, U: np.ndarray, c: np.ndarray) -> Any:
    """Return the next state; x and h hold the shares of r, z and n."""
    del U, c
    (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, -1), np.split(h, 3, -1)
    r, z = expit(xr + hr), expit(xz + hz)
    return (1 - z) * np.tanh(xn + r * hn) + z * state


def step_input(token: np.ndarray, image: np.ndarray, t: int) -> Any:
    """Return what step t gets."""
    del t
    return np.concatenate([token, image], -1)


class Steps(NamedTuple):
    """The steps of the networks that a planted bug may replace."""

    standard: Callable[..., Any] = standard
    positions: Callable[..., Any] = positions
    width_for_scale: Callable[..., Any] = width_for_scale
    visible: Callable[..., Any] = visible
    distance_row: Callable[..., Any] = distance_row
    residual: Callable[..., Any] = residual
    activated: Callable[..., Any] = activated
    block_has_positions: Callable[..., Any] = block_has_positions
    read: Callable[..., Any] = read
    sequence: Callable[..., Any] = sequence
    log_probs: Callable[..., Any] = log_probs
    merged: Callable[..., Any] = merged
    looked_at: Callable[..., Any] = looked_at
    latent_after: Callable[..., Any] = latent_after
    first_latents: Callable[..., Any] = first_latents
    digested: Callable[..., Any] = digested
    answered: Callable[..., Any] = answered
    elman: Callable[..., Any] = elman
    gated: Callable[..., Any] = gated
    step_input: Callable[..., Any] = step_input

    def norm(self, x: np.ndarray, w: Any) -> Any:
        """Return a layer norm."""
        return self.standard(x) * w.weight + w.bias

    def attend(self, x: np.ndarray, y: np.ndarray, w: Any, n_heads: int, table: Any = None) -> Any:
        """Return attention, one head of one batch element at a time."""
        q, k, v = linear(x, w.query), linear(y, w.key), linear(y, w.value)
        (B, n, E), m = q.shape, y.shape[1]
        d, out = E // n_heads, np.zeros(q.shape)
        seen = self.visible(n, m) if table is None else np.tri(n, dtype=bool)
        for i in range(B):
            for own in (slice(h * d, h * d + d) for h in range(n_heads)):
                scores = q[i, :, own] @ k[i, :, own].T
                if table is not None:
                    gap = np.arange(n)[:, None] - np.arange(n)
                    rows = table[np.clip(self.distance_row(len(table), gap), 0, len(table) - 1)]
                    scores = scores + np.sum(q[i, :, None, own] * rows, -1)
                scores = np.where(seen, scores / np.sqrt(self.width_for_scale(E, n_heads)), -np.inf)
                p = np.exp(scores - scores.max(-1, keepdims=True))
                out[i, :, own] = p / p.sum(-1, keepdims=True) @ v[i, :, own]
        return out if w.output is None else linear(out, w.output)

    def block(self, e: np.ndarray, w: Any, n_heads: int, positional: bool, act: Callable[..., Any] = relu) -> Any:
        """Return a block, of tokens that are embedded already."""
        e = e + self.positions(*e.shape[1:]) if positional and w.relative is None else e
        y = self.norm(self.residual(self.attend(e, e, w.attention, n_heads, w.relative), e), w.norm0)
        inner, outer = (lambda x: linear(x, w.mlp0)), (lambda x: linear(x, w.mlp1))
        return self.norm(self.activated(y, inner, outer, act) + y, w.norm1)

    def blocks(self, rule: np.ndarray, stimulus: np.ndarray, w: Any, n_heads: int, positional: bool) -> Any:
        """Return both streams behind their blocks."""
        streams = (rule, w.rule), (stimulus, w.stimulus)
        return (self.block(linear(x, own.embed), own, n_heads, positional) for x, own in streams)

    def classified(self, hidden: np.ndarray, readout: Any) -> Classified:
        """Return what a network returns."""
        return Classified(self.log_probs(linear(hidden, readout)), hidden)


def linear(x: np.ndarray, w: Any) -> Any:
    """Return x W + b."""
    return x @ w.weight + w.bias


def chain(x: np.ndarray, layers: Any) -> Any:
    """Return what relu layers make of x."""
    for layer in layers:
        x = relu(linear(x, layer))
    return x


def dual(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the dual-stream network with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
        w = weights
        R, S = s.blocks(rule, stimulus, w, n_heads, positional)
        f = s.norm(s.merged(linear(s.read(R), w.rule_map), linear(s.read(S), w.stimulus_map)), w.norm_in)
        return s.classified(s.norm(chain(f, w.layers), w.norm_out), w.readout)

    return wrong


def single(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the single-stream network with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
        x = linear(s.sequence(rule, stimulus), weights.block.embed)
        f = chain(s.read(s.block(x, weights.block, n_heads, positional)), weights.layers)
        return s.classified(s.norm(f, weights.norm_out), weights.readout)

    return wrong


def deep(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the deep network with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
        x = linear(s.sequence(rule, stimulus), weights.embed)
        for i, w in enumerate(weights.blocks):
            x = s.block(x, w, n_heads, positional and s.block_has_positions(i), gelu)
        found = s.log_probs(linear(s.read(x), weights.readout))
        return Classified(found, found.copy())

    return wrong


def cross(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the network with one latent with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
        w = weights
        R, S = s.blocks(rule, stimulus, w, n_heads, positional)
        z = np.zeros((len(rule), 1, len(w.readout.weight)))
        for context, look in zip(s.looked_at(R, S), (w.rule_attention, w.stimulus_attention), strict=True):
            z = s.latent_after(s.attend(z, context, look, n_heads), z, lambda x: s.norm(x, w.norm))
        return s.classified(s.read(z), w.readout)

    return wrong


def latents(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the Perceiver with these steps exchanged."""
    s = Steps(**changes)

    def wrong(
        rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True, n_latents: int = 10
    ) -> Any:
        w = weights
        R, S = s.looked_at(*s.blocks(rule, stimulus, w, n_heads, positional))
        z = np.zeros((len(rule), 1, 1)) + s.first_latents(n_latents, len(w.readout.weight))
        looks = (R, w.rule_attention, w.rule_norm, w.rule_map)
        for context, look, own, inner in (looks, (S, w.stimulus_attention, w.stimulus_norm, w.stimulus_map)):
            c = s.norm(s.attend(z, context, look, n_heads), own)
            z = s.digested(c, z, lambda x, inner=inner: linear(x, inner), lambda x: s.norm(x, w.latent_norm))
            z = s.norm(s.attend(z, z, w.latent_attention, n_heads) + z, w.latent_norm)
        return s.classified(relu(linear(s.read(z), w.latent_map)), w.readout)

    return wrong


def query(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the network whose rule asks the stimulus with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any, *, n_heads: int = 1, positional: bool = True) -> Any:
        w = weights
        R, S = s.blocks(rule, stimulus, w, n_heads, positional)
        z = s.read(s.answered(s.attend(R, S, w.attention, n_heads), R, lambda x: s.norm(x, w.norm)))
        f = s.norm(chain(z, w.layers), w.norm_out)
        return Classified(s.log_probs(linear(f, w.readout)), z)

    return wrong


def rnn(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the Elman network with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any) -> Any:
        h = np.zeros((len(rule), len(weights.hidden.weight)))
        for t in range(rule.shape[1]):
            x = s.step_input(rule[:, t], stimulus.reshape(len(rule), stimulus.shape[1] * stimulus.shape[2]), t)
            h = s.elman(linear(x, weights.input), linear(h, weights.hidden))
        return s.classified(s.norm(h, weights.norm), weights.readout)

    return wrong


def gru(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gated network with these steps exchanged."""
    s = Steps(**changes)

    def wrong(rule: Any, stimulus: Any, weights: Any) -> Any:
        w, h = weights, np.zeros((len(rule), len(weights.hidden.weight)))
        for t in range(rule.shape[1]):
            x = s.step_input(rule[:, t], stimulus.reshape(len(rule), stimulus.shape[1] * stimulus.shape[2]), t)
            h = s.gated(linear(x, w.input), linear(h, w.hidden), h, w.hidden.weight, w.hidden.bias)
        return s.classified(s.norm(h, w.norm), w.readout)

    return wrong


def child(i: int, answer: bool) -> int:
    """Return the next node."""
    return 2 * i + 1 if answer else 2 * i + 2


def matches(c: int, s: int, op: int, color: int, shape: int) -> bool:
    """Whether an object (c, s) is one that a node looks for."""
    return (c == color or op == 3) and (s == shape or op == 4)


def chosen(cells: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the cell that counts."""
    return cells[0]


def coordinates(cells: list[tuple[int, int]]) -> list[int]:
    """Return the numbers that are added or multiplied."""
    return [x for cell in cells for x in cell]


def truth(op: int, numbers: list[int]) -> bool:
    """Return the answer of a sum or product."""
    value = int(np.prod(numbers)) if op in (6, 7) else sum(numbers)
    return value % 2 == (1 if op in (7, 8) else 0)


def cell_class(a: int, b: int, G: int) -> int:
    """Return the class of a cell."""
    return 2 + G * b + a


def color_class(color: int, G: int, n_shapes: int) -> int:
    """Return the class of a colour."""
    return 2 + G**2 + n_shapes + color - 1


def shape_class(shape: int, G: int, n_colors: int) -> int:
    """Return the class of a shape."""
    del n_colors
    return 2 + G**2 + shape - 1


class Asking(NamedTuple):
    """The steps of the solver that a planted bug may replace."""

    child: Callable[..., Any] = child
    matches: Callable[..., Any] = matches
    chosen: Callable[..., Any] = chosen
    coordinates: Callable[..., Any] = coordinates
    truth: Callable[..., Any] = truth
    cell_class: Callable[..., Any] = cell_class
    color_class: Callable[..., Any] = color_class
    shape_class: Callable[..., Any] = shape_class

    def answer(self, row: list[int], grid: np.ndarray, n_shapes: int, n_colors: int) -> int:
        """Return the class of one node's answer."""
        op, G = row[0], len(grid)
        pairs = [(row[2], row[1]), *([(row[5], row[4])] if row[4] else [])]
        found = [
            [(a, b) for a in range(G) for b in range(G) if grid[a, b, 0] and self.matches(*grid[a, b], op, *pair)]
            for pair in pairs
        ]
        if op == 1:
            return 0 if found[0] else 1
        if op in (2, 3, 4):
            a, b = self.chosen(found[0])
            color, shape = map(int, grid[a, b])
            of_shape = self.shape_class(shape, G, n_colors)
            return int((self.cell_class(a, b, G), self.color_class(color, G, n_shapes), of_shape)[op - 2])
        return 0 if self.truth(op, self.coordinates([cells[0] for cells in found])) else 1


def solver(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the solver with these steps exchanged."""
    s = Asking(**changes)

    def one(rule: np.ndarray, grid: np.ndarray, n_shapes: int, n_colors: int) -> int:
        depth_rows = [r for r in range(len(rule)) if 1 <= rule[r, 0] <= 8]
        i = 0
        while True:
            label = s.answer(rule[depth_rows[i]].tolist(), grid, n_shapes, n_colors)
            i = s.child(i, label == 0)
            if i >= len(depth_rows):
                return label

    def wrong(rules: np.ndarray, grid: np.ndarray, *, n_shapes: int = 26, n_colors: int = 10) -> Any:
        found = [one(rule, image, n_shapes, n_colors) for rule, image in zip(rules, grid, strict=True)]
        return np.array(found, np.int64)

    return wrong


def in_order(grid: np.ndarray) -> Any:
    """Return the cells as a list."""
    B, G, _, k = grid.shape
    return grid.reshape(B, G * G, k)


def hot(values: np.ndarray, n: int) -> Any:
    """Return a one among n places."""
    return np.eye(n + 1, dtype=np.int64)[values][..., 1:]


def ended(cells: np.ndarray) -> Any:
    """Add the end token."""
    out = np.zeros((len(cells), cells.shape[1] + 1, cells.shape[2] + 1), np.int64)
    out[:, :-1, :-1], out[:, -1, -1] = cells, 1
    return out


def paired(color: np.ndarray, shape: np.ndarray) -> Any:
    """Put the features of a cell side by side."""
    return np.concatenate([color, shape], -1)


class Writing(NamedTuple):
    """The steps of writing image tokens that a planted bug may replace."""

    in_order: Callable[..., Any] = in_order
    hot: Callable[..., Any] = hot
    ended: Callable[..., Any] = ended
    paired: Callable[..., Any] = paired


def tokens(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the writer of image tokens with these steps exchanged."""
    s = Writing(**changes)

    def wrong(grid: np.ndarray, *, one_hot: bool = False, n_colors: int = 10, n_shapes: int = 26) -> Any:
        cells = s.in_order(grid)
        if not one_hot:
            return s.ended(s.paired(cells[..., :1], cells[..., 1:]))
        return s.ended(s.paired(s.hot(cells[..., 0], n_colors), s.hot(cells[..., 1], n_shapes)))

    return wrong
