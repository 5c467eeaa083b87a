"""All experiments on in-context linear regression."""

from __future__ import annotations

from theory.icl_regression.experiments_analytic import ANALYTIC
from theory.icl_regression.experiments_training import TRAINING

__all__ = ["EXPERIMENTS"]

EXPERIMENTS = (*ANALYTIC, *TRAINING)
