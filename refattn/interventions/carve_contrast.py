"""Attention to an image, for a question, divided by attention for no question in particular; fused to one map.

From CARVE (2509.06461). Shapes: S generation steps, L layers, H heads, N image tokens on a grid (gh, gw). Equation
labels (carve-1) … (carve-6) are those of the page.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from refattn.interventions.carve_resize import bilinear_resize
from refattn.primitives.arguments import as_float, require, require_finite, require_one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DEFAULT_LAYERS",
    "KNOWN_GRIDS",
    "contrast_attention",
    "contrast_objective",
    "fuse_contrastive_attention",
    "image_attention",
    "image_range",
    "infer_grid",
    "optimal_regularization",
]

DEFAULT_LAYERS = tuple(range(20, 26))
"""The layers that paper and code fuse, counted from 0, in decoders of 28 to 40 layers."""

KNOWN_GRIDS = {576: (24, 24), 1024: (32, 32), 1600: (40, 40), 1681: (41, 41), 256: (16, 16)}
"""The grids that the released code knows by their number of tokens."""

STEPS = ("all", "first", "last", "equal")
FORMS = ("corrected", "paper", "cubic")


def image_attention(weights: Any, image_slice: slice | Sequence[int]) -> np.ndarray:
    """Return how much the last query looks at each image token, averaged over heads.

    Parameters
    ----------
    weights : array_like, shape (..., H, Tq, Tk)
        Attention weights of a layer, after a softmax over all keys.
    image_slice : slice or (int, int)
        Where the image tokens are among the keys: start and stop.

    Returns
    -------
    ndarray, shape (..., N)
        Not renormalised: what goes to other tokens is missing in the sum.

    Raises
    ------
    ValueError
        If ``weights`` has fewer than three axes, no head or no query, or the slice leaves the keys or is empty.
    """
    weights = as_float("weights", weights)
    require(weights.ndim >= 3, f"weights has shape {weights.shape}, expected (..., H, Tq, Tk)")
    require(min(weights.shape[-3:-1]) >= 1, f"weights has shape {weights.shape}: there is no head or no query")
    start, stop = image_range(image_slice, weights.shape[-1])
    # eq: carve-1
    return np.asanyarray(np.mean(weights[..., -1, start:stop], axis=-2))  # (..., N)


def image_range(image_slice: slice | Sequence[int], keys: int) -> tuple[int, int]:
    """Return start and stop of the image tokens among the keys.

    Parameters
    ----------
    image_slice : slice or (int, int)
        Start and stop.
    keys : int
        How many keys there are.

    Returns
    -------
    start, stop : int
        0 ≤ start < stop ≤ keys.

    Raises
    ------
    ValueError
        If the slice leaves the keys, counts from their end, has a step, or is empty.
    """
    if isinstance(image_slice, slice):
        require(image_slice.step in (None, 1), f"image_slice={image_slice!r} must have step 1")
        image_slice = (image_slice.start or 0, keys if image_slice.stop is None else image_slice.stop)
    require(len(image_slice) == 2, f"image_slice={image_slice!r} must be a start and a stop")
    start, stop = index(image_slice[0]), index(image_slice[1])
    inside = 0 <= start < stop <= keys
    require(inside, f"image_slice={image_slice!r} must hold a token, and lie within the {keys} keys")
    return start, stop


def contrast_attention(a_task: Any, a_general: Any, lam: float = 1e-8) -> np.ndarray:
    """Divide attention for the task by attention for a general instruction.

    Parameters
    ----------
    a_task, a_general : array_like, shape (..., N)
        Attention to the image tokens under the two prompts, non-negative.
    lam : float
        λ ≥ 0, added to the denominator; positive if an entry of ``a_general`` is 0.

    Returns
    -------
    ndarray, shape (..., N)
        In the dtype of ``a_task``.

    Raises
    ------
    ValueError
        If the shapes differ, an entry is negative or not finite, or λ is negative, or 0 beside a 0 in ``a_general``.

    Notes
    -----
    The only minimiser of `contrast_objective`, token by token. The paper asks only for λ > 0; 1e-8 is the code's.

    References
    ----------
    2509.06461, Eq. 4.6.
    """
    a_task, a_general = _pair_of_maps(a_task, a_general)
    _check_lam(lam, a_general)
    # eq: carve-2
    return np.asanyarray(a_task / (a_general + lam))


def contrast_objective(x: Any, a_task: Any, a_general: Any, lam: float = 1e-8) -> np.ndarray:
    """Return J(x) = Σ (x A_G − A_Q)² + λ x² A_G, what the contrast minimises.

    Parameters
    ----------
    x : array_like, shape (..., N)
        A candidate for the semantic attention.
    a_task, a_general, lam
        As for `contrast_attention`.

    Returns
    -------
    ndarray, shape (...)
        One number for each map. Strictly convex in x where A_G > 0.

    Raises
    ------
    ValueError
        As for `contrast_attention`, and if the shape of ``x`` differs from that of the maps.

    References
    ----------
    2509.06461, Theorem 3.
    """
    a_task, a_general = _pair_of_maps(a_task, a_general)
    x = as_float("x", x)
    require(x.shape == a_task.shape, f"x has shape {x.shape}, expected {a_task.shape}, that of a_task")
    require(np.isfinite(lam) and lam >= 0, f"lam={lam!r} must be finite and >= 0")
    # eq: carve-3
    return np.asanyarray(np.sum((x * a_general - a_task) ** 2 + lam * x**2 * a_general, axis=-1))


def fuse_contrastive_attention(
    task_maps: Any,
    general_maps: Any,
    grid: Sequence[int],
    size: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    lam: float = 1e-8,
    steps: str = "all",
    ignore_missing: bool = False,
) -> np.ndarray:
    """Contrast step by step and layer by layer, resize to the image, and add up.

    1. Pair the steps of the two runs; the longer run loses its surplus.
    2. Divide: Â for each step and layer.
    3. Lay each Â on the grid, row by row, and resize it to the image.
    4. Add the layers; add the steps with their weights.

    Parameters
    ----------
    task_maps, general_maps : array_like, shapes (S, L, N) and (S', L, N)
        Attention to the image tokens under the question and under the general instruction; see `image_attention`.
    grid : (int, int)
        Rows and columns of the image tokens, gh · gw = N.
    size : (int, int)
        Height and width of the result.
    layers : sequence of int, optional
        Which of the L layers are fused; all of them if not given. `DEFAULT_LAYERS` for all layers of a large decoder.
    lam : float
        See `contrast_attention`.
    steps : {"all", "first", "last", "equal"}
        The weight of step t: t itself; 1 for the first only; 1 for the last only; 1 for each.
    ignore_missing : bool
        Skip layers that the maps do not have, as the released code does, instead of refusing them.

    Returns
    -------
    ndarray, shape (h, w)
        The score map, in the dtype of ``task_maps``.

    Raises
    ------
    ValueError
        If the maps are not of these shapes or without a step, hold negative or non-finite entries, the grid does not
        multiply to N, a size is below 1, a layer is missing, an option is unknown, or λ as in `contrast_attention`.

    Notes
    -----
    The code knows ``all`` and ``first``, and takes every other word for ``equal``. The paper finds the last step alone
    best, but the released code cannot do it: ``last`` is [our definition]. The code guesses the grid, see `infer_grid`.

    References
    ----------
    2509.06461, Algorithm 1.
    """
    task, general = _stacks(task_maps, general_maps)
    (rows, columns), (height, width) = _pair("grid", grid), _pair("size", size)
    require(rows * columns == task.shape[-1], f"grid={grid!r} must multiply to N={task.shape[-1]}")
    require_one_of("steps", steps, STEPS)
    chosen = _chosen_layers(layers, task.shape[1], ignore_missing=ignore_missing)
    S = min(len(task), len(general))  # 1
    _check_lam(lam, general[:S, chosen])
    total = np.zeros((height, width), dtype=task.dtype)
    for t, w in _weighted_steps(S, steps):
        for l in chosen:
            contrast = task[t, l] / (general[t, l] + lam)  # 2 (N,)
            # eq: carve-4
            total = total + w * bilinear_resize(contrast.reshape(rows, columns), (height, width))  # 3, 4 (h, w)
    return total


def infer_grid(n: int, fallback: Sequence[int] | None = None) -> tuple[int, int] | None:
    """Guess the grid of n image tokens as the released code does; None if it would give up.

    Parameters
    ----------
    n : int
        The number of tokens.
    fallback : (int, int), optional
        A grid to try where n is none of the known numbers. It may hold fewer than n tokens: the surplus is then to be
        cut off.

    Returns
    -------
    (int, int) or None
        Rows and columns. A single token has no grid here, although `fuse_contrastive_attention` takes it as (1, 1).

    Raises
    ------
    ValueError
        If n is negative or a side of the fallback is below 1.
    """
    require(index(n) >= 0, f"n={n!r} must be >= 0")
    rows, columns = (0, 0) if fallback is None else _pair("fallback", fallback)
    if n <= 1:
        return None
    if n in KNOWN_GRIDS:
        return KNOWN_GRIDS[n]
    if 0 < rows * columns <= n:
        return rows, columns
    side = int(n**0.5)
    return (side, side) if side * side == n else None


def optimal_regularization(mu: Any, sigma: Any, form: str = "corrected") -> np.ndarray:
    """Return the λ that makes the expected squared error of the contrast smallest, for a noisy denominator.

    Parameters
    ----------
    mu, sigma : array_like
        Mean μ > 0 and standard deviation σ ≥ 0 of A_G at a token; they broadcast.
    form : {"corrected", "paper", "cubic"}
        3 σ²/μ, exact to second order in σ/μ; the paper's closed form; the root of the paper's own stationarity
        condition.

    Returns
    -------
    ndarray
        λ ≥ 0.

    Raises
    ------
    ValueError
        If μ is not positive, σ is negative, or ``form`` is unknown.

    Notes
    -----
    The paper's closed form is about σ²/μ, its stationarity condition λ (μ + λ)² = 2 μ σ² about 2 σ²/μ: they disagree.
    Both leave out that noise in a denominator raises the mean of the quotient; with that bias the optimum is 3 σ²/μ,
    which a simulation confirms. [our correction]

    References
    ----------
    2509.06461, section C (optimal λ).
    """
    mu, sigma = as_float("mu", mu), as_float("sigma", sigma)
    require(np.all(np.isfinite(mu)) and np.all(mu > 0), f"mu={mu!r} must be positive")
    require(np.all(np.isfinite(sigma)) and np.all(sigma >= 0), f"sigma={sigma!r} must be >= 0")
    require_one_of("form", form, FORMS)
    s = (sigma / mu) ** 2
    if form == "corrected":
        # eq: carve-5
        return np.asanyarray(3.0 * s * mu)
    if form == "paper":
        # √(1 + 2s) − 1 without the cancellation of its small difference
        return np.asanyarray(mu * 2.0 * s / (np.sqrt(1.0 + 2.0 * s) + 1.0))
    # eq: carve-6
    x = np.minimum(2.0 * s, np.cbrt(2.0 * s))  # λ/μ; above the root of a convex function, so Newton descends to it
    for _ in range(_NEWTON_STEPS):
        x = x - (x * (1.0 + x) ** 2 - 2.0 * s) / ((1.0 + x) * (1.0 + 3.0 * x))
    return np.asanyarray(mu * x)


_NEWTON_STEPS = 8  # from at most 2.2 times the root, whatever σ/μ; near it each step squares the error


def _pair_of_maps(a_task: Any, a_general: Any) -> tuple[Any, Any]:
    a_task, a_general = as_float("a_task", a_task), as_float("a_general", a_general)
    require(a_task.shape == a_general.shape, f"a_task has shape {a_task.shape}, a_general {a_general.shape}")
    for name, a in (("a_task", a_task), ("a_general", a_general)):
        _check_map(name, a)
    return a_task, a_general.astype(a_task.dtype, copy=False)


def _check_map(name: str, a: Any) -> None:
    require_finite(name, a)
    require(np.all(a >= 0), f"{name} must be non-negative, its smallest entry is {np.min(a, initial=0.0)!r}")


def _check_lam(lam: float, a_general: Any) -> None:
    require(np.isfinite(lam) and lam >= 0, f"lam={lam!r} must be finite and >= 0")
    require(lam > 0 or np.all(a_general > 0), f"lam={lam!r} must be positive where a_general has a zero")


def _stacks(task_maps: Any, general_maps: Any) -> tuple[Any, Any]:
    task = as_float("task_maps", task_maps, ndim=3)
    general = as_float("general_maps", general_maps, ndim=3)
    require(
        task.shape[1:] == general.shape[1:],
        f"task and general maps must agree in layers and tokens, got {task.shape[1:]} and {general.shape[1:]}",
    )
    require(min(len(task), len(general)) >= 1, "task_maps and general_maps must have at least one step")
    _check_map("task_maps", task)
    _check_map("general_maps", general)
    return task, general.astype(task.dtype, copy=False)


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    require(len(value) == 2 and min(map(index, value)) >= 1, f"{name}={value!r} must be two integers, at least 1")
    return index(value[0]), index(value[1])


def _chosen_layers(layers: Sequence[int] | None, L: int, *, ignore_missing: bool) -> list[int]:
    chosen = list(range(L)) if layers is None else [index(l) for l in layers]
    if ignore_missing:
        chosen = [l for l in chosen if l < L]
    require(all(0 <= l < L for l in chosen), f"layers={layers!r} must lie between 0 and {L - 1}")
    return chosen


def _weighted_steps(S: int, steps: str) -> list[tuple[int, float]]:
    """Return the steps that count and their weights."""
    return {
        "all": [(t, t + 1.0) for t in range(S)],
        "first": [(0, 1.0)],
        "last": [(S - 1, 1.0)],
        "equal": [(t, 1.0) for t in range(S)],
    }[steps]
