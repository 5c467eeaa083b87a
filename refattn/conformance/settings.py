"""How hard the kit looks, and where it leaves what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a run may spend.

    Attributes
    ----------
    examples : int
        Cases drawn for a ``random`` check; a law gets a fifth of it.
    seed : int
        Of everything that is drawn.
    replays : Path, optional
        Folder for replay files; none are written if None.
    shrink_seconds : float
        Time for making a failing case small.
    timeout : float
        Seconds after which a check is ended, with its process.
    families : int, optional
        Value families that each scenario is filled with, taken in turn; all of them if None.
    """

    examples: int = 25
    seed: int = 0
    replays: Path | None = None
    shrink_seconds: float = 3.0
    timeout: float = 120.0
    families: int | None = None
