"""Times: what a cell of a time column means, and the split that tests on the newest rows.

A time is the number of microseconds since 1970 in UTC. In a column of numbers that count something else, such as
rounds, it is the number itself.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead_rows.spelling import shortened
from polyhead_training.data.scalars import MISSING
from polyhead_training.errors import BadRowError, DataError

FORMS = "write times as 2024-01-31 or 2024-01-31T12:00:00+02:00, or as seconds since 1970"
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
LEAST_EPOCH = 1e8  # seconds: March 1973; smaller numbers count something else, unless larger ones are among them
UNITS = ((1e17, 1e-3), (1e14, 1.0), (1e11, 1e3), (0.0, 1e6))  # least number since 1970, and its microseconds

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_MONTH = re.compile(r"\d{4}-\d{2}", re.ASCII)
_DAY = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(\D.*)?", re.ASCII)
_ZONE_NAME = re.compile(r"\s*(UTC|GMT)$", re.IGNORECASE)

Times = NDArray[np.float64]


class TimeReader:
    """Reads the cells of a time column.

    Attributes:
        zones: how many times have a time of day ``with`` and ``without`` a zone.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self.zones: Counter[str] = Counter()

    def read(self, value: Any, place: str, is_needed: bool) -> tuple[float | None, bool]:
        """The time, and whether it is a number whose unit the whole column decides; None if there is none.

        Raises:
            BadRowError: the cell holds no time, or is empty although it is needed.
        """
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            value = value.strip()
        if value is None or value != value or (isinstance(value, str) and (not value or value.casefold() in MISSING)):
            if is_needed:
                raise BadRowError(f"{place}: column {self.column!r} has no time, and split = 'time' needs one per row")
            return None, False
        try:
            return self._read(value)
        except (ValueError, TypeError, OverflowError) as error:
            shown = shortened(repr(value))
            raise BadRowError(f"{place}: column {self.column!r}: {shown} is no time; {FORMS}") from error

    def note(self) -> str:
        """A line about times with and without a zone; empty if all are alike."""
        with_zone, without = self.zones["with"], self.zones["without"]
        if not with_zone or not without:
            return ""
        return f"time_column: {without} of {with_zone + without} times have no time zone and are taken as UTC"

    def _read(self, value: Any) -> tuple[float, bool]:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, int | float | Decimal | np.number) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError("not finite")
            return float(value), True
        if isinstance(value, str):
            value = _parsed(value)
        if hasattr(value, "to_pydatetime"):  # of pandas, which may have nanoseconds
            value = value.to_pydatetime(warn=False)
        if not isinstance(value, datetime.date):
            raise TypeError(f"{type(value).__name__} is no time")
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
        elif value.tzinfo is None:
            self.zones["without"] += 1
            value = value.replace(tzinfo=datetime.UTC)
        else:
            self.zones["with"] += 1
        return (value - EPOCH) / datetime.timedelta(microseconds=1), False


def _parsed(text: str) -> datetime.date:
    iso = f"{text}-01" if _MONTH.fullmatch(text) else _ZONE_NAME.sub("+00:00", text)
    if found := _DAY.fullmatch(iso):
        year, month, day, rest = found.groups(default="")
        iso = f"{year}-{month:0>2}-{day:0>2}{rest}"
    try:
        if len(iso) <= len("2024-01-31"):
            return datetime.date.fromisoformat(iso)
        return datetime.datetime.fromisoformat(iso)
    except ValueError:
        return parsedate_to_datetime(text)  # Wed, 31 Jan 2024 12:00:00 +0200


def comparable_times(
    times: Times, is_number: NDArray[np.bool_], place_of: Callable[[int], str], column: str
) -> tuple[Times, bool]:
    """The times with numbers in one unit, and whether they are dates; NaN stays.

    Raises:
        DataError: some are dates, others are numbers that are none.
    """
    is_number = is_number & ~np.isnan(times)
    numbers = times[is_number]
    if not len(numbers):
        return times, True
    dated = _dated(numbers)
    if dated is None:
        dates = np.flatnonzero(~is_number & ~np.isnan(times))
        if not len(dates):
            return times, False
        number = int(np.flatnonzero(is_number)[np.abs(numbers).argmin()])
        raise DataError(
            f"column {column!r} mixes dates and numbers that are no dates: {times[number]:.15g} at {place_of(number)}, "
            f"{shown_time(times[dates[0]], True)} at {place_of(int(dates[0]))}; {FORMS}"
        )
    found = times.copy()
    found[is_number] = dated
    return found, True


def _dated(numbers: Times) -> Times | None:
    """Numbers that are years, ``202401``, ``20240131`` or a time since 1970, in microseconds; None if they are not."""
    if (numbers == numbers.round()).all() and (numbers >= 1000).all() and (numbers < 30_000_000).all():
        whole = numbers.astype(np.int64)
        for digits in (0, 2, 4):  # after the year
            years, rest = np.divmod(whole, 10**digits)
            months, days = (rest, 1) if digits == 2 else np.divmod(rest, 100) if digits else (1, 1)
            if ((years >= 1000) & (years < 3000) & (np.asarray(months) >= 1) & (np.asarray(months) <= 12)).all():
                month = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
                day = month.astype("datetime64[D]") + (np.asarray(days) - 1)
                if (day.astype("datetime64[M]") == month).all():
                    return np.asarray(day.astype("datetime64[us]"), np.float64)
    size = np.abs(numbers)
    if size.max() < LEAST_EPOCH:
        return None
    units = np.select([size >= least for least, _ in UNITS], [unit for _, unit in UNITS])
    return np.asarray(numbers * units, np.float64)


def shown_time(time: float, is_date: bool) -> str:
    """A time for messages, to the second."""
    if not is_date:
        return f"{time:.15g}"
    try:
        moment = EPOCH + datetime.timedelta(microseconds=float(time))
    except OverflowError:
        return f"{time / 1e6:.15g} s since 1970"
    return f"{moment:%Y-%m-%d}" if moment.time() == datetime.time() else f"{moment:%Y-%m-%d %H:%M:%S}"


def hold_out_newest(times: Times, shares: Mapping[str, float]) -> dict[str, NDArray[np.int64]]:
    """Train, and one split per share: test has the newest rows, validation those before them.

    Rows of one time are in one split, so a split is as near to its share as that allows. It has at least one time.
    """
    rows_of = np.unique(times, return_counts=True)[1]
    order = np.unique(times, return_inverse=True)[1]  # 0 is the oldest
    rows_before = np.concatenate([[0], np.cumsum(rows_of)])  # of each time
    end, held = len(rows_of), {}
    for name in ("test", "validation"):
        if name in shares:
            sizes = rows_before[end] - rows_before[:end]  # by the first time that it has
            begin = end - 1 - int(np.abs(sizes[::-1] - shares[name] * len(times)).argmin()) if end else 0
            held[name] = np.flatnonzero((order >= begin) & (order < end))
            end = begin
    return {"train": np.flatnonzero(order < end)} | held
