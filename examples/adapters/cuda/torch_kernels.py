"""PyTorch's CUDA kernels one by one: ``torch_kernels.py:flash``, ``:efficient``, ``:cudnn``, ``:math``, ``:flex``.

Each forces one kernel of ``scaled_dot_product_attention``; what the kernel cannot take is skipped. ``flex`` is
``flex_attention`` compiled.
"""

# ruff: noqa: ANN001, ANN201, ANN202  # signatures are those of the contract
from functools import cache
from types import SimpleNamespace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

LACKING = ("No available kernel", "not supported", "Expected query, key and value", "is not implemented", "NYI")


def sdpa(q, k, v, *, scale=None, mask=None, bias=None, causal=False, align="top_left"):
    """Attend in the layout (batch, heads, length, channels), through a mask only where the rules need one."""
    fused = mask is None and bias is None and (align == "top_left" or not causal)
    offset = {"top_left": 0, "bottom_right": k.shape[2] - q.shape[2]}.get(align, align) if causal else k.shape[2]
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
    seen = seen if mask is None else seen & mask
    rules = None if fused else seen if bias is None else torch.where(seen, bias, -torch.inf).to(q.dtype)
    return scaled_dot_product_attention(q, k, v, rules, is_causal=fused and causal, scale=scale, enable_gqa=True)


def only(kernel, precision):
    """Return a backend that runs one kernel and declares where it rounds."""

    def attention(q, k, v, *, scale=None, mask=None, bias=None, causal=False, align="top_left"):
        try:
            with sdpa_kernel(kernel):
                return sdpa(q, k, v, scale=scale, mask=mask, bias=bias, causal=causal, align=align)
        except RuntimeError as error:
            if any(words in str(error) for words in LACKING):
                raise NotImplementedError(f"{kernel.name}: {str(error).splitlines()[0]}") from error
            raise

    declared = {"alibi": "bias", "empty": "zero"} | ({"precision": precision} if precision else {})
    dtypes = ("float64", "float32", "float16", "bfloat16") if kernel is SDPBackend.MATH else ("float16", "bfloat16")
    return SimpleNamespace(attention=attention, ARRAYS="torch", DTYPES=dtypes, CONVENTIONS=declared)


@cache
def compiled():
    """Return ``flex_attention`` compiled, once."""
    torch._dynamo.config.cache_size_limit = 10_000  # noqa: SLF001  # every shape of the contract is a new one
    return torch.compile(flex_attention, dynamic=True)


def flex_attention_compiled(q, k, v, *, scale=None, mask=None):
    """Attend through the generated kernel, every rule about who sees whom as a mask function."""
    full = (*q.shape[:3], k.shape[2])
    mask = None if mask is None else mask.expand(full)
    seen = None if mask is None else lambda b, h, i, j: mask[b, h, i, j]
    blocks = None if seen is None else create_block_mask(seen, *full, device=q.device)
    try:
        return compiled()(q, k, v, None, blocks, scale, enable_gqa=True)
    except RuntimeError as error:
        if any(words in str(error) for words in LACKING):
            raise NotImplementedError(str(error).splitlines()[0]) from error
        raise


math = only(SDPBackend.MATH, None)
flash = only(SDPBackend.FLASH_ATTENTION, "fused")
efficient = only(SDPBackend.EFFICIENT_ATTENTION, "fused")
cudnn = only(SDPBackend.CUDNN_ATTENTION, "fused")
flex = SimpleNamespace(
    attention=flex_attention_compiled,
    ARRAYS="torch",
    DTYPES=("float16", "bfloat16"),
    CONVENTIONS={"visibility": "mask", "alibi": "bias", "empty": "zero", "precision": "fused"},
)
