"""Bi-level routing attention, vectorised, in the array-API standard: one code for NumPy, PyTorch, JAX and CuPy.

Written from the equations by another route than the reference. Descriptors are projected means instead of means of
projections (a linear map commutes with a mean); regions are gathered by one flat index; soft routing scales logits and
weights instead of keys and values; average pooling is a matrix product; attention runs in blocks of bounded memory.
"""

from refattn.backends.portable.biformer.block import biformer_block
from refattn.backends.portable.biformer.layer import bi_level_routing_attention, nchw_bra
from refattn.backends.portable.biformer.local import depthwise_conv2d, pool_regions
from refattn.backends.portable.biformer.regional import region_routing, regional_attention

__all__ = [
    "bi_level_routing_attention",
    "biformer_block",
    "depthwise_conv2d",
    "nchw_bra",
    "pool_regions",
    "region_routing",
    "regional_attention",
]
