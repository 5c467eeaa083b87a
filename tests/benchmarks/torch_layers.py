"""Layers written twice: a NumPy reference, and PyTorch kernels that compute it by other routes in any dtype.

Material for the calibration of Monte Carlo budgets; the kernels are what people write, not what the budgets assume.
"""

import numpy as np
import torch
from torch.nn.functional import conv1d, elu, layer_norm, pad, scaled_dot_product_attention, silu

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case

SEEN = np.arange(29) <= np.arange(19)[:, None] + 10
LOWER = np.tril(np.ones((21, 21), bool))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_sum(z, axis=-1):
    m = z.max(axis=axis, keepdims=True)
    return np.squeeze(m, axis) + np.log(np.exp(z - m).sum(axis=axis))


# --- references


def norm_linear(x, w):
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)) @ w


def gated_mlp(x, w, w2):
    centred = x - x.mean(axis=-1, keepdims=True)
    h = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) @ w
    return x + (h * sigmoid(h)) @ w2


def gated_scan(a, b):
    g, h, out = sigmoid(a + 2), 0.0, []
    for t in range(a.shape[1]):
        h = g[:, t] * h + (1 - g[:, t]) * b[:, t]
        out.append(h)
    return np.stack(out, axis=1)


def delta_rule(q, k, v, beta):
    k, b = k / np.sqrt((k * k).sum(axis=-1, keepdims=True) + 1e-6), sigmoid(beta)
    state, out = np.zeros((q.shape[0], q.shape[2], v.shape[2])), []
    for t in range(q.shape[1]):
        error = v[:, t] - np.einsum("bk,bkv->bv", k[:, t], state)
        state = state + (b[:, t] * k[:, t])[:, :, None] * error[:, None, :]
        out.append(np.einsum("bk,bkv->bv", q[:, t], state))
    return np.stack(out, axis=1)


def attention(q, k, v):
    return softmax(np.where(SEEN, q @ np.swapaxes(k, -1, -2) / 4.0, -np.inf)) @ v


def depthwise(x, w):
    padded = np.pad(x, ((0, 0), (3, 0), (0, 0)))
    y = sum(padded[:, i : i + x.shape[1]] * w[i] for i in range(4))
    return y * sigmoid(y)


def linear_attention(q, k, v):
    q, k = (np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1 for x in (q, k))
    state, total = np.cumsum(k[..., None] * v[..., None, :], axis=1), np.cumsum(k, axis=1)
    return np.einsum("btk,btkv->btv", q, state) / (q * total).sum(axis=-1, keepdims=True)


def routed_experts(x, w, w2):
    z = x @ w
    chosen = np.argsort(-z, axis=-1, kind="stable")[..., :2]
    gates = softmax(np.take_along_axis(z, chosen, axis=-1))
    y = np.einsum("btd,edf->btef", x, w2)
    return (np.take_along_axis(y, chosen[..., None], axis=-2) * gates[..., None]).sum(axis=-2)


def cross_entropy(x):
    return (log_sum(x) - x[:, 3]).mean()


def sinkhorn(c):
    f = np.zeros(c.shape[:2])
    for _ in range(5):
        g = -log_sum(f[:, :, None] - c, axis=1)
        f = -log_sum(g[:, None, :] - c, axis=2)
    return np.exp(f[:, :, None] + g[:, None, :] - c)


def decay_attention(q, k, v, g):
    total = np.cumsum(-np.log1p(np.exp(np.minimum(g, 20))), axis=-1)
    decay = np.where(LOWER, np.exp(np.where(LOWER, total[:, :, None] - total[:, None, :], 0)), 0)
    return ((q @ np.swapaxes(k, 1, 2)) * decay) @ v


def cosine(x, y):
    x, y = (a / np.sqrt((a * a).sum(axis=-1, keepdims=True) + 1e-12) for a in (x, y))
    return np.tanh(x @ np.swapaxes(y, 1, 2) * 3)


def running_mean(x):
    return np.cumsum(x, axis=1) / np.arange(1, 41)[:, None]


# --- kernels


def unit(x, eps=1e-6):
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


def scan_in_sequence(a, b):
    g, h, out = torch.sigmoid(a + 2), torch.zeros_like(a[:, 0]), []
    for t in range(a.shape[1]):
        h = g[:, t] * h + (1 - g[:, t]) * b[:, t]
        out.append(h)
    return torch.stack(out, 1)


def scan_as_tree(a, b):
    g = torch.sigmoid(a + 2)
    u, step = (1 - g) * b, 1
    while step < a.shape[1]:
        before_g = torch.cat([torch.ones_like(g[:, :step]), g[:, :-step]], 1)
        before_u = torch.cat([torch.zeros_like(u[:, :step]), u[:, :-step]], 1)
        u, g, step = g * before_u + u, g * before_g, 2 * step
    return u


def delta_in_sequence(q, k, v, beta, *, projector):
    k, b = unit(k), torch.sigmoid(beta)
    state, out = q.new_zeros((q.shape[0], q.shape[2], v.shape[2])), []
    for t in range(q.shape[1]):
        write = (b[:, t] * k[:, t])[:, :, None]
        if projector:
            forget = torch.eye(q.shape[2], dtype=q.dtype) - write * k[:, t, None, :]
            state = forget @ state + write * v[:, t, None, :]
        else:
            state = state + write * (v[:, t] - (k[:, t, None, :] @ state)[:, 0])[:, None, :]
        out.append((state * q[:, t, :, None]).sum(1) if projector else (q[:, t, None, :] @ state)[:, 0])
    return torch.stack(out, 1)


def masked(z):
    return z.masked_fill(~torch.from_numpy(SEEN), -torch.inf)


def divided_late(q, k, v):
    z = masked((q / 2) @ (k / 2).transpose(-1, -2))
    e = torch.exp(z - z.max(-1, keepdim=True).values)
    return (e @ v) / e.sum(-1, keepdim=True)


def convolved(x, w):
    padded = pad(x.transpose(1, 2), (3, 0))
    return silu(conv1d(padded, w.T[:, None, :].contiguous(), groups=x.shape[-1]).transpose(1, 2))


def convolved_backwards(x, w):
    padded, y = pad(x, (0, 0, 3, 0)), 0
    for i in (3, 2, 1, 0):
        y = y + padded[:, i : i + x.shape[1]] * w[i]
    return y * torch.sigmoid(y)


def quadratic(q, k, v):
    a = torch.tril((elu(q) + 1) @ (elu(k) + 1).transpose(1, 2))
    return a @ v / a.sum(-1, keepdim=True)


def summed_states(q, k, v):
    q, k = elu(q) + 1, elu(k) + 1
    state, total = torch.cumsum(k[..., None] * v[..., None, :], 1), torch.cumsum(k, 1)
    return (q[..., None] * state).sum(-2) / (q * total).sum(-1, keepdim=True)


def routed(x, w, w2):
    gates, chosen = torch.topk(x @ w, 2, -1)
    y = torch.einsum("btd,edf->btef", x, w2)
    return (torch.take_along_dim(y, chosen[..., None], -2) * torch.softmax(gates, -1)[..., None]).sum(-2)


def transported(c):
    f = c.new_zeros(c.shape[:2])
    for _ in range(5):
        g = -torch.logsumexp(f[:, :, None] - c, 1)
        f = -torch.logsumexp(g[:, None, :] - c, 2)
    return torch.exp(f[:, :, None] + g[:, None, :] - c)


def log_decay(g):
    return -torch.log1p(torch.exp(torch.clamp(g, max=20)))


def decayed_dense(q, k, v, g):
    total = torch.cumsum(log_decay(g), -1)
    exponent = (total[:, :, None] - total[:, None, :]).masked_fill(~torch.from_numpy(LOWER), -torch.inf)
    return ((q @ k.transpose(1, 2)) * torch.exp(exponent)) @ v


def decayed_in_sequence(q, k, v, g):
    a, state, out = torch.exp(log_decay(g)), q.new_zeros(q.shape[0], q.shape[2], v.shape[2]), []
    for t in range(q.shape[1]):
        state = a[:, t, None, None] * state + k[:, t, :, None] * v[:, t, None, :]
        out.append((q[:, t, :, None] * state).sum(1))
    return torch.stack(out, 1)


def cosine_late(x, y):
    length = [torch.sqrt((a * a).sum(-1) + 1e-12) for a in (x, y)]
    return torch.tanh(3 * (x @ y.transpose(1, 2)) / (length[0][:, :, None] * length[1][:, None, :]))


def mean_by_matrix(x):
    ones = torch.tril(torch.ones(40, 40, dtype=x.dtype))
    return (ones @ x) / torch.arange(1, 41)[:, None].to(x.dtype)


# name: reference, shapes (weights, named w, are divided by the root of their inputs), kernels
LAYERS = {
    "norm and projection": (
        norm_linear,
        {"x": (2, 17, 24), "w": (24, 12)},
        (
            lambda x, w: (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)) @ w,
            lambda x, w: (x @ w) / torch.sqrt((x * x).flip(-1).sum(-1, keepdim=True) / x.shape[-1] + 1e-6),
        ),
    ),
    "gated MLP": (
        gated_mlp,
        {"x": (2, 11, 16), "w": (16, 40), "w2": (40, 16)},
        (
            lambda x, w, w2: x + silu(layer_norm(x, (16,)) @ w) @ w2,
            lambda x, w, w2: x + silu(unit(x - x.mean(-1, keepdim=True), 16e-5) * 4 @ w) @ w2,
        ),
    ),
    "gated scan": (gated_scan, {"a": (3, 37, 8), "b": (3, 37, 8)}, (scan_in_sequence, scan_as_tree)),
    "delta rule": (
        delta_rule,
        {"q": (2, 23, 8), "k": (2, 23, 8), "v": (2, 23, 6), "beta": (2, 23, 1)},
        (
            lambda *x: delta_in_sequence(*x, projector=False),
            lambda *x: delta_in_sequence(*x, projector=True),
        ),
    ),
    "softmax attention": (
        attention,
        {"q": (2, 3, 19, 16), "k": (2, 3, 29, 16), "v": (2, 3, 29, 12)},
        (
            lambda q, k, v: torch.softmax(masked(q @ k.transpose(-1, -2) / 4), -1) @ v,
            lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=torch.from_numpy(SEEN)),
            divided_late,
        ),
    ),
    "depthwise convolution": (depthwise, {"x": (2, 33, 8), "w": (4, 8)}, (convolved, convolved_backwards)),
    "linear attention": (
        linear_attention,
        {"q": (2, 31, 8), "k": (2, 31, 8), "v": (2, 31, 6)},
        (quadratic, summed_states),
    ),
    "routed experts": (routed_experts, {"x": (2, 13, 16), "w": (16, 6), "w2": (6, 16, 16)}, (routed,)),
    "cross entropy": (
        cross_entropy,
        {"x": (21, 30)},
        (
            lambda x: (torch.logsumexp(x, -1) - x[:, 3]).mean(),
            lambda x: -torch.log_softmax(x, -1)[:, 3].mean(),
        ),
    ),
    "log-sum-exp": (
        log_sum,
        {"z": (3, 21, 30)},
        (
            lambda z: torch.logsumexp(z, -1),
            lambda z: torch.log(torch.exp(z - z.max(-1, keepdim=True).values).flip(-1).sum(-1)) + z.max(-1).values,
        ),
    ),
    "optimal transport": (sinkhorn, {"c": (2, 9, 11)}, (transported,)),
    "decaying attention": (
        decay_attention,
        {"q": (2, 21, 8), "k": (2, 21, 8), "v": (2, 21, 6), "g": (2, 21)},
        (decayed_dense, decayed_in_sequence),
    ),
    "cosine similarity": (
        cosine,
        {"x": (2, 13, 10), "y": (2, 17, 10)},
        (lambda x, y: torch.tanh(3 * (unit(x, 1e-12) @ unit(y, 1e-12).transpose(1, 2))), cosine_late),
    ),
    "running mean": (
        running_mean,
        {"x": (2, 40, 5)},
        (lambda x: torch.cumsum(x, 1) / torch.arange(1, 41)[:, None].to(x.dtype), mean_by_matrix),
    ),
}


def draw_case(name, family, dtype, seed):
    """Return a case of one layer."""
    rng = generator(seed, name, family)
    arrays = {}
    for key, shape in LAYERS[name][1].items():
        weight = key.startswith("w")
        x = fill(rng, shape, "normal" if weight else family)
        arrays[key] = x / np.sqrt(shape[-2]) if weight else x
    return Case(name, rounded(arrays, dtype), {}, dtype, f"{name}/{family}")


def run_kernel(kernel, case):
    """Run one PyTorch kernel in the dtype of the case; its output in float64."""
    kind = getattr(torch, case.dtype)
    return kernel(*(torch.from_numpy(x.copy()).to(kind) for x in case.arrays.values())).double().numpy()
