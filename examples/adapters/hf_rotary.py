"""Hugging Face's rotary embedding as its Llama model runs it: half-split pairs, tables in float32."""

# ruff: noqa: ANN001, ANN201  # signatures are those of the contract
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

ARRAYS, DTYPES = "torch", ("float32", "float16", "bfloat16")
NAMES = {"original_max": "original_max_position_embeddings", "type": "rope_type"}


def rotary_embedding(x, positions, *, theta=10000.0, scaling=None):
    """Rotate (batch, heads, length, channels) at positions (length,) or (batch, 1, length)."""
    if scaling and scaling["type"] not in llama.ROPE_INIT_FUNCTIONS:
        raise NotImplementedError(f"scaling {scaling['type']}")
    rule = scaling and {NAMES.get(name, name): value for name, value in scaling.items()}
    tables = llama.LlamaRotaryEmbedding(LlamaConfig(head_dim=x.shape[-1], rope_theta=theta, rope_scaling=rule))
    return llama.apply_rotary_pos_emb(x, x, *tables(x, positions.reshape(-1, x.shape[2])))[0]
