"""Small layers in NumPy: a float64 reference of each, and correct kernels that round every result to a dtype.

Material for the calibration of Monte Carlo budgets. Every kernel exists in two orders of operations.
"""

import numpy as np

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case
from refattn.conformance.precision import round_to


def rms_layer(x, w):
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)) @ w


def scan_layer(a, b):
    g = 1 / (1 + np.exp(-a - 2))
    h, out = np.zeros(a.shape[1:]), []
    for t in range(len(a)):
        h = g[t] * h + (1 - g[t]) * b[t]
        out.append(h)
    return np.stack(out)


def attention_layer(q, k, v):
    z = q @ k.T / 4.0
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)) @ v


def gated_layer(x, w):
    h = x @ w
    return x + (h / (1 + np.exp(-h))) @ w.T


def convolution_layer(x, w):
    padded = np.pad(x, ((3, 0), (0, 0)))
    return sum(padded[i : i + len(x)] * w[i] for i in range(4))


LAYERS = {
    "rms": (rms_layer, {"x": (9, 24), "w": (24, 12)}),
    "scan": (scan_layer, {"a": (21, 6), "b": (21, 6)}),
    "attention": (attention_layer, {"q": (11, 16), "k": (19, 16), "v": (19, 12)}),
    "gated": (gated_layer, {"x": (7, 16), "w": (16, 24)}),
    "convolution": (convolution_layer, {"x": (17, 6), "w": (4, 6)}),
}


def run_low(name, arrays, dtype, *, other):
    """Compute a layer with every result rounded to the dtype, in one of two orders of operations."""

    def r(x):
        return round_to(x, dtype)

    def product(a, b):
        wide = np.float64 if dtype == "float64" else np.float32
        a, b = (a[..., ::-1], b[::-1]) if other else (a, b)
        return r((a.astype(wide) @ b.astype(wide)).astype(np.float64))

    def sigmoid(x):
        return r(1 / r(1 + r(np.exp(r(-x)))))

    if name == "rms":
        x, w = arrays["x"], arrays["w"]
        root = r(np.sqrt(r(np.mean(r(x * x), axis=-1, keepdims=True) + 1e-6)))
        return r(product(x, w) / root) if other else product(r(x / root), w)
    if name == "scan":
        g = sigmoid(r(arrays["a"] + 2))
        u = r(r(1 - g) * arrays["b"])
        return tree(g, u, r) if other else sequence(g, u, r)
    if name == "attention":
        z = product(r(arrays["q"] / 4.0), arrays["k"].T)
        e = r(np.exp(r(z - z.max(axis=-1, keepdims=True))))
        total = r(np.sum(e, axis=-1, keepdims=True))
        return r(product(e, arrays["v"]) / total) if other else product(r(e / total), arrays["v"])
    if name == "gated":
        h = product(arrays["x"], arrays["w"])
        return r(arrays["x"] + product(r(h * sigmoid(h)), arrays["w"].T))
    padded, total = np.pad(arrays["x"], ((3, 0), (0, 0))), 0.0
    for i in (3, 2, 1, 0) if other else range(4):
        total = r(total + r(padded[i : i + len(arrays["x"])] * arrays["w"][i]))
    return total


def sequence(g, u, r):
    h, out = np.zeros(u.shape[1:]), []
    for t in range(len(u)):
        h = r(r(g[t] * h) + u[t])
        out.append(h)
    return np.stack(out)


def tree(g, u, r):
    step = 1
    while step < len(u):
        before_g = np.concatenate([np.ones_like(g[:step]), g[:-step]])
        before_u = np.concatenate([np.zeros_like(u[:step]), u[:-step]])
        u, g = r(r(g * before_u) + u), r(g * before_g)
        step *= 2
    return u


def draw_case(name, family, dtype, seed):
    """Return a case of one layer; weights are normal whatever the family."""
    rng = generator(seed, name, family)
    arrays = {k: fill(rng, s, "normal" if k == "w" else family) for k, s in LAYERS[name][1].items()}
    return Case(name, rounded(arrays, dtype), {}, dtype, f"{name}/{family}")
