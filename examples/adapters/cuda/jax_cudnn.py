"""JAX's ``dot_product_attention`` through cuDNN."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
from jax.nn import dot_product_attention

ARRAYS, DTYPES = "jax", ("float16", "bfloat16")
CONVENTIONS = {"layout": "bshd", "align": "top_left", "empty": "uniform", "alibi": "bias", "precision": "fused"}
LACKING = ("not supported", "must", "Unsupported", "only")


def attention(q, k, v, *, scale=None, mask=None, bias=None, causal=False):
    """Attend in the layout (batch, length, heads, channels)."""
    if v.shape != k.shape:
        raise NotImplementedError("values of another width than the keys")
    mask, bias = (x if x is None else x.reshape((1,) * (4 - x.ndim) + x.shape) for x in (mask, bias))
    try:
        return dot_product_attention(q, k, v, bias, mask, scale=scale, is_causal=causal, implementation="cudnn")
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if any(words in str(error) for words in LACKING):
            raise NotImplementedError(str(error).splitlines()[0]) from error
        raise
