"""Scaled dot-product attention a second time: the online softmax in blocks, in the array-API standard."""

from refattn.backends.portable.attention.forward import AttentionResult, attention, merge_attention
from refattn.backends.portable.attention.gradients import Gradients, attention_vjp
from refattn.backends.portable.attention.packed import attention_paged, attention_varlen

__all__ = [
    "AttentionResult",
    "Gradients",
    "attention",
    "attention_paged",
    "attention_varlen",
    "attention_vjp",
    "merge_attention",
]
