"""What every implementation of PAINT obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.interventions.attention_imbalance import TokenSelection
from refattn.primitives.softmax import softmax

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = [
    "BOOST_LAWS",
    "CLASS_LAWS",
    "GAIN_LAWS",
    "GUIDED_LAWS",
    "MASK_LAWS",
    "PAINT_LAWS",
    "PAI_LAWS",
    "SENSITIVITY_LAWS",
]


def _chosen(case: Case) -> np.ndarray:
    """Return the keys that are boosted."""
    keys: np.ndarray = np.concatenate(case.arrays["selection"]) + case.options["image_start"]
    return keys


def _out(probe: Probe, case: Case) -> np.ndarray:
    return probe(case)["out"]


def _slack(probe: Probe, case: Case) -> np.ndarray:
    return probe.slack(case)["out"]


def _finite(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(np.isinf(x), 0.0, x))


def _has_query(case: Case) -> bool:
    return bool(case.arrays["logits"].shape[-2] > 0)


def _boosts(case: Case) -> bool:
    return _has_query(case) and _chosen(case).size > 0


def _without_strength_nothing_happens(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z = case.arrays["logits"]
    yield Claim(_out(probe, case.having(alpha=0.0, beta=0.0)), z, 0.0, "α = β = 0")
    none = np.zeros(0, dtype=np.int64)
    yield Claim(_out(probe, case.having(selection=TokenSelection(none, none))), z, 0.0, "empty sets")


def _the_rest_is_untouched(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z, out = case.arrays["logits"], _out(probe, case)
    rest = np.ones(z.shape, dtype=bool)
    rest[..., -1:, _chosen(case)] = False
    yield Claim(np.where(rest, out, 0.0), np.where(rest, z, 0.0), 0.0)


def _nothing_is_lowered(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z, out = case.arrays["logits"], _out(probe, case)
    yield Claim(np.maximum(out, z), out, _slack(probe, case))


def _strength_is_a_factor(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z, once, twice = case.arrays["logits"], case.having(alpha=0.5, beta=0.25), case.having(alpha=1.0, beta=0.5)
    z = _finite(z)
    slack = 2 * _slack(probe, once) + _slack(probe, twice)
    yield Claim(_finite(_out(probe, twice)) - z, 2 * (_finite(_out(probe, once)) - z), slack)


def _boosts_compound(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    plain = case.without("head_gain")
    first = plain.having(logits=np.abs(_finite(case.arrays["logits"])), alpha=0.5, beta=0.25)
    second = first.having(logits=_out(probe, first), alpha=0.25, beta=1.0)
    both = first.having(alpha=0.5 + 0.25 + 0.125, beta=0.25 + 1.0 + 0.25)
    slack = 2 * _slack(probe, first) + _slack(probe, second) + _slack(probe, both)
    yield Claim(_out(probe, second), _out(probe, both), slack)


def _mass_grows_with_strength(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    stronger = case.having(alpha=2.0, beta=2.0)
    chosen = _chosen(case)

    def mass(logits: np.ndarray) -> np.ndarray:
        return np.asarray(softmax(logits[..., -1, :])[..., chosen].sum(axis=-1, keepdims=True))

    plain, boosted = mass(case.arrays["logits"]), mass(_out(probe, stronger))
    # the softmax turns an error e of a logit into less than e of the mass
    yield Claim(np.maximum(boosted, plain), boosted, _slack(probe, stronger)[..., -1] + 1e-12)


def _gains_belong_to_heads(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    z = case.arrays["logits"]
    plain = case.without("head_gain")
    heads = z.shape[-3]
    yield Claim(_out(probe, case.having(head_gain=np.ones(heads))), _out(probe, plain), 2 * _slack(probe, plain), "1")
    off = rng.random(heads) < 0.5
    out = _out(probe, case.having(head_gain=np.where(off, 0.0, 1.0)))
    expected = np.where(off[:, None, None], z, _out(probe, plain))
    yield Claim(out, expected, 2 * _slack(probe, plain), "0 or 1")


def _hidden_keys_stay_hidden(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    z = np.array(case.arrays["logits"])
    z[..., _chosen(case)[:1]] = -np.inf
    out = _out(probe, case.having(logits=z))
    yield Claim(out[..., _chosen(case)[:1]], z[..., _chosen(case)[:1]])


PAINT_LAWS = (
    Law(
        "without_strength_nothing_happens",
        "With α = β = 0, or with empty sets, the logits come back as they were.",
        _without_strength_nothing_happens,
        witness="gain_added",
    ),
    Law(
        "the_rest_is_untouched",
        "Earlier queries and keys outside both sets keep their logits, bit for bit.",
        _the_rest_is_untouched,
        witness="every_query",
    ),
    Law("nothing_is_lowered", "No logit falls.", _nothing_is_lowered, witness="multiplied"),
    Law(
        "strength_is_a_factor",
        "Twice α and β, twice the rise.",
        _strength_is_a_factor,
        _boosts,
        witness="boosted_twice",
    ),
    Law(
        "boosts_compound",
        "On logits that are not negative, two boosts are one by α₁ + α₂ + α₁α₂.",
        _boosts_compound,
        _boosts,
        witness="row_shifted_first",
    ),
    Law(
        "mass_grows_with_strength",
        "After the softmax, the boosted tokens have no less mass than before.",
        _mass_grows_with_strength,
        _boosts,
        witness="start_forgotten",
    ),
    Law(
        "gains_belong_to_heads",
        "Gains of 1 are the default, and a gain of 0 leaves its head alone.",
        _gains_belong_to_heads,
        witness="gain_ignored",
    ),
    Law(
        "hidden_keys_stay_hidden",
        "A key whose logit is −∞ is still hidden after the boost.",
        _hidden_keys_stay_hidden,
        _boosts,
        witness="nothing_guarded",
    ),
)


def _pai_is_paint_on_everything(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = TokenSelection(np.arange(case.options["n_image"]), np.zeros(0, dtype=np.int64))
    arrays = {"logits": case.arrays["logits"], "selection": whole}
    options = {"image_start": case.options["image_start"], "alpha": case.options["alpha"]}
    painted = Case("paint_logits", arrays, options, case.dtype, case.label)
    yield Claim(_out(probe, case), _out(probe, painted), 2 * _slack(probe, case))


PAI_LAWS = (
    Law(
        "pai_is_paint_on_everything",
        "PAI is PAINT with every image token local and none a summary.",
        _pai_is_paint_on_everything,
        needs=("paint_logits",),
        witness="pai_end_included",
    ),
)


def _keys_are_boosted_one_by_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    index = case.arrays["index"]
    half = len(index) // 2
    first = case.having(index=index[:half])
    second = case.having(index=index[half:], logits=_out(probe, first))
    yield Claim(_out(probe, second), _out(probe, case), _slack(probe, first) + 2 * _slack(probe, case))


def _size_carries_over(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    smaller = case.having(logits=0.5 * case.arrays["logits"])
    yield Claim(_out(probe, case), 2 * _out(probe, smaller), _slack(probe, case) + 2 * _slack(probe, smaller))


BOOST_LAWS = (
    Law(
        "keys_are_boosted_one_by_one",
        "Boosting half of the keys and then the others is boosting all.",
        _keys_are_boosted_one_by_one,
        lambda case: len(case.arrays["index"]) > 1,
        witness="boost_row_shifted_first",
    ),
    Law(
        "size_carries_over",
        "Logits of half the size give results of half the size.",
        _size_carries_over,
        witness="boost_weights_scaled",
    ),
)


def _everything_has_all_the_mass(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    whole = case.having(image_slice=[0, case.arrays["logits"].shape[-1]])
    s = _out(probe, whole)
    yield Claim(s, np.ones_like(s), _slack(probe, whole))


def _parts_add_up(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    start, stop = case.options["image_slice"]
    middle = int(rng.integers(start, stop + 1))
    parts = [case.having(image_slice=part) for part in ([start, middle], [middle, stop])]
    slack = _slack(probe, case) + sum(_slack(probe, part) for part in parts)
    yield Claim(sum((_out(probe, part) for part in parts), np.zeros(())), _out(probe, case), slack)


SENSITIVITY_LAWS = (
    Law(
        "everything_has_all_the_mass",
        "An image that is the whole sequence has sensitivity 1.",
        _everything_has_all_the_mass,
        lambda case: bool(np.isfinite(case.arrays["logits"][..., -1, :]).any()),
        witness="averaged",
    ),
    Law(
        "parts_add_up",
        "The sensitivities to two parts of an image add up to that of the image.",
        _parts_add_up,
        witness="stop_included",
    ),
)


def _the_best_head_has_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    largest = _out(probe, case).max(axis=-1, keepdims=True)
    yield Claim(largest, np.ones_like(largest), _slack(probe, case))


def _layers_are_apart(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    s = case.arrays["sensitivity"]
    scale = np.where(np.arange(len(s)) % 2, 1.0, 0.5).reshape(-1, *[1] * (s.ndim - 1))
    yield Claim(_out(probe, case.having(sensitivity=scale * s)), _out(probe, case), 2 * _slack(probe, case))


GAIN_LAWS = (
    Law(
        "the_best_head_has_one",
        "The largest gain of a layer is 1, even if no head sees the image.",
        _the_best_head_has_one,
        witness="blind_layers_stay_zero",
    ),
    Law(
        "layers_are_apart",
        "Halving all sensitivities of one layer changes no gain.",
        _layers_are_apart,
        witness="largest_of_all",
    ),
)


def _with_gamma_one_probabilities_come_back(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one = case.having(gamma=1.0)
    total = np.exp(_out(probe, one)).sum(axis=-1, keepdims=True)
    yield Claim(total, np.ones_like(total), 2 * _slack(probe, one))


def _the_best_token_stays(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    best = case.arrays["logits"].argmax(axis=-1)[..., None]
    kept = np.isfinite(np.take_along_axis(_out(probe, case), best, axis=-1)).astype(float)
    yield Claim(kept, np.ones_like(kept))


def _equal_runs_guide_nowhere(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    equal = case.having(uncond_logits=case.arrays["logits"])
    out, s = _out(probe, equal), np.log(softmax(case.arrays["logits"]))
    kept = np.isfinite(out)
    yield Claim(np.where(kept, out, 0.0), np.where(kept, s, 0.0), 2 * _slack(probe, equal.having(gamma=1.0)))


def _gamma_zero_is_the_text_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    none = case.having(gamma=0.0)
    out, u = _out(probe, none), np.log(softmax(case.arrays["uncond_logits"]))
    kept = np.isfinite(out)
    yield Claim(np.where(kept, out, 0.0), np.where(kept, u, 0.0), 2 * _slack(probe, none))


GUIDED_LAWS = (
    Law(
        "with_gamma_one_probabilities_come_back",
        "With γ = 1 the exponentials of the result sum to 1: log-softmax, nothing pruned.",
        _with_gamma_one_probabilities_come_back,
        witness="always_pruned",
    ),
    Law(
        "the_best_token_stays",
        "The most probable token of the run with the image is never pruned.",
        _the_best_token_stays,
        witness="judged_without_image",
    ),
    Law(
        "equal_runs_guide_nowhere",
        "If both runs agree, what is kept has its log-probability, whatever γ.",
        _equal_runs_guide_nowhere,
        witness="left_raw",
    ),
    Law(
        "gamma_zero_is_the_text_alone",
        "With γ = 0 what is kept has its log-probability without the image.",
        _gamma_zero_is_the_text_alone,
        witness="one_too_far",
    ),
)


def _sets(probe: Probe, case: Case) -> dict[str, np.ndarray]:
    return {name: mask.astype(float) for name, mask in probe(case).items()}


def _a_token_is_in_one_set(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    masks = _sets(probe, case)
    yield Claim(masks["local"] * masks["summary"], np.zeros_like(masks["local"]))


def _few_tokens_stand_out(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    summary = _sets(probe, case)["summary"]
    count, most = np.array([summary.sum()]), -(-len(summary) // 4)
    yield Claim(np.minimum(count, most), count)


def _tokens_have_no_place(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    vit = case.arrays["vit_attention"]
    order = rng.permutation(vit.shape[-1] - 1)
    tokens = np.concatenate([[0], 1 + order])
    moved = _sets(probe, case.having(vit_attention=vit[:, :, tokens][..., tokens]))
    for name, mask in _sets(probe, case).items():
        yield Claim(moved[name], mask[order], 0.0, name)


def _size_does_not_matter(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = _sets(probe, case.having(vit_attention=0.5 * case.arrays["vit_attention"]))
    for name, mask in _sets(probe, case).items():
        yield Claim(half[name], mask, 0.0, name)


def _ratios_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    everything = _sets(probe, case.having(local_ratio=1.0))
    yield Claim(everything["local"] + everything["summary"], np.ones_like(everything["local"]), 0.0, "ratio 1")
    nothing = _sets(probe, case.having(local_ratio=0.0, spatial_ratio=0.0))
    yield Claim(nothing["local"], np.zeros_like(nothing["local"]), 0.0, "ratio 0")


MASK_LAWS = (
    Law(
        "a_token_is_in_one_set",
        "No token is both local and summary.",
        _a_token_is_in_one_set,
        witness="masks_summary_stays_local",
    ),
    Law(
        "few_tokens_stand_out",
        "At most a quarter of the tokens, rounded up, are summary tokens.",
        _few_tokens_stand_out,
        witness="masks_beyond_the_median",
    ),
    Law(
        "tokens_have_no_place",
        "Permuting the image tokens permutes the sets.",
        _tokens_have_no_place,
        witness="masks_class_token_counted",
    ),
    Law(
        "size_does_not_matter",
        "Halving all attention weights changes neither set.",
        _size_does_not_matter,
        witness="masks_beyond_a_fixed_share",
    ),
    Law(
        "ratios_count",
        "With ratio 1 every token is in a set; with ratio 0 no token is local.",
        _ratios_count,
        witness="masks_only_where_both_agree",
    ),
)


def _heads_add_up(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    heads = [case.having(vit_weights=head[None]) for head in case.arrays["vit_weights"]]
    slack = _slack(probe, case) + sum(_slack(probe, head) for head in heads)
    yield Claim(_out(probe, case), sum((_out(probe, head) for head in heads), np.zeros(())), slack)


CLASS_LAWS = (
    Law(
        "heads_add_up",
        "The scores of a layer are the sum of the scores of its heads.",
        _heads_add_up,
        witness="averaged_over_heads",
    ),
)
