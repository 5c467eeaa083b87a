"""What a contract is made of: cases, laws, planted bugs, conventions and the entries that they belong to.

A contract says what a mechanism is without saying how to compute it fast. The kit in this package reads contracts
and judges backends; it knows no mechanism itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.verdict import Budget

__all__ = [
    "Bug",
    "Case",
    "Claim",
    "Contract",
    "Convention",
    "Entry",
    "Law",
    "Mistake",
    "Outputs",
    "Probe",
    "agree",
    "map_arrays",
    "unpack",
]

Outputs = dict[str, np.ndarray]


def map_arrays(function: Callable[[np.ndarray], Any], tree: Any) -> Any:
    """Apply ``function`` to every array of a tree of tuples, NamedTuples, lists and dictionaries."""
    if isinstance(tree, np.ndarray):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_arrays(function, branch) for name, branch in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_arrays(function, branch) for branch in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_arrays(function, branch) for branch in tree)
    return tree


@dataclass(frozen=True, eq=False)
class Case:
    """One call of one entry: its arrays and its options.

    Attributes
    ----------
    entry : str
        Name of the function that is called.
    arrays : mapping of str to array or tree of arrays
        Floating arrays are float64 and hold only values that ``dtype`` can represent, so that the reference and the
        backend see the same numbers. Integer and boolean arrays are as they are. Weights are NamedTuples.
    options : mapping of str to JSON values
        Keyword arguments that hold no arrays.
    dtype : str
        ``float64``, ``float32``, ``float16`` or ``bfloat16``: what the backend computes in.
    label : str
        Where the case comes from, ``scenario/family``.
    """

    entry: str
    arrays: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    label: str = ""

    def having(self, **changes: Any) -> Case:
        """Return this case with some arrays (by their present names, or new arrays) or options replaced."""
        arrays = {k: v for k, v in changes.items() if k in self.arrays or _holds_arrays(v)}
        options = {k: v for k, v in changes.items() if k not in arrays}
        return replace(self, arrays={**self.arrays, **arrays}, options={**self.options, **options})

    def without(self, *names: str) -> Case:
        """Return this case with the named arrays and options left out."""
        return replace(
            self,
            arrays={k: v for k, v in self.arrays.items() if k not in names},
            options={k: v for k, v in self.options.items() if k not in names},
        )


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, tuple) and any(map(_holds_arrays, value)))


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return len(value) == len(default) and all(map(_same, value, default))
    return type(value) is type(default) and bool(value == default)


class Claim(NamedTuple):
    """Two arrays that a law says are equal, row by row, up to ``slack``.

    ``slack`` bounds the L2 norm of the difference along the last axis; 0 demands bit-equality. It is a scalar or an
    array that broadcasts to ``left.shape[:-1]``.
    """

    left: np.ndarray
    right: np.ndarray
    slack: Any = 0.0
    what: str = ""


class Probe(Protocol):
    """What a law may do with the backend on trial."""

    def __call__(self, case: Case) -> Outputs:
        """Run the backend on a case; named outputs as float64 arrays."""

    def raw(self, case: Case) -> Any:
        """Run the backend on a case; the returned tree itself, with float64 arrays in it."""

    def slack(self, case: Case) -> Outputs:
        """Per output, the row-wise L2 error (shape of the output less its last axis) that rounding may cause."""

    def provides(self, *entries: str) -> bool:
        """Whether the backend has functions of these names."""


def agree(probe: Probe, left: Case, right: Case, name: str = "out") -> Claim:
    """Claim that two cases have the same output of a name, as far as rounding lets them."""
    return Claim(probe(left)[name], probe(right)[name], probe.slack(left)[name] + probe.slack(right)[name])


@dataclass(frozen=True, eq=False)
class Law:
    """A property that every correct implementation has, stated without the reference's values.

    Attributes
    ----------
    name : str
        Stable identifier, ``snake_case``.
    sentence : str
        What is true, in one sentence; printed when it fails.
    holds : callable
        ``(probe, case, rng) -> iterable of Claim``.
    applies : callable
        ``case -> bool``: whether the law says anything about the case.
    needs : tuple of str
        Other entries that the law calls; a backend without them skips it.
    witness : str
        A planted bug that this law alone, without reference values, must expose; the audit checks it.
    """

    name: str
    sentence: str
    holds: Callable[[Probe, Case, np.random.Generator], Iterable[Claim]]
    applies: Callable[[Case], bool] = lambda _case: True
    needs: tuple[str, ...] = ()
    witness: str = ""


@dataclass(frozen=True, eq=False)
class Bug:
    """A named wrong version of an entry: a mistake that people make.

    Attributes
    ----------
    name, description : str
        Stable identifier, and how the version differs from the right one.
    wrong : callable
        Same signature as the entry's reference, float64 arrays in and out.
    applies : callable
        ``case -> bool``: whether the mistake can act on the case.
    dtypes : tuple of str
        The dtypes whose resolution can show the mistake.
    source : callable, optional
        The few lines that hold the mistake, for the exercise on the page; ``wrong`` itself if not given.
    remedy : str
        The right way, in one sentence; the folded answer of the exercise.
    """

    name: str
    description: str
    wrong: Callable[..., Any]
    applies: Callable[[Case], bool] = lambda _case: True
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")
    source: Callable[..., Any] | None = None
    remedy: str = ""


class Mistake(NamedTuple):
    """One step of a plain implementation, and what it is exchanged for: what planted bugs are made of.

    Attributes
    ----------
    step : str
        The keyword under which the plain implementation takes the step.
    wrong : callable
        The wrong step; its lines are the exercise on the page, its name is the bug's.
    says, remedy : str
        What is wrong about it, and the right way, a sentence each.
    applies : callable
        ``case -> bool``: whether the mistake can act on the case.
    dtypes : tuple of str
        The dtypes whose resolution can show it.
    """

    step: str
    wrong: Callable[..., Any]
    says: str
    remedy: str
    applies: Callable[[Case], bool] = lambda _case: True
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")

    def planted(self, kind: Callable[..., Callable[..., Any]], prefix: str = "") -> Bug:
        """Plant the mistake in ``kind(**{step: wrong})``, the plain implementation of an entry."""
        name = prefix + self.wrong.__name__.strip("_")
        entry = kind(**{self.step: self.wrong})
        return Bug(name, self.says, entry, self.applies, self.dtypes, self.wrong, self.remedy)


@dataclass(frozen=True, eq=False)
class Convention:
    """A choice on which correct implementations differ and which a backend may declare in ``CONVENTIONS``.

    Attributes
    ----------
    name : str
        Key in the backend's ``CONVENTIONS``.
    choices : mapping of str to str
        Each allowed value with a sentence; the first is the reference's own.
    expect : callable
        ``(case, value) -> Case``: the case whose reference result a backend of this convention returns.
    send : callable
        ``(case, value) -> Case``: the case as such a backend wants to be given it.
    receive : callable
        ``(outputs, case, value) -> Outputs``: its outputs, back in the reference's convention.
    """

    name: str
    choices: Mapping[str, str]
    expect: Callable[[Case, str], Case] = lambda case, _value: case
    send: Callable[[Case, str], Case] = lambda case, _value: case
    receive: Callable[[Outputs, Case, str], Outputs] = lambda outputs, _case, _value: outputs


# All of these compare and hash by identity, so that what is derived from a case can be kept for as long as it lives.
Maker = Callable[[str, str, int], Case]


@dataclass(frozen=True, eq=False)
class Entry:
    """One public function of a mechanism that a backend may provide.

    Attributes
    ----------
    name : str
        The function's name, the same in every backend.
    reference : callable
        The definition, run in float64.
    positional : tuple of str
        The arrays that are passed by position, in order; all others and the options go by keyword.
    scenarios : mapping of str to callable
        Named structures, ``(family, dtype, seed) -> Case``.
    families : tuple of str
        Value families that every scenario can be filled with.
    cases : callable
        ``dtype -> hypothesis strategy`` of cases with drawn sizes, options, family and seed.
    smoke : tuple of (scenario, family)
        The smallest set of pairs that catches every planted bug; empty means all pairs.
    outputs : tuple of str
        Names of the results by position, where the function returns a bare array or tuple.
    laws, bugs : tuple
        See `Law` and `Bug`.
    budgets : callable, optional
        ``(entry, case, precision_name) -> {output: Budget}``; the Monte Carlo budget if not given.
    exact : mapping of str to callable
        Bit-exact vectors, ``dtype -> (Case, Outputs)``.
    gradient_of : str
        The entry whose vector-Jacobian product this is; a framework's autodiff supplies it where the backend has none.
    differentiable : tuple of str
        Array arguments with respect to which the kit checks directional derivatives.
    axes : mapping of str to tuple of str
        Names of the axes of plain array arguments; the shrinker cuts along them, all arrays of a name together.
    may_alias : bool
        Whether a result may be a view of an input.
    """

    name: str
    reference: Callable[..., Any]
    positional: tuple[str, ...]
    scenarios: Mapping[str, Maker]
    families: tuple[str, ...]
    cases: Callable[[str], SearchStrategy[Case]]
    smoke: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ("out",)
    laws: tuple[Law, ...] = ()
    bugs: tuple[Bug, ...] = ()
    budgets: Callable[[Entry, Case, str | None], Mapping[str, Budget]] | None = None
    exact: Mapping[str, Callable[[str], tuple[Case, Outputs]]] = field(default_factory=dict)
    gradient_of: str = ""
    differentiable: tuple[str, ...] = ()
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    may_alias: bool = False

    def invoke(
        self, function: Callable[..., Any], case: Case, convert: Callable[[np.ndarray], Any] | None = None
    ) -> Any:
        """Call ``function`` with the arrays and options of ``case``, each array converted first."""
        arrays = case.arrays if convert is None else map_arrays(convert, dict(case.arrays))
        keywords = {name: value for name, value in arrays.items() if name not in self.positional}
        return function(*(arrays[name] for name in self.positional), **keywords, **case.options)

    @lru_cache(maxsize=512)  # noqa: B019  # entries live as long as the process
    def scenario_case(self, scenario: str, family: str, dtype: str, seed: int) -> Case:
        """Return a named scenario filled with a value family; the same object for the same arguments."""
        return self.scenarios[scenario](family, dtype, seed)

    def plain_cases(self, dtype: str, seed: int) -> Iterator[Case]:
        """Yield every scenario, filled with normal values where there are such."""
        family = "normal" if "normal" in self.families else self.families[0]
        return (self.scenario_case(scenario, family, dtype, seed) for scenario in self.scenarios)

    def spoken_options(self, case: Case) -> dict[str, Any]:
        """Return the options of ``case`` that differ from the reference's defaults: no backend need know the others."""
        parameters = inspect.signature(self.reference).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return {k: v for k, v in case.options.items() if k not in defaults or not _same(v, defaults[k])}

    def expected(self, case: Case) -> Outputs:
        """Return the reference's outputs for ``case``."""
        return unpack(self.invoke(self.reference, case), self.outputs)


def unpack(result: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Name the arrays of a function's result: NamedTuple fields by their names, tuples and bare arrays by ``names``."""
    if isinstance(result, dict):
        pairs = list(result.items())
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        pairs = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (tuple, list)):
        pairs = list(zip(names, result, strict=False))
    else:
        pairs = [(names[0], result)]
    return {name: value for name, value in pairs if hasattr(value, "shape")}


@dataclass(frozen=True, eq=False)
class Contract:
    """Everything the kit knows about one mechanism.

    Attributes
    ----------
    slug, title, paper : str
        The mechanism's name in every room, its title, and the arXiv number.
    family : str
        The package of the reference, such as ``layers``.
    entries : tuple of Entry
        Its public functions; the first is the main one.
    conventions : tuple of Convention
        What backends may declare.
    """

    slug: str
    title: str
    paper: str
    family: str
    entries: tuple[Entry, ...]
    conventions: tuple[Convention, ...] = ()

    def entry(self, name: str) -> Entry:
        """Return the entry of this name."""
        return next(entry for entry in self.entries if entry.name == name)
