"""Circuit component reuse: which heads carry a task, and which of them carry another one too (2310.08744).

Path patching asks of one head, the sender: if it alone had seen the other prompt, and only the receivers heard of it,
how much of the answer would change? From the output back to the input, stage by stage, this gives a circuit; two
circuits can be compared. The arithmetic stands in `refattn.interpretability.circuit_reuse_effects`. Equation labels
(cr-…) are those of the page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interpretability.circuit_reuse_effects import (
    above,
    checked_answers,
    circuit,
    logit_difference,
    patch_effect,
    top_fraction,
)
from refattn.primitives.arguments import as_integer, require, require_one_of
from refattn.transformer.config import TransformerConfig
from refattn.transformer.forward import forward
from refattn.transformer.hooks import hook_names
from refattn.transformer.weights import Transformer, TransformerWeights, check_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refattn.transformer.hooks import Hook

    Receiver = tuple[int, int] | tuple[str, None]

__all__ = ["Stage", "path_patch", "path_patch_gpt2", "trace_circuit"]

_COMPONENTS = ("q", "k", "v", "z")
_TOKENS_LAST = ("hook_attn_scores", "hook_pattern")
"""Hook points whose second axis is the head, not the token."""


class Stage(NamedTuple):
    """One step of a trace: who received, through which component, where; the effects (L, H), and the heads kept."""

    receivers: tuple[Receiver, ...]
    component: str
    position: int
    effect: np.ndarray
    heads: frozenset[tuple[int, int]]


def path_patch(
    model: Transformer,
    clean: Any,
    corrupt: Any,
    answers: Any,
    receivers: Iterable[Receiver],
    *,
    component: str = "z",
    position: int = -1,
    freeze_mlps: bool = False,
    truncate: bool = True,
) -> np.ndarray:
    """Measure what each head tells the receivers at one position, in parts of the corruption's whole effect.

    Parameters
    ----------
    model : Transformer
        Whose heads are asked.
    clean, corrupt : array_like of int, shape (B, T)
        Prompts, and the same with the answer changed.
    answers : array_like of int, shape (B, 2)
        Right and wrong word of the clean prompts.
    receivers : iterable of (int, int) or (str, None)
        Heads by layer and number, or hook points by name.
    component : {"q", "k", "v", "z"}
        What of a receiving head is patched. Named hook points are patched themselves; give them "z".
    position : int
        The token p at which the sender changes and the receivers listen.
    freeze_mlps : bool
        Whether MLPs keep their clean output at p; if not, they pass on what they hear.
    truncate : bool
        Ask no head of a layer behind the first receiving head's.

    Returns
    -------
    ndarray, shape (L, H)
        1 where a head's message alone does what the corruption does; 0 for receivers and for heads behind them.

    Raises
    ------
    ValueError
        For prompts of different shapes, answers that are not (B, 2) or not words, a receiver out of range or unknown,
        an unknown component, "z" with a receiving head, a position outside the prompt, or a corruption that does not
        change the mean logit difference.

    Notes
    -----
    Only position p is frozen; MLPs carry messages on, and the effects of single heads need not sum to one. With a head
    and component "z" the official code returns zeros, because a tensor is overwritten in place; here it is refused.
    One matrix takes 2 + 2·(number of senders) forward passes.

    References
    ----------
    2310.08744; Wang et al. 2022, 2211.00593; Goldowsky-Dill et al. 2023, 2304.05969.
    """
    config = model.config
    clean, corrupt, position = _checked_prompts(clean, corrupt, position)
    answers = checked_answers(answers, len(clean), config.vocab_size)
    require_one_of("component", component, _COMPONENTS)
    receivers = _checked_receivers(receivers, component, config)

    # 1. the two runs
    outputs = [f"blocks.{layer}.attn.hook_z" for layer in range(config.n_layers)]
    mlps = [f"blocks.{layer}.hook_mlp_out" for layer in range(config.n_layers)] if freeze_mlps else []
    before = forward(model, clean, names=[*outputs, *mlps])
    other = forward(model, corrupt, names=outputs)
    start, end = logit_difference(before.logits, answers), logit_difference(other.logits, answers)
    require(start != end, "clean and corrupt logit differences are equal")

    effect = np.zeros((config.n_layers, config.n_heads), before.logits.dtype)
    freeze = {name: _put(before.activations[name], position) for name in (*outputs, *mlps)}
    listened = _listening_points(receivers, component)
    # 2. one sender after the other
    for layer, head in _senders(receivers, config, truncate=truncate):
        name = f"blocks.{layer}.attn.hook_z"
        speak = _put(other.activations[name], position, [head])
        # 3a. every head says what it said, but for the sender: what do the receivers hear?
        hooks: dict[str, Any] = {**freeze, name: (freeze[name], speak)}
        heard = forward(model, clean, hooks=hooks, names=listened).activations
        # 3b. the receivers hear it, everything else runs free
        tell = {point: _put(heard[point], position, heads) for point, heads in _channels(receivers, component, config)}
        patched = logit_difference(forward(model, clean, hooks=tell).logits, answers)
        # 3c.
        effect[layer, head] = patch_effect(patched, start, end)
    return effect


def path_patch_gpt2(
    weights: TransformerWeights,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    receivers: Sequence[Sequence[Any]],
    component: str = "z",
    position: int = -1,
    freeze_mlps: bool = False,
    truncate: bool = True,
) -> np.ndarray:
    """Do what `path_patch` does for a model that is given by the weights of a GPT-2 alone.

    Parameters
    ----------
    weights : TransformerWeights
        Of a GPT-2: LayerNorm with ε = 10⁻⁵, learned positions, tanh GELU, scores divided by √e.
    clean, corrupt, answers, receivers, component, position, freeze_mlps, truncate
        As in `path_patch`; a receiver may also be a list of two.

    Returns
    -------
    ndarray, shape (L, H)

    Raises
    ------
    ValueError
        As `path_patch`, and for weights that are not those of a GPT-2.
    """
    require(len(weights.blocks) > 0, "weights has no block")
    heads, d_model, d_head = weights.blocks[0].W_Q.shape
    layers = len(weights.blocks)
    config = TransformerConfig(
        family="gpt2",
        n_layers=layers,
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d_head,
        d_mlp=weights.blocks[0].W_in.shape[-1],
        vocab_size=weights.W_U.shape[-1],
        n_ctx=len(weights.W_pos),
        norm="layer",
        norm_eps=1e-5,
        act="gelu_new",
        gated=False,
        positions="learned",
        rope=None,
        attn_scale=(d_head**-0.5,) * layers,
        window=(None,) * layers,
    )
    check_weights(config, weights)
    return path_patch(
        Transformer(config, weights),
        clean,
        corrupt,
        answers,
        [(where, head) for where, head in receivers],
        component=component,
        position=position,
        freeze_mlps=freeze_mlps,
        truncate=truncate,
    )


def trace_circuit(
    model: Transformer,
    clean: Any,
    corrupt: Any,
    answers: Any,
    *,
    source: int | None = None,
    threshold: float | None = None,
    fraction: float = 0.02,
    freeze_mlps: bool = False,
) -> tuple[frozenset[tuple[int, int]], tuple[Stage, ...]]:
    """Find the circuit of a task, from its end: who writes the answer, who tells them where to look, who told those.

    Parameters
    ----------
    model, clean, corrupt, answers, freeze_mlps
        As in `path_patch`.
    source : int, optional
        The token whose values the heads of the second stage read, such as the second mention of the subject. Without
        it the trace has two stages.
    threshold : float, optional
        Keep the heads with |effect| above it; if not given, the strongest.
    fraction : float
        The share of heads to keep at each stage where there is no threshold.

    Returns
    -------
    heads : frozenset of (layer, head)
        The union over the stages.
    stages : tuple of Stage
        1. into the final residual stream; 2. into the queries of the heads of stage 1; 3. into the values, at
        ``source``, of those of stage 2. A stage that would have no receivers ends the trace.

    Raises
    ------
    ValueError
        As `path_patch`.

    Notes
    -----
    The order of stages is inferred from what the paper reports of its circuits, not from its code [inferred].
    """
    final: Receiver = (f"blocks.{model.config.n_layers - 1}.hook_resid_post", None)
    receivers: list[Receiver] = [final]
    plan = [("z", -1), ("q", -1)] + ([] if source is None else [("v", source)])
    stages: list[Stage] = []
    for component, position in plan:
        effect = path_patch(
            model,
            clean,
            corrupt,
            answers,
            receivers,
            component=component,
            position=position,
            freeze_mlps=freeze_mlps,
        )
        found = top_fraction(effect, fraction) if threshold is None else above(effect, threshold)
        stages.append(Stage(tuple(receivers), component, position, effect, found))
        receivers = sorted(found)
        if not receivers:
            break
    return circuit(stage.heads for stage in stages), tuple(stages)


def _checked_prompts(clean: Any, corrupt: Any, position: int) -> tuple[np.ndarray, np.ndarray, int]:
    clean, corrupt = as_integer("clean", clean, ndim=2), as_integer("corrupt", corrupt, ndim=2)
    require(clean.shape == corrupt.shape, f"corrupt has shape {corrupt.shape}, expected that of clean, {clean.shape}")
    length = clean.shape[1]
    require(-length <= position < length, f"position={position!r} is outside the {length} tokens of a prompt")
    return clean, corrupt, position % length


def _checked_receivers(
    receivers: Iterable[Receiver], component: str, config: TransformerConfig
) -> tuple[Receiver, ...]:
    receivers = tuple(receivers)
    require(len(receivers) > 0, "receivers is empty")
    known = hook_names(config)
    for where, head in receivers:
        if isinstance(where, str):
            require(where in known, f"no hook point named {where!r}")
            require(not where.endswith(_TOKENS_LAST), f"{where!r} has no token on its second axis: it cannot receive")
            require(head is None, f"receiver {where!r} is a hook point and has no head {head!r}")
            continue
        inside = head is not None and 0 <= where < config.n_layers and 0 <= head < config.n_heads
        require(inside, f"receiver {(where, head)} is none of {config.n_layers} layers of {config.n_heads} heads")
        require(component != "z", f"component='z' cannot be patched in head {(where, head)}: name a hook point instead")
    return receivers


def _senders(receivers: tuple[Receiver, ...], config: TransformerConfig, *, truncate: bool) -> list[tuple[int, int]]:
    """List the heads that are asked: up to the first receiving head's layer, that layer included, no receivers."""
    layers = [where for where, _ in receivers if isinstance(where, int)]
    last = min([*layers, config.n_layers - 1]) if truncate else config.n_layers - 1
    asked = [(layer, head) for layer in range(last + 1) for head in range(config.n_heads)]
    return [sender for sender in asked if sender not in receivers]


def _listening_points(receivers: tuple[Receiver, ...], component: str) -> list[str]:
    return [where if isinstance(where, str) else _point(where, component) for where, _ in receivers]


def _channels(
    receivers: tuple[Receiver, ...], component: str, config: TransformerConfig
) -> list[tuple[str, list[int] | None]]:
    """Return each hook point that receives, with the heads that do; None for a whole point."""
    whole: dict[str, list[int] | None] = {where: None for where, _ in receivers if isinstance(where, str)}
    shared = 1 if component == "q" else config.n_heads // config.n_kv_heads
    for where, head in receivers:
        if isinstance(where, int) and head is not None:
            heads = whole.setdefault(_point(where, component), [])
            if heads is not None:
                heads.append(head // shared)
    return list(whole.items())


def _point(layer: int, component: str) -> str:
    return f"blocks.{layer}.attn.hook_{component}"


def _put(source: np.ndarray, position: int, heads: list[int] | None = None) -> Hook:
    """Return a hook that puts another run's values in at one position, for some heads or all that is there."""

    def hook(value: np.ndarray, _name: str) -> np.ndarray:
        result = value.copy()
        if heads is None:
            # eq: cr-freeze
            result[:, position] = source[:, position]
        else:
            # eq: cr-send
            result[:, position, heads] = source[:, position, heads]
        return result

    return hook
