"""Fresh weights for gCOG's networks, of any size: uniform in ±1/√(inputs), as PyTorch draws linear maps."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.benchmarks.gcog_blocks import AttentionWeights, BlockWeights, LinearWeights, NormWeights
from refattn.benchmarks.gcog_networks import (
    CrossAttentionWeights,
    DeepSingleStreamWeights,
    DualStreamWeights,
    PerceiverWeights,
    RuleQueryWeights,
    SingleStreamWeights,
)
from refattn.benchmarks.gcog_recurrent import RecurrentWeights
from refattn.primitives.arguments import require_one_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NetworkConfig", "init_network"]


class NetworkConfig(NamedTuple):
    """Sizes of a network; the defaults are the official ones.

    Attributes
    ----------
    rule_features, stimulus_features : int
        Of a token.
    embed, hidden : int
        Widths E and M; recurrent networks officially have M = 512.
    classes : int
        Number of answers.
    n_heads, n_blocks : int
        Of all attentions; of the deep network.
    stimulus_tokens : int
        Which recurrent networks must know.
    distances : int
        Rows of the table of distances of the rule's block; 0 = positions instead.
    """

    rule_features: int = 8
    stimulus_features: int = 3
    embed: int = 256
    hidden: int = 256
    classes: int = 138
    n_heads: int = 1
    n_blocks: int = 1
    stimulus_tokens: int = 101
    distances: int = 0


def init_network(name: str, config: NetworkConfig, rng: np.random.Generator) -> Any:
    """Draw the weights of a network.

    Parameters
    ----------
    name : str
        Name of its function, such as ``dual_stream``.
    config : NetworkConfig
        Sizes.
    rng : Generator
        Source of randomness.

    Raises
    ------
    ValueError
        If there is no such network.

    Notes
    -----
    Layer norms begin as ones and zeros, distances as normal numbers. The released code leaves attention to PyTorch's
    own initialisation, which is not copied here.
    """
    require_one_of("name", name, tuple(_NETWORKS))
    return _NETWORKS[name](config, rng)


def _linear(rng: np.random.Generator, n_in: int, n_out: int) -> LinearWeights:
    bound = 1 / np.sqrt(n_in)
    return LinearWeights(rng.uniform(-bound, bound, (n_in, n_out)), rng.uniform(-bound, bound, n_out))


def _norm(width: int) -> NormWeights:
    return NormWeights(np.ones(width), np.zeros(width))


def _attention(rng: np.random.Generator, width: int, context: int, *, output: bool = True) -> AttentionWeights:
    q, k, v = (_linear(rng, n_in, width) for n_in in (width, context, context))
    return AttentionWeights(q, k, v, _linear(rng, width, width) if output else None)


def _block(
    c: NetworkConfig, rng: np.random.Generator, features: int | None, *, wide: int = 1, distances: int = 0
) -> BlockWeights:
    E = c.embed
    return BlockWeights(
        None if features is None else _linear(rng, features, E),
        _attention(rng, E, E, output=not distances),
        _norm(E),
        _linear(rng, E, wide * E),
        _linear(rng, wide * E, E),
        _norm(E),
        rng.standard_normal((distances, E // c.n_heads)) if distances else None,
    )


def _two_blocks(c: NetworkConfig, rng: np.random.Generator) -> tuple[BlockWeights, BlockWeights]:
    rule = _block(c, rng, c.rule_features, distances=c.distances)
    return rule, _block(c, rng, c.stimulus_features)


def _chain(rng: np.random.Generator, *widths: int) -> tuple[LinearWeights, ...]:
    return tuple(_linear(rng, *pair) for pair in pairwise(widths))


def _dual(c: NetworkConfig, rng: np.random.Generator) -> DualStreamWeights:
    M = c.hidden
    maps = _linear(rng, c.embed, M), _linear(rng, c.embed, M)
    layers = _chain(rng, M, 2 * M, 2 * M, M)
    return DualStreamWeights(*_two_blocks(c, rng), *maps, _norm(M), layers, _norm(M), _linear(rng, M, c.classes))


def _single(c: NetworkConfig, rng: np.random.Generator) -> SingleStreamWeights:
    M = c.hidden
    layers = _chain(rng, c.embed, M, 2 * M, M)
    first = _block(c, rng, c.rule_features + c.stimulus_features)
    return SingleStreamWeights(first, layers, _norm(M), _linear(rng, M, c.classes))


def _deep(c: NetworkConfig, rng: np.random.Generator) -> DeepSingleStreamWeights:
    embed = _linear(rng, c.rule_features + c.stimulus_features, c.embed)
    blocks = tuple(_block(c, rng, None, wide=4) for _ in range(c.n_blocks))
    return DeepSingleStreamWeights(embed, blocks, _linear(rng, c.embed, c.classes))


def _cross(c: NetworkConfig, rng: np.random.Generator) -> CrossAttentionWeights:
    M = c.hidden
    looks = _attention(rng, M, c.embed), _attention(rng, M, c.embed)
    return CrossAttentionWeights(*_two_blocks(c, rng), *looks, _norm(M), _linear(rng, M, c.classes))


def _perceiver(c: NetworkConfig, rng: np.random.Generator) -> PerceiverWeights:
    M = c.hidden
    blocks, looks = _two_blocks(c, rng), [part for width in (c.embed, c.embed, M) for part in _look(rng, M, width)]
    return PerceiverWeights._make((*blocks, *looks, _linear(rng, M, c.classes)))


def _look(rng: np.random.Generator, width: int, context: int) -> tuple[Any, ...]:
    return _attention(rng, width, context), _norm(width), _linear(rng, width, width)


def _rule_query(c: NetworkConfig, rng: np.random.Generator) -> RuleQueryWeights:
    E, M = c.embed, c.hidden
    layers = _chain(rng, E, M, M)
    looks, readout = (_attention(rng, E, E), _norm(E)), _linear(rng, M, c.classes)
    return RuleQueryWeights(*_two_blocks(c, rng), *looks, layers, _norm(M), readout)


def _recurrent(gates: int) -> Callable[[NetworkConfig, np.random.Generator], RecurrentWeights]:
    def draw(c: NetworkConfig, rng: np.random.Generator) -> RecurrentWeights:
        M = c.hidden
        features = c.rule_features + c.stimulus_tokens * c.stimulus_features
        maps = _linear(rng, features, gates * M), _linear(rng, M, gates * M)
        return RecurrentWeights(*maps, _norm(M), _linear(rng, M, c.classes))

    return draw


_NETWORKS: dict[str, Callable[[NetworkConfig, np.random.Generator], Any]] = {
    "dual_stream": _dual,
    "single_stream": _single,
    "deep_single_stream": _deep,
    "cross_attention": _cross,
    "perceiver": _perceiver,
    "rule_query_cross_attention": _rule_query,
    "rnn_classifier": _recurrent(1),
    "gru_classifier": _recurrent(3),
}
