"""What training costs, counted: matrix products only, so that no machine comes into it (2404.07999).

Equation labels (ml-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from refattn.transformer.config import TransformerConfig

__all__ = ["model_flops_per_token", "training_flops_per_token", "v_cycle_cost"]


def training_flops_per_token(vocab: int, context: int, width: int, depth: int) -> int:
    """Return the operations of one token's forward and backward pass through a GPT of 4·width hidden units.

    Parameters
    ----------
    vocab, context, width, depth : int
        V, T, D and L, none negative.

    Returns
    -------
    int
        Multiplications and additions; the backward pass counts twice the forward pass.

    Raises
    ------
    ValueError
        For a negative size.

    Notes
    -----
    [our definition]: attention is counted over all T keys, masked or not; norms, activations, the softmax and the
    look-up of embeddings are left out.
    """
    for name, size in (("vocab", vocab), ("context", context), ("width", width), ("depth", depth)):
        require(size >= 0, f"{name}={size} must not be negative")
    # eq: ml-flops
    return 3 * (2 * (12 * depth * width**2 + vocab * width) + 4 * context * width * depth)


def model_flops_per_token(config: TransformerConfig, context: int) -> int:
    """Return `training_flops_per_token` of a model whose MLP is four times as wide as its residual stream."""
    hidden, width = config.d_mlp, config.d_model
    require(hidden == 4 * width and not config.gated, f"d_mlp={hidden} must be 4 times d_model={width}, without a gate")
    return training_flops_per_token(config.vocab_size, context, width, config.n_layers)


def v_cycle_cost(initial: float, small: float, final: float, ratio: float) -> float:
    """Return what a V-cycle of two levels costs, in units of training the full model for S steps.

    Parameters
    ----------
    initial, small, final : float
        E_a, E_s and E_final in units of S.
    ratio : float
        c, the cost of a step of the small model in steps of the full one.

    Returns
    -------
    float
    """
    # eq: ml-cost
    return initial + final + ratio * small
