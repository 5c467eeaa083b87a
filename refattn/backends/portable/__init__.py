"""The mechanisms a second time, vectorised, in the array-API standard: one code for NumPy, PyTorch, JAX and CuPy.

Every function here is derived from the equations by another route than the reference, and is checked against it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["functions", "on"]

_LIBRARIES = ("numpy", "array_api_strict", "torch", "jax", "jax-jit", "cupy")


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """Return every public function of the package by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {
        name: getattr(module, name)
        for module in modules
        for name in module.__all__
        if callable(getattr(module, name)) and not isinstance(getattr(module, name), type)
    }


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("_") or name not in functions():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functions()[name]


def on(library: str) -> SimpleNamespace:
    """Return the portable functions as a backend on one array library.

    Parameters
    ----------
    library : str
        ``numpy``, ``array_api_strict``, ``torch``, ``jax``, ``jax-jit`` (each function compiled, options static) or
        ``cupy``.

    Raises
    ------
    ValueError
        If the library is not one of these.
    """
    if library not in _LIBRARIES:
        raise ValueError(f"library={library!r} is not one of {', '.join(_LIBRARIES)}")
    sixteen = () if library in ("numpy", "array_api_strict") else ("float16", "bfloat16")
    offered = functions()
    if library == "jax-jit":
        offered = {name: _compiled(function) for name, function in offered.items()}
    declared = {
        "ARRAYS": library.removesuffix("-jit"),
        "DTYPES": ("float64", "float32", *sixteen),
        "CONVENTIONS": {"precision": None},
    }
    return SimpleNamespace(**declared, **offered)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` under ``jax.jit``, arrays traced and every other keyword static."""
    import jax

    known: dict[str, Callable[..., Any]] = {}

    @wraps(function)
    def call(*arrays: Any, **keywords: Any) -> Any:
        traced = {k: v for k, v in keywords.items() if jax.tree.leaves(v) and all(map(_is_array, jax.tree.leaves(v)))}
        static = {k: v for k, v in keywords.items() if k not in traced}
        key = repr(sorted(static.items()))
        if key not in known:
            known[key] = jax.jit(lambda *a, **k: function(*a, **k, **static))
        return known[key](*arrays, **traced)

    return call


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
