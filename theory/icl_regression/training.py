"""Training the attention on fresh prompts, many replicas at once, and reading off what it has become.

`full_model` trains the factored weights and assumes nothing. `averaged_models` assume the pattern that the full model
ends in and take the averages over rules and noises by hand; they show how the pattern evolves, never that it emerges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.layers.icl_regression import ICLAttentionWeights, kq_matrix, ov_matrix
from refattn.primitives.arguments import require, require_one_of
from theory.icl_regression.averaged_models import AVERAGED, AveragedModel, averages, initial_heads
from theory.icl_regression.descent import Descent
from theory.icl_regression.full_model import FullModel, HeadParameters, initial_weights
from theory.icl_regression.samplers import require_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MODELS", "TrainResult", "evaluate", "fast_generator", "pattern_metrics", "train_icl", "trapped"]

MODELS = ("full", *AVERAGED)
DIVERGED = 1e6  # a loss beyond this never comes back; predicting zero costs about 1


@dataclass(frozen=True)
class TrainResult:
    """What happened in a training run of R replicas, at T moments.

    Attributes
    ----------
    step : ndarray, (T,)
        Steps done at each moment; the first is 0.
    loss : ndarray, (T, R)
        Mean loss of the batches since the moment before; at step 0 that of the first batch.
    omega : ndarray, (T, R, H, ...)
        Sharpness of the heads; for the full model the mean of the diagonal of the query-key matrix.
    mu : ndarray, (T, R, H) or (T, R, H, N)
        Weight of the responses; for the full model the last entry of the output-value vector.
    weights : ICLAttentionWeights or HeadParameters
        After the last step, with a leading axis of replicas.
    """

    step: np.ndarray
    loss: np.ndarray
    omega: np.ndarray
    mu: np.ndarray
    weights: ICLAttentionWeights | HeadParameters

    @property
    def trapped(self) -> np.ndarray:
        """Which replicas (R,) ended with all their heads on one side."""
        return trapped(self.mu[-1])


def train_icl(
    n_head: int,
    dim: int,
    length: int,
    noise_var: float,
    *,
    steps: int,
    batch: int,
    lr: float,
    rng: np.random.Generator,
    optimizer: str = "adam",
    replicas: int = 1,
    model: str = "full",
    log_every: int = 100,
    init: str | ICLAttentionWeights | HeadParameters = "random",
    weight_decay: float | None = None,
    cov: Any = None,
    supports: Sequence[Sequence[int]] | None = None,
    dtype: Any = np.float64,
) -> TrainResult:
    """Train replicas of a model on one stream of fresh batches.

    Parameters
    ----------
    n_head, dim, length : int
        Number H of heads, d of covariates, L of context tokens.
    noise_var : float
        Variance σ² of the noise of every response.
    steps, batch : int
        Number of steps, and B of prompts a step.
    lr : float
        Learning rate.
    rng : numpy.random.Generator
        Source of all randomness. One child of it draws the start, another the prompts: the prompts do not depend on
        the number of replicas. `fast_generator` makes one that draws fast.
    optimizer : {"adam", "sgd", "adamw"}
        Which optimiser, as PyTorch defines it.
    replicas : int
        Number R of independent starts; they share the prompts, whose cost is paid once.
    model : {"full", "semi", "diagonal", "reduced"}
        What is trained: factored weights, or heads with a full matrix, a diagonal, or one number.
    log_every : int
        Steps between two moments of the result; the last step is always one.
    init : str or weights
        For the full model a ``method`` of `init_weights`; for the others ``"random"``, N(0, 0.1²) each. Or parameters
        to start from, with a leading axis R: ``TrainResult.weights`` continues a run, with a fresh optimiser.
    weight_decay : float, optional
        For ``adamw``; 0.01 if not given.
    cov : ndarray, (d, d), optional
        Covariance of the covariates, for ``semi`` and ``diagonal``.
    supports : sequence of sequence of int, optional
        The coordinates of each of N tasks, for ``semi`` and ``diagonal``; one task of all coordinates if not given.
    dtype : dtype, optional
        float64, or float32 for speed.

    Returns
    -------
    TrainResult
        Losses, parameters over time, final weights.

    Raises
    ------
    ValueError
        If an argument is out of its range, or does not go with another.
    FloatingPointError
        If a loss is not finite or beyond 1e6; the message names the step, the loss and the replica.
    """
    require_problem(dim, length, noise_var)
    require_one_of("model", model, MODELS)
    require(n_head * replicas >= 1 and n_head >= 1, f"n_head={n_head} times replicas={replicas} must be >= 1")
    require(batch >= 1, f"batch={batch} must be >= 1: an empty batch has no loss")
    require(steps >= 0, f"steps={steps} must be >= 0")
    require(log_every >= 1, f"log_every={log_every} must be >= 1")
    start_rng, data_rng = rng.spawn(2)
    trained: FullModel | AveragedModel
    if model == "full":
        require(cov is None and supports is None, "model='full' has neither cov nor supports; use 'semi' or 'diagonal'")
        start = initial_weights(init, n_head, dim, start_rng, replicas=replicas) if isinstance(init, str) else init
        if not isinstance(start, ICLAttentionWeights):
            raise ValueError("init must be ICLAttentionWeights for model='full'")
        trained = FullModel(start, length=length, batch=batch, noise_var=noise_var, dtype=dtype)
    else:
        average = averages(model, dim, noise_var, cov=cov, supports=supports)
        n_task = None if supports is None else len(supports)
        if isinstance(init, str):
            require_one_of("init", init, ("random",))
            init = initial_heads(model, n_head, dim, start_rng, replicas=replicas, n_task=n_task)
        if not isinstance(init, HeadParameters):
            raise ValueError(f"init must be HeadParameters for model={model!r}")
        trained = AveragedModel(
            init, model=model, average=average, dim=dim, length=length, batch=batch, cov=cov, dtype=dtype
        )
    require(
        (trained.replicas, trained.n_head) == (replicas, n_head),
        f"init holds {trained.replicas} replicas of {trained.n_head} heads, expected {replicas} of {n_head}",
    )
    descent = Descent(optimizer, lr, trained.parameters.size, weight_decay=weight_decay, dtype=dtype)
    return _train(trained, descent, data_rng, steps, log_every)


def evaluate(
    weights: ICLAttentionWeights, length: int, noise_var: float, *, prompts: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean loss of each replica on fresh prompts of any length, and its standard error, both (R,).

    Parameters
    ----------
    weights : ICLAttentionWeights
        With a leading axis R, as in ``TrainResult.weights``.
    length : int
        Number L of context tokens.
    noise_var : float
        Variance σ² of the noise.
    prompts : int
        Number of prompts, rounded up to whole batches of 500.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    mean, stderr : ndarray, (R,)
        Over batches.
    """
    require_problem(np.shape(weights.w_k)[-1] - 1, length, noise_var)
    batch, batches = 500, max(2, -(-prompts // 500))
    model = FullModel(weights, length=length, batch=batch, noise_var=noise_var)
    losses = []
    for _ in range(batches):
        model.draw(rng)
        losses.append(model.loss())
    return np.mean(losses, 0), np.std(losses, 0, ddof=1) / np.sqrt(batches)


def pattern_metrics(weights: ICLAttentionWeights) -> dict[str, np.ndarray]:
    """Measure how far weights are from the pattern ``KQ_h = [ω_h I; 0]``, ``OV_h = (0, μ_h)``.

    Parameters
    ----------
    weights : ICLAttentionWeights
        Of one model, or with leading axes of replicas, which the results keep.

    Returns
    -------
    dict of ndarray
        ``diag_ratio``, the mean over heads of ``‖diag‖/‖·‖_F`` of the d × d block of KQ: 1 in the pattern.
        ``diag_cv2``, the mean over heads of variance over squared mean of that diagonal: 0 in the pattern.
        ``ov_last_ratio``, the mean over heads of ``|OV_last|/‖OV‖``: 1 in the pattern.
        ``sum_mu``, ``Σ_h μ_h`` with μ the last entry of OV: 0 for two heads and more.
        ``mu_dot_omega``, ``Σ_h μ_h ω_h`` with ω the mean of the diagonal: the step of gradient descent.
    """
    shape = np.shape(weights.w_k)[:-2]
    heads = ICLAttentionWeights(*(np.reshape(w, (-1, *np.shape(w)[-2:])) for w in weights))
    kq = kq_matrix(heads)[:, :-1, :-1].reshape(*shape, *np.array(heads.w_k.shape[1:]) - 1)  # (..., H, d, d)
    ov = ov_matrix(heads)[..., 0].reshape(*shape, -1)  # (..., H, D)
    diagonal = np.diagonal(kq, axis1=-2, axis2=-1)  # (..., H, d)
    omega, mu = np.mean(diagonal, -1), ov[..., -1]
    return {
        "diag_ratio": np.mean(_norm(diagonal) / np.linalg.norm(kq, axis=(-2, -1)), -1),
        "diag_cv2": np.mean(np.var(diagonal, -1) / omega**2, -1),
        "ov_last_ratio": np.mean(np.abs(mu) / _norm(ov), -1),
        "sum_mu": np.sum(mu, -1),
        "mu_dot_omega": np.sum(mu * omega, -1),
    }


def trapped(mu: np.ndarray) -> np.ndarray:
    """Say which models have all their heads on one side: ``|Σ_h μ_h| > ½ Σ_h |μ_h|`` in some task.

    Where heads of both signs are at work, their weights cancel and the ratio is near 0; where all signs agree it is 1,
    and the model is no better than one head. One head alone is not called trapped.

    Parameters
    ----------
    mu : ndarray, (..., R, H) or (R, H, N)
        Weights of the responses; with three axes the last is taken for the tasks.

    Returns
    -------
    ndarray of bool, (R,)
    """
    mu = mu[..., None] if mu.ndim == 2 else mu  # (R, H, N)
    one_sided = np.abs(mu.sum(1)) > np.abs(mu).sum(1) / 2  # (R, N)
    return np.asarray(one_sided.any(-1) & (mu.shape[1] > 1))


def fast_generator(seed: Any) -> np.random.Generator:
    """Return a generator on the bit generator that draws normals fastest, SFC64.

    A ``SeedSequence`` counts the children that are spawned from it; a copy is taken, so that one seed always begins the
    same run.
    """
    if isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)
    return np.random.Generator(np.random.SFC64(seed))


def _train(
    model: FullModel | AveragedModel, descent: Descent, rng: np.random.Generator, steps: int, log_every: int
) -> TrainResult:
    """Draw, descend, and look every so often."""
    model.draw(rng)
    moments, seen = [(0, model.loss(), *model.heads)], []
    with np.errstate(over="ignore", invalid="ignore"):  # the check of the loss says it with the step
        for step in range(1, steps + 1):
            if step > 1:
                model.draw(rng)
            seen.append(_checked(model.loss_and_gradient(), step))
            descent.update(model.parameters, model.gradient)
            if step % log_every == 0 or step == steps:
                moments.append((step, np.mean(seen, 0), *model.heads))
                seen = []
    at, loss, omega, mu = (np.stack(column) for column in zip(*moments, strict=True))
    return TrainResult(at, loss, omega, mu, model.weights)


def _checked(loss: np.ndarray, step: int) -> np.ndarray:
    """Return the losses (R,) of a step, all of them sane."""
    if not np.max(loss) < DIVERGED:  # also where it is NaN
        worst = int(np.argmax(np.where(np.isnan(loss), np.inf, loss)))
        raise FloatingPointError(f"training diverged at step {step}: loss={loss[worst]} in replica {worst}")
    return loss


def _norm(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(array, axis=-1))
