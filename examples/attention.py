"""Attention at laptop scale: whether a kernel is wrong or only rounded, and which rules can tell.

Correct kernels in eight precision classes and the planted mistakes are judged by the kit's error model and by published
fixed tolerances. What papers claim stands beside what comes out; the numbers of the larger run are the project's own.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from contextlib import nullcontext
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from attention_kernels import CLASSES, kernels, rules
from claims import FIGURES, Claim, main, save

from refattn.conformance.diagnose import bug_outputs
from refattn.conformance.precision import round_to
from refattn.conformance.registry import find_contracts
from refattn.conformance.verdict import judge, row_limits
from refattn.contracts.attention.error_model import attention_budget
from refattn.contracts.attention.error_twins import twin
from refattn.primitives.attention import attention
from refattn.primitives.attention_online import attention_online

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refattn.conformance.contract import Bug, Case, Entry

INK, TEAL, RUST, GREY = "#707a80", "#1b8a96", "#c8553d", "#9aa3a8"
SQUARE = ("plain_square", "causal_square", "gqa")
BOUNDS = {
    "float32": 1.5e-4,
    "float16 fused": 2.6e-3,
    "float16 eager": 2.0e-2,
    "bfloat16 fused": 1.9e-2,
    "bfloat16 eager": 0.18,
}
UNTOLD = ("empty_uniform", "all_results")  # a policy that the kernels here do not have; more outputs than they give


def entry() -> Entry:
    """Return the contract's entry of the operator itself."""
    return find_contracts()["attention"].entry("attention")


def cases(dtype: str, *, quick: bool, subnormal: bool = True) -> Iterator[Case]:
    """Yield one case for each scenario and family."""
    scenarios = [name for name in entry().scenarios if name not in UNTOLD]
    families = [name for name in entry().families if subnormal or name != "subnormal"]
    for number, scenario in enumerate(scenarios[::3] if quick else scenarios):
        for family in families[number % 8 :: 8] if quick else families[number % 3 :: 3]:
            yield entry().scenarios[scenario](family, dtype, number)


# (a) correct kernels are never rejected


class Alarms(NamedTuple):
    """What became of correct kernels: runs, rejections, and the largest share of each limit."""

    runs: int
    rejected: int
    element: float
    row: float
    pooled: float


def alarms(name: str, *, quick: bool) -> Alarms:
    """Judge every correct kernel of a precision class on every case."""
    dtype, style = CLASSES[name]
    reports, rejected = [], 0
    for case in cases(dtype, quick=quick):
        budget = attention_budget(case, style)["out"]
        for run in kernels(name).values():
            verdict = judge(run(case), budget)
            rejected += verdict.status == "fail"
            reports.append(verdict.report)
    worst = [max(report.get(key, 0.0) for report in reports) for key in ("element", "row", "pooled")]
    return Alarms(len(reports), rejected, *worst)


@cache
def all_alarms(quick: bool) -> dict[str, Alarms]:
    """Return the outcome of every precision class."""
    return {name: alarms(name, quick=quick) for name in CLASSES}


# (b) published rules on the same material


def wrong_outputs(dtype: str, *, quick: bool) -> Iterator[tuple[Case, np.ndarray]]:
    """Yield the rounded output of every planted mistake on cases where it acts and stays finite."""
    material = list(cases(dtype, quick=quick, subnormal=False))
    order = np.random.default_rng(0)
    for bug in entry().bugs[:: 4 if quick else 1]:
        if dtype in bug.dtypes:
            shuffled = (material[i] for i in order.permutation(len(material)))
            yield from islice(((c, o) for c in shuffled if (o := acting(bug, c)) is not None), 1 if quick else 3)


def acting(bug: Bug, case: Case) -> np.ndarray | None:
    """Return the output of a mistake, rounded to the dtype, or nothing if it does not act on the case."""
    if not bug.applies(case):
        return None
    wrong = bug_outputs(entry(), bug, case)["out"]
    out, right = round_to(wrong, case.dtype), round_to(entry().expected(case)["out"], case.dtype)
    return None if not np.isfinite(out).all() or np.array_equal(out, right) else out


def rates(dtype: str, *, quick: bool) -> dict[str, tuple[float, float]]:
    """Return for each rule, ours first, the share of correct runs rejected and of wrong outputs accepted."""
    published = rules(dtype)
    alarm: dict[str, list[bool]] = {rule: [] for rule in ["ours", *published]}
    miss: dict[str, list[bool]] = {rule: [] for rule in ["ours", *published]}
    classes = [name for name in CLASSES if name.startswith(dtype) and not name.endswith("low")]
    for case in cases(dtype, quick=quick, subnormal=False):
        y, low = entry().expected(case)["out"], twin(case).out
        for name in classes:
            budget = attention_budget(case, CLASSES[name][1])["out"]
            for run in kernels(name).values():
                out = run(case)
                alarm["ours"].append(judge(out, budget).status == "fail")
                for rule, accepts in published.items():
                    alarm[rule].append(bool(np.isfinite(y).all()) and not accepts(out, y, low))
    for case, out in wrong_outputs(dtype, quick=quick):
        y, low = entry().expected(case)["out"], twin(case).out
        miss["ours"].append(judge(out, attention_budget(case)["out"]).status != "fail")
        for rule, accepts in published.items():
            miss[rule].append(accepts(out, y, low))
    return {rule: (float(np.mean(alarm[rule])), float(np.mean(miss[rule]))) for rule in alarm}


# (e) the published habit: positive inputs, square shapes


def caught_by_habit(dtype: str) -> tuple[int, int]:
    """Return how many mistakes uniform inputs on three plain shapes catch, and how many there are."""
    bugs = [bug for bug in entry().bugs if dtype in bug.dtypes]
    caught: set[str] = set()
    for scenario in SQUARE:
        case = entry().scenarios[scenario]("uniform", dtype, 0)
        budget = attention_budget(case)["out"]
        for bug in bugs:
            if bug.name not in caught and bug.applies(case):
                out = round_to(bug_outputs(entry(), bug, case)["out"], dtype)
                caught |= {bug.name} if judge(out, budget).status == "fail" else set()
    return len(caught), len(bugs)


# (f) the width of the error model, and the cost


def row_norm(x: np.ndarray) -> np.ndarray:
    """Return the L2 norm of each row."""
    return np.asarray(np.linalg.norm(x, axis=-1))


def widths(name: str) -> tuple[float, list[float]]:
    """Return medians over rows of ‖B‖ / ‖y‖, and of ‖σ‖ / ‖error‖ for each kernel: normal inputs, 60 keys, d = 32."""
    from refattn.conformance.cases import rounded
    from refattn.conformance.contract import Case

    dtype, style = CLASSES[name]
    rng = np.random.default_rng(1)
    arrays = {part: rng.standard_normal((2, 4, 60, 32)) for part in "qkv"}
    case = Case("attention", rounded(arrays, dtype), {}, dtype)
    budget = attention_budget(case, style)["out"]
    y, sigma = budget.expected, row_norm(budget.sigma)
    errors = [np.maximum(row_norm(run(case) - y), np.finfo(float).tiny) for run in kernels(name).values()]
    return float(np.median(row_norm(budget.bound) / row_norm(y))), [float(np.median(sigma / e)) for e in errors]


def exponents(*, quick: bool) -> tuple[float, float, float]:
    """Return the growth of time with length, direct and in blocks, and the ratio of the two at the longest."""
    lengths = (512, 1024, 2048) if quick else (1024, 2048, 4096)
    times = np.array([[seconds(length, online=online) for length in lengths] for online in (False, True)])
    direct, blocked = (np.polyfit(np.log(lengths), np.log(row), 1)[0] for row in times)
    return float(direct), float(blocked), float(times[0, -1] / times[1, -1])


def seconds(length: int, *, online: bool) -> float:
    """Return the least processor time of three runs, one head of 64 channels."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 1, length, 64))
    best = np.inf
    with one_thread():
        for _ in range(3):
            began = time.process_time()
            if online:
                attention_online(q, k, v, block_q=256, block_k=256)
            else:
                attention(q, k, v)
            best = min(best, time.process_time() - began)
    return best


def one_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread where that can be said; threads that wait for each other would be counted as work."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def claims(quick: bool) -> list[Claim]:
    """Reproduce what NumPy alone can show."""
    return [*false_alarms(quick), *comparison(quick), *habit(), *model(), cost(quick)]


def verdict(holds: bool) -> str:
    """Return the word for a claim that holds or does not."""
    return "reproduced" if holds else "not reproduced"


def false_alarms(quick: bool) -> list[Claim]:
    """Return claim (a)."""
    found = all_alarms(quick)
    runs, rejected = sum(a.runs for a in found.values()), sum(a.rejected for a in found.values())
    worst = max(found.items(), key=lambda item: item[1].row)
    shares = f"nearest to a limit: {worst[0]}, {worst[1].row:.2f} of a row's"
    return [
        Claim(
            "no_false_alarms",
            "Correct kernels in eight precision classes, on every scenario and family: none is rejected.",
            "0 of 165,888 runs (a larger run of ours)",
            f"{rejected} of {runs:,} runs; {shares}",
            verdict(rejected == 0),
        )
    ]


def comparison(quick: bool) -> list[Claim]:
    """Return claim (b), one line for each dtype."""
    result = []
    for dtype in ("bfloat16", "float16", "float32"):
        found = rates(dtype, quick=quick)
        ours, others = found.pop("ours"), found
        listed = "; ".join(f"{rule}: {a:.1%} / {m:.1%}" for rule, (a, m) in others.items())
        free = [rule for rule, (a, _) in others.items() if a == 0]
        better = all(others[rule][1] >= ours[1] for rule in free)
        result.append(
            Claim(
                f"rules_{dtype}",
                f"In {dtype} the budget raises no alarm on correct kernels, a published rule does on at least 1 %, and "
                "no rule without alarms lets fewer wrong outputs pass (alarms / misses).",
                {"bfloat16": "0 % / 4.0 %", "float16": "0 % / 3.7 %", "float32": "0 % / 7.1 %"}[dtype]
                + " (a larger run of ours)",
                f"ours: {ours[0]:.1%} / {ours[1]:.1%}; {listed}",
                verdict(ours[0] == 0 and max(a for a, _ in others.values()) >= 0.01 and better),
            )
        )
    return result


def habit() -> list[Claim]:
    """Return claim (e)."""
    result = []
    for dtype, paper in (("bfloat16", (38, 109)), ("float32", (41, 109))):
        caught, bugs = caught_by_habit(dtype)
        result.append(
            Claim(
                f"habit_{dtype}",
                f"Uniform inputs on square, square causal and grouped shapes catch fewer than half of the planted "
                f"mistakes in {dtype}, even with the best rule.",
                f"{paper[0]} of {paper[1]} (a larger run of ours)",
                f"{caught} of {bugs}",
                verdict(2 * caught < bugs),
            )
        )
    return result


def model() -> list[Claim]:
    """Return claim (f)."""
    found = {name: widths(name) for name in CLASSES}
    bounds = "; ".join(f"{name} {b:.1e}" for name, (b, _) in found.items())
    ratios = [ratio for _, several in found.values() for ratio in several]
    listed = "; ".join(f"{name} {min(several):.2f}–{max(several):.2f}" for name, (_, several) in found.items())
    return [
        Claim(
            "sigma_is_the_error",
            "For normal inputs the predicted σ of a row is 1 to 2.5 times its true error in all precision classes.",
            "1–2.5 in all eight classes (a larger run of ours)",
            f"σ / error: {listed}",
            verdict(min(ratios) >= 1.0 and max(ratios) <= 2.5),
        ),
        Claim(
            "bounds_by_class",
            "The bound of an element follows from the precision class: ‖B‖/‖y‖ for normal inputs, each within a "
            "third of the larger run's.",
            "float32 1.5e-4; float16 fused 2.6e-3, eager 2.0e-2; bfloat16 fused 1.9e-2, eager 0.18, low ≫ 1",
            bounds,
            verdict(all(abs(found[name][0] / known - 1) < 1 / 3 for name, known in BOUNDS.items())),
        ),
    ]


def cost(quick: bool) -> Claim:
    """Return the cost claim: time grows with the square of the length, and blocks do not change that."""
    direct, blocked, ratio = exponents(quick=quick)
    return Claim(
        "quadratic_time",
        "Time grows with the square of the length, in the direct form and in blocks.",
        "exponents 2.09 direct, 1.90 in blocks; blocks 1.4 times faster at 8192 (a larger run of ours)",
        f"exponents {direct:.2f} direct, {blocked:.2f} in blocks; direct / blocks at the longest: {ratio:.2f}",
        verdict(1.6 <= direct <= 2.5 and 1.6 <= blocked <= 2.5),
    )


# the figures


def panels() -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Return name, weights, visibility and outputs of example E under each option."""
    w = np.array([1.0, 2.0, 3.0, 4.0])
    q, k = np.ones((1, 1, 4, 1)), np.log(w).reshape(1, 1, 4, 1)
    v = 12.0 * w.reshape(1, 1, 4, 1)
    docs = np.array([0, 0, 1, 1])
    options = {
        "everything": {},
        "causal": {"causal": True},
        "window (1, None)": {"causal": True, "window": (1, None)},
        "prefix of 2": {"causal": True, "prefix": 2},
        "two documents": {"causal": True, "doc_q": docs, "doc_k": docs},
        "softcap 1": {"softcap": 1.0},
        "ALiBi, q = 0": {"alibi_slopes": np.array([np.log(2.0)]), "scale": 0.0},
        "sink ln 10": {"sinks": np.array([np.log(10.0)])},
    }
    result = []
    for name, given in options.items():
        found = attention(q, k, v, returns=("out", "weights", "logits"), **given)
        result.append((name, found.weights[0, 0], found.logits[0, 0] > -np.inf, found.out[0, 0, :, 0]))
    return result


def figure(quick: bool) -> Figure:  # noqa: ARG001  the picture is the same
    """Show the weights of the example E under eight options.

    Rows are four equal queries, columns the keys of weight 1, 2, 3 and 4; a dot is a hidden key. The number at the end
    of a row is its output, which you can check in your head: the values are 12, 24, 36 and 48.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.6, 4.9), layout="constrained")
    for axes, panel in zip(picture.subplots(2, 4).flat, panels(), strict=True):
        draw_panel(axes, *panel)
    return picture


def draw_panel(axes: Axes, name: str, weights: np.ndarray, visible: np.ndarray, outputs: np.ndarray) -> None:
    """Draw one 4 × 4 matrix of weights."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    for i in range(4):
        for j in range(4):
            if visible[i, j]:
                shade = to_rgba(TEAL, 0.12 + 0.88 * float(weights[i, j]))
                box = FancyBboxPatch((j - 0.42, i - 0.42), 0.84, 0.84, boxstyle="round,pad=0,rounding_size=0.1")
                box.set(facecolor=shade, edgecolor="none")
                axes.add_patch(box)
            else:
                axes.plot(j, i, ".", color=GREY, markersize=3)
        axes.text(3.75, i, f"{outputs[i]:.4g}", va="center", ha="left", fontsize=9, color=INK)
    axes.set(xlim=(-0.6, 4.7), ylim=(3.6, -0.6), aspect="equal", xticks=[], yticks=[])
    axes.set_title(name, fontsize=10, color=INK, loc="left")
    axes.spines[:].set_visible(False)


def errors_figure(quick: bool) -> Figure:
    """Ask of every kernel: is it wrong, or only rounded.

    Each dot is one kernel on one case: across, how far rounding is expected to move its worst row; up, how far the row
    is really off, both relative to the row. Correct kernels of eight precision classes lie along one line; the planted
    mistakes lie above it, at any height, but for the few that are smaller than the dtype can show. A fixed tolerance is
    a horizontal line: it cuts through both.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.6, 5.4), layout="constrained")
    axes = picture.subplots()
    wrong = np.array(list(scatter_wrong(quick=quick)))
    axes.plot(*wrong.T, "x", color=RUST, markersize=3.5, alpha=0.55, label="planted mistakes", markeredgewidth=0.9)
    hues = {"float64": "#5b6fb5", "float32": "#7d5ba6", "float16": "#1b8a96", "bfloat16": "#c2912e"}
    for dtype, hue in hues.items():
        classes = [name for name in CLASSES if name.partition(" ")[0] == dtype]
        dots = np.array([dot for name in classes for dot in scatter_right(name, quick=quick)])
        axes.plot(*dots.T, "o", color=hue, markersize=3, alpha=0.6, label=f"correct, {dtype}", markeredgewidth=0)
    span = np.array([1e-17, 3.0])
    axes.plot(span, span, color=INK, linewidth=1)
    axes.text(2e-17, 3.2e-17, "error = σ", fontsize=9, color=INK, rotation=33)
    for level, name in ((1e-2, "1e-2 (KernelBench)"), (5e-3, "0.005 (FLA)"), (1.3e-6, "1.3e-6 (torch, float32)")):
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (5, 3)))
        below = name.startswith("0.005")
        axes.text(
            1.2e-17, level * (0.8 if below else 1.25), name, fontsize=8, color=INK, va="top" if below else "bottom"
        )
    axes.set(xscale="log", yscale="log", xlim=(1e-17, 3), ylim=(1e-17, 1e3))
    axes.set_xlabel("expected: ‖σ‖ / ‖y‖ of the row", color=INK)
    axes.set_ylabel("real: ‖error‖ / ‖y‖", color=INK)
    axes.legend(loc="lower right", fontsize=9, frameon=False, labelcolor=INK, markerscale=1.6)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    return picture


def worst_row(out: np.ndarray, case: Case, style: str | None) -> tuple[float, float] | None:
    """Return σ and error, relative to the row, of the row that uses most of its limit."""
    budget = attention_budget(case, style)["out"]
    limits, size = row_limits(budget), row_norm(np.where(np.isfinite(budget.expected), budget.expected, 0.0))
    fair = np.isfinite(limits) & (limits > 0) & (size > 0)
    if not fair.any():
        return None
    error = row_norm(np.where(np.isfinite(out - budget.expected), out - budget.expected, 0.0))
    at = np.argmax(np.where(fair, error / np.where(fair, limits, 1.0), 0.0))
    sigma, size, error = row_norm(budget.sigma).flat[at], size.flat[at], error.flat[at]
    return (float(sigma / size), float(error / size)) if error > 0 else None


def scatter_right(name: str, *, quick: bool) -> Iterator[tuple[float, float]]:
    """Yield a dot for every correct kernel of a class and every third case."""
    dtype, style = CLASSES[name]
    for case in islice(cases(dtype, quick=quick, subnormal=False), 0, None, 3):
        for run in kernels(name).values():
            dot = worst_row(run(case), case, style)
            if dot:
                yield dot


def scatter_wrong(*, quick: bool) -> Iterator[tuple[float, float]]:
    """Yield a dot for every planted mistake in every dtype."""
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        for case, out in islice(wrong_outputs(dtype, quick=quick), 0, None, 3):
            dot = worst_row(out, case, None)
            if dot:
                yield dot


if __name__ == "__main__":
    main("attention", claims, figure)
    if "--quick" not in sys.argv:
        save(errors_figure(quick=False), FIGURES / "attention-errors.svg")
