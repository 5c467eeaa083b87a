"""The judge itself on trial: outputs made to fool it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.precision import precision_class, round_to, unit_roundoff
from refattn.conformance.verdict import Budget, candidates, degenerate, judge, row_limits, self_check

BF16 = precision_class("eager", "bfloat16")
U = 2.0**-8


def budget_of(y, **changes):
    """Return a budget for an output whose elements err by up to 4 u, typically by u."""
    y = np.asarray(y, np.float64)
    fields = {"bound": 4 * U * np.abs(y), "sigma": U * np.abs(y), "precision": BF16, "terms": 16, **changes}
    return Budget(y, fields.pop("bound"), fields.pop("sigma"), **fields)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


Y = draw(2, 4, 12, 16)


def test_exact_output_passes_with_an_empty_rule():
    """The reference's own output passes, and nothing is blamed."""
    verdict = judge(Y, budget_of(Y))
    assert (verdict.status, verdict.rule, verdict.where) == ("pass", "", ())
    assert verdict.report["correlation"] == pytest.approx(1.0)


@given(seed=st.integers(0, 2**32 - 1))
def test_rounded_output_passes(seed):
    """Rounding the reference to the dtype is never an error."""
    y = draw(3, 5, 8, seed=seed)
    assert judge(round_to(y, "bfloat16"), budget_of(y)).status == "pass"


def test_report_has_every_number():
    """A verdict reports element, row, pooled, relative L2, cosine, correlation, open share, terms and class."""
    report = judge(1.001 * Y, budget_of(Y)).report
    assert set(report) >= {"element", "row", "pooled", "relative_l2", "cosine", "correlation", "open", "terms"}
    assert report["precision"] == "eager"
    assert report["relative_l2"] == pytest.approx(0.001)


def test_wrong_shape_fails():
    """An output of another shape fails, even if it broadcasts."""
    assert judge(Y[:1], budget_of(np.repeat(Y[:1], 2, axis=0))).rule.startswith("1 shape")


def test_wrong_dtype_fails():
    """An output of another dtype than the case's fails."""
    assert judge(Y, budget_of(Y), dtype="float32").rule.startswith("1 dtype")
    assert judge(Y, budget_of(Y), dtype="bfloat16").status == "pass"


def test_nan_is_no_wildcard():
    """Where the reference is NaN, a number fails; where it is a number, NaN fails."""
    y = Y.copy()
    y[0, 0, 0, 3] = np.nan
    assert judge(y, budget_of(y)).status == "pass"
    assert judge(Y, budget_of(y)).rule.startswith("1 non-finite")
    verdict = judge(y, budget_of(Y))
    assert verdict.rule.startswith("1 non-finite")
    assert verdict.where == (0, 0, 0, 3)


@pytest.mark.parametrize(
    ("expected", "actual"), [(np.nan, np.inf), (np.inf, np.nan), (np.inf, -np.inf), (-np.inf, 1.0)]
)
def test_nan_and_infinities_are_told_apart(expected, actual):
    """NaN, plus and minus infinity only match themselves."""
    y, o = Y.copy(), Y.copy()
    y[1, 2, 3, 4], o[1, 2, 3, 4] = expected, actual
    assert judge(y, budget_of(y)).status == "pass"
    assert judge(o, budget_of(y)).rule.startswith("1 non-finite")


def test_swapped_non_finite_places_fail():
    """The right number of NaN and infinite entries at exchanged places fails."""
    y = Y.copy()
    y[0, 0, 0, 0], y[0, 0, 0, 1] = np.nan, np.inf
    o = y.copy()
    o[0, 0, 0, 0], o[0, 0, 0, 1] = np.inf, np.nan
    assert judge(o, budget_of(y)).report["misplaced"] == 2


def test_overflow_of_the_dtype_is_rounding():
    """Beside the largest number of the dtype, infinity of the right sign is a rounding of the reference."""
    y = np.full((1, 4), 65500.0)
    half = precision_class(None, "float16")
    budget = Budget(y, 40.0 + 0 * y, 30.0 + 0 * y, precision=half)
    assert judge(np.full((1, 4), np.inf), budget).status == "pass"
    assert judge(np.full((1, 4), -np.inf), budget).status == "fail"


def test_zeros_on_tiny_outputs_fail():
    """An all-zero kernel fails on outputs around 1e-6, where an absolute tolerance of 1e-2 lets it pass."""
    y = 1e-6 * Y
    assert np.allclose(0 * y, y, atol=1e-2)
    assert judge(0 * y, budget_of(y)).status == "fail"


def test_mean_of_neighbours_and_exchanged_heads_fail():
    """The mean over queries, and heads in reverse order, fail."""
    wrong = candidates(Y)
    assert set(wrong) == {"zeros", "mean", "reversed"}
    assert all(judge(o, budget_of(Y)).status == "fail" for o in wrong.values())


def test_one_wrong_row_among_thousands_fails():
    """A single row that errs by twice its limit fails although the mean error of the tensor is tiny."""
    y = draw(4000, 16)
    budget = budget_of(y, bound=1.0 + np.abs(y))
    o = y.copy()
    o[1234] += 2 * row_limits(budget)[1234] * np.ones(16) / 4
    verdict = judge(o, budget)
    assert verdict.rule.startswith("4 row")
    assert verdict.where == (1234,)


def test_one_wrong_element_in_a_huge_tensor_fails():
    """A single element out of a million that exceeds its bound fails and is named."""
    y = draw(4096, 256)
    o = y.copy()
    o[77, 200] += 5 * U * abs(o[77, 200])
    verdict = judge(o, budget_of(y))
    assert verdict.rule.startswith("3 element")
    assert verdict.where == (77, 200)
    assert verdict.measured == pytest.approx(1.25 * verdict.limit)


def test_constant_bias_below_the_element_bound_fails_pooled():
    """A relative error of 3 u in every element, below each element's bound and each row's limit, fails together."""
    o = Y * (1 + 3 * U)
    verdict = judge(o, budget_of(Y))
    assert verdict.rule.startswith("5 pooled")
    assert verdict.report["element"] < 1
    assert verdict.report["row"] < 1


def test_uncorrelated_output_of_the_right_size_fails():
    """Numbers of the right size and distribution that have nothing to do with the reference fail, and show it."""
    verdict = judge(draw(*Y.shape, seed=9), budget_of(Y))
    assert verdict.status == "fail"
    assert abs(verdict.report["correlation"]) < 0.2


def test_negated_tiny_values_fail():
    """The right magnitudes with the wrong sign fail, however small they are."""
    y = 1e-30 * Y
    verdict = judge(-y, budget_of(y))
    assert verdict.status == "fail"
    assert verdict.report["cosine"] == pytest.approx(-1.0)


def test_exact_twin_does_not_tighten_the_limit():
    """A twin without error leaves the rounding band: one rounding of every element still passes."""
    assert judge(round_to(Y, "bfloat16"), budget_of(Y, twin=0.0)).status == "pass"


def test_bad_twin_loosens_its_own_row_only():
    """A twin that errs in one row widens the limit of that row and of no other."""
    twin = np.zeros(Y.shape[:-1])
    twin[0, 0, 0] = 5.0
    limits = row_limits(budget_of(Y, twin=twin))
    assert limits[0, 0, 0] == 20.0
    assert np.all(limits.reshape(-1)[1:] < 1.0)


def test_rows_that_err_together_get_a_wider_limit():
    """Where a budget says that the elements of a row share their error, the row may leave the independent limit."""
    budget = budget_of(Y, bound=1.0 + np.abs(Y))
    common = budget._replace(coherent=np.linalg.norm(budget.sigma, axis=-1))
    assert np.all(row_limits(common) > 1.15 * row_limits(budget))
    o = Y.copy()
    o[0, 0, 0] *= 1 + 1.1 * row_limits(budget)[0, 0, 0] / np.linalg.norm(Y[0, 0, 0])
    assert judge(o, budget).rule.startswith("4 row")
    assert judge(o, common).status == "pass"


def test_pooled_limit_is_the_budget_s():
    """A budget whose rows err together may allow more than 2 in the mean over rows, and no more than it says."""
    budget = budget_of(Y, pooled_limit=3.5)
    assert judge(Y * (1 + 3 * U), budget).status == "pass"
    assert judge(Y * (1 + 3.9 * U), budget).rule.startswith("5 pooled")


def test_empty_rows_are_exact():
    """A row that sees nothing must equal the policy exactly: the smallest subnormal number is too much."""
    empty = np.zeros(Y.shape[:-1], bool)
    empty[1, 3] = True
    y = np.where(empty[..., None], 0.0, Y)
    budget = budget_of(y, empty=empty, bound=1.0 + 0 * Y)
    o = y.copy()
    assert judge(o, budget).status == "pass"
    o[1, 3, 0, 0] = 5e-324
    assert judge(o, budget).rule.startswith("2 empty")


def test_nan_policy_of_empty_rows_is_exact():
    """Under the policy nan, an empty row of zeros fails."""
    y = Y.copy()
    y[0, 0] = np.nan
    empty = np.isnan(y[..., 0])
    assert judge(y, budget_of(y, empty=empty)).status == "pass"
    assert judge(np.nan_to_num(y), budget_of(y, empty=empty)).rule.startswith("2 empty")


def test_open_rows_are_left_out_of_rows_but_not_of_elements():
    """An open row may exceed its limit, but none of its elements may exceed its bound."""
    is_open = np.zeros(Y.shape[:-1], bool)
    is_open[0] = True
    budget = budget_of(Y, open=is_open, bound=100 * U * np.abs(Y))
    o = Y.copy()
    o[0] *= 1 + 50 * U
    assert judge(o, budget).status == "pass"
    assert judge(o, budget._replace(open=~is_open)).rule.startswith("4 row")
    o[0, 0, 0, 0] *= 2
    assert judge(o, budget).rule.startswith("3 element")


def test_mostly_open_is_inconclusive_and_never_a_pass():
    """A case with more than half of its rows open is inconclusive, even for the exact output."""
    is_open = np.zeros(Y.shape[:-1], bool)
    is_open[:, :, :7] = True
    verdict = judge(Y, budget_of(Y, open=is_open))
    assert verdict.status == "inconclusive"
    assert verdict.measured == pytest.approx(7 / 12)


def test_mostly_open_does_not_hide_a_failure():
    """NaN in a mostly open case is still a failure."""
    o = Y.copy()
    o[0, 0, 0, 0] = np.nan
    assert judge(o, budget_of(Y, open=True)).status == "fail"


def test_infinite_bound_is_counted_as_open():
    """A row that nothing is known about is not judged, and is counted."""
    bound = 4 * U * np.abs(Y)
    bound[0, 0, 0] = np.inf
    o = Y.copy()
    o[0, 0, 0] = np.nan
    verdict = judge(o, budget_of(Y, bound=bound))
    assert verdict.status == "pass"
    assert verdict.report["open"] == pytest.approx(1 / 96)


def test_flushed_subnormals_are_acceptable_where_declared():
    """A device that returns zero for subnormal numbers is acceptable, not right, and only within the floor."""
    y = 2.0**-130 * Y
    flush = BF16.flush_floor(16)
    assert judge(0 * y, budget_of(y)).status == "fail"
    verdict = judge(0 * y, budget_of(y, flush=flush))
    assert verdict.status == "acceptable"
    assert verdict.rule.startswith("7 flushed")
    assert judge(0 * Y, budget_of(Y, flush=flush)).status == "fail"


def test_limit_zero_allows_no_error():
    """Where rounding can do nothing, any error fails."""
    y = np.ones((3, 4))
    none = np.zeros_like(y)
    assert judge(y, Budget(y, none, none)).status == "pass"
    assert judge(np.nextafter(y, 2), Budget(y, none, none)).status == "fail"


def test_integers_are_exact_but_in_open_rows():
    """Indices are compared exactly; a row whose decision rounding may turn is left out and counted."""
    y = np.arange(12).reshape(4, 3)
    budget = Budget(y, np.zeros(y.shape), np.zeros(y.shape), open=np.array([False, False, False, True]))
    o = y.copy()
    o[3, 0] = 99
    assert judge(o, budget).status == "pass"
    o[2, 2] = 99
    verdict = judge(o, budget)
    assert verdict.rule.startswith("3 exact")
    assert verdict.where == (2, 2)


def test_integers_in_mostly_open_rows_are_inconclusive():
    """Right indices are no proof where most rows may be turned."""
    y = np.arange(4).reshape(4, 1)
    budget = Budget(y, np.zeros(y.shape), np.zeros(y.shape), open=True)
    assert judge(y, budget).status == "inconclusive"


def test_elements_can_be_rows():
    """With row_axes 0 every element has its own limit; limits still come without the last axis."""
    y = draw(2, 5)
    budget = budget_of(y, row_axes=0, twin=np.zeros(y.shape))
    assert judge(y, budget).status == "pass"
    assert row_limits(budget).shape == (2,)
    wide = budget_of(y, row_axes=0, bound=1.0 + 0 * y)
    o = y.copy()
    o[1, 3] += 0.9
    assert judge(o, wide).where == (1, 3)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 0), (0, 4), (2, 0, 3)])
def test_every_shape_can_be_judged(shape):
    """Scalars, vectors and empty arrays pass when right, and when not empty fail when wrong."""
    y = 1.0 + np.zeros(shape)
    assert judge(y, budget_of(y)).status == "pass"
    assert row_limits(budget_of(y)).shape == shape[:-1]
    if y.size:
        assert judge(2 * y, budget_of(y)).status == "fail"


def test_huge_and_tiny_numbers_do_not_overflow_the_norms():
    """Rows of 1e200 and of 1e-320 are judged like rows of 1."""
    for scale in (1e200, 1e-300):
        y = scale * Y
        assert judge(y, budget_of(y)).status == "pass"
        assert judge(1.5 * y, budget_of(y)).status == "fail"


def test_judging_is_silent():
    """Whatever an output holds, judging it neither warns nor raises."""
    wild = np.resize([1e308, -1e308, 5e-324, np.inf, -np.inf, np.nan, 0.0], Y.shape)
    with np.errstate(all="ignore"):
        budgets = [budget_of(y) for y in (Y, 1e300 * Y, 1e-310 * Y, wild)]
    with np.errstate(all="raise"):
        for budget in budgets:
            row_limits(budget)
            self_check(budget)
            for o in (Y, wild, np.full(Y.shape, 1e308)):
                judge(o, budget)


def test_objects_and_complex_numbers_fail():
    """What is no real array fails instead of raising."""
    assert judge(Y.astype(object), budget_of(Y)).status == "fail"
    assert judge(Y + 0j, budget_of(Y)).status == "fail"


def test_the_judge_writes_to_nothing():
    """Neither the output nor the budget is changed by judging."""
    o, budget = 1.01 * Y, budget_of(Y)
    for array in (o, budget.expected, budget.bound, budget.sigma):
        array.setflags(write=False)
    judge(o, budget)
    assert np.array_equal(o, 1.01 * Y)


def test_sentence_names_rule_numbers_and_place():
    """The one-line form of a failure has the rule, the two numbers and the index."""
    o = Y.copy()
    o[0, 1, 2, 3] += 1.0
    sentence = judge(o, budget_of(Y)).sentence
    assert "3 element" in sentence
    assert "(0, 1, 2, 3)" in sentence
    assert judge(Y, budget_of(Y)).sentence == "pass"


def test_self_check_accepts_a_sound_case():
    """A case that rejects zeros, means and exchanged heads is sound."""
    assert self_check(budget_of(Y)) == ()
    assert not degenerate(budget_of(Y))


def test_self_check_refuses_zeros():
    """A case whose reference is zero everywhere is refused, and so is one that is nowhere finite."""
    assert degenerate(budget_of(0 * Y))
    assert degenerate(budget_of(np.nan * Y))
    assert self_check(budget_of(0 * Y))


def test_self_check_refuses_a_bound_that_lets_anything_pass():
    """A case whose budget accepts a kernel that returns zeros is refused with that reason."""
    loose = budget_of(Y, bound=10.0 + 0 * Y, sigma=10.0 + 0 * Y)
    assert any("'zeros' passes" in reason for reason in self_check(loose))


def test_self_check_ignores_candidates_that_are_right():
    """A wrong function that gives the right answer on a case need not be rejected by it."""
    same = np.repeat(draw(1, 1, 1, 16), 12, axis=2)
    assert self_check(budget_of(same)) == ()


def test_rows_without_sight_are_no_reason_to_refuse():
    """A case in which every row is empty is a test of the policy, not a degenerate one."""
    y = np.zeros((2, 3))
    assert not degenerate(budget_of(y, empty=True))


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0))
def test_a_pass_is_monotone(seed, share):
    """Moving a passing output closer to the reference never makes it fail."""
    y = draw(4, 8, seed=seed)
    noise = unit_roundoff("bfloat16") * np.abs(y) * draw(4, 8, seed=seed + 1)
    budget = budget_of(y)
    if judge(y + noise, budget).status == "pass":
        assert judge(y + share * noise, budget).status == "pass"
