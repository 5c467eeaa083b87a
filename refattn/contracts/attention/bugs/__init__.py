"""The planted bugs: wrong versions of attention, its gradients, its packed forms and of rotary embedding.

Equation source: the attention sheet, section 5.4, whose names and descriptions these are. `wrong_attentions` holds the
library of the forward pass, `wrong_gradients` and `wrong_rotations` the other two.
"""

from __future__ import annotations

from refattn.contracts.attention.bugs.causality import CAUSAL, DIAGONAL, WINDOW
from refattn.contracts.attention.bugs.gradients import GRADIENTS
from refattn.contracts.attention.bugs.heads import BLOCKS, HEADS
from refattn.contracts.attention.bugs.lengths import DOCUMENTS, LENGTHS, PREFIX
from refattn.contracts.attention.bugs.masks import MASK
from refattn.contracts.attention.bugs.merging import MERGE
from refattn.contracts.attention.bugs.packing import PAGED, VARLEN, as_paged, as_varlen
from refattn.contracts.attention.bugs.rotary import ROTARY
from refattn.contracts.attention.bugs.rows import EMPTY, PRECISION, SHORTCUTS
from refattn.contracts.attention.bugs.scores import ALIBI, BIAS, SCALE, SOFTCAP
from refattn.contracts.attention.bugs.softmax import ONLINE, SCORES_ABS, SINKS, SOFTMAX

__all__ = [
    "ATTENTION_BUGS",
    "GRADIENT_BUGS",
    "MERGE_BUGS",
    "PAGED_BUGS",
    "ROTARY_BUGS",
    "VARLEN_BUGS",
    "wrong_attentions",
    "wrong_gradients",
    "wrong_rotations",
]

ATTENTION_BUGS = (
    *SCALE,
    *SOFTCAP,
    *BIAS,
    *MASK,
    *CAUSAL,
    *WINDOW,
    *LENGTHS,
    *DOCUMENTS,
    *PREFIX,
    *HEADS,
    *BLOCKS,
    *DIAGONAL,
    *SOFTMAX,
    *SCORES_ABS,
    *ONLINE,
    *ALIBI,
    *SINKS,
    *EMPTY,
    *SHORTCUTS,
    *PRECISION,
)
GRADIENT_BUGS = GRADIENTS
ROTARY_BUGS = ROTARY
MERGE_BUGS = MERGE

wrong_attentions = {bug.name: bug for bug in (*ATTENTION_BUGS, *PAGED)}
wrong_gradients = {bug.name: bug for bug in GRADIENT_BUGS}
wrong_rotations = {bug.name: bug for bug in ROTARY_BUGS}

_ALSO_PACKED = (
    "no_scale",
    "softcap_missing",
    "causal_missing",
    "causal_loose",
    "causal_strict",
    "causal_top_left",
    "window_left_plus1",
    "window_no_offset",
    "gqa_tile",
    "gqa_first",
    "heads_reversed",
    "k_as_v",
    "no_max_subtract",
    "unnormalised",
    "softmax_plus_one",
    "sink_missing",
    "empty_nan",
    "mean_v",
    "zeros",
)
_ALSO_VARLEN = ("causal_padded_length", "alibi_missing", "alibi_sign")
_ALSO_PAGED = (
    "causal_padded_length",
    "len_plus1",
    "len_minus1",
    "len_batch0",
    "len_ignored",
    "kv_batch_rolled",
    "mask_zero_logit",
)

VARLEN_BUGS = (*VARLEN, *(as_varlen(wrong_attentions[name]) for name in (*_ALSO_PACKED, *_ALSO_VARLEN)))
PAGED_BUGS = (*PAGED, *(as_paged(wrong_attentions[name]) for name in (*_ALSO_PACKED, *_ALSO_PAGED)))
