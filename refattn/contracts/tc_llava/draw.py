"""Inputs for the entries of tc_llava: named scenarios, and strategies for drawn ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case
from refattn.layers.tc_llava import TCAttentionWeights
from refattn.layers.tc_llava_streaming import TCCache, tc_prefill

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from refattn.conformance.contract import Maker

__all__ = [
    "APPENDED",
    "FAMILIES",
    "LAYOUTS",
    "appended_cases",
    "appended_scenarios",
    "layout_cases",
    "layout_scenarios",
    "layouts",
    "sequence_cases",
    "sequence_scenarios",
    "until",
]

FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling")
Segments = list[list[int]]


class Layout(NamedTuple):
    """Sizes, segments and options of one scenario; ``n_heads`` is 2 unless said."""

    batch: int
    length: int
    width: int
    segments: Segments
    options: Mapping[str, Any] = {}


TWO_VIDEOS: Segments = [[2, 3, 4], [16, 2, 3]]

LAYOUTS: dict[str, Layout] = {
    "two_videos": Layout(2, 25, 16, TWO_VIDEOS),
    "weights": Layout(1, 19, 12, [[3, 4, 3]], {"return_weights": True, "gamma": 2.0}),
    "causal": Layout(2, 25, 8, TWO_VIDEOS, {"variant": "causal", "gamma": 0.25}),
    "full_visual": Layout(2, 25, 8, TWO_VIDEOS, {"variant": "full_visual"}),
    "half_gamma": Layout(1, 22, 12, [[1, 3, 3], [11, 2, 4]], {"gamma": 0.5}),
    "no_gamma": Layout(1, 19, 16, [[3, 4, 3]], {"gamma": 0.0}),
    "no_gamma_causal": Layout(1, 19, 8, [[3, 4, 3]], {"gamma": 0.0, "variant": "causal"}),
    "large_gamma": Layout(1, 17, 8, [[2, 3, 4]], {"gamma": 16.0, "base": 500.0}),
    "eq5_tail": Layout(1, 25, 12, TWO_VIDEOS, {"tail": "eq5"}),
    "image": Layout(1, 11, 8, [[3, 1, 5]]),
    "thin_frames": Layout(1, 12, 8, [[4, 5, 1]]),
    "no_tail": Layout(1, 24, 12, [[4, 5, 4]], {"n_heads": 3}),
    "only_video": Layout(2, 12, 8, [[0, 3, 4]]),
    "adjacent": Layout(1, 15, 8, [[0, 2, 3], [6, 1, 2], [8, 2, 2]]),
    "adjacent_full": Layout(1, 14, 8, [[1, 2, 3], [7, 2, 3]], {"variant": "full_visual"}),
    "only_text": Layout(3, 13, 8, []),
    "narrow_heads": Layout(1, 18, 16, [[5, 2, 5]], {"n_heads": 8}),
    "one_head": Layout(1, 18, 10, [[5, 2, 5]], {"n_heads": 1}),
    "frames_of_17": Layout(1, 59, 8, [[5, 3, 17]]),
    "one_token": Layout(2, 1, 4, [[0, 1, 1]]),
    "no_batch": Layout(0, 6, 4, [[1, 2, 2]]),
    "no_tokens": Layout(1, 0, 4, []),
}

# how many tokens are in the cache when the others arrive
APPENDED: dict[str, tuple[int, Layout]] = {
    "word_after_video": (14, Layout(2, 15, 8, [[2, 3, 4]])),
    "word_in_text": (15, Layout(1, 16, 8, [[2, 3, 4]], {"gamma": 2.0})),
    "next_frame": (10, Layout(2, 14, 8, [[2, 3, 4]], {"gamma": 0.5})),
    "second_video": (15, Layout(1, 25, 16, TWO_VIDEOS)),
    "whole_video": (2, Layout(1, 14, 8, [[2, 3, 4]], {"variant": "full_visual"})),
    "cut_frame": (4, Layout(1, 15, 8, [[2, 3, 4]], {"variant": "causal"})),
    "eq5_tail": (14, Layout(1, 20, 8, [[2, 3, 4]], {"tail": "eq5"})),
    "empty_cache": (0, Layout(1, 9, 8, [[1, 2, 3]])),
    "plain": (8, Layout(2, 13, 12, [[1, 2, 3]], {"gamma": 0.0, "n_heads": 3, "base": 100.0})),
    "nothing_new": (9, Layout(1, 9, 8, [[1, 2, 3]])),
}


def until(segments: Segments, end: int) -> Segments:
    """Return the part of the segments before ``end``; a frame that is cut counts as a frame of fewer tokens."""
    found: Segments = []
    for start, n_frames, m in segments:
        whole, rest = divmod(min(max(end - start, 0), n_frames * m), m)
        found += [[start, whole, m]] * (whole > 0) + [[start + whole * m, 1, rest]] * (rest > 0)
    return found


def _tokens(entry: str, layout: Layout, family: str, dtype: str, seed: int, *, label: str) -> Case:
    rng = generator(seed, entry, label)
    x = fill(rng, (layout.batch, layout.length, layout.width), family)
    w = rng.standard_normal((4, layout.width, layout.width)) / np.sqrt(layout.width)
    arrays = {"x": x, "weights": TCAttentionWeights(*w)}
    options = {"segments": layout.segments, "n_heads": 2, **layout.options}
    return Case(entry, rounded(arrays, dtype), options, dtype, f"{label}/{family}")


def _appended(entry: str, past: int, layout: Layout, family: str, dtype: str, seed: int, *, label: str) -> Case:
    case = _tokens(entry, layout, family, dtype, seed, label=label)
    x, weights = case.arrays["x"], case.arrays["weights"]
    before = {**case.options, "segments": until(layout.segments, past)}
    _, cache = tc_prefill(x[:, :past], weights, **before)
    arrays = {"x": x[:, past:].copy(), "cache": TCCache(*rounded(cache, dtype)), "weights": weights}
    return Case(entry, arrays, case.options, dtype, case.label)


def _positions(
    entry: str, layout: Layout, names: tuple[str, ...], _family: str, dtype: str, _seed: int, *, label: str
) -> Case:
    options = {name: value for name, value in layout.options.items() if name in names}
    # without an array there is nothing to take a dtype from: positions are float64 whatever the tokens are
    dtype = "float64" if "gamma" in names else dtype
    return Case(entry, {}, {"length": layout.length, "segments": layout.segments, **options}, dtype, f"{label}/none")


def sequence_scenarios(entry: str, names: Iterable[str] = LAYOUTS) -> dict[str, Maker]:
    """Return the scenarios of these names for an entry that takes whole sequences."""
    return {name: partial(_tokens, entry, LAYOUTS[name], label=name) for name in names}


def appended_scenarios(entry: str) -> dict[str, Maker]:
    """Return the scenarios of an entry that takes a cache and new tokens."""
    return {name: partial(_appended, entry, *APPENDED[name], label=name) for name in APPENDED}


def layout_scenarios(entry: str, *names: str) -> dict[str, Maker]:
    """Return the scenarios of an entry that takes no arrays, only a layout and the named options."""
    return {
        name: partial(_positions, entry, layout, names, label=name)
        for name, layout in LAYOUTS.items()
        if layout.batch and layout.length and (not layout.options or set(layout.options) & set(names))
    }


@st.composite
def layouts(draw: st.DrawFn, *, whole_blocks: bool = True) -> tuple[Layout, int]:
    """Draw a layout of text runs and videos, and a place to cut it that is no place inside a visual block."""
    segments: Segments = []
    place = 0
    cuts = {0}
    variant = draw(st.sampled_from(["fwbc", "causal", "full_visual"]))
    for _ in range(draw(st.integers(0, 3))):
        start = place + draw(st.integers(0, 3))
        n_frames, m = draw(st.integers(1, 3)), draw(st.integers(1, 4))
        segments.append([start, n_frames, m])
        cuts |= set(range(place, start + 1))
        cuts |= {start + f * m for f in range(n_frames)} if variant != "full_visual" else set()
        place = start + n_frames * m
    length = max(1, place + draw(st.integers(0, 3)))
    cuts |= set(range(place, length + 1))
    n_heads = draw(st.integers(1, 2))
    options = {
        "n_heads": n_heads,
        "variant": variant,
        "gamma": draw(st.sampled_from([1.0, 0.0, 0.5, 2.0])),
        "base": draw(st.sampled_from([10000.0, 100.0])),
        "tail": draw(st.sampled_from(["continue", "eq5"])),
    }
    width = n_heads * draw(st.sampled_from([2, 4, 6]))
    cut = draw(st.sampled_from(sorted(cuts))) if whole_blocks else 0
    return Layout(draw(st.integers(1, 2)), length, width, segments, options), cut


def sequence_cases(entry: str, dtype: str) -> st.SearchStrategy[Case]:
    """Return a strategy for cases of an entry that takes whole sequences."""
    return st.builds(
        lambda drawn, family, seed: _tokens(entry, drawn[0], family, dtype, seed, label="drawn"),
        layouts(),
        st.sampled_from(FAMILIES),
        st.integers(0, 2**16),
    )


def appended_cases(entry: str, dtype: str) -> st.SearchStrategy[Case]:
    """Return a strategy for cases of an entry that takes a cache and new tokens."""
    return st.builds(
        lambda drawn, family, seed: _appended(entry, drawn[1], drawn[0], family, dtype, seed, label="drawn"),
        layouts(),
        st.sampled_from(FAMILIES),
        st.integers(0, 2**16),
    )


def layout_cases(entry: str, dtype: str, *names: str) -> st.SearchStrategy[Case]:
    """Return a strategy for cases of an entry that takes no arrays."""
    return st.builds(lambda drawn: _positions(entry, drawn[0], names, "none", dtype, 0, label="drawn"), layouts())
