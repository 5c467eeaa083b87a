"""The attention networks that gCOG was tried on, as they run after training (2401.15030).

A rule stream, the instruction's tokens, and a stimulus stream, the image's tokens, go in; log-probabilities of the
answers come out. The networks differ in where, and how often, one stream may look at the other. Blocks and attention
are in `gcog_blocks`; equation labels (gcog-…) are those of the page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.benchmarks.gcog_blocks import (
    AttentionWeights,
    BlockWeights,
    Classified,
    LinearWeights,
    NormWeights,
    attend,
    block,
    checked_streams,
    linear,
    log_softmax,
    norm,
    relu,
)
from refattn.primitives.activations import gelu
from refattn.primitives.arguments import require

__all__ = [
    "CrossAttentionWeights",
    "DeepSingleStreamWeights",
    "DualStreamWeights",
    "PerceiverWeights",
    "RuleQueryWeights",
    "SingleStreamWeights",
    "cross_attention",
    "deep_single_stream",
    "dual_stream",
    "join_streams",
    "perceiver",
    "rule_query_cross_attention",
    "single_stream",
]


class DualStreamWeights(NamedTuple):
    """Two blocks, the maps A and C of what they end with, and what comes after the sum."""

    rule: BlockWeights
    stimulus: BlockWeights
    rule_map: LinearWeights
    stimulus_map: LinearWeights
    norm_in: NormWeights
    layers: tuple[LinearWeights, ...]
    norm_out: NormWeights
    readout: LinearWeights


class SingleStreamWeights(NamedTuple):
    """One block over both streams, and what comes after."""

    block: BlockWeights
    layers: tuple[LinearWeights, ...]
    norm_out: NormWeights
    readout: LinearWeights


class DeepSingleStreamWeights(NamedTuple):
    """An embedding and any number of blocks without embeddings, over both streams."""

    embed: LinearWeights
    blocks: tuple[BlockWeights, ...]
    readout: LinearWeights


class CrossAttentionWeights(NamedTuple):
    """Two blocks, and a latent of width M that looks at one after the other."""

    rule: BlockWeights
    stimulus: BlockWeights
    rule_attention: AttentionWeights
    stimulus_attention: AttentionWeights
    norm: NormWeights
    readout: LinearWeights


class PerceiverWeights(NamedTuple):
    """Two blocks, and latents that look at them and at each other; `latent_attention` and `latent_norm` are shared."""

    rule: BlockWeights
    stimulus: BlockWeights
    rule_attention: AttentionWeights
    rule_norm: NormWeights
    rule_map: LinearWeights
    stimulus_attention: AttentionWeights
    stimulus_norm: NormWeights
    stimulus_map: LinearWeights
    latent_attention: AttentionWeights
    latent_norm: NormWeights
    latent_map: LinearWeights
    readout: LinearWeights


class RuleQueryWeights(NamedTuple):
    """Two blocks; the rule's tokens look at the stimulus."""

    rule: BlockWeights
    stimulus: BlockWeights
    attention: AttentionWeights
    norm: NormWeights
    layers: tuple[LinearWeights, ...]
    norm_out: NormWeights
    readout: LinearWeights


def dual_stream(
    rule: Any, stimulus: Any, weights: DualStreamWeights, *, n_heads: int = 1, positional: bool = True
) -> Classified:
    """Read both streams apart, and add what each says at its last token.

    Parameters
    ----------
    rule : array_like, shape (..., n, 8)
        Tokens of the instruction, the end token last.
    stimulus : array_like, shape (..., m, 3 or more)
        Tokens of the image, the end token last.
    weights : DualStreamWeights
        If ``weights.rule.relative`` is given, the rule's block is causal and knows distances instead of positions.
    n_heads : int
        H, in all attentions.
    positional : bool
        Whether positions are added to tokens.

    Returns
    -------
    Classified
        ``hidden`` is the last layer norm's output.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    In all networks padding is attended to, as in the released code.

    References
    ----------
    2401.15030; the released class ``Transformer``.
    """
    rule, stimulus = _checked(rule, stimulus, weights.rule, weights.stimulus, n_heads)
    R = block(rule, weights.rule, n_heads=n_heads, positional=positional)  # (..., n, E)
    S = block(stimulus, weights.stimulus, n_heads=n_heads, positional=positional)  # (..., m, E)
    # eq: gcog-dual
    f = relu(linear(R[..., -1, :], weights.rule_map)) + relu(linear(S[..., -1, :], weights.stimulus_map))  # (..., M)
    f = norm(_layers(norm(f, weights.norm_in), weights.layers), weights.norm_out)
    return Classified(log_softmax(linear(f, weights.readout)), f)


def single_stream(
    rule: Any, stimulus: Any, weights: SingleStreamWeights, *, n_heads: int = 1, positional: bool = True
) -> Classified:
    """Put both streams into one sequence, and let every token look at every other, once.

    Parameters
    ----------
    rule, stimulus, n_heads, positional
        As in `dual_stream`.
    weights : SingleStreamWeights
        The weights.

    Returns
    -------
    Classified
        ``hidden`` is the last layer norm's output.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    2401.15030; the released class ``MultimodalTransformer``, which works with one block only.
    """
    width = weights.block.attention.query.weight.shape[-1]
    x = _joined(rule, stimulus, weights.block.embed, n_heads, width)
    # eq: gcog-single
    last = block(x, weights.block, n_heads=n_heads, positional=positional)[..., -1, :]  # (..., E)
    f = norm(_layers(last, weights.layers), weights.norm_out)  # (..., M)
    return Classified(log_softmax(linear(f, weights.readout)), f)


def deep_single_stream(
    rule: Any, stimulus: Any, weights: DeepSingleStreamWeights, *, n_heads: int = 1, positional: bool = True
) -> Classified:
    """Put both streams into one sequence, and let every token look at every other in each of several blocks.

    Parameters
    ----------
    rule, stimulus, n_heads, positional
        As in `dual_stream`; positions are added in every block.
    weights : DeepSingleStreamWeights
        The weights.

    Returns
    -------
    Classified
        ``hidden`` holds the log-probabilities once more: the released code returns them twice.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    2401.15030; the released class ``SSTFMR``.
    """
    x = _joined(rule, stimulus, weights.embed, n_heads, weights.embed.weight.shape[-1])
    x = linear(x, weights.embed)  # (..., n + m, E)
    for layer in weights.blocks:
        # eq: gcog-deep
        x = block(x, layer, n_heads=n_heads, positional=positional, activation=gelu)
    log_probs = log_softmax(linear(x[..., -1, :], weights.readout))
    return Classified(log_probs, log_probs.copy())


def cross_attention(
    rule: Any, stimulus: Any, weights: CrossAttentionWeights, *, n_heads: int = 1, positional: bool = True
) -> Classified:
    """Let one latent, zero at first, look at the rule and then, knowing it, at the stimulus.

    Parameters
    ----------
    rule, stimulus, n_heads, positional
        As in `dual_stream`.
    weights : CrossAttentionWeights
        The weights; the layer norm is shared.

    Returns
    -------
    Classified
        ``hidden`` is the latent.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    2401.15030; the released class ``TransformerCrossAttn``.
    """
    R, S = _blocks(rule, stimulus, weights, n_heads, positional, weights.rule_attention)
    z = np.zeros((*R.shape[:-2], 1, weights.readout.weight.shape[0]), R.dtype)  # (..., 1, M)
    for attention, context in ((weights.rule_attention, R), (weights.stimulus_attention, S)):
        # eq: gcog-cross
        z = norm(attend(z, context, attention, n_heads=n_heads) + z, weights.norm)
    hidden = z[..., -1, :]
    return Classified(log_softmax(linear(hidden, weights.readout)), hidden)


def perceiver(
    rule: Any,
    stimulus: Any,
    weights: PerceiverWeights,
    *,
    n_heads: int = 1,
    positional: bool = True,
    n_latents: int = 10,
    return_latents: bool = False,
) -> Any:
    """Let several latents, zero at first, look at the rule, at each other, at the stimulus, and at each other.

    Parameters
    ----------
    rule, stimulus, n_heads, positional
        As in `dual_stream`.
    weights : PerceiverWeights
        The weights.
    n_latents : int
        How many latents there are. As all begin with zero all stay equal, so that one would do.
    return_latents : bool
        Return all latents beside the result.

    Returns
    -------
    Classified
        ``hidden`` is the last latent. With ``return_latents`` a pair: this, and an ndarray of shape
        (..., n_latents, M).

    Raises
    ------
    ValueError
        If shapes do not fit, or there is no latent.

    References
    ----------
    2401.15030; the released class ``Perceiver``.
    """
    require(n_latents >= 1, f"n_latents={n_latents!r} must be >= 1")
    R, S = _blocks(rule, stimulus, weights, n_heads, positional, weights.rule_attention)
    z = np.zeros((*R.shape[:-2], n_latents, weights.readout.weight.shape[0]), R.dtype)  # (..., n_latents, M)
    for context, attention, c_norm, c_map in (
        (R, weights.rule_attention, weights.rule_norm, weights.rule_map),
        (S, weights.stimulus_attention, weights.stimulus_norm, weights.stimulus_map),
    ):
        c = norm(attend(z, context, attention, n_heads=n_heads), c_norm)
        c = relu(linear(c, c_map)) + c
        # eq: gcog-perceiver
        z = norm(c + z, weights.latent_norm)
        z = norm(attend(z, z, weights.latent_attention, n_heads=n_heads) + z, weights.latent_norm)
    z = relu(linear(z, weights.latent_map))
    hidden = z[..., -1, :].copy()
    result = Classified(log_softmax(linear(hidden, weights.readout)), hidden)
    return (result, z) if return_latents else result


def rule_query_cross_attention(
    rule: Any, stimulus: Any, weights: RuleQueryWeights, *, n_heads: int = 1, positional: bool = True
) -> Classified:
    """Let every token of the rule look at the stimulus.

    Parameters
    ----------
    rule, stimulus, n_heads, positional
        As in `dual_stream`.
    weights : RuleQueryWeights
        The weights.

    Returns
    -------
    Classified
        ``hidden`` is the last token before the MLP, of width E.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    2401.15030; the released class ``SimpleCrossAttn``.
    """
    R, S = _blocks(rule, stimulus, weights, n_heads, positional, weights.attention)
    # eq: gcog-query
    z = norm(attend(R, S, weights.attention, n_heads=n_heads), weights.norm) + R  # (..., n, E)
    f = norm(_layers(z, weights.layers), weights.norm_out)[..., -1, :]  # (..., M)
    return Classified(log_softmax(linear(f, weights.readout)), z[..., -1, :].copy())


def join_streams(rule: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """Return one sequence: the rule's tokens, then the stimulus's, each with features of its own."""
    behind = np.zeros((*rule.shape[:-1], stimulus.shape[-1]), rule.dtype)
    before = np.zeros((*stimulus.shape[:-1], rule.shape[-1]), stimulus.dtype)
    # eq: gcog-join
    top, bottom = np.concatenate([rule, behind], axis=-1), np.concatenate([before, stimulus], axis=-1)
    return np.concatenate([top, bottom], axis=-2)  # (..., n + m, features of both)


def _layers(x: np.ndarray, layers: tuple[LinearWeights, ...]) -> Any:
    for layer in layers:
        x = relu(linear(x, layer))
    return x


def _width(weights: BlockWeights) -> int:
    return int(weights.attention.query.weight.shape[-1])


def _checked(rule: Any, stimulus: Any, rule_block: BlockWeights, stimulus_block: BlockWeights, n_heads: int) -> Any:
    """Return both streams, of the features that their blocks embed."""
    widths = _width(rule_block), _width(stimulus_block)
    rule, stimulus = checked_streams(rule, stimulus, n_heads=n_heads, widths=widths)
    for name, x, weights in (("rule", rule, rule_block), ("stimulus", stimulus, stimulus_block)):
        features = weights.embed.weight.shape[0] if weights.embed is not None else widths[0]
        require(x.shape[-1] == features, f"{name} has {x.shape[-1]} features, its weights are for {features}")
        if weights.relative is not None:
            most = len(weights.relative)
            require(x.shape[-2] <= most, f"{name} has {x.shape[-2]} tokens, more than the {most} distances known")
    return rule, stimulus


def _joined(rule: Any, stimulus: Any, embed: LinearWeights | None, n_heads: int, width: int) -> np.ndarray:
    """Return both streams as one, of the features that the embedding takes."""
    rule, stimulus = checked_streams(rule, stimulus, n_heads=n_heads, widths=(width,))
    features = rule.shape[-1] + stimulus.shape[-1]
    known = features if embed is None else embed.weight.shape[0]
    require(features == known, f"rule and stimulus have {features} features together, the weights are for {known}")
    return join_streams(rule, stimulus)


def _blocks(
    rule: Any, stimulus: Any, weights: Any, n_heads: int, positional: bool, attention: AttentionWeights
) -> tuple[np.ndarray, np.ndarray]:
    """Return both streams behind their blocks: R and S."""
    rule, stimulus = _checked(rule, stimulus, weights.rule, weights.stimulus, n_heads)
    width = attention.query.weight.shape[-1]
    require(width % n_heads == 0, f"n_heads={n_heads!r} must divide the width {width} of the queries")
    R = block(rule, weights.rule, n_heads=n_heads, positional=positional)  # (..., n, E)
    return R, block(stimulus, weights.stimulus, n_heads=n_heads, positional=positional)  # (..., m, E)
