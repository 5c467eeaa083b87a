"""Depth-wise convolution: entry, laws and mistakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Bug, Case, Claim, Entry, Law
from refattn.contracts.biformer.straight import correlate
from refattn.primitives.convolution import depthwise_conv2d

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Probe

__all__ = ["CONVOLUTION"]

_FAMILIES = ("normal", "uniform", "peaky", "tied", "large", "cancelling", "tiny")
Array = Any


def _convolution(
    label: str, shape: tuple[int, int, int, int], kernel: tuple[int, int], family: str, dtype: str, seed: int
) -> Case:
    rng = generator(seed, label, family)
    C = shape[-1]
    arrays = {"x": fill(rng, shape, family), "w": rng.standard_normal((C, *kernel))}
    if "no_bias" not in label:
        arrays["b"] = fill(rng, (C,), family)
    return Case("depthwise_conv2d", rounded(arrays, dtype), {}, dtype, f"{label}/{family}")


_CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int]]] = {
    "default": ((2, 6, 7, 4), (3, 3)),
    "wide": ((1, 7, 5, 3), (5, 5)),
    "oblong_kernel": ((1, 5, 6, 3), (3, 5)),
    "kernel_larger_than_map": ((1, 2, 1, 3), (5, 5)),
    "single_tap": ((2, 3, 4, 4), (1, 1)),
    "single_token": ((1, 1, 1, 2), (3, 3)),
    "no_bias": ((1, 4, 4, 3), (3, 3)),
    "empty_batch": ((0, 4, 4, 3), (3, 3)),
}


@st.composite
def _drawn_convolution(draw: Any, dtype: str) -> Case:
    side = st.integers(1, 6)
    shape = (draw(st.integers(1, 2)), draw(side), draw(side), draw(st.integers(1, 4)))
    kernel = (draw(st.sampled_from((1, 3, 5))), draw(st.sampled_from((1, 3, 5))))
    label = draw(st.sampled_from(("drawn", "drawn_no_bias")))
    return _convolution(label, shape, kernel, draw(st.sampled_from(_FAMILIES)), dtype, draw(st.integers(0, 999)))


def _convolution_cases(dtype: str) -> SearchStrategy[Case]:
    return _drawn_convolution(dtype)


def _flipped(x: Array, w: Array, b: Array = None) -> Array:
    return _each(x, w[:, ::-1, ::-1], b)


def _transposed_kernel(x: Array, w: Array, b: Array = None) -> Array:
    return _each(x, np.swapaxes(w, 1, 2), b)


def _first_kernel_for_all(x: Array, w: Array, b: Array = None) -> Array:
    return _each(x, np.broadcast_to(w[:1], w.shape), b)


def _without_bias(x: Array, w: Array, b: Array = None) -> Array:
    del b
    return _each(x, w, None)


def _edges_repeated(x: Array, w: Array, b: Array = None) -> Array:
    return _bordered(x, w, b, mode="edge")


def _wrapped_around(x: Array, w: Array, b: Array = None) -> Array:
    return _bordered(x, w, b, mode="wrap")


def _anchored_top_left(x: Array, w: Array, b: Array = None) -> Array:
    kh, kw = w.shape[1:]
    padded = np.pad(x, [(0, 0), (0, kh - 1), (0, kw - 1), (0, 0)])
    return _taps(padded, w, b, x.shape)


def _bordered(x: Array, w: Array, b: Array, *, mode: Any) -> Array:
    kh, kw = w.shape[1:]
    padded = np.pad(x, [(0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)], mode=mode)
    return _taps(padded, w, b, x.shape)


def _taps(padded: Array, w: Array, b: Array, shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape) if b is None else np.zeros(shape) + b
    for i, j in np.ndindex(*w.shape[1:]):
        out = out + padded[:, i : i + shape[1], j : j + shape[2]] * w[:, i, j]
    return out


def _each(x: Array, w: Array, b: Array) -> Array:
    kh, kw = w.shape[1:]
    side = max(kh, kw)
    square = np.pad(w, [(0, 0), ((side - kh) // 2,) * 2, ((side - kw) // 2,) * 2])
    out = np.stack([correlate(image, square) for image in x])
    return out if b is None else out + b


def _acts(case: Case) -> bool:
    return bool(case.arrays["x"].size > 0)


def _has_neighbours(case: Case) -> bool:
    return bool(_acts(case) and case.arrays["w"].shape[1] * case.arrays["w"].shape[2] > 1)


_CONVOLUTION_BUGS = (
    Bug(
        "flipped",
        "the kernel is flipped, a convolution as signal processing means it",
        _flipped,
        _has_neighbours,
        remedy="Correlate.",
    ),
    Bug(
        "transposed_kernel",
        "rows and columns of the kernel are exchanged",
        _transposed_kernel,
        _has_neighbours,
        remedy="The kernel's first axis runs along the height.",
    ),
    Bug(
        "first_kernel_for_all",
        "all channels use the kernel of the first",
        _first_kernel_for_all,
        lambda case: _acts(case) and case.arrays["x"].shape[-1] > 1,
        remedy="Every channel has its own kernel.",
    ),
    Bug(
        "without_bias",
        "the bias is forgotten",
        _without_bias,
        lambda case: _acts(case) and "b" in case.arrays,
        remedy="Add b to every token.",
    ),
    Bug(
        "edges_repeated",
        "the border repeats the edge of the map",
        _edges_repeated,
        _has_neighbours,
        remedy="Zeros surround the map.",
    ),
    Bug(
        "wrapped_around",
        "the border wraps around to the other side",
        _wrapped_around,
        _has_neighbours,
        remedy="Zeros surround the map.",
    ),
    Bug(
        "anchored_top_left",
        "the kernel starts at the token instead of being centred on it",
        _anchored_top_left,
        _has_neighbours,
        remedy="Tap i reads row y + i − ⌊kh/2⌋.",
    ),
)


def _one_tap_shifts(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    w, x = np.zeros_like(case.arrays["w"]), case.arrays["x"]
    kh, kw = w.shape[1:]
    i, j = int(rng.integers(kh)), int(rng.integers(kw))
    w[:, i, j] = 1.0
    padded = np.pad(x, [(0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)])
    shifted = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
    single = case.having(w=w).without("b")
    yield Claim(probe(single)["out"], shifted, probe.slack(single)["out"], what=f"tap ({i}, {j})")


def _channels_are_apart(probe: Probe, case: Case, rng: np.random.Generator) -> Iterator[Claim]:
    order = rng.permutation(case.arrays["x"].shape[-1])
    changes = {"x": case.arrays["x"][..., order].copy(), "w": case.arrays["w"][order].copy()}
    if "b" in case.arrays:
        changes["b"] = case.arrays["b"][order].copy()
    turned = case.having(**changes)
    yield Claim(probe(case)["out"][..., order], probe(turned)["out"], 2 * probe.slack(case)["out"])


CONVOLUTION = Entry(
    "depthwise_conv2d",
    depthwise_conv2d,
    ("x", "w"),
    {name: partial(_convolution, name, *spec) for name, spec in _CONVOLUTIONS.items()},
    _FAMILIES,
    _convolution_cases,
    smoke=(("default", "normal"), ("oblong_kernel", "normal")),
    laws=(
        Law(
            "one_tap_shifts",
            "A kernel with a single 1 moves the map by that tap's distance from the centre and brings in zeros.",
            _one_tap_shifts,
            _acts,
            witness="flipped",
        ),
        Law(
            "channels_are_apart",
            "Permuting channels, kernels and biases together permutes the output alike.",
            _channels_are_apart,
            _acts,
            witness="first_kernel_for_all",
        ),
    ),
    bugs=_CONVOLUTION_BUGS,
    differentiable=("x", "w", "b"),
    axes={"x": ("B", "H", "W", "C"), "w": ("C", "kh", "kw"), "b": ("C",)},
)
