"""No group is in two splits, and splits are as near to their shares as whole groups allow."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_training.data.corpus import Corpus
from polyhead_training.data.description import describe_corpus
from polyhead_training.data.groups import NO_GROUP, TRIED, hold_out_groups, nearest_sum
from polyhead_training.errors import DataError
from tests.training.test_corpus import many, read, write

SIZES = [10, 30, 5, 40, 15]  # of groups whose hashes rise


def rows_of(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The group and the hash of each row."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return groups, (groups + 1) / (len(sizes) + 1)


@pytest.mark.parametrize(
    ("shares", "test", "validation"),
    [
        ({"test": 0.1, "validation": 0.15}, [0], [4]),
        ({"test": 0.2, "validation": 0.1}, [2, 4], [0]),  # 5 + 15 is the only sum of 20
        ({"validation": 0.34}, [], [1, 2]),  # 30 + 5 is nearer than 10 + 5 + 15
        ({"test": 0.01}, [2], []),  # the smallest, because none would be no split
    ],
)
def test_shares_by_hand(shares: dict[str, float], test: list[int], validation: list[int]) -> None:
    """Of 100 rows in five groups: which groups are held out."""
    groups, places = rows_of(SIZES)
    held = hold_out_groups(groups, places, shares)
    found = {name: sorted(set(groups[rows].tolist())) for name, rows in held.items()}
    assert found.get("test", []) == test
    assert found.get("validation", []) == validation
    assert found["train"] == sorted(set(range(5)) - {*test, *validation})
    assert sum(len(rows) for rows in held.values()) == 100


@given(
    st.lists(st.integers(-1, 12), min_size=1, max_size=80),
    st.fixed_dictionaries({"validation": st.floats(0.05, 0.45)}, optional={"test": st.floats(0.05, 0.45)}),
    st.randoms(use_true_random=False),
)
def test_no_group_is_twice_and_order_changes_nothing(
    groups: list[int], shares: dict[str, float], random: object
) -> None:
    """Each row is in one split, each group too; shuffled rows, and groups numbered otherwise, are split alike."""
    names = np.array(groups)
    places = np.random.default_rng(3).random(14)[names]
    held = hold_out_groups(pandas.factorize(names)[0] if -1 not in groups else names, places, shares)
    assert sorted(row for rows in held.values() for row in rows.tolist()) == list(range(len(names)))
    parts = [set(names[rows].tolist()) - {NO_GROUP} for rows in held.values()]
    assert not any(one & other for one, other in combinations(parts, 2))
    assert all(names[row] != NO_GROUP for name in shares for row in held[name])
    order = np.arange(len(names))
    random.shuffle(order)
    again = hold_out_groups(names[order], places[order], shares)
    assert {name: set(order[rows].tolist()) for name, rows in again.items()} == {
        name: set(rows.tolist()) for name, rows in held.items()
    }


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_sums_are_as_near_as_any(sizes: list[int], share: float) -> None:
    """No other choice of sizes comes nearer."""
    wanted = share * sum(sizes)
    found = nearest_sum(sizes, wanted)
    assert len(set(found)) == len(found) > 0
    sums = [sum(some) for count in range(1, len(sizes) + 1) for some in combinations(sizes, count)]
    nearest = min(abs(each - wanted) for each in sums)
    assert abs(sum(sizes[place] for place in found) - wanted) == pytest.approx(nearest)


def test_of_many_groups_the_share_is_exact() -> None:
    """Groups of 1 to 9 rows, many more than have all their sums tried: a tenth of the rows to the row."""
    sizes = (np.random.default_rng(0).integers(1, 10, 20 * TRIED)).tolist()
    assert sum(sizes[place] for place in nearest_sum(sizes, sum(sizes) // 10)) == sum(sizes) // 10


def groups_by_split(corpus: Corpus, rows: list[dict[str, object]]) -> dict[str, set[object]]:
    """The authors of each split, by the texts that it has."""
    author_of = {row["text"]: row["author"] for row in rows}
    return {name: {author_of[text] for text in split.texts} for name, split in corpus.splits.items()}


def test_a_corpus_by_group(tmp_path: Path) -> None:
    """40 authors of 50 rows: four are in validation, four in test; similar rows are of the 32 that are trained on."""
    rows = many(2000)
    corpus = read(tmp_path, rows, split="group", group_column="author")
    assert {name: len(split) for name, split in corpus.splits.items() if name in ("validation", "test")} == {
        "validation": 200, "test": 200,
    }  # fmt: skip
    assert len(corpus.train) + len(corpus.splits["similar"]) == 1600
    assert 120 <= len(corpus.splits["similar"]) <= 200
    authors = groups_by_split(corpus, rows)
    assert [len(authors[name]) for name in ("train", "validation", "test")] == [32, 4, 4]
    assert not authors["train"] & (authors["validation"] | authors["test"])
    assert not authors["validation"] & authors["test"]
    assert authors["similar"] < authors["train"]
    lines = describe_corpus(corpus)
    assert f"similar: {len(corpus.splits['similar'])} rows" in lines
    assert (
        "note: group: train rows are of 32 groups, validation rows are of 4 groups, test rows are of 4 groups, similar "
        "rows are of 31 groups"
    ) in lines
    assert corpus.test is not None
    assert corpus.test.origin.endswith("train.jsonl, of 4 groups")
    (tmp_path / "other").mkdir()
    other = read(tmp_path / "other", rows[::-1], split="group", group_column="author")
    assert groups_by_split(other, rows) == authors
    assert set(other.splits["similar"].texts) == set(corpus.splits["similar"].texts)


def test_groups_are_spelled_alike_in_all_files(tmp_path: Path) -> None:
    """A number, a number as text, and blanks around it name one group, in CSV and Parquet."""
    frame = pandas.DataFrame({"text": [f"text {i}" for i in range(60)], "topic": ["a", "b"] * 30})
    frame.assign(shop=[f" {i % 20} " for i in range(60)]).to_csv(tmp_path / "a.csv", index=False)
    frame.assign(shop=[float(i % 20) for i in range(60)], text=frame["text"] + " more").to_parquet(
        tmp_path / "b.parquet"
    )
    corpus = read(tmp_path, train=[str(tmp_path / "a.csv"), str(tmp_path / "b.parquet")], split="group",
                  group_column="shop", test_share=0.1)  # fmt: skip
    shops = {name: Counter(split.values("shop")) for name, split in corpus.splits.items()}
    assert {name: len(found) for name, found in shops.items()} == {"train": 16, "validation": 2, "test": 2}
    assert all(count == 6 for found in shops.values() for count in found.values())


def test_rows_without_a_group_are_trained_on(tmp_path: Path) -> None:
    """Null, blank and missing cells; a note counts them."""
    rows = many(200)
    for i, cell in enumerate((None, " ", "", float("nan"))):
        rows[i]["author"] = cell
    del rows[4]["author"]
    corpus = read(tmp_path, rows, split="group", group_column="author")
    assert {f"text {i} of many" for i in range(5)} <= set(corpus.train.texts)
    assert any("group: 5 of 180 train rows have no group in column 'author': they are trained on" in note
               for note in corpus.notes)  # fmt: skip


@pytest.mark.parametrize(
    ("authors", "data", "message"),
    [
        ([f"x{i}" if i < 40 else "big" for i in range(100)], {}, "'big' has 60 of 100 rows, which is most of the data"),
        (["a", "b"] * 50, {}, "'a' has 50 of 100 rows; set data.validation_share"),
        (["a"] * 45 + ["b"] * 55, {"test_share": 0.1}, "there are 2 groups, but train, validation, test need at least"),
        (["a"] * 100, {}, "only 'a' has 100 of 100 rows, but train, validation need at least one group each"),
        ([None] * 100, {}, "has no group in any of 100 rows"),
        (["a"] * 40 + ["b"] * 35 + ["c"] * 25, {}, "validation would have 25 of 100 rows, not about 10"),
    ],
)
def test_groups_that_cannot_be_split_are_an_error(
    tmp_path: Path, authors: list[str | None], data: dict[str, object], message: str
) -> None:
    """The error names the group and says what to do."""
    rows = [row | {"author": author} for row, author in zip(many(100), authors, strict=True)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows, split="group", group_column="author", **data)
    assert message in str(caught.value)
    assert "name a column with more and smaller groups, or give the rows in files of their own" in str(caught.value)


def test_a_test_split_that_nobody_asked_for_is_left_out(tmp_path: Path) -> None:
    """1,000 rows in two groups: the smaller one is for validation. Asked for, a test split is an error."""
    rows = [row | {"author": "big" if i % 10 else "small"} for i, row in enumerate(many(1000))]
    with pytest.raises(DataError, match="'big' has 900 of 1000 rows, which is most of the data"):
        read(tmp_path, rows, split="group", group_column="author")
    rows = [row | {"author": "abc"[i % 10 % 3 if i % 10 < 9 else 2]} for i, row in enumerate(many(1000))]
    corpus = read(tmp_path, rows, split="group", group_column="author", validation_share=0.3)
    assert [len(corpus.validation), corpus.test] == [300, None]


def test_a_group_is_no_list(tmp_path: Path) -> None:
    """A list is a bad row, and a missing column is an error."""
    rows = [row | {"author": ["a", "b"]} for row in many(20)]
    with pytest.raises(
        DataError, match=r"train.jsonl:1: column 'author': a group is a text or a number, got \['a', 'b'\]"
    ):
        read(tmp_path, rows, split="group", group_column="author")
    with pytest.raises(DataError, match="has no column 'writer'"):
        read(tmp_path, many(20), split="group", group_column="writer")


def test_given_rows_are_compared_with_train(tmp_path: Path) -> None:
    """Given files are not divided: notes say so, and count their rows of groups that train has too."""
    held_out = [
        {"text": f"held out {i}", "topic": "ab"[i % 2], "author": author}
        for i, author in enumerate(["author 3", "author 3", "new", "other", None])
    ]
    path = write(tmp_path / "held.jsonl", held_out)
    bare = write(tmp_path / "bare.jsonl", [{"text": "bare", "topic": "a"}])
    corpus = read(tmp_path, many(1200), split="group", group_column="author", validation=path, test=bare)
    notes = "\n".join(corpus.notes)
    assert "group: validation and test rows are given, so none of train are held out for validation and test" in notes
    assert "group: 2 of 5 validation rows are of 1 groups that train has too" in notes
    assert "group: 1 of 5 validation rows have no group in column 'author'\n" in notes + "\n"
    assert "group: 1 of 1 test rows have no group in column 'author'" in notes
    assert len(corpus.train) + len(corpus.splits["similar"]) == 1200


def test_leaks_between_groups_are_counted_and_dropped(tmp_path: Path) -> None:
    """One text that all authors wrote: split by group, it is in all parts but similar, and drop_leaks takes it out."""
    rows = many(1200) + [{"text": "Copied text", "topic": "a", "author": f"author {i}"} for i in range(40)]
    corpus = read(tmp_path, rows, split="group", group_column="author")
    copies = {name: list(split.texts).count("Copied text") for name, split in corpus.splits.items()}
    assert copies["validation"] == copies["test"] == 4
    assert sorted((copies["train"], copies["similar"])) == [0, 32]
    dropped = read(tmp_path, rows, split="group", group_column="author", drop_leaks=True)
    assert "Copied text" not in list(dropped.train.texts)
    if copies["train"]:
        assert any(
            "leak: 4 of" in note and "test rows have the text of a row in train" in note for note in corpus.notes
        )
