"""The transformer at GPT-2's size: against Hugging Face's eager forward, and with the cache against without."""

import time
from importlib.util import find_spec

import numpy as np
import pytest

from refattn.transformer.config import parse_config
from refattn.transformer.forward import forward
from refattn.transformer.generation import generate
from refattn.transformer.weights import random_transformer

GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}


def gpt2():
    return random_transformer(parse_config(GPT2), np.random.default_rng(0), dtype=np.float32)


def tokens(length):
    return np.random.default_rng(1).integers(0, GPT2["vocab_size"], (1, length))


def shortest(call, repeats=5):
    call()
    best = np.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def theirs(ids, threads):
    """Return the seconds of Hugging Face's forward pass of the same shape."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    loaded = GPT2LMHeadModel(GPT2Config(attn_implementation="eager")).eval()
    with torch.no_grad():
        return shortest(lambda: loaded(torch.tensor(ids), use_cache=False))


def per_token(model, length, *, cached):
    """Return the seconds of one more token after ``length``."""
    ids = tokens(length)
    if not cached:
        return shortest(lambda: generate(model, ids, 1), repeats=2)
    past = forward(model, ids).kv_cache
    return shortest(lambda: forward(model, ids[:, -1:], cache=past))


@pytest.mark.parametrize("cached", [True, False])
def test_generation(benchmark, cached):
    """One more token after 128, with the cache and without."""
    model, ids = gpt2(), tokens(128)
    past = forward(model, ids).kv_cache
    benchmark(forward, model, ids[:, -1:] if cached else ids, cache=past if cached else None)


def main():
    """Print each ratio beside its bar."""
    import resource

    model, ids = gpt2(), tokens(128)
    ours = shortest(lambda: forward(model, ids))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"forward of {GPT2['n_layer']} layers, 128 tokens, float32: {ours:.2f} s, peak memory {peak:.2f} GiB (bar 2)")
    if find_spec("transformers"):
        ratio = theirs(ids, 1) / ours
        print(f"speed against Hugging Face eager, one thread each: {ratio:.2f}x (bar 0.5; run with OMP_NUM_THREADS=1)")
    without, with_cache = per_token(model, 256, cached=False), per_token(model, 256, cached=True)
    print(f"one more token at 256: the cache is {without / with_cache:.1f}x faster (bar 10)")


if __name__ == "__main__":
    main()
