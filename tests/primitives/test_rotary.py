"""Rotary embeddings against hand-made numbers, their own group laws, bad input, and five public implementations."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.primitives.rotary import mrope_angles, rope, rope_angles, rope_angles_2d, rope_frequencies

X = np.array([1.0, 2.0, 3.0, 4.0])
LONG = {"type": "longrope", "factor": 4, "original_max": 64, "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4]}
LLAMA3 = {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = {"type": "yarn", "factor": 4, "original_max": 64}


def angles_of(position, dim, **options):
    return rope_angles(position, rope_frequencies(dim, **options)[0])


def close(actual, expected, places=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=places)


# one vector for each numbered rule


def test_r36_frequencies_fall_geometrically():
    """Frequencies are θ^(−2c/r), and θ can be replaced."""
    close(rope_frequencies(4)[0], [1, 0.01], 1e-15)
    close(rope_frequencies(4, theta=500000.0)[0], [1, 500000**-0.5], 1e-15)


@pytest.mark.parametrize(
    ("interleaved", "expected"),
    [(False, [-1.984111, 1.959901, 2.462378, 4.019800]), (True, [-1.142640, 1.922076, 2.959851, 4.029800])],
)
def test_r37_r38_both_pairings_rotate_as_written(interleaved, expected):
    """Each pairing turns (1, 2, 3, 4) at position 1 into the sheet's numbers."""
    close(rope(X, angles_of(1, 4), interleaved=interleaved), expected)


def test_r39_partial_rotation_leaves_the_rest():
    """With r = 2 the first two channels rotate with r's own frequency and the others are untouched."""
    out = rope(X, angles_of(1, 2))
    close(out, [-1.142640, 1.922076, 3, 4])
    assert out[2:].tobytes() == X[2:].tobytes()


def test_r40_positions_are_any_numbers_per_token():
    """Restarting positions give the same rotation as separate sequences."""
    x = np.arange(20.0).reshape(5, 4)
    packed = rope(x, angles_of([0, 1, 2, 0, 1], 4))
    close(packed[3:], rope(x[3:], angles_of([0, 1], 4)), 0)


@pytest.mark.parametrize(
    ("scaling", "length", "expected", "factor"),
    [
        ({"type": "linear", "factor": 4}, None, [0.25, 0.025, 0.0025, 0.00025], 1),
        ({"type": "ntk", "factor": 4}, None, [1, 0.0629960525, 0.0039685026, 0.00025], 1),
        (
            {"type": "dynamic", "factor": 2, "original_max": 4},
            8,
            [1, 0.0693361274, 0.0048074986, 0.0003333333],
            1,
        ),
        ({"type": "dynamic", "factor": 2, "original_max": 4}, 4, [1, 0.1, 0.01, 0.001], 1),
        ({"type": "dynamic", "factor": 2, "original_max": 4}, None, [1, 0.1, 0.01, 0.001], 1),
        (YARN, None, [1, 0.0625, 0.0025, 0.00025], 1.138629),
        (LLAMA3 | {"original_max": 64}, None, [1, 0.0130422560, 0.00125, 0.000125], 1),
        (LONG, 65, [1, 0.05, 0.00333333, 0.00025], 1.154701),
        (LONG, 64, [1, 0.1, 0.01, 0.001], 1.154701),
        (LONG, None, [1, 0.1, 0.01, 0.001], 1.154701),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_r41_to_r45_scaled_frequencies(scaling, length, expected, factor):
    """Every scaling rule gives the sheet's frequencies and attention factor for d = 8."""
    freqs, attention_factor = rope_frequencies(8, scaling=scaling, length=length)
    close(freqs, expected, 5e-9)
    close(attention_factor, factor)


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({"factor": 1}, 1.0),
        ({"mscale": 0.5, "mscale_all_dim": 2.0}, (0.05 * np.log(4) + 1) / (0.2 * np.log(4) + 1)),
        ({"mscale": 0.5}, 0.1 * np.log(4) + 1),
        ({"attention_factor": 1.7, "mscale": None}, 1.7),
    ],
)
def test_r43_yarn_attention_factor_has_three_sources(extra, factor):
    """YaRN's factor is explicit, or a ratio if both magnitudes are given, or 0.1 ln s + 1, and 1 for s ≤ 1."""
    close(rope_frequencies(8, scaling=YARN | extra)[1], factor, 1e-15)


def test_r43_yarn_survives_an_empty_ramp():
    """Where both ends of the ramp coincide it is a step, not a division by zero."""
    scaling = YARN | {"original_max": 40, "beta_fast": 2, "beta_slow": 2, "truncate": False}
    with np.errstate(all="raise"):
        freqs, _ = rope_frequencies(8, scaling=scaling)
    close(freqs, [1, 0.1 / 4, 0.01 / 4, 0.001 / 4], 1e-15)


def test_r42_one_pair_keeps_its_speed():
    """With r = 2 there is only the fastest frequency, which no change of base moves."""
    close(rope_frequencies(2, scaling={"type": "ntk", "factor": 8})[0], [1], 0)


@pytest.mark.parametrize(
    ("positions", "sections", "interleaved", "expected"),
    [((3, 5, 7), (1, 1, 2), False, [3, 0.5, 0.07, 0.007]), ((3, 5, 7), (2, 1, 1), True, [3, 0.5, 0.07, 0.003])],
)
def test_r46_three_position_streams(positions, sections, interleaved, expected):
    """Chunked and interleaved M-RoPE deal the pairs to time, height and width as written."""
    freqs, _ = rope_frequencies(8)
    close(mrope_angles(positions, freqs, sections, interleaved=interleaved), expected, 1e-15)


@pytest.mark.parametrize(("rule", "expected"), [("pixtral", [2, 0.02, 0.3, 0.003]), ("qwen2vl", [2, 0.02, 3, 0.03])])
def test_r47_two_dimensional_angles(rule, expected):
    """Patch (2, 3) has the sheet's angles under both rules."""
    close(rope_angles_2d([[2, 3]], 8, rule=rule), [expected], 1e-15)


def test_r48_scores_depend_on_the_distance_only():
    """⟨R_m q, R_n k⟩ is −3.456429 for positions two apart, near the start and far out."""
    key = X[::-1].copy()
    for m, n in ((5, 3), (102, 100)):
        close(rope(X, angles_of(m, 4)) @ rope(key, angles_of(n, 4)), -3.456429)


# properties


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


seeds, positions = st.integers(0, 2**32 - 1), st.integers(-500, 500)


@given(seeds, positions, positions, st.booleans(), st.integers(1, 5))
def test_rotations_are_a_group_that_keeps_norms(seed, a, b, interleaved, pairs):
    """R_a R_b = R_{a+b}, position 0 is the identity, and norms stay."""
    x = draw(seed, 3, 2 * pairs + 1)

    def turn(x, position):
        return rope(x, angles_of(position, 2 * pairs), interleaved=interleaved)

    close(turn(turn(x, a), b), turn(x, a + b), 1e-11)
    assert turn(x, 0).tobytes() == x.tobytes()
    close(np.linalg.norm(turn(x, a), axis=-1), np.linalg.norm(x, axis=-1), 1e-12)


@given(seeds, positions, st.integers(1, 5))
def test_half_split_is_interleaved_after_a_permutation(seed, position, pairs):
    """Channel order (0, r/2, 1, r/2 + 1, …) turns one pairing into the other."""
    x, angles = draw(seed, 4, 2 * pairs), angles_of([position, 1, 2, 3], 2 * pairs)
    order = np.arange(2 * pairs).reshape(2, pairs).T.ravel()
    close(rope(x, angles)[:, order], rope(x[:, order], angles, interleaved=True), 1e-15)


@given(seeds, st.booleans(), st.floats(0.25, 4))
def test_the_inverse_is_the_vector_jacobian_product(seed, interleaved, factor):
    """⟨dy, R x⟩ = ⟨Rᵀ dy, x⟩ with the same factor, and factor 1 undoes the rotation."""
    x, dy = draw(seed, 2, 5, 6), draw(seed + 1, 2, 5, 6)
    angles, options = angles_of(np.arange(5), 4), {"interleaved": interleaved, "factor": factor}
    forward, back = rope(x, angles, **options), rope(dy, angles, inverse=True, **options)
    close(np.vdot(dy, forward), np.vdot(back, x), 1e-12)
    close(rope(rope(x, angles, interleaved=interleaved), angles, interleaved=interleaved, inverse=True), x, 1e-14)


def test_the_factor_scales_rotated_channels_only():
    """A factor of 2 doubles the first r channels and passes the others."""
    close(rope(X, angles_of(3, 2), factor=2.0), [*(2 * rope(X[:2], angles_of(3, 2))), 3, 4], 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_dtype_of_x_is_kept_and_the_arithmetic_is_float64(dtype):
    """Results have x's dtype and are the float64 results rounded once."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = draw(1, 2, 3, 6).astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    out, angles = rope(x, angles_of([0, 7, 90000], 4)), angles_of([0, 7, 90000], 4)
    assert out.dtype == x.dtype
    assert out.tobytes() == rope(x.astype(np.float64), angles).astype(x.dtype).tobytes()


@pytest.mark.parametrize("interleaved", [False, True])
def test_shapes_broadcast_and_may_be_empty(interleaved):
    """Angles per batch broadcast over heads; no tokens, no batch and no rotated channels give the right empties."""
    x, angles = draw(2, 2, 3, 5, 4), angles_of(np.arange(10).reshape(2, 5), 4)
    out = rope(x, angles[:, None], interleaved=interleaved)
    close(out[1, 2], rope(x[1, 2], angles[1], interleaved=interleaved), 0)
    assert rope(draw(1, 5, 4), angles, interleaved=interleaved).shape == (2, 5, 4)
    assert rope(x[:, :, :0], angles[:, None, :0], interleaved=interleaved).shape == (2, 3, 0, 4)
    assert rope(x[:0], angles[0], interleaved=interleaved).shape == (0, 3, 5, 4)
    close(rope(x, angles[:, None, :, :0], interleaved=interleaved), x, 0)
    assert mrope_angles(np.zeros((3, 2, 0)), [1, 0.1, 0.01], (1, 1, 1)).shape == (2, 0, 3)
    assert rope_angles_2d(np.zeros((0, 2)), 8).shape == (0, 4)


def test_inputs_stay_as_they_are_in_any_layout():
    """Read-only, strided, reversed, Fortran and byte-swapped inputs give the plain result and are not written to."""
    x, angles = draw(3, 2, 6, 8), angles_of(np.arange(6), 8)
    expected = rope(x, angles)
    wide = np.zeros((2, 12, 8))
    wide[:, ::2] = x
    for same in (np.asfortranarray(x), wide[:, ::2], x[:, ::-1].copy()[:, ::-1], x.astype(">f8")):
        same.flags.writeable = False
        with np.errstate(all="raise"):
            close(rope(same, angles), expected, 0)
        close(same, x, 0)


def test_a_bad_value_poisons_its_own_pair_only():
    """NaN in one channel reaches its pair and nothing else."""
    x = np.ones((2, 6))
    x[0, 1] = np.nan
    expected = np.zeros((2, 6), bool)
    expected[0, [1, 3]] = True
    assert np.array_equal(np.isnan(rope(x, angles_of([1, 2], 4))), expected)


# bad input


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: rope_frequencies(3), "dim=3"),
        (lambda: rope_frequencies(0), "dim=0"),
        (lambda: rope_frequencies(4, theta=0.0), "theta"),
        (lambda: rope_frequencies(4, theta=np.inf), "theta"),
        (lambda: rope_frequencies(4, length=-1), "length"),
        (lambda: rope_frequencies(4, scaling={"factor": 2}), "type"),
        (lambda: rope_frequencies(4, scaling={"type": "cubic", "factor": 2}), "cubic"),
        (lambda: rope_frequencies(4, scaling={"type": "linear"}), "'factor'.*missing"),
        (lambda: rope_frequencies(4, scaling={"type": "linear", "factor": 0}), "factor"),
        (lambda: rope_frequencies(4, scaling={"type": "linear", "factor": -1.0}), "factor"),
        (lambda: rope_frequencies(4, scaling={"type": "linear", "factor": np.nan}), "factor"),
        (lambda: rope_frequencies(4, scaling={"type": "linear", "factor": 2, "original_max": 8}), "original_max"),
        (lambda: rope_frequencies(4, scaling={"type": "dynamic", "factor": 2}), "'original_max'.*missing"),
        (lambda: rope_frequencies(4, scaling={"type": "yarn", "factor": 2, "original_max": None}), "original_max"),
        (lambda: rope_frequencies(4, scaling=YARN, theta=1.0), "theta"),
        (lambda: rope_frequencies(4, scaling=LONG), r"short_factor.*\(4,\), expected \(2,\)"),
        (lambda: rope_frequencies(8, scaling=LONG | {"original_max": 1}), "original_max"),
        (lambda: rope_frequencies(8, scaling=LLAMA3), "'original_max'.*missing"),
        (lambda: rope_frequencies(8, scaling=LLAMA3 | {"original_max": 64, "low_freq_factor": 4}), "low_freq_factor"),
        (lambda: rope_angles([0, 1], [[1.0]]), "freqs"),
        (lambda: rope(X, np.zeros(3)), "6 channels"),
        (lambda: rope(np.zeros((2, 4)), np.zeros((3, 2))), "broadcast"),
        (lambda: rope(np.float64(1.0), np.zeros(0)), "channel axis"),
        (lambda: rope(X, np.zeros(2), factor=np.inf), "factor"),
        (lambda: mrope_angles(np.zeros((2, 4)), [1.0], (1, 0, 0)), "positions3"),
        (lambda: mrope_angles(np.zeros((3, 4)), [1.0, 0.1], (1, 1, 1)), "sections"),
        (lambda: mrope_angles(np.zeros((3, 4)), [1.0, 0.1], (1, 1)), "sections"),
        (lambda: mrope_angles(np.zeros((3, 4)), [1.0, 0.1], (3, -1, 0)), "sections"),
        (lambda: rope_angles_2d([[0, 1]], 6), "dim=6"),
        (lambda: rope_angles_2d([[0, 1]], 8, rule="spiral"), "spiral"),
        (lambda: rope_angles_2d([[0, 1, 2]], 8), "hw"),
        (lambda: rope_angles_2d(1.0, 8), "hw"),
    ],
)
def test_bad_input_is_named(call, word):
    """Every refused argument raises ValueError with its name."""
    with pytest.raises(ValueError, match=word):
        call()


@pytest.mark.parametrize("x", [np.ones(4, complex), np.array([1, "a", 2, 3], object), np.ma.ones(4)])
def test_arrays_that_are_not_real_numbers_are_refused(x):
    """Complex, object and masked arrays raise TypeError."""
    with pytest.raises(TypeError, match="x "):
        rope(x, np.zeros(2))


# official vectors


def load(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
        return json.loads(str(file["meta"])), arrays


def of_kind(paths, kind):
    for meta, arrays in map(load, paths):
        if meta["kind"] == kind:
            yield meta["config"], arrays, meta["tol"]


def by_length(config, function, x):
    """Apply a function of (..., S, d) to an array of the layout of ``config``."""
    return np.swapaxes(function(np.swapaxes(x, 1, 2)), 1, 2) if config["layout"] == "bshd" else function(x)


def test_onnx_rotary_embedding(oracle):
    """ONNX's RotaryEmbedding, full and partial, both pairings, equals ours, and so do its tables."""
    for config, arrays, tol in of_kind(oracle("00-attention"), "rope"):
        if "position_ids" not in arrays:
            continue
        freqs, _ = rope_frequencies(config["rotary_dim"], theta=config["theta"])
        table = rope_angles(np.arange(len(arrays["cos_cache"])), freqs)
        close(np.cos(table), arrays["cos_cache"], tol)
        close(np.sin(table), arrays["sin_cache"], tol)
        angles = rope_angles(arrays["position_ids"], freqs)[:, None]
        close(rope(arrays["x"], angles, interleaved=config["interleaved"]), arrays["out"], tol)


def test_hugging_face_scalings(oracle):
    """Llama's rotary embedding under every scaling type equals ours to the accuracy of its float32 tables."""
    for config, arrays, tol in of_kind(oracle("00-attention"), "rope_hf"):
        freqs, factor = rope_frequencies(
            config["d"], theta=config["theta"], scaling=config["scaling"], length=config["seq_len"]
        )
        np.testing.assert_allclose(freqs, arrays["inv_freq"], rtol=1e-5)
        close(factor, arrays["attention_factor"], 1e-12)
        angles = rope_angles(np.arange(config["seq_len"]), freqs)
        close(factor * np.tile(np.cos(angles), 2), arrays["cos"][0], tol)
        close(factor * np.tile(np.sin(angles), 2), arrays["sin"][0], tol)
        for name in ("q", "k"):
            close(rope(arrays[name], angles, factor=factor), arrays[f"{name}_out"], tol)


def test_hugging_face_partial_families(oracle):
    """GPT-NeoX rotates half-split, GLM and GPT-J interleaved, all in the first r channels."""
    for config, arrays, tol in of_kind(oracle("00-attention"), "rope_partial"):
        angles = angles_of(arrays["pos"], config["rotary_dim"], theta=config["theta"])
        for family, interleaved in (("neox", False), ("glm", True), ("gptj", True)):
            close(rope(arrays["x"], angles, interleaved=interleaved), arrays[f"out_{family}"], tol)


def test_torchtune_llama3(oracle):
    """Torchtune's scaled table is Llama 3's with interleaved pairs, positions from 0, in (B, S, H, D)."""
    for path in oracle("00-attention"):
        meta, arrays = load(path)
        if "theta_freqs" not in arrays:
            continue
        config = meta["config"]
        freqs, factor = rope_frequencies(config["d"], theta=config["theta"], scaling=config["scaling"])
        np.testing.assert_allclose(freqs, arrays["theta_freqs"], rtol=1e-5)
        length = arrays["x"].shape[1 if config["layout"] == "bshd" else 2]
        angles, interleaved = rope_angles(np.arange(length), freqs), config["interleaved"]

        def turn(x, angles=angles, factor=factor, interleaved=interleaved):
            return rope(x, angles, factor=factor, interleaved=interleaved)

        close(by_length(config, turn, arrays["x"]), arrays["out"], meta["tol"])


def test_hugging_face_mrope(oracle):
    """Qwen2-VL's chunked and Qwen3-VL's interleaved three-stream rotation equal ours."""
    for path in oracle("00-attention"):
        meta, arrays = load(path)
        if "pos3" not in arrays:
            continue
        config, (x, positions3) = meta["config"], (arrays["x"], arrays["pos3"])
        freqs, _ = rope_frequencies(x.shape[-1], theta=config["theta"])
        for name, interleaved in (("chunked", False), ("interleaved", True)):
            angles = mrope_angles(positions3, freqs, config["section"], interleaved=interleaved)[:, None]
            close(rope(x, angles), arrays[f"out_{name}"], meta["tol"])


def test_hugging_face_two_dimensional(oracle):
    """Pixtral's and Qwen2-VL's image rotations equal ours."""
    for config, arrays, tol in of_kind(oracle("00-attention"), "rope2d"):
        for rule, name in (("pixtral", "pixtral"), ("qwen2vl", "qwen_vision")):
            angles = rope_angles_2d(arrays["hw"], config["d"], theta=config["theta"], rule=rule)
            close(rope(arrays["x"], angles), arrays[f"out_{name}"], tol)
