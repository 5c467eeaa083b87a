"""How a secondary sink is made, and unmade: an MLP writes the direction of the primary sink (2512.22213).

The layer on which a sink begins holds the MLP that made it. What goes into that MLP does not look like the primary
sink; what comes out does. Its length decides how much attention the sink gets, and for how long. Equation labels (ss-…)
are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.secondary_sinks_detection import cosine_similarity
from refattn.primitives.activations import silu
from refattn.primitives.arguments import as_float, as_integer, require, require_finite, require_shape
from refattn.transformer.block import mlp_output
from refattn.transformer.forward import forward
from refattn.transformer.hooks import BlockPoints, HookPoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from refattn.transformer.weights import Transformer

__all__ = [
    "DirectionResponse",
    "alignment_by_state",
    "block_mlp",
    "direction_response",
    "matrix_entropy",
    "mlp_alignment",
    "mlp_states",
    "principal_directions",
    "rank_correlation",
    "rescale_sink_hook",
    "rescale_sinks",
    "same_token_positions",
]


def mlp_alignment(mlp_out: Any, primary: int, positions: Any) -> np.ndarray:
    """Compare what an MLP writes at the sinks with what it writes at the primary sink.

    Parameters
    ----------
    mlp_out : array_like, shape (..., T, d)
        Output y of the MLP on the layer where the sinks begin, or any other of its states.
    primary : int
        The position b.
    positions : array_like of int, shape (K,)
        Where the sinks stand.

    Returns
    -------
    ndarray, shape (..., K)
        cos(y[s], y[b]): near 1 for the output, if this MLP made the sinks.

    Raises
    ------
    ValueError
        If a position lies outside the sequence, or a number is not finite.
    """
    mlp_out = _rows("mlp_out", mlp_out)
    length = mlp_out.shape[-2]
    positions = _positions(positions, length)
    require(0 <= primary < length, f"primary={primary!r} must be a position below {length}")
    # eq: ss-align
    return cosine_similarity(mlp_out[..., positions, :], mlp_out[..., primary, None, :])  # (..., K)


def rescale_sinks(
    mlp_out: Any, direction: Any, *, norm: float, cos_threshold: float = 0.98, protect: Sequence[int] = (0, 1, 2)
) -> np.ndarray:
    """Give everything that an MLP writes along a direction a chosen length: the steering of the paper.

    Parameters
    ----------
    mlp_out : array_like, shape (..., T, d)
        Output y of the MLP.
    direction : array_like, shape (d,)
        What this MLP writes at the primary sink.
    norm : float
        The new length ρ; 0 unmakes the sinks, more than before strengthens them.
    cos_threshold : float
        How large the cosine must be; not its absolute value, an antiparallel output is left alone.
    protect : sequence of int
        Positions that are left alone, counted from the first row; those beyond the end are ignored.

    Returns
    -------
    ndarray, shape (..., T, d)
        In the dtype of ``mlp_out``.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is not finite, ``norm`` is negative, or ``cos_threshold`` is not in (0, 1).
    """
    mlp_out = _rows("mlp_out", mlp_out)
    direction = as_float("direction", direction)
    require_shape("direction", direction, mlp_out.shape[-1:])
    require_finite("direction", direction)
    _check_steering(norm, cos_threshold)
    free = np.isin(np.arange(mlp_out.shape[-2]), protect, invert=True)  # (T,)
    made = (cosine_similarity(mlp_out, direction) > cos_threshold) & free  # (..., T)
    length = np.linalg.norm(mlp_out, axis=-1, keepdims=True)  # (..., T, 1)
    # eq: ss-steer
    scaled = mlp_out * (norm / np.where(made[..., None], length, 1.0)).astype(mlp_out.dtype, copy=False)
    return np.asanyarray(np.where(made[..., None], scaled, mlp_out))


def rescale_sink_hook(
    direction: Any, norm: float, *, cos_threshold: float = 0.98, protect: Sequence[int] = (0, 1, 2)
) -> Callable[[np.ndarray, str], np.ndarray]:
    """Return `rescale_sinks` as a hook for ``blocks.{layer}.hook_mlp_out``.

    Parameters
    ----------
    direction, norm, cos_threshold, protect
        As in `rescale_sinks`. Positions are counted from the start of each pass: with a cache pass ``protect=()`` once
        the protected tokens are behind.

    Returns
    -------
    callable
        ``(value, name) -> new value``.

    Raises
    ------
    ValueError
        As `rescale_sinks`.
    """
    _check_steering(norm, cos_threshold)

    def hook(value: np.ndarray, _name: str) -> np.ndarray:
        return rescale_sinks(value, direction, norm=norm, cos_threshold=cos_threshold, protect=protect)

    return hook


def matrix_entropy(x: Any, *, alpha: float = 1.0) -> np.ndarray:
    """Measure over how many directions a set of vectors spreads: the Rényi entropy of the spectrum of X Xᵀ.

    Parameters
    ----------
    x : array_like, shape (..., T, d)
        Hidden states.
    alpha : float
        The order α > 0; 1 is Shannon's.

    Returns
    -------
    ndarray, shape (...)
        Natural units: from 0, all vectors along one line, to ln(rank). 0 where all are zero [our definition].

    Raises
    ------
    ValueError
        If ``x`` has fewer than two axes or is not finite, or ``alpha`` is not a positive number.

    Notes
    -----
    The paper's code uses the smaller of X Xᵀ and Xᵀ X; their other eigenvalues are the same.
    """
    x = _rows("x", x)
    require(np.isfinite(alpha) and alpha > 0, f"alpha={alpha!r} must be finite and > 0")
    transposed = np.swapaxes(x, -1, -2)
    gram = x @ transposed if x.shape[-2] < x.shape[-1] else transposed @ x
    eigenvalues = np.maximum(np.linalg.eigvalsh(gram), 0.0)  # (..., min(T, d)); rounding may push zeros below zero
    trace = np.sum(eigenvalues, axis=-1, keepdims=True)
    # eq: ss-entropy
    p = eigenvalues / np.where(trace > 0, trace, 1.0)
    if alpha == 1:
        return np.asanyarray(-np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1))
    total = np.sum(p**alpha, axis=-1)
    return np.asanyarray(np.log(np.where(total > 0, total, 1.0)) / (1.0 - alpha))


def mlp_states(model: Transformer, ids: Any, layer: int) -> dict[str, np.ndarray]:
    """Return every intermediate state of one gated MLP for one sequence.

    Parameters
    ----------
    model : Transformer
        A model with gated MLPs (Llama, Mistral, Qwen).
    ids : array_like of int, shape (T,)
        The sequence.
    layer : int
        Which block.

    Returns
    -------
    dict of str to ndarray
        ``input`` (T, d), ``up``, ``gate``, ``silu`` and ``product`` (T, m), ``down`` (T, d), in the order in which they
        are computed.

    Raises
    ------
    ValueError
        If the MLPs are not gated or there is no such layer.
    """
    config, weights = model
    require(config.gated, f"model is a {config.family}, whose MLP has no gate")
    require(0 <= layer < config.n_layers, f"layer={layer!r} must be one of the {config.n_layers} of the model")
    points = ("ln2.hook_normalized", "mlp.hook_pre_linear", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out")
    names = [f"blocks.{layer}.{point}" for point in points]
    kept = forward(model, as_integer("ids", ids, ndim=1)[None], names=names).activations
    normalised, up, gate, product, down = (kept[name][0] for name in names)
    states = {"input": normalised * weights.blocks[layer].ln2_w, "up": up, "gate": gate, "silu": silu(gate)}
    return {**states, "product": product, "down": down}


def alignment_by_state(states: Mapping[str, Any], primary: int, positions: Any) -> dict[str, np.ndarray]:
    """Return `mlp_alignment` of each state in turn: where inside the MLP a sink begins to look like one.

    Parameters
    ----------
    states : mapping of str to array_like, shape (T, …)
        From `mlp_states`.
    primary, positions
        As in `mlp_alignment`.

    Returns
    -------
    dict of str to ndarray, shape (K,)
    """
    return {name: mlp_alignment(state, primary, positions) for name, state in states.items()}


def same_token_positions(ids: Any, sinks: Any) -> np.ndarray:
    """Return where the tokens of the sinks occur without being sinks: what sinks are compared with.

    Parameters
    ----------
    ids : array_like of int, shape (T,)
        The sequence.
    sinks : array_like of int, shape (K,)
        Where the sinks stand.

    Returns
    -------
    ndarray of int
        Positions, ascending.

    Raises
    ------
    ValueError
        If a position lies outside the sequence.
    """
    ids = as_integer("ids", ids, ndim=1)
    sinks = _positions(sinks, len(ids))
    return np.setdiff1d(np.flatnonzero(np.isin(ids, ids[sinks])), sinks)


def principal_directions(sink_inputs: Any, other_inputs: Any, rng: np.random.Generator) -> np.ndarray:
    """Find the directions in which inputs of an MLP differ most, sinks and equally many other tokens taken together.

    Parameters
    ----------
    sink_inputs : array_like, shape (K, d)
        What enters the MLP at the sinks.
    other_inputs : array_like, shape (M, d)
        What enters it elsewhere; K of them are drawn where there are more.
    rng : numpy.random.Generator
        Draws them.

    Returns
    -------
    ndarray, shape (min(K + min(K, M), d), d)
        Unit vectors, the direction of the largest variance first; their signs mean nothing.

    Raises
    ------
    ValueError
        If widths differ, a number is not finite, or there is no sink.
    """
    sink_inputs, other_inputs = _rows("sink_inputs", sink_inputs), _rows("other_inputs", other_inputs)
    count, width = sink_inputs.shape
    require(count >= 1, "sink_inputs is empty, expected at least one sink")
    require(other_inputs.shape[-1] == width, f"other_inputs has width {other_inputs.shape[-1]}, expected {width}")
    drawn = rng.permutation(len(other_inputs))[:count]
    together = np.concatenate([sink_inputs, other_inputs[drawn]])  # (K + min(K, M), d)
    return np.linalg.svd(together - np.mean(together, axis=0), full_matrices=False)[2]


class DirectionResponse(NamedTuple):
    """What an MLP answers to multiples of a direction.

    Attributes
    ----------
    norms : ndarray, shape (A,)
        Lengths of its outputs.
    cosines : ndarray, shape (A,)
        Their cosines to the target; the paper's code calls |cos| > 0.98 aligned.
    """

    norms: np.ndarray
    cosines: np.ndarray


def direction_response(
    mlp: Callable[[np.ndarray], np.ndarray], direction: Any, alphas: Any, *, target: Any
) -> DirectionResponse:
    """Feed multiples of one direction to an MLP alone, and look whether it answers with the primary sink.

    Parameters
    ----------
    mlp : callable
        (A, d) to (A, d), see `block_mlp`.
    direction : array_like, shape (d,)
        One of `principal_directions`; take both signs, by negative α.
    alphas : array_like, shape (A,)
        The multiples α.
    target : array_like, shape (d,)
        What the MLP writes at the primary sink.

    Returns
    -------
    DirectionResponse

    Raises
    ------
    ValueError
        If shapes do not fit or a number is not finite.
    """
    direction, alphas, target = (as_float(n, v, ndim=1) for n, v in _named(direction, alphas, target))
    for name, value in _named(direction, alphas, target):
        require_finite(name, value)
    require_shape("target", target, direction.shape)
    y = mlp(alphas[:, None] * direction)  # (A, d)
    return DirectionResponse(np.linalg.norm(y, axis=-1), cosine_similarity(y, target))


def block_mlp(model: Transformer, layer: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the MLP of one block as a function of what enters it, after the norm: (..., d) to (..., d).

    Parameters
    ----------
    model : Transformer
        The model.
    layer : int
        Which block.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    config, weights = model
    require(0 <= layer < config.n_layers, f"layer={layer!r} must be one of the {config.n_layers} of the model")
    unwatched = BlockPoints(HookPoints(config), layer)
    return lambda x: mlp_output(x, weights.blocks[layer], config, unwatched)


def rank_correlation(x: Any, y: Any) -> float:
    """Return Spearman's correlation: of write norms with lifetimes, or with mean scores.

    Parameters
    ----------
    x, y : array_like, shape (K,)
        Two properties of the same sinks.

    Returns
    -------
    float
        From −1 to 1; NaN if either is constant. Equal values share their mean rank.

    Raises
    ------
    ValueError
        If lengths differ, there are fewer than two sinks, or a number is not finite.

    Notes
    -----
    The paper says that the norm sets score and lifetime; this statistic for it is ours [our definition].
    """
    x, y = as_float("x", x, ndim=1), as_float("y", y, ndim=1)
    require(x.size >= 2, f"x has {x.size} entries, expected at least 2")
    require_shape("y", y, x.shape)
    require_finite("x", x)
    require_finite("y", y)
    centred = [ranks - np.mean(ranks) for ranks in map(_mean_ranks, (x, y))]
    spread = np.prod([np.linalg.norm(ranks) for ranks in centred])
    return float(centred[0] @ centred[1] / spread) if spread > 0 else float("nan")


def _mean_ranks(x: np.ndarray) -> np.ndarray:
    """Return the rank of each value: how many are smaller, and half of those that are equal."""
    return np.asarray(np.sum((x[:, None] > x) + 0.5 * (x[:, None] == x), axis=-1))


def _check_steering(norm: float, cos_threshold: float) -> None:
    require(np.isfinite(norm) and norm >= 0, f"norm={norm!r} must be finite and >= 0")
    require(0 < cos_threshold < 1, f"cos_threshold={cos_threshold!r} must lie between 0 and 1")


def _named(direction: Any, alphas: Any, target: Any) -> list[tuple[str, Any]]:
    return [("direction", direction), ("alphas", alphas), ("target", target)]


def _rows(name: str, value: Any) -> np.ndarray:
    array: np.ndarray = as_float(name, value)
    require(array.ndim >= 2, f"{name} has shape {array.shape}, expected at least two axes")
    require_finite(name, array)
    return array


def _positions(positions: Any, length: int) -> np.ndarray:
    array = as_integer("positions", positions, ndim=1)
    require(np.all((array >= 0) & (array < length)), f"positions={array!r} must be positions below {length}")
    return array
