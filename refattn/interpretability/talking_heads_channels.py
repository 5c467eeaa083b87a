"""Interventions on channels: take components out of a head, scale them, or put a value into the subspace they span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interpretability.talking_heads import head_svd, inhibition_score
from refattn.primitives.arguments import as_float, require, require_finite
from refattn.transformer.forward import forward

if TYPE_CHECKING:
    from refattn.transformer.hooks import Hook
    from refattn.transformer.weights import Transformer

__all__ = [
    "channel_basis",
    "inhibition_changes",
    "remove_components",
    "replace_head",
    "scale_components",
    "set_channel",
]


def remove_components(W_O: Any, directions: Any) -> np.ndarray:
    """Keep a head from writing along some directions: W_O − W_O P, P the projector on their span.

    Parameters
    ----------
    W_O : array_like, shape (e, d)
        Output weights of the head.
    directions : array_like, shape (k, d)
        Linearly independent; rows of ``Vt`` of `refattn.interpretability.talking_heads.head_svd`, for instance: for
        these it is the same as taking s_i u_i v_iᵀ out of OV.

    Returns
    -------
    ndarray, shape (e, d)

    Raises
    ------
    ValueError
        If the shapes do not fit, or the directions are linearly dependent.
    """
    W_O = as_float("W_O", W_O, ndim=2)
    directions = _directions(directions, W_O.shape[1])
    if not len(directions):
        return np.array(W_O, subok=True)
    basis = channel_basis(directions)  # (d, k)
    # eq: th-remove
    return np.asanyarray(W_O - W_O @ basis @ basis.T)


def scale_components(W_O: Any, directions: Any, factors: Any) -> np.ndarray:
    """Let a head write c_i times as much along each direction: W_O + Σ (c_i − 1) W_O v_i v_iᵀ.

    Parameters
    ----------
    W_O : array_like, shape (e, d)
        Output weights of the head.
    directions : array_like, shape (k, d)
        Orthonormal.
    factors : array_like, shape (k,)
        c; 0 removes a component, 1 leaves it.

    Returns
    -------
    ndarray, shape (e, d)

    Raises
    ------
    ValueError
        If the shapes do not fit, or the directions are not orthonormal to 1e-6 (to four times the precision of a dtype
        that has less).
    """
    W_O = as_float("W_O", W_O, ndim=2)
    directions = _directions(directions, W_O.shape[1])
    factors = as_float("factors", factors, ndim=1)
    require(
        factors.shape == directions.shape[:1], f"factors has shape {factors.shape}, expected {directions.shape[:1]}"
    )
    _require_orthonormal("directions", directions)
    # eq: th-scale
    return np.asanyarray(W_O + W_O @ directions.T @ ((factors[:, None] - 1.0) * directions))


def channel_basis(directions: Any) -> np.ndarray:
    """Return an orthonormal basis of the span of some directions.

    Parameters
    ----------
    directions : array_like, shape (k, d)
        What the components of a channel write along.

    Returns
    -------
    ndarray, shape (d, k)
        Columns; the first along the first direction.

    Raises
    ------
    ValueError
        If the directions are linearly dependent, or more than d.
    """
    directions = _directions(directions, None)
    k, d = directions.shape
    require(1 <= k <= d, f"directions has shape {directions.shape}, expected 1 to {d} of them")
    Q, R = np.linalg.qr(directions.T)  # (d, k), (k, k)
    size = np.abs(np.diagonal(R))
    largest = np.max(np.linalg.norm(directions, axis=1))
    require(np.all(size > 1e-10 * largest), "directions are linearly dependent")
    return np.asanyarray(Q * np.sign(np.diagonal(R)))


def set_channel(basis: Any, alpha: Any, *, position: int = -1, bal_index: int | None = None) -> Hook:
    """Return a hook that sets what the residual stream says along a channel: x − P x + Σ α_i v_i.

    Parameters
    ----------
    basis : array_like, shape (d, k)
        Orthonormal, from `channel_basis`.
    alpha : array_like, shape (k,) or (B, k)
        What to say, for all rows or for each.
    position : int
        Which token; the last if not given.
    bal_index : int, optional
        Coordinate that keeps the sum of a planted model's stream at zero: it takes off what the change adds.

    Returns
    -------
    callable
        For a hook point of shape (B, T, d), such as ``blocks.9.hook_resid_pre``.

    Raises
    ------
    ValueError
        If the basis is not orthonormal or ``alpha`` has another length; when it runs, if the width differs.
    """
    basis, alpha = as_float("basis", basis, ndim=2), as_float("alpha", alpha)
    _require_orthonormal("columns of basis", basis.T)
    require(alpha.shape[-1:] == basis.shape[1:], f"alpha has shape {alpha.shape}, expected (..., {basis.shape[1]})")

    def hook(x: np.ndarray, _name: str) -> np.ndarray:
        require(x.shape[-1] == len(basis), f"basis has {len(basis)} rows, the stream {x.shape[-1]} coordinates")
        at = x[:, position]  # (B, d)
        # eq: th-set
        change = (alpha - at @ basis) @ basis.T
        if bal_index is not None:
            change[..., bal_index] -= change.sum(axis=-1)
        result = x.copy()
        result[:, position] = at + change
        return result

    return hook


def replace_head(model: Transformer, layer: int, head: int, W_O: np.ndarray) -> Transformer:
    """Return the model with other output weights (e, d) in one head."""
    blocks = list(model.weights.blocks)
    changed = blocks[layer].W_O.copy()
    changed[head] = W_O
    blocks[layer] = blocks[layer]._replace(W_O=changed)
    return model._replace(weights=model.weights._replace(blocks=tuple(blocks)))


def inhibition_changes(
    model: Transformer, ids: Any, mover: tuple[int, int], head: tuple[int, int], *, end: Any, io: Any, s: Any
) -> np.ndarray:
    """Return how much a mover's inhibition score falls with each component of an earlier head removed: ΔI_i = I − I_i.

    Parameters
    ----------
    model : Transformer
        What is run, once and then once for each component.
    ids : array_like of int, shape (B, T)
        Prompts in which two names compete.
    mover, head : (layer, head)
        Who attends, and whose components are taken out; the second in an earlier layer.
    end, io, s
        As in `refattn.interpretability.talking_heads.inhibition_score`.

    Returns
    -------
    ndarray, shape (e,)
        In the order of `refattn.interpretability.talking_heads.head_svd`.

    Raises
    ------
    ValueError
        If a head lies outside the model, or does not come before the mover.
    """
    config, blocks = model.config, model.weights.blocks
    for name, (layer, number) in (("mover", mover), ("head", head)):
        inside = 0 <= layer < config.n_layers and 0 <= number < config.n_heads
        require(inside, f"{name}={layer, number} is no head of {config.n_layers} layers of {config.n_heads}")
    require(head[0] < mover[0], f"head={head} must lie in a layer before that of mover={mover}")
    point = f"blocks.{mover[0]}.attn.hook_pattern"

    def score(changed: Transformer) -> float:
        pattern = forward(changed, ids, names=point).activations[point][:, mover[1]]
        return float(inhibition_score(pattern, end, io, s))

    block = blocks[head[0]]
    W_V = block.W_V[head[1] // (config.n_heads // config.n_kv_heads)]
    W_O = block.W_O[head[1]]
    whole = score(model)
    removed = [remove_components(W_O, v[None]) for v in head_svd(W_V, W_O).Vt]
    return np.array([whole - score(replace_head(model, *head, weights)) for weights in removed])


def _directions(directions: Any, width: int | None) -> np.ndarray:
    rows: np.ndarray = as_float("directions", directions, ndim=2)
    require_finite("directions", rows)
    fits = width is None or rows.shape[1] == width
    require(fits, f"directions has shape {rows.shape}, expected (k, {width})")
    return rows


def _require_orthonormal(name: str, rows: np.ndarray) -> None:
    plain = np.asarray(rows, np.float64)  # judged as given, whatever precision the result is computed in
    tolerance = max(1e-6, 4.0 * float(np.finfo(rows.dtype).eps))
    require(np.allclose(plain @ plain.T, np.eye(len(plain)), rtol=0.0, atol=tolerance), f"{name} must be orthonormal")
