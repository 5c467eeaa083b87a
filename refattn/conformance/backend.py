"""A backend: a module or object with functions named as the mechanisms, and what it declares about itself.

A backend may define

``ARRAYS``
    The library whose arrays its functions take: ``numpy`` (default), ``torch``, ``jax``, ``cupy``,
    ``array_api_strict``.
``asarray(x, dtype)``, ``asnumpy(y)``
    Its own way across, where the library's does not fit.
``CONVENTIONS``
    The choices in which it differs from the references, such as ``{"empty": "nan"}``, and its ``precision`` class.
``DTYPES``
    The dtypes it computes in; all are tried if it does not say.

Functions raise ``NotImplementedError`` for what they do not offer, or just lack the keyword.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.conformance.arrays import library
from refattn.conformance.contract import Contract, Entry, Outputs, map_arrays, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refattn.conformance.contract import Case

__all__ = ["Backend", "NotSupportedError", "load_backend"]


class NotSupportedError(Exception):
    """The backend does not offer what a case asks for; the case is skipped and counted."""


class Backend:
    """A module or object on trial.

    Parameters
    ----------
    module : object
        Holds the functions and the declarations.
    name : str
        How reports call it.
    device : str, optional
        Where its arrays live.
    """

    def __init__(self, module: Any, name: str, device: str | None = None) -> None:
        self.module = module
        self.name = name
        self.library = library(getattr(module, "ARRAYS", "numpy"), device)
        self.conventions: Mapping[str, str] = dict(getattr(module, "CONVENTIONS", {}))
        self.dtypes: tuple[str, ...] | None = getattr(module, "DTYPES", None)
        self._asarray: Callable[..., Any] = getattr(module, "asarray", None) or self.library.asarray
        self._asnumpy: Callable[..., Any] = getattr(module, "asnumpy", None) or self.library.asnumpy

    @property
    def precision(self) -> str | None:
        """The precision class that it declares."""
        return self.conventions.get("precision")

    def provides(self, *entries: str) -> bool:
        """Whether it has functions of these names."""
        return all(callable(getattr(self.module, name, None)) for name in entries)

    def native(self, tree: Any, dtype: str) -> Any:
        """Return a tree of NumPy arrays as native ones, floats in ``dtype``."""
        return map_arrays(lambda a: self._asarray(a, dtype if a.dtype.kind == "f" else str(a.dtype)), tree)

    def numpy(self, tree: Any) -> Any:
        """Return a tree of native arrays as NumPy, floats widened to float64."""
        if self.library.is_array(tree) or isinstance(tree, np.ndarray):
            return self._asnumpy(tree)
        if isinstance(tree, dict):
            return {name: self.numpy(branch) for name, branch in tree.items()}
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return type(tree)(*(self.numpy(branch) for branch in tree))
        if isinstance(tree, (tuple, list)):
            return type(tree)(self.numpy(branch) for branch in tree)
        return tree

    def call(self, entry: Entry, case: Case, arrays: Mapping[str, Any] | None = None) -> Any:
        """Run the entry's function on ``case`` and return what it returned, in native arrays.

        Parameters
        ----------
        entry : Entry
            Names the function and the order of its arrays.
        case : Case
            The arrays (unless ``arrays`` replaces them by native ones) and the options.
        arrays : mapping, optional
            Native arrays to pass.

        Raises
        ------
        NotSupportedError
            If there is no such function, or it does not take an option, or says NotImplementedError.
        """
        function = getattr(self.module, entry.name, None)
        if not callable(function):
            raise NotSupportedError(f"no function {entry.name}")
        arrays = self.native(dict(case.arrays), case.dtype) if arrays is None else arrays
        positional = [arrays[name] for name in entry.positional]
        keywords = {k: v for k, v in arrays.items() if k not in entry.positional} | entry.spoken_options(case)
        refuse_unknown_keywords(function, len(positional), keywords)
        try:
            return function(*positional, **keywords)
        except NotImplementedError as error:
            raise NotSupportedError(f"not offered: {error}") from error

    def outputs(self, entry: Entry, result: Any) -> Outputs:
        """Name the arrays of a native result; as NumPy."""
        return unpack(self.numpy(result), entry.outputs)

    def run(self, entry: Entry, case: Case) -> Outputs:
        """Run ``case`` and return its named outputs as NumPy, conventions untouched."""
        return self.outputs(entry, self.call(entry, case))

    def gradient(self, entry: Entry, case: Case, wrt: tuple[str, ...], cotangent: np.ndarray) -> Outputs:
        """Return the vector-Jacobian product with respect to plain arrays, by the library's autodiff.

        Raises
        ------
        NotSupportedError
            If the library has none, or the function cannot be differentiated.
        """
        fixed = self.native(dict(case.arrays), case.dtype)

        def main_output(*leaves: Any) -> Any:
            result = self.call(entry, case, fixed | dict(zip(wrt, leaves, strict=True)))
            return next(iter(unpack(result, entry.outputs).values()))

        leaves = [fixed[name] for name in wrt]
        try:
            gradients = self.library.gradient(main_output, leaves, cotangent)
        except RuntimeError as error:
            raise NotSupportedError(f"no derivative: {str(error).splitlines()[0]}") from error
        if gradients is None:
            raise NotSupportedError(f"{self.library.name} has no automatic differentiation")
        return {f"d{name}": self.numpy(g) for name, g in zip(wrt, gradients, strict=True)}


def refuse_unknown_keywords(function: Callable[..., Any], positional: int, keywords: Mapping[str, Any]) -> None:
    """Raise `NotSupportedError` naming the first keyword that ``function`` cannot take."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return  # a builtin that does not show its signature: the call itself will tell
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    by_position = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    free = set(parameters) - set(by_position[:positional])
    for name in keywords:
        if name not in free:
            raise NotSupportedError(f"takes no keyword {name}")


def load_backend(spec: str, contracts: Mapping[str, Contract] | None = None, device: str | None = None) -> Backend:
    """Return the backend that ``spec`` names.

    Parameters
    ----------
    spec : str
        ``portable`` or ``portable:LIBRARY`` (``numpy``, ``torch``, ``jax``, ``jax-jit``, ``array_api_strict``,
        ``cupy``); ``reference``, the references themselves; the path of a Python file; or an import name, with
        ``:attribute`` for an object in it. Importing runs the code: load only what you trust.
    contracts : mapping, optional
        Needed for ``reference``.
    device : str, optional
        Passed to the library.

    Raises
    ------
    ValueError
        If a file is not there or a name is malformed.
    ImportError
        Whatever importing raises.
    """
    if spec == "reference":
        entries = [entry for contract in (contracts or {}).values() for entry in contract.entries]
        return Backend(SimpleNamespace(**{e.name: e.reference for e in entries}), spec, device)
    if spec.partition(":")[0] == "portable":
        portable = importlib.import_module("refattn.backends.portable")
        return Backend(portable.on(spec.partition(":")[2] or "numpy"), spec, device)
    return Backend(_import(spec), spec, device)


def _import(spec: str) -> Any:
    path, _, attribute = spec.partition(":") if not Path(spec).exists() else (spec, "", "")
    module = _import_file(Path(path)) if path.endswith(".py") else importlib.import_module(path)
    return getattr(module, attribute) if attribute else module


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"backend={str(path)!r}: there is no such file")
    name = f"refattn_backend_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"backend={str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.resolve().parent))  # a backend may import its neighbours, and shadow nothing
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
