"""Coalesce, de-coalesce and interpolate the parameters of a transformer, sorted by their roles (2404.07999).

Coalescing makes a small model out of a big one by averaging heads and layers; de-coalescing makes a big one out of the
small one by copying; interpolation mixes that with the big one, because copies would stay copies for ever. The maps
stand in `refattn.efficiency.multilevel_maps`; equation labels (ml-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.multilevel_maps import (
    WidthMaps,
    apply_depth,
    apply_width,
    check_scheme,
    decoalescing_maps,
    default_depth_scheme,
    default_width_scheme,
    depth_map,
    width_maps,
)
from refattn.primitives.arguments import as_float, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.efficiency.multilevel_maps import Scheme

    Default = Callable[[int, int], Scheme]

__all__ = [
    "LevelMaps",
    "ParametersByRole",
    "coalesce_parameters",
    "decoalesce_parameters",
    "interpolate_parameters",
    "level_maps",
    "mix",
]


class ParametersByRole(NamedTuple):
    """The parameters of a transformer by their roles; what is treated alike lies stacked.

    Attributes
    ----------
    embedding : ndarray, shape (R, D)
        All rows that are added to the residual stream: of tokens, positions, segments.
    unembedding : ndarray, shape (D, V), or None
        The head, None if it is the embedding.
    vector : ndarray, shape (n, D)
        Outside the layers: norm gains and biases.
    layer_vector : ndarray, shape (L, n, D)
        Norm gains, and biases of attention and of the MLP's output.
    layer_matrix : ndarray, shape (L, n, D, D)
        Queries, keys, values and output, each of all heads.
    mlp_in, mlp_vector, mlp_out : ndarray, shapes (L, D, M), (L, M), (L, M, D)
        The MLP and its first bias.
    """

    embedding: Any
    unembedding: Any
    vector: Any
    layer_vector: Any
    layer_matrix: Any
    mlp_in: Any
    mlp_vector: Any
    mlp_out: Any


class LevelMaps(NamedTuple):
    """One step between two levels: the width maps, the depth map, and what embeddings are multiplied by."""

    width: WidthMaps
    depth: np.ndarray
    embedding_factor: float


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
    """Make a small model out of a big one: each of its heads and layers is the mean of a group.

    Parameters
    ----------
    parameters : ParametersByRole
        Of the big model, D wide and L deep.
    head_size : int
        e, the same in both.
    n_heads, n_layers : int, optional
        Of the small model; without them as many as the scheme has groups, or without a scheme as many as now.
    width_scheme, depth_scheme : sequence of sequences of int, optional
        For each small head or layer the big ones that it is the mean of. Default: head i with i + h, layer 2i with
        2i + 1.
    embedding_factor : float, optional
        What embeddings are multiplied by. Default: with a tied head 2, for which all groups of heads must be pairs, or
        1 if none of them merges; with a head of its own 1.

    Returns
    -------
    ParametersByRole

    Raises
    ------
    ValueError
        For a scheme that does not part heads or layers into groups, shapes that do not fit, or a tied head whose
        groups are not all pairs.

    Notes
    -----
    The official code multiplies by 2 whenever the width changes, whatever the size of the groups: that is
    ``embedding_factor=2``. That a head of its own needs no factor is [our definition], and what the code does for
    image models.

    References
    ----------
    2404.07999; its released code, ``GPT2Mapper.coalesce`` and ``BertMapper.coalesce``.
    """
    heads, layers, mlp_share = _sizes(parameters, head_size)
    maps = level_maps(
        (heads, layers),
        (n_heads, n_layers),
        (width_scheme, depth_scheme),
        head_size=head_size,
        mlp_share=mlp_share,
        factor=_tied_default(embedding_factor, parameters),
    )
    return _mapped(parameters, maps)


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
    """Make a big model out of a small one: every member of a group gets a copy of its head or layer.

    Parameters
    ----------
    parameters : ParametersByRole
        Of the small model, d wide and l deep.
    head_size : int
        e, the same in both.
    n_heads, n_layers : int, optional
        Of the big model; without them as many as the scheme has members, or without a scheme as many as now.
    width_scheme, depth_scheme : sequence of sequences of int, optional
        As in `coalesce_parameters`: for each small head or layer its big ones.
    embedding_factor : float, optional
        What embeddings are multiplied by. Default: 1 over that of `coalesce_parameters`.

    Returns
    -------
    ParametersByRole

    Raises
    ------
    ValueError
        As `coalesce_parameters`.

    Notes
    -----
    Coalescing the result by the same schemes gives the small model back. With a head of its own and groups of one size
    the wider model computes the same function; a copied layer acts twice, so a deeper one does not.
    """
    heads, layers, mlp_share = _sizes(parameters, head_size)
    maps = level_maps(
        (heads, layers),
        (n_heads, n_layers),
        (width_scheme, depth_scheme),
        head_size=head_size,
        mlp_share=mlp_share,
        factor=_tied_default(embedding_factor, parameters),
        grows=True,
    )
    return _mapped(parameters, maps)


def interpolate_parameters(big: ParametersByRole, decoalesced: ParametersByRole, *, alpha: float) -> ParametersByRole:
    """Mix a model with what was learnt at the level below: θ = (1 − α) θ_big + α θ_decoalesced.

    Parameters
    ----------
    big : ParametersByRole
        As it was before it was coalesced.
    decoalesced : ParametersByRole
        Of the same shapes.
    alpha : float
        α in [0, 1]: 0 keeps the one, 1 the other, exactly.

    Returns
    -------
    ParametersByRole

    Raises
    ------
    ValueError
        For α outside [0, 1], or shapes that differ.

    Notes
    -----
    The official code has α = 0.25 by default, its GPT-2 script 0.5. That script mixes with the finished baseline; the
    algorithm asks for the model saved before coalescing.
    """
    return ParametersByRole(
        *(mix(*pair, alpha=alpha) for pair in zip(ParametersByRole._fields, big, decoalesced, strict=True))
    )


def mix(name: str, big: Any, decoalesced: Any, *, alpha: float) -> Any:
    """Return the mixture of one parameter, which ``name`` stands for in messages; None if both are None."""
    require(0 <= alpha <= 1, f"alpha={alpha!r} must be in [0, 1]")
    require((big is None) == (decoalesced is None), f"{name} is in one of the models only")
    if big is None:
        return None
    big, decoalesced = as_float(f"big.{name}", big), as_float(f"decoalesced.{name}", decoalesced)
    same = big.shape == decoalesced.shape
    require(same, f"decoalesced.{name} has shape {decoalesced.shape}, expected {big.shape} as in big")
    keep, take = big.dtype.type(1 - alpha), big.dtype.type(alpha)
    # eq: ml-mix
    return np.asanyarray(keep * big + take * decoalesced)


def level_maps(
    now: tuple[int, int],
    then: tuple[int | None, int | None],
    schemes: tuple[Scheme | None, Scheme | None],
    *,
    head_size: int,
    mlp_share: int,
    factor: float | None,
    grows: bool = False,
) -> LevelMaps:
    """Return the maps between two levels.

    Parameters
    ----------
    now, then : (int, int)
        Heads and layers of the model at hand, and of the one to make; None as in `coalesce_parameters`.
    schemes : (scheme, scheme)
        For heads and for layers; None for the defaults.
    head_size, mlp_share : int
        How wide a head is, and its share of the hidden layer of the MLP.
    factor : float or None
        What embeddings are multiplied by; None for 2 (or ½) where all groups of heads are pairs.
    grows : bool
        Whether the model at hand is the small one.

    Returns
    -------
    LevelMaps
    """
    heads, layers = zip(now, then, strict=True)
    wide = _resolved("width_scheme", "head", schemes[0], heads, default_width_scheme, grows=grows)
    deep = _resolved("depth_scheme", "layer", schemes[1], layers, default_depth_scheme, grows=grows)
    big, depth = sum(map(len, wide)), sum(map(len, deep))
    width = width_maps(
        big * head_size, len(wide) * head_size, head_size=head_size, scheme=wide, mlp_width=big * mlp_share
    )
    mixing = depth_map(depth, len(deep), deep)
    factor = _pairs_factor(wide, grows=grows) if factor is None else factor
    return LevelMaps(*(decoalescing_maps(width, mixing) if grows else (width, mixing)), factor)


def _resolved(
    name: str, what: str, scheme: Scheme | None, sizes: tuple[int, int | None], default: Default, *, grows: bool
) -> Scheme:
    """Return the groups, given or by default, once they have been found to part what there is."""
    now, then = sizes
    if scheme is None:
        then = now if then is None else then
        big, small = (then, now) if grows else (now, then)
        scheme = default(big, small)
    elif grows:
        big, small = sum(map(len, scheme)) if then is None else then, now
    else:
        big, small = now, len(scheme) if then is None else then
    check_scheme(name, scheme, big, small, what)
    return scheme


def _pairs_factor(scheme: Scheme, *, grows: bool) -> float:
    sizes = {len(group) for group in scheme}
    require(
        sizes in ({1}, {2}),
        f"width_scheme={scheme!r}: with a tied head all groups must be pairs, unless embedding_factor is given",
    )
    size = sizes.pop()
    return 1 / size if grows else float(size)


def _tied_default(factor: float | None, parameters: ParametersByRole) -> float | None:
    return 1.0 if factor is None and parameters.unembedding is not None else factor


def _sizes(parameters: ParametersByRole, head_size: int) -> tuple[int, int, int]:
    """Return how many heads and layers there are, and how much of the MLP's hidden layer belongs to a head."""
    layers, width = np.shape(parameters.layer_matrix)[0], np.shape(parameters.embedding)[-1]
    require(head_size >= 1, f"head_size={head_size} must be at least 1")
    require(width % head_size == 0 and width > 0, f"width {width} must be a multiple of head_size={head_size}")
    heads, hidden = width // head_size, np.shape(parameters.mlp_in)[-1]
    require(hidden % heads == 0, f"mlp_in has {hidden} outputs, expected a multiple of the {heads} heads")
    return heads, layers, hidden // heads


def _mapped(parameters: ParametersByRole, maps: LevelMaps) -> ParametersByRole:
    """Map width, then depth; the order does not matter."""
    roles = {name: name for name in ParametersByRole._fields}
    wide = apply_width(parameters._asdict(), roles, maps.width, embedding_factor=maps.embedding_factor)
    return ParametersByRole(**apply_depth(wide, roles, maps.depth))
