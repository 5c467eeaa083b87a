"""Circuit analysis once more, straightforwardly, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["differing", "forcing", "masking", "measuring", "overlapping", "patching"]

Edit = Callable[[str, Any], Any]


def there(logits: np.ndarray, position: int) -> Any:
    """Look at one token."""
    return logits[:, position]


def chosen(logits: np.ndarray, answers: np.ndarray) -> Any:
    """Take the logits of the right and of the wrong word of each prompt."""
    rows = np.arange(len(logits))
    return logits[rows, answers[:, 0]], logits[rows, answers[:, 1]]


def compared(right: np.ndarray, wrong: np.ndarray) -> Any:
    """Subtract the wrong from the right."""
    return right - wrong


def averaged(each: np.ndarray) -> Any:
    """Average over prompts."""
    return each.mean()


class Difference(NamedTuple):
    """The steps of a logit difference."""

    there: Callable[..., Any] = there
    chosen: Callable[..., Any] = chosen
    compared: Callable[..., Any] = compared
    averaged: Callable[..., Any] = averaged


def differing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the logit difference with these steps exchanged."""
    steps = Difference(**changes)

    def wrong(logits: np.ndarray, answers: np.ndarray, *, position: int = -1, reduce: str = "mean") -> Any:
        each = steps.compared(*steps.chosen(steps.there(logits, position), answers))
        return np.asarray(steps.averaged(each) if reduce == "mean" else each)

    return wrong


def moved(after: np.ndarray, before: np.ndarray) -> Any:
    """Measure how far the patch went."""
    return after - before


def whole_way(other: np.ndarray, before: np.ndarray) -> Any:
    """Measure how far the corruption goes."""
    return other - before


class Effect(NamedTuple):
    """The steps of an effect."""

    moved: Callable[..., Any] = moved
    whole_way: Callable[..., Any] = whole_way


def measuring(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the effect with these steps exchanged."""
    steps = Effect(**changes)

    def wrong(patched: np.ndarray, clean: np.ndarray, corrupt: np.ndarray) -> Any:
        return np.asarray(steps.moved(patched, clean) / steps.whole_way(corrupt, clean))

    return wrong


def strength(effect: np.ndarray) -> Any:
    """Ignore the sign."""
    return np.abs(effect)


def enough(size: np.ndarray, threshold: float) -> Any:
    """Compare with the threshold."""
    return size > threshold


def count(fraction: float, layers: int, heads: int) -> int:
    """Round up, at least to one."""
    return max(1, math.ceil(fraction * layers * heads - 1e-9))


def ranked(size: np.ndarray) -> Any:
    """Order the heads of one model, the largest first, of equal ones the first."""
    return sorted(np.ndindex(size.shape), key=lambda head: (-size[head], head))


class Mask(NamedTuple):
    """The steps of choosing heads."""

    strength: Callable[..., Any] = strength
    enough: Callable[..., Any] = enough
    count: Callable[..., Any] = count
    ranked: Callable[..., Any] = ranked


def marked(steps: Mask, effect: np.ndarray, fraction: float, threshold: float | None) -> np.ndarray:
    """Mark the heads of every model of a batch."""
    size = steps.strength(effect)
    if threshold is not None:
        return np.asarray(steps.enough(size, threshold))
    mask = np.zeros(effect.shape, bool)
    for at in np.ndindex(effect.shape[:-2]):
        for head in steps.ranked(size[at])[: steps.count(fraction, *effect.shape[-2:])]:
            mask[(*at, *head)] = True
    return mask


def masking(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the choice of heads with these steps exchanged."""
    steps = Mask(**changes)

    def wrong(effect: np.ndarray, *, fraction: float = 0.02, threshold: float | None = None) -> Any:
        return marked(steps, effect, fraction, threshold)

    return wrong


def divisor(in_a: Any, in_b: Any, _both: Any) -> Any:
    """Take the larger circuit."""
    return np.maximum(in_a, in_b)


def union(in_a: Any, in_b: Any, both: Any) -> Any:
    """Count the heads of either circuit once."""
    return in_a + in_b - both


def share(both: Any, of: Any) -> Any:
    """Divide; nothing shares everything with nothing."""
    return np.where(of > 0, both / np.maximum(of, 1), 1.0)


def missing(a: np.ndarray, b: np.ndarray) -> Any:
    """Find the heads of the first circuit that the second lacks."""
    return a & ~b


class Overlap(NamedTuple):
    """The steps of comparing circuits."""

    divisor: Callable[..., Any] = divisor
    union: Callable[..., Any] = union
    share: Callable[..., Any] = share
    missing: Callable[..., Any] = missing


def overlapping(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the overlap with these steps exchanged."""
    steps = Overlap(**changes)

    def wrong(
        effect_a: np.ndarray, effect_b: np.ndarray, *, fraction: float = 0.02, threshold: float | None = None
    ) -> Any:
        a, b = (marked(Mask(), effect, fraction, threshold) for effect in (effect_a, effect_b))
        counts = [mask.sum(axis=(-2, -1)).astype(float) for mask in (a, b, a & b)]
        shares = [steps.share(counts[2], of(*counts)) for of in (steps.divisor, steps.union)]
        return {
            "shared": a & b,
            "only_a": steps.missing(a, b),
            "only_b": steps.missing(b, a),
            "overlap": np.asarray(shares[0]),
            "jaccard": np.asarray(shares[1]),
        }

    return wrong


def listed(targets: np.ndarray) -> Any:
    """Leave out what stands for no target."""
    return [key for key in targets if key >= 0]


def aimed(told: list[int], s: int) -> Any:
    """Divide one among the targets."""
    aim = np.zeros(s)
    aim[told] = 1.0 / len(told)
    return aim


def blended(row: np.ndarray, aim: np.ndarray, weight: float) -> Any:
    """Replace a part of the row."""
    return (1.0 - weight) * row + weight * aim


def placed(pattern: np.ndarray, head: int, query: int, row: np.ndarray) -> Any:
    """Put one row of one head in its place: (H, T, S)."""
    pattern[head, query] = row
    return pattern


class Force(NamedTuple):
    """The steps of forcing attention."""

    listed: Callable[..., Any] = listed
    aimed: Callable[..., Any] = aimed
    blended: Callable[..., Any] = blended
    placed: Callable[..., Any] = placed


def forcing(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return forced attention with these steps exchanged."""
    steps = Force(**changes)

    def wrong(
        pattern: np.ndarray, rows: np.ndarray, targets: np.ndarray, *, heads: list[int], weight: float = 1.0
    ) -> Any:
        out = pattern.copy()
        for b in range(len(out)):
            aim = steps.aimed(steps.listed(targets[b]), pattern.shape[-1])
            for head in heads:
                row = steps.blended(pattern[b, head, rows[b]], aim, weight)
                out[b] = steps.placed(out[b], head, rows[b], row)
        return out

    return wrong


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Any:
    """Centre and scale the last axis."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5) * weight + bias


def run(w: Any, ids: np.ndarray, edit: Edit) -> np.ndarray:
    """Run a GPT-2 whose every activation passes through ``edit``; return its logits."""
    t = ids.shape[1]
    x = w.W_E[ids] + w.W_pos[:t]
    for layer, b in enumerate(w.blocks):
        x = edit(f"{layer}.pre", x)
        h = normed(x, b.ln1_w, b.ln1_b)
        q, k, v = (
            edit(f"{layer}.{name}", np.einsum("btd,hde->bthe", h, weight) + bias)
            for name, weight, bias in (("q", b.W_Q, b.b_Q), ("k", b.W_K, b.b_K), ("v", b.W_V, b.b_V))
        )
        scores = np.einsum("bthe,buhe->bhtu", q, k) / math.sqrt(q.shape[-1])
        mass = np.exp(scores - np.max(scores, axis=-1, keepdims=True)) * np.tri(t)
        z = edit(f"{layer}.z", np.einsum("bhtu,buhe->bthe", mass / np.sum(mass, axis=-1, keepdims=True), v))
        x = edit(f"{layer}.mid", x + np.einsum("bthe,hed->btd", z, b.W_O) + b.b_O)
        m = normed(x, b.ln2_w, b.ln2_b) @ b.W_in + b.b_in
        m = 0.5 * m * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        x = edit(f"{layer}.post", x + edit(f"{layer}.mlp", m @ b.W_out + b.b_out))
    logits: np.ndarray = normed(x, w.lnf_w, w.lnf_b) @ w.W_U
    return logits


SHORT = {"hook_resid_pre": "pre", "hook_resid_mid": "mid", "hook_resid_post": "post", "hook_mlp_out": "mlp"}


def short(where: Any, head: int | None, component: str) -> str:
    """Name a receiver's activation as `run` does."""
    if head is not None:
        return f"{where}.{component}"
    _, layer, name = where.split(".")
    return f"{layer}.{SHORT[name]}"


def asked(receivers: list[Any], layers: int, *, truncate: bool) -> int:
    """Return how many layers are asked."""
    first = min([where for where, head in receivers if head is not None], default=layers - 1)
    return first + 1 if truncate else layers


def silent(sender: tuple[int, int], receivers: list[Any]) -> bool:
    """Do not ask a receiver."""
    return list(sender) in [list(receiver) for receiver in receivers]


def frozen(value: np.ndarray, clean: np.ndarray, p: int) -> Any:
    """Keep what all heads said at p: (B, T, H, e)."""
    value = value.copy()
    value[:, p] = clean[:, p]
    return value


def spoken(value: np.ndarray, corrupt: np.ndarray, p: int, head: int) -> Any:
    """Let the sender say what it says on the corrupt prompt."""
    value = value.copy()
    value[:, p, head] = corrupt[:, p, head]
    return value


def mlp_out(value: np.ndarray, clean: np.ndarray, p: int, *, freeze: bool) -> Any:
    """Keep what the MLP said at p, if MLPs are frozen."""
    return frozen(value, clean, p) if freeze else value


def told(value: np.ndarray, heard: np.ndarray, p: int, head: int | None) -> Any:
    """Let a receiver hear it, at p."""
    value = value.copy()
    at = (slice(None), p) if head is None else (slice(None), p, head)
    value[at] = heard[at]
    return value


def preferred(logits: np.ndarray, answers: np.ndarray, _p: int) -> Any:
    """Return each prompt's logit difference after its last token."""
    rows = np.arange(len(logits))
    return logits[rows, -1, answers[:, 0]] - logits[rows, -1, answers[:, 1]]


def effect(after: np.ndarray, before: np.ndarray, other: np.ndarray) -> Any:
    """Average over prompts, then divide."""
    return (after.mean() - before.mean()) / (other.mean() - before.mean())


class Patch(NamedTuple):
    """The steps of path patching."""

    asked: Callable[..., Any] = asked
    silent: Callable[..., Any] = silent
    frozen: Callable[..., Any] = frozen
    spoken: Callable[..., Any] = spoken
    mlp_out: Callable[..., Any] = mlp_out
    told: Callable[..., Any] = told
    preferred: Callable[..., Any] = preferred
    effect: Callable[..., Any] = effect


def recorded(w: Any, ids: np.ndarray, edit: Edit = lambda _name, value: value) -> tuple[np.ndarray, dict[str, Any]]:
    """Run a model and keep every activation, after it was edited."""
    kept: dict[str, Any] = {}

    def keep(name: str, value: Any) -> Any:
        kept[name] = edit(name, value)
        return kept[name]

    return run(w, ids, keep), kept


def patching(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """Return path patching with these steps exchanged."""
    steps = Patch(**changes)

    def wrong(
        weights: Any,
        clean: np.ndarray,
        corrupt: np.ndarray,
        answers: np.ndarray,
        *,
        receivers: list[Any],
        component: str = "z",
        position: int = -1,
        freeze_mlps: bool = False,
        truncate: bool = True,
    ) -> Any:
        layers, heads, p = len(weights.blocks), len(weights.blocks[0].W_Q), position % clean.shape[1]
        (logits, acts), (logits_corrupt, acts_corrupt) = recorded(weights, clean), recorded(weights, corrupt)
        before, other = (steps.preferred(said, answers, p) for said in (logits, logits_corrupt))
        found = np.zeros((layers, heads))

        def freezing(sender: tuple[int, int]) -> Edit:
            def edit(name: str, value: Any) -> Any:
                if name.endswith(".z"):
                    value = steps.frozen(value, acts[name], p)
                    speaks = name == f"{sender[0]}.z"
                    return steps.spoken(value, acts_corrupt[name], p, sender[1]) if speaks else value
                return steps.mlp_out(value, acts[name], p, freeze=freeze_mlps) if name.endswith(".mlp") else value

            return edit

        def telling(heard: dict[str, Any]) -> Edit:
            def edit(name: str, value: Any) -> Any:
                for where, head in receivers:
                    if name == short(where, head, component):
                        value = steps.told(value, heard[name], p, head)
                return value

            return edit

        for sender in np.ndindex(steps.asked(receivers, layers, truncate=truncate), heads):
            if not steps.silent(sender, receivers):
                _, heard = recorded(weights, clean, freezing(sender))
                after = steps.preferred(run(weights, clean, telling(heard)), answers, p)
                found[sender] = steps.effect(after, before, other)
        return found

    return wrong
