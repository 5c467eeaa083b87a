"""TurboBoA's loops in PyTorch: rows of a head in blocks, columns within a block one after the other.

The peer of tests/benchmarks/test_turboboa_speed.py, as one would write it in PyTorch: on a fixed grid, with both
factors computed once, and updates of columns gathered over 32 before they reach the rest.
"""

import torch


def inverse_cholesky_upper(h):
    """Return the upper triangular U with H⁻¹ = Uᵀ U."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def damped(h):
    """Return H with a hundredth of its mean diagonal entry added to the diagonal."""
    mean = h.diagonal(dim1=-2, dim2=-1).mean(-1)
    return h + 0.01 * mean[..., None, None] * torch.eye(h.shape[-1], dtype=h.dtype)


def column_loop(block, upper, scale, zero, most, lazy=32):
    """Return the rounded weights of a block of rows (H, N, d)."""
    moved, rounded, columns = block.clone(), torch.empty_like(block), block.shape[-1]
    scale, zero = scale[..., 0, 0], zero[..., 0, 0]  # (H, N)
    for begin in range(0, columns, lazy):
        end = min(begin + lazy, columns)
        part, errors = moved[..., begin:end].clone(), torch.empty_like(block[..., begin:end])
        factor = upper[begin:end, begin:end]
        for i in range(end - begin):
            w = part[..., i]
            q = scale * (torch.clamp(torch.round(w / scale) + zero, 0, most) - zero)
            error = (w - q) / factor[i, i]
            part[..., i:] -= error[..., None] * factor[i, i:]
            rounded[..., begin + i], errors[..., i] = q, error
        moved[..., end:] -= errors @ upper[begin:end, end:]
    return rounded


@torch.no_grad()
def turboboa(w, h_in, h_out, scale, zero, bits, block_rows):
    """Return the rounded weights (H, r, d), on a fixed grid, without residual and refinement."""
    upper, upper_out = inverse_cholesky_upper(damped(h_in)), inverse_cholesky_upper(damped(h_out))
    left, weights = w.clone(), []
    for begin in range(0, w.shape[1], block_rows):
        rows, rest = slice(begin, begin + block_rows), slice(begin + block_rows, None)
        block = left[:, rows]
        weights.append(column_loop(block, upper, scale[:, rows], zero[:, rows], 2**bits - 1))
        if rest.start < w.shape[1]:
            share = torch.linalg.solve_triangular(upper_out[:, rows, rows], upper_out[:, rows, rest], upper=True)
            left[:, rest] -= share.mT @ (block - weights[-1])
    return torch.cat(weights, dim=1)


def loops(w, h_in, h_out, grid, bits, block_rows):
    """Return a call that quantises NumPy arrays on one thread, in their dtype."""
    torch.set_num_threads(1)
    arrays = [torch.from_numpy(x) for x in (w, h_in, h_out, *grid)]
    return lambda: turboboa(*arrays, bits, block_rows).numpy()
