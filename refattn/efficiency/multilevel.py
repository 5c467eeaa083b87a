"""Shrink a transformer, grow it again, and mix it with what it was: multi-level training's operators (2404.07999).

They take and return whole models. What becomes of each weight stands in `refattn.efficiency.multilevel_maps`, who
merges with whom in `refattn.efficiency.multilevel_parameters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.efficiency.multilevel_maps import apply_depth, apply_width
from refattn.efficiency.multilevel_parameters import LevelMaps, level_maps, mix
from refattn.primitives.arguments import require
from refattn.transformer.adamw import pack, unpack
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights, block_shapes

if TYPE_CHECKING:
    from refattn.efficiency.multilevel_maps import Scheme
    from refattn.transformer.config import TransformerConfig

__all__ = ["BLOCK_ROLES", "STEM_ROLES", "coalesce", "decoalesce", "interpolate"]

STEM_ROLES = {
    "W_E": "embedding",
    "W_pos": "embedding",
    "lnf_w": "vector",
    "lnf_b": "vector",
    "W_U": "unembedding",
    "b_U": "constant",
}
"""What the weights outside the blocks are to the maps."""

BLOCK_ROLES = {
    **dict.fromkeys(("ln1_w", "ln1_b", "b_Q", "b_K", "b_V", "b_O", "ln2_w", "ln2_b", "b_out"), "layer_vector"),
    **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), "layer_matrix"),
    **dict.fromkeys(("q_norm", "k_norm"), "layer_constant"),
    **dict.fromkeys(("W_in", "W_gate"), "mlp_in"),
    **dict.fromkeys(("b_in", "b_gate"), "mlp_vector"),
    "W_out": "mlp_out",
}
"""What the weights of a block are to the maps, heads side by side."""


def coalesce(
    model: Transformer,
    *,
    n_heads: int | None = None,
    n_layers: int | None = None,
    width_scheme: Scheme | None = None,
    depth_scheme: Scheme | None = None,
    embedding_factor: float | None = None,
) -> Transformer:
    """Make a small model out of a big one: each of its heads and layers is the mean of a group.

    Parameters
    ----------
    model : Transformer
        With as many key and value heads as query heads.
    n_heads, n_layers, width_scheme, depth_scheme, embedding_factor
        As in `refattn.efficiency.multilevel_parameters.coalesce_parameters`.

    Returns
    -------
    Transformer
        As wide as its heads are together.

    Raises
    ------
    ValueError
        As `coalesce_parameters`; for a family that has no rule: shared key and value heads, a residual stream that is
        not as wide as the heads together, an MLP that the heads cannot share; for layers that merge although they
        differ in scale or window.

    Notes
    -----
    The paper's models are GPT-2's kind. Rotary positions, RMS norms, gated MLPs, norms of queries and keys, and blocks
    that are computed side by side go through unchanged, since heads are mapped as a whole [our extension].

    References
    ----------
    2404.07999; its released code, ``GPT2Mapper``.
    """
    return _moved(model, (n_heads, n_layers), (width_scheme, depth_scheme), embedding_factor, grows=False)


def decoalesce(
    model: Transformer,
    *,
    n_heads: int | None = None,
    n_layers: int | None = None,
    width_scheme: Scheme | None = None,
    depth_scheme: Scheme | None = None,
    embedding_factor: float | None = None,
) -> Transformer:
    """Make a big model out of a small one: every member of a group gets a copy of its head or layer.

    Parameters
    ----------
    model : Transformer
        The small one.
    n_heads, n_layers, width_scheme, depth_scheme, embedding_factor
        As in `refattn.efficiency.multilevel_parameters.decoalesce_parameters`.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        As `coalesce`.
    """
    return _moved(model, (n_heads, n_layers), (width_scheme, depth_scheme), embedding_factor, grows=True)


def interpolate(big: Transformer, decoalesced: Transformer, alpha: float) -> Transformer:
    """Mix a model with what was learnt at the level below: θ = (1 − α) θ_big + α θ_decoalesced.

    Parameters
    ----------
    big : Transformer
        As it was before it was coalesced.
    decoalesced : Transformer
        Of the same shape.
    alpha : float
        α in [0, 1].

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        For α outside [0, 1], or models of different shapes.
    """
    require(big.config == decoalesced.config, "big and decoalesced differ in their configurations")
    tied = big.config.tied
    mixed = mix("weights", *(pack(model.weights, tied=tied) for model in (big, decoalesced)), alpha=alpha)
    return unpack(mixed, big)


def _moved(
    model: Transformer,
    sizes: tuple[int | None, int | None],
    schemes: tuple[Scheme | None, Scheme | None],
    factor: float | None,
    *,
    grows: bool,
) -> Transformer:
    config = model.config
    _check_rules(config)
    maps = level_maps(
        (config.n_heads, config.n_layers),
        sizes,
        schemes,
        head_size=config.d_head,
        mlp_share=config.d_mlp // config.n_heads,
        factor=1.0 if factor is None and not config.tied else factor,
        grows=grows,
    )
    target = _target(config, maps)
    roles = STEM_ROLES | BLOCK_ROLES
    wide = apply_width(_stacked(model), roles, maps.width, embedding_factor=maps.embedding_factor)
    return _unstacked(apply_depth(wide, roles, maps.depth), target)


def _check_rules(config: TransformerConfig) -> None:
    heads, groups, width = config.n_heads, config.n_kv_heads, config.d_model
    require(heads == groups, f"n_kv_heads={groups}: key and value heads shared by {heads} query heads have no rule")
    together = heads * config.d_head
    require(width == together, f"d_model={width} must be what the heads are together, {together}")
    require(config.d_mlp % heads == 0, f"d_mlp={config.d_mlp} must be a multiple of n_heads={heads}")


def _target(config: TransformerConfig, maps: LevelMaps) -> TransformerConfig:
    """Return the configuration of the other level."""
    d_model, layers = len(maps.width.residual), len(maps.depth)
    heads = d_model // config.d_head
    changes: dict[str, Any] = {}
    for name in ("attn_scale", "window"):
        kinds = getattr(config, name)
        groups = [{kinds[layer] for layer in np.flatnonzero(row)} for row in maps.depth]
        for group in groups:
            require(len(group) == 1, f"config.{name}={kinds}: layers that merge must not differ in it")
        changes[name] = tuple(group.pop() for group in groups)
    return config._replace(
        n_layers=layers,
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_mlp=len(maps.width.mlp),
        **changes,
    )


def _stacked(model: Transformer) -> dict[str, Any]:
    """Return all weights by name: those of the blocks stacked, heads side by side, a tied head left out."""
    config, weights = model
    found = {name: getattr(weights, name) for name in STEM_ROLES}
    found["W_U"] = None if config.tied else weights.W_U
    for name, shape in block_shapes(config).items():
        layers = [getattr(block, name) for block in weights.blocks]
        empty = np.zeros((0, *(shape or ())), weights.W_E.dtype)
        found[name] = None if shape is None else _side_by_side(name, np.stack(layers) if layers else empty)
    return found


def _unstacked(found: dict[str, Any], config: TransformerConfig) -> Transformer:
    """Return the model of these weights."""
    stem = {name: found[name] for name in STEM_ROLES}
    if config.tied:
        stem["W_U"] = stem["W_E"].T
    apart = {name: _apart(name, found[name], config) for name in BLOCK_ROLES}

    def block(layer: int) -> BlockWeights:
        fields: dict[str, Any] = {name: None if stack is None else stack[layer] for name, stack in apart.items()}
        return BlockWeights(**fields)

    blocks = tuple(map(block, range(config.n_layers)))
    return Transformer(config, TransformerWeights(blocks=blocks, **stem))


_READS = ("W_Q", "W_K", "W_V")


def _side_by_side(name: str, stack: np.ndarray) -> np.ndarray:
    """Lay the heads of a stack of weights beside one another."""
    layers = len(stack)
    if name in _READS:  # (L, H, d, e) to (L, d, H·e)
        heads, d, e = stack.shape[1:]
        return stack.swapaxes(1, 2).reshape(layers, d, heads * e)
    if name == "W_O":  # (L, H, e, d) to (L, H·e, d)
        heads, e, d = stack.shape[1:]
        return stack.reshape(layers, heads * e, d)
    if name in ("b_Q", "b_K", "b_V"):  # (L, H, e) to (L, H·e)
        return stack.reshape(layers, stack.shape[1] * stack.shape[2])
    return stack


def _apart(name: str, stack: np.ndarray | None, config: TransformerConfig) -> np.ndarray | None:
    """Undo `_side_by_side`."""
    shape = block_shapes(config)[name]
    if stack is None or shape is None:
        return None
    if name in _READS:
        heads, d, e = shape
        return stack.reshape(len(stack), d, heads, e).swapaxes(1, 2)
    return stack.reshape(len(stack), *shape)
