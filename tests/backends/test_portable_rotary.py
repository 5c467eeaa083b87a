"""The portable twin of the rotary embedding against the reference, on every array library that is installed."""

import numpy as np
import pytest

from refattn.backends.portable import rotary as portable
from refattn.primitives import rotary as reference
from refattn.primitives.rotary_embedding import rotary_embedding


def numpy():
    return np.array, np.asarray, lambda function: function


def strict():
    xp = pytest.importorskip("array_api_strict")
    return xp.asarray, np.from_dlpack, lambda function: function


def torch():
    library = pytest.importorskip("torch")
    return (lambda x: library.from_numpy(x.copy())), np.asarray, lambda function: function


def jax():
    library = pytest.importorskip("jax")
    library.config.update("jax_enable_x64", True)
    return library.numpy.asarray, np.asarray, library.jit


LIBRARIES = pytest.mark.parametrize("library", [numpy, strict, torch, jax])

SCALINGS = {
    "none": (None, None),
    "linear": ({"type": "linear", "factor": 4.0}, None),
    "ntk": ({"type": "ntk", "factor": 4.0}, None),
    "dynamic": ({"type": "dynamic", "factor": 2.0, "original_max": 64}, 100),
    "dynamic_short": ({"type": "dynamic", "factor": 2.0, "original_max": 64}, 30),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_max": 64}, None),
    "yarn_not_truncated": (
        {"type": "yarn", "factor": 8.0, "original_max": 512, "beta_fast": 16, "beta_slow": 2, "truncate": False}
        | {"mscale": 0.7, "mscale_all_dim": 1.1},
        None,
    ),
    "yarn_explicit": ({"type": "yarn", "factor": 4.0, "original_max": 64, "attention_factor": 1.3}, None),
    "yarn_small": ({"type": "yarn", "factor": 0.5, "original_max": 8}, None),
    "llama3": ({"type": "llama3", "factor": 8, "original_max": 64, "low_freq_factor": 1, "high_freq_factor": 4}, None),
    **{
        f"longrope_{length}": (
            {"type": "longrope", "factor": 4.0, "original_max": 64}
            | {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 2.0, 3.0, 4.0]},
            length,
        )
        for length in (64, 65)
    },
}


def call(library, function, *arrays, **options):
    make, take, compiled = library()
    return take(compiled(lambda *a: function(*a, **options))(*map(make, arrays)))


def close(actual, expected, atol=1e-12):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_frequencies(name, theta):
    """Frequencies taken in logarithms are the reference's, and so is the attention factor."""
    scaling, length = SCALINGS[name]
    freqs, factor = portable.rope_frequencies(8, theta=theta, scaling=scaling, length=length)
    expected, expected_factor = reference.rope_frequencies(8, theta=theta, scaling=scaling, length=length)

    np.testing.assert_allclose(freqs, expected, rtol=1e-14)
    assert factor == pytest.approx(expected_factor, rel=1e-15)


@LIBRARIES
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("rotary_dim", "inverse"), [(None, False), (8, True), (2, False)])
def test_rotation(library, interleaved, rotary_dim, inverse):
    """Both pairings, full and partial, there and back, equal the reference; channels that pass are bit-equal."""
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 3, 5, 10)), rng.integers(0, 5000, (2, 1, 5))
    options = {"rotary_dim": rotary_dim, "interleaved": interleaved, "inverse": inverse}
    if rotary_dim == 8:
        options |= {"scaling": SCALINGS["yarn"][0]}

    found = call(library, portable.rotary_embedding, x, positions, **options)

    close(found, rotary_embedding(x, positions, **options), 1e-11)
    assert np.array_equal(found[..., rotary_dim or 10 :], x[..., rotary_dim or 10 :])


@LIBRARIES
def test_empty_axes_and_no_rotated_channels(library):
    """No tokens, no batch and no angles give the right empties, and no rotation."""
    x, angles = np.ones((2, 5, 4)), np.ones((5, 2))
    for part, turn in ((x[:, :0], angles[:0]), (x[:0], angles), (x, angles[:, :0])):
        for interleaved in (False, True):
            found = call(library, portable.rope, part, turn, interleaved=interleaved)
            close(found, reference.rope(part, turn, interleaved=interleaved))


@LIBRARIES
@pytest.mark.parametrize("sections", [(1, 1, 2), (2, 1, 1), (0, 4, 0), (1, 3, 0)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_three_streams(library, sections, interleaved):
    """Chunked and interleaved sections pick the reference's angles."""
    positions3 = np.random.default_rng(1).integers(0, 50, (3, 2, 6))
    freqs, _ = reference.rope_frequencies(8)
    options = {"sections": sections, "interleaved": interleaved}

    found = call(library, lambda p: portable.mrope_angles(p, freqs, **options), positions3)

    close(found, reference.mrope_angles(positions3, freqs, **options))


@LIBRARIES
@pytest.mark.parametrize("rule", ["pixtral", "qwen2vl"])
def test_two_dimensions(library, rule):
    """Angles of rows and columns are the reference's under both rules."""
    hw = np.random.default_rng(2).integers(0, 50, (7, 2))

    close(call(library, portable.rope_angles_2d, hw, dim=12, rule=rule), reference.rope_angles_2d(hw, 12, rule=rule))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_dtypes_keep_their_precision_far_out(dtype):
    """At position 100,000 the angles are still float64, so that only the products are rounded to the dtype."""
    x = np.random.default_rng(3).normal(size=(4, 8)).astype(dtype)
    positions = np.array([0, 1, 50_000, 100_000])

    found = portable.rotary_embedding(x, positions)

    assert found.dtype == dtype
    np.testing.assert_allclose(found, rotary_embedding(x.astype(np.float64), positions), atol=4 * np.finfo(dtype).eps)


def test_unknown_names_are_refused():
    """An unknown scaling or rule raises ValueError with the name."""
    with pytest.raises(ValueError, match="cubic"):
        portable.rope_frequencies(4, scaling={"type": "cubic", "factor": 2})
    with pytest.raises(ValueError, match="spiral"):
        portable.rope_angles_2d(np.zeros((1, 2)), 8, rule="spiral")
