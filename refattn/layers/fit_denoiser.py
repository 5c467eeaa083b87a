"""FIT as the denoiser of a diffusion model: time and conditions enter through the latents alone (2305.12689).

Equation labels (fit-12) to (fit-14) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.fit import StemWeights, require_tokens, stem
from refattn.layers.fit_blocks import MLPWeights, NormWeights, mlp_layer, normalised
from refattn.layers.fit_positions import sincos_code
from refattn.layers.fit_stages import StageWeights, cast, interleave, require_stages, spread, square_mask
from refattn.primitives.activations import silu
from refattn.primitives.arguments import as_float, require, require_shape

__all__ = [
    "FITDenoiserWeights",
    "LinearWeights",
    "PreviousWeights",
    "TimeWeights",
    "fit_denoise",
    "time_code",
    "time_embedding",
]

TIME_SCALE = 1000.0


class LinearWeights(NamedTuple):
    """A linear map.

    Attributes
    ----------
    w, b : ndarray, shape (c, d) and (d,)
        Used as x w + b.
    """

    w: np.ndarray
    b: np.ndarray


class TimeWeights(NamedTuple):
    """From the code of a time to a token.

    Attributes
    ----------
    w_0, b_0 : ndarray, shape (dl/4, dl) and (dl,)
        Before SiLU.
    w_1, b_1 : ndarray, shape (dl, dl) and (dl,)
        After it.
    """

    w_0: np.ndarray
    b_0: np.ndarray
    w_1: np.ndarray
    b_1: np.ndarray


class PreviousWeights(NamedTuple):
    """How latents of the step before are added to the latents of this one (self-conditioning).

    Attributes
    ----------
    mlp : MLPWeights
        A whole MLP layer, residual included.
    norm : NormWeights
        After it; its scale starts at 0, so that training begins without self-conditioning.
    """

    mlp: MLPWeights
    norm: NormWeights


class FITDenoiserWeights(NamedTuple):
    """The denoiser. Options of the released code are parts that may be None.

    Attributes
    ----------
    stem : StemWeights
        Of the noisy data.
    x_positions : ndarray, shape (n, dx)
        E_x.
    latents : ndarray, shape (t, m, dl)
        E_ℓ; dl is a multiple of 4, at least 8.
    time : TimeWeights
        Of the time token.
    condition : LinearWeights or None
        Of conditions, (dc, dl); None (``cond_proj=False``) takes them as they are, dc = dl.
    previous : PreviousWeights or None
        Self-conditioning (``self_cond="latent"``); None leaves it out.
    stages : tuple of StageWeights
        Every stage with global layers has a ``condition``.
    x_norm : NormWeights
        Before the output.
    output : LinearWeights
        (dx, out).
    """

    stem: StemWeights
    x_positions: np.ndarray
    latents: np.ndarray
    time: TimeWeights
    condition: LinearWeights | None
    previous: PreviousWeights | None
    stages: tuple[StageWeights, ...]
    x_norm: NormWeights
    output: LinearWeights


def fit_denoise(
    x: Any,
    time: Any,
    cond: Any,
    weights: FITDenoiserWeights,
    *,
    latents_prev: Any = None,
    mask: str = "none",
    return_trace: bool = False,
) -> tuple[Any, ...]:
    """Predict from noisy groups of tokens what the diffusion asks for, given a time and conditions.

    1. Make the time a token and put it before the conditioning tokens.
    2. Embed the data; start latents from E_ℓ, and from those of the step before with self-conditioning.
    3. Run the stages: LOCAL, READ, latents look at the conditioning tokens, GLOBAL, WRITE.
    4. Project the normalised tokens.

    Parameters
    ----------
    x : array_like, shape (B, t, n, c)
        Noisy data.
    time : array_like, shape (B,)
        Times, in [0, 1] as a rule.
    cond : array_like, shape (B, s, dc) or (B, dc)
        Conditions; s may be 0.
    weights : FITDenoiserWeights
        The model.
    latents_prev : array_like, shape (B, t, m, dl), optional
        Latents that the step before returned; None are zeros. Without self-conditioning they are not used.
    mask : {"none", "causal"}
        As in `refattn.layers.fit.fit_encode`.
    return_trace : bool
        Return what every step left behind too.

    Returns
    -------
    out : ndarray, shape (B, t, n, out)
        In the dtype of ``x``.
    latents : ndarray, shape (B, t, m, dl)
        As they are, without a norm, for the next step's ``latents_prev``.
    trace : dict of str to ndarray
        Only with ``return_trace``: see `refattn.layers.fit_stages.interleave`.

    Raises
    ------
    ValueError
        If ``time`` is not one-dimensional, a shape does not fit, or a stage lacks a part.

    Notes
    -----
    Absent latents are not skipped but zeros, as in the released code: their MLP layer has biases and leaves a trace.
    The released code computes the code of the time in float32.

    References
    ----------
    2305.12689; google-research/pix2seq, architectures/transformers.py, class FITDenoiser.
    """
    x = as_float("x", x, ndim=4)
    weights = cast(weights, x.dtype)
    require_tokens(x, weights.x_positions, weights.latents, weights.stem)
    time = as_float("time", time, ndim=1).astype(x.dtype, copy=False)
    require_shape("time", time, (len(x),))
    token = time_embedding(time_code(time, len(weights.time.w_0)), weights.time)  # (B, dl): 1
    conditions = np.concatenate([token[:, None], _conditions(cond, x, weights)], axis=1)  # (B, 1 + s, dl)
    return _denoise(x, conditions, weights, _previous(latents_prev, x, weights), mask, return_trace=return_trace)


def _denoise(
    x: np.ndarray,
    conditions: np.ndarray,
    weights: FITDenoiserWeights,
    latents_prev: np.ndarray,
    mask: str,
    *,
    return_trace: bool,
) -> tuple[Any, ...]:
    """Denoise given the conditioning tokens, the time among them: passes 2 to 4."""
    t, m, _ = weights.latents.shape
    stages = require_stages(weights.stages)
    require(
        all(stage.condition is not None for stage in stages if stage.global_layers),
        "weights.stages must hold a condition wherever there are global layers",
    )
    tokens = stem(x, weights.stem) + weights.x_positions  # (B, t, n, dx): 2
    latents = spread(weights.latents, len(x))  # (B, t, m, dl)
    if weights.previous is not None:
        # eq: fit-13
        latents = latents + normalised(mlp_layer(latents_prev, weights.previous.mlp), weights.previous.norm)
    mixing = square_mask(mask, t, m)
    # eq: fit-14
    tokens, latents, trace = interleave(tokens, latents, stages, global_mask=mixing, conditions=conditions)  # 3
    out = normalised(tokens, weights.x_norm) @ weights.output.w + weights.output.b  # (B, t, n, out): 4
    return (out, latents, trace) if return_trace else (out, latents)


def time_code(time: Any, width: int) -> np.ndarray:
    """Return the code of 1000 · time, brought to mean 0 and deviation 1 over its channels.

    Parameters
    ----------
    time : array_like, shape (B,)
        Times.
    width : int
        The number of channels, at least 2.

    Returns
    -------
    ndarray, shape (B, width)
        In the dtype of ``time``.

    Raises
    ------
    ValueError
        If ``time`` is not one-dimensional or the width less than 2, which has no deviation.
    """
    time = as_float("time", time, ndim=1)
    require(width >= 2, f"width={width!r} must be >= 2: a single channel has no deviation")
    code = sincos_code(time * TIME_SCALE, width)  # (B, width)
    centred = code - np.mean(code, axis=-1, keepdims=True)
    # eq: fit-12
    standardised: np.ndarray = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True))  # (B, width)
    return standardised


def time_embedding(code: np.ndarray, weights: TimeWeights) -> np.ndarray:
    """Return the token of a time: linear, SiLU, linear; it checks nothing.

    Parameters
    ----------
    code : ndarray, shape (B, dl/4)
        From `time_code`.
    weights : TimeWeights
        The two maps.

    Returns
    -------
    ndarray, shape (B, dl)
    """
    token: np.ndarray = silu(code @ weights.w_0 + weights.b_0) @ weights.w_1 + weights.b_1
    return token


def _conditions(cond: Any, x: np.ndarray, weights: FITDenoiserWeights) -> np.ndarray:
    """Return the conditioning tokens (B, s, dl) without the time."""
    cond = as_float("cond", cond)
    require(cond.ndim in (2, 3), f"cond has shape {cond.shape}, expected (B, s, dc) or (B, dc)")
    tokens: np.ndarray = (cond[:, None] if cond.ndim == 2 else cond).astype(x.dtype, copy=False)  # (B, s, dc)
    width = weights.latents.shape[-1] if weights.condition is None else len(weights.condition.w)
    require_shape("cond", tokens, (len(x), tokens.shape[1], width))
    if weights.condition is not None:
        tokens = tokens @ weights.condition.w + weights.condition.b  # (B, s, dl)
    return tokens


def _previous(latents_prev: Any, x: np.ndarray, weights: FITDenoiserWeights) -> np.ndarray:
    """Return the latents of the step before, zeros if there are none."""
    shape = (len(x), *weights.latents.shape)
    if latents_prev is None:
        return np.zeros(shape, x.dtype)
    given: np.ndarray = as_float("latents_prev", latents_prev).astype(x.dtype, copy=False)
    require_shape("latents_prev", given, shape)
    return given
