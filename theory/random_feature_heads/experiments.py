"""Every experiment of this theory."""

from __future__ import annotations

from theory.random_feature_heads.experiments_curves import CURVES
from theory.random_feature_heads.experiments_risks import RISKS
from theory.random_feature_heads.experiments_widths import WIDTHS

__all__ = ["EXPERIMENTS"]

EXPERIMENTS = (*CURVES, *WIDTHS, *RISKS)
