"""Multi-level training's operators head by head and layer by layer, every step exchangeable for a planted bug."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.multilevel_maps import WidthMaps
from refattn.efficiency.multilevel_parameters import ParametersByRole

if TYPE_CHECKING:
    from collections.abc import Callable

    Groups = list[list[int]]

__all__ = ["coalescing", "decoalescing", "interpolating", "layering", "turning", "weighing", "widening"]

# role -> what it reads and writes, and whether it is an embedding
_SPACES: dict[str, tuple[str | None, str | None, bool]] = {
    "embedding": (None, "residual", True),
    "unembedding": ("residual", None, False),
    "constant": (None, None, False),
    "vector": (None, "residual", False),
    "matrix": ("residual", "residual", False),
    "layer_vector": (None, "residual", False),
    "layer_matrix": ("residual", "residual", False),
    "mlp_in": ("residual", "mlp", False),
    "mlp_vector": (None, "mlp", False),
    "mlp_out": ("mlp", "residual", False),
}


def head_groups(big: int, small: int) -> Groups:
    """Return which heads merge if nobody says."""
    return [[i, i + small] if i + small < big else [i] for i in range(small)]


def layer_groups(big: int, small: int) -> Groups:
    """Return which layers merge if nobody says."""
    return [[2 * i, 2 * i + 1] for i in range(small)] if big > small else [[i] for i in range(big)]


def neurons(head: int, heads: int, block: int) -> list[int]:
    """Return the places of a head's neurons."""
    del heads
    return list(range(head * block, (head + 1) * block))


def hidden_block(width: int, heads: int, e: int) -> int:
    """Return how many hidden neurons move together."""
    del e
    return width // heads


def member_shares(group: list[int]) -> list[float]:
    """Return what each member of a group counts."""
    return [1.0 / len(group)] * len(group)


def layer_shares(group: list[int]) -> list[float]:
    """Return what each layer of a group counts."""
    return [1.0 / len(group)] * len(group)


def turned(matrix: np.ndarray) -> Any:
    """Return the map of the way back."""
    rows = [row / row.sum() if row.sum() != 0 else row for row in matrix.T]
    return np.stack(rows) if rows else matrix.T


def outputs(w: np.ndarray, M: np.ndarray) -> Any:
    """Return a weight (..., n) whose outputs are mapped."""
    return w @ M.T


def inputs(w: np.ndarray, M: np.ndarray, back: np.ndarray) -> Any:
    """Return a weight (..., n, m) whose inputs are mapped; ``back`` is the way back of M."""
    del M
    return back.T @ w


def vectors(w: np.ndarray, M: np.ndarray) -> Any:
    """Return gains or biases (..., n) on the other level."""
    return w @ M.T


def scaled(w: np.ndarray, factor: float, *, embeds: bool) -> Any:
    """Return a mapped weight, scaled if it is an embedding."""
    return factor * w if embeds else w


def usual_factor(width_groups: Groups, depth_groups: Groups, *, tied: bool, grows: bool) -> float:
    """Return what embeddings are multiplied by if nobody says."""
    del depth_groups
    pairs = tied and all(len(group) == 2 for group in width_groups)
    return (0.5 if grows else 2.0) if pairs else 1.0


def mixed_layers(stack: np.ndarray, R: np.ndarray) -> Any:
    """Return the layers (l', ...) of the other level."""
    return np.stack([sum((R[t, s] * stack[s] for s in range(len(stack))), 0.0 * stack[0]) for t in range(len(R))])


def blended(big: np.ndarray, small: np.ndarray, alpha: float, name: str) -> Any:
    """Return a mixture of a big model's parameter and a de-coalesced one."""
    del name
    return (1.0 - alpha) * big + alpha * small


class Steps(NamedTuple):
    """Every step that a planted bug may replace."""

    head_groups: Callable[..., Any] = head_groups
    layer_groups: Callable[..., Any] = layer_groups
    neurons: Callable[..., Any] = neurons
    hidden_block: Callable[..., Any] = hidden_block
    member_shares: Callable[..., Any] = member_shares
    layer_shares: Callable[..., Any] = layer_shares
    turned: Callable[..., Any] = turned
    outputs: Callable[..., Any] = outputs
    inputs: Callable[..., Any] = inputs
    vectors: Callable[..., Any] = vectors
    scaled: Callable[..., Any] = scaled
    usual_factor: Callable[..., Any] = usual_factor
    mixed_layers: Callable[..., Any] = mixed_layers
    blended: Callable[..., Any] = blended


def grouped(steps: Steps, groups: Groups, heads: int, block: int) -> np.ndarray:
    """Return the map of some groups of heads, each so many neurons."""
    M = np.zeros((len(groups) * block, heads * block))
    for i, group in enumerate(groups):
        for j, share in zip(group, steps.member_shares(group), strict=True):
            M[steps.neurons(i, len(groups), block), steps.neurons(j, heads, block)] = share
    return M


def both_widths(steps: Steps, groups: Groups, heads: int, e: int, hidden: int) -> WidthMaps:
    """Return the maps of the residual stream and of the MLP."""
    block = steps.hidden_block(hidden, heads, e)
    return WidthMaps(
        grouped(steps, groups, heads, e),
        np.kron(np.eye(hidden // (heads * block)), grouped(steps, groups, heads, block)),
    )


def layers_map(steps: Steps, groups: Groups, layers: int) -> np.ndarray:
    """Return the map of some groups of layers."""
    R = np.zeros((len(groups), layers))
    for i, group in enumerate(groups):
        R[i, group] = steps.layer_shares(group)
    return R


def one_weight(steps: Steps, w: np.ndarray, maps: WidthMaps, role: str, factor: float) -> Any:
    """Return one parameter on the other level."""
    reads, writes, embeds = _SPACES[role]
    if writes is not None:
        M = getattr(maps, writes)
        w = steps.vectors(w, M) if role.endswith("vector") else steps.outputs(w, M)
    if reads is not None:
        M = getattr(maps, reads)
        w = steps.inputs(w, M, steps.turned(M))
    return steps.scaled(w, factor, embeds=embeds)


def widening(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the width maps with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(
        big_width: int, small_width: int, *, head_size: int, scheme: Any = None, mlp_width: int | None = None
    ) -> Any:
        big, small = big_width // head_size, small_width // head_size
        groups = steps.head_groups(big, small) if scheme is None else scheme
        return both_widths(steps, groups, big, head_size, 4 * big_width if mlp_width is None else mlp_width)

    return wrong


def layering(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the depth map with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(big_depth: int, small_depth: int, scheme: Any = None) -> Any:
        groups = steps.layer_groups(big_depth, small_depth) if scheme is None else scheme
        return layers_map(steps, groups, big_depth)

    return wrong


def turning(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the way back with these steps exchanged."""
    return Steps(**changes).turned


def weighing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the map of one weight with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(weight: np.ndarray, maps: WidthMaps, *, role: str, embedding_factor: float = 1.0) -> Any:
        return one_weight(steps, weight, maps, role, embedding_factor)

    return wrong


def _moving(steps: Steps, *, grows: bool) -> Callable[..., Any]:
    def wrong(
        parameters: ParametersByRole,
        *,
        head_size: int,
        n_heads: int | None = None,
        n_layers: int | None = None,
        width_scheme: Any = None,
        depth_scheme: Any = None,
        embedding_factor: float | None = None,
    ) -> Any:
        wide = _groups(steps.head_groups, width_scheme, parameters.embedding.shape[-1] // head_size, n_heads, grows)
        deep = _groups(steps.layer_groups, depth_scheme, len(parameters.mlp_in), n_layers, grows)
        here = len(wide) if grows else sum(map(len, wide))
        hidden = parameters.mlp_in.shape[-1] // here * sum(map(len, wide))
        maps = both_widths(steps, wide, sum(map(len, wide)), head_size, hidden)
        R = layers_map(steps, deep, sum(map(len, deep)))
        if grows:
            maps, R = WidthMaps(*map(steps.turned, maps)), steps.turned(R)
        factor = embedding_factor
        if factor is None:
            factor = steps.usual_factor(wide, deep, tied=parameters.unembedding is None, grows=grows)
        found = {}
        for name, w in parameters._asdict().items():
            moved = None if w is None else one_weight(steps, w, maps, name, factor)
            layered = name.startswith(("layer", "mlp")) and R.size > 0
            found[name] = steps.mixed_layers(moved, R) if layered else moved
        return ParametersByRole(**found)

    return wrong


def _groups(default: Callable[..., Any], scheme: Any, now: int, then: int | None, grows: bool) -> Groups:
    if scheme is not None:
        return list(map(list, scheme))
    big, small = (then or now, now) if grows else (now, then or now)
    return list(default(big, small))


def coalescing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return coalescing with these steps exchanged."""
    return _moving(Steps(**changes), grows=False)


def decoalescing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return de-coalescing with these steps exchanged."""
    return _moving(Steps(**changes), grows=True)


def interpolating(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return interpolation with these steps exchanged."""
    steps = Steps(**changes)

    def wrong(big: ParametersByRole, decoalesced: ParametersByRole, *, alpha: float) -> Any:
        pairs = zip(ParametersByRole._fields, big, decoalesced, strict=True)
        return ParametersByRole(*(None if a is None else steps.blended(a, b, alpha, name) for name, a, b in pairs))

    return wrong
