"""Correct attention kernels in low precision, in NumPy: each rounds where a real one does, in an order of its own.

They share no line with the twins of the error model. Every kernel takes a `refattn.conformance.contract.Case` of
`attention` and returns the output, in its layout, as float64 numbers of the case's dtype.
"""

import itertools
from functools import partial

import numpy as np

from refattn.conformance.precision import round_to
from refattn.primitives.attention_arguments import check_attention, from_layout
from refattn.primitives.attention_pipeline import key_distances
from refattn.primitives.rotary import rope_frequencies
from refattn.primitives.visibility import visible_pairs


def read(case):
    """Return the checked call, who sees whom, and the rounding to the case's dtype."""
    extra = {name: x for name, x in case.arrays.items() if name not in ("q", "k", "v", "dout", "dlse")}
    options = {name: x for name, x in case.options.items() if name != "returns"}
    call = check_attention(case.arrays["q"], case.arrays["k"], case.arrays["v"], **extra, **options)
    see = visible_pairs(call.rules)
    if call.bias is not None:
        see = see & (call.bias > -np.inf)
    return call, np.broadcast_to(see, call.shape), lambda x: round_to(x, case.dtype)


def accumulator(case):
    """Return the dtype in which kernels with wide accumulators compute."""
    return np.float64 if case.dtype == "float64" else np.float32


def expanded(call, kind):
    """Return q, and k and v of every query head, without what hidden keys hold."""
    k, v = (np.repeat(x, call.group, axis=1) for x in (call.k, call.v))
    return (np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).astype(kind) for x in (call.q, k, v))


def logits(call, s, see, keep):
    """Return softcap, bias and ALiBi on scaled scores, each result kept by ``keep``, −∞ where hidden."""
    kind = s.dtype.type
    if call.softcap is not None:
        s = keep(kind(call.softcap) * keep(np.tanh(keep(s / kind(call.softcap)))))
    if call.bias is not None:
        s = keep(s + np.where(np.isfinite(call.bias), call.bias, 0.0).astype(kind))
    if call.slopes is not None:
        s = keep(s - keep(call.slopes[:, :, None, None].astype(kind) * key_distances(call).astype(kind)))
    return np.where(see, s, -np.inf).astype(kind)


def finish(call, see, o, to):
    """Round the output and fill the rows that see nothing."""
    o = to(np.asarray(o, np.float64))
    nothing = ~see.any(axis=-1, keepdims=True)
    fill = 0.0
    if call.sinks is None and call.empty == "nan":
        fill = np.nan
    elif call.sinks is None and call.empty == "uniform":
        fill = to(np.repeat(call.v.mean(axis=2, keepdims=True), call.group, axis=1))
    if call.rules.q_lengths is not None:
        padded = np.arange(call.shape[2])[:, None] >= call.rules.q_lengths[:, None, None, None]
        fill = np.where(padded, 0.0, fill)
    return from_layout(np.where(nothing, fill, o), call.layout, np.float64)


def sink_of(call, kind):
    """Return the sink logits, −∞ without."""
    return np.full((1, 1, 1), -np.inf, kind) if call.sinks is None else call.sinks[:, None, None].astype(kind)


@np.errstate(all="ignore")
def fused(case, *, block=64, shuffled=False, base2=False):
    """Online softmax over blocks of keys, float32 throughout but for the weights that meet the values."""
    call, see, to = read(case)
    kind = accumulator(case)
    q, k, v = expanded(call, kind)
    log2e = kind(np.log2(np.e))
    power = np.exp2 if base2 else np.exp
    m = np.broadcast_to(sink_of(call, kind), (*call.shape[:3], 1)) * (log2e if base2 else kind(1))
    l = np.where(np.isneginf(m), 0, 1).astype(kind)
    a = np.zeros((*call.shape[:3], v.shape[-1]), kind)
    starts = np.arange(0, call.shape[3], block)
    for start in np.random.default_rng(7).permutation(starts) if shuffled else starts:
        j = slice(start, start + block)
        s = kind(call.scale) * (q @ np.swapaxes(k[:, :, j], -1, -2))
        z = _columns(call, s, see, j)
        z = z * log2e if base2 else z
        new = np.maximum(m, z.max(axis=-1, keepdims=True))
        safe = np.where(np.isneginf(new), kind(0), new)
        e, rho = power(z - safe), power(m - safe)
        l = l * rho + e.sum(axis=-1, keepdims=True, dtype=kind)
        a = a * rho + to(e.astype(np.float64)).astype(kind) @ v[:, :, j]
        m = new
    return finish(call, see, a / np.where(l == 0, kind(1), l), to)


def _columns(call, s, see, j):
    """Return the logits of one block of columns."""
    kind = s.dtype.type
    if call.softcap is not None:
        s = kind(call.softcap) * np.tanh(s / kind(call.softcap))
    if call.bias is not None:
        bias = np.broadcast_to(call.bias, call.shape)[..., j]
        s = s + np.where(np.isfinite(bias), bias, 0.0).astype(kind)
    if call.slopes is not None:
        s = s - call.slopes[:, :, None, None].astype(kind) * key_distances(call)[..., j].astype(kind)
    return np.where(see[..., j], s, -np.inf).astype(kind)


@np.errstate(all="ignore")
def split(case, *, parts=3):
    """Attend parts of the keys alone, then merge them by their log-sum-exp; the merge is float32."""
    call, see, to = read(case)
    kind = accumulator(case)
    q, k, v = expanded(call, kind)
    outs, lses = [], []
    edges = np.linspace(0, call.shape[3], parts + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        if start == stop:
            continue
        j = slice(start, stop)
        z = _columns(call, kind(call.scale) * (q @ np.swapaxes(k[:, :, j], -1, -2)), see, j)
        m = z.max(axis=-1, keepdims=True)
        safe = np.where(np.isneginf(m), kind(0), m)
        e = np.exp(z - safe)
        l = e.sum(axis=-1, keepdims=True, dtype=kind)
        outs.append((to(e.astype(np.float64)).astype(kind) @ v[:, :, j]) / np.where(l == 0, kind(1), l))
        lses.append(safe + np.log(l))
    if not outs:
        return finish(call, see, np.zeros((*call.shape[:3], v.shape[-1])), to)
    L = np.stack([*lses, np.broadcast_to(sink_of(call, kind), lses[0].shape)])
    m = L.max(axis=0)
    share = np.exp(L - np.where(np.isneginf(m), kind(0), m))
    total = share.sum(axis=0, dtype=kind)
    o = sum(w * part for w, part in zip(share, outs, strict=False)) / np.where(total == 0, kind(1), total)
    return finish(call, see, o, to)


@np.errstate(all="ignore")
def eager(case, *, placement="both"):
    """The expression of a framework: every array is stored in the dtype, products and softmax are float32."""
    call, see, to = read(case)
    kind = accumulator(case)
    q, k, v = expanded(call, kind)

    def keep(x):
        return to(x.astype(np.float64)).astype(kind)

    tau = call.scale
    if placement == "both":
        root = keep(np.asarray(np.sqrt(abs(tau)), kind))
        s = keep(keep(q * root * kind(np.sign(tau))) @ np.swapaxes(keep(k * root), -1, -2))
    elif placement == "query":
        s = keep(keep(q * kind(tau)) @ np.swapaxes(k, -1, -2))
    else:
        s = keep(keep(q @ np.swapaxes(k, -1, -2)) * kind(tau))
    z = logits(call, s, see, keep)
    sink = sink_of(call, kind)
    m = np.maximum(z.max(axis=-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(np.isneginf(m), kind(0), m)
    e = np.exp(z - m)
    l = e.sum(axis=-1, keepdims=True, dtype=kind) + np.exp(sink - m)
    P = keep(e / np.where(l == 0, kind(1), l))
    return finish(call, see, P @ v, to)


def _ordered_sum(terms, order, keep):
    """Sum over the last axis, every partial sum kept: in sequence, in blocks of 16, or pairwise."""
    if order == "pairwise":
        while terms.shape[-1] > 1:
            half = terms.shape[-1] // 2
            rest = terms[..., 2 * half :]
            terms = np.concatenate([keep(terms[..., : 2 * half : 2] + terms[..., 1 : 2 * half : 2]), rest], axis=-1)
        return terms.sum(axis=-1)
    if order == "blocked":
        parts = [_ordered_sum(terms[..., j : j + 16], "sequential", keep) for j in range(0, terms.shape[-1], 16)]
        return _ordered_sum(np.stack(parts, axis=-1), "sequential", keep) if parts else np.zeros(terms.shape[:-1])
    total = np.zeros(terms.shape[:-1])
    for j in range(terms.shape[-1]):
        total = keep(total + terms[..., j])
    return total


@np.errstate(all="ignore")
def low(case, *, order="sequential", wide=()):
    """Sums rounded to the dtype as well; ``wide`` names the sums that stay wide (score, softmax, value)."""
    call, see, to = read(case)
    q, k, v = expanded(call, np.float64)

    def add(name, terms):
        return to(terms.sum(axis=-1)) if name in wide else _ordered_sum(terms, order, to)

    root = to(np.asarray(np.sqrt(abs(call.scale))))
    left, right = to(q * root * np.sign(call.scale)), to(k * root)
    s = add("score", to(left[..., :, None, :] * right[..., None, :, :]))
    z = logits(call, s, see, to)
    sink = sink_of(call, np.float64)
    m = np.maximum(z.max(axis=-1, keepdims=True, initial=-np.inf), sink)
    m = np.where(np.isneginf(m), 0.0, m)
    e = np.where(see, to(np.exp(to(z - m))), 0.0)
    l = to(add("softmax", e) + to(np.exp(sink - m))[..., 0])[..., None]
    P = to(e / np.where(l == 0, 1.0, l))
    return finish(call, see, add("value", to(P[..., None, :] * np.swapaxes(v, -1, -2)[..., None, :, :])), to)


def torch_attention(case, *, math):
    """PyTorch's scaled_dot_product_attention on the CPU: its flash kernel, or plain expressions."""
    import torch

    call, see, to = read(case)
    kind = getattr(torch, case.dtype)
    q, k, v = (torch.from_numpy(np.ascontiguousarray(x)).to(kind) for x in expanded(call, np.float64))
    mask = np.where(see, 0.0, -np.inf)
    if call.bias is not None:
        mask = mask + np.where(np.isfinite(call.bias), call.bias, 0.0)
    if call.slopes is not None:
        mask = mask - to(call.slopes[:, :, None, None] * key_distances(call))
    if call.sinks is not None:
        # a sink is a key that every query sees, whose value is 0
        k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (k, v))
        mask = np.concatenate([mask, np.broadcast_to(call.sinks[:, None, None], (*mask.shape[:3], 1))], axis=-1)
    backend = torch.nn.attention.SDPBackend.MATH if math else torch.nn.attention.SDPBackend.FLASH_ATTENTION
    with torch.nn.attention.sdpa_kernel(backend):
        o = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.from_numpy(mask).to(kind), scale=call.scale
        )
    return finish(call, see, o.double().numpy(), to)


def torch_takes(case, *, math):
    """Whether PyTorch has what the case asks for."""
    q, k, v = (case.arrays[name] for name in "qkv")
    same_width = v.shape[-1] == q.shape[-1]
    return not case.options.get("softcap") and q.size > 0 and k.size > 0 and v.size > 0 and (math or same_width)


def float32_rotation(case):
    """Rotate as frameworks do: angles in float32, tables, products and sums stored in the dtype."""

    def to(x):
        return round_to(x, case.dtype)

    wide = np.float64 if case.dtype == "float64" else np.float32
    options = dict(case.options)
    x, r = case.arrays["x"], options.get("rotary_dim") or case.arrays["x"].shape[-1]
    given = {name: options[name] for name in ("theta", "scaling", "length") if name in options}
    freqs, factor = rope_frequencies(r, **given)
    angles = case.arrays["positions"].astype(wide)[..., None] * freqs.astype(wide)
    cos, sin = (to(wide(factor) * f(angles).astype(np.float64)) for f in (np.cos, np.sin))
    sin = -sin if options.get("inverse") else sin
    pairs = (x[..., :r:2], x[..., 1:r:2]) if options.get("interleaved") else (x[..., : r // 2], x[..., r // 2 : r])
    a, b = pairs
    first, second = to(to(a * cos) - to(b * sin)), to(to(a * sin) + to(b * cos))
    out = np.array(np.broadcast_to(x, (*first.shape[:-1], x.shape[-1])))
    if options.get("interleaved"):
        out[..., :r:2], out[..., 1:r:2] = first, second
    else:
        out[..., : r // 2], out[..., r // 2 : r] = first, second
    return out


@np.errstate(all="ignore")
def fused_backward(case):
    """Backward pass of a flash kernel: P rebuilt in float32, P and dS rounded before they meet the operands."""
    call, see, to = read(case)
    kind = accumulator(case)
    q, k, v = expanded(call, kind)
    dout = case.arrays["dout"].astype(kind)

    def short(x):
        return to(x.astype(np.float64)).astype(kind)

    def joined(x):
        return x.reshape(x.shape[0], -1, call.group, *x.shape[2:]).sum(axis=2, dtype=kind)

    z = _columns(call, kind(call.scale) * (q @ np.swapaxes(k, -1, -2)), see, slice(None))
    m = np.maximum(z.max(axis=-1, keepdims=True, initial=-np.inf), sink_of(call, kind))
    m = np.where(np.isneginf(m), kind(0), m)
    e = np.exp(z - m)
    l = e.sum(axis=-1, keepdims=True, dtype=kind) + np.exp(sink_of(call, kind) - m)
    safe = np.where(l == 0, kind(1), l)
    o = short(short(e) @ v / safe)
    P = np.where(see, np.exp(z - (m + np.log(safe))), kind(0))
    delta = (dout * o).sum(axis=-1, keepdims=True, dtype=kind)
    dZ = P * (dout @ np.swapaxes(v, -1, -2) - delta)
    if call.softcap is not None:
        s = kind(call.scale) * (q @ np.swapaxes(k, -1, -2))
        dZ = dZ * (1 - np.tanh(s / kind(call.softcap)) ** 2)
    dS = short(np.where(see, dZ, kind(0)))
    grads = {
        "dq": kind(call.scale) * (dS @ k),
        "dk": joined(kind(call.scale) * (np.swapaxes(dS, -1, -2) @ q)),
        "dv": joined(np.swapaxes(short(P), -1, -2) @ dout),
    }
    return {name: from_layout(to(x.astype(np.float64)), call.layout, np.float64) for name, x in grads.items()}


def torch_backward(case):
    """PyTorch's own gradients of scaled_dot_product_attention, through its plain expressions on the CPU."""
    import torch

    call, see, to = read(case)
    kind = getattr(torch, case.dtype)
    leaves = [torch.from_numpy(np.nan_to_num(x)).to(kind).requires_grad_() for x in (call.q, call.k, call.v)]
    q, k, v = leaves[0], *(x.repeat_interleave(call.group, dim=1) for x in leaves[1:])
    mask = np.where(see, 0.0, -np.inf)
    if call.bias is not None:
        mask = mask + np.where(np.isfinite(call.bias), call.bias, 0.0)
    if call.slopes is not None:
        mask = mask - to(call.slopes[:, :, None, None] * key_distances(call))
    if call.sinks is not None:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (k, v))
        mask = np.concatenate([mask, np.broadcast_to(call.sinks[:, None, None], (*mask.shape[:3], 1))], axis=-1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.from_numpy(mask).to(kind), scale=call.scale
        )
    out.backward(torch.from_numpy(case.arrays["dout"]).to(kind))
    return {name: x.grad.double().numpy() for name, x in zip(("dq", "dk", "dv"), leaves, strict=True)}


KERNELS = {
    "fused_16": ("fused", partial(fused, block=16)),
    "fused_64": ("fused", partial(fused, block=64)),
    "fused_shuffled_base2": ("fused", partial(fused, block=16, shuffled=True, base2=True)),
    "split_kv": ("fused", split),
    "eager_scale_both": ("eager", eager),
    "eager_scale_query": ("eager", partial(eager, placement="query")),
    "eager_scale_after": ("eager", partial(eager, placement="after")),
    "low_sequential": ("low", low),
    "low_blocked": ("low", partial(low, order="blocked")),
    "low_pairwise": ("low", partial(low, order="pairwise")),
    "low_values": ("low", partial(low, wide=("score", "softmax"))),
    "low_softmax": ("low", partial(low, wide=("score", "value"))),
}
TORCH_KERNELS = {
    "torch_flash": ("eager", partial(torch_attention, math=False), partial(torch_takes, math=False)),
    "torch_math": ("eager", partial(torch_attention, math=True), partial(torch_takes, math=True)),
}
