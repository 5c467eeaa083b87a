"""LRGT in the array-API standard, each part by another route than the reference."""

from refattn.backends.portable.lrgt.attention import (
    group_tokens,
    intra_view_attention,
    long_range_grouping_attention,
    ungroup_tokens,
)
from refattn.backends.portable.lrgt.decoder import (
    conv_transpose3d,
    decoder_queries,
    dice_loss,
    fold_voxels,
    lrgt_decoder,
    progressive_decoder,
    unfold_voxels,
)
from refattn.backends.portable.lrgt.encoder import lrgt_encoder, lrgt_encoder_block
from refattn.backends.portable.lrgt.merger import density_peaks_clusters, merge_tokens, similar_token_merger

__all__ = [
    "conv_transpose3d",
    "decoder_queries",
    "density_peaks_clusters",
    "dice_loss",
    "fold_voxels",
    "group_tokens",
    "intra_view_attention",
    "long_range_grouping_attention",
    "lrgt_decoder",
    "lrgt_encoder",
    "lrgt_encoder_block",
    "merge_tokens",
    "progressive_decoder",
    "similar_token_merger",
    "unfold_voxels",
    "ungroup_tokens",
]
