"""Mistakes that people make with PAINT, each one exchanged step of a plain implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.attention_imbalance import plain
from refattn.contracts.attention_imbalance.plain import lift

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = [
    "BOOST_BUGS",
    "CLASS_BUGS",
    "GAIN_BUGS",
    "GUIDED_BUGS",
    "MASK_BUGS",
    "PAINT_BUGS",
    "PAI_BUGS",
    "SENSITIVITY_BUGS",
]


def _logits(case: Case) -> np.ndarray:
    logits: np.ndarray = case.arrays["logits"]
    return logits


def _several_queries(case: Case) -> bool:
    return bool(_logits(case).shape[-2] > 1)


def _several_images(case: Case) -> bool:
    return bool(_logits(case).ndim == 4 and len(_logits(case)) > 1)


def _hidden(case: Case) -> bool:
    return bool(np.isinf(_logits(case)[..., -1:, :]).any())


def _has_gain(case: Case) -> bool:
    return "head_gain" in case.arrays


def _has_both(case: Case) -> bool:
    return all(len(tokens) > 0 for tokens in case.arrays["selection"])


def _multiplied(z: np.ndarray, a: np.ndarray) -> Any:
    return (1 + a) * z


def _clipped(z: np.ndarray, a: np.ndarray) -> Any:
    return z + a * np.maximum(z, 0)


def _weights_scaled(z: np.ndarray, a: np.ndarray) -> Any:
    return z + np.log1p(a)


def _row_shifted_first(z: np.ndarray, a: np.ndarray) -> Any:
    return np.where(np.isinf(z), z, z + a * (z.max() - np.where(np.isinf(z), 0.0, z)))


def _boosted_twice(z: np.ndarray, a: np.ndarray) -> Any:
    return lift(lift(z, a), a)


@np.errstate(invalid="ignore")
def _nothing_guarded(z: np.ndarray, a: np.ndarray) -> Any:
    return z + a * np.abs(z)


def _every_query(count: int) -> Any:
    return range(count)


def _first_query(count: int) -> Any:
    del count
    return [0]


def _start_forgotten(tokens: np.ndarray, image_start: int) -> Any:
    del image_start
    return tokens


def _class_token_skipped(tokens: np.ndarray, image_start: int) -> Any:
    return np.maximum(image_start + tokens - 1, 0)


def _whole_span(tokens: np.ndarray, image_start: int) -> Any:
    return image_start + np.arange(tokens.min(initial=0), tokens.max(initial=-1) + 1)


def _strengths_exchanged(alpha: float, beta: float) -> Any:
    return beta, alpha


def _one_strength(alpha: float, beta: float) -> Any:
    del beta
    return alpha, alpha


def _summary_left_out(alpha: float, beta: float) -> Any:
    return alpha, 0.0 * beta


def _gain_ignored(alpha: float, beta: float, head_gain: np.ndarray) -> Any:
    return alpha * np.ones_like(head_gain), beta * np.ones_like(head_gain)


def _gain_of_local_tokens_only(alpha: float, beta: float, head_gain: np.ndarray) -> Any:
    return alpha * head_gain, beta * np.ones_like(head_gain)


def _gain_added(alpha: float, beta: float, head_gain: np.ndarray) -> Any:
    return alpha + head_gain - 1, beta + head_gain - 1


def _gain_of_the_first_head(alpha: float, beta: float, head_gain: np.ndarray) -> Any:
    return alpha * head_gain[0], beta * head_gain[0]


def _first_batch_element(count: int) -> Any:
    return range(min(count, 1))


LIFTS = (
    Mistake(
        "lift",
        _multiplied,
        "logits are multiplied by 1 + a, which pushes negative ones down",
        "Add a|z|: a boost never lowers a logit.",
    ),
    Mistake("lift", _clipped, "negative logits get no boost", "Add a|z|, whatever the sign of z."),
    Mistake(
        "lift",
        _weights_scaled,
        "the weights are multiplied by 1 + a before they are normalised",
        "The boost is a|z|, in the logit: it is large where the logit is.",
    ),
    Mistake(
        "lift",
        _row_shifted_first,
        "|z| is taken after the largest logit of the row was subtracted, as a softmax does inside",
        "Boost scaled logits before any shift: |z| depends on where zero is.",
    ),
    Mistake("lift", _boosted_twice, "two hooks boost the same layer", "Boost once, just before the softmax."),
    Mistake(
        "lift",
        _nothing_guarded,
        "a hidden logit becomes −∞ + a·∞ = NaN",
        "Leave −∞ as it is.",
        _hidden,
    ),
    Mistake("queries", _every_query, "every query is boosted", "Boost the last query only.", _several_queries),
    Mistake("queries", _first_query, "the first query is boosted", "Boost the last query.", _several_queries),
)
CHOICES = (
    Mistake(
        "columns",
        _start_forgotten,
        "indices within the image are taken for keys",
        "Add image_start: text and system tokens stand before the image.",
        lambda case: case.options["image_start"] > 0,
    ),
    Mistake(
        "columns",
        _class_token_skipped,
        "one is subtracted for the class token, which the indices never counted",
        "Index 0 is the first image token.",
    ),
    Mistake(
        "columns",
        _whole_span,
        "all tokens between the first and the last of a set are boosted",
        "Boost the tokens of the set and no others.",
        _has_both,
    ),
    Mistake("strengths", _strengths_exchanged, "α and β are exchanged", "α is for local, β for summary tokens."),
    Mistake("strengths", _one_strength, "α is used for both sets", "Summary tokens have a strength of their own."),
    Mistake("strengths", _summary_left_out, "summary tokens are not boosted", "Boost both sets.", _has_both),
    Mistake("per_head", _gain_ignored, "gains are ignored", "Gains multiply α and β head by head.", _has_gain),
    Mistake(
        "per_head",
        _gain_of_local_tokens_only,
        "gains multiply α alone",
        "A head's gain multiplies both strengths.",
        _has_gain,
    ),
    Mistake("per_head", _gain_added, "gains are added", "Gains are factors; 1 is the default.", _has_gain),
    Mistake(
        "per_head", _gain_of_the_first_head, "all heads use the gain of head 0", "One gain for each head.", _has_gain
    ),
    Mistake(
        "batch", _first_batch_element, "only batch element 0 is boosted", "Boost the whole batch.", _several_images
    ),
)


def _end_included(image_start: int, n_image: int, keys: int) -> Any:
    return np.arange(image_start, min(image_start + n_image + 1, keys))


def _all_from_the_image_on(image_start: int, n_image: int, keys: int) -> Any:
    del n_image
    return np.arange(image_start, keys)


def _count_taken_for_the_end(image_start: int, n_image: int, keys: int) -> Any:
    del keys
    return np.arange(image_start, n_image)


IMAGES = (
    Mistake("image", _end_included, "the first text token is boosted too", "The image ends before start + N."),
    Mistake(
        "image", _all_from_the_image_on, "the text after the image is boosted too", "Boost the N image tokens only."
    ),
    Mistake(
        "image",
        _count_taken_for_the_end,
        "N is taken for the end of the image",
        "The image has N tokens, wherever it starts.",
    ),
)


def _mean_over_queries(logits: np.ndarray) -> Any:
    finite = np.where(np.isinf(logits), -1e4, logits)
    return finite.mean(axis=-2)


def _row_of_the_first_query(logits: np.ndarray) -> Any:
    return logits[..., 0, :]


def _softmax_over_the_image(z: np.ndarray, start: int, stop: int) -> Any:
    e = np.exp(z - z.max(axis=-1, keepdims=True, initial=-1e300))
    inside = (np.arange(z.shape[-1]) >= start) & (np.arange(z.shape[-1]) < stop)
    return e * inside / (e * inside).sum(axis=-1, keepdims=True).clip(1e-300)


def _averaged(w: np.ndarray, start: int, stop: int) -> Any:
    return w[..., start:stop].sum(axis=-1) / max(stop - start, 1)


def _peak(w: np.ndarray, start: int, stop: int) -> Any:
    return w[..., start:stop].max(axis=-1, initial=0.0)


def _stop_included(w: np.ndarray, start: int, stop: int) -> Any:
    return w[..., start : stop + 1].sum(axis=-1)


SENSITIVITIES = (
    Mistake("last", _mean_over_queries, "logits are averaged over queries", "Take the last query.", _several_queries),
    Mistake("last", _row_of_the_first_query, "the first query is measured", "Take the last query.", _several_queries),
    Mistake(
        "normalise",
        _softmax_over_the_image,
        "the softmax is over the image alone, so that every head gives it everything",
        "The softmax is over all keys.",
    ),
    Mistake("total", _averaged, "the mean weight is taken", "Add up the weights of the image."),
    Mistake("total", _peak, "the largest weight is taken", "Add up the weights of the image."),
    Mistake("total", _stop_included, "the token after the image counts too", "The slice ends before its stop."),
)


def _sums_to_one(s: np.ndarray) -> Any:
    sums = s.sum(axis=-1, keepdims=True)
    return np.where(sums > 0, s / np.where(sums > 0, sums, 1.0), 1.0)


def _largest_of_all(s: np.ndarray) -> Any:
    return np.where(s.max(axis=-1, keepdims=True) > 0, s / max(s.max(initial=0.0), 1e-300), 1.0)


def _blind_layers_stay_zero(s: np.ndarray) -> Any:
    return s / np.maximum(s.max(axis=-1, keepdims=True), 1e-30)


def _mean_is_one(s: np.ndarray) -> Any:
    mean = s.mean(axis=-1, keepdims=True)
    return np.where(mean > 0, s / np.where(mean > 0, mean, 1.0), 1.0)


def _layers_differ(case: Case) -> bool:
    largest = case.arrays["sensitivity"].max(axis=-1)
    return bool(largest.ndim and (largest[largest > 0] < largest.max(initial=0.0)).any())


def _is_blind(case: Case) -> bool:
    return bool((case.arrays["sensitivity"].max(axis=-1) == 0).any())


def _unequal(case: Case) -> bool:
    return bool(case.arrays["sensitivity"].shape[-1] > 1)


GAINS = (
    Mistake("relative", _sums_to_one, "gains sum to 1 over heads", "The most sensitive head has gain 1.", _unequal),
    Mistake("relative", _mean_is_one, "gains have mean 1", "The most sensitive head has gain 1.", _unequal),
    Mistake(
        "relative",
        _largest_of_all,
        "gains are relative to the largest of all layers",
        "Compare the heads of one layer and one sequence.",
        _layers_differ,
    ),
    Mistake(
        "relative",
        _blind_layers_stay_zero,
        "where no head sees the image, all gains are 0",
        "Without any measurement gains are 1, the default.",
        _is_blind,
    ),
)


def _left_raw(x: np.ndarray) -> Any:
    return x


def _probabilities(x: np.ndarray) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _one_too_far(s: np.ndarray, u: np.ndarray, gamma: float) -> Any:
    return (1 + gamma) * s - gamma * u


def _exchanged(s: np.ndarray, u: np.ndarray, gamma: float) -> Any:
    return gamma * u + (1 - gamma) * s


def _text_left_out(s: np.ndarray, u: np.ndarray, gamma: float) -> Any:
    return gamma * (s - u)


def _compared_with_one(s: np.ndarray, u: np.ndarray, cutoff: float) -> Any:
    del u
    return s >= np.log(cutoff)


def _judged_without_image(s: np.ndarray, u: np.ndarray, cutoff: float) -> Any:
    del s
    return u >= np.log(cutoff) + u.max(axis=-1, keepdims=True)


def _cutoff_not_in_logs(s: np.ndarray, u: np.ndarray, cutoff: float) -> Any:
    del u
    return s >= s.max(axis=-1, keepdims=True) - cutoff


def _always_pruned(gamma: float) -> Any:
    del gamma
    return False


def _set_to_zero(out: np.ndarray, kept: np.ndarray) -> Any:
    return np.where(kept, out, 0.0)


def _guides(case: Case) -> bool:
    return bool(case.options.get("gamma", 1.1) != 1.0)


GUIDANCE = (
    Mistake("log_softmax", _left_raw, "logits are used as they are", "Take log-softmax of both runs first."),
    Mistake("log_softmax", _probabilities, "probabilities are blended", "Blend log-probabilities."),
    Mistake(
        "blend",
        _one_too_far,
        "s + γ(s − u): another convention, in which γ = 0 is no guidance",
        "γ(s − u) + u: no guidance is γ = 1.",
        _guides,
    ),
    Mistake("blend", _exchanged, "the two runs are exchanged", "Go from u towards s.", _guides),
    Mistake("blend", _text_left_out, "u is not added again", "γ(s − u) + u.", _guides),
    Mistake(
        "keep",
        _compared_with_one,
        "tokens are pruned by their own probability, perhaps all of them",
        "Compare with the most probable token.",
        _guides,
    ),
    Mistake("keep", _judged_without_image, "the text-only run decides what is pruned", "s decides.", _guides),
    Mistake(
        "keep", _cutoff_not_in_logs, "the cutoff is subtracted from a logarithm", "Add its logarithm to max s.", _guides
    ),
    Mistake(
        "untouched",
        _always_pruned,
        "γ = 1 prunes too",
        "With γ = 1 return s as it is.",
        lambda case: not _guides(case),
    ),
    Mistake("prune", _set_to_zero, "pruned entries are 0, the logarithm of 1", "Pruned entries are −∞.", _guides),
)


def _class_token_counted(layer: np.ndarray) -> Any:
    return layer[:, 0, :-1].sum(axis=0)


def _what_image_tokens_give_to_the_class_token(layer: np.ndarray) -> Any:
    return layer[:, 1:, 0].sum(axis=0)


def _head_zero_only(layer: np.ndarray) -> Any:
    return layer[0, 0, 1:]


def _loudest_head(layer: np.ndarray) -> Any:
    return layer[:, 0, 1:].max(axis=0)


def _averaged_over_heads(layer: np.ndarray) -> Any:
    return layer[:, 0, 1:].mean(axis=0)


def _several_heads(case: Case) -> bool:
    return bool(case.arrays["vit_weights"].shape[0] > 1)


SCORES = (
    Mistake("class_scores", _class_token_counted, "column 0, the class token itself, is counted", "Columns 1 … N."),
    Mistake(
        "class_scores",
        _what_image_tokens_give_to_the_class_token,
        "row and column are exchanged",
        "The class token is the query: row 0.",
    ),
)
HEADS = (
    Mistake("class_scores", _head_zero_only, "head 0 decides", "Add up all heads.", _several_heads),
    Mistake("class_scores", _loudest_head, "the largest over heads is taken", "Add up all heads.", _several_heads),
    Mistake("class_scores", _averaged_over_heads, "heads are averaged", "Add up all heads.", _several_heads),
)


def _sum_over_keys(layer: np.ndarray) -> Any:
    return layer[:, 1:, :].mean(axis=0).sum(axis=1)


def _from_the_last_layer(layers: np.ndarray) -> Any:
    return layers[-1]


def _from_the_first_layer(layers: np.ndarray) -> Any:
    return layers[0]


def _from_the_second_layer(layers: np.ndarray) -> Any:
    return layers[1]


def _rounded_up(n: int, ratio: float) -> int:
    return int(np.ceil(n * ratio))


def _beyond_the_median(g: np.ndarray) -> Any:
    q1, q2, q3 = np.quantile(g, [0.25, 0.5, 0.75])
    return g > q2 + 0.5 * (q3 - q1)


def _beyond_two_deviations(g: np.ndarray) -> Any:
    return g > g.mean() + 2 * g.std()


def _beyond_a_fixed_share(g: np.ndarray) -> Any:
    return g > 0.3


def _below_too(g: np.ndarray) -> Any:
    centred = np.abs(g - np.median(g))
    return centred >= np.quantile(centred, 0.75)


def _rounding_never(found: int, n: int, *, official_rounding: bool) -> int:
    del n, official_rounding
    return found


def _rounding_always(found: int, n: int, *, official_rounding: bool) -> int:
    del official_rounding
    return int(n * (found / n))


def _smallest(scores: np.ndarray, k: int) -> Any:
    return np.argsort(np.argsort(scores)) < k


def _summary_stays_local(local: np.ndarray, spatial: np.ndarray, summary: np.ndarray) -> Any:
    del summary
    return local | spatial


def _spatial_takes_over(local: np.ndarray, spatial: np.ndarray, summary: np.ndarray) -> Any:
    return (spatial if spatial.any() else local) & ~summary


def _only_where_both_agree(local: np.ndarray, spatial: np.ndarray, summary: np.ndarray) -> Any:
    return (local & spatial if spatial.any() else local) & ~summary


def _layers(least: int) -> Callable[[Case], bool]:
    return lambda case: len(case.arrays["vit_attention"]) >= least


def _spatial(case: Case) -> bool:
    return bool(case.options.get("spatial_ratio", 0.0) > 0)


CHOOSING = (
    Mistake(
        "mean_received",
        _sum_over_keys,
        "attention is summed over keys, where softmax weights make all tokens equal",
        "Sum over queries: what a token receives.",
        _spatial,
    ),
    Mistake(
        "late", _from_the_last_layer, "summary tokens come from the last layer", "Take the last but one.", _layers(2)
    ),
    Mistake(
        "late", _from_the_first_layer, "summary tokens come from the first layer", "Take the last but one.", _layers(3)
    ),
    Mistake("early", _from_the_second_layer, "local tokens come from layer 1", "Take the first layer.", _layers(2)),
    Mistake("share", _rounded_up, "N·r is rounded up", "Round down."),
    Mistake("standing_out", _beyond_the_median, "the fence starts at the median", "The fence is q3 + 1.5 (q3 − q1)."),
    Mistake("standing_out", _beyond_two_deviations, "outliers are beyond 2σ", "The fence is q3 + 1.5 (q3 − q1)."),
    Mistake("standing_out", _beyond_a_fixed_share, "the fence is a constant", "The fence is q3 + 1.5 (q3 − q1)."),
    Mistake("standing_out", _below_too, "a quarter of the tokens always stands out", "There may be no outlier."),
    Mistake(
        "count",
        _rounding_never,
        "official_rounding is ignored",
        "With it, keep int(N·(c/N)) outliers.",
        lambda case: bool(case.options.get("official_rounding")),
    ),
    Mistake(
        "count",
        _rounding_always,
        "the released code's division by N loses an outlier",
        "Keep all c outliers unless official_rounding is asked for.",
        lambda case: not case.options.get("official_rounding"),
    ),
    Mistake("largest", _smallest, "the smallest scores are chosen", "Choose the largest."),
    Mistake("combine", _summary_stays_local, "a token may be in both sets", "L excludes S."),
    Mistake("combine", _spatial_takes_over, "spatial tokens replace local ones", "L is their union.", _spatial),
    Mistake("combine", _only_where_both_agree, "L is the intersection", "L is the union, without S.", _spatial),
)


def _class(*, class_scores: Callable[..., Any]) -> Callable[..., Any]:
    return lambda vit_weights: np.asarray(class_scores(vit_weights))


PAINT_BUGS = tuple(mistake.planted(plain.paint) for mistake in (*LIFTS, *CHOICES))
BOOST_BUGS = tuple(mistake.planted(plain.boost, "boost_") for mistake in (*LIFTS, CHOICES[-1]))
PAI_BUGS = tuple(mistake.planted(plain.pai, "pai_") for mistake in (*IMAGES, LIFTS[0], LIFTS[6]))
SENSITIVITY_BUGS = tuple(mistake.planted(plain.sensitivity) for mistake in SENSITIVITIES)
GAIN_BUGS = tuple(mistake.planted(plain.gain) for mistake in GAINS)
GUIDED_BUGS = tuple(mistake.planted(plain.guided) for mistake in GUIDANCE)
MASK_BUGS = tuple(mistake.planted(plain.masks, "masks_") for mistake in (*SCORES, *CHOOSING))
CLASS_BUGS = tuple(mistake.planted(_class) for mistake in (*SCORES, *HEADS))
