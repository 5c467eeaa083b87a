"""Hypothesis strategies for attention's kin: packed sequences, paged caches, merged parts, rotary embedding.

Like those of `strategies`: structure is drawn, numbers come from a drawn seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from refattn.contracts.attention.families import FAMILIES
from refattn.contracts.attention.scenarios_kin import MERGE_FAMILIES, make_merge, make_paged, make_varlen
from refattn.contracts.attention.scenarios_rotary import ROTARY_FAMILIES, SCALINGS, make_rotary
from refattn.contracts.attention.strategies import WIDTHS, axis_lengths, seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refattn.conformance.contract import Case

__all__ = ["merge_cases", "paged_cases", "rotary_cases", "varlen_cases"]


@st.composite
def varlen_cases(draw: Any, dtype: str = "float64", *, families: Sequence[str] = tuple(FAMILIES)) -> Case:
    """Draw cases of `attention_varlen`: up to four sequences, empty ones among them.

    Parameters
    ----------
    dtype : str
        Of the cases.
    families : sequence of str
        Value families.
    """
    pairs = draw(
        st.lists(st.tuples(axis_lengths(least=0, most=33), axis_lengths(least=0, most=33)), min_size=1, max_size=4)
    )
    hkv, group = draw(st.sampled_from(((1, 1), (1, 3), (2, 2), (3, 1))))
    options = draw(_kernel_options())
    return make_varlen(
        draw(st.sampled_from(list(families))),
        dtype,
        draw(seeds()),
        name="drawn",
        queries=tuple(sq for sq, _ in pairs),
        keys=tuple(sk for _, sk in pairs),
        heads=(group * hkv, hkv),
        d=draw(st.sampled_from(WIDTHS)),
        alibi=draw(st.booleans()),
        sinks=draw(st.booleans()),
        **options,
    )


@st.composite
def _kernel_options(draw: Any) -> dict[str, Any]:
    """Draw the options that packed and paged attention share."""
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["window"] = (draw(st.integers(0, 9)), None)
    if draw(st.booleans()):
        options["softcap"] = 2.0
    return options


@st.composite
def paged_cases(draw: Any, dtype: str = "float64", *, families: Sequence[str] = tuple(FAMILIES)) -> Case:
    """Draw cases of `attention_paged`: small pages, lengths from 0 to all slots.

    Parameters
    ----------
    dtype : str
        Of the cases.
    families : sequence of str
        Value families.
    """
    page, count = draw(st.sampled_from((4, 1, 16))), draw(st.integers(1, 3))
    batch, (hkv, group) = draw(st.integers(1, 3)), draw(st.sampled_from(((1, 1), (1, 3), (2, 2))))
    lengths = draw(st.lists(st.integers(0, page * count), min_size=batch, max_size=batch))
    options = draw(_kernel_options())
    return make_paged(
        draw(st.sampled_from(list(families))),
        dtype,
        draw(seeds()),
        name="drawn",
        size=(batch, group * hkv, hkv, draw(axis_lengths(most=17)), page * count),
        lengths=tuple(lengths),
        page=page,
        d=draw(st.sampled_from(WIDTHS)),
        sinks=draw(st.booleans()),
        **options,
    )


@st.composite
def merge_cases(draw: Any, dtype: str = "float64") -> Case:
    """Draw cases of `merge_attention` in ``dtype``: one to six parts, empty ones among them."""
    parts, rows = draw(st.integers(1, 6)), draw(axis_lengths(most=17))
    return make_merge(
        draw(st.sampled_from(MERGE_FAMILIES)),
        dtype,
        draw(seeds()),
        name="drawn",
        shape=(parts, draw(st.integers(1, 2)), draw(st.integers(1, 3)), rows, draw(st.sampled_from((4, 1, 16)))),
        spread=draw(st.sampled_from((1.0, 4.0, 0.0))),
        empty=draw(st.sampled_from((0.0, 0.5))),
        sinks=draw(st.booleans()),
    )


@st.composite
def rotary_cases(draw: Any, dtype: str = "float64") -> Case:
    """Draw cases of `rotary_embedding` in ``dtype``: pairings, partial widths, positions, scaling rules."""
    pairs = draw(st.integers(1, 12))
    spare = draw(st.sampled_from((0, 2, 1, 5)))
    options: dict[str, Any] = {"interleaved": draw(st.booleans()), "inverse": draw(st.booleans())}
    if spare:
        options["rotary_dim"] = 2 * pairs
    if draw(st.booleans()):
        options["theta"] = draw(st.sampled_from((500000.0, 100.0)))
    scaling = draw(st.sampled_from((None, *(rule for rule in SCALINGS if rule != "longrope" or pairs == 8))))
    if scaling is not None:
        options |= {"scaling": SCALINGS[scaling], "length": draw(st.sampled_from((32, 200)))}
    return make_rotary(
        draw(st.sampled_from(ROTARY_FAMILIES)),
        dtype,
        draw(seeds()),
        name="drawn",
        shape=(draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(axis_lengths(most=17)), 2 * pairs + spare),
        rule=draw(st.sampled_from(("count", "restart", "ragged"))),
        start=draw(st.sampled_from((0, 1, 37, 1000))),
        **options,
    )
