"""SGD, Adam and AdamW in place, on all the parameters of all replicas as one vector.

`refattn.layers.icl_regression_training` says what these updates are, as pure functions; here they cost nothing beside
a batch of prompts. The tests hold the two to each other and to PyTorch's trajectories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refattn.primitives.arguments import require, require_one_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OPTIMIZERS", "Descent"]

OPTIMIZERS = ("adam", "sgd", "adamw")
KEEP_MEAN, KEEP_SQUARE, EPS = 0.9, 0.999, 1e-8
ADAMW_DECAY = 0.01  # what PyTorch's AdamW does if nothing is said


class Descent:
    """An optimiser and what it remembers.

    Parameters
    ----------
    optimizer : {"adam", "sgd", "adamw"}
        Which one.
    lr : float
        Learning rate.
    size : int
        Number of parameters.
    weight_decay : float, optional
        Of AdamW; 0.01 if not given.
    dtype : dtype, optional
        Of the memory.

    Raises
    ------
    ValueError
        If the optimiser is unknown, ``lr`` is not positive and finite, or ``weight_decay`` is negative or given to
        another optimiser.
    """

    def __init__(
        self, optimizer: str, lr: float, size: int, *, weight_decay: float | None = None, dtype: type = np.float64
    ) -> None:
        require_one_of("optimizer", optimizer, OPTIMIZERS)
        require(np.isfinite(lr) and lr > 0, f"lr={lr!r} must be finite and > 0")
        require(
            weight_decay is None or optimizer == "adamw",
            f"weight_decay={weight_decay!r} belongs to optimizer='adamw', not {optimizer!r}",
        )
        require(weight_decay is None or 0 <= weight_decay < np.inf, f"weight_decay={weight_decay!r} must be >= 0")
        self.lr = float(lr)
        self.decay = (ADAMW_DECAY if weight_decay is None else float(weight_decay)) if optimizer == "adamw" else 0.0
        self.steps = 0
        self.adaptive = optimizer != "sgd"
        if self.adaptive:
            state: NDArray[np.floating] = np.zeros((3, size), dtype)
            self._mean, self._square, self._change = state[0], state[1], state[2]

    def update(self, parameters: NDArray[np.floating], gradient: NDArray[np.floating]) -> None:
        """Move ``parameters`` one step against ``gradient``, in place."""
        self.steps += 1
        if not self.adaptive:
            parameters -= self.lr * gradient
            return
        mean, square, change = self._mean, self._square, self._change
        mean *= KEEP_MEAN
        mean += np.multiply(gradient, 1 - KEEP_MEAN, out=change)
        square *= KEEP_SQUARE
        np.multiply(gradient, gradient, out=change)
        change *= 1 - KEEP_SQUARE
        square += change
        np.sqrt(square, out=change)
        change *= (1 - KEEP_SQUARE**self.steps) ** -0.5  # the running means have not seen their full weight yet
        change += EPS
        np.divide(mean, change, out=change)
        change *= self.lr / (1 - KEEP_MEAN**self.steps)
        if self.decay:
            parameters *= 1 - self.lr * self.decay
        parameters -= change
