"""The entries of LRGT once more, straight from the definitions, in steps that can be exchanged.

Grouped attention is dense attention over the tokens of all views under a mask; clusters are loops over tokens. Without
changes, ``attention()``, ``merger()`` and so on compute what the references compute.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import erf, expit

from refattn.layers.lrgt_merger import Clusters

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "attention",
    "block",
    "clusters",
    "decoder",
    "dice",
    "encoder",
    "folding",
    "grouping",
    "labels",
    "merger",
    "queries",
    "spreading",
    "ungrouping",
]


def labels(grid: int, stride: int, kind: str) -> np.ndarray:
    """Return the group of each place."""
    s = {"token": grid, "full": 1}.get(kind, stride)
    y, x = np.divmod(np.arange(grid**2), grid)
    t = grid // s
    return np.asarray((y // t) * s + x // t if kind == "short" else (y % s) * s + x % s)


def rows_of(batch: int, num_views: int) -> np.ndarray:
    """Return the rows of each batch element's views."""
    return np.arange(batch * num_views).reshape(batch, num_views)


def member_order(places: np.ndarray, num_views: int, tokens: int) -> list[int]:
    """Order the tokens of a group: place after place, at each place all views."""
    return [v * tokens + p for p in places for v in range(num_views)]


def same_group(label: np.ndarray, num_views: int) -> np.ndarray:
    """Return which tokens of all views see each other."""
    every = np.tile(label, num_views)
    return np.asarray(every[:, None] == every)


def split(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Give each head a run of neighbouring channels: (N, D) to (H, N, d)."""
    return np.moveaxis(x.reshape(len(x), num_heads, -1), 1, 0)


def factor(D: int, num_heads: int, scale: float | None) -> float:
    """Return the scale that is asked for, or one over the root of the head's width."""
    return float((D // num_heads) ** -0.5 if scale is None else scale)


def weigh(s: np.ndarray, allowed: Any = None) -> np.ndarray:
    """Hide before the softmax."""
    s = s if allowed is None else np.where(allowed, s, -np.inf)
    e = np.exp(s - np.max(s, axis=-1, keepdims=True))
    return np.asarray(e / np.sum(e, axis=-1, keepdims=True))


def add_score(s: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Add the score of each key to its logits."""
    return np.asarray(s + score)


def signature(_x: np.ndarray, v: np.ndarray, w: Any, grid: int, _factor: float) -> np.ndarray:
    """Convolve the values of one view, (P, D)."""
    image = np.pad(v.reshape(grid, grid, -1), ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((grid, grid, v.shape[-1])) + (0.0 if w.ifs_b is None else w.ifs_b)
    for i in range(3):
        for j in range(3):
            out += image[i : i + grid, j : j + grid] * w.ifs_w[:, i, j]
    return out.reshape(v.shape)


def project_out(o: np.ndarray, signed: np.ndarray, w: Any) -> np.ndarray:
    """Add the signature, then project."""
    return np.asarray((o + signed) @ w.w_o + w.b_o)


def affine(x: np.ndarray, w: np.ndarray, b: Any) -> np.ndarray:
    """Return x w + b."""
    return np.asarray(x @ w + (0.0 if b is None else b))


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalise each token."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias)


def gelu(x: np.ndarray) -> np.ndarray:
    """Return the exact GELU."""
    return np.asarray(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))))


def transform(x: np.ndarray, w: Any, activation: Callable[..., np.ndarray]) -> np.ndarray:
    """Run the MLP."""
    return affine(activation(affine(x, w.w_1, w.b_1)), w.w_2, w.b_2)


def residual(x: np.ndarray, _normed: np.ndarray, update: np.ndarray) -> np.ndarray:
    """Add an update to what it was made from."""
    return np.asarray(x + update)


def patches(image: np.ndarray, p: int) -> np.ndarray:
    """Cut an image (C, S, S) into rows of patches (P, C, p, p)."""
    g = image.shape[-1] // p
    cut = [image[:, y * p : (y + 1) * p, x * p : (x + 1) * p] for y in range(g) for x in range(g)]
    return np.stack(cut)


def placed(x: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Add the places."""
    return np.asarray(x + position)


def by_view(images: np.ndarray) -> np.ndarray:
    """Put the views of each batch element next to each other."""
    return images.reshape(-1, *images.shape[2:])


def across(number: int, lga: Any) -> bool:
    """Say whether a block attends across views."""
    return number in lga


def last_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalise behind the last block."""
    return normed(x, weight, bias, eps)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of two tokens over √D."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def crowd(row: np.ndarray, k: int) -> float:
    """Return the density of a token from its distances."""
    return float(np.exp(-np.mean(np.sort(row)[:k] ** 2)))


def stirred(density: np.ndarray, noise: Any) -> np.ndarray:
    """Add the noise."""
    return np.asarray(density if noise is None else density + 1e-6 * noise)


def outranks(density: np.ndarray, j: int, i: int) -> bool:
    """Say whether token j counts as denser than token i."""
    return bool(density[j] > density[i] or (density[j] == density[i] and j < i))


def clearest(separation: np.ndarray, density: np.ndarray, count: int) -> np.ndarray:
    """Return the centres, the clearest first."""
    return np.argsort(-separation * density, kind="stable")[:count]


def assigned(d: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return each token's centre, each centre its own."""
    found = np.argmin(d[centers], axis=0)
    found[centers] = np.arange(len(centers))
    return np.asarray(found)


def average(x: np.ndarray, _raw: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Average the tokens of one cluster."""
    e = np.exp(score)[:, None]
    return np.asarray(np.sum(x * e, axis=0) / (np.sum(e) + 1e-6))


def read_from(x: np.ndarray, _merged: np.ndarray) -> np.ndarray:
    """Return what the averages attend to: all tokens."""
    return x


def land(out: np.ndarray, where: tuple[slice, ...], spread: np.ndarray) -> None:
    """Add one tap of the kernel to the output (h, w, l, O)."""
    out[where] += spread


def kernel_tap(w: np.ndarray, tap: tuple[int, int, int]) -> np.ndarray:
    """Return the map (C, O) of one tap."""
    return np.asarray(w[(..., *tap)])


def cut(out: np.ndarray, padding: int) -> np.ndarray:
    """Cut the padding off on every side of (h, w, l, O)."""
    h, w, l = (n - padding for n in out.shape[:3])
    return out[padding:h, padding:w, padding:l]


def fold_order(cube: np.ndarray) -> np.ndarray:
    """Order the numbers of a cube (C, r, r, r)."""
    return cube.ravel()


def token_order(h: int, w: int, l: int) -> list[tuple[int, int, int]]:
    """Order the tokens of a grid."""
    return [(y, x, z) for y in range(h) for x in range(w) for z in range(l)]


def read_context(context: np.ndarray, _queries: int) -> np.ndarray:
    """Return the context as it is."""
    return context


def query_steps() -> tuple[str, ...]:
    """Return the order of the two attentions."""
    return ("own", "context")


def batch_normed(x: np.ndarray, w: Any, eps: float) -> np.ndarray:
    """Normalise (B, C, …) by recorded statistics, then cut off what is negative."""
    mean, variance, weight, bias = (t[:, None, None, None] for t in w[1:])
    return np.asarray(np.maximum((x - mean) / np.sqrt(variance + eps) * weight + bias, 0.0))


def joined(grid: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """Add what attention found to the grid."""
    return np.asarray(grid + refined)


def filled(logits: np.ndarray) -> np.ndarray:
    """Make probabilities."""
    return np.asarray(expit(logits))


def overlap(p: np.ndarray, t: np.ndarray) -> float:
    """Return the overlap of two samples."""
    return float(np.sum(p * t))


def mass(p: np.ndarray, t: np.ndarray) -> float:
    """Return how much both hold."""
    return float(np.sum(p**2) + np.sum(t**2))


def fraction(product: float, squares: float, smooth: float) -> float:
    """Return the coefficient."""
    return (product + smooth) / (squares + smooth)


def samples(x: np.ndarray) -> np.ndarray:
    """Lay out a batch as samples."""
    return x.reshape(len(x), -1)


class Steps(NamedTuple):
    """The steps that can be exchanged."""

    labels: Callable[..., Any] = labels
    rows_of: Callable[..., Any] = rows_of
    member_order: Callable[..., Any] = member_order
    same_group: Callable[..., Any] = same_group
    split: Callable[..., Any] = split
    factor: Callable[..., Any] = factor
    weigh: Callable[..., Any] = weigh
    add_score: Callable[..., Any] = add_score
    signature: Callable[..., Any] = signature
    project_out: Callable[..., Any] = project_out
    value: Callable[..., Any] = affine
    normed: Callable[..., Any] = normed
    activation: Callable[..., Any] = gelu
    residual: Callable[..., Any] = residual
    patches: Callable[..., Any] = patches
    placed: Callable[..., Any] = placed
    by_view: Callable[..., Any] = by_view
    across: Callable[..., Any] = across
    last_norm: Callable[..., Any] = last_norm
    distance: Callable[..., Any] = distance
    crowd: Callable[..., Any] = crowd
    stirred: Callable[..., Any] = stirred
    outranks: Callable[..., Any] = outranks
    clearest: Callable[..., Any] = clearest
    assigned: Callable[..., Any] = assigned
    average: Callable[..., Any] = average
    read_from: Callable[..., Any] = read_from
    land: Callable[..., Any] = land
    kernel_tap: Callable[..., Any] = kernel_tap
    cut: Callable[..., Any] = cut
    fold_order: Callable[..., Any] = fold_order
    token_order: Callable[..., Any] = token_order
    read_context: Callable[..., Any] = read_context
    query_steps: Callable[..., Any] = query_steps
    batch_normed: Callable[..., Any] = batch_normed
    joined: Callable[..., Any] = joined
    filled: Callable[..., Any] = filled
    overlap: Callable[..., Any] = overlap
    mass: Callable[..., Any] = mass
    fraction: Callable[..., Any] = fraction
    samples: Callable[..., Any] = samples


def grouping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `group_tokens` with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(x: np.ndarray, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
        rows, members = steps.rows_of(len(x) // num_views, num_views), _members(steps, grid, stride, kind, num_views)
        flat = x[rows].reshape(len(rows), num_views * grid**2, x.shape[-1])
        return np.stack([flat[:, order] for order in members], axis=1)

    return wrong


def ungrouping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ungroup_tokens` with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(x: np.ndarray, *, num_views: int, grid: int, stride: int = 7, kind: str = "long") -> np.ndarray:
        out = np.zeros((len(x), num_views * grid**2, x.shape[-1]))
        for number, order in enumerate(_members(steps, grid, stride, kind, num_views)):
            out[:, order] = x[:, number]
        return out.reshape(len(x) * num_views, grid**2, x.shape[-1])

    return wrong


def _members(steps: Steps, grid: int, stride: int, kind: str, num_views: int) -> list[list[int]]:
    label = steps.labels(grid, stride, kind)
    places = [np.flatnonzero(label == number) for number in range(int(label.max()) + 1)]
    return [steps.member_order(group, num_views, grid**2) for group in places]


def attention(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the grouped layer with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, weights, **options: _grouped(steps, x, weights, **options)


def _grouped(
    steps: Steps,
    x: np.ndarray,
    w: Any,
    *,
    num_views: int,
    num_heads: int,
    grid: int | None = None,
    stride: int = 7,
    kind: str = "long",
    signature: bool = True,
    scale: float | None = None,
    return_attn: bool = False,
) -> Any:
    grid = isqrt(x.shape[1]) if grid is None else grid
    allowed = steps.same_group(steps.labels(grid, stride, kind), num_views)
    members = _members(steps, grid, stride, kind, num_views)
    y, attn = np.zeros_like(x), []
    for rows in steps.rows_of(len(x) // num_views, num_views):
        tokens = x[rows].reshape(-1, x.shape[-1])
        o, a, v = _attend(steps, tokens, tokens, w, num_heads=num_heads, scale=scale, allowed=allowed)
        tau = steps.factor(x.shape[-1], num_heads, scale)
        parts = [steps.signature(x[r], p, w, grid, tau) for r, p in zip(rows, np.split(v, num_views), strict=True)]
        signed = np.concatenate(parts) if signature else np.zeros_like(v)
        y[rows] = steps.project_out(o, signed, w).reshape(x[rows].shape)
        attn.append([a[:, order][:, :, order] for order in members])
    size = num_views * grid**2 // len(members)
    return (y, np.reshape(attn, (len(attn), len(members), num_heads, size, size))) if return_attn else y


def _attend(
    steps: Steps,
    x: np.ndarray,
    context: np.ndarray,
    w: Any,
    *,
    num_heads: int,
    scale: float | None = None,
    allowed: Any = None,
    score: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attend from (N, D) to (M, D); averages before the projection, weights (H, N, M), values."""
    q, k, v = affine(x, w.w_q, w.b_q), affine(context, w.w_k, w.b_k), steps.value(context, w.w_v, w.b_v)
    s = steps.split(q, num_heads) @ steps.split(k, num_heads).mT * steps.factor(x.shape[-1], num_heads, scale)
    s = s if score is None else steps.add_score(s, score)
    a = steps.weigh(s, allowed)
    out = np.zeros_like(q)
    for h, head in enumerate(np.moveaxis(steps.split(np.arange(q.size).reshape(q.shape), num_heads), 0, 0)):
        out.ravel()[head.ravel()] = (a[h] @ steps.split(v, num_heads)[h]).ravel()
    return out, a, v


def _full(steps: Steps, x: np.ndarray, context: np.ndarray, w: Any, **options: Any) -> np.ndarray:
    """Attend in every batch element, and project."""
    score = options.pop("score", None)
    out = np.zeros_like(x)
    for b in range(len(x)):
        bias = None if score is None else score[b]
        out[b] = affine(_attend(steps, x[b], context[b], w, score=bias, **options)[0], w.w_o, w.b_o)
    return out


def block(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the encoder block with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, weights, **options: _block(steps, x, weights, **options)


def _block(
    steps: Steps,
    x: np.ndarray,
    w: Any,
    *,
    num_views: int,
    num_heads: int,
    use_lga: bool = True,
    grid: int | None = None,
    stride: int = 7,
    kind: str = "long",
    scale: float | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    n = steps.normed(x, w.norm1_w, w.norm1_b, eps)
    if steps.across(0, [0] if use_lga else []):
        groups: dict[str, Any] = {"num_views": num_views, "grid": grid, "stride": stride, "kind": kind}
        mixed = _grouped(steps, n, w.attn, num_heads=num_heads, scale=scale, **groups)
    else:
        mixed = _full(steps, n, n, w.attn, num_heads=num_heads, scale=scale)
    x = steps.residual(x, n, mixed)
    n = steps.normed(x, w.norm2_w, w.norm2_b, eps)
    return np.asarray(steps.residual(x, n, transform(n, w, steps.activation)))


def encoder(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the encoder with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        images: np.ndarray,
        w: Any,
        *,
        num_heads: int = 12,
        lga_blocks: Any = (5, 7, 9, 11),
        stride: int = 7,
        kind: str = "long",
        eps: float = 1e-6,
        return_blocks: bool = False,
    ) -> Any:
        B, V = images.shape[:2]
        D, _, p, _ = w.patch_w.shape
        P = (images.shape[-1] // p) ** 2
        cut = [steps.patches(image, p).reshape(P, -1) for image in steps.by_view(images)]
        rows = np.stack(cut) if cut else np.zeros((0, P, w.patch_w[0].size))
        x = steps.placed(rows @ w.patch_w.reshape(D, -1).T + w.patch_b, w.position)
        outputs = []
        for number, part in enumerate(w.blocks):
            options = {"num_views": V, "num_heads": num_heads, "stride": stride, "kind": kind, "eps": eps}
            x = _block(Steps(), x, part, use_lga=steps.across(number, lga_blocks), **options)
            outputs.append(x)
        y = steps.last_norm(x, w.norm_w, w.norm_b, eps).reshape(B, V, P, D)
        return (y, np.stack(outputs)) if return_blocks else y

    return wrong


def clusters(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the clustering with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, noise=None, *, num_clusters, k: _clusters(steps, x, noise, num_clusters, k)


def _clusters(steps: Steps, x: np.ndarray, noise: Any, count: int, k: int) -> Clusters:
    found = []
    for b, tokens in enumerate(x):
        d = np.array([[steps.distance(p, q) for q in tokens] for p in tokens])
        density = steps.stirred(np.array([steps.crowd(row, k) for row in d]), None if noise is None else noise[b])
        N = range(len(d))
        separation = np.array([min([d[i, j] for j in N if steps.outranks(density, j, i)], default=d.max()) for i in N])
        centers = steps.clearest(separation, density, count)
        found.append((steps.assigned(d, centers), centers))
    shapes = ((len(x), x.shape[1]), (len(x), count))
    both = [np.reshape([pair[i] for pair in found], shape).astype(np.int64) for i, shape in enumerate(shapes)]
    return Clusters(*both)


def merger(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the merging block with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        x: np.ndarray,
        w: Any,
        noise: Any = None,
        *,
        num_clusters: int = 196,
        k: int = 15,
        num_heads: int = 12,
        scale: float | None = None,
        eps: float = 1e-5,
    ) -> np.ndarray:
        n = normed(x, w.norm1_w, w.norm1_b, eps)
        score = affine(n, w.w_score, w.b_score)[..., 0]
        found = _clusters(steps, n, noise, num_clusters, k).labels
        merged = np.zeros((len(x), num_clusters, x.shape[-1]))
        for b in range(len(x)):
            for m in range(num_clusters):
                own = found[b] == m
                merged[b, m] = steps.average(n[b, own], x[b, own], score[b, own])
        context = steps.read_from(n, merged)
        keys = score if context.shape == n.shape else np.zeros(context.shape[:2])
        mixed = _full(steps, merged, context, w.attn, num_heads=num_heads, scale=scale, score=keys)
        f = steps.residual(merged, merged, mixed)
        return np.asarray(f + transform(normed(f, w.norm2_w, w.norm2_b, eps), w, gelu))

    return wrong


def spreading(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the transposed convolution with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, w, *, stride=2, padding=1: _spread(steps, x, w, stride, padding)


def _spread(steps: Steps, x: np.ndarray, w: np.ndarray, stride: int, padding: int) -> np.ndarray:
    grids = []
    for sample in np.moveaxis(x, 1, -1):
        full = [stride * (n - 1) + k for n, k in zip(sample.shape[:3], w.shape[2:], strict=True)]
        out = np.zeros((*full, w.shape[1]))
        for tap in np.ndindex(*w.shape[2:]):
            ends = zip(tap, sample.shape[:3], strict=True)
            where = tuple(slice(i, i + stride * (n - 1) + 1, stride) for i, n in ends)
            steps.land(out, where, sample @ steps.kernel_tap(w, tap))
        grids.append(np.moveaxis(steps.cut(out, padding), -1, 0))
    sizes = [stride * (n - 1) + k - 2 * padding for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    return np.stack(grids) if grids else np.zeros((0, w.shape[1], *sizes))


def folding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fold_voxels` with these steps exchanged."""
    steps = Steps(**changes)
    return lambda x, *, r: _fold(steps, x, r)


def _fold(steps: Steps, x: np.ndarray, r: int) -> np.ndarray:
    order = steps.token_order(*(n // r for n in x.shape[2:]))
    out = np.zeros((len(x), len(order), x.shape[1] * r**3))
    for b, grid in enumerate(x):
        for n, (i, j, l) in enumerate(order):
            out[b, n] = steps.fold_order(grid[:, i * r : i * r + r, j * r : j * r + r, l * r : l * r + r])
    return out


def _unfold(x: np.ndarray, channels: int, r: int) -> np.ndarray:
    n = round(x.shape[1] ** (1 / 3))
    out = np.zeros((len(x), channels, n * r, n * r, n * r))
    for number, (i, j, l) in enumerate(token_order(n, n, n)):
        cube = x[:, number].reshape(-1, channels, r, r, r)
        out[:, :, i * r : i * r + r, j * r : j * r + r, l * r : l * r + r] = cube
    return out


def queries(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the query stage with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(context: np.ndarray, q: np.ndarray, blocks: Any, *, num_heads: int, eps: float = 1e-5) -> np.ndarray:
        x = np.repeat(q[None], len(context), axis=0)
        read = steps.read_context(context, len(q))
        for w in blocks:
            norms = {"own": (w.norm1_w, w.norm1_b), "context": (w.norm2_w, w.norm2_b)}
            for part in steps.query_steps():
                n = steps.normed(x, *norms[part], eps)
                source, layer = (n, w.attn1) if part == "own" else (read, w.attn2)
                x = steps.residual(x, n, _full(steps, n, source, layer, num_heads=num_heads))
            n = steps.normed(x, w.norm3_w, w.norm3_b, eps)
            x = steps.residual(x, n, transform(n, w, steps.activation))
        return x

    return wrong


def decoder(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the up-sampling decoder with these steps exchanged."""
    steps = Steps(**changes)

    def unit(grid: np.ndarray, blocks: Any, r: int, heads: int, eps: float) -> np.ndarray:
        x = _fold(steps, grid, r)
        for w in blocks:
            n = normed(x, w.norm1_w, w.norm1_b, eps)
            x = x + _full(steps, n, n, w.attn, num_heads=heads)
            x = x + transform(normed(x, w.norm2_w, w.norm2_b, eps), w, gelu)
        return _unfold(x, grid.shape[1], r)

    def wrong(
        tokens: np.ndarray,
        w: Any,
        *,
        num_heads: int = 12,
        eps: float = 1e-5,
        bn_eps: float = 1e-5,
        return_stages: bool = False,
    ) -> Any:
        u0 = unit(_unfold(tokens, tokens.shape[-1], 1), w.blocks1, 1, num_heads, eps)
        u1 = steps.batch_normed(_spread(steps, u0, w.upconv1.w, 2, 1), w.upconv1, bn_eps)
        grown = unit(u1, w.blocks2, 1, num_heads, eps)
        u2 = steps.batch_normed(_spread(steps, grown, w.upconv2.w, 2, 1), w.upconv2, bn_eps)
        refined = steps.joined(u2, unit(u2, w.blocks3, 2, num_heads, eps))
        u3 = steps.batch_normed(_spread(steps, refined, w.upconv3.w, 2, 1), w.upconv3, bn_eps)
        finest = steps.joined(u3, unit(u3, w.blocks4, 4, num_heads, eps))
        voxels = steps.filled(_spread(steps, finest, w.w_out, 1, 0))
        stages = {"upconv1_out": u1, "upconv2_in": grown, "upconv2_out": u2, "upconv3_in": refined}
        return {"voxels": voxels, **stages} if return_stages else voxels

    return wrong


def dice(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(pred: np.ndarray, target: np.ndarray, *, smooth: float = 1.0, reduction: str = "mean") -> Any:
        pairs = zip(steps.samples(pred), steps.samples(target), strict=True)
        loss = [1.0 - steps.fraction(steps.overlap(p, t), steps.mass(p, t), smooth) for p, t in pairs]
        return np.mean(loss) if reduction == "mean" else np.array(loss)

    return wrong
