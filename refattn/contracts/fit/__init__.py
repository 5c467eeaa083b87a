"""The contract of FIT: encoder, autoregressive decoder and its steps, denoiser, and their parts (2305.12689)."""

from __future__ import annotations

from refattn.conformance.contract import Contract, Entry
from refattn.contracts.fit import bugs, cases, laws
from refattn.layers.fit import fit_encode
from refattn.layers.fit_autoregressive import fit_autoregressive
from refattn.layers.fit_blocks import fit_cross_attention
from refattn.layers.fit_decode import fit_ar_extend, fit_ar_step
from refattn.layers.fit_denoiser import fit_denoise
from refattn.layers.fit_layout import group_causal_mask, shift_right

__all__ = ["CONTRACT"]

_ENCODE = Entry(
    name="fit_encode",
    reference=fit_encode,
    positional=("x", "weights"),
    scenarios=cases.ENCODER.scenarios(
        {
            "round": {"dl": 8},
            "causal": {"layers": "(1)1(0)1", "mask": "causal", "t": 3, "B": 2},
            "deep": {"layers": "(0)1(1)1(1)", "t": 2, "n": 4, "hx": 1},
            "extra": {"extra": 2, "dx": 6, "dl": 4},
            "no_extra": {"extra": 0, "layers": "(0)1(1)"},
            "local_only": {"layers": "(2)", "m": 1},
            "nothing": {"layers": "(0)0"},
            "one_group": {"t": 1, "m": 1, "n": 5},
            "one_token": {"layers": "(0)2(1)", "n": 1, "m": 1, "t": 5, "mask": "causal"},
            "no_batch": {"B": 0},
        }
    ),
    families=cases.FAMILIES,
    cases=cases.ENCODER.cases(cases.encoder_sizes),
    smoke=(("round", "normal"), ("causal", "normal"), ("extra", "normal")),
    outputs=("tokens", "latents"),
    laws=laws.ENCODER_LAWS,
    bugs=bugs.ENCODER_BUGS,
    differentiable=("x",),
)
_AUTOREGRESSIVE = Entry(
    name="fit_autoregressive",
    reference=fit_autoregressive,
    positional=("ids", "weights"),
    scenarios=cases.AUTOREGRESSIVE.scenarios(
        {
            "round": {"B": 2},
            "deep": {"layers": "(1)2(1)1(1)", "t": 3},
            "untied": {"untied": True, "layers": "(1)1(0)", "dx": 6, "dl": 4, "m": 1},
            "one_group": {"t": 1, "n": 4},
            "one_token": {"layers": "(0)1(1)1", "n": 1, "t": 5},
            "local_only": {"layers": "(1)", "t": 2},
            "no_batch": {"B": 0},
        }
    ),
    families=cases.AUTOREGRESSIVE.families,
    cases=cases.AUTOREGRESSIVE.cases(cases.ids_sizes),
    smoke=(("round", "normal"), ("deep", "normal")),
    outputs=("logits",),
    laws=laws.AR_LAWS,
    bugs=bugs.AR_BUGS,
)
_STEP = Entry(
    name="fit_ar_step",
    reference=fit_ar_step,
    positional=("ids", "cache", "weights"),
    scenarios=cases.STEP.scenarios(
        {
            "first": {"past": 0, "B": 2},
            "inside": {"past": 4, "layers": "(1)1(1)1(1)"},
            "closing": {"past": 5, "B": 2},
            "opening": {"past": 6},
            "last": {"past": 7, "t": 4, "n": 2, "untied": True},
            "no_locals": {"past": 3, "layers": "(0)1(0)", "n": 2, "m": 1},
            "local_only": {"past": 4, "layers": "(2)"},
        }
    ),
    families=cases.STEP.families,
    cases=cases.STEP.cases(cases.step_sizes),
    outputs=("logits",),
    bugs=bugs.STEP_BUGS,
)
_EXTEND = Entry(
    name="fit_ar_extend",
    reference=fit_ar_extend,
    positional=("ids", "cache", "weights"),
    scenarios=cases.EXTEND.scenarios(
        {
            "inside": {"past": 3, "new": 2, "m": 1},
            "across": {"past": 5, "new": 2, "B": 2},
            "whole": {"past": 0, "new": 6, "n": 2},
        }
    ),
    families=cases.EXTEND.families,
    cases=cases.EXTEND.cases(cases.extend_sizes),
    outputs=("logits",),
    bugs=bugs.EXTEND_BUGS,
)
_DENOISE = Entry(
    name="fit_denoise",
    reference=fit_denoise,
    positional=("x", "time", "cond", "weights"),
    scenarios=cases.DENOISER.scenarios(
        {
            "round": {"B": 2, "t": 2},
            "late": {"late": True, "mask": "causal", "t": 2},
            "ends_global": {"layers": "(1)1(0)1", "t": 2, "cond": (3,)},
            "again": {"self_cond": "latent", "again": True, "t": 2},
            "first": {"self_cond": "latent", "t": 2, "xattn_with_mlp": True},
            "bare": {"x_self_attention": False, "xattn_enc_ln": False, "cond_proj": False, "cond": (1, 12), "t": 2},
            "no_conditions": {"cond": (0, 3), "t": 1},
            "no_batch": {"B": 0},
        }
    ),
    families=cases.DENOISER.families,
    cases=cases.DENOISER.cases(cases.denoiser_sizes),
    smoke=(("round", "normal"), ("ends_global", "normal"), ("again", "normal"), ("first", "normal")),
    outputs=("out", "latents"),
    laws=laws.DENOISER_LAWS,
    bugs=bugs.DENOISER_BUGS,
    differentiable=("x",),
)
_CROSS = Entry(
    name="fit_cross_attention",
    reference=fit_cross_attention,
    positional=("a", "e", "weights"),
    scenarios=cases.CROSS.scenarios(
        {
            "plain": {"N": 3, "M": 5, "d": 4, "h": 2, "lead": (2, 3)},
            "one_source": {"N": 4, "M": 1, "d": 6, "h": 1},
            "with_mlp": {"N": 2, "M": 3, "d": 4, "h": 2, "mlp": True},
            "raw_source": {"N": 3, "M": 4, "d": 8, "h": 4, "normed": False},
            "no_queries": {"N": 0, "M": 2, "d": 4, "h": 2},
        }
    ),
    families=cases.CROSS.families,
    cases=cases.CROSS.cases(cases.cross_sizes),
    laws=laws.CROSS_LAWS,
    bugs=bugs.CROSS_BUGS,
    differentiable=("a", "e"),
)
_MASK = Entry(
    name="group_causal_mask",
    reference=group_causal_mask,
    positional=(),
    scenarios=cases.MASK.scenarios(
        {
            "plain": {"t": 4, "m": 3},
            "one_latent": {"t": 5, "m": 1},
            "one_group": {"t": 1, "m": 3},
            "none": {"t": 0, "m": 2},
        }
    ),
    families=("none",),
    cases=cases.MASK.cases(cases.mask_sizes),
    laws=laws.MASK_LAWS,
    bugs=bugs.MASK_BUGS,
)
_SHIFT = Entry(
    name="shift_right",
    reference=shift_right,
    positional=("ids",),
    scenarios=cases.SHIFT.scenarios(
        {
            "plain": {"B": 2, "t": 3, "n": 4},
            "start": {"B": 1, "t": 2, "n": 3, "start": 7},
            "one_group": {"B": 2, "t": 1, "n": 3},
            "one_token": {"B": 1, "t": 4, "n": 1},
            "single": {"B": 1, "t": 1, "n": 1},
            "no_batch": {"B": 0, "t": 2, "n": 2},
        }
    ),
    families=("none",),
    cases=cases.SHIFT.cases(cases.shift_sizes),
    laws=laws.SHIFT_LAWS,
    bugs=bugs.SHIFT_BUGS,
)

CONTRACT = Contract(
    slug="fit",
    title="Far-reaching interleaved transformers",
    paper="2305.12689",
    family="layers",
    entries=(_ENCODE, _AUTOREGRESSIVE, _STEP, _EXTEND, _DENOISE, _CROSS, _MASK, _SHIFT),
)
