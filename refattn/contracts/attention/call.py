"""One call of attention with its options filled in: what every step of the planted-bug pipeline looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.conformance.contract import Case

__all__ = ["Call", "Sizes", "each", "heads_first", "sizes"]


class Sizes(NamedTuple):
    """The sizes of a case of `attention`."""

    batch: int
    hq: int
    hkv: int
    sq: int
    sk: int
    d: int
    dv: int


def heads_first(x: np.ndarray, layout: str) -> np.ndarray:
    """Swap heads and length if the layout has the length first; its own inverse."""
    return x.swapaxes(1, 2) if layout == "bshd" else x


def sizes(case: Case) -> Sizes:
    """Return the sizes of a case of `attention` or `attention_vjp`, whatever its layout."""
    layout = case.options.get("layout", "bhsd")
    q, k, v = (heads_first(case.arrays[name], layout).shape for name in "qkv")
    return Sizes(q[0], q[1], k[1], q[2], k[2], q[3], v[3])


@dataclass(frozen=True, eq=False)
class Call:
    """One call of `attention`, head-first, with every option filled in.

    Attributes
    ----------
    q, k, v : ndarray
        (B, Hq, Sq, d), (B, Hkv, Sk, d), (B, Hkv, Sk, dv); once the heads are assigned, k and v have Hq heads.
    scale, softcap, mask, bias, causal, align, window, prefix, doc_q, doc_k, chunk, slopes, sinks, empty
        The options of the reference.
    kv_lengths, q_lengths : ndarray, shape (B,)
        Valid keys and queries.
    tau : float
        The scale in use.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    kv_lengths: np.ndarray
    q_lengths: np.ndarray
    scale: float | None = None
    mask: Any = None
    bias: Any = None
    causal: bool = False
    align: Any = "top_left"
    window: Sequence[int | None] = (None, None)
    prefix: Any = None
    doc_q: Any = None
    doc_k: Any = None
    chunk: int | None = None
    softcap: Any = None
    slopes: Any = None
    sinks: Any = None
    empty: str = "zero"
    tau: float = np.nan

    @classmethod
    def of(cls, q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: Any) -> Call:
        """Read the arguments of `attention`."""
        options = {name: value for name, value in options.items() if value is not None}
        batch, sq, sk = q.shape[0], q.shape[2], k.shape[2]
        return cls(
            np.asarray(q, np.float64),
            np.asarray(k, np.float64),
            np.asarray(v, np.float64),
            kv_lengths=np.broadcast_to(options.pop("kv_lengths", sk), (batch,)),
            q_lengths=np.broadcast_to(options.pop("q_lengths", sq), (batch,)),
            slopes=options.pop("alibi_slopes", None),
            **options,
        )

    def having(self, **changes: Any) -> Call:
        """Return this call with some attributes replaced."""
        return replace(self, **changes)

    @cached_property
    def i(self) -> np.ndarray:
        """Row numbers of the queries, (Sq, 1)."""
        return np.arange(self.q.shape[2])[:, None]

    @cached_property
    def j(self) -> np.ndarray:
        """Positions of the keys, (Sk,)."""
        return np.arange(self.k.shape[2])

    @cached_property
    def offset(self) -> np.ndarray:
        """Keys before the query block, (B|1, 1, 1, 1)."""
        if isinstance(self.align, str):
            lower = self.align == "bottom_right"
            return each(self.kv_lengths - self.q_lengths if lower else np.zeros(1, int))
        return each(self.align)

    @cached_property
    def p(self) -> np.ndarray:
        """Positions of the queries among the keys, (B|1, 1, Sq, 1)."""
        return np.asarray(self.i + self.offset)


def each(per_batch: Any) -> np.ndarray:
    """Lay one number per batch entry along the first of four axes."""
    return np.reshape(per_batch, (-1, 1, 1, 1))
