"""Convolution of channels-last maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.convolution import conv2d, depthwise_conv2d


def by_definition(x, w, b, stride, padding):
    B, H, W, C = x.shape
    D, _, kh, kw = w.shape
    rows, columns = (H + 2 * padding - kh) // stride + 1, (W + 2 * padding - kw) // stride + 1
    out = np.zeros((B, rows, columns, D))
    for n, y, z, d, c, i, j in np.ndindex(B, rows, columns, D, C, kh, kw):
        row, column = y * stride + i - padding, z * stride + j - padding
        if 0 <= row < H and 0 <= column < W:
            out[n, y, z, d] += w[d, c, i, j] * x[n, row, column, c]
    return out + b


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_conv2d_is_its_definition(H, W, kh, kw, stride, padding, seed):
    """conv2d equals the sum of its docstring for every size, stride and padding that fits."""
    rng = np.random.default_rng(seed)
    kh, kw = min(kh, H + 2 * padding), min(kw, W + 2 * padding)
    x, w, b = rng.standard_normal((2, H, W, 2)), rng.standard_normal((3, 2, kh, kw)), rng.standard_normal(3)
    np.testing.assert_allclose(
        conv2d(x, w, b, stride=stride, padding=padding), by_definition(x, w, b, stride, padding), atol=1e-13
    )


@given(st.integers(0, 5), st.integers(1, 5), st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5)), st.integers(0, 99))
def test_depthwise_is_dense_with_a_diagonal_kernel(H, W, kh, kw, seed):
    """A depth-wise convolution is the dense one whose kernels between different channels are zero."""
    rng = np.random.default_rng(seed)
    x, w, b = rng.standard_normal((2, H, W, 3)), rng.standard_normal((3, kh, kw)), rng.standard_normal(3)
    dense = np.eye(3)[:, :, None, None] * w
    padded = np.pad(x, [(0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)])
    expected = conv2d(padded, dense, b) if H else np.zeros((2, 0, W, 3))
    np.testing.assert_allclose(depthwise_conv2d(x, w, b), expected, atol=1e-13)


def test_convolutions_agree_with_pytorch():
    """Both convolutions equal those of PyTorch with the axes moved."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 7, 6, 4)), rng.standard_normal((5, 4, 3, 3)), rng.standard_normal(5)
    last = torch.from_numpy(x).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(last, torch.from_numpy(w), torch.from_numpy(b), stride=2, padding=1)
    np.testing.assert_allclose(conv2d(x, w, b, stride=2, padding=1), expected.permute(0, 2, 3, 1).numpy(), atol=1e-13)
    kernel, bias = rng.standard_normal((4, 5, 3)), rng.standard_normal(4)
    expected = torch.nn.functional.conv2d(
        last, torch.from_numpy(kernel[:, None]), torch.from_numpy(bias), padding=(2, 1), groups=4
    )
    np.testing.assert_allclose(depthwise_conv2d(x, kernel, bias), expected.permute(0, 2, 3, 1).numpy(), atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_and_inputs_are_kept(dtype):
    """The result has the dtype of the arguments, and read-only strided inputs are neither refused nor written to."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 8, 10, 3)).astype(dtype)[:, ::2, ::-2]
    w = rng.standard_normal((3, 3, 3)).astype(dtype)
    x.flags.writeable = w.flags.writeable = False
    out = depthwise_conv2d(x, w)
    assert out.dtype == dtype
    assert conv2d(x, w[:, None] * np.eye(3, dtype=dtype)[:, :, None, None], padding=1).dtype == dtype
    np.testing.assert_array_equal(out, depthwise_conv2d(x.copy(), w.copy()))


def test_leading_axes_and_empty_batches():
    """Leading axes may be any number of any size, none among them."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 3, 4, 5, 2)), rng.standard_normal((2, 3, 3))
    np.testing.assert_array_equal(depthwise_conv2d(x, w)[1, 2], depthwise_conv2d(x[1, 2], w))
    assert depthwise_conv2d(np.zeros((0, 4, 5, 2)), w).shape == (0, 4, 5, 2)
    assert conv2d(np.zeros((0, 4, 5, 2)), np.zeros((3, 2, 2, 2)), stride=2).shape == (0, 2, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((2, 2)), np.zeros((3, 1, 1, 1))), {}, "x has 2 axes"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 3, 3))), {}, "expected \\(D, C, kh, kw\\)"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 1, 3, 3))), {}, "x has 2 channels"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 2, 3, 3)), np.zeros(2)), {}, "b has shape"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 2, 3, 3))), {"stride": 0}, "stride=0"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 2, 3, 3))), {"padding": -1}, "padding=-1"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 2, 5, 3))), {}, "does not fit"),
    ],
)
def test_conv2d_refuses(arguments, options, message):
    """Shapes that do not fit and steps that make no sense are refused by name."""
    with pytest.raises(ValueError, match=message):
        conv2d(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 4, 2)), np.zeros((2, 3))), "expected \\(C, kh, kw\\)"),
        ((np.zeros((4, 4, 2)), np.zeros((3, 3, 3))), "x has 2 channels"),
        ((np.zeros((4, 4, 2)), np.zeros((2, 4, 3))), "must be odd"),
        ((np.zeros((4, 4, 2)), np.zeros((2, 3, 3)), np.zeros(3)), "b has shape"),
    ],
)
def test_depthwise_refuses(arguments, message):
    """Kernels of even side and shapes that do not fit are refused by name."""
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(*arguments)
