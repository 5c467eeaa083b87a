"""Mistakes that people make with LRGT, each one exchanged step of an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.lrgt import plain
from refattn.contracts.lrgt.plain import average, labels, normed, rows_of, same_group, signature, weigh

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = [
    "ATTENTION_BUGS",
    "BLOCK_BUGS",
    "CLUSTER_BUGS",
    "DECODER_BUGS",
    "DICE_BUGS",
    "ENCODER_BUGS",
    "FOLD_BUGS",
    "GROUP_BUGS",
    "MERGER_BUGS",
    "QUERY_BUGS",
    "SPREAD_BUGS",
    "UNGROUP_BUGS",
]


def _windows(grid: int, stride: int, kind: str) -> Any:
    return labels(grid, stride, "short" if kind == "long" else kind)


def _columns_in_blocks(grid: int, stride: int, kind: str) -> Any:
    if kind != "long":
        return labels(grid, stride, kind)
    y, x = np.divmod(np.arange(grid**2), grid)
    return (y % stride) * stride + x // (grid // stride)


def _stride_is_size(grid: int, stride: int, kind: str) -> Any:
    return labels(grid, grid // stride, kind)


def _columns_before_rows(grid: int, stride: int, kind: str) -> Any:
    return labels(grid, stride, kind).reshape(grid, grid).T.ravel()


def _batch_before_views(batch: int, num_views: int) -> Any:
    return rows_of(num_views, batch).T


def _views_before_places(places: np.ndarray, num_views: int, tokens: int) -> Any:
    return [v * tokens + p for v in range(num_views) for p in places]


def _views_apart(label: np.ndarray, num_views: int) -> Any:
    view = np.arange(num_views).repeat(len(label))
    return same_group(label, num_views) & (view[:, None] == view)


def _heads_strided(x: np.ndarray, num_heads: int) -> Any:
    return np.moveaxis(x.reshape(len(x), -1, num_heads), 2, 0)


def _scaled_by_width(D: int, num_heads: int, scale: float | None) -> Any:
    del num_heads
    return D**-0.5 if scale is None else scale


def _scale_ignored(D: int, num_heads: int, scale: float | None) -> Any:
    del scale
    return (D // num_heads) ** -0.5


def _masked_after_softmax(s: np.ndarray, allowed: Any = None) -> Any:
    return weigh(s) if allowed is None else np.where(allowed, weigh(s), 0.0)


def _values_without_bias(x: np.ndarray, w: np.ndarray, b: Any) -> Any:
    del b
    return x @ w


def _signature_left_out(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    del x, w, grid, tau
    return np.zeros_like(v)


def _signature_of_input(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    del v
    return signature(x, x, w, grid, tau)


def _signature_scaled(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    return tau * signature(x, v, w, grid, tau)


def _kernel_flipped(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    return signature(x, v, w._replace(ifs_w=w.ifs_w[:, ::-1, ::-1]), grid, tau)


def _kernel_transposed(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    return signature(x, v, w._replace(ifs_w=np.swapaxes(w.ifs_w, 1, 2)), grid, tau)


def _borders_wrapped(x: np.ndarray, v: np.ndarray, w: Any, grid: int, tau: float) -> Any:
    del x, tau
    image = v.reshape(grid, grid, -1)
    taps = [np.roll(image, (1 - i, 1 - j), (0, 1)) * w.ifs_w[:, i, j] for i in range(3) for j in range(3)]
    return sum(taps).reshape(v.shape) + (0.0 if w.ifs_b is None else w.ifs_b)


def _signature_after_projection(o: np.ndarray, signed: np.ndarray, w: Any) -> Any:
    return o @ w.w_o + w.b_o + signed


def _output_without_bias(o: np.ndarray, signed: np.ndarray, w: Any) -> Any:
    return (o + signed) @ w.w_o


def _residual_of_normed(x: np.ndarray, norm: np.ndarray, update: np.ndarray) -> Any:
    del x
    return norm + update


def _no_residual(x: np.ndarray, norm: np.ndarray, update: np.ndarray) -> Any:
    del x, norm
    return update


def _not_normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    del weight, bias, eps
    return x


def _sample_variance(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    return normed(x, weight, bias, eps) * np.sqrt(1 - 1 / x.shape[-1]) + bias * (1 - np.sqrt(1 - 1 / x.shape[-1]))


def _eps_of_the_decoder(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    del eps
    return normed(x, weight, bias, 1e-5)


def _tanh_gelu(x: np.ndarray) -> Any:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _relu(x: np.ndarray) -> Any:
    return np.maximum(x, 0.0)


def _always_across(number: int, lga: Any) -> Any:
    del number, lga
    return True


def _never_across(number: int, lga: Any) -> Any:
    del number, lga
    return False


def _blocks_from_one(number: int, lga: Any) -> Any:
    return number + 1 in lga


def _views_before_batch(images: np.ndarray) -> Any:
    return np.swapaxes(images, 0, 1).reshape(-1, *images.shape[2:])


def _places_left_out(x: np.ndarray, position: np.ndarray) -> Any:
    del position
    return x


def _patches_by_column(image: np.ndarray, p: int) -> Any:
    g = image.shape[-1] // p
    return np.stack([image[:, y * p : (y + 1) * p, x * p : (x + 1) * p] for x in range(g) for y in range(g)])


def _patches_transposed(image: np.ndarray, p: int) -> Any:
    return np.swapaxes(plain.patches(image, p), 2, 3)


def _last_norm_left_out(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> Any:
    del weight, bias, eps
    return x


def _distance_not_scaled(a: np.ndarray, b: np.ndarray) -> Any:
    return np.sqrt(np.sum((a - b) ** 2))


def _itself_not_counted(row: np.ndarray, k: int) -> Any:
    return np.exp(-np.mean(np.sort(row)[1 : k + 1] ** 2))


def _all_neighbours_counted(row: np.ndarray, k: int) -> Any:
    del k
    return np.exp(-np.mean(row**2))


def _noise_ignored(density: np.ndarray, noise: Any) -> Any:
    del noise
    return density


def _equals_do_not_rank(density: np.ndarray, j: int, i: int) -> Any:
    return density[j] > density[i]


def _densest(separation: np.ndarray, density: np.ndarray, count: int) -> Any:
    del separation
    return np.argsort(-density, kind="stable")[:count]


def _centres_in_order(separation: np.ndarray, density: np.ndarray, count: int) -> Any:
    return np.sort(plain.clearest(separation, density, count))


def _centres_unforced(d: np.ndarray, centers: np.ndarray) -> Any:
    return np.argmin(d[centers], axis=0)


def _scores_ignored(x: np.ndarray, raw: np.ndarray, score: np.ndarray) -> Any:
    return average(x, raw, 0.0 * score)


def _raw_tokens_averaged(x: np.ndarray, raw: np.ndarray, score: np.ndarray) -> Any:
    del x
    return average(raw, raw, score)


def _sum_not_divided(x: np.ndarray, raw: np.ndarray, score: np.ndarray) -> Any:
    del raw
    return np.sum(x * np.exp(score)[:, None], axis=0)


def _score_left_out_of_logits(s: np.ndarray, score: np.ndarray) -> Any:
    del score
    return s


def _score_multiplies(s: np.ndarray, score: np.ndarray) -> Any:
    return s * np.exp(score)


def _averages_read_averages(x: np.ndarray, merged: np.ndarray) -> Any:
    del x
    return merged


def _taps_reversed(w: np.ndarray, tap: tuple[int, int, int]) -> Any:
    return w[:, :, ::-1, ::-1, ::-1][(..., *tap)]


def _kernel_axes_reversed(w: np.ndarray, tap: tuple[int, int, int]) -> Any:
    return np.swapaxes(w, 2, 4)[(..., *tap)]


def _overwritten(out: np.ndarray, where: tuple[slice, ...], spread: np.ndarray) -> Any:
    out[where] = spread


def _cut_in_front(out: np.ndarray, padding: int) -> Any:
    return out[2 * padding :, 2 * padding :, 2 * padding :]


def _places_before_channels(cube: np.ndarray) -> Any:
    return np.moveaxis(cube, 0, -1).ravel()


def _cells_reversed(cube: np.ndarray) -> Any:
    return np.swapaxes(cube, 1, 3).ravel()


def _tokens_reversed(h: int, w: int, l: int) -> Any:
    return [(y, x, z) for z in range(l) for x in range(w) for y in range(h)]


def _context_cut_short(context: np.ndarray, queries: int) -> Any:
    return context[:, :queries]


def _context_normed(context: np.ndarray, queries: int) -> Any:
    del queries
    return normed(context, np.ones(context.shape[-1]), np.zeros(context.shape[-1]), 1e-5)


def _context_first() -> Any:
    return ("context", "own")


def _own_left_out() -> Any:
    return ("context",)


def _batch_statistics(x: np.ndarray, w: Any, eps: float) -> Any:
    mean, variance = x.mean(axis=(0, 2, 3, 4)), x.var(axis=(0, 2, 3, 4))
    return plain.batch_normed(x, w._replace(mean=mean, variance=variance), eps)


def _cut_before_norm(x: np.ndarray, w: Any, eps: float) -> Any:
    mean, variance, weight, bias = (t[:, None, None, None] for t in w[1:])
    return (np.maximum(x, 0.0) - mean) / np.sqrt(variance + eps) * weight + bias


def _grid_dropped(grid: np.ndarray, refined: np.ndarray) -> Any:
    del grid
    return refined


def _refinement_dropped(grid: np.ndarray, refined: np.ndarray) -> Any:
    del refined
    return grid


def _negative_cut_off(logits: np.ndarray) -> Any:
    return 1.0 / (1.0 + np.exp(-np.maximum(logits, 0.0)))


def _logits_returned(logits: np.ndarray) -> Any:
    return logits


def _overlap_doubled(p: np.ndarray, t: np.ndarray) -> Any:
    return 2.0 * np.sum(p * t)


def _prediction_not_squared(p: np.ndarray, t: np.ndarray) -> Any:
    return np.sum(p) + np.sum(t**2)


def _roots_of_sums(p: np.ndarray, t: np.ndarray) -> Any:
    return np.sqrt(np.sum(p**2)) * np.sqrt(np.sum(t**2))


def _smooth_only_below(product: float, squares: float, smooth: float) -> Any:
    return product / (squares + smooth)


def _smooth_ignored(product: float, squares: float, smooth: float) -> Any:
    del smooth
    return (product + 1.0) / (squares + 1.0)


def _batch_is_one_sample(x: np.ndarray) -> Any:
    return x.reshape(1, -1)


def _cut(case: Case) -> tuple[int, int]:
    """Return s and t of a case of strides or windows; 1, 1 for others."""
    if case.options.get("kind", "long") not in ("long", "short"):
        return 1, 1
    side = case.options.get("grid") or round(case.arrays["x"].shape[1] ** 0.5)
    return case.options["stride"], side // case.options["stride"]


def _long(case: Case) -> bool:
    return case.options.get("kind", "long") == "long" and min(_cut(case)) > 1


def _oblong(case: Case) -> bool:
    s, t = _cut(case)
    return s != t


def _returns(case: Case) -> bool:
    return bool(case.options.get("return_attn")) and _cut(case)[0] > 1


def _several_views(case: Case) -> bool:
    return bool(case.options["num_views"] > 1)


def _mixed(case: Case) -> bool:
    return _several_views(case) and len(case.arrays["x"]) > case.options["num_views"]


def _heads(case: Case) -> bool:
    return bool(case.options["num_heads"] > 1)


def _wide_heads(case: Case) -> bool:
    x = next(iter(case.arrays.values()))
    return _heads(case) and x.shape[-1] > case.options["num_heads"]


def _filled(case: Case) -> bool:
    return all(x.size > 0 for x in case.arrays.values() if isinstance(x, np.ndarray))


def _signs(case: Case) -> bool:
    return bool(case.options.get("signature", True))


def _twins(case: Case) -> bool:
    return "twins" in case.label


def _chooses(case: Case) -> bool:
    N, M = case.arrays["x"].shape[1], case.options["num_clusters"]
    return _filled(case) and not _twins(case) and 1 < M < N


FINE = ("float64", "float32")

GROUPS = (
    Mistake("labels", _windows, "groups are windows of neighbours", "Group by row and column modulo s.", _long),
    Mistake(
        "labels",
        _columns_in_blocks,
        "rows are taken by stride and columns by block, (t s)(s t) for (t s)(t s)",
        "Split both axes as (t, s): row y = t₁ s + s₁, column x = t₂ s + s₂.",
        _long,
    ),
    Mistake(
        "labels", _stride_is_size, "s and t are exchanged", "The stride s is the number of groups a side.", _oblong
    ),
)
ORDERS = (
    Mistake("rows_of", _batch_before_views, "rows are read as v·B + b", "View v of element b is row b·V + v.", _mixed),
    Mistake(
        "member_order",
        _views_before_places,
        "a group's tokens are ordered view by view",
        "Order them place by place, with all views of a place together.",
        lambda case: _several_views(case) and case.options.get("kind", "long") != "token" and _cut(case)[1] > 1,
    ),
    Mistake(
        "labels",
        _columns_before_rows,
        "groups are numbered column by column",
        "Group n = s₁ s + s₂ has rows s₁ and columns s₂.",
        lambda case: _cut(case)[0] > 1,
    ),
)
ATTENDING = (
    Mistake(
        "same_group",
        _views_apart,
        "groups end at the border of a view",
        "Each group holds its places of all views.",
        _several_views,
    ),
    Mistake("split", _heads_strided, "head h takes channels h, h + H, …", "A head is a run of channels.", _wide_heads),
    Mistake(
        "factor",
        _scaled_by_width,
        "logits are scaled by the root of the full width",
        "Scale by (D/H)^(−1/2), the width of a head.",
        lambda case: _heads(case) and case.options.get("scale") is None,
    ),
    Mistake(
        "factor",
        _scale_ignored,
        "the scale that is given is ignored",
        "Use the scale that is given.",
        lambda case: case.options.get("scale") is not None,
    ),
    Mistake(
        "weigh",
        _masked_after_softmax,
        "the softmax runs over all tokens, those of other groups are set to 0 afterwards",
        "The softmax runs inside the group.",
        lambda case: case.options.get("kind") != "full" and (case.options["stride"] > 1 or "kind" in case.options),
    ),
    Mistake(
        "value",
        _values_without_bias,
        "values are projected without their bias",
        "Queries, keys and values of the encoder have biases.",
        lambda case: case.arrays["weights"].b_v is not None,
    ),
)
SIGNING = (
    Mistake("signature", _signature_left_out, "no signature", "Add the convolution of the values.", _signs),
    Mistake(
        "signature",
        _signature_of_input,
        "the layer's input is convolved, not its values",
        "Convolve v, after its projection.",
        _signs,
    ),
    Mistake("signature", _signature_scaled, "the signature is scaled like logits", "Add it as it is.", _signs),
    Mistake(
        "signature",
        _kernel_flipped,
        "the kernel is flipped, as in a convolution of mathematics",
        "Tap (i, j) meets the neighbour at (i − 1, j − 1).",
        lambda case: _signs(case) and case.arrays["x"].shape[1] > 1,
    ),
    Mistake(
        "signature",
        _kernel_transposed,
        "rows and columns of the kernel are exchanged",
        "The first axis of the kernel goes down the rows.",
        lambda case: _signs(case) and case.arrays["x"].shape[1] > 1,
    ),
    Mistake("signature", _borders_wrapped, "maps are wrapped around", "Zeros lie beyond the border.", _signs),
    Mistake(
        "project_out",
        _signature_after_projection,
        "the signature is added behind the output projection",
        "Add it before: (o + signature) W + b.",
        _signs,
    ),
    Mistake("project_out", _output_without_bias, "the output has no bias", "y = o W + b."),
)
NORMS = (
    Mistake(
        "residual",
        _residual_of_normed,
        "updates are added to the normalised tokens",
        "Add them to the tokens before the normalisation.",
    ),
    Mistake("normed", _not_normed, "no normalisation", "Normalise before attention and before the MLP."),
    Mistake("normed", _sample_variance, "the variance is divided by D − 1", "Divide by D.", dtypes=(*FINE, "float16")),
)
BLOCKS = (
    *NORMS,
    Mistake("residual", _no_residual, "no residual connection", "x + attention, then x + MLP."),
    Mistake(
        "normed",
        _eps_of_the_decoder,
        "ε is 1e-5, as in the decoder",
        "The encoder normalises with 1e-6.",
        lambda case: case.label.endswith("tiny"),
        FINE,
    ),
    Mistake("activation", _tanh_gelu, "GELU is approximated by tanh", "Use the exact GELU.", dtypes=("float64",)),
    Mistake("activation", _relu, "ReLU in the place of GELU", "Use the exact GELU."),
    Mistake(
        "across",
        _always_across,
        "blocks inside views attend across views as well",
        "use_lga=False attends inside each view and adds no signature.",
        lambda case: not case.options.get("use_lga", True),
    ),
    Mistake(
        "across",
        _never_across,
        "all blocks attend inside views",
        "use_lga=True attends across views.",
        lambda case: case.options.get("use_lga", True),
    ),
    ORDERS[0],
)


def _interleaved(case: Case) -> bool:
    depth = len(case.arrays["weights"].blocks)
    return _filled(case) and any(number < depth for number in case.options["lga_blocks"])


def _deep(case: Case) -> bool:
    return _filled(case) and len(case.arrays["weights"].blocks) > 0


ENCODING = (
    Mistake("across", _blocks_from_one, "blocks are counted from 1", "Count from 0.", _interleaved),
    Mistake(
        "by_view",
        _views_before_batch,
        "images are laid out view by view: row v·B + b",
        "Row b·V + v: the views of an object stand together.",
        lambda case: min(case.arrays["images"].shape[:2]) > 1,
    ),
    Mistake("placed", _places_left_out, "places are not added", "Add the row of each place.", _filled),
    Mistake("patches", _patches_by_column, "patches are read column by column", "Row by row.", _filled),
    Mistake(
        "patches",
        _patches_transposed,
        "the pixels of a patch are transposed",
        "A kernel's first axis goes down the rows.",
        lambda case: _filled(case) and case.arrays["weights"].patch_w.shape[-1] > 1,
    ),
    Mistake("last_norm", _last_norm_left_out, "the last normalisation is left out", "Normalise behind the blocks."),
)
CLUSTERING = (
    Mistake("distance", _distance_not_scaled, "distances are not divided by √D", "d = ‖x − y‖ / √D.", _chooses),
    Mistake(
        "crowd",
        _itself_not_counted,
        "the token itself is not among its k neighbours",
        "Average the k smallest of all distances, 0 to itself among them.",
        _chooses,
    ),
    Mistake("crowd", _all_neighbours_counted, "all distances count", "Only the k smallest distances count.", _chooses),
    Mistake(
        "stirred",
        _noise_ignored,
        "noise that is given is not added",
        "ρ ← ρ + 10⁻⁶ u.",
        lambda case: "noise" in case.arrays and _twins(case),
        ("float64",),
    ),
    Mistake(
        "outranks",
        _equals_do_not_rank,
        "of two equally dense tokens neither counts as the denser",
        "The earlier of two equals counts as the denser.",
        lambda case: _twins(case) and "noise" not in case.arrays,
    ),
    Mistake("clearest", _densest, "the densest tokens are the centres", "Rank by δ ρ.", _chooses),
    Mistake("clearest", _centres_in_order, "centres are sorted by their place", "Keep the order of δ ρ.", _chooses),
    Mistake(
        "assigned",
        _centres_unforced,
        "a centre may join the cluster of an equal one",
        "Put every centre into its own cluster.",
        lambda case: "twins" in case.label and case.options["num_clusters"] == case.arrays["x"].shape[1],
    ),
)
MERGING = (
    Mistake("average", _scores_ignored, "clusters are averaged evenly", "Weigh each token by e^s."),
    Mistake("average", _raw_tokens_averaged, "the tokens before the normalisation are averaged", "Average LN(x)."),
    Mistake("average", _sum_not_divided, "weights do not sum to 1", "Divide by Σ e^s + 10⁻⁶."),
    Mistake("add_score", _score_left_out_of_logits, "logits ignore the scores", "Add s_j to the logits of key j."),
    Mistake("add_score", _score_multiplies, "scores multiply the logits", "Add s_j to the logits of key j."),
    Mistake(
        "read_from", _averages_read_averages, "averages attend to averages", "Keys and values come from all tokens."
    ),
    Mistake("residual", _no_residual, "the average is not added", "merged + attention."),
    ATTENDING[1],
)


def _pads(case: Case) -> bool:
    return _filled(case) and case.options.get("padding", 1) > 0


def _overlaps(case: Case) -> bool:
    w, x = case.arrays["w"], case.arrays["x"]
    pairs = zip(w.shape[2:], x.shape[2:], strict=True)
    return _filled(case) and any(k > case.options.get("stride", 2) and n > 1 for k, n in pairs)


def _folds(case: Case) -> bool:
    return _filled(case) and case.options["r"] > 1


SPREADING = (
    Mistake(
        "kernel_tap",
        _taps_reversed,
        "the kernel is flipped",
        "Tap i of cell y lands at stride·y + i − padding.",
        _filled,
    ),
    Mistake(
        "kernel_tap", _kernel_axes_reversed, "first and last axis of the kernel are exchanged", "(h, w, l).", _filled
    ),
    Mistake("land", _overwritten, "what overlaps is overwritten", "What overlaps is added.", _overlaps),
    Mistake("cut", _cut_in_front, "all padding is cut off in front", "Cut as much off on either side.", _pads),
)
FOLDING = (
    Mistake(
        "fold_order",
        _places_before_channels,
        "channels are the fast axis of a token",
        "Channel first, then the place in the cube.",
        lambda case: _folds(case) and case.arrays["x"].shape[1] > 1,
    ),
    Mistake("fold_order", _cells_reversed, "the cube is read from its last axis", "Row-major, (h, w, l).", _folds),
    Mistake(
        "token_order",
        _tokens_reversed,
        "tokens are numbered from the last axis",
        "Row-major, (h, w, l).",
        lambda case: _filled(case) and max(n // case.options["r"] for n in case.arrays["x"].shape[2:]) > 1,
    ),
)


def _reads(case: Case) -> bool:
    return case.arrays["context"].shape[0] > 0 and len(case.arrays["blocks"]) > 0


def _longer(case: Case) -> bool:
    return _reads(case) and case.arrays["context"].shape[1] > len(case.arrays["queries"])


QUERYING = (
    Mistake(
        "read_context",
        _context_cut_short,
        "only as many tokens are read as there are queries",
        "Read the whole context.",
        _longer,
    ),
    Mistake("read_context", _context_normed, "the context is normalised", "Read the context as it is.", _reads),
    Mistake("query_steps", _context_first, "cross-attention comes first", "Self-attention comes first.", _reads),
    Mistake("query_steps", _own_left_out, "queries do not attend to each other", "Self-attention comes first.", _reads),
    Mistake("residual", _residual_of_normed, "updates are added to normalised queries", "Add them to x.", _reads),
)
DECODING = (
    Mistake(
        "batch_normed",
        _batch_statistics,
        "grids are normalised by their own statistics",
        "Use the recorded statistics.",
        _filled,
    ),
    Mistake("batch_normed", _cut_before_norm, "ReLU comes before the normalisation", "ReLU comes last.", _filled),
    Mistake("joined", _grid_dropped, "attention replaces the grid", "Add to the grid.", _filled),
    Mistake("joined", _refinement_dropped, "high resolution is not refined", "Add what attention finds.", _filled),
    Mistake("filled", _negative_cut_off, "ReLU before the sigmoid", "The sigmoid sees the logits.", _filled),
    Mistake("filled", _logits_returned, "logits are returned", "Return sigmoid(logits).", _filled),
    SPREADING[0]._replace(applies=_filled),
    FOLDING[1]._replace(applies=_filled),
)
DICING = (
    Mistake(
        "overlap",
        _overlap_doubled,
        "the numerator has the usual factor 2",
        "The released loss has no factor: (Σpt + 1) / (Σp² + Σt² + 1).",
        _filled,
    ),
    Mistake("mass", _prediction_not_squared, "the prediction is not squared", "Σp² + Σt².", _filled),
    Mistake("mass", _roots_of_sums, "a cosine", "Σp² + Σt².", _filled),
    Mistake("fraction", _smooth_only_below, "smooth stands only below", "Add it above and below.", _filled),
    Mistake(
        "fraction",
        _smooth_ignored,
        "smooth is taken to be 1",
        "Use the number that is given.",
        lambda case: _filled(case) and case.options.get("smooth", 1.0) != 1.0,
    ),
    Mistake(
        "samples",
        _batch_is_one_sample,
        "the batch counts as one sample",
        "Each sample has its own fraction.",
        lambda case: _filled(case) and len(case.arrays["pred"]) > 1,
    ),
)

ATTENTION_BUGS = (
    *(mistake.planted(plain.attention) for mistake in (*GROUPS, ORDERS[0], *ATTENDING, *SIGNING)),
    ORDERS[1]._replace(applies=lambda case: _returns(case) and ORDERS[1].applies(case)).planted(plain.attention),
)
GROUP_BUGS = tuple(mistake.planted(plain.grouping, "group_") for mistake in (*GROUPS, *ORDERS))
UNGROUP_BUGS = tuple(mistake.planted(plain.ungrouping, "ungroup_") for mistake in (GROUPS[0], ORDERS[1]))
BLOCK_BUGS = tuple(mistake.planted(plain.block, "block_") for mistake in BLOCKS)
ENCODER_BUGS = tuple(mistake.planted(plain.encoder, "encoder_") for mistake in ENCODING)
CLUSTER_BUGS = tuple(mistake.planted(plain.clusters, "clusters_") for mistake in CLUSTERING)
MERGER_BUGS = tuple(mistake.planted(plain.merger, "merger_") for mistake in MERGING)
SPREAD_BUGS = tuple(mistake.planted(plain.spreading, "spread_") for mistake in SPREADING)
FOLD_BUGS = tuple(mistake.planted(plain.folding, "fold_") for mistake in FOLDING)
QUERY_BUGS = tuple(mistake.planted(plain.queries, "queries_") for mistake in QUERYING)
DECODER_BUGS = tuple(mistake.planted(plain.decoder, "decoder_") for mistake in DECODING)
DICE_BUGS = tuple(mistake.planted(plain.dice, "dice_") for mistake in DICING)
