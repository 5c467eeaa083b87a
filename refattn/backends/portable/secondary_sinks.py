"""Secondary sinks in the array-API standard, by another route than the reference.

Vectors are divided by their largest entry before they are squared, so that 16 bits do not overflow, and then brought
to length one: cosines are products of unit vectors. The window is found by masking the changes of the norm, a life by a
minimum over its layers, scores by a product with a row of ones, entropies from singular values, not a Gram matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace, device

from refattn.interpretability.secondary_sinks import SinkLives, SinkMembership

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "matrix_entropy",
    "mlp_alignment",
    "primary_cosines",
    "rescale_sinks",
    "sink_lives",
    "sink_membership",
    "sink_score",
]

SHORTEST = 1e-8


def sink_membership(
    hidden: Any, *, bos_positions: Sequence[int] = (0,), threshold: float = 0.9, clip: bool = True
) -> SinkMembership:
    """Say for every layer and position whether it is a sink."""
    xp = array_namespace(hidden)
    n_layers, length, _ = hidden.shape
    layer, position = (xp.arange(n, device=device(hidden)) for n in (n_layers, length))
    candidates = xp.asarray(list(bos_positions), device=device(hidden))
    norms = _norm(hidden)[..., 0]  # (N, T)
    best = xp.argmax(xp.mean(xp.take(norms, candidates, axis=1), axis=0))
    primary = xp.max(xp.where(xp.arange(len(bos_positions), device=device(hidden)) == best, candidates, 0 * candidates))
    at_primary = position == primary
    window = _window(xp.sum(xp.where(at_primary, norms, 0 * norms), axis=1)) if clip else layer >= 0
    units = _unit(hidden)
    reference = xp.sum(xp.where(at_primary[:, None], units, 0 * units), axis=1, keepdims=True)  # (N, 1, d)
    cosines = xp.sum(units * reference, axis=-1)  # (N, T)
    members = window[:, None] & (xp.abs(cosines) > threshold) & (position > primary)
    if clip or len(bos_positions) > 1:
        members = members | (window[:, None] & at_primary)
    return SinkMembership(primary, window, members)


def primary_cosines(hidden: Any, *, primary: int) -> Any:
    """Return the cosines of all positions to one, layer by layer."""
    xp = array_namespace(hidden)
    units = _unit(hidden)
    return (units @ xp.matrix_transpose(units[:, primary : primary + 1, :]))[..., 0]


def sink_lives(members: Any, *, bos_margin: int = 15, min_lifetime: int = 5) -> SinkLives:
    """Count layers; name a life by how many bounds it passes."""
    xp = array_namespace(members)
    n_layers = members.shape[0]
    layer = xp.arange(n_layers, device=device(members))[:, None]
    lifetime = xp.count_nonzero(members, axis=0)
    begun = xp.min(xp.where(members, layer, n_layers + 0 * layer), axis=0)
    first = xp.where(begun < n_layers, begun, -1 + 0 * begun)
    lasting = lifetime >= n_layers - bos_margin
    label = xp.astype(lasting | (lifetime >= min_lifetime), lifetime.dtype) + xp.astype(lasting, lifetime.dtype)
    return SinkLives(first, lifetime, xp.where(lifetime > 0, label, 0 * label))


def sink_score(pattern: Any) -> Any:
    """Return the mean attention of the queries that can see each position."""
    xp = array_namespace(pattern)
    length = pattern.shape[-1]
    ones = xp.ones((1, length), dtype=pattern.dtype, device=device(pattern))
    queries = xp.arange(length, 0, -1, dtype=pattern.dtype, device=device(pattern))
    return (ones @ pattern)[..., 0, :] / queries


def mlp_alignment(mlp_out: Any, primary: int, positions: Any) -> Any:
    """Return the cosines of some rows to one."""
    xp = array_namespace(mlp_out)
    units = _unit(mlp_out)
    chosen = xp.take(units, xp.asarray(positions, device=device(mlp_out)), axis=-2)  # (..., K, d)
    return (chosen @ xp.matrix_transpose(units[..., primary : primary + 1, :]))[..., 0]


def rescale_sinks(
    mlp_out: Any,
    direction: Any,
    *,
    norm: float,
    cos_threshold: float = 0.98,
    protect: Sequence[int] = (0, 1, 2),
) -> Any:
    """Set the length of what points along the direction: its unit vector, made longer."""
    xp = array_namespace(mlp_out)
    units = _unit(mlp_out)
    made = (units @ _unit(direction)[:, None]) > cos_threshold  # (..., T, 1)
    for t in protect:
        made = made & (xp.arange(mlp_out.shape[-2], device=device(mlp_out)) != t)[:, None]
    return xp.where(made, units * norm, mlp_out)


def matrix_entropy(x: Any, *, alpha: float = 1.0) -> Any:
    """Return the entropy of the squared singular values."""
    xp = array_namespace(x)
    wide = xp.astype(x, xp.result_type(x.dtype, xp.float32))
    if 0 in x.shape[-2:]:
        return xp.zeros(x.shape[:-2], dtype=x.dtype, device=device(x))
    square = xp.linalg.svdvals(wide) ** 2
    total = xp.sum(square, axis=-1, keepdims=True)
    p = square / xp.where(total > 0, total, 1 + 0 * total)
    if alpha == 1:
        return xp.astype(-xp.sum(p * xp.log(xp.where(p > 0, p, 1 + 0 * p)), axis=-1), x.dtype)
    moment = xp.sum(p**alpha, axis=-1)
    return xp.astype(xp.log(xp.where(moment > 0, moment, 1 + 0 * moment)) / (1.0 - alpha), x.dtype)


def _window(norms: Any) -> Any:
    """Return the layers (N,) from behind the steepest rise to the steepest fall after it."""
    xp = array_namespace(norms)
    n_layers = norms.shape[0]
    layer = xp.arange(n_layers, device=device(norms))
    change = norms[1:] - norms[:-1]
    start = xp.argmax(change) + 1
    fall = xp.where(layer[:-1] >= start, change, xp.asarray(xp.inf, dtype=norms.dtype, device=device(norms)))
    last = xp.where(start < n_layers - 1, xp.argmin(fall), start)
    return (layer >= start) & (layer <= last)


def _norm(x: Any) -> Any:
    """Return the lengths (..., 1) of vectors."""
    xp = array_namespace(x)
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    part = x / xp.where(largest > 0, largest, 1 + 0 * largest)
    return largest * xp.sqrt(xp.sum(part * part, axis=-1, keepdims=True))


def _unit(x: Any) -> Any:
    """Bring vectors to length one; those shorter than the shortest length stay proportionally shorter."""
    xp = array_namespace(x)
    norm = _norm(x)
    short = norm < SHORTEST
    return xp.where(short, x / SHORTEST, x / xp.where(short, 1 + 0 * norm, norm))
