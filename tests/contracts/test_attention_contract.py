"""The contract of attention: its catalogue is the sheet's, its pipelines are right, its laws hold and bite."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.audit import audit_laws
from refattn.conformance.backend import Backend
from refattn.conformance.checks.laws import broken_claim
from refattn.conformance.contract import map_arrays, unpack
from refattn.conformance.diagnose import bug_outputs
from refattn.conformance.precision import DTYPES, round_to
from refattn.conformance.trial import Bench, budgets_of
from refattn.conformance.verdict import judge
from refattn.contracts.attention import (
    CONTRACT,
    SMOKE,
    attention_cases,
    dense,
    merge_cases,
    paged_cases,
    rotary_cases,
    sees,
    varlen_cases,
    wrong_attentions,
    wrong_gradients,
    wrong_rotations,
)
from refattn.contracts.attention.bugs.merging import run_merge
from refattn.contracts.attention.carriers import direct, online, split_kv
from refattn.contracts.attention.equivalents import restored
from refattn.contracts.attention.families import FAMILIES
from refattn.contracts.attention.gradient_pipeline import GradientSteps, run_gradient
from refattn.contracts.attention.pipeline import Steps, run
from refattn.contracts.attention.rotary_pipeline import RotarySteps, run_rotary
from refattn.contracts.attention.scenarios import SHEET_SCENARIOS
from refattn.primitives.attention import attention
from refattn.primitives.attention_online import merge_attention
from refattn.primitives.masks import visibility
from refattn.primitives.rotary import rope, rope_angles, rope_frequencies
from refattn.primitives.rotary_embedding import rotary_embedding

FORWARD = """
no_scale scale_inv_d scale_dv scale_override_ignored softcap_missing softcap_after_mask softcap_no_divide softcap_clip
softcap_before_scale bias_missing bias_scaled bias_subtracted bias_batch0 bias_head0 bias_rank3_as_batch bias_transposed
mask_inverted mask_ignored mask_transposed mask_batch0 mask_as_float mask_post_softmax mask_zero_logit mask_minus_10
mask_minus_100_added mask_or_causal mask_dropped_when_causal causal_missing causal_loose causal_strict causal_transposed
causal_top_left causal_bottom_right causal_padded_length causal_block_coarse causal_skip_diagonal_block window_ignored
window_left_plus1 window_left_minus1 window_right_plus1 window_right_ignored window_no_offset len_ignored len_plus1
len_minus1 len_batch0 doc_ignored doc_boundary_shift doc_first_only prefix_ignored prefix_plus1 paged_identity
paged_batch0 paged_tail gqa_tile gqa_first gqa_off_by_one heads_reversed layout_swap v_head_rolled v_row_shift k_as_v
kv_batch_rolled last_row_of_previous drop_tail_keys zero_pad_tail unwritten_tail_queries duplicate_last_block
skip_block_first_key diagonal_dropped no_max_subtract max_init_zero global_max exp2_no_log2e softmax_over_queries
softmax_plus_one denominator_eps unnormalised scores_abs no_rescale_acc no_rescale_sum rescale_inverse split_average
split_max_weights split_last_only split_base2_lse alibi_missing alibi_sign alibi_naive_slopes alibi_h0 alibi_scaled
alibi_signed alibi_no_offset sink_missing sink_scaled sink_raw sink_kv_head sink_per_split empty_nan empty_uniform
mean_v zeros dropout_on weights_rounded_int8 tf32_products weights_bf16 exp_cubic precision_eager precision_low
"""
BACKWARD = """
g_no_delta g_delta_mean g_delta_from_rounded_half g_dq_noscale g_dk_noscale g_dk_group_first g_dv_group_mean
g_softcap_no_derivative g_softcap_deriv_1mt2 g_recompute_unmasked g_recompute_no_sink g_dk_tail_queries g_dq_last_block
g_dv_unnormalised g_dk_dv_swapped g_empty_nan
"""
ROTATION = """
r_sign r_interleaved_for_half r_pos_plus1 r_offset_ignored r_theta r_exponent_c_over_d r_exponent_dm2 r_all_dims
r_partial_freqs_from_d r_partial_last r_sin_sign_one_half r_swapped_cos_sin r_no_attention_factor
r_attention_factor_once r_scaling_ignored r_linear_on_theta r_bf16_angles
"""
SIZES = {
    "plain_square": (2, 4, 4, 40, 40), "plain_unequal": (2, 4, 4, 29, 45), "gqa": (1, 8, 2, 21, 37),
    "mqa_decode": (3, 4, 1, 1, 33), "causal_square": (1, 4, 4, 40, 40), "causal_tl": (1, 4, 4, 23, 41),
    "causal_br": (1, 4, 4, 23, 41), "causal_br_long": (1, 2, 2, 41, 23), "cache_lengths": (3, 4, 2, 7, 40),
    "pad_lengths": (3, 2, 2, 12, 30), "window_causal": (1, 4, 2, 20, 44), "window_two": (1, 2, 2, 30, 38),
    "softcap": (1, 4, 4, 24, 30), "bias": (2, 4, 4, 20, 26), "bias_bcast": (2, 4, 4, 20, 20),
    "bool_mask": (2, 4, 4, 22, 22), "mask_and_causal": (2, 2, 2, 22, 22), "alibi": (1, 6, 6, 24, 40),
    "alibi_two_sided": (1, 4, 4, 24, 30), "sinks": (2, 4, 2, 20, 26), "sinks_split": (1, 4, 2, 6, 90),
    "packed": (1, 4, 2, 40, 40), "paged": (3, 4, 2, 3, 40), "prefix_lm": (1, 2, 2, 30, 30),
    "long_split": (1, 2, 2, 6, 299), "dv_ne_d": (1, 4, 4, 20, 26), "one_key": (2, 4, 2, 5, 1),
    "square_hs": (1, 16, 16, 16, 16),
}  # fmt: skip
ENTRIES = {entry.name: entry for entry in CONTRACT.entries}
REFERENCES = {name: entry.reference for name, entry in ENTRIES.items()}
RIGHT = {
    "attention": lambda *a, **o: run(Steps(), *a, **o),
    "attention_vjp": lambda *a, **o: run_gradient(GradientSteps(), *a, **o),
    "merge_attention": run_merge,
    "rotary_embedding": lambda *a, **o: run_rotary(RotarySteps(), *a, **o),
}


def all_cases(entry, dtype="float64", families=None):
    for maker in entry.scenarios.values():
        for family in families or entry.families:
            yield maker(family, dtype, 0)


def assert_same(actual, expected, tolerance=1e-12):
    """Non-finite numbers where expected; all others equal relative to the largest."""
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    largest = np.max(np.abs(expected[finite]), initial=0.0)
    assert np.max(np.abs(actual[finite] - expected[finite]), initial=0.0) <= tolerance * largest


# --- catalogue


def test_the_library_of_bugs_is_the_sheets():
    """The planted bugs have exactly the sheet's names: forward, gradient and rotary."""
    assert sorted(wrong_attentions) == sorted(FORWARD.split())
    assert sorted(wrong_gradients) == sorted(BACKWARD.split())
    assert sorted(wrong_rotations) == sorted(ROTATION.split())


def test_the_scenarios_are_the_sheets():
    """The sheet's 28 scenarios have its sizes, and every one can be filled with nine value families."""
    found = {}
    for name, maker in SHEET_SCENARIOS.items():
        a = maker("normal", "float64", 0).arrays
        found[name] = (*a["q"].shape[:2], a["k"].shape[1], a["q"].shape[2], a["k"].shape[2])

    assert found == SIZES
    assert len(FAMILIES) == 9


def test_the_smoke_set_names_scenarios_and_families():
    """Every smoke pair exists; the sheet's fifteen are among them."""
    for entry in CONTRACT.entries:
        assert {s for s, _ in entry.smoke} <= set(entry.scenarios)
        assert {f for _, f in entry.smoke} <= set(entry.families)
    cancel = "mask_and_causal alibi bias window_two softcap packed bias_bcast prefix_lm pad_lengths alibi_two_sided"
    assert {(name, "cancel") for name in f"{cancel} causal_tl square_hs".split()} < set(SMOKE)
    assert {("paged", "rowshift"), ("sinks_split", "spiky"), ("dv_ne_d", "normal")} < set(SMOKE)


@pytest.mark.parametrize("entry", CONTRACT.entries, ids=lambda e: e.name)
def test_every_bug_shows_the_lines_of_its_mistake(entry):
    """The source of a bug is a short function of its own, not the pipeline."""
    import inspect

    for bug in entry.bugs:
        assert len(inspect.getsource(bug.source).splitlines()) <= 10, bug.name


# --- cases


@pytest.mark.parametrize("dtype", DTYPES)
def test_cases_hold_what_their_dtype_can(dtype):
    """Every floating number of every scenario is representable in the dtype of the case."""
    for entry in CONTRACT.entries:
        for case in all_cases(entry, dtype, entry.families[:5]):
            arrays = dict(case.arrays)
            map_arrays(lambda a: a.dtype.kind != "f" or np.testing.assert_array_equal(round_to(a, dtype), a), arrays)


def test_a_seed_fixes_a_case():
    """The same seed gives the same case, another seed another."""
    first, again, other = (SHEET_SCENARIOS["bias"]("normal", "float32", seed) for seed in (3, 3, 4))

    assert all(np.array_equal(first.arrays[n], again.arrays[n]) for n in first.arrays)
    assert not np.array_equal(first.arrays["q"], other.arrays["q"])


def test_rowshift_moves_whole_rows_of_scores():
    """The rows of rowshift have mean scores near −1500, 0 and 1500 in turn, in float64."""
    a = SHEET_SCENARIOS["plain_square"]("rowshift", "float64", 0).arrays
    means = (a["q"] @ a["k"].swapaxes(-1, -2) / 4.0).mean(axis=-1)

    np.testing.assert_allclose(means, np.broadcast_to(1500.0 * (np.arange(40) % 3 - 1), means.shape), atol=5)


def test_cancelling_values_cancel():
    """In the family cancel, the mean of all values is a thousandth of their size."""
    v = SHEET_SCENARIOS["plain_square"]("cancel", "float64", 0).arrays["v"]

    assert np.abs(v.mean(axis=2)).max() < 1e-3 * np.abs(v).max()


def test_padding_is_loud():
    """Past a valid length, values are twice the largest valid one."""
    case = SHEET_SCENARIOS["pad_lengths"]("normal", "float64", 0)
    v, n = case.arrays["v"], case.arrays["kv_lengths"]

    for b in range(3):
        largest = np.abs(v[b, :, : n[b]]).max(axis=(1, 2))
        np.testing.assert_array_equal(
            v[b, :, n[b] :], np.broadcast_to(2 * largest[:, None, None], v[b, :, n[b] :].shape)
        )


@given(case=attention_cases("float64"))
def test_visibility_of_a_case_is_the_references(case):
    """What the contract says is visible, the reference says too."""
    rules = ("mask", "causal", "align", "window", "kv_lengths", "q_lengths", "prefix", "doc_q", "doc_k", "chunk")
    asked = {name: x for name, x in {**case.arrays, **case.options}.items() if name in rules}
    expected = visibility(case.arrays["q"].shape[2], case.arrays["k"].shape[2], **asked)
    if "bias" in case.arrays:
        expected = expected & ~np.isneginf(case.arrays["bias"])

    np.testing.assert_array_equal(sees(case), np.broadcast_to(expected, sees(case).shape))


# --- pipelines


@pytest.mark.parametrize("name", RIGHT)
def test_the_unmodified_pipeline_is_the_reference(name):
    """With no step replaced, every pipeline gives what the reference gives, on every scenario and family."""
    entry = ENTRIES[name]
    for case in all_cases(entry):
        found, expected = unpack(entry.invoke(RIGHT[name], case), entry.outputs), entry.expected(case)
        assert set(found) == set(expected)
        for output, value in expected.items():
            assert_same(found[output], value)


@pytest.mark.parametrize("carrier", [direct, online, split_kv])
def test_the_three_carriers_agree(carrier):
    """Whole rows, blocks and merged parts give the same output and log-sum-exp."""
    entry = ENTRIES["attention"]
    for case in all_cases(entry):
        asked = case.having(returns=("out", "lse"))
        expected = entry.expected(asked)
        found = unpack(entry.invoke(lambda *a, **o: run(Steps(attend=carrier), *a, **o), asked), entry.outputs)
        assert_same(found["out"], expected["out"], 1e-11)
        assert_same(found["lse"], expected["lse"])


@given(case=st.one_of(varlen_cases("float64"), paged_cases("float64")))
def test_packed_and_paged_cases_have_a_dense_equal(case):
    """The dense form of a packed or paged case gives, laid out again, what its own reference gives."""
    asked = case.having(returns=("out", "lse"))
    like = dense(asked)
    found = unpack(attention(**like.arrays, **like.options), ("out", "lse"))
    for name, value in ENTRIES[case.entry].expected(asked).items():
        assert_same(restored(asked, name, found[name]), value, 1e-11)


@given(case=st.one_of(varlen_cases("float32"), paged_cases("float32")))
def test_budgets_of_packed_and_paged_cases_fit_their_outputs(case):
    """Budgets are derived from the dense form and laid out as the packed output; the reference passes them."""
    entry = ENTRIES[case.entry]
    for name, budget in budgets_of(entry, case).items():
        y = entry.expected(case)[name]
        assert judge(round_to(y, "float32"), budget).status in ("pass", "inconclusive")
        assert np.shape(budget.bound) == y.shape
        assert np.broadcast_to(budget.twin, y.shape[:-1]).shape == y.shape[:-1]


@given(case=rotary_cases("float64"))
def test_rotary_embedding_is_its_three_steps(case):
    """Positions, frequencies, angles and rotation in one call equal the steps one by one."""
    o = dict(case.options)
    x, positions = case.arrays["x"], case.arrays["positions"]
    asked = {name: o[name] for name in ("theta", "scaling", "length") if name in o}
    freqs, factor = rope_frequencies(o.get("rotary_dim", x.shape[-1]), **asked)
    turn = {name: o[name] for name in ("interleaved", "inverse")}

    np.testing.assert_array_equal(
        rotary_embedding(x, positions, **o), rope(x, rope_angles(positions, freqs), factor=factor, **turn)
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"positions": np.zeros(3)}, "positions"),
        ({"positions": np.arange(5)}, "angles"),
        ({"rotary_dim": 10}, "rotary_dim"),
        ({"rotary_dim": 3}, "dim"),
        ({"theta": 0.0}, "theta"),
        ({"scaling": {"type": "none"}}, "scaling"),
        ({"x": np.zeros(8)}, "x has shape"),
    ],
)
def test_rotary_embedding_names_what_it_refuses(arguments, named):
    """Bad positions, widths, bases and scaling rules raise ValueError with the argument's name."""
    given_arguments = {"x": np.zeros((2, 3, 8)), "positions": np.arange(3)} | arguments
    with pytest.raises(ValueError, match=named):
        rotary_embedding(**given_arguments)


# --- bugs


def visibly_wrong(entry, bug, case, precision=None):
    budgets = budgets_of(entry, case, precision)
    with np.errstate(over="ignore"):  # a mistake may be larger than the dtype, or its share of the limit than float64
        outputs = {name: round_to(x, case.dtype) for name, x in bug_outputs(entry, bug, case).items()}
        return any(judge(outputs[name], budget).status == "fail" for name, budget in budgets.items())


@pytest.mark.parametrize("entry", CONTRACT.entries, ids=lambda e: e.name)
def test_every_bug_acts_somewhere(entry):
    """Each planted bug applies to some scenario and changes its result there; shapes stay those of the reference."""
    silent = {bug.name for bug in entry.bugs}
    for case in all_cases(entry, "float32", [f for f in ("normal", "rowshift", "large") if f in entry.families]):
        expected = entry.expected(case)
        for bug in entry.bugs:
            if bug.applies(case):
                wrong = bug_outputs(entry, bug, case)
                for name in set(entry.outputs) & set(expected):
                    assert wrong[name].shape == expected[name].shape, (bug.name, case.label)
                    if not np.array_equal(wrong[name], expected[name], equal_nan=True):
                        silent.discard(bug.name)

    assert silent == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smoke_set_catches_every_bug(dtype):
    """Each bug that a dtype can show is caught on one of the smoke pairs at least."""
    for entry in CONTRACT.entries:
        free = {bug.name: bug for bug in entry.bugs if dtype in bug.dtypes}
        for scenario, family in entry.smoke:
            case = entry.scenarios[scenario](family, dtype, 0)
            acting = [bug for bug in free.values() if bug.applies(case)]
            for bug in acting:
                if visibly_wrong(entry, bug, case):
                    del free[bug.name]
        assert list(free) == [], entry.name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "scenario", "family"), [("eager", "bool_mask", "peaky"), ("low", "alibi", "cancel")])
def test_a_stricter_declared_class_shows_the_precision_bugs(dtype, name, scenario, family):
    """Who declares fused arithmetic may neither round scores to the dtype nor accumulate in it."""
    entry = ENTRIES["attention"]
    case = entry.scenarios[scenario](family, dtype, 0)

    assert visibly_wrong(entry, wrong_attentions[f"precision_{name}"], case, "fused")


def test_a_bug_of_an_option_is_right_without_it():
    """A mistake in the handling of an option leaves calls without the option alone."""
    entry = ENTRIES["attention"]
    case = entry.scenarios["plain_square"]("normal", "float64", 0)
    expected = entry.expected(case)["out"]
    for family in ("softcap", "bias", "causal", "window", "doc", "prefix", "alibi", "sink", "len"):
        for name in (n for n in wrong_attentions if n.startswith(f"{family}_")):
            np.testing.assert_array_equal(bug_outputs(entry, wrong_attentions[name], case)["out"], expected)


# --- laws

REFERENCE_BENCH = Bench(Backend(SimpleNamespace(**REFERENCES), "reference"), CONTRACT)
LAWS = [pytest.param(e, law, id=f"{e.name}-{law.name}") for e in CONTRACT.entries for law in e.laws]


@pytest.mark.parametrize(("entry", "law"), LAWS)
@given(data=st.data())
def test_every_law_holds_for_the_reference(entry, law, data):
    """A law is true of the float64 reference on drawn cases, up to float64 rounding."""
    case = data.draw(entry.cases("float64"))
    if law.applies(case):
        assert broken_claim(law, REFERENCE_BENCH, case, 0) is None


@pytest.mark.parametrize("entry", CONTRACT.entries, ids=lambda e: e.name)
def test_every_law_exposes_its_witness(entry):
    """Without one value of the reference, each law finds the bug that it names."""
    assert {law: why for law, why in audit_laws(CONTRACT, entry).items() if why} == {}


# --- bit-exact vectors and conventions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", [e for e in CONTRACT.entries if e.exact], ids=lambda e: e.name)
def test_exact_vectors_are_exact_for_the_reference(entry, dtype):
    """The reference returns every bit of the vectors whose arithmetic is exact."""
    for maker in entry.exact.values():
        case, expected = maker(dtype)
        found = entry.expected(case)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def heads_last(function):
    """Wrap a reference as a backend with the length before the heads."""

    def wrapped(*arrays, **options):
        result = function(*(x.swapaxes(1, 2) for x in arrays), **options)
        if hasattr(result, "_fields"):
            swapped = {
                n: x.swapaxes(1, 2)
                for n, x in result._asdict().items()
                if n in ("out", "dq", "dk", "dv") and x is not None
            }
            return result._replace(**swapped)
        return result

    return wrapped


def strict(function, names, translate=lambda options: options):
    """Wrap a reference as a backend that takes only some keywords, and translates them."""

    def wrapped(*arrays, **options):
        if set(options) - set(names):
            raise NotImplementedError(f"{set(options) - set(names)}")
        return function(*arrays, **translate(options))

    return wrapped


def repeated_only(function):
    def wrapped(q, k, v, *rest, **options):
        heads = 2 if options.get("layout") == "bshd" else 1
        assert q.shape[heads] == k.shape[heads] == v.shape[heads]
        return function(q, k, v, *rest, **options)

    return wrapped


def other_lse(change):
    def wrapped(*arrays, **options):
        result = attention(*arrays, **options)
        return result if result.lse is None else result._replace(lse=change(result.lse))

    return wrapped


def inverted(options):
    return options | ({"mask": ~options["mask"]} if "mask" in options else {})


def self_counting(options):
    left, right = options.get("window", (None, None))
    return options | {"window": (None if left is None else left - 1, right)}


def minus_one(options):
    if None in options.get("window", ()):
        raise NotImplementedError("None")
    return options | {"window": tuple(None if side == -1 else side for side in options.get("window", (-1, -1)))}


def always(**fixed):
    """Wrap the reference as a backend that does one thing whatever it is asked."""

    def wrapped(*arrays, **options):
        return attention(*arrays, **(options | fixed))

    return wrapped


NO_MASK = ("bias", "scale", "softcap", "sinks", "returns")
MASKED = (*NO_MASK, "mask", "alibi_slopes", "align")
ALL = tuple(attention.__kwdefaults__)
TRANSLATED = [
    ({"layout": "bshd"}, heads_last(attention)),
    ({"visibility": "mask"}, strict(attention, MASKED)),
    ({"mask": "ignore"}, strict(attention, ALL, inverted)),
    ({"mask": "bias"}, strict(attention, [n for n in ALL if n != "mask"])),
    ({"alibi": "bias"}, strict(attention, [n for n in ALL if n != "alibi_slopes"])),
    ({"visibility": "mask", "mask": "bias", "alibi": "bias"}, strict(attention, NO_MASK)),
    ({"window": "with_self"}, strict(attention, ALL, self_counting)),
    ({"unbounded": "minus_one"}, strict(attention, ALL, minus_one)),
    ({"kv_heads": "repeated"}, repeated_only(attention)),
    ({"lse_base": "2"}, other_lse(lambda lse: lse / np.log(2.0))),
    ({"lse_empty": "plus_infinity"}, other_lse(lambda lse: np.where(np.isneginf(lse), np.inf, lse))),
    ({"lse_layout": "bsh"}, other_lse(lambda lse: lse.swapaxes(1, 2))),
]
DIFFERENT = [
    ({"align": "bottom_right"}, always(align="bottom_right")),
    ({"align": "top_left"}, always(align="top_left")),
    ({"empty": "nan"}, always(empty="nan")),
    ({"empty": "uniform"}, always(empty="uniform")),
]


def name_of(value):
    return ",".join(map("=".join, value.items())) if isinstance(value, dict) else ""


def verdicts_of(convention, backend):
    """Judge a backend of a convention on every scenario; its verdicts, and why it failed where it did."""
    entry = ENTRIES["attention"]
    bench = Bench(Backend(SimpleNamespace(attention=backend, CONVENTIONS=convention), "other"), CONTRACT)
    cases = [case.having(returns=("out", "lse")) for case in all_cases(entry, families=["normal"])]
    outcomes = [bench.try_case(entry, case) for case in cases]
    assert [(o.case.label, o.reason) for o in outcomes if o.status == "fail"] == []
    assert sum(o.status == "skip" for o in outcomes) <= 3
    return {o.status for o in outcomes} - {"skip"}


@pytest.mark.parametrize(("convention", "backend"), TRANSLATED, ids=name_of)
def test_a_backend_that_is_spoken_to_otherwise_passes(convention, backend):
    """Where a convention only translates inputs or outputs, the backend passes on every scenario."""
    assert verdicts_of(convention, backend) == {"pass"}


@pytest.mark.parametrize(("convention", "backend"), DIFFERENT, ids=name_of)
def test_a_backend_whose_results_differ_by_convention_is_acceptable(convention, backend):
    """Where a convention changes results, the cases that show it are acceptable and the others pass."""
    assert verdicts_of(convention, backend) == {"pass", "acceptable"}


@pytest.mark.parametrize(("convention", "backend"), TRANSLATED + DIFFERENT, ids=name_of)
def test_a_convention_that_is_not_declared_fails(convention, backend):
    """The same backend without its declaration fails or refuses some scenario."""
    del convention
    entry = ENTRIES["attention"]
    bench = Bench(Backend(SimpleNamespace(attention=backend), "silent"), CONTRACT)
    cases = [case.having(returns=("out", "lse")) for case in all_cases(entry, families=["normal"])]

    assert {"fail", "skip"} & {bench.try_case(entry, case).status for case in cases}


def test_gradients_follow_layout_and_repeated_heads():
    """Gradients come back in the reference's layout, summed over the heads that were repeated."""
    from refattn.primitives.attention_gradients import attention_vjp

    entry = ENTRIES["attention_vjp"]
    module = SimpleNamespace(
        attention_vjp=heads_last(repeated_only(attention_vjp)), CONVENTIONS={"layout": "bshd", "kv_heads": "repeated"}
    )
    bench = Bench(Backend(module, "other"), CONTRACT)
    for scenario in ("gqa", "causal_br_long", "bool_mask"):
        assert bench.try_case(entry, entry.scenarios[scenario]("normal", "float64", 0)).status == "pass"


@given(case=merge_cases("float64"))
def test_merging_twice_is_merging_once(case):
    """Merging a merged result with nothing leaves it as it is."""
    out, lse = merge_attention(**case.arrays)
    again, lse_again = merge_attention(out[None], lse[None])

    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(lse_again, lse)
