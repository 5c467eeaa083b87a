"""The layer itself, channels last and channels first: entries, laws and the convention of the scale."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.cases import rounded
from refattn.conformance.contract import Bug, Case, Claim, Convention, Entry, Law
from refattn.contracts.biformer.cases import FAMILIES, LAYER_SCENARIOS, NCHW_SCENARIOS, layer_cases, nchw_cases
from refattn.contracts.biformer.layer_bugs import LAYER_BUGS
from refattn.contracts.biformer.straight import straight_layer
from refattn.layers.biformer import bi_level_routing_attention
from refattn.layers.biformer_nchw import nchw_bra
from refattn.primitives.regions import region_merge, region_partition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe
    from refattn.layers.biformer import BRAWeights

__all__ = ["LAYER", "NCHW", "SCALE"]


def _divides(case: Case) -> bool:
    return bool(case.options.get("pad_mode", "none") == "none" and case.arrays["x"].size > 0)


def _identity_pool(case: Case) -> bool:
    return bool(case.options.get("kv_pool", "identity") == "identity")


def _without_enhancement(case: Case) -> Case:
    return case.having(weights=case.arrays["weights"]._replace(lepe_w=None, lepe_b=None))


def _all_regions_is_dense(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    everything = case.having(topk=case.options["n_win"] ** 2)
    one_region = case.having(n_win=1, topk=1)
    # the order in which all regions are gathered is not clear in these cases, and no output depends on it
    yield Claim(probe(everything)["out"], probe(one_region)["out"], 3 * probe.slack(one_region)["out"])


def _moved(x: np.ndarray, n_win: int, order: np.ndarray) -> np.ndarray:
    regions = region_partition(x[..., None] if x.ndim == 3 else x, n_win=n_win)
    image: np.ndarray = region_merge(regions[:, order], n_win=n_win)
    return image[..., 0] if x.ndim == 3 else image


def _regions_may_move(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    case = _without_enhancement(case)
    n_win = case.options["n_win"]
    move = partial(_moved, n_win=n_win, order=rng.permutation(n_win * n_win))
    moved = case.having(x=move(case.arrays["x"]))
    slack = move(probe.slack(case)["out"]) + probe.slack(moved)["out"]
    yield Claim(move(probe(case)["out"]), probe(moved)["out"], slack)


def _shuffled(x: np.ndarray, n_win: int, order: np.ndarray) -> np.ndarray:
    regions = region_partition(x[..., None] if x.ndim == 3 else x, n_win=n_win)
    tokens = regions.reshape(*regions.shape[:2], -1, regions.shape[-1])[:, :, order]
    image: np.ndarray = region_merge(tokens.reshape(regions.shape), n_win=n_win)
    return image[..., 0] if x.ndim == 3 else image


def _tokens_may_move(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    case = _without_enhancement(case)
    n_win = case.options["n_win"]
    tokens = case.arrays["x"].shape[1] * case.arrays["x"].shape[2] // n_win**2
    shuffle = partial(_shuffled, n_win=n_win, order=rng.permutation(tokens))
    shuffled = case.having(x=shuffle(case.arrays["x"]))
    slack = shuffle(probe.slack(case)["out"]) + probe.slack(shuffled)["out"]
    yield Claim(shuffle(probe(case)["out"]), probe(shuffled)["out"], slack)


def _one_region_needs_no_weight(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.arrays["weights"]._replace(w_r=None, b_r=None)
    hard = case.having(weights=plain, topk=1, soft_routing=False, diff_routing=False)
    soft = hard.having(soft_routing=True, diff_routing=True)
    yield Claim(probe(hard)["out"], probe(soft)["out"], probe.slack(hard)["out"] + probe.slack(soft)["out"])


def _values(case: Case) -> np.ndarray:
    w: BRAWeights = case.arrays["weights"]
    u: np.ndarray = case.arrays["x"] @ w.w_qkv
    u = u if w.b_qkv is None else u + w.b_qkv
    return u[..., -case.arrays["x"].shape[-1] :]


def _enhancement_adds_a_convolution(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]._replace(w_o=None, b_o=None)
    case = case.having(weights=w)
    bare = _without_enhancement(case)
    bias = {} if w.lepe_b is None else {"b": w.lepe_b}
    arrays = {"x": rounded(_values(case), case.dtype), "w": w.lepe_w, **bias}
    local = Case("depthwise_conv2d", arrays, {}, case.dtype, case.label)
    slack = probe.slack(case)["out"] + probe.slack(bare)["out"] + 2 * probe.slack(local)["out"]
    yield Claim(probe(case)["out"] - probe(bare)["out"], probe(local)["out"], slack)


_LAWS = (
    Law(
        "all_regions_is_dense",
        "With every region chosen, the number of regions does not matter: it is dense attention.",
        _all_regions_is_dense,
        lambda case: _divides(case) and _identity_pool(case) and not case.options.get("soft_routing", False),
        witness="softmax_per_region",
    ),
    Law(
        "regions_may_move",
        "Without local enhancement, moving the regions of the input as blocks moves those of the output alike.",
        _regions_may_move,
        _divides,
        witness="column_major_fetch",
    ),
    Law(
        "tokens_may_move",
        "Without local enhancement and pooling, shuffling the tokens inside every region shuffles the output alike.",
        _tokens_may_move,
        lambda case: _divides(case) and _identity_pool(case),
        witness="merge_without_moving_axes",
    ),
    Law(
        "one_region_needs_no_weight",
        "The routing weight of a single chosen region is 1: soft and hard routing agree.",
        _one_region_needs_no_weight,
        _divides,
        witness="softmax_over_all_regions",
    ),
    Law(
        "enhancement_adds_a_convolution",
        "Without output map, local enhancement adds the depth-wise convolution of the values over the whole image.",
        _enhancement_adds_a_convolution,
        lambda case: _divides(case) and case.arrays["weights"].lepe_w is not None,
        needs=("depthwise_conv2d",),
        witness="enhance_by_region",
    ),
)

LAYER = Entry(
    "bi_level_routing_attention",
    bi_level_routing_attention,
    ("x", "weights"),
    LAYER_SCENARIOS,
    FAMILIES,
    layer_cases,
    smoke=tuple(
        (scenario, "normal")
        for scenario in (
            "default",
            "soft_routing",
            "pad_input",
            "pad_projected",
            "pad_masked",
            "adaptive_average",
            "average_of_a_corner",
            "soft_parametric",
        )
    ),
    laws=_LAWS,
    bugs=LAYER_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "H", "W", "C")},
)


def _channels_first(layer: Any) -> Any:
    def wrong(x: np.ndarray, weights: BRAWeights, *, pad_mode: str = "projected", **options: Any) -> np.ndarray:
        y = layer(np.moveaxis(x, 1, -1), weights, pad_mode=pad_mode, **options)
        return np.moveaxis(y, -1, 1)

    return wrong


def _pad_before_projection(
    x: np.ndarray, weights: BRAWeights, *, pad_mode: str = "projected", **options: Any
) -> np.ndarray:
    del pad_mode
    return np.moveaxis(straight_layer(np.moveaxis(x, 1, -1), weights, pad_mode="input", **options), -1, 1)


def _crop_to_regions(
    x: np.ndarray, weights: BRAWeights, *, n_win: int = 7, pad_mode: str = "projected", **options: Any
) -> np.ndarray:
    del pad_mode
    whole = x[:, :, : x.shape[2] // n_win * n_win, : x.shape[3] // n_win * n_win]
    y = straight_layer(np.moveaxis(whole, 1, -1), weights, n_win=n_win, **options)
    out = np.zeros(x.shape)
    out[:, :, : whole.shape[2], : whole.shape[3]] = np.moveaxis(y, -1, 1)
    return out


def _width_and_height_swapped(
    x: np.ndarray, weights: BRAWeights, *, pad_mode: str = "projected", **options: Any
) -> np.ndarray:
    y = straight_layer(np.moveaxis(x, 1, -1).swapaxes(1, 2), weights, pad_mode=pad_mode, **options)
    return np.moveaxis(y.swapaxes(1, 2), -1, 1)


def _partial(case: Case) -> bool:
    H, W = case.arrays["x"].shape[2:]
    return case.arrays["x"].size > 0 and bool(H % case.options["n_win"] or W % case.options["n_win"])


_SHARED = ("transposed_logits", "ascending", "head_width_scale", "padding_in_means", "enhance_after_output")


def _shared_bug(bug: Bug) -> Bug:
    padding = "padding" in bug.name
    return Bug(
        f"nchw_{bug.name}",
        bug.description,
        _channels_first(bug.wrong),
        _partial if padding else bug.applies,
        source=bug.source,
        remedy=bug.remedy,
    )


_NCHW_BUGS = (
    Bug(
        "pad_before_projection",
        "zeros are added to the input, as the older layer does, so padded tokens carry the bias",
        _pad_before_projection,
        _partial,
        remedy="Project first, then pad queries, keys and values.",
    ),
    Bug(
        "crop_to_regions",
        "tokens beyond the last full region are left at zero",
        _crop_to_regions,
        _partial,
        remedy="Add regions until the map is covered: ⌈H / ⌊H/S⌋⌉ per side.",
    ),
    Bug(
        "width_and_height_swapped",
        "height and width are exchanged on the way in and out, so kernels and regions are transposed",
        _width_and_height_swapped,
        lambda case: case.arrays["x"].size > 0,
        remedy="Move the channel axis only: (B, C, H, W) to (B, H, W, C).",
    ),
    *(_shared_bug(bug) for bug in LAYER_BUGS if bug.name in _SHARED),
)


def _agrees_with_channels_last(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    last = Case(
        "bi_level_routing_attention",
        {"x": np.moveaxis(case.arrays["x"], 1, -1).copy(), "weights": case.arrays["weights"]},
        {**case.options, "pad_mode": case.options.get("pad_mode", "projected")},
        case.dtype,
        case.label,
    )
    left = np.moveaxis(probe(case)["out"], 1, -1)
    yield Claim(left, probe(last)["out"], 2 * probe.slack(last)["out"])


NCHW = Entry(
    "nchw_bra",
    nchw_bra,
    ("x", "weights"),
    NCHW_SCENARIOS,
    FAMILIES,
    nchw_cases,
    smoke=tuple((scenario, "normal") for scenario in ("divisible", "partial_regions", "masked")),
    laws=(
        Law(
            "agrees_with_channels_last",
            "It is the channels-last layer of the same padding with the channel axis moved.",
            _agrees_with_channels_last,
            needs=("bi_level_routing_attention",),
            witness="width_and_height_swapped",
        ),
    ),
    bugs=_NCHW_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "C", "H", "W")},
)


def _expect_scale(case: Case, value: str) -> Case:
    """Return the case whose scale a backend of this convention means when none is given."""
    if value == "width" or case.options.get("scale") is not None or "num_heads" not in case.options:
        return case
    if case.entry == "regional_attention":
        Cq = case.arrays["q"].shape[-1]
    else:
        C = case.arrays["x"].shape[1 if case.entry == "nchw_bra" else -1]
        weights = case.arrays["weights"]
        Cq = (getattr(weights, "attn", weights).w_qkv.shape[1] - C) // 2
    return case.having(scale=float((Cq // case.options["num_heads"]) ** -0.5))


SCALE = Convention(
    "biformer_scale",
    {
        "width": "without a given scale, logits are scaled by the full query width, as in the released code",
        "head": "without a given scale, logits are scaled by the width of a head, as in most transformers",
    },
    expect=_expect_scale,
)
