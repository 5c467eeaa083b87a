"""What rounding may do to path patching: the same computation, all senders in one batch, run in erring arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.monte_carlo import monte_carlo_budgets
from refattn.contracts.circuit_reuse.plain import asked, preferred, recorded, run, short, silent

if TYPE_CHECKING:
    from refattn.conformance.contract import Case, Entry
    from refattn.conformance.verdict import Budget

__all__ = ["patch_budgets", "patched_together"]


def patch_budgets(entry: Entry, case: Case, precision_name: str | None) -> dict[str, Budget]:
    """Derive the budget of path patching: one pass for all senders makes many erring runs affordable."""
    found = monte_carlo_budgets(replace(entry, reference=patched_together), case, precision_name)
    expected = entry.expected(case)
    return {name: budget._replace(expected=np.asarray(expected[name])) for name, budget in found.items()}


def patched_together(
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
) -> np.ndarray:
    """Patch all senders at once, each in rows of its own."""
    layers, heads, p = len(weights.blocks), len(weights.blocks[0].W_Q), position % clean.shape[1]
    (logits, acts), (logits_corrupt, acts_corrupt) = recorded(weights, clean), recorded(weights, corrupt)
    senders = [
        sender
        for sender in np.ndindex(asked(receivers, layers, truncate=truncate), heads)
        if not silent((sender[0], sender[1]), receivers)
    ]
    many, batch = np.tile(clean, (len(senders), 1)), len(clean)  # (S·B, T)

    def freezing(name: str, value: Any) -> Any:
        if not name.endswith((".z", ".mlp")) or (name.endswith(".mlp") and not freeze_mlps):
            return value
        kept = np.concatenate([acts[name][:, p]] * len(senders))
        value = value.copy()
        value[:, p] = kept
        for row, (layer, head) in enumerate(senders):
            if name == f"{layer}.z":
                value[row * batch : (row + 1) * batch, p, head] = acts_corrupt[name][:, p, head]
        return value

    _, heard = recorded(weights, many, freezing)

    def telling(name: str, value: Any) -> Any:
        for where, head in receivers:
            if name == short(where, head, component):
                value = value.copy()
                at = (slice(None), p) if head is None else (slice(None), p, head)
                value[at] = heard[name][at]
        return value

    after = preferred(run(weights, many, telling), np.tile(answers, (len(senders), 1)), p)
    before, other = (np.mean(preferred(said, answers, p)) for said in (logits, logits_corrupt))
    effects = (np.mean(np.reshape(after, (len(senders), batch)), axis=-1) - before) / (other - before)
    found = np.zeros((layers, heads))
    for row, sender in enumerate(senders):
        found[sender] = effects[row]
    return found
