"""A GPT-2 of random weights with one communication channel planted in it: component 7 of head 0.1 to head 2.3.

Thirty-two heads read and write along directions drawn at random. One query matrix has a matrix of rank one added to it,
so that its head reads what one component of an earlier head writes, and not one of that head's largest. Between the two
heads as wholes there is little to see; between the component and the head there is nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import TransformerConfig
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights, block_shapes

__all__ = ["COMPONENT", "READER", "build_channel_model"]

COMPONENT = (0, 1, 7)
"""Layer, head and component that speaks; component 0 is the largest."""
READER = (2, 3)
"""Layer and head whose queries listen."""

_LAYERS, _HEADS, _D, _E, _WORDS, _N_CTX = 4, 8, 128, 16, 24, 32


def build_channel_model(*, strength: float = 1.5, seed: int = 9) -> Transformer:
    """Draw the weights and plant the channel.

    Parameters
    ----------
    strength : float
        α, the size of the matrix α v qᵀ that is added to W_Q, whose columns have length 1.
    seed : int
        Of all that is random. Of 18,432 scores chance puts two or three others beyond z = 4, but with this seed, which
        was chosen for it, none.

    Returns
    -------
    Transformer
        In float64, 4 layers of 8 heads, d = 128, e = 16; `refattn.transformer.checkpoint.save_pretrained` makes it a
        GPT-2. It was never trained, and what it says means nothing.

    Raises
    ------
    ValueError
        If ``strength`` is not finite.

    Notes
    -----
    The model is ours [our definition]. W_Q, W_K and W_V have orthonormal columns, W_O has orthogonal rows of lengths
    from 1.5 down to 0.5: these are the sizes of the components, in their order, and row i is what component i writes.
    All of them have mean zero over the model's width, so that folding LayerNorm into the weights changes nothing.
    """
    require(math.isfinite(strength), f"strength={strength!r} must be finite")
    rng = np.random.default_rng(seed)
    config = _config()
    blocks = [_block(config, rng) for _ in range(_LAYERS)]
    layer, head, component = COMPONENT
    written = blocks[layer].W_O[head, component]  # (d,)
    q = rng.standard_normal(_E)
    planted = np.outer(written, q) / (np.linalg.norm(written) * np.linalg.norm(q))
    blocks[READER[0]].W_Q[READER[1]] += strength * planted
    W_E, W_pos = (np.swapaxes(_centred(rng, (_D, rows)), 0, 1) for rows in (_WORDS, _N_CTX))
    weights = TransformerWeights(W_E, W_pos, tuple(blocks), np.ones(_D), np.zeros(_D), W_E.T)
    return Transformer(config, weights)


def _config() -> TransformerConfig:
    return TransformerConfig(
        family="gpt2",
        n_layers=_LAYERS,
        d_model=_D,
        n_heads=_HEADS,
        n_kv_heads=_HEADS,
        d_head=_E,
        d_mlp=4,
        vocab_size=_WORDS,
        n_ctx=_N_CTX,
        norm="layer",
        norm_eps=1e-5,
        act="gelu_new",
        gated=False,
        positions="learned",
        rope=None,
        attn_scale=(_E**-0.5,) * _LAYERS,
        window=(None,) * _LAYERS,
        tied=True,
    )


def _block(config: TransformerConfig, rng: np.random.Generator) -> BlockWeights:
    """Return a block whose heads are random, and whose MLP adds nothing."""
    weights: dict[str, Any] = {name: shape and np.zeros(shape) for name, shape in block_shapes(config).items()}
    weights["ln1_w"], weights["ln2_w"] = np.ones((2, _D))
    W_Q, W_K, W_V, W_O = (np.linalg.qr(_centred(rng, (_HEADS, _D, _E)))[0] for _ in range(4))
    sizes = np.linspace(1.5, 0.5, _E)
    weights |= {"W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": sizes[:, None] * np.swapaxes(W_O, 1, 2)}
    return BlockWeights(**weights)


def _centred(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw columns whose mean is zero."""
    columns = rng.standard_normal(shape)
    return np.asarray(columns - columns.mean(axis=-2, keepdims=True))
