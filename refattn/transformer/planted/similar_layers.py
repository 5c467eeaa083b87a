"""A small Llama whose layers look at the same keys in groups, planted by hand: which may reuse whose keys is known.

Every token has a flag of ±1, and some tokens are critical to one group of layers. A layer of group g looks, wherever it
stands, at the tokens that are critical to g, in an order of its own; a diffuse layer looks at all tokens alike. Each
layer writes the flags that it sees, averaged, to a coordinate of its own, which the logit of the token of the same
number reads out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import RopeConfig, TransformerConfig
from refattn.transformer.planted.ballast import SIZE, rms_norm_weight
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DIFFUSE", "GROUPS", "planted_source", "similar_layers_ids", "similar_layers_model"]

DIFFUSE = 0
"""The group of layers that look at everything."""
GROUPS = (0, 1, 1, 1, 1, 0, 2, 2, 2, 3, 3, 3)
"""Twelve layers: two diffuse ones, and three groups that share their critical tokens."""

_TASTES = 6  # features that make up the order within a group
_FAST = 4  # pairs of a head that turn too fast to hold content
_THETA = 1e16  # so slow are all other pairs that 100 positions turn them by less than 0.01


def similar_layers_model(
    rng: np.random.Generator,
    *,
    groups: Sequence[int] = GROUPS,
    vocab_size: int = 96,
    n_critical: int = 12,
    focus: float = 10.0,
    taste: float = 1.0,
) -> Transformer:
    """Set the weights: one head a layer, no MLP, an RMSNorm that changes nothing.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws flags, tastes and which tokens are critical to which group.
    groups : sequence of int
        The group of each layer; 0 is diffuse.
    vocab_size : int
        V, the number of tokens.
    n_critical : int
        How many tokens are critical to each group; no token to two of them.
    focus : float
        By how much the logit of a critical token exceeds that of another.
    taste : float
        Standard deviation of what each layer adds to the logits by its own taste.

    Returns
    -------
    Transformer
        Float64, of the Llama family, with biases of queries. Logit l is the average flag that layer l saw.

    Raises
    ------
    ValueError
        If a group is negative, or the critical tokens or the layers do not fit into the vocabulary.
    """
    n_groups, n_layers = max(groups), len(groups)
    require(min(groups) >= DIFFUSE, f"groups={tuple(groups)} must not be negative")
    room = max(n_groups * n_critical, n_layers)
    require(room <= vocab_size, f"vocab_size={vocab_size} must be at least {room}")
    config = _config(n_layers, n_groups, vocab_size)
    d, e = config.d_model, config.d_head
    content = np.arange(1, 1 + n_groups + _TASTES)  # after the ballast: groups, tastes
    flag, written = content[-1] + 1, content[-1] + 2 + np.arange(n_layers)
    slow = _FAST + np.arange(len(content))  # channels of a head that hold content

    W_E = np.zeros((vocab_size, d))
    W_E[:, 0] = SIZE
    critical = rng.permutation(vocab_size)[: n_groups * n_critical]
    W_E[critical, 1 + np.arange(n_groups).repeat(n_critical)] = 1.0
    W_E[:, content[n_groups:]] = rng.standard_normal((vocab_size, _TASTES))
    W_E[:, flag] = np.where(rng.random(vocab_size) < 0.6, 1.0, -1.0)
    W_U = np.zeros((d, vocab_size))
    W_U[written, np.arange(n_layers)] = 1.0

    W_K, W_V = np.zeros((1, d, e)), np.zeros((1, d, e))
    W_K[0, content, slow] = 1.0
    W_V[0, flag, 0] = 1.0
    blocks = []
    for layer, group in enumerate(groups):
        b_Q, W_O = np.zeros((1, e)), np.zeros((1, e, d))
        if group != DIFFUSE:
            b_Q[0, slow[group - 1]] = focus * np.sqrt(e)
            own = rng.standard_normal(_TASTES)
            b_Q[0, slow[n_groups:]] = taste * np.sqrt(e) * own / np.linalg.norm(own)
        W_O[0, 0, written[layer]] = 1.0
        blocks.append(_block(config, b_Q=b_Q, W_K=W_K, W_V=W_V, W_O=W_O))
    norm = rms_norm_weight(d)
    return Transformer(config, TransformerWeights(W_E, None, tuple(blocks), norm, None, W_U))


def similar_layers_ids(rng: np.random.Generator, model: Transformer, batch: int = 1) -> np.ndarray:
    """Return prompts (batch, V) in which every token of the vocabulary occurs once, in random order."""
    V = model.config.vocab_size
    return rng.permuted(np.tile(np.arange(V), (batch, 1)), axis=1)


def planted_source(groups: Sequence[int] = GROUPS) -> np.ndarray:
    """Return the policy (L,) that a profile should find: the first layer of each run of a group, diffuse ones full."""
    source = np.arange(len(groups))
    for layer in range(1, len(groups)):
        if groups[layer] == groups[layer - 1] != DIFFUSE:
            source[layer] = source[layer - 1]
    return source


def _config(n_layers: int, n_groups: int, vocab_size: int) -> TransformerConfig:
    e = 2 * (_FAST + n_groups + _TASTES)
    return TransformerConfig(
        family="llama",
        n_layers=n_layers,
        d_model=2 + n_groups + _TASTES + n_layers,
        n_heads=1,
        n_kv_heads=1,
        d_head=e,
        d_mlp=1,
        vocab_size=vocab_size,
        n_ctx=vocab_size,
        norm="rms",
        norm_eps=1e-6,
        act="silu",
        gated=True,
        positions="rope",
        rope=RopeConfig(_THETA, e),
        attn_scale=(e**-0.5,) * n_layers,
        window=(None,) * n_layers,
    )


def _block(config: TransformerConfig, **attention: np.ndarray) -> BlockWeights:
    """Return a block whose MLP adds nothing, with the given attention."""
    d, e, m = config.d_model, config.d_head, config.d_mlp
    nothing: dict[str, Any] = {
        "W_Q": np.zeros((1, d, e)),
        **{f"b_{name}": np.zeros((1, e)) for name in "QKV"},
        "b_O": np.zeros(d),
        **{f"W_{name}": np.zeros((d, m)) for name in ("in", "gate")},
        **{f"b_{name}": np.zeros(m) for name in ("in", "gate")},
        "W_out": np.zeros((m, d)),
        "b_out": np.zeros(d),
        **dict.fromkeys(("ln1_b", "ln2_b", "q_norm", "k_norm")),
    }
    norm = rms_norm_weight(d)
    return BlockWeights(ln1_w=norm, ln2_w=norm, **(nothing | attention))
