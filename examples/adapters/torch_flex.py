"""PyTorch's ``flex_attention``: who sees whom as a mask function, softcap and bias as a score function."""

# ruff: noqa: ANN001, ANN201, E731  # signatures are those of the contract, and ten lines are ten lines
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

ARRAYS, CONVENTIONS = "torch", {"visibility": "mask", "alibi": "bias", "empty": "zero"}


def attention(q, k, v, *, scale=None, mask=None, bias=None, softcap=None):
    """Attend in the layout (batch, heads, length, channels)."""
    full = (*q.shape[:3], k.shape[2])
    mask, bias = (x if x is None else x.expand(full) for x in (mask, bias))
    capped = (lambda s: softcap * torch.tanh(s / softcap)) if softcap else lambda s: s
    score = lambda s, b, h, i, j: capped(s) if bias is None else capped(s) + bias[b, h, i, j]
    blocks = None if mask is None else create_block_mask(lambda b, h, i, j: mask[b, h, i, j], *full, device=q.device)
    return flex_attention(q, k, v, score, blocks, scale, enable_gqa=True)
