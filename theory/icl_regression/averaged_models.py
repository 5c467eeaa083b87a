"""Models that assume the pattern, and therefore need no hidden rule and no responses: their averages are taken by hand.

Once a head is a sharpness ω_h and a weight μ_h, the prediction of task n is linear in the responses,
``ŷ_n = w_n · y_n`` with ``w_n = Σ_h μ_nh p_h``, and the mean over rule and noise is a quadratic form in w_n:

    ℓ = (1/N) Σ_n [ e_n^T C_n e_n + κ_n ‖w_n‖² ] + floor ,   e_n = X^T w_n − x_q .

Three models differ in what a score may be, and in nothing else:

``semi``
    ``x^T Ω_h x_q`` with a full matrix.
``diagonal``
    ``Σ_j ω_hj x_j x_qj``.
``reduced``
    ``ω_h x · x_q``. Only the component u of x along x_q then enters the scores, so it alone is drawn: X is the
    column u, x_q its length r, and what the other d − 1 components add is a part of κ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refattn.primitives.arguments import require, require_finite, require_shape
from theory.icl_regression.full_model import HeadParameters, softmax_in_place
from theory.icl_regression.samplers import require_covariance, support_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AVERAGED", "Average", "AveragedModel", "averages", "initial_heads"]

Array = np.ndarray

AVERAGED = ("semi", "diagonal", "reduced")
SPREAD = 0.1  # standard deviation of the initial parameters


class Average(NamedTuple):
    """The quadratic form that the mean over rules and noises leaves.

    Attributes
    ----------
    rule : ndarray, (N, c, c)
        Covariance C_n of the rule, on the c coordinates that are drawn.
    ridge : ndarray, (N,)
        κ_n, what a unit of ``‖w_n‖²`` costs: noise, and coordinates that are not drawn.
    floor : float
        What no predictor can avoid: noise in the answer.
    """

    rule: Array
    ridge: Array
    floor: float


def averages(
    model: str, dim: int, noise_var: float, *, cov: Any = None, supports: Sequence[Sequence[int]] | None = None
) -> Average:
    """Return the quadratic form of a model: ``β ~ N(0, I/d)`` for one task, ``β_n ~ N(0, I)`` on S_n for several.

    Raises
    ------
    ValueError
        If ``reduced``, which needs all directions alike, is combined with ``cov`` or ``supports``.
    """
    plain = cov is None and supports is None
    require(model != "reduced" or plain, "model='reduced' has neither cov nor supports; use 'semi' or 'diagonal'")
    if supports is not None:
        mask = support_mask(supports, dim)  # (N, d)
        return Average(mask[:, None] * np.eye(dim), noise_var * mask.sum(1), 0.0)
    if model == "reduced":
        return Average(np.full((1, 1, 1), 1 / dim), np.array([(dim - 1) / dim + noise_var]), noise_var)
    return Average(np.eye(dim)[None] / dim, np.array([noise_var]), noise_var)


def initial_heads(
    model: str, n_head: int, dim: int, rng: np.random.Generator, *, replicas: int = 1, n_task: int | None = None
) -> HeadParameters:
    """Draw small heads, one replica after the other: every parameter N(0, 0.1²)."""
    mu_shape = (n_head,) if n_task is None else (n_head, n_task)
    shapes = ((n_head, *_tail(model, dim)), mu_shape)
    starts = [[SPREAD * rng.standard_normal(shape) for shape in shapes] for _ in range(replicas)]
    return HeadParameters(*(np.stack(part) for part in zip(*starts, strict=True)))


class AveragedModel:
    """R replicas of heads without factors, on one stream of covariates that they share.

    Parameters
    ----------
    heads : HeadParameters
        Where the replicas start: ``omega`` (R, H), (R, H, d) or (R, H, d, d) for ``reduced``, ``diagonal`` and
        ``semi``, ``mu`` (R, H) for one task or (R, H, N) for several; copied.
    model : {"semi", "diagonal", "reduced"}
        What a score may be.
    average : Average
        From `averages`.
    dim, length, batch : int
        Number d of covariates, L of context tokens, B of prompts.
    cov : ndarray, (d, d), optional
        Covariance of the covariates; the identity if not given.
    dtype : dtype, optional
        float64, or float32 for speed.

    Attributes
    ----------
    parameters, gradient : ndarray, (P,)
        All parameters of all replicas as one vector, and after `loss_and_gradient` the gradient of each one's loss.

    Raises
    ------
    ValueError
        If the shapes disagree or a parameter is not finite.
    """

    def __init__(
        self,
        heads: HeadParameters,
        *,
        model: str,
        average: Average,
        dim: int,
        length: int,
        batch: int,
        cov: Any = None,
        dtype: Any = np.float64,
    ) -> None:
        omega, mu = np.asarray(heads.omega), np.asarray(heads.mu)
        require(mu.ndim in {2, 3}, f"mu has shape {mu.shape}, expected (replicas, heads) or (replicas, heads, tasks)")
        shape, n_task, coordinates = mu.shape[:2], len(average.ridge), average.rule.shape[-1]
        require_shape("omega", omega, (*shape, *_tail(model, dim)))
        require(mu.size == shape[0] * shape[1] * n_task, f"mu has shape {mu.shape}, expected {(*shape, n_task)}")
        require_finite("omega", omega)
        require_finite("mu", mu)
        rows, tokens = shape[0] * shape[1], (length, batch)
        self.model, self.dim, self.length, self.batch, self.dtype = model, dim, length, batch, np.dtype(dtype)
        self.replicas, self.n_head = shape
        self.average = Average(average.rule.astype(dtype), average.ridge.astype(dtype), average.floor)
        self._root = None if cov is None else np.linalg.cholesky(require_covariance(cov, dim)).astype(dtype)

        self.parameters = np.concatenate([np.ravel(omega), np.ravel(mu)]).astype(dtype)
        self.gradient = np.empty_like(self.parameters)
        self._heads, self._grads = (_fields(v, omega.shape, mu.shape) for v in (self.parameters, self.gradient))

        drawn = {"reduced": length + dim}.get(model, (length + 1) * dim)
        self._numbers = np.empty((drawn, batch), dtype)
        self._x = np.empty((coordinates, *tokens), dtype)  # (c, L, B)
        self._query = np.empty((coordinates, batch), dtype)  # (c, B)
        pairs = (dim, dim) if model == "semi" else (coordinates,)
        self._features = np.empty((*pairs, *tokens), dtype)
        self._attn, self._slope = np.empty((2, rows, *tokens), dtype)
        self._scratch = np.empty((*shape, *tokens), dtype)

    @property
    def weights(self) -> HeadParameters:
        """A copy of the parameters, with a leading axis of replicas."""
        return HeadParameters(*(p.copy() for p in self._heads))

    heads = weights

    def draw(self, rng: np.random.Generator) -> None:
        """Draw fresh covariates."""
        rng.standard_normal(dtype=self.dtype.type, out=self._numbers)
        query, numbers = self._numbers[: self.dim], self._numbers[self.dim :]
        if self.model == "reduced":
            # u, the component along the query, is normal whatever the query is: only its length counts
            self._take(numbers[None], np.sqrt(np.sum(query**2, 0, keepdims=True)))
        elif self._root is None:
            self._take(numbers, query)
        else:
            self._take(self._root @ numbers.reshape(self.dim, -1), self._root @ query)

    def load(self, x: Array, x_q: Array) -> None:
        """Take given covariates (B, L, c) and queries (B, c); c is d, or 1 for ``reduced``: components, and lengths."""
        coordinates = len(self._query)
        require_shape("x", x, (self.batch, self.length, coordinates))
        require_shape("x_q", x_q, (self.batch, coordinates))
        self._take(x.transpose(2, 1, 0), x_q.T)

    def loss(self) -> Array:
        """Return the loss of each replica on the batch (R,)."""
        return self._forward()[2]

    def loss_and_gradient(self) -> Array:
        """Return the loss of each replica on the batch (R,); leave the gradient in ``gradient``."""
        w, weighted, loss = self._forward()  # (R, N, L, B), (R, N, c, B), (R,)
        replicas, n_task, *_ = w.shape
        shape = (replicas, self.n_head, n_task)
        mu, d_mu = self._heads.mu.reshape(shape), self._grads.mu.reshape(shape)
        attn, slope = self._attn.reshape(self._scratch.shape), self._slope.reshape(self._scratch.shape)  # (R, H, L, B)

        # eq: icl-averaged-slope
        w *= self.average.ridge[:, None, None]
        for j, x in enumerate(self._x):
            w += x * weighted[:, :, None, j]
        w *= 2 / n_task
        attended = np.empty((*shape, self.batch), self.dtype)  # (R, H, N, B)
        for n in range(n_task):
            np.sum(np.multiply(attn, w[:, None, n], out=self._scratch), 2, out=attended[:, :, n])
        np.mean(attended, -1, out=d_mu)
        # eq: icl-averaged-gradient
        np.matmul(mu, w.reshape(replicas, n_task, -1), out=slope.reshape(replicas, self.n_head, -1))
        slope -= np.einsum("rhn,rhnb->rhb", mu, attended)[:, :, None]
        slope *= attn
        d_omega = _rows(self._slope) @ self._feature_rows.T  # (R·H, F)
        self._grads.omega[:] = d_omega.reshape(self._heads.omega.shape) / self.batch
        return loss

    @property
    def _feature_rows(self) -> Array:
        return self._features.reshape(-1, self.length * self.batch)  # (F, L·B)

    def _take(self, x: Array, query: Array) -> None:
        self._x[:] = x.reshape(self._x.shape)
        self._query[:] = query
        # every coordinate of a token meets every coordinate of the query, or its own
        tokens = self._x[:, None] if self.model == "semi" else self._x
        np.multiply(tokens, self._query[:, None], out=self._features)

    def _forward(self) -> tuple[Array, Array, Array]:
        """Return w (R, N, L, B), C e (R, N, c, B) and the loss (R,); leave p in its buffer."""
        omega, mu = self._heads
        replicas, rows = self.replicas, len(self._attn)
        rule, ridge, floor = self.average
        np.matmul(omega.reshape(rows, -1), self._feature_rows, out=_rows(self._attn))
        softmax_in_place(self._attn)
        weight = mu.reshape(replicas, self.n_head, -1).swapaxes(1, 2)  # (R, N, H)
        w = weight @ self._attn.reshape(replicas, self.n_head, -1)  # (R, N, L·B)
        w = w.reshape(*w.shape[:2], self.length, self.batch)
        error = np.stack([np.sum(w * x, 2) - x_q for x, x_q in zip(self._x, self._query, strict=True)], 2)
        weighted = rule @ error  # (R, N, c, B)
        # eq: icl-averaged
        cost = np.sum(error * weighted, 2) + ridge[:, None] * np.sum(w * w, 2)  # (R, N, B)
        return w, weighted, np.mean(cost, (1, 2)) + self.dtype.type(floor)


def _tail(model: str, dim: int) -> tuple[int, ...]:
    return {"reduced": (), "diagonal": (dim,), "semi": (dim, dim)}[model]


def _rows(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _fields(vector: Array, omega: tuple[int, ...], mu: tuple[int, ...]) -> HeadParameters:
    """Return views of one vector as ω and μ."""
    size = int(np.prod(omega))
    return HeadParameters(vector[:size].reshape(omega), vector[size:].reshape(mu))
