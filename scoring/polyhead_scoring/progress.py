"""Progress of a run: a bar in a terminal, in a log a line every few seconds; both with rate and time left."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyhead_scoring.partition import Partition
from polyhead_scoring.run_folder import Done

EVERY_S = 10.0


class ScoringProgress:
    """Counts rows; the time left goes by estimated tokens, since rows differ in length.

    Args:
        partitions: all of the run.
        before: numbers of those that an earlier run finished.
    """

    def __init__(self, partitions: Iterable[Partition], before: Iterable[int], console: Console) -> None:
        self.partitions = {partition.number: partition for partition in partitions}
        self.console = console
        self.total = sum(partition.rows for partition in self.partitions.values())
        self.before = sum(self.partitions[number].rows for number in before)
        self.left = sum(p.tokens for p in self.partitions.values()) - sum(self.partitions[n].tokens for n in before)
        self.rows = self.errors = self.tokens = 0
        self.started = self.said = time.monotonic()
        self.bar = Progress(
            TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} rows/s"),
            TimeRemainingColumn(), TextColumn("{task.fields[errors]} errors"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("scoring", total=self.total, completed=self.before, rate="", errors=0)

    def __enter__(self) -> ScoringProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def rows_a_second(self) -> float:
        """Of this run."""
        return self.rows / max(time.monotonic() - self.started, 1e-9)

    def add(self, done: Done) -> None:
        """Notes a finished partition, and says so if it is time to."""
        self.rows += done.rows
        self.errors += done.errors
        self.tokens += self.partitions[done.number].tokens
        self.left -= self.partitions[done.number].tokens
        self.bar.update(self.task, advance=done.rows, rate=f"{self.rows_a_second:,.0f}", errors=self.errors)
        now = time.monotonic()
        if self.bar.disable and (now - self.said >= EVERY_S or not self.left):
            self.said = now
            minutes, seconds = divmod(round((now - self.started) * self.left / max(self.tokens, 1)), 60)
            self.console.print(
                f"  {self.before + self.rows:,} of {self.total:,} rows, {self.rows_a_second:,.0f} rows/s, "
                f"{minutes}:{seconds:02d} left, {self.errors:,} errors",
                highlight=False,
            )
