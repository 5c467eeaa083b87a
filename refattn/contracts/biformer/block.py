"""The block with every kind of attention: entry, laws and mistakes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refattn.conformance.cases import fill, generator, rounded
from refattn.conformance.contract import Case, Claim, Entry, Law
from refattn.contracts.biformer.block_bugs import BLOCK_BUGS, acts, norms_first, plain_layer_norm
from refattn.contracts.biformer.cases import FAMILIES, Shape, bra_weights
from refattn.contracts.biformer.margins import ascend, descriptor_margin
from refattn.layers.biformer_block import BlockWeights, biformer_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import SearchStrategy

    from refattn.conformance.contract import Probe

__all__ = ["BLOCK"]

Array = Any
_ROUNDS = 15  # the margin of a block costs a convolution and a norm each time


class _Parts(NamedTuple):
    """Sizes of a block and its optional parts."""

    B: int = 1
    H: int = 6
    W: int = 6
    C: int = 8
    ratio: int = 2
    kernel: int = 3
    position: bool = True
    mlp_conv: bool = False
    layer_scale: bool = False


def _weights(rng: np.random.Generator, parts: _Parts, topk: int) -> BlockWeights:
    C, E = parts.C, parts.ratio * parts.C
    attn = bra_weights(rng, Shape(C=C, kernel=parts.kernel))
    if topk == 0:
        attn = attn._replace(w_qkv=rng.standard_normal((C, C)) / np.sqrt(C), b_qkv=0.3 * rng.standard_normal(C))
    if topk < 0:
        attn = attn._replace(b_qkv=None)

    def near_one(size: int) -> np.ndarray:
        return 1.0 + 0.2 * rng.standard_normal(size)

    def small(*shape: int) -> np.ndarray:
        return 0.3 * rng.standard_normal(shape)

    return BlockWeights(
        attn,
        *(near_one(C), small(C), near_one(C), small(C)),
        *(rng.standard_normal((C, E)) / np.sqrt(C), small(E), rng.standard_normal((E, C)) / np.sqrt(E), small(C)),
        *((small(C, 3, 3), small(C)) if parts.position else (None, None)),
        *((rng.standard_normal((E, 3, 3)) / 3, small(E)) if parts.mlp_conv else (None, None)),
        *((near_one(C), near_one(C)) if parts.layer_scale else (None, None)),
    )


def _fast_positioned(x: Array, w: BlockWeights) -> Array:
    if w.pos_w is None:
        return x
    H, W = x.shape[1:3]
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    taps = [padded[:, i : i + H, j : j + W] * w.pos_w[:, i, j] for i in range(3) for j in range(3)]
    return x + sum(taps) + w.pos_b


def _routable(rng: np.random.Generator, noise: Array, w: BlockWeights, options: dict[str, Any]) -> Array:
    """Add a prototype for each region, so that what the block makes of it routes clearly."""
    S, topk = options["n_win"], options["topk"]
    H, W, C = noise.shape

    def image(P: Array) -> Array:
        tiles = np.repeat(np.repeat(P.reshape(-1, S, S, C), H // S, axis=1), W // S, axis=2)
        return 2.0 * tiles + noise

    def margin(P: Array) -> Array:
        y = _fast_positioned(image(P), w)
        y = plain_layer_norm(y, w.norm1_w, w.norm1_b) if options.get("pre_norm", True) else y
        means = y.reshape(-1, S, H // S, S, W // S, C).mean(axis=(2, 4)).reshape(-1, S * S, C)
        return descriptor_margin(means, w.attn, topk)

    return image(ascend(rng, rng.standard_normal((S * S, C)), margin, rounds=_ROUNDS))[0]


def _block(label: str, parts: _Parts, options: dict[str, Any], family: str, dtype: str, seed: int) -> Case:
    rng = generator(seed, label, family)
    weights = rounded(_weights(rng, parts, options["topk"]), dtype)
    x = fill(rng, (parts.B, parts.H, parts.W, parts.C), family)
    if options["topk"] > 0 and parts.B:
        x = np.stack([_routable(rng, noise, weights, options) for noise in x])
    arrays = {"x": rounded(x, dtype), "weights": weights}
    return Case("biformer_block", arrays, dict(options), dtype, f"{label}/{family}")


_ROUTED = {"num_heads": 2, "n_win": 3, "topk": 2}
_SPECS: dict[str, tuple[_Parts, dict[str, Any]]] = {
    "routed": (_Parts(B=2, kernel=5), _ROUTED),
    "dense_enhanced": (_Parts(H=4, W=5, C=16), {"topk": -2}),
    "post_norm_scaled": (_Parts(H=4, W=4, mlp_conv=True, layer_scale=True), _ROUTED | {"n_win": 2, "pre_norm": False}),
    "dense": (_Parts(H=4, W=3, C=16), {"topk": -1}),
    "convolution": (_Parts(H=5, W=4, kernel=5), {"topk": 0}),
    "pooled": (_Parts(H=4, W=4), _ROUTED | {"n_win": 2, "kv_pool": "ada_avgpool", "kv_per_region": 1}),
    "scalednorms_first": (_Parts(H=4, W=4, layer_scale=True), _ROUTED | {"n_win": 2}),
    "no_position": (_Parts(H=4, W=4, position=False), _ROUTED | {"n_win": 2, "topk": 1}),
    "dense_post_norm": (_Parts(H=3, W=3, mlp_conv=True), {"topk": -2, "pre_norm": False}),
    "empty_batch": (_Parts(B=0, H=4, W=4), _ROUTED | {"n_win": 2}),
}


@st.composite
def _drawn(draw: Any, dtype: str) -> Case:
    topk = draw(st.sampled_from((-2, -1, 0, 1, 2)))
    flags = [draw(st.booleans()) for _ in range(4)]
    kernel = 5 if topk == 0 else draw(st.sampled_from((0, 3)))
    parts = _Parts(1, 2 * draw(st.integers(1, 2)), 2 * draw(st.integers(1, 2)), 8, 2, kernel, *flags[:3])
    options = {"topk": topk, "pre_norm": flags[3]} | ({"num_heads": 2, "n_win": 2} if topk > 0 else {})
    return _block("drawn", parts, options, draw(st.sampled_from(FAMILIES)), dtype, draw(st.integers(0, 999)))


def _cases(dtype: str) -> SearchStrategy[Case]:
    return _drawn(dtype)


def _zero_scale_is_position(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    w = case.arrays["weights"]
    zero = np.zeros(case.arrays["x"].shape[-1])
    idle = case.having(weights=w._replace(gamma_1=zero, gamma_2=zero))
    x = case.arrays["x"]
    expected, slack = x, probe.slack(idle)["out"]
    if w.pos_w is not None:
        local = Case("depthwise_conv2d", {"x": x, "w": w.pos_w, "b": w.pos_b}, {}, case.dtype, case.label)
        expected, slack = x + probe(local)["out"], 2 * (slack + probe.slack(local)["out"])
    yield Claim(probe(idle)["out"], expected, slack)


def _post_norm_is_centred(probe: Probe, case: Case, _rng: np.random.Generator) -> Iterator[Claim]:
    C = case.arrays["x"].shape[-1]
    plain = case.having(weights=case.arrays["weights"]._replace(norm2_w=np.ones(C), norm2_b=np.zeros(C)))
    out = probe(plain)["out"]
    yield Claim(np.mean(out, axis=-1, keepdims=True), np.zeros((*out.shape[:-1], 1)), 2 * probe.slack(plain)["out"])


BLOCK = Entry(
    "biformer_block",
    biformer_block,
    ("x", "weights"),
    {name: partial(_block, name, *spec) for name, spec in _SPECS.items()},
    FAMILIES,
    _cases,
    smoke=tuple((name, "normal") for name in ("routed", "dense_enhanced", "post_norm_scaled", "dense_post_norm")),
    laws=(
        Law(
            "zero_scale_is_position",
            "With layer scale 0 a pre-norm block adds the position embedding and nothing else.",
            _zero_scale_is_position,
            norms_first,
            needs=("depthwise_conv2d",),
            witness="scale_the_sum",
        ),
        Law(
            "post_norm_is_centred",
            "A post-norm block whose last norm has neither scale nor shift returns tokens of mean 0.",
            _post_norm_is_centred,
            lambda case: acts(case) and not norms_first(case),
            witness="norm_always_first",
        ),
    ),
    bugs=BLOCK_BUGS,
    differentiable=("x",),
    axes={"x": ("B", "H", "W", "C")},
)
