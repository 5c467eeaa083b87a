"""PyTorch's ``scaled_dot_product_attention``: its fused paths where they can take the case, else a mask."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
import torch
from torch.nn.functional import scaled_dot_product_attention

ARRAYS, CONVENTIONS = "torch", {"alibi": "bias", "empty": "zero"}


def attention(q, k, v, *, scale=None, mask=None, bias=None, causal=False, align="top_left"):
    """Attend in the layout (batch, heads, length, channels)."""
    fused = mask is None and bias is None and (align == "top_left" or not causal)
    offset = {"top_left": 0, "bottom_right": k.shape[2] - q.shape[2]}.get(align, align) if causal else k.shape[2]
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
    seen = seen if mask is None else seen & mask
    rules = None if fused else seen if bias is None else torch.where(seen, bias, -torch.inf)
    return scaled_dot_product_attention(q, k, v, rules, is_causal=fused and causal, scale=scale, enable_gqa=True)
