"""The experiments that train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theory.icl_regression.experiments_extensions import PRECONDITIONER, TASKS
from theory.icl_regression.experiments_heads import HEADS, TRAP
from theory.icl_regression.experiments_pattern import CURVES, PATTERN

if TYPE_CHECKING:
    from theory.experiment import Experiment

__all__ = ["TRAINING"]

TRAINING: tuple[Experiment, ...] = (PATTERN, CURVES, HEADS, TRAP, TASKS, PRECONDITIONER)
