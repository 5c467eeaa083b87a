"""Comparing scanpaths: alignments against brute force, behaviour by counting, MultiMatch by its symmetries."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.layers.oat_metrics import behaviour, behaviour_delta, edit_distance, scanpath_sim, sequence_score
from refattn.layers.oat_multimatch import SHELVES, align_saccades, multimatch, object_centres, pad_scanpath

SCREEN = (1680, 1050)
paths = st.lists(st.integers(0, 3), min_size=1, max_size=6)
lines = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=3, max_size=6)


def longest_common(a, b):
    """Return the length of the longest common subsequence, by trying all of a's."""
    for size in range(min(len(a), len(b)), -1, -1):
        for part in itertools.combinations(a, size):
            rest = iter(b)
            if all(x in rest for x in part):
                return size
    return 0


@given(paths, paths)
def test_the_sequence_score_is_a_common_subsequence(a, b):
    """SS is the longest common subsequence over the longer length, the same both ways round, 1 for equal paths."""
    score = sequence_score(a, b)
    assert score == longest_common(a, b) / max(len(a), len(b)) == sequence_score(b, a)
    assert sequence_score(a, a) == 1.0
    assert sequence_score(a, [x + 4 for x in b]) == 0.0


def test_gaps_may_cost():
    """With a price on gaps a mismatch can be better than two gaps."""
    assert sequence_score([0, 1, 2], [0, 3, 2], gap=-1.0) == pytest.approx(2 / 3)
    assert sequence_score([0, 1], [1], gap=-0.25) == pytest.approx(0.75 / 2)


@given(paths, paths, paths)
def test_the_edit_distance_is_a_metric(a, b, c):
    """Zero for equal paths only, symmetric, no detour is shorter; at a price of 2 it counts what is not common."""
    ab = edit_distance(a, b)
    assert (ab == 0) == (a == b)
    assert ab == edit_distance(b, a)
    assert ab <= edit_distance(a, c) + edit_distance(c, b)
    assert abs(len(a) - len(b)) <= ab <= max(len(a), len(b))
    assert edit_distance(a, b, substitution_cost=2) == len(a) + len(b) - 2 * longest_common(a, b)


def test_behaviour_by_hand():
    """Staying is a refixation, coming back a revisit, the rest search."""
    np.testing.assert_allclose(behaviour([3, 3, 5, 3, 3, 7], 7), [1, 6, 3 / 6, 2 / 6, 1 / 6])
    np.testing.assert_allclose(behaviour([4], 7), [0, 1, 1, 0, 0])


@given(paths)
def test_every_fixation_is_one_of_three(path):
    """The three fractions sum to 1, and people behave as people do."""
    numbers = behaviour(path, 0)
    assert numbers[2:].sum() == pytest.approx(1.0)
    assert behaviour_delta(numbers, numbers) == 0.0


def test_delta_skips_agreement_at_zero():
    """0/0 is agreement, x/0 infinitely far."""
    human = np.array([0.5, 10, 0.5, 0.5, 0.0])
    assert behaviour_delta([1.0, 5, 0.5, 0.5, 0.0], human) == pytest.approx((1 + 0.5) / 5)
    assert behaviour_delta([1.0, 5, 0.5, 0.4, 0.1], human) == math.inf


def test_sim_is_the_probability_of_what_was_fixated():
    """The overlap with a one-hot map is the probability of that object."""
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
    assert scanpath_sim(p, [4, 0, 4]) == pytest.approx(np.mean([p[0, 4], p[1, 0], p[2, 4]]))


@given(lines, lines, st.integers(-50, 50), st.integers(-50, 50))
def test_multimatch_knows_no_absolute_place(a, b, x, y):
    """Moving both paths changes nothing; moving one changes position only."""
    a, b = np.array(a, float), np.array(b, float)
    here, moved = multimatch(a, b, SCREEN), np.array([x, y])
    np.testing.assert_allclose(multimatch(a + moved, b + moved, SCREEN), here, rtol=0, atol=1e-12)
    np.testing.assert_allclose(multimatch(a + moved, b, SCREEN)[:3], here[:3], rtol=0, atol=1e-12)
    assert np.all((here >= 0) & (here <= 1))


@given(lines)
def test_a_path_is_like_itself(a):
    """Shape, direction and length of a path and itself agree exactly; position too if no two saccades are equal."""
    same = multimatch(a, a, SCREEN)
    assert np.all(same[:3] == 1)
    saccades = {tuple(u) for u in np.diff(a, axis=0)}
    assert same[3] == 1 or len(saccades) < len(a) - 1


@given(lines, lines)
def test_no_walk_is_cheaper(a, b):
    """The alignment costs what a search over all monotone walks finds."""
    u, w = np.diff(np.array(a, float), axis=0)[:3], np.diff(np.array(b, float), axis=0)[:3]
    M = np.linalg.norm(u[:, None] - w, axis=-1)

    def cheapest(i, j):
        if (i, j) == (len(u) - 1, len(w) - 1):
            return 0.0
        onward = [(i + 1, j), (i, j + 1), (i + 1, j + 1)]
        return min(M[p, q] + cheapest(p, q) for p, q in onward if p < len(u) and q < len(w))

    walk = align_saccades(u, w)
    assert walk[0] == (0, 0)
    assert walk[-1] == (len(u) - 1, len(w) - 1)
    assert sum(M[p] for p in walk[1:]) == pytest.approx(cheapest(0, 0))


def test_ties_go_diagonally():
    """Of equally cheap walks the diagonal one is taken, then the one that goes down."""
    equal = np.ones((3, 2))
    assert align_saccades(equal, equal) == [(0, 0), (1, 1), (2, 2)]
    assert align_saccades(equal, equal[:2]) == [(0, 0), (1, 0), (2, 1)]


def test_multimatch_by_hand():
    """Two right angles, one turned: half a turn of direction, equal lengths; durations 1 and 2 differ by a half."""
    a, b = [(0, 0), (3, 0), (3, 4)], [(0, 0), (-3, 0), (-3, -4)]
    found = multimatch(a, b, (30, 40), ([1, 1, 9], [2, 2, 9]))
    np.testing.assert_allclose(found, [1 - 7 / 100, 0.0, 1.0, 1 - 3 / 50, 0.5])


def test_short_and_still_paths():
    """Fewer than three fixations give NaN unless they are filled up; eyes that do not move have direction 0."""
    assert np.isnan(multimatch([(0, 0), (1, 1)], [(0, 0), (1, 1), (2, 2)], SCREEN)).all()
    assert pad_scanpath([(5, 5)]).tolist() == [[5, 5], [1, 1], [1, 1]]
    still = np.full((4, 2), 7.0)
    np.testing.assert_allclose(multimatch(still, still, SCREEN), np.ones(5))


def test_pixels_of_the_wine_shelf():
    """Object 20 is the tenth of the second row."""
    np.testing.assert_allclose(object_centres([20], SHELVES["wine"]), [[9 * 152 + 76, 152 + 449 * 1.5]])


def test_bad_paths_are_refused():
    """Empty paths, prices of the wrong sign, distributions that are none and points that are none are refused."""
    line = np.zeros((3, 2))
    for wrong, rule in (
        (lambda: sequence_score([], [1]), "a: scanpath must not be empty"),
        (lambda: sequence_score([1], [0.5]), "b has dtype float64, expected integers"),
        (lambda: sequence_score([1], [1], gap=0.5), "gap=0.5 must be <= 0"),
        (lambda: edit_distance([1], []), "b: scanpath must not be empty"),
        (lambda: edit_distance([1], [1], substitution_cost=-1), "substitution_cost=-1 must be >= 0"),
        (lambda: behaviour([], 0), "path: scanpath must not be empty"),
        (lambda: behaviour([0], -1), "target=-1 must be an object's index"),
        (lambda: behaviour_delta(np.ones(4), np.ones(5)), "model_mean has shape"),
        (lambda: scanpath_sim(np.full((1, 2), 0.4), [0]), "probs must be >= 0 and sum to 1"),
        (lambda: scanpath_sim(np.array([[1.5, -0.5]]), [0]), "probs must be >= 0"),
        (lambda: scanpath_sim(np.full((1, 2), 0.5), [2]), r"path=\[2\] must hold objects, 0 to 1"),
        (lambda: scanpath_sim(np.full((2, 2), 0.5), [1]), "probs has 2 rows"),
        (lambda: multimatch(line[:, :1], line, SCREEN), "path_a has shape"),
        (lambda: multimatch(line * np.nan, line, SCREEN), "(?s)path_a=.* must be finite"),
        (lambda: multimatch(line, line, (0, 1)), "screen=.* must be > 0"),
        (lambda: multimatch(line, line, SCREEN, (np.ones(3), np.zeros(3))), r"durations\[1\]=.* must be > 0"),
        (lambda: multimatch(line, line, SCREEN, (np.ones(2), np.ones(3))), r"durations\[0\] has shape"),
        (lambda: multimatch(line, line, SCREEN, (np.ones(3),)), "durations has 1 parts"),
        (lambda: align_saccades(line, line[:0]), "at least one saccade"),
        (lambda: object_centres([22], SHELVES["wine"]), r"path=\[22\] must hold 0 to 21"),
    ):
        with pytest.raises(ValueError, match=rule):
            wrong()
