"""TurboBoA, BoA and GPTQ in the array-API standard.

Derived from the equations by another route than the reference: there is no inverse and no Cholesky factor. What an
error of one column, or of a block of rows, asks of those that follow is the solution of a linear system with the part
of the Hessian that is left; all systems are solved at once, each padded by the identity. Orders are matrices of zeros
and ones, all ranges of a search are tried at once, and a sweep of the refinement is one step of Gauss and Seidel.

Every function can be traced. Unlike the reference it does not damp a Hessian again that is not positive definite yet.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from refattn.backends.pointwise import softmax
from refattn.efficiency.turboboa_gptq import QuantResult
from refattn.efficiency.turboboa_grid import QuantGrid
from refattn.efficiency.turboboa_hessians import AttentionHessians

__all__ = [
    "attention_hessians",
    "boa",
    "dequantize",
    "gptq",
    "input_hessian",
    "minmax_grid",
    "quantize_codes",
    "reconstruction_loss",
    "refine_scales",
    "residual_correlation",
    "rtn",
    "search_grid",
    "turboboa",
]

DAMPING = 0.01
WORST = 1e10


def _t(x: Any) -> Any:
    return array_namespace(x).matrix_transpose(x)


def _arange(n: int, like: Any) -> Any:
    xp = array_namespace(like)
    return xp.arange(n, dtype=like.dtype, device=device(like))


def _eye(n: int, like: Any) -> Any:
    return array_namespace(like).eye(n, dtype=like.dtype, device=device(like))


def _diagonal(h: Any) -> Any:
    """Return the diagonals of matrices (..., d, d)."""
    return array_namespace(h).sum(h * _eye(h.shape[-1], h), axis=-1)


def _in_groups(x: Any, groups: int) -> Any:
    # sizes spelt out: -1 cannot be told in arrays without entries
    return array_namespace(x).reshape(x, (*x.shape[:-1], groups, x.shape[-1] // groups))


def _nearest(x: Any, scale: Any, zero: Any, bits: int) -> Any:
    xp = array_namespace(x)
    return xp.clip(xp.round(x / scale) + zero, 0, 2**bits - 1)


def quantize_codes(x: Any, grid: Any, bits: int) -> Any:
    """Return the code of the grid point nearest to each weight."""
    xp = array_namespace(x)
    codes = _nearest(_in_groups(x, grid[0].shape[-2]), grid[0], grid[1], bits)
    return xp.astype(xp.reshape(codes, x.shape), xp.int64)


def dequantize(codes: Any, grid: Any) -> Any:
    """Return the weights that codes stand for."""
    scale, zero = grid
    xp = array_namespace(codes, scale)
    steps = _in_groups(xp.astype(codes, scale.dtype), scale.shape[-2]) - zero
    return xp.reshape(steps * scale, codes.shape)


def _range(w: Any, symmetric: bool, group_size: int | None) -> tuple[Any, Any, Any]:
    """Return weights in groups, and the ends of their ranges (..., r, g, 1)."""
    xp = array_namespace(w)
    parts = _in_groups(w, 1 if group_size is None else w.shape[-1] // group_size)
    low = -xp.max(xp.where(parts < 0, -parts, xp.zeros_like(parts)), axis=-1, keepdims=True)
    high = xp.max(xp.where(parts > 0, parts, xp.zeros_like(parts)), axis=-1, keepdims=True)
    if symmetric:
        high = xp.max(xp.abs(parts), axis=-1, keepdims=True)
        low = xp.where(low < 0, -high, low)
    nothing = high == low
    one = xp.ones_like(low)
    return parts, xp.where(nothing, -one, low), xp.where(nothing, one, high)


def minmax_grid(w: Any, bits: int, *, symmetric: bool = False, group_size: int | None = None) -> Any:
    """Spread the codes evenly over the range of each group."""
    xp = array_namespace(w)
    _, low, high = _range(w, symmetric, group_size)
    scale = (high - low) / (2**bits - 1)
    zero = xp.full_like(scale, 2 ** (bits - 1)) if symmetric else xp.round(-low / scale)
    return QuantGrid(scale, zero)


def search_grid(
    w: Any,
    bits: int,
    *,
    hessian: Any = None,
    symmetric: bool = False,
    n_shrink: int = 100,
    norm: float = 2.4,
    group_size: int | None = None,
) -> Any:
    """Try all shares of the range at once, each with the zero point below and above, and keep the first cheapest."""
    xp = array_namespace(w)
    parts, low, high = _range(w, symmetric, group_size)
    left = _arange(n_shrink, w)
    share = xp.reshape(1 - left / n_shrink, (n_shrink, 1, *(1,) * low.ndim))
    scale = xp.repeat((share * high - share * low) / (2**bits - 1), 2, axis=1)  # (tries, 2, ..., r, g, 1)
    exact = -(share * low) / scale[:, :1, ...]
    zero = xp.concat([xp.floor(exact), xp.ceil(exact)], axis=1)
    zero = xp.full_like(scale, 2 ** (bits - 1)) if symmetric else zero
    error = scale * (_nearest(parts, scale, zero, bits) - zero) - parts
    cost = _cost(error, hessian, norm)
    cost, scale, zero = (xp.reshape(x, (2 * n_shrink, *low.shape)) for x in (cost, scale, zero))
    tries = xp.reshape(xp.arange(2 * n_shrink, device=device(w)), (2 * n_shrink, *(1,) * low.ndim))
    first = tries == xp.argmin(cost, axis=0, keepdims=True)
    found = (xp.sum(xp.where(first, x, xp.zeros_like(x)), axis=0) for x in (scale, zero))
    cheap = xp.min(cost, axis=0) < WORST
    whole = minmax_grid(w, bits, symmetric=symmetric, group_size=group_size)
    return QuantGrid(*(xp.where(cheap, x, other) for x, other in zip(found, whole, strict=True)))


def _cost(error: Any, hessian: Any, norm: float) -> Any:
    xp = array_namespace(error)
    if hessian is None:
        return xp.sum(xp.abs(error) ** norm, axis=-1, keepdims=True)
    width, d = error.shape[-1], hessian.shape[-1]
    starts = range(0, d, width)
    blocks = xp.stack([hessian[..., k : k + width, k : k + width] for k in starts], axis=-3)
    blocks = blocks if hessian.ndim == 2 else blocks[:, None, ...]  # all rows of a head alike
    return xp.sum((error[..., None, :] @ blocks)[..., 0, :] * error, axis=-1, keepdims=True)


def _grid(kind: str, w: Any, bits: int, hessian: Any, **options: Any) -> Any:
    if kind == "minmax":
        return minmax_grid(w, bits, **options)
    return search_grid(w, bits, hessian=hessian if kind == "hessian" else None, **options)


def input_hessian(x: Any) -> Any:
    """Return the second moment, twice the mean over all tokens."""
    return residual_correlation(2 * x, x)


def residual_correlation(x_full: Any, x_quant: Any) -> Any:
    """Return (2/n) Σ (x_full − x) xᵀ."""
    xp = array_namespace(x_full, x_quant)
    d = x_quant.shape[-1]
    full, quant = (xp.reshape(x, (-1, d)) for x in (x_full, x_quant))
    return 2 * (_t(full - quant) @ quant) / quant.shape[0]


def attention_hessians(
    x: Any,
    wq: Any,
    wk: Any,
    wv: Any,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    causal: bool = True,
    rope_angles: Any = None,
) -> Any:
    """Return how attention weighs errors of its projections; query heads of a group are an axis of their own."""
    del wv  # an error of the values matters as attention spreads it, whatever the values are
    xp = array_namespace(x, wq, wk)
    B, L, d = x.shape
    G = n_heads if n_kv_heads is None else n_kv_heads
    r, shared = wq.shape[0] // n_heads, n_heads // G
    q = x[:, None, None, ...] @ _t(xp.reshape(wq, (G, shared, r, d)))  # (B, G, shared, L, r)
    k = x[:, None, None, ...] @ _t(xp.reshape(wk, (G, 1, r, d)))  # (B, G, 1, L, r)
    if rope_angles is not None:
        q, k = _turned(q, rope_angles), _turned(k, rope_angles)
    at = xp.arange(L, device=device(x))
    weights = softmax(q @ _t(k) / r**0.5, at[None, :] <= at[:, None] if causal else None)
    spread = weights @ x[:, None, None, ...]  # (B, G, shared, L, d)
    of_q, of_k, of_v = (xp.sum(_t(y) @ y, axis=0) * (2 / (B * L)) for y in (q, k, spread))
    of_q, of_k = (m if rope_angles is None else _pulled_back(m, rope_angles) for m in (of_q, of_k))
    return AttentionHessians(
        input_hessian(x),
        xp.mean(of_v, axis=1),
        xp.reshape(xp.repeat(of_k, shared, axis=1), (n_heads, r, r)),
        xp.mean(of_q, axis=1),
    )


def _turned(x: Any, angles: Any) -> Any:
    xp = array_namespace(x, angles)
    half = x.shape[-1] // 2
    a, b, cos, sin = x[..., :half], x[..., half:], xp.cos(angles), xp.sin(angles)
    return xp.concat([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _pulled_back(moment: Any, angles: Any) -> Any:
    """Weigh the four quarters of a moment by the mean products of the cosines and sines of their channels."""
    xp = array_namespace(moment, angles)
    half = moment.shape[-1] // 2
    cos, sin = xp.cos(angles), xp.sin(angles)
    cc, cs, ss = (_t(a) @ b / angles.shape[0] for a, b in ((cos, cos), (cos, sin), (sin, sin)))
    sc = _t(cs)
    a, b = moment[..., :half, :half], moment[..., :half, half:]
    c, d = moment[..., half:, :half], moment[..., half:, half:]
    top = xp.concat([cc * a + cs * b + sc * c + ss * d, cc * b - cs * a + sc * d - ss * c], axis=-1)
    bottom = xp.concat([cc * c - sc * a + cs * d - ss * b, cc * d - cs * c - sc * b + ss * a], axis=-1)
    return xp.concat([top, bottom], axis=-2)


def reconstruction_loss(w: Any, q: Any, h_in: Any, h_out: Any = None, residual: Any = None) -> Any:
    """Return Σ (H_outᵀ (ΔW H_in − 2 W R)) ⊙ ΔW."""
    xp = array_namespace(w, q, h_in)
    heads = next((h.shape[0] for h in (h_out, h_in) if h is not None and h.ndim == 3), 1)
    w, q = (x if x.ndim == 3 else xp.reshape(x, (heads, -1, x.shape[-1])) for x in (w, q))
    error = q - w
    pull = error @ h_in if residual is None else error @ h_in - 2 * (w @ residual)
    return xp.sum((pull if h_out is None else _t(h_out) @ pull) * error)


def refine_scales(
    w: Any, codes: Any, grid: Any, h_in: Any, h_out: Any = None, residual: Any = None, sweeps: int = 1
) -> Any:
    """Solve, in each sweep, for the change of all steps, each seeing the changes of the rows before it."""
    xp = array_namespace(w, h_in)
    scale, zero = grid[0][..., 0], grid[1]
    units = xp.astype(codes, w.dtype) - zero[..., 0]  # (H, r, d)
    weighed = units @ h_in
    h_out = xp.broadcast_to(_eye(w.shape[1], w), (w.shape[0], w.shape[1], w.shape[1])) if h_out is None else h_out
    curve = xp.tril(h_out * (weighed @ _t(units)))  # (H, r, r)
    idle = _diagonal(curve) == 0
    curve = xp.where(idle[..., None], _eye(w.shape[1], w), curve)
    drift = 0 if residual is None else xp.sum((h_out @ (w @ residual)) * units, axis=-1)
    for _ in range(sweeps):
        slope = xp.sum((h_out @ (w - scale * units)) * weighed, axis=-1) + drift
        slope = xp.where(idle, xp.zeros_like(slope), slope)
        scale = scale + xp.linalg.solve(curve, slope[..., None])
    return QuantGrid(scale[..., None], zero)


def rtn(w: Any, bits: int, *, grid: Any = None) -> Any:
    """Round every weight to the nearest point of the grid."""
    xp = array_namespace(w)
    grid = minmax_grid(w[None, ...], bits) if grid is None else grid
    codes = quantize_codes(w[None, ...], grid, bits)
    weight = dequantize(codes, grid)
    return QuantResult(weight, codes, grid, xp.sum((weight - w) ** 2))


def _damped(h: Any) -> Any:
    xp = array_namespace(h)
    mean = xp.mean(_diagonal(h), axis=-1)
    return h + DAMPING * mean[..., None, None] * _eye(h.shape[-1], h)


def _prepared(w: Any, h: Any, residual: Any, dead_value: float) -> tuple[Any, Any, Any]:
    xp = array_namespace(w, h)
    alive = xp.astype(_diagonal(h) != 0, h.dtype)
    h = _damped(h + (dead_value * (1 - alive))[..., None] * _eye(h.shape[-1], h))
    alive = alive[..., None, :]
    return w * alive, h, None if residual is None else residual * alive


def _order(h: Any, wanted: bool) -> Any:
    """Return the matrix (..., d, d) of zeros and ones that puts large diagonal entries first."""
    xp = array_namespace(h)
    if not wanted:
        return _eye(h.shape[-1], h)
    places = xp.argsort(-_diagonal(h), axis=-1, stable=True)
    return xp.astype(places[..., None] == xp.arange(h.shape[-1], device=device(h)), h.dtype)


def _moves(h: Any, residual: Any) -> tuple[Any, Any]:
    """Return H_c,rest H_rest,rest⁻¹ of every column c (..., d, d), and the same of R: zero up to the diagonal."""
    xp = array_namespace(h)
    d = h.shape[-1]
    later = xp.triu(xp.ones_like(h), k=1)  # (..., c, j): column j comes after c
    both = later[..., :, None] * later[..., None, :]  # (..., c, i, j)
    systems = both * h[..., None, :, :] + (1 - later)[..., None] * _eye(d, h)
    asked = [h * later] if residual is None else [h * later, residual * later]
    solved = xp.linalg.solve(systems, xp.stack(asked, axis=-1))  # H is symmetric
    return solved[..., 0], None if residual is None else solved[..., 1]


def _columns(w: Any, moves: tuple[Any, Any], grid: Any, bits: int, late: Any = None) -> tuple[Any, Any, Any]:
    """Round the columns of (H, r, d) in turn; return weights, codes and the grid, which may be found on the way."""
    xp = array_namespace(w)
    d, groups = w.shape[-1], grid[0].shape[-2]
    width = d // groups
    grids = [[part[..., g, :] for part in grid] for g in range(groups)]  # (H, r, 1) each
    moved, weights, codes, settled = w, [], [], w
    for c in range(d):
        if late is not None and c % late[0] == 0:
            settled = moved
        if late is not None and c % width == 0:
            grids[c // width] = [part[..., 0, :] for part in late[1](settled[..., c : c + width])]
        scale, zero = grids[c // width]
        column = moved[..., c : c + 1]
        code = _nearest(column, scale, zero, bits)
        weight = scale * (code - zero)
        moved = moved + (column - weight) * moves[0][..., c : c + 1, :]
        if moves[1] is not None:
            moved = moved + column * moves[1][..., c : c + 1, :]
        weights.append(weight)
        codes.append(code)
    found = (xp.stack([part[i] for part in grids], axis=-2) for i in (0, 1))
    return xp.concat(weights, axis=-1), xp.concat(codes, axis=-1), QuantGrid(*found)


def gptq(
    w: Any,
    h_in: Any,
    bits: int,
    *,
    residual: Any = None,
    grid: Any = "hessian",
    symmetric: bool = False,
    group_size: int | None = None,
    act_order: bool = False,
    block_columns: int | None = None,
    dead_value: float = 1.0,
) -> Any:
    """Quantise column by column, each error made good by the columns that follow."""
    xp = array_namespace(w, h_in)
    heads = h_in.shape[0] if h_in.ndim == 3 else 1
    given = xp.reshape(w, (heads, -1, w.shape[1]))
    rows, h, R = _prepared(given, h_in, residual, dead_value)
    P = _order(h, act_order)
    rows, given, h, R = rows @ _t(P), given @ _t(P), P @ h @ _t(P), None if R is None else P @ R @ _t(P)
    late = None
    if isinstance(grid, str):
        kind, options = grid, {"symmetric": symmetric}
        grid = _grid(kind, given, bits, h, **options, group_size=group_size)
        if block_columns is not None:
            late = (block_columns, lambda part: _grid(kind, part, bits, None, **options))
    weight, codes, grid = _columns(rows, _moves(h, R), grid, bits, late)
    loss = reconstruction_loss(rows, weight, h, None, R)
    return QuantResult(weight @ P, xp.astype(codes @ P, xp.int64), grid, loss)


def boa(w: Any, h_in: Any, h_out: Any, bits: int, *, n_heads: int, **options: Any) -> Any:
    """Quantise row by row: TurboBoA with blocks of one row, a fixed grid, and no refinement."""
    single: dict[str, Any] = {"block_rows": 1, "adaptive_grid": False, "refine_sweeps": 0}
    return turboboa(w, h_in, h_out, bits, n_heads=n_heads, **single, **options)


def turboboa(
    w: Any,
    h_in: Any,
    h_out: Any,
    bits: int,
    *,
    n_heads: int,
    block_rows: int = 16,
    residual: Any = None,
    grid: Any = "hessian",
    adaptive_grid: bool = True,
    refine_sweeps: int = 1,
    symmetric: bool = False,
    group_size: int | None = None,
    act_order_rows: bool = False,
    act_order_cols: bool = False,
    dead_value: float = 1.0,
) -> Any:
    """Quantise a block of rows of every head at a time, and move the rows that are left to their minimum."""
    xp = array_namespace(w, h_in)
    rows, h, R = _prepared(xp.reshape(w, (n_heads, -1, w.shape[1])), h_in, residual, dead_value)
    P = _order(h, act_order_cols)
    rows, h, R = rows @ _t(P), P @ h @ _t(P), None if R is None else P @ R @ _t(P)
    out = None if h_out is None else _damped(h_out)
    S = _eye(rows.shape[1], rows) if out is None else _order(out, act_order_rows)
    rows, out = S @ rows, None if out is None else S @ out @ _t(S)
    options = {"symmetric": symmetric, "group_size": group_size}
    whole = None if isinstance(grid, str) else _reordered(grid, S)
    if whole is None and not adaptive_grid:
        whole = _grid(grid, rows, bits, h, **options)
    moves, left, found = _moves(h, R), rows, []
    for begin in range(0, rows.shape[1], block_rows):
        end = min(begin + block_rows, rows.shape[1])
        block, left = left[:, : end - begin, :], left[:, end - begin :, :]
        own = _grid(grid, block, bits, h, **options) if whole is None else [x[:, begin:end, ...] for x in whole]
        weight, codes, own = _columns(block, moves, own, bits)
        found.append((weight, codes, *own))
        if out is not None and end < rows.shape[1]:
            error = block - weight if R is None else block - weight + _t(xp.linalg.solve(h, _t(block @ R)))
            left = left + xp.linalg.solve(out[:, end:, end:], out[:, end:, begin:end] @ error)
    weight, codes, scale, zero = (xp.concat(list(parts), axis=1) for parts in zip(*found, strict=True))
    result = QuantGrid(scale, zero)
    if refine_sweeps:
        result = refine_scales(rows, codes, result, h, out, R, refine_sweeps)
        weight = dequantize(codes, result)
    loss = reconstruction_loss(rows, weight, h, out, R)
    return QuantResult(
        _t(S) @ weight @ P, xp.astype(xp.round(_t(S) @ codes @ P), xp.int64), _reordered(result, _t(S)), loss
    )


def _reordered(grid: Any, order: Any) -> Any:
    """Return a grid (H, r, g, 1) with its rows in the order of a matrix (..., r, r)."""
    return QuantGrid(*((order @ part[..., 0])[..., None] for part in grid))
