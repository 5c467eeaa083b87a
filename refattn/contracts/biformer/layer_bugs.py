"""Mistakes that people make in bi-level routing attention, each one wrong step of the plain layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Bug
from refattn.contracts.biformer.straight import Cut, adaptive_bin, correlate, fill_up, planted, softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.layers.biformer import BRAWeights

__all__ = ["LAYER_BUGS"]

Array = Any


def _head_width_scale(Cq: int, num_heads: int) -> float:
    return float((Cq // num_heads) ** -0.5)


def _maximum_descriptor(tokens: Array, present: Array) -> Array:
    return np.max(np.where(present, tokens, -np.inf), axis=(2, 3))


def _padding_in_means(tokens: Array, present: Array) -> Array:
    del present
    return np.mean(tokens, axis=(2, 3))


def _pooled_key_descriptor(pooled: Array) -> Array:
    return np.mean(pooled, axis=2)


def _transposed_logits(q_mean: Array, k_mean: Array) -> Array:
    return k_mean @ np.swapaxes(q_mean, -1, -2)


def _ascending(A: Array, topk: int) -> Array:
    return np.argsort(A, axis=-1, kind="stable")[..., :topk]


def _column_major_fetch(kv: Array, chosen: Array, cut: Cut) -> Array:
    return np.stack([kv[(region % cut.columns) * cut.rows + region // cut.columns] for region in chosen])


def _fetch_in_image_order(kv: Array, chosen: Array, cut: Cut) -> Array:
    del cut
    return np.stack([kv[region] for region in np.sort(chosen)])


def _interleaved_partition(u: Array, cut: Cut) -> Array:
    return np.stack(
        [u[:, j :: cut.rows, i :: cut.columns] for j in range(cut.rows) for i in range(cut.columns)], axis=1
    )


def _merge_without_moving_axes(regions: Array, cut: Cut) -> Array:
    return regions.reshape(len(regions), cut.rows * cut.h, cut.columns * cut.w, regions.shape[-1])


def _softmax_over_all_regions(A: Array, index: Array) -> Array:
    return np.take_along_axis(softmax(A), index, axis=-1)


def _soften_keys_only(K: Array, V: Array, rho: Array) -> tuple[Array, Array]:
    return K * rho[:, None, None], V


def _soften_values_only(K: Array, V: Array, rho: Array) -> tuple[Array, Array]:
    return K, V * rho[:, None, None]


def _softmax_per_region(scores: Array, topk: int) -> Array:
    by_region = scores.reshape(len(scores), topk, -1)
    return softmax(by_region).reshape(scores.shape) / topk


def _interleaved_heads(t: Array, m: int, num_heads: int) -> Array:
    return t[..., m::num_heads]


def _project_then_pad(x: Array, w: BRAWeights, cut: Cut, pad_mode: str) -> Array:
    u = x @ w.w_qkv if w.b_qkv is None else x @ w.w_qkv + w.b_qkv
    return fill_up(u, cut) if pad_mode == "input" else u


def _padding_always_visible(present: Array, chosen: Array, pad_mode: str, n_kv: int) -> Array:
    del present, pad_mode
    return np.ones(len(chosen) * n_kv, dtype=bool)


def _padding_always_hidden(present: Array, chosen: Array, pad_mode: str, n_kv: int) -> Array:
    if pad_mode not in ("projected", "masked"):
        return np.ones(len(chosen) * n_kv, dtype=bool)
    return np.concatenate([present[region].ravel() for region in chosen])


def _floor_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada"):
        return [slice(a * length // per_region, max((a + 1) * length // per_region, 1)) for a in range(per_region)]
    size = 1 if mode == "identity" else ratio
    return [slice(a, a + size) for a in range(0, length - size + 1, size)]


def _partial_bins(length: int, mode: str, ratio: int, per_region: int) -> list[slice]:
    if mode.startswith("ada"):
        return [adaptive_bin(a, length, per_region) for a in range(per_region)]
    size = 1 if mode == "identity" else ratio
    return [slice(a, a + size) for a in range(0, length, size)]


def _enhance_by_region(x: Array, u: Array, w: BRAWeights, cut: Cut) -> Array:
    v = fill_up(u[..., -x.shape[-1] :], cut)
    local = np.zeros(v.shape)
    for b, j, i in np.ndindex(len(v), cut.rows, cut.columns):
        here = (slice(j * cut.h, (j + 1) * cut.h), slice(i * cut.w, (i + 1) * cut.w))
        local[b][here] = correlate(v[b][here], w.lepe_w)
    return _with_bias(local, w)


def _enhance_input(x: Array, u: Array, w: BRAWeights, cut: Cut) -> Array:
    del u, cut
    return _with_bias(np.stack([correlate(image, w.lepe_w) for image in x]), w)


def _enhance_flipped(x: Array, u: Array, w: BRAWeights, cut: Cut) -> Array:
    del cut
    kernel = np.asarray(w.lepe_w)[:, ::-1, ::-1]
    return _with_bias(np.stack([correlate(image, kernel) for image in u[..., -x.shape[-1] :]]), w)


def _enhance_after_output(out: Array, local: Array, w: BRAWeights) -> Array:
    out = out if w.w_o is None else out @ w.w_o
    return local + (out if w.b_o is None else out + w.b_o)


def _with_bias(local: Array, w: BRAWeights) -> Array:
    return local if w.lepe_b is None else local + w.lepe_b


def _bug(
    step: str,
    wrong: Callable[..., Any],
    description: str,
    remedy: str,
    applies: Callable[[Case], bool],
    *,
    name: str = "",
) -> Bug:
    return Bug(
        name or wrong.__name__.removeprefix("_"),
        description,
        planted(**{step: wrong}),
        applies,
        source=wrong,
        remedy=remedy,
    )


def _batched(case: Case) -> bool:
    return bool(case.arrays["x"].size > 0)


def _regions(case: Case) -> int:
    return int(case.options["n_win"]) ** 2


def _chooses(case: Case) -> bool:
    return bool(_batched(case) and case.options["topk"] < _regions(case))


def _soft(case: Case) -> bool:
    return _batched(case) and bool(case.options.get("soft_routing", False))


def _pools(*modes: str) -> Callable[[Case], bool]:
    return lambda case: _batched(case) and case.options.get("kv_pool", "identity") in modes


def _pads(*modes: str) -> Callable[[Case], bool]:
    return lambda case: _batched(case) and case.options.get("pad_mode", "none") in modes


def _enhances(case: Case) -> bool:
    return _batched(case) and case.arrays["weights"].lepe_w is not None


LAYER_BUGS = (
    _bug(
        "scale",
        _head_width_scale,
        "logits are scaled by the width of a head, as in every other transformer",
        "The layer scales by the full query width, Cq^(−1/2).",
        lambda case: _batched(case) and case.options["num_heads"] > 1 and case.options.get("scale") is None,
    ),
    _bug(
        "describe",
        _maximum_descriptor,
        "a region is described by its largest query instead of its mean query",
        "Descriptors are means over the tokens of the region.",
        _chooses,
    ),
    _bug(
        "logits",
        _transposed_logits,
        "keys choose queries: the matrix of logits is transposed",
        "Rows of the routing matrix are query regions, columns are key regions.",
        _chooses,
    ),
    _bug(
        "select",
        _ascending,
        "the regions that fit worst are chosen",
        "Sort by descending logit.",
        _chooses,
    ),
    Bug(
        "one_region_more",
        "topk + 1 regions are gathered",
        planted(extra_regions=1),
        _chooses,
        remedy="Gather exactly topk regions.",
    ),
    _bug(
        "fetch",
        _column_major_fetch,
        "region numbers are read column by column although the regions were cut row by row",
        "Region r lies in row r // S and column r % S.",
        _chooses,
    ),
    _bug(
        "partition",
        _interleaved_partition,
        "a region holds every S-th token of the map (a dilated grid) instead of a block of neighbours",
        "Split each axis into (S, h): the region index is the slow part.",
        lambda case: _chooses(case) and case.options["n_win"] > 1,
    ),
    _bug(
        "merge",
        _merge_without_moving_axes,
        "regions are put together by a reshape without moving axes",
        "Bring (rows, columns, h, w) to (rows, h, columns, w) before the reshape.",
        lambda case: _batched(case) and case.options["n_win"] > 1,
    ),
    _bug(
        "describe_keys",
        _pooled_key_descriptor,
        "regions are described by their keys after pooling",
        "Means are taken over all keys of the region, before pooling.",
        _pools("maxpool", "ada_maxpool", "avgpool", "ada_avgpool"),
    ),
    _bug(
        "pool_bins",
        _floor_bins,
        "bins of adaptive pooling end at ⌊(a + 1) h / P⌋, so they do not overlap and may be empty",
        "Bin a ends at ⌈(a + 1) h / P⌉.",
        _pools("ada_avgpool", "ada_maxpool"),
    ),
    _bug(
        "pool_bins",
        _partial_bins,
        "the remainder that no full window covers is pooled too",
        "The window slides by its own size and drops the remainder.",
        _pools("avgpool", "maxpool"),
    ),
    _bug(
        "route_weights",
        _softmax_over_all_regions,
        "routing weights come from a softmax over all regions, so those of the chosen ones do not sum to 1",
        "The softmax runs over the kept logits only.",
        lambda case: _soft(case) and _chooses(case),
    ),
    _bug(
        "soften",
        _soften_keys_only,
        "soft routing multiplies the keys and not the values",
        "Gathered keys and values are both multiplied by the routing weight.",
        _soft,
    ),
    _bug(
        "soften",
        _soften_values_only,
        "soft routing multiplies the values and not the keys",
        "Gathered keys and values are both multiplied by the routing weight.",
        _soft,
    ),
    _bug(
        "fetch",
        _fetch_in_image_order,
        "chosen regions are gathered in the order of the image, routing weights stay in the order of the logits",
        "Gather in routed order, or sort the weights along.",
        lambda case: _soft(case) and case.options["topk"] > 1,
    ),
    _bug(
        "weigh",
        _softmax_per_region,
        "each region gets a softmax of its own and the results are averaged",
        "One softmax runs over all gathered tokens together.",
        lambda case: _batched(case) and case.options["topk"] > 1,
    ),
    _bug(
        "head",
        _interleaved_heads,
        "head m takes every M-th channel",
        "Head m takes a contiguous run of channels.",
        lambda case: _batched(case) and case.options["num_heads"] > 1,
    ),
    _bug(
        "project",
        _project_then_pad,
        "zeros are added behind the projection, so padded tokens lose their bias",
        "With pad_mode 'input' the zeros go through the projection.",
        lambda case: _pads("input")(case) and case.arrays["weights"].b_qkv is not None,
    ),
    _bug(
        "describe",
        _padding_in_means,
        "padded tokens count in the means of border regions",
        "Divide by the number of tokens that exist.",
        _pads("projected", "masked"),
    ),
    _bug(
        "visible",
        _padding_always_visible,
        "padded keys take part in the softmax although the mode hides them",
        "With pad_mode 'masked' padded keys get no weight.",
        _pads("masked"),
    ),
    _bug(
        "visible",
        _padding_always_hidden,
        "padded keys are left out of the softmax although the mode shows them",
        "With pad_mode 'projected' padded keys have logit 0 and take part.",
        _pads("projected"),
    ),
    _bug(
        "enhance",
        _enhance_by_region,
        "the local enhancement sees zeros at the border of every region",
        "Convolve the whole image; only its own border is surrounded by zeros.",
        lambda case: _enhances(case) and case.options["n_win"] > 1,
    ),
    _bug(
        "enhance",
        _enhance_input,
        "the local enhancement convolves the layer's input",
        "Convolve the values.",
        _enhances,
    ),
    _bug(
        "enhance",
        _enhance_flipped,
        "the kernel is flipped, a convolution as signal processing means it",
        "Correlate: out[y] = Σ w[i] x[y + i − ⌊ks/2⌋].",
        _enhances,
    ),
    _bug(
        "finish",
        _enhance_after_output,
        "the local enhancement is added behind the output projection",
        "Add it to the attention, then project the sum.",
        lambda case: _enhances(case) and case.arrays["weights"].w_o is not None,
    ),
)
