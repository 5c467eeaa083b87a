"""Layer, gradient and estimators once more, in steps that can be exchanged: what wrong versions are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights, IclOutput

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "double_softmax",
    "einsum",
    "estimator",
    "layer",
    "linear",
    "precondition",
    "pull_back",
    "ridge",
    "step_of",
    "weigh",
]


def einsum(subscripts: str, *operands: np.ndarray) -> np.ndarray:
    """Sum products over the letters that are not asked for, two operands at a time."""
    return np.asarray(np.einsum(subscripts, *operands, optimize=True))


def weigh(s: np.ndarray) -> np.ndarray:
    """Turn scores into weights, example by example."""
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def root(width: int, n_head: int) -> float:
    """Return what scores are divided by."""
    del n_head
    return float(width**0.5)


def score(w_k: np.ndarray, w_q: np.ndarray, z: np.ndarray, z_q: np.ndarray) -> np.ndarray:
    """Compare every example with the question, (B, H, L)."""
    return einsum("hij,hik,blj,bk->bhl", w_k, w_q, z, z_q)


def keep(a: np.ndarray) -> np.ndarray:
    """Change nothing."""
    return a


def look(s: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Spread the attention of the question, whose score with itself is ``own`` (B, H)."""
    del own
    return weigh(s)


def read(w_v: np.ndarray, w_o: np.ndarray, z_bar: np.ndarray) -> np.ndarray:
    """Add up what the heads make of the mean token that each of them sees."""
    return einsum("hok,hkj,bhj->bo", w_o, w_v, z_bar)


def shift(y_hat: np.ndarray, b_o: np.ndarray, n_head: int) -> np.ndarray:
    """Add the bias of the output."""
    del n_head
    return np.asarray(y_hat + b_o)


def layer(
    tokens: Callable[..., np.ndarray] = keep,
    key_tokens: Callable[..., np.ndarray] = keep,
    score: Callable[..., np.ndarray] = score,
    root: Callable[..., float] = root,
    place: Callable[..., np.ndarray] = keep,
    look: Callable[..., np.ndarray] = look,
    read: Callable[..., np.ndarray] = read,
    shift: Callable[..., np.ndarray] = shift,
) -> Callable[..., Any]:
    """Return the layer with these steps."""

    def wrong(z_q: np.ndarray, z: np.ndarray, weights: Any, *, biases: Any = None) -> IclOutput:
        w_k, w_q, w_v, w_o = weights
        H, D = w_k.shape[:2]
        z, keys = tokens(z), key_tokens(tokens(z))
        s, own = score(w_k, w_q, keys, z_q), score(w_k, w_q, z_q[:, None], z_q)[..., 0]
        if biases is not None:
            q = einsum("hij,bj->bhi", w_q, z_q) + biases.b_q
            k = einsum("hij,blj->bhli", w_k, keys) + biases.b_k[:, None]
            s = einsum("bhli,bhi->bhl", k, q)
        p = look(place(s / root(D, H)), own / root(D, H))[..., : z.shape[1]]
        y_hat = read(w_v, w_o, einsum("bhl,blj->bhj", p, z))
        if biases is not None:
            y_hat = shift(y_hat + einsum("hoi,hi->o", w_o, biases.b_v), biases.b_o, H)
        return IclOutput(y_hat, p)

    return wrong


def spread(p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Return the derivative of the scores for that of the weights."""
    return np.asarray(p * (g - np.sum(p * g, axis=-1, keepdims=True)))


def pair(r: np.ndarray, z_q: np.ndarray) -> np.ndarray:
    """Return the derivative of the merged matrix, (H, D, D), from (B, H, D) and (B, D)."""
    return einsum("bhi,bj->hij", r, z_q)


def part(w_k: np.ndarray, w_q: np.ndarray, dA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Carry the derivative of the merged matrix on to keys and queries."""
    root = dA.shape[-1] ** 0.5
    return w_q @ dA.mT / root, w_k @ dA / root


def part_values(w_v: np.ndarray, w_o: np.ndarray, dC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Carry the derivative of the other merged matrix on to values and output."""
    return (dC @ w_o).mT, (w_v @ dC).mT


def pull_back(
    weight: Callable[..., np.ndarray] = keep,
    spread: Callable[..., np.ndarray] = spread,
    pair: Callable[..., np.ndarray] = pair,
    part: Callable[..., tuple[np.ndarray, np.ndarray]] = part,
    part_values: Callable[..., tuple[np.ndarray, np.ndarray]] = part_values,
) -> Callable[..., Any]:
    """Return the vector-Jacobian product with these steps."""

    def wrong(z_q: np.ndarray, z: np.ndarray, weights: Any, dy_hat: np.ndarray) -> ICLAttentionWeights:
        w_k, w_q, w_v, w_o = weights
        delta = weight(dy_hat)
        p = weigh(score(w_k, w_q, z, z_q) / w_k.shape[-1] ** 0.5)
        g = einsum("blj,hkj,hok,bo->bhl", z, w_v, w_o, delta)
        dC = einsum("bhl,blj,bo->hjo", p, z, delta)
        dA = pair(einsum("bhl,blj->bhj", spread(p, g), z), z_q)
        return ICLAttentionWeights(*part(w_k, w_q, dA), *part_values(w_v, w_o, dC))

    return wrong


def kernel(x: np.ndarray, x_q: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """Compare examples with the question under full matrices, (B, H, L)."""
    return einsum("bli,hij,bj->bhl", x, omega, x_q)


def full(omega: np.ndarray, d: int) -> np.ndarray:
    """Write every head's kernel as a matrix."""
    if omega.ndim == 1:
        return einsum("h,ij->hij", omega, np.eye(d))
    return omega if omega.ndim == 3 else einsum("hi,ij->hij", omega, np.eye(d))


def blend(mu: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Weigh the smoothers (B, H, N) of the heads by mu (N, H)."""
    return einsum("nh,bhn->bn", mu, smooth)


def estimator(
    full: Callable[..., np.ndarray] = full,
    kernel: Callable[..., np.ndarray] = kernel,
    weigh: Callable[..., np.ndarray] = weigh,
    blend: Callable[..., np.ndarray] = blend,
) -> Callable[..., Any]:
    """Return the softmax estimator with these steps."""

    def wrong(x: np.ndarray, y: np.ndarray, x_q: np.ndarray, omega: np.ndarray, mu: np.ndarray) -> np.ndarray:
        p = weigh(kernel(x, x_q, full(omega, x.shape[-1])))
        responses, tasks = (y, mu) if mu.ndim == 2 else (y[..., None], mu[None])
        y_hat = blend(tasks, p @ responses)
        return y_hat if mu.ndim == 2 else y_hat[:, 0]

    return wrong


def average(terms: np.ndarray) -> np.ndarray:
    """Average over examples, (B, L, d) to (B, d)."""
    return np.asarray(terms.mean(axis=1))


def move(b: np.ndarray, x_q: np.ndarray, step: Any) -> np.ndarray:
    """Predict after a step along b."""
    gamma = np.asarray(step) * np.eye(b.shape[-1]) if np.ndim(step) == 0 else step
    return einsum("bi,ij,bj->b", x_q, gamma, b)


def centre(x: np.ndarray) -> np.ndarray:
    """Remove the mean of each prompt's covariates."""
    return np.asarray(x - x.mean(axis=1, keepdims=True))


def step_of(centred: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """Return the maker of one step of gradient descent on covariates that have gone through ``centred``."""

    def kind(
        centre: Callable[..., np.ndarray] = centred,
        average: Callable[..., np.ndarray] = average,
        move: Callable[..., np.ndarray] = move,
    ) -> Callable[..., Any]:
        def wrong(x: np.ndarray, y: np.ndarray, x_q: np.ndarray, step: Any) -> np.ndarray:
            return move(average(y[..., None] * centre(x)), x_q, step)

        return wrong

    return kind


def regularise(gram: np.ndarray, ridge: float, length: int) -> np.ndarray:
    """Add the ridge to the Gram matrices."""
    del length
    return gram + ridge * np.eye(gram.shape[-1])


def ridge(
    centre: Callable[..., np.ndarray] = keep, regularise: Callable[..., np.ndarray] = regularise
) -> Callable[..., Any]:
    """Return ridge regression with these steps."""

    def wrong(x: np.ndarray, y: np.ndarray, x_q: np.ndarray, ridge: float) -> np.ndarray:
        x = centre(x)
        inverse = np.linalg.pinv(regularise(x.mT @ x, ridge, x.shape[1]), hermitian=True, rcond=1e-13)
        return einsum("bi,bij,blj,bl->b", x_q, inverse, x, y)

    return wrong


def compare(z: np.ndarray, z_q: np.ndarray, kq: np.ndarray) -> np.ndarray:
    """Score every example, (B, H, L)."""
    return einsum("bli,hij,bj->bhl", z, kq, z_q)


def share(s: np.ndarray, length: int | None) -> np.ndarray:
    """Turn scores into weights."""
    return s / (s.shape[-1] if length is None else length)


def linear(
    compare: Callable[..., np.ndarray] = compare, share: Callable[..., np.ndarray] = share
) -> Callable[..., Any]:
    """Return linear attention with these steps."""

    def wrong(z_q: np.ndarray, z: np.ndarray, kq: np.ndarray, ov: np.ndarray, *, length: int | None = None) -> Any:
        return einsum("hio,bhl,bli->bo", ov, share(compare(z, z_q, kq), length), z)

    return wrong


def see(length: int) -> np.ndarray:
    """Return which positions are seen."""
    return np.tri(length, dtype=bool)


def first(s: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Normalise for the first time."""
    del seen
    return weigh(s)


def second(p: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Normalise for the second time."""
    return weigh(np.where(seen, p, -1e9))


def double_softmax(
    see: Callable[..., np.ndarray] = see,
    first: Callable[..., np.ndarray] = first,
    second: Callable[..., np.ndarray] = second,
) -> Callable[..., Any]:
    """Return the causal layer with two softmaxes, with these steps."""

    def wrong(x: np.ndarray, weights: Any) -> np.ndarray:
        w_k, w_q, w_v, w_o = weights
        N, D = x.shape[1:]
        if N == 0:
            return x
        s = einsum("hij,hik,bmj,bnk->bhnm", w_k, w_q, x, x) / D**0.5
        p = second(first(s, see(N)), see(N))
        return einsum("hok,hkj,bhnm,bmj->bno", w_o, w_v, p, x)

    return wrong


def widen(cov: np.ndarray, length: int, noise_var: float) -> float:
    """Return what is added to every eigenvalue."""
    return float((np.trace(cov) + len(cov) * noise_var) / length)


def gain(length: int, *, debiased: bool) -> float:
    """Return what the covariance is multiplied by."""
    return 1.0 if debiased else 1 + 1 / length


def precondition(widen: Callable[..., float] = widen, gain: Callable[..., float] = gain) -> Callable[..., Any]:
    """Return the preconditioner with these steps."""

    def wrong(cov: np.ndarray, length: int, noise_var: float, *, debiased: bool = True) -> np.ndarray:
        values, vectors = np.linalg.eigh(cov)
        new = gain(length, debiased=debiased) * values + widen(cov, length, noise_var)
        return np.asarray((vectors / new) @ vectors.T)

    return wrong
