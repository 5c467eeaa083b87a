"""JAX's ``jax.nn.dot_product_attention``: length before heads, positions from the top left, empty rows the mean."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
from jax.nn import dot_product_attention

ARRAYS, DTYPES = "jax", ("float32", "float16", "bfloat16")  # its softmax is float32 in float64 too
CONVENTIONS = {"layout": "bshd", "align": "top_left", "empty": "uniform", "alibi": "bias"}


def attention(q, k, v, *, scale=None, mask=None, bias=None, causal=False, window=None, kv_lengths=None):
    """Attend in the layout (batch, length, heads, channels)."""
    if v.shape != k.shape:
        raise NotImplementedError("values of another width than the keys")
    mask, bias = (x if x is None else x.reshape((1,) * (4 - x.ndim) + x.shape) for x in (mask, bias))
    window = window and tuple(q.shape[1] + k.shape[1] if side is None else side for side in window)
    rest = {} if kv_lengths is None else {"key_value_seq_lengths": kv_lengths.astype("int32")}
    return dot_product_attention(q, k, v, bias, mask, scale=scale, is_causal=causal, local_window_size=window, **rest)
