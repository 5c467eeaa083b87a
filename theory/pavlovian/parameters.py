"""What the parameters of this theory's experiments share: ranges, and values that go together."""

from __future__ import annotations

from typing import Any

from refattn.primitives.arguments import require

__all__ = ["require_positive", "require_same_length"]


def require_positive(parameters: Any, *names: str) -> None:
    """Raise ``ValueError`` unless every number in the named fields is positive."""
    for name in names:
        value = getattr(parameters, name)
        numbers = value if isinstance(value, tuple) else (value,)
        require(len(numbers) > 0 and min(numbers) > 0, f"{name}={value!r} must be > 0")


def require_same_length(parameters: Any, *names: str) -> None:
    """Raise ``ValueError`` unless the named fields hold equally many values."""
    lengths = [len(getattr(parameters, name)) for name in names]
    require(len(set(lengths)) == 1, f"{', '.join(names)} hold {lengths} values, expected equally many")
