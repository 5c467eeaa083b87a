"""A Llama of two layers that looks a needle up in a haystack, planted by hand: six heads, each one's task known.

Head 0.0 tells every token which one came before it; head 1.0 looks for the place whose previous token is the present
one, and copies what stands there to the output: a retrieval head. Head 1.1 looks at the same places for half of the
tokens and writes nothing; the other three have patterns of their own and write nothing either. So it is known which
heads attend to the needle, and which one matters.
"""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refattn.primitives.arguments import require
from refattn.transformer.config import RopeConfig, TransformerConfig
from refattn.transformer.planted.ballast import SIZE, rms_norm_weight
from refattn.transformer.weights import BlockWeights, Transformer, TransformerWeights

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BOS", "HAYSTACK_WORDS", "KEY", "NEEDLE_WORDS", "PERIOD", "RETRIEVAL_HEAD", "build_retrieval_model"]

BOS, PERIOD, KEY = 0, 1, 2
NEEDLE_WORDS = tuple(range(3, 12))
HAYSTACK_WORDS = tuple(range(12, 24))
RETRIEVAL_HEAD = (1, 0)
"""The layer and number of the head that copies the needle."""

_LAYERS, _HEADS, _D_MLP, _N_CTX = 2, 3, 4, 8192
_PAIRS = 8  # how many rotating pairs tell the token before from all others
_CERTAIN = 20.0  # logit of the token that was copied


class _Layout(NamedTuple):
    """Coordinates of the residual stream: this token, the one before, the output, a constant, the ballast."""

    vocab: int
    tok: int
    prev: int
    out: int
    const: int
    ballast: int
    d: int
    e: int


class _Head(NamedTuple):
    W_Q: np.ndarray  # (d, e)
    W_K: np.ndarray  # (d, e)
    W_V: np.ndarray  # (d, e)
    W_O: np.ndarray  # (e, d)


def build_retrieval_model(V: int = 24, *, beta: float = 40.0, theta: float = 1e12, M: float = SIZE) -> Transformer:
    """Build the model.

    Parameters
    ----------
    V : int
        Size of the vocabulary, at least 8. Token 0 opens a text, where queries without a match look; for the others the
        circuit knows no roles, those are `PERIOD`, `KEY`, `NEEDLE_WORDS` and `HAYSTACK_WORDS` of the needle tasks.
    beta : float
        Score of a match; all attention is nearly hard at 40.
    theta : float
        Base of the rotation. At 10¹² the slow half of a head stands still for as long as any text lasts, so it can
        compare tokens at every distance.
    M : float
        Size of the ballast that makes the RMS norms transparent.

    Returns
    -------
    Transformer
        In float64, d = 3V + 3, e = 4V; `refattn.transformer.checkpoint.save_pretrained` makes it a Llama that other
        libraries load.

    Raises
    ------
    ValueError
        For a vocabulary below 8 and parameters that are not positive.

    Notes
    -----
    The model is ours [our definition]. By layer and number: 0.0 previous token, copied; 0.1 the same token, 0.2 the
    first token, both without output; 1.0 retrieval; 1.1 as 1.0 for even tokens, 1.2 previous token, both without
    output. Every W_Q carries √e against the 1/√e of the scores.

    References
    ----------
    2404.15574; induction heads, 2209.11895.
    """
    require(index(V) >= _PAIRS, f"V={V!r} must be at least {_PAIRS}")
    for name, value in (("beta", beta), ("theta", theta), ("M", M)):
        require(math.isfinite(value) and value > 0, f"{name}={value!r} must be finite and > 0")
    at = _Layout(V, 0, V, 2 * V, 3 * V, 3 * V + 1, 3 * V + 3, 4 * V)
    config = _config(at, theta)
    tokens = range(1, V)
    first = (
        _copying(_previous(at, beta, theta), at.tok, at.prev, range(V)),
        _matching(at, beta, at.tok, tokens),
        _matching(at, beta, at.tok, ()),
    )
    second = (
        _copying(_matching(at, beta, at.prev, tokens), at.tok, at.out, tokens),
        _matching(at, beta, at.prev, range(2, V, 2)),
        _previous(at, beta, theta),
    )
    norm = rms_norm_weight(at.d, M)
    weights = TransformerWeights(
        W_E=_embedding(at, M),
        W_pos=None,
        blocks=(_block(first, norm), _block(second, norm)),
        lnf_w=norm,
        lnf_b=None,
        W_U=_unembedding(at),
    )
    return Transformer(config, weights)


def _config(at: _Layout, theta: float) -> TransformerConfig:
    return TransformerConfig(
        family="llama",
        n_layers=_LAYERS,
        d_model=at.d,
        n_heads=_HEADS,
        n_kv_heads=_HEADS,
        d_head=at.e,
        d_mlp=_D_MLP,
        vocab_size=at.vocab,
        n_ctx=_N_CTX,
        norm="rms",
        norm_eps=1e-12,
        act="silu",
        gated=True,
        positions="rope",
        rope=RopeConfig(theta, at.e),
        attn_scale=(at.e**-0.5,) * _LAYERS,
        window=(None,) * _LAYERS,
    )


def _embedding(at: _Layout, M: float) -> np.ndarray:
    W_E = np.zeros((at.vocab, at.d))
    W_E[:, at.tok : at.tok + at.vocab] = np.eye(at.vocab)
    W_E[:, at.const] = 1.0
    W_E[:, at.ballast] = M
    return W_E


def _unembedding(at: _Layout) -> np.ndarray:
    W_U = np.zeros((at.d, at.vocab))
    W_U[at.out : at.out + at.vocab] = _CERTAIN * np.eye(at.vocab)
    return W_U


def _block(heads: tuple[_Head, ...], norm: np.ndarray) -> BlockWeights:
    d, e = heads[0].W_Q.shape
    nothing = np.zeros((_HEADS, e))
    return BlockWeights(
        ln1_w=norm,
        ln1_b=None,
        W_Q=np.stack([head.W_Q for head in heads]) * math.sqrt(e),
        b_Q=nothing,
        W_K=np.stack([head.W_K for head in heads]),
        b_K=nothing,
        W_V=np.stack([head.W_V for head in heads]),
        b_V=nothing,
        W_O=np.stack([head.W_O for head in heads]),
        b_O=np.zeros(d),
        q_norm=None,
        k_norm=None,
        ln2_w=norm,
        ln2_b=None,
        W_in=np.zeros((d, _D_MLP)),
        b_in=np.zeros(_D_MLP),
        W_gate=np.zeros((d, _D_MLP)),
        b_gate=np.zeros(_D_MLP),
        W_out=np.zeros((_D_MLP, d)),
        b_out=np.zeros(d),
    )


def _blank(at: _Layout) -> _Head:
    W_Q, W_K, W_V = np.zeros((3, at.d, at.e))
    return _Head(W_Q, W_K, W_V, np.zeros((at.e, at.d)))


def _previous(at: _Layout, beta: float, theta: float) -> _Head:
    """Attend to the token before: the score is β Σ_j cos((t − u − 1) inv_j), largest at u = t − 1."""
    head, fast, half = _blank(at), np.arange(_PAIRS), at.e // 2
    inv = theta ** (-2.0 * fast / at.e)
    head.W_Q[at.const, fast] = beta
    head.W_K[at.const, fast] = np.cos(inv)
    head.W_K[at.const, half + fast] = np.sin(inv)
    return head


def _matching(at: _Layout, beta: float, source: int, tokens: Iterable[int]) -> _Head:
    """Attend to where ``source`` holds the present token, if that is one of ``tokens``; else to token 0."""
    head, still = _blank(at), at.vocab  # pairs from here on turn by less than 1e-6 a token
    for i in tokens:
        head.W_Q[at.tok + i, still + i] = beta
        head.W_K[source + i, still + i] = 1.0
    head.W_Q[at.const, still] = beta / 2
    head.W_K[at.tok, still] = 1.0
    return head


def _copying(head: _Head, source: int, target: int, tokens: Iterable[int]) -> _Head:
    """Let the head write what ``source`` holds at the place it attends to into ``target``."""
    for i in tokens:
        head.W_V[source + i, i] = 1.0
        head.W_O[i, target + i] = 1.0
    return head
