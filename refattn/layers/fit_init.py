"""Fresh weights for the three FIT models, from a configuration, drawn as the released code draws them (2305.12689)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn.layers.fit import FITWeights, StemWeights
from refattn.layers.fit_autoregressive import FITARWeights
from refattn.layers.fit_blocks import CrossWeights, LayerWeights, MHAWeights, MLPWeights, NormWeights
from refattn.layers.fit_denoiser import FITDenoiserWeights, LinearWeights, PreviousWeights, TimeWeights
from refattn.layers.fit_layout import parse_fit_layers
from refattn.layers.fit_positions import POSITION_CODES, position_table
from refattn.layers.fit_stages import StageWeights
from refattn.primitives.arguments import require, require_one_of

__all__ = ["FITConfig", "init_fit", "init_fit_autoregressive", "init_fit_denoiser"]


class FITConfig(NamedTuple):
    """The sizes of a FIT.

    Attributes
    ----------
    layers : str
        Such as ``(2)4(2)``; see `refattn.layers.fit_layout.parse_fit_layers`.
    x_size, num_groups : int
        L tokens in t groups of n = L/t.
    latents_per_group : int
        m.
    x_dim, latent_dim : int
        Widths dx and dl.
    x_heads, latent_heads : int
        Heads of local and of global layers; cross layers have the smaller number of heads and the smaller width.
    mlp_ratio : int
        r.
    x_positions, latent_positions : {"learned", "sin_cos", "sin_cos2d"}
        See `refattn.layers.fit_positions.position_table`; ``sin_cos2d`` for tokens only.
    """

    layers: str
    x_size: int
    num_groups: int
    latents_per_group: int
    x_dim: int
    latent_dim: int
    x_heads: int
    latent_heads: int
    mlp_ratio: int = 4
    x_positions: str = "learned"
    latent_positions: str = "learned"


def init_fit(config: FITConfig, rng: np.random.Generator, *, in_dim: int, extra_dim: int | None = None) -> FITWeights:
    """Draw an encoder.

    Parameters
    ----------
    config : FITConfig
        Its sizes.
    rng : numpy.random.Generator
        The source of randomness.
    in_dim : int
        The number of features c of a token.
    extra_dim : int, optional
        The number of features of extra tokens.

    Returns
    -------
    FITWeights
        Float64.

    Raises
    ------
    ValueError
        If the layer string is malformed, a size is less than 1, the groups do not divide the sequence, heads do not
        divide a width, or a position code is unknown or does not fit.

    Notes
    -----
    Linear maps are uniform with variance 2 over the sum of their widths (Glorot), biases 0, norms 1 and 0, as Keras
    has them. Heads that do not divide a width are refused; Keras rounds the head width down without a word.
    """
    _check(config)
    return FITWeights(
        _stem(rng, in_dim, config.x_dim),
        _x_positions(config, rng),
        _latents(config, rng),
        _stages(config, rng),
        _norm(config.x_dim),
        _norm(config.latent_dim),
        None if extra_dim is None else _stem(rng, extra_dim, config.x_dim),
    )


def init_fit_autoregressive(
    config: FITConfig, rng: np.random.Generator, *, vocabulary: int, shared: bool = True, bias: bool = True
) -> FITARWeights:
    """Draw an autoregressive decoder.

    Parameters
    ----------
    config : FITConfig
        Its sizes.
    rng : numpy.random.Generator
        The source of randomness.
    vocabulary : int
        The number of token ids V.
    shared : bool
        Use the rows of the input embedding for the logits too.
    bias : bool
        Add a bias to the logits.

    Returns
    -------
    FITARWeights
        Float64.

    Raises
    ------
    ValueError
        If the vocabulary is empty, and as `init_fit`.
    """
    _check(config)
    require(vocabulary >= 1, f"vocabulary={vocabulary!r} must be >= 1")
    rows = [position_table("learned", vocabulary, 1, config.x_dim, rng=rng) for _ in range(1 if shared else 2)]
    return FITARWeights(
        rows[0],
        _x_positions(config, rng),
        _latents(config, rng),
        _stages(config, rng),
        _norm(config.x_dim),
        None if shared else rows[1],
        position_table("learned", vocabulary, 1, 1, rng=rng)[:, 0] if bias else None,
    )


def init_fit_denoiser(
    config: FITConfig,
    rng: np.random.Generator,
    *,
    in_dim: int,
    out_dim: int,
    cond_dim: int,
    cond_proj: bool = True,
    self_cond: str = "none",
    x_self_attention: bool = True,
    xattn_with_mlp: bool = False,
    xattn_enc_ln: bool = True,
) -> FITDenoiserWeights:
    """Draw a denoiser; the options have the names of the released code.

    Parameters
    ----------
    config : FITConfig
        Its sizes.
    rng : numpy.random.Generator
        The source of randomness.
    in_dim, out_dim, cond_dim : int
        Widths of data, output and conditions.
    cond_proj : bool
        Project conditions; otherwise ``cond_dim`` must be the latent width.
    self_cond : {"none", "latent"}
        Whether latents of the step before come back.
    x_self_attention : bool
        Whether local layers attend.
    xattn_with_mlp : bool
        Whether READ and WRITE end with an MLP layer.
    xattn_enc_ln : bool
        Whether cross layers normalise their source.

    Returns
    -------
    FITDenoiserWeights
        Float64.

    Raises
    ------
    ValueError
        If ``self_cond`` is unknown, the latent width is no multiple of 4 or less than 8, conditions do not fit, and as
        `init_fit`.
    """
    _check(config)
    require_one_of("self_cond", self_cond, ("none", "latent"))
    d = config.latent_dim
    require(d % 4 == 0 and d >= 8, f"latent_dim={d!r} must be a multiple of 4, at least 8: a quarter codes the time")
    require(cond_proj or cond_dim == d, f"cond_dim={cond_dim!r} must be latent_dim={d} without cond_proj")
    previous = PreviousWeights(_mlp(rng, d, config.mlp_ratio), NormWeights(np.zeros(d), np.zeros(d)))
    cross = {"mlp": xattn_with_mlp, "source_norm": xattn_enc_ln}
    return FITDenoiserWeights(
        _stem(rng, in_dim, config.x_dim),
        _x_positions(config, rng),
        _latents(config, rng),
        TimeWeights(*_linear(rng, d // 4, d), *_linear(rng, d, d)),
        _linear(rng, cond_dim, d) if cond_proj else None,
        previous if self_cond == "latent" else None,
        _stages(config, rng, attend=x_self_attention, conditioned=True, **cross),
        _norm(config.x_dim),
        _linear(rng, config.x_dim, out_dim),
    )


def _check(config: FITConfig) -> None:
    """Refuse sizes that do not fit together."""
    parse_fit_layers(config.layers)
    for name in FITConfig._fields[1:9]:
        require(getattr(config, name) >= 1, f"{name}={getattr(config, name)!r} must be >= 1")
    x_size, t = config.x_size, config.num_groups
    require(x_size % t == 0, f"x_size={x_size} is not divisible by num_groups={t}")
    heads, width = min(config.x_heads, config.latent_heads), min(config.x_dim, config.latent_dim)
    for name, d, h in (
        ("x_dim", config.x_dim, config.x_heads),
        ("latent_dim", config.latent_dim, config.latent_heads),
        ("min(x_dim, latent_dim)", width, heads),
    ):
        require(d % h == 0, f"{name}={d} is not divisible by {h} heads")
    require_one_of("x_positions", config.x_positions, POSITION_CODES)
    require_one_of("latent_positions", config.latent_positions, POSITION_CODES[:2])


def _x_positions(config: FITConfig, rng: np.random.Generator) -> np.ndarray:
    return position_table(config.x_positions, config.x_size // config.num_groups, 1, config.x_dim, rng=rng)


def _latents(config: FITConfig, rng: np.random.Generator) -> np.ndarray:
    t, m, dl = config.num_groups, config.latents_per_group, config.latent_dim
    return position_table(config.latent_positions, t, m, dl, rng=rng).reshape(t, m, dl)


def _stages(
    config: FITConfig,
    rng: np.random.Generator,
    *,
    attend: bool = True,
    conditioned: bool = False,
    mlp: bool = False,
    source_norm: bool = True,
) -> tuple[StageWeights, ...]:
    """Draw every stage of the layer string."""
    dx, dl, hx, hl, r = config.x_dim, config.latent_dim, config.x_heads, config.latent_heads, config.mlp_ratio

    def cross(d: int, e: int, h: int, width: int, *, ratio: int = 0) -> CrossWeights:
        source = _norm(e) if source_norm else None
        after = _mlp(rng, d, ratio) if ratio else None
        return CrossWeights(_norm(d), source, _attention(rng, d, e, h, width), after)

    shared = (min(hx, hl), min(dx, dl))
    spec = parse_fit_layers(config.layers)
    return tuple(
        StageWeights(
            tuple(_layer(rng, dx, hx, r, attend=attend) for _ in range(local)),
            cross(dl, dx, *shared, ratio=r * mlp) if wide else None,
            cross(dl, dl, hl, dl) if wide and conditioned else None,
            tuple(_layer(rng, dl, hl, r) for _ in range(wide)),
            cross(dx, dl, *shared, ratio=r * mlp) if i < len(spec) - 1 else None,
        )
        for i, (local, wide) in enumerate(spec)
    )


def _layer(rng: np.random.Generator, d: int, heads: int, ratio: int, *, attend: bool = True) -> LayerWeights:
    mlp = _mlp(rng, d, ratio)
    return LayerWeights(_norm(d), _attention(rng, d, d, heads, d), mlp) if attend else LayerWeights(None, None, mlp)


def _attention(rng: np.random.Generator, d: int, e: int, h: int, width: int) -> MHAWeights:
    """Draw attention of h heads whose widths add up to ``width``."""
    k, b = width // h, np.zeros((h, width // h))
    w_q, w_k, w_v = (_glorot(rng, c, width).reshape(c, h, k) for c in (d, e, e))
    return MHAWeights(w_q, b, w_k, b.copy(), w_v, b.copy(), _glorot(rng, width, d).reshape(h, k, d), np.zeros(d))


def _mlp(rng: np.random.Generator, d: int, ratio: int) -> MLPWeights:
    return MLPWeights(_norm(d), *_linear(rng, d, ratio * d), *_linear(rng, ratio * d, d))


def _stem(rng: np.random.Generator, c: int, d: int) -> StemWeights:
    return StemWeights(*_linear(rng, c, d), _norm(d))


def _linear(rng: np.random.Generator, c: int, d: int) -> LinearWeights:
    return LinearWeights(_glorot(rng, c, d), np.zeros(d))


def _norm(d: int) -> NormWeights:
    return NormWeights(np.ones(d), np.zeros(d))


def _glorot(rng: np.random.Generator, c: int, d: int) -> np.ndarray:
    kernel: np.ndarray = rng.uniform(-1.0, 1.0, (c, d)) * np.sqrt(6.0 / (c + d))
    return kernel
