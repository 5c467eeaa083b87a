"""Pointing at objects: what tables and look-ups hold, what the model may see, which scanpaths come out."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.contracts.oat import cases
from refattn.layers.oat import (
    OATWeights,
    oat_forward,
    object_attention,
    object_tokens,
    pointer_scores,
    scanpath_loss,
)
from refattn.layers.oat_appearance import AppearanceWeights, object_appearance, spatial_pyramid_pool
from refattn.layers.oat_decode import greedy_scanpath, sample_scanpath
from refattn.layers.oat_positions import (
    FREQUENCY_RULES,
    gaussian_position_table,
    grid_coordinates,
    object_position_embedding,
    scene_coordinates,
    sinusoid_grid,
    sinusoid_position_table,
)
from refattn.layers.oat_transformer import multi_head_attention, oat_decode, oat_encode


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def call(family="normal", seed=0, **sizes):
    """Return the arguments of one call of the model."""
    default = {"B": 2, "R": 2, "C": 3, "T": 4, "E": 8, "H": 2, "M": 2}
    case = cases.FORWARD.case(family, "float64", seed, label="test", sizes=default | sizes)
    names = ("src_appearance", "src_coords", "tgt_appearance", "tgt_coords", "table", "weights")
    return [case.arrays[name] for name in names], case.options


def gaussian(n, sigma):
    position = np.arange(n)
    return np.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))


@given(st.integers(1, 20), st.integers(0, 5), st.floats(0.1, 5.0))
def test_cosines_are_a_gaussian_of_the_distance(n, more, sigma):
    """With at least as many columns as positions the table's Gram matrix is the Gaussian, its rows have norm 1."""
    close(
        gaussian_position_table(n, n + more, sigma=sigma) @ gaussian_position_table(n, n + more, sigma=sigma).T,
        gaussian(n, sigma),
    )


def test_a_narrow_table_is_the_best_of_its_rank():
    """The error of c columns is the norm of the eigenvalues that are left out: no table of rank c does better."""
    G, W = gaussian(9, 2.0), gaussian_position_table(9, 4)
    left_out = np.sort(np.linalg.eigvalsh(G))[:-4]
    close(np.linalg.norm(W @ W.T - G), np.linalg.norm(left_out))


def test_places_are_alike_by_their_distance_only():
    """⟨e(r, c), e(r', c')⟩ = G(r − r') + G(c − c') + G(flags) when nothing is cut off."""
    coords = scene_coordinates(3, 4, 5)
    e = object_position_embedding(coords, gaussian_position_table(6, 6), 18)
    apart = coords[:, None] - coords
    close(e @ e.T, np.exp(-(apart**2) / 8.0).sum(axis=-1))


def test_sinusoids_by_hand():
    """Entry 2k is sin(p·base^(−2k/c)), entry 2k + 1 its cosine; an odd width ends on a sine."""
    table = sinusoid_position_table(4, 5, base=100.0)
    for p, k in itertools.product(range(4), range(5)):
        angle = p * 100.0 ** (-2 * (k // 2) / 5)
        close(table[p, k], np.cos(angle) if k % 2 else np.sin(angle))


@pytest.mark.parametrize("rule", FREQUENCY_RULES)
@pytest.mark.parametrize(("respace", "step"), [(None, (1, 1)), ("x", (1.6, 1)), ("y", (1, 0.6))])
def test_the_sinusoid_grid_by_hand(rule, respace, step):
    """Row, column and flag have their own waves, side by side, cut to the width."""
    grid = sinusoid_grid(3, 4, 10, rule=rule, alpha=0.7, respace=respace)
    ch = 4  # 2·⌈10/6⌉
    for x, y, z, i in np.ndindex(3, 4, 2, 10):
        k = i % ch // 2 * 2
        frequency = {
            "original": 10000.0 ** (-k / ch),
            "exp1": k**0.7 / ch,
            "exp2": (k / ch) ** 0.7,
            "linear": k * 0.7 / ch,
        }[rule]
        angle = (x * step[0], y * step[1], z)[i // ch] * frequency
        close(grid[x, y, z, i], np.cos(angle) if i % 2 else np.sin(angle))


def test_coordinates_of_scene_and_path():
    """Only the last encoder token has the flag; in the path every token of the target has it, but never the start."""
    assert scene_coordinates(2, 2, 1).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]]
    path = grid_coordinates([6, 1, 3, 4], 2, 1, centre_first=True, n_rows=2)
    assert path.tolist() == [[1, 1, 0], [0, 1, 1], [1, 1, 0], [2, 0, 0]]
    assert grid_coordinates([[0, 1], [0, 1]], 2, [0, 1])[..., 2].tolist() == [[1, 0], [0, 1]]


def test_a_grid_has_nothing_below_its_last_row():
    """A special token one row below the grid gets zeros, any other its place's vector."""
    grid = sinusoid_grid(3, 4, 6)
    e = object_position_embedding([[3, 1, 0], [2, 3, 1]], grid, 6)
    close(e, np.stack([np.zeros(6), grid[2, 3, 1]]), 0)


@given(st.integers(0, 50))
def test_the_model_is_its_parts(seed):
    """The model is tokens, encoder, decoder and pointer, one after the other; any number of objects does."""
    (src, src_at, tgt, tgt_at, table, weights), options = call(seed=seed, C=1 + seed % 4)
    heads = options["n_heads"]
    time = sinusoid_position_table(4, 8)
    memory = oat_encode(object_tokens(src, src_at, table), weights.encoder, n_heads=heads)
    decoded = oat_decode(object_tokens(tgt, tgt_at, table) + time, memory, weights.decoder, n_heads=heads)
    scores = pointer_scores(memory, decoded, weights.heads, d_k=options["d_k"])
    out = oat_forward(src, src_at, tgt, tgt_at, table, weights, **options)
    close(out, scores @ weights.readout_w + weights.readout_b)
    assert out.shape == (2, 4, src.shape[1] + 1)


def test_objects_alone_decide_their_columns():
    """With no layers, taking an object away takes its column away and changes nothing else."""
    (src, src_at, tgt, tgt_at, table, weights), options = call()
    sightless = OATWeights((), (), weights.heads, weights.readout_w, weights.readout_b)
    few = [0, 2, 3, 5, 6]
    whole = oat_forward(src, src_at, tgt, tgt_at, table, sightless, **options)
    part = oat_forward(src[:, few], src_at[:, few], tgt, tgt_at, table, sightless, **options)
    close(part, whole[..., [*few, 7]])


def test_a_hidden_token_is_a_token_that_is_not_there():
    """Attention that may not look at an object equals attention in a scene without it."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2, 5, 8)), cases.attention(rng, 8)
    visible = np.arange(5) != 2
    kept = x[:, visible]
    hidden = multi_head_attention(x, x, weights, n_heads=2, visible=np.broadcast_to(visible, (5, 5)))
    close(hidden[:, visible], multi_head_attention(kept, kept, weights, n_heads=2))


def test_padding_changes_no_loss():
    """What stands at padded places, and how the model scores there, leaves the loss as it is."""
    (src, src_at, tgt, tgt_at, table, weights), options = call()
    mask = np.array([[False, False, True, True], [False, False, False, True]])
    targets = np.where(mask, 7, [[2, 6, 0, 0], [1, 0, 6, 0]])
    losses = []
    for filling in (0.0, 9.0):
        looks = np.where(mask[..., None], filling, tgt)
        logits = oat_forward(src, src_at, looks, tgt_at, table, weights, **options, tgt_pad_mask=mask)
        losses.append(scanpath_loss(logits, targets, 7))
    close(losses[0], losses[1])


def test_the_loss_by_hand():
    """Equal logits over w columns cost log w; the mean is over all kept steps, not over paths."""
    close(scanpath_loss(np.zeros((2, 3, 5)), [[0, 4, 4], [1, 2, 3]], 4), np.log(5))
    logits = np.zeros((2, 2, 3))
    logits[0, 0, 0] = np.log(2.0)  # probability 1/2
    close(scanpath_loss(logits, [[0, 2], [1, 0]], 2), (np.log(2) + 2 * np.log(3)) / 3)
    assert scanpath_loss(logits.astype(np.float32), [[0, 2], [1, 0]], 2).dtype == np.float32


def test_the_appearance_network_by_hand():
    """Two convolutions, two poolings and a map, number by number, with channels before rows and columns."""
    rng = np.random.default_rng(0)
    shapes = ((4, 3, 5, 5), (4,), (2, 4, 3, 3), (2,), (2, 6), (6,))
    weights = AppearanceWeights(*(rng.standard_normal(shape) for shape in shapes))
    crop = rng.random((29, 29, 3))
    first = np.zeros((25, 25, 4))
    for y, x in np.ndindex(25, 25):
        first[y, x] = np.einsum("dcij,ijc->d", weights.conv1_w, crop[y : y + 5, x : x + 5]) + weights.conv1_b
    first = np.maximum(first, 0).reshape(5, 5, 5, 5, 4).max(axis=(1, 3))
    second = np.zeros((3, 3, 2))
    for y, x in np.ndindex(3, 3):
        second[y, x] = np.einsum("dcij,ijc->d", weights.conv2_w, first[y : y + 3, x : x + 3]) + weights.conv2_b
    second = np.maximum(second, 0)
    close(object_appearance(crop, weights), second.max(axis=(0, 1)) @ weights.w + weights.b, 1e-10)
    close(object_appearance(crop[None], weights, n_levels=1)[0], object_appearance(crop, weights), 1e-10)


def test_the_pyramid_by_hand():
    """Level after level, channel after channel; windows at the edge are filled up evenly with zeros."""
    x = np.arange(1.0, 13.0).reshape(3, 2, 2)
    levels = [[11, 12], [5, 7, 9, 11, 6, 8, 10, 12]]  # a fourth row of zeros comes below
    close(spatial_pyramid_pool(x, n_levels=2), np.concatenate(levels), 0)
    assert spatial_pyramid_pool(np.ones((2, 1, 1, 32)), n_levels=4).shape == (2, 2720)


def scores(*rows):
    """Return a step function that answers with one row after the other."""
    return lambda path: np.array(rows[min(len(path), len(rows) - 1)], dtype=float)


def test_greedy_paths():
    """The first fixation is an object, padding is never chosen, the lowest index wins, the end ends."""
    assert greedy_scanpath(scores([0, 1, 9, 9], [3, 0, 2, 9], [0, 0, 5, 9]), 2, 10) == [1, 0]
    assert greedy_scanpath(scores([0, 0, 9, 9], [7, 7, 7, 9]), 2, 3) == [0, 0, 0]
    assert greedy_scanpath(scores([0, 1, 9]), 1, 4) == [0]
    assert greedy_scanpath(scores([0, 0, 0]), 1, 0) == []


def test_sampled_paths_follow_the_softmax():
    """Frequencies of the first fixation and of ending are those of the softmax; the same seed draws the same path."""
    step = scores([np.log(3.0), 0.0, 9.0, 9.0], [-np.inf, 0.0, np.log(3.0), 9.0])
    rng = np.random.default_rng(0)
    paths = [sample_scanpath(step, 2, 5, rng) for _ in range(2000)]
    assert abs(np.mean([path[0] == 0 for path in paths]) - 0.75) < 0.04
    assert abs(np.mean([len(path) == 1 for path in paths]) - 0.75) < 0.04
    assert set(itertools.chain(*paths)) == {0, 1}
    draws = [sample_scanpath(step, 2, 5, np.random.default_rng(3)) for _ in range(2)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(("R", "C", "T", "B"), [(1, 1, 1, 1), (1, 1, 3, 2), (2, 2, 1, 0)])
def test_the_smallest_scenes(R, C, T, B):
    """One object, one step and no scene at all work."""
    arguments, options = call(R=R, C=C, T=T, B=B)
    assert oat_forward(*arguments, **options).shape == (B, T, R * C + 2)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"n_heads": 3}, "n_heads=3 must divide the width E = 8"),
        ({"n_heads": 0}, "n_heads=0 must divide"),
        ({"d_k": 0.0}, "d_k=0.0 must be positive"),
        ({"table": np.ones((4, 1))}, "position table has fewer than 4 columns"),
        ({"table": np.ones(3)}, r"table has shape \(3,\)"),
        ({"src_coords": np.full((2, 7, 3), 9)}, "(?s)coords=.* must lie in the table"),
        ({"src_coords": np.full((2, 7, 3), -1)}, "(?s)coords=.* must lie in the table"),
        ({"src_coords": np.zeros((2, 6, 3), int)}, "coords has shape"),
        ({"src_coords": np.zeros((2, 7, 3))}, "coords has dtype float64, expected integers"),
        ({"tgt_appearance": np.ones((3, 4, 4))}, "coords has shape"),
        ({"tgt_pad_mask": np.zeros((2, 3), bool)}, "pad_mask has shape"),
    ],
)
def test_bad_scenes_are_refused(change, rule):
    """Each argument that does not fit is refused by name, value and rule."""
    names = ("src_appearance", "src_coords", "tgt_appearance", "tgt_coords", "table", "weights")
    arguments, options = call()
    with pytest.raises(ValueError, match=rule):
        oat_forward(**{**dict(zip(names, arguments, strict=True)), **options, **change})


def test_bad_parts_are_refused():
    """Tables, coordinates, pointers, losses, images and decoders refuse what is out of range."""
    x, head = np.ones((3, 4)), cases.pointer_heads(np.random.default_rng(0), 4, 2)
    step = scores([0.0, 0.0])
    image = AppearanceWeights(np.ones((1, 3, 5, 5)), np.ones(1), np.ones((1, 1, 3, 3)), np.ones(1), x, np.ones(4))
    for wrong, rule in (
        (lambda: gaussian_position_table(3, 3, sigma=0.0), "sigma=0.0 must be positive"),
        (lambda: gaussian_position_table(0, 3), "n_positions=0 must be >= 1"),
        (lambda: sinusoid_position_table(3, 0), "dim=0 must be >= 1"),
        (lambda: sinusoid_position_table(3, 2, base=-1.0), "base=-1.0 must be positive"),
        (lambda: sinusoid_grid(3, 3, 6, rule="log"), "rule='log' is not one of"),
        (lambda: sinusoid_grid(3, 3, 6, respace="z"), "respace='z' is not one of"),
        (lambda: scene_coordinates(2, 2, 4), "target=4 must be an object's index, 0 to 3"),
        (lambda: scene_coordinates(2, 0, 0), "n_cols=0 must be >= 1"),
        (lambda: grid_coordinates([0], 2, -1), "target=-1 must be an object's index"),
        (lambda: grid_coordinates([0], 2, 4, n_rows=2), "target=4 must be an object's index, 0 to 3"),
        (lambda: grid_coordinates([-1], 2, 0), r"indices=\[-1\] must be >= 0"),
        (lambda: grid_coordinates([0], 2, 0, centre_first=True), "n_rows must be given"),
        (lambda: object_attention(x, np.ones((2, 3)), head, np.ones(2), np.array(0.0), d_k=1), "decoder_out has shape"),
        (lambda: object_attention(x, x, (), d_k=1), "heads must hold at least one"),
        (lambda: object_attention(x, x, head, np.ones(3), np.array(0.0), d_k=1), "readout_w has shape"),
        (lambda: scanpath_loss(x, [3, 3, 3], 3), "nothing but pad_index=3"),
        (lambda: scanpath_loss(x, [4, 0, 0], 3), "targets must be columns of logits, 0 to 3"),
        (lambda: scanpath_loss(x, [0, 0], 3), "targets has shape"),
        (lambda: object_appearance(np.ones((24, 20, 3)), image, n_levels=-1), "n_levels=-1 must be >= 0"),
        (lambda: object_appearance(np.ones((24, 20, 3)), image), "exceeds the feature map"),
        (lambda: object_appearance(np.ones((29, 29, 3)), image, n_levels=2), "weights.w has shape"),
        (lambda: spatial_pyramid_pool(-np.ones((2, 2, 1)), n_levels=1), "must not be negative"),
        (lambda: greedy_scanpath(step, 2, 3), "has shape"),
        (lambda: greedy_scanpath(step, 0, 3), "n_objects=0 must be >= 1"),
        (lambda: sample_scanpath(step, 2, -1, np.random.default_rng(0)), "max_len=-1 must be >= 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            wrong()
