"""The splits by group and by time: rows that are unlike those of train, checked and described.

A part is where its rows are staged, and which of these it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from polyhead_rows.spelling import shortened
from polyhead_training.config import DataConfig
from polyhead_training.config.data import COLUMN_OF
from polyhead_training.data.groups import NO_GROUP, hold_out_groups
from polyhead_training.data.staging import Indices, Staged
from polyhead_training.data.times import Times, comparable_times, hold_out_newest, shown_time
from polyhead_training.errors import DataError

MOST = 0.5  # of the rows: with a larger group, the others say little. The oldest time may well have more
FAR = 2  # times a share, or its part: too far from what is asked for
FILES = "or give the rows in files of their own with data.validation and data.test"
WHOLE = {"group": "groups are never divided", "time": "rows of one time are never divided"}


def hold_out_shifted(staged: Staged, config: DataConfig, shares: Mapping[str, float]) -> dict[str, Indices]:
    """Train and one split per share, by group or by time.

    A test split that the config does not ask for is left out if the splits would not be about as large as their shares.

    Raises:
        DataError: groups or times do not allow what the config asks for; says what to do.
    """
    keys, names = _keys(staged, config)
    held = _hold_out(staged, keys, config, shares)
    if config.test_share is None and "test" in shares and _far(held, shares, len(keys)):
        shares = {name: share for name, share in shares.items() if name != "test"}
        held = _hold_out(staged, keys, config, shares)
    _check(staged, config, keys, names, shares, held)
    return held


def _keys(staged: Staged, config: DataConfig) -> tuple[NDArray[np.int64], list[str]]:
    """The number of each row's group or time, -1 if it has none, and what each number is called; times in order."""
    if config.split == "group":
        encoded = staged.columns(["group"])[0].dictionary_encode().combine_chunks()
        return encoded.indices.fill_null(NO_GROUP).to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
    times, are_dates = _times(staged, config)
    distinct, keys = np.unique(times, return_inverse=True)
    return keys, [shown_time(time, are_dates) for time in distinct.tolist()]


def _times(staged: Staged, config: DataConfig, indices: Indices | slice = slice(None)) -> tuple[Times, bool]:
    times, is_number = staged.numbers("time"), staged.numbers("time_is_number")
    found, are_dates = comparable_times(times, is_number, staged.place_at, config.time_column or "")
    return found[indices], are_dates


def _hold_out(
    staged: Staged, keys: NDArray[np.int64], config: DataConfig, shares: Mapping[str, float]
) -> dict[str, Indices]:
    if config.split == "group":
        return hold_out_groups(keys, staged.numbers("place"), shares)
    return hold_out_newest(keys.astype(np.float64), shares)


def _far(held: Mapping[str, Indices], shares: Mapping[str, float], rows: int) -> list[str]:
    """The splits that are far from their shares, and train if it is empty."""
    wanted = {name: (len(held[name]), share * rows) for name, share in shares.items()}
    far = [name for name, (count, share) in wanted.items() if not share / FAR <= count <= max(FAR * share, 1)]
    return far + ([] if len(held["train"]) else ["train"])


def _check(
    staged: Staged,
    config: DataConfig,
    keys: NDArray[np.int64],
    names: list[str],
    shares: Mapping[str, float],
    held: Mapping[str, Indices],
) -> None:
    rows, what, parts = len(keys), config.split, ["train", *sorted(shares, reverse=True)]
    column = f"{staged.source}: {COLUMN_OF[what]} {config.shift_column!r}"
    other = f"name a column with {'more and smaller groups' if what == 'group' else 'more times'}, {FILES}"
    if not names:
        raise DataError(f"{column} has no {what} in any of {rows} rows; {other}")
    sizes = np.bincount(keys[keys >= 0], minlength=len(names))
    largest = f"{shortened(repr(names[sizes.argmax()]))} has {sizes.max()} of {rows} rows"
    if len(names) < len(parts):
        found = f"only {largest}" if len(names) == 1 else f"there are {len(names)} {what}s"
        raise DataError(f"{column}: {found}, but {', '.join(parts)} need at least one {what} each; {other}")
    if what == "group" and sizes.max() > MOST * rows:
        raise DataError(f"{column}: {largest}, which is most of the data, and {WHOLE[what]}; {other}")
    for name in _far(held, shares, rows):
        wanted = f", not about {shares[name] * rows:.0f}" if name in shares else ""
        raise DataError(
            f"{column}: {name} would have {len(held[name])} of {rows} rows{wanted}, because {WHOLE[what]} and "
            f"{largest}; set data.validation_share and data.test_share to what the {len(names)} {what}s allow, {other}"
        )


def describe_shift(
    parts: Mapping[str, tuple[Staged, Indices]], config: DataConfig, given: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """Lines about the groups or times of the parts, and those of each part in words.

    Args:
        given: the parts with rows of their own, which were not held out.
    """
    if config.shift_column is None:
        return [], {}
    of = _groups if config.split == "group" else _time_ranges
    words, notes = of(parts, config)
    lines = [f"{config.split}: {', '.join(f'{name} rows are {found}' for name, found in words.items())}"]
    if others := [name for name in parts if name in given and name != "train"]:
        named = " and ".join(others)
        lines.append(f"{config.split}: {named} rows are given, so none of train are held out for {named}")
    if "similar" in parts:
        like = "groups" if config.split == "group" else "times"
        lines.append(
            f"similar: {len(parts['similar'][1])} rows of the {like} of train are held out, to measure what it costs "
            "that other rows are unlike them; data.similar_share = 0 trains on them"
        )
    return [*lines, *notes], words


def called(name: str, parts: Collection[str], config: DataConfig, given: Collection[str]) -> str:
    """What sentences call the rows of a part."""
    if name in given or config.shift_column is None:
        return f"the {name} rows"
    if config.split == "group":
        return "rows of other groups"
    return "the newest rows" if name == "test" or "test" not in parts else f"the {name} rows"


def _groups(parts: Mapping[str, tuple[Staged, Indices]], config: DataConfig) -> tuple[dict[str, str], Iterator[str]]:
    columns = {name: staged.columns(["group"])[0].take(indices) for name, (staged, indices) in parts.items()}
    groups = {name: column.drop_null().unique() for name, column in columns.items()}
    words = {name: f"of {len(found)} group{'' if len(found) == 1 else 's'}" for name, found in groups.items()}

    def notes() -> Iterator[str]:
        trained = set(groups["train"].to_pylist())
        for name, column in columns.items():
            if column.null_count:
                rule = ": they are trained on" if name == "train" else ""
                yield (
                    f"group: {column.null_count} of {len(column)} {name} rows have no group in column "
                    f"{config.group_column!r}{rule}"
                )
            if name in ("validation", "test") and (shared := trained & set(groups[name].to_pylist())):
                rows = sum(group in shared for group in column.to_pylist())
                yield (
                    f"group: {rows} of {len(column)} {name} rows are of {len(shared)} groups that train has too: they "
                    "are not unlike the training rows"
                )

    return words, notes()


def _time_ranges(
    parts: Mapping[str, tuple[Staged, Indices]], config: DataConfig
) -> tuple[dict[str, str], Iterator[str]]:
    found = {name: _times(staged, config, indices) for name, (staged, indices) in parts.items()}
    times = {name: part[~np.isnan(part)] for name, (part, _) in found.items()}
    kinds = {are_dates for name, (_, are_dates) in found.items() if len(times[name])}
    if len(kinds) > 1:
        raise DataError(f"column {config.time_column!r} has dates in some files and other numbers in others")
    words = {
        name: f"from {shown_time(part.min(), found[name][1])} to {shown_time(part.max(), found[name][1])}"
        if len(part)
        else "without a time"
        for name, part in times.items()
    }

    def notes() -> Iterator[str]:
        newest = times["train"].max(initial=-np.inf)
        for name, part in times.items():
            if missing := len(found[name][0]) - len(part):
                yield f"time: {missing} of {len(found[name][0])} {name} rows have no time in {config.time_column!r}"
            if name in ("validation", "test") and (old := int((part <= newest).sum())):
                yield (
                    f"time: {old} of {len(found[name][0])} {name} rows are not newer than the newest training row: "
                    "they are not unlike the training rows"
                )

    return words, notes()
