"""Hook points: the named places of a forward pass where values can be looked at, kept or replaced.

The names and shapes are those of TransformerLens. A hook is a pure function ``(value, name) -> new value or None``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from refattn.primitives.arguments import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from refattn.transformer.config import TransformerConfig

    Hook = Callable[[np.ndarray, str], np.ndarray | None]
    Hooks = Mapping[str, Hook | Sequence[Hook]]
    Names = str | Iterable[str] | Callable[[str], bool]

__all__ = ["BlockPoints", "HookPoints", "Points", "hook_names", "merge_hooks"]

OPTIONAL = "attn.hook_result"
"""The output of each head (B, T, H, d): computed only where somebody asks for it by name."""


def hook_names(config: TransformerConfig) -> tuple[str, ...]:
    """Return every hook point of a model, in the order of the forward pass."""
    learned = ["hook_pos_embed"] if config.positions == "learned" else []
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.n_layers) for name in _block_names(config)]
    return "hook_embed", *learned, *blocks, "ln_final.hook_scale", "ln_final.hook_normalized", "logits"


def _block_names(config: TransformerConfig) -> list[str]:
    def norm(name: str) -> list[str]:
        return [f"{name}.hook_scale", f"{name}.hook_normalized"]

    rotated = ["attn.hook_rot_q", "attn.hook_rot_k"] if config.positions == "rope" else []
    attention = ["attn.hook_q", "attn.hook_k", "attn.hook_v", *rotated, "attn.hook_attn_scores", "attn.hook_pattern"]
    mid = [] if config.parallel_residual else ["hook_resid_mid"]
    mlp = ["mlp.hook_pre", *(["mlp.hook_pre_linear"] if config.gated else []), "mlp.hook_post", "hook_mlp_out"]
    before = ["hook_resid_pre", *norm("ln1"), *attention, "attn.hook_z", OPTIONAL, "hook_attn_out"]
    return [*before, *mid, *norm("ln2"), *mlp, "hook_resid_post"]


def merge_hooks(*several: Hooks) -> dict[str, tuple[Hook, ...]]:
    """Join mappings of hooks; at one point the hooks of earlier mappings run first."""
    merged: dict[str, tuple[Hook, ...]] = {}
    for hooks in several:
        for name, given in hooks.items():
            merged[name] = merged.get(name, ()) + ((given,) if callable(given) else tuple(given))
    return merged


class HookPoints:
    """The hook points of one forward pass: runs the hooks, keeps the values that were asked for.

    Parameters
    ----------
    config : TransformerConfig
        Whose hook points there are.
    hooks : mapping of str to callable or sequence of callables
        Those at one point run in the order given; each sees the result of the one before it, as a read-only array.
    names : "all", iterable of str, or predicate
        What to keep. The final value of a point is kept, after its hooks. "all" and predicates leave out
        ``attn.hook_result``.

    Raises
    ------
    ValueError
        For the name of a hook point that the model does not have; and, when it runs, for a hook that returns another
        shape.
    """

    def __init__(self, config: TransformerConfig, hooks: Hooks | None = None, names: Names = ()) -> None:
        known = hook_names(config)
        self.hooks = merge_hooks(hooks or {})
        self.kept = _selected(known, names)
        for name in (*self.hooks, *self.kept):
            require(name in known, f"no hook point named {name!r}")
        self.activations: dict[str, np.ndarray] = {}

    def wants(self, name: str) -> bool:
        """Say whether somebody looks at the point."""
        return name in self.hooks or name in self.kept

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Pass a value through a point."""
        for hook in self.hooks.get(name, ()):
            seen = value.view()
            seen.flags.writeable = False
            result = hook(seen, name)
            if result is not None:
                require(
                    np.shape(result) == value.shape,
                    f"the hook at {name!r} returned shape {np.shape(result)}, expected {value.shape}",
                )
                value = np.asanyarray(result)
        if name in self.kept:
            self.activations[name] = value
        return value


class Points(Protocol):
    """What a part of the forward pass sees of the hook points."""

    def wants(self, name: str) -> bool:
        """Say whether somebody looks at the point."""

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Pass a value through a point."""


class BlockPoints:
    """The hook points of one block, by their names within it."""

    def __init__(self, points: HookPoints, layer: int) -> None:
        self.points, self.prefix = points, f"blocks.{layer}."

    def wants(self, name: str) -> bool:
        """Say whether somebody looks at the point."""
        return self.points.wants(self.prefix + name)

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Pass a value through a point."""
        return self.points(self.prefix + name, value)


def _selected(known: tuple[str, ...], names: Names) -> frozenset[str]:
    usual = [name for name in known if not name.endswith(OPTIONAL)]
    if isinstance(names, str):
        return frozenset(usual if names == "all" else [names])
    return frozenset(filter(names, usual) if callable(names) else names)
