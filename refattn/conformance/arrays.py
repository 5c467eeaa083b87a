"""How arrays cross between NumPy and the library of a backend, and what each library can do to help a check.

The kit keeps every array as NumPy: floats as float64 that hold only values of the dtype on trial. A `Library`
turns them into native arrays of that dtype and back.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["LIBRARIES", "Library", "library"]


def _numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)


class Library:
    """NumPy, and the base of the others.

    Parameters
    ----------
    device : str, optional
        Where native arrays live, in the library's own words.
    """

    name = "numpy"

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    def asarray(self, array: np.ndarray, dtype: str) -> Any:
        """Return a fresh native array of ``dtype``, a name of NumPy's or ``bfloat16``."""
        return np.array(array, dtype=_numpy_dtype(dtype))

    def asnumpy(self, array: Any) -> np.ndarray:
        """Return a native array as NumPy, floats widened to float64."""
        found: np.ndarray = np.asarray(array)
        return found.astype(np.float64) if self.dtype_name(found) in _FLOATS else found

    def dtype_name(self, array: Any) -> str:
        """Return the name of a native array's dtype in NumPy's words."""
        return str(array.dtype).rpartition(".")[2]

    def is_array(self, value: Any) -> bool:
        """Whether ``value`` is one of this library's arrays."""
        return isinstance(value, np.ndarray)

    def shares_memory(self, left: Any, right: Any) -> bool:
        """Whether two native arrays overlap in memory, as far as the library can tell."""
        return bool(np.shares_memory(left, right))

    def overwrite(self, array: Any, values: np.ndarray) -> bool:
        """Write ``values`` into a native array in place; False where arrays cannot change."""
        array[...] = values.astype(array.dtype)
        return True

    def freeze(self, array: Any) -> bool:
        """Make a native array read-only; False where the library cannot."""
        array.flags.writeable = False
        return True

    def strided(self, array: np.ndarray, dtype: str) -> Any:
        """Return a native array of equal content whose memory is not contiguous."""
        wide = np.repeat(np.asarray(array, dtype=_numpy_dtype(dtype))[..., None], 2, axis=-1)
        return wide[..., 1]

    def poisoned(self) -> AbstractContextManager[Any]:
        """Return a context in which freshly allocated, unwritten arrays hold NaN."""
        return _poison(
            np, ("empty", "empty_like"), lambda array: array.fill(np.nan) if array.dtype.kind == "f" else None
        )

    def release(self) -> None:
        """Give back what the library keeps between calls, such as compiled code for shapes that will not return."""

    def gradient(
        self, function: Callable[..., Any], leaves: Sequence[Any], cotangent: np.ndarray
    ) -> Sequence[Any] | None:
        """Return the vector-Jacobian product of ``function(*leaves)``, or None without autodiff."""
        del function, leaves, cotangent
        return None


_FLOATS = ("float64", "float32", "float16", "bfloat16")


@contextmanager
def _poison(module: Any, names: tuple[str, ...], spoil: Callable[[Any], None]) -> Iterator[None]:
    def spoiling(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            array = allocate(*args, **kwargs)
            spoil(array)
            return array

        return wrapper

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(module, name, spoiling(getattr(module, name))))
        yield


class Torch(Library):
    """PyTorch on any device."""

    name = "torch"

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device or "cpu")
        self.torch = importlib.import_module("torch")

    def asarray(self, array: np.ndarray, dtype: str) -> Any:
        tensor = self.torch.from_numpy(np.array(array))
        return tensor.to(device=self.device, dtype=getattr(self.torch, dtype), copy=True)

    def asnumpy(self, array: Any) -> np.ndarray:
        tensor = self.torch.as_tensor(array).detach().cpu()
        return np.array((tensor.double() if tensor.is_floating_point() else tensor).numpy())

    def is_array(self, value: Any) -> bool:
        return isinstance(value, self.torch.Tensor)

    def shares_memory(self, left: Any, right: Any) -> bool:
        return bool(left.numel() and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr())

    def overwrite(self, array: Any, values: np.ndarray) -> bool:
        array.copy_(self.torch.from_numpy(values))
        return True

    def freeze(self, array: Any) -> bool:
        del array
        return False

    def strided(self, array: np.ndarray, dtype: str) -> Any:
        return self.asarray(array, dtype)[..., None].repeat_interleave(2, dim=-1)[..., 1]

    def poisoned(self) -> AbstractContextManager[Any]:
        return _poison(
            self.torch, ("empty", "empty_like"), lambda t: t.fill_(float("nan")) if t.is_floating_point() else None
        )

    def gradient(
        self, function: Callable[..., Any], leaves: Sequence[Any], cotangent: np.ndarray
    ) -> Sequence[Any] | None:
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = function(*leaves)
        dout = self.torch.from_numpy(np.array(cotangent)).to(out)
        gradients = self.torch.autograd.grad(out, leaves, dout, allow_unused=True)
        return [self.torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]


_CHECKS_BETWEEN_RELEASES = 60


class Jax(Library):
    """JAX, with 64-bit numbers switched on."""

    name = "jax"

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        self.jax = importlib.import_module("jax")
        self.checks = 0
        self.jax.config.update("jax_enable_x64", True)  # the signature of JAX

    def asarray(self, array: np.ndarray, dtype: str) -> Any:
        placed = self.jax.numpy.asarray(np.array(array), dtype=dtype)
        return self.jax.device_put(placed, self.jax.devices(self.device)[0]) if self.device else placed

    def is_array(self, value: Any) -> bool:
        return isinstance(value, self.jax.Array)

    def shares_memory(self, left: Any, right: Any) -> bool:
        del left, right
        return False  # JAX arrays cannot be written to: sharing is harmless

    def overwrite(self, array: Any, values: np.ndarray) -> bool:
        del array, values
        return False

    def freeze(self, array: Any) -> bool:
        del array
        return False

    def strided(self, array: np.ndarray, dtype: str) -> Any:
        return self.asarray(array, dtype)  # JAX has no strides to vary

    def poisoned(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def release(self) -> None:
        self.checks += 1
        if self.checks % _CHECKS_BETWEEN_RELEASES == 0:  # compiled code is worth keeping, but not without end
            self.jax.clear_caches()

    def gradient(
        self, function: Callable[..., Any], leaves: Sequence[Any], cotangent: np.ndarray
    ) -> Sequence[Any] | None:
        out, pull = self.jax.vjp(function, *leaves)
        result: Sequence[Any] = pull(self.jax.numpy.asarray(cotangent, dtype=out.dtype))
        return result


class Strict(Library):
    """array-api-strict: NumPy that refuses what the array-API standard does not promise."""

    name = "array_api_strict"

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        self.xp = importlib.import_module("array_api_strict")

    def asarray(self, array: np.ndarray, dtype: str) -> Any:
        return self.xp.asarray(np.array(array, dtype=_numpy_dtype(dtype)))

    def asnumpy(self, array: Any) -> np.ndarray:
        return super().asnumpy(np.from_dlpack(array))

    def is_array(self, value: Any) -> bool:
        return isinstance(value, type(self.xp.zeros(0)))

    def shares_memory(self, left: Any, right: Any) -> bool:
        return bool(np.shares_memory(np.from_dlpack(left), np.from_dlpack(right)))

    def overwrite(self, array: Any, values: np.ndarray) -> bool:
        array[...] = self.xp.asarray(values.astype(self.dtype_name(array)))
        return True

    def freeze(self, array: Any) -> bool:
        del array
        return False

    def strided(self, array: np.ndarray, dtype: str) -> Any:
        return self.xp.asarray(super().strided(array, dtype), copy=False)


class Cupy(Library):
    """CuPy on the current CUDA device."""

    name = "cupy"

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        self.cupy = importlib.import_module("cupy")

    def asarray(self, array: np.ndarray, dtype: str) -> Any:
        return self.cupy.array(array, dtype=_numpy_dtype(dtype))

    def asnumpy(self, array: Any) -> np.ndarray:
        return super().asnumpy(self.cupy.asnumpy(array))

    def is_array(self, value: Any) -> bool:
        return isinstance(value, self.cupy.ndarray)

    def shares_memory(self, left: Any, right: Any) -> bool:
        return bool(self.cupy.shares_memory(left, right))

    def overwrite(self, array: Any, values: np.ndarray) -> bool:
        array[...] = self.cupy.asarray(values, dtype=array.dtype)
        return True

    def freeze(self, array: Any) -> bool:
        del array
        return False

    def strided(self, array: np.ndarray, dtype: str) -> Any:
        return self.cupy.repeat(self.asarray(array, dtype)[..., None], 2, axis=-1)[..., 1]

    def poisoned(self) -> AbstractContextManager[Any]:
        return _poison(self.cupy, ("empty", "empty_like"), lambda a: a.fill(np.nan) if a.dtype.kind == "f" else None)


LIBRARIES: dict[str, type[Library]] = {kind.name: kind for kind in (Library, Torch, Jax, Strict, Cupy)}


def library(name: str, device: str | None = None) -> Library:
    """Return the library of this name, imported now.

    Raises
    ------
    ValueError
        If the name is not one of `LIBRARIES`.
    """
    if name not in LIBRARIES:
        raise ValueError(f"ARRAYS={name!r} is not one of {', '.join(LIBRARIES)}")
    return LIBRARIES[name](device)
