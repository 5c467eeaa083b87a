"""The contract of lrgt: attention across views, the encoder around it, merger, decoder and loss (2308.08724)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import smoke
from refattn.conformance.contract import Case, Contract, Entry, Outputs
from refattn.conformance.monte_carlo import monte_carlo_budgets
from refattn.contracts.lrgt import bugs, cases, laws
from refattn.layers.lrgt import group_tokens, long_range_grouping_attention, ungroup_tokens
from refattn.layers.lrgt_decoder import decoder_queries, progressive_decoder
from refattn.layers.lrgt_encoder import lrgt_encoder, lrgt_encoder_block
from refattn.layers.lrgt_loss import dice_loss
from refattn.layers.lrgt_merger import density_peaks_clusters, similar_token_merger
from refattn.layers.lrgt_voxels import conv_transpose3d, fold_voxels

if TYPE_CHECKING:
    from refattn.conformance.budget import Budget

__all__ = ["CONTRACT"]


def _equal_densities(dtype: str) -> tuple[Case, Outputs]:
    """Take two pairs of equal tokens: all densities are 1, so the first of the tokens is the densest."""
    arrays = {"x": np.array([0.0, 0.0, 4.0, 4.0])[None, :, None]}
    case = Case("density_peaks_clusters", arrays, {"num_clusters": 2, "k": 2}, dtype, "exact/equal_densities")
    return case, {"labels": np.array([[0, 0, 1, 1]]), "centers": np.array([[0, 2]])}


def _cluster_budgets(entry: Entry, case: Case, precision_name: str | None) -> dict[str, Budget]:
    """Demand the same clusters where ties are exact, and where no decision is close."""
    budgets = monte_carlo_budgets(entry, case, precision_name)
    if "twins" not in case.label or ("noise" in case.arrays and case.dtype != "float64"):
        return budgets
    # whole numbers, equal in pairs: every density is exp(0), in any arithmetic
    return {name: budget._replace(open=False) for name, budget in budgets.items()}


_ATTENTION = Entry(
    "long_range_grouping_attention",
    long_range_grouping_attention,
    ("x", "weights"),
    cases.ATTENTION.scenarios(
        {
            "three_views": {"B": 2, "V": 3, "g": 4, "s": 2, "D": 8, "H": 2, "return_attn": True},
            "longer_stride": {"B": 1, "V": 2, "g": 6, "s": 3, "D": 4, "H": 2, "scale": 0.9},
            "no_biases": {"B": 1, "V": 2, "g": 4, "s": 2, "D": 6, "H": 3, "biases": False},
            "one_place_a_group": {"B": 1, "V": 3, "g": 3, "s": 3, "D": 4, "H": 1},
            "one_group": {"B": 1, "V": 2, "g": 3, "s": 1, "D": 4, "H": 2},
            "windows": {"B": 1, "V": 2, "g": 4, "s": 2, "D": 4, "H": 2, "kind": "short", "return_attn": True},
            "token_range": {"B": 2, "V": 2, "g": 3, "s": 2, "D": 4, "H": 2, "kind": "token"},
            "full_range": {"B": 2, "V": 2, "g": 3, "s": 2, "D": 4, "H": 2, "kind": "full"},
            "without_signature": {"B": 1, "V": 2, "g": 4, "s": 2, "D": 4, "H": 2, "signature": False},
            "one_view_one_token": {"B": 1, "V": 1, "g": 1, "s": 1, "D": 2, "H": 1, "grid": 1},
            "no_batch": {"B": 0, "V": 3, "g": 4, "s": 2, "D": 4, "H": 2, "return_attn": True},
        }
    ),
    cases.FAMILIES,
    cases.ATTENTION.cases(cases.attention_sizes()),
    smoke=(*smoke("three_views", "longer_stride"), ("three_views", "peaky")),
    outputs=("out", "attn"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "P", "D")},
)
_GRIDS: dict[str, dict[str, Any]] = {
    "strides": {"B": 2, "V": 3, "g": 6, "s": 2, "D": 2},
    "windows": {"B": 2, "V": 2, "g": 6, "s": 3, "D": 1, "kind": "short"},
    "places": {"B": 2, "V": 3, "g": 3, "s": 1, "D": 2, "kind": "token"},
    "everything": {"B": 1, "V": 2, "g": 3, "s": 1, "D": 2, "kind": "full"},
    "one_token": {"B": 1, "V": 1, "g": 1, "s": 1, "D": 1},
    "no_batch": {"B": 0, "V": 2, "g": 4, "s": 2, "D": 3},
}
_GROUP = Entry(
    "group_tokens",
    group_tokens,
    ("x",),
    cases.GROUP.scenarios(_GRIDS),
    cases.GROUP.families,
    cases.GROUP.cases(cases.group_sizes()),
    smoke=smoke("strides"),
    laws=laws.GROUP_LAWS,
    bugs=bugs.GROUP_BUGS,
    may_alias=True,
)
_UNGROUP = Entry(
    "ungroup_tokens",
    ungroup_tokens,
    ("x",),
    cases.UNGROUP.scenarios(_GRIDS),
    cases.UNGROUP.families,
    cases.UNGROUP.cases(cases.group_sizes()),
    smoke=smoke("strides"),
    bugs=bugs.UNGROUP_BUGS,
    may_alias=True,
)
_BLOCK = Entry(
    "lrgt_encoder_block",
    lrgt_encoder_block,
    ("x", "weights"),
    cases.BLOCK.scenarios(
        {
            "across_views": {"B": 2, "V": 3, "g": 4, "s": 2, "D": 6, "H": 2},
            "inside_views": {"B": 1, "V": 2, "g": 3, "s": 1, "D": 6, "H": 3, "use_lga": False},
            "own_scale": {"B": 1, "V": 3, "g": 2, "s": 2, "D": 4, "H": 1, "scale": 0.4, "eps": 1e-5},
            "windows": {"B": 1, "V": 2, "g": 4, "s": 2, "D": 4, "H": 2, "kind": "short"},
            "no_batch": {"B": 0, "V": 2, "g": 2, "s": 1, "D": 4, "H": 2},
        }
    ),
    ("normal", "peaky", "tiny"),
    cases.BLOCK.cases(cases.attention_sizes()),
    smoke=(*smoke("across_views", "inside_views"), ("across_views", "tiny")),
    laws=laws.BLOCK_LAWS,
    bugs=bugs.BLOCK_BUGS,
    differentiable=("x",),
)
_ENCODER = Entry(
    "lrgt_encoder",
    lrgt_encoder,
    ("images", "weights"),
    cases.ENCODER.scenarios(
        {
            "interleaved": {"B": 2, "V": 2, "C": 3, "g": 4, "p": 2, "D": 4, "H": 2, "s": 2, "depth": 2, "lga": (1,)}
            | {"return_blocks": True},
            "only_across": {"B": 1, "V": 3, "C": 1, "g": 2, "p": 3, "D": 4, "H": 1, "s": 1, "depth": 1, "lga": (0,)},
            "no_blocks": {"B": 1, "V": 2, "C": 1, "g": 2, "p": 2, "D": 4, "H": 2, "s": 2, "depth": 0, "lga": ()}
            | {"return_blocks": True},
            "pixels": {"B": 1, "V": 1, "C": 2, "g": 3, "p": 1, "D": 4, "H": 2, "s": 3, "depth": 1, "lga": ()},
            "no_batch": {"B": 0, "V": 2, "C": 1, "g": 2, "p": 2, "D": 4, "H": 2, "s": 2, "depth": 1, "lga": (0,)},
        }
    ),
    cases.ENCODER.families,
    cases.ENCODER.cases(cases.encoder_sizes()),
    smoke=smoke("interleaved"),
    outputs=("tokens", "blocks"),
    laws=laws.ENCODER_LAWS,
    bugs=bugs.ENCODER_BUGS,
    differentiable=("images",),
)
_CLUSTERS = Entry(
    "density_peaks_clusters",
    density_peaks_clusters,
    ("x",),
    cases.CLUSTERS.scenarios(
        {
            "three_of_seven": {"B": 2, "N": 7, "D": 3, "M": 3, "k": 3},
            "two_of_eight": {"B": 2, "N": 8, "D": 4, "M": 2, "k": 4},
            "one_cluster": {"B": 1, "N": 5, "D": 3, "M": 1, "k": 5},
            "as_many_as_tokens": {"B": 2, "N": 5, "D": 3, "M": 5, "k": 3},
            "one_token": {"B": 2, "N": 1, "D": 2, "M": 1, "k": 1},
            "twins": {"B": 1, "N": 4, "D": 2, "M": 4, "k": 2, "twins": True},
            "noisy_twins": {"B": 2, "N": 6, "D": 2, "M": 3, "k": 2, "twins": True, "noisy": True},
            "no_batch": {"B": 0, "N": 4, "D": 2, "M": 2, "k": 2},
        }
    ),
    cases.CLUSTERS.families,
    cases.CLUSTERS.cases(cases.cluster_sizes()),
    smoke=smoke("three_of_seven", "two_of_eight", "twins", "noisy_twins"),
    outputs=("labels", "centers"),
    laws=laws.CLUSTER_LAWS,
    bugs=bugs.CLUSTER_BUGS,
    budgets=_cluster_budgets,
    exact={"equal_densities": _equal_densities},
)
_MERGER = Entry(
    "similar_token_merger",
    similar_token_merger,
    ("x", "weights"),
    cases.MERGER.scenarios(
        {
            "three_of_seven": {"B": 2, "N": 7, "D": 6, "H": 2, "M": 3, "k": 3},
            "own_scale": {"B": 1, "N": 6, "D": 4, "H": 1, "M": 2, "k": 2, "scale": 0.3, "eps": 1e-4},
            "as_many_as_tokens": {"B": 1, "N": 4, "D": 6, "H": 3, "M": 4, "k": 2},
            "one_cluster": {"B": 1, "N": 5, "D": 4, "H": 2, "M": 1, "k": 1},
            "no_batch": {"B": 0, "N": 4, "D": 4, "H": 2, "M": 2, "k": 2},
        }
    ),
    cases.MERGER.families,
    cases.MERGER.cases(cases.merger_sizes),
    smoke=smoke("three_of_seven", "own_scale"),
    laws=laws.MERGER_LAWS,
    bugs=bugs.MERGER_BUGS,
)
_SPREAD = Entry(
    "conv_transpose3d",
    conv_transpose3d,
    ("x", "w"),
    cases.SPREAD.scenarios(
        {
            "doubling": {"B": 2, "C": 3, "O": 2, "cells": (2, 3, 2), "taps": (4, 4, 4)},
            "one_cell": {"B": 1, "C": 2, "O": 2, "cells": (1, 1, 1), "taps": (4, 4, 4)},
            "unpadded": {"B": 1, "C": 2, "O": 1, "cells": (2, 2, 3), "taps": (3, 4, 2)} | {"stride": 3, "padding": 0},
            "flat": {"B": 1, "C": 1, "O": 3, "cells": (3, 2, 1), "taps": (3, 3, 3), "stride": 1, "padding": 1},
            "one_tap": {"B": 1, "C": 3, "O": 1, "cells": (2, 2, 2), "taps": (1, 1, 1), "stride": 1, "padding": 0},
            "no_batch": {"B": 0, "C": 2, "O": 2, "cells": (2, 2, 2), "taps": (4, 4, 4)},
        }
    ),
    cases.PLAIN,
    cases.SPREAD.cases(cases.spread_sizes),
    smoke=smoke("doubling"),
    laws=laws.SPREAD_LAWS,
    bugs=bugs.SPREAD_BUGS,
    differentiable=("x", "w"),
)
_FOLD = Entry(
    "fold_voxels",
    fold_voxels,
    ("x",),
    cases.FOLD.scenarios(
        {
            "cubes_of_two": {"B": 2, "C": 3, "cells": (4, 2, 4), "r": 2},
            "cells": {"B": 1, "C": 2, "cells": (2, 3, 2), "r": 1},
            "one_cube": {"B": 1, "C": 2, "cells": (3, 3, 3), "r": 3},
            "no_batch": {"B": 0, "C": 2, "cells": (4, 4, 4), "r": 4},
        }
    ),
    cases.FOLD.families,
    cases.FOLD.cases(cases.fold_sizes),
    smoke=smoke("cubes_of_two"),
    laws=laws.FOLD_LAWS,
    bugs=bugs.FOLD_BUGS,
    may_alias=True,
)
_QUERIES = Entry(
    "decoder_queries",
    decoder_queries,
    ("context", "queries", "blocks"),
    cases.QUERIES.scenarios(
        {
            "two_blocks": {"B": 2, "M": 6, "Q": 4, "D": 6, "H": 3, "depth": 2},
            "more_queries": {"B": 1, "M": 2, "Q": 5, "D": 4, "H": 1, "depth": 1},
            "one_of_each": {"B": 1, "M": 1, "Q": 1, "D": 4, "H": 2, "depth": 1},
            "no_batch": {"B": 0, "M": 3, "Q": 2, "D": 4, "H": 2, "depth": 1},
        }
    ),
    cases.PLAIN,
    cases.QUERIES.cases(cases.query_sizes),
    smoke=smoke("two_blocks"),
    laws=laws.QUERY_LAWS,
    bugs=bugs.QUERY_BUGS,
    differentiable=("context",),
)
_DECODER = Entry(
    "progressive_decoder",
    progressive_decoder,
    ("tokens", "weights"),
    cases.DECODER.scenarios(
        {
            "one_token": {"B": 2, "n": 1, "widths": (4, 2, 1, 1), "H": 2, "return_stages": True},
            "wider": {"B": 1, "n": 1, "widths": (6, 4, 2, 1), "H": 2, "depth": 2},
            "no_batch": {"B": 0, "n": 1, "widths": (4, 2, 1, 1), "H": 1},
        }
    ),
    cases.DECODER.families,
    cases.DECODER.cases(cases.decoder_sizes),
    smoke=smoke("one_token"),
    outputs=("voxels",),
    laws=laws.DECODER_LAWS,
    bugs=bugs.DECODER_BUGS,
)
_DICE = Entry(
    "dice_loss",
    dice_loss,
    ("pred", "target"),
    cases.DICE.scenarios(
        {
            "binary": {"B": 3, "cells": (3, 2, 3)},
            "soft": {"B": 2, "cells": (2, 2, 2), "soft": True, "smooth": 0.5},
            "each_sample": {"B": 4, "cells": (5,), "reduction": "none"},
            "one_voxel": {"B": 1, "cells": (1, 1, 1)},
        }
    ),
    cases.DICE.families,
    cases.DICE.cases(cases.dice_sizes),
    smoke=smoke("binary", "soft", "each_sample"),
    laws=laws.DICE_LAWS,
    bugs=bugs.DICE_BUGS,
    differentiable=("pred",),
)

CONTRACT = Contract(
    slug="lrgt",
    title="Long-range grouping attention for multi-view reconstruction",
    paper="2308.08724",
    family="layers",
    entries=(
        _ATTENTION,
        _GROUP,
        _UNGROUP,
        _BLOCK,
        _ENCODER,
        _CLUSTERS,
        _MERGER,
        _SPREAD,
        _FOLD,
        _QUERIES,
        _DECODER,
        _DICE,
    ),
)
