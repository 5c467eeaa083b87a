"""Mistakes that people make with decoder-only transformers, each one step of a plain implementation exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.transformer.plain import running, scoring, stepping
from refattn.primitives.rotary import rope_frequencies
from refattn.transformer.config import parse_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case
    from refattn.transformer.config import TransformerConfig

__all__ = ["LOGITS_BUGS", "SCORES_BUGS", "STEPS_BUGS"]


def _when(rule: Callable[[TransformerConfig], Any], *, tokens: int = 1) -> Callable[[Case], bool]:
    """Whether a case has a row, so many tokens, a block, and a configuration of this kind."""

    def applies(case: Case) -> bool:
        ids, config = case.arrays["ids"], parse_config(case.options["config"])
        return bool(ids.size and ids.shape[1] >= tokens and config.n_layers and rule(config))

    return applies


def one_plus_weight(x: Any, w: Any, eps: float) -> Any:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * (1 + w)


def sample_variance(x: Any, w: Any, b: Any, eps: float) -> Any:
    c = x - np.mean(x, axis=-1, keepdims=True)
    return c / np.sqrt(np.var(x, axis=-1, keepdims=True, ddof=1) + eps) * w + b


def uncentred(x: Any, w: Any, b: Any, eps: float) -> Any:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * w + b


def neighbours_paired(x: Any, r: int) -> tuple[Any, Any]:
    return x[..., 0:r:2], x[..., 1:r:2]


def every_channel_turned(config: Any) -> int:
    return int(config.d_head)


def scaling_ignored(rope: Any, r: int) -> Any:
    return rope_frequencies(r, theta=rope.theta)[0]


def blend_turned_round(rope: Any, r: int) -> Any:
    plain, scaled = (rope_frequencies(r, theta=rope.theta, scaling=s)[0] for s in (None, dict(rope.scaling)))
    slow = plain / dict(rope.scaling)["factor"]
    return plain + slow - scaled


def default_theta(rope: Any, r: int) -> Any:
    return rope_frequencies(r, theta=10000.0, scaling=dict(rope.scaling) or None)[0]


def rotated_then_normed(x: Any, norm: Callable[[Any], Any], rotate: Callable[[Any], Any]) -> Any:
    return norm(rotate(x))


def norm_of_heads_forgotten(x: Any, _norm: Callable[[Any], Any], rotate: Callable[[Any], Any]) -> Any:
    return rotate(x)


def heads_tiled(query_head: int, _heads: int, groups: int) -> int:
    return query_head % groups


def scale_forgotten(_config: Any, _layer: int) -> float:
    return 1.0


def layers_counted_from_two(config: Any, layer: int) -> float:
    return float(config.attn_scale[0] / (layer + 2))


def layer_scale_forgotten(config: Any, _layer: int) -> float:
    return float(config.attn_scale[0])


def itself_hidden(query: Any, key: Any, window: int | None) -> Any:
    near = key > query - (window if window is not None else 10**6)
    return ((key < query) & near) | (key == 0)


def one_key_too_many(query: Any, key: Any, window: int | None) -> Any:
    near = key >= query - (window if window is not None else 10**6)
    return (key <= query) & near


def next_token_seen(query: Any, key: Any, window: int | None) -> Any:
    near = key > query - (window if window is not None else 10**6)
    return (key <= query + 1) & near


def window_everywhere_none(query: Any, key: Any, _window: int | None) -> Any:
    return key <= query


def output_bias_forgotten(written: Any, _bias: Any) -> Any:
    return written


def gate_and_up_exchanged(act: Any, gate: Any, up: Any) -> Any:
    return gate * act(up)


def gate_without_activation(_act: Any, gate: Any, up: Any) -> Any:
    return gate * up


def one_after_the_other(_x: Any, after_attention: Any, _parallel: bool) -> Any:
    return after_attention


def side_by_side(x: Any, _after_attention: Any, _parallel: bool) -> Any:
    return x


def last_norm_forgotten(x: Any, _norm: Callable[[Any], Any], W_U: Any) -> Any:
    return x @ W_U


def places_forgotten(x: Any, _W_pos: Any, _positions: Any) -> Any:
    return x


def first_row_for_all(x: Any, norm: Callable[[Any], Any], W_U: Any) -> Any:
    return norm(np.broadcast_to(x[:1], x.shape)) @ W_U


def only_queries_turned(x: Any, norm: Callable[[Any], Any], _rotate: Callable[[Any], Any]) -> Any:
    return norm(x)


def _rms(config: TransformerConfig) -> bool:
    return config.norm == "rms"


def _layer(config: TransformerConfig) -> bool:
    return config.norm == "layer"


def _rope(config: TransformerConfig) -> bool:
    return config.rope is not None


def _scaled(config: TransformerConfig) -> bool:
    return config.rope is not None and bool(config.rope.scaling)


def _llama3(config: TransformerConfig) -> bool:
    return config.rope is not None and ("type", "llama3") in config.rope.scaling


def _shared(config: TransformerConfig) -> bool:
    return 1 < config.n_kv_heads < config.n_heads


def _partial(config: TransformerConfig) -> bool:
    return config.rope is not None and config.rope.dim < config.d_head


def _pairs(config: TransformerConfig) -> bool:
    return config.rope is not None and config.rope.dim > 2


def _by_layer(config: TransformerConfig) -> bool:
    return len(set(config.attn_scale)) > 1


def _windowed(config: TransformerConfig) -> bool:
    return any(w is not None for w in config.window)


_RESOLVED = ("float64", "float32", "float16")  # bfloat16 is too coarse to show it

_MISTAKES = (
    Mistake(
        "root_mean_square",
        one_plus_weight,
        "The weight of an RMSNorm is read as 1 + w, as Gemma stores it.",
        "Llama, Mistral and Qwen multiply by w itself.",
        _when(_rms),
    ),
    Mistake(
        "standardised",
        sample_variance,
        "LayerNorm divides by the sample variance, d − 1 in place of d.",
        "The variance of LayerNorm is that of the population.",
        _when(_layer),
    ),
    Mistake(
        "standardised",
        uncentred,
        "LayerNorm does not subtract the mean.",
        "LayerNorm centres first; only RMSNorm does without.",
        _when(_layer),
    ),
    Mistake(
        "pairs",
        neighbours_paired,
        "Channels 2i and 2i + 1 rotate as a pair.",
        "These families pair channel i with i + r/2.",
        _when(_pairs, tokens=2),
    ),
    Mistake(
        "rotary_width",
        every_channel_turned,
        "All channels of a head rotate, where only a part should.",
        "Rotate the first r channels, r the rotary share of the head, with frequencies from r.",
        _when(_partial, tokens=2),
    ),
    Mistake(
        "frequencies",
        scaling_ignored,
        "The rule for longer contexts is not applied.",
        "Read rope_parameters, or rope_scaling in older files, and scale the frequencies.",
        _when(_scaled, tokens=2),
    ),
    Mistake(
        "frequencies",
        blend_turned_round,
        "Llama 3 slows the fast pairs down and leaves the slow ones.",
        "Wavelengths beyond the old context are divided by the factor, short ones stay.",
        _when(_llama3, tokens=2),
    ),
    Mistake(
        "frequencies",
        default_theta,
        "θ = 10000 is used whatever the configuration says.",
        "Read rope_theta; version 5 of transformers keeps it in rope_parameters.",
        _when(lambda c: c.rope is not None and c.rope.theta != 10000.0, tokens=2),
        _RESOLVED,
    ),
    Mistake(
        "normed_then_rotated",
        norm_of_heads_forgotten,
        "Queries and keys are not normalised per head.",
        "Qwen3 normalises q and k over the head width before it rotates them.",
        _when(lambda c: c.qk_norm, tokens=2),
    ),
    Mistake(
        "normed_then_rotated",
        rotated_then_normed,
        "Queries and keys are rotated before they are normalised.",
        "Normalise first: the norm's weight is per channel and does not commute with the rotation.",
        _when(lambda c: c.qk_norm, tokens=2),
        _RESOLVED,
    ),
    Mistake(
        "key_head",
        heads_tiled,
        "Key heads are tiled: query head j uses key head j mod G.",
        "Query head j uses key head j // (H/G): each key head serves consecutive query heads.",
        _when(_shared, tokens=2),
    ),
    Mistake(
        "scale",
        scale_forgotten,
        "Scores are not divided by the root of the head width.",
        "Multiply q·k by e^{−1/2}.",
        _when(lambda c: c.d_head > 1, tokens=2),
    ),
    Mistake(
        "scale",
        layers_counted_from_two,
        "The scale by layer starts at 1/2.",
        "Layers count from 0, the factor is 1/(l + 1).",
        _when(_by_layer, tokens=2),
    ),
    Mistake(
        "scale",
        layer_scale_forgotten,
        "Every layer has the scale of the first.",
        "scale_attn_by_inverse_layer_idx divides by l + 1.",
        _when(_by_layer, tokens=2),
    ),
    Mistake(
        "visible",
        itself_hidden,
        "A token does not see itself.",
        "Key u is visible to query t if u ≤ t.",
        _when(lambda _c: True, tokens=3),
    ),
    Mistake(
        "visible",
        one_key_too_many,
        "The sliding window holds one key too many.",
        "A window of w holds w keys, the query's own included: u > t − w.",
        _when(_windowed, tokens=4),
    ),
    Mistake(
        "visible",
        window_everywhere_none,
        "The sliding window is ignored.",
        "Layers with a window hide keys u ≤ t − w.",
        _when(_windowed, tokens=4),
    ),
    Mistake(
        "with_bias",
        output_bias_forgotten,
        "The bias of attention's output is left out.",
        "Add b_O once, after the heads are summed.",
        _when(lambda _c: True),
    ),
    Mistake(
        "hidden_units",
        gate_and_up_exchanged,
        "The activation is on the wrong branch of the gated MLP.",
        "silu(h W_gate) ⊙ h W_up.",
        _when(lambda c: c.gated),
    ),
    Mistake(
        "hidden_units",
        gate_without_activation,
        "The gate has no activation.",
        "silu(h W_gate) ⊙ h W_up.",
        _when(lambda c: c.gated),
    ),
    Mistake(
        "mlp_reads",
        one_after_the_other,
        "A parallel block runs its MLP after attention.",
        "With use_parallel_residual both read the same stream.",
        _when(lambda c: c.parallel_residual),
    ),
    Mistake(
        "mlp_reads",
        side_by_side,
        "A sequential block gives its MLP the stream before attention.",
        "The MLP reads the stream with attention's output added.",
        _when(lambda c: not c.parallel_residual),
    ),
    Mistake(
        "read_out",
        last_norm_forgotten,
        "The stream is read out without the last norm.",
        "logits = Norm_f(x) W_U.",
        _when(lambda _c: True),
    ),
    Mistake(
        "visible",
        next_token_seen,
        "Every query sees the token after it.",
        "Key u is visible to query t if u ≤ t.",
        _when(lambda _c: True, tokens=2),
    ),
    Mistake(
        "read_out",
        first_row_for_all,
        "All rows of the batch are read out from the first.",
        "Each row has its own stream.",
        lambda case: len(case.arrays["ids"]) > 1,
    ),
    Mistake(
        "keys_met",
        only_queries_turned,
        "Queries are rotated, keys are not.",
        "Rotate both: their product then depends on the distance.",
        _when(_rope, tokens=2),
    ),
    Mistake(
        "placed",
        places_forgotten,
        "Learned positions are not added.",
        "GPT-2 adds W_pos[position] to the embedding.",
        _when(lambda c: c.positions == "learned"),
    ),
)
LOGITS_BUGS = tuple(mistake.planted(running) for mistake in _MISTAKES)


def starts_again(_past: int) -> int:
    return 0


def _half_turned(keys: Any) -> Any:
    half = keys.shape[-1] // 2
    return np.concatenate([-keys[..., half:], keys[..., :half]], axis=-1)


def turned_when_stored(keys: Any) -> Any:
    return _half_turned(keys)


def last_key_lost(keys: Any) -> Any:
    return np.concatenate([keys[:, :-1], np.zeros_like(keys[:, -1:])], axis=1)


def first_keys_only(query: Any, key: Any, window: int | None) -> Any:
    first = query - query.min()
    near = key > query - (window if window is not None else 10**6)
    return (key <= first) & near | (key == query)


def whole_text_seen(parts: list[Any]) -> Any:
    return np.concatenate([np.broadcast_to(parts[-1], parts[0].shape), *parts[1:]], axis=1)


def _steps(rule: Callable[[TransformerConfig], Any] = lambda _c: True) -> Callable[[Case], bool]:
    """Whether a case decodes at least two tokens after its first call."""
    fits = _when(rule, tokens=3)
    return lambda case: fits(case) and case.arrays["ids"].shape[1] >= case.options["prefill"] + 2


STEPS_BUGS = tuple(
    mistake.planted(stepping)
    for mistake in (
        Mistake(
            "first_position",
            starts_again,
            "Every call counts its positions from 0.",
            "A new token's position is the length of the cache.",
            _steps(),
        ),
        Mistake(
            "kept",
            turned_when_stored,
            "Keys are turned once more when they are stored.",
            "Store keys as they were used: rotated once, by their own position.",
            _steps(),
        ),
        Mistake(
            "kept",
            last_key_lost,
            "The newest key is not written to the cache.",
            "Append before you attend, and keep what you appended.",
            _steps(),
        ),
        Mistake(
            "visible",
            first_keys_only,
            "With a cache, the causal mask is aligned to the first keys.",
            "Query t of a call sees keys up to its own absolute position.",
            _steps(),
        ),
        Mistake(
            "logits_of_prompt",
            whole_text_seen,
            "The logits of the prompt are those of the last token decoded.",
            "Each call has its own logits; put them one after another.",
            _steps(),
        ),
    )
)


def token_itself(kind: str, n: int) -> int:
    return {"previous": 0, "duplicate": n, "induction": n - 1}[kind]


def copy_for_successor(kind: str, n: int) -> int:
    return {"previous": 1, "duplicate": n, "induction": n}[kind]


def before_the_copy(kind: str, n: int) -> int:
    return {"previous": 1, "duplicate": n, "induction": n + 1}[kind]


def from_the_first_copy(kind: str, n: int) -> Any:
    return np.arange(1 if kind == "previous" else n, 2 * n + 1)


def last_left_out(kind: str, n: int) -> Any:
    return np.arange(1 if kind == "previous" else n + 1, 2 * n + (n == 1))


def beginning_left_out(kind: str, n: int) -> Any:
    return np.arange(2 if kind == "previous" else n + 1, 2 * n + 1)


def _kind(*kinds: str, least: int = 1) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        return bool(case.arrays["pattern"].size and case.options["kind"] in kinds and case.options["n"] >= least)

    return applies


def squared_attention(weights: Any) -> Any:
    return weights**2


SCORES_BUGS = tuple(
    mistake.planted(scoring)
    for mistake in (
        Mistake(
            "read",
            squared_attention,
            "Attention weights are squared before they are averaged.",
            "The score is the mean weight.",
            _kind("previous", "duplicate", "induction"),
        ),
        Mistake(
            "looked_back",
            token_itself,
            "A previous-token head is scored by its attention to the token itself.",
            "It looks one token back.",
            _kind("previous"),
        ),
        Mistake(
            "looked_back",
            copy_for_successor,
            "An induction head is scored by its attention to the copy.",
            "Induction looks at the token after the copy, n − 1 back.",
            _kind("induction"),
        ),
        Mistake(
            "looked_back",
            before_the_copy,
            "An induction head is scored by its attention to the token before the copy.",
            "Induction looks at the token after the copy, n − 1 back.",
            _kind("induction"),
        ),
        Mistake(
            "counted",
            from_the_first_copy,
            "The last token of the first half counts as repeated.",
            "The second half starts at n + 1.",
            _kind("duplicate", "induction"),
        ),
        Mistake(
            "counted",
            last_left_out,
            "The last token is left out.",
            "The mean goes over all of the second half.",
            _kind("duplicate", "induction", least=2),
        ),
        Mistake(
            "counted",
            beginning_left_out,
            "The first token that has a predecessor is left out.",
            "The mean goes over all tokens but the first.",
            _kind("previous"),
        ),
    )
)
