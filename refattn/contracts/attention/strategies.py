"""Hypothesis strategies for attention and its kin: sizes and options are drawn, numbers come from a drawn seed.

Because arrays are built from structure and seed, shrinking a failing example makes the structure small: fewer options,
shorter axes, one head. All strategies are public; another project may draw its own test cases from them::

    @given(attention_cases("float32", features=("causal", "kv_lengths")))
    def test_my_kernel(case): ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import generator, rounded
from refattn.conformance.contract import Case
from refattn.contracts.attention.families import FAMILIES, project
from refattn.contracts.attention.scenarios import loud
from refattn.contracts.attention.scenarios_kin import as_gradient
from refattn.primitives.alibi import alibi_slopes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FEATURES", "WIDTHS", "Drawn", "attention_cases", "axis_lengths", "gradient_cases", "seeds"]

WIDTHS = (4, 1, 2, 3, 8, 16, 32)


class Drawn(NamedTuple):
    """What the options of one case are drawn for: its sizes and its random numbers."""

    batch: int
    hq: int
    hkv: int
    sq: int
    sk: int
    rng: np.random.Generator


def axis_lengths(*, least: int = 1, most: int = 40) -> st.SearchStrategy[int]:
    """Return lengths of an axis, with those at the edge of a block of 16 or 32 drawn more often.

    Parameters
    ----------
    least, most : int
        Bounds, inclusive.
    """
    edges = [n for n in (1, 2, 15, 16, 17, 31, 32, 33, 0) if least <= n <= most]
    return st.one_of(st.integers(max(least, min(1, most)), most), st.sampled_from(edges))


def seeds() -> st.SearchStrategy[int]:
    """Return seeds of the numbers in a case."""
    return st.integers(0, 2**16)


def _scale(_x: Drawn, draw: Any) -> dict[str, Any]:
    return {"scale": draw(st.sampled_from((0.5, 1.0, 0.0625, -0.5, 0.0)))}


def _softcap(_x: Drawn, draw: Any) -> dict[str, Any]:
    return {"softcap": draw(st.sampled_from((2.0, 0.5, 30.0)))}


def _bias(x: Drawn, draw: Any) -> dict[str, Any]:
    shape = draw(_broadcast_shapes(x))
    bias = 2.0 * x.rng.standard_normal(shape)
    bias[x.rng.random(shape) < draw(st.sampled_from((0.0, 0.2)))] = -np.inf
    return {"bias": bias}


def _mask(x: Drawn, draw: Any) -> dict[str, Any]:
    shape = draw(_broadcast_shapes(x))
    return {"mask": x.rng.random(shape) < draw(st.sampled_from((0.7, 0.2, 1.0)))}


@st.composite
def _broadcast_shapes(draw: Any, x: Drawn) -> tuple[int, ...]:
    """Draw a shape that broadcasts against (B, Hq, Sq, Sk); the last axis is whole."""
    full = (x.batch, x.hq, x.sq, x.sk)
    rank = draw(st.sampled_from((4, 2, 3, 1)))
    axes = [n if draw(st.booleans()) else 1 for n in full[4 - rank : 3]]
    return (*axes, x.sk)


def _causal(_x: Drawn, _draw: Any) -> dict[str, Any]:
    return {"causal": True}


def _align(x: Drawn, draw: Any) -> dict[str, Any]:
    return {"align": draw(st.one_of(st.just("bottom_right"), st.integers(-2, x.sk)))}


def _window(_x: Drawn, draw: Any) -> dict[str, Any]:
    sides = st.one_of(st.none(), st.integers(0, 20))
    return {"window": draw(st.tuples(sides, sides))}


def _kv_lengths(x: Drawn, draw: Any) -> dict[str, Any]:
    n = draw(st.lists(st.integers(0, x.sk), min_size=x.batch, max_size=x.batch))
    return {"kv_lengths": np.array(n, int)}


def _q_lengths(x: Drawn, draw: Any) -> dict[str, Any]:
    n = draw(st.lists(st.integers(0, x.sq), min_size=x.batch, max_size=x.batch))
    return {"q_lengths": np.array(n, int)}


def _prefix(x: Drawn, draw: Any) -> dict[str, Any]:
    return {"prefix": draw(st.integers(0, x.sk)), "causal": True}


def _documents(x: Drawn, draw: Any) -> dict[str, Any]:
    count = draw(st.integers(1, 4))
    return {f"doc_{side}": np.sort(x.rng.integers(0, count, n)) for side, n in (("q", x.sq), ("k", x.sk))}


def _chunk(_x: Drawn, draw: Any) -> dict[str, Any]:
    return {"chunk": draw(st.integers(1, 20))}


def _alibi(x: Drawn, _draw: Any) -> dict[str, Any]:
    return {"alibi_slopes": alibi_slopes(x.hq)}


def _sinks(x: Drawn, draw: Any) -> dict[str, Any]:
    return {"sinks": x.rng.standard_normal(x.hq) + draw(st.sampled_from((0.0, 3.0, -3.0)))}


def _empty(_x: Drawn, draw: Any) -> dict[str, Any]:
    return {"empty": draw(st.sampled_from(("uniform", "nan")))}


def _returns(_x: Drawn, draw: Any) -> dict[str, Any]:
    return {"returns": ("out", draw(st.sampled_from(("lse", "weights"))))}


_FEATURES: dict[str, Callable[[Drawn, Any], dict[str, Any]]] = {
    "causal": _causal,
    "align": _align,
    "window": _window,
    "kv_lengths": _kv_lengths,
    "mask": _mask,
    "bias": _bias,
    "softcap": _softcap,
    "alibi_slopes": _alibi,
    "sinks": _sinks,
    "scale": _scale,
    "documents": _documents,
    "prefix": _prefix,
    "chunk": _chunk,
    "q_lengths": _q_lengths,
    "empty": _empty,
    "returns": _returns,
}
FEATURES = tuple(_FEATURES)


@st.composite
def attention_cases(
    draw: Any,
    dtype: str = "float64",
    *,
    features: Sequence[str] = FEATURES,
    families: Sequence[str] = tuple(FAMILIES),
    most: int = 40,
    empties: bool = True,
) -> Case:
    """Draw cases of `attention`.

    Parameters
    ----------
    dtype : str
        Of the cases.
    features : sequence of str
        Names from `FEATURES` that may be combined, up to four at a time.
    families : sequence of str
        Value families.
    most : int
        Longest sequence.
    empties : bool
        Whether lengths may be 0.
    """
    batch = draw(st.integers(1, 3))
    hkv, group = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 3, 4)))
    least = 0 if empties else 1
    sq = draw(axis_lengths(least=least, most=most))
    sk = draw(st.one_of(st.just(sq), axis_lengths(least=least, most=most)))
    d = draw(st.sampled_from(WIDTHS))
    dv = draw(st.sampled_from((d, 1, 3, 24)))
    family, seed = draw(st.sampled_from(list(families))), draw(seeds())
    rng = generator(seed, "drawn", family)
    q, k, v = project(rng, family, dtype, q=(batch, group * hkv, sq, d), k=(batch, hkv, sk, d), dv=dv)
    sizes = Drawn(batch, group * hkv, hkv, sq, sk, rng)
    chosen: dict[str, Any] = {}
    names = draw(st.lists(st.sampled_from(list(features)), unique=True, max_size=4)) if features else []
    if "causal" in features and draw(st.booleans()):
        names = ["causal", *names]  # the commonest rule meets every other
    for name in names:
        chosen |= _FEATURES[name](sizes, draw)
    arrays = {name: x for name, x in chosen.items() if isinstance(x, np.ndarray)}
    if "kv_lengths" in arrays:
        k = loud(k, arrays["kv_lengths"], 3.0, largest=False)
        v = loud(v, arrays["kv_lengths"], 2.0, largest=True)
    options = {name: x for name, x in chosen.items() if name not in arrays}
    return Case("attention", rounded({"q": q, "k": k, "v": v, **arrays}, dtype), options, dtype, f"drawn/{family}")


@st.composite
def gradient_cases(draw: Any, dtype: str = "float64", *, features: Sequence[str] = FEATURES, most: int = 24) -> Case:
    """Draw cases of `attention_vjp`; arguments as in `attention_cases`."""
    usable = tuple(name for name in features if name not in ("returns", "empty"))
    # products of subnormal numbers vanish in a backward pass: what is left tests only whether they are flushed
    families = tuple(family for family in FAMILIES if family != "subnormal")
    case = draw(attention_cases(dtype, features=usable, families=families, most=most, empties=False))
    return as_gradient(case, generator(draw(seeds()), "cotangents"))
