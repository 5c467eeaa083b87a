"""A Llama whose attention sinks are planted: which token becomes one, where, and how strongly, has a closed form.

The stream has three coordinates of its own, then a one-hot code of the token. Coordinate 0 is the direction of sinks:
an MLP writes c into it where its trigger token stands. Coordinate 1 drifts by δ on every layer, for every token, so
that a sink once made is slowly forgotten. Coordinate 2 is constant. One head looks along coordinate 0, and writes
nothing.

With n = (l + 1) δ the output of block l is (c, n, 1, one-hot), c = 0 before the write. Its cosine to the primary sink,
(c c₀ + n² + 1) / √((c² + n² + 2)(c₀² + n² + 2)), falls with n: the larger c, the longer it stays above a threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.primitives.activations import silu
from refattn.primitives.arguments import as_integer, require
from refattn.primitives.softmax import softmax
from refattn.transformer.config import RopeConfig, TransformerConfig
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights, block_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TRIGGERS",
    "build_sink_model",
    "planted_attention",
    "planted_cosine",
    "planted_levels",
    "planted_reach",
    "planted_sizes",
]

TRIGGERS = ((1, 8, 16.0), (2, 8, 22.0), (3, 14, 16.0))
"""Token, layer and size c of each secondary sink, where nothing else is asked for."""

_SINK, _DRIFT, _CONSTANT, _TOKENS = 0, 1, 2, 3  # coordinates of the stream
_GATE = 10.0  # what the gate of a trigger sees
_HEAD = 4


def build_sink_model(
    *,
    n_layers: int = 32,
    c0: float = 400.0,
    start0: int = 2,
    triggers: Sequence[tuple[int, int, float]] = TRIGGERS,
    delta: float = 0.5,
    kappa: float = 6.0,
    vocab: int = 12,
) -> Transformer:
    """Build the model; it computes in float64, and can be saved as a checkpoint of the Llama family.

    Parameters
    ----------
    n_layers : int
        The number of layers L.
    c0, start0 : float, int
        Size of the primary sink, and the layer whose MLP makes it at token 0.
    triggers : sequence of (int, int, float)
        Token, layer and size c of each secondary sink.
    delta : float
        The drift δ of a layer.
    kappa : float
        How strongly the head looks along the direction of sinks.
    vocab : int
        The number of tokens V.

    Returns
    -------
    Transformer

    Raises
    ------
    ValueError
        If a token has two triggers or is not in the vocabulary, or a layer does not exist.
    """
    planted = [(0, start0, c0), *triggers]
    _check(planted, n_layers, vocab)
    config = _config(n_layers, vocab, len(planted))
    blocks = tuple(_block(config, layer, planted, delta, kappa) for layer in range(n_layers))
    tokens = np.eye(vocab, config.d_model, k=_TOKENS)  # (V, d)
    embedding = tokens.copy()
    embedding[:, _CONSTANT] = 1.0
    return Transformer(config, TransformerWeights(embedding, None, blocks, np.ones(config.d_model), None, tokens.T))


def planted_cosine(c: Any, c0: float, n: Any) -> Any:
    """Return the cosine between a token with sink coordinate c and the primary sink, both drifted by n.

    Parameters
    ----------
    c, n : array_like
        Sink coordinate and drift; they broadcast.
    c0 : float
        Size of the primary sink.

    Returns
    -------
    ndarray
    """
    c, square = np.asarray(c, float), np.square(np.asarray(n, float))
    # eq: ss-planted
    return (c * c0 + square + 1.0) / np.sqrt((c**2 + square + 2.0) * (c0**2 + square + 2.0))


def planted_reach(c: Any, c0: float, threshold: float = 0.9) -> Any:
    """Return the drift n at which the cosine falls to a threshold, 0 where it never was above.

    Parameters
    ----------
    c : array_like
        Sink coordinate, below c₀.
    c0 : float
        Size of the primary sink.
    threshold : float
        Of the cosine.

    Returns
    -------
    ndarray
        For c₀ → ∞ and a threshold of 0.9 it is √(0.23457 c² − 2).
    """
    c, square = np.asarray(c, float), threshold**2
    a, p, q = c * c0 + 1.0, c**2 + 2.0, c0**2 + 2.0
    # (a + n²)² = t² (p + n²)(q + n²), a quadratic in n² whose smaller root is where the cosine crosses downwards
    half = 0.5 * square * (p + q) - a
    constant = a**2 - square * p * q
    root = (half - np.sqrt(np.maximum(half**2 - (1.0 - square) * constant, 0.0))) / (1.0 - square)
    return np.sqrt(np.where(constant > 0, np.maximum(root, 0.0), 0.0))


def planted_levels(
    *,
    n_layers: int = 32,
    c0: float = 400.0,
    start0: int = 2,
    triggers: Sequence[tuple[int, int, float]] = TRIGGERS,
    delta: float = 0.5,
    threshold: float = 0.9,
) -> dict[int, tuple[int, int]]:
    """Return the level of each planted token: its first layer as a sink and its lifetime, (−1, 0) if it never is one.

    Parameters
    ----------
    n_layers, c0, start0, triggers, delta
        As in `build_sink_model`.
    threshold : float
        Of the cosine.

    Returns
    -------
    dict of int to (int, int)
        By token. The primary sink ends before the last block, behind which the final norm cuts its length.
    """
    levels = {0: (start0, n_layers - 1 - start0)}
    for token, layer, c in triggers:
        l = np.arange(max(layer, start0), n_layers - 1)
        alive = l[planted_cosine(c, c0, (l + 1) * delta) > threshold]
        levels[token] = (int(alive[0]), len(alive)) if alive.size else (-1, 0)
    return levels


def planted_sizes(
    ids: Any, layer: int, *, c0: float = 400.0, start0: int = 2, triggers: Sequence[tuple[int, int, float]] = TRIGGERS
) -> np.ndarray:
    """Return the sink coordinate c of each token as it enters a block.

    Parameters
    ----------
    ids : array_like of int, shape (T,)
        The sequence.
    layer : int
        The block.
    c0, start0, triggers
        As in `build_sink_model`.

    Returns
    -------
    ndarray, shape (T,)
    """
    ids = as_integer("ids", ids, ndim=1)
    sizes = np.zeros(len(ids))
    for token, made, c in [(0, start0, c0), *triggers]:
        sizes[(ids == token) & (made < layer)] = c
    return sizes


def planted_attention(
    ids: Any,
    layer: int,
    *,
    c0: float = 400.0,
    start0: int = 2,
    triggers: Sequence[tuple[int, int, float]] = TRIGGERS,
    delta: float = 0.5,
    kappa: float = 6.0,
    vocab: int = 12,
) -> np.ndarray:
    """Return the attention weights of a block in closed form.

    Parameters
    ----------
    ids, layer, c0, start0, triggers
        As in `planted_sizes`.
    delta, kappa, vocab
        As in `build_sink_model`.

    Returns
    -------
    ndarray, shape (T, T)
    """
    c = planted_sizes(ids, layer, c0=c0, start0=start0, triggers=triggers)  # (T,)
    r = np.sqrt(c**2 + (layer * delta) ** 2 + 2.0)  # (T,), lengths of what enters the block
    # eq: ss-planted-attention
    scores = kappa * (vocab + _TOKENS) * c / (_HEAD**0.5 * r[:, None] * r)  # (T, T)
    return softmax(scores, where=np.tri(len(c), dtype=bool))


def _check(planted: Sequence[tuple[int, int, float]], n_layers: int, vocab: int) -> None:
    tokens = [token for token, _, _ in planted]
    require(
        len(set(tokens)) == len(tokens), f"tokens {tokens} must differ: a token has one trigger, 0 is the primary's"
    )
    for token, layer, _ in planted:
        require(0 <= token < vocab, f"token {token} outside vocabulary of {vocab}")
        require(0 <= layer < n_layers, f"layer {layer} of token {token} is not one of the {n_layers} of the model")


def _config(n_layers: int, vocab: int, d_mlp: int) -> TransformerConfig:
    return TransformerConfig(
        family="llama",
        n_layers=n_layers,
        d_model=_TOKENS + vocab,
        n_heads=1,
        n_kv_heads=1,
        d_head=_HEAD,
        d_mlp=d_mlp,
        vocab_size=vocab,
        n_ctx=4096,
        norm="rms",
        norm_eps=1e-12,
        act="silu",
        gated=True,
        positions="rope",
        rope=RopeConfig(theta=1e16, dim=_HEAD),  # dimensions 1 and 3 turn by 1e-8 a position: not at all
        attn_scale=(_HEAD**-0.5,) * n_layers,
        window=(None,) * n_layers,
    )


def _block(
    config: TransformerConfig, layer: int, planted: Sequence[tuple[int, int, float]], delta: float, kappa: float
) -> BlockWeights:
    """Return a block whose head compares the constant of queries with the sink coordinate of keys."""
    weights: dict[str, Any] = {name: shape and np.zeros(shape) for name, shape in block_shapes(config).items()}
    weights["ln1_w"], weights["ln2_w"] = np.ones((2, config.d_model))
    weights["W_Q"][0, _CONSTANT, 1] = 1.0
    weights["W_K"][0, _SINK, 1] = kappa
    scale = np.sqrt((2.0 + (layer * delta) ** 2) / config.d_model)  # what the norm divides an unwritten token by
    for unit, (token, made, c) in enumerate(planted):
        if made == layer:
            weights["W_gate"][_TOKENS + token, unit] = _GATE * scale
            weights["W_in"][_TOKENS + token, unit] = scale
            weights["W_out"][unit, _SINK] = c / silu(np.float64(_GATE))
    weights["b_out"][_DRIFT] = delta
    return BlockWeights(**weights)
