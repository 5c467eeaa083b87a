"""What every implementation of FIT obeys, stated between its own results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law
from refattn.layers.fit_decode import fit_ar_init_cache
from refattn.primitives.norms import layer_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Outputs, Probe

__all__ = ["AR_LAWS", "CROSS_LAWS", "DENOISER_LAWS", "ENCODER_LAWS", "MASK_LAWS", "SHIFT_LAWS"]

PATHS = 4.0  # two ways to one row, each with its own rounding of all that came before


def _having(case: Case, **changes: Any) -> Case:
    """Return the case with parts of its weights replaced."""
    return case.having(weights=case.arrays["weights"]._replace(**changes))


def _both(left: Outputs, right: Outputs, slack: Outputs, *names: str) -> Iterator[Claim]:
    for name in names:
        yield Claim(left[name], right[name], 2.0 * slack[name], name)


def _causal(case: Case) -> bool:
    return bool(case.options.get("mask", "none") == "causal")


def _groups(case: Case) -> int:
    return len(case.arrays["weights"].latents)


def _groups_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    E = case.arrays["weights"].latents
    alike = _having(case, latents=np.repeat(E[:1], len(E), axis=0))
    order = rng.permutation(len(E))[::-1]
    moved = alike.having(**{k: v[:, order] for k, v in alike.arrays.items() if k in ("x", "extra")})
    left = {name: value[:, order] for name, value in probe(alike).items()}
    slack = {name: value[:, order] for name, value in probe.slack(alike).items()}
    yield from _both(left, probe(moved), slack, "tokens", "latents")


def _tokens_may_be_permuted(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    n = case.arrays["x"].shape[2]
    flat = _having(case, x_positions=np.zeros_like(case.arrays["weights"].x_positions))
    order = rng.permutation(n)[::-1]
    left, slack = probe(flat), probe.slack(flat)
    right = probe(flat.having(x=flat.arrays["x"][:, :, order]))
    extra = left["tokens"].shape[2] - n
    order = np.concatenate([np.arange(extra), extra + order])
    yield Claim(left["tokens"][:, :, order], right["tokens"], 2.0 * slack["tokens"][:, :, order], "tokens follow")
    yield Claim(left["latents"], right["latents"], 2.0 * slack["latents"], "latents stay")


def _latents_may_be_permuted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    left, slack = probe(case), probe.slack(case)
    right = probe(_having(case, latents=case.arrays["weights"].latents[:, ::-1].copy()))
    yield Claim(left["tokens"], right["tokens"], 2.0 * slack["tokens"], "tokens stay")
    yield Claim(left["latents"][:, :, ::-1], right["latents"], 2.0 * slack["latents"][:, :, ::-1], "latents follow")


def _later_groups_are_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    x = case.arrays["x"]
    u = int(rng.integers(1, x.shape[1]))
    changed = np.concatenate([x[:, :u], -0.5 * x[:, u:] + 1.0], axis=1)
    left, right, slack = probe(case), probe(case.having(x=changed)), probe.slack(case)
    for name in ("tokens", "latents"):
        yield Claim(left[name][:, :u], right[name][:, :u], 2.0 * slack[name][:, :u], f"{name} of groups before {u}")


def _untouched_latents_are_learned_ones(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    found = probe(case)["latents"]
    expected = np.broadcast_to(layer_norm(w.latents, *w.latent_norm), found.shape)
    yield Claim(found, expected, probe.slack(case)["latents"])


def _silent(case: Case) -> bool:
    return not any(stage.global_layers for stage in case.arrays["weights"].stages)


ENCODER_LAWS = (
    Law(
        "groups_may_be_permuted",
        "Without a mask and with equal latents to begin with, permuting groups permutes both outputs.",
        _groups_may_be_permuted,
        lambda case: not _causal(case) and _groups(case) > 1,
        witness="always_causal",
    ),
    Law(
        "tokens_may_be_permuted",
        "Without positions, permuting the tokens of every group permutes their outputs and leaves the latents.",
        _tokens_may_be_permuted,
        lambda case: case.arrays["x"].shape[2] > 1,
        witness="causal_inside",
    ),
    Law(
        "latents_may_be_permuted",
        "Permuting the first latents of every group permutes its latents in the end and leaves the tokens.",
        _latents_may_be_permuted,
        lambda case: case.arrays["weights"].latents.shape[1] > 1,
        witness="causal_by_latent",
    ),
    Law(
        "later_groups_are_unseen",
        "With the causal mask, changing a group changes no group before it.",
        _later_groups_are_unseen,
        lambda case: _causal(case) and _groups(case) > 1,
        witness="turned_round",
    ),
    Law(
        "untouched_latents_are_learned_ones",
        "Without global layers the latents that come out are the normalised ones that went in.",
        _untouched_latents_are_learned_ones,
        _silent,
        witness="latents_unnormalised",
    ),
)


def _the_future_is_unseen(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    ids = case.arrays["ids"]
    B, t, n = ids.shape
    p = int(rng.integers(t * n))
    changed = ids.reshape(B, t * n).copy()
    changed[:, p:] = (changed[:, p:] + 1) % len(case.arrays["weights"].embedding)
    left, right = (probe(c)["logits"] for c in (case, case.having(ids=changed.reshape(ids.shape))))
    slack = 2.0 * probe.slack(case)["logits"].reshape(B, t * n)
    V = left.shape[-1]
    left, right = left.reshape(B, t * n, V), right.reshape(B, t * n, V)
    yield Claim(left[:, :p], right[:, :p], slack[:, :p], f"tokens before {p}")


def _the_first_group_knows_no_latents(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    other = _having(case, latents=1.0 - case.arrays["weights"].latents)
    left, right, slack = probe(case)["logits"], probe(other)["logits"], probe.slack(case)["logits"]
    yield Claim(left[:, :1], right[:, :1], 2.0 * slack[:, :1])


def _steps_are_the_whole(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    weights, ids = case.arrays["weights"], case.arrays["ids"]
    B, t, n = ids.shape
    whole, slack = probe(case)["logits"], PATHS * probe.slack(case)["logits"].reshape(B, t * n)
    cache, rows = fit_ar_init_cache(B, weights), []
    for token in ids.reshape(B, t * n).T:
        arrays = {"ids": token.copy(), "cache": cache, "weights": weights}
        logits, cache = probe.raw(Case("fit_ar_step", arrays, {}, case.dtype, case.label))
        rows.append(logits)
    found = np.stack(rows, axis=1)
    yield Claim(found, whole.reshape(found.shape), slack)


AR_LAWS = (
    Law(
        "the_future_is_unseen",
        "Changing a token and all after it changes no logits before it.",
        _the_future_is_unseen,
        lambda case: case.arrays["ids"].size > 0,
        witness="ar_not_shifted",
    ),
    Law(
        "the_first_group_knows_no_latents",
        "The first group reads zeros: its logits do not depend on any latents.",
        _the_first_group_knows_no_latents,
        lambda case: case.arrays["ids"].size > 0,
        witness="ar_first_keeps_its_own",
    ),
    Law(
        "steps_are_the_whole",
        "Token by token with a cache, across groups, gives the logits of the whole sequence.",
        _steps_are_the_whole,
        lambda case: 0 < case.arrays["ids"].shape[1] * case.arrays["ids"].shape[2] <= 12,
        needs=("fit_ar_step",),
        witness="step_position_by_group",
    ),
)


def _conditions_may_be_permuted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = case.having(cond=case.arrays["cond"][:, ::-1].copy())
    yield from _both(probe(case), probe(turned), probe.slack(case), "out", "latents")


def _absent_latents_are_zeros(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    zeros = case.having(latents_prev=np.zeros((len(case.arrays["x"]), *w.latents.shape)))
    yield from _both(probe(case), probe(zeros), probe.slack(case), "out", "latents")


def _returned_latents_move_with_their_stream(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    *_, last = case.arrays["weights"].stages
    layer = last.global_layers[-1]
    moved = layer.mlp._replace(b_2=layer.mlp.b_2 + 0.5)
    last = last._replace(global_layers=(*last.global_layers[:-1], layer._replace(mlp=moved)))
    stages = (*case.arrays["weights"].stages[:-1], last)
    left, right = probe(case)["latents"], probe(_having(case, stages=stages))["latents"]
    yield Claim(left + 0.5, right, 3.0 * probe.slack(case)["latents"])


DENOISER_LAWS = (
    Law(
        "conditions_may_be_permuted",
        "Conditions are a set: their order changes nothing.",
        _conditions_may_be_permuted,
        lambda case: case.arrays["cond"].ndim == 3 and case.arrays["cond"].shape[1] > 1,
        witness="denoiser_time_replaces_a_condition",
    ),
    Law(
        "absent_latents_are_zeros",
        "Without latents of the step before, the denoiser takes zeros.",
        _absent_latents_are_zeros,
        lambda case: "latents_prev" not in case.arrays,
        witness="denoiser_absent_is_skipped",
    ),
    Law(
        "latents_come_back_raw",
        "Adding to the bias of the last global layer adds as much to the latents that come back.",
        _returned_latents_move_with_their_stream,
        lambda case: bool(case.arrays["weights"].stages[-1].global_layers),
        witness="denoiser_latents_standardised",
    ),
)


def _key_biases_cancel(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"].attention
    other = _having(case, attention=w._replace(b_k=w.b_k + 0.5))
    slack = probe.slack(case)["out"] + probe.slack(other)["out"]
    yield Claim(probe(case)["out"], probe(other)["out"], 2.0 * slack)


def _a_source_may_be_doubled(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    e = case.arrays["e"]
    twice = case.having(e=np.concatenate([e[..., ::-1, :], e], axis=-2))
    slack = probe.slack(case)["out"] + probe.slack(twice)["out"]
    yield Claim(probe(case)["out"], probe(twice)["out"], 2.0 * slack)


def _the_output_bias_is_added(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"].attention
    a = case.arrays["a"]
    quiet = _having(case, attention=w._replace(w_o=np.zeros_like(w.w_o)))
    yield Claim(probe(quiet)["out"], a + w.b_o, 2.0 * probe.slack(quiet)["out"])


CROSS_LAWS = (
    Law(
        "key_biases_cancel",
        "A bias on the keys adds one number to all scores of a row, and the softmax forgets it.",
        _key_biases_cancel,
        witness="cross_softmax_plus_one",
    ),
    Law(
        "a_source_may_be_doubled",
        "A source that holds every token twice, in another order, says the same.",
        _a_source_may_be_doubled,
        witness="cross_softmax_plus_one",
    ),
    Law(
        "the_stream_passes",
        "With an output map of zeros the layer adds its bias to the stream and nothing else.",
        _the_output_bias_is_added,
        lambda case: case.arrays["weights"].mlp is None,
        witness="cross_stream_replaced",
    ),
)


def _pairs_are_counted(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    t, m = case.options["num_groups"], case.options["latents_per_group"]
    yield Claim(probe(case)["out"].sum(), np.array(m * m * t * (t + 1) // 2), 0.0)


def _the_past_is_seen(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    seen = probe(case)["out"].astype(float)
    yield Claim(seen * np.tri(len(seen)), np.tri(len(seen)), 0.0)


MASK_LAWS = (
    Law(
        "pairs_are_counted",
        "The mask allows m² t (t + 1)/2 pairs.",
        _pairs_are_counted,
        witness="mask_causal_by_latent",
    ),
    Law(
        "the_past_is_seen",
        "Every latent sees itself and all before it.",
        _the_past_is_seen,
        witness="mask_turned_round",
    ),
)


def _one_line_moves(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    ids = case.arrays["ids"]
    flat = ids.reshape(len(ids), -1).astype(float)
    moved = probe(case)["out"].astype(float).reshape(flat.shape)
    yield Claim(moved[:, 1:], flat[:, :-1], 0.0, "the rest")
    yield Claim(moved[:, :1], np.full_like(moved[:, :1], case.options.get("start", 0)), 0.0, "the first")


SHIFT_LAWS = (
    Law(
        "one_line_moves",
        "Read as one line, the inputs are the start id and then the targets without the last.",
        _one_line_moves,
        lambda case: case.arrays["ids"].size > 0,
        witness="shift_groups_restart",
    ),
)
