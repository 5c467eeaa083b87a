"""Every figure of the theory of conditioned memories."""

from __future__ import annotations

from theory.pavlovian.experiments_capacity import BITS, CAPACITIES, DECODING, SNR
from theory.pavlovian.experiments_depth import CLEANUP, DEPTH
from theory.pavlovian.experiments_learning import CONDITIONING, DECAY, LEAST_SQUARES, SINGLE_PASS
from theory.pavlovian.experiments_memory import COVER, DENSE, HOPFIELD, POLYNOMIAL, SOFTMAX

__all__ = ["EXPERIMENTS"]

EXPERIMENTS = (
    SNR,
    CAPACITIES,
    BITS,
    DECODING,
    DEPTH,
    CLEANUP,
    SINGLE_PASS,
    DECAY,
    LEAST_SQUARES,
    CONDITIONING,
    SOFTMAX,
    POLYNOMIAL,
    HOPFIELD,
    DENSE,
    COVER,
)
