"""The oldest rows are trained on and the newest are the test, however times are written; no time is in two splits."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_training.config import DataConfig
from polyhead_training.data.corpus import Corpus, read_split
from polyhead_training.data.description import describe_corpus
from polyhead_training.data.times import TimeReader, comparable_times, hold_out_newest, shown_time
from polyhead_training.errors import BadRowError, DataError
from tests.training.test_corpus import TOPIC, many, read, write

DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(days=7 * i) for i in range(100)]
TIMES = np.array([1, 1, 2, 3, 3, 3, 4, 5, 5, 6], np.float64)


@pytest.mark.parametrize(
    ("shares", "test", "validation"),
    [
        ({"test": 0.1, "validation": 0.2}, {6}, {5}),
        ({"test": 0.25, "validation": 0.3}, {5, 6}, {3, 4}),  # 3 rows are nearest to 2.5, then 4 to 3
        ({"validation": 0.2}, set(), {6}),  # 1 row is as near to 2 as 3 rows are, and leaves more for training
        ({"test": 0.01}, {6}, set()),
    ],
)
def test_shares_by_hand(shares: dict[str, float], test: set[int], validation: set[int]) -> None:
    """Of ten rows at six times: which times are held out."""
    held = hold_out_newest(TIMES, shares)
    found = {name: set(TIMES[rows].astype(int).tolist()) for name, rows in held.items()}
    assert (found.get("test", set()), found.get("validation", set())) == (test, validation)
    assert found["train"] == {1, 2, 3, 4, 5, 6} - test - validation


@given(
    st.lists(st.integers(0, 15), min_size=3, max_size=60),
    st.fixed_dictionaries({"validation": st.floats(0.05, 0.45), "test": st.floats(0.05, 0.45)}),
    st.randoms(use_true_random=False),
)
def test_no_time_is_in_two_splits(times: list[int], shares: dict[str, float], random: Any) -> None:
    """Each row is in one split; all of train is older than all of validation, which is older than all of test."""
    array = np.array(times, np.float64)
    held = hold_out_newest(array, shares)
    assert sorted(row for rows in held.values() for row in rows.tolist()) == list(range(len(times)))
    parts = [array[held[name]] for name in ("train", "validation", "test") if len(held[name])]
    assert all(older.max() < newer.min() for older, newer in pairwise(parts))
    order = np.arange(len(times))
    random.shuffle(order)
    again = hold_out_newest(array[order], shares)
    assert all(set(order[again[name]].tolist()) == set(rows.tolist()) for name, rows in held.items())


def dated(count: int = 100, **changes: Any) -> list[dict[str, Any]]:
    """Rows of a week each, from the newest to the oldest."""
    rows = [row | {"date": DAYS[i % 100].isoformat()} for i, row in enumerate(many(count))]
    return [row | changes for row in rows[::-1]]


def dates(corpus: Corpus, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The sorted dates of each split, by the texts that it has."""
    date_of = {row["text"]: row["date"] for row in rows}
    return {name: sorted(date_of[text] for text in split.texts) for name, split in corpus.splits.items()}


def write_parquet(kind: pyarrow.DataType) -> Callable[[Path, pandas.DataFrame], None]:
    """Writes the column of dates with this type."""

    def write_table(path: Path, frame: pandas.DataFrame) -> None:
        moments = pyarrow.array([datetime.datetime(d.year, d.month, d.day) for d in frame["date"]])
        columns = {name: pyarrow.array(frame[name]) for name in ("text", "topic")} | {"date": moments.cast(kind)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return write_table


def write_csv(spell: Callable[[datetime.date], object]) -> Callable[[Path, pandas.DataFrame], None]:
    """Writes dates as text."""
    return lambda path, frame: frame.assign(date=frame["date"].map(spell)).to_csv(path, index=False)


def seconds(day: datetime.date) -> int:
    """Since 1970, in UTC."""
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp())


@pytest.mark.parametrize(
    ("suffix", "write_rows"),
    [
        ("csv", write_csv(str)),
        ("csv", write_csv(lambda day: f"{day}T00:00:00Z")),
        ("csv", write_csv(lambda day: f"{day} 00:00:00.000000000+00:00")),
        ("csv", write_csv(lambda day: f"{day:%Y/%m/%d} 02:00:00 +0200".replace(" +", "+"))),
        ("csv", write_csv(lambda day: f"{day:%Y%m%d}")),
        ("csv", write_csv(lambda day: f"{day:%a, %d %b %Y} 00:00:00 GMT")),
        ("csv", write_csv(seconds)),
        ("csv", write_csv(lambda day: seconds(day) * 1000)),
        ("csv", write_csv(lambda day: seconds(day) * 1_000_000)),
        ("csv", write_csv(lambda day: seconds(day) * 1_000_000_000)),
        ("parquet", write_parquet(pyarrow.date32())),
        ("parquet", write_parquet(pyarrow.date64())),
        ("parquet", write_parquet(pyarrow.timestamp("s"))),
        ("parquet", write_parquet(pyarrow.timestamp("ns", "Europe/Berlin"))),
        ("parquet", write_parquet(pyarrow.timestamp("us", "UTC"))),
    ],
)
def test_times_of_all_spellings(
    tmp_path: Path, suffix: str, write_rows: Callable[[Path, pandas.DataFrame], None]
) -> None:
    """The newest ten of a hundred weeks are the test, the ten before them validation, in every format."""
    rows = dated()
    frame = pandas.DataFrame(rows).assign(date=lambda f: f["date"].map(datetime.date.fromisoformat))
    path = tmp_path / f"rows.{suffix}"
    write_rows(path, frame[["text", "topic", "date"]])
    corpus = read(tmp_path, train=str(path), split="time", time_column="date", test_share=0.1)
    found = dates(corpus, rows)
    days = [str(day) for day in DAYS]
    assert found == {"train": days[:80], "validation": days[80:90], "test": days[90:]}
    line = (
        "time: train rows are from 2024-01-01 to 2025-07-07, validation rows are from 2025-07-14 to 2025-09-15, test "
        "rows are from 2025-09-22 to 2025-11-24"
    )
    assert line in corpus.notes
    assert corpus.test is not None
    assert corpus.test.origin.endswith(", from 2025-09-22 to 2025-11-24")
    assert corpus.test.called == "the newest rows"


def test_times_in_zones_are_compared_in_utc() -> None:
    """New Year's Eve in New York is New Year in London; a time without a zone is UTC, and mixed ones are counted."""
    reader = TimeReader("date")
    spelled = ["2023-12-31T23:30:00-05:00", "2024-01-01T05:00:00+01:00", "2024-01-01 04:15:00", "2024-01-01"]
    times = [reader.read(cell, "a:1", is_needed=True)[0] for cell in spelled]
    assert np.argsort(np.array(times)).tolist() == [3, 1, 2, 0]
    assert times[0] == datetime.datetime(2024, 1, 1, 4, 30, tzinfo=datetime.UTC).timestamp() * 1e6
    assert reader.note() == "time_column: 1 of 3 times have no time zone and are taken as UTC"


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([2019, 2020], ["2019-01-01", "2020-01-01"]),
        ([202401, 202312], ["2024-01-01", "2023-12-01"]),
        ([20240131, 20240229], ["2024-01-31", "2024-02-29"]),
        ([20240231, 20240101], ["20240231", "20240101"]),  # there is no 31 February: plain numbers
        ([1, 12, 3.5], ["1", "12", "3.5"]),
        ([1_706_659_200, 1_706_659_200_000], ["2024-01-31", "2024-01-31"]),
        ([1_706_659_200_000_000, 1_706_659_200_000_000_000], ["2024-01-31", "2024-01-31"]),
        ([0, 1_706_659_200], ["1970-01-01", "2024-01-31"]),
        ([-86_400, 1_706_659_200.5], ["1969-12-31", "2024-01-31 00:00:00"]),
    ],
)
def test_numbers_are_times_as_the_column_says(numbers: list[float], shown: list[str]) -> None:
    """Years, months, days, seconds to nanoseconds since 1970, or numbers that only have an order."""
    reader = TimeReader("date")
    read_numbers = [reader.read(str(number), "a:1", is_needed=True) for number in numbers]
    times, is_number = (np.array(part) for part in zip(*read_numbers, strict=True))
    found, are_dates = comparable_times(times, is_number, str, "date")
    assert [shown_time(time, are_dates) for time in found] == shown


@pytest.mark.parametrize(
    "cell", ["03/04/2024", "31.01.2024", "Jan 5, 2024", "yesterday", "2024-13-01", True, [2024], "12:30", "1e999"]
)
def test_what_is_no_time_is_a_bad_row(cell: object) -> None:
    """Day and month of an ambiguous date are not guessed; the error names row and cell, and how to write it."""
    with pytest.raises(BadRowError, match=r"rows.csv:7: column 'date': .* is no time; write times as 2024-01-31 or"):
        TimeReader("date").read(cell, "rows.csv:7", is_needed=False)


def test_rows_without_a_time_stop_or_are_counted(tmp_path: Path) -> None:
    """The error names the first one and counts them; bad_rows = "skip" leaves them out."""
    rows = dated()
    for i, cell in enumerate((None, " ", "NaT", "soon", float("nan"))):
        rows[i]["date"] = cell
    del rows[5]["date"]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, split="time", time_column="date")
    assert (
        "train.jsonl:1: column 'date' has no time, and split = 'time' needs one per row. Of 100 rows, 6 cannot"
        in str(caught.value)
    )
    corpus = read(tmp_path, rows, split="time", time_column="date", bad_rows="skip")
    assert corpus.train.bad == 6
    assert len(corpus.train) + len(corpus.validation) == 94
    assert 'train: 85 rows, 6 bad rows left out by bad_rows = "skip"' in describe_corpus(corpus)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["2024-01-01"] * 100,
            "only '2024-01-01' has 100 of 100 rows, but train, validation need at least one time each",
        ),
        (["2024-01-01"] * 60 + ["2023-01-01"] * 40, "validation would have 60 of 100 rows, not about 10, because rows"),
        (["2024"] * 40 + ["2023"] * 30 + ["2022"] * 30, "validation would have 40 of 100 rows, not about 10"),
        (["2024-01-01"] * 50 + ["7"] * 50, "mixes dates and numbers that are no dates: 7 at"),
    ],
)
def test_times_that_cannot_be_split_are_an_error(tmp_path: Path, cells: list[str], message: str) -> None:
    """One time, one that most rows have, few times, or numbers among dates: the error says what to do."""
    rows = [row | {"date": cell} for row, cell in zip(many(100), cells, strict=True)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, split="time", time_column="date")
    assert message in str(caught.value)
    assert "name a column with more times, or give" in str(caught.value) or "write times as" in str(caught.value)


def test_the_oldest_time_may_have_most_rows(tmp_path: Path) -> None:
    """Releases: what was there at first is trained on, what came with the next two is validation and test."""
    rows = many(1000)
    for i, row in enumerate(rows):
        row["date"] = 2021 + 2 * (i >= 800) + 2 * (i >= 900)
    corpus = read(tmp_path, rows, split="time", time_column="date", similar_share=0)
    assert {name: len(split) for name, split in corpus.splits.items()} == {"train": 800, "validation": 100, "test": 100}
    assert (
        corpus.notes[0]
        == "time: train rows are of 2021-01-01, validation rows are of 2023-01-01, test rows are of 2025-01-01"
    )


def test_several_files_are_one_order(tmp_path: Path) -> None:
    """The newest rows are the newest of all files; the second file writes seconds."""
    rows = dated(200)
    for row in rows[:100]:
        row["date"] = str(DAYS[0])
    later = [row | {"date": seconds(DAYS[50 + i])} for i, row in enumerate(rows[:40])]
    files = [write(tmp_path / "a.jsonl", rows[100:]), write(tmp_path / "b.jsonl", later)]
    corpus = read(tmp_path, train=files, split="time", time_column="date")
    assert len(corpus.validation) == 14
    assert "validation rows are from 2025-09-08 to 2025-11-24" in corpus.notes[0]


def test_given_rows_are_compared_with_train(tmp_path: Path) -> None:
    """A test file keeps its rows; a note counts those that are not newer than train, and those without a time."""
    cells = [str(DAYS[0]), str(DAYS[89]), str(DAYS[90]), "2030-01-01", None]
    held_out = [{"text": f"held {i}", "topic": "a", "date": cell} for i, cell in enumerate(cells)]
    path = write(tmp_path / "test.jsonl", held_out)
    corpus = read(tmp_path, dated(), split="time", time_column="date", test=path)
    notes = "\n".join(corpus.notes)
    assert "validation rows are from 2025-09-22 to 2025-11-24, test rows are from 2024-01-01 to 2030-01-01" in notes
    assert "time: test rows are given, so none of train are held out for test" in notes
    assert "time: 2 of 5 test rows are not newer than the newest training row" in notes
    assert "time: 1 of 5 test rows have no time in 'date'" in notes
    assert corpus.test is not None
    assert corpus.test.called == "the test rows"


def test_similar_rows_are_of_the_time_of_train(tmp_path: Path) -> None:
    """A tenth of at least 1,000 rows by default, a share or none if asked for; no text of them is trained on."""
    rows = dated(2000)
    rows += [row | {"topic": "a"} for row in rows[:300]]
    corpus = read(tmp_path, rows, split="time", time_column="date")
    similar = corpus.splits["similar"]
    trained = len(corpus.train) + len(similar)
    assert 0.06 * trained < len(similar) < 0.14 * trained
    assert not set(similar.texts) & set(corpus.train.texts)
    assert dates(corpus, rows)["similar"][-1] <= dates(corpus, rows)["train"][-1]
    none = read(tmp_path, rows, split="time", time_column="date", similar_share=0)
    assert "similar" not in none.splits
    assert set(none.train.texts) == set(corpus.train.texts) | set(similar.texts)
    more = read(tmp_path, rows, split="time", time_column="date", similar_share=0.3)
    assert set(similar.texts) < set(more.splits["similar"].texts)
    with pytest.raises(DataError, match=r"none is left for similar; raise data\.similar_share"):
        read(tmp_path, dated(), split="time", time_column="date", similar_share=0.0001)


def test_a_hub_data_set_by_time(tmp_path: Path) -> None:
    """A data set with train alone is split by its time stamps."""
    rows = dated()
    (tmp_path / "set").mkdir()
    frame = pandas.DataFrame(rows).assign(date=lambda f: pandas.to_datetime(f["date"]))
    frame[["text", "topic", "date"]].to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    corpus = read(tmp_path, train=None, hub=str(tmp_path / "set"), split="time", time_column="date", test_share=0.1)
    assert dates(corpus, rows)["test"] == [str(day) for day in DAYS[90:]]


def test_evaluation_needs_no_time(tmp_path: Path) -> None:
    """Rows are read for evaluation as before, with or without the column."""
    corpus = read(tmp_path, dated(), split="time", time_column="date")
    for number, row in enumerate(({"text": "one", "topic": "a"}, {"text": "one", "topic": "a", "date": "soon"})):
        path = tmp_path / f"new-{number}.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        config = DataConfig(train=str(path), split="time", time_column="date")
        assert len(read_split(str(path), config, [TOPIC], corpus.schema, tmp_path / "evaluation")) == 1
