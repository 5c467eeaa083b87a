"""The rounds of FIT: tokens talk inside their group, latents carry the news between groups (2305.12689).

One loop serves all three models; what differs between them are masks, conditioning and the shift of the latents.
Equation labels (fit-4) to (fit-8) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.fit_blocks import CrossWeights, LayerWeights, cross_layer, self_layer
from refattn.layers.fit_layout import group_causal_mask
from refattn.primitives.arguments import as_float, require, require_one_of

__all__ = [
    "MASKS",
    "StageWeights",
    "cast",
    "interleave",
    "previous_group",
    "require_stages",
    "spread",
    "square_mask",
]

MASKS = ("none", "causal")


class StageWeights(NamedTuple):
    """One stage ``(a)b`` of the layer string.

    Attributes
    ----------
    local_layers : tuple of LayerWeights
        The a layers inside each group.
    read : CrossWeights or None
        From latents to tokens; None if b = 0.
    condition : CrossWeights or None
        From latents to conditioning tokens, in the denoiser only.
    global_layers : tuple of LayerWeights
        The b layers over the latents of all groups.
    write : CrossWeights or None
        From tokens to latents; None in the last stage.
    """

    local_layers: tuple[LayerWeights, ...]
    read: CrossWeights | None
    condition: CrossWeights | None
    global_layers: tuple[LayerWeights, ...]
    write: CrossWeights | None


def interleave(
    x: np.ndarray,
    latents: np.ndarray,
    stages: tuple[StageWeights, ...],
    *,
    local_mask: np.ndarray | None = None,
    global_mask: np.ndarray | None = None,
    conditions: np.ndarray | None = None,
    shifted: bool = False,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Run all stages; it checks nothing.

    1. LOCAL: tokens attend inside their group.
    2. READ: latents attend to the tokens of their group.
    3. In the denoiser, latents attend to the conditioning tokens.
    4. GLOBAL: latents of all groups attend to each other.
    5. WRITE: tokens attend to the latents of their group, or of the group before.

    Parameters
    ----------
    x : ndarray, shape (B, t, n, dx)
        Tokens.
    latents : ndarray, shape (B, t, m, dl)
        Latents.
    stages : tuple of StageWeights
        The stages; one without global layers ends after LOCAL.
    local_mask : ndarray of bool, shape (n, n), optional
        Inside a group.
    global_mask : ndarray of bool, shape (t m, t m), optional
        Among latents.
    conditions : ndarray, shape (B, s, dl), optional
        Conditioning tokens, seen by every latent.
    shifted : bool
        WRITE hands each group the latents of the group before it, the first group zeros.

    Returns
    -------
    x : ndarray, shape (B, t, n, dx)
    latents : ndarray, shape (B, t, m, dl)
    trace : dict of str to ndarray
        What every step left behind: ``local_0``, ``read_0``, ``condition_0``, ``global_0``, ``write_0``, ``local_1``, …
    """
    B, t, m, dl = latents.shape
    trace = {}
    for i, stage in enumerate(stages):
        for layer in stage.local_layers:  # 1
            # eq: fit-4
            x = self_layer(x, layer, local_mask)  # (B, t, n, dx)
        trace[f"local_{i}"] = x
        if stage.read is None or not stage.global_layers:
            continue
        # eq: fit-5
        trace[f"read_{i}"] = latents = cross_layer(latents, x, stage.read)  # (B, t, m, dl): 2
        together = latents.reshape(B, t * m, dl)  # (B, t m, dl)
        if stage.condition is not None and conditions is not None:  # 3
            trace[f"condition_{i}"] = together = cross_layer(together, conditions, stage.condition)
        for layer in stage.global_layers:  # 4
            together = self_layer(together, layer, global_mask)  # (B, t m, dl)
        trace[f"global_{i}"] = latents = together.reshape(B, t, m, dl)
        if stage.write is not None:
            source = previous_group(latents) if shifted else latents  # (B, t, m, dl)
            # eq: fit-7
            trace[f"write_{i}"] = x = cross_layer(x, source, stage.write)  # (B, t, n, dx): 5
    return x, latents, trace


def previous_group(latents: np.ndarray) -> np.ndarray:
    """Hand every group the latents of the group before it, and the first group zeros; it checks nothing.

    Parameters
    ----------
    latents : ndarray, shape (B, t, m, dl)
        Latents.

    Returns
    -------
    ndarray, shape (B, t, m, dl)
    """
    # eq: fit-8
    return np.concatenate([np.zeros_like(latents[:, :1]), latents[:, :-1]], axis=1)


def spread(latents: np.ndarray, batch: int) -> np.ndarray:
    """Return the learned latents once for each sequence of the batch; it checks nothing.

    Parameters
    ----------
    latents : ndarray, shape (t, m, dl)
        E_ℓ.
    batch : int
        B.

    Returns
    -------
    ndarray, shape (B, t, m, dl)
        A view.
    """
    return np.broadcast_to(latents, (batch, *latents.shape))


def square_mask(mask: str, num_groups: int, latents_per_group: int) -> np.ndarray | None:
    """Return the mask among latents that ``mask`` names.

    Parameters
    ----------
    mask : {"none", "causal"}
        Whether latents see all groups, or none after their own.
    num_groups, latents_per_group : int
        t and m.

    Returns
    -------
    ndarray of bool, shape (t m, t m), or None

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    require_one_of("mask", mask, MASKS)
    return group_causal_mask(num_groups, latents_per_group) if mask == "causal" else None


def cast(tree: Any, dtype: Any, name: str = "weights") -> Any:
    """Return a tree of weights as floating arrays of one dtype.

    Parameters
    ----------
    tree : array_like, None, or tuples of them
        Weights; what is absent is None, or an empty tuple.
    dtype : dtype
        Of the result.
    name : str
        For messages.

    Returns
    -------
    tree
        Of the same structure.
    """
    if tree is None:
        return None
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        fields = zip(tree._fields, tree, strict=True)
        return type(tree)(*(cast(branch, dtype, f"{name}.{field}") for field, branch in fields))
    if isinstance(tree, (tuple, list)):
        return tuple(cast(branch, dtype, f"{name}[{i}]") for i, branch in enumerate(tree))
    return as_float(name, tree).astype(dtype, copy=False)


def require_stages(stages: tuple[StageWeights, ...]) -> tuple[StageWeights, ...]:
    """Return stages with empty tuples where there are no layers; refuse stages that news cannot leave.

    Parameters
    ----------
    stages : tuple of StageWeights
        At least one.

    Returns
    -------
    tuple of StageWeights

    Raises
    ------
    ValueError
        If there is no stage, one before the last lacks READ, global layers or WRITE, or one has global layers but no
        READ.
    """
    require(stages, "weights.stages is empty, expected at least one stage")
    for i, stage in enumerate(stages):
        through = stage.read is not None and stage.global_layers and stage.write is not None
        require(i == len(stages) - 1 or through, f"weights.stages[{i}] before the last must read, mix and write")
        require(not stage.global_layers or stage.read is not None, f"weights.stages[{i}] mixes what it never read")
    *earlier, last = stages
    return tuple(
        stage._replace(local_layers=stage.local_layers or (), global_layers=stage.global_layers or ())
        for stage in (*earlier, last._replace(write=None))
    )
