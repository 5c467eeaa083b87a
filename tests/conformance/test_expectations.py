"""The adopter's file: expected failures need reasons, must match, and the count of checks must hold."""

import pytest

from refattn.conformance.expectations import Expectations, read_expectations
from refattn.conformance.records import CheckId, Record


def record(name, status="failed"):
    return Record(CheckId("attention", "attention", "scenario", name, "float64"), status, "row limit")


def test_a_listed_failure_is_expected_with_its_reason():
    """A failing check that a pattern names is marked expected and keeps both reasons."""
    expectations = Expectations({"attention/*/softcap@*": "no softcap yet"})

    (marked, other), problems = expectations.apply([record("softcap"), record("gqa", "passed")])

    assert (marked.status, marked.reason) == ("expected", "no softcap yet (row limit)")
    assert other.status == "passed"
    assert not problems


def test_an_entry_that_matches_nothing_is_a_problem():
    """What was mended must leave the list."""
    _, problems = Expectations({"attention/*/softcap@*": "no softcap yet"}).apply([record("softcap", "passed")])

    assert problems == ["expected failure 'attention/*/softcap@*' matches no failing check"]


def test_a_drop_in_the_number_of_checks_is_a_problem():
    """Fewer judged checks than are on file fail the run; skipped ones do not count."""
    _, problems = Expectations(checks=2).apply([record("a", "passed"), record("b", "skipped")])

    assert problems == ["1 checks were judged, 2 are on file: say why some are gone"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[expected]\n'a' = ''", "needs a reason"),
        ("[expected]\n'a' = 3", "needs a reason"),
        ("[excepted]\n'a' = 'b'", "unknown key 'excepted'"),
        ("not toml", "expected-failures="),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    """A file without reasons, with unknown keys, or that is not TOML raises a ValueError that names it."""
    path = tmp_path / "expected.toml"
    path.write_text(text)

    with pytest.raises(ValueError, match=message):
        read_expectations(path)


def test_a_file_is_read(tmp_path):
    """Patterns, reasons and the count come from the file."""
    path = tmp_path / "expected.toml"
    path.write_text("checks = 3\n[expected]\n'a*' = 'because'\n")

    assert read_expectations(path) == Expectations({"a*": "because"}, 3)
