"""Monte Carlo arithmetic: what errs, what does not, and that budgets made of it judge right."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.arithmetic import MonteCarloArithmetic
from refattn.conformance.cases import FAMILIES, rounded
from refattn.conformance.contract import Case, Entry
from refattn.conformance.monte_carlo import Perturbed, monte_carlo_budgets
from refattn.conformance.precision import DTYPES, precision_class, unit_roundoff
from refattn.conformance.verdict import judge

U = 2.0**-8


def entry_of(reference, *names, outputs=("out",)):
    return Entry("layer", reference, names, {}, (), lambda _dtype: None, outputs=outputs)


def case_of(arrays, dtype="float32", **options):
    return Case("layer", rounded(arrays, dtype), options, dtype)


def budget_of(reference, arrays, dtype="float32", precision=None):
    return monte_carlo_budgets(entry_of(reference, *arrays), case_of(arrays, dtype), precision)["out"]


def perturbed(x, precision="eager", dtype="bfloat16", seed=0, **options):
    machine = MonteCarloArithmetic(precision_class(precision, dtype), np.random.default_rng(seed), **options)
    return Perturbed.of(np.array(x, np.float64), machine)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


X, W = draw(5, 8), draw(8, 8, seed=1)

MOVES = {
    "where": lambda x: np.where(X > 0, x, 0.0),
    "concatenate": lambda x: np.concatenate([x, x]),
    "stack": lambda x: np.stack([x, x])[1],
    "take": lambda x: np.take(x, [0, 3], axis=1),
    "take_along_axis": lambda x: np.take_along_axis(x, np.argsort(X, axis=-1), axis=-1),
    "pad": lambda x: np.pad(x, 1),
    "sort": lambda x: np.sort(x, axis=-1),
    "maximum": lambda x: np.maximum(x, 0.3),
    "clip": lambda x: np.clip(x, -0.5, 0.5),
    "max": lambda x: x.max(axis=-1),
    "negative": lambda x: -x,
    "abs": np.abs,
    "transpose": lambda x: x.T.reshape(2, 20),
    "repeat": lambda x: np.repeat(x, 3, axis=0),
    "tril": np.tril,
    "index": lambda x: x[1:, ::2],
    "broadcast_to": lambda x: np.broadcast_to(x, (3, 5, 8)),
}

ROUNDS = {
    "add": lambda x: x + 1.0,
    "multiply": lambda x: 3.0 * x,
    "divide": lambda x: x / 3.0,
    "exp": np.exp,
    "expit": scipy.special.expit,
    "square": lambda x: x**2,
    "sum": lambda x: x.sum(axis=-1),
    "mean": lambda x: np.mean(x, axis=0),
    "var": lambda x: x.var(axis=-1),
    "cumsum": lambda x: np.cumsum(x, axis=0),
    "matmul": lambda x: x @ W,
    "dot": lambda x: x.dot(W),
    "einsum": lambda x: np.einsum("ij,jk->ik", x, W),
    "einsum_one": lambda x: np.einsum("ij->i", x),
    "tensordot": lambda x: np.tensordot(x, W, 1),
    "vecdot": lambda x: np.vecdot(x, X),
    "outer": lambda x: np.outer(x[0], x[1]),
    "convolve": lambda x: np.convolve(x[0], x[1]),
    "solve": lambda x: np.linalg.solve(x @ x.T + np.eye(5), X),
    "norm": lambda x: np.linalg.norm(x, axis=-1),
    "fft": np.fft.rfft,
    "logsumexp": lambda x: scipy.special.logsumexp(x, axis=-1),
    "logaddexp": lambda x: np.logaddexp.accumulate(x, axis=0),
    "item": lambda x: x[0, 0] * 3.0,
    "in_place": lambda x: np.add(x, 1.0, out=np.empty_like(x)),
}


@pytest.mark.parametrize("name", MOVES)
def test_moving_and_selecting_is_exact(name):
    """Selecting and moving numbers changes none of them and keeps the arithmetic."""
    result = MOVES[name](perturbed(X))
    assert isinstance(result, Perturbed)
    assert np.array_equal(np.asarray(result), MOVES[name](X))
    assert not np.array_equal(np.asarray(result * 3.0), 3.0 * MOVES[name](X))


@pytest.mark.parametrize("name", ROUNDS)
def test_computing_errs_by_about_one_rounding(name):
    """Every operation that rounds errs, by the order of the dtype's roundoff, and keeps the arithmetic."""
    result, exact = ROUNDS[name](perturbed(X)), np.asarray(ROUNDS[name](X))
    error = np.abs(np.asarray(result) - exact)
    assert isinstance(result, Perturbed)
    assert 0.01 * U < error.max() / np.abs(exact).max() < 30 * U


def test_comparisons_and_indices_are_plain():
    """Comparisons give plain booleans and rankings plain integers."""
    x = perturbed(X)
    assert type(x > 0) is np.ndarray
    assert type(np.argsort(x)) is np.ndarray
    assert type(x.argmax(axis=-1)) is np.ndarray
    assert np.array_equal(x.argmax(axis=-1), X.argmax(axis=-1))


def test_cancellation_inside_a_product_shows():
    """A dot product of large terms that cancel errs by the size of its terms, not of its result."""
    a = np.concatenate([np.full(32, 100.0), np.full(32, -100.0)])
    results = [float(perturbed(a, seed=seed) @ np.ones(64)) for seed in range(20)]
    assert 2.0 * U < np.std(results) / 100.0 < 20.0 * U


def test_cancelling_difference_shows():
    """Subtracting nearly equal computed numbers leaves their errors."""
    results = [np.asarray((perturbed(X, seed=s) * 3.0) - 3.0 * X) for s in range(20)]
    assert np.std(results) > 0.2 * U


def test_errors_of_a_long_sum_grow_like_its_square_root():
    """Sums err like a random walk of their partial sums: sqrt(n) for a straight line of ones."""
    spread = {}
    for n in (64, 4096):
        sums = [float(perturbed(np.ones(n), "low", "float32", seed).sum()) for seed in range(200)]
        spread[n] = np.std(sums) / n
    assert 4.0 < spread[4096] / spread[64] < 16.0


def test_range_of_float16_is_kept():
    """Beyond float16's range a result is infinite, and below its smallest number zero."""
    assert np.isinf(np.asarray(perturbed([300.0], dtype="float16") * 300.0)).all()
    assert (np.asarray(perturbed([1e-5], dtype="float16") * 1e-5) == 0).all()


def test_fused_class_keeps_float32_inside():
    """In the fused class only operands of products are rounded to the dtype; all else errs like float32."""
    elementwise = np.asarray(perturbed(X, "fused") * 3.0) - 3.0 * X
    product = np.asarray(perturbed(X, "fused") @ W) - X @ W
    assert np.abs(elementwise).max() < 1e-6
    assert np.abs(product).max() > 1e-3


def test_inputs_are_not_written_to():
    """The arrays of the case are the same after all runs, and may be read-only."""
    x = X.copy()
    x.setflags(write=False)
    budget_of(lambda x: np.tanh(x @ W), {"x": x})
    assert np.array_equal(x, X)


def test_same_seed_gives_the_same_budget():
    """A budget depends on the case and the seed alone."""
    layer = entry_of(lambda x: np.exp(x) @ W, "x")
    first, again, other = (monte_carlo_budgets(layer, case_of({"x": X}), seed=seed)["out"] for seed in (1, 1, 2))
    assert np.array_equal(first.bound, again.bound)
    assert not np.array_equal(first.bound, other.bound)


def test_expected_output_is_the_plain_reference():
    """What is expected is the reference in float64, not the mean of erring runs."""
    case = case_of({"x": X})
    assert np.array_equal(budget_of(np.exp, {"x": X}).expected, np.exp(case.arrays["x"]))


def test_outputs_are_named_as_the_entry_names_them():
    """Tuples get the entry's names, and every output a budget of its own."""
    layer = entry_of(lambda x: (x @ W, np.argmax(x, axis=-1)), "x", outputs=("out", "choice"))
    budgets = monte_carlo_budgets(layer, case_of({"x": X}))
    assert set(budgets) == {"out", "choice"}
    assert budgets["choice"].expected.dtype.kind == "i"
    assert not np.any(budgets["choice"].bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_spread_scales_with_the_roundoff(dtype):
    """The relative scale of a layer's errors is a few roundoffs in every dtype, float64 included."""
    budget = budget_of(lambda x: np.tanh(x @ W) @ W, {"x": X}, dtype)
    relative = np.linalg.norm(budget.sigma) / np.linalg.norm(budget.expected)
    assert 0.3 < relative / unit_roundoff(dtype) < 30


def test_derivation_names_its_ingredients():
    """The derivation has the class, the roundoff, the safety factor and the share of open rows."""
    text = budget_of(lambda x: x @ W, {"x": X}, "bfloat16").derivation
    assert all(part in text for part in ("eager", "0.00391", "sqrt(2 ln(", "open rows", "8 terms"))


# --- decisions that rounding may turn


def choose(x):
    """Return the row of W that the largest entry of each row names."""
    return W[np.argmax(x * 1.1, axis=-1)]


def test_clear_decisions_stay_closed():
    """A choice with a wide margin leaves every row certifiable."""
    x = np.eye(8) * 4.0
    assert not np.any(budget_of(choose, {"x": x}, "bfloat16").open)


@given(gap=st.floats(0.0, 2.0), seed=st.integers(0, 50))
def test_close_decisions_are_open(gap, seed):
    """A choice between numbers that differ by less than two roundoffs is found, even if no run happens to turn it."""
    x = np.zeros((1, 8))
    x[0, 2], x[0, 5] = 1.0 + gap * U, 1.0
    layer = entry_of(choose, "x")
    case = Case("layer", {"x": x}, {}, "bfloat16")
    assert np.all(monte_carlo_budgets(layer, case, seed=seed)["out"].open)


def test_other_rows_stay_closed_beside_a_close_decision():
    """One close decision opens its own row and no other."""
    x = np.eye(8) * 4.0
    x[3, 4] = 4.0
    assert np.array_equal(np.flatnonzero(budget_of(choose, {"x": x}, "bfloat16").open), [3])


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: np.where(x * 1.1 > 1.1, 1.0, -1.0),
        lambda x: np.sign(x * 1.1 - 1.1),
        lambda x: np.floor(x * 1.1 / 1.1),
        lambda x: np.rint(x * 1.1 / 1.1 + 0.5),
        lambda x: W[np.argsort(x * 1.1, axis=-1)[..., -2:]].sum(axis=-2),
        lambda x: W[np.argpartition(x * 1.1, 6, axis=-1)[..., -2:]].sum(axis=-2),
    ],
    ids=["compare", "sign", "floor", "round", "argsort", "argpartition"],
)
def test_every_kind_of_decision_is_watched(decide):
    """A comparison, sign, rounding or ranking at a hair's breadth may fall either way and is never refused."""
    x = np.array([[1.0, 1.0 + 1e-4, 7.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    case = Case("layer", {"x": x}, {}, "bfloat16")
    turned = [decide(x * (1 + sign * U * np.array([1, -1, 1, 1, 1, 1, 1, 1]))) for sign in (1, -1)]
    for seed in range(5):
        budget = monte_carlo_budgets(entry_of(decide, "x"), case, seed=seed)["out"]
        assert all(judge(o, budget).status != "fail" for o in turned)


@pytest.mark.parametrize(
    "rank", [lambda z: np.argsort(z, -1, "stable")[:, -2:], lambda z: np.argpartition(z, 6, -1)[:, -2:]]
)
def test_hidden_entries_keep_their_rank(rank):
    """Entries that are minus infinity are never exchanged with small ones that may be turned."""
    x = np.array([[0.0, 1e-3, -1e-3, 2e-3, 0.0, 0.0, 5.0, 7.0]])
    hidden = np.array([[0, 0, 0, 0, 1, 1, 0, 0]], bool)
    budget = budget_of(lambda x: W[rank(np.where(hidden, -np.inf, x * 1.1))].sum(axis=-2), {"x": x}, "bfloat16")
    assert not np.any(budget.open)


def test_a_ranking_that_depends_on_a_turned_decision_is_left_alone():
    """Where a turned comparison changes how many entries are ranked, the ranking is not moved and the row is open."""

    def kept(x):
        chosen = x[0][x[0] * 1.1 > 1.1]
        return np.ones((1, 1)) * np.argsort(chosen * 1.1, axis=-1).shape[0]

    x = np.array([[1.0 + 1e-4, 7.0, 0.1, 0.2, 3.0, 0.3, 0.4, 0.5]])
    assert np.all(budget_of(kept, {"x": x}, "bfloat16").open)


def test_float64_decides_far_closer_calls():
    """What bfloat16 cannot decide is decided in float64."""
    x = np.zeros((1, 8))
    x[0, 2], x[0, 5] = 1.0 + 2.0**-20, 1.0
    layer = entry_of(choose, "x")
    assert not np.any(monte_carlo_budgets(layer, Case("layer", {"x": x}, {}, "float64"))["out"].open)


def test_saturated_softmax_is_watched():
    """A softmax whose winner may change by rounding is open, although its output hardly moves in most runs."""

    def attend(q, k):
        z = q @ k.T
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return (e / e.sum(axis=-1, keepdims=True)) @ W

    q, k = np.full((1, 16), 16.0), np.full((8, 16), 1.0)
    k[:, 0] += np.arange(8) * 0.5  # logits near 256, 8 apart, in steps of about 1 to 2
    case = Case("layer", {"q": q, "k": k}, {}, "bfloat16")
    assert np.all(monte_carlo_budgets(entry_of(attend, "q", "k"), case)["out"].open)


def test_denominator_that_may_vanish_is_watched():
    """A quotient whose denominator may be rounded to nothing opens its row."""
    layer = entry_of(lambda x: W[:1] / ((1.0 + x * 1e-3) - 1.0), "x")
    assert np.all(monte_carlo_budgets(layer, Case("layer", {"x": np.full((1, 8), 1.0)}, {}, "bfloat16"))["out"].open)


def test_changed_indices_open_their_rows():
    """Integer outputs are open where an erring run decided otherwise and exact elsewhere."""
    x = np.eye(8) * 4.0
    x[3, 4] = 4.0
    layer = entry_of(lambda x: np.argmax(x * 1.1, axis=-1)[:, None], "x")
    budget = monte_carlo_budgets(layer, Case("layer", {"x": x}, {}, "bfloat16"))["out"]
    assert np.flatnonzero(budget.open).tolist() == [3]
    wrong = budget.expected.copy()
    wrong[3] = 4
    assert judge(wrong, budget).status == "pass"
    wrong[0] = 4
    assert judge(wrong, budget).status == "fail"


def test_overflow_near_the_end_of_the_range_is_open():
    """Rows whose numbers come near float16's largest are not certified: another order of operations overflows."""
    x = np.array([[30000.0] * 8, [1.0] * 8])
    budget = budget_of(lambda x: x * 1.5, {"x": x}, "float16")
    assert budget.open.tolist() == [True, False]


def test_long_low_sums_are_open():
    """A sum of so many terms that a bfloat16 accumulator may stagnate certifies nothing."""
    budget = budget_of(lambda x: x.sum(axis=-1, keepdims=True), {"x": np.ones((4, 300))}, "bfloat16", "low")
    assert np.all(budget.open)


# --- calibration: correct layers in low precision pass, wrong ones do not


def load_layers():
    path = Path(__file__).parents[1] / "benchmarks" / "rounded_layers.py"
    spec = importlib.util.spec_from_file_location("rounded_layers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = load_layers()
LAYERS, draw_case, run_low = MODULE.LAYERS, MODULE.draw_case, MODULE.run_low


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_correct_layers_pass(name, dtype):
    """Layers computed in the dtype, in two orders of operations, are never refused."""
    layer = entry_of(LAYERS[name][0], *LAYERS[name][1])
    for family in FAMILIES:
        for seed in range(2):
            case = draw_case(name, family, dtype, seed)
            budget = monte_carlo_budgets(layer, case)["out"]
            for other in (False, True):
                with np.errstate(all="ignore"):
                    verdict = judge(run_low(name, case.arrays, dtype, other=other), budget)
                assert verdict.status != "fail", (family, seed, other, verdict)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_relative_error_of_some_roundoffs_fails(name, dtype):
    """A result that is off by 32 roundoffs everywhere is refused; an unrounded one is not."""
    case = draw_case(name, "normal", dtype, 0)
    budget = monte_carlo_budgets(entry_of(LAYERS[name][0], *LAYERS[name][1]), case)["out"]
    assert judge(budget.expected, budget).status == "pass"
    assert judge(budget.expected * (1 + 32 * unit_roundoff(dtype)), budget).status == "fail"


WRONG = {
    "rms": lambda x, w: (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-1)) @ w,
    "scan": lambda a, b: LAYERS["scan"][0](a, np.roll(b, 1, axis=0)),
    "attention": lambda q, k, v: LAYERS["attention"][0](q, k[:-1], v[:-1]),
    "gated": lambda x, w: x + np.maximum(x @ w, 0.0) @ w.T,
    "convolution": lambda x, w: LAYERS["convolution"][0](x, w[::-1]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_structural_mistakes_fail(name, dtype):
    """A wrong epsilon, a shifted input, a dropped key, another gate and a reversed kernel are refused in each dtype."""
    case = draw_case(name, "normal", dtype, 1)
    budget = monte_carlo_budgets(entry_of(LAYERS[name][0], *LAYERS[name][1]), case)["out"]
    assert judge(WRONG[name](**case.arrays), budget).status == "fail"


def test_scalar_outputs_get_more_runs():
    """An output of one number is certified by more than four runs, so that its scale does not rest on chance."""
    layer = entry_of(lambda x: np.mean(np.exp(x)), "x")
    scales = [float(monte_carlo_budgets(layer, case_of({"x": X}), seed=s)["out"].sigma) for s in range(12)]
    assert max(scales) / min(scales) < 3.0


def test_common_factor_is_coherent():
    """A row that is one computed factor times a vector errs in one direction, and its budget knows."""
    alone = budget_of(lambda x: x * 1.5, {"x": draw(6, 32)})
    common = budget_of(lambda x: np.exp(5 * np.sum(x, axis=-1, keepdims=True)) * np.ones(32), {"x": draw(6, 8)})
    share = [np.median(b.coherent / np.linalg.norm(b.sigma, axis=-1)) for b in (alone, common)]
    assert share[0] < 0.35
    assert share[1] > 0.8


def test_a_turned_decision_may_lead_nowhere():
    """A reference that refuses what a turned decision gives it still has a budget."""

    def careful(x):
        chosen = x * 1.1 > 1.1
        if not chosen[0, 1] or chosen[0, 0]:
            raise ValueError("x must be chosen as it was")
        return np.where(chosen, x, 0.0)

    x = np.full((1, 4), 0.5)
    x[0, 0], x[0, 1] = 0.96, 1.04
    assert monte_carlo_budgets(entry_of(careful, "x"), Case("layer", {"x": x}, {}, "float16"))["out"].bound.shape == (
        1,
        4,
    )


def test_empty_outputs_have_budgets():
    """A layer on no tokens has an empty budget that an empty output passes."""
    budget = budget_of(lambda x: x @ W, {"x": np.zeros((0, 8))})
    assert judge(np.zeros((0, 8)), budget).status == "pass"


def test_exact_zeros_stay_nearly_exact():
    """Where the reference is exactly zero and nothing errs, only a half step near zero is allowed."""
    x = np.zeros((2, 8))
    budget = budget_of(lambda x: x @ W, {"x": x})
    assert judge(x, budget).status == "pass"
    assert judge(x + 1e-30, budget).status == "fail"


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 4), (2, 0, 5)])
def test_outputs_of_any_empty_shape_have_budgets(shape):
    """An output without elements, or without rows, is judged right like any other."""
    budget = budget_of(lambda x: 2.0 * x, {"x": np.ones(shape)})

    assert judge(2.0 * np.ones(shape), budget).status == "pass"
