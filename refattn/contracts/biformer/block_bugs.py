"""Mistakes that people make in the block, each one wrong step of a plain version."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from refattn.conformance.contract import Bug
from refattn.contracts.biformer.straight import correlate, softmax, straight_layer
from refattn.layers.biformer import BRAWeights
from refattn.layers.biformer_block import BlockWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from refattn.conformance.contract import Case

__all__ = ["BLOCK_BUGS", "acts", "norms_first", "plain_layer_norm"]

Array = Any


def plain_layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> Array:
    """Return the layer normalisation of the last axis."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps) * weight + bias


def _positioned(x: Array, w: BlockWeights) -> Array:
    return x if w.pos_w is None else x + _convolved(x, w.pos_w, w.pos_b)


def _convolved(x: Array, kernel: Array, bias: Array) -> Array:
    out = np.stack([correlate(image, kernel) for image in x]) if len(x) else np.zeros(x.shape)
    return out if bias is None else out + bias


def _gelu(x: Array) -> Array:
    return x * special.ndtr(x)


def _gelu_by_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _dense_scale(C: int) -> float:
    return float((C // 8) ** -0.5)


def _full_width_scale(C: int) -> float:
    return float(C**-0.5)


def _dense_local(x: Array, _v: Array, w: BRAWeights) -> Array:
    return _convolved(x, w.lepe_w, w.lepe_b)


def _enhanced_values(_x: Array, v: Array, w: BRAWeights) -> Array:
    return _convolved(v, w.lepe_w, w.lepe_b)


def _dense(
    x: Array, w: BRAWeights, scale: Callable[..., float], local: Callable[..., Array], *, enhance: bool
) -> Array:
    B, H, W, C = x.shape
    u = x @ w.w_qkv
    q, k, v = (u[..., i * C : (i + 1) * C].reshape(B, H * W, 8, C // 8).swapaxes(1, 2) for i in range(3))
    P = softmax(scale(C) * q @ np.swapaxes(k, -1, -2))
    out = (P @ v).swapaxes(1, 2).reshape(B, H, W, C)
    if enhance and w.lepe_w is not None:
        out = out + local(x, u[..., 2 * C :], w)
    return _mapped(out, w.w_o, w.b_o)


def _mapped(x: Array, w: Array, b: Array) -> Array:
    x = x if w is None else x @ w
    return x if b is None else x + b


def _mlp(y: Array, w: BlockWeights, gelu: Callable[..., Array]) -> Array:
    y = _mapped(y, w.w_1, w.b_1)
    y = y if w.mlp_w is None else _convolved(y, w.mlp_w, w.mlp_b)
    return _mapped(gelu(y), w.w_2, w.b_2)


def _mlp_convolved_late(y: Array, w: BlockWeights, gelu: Callable[..., Array]) -> Array:
    y = gelu(_mapped(y, w.w_1, w.b_1))
    y = y if w.mlp_w is None else _convolved(y, w.mlp_w, w.mlp_b)
    return _mapped(y, w.w_2, w.b_2)


def _add(x: Array, gamma: Array, branch: Array) -> Array:
    return x + (branch if gamma is None else gamma * branch)


def _scale_the_sum(x: Array, gamma: Array, branch: Array) -> Array:
    return x + branch if gamma is None else gamma * (x + branch)


def _position_alone(x: Array, w: BlockWeights) -> Array:
    return x if w.pos_w is None else _convolved(x, w.pos_w, w.pos_b)


def _no_position(x: Array, w: BlockWeights) -> Array:
    del w
    return x


def _straight_block(
    x: Array,
    weights: BlockWeights,
    *,
    topk: int = 4,
    pre_norm: bool = True,
    eps: float = 1e-6,
    position: Callable[..., Array] = _positioned,
    gelu: Callable[..., Array] = _gelu,
    mlp: Callable[..., Array] = _mlp,
    add: Callable[..., Array] = _add,
    dense_scale: Callable[..., float] = _dense_scale,
    dense_local: Callable[..., Array] = _dense_local,
    norm_kept: bool = False,
    shared_norm: bool = False,
    **options: Any,
) -> Array:
    """Compute the block plainly, with steps that can be wrong."""
    w = BlockWeights(*weights)
    a = BRAWeights(*w.attn)

    def attend(y: Array) -> Array:
        if topk > 0:
            return straight_layer(y, a, topk=topk, **options)
        if topk == 0:
            return _mapped(_convolved(_mapped(y, a.w_qkv, a.b_qkv), a.lepe_w, a.lepe_b), a.w_o, a.b_o)
        return _dense(y, a, dense_scale, dense_local, enhance=topk == -2)

    def norm1(y: Array) -> Array:
        return plain_layer_norm(y, w.norm1_w, w.norm1_b, eps)

    def norm2(y: Array) -> Array:
        return norm1(y) if shared_norm else plain_layer_norm(y, w.norm2_w, w.norm2_b, eps)

    x = position(x, w)
    if not pre_norm:
        x = norm1(add(x, w.gamma_1, attend(x)))
        return norm2(add(x, w.gamma_2, mlp(x, w, gelu)))
    y = norm1(x)
    x = add(y if norm_kept else x, w.gamma_1, attend(y))
    return add(x, w.gamma_2, mlp(norm2(x), w, gelu))


def _norm_always_first(x: Array, weights: BlockWeights, *, pre_norm: bool = True, **options: Any) -> Array:
    del pre_norm
    return _straight_block(x, weights, pre_norm=True, **options)


def acts(case: Case) -> bool:
    """Whether the case holds any token."""
    return bool(case.arrays["x"].size > 0)


def _has(name: str) -> Callable[[Case], bool]:
    return lambda case: acts(case) and getattr(case.arrays["weights"], name) is not None


def _is_dense(case: Case) -> bool:
    return acts(case) and case.options["topk"] in (-1, -2)


def norms_first(case: Case) -> bool:
    """Whether the case is a pre-norm block that holds any token."""
    return acts(case) and bool(case.options.get("pre_norm", True))


def _swap(step: str, wrong: Callable[..., Any], description: str, remedy: str, applies: Callable[[Case], bool]) -> Bug:
    change: dict[str, Any] = {step: wrong}
    return Bug(
        wrong.__name__.removeprefix("_"),
        description,
        partial(_straight_block, **change),
        applies,
        source=wrong,
        remedy=remedy,
    )


BLOCK_BUGS = (
    _swap(
        "position",
        _no_position,
        "the position embedding is left out",
        "x ← x + dwconv(x) comes first.",
        _has("pos_w"),
    ),
    _swap(
        "position",
        _position_alone,
        "the position embedding replaces the input instead of being added to it",
        "x ← x + dwconv(x).",
        _has("pos_w"),
    ),
    _swap(
        "add",
        _scale_the_sum,
        "layer scale multiplies the sum instead of the branch",
        "x ← x + γ · branch.",
        _has("gamma_1"),
    ),
    _swap(
        "mlp",
        _mlp_convolved_late,
        "the MLP's convolution comes behind the GELU",
        "Linear, convolution, GELU, linear.",
        _has("mlp_w"),
    ),
    _swap(
        "dense_scale",
        _full_width_scale,
        "dense attention scales by the full width, as routed attention does",
        "Dense attention scales by the width of a head.",
        _is_dense,
    ),
    _swap(
        "dense_local",
        _enhanced_values,
        "dense attention's local enhancement convolves the values, as routed attention does",
        "The released dense layer convolves its input.",
        lambda case: acts(case) and case.options["topk"] == -2 and case.arrays["weights"].attn.lepe_w is not None,
    ),
    Bug(
        "norm_always_first",
        "the norm stands before the branches although it belongs behind the sums",
        _norm_always_first,
        lambda case: acts(case) and not norms_first(case),
        remedy="With pre_norm=False: x ← norm(x + γ · branch(x)).",
    ),
    Bug(
        "normalised_residual",
        "the branch is added to the normalised input",
        partial(_straight_block, norm_kept=True),
        norms_first,
        remedy="The residual stream itself is never normalised.",
    ),
    Bug(
        "shared_norm",
        "both norms use the parameters of the first",
        partial(_straight_block, shared_norm=True),
        acts,
        remedy="The MLP has a norm of its own.",
    ),
    Bug(
        "gelu_by_tanh",
        "GELU is approximated by a hyperbolic tangent",
        partial(_straight_block, gelu=_gelu_by_tanh),
        acts,
        dtypes=("float64", "float32"),
        source=_gelu_by_tanh,
        remedy="GELU(x) = x Φ(x), with the error function.",
    ),
)
