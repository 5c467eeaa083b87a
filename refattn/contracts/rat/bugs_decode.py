"""Mistakes in decoding: what is cached, when, and in which form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.conformance.contract import Bug
from refattn.contracts.rat.steps import flat, rotate
from refattn.contracts.rat.straight import prefill_with, step_with

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = ["PREFILL_BUGS", "STEP_BUGS"]


def position(case: Case) -> tuple[int, int]:
    """Return t and L of a step."""
    return int(case.arrays["cache"].length), int(case.options["chunk_size"])


def _rotates(case: Case) -> bool:
    return case.options.get("rope_base", 10000.0) is not None and case.arrays["weights"].norm.size > 0


def _any(case: Case) -> bool:
    return bool(next(iter(case.arrays.values())).size)


def carried_on(old: np.ndarray, _t: int, _chunk_size: int) -> np.ndarray:
    """Carry the running state into the next chunk."""
    return old


def rotated_kept(_k_last: np.ndarray, k_rotated: np.ndarray) -> np.ndarray:
    """Keep the running key rotated, so that the next step rotates it again."""
    return k_rotated


def unrotated_stored(k: np.ndarray, _chunk: np.ndarray, _base: float | None) -> np.ndarray:
    """Store keys before rotation."""
    return k


def rotated_at_read(k_mem: np.ndarray, chunk: np.ndarray, base: float | None) -> np.ndarray:
    """Rotate all keys when they are read, by the position of the reader."""
    return k_mem if base is None else rotate(k_mem, chunk, base)


def written_once(memory: np.ndarray, row: np.ndarray, t: int, chunk_size: int) -> np.ndarray:
    """Write a chunk's slot at its first token only."""
    new = memory.copy()
    if t % chunk_size == 0:
        new[:, :, t // chunk_size] = row[:, :, 0]
    return new


def written_when_over(memory: np.ndarray, row: np.ndarray, t: int, chunk_size: int) -> np.ndarray:
    """Write a chunk's slot when the chunk is over."""
    new = memory.copy()
    if (t + 1) % chunk_size == 0:
        new[:, :, t // chunk_size] = row[:, :, 0]
    return new


def all_slots(slots: int, _chunk: int) -> np.ndarray:
    """Read free slots too."""
    return np.ones(slots, dtype=bool)


def head_layout(heads: np.ndarray, t: int, chunk_size: int) -> np.ndarray:
    """Leave the output in head layout in the first chunk, as the released code does."""
    return flat(heads) if t >= chunk_size else np.swapaxes(heads, -1, -3).reshape(len(heads), 1, -1)


def last_of_padding(_prompt_len: int, padded: int) -> int:
    """Keep the running state after the padding."""
    return padded - 1


STEP_BUGS = (
    Bug(
        "step_carries_on",
        "The running state is carried into the next chunk.",
        step_with(carried=carried_on),
        applies=lambda case: _any(case) and position(case)[0] % position(case)[1] == 0,
        source=carried_on,
        remedy="At t % L = 0 the running state starts again from zero.",
    ),
    Bug(
        "slot_written_once",
        "The slot of a chunk is written at the chunk's first token only.",
        step_with(written=written_once),
        applies=lambda case: _any(case) and position(case)[0] % position(case)[1] != 0,
        source=written_once,
        remedy="Every token overwrites the slot of its chunk.",
    ),
    Bug(
        "slot_written_when_over",
        "The slot of a chunk is written when the chunk is over, so that the token reads an old slot.",
        step_with(written=written_when_over),
        applies=lambda case: _any(case) and (position(case)[0] + 1) % position(case)[1] != 0,
        source=written_when_over,
        remedy="Every token overwrites the slot of its chunk before it attends.",
    ),
    Bug(
        "rotated_at_read",
        "Keys are stored unrotated, and all of them are rotated by the reader's position.",
        step_with(stored_key=unrotated_stored, read_keys=rotated_at_read),
        applies=lambda case: _any(case) and _rotates(case) and position(case)[0] >= position(case)[1],
        source=rotated_at_read,
        remedy="Rotate a key by its own chunk, once, when it is stored.",
    ),
    Bug(
        "running_key_rotated",
        "The running key is kept rotated.",
        step_with(kept_key=rotated_kept),
        applies=lambda case: _any(case) and _rotates(case) and position(case)[0] >= position(case)[1],
        source=rotated_kept,
        remedy="Keep the running key as the recurrence gives it; rotate a copy for the slot.",
    ),
    Bug(
        "free_slots_read",
        "Attention runs over all slots of the cache, the free ones too.",
        step_with(open_slots=all_slots),
        applies=lambda case: (
            _any(case) and (position(case)[0] // position(case)[1] + 1 < case.arrays["cache"].k_mem.shape[-2])
        ),
        source=all_slots,
        remedy="Read slots 0 to t // L.",
    ),
    Bug(
        "first_chunk_in_head_layout",
        "In the first chunk the output keeps its head layout and its channels come out of order.",
        step_with(laid_out=head_layout),
        applies=lambda case: (
            _any(case)
            and position(case)[0] < position(case)[1]
            and 1 < case.options["num_heads"] < case.arrays["x_t"].shape[-1]
        ),
        source=head_layout,
        remedy="The first chunk needs no branch: its only slot is the token's own state.",
    ),
)

PREFILL_BUGS = (
    Bug(
        "state_of_padding_kept",
        "The running state is taken after the padding.",
        prefill_with(last_token=last_of_padding),
        applies=lambda case: (
            _any(case) and (case.options.get("prompt_len", case.arrays["x"].shape[1]) % case.options["chunk_size"] != 0)
        ),
        source=last_of_padding,
        remedy="Take the running state at the last true token.",
    ),
    Bug(
        "prefill_keeps_rotated_key",
        "The running key is kept rotated.",
        prefill_with(kept_key=rotated_kept),
        applies=lambda case: (
            _any(case)
            and _rotates(case)
            and case.options.get("prompt_len", case.arrays["x"].shape[1]) > case.options["chunk_size"]
        ),
        source=rotated_kept,
        remedy="Keep the running key as the recurrence gives it; rotate a copy for the slot.",
    ),
    Bug(
        "prefill_stores_unrotated",
        "Chunk memories are stored before rotation.",
        prefill_with(stored_key=unrotated_stored),
        applies=lambda case: _any(case) and _rotates(case) and case.arrays["x"].shape[1] > case.options["chunk_size"],
        source=unrotated_stored,
        remedy="Store keys rotated by the index of their chunk: steps read them as they are.",
    ),
)
