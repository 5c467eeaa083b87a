"""ONNX's ``Attention`` operator, opset 23, as its reference evaluator runs it."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
import numpy as np
from onnx.helper import make_node
from onnx.reference import ReferenceEvaluator

CONVENTIONS, DTYPES = {"align": "top_left", "alibi": "bias", "empty": "zero"}, ("float32", "float16")


def attention(q, k, v, *, scale=None, mask=None, bias=None, causal=False, softcap=0.0):
    """Attend in the layout (batch, heads, length, channels)."""
    rules = mask if bias is None else bias if mask is None else np.where(mask, bias, -np.inf).astype(q.dtype)
    inputs = {"q": q, "k": k, "v": v} | ({} if rules is None else {"rules": np.atleast_2d(rules)})
    node = make_node("Attention", [*inputs], ["out"], is_causal=int(causal), scale=scale, softcap=softcap)
    return ReferenceEvaluator(node).run(None, inputs)[0]
