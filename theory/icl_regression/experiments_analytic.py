"""The experiments that need no training: flows, losses and risks."""

from __future__ import annotations

from theory.icl_regression.experiments_flow import FLOW
from theory.icl_regression.experiments_loss import LOSS
from theory.icl_regression.experiments_risks import RISKS

__all__ = ["ANALYTIC"]

ANALYTIC = (*FLOW, *LOSS, *RISKS)
