"""One case against one backend: run it, judge every output, say what happened."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.backend import Backend, NotSupportedError
from refattn.conformance.budget import POOLED_LIMIT
from refattn.conformance.monte_carlo import monte_carlo_budgets
from refattn.conformance.verdict import Budget, Verdict, judge, row_limits, with_double_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refattn.conformance.contract import Case, Contract, Convention, Entry, Outputs

__all__ = ["Bench", "Outcome", "budgets_of", "rough_budgets_of"]

_ROUGH_RUNS = 3


@lru_cache(maxsize=512)
def budgets_of(entry: Entry, case: Case, precision: str | None = None) -> Mapping[str, Budget]:
    """Return the budget of every output of ``case``: the entry's own error model, or Monte Carlo arithmetic."""
    if entry.budgets is not None:
        return entry.budgets(entry, case, precision)
    return monte_carlo_budgets(entry, case, precision)


@lru_cache(maxsize=512)
def rough_budgets_of(entry: Entry, case: Case, precision: str | None = None) -> Mapping[str, Budget]:
    """Return budgets that rest on a few runs: enough to pass what stays below half of them, not to fail anything.

    Most results of right kernels do, and the eight and more runs of the whole budget are spared. The pooled limit of so
    few runs says nothing: it stays at its least. An entry with its own error model has no cheaper one.
    """
    if entry.budgets is not None:
        return budgets_of(entry, case, precision)
    rough = monte_carlo_budgets(entry, case, precision, rough=_ROUGH_RUNS)
    return {name: budget._replace(pooled_limit=POOLED_LIMIT) for name, budget in rough.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes
    ----------
    status : str
        ``pass``, ``fail``, ``acceptable``, ``inconclusive`` or ``skip``.
    reason : str
        The rule broken, the convention that differs, or why it was skipped.
    case : Case
        The case, in the reference's conventions.
    output : str
        The output that decided.
    verdict : Verdict, optional
        Of that output.
    budgets : mapping of str to Budget
        What was demanded.
    outputs : mapping of str to ndarray
        What came.
    """

    status: str
    reason: str
    case: Case
    output: str = ""
    verdict: Verdict | None = None
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)


class Bench:
    """A backend and a contract, brought together.

    Parameters
    ----------
    backend : Backend
        On trial.
    contract : Contract
        What it is tried against.
    """

    def __init__(self, backend: Backend, contract: Contract) -> None:
        self.backend = backend
        self.contract = contract
        self.declared: list[tuple[Convention, str]] = [
            (convention, backend.conventions[convention.name])
            for convention in contract.conventions
            if backend.conventions.get(convention.name, next(iter(convention.choices)))
            != next(iter(convention.choices))
        ]
        for convention, value in self.declared:
            if value not in convention.choices:
                known = ", ".join(map(repr, convention.choices))
                raise ValueError(f"CONVENTIONS[{convention.name!r}]={value!r} is not one of {known}")

    def expect(self, case: Case) -> Case:
        """Return the case whose reference result the backend's conventions give."""
        for convention, value in self.declared:
            case = convention.expect(case, value)
        return case

    def send(self, case: Case) -> Case:
        """Return the case as the backend wants it."""
        for convention, value in self.declared:
            case = convention.send(case, value)
        return case

    def receive(self, outputs: Outputs, case: Case) -> Outputs:
        """Return the backend's outputs in the reference's conventions."""
        for convention, value in reversed(self.declared):
            outputs = convention.receive(outputs, case, value)
        return outputs

    def native_result(self, entry: Entry, case: Case) -> Any:
        """Run the case in the backend's conventions; its own result."""
        if entry.gradient_of and not self.backend.provides(entry.name):
            return None
        return self.backend.call(entry, self.send(case))

    def outputs(self, entry: Entry, case: Case) -> Outputs:
        """Run the case; named outputs as NumPy in the reference's conventions."""
        sent = self.send(case)
        if entry.gradient_of and not self.backend.provides(entry.name):
            return self.receive(self._autodiff(entry, sent), case)
        return self.receive(self.backend.run(entry, sent), case)

    def _autodiff(self, entry: Entry, sent: Case) -> Outputs:
        primal = self.contract.entry(entry.gradient_of)
        cotangent = sent.arrays[f"d{primal.outputs[0]}"]
        wrt = tuple(name.removeprefix("d") for name in entry.outputs if name.removeprefix("d") in sent.arrays)
        return self.backend.gradient(primal, sent.without(f"d{primal.outputs[0]}"), wrt, cotangent)

    def try_case(self, entry: Entry, case: Case) -> Outcome:
        """Run ``case`` and judge it; exceptions of the backend are failures, not accidents."""
        try:
            if entry.gradient_of and not self.backend.provides(entry.name):
                outputs = self.outputs(entry, case)
            else:
                native = self.backend.call(entry, self.send(case))
                problem = self._dtype_problem(entry, case, native)
                if problem:
                    return Outcome("fail", problem, case)
                outputs = self.receive(self.backend.outputs(entry, native), case)
        except NotSupportedError as error:
            return Outcome("skip", str(error), case)
        except Exception as error:  # noqa: BLE001  # whatever a backend raises is its result
            return Outcome("fail", f"raised {_last_line(error)}", case)
        return self.judge(entry, case, outputs)

    def judge(self, entry: Entry, case: Case, outputs: Outputs) -> Outcome:
        """Judge outputs that came for ``case``: the worst verdict of all outputs decides."""
        expected_case = self.expect(case)
        budgets = self._budgets(entry, expected_case, outputs)
        worst = Outcome("pass", "", case, budgets=budgets, outputs=outputs)
        for name, budget in budgets.items():
            if name not in outputs and entry.gradient_of and name not in entry.outputs:
                continue  # a backend may stop at the gradients that everyone needs
            if name not in outputs:
                return Outcome("fail", f"returned no {name}", case, name, None, budgets, outputs)
            verdict = judge(outputs[name], budget)
            if _SEVERITY[verdict.status] > _SEVERITY[worst.status]:
                worst = Outcome(verdict.status, verdict.rule, case, name, verdict, budgets, outputs)
        if worst.status == "pass" and expected_case is not case and self._differs(entry, case, budgets):
            named = ", ".join(f"{convention.name}={value}" for convention, value in self.declared)
            return Outcome("acceptable", f"declared convention: {named}", case, "", None, budgets, outputs)
        return worst

    def _budgets(self, entry: Entry, case: Case, outputs: Outputs) -> Mapping[str, Budget]:
        """Return the rough budgets where the outputs would pass them with twice their error, the whole ones if not."""
        rough = rough_budgets_of(entry, case, self.backend.precision)
        known = [(outputs[name], budget) for name, budget in rough.items() if name in outputs]
        if all(judge(with_double_error(output, budget), budget).status == "pass" for output, budget in known):
            return rough
        return budgets_of(entry, case, self.backend.precision)

    def _differs(self, entry: Entry, case: Case, budgets: Mapping[str, Budget]) -> bool:
        own = entry.expected(case)
        return any(not np.array_equal(own[n], b.expected, equal_nan=True) for n, b in budgets.items())

    def _dtype_problem(self, entry: Entry, case: Case, native: Any) -> str:
        """Return what is wrong with the type of the main output, or nothing."""
        library = self.backend.library
        main = next(iter(_named(native, entry).values()), None)
        if main is None or not hasattr(main, "dtype"):
            return f"returned {type(native).__name__}, expected an array"
        name = library.dtype_name(main)
        if name in ("float64", "float32", "float16", "bfloat16") and name != case.dtype:
            return f"returned dtype {name} for {case.dtype} inputs"
        return ""

    def slack(self, entry: Entry, case: Case, *, rough: bool = False) -> Outputs:
        """Return per output the row-wise L2 error that rounding may cause; half of a rough estimate if asked."""
        budgets_for, share = (rough_budgets_of, 0.5) if rough else (budgets_of, 1.0)
        budgets = budgets_for(entry, self.expect(case), self.backend.precision)
        return {name: share * row_limits(budget) for name, budget in budgets.items()}


def _named(native: Any, entry: Entry) -> dict[str, Any]:
    from refattn.conformance.contract import unpack

    return unpack(native, entry.outputs)


def _last_line(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({where[-1].filename.rpartition('/')[2]}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}"[:300] + place


_SEVERITY = {"pass": 0, "acceptable": 1, "inconclusive": 2, "fail": 3}
