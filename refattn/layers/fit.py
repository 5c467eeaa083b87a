"""FIT, far-reaching interleaved transformers: cheap attention inside groups, a few latents that travel (2305.12689).

A sequence is cut into groups. Tokens attend inside their group only; each group has a few latents that read it, attend
to the latents of all other groups, and write back what they learnt. This is the encoder; `refattn.layers.fit_stages`
holds the loop, `fit_autoregressive` and `fit_denoiser` the other two models. Equation labels are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.layers.fit_blocks import NormWeights, normalised
from refattn.layers.fit_stages import StageWeights, cast, interleave, require_stages, spread, square_mask
from refattn.primitives.arguments import as_float, require, require_shape

__all__ = ["FITWeights", "StemWeights", "fit_encode", "require_tokens", "stem"]


class StemWeights(NamedTuple):
    """How raw features become tokens.

    Attributes
    ----------
    w, b : ndarray, shape (c, dx) and (dx,)
        A linear map.
    norm : NormWeights
        After it.
    """

    w: np.ndarray
    b: np.ndarray
    norm: NormWeights


class FITWeights(NamedTuple):
    """The encoder. The number of groups t, of latents m and of tokens n can be read off its shapes.

    Attributes
    ----------
    stem : StemWeights
        Of the data.
    x_positions : ndarray, shape (n, dx)
        E_x, the same in every group.
    latents : ndarray, shape (t, m, dl)
        E_ℓ, different in every group: nothing else tells groups apart.
    stages : tuple of StageWeights
        One for each ``(a)b`` of the layer string.
    x_norm, latent_norm : NormWeights
        Before the outputs.
    extra_stem : StemWeights or None
        Of extra tokens.
    """

    stem: StemWeights
    x_positions: np.ndarray
    latents: np.ndarray
    stages: tuple[StageWeights, ...]
    x_norm: NormWeights
    latent_norm: NormWeights
    extra_stem: StemWeights | None = None


def fit_encode(
    x: Any, weights: FITWeights, *, extra: Any = None, mask: str = "none", return_trace: bool = False
) -> tuple[Any, ...]:
    """Encode groups of tokens, so that every token may know of every other at the cost of a few latents.

    1. Embed the features and add the positions inside a group; extra tokens go first and get none.
    2. Start every sequence with the same latents.
    3. Run the stages: LOCAL, READ, GLOBAL, WRITE.
    4. Normalise tokens and latents.

    Parameters
    ----------
    x : array_like, shape (B, t, n, c)
        Features of n tokens in each of t groups.
    weights : FITWeights
        The model, made by `refattn.layers.fit_init.init_fit` for instance.
    extra : array_like, shape (B, t, p, c'), optional
        More tokens for each group, of other features; p may be 0.
    mask : {"none", "causal"}
        With ``causal`` the latents of a group see no group after it.
    return_trace : bool
        Return what every step left behind too.

    Returns
    -------
    tokens : ndarray, shape (B, t, p + n, dx)
        In the dtype of ``x``.
    latents : ndarray, shape (B, t, m, dl)
        The result to use if the last stage has global layers.
    trace : dict of str to ndarray
        Only with ``return_trace``: see `refattn.layers.fit_stages.interleave`.

    Raises
    ------
    ValueError
        If shapes do not fit the weights, the mask is unknown, a stage before the last lacks a part, or extra tokens
        come without a stem for them.

    Notes
    -----
    The released code takes a configuration and owns its weights; here the weights are the configuration: t, m, n, the
    widths, the heads and the numbers of layers are their shapes. Dropout and stochastic depth are 0 there by default
    and absent here. Masked scores are −∞ here and −10⁹ there, which no visible row can tell apart. TensorFlow's GELU
    rounds 1/√2 to float32 even in float64.

    References
    ----------
    2305.12689; google-research/pix2seq, architectures/transformers.py, class FIT.
    """
    x = as_float("x", x, ndim=4)
    weights = cast(weights, x.dtype)
    require_tokens(x, weights.x_positions, weights.latents, weights.stem)
    stages = require_stages(weights.stages)
    t, m, _ = weights.latents.shape
    tokens = stem(x, weights.stem) + weights.x_positions  # (B, t, n, dx): 1
    if extra is not None:
        tokens = np.concatenate([_extra_tokens(extra, x, weights.extra_stem), tokens], axis=2)  # (B, t, p + n, dx)
    latents = spread(weights.latents, len(x))  # (B, t, m, dl): 2
    tokens, latents, trace = interleave(tokens, latents, stages, global_mask=square_mask(mask, t, m))  # 3
    outputs = normalised(tokens, weights.x_norm), normalised(latents, weights.latent_norm)  # 4
    return (*outputs, trace) if return_trace else outputs


def stem(x: np.ndarray, weights: StemWeights) -> np.ndarray:
    """Return LN(x W + b); it checks nothing.

    Parameters
    ----------
    x : ndarray, shape (..., c)
        Features.
    weights : StemWeights
        The map and its norm.

    Returns
    -------
    ndarray, shape (..., dx)
    """
    return normalised(x @ weights.w + weights.b, weights.norm)


def require_tokens(x: np.ndarray, x_positions: np.ndarray, latents: np.ndarray, weights: StemWeights) -> None:
    """Refuse features that do not come as (B, t, n, c), with t, n and c from the weights.

    Parameters
    ----------
    x : ndarray
        Features.
    x_positions, latents, weights
        E_x, E_ℓ and the stem.

    Raises
    ------
    ValueError
        If a shape does not fit.
    """
    require(latents.ndim == 3, f"weights.latents has shape {latents.shape}, expected (t, m, dl)")
    require(x_positions.ndim == 2, f"weights.x_positions has shape {x_positions.shape}, expected (n, dx)")
    require_shape("x", x, (len(x), len(latents), len(x_positions), len(weights.w)))


def _extra_tokens(extra: Any, x: np.ndarray, weights: StemWeights | None) -> np.ndarray:
    """Return the tokens (B, t, p, dx) of extra features."""
    extra = as_float("extra", extra, ndim=4).astype(x.dtype, copy=False)
    if weights is None:
        raise ValueError(f"extra has shape {extra.shape}, but weights.extra_stem is None: extra tokens need a stem")
    require_shape("extra", extra, (*x.shape[:2], extra.shape[2], len(weights.w)))
    return stem(extra, weights)
