"""How far a job is: a bar on a terminal, a plain line now and then elsewhere; both on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

BAR_S = 0.2  # how often the bar moves
LINE_S = 10.0  # how often a line is printed


class Meter:
    """Counts rows, and says how fast they come and how long the rest takes.

    Args:
        step: what is being done.
        total: how far there is to read.
        rows: done by earlier runs.
        done: how far those have read.
    """

    def __init__(self, step: str, total: int, rows: int = 0, done: int = 0) -> None:
        self.step = step
        self.rows = rows
        self.done = done
        self.total = total
        self._rows_before = rows
        self._done_before = done
        self._began = time.monotonic()

    def describe(self) -> str:
        """Rows, rows/s of this run, time left."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        ahead = self.done - self._done_before
        left = _clock((self.total - self.done) / ahead * seconds) if ahead > 0 else "?"
        return f"{self.rows:,} rows, {(self.rows - self._rows_before) / seconds:,.0f} rows/s, {left} left"

    def percent(self) -> int:
        """Of the input."""
        return 100 * self.done // self.total if self.total else 100


class Reporter:
    """Takes every row and shows some."""

    every_s = LINE_S

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._shown = time.monotonic()

    def advance(self, end: int) -> None:
        """One more row, with which the input is read so far."""
        self._meter.rows += 1
        self._meter.done = end
        if time.monotonic() - self._shown >= self.every_s:
            self._shown = time.monotonic()
            self.show()

    def show(self) -> None:
        """Nothing, unless it is known where."""


class _Lines(Reporter):
    def __init__(self, meter: Meter, console: Console) -> None:
        super().__init__(meter)
        self._console = console

    def show(self) -> None:
        said = f"{self._meter.step}, {self._meter.percent()} %: {self._meter.describe()}"
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)


class _Bar(Reporter):
    every_s = BAR_S

    def __init__(self, meter: Meter, progress: Progress) -> None:
        super().__init__(meter)
        self._progress = progress
        self._task = progress.add_task(meter.step, total=meter.total, completed=meter.done, said=meter.describe())

    def show(self) -> None:
        self._progress.update(self._task, completed=self._meter.done, said=self._meter.describe())


@contextmanager
def report(meter: Meter, console: Console, shown: bool = True) -> Iterator[Reporter]:
    """Shows the meter while the block runs."""
    if not shown:
        yield Reporter(meter)
    elif not console.is_terminal:
        yield _Lines(meter, console)
    else:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=console,
        ) as progress:
            bar = _Bar(meter, progress)
            yield bar
            bar.show()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
