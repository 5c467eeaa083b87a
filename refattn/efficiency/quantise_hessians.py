"""What calibration data says of the matrices of one block: their input, output and residual second moments.

Shapes: B sequences, T tokens, n = B·T, H query heads, G key/value heads, d model width, e head width, m MLP width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.efficiency.quantise_pull_back import pull_back_norm
from refattn.efficiency.turboboa_hessians import pull_back_rotation
from refattn.primitives.masks import causal_mask, window_mask
from refattn.transformer.block import LayerSetting, block_output
from refattn.transformer.forward import angles_at
from refattn.transformer.hooks import BlockPoints, HookPoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refattn.transformer.config import TransformerConfig
    from refattn.transformer.weights import BlockWeights

__all__ = ["Moments", "block_moments", "run_block"]

_CHUNK = 2**22
"""Numbers in the largest array of one pass: sequences are run in groups that keep to it."""


class Moments(NamedTuple):
    """Second moments of one matrix: of its input, of what reads its output, and of the error of its input.

    Attributes
    ----------
    input : ndarray, shape (d_in, d_in) or (G, d_in, d_in)
        H_in; one for each head where heads see different inputs.
    output : ndarray, shape (heads, e, e), or None
        H_out; None where rows of the matrix are independent.
    residual : ndarray, shaped as ``input``, or None
        (2/n) Σ (x_fp − x) xᵀ, not yet multiplied by α; None where nothing before was quantised.
    """

    input: np.ndarray
    output: Any = None
    residual: Any = None


class _View(NamedTuple):
    """The inputs of the matrices of a block, rows by columns, what meets queries and keys, and the block's output."""

    inputs: dict[str, np.ndarray]  # by `_READS`: (n, d), value (G, gn, d)
    queries: np.ndarray  # (H, n, e), as they enter the scores
    keys: np.ndarray  # (G, n, e)
    output: np.ndarray  # (B, T, d)


_READS = {
    "W_Q": "attention",
    "W_K": "attention",
    "W_V": "mixed",
    "W_O": "heads",
    "W_gate": "mlp",
    "W_in": "mlp",
    "W_out": "hidden",
}
"""Which input each matrix reads, in the order in which they are quantised."""


def block_moments(
    x: np.ndarray,
    x_full: np.ndarray,
    weights: BlockWeights,
    config: TransformerConfig,
    layer: int,
) -> tuple[dict[str, Moments], np.ndarray]:
    """Run calibration data through a block that is not quantised yet, and measure what each of its matrices sees.

    Parameters
    ----------
    x : ndarray, shape (B, T, d)
        The residual stream as the quantised blocks before leave it.
    x_full : ndarray, shape (B, T, d)
        The residual stream of the original model; pass the same object where no block was quantised.
    weights : BlockWeights
        The original block.
    config : TransformerConfig
        Of the model.
    layer : int
        Which block it is.

    Returns
    -------
    moments : dict of str to Moments
        By the names of the matrices, in the order in which they are to be quantised.
    x_full : ndarray, shape (B, T, d)
        The original stream after the block.

    Notes
    -----
    H_in of queries and keys is that of their common input X, H_in of values per key/value head that of A_h X, averaged
    over the query heads that share it; the others have their own input's. H_out of queries is (2/n) K_hᵀK_h, H_out of
    keys (2/n) Q_hᵀQ_h averaged over the query heads of a group; both are taken where scores are formed and pulled back
    to where the matrix writes, see `refattn.efficiency.quantise_pull_back`.

    A head whose partner is zero everywhere has no influence on scores; its H_out is the identity [our definition], so
    that its rows are quantised as if nobody read them: independently.
    """
    mean = _Mean()
    raw: dict[str, list[np.ndarray]] = {"Q": [], "K": []}
    outputs = []
    for part in _parts(x_full.shape, config):
        full = _view(x_full[part], weights, config, layer)
        seen = full if x is x_full else _view(x[part], weights, config, layer)
        for name, value in seen.inputs.items():
            mean.add(f"input {name}", _moment(value, value), len(x[part]))
            if x is not x_full:
                mean.add(f"residual {name}", _moment(full.inputs[name] - value, value), len(x[part]))
        for name, heads in (("queries", seen.queries), ("keys", seen.keys)):
            mean.add(name, _moment(heads, heads), len(x[part]))  # (H, e, e), (G, e, e)
        if config.qk_norm:
            for name, parts in raw.items():
                parts.append(_raw_heads(seen.inputs["attention"], weights, name))
        outputs.append(full.output)
    output = _output_moments(mean.values, raw, weights, config, x.shape[1])
    moments = {
        name: Moments(mean.values[f"input {reads}"], output.get(name), mean.values.get(f"residual {reads}"))
        for name, reads in _READS.items()
        if getattr(weights, name) is not None
    }
    return moments, np.concatenate(outputs)


def run_block(x: np.ndarray, weights: BlockWeights, config: TransformerConfig, layer: int) -> np.ndarray:
    """Pass a residual stream (B, T, d) through a block."""
    nobody = BlockPoints(HookPoints(config), layer)
    parts = [
        block_output(x[part], weights, None, _setting(x.shape[1], config, layer), nobody)[0]
        for part in _parts(x.shape, config)
    ]
    return np.concatenate(parts)


def _output_moments(
    values: dict[str, np.ndarray],
    raw: dict[str, list[np.ndarray]],
    weights: BlockWeights,
    config: TransformerConfig,
    t: int,
) -> dict[str, np.ndarray]:
    """Return H_out of queries (H, e, e) and of keys (G, e, e)."""
    heads, groups = config.n_heads, config.n_kv_heads
    queries, keys = values["queries"], values["keys"]
    shared = queries.reshape(groups, heads // groups, *queries.shape[1:]).mean(axis=1)  # (G, e, e)
    angles = angles_at(np.arange(t)[None], config)
    moments = {
        "Q": np.repeat(pull_back_rotation(keys, None if angles is None else angles[0]), heads // groups, axis=0),
        "K": pull_back_rotation(shared, None if angles is None else angles[0]),
    }
    if config.qk_norm:
        norms = {"Q": weights.q_norm, "K": weights.k_norm}
        moments = {
            name: pull_back_norm(moment, np.concatenate(raw[name]), norms[name], config.norm_eps)
            for name, moment in moments.items()
        }
    return {f"W_{name}": _unread_as_identity(moment) for name, moment in moments.items()}


def _unread_as_identity(moment: np.ndarray) -> np.ndarray:
    """Replace the moments (heads, e, e) of heads that nobody reads by the identity."""
    unread = ~np.any(moment, axis=(1, 2), keepdims=True)
    return np.where(unread, np.eye(moment.shape[-1]), moment)


def _view(x: np.ndarray, weights: BlockWeights, config: TransformerConfig, layer: int) -> _View:
    rotated = "" if config.rope is None else "rot_"
    kept = {
        "normed": "ln1.hook_normalized",
        "queries": f"attn.hook_{rotated}q",
        "keys": f"attn.hook_{rotated}k",
        "pattern": "attn.hook_pattern",
        "heads": "attn.hook_z",
        "mlp": "ln2.hook_normalized",
        "hidden": "mlp.hook_post",
    }
    points = HookPoints(config, None, [f"blocks.{layer}.{name}" for name in kept.values()])
    output, _ = block_output(x, weights, None, _setting(x.shape[1], config, layer), BlockPoints(points, layer))
    seen = {short: points.activations[f"blocks.{layer}.{name}"] for short, name in kept.items()}
    n = x.shape[0] * x.shape[1]
    attention = _scaled(seen["normed"], weights.ln1_w, weights.ln1_b)  # X (B, T, d)
    inputs = {
        "attention": attention.reshape(n, -1),
        "mixed": _mixed(seen["pattern"], attention, config.n_kv_heads),
        "heads": seen["heads"].reshape(n, -1),
        "mlp": _scaled(seen["mlp"], weights.ln2_w, weights.ln2_b).reshape(n, -1),
        "hidden": seen["hidden"].reshape(n, -1),
    }
    queries, keys = (np.moveaxis(seen[name], 2, 0) for name in ("queries", "keys"))  # (H or G, B, T, e)
    return _View(inputs, queries.reshape(len(queries), n, -1), keys.reshape(len(keys), n, -1), output)


def _mixed(pattern: np.ndarray, x: np.ndarray, groups: int) -> np.ndarray:
    """Return A_h X, the rows of all query heads of a group together: (B, H, T, S), (B, S, d) to (G, gBT, d)."""
    mixed = pattern @ x[:, None]  # (B, H, T, d)
    batch, heads, t, d = mixed.shape
    return np.asarray(np.moveaxis(mixed.reshape(batch, groups, heads // groups, t, d), 1, 0).reshape(groups, -1, d))


def _scaled(normalised: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return np.asarray(normalised * weight if bias is None else normalised * weight + bias)


def _raw_heads(x: np.ndarray, weights: BlockWeights, name: str) -> np.ndarray:
    """Return queries or keys before their norm: (n, d) to (n, heads, e)."""
    return np.asarray(np.swapaxes(x @ getattr(weights, f"W_{name}"), 0, 1) + getattr(weights, f"b_{name}"))


def _moment(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (2/n) Σ x yᵀ in float64: (..., n, a) and (..., n, b) to (..., a, b)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)  # float32 products are not symmetric enough
    return np.asarray(2.0 / x.shape[-2] * (np.swapaxes(x, -1, -2) @ y))


def _setting(t: int, config: TransformerConfig, layer: int) -> LayerSetting:
    """Return how a block sees whole sequences from position 0."""
    window = config.window[layer]
    visible = causal_mask(t, t) & window_mask(t, t, None if window is None else window - 1, None)
    return LayerSetting(config, layer, np.asarray(visible)[None], angles_at(np.arange(t)[None], config), ())


def _parts(shape: tuple[int, ...], config: TransformerConfig) -> Iterator[slice]:
    """Yield groups of sequences whose attention fits into `_CHUNK` numbers."""
    batch, t, d = shape
    size = max(1, _CHUNK // (config.n_heads * t * max(t, d)))
    return (slice(begin, begin + size) for begin in range(0, batch, size))


class _Mean:
    """Means of several arrays over groups of sequences, by name."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.weights: dict[str, int] = {}

    def add(self, name: str, value: np.ndarray, weight: int) -> None:
        before = self.weights.get(name, 0)
        self.weights[name] = before + weight
        share = weight / self.weights[name]
        self.values[name] = value if not before else self.values[name] * (1.0 - share) + value * share
