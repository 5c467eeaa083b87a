"""Stacks of attention variants: which layer is of which kind, the second stream of the fixed ones, layers left out.

Blocks are those of Qwen2.5, pre-norm, with as many key-value heads as heads (2510.11602, section 4.2).
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.deconstructed import (
    FIXED,
    VARIANTS,
    AttentionWeights,
    MLPWeights,
    attend,
    attention_map,
    gated_mlp,
)
from refattn.primitives.arguments import as_float, as_integer, require, require_one_of
from refattn.primitives.norms import rms_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PLANS", "BlockWeights", "StackOutput", "StackWeights", "forward_stack", "layer_plan", "skip_plan"]

PLANS = ("uniform", "hybrid", "even", "odd", "top", "middle", "bottom", "25%", "first", "last", "bilateral")


class BlockWeights(NamedTuple):
    """One block: the weights of two norms (d,), of the attention, and of the feed-forward network."""

    norm_attention: Any
    attention: AttentionWeights
    norm_mlp: Any
    mlp: MLPWeights


class StackWeights(NamedTuple):
    """The embedding table (vocabulary, d) and the blocks."""

    embedding: Any
    blocks: tuple[BlockWeights, ...]


class StackOutput(NamedTuple):
    """The stream after the last block (..., L, d), a map or None for each block run, and the reference stream."""

    hidden: Any
    maps: tuple[Any, ...]
    reference_hidden: Any


def layer_plan(n_layers: int, config: str, variant: str) -> tuple[str, ...]:
    """Return the kind of each layer.

    Parameters
    ----------
    n_layers : int
        N; 24 in the paper.
    config : str
        ``uniform``: no layer is standard. Otherwise the name says which are, counted from 1: ``even`` (``hybrid`` is
        another name for it), ``odd``, ``top`` (the first half), ``bottom`` (the second), ``middle`` (the first and the
        last quarter), ``25%`` (every fourth), ``first``, ``last``, ``bilateral`` (both ends).
    variant : str
        What the other layers are.

    Returns
    -------
    tuple of str

    Raises
    ------
    ValueError
        For an unknown name, or no layer.

    Notes
    -----
    For depths other than 24 halves and quarters are rounded down [our definition]. The text of the paper's section 6
    describes ``bottom`` differently from its Table 11, which is followed here.
    """
    require(index(n_layers) >= 1, f"n_layers={n_layers!r} must be >= 1")
    require_one_of("config", config, PLANS)
    require_one_of("variant", variant, VARIANTS)
    numbers = range(1, n_layers + 1)
    half, quarter = n_layers // 2, n_layers // 4
    standard = {
        "uniform": (),
        "hybrid": numbers[1::2],
        "even": numbers[1::2],
        "odd": numbers[::2],
        "top": numbers[:half],
        "middle": (*numbers[:quarter], *numbers[n_layers - quarter :]),
        "bottom": numbers[half:],
        "25%": numbers[3::4],
        "first": numbers[:1],
        "last": numbers[-1:],
        "bilateral": (1, n_layers),
    }[config]
    # eq: dec-plan
    return tuple("standard" if number in standard else variant for number in numbers)


def skip_plan(plan: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers, from 1, of the odd layers: what is left out of a trained hybrid to see whether it matters."""
    return tuple(range(1, len(plan) + 1, 2))


def forward_stack(
    tokens: Any,
    params: StackWeights,
    plan: Sequence[str],
    *,
    n_heads: int,
    reference_embeddings: Any = None,
    reference_tokens: Any = None,
    skip: Sequence[int] = (),
    normalize_static: bool = False,
    norm_eps: float = 1e-6,
    rotary_base: float | None = None,
) -> StackOutput:
    """Run tokens through a stack, and beside them the reference stream if a layer asks for one.

    1. Embed the tokens, and the reference.
    2. In each block that is not skipped find the map, from the source that the variant names.
    3. Advance both streams: attention, then the feed-forward network, each added to its input.

    Parameters
    ----------
    tokens : array_like of int, shape (..., L)
        Rows of the embedding table.
    params : StackWeights
        Embedding and blocks.
    plan : sequence of str
        A variant for each block, from `layer_plan` or by hand.
    n_heads : int
        h.
    reference_embeddings : array_like, shape (at least L, d)
        Where the reference of ``random_fixed`` starts; see `refattn.layers.deconstructed_init.random_reference`.
    reference_tokens : array_like of int, shape (at least L,)
        The text of ``text_fixed``.
    skip : sequence of int
        Numbers, from 1, of the blocks that are left out, feed-forward network included.
    normalize_static : bool
        Pass the embeddings of ``static_emb`` through the norm of the layer; the paper does not.
    norm_eps : float
        ε of the norms.
    rotary_base : float, optional
        As in `refattn.layers.deconstructed.attention_map`.

    Returns
    -------
    StackOutput
        ``reference_hidden`` is None where no layer needs a reference. Maps of fixed layers have no batch axis.

    Raises
    ------
    ValueError
        For a plan unlike the blocks, an unknown variant, both kinds of fixed layers in one plan, a token outside the
        table, a layer to skip that is not there, or a reference that is missing, unfitting or too short.

    Notes
    -----
    How the reference advances is not spelled out in the paper. Here it goes through the same weights with its own
    values, and in layers that are not fixed through their own kind of attention [inferred]. A final norm and the
    vocabulary matrix are left to the caller.
    """
    tokens = _token_ids("tokens", tokens, params)
    _check_plan(plan, params, skip)
    run = [(plan[i], block) for i, block in enumerate(params.blocks) if i + 1 not in skip]
    hidden = static = params.embedding[tokens]  # (..., L, d)
    X = X_1 = _reference([kind for kind, _ in run], reference_embeddings, reference_tokens, tokens.shape[-1], params)
    options: dict[str, Any] = {"n_heads": n_heads, "rotary_base": rotary_base}
    maps = []
    for variant, block in run:
        H = rms_norm(hidden, block.norm_attention, eps=norm_eps)  # (..., L, d)
        e, e_X = (_static(x, block, norm_eps, on=normalize_static) for x in (static, X_1))
        Xn = None if X is None else rms_norm(X, block.norm_attention, eps=norm_eps)  # (L, d)
        source = {"static_emb": e, **dict.fromkeys(FIXED, Xn)}.get(variant, H)
        A = None if variant == "mlp" else attention_map(source, block.attention, variant=variant, **options)
        maps.append(A)
        hidden = _advance(hidden, H, A, block, norm_eps)
        if X is not None:
            own = e_X if variant == "static_emb" else Xn
            # a fixed layer's map is already the reference's own
            A = A if A is None or variant in FIXED else attention_map(own, block.attention, variant=variant, **options)
            X = _advance(X, Xn, A, block, norm_eps)
    return StackOutput(hidden, tuple(maps), X)


def _advance(hidden: np.ndarray, H: Any, A: Any, block: BlockWeights, norm_eps: float) -> np.ndarray:
    """Add what the two halves of a block make of a stream."""
    attention = block.attention
    mixed = gated_mlp(H, MLPWeights(*attention[:3])) @ attention.W_O if A is None else attend(A, H, attention)
    # eq: dec-block
    hidden = hidden + mixed  # (..., L, d)
    return np.asanyarray(hidden + gated_mlp(rms_norm(hidden, block.norm_mlp, eps=norm_eps), block.mlp))


def _static(embedded: Any, block: BlockWeights, norm_eps: float, *, on: bool) -> Any:
    return rms_norm(embedded, block.norm_attention, eps=norm_eps) if on and embedded is not None else embedded


def _reference(kinds: list[str], embeddings: Any, tokens: Any, length: int, params: StackWeights) -> Any:
    """Return where the reference stream starts, X_1 of shape (L, d), or None if no layer looks at it."""
    found = [kind for kind in FIXED if kind in kinds]
    require(len(found) < 2, "plan has random_fixed and text_fixed layers, but there is one reference stream")
    if not found:
        return None
    name = {"random_fixed": "reference_embeddings", "text_fixed": "reference_tokens"}[found[0]]
    given = {"reference_embeddings": embeddings, "reference_tokens": tokens}[name]
    require(given is not None, f"{name}=None, but the plan has {found[0]} layers")
    by_name = name == "reference_tokens"
    X = params.embedding[_token_ids(name, given, params)] if by_name else as_float(name, given)  # (at least L, d)
    d = params.embedding.shape[-1]
    require(X.ndim == 2 and X.shape[-1] == d, f"{name} has shape {np.shape(given)}, expected one sequence of width {d}")
    require(
        X.shape[-2] >= length,
        f"{name} has length {X.shape[-2]}: the reference sequence must cover the input length {length}",
    )
    # eq: dec-stream
    return X[:length]


def _token_ids(name: str, value: Any, params: StackWeights) -> np.ndarray:
    tokens = as_integer(name, value)
    require(
        tokens.ndim >= 1 and tokens.shape[-1] > 0, f"{name} has shape {tokens.shape}, expected (..., L) with L >= 1"
    )
    vocabulary = params.embedding.shape[0]
    require(
        tokens.min(initial=0) >= 0 and tokens.max(initial=0) < vocabulary,
        f"{name} must lie in [0, {vocabulary}), the rows of the embedding table",
    )
    return tokens


def _check_plan(plan: Sequence[str], params: StackWeights, skip: Sequence[int]) -> None:
    n_layers = len(params.blocks)
    require(len(plan) == n_layers, f"plan has length {len(plan)}, expected one variant for each of {n_layers} blocks")
    for variant in plan:
        require_one_of("plan", variant, VARIANTS)
    for number in skip:
        require(1 <= index(number) <= n_layers, f"skip={tuple(skip)!r} must hold layer numbers from 1 to {n_layers}")
