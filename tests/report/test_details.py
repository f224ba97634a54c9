"""What passes tell of themselves becomes facts and tables, whatever it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.report.sections import detail_facts, detail_tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (np.int64(3), "3"),
        (0.123456, "0.1235"),
        (np.float32(0.5), "0.5"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ("words", "words"),
        ([1, "a"], "1, a"),
        (np.arange(3), "0, 1, 2"),
        ([{"some_name": 1, "b": [2]}], "some name 1, b 2"),
    ],
)
def test_facts(value: Any, text: str) -> None:
    assert detail_facts({"how_many": value}) == [("how many", text)]


def test_long_lists_are_cut_and_counted() -> None:
    ((_, text),) = detail_facts({"kept": range(1000)})
    assert text.endswith("23, ... (1000 in all)")


@pytest.mark.parametrize("value", [None, [], {}, np.zeros(0), "", {"a": 1}])
def test_what_is_empty_or_a_table_is_no_fact(value: Any) -> None:
    assert detail_facts({"name": value}) == []


def test_a_mapping_is_a_table() -> None:
    (table,) = detail_tables({"shares_of": {"first": 0.5, "second": "none"}, "number": 3})
    assert (table.title, table.columns) == ("shares of", ())
    assert table.rows == (("first", (("0.5", 0.5),)), ("second", (("none", ""),)))


def test_a_mapping_of_mappings_has_columns() -> None:
    (table,) = detail_tables({"layers": {"a": {"in_all": 2}, "b": {"zero": True}}})
    assert table.columns == ("in all", "zero")
    assert table.rows == (("a", (("2", 2.0), ("", ""))), ("b", (("", ""), ("yes", ""))))


def test_short_lists_take_a_cell_each_and_rows_are_of_one_length() -> None:
    (table,) = detail_tables({"widths": {"a": [64, 32], "b": [8]}})
    assert table.rows == (("a", (("64", 64.0), ("32", 32.0))), ("b", (("8", 8.0), ("", ""))))
