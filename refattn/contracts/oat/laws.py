"""What holds between results of OAT, whatever the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe

__all__ = ["ENCODE_LAWS", "FORWARD_LAWS", "LOOK_UP_LAWS", "LOSS_LAWS", "POINT_LAWS"]


def _same_rows(probe: Probe, left: Case, right: Case, rows: Any = ...) -> Claim:
    """Claim that two calls give the same, at the rows that are picked from (..., rows, width)."""
    slack = probe.slack(left)["out"] + probe.slack(right)["out"]
    return Claim(probe(left)["out"][rows], probe(right)["out"][rows], slack[rows])


def _objects(case: Case) -> int:
    return int(case.arrays["src_appearance"].shape[-2]) - 1


def _objects_in_any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    n = _objects(case)
    order = np.append(rng.permutation(n), n)
    names = ("src_appearance", "src_coords")
    shuffled = case.having(**{name: case.arrays[name][..., order, :] for name in names})
    slack = probe.slack(case)["out"] + probe.slack(shuffled)["out"]
    yield Claim(probe(shuffled)["out"], probe(case)["out"][..., np.append(order, n + 1)], slack)


def _future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    cut = int(rng.integers(1, case.arrays["tgt_appearance"].shape[-2]))
    names = [name for name in ("tgt_appearance", "tgt_coords") if name in case.arrays]
    early = case.having(**{name: case.arrays[name][:, :cut] for name in names})
    if "tgt_pad_mask" in case.arrays:
        early = early.having(tgt_pad_mask=case.arrays["tgt_pad_mask"][:, :cut])
    slack = probe.slack(case)["out"][..., :cut] + probe.slack(early)["out"]
    yield Claim(probe(case)["out"][..., :cut, :], probe(early)["out"], slack)


def _padding_is_unseen(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    mask = case.arrays["tgt_pad_mask"]
    looks = case.arrays["tgt_appearance"]
    other = case.having(tgt_appearance=np.where(mask[..., None], np.roll(looks, 1, axis=-1) + 1.0, looks))
    yield _same_rows(probe, case, other, ~mask)


def _has_scenes(case: Case) -> bool:
    return bool(case.arrays["src_appearance"].shape[0])


FORWARD_LAWS = (
    Law(
        "objects_in_any_order",
        "Shuffling the objects with their places shuffles their columns, and leaves end and padding.",
        _objects_in_any_order,
        lambda case: _has_scenes(case) and _objects(case) > 1,
        witness="tells_objects_the_time",
    ),
    Law(
        "future_is_unseen",
        "Logits do not depend on later fixations.",
        _future_is_unseen,
        lambda case: _has_scenes(case) and case.arrays["tgt_appearance"].shape[-2] > 1,
        witness="sees_one_step_ahead",
    ),
    Law(
        "padding_is_unseen",
        "What stands at padded places changes no other logit.",
        _padding_is_unseen,
        lambda case: _has_scenes(case) and "tgt_pad_mask" in case.arrays,
        witness="looks_at_padding",
    ),
)


def _tokens_in_any_order(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["tokens"].shape[-2])
    shuffled = case.having(tokens=case.arrays["tokens"][..., order, :])
    slack = probe.slack(case)["out"][..., order] + probe.slack(shuffled)["out"]
    yield Claim(probe(shuffled)["out"], probe(case)["out"][..., order, :], slack)


ENCODE_LAWS = (
    Law(
        "tokens_in_any_order",
        "Shuffled tokens come out as they would have, shuffled.",
        _tokens_in_any_order,
        lambda case: case.arrays["tokens"].size > 0 and case.arrays["tokens"].shape[-2] > 1,
        witness="earlier_tokens_only",
    ),
)


def _bias(case: Case) -> Any:
    return case.arrays["readout_b"] if len(case.arrays["heads"]) > 1 else 0.0


def _padding_is_constant(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    found = probe(case)["out"][..., -1:]
    yield Claim(found, np.zeros_like(found) + _bias(case), 0.0)


def _four_times_d_k_halves(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    wide = case.having(d_k=4 * case.options["d_k"])
    slack = probe.slack(case)["out"] / 2 + probe.slack(wide)["out"]
    yield Claim(probe(wide)["out"], (probe(case)["out"] + _bias(case)) / 2, slack)


def _objects_are_scored_alone(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    e = case.arrays["encoder_out"]
    left = np.sort(rng.permutation(e.shape[-2])[: max(e.shape[-2] // 2, 1)])
    few = case.having(encoder_out=e[..., left, :])
    slack = probe.slack(case)["out"] + probe.slack(few)["out"]
    yield Claim(probe(few)["out"][..., :-1], probe(case)["out"][..., left], slack)


def _points(case: Case) -> bool:
    return bool(case.arrays["encoder_out"].size and case.arrays["decoder_out"].size)


POINT_LAWS = (
    Law(
        "padding_is_constant",
        "The padding logit is the read-out bias, or 0 with one head, whatever is looked at.",
        _padding_is_constant,
        _points,
        witness="padding_without_bias",
    ),
    Law(
        "four_times_d_k_halves",
        "Four times d_k halves all logits less the read-out bias.",
        _four_times_d_k_halves,
        _points,
        witness="divides_by_d_k",
    ),
    Law(
        "objects_are_scored_alone",
        "Taking objects away changes no logit of those that stay.",
        _objects_are_scored_alone,
        lambda case: _points(case) and case.arrays["encoder_out"].shape[-2] > 1,
        witness="normalises_over_objects",
    ),
)


def _nothing_stands_below_the_table(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    coords, P = case.arrays["coords"].copy(), len(case.arrays["table"])
    coords[..., 0] = P
    coords[..., 1:] = 0 if case.arrays["table"].ndim == 4 else P
    found = probe(case.having(coords=coords))["out"]
    yield Claim(found, np.zeros_like(found), 0.0)


def _each_coordinate_has_its_part(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    c = case.arrays["table"].shape[-1]
    whole = case.having(dim=3 * c)
    coords = whole.arrays["coords"].copy()
    coords[..., 1] = coords[..., 1] == 0
    others = np.r_[:c, 2 * c : 3 * c]
    yield Claim(probe(whole.having(coords=coords))["out"][..., others], probe(whole)["out"][..., others], 0.0)


LOOK_UP_LAWS = (
    Law(
        "nothing_stands_below_the_table",
        "A special token that lies below the table has no position.",
        _nothing_stands_below_the_table,
        lambda case: case.arrays["coords"].size > 0,
        witness="last_row_for_special_tokens",
    ),
    Law(
        "each_coordinate_has_its_part",
        "Another column changes neither the row's part of the vector nor the flag's.",
        _each_coordinate_has_its_part,
        lambda case: case.arrays["coords"].size > 0 and case.arrays["table"].ndim == 2,
        witness="one_part_for_row_and_column",
    ),
)


def _level_does_not_matter(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    logits = case.arrays["logits"]
    lifted = case.having(logits=logits + rng.integers(1, 3, size=logits.shape[:-1])[..., None])
    yield Claim(probe(case)["out"], probe(lifted)["out"], probe.slack(case)["out"] + probe.slack(lifted)["out"])


def _padding_does_not_count(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    padded = case.arrays["targets"] == case.options["pad_index"]
    logits = case.arrays["logits"]
    other = case.having(logits=np.where(padded[..., None], logits[..., ::-1], logits))
    yield Claim(probe(case)["out"], probe(other)["out"], probe.slack(case)["out"] + probe.slack(other)["out"])


LOSS_LAWS = (
    Law(
        "level_does_not_matter",
        "Adding a number to all logits of a step changes nothing.",
        _level_does_not_matter,
        witness="each_column_on_its_own",
    ),
    Law(
        "padding_does_not_count",
        "The logits of padded steps do not matter.",
        _padding_does_not_count,
        lambda case: bool((case.arrays["targets"] == case.options["pad_index"]).any()),
        witness="counts_padding",
    ),
)
