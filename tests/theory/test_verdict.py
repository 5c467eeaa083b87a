"""Measured beside predicted: what holds and what does not."""

import math

import pytest

from theory.verdict import above, below, between, close, within_noise


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (within_noise("n", 1.39, 1.0, 0.1), True),
        (within_noise("n", 1.41, 1.0, 0.1), False),
        (within_noise("n", 1.0, 1.0, 0.0), True),
        (within_noise("n", 1.1, 1.0, 0.0), False),
        (within_noise("n", math.nan, 1.0, 0.1), False),
        (within_noise("n", 1.0, 1.0, math.nan), False),
        (close("n", 1.04, 1.0, relative=0.05), True),
        (close("n", -1.06, -1.0, relative=0.05), False),
        (close("n", 0.0, 0.0, relative=0.05), True),
        (close("n", 0.1, 0.0, relative=0.05), False),
        (close("n", 0.1, 0.0, absolute=0.2), True),
        (close("n", math.nan, 0.0, absolute=0.2), False),
        (between("n", 1.0, 1.0, 2.0), True),
        (between("n", 2.1, 1.0, 2.0), False),
        (between("n", math.nan, 1.0, 2.0), False),
        (above("n", 1.0, 1.0), True),
        (above("n", 0.9, 1.0), False),
        (below("n", 1.0, 1.0), True),
        (below("n", math.nan, 1.0), False),
    ],
)
def test_a_check_holds_within_its_bound_and_never_for_nan(check, holds):
    """The bound belongs to what holds; what is not a number does not hold."""
    assert check.holds is holds
    assert check.verdict == ("holds" if holds else "FAILS")


def test_the_distance_is_in_the_unit_of_the_bound():
    """A z-score counts standard errors, a relative distance is a share of what was predicted."""
    assert within_noise("n", 1.2, 1.0, 0.1).distance == pytest.approx(2.0)
    assert close("n", 2.1, 2.0, relative=0.1).distance == pytest.approx(0.05)


def test_one_bound_must_be_given():
    """Neither no bound nor two make sense."""
    with pytest.raises(ValueError, match="give exactly one"):
        close("n", 1.0, 1.0)
    with pytest.raises(ValueError, match="give exactly one"):
        close("n", 1.0, 1.0, relative=0.1, absolute=0.1)
