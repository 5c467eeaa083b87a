"""The contract of tc_llava: temporal-aware dual RoPE and the frame-wise block causal mask (2409.03206)."""

from functools import partial

from refattn.conformance.contract import Contract, Entry
from refattn.contracts.tc_llava import bugs, draw, laws
from refattn.layers.tc_llava import (
    dual_positions,
    dual_rope_attention,
    frame_block_causal_mask,
    temporal_position_ids,
)
from refattn.layers.tc_llava_streaming import tc_append, tc_prefill

__all__ = ["CONTRACT"]

# what a prefill shares with one pass is tried there in full
_PREFILLED = ("two_videos", "causal", "full_visual", "eq5_tail", "adjacent", "half_gamma", "only_text", "no_batch")

_ATTENTION = Entry(
    name="dual_rope_attention",
    reference=dual_rope_attention,
    positional=("x", "weights"),
    scenarios=draw.sequence_scenarios("dual_rope_attention"),
    families=draw.FAMILIES,
    cases=partial(draw.sequence_cases, "dual_rope_attention"),
    smoke=(("half_gamma", "normal"), ("large_gamma", "normal"), ("eq5_tail", "normal"), ("adjacent", "normal")),
    outputs=("out", "weights"),
    laws=laws.ATTENTION_LAWS,
    bugs=bugs.ATTENTION_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "N", "D")},
)
_PREFILL = Entry(
    name="tc_prefill",
    reference=tc_prefill,
    positional=("x", "weights"),
    scenarios=draw.sequence_scenarios("tc_prefill", _PREFILLED),
    families=("normal", "peaky", "cancelling"),
    cases=partial(draw.sequence_cases, "tc_prefill"),
    smoke=(("two_videos", "normal"),),
    laws=laws.STREAMING_LAWS,
    bugs=bugs.PREFILL_BUGS,
    axes={"x": ("B", "N", "D")},
)
_APPEND = Entry(
    name="tc_append",
    reference=tc_append,
    positional=("x", "cache", "weights"),
    scenarios=draw.appended_scenarios("tc_append"),
    families=("normal", "peaky", "cancelling"),
    cases=partial(draw.appended_cases, "tc_append"),
    smoke=(("second_video", "normal"),),
    bugs=bugs.APPEND_BUGS,
    differentiable=("x",),
)
_IDS = Entry(
    name="temporal_position_ids",
    reference=temporal_position_ids,
    positional=(),
    scenarios=draw.layout_scenarios("temporal_position_ids", "tail"),
    families=("none",),
    cases=lambda dtype: draw.layout_cases("temporal_position_ids", dtype, "tail"),
    laws=laws.IDS_LAWS,
    bugs=bugs.IDS_BUGS,
)
_POSITIONS = Entry(
    name="dual_positions",
    reference=dual_positions,
    positional=(),
    scenarios=draw.layout_scenarios("dual_positions", "gamma", "tail"),
    families=("none",),
    cases=lambda dtype: draw.layout_cases("dual_positions", dtype, "gamma", "tail"),
    laws=laws.POSITION_LAWS,
    bugs=bugs.POSITION_BUGS,
)
_MASK = Entry(
    name="frame_block_causal_mask",
    reference=frame_block_causal_mask,
    positional=(),
    scenarios=draw.layout_scenarios("frame_block_causal_mask", "variant"),
    families=("none",),
    cases=lambda dtype: draw.layout_cases("frame_block_causal_mask", dtype, "variant"),
    laws=laws.MASK_LAWS,
    bugs=bugs.MASK_BUGS,
)

CONTRACT = Contract(
    slug="tc_llava",
    title="Temporal-aware dual RoPE and frame-wise block causal mask",
    paper="2409.03206",
    family="layers",
    entries=(_ATTENTION, _PREFILL, _APPEND, _IDS, _POSITIONS, _MASK),
)
