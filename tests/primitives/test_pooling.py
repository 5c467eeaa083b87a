"""Pooling of channels-last maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.pooling import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d

sides = st.integers(1, 7)


def first(x):
    """Channels first, for PyTorch."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def last(y):
    return np.moveaxis(y.numpy(), 1, -1)


@given(sides, sides, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_windows_agree_with_pytorch(H, W, kh, kw, stride, ceil_mode, seed):
    """Sliding windows average and maximise what those of PyTorch do, windows cut by the border among them."""
    functional = pytest.importorskip("torch").nn.functional
    kh, kw = min(kh, H), min(kw, W)
    x = np.random.default_rng(seed).standard_normal((2, H, W, 3))
    options = {"kernel_size": (kh, kw), "stride": stride, "ceil_mode": ceil_mode}
    average = functional.avg_pool2d(first(x), count_include_pad=False, **options)
    np.testing.assert_allclose(
        avg_pool2d(x, kernel=(kh, kw), stride=stride, ceil_mode=ceil_mode), last(average), atol=1e-14
    )
    largest = functional.max_pool2d(first(x), **options)
    np.testing.assert_array_equal(max_pool2d(x, kernel=(kh, kw), stride=stride, ceil_mode=ceil_mode), last(largest))


@given(sides, sides, st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_adaptive_bins_agree_with_pytorch(H, W, rows, columns, seed):
    """Adaptive bins average and maximise what those of PyTorch do, more bins than tokens among them."""
    functional = pytest.importorskip("torch").nn.functional
    x = np.random.default_rng(seed).standard_normal((2, H, W, 3))
    size = (rows, columns)
    average = functional.adaptive_avg_pool2d(first(x), size)
    np.testing.assert_allclose(adaptive_avg_pool2d(x, size=size), last(average), atol=1e-14)
    np.testing.assert_array_equal(
        adaptive_max_pool2d(x, size=size), last(functional.adaptive_max_pool2d(first(x), size))
    )


@given(sides, sides, st.integers(0, 99))
def test_full_size_is_identity(H, W, seed):
    """One bin for each token, and windows of one token, change nothing."""
    x = np.random.default_rng(seed).standard_normal((H, W, 2))
    np.testing.assert_array_equal(adaptive_avg_pool2d(x, size=(H, W)), x)
    np.testing.assert_array_equal(max_pool2d(x, kernel=1), x)


def test_empty_batch_and_dtype():
    """An empty batch gives an empty batch, and float32 stays float32."""
    x = np.zeros((0, 4, 6, 2), dtype=np.float32)
    assert avg_pool2d(x, kernel=2).shape == (0, 2, 3, 2)
    assert adaptive_max_pool2d(x, size=3).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: avg_pool2d(x, kernel=0), "kernel=0"),
        (lambda x: avg_pool2d(x, kernel=1, stride=0), "stride=0"),
        (lambda x: max_pool2d(x, kernel=5), "exceeds the feature map"),
        (lambda x: adaptive_avg_pool2d(x, size=0), "size=0"),
        (lambda x: adaptive_avg_pool2d(x[0, 0], size=1), "expected at least 3"),
        (lambda x: avg_pool2d(x[:, :0], kernel=1), "empty feature map"),
    ],
)
def test_refuses(call, message):
    """Empty windows, empty bins and empty maps are refused by name."""
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 4, 4, 3)))
