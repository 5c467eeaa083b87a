"""What holds between results of a transformer, whatever its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Case, Claim, Law, agree
from refattn.transformer.config import parse_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.conformance.contract import Probe
    from refattn.transformer.weights import BlockWeights, TransformerWeights

__all__ = ["LOGITS_LAWS", "SCORES_LAWS", "STEPS_LAWS"]


def _blocks(weights: TransformerWeights, change: Any) -> TransformerWeights:
    return weights._replace(blocks=tuple(change(block) for block in weights.blocks))


def _long(case: Case) -> bool:
    return bool(case.arrays["ids"].size and case.arrays["ids"].shape[1] > 1 and case.arrays["weights"].blocks)


def _no_look_ahead(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    ids = case.arrays["ids"]
    last = (ids[:, -1:] + rng.integers(1, 11, (len(ids), 1))) % 11
    claim = agree(probe, case, case.having(ids=np.concatenate([ids[:, :-1], last], axis=1)), "logits")
    yield Claim(claim.left[:, :-1], claim.right[:, :-1], claim.slack[:, :-1])


def _rows_are_strangers(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    turned = {name: case.arrays[name][::-1] for name in ("ids", "key_mask") if name in case.arrays}
    if case.arrays.get("positions", np.zeros(1)).ndim == 2:
        turned["positions"] = case.arrays["positions"][::-1]
    there = case.having(**turned)
    yield Claim(probe(there)["logits"][::-1], probe(case)["logits"], _summed(probe, case, there))


def _summed(probe: Probe, case: Case, there: Case) -> Any:
    return probe.slack(case)["logits"] + probe.slack(there)["logits"][::-1]


def _silent(case: Case) -> Case:
    """Return the case with blocks that write nothing."""

    def quiet(block: BlockWeights) -> BlockWeights:
        names = ("W_O", "b_O", "W_out", "b_out")
        return block._replace(**{name: np.zeros_like(getattr(block, name)) for name in names})

    return case.having(weights=_blocks(case.arrays["weights"], quiet))


def _silent_blocks_pass_through(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    silent = _silent(case)
    weights, ids = case.arrays["weights"], case.arrays["ids"]
    x = weights.W_E[ids]
    if weights.W_pos is not None:
        x = x + weights.W_pos[case.arrays.get("positions", np.arange(ids.shape[1]))]
    config = parse_config(case.options["config"])
    centred = x - x.mean(axis=-1, keepdims=True) if config.norm == "layer" else x
    normed = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + config.norm_eps) * weights.lnf_w
    normed = normed if weights.lnf_b is None else normed + weights.lnf_b
    yield Claim(probe(silent)["logits"], normed @ weights.W_U, probe.slack(silent)["logits"])


def _turns(case: Case) -> bool:
    return _long(case) and parse_config(case.options["config"]).rope is not None


def _only_distances_count(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    positions = case.arrays.get("positions", np.arange(case.arrays["ids"].shape[1]))
    yield agree(probe, case, case.having(positions=positions + int(rng.integers(1, 9))), "logits")


def _shares_keys(case: Case) -> bool:
    config = parse_config(case.options["config"])
    return _long(case) and config.n_kv_heads < config.n_heads


def _shared_heads_are_repeated(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    config = parse_config(case.options["config"])
    times = config.n_heads // config.n_kv_heads

    def repeated(block: BlockWeights) -> BlockWeights:
        names = ("W_K", "b_K", "W_V", "b_V")
        return block._replace(**{name: np.repeat(getattr(block, name), times, axis=0) for name in names})

    whole = {**case.options["config"], "num_key_value_heads": config.n_heads}
    yield agree(probe, case, case.having(weights=_blocks(case.arrays["weights"], repeated), config=whole), "logits")


def _slides(case: Case) -> bool:
    return _long(case) and case.options["config"]["model_type"] == "mistral"


def _nothing_beyond_the_windows(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    one = {**case.options["config"], "sliding_window": 1}
    alone = case.having(config=one)
    ids = case.arrays["ids"]
    single = alone.having(ids=ids[:, -1:]).without("key_mask")
    if "positions" in single.arrays:
        single = single.without("positions")
    left, right = probe(alone)["logits"][:, -1:], probe(single)["logits"]
    yield Claim(left, right, probe.slack(alone)["logits"][:, -1:] + probe.slack(single)["logits"])


def _writes(case: Case) -> bool:
    return bool(case.arrays["ids"].size and case.arrays["weights"].blocks)


def _bias_reaches_the_stream(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    """With everything else that is written at zero, each block adds its b_O, exactly."""
    silent = _silent(case)
    step = np.zeros(case.arrays["weights"].W_E.shape[1])
    step[0] = 0.5
    pushed = silent.having(weights=_blocks(silent.arrays["weights"], lambda b: b._replace(b_O=step)))
    count = np.arange(1, len(case.arrays["weights"].blocks) + 1)[:, None, None, None]
    slack = probe.slack(silent)["streams"] + probe.slack(pushed)["streams"]
    yield Claim(probe(pushed)["streams"], probe(silent)["streams"] + count * step, slack)


LOGITS_LAWS = (
    Law(
        "no_look_ahead",
        "A token does not move the logits before it.",
        _no_look_ahead,
        _long,
        witness="next_token_seen",
    ),
    Law(
        "rows_are_strangers",
        "Turning the batch round turns the logits round.",
        _rows_are_strangers,
        lambda case: len(case.arrays["ids"]) > 1,
        witness="first_row_for_all",
    ),
    Law(
        "silent_blocks_pass_through",
        "If no block writes, the logits are the normed embeddings times the unembedding.",
        _silent_blocks_pass_through,
        lambda case: case.arrays["ids"].size > 0,
        witness="last_norm_forgotten",
    ),
    Law(
        "only_distances_count",
        "With rotary positions, shifting all of them moves nothing.",
        _only_distances_count,
        _turns,
        witness="only_queries_turned",
    ),
    Law(
        "shared_heads_are_repeated",
        "Key and value heads that are shared equal ones that are stored once for every query head.",
        _shared_heads_are_repeated,
        _shares_keys,
        witness="heads_tiled",
    ),
    Law(
        "a_window_of_one_is_alone",
        "With a window of one key, the last token's logits are those of the token alone.",
        _nothing_beyond_the_windows,
        _slides,
        witness="one_key_too_many",
    ),
    Law(
        "the_bias_is_written_once",
        "With all other writing at zero, the output bias is what each block adds to the stream.",
        _bias_reaches_the_stream,
        _writes,
        witness="output_bias_forgotten",
    ),
)


def _decodes(case: Case) -> bool:
    return _long(case) and case.arrays["ids"].shape[1] > case.options["prefill"] + 1


def _split_anywhere(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    length = case.arrays["ids"].shape[1]
    for prefill in {1, length} - {case.options["prefill"]}:
        yield agree(probe, case, case.having(prefill=prefill), "out")


def _prompt_alone(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    p = case.options["prefill"]
    short = case.having(ids=case.arrays["ids"][:, :p])
    left, right = probe(case)["out"][:, :p], probe(short)["out"]
    yield Claim(left, right, probe.slack(case)["out"][:, :p] + probe.slack(short)["out"])


STEPS_LAWS = (
    Law(
        "split_anywhere",
        "Where the first call ends does not move the logits: a cache is not an approximation.",
        _split_anywhere,
        _decodes,
        witness="starts_again",
    ),
    Law(
        "decoding_leaves_the_prompt",
        "The logits of the first call are those of the prompt alone.",
        _prompt_alone,
        _decodes,
        witness="whole_text_seen",
    ),
)


def _perfect(case: Case, back: int) -> Case:
    """Return the case with every head looking ``back`` tokens back, or at itself before that."""
    pattern = case.arrays["pattern"]
    t = np.arange(pattern.shape[-1])
    looks = (np.where(t < back, t, t - back)[:, None] == t).astype(float)
    return case.having(pattern=np.broadcast_to(looks, pattern.shape).copy())


def _perfect_heads_score_one(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    n = case.options["n"]
    there = _perfect(case, {"previous": 1, "duplicate": n, "induction": n - 1}[case.options["kind"]])
    out = probe(there)["out"]
    yield Claim(out, np.ones_like(out), probe.slack(there)["out"])


def _linear(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    half = case.having(pattern=0.5 * case.arrays["pattern"])
    yield Claim(probe(half)["out"], 0.5 * probe(case)["out"], probe.slack(half)["out"] + probe.slack(case)["out"])


SCORES_LAWS = (
    Law(
        "perfect_heads_score_one",
        "A head that only ever looks where it should scores 1.",
        _perfect_heads_score_one,
        lambda case: case.arrays["pattern"].size > 0,
        witness="copy_for_successor",
    ),
    Law(
        "linear_in_the_pattern",
        "Half the attention is half the score.",
        _linear,
        lambda case: case.arrays["pattern"].size > 0,
        witness="squared_attention",
    ),
)
