"""Right and wrong backends for the toy mechanism, by attribute: ``toy.backends:right``."""

import os
import time
from types import SimpleNamespace

import numpy as np


def _centre(x, *, gain=1.0, empty="zero"):
    y = (x - x.sum(axis=-1, keepdims=True) / x.dtype.type(x.shape[-1])) * x.dtype.type(gain)
    return np.where(np.all(x == 0, axis=-1, keepdims=True), x.dtype.type(0), y)


def _nan_for_empty(x, *, gain=1.0, empty="zero"):
    return np.where(np.all(x == 0, axis=-1, keepdims=True), x.dtype.type(np.nan), _centre(x, gain=gain))


def _in_place(x, *, gain=1.0, empty="zero"):
    x -= x.mean(axis=-1, keepdims=True)
    return x * x.dtype.type(gain)


class _Remembering:
    def __init__(self):
        self.known = {}

    def __call__(self, x, *, gain=1.0, empty="zero"):
        key = (x.__array_interface__["data"], x.shape, gain)
        if key not in self.known:
            self.known[key] = (x, _centre(x, gain=gain))
        return self.known[key][1]


def _unwritten(x, *, gain=1.0, empty="zero"):
    y = np.empty_like(x)
    y[..., :-1, :] = _centre(x, gain=gain)[..., :-1, :]
    if x.shape[-2] == 1:
        return _centre(x, gain=gain)
    return y


_BUFFER = {}


def _one_buffer(x, *, gain=1.0, empty="zero"):
    out = _BUFFER.setdefault((x.shape, x.dtype.str), np.zeros_like(x))
    out[...] = _centre(x, gain=gain)
    return out


def _hang(x, **_):
    time.sleep(60)


def _die(x, **_):
    os._exit(7)


def _raise(x, **_):
    raise ArithmeticError("no such luck")


def _late_zero(x, *, gain=1.0, empty="zero"):
    """Right unless a row is longer than three: fools a shrinker that cuts too much."""
    return _centre(x, gain=gain) if x.shape[-1] <= 3 else np.zeros_like(x)


def backend(function, **declared):
    """Wrap a function as a backend."""
    return SimpleNamespace(centre=function, **declared)


right = backend(_centre)
nan_for_empty = backend(_nan_for_empty)
nan_declared = backend(_nan_for_empty, CONVENTIONS={"empty": "nan"})
in_place = backend(_in_place)
remembering = backend(_Remembering())
unwritten = backend(_unwritten)
one_buffer = backend(_one_buffer)
hang = backend(_hang)
die = backend(_die)
raising = backend(_raise)
late_zero = backend(_late_zero)
no_mean = backend(lambda x, *, gain=1.0, empty="zero": x * x.dtype.type(gain))
zeros = backend(lambda x, **_: np.zeros_like(x))
identity_view = backend(lambda x, **_: x[...])
wrong_shape = backend(lambda x, **_: _centre(x)[..., :-1])
wrong_dtype = backend(lambda x, **_: _centre(x).astype(np.float16))
not_an_array = backend(lambda x, **_: "centre")
no_gain_keyword = backend(lambda x: _centre(x))  # noqa: PLW0108  # the signature is the point
refuses_gain = backend(
    lambda x, gain=1.0: (_ for _ in ()).throw(NotImplementedError("gain")) if gain != 1 else _centre(x)
)
unknown_convention = backend(_centre, CONVENTIONS={"empty": "three"})
nothing = SimpleNamespace()
