"""Attention by transport: every target token has a budget, and the softmax must keep to it.

Transport between the tokens of two modalities, and the kernel attention of OTK, which transports tokens onto learnt
references. Labels (cta-12) and (cta-13) are those of the page.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn.layers.context_aware_attention import token_mask
from refattn.primitives.arguments import as_float, require, require_one_of
from refattn.primitives.optimal_transport import emd_plan, pairwise_sq_cost, sinkhorn_plan, transport_map
from refattn.primitives.softmax import log_sum_exp

__all__ = ["ot_cross_attention", "ot_kernel_attention"]

METHODS = ("sinkhorn", "emd")


def ot_cross_attention(
    source: Any,
    target: Any,
    *,
    reg: float | None = None,
    normalize: str | None = "max",
    method: str = "sinkhorn",
    tol: float | None = 1e-9,
    max_iter: int = 10_000,
) -> np.ndarray:
    """Replace every source token by the mixture of target tokens that it is transported to.

    Parameters
    ----------
    source, target : array_like, shape (..., n, d) and (..., m, d)
        Tokens of two modalities in one space; each side is weighted uniformly.
    reg : float, optional
        ε of the Sinkhorn plan, which needs it; the exact plan has none.
    normalize
        See `pairwise_sq_cost`.
    method : {"sinkhorn", "emd"}
        The entropic or the exact plan.
    tol, max_iter
        See `sinkhorn_plan`.

    Returns
    -------
    ndarray, shape (..., n, d)
        In the dtype of ``source``.

    Raises
    ------
    ValueError
        If shapes do not fit, an option is out of range, or Sinkhorn is asked for without ``reg``.

    Warns
    -----
    RuntimeWarning
        If Sinkhorn does not converge.

    Notes
    -----
    This is our reading of the paper's "optimal transport domain adaptation", the barycentric map of POT's
    ``BaseTransport.transform``; which of POT's variants the paper used is not known to us. The first half step of
    Sinkhorn, rows made right and columns not yet, is cross-attention with the logits −|x − y|²/ε.
    """
    source = as_float("source", source)
    target = as_float("target", target).astype(source.dtype, copy=False)
    require_one_of("method", method, METHODS)
    cost = pairwise_sq_cost(source, target, normalize=normalize)  # (..., n, m)
    n, m = cost.shape[-2:]
    a, b = np.full(n, 1.0 / n), np.full(m, 1.0 / m)
    if method == "emd":
        return transport_map(emd_plan(a, b, cost), target)
    require(reg is not None, "reg=None, but Sinkhorn needs a positive number")
    return transport_map(sinkhorn_plan(a, b, cost, reg, tol=tol, max_iter=max_iter), target)  # type: ignore[arg-type]


@np.errstate(under="ignore", divide="ignore")
def ot_kernel_attention(
    x: Any, reference: Any, *, eps: float, n_iter: int = 100, mask: Any = None, return_weights: bool = False
) -> Any:
    """Share the tokens out among p references, each of which takes the same amount.

    Parameters
    ----------
    x : array_like, shape (..., n, d)
        Tokens.
    reference : array_like, shape (H, p, d)
        p references for each of H heads.
    eps : float
        ε > 0 of the kernel exp(x·w/ε).
    n_iter : int
        How often u and v are updated, once at least.
    mask : array_like of bool, shape (..., n), optional
        True = real token.
    return_weights : bool
        Return the weights too.

    Returns
    -------
    out : ndarray, shape (..., p, H·d)
        The mixture that each reference takes, heads side by side; in the dtype of ``x``.
    weights : ndarray, shape (..., H, p, n)
        Only with ``return_weights``. Each reference's weights sum to 1; once converged, those of a token sum to p/n.

    Raises
    ------
    ValueError
        If shapes do not fit, ``eps`` or ``n_iter`` is out of range, or a sequence has no real token.

    Notes
    -----
    u and v are kept as logarithms: exp(x·w/ε) overflows for the small ε that the method is used with. The released
    code has both forms (``log_domain``); they are the same function.

    References
    ----------
    `otk/sinkhorn.py` of claying/OTK.
    """
    x = as_float("x", x)
    reference = as_float("reference", reference, ndim=3).astype(x.dtype, copy=False)
    require(np.isfinite(eps) and eps > 0, f"eps={eps!r} must be > 0 and finite")
    require(n_iter >= 1, f"n_iter={n_iter!r} must be >= 1")
    mask = token_mask(mask, x)
    H, p, d = reference.shape
    require(x.shape[-1] == d and p >= 1, f"reference has shape {reference.shape}, expected (H, p >= 1, {x.shape[-1]})")
    kernel = x[..., None, :, :] @ np.swapaxes(reference, -1, -2) / eps  # log K (..., H, n, p)
    real = mask[..., None, :]  # (..., 1, n)
    share = np.log(p / np.sum(real, axis=-1, keepdims=True)).astype(x.dtype)  # log(p/n) (..., 1, 1)
    v = np.zeros((*kernel.shape[:-2], p), x.dtype)  # log v (..., H, p)
    # eq: cta-13
    for _ in range(n_iter):
        u = np.where(real, share - log_sum_exp(kernel + v[..., None, :], axis=-1), -np.inf)  # log u (..., H, n)
        v = -log_sum_exp(kernel + u[..., None], axis=-2)
    a = np.swapaxes(np.exp(u[..., None] + kernel + v[..., None, :]), -1, -2)  # (..., H, p, n)
    out = a @ np.where(mask[..., None], x, 0)[..., None, :, :]  # (..., H, p, d)
    out = np.swapaxes(out, -2, -3).reshape(*x.shape[:-2], p, H * d)
    return (out, a) if return_weights else out
