"""How a mistake is planted: a step of the pipeline is replaced, and a predicate says on which cases it can act."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from refattn.conformance.contract import Bug
from refattn.conformance.precision import DTYPES, round_to
from refattn.contracts.attention.call import sizes
from refattn.contracts.attention.pipeline import Steps, run

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from refattn.conformance.contract import Case
    from refattn.contracts.attention.call import Call
    from refattn.primitives.attention import AttentionResult

__all__ = [
    "aligned",
    "always",
    "both",
    "given",
    "grouped",
    "is_causal",
    "is_set",
    "keys_longer_than",
    "not_causal",
    "partly_hidden",
    "planted",
    "stored_in",
    "unscaled",
    "wide_exponent",
]


def planted(
    name: str,
    description: str,
    remedy: str,
    applies: Callable[[Case], bool] | None = None,
    dtypes: tuple[str, ...] = DTYPES,
    option: str = "",
    **replaced: Callable[..., Any],
) -> Bug:
    """Return the bug that replaces the given steps of the pipeline; its source is the first of them.

    Parameters
    ----------
    name, description, remedy, dtypes
        Of the bug.
    applies : callable, optional
        ``case -> bool``; by default, whether the case has the option, if there is one, and else always.
    option : str
        The argument in whose handling the mistake lies; calls without it come out right.
    **replaced
        The wrong steps, by the names of `Steps`.
    """
    return Bug(
        name,
        description,
        wrong=partial(_run_planted, Steps(**replaced), option),
        applies=both(given(option), applies or always) if option else applies or always,
        dtypes=dtypes,
        source=next(iter(replaced.values())),
        remedy=remedy,
    )


def _run_planted(steps: Steps, option: str, *arrays: np.ndarray, **options: Any) -> AttentionResult:
    return run(steps if not option or is_set(options.get(option)) else Steps(), *arrays, **options)


def is_set(value: Any) -> bool:
    """Return whether an argument is given and not off."""
    return value is not None and value is not False


def always(_case: Case) -> bool:
    """Act on every case."""
    return True


def given(*names: str) -> Callable[[Case], bool]:
    """Act on cases that have all these arrays or options."""

    def applies(case: Case) -> bool:
        return all(is_set(case.arrays.get(name, case.options.get(name))) for name in names)

    return applies


def both(*predicates: Callable[[Case], bool]) -> Callable[[Case], bool]:
    """Act on cases of which every predicate is true."""

    def applies(case: Case) -> bool:
        return all(predicate(case) for predicate in predicates)

    return applies


def is_causal(case: Case) -> bool:
    """Act on causal cases."""
    return bool(case.options.get("causal"))


def not_causal(case: Case) -> bool:
    """Act on cases without the causal rule."""
    return not is_causal(case)


def aligned(align: str) -> Callable[[Case], bool]:
    """Act on cases of this alignment."""

    def applies(case: Case) -> bool:
        return bool(case.options.get("align", "top_left") == align)

    return applies


def unscaled(case: Case) -> bool:
    """Act on cases that leave the scale to its default."""
    return case.options.get("scale") is None


def grouped(case: Case) -> bool:
    """Act on cases whose kv heads are fewer than the query heads, and more than one."""
    return 1 < sizes(case).hkv < sizes(case).hq


def keys_longer_than(length: int) -> Callable[[Case], bool]:
    """Act on cases of more keys than this."""

    def applies(case: Case) -> bool:
        return sizes(case).sk > length

    return applies


def partly_hidden(case: Case) -> bool:
    """Act on cases with a rule that hides keys."""
    named = ("mask", "kv_lengths", "q_lengths", "doc_q", "chunk")
    window = case.options.get("window", (None, None))
    return is_causal(case) or any(given(name)(case) for name in named) or any(side is not None for side in window)


def stored_in(c: Call) -> str:
    """Return the narrowest dtype that holds the call's numbers: the one that a kernel would have been given."""
    for dtype in ("bfloat16", "float16", "float32"):
        if all((round_to(x, dtype) == x).all() for x in (c.q, c.k, c.v)):
            return dtype
    return "float64"


def wide_exponent(c: Call) -> str:
    """Return the dtype in which a kernel takes exponentials: float32, or float64 for float64 inputs."""
    return "float64" if stored_in(c) == "float64" else "float32"
