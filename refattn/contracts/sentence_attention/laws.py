"""What holds between results of sentence attention, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.sentence_attention import SentenceAttentionWeights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["BLOCK_LAWS", "HEAD_LAWS", "MERGE_LAWS", "SQUEEZE_LAWS"]


def _per_map(slack: np.ndarray) -> np.ndarray:
    """Return the error of a whole map for each of its rows: for laws that move pixels between rows."""
    return np.broadcast_to(np.linalg.norm(slack, axis=-1, keepdims=True), slack.shape)


def _both(probe: Probe, left: Case, right: Case) -> Claim:
    """Claim that two calls give the same."""
    return Claim(probe(left)["out"], probe(right)["out"], probe.slack(left)["out"] + probe.slack(right)["out"])


def _weights(case: Case, **changes: np.ndarray) -> Case:
    return case.having(weights=case.arrays["weights"]._replace(**changes))


def _softmax(case: Case) -> bool:
    return bool(case.options.get("activation", "softmax") == "softmax")


def _full(case: Case) -> bool:
    return bool(case.arrays["features"].size)


def _one_unit_is_shared(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ones = case.having(features=np.ones((*case.arrays["features"].shape[:2], 1, 1)))
    gate, slack = probe(ones)["out"][..., 0], probe.slack(ones)["out"]  # (B, C, 1), (B, C, 1)
    yield Claim(np.maximum(gate, 0.0), gate, 0.0, "no gate is negative")
    total = np.sum(gate, axis=1)
    yield Claim(total, np.ones_like(total), np.sum(slack, axis=(1, 2)), "the gates sum to one")


def _a_pixel_is_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    features = case.arrays["features"]
    factor = rng.choice([-2.0, 0.0, 1.0], size=features.shape[2:])
    changed = case.having(features=factor * features)
    slack = probe.slack(changed)["out"] + 2.0 * probe.slack(case)["out"]
    yield Claim(probe(changed)["out"], factor * probe(case)["out"], slack)


def _channels_have_no_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["features"].shape[1])
    w = case.arrays["weights"]
    moved = _weights(case, w2=w.w2[:, order], b2=w.b2[order]).having(features=case.arrays["features"][:, order])
    slack = probe.slack(moved)["out"] + probe.slack(case)["out"][:, order]
    yield Claim(probe(moved)["out"], probe(case)["out"][:, order], slack)


def _loud_sentences_say_no_more(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.having(eps=0.0)
    w = case.arrays["weights"]
    yield _both(probe, plain, _weights(plain, w1=2.0 * w.w1, b1=2.0 * w.b1))


def _a_common_bias_is_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    zero = np.zeros_like(case.arrays["weights"].b2)
    yield _both(probe, _weights(case, b2=zero), _weights(case, b2=zero + 1.5))


def _no_preference_is_an_even_share(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    even = _weights(case, w2=np.zeros_like(w.w2), b2=np.zeros_like(w.b2))
    features = even.arrays["features"]
    share = 1.0 / features.shape[1] if _softmax(case) else 0.5
    yield Claim(probe(even)["out"], share * features, probe.slack(even)["out"])


def _indifference_halves(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    even = _weights(case, w2=np.zeros_like(w.w2), b2=np.zeros_like(w.b2))
    yield Claim(probe(even)["out"], even.arrays["features"] / 2.0, probe.slack(even)["out"])


def _pixels_have_no_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    shape = case.arrays["features"].shape
    order = rng.permutation(shape[2] * shape[3])

    def moved(x: np.ndarray) -> Any:
        return x.reshape(*shape[:2], shape[2] * shape[3])[..., order].reshape(shape)

    shuffled = case.having(features=moved(case.arrays["features"]))
    slack = _per_map(probe.slack(shuffled)["out"]) + _per_map(probe.slack(case)["out"])
    yield Claim(probe(shuffled)["out"], moved(probe(case)["out"]), slack)


def _four_switches(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    # maps of equal pixels: their means are exact, and can stand as a sentence
    means = case.arrays["features"][:, :, 0, 0]
    even = case.having(features=np.broadcast_to(means[:, :, None, None], case.arrays["features"].shape).copy())
    w = case.arrays["weights"]
    ones = np.ones_like(w.b1)
    block = Case(
        "sentence_attention",
        {**even.arrays, "text": means, "weights": SentenceAttentionWeights(w.w1, w.b1, ones, 0.0 * ones, w.w2, w.b2)},
        {"activation": "sigmoid", "layer_norm": False},
        case.dtype,
        case.label,
    )
    yield _both(probe, even, block)


def _merged_is_not_negative(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    out = probe(case)["out"]
    yield Claim(np.maximum(out, 0.0), out)


def _silent_coarse_map_adds_nothing(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    silent = _weights(case, **{name: 0.0 * getattr(w, name) for name in ("w", "bn_shift", "bn_mean")})
    yield Claim(probe(silent)["out"], np.maximum(case.arrays["high"], 0.0), probe.slack(silent)["out"])


def _an_even_map_has_no_size(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    low = case.arrays["low"]
    pixel = low[:, :, :1, :1]
    yield _both(probe, case.having(low=np.broadcast_to(pixel, low.shape).copy()), case.having(low=pixel))


def _upside_down(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(**{name: np.flip(case.arrays[name], axis=(2, 3)).copy() for name in ("low", "high")})
    slack = _per_map(probe.slack(turned)["out"]) + _per_map(probe.slack(case)["out"])
    yield Claim(probe(turned)["out"], np.flip(probe(case)["out"], axis=(2, 3)), slack)


def _silent_merges_leave_the_finest(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    silent = tuple(
        w._replace(**{name: 0.0 * getattr(w, name) for name in ("w", "bn_shift", "bn_mean")})
        for w in case.arrays["merges"]
    )
    finest = np.abs(case.arrays["features"][0])  # so that the ReLU of the merge does nothing
    whole = case.having(features=(finest, *case.arrays["features"][1:]), merges=silent)
    alone = case.having(features=(finest,), gates=case.arrays["gates"][:1]).without("merges")
    yield _both(probe, whole, Case(alone.entry, {**alone.arrays, "merges": ()}, alone.options, case.dtype, case.label))


def _bias_moves_every_logit(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    bias = case.arrays["classifier_b"]
    none = case.having(classifier_b=np.zeros_like(bias))
    slack = probe.slack(none)["out"] + probe.slack(case)["out"]
    yield Claim(probe(case)["out"], probe(none)["out"] + bias[:, None, None], slack)


BLOCK_LAWS = (
    Law(
        "one_unit_is_shared",
        "Under softmax no gate is negative, and the gates of all channels sum to one.",
        _one_unit_is_shared,
        lambda case: _softmax(case) and _full(case),
        witness="opens_each_alone",
    ),
    Law(
        "a_pixel_is_alone",
        "The block is linear, and a pixel is alone: multiplying it multiplies its own output and no other.",
        _a_pixel_is_alone,
        _full,
        witness="looks_at_picture",
    ),
    Law(
        "channels_have_no_order",
        "Permuting the channels together with the columns of W2 and b2 permutes the output.",
        _channels_have_no_order,
        lambda case: _full(case) and case.arrays["features"].shape[1] > 1,
        witness="shares_by_halves",
    ),
    Law(
        "loud_sentences_say_no_more",
        "Without eps, doubling the hidden units before the LayerNorm changes no gate.",
        _loud_sentences_say_no_more,
        lambda case: _full(case) and bool(case.options.get("layer_norm", True)),
        witness="leaves_as_it_is",
    ),
    Law(
        "a_common_bias_is_nothing",
        "Under softmax a constant that is added to all of b2 changes no gate.",
        _a_common_bias_is_nothing,
        lambda case: _softmax(case) and _full(case),
        witness="opens_each_alone",
    ),
    Law(
        "no_preference_is_an_even_share",
        "With W2 = 0 and b2 = 0 each channel is multiplied by 1/C, or by one half under sigmoid.",
        _no_preference_is_an_even_share,
        _full,
        witness="shares_nothing",
    ),
)
SQUEEZE_LAWS = (
    Law(
        "indifference_halves",
        "With W2 = 0 and b2 = 0 squeeze-and-excitation halves its input.",
        _indifference_halves,
        _full,
        witness="softly_shared",
    ),
    Law(
        "pixels_have_no_order",
        "Permuting the pixels permutes the output of squeeze-and-excitation.",
        _pixels_have_no_order,
        lambda case: _full(case) and case.arrays["features"][0, 0].size > 1,
        witness="takes_first_pixel",
    ),
    Law(
        "four_switches",
        "Squeeze-and-excitation is the sentence attention block that is given the means of the channels, a sigmoid and "
        "no LayerNorm.",
        _four_switches,
        _full,
        needs=("sentence_attention",),
        witness="stays_linear",
    ),
)
MERGE_LAWS = (
    Law(
        "merged_is_not_negative",
        "No merged map is negative anywhere.",
        _merged_is_not_negative,
        witness="cuts_coarse_only",
    ),
    Law(
        "silent_coarse_map_adds_nothing",
        "With w = 0, bn_shift = 0 and bn_mean = 0 the result is the ReLU of the finer map.",
        _silent_coarse_map_adds_nothing,
        witness="averages",
    ),
    Law(
        "an_even_map_has_no_size",
        "A coarse map of equal pixels adds the same as one of them.",
        _an_even_map_has_no_size,
        lambda case: case.arrays["low"][:1, :1].size > 1,
        witness="fades_at_border",
    ),
    Law(
        "upside_down",
        "Turning both maps by half a turn turns the result.",
        _upside_down,
        lambda case: case.arrays["low"][:1, :1].size > 1,
        witness="without_half_pixels",
    ),
)
HEAD_LAWS = (
    Law(
        "silent_merges_leave_the_finest",
        "If no merge says anything, a head of several scales is the head of its finest scale.",
        _silent_merges_leave_the_finest,
        lambda case: len(case.arrays["features"]) > 1,
        witness="head_averages",
    ),
    Law(
        "bias_moves_every_logit",
        "The classifier's bias is added to every logit of its class.",
        _bias_moves_every_logit,
        lambda case: bool(case.arrays["text"].size),
        witness="answers_by_probability",
    ),
)
