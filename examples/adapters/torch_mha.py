"""PyTorch's ``multi_head_attention_forward``, the core of ``nn.MultiheadAttention``, its projections the identity."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
from torch.nn.functional import multi_head_attention_forward as attend

ARRAYS, CONVENTIONS = "torch", {"visibility": "mask", "mask": "ignore", "kv_heads": "repeated", "empty": "nan"}


def attention(q, k, v, *, mask=None, bias=None):
    """Attend in the layout (batch, heads, length, channels), through packed heads; True in a mask means ignore."""
    if v.shape != k.shape or not (mask is None or bias is None):
        raise NotImplementedError("values of another width than the keys, or a mask beside a bias")
    H, one, rules = q.shape[1], q.new_ones(q.shape[1] * q.shape[3]).diag(), bias if mask is None else mask
    q, k, v = (x.permute(2, 0, 1, 3).flatten(2) for x in (q, k, v))
    rules = None if rules is None else rules.expand(q.shape[1], H, len(q), len(k)).flatten(0, 1)
    fixed = (one.repeat(3, 1), None, None, None, False, 0.0, one, None)
    return attend(q, k, v, len(one), H, *fixed, attn_mask=rules)[0].unflatten(2, (H, -1)).permute(1, 2, 0, 3)
