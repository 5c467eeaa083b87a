"""Quantisation once more, weight by weight, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.turboboa import AttentionHessians, QuantGrid, QuantResult

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "attending",
    "boa_loop",
    "coding",
    "correlating",
    "decoding",
    "gptq_loop",
    "losing",
    "minmax",
    "moments",
    "refining",
    "rounding",
    "searching",
    "turbo_loop",
]


def nearest(x: np.ndarray) -> Any:
    """Round to the nearest integer."""
    return np.rint(x)


def shifted(steps: np.ndarray, zero: np.ndarray) -> Any:
    """Count from the code of zero."""
    return steps + zero


def in_range(codes: np.ndarray, bits: int) -> Any:
    """Keep codes among those that there are."""
    return np.clip(codes, 0, 2**bits - 1)


def value(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Any:
    """Return what codes stand for."""
    return scale * (codes - zero)


def ends(w: np.ndarray) -> tuple[Any, Any]:
    """Return the ends of the range, zero within."""
    return np.minimum(w.min(axis=-1, keepdims=True), 0), np.maximum(w.max(axis=-1, keepdims=True), 0)


def both_ways(low: np.ndarray, high: np.ndarray) -> tuple[Any, Any]:
    """Reach as far to the left as to the right, if anything is there."""
    reach = np.maximum(-low, high)
    return np.where(low < 0, -reach, low), reach


def step_size(low: np.ndarray, high: np.ndarray, bits: int) -> Any:
    """Return the distance of two points."""
    return (high - low) / (2**bits - 1)


def zero_point(low: np.ndarray, scale: np.ndarray) -> Any:
    """Return the code of zero."""
    return np.rint(-low / scale)


def middle(bits: int) -> float:
    """Return the code of zero of a symmetric grid."""
    return 2.0 ** (bits - 1)


def zero_points(low: np.ndarray, scale: np.ndarray) -> tuple[Any, Any]:
    """Return the codes of zero that are tried."""
    return np.floor(-low / scale), np.ceil(-low / scale)


def price(error: np.ndarray, hessian: np.ndarray | None, norm: float) -> Any:
    """Return what errors of each row cost."""
    if hessian is None:
        return np.sum(np.abs(error) ** norm, axis=-1, keepdims=True)
    return np.einsum("...i,...ij,...j->...", error, hessian, error)[..., None]


def first_price() -> float:
    """Return what the first range has to undercut."""
    return 1e10


def shrunk(low: np.ndarray, high: np.ndarray, share: float) -> tuple[Any, Any]:
    """Return a share of the range."""
    return share * low, share * high


def damp(h: np.ndarray) -> Any:
    """Add a hundredth of the mean diagonal entry to each."""
    d = h.shape[-1]
    return h + 0.01 * np.trace(h, axis1=-2, axis2=-1)[..., None, None] / d * np.eye(d)


def revive(h: np.ndarray, dead: np.ndarray, dead_value: float) -> Any:
    """Give inputs that are always zero a diagonal entry."""
    return h + np.where(dead, dead_value, 0.0)[..., None] * np.eye(h.shape[-1])


def drop(w: np.ndarray, dead: np.ndarray) -> Any:
    """Set the weights of inputs that are always zero to zero."""
    return np.where(dead[..., None, :], 0.0, w)


def factor(h: np.ndarray) -> Any:
    """Return the upper triangular U with UᵀU = H⁻¹."""
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), -1, -2)


def follows(error: np.ndarray, upper: np.ndarray, c: int) -> Any:
    """Return by how much the columns from c on move for an error of column c."""
    return -error[..., None] / upper[..., c, c, None, None] * upper[..., c, None, c:]


def foresees(residual: np.ndarray, upper: np.ndarray) -> Any:
    """Return P, which says how columns move for what earlier layers lost."""
    return np.triu(residual @ np.swapaxes(upper, -1, -2), 1) @ upper


def lost(block: np.ndarray, rounded: np.ndarray, residual: np.ndarray | None, h_in: np.ndarray) -> Any:
    """Return the error of a block of rows, with what earlier layers lost."""
    error = block - rounded
    return error if residual is None else error + block @ residual @ np.linalg.inv(h_in)


def share(upper: np.ndarray, rows: slice, rest: slice) -> Any:
    """Return how the rows to come share the error of a block."""
    return np.linalg.solve(upper[..., rows, rows], upper[..., rows, rest])


def order(diagonal: np.ndarray) -> Any:
    """Return the order in which entries are taken: the largest first."""
    return np.argsort(-diagonal, axis=-1, kind="stable")


def undo(places: np.ndarray) -> Any:
    """Return the order that takes everything back."""
    return np.argsort(places, axis=-1)


def out_of(h_out: np.ndarray) -> Any:
    """Return the Hessian of each head's output."""
    return h_out


def seen_by_grid(_original: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return the weights for which a block's grid is found."""
    return moved


def downhill(units: np.ndarray, j: int, error: np.ndarray, w: np.ndarray, hessians: tuple[np.ndarray, Any, Any]) -> Any:
    """Return half the slope of the loss by the step of row j, downwards."""
    h_in, h_out, residual = hessians
    pull = np.einsum("hi,hid->hd", h_out[:, j], error) @ h_in if h_in.ndim == 2 else _per_head(h_out[:, j], error, h_in)
    slope = np.sum(pull * units[:, j], axis=-1)
    if residual is None:
        return slope
    return slope + np.sum(_per_head(h_out[:, j], w, residual) * units[:, j], axis=-1)


def _per_head(row: np.ndarray, x: np.ndarray, h: np.ndarray) -> Any:
    return np.einsum("hi,hid,hde->he", row, x, np.broadcast_to(h, (len(x), *h.shape[-2:])))


def curve(units: np.ndarray, j: int, h_in: np.ndarray, h_out: np.ndarray) -> Any:
    """Return half the curvature of the loss by the step of row j."""
    own = np.einsum("hd,hde,he->h", units[:, j], np.broadcast_to(h_in, (len(units), *h_in.shape[-2:])), units[:, j])
    return h_out[:, j, j] * own


def renewed(w: np.ndarray, scale: np.ndarray, units: np.ndarray, _stale: np.ndarray) -> Any:
    """Return the error with the step just found."""
    return w - scale * units


def per_token(total: np.ndarray, x: np.ndarray) -> Any:
    """Turn a sum over tokens into twice the mean."""
    return 2 * total / (x.size // x.shape[-1])


def behind(full: np.ndarray, quant: np.ndarray) -> Any:
    """Return what the partly quantised network lacks."""
    return full - quant


def shared_heads(x: np.ndarray, times: int) -> Any:
    """Give each query head its key head."""
    return np.repeat(x, times, axis=1)


def moment_of(x: np.ndarray) -> Any:
    """Return twice the mean of x xᵀ of each head (B, h, L, e)."""
    return 2 * np.einsum("bhle,bhlf->hef", x, x) / (x.shape[0] * x.shape[2])


def of_group(h: np.ndarray, groups: int) -> Any:
    """Return the mean over the heads of each group."""
    return h.reshape(groups, -1, *h.shape[1:]).mean(axis=1)


def to_heads(h: np.ndarray, times: int) -> Any:
    """Give each query head the matrix of its key head."""
    return np.repeat(h, times, axis=0)


def turned_back(h: np.ndarray, rotations: np.ndarray) -> Any:
    """See a moment from before the rotation, averaged over positions."""
    return np.einsum("lji,hjk,lkm->him", rotations, h, rotations) / len(rotations)


def partners(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what weighs errors of the queries, and of the keys."""
    return k, q


def visible(n: int) -> Any:
    """Return which tokens a token sees."""
    return np.tri(n, dtype=bool)


def judged(error: np.ndarray, h_in: np.ndarray, h_out: np.ndarray) -> Any:
    """Return what an error of a head costs."""
    return np.trace(h_out @ error @ h_in @ error.T)


def owed(w: np.ndarray, error: np.ndarray, residual: np.ndarray, h_out: np.ndarray) -> Any:
    """Return what an error of a head makes good."""
    return -2 * np.trace(h_out @ w @ residual @ error.T)


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    nearest: Callable[..., Any] = nearest
    shifted: Callable[..., Any] = shifted
    in_range: Callable[..., Any] = in_range
    value: Callable[..., Any] = value
    ends: Callable[..., Any] = ends
    both_ways: Callable[..., Any] = both_ways
    step_size: Callable[..., Any] = step_size
    zero_point: Callable[..., Any] = zero_point
    middle: Callable[..., Any] = middle
    zero_points: Callable[..., Any] = zero_points
    price: Callable[..., Any] = price
    first_price: Callable[..., Any] = first_price
    shrunk: Callable[..., Any] = shrunk
    damp: Callable[..., Any] = damp
    revive: Callable[..., Any] = revive
    drop: Callable[..., Any] = drop
    factor: Callable[..., Any] = factor
    follows: Callable[..., Any] = follows
    foresees: Callable[..., Any] = foresees
    lost: Callable[..., Any] = lost
    share: Callable[..., Any] = share
    order: Callable[..., Any] = order
    undo: Callable[..., Any] = undo
    out_of: Callable[..., Any] = out_of
    seen_by_grid: Callable[..., Any] = seen_by_grid
    downhill: Callable[..., Any] = downhill
    curve: Callable[..., Any] = curve
    renewed: Callable[..., Any] = renewed
    per_token: Callable[..., Any] = per_token
    behind: Callable[..., Any] = behind
    shared_heads: Callable[..., Any] = shared_heads
    moment_of: Callable[..., Any] = moment_of
    of_group: Callable[..., Any] = of_group
    to_heads: Callable[..., Any] = to_heads
    turned_back: Callable[..., Any] = turned_back
    partners: Callable[..., Any] = partners
    visible: Callable[..., Any] = visible
    judged: Callable[..., Any] = judged
    owed: Callable[..., Any] = owed


def _grouped(x: np.ndarray, groups: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], groups, -1)


def _range(steps: Steps, w: np.ndarray, symmetric: bool, group_size: int | None) -> tuple[Any, Any, Any]:
    parts = _grouped(w, 1 if group_size is None else w.shape[-1] // group_size)
    low, high = steps.ends(parts)
    low, high = steps.both_ways(low, high) if symmetric else (low, high)
    nothing = (low == 0) & (high == 0)
    return parts, np.where(nothing, -1.0, low), np.where(nothing, 1.0, high)


def _codes(steps: Steps, x: np.ndarray, scale: Any, zero: Any, bits: int) -> Any:
    return steps.in_range(steps.shifted(steps.nearest(x / scale), zero), bits)


def _minmax(steps: Steps, w: np.ndarray, bits: int, *, symmetric: bool = False, group_size: int | None = None) -> Any:
    _, low, high = _range(steps, w, symmetric, group_size)
    scale = steps.step_size(low, high, bits)
    zero = np.full_like(scale, steps.middle(bits)) if symmetric else steps.zero_point(low, scale)
    return QuantGrid(scale, zero)


def _search(
    steps: Steps,
    w: np.ndarray,
    bits: int,
    *,
    hessian: np.ndarray | None = None,
    symmetric: bool = False,
    n_shrink: int = 100,
    norm: float = 2.4,
    group_size: int | None = None,
) -> Any:
    parts, low, high = _range(steps, w, symmetric, group_size)
    width = parts.shape[-1]
    if hessian is not None:
        starts = range(0, w.shape[-1], width)
        blocks = np.stack([hessian[..., k : k + width, k : k + width] for k in starts], axis=-3)
        hessian = blocks[..., None, :, :, :] if hessian.ndim == 3 else blocks  # (..., 1, g, m, m): all rows alike
    best = np.full(low.shape, steps.first_price())
    scale, zero = _minmax(steps, w, bits, symmetric=symmetric, group_size=group_size)
    for i in range(n_shrink):
        ends_now = steps.shrunk(low, high, 1 - i / n_shrink)
        s = steps.step_size(*ends_now, bits)
        tried = [np.full_like(s, steps.middle(bits))] * 2 if symmetric else steps.zero_points(ends_now[0], s)
        for z in tried:
            error = steps.value(_codes(steps, parts, s, z, bits), s, z) - parts
            now = steps.price(error, hessian, norm)
            scale, zero = np.where(now < best, s, scale), np.where(now < best, z, zero)
            best = np.minimum(now, best)
    return QuantGrid(scale, zero)


def _grid(steps: Steps, kind: Any, w: np.ndarray, bits: int, h_in: np.ndarray, options: dict[str, Any]) -> Any:
    if not isinstance(kind, str):
        return kind
    if kind == "minmax":
        return _minmax(steps, w, bits, **options)
    return _search(steps, w, bits, hessian=h_in if kind == "hessian" else None, **options)


def _columns(
    steps: Steps,
    w: np.ndarray,
    h_in: np.ndarray,
    residual: np.ndarray | None,
    grid: QuantGrid,
    bits: int,
    late: tuple[int, Callable[[np.ndarray], QuantGrid]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Round column after column; each error is made good by those that follow. Grids may be found on the way."""
    moved, upper = w.copy(), steps.factor(h_in)
    ahead = None if residual is None else steps.foresees(residual, upper)
    weight, codes = np.empty_like(w), np.empty_like(w)
    d, groups = w.shape[-1], grid.scale.shape[-2]
    settled, grid = w, QuantGrid(*(part.copy() for part in grid))
    for c in range(d):
        group = c * groups // d
        if late is not None and c % late[0] == 0:
            settled = moved.copy()
        if late is not None and c % (d // groups) == 0:
            for whole, part in zip(grid, late[1](settled[..., c : c + d // groups]), strict=True):
                whole[..., group, :] = part[..., 0, :]
        scale, zero = (part[..., group, :] for part in grid)
        column = moved[..., c, None].copy()
        code = _codes(steps, column, scale, zero, bits)
        codes[..., c, None], weight[..., c, None] = code, steps.value(code, scale, zero)
        moved[..., c:] += steps.follows((column - weight[..., c, None])[..., 0], upper, c)
        if ahead is not None:
            moved[..., c:] += column * ahead[..., c, None, c:]
    return weight, codes


def _both(h: np.ndarray, places: np.ndarray) -> np.ndarray:
    per_head = np.broadcast_to(h, (len(places), *h.shape[-2:]))
    return np.stack([one[at][:, at] for one, at in zip(per_head, places, strict=True)])


def _taken(x: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    return np.stack([np.take(one, at, axis=axis) for one, at in zip(x, places, strict=True)])


def _prepared(
    steps: Steps, w: np.ndarray, h_in: np.ndarray, residual: np.ndarray | None, dead_value: float
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return all a head (H, …): weights, the damped Hessian and R, without dead inputs."""
    h = np.broadcast_to(h_in, (len(w), *h_in.shape[-2:]))
    dead = np.diagonal(h, axis1=-2, axis2=-1) == 0
    r = None if residual is None else np.where(dead[:, None], 0.0, np.broadcast_to(residual, h.shape))
    return steps.drop(w, dead), steps.damp(steps.revive(h, dead, dead_value)), r


def _orders(steps: Steps, h: np.ndarray, wanted: bool) -> np.ndarray:
    diagonal = np.diagonal(h, axis1=-2, axis2=-1)
    return np.asarray(steps.order(diagonal) if wanted else np.tile(np.arange(h.shape[-1]), (len(h), 1)))


def _loss(steps: Steps, w: Any, q: Any, h_in: Any, h_out: Any, residual: Any) -> Any:
    total = 0.0
    for h in range(len(w)):
        error, out = q[h] - w[h], np.eye(w.shape[1]) if h_out is None else h_out[h]
        total += steps.judged(error, h_in[h], out)
        if residual is not None:
            total += steps.owed(w[h], error, residual[h], out)
    return np.float64(total)


def gptq_loop(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return GPTQ with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        w: np.ndarray,
        h_in: np.ndarray,
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
        given = w.reshape(len(h_in) if h_in.ndim == 3 else 1, -1, w.shape[1])
        rows, h, r = _prepared(steps, given, h_in, residual, dead_value)
        at = _orders(steps, h, act_order)
        rows, given = _taken(rows, at, 1), _taken(given, at, 1)
        h, r = _both(h, at), None if r is None else _both(r, at)
        kind, options = grid, {"symmetric": symmetric, "group_size": group_size}
        grid = _grid(steps, kind, given, bits, h, options)
        late = lambda part: _grid(steps, kind, part, bits, h, {**options, "group_size": None})  # noqa: E731  one use
        weight, codes = _columns(steps, rows, h, r, grid, bits, (block_columns, late) if block_columns else None)
        loss, back = _loss(steps, rows, weight, h, None, r), steps.undo(at)
        return QuantResult(_taken(weight, back, 1), _taken(codes, back, 1).astype(np.int64), grid, loss)

    return wrong


def turbo_loop(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return TurboBoA with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        w: np.ndarray,
        h_in: np.ndarray,
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
        rows, h, r = _prepared(steps, w.reshape(n_heads, -1, w.shape[1]), h_in, residual, dead_value)
        at = _orders(steps, h, act_order_cols)
        rows, h, r = _taken(rows, at, 1), _both(h, at), None if r is None else _both(r, at)
        out = None if h_out is None else steps.damp(steps.out_of(h_out))
        row_at = _orders(steps, np.zeros((n_heads, *rows.shape[1:2] * 2)) if out is None else out, act_order_rows)
        rows, out = _taken(rows, row_at, 0), None if out is None else _both(out, row_at)
        options = {"symmetric": symmetric, "group_size": group_size}
        adapts = adaptive_grid and isinstance(grid, str)
        whole = grid if isinstance(grid, str) else QuantGrid(*(_taken(part, row_at, 0) for part in grid))
        whole = whole if adapts else _grid(steps, whole, rows, bits, h, options)

        def own_grid(here: slice, block: np.ndarray) -> Any:
            if adapts:
                return _grid(steps, whole, steps.seen_by_grid(rows[:, here], block), bits, h, options)
            return QuantGrid(*(np.asarray(part)[:, here] for part in whole))

        found = _row_blocks(steps, (rows, h, r, out), bits, block_rows, own_grid)
        weight, codes, scale, zero = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        result = QuantGrid(scale, zero)
        if refine_sweeps:
            result = _refine(steps, rows, codes, result, (h, out, r), refine_sweeps)
            weight = result.scale[..., 0] * (codes - result.zero[..., 0])
        loss, back, row_back = _loss(steps, rows, weight, h, out, r), steps.undo(at), steps.undo(row_at)
        weight, codes = (_taken(_taken(x, back, 1), row_back, 0) for x in (weight, codes))
        return QuantResult(weight, codes.astype(np.int64), QuantGrid(*(_taken(x, row_back, 0) for x in result)), loss)

    return wrong


def _row_blocks(
    steps: Steps, problem: tuple[Any, ...], bits: int, block_rows: int, own_grid: Callable[[slice, np.ndarray], Any]
) -> list[tuple[np.ndarray, ...]]:
    """Return weights, codes, steps and zero points of one block of rows after the other."""
    rows, h, r, out = problem
    left, found = rows.copy(), []
    for begin in range(0, rows.shape[1], block_rows):
        here, rest = slice(begin, begin + block_rows), slice(begin + block_rows, None)
        block = left[:, here].copy()
        own = own_grid(here, block)
        weight, codes = _columns(steps, block, h, r, own, bits)
        found.append((weight, codes, *own))
        if out is not None and rest.start < rows.shape[1]:
            moves = steps.share(steps.factor(out), here, rest)
            left[:, rest] -= np.swapaxes(moves, -1, -2) @ steps.lost(block, weight, r, h)
    return found


def boa_loop(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return BoA with these steps exchanged."""
    rounded = turbo_loop(**changes)

    def wrong(w: np.ndarray, h_in: np.ndarray, h_out: Any, bits: int, **options: Any) -> Any:
        return rounded(w, h_in, h_out, bits, block_rows=1, adaptive_grid=False, refine_sweeps=0, **options)

    return wrong


def _refine(
    steps: Steps, w: np.ndarray, codes: np.ndarray, grid: QuantGrid, hessians: tuple[Any, Any, Any], sweeps: int
) -> QuantGrid:
    h_in, h_out, residual = hessians
    h_out = np.broadcast_to(np.eye(w.shape[1]), (len(w), w.shape[1], w.shape[1])) if h_out is None else h_out
    units, scale = codes - grid.zero[..., 0], grid.scale[..., 0].copy()
    error = w - scale * units
    for _ in range(sweeps):
        stale = error
        for j in range(w.shape[1]):
            slope = steps.downhill(units, j, error, w, (h_in, h_out, residual))
            size = steps.curve(units, j, h_in, h_out)
            scale[:, j, 0] += np.where(size == 0, 0.0, slope / np.where(size == 0, 1.0, size))
            error = steps.renewed(w, scale, units, stale)
        error = w - scale * units
    return QuantGrid(scale[..., None], grid.zero)


def refining(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the refinement with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        w: Any, codes: Any, grid: QuantGrid, h_in: Any, h_out: Any = None, residual: Any = None, sweeps: int = 1
    ) -> Any:
        return _refine(steps, w, codes, grid, (h_in, h_out, residual), sweeps)

    return wrong


def minmax(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the min-max grid with these steps exchanged."""
    steps = Steps(**changes)
    return lambda w, bits, **options: _minmax(steps, w, bits, **options)


def searching(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the search with these steps exchanged."""
    steps = Steps(**changes)
    return lambda w, bits, **options: _search(steps, w, bits, **options)


def coding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the codes with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(x: np.ndarray, grid: QuantGrid, bits: int) -> Any:
        parts = _grouped(x, grid.scale.shape[-2])
        return _codes(steps, parts, grid.scale, grid.zero, bits).reshape(x.shape).astype(np.int64)

    return wrong


def decoding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the values of codes with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(codes: np.ndarray, grid: QuantGrid) -> Any:
        return steps.value(_grouped(codes, grid.scale.shape[-2]), *grid).reshape(codes.shape)

    return wrong


def rounding(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return rounding to nearest with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(w: np.ndarray, bits: int, *, grid: Any = None) -> Any:
        grid = _minmax(steps, w[None], bits) if grid is None else grid
        parts = _grouped(w[None], grid.scale.shape[-2])
        codes = _codes(steps, parts, grid.scale, grid.zero, bits)
        weight = steps.value(codes, *grid).reshape(1, *w.shape)
        codes = codes.reshape(weight.shape).astype(np.int64)
        return QuantResult(weight, codes, grid, np.float64(np.sum((weight - w) ** 2)))

    return wrong


def moments(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the input's Hessian with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(x: np.ndarray) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        return steps.per_token(flat.T @ flat, x)

    return wrong


def correlating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return R with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(x_full: np.ndarray, x_quant: np.ndarray) -> Any:
        full, quant = (x.reshape(-1, x.shape[-1]) for x in (x_full, x_quant))
        return steps.per_token(steps.behind(full, quant).T @ quant, x_quant)

    return wrong


def _rotations(angles: np.ndarray | None, n: int, r: int) -> Any:
    """Return the matrices (L, r, r) that turn channel pairs (i, i + r/2)."""
    if angles is None:
        return np.tile(np.eye(r), (n, 1, 1))
    cos, sin = (f(angles)[:, :, None] * np.eye(r // 2) for f in (np.cos, np.sin))
    return np.concatenate([np.concatenate([cos, -sin], axis=-1), np.concatenate([sin, cos], axis=-1)], axis=-2)


def _heads(x: np.ndarray, w: np.ndarray, heads: int, rotations: np.ndarray | None) -> Any:
    out = np.einsum("bld,hrd->bhlr", x, w.reshape(heads, -1, w.shape[-1]))
    return out if rotations is None else np.einsum("lij,bhlj->bhli", rotations, out)


def _attention(q: np.ndarray, k: np.ndarray, seen: Any) -> Any:
    scores = np.where(seen, np.einsum("bhir,bhjr->bhij", q, k) / np.sqrt(q.shape[-1]), -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attending(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the Hessians of attention with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        x: np.ndarray,
        wq: np.ndarray,
        wk: np.ndarray,
        wv: np.ndarray,
        *,
        n_heads: int,
        n_kv_heads: int | None = None,
        causal: bool = True,
        rope_angles: Any = None,
    ) -> Any:
        del wv
        groups = n_kv_heads or n_heads
        times, n = n_heads // groups, x.shape[1]
        turn = _rotations(rope_angles, n, len(wq) // n_heads)
        q, k = _heads(x, wq, n_heads, turn), _heads(x, wk, groups, turn)
        seen = steps.visible(n) if causal else np.ones((n, n), bool)
        mixed = np.einsum("bhij,bjd->bhid", _attention(q, steps.shared_heads(k, times), seen), x)
        for_query, for_key = steps.partners(q, k)
        return AttentionHessians(
            steps.moment_of(x[:, None])[0],
            steps.of_group(steps.moment_of(mixed), groups),
            steps.to_heads(steps.turned_back(steps.moment_of(for_query), turn), n_heads // for_query.shape[1]),
            steps.of_group(steps.turned_back(steps.moment_of(for_key), turn), groups),
        )

    return wrong


def losing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(w: Any, q: Any, h_in: Any, h_out: Any = None, residual: Any = None) -> Any:
        heads = next((len(h) for h in (h_out, h_in) if h is not None and h.ndim == 3), 1)
        w, q = ((x if x.ndim == 3 else x.reshape(heads, -1, x.shape[-1])) for x in (w, q))
        h_in, residual = (None if h is None else np.broadcast_to(h, (len(w), *h.shape[-2:])) for h in (h_in, residual))
        h_out = None if h_out is None else steps.out_of(h_out)
        return _loss(steps, w, q, h_in, h_out, residual)

    return wrong
