"""Every mechanism, through the same questions: the references obey their contracts, and so do the portable twins."""

import importlib.util
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.conformance.backend import load_backend
from refattn.conformance.checks import perform, plan
from refattn.conformance.contract import map_arrays
from refattn.conformance.registry import find_contracts
from refattn.conformance.settings import Settings
from refattn.conformance.trial import Bench

# JAX compiles every operation anew for every shape, and each runs once: effort spent on fast code is lost here
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
CONTRACTS = find_contracts()
SETTINGS = Settings(examples=10, shrink_seconds=0.5)
# NumPy sees every value family; on the others one a scenario shows what differs there: operations, types, layouts
ELSEWHERE = Settings(examples=5, shrink_seconds=0.5, families=1)
ENTRIES = [pytest.param(c, e, id=f"{c.slug}-{e.name}") for c in CONTRACTS.values() for e in c.entries]
LIBRARIES = ["numpy", "array_api_strict", "torch", "jax"]


def entry_checks(contract, entry, dtypes):
    return [check for check in plan([contract], dtypes) if check.entry == entry.name]


def failures(spec, contract, entry, dtypes, kinds=None, settings=SETTINGS):
    backend = load_backend(spec, CONTRACTS)
    bench = Bench(backend, contract)
    checks = [c for c in entry_checks(contract, entry, dtypes) if kinds is None or c.kind in kinds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frameworks warn of their own affairs
        records = [perform(check, bench, settings) for check in checks]
    return [r for r in records if r.status == "failed" or (r.check.kind == "law" and r.status == "inconclusive")]


@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
def test_the_reference_obeys_its_own_contract(contract, entry):
    """The float64 reference passes every check of its contract, and no law is left without a case."""
    assert failures("reference", contract, entry, ["float64"]) == []


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
def test_the_portable_twin_obeys_the_contract_on_each_library(contract, entry, library):
    """The portable twin passes its checks in float32: all of them on NumPy, scenarios and vectors on the others."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    spec = f"portable:{library}"
    if not load_backend(spec).provides(entry.name):
        pytest.skip(f"no portable {entry.name}: its contract says why")
    if library == "numpy":
        assert failures(spec, contract, entry, ["float32"]) == []  # float64 is what `refattn check` looks at besides
    else:
        kinds = {"scenario", "exact"} if library == "jax" else {"scenario", "exact", "safety"}  # its arrays are safe
        assert failures(spec, contract, entry, ["float32"], kinds, ELSEWHERE) == []


@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
def test_the_portable_twin_compiles_under_jax(contract, entry):
    """Under ``jax.jit``, arrays traced and options static, the portable twin still obeys its first scenarios."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    if not load_backend("portable:jax-jit").provides(entry.name):
        pytest.skip(f"no portable {entry.name}: its contract says why")
    bench = Bench(load_backend("portable:jax-jit", CONTRACTS), contract)
    checks = [check for check in entry_checks(contract, entry, ["float32"]) if check.kind == "scenario"][:2]

    assert [r for r in (perform(check, bench, ELSEWHERE) for check in checks) if r.status == "failed"] == []


@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
@given(data=st.data())
def test_the_reference_leaves_its_inputs_alone_and_needs_no_layout(contract, entry, data):
    """Read-only, negatively strided and Fortran-ordered inputs give the result of plain ones, and stay as they are."""
    case = data.draw(entry.cases("float64"))
    layouts = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    plain = entry.expected(case)

    def odd(array):
        layout = layouts.choice(["fortran", "reversed", "frozen"])
        twisted = array.copy(order="F" if layout == "fortran" else "C")  # asfortranarray would give scalars an axis
        if layout == "reversed" and array.ndim:
            twisted = np.ascontiguousarray(array[::-1])[::-1]
        twisted.flags.writeable = False
        return twisted

    twisted = entry.expected(case.having(**map_arrays(odd, dict(case.arrays))))

    for name, value in plain.items():
        np.testing.assert_allclose(twisted[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
def test_the_reference_keeps_the_dtype(contract, entry):
    """float32 in, float32 out."""
    scenario = next(iter(entry.scenarios.values()))(entry.families[0], "float32", 0)
    if not entry.positional:
        pytest.skip("no arrays come in")
    arrays = map_arrays(lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, dict(scenario.arrays))
    result = entry.expected(scenario.having(**arrays))

    main = next(iter(result.values()))
    assert main.dtype == np.float32 or main.dtype.kind in "ib"


@pytest.mark.parametrize(("contract", "entry"), ENTRIES)
def test_integer_inputs_are_converted_or_refused_by_name(contract, entry):
    """Whole numbers in an integer dtype give the float64 result, or an error that names the argument."""
    case = next(iter(entry.scenarios.values()))(entry.families[0], "float64", 0)
    if not entry.positional:
        pytest.skip("no arrays come in")
    name = entry.positional[0]
    if not isinstance(case.arrays[name], np.ndarray) or case.arrays[name].dtype.kind != "f":
        pytest.skip(f"{name} is not a floating array")
    whole = case.having(**{name: np.round(case.arrays[name])})
    integers = whole.having(**{name: whole.arrays[name].astype(np.int64)})
    try:
        result = entry.expected(integers)
    except (TypeError, ValueError) as error:
        assert name in str(error)  # noqa: PT017  # either way is right: refusing by name, or converting
    else:
        for output, value in entry.expected(whole).items():
            np.testing.assert_allclose(result[output], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=lambda c: c.slug)
def test_a_contract_is_complete(contract):
    """Every bug has a description and a remedy, every law a sentence and a witness; there are eight bugs or more."""
    bugs = [bug for entry in contract.entries for bug in entry.bugs]
    laws = [law for entry in contract.entries for law in entry.laws]

    assert len(bugs) >= 8
    assert all(bug.description and bug.remedy for bug in bugs)
    assert all(law.sentence.endswith(".") and law.witness for law in laws)
    assert len({bug.name for bug in bugs}) == len(bugs)
