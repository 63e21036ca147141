"""Progress of a long task: a bar on a terminal, otherwise a plain line every ten seconds; both on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

BAR_S = 0.2  # how often the bar moves
LINE_S = 10.0  # how often a line is printed
_is_hidden: ContextVar[bool] = ContextVar("is_hidden", default=False)


class ProgressMeter:
    """Counts what is done, and shows the rate and the remaining time.

    Attributes:
        title: what is being done.
        total: how much there is to do; 0 if it is unknown.
        done: how much is done, by earlier runs too.
    """

    def __init__(self, title: str, total: float, unit: str, done: float) -> None:
        self.title = title
        self.total = total
        self.done = done
        self._unit = unit
        self._before = done
        self._figures: dict[str, object] = {}
        self._began = self._shown = time.monotonic()
        self._every_s = LINE_S
        self._show: Callable[[], None] = lambda: None

    def advance(self, units: float = 1, **figures: object) -> None:
        """Adds `units` to what is done. Figures such as ``loss=0.12`` are shown until they change.

        A figure that is a function is called when it is shown. None is not shown.
        """
        self.done += units
        self._figures.update(figures)
        if time.monotonic() - self._shown >= self._every_s:
            self._shown = time.monotonic()
            self.show()

    def describe(self) -> str:
        """What is done, the rate of this run, the time left, and the figures."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        ahead = self.done - self._before
        parts = [f"{_number(self.done)}{f' of {_number(self.total)}' if self.total else ''} {self._unit}"]
        parts.append(f"{_number(ahead / seconds)} {self._unit}/s")
        if self.total:
            parts.append(f"{_clock((self.total - self.done) / ahead * seconds) if ahead > 0 else '?'} left")
        figures = {name: value() if callable(value) else value for name, value in self._figures.items()}
        return ", ".join(parts + [f"{name} {_figure(value)}" for name, value in figures.items() if value is not None])

    def show(self) -> None:
        """Shows the progress now, if it is shown at all."""
        self._show()

    def show_lines(self, console: Console) -> None:
        """Shows progress as lines from now on."""

        def show() -> None:
            percent = f", {min(int(100 * self.done / self.total), 100)} %" if self.total else ""
            line = f"{self.title}{percent}: {self.describe()}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        self._show = show

    def show_bar(self, bar: RichProgress) -> None:
        """Shows progress as a bar from now on."""
        task = bar.add_task(self.title, total=self.total or None, completed=int(self.done), said=self.describe())
        self._every_s = BAR_S
        self._show = lambda: bar.update(task, completed=self.done, said=self.describe())


@contextmanager
def progress(
    title: str,
    total: float,
    *,
    unit: str = "rows",
    done: float = 0,
    shown: bool = True,
    console: Console | None = None,
) -> Iterator[ProgressMeter]:
    """Shows the progress of the block. The block calls ``advance`` on the returned object.

    Args:
        title: what is being done.
        total: how much there is to do; 0 if it is unknown.
        unit: what is counted.
        done: by earlier runs.
        shown: false counts without showing.
        console: standard error if None.
    """
    console = console if console is not None else Console(stderr=True)
    meter = ProgressMeter(title, total, unit, done)
    if not shown or _is_hidden.get():
        yield meter
    elif not console.is_terminal:
        meter.show_lines(console)
        yield meter
    else:
        title_column, said = (TextColumn(f"{{task.{of}}}", markup=False) for of in ("description", "fields[said]"))
        with RichProgress(title_column, BarColumn(), TaskProgressColumn(), said, console=console) as bar:
            meter.show_bar(bar)
            try:
                yield meter
            finally:
                meter.show()


@contextmanager
def hidden_progress() -> Iterator[None]:
    """Shows no progress of anything in this block."""
    token = _is_hidden.set(True)
    try:
        yield
    finally:
        _is_hidden.reset(token)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
