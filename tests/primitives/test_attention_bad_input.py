"""What attention refuses: by the argument's name and value."""

import numpy as np
import pytest

from refattn.primitives.attention import attention
from refattn.primitives.attention_gradients import attention_vjp
from refattn.primitives.attention_loop import attention_loop
from refattn.primitives.attention_online import attention_online, merge_attention
from refattn.primitives.attention_packed import attention_paged, attention_varlen
from refattn.primitives.attention_ring import ring_attention

Q, K, V = np.ones((2, 4, 3, 5)), np.ones((2, 2, 6, 5)), np.ones((2, 2, 6, 7))


def ring(q, k, v, **options):
    return ring_attention(q, k, v, world=2, **options)


def gradient(q, k, v, **options):
    return attention_vjp(q, k, v, np.ones((2, 4, 3, 7)), **options)


FORMS = pytest.mark.parametrize("form", [attention, attention_loop, attention_online, ring, gradient])


@FORMS
@pytest.mark.parametrize(
    ("q", "k", "v", "words"),
    [
        (Q[0, 0], K, V, "q has 2 axes"),
        (Q, K[0], V, "k has 3 axes"),
        (Q, K, V[None], "v has 5 axes"),
        (Q[:1], K, V, "batch of q, k, v is 1, 2, 2"),
        (Q, K, V[:1], "batch of q, k, v is 2, 2, 1"),
        (Q[..., :4], K, V, "d of q is 4 and of k 5"),
        (Q, K[:, :, :5], V, "length of k is 5 and of v 6"),
        (Q, K[:, :1], V, "heads of k are 1 and of v 2"),
        (Q[:, :3], K, V, "q has 3 heads, which is no multiple of the 2"),
        (Q, K[:, :0], V[:, :0], "q has 4 heads, which is no multiple of the 0"),
        (Q[..., :0], K[..., :0], V, "d of q and k is 0"),
    ],
)
def test_shapes(form, q, k, v, words):
    """Shapes that do not belong together are refused."""
    with pytest.raises(ValueError, match=words):
        form(q, k, v)


@FORMS
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": np.ones((3, 6))}, "mask has dtype float64"),
        ({"mask": np.ones((3, 6), int)}, "mask has dtype int64"),
        ({"mask": np.ones((3, 5), bool)}, r"mask has shape \(3, 5\)"),
        ({"mask": np.ones((3, 1, 3, 6), bool)}, "mask has leading axes"),
        ({"bias": np.ones((3, 6), bool)}, "bias is boolean or complex"),
        ({"bias": np.ones((3, 6), complex)}, "bias is boolean or complex"),
        ({"bias": np.ones(4)}, r"bias has shape \(4,\)"),
        ({"bias": np.ones((2, 2, 3, 6))}, r"bias has shape \(2, 2, 3, 6\)"),
        ({"bias": np.ones((1, 1, 1, 1, 1))}, "bias has 5 axes"),
        ({"bias": np.full(6, np.nan)}, "bias holds NaN"),
        ({"bias": np.full(6, np.inf)}, r"bias holds NaN or \+inf"),
        ({"alibi_slopes": np.ones(2)}, r"alibi_slopes has shape \(2,\)"),
        ({"alibi_slopes": np.full(4, np.nan)}, "alibi_slopes="),
        ({"alibi_slopes": np.full(4, np.inf)}, "alibi_slopes="),
        ({"sinks": np.ones(2)}, r"sinks has shape \(2,\)"),
        ({"sinks": np.full(4, np.nan)}, "sinks="),
        ({"sinks": np.full(4, np.inf)}, "sinks="),
        ({"scale": np.nan}, "scale=nan"),
        ({"scale": -np.inf}, "scale=-inf"),
        ({"softcap": -1.0}, r"softcap=-1\.0"),
        ({"softcap": np.inf}, "softcap=inf"),
        ({"softcap": np.nan}, "softcap=nan"),
        ({"window": (-1, None)}, r"window=\(-1, None\): left"),
        ({"window": (0, -1)}, r"window=\(0, -1\): right"),
        ({"align": "centre"}, "align='centre'"),
        ({"align": [1, 2, 3]}, "align has 3 batch entries"),
        ({"kv_lengths": [1.0, 2.0]}, "kv_lengths has dtype float64"),
        ({"kv_lengths": [-1, 2]}, "kv_lengths="),
        ({"kv_lengths": [7, 2]}, "kv_lengths="),
        ({"kv_lengths": [6]}, "kv_lengths has 1 entries, expected 2"),
        ({"q_lengths": [4, 2]}, "q_lengths="),
        ({"q_lengths": [1, 1, 1]}, "q_lengths has 3 entries, expected 2"),
        ({"prefix": -1}, "prefix="),
        ({"doc_q": [0, 0, 0]}, "doc_q and doc_k"),
        ({"doc_q": [0, 0], "doc_k": [0] * 6}, "doc_q has shape"),
        ({"doc_q": [0] * 3, "doc_k": [0] * 5}, "doc_k has shape"),
        ({"doc_q": [[0] * 3] * 3, "doc_k": [0] * 6}, "doc_q has 3 batch entries"),
        ({"chunk": 0}, "chunk=0"),
        ({"empty": "mean"}, "empty='mean'"),
        ({"layout": "hbsd"}, "layout='hbsd'"),
        ({"dropout_p": 0.5}, r"dropout_p=0\.5"),
    ],
)
def test_options(form, options, words):
    """Options that break their rule are refused, whatever the form of computing."""
    with pytest.raises(ValueError, match=words):
        form(Q, K, V, **options)


@FORMS
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("dtype", [object, complex, int, bool])
def test_dtypes(form, name, dtype):
    """Objects, complex numbers, integers and booleans are refused by TypeError."""
    arrays = {"q": Q, "k": K, "v": V}
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(TypeError, match=f"{name} has dtype"):
        form(**arrays)


@FORMS
def test_masked_arrays(form):
    """Masked arrays are refused by TypeError, as tensors, masks and biases."""
    with pytest.raises(TypeError, match="q is a masked array"):
        form(np.ma.masked_array(Q), K, V)
    with pytest.raises(TypeError, match="mask is a masked array"):
        form(Q, K, V, mask=np.ma.masked_array(np.ones(6, bool)))
    with pytest.raises(TypeError, match="bias is a masked array"):
        form(Q, K, V, bias=np.ma.masked_array(np.ones(6)))
    with pytest.raises(TypeError, match="sinks is a masked array"):
        form(Q, K, V, sinks=np.ma.masked_array(np.ones(4)))


def test_unknown_names():
    """Unknown options and results are refused by name."""
    with pytest.raises(TypeError, match="is_causal"):
        attention_loop(Q, K, V, is_causal=True)
    with pytest.raises(ValueError, match="returns='probabilities'"):
        attention(Q, K, V, returns=("out", "probabilities"))
    for form in (attention_online, ring):
        with pytest.raises(ValueError, match="returns='weights'"):
            form(Q, K, V, returns="weights")


def test_packed_heads_need_their_number():
    """The layout of packed heads needs both numbers of heads, which must divide the columns."""
    packed = [x.swapaxes(1, 2).reshape(2, x.shape[2], -1) for x in (Q, K, V)]
    with pytest.raises(ValueError, match="needs q_heads and kv_heads"):
        attention(*packed, layout="bs(hd)", kv_heads=2)
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        attention(*packed, layout="bs(hd)", q_heads=3, kv_heads=2)
    with pytest.raises(ValueError, match="q has 4 axes"):
        attention(Q, K, V, layout="bs(hd)", q_heads=4, kv_heads=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_k": 0}, "block_k=0"),
        ({"block_q": -1}, "block_q=-1"),
        ({"block_k": 2, "order": [0, 1]}, r"order=\[0, 1\]"),
        ({"block_k": 2, "order": [0, 1, 1]}, "order="),
    ],
)
def test_blocks(options, words):
    """Blocks must have a positive length and each be visited once."""
    with pytest.raises(ValueError, match=words):
        attention_online(Q, K, V, **options)


def test_ring():
    """The ring must have ranks and a known placement."""
    with pytest.raises(ValueError, match="world=0"):
        ring_attention(Q, K, V, world=0)
    with pytest.raises(ValueError, match="placement='random'"):
        ring_attention(Q, K, V, world=2, placement="random")


def test_merge():
    """Parts must exist, agree in shape, and mark an empty part by −∞."""
    out, lse = np.ones((2, 3, 4)), np.ones((2, 3))
    for outs, lses, words in (
        ([], [], "outs is empty"),
        ([out], [lse, lse], "outs has shape"),
        ([out, out[:1]], [lse, lse], "outs holds parts of different shapes"),
        ([out], [np.full((2, 3), np.inf)], r"lses holds \+inf"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_attention(outs, lses)
    with pytest.raises(ValueError, match="sinks has shape"):
        merge_attention([out], [lse], sinks=np.ones(3))
    with pytest.raises(ValueError, match="sinks="):
        merge_attention([out], [lse], sinks=[np.nan, 0.0])


@pytest.mark.parametrize(
    ("cu_q", "cu_k", "words"),
    [
        ([1, 3], [0, 6], "cu_q=.* must start at 0"),
        ([0, 3], [0, 4, 2, 6], "cu_k=.* must not decrease"),
        ([0, 2], [0, 6], "cu_q=.* must end at the number of tokens, 3"),
        ([0, 3], [0, 2, 6], "cu_q has 2 entries and cu_k 3"),
        ([0.0, 3.0], [0, 6], "cu_q has dtype"),
        ([], [0, 6], "cu_q=.* must start at 0"),
    ],
)
def test_sequence_bounds(cu_q, cu_k, words):
    """Bounds of packed sequences start at 0, do not decrease and end at the total."""
    q, k, v = Q[0].swapaxes(0, 1), K[0].swapaxes(0, 1), V[0].swapaxes(0, 1)
    with pytest.raises(ValueError, match=words):
        attention_varlen(q, k, v, cu_q, cu_k)


def test_packed_arrays():
    """Packed arrays have three axes, floats, and slopes for each sequence."""
    q, k, v = Q[0].swapaxes(0, 1), K[0].swapaxes(0, 1), V[0].swapaxes(0, 1)
    for arrays, options, words in (
        ((Q, k, v), {}, "q has 4 axes"),
        ((q, k, v[:5]), {}, "length of k is 6 and of v 5"),
        ((q, k, v), {"alibi_slopes": np.ones((3, 4))}, "alibi_slopes has 3 rows"),
        ((q, k, v), {"align": [0, 0]}, "align has 2 entries"),
        ((q, k, v), {"returns": "weights"}, "returns='weights'"),
    ):
        with pytest.raises(ValueError, match=words):
            attention_varlen(*arrays, [0, 3], [0, 6], **options)
    with pytest.raises(TypeError, match="q has dtype int64"):
        attention_varlen(q.astype(int), k, v, [0, 3], [0, 6])


@pytest.mark.parametrize(
    ("table", "lengths", "words"),
    [
        ([[0, 5], [1, 2]], [3, 3], r"block_table\[0\]=.* names pages outside 0\.\.4"),
        ([[0, 1], [-1, 2]], [3, 1], r"block_table\[1\]"),
        ([[0, 1]], [3, 3], "block_table has 1 rows"),
        ([[0, 1], [1, 2]], [3], "kv_lengths has 1 entries"),
        ([[0, 1], [1, 2]], [3, 5], "kv_lengths=.* must lie in 0..4"),
        ([[0, 1], [1, 2]], [-1, 3], "kv_lengths="),
        ([[0.0, 1.0], [1.0, 2.0]], [3, 3], "block_table has dtype"),
    ],
)
def test_block_tables(table, lengths, words):
    """A needed table entry must name a page, and lengths fit the table; entries not needed may be anything."""
    k_pages, v_pages = np.ones((5, 2, 2, 5)), np.ones((5, 2, 2, 7))
    with pytest.raises(ValueError, match=words):
        attention_paged(Q, k_pages, v_pages, table, lengths)
    assert attention_paged(Q, k_pages, v_pages, [[0, -7], [99, 99]], [2, 0]).out.shape == (2, 4, 3, 7)


def test_pages():
    """Pages of keys and values agree, and packed heads are no layout of a paged call."""
    k_pages = np.ones((5, 2, 2, 5))
    with pytest.raises(ValueError, match="k_pages has pages"):
        attention_paged(Q, k_pages, np.ones((5, 3, 2, 7)), [[0], [0]], [1, 1])
    with pytest.raises(ValueError, match=r"layout='bs\(hd\)'"):
        attention_paged(Q, k_pages, k_pages, [[0], [0]], [1, 1], layout="bs(hd)")
