"""How inputs about retrieval heads are drawn: attention rows that often, and not always, look where they should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import Recipe, fill, given

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AVERAGE",
    "CORRELATION",
    "HITS",
    "INSERT",
    "OVERLAP",
    "SPAN",
    "average_sizes",
    "correlation_sizes",
    "hit_sizes",
    "insert_sizes",
    "overlap_sizes",
    "span_sizes",
]

Drawn = tuple[dict[str, Any], dict[str, Any]]


def _hits(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw rows whose largest weight lies, every other time, on a place that holds the token of the step."""
    S, L, H, P = (sizes[name] for name in "SLHP")
    start, end = span = sizes.get("span", (-1, -1))
    prompt = rng.integers(sizes.get("tokens", 4), size=P)
    generated = rng.integers(sizes.get("tokens", 4), size=S)
    if end > start:
        generated = np.where(rng.random(S) < 0.8, prompt[rng.integers(start, end, S)], generated)
    rows: np.ndarray = np.abs(fill(rng, (S, L, H, P + S * sizes.get("padded", False)), family)) + 0.5
    for s, layer, head in np.ndindex(S, L, H):
        places = np.flatnonzero(prompt == generated[s])
        if len(places) and rng.random() < 0.6:
            rows[s, layer, head, rng.choice(places)] += 8.0
        rows[s, layer, head, P + s :] = np.nan
    return {"attn_rows": rows, "generated": generated, "prompt": prompt}, {
        "span": span,
        **given(sizes, "topk", "unique"),
    }


@st.composite
def hit_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes, a span and options of `retrieval_hits`."""
    P = draw(st.integers(1, 10))
    start = draw(st.integers(0, P - 1))
    inside = (start, draw(st.integers(start + 1, P)))
    sizes = {"S": draw(st.integers(0, 5)), "L": draw(st.integers(1, 2)), "H": draw(st.integers(1, 3)), "P": P}
    options = {"topk": draw(st.integers(1, 3)), "unique": draw(st.booleans()), "padded": draw(st.booleans())}
    return sizes | options | {"span": draw(st.sampled_from([inside, inside, (-1, -1)])), "tokens": 3}


PERIODS = np.array([7, 8])


def _insert(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    del family
    context = rng.integers(7, size=sizes["n"])
    context = np.where(rng.random(sizes["n"]) < sizes.get("stops", 0.3), rng.choice(PERIODS, sizes["n"]), context)
    needle = 20 + rng.integers(5, size=sizes["m"])
    options = {"length": sizes["length"], "depth": sizes["depth"], **given(sizes, "buffer")}
    return {"context": context, "needle": needle, "period_ids": PERIODS.copy()}, options


@st.composite
def insert_sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw sizes and options of `insert_needle`, with and without room for the whole context."""
    n, m, buffer = draw(st.integers(0, 16)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    length = draw(st.integers(m + buffer, n + m + buffer + 3))
    depth = draw(st.sampled_from([0, 11, 22, 33, 44, 56, 67, 78, 89, 100]))
    return {"n": n, "m": m, "length": length, "depth": depth, "buffer": buffer}


def _span(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw a text over few tokens; the needle's own tokens are shared with it or begin at 50."""
    del family
    ids = rng.integers(sizes["tokens"], size=sizes["n"])
    needle = rng.integers(sizes["tokens"], size=sizes["m"]) + 50 * sizes.get("apart", False)
    for at in rng.integers(len(ids) + 1, size=sizes.get("times", 1)):
        ids = np.concatenate([ids[:at], needle, ids[at:]])
    return {"ids": ids, "needle": needle}, given(sizes, "threshold")


span_sizes = st.fixed_dictionaries(
    {"n": st.integers(0, 14), "m": st.integers(1, 5), "tokens": st.integers(2, 6)},
    optional={
        "times": st.integers(0, 2),
        "threshold": st.sampled_from([0.25, 0.5, 0.75, 1.0]),
        "apart": st.booleans(),
    },
)


def _overlap(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    del family
    few = sizes.get("tokens", 4)
    return {
        "reference_ids": rng.integers(few, size=sizes["m"]),
        "generated_ids": rng.integers(few, size=sizes["n"]),
    }, {}


overlap_sizes = st.fixed_dictionaries({"m": st.integers(1, 6), "n": st.integers(0, 8)})


def _average(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    """Draw scores that are often zero, and recalls in quarters, so that some lie on the border."""
    del family
    N, L, H = (sizes[name] for name in "NLH")
    scores = rng.integers(0, 7, (N, L, H)) / 6.0 * (rng.random((N, L, H)) < 0.6)
    recalls = sizes.get("recall", rng.integers(0, 5, N) / 4.0)
    return {"scores": scores, "recalls": np.broadcast_to(recalls, N).copy()}, given(sizes, "min_recall")


average_sizes = st.fixed_dictionaries(
    {"N": st.integers(0, 6), "L": st.integers(1, 2), "H": st.integers(1, 3)},
    optional={"min_recall": st.sampled_from([0.0, 0.25, 0.5, 0.75])},
)


def _correlation(rng: np.random.Generator, family: str, sizes: Mapping[str, Any]) -> Drawn:
    shape = sizes["L"], sizes["H"]
    a = fill(rng, shape, family)
    shared = sizes.get("shared", 0.5)
    return {"a": a, "b": shared * a + fill(rng, shape, family) + sizes.get("offset", 0.0)}, {}


correlation_sizes = st.fixed_dictionaries(
    {"L": st.integers(2, 3), "H": st.integers(2, 4)},
    optional={"shared": st.sampled_from([-1.0, 0.0, 2.0]), "offset": st.sampled_from([-1.0, 1.0])},
)

HITS = Recipe("retrieval_hits", _hits, ("normal", "tied"))
INSERT = Recipe("insert_needle", _insert, ("drawn",))
SPAN = Recipe("find_span", _span, ("drawn",))
OVERLAP = Recipe("unigram_overlap", _overlap, ("drawn",))
AVERAGE = Recipe("average_scores", _average, ("drawn",))
CORRELATION = Recipe("score_correlation", _correlation, ("normal", "uniform", "peaky"))
