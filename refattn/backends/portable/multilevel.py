"""Multi-level training's operators in the array-API standard, without a matrix product: by gathers and means.

A group's members are gathered and averaged one after the other; copies are gathered from where their group's neuron
stands. Only maps that are asked for as maps, or given as such, are matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from refattn.efficiency.multilevel_maps import WidthMaps
from refattn.efficiency.multilevel_parameters import ParametersByRole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Scheme = Sequence[Sequence[int]]

__all__ = [
    "coalesce_parameters",
    "decoalesce_parameters",
    "depth_map",
    "interpolate_parameters",
    "map_weight",
    "reverse_map",
    "width_maps",
]

# which axes of each parameter are mapped, by what they hold; an axis from the end
_AXES: dict[str, dict[int, str]] = {
    "embedding": {-1: "residual"},
    "unembedding": {-2: "residual"},
    "constant": {},
    "vector": {-1: "residual"},
    "matrix": {-1: "residual", -2: "residual"},
    "layer_constant": {},
    "layer_vector": {-1: "residual"},
    "layer_matrix": {-1: "residual", -2: "residual"},
    "mlp_in": {-1: "mlp", -2: "residual"},
    "mlp_vector": {-1: "mlp"},
    "mlp_out": {-1: "residual", -2: "mlp"},
}
_READS = ("unembedding", "matrix", "layer_matrix", "mlp_in", "mlp_out")


def width_maps(
    big_width: int, small_width: int, *, head_size: int, scheme: Scheme | None = None, mlp_width: int | None = None
) -> WidthMaps:
    """Return which neurons become one: a neuron's group is looked up, not filled in block by block."""
    heads, small = big_width // head_size, small_width // head_size
    groups = [range(i, heads, small) for i in range(small)] if scheme is None else scheme
    hidden = (mlp_width or 4 * big_width) // heads
    return WidthMaps(_membership(groups, head_size), _membership(groups, hidden))


def depth_map(big_depth: int, small_depth: int, scheme: Scheme | None = None) -> Any:
    """Return which layers become one."""
    return _membership(_layer_groups(big_depth, small_depth) if scheme is None else scheme, 1)


def reverse_map(matrix: Any) -> Any:
    """Return the transpose of a map after its columns have been brought to a sum of one, or of zero."""
    xp = array_namespace(matrix)
    total = xp.sum(matrix, axis=0)
    return xp.matrix_transpose(matrix / xp.where(total > 0, total, xp.ones_like(total)))


def map_weight(weight: Any, maps: WidthMaps, *, role: str, embedding_factor: float = 1.0) -> Any:
    """Map one parameter: inputs before outputs, so that the smaller product comes first where a model shrinks."""
    xp = array_namespace(weight)
    reads = _AXES[role].get(-2) if role in _READS else None
    writes = _AXES[role].get(-1)
    if reads is not None:
        back = reverse_map(getattr(maps, reads))
        weight = xp.matrix_transpose(xp.matrix_transpose(weight) @ back)
    if writes is not None:
        weight = weight @ xp.matrix_transpose(getattr(maps, writes))
    return weight * embedding_factor if role == "embedding" else +weight


def coalesce_parameters(
    parameters: ParametersByRole,
    *,
    head_size: int,
    n_heads: int | None = None,
    n_layers: int | None = None,
    width_scheme: Scheme | None = None,
    depth_scheme: Scheme | None = None,
    embedding_factor: float | None = None,
) -> ParametersByRole:
    """Average the members of each group, layers first; inputs are summed."""
    heads, layers, hidden = _sizes(parameters, head_size)
    small, deep = n_heads or heads, layers if n_layers is None else n_layers
    wide = [range(i, heads, small) for i in range(small)] if width_scheme is None else width_scheme
    layer_groups = _layer_groups(layers, deep) if depth_scheme is None else depth_scheme
    factor = embedding_factor
    if factor is None:
        factor = 1.0 if parameters.unembedding is not None else float(len(wide[0]))

    def moved(name: str, weight: Any) -> Any:
        if name.startswith(("layer", "mlp")):
            weight = _averaged(weight, 0, layer_groups, 1)
        for axis, space in _AXES[name].items():
            merge = _averaged if axis == -1 else _summed
            weight = merge(weight, axis, wide, head_size if space == "residual" else hidden)
        return weight

    return _each(parameters, moved, factor)


def decoalesce_parameters(
    parameters: ParametersByRole,
    *,
    head_size: int,
    n_heads: int | None = None,
    n_layers: int | None = None,
    width_scheme: Scheme | None = None,
    depth_scheme: Scheme | None = None,
    embedding_factor: float | None = None,
) -> ParametersByRole:
    """Look up for every neuron and layer whose copy it is; what reads a copy takes its share."""
    heads, layers, hidden = _sizes(parameters, head_size)
    big, deep = n_heads or heads, layers if n_layers is None else n_layers
    wide = [range(i, big, heads) for i in range(heads)] if width_scheme is None else width_scheme
    layer_groups = _layer_groups(deep, layers) if depth_scheme is None else depth_scheme
    factor = embedding_factor
    if factor is None:
        factor = 1.0 if parameters.unembedding is not None else 1.0 / len(wide[0])

    def moved(name: str, weight: Any) -> Any:
        for axis, space in _AXES[name].items():
            block = head_size if space == "residual" else hidden
            weight = _copied(weight, axis, wide, block)
            if axis == -2:
                weight = weight / _along(weight, axis, _group_sizes(wide, block))
        return _copied(weight, 0, layer_groups, 1) if name.startswith(("layer", "mlp")) else weight

    return _each(parameters, moved, factor)


def interpolate_parameters(big: ParametersByRole, decoalesced: ParametersByRole, *, alpha: float) -> ParametersByRole:
    """Go from one model towards the other."""
    pairs = zip(big, decoalesced, strict=True)
    return ParametersByRole(*(None if a is None else a * (1.0 - alpha) + b * alpha for a, b in pairs))


def _layer_groups(big: int, small: int) -> list[range]:
    step = 2 if big > small else 1
    return [range(step * i, step * (i + 1)) for i in range(small)]


def _sizes(parameters: ParametersByRole, head_size: int) -> tuple[int, int, int]:
    """Return heads, layers, and a head's share of the MLP."""
    heads = parameters.embedding.shape[-1] // head_size
    return heads, parameters.mlp_in.shape[0], parameters.mlp_in.shape[-1] // heads


def _owners(groups: Scheme) -> np.ndarray:
    """Return the group of each member."""
    owners = np.zeros(sum(map(len, groups)), dtype=np.int64)
    for number, group in enumerate(groups):
        owners[np.asarray(group, dtype=np.int64)] = number
    return owners


def _places(members: np.ndarray, block: int) -> np.ndarray:
    """Return the neurons of some heads."""
    return (members[:, None] * block + np.arange(block)).reshape(-1)


def _membership(groups: Scheme, block: int) -> np.ndarray:
    """Return the map of some groups: neuron n of the big model belongs to group owner(head of n), place n mod block."""
    owners, sizes = _owners(groups), np.array([len(group) for group in groups], dtype=float)
    target = _places(owners, block)
    share = np.repeat(1.0 / sizes[owners], block) if len(owners) else np.zeros(0)
    return np.where(np.arange(len(groups) * block)[:, None] == target, share, 0.0)


def _taken(weight: Any, axis: int, places: np.ndarray) -> Any:
    xp = array_namespace(weight)
    return xp.take(weight, xp.asarray(places, device=device(weight)), axis=axis % weight.ndim)


def _summed(weight: Any, axis: int, groups: Scheme, block: int) -> Any:
    """Add up the members of each group along an axis: all first ones, then all second ones there are."""
    total = _taken(weight, axis, _places(np.asarray([group[0] for group in groups]), block))
    for k in range(1, max(map(len, groups))):
        places = _places(np.asarray([group[min(k, len(group) - 1)] for group in groups]), block)
        there = np.repeat([float(k < len(group)) for group in groups], block)
        part = _taken(weight, axis, places)
        total = total + (part if there.all() else part * _along(weight, axis, there))
    return total


def _along(weight: Any, axis: int, values: np.ndarray) -> Any:
    """Return numbers for the places along an axis, to be multiplied with."""
    xp = array_namespace(weight)
    shape = [1] * weight.ndim
    shape[axis] = len(values)
    return xp.asarray(values.reshape(shape), dtype=weight.dtype, device=device(weight))


def _averaged(weight: Any, axis: int, groups: Scheme, block: int) -> Any:
    if not groups:
        return weight
    shares = np.repeat([1.0 / len(group) for group in groups], block)
    return _summed(weight, axis, groups, block) * _along(weight, axis, shares)


def _copied(weight: Any, axis: int, groups: Scheme, block: int) -> Any:
    return _taken(weight, axis, _places(_owners(groups), block))


def _group_sizes(groups: Scheme, block: int) -> np.ndarray:
    """Return for each neuron of the big model how many share what it is a copy of."""
    sizes = np.array([len(group) for group in groups], dtype=float)[_owners(groups)]
    return np.repeat(sizes, block)


def _each(parameters: ParametersByRole, moved: Callable[[str, Any], Any], factor: float) -> ParametersByRole:
    pairs = zip(ParametersByRole._fields, parameters, strict=True)
    found = ParametersByRole(*(None if weight is None else moved(name, weight) for name, weight in pairs))
    return found._replace(embedding=found.embedding * factor)
