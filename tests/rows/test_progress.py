"""Progress: lines in a log, a bar on a terminal."""

from __future__ import annotations

import contextlib
import io

import pytest
from rich.console import Console

from polyhead_rows import progress as module
from polyhead_rows.progress import hidden_progress, progress


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is done, the rate, the time left and the figures."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with progress("scoring", 4000, done=1000, console=console) as meter:
        now[0] += 5
        meter.advance(100)
        now[0] += 5
        meter.advance(900, loss=0.12345, tokens=12345)
        now[0] += 5
        meter.advance(1)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]  # it is a StringIO
        "scoring, 50 %: 2,000 of 4,000 rows, 100 rows/s, 0:20 left, loss 0.123, tokens 12,345\n"
    )


def test_a_total_that_is_unknown_has_no_time_left() -> None:
    """As of standard input."""
    with progress("reading", 0, unit="texts", shown=False) as meter:
        meter.advance(5)
    assert meter.describe().startswith("5 texts, ")
    assert "left" not in meter.describe()


def test_a_terminal_has_a_bar() -> None:
    """It ends at what was done."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress("training [x]", 10, unit="steps", console=console) as meter:
        for step in range(10):
            meter.advance(1, loss=step)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO
    assert "training [x]" in shown
    assert "10 of 10 steps" in shown
    assert "100%" in shown


def test_figures_that_change() -> None:
    """A function gives the figure of the moment; None is not shown."""
    losses = [0.5]
    with progress("training", 10, shown=False) as meter:
        meter.advance(1, loss=lambda: losses[-1], evaluating="1 of 2")
        assert meter.describe().endswith(", loss 0.5, evaluating 1 of 2")
        losses.append(0.25)
        meter.advance(1, evaluating=None)
    assert meter.describe().endswith(" left, loss 0.25")


def test_progress_is_hidden_in_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the block calls; after it, progress is shown again, also after an error."""
    with contextlib.suppress(ValueError), hidden_progress(), progress("quiet", 10) as meter:
        meter.show()
        raise ValueError("an error in the block")
    assert capsys.readouterr() == ("", "")
    with progress("loud", 10) as meter:
        meter.show()
    assert "loud, 0 %: 0 of 10 rows" in capsys.readouterr().err


def test_progress_that_is_not_shown_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed."""
    with progress("quiet", 10, shown=False) as meter:
        meter.advance(3)
        meter.show()
    assert meter.done == 3
    assert capsys.readouterr() == ("", "")
