"""What holds between results of the analysis, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "ACCUMULATE_LAWS",
    "AGGREGATE_LAWS",
    "DELETE_LAWS",
    "DIFFERENCE_LAWS",
    "DIVERGENCE_LAWS",
    "MIN_MAX_LAWS",
    "PEARSON_LAWS",
    "POOL_LAWS",
    "SHARE_LAWS",
    "STANDARDISE_LAWS",
]


def _both(probe: Probe, left: Case, right: Case, what: str = "") -> Iterator[Claim]:
    """Claim that all outputs of two calls are the same."""
    ours, theirs = probe(left), probe(right)
    slack, more = probe.slack(left), probe.slack(right)
    for name, value in ours.items():
        yield Claim(value, theirs[name], slack[name] + more[name], f"{name} {what}".strip())


def _equals_diverge_by_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    p, q = case.arrays["p"], case.arrays["q"]
    same = case.having(q=np.broadcast_to(p, q.shape).copy())
    scores = probe(same)["out"]
    yield Claim(scores, np.zeros_like(scores), probe.slack(same)["out"])


def _divergence_is_not_negative(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    scores = probe(case)["out"]
    yield Claim(np.minimum(scores, 0.0), np.zeros_like(scores), probe.slack(case)["out"])


def _halves_change_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    halves = {name: np.concatenate([case.arrays[name] / 2.0] * 2, axis=-1) for name in ("p", "q")}
    yield from _both(probe, case, case.having(**halves))


DIVERGENCE_LAWS = (
    Law(
        "equals_diverge_by_nothing",
        "An occlusion that moves no distribution has score 0.",
        _equals_diverge_by_nothing,
        witness="cross_entropy",
    ),
    Law(
        "divergence_is_not_negative",
        "No score is negative.",
        _divergence_is_not_negative,
        witness="ratio_upside_down",
    ),
    Law(
        "halves_change_nothing",
        "Cutting every entry of the vocabulary into two equal halves changes no score.",
        _halves_change_nothing,
        witness="mean_over_vocabulary",
    ),
)


def _losses_and_gains_cancel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    I, V = case.arrays["p"].shape
    trials = [case.having(target=np.full(I, word)) for word in range(V)]
    total = np.sum([probe(trial)["out"] for trial in trials], axis=0)
    yield Claim(total, np.zeros_like(total), sum(probe.slack(trial)["out"] for trial in trials))


DIFFERENCE_LAWS = (
    Law(
        "losses_and_gains_cancel",
        "What one word of the vocabulary loses others gain: over all words the differences sum to 0.",
        _losses_and_gains_cancel,
        witness="size_of_the_change",
    ),
)


def _flat(case: Case) -> Case:
    """Return the case with one score for all masks and words."""
    return case.having(scores=np.full_like(case.arrays["scores"], 0.75))


def _equal_scores_give_equal_saliency(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    flat = _flat(case)
    saliency = probe(flat)["out"]
    touched = (~case.arrays["masks"]).any(axis=0)
    yield Claim(saliency, 0.75 * np.broadcast_to(touched, saliency.shape), probe.slack(flat)["out"])


def _masks_twice_change_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    twice = {name: np.concatenate([case.arrays[name]] * 2) for name in ("scores", "masks")}
    yield from _both(probe, case, case.having(**twice))


def _scores_are_a_factor(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(scores=case.arrays["scores"] / 2.0)
    yield Claim(probe(case)["out"], 2.0 * probe(half)["out"], probe.slack(case)["out"] + 2.0 * probe.slack(half)["out"])


def _what_is_kept_is_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept = case.having(masks=np.ones_like(case.arrays["masks"]))
    saliency = probe(kept)["out"]
    yield Claim(saliency, np.zeros_like(saliency), 0.0)


def _words_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["scores"].shape[1])[::-1]
    turned = case.having(scores=case.arrays["scores"][:, order])
    slack = probe.slack(case)["out"][order] + probe.slack(turned)["out"]
    yield Claim(probe(turned)["out"], probe(case)["out"][order], slack)


def _future_words_are_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    saliency = probe(case)["out"]
    I = len(saliency)
    future = np.triu(np.ones((I, I)), k=1).reshape(I, I, *(1,) * (saliency.ndim - 2))
    yield Claim(saliency * future, np.zeros_like(saliency), 0.0)


def _not_causal(case: Case) -> bool:
    return not case.options.get("causal") and bool(case.arrays["scores"].size)


ACCUMULATE_LAWS = (
    Law(
        "equal_scores_give_equal_saliency",
        "If all scores are equal, every element that was ever hidden has that score as its saliency.",
        _equal_scores_give_equal_saliency,
        _not_causal,
        witness="divided_by_all_masks",
    ),
    Law(
        "masks_twice_change_nothing",
        "Having every mask and its scores twice changes nothing.",
        _masks_twice_change_nothing,
        witness="not_divided",
    ),
    Law(
        "scores_are_a_factor", "Halving all scores halves the map.", _scores_are_a_factor, witness="weighted_by_scores"
    ),
    Law(
        "what_is_kept_is_zero",
        "If no mask hides anything, the map is 0.",
        _what_is_kept_is_zero,
        witness="kept_for_hidden",
    ),
    Law(
        "words_may_be_permuted",
        "Permuting the words permutes the rows of the map.",
        _words_may_be_permuted,
        _not_causal,
        witness="causal_unasked",
    ),
    Law(
        "future_words_are_zero",
        "In the decoder map a word has nothing from later words.",
        _future_words_are_zero,
        lambda case: bool(case.options.get("causal")),
        witness="all_words_seen",
    ),
)


def _scale_is_forgotten(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    maps = {name: 2.0 * case.arrays[name] for name in ("saliency", "decoder_map")}
    yield from _both(probe, case, case.having(**maps))


def _rows_are_standard(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out, slack = probe(case)["saliency"], probe.slack(case)["saliency"]
    rows = out.reshape(len(out), -1)
    n = rows.shape[1]
    off = np.sqrt(np.sum(slack.reshape(len(out), -1) ** 2, axis=1))  # L2 error of a whole row
    yield Claim(rows.sum(axis=1)[:, None], np.zeros((len(rows), 1)), np.sqrt(n) * off, "sums")
    varies = np.ptp(case.arrays["saliency"].reshape(len(rows), -1), axis=1) > 0
    squares = np.sum(rows**2, axis=1)[:, None]
    yield Claim(squares, (n - 1.0) * varies[:, None], 2.0 * np.sqrt(n) * off + off**2, "squares")


def _invisible_words_are_zero(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    I = len(case.arrays["saliency"])
    future = np.triu(np.ones((I, I)), k=1).reshape(case.arrays["decoder_map"].shape)
    words = probe(case)["decoder_map"]
    yield Claim(words * future, np.zeros_like(words), 0.0)


def _invisible_words_do_not_count(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    words = case.arrays["decoder_map"]
    I = len(words)
    future = np.triu(np.ones((I, I), dtype=bool), k=1).reshape(words.shape)
    other = case.having(decoder_map=np.where(future, np.round(8.0 * rng.standard_normal(words.shape)), words))
    yield from _both(probe, case, other)


STANDARDISE_LAWS = (
    Law(
        "rows_are_standard",
        "Each word's map has sum 0 and sum of squares n − 1, or is 0.",
        _rows_are_standard,
        witness="population_deviation",
    ),
    Law("scale_is_forgotten", "Doubling both maps changes nothing.", _scale_is_forgotten, witness="variance_divides"),
    Law(
        "invisible_words_do_not_count",
        "What the decoder map holds of later words changes nothing.",
        _invisible_words_do_not_count,
        lambda case: len(case.arrays["saliency"]) > 1,
        witness="invisible_words_counted",
    ),
    Law(
        "invisible_words_are_zero",
        "The standardised decoder map has nothing of later words.",
        _invisible_words_are_zero,
        lambda case: len(case.arrays["saliency"]) > 1,
        witness="zeros_counted",
    ),
)


def _both_ends_are_reached(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out, slack = probe(case), probe.slack(case)
    I = len(out["saliency"])
    rows, words = out["saliency"].reshape(I, -1), out["decoder_map"].reshape(I, I)
    raw, raw_words = case.arrays["saliency"].reshape(I, -1), case.arrays["decoder_map"].reshape(I, I)
    off = np.max([np.max(s.reshape(I, -1), axis=1) for s in slack.values()], axis=0)
    for i in range(I):
        both = np.concatenate([rows[i], words[i, : i + 1]])
        if np.ptp(np.concatenate([raw[i], raw_words[i, : i + 1]])) > 0:
            yield Claim(np.array([both.min(), both.max()]), np.array([0.0, 1.0]), 2.0 * off[i], f"word {i}")


MIN_MAX_LAWS = (
    Law(
        "both_ends_are_reached",
        "The least of a word's visible entries is 0 and the largest 1.",
        _both_ends_are_reached,
        witness="each_map_by_itself",
    ),
    Law(
        "invisible_words_do_not_count",
        "What the decoder map holds of later words changes nothing.",
        _invisible_words_do_not_count,
        lambda case: len(case.arrays["saliency"]) > 1,
        witness="all_words_shown",
    ),
)


def _layers(case: Case) -> list[int]:
    layers = case.options.get("layers")
    count = case.arrays["attention"].shape[-4]
    return list(range(count)) if layers is None else [layers] if isinstance(layers, int) else list(layers)


def _layers_are_averaged(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    each = [case.having(layers=[layer]) for layer in _layers(case)]
    mean = np.mean([probe(one)["out"] for one in each], axis=0)
    slack = sum(probe.slack(one)["out"] for one in each) / len(each) + probe.slack(case)["out"]
    yield Claim(probe(case)["out"], mean, slack)


def _one_head_is_that_head(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    attention = case.arrays["attention"]
    layer, head = (int(rng.integers(count)) for count in attention.shape[-4:-2])
    one = case.having(layers=layer, heads=[head])
    yield Claim(probe(one)["out"], attention[..., layer, head, :, :], probe.slack(one)["out"])


def _sums_are_kept(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.without("layers", "heads")
    out = probe(whole)["out"]
    sums = case.arrays["attention"].sum(axis=-1).mean(axis=(-3, -2))
    yield Claim(out.sum(axis=-1)[..., None], sums[..., None], out.shape[-1] ** 0.5 * probe.slack(whole)["out"])


AGGREGATE_LAWS = (
    Law(
        "layers_are_averaged",
        "The aggregate is the mean of those of its layers.",
        _layers_are_averaged,
        witness="largest_over_heads",
    ),
    Law(
        "one_head_is_that_head",
        "The aggregate over one head is that head.",
        _one_head_is_that_head,
        witness="choice_ignored",
    ),
    Law(
        "sums_are_kept",
        "The rows sum to what those of the heads sum to on average, 1 for attention.",
        _sums_are_kept,
        witness="summed_over_heads",
    ),
)


def _monotone(x: np.ndarray) -> np.ndarray:
    """Grow faster above zero: increasing, and exact in every dtype."""
    return np.where(x > 0, 2.0 * x, 0.5 * x)


def _maximum_commutes(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    warped = case.having(saliency=_monotone(case.arrays["saliency"]))
    yield Claim(probe(warped)["out"], _monotone(probe(case)["out"]), 0.0)


def _as_many_windows_as_frames(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    frames = case.arrays["saliency"][..., :1]
    whole = case.having(saliency=frames, n_frames=frames.shape[-2])
    yield Claim(probe(whole)["out"], frames[..., 0], probe.slack(whole)["out"])


def _one_window_has_all(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    once = case.having(n_frames=1)
    yield Claim(probe(case)["out"].max(axis=-1)[..., None], probe(once)["out"], 0.0)


def _by_maximum(case: Case) -> bool:
    return bool(case.options.get("how", "max") == "max")


POOL_LAWS = (
    Law(
        "maximum_commutes",
        "An increasing function may be applied before or after pooling by maximum.",
        _maximum_commutes,
        _by_maximum,
        witness="mean_for_maximum",
    ),
    Law(
        "as_many_windows_as_frames",
        "With as many windows as frames and one band, pooling changes nothing.",
        _as_many_windows_as_frames,
        witness="maximum_of_sizes",
    ),
    Law(
        "one_window_has_all",
        "The largest of all windows is the largest of all elements: none is lost.",
        _one_window_has_all,
        _by_maximum,
        witness="tail_dropped",
    ),
)


def _rho(probe: Probe, case: Case) -> tuple[np.ndarray, Any]:
    """Return ρ of each sentence with an axis of one behind, so that the slack is one of sentences."""
    out, slack = probe(case)["out"], probe.slack(case)["out"]
    return out[..., None], np.broadcast_to(slack if out.ndim < 1 else slack[..., None], out.shape)


def _rows_may_be_scaled(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    scaled = {}
    for name in ("a", "b"):
        array = case.arrays[name]
        scaled[name] = array * np.exp2(rng.integers(-1, 3, size=(*array.shape[:-1], 1)))
    (left, slack), (right, more) = _rho(probe, case), _rho(probe, case.having(**scaled))
    yield Claim(left, right, slack + more)


def _constants_may_be_added(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    near = {name: np.round(4.0 * np.tanh(case.arrays[name])) for name in ("a", "b")}  # whole numbers: sums are exact
    far = {name: array + rng.integers(4, 9, size=(*array.shape[:-1], 1)) for name, array in near.items()}
    (left, slack), (right, more) = _rho(probe, case.having(**near)), _rho(probe, case.having(**far))
    yield Claim(left, right, slack + more)


def _itself_and_its_negative(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a = case.arrays["a"]
    varies = (np.ptp(a, axis=-1) > 0).any(axis=-1)[..., None]
    for sign, name in ((1.0, "itself"), (-1.0, "its negative")):
        rho, slack = _rho(probe, case.having(b=sign * a))
        yield Claim(rho, sign * varies, slack, name)


def _words_are_averaged(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a, b = case.arrays["a"], case.arrays["b"]
    whole, slack = _rho(probe, case)
    words = [_rho(probe, case.having(a=a[..., i : i + 1, :], b=b[..., i : i + 1, :])) for i in range(a.shape[-2])]
    mean = np.mean([rho for rho, _ in words], axis=0)
    yield Claim(whole, mean, slack + sum(more for _, more in words) / len(words))


def _all_rows_vary(case: Case) -> bool:
    return all(bool(np.all(np.ptp(case.arrays[name], axis=-1) > 0)) for name in ("a", "b"))


PEARSON_LAWS = (
    Law(
        "rows_may_be_scaled",
        "Multiplying each row of either map by a positive number changes nothing.",
        _rows_may_be_scaled,
        witness="rows_only_centred",
    ),
    Law(
        "constants_may_be_added",
        "Adding a constant to each row of either map changes nothing.",
        _constants_may_be_added,
        witness="rows_only_scaled",
    ),
    Law(
        "itself_and_its_negative",
        "A map that varies has ρ = 1 with itself and −1 with its negative.",
        _itself_and_its_negative,
        witness="mean_of_products",
    ),
    Law(
        "words_are_averaged",
        "If no row is constant, ρ is the mean of the words' own correlations.",
        _words_are_averaged,
        _all_rows_vary,
        witness="frames_levelled",
    ),
)


def _a_map_has_itself(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    a = case.arrays["attention"]
    share, slack = _rho(probe, case.having(saliency=a))
    varies = np.ptp(a, axis=-1) > 0
    expected = varies.mean(axis=-1) if case.options["how"] == "overlap" else varies.any(axis=-1)
    yield Claim(share, 1.0 * expected[..., None], slack)


def _squares_are_not_negative(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    against = case.having(saliency=-case.arrays["attention"])
    (left, slack), (right, more) = _rho(probe, against), _rho(probe, case.having(saliency=case.arrays["attention"]))
    yield Claim(left, right, slack + more)


SHARE_LAWS = (
    Law(
        "a_map_has_itself",
        "A map whose rows all vary accounts for itself in full.",
        _a_map_has_itself,
        witness="summed_over_words",
    ),
    Law(
        "squares_forget_the_sign",
        "A map accounts for its negative as it does for itself, by the square.",
        _squares_are_not_negative,
        lambda case: case.options["how"] == "squared",
        witness="sign_kept",
    ),
)


def _counts_are_rounded_down(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept = probe(case)["out"]
    N, step = kept[0].size, case.options.get("step", 5)
    deleted = N * np.arange(0, 101, step) // 100
    expected = deleted if case.options.get("insertion") else N - deleted
    yield Claim(kept.sum(axis=(1, 2)).astype(float)[:, None], 1.0 * expected[:, None], 0.0)


def _insertion_is_the_complement(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    kept, gone = (probe(case.having(insertion=on))["out"].astype(float) for on in (True, False))
    yield Claim(kept + gone, np.ones_like(kept), 0.0)


def _ranked(case: Case, rng: np.random.Generator) -> Case:
    """Return the case with one word whose elements are distinct whole numbers."""
    T, F = case.arrays["saliency"].shape[1:]
    return case.having(saliency=1.0 * (rng.permutation(T * F).reshape(1, T, F) - T * F // 2))


def _the_salient_go_first(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    ranked = _ranked(case, rng).having(insertion=False)
    kept, order = probe(ranked)["out"].astype(float), ranked.arrays["saliency"][0]
    left = np.sum(kept, axis=(1, 2))  # what is kept are the lowest
    expected = 1.0 * (order + order.size // 2 < left[:, None, None])
    yield Claim(kept, expected, 0.0)


DELETE_LAWS = (
    Law(
        "counts_are_rounded_down",
        "At q percent ⌊TF q/100⌋ elements are deleted, or kept alone.",
        _counts_are_rounded_down,
        witness="rounded_up",
    ),
    Law(
        "insertion_is_the_complement",
        "Insertion keeps what deletion deletes.",
        _insertion_is_the_complement,
        witness="insertion_deletes",
    ),
    Law(
        "the_salient_go_first",
        "Whatever is deleted is at least as salient as what stays.",
        _the_salient_go_first,
        witness="high_to_low",
    ),
)
