"""Hooks that take a head out, or put in what another run had: ablation and activation patching.

Each function returns a mapping for the ``hooks`` of `refattn.transformer.forward.forward`; join several with
`refattn.transformer.hooks.merge_hooks`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import as_integer, require, require_one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refattn.transformer.hooks import Hook

__all__ = ["ABLATIONS", "ablate_heads", "patch_activations"]

ABLATIONS = ("zero", "mean", "resample", "uniform_pattern")


def ablate_heads(
    heads: Iterable[tuple[int, int]],
    kind: str = "zero",
    *,
    reference: Mapping[str, np.ndarray] | None = None,
    over_positions: bool = True,
    rows: Any = None,
) -> dict[str, Hook]:
    """Return hooks that take heads out of a forward pass.

    Parameters
    ----------
    heads : iterable of (layer, head)
        Which ones.
    kind : {"zero", "mean", "resample", "uniform_pattern"}
        What a head's output z becomes: zeros; its mean in a reference run; that of another batch row; or the mean
        of the values it can see, because its attention is made uniform over the visible keys.
    reference : mapping of str to ndarray, optional
        Activations of the reference run, with ``blocks.{l}.attn.hook_z`` of the layers in question. For ``mean``.
    over_positions : bool
        Whether the mean is taken over positions as well as over the batch; if not, lengths must agree.
    rows : array_like of int, shape (B,), optional
        For ``resample``: the batch row that each row takes its z from. The row before, if not given.

    Returns
    -------
    dict of str to callable

    Raises
    ------
    ValueError
        For an unknown kind, a head out of range, or a reference that lacks a layer.
    """
    require_one_of("kind", kind, ABLATIONS)
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        by_layer[layer].append(head)
    hooks: dict[str, Hook] = {}
    for layer, chosen in by_layer.items():
        name = f"blocks.{layer}.attn.hook_z"
        if kind == "uniform_pattern":
            hooks[f"blocks.{layer}.attn.hook_attn_scores"] = _flatten(chosen)
        elif kind == "mean":
            require(reference is not None and name in reference, f"reference lacks {name!r}")
            assert reference is not None
            mean = np.mean(reference[name], axis=(0, 1) if over_positions else 0)  # (H, e) or (T, H, e)
            hooks[name] = _put(chosen, mean)
        elif kind == "resample":
            hooks[name] = _resample(chosen, rows)
        else:
            hooks[name] = _put(chosen, np.zeros(()))
    return hooks


def _in_range(heads: list[int], count: int) -> list[int]:
    for head in heads:
        require(0 <= head < count, f"head={head} must lie in 0..{count - 1}")
    return heads


def _put(heads: list[int], value: np.ndarray) -> Hook:
    def hook(z: np.ndarray, _name: str) -> np.ndarray:
        result = z.copy()  # (B, T, H, e)
        chosen = _in_range(heads, z.shape[2])
        result[:, :, chosen] = np.broadcast_to(value, z.shape)[:, :, chosen]
        return result

    return hook


def _resample(heads: list[int], rows: Any) -> Hook:
    def hook(z: np.ndarray, _name: str) -> np.ndarray:
        source = np.roll(np.arange(len(z)), 1) if rows is None else as_integer("rows", rows, ndim=1)
        require(source.shape == (len(z),), f"rows has shape {source.shape}, expected {(len(z),)}")
        result = z.copy()
        chosen = _in_range(heads, z.shape[2])
        result[:, :, chosen] = z[source][:, :, chosen]
        return result

    return hook


def _flatten(heads: list[int]) -> Hook:
    """Make visible scores equal; the softmax then gives every visible key 1/(number of visible keys)."""

    def hook(scores: np.ndarray, _name: str) -> np.ndarray:
        result = scores.copy()  # (B, H, T, S)
        chosen = _in_range(heads, scores.shape[1])
        result[:, chosen] = np.where(np.isneginf(scores[:, chosen]), -np.inf, 0.0)
        return result

    return hook


def patch_activations(
    activations: Mapping[str, np.ndarray], *, positions: Any = None, heads: Any = None
) -> dict[str, Hook]:
    """Return hooks that put in the values another run had: activation patching.

    Parameters
    ----------
    activations : mapping of str to ndarray
        Values by hook point, as `forward` returned them: each is put in at its own point.
    positions : array_like of int, optional
        Which tokens; all if not given. For points whose axis 1 is the token.
    heads : array_like of int, optional
        Which heads, for ``hook_q``, ``hook_k``, ``hook_v``, ``hook_z`` and ``hook_result`` (axis 2).

    Returns
    -------
    dict of str to callable
    """
    return {name: _patch(value, positions, heads) for name, value in activations.items()}


def _patch(source: np.ndarray, positions: Any, heads: Any) -> Hook:
    def hook(value: np.ndarray, name: str) -> np.ndarray:
        require(source.shape == value.shape, f"the value for {name!r} has shape {source.shape}, expected {value.shape}")
        chosen = np.zeros(value.shape, bool)
        rows = slice(None) if positions is None else np.atleast_1d(as_integer("positions", positions))
        where = chosen[:, rows]
        if heads is None:
            where[...] = True
        else:
            where[:, :, np.atleast_1d(as_integer("heads", heads))] = True
        chosen[:, rows] = where
        return np.where(chosen, source, value)

    return hook
