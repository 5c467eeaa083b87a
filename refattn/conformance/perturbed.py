"""Arrays that err like a low-precision machine: Monte Carlo arithmetic as a NumPy subclass.

What errs stands in `arithmetic`; here NumPy's functions are sorted into what rounds, what decides and what only moves.
Arithmetic on an array that a reference allocated itself (``np.zeros``) is exact, whatever was written into it, and so
is all that is computed from constants alone, such as tables of integer positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.arithmetic import MonteCarloArithmetic
from refattn.conformance.contract import map_arrays
from refattn.conformance.precision import precision_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Perturbed", "bare"]

EXP_ULPS = 4.0  # c_e of the attention sheet: fast exponentials, logarithms and the like

_EXACT = frozenset(
    {np.negative, np.positive, np.absolute, np.fabs, np.sign, np.floor, np.ceil, np.trunc, np.rint, np.maximum}
    | {np.minimum, np.fmax, np.fmin, np.copysign, np.conjugate, np.nextafter, np.ldexp, np.modf, np.fmod, np.remainder}
    | {np.floor_divide, np.heaviside, np.spacing}
)
_EXPONENTIAL = frozenset({np.exp, np.exp2, np.expm1, np.sinh, np.cosh})
_ARITHMETIC = frozenset({np.add, np.subtract, np.multiply, np.divide, np.square, np.sqrt, np.reciprocal})
_SATURATING = frozenset({"exp", "exp2", "expm1", "sinh", "cosh", "tanh", "expit", "erf"})
_POLES = frozenset({np.divide, np.reciprocal, np.sqrt, np.log})
_COMPARISONS = frozenset({np.greater, np.greater_equal, np.less, np.less_equal})
_STEPS = frozenset({np.floor, np.ceil, np.trunc, np.rint, np.sign})
_RANKINGS = frozenset({np.argsort, np.argmax, np.argmin, np.argpartition})
_EXACT_MACHINE = MonteCarloArithmetic(precision_class(None, "float64"), np.random.default_rng(0), magnify=0.0)
_POWERS = frozenset({np.power, np.float_power})
_BILINEAR = frozenset({np.dot, np.inner, np.vdot, np.tensordot, np.convolve, np.correlate})
_BACKWARD_STABLE = frozenset(
    {np.linalg.solve, np.linalg.inv, np.linalg.pinv, np.linalg.lstsq, np.linalg.svd, np.linalg.eig, np.linalg.eigh}
    | {np.linalg.eigvals, np.linalg.eigvalsh, np.linalg.qr, np.linalg.cholesky, np.linalg.det, np.linalg.slogdet}
    | {np.linalg.svdvals, np.linalg.tensorsolve, np.linalg.tensorinv}
)
_RELATIVE = frozenset(
    {np.outer, np.interp, np.cov, np.corrcoef, np.quantile, np.percentile, np.kron}
    | {np.linalg.norm, np.linalg.vector_norm, np.linalg.matrix_norm, np.linalg.outer}
)


def bare(x: Any) -> Any:
    """Return the ordinary array under a perturbed one; anything else as it is."""
    return x.view(np.ndarray) if isinstance(x, Perturbed) else x


def _bare_tree(tree: Any) -> Any:
    return map_arrays(bare, tree)


class Perturbed(np.ndarray):
    """A float64 array whose arithmetic errs at random like that of a low-precision machine.

    Make one with ``Perturbed.of(array, arithmetic)``. Selecting, moving and comparing are exact.
    """

    arithmetic: MonteCarloArithmetic | None

    @staticmethod
    def of(x: Any, arithmetic: MonteCarloArithmetic) -> Perturbed:
        """Return a perturbed view of ``x``."""
        view: Perturbed = np.asarray(x).view(Perturbed)
        view.arithmetic = arithmetic
        return view

    def __array_finalize__(self, parent: Any) -> None:
        self.arithmetic = getattr(parent, "arithmetic", None)

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(bare(key))
        if isinstance(part, np.floating) and self.arithmetic is not None:
            return Perturbed.of(part, self.arithmetic)
        return part

    # the methods of plain arrays would bypass __array_function__
    def dot(self, other: Any, out: Any = None) -> Any:
        """Multiply matrices."""
        return np.dot(self, other, out=out)

    def argsort(self, *args: Any, **kwargs: Any) -> Any:
        """Rank every entry."""
        return np.argsort(self, *args, **kwargs)

    def argmax(self, *args: Any, **kwargs: Any) -> Any:
        """Find the largest."""
        return np.argmax(self, *args, **kwargs)

    def argmin(self, *args: Any, **kwargs: Any) -> Any:
        """Find the smallest."""
        return np.argmin(self, *args, **kwargs)

    def argpartition(self, *args: Any, **kwargs: Any) -> Any:
        """Part the smaller from the larger."""
        return np.argpartition(self, *args, **kwargs)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        arithmetic = _machine((*inputs, *(out or ())))
        plain = [bare(x) for x in inputs]
        kwargs = {name: bare(value) for name, value in kwargs.items()}
        if method == "at":
            return getattr(ufunc, method)(*plain, **kwargs)
        if method == "__call__" and _decides(ufunc):
            result = _decide(arithmetic, ufunc, inputs, plain, kwargs)
        else:
            result = _run(arithmetic, ufunc, method, plain, kwargs)
        if out is None:
            return _wrap(result, arithmetic)
        for target, value in zip(out, result if isinstance(result, tuple) else (result,), strict=False):
            np.copyto(bare(target), value, casting="same_kind", where=kwargs.get("where", True))
        return _wrap(bare(out[0]) if len(out) == 1 else tuple(map(bare, out)), arithmetic)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        arithmetic = _machine((*args, *kwargs.values()))
        if func in _RANKINGS:
            return _rank(arithmetic, func, *args, **kwargs)
        if func is np.einsum:
            return _wrap(_einsum(arithmetic, args), arithmetic)
        if func in _BILINEAR:
            return _wrap(_contract(arithmetic, func, args, dict(kwargs)), arithmetic)
        if func in _BACKWARD_STABLE or func in _RELATIVE or func.__module__ == "numpy.fft":
            return _opaque(arithmetic, func, args, dict(kwargs), normwise=func not in _RELATIVE)
        return _wrap(super().__array_function__(func, types, args, kwargs), arithmetic)


def _machine(tree: Any) -> MonteCarloArithmetic:
    """Find the arithmetic that the perturbed arrays among the arguments share."""
    for x in tree:  # nearly always one of the arguments themselves
        if isinstance(x, Perturbed) and x.arithmetic is not None:
            return x.arithmetic
    found: list[MonteCarloArithmetic] = []

    def look(x: Any) -> Any:
        if isinstance(x, Perturbed) and x.arithmetic is not None:
            found.append(x.arithmetic)
        return x

    map_arrays(look, tree)
    return found[0] if found else _EXACT_MACHINE


def _exact(ufunc: np.ufunc) -> bool:
    return ufunc in _EXACT or ufunc.__name__ == "clip"  # the ufunc behind np.clip has no public name


def _decides(ufunc: np.ufunc) -> bool:
    return ufunc in _COMPARISONS or ufunc in _STEPS or ufunc in _POLES or ufunc.__name__ in _SATURATING


def _decide(
    arithmetic: MonteCarloArithmetic, ufunc: np.ufunc, inputs: Sequence[Any], plain: list[Any], kwargs: Any
) -> Any:
    """Evaluate a function that jumps, saturates or has a pole; where rounding may turn it, a steered run turns it."""
    if ufunc in _COMPARISONS:
        difference = np.subtract(*plain)
        moved = arithmetic.decide("jump", difference)
        result = ufunc(*plain, **kwargs)
        return np.where(moved == difference, result, ufunc(moved, 0.0)) if arithmetic.moves else result
    place = len(plain) - 1  # the denominator of a quotient, else the only argument
    if isinstance(inputs[place], Perturbed):
        kind = "jump" if ufunc in _STEPS else "pole" if ufunc in _POLES else "exponential"
        plain = [*plain[:place], arithmetic.decide(kind, plain[place])]
    return _run(arithmetic, ufunc, "__call__", plain, kwargs)


def _rank(arithmetic: MonteCarloArithmetic, func: Callable[..., Any], values: Any, *args: Any, **kwargs: Any) -> Any:
    """Rank, or in a steered run exchange neighbours whose order rounding may turn."""
    plain = np.asarray(bare(values))
    flat = func in (np.argmax, np.argmin)  # without an axis they see one row
    given = args[1:] if func is np.argpartition else args  # after kth, or at once
    axis = kwargs.get("axis", given[0] if given else None if flat else -1)
    if axis is None:
        return func(arithmetic.decide("rank", plain.reshape(-1)), *args, **kwargs)
    return func(arithmetic.decide("rank", plain, axis), *args, **kwargs)


def _wrap(tree: Any, arithmetic: MonteCarloArithmetic) -> Any:
    """Make every floating array of a result perturbed; integers and booleans stay plain."""
    if isinstance(tree, np.ndarray):
        return Perturbed.of(tree, arithmetic) if tree.dtype.kind in "fc" else bare(tree)
    if isinstance(tree, (np.floating, np.complexfloating)):
        return Perturbed.of(tree, arithmetic)
    return map_arrays(lambda x: Perturbed.of(x, arithmetic) if x.dtype.kind in "fc" else bare(x), _as_arrays(tree))


def _as_arrays(tree: Any) -> Any:
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return tuple(np.asarray(x) if isinstance(x, np.floating) else x for x in tree)
    return tree


def _run(arithmetic: MonteCarloArithmetic, ufunc: np.ufunc, method: str, inputs: list[Any], kwargs: Any) -> Any:
    """Evaluate one ufunc or ufunc method and perturb what it rounds."""
    if ufunc.signature is not None:  # matmul, vecdot and their kin
        return arithmetic.bilinear(lambda *x: ufunc(*x, **kwargs), inputs, _last(inputs[0]))
    result = getattr(ufunc, method)(*inputs, **kwargs)
    if isinstance(result, tuple) or np.asarray(result).dtype.kind not in "fc" or _exact(ufunc):
        return result
    if method in ("reduce", "accumulate", "reduceat"):
        return _fold(arithmetic, ufunc, method, inputs, result, kwargs=kwargs)
    return arithmetic.relative(result, _roundoff(arithmetic, ufunc, inputs))


def _last(x: Any) -> int:
    return int(np.shape(x)[-1]) if np.ndim(x) else 1


def _roundoff(arithmetic: MonteCarloArithmetic, ufunc: np.ufunc, inputs: list[Any]) -> Any:
    """Return the relative error of one call of ``ufunc``."""
    if ufunc in _ARITHMETIC:
        return arithmetic.u_stored
    reach: Any = 0.0
    if ufunc in _EXPONENTIAL:
        reach = np.abs(inputs[0])
    elif ufunc in _POWERS:
        base = np.abs(np.asarray(inputs[0], np.float64))
        logarithm = np.log(np.where((base > 0) & np.isfinite(base), base, 1.0))
        small = np.equal(inputs[1], np.rint(inputs[1])) & (np.abs(inputs[1]) <= 4)  # a few products
        reach = np.where(small, 0.0, np.abs(inputs[1] * logarithm))
    reach = np.where(np.isfinite(reach), reach, 0.0)
    return arithmetic.u_stored + (EXP_ULPS + reach) * arithmetic.u_function


def _fold(
    arithmetic: MonteCarloArithmetic, ufunc: np.ufunc, method: str, inputs: list[Any], result: Any, *, kwargs: Any
) -> np.ndarray:
    """Perturb a reduction or a scan."""
    terms = np.size(inputs[0]) // max(np.size(result), 1)
    if method == "reduce" and ufunc is np.add:
        keep = {key: value for key, value in kwargs.items() if key in ("axis", "keepdims", "where")}
        if len(inputs) > 1:
            keep["axis"] = inputs[1]
        return arithmetic.summed(result, np.add.reduce(np.abs(inputs[0]) ** 2, **keep), terms)
    if method in ("reduce", "reduceat"):
        return arithmetic.relative(result, arithmetic.u_stored * math.sqrt(max(terms, 1)))
    return arithmetic.scanned(result, kwargs.get("axis", inputs[1] if len(inputs) > 1 else 0), ufunc)


def _einsum(arithmetic: MonteCarloArithmetic, args: tuple[Any, ...]) -> np.ndarray:
    subscripts, *operands = (bare(x) for x in args)
    if not isinstance(subscripts, str):
        raise TypeError("einsum on perturbed arrays needs its subscripts as a string")
    terms = _contracted(subscripts, operands)
    return arithmetic.bilinear(lambda *x: np.einsum(subscripts, *x, optimize=len(x) > 1), operands, terms)


def _contracted(subscripts: str, operands: list[Any]) -> int:
    """Return how many products each entry of an einsum adds up."""
    sources, arrow, target = subscripts.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for source, operand in zip(sources.split(","), operands, strict=True):
        head, dots, tail = source.partition("...")
        shape = np.shape(operand)
        sizes |= dict(zip(head, shape, strict=False))
        sizes |= dict(zip(reversed(tail if dots else ""), reversed(shape), strict=False))
    if not arrow:
        target = "".join(letter for letter in sizes if sources.count(letter) == 1)
    return math.prod(size for letter, size in sizes.items() if letter not in target)


def _contract(
    arithmetic: MonteCarloArithmetic, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> np.ndarray:
    """Perturb `dot`, `tensordot`, `convolve` and their kin, whose first two arguments are the operands."""
    out = kwargs.pop("out", None)
    first, second, *rest = (bare(x) for x in args)
    size = np.size(func(first, second, *rest, **kwargs))
    terms = round(math.sqrt(np.size(first) * np.size(second) / max(size, 1)))
    result = arithmetic.bilinear(lambda a, b: func(a, b, *rest, **kwargs), [first, second], max(terms, 1))
    if out is not None:
        np.copyto(bare(out), result)
        return np.asarray(bare(out))
    return result


def _opaque(
    arithmetic: MonteCarloArithmetic,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    normwise: bool,
) -> Any:
    """Perturb what happens inside a library: operands by u of their largest entry, results by u."""

    def blur(x: np.ndarray) -> np.ndarray:
        plain = bare(x)
        if not (normwise and plain.dtype.kind in "fc" and plain.size):
            return np.asarray(plain)
        axes = tuple(range(max(plain.ndim - 2, 0), plain.ndim))
        largest = np.max(np.abs(plain), axis=axes, keepdims=True)
        if arithmetic.exact:
            return np.asarray(plain)
        moved: np.ndarray = plain + arithmetic.u_stored * largest * arithmetic.noise(plain.shape)
        return moved

    result = func(*map_arrays(blur, args), **map_arrays(blur, kwargs))
    if isinstance(result, (np.floating, np.complexfloating)):
        result = np.asarray(result)
    stored = map_arrays(lambda x: arithmetic.stored(x) if x.dtype.kind in "fc" else x, result)
    return _wrap(stored, arithmetic)
