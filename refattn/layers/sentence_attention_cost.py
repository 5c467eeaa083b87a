"""What a sentence attention block costs: its weights do not depend on the size of the picture (2309.11593).

Plain arithmetic on sizes [derived]. Equation labels (sab-…) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import NamedTuple

from refattn.primitives.arguments import require

__all__ = ["BlockCost", "block_cost", "cross_attention_flops"]


class BlockCost(NamedTuple):
    """The cost of one block.

    Attributes
    ----------
    parameters : int
        Numbers that are learnt.
    flops : int
        Multiplications and additions of the two linear layers and of the gating; LayerNorm, ReLU and softmax are
        left out.
    """

    parameters: int
    flops: int


def block_cost(batch: int, text_width: int, channels: int, height: int, width: int, *, expansion: int = 4) -> BlockCost:
    """Count the parameters and operations of a block.

    Parameters
    ----------
    batch, text_width, channels, height, width : int
        B, D, C, H and W.
    expansion : int
        Width of the hidden layer over D.

    Returns
    -------
    BlockCost
        D·E + 3E + E·C + C parameters and 2B (D·E + E·C) + B·C·H·W operations, with E = expansion · D.

    Raises
    ------
    ValueError
        If a size is negative.
    """
    sizes = {"batch": batch, "text_width": text_width, "channels": channels, "height": height, "width": width}
    for name, value in {**sizes, "expansion": expansion}.items():
        require(index(value) >= 0, f"{name}={value!r} must be >= 0")
    hidden = expansion * text_width
    products = text_width * hidden + hidden * channels
    # eq: sab-cost
    return BlockCost(products + 3 * hidden + channels, 2 * batch * products + batch * channels * height * width)


def cross_attention_flops(pixels: int, words: int, width: int) -> int:
    """Count the operations of cross-attention from pixels to words, scores and weighted sum, without projections.

    Parameters
    ----------
    pixels, words, width : int
        H·W, the length of the sentence, and the width of queries, keys and values.

    Returns
    -------
    int
        4 · pixels · words · width.

    Raises
    ------
    ValueError
        If a size is negative.
    """
    for name, value in (("pixels", pixels), ("words", words), ("width", width)):
        require(index(value) >= 0, f"{name}={value!r} must be >= 0")
    # eq: sab-cross
    return 4 * pixels * words * width
