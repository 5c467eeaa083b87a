"""HyLRA on a running transformer: one hook that profiles its layers, and one that makes layers reuse key sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.interventions.hylra import attend_full, attend_reuse, group_weights
from refattn.interventions.hylra_policy import LayerPolicy
from refattn.interventions.hylra_profile import check_budget, critical_mask, hash_ratio, layer_overlap
from refattn.primitives.arguments import as_integer, require, require_one_of
from refattn.transformer.intervention import Intervention

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HyLRAHook", "LayerProfile", "ProfileHook"]


class LayerProfile(NamedTuple):
    """What the offline stage knows of the layers, from S decode steps.

    Attributes
    ----------
    overlap : ndarray, shape (H, L, L)
        From `layer_overlap`, for each key head.
    rnmse : ndarray, shape (L,)
        How far each output moves if the layer keeps its own critical keys only.
    ratios : ndarray, shape (H, S, L)
        From `hash_ratio`.
    """

    overlap: np.ndarray
    rnmse: np.ndarray
    ratios: np.ndarray


class HyLRAHook(Intervention):
    """Layers of a policy attend fully or reuse the key set of an earlier layer of the same forward pass.

    Parameters
    ----------
    policy : LayerPolicy, or array_like of int, shape (L,)
        Which layer's set each layer reads; itself = full.
    n_keep, block_size, sink, recent, share_heads, refresh
        See `refattn.interventions.hylra.attend_full`.
    sensitive : iterable of int
        Layers that stay dense under ``refresh="sparse"`` and store no set, as in the official code. The paper's layers
        (``refresh="dense"``) all store theirs.

    Attributes
    ----------
    index : dict of int to ndarray, shape (B, H, Tq, n)
        The sets stored so far in this forward pass, by layer; `begin` forgets them, so nothing is carried from one
        decode step to the next.
    multiply_adds : list of int
        For each layer what scores and averages took in this pass, over batch and query heads.

    Raises
    ------
    ValueError
        If a source is not full or not before its layer, an option of `attend_full` is out of range; or, at the start
        of a pass, the policy has another number of layers than the model.
    RuntimeError
        If a layer reuses a set that its source has not stored.
    """

    def __init__(
        self,
        policy: LayerPolicy | Any,
        n_keep: int,
        *,
        block_size: int = 1,
        sink: int = 0,
        recent: int = 0,
        share_heads: bool = False,
        refresh: str = "dense",
        sensitive: Iterable[int] = (),
    ) -> None:
        source = as_integer("policy", policy.source if isinstance(policy, LayerPolicy) else policy, ndim=1)
        before = (source >= 0) & (source <= np.arange(len(source)))
        require(before.all(), f"policy={source} must name a layer that is not later")
        require((source[source] == source).all(), f"policy={source}: a source is not a full layer")
        check_budget(n_keep, block_size=block_size, sink=sink, recent=recent, name="n_keep")
        require_one_of("refresh", refresh, ("dense", "sparse"))
        self.source = source
        self.refresh = refresh
        self.dense = frozenset(sensitive) if refresh == "sparse" else frozenset[int]()
        self._choice: dict[str, Any] = {"n_keep": n_keep, "block_size": block_size, "sink": sink, "recent": recent}
        self._share_heads = share_heads
        self.index: dict[int, np.ndarray] = {}
        self.multiply_adds: list[int] = []

    def begin(self, n_layers: int) -> None:
        """Forget the sets of the last pass."""
        require(len(self.source) == n_layers, f"policy has {len(self.source)} layers, the model {n_layers}")
        self.index = {}
        self.multiply_adds = [0] * n_layers

    def attend(
        self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float
    ) -> np.ndarray:
        """Return the output of a layer under the policy."""
        source = int(self.source[layer])
        visible = np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))  # (B, Hq, Tq, T)
        if source != layer:
            if source not in self.index:
                raise RuntimeError(f"no indices for layer {source}")
            sets = self.index[source]
            self.multiply_adds[layer] = 2 * q.shape[-1] * _fetched(sets, visible)
            return np.asarray(attend_reuse(q, k, v, sets, mask=visible, scale=scale))
        refresh = "dense" if layer in self.dense else self.refresh
        out, sets = attend_full(
            q,
            k,
            v,
            **self._choice,
            share_heads=self._share_heads,
            refresh=refresh,
            mask=visible,
            scale=scale,
        )
        if layer not in self.dense:
            self.index[layer] = sets
        scored = int(visible.sum())
        averaged = scored if refresh == "dense" else _fetched(sets, visible)
        self.multiply_adds[layer] = q.shape[-1] * (scored + averaged)
        return np.asarray(out)


class ProfileHook(Intervention):
    """Watches a model with full attention and measures its layers; the last query of each pass is a decode step.

    Parameters
    ----------
    n_keep, block_size, sink, recent
        See `refattn.interventions.hylra.attend_full`.

    Notes
    -----
    Profiling sees every layer with full attention, so it knows nothing of the errors that earlier reusing layers will
    make: its overlaps are expected to be optimistic [criticised second-hand].
    """

    def __init__(self, n_keep: int, *, block_size: int = 1, sink: int = 0, recent: int = 0) -> None:
        check_budget(n_keep, block_size=block_size, sink=sink, recent=recent, name="n_keep")
        self._choice: dict[str, Any] = {"block_size": block_size, "sink": sink, "recent": recent}
        self._n_keep = n_keep
        self._layers: dict[int, list[_Seen]] = {}

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float) -> None:
        """Look at the last query of each batch row, and let the layer run."""
        visible = np.broadcast_to(mask, (len(q), 1, *q.shape[2:3], k.shape[2]))[:, 0, -1]  # (B, T)
        for row, seen in enumerate(visible):
            step = q[row : row + 1, :, -1:], k[row : row + 1, :, seen], v[row : row + 1, :, seen]
            self._layers.setdefault(layer, []).append(self._look(*step, scale))

    def profile(self) -> LayerProfile:
        """Return what was measured over all passes so far.

        Raises
        ------
        ValueError
            If there was no pass.
        """
        require(self._layers, "no forward pass has been profiled")
        layers = [self._layers[layer] for layer in sorted(self._layers)]
        masks = [np.stack([step.critical for step in steps]) for steps in zip(*layers, strict=True)]
        error = np.array([sum(step.error for step in steps) for steps in layers])
        size = np.array([sum(step.size for step in steps) for steps in layers])
        ratios = np.stack([np.stack([step.ratio for step in steps]) for steps in layers])  # (L, S, H)
        rnmse = np.sqrt(error / np.where(size > 0, size, 1.0))
        return LayerProfile(layer_overlap(masks, per_head=True), rnmse, np.swapaxes(ratios, 0, 2))

    def _look(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> _Seen:
        w = group_weights(q, k, scale=scale)[0, :, 0]  # (H, T)
        out, sets = attend_full(q, k, v, n_keep=self._n_keep, **self._choice, scale=scale)
        change = out - attend_reuse(q, k, v, sets, scale=scale)
        critical = critical_mask(w, self._n_keep, **self._choice)  # (H, n_b)
        ratio = hash_ratio(w, self._choice["block_size"])  # (H,)
        return _Seen(critical, float(np.sum(change**2)), float(np.sum(out**2)), ratio)


class _Seen(NamedTuple):
    """One step of one layer: critical blocks (H, n_b), squared change and squared output, hash ratio (H,)."""

    critical: np.ndarray
    error: float
    size: float
    ratio: np.ndarray


def _fetched(sets: np.ndarray, visible: np.ndarray) -> int:
    """Count pairs of query head and key that sets (B, H, Tq, n) leave of the visible ones (B, Hq, Tq, T)."""
    B, H, Tq = sets.shape[:3]
    grouped = visible.reshape(B, H, -1, Tq, visible.shape[-1])
    seen = np.take_along_axis(grouped, np.maximum(sets, 0)[:, :, None], axis=-1)  # (B, H, G, Tq, n)
    return int(np.sum(seen & (sets >= 0)[:, :, None]))
