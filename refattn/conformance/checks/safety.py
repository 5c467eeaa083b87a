"""Memory manners: inputs stay as they are, layout does not matter, results are fresh, complete and not remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.backend import NotSupportedError
from refattn.conformance.contract import map_arrays, unpack
from refattn.conformance.failures import failure
from refattn.conformance.records import CheckId, Record
from refattn.conformance.trial import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refattn.conformance.contract import Case, Entry
    from refattn.conformance.settings import Settings
    from refattn.conformance.trial import Bench

__all__ = ["NAMES", "safety"]

_CASES = 2


def _native(bench: Bench, case: Case, convert: Callable[[np.ndarray, str], Any] | None = None) -> dict[str, Any]:
    if convert is None:
        return dict(bench.backend.native(dict(case.arrays), case.dtype))
    arrays = map_arrays(lambda a: convert(a, case.dtype if a.dtype.kind == "f" else str(a.dtype)), dict(case.arrays))
    return dict(arrays)


def _leaves(bench: Bench, tree: Any) -> list[Any]:
    if bench.backend.library.is_array(tree):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [leaf for branch in tree for leaf in _leaves(bench, branch)] if isinstance(tree, (tuple, list)) else []


def _judge_native(bench: Bench, entry: Entry, case: Case, sent: Case, native: dict[str, Any]) -> Outcome:
    result = bench.backend.call(entry, sent, native)
    return bench.judge(entry, case, bench.receive(bench.backend.outputs(entry, result), case))


def _inputs_unchanged(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    sent = bench.send(case)
    native = _native(bench, sent)
    before = [np.array(bench.backend.numpy(leaf)) for leaf in _leaves(bench, native)]
    bench.backend.call(entry, sent, native)
    after = [bench.backend.numpy(leaf) for leaf in _leaves(bench, native)]
    same = all(np.array_equal(b, a, equal_nan=b.dtype.kind == "f") for b, a in zip(before, after, strict=True))
    return "" if same else "an input was written to"


def _read_only(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    sent = bench.send(case)
    native = _native(bench, sent)
    if not all(bench.backend.library.freeze(leaf) for leaf in _leaves(bench, native)):
        raise NotSupportedError(f"{bench.backend.library.name} has no read-only arrays")
    return _judge_native(bench, entry, case, sent, native)


def _strided(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    sent = bench.send(case)
    return _judge_native(bench, entry, case, sent, _native(bench, sent, bench.backend.library.strided))


def _fresh_output(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    sent = bench.send(case)
    native = _native(bench, sent)
    result = bench.backend.call(entry, sent, native)
    outputs = _leaves(bench, list(unpack(result, entry.outputs).values()))
    if not entry.may_alias:
        shared = bench.backend.library.shares_memory
        if any(shared(out, leaf) for out in outputs for leaf in _leaves(bench, native)):
            return "a result is a view of an input"
    kept = [np.array(bench.backend.numpy(out)) for out in outputs]
    bench.backend.call(entry, sent, _native(bench, _other_values(sent)))
    same = (
        np.array_equal(k, bench.backend.numpy(out), equal_nan=k.dtype.kind == "f")
        for k, out in zip(kept, outputs, strict=True)
    )
    return "" if all(same) else "a second call wrote into the result of the first"


def _other_values(case: Case) -> Case:
    """Return the case with every floating array reversed along its first axis: as valid, and different."""
    return case.having(
        **{
            k: map_arrays(lambda a: a[::-1].copy() if a.dtype.kind == "f" and a.ndim else a, t)
            for k, t in case.arrays.items()
        }
    )


def _not_remembered(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    """Call, overwrite the very same buffers, call again: the second result must belong to the new numbers."""
    sent, other = bench.send(case), _other_values(case)
    native = _native(bench, sent)
    bench.backend.call(entry, sent, native)
    leaves = _leaves(bench, native)
    new = [bench.backend.numpy(leaf) for leaf in _leaves(bench, _native(bench, bench.send(other)))]
    if not all(bench.backend.library.overwrite(leaf, values) for leaf, values in zip(leaves, new, strict=True)):
        raise NotSupportedError(f"{bench.backend.library.name} arrays cannot change")
    return _judge_native(bench, entry, other, sent, native)


def _complete(bench: Bench, entry: Entry, case: Case) -> Outcome | str:
    sent = bench.send(case)
    native = _native(bench, sent)
    with bench.backend.library.poisoned():
        result = bench.backend.call(entry, sent, native)
    return bench.judge(entry, case, bench.receive(bench.backend.outputs(entry, result), case))


_WAYS: dict[str, Callable[[Bench, Entry, Case], Outcome | str]] = {
    "inputs_unchanged": _inputs_unchanged,
    "read_only_inputs": _read_only,
    "strided_inputs": _strided,
    "fresh_output": _fresh_output,
    "not_remembered": _not_remembered,
    "complete_output": _complete,
}
NAMES = tuple(_WAYS)


def safety(check: CheckId, bench: Bench, entry: Entry, options: Settings) -> Record:
    """Run one memory check on the first scenarios that the backend can take."""
    if entry.gradient_of and not bench.backend.provides(entry.name):
        raise NotSupportedError(f"{entry.name} comes from automatic differentiation")
    judged, refusal = 0, "no scenario to try"
    for case in _full_cases(entry, check.dtype, options.seed):
        try:
            found = _WAYS[check.name](bench, entry, case)
        except NotSupportedError as error:
            refusal = str(error)
            continue
        except Exception as error:  # noqa: BLE001  # whatever a backend raises is its result
            found = f"raised {type(error).__name__}: {error}"
        judged += 1
        outcome = Outcome("fail", found, case) if isinstance(found, str) and found else found
        if isinstance(outcome, Outcome) and outcome.status == "fail":
            return failure(check, bench, entry, options, [outcome], cases=judged, fails=lambda _: False)
        if judged == _CASES:
            break
    if not judged:
        raise NotSupportedError(refusal)
    return Record(check, "passed", cases=judged)


def _full_cases(entry: Entry, dtype: str, seed: int) -> Iterator[Case]:
    """Yield the scenarios without an empty array: there is something to write to."""
    for case in entry.plain_cases(dtype, seed):
        if all(leaf.size for tree in case.arrays.values() for leaf in _numpy_leaves(tree)):
            yield case


def _numpy_leaves(tree: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    map_arrays(found.append, tree)
    return found
