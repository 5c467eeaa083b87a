"""The example adapters: ten lines or fewer, and each agrees with the reference on what it declares."""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from refattn.conformance.backend import load_backend
from refattn.conformance.cases import rounded
from refattn.conformance.checks import perform
from refattn.conformance.contract import Case
from refattn.conformance.records import CheckId
from refattn.conformance.registry import find_contracts
from refattn.conformance.settings import Settings
from refattn.conformance.trial import Bench

ADAPTERS = Path(__file__).resolve().parents[1] / "examples" / "adapters"
FRAMEWORKS = {
    "torch_sdpa": "torch",
    "torch_flex": "torch",
    "torch_mha": "torch",
    "jax_attention": "jax",
    "onnx_attention": "onnx",
    "hf_rotary": "transformers",
}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def code_lines(path):
    """Return the lines of a file that are neither blank, nor comments, nor docstrings."""
    text = path.read_text(encoding="utf-8")
    words = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return [line for n, line in lines if n not in words and line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*.py")), ids=lambda path: path.stem)
def test_an_adapter_has_at_most_ten_lines(path):
    """Imports and declarations count; what is said about them does not."""
    assert len(code_lines(path)) <= 10


def test_every_adapter_is_tried_here():
    """No adapter is left out of the tests below."""
    assert {path.stem for path in ADAPTERS.glob("*.py")} == set(FRAMEWORKS)


@cache
def bench(name):
    pytest.importorskip(FRAMEWORKS[name], reason=f"{FRAMEWORKS[name]} is not installed")
    return Bench(load_backend(str(ADAPTERS / f"{name}.py")), find_contracts()["attention"])


def agree(name, case):
    """Run a case both ways: the reference with the adapter's conventions, and the adapter through the kit."""
    on = bench(name)
    entry = on.contract.entry(case.entry)
    expected = entry.expected(on.expect(case))["out"]
    actual = on.outputs(entry, case)["out"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[case.dtype])


def attention_case(dtype="float32", *, sizes=(2, 4, 4, 7, 9), d=8, dv=8, arrays=None, **options):
    rng = np.random.default_rng(0)
    batch, hq, hkv, sq, sk = sizes
    shapes = {"q": (batch, hq, sq, d), "k": (batch, hkv, sk, d), "v": (batch, hkv, sk, dv)}
    drawn = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return Case("attention", rounded(drawn | (arrays or {}), dtype), options, dtype)


def some_mask(*, empty=False):
    mask = np.random.default_rng(1).random((2, 1, 7, 9)) < 0.6
    mask[..., 0] = True
    mask[1, 0, 3] = not empty
    return mask


def some_bias():
    bias = np.random.default_rng(2).standard_normal((4, 7, 9))
    bias[:, 2, 1:4] = -np.inf
    return bias


SLOPES = np.array([0.5, 0.25, 0.125, 0.0625])
FEATURES = {
    "plain": {},
    "grouped heads": {"sizes": (2, 4, 2, 7, 9)},
    "wide values": {"dv": 12},
    "scale": {"scale": 0.9},
    "mask": {"arrays": {"mask": some_mask()}},
    "mask of rows": {"arrays": {"mask": some_mask()[0, 0]}},
    "empty row": {"arrays": {"mask": some_mask(empty=True)}},
    "bias": {"arrays": {"bias": some_bias()}},
    "mask and bias": {"arrays": {"mask": some_mask(), "bias": some_bias()}},
    "alibi": {"arrays": {"alibi_slopes": SLOPES}, "causal": True},
    "causal": {"causal": True},
    "causal square": {"causal": True, "sizes": (2, 4, 4, 8, 8)},
    "causal and mask": {"causal": True, "arrays": {"mask": some_mask()}},
    "causal bottom right": {"causal": True, "align": "bottom_right"},
    "causal offset": {"causal": True, "align": 1},
    "more queries than keys": {"causal": True, "align": "bottom_right", "sizes": (1, 2, 2, 9, 5)},
    "window": {"causal": True, "window": (2, None)},
    "window on both sides": {"window": (2, 1)},
    "lengths": {"arrays": {"kv_lengths": np.array([9, 4])}},
    "softcap": {"softcap": 2.0},
    "documents": {"causal": True, "arrays": {"doc_q": np.arange(7) // 3, "doc_k": np.arange(9) // 3}},
    "prefix": {"causal": True, "prefix": 3},
}
EVERYWHERE = ("plain", "mask", "mask of rows", "empty row", "bias")
CAUSAL = ("causal", "causal square", "causal and mask", "causal bottom right", "more queries than keys")
BY_MASK = (*CAUSAL, "causal offset", "window", "window on both sides", "lengths", "documents", "prefix")
DECLARED = {
    "torch_sdpa": (
        *EVERYWHERE, *CAUSAL, "causal offset", "grouped heads", "wide values", "scale", "mask and bias", "alibi",
    ),
    "torch_flex": (
        *EVERYWHERE, *BY_MASK, "grouped heads", "wide values", "scale", "mask and bias", "alibi", "softcap",
    ),
    "torch_mha": (*EVERYWHERE, *BY_MASK, "grouped heads"),
    "jax_attention": (
        *EVERYWHERE, *CAUSAL, "grouped heads", "scale", "mask and bias", "alibi", "window", "window on both sides",
        "lengths",
    ),
    "onnx_attention": (
        *EVERYWHERE, *CAUSAL, "grouped heads", "wide values", "scale", "mask and bias", "alibi", "softcap",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "feature"), [(name, feature) for name, has in DECLARED.items() for feature in has])
def test_an_adapter_computes_what_it_declares(name, feature):
    """Output of the adapter and of the reference under the same conventions agree to rounding."""
    agree(name, attention_case(**FEATURES[feature]))


@pytest.mark.parametrize("name", ["torch_sdpa", "torch_flex", "torch_mha", "jax_attention"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_an_adapter_keeps_other_dtypes(name, dtype):
    """The plain case agrees in every dtype that the adapter says it computes in."""
    dtypes = bench(name).backend.dtypes
    if dtypes is not None and dtype not in dtypes:
        pytest.skip(f"{name} does not compute in {dtype}")
    agree(name, attention_case(dtype))


@pytest.mark.parametrize("name", DECLARED)
def test_what_an_adapter_lacks_is_skipped_with_a_reason(name):
    """Sinks are in no kernel here; the kit says so instead of failing."""
    on = bench(name)
    outcome = on.try_case(on.contract.entry("attention"), attention_case(arrays={"sinks": np.zeros(4)}))
    assert outcome.status == "skip"
    assert "sinks" in outcome.reason


ROTATIONS = {
    "plain": {},
    "base": {"theta": 500000.0},
    "linear": {"scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {"scaling": {"type": "yarn", "factor": 4.0, "original_max": 64}},
    "llama3": {
        "scaling": {
            "type": "llama3", "factor": 8.0, "original_max": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("positions", [np.arange(40, 51), np.arange(11) + 7 * np.arange(2)[:, None, None]])
@pytest.mark.parametrize("rule", ROTATIONS)
def test_hugging_face_rotates_as_declared(rule, positions):
    """Rotations agree for positions of one sequence and for positions of each batch entry."""
    x = rounded(np.random.default_rng(0).standard_normal((2, 3, 11, 16)), "float32")
    agree("hf_rotary", Case("rotary_embedding", {"x": x, "positions": positions}, ROTATIONS[rule], "float32"))


def test_hugging_face_knows_no_ntk():
    """A scaling that the library lacks is skipped by name."""
    on = bench("hf_rotary")
    arrays = {"x": np.zeros((1, 1, 2, 4)), "positions": np.arange(2)}
    case = Case("rotary_embedding", arrays, {"scaling": {"type": "ntk", "factor": 4.0}}, "float32")
    outcome = on.try_case(on.contract.entry("rotary_embedding"), case)
    assert (outcome.status, outcome.reason) == ("skip", "not offered: scaling ntk")


@pytest.mark.parametrize("name", ["jax_attention", "torch_mha", "torch_sdpa"])
@pytest.mark.parametrize("argument", ["q", "k"])
def test_derivatives_cross_layouts_and_repeated_heads(name, argument):
    """Central differences of the reference agree with the autodiff of kernels that take other layouts and heads."""
    on = bench(name)
    check = CheckId("attention", "attention", "gradient", argument, "float32")

    assert perform(check, on, Settings(examples=1)).status == "passed"
