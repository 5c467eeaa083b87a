"""The maps of multi-level training: which neurons and layers become one, as explicit matrices (2404.07999).

A small model's neuron is the mean of a group of neurons of the big one, and on the way back every member of the group
gets a copy. What that does to a weight depends on what it reads and what it writes. Weights are in the row convention
y = x W. Equation labels (ml-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import as_float, require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Scheme = Sequence[Sequence[int]]

__all__ = [
    "ROLES",
    "Role",
    "WidthMaps",
    "apply_depth",
    "apply_width",
    "check_scheme",
    "decoalescing_maps",
    "default_depth_scheme",
    "default_width_scheme",
    "depth_map",
    "map_weight",
    "reverse_map",
    "width_maps",
]


class WidthMaps(NamedTuple):
    """How the widths of a model are mapped: from D to d when it shrinks, from d to D when it grows.

    Attributes
    ----------
    residual : ndarray, shape (d, D) or (D, d)
        Of the residual stream, and of queries, keys and values, whose heads lie side by side.
    mlp : ndarray, shape (m, M) or (M, m)
        Of the hidden layer of the MLP.
    """

    residual: Any
    mlp: Any


class Role(NamedTuple):
    """What a parameter reads and writes: ``residual``, ``mlp``, or None for what no map touches.

    Attributes
    ----------
    reads, writes : str or None
        Name of the map for the last axis but one, and for the last axis.
    layered : bool
        Whether the parameter exists once a layer, all layers stacked along the first axis.
    embeds : bool
        Whether it is an embedding, which a tied head reads too.
    """

    reads: str | None
    writes: str | None
    layered: bool
    embeds: bool = False


ROLES: dict[str, Role] = {
    "embedding": Role(None, "residual", layered=False, embeds=True),
    "unembedding": Role("residual", None, layered=False),
    "constant": Role(None, None, layered=False),
    "vector": Role(None, "residual", layered=False),
    "matrix": Role("residual", "residual", layered=False),
    "layer_constant": Role(None, None, layered=True),
    "layer_vector": Role(None, "residual", layered=True),
    "layer_matrix": Role("residual", "residual", layered=True),
    "mlp_in": Role("residual", "mlp", layered=True),
    "mlp_vector": Role(None, "mlp", layered=True),
    "mlp_out": Role("mlp", "residual", layered=True),
}
"""The kinds of parameters. Norm gains and biases are vectors; projections of attention, all heads of one, matrices."""


def width_maps(
    big_width: int, small_width: int, *, head_size: int, scheme: Scheme | None = None, mlp_width: int | None = None
) -> WidthMaps:
    """Say which neurons become one when a model gets narrower: whole heads, and their share of all else.

    Parameters
    ----------
    big_width, small_width : int
        D and d, multiples of the head size.
    head_size : int
        e, the same in both models.
    scheme : sequence of sequences of int, optional
        For each small head the big ones that it is the mean of; each big head in exactly one group. Default: head i
        with head i + h, as far as there are any, which for D = 2d is the paper's [I, I]/2.
    mlp_width : int, optional
        M, a multiple of the number of heads; 4D if not given.

    Returns
    -------
    WidthMaps
        F (d, D) and F_m (m, M), m = M d/D, in float64; their rows sum to one.

    Raises
    ------
    ValueError
        For a width that is not divisible by the head size, or a scheme of another length, with a head out of range,
        given twice or left out.

    Notes
    -----
    Official code, ``MapMatrix.get_F``: the default template there leaves out heads beyond 2h; here they are missing
    from the scheme, and refused. Blocks of the MLP are M/H wide, 4e in the paper's models.

    References
    ----------
    2404.07999; its released code, ``map_tools/mapper.py``.
    """
    require(head_size >= 1, f"head_size={head_size} must be at least 1")
    for name, width in (("big_width", big_width), ("small_width", small_width)):
        require(width >= 1 and width % head_size == 0, f"{name}={width} must be a multiple of head_size={head_size}")
    big, small = big_width // head_size, small_width // head_size
    mlp_width = 4 * big_width if mlp_width is None else mlp_width
    require(mlp_width >= 1 and mlp_width % big == 0, f"mlp_width={mlp_width} must be a multiple of the {big} heads")
    scheme = default_width_scheme(big, small) if scheme is None else scheme
    check_scheme("scheme", scheme, big, small, "head")
    return WidthMaps(_group_map(scheme, big, head_size), _group_map(scheme, big, mlp_width // big))


def depth_map(big_depth: int, small_depth: int, scheme: Scheme | None = None) -> np.ndarray:
    """Say which layers become one when a model gets shallower.

    Parameters
    ----------
    big_depth, small_depth : int
        L and l.
    scheme : sequence of sequences of int, optional
        For each small layer the big ones that it is the mean of. Default: neighbours, 2i with 2i + 1; each layer by
        itself if the depths are equal.

    Returns
    -------
    ndarray, shape (l, L)
        R in float64; rows sum to one.

    Raises
    ------
    ValueError
        As `width_maps`, and if there is no default because L is neither l nor 2l.

    Notes
    -----
    The paper merges neighbours; the configuration that its code ships merges layers i and i + l.
    """
    for name, depth in (("big_depth", big_depth), ("small_depth", small_depth)):
        require(depth >= 0, f"{name}={depth} must not be negative")
    scheme = default_depth_scheme(big_depth, small_depth) if scheme is None else scheme
    check_scheme("scheme", scheme, big_depth, small_depth, "layer")
    return _group_map(scheme, big_depth, 1)


def reverse_map(matrix: Any) -> np.ndarray:
    """Turn a map round: transpose it, and let each row sum to one again.

    It makes T of F and G of R, by which a model grows. It also says what becomes of the inputs of a weight whose
    outputs a map averages or copies.

    Parameters
    ----------
    matrix : array_like, shape (n, m)
        A map, no entry negative.

    Returns
    -------
    ndarray, shape (m, n)
        Rows of zeros stay zero.

    Raises
    ------
    ValueError
        If ``matrix`` has not two axes, or a negative entry.
    """
    matrix = as_float("matrix", matrix, ndim=2)
    require(not np.any(matrix < 0), "matrix must not be negative: it holds the shares of a mean")
    turned = np.swapaxes(matrix, 0, 1)  # (m, n)
    total = np.sum(turned, axis=1, keepdims=True)  # (m, 1)
    # eq: ml-reverse
    return np.asanyarray(turned / np.where(total == 0, np.ones_like(total), total))


def decoalescing_maps(maps: WidthMaps, depth: Any) -> tuple[WidthMaps, np.ndarray]:
    """Return the maps by which a model grows: T (D, d) and T_m (M, m), and G (L, l); each member gets a copy."""
    return WidthMaps(*map(reverse_map, maps)), reverse_map(depth)


def map_weight(weight: Any, maps: WidthMaps, *, role: str, embedding_factor: float = 1.0) -> np.ndarray:
    """Map one parameter to the other width.

    Parameters
    ----------
    weight : array_like, shape (..., n) or (..., m, n)
        A vector or a matrix in the row convention, (in, out); more axes may lead.
    maps : WidthMaps
        Of the way to go.
    role : str
        One of `ROLES`.
    embedding_factor : float
        What embeddings are multiplied by.

    Returns
    -------
    ndarray
        In the dtype of ``weight``.

    Raises
    ------
    ValueError
        For an unknown role, or an axis that is not as wide as the map.

    Notes
    -----
    With M = F, outputs are averaged and inputs summed; with M = T, outputs are copied and inputs shared out evenly.
    """
    require_one_of("role", role, tuple(ROLES))
    reads, writes, _, embeds = ROLES[role]
    weight = as_float("weight", weight)
    if writes is not None:
        M = _fitting(weight, -1, maps, writes)
        # eq: ml-write
        weight = weight @ np.swapaxes(M, 0, 1)  # (..., m, n')
    if reads is not None:
        M = _fitting(weight, -2, maps, reads)
        # eq: ml-read
        weight = np.swapaxes(reverse_map(M), 0, 1) @ weight  # (..., m', n')
    # eq: ml-embed
    return np.asanyarray(weight * weight.dtype.type(embedding_factor) if embeds else weight)


def apply_width(
    parameters: Mapping[str, Any], roles: Mapping[str, str], maps: WidthMaps, *, embedding_factor: float = 1.0
) -> dict[str, Any]:
    """Map every parameter of a model to the other width.

    Parameters
    ----------
    parameters : mapping of str to array_like
        By any names; None stays None.
    roles : mapping of str to str
        The role of each.
    maps, embedding_factor
        As in `map_weight`.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        As `map_weight`, with the parameter's name, and for a parameter without a role.
    """
    _check_roles(parameters, roles)

    def moved(name: str, weight: Any) -> Any:
        try:
            return map_weight(weight, maps, role=roles[name], embedding_factor=embedding_factor)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    return {name: None if weight is None else moved(name, weight) for name, weight in parameters.items()}


def apply_depth(parameters: Mapping[str, Any], roles: Mapping[str, str], depth: Any) -> dict[str, Any]:
    """Map every parameter that exists once a layer to the other depth; leave the others as they are.

    Parameters
    ----------
    parameters, roles
        As in `apply_width`.
    depth : array_like, shape (l', l)
        R or G.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        For a parameter without a role, or of another number of layers than ``depth`` maps.
    """
    _check_roles(parameters, roles)
    depth = as_float("depth", depth, ndim=2)
    return {
        name: _mixed(name, weight, depth) if weight is not None and ROLES[roles[name]].layered else weight
        for name, weight in parameters.items()
    }


def _mixed(name: str, weight: Any, depth: np.ndarray) -> np.ndarray:
    weight = as_float(name, weight)
    layers = len(weight)
    require(layers == depth.shape[1], f"{name} has {layers} layers, the depth map takes {depth.shape[1]}")
    # eq: ml-depth
    rows = depth.astype(weight.dtype) @ weight.reshape(layers, -1 if weight.size else 0)  # (l', parameters of a layer)
    return np.asanyarray(rows.reshape(len(depth), *weight.shape[1:]))


def check_scheme(name: str, scheme: Scheme, big: int, small: int, what: str) -> None:
    """Raise ``ValueError`` unless ``scheme`` parts ``big`` heads or layers into ``small`` groups, none empty."""
    require(len(scheme) == small, f"{name}={scheme!r} has {len(scheme)} groups, expected {small}")
    members = [member for group in scheme for member in group]
    for member in members:
        require(0 <= member < big, f"{name}={scheme!r}: {what} {member} is not in 0..{big - 1}")
    counts = np.bincount(np.asarray(members, dtype=np.int64), minlength=big)
    once = bool(np.all(counts == 1)) and all(len(group) > 0 for group in scheme)
    require(once, f"{name}={scheme!r}: every {what} must belong to exactly one group, and no group be empty")


def default_width_scheme(big: int, small: int) -> list[list[int]]:
    """Return the groups of the paper's [I, I]: head i with head i + h."""
    return [[i, i + small] if i + small < big else [i] for i in range(small)]


def default_depth_scheme(big: int, small: int) -> list[list[int]]:
    """Return the groups of neighbours, or each layer by itself where nothing shrinks."""
    if big == small:
        return [[i] for i in range(big)]
    require(big == 2 * small, f"big_depth={big} must be small_depth={small} or twice that, unless a scheme is given")
    return [[2 * i, 2 * i + 1] for i in range(small)]


def _group_map(scheme: Scheme, big: int, block: int) -> np.ndarray:
    """Return the mean over each group, (groups·block, big·block): every entry a block of shares on its diagonal."""
    shares = np.zeros((len(scheme), big))
    for group, members in enumerate(scheme):
        # eq: ml-groups
        shares[group, list(members)] = 1 / len(members)
    return np.kron(shares, np.eye(block))


def _fitting(weight: np.ndarray, axis: int, maps: WidthMaps, name: str) -> np.ndarray:
    """Return the named map in the dtype of the weight whose axis it takes."""
    matrix: np.ndarray = as_float(f"maps.{name}", getattr(maps, name), ndim=2)
    require(weight.ndim >= -axis, f"weight has shape {weight.shape}, expected at least {-axis} axes")
    width, takes = weight.shape[axis], matrix.shape[1]
    require(width == takes, f"weight has shape {weight.shape}: axis {axis} must have width {takes}, as maps.{name}")
    return matrix.astype(weight.dtype, copy=False)


def _check_roles(parameters: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    for name in parameters:
        require(name in roles, f"parameter {name!r} has no role")
        require_one_of(f"role of {name}", roles[name], tuple(ROLES))
