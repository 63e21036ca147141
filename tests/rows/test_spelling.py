"""Every spelling of a list or dict that people's files have is read, or is an error that says why.

`spellings.json` gives for each text its value, ``{"error": …}``, or ``{"plain": true}`` if it spells no structure.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_rows.spelling import SpellingError, looks_spelled, read_spelled, spells_structure

SPELLINGS: dict[str, Any] = json.loads((Path(__file__).parent / "spellings.json").read_text(encoding="utf-8"))
VALUES = st.one_of(st.text(max_size=6), st.integers(-5, 5), st.booleans(), st.none())


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_spelling_is_read_or_refused(text: str) -> None:
    """The value is the one that was written, with the same types."""
    wanted = SPELLINGS[text]
    if wanted == {"plain": True}:
        assert not looks_spelled(text)
        return
    assert looks_spelled(text)
    if isinstance(wanted, dict) and "error" in wanted:
        with pytest.raises(SpellingError, match=wanted["error"]):
            read_spelled(text)
        return
    found = read_spelled(text)
    assert repr(sorted(found) if text.startswith("{'a', 'b'") else found) == repr(wanted)


@given(st.lists(VALUES, max_size=5))
def test_python_and_json_lists_are_what_was_written(values: list[Any]) -> None:
    """`repr`, as data frames write it, and JSON agree."""
    assert read_spelled(repr(values)) == values
    assert read_spelled(json.dumps(values)) == values


@given(st.dictionaries(st.text(max_size=4), st.booleans(), max_size=4))
def test_python_and_json_dicts_are_what_was_written(values: dict[str, bool]) -> None:
    """Names and truth values come back."""
    assert read_spelled(repr(values)) == values
    assert read_spelled(json.dumps(values)) == values


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1, max_size=5), max_size=4))
def test_numpy_arrays_are_what_was_written(values: list[str]) -> None:
    """`str` and `repr` of an array of texts; quotes and escapes come back."""
    array = np.array(values, dtype=object)
    assert read_spelled(repr(array)) == values
    assert read_spelled(str(array)) == values


@given(st.text("[]{}()'\",: ab01\\=.|;\n", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No other error, and what Python reads as a list of texts means the same here."""
    if not looks_spelled(text):
        return
    with contextlib.suppress(SpellingError, ValueError, SyntaxError):
        found, python = read_spelled(text), ast.literal_eval(text.strip())
        joins = re.search(r"['\"]\s*['\"]", text)  # Python joins neighbouring texts
        if isinstance(python, list) and all(isinstance(part, str) for part in python) and not joins:
            assert found == python


def test_deep_and_long_texts_cost_little() -> None:
    """Brackets without end are refused; a long list is read in one pass."""
    for mark in "[({":
        with pytest.raises(SpellingError):
            read_spelled(mark * 100_000 + "'")
    assert len(read_spelled("[" + "a b, " * 20_000 + "c]")) == 20_001
    with pytest.raises(SpellingError):
        read_spelled("['" + "\\" * 100_001)


def test_a_data_frame_that_was_written_to_csv() -> None:
    """Lists, arrays and dicts in its cells come back."""
    frame = pandas.DataFrame({"a": [["x", "y"], {"x": 1}, np.array([0, 1]), ("x",), np.array(["x", "y"])]})
    lines = frame.to_csv(index=False, header=False, lineterminator="\n\0").split("\n\0")[:-1]
    cells = [pandas.read_csv(io.StringIO(line), header=None)[0][0] for line in lines]
    assert [read_spelled(cell) for cell in cells] == [["x", "y"], {"x": 1}, [0, 1], ["x"], ["x", "y"]]


@pytest.mark.parametrize(
    ("text", "is_structure"),
    [
        ("['a', 'b']", True), ('{"a": "b"}', True), ("[deleted]", False), ("[1]", False), ("a ['b']", False),
        ("('Hello', 'World')", True), ("[removed] it's gone", False), ("", False), ('"quoted"', False),
    ],
)  # fmt: skip
def test_texts_that_are_written_out_lists(text: str, is_structure: bool) -> None:
    """Only with quotes within: people write brackets too."""
    assert spells_structure(text) == is_structure
