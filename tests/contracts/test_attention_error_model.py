"""The error model of attention: correct kernels stay inside, wrong ones do not, and the formulas mean what they say."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.contract import Case
from refattn.conformance.precision import DTYPES, precision_class, round_to, unit_roundoff
from refattn.conformance.verdict import judge, row_limits, self_check
from refattn.contracts.attention.error_model import attention_budget, gradient_budget, rope_budget, twin
from refattn.contracts.attention.families import FAMILIES
from refattn.contracts.attention.scenarios import SCENARIOS
from refattn.contracts.attention.scenarios_rotary import ROTARY_SCENARIOS
from refattn.primitives.attention import attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.rotary_embedding import rotary_embedding


def load_kernels():
    path = Path(__file__).parents[1] / "benchmarks" / "rounded_kernels.py"
    spec = importlib.util.spec_from_file_location("rounded_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = load_kernels()
KERNELS = MODULE.KERNELS
CLASSES = {"float64": (None,), "float32": (None,), "float16": ("fused", "eager"), "bfloat16": ("fused", "eager")}
EVERY = [(dtype, name) for dtype, names in CLASSES.items() for name in names]


def make(scenario="plain_unequal", family="normal", dtype="bfloat16", seed=0):
    return SCENARIOS[scenario](family, dtype, seed)


def case_of(q, k, v, dtype="float32", **options):
    extra = {name: x for name, x in options.items() if isinstance(x, np.ndarray)}
    plain = {name: x for name, x in options.items() if name not in extra}
    arrays = {name: round_to(x, dtype) for name, x in (("q", q), ("k", k), ("v", v))}
    return Case("attention", {**arrays, **extra}, plain, dtype)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def run(case):
    arrays = {name: x for name, x in case.arrays.items() if name != "dout"}
    options = {name: x for name, x in case.options.items() if name != "returns"}
    return attention(**arrays, **options, returns=("out", "lse", "weights", "logits", "scores", "softcapped"))


# --- correct kernels


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_kernels_are_never_refused(kernel, dtype):
    """Fused, split, eager and low kernels pass in the class that they belong to, over scenarios and families."""
    name, function = KERNELS[kernel]
    if name == "low" and dtype in ("float64", "float32"):
        pytest.skip("low accumulation exists in 16 bits only")
    rng = np.random.default_rng(len(kernel))
    for scenario in rng.choice(sorted(SCENARIOS), 6, replace=False):
        for family in rng.choice(sorted(FAMILIES), 2, replace=False):
            case = make(scenario, family, dtype)
            verdict = judge(function(case), attention_budget(case, name)["out"])
            assert verdict.status != "fail", (scenario, family, verdict)


@pytest.mark.parametrize(("dtype", "name"), EVERY)
@pytest.mark.parametrize("output", ["out", "lse", "weights", "logits", "scores", "softcapped"])
def test_every_output_accepts_its_twin_and_its_rounding(dtype, name, output):
    """The low-precision twin and the rounded reference lie inside the budget of every output."""
    for scenario in ("all_results", "causal_br_long", "sinks", "bias", "empty_uniform", "query_lengths"):
        case = make(scenario, "normal", dtype)
        case = replace(case, options={**case.options, "returns": (output,)})
        budget = attention_budget(case, name)[output]
        assert judge(round_to(budget.expected, dtype), budget).status == "pass", scenario
        low = getattr(twin(case, name), output)
        low = np.where(np.isfinite(budget.expected), low, budget.expected)  # what is hidden is not computed
        empty = np.broadcast_to(np.asarray(budget.empty)[..., None] if budget.row_axes else budget.empty, low.shape)
        assert judge(np.where(empty, budget.expected, low), budget).status == "pass", scenario


def test_torch_kernels_pass():
    """PyTorch's CPU kernels pass as eager kernels in every dtype."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    for dtype in DTYPES:
        for scenario in ("gqa", "bias", "sinks", "causal_br_long"):
            case = make(scenario, "normal", dtype)
            for _, function, takes in MODULE.TORCH_KERNELS.values():
                if takes(case):
                    assert judge(function(case), attention_budget(case)["out"]).status != "fail", (dtype, scenario)


def stored(path):
    """Return meta and arrays of a stored case."""
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["meta"])), {name: file[name] for name in file.files if name != "meta"}


def test_official_low_precision_outputs_lie_inside(oracle):
    """Stored float16, bfloat16 and float32 outputs of ONNX, PyTorch and JAX lie inside the budgets they name."""
    tried = 0
    for path in oracle("00-attention"):
        meta, arrays = stored(path)
        declared = re.fullmatch(r"budget:(\w+):(\w+)", str(meta["tol"]))
        if not declared:
            continue
        name, dtype = declared.groups()
        layout = meta["config"]["layout"]
        case = Case("attention", {x: arrays[x].astype(np.float64) for x in "qkv"}, {"layout": layout}, dtype)
        budget = attention_budget(case, name)["out"]
        for output in (x for x in arrays if x.startswith("out")):
            verdict = judge(arrays[output].astype(np.float64), budget)
            assert verdict.status == "pass", (path.stem, output, verdict)
            tried += 1
    assert tried or not oracle("00-attention")


def test_official_float64_outputs_lie_inside(oracle):
    """Stored float64 outputs and gradients of other implementations lie inside the float64 budgets."""
    known = {"layout", "causal", "align", "window", "softcap", "empty", "scale", "prefix"}
    arrays_of = {"mask": "mask", "bias": "bias", "sinks": "sinks", "alibi": "alibi_slopes", "kv_len": "kv_lengths"}
    arrays_of |= {"q_len": "q_lengths", "doc_q": "doc_q", "doc_k": "doc_k", "dout": "dout"}
    tried = 0
    for path in oracle("00-attention"):
        meta, arrays = stored(path)
        config = meta["config"]
        remarks = {"lse_layout", "weights_layout", "oracle_layout", "oracle_out_layout", "splits", "alibi_rule"}
        if meta["kind"] != "attention" or meta["tol"] != 1e-10 or set(config) - known - remarks:
            continue
        if "bshd" in (config.get("layout"), config.get("oracle_out_layout")) and "oracle_out_layout" in config:
            continue
        given = {new: arrays[old] for old, new in arrays_of.items() if old in arrays and old != "dout"}
        options = {x: config[x] for x in known & set(config)}
        case = Case("attention", {**{x: arrays[x] for x in "qkv"}, **given}, options, "float64")
        verdict = judge(arrays["out"], attention_budget(case)["out"])
        assert verdict.status == "pass", (path.stem, verdict)
        tried += 1
        if "dq" in arrays:
            pulled = Case("attention_vjp", {**case.arrays, "dout": arrays["dout"]}, options, "float64")
            for name, budget in gradient_budget(pulled, names=("dq", "dk", "dv")).items():
                assert judge(arrays[name], budget).status == "pass", (path.stem, name)
    assert tried or not oracle("00-attention")


# --- kernels built to fool the bound


WRONG = {
    "zeros": lambda x, _case: 0 * x,
    "negated": lambda x, _case: -x,
    "heads reversed": lambda x, _case: x[:, ::-1],
    "queries shifted": lambda x, _case: np.roll(x, 1, axis=2),
    "mean of values": lambda x, case: np.broadcast_to(case.arrays["v"].mean(axis=2, keepdims=True), x.shape),
    "last key dropped": lambda _x, case: _without_last_key(case),
    "no scale": lambda _x, case: run(replace(case, options={**case.options, "scale": 1.0})).out,
    "one part in 20": lambda x, _case: 1.05 * x,
}


def _without_last_key(case):
    arrays = {**case.arrays, "k": case.arrays["k"][:, :, :-1], "v": case.arrays["v"][:, :, :-1]}
    return run(replace(case, arrays=arrays)).out


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("dtype", "name"), EVERY)
def test_wrong_kernels_fail(dtype, name, wrong):
    """Zeros, sign, heads, rows, mean, a dropped key, a missing scale and 5 % are refused in every class."""
    case = make("plain_square", "normal", dtype)
    output = round_to(WRONG[wrong](run(case).out, case), dtype)
    assert judge(output, attention_budget(case, name)["out"]).status == "fail"


@pytest.mark.parametrize(("dtype", "name"), EVERY)
def test_tiny_values_do_not_hide_a_zero_kernel(dtype, name):
    """Values around 1e-6 (or 1e-3 in float16) give a budget just as relative: zeros fail."""
    case = case_of(draw(1, 2, 9, 8), draw(1, 2, 9, 8, seed=1), 1e-3 * draw(1, 2, 9, 8, seed=2), dtype)
    assert judge(np.zeros((1, 2, 9, 8)), attention_budget(case, name)["out"]).status == "fail"
    assert self_check(attention_budget(case, name)["out"]) == ()


def test_eager_arithmetic_is_refused_by_a_fused_declaration():
    """A kernel that declares fused but stores scores in bfloat16 is refused where scores are large."""
    case = make("plain_square", "peaky", "bfloat16")
    output = KERNELS["eager_scale_both"][1](case)
    assert judge(output, attention_budget(case, "eager")["out"]).status == "pass"
    assert judge(output, attention_budget(case, "fused")["out"]).status == "fail"


def test_tf32_products_are_refused_unless_declared():
    """Operands cut to 11 bits fail as float32 and pass as tf32."""

    def cut(x):
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 2.0**11), exponent - 11)

    case = make("plain_square", "normal", "float32")
    a = case.arrays
    s = 0.25 * cut(a["q"]) @ np.swapaxes(cut(a["k"]), -1, -2)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    output = round_to(cut(e / e.sum(axis=-1, keepdims=True)) @ cut(a["v"]), "float32")
    assert judge(output, attention_budget(case)["out"]).status == "fail"
    assert judge(output, attention_budget(case, "tf32")["out"]).status == "pass"


def test_one_outlier_among_many_rows_fails():
    """One row that reads the neighbouring head's values fails among a thousand right ones."""
    case = case_of(draw(2, 8, 64, 8), draw(2, 8, 20, 8, seed=1), draw(2, 8, 20, 8, seed=2), "bfloat16")
    right = run(case).out
    wrong = round_to(right, "bfloat16")
    wrong[1, 3, 17] = round_to(right[1, 4, 17], "bfloat16")
    verdict = judge(wrong, attention_budget(case, "eager")["out"])
    assert verdict.status == "fail"
    assert verdict.where[:3] == (1, 3, 17)


def test_flushed_subnormal_outputs_are_acceptable():
    """A device that flushes subnormal numbers is acceptable on subnormal values and fails on ordinary ones."""
    for dtype in ("float32", "bfloat16", "float16"):
        case = make("plain_square", "subnormal", dtype)
        output = np.zeros_like(run(case).out)
        assert judge(output, attention_budget(case, "fused")["out"]).status == "acceptable", dtype
        plain = make("plain_square", "normal", dtype)
        assert judge(output, attention_budget(plain, "fused")["out"]).status == "fail", dtype


def test_stagnating_sums_are_inconclusive():
    """Six hundred equal weights in a bfloat16 accumulator certify nothing, not even the exact output."""
    q, k, v = np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 600, 4)), np.abs(draw(1, 1, 600, 4))
    case = case_of(q, k, v, "bfloat16")
    assert judge(run(case).out, attention_budget(case, "low")["out"]).status == "inconclusive"
    assert judge(run(case).out, attention_budget(case, "eager")["out"]).status == "pass"


def test_uncertain_logits_are_inconclusive():
    """Logits around 250 stored in bfloat16 leave most rows open, and pass nothing."""
    case = make("plain_square", "rowshift", "bfloat16")
    assert judge(run(case).out, attention_budget(case, "eager")["out"]).status == "inconclusive"
    assert judge(run(case).out, attention_budget(case, "fused")["out"]).status == "pass"


# --- what the formulas mean


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-6, 3.0))
def test_bound_b1_holds_for_any_error_of_the_logits(seed, size):
    """Whatever logits move by up to epsilon, in any combination of signs, the output stays within B1."""
    rng = np.random.default_rng(seed)
    z, v = rng.normal(0, 3, 9), rng.normal(0, 1, (9, 3))
    epsilon = size * rng.random(9)

    def softmax(x):
        return np.exp(x - x.max()) / np.exp(x - x.max()).sum()

    p = softmax(z)
    y = p @ v
    b1 = (p * np.expm1(epsilon)) @ np.abs(v - y) / (p @ np.exp(-epsilon))
    moved = softmax(z + epsilon * rng.choice([-1.0, 1.0], 9)) @ v
    assert np.all(np.abs(moved - y) <= b1 * (1 + 1e-9) + 1e-12)


def test_one_visible_key_costs_one_rounding():
    """Where a row sees one key, errors of the logits cost nothing: the bound is some roundings of the value."""
    case = make("one_key", "peaky", "bfloat16")
    budget = attention_budget(case, "fused")["out"]
    assert np.all(budget.bound <= 4 * unit_roundoff("bfloat16") * np.abs(budget.expected) + 1e-30)


def test_bound_never_leaves_the_hull_by_more_than_rounding():
    """However uncertain the logits, no element may leave the range of the visible values by more than rounding."""
    case = make("plain_square", "rowshift", "bfloat16")
    budget = attention_budget(case, "low")["out"]
    v = case.arrays["v"]
    reach = np.max(np.abs(v), axis=2, keepdims=True) * 2
    assert np.all(budget.bound <= 3 * reach)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stricter_classes_have_smaller_bounds(dtype):
    """Fused allows no more than eager, and eager no more than low."""
    case = make("plain_square", "normal", dtype)
    fused, eager, low = (attention_budget(case, name)["out"] for name in ("fused", "eager", "low"))
    assert np.all(fused.bound <= eager.bound)
    assert np.all(eager.bound <= low.bound)
    assert np.all(row_limits(fused) <= row_limits(low))


def test_sigma_tracks_the_true_error():
    """The statistical scale is within a factor of 3 of the error of a real kernel in every class."""
    for dtype, name in EVERY:
        case = make("plain_square", "normal", dtype)
        budget = attention_budget(case, name)["out"]
        kernel = KERNELS["fused_16" if name in (None, "fused") else "eager_scale_both"][1]
        error = np.linalg.norm(kernel(case) - budget.expected)
        assert 1 / 3 < np.linalg.norm(budget.sigma) / error < 6 if dtype != "float64" else error > 0


def test_layouts_have_the_same_budget():
    """The budget of a transposed case is the transposed budget; packed heads share a row."""
    q, k, v = draw(2, 4, 5, 8), draw(2, 2, 7, 8, seed=1), draw(2, 2, 7, 6, seed=2)
    plain = attention_budget(case_of(q, k, v))["out"]
    turned = attention_budget(case_of(*(np.swapaxes(x, 1, 2) for x in (q, k, v)), layout="bshd"))["out"]
    packed = [np.swapaxes(x, 1, 2).reshape(2, x.shape[2], -1) for x in (q, k, v)]
    shared = attention_budget(case_of(*packed, layout="bs(hd)", q_heads=4, kv_heads=2))["out"]
    assert np.array_equal(np.swapaxes(plain.bound, 1, 2), turned.bound)
    assert np.array_equal(turned.bound.reshape(2, 5, -1), shared.bound)
    assert shared.twin.shape == (2, 5)


@pytest.mark.parametrize("policy", ["zero", "nan", "uniform"])
def test_empty_rows_follow_the_policy(policy):
    """Empty rows are exact under zero and nan; under uniform they are means, with the rounding of a mean."""
    q, k, v = draw(1, 2, 6, 8), draw(1, 2, 3, 8, seed=1), draw(1, 2, 3, 4, seed=2)
    case = case_of(q, k, v, "bfloat16", causal=True, align="bottom_right", empty=policy)
    budget = attention_budget(case, "fused")["out"]
    assert np.sum(budget.empty) == (0 if policy == "uniform" else 6)
    right = round_to(run(case).out, "bfloat16")
    assert judge(right, budget).status == "pass"
    wrong = right.copy()
    wrong[:, :, :3] = 1.0 if policy == "nan" else np.nan
    assert judge(wrong, budget).status == "fail"


def test_padded_queries_are_zero_under_every_policy():
    """Rows past their query length are 0, exactly, whatever the policy."""
    q = draw(1, 1, 4, 8)
    case = case_of(q, q, q, empty="nan", q_lengths=np.array([2]))
    assert attention_budget(case)["out"].empty[0, 0].tolist() == [False, False, True, True]


def test_hidden_nan_does_not_matter():
    """NaN and infinity in hidden keys and values leave every bound finite."""
    k, v = draw(1, 1, 5, 8, seed=1), draw(1, 1, 5, 8, seed=2)
    k[:, :, 4], v[:, :, 4] = np.nan, np.inf
    case = case_of(draw(1, 1, 3, 8), k, v, kv_lengths=np.array([4]))
    budget = attention_budget(case)["out"]
    assert np.isfinite(budget.bound).all()
    assert judge(round_to(run(case).out, "float32"), budget).status == "pass"


def test_nan_in_one_query_poisons_its_row_only():
    """A NaN query makes its own row NaN and leaves the other rows as strict as before."""
    q = draw(1, 1, 3, 8)
    clean = attention_budget(case_of(q, q, q))["out"]
    q[0, 0, 1, 0] = np.nan
    case = case_of(q, draw(1, 1, 3, 8), draw(1, 1, 3, 8))
    budget = attention_budget(case)["out"]
    assert np.isnan(budget.expected[0, 0, 1]).all()
    assert np.array_equal(budget.bound[0, 0, [0, 2]], clean.bound[0, 0, [0, 2]])


@pytest.mark.parametrize(
    ("q", "k", "dv"),
    [
        ((2, 2, 0, 4), (2, 2, 3, 4), 4),
        ((2, 2, 3, 4), (2, 2, 0, 4), 4),
        ((0, 2, 3, 4), (0, 2, 3, 4), 4),
        ((1, 2, 3, 4), (1, 1, 3, 4), 0),
    ],
)
def test_empty_axes_have_budgets(q, k, dv):
    """No queries, no keys, no batch, no channels: the budget has the shape of the output and its zeros pass."""
    case = case_of(np.ones(q), np.ones(k), np.ones((*k[:3], dv)))
    budget = attention_budget(case)["out"]
    assert judge(np.zeros((*q[:3], dv)), budget).status == "pass"


def test_derivation_says_what_the_bound_is_made_of():
    """The derivation names the class, the roundoffs, the parts of the bound and the longest sum."""
    text = attention_budget(make(), "eager")["out"].derivation
    assert all(part in text for part in ("eager", "u_p 0.00391", "B1", "B2", "B3", "45 keys", "open rows"))


# --- gradients


def pulled(case, seed=5):
    q, v = case.arrays["q"], case.arrays["v"]
    dout = round_to(np.random.default_rng(seed).standard_normal((*q.shape[:3], v.shape[-1])), case.dtype)
    return replace(case, entry="attention_vjp", arrays={**case.arrays, "dout": dout})


def gradients(case):
    options = {name: x for name, x in case.options.items() if name != "returns"}
    return attention_vjp(**case.arrays, **options)


@pytest.mark.parametrize(("dtype", "name"), EVERY)
@pytest.mark.parametrize("scenario", ["gqa", "causal_br_long", "softcap", "bias", "alibi", "sinks", "empty_uniform"])
def test_rounded_gradients_pass_and_wrong_ones_fail(scenario, dtype, name):
    """Every gradient, rounded, passes; with the sign lost or a tenth too large dq, dk and dv fail."""
    case = pulled(make(scenario, "normal", dtype))
    exact = gradients(case)
    for output, budget in gradient_budget(case, name).items():
        assert judge(round_to(getattr(exact, output), dtype), budget).status == "pass", output
        if output in ("dq", "dk", "dv"):
            assert judge(-getattr(exact, output), budget).status == "fail", output
            assert judge(1.1 * getattr(exact, output), budget).status == "fail", output


def test_torch_gradients_pass():
    """PyTorch's backward pass in float32 and bfloat16 lies inside the gradient budgets."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        case = pulled(make("plain_unequal", "normal", dtype))
        kind = getattr(torch, dtype)
        q, k, v = (torch.from_numpy(case.arrays[x]).to(kind).requires_grad_() for x in "qkv")
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out.backward(torch.from_numpy(case.arrays["dout"]).to(kind))
        for x, budget in zip((q, k, v), gradient_budget(case, names=("dq", "dk", "dv")).values(), strict=True):
            assert judge(x.grad.double().numpy(), budget).status == "pass", dtype


def test_delta_left_out_fails():
    """A backward pass that forgets Delta is refused in every class."""
    for dtype, name in EVERY:
        case = pulled(make("plain_square", "normal", dtype))
        a, P = case.arrays, run(case).weights
        dS = P * (a["dout"] @ np.swapaxes(a["v"], -1, -2))
        wrong = round_to(0.25 * dS @ a["k"], dtype)
        assert judge(wrong, gradient_budget(case, name, names=("dq",))["dq"]).status == "fail", (dtype, name)


def test_one_key_has_no_gradient_of_scores():
    """With one key dq and dk are 0 up to rounding, and large ones fail."""
    case = pulled(make("one_key", "normal", "float32"))
    budget = gradient_budget(case)["dq"]
    assert judge(np.zeros_like(budget.expected), budget).status == "pass"
    assert judge(np.ones_like(budget.expected), budget).status == "fail"


# --- rotary embedding


@pytest.mark.parametrize("scenario", ROTARY_SCENARIOS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_pass_in_tables_of_their_dtype(scenario, dtype):
    """Rotations with tables of float32 (float64), products rounded to the dtype, pass in every scenario and family."""
    for family in ("normal", "large", "cancelling"):
        case = ROTARY_SCENARIOS[scenario](family, dtype, 1)
        budget = rope_budget(case)["out"]
        right = round_to(rotary_embedding(**case.arrays, **case.options), dtype)
        assert judge(right, budget).status == "pass"
        assert judge(MODULE.float32_rotation(case), budget).status != "fail", family


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_rotations_fail(dtype):
    """The other pairing, the wrong sign, a position too far and another base are refused."""
    case = ROTARY_SCENARIOS["half"]("normal", dtype, 0)
    a, budget = case.arrays, rope_budget(case)["out"]
    wrong = (
        rotary_embedding(**a, interleaved=True),
        rotary_embedding(**a, inverse=True),
        rotary_embedding(a["x"], a["positions"] + 1),
        rotary_embedding(**a, theta=20000.0),
    )
    assert all(judge(round_to(o, dtype), budget).status == "fail" for o in wrong)


def test_channels_that_pass_are_bit_equal():
    """Channels beyond the rotary width may not change by a single unit in the last place."""
    case = ROTARY_SCENARIOS["partial"]("normal", "float32", 0)
    budget = rope_budget(case)["out"]
    out = round_to(budget.expected, "float32")
    assert judge(out, budget).status == "pass"
    out[0, 0, 0, -1] = np.nextafter(np.float32(out[0, 0, 0, -1]), np.float32(9))
    assert judge(out, budget).status == "fail"


def test_precision_may_be_given_as_a_class():
    """A precision class instead of its name gives the same budget."""
    case = make()
    by_name, by_class = (attention_budget(case, p)["out"] for p in ("fused", precision_class("fused", "bfloat16")))
    assert np.array_equal(by_name.bound, by_class.bound)
