"""The recurrent networks that gCOG was tried on: one instruction token a step, the whole image at each (2401.15030)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn.benchmarks.gcog_blocks import (
    Classified,
    LinearWeights,
    NormWeights,
    checked_streams,
    linear,
    log_softmax,
    norm,
    relu,
)
from refattn.primitives.activations import sigmoid
from refattn.primitives.arguments import require

__all__ = ["RecurrentWeights", "gru_classifier", "rnn_classifier"]


class RecurrentWeights(NamedTuple):
    """A recurrent network; a GRU has three times M columns in both maps, for r, z and n.

    Attributes
    ----------
    input : LinearWeights
        W and b: from a token and the flattened image.
    hidden : LinearWeights
        U and c: from the state.
    norm : NormWeights
        Of the last state.
    readout : LinearWeights
        To the classes.
    """

    input: LinearWeights
    hidden: LinearWeights
    norm: NormWeights
    readout: LinearWeights


def rnn_classifier(rule: Any, stimulus: Any, weights: RecurrentWeights) -> Classified:
    """Read the instruction with an Elman network, the image in view at every step.

    Parameters
    ----------
    rule : array_like, shape (..., n, 8)
        Tokens of the instruction.
    stimulus : array_like, shape (..., m, 3 or more)
        Tokens of the image; flattened, they are part of the input of each step.
    weights : RecurrentWeights
        With M columns.

    Returns
    -------
    Classified
        ``hidden`` is the layer norm of the last state.

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    2401.15030; the released class ``RNN``.
    """
    inputs, h = _start(rule, stimulus, weights, gates=1)
    for x in inputs:
        # eq: gcog-rnn
        h = relu(linear(x, weights.input) + linear(h, weights.hidden))  # (..., M)
    hidden = norm(h, weights.norm)
    return Classified(log_softmax(linear(hidden, weights.readout)), hidden)


def gru_classifier(rule: Any, stimulus: Any, weights: RecurrentWeights) -> Classified:
    """Read the instruction with a gated recurrent network, the image in view at every step.

    Parameters
    ----------
    rule, stimulus
        As in `rnn_classifier`.
    weights : RecurrentWeights
        With 3M columns: of the reset gate, the update gate and the new state.

    Returns
    -------
    Classified
        ``hidden`` is the layer norm of the last state.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    The reset gate multiplies U h + c, not h alone; both are called GRU. The released class needs the image's size given
    (303): its default is that of a one-hot form that the released data do not have.

    References
    ----------
    2401.15030; the released class ``GRU``; 1406.1078.
    """
    inputs, h = _start(rule, stimulus, weights, gates=3)
    for x in inputs:
        x_r, x_z, x_n = np.split(linear(x, weights.input), 3, axis=-1)  # (..., M) each
        h_r, h_z, h_n = np.split(linear(h, weights.hidden), 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        # eq: gcog-gru
        h = (1 - z) * np.tanh(x_n + r * h_n) + z * h
    hidden = norm(h, weights.norm)
    return Classified(log_softmax(linear(hidden, weights.readout)), hidden)


def _start(rule: Any, stimulus: Any, weights: RecurrentWeights, *, gates: int) -> tuple[list[Any], Any]:
    """Return the input of each step, (..., 8 + m·features), and a state of zeros."""
    rule, stimulus = checked_streams(rule, stimulus, n_heads=1, widths=())
    flat = stimulus.reshape(*stimulus.shape[:-2], stimulus.shape[-2] * stimulus.shape[-1])
    features = rule.shape[-1] + flat.shape[-1]
    known, columns = weights.input.weight.shape
    require(features == known, f"rule token and image have {features} features together, the weights are for {known}")
    M = weights.hidden.weight.shape[0]
    require(columns == gates * M, f"weights.input has {columns} columns, expected {gates * M}")
    inputs = [np.concatenate([rule[..., t, :], flat], axis=-1) for t in range(rule.shape[-2])]
    return inputs, np.zeros((*rule.shape[:-2], M), rule.dtype)
