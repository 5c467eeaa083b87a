"""The weights of a decoder-only transformer, all in the row convention y = x @ W, per head.

L layers, H heads, G key/value heads, d model width, e head width, m MLP width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.transformer.config import TransformerConfig

__all__ = [
    "BlockWeights",
    "Transformer",
    "TransformerWeights",
    "block_shapes",
    "check_weights",
    "initial_transformer",
    "random_transformer",
    "stem_shapes",
]


class BlockWeights(NamedTuple):
    """One block: two norms (d,), queries (H, d, e), keys and values (G, d, e), output (H, e, d), MLP (d, m), (m, d).

    None stands for what a family does not have: biases of RMS norms, the norms of queries and keys (e,), the gate.
    """

    ln1_w: np.ndarray
    ln1_b: Any
    W_Q: np.ndarray
    b_Q: np.ndarray
    W_K: np.ndarray
    b_K: np.ndarray
    W_V: np.ndarray
    b_V: np.ndarray
    W_O: np.ndarray
    b_O: np.ndarray
    q_norm: Any
    k_norm: Any
    ln2_w: np.ndarray
    ln2_b: Any
    W_in: np.ndarray
    b_in: np.ndarray
    W_gate: Any
    b_gate: Any
    W_out: np.ndarray
    b_out: np.ndarray


class TransformerWeights(NamedTuple):
    """Embeddings (V, d) and (n_ctx, d), the blocks, the last norm (d,), and the unembedding (d, V) with its bias."""

    W_E: np.ndarray
    W_pos: Any
    blocks: tuple[BlockWeights, ...]
    lnf_w: np.ndarray
    lnf_b: Any
    W_U: np.ndarray
    b_U: Any = None


class Transformer(NamedTuple):
    """A model: what it is and what it weighs."""

    config: TransformerConfig
    weights: TransformerWeights


def block_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of each weight of a block; None for those that the family does not have."""
    d, e, m, heads, groups = config.d_model, config.d_head, config.d_mlp, config.n_heads, config.n_kv_heads
    layer, gated, normed = config.norm == "layer", config.gated, config.qk_norm
    return {
        "ln1_w": (d,),
        "ln1_b": (d,) if layer else None,
        "W_Q": (heads, d, e),
        "b_Q": (heads, e),
        "W_K": (groups, d, e),
        "b_K": (groups, e),
        "W_V": (groups, d, e),
        "b_V": (groups, e),
        "W_O": (heads, e, d),
        "b_O": (d,),
        "q_norm": (e,) if normed else None,
        "k_norm": (e,) if normed else None,
        "ln2_w": (d,),
        "ln2_b": (d,) if layer else None,
        "W_in": (d, m),
        "b_in": (m,),
        "W_gate": (d, m) if gated else None,
        "b_gate": (m,) if gated else None,
        "W_out": (m, d),
        "b_out": (d,),
    }


def stem_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of each weight outside the blocks; None for those that the family does not have."""
    d, v = config.d_model, config.vocab_size
    return {
        "W_E": (v, d),
        "W_pos": (config.n_ctx, d) if config.positions == "learned" else None,
        "lnf_w": (d,),
        "lnf_b": (d,) if config.norm == "layer" else None,
        "W_U": (d, v),
    }


def check_weights(config: TransformerConfig, weights: TransformerWeights) -> None:
    """Raise ``ValueError`` for a weight that is missing, superfluous or of another shape than ``config`` asks for."""
    require(len(weights.blocks) == config.n_layers, f"weights has {len(weights.blocks)} blocks, not {config.n_layers}")
    shapes = stem_shapes(config)
    for name, shape in shapes.items():
        _check_shape(name, getattr(weights, name), shape)
    for layer, block in enumerate(weights.blocks):
        for name, shape in block_shapes(config).items():
            _check_shape(f"blocks[{layer}].{name}", getattr(block, name), shape)


def _check_shape(name: str, value: Any, shape: tuple[int, ...] | None) -> None:
    got = None if value is None else np.shape(value)
    require(got == shape, f"{name} has shape {got}, expected {shape}")


def random_transformer(
    config: TransformerConfig, rng: np.random.Generator, *, scale: float = 1.0, dtype: Any = np.float64
) -> Transformer:
    """Draw a model of the given shape, for tests and timings: far from trained, and far from degenerate.

    Parameters
    ----------
    config : TransformerConfig
        The shape.
    rng : numpy.random.Generator
        Where the numbers come from.
    scale : float
        Standard deviation of a matrix times the root of its input width; biases get 0.1 of it, norm weights spread
        by 0.1 around 1.
    dtype : dtype
        Of the weights.

    Returns
    -------
    Transformer
    """

    def draw(name: str, shape: tuple[int, ...] | None) -> Any:
        if shape is None:
            return None
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith(("_w", "_norm")):
            return (1.0 + 0.1 * noise).astype(dtype)
        if name.startswith("b_") or name.endswith("_b"):
            return (0.1 * scale * noise).astype(dtype)
        fan_in = config.d_model if name in ("W_E", "W_pos") else shape[-2]
        return (scale / np.sqrt(fan_in) * noise).astype(dtype)

    return _drawn(config, draw)


def initial_transformer(config: TransformerConfig, rng: np.random.Generator, *, dtype: Any = np.float32) -> Transformer:
    """Draw a model to train, as GPT-2 begins: matrices small, so that every block starts near the identity.

    Parameters
    ----------
    config : TransformerConfig
        The shape.
    rng : numpy.random.Generator
        Where the numbers come from.
    dtype : dtype
        Of the weights.

    Returns
    -------
    Transformer
        Matrices and embeddings normal with deviation 0.02, those that write to the residual stream 0.02/√(2L); biases
        0, norm weights 1.
    """

    def draw(name: str, shape: tuple[int, ...] | None) -> Any:
        if shape is None:
            return None
        if name.endswith(("_w", "_norm")):
            return np.ones(shape, dtype)
        if name.startswith("b_") or name.endswith("_b"):
            return np.zeros(shape, dtype)
        deviation = 0.02 / np.sqrt(2 * config.n_layers) if name in ("W_O", "W_out") else 0.02
        return (deviation * rng.standard_normal(shape)).astype(dtype)

    return _drawn(config, draw)


def _drawn(config: TransformerConfig, draw: Callable[[str, tuple[int, ...] | None], Any]) -> Transformer:
    """Return a model of weights that ``draw(name, shape)`` makes, stem first, then block after block."""
    stem: dict[str, Any] = {name: draw(name, shape) for name, shape in stem_shapes(config).items()}
    if config.tied:
        stem["W_U"] = stem["W_E"].T
    shapes = block_shapes(config).items()
    drawn: list[dict[str, Any]] = [{name: draw(name, shape) for name, shape in shapes} for _ in range(config.n_layers)]
    blocks = tuple(BlockWeights(**fields) for fields in drawn)
    return Transformer(config, TransformerWeights(blocks=blocks, **stem))
