"""How often correct kernels are refused: thousands of them through the error budgets, class by class.

Run as a script: ``python tests/benchmarks/false_alarms.py`` takes some minutes on one core, ``--quick`` one. It prints
the counts and, without ``--quick``, writes them to ``docs/false-alarms.md``. PyTorch's kernels take part where PyTorch
is installed.
"""

import argparse
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import rounded_kernels
import rounded_layers

from refattn.conformance.cases import FAMILIES as LAYER_FAMILIES
from refattn.conformance.cases import generator
from refattn.conformance.contract import Entry, unpack
from refattn.conformance.monte_carlo import MonteCarloArithmetic, monte_carlo_budgets, perturbed_outputs
from refattn.conformance.precision import DTYPES, precision_class, round_to, unit_roundoff
from refattn.conformance.verdict import judge, row_limits
from refattn.contracts.attention import CONTRACT
from refattn.contracts.attention.error_model import attention_budget, gradient_budget, rope_budget, twin
from refattn.contracts.attention.scenarios import SHEET_SCENARIOS
from refattn.contracts.attention.scenarios_rotary import ROTARY_FAMILIES, ROTARY_SCENARIOS

PAGE = Path(__file__).parents[2] / "docs" / "false-alarms.md"
HAS_TORCH = find_spec("torch") is not None
ATTENTION = CONTRACT.entry("attention")
WIDE = ("float64", "float32")
# wrong against a stricter declaration only, or below the resolution of 16 bits on purpose
NOT_WRONG = {"precision_eager", "precision_low", "denominator_eps", "exp_cubic", "tf32_products", "weights_bf16"}
ASSERT_CLOSE = {"float32": (1.3e-6, 1e-5), "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5)}


@dataclass
class Tally:
    """What became of the runs of one class."""

    runs: int = 0
    rejected: int = 0
    acceptable: int = 0
    inconclusive: int = 0
    open: float = 0.0
    worst: dict = field(default_factory=lambda: {"element": 0.0, "row": 0.0, "pooled": 0.0})

    def add(self, verdict, what):
        """Count one verdict; a rejected correct run is printed."""
        self.runs += 1
        self.rejected += verdict.status == "fail"
        self.acceptable += verdict.status == "acceptable"
        self.inconclusive += verdict.status == "inconclusive"
        self.open += verdict.report.get("open", 0.0)
        if verdict.status == "fail" and what:
            print(f"REJECTED {what}: {verdict.sentence}")
        if verdict.status != "acceptable":
            for name in self.worst:
                self.worst[name] = max(self.worst[name], verdict.report.get(name, 0.0))

    def cells(self):
        """Return the columns of a table."""
        numbers = [f"{self.worst[name]:.2f}" for name in ("element", "row", "pooled")]
        share = f"{self.open / max(self.runs, 1):.1%}"
        return [f"{self.runs:,}", str(self.rejected), str(self.acceptable), str(self.inconclusive), *numbers, share]


HEADS = ["runs", "rejected", "acceptable", "inconclusive", "element (1)", "row (1)", "pooled (2)", "open rows"]


def table(title, heads, rows):
    """Return a Markdown table."""
    lines = [[title, *heads], ["---"] * (len(heads) + 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def attention_cases(scenarios, families, dtypes, seeds):
    """Yield cases of `attention`, one structure after the other."""
    for scenario in scenarios:
        for family in families:
            for dtype in dtypes:
                for seed in range(seeds):
                    yield ATTENTION.scenarios[scenario](family, dtype, seed)


def kernels_for(case):
    """Yield name, class and function of the kernels that can run a case in its dtype."""
    for name, (precision, function) in rounded_kernels.KERNELS.items():
        if precision != "low" or case.dtype not in WIDE:
            yield name, None if case.dtype in WIDE else precision, function
    if HAS_TORCH:
        for name, (precision, function, takes) in rounded_kernels.TORCH_KERNELS.items():
            if takes(case):
                yield name, None if case.dtype in WIDE else precision, function


def forward(scenarios, seeds):
    """Judge every kernel on every case of the forward pass."""
    tallies = defaultdict(Tally)
    for case in attention_cases(scenarios, ATTENTION.families, DTYPES, seeds):
        budgets = {}
        for name, precision, function in kernels_for(case):
            if precision not in budgets:
                budgets[precision] = attention_budget(case, precision)["out"]
            label = case.dtype if precision is None else f"{case.dtype} {precision}"
            tallies[label].add(judge(function(case), budgets[precision]), f"{name} {case.label} {case.dtype}")
    return tallies


def backward(scenarios, seeds):
    """Judge gradients: a flash backward pass in NumPy, and PyTorch's own."""
    tallies = defaultdict(Tally)
    families = [family for family in ATTENTION.families if family != "subnormal"]
    for case in attention_cases(scenarios, families, DTYPES, seeds):
        q, v = case.arrays["q"], case.arrays["v"]
        dout = generator(len(case.label), "dout").standard_normal((*q.shape[:3], v.shape[-1]))
        pulled = replace(case, entry="attention_vjp", arrays={**case.arrays, "dout": round_to(dout, case.dtype)})
        runs = [("fused", rounded_kernels.fused_backward)]
        if HAS_TORCH and rounded_kernels.torch_takes(case, math=True):
            runs.append(("eager", rounded_kernels.torch_backward))
        for precision, function in runs:
            declared = None if case.dtype in WIDE else precision
            outputs = function(pulled)
            label = case.dtype if declared is None else f"{case.dtype} {declared}"
            for name, budget in gradient_budget(pulled, declared, names=tuple(outputs)).items():
                tallies[label].add(judge(outputs[name], budget), f"{name} {precision} {case.label} {case.dtype}")
    return tallies


def rotary(seeds):
    """Judge rotations whose tables are float32."""
    tallies = defaultdict(Tally)
    for scenario in ROTARY_SCENARIOS:
        for family in ROTARY_FAMILIES:
            for dtype in DTYPES:
                for seed in range(seeds):
                    case = ROTARY_SCENARIOS[scenario](family, dtype, seed)
                    output = rounded_kernels.float32_rotation(case)
                    tallies[dtype].add(judge(output, rope_budget(case)["out"]), f"rotation {case.label} {dtype}")
    return tallies


def layers(seeds):
    """Judge small layers against Monte Carlo budgets: rounded NumPy, and PyTorch by other routes."""
    tallies = defaultdict(Tally)
    found = [
        (name, rounded_layers.draw_case, reference, numpy_runs(name))
        for name, (reference, _) in rounded_layers.LAYERS.items()
    ]
    if HAS_TORCH:
        import torch_layers

        for name, (reference, _, kernels) in torch_layers.LAYERS.items():
            runs = [lambda case, k=kernel: torch_layers.run_kernel(k, case) for kernel in kernels]
            found.append((name, torch_layers.draw_case, reference, runs))
    for name, draw, reference, runs in found:
        entry = Entry(name, lambda reference=reference, **arrays: reference(**arrays), (), {}, (), lambda _dtype: None)
        for family in LAYER_FAMILIES:
            for dtype in DTYPES:
                for seed in range(seeds):
                    case = draw(name, family, dtype, seed)
                    budget = monte_carlo_budgets(entry, case)["out"]
                    for run in runs:
                        with np.errstate(all="ignore"):
                            tallies[dtype].add(judge(run(case), budget), f"{name} {family} {dtype} {seed}")
    return tallies


def numpy_runs(name):
    """Return the two orders of operations of one NumPy layer."""
    return [
        lambda case, other=other: rounded_layers.run_low(name, case.arrays, case.dtype, other=other)
        for other in (False, True)
    ]


def own_arithmetic(samples, seeds, runs):
    """Judge the erring runs of references themselves, against budgets made of other erring runs: {samples: Tally}."""
    references = {name: (rounded_layers.draw_case, layer[0]) for name, layer in rounded_layers.LAYERS.items()}
    if HAS_TORCH:
        import torch_layers

        references |= {name: (torch_layers.draw_case, layer[0]) for name, layer in torch_layers.LAYERS.items()}
    tallies, precision = {count: Tally() for count in samples}, precision_class(None, "float32")
    for name, (draw, reference) in references.items():
        entry = Entry(name, lambda reference=reference, **arrays: reference(**arrays), (), {}, (), lambda _dtype: None)
        for family in LAYER_FAMILIES:
            for seed in range(seeds):
                case = draw(name, family, "float32", seed)
                budgets = {n: monte_carlo_budgets(entry, case, samples=n, seed=seed)["out"] for n in samples}
                for run in range(runs):
                    machine = MonteCarloArithmetic(precision, np.random.default_rng([run, seed, 1]))
                    output = perturbed_outputs(entry, case, machine)["out"]
                    for count, budget in budgets.items():
                        tallies[count].add(judge(output, budget), "")
    return tallies


# --- what published rules would have said


def norms(x):
    """Return the L2 norm of each row."""
    return np.linalg.norm(x, axis=-1)


def accepted_by(o, low, budget, dtype):
    """Return, by rule, whether it accepts ``o``; ``low`` is the low-precision twin."""
    y, u = budget.expected, unit_roundoff(dtype)
    error, gap, size = np.abs(o - y), np.abs(low - y), np.max(np.abs(y), initial=0.0)
    rms = np.sqrt(np.mean(error**2)) / max(np.sqrt(np.mean(y**2)), 1e-300)
    judged = ~np.broadcast_to(budget.open, y.shape[:-1])
    row, twin_row = norms(error), norms(gap)
    largest = np.max(error, initial=0.0)
    rtol, atol = ASSERT_CLOSE[dtype]
    return {
        "ours: element + row + pooled": judge(o, budget).status != "fail",
        "element budget only": bool(np.all(error <= budget.bound)),
        "row rule without the twin": bool(np.all((row <= row_limits(budget._replace(twin=0.0)))[judged])),
        "row rule, 4 × twin only": bool(np.all((row <= 4 * twin_row)[judged])),
        "row: 4 × max(twin, 2 u ‖y‖)": bool(np.all((row <= 4 * np.maximum(twin_row, 2 * u * norms(y)))[judged])),
        "2 × twin, tensor maximum (FlashAttention)": largest <= 2 * np.max(gap, initial=0.0),
        "2 (twin + eps max) (attention-gym)": largest <= 2 * (np.max(gap, initial=0.0) + 2 * u * size),
        "torch assert_close defaults": bool(np.all(error <= atol + rtol * np.abs(y))),
        "relative RMS 0.005 (FLA)": bool(rms < 0.005),
        "relative RMS < 0.01 or max < 0.3 (FLA's CI)": bool(rms < 0.01 or largest <= 0.3),
        "allclose 1e-2 / 1e-2 (KernelBench)": bool(np.all(error <= 1e-2 + 1e-2 * np.abs(y))),
    }


def wrong_outputs(case, budget, rng, count):
    """Yield outputs of some planted bugs that differ from the right one after rounding."""
    right = round_to(budget.expected, case.dtype)
    bugs = [bug for bug in ATTENTION.bugs if bug.name not in NOT_WRONG and bug.applies(case)]
    for index in rng.permutation(len(bugs))[:count]:
        with np.errstate(all="ignore"):
            o = unpack(ATTENTION.invoke(bugs[index].wrong, case), ATTENTION.outputs)["out"]
        o = round_to(o, case.dtype)
        if np.isfinite(o).all() and not np.array_equal(o, right):
            yield o


def rules(scenarios, wrong):
    """Count false alarms and misses of each rule: {dtype: {rule: [alarms, correct, misses, wrong]}}."""
    counts = {dtype: defaultdict(lambda: [0, 0, 0, 0]) for dtype in ASSERT_CLOSE}
    families = [family for family in ATTENTION.families if family != "subnormal"]
    rng = np.random.default_rng(0)
    for case in attention_cases(scenarios, families, ASSERT_CLOSE, 1):
        precision = None if case.dtype in WIDE else "eager"
        budget, low = attention_budget(case, precision)["out"], twin(case, precision).out
        for _, own, function in kernels_for(case):
            if own == "low":
                continue
            for rule, accepted in accepted_by(function(case), low, budget, case.dtype).items():
                counts[case.dtype][rule][0] += not accepted
                counts[case.dtype][rule][1] += 1
        for o in wrong_outputs(case, budget, rng, wrong):
            for rule, accepted in accepted_by(o, low, budget, case.dtype).items():
                counts[case.dtype][rule][2] += accepted
                counts[case.dtype][rule][3] += 1
    return counts


def rule_rows(counts):
    """Return the rows of the table of rules: per dtype alarms / misses in percent."""

    def cell(alarms, correct, misses, wrong):
        return f"{100 * alarms / max(correct, 1):.1f} / {100 * misses / max(wrong, 1):.1f}"

    dtypes = ("bfloat16", "float16", "float32")
    return [[rule, *(cell(*counts[dtype][rule]) for dtype in dtypes)] for rule in counts["bfloat16"]]


PROSE = """# False alarms

A budget that refuses correct kernels teaches people to loosen it. This page is the record of how often that happens:
thousands of correct low-precision kernels, through the same verdict as everybody's. Printed by
`python tests/benchmarks/false_alarms.py`{torch}.

**{runs:,} runs of correct kernels, {rejected} rejected.**

Columns: *acceptable* runs flush subnormal numbers; *inconclusive* cases have more than half of their rows open, so that
the declared class cannot certify them; *element*, *row* and *pooled* are the largest ratios seen, with what the rule
allows in parentheses; *open rows* is their mean share.

## Attention, forward

{scenarios} structures × 9 value families × {seeds} seeds. Kernels: online softmax in blocks of 16 and 64, shuffled
blocks with base-2 exponentials, split keys with a merge, framework expressions with the scale in three places, sums
rounded to the dtype in sequence, in blocks, pairwise and in part{sdpa}. None shares code with the twins of the error
model.

{forward}

## Attention, backward

dq, dk and dv of a flash-style backward pass in NumPy{sdpa_backward}.

{backward}

## Rotary embedding

Tables of float32 (of float64 in float64), positions up to 10⁵, every scaling rule.

{rotary}

## Layers under Monte Carlo budgets

{layers_text} The rules are those of attention; the budgets come from erring runs of the reference alone, and rule 5
allows more than 2 where rows err together. The constants were chosen on these layers, with other seeds.

{layers}

How many runs make a budget? Here the budget's own arithmetic takes the place of the kernel, which is harsher than real
rounding: erring runs of the references are judged against budgets made of other erring runs (float32). The kit uses 8.

{own}

## What other rules would have said

The same correct kernels (all but those with sums rounded to the dtype; no subnormal values), and {wrong:,} outputs of
planted bugs rounded to the dtype that differ from the right one. Each cell: false alarms / misses in percent. A miss is
one bug on one case; most of them are cases on which the bug hardly acts. Rules are re-implemented from the projects'
published tests; the 16-bit class is eager.

{rules}

## What this does not show

No kernel of a GPU took part. The fused class of gradients was exercised by a NumPy kernel alone. Runs on one case share
its budget, so they are not as many independent trials, and other material may behave otherwise.
"""


def rows_of(tallies):
    """Return the rows of a table of tallies, float64 first."""
    order = {name: i for i, name in enumerate(DTYPES)}
    return [[label, *tallies[label].cells()] for label in sorted(tallies, key=lambda x: (order[x.split()[0]], x))]


def page(parts, own, counts, *, seeds, scenarios):
    """Return the text of the page."""
    total = [
        sum(getattr(t, name) for tallies in parts.values() for t in tallies.values()) for name in ("runs", "rejected")
    ]
    torch_version = ""
    if HAS_TORCH:
        import torch

        torch_version = f" with PyTorch {torch.__version__.split('+')[0]} on the CPU"
    layer_count = len(rounded_layers.LAYERS)
    text = f"{layer_count} small layers in NumPy, every result rounded, in two orders of operations"
    if HAS_TORCH:
        import torch_layers

        text += f"; {len(torch_layers.LAYERS)} layers written in PyTorch by other routes than their references"
    return PROSE.format(
        torch=torch_version,
        runs=total[0],
        rejected=total[1],
        scenarios=len(scenarios),
        seeds=seeds,
        sdpa="; PyTorch's scaled_dot_product_attention, its CPU flash kernel and its plain expressions" * HAS_TORCH,
        sdpa_backward=" and PyTorch's own gradients" * HAS_TORCH,
        layers_text=text + ".",
        own=table("runs in a budget", HEADS, [[count, *tally.cells()] for count, tally in own.items()]),
        wrong=sum(counts[dtype]["ours: element + row + pooled"][3] for dtype in counts),
        rules=table("rule", ["bfloat16", "float16", "float32"], rule_rows(counts)),
        **{name: table("class", HEADS, rows_of(tallies)) for name, tallies in parts.items()},
    )


def main():
    """Run the experiment and report it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one minute: every fourth structure, one seed, no page")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the forward cases")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    begin = time.perf_counter()
    step, seeds = (4, 1) if options.quick else (1, options.seeds)
    scenarios = list(SHEET_SCENARIOS)[::step]
    if HAS_TORCH:
        import torch

        torch.set_num_threads(1)
    parts = {}
    for name, experiment in (
        ("forward", lambda: forward(scenarios, seeds)),
        ("backward", lambda: backward(scenarios, 1)),
        ("rotary", lambda: rotary(1 if options.quick else 2)),
        ("layers", lambda: layers(1 if options.quick else 5)),
    ):
        parts[name] = experiment()
        print(f"\n{name}, {time.perf_counter() - begin:.0f} s\n" + table("class", HEADS, rows_of(parts[name])))
    own = own_arithmetic((4, 8), 1 if options.quick else 2, 5 if options.quick else 60)
    print(f"\nown arithmetic, {time.perf_counter() - begin:.0f} s")
    print(table("runs in a budget", HEADS, [[count, *tally.cells()] for count, tally in own.items()]))
    counts = rules(scenarios, 2 if options.quick else 6)
    print(f"\nrules, {time.perf_counter() - begin:.0f} s: false alarms / misses in percent")
    print(table("rule", ["bfloat16", "float16", "float32"], rule_rows(counts)))
    runs, rejected = (
        sum(getattr(t, name) for tallies in parts.values() for t in tallies.values()) for name in ("runs", "rejected")
    )
    print(f"\n{runs:,} runs of correct kernels, {rejected} rejected, {time.perf_counter() - begin:.0f} s")
    if not options.quick:
        PAGE.write_text(page(parts, own, counts, seeds=seeds, scenarios=scenarios), encoding="utf-8")
        print(f"wrote {PAGE.name}")
    return 1 if rejected else 0


if __name__ == "__main__":
    sys.exit(main())
