"""Calls of attention with any mix of options, drawn from a seed."""

import numpy as np
import pytest


def _shapes(rng, lengths):
    batch, group, kv_heads = (int(n) for n in rng.integers(1, 3, 3))
    sq, sk = (int(n) for n in rng.integers(*lengths, 2))
    d, dv = (int(n) for n in rng.integers(1, 4, 2))
    return batch, group * kv_heads, kv_heads, sq, sk, d, dv


def _options(rng, batch, heads, sq, sk):
    def some(chance=0.35):
        return rng.random() < chance

    masked = np.where(rng.random((heads, sq, sk)) < 0.2, -np.inf, rng.normal(size=(heads, sq, sk)))
    candidates = {
        "causal": True,
        "window": tuple(None if some() else int(rng.integers(0, 4)) for _ in range(2)),
        "mask": rng.random((batch, 1, sq, sk)) < 0.6,
        "bias": masked if some(0.5) else masked[:, :, :1],
        "kv_lengths": rng.integers(0, sk + 1, batch),
        "q_lengths": rng.integers(0, sq + 1, batch),
        "prefix": int(rng.integers(0, 4)),
        "chunk": int(rng.integers(1, 4)),
        "softcap": 2.0,
        "alibi_slopes": rng.random((batch, heads)) if some(0.5) else rng.random(heads),
        "sinks": np.where(rng.random(heads) < 0.2, -np.inf, rng.normal(size=heads)),
        "scale": float(rng.normal()),
    }
    options = {name: value for name, value in candidates.items() if some()}
    if sk == 0:
        options.pop("bias", None)
    if some(0.2):
        options |= {"doc_q": rng.integers(0, 2, (batch, sq)), "doc_k": rng.integers(0, 2, (batch, sk))}
    aligns = ["top_left", "bottom_right", int(rng.integers(-3, 4)), rng.integers(-3, 4, batch)]
    return options | {"align": aligns[rng.integers(4)]}


@pytest.fixture(scope="session")
def draw_attention():
    """Return a function: a seed to (q, k, v, options), with lengths from 0 to 6 and options in any mix."""

    def draw(seed, lengths=(0, 7)):
        rng = np.random.default_rng(seed)
        batch, heads, kv_heads, sq, sk, d, dv = _shapes(rng, lengths)
        q = rng.normal(size=(batch, heads, sq, d))
        k, v = rng.normal(size=(batch, kv_heads, sk, d)), rng.normal(size=(batch, kv_heads, sk, dv))
        return q, k, v, _options(rng, batch, heads, sq, sk)

    return draw
