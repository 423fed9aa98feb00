from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.dates import written


@pytest.mark.parametrize(
    ("text", "precision", "expected"),
    [
        ("1952-02-06T00:00:00Z", 11, "6 February 1952"),
        ("1952-02-06T10:30:00Z", 14, "6 February 1952"),
        ("1952-03-01T00:00:00Z", 10, "March 1952"),
        ("1952-01-01T00:00:00Z", 10, "January 1952"),
        ("1952-01-01T00:00:00Z", 9, "1952"),
        ("1952-01-01T00:00:00Z", 11, "1 January 1952"),
        ("1952-02-06T00:00:00Z", 9, "1952"),
        ("1950-01-01T00:00:00Z", 8, "1950s"),
        ("1901-01-01T00:00:00Z", 7, "20th century"),
        ("2000-01-01T00:00:00Z", 7, "20th century"),
        ("2001-01-01T00:00:00Z", 7, "21st century"),
        ("1100-01-01T00:00:00Z", 7, "11th century"),
        ("0300-01-01T00:00:00Z", 7, "3rd century"),
        ("-0043-03-15T00:00:00Z", 11, "15 March 44 BC"),
        ("0000-01-01T00:00:00Z", 9, "1 BC"),
        ("-0299-01-01T00:00:00Z", 7, "3rd century BC"),
        ("+0800-12-25T00:00:00Z", 11, "25 December 800"),
        ("2022-07-24T00:00:00Z", None, "24 July 2022"),
        ("1912-01-01T00:00:00Z", None, "1912"),
        ("2020-02-29", None, "29 February 2020"),
        ("1952-01-01T00:00:00Z", 6, "1952-01-01T00:00:00Z"),
        ("1952-02-30T00:00:00Z", 11, "1952-02-30T00:00:00Z"),
        ("1952-13-01T00:00:00Z", 10, "1952-13-01T00:00:00Z"),
        ("13798000000-01-01T00:00:00Z", None, "13798000000-01-01T00:00:00Z"),
        ("soon", 9, "soon"),
    ],
)
def test_dates_as_a_reader_would_write_them(text, precision, expected):
    assert written(text, precision) == expected


@given(st.text() | st.from_regex(r"-?\d{4,12}-\d\d-\d\dT00:00:00Z", fullmatch=True), st.none() | st.integers(0, 14))
def test_any_text_is_written_somehow(text, precision):
    assert written(text, precision) or not text
