"""How sentence attention grows with the picture and the sentence, and what the portable twin gains; one thread.

``pytest tests/benchmarks/test_sentence_attention_speed.py --benchmark-only`` prints times; running this file prints
fitted exponents beside the expected ones, and ratios. Nothing is asserted on time. Caches bend the exponents: small
maps fit into them, large ones do not.
"""

import time
from itertools import pairwise

import numpy as np
import pytest

from refattn.backends.portable import sentence_attention as portable
from refattn.layers import sentence_attention as reference
from refattn.layers import sentence_attention_head as reference_head
from refattn.layers.sentence_attention import SentenceAttentionWeights
from refattn.layers.sentence_attention_head import MergeWeights

SIDES = (128, 256, 512)
WIDTHS = (256, 512, 1024)
PYRAMID = ((32, 120), (48, 60), (80, 30), (224, 15), (640, 8))  # channels of EfficientNet-b7, pixels a side


def block(rng, width, channels):
    """Draw a block; its hidden layer is four times as wide as the sentence."""
    w1, w2 = rng.standard_normal((width, 4 * width)), rng.standard_normal((4 * width, channels))
    ones = np.ones(4 * width)
    return SentenceAttentionWeights(w1 / width**0.5, 0 * ones, ones, 0 * ones, w2 / width**0.5, np.zeros(channels))


def picture(side, channels=8):
    """Return features, a short sentence and a block."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, channels, side, side)), rng.standard_normal((1, 8)), block(rng, 8, channels)


def sentences(width, batch=64):
    """Return sentences and a block."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, width)), block(rng, width, 32)


def pyramid():
    """Return what the head takes, at the official widths."""
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((1, channels, side, side)) for channels, side in PYRAMID]
    widths = [channels for channels, _ in PYRAMID]
    merges = [
        MergeWeights(rng.standard_normal((low, high)) / low**0.5, *np.ones((4, high))) for high, low in pairwise(widths)
    ]
    gates = [block(rng, 384, channels) for channels in widths]
    return maps, rng.standard_normal((1, 384)), gates, merges, rng.standard_normal((32, 1)), np.zeros(1), (240, 240)


@pytest.mark.parametrize("side", SIDES)
def test_block(benchmark, side):
    """The output has the shape of the picture."""
    features, text, weights = picture(side)
    assert benchmark(reference.sentence_attention, features, text, weights).shape == features.shape


@pytest.mark.parametrize("way", [reference_head, portable], ids=["reference", "portable"])
def test_head(benchmark, way):
    """The mask has the size that was asked for."""
    assert benchmark(way.answer_grounding_head, *pyramid()).shape == (1, 1, 240, 240)


def fastest(function, repeats=7):
    """Return the shortest of some runs, in seconds of processor time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def exponent(sizes, seconds):
    """Return the fitted power."""
    return np.polyfit(np.log(sizes), np.log(seconds), 1)[0]


def main():
    """Print exponents and ratios."""
    pictures = [picture(side) for side in SIDES]
    grown = [fastest(lambda p=p: reference.sentence_attention(*p)) for p in pictures]
    print(f"block, {SIDES[0]}² to {SIDES[-1]}² pixels: exponent {exponent(np.square(SIDES), grown):.2f}, expected 1")
    asked = [sentences(width) for width in WIDTHS]
    spoken = [fastest(lambda s=s: reference.sentence_gate(*s)) for s in asked]
    print(f"gate, D = {WIDTHS[0]} to {WIDTHS[-1]}: exponent {exponent(WIDTHS, spoken):.2f}, expected 2")
    rng = np.random.default_rng(0)
    largest = rng.standard_normal((1, 640, 19, 19)), rng.standard_normal((1, 384)), block(rng, 384, 640)
    whole = pyramid()
    for name, way, other, call in (
        ("block, D = 384, C = 640, 19²", reference.sentence_attention, portable.sentence_attention, largest),
        ("head, five scales", reference_head.answer_grounding_head, portable.answer_grounding_head, whole),
    ):
        ratio = fastest(lambda f=way, c=call: f(*c)) / fastest(lambda f=other, c=call: f(*c))
        print(f"{name}: reference / portable = {ratio:.2f}")


if __name__ == "__main__":
    main()
