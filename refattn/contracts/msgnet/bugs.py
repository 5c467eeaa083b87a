"""Mistakes that people make with MSGNet, each one exchanged step of an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.contract import Mistake
from refattn.contracts.msgnet import plain
from refattn.contracts.msgnet.plain import neighbour, softmax

if TYPE_CHECKING:
    from refattn.conformance.contract import Case

__all__ = [
    "ADJACENCY_BUGS",
    "ATTENTION_BUGS",
    "BLOCK_BUGS",
    "FORECAST_BUGS",
    "GRAPH_BUGS",
    "MIXHOP_BUGS",
    "SCALE_BUGS",
]


# --- which inputs show a mistake


def _options(case: Case) -> dict[str, Any]:
    defaults = {"depth": 2, "alpha": 0.3, "causal": True, "placement": "window", "residual": "graph"}
    return {**defaults, **case.options}


def _filled(case: Case) -> bool:
    first = next(iter(case.arrays.values()))
    return bool(first.size)


def _many_windows(case: Case) -> bool:
    return len(case.arrays["x"]) > 1 and _scales_of(case) > 1


def _scales_of(case: Case) -> int:
    return int(case.options["k"]) if "k" in case.options else len(case.arrays["weights"].graphs)


def _many_scales(case: Case) -> bool:
    return _scales_of(case) > 1


def _long(case: Case) -> bool:
    return bool(case.arrays["x"].shape[1] > 3)


def _uneven(case: Case) -> bool:
    return case.arrays["x"].shape[1] in (5, 7, 11, 13)


def _chained(case: Case) -> bool:
    return _options(case)["placement"] == "window" and _many_scales(case)


def _added_to_graph(case: Case) -> bool:
    return bool(_options(case)["residual"] == "graph")


def _hides(case: Case) -> bool:
    times = case.arrays["z"] if "z" in case.arrays else case.arrays["x"]
    return bool(_options(case)["causal"] and times.size and times.shape[1] > 3)


def _many_heads(case: Case) -> bool:
    return _filled(case) and case.options["n_heads"] > 1


def _many_segments(case: Case) -> bool:
    return len(case.arrays["z"]) > 1


def _many_times(case: Case) -> bool:
    return _filled(case) and case.arrays["z"].shape[1] > 2


def _hops(case: Case) -> bool:
    return _filled(case) and _options(case)["depth"] >= 1


def _kept_and_hopped(case: Case) -> bool:
    return _hops(case) and _options(case)["alpha"] not in (0.0, 0.5, 1.0)


def _moved(case: Case) -> bool:
    return _hops(case) and _options(case)["alpha"] < 1.0


def _hops_again(case: Case) -> bool:
    return _filled(case) and _options(case)["depth"] >= 2 and _options(case)["alpha"] < 1.0


def _slides(case: Case) -> bool:
    return _filled(case) and case.arrays["weights"].start_w.ndim == 2 and case.arrays["weights"].start_w.shape[1] > 1


def _negative(case: Case) -> bool:
    common = case.arrays["e1"] @ case.arrays["e2"]
    return bool((common < -0.1).any())


def _looks_up(case: Case) -> bool:
    return isinstance(case.arrays["weights"].embedding.marks, tuple) and "marks" in case.arrays


def _own_maps(case: Case) -> bool:
    return bool(case.arrays["weights"].head.time_w.ndim == 3)


def _blocks(case: Case) -> bool:
    return len(case.arrays["weights"].blocks) >= 1


# --- scales


def _power(F: Any) -> Any:
    return np.abs(F) ** 2


def _real_part(F: Any) -> Any:
    return np.abs(F.real)


def _one_window_decides(amplitudes: Any) -> Any:
    return amplitudes[0].mean(axis=-1)


def _constant_part_kept(spectrum: Any) -> Any:
    return spectrum


def _lowest_first(spectrum: Any, k: int) -> Any:
    return np.sort(np.argsort(-spectrum, kind="stable")[:k])


def _weakest_first(spectrum: Any, k: int) -> Any:
    return np.argsort(-spectrum, kind="stable")[:k][::-1]


def _rounded_up(T: int, f: Any) -> Any:
    return -(-T // f)


def _batch_average(amplitudes: Any, freqs: Any) -> Any:
    mean = amplitudes[:, freqs].mean(axis=(0, 2))
    return np.broadcast_to(mean, (len(amplitudes), len(freqs)))


# --- graphs


def _negative_products_kept(e1: Any, e2: Any) -> Any:
    return e1 @ e2


def _columns_sum_to_one(m: Any) -> Any:
    return softmax(m, 0)


def _edges_turned(m: Any) -> Any:
    return softmax(m, -1).T


def _no_loop(A: Any) -> Any:
    return A / A.sum(axis=1, keepdims=True)


def _loop_not_normalised(A: Any) -> Any:
    return A + np.eye(len(A))


def _columns_normalised(A: Any) -> Any:
    A = A + np.eye(len(A))
    return A / A.sum(axis=0, keepdims=True)


def _alpha_turned_round(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    return (1 - alpha) * h0 + alpha * np.einsum("vw,bcwt->bcvt", A, h)


def _every_hop_from_the_start(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    del h
    return alpha * h0 + (1 - alpha) * np.einsum("vw,bcwt->bcvt", A, h0)


def _last_hop_kept(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    del h0
    return alpha * h + (1 - alpha) * np.einsum("vw,bcwt->bcvt", A, h)


def _against_the_edges(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    return alpha * h0 + (1 - alpha) * np.einsum("wv,bcwt->bcvt", A, h)


def _next_in_line(h0: Any, h: Any, A: Any, alpha: float) -> Any:
    del A
    return alpha * h0 + (1 - alpha) * (h + np.roll(h, 1, axis=2)) / 2


def _hops_backwards(hops: Any) -> Any:
    return np.concatenate(hops[::-1], axis=1)


def _turned_round(x: Any, n: int, M: int) -> Any:
    return x[..., n : n + M][..., ::-1]


def _from_the_end(x: Any, n: int, M: int) -> Any:
    D = x.shape[-1]
    return x[..., D - M - n : D - n]


def _sigmoid_form(x: Any) -> Any:
    return x / (1.0 + np.exp(-1.702 * x))


def _update_alone(x: Any, update: Any) -> Any:
    del x
    return update


# --- attention


def _all_times(s: int, causal: bool) -> Any:
    del causal
    return np.ones((s, s), dtype=bool)


def _strictly_before(s: int, causal: bool) -> Any:
    return np.tri(s, k=-1, dtype=bool) | (np.arange(s)[:, None] == 0) | (not causal)


def _root_of_width(width: int, size: int) -> float:
    del size
    return float(width**-0.5)


def _over_queries(s: Any) -> Any:
    return softmax(s, -2)


def _joined(z: Any) -> Any:
    return z.reshape(1, -1, z.shape[-1])


# --- blocks


def _zeros_first(x: Any, zeros: Any) -> Any:
    return np.concatenate([zeros, x], axis=1)


def _sigmoids(strengths: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-strengths))


def _equal_shares(strengths: Any) -> Any:
    return np.full(strengths.shape, 1.0 / strengths.shape[1])


def _over_the_batch(strengths: Any) -> Any:
    return softmax(strengths, 0)


def _side_by_side(x: Any, mixed: Any) -> Any:
    del mixed
    return x


def _input_again(x: Any, mixed: Any) -> Any:
    del mixed
    return x


def _not_bent(z: Any) -> Any:
    return z


# --- forecast


def _deviation_of_a_sample(x: Any) -> Any:
    return np.sqrt(x.var(axis=1, keepdims=True) * x.shape[1] / (x.shape[1] - 1) + 1e-5)


def _guard_outside_the_root(x: Any) -> Any:
    return x.std(axis=1, keepdims=True) + 1e-5


def _taps_turned_round(x: Any, j: int) -> Any:
    return np.roll(x, j - 1, axis=1)


def _border_of_zeros(x: Any, j: int) -> Any:
    moved = neighbour(x, j).copy()
    if j != 1:
        moved[:, 0 if j == 0 else -1] = 0.0
    return moved


def _counted_from_one(mark: Any) -> Any:
    return mark - 1


def _never_normalised(out: Any, normed: Any) -> Any:
    del normed
    return out


def _map_of_the_first(time_w: Any, n: int) -> Any:
    del n
    return time_w[0]


def _mean_left_out(y: Any, sd: Any, mu: Any) -> Any:
    del mu
    return y * sd


def _mean_before_deviation(y: Any, sd: Any, mu: Any) -> Any:
    return (y + mu) * sd


AMPLITUDE = "Amplitudes: the absolute value of complex numbers, not squared."
SCALES = (
    Mistake("amplitude", _power, "strength is power", AMPLITUDE),
    Mistake("amplitude", _real_part, "only cosines count", AMPLITUDE),
    Mistake(
        "average",
        _one_window_decides,
        "the first window decides for all",
        "Average over windows and features, then choose.",
        lambda case: len(case.arrays["x"]) > 1,
    ),
    Mistake("varying", _constant_part_kept, "frequency 0 competes", "A constant has no period: set it to 0."),
    Mistake("choose", _lowest_first, "scales are sorted by frequency", "The strongest comes first.", _many_scales),
    Mistake("choose", _weakest_first, "the weakest comes first", "The strongest comes first.", _many_scales),
    Mistake("period", _rounded_up, "periods are rounded up", "Whole periods: T // f, rounded down.", _uneven),
    Mistake(
        "strength", _batch_average, "all windows weigh alike", "Each window has its own amplitudes.", _many_windows
    ),
)
HOPPING = (
    Mistake("looped", _no_loop, "a series is no neighbour of itself", "Add the identity before normalising.", _moved),
    Mistake("looped", _loop_not_normalised, "rows sum to 2 or more", "Normalise after adding the identity.", _moved),
    Mistake(
        "looped", _columns_normalised, "senders are normalised", "The weights of a receiver, a row, sum to 1.", _moved
    ),
    Mistake(
        "hop",
        _alpha_turned_round,
        "alpha weighs the neighbours",
        "alpha is what is kept of the start.",
        _kept_and_hopped,
    ),
    Mistake(
        "hop",
        _every_hop_from_the_start,
        "no hop goes further than one",
        "Each hop starts where the last one ended.",
        _hops_again,
    ),
    Mistake(
        "hop",
        _last_hop_kept,
        "alpha keeps the hop before",
        "alpha keeps the start, hop 0.",
        lambda case: _hops_again(case) and _options(case)["alpha"] > 0,
    ),
    Mistake("hop", _against_the_edges, "series send along their rows", "A row holds what a series receives.", _moved),
    Mistake(
        "hop",
        _next_in_line,
        "neighbours are those next in line",
        "Neighbours are what the adjacency says.",
        lambda case: _moved(case) and case.arrays["h0"].shape[2] > 2,
    ),
    Mistake("stacked", _hops_backwards, "the last hop comes first", "Hop 0 first.", _moved),
)
EDGES = (
    Mistake(
        "common",
        _negative_products_kept,
        "negative products count",
        "ReLU before the softmax: below zero is zero.",
        _negative,
    ),
    Mistake(
        "edges", _columns_sum_to_one, "weights of senders sum to 1", "The softmax runs along rows, over the senders."
    ),
    Mistake("edges", _edges_turned, "rows and columns are exchanged", "Row v belongs to receiver v."),
)
GRAPHS = (
    Mistake("seen", _turned_round, "the kernel is turned round", "Cross-correlation: tap 0 meets feature n.", _slides),
    Mistake(
        "seen", _from_the_end, "the last series reads the first features", "Series n starts at feature n.", _slides
    ),
    Mistake(
        "gelu",
        _sigmoid_form,
        "GELU by a sigmoid",
        "The exact form, with the error function.",
        _filled,
        ("float64", "float32"),
    ),
    Mistake("added", _update_alone, "what came in is lost", "Add the update to x, then normalise.", _filled),
)
ATTENDING = (
    Mistake("past", _all_times, "segments see their future", "The released code hides later times.", _hides),
    Mistake("past", _strictly_before, "no time sees itself", "The diagonal is visible.", _hides),
    Mistake("scale", _root_of_width, "logits over √D", "Divide by √(D/H), the width of a head.", _many_heads),
)
SEGMENTS = (
    Mistake("weigh", _over_queries, "weights sum to 1 over queries", "Over the keys.", _many_times),
    Mistake("apart", _joined, "segments are one sequence", "Segments are a batch.", _many_segments),
)
BLOCKS = (
    Mistake("padded", _zeros_first, "zeros stand before the window", "Zeros go to the end.", _uneven),
    Mistake("shares", _sigmoids, "shares need not sum to 1", "Softmax over the scales."),
    Mistake("shares", _equal_shares, "all scales weigh alike", "Softmax of the amplitudes.", _many_scales),
    Mistake("shares", _over_the_batch, "windows compete", "Scales compete, in each window.", _many_windows),
    Mistake(
        "following",
        _side_by_side,
        "each graph reads the block's input",
        "The released code chains the graphs.",
        _chained,
    ),
    Mistake(
        "rest",
        _input_again,
        "the block's input is added",
        "The released code adds what the last graph has made.",
        _added_to_graph,
    ),
    Mistake("bent", _not_bent, "no GELU after attention", "GELU after the shared normalisation."),
)
FORECASTS = (
    Mistake("deviation", _deviation_of_a_sample, "divided by T − 1", "The population's variance, divided by T."),
    Mistake("deviation", _guard_outside_the_root, "1e-5 stands outside the root", "√(variance + 1e-5)."),
    Mistake("neighbour", _taps_turned_round, "the kernel is turned round", "Tap 0 meets the time before."),
    Mistake("neighbour", _border_of_zeros, "zeros beyond the window", "The window is a circle."),
    Mistake("row", _counted_from_one, "marks are counted from 1", "A mark is its row; row 0 may stay idle.", _looks_up),
    Mistake("after", _never_normalised, "blocks are not normalised", "One shared normalisation follows each.", _blocks),
    Mistake("map_of", _map_of_the_first, "one map for all series", "Series n has map n.", _own_maps),
    Mistake("restored", _mean_left_out, "forecasts stay around 0", "Times the deviation, plus the mean."),
    Mistake(
        "restored", _mean_before_deviation, "the mean is multiplied too", "Times the deviation first, then the mean."
    ),
)

SCALE_BUGS = tuple(mistake.planted(plain.scales, "scales_") for mistake in SCALES)
ADJACENCY_BUGS = tuple(mistake.planted(plain.adjacency, "adjacency_") for mistake in EDGES)
MIXHOP_BUGS = tuple(mistake.planted(plain.mixhop, "mixhop_") for mistake in HOPPING)
GRAPH_BUGS = tuple(mistake.planted(plain.graph, "graph_") for mistake in (*GRAPHS, HOPPING[0], HOPPING[4]))
ATTENTION_BUGS = tuple(mistake.planted(plain.attention, "attention_") for mistake in (*ATTENDING, *SEGMENTS))
BLOCK_BUGS = tuple(mistake.planted(plain.block, "block_") for mistake in (*BLOCKS, ATTENDING[0]))
FORECAST_BUGS = tuple(mistake.planted(plain.forecast, "forecast_") for mistake in FORECASTS)
