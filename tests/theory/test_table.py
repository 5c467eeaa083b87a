"""Tidy tables of results."""

import math

import numpy as np
import pytest

from theory.table import ResultTable


def table():
    return ResultTable(
        [
            {"source": "simulation", "metric": "error", "value": np.float64(0.1) + 0.2, "stderr": math.nan, "dim": 2},
            {"source": "exact", "metric": "error", "value": 1, "rule": "hebb, or not"},
        ]
    )


def test_reading_back_gives_the_same_table_to_the_last_bit(tmp_path):
    """JSON lines keep every digit, and NaN."""
    table().to_jsonl(tmp_path / "t.jsonl")
    assert ResultTable.from_jsonl(tmp_path / "t.jsonl") == table()


def test_tables_differ_in_the_last_bit():
    """Two tables are equal only if every number is, to the last bit."""
    other = table()
    other.rows[0]["value"] = math.nextafter(other.rows[0]["value"], 1)
    assert other != table()


def test_csv_has_one_line_a_row_and_all_digits(tmp_path):
    """Fixed columns come first, missing values are empty, text with commas is quoted."""
    table().to_csv(tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "source,metric,value,stderr,dim,rule",
        "simulation,error,0.30000000000000004,nan,2,",
        'exact,error,1,,,"hebb, or not"',
    ]


def test_rows_are_chosen_by_their_columns():
    """``where`` filters, ``one`` and ``value`` demand exactly one row."""
    assert len(table().where(metric="error")) == 2
    assert table().value(source="exact") == 1.0
    with pytest.raises(ValueError, match="2 rows have"):
        table().one(metric="error")


def test_a_missing_number_is_nan_in_a_column():
    """A column of numbers is an array of floats."""
    np.testing.assert_array_equal(table().column("dim"), [2.0, np.nan])
    with pytest.raises(ValueError, match="'width' is not one of"):
        table().column("width")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "exact", "metric": "m"}, "has no 'value'"),
        ({"source": "rumour", "metric": "m", "value": 1}, "source='rumour' is not one of"),
        ({"source": "exact", "metric": "m", "value": [1, 2]}, "expected a number, string, boolean or None"),
    ],
)
def test_a_row_that_is_no_row_is_refused(row, message):
    """What is missing or wrong is named, and nothing of the batch is added."""
    t = table()
    with pytest.raises(ValueError, match=message):
        t.extend([{"source": "exact", "metric": "m", "value": 1}, row])
    assert len(t) == 2


def test_a_table_becomes_a_data_frame():
    """Where pandas is installed, rows and columns are those of the table."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = table().to_pandas()
    assert tuple(frame.columns) == table().columns
    assert len(frame) == 2
