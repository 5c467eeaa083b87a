"""The whole attention, trained by hand: many replicas at once on one stream of prompts, four matrix products a step.

Replicas and heads are rows; a prompt's numbers stand with the batch as the innermost axis, so that softmax, sums and
products run along contiguous memory. The score of token l of prompt b in head h is linear in the head's matrix A,

    s = Σ_jk A_jk z_lj x_k ,

so the products ``F_jk = z_lj x_k`` are made once a batch, for all heads of all replicas, and one matrix product with
them gives the scores, another the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights, init_weights
from refattn.primitives.arguments import require_finite, require_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FullModel", "HeadParameters", "initial_weights", "softmax_in_place"]

Array = np.ndarray


class HeadParameters(NamedTuple):
    """What a head is once the pattern holds: how sharp it looks, and how much of what it sees it adds.

    Attributes
    ----------
    omega : ndarray, (..., H), (..., H, d) or (..., H, d, d)
        The part of the query-key matrix between covariates: a multiple of the identity, a diagonal, or all of it.
    mu : ndarray, (..., H) or (..., H, N)
        The weight of the attended response in the output, of each task.
    """

    omega: Array
    mu: Array


def initial_weights(
    init: str, n_head: int, dim: int, rng: np.random.Generator, *, replicas: int = 1
) -> ICLAttentionWeights:
    """Draw the starts of R replicas, one after the other: `init_weights` with a leading axis of replicas."""
    starts = [init_weights(rng, n_embd=dim + 1, n_head=n_head, n_out=1, method=init) for _ in range(replicas)]
    return ICLAttentionWeights(*(np.stack(w) for w in zip(*starts, strict=True)))


class FullModel:
    """R replicas of the attention with factored weights, and a batch of prompts that they share.

    Parameters
    ----------
    weights : ICLAttentionWeights
        Where the replicas start, with a leading axis R; copied.
    length : int
        Number L of context tokens.
    batch : int
        Number B of prompts.
    noise_var : float
        Variance of the noise in what `draw` draws.
    dtype : dtype, optional
        float64, or float32 for speed.

    Attributes
    ----------
    parameters, gradient : ndarray, (P,)
        All weights of all replicas as one vector, and after `loss_and_gradient` the gradient of each replica's loss.

    Raises
    ------
    ValueError
        If the shapes of the weights disagree, or a weight is not finite.
    """

    def __init__(
        self, weights: ICLAttentionWeights, *, length: int, batch: int, noise_var: float, dtype: Any = np.float64
    ) -> None:
        replicas, n_head, width, _ = np.shape(weights.w_k)
        square, row = (replicas, n_head, width, width), (replicas, n_head, 1, width)
        for name, array, shape in zip(weights._fields, weights, (square, square, square, row), strict=True):
            require_shape(name, np.asarray(array), shape)
            require_finite(name, array)
        dim, rows = width - 1, replicas * n_head
        self.replicas, self.n_head, self.dim = replicas, n_head, dim
        self.length, self.batch, self.noise_var, self.dtype = length, batch, noise_var, np.dtype(dtype)

        self.parameters = np.concatenate([np.ravel(w) for w in weights]).astype(dtype)
        self.gradient = np.empty_like(self.parameters)
        self._weights, self._grads = _fields(self.parameters, square, row), _fields(self.gradient, square, row)

        # one block, so that one call of the generator fills it: tokens, query, answer, and the hidden rule
        self._numbers = np.empty((width * length + 2 * dim + 1, batch), dtype)
        tokens, self._query, self._beta, answer = np.split(
            self._numbers, np.cumsum([width * length, dim, dim])
        )  # (d, B), (d, B)
        self._tokens, self._answer = tokens.reshape(width, length, batch), answer[0]  # (D, L, B), (B,)
        self._features = np.empty((width, dim, length, batch), dtype)
        self._attn, self._parts = np.empty((2, rows, length, batch), dtype)

    @property
    def weights(self) -> ICLAttentionWeights:
        """A copy of the weights, with a leading axis of replicas."""
        return ICLAttentionWeights(*(w.copy() for w in self._weights))

    @property
    def heads(self) -> HeadParameters:
        """What is left of the heads once the pattern is assumed: mean diagonal ω and last entry μ, each (R, H)."""
        kq, ov = self._merged()
        return HeadParameters(np.trace(kq, axis1=-2, axis2=-1) / self.dim, ov[..., -1].copy())

    def draw(self, rng: np.random.Generator) -> None:
        """Draw a fresh batch of prompts, as `sample_prompts` does but in place and in this layout."""
        rng.standard_normal(dtype=self.dtype.type, out=self._numbers)
        self._beta *= self.dim**-0.5
        sigma = self.noise_var**0.5
        y, answer, product = self._tokens[-1], self._answer, self._parts[0]
        y *= sigma
        answer *= sigma
        for x, x_q, beta in zip(self._tokens, self._query, self._beta, strict=False):  # the d covariates
            y += np.multiply(x, beta, out=product)
            answer += x_q * beta
        self._multiply_out()

    def load(self, z_q: Array, z: Array, y: Array) -> None:
        """Take a given batch: query tokens (B, D), context tokens (B, L, D), answers (B, 1)."""
        require_shape("z_q", z_q, (self.batch, self.dim + 1))
        require_shape("z", z, (self.batch, self.length, self.dim + 1))
        require_shape("y", y, (self.batch, 1))
        self._tokens[:] = z.transpose(2, 1, 0)
        self._query[:] = z_q[:, :-1].T
        self._answer[:] = y[:, 0]
        self._multiply_out()

    def loss(self) -> Array:
        """Return the mean squared error of each replica on the batch (R,)."""
        _, residual = self._forward(*self._merged())
        return np.asarray(np.mean(residual**2, -1))

    def loss_and_gradient(self) -> Array:
        """Return the mean squared error of each replica on the batch (R,); leave the gradient in ``gradient``."""
        kq, ov = self._merged()
        output, residual = self._forward(kq, ov)  # (R·H, B), (R, B)
        delta = np.repeat(residual * (2 / self.batch), self.n_head, 0)[:, None]  # (R·H, 1, B), dloss/dŷ

        attn, parts = self._attn, self._parts  # p and p·v, (R·H, L, B)
        attn *= delta
        d_ov = _rows(attn) @ _rows(self._tokens).T  # (R·H, D)
        # eq: icl-softmax-slope
        parts *= delta
        attn *= output[:, None]
        parts -= attn
        d_kq = _rows(parts) @ self._feature_rows.T  # (R·H, D·d)
        self._through_the_factors(d_kq.reshape(kq.shape), d_ov.reshape(ov.shape))
        return np.asarray(np.mean(residual**2, -1))

    @property
    def _feature_rows(self) -> Array:
        return self._features.reshape(-1, self.length * self.batch)  # (D·d, L·B)

    def _multiply_out(self) -> None:
        # eq: icl-products
        np.multiply(self._tokens[:, None], self._query[:, None], out=self._features)

    def _merged(self) -> tuple[Array, Array]:
        """Return A = K^T Q/√D without its last column, which meets a zero, and C = V^T O^T."""
        w_k, w_q, w_v, w_o = self._weights
        kq = w_k.swapaxes(-1, -2) @ w_q[..., :-1]  # (R, H, D, d)
        kq *= (self.dim + 1) ** -0.5
        return kq, (w_o @ w_v)[..., 0, :]  # (R, H, D)

    def _forward(self, kq: Array, ov: Array) -> tuple[Array, Array]:
        """Return the heads' outputs (R·H, B) and the residuals (R, B); leave p and p·v in the buffers."""
        attn, parts, rows = self._attn, self._parts, len(self._attn)
        # eq: icl-four-products
        np.matmul(kq.reshape(rows, -1), self._feature_rows, out=_rows(attn))
        softmax_in_place(attn)
        np.matmul(ov.reshape(rows, -1), _rows(self._tokens), out=_rows(parts))
        parts *= attn
        output = parts.sum(1)  # (R·H, B)
        return output, output.reshape(self.replicas, self.n_head, -1).sum(1) - self._answer

    def _through_the_factors(self, d_kq: Array, d_ov: Array) -> None:
        """Carry the gradients of A (R, H, D, d) and C (R, H, D) to the four factors."""
        w_k, w_q, w_v, w_o = self._weights
        g_k, g_q, g_v, g_o = self._grads
        d_kq *= (self.dim + 1) ** -0.5
        np.matmul(w_q[..., :-1], d_kq.swapaxes(-1, -2), out=g_k)
        np.matmul(w_k, d_kq, out=g_q[..., :-1])
        g_q[..., -1] = 0
        np.multiply(w_o.swapaxes(-1, -2), d_ov[..., None, :], out=g_v)
        np.matmul(d_ov[..., None, :], w_v.swapaxes(-1, -2), out=g_o)


def softmax_in_place(scores: NDArray[np.floating]) -> None:
    """Turn scores (..., L, B) into softmax weights along L, in place.

    The shift by the maximum is made only where a score is beyond ±60: closer ones and their sums are far from the
    limits of float32, and without the shift nothing else is lost.
    """
    if max(scores.max(initial=0), -scores.min(initial=0)) > 60:
        scores -= scores.max(-2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-2, keepdims=True)


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _fields(vector: Array, square: tuple[int, ...], row: tuple[int, ...]) -> ICLAttentionWeights:
    """Return views of one vector as the four weights."""
    size = int(np.prod(square))
    parts = np.split(vector, (size, 2 * size, 3 * size))
    return ICLAttentionWeights(*(part.reshape(s) for part, s in zip(parts, (square, square, square, row), strict=True)))
