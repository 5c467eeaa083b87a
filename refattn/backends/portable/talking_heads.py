"""Scores of heads and components in the array-API standard, by another route than the reference.

The matrices OV and QK are formed, whole, and so are their products; for components W_V is taken apart first, and then
what it leaves of W_O. Gram matrices would be smaller than OV, but they hold squares, and half of the digits are lost
where a score is nearly 0.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

__all__ = [
    "channel_basis",
    "component_scores",
    "composition_scores",
    "inhibition_score",
    "remove_components",
    "robust_outliers",
    "scale_components",
]


def composition_scores(W_Q: Any, W_K: Any, W_V: Any, W_O: Any, *, mode: str = "Q") -> Any:
    """Multiply every OV by every matrix that reads, all pairs at once."""
    xp = array_namespace(W_Q)
    OV, M = _circuits(W_Q, W_K, W_V, W_O, mode)  # (L, H, d, d) each
    product = OV[:, :, None, None, ...] @ M  # (L, H, L, H, d, d)
    sizes = _size(OV)[..., None, None] * _size(M)
    return xp.astype(_later(_ratio(_size(product), sizes), 2), W_O.dtype)


def component_scores(W_Q: Any, W_K: Any, W_V: Any, W_O: Any, *, mode: str = "Q") -> Any:
    """Put write directions through every matrix that reads; with W_V = A diag(a) B they are those of diag(a) B W_O."""
    xp = array_namespace(W_Q)
    _, M = _circuits(W_Q, W_K, W_V, W_O, mode)
    wide_V = _repeated(xp.astype(W_V, M.dtype), W_O.shape[1] // W_V.shape[1])
    _, a, B = xp.linalg.svd(wide_V, full_matrices=False)
    _, s, Vt = xp.linalg.svd(a[..., None] * (B @ xp.astype(W_O, M.dtype)), full_matrices=False)  # (L, H, e, d)
    there = s > s[..., :1] * (W_O.shape[2] * xp.finfo(M.dtype).eps)  # (L, H, e)
    heard = Vt[:, :, None, None, ...] @ M  # (L, H, L, H, e, d)
    scores = _ratio(xp.sqrt(xp.sum(heard * heard, axis=-1)), _size(M)[..., None])
    scores = xp.where(there[:, :, None, None, ...], scores, xp.zeros_like(scores))
    return xp.astype(_later(xp.moveaxis(scores, -1, 2), 3), W_O.dtype)


def channel_basis(directions: Any) -> Any:
    """Take off every direction what the columns before it have, twice, and bring the rest to length one."""
    xp = array_namespace(directions)
    columns: list[Any] = []
    for k in range(directions.shape[0]):
        rest = directions[k, ...]
        for column in (*columns, *columns):
            rest = rest - xp.sum(rest * column) * column
        columns.append(rest / xp.sqrt(xp.sum(rest * rest)))
    return xp.stack(columns, axis=1)


def remove_components(W_O: Any, directions: Any) -> Any:
    """Take the columns of a basis out of the weights, one after the other."""
    if not directions.shape[0]:
        return W_O + 0 * W_O
    basis = channel_basis(directions)
    for k in range(directions.shape[0]):
        W_O = scale_components(W_O, basis.T[k : k + 1, :], 0 * basis[:1, k])
    return W_O


def scale_components(W_O: Any, directions: Any, factors: Any) -> Any:
    """Multiply by the identity plus (c − 1) v vᵀ for each direction."""
    xp = array_namespace(W_O, directions, factors)
    d = W_O.shape[1]
    change = xp.eye(d, dtype=W_O.dtype, device=device(W_O))
    for k in range(directions.shape[0]):
        v = directions[k, ...]
        change = change + (factors[k] - 1) * (v[:, None] * v[None, :])
    return W_O @ change


def robust_outliers(scores: Any, *, z: float = 4.0) -> Any:
    """Read medians off sorted scores."""
    xp = array_namespace(scores)
    if 0 in scores.shape:
        return xp.zeros(scores.shape, dtype=xp.bool, device=device(scores))
    flat = xp.reshape(scores, (-1,))
    above = flat - _median(flat)
    limit = (1.4826 * z) * _median(xp.abs(above))
    return xp.reshape(above > xp.maximum(limit, 0 * limit + 1e-9), scores.shape)


def inhibition_score(pattern: Any, end: Any, io: Any, s: Any) -> Any:
    """Multiply by one-hot codes of the positions."""
    xp = array_namespace(pattern)
    T = pattern.shape[1]
    places = xp.arange(T, device=device(pattern))

    def one_hot(at: Any) -> Any:
        return xp.astype(places == xp.where(at < 0, at + T, at)[:, None], pattern.dtype)  # (B, T)

    row = xp.sum(one_hot(end)[..., None] * pattern, axis=1)  # (B, T)
    return xp.mean(xp.sum(row * one_hot(io), axis=1) - xp.sum(row * one_hot(s), axis=1))


def _circuits(W_Q: Any, W_K: Any, W_V: Any, W_O: Any, mode: str) -> tuple[Any, Any]:
    """Return OV and what reads, in single precision at least, which singular values need."""
    xp = array_namespace(W_Q, W_K, W_V, W_O)
    times = W_Q.shape[1] // W_K.shape[1]
    wide = xp.result_type(W_Q.dtype, xp.float32)
    W_Q, W_K, W_V, W_O = (xp.astype(weight, wide) for weight in (W_Q, W_K, W_V, W_O))
    W_K, W_V = _repeated(W_K, times), _repeated(W_V, times)
    OV = W_V @ W_O
    return OV, {"Q": W_Q @ W_K.mT, "K": W_K @ W_Q.mT, "V": OV}[mode]


def _repeated(weight: Any, times: int) -> Any:
    """Give every head the weights of its group."""
    xp = array_namespace(weight)
    layers, groups, d, e = weight.shape
    shape = (layers, groups, times, d, e)
    return xp.reshape(xp.broadcast_to(weight[:, :, None, ...], shape), (layers, groups * times, d, e))


def _size(matrix: Any) -> Any:
    xp = array_namespace(matrix)
    return xp.sqrt(xp.sum(matrix * matrix, axis=(-2, -1)))


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Divide; 0 where the denominator is 0."""
    xp = array_namespace(numerator)
    zero = denominator <= 0
    return xp.where(zero, 0 * numerator, numerator / xp.where(zero, 1 + 0 * denominator, denominator))


def _later(scores: Any, axis: int) -> Any:
    """Keep only scores whose layer on ``axis`` comes after that on axis 0."""
    xp = array_namespace(scores)
    layers = xp.arange(scores.shape[0], device=device(scores))
    writer = xp.reshape(layers, (-1, *[1] * (scores.ndim - 1)))
    reader = xp.reshape(layers, (-1, *[1] * (scores.ndim - 1 - axis)))
    return xp.where(writer < reader, scores, 0 * scores)


def _median(row: Any) -> Any:
    xp = array_namespace(row)
    n = row.shape[0]
    ordered = xp.sort(row)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
