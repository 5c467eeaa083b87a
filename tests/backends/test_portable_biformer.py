"""The portable BiFormer against its references, on every array library that is installed."""

import numpy as np
import pytest

from refattn.backends.portable import on
from refattn.backends.portable.biformer import bi_level_routing_attention, regional
from refattn.conformance.backend import Backend
from refattn.conformance.contract import map_arrays
from refattn.contracts.biformer import CONTRACT
from refattn.layers import biformer as reference

SCENARIOS = [(entry.name, scenario) for entry in CONTRACT.entries for scenario in entry.scenarios]
COMPILED = [(entry.name, scenario) for entry in CONTRACT.entries for scenario in list(entry.scenarios)[:2]]


def backend_on(library):
    pytest.importorskip(library.removesuffix("-jit"))
    if library.startswith("jax"):
        import jax

        jax.config.update("jax_enable_x64", True)
    return Backend(on(library), library)


def compare(backend, name, scenario, family):
    entry = CONTRACT.entry(name)
    case = entry.scenarios[scenario](family, "float64", 0)
    expected, actual = entry.expected(case), backend.run(entry, case)
    assert actual.keys() == expected.keys()
    for output, value in expected.items():
        size = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(actual[output], value, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
@pytest.mark.parametrize(("name", "scenario"), SCENARIOS)
def test_equals_the_reference(library, name, scenario):
    """Every entry gives the reference's outputs in every scenario."""
    compare(backend_on(library), name, scenario, "normal")


@pytest.mark.parametrize(("name", "scenario"), COMPILED)
def test_compiles(name, scenario):
    """Every entry runs under `jax.jit` with its options static."""
    compare(backend_on("jax-jit"), name, scenario, "normal")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_decisions_are_returned(library):
    """With return_aux the routing, the descriptors and the attention come along."""
    case = CONTRACT.entry("bi_level_routing_attention").scenarios["soft_routing"]("normal", "float64", 0)
    backend = backend_on(library)
    arrays = backend.native(dict(case.arrays), "float64")
    y, aux = bi_level_routing_attention(arrays["x"], arrays["weights"], return_aux=True, **case.options)
    wanted, expected = reference.bi_level_routing_attention(*case.arrays.values(), return_aux=True, **case.options)
    np.testing.assert_allclose(backend.numpy(y), wanted, atol=1e-12)
    for actual, value in zip(aux, expected, strict=True):
        np.testing.assert_allclose(backend.numpy(actual), value, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 40, 100])
def test_blocks_of_any_size_agree(monkeypatch, limit):
    """How many scores are held at one time changes no number beyond rounding."""
    monkeypatch.setattr(regional, "_SCORES_AT_ONCE", limit)
    for name, scenario in (
        ("bi_level_routing_attention", "pad_soft_masked"),
        ("regional_attention", "masked_per_head"),
    ):
        compare(backend_on("numpy"), name, scenario, "normal")


def gradient(options, parametric=False):
    """Gradient of the layer's squared output with respect to the weights of queries and keys, in PyTorch."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    weights = reference.BRAWeights(rng.standard_normal((4, 12)), w_r=np.eye(4) if parametric else None)
    native = map_arrays(lambda array: torch.tensor(array, requires_grad=True), weights)
    x = torch.tensor(rng.standard_normal((1, 4, 4, 4)))
    y = bi_level_routing_attention(x, native, num_heads=2, n_win=2, topk=2, **options)
    (y**2).sum().backward()
    return native


def test_descriptors_get_gradients_only_on_demand():
    """Soft routing lets gradients through the descriptors with diff_routing, and stops them without."""
    stopped = gradient({"soft_routing": True}).w_qkv.grad
    through = gradient({"soft_routing": True, "diff_routing": True}).w_qkv.grad
    assert np.abs((stopped - through).numpy()).max() > 1e-6
    routing = gradient({"soft_routing": True, "diff_routing": True}, parametric=True).w_r.grad
    assert np.abs(routing.numpy()).max() > 1e-6


def test_hard_routing_has_no_gradient_through_the_descriptors():
    """Without soft routing the routing map is never reached by a gradient."""
    assert gradient({}, parametric=True).w_r.grad is None
